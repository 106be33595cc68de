//! Latencies in fixed memory: a histogram with three significant digits from 1 ns to an hour, and the
//! formats in which other tools read it.
//!
//! The formats: the percentile distribution for HdrHistogram's plotters (`.hgrm`), the interval log
//! for its log analysers (`.hlog`), CSV, and, within our own JSON, the compressed binary form (V2,
//! deflated) in base64.

use std::io::{self, Write};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as BASE64;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};
use hdrhistogram::serialization::{Deserializer, Serializer, V2DeflateSerializer};
use hdrhistogram::{Counter, Histogram};
use serde::{Deserialize, Serialize};

/// The greatest latency recorded, in nanoseconds: an hour. A longer one counts as this.
pub const LATENCY_NS_MAX: u64 = 3_600_000_000_000;
/// Significant digits.
const DIGITS: u8 = 3;
/// The percentiles in tables and on pages.
pub const PERCENTILES: [f64; 4] = [50.0, 90.0, 99.0, 99.9];

/// A histogram of latencies, in nanoseconds.
#[derive(Debug, Clone, PartialEq)]
pub struct Latencies(Histogram<u64>);

impl Default for Latencies {
    fn default() -> Self {
        let histogram = Histogram::new_with_bounds(1, LATENCY_NS_MAX, DIGITS);
        Latencies(histogram.expect("bounds that HdrHistogram allows"))
    }
}

impl Latencies {
    /// Adds a latency.
    #[inline]
    pub fn record(&mut self, latency: Duration) {
        self.0.saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX).max(1));
    }

    /// Adds all latencies of `others`.
    pub fn add(&mut self, others: &Latencies) {
        self.0.add(&others.0).expect("the same bounds");
    }

    /// How many latencies there are.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The percentile in nanoseconds: the least latency that `percent` per cent of all do not exceed; 0
    /// where there are none.
    pub fn percentile_ns(&self, percent: f64) -> u64 {
        let count = self.count() as f64;
        // 99.9 is not exact in binary: without rounding, rank 1998 of 2000 would become 1999.
        let rank = ((count * percent / 100.0 * 1e6).round() / 1e6).ceil().max(1.0);
        // The middle of the rank, for the same reason.
        if self.0.is_empty() { 0 } else { self.0.value_at_quantile((rank - 0.5) / count) }
    }

    /// The greatest, in nanoseconds; 0 where there are none.
    pub fn max_ns(&self) -> u64 {
        if self.0.is_empty() { 0 } else { self.0.max() }
    }

    /// The least, in nanoseconds; 0 where there are none.
    pub fn min_ns(&self) -> u64 {
        if self.0.is_empty() { 0 } else { self.0.min() }
    }

    /// The mean, in nanoseconds.
    pub fn mean_ns(&self) -> f64 {
        self.0.mean()
    }

    /// Whether at least ten latencies lie beyond a percentile, so that it does not rest on a few outliers.
    pub fn supports(&self, percent: f64) -> bool {
        self.count() as f64 * (100.0 - percent) / 100.0 >= 10.0 - 1e-6
    }

    /// Points of the distribution: the share of latencies, below 1, and the latency in nanoseconds that
    /// they do not exceed. There are five points for each halving of the rest.
    pub fn distribution(&self) -> Vec<(f64, u64)> {
        let steps = self.0.iter_quantiles(5);
        steps.map(|step| (step.quantile_iterated_to(), step.value_iterated_to())).collect()
    }

    /// The counts of all latencies that occurred, in nanoseconds, in ascending order.
    pub fn counts(&self) -> Vec<(u64, u64)> {
        let recorded = self.0.iter_recorded();
        recorded.map(|step| (step.value_iterated_to(), step.count_at_value())).collect()
    }

    /// Writes the percentile distribution as HdrHistogram prints it, in microseconds.
    ///
    /// # Errors
    ///
    /// Those of `output`.
    pub fn write_hgrm(&self, output: &mut impl Write) -> io::Result<()> {
        writeln!(
            output,
            "{:>12} {:>14} {:>10} {:>14}\n",
            "Value", "Percentile", "TotalCount", "1/(1-Percentile)"
        )?;
        let us = |ns: f64| ns / 1000.0;
        for step in self.0.iter_quantiles(5) {
            let (value, part) = (us(step.value_iterated_to() as f64), step.quantile_iterated_to());
            let count = self.0.count_between(0, step.value_iterated_to());
            if part < 1.0 {
                let rest = 1.0 / (1.0 - part);
                writeln!(output, "{value:12.3} {part:2.12} {count:10} {rest:14.2}")?;
            } else {
                writeln!(output, "{value:12.3} {part:2.12} {count:10}")?;
            }
        }
        writeln!(
            output,
            "#[Mean    = {:12.3}, StdDeviation   = {:12.3}]",
            us(self.mean_ns()),
            us(self.0.stdev())
        )?;
        writeln!(
            output,
            "#[Max     = {:12.3}, Total count    = {:12}]",
            us(self.max_ns() as f64),
            self.count()
        )?;
        writeln!(
            output,
            "#[Buckets = {:12}, SubBuckets     = {:12}]",
            self.0.buckets(),
            1 << (64 - (2 * 10u64.pow(DIGITS.into()) - 1).leading_zeros())
        )
    }

    /// Writes CSV: `latency_ns,count`, a line for each latency that occurred.
    ///
    /// # Errors
    ///
    /// Those of `output`.
    pub fn write_csv(&self, output: &mut impl Write) -> io::Result<()> {
        writeln!(output, "latency_ns,count")?;
        for (latency_ns, count) in self.counts() {
            writeln!(output, "{latency_ns},{count}")?;
        }
        Ok(())
    }

    fn to_base64(&self) -> String {
        let mut bytes = Vec::new();
        V2DeflateSerializer::new()
            .serialize(&self.0, &mut bytes)
            .expect("a vector takes all bytes");
        BASE64.encode(bytes)
    }

    fn from_base64(text: &str) -> Result<Latencies, String> {
        let bytes = BASE64.decode(text).map_err(|error| error.to_string())?;
        let read: Histogram<u64> = Deserializer::new()
            .deserialize(&mut &bytes[..])
            .map_err(|error| format!("not a histogram: {error:?}"))?;
        // A histogram by another tool may reach further than ours.
        let mut latencies = Latencies::default();
        for step in read.iter_recorded() {
            let value = step.value_iterated_to().max(1);
            latencies.0.saturating_record_n(value, step.count_at_value().as_u64());
        }
        Ok(latencies)
    }
}

