//! The submission and the completion queue of a ring, and the one system call that serves both.
//!
//! This file knows no operation but the alarm. Invariant that the unsafe blocks rely on:
//!
//! 1. They pass no memory to the kernel but the argument of the call itself, which outlives the call, and the time of
//!    the alarm, which the kernel copies when the alarm is submitted, in the call that follows.

#![expect(unsafe_code, reason = "io_uring_enter(2) takes a pointer; see the invariant above")]

use std::io;
use std::time::Duration;

use io_uring::types::{SubmitArgs, Timespec};
use io_uring::{CompletionQueue, SubmissionQueue, Submitter, opcode};
use rustix::io::Errno;

use crate::engine::token::{Op, Token};
use crate::engine::wait::{Alarm, Sleep, Source, monotonic};
use crate::metrics::Counters;
use crate::slab::ConnectionId;

/// `IORING_ENTER_GETEVENTS` and its siblings (io_uring_enter(2)).
const ENTER_GETEVENTS: u32 = 1;
const ENTER_SQ_WAKEUP: u32 = 2;
const ENTER_EXT_ARG: u32 = 8;

/// The queues that the kernel and the worker's thread share.
pub(super) struct Queues<'a> {
    /// The only submitter: it remembers that the ring's descriptor is registered.
    pub(super) submitter: Submitter<'a>,
    pub(super) submissions: SubmissionQueue<'a>,
    pub(super) completions: CompletionQueue<'a>,
    pub(super) is_sqpoll: bool,
    pub(super) alarm: Alarm,
    pub(super) counters: &'a Counters,
}

impl Queues<'_> {
    /// One io_uring_enter(2): submits what is queued, moves completions, and waits for `wanted`
    /// of them or for `timeout`.
    #[inline]
    pub(super) fn call(&mut self, wanted: u32, timeout: Option<Duration>) -> io::Result<()> {
        self.submissions.sync();
        let queued = self.submissions.len() as u32;
        let mut flags = ENTER_GETEVENTS;
        let mut to_submit = queued;
        if self.is_sqpoll {
            to_submit = 0;
            if self.submissions.need_wakeup() {
                flags |= ENTER_SQ_WAKEUP;
                to_submit = queued;
            } else if wanted == 0 && !self.submissions.cq_overflow() {
                return Ok(());
            }
        }
        self.counters.syscalls.add(1);
        let result = match timeout {
            None => {
                // SAFETY: invariant 1; no argument is passed.
                unsafe { self.submitter.enter::<u64>(to_submit, wanted, flags, None) }
            }
            Some(timeout) => {
                let timespec = Timespec::from(timeout);
                let arguments = SubmitArgs::new().timespec(&timespec);
                let flags = flags | ENTER_EXT_ARG;
                // SAFETY: invariant 1.
                unsafe { self.submitter.enter(to_submit, wanted, flags, Some(&arguments)) }
            }
        };
        self.submissions.sync();
        match result {
            Ok(_) => Ok(()),
            // ETIME: the timeout has passed. EINTR: a signal came. EBUSY, EAGAIN: completions must be
            // drained, or memory freed, before the rest can be submitted.
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::TIME | Errno::INTR | Errno::BUSY | Errno::AGAIN) => Ok(()),
                _ => Err(error),
            },
        }
    }
}

impl Queues<'_> {
    /// Sets the alarm and sleeps.
    #[cold]
    fn set_alarm(&mut self, left: Duration) -> io::Result<()> {
        let time = Timespec::from(left);
        let alarm = opcode::Timeout::new(&time).build();
        let alarm =
            alarm.user_data(Token::new(Op::Alarm, ConnectionId { slot: 0, generation: 0 }).0);
        // A kernel thread that submits might do so when the time is gone.
        let is_set = !self.is_sqpoll && {
            // SAFETY: invariant 1.
            unsafe { self.submissions.push(&alarm) }.is_ok()
        };
        if !is_set {
            self.alarm.clear();
            return self.call(1, Some(left));
        }
        self.call(1, None)
    }
}

impl Source for Queues<'_> {
    /// With `IORING_SETUP_TASKRUN_FLAG` the kernel sets a flag in shared memory when completions are
    /// pending, so this makes no system call until there is something.
    #[inline]
    fn look(&mut self) -> io::Result<bool> {
        if !self.submissions.is_empty() || self.submissions.taskrun() {
            self.call(0, None)?;
        }
        self.completions.sync();
        Ok(!self.completions.is_empty())
    }

    #[inline]
    fn sleep(&mut self, until: Option<Duration>) -> io::Result<()> {
        match self.alarm.sleep(until, monotonic) {
            Sleep::Untimed => self.call(1, None),
            Sleep::For(time) => self.call(1, Some(time)),
            Sleep::SetAlarm(left) => self.set_alarm(left),
        }
    }
}
