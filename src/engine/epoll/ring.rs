//! A worker's ring on epoll: when each of the pump's operations is tried, and what is then reported.
//!
//! The system calls themselves are in `calls`.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{self, Shutdown};

use super::buffers::Buffers;
use super::edges::{CONNECTION, EVENTS, Edges, LISTENER, QUESTION, STOP};
use super::sockets::{EmptyWhen, Entry, Listener, queue};
use super::{PreparedEpoll, no_epoll};
use crate::engine::ring::{
    Blocking, Completion, Further, Lease, Patience, Received, Reply, Ring, Sent, Socket, Wait,
    address_of,
};
use crate::engine::wait::{Alarm, Waiter};
use crate::engine::{EngineError, WorkerConfig};
use crate::metrics::Counters;
use crate::offload::record::Record;
use crate::protocol::Limits;
use crate::slab::ConnectionId;

/// The ring of one worker: the table of its sockets, its buffers, and what is still to be reported.
pub(super) struct EpollRing<'a> {
    pub(super) edges: Edges<'a>,
    waiter: Waiter<'a>,
    pub(super) listeners: Vec<Option<Listener>>,
    pub(super) entries: Vec<Option<Entry>>,
    pub(super) vacant: Vec<i32>,
    /// The place of each connection's socket, by the slot of its id.
    places: Vec<i32>,
    /// Places to be read.
    pub(super) readable: VecDeque<i32>,
    pub(super) buffers: Buffers,
    /// Sends without patience that were whole, to be reported with the next completions.
    whole: Vec<(ConnectionId, u32)>,
    /// Completions to be reported before [`Blocking::enter`] may sleep.
    pub(super) urgent: Vec<Completion>,
    pub(super) counters: &'a Counters,
}

impl<'a> EpollRing<'a> {
    pub(super) fn new(
        prepared: PreparedEpoll,
        worker: &'a WorkerConfig,
        listeners: Vec<OwnedFd>,
    ) -> Result<EpollRing<'a>, EngineError> {
        let PreparedEpoll { epoll, timer, memory, clock } = prepared;
        let listeners = listeners
            .into_iter()
            .zip(0..)
            .map(|(fd, number)| Listener::watched(fd, number, &epoll).map(Some))
            .collect::<Result<_, _>>()
            .map_err(no_epoll)?;
        let counters = &*worker.counters;
        Ok(EpollRing {
            edges: Edges {
                epoll,
                events: Vec::with_capacity(EVENTS),
                alarm: Alarm::default(),
                timer,
                counters,
            },
            waiter: Waiter::new(worker.wait, worker.pace, clock, counters),
            listeners,
            entries: Vec::new(),
            vacant: Vec::new(),
            places: Vec::new(),
            readable: VecDeque::new(),
            buffers: Buffers::new(memory, worker.buffers),
            whole: Vec::new(),
            urgent: Vec::new(),
            counters,
        })
    }

    /// The socket of a connection that has had an operation.
    fn entry(&mut self, id: ConnectionId) -> (i32, &mut Entry) {
        let place = self.places[id.slot as usize];
        (place, self.entries[place as usize].as_mut().expect("its socket is open"))
    }

    /// The same for its first operation, from which on the connection's id is known.
    #[inline]
    fn introduce(&mut self, id: ConnectionId, socket: &Socket) -> &mut Entry {
        let entry = self.entries[socket.0 as usize].as_mut().expect("its socket is open");
        if entry.id != Some(id) {
            entry.id = Some(id);
            let slot = id.slot as usize;
            if self.places.len() <= slot {
                self.places.resize(slot + 1, -1);
            }
            self.places[slot] = socket.0;
        }
        entry
    }

    /// Starts a receive of at most `most` bytes at a time.
    #[inline]
    fn start_receive(&mut self, id: ConnectionId, socket: &Socket, most: usize, is_single: bool) {
        let entry = self.introduce(id, socket);
        entry.is_receiving = true;
        entry.receive_max = most;
        entry.is_single = is_single;
        if let Some(entry) = &mut self.entries[socket.0 as usize]
            && entry.is_readable
        {
            queue(&mut self.readable, entry, socket.0);
        }
    }

    /// Notes the edges that came.
    fn note(&mut self) {
        let mut events = std::mem::take(&mut self.edges.events);
        for event in events.drain(..) {
            let (data, flags) = (event.data.u64(), event.flags);
            let place = data as u32;
            match data & !u64::from(u32::MAX) {
                CONNECTION => self.note_connection(place as i32, flags),
                LISTENER => {
                    if let Some(listener) = &mut self.listeners[place as usize] {
                        listener.is_readable = true;
                    }
                }
                STOP => self.urgent.push(Completion::StopRequested),
                QUESTION => self.urgent.push(Completion::Asked),
                _ => self.edges.alarm.clear(),
            }
        }
        self.edges.events = events;
    }

    fn note_connection(&mut self, place: i32, flags: EventFlags) {
        let Some(entry) = &mut self.entries[place as usize] else { return };
        let ended = EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR;
        entry.has_ended |= flags.intersects(ended);
        // A receive stops at the urgent mark, even if more follows (tcp(7)).
        if flags.contains(EventFlags::PRI) {
            entry.empty_when = EmptyWhen::Again;
        }
        if flags.intersects(EventFlags::IN | EventFlags::PRI | ended) {
            entry.is_readable = true;
            queue(&mut self.readable, entry, place);
        }
        if flags.intersects(EventFlags::OUT | ended)
            && let Some(reply) = entry.waiting.take()
        {
            let id = entry.id.expect("it has had an operation");
            match self.attempt(place, id, reply) {
                // An edge for input also claims that there is room, even if there is none.
                (Sent::Cut(rest), 0) => {
                    self.entries[place as usize].as_mut().expect("it is open").waiting = Some(rest);
                }
                (sent, bytes) => self.urgent.push(Completion::Sent { id, sent, bytes }),
            }
        }
    }

    /// Whether there is something to do without waiting for an edge.
    fn is_busy(&self) -> bool {
        !self.urgent.is_empty() || !self.readable.is_empty() || self.is_asked_to_accept()
    }

    /// Appends what has completed, after trying everything that can be done without waiting.
    #[inline]
    fn collect(&mut self, completions: &mut Vec<Completion>) {
        completions.append(&mut self.urgent);
        self.read(completions);
        if self.is_asked_to_accept() {
            self.accept_some(completions);
        }
    }

    fn is_asked_to_accept(&self) -> bool {
        self.listeners
            .iter()
            .flatten()
            .any(|listener| listener.is_accepting && listener.is_readable)
    }
}

