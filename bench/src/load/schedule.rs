//! When messages are due, which of them count, and the clock for both.
//!
//! A schedule knows nothing of echoes: that is what makes the loop an open one. All of this is
//! arithmetic on the times of a plan; nothing here waits or counts.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// The most parts of a measurement. A part is a second, or several whole seconds of a long
/// measurement. Each takes 280 KiB for its histogram.
pub const PARTS_MAX: u32 = 300;
/// Turns up to which a double is exact to a half.
const TURNS_MAX: u64 = 1 << 52;

/// The monotonic clock, which timers use as well, in nanoseconds.
#[inline]
pub(super) fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// The CPU time that this thread has used, in nanoseconds.
pub(super) fn thread_cpu_ns() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// The send times of all connections. Messages are evenly spaced and the connections take turns, so
/// each connection has the same period and no two are due together. The first message is due half a
/// step after the beginning, so that a time `t` has `rate * t` messages, rounded.
#[derive(Debug, Clone, Copy)]
pub(super) struct Schedule {
    begin_ns: u64,
    connections: u64,
    /// The time from one message to the next, of whichever connection.
    step_ns: f64,
}

impl Schedule {
    /// `rate` messages a second over all connections.
    pub(super) fn new(begin_ns: u64, connections: usize, rate: f64) -> Schedule {
        Schedule { begin_ns, connections: connections as u64, step_ns: 1e9 / rate }
    }

    /// When message `number` of a connection is due; `u64::MAX` if that is beyond the clock's range.
    #[inline]
    pub(super) fn due_ns(&self, connection: usize, number: u64) -> u64 {
        self.turn_ns(number * self.connections + connection as u64)
    }

    /// Computed from the beginning and not added up, so that no error grows; a double is exact to a
    /// nanosecond for 104 days.
    #[inline]
    fn turn_ns(&self, turn: u64) -> u64 {
        self.begin_ns.saturating_add(((turn as f64 + 0.5) * self.step_ns).round() as u64)
    }

    /// How many messages a connection has in the first `turns` of all.
    pub(super) fn messages_in(&self, turns: u64, connection: usize) -> u64 {
        turns.saturating_sub(connection as u64).div_ceil(self.connections)
    }

    /// How many messages of all connections are due before a time.
    pub(super) fn turns_before(&self, time_ns: u64) -> u64 {
        let (mut low, mut high) = (0, TURNS_MAX);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.turn_ns(middle) < time_ns {
                true => low = middle + 1,
                false => high = middle,
            }
        }
        low
    }
}

/// The times between which messages count, cut into parts of equal length. The last part is up to
/// half a part longer or shorter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Window {
    pub(super) begin_ns: u64,
    pub(super) end_ns: u64,
    part_ns: u64,
}

impl Window {
    pub(super) fn new(begin_ns: u64, warm_up: Duration, duration: Duration) -> Window {
        let begin_ns = begin_ns + warm_up.as_nanos() as u64;
        let seconds = (duration.as_secs_f64() / f64::from(PARTS_MAX)).ceil().max(1.0);
        Window {
            begin_ns,
            end_ns: begin_ns + duration.as_nanos() as u64,
            part_ns: seconds as u64 * 1_000_000_000,
        }
    }

    /// The window ended early at a time. If that is before its beginning, it is empty.
    pub(super) fn ended_at(self, time_ns: u64) -> Window {
        Window { end_ns: self.end_ns.min(time_ns).max(self.begin_ns), ..self }
    }

    pub(super) fn length_ns(&self) -> u64 {
        self.end_ns - self.begin_ns
    }

    /// How many parts there are, at least one.
    pub(super) fn parts(&self) -> usize {
        ((self.length_ns() + self.part_ns / 2) / self.part_ns).max(1) as usize
    }

    /// The part of a message that was due at this time; none for the warm-up. Messages due after the
    /// end belong to the last part.
    #[inline]
    pub(super) fn part(&self, time_ns: u64) -> Option<usize> {
        let elapsed_ns = time_ns.checked_sub(self.begin_ns)?;
        Some(((elapsed_ns / self.part_ns) as usize).min(self.parts() - 1))
    }

