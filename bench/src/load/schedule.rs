//! When messages are to be sent, and the clock that says what time it is.
//!
//! A schedule knows nothing of echoes: that is what makes the loop an open one.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// The monotonic clock, which timers use as well, in nanoseconds.
#[inline]
pub(super) fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// The processor time that this thread has taken, in nanoseconds.
pub(super) fn thread_cpu_ns() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// The send times of all connections: evenly spaced over all of them, in turn, so that each has the
/// same period and no two fire together.
#[derive(Debug, Clone, Copy)]
pub(super) struct Schedule {
    /// When the first message of the first connection is due.
    pub(super) begin_ns: u64,
    connections: u64,
    /// The time from a message to the next one, of whichever connection.
    step_ns: f64,
}

impl Schedule {
    /// `rate` messages a second over all connections.
    pub(super) fn new(begin_ns: u64, connections: usize, rate: f64) -> Schedule {
        Schedule { begin_ns, connections: connections as u64, step_ns: 1e9 / rate }
    }

    /// When message `number` of a connection is due.
    #[inline]
    pub(super) fn due_ns(&self, connection: usize, number: u64) -> u64 {
        // It is counted from the begin and not added up, so that no error grows; a double is exact
        // to a nanosecond for 104 days.
        let step = number * self.connections + connection as u64;
        self.begin_ns + (step as f64 * self.step_ns).round() as u64
    }
}

/// The times between which messages count.
#[derive(Debug, Clone, Copy)]
pub(super) struct Window {
    pub(super) begin_ns: u64,
    pub(super) end_ns: u64,
}

impl Window {
    pub(super) fn new(begin_ns: u64, warm_up: Duration, duration: Duration) -> Window {
        let begin_ns = begin_ns + warm_up.as_nanos() as u64;
        Window { begin_ns, end_ns: begin_ns + duration.as_nanos() as u64 }
    }

    #[inline]
    pub(super) fn holds(&self, time_ns: u64) -> bool {
        (self.begin_ns..self.end_ns).contains(&time_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schedule_is_shifted_from_connection_to_connection_and_exact() {
        let schedule = Schedule::new(1000, 4, 3000.0);
        // Three messages take a millisecond, and thirds of it are rounded and not added up.
        assert_eq!(schedule.due_ns(0, 0), 1000);
        assert_eq!(schedule.due_ns(1, 0), 1000 + 333_333);
        assert_eq!(schedule.due_ns(2, 0), 1000 + 666_667);
        assert_eq!(schedule.due_ns(3, 0), 1000 + 1_000_000);
        assert_eq!(schedule.due_ns(0, 1), 1000 + 1_333_333);
        assert_eq!(schedule.due_ns(0, 3_000_000), 1000 + 4_000_000_000_000);
        let mut all: Vec<u64> = (0..100)
            .flat_map(|number| (0..4).map(move |connection| schedule.due_ns(connection, number)))
            .collect();
        assert!(all.is_sorted());
        all.dedup();
        assert_eq!(all.len(), 400);
    }

    #[test]
    fn a_window_begins_behind_the_warm_up() {
        let second = Duration::from_secs(1);
        let window = Window::new(5, second, 2 * second);
        assert!(!window.holds(1_000_000_004) && window.holds(1_000_000_005));
        assert!(window.holds(3_000_000_004) && !window.holds(3_000_000_005));
    }
}
