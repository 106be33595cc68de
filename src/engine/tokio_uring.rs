//! io_uring by way of the crates tokio-uring and tokio, as a [`Ring`]: how a server is usually
//! written on io_uring in Rust, under the same pump, so that what it costs can be compared.
//!
//! A worker has one runtime, whose tasks all run on its thread: one for each connection, one for
//! each listener, one that waits for the stop, and the pump's. They share the [`Hub`]. A
//! connection's task has one read and one write in flight at most, and puts how they ended into the
//! hub; the pump's task looks at all that is there at once. The pump knows nothing of tasks, and the
//! tasks know nothing of frames.
//!
//! **One read at a time.** tokio-uring has no multishot operations. A connection's next read follows
//! when the pump has looked at the octets of the last one, and is submitted together with the reply
//! to them, behind it. So octets that wait for the pump, or for a peer that does not read, never
//! take more than one buffer of a connection.
//!
//! **What a message costs.** In a ping-pong there are three rounds of `io_uring_enter` and
//! `epoll_wait`, six system calls (counted by `perf trace` and by [`count_calls`] alike):
//!
//! - tokio-uring submits when tokio is about to sleep in its own `epoll_wait` on the ring's
//!   descriptor. The first round submits reply and read; the completion of the reply is there at
//!   once, makes the ring readable and ends the sleep.
//! - In the second, the octets of the next message come as work for the sleeping thread, which ends
//!   `epoll_wait` with `EINTR`; only on the way out does the kernel read them.
//! - In the third, the ring is readable.
//!
//! Where the next message comes before the thread sleeps, rounds coincide: 64 clients that wait for
//! each other cost 0.2 calls a message. What would save the rounds is out of reach: tokio-uring
//! cannot leave out the completion of a write, and without `IORING_ENTER_GETEVENTS`, which it passes
//! only to a full ring, one with `IORING_SETUP_DEFER_TASKRUN` completes no read at all. Of the flags that
//! work, `COOP_TASKRUN` saves interruptions (at 100 connections 6 to 7 µs of processor time a
//! message instead of 8); `TASKRUN_FLAG` would mark what tokio-uring does not read. Spinning is no
//! use, as nothing is submitted while the runtime is awake, so a worker sleeps whatever
//! [`WorkerConfig::wait`] says.
//!
//! **Why the pump is a task.** As the future of `block_on` it would be polled before the runtime's
//! tasks, and each of its wake-ups would be another `epoll_wait`. Tasks borrow only what is
//! `'static`, hence the leak in [`PreparedRuntime::serve`].
//!
//! **Buffers.** Registered buffers count against the limit on locked memory, with the pages that
//! they begin and end in, and tokio-uring registers at most [`FIXED_MAX`]. A read holds its buffer
//! while it waits, as does a write. A receive that finds none takes memory from the heap, and is
//! counted as `buffers_exhausted`: so neither idle connections nor peers that do not read can starve
//! others, who then receive [`HEAP_OCTETS`] at a time. Octets are never moved for that. An idle
//! connection takes 4 KB: its task, and the memory of its read where that is not registered.
//!
//! **Ends.** tokio-uring cannot cancel an operation. A pause lets the read in flight be the last. On
//! a connection that is over, the socket is shut down both ways, which ends what is in flight. A
//! runtime is dropped when the pump is over, and by then no operation is in flight; if it were,
//! tokio-uring would wait for it, as it owns the memory of its operations. So there is nothing to be
//! leaked when a worker fails. Where the kernel has no memory for a submission, tokio-uring panics.
//!
//! Listeners and the stop are watched by tokio's reactor, and connections are accepted by a call
//! each: an accept could not be cancelled either. Every descriptor that is accepted is used by reads
//! and writes alone, whatever kind of stream socket it is.
//!
//! Invariants that the unsafe block relies on:
//!
//! 1. [`AsyncFd`] owns the descriptor, or a share of it, that it watches. Nobody else closes or
//!    replaces it before the `AsyncFd` is dropped.

