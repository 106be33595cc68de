//! A runtime's ring: it hands the pump's operations to the tasks, and the tasks' events to the pump.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::{IpAddr, Shutdown};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use tokio_uring::buf::fixed::FixedBuf;

use super::buffers::{Buffer, Outgoing};
use super::connection::{Receiving, TaskConnection};
use super::listener::{Accepting, Listener, watch};
use super::shared::{Event, Shared};
use crate::engine::ring::{
    Completion, Fill, Further, Lease, Patience, Received, Reply, Ring, Socket,
};
use crate::engine::wait::{monotonic, monotonic_coarse};
use crate::engine::{EngineError, WorkerConfig};
use crate::offload::record::Record;
use crate::slab::ConnectionId;

/// A runtime's ring, in the hands of the pump.
pub(super) struct TokioRing {
    pub(super) shared: Rc<Shared>,
    /// The memory of the leases, by their numbers.
    pub(super) lent: Vec<Option<Buffer>>,
    /// Numbers that no lease has at the moment.
    pub(super) vacant: Vec<u32>,
    /// The descriptor of the connection in each of the pump's slots.
    pub(super) sockets: Vec<i32>,
    pub(super) listeners: Vec<Rc<Listener>>,
    pub(super) stop: Option<AsyncFd<Arc<OwnedFd>>>,
    /// Through what the worker is asked what is open.
    pub(super) questions: Option<AsyncFd<Arc<OwnedFd>>>,
}

impl TokioRing {
    /// A ring in the runtime that this is called in.
    pub(super) fn new(
        worker: &'static WorkerConfig,
        sockets: Vec<OwnedFd>,
        ready: Vec<FixedBuf>,
    ) -> Result<TokioRing, EngineError> {
        let shared = Rc::new(Shared {
            events: RefCell::default(),
            waker: Cell::default(),
            ready: RefCell::new(ready),
            connections: RefCell::default(),
            unseen: RefCell::default(),
            counters: &worker.counters,
        });
        let mut listeners = Vec::new();
        for (fd, number) in sockets.into_iter().zip(0..) {
            rustix::io::ioctl_fionbio(&fd, true)
                .map_err(|error| EngineError::new("prepare a listener", error))?;
            let (accepting, waker) = (Cell::new(Accepting::Off), RefCell::default());
            let fd = Rc::new(watch(fd)?);
            let own = Cell::new(Some(fd.clone()));
            let listener = Rc::new(Listener { number, accepting, fd: own, waker });
            tokio_uring::spawn(listener.clone().run(fd, shared.clone()));
            listeners.push(listener);
        }
        let questions = worker.mailbox.as_ref().map(|mailbox| watch(mailbox.questions().clone()));
        Ok(TokioRing {
            shared,
            lent: Vec::new(),
            vacant: Vec::new(),
            sockets: Vec::new(),
            listeners,
            stop: Some(watch(worker.stop.clone())?),
            questions: questions.transpose()?,
        })
    }

    /// Appends the completions of all events that the tasks have reported.
    pub(super) fn collect(&mut self, completions: &mut Vec<Completion>) {
        let shared = self.shared.clone();
        for event in shared.events.borrow_mut().drain(..) {
            completions.push(match event {
                Event::Received { id, buffer, result, further } => {
                    Completion::Received { id, received: self.received(buffer, result), further }
                }
                Event::Sent { id, outgoing, result } => self.sent(id, outgoing, result),
                Event::Plain(completion) => completion,
            });
        }
    }

    pub(super) fn received(&mut self, buffer: Buffer, result: Result<u32, Errno>) -> Received {
        match result {
            Ok(bytes @ 1..) => Received::Data { lease: self.lend(buffer, bytes), bytes },
            Ok(0) => {
                self.shared.give_back(buffer);
                Received::End
            }
            Err(errno) => {
                self.shared.give_back(buffer);
                Received::Failed(errno)
            }
        }
    }