impl Serialize for Latencies {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.to_base64())
    }
}

impl<'de> Deserialize<'de> for Latencies {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl serde::de::Visitor<'_> for Text {
            type Value = Latencies;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a histogram of HdrHistogram, V2 and deflated, in base64")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Latencies, E> {
                Latencies::from_base64(text).map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Text)
    }
}

/// Writes the interval log of a measurement that began at `begin`. Each of `intervals` says when it
/// began and ended, counted from `begin`, and its latencies.
///
/// # Errors
///
/// Those of `output`.
pub fn write_hlog<'a>(
    output: &mut impl Write,
    tag: &str,
    begin: SystemTime,
    intervals: impl IntoIterator<Item = (Duration, Duration, &'a Latencies)>,
) -> io::Result<()> {
    let mut serializer = V2DeflateSerializer::new();
    // A tag cannot contain what separates the fields of a log.
    let tag: String =
        tag.chars().map(|c| if c == ',' || c.is_whitespace() { '_' } else { c }).collect();
    let tag = Tag::new(&tag).expect("no comma and no white space");
    let failed = |error| io::Error::other(format!("cannot write the interval log: {error:?}"));
    let mut log = IntervalLogWriterBuilder::new()
        .add_comment("ringbench, latencies in nanoseconds")
        .with_start_time(begin)
        .with_base_time(begin)
        .with_max_value_divisor(1e6)
        .begin_log_with(output, &mut serializer)?;
    for (from, to, latencies) in intervals {
        log.write_histogram(&latencies.0, from, to - from, Some(tag))
            .map_err(|e| failed(format!("{e:?}")))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn thousand() -> Latencies {
        let mut latencies = Latencies::default();
        for us in 1..=1000 {
            latencies.record(Duration::from_micros(us));
        }
        latencies
    }

    #[test]
    fn percentiles_have_three_digits() {
        let latencies = thousand();
        assert_eq!(latencies.count(), 1000);
        for (percent, us) in [(50.0, 500), (90.0, 900), (99.0, 990), (100.0, 1000)] {
            let ns = latencies.percentile_ns(percent);
            assert!(ns.abs_diff(us * 1000) <= us, "{percent}: {ns}");
        }
        assert!(latencies.max_ns().abs_diff(1_000_000) <= 1000);
    }

    #[test]
    fn a_percentile_has_the_rank_that_it_says() {
        let mut latencies = Latencies::default();
        for us in 1..=2000 {
            latencies.record(Duration::from_nanos(us));
        }
        for (percent, ns) in [(0.0, 1), (50.0, 1000), (99.0, 1980), (99.9, 1998), (100.0, 2000)] {
            assert_eq!(latencies.percentile_ns(percent), ns, "{percent}");
        }
        assert_eq!(Latencies::default().percentile_ns(50.0), 0);
    }

    #[test]
    fn what_is_too_long_counts_as_the_longest() {
        let mut latencies = Latencies::default();
        latencies.record(Duration::from_secs(100_000));
        latencies.record(Duration::ZERO);
        assert_eq!(latencies.count(), 2);
        assert!(latencies.max_ns() >= LATENCY_NS_MAX);
    }

    #[test]
    fn a_percentile_needs_ten_beyond_it() {
        let latencies = thousand();
        assert!(latencies.supports(99.0));
        assert!(!latencies.supports(99.9));
    }

    #[test]
    fn a_result_comes_back_as_it_was_written() {
        let latencies = thousand();
        let text = serde_json::to_string(&latencies).expect("a string");
        let read: Latencies = serde_json::from_str(&text).expect("a histogram");
        assert_eq!(read, latencies);
        assert!(serde_json::from_str::<Latencies>("\"nonsense\"").is_err());
        assert!(serde_json::from_str::<Latencies>("\"bm9uc2Vuc2U=\"").is_err());
    }

    #[test]
    fn the_distribution_file_ends_with_the_sums() {
        let mut bytes = Vec::new();
        thousand().write_hgrm(&mut bytes).expect("memory");
        let text = String::from_utf8(bytes).expect("text");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0].split_whitespace().next(), Some("Value"));
        let last = lines.iter().rfind(|line| !line.starts_with('#')).expect("lines");
        let fields: Vec<f64> =
            last.split_whitespace().map(|field| field.parse().expect("a number")).collect();
        assert_eq!(fields[1..], [1.0, 1000.0]);
        assert!(text.contains("Total count    =         1000]"), "{text}");
    }

    #[test]
    fn the_csv_counts_all() {
        let mut bytes = Vec::new();
        thousand().write_csv(&mut bytes).expect("memory");
        let text = String::from_utf8(bytes).expect("text");
        let sum: u64 = text
            .lines()
            .skip(1)
            .map(|line| {
                line.split_once(',').expect("two fields").1.parse::<u64>().expect("a count")
            })
            .sum();
        assert_eq!(sum, 1000);
    }

    #[test]
    fn the_interval_log_has_an_interval_a_line() {
        let latencies = thousand();
        let second = Duration::from_secs(1);
        let intervals = [(Duration::ZERO, second, &latencies), (second, 2 * second, &latencies)];
        let mut bytes = Vec::new();
        write_hlog(&mut bytes, "a, b", SystemTime::UNIX_EPOCH, intervals).expect("memory");
        let text = String::from_utf8(bytes).expect("text");
        let tagged: Vec<&str> = text.lines().filter(|line| line.starts_with("Tag=a__b,")).collect();
        assert_eq!(tagged.len(), 2, "{text}");
        assert!(tagged[1].starts_with("Tag=a__b,1.000,1.000,"), "{text}");
    }
}
