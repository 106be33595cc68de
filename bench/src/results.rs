//! Results as they are written to JSON and read back: one format for every kind of measurement. Tables,
//! pages and sums are made from it.

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::environment::Environment;
use crate::latency::Latencies;
use crate::statistics::Estimate;

/// The version of this format. Results of another version are refused.
pub const FORMAT: u32 = 2;
/// No time of a result, since 1970 or since its beginning, is as long as this: some 3,000 years.
const SECONDS_MAX: f64 = 1e11;
/// No count of a result is as large as this, of which two thousand can be added up.
const COUNT_MAX: u64 = 1 << 53;

/// Which command measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Round trips, one message at a time.
    Rtt,
    /// A load on many connections.
    Load,
    /// Several servers in turn.
    Compare,
}

/// Everything that a command has measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// [`FORMAT`].
    pub format: u32,
    /// Which command measured.
    pub kind: Kind,
    /// The command line.
    pub command: Vec<String>,
    /// The machine.
    pub environment: Environment,
    /// When it began, in seconds since 1970.
    pub started_at_s: f64,
    /// Why it ended early, if it did.
    pub cut_short: Option<String>,
    /// Warnings about the figures, in sentences.
    pub warnings: Vec<String>,
    /// A measurement for each case, or for each target.
    #[serde(serialize_with = "crate::summary::serialize")]
    pub measurements: Vec<Measurement>,
    /// Ratios between targets; empty unless it is a comparison.
    pub ratios: Vec<Ratio>,
    /// The floor of this machine, if it was measured: the median round trip of a plain TCP echo.
    pub floor: Option<Floor>,
    /// The results that this one is the sum of; empty if it is none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<Part>,
}

/// A result that became a part of a sum.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// Its file.
    pub file: String,
    /// Its command line.
    pub command: Vec<String>,
    /// Where it was measured.
    pub environment: Environment,
    /// When it began, in seconds since 1970.
    pub started_at_s: f64,
}

/// The measurement of one target in one case.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// What it is called in tables: a case such as 9.7.2, or a target.
    pub name: String,
    /// A sentence about it.
    pub description: String,
    /// Messages echoed.
    pub messages: u64,
    /// Messages whose echo was wrong.
    #[serde(default)]
    pub wrong: u64,
    /// Messages that were sent and did not come back.
    pub lost: u64,
    /// Messages that were due and did not leave.
    #[serde(default)]
    pub unsent: u64,
    /// Messages of the server that no message of the client asked for.
    #[serde(default)]
    pub unasked: u64,
    /// Payload echoed, in bytes before compression.
    pub payload_bytes: u64,
    /// All latencies.
    pub latencies: Latencies,
    /// The parts of it in order of time, which show the spread.
    pub rounds: Vec<Round>,
    /// What it cost the server, if that can be read.
    pub cost: Option<Cost>,
    /// The figures that only a load has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load: Option<LoadFigures>,
}

impl Measurement {
    /// The time of all rounds together, in seconds.
    pub fn duration_s(&self) -> f64 {
        self.rounds.iter().map(|round| round.duration_s).sum()
    }

    /// Messages echoed per second over all rounds; nothing where they took no time.
    pub fn rate(&self) -> Option<f64> {
        let seconds = self.duration_s();
        (seconds > 0.0).then(|| self.messages as f64 / seconds)
    }

    /// Adds another measurement of the same target and case, whose rounds came after these.
    pub fn add(&mut self, other: Measurement) {
        self.messages += other.messages;
        self.wrong += other.wrong;
        self.lost += other.lost;
        self.unsent += other.unsent;
        self.unasked += other.unasked;
        self.payload_bytes += other.payload_bytes;
        self.latencies.add(&other.latencies);
        self.rounds.extend(other.rounds);
        match (&mut self.load, other.load) {
            (Some(load), Some(other)) => {
                load.connections_failed += other.connections_failed;
                load.reconnects += other.reconnects;
                load.lags.add(&other.lags);
            }
            (load @ None, other) => *load = other,
            (Some(_), None) => {}
        }
    }
}

/// What a load was asked for, and the figures that are not about messages.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct LoadFigures {
    /// Messages per second that were asked for; nothing with `--rate max`.
    pub rate_asked: Option<f64>,
    /// Connections that were asked for.
    pub connections: u64,
    /// Connections that could not be opened, or failed later.
    pub connections_failed: u64,
    /// How often connections were closed and opened again as planned.
    pub reconnects: u64,
    /// How late each message was sent, which its latency includes; empty for a closed loop.
    pub lags: Latencies,
}

