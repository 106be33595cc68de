//! The counts of a load: what each worker counts, and the totals for each part.
//!
//! A worker adds to its [`Tally`], and another thread takes the histograms out of it several times a
//! second, so that a message never waits for an addition of histograms. A message belongs to the part
//! of the measurement in which it was due, whenever its echo comes.

use std::fmt::Display;
use std::sync::Mutex;
use std::time::Duration;

use super::Progress;
use super::schedule::{Window, now_ns};
use crate::latency::Latencies;
use crate::results::Round;
use crate::verdict::Farewells;

/// Problems that are kept as sentences.
const PROBLEMS_MAX: usize = 8;
/// Empty histograms that a worker finds ready.
const SPARES: usize = 2;

/// Counts of messages. Each message that was due is in exactly one of the first four.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// The right echo came, before the load stopped waiting.
    pub echoed: u64,
    /// An echo came that differs, or that came after the echo of a later message.
    pub wrong: u64,
    /// It was sent, and no echo came.
    pub lost: u64,
    /// It was due and did not leave: its connection had failed or had no room, or the client was
    /// too far behind.
    pub unsent: u64,
    /// Messages of the server that no message asked for: a second echo, or something else.
    pub unasked: u64,
}

impl Counts {
    fn add(&mut self, other: &Counts) {
        self.echoed += other.echoed;
        self.wrong += other.wrong;
        self.lost += other.lost;
        self.unsent += other.unsent;
        self.unasked += other.unasked;
    }

    /// Messages that were due.
    pub fn due(&self) -> u64 {
        self.echoed + self.wrong + self.lost + self.unsent
    }

    /// Messages of the server that are not right echoes.
    pub fn wrong_echoes(&self) -> u64 {
        self.wrong + self.unasked
    }
}

/// The messages of a part of a measurement.
#[derive(Debug, Clone, Default)]
pub(super) struct Part {
    pub(super) echoed: u64,
    /// Latencies of echoed messages; of a lost one, how long it was waited for.
    pub(super) latencies: Latencies,
}

impl Part {
    fn add(&mut self, other: &Part) {
        self.echoed += other.echoed;
        self.latencies.add(&other.latencies);
    }
}

/// What a worker has counted so far.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// What was counted since the parts were last taken; the latest part comes last.
    parts: Vec<(usize, Part)>,
    spares: Vec<Part>,
    pub(super) counted: Counts,
    pub(super) warm_up: Counts,
    pub(super) payload_bytes: u64,
    /// Connections that failed.
    pub(super) failed: u64,
    pub(super) reconnects: u64,
    /// Of connections on which nothing was in flight when they were closed.
    pub(super) farewells: Farewells,
    /// The first few, as sentences.
    pub(super) problems: Vec<String>,
}

impl Tally {
    /// Notes a problem of a connection.
    pub(super) fn note(&mut self, connection: usize, problem: &dyn Display) {
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(format!("connection {connection}: {problem}"));
        }
    }

    /// The counts of a part, or of the warm-up.
    #[inline]
    pub(super) fn counts(&mut self, part: Option<usize>) -> &mut Counts {
        match part {
            Some(_) => &mut self.counted,
            None => &mut self.warm_up,
        }
    }

    /// Counts an echoed message.
    #[inline]
    pub(super) fn echoed(&mut self, part: Option<usize>, latency_ns: u64, bytes: usize) {
        self.counts(part).echoed += 1;
        if let Some(part) = part {
            self.payload_bytes += bytes as u64;
            let part = self.part(part);
            part.echoed += 1;
            part.latencies.record(Duration::from_nanos(latency_ns));
        }
    }

    /// Counts a lost message, which was waited for this long: its latency is at least that.
    pub(super) fn lost(&mut self, part: Option<usize>, waited_ns: u64) {
        self.counts(part).lost += 1;
        if let Some(part) = part {
            self.part(part).latencies.record(Duration::from_nanos(waited_ns));
        }
    }

    #[inline]
    fn part(&mut self, part: usize) -> &mut Part {
        let at = self.parts.iter().rposition(|(number, _)| *number == part);
        let at = at.unwrap_or_else(|| {
            self.parts.push((part, self.spares.pop().unwrap_or_default()));
            self.parts.len() - 1
        });
        &mut self.parts[at].1
    }

    /// Adds everything but the parts.
    fn add(&mut self, other: Tally) {
        self.counted.add(&other.counted);
        self.warm_up.add(&other.warm_up);
        self.payload_bytes += other.payload_bytes;
        self.failed += other.failed;
        self.reconnects += other.reconnects;
        self.farewells.add(&other.farewells);
        let room = PROBLEMS_MAX - self.problems.len();
        self.problems.extend(other.problems.into_iter().take(room));
    }
}