impl Ring for EpollRing<'_> {
    type Place = Infallible;

    const SENDS_AT_ONCE: bool = true;

    fn now(&self) -> Duration {
        self.waiter.now()
    }

    #[inline]
    fn recently(&self) -> Duration {
        self.waiter.recently()
    }

    fn peer_address(&self, socket: &Socket) -> Option<IpAddr> {
        self.counters.syscalls.add(1);
        let entry = self.entries[socket.0 as usize].as_ref().expect("its socket is open");
        address_of(&net::getpeername(&entry.fd).ok()??)
    }

    fn listeners(&self) -> u32 {
        self.listeners.len() as u32
    }

    fn accept(&mut self, listener: u32) {
        if let Some(listener) = &mut self.listeners[listener as usize] {
            listener.is_accepting = true;
        }
    }

    fn cancel_accept(&mut self, listener: u32) {
        let accepting = self.listeners[listener as usize].as_mut();
        if let Some(it) = accepting.filter(|it| it.is_accepting) {
            it.is_accepting = false;
            let result = Err(Errno::CANCELED);
            self.urgent.push(Completion::Accepted { listener, result, further: Further::Over });
        }
    }

    fn close_listener(&mut self, listener: u32, waiting: &mut VecDeque<Socket>) {
        self.accept_last(listener as usize, waiting);
    }

    /// The stop is watched from the beginning.
    fn watch_stop(&mut self) {}

    #[inline]
    fn receive(&mut self, id: ConnectionId, socket: &Socket) {
        self.start_receive(id, socket, Limits::PIECE as usize, false);
    }

    fn receive_piece(&mut self, id: ConnectionId, socket: &Socket, bytes: usize) {
        self.start_receive(id, socket, bytes, true);
    }

    fn cancel_receive(&mut self, id: ConnectionId) {
        let (_, entry) = self.entry(id);
        if std::mem::take(&mut entry.is_receiving) {
            let received = Received::Failed(Errno::CANCELED);
            self.urgent.push(Completion::Received { id, received, further: Further::Over });
        }
    }

    #[inline]
    fn send(
        &mut self,
        id: ConnectionId,
        socket: &Socket,
        reply: Reply,
        patience: Patience,
    ) -> Patience {
        self.introduce(id, socket);
        match (self.attempt(socket.0, id, reply), patience) {
            // Unlike a patient send, a quick one is not waited for, so its end is not urgent.
            ((Sent::Whole, bytes), Patience::None) => self.whole.push((id, bytes)),
            ((Sent::Cut(rest), 0), Patience::Unlimited) => {
                let (_, entry) = self.entry(id);
                entry.waiting = Some(rest);
            }
            ((sent, bytes), _) => self.urgent.push(Completion::Sent { id, sent, bytes }),
        }
        patience
    }

    fn cancel_send(&mut self, id: ConnectionId) {
        let (_, entry) = self.entry(id);
        if let Some(rest) = entry.waiting.take() {
            self.urgent.push(Completion::Sent { id, sent: Sent::Cut(rest), bytes: 0 });
        }
    }

    fn shut_down(&mut self, socket: &Socket) {
        self.counters.syscalls.add(1);
        let entry = self.entries[socket.0 as usize].as_ref().expect("its socket is open");
        // It fails if the peer has reset the connection; the receive reports that.
        let _ = net::shutdown(entry.fd.as_fd(), Shutdown::Write);
    }

    fn close(&mut self, id: ConnectionId, socket: Socket) {
        self.remove(&socket);
        self.urgent.push(Completion::Closed { id });
    }

    fn discard(&mut self, socket: Socket) {
        self.remove(&socket);
    }

    fn attach(&mut self, _id: ConnectionId, _socket: &Socket) -> Option<(Infallible, u64)> {
        None
    }

    fn detach(&mut self, place: Infallible, _socket: &Socket) {
        match place {}
    }

    fn receive_once(&mut self, place: &Infallible, _id: ConnectionId, _socket: &Socket) {
        match *place {}
    }

    fn record(&self, place: &Infallible) -> &Record {
        match *place {}
    }

    fn written(&self, place: &Infallible, _socket: &Socket) -> u64 {
        match *place {}
    }

    fn watch(&mut self, place: &Infallible, _id: ConnectionId, _socket: &Socket) {
        match *place {}
    }

    fn cancel_watch(&mut self, place: &Infallible, _id: ConnectionId) {
        match *place {}
    }

    #[inline]
    fn bytes<'a>(&'a mut self, lease: &'a mut Lease) -> &'a mut [u8] {
        self.buffers.bytes(lease)
    }

    #[inline]
    fn recycle(&mut self, lease: Lease) {
        self.buffers.recycle(lease);
    }

    fn buffers_ready(&self) -> usize {
        self.buffers.ready()
    }
}

