//! When to spin for the next completion and when to sleep.
//!
//! Waking a sleeping thread is most of what a message costs, so spinning pays when the next
//! message comes soon. It does harm when another thread needs the processor: worst of all when
//! that thread is the client, which then cannot send what the spin waits for. The [`Pacer`] learns
//! both from what happened, and asks the kernel for nothing.

use std::time::Duration;

/// How a worker waits when nothing is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitStrategy {
    /// Sleeps in the kernel.
    Block,
    /// Never sleeps.
    Spin,
    /// Spins for this long while messages keep arriving, else sleeps.
    Adaptive(Duration),
    /// A kernel thread submits and completes operations, and the worker spins for this long
    /// before it sleeps.
    Sqpoll(Duration),
}

/// A pause between two looks at the clock from which it follows that the thread was not running.
pub const PREEMPTED: Duration = Duration::from_micros(20);
/// Waits to sleep through after the processor turned out to be shared, at first and at most.
const REST_MIN: u32 = 16;
const REST_MAX: u32 = 4096;

/// How one wait went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waited {
    /// Something completed while spinning.
    Spun {
        /// The thread lost the processor meanwhile.
        preempted: bool,
    },
    /// Nothing completed while spinning; something did in the sleep after it, this much later.
    SpunThenSlept(Duration),
    /// Something completed in a sleep of this length.
    Slept(Duration),
}

/// Decides before each wait whether to spin, from how the waits before it went.
///
/// It spins while the last wait was short. Two things tell that the processor is shared: the
/// thread was not running for a while, or a spin found nothing and what it was waiting for came as
/// soon as the thread slept. After either it sleeps for a number of waits, twice as many each time
/// until a spin succeeds undisturbed.
#[derive(Debug)]
pub struct Pacer {
    spin: Duration,
    expects_soon: bool,
    rest: u32,
    next_rest: u32,
}

impl Pacer {
    /// A pacer that spins for `spin` at most.
    pub fn new(spin: Duration) -> Pacer {
        Pacer { spin, expects_soon: false, rest: 0, next_rest: REST_MIN }
    }

    /// Whether to spin in the next wait.
    #[inline]
    pub fn wants_to_spin(&mut self) -> bool {
        if self.rest > 0 {
            self.rest -= 1;
            return false;
        }
        self.expects_soon
    }

    /// Learns from a wait.
    #[inline]
    pub fn learn(&mut self, waited: Waited) {
        match waited {
            Waited::Spun { preempted: false } => self.next_rest = REST_MIN,
            Waited::Spun { preempted: true } => self.yield_processor(),
            Waited::SpunThenSlept(time) if self.is_soon(time) => self.yield_processor(),
            Waited::SpunThenSlept(_) => self.expects_soon = false,
            Waited::Slept(time) => self.expects_soon = self.is_soon(time),
        }
    }

    /// A sleep includes the time to wake up, which a spin would not have had.
    fn is_soon(&self, slept: Duration) -> bool {
        slept < self.spin * 2
    }

    fn yield_processor(&mut self) {
        self.rest = self.next_rest;
        self.next_rest = (self.next_rest * 2).min(REST_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPIN: Duration = Duration::from_micros(50);
    const SHORT: Duration = Duration::from_micros(60);
    const LONG: Duration = Duration::from_millis(3);

    fn spinning() -> Pacer {
        let mut pacer = Pacer::new(SPIN);
        pacer.learn(Waited::Slept(SHORT));
        assert!(pacer.wants_to_spin());
        pacer
    }

    /// Waits until it spins again.
    fn rests(pacer: &mut Pacer) -> usize {
        (0..).find(|_| pacer.wants_to_spin()).expect("it spins again")
    }

    #[test]
    fn it_sleeps_until_messages_come_close_together() {
        let mut pacer = Pacer::new(SPIN);
        assert!(!pacer.wants_to_spin());
        pacer.learn(Waited::Slept(LONG));
        assert!(!pacer.wants_to_spin());
        pacer.learn(Waited::Slept(SHORT));
        assert!(pacer.wants_to_spin());
    }

    #[test]
    fn a_pause_in_the_traffic_ends_the_spinning_and_is_no_reason_to_rest() {
        let mut pacer = spinning();
        pacer.learn(Waited::SpunThenSlept(LONG));
        assert!(!pacer.wants_to_spin());
        pacer.learn(Waited::Slept(SHORT));
        assert!(pacer.wants_to_spin());
    }

    #[test]
    fn a_message_that_comes_only_after_the_spin_means_a_shared_processor() {
        let mut pacer = spinning();
        let mut total = 0;
        for attempt in 0..20 {
            pacer.learn(Waited::SpunThenSlept(SHORT));
            let rests = rests(&mut pacer);
            assert_eq!(rests, (16 << attempt).min(4096));
            total += rests;
        }
        assert!(total > 40_000, "twenty lost spins in {total} waits");
    }

    #[test]
    fn losing_the_processor_counts_even_if_the_message_is_there_afterwards() {
        let mut pacer = spinning();
        pacer.learn(Waited::Spun { preempted: true });
        assert_eq!(rests(&mut pacer), 16);
        pacer.learn(Waited::Spun { preempted: true });
        assert_eq!(rests(&mut pacer), 32);
        pacer.learn(Waited::Spun { preempted: false });
        assert!(pacer.wants_to_spin());
        pacer.learn(Waited::Spun { preempted: true });
        assert_eq!(rests(&mut pacer), 16);
    }
}
