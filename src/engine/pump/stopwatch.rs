//! How long messages stay in the server.
//!
//! All messages of a cycle have the same time: from the moment at which the worker sees what has completed to the
//! one at which it enters its ring again, which submits the echoes. A ring that sends at once has sent them by then.
//! So the clock is read twice in a cycle, whatever the number of messages, and nothing is noted about any of
//! them. A message whose work took several cycles has the time of the last of them.

use std::time::Duration;

use crate::metrics::Counters;

/// Whether it is measured how long messages stay in the server.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Timing {
    /// No.
    #[default]
    Off,
    /// Yes, at the cost of reading the clock twice in each cycle.
    On,
}

/// Measures the cycles of one worker.
#[derive(Debug, Default)]
pub(super) struct Stopwatch {
    /// When the completions of this cycle were seen, on the ring's clock.
    seen: Option<Duration>,
    /// Messages that were answered before this cycle.
    messages: u64,
}

impl Stopwatch {
    /// What has completed is seen now.
    #[inline]
    pub(super) fn saw(&mut self, now: Duration) {
        self.seen = Some(now);
    }

    /// The echoes of this cycle are given to the kernel now. The clock is read only if there are any.
    #[inline]
    pub(super) fn answered(&mut self, counters: &Counters, now: impl FnOnce() -> Duration) {
        let messages = counters.messages.value();
        let answered = messages.wrapping_sub(self.messages);
        if let Some(seen) = self.seen
            && answered > 0
        {
            self.messages = messages;
            counters.residence.add(now().saturating_sub(seen), answered);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{RESIDENCE_BOUNDS_NS, ResidenceSnapshot};

    #[test]
    fn the_messages_of_a_cycle_have_its_time() {
        let counters = Counters::default();
        let mut stopwatch = Stopwatch::default();
        let nanos = Duration::from_nanos;
        // Nothing was seen yet.
        stopwatch.answered(&counters, || unreachable!());
        stopwatch.saw(nanos(1000));
        stopwatch.answered(&counters, || unreachable!("no message"));
        stopwatch.saw(nanos(2000));
        counters.messages.add(3);
        stopwatch.answered(&counters, || nanos(2140));
        stopwatch.answered(&counters, || unreachable!("they are counted"));
        let mut times = ResidenceSnapshot::default();
        counters.residence.add_to(&mut times);
        assert_eq!(RESIDENCE_BOUNDS_NS[1], 140);
        assert_eq!((times.counts[1], times.counts.iter().sum::<u64>()), (3, 3));
        assert_eq!(times.sum_ns, 3 * 140);
    }
}