#![expect(unsafe_code, reason = "the reactor watches descriptors; see the invariant above")]

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::net::{Shutdown, TcpStream as StdStream};
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use rustix::io::Errno;
use rustix::net::SocketFlags;
use tokio::io::unix::AsyncFd;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_uring::Runtime;
use tokio_uring::buf::BoundedBuf;
use tokio_uring::buf::fixed::{FixedBuf, FixedBufRegistry};
use tokio_uring::net::TcpStream;
use tracing::warn;

use super::pump::Pump;
use super::reply::Pinned;
use super::ring::{
    ADMISSIONS_MAX, Completion, Further, Lease, Patience, Received, Reply, Ring, Socket, Wait,
};
use super::{BufferConfig, EngineError, WorkerConfig};
use crate::buffer::HEADROOM;
use crate::metrics::Counters;
use crate::offload::record::Record;
use crate::slab::ConnectionId;

/// Entries of the submission queue. When it is full, it is submitted.
const SUBMISSIONS: u32 = 1024;
/// Entries of the completion queue. When it is full, the kernel keeps what is over.
const COMPLETIONS: u32 = 4096;
/// The most buffers that tokio-uring registers (`UIO_MAXIOV`); it drops further ones silently.
pub const FIXED_MAX: u16 = 1024;
/// Octets that a receive takes when no registered buffer is free.
const HEAP_OCTETS: usize = 1 << 10;

/// The runtime of one worker, with the registered memory.
pub struct PreparedRuntime {
    runtime: Runtime,
    buffers: FixedBufRegistry<Vec<u8>>,
    count: u16,
}

impl PreparedRuntime {
    /// Sets the runtime up and registers its memory, which locks it.
    ///
    /// # Errors
    ///
    /// When the kernel refuses that.
    pub fn new(worker: &WorkerConfig) -> Result<PreparedRuntime, EngineError> {
        let mut flags = tokio_uring::uring_builder();
        flags.setup_cqsize(COMPLETIONS);
        flags.setup_submit_all().setup_coop_taskrun().setup_single_issuer();
        let mut builder = tokio_uring::builder();
        builder.entries(SUBMISSIONS).uring_builder(&flags);
        let runtime = Runtime::new(&builder)
            .map_err(|error| EngineError::io_uring("set up io_uring", error))?;
        let BufferConfig { count, bytes } = worker.buffers;
        if count > FIXED_MAX {
            warn!("tokio-uring registers only {FIXED_MAX} of {count} buffers");
        }
        let count = count.min(FIXED_MAX);
        let buffers = FixedBufRegistry::new((0..count).map(|_| vec![0; bytes as usize]));
        runtime.block_on(async { buffers.register() }).map_err(|error| {
            EngineError::new("register the memory for messages", error).with_remedy(
                "raise the limit on locked memory (ulimit -l), or lower --buffers or --buffer-size",
            )
        })?;
        Ok(PreparedRuntime { runtime, buffers, count })
    }

    /// Serves connections until the worker is told to stop. Calls `started` once they are accepted.
    ///
    /// # Errors
    ///
    /// When a descriptor cannot be watched.
    pub fn serve(
        self,
        worker: WorkerConfig,
        listeners: Vec<OwnedFd>,
        started: impl FnOnce(),
    ) -> Result<(), EngineError> {
        // A runtime's tasks may borrow only what is never freed: see "Why the pump is a task".
        let worker: &'static WorkerConfig = Box::leak(Box::new(worker));
        let PreparedRuntime { runtime, buffers, count } = self;
        runtime.block_on(async {
            let ready = (0..count.into()).filter_map(|index| buffers.check_out(index)).collect();
            let ring = TokioRing::new(worker, listeners, ready)?;
            let pump = Pump::new(ring, worker.context(), &worker.limit);
            started();
            let serving = tokio_uring::spawn(work(pump));
            count_calls(&worker.counters, serving).await;
            Ok(())
        })
    }
}

