//! When to spin for the next completion and when to sleep.
//!
//! Waking a sleeping thread is most of the cost of a message, so spinning pays when the next message
//! comes soon. Spinning does harm when another thread needs the CPU, above all when that thread is
//! the client, which then cannot send the message that the worker is waiting for. The [`Pacer`]
//! learns both from its earlier waits. It reads no clock; the [`Waiter`] does, and applies a
//! strategy to whatever an engine waits on.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use crate::metrics::Counters;

/// How a worker waits when it has nothing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitStrategy {
    /// Sleeps in the kernel.
    Block,
    /// Never sleeps.
    Spin,
    /// Spins for this long while messages keep arriving, else sleeps.
    Adaptive(Duration),
    /// A kernel thread submits operations, and the worker spins for this long while messages keep
    /// arriving, else sleeps.
    Sqpoll(Duration),
}

/// A gap between two readings of the clock that shows that the thread was not running: another
/// thread had the CPU, or the host of this virtual machine did.
pub const PAUSE: Duration = Duration::from_micros(20);
/// A thread shares its CPU if it waits for the CPU for at least one part in this many of its time.
pub const SHARED_PART: u32 = 20;
/// How long a worker does not spin after its CPU turned out to be shared: at first, and at most.
const REST_MIN: Duration = Duration::from_millis(5);
const REST_MAX: Duration = Duration::from_secs(1);

/// How many spins in a row may just miss their message before the CPU counts as shared. Any client is
/// late now and then; one that shares the CPU always is.
const MISSES_MAX: u32 = 3;

/// How one wait went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waited {
    /// Something completed while spinning.
    Spun,
    /// Something completed while spinning, and other threads had the CPU for much of the time before.
    SpunOnShared,
    /// Nothing completed while spinning, but something did in the sleep that followed, after this
    /// long.
    SpunThenSlept(Duration),
    /// Something completed in a sleep of this length.
    Slept(Duration),
}

/// Decides before each wait whether to spin, from how the waits before it went.
///
/// It spins if the last wait was short. Two things show that the CPU is shared: other threads had
/// it, or several spins in a row found nothing and the message came as soon as the thread slept.
/// Then the pacer does not spin for a time, and for twice that time if the next attempt does not go
/// well for as long.
#[derive(Debug)]
pub struct Pacer {
    spin: Duration,
    expects_soon: bool,
    misses: u32,
    rest: Duration,
    rests_until: Duration,
}

impl Pacer {
    /// A pacer that spins for `spin` at most.
    pub fn new(spin: Duration) -> Pacer {
        Pacer {
            spin,
            expects_soon: false,
            misses: 0,
            rest: Duration::ZERO,
            rests_until: Duration::ZERO,
        }
    }

    /// Whether to spin in the wait that begins `now`.
    #[inline]
    pub fn wants_to_spin(&self, now: Duration) -> bool {
        self.expects_soon && now >= self.rests_until
    }

    /// Learns from a wait that ended `now`.
    #[inline]
    pub fn learn(&mut self, waited: Waited, now: Duration) {
        match waited {
            Waited::Spun => self.misses = 0,
            Waited::SpunOnShared => self.leave_cpu(now),
            Waited::SpunThenSlept(time) if self.is_soon(time) => {
                self.misses += 1;
                if self.misses == MISSES_MAX {
                    self.leave_cpu(now);
                }
            }
            Waited::SpunThenSlept(_) => self.expects_soon = false,
            Waited::Slept(time) => self.expects_soon = self.is_soon(time),
        }
    }

    /// Twice the spin, because a sleep includes the time to wake up, which a spin would not.
    fn is_soon(&self, slept: Duration) -> bool {
        slept < self.spin * 2
    }

    fn leave_cpu(&mut self, now: Duration) {
        self.misses = 0;
        let went_well = now.saturating_sub(self.rests_until) > self.rest;
        self.rest = if went_well { REST_MIN } else { (self.rest * 2).clamp(REST_MIN, REST_MAX) };
        self.rests_until = now + self.rest;
    }
}

/// What a [`Waiter`] waits on.
pub trait Source {
    /// Looks, without sleeping, whether something has completed.
    ///
    /// # Errors
    ///
    /// When the engine is broken.
    fn look(&mut self) -> io::Result<bool>;

