//! The kernel's io_uring as a [`Ring`].
//!
//! In a ping-pong, one system call submits the reply and waits for the next message, and the
//! reply's own completion must not end that wait. So a send without patience carries
//! `IOSQE_CQE_SKIP_SUCCESS` and `MSG_DONTWAIT | MSG_WAITALL`: the kernel tries it when it is
//! submitted, and posts a completion only if it was cut short. Once the submitting call has returned
//! and the completion queue is drained, the sends without a completion are known to be whole.
//!
//! A multishot receive can miss a reset. If bytes and the reset that follows them have both arrived
//! before the kernel looks at the socket, the receive takes the bytes, finds nothing after them, and
//! waits for a wake-up that has already happened. Up to Linux 6.18.19 this happens whenever both
//! arrive before the worker looks; since then (commit a68ed2df7213, "io_uring/poll: fix multishot
//! recv missing EOF on wakeup race") only if both arrive while the receive is being armed. So bytes
//! that get no answer are followed by a send of 0 bytes, which fails if the connection is broken,
//! and otherwise posts no completion.
//!
//! Invariants that the unsafe blocks rely on:
//!
//! 1. A buffer is in one of three hands: see [`buffer_ring`].
//! 2. The memory of a reply is kept in `quick` or `patient` from the push of its send until the send
//!    is over: for a quick one, until it is submitted and the completion queue is drained; for a
//!    patient one, until its completion is seen.
//! 3. The mappings outlive the ring: [`PreparedRing`] drops them after it, and a worker ends only
//!    when all its operations have ended. If the ring breaks, all of it is leaked
//!    (`Pump::run` and [`PreparedRing::serve`]). A panic aborts the process (see `Cargo.toml`).
//! 4. A [`Socket`] is an open descriptor: only `close` and `discard` close one, and both take it away from
//!    the caller.

#![expect(unsafe_code, reason = "the kernel reads and writes memory; see the invariants above")]

mod abilities;
mod buffer_ring;
mod offloading;
mod queues;
mod setup;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::time::Duration;

use io_uring::squeue::{self, Flags};
use io_uring::types::Fd;
use io_uring::{cqueue, opcode};
use rustix::io::Errno;
use rustix::net::{SendFlags, Shutdown, SocketFlags, getpeername};

pub use self::abilities::{Ability, Feature, Purpose};
use self::buffer_ring::{BufferRing, GROUP};
use self::offloading::Offloading;
use self::queues::Queues;
pub use self::setup::PreparedRing;
use super::WorkerConfig;
use super::reply::breaks_connection;
use super::ring::{
    Blocking, Completion, Further, LAST_ADMISSIONS_MAX, Lease, Patience, Received, Reply, Ring,
    Socket, Wait, address_of,
};
use super::token::{Op, Token};
use super::wait::{Alarm, WaitStrategy, Waiter};
use crate::metrics::Counters;
use crate::offload;
use crate::offload::program::Program;
use crate::offload::record::Record;
use crate::sandbox::Call;
use crate::slab::ConnectionId;

/// `IORING_REGISTER_RING_FDS` (io_uring_register(2)): all else is registered before the ring is used.
const REGISTER_RING_FDS: u8 = 20;

/// What a worker calls once it is prepared. A filter of system calls does not see what the ring is asked for; that is
/// restricted when the ring is set up.
pub(super) const CALLS: &[Call] = &[
    Call::Any(libc::SYS_io_uring_enter),
    Call::With(libc::SYS_io_uring_register, 1, &[REGISTER_RING_FDS as u32]),
    Call::Any(libc::SYS_shutdown),
    Call::Any(libc::SYS_getpeername),
    // The last connections of a listener, which then must not block.
    Call::Any(libc::SYS_accept4),
    Call::With(libc::SYS_ioctl, 1, &[libc::FIONBIO as u32]),
];

