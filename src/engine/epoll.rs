//! Readiness as a [`Ring`]: epoll(7), edge-triggered, and the system calls of sockets.
//!
//! An operation is tried when it is asked for or when its socket becomes ready, and its completion
//! is queued until the next [`Blocking::enter`]. A send is tried at once, so that a reply leaves
//! before anything is waited for. Before a thread sleeps, every socket that may have input is read,
//! until it is known to be empty: a TCP socket that gave less than there was room for is empty
//! (epoll(7), questions and answers), and is not asked again; others are read until they say so.
//! So a message in ping-pong costs three system calls: epoll_wait, recv and send.
//!
//! Descriptors never leave this module: a [`Socket`] is a place in its table. An edge is noted in
//! that table and nowhere else, and no socket is closed while edges are being noted, so an edge
//! cannot be taken for another socket's.
//!
//! There is no unsafe code here, and nothing of what is done with the octets.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, Shutdown, SocketFlags, sockopt};

use super::pump::Pump;
use super::ring::{
    ADMISSIONS_MAX, Blocking, Completion, Further, Lease, Patience, Received, Reply, Ring, Sent,
    Socket, Wait,
};
use super::wait::{Source, Waiter};
use super::{BufferConfig, EngineError, WorkerConfig};
use crate::buffer::HEADROOM;
use crate::memory::Mapping;
use crate::metrics::Counters;
use crate::offload::record::Record;
use crate::slab::ConnectionId;

/// Edges taken in one call.
const EVENTS: usize = 1024;
/// What an edge's data says beside the place of a connection, in its upper half.
const CONNECTION: u64 = 0;
const LISTENER: u64 = 1 << 32;
const STOP: u64 = 2 << 32;

/// The epoll instance and the memory of one worker.
pub struct PreparedEpoll {
    epoll: OwnedFd,
    memory: Mapping,
}

impl PreparedEpoll {
    /// Takes them from the kernel.
    ///
    /// # Errors
    ///
    /// When memory or descriptors run out.
    pub fn new(worker: &WorkerConfig) -> Result<PreparedEpoll, EngineError> {
        let epoll = epoll::create(CreateFlags::CLOEXEC).map_err(no_epoll)?;
        let readable = EventFlags::IN | EventFlags::ET;
        epoll::add(&epoll, &worker.stop, EventData::new_u64(STOP), readable).map_err(no_epoll)?;
        let memory = Mapping::new(worker.buffers.memory_bytes()).map_err(EngineError::no_memory)?;
        Ok(PreparedEpoll { epoll, memory })
    }

    /// Whether the memory for messages cannot be swapped out.
    pub fn is_locked(&self) -> bool {
        self.memory.is_locked()
    }

    /// Serves connections until the worker is told to stop. Calls `started` once they are accepted.
    ///
    /// # Errors
    ///
    /// When a listener cannot be watched, or epoll breaks.
    pub fn serve(
        self,
        worker: &WorkerConfig,
        listeners: Vec<OwnedFd>,
        started: impl FnOnce(),
    ) -> Result<(), EngineError> {
        let context = worker.context();
        let ring = EpollRing::new(self, worker, listeners)?;
        let pump = Pump::new(ring, context, &worker.limit);
        started();
        pump.run().map_err(|error| EngineError::new("go on serving", error))
    }
}

fn no_epoll(errno: Errno) -> EngineError {
    let error = EngineError::new("set up epoll", errno);
    match errno {
        Errno::MFILE | Errno::NFILE => {
            error.with_remedy("raise the limit on descriptors (ulimit -n)")
        }
        Errno::NOSPC => error.with_remedy("raise sysctl fs.epoll.max_user_watches"),
        _ => error,
    }
}

/// The edges that have not been noted yet.
struct Edges<'a> {
    epoll: OwnedFd,
    events: Vec<Event>,
    counters: &'a Counters,
}

