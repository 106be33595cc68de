//! Whether to spin in the next wait, and for how long.
//!
//! A [`Pacer`] is a function of how earlier waits went. It reads no clock and does not know what is
//! waited for. A *gap* is the time from the beginning of a wait, when the last reply has been sent,
//! to the arrival of the next message.

use std::time::Duration;

/// A gap this short is always worth spinning for, however little a wake-up costs.
const SPIN_MIN: Duration = Duration::from_micros(50);
/// How many wake-ups more a gap may last. A client that sleeps until it has its echo needs one
/// wake-up before it sends again, and on a virtual machine that may take twice or three times as long
/// as it was measured.
const WAKE_UPS: u32 = 4;
/// The longest spin, whatever a wake-up costs: at fewer than 2,000 messages per second a whole CPU is
/// too much for the time that spinning saves.
const SPIN_MAX: Duration = Duration::from_micros(500);
/// What a wake-up is taken to cost where it cannot be measured: a typical virtual machine.
const WAKE_UP_TYPICAL: Duration = Duration::from_micros(25);

/// What each sleep adds to the time that may be spun in vain, and at most which part of its length. A
/// message for which a thread sleeps costs 20 to 30 µs of CPU time, so this is a few per cent of it,
/// and at most one part in fifty of the time.
const EARNED_BY_SLEEP: Duration = Duration::from_micros(1);
const EARNED_PART: u32 = 50;
/// How many of the longest spins may be in vain at once: a client may be late now and then.
const CREDIT_SPINS: u32 = 4;
/// The price of a spin in vain doubles with each in a row up to this many times, to 8 times its
/// length. More would delay the next attempt, and the traffic may have changed.
const DOUBLINGS_MAX: u32 = 3;

/// How long a worker does not spin after others needed its CPU: at first, and at most.
const REST_MIN: Duration = Duration::from_millis(5);
const REST_MAX: Duration = Duration::from_secs(1);

/// The limits of a [`Pacer`] on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// The longest spin.
    pub spin_max: Duration,
    /// How long it takes to wake a sleeping thread.
    pub wake_up: Duration,
}

impl Pace {
    /// The limits where a wake-up takes `wake_up`, if that is known. Without `spin_max` the longest
    /// spin follows from it: a message that is further away than a few wake-ups is not worth it.
    pub fn new(spin_max: Option<Duration>, wake_up: Option<Duration>) -> Pace {
        let wake_up = wake_up.unwrap_or(WAKE_UP_TYPICAL);
        let learnt = (SPIN_MIN + wake_up * WAKE_UPS).min(SPIN_MAX);
        Pace { spin_max: spin_max.unwrap_or(learnt), wake_up }
    }
}

/// How one wait went. A wait that a deadline ended says nothing about the traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waited {
    /// A message came after this long, while spinning.
    Spun(Duration),
    /// A message came while sleeping, and the thread was awake after this long.
    Slept(Duration),
    /// None came while spinning, but one did in the sleep that followed.
    SpunInVain {
        /// The time spun.
        spun: Duration,
        /// The time slept, until the thread was awake.
        slept: Duration,
    },
}

/// Decides before each wait whether to spin, from how the waits before it went.
///
/// It spins if the last message came soon enough, for as long as messages lately took, and only
/// while that pays: a spin that finds its message earns the wake-up that it saved, one that finds
/// nothing costs its length, and twice as much each time in a row. Each sleep earns a little, so that
/// a worker in debt tries again after a time. After others needed its CPU it rests for a time, and
/// twice as long if the next attempt does not go well for as long.
#[derive(Debug)]
pub struct Pacer {
    pace: Pace,
    gap: Option<Gap>,
    expects_soon: bool,
    /// What may be spun in vain; below zero it is a debt.
    credit_ns: i64,
    in_vain: u32,
    rest: Duration,
    rests_until: Duration,
}

impl Pacer {
    /// A pacer that knows nothing of the traffic yet.
    pub fn new(pace: Pace) -> Pacer {
        Pacer {
            pace,
            gap: None,
            expects_soon: false,
            credit_ns: credit_ns_max(pace),
            in_vain: 0,
            rest: Duration::ZERO,
            rests_until: Duration::ZERO,
        }
    }

    /// How long to spin in the wait that begins `now`; `None` to sleep at once.
    #[inline]
    pub fn window(&self, now: Duration) -> Option<Duration> {
        let gap = self.gap.filter(|_| self.expects_soon)?;
        if self.credit_ns < 0 || now < self.rests_until {
            return None;
        }
        Some((gap.longest() + self.pace.wake_up).max(SPIN_MIN).min(self.pace.spin_max))
    }

    /// Learns from a wait.
    #[inline]
    pub fn learn(&mut self, waited: Waited) {
        match waited {
            Waited::Spun(after) => {
                self.in_vain = 0;
                self.earn(self.pace.wake_up);
                self.arrived(after);
            }
            Waited::Slept(time) => {
                self.earn(EARNED_BY_SLEEP.min(time / EARNED_PART));
                self.arrived(time.saturating_sub(self.pace.wake_up));
            }
            Waited::SpunInVain { spun, slept } => {
                self.credit_ns -= nanoseconds(spun) << self.in_vain;
                self.in_vain = (self.in_vain + 1).min(DOUBLINGS_MAX);
                self.arrived((spun + slept).saturating_sub(self.pace.wake_up));
            }
        }
    }

    /// Others needed the CPU, in a wait that ended `now`.
    #[cold]
    pub fn leave_cpu(&mut self, now: Duration) {
        let went_well = now.saturating_sub(self.rests_until) > self.rest;
        self.rest = if went_well { REST_MIN } else { (self.rest * 2).clamp(REST_MIN, REST_MAX) };
        self.rests_until = now + self.rest;
    }

    fn arrived(&mut self, gap: Duration) {
        self.expects_soon = gap <= self.pace.spin_max;
        if self.expects_soon {
            self.gap = Some(self.gap.map_or(Gap::first(gap), |known| known.then(gap)));
        }
    }

    fn earn(&mut self, time: Duration) {
        self.credit_ns = (self.credit_ns + nanoseconds(time)).min(credit_ns_max(self.pace));
    }
}

fn credit_ns_max(pace: Pace) -> i64 {
    nanoseconds(pace.spin_max * CREDIT_SPINS)
}

fn nanoseconds(time: Duration) -> i64 {
    // No wait of a worker lasts 292 years, and no debt adds up to that.
    time.as_nanos() as i64
}

/// How long gaps lately were, as TCP estimates its round-trip time (RFC 6298, section 2).
#[derive(Debug, Clone, Copy)]
struct Gap {
    mean: Duration,
    deviation: Duration,
}

impl Gap {
    fn first(gap: Duration) -> Gap {
        Gap { mean: gap, deviation: gap / 2 }
    }

    fn then(self, gap: Duration) -> Gap {
        Gap {
            mean: (self.mean * 7 + gap) / 8,
            deviation: (self.deviation * 3 + self.mean.abs_diff(gap)) / 4,
        }
    }

    /// Hardly any gap is longer.
    fn longest(self) -> Duration {
        self.mean + self.deviation * 4
    }
}