/// The totals of all workers.
pub(super) struct Sums {
    window: Window,
    pub(super) parts: Vec<Part>,
    pub(super) total: Part,
    /// Echoes, including those of the warm-up.
    echoes: u64,
    errors: u64,
    /// When progress was last reported, in nanoseconds, and the echoes by then.
    last: (u64, u64),
}

impl Sums {
    pub(super) fn new(window: Window) -> Sums {
        Sums {
            window,
            parts: vec![Part::default(); window.parts()],
            total: Part::default(),
            echoes: 0,
            errors: 0,
            last: (now_ns(), 0),
        }
    }

    /// Takes what was counted since the last time.
    pub(super) fn collect(&mut self, tallies: &[Mutex<Tally>]) {
        [self.echoes, self.errors] = [0, 0];
        for tally in tallies {
            // Made beforehand, so that the worker does not wait for it.
            let mut spares = vec![Part::default(); SPARES];
            let mut tally = tally.lock().expect("no worker panics");
            let taken = std::mem::take(&mut tally.parts);
            std::mem::swap(&mut tally.spares, &mut spares);
            for counts in [&tally.counted, &tally.warm_up] {
                self.echoes += counts.echoed;
                self.errors += counts.wrong_echoes() + counts.lost;
            }
            self.errors += tally.failed;
            drop(tally);
            for (part, messages) in taken {
                self.parts[part].add(&messages);
                self.total.add(&messages);
            }
        }
    }

    /// The progress now.
    pub(super) fn progress(&mut self) -> Progress {
        let now_ns = now_ns();
        let (last_ns, last_echoes) = std::mem::replace(&mut self.last, (now_ns, self.echoes));
        let interval_s = now_ns.saturating_sub(last_ns).max(1) as f64 / 1e9;
        let elapsed_ns = now_ns.min(self.window.end_ns).saturating_sub(self.window.begin_ns);
        Progress {
            elapsed: Duration::from_nanos(elapsed_ns),
            rate: (self.echoes - last_echoes) as f64 / interval_s,
            messages: self.total.echoed,
            p50_ns: self.total.latencies.percentile_ns(50.0),
            p99_ns: self.total.latencies.percentile_ns(99.0),
            errors: self.errors,
        }
    }

    /// The parts of `window`, which may end earlier than planned: when each began and ended, counted
    /// from the beginning of the window, and its messages.
    pub(super) fn into_parts(mut self, window: Window) -> Vec<(Duration, Duration, Part)> {
        let rest = self.parts.split_off(window.parts());
        let last = self.parts.last_mut().expect("at least one part");
        rest.iter().for_each(|part| last.add(part));
        let spans = (0..self.parts.len()).map(|part| window.span(part));
        spans.zip(self.parts).map(|((begin, end), part)| (begin, end, part)).collect()
    }
}

/// Adds all tallies up, without their parts.
pub(super) fn total(tallies: Vec<Mutex<Tally>>) -> Tally {
    let mut total = Tally::default();
    for tally in tallies {
        total.add(tally.into_inner().expect("no worker panics"));
    }
    total
}

/// A part as a round of results.
pub(super) fn round(begin: Duration, end: Duration, part: &Part) -> Round {
    let duration_s = (end - begin).as_secs_f64();
    // The latencies include lost messages, so their count is larger.
    let messages = part.echoed;
    Round { messages, ..Round::new(begin.as_secs_f64(), duration_s, &part.latencies) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_message_counts_in_the_part_in_which_it_was_due() {
        let window = Window::new(0, SECOND, 3 * SECOND);
        let tallies = [Mutex::new(Tally::default()), Mutex::default()];
        let mut sums = Sums::new(window);
        for (worker, due_ms) in [(0, 500), (0, 1500), (1, 1999), (1, 3999), (0, 2000)] {
            let part = window.part(due_ms * 1_000_000);
            tallies[worker].lock().expect("no panic").echoed(part, 1000, 16);
            sums.collect(&tallies);
        }
        tallies[1].lock().expect("no panic").lost(window.part(2_500_000_000), 3_000_000_000);
        sums.collect(&tallies);
        let parts: Vec<_> = sums.parts.iter().map(|it| (it.echoed, it.latencies.count())).collect();
        assert_eq!(parts, [(2, 2), (1, 2), (1, 1)]);
        assert!(sums.parts[1].latencies.max_ns() >= 3_000_000_000);
        let early = window.ended_at(2_100_000_000);
        let parts = sums.into_parts(early);
        assert_eq!(parts.len(), 1);
        assert_eq!((parts[0].1, parts[0].2.echoed), (Duration::from_millis(1100), 4));
        let total = total(tallies.into());
        assert_eq!((total.counted.echoed, total.warm_up.echoed), (4, 1));
        assert_eq!((total.counted.lost, total.payload_bytes), (1, 64));
    }
}
