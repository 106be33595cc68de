//! What was measured, as it is written and read again: one form for every kind of measurement, from
//! which tables, pages and sums are made.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::environment::Environment;
use crate::latency::Latencies;
use crate::statistics::Estimate;

/// The version of this form; a result of another one is refused.
pub const FORMAT: u32 = 2;

/// Which command measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// One message at a time.
    Rtt,
    /// Many connections.
    Load,
    /// Several servers, in turns.
    Compare,
}

/// A result, whole.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// [`FORMAT`].
    pub format: u32,
    /// Which command measured.
    pub kind: Kind,
    /// The command line.
    pub command: Vec<String>,
    /// Where.
    pub environment: Environment,
    /// When it began, in seconds since 1970.
    pub started_at_s: f64,
    /// Whether it was ended early, and what by.
    pub cut_short: Option<String>,
    /// What to keep in mind when reading the figures, in sentences.
    pub warnings: Vec<String>,
    /// A measurement for each case, or for each target.
    pub measurements: Vec<Measurement>,
    /// What is drawn from several targets together; empty but for a comparison.
    pub ratios: Vec<Ratio>,
    /// The floor of this machine, if it was measured: the median round trip of a plain TCP echo.
    pub floor: Option<Floor>,
}

/// What was measured of one target in one case.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// What it is called in tables: a case such as 9.7.2, or a target.
    pub name: String,
    /// A sentence about it.
    pub description: String,
    /// Messages echoed.
    pub messages: u64,
    /// Messages that were sent and did not come back.
    pub lost: u64,
    /// Octets of payload echoed.
    pub payload_octets: u64,
    /// All latencies.
    pub latencies: Latencies,
    /// Parts of it, one after the other, from which the spread is seen.
    pub rounds: Vec<Round>,
    /// What it cost the server, where that can be seen.
    pub cost: Option<Cost>,
}

impl Measurement {
    /// Adds another one of the same, as a merged log would have it.
    pub fn add(&mut self, other: Measurement) {
        self.messages += other.messages;
        self.lost += other.lost;
        self.payload_octets += other.payload_octets;
        self.latencies.add(&other.latencies);
        self.rounds.extend(other.rounds);
    }

    /// Adds another one that ran at the same time: rounds with the same number become one, with the
    /// messages of both and the slower one's latencies.
    pub fn add_beside(&mut self, mut other: Measurement) {
        let others = std::mem::take(&mut other.rounds);
        for (at, round) in others.into_iter().enumerate() {
            match self.rounds.get_mut(at) {
                Some(known) => known.add_beside(&round),
                None => self.rounds.push(round),
            }
        }
        self.add(other);
    }
}

/// A part of a measurement: a round, or a second of a load.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Round {
    /// When it began, in seconds after the measurement did.
    pub begin_s: f64,
    /// How long it took, in seconds.
    pub duration_s: f64,
    /// Messages echoed in it.
    pub messages: u64,
    /// Their latencies, in nanoseconds.
    pub p50_ns: u64,
    /// Likewise.
    pub p99_ns: u64,
    /// Likewise.
    pub max_ns: u64,
}

impl Round {
    /// What a round came to.
    pub fn new(begin_s: f64, duration_s: f64, latencies: &Latencies) -> Round {
        Round {
            begin_s,
            duration_s,
            messages: latencies.count(),
            p50_ns: latencies.percentile_ns(50.0),
            p99_ns: latencies.percentile_ns(99.0),
            max_ns: latencies.max_ns(),
        }
    }

    fn add_beside(&mut self, other: &Round) {
        self.messages += other.messages;
        self.duration_s = self.duration_s.max(other.duration_s);
        self.p50_ns = self.p50_ns.max(other.p50_ns);
        self.p99_ns = self.p99_ns.max(other.p99_ns);
        self.max_ns = self.max_ns.max(other.max_ns);
    }