    /// Sleeps until something completes, or for `most`.
    ///
    /// # Errors
    ///
    /// When the engine is broken.
    fn sleep(&mut self, most: Option<Duration>) -> io::Result<()>;
}

/// Waits as a strategy says. Its clock is the engine's.
#[derive(Debug)]
pub struct Waiter<'a> {
    strategy: WaitStrategy,
    pacer: Pacer,
    /// See [`open_schedstat`]; open only if the strategy has a pacer.
    schedule: Option<OwnedFd>,
    /// When it was last read, and how long this thread had waited for its CPU by then.
    scheduled: (Duration, Duration),
    counters: &'a Counters,
    epoch: Instant,
}

impl<'a> Waiter<'a> {
    /// A waiter for the thread that calls this. `counters` gets its spins and system calls.
    pub fn new(strategy: WaitStrategy, counters: &'a Counters) -> Waiter<'a> {
        let (pacer, schedule) = match strategy {
            WaitStrategy::Adaptive(spin) | WaitStrategy::Sqpoll(spin) => {
                (Pacer::new(spin), open_schedstat())
            }
            WaitStrategy::Block | WaitStrategy::Spin => (Pacer::new(Duration::ZERO), None),
        };
        let scheduled = (Duration::ZERO, Duration::ZERO);
        Waiter { strategy, pacer, schedule, scheduled, counters, epoch: Instant::now() }
    }

    /// The time since this waiter was made.
    #[inline]
    pub fn now(&self) -> Duration {
        self.epoch.elapsed()
    }

    /// Waits until something completes, or until a time.
    ///
    /// # Errors
    ///
    /// Those of `source`.
    #[inline]
    pub fn wait(&mut self, until: Option<Duration>, source: &mut impl Source) -> io::Result<()> {
        match self.strategy {
            WaitStrategy::Block => source.sleep(self.left(until)),
            WaitStrategy::Spin => self.spin(until, None, source).map(|_| ()),
            WaitStrategy::Adaptive(spin) | WaitStrategy::Sqpoll(spin) => {
                self.pace(until, spin, source)
            }
        }
    }

    /// Spins or sleeps, as the pacer thinks best.
    fn pace(
        &mut self,
        until: Option<Duration>,
        spin: Duration,
        source: &mut impl Source,
    ) -> io::Result<()> {
        let has_spun = self.pacer.wants_to_spin(self.now());
        if has_spun && let Some(waited) = self.spin(until, Some(spin), source)? {
            self.pacer.learn(waited, self.now());
            return Ok(());
        }
        let before = self.now();
        source.sleep(self.left(until))?;
        let after = self.now();
        let slept = after - before;
        let waited = match has_spun {
            false => Waited::Slept(slept),
            true if self.is_cpu_shared() => Waited::SpunOnShared,
            true => Waited::SpunThenSlept(slept),
        };
        self.pacer.learn(waited, after);
        Ok(())
    }

    /// Spins until something completes or `until` has come. Returns `None` if neither happens within
    /// `most`.
    fn spin(
        &mut self,
        until: Option<Duration>,
        most: Option<Duration>,
        source: &mut impl Source,
    ) -> io::Result<Option<Waited>> {
        let begin = self.now();
        let mut last = begin;
        let mut has_paused = false;
        let mut looks = 0;
        let found = loop {
            if source.look()? {
                break true;
            }
            looks += 1;
            let now = self.now();
            has_paused |= now - last > PAUSE;
            last = now;
            let is_due = until.is_some_and(|until| now >= until);
            if is_due || most.is_some_and(|most| now - begin >= most) {
                break is_due;
            }
            std::hint::spin_loop();
        };
        self.counters.spins.add(looks);
        // The last look may have followed a gap too.
        has_paused |= self.now() - last > PAUSE;
        let is_shared = most.is_some() && has_paused && self.is_cpu_shared();
        Ok(found.then_some(if is_shared { Waited::SpunOnShared } else { Waited::Spun }))
    }

    /// Whether this thread has waited for its CPU for a good part of the time since the last call.
    /// This costs a system call, so it is called only when something suggests it.
    #[cold]
    fn is_cpu_shared(&mut self) -> bool {
        let Some(statistics) = &self.schedule else { return false };
        self.counters.syscalls.add(1);
        let mut text = [0; 96];
        let length = rustix::io::pread(statistics, &mut text, 0).unwrap_or(0);
        let now = self.now();
        let last = std::mem::replace(&mut self.scheduled, (now, waited_for(&text[..length])));
        self.scheduled.1.saturating_sub(last.1) * SHARED_PART > now - last.0
    }

    fn left(&self, until: Option<Duration>) -> Option<Duration> {
        until.map(|until| until.saturating_sub(self.now()))
    }
}

/// The scheduler's statistics of this thread, if the kernel keeps them and `/proc` is mounted.
fn open_schedstat() -> Option<OwnedFd> {
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
    rustix::fs::open("/proc/thread-self/schedstat", flags, rustix::fs::Mode::empty()).ok()
}

/// The time that a thread has waited for a CPU, from its schedstat: the second of three numbers, in
/// nanoseconds (Documentation/scheduler/sched-stats.rst in the Linux source).
fn waited_for(schedstat: &[u8]) -> Duration {
    let text = std::str::from_utf8(schedstat).unwrap_or_default();
    let number = text.split(' ').nth(1).and_then(|number| number.parse().ok());
    Duration::from_nanos(number.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPIN: Duration = Duration::from_micros(50);
    const SHORT: Duration = Duration::from_micros(60);
    const LONG: Duration = Duration::from_millis(3);

    /// A pacer that spins, some time after its beginning.
    fn spinning() -> (Pacer, Duration) {
        let now = Duration::from_secs(10);
        let mut pacer = Pacer::new(SPIN);
        pacer.learn(Waited::Slept(SHORT), now);
        assert!(pacer.wants_to_spin(now));
        (pacer, now)
    }

    #[test]
    fn schedstat_is_parsed() {
        assert_eq!(waited_for(b"2708266 31337 12\n"), Duration::from_nanos(31337));
        assert_eq!(waited_for(b""), Duration::ZERO);
    }

    #[test]
    fn it_sleeps_until_messages_come_close_together() {
        let now = Duration::from_secs(1);
        let mut pacer = Pacer::new(SPIN);
        assert!(!pacer.wants_to_spin(now));
        pacer.learn(Waited::Slept(LONG), now);
        assert!(!pacer.wants_to_spin(now));
        pacer.learn(Waited::Slept(SHORT), now);
        assert!(pacer.wants_to_spin(now));
    }

    #[test]
    fn a_pause_in_the_traffic_ends_the_spin_without_a_rest() {
        let (mut pacer, now) = spinning();
        pacer.learn(Waited::SpunThenSlept(LONG), now);
        assert!(!pacer.wants_to_spin(now));
        pacer.learn(Waited::Slept(SHORT), now);
        assert!(pacer.wants_to_spin(now));
    }

    #[test]
    fn messages_that_come_only_after_the_spin_mean_a_shared_cpu() {
        for (waited, times) in
            [(Waited::SpunThenSlept(SHORT), MISSES_MAX), (Waited::SpunOnShared, 1)]
        {
            let (mut pacer, mut now) = spinning();
            let mut rest = REST_MIN;
            for _ in 0..20 {
                for _ in 0..times {
                    assert!(pacer.wants_to_spin(now));
                    pacer.learn(waited, now);
                }
                // Traffic goes on, in sleeps.
                pacer.learn(Waited::Slept(SHORT), now);
                assert!(!pacer.wants_to_spin(now + rest - SPIN), "{waited:?} after {rest:?}");
                now += rest;
                assert!(pacer.wants_to_spin(now), "{waited:?} after {rest:?}");
                rest = (rest * 2).min(REST_MAX);
            }
        }
    }

    #[test]
    fn a_client_that_is_sometimes_late_causes_no_rest() {
        let (mut pacer, now) = spinning();
        for _ in 0..100 {
            for _ in 1..MISSES_MAX {
                pacer.learn(Waited::SpunThenSlept(SHORT), now);
            }
            pacer.learn(Waited::Spun, now);
            assert!(pacer.wants_to_spin(now));
        }
    }

    #[test]
    fn a_cpu_that_was_not_shared_for_long_enough_is_trusted_again() {
        let (mut pacer, mut now) = spinning();
        for _ in 0..5 {
            pacer.learn(Waited::SpunOnShared, now);
            now += pacer.rest;
        }
        assert!(pacer.rest > REST_MIN);
        now += pacer.rest + SPIN;
        pacer.learn(Waited::Spun, now);
        pacer.learn(Waited::SpunOnShared, now);
        assert_eq!(pacer.rest, REST_MIN);
    }
}