/// Waits for `serving` and counts the system calls of the runtime meanwhile: see the file's header.
async fn count_calls(counters: &Counters, serving: JoinHandle<()>) {
    let metrics = Handle::current().metrics();
    let mut parks = None;
    let mut serving = pin!(serving);
    let ended = poll_fn(|cx| {
        let now = metrics.worker_park_count(0);
        counters.syscalls.add(match parks.replace(now) {
            None => 0,
            Some(before) if before == now => 1,
            Some(before) => 2 * (now - before),
        });
        serving.as_mut().poll(cx)
    });
    if let Err(error) = ended.await {
        std::panic::resume_unwind(error.into_panic());
    }
}

/// Lets the pump work until it is over.
async fn work(mut pump: Pump<'static, TokioRing>) {
    let hub = pump.ring().hub.clone();
    let mut completions = Vec::new();
    let mut alarm = pin!(tokio::time::sleep(Duration::ZERO));
    let mut alarmed = None;
    pump.start();
    while !pump.is_over() {
        let until = match pump.wanted() {
            // A time that has come makes the runtime park, and so submit.
            Wait::Not => Some(pump.ring().now()),
            Wait::Until(until) => until,
        };
        if until.is_some() && until != alarmed {
            alarm.as_mut().reset((hub.epoch + until.unwrap_or_default()).into());
            alarmed = until;
        }
        poll_fn(|cx| {
            let is_due = until.is_some() && alarm.as_mut().poll(cx).is_ready();
            if is_due { Poll::Ready(()) } else { hub.poll_events(cx) }
        })
        .await;
        pump.ring().collect(&mut completions);
        pump.take(&mut completions);
        hub.go_on();
    }
}

/// Memory for octets that are received, and for the reply that they become.
#[derive(Debug)]
enum Buffer {
    /// Registered with the kernel.
    Fixed(FixedBuf),
    /// Taken when there was none of those.
    Heap(Vec<u8>),
}

impl Buffer {
    fn bytes(&mut self) -> &mut [u8] {
        match self {
            Buffer::Fixed(buffer) => buffer,
            Buffer::Heap(buffer) => buffer,
        }
    }

    /// Receives into the buffer, behind the headroom.
    async fn receive(self, stream: &TcpStream) -> (io::Result<usize>, Buffer) {
        match self {
            Buffer::Fixed(buffer) => {
                let (result, buffer) = stream.read_fixed(buffer.slice(HEADROOM..)).await;
                (result, Buffer::Fixed(buffer.into_inner()))
            }
            Buffer::Heap(buffer) => {
                let end = buffer.len();
                let (result, buffer) = stream.read(buffer.slice(HEADROOM..end)).await;
                (result, Buffer::Heap(buffer.into_inner()))
            }
        }
    }

    async fn send(self, stream: &TcpStream, octets: Range<usize>) -> (io::Result<usize>, Buffer) {
        match self {
            Buffer::Fixed(buffer) => {
                let (result, buffer) = stream.write_fixed(buffer.slice(octets)).await;
                (result, Buffer::Fixed(buffer.into_inner()))
            }
            Buffer::Heap(buffer) => {
                let (result, buffer) = stream.write(buffer.slice(octets)).submit().await;
                (result, Buffer::Heap(buffer.into_inner()))
            }
        }
    }
}

/// A [`Reply`] with the memory that its lease stands for.
#[derive(Debug)]
enum Outgoing {
    Buffer { pinned: Pinned, buffer: Buffer },
    Heap(BytesMut),
}

impl Outgoing {
    async fn send(self, stream: &TcpStream) -> (io::Result<usize>, Outgoing) {
        match self {
            Outgoing::Buffer { pinned, buffer } => {
                let (result, buffer) = buffer.send(stream, pinned.range()).await;
                (result, Outgoing::Buffer { pinned, buffer })
            }
            Outgoing::Heap(bytes) => {
                let (result, bytes) = stream.write(bytes).submit().await;
                (result, Outgoing::Heap(bytes))
            }
        }
    }
}

