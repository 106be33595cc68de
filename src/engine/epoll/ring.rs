//! A worker's ring on epoll: the operations of the pump, tried when they are asked for or when their
//! socket becomes ready.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{self, RecvFlags, SendFlags, Shutdown, SocketFlags};

use super::edges::{CONNECTION, EVENTS, Edges, LISTENER};
use super::sockets::{Entry, Listener, queue};
use super::{PreparedEpoll, no_epoll};
use crate::buffer::HEADROOM;
use crate::engine::ring::{
    ADMISSIONS_MAX, Blocking, Completion, Further, Lease, Patience, Received, Reply, Ring, Sent,
    Socket, Wait,
};
use crate::engine::wait::Waiter;
use crate::engine::{BufferConfig, EngineError, WorkerConfig};
use crate::memory::Mapping;
use crate::metrics::Counters;
use crate::offload::record::Record;
use crate::slab::ConnectionId;

pub(super) struct EpollRing<'a> {
    edges: Edges<'a>,
    waiter: Waiter<'a>,
    listeners: Vec<Option<Listener>>,
    entries: Vec<Option<Entry>>,
    vacant: Vec<i32>,
    /// The place of each connection's socket, by the slot of its id.
    places: Vec<i32>,
    /// Places to be read.
    readable: VecDeque<i32>,
    config: BufferConfig,
    memory: Mapping,
    /// Free buffers.
    free: Vec<u32>,
    /// Sends without patience that were whole, to be reported with the next completions.
    whole: Vec<(ConnectionId, u32)>,
    /// Completions to be reported before [`Blocking::enter`] may sleep.
    urgent: Vec<Completion>,
    counters: &'a Counters,
}

