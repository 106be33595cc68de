//! What a worker knows about its own thread: the time, and how long it has waited for its CPU.

use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use crate::sandbox::Call;

/// The time on `CLOCK_MONOTONIC`, by which the kernel's program goes too.
#[inline]
pub fn monotonic() -> Duration {
    time_on(ClockId::CLOCK_MONOTONIC)
}

/// The same, as it was at the last tick of the kernel, up to 10 ms ago. It takes a fifth of the time to read
/// (clock_gettime(2), `CLOCK_MONOTONIC_COARSE`).
#[inline]
pub fn monotonic_coarse() -> Duration {
    time_on(ClockId::CLOCK_MONOTONIC_COARSE)
}

#[inline]
fn time_on(clock: ClockId) -> Duration {
    Duration::from(clock_gettime(clock).expect("every Linux has it"))
}

/// A thread's view of time.
pub trait Clock {
    /// The time since some fixed moment.
    fn now(&self) -> Duration;

    /// The same time, but maybe some milliseconds ago, where that is cheaper to know.
    fn recently(&self) -> Duration {
        self.now()
    }

    /// How long this thread has been ready to run while others had its CPU, since it was started;
    /// `None` if the kernel does not say. This may cost a system call.
    fn waited_for_cpu(&self) -> Option<Duration>;
}

/// The clock of the thread that made it.
#[derive(Debug)]
pub struct ThreadClock {
    /// The scheduler's statistics of this thread, if the kernel keeps them and `/proc` is mounted.
    statistics: Option<OwnedFd>,
}

impl ThreadClock {
    /// What a thread calls that uses one.
    pub const CALLS: &'static [Call] = &[Call::Any(libc::SYS_pread64)];

    /// A clock that tells only the time.
    pub fn without_statistics() -> ThreadClock {
        ThreadClock { statistics: None }
    }

    /// A clock that also reads the scheduler's statistics.
    pub fn with_statistics() -> ThreadClock {
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
        let path = "/proc/thread-self/schedstat";
        let statistics = rustix::fs::open(path, flags, rustix::fs::Mode::empty()).ok();
        ThreadClock { statistics }
    }
}

impl Clock for ThreadClock {
    #[inline]
    fn now(&self) -> Duration {
        monotonic()
    }

    #[inline]
    fn recently(&self) -> Duration {
        monotonic_coarse()
    }

    #[cold]
    fn waited_for_cpu(&self) -> Option<Duration> {
        let mut text = [0; 96];
        let length = rustix::io::pread(self.statistics.as_ref()?, &mut text, 0).unwrap_or(0);
        waited(&text[..length])
    }
}

/// The time that a thread has waited for a CPU: the second of the three numbers in its schedstat, in
/// nanoseconds (Documentation/scheduler/sched-stats.rst in the Linux source).
fn waited(schedstat: &[u8]) -> Option<Duration> {
    let number = std::str::from_utf8(schedstat).ok()?.split(' ').nth(1)?;
    number.parse().ok().map(Duration::from_nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedstat_is_parsed() {
        assert_eq!(waited(b"2708266 31337 12\n"), Some(Duration::from_nanos(31337)));
        for text in [&b""[..], b"2708266", b"1 many 2", b"1 \xFF 2"] {
            assert_eq!(waited(text), None);
        }
    }

    #[test]
    fn time_passes() {
        let clock = ThreadClock::with_statistics();
        let (time, waited) = (clock.now(), clock.waited_for_cpu());
        assert!(clock.now() >= time);
        assert!(clock.waited_for_cpu() >= waited);
        assert_eq!(ThreadClock::without_statistics().waited_for_cpu(), None);
    }
}