    /// When a part begins and ends, counted from the beginning of the window.
    pub(super) fn span(&self, part: usize) -> (Duration, Duration) {
        let begin_ns = part as u64 * self.part_ns;
        let is_last = part + 1 == self.parts();
        let end_ns = if is_last { self.length_ns() } else { begin_ns + self.part_ns };
        (Duration::from_nanos(begin_ns), Duration::from_nanos(end_ns))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const SECOND_NS: u64 = 1_000_000_000;

    #[test]
    fn a_schedule_is_shifted_from_connection_to_connection_and_exact() {
        let schedule = Schedule::new(1000, 4, 3000.0);
        // Three messages take a millisecond, and thirds of it are rounded and not added up.
        assert_eq!(schedule.due_ns(0, 0), 1000 + 166_667);
        assert_eq!(schedule.due_ns(1, 0), 1000 + 500_000);
        assert_eq!(schedule.due_ns(2, 0), 1000 + 833_333);
        assert_eq!(schedule.due_ns(3, 0), 1000 + 1_166_667);
        assert_eq!(schedule.due_ns(0, 1), 1000 + 1_500_000);
        assert_eq!(schedule.due_ns(1, 3_000_000), 1000 + 4_000_000_000_000 + 500_000);
        let mut all: Vec<u64> = (0..100)
            .flat_map(|number| (0..4).map(move |connection| schedule.due_ns(connection, number)))
            .collect();
        assert!(all.is_sorted());
        all.dedup();
        assert_eq!(all.len(), 400);
    }

    #[test]
    fn messages_are_counted_as_they_are_due() {
        let begin_ns = 5 * SECOND_NS;
        for (rate, connections) in [(3000.0, 4), (0.7, 3), (1e6, 1), (123.4, 7)] {
            let schedule = Schedule::new(begin_ns, connections, rate);
            for connection in 0..connections {
                for time_ns in [0, begin_ns, begin_ns + 1, begin_ns + 987_654_321] {
                    let turns = schedule.turns_before(time_ns);
                    let count = schedule.messages_in(turns, connection);
                    assert!(count == 0 || schedule.due_ns(connection, count - 1) < time_ns);
                    assert!(schedule.due_ns(connection, count) >= time_ns);
                }
            }
        }
    }

    #[test]
    fn a_time_has_as_many_messages_as_the_rate_says() {
        let due = |rate: f64| {
            let schedule = Schedule::new(7, 16, rate);
            let turns = schedule.turns_before(7 + SECOND_NS);
            let all: u64 = (0..16).map(|connection| schedule.messages_in(turns, connection)).sum();
            assert_eq!(turns, all);
            turns
        };
        assert_eq!((due(1000.0), due(1.0), due(0.4), due(1e-11), due(1e-320)), (1000, 1, 0, 0, 0));
        assert!(due(1e12).abs_diff(1_000_000_000_000) < 1000);
        assert!(due(f64::MAX) == TURNS_MAX);
        // Further off than the clock goes.
        assert_eq!(Schedule::new(7, 1, 1e-11).due_ns(0, 0), u64::MAX);
    }

    #[test]
    fn a_window_begins_after_the_warm_up() {
        let window = Window::new(5, SECOND, 2 * SECOND);
        assert_eq!(window.part(SECOND_NS + 4), None);
        assert_eq!(window.part(SECOND_NS + 5), Some(0));
        assert_eq!(window.part(3 * SECOND_NS + 4), Some(1));
    }

    #[test]
    fn parts_are_seconds_and_the_last_has_the_rest() {
        let spans = |window: Window| -> Vec<(u128, u128)> {
            let spans = (0..window.parts()).map(|part| window.span(part));
            spans.map(|(begin, end)| (begin.as_millis(), end.as_millis())).collect()
        };
        let of = |ms| Window::new(9, SECOND, Duration::from_millis(ms));
        assert_eq!(spans(of(300)), [(0, 300)]);
        assert_eq!(spans(of(2400)), [(0, 1000), (1000, 2400)]);
        assert_eq!(spans(of(2500)), [(0, 1000), (1000, 2000), (2000, 2500)]);
        let eight = of(8000);
        assert_eq!(spans(eight), (0..8).map(|s| (s * 1000, s * 1000 + 1000)).collect::<Vec<_>>());
        let early = eight.ended_at(9 + SECOND_NS + 2_200_000_000);
        assert_eq!(spans(early), [(0, 1000), (1000, 2200)]);
        assert_eq!(spans(eight.ended_at(0)), [(0, 0)]);
        // Of an hour, a part is 12 seconds.
        assert_eq!((of(3_600_000).parts(), spans(of(3_600_000))[1]), (300, (12_000, 24_000)));
        assert!(of(604_800_000).parts() <= 300);
    }
}