impl<'a> EpollRing<'a> {
    pub(super) fn new(
        prepared: PreparedEpoll,
        worker: &'a WorkerConfig,
        listeners: Vec<OwnedFd>,
    ) -> Result<EpollRing<'a>, EngineError> {
        let PreparedEpoll { epoll, memory } = prepared;
        let listeners = listeners
            .into_iter()
            .zip(0..)
            .map(|(fd, number)| Listener::watched(fd, number, &epoll).map(Some))
            .collect::<Result<_, _>>()
            .map_err(no_epoll)?;
        let counters = &*worker.counters;
        Ok(EpollRing {
            edges: Edges { epoll, events: Vec::with_capacity(EVENTS), counters },
            waiter: Waiter::new(worker.wait, counters),
            listeners,
            entries: Vec::new(),
            vacant: Vec::new(),
            places: Vec::new(),
            readable: VecDeque::new(),
            config: worker.buffers,
            memory,
            free: (0..worker.buffers.count.into()).rev().collect(),
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
                _ => self.urgent.push(Completion::StopRequested),
            }
        }
        self.edges.events = events;
    }

    fn note_connection(&mut self, place: i32, flags: EventFlags) {
        let Some(entry) = &mut self.entries[place as usize] else { return };
        let ended = EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR;
        entry.has_ended |= flags.intersects(ended);
        // A receive stops at the urgent mark, even if more follows (tcp(7)).
        entry.tells_by_length &= !flags.contains(EventFlags::PRI);
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

    /// One send(2).
    #[inline]
    fn attempt(&mut self, place: i32, id: ConnectionId, reply: Reply) -> (Sent, u32) {
        let entry = self.entries[place as usize].as_ref().expect("its socket is open");
        debug_assert_eq!(entry.id, Some(id));
        let bytes = match &reply {
            Reply::Pinned(pinned) => {
                let start = pinned.lease().buffer() as usize * self.config.bytes as usize;
                &self.memory.bytes()[start..][pinned.range()]
            }
            Reply::Heap(bytes) => bytes,
        };
        self.counters.syscalls.add(1);
        let sent = net::send(&entry.fd, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
        reply.ended(sent.map(|count| count as u32), |lease| self.free.push(lease.buffer()))
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

    /// Reads each socket that may have input once, as long as there are buffers.
    #[inline]
    fn read(&mut self, completions: &mut Vec<Completion>) {
        for _ in 0..self.readable.len() {
            // Sockets that are left over come first the next time.
            let Some(buffer) = self.free.pop() else { return };
            let Some(place) = self.readable.pop_front() else { return self.free.push(buffer) };
            let entry = self.entries[place as usize].as_mut();
            let Some(entry) = entry.filter(|entry| entry.is_queued) else {
                self.free.push(buffer);
                continue;
            };
            entry.is_queued = false;
            if !entry.is_receiving {
                self.free.push(buffer);
                continue;
            }
            let size = self.config.bytes as usize;
            let start = buffer as usize * size;
            let room = &mut self.memory.bytes()[start + HEADROOM..start + size];
            let length = room.len();
            self.counters.syscalls.add(1);
            let result = net::recv(&entry.fd, room, RecvFlags::DONTWAIT).map(|(_, count)| count);
            let id = entry.id.expect("it receives");
            let (received, further) = match result {
                Ok(0) => (Received::End, Further::Over),
                Ok(count) => {
                    let is_empty = entry.tells_by_length && count < length && !entry.has_ended;
                    entry.is_readable = !is_empty;
                    if entry.is_readable {
                        queue(&mut self.readable, entry, place);
                    }
                    let lease = Lease::new(buffer, count as u32);
                    completions.push(Completion::Received {
                        id,
                        received: Received::Data { lease, bytes: count as u32 },
                        further: Further::More,
                    });
                    continue;
                }
                Err(Errno::AGAIN) => {
                    entry.is_readable = false;
                    self.free.push(buffer);
                    continue;
                }
                Err(Errno::INTR) => {
                    queue(&mut self.readable, entry, place);
                    self.free.push(buffer);
                    continue;
                }
                Err(errno) => (Received::Failed(errno), Further::Over),
            };
            entry.is_receiving = false;
            self.free.push(buffer);
            completions.push(Completion::Received { id, received, further });
        }
    }

    /// Accepts waiting connections: on each listener so few that the open ones do not have to wait long.
    fn accept_some(&mut self, completions: &mut Vec<Completion>) {
        for number in 0..self.listeners.len() {
            for _ in 0..ADMISSIONS_MAX {
                let Some((result, further)) = self.accept_one(number) else { break };
                let listener = number as u32;
                completions.push(Completion::Accepted { listener, result, further });
            }
        }
    }

    /// One accept4(2), if it is asked for and a connection may wait.
    fn accept_one(&mut self, number: usize) -> Option<(Result<Socket, Errno>, Further)> {
        let listener = self.listeners[number].as_mut();
        let listener = listener.filter(|it| it.is_accepting && it.is_readable)?;
        let tells_by_length = listener.tells_by_length;
        self.counters.syscalls.add(1);
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let result = match net::accept_with(&listener.fd, flags) {
            Err(Errno::AGAIN) => {
                listener.is_readable = false;
                return None;
            }
            result => result.and_then(|fd| self.add(fd, tells_by_length)),
        };
        if result.is_ok() {
            return Some((result, Further::More));
        }
        // The connections are still waiting, but no further edge will say so.
        if let Some(listener) = &mut self.listeners[number] {
            listener.is_accepting = false;
        }
        Some((result, Further::Over))
    }

    /// Watches a socket. Edges that come before its first receive are remembered.
    fn add(&mut self, fd: OwnedFd, tells_by_length: bool) -> Result<Socket, Errno> {
        let place = self.vacant.pop().unwrap_or_else(|| {
            self.entries.push(None);
            i32::try_from(self.entries.len() - 1).expect("fewer than 2^31 descriptors")
        });
        let flags =
            EventFlags::IN | EventFlags::PRI | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        self.counters.syscalls.add(1);
        let data = EventData::new_u64(CONNECTION | place as u64);
        if let Err(errno) = epoll::add(&self.edges.epoll, &fd, data, flags) {
            self.counters.syscalls.add(1);
            self.vacant.push(place);
            return Err(errno);
        }
        self.entries[place as usize] = Some(Entry {
            fd,
            id: None,
            tells_by_length,
            is_receiving: false,
            // The first request often arrives together with the connection.
            is_readable: true,
            has_ended: false,
            is_queued: false,
            waiting: None,
        });
        Ok(Socket(place))
    }

    fn remove(&mut self, socket: &Socket) {
        // Closing also removes it from the epoll instance.
        self.counters.syscalls.add(1);
        self.entries[socket.0 as usize] = None;
        self.vacant.push(socket.0);
    }
}

impl Ring for EpollRing<'_> {
    type Place = Infallible;

    fn now(&self) -> Duration {
        self.waiter.now()
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

    fn close_listener(&mut self, listener: u32) {
        if self.listeners[listener as usize].take().is_some() {
            self.counters.syscalls.add(1);
        }
    }

    /// The stop is watched from the beginning.
    fn watch_stop(&mut self) {}

    #[inline]
    fn receive(&mut self, id: ConnectionId, socket: &Socket) {
        let entry = self.introduce(id, socket);
        entry.is_receiving = true;
        if let Some(entry) = &mut self.entries[socket.0 as usize]
            && entry.is_readable
        {
            queue(&mut self.readable, entry, socket.0);
        }
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
        let size = self.config.bytes as usize;
        &mut self.memory.bytes()[lease.buffer() as usize * size..][..size]
    }

    #[inline]
    fn recycle(&mut self, lease: Lease) {
        self.free.push(lease.buffer());
    }

    fn buffers_ready(&self) -> usize {
        self.free.len()
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

    use super::*;
    use crate::engine::wait::WaitStrategy;

    #[test]
    fn a_patient_send_that_is_whole_at_once_is_not_slept_on_and_a_quick_one_is() {
        let worker = WorkerConfig::for_test(WaitStrategy::Block);
        let prepared = PreparedEpoll::new(&worker).expect("epoll");
        let mut ring = EpollRing::new(prepared, &worker, Vec::new()).expect("epoll");
        let (here, _there) = UnixStream::pair().expect("a pair");
        here.set_nonblocking(true).expect("an option");
        let socket = ring.add(here.into(), false).expect("a place");
        let id = ConnectionId { slot: 0, generation: 0 };
        let reply = || Reply::Heap(bytes::BytesMut::from(&b"hello"[..]));
        ring.send(id, &socket, reply(), Patience::None);
        assert!(!ring.is_busy());
        ring.send(id, &socket, reply(), Patience::Unlimited);
        assert!(ring.is_busy());
        let mut completions = Vec::new();
        ring.enter(Wait::Until(None), &mut completions).expect("epoll");
        assert_eq!(completions.len(), 2, "{completions:?}");
    }
}
