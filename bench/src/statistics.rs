//! Medians, and the intervals in which they can be expected to lie.
//!
//! The interval is the percentile bootstrap of Efron (B. Efron, R. J. Tibshirani: An Introduction to
//! the Bootstrap, 1993, chapter 13): the rounds are drawn again with replacement, many times, and
//! the middle 95 % of the medians that come out are taken. It supposes nothing about how the values
//! are distributed, only that rounds do not depend on each other.

use serde::{Deserialize, Serialize};

use crate::random::Random;

/// How often the rounds are drawn again.
const RESAMPLES: usize = 10_000;
/// The part of the medians that lies in the interval.
const CONFIDENCE: f64 = 0.95;

/// A median with its interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The median of the rounds.
    pub median: f64,
    /// The lower end of the 95 % interval.
    pub low: f64,
    /// Its upper end.
    pub high: f64,
}

impl Estimate {
    /// Whether the interval holds `value`, so that no difference from it is shown.
    pub fn holds(&self, value: f64) -> bool {
        (self.low..=self.high).contains(&value)
    }
}

/// The median; of an even number, the mean of the middle two. 0 of none.
pub fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        odd if odd % 2 == 1 => values[odd / 2],
        even => (values[even / 2 - 1] + values[even / 2]) / 2.0,
    }
}

/// The median of `values` with its interval. The draws are the same for the same `seed`.
pub fn bootstrap(values: &[f64], seed: u64) -> Estimate {
    let mut random = Random::new(seed);
    let mut medians: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let draw: Vec<f64> =
                values.iter().map(|_| values[random.below(values.len() as u64) as usize]).collect();
            median(&draw)
        })
        .collect();
    medians.sort_by(f64::total_cmp);
    let at = |part: f64| medians[((RESAMPLES - 1) as f64 * part).round() as usize];
    let tail = (1.0 - CONFIDENCE) / 2.0;
    Estimate { median: median(values), low: at(tail), high: at(1.0 - tail) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(&[]), 0.0);
    }

    #[test]
    fn what_never_changes_has_an_interval_of_one_value() {
        let estimate = bootstrap(&[2.0; 9], 1);
        assert_eq!((estimate.low, estimate.median, estimate.high), (2.0, 2.0, 2.0));
    }

    /// Of many experiments whose true median is 1, the interval holds it in about 95 of 100.
    #[test]
    fn the_interval_holds_the_truth_about_as_often_as_it_says() {
        let mut random = Random::new(7);
        let mut held = 0;
        for experiment in 0..200 {
            let values: Vec<f64> =
                (0..15).map(|_| 0.9 + 0.2 * random.below(1_000_001) as f64 / 1e6).collect();
            held += usize::from(bootstrap(&values, experiment).holds(1.0));
        }
        assert!((175..=200).contains(&held), "{held} of 200");
    }

    #[test]
    fn a_difference_that_is_there_is_shown() {
        let values: Vec<f64> = (0..11).map(|round| 1.2 + 0.01 * f64::from(round % 3)).collect();
        let estimate = bootstrap(&values, 3);
        assert!(!estimate.holds(1.0) && estimate.holds(1.21), "{estimate:?}");
    }
}