/// A part of a measurement: a round, or a second of a load.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Round {
    /// When it began, in seconds after the start of the measurement.
    pub begin_s: f64,
    /// How long it took, in seconds.
    pub duration_s: f64,
    /// Messages echoed in it.
    pub messages: u64,
    /// The median of their latencies, in nanoseconds.
    pub p50_ns: u64,
    /// The 99th percentile of their latencies, in nanoseconds.
    pub p99_ns: u64,
    /// The longest of their latencies, in nanoseconds.
    pub max_ns: u64,
}

impl Round {
    /// A round with these latencies.
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

    /// Messages per second; 0 if the round took no time.
    pub fn rate(&self) -> f64 {
        if self.duration_s > 0.0 { self.messages as f64 / self.duration_s } else { 0.0 }
    }
}

/// What a measurement cost a server on this machine. A figure that some round lacks is left out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// CPU time of the server, in microseconds per message.
    pub cpu_us: Option<f64>,
    /// The part of it in user mode. It is counted in clock ticks, and known only from enough of them.
    pub user_us: Option<f64>,
    /// The part of it in the kernel, likewise.
    pub system_us: Option<f64>,
    /// CPU time of the whole machine, including that of the client and of kernel threads, in
    /// microseconds per message.
    pub machine_us: Option<f64>,
    /// Context switches of the server's threads per message, voluntary or not.
    pub context_switches: Option<f64>,
    /// System calls per message.
    pub syscalls: Option<f64>,
    /// Resident memory of all the server's processes at the end, in bytes.
    pub resident_bytes: u64,
}

/// The ratio of a figure of one target to that of the first target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ratio {
    /// The figure, such as `p50`.
    pub figure: String,
    /// The name of the target's measurement.
    pub of: String,
    /// The name of the first target's measurement.
    pub to: String,
    /// The ratio, paired by round.
    pub estimate: Estimate,
}

/// The round trip of a plain TCP echo on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Floor {
    /// The median with both ends sleeping until something arrives, in nanoseconds.
    pub block_ns: u64,
    /// The median with both ends polling without pause, in nanoseconds.
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
            parts: Vec::new(),
        }
    }

    /// Reads a result from a file.
    ///
    /// # Errors
    ///
    /// One line that names the file and says what is wrong with it.
    pub fn read(path: &Path) -> Result<Results, String> {
        let named = |problem: &dyn std::fmt::Display| format!("{}: {problem}", path.display());
        let text = fs::read(path).map_err(|error| named(&error))?;
        // Name the version of an old result, rather than a field that it lacks.
        let value: serde_json::Value = serde_json::from_slice(&text)
            .map_err(|error| named(&format!("not a result of ringbench: {error}")))?;
        match value["format"].as_u64() {
            Some(format) if format == u64::from(FORMAT) => {}
            Some(format) => {
                return Err(named(&format!(
                    "this result has format {format}, and this ringbench reads format {FORMAT}; use \
                     the ringbench that wrote it"
                )));
            }
            None => return Err(named(&"not a result of ringbench")),
        }
        let results: Results = serde_json::from_value(value)
            .map_err(|error| named(&format!("not a complete result of ringbench: {error}")))?;
        if !results.is_plausible() {
            return Err(named(&"not a result of ringbench: nothing measured has such numbers"));
        }
        Ok(results)
    }

    /// Whether times are times and counts can be added up.
    fn is_plausible(&self) -> bool {
        let is_time = |seconds: &f64| (0.0..SECONDS_MAX).contains(seconds);
        let parts = self.parts.iter().map(|part| part.started_at_s);
        let rounds = self.measurements.iter().flat_map(|measurement| &measurement.rounds);
        let times = rounds.clone().flat_map(|round| [round.begin_s, round.duration_s]);
        let of_rounds = rounds.map(|round| round.messages);
        let counts = self.measurements.iter().flat_map(|it| {
            let load = it.load.iter();
            let of_load =
                load.flat_map(|it| [it.connections, it.connections_failed, it.reconnects]);
            let of_messages = [it.messages, it.wrong, it.lost, it.unsent, it.unasked];
            of_messages.into_iter().chain([it.payload_bytes]).chain(of_load)
        });
        parts.chain([self.started_at_s]).chain(times).all(|seconds| is_time(&seconds))
            && counts.chain(of_rounds).all(|count| count < COUNT_MAX)
    }

    /// Writes the result as JSON.
    ///
    /// # Errors
    ///
    /// Those of `output`.
    pub fn write(&self, output: &mut impl Write) -> io::Result<()> {
        serde_json::to_writer_pretty(&mut *output, self)?;
        writeln!(output)
    }
}
