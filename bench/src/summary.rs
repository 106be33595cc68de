//! Percentiles, extremes, means and rates in plain numbers, so that a reader of the JSON needs no
//! decoder for the histograms. All of them follow from a [`Measurement`]; they are written and never
//! read back.

use serde::{Serialize, Serializer};

use crate::latency::Latencies;
use crate::results::Measurement;

/// A histogram in plain numbers, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Summary {
    /// How many latencies there are.
    pub count: u64,
    /// The least.
    pub min_ns: u64,
    /// The mean.
    pub mean_ns: f64,
    /// The median.
    pub p50_ns: u64,
    /// The 90th percentile.
    pub p90_ns: u64,
    /// The 99th percentile.
    pub p99_ns: u64,
    /// The 99.9th percentile.
    pub p99_9_ns: u64,
    /// The greatest.
    pub max_ns: u64,
}

impl Summary {
    /// The summary of these; nothing where there are none.
    pub fn of(latencies: &Latencies) -> Option<Summary> {
        (latencies.count() > 0).then(|| Summary {
            count: latencies.count(),
            min_ns: latencies.min_ns(),
            mean_ns: latencies.mean_ns(),
            p50_ns: latencies.percentile_ns(50.0),
            p90_ns: latencies.percentile_ns(90.0),
            p99_ns: latencies.percentile_ns(99.0),
            p99_9_ns: latencies.percentile_ns(99.9),
            max_ns: latencies.max_ns(),
        })
    }
}

/// A measurement with what follows from it.
#[derive(Serialize)]
struct Written<'a> {
    #[serde(flatten)]
    measurement: &'a Measurement,
    latency: Option<Summary>,
    /// How late a load sent its messages.
    lag: Option<Summary>,
    /// Messages echoed per second.
    rate_achieved: Option<f64>,
}

impl Written<'_> {
    fn of(measurement: &Measurement) -> Written<'_> {
        Written {
            measurement,
            latency: Summary::of(&measurement.latencies),
            lag: measurement.load.as_ref().and_then(|load| Summary::of(&load.lags)),
            rate_achieved: measurement.rate(),
        }
    }
}

/// Writes measurements with their summaries, for [`Results`](crate::results::Results).
pub(crate) fn serialize<S: Serializer>(
    measurements: &[Measurement],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(measurements.iter().map(Written::of))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::results::{LoadFigures, Round};

    fn written(measurement: &Measurement) -> serde_json::Value {
        serde_json::to_value(Written::of(measurement)).expect("JSON")
    }

    #[test]
    fn a_measurement_says_its_figures_in_plain_numbers() {
        let mut latencies = Latencies::default();
        (1..=1000).for_each(|us| latencies.record(Duration::from_micros(us)));
        let rounds = vec![Round::new(0.0, 2.0, &latencies)];
        let load = LoadFigures {
            rate_asked: Some(600.0),
            connections: 7,
            lags: latencies.clone(),
            ..LoadFigures::default()
        };
        let measurement = Measurement {
            messages: 1000,
            latencies,
            rounds,
            load: Some(load),
            ..Measurement::default()
        };
        let json = written(&measurement);
        for figures in ["latency", "lag"] {
            let near = |figure: &str, us: u64| {
                let ns = json[figures][figure].as_f64().expect(figure);
                assert!((ns / (us as f64 * 1000.0) - 1.0).abs() < 0.002, "{figure}: {ns}");
            };
            near("min_ns", 1);
            near("p50_ns", 500);
            near("p90_ns", 900);
            near("p99_ns", 990);
            near("p99_9_ns", 999);
            near("max_ns", 1000);
            assert_eq!(json[figures]["count"], 1000);
        }
        assert_eq!(json["rate_achieved"], 500.0);
        assert_eq!(json["load"]["rate_asked"], 600.0);
        assert_eq!(json["load"]["connections"], 7);
        assert_eq!(json["messages"], 1000);
        // What is derived is passed over on the way back.
        let read: Measurement = serde_json::from_value(json).expect("a measurement");
        assert_eq!(read, measurement);
    }

    #[test]
    fn what_has_no_messages_has_no_figures() {
        let json = written(&Measurement::default());
        for figure in ["latency", "lag", "rate_achieved"] {
            assert!(json[figure].is_null(), "{figure}");
        }
    }
}