    /// Messages a second.
    pub fn rate(&self) -> f64 {
        if self.duration_s > 0.0 { self.messages as f64 / self.duration_s } else { 0.0 }
    }
}

/// What a measurement cost a server on this machine. A figure is there if every round had it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// CPU time of the server in user mode, in microseconds per message.
    pub user_us: Option<f64>,
    /// CPU time of the server in the kernel, in microseconds per message.
    pub system_us: Option<f64>,
    /// CPU time of the whole machine, with the client's and the kernel's own, in microseconds per
    /// message.
    pub machine_us: Option<f64>,
    /// Times that a thread of the server gave its CPU up or lost it, per message.
    pub context_switches: Option<f64>,
    /// System calls per message.
    pub syscalls: Option<f64>,
    /// Resident memory of all the server's processes at the end, in bytes.
    pub resident_bytes: u64,
}

impl Cost {
    /// CPU time of the server, in microseconds per message.
    pub fn cpu_us(&self) -> Option<f64> {
        Some(self.user_us? + self.system_us?)
    }
}

/// One figure of a target against the same of the first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ratio {
    /// The figure, such as `p50`.
    pub figure: String,
    /// The name of the measurement it is of.
    pub of: String,
    /// The name of the first.
    pub to: String,
    /// The ratio, paired by round.
    pub estimate: Estimate,
}

/// What a message costs that is no more than octets.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Floor {
    /// Both ends sleep until something comes: the median round trip, in nanoseconds.
    pub block_ns: u64,
    /// Both ends ask without pause: the same.
    pub spin_ns: u64,
}

impl Results {
    /// A result without measurements so far, of a command that began just now.
    pub fn new(kind: Kind, command: Vec<String>, environment: Environment) -> Results {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Results {
            format: FORMAT,
            kind,
            command,
            environment,
            started_at_s: now.as_secs_f64(),
            cut_short: None,
            warnings: Vec::new(),
            measurements: Vec::new(),
            ratios: Vec::new(),
            floor: None,
        }
    }

    /// Reads a result from a file.
    ///
    /// # Errors
    ///
    /// One line that names the file and says what is wrong with it.
    pub fn read(path: &Path) -> Result<Results, String> {
        let named = |problem: &dyn std::fmt::Display| format!("{}: {problem}", path.display());
        let text = fs::read_to_string(path).map_err(|error| named(&error))?;
        // A result of another version is told by its number and not by a missing field.
        let value: serde_json::Value = serde_json::from_str(&text)
            .map_err(|error| named(&format!("this is no result of ringbench: {error}")))?;
        match value["format"].as_u64() {
            Some(format) if format == u64::from(FORMAT) => {}
            Some(format) => {
                return Err(named(&format!(
                    "this result is of format {format}, and this ringbench reads {FORMAT}; use the \
                     version that wrote it"
                )));
            }
            None => return Err(named(&"this is no result of ringbench")),
        }
        serde_json::from_value(value)
            .map_err(|error| named(&format!("this is no whole result of ringbench: {error}")))
    }

    /// Writes the result to a file, as JSON.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        fs::write(path, serde_json::to_string_pretty(self)? + "\n")
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn second(us: u64, messages: u64) -> Measurement {
        let mut latencies = Latencies::default();
        for _ in 0..messages {
            latencies.record(Duration::from_micros(us));
        }
        let rounds = vec![Round::new(0.0, 1.0, &latencies)];
        Measurement { messages, latencies, rounds, ..Measurement::default() }
    }

    #[test]
    fn what_ran_at_the_same_time_has_the_rate_of_all() {
        let mut sum = second(100, 1000);
        sum.add_beside(second(300, 2000));
        assert_eq!((sum.messages, sum.latencies.count(), sum.rounds.len()), (3000, 3000, 1));
        assert_eq!(sum.rounds[0].rate(), 3000.0);
        assert!(sum.rounds[0].p50_ns >= 300_000);
        sum.add(second(100, 1));
        assert_eq!((sum.messages, sum.rounds.len()), (3001, 2));
    }
}