impl Blocking for EpollRing<'_> {
    #[inline]
    fn enter(&mut self, wait: Wait, completions: &mut Vec<Completion>) -> io::Result<()> {
        completions.extend(self.whole.drain(..).map(|(id, bytes)| Completion::Sent {
            id,
            sent: Sent::Whole,
            bytes,
        }));
        let reported = completions.len();
        self.collect(completions);
        match wait {
            Wait::Until(until) if completions.len() == reported && !self.is_busy() => {
                self.waiter.wait(until, &mut self.edges)?;
            }
            // A socket that always has input must not keep the edges of others from being seen.
            Wait::Until(_) | Wait::Not => self.edges.call(Some(Duration::ZERO))?,
        }
        self.note();
        self.collect(completions);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::thread;

    use super::super::CALLS;
    use super::*;
    use crate::engine::config::listener_for_test;
    use crate::engine::wait::WaitStrategy;
    use crate::sandbox::{self, Needs};

    #[test]
    fn what_waits_in_the_queue_of_a_listener_is_accepted_when_it_is_closed() {
        let (listener, address) = listener_for_test("epoll");
        let _clients = [(); 3].map(|()| UnixStream::connect_addr(&address).expect("a queue"));
        let serve = || {
            let worker = WorkerConfig::for_test(WaitStrategy::Block);
            let prepared = PreparedEpoll::new(&worker).expect("epoll");
            // With the calls that a worker has left.
            sandbox::enter(&Needs::default().calling(CALLS));
            let mut ring = EpollRing::new(prepared, &worker, vec![listener.into()]).expect("epoll");
            let mut waiting = VecDeque::new();
            ring.close_listener(0, &mut waiting);
            assert_eq!(waiting.len(), 3);
            waiting.into_iter().for_each(|socket| ring.discard(socket));
        };
        thread::scope(|scope| scope.spawn(serve).join().expect("a worker"));
        UnixStream::connect_addr(&address).expect_err("it is closed");
    }

    #[test]
    fn a_patient_send_that_is_whole_at_once_is_not_slept_on_and_a_quick_one_is() {
        let worker = WorkerConfig::for_test(WaitStrategy::Block);
        let prepared = PreparedEpoll::new(&worker).expect("epoll");
        let mut ring = EpollRing::new(prepared, &worker, Vec::new()).expect("epoll");
        let (here, _there) = UnixStream::pair().expect("a pair");
        here.set_nonblocking(true).expect("an option");
        let socket = ring.add(here.into(), EmptyWhen::Again).expect("a place");
        let id = ConnectionId { slot: 0, generation: 0 };
        let reply = || Reply::Heap(bytes::Bytes::from_static(b"hello"));
        ring.send(id, &socket, reply(), Patience::None);
        assert!(!ring.is_busy());
        ring.send(id, &socket, reply(), Patience::Unlimited);
        assert!(ring.is_busy());
        let mut completions = Vec::new();
        ring.enter(Wait::Until(None), &mut completions).expect("epoll");
        assert_eq!(completions.len(), 2, "{completions:?}");
    }
}
