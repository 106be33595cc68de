//! A timer that outlasts many sleeps.
//!
//! A worker nearly always has something to do at some time, but seldom soon. A timer of its own would cost each sleep
//! about a hundred nanoseconds. So a far time is left to one alarm, which ends the sleep in which it rings, and only a
//! near one to the sleep itself. This file sets no timer: the engines do.

use std::time::Duration;

/// A time that is nearer than this is left to the sleep.
const NEAR: Duration = Duration::from_millis(50);

/// An alarm: the time for which it is set, on the clock of the engine.
#[derive(Debug, Default)]
pub struct Alarm(Option<Duration>);

/// How to sleep until a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sleep {
    /// Without a timer: there is no time, or the alarm rings no later.
    Untimed,
    /// With a timer of its own, for so long.
    For(Duration),
    /// Without a timer, once the alarm is set to ring after so long. Not at a time: io_uring takes that for one of
    /// the host, which differs from the time in a time namespace (time_namespaces(7)).
    SetAlarm(Duration),
}

impl Alarm {
    /// How to sleep until `until`. The clock is read only if that matters.
    #[inline]
    pub fn sleep(&mut self, until: Option<Duration>, now: impl FnOnce() -> Duration) -> Sleep {
        let Some(until) = until else { return Sleep::Untimed };
        if self.0.is_some_and(|at| at <= until) {
            return Sleep::Untimed;
        }
        let left = until.saturating_sub(now());
        if left < NEAR || self.0.is_some() {
            return Sleep::For(left);
        }
        self.0 = Some(until);
        Sleep::SetAlarm(left)
    }

    /// It has rung, or could not be set.
    pub fn clear(&mut self) {
        self.0 = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_sleeps_share_an_alarm() {
        let second = Duration::from_secs;
        let mut alarm = Alarm::default();
        assert_eq!(alarm.sleep(None, || unreachable!()), Sleep::Untimed);
        assert_eq!(alarm.sleep(Some(second(9)), || second(5)), Sleep::SetAlarm(second(4)));
        for until in [9, 10] {
            assert_eq!(alarm.sleep(Some(second(until)), || unreachable!()), Sleep::Untimed);
        }
        assert_eq!(alarm.sleep(Some(second(8)), || second(6)), Sleep::For(second(2)));
        alarm.clear();
        assert_eq!(alarm.sleep(Some(second(10)), || second(9)), Sleep::SetAlarm(second(1)));
    }

    #[test]
    fn what_is_near_or_past_is_left_to_the_sleep() {
        let millis = Duration::from_millis;
        let mut alarm = Alarm::default();
        assert_eq!(alarm.sleep(Some(millis(149)), || millis(100)), Sleep::For(millis(49)));
        assert_eq!(alarm.sleep(Some(millis(99)), || millis(100)), Sleep::For(millis(0)));
        assert_eq!(alarm.sleep(Some(millis(150)), || millis(100)), Sleep::SetAlarm(millis(50)));
    }
}