/// The kernel's ring, in the hands of the worker's thread.
struct KernelRing<'a> {
    queues: Queues<'a>,
    waiter: Waiter<'a>,
    buffers: &'a mut BufferRing,
    /// See [`PreparedRing::receive_max`].
    receive_max: u32,
    listeners: Vec<Option<OwnedFd>>,
    stop: RawFd,
    questions: Option<RawFd>,
    /// Sends that post a completion only if they are cut short, in the order in which they were pushed.
    quick: Vec<(ConnectionId, Reply)>,
    /// Sends that always post a completion, by slot: a connection has one at a time.
    patient: HashMap<u32, Reply>,
    /// Scratch: what was drained from the completion queue.
    entries: Vec<cqueue::Entry>,
    /// Scratch: the results of the quick sends that were cut short.
    cut: Vec<(ConnectionId, Result<u32, Errno>)>,
    /// Why the ring no longer submits, until `enter` reports it.
    broken: Option<io::Error>,
    offload: Option<Offloading<'a>>,
    counters: &'a Counters,
}

/// Why a ring that has a place also has a program.
const OFFLOADED: &str = "only an offloaded connection has a place";

impl<'a> KernelRing<'a> {
    fn new(
        prepared: &'a mut PreparedRing,
        worker: &'a WorkerConfig,
        listeners: Vec<OwnedFd>,
    ) -> KernelRing<'a> {
        let counters = &*worker.counters;
        let clock = prepared.clock.take().unwrap_or_else(|| Waiter::clock(worker.wait));
        let (mut submitter, submissions, completions) = prepared.uring.split();
        // This only saves a look-up of the descriptor in each call, so a refusal does not matter.
        let _ = submitter.register_ring_fd();
        let is_sqpoll = matches!(worker.wait, WaitStrategy::Sqpoll);
        KernelRing {
            queues: Queues {
                submitter,
                submissions,
                completions,
                is_sqpoll,
                alarm: Alarm::default(),
                counters,
            },
            waiter: Waiter::new(worker.wait, worker.pace, clock, counters),
            buffers: &mut prepared.buffers,
            receive_max: prepared.receive_max,
            listeners: listeners.into_iter().map(Some).collect(),
            stop: worker.stop.as_raw_fd(),
            questions: worker.mailbox.as_ref().map(|it| it.questions().as_raw_fd()),
            quick: Vec::new(),
            patient: HashMap::new(),
            entries: Vec::new(),
            cut: Vec::new(),
            broken: None,
            offload: prepared.program.take().map(|program| Offloading::new(program, counters)),
            counters,
        }
    }

    /// Queues a submission.
    #[inline]
    fn push(&mut self, submission: squeue::Entry, token: Token) {
        let submission = submission.user_data(token.0);
        // SAFETY: invariants 1 and 2 cover what the operation reads or writes.
        while unsafe { self.queues.submissions.push(&submission) }.is_err() {
            self.queues.submissions.sync();
            if let Err(error) = self.queues.call(0, None) {
                self.broken = Some(error);
                return;
            }
        }
    }

    /// Drains the completion queue, including completions that the kernel kept back because it was full.
    #[inline]
    fn drain(&mut self) -> io::Result<()> {
        let queues = &mut self.queues;
        loop {
            queues.completions.sync();
            for entry in &mut queues.completions {
                self.entries.push(entry);
            }
            // Tells the kernel that they are taken; until then it does not wait for others.
            queues.completions.sync();
            // A quick send counts as whole unless its completion is seen here, so neither submissions
            // nor completions may be left behind.
            if !queues.submissions.cq_overflow()
                && (queues.submissions.is_empty() || self.quick.is_empty())
            {
                return Ok(());
            }
            queues.call(0, None)?;
        }
    }

    /// Reports the quick sends, all of which are over.
    #[inline]
    fn report_quick(&mut self, completions: &mut Vec<Completion>) {
        if !self.queues.is_sqpoll {
            for entry in &self.entries {
                let token = Token(entry.user_data());
                if token.op() == Op::Send && !self.patient.contains_key(&token.id().slot) {
                    self.cut.push((token.id(), result_of(entry.result())));
                }
            }
        }
        for (id, reply) in self.quick.drain(..) {
            let whole = Ok(reply.len() as u32);
            let result = if self.cut.is_empty() {
                whole
            } else {
                let cut = self.cut.iter().find(|&&(cut, _)| cut == id);
                cut.map_or(whole, |&(_, result)| result)
            };
            completions.push(sent(self.buffers, id, reply, result));
        }
        self.cut.clear();
    }

    #[inline]
    fn report(&mut self, entry: &cqueue::Entry) -> Option<Completion> {
        let token = Token(entry.user_data());
        let result = result_of(entry.result());
        let further = if cqueue::more(entry.flags()) { Further::More } else { Further::Over };
        match token.op() {
            Op::Receive => {
                let received = match (result, cqueue::buffer_select(entry.flags())) {
                    (Ok(bytes @ 1..), Some(id)) => {
                        Received::Data { lease: self.buffers.lease(id, bytes), bytes }
                    }
                    (_, lent) => {
                        // The end of the stream may come with an empty buffer.
                        if let Some(id) = lent {
                            let lease = self.buffers.lease(id, 0);
                            self.buffers.recycle(lease);
                        }
                        match result {
                            Ok(_) => Received::End,
                            Err(Errno::NOBUFS) => Received::NoBuffer,
                            Err(errno) => Received::Failed(errno),
                        }
                    }
                };
                Some(Completion::Received { id: token.id(), received, further })
            }
            Op::Send => {
                let reply = self.patient.remove(&token.id().slot)?;
                Some(sent(self.buffers, token.id(), reply, result))
            }
            Op::Accept => {
                let result = result.map(|fd| Socket(fd as i32));
                Some(Completion::Accepted { listener: token.id().slot, result, further })
            }
            Op::Close => Some(Completion::Closed { id: token.id() }),
            Op::Stop => Some(Completion::StopRequested),
            Op::Question => {
                if further == Further::Over && result.is_ok() {
                    self.watch_questions();
                }
                Some(Completion::Asked)
            }
            Op::HangUp => Some(Completion::HungUp { id: token.id() }),
            Op::Verify => match result {
                Err(errno) if breaks_connection(errno) => {
                    Some(Completion::Broken { id: token.id() })
                }
                Ok(_) | Err(_) => None,
            },
            // Taken by `take_notices`.
            Op::Notices => None,
            Op::Alarm => {
                self.queues.alarm.clear();
                None
            }
            // The cancelled operation has a completion of its own.
            Op::Cancel => None,
        }
    }

    fn poll_notices(&mut self) {
        if let Some(offload) = &mut self.offload {
            offload.is_polling = true;
            let readable = rustix::event::PollFlags::IN.bits().into();
            let ring = Fd(offload.program.notices().as_raw_fd());
            let poll = opcode::PollAdd::new(ring, readable).multi(true).build();
            self.push(poll, Token::new(Op::Notices, Self::listener_id(0)));
        }
    }

    #[cold]
    fn take_notices(&mut self, entry: &cqueue::Entry, completions: &mut Vec<Completion>) {
        let Some(offload) = &mut self.offload else { return };
        offload.take_notices(completions);
        if !cqueue::more(entry.flags()) {
            self.poll_notices();
        }
    }

    fn program(&self) -> &Program {
        &self.offload.as_ref().expect(OFFLOADED).program
    }

    fn cancel(&mut self, op: Op, id: ConnectionId) {
        let cancel = opcode::AsyncCancel::new(Token::new(op, id).0).build();
        self.push(cancel.flags(Flags::SKIP_SUCCESS), Token::new(Op::Cancel, id));
    }

    fn listener_id(listener: u32) -> ConnectionId {
        ConnectionId { slot: listener, generation: 0 }
    }
}

