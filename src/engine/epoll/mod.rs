//! epoll(7), edge-triggered, and the system calls of sockets, as a [`super::ring::Ring`].
//!
//! An operation is tried when it is asked for or when its socket becomes ready, and its completion is
//! queued until the pump next enters the ring. A send is tried immediately, so that a reply leaves
//! before the worker waits for anything. Before the thread sleeps, it reads every socket that may
//! have input until the socket is known to be empty. A TCP socket that returned less than there was
//! room for is empty (epoll(7), "Questions and answers") and is not read again; other sockets are
//! read until they return `EAGAIN`. So a message in a ping-pong costs three system calls: epoll_wait,
//! recv and send.
//!
//! Descriptors never leave this module: a [`super::ring::Socket`] is an index into its table. An edge
//! is noted only in that table, and no socket is closed while edges are being noted, so an edge
//! cannot be taken for another socket's.
//!
//! This engine contains no unsafe code, and does not look at the bytes.

mod buffers;
mod calls;
mod edges;
mod ring;
mod sockets;

use std::os::fd::OwnedFd;

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;
use rustix::time::{TimerfdClockId, TimerfdFlags, timerfd_create};

use self::edges::{ALARM, QUESTION, STOP};
use self::ring::EpollRing;
use super::pump::Pump;
use super::wait::{ThreadClock, Waiter};
use super::{EngineError, WorkerConfig};
use crate::memory::Mapping;
use crate::sandbox::Call;

/// What a worker calls once it is prepared.
pub(super) const CALLS: &[Call] = &[
    Call::Any(libc::SYS_epoll_ctl),
    Call::Any(libc::SYS_epoll_pwait),
    Call::Any(libc::SYS_epoll_pwait2),
    Call::Any(libc::SYS_accept4),
    Call::Any(libc::SYS_recvfrom),
    Call::Any(libc::SYS_sendto),
    Call::Any(libc::SYS_shutdown),
    Call::Any(libc::SYS_getpeername),
    Call::Any(libc::SYS_timerfd_settime),
    // Whether a listener is TCP, and that it does not block.
    Call::Any(libc::SYS_getsockopt),
    Call::With(libc::SYS_ioctl, 1, &[libc::FIONBIO as u32]),
    #[cfg(target_arch = "x86_64")]
    Call::Any(libc::SYS_epoll_wait),
];

/// The epoll instance and the memory of one worker.
pub struct PreparedEpoll {
    epoll: OwnedFd,
    timer: OwnedFd,
    memory: Mapping,
    clock: ThreadClock,
}

impl PreparedEpoll {
    /// Creates the epoll instance and allocates the memory.
    ///
    /// # Errors
    ///
    /// When memory or descriptors run out.
    pub fn new(worker: &WorkerConfig) -> Result<PreparedEpoll, EngineError> {
        let epoll = epoll::create(CreateFlags::CLOEXEC).map_err(no_epoll)?;
        let readable = EventFlags::IN | EventFlags::ET;
        epoll::add(&epoll, &worker.stop, EventData::new_u64(STOP), readable).map_err(no_epoll)?;
        if let Some(mailbox) = &worker.mailbox {
            let data = EventData::new_u64(QUESTION);
            epoll::add(&epoll, mailbox.questions(), data, readable).map_err(no_epoll)?;
        }
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC)
            .map_err(|error| EngineError::new("make a timer", error))?;
        epoll::add(&epoll, &timer, EventData::new_u64(ALARM), readable).map_err(no_epoll)?;
        let memory = Mapping::new(worker.buffers.memory_bytes()).map_err(EngineError::no_memory)?;
        let clock = Waiter::clock(worker.wait);
        Ok(PreparedEpoll { epoll, timer, memory, clock })
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
        let pump = Pump::new(ring, context, &worker.shared, worker.timeouts)
            .with_timing(worker.timing)
            .with_mailbox(worker.mailbox.clone());
        started();
        pump.run().map_err(|error| EngineError::new("go on serving", error))
    }
}

fn no_epoll(errno: Errno) -> EngineError {
    let error = EngineError::new("set up epoll", errno);
    match errno {
        Errno::NOSPC => error.with_remedy("raise sysctl fs.epoll.max_user_watches"),
        _ => error,
    }
}