impl Edges<'_> {
    /// One epoll_wait(2), for `most`.
    fn call(&mut self, most: Option<Duration>) -> io::Result<()> {
        let timeout = most.map(|most| Timespec {
            tv_sec: most.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: most.subsec_nanos().into(),
        });
        self.counters.syscalls.add(1);
        self.events.clear();
        let room = rustix::buffer::spare_capacity(&mut self.events);
        match epoll::wait(&self.epoll, room, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl Source for Edges<'_> {
    fn look(&mut self) -> io::Result<bool> {
        self.call(Some(Duration::ZERO))?;
        Ok(!self.events.is_empty())
    }

    fn sleep(&mut self, most: Option<Duration>) -> io::Result<()> {
        self.call(most)
    }
}

/// An open socket.
#[derive(Debug)]
struct Entry {
    fd: OwnedFd,
    /// Known since its first operation.
    id: Option<ConnectionId>,
    /// A receive that gave less than there was room for has emptied the socket.
    tells_by_length: bool,
    is_receiving: bool,
    /// There may be input: an edge came, and nothing since has said that the socket is empty.
    is_readable: bool,
    /// The peer has ended or broken the connection, which only a receive that finds no octets says.
    has_ended: bool,
    /// It is among the places to be read.
    is_queued: bool,
    /// A send that waits for the peer.
    waiting: Option<Reply>,
}

#[derive(Debug)]
struct Listener {
    fd: OwnedFd,
    is_accepting: bool,
    is_readable: bool,
    tells_by_length: bool,
}

impl Listener {
    /// A listener whose edges come with its `number`.
    fn watched(fd: OwnedFd, number: u64, epoll: &OwnedFd) -> Result<Listener, Errno> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        // Several workers may listen on one socket; one of them is enough for a connection.
        let flags = EventFlags::IN | EventFlags::EXCLUSIVE | EventFlags::ET;
        epoll::add(epoll, &fd, EventData::new_u64(LISTENER | number), flags)?;
        let family = sockopt::socket_domain(&fd)?;
        Ok(Listener {
            fd,
            is_accepting: false,
            // It may have connections from before.
            is_readable: true,
            tells_by_length: family == AddressFamily::INET || family == AddressFamily::INET6,
        })
    }
}

struct EpollRing<'a> {
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
    /// Buffers that nobody has.
    free: Vec<u32>,
    /// Quick sends that were whole, to be reported with the next completions.
    whole: Vec<(ConnectionId, u32)>,
    /// Completions that [`Blocking::enter`] must not sleep on.
    urgent: Vec<Completion>,
    counters: &'a Counters,
}

impl<'a> EpollRing<'a> {
    fn new(
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

    /// The same before its first operation, which makes it known.
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
        // A receive stops at the mark of urgent data, whatever is behind it (tcp(7)).
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
                // An edge for input says as well that there is room, where there is none.
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

    /// Whether there is something to do without an edge.
    fn is_busy(&self) -> bool {
        !self.urgent.is_empty() || !self.readable.is_empty() || self.is_asked_to_accept()
    }

    /// Appends what has completed, and completes what can be without waiting.
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

    /// Reads every socket once that may have input, as far as there are buffers.
    #[inline]
    fn read(&mut self, completions: &mut Vec<Completion>) {
        for _ in 0..self.readable.len() {
            // Those that are left over come first the next time.
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
            let octets = self.config.bytes as usize;
            let start = buffer as usize * octets;
            let room = &mut self.memory.bytes()[start + HEADROOM..start + octets];
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

    /// Accepts connections that wait, on each listener so many that the open ones are not kept waiting.
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
        // The connections still wait, though no edge will say so again.
        if let Some(listener) = &mut self.listeners[number] {
            listener.is_accepting = false;
        }
        Some((result, Further::Over))
    }

    /// Watches a socket. Edges that come before its first receive are kept for it.
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
            // The first request is often there with the connection; reading finds out.
            is_readable: true,
            has_ended: false,
            is_queued: false,
            waiting: None,
        });
        Ok(Socket(place))
    }

    fn remove(&mut self, socket: &Socket) {
        // Closing takes it from epoll's list too.
        self.counters.syscalls.add(1);
        self.entries[socket.0 as usize] = None;
        self.vacant.push(socket.0);
    }
}

/// Puts a socket among those to be read, once.
#[inline]
fn queue(readable: &mut VecDeque<i32>, entry: &mut Entry, place: i32) {
    if entry.is_receiving && !entry.is_queued {
        entry.is_queued = true;
        readable.push_back(place);
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
            // The pump waits for the end of a patient send, and for nothing else maybe.
            ((Sent::Whole, octets), Patience::None) => self.whole.push((id, octets)),
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
        // It fails if the peer has reset the connection, which the receive reports.
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
        let octets = self.config.bytes as usize;
        &mut self.memory.bytes()[lease.buffer() as usize * octets..][..octets]
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
            // Whoever always has something to be read must not keep the others from being seen.
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

    use super::super::wait::WaitStrategy;
    use super::*;

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