/// What the tasks tell the pump.
#[derive(Debug)]
enum Event {
    /// A read ended.
    Received { id: ConnectionId, buffer: Buffer, result: Result<u32, Errno>, further: Further },
    /// A write ended.
    Sent { id: ConnectionId, outgoing: Outgoing, result: Result<u32, Errno> },
    /// What needs no memory.
    Plain(Completion),
}

/// What an operation of tokio-uring answered.
fn outcome(result: io::Result<usize>) -> Result<u32, Errno> {
    match result {
        Ok(octets) => Ok(octets as u32),
        Err(error) => Err(Errno::from_io_error(&error).unwrap_or(Errno::IO)),
    }
}

/// What the pump's ring and the tasks share, all on one thread.
struct Hub {
    epoch: Instant,
    /// What the pump has not looked at.
    events: RefCell<Vec<Event>>,
    /// The pump's, while it waits for them.
    waker: Cell<Option<Waker>>,
    /// Registered buffers that nobody uses.
    ready: RefCell<Vec<FixedBuf>>,
    /// Connections by their descriptor.
    lines: RefCell<Vec<Option<Rc<Line>>>>,
    /// Connections with octets that the pump has not looked at.
    unseen: RefCell<Vec<Rc<Line>>>,
    counters: &'static Counters,
}

impl Hub {
    fn tell(&self, event: Event) {
        self.events.borrow_mut().push(event);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn poll_events(&self, cx: &TaskContext<'_>) -> Poll<()> {
        if self.events.borrow().is_empty() {
            self.waker.set(Some(cx.waker().clone()));
            Poll::Pending
        } else {
            Poll::Ready(())
        }
    }

    /// Lets the connections receive again whose octets the pump has looked at.
    fn go_on(&self) {
        for line in self.unseen.borrow_mut().drain(..) {
            if line.receiving.get() == Receiving::Unseen {
                line.receiving.set(Receiving::Wanted);
                line.wake();
            }
        }
    }

    fn take_buffer(&self) -> Buffer {
        match self.ready.borrow_mut().pop() {
            Some(buffer) => Buffer::Fixed(buffer),
            None => {
                self.counters.buffers_exhausted.add(1);
                Buffer::Heap(vec![0; HEADROOM + HEAP_OCTETS])
            }
        }
    }

    fn give_back(&self, buffer: Buffer) {
        match buffer {
            Buffer::Fixed(buffer) => self.ready.borrow_mut().push(buffer),
            Buffer::Heap(_) => {}
        }
    }

    fn admit(&self, socket: OwnedFd) -> Socket {
        let stream = TcpStream::from_std(StdStream::from(socket));
        let number = stream.as_raw_fd();
        let mut lines = self.lines.borrow_mut();
        let length = lines.len().max(number as usize + 1);
        lines.resize(length, None);
        lines[number as usize] = Some(Rc::new(Line::new(stream)));
        Socket(number)
    }

    fn line(&self, number: i32) -> Rc<Line> {
        self.lines.borrow()[number as usize].clone().expect("an open socket")
    }
}

/// Where the receive of a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Receiving {
    /// There is none, or its last completion is told.
    Off,
    /// A read is to be submitted.
    Wanted,
    /// A read is in flight.
    On,
    /// A read is in flight, and no other follows it.
    Last,
    /// A read ended, the next one follows when the pump has looked at it.
    Unseen,
}

/// A connection, between the ring and the connection's task.
struct Line {
    stream: TcpStream,
    receiving: Cell<Receiving>,
    /// What is to be sent and not yet submitted.
    outgoing: Cell<Option<Outgoing>>,
    has_task: Cell<bool>,
    is_closing: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Line {
    fn new(stream: TcpStream) -> Line {
        Line {
            stream,
            receiving: Cell::new(Receiving::Off),
            outgoing: Cell::new(None),
            has_task: Cell::new(false),
            is_closing: Cell::new(false),
            waker: RefCell::new(None),
        }
    }

    fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }

    /// Ends the operations in flight, by the only way that tokio-uring leaves.
    fn end_operations(&self, counters: &Counters) {
        counters.syscalls.add(1);
        // It fails if the peer has reset the connection, which ends them as well.
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    /// The task of a connection, from its first receive to its close.
    async fn run(self: Rc<Line>, id: ConnectionId, hub: Rc<Hub>) {
        {
            let mut sending = pin!(self.send_replies(id, &hub));
            let mut receiving = pin!(self.receive(id, &hub));
            let (mut has_sent, mut has_received) = (false, false);
            poll_fn(|cx| {
                self.waker.borrow_mut().get_or_insert_with(|| cx.waker().clone());
                // The reply is submitted in front of the next read, which would only hold it up.
                has_sent = has_sent || sending.as_mut().poll(cx).is_ready();
                has_received = has_received || receiving.as_mut().poll(cx).is_ready();
                if has_sent && has_received { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
        }
        debug_assert_eq!(Rc::strong_count(&self), 1, "the socket is closed here");
        hub.counters.syscalls.add(1);
        drop(self);
        hub.tell(Event::Plain(Completion::Closed { id }));
    }

    async fn send_replies(&self, id: ConnectionId, hub: &Hub) {
        let next = || {
            poll_fn(|_| match self.outgoing.take() {
                None if !self.is_closing.get() => Poll::Pending,
                next => Poll::Ready(next),
            })
        };
        while let Some(outgoing) = next().await {
            let (result, outgoing) = outgoing.send(&self.stream).await;
            hub.tell(Event::Sent { id, outgoing, result: outcome(result) });
        }
    }

    async fn receive(self: &Rc<Line>, id: ConnectionId, hub: &Hub) {
        let is_wanted = || {
            poll_fn(|_| match self.receiving.get() {
                Receiving::Wanted => Poll::Ready(true),
                Receiving::Off if self.is_closing.get() => Poll::Ready(false),
                Receiving::Off | Receiving::On | Receiving::Last | Receiving::Unseen => {
                    Poll::Pending
                }
            })
        };
        while is_wanted().await {
            self.receiving.set(Receiving::On);
            let (result, buffer) = hub.take_buffer().receive(&self.stream).await;
            let result = outcome(result);
            let goes_on = self.receiving.get() == Receiving::On && matches!(result, Ok(1..));
            let further = if goes_on {
                self.receiving.set(Receiving::Unseen);
                hub.unseen.borrow_mut().push(self.clone());
                Further::More
            } else {
                self.receiving.set(Receiving::Off);
                Further::Over
            };
            hub.tell(Event::Received { id, buffer, result, further });
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Accepting {
    Off,
    On,
    Closed,
}

/// A listener, between the ring and the listener's task.
struct Listener {
    number: u32,
    accepting: Cell<Accepting>,
    waker: RefCell<Option<Waker>>,
}

impl Listener {
    fn turn(&self, accepting: Accepting) {
        self.accepting.set(accepting);
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }

    /// The task of a listener, to its close.
    async fn run(self: Rc<Listener>, fd: AsyncFd<OwnedFd>, hub: Rc<Hub>) {
        loop {
            let readable = poll_fn(|cx| {
                self.waker.borrow_mut().get_or_insert_with(|| cx.waker().clone());
                match self.accepting.get() {
                    Accepting::Off => Poll::Pending,
                    Accepting::On => fd.poll_read_ready(cx).map(Some),
                    Accepting::Closed => Poll::Ready(None),
                }
            });
            let Some(readable) = readable.await else { break };
            let mut guard = readable.expect("the reactor outlives its tasks");
            for _ in 0..ADMISSIONS_MAX {
                if self.accepting.get() != Accepting::On {
                    break;
                }
                hub.counters.syscalls.add(1);
                let result = rustix::net::accept_with(fd.get_ref(), SocketFlags::CLOEXEC);
                if result.as_ref().err() == Some(&Errno::AGAIN) {
                    guard.clear_ready();
                    break;
                }
                let further = if result.is_ok() { Further::More } else { Further::Over };
                self.tell(result.map(|socket| hub.admit(socket)), further, &hub);
            }
            // The pump and the connections that are open have their turn before more are accepted.
            tokio::task::yield_now().await;
        }
        // The reactor forgets it and it is closed.
        hub.counters.syscalls.add(2);
    }

    fn tell(&self, result: Result<Socket, Errno>, further: Further, hub: &Hub) {
        if further == Further::Over {
            self.accepting.set(Accepting::Off);
        }
        hub.tell(Event::Plain(Completion::Accepted { listener: self.number, result, further }));
    }
}

/// Lets tokio's reactor watch a descriptor.
fn watch<T: AsRawFd>(fd: T) -> Result<AsyncFd<T>, EngineError> {
    // SAFETY: invariant 1.
    unsafe { AsyncFd::register(fd) }.map_err(|error| EngineError::new("watch a descriptor", error))
}

/// A runtime's ring, in the hands of the pump.
struct TokioRing {
    hub: Rc<Hub>,
    /// The memory of leases, by their number.
    lent: Vec<Option<Buffer>>,
    /// Numbers that no lease has.
    vacant: Vec<u32>,
    /// The descriptor of the connection in each of the pump's slots.
    sockets: Vec<i32>,
    listeners: Vec<Rc<Listener>>,
    stop: Option<AsyncFd<Arc<OwnedFd>>>,
}

impl TokioRing {
    /// A ring in the runtime that this is called in.
    fn new(
        worker: &'static WorkerConfig,
        sockets: Vec<OwnedFd>,
        ready: Vec<FixedBuf>,
    ) -> Result<TokioRing, EngineError> {
        let hub = Rc::new(Hub {
            epoch: Instant::now(),
            events: RefCell::default(),
            waker: Cell::default(),
            ready: RefCell::new(ready),
            lines: RefCell::default(),
            unseen: RefCell::default(),
            counters: &worker.counters,
        });
        let mut listeners = Vec::new();
        for (fd, number) in sockets.into_iter().zip(0..) {
            rustix::io::ioctl_fionbio(&fd, true)
                .map_err(|error| EngineError::new("prepare a listener", error))?;
            let (accepting, waker) = (Cell::new(Accepting::Off), RefCell::default());
            let listener = Rc::new(Listener { number, accepting, waker });
            tokio_uring::spawn(listener.clone().run(watch(fd)?, hub.clone()));
            listeners.push(listener);
        }
        Ok(TokioRing {
            hub,
            lent: Vec::new(),
            vacant: Vec::new(),
            sockets: Vec::new(),
            listeners,
            stop: Some(watch(worker.stop.clone())?),
        })
    }

    /// Appends what the tasks have told.
    fn collect(&mut self, completions: &mut Vec<Completion>) {
        let hub = self.hub.clone();
        for event in hub.events.borrow_mut().drain(..) {
            completions.push(match event {
                Event::Received { id, buffer, result, further } => {
                    Completion::Received { id, received: self.received(buffer, result), further }
                }
                Event::Sent { id, outgoing, result } => self.sent(id, outgoing, result),
                Event::Plain(completion) => completion,
            });
        }
    }

    fn received(&mut self, buffer: Buffer, result: Result<u32, Errno>) -> Received {
        match result {
            Ok(bytes @ 1..) => Received::Data { lease: self.lend(buffer, bytes), bytes },
            Ok(0) => {
                self.hub.give_back(buffer);
                Received::End
            }
            Err(errno) => {
                self.hub.give_back(buffer);
                Received::Failed(errno)
            }
        }
    }

    /// What the `result` of a write means.
    fn sent(
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

    fn lend(&mut self, buffer: Buffer, received: u32) -> Lease {
        let number = self.vacant.pop().unwrap_or_else(|| {
            self.lent.push(None);
            self.lent.len() as u32 - 1
        });
        self.lent[number as usize] = Some(buffer);
        Lease::new(number, received)
    }

    /// The memory of a lease, while it is being sent.
    fn take(&mut self, lease: &Lease) -> Buffer {
        self.lent[lease.buffer() as usize].take().expect("a lease stands for a buffer")
    }

    fn line(&self, id: ConnectionId) -> Rc<Line> {
        self.hub.line(self.sockets[id.slot as usize])
    }

    /// Lets no further read follow, and says whether one is in flight.
    fn end_receive(&mut self, id: ConnectionId, line: &Line) -> bool {
        match line.receiving.get() {
            Receiving::On | Receiving::Last => {
                line.receiving.set(Receiving::Last);
                true
            }
            Receiving::Wanted | Receiving::Unseen => {
                line.receiving.set(Receiving::Off);
                let received = Received::Failed(Errno::CANCELED);
                let further = Further::Over;
                self.hub.tell(Event::Plain(Completion::Received { id, received, further }));
                false
            }
            Receiving::Off => false,
        }
    }
}

impl Ring for TokioRing {
    type Place = Infallible;

    fn now(&self) -> Duration {
        self.hub.epoch.elapsed()
    }

    fn listeners(&self) -> u32 {
        self.listeners.len() as u32
    }

    fn accept(&mut self, listener: u32) {
        self.listeners[listener as usize].turn(Accepting::On);
    }

    fn cancel_accept(&mut self, listener: u32) {
        let listener = &self.listeners[listener as usize];
        // Else its last completion is already told.
        if listener.accepting.get() == Accepting::On {
            listener.tell(Err(Errno::CANCELED), Further::Over, &self.hub);
        }
    }

    fn close_listener(&mut self, listener: u32) {
        self.listeners[listener as usize].turn(Accepting::Closed);
    }

    fn watch_stop(&mut self) {
        let stop = self.stop.take().expect("the stop is watched once");
        let hub = self.hub.clone();
        tokio_uring::spawn(async move {
            stop.readable().await.expect("the reactor outlives its tasks").retain_ready();
            hub.tell(Event::Plain(Completion::StopRequested));
        });
    }

    fn receive(&mut self, id: ConnectionId, socket: &Socket) {
        let line = self.hub.line(socket.0);
        line.receiving.set(Receiving::Wanted);
        if line.has_task.replace(true) {
            line.wake();
        } else {
            let slots = self.sockets.len().max(id.slot as usize + 1);
            self.sockets.resize(slots, -1);
            self.sockets[id.slot as usize] = socket.0;
            tokio_uring::spawn(line.run(id, self.hub.clone()));
        }
    }

    fn pause_receive(&mut self, id: ConnectionId) {
        let line = self.line(id);
        self.end_receive(id, &line);
    }

    fn cancel_receive(&mut self, id: ConnectionId) {
        let line = self.line(id);
        if self.end_receive(id, &line) {
            line.end_operations(self.hub.counters);
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
        let line = self.hub.line(socket.0);
        line.outgoing.set(Some(outgoing));
        line.wake();
        Patience::Unlimited
    }

    fn cancel_send(&mut self, id: ConnectionId) {
        let line = self.line(id);
        match line.outgoing.take() {
            Some(outgoing) => self.hub.tell(Event::Sent { id, outgoing, result: Ok(0) }),
            None => line.end_operations(self.hub.counters),
        }
    }

    fn shut_down(&mut self, socket: &Socket) {
        self.hub.counters.syscalls.add(1);
        // It fails if the peer has reset the connection, which the receive reports.
        let _ = self.hub.line(socket.0).stream.shutdown(Shutdown::Write);
    }

    fn close(&mut self, _: ConnectionId, socket: Socket) {
        let line = self.hub.lines.borrow_mut()[socket.0 as usize].take().expect("an open socket");
        line.is_closing.set(true);
        line.wake();
    }

    fn discard(&mut self, socket: Socket) {
        self.hub.counters.syscalls.add(1);
        drop(self.hub.lines.borrow_mut()[socket.0 as usize].take());
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
        self.lent[lease.buffer() as usize].as_mut().expect("a lease stands for a buffer").bytes()
    }

    fn recycle(&mut self, lease: Lease) {
        let buffer = self.take(&lease);
        self.vacant.push(lease.buffer());
        self.hub.give_back(buffer);
    }

    /// There is always one: see [`Buffer::Heap`].
    fn buffers_ready(&self) -> usize {
        usize::MAX
    }
}