    /// The completion of a write.
    pub(super) fn sent(
        &mut self,
        id: ConnectionId,
        outgoing: Outgoing,
        result: Result<u32, Errno>,
    ) -> Completion {
        let reply = match outgoing {
            Outgoing::Buffer { pinned, buffer } => {
                self.lent[pinned.lease().buffer() as usize] = Some(buffer);
                Reply::Pinned(pinned)
            }
            Outgoing::Heap(bytes) => Reply::Heap(bytes),
        };
        let (sent, bytes) = reply.ended(result, |lease| self.recycle(lease));
        Completion::Sent { id, sent, bytes }
    }

    pub(super) fn lend(&mut self, mut buffer: Buffer, received: u32) -> Lease {
        let is_full = buffer.bytes().len() == received as usize;
        let number = self.vacant.pop().unwrap_or_else(|| {
            self.lent.push(None);
            self.lent.len() as u32 - 1
        });
        self.lent[number as usize] = Some(buffer);
        Lease::new(number, 0..received, if is_full { Fill::Full } else { Fill::Partial })
    }

    /// The memory of a lease, while it is being sent.
    pub(super) fn take(&mut self, lease: &Lease) -> Buffer {
        self.lent[lease.buffer() as usize].take().expect("a lease stands for a buffer")
    }

    pub(super) fn connection(&self, id: ConnectionId) -> Rc<TaskConnection> {
        self.shared.connection(self.sockets[id.slot as usize])
    }

    fn start_receive(&mut self, id: ConnectionId, socket: &Socket, is_single: bool) {
        let connection = self.shared.connection(socket.0);
        connection.is_single.set(is_single);
        connection.receiving.set(Receiving::Wanted);
        if connection.has_task.replace(true) {
            connection.wake();
        } else {
            let slots = self.sockets.len().max(id.slot as usize + 1);
            self.sockets.resize(slots, -1);
            self.sockets[id.slot as usize] = socket.0;
            tokio_uring::spawn(connection.run(id, self.shared.clone()));
        }
    }

    /// Lets no further read follow. Returns whether one is in flight.
    pub(super) fn end_receive(&mut self, id: ConnectionId, connection: &TaskConnection) -> bool {
        match connection.receiving.get() {
            Receiving::On | Receiving::Last => {
                connection.receiving.set(Receiving::Last);
                true
            }
            Receiving::Wanted | Receiving::Unseen => {
                connection.receiving.set(Receiving::Off);
                let received = Received::Failed(Errno::CANCELED);
                let further = Further::Over;
                self.shared.tell(Event::Plain(Completion::Received { id, received, further }));
                false
            }
            Receiving::Off => false,
        }
    }
}

impl Ring for TokioRing {
    type Place = Infallible;

    fn now(&self) -> Duration {
        monotonic()
    }

    fn recently(&self) -> Duration {
        monotonic_coarse()
    }

    fn peer_address(&self, socket: &Socket) -> Option<IpAddr> {
        self.shared.connection(socket.0).address
    }

    fn listeners(&self) -> u32 {
        self.listeners.len() as u32
    }

    fn accept(&mut self, listener: u32) {
        self.listeners[listener as usize].turn(Accepting::On);
    }

    fn cancel_accept(&mut self, listener: u32) {
        let listener = &self.listeners[listener as usize];
        // Otherwise its last completion is already reported.
        if listener.accepting.get() == Accepting::On {
            listener.tell(Err(Errno::CANCELED), Further::Over, &self.shared);
        }
    }

    fn close_listener(&mut self, listener: u32, waiting: &mut VecDeque<Socket>) {
        self.listeners[listener as usize].close(&self.shared, waiting);
    }

    fn watch_stop(&mut self) {
        let stop = self.stop.take().expect("the stop is watched once");
        let shared = self.shared.clone();
        tokio_uring::spawn(async move {
            stop.readable().await.expect("the reactor outlives its tasks").retain_ready();
            shared.tell(Event::Plain(Completion::StopRequested));
        });
    }

