//! Medians, and the intervals in which they can be expected to lie.
//!
//! The interval is that of the sign test (W. J. Conover: Practical Nonparametric Statistics, 1999,
//! section 3.2): from the k-th least to the k-th greatest value. Each value lies below the true median
//! with probability 1/2, so the binomial distribution says exactly how often such an interval holds
//! the median, whatever the distribution of the values. It only assumes that rounds are independent.
//!
//! With several ratios, one of them would soon show a difference by chance. The intervals are
//! therefore wide enough for all of them to hold at once with the wanted confidence (Bonferroni).

use serde::{Deserialize, Serialize};

/// The least confidence of an interval, or of several at once.
pub const CONFIDENCE: f64 = 0.95;
/// Values below which there is no interval: even from the least to the greatest of 5, it would hold
/// the median in 93.75 % of cases only.
pub const VALUES_MIN: usize = 6;

/// A median with its interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The median.
    pub median: f64,
    /// The number of values.
    pub rounds: usize,
    /// Where the true median can be expected; nothing where there are fewer than [`VALUES_MIN`]
    /// values.
    pub interval: Option<Interval>,
}

/// An interval for a median.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// The lower end.
    pub low: f64,
    /// The upper end.
    pub high: f64,
    /// The least probability that such an interval holds the true median.
    pub confidence: f64,
    /// The confidence that each interval needs for all of them to hold at once. It exceeds
    /// `confidence` if there are too few values.
    pub wanted: f64,
}

/// What an estimate of a ratio says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is not 1.
    Different,
    /// It may be 1.
    NotShown,
    /// There are too few values to tell.
    TooFew,
}

