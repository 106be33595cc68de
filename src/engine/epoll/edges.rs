//! The edges that epoll reports, and what their data means.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::Timespec;
use rustix::event::epoll::{self, Event};
use rustix::io::Errno;
use rustix::time::{Itimerspec, TimerfdTimerFlags, timerfd_settime};

use crate::engine::wait::{Alarm, Sleep, Source, monotonic};
use crate::metrics::Counters;

/// How many edges one call takes.
pub(super) const EVENTS: usize = 1024;
/// What an edge is of, in the upper half of its data. The lower half is the place of a connection or
/// the number of a listener.
pub(super) const CONNECTION: u64 = 0;
pub(super) const LISTENER: u64 = 1 << 32;
pub(super) const STOP: u64 = 2 << 32;
pub(super) const ALARM: u64 = 3 << 32;
pub(super) const QUESTION: u64 = 4 << 32;

/// The epoll instance, and the edges that have not been noted yet.
pub(super) struct Edges<'a> {
    pub(super) epoll: OwnedFd,
    pub(super) events: Vec<Event>,
    pub(super) alarm: Alarm,
    /// The timer of the alarm.
    pub(super) timer: OwnedFd,
    pub(super) counters: &'a Counters,
}

impl Edges<'_> {
    /// One epoll_wait(2), which waits for at most `most`.
    pub(super) fn call(&mut self, most: Option<Duration>) -> io::Result<()> {
        let timeout = most.map(timespec);
        self.counters.syscalls.add(1);
        self.events.clear();
        let room = rustix::buffer::spare_capacity(&mut self.events);
        match epoll::wait(&self.epoll, room, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl Edges<'_> {
    /// Sets the timer. What it did before is forgotten, so nobody needs to read it (timerfd_settime(2)).
    #[cold]
    fn set_timer(&mut self, left: Duration) -> io::Result<()> {
        let never = Timespec { tv_sec: 0, tv_nsec: 0 };
        let time = Itimerspec { it_interval: never, it_value: timespec(left) };
        self.counters.syscalls.add(1);
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &time)?;
        Ok(())
    }
}

fn timespec(time: Duration) -> Timespec {
    Timespec {
        tv_sec: time.as_secs().try_into().unwrap_or(i64::MAX),
        tv_nsec: time.subsec_nanos().into(),
    }
}

impl Source for Edges<'_> {
    fn look(&mut self) -> io::Result<bool> {
        self.call(Some(Duration::ZERO))?;
        Ok(!self.events.is_empty())
    }

    #[inline]
    fn sleep(&mut self, until: Option<Duration>) -> io::Result<()> {
        match self.alarm.sleep(until, monotonic) {
            Sleep::Untimed => self.call(None),
            Sleep::For(time) => self.call(Some(time)),
            Sleep::SetAlarm(left) => {
                self.set_timer(left)?;
                self.call(None)
            }
        }
    }
}
