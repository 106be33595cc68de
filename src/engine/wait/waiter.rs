//! Waits for an engine as its strategy says, and tells the [`Pacer`] how each wait went.

use std::io;
use std::time::Duration;

use super::WaitStrategy;
use super::clock::{Clock, ThreadClock};
use super::pacer::{Pace, Pacer, Waited};
use crate::metrics::Counters;

/// A gap between two readings of the clock that shows that the thread was not running: another
/// thread had the CPU, or the host of this virtual machine did.
const PAUSE: Duration = Duration::from_micros(20);
/// A thread shares its CPU if it waits for the CPU for at least one part in this many of its time.
const SHARED_PART: u32 = 20;

/// What a [`Waiter`] waits on.
pub trait Source {
    /// Looks, without sleeping, whether something has completed.
    ///
    /// # Errors
    ///
    /// When the engine is broken.
    fn look(&mut self) -> io::Result<bool>;

    /// Sleeps until something completes, or until a time on `CLOCK_MONOTONIC`; it may wake up earlier.
    ///
    /// # Errors
    ///
    /// When the engine is broken.
    fn sleep(&mut self, until: Option<Duration>) -> io::Result<()>;
}

/// Waits as a strategy says. Its clock is the engine's.
#[derive(Debug)]
pub struct Waiter<'a, C = ThreadClock> {
    strategy: WaitStrategy,
    pacer: Pacer,
    clock: C,
    /// When the scheduler's statistics were last read, and how long this thread had waited for its
    /// CPU by then.
    scheduled: (Duration, Duration),
    counters: &'a Counters,
}

/// How a spin ended.
enum Spin {
    /// Something had completed before the first look, so nothing was waited for.
    Ready,
    /// Something completed.
    Found { at: Duration, pause: Pause },
    /// The deadline came.
    Due,
    /// Nothing completed within the window.
    InVain { until: Duration },
}

/// Whether the thread seems to have been stopped while it was spinning.
#[derive(PartialEq, Eq)]
enum Pause {
    None,
    Some,
}

impl<'a> Waiter<'a> {
    /// The clock that a waiter of this thread needs. A thread in a sandbox can no longer make one.
    pub fn clock(strategy: WaitStrategy) -> ThreadClock {
        match strategy.is_paced() {
            true => ThreadClock::with_statistics(),
            false => ThreadClock::without_statistics(),
        }
    }
}

impl<'a, C: Clock> Waiter<'a, C> {
    /// A waiter for the thread that the clock is of. `counters` gets its spins and system calls.
    pub fn new(
        strategy: WaitStrategy,
        pace: Pace,
        clock: C,
        counters: &'a Counters,
    ) -> Waiter<'a, C> {
        let scheduled = (clock.now(), Duration::ZERO);
        Waiter { strategy, pacer: Pacer::new(pace), clock, scheduled, counters }
    }

    /// The time on this waiter's clock.
    #[inline]
    pub fn now(&self) -> Duration {
        self.clock.now()
    }

    /// The same time, but maybe some milliseconds ago.
    #[inline]
    pub fn recently(&self) -> Duration {
        self.clock.recently()
    }

    /// Waits until something completes, or until a time.
    ///
    /// # Errors
    ///
    /// Those of `source`.
    #[inline]
    pub fn wait(&mut self, until: Option<Duration>, source: &mut impl Source) -> io::Result<()> {
        match self.strategy {
            WaitStrategy::Block => source.sleep(until),
            WaitStrategy::Spin => {
                let begin = self.now();
                self.spin(begin, until, None, source).map(drop)
            }
            WaitStrategy::Adaptive | WaitStrategy::Sqpoll => self.pace(until, source),
        }
    }

    /// Spins or sleeps, as the pacer thinks best.
    fn pace(&mut self, until: Option<Duration>, source: &mut impl Source) -> io::Result<()> {
        let begin = self.now();
        let Some(window) = self.pacer.window(begin) else {
            if let Some(awake) = self.sleep(until, source)? {
                self.pacer.learn(Waited::Slept(awake - begin));
            }
            return Ok(());
        };
        match self.spin(begin, until, Some(window), source)? {
            Spin::Ready | Spin::Due => {}
            Spin::Found { at, pause } => {
                self.pacer.learn(Waited::Spun(at - begin));
                if pause == Pause::Some && self.is_cpu_shared(at) {
                    self.pacer.leave_cpu(at);
                }
            }
            Spin::InVain { until: asleep } => {
                if let Some(awake) = self.sleep(until, source)? {
                    let (spun, slept) = (asleep - begin, awake - asleep);
                    self.pacer.learn(Waited::SpunInVain { spun, slept });
                    if self.is_cpu_shared(awake) {
                        self.pacer.leave_cpu(awake);
                    }
                }
            }
        }
        Ok(())
    }

    /// Sleeps; returns when the thread was awake again, unless the deadline woke it.
    fn sleep(
        &mut self,
        until: Option<Duration>,
        source: &mut impl Source,
    ) -> io::Result<Option<Duration>> {
        source.sleep(until)?;
        let awake = self.now();
        Ok(Some(awake).filter(|&awake| until.is_none_or(|until| awake < until)))
    }

    /// Spins from `begin` until something completes, `until` has come, or `window` has passed.
    fn spin(
        &mut self,
        begin: Duration,
        until: Option<Duration>,
        window: Option<Duration>,
        source: &mut impl Source,
    ) -> io::Result<Spin> {
        if source.look()? {
            return Ok(Spin::Ready);
        }
        let mut looks = 1;
        let mut last = begin;
        let mut pause = Pause::None;
        let spin = loop {
            let now = self.now();
            if now - last > PAUSE {
                pause = Pause::Some;
            }
            last = now;
            if until.is_some_and(|until| now >= until) {
                break Spin::Due;
            }
            if window.is_some_and(|window| now - begin >= window) {
                break Spin::InVain { until: now };
            }
            std::hint::spin_loop();
            if source.look()? {
                let at = self.now();
                let is_long = at - last > PAUSE;
                break Spin::Found { at, pause: if is_long { Pause::Some } else { pause } };
            }
            looks += 1;
        };
        self.counters.spins.add(looks);
        Ok(spin)
    }

    /// Whether this thread has waited for its CPU for a good part of the time since the last call.
    /// This costs a system call, so it is called only when something suggests it.
    #[cold]
    fn is_cpu_shared(&mut self, now: Duration) -> bool {
        let Some(waited) = self.clock.waited_for_cpu() else { return false };
        self.counters.syscalls.add(1);
        let (then, before) = std::mem::replace(&mut self.scheduled, (now, waited));
        waited.saturating_sub(before) * SHARED_PART > now.saturating_sub(then)
    }
}