impl Estimate {
    /// Whether the ratio differs from 1.
    pub fn verdict(&self) -> Verdict {
        match self.interval {
            Some(Interval { low, high, .. }) if (low..=high).contains(&1.0) => Verdict::NotShown,
            Some(Interval { confidence, wanted, .. }) if confidence >= wanted => Verdict::Different,
            Some(_) | None => Verdict::TooFew,
        }
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

/// The median of `values` with its interval, one of `intervals` that are to hold at once.
pub fn estimate(values: &[f64], intervals: usize) -> Estimate {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let rounds = values.len();
    let wanted = 1.0 - (1.0 - CONFIDENCE) / intervals.max(1) as f64;
    let interval = (rounds >= VALUES_MIN).then(|| {
        let (cut, confidence) = narrowest(rounds, wanted);
        Interval { low: values[cut], high: values[rounds - 1 - cut], confidence, wanted }
    });
    Estimate { median: median(&values), rounds, interval }
}

/// How many values to leave out at either end of `values` sorted ones for the narrowest interval with
/// at least the confidence `wanted`, and its confidence; none where even all values have less.
fn narrowest(values: usize, wanted: f64) -> (usize, f64) {
    // The probability that exactly `cut` values lie below the median, as a logarithm: with many values
    // it is too small for a floating-point number.
    let mut logarithm = -(values as f64) * std::f64::consts::LN_2;
    let mut outside = 2.0 * logarithm.exp();
    let mut best = (0, 1.0 - outside);
    for cut in 1..values.div_ceil(2) {
        logarithm += ((values - cut + 1) as f64 / cut as f64).ln();
        outside += 2.0 * logarithm.exp();
        if 1.0 - outside < wanted {
            break;
        }
        best = (cut, 1.0 - outside);
    }
    best
}

/// Values that are needed for `intervals` intervals to hold at once with [`CONFIDENCE`].
pub fn values_needed(intervals: usize) -> usize {
    let wanted = 1.0 - (1.0 - CONFIDENCE) / intervals.max(1) as f64;
    (VALUES_MIN..).find(|&values| narrowest(values, wanted).1 >= wanted).unwrap_or(VALUES_MIN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    #[test]
    fn medians() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(&[]), 0.0);
    }

    #[test]
    fn too_few_values_have_no_interval() {
        assert_eq!(estimate(&[2.0; 5], 1).interval, None);
        assert_eq!(estimate(&[2.0; 5], 1).verdict(), Verdict::TooFew);
        assert_eq!(estimate(&[], 1).interval, None);
    }

    #[test]
    fn what_never_changes_has_an_interval_of_one_value() {
        let interval = estimate(&[2.0; 9], 1).interval.expect("an interval");
        assert_eq!((interval.low, interval.high), (2.0, 2.0));
    }

    /// The tables of the sign test: values, values left out at each end, confidence.
    #[test]
    fn confidences_are_those_of_the_binomial_distribution() {
        for (values, cut, confidence) in
            [(6, 0, 0.96875), (8, 0, 0.9921875), (9, 1, 0.9609375), (15, 3, 0.96484375)]
        {
            let (found, exactly) = narrowest(values, CONFIDENCE);
            assert_eq!(found, cut, "{values} values");
            assert!((exactly - confidence).abs() < 1e-12, "{values} values: {exactly}");
        }
        for values in VALUES_MIN..200 {
            assert!(narrowest(values, CONFIDENCE).1 >= CONFIDENCE, "{values} values");
        }
        // Of 10,000 values the ends lie 1.96 standard deviations of 50 from the middle.
        assert!(narrowest(10_000, CONFIDENCE).0.abs_diff(4901) <= 2);
    }

    #[test]
    fn more_intervals_need_more_values() {
        assert_eq!([1, 4, 5, 8, 15].map(values_needed), [6, 8, 8, 9, 10]);
        let values: Vec<f64> = (0..6).map(|round| 1.2 + 0.01 * f64::from(round)).collect();
        assert_eq!(estimate(&values, 1).verdict(), Verdict::Different);
        let of_many = estimate(&values, 5);
        assert_eq!(of_many.verdict(), Verdict::TooFew);
        assert_eq!(of_many.interval.map(|it| (it.low, it.high)), Some((1.2, 1.25)));
    }

    /// A value from a skewed distribution with long tails, whose median is 1.
    fn draw(random: &mut Random) -> f64 {
        let part = (random.below(1_000_000) as f64 + 0.5) / 1e6;
        (part / (1.0 - part)).powf(0.7)
    }

    /// Of 2,000 experiments whose true median is 1, the interval holds it as often as it says, within
    /// four standard deviations, and never noticeably less than wanted.
    #[test]
    fn intervals_hold_the_truth_as_often_as_they_say() {
        const EXPERIMENTS: usize = 2000;
        let mut random = Random::new(7);
        for values in [6, 7, 9, 13, 15, 23, 40] {
            let mut held = 0;
            let mut confidence = 0.0;
            for _ in 0..EXPERIMENTS {
                let sample: Vec<f64> = (0..values).map(|_| draw(&mut random)).collect();
                let interval = estimate(&sample, 1).interval.expect("an interval");
                held += usize::from((interval.low..=interval.high).contains(&1.0));
                confidence = interval.confidence;
            }
            let part = held as f64 / EXPERIMENTS as f64;
            let deviation = (confidence * (1.0 - confidence) / EXPERIMENTS as f64).sqrt();
            assert!(confidence >= CONFIDENCE, "{values} values: {confidence}");
            assert!((part - confidence).abs() < 4.0 * deviation, "{values} values: {part}");
        }
    }

    /// Two servers that are the same as the first: of 2,000 comparisons of 15 rounds and four figures
    /// each, at most 5 % show any difference.
    #[test]
    fn identical_servers_seldom_show_a_difference() {
        const EXPERIMENTS: usize = 2000;
        const RATIOS: usize = 8;
        let mut random = Random::new(11);
        let shown = (0..EXPERIMENTS).filter(|_| {
            let mut any = false;
            for _ in 0..RATIOS {
                let sample: Vec<f64> =
                    (0..15).map(|_| draw(&mut random) / draw(&mut random)).collect();
                any |= estimate(&sample, RATIOS).verdict() == Verdict::Different;
            }
            any
        });
        let part = shown.count() as f64 / EXPERIMENTS as f64;
        assert!(part < 1.0 - CONFIDENCE, "{part}");
    }

    #[test]
    fn a_difference_that_is_there_is_shown() {
        let values: Vec<f64> = (0..11).map(|round| 1.2 + 0.01 * f64::from(round % 3)).collect();
        assert_eq!(estimate(&values, 4).verdict(), Verdict::Different);
    }
}