fn borrow(socket: &Socket) -> BorrowedFd<'_> {
    // SAFETY: invariant 4.
    unsafe { BorrowedFd::borrow_raw(socket.0) }
}

/// The completion of the send of `reply` that the kernel answered with `result`.
#[inline]
fn sent(
    buffers: &mut BufferRing,
    id: ConnectionId,
    reply: Reply,
    result: Result<u32, Errno>,
) -> Completion {
    let (sent, bytes) = reply.ended(result, |lease| buffers.recycle(lease));
    Completion::Sent { id, sent, bytes }
}

/// The result of a completion: a count or a descriptor, or a negated error number.
#[inline]
fn result_of(result: i32) -> Result<u32, Errno> {
    if result < 0 { Err(Errno::from_raw_os_error(-result)) } else { Ok(result as u32) }
}

impl Ring for KernelRing<'_> {
    type Place = offload::Place;

    fn now(&self) -> Duration {
        self.waiter.now()
    }

    #[inline]
    fn recently(&self) -> Duration {
        self.waiter.recently()
    }

    fn peer_address(&self, socket: &Socket) -> Option<IpAddr> {
        self.counters.syscalls.add(1);
        address_of(&getpeername(borrow(socket)).ok()??)
    }

    fn listeners(&self) -> u32 {
        self.listeners.len() as u32
    }

    fn accept(&mut self, listener: u32) {
        if let Some(fd) = &self.listeners[listener as usize] {
            let accept = opcode::AcceptMulti::new(Fd(fd.as_raw_fd()))
                .flags(SocketFlags::CLOEXEC.bits() as i32);
            self.push(accept.build(), Token::new(Op::Accept, Self::listener_id(listener)));
        }
    }

    fn cancel_accept(&mut self, listener: u32) {
        self.cancel(Op::Accept, Self::listener_id(listener));
    }

    fn close_listener(&mut self, listener: u32, waiting: &mut VecDeque<Socket>) {
        let Some(fd) = self.listeners[listener as usize].take() else { return };
        self.counters.syscalls.add(2);
        if rustix::io::ioctl_fionbio(&fd, true).is_err() {
            return;
        }
        for _ in 0..LAST_ADMISSIONS_MAX {
            self.counters.syscalls.add(1);
            let Ok(socket) = rustix::net::accept_with(&fd, SocketFlags::CLOEXEC) else { break };
            waiting.push_back(Socket(socket.into_raw_fd()));
        }
    }

    fn watch_stop(&mut self) {
        let readable = rustix::event::PollFlags::IN.bits().into();
        let poll = opcode::PollAdd::new(Fd(self.stop), readable).build();
        self.push(poll, Token::new(Op::Stop, Self::listener_id(0)));
    }

    fn watch_questions(&mut self) {
        let Some(questions) = self.questions else { return };
        let readable = rustix::event::PollFlags::IN.bits().into();
        let poll = opcode::PollAdd::new(Fd(questions), readable).multi(true).build();
        self.push(poll, Token::new(Op::Question, Self::listener_id(0)));
    }

    #[inline]
    fn receive(&mut self, id: ConnectionId, socket: &Socket) {
        let receive = opcode::RecvMulti::new(Fd(socket.0), GROUP).len(self.receive_max).build();
        self.push(receive, Token::new(Op::Receive, id));
    }

    fn receive_piece(&mut self, id: ConnectionId, socket: &Socket, bytes: usize) {
        let receive = opcode::Recv::new(Fd(socket.0), std::ptr::null_mut(), bytes as u32)
            .buf_group(GROUP)
            .build()
            .flags(Flags::BUFFER_SELECT);
        self.push(receive, Token::new(Op::Receive, id));
    }

    fn cancel_receive(&mut self, id: ConnectionId) {
        self.cancel(Op::Receive, id);
    }

    #[inline]
    fn send(
        &mut self,
        id: ConnectionId,
        socket: &Socket,
        reply: Reply,
        patience: Patience,
    ) -> Patience {
        let start = match &reply {
            Reply::Pinned(pinned) => self.buffers.start_of(pinned),
            Reply::Heap(bytes) => bytes.as_ptr(),
        };
        // rustix has no MSG_WAITALL for sends, because send(2) ignores it. In io_uring it makes a send
        // that was cut short post a completion despite SKIP_SUCCESS (io_uring_enter(2)).
        const WAIT_ALL: u32 = 0x100;
        let message = match patience {
            Patience::None => (SendFlags::NOSIGNAL | SendFlags::DONTWAIT).bits() | WAIT_ALL,
            Patience::Unlimited => SendFlags::NOSIGNAL.bits(),
        };
        let flags = message as i32;
        let send = opcode::Send::new(Fd(socket.0), start, reply.len() as u32).flags(flags).build();
        let token = Token::new(Op::Send, id);
        if patience == Patience::None && !self.queues.is_sqpoll {
            self.quick.push((id, reply));
            self.push(send.flags(Flags::SKIP_SUCCESS), token);
        } else {
            let previous = self.patient.insert(id.slot, reply);
            assert!(previous.is_none(), "a connection has one send in flight");
            self.push(send, token);
        }
        patience
    }

    fn cancel_send(&mut self, id: ConnectionId) {
        self.cancel(Op::Send, id);
    }

    fn verify(&mut self, id: ConnectionId, socket: &Socket) {
        let flags = (SendFlags::NOSIGNAL | SendFlags::DONTWAIT).bits() as i32;
        let send = opcode::Send::new(Fd(socket.0), std::ptr::null(), 0).flags(flags).build();
        self.push(send.flags(Flags::SKIP_SUCCESS), Token::new(Op::Verify, id));
    }

    fn shut_down(&mut self, socket: &Socket) {
        // The operation of io_uring would go to a kernel worker thread; this is one call.
        self.counters.syscalls.add(1);
        // It fails if the peer has reset the connection; the receive reports that.
        let _ = rustix::net::shutdown(borrow(socket), Shutdown::Write);
    }

    fn close(&mut self, id: ConnectionId, socket: Socket) {
        self.push(opcode::Close::new(Fd(socket.0)).build(), Token::new(Op::Close, id));
    }

    fn discard(&mut self, socket: Socket) {
        self.counters.syscalls.add(1);
        // SAFETY: invariant 4.
        drop(unsafe { OwnedFd::from_raw_fd(socket.0) });
    }

    fn attach(&mut self, id: ConnectionId, socket: &Socket) -> Option<(offload::Place, u64)> {
        let offload = self.offload.as_mut()?;
        let attached = offload.attach(id, borrow(socket))?;
        if !offload.is_polling {
            self.poll_notices();
        }
        Some(attached)
    }

    fn detach(&mut self, place: offload::Place, socket: &Socket) {
        self.offload.as_mut().expect(OFFLOADED).detach(place, borrow(socket));
    }

    fn record(&self, place: &offload::Place) -> &Record {
        self.program().record(place)
    }

    fn written(&self, _place: &offload::Place, socket: &Socket) -> u64 {
        self.counters.syscalls.add(Program::WRITTEN_CALLS);
        // A socket that cannot answer is broken; its receive reports that.
        Program::written(borrow(socket)).unwrap_or(u64::MAX)
    }

    fn receive_once(&mut self, _place: &offload::Place, id: ConnectionId, socket: &Socket) {
        let flags = rustix::net::RecvFlags::DONTWAIT.bits() as i32;
        let receive = opcode::Recv::new(Fd(socket.0), std::ptr::null_mut(), 0)
            .buf_group(GROUP)
            .flags(flags)
            .build()
            .flags(Flags::BUFFER_SELECT);
        self.push(receive, Token::new(Op::Receive, id));
    }

    fn watch(&mut self, _place: &offload::Place, id: ConnectionId, socket: &Socket) {
        let hang_up = rustix::event::PollFlags::RDHUP.bits().into();
        let poll = opcode::PollAdd::new(Fd(socket.0), hang_up).build();
        self.push(poll, Token::new(Op::HangUp, id));
    }

    fn cancel_watch(&mut self, _place: &offload::Place, id: ConnectionId) {
        self.cancel(Op::HangUp, id);
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

impl Blocking for KernelRing<'_> {
    #[inline]
    fn enter(&mut self, wait: Wait, completions: &mut Vec<Completion>) -> io::Result<()> {
        if let Some(error) = self.broken.take() {
            return Err(error);
        }
        match wait {
            Wait::Not => self.queues.call(0, None)?,
            Wait::Until(until) => self.waiter.wait(until, &mut self.queues)?,
        }
        self.drain()?;
        self.report_quick(completions);
        let mut entries = std::mem::take(&mut self.entries);
        for entry in entries.drain(..) {
            completions.extend(self.report(&entry));
            if Token(entry.user_data()).op() == Op::Notices {
                self.take_notices(&entry, completions);
            }
        }
        self.entries = entries;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{SocketAddr, UnixStream};
    use std::thread;

    use super::*;
    use crate::engine::config::listener_for_test;
    use crate::sandbox::{self, Needs};

    fn connect(address: &SocketAddr) -> UnixStream {
        UnixStream::connect_addr(address).expect("a queue")
    }

    /// Enters the ring without waiting. Counts the connections that it has accepted, and says whether the accept is
    /// over.
    fn accepted(ring: &mut KernelRing<'_>) -> (usize, bool) {
        let mut completions = Vec::new();
        ring.enter(Wait::Not, &mut completions).expect("a ring");
        let (mut count, mut is_over) = (0, false);
        for completion in completions {
            let Completion::Accepted { result, further, .. } = completion else {
                panic!("{completion:?}")
            };
            is_over |= further == Further::Over;
            if let Ok(socket) = result {
                count += 1;
                ring.discard(socket);
            }
        }
        (count, is_over)
    }

    fn close(ring: &mut KernelRing<'_>) -> usize {
        let mut waiting = VecDeque::new();
        ring.close_listener(0, &mut waiting);
        let count = waiting.len();
        waiting.into_iter().for_each(|socket| ring.discard(socket));
        count
    }

    #[test]
    fn what_waits_in_the_queue_of_a_listener_is_accepted_when_it_is_closed() {
        let (listener, address) = listener_for_test("queue");
        let _clients = [connect(&address), connect(&address), connect(&address)];
        let serve = || {
            let worker = WorkerConfig::for_test(WaitStrategy::Block);
            let mut prepared = PreparedRing::new(&worker).expect("a ring");
            let mut ring = KernelRing::new(&mut prepared, &worker, vec![listener.into()]);
            // With the calls that a worker has left.
            sandbox::enter(&Needs::default().calling(CALLS));
            assert_eq!(close(&mut ring), 3);
        };
        thread::scope(|scope| scope.spawn(serve).join().expect("a worker"));
        UnixStream::connect_addr(&address).expect_err("it is closed");
    }

    /// Two workers share a listener, of one process or of two. The kernel wakes one of them for a connection; if that
    /// one stops before it has looked, it has to accept the connection all the same, as nobody else learns of it.
    #[test]
    fn a_wake_up_for_a_ring_that_stops_is_not_lost() {
        let worker = WorkerConfig::for_test(WaitStrategy::Block);
        let mut prepared = [(); 2].map(|()| PreparedRing::new(&worker).expect("a ring"));
        let (listener, address) = listener_for_test("wake-up");
        let shared = listener.try_clone().expect("a descriptor");
        let [first, second] = &mut prepared;
        let mut stopping = KernelRing::new(first, &worker, vec![listener.into()]);
        let mut staying = KernelRing::new(second, &worker, vec![shared.into()]);
        for ring in [&mut stopping, &mut staying] {
            ring.accept(0);
            assert_eq!(accepted(ring), (0, false));
        }
        let _client = connect(&address);
        stopping.cancel_accept(0);
        let (mut count, mut is_over) = (0, false);
        while !is_over {
            let (more, over) = accepted(&mut stopping);
            (count, is_over) = (count + more, over);
        }
        count += accepted(&mut staying).0 + close(&mut stopping);
        assert_eq!(count, 1);
        // The other one goes on, although the sockets of both have changed to not blocking.
        let _client = connect(&address);
        let (mut count, _) = accepted(&mut staying);
        while count == 0 {
            count = accepted(&mut staying).0;
        }
        assert_eq!(count, 1);
        staying.cancel_accept(0);
        while !accepted(&mut staying).1 {}
        // A new accept on what does not block waits as well.
        staying.accept(0);
        assert_eq!(accepted(&mut staying), (0, false));
        let _client = connect(&address);
        assert_eq!(accepted(&mut staying), (1, false));
        staying.cancel_accept(0);
        while !accepted(&mut staying).1 {}
    }
}