    fn watch_questions(&mut self) {
        let Some(questions) = self.questions.take() else { return };
        let shared = self.shared.clone();
        tokio_uring::spawn(async move {
            loop {
                questions.readable().await.expect("the reactor outlives its tasks").clear_ready();
                shared.tell(Event::Plain(Completion::Asked));
            }
        });
    }

    fn receive(&mut self, id: ConnectionId, socket: &Socket) {
        self.start_receive(id, socket, false);
    }

    /// A buffer is smaller than a piece.
    fn receive_piece(&mut self, id: ConnectionId, socket: &Socket, _bytes: usize) {
        self.start_receive(id, socket, true);
    }

    fn pause_receive(&mut self, id: ConnectionId) {
        let connection = self.connection(id);
        self.end_receive(id, &connection);
    }

    fn cancel_receive(&mut self, id: ConnectionId) {
        let connection = self.connection(id);
        if self.end_receive(id, &connection) {
            connection.end_operations(self.shared.counters);
        }
    }

    fn send(&mut self, _: ConnectionId, socket: &Socket, reply: Reply, _: Patience) -> Patience {
        let outgoing = match reply {
            Reply::Pinned(pinned) => {
                let buffer = self.take(pinned.lease());
                Outgoing::Buffer { pinned, buffer }
            }
            Reply::Heap(bytes) => Outgoing::Heap(bytes),
        };
        let connection = self.shared.connection(socket.0);
        connection.outgoing.set(Some(outgoing));
        connection.wake();
        Patience::Unlimited
    }

    fn cancel_send(&mut self, id: ConnectionId) {
        let connection = self.connection(id);
        match connection.outgoing.take() {
            Some(outgoing) => self.shared.tell(Event::Sent { id, outgoing, result: Ok(0) }),
            None => connection.end_operations(self.shared.counters),
        }
    }

    fn shut_down(&mut self, socket: &Socket) {
        self.shared.counters.syscalls.add(1);
        // It fails if the peer has reset the connection; the receive reports that.
        let _ = self.shared.connection(socket.0).stream.shutdown(Shutdown::Write);
    }

    fn close(&mut self, _: ConnectionId, socket: Socket) {
        let connection =
            self.shared.connections.borrow_mut()[socket.0 as usize].take().expect("an open socket");
        connection.is_closing.set(true);
        connection.wake();
    }

    fn discard(&mut self, socket: Socket) {
        self.shared.counters.syscalls.add(1);
        drop(self.shared.connections.borrow_mut()[socket.0 as usize].take());
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

    fn bytes<'a>(&'a mut self, lease: &'a mut Lease) -> &'a mut [u8] {
        let buffer = self.lent[lease.buffer() as usize].as_mut();
        &mut buffer.expect("a lease stands for a buffer").bytes()[lease.range()]
    }

    fn recycle(&mut self, lease: Lease) {
        let buffer = self.take(&lease);
        self.vacant.push(lease.buffer());
        self.shared.give_back(buffer);
    }

    /// There is always one: see [`Buffer::Heap`].
    fn buffers_ready(&self) -> usize {
        usize::MAX
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
        let (listener, address) = listener_for_test("tokio-uring");
        let _clients = [(); 3].map(|()| UnixStream::connect_addr(&address).expect("a queue"));
        let serve = || {
            let worker = Box::leak(Box::new(WorkerConfig::for_test(WaitStrategy::Block)));
            tokio_uring::start(async {
                // With the calls that a worker has left.
                sandbox::enter(&Needs::default().calling(CALLS));
                let ring = TokioRing::new(worker, vec![listener.into()], Vec::new());
                let mut ring = ring.expect("a runtime");
                let mut waiting = VecDeque::new();
                ring.close_listener(0, &mut waiting);
                assert_eq!(waiting.len(), 3);
                waiting.into_iter().for_each(|socket| ring.discard(socket));
            });
        };
        thread::scope(|scope| scope.spawn(serve).join().expect("a worker"));
        // The listener's task has closed its share.
        UnixStream::connect_addr(&address).expect_err("it is closed");
    }
}
