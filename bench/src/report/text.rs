//! How figures and names are written on a page.

use std::time::{Duration, UNIX_EPOCH};

use crate::statistics::{Estimate, Interval, Verdict};

/// A latency in microseconds, with three or more significant digits.
pub(super) fn us(ns: f64) -> String {
    let us = ns / 1000.0;
    let decimals = match us {
        ..1.0 => 3,
        ..10.0 => 2,
        ..100.0 => 1,
        _ => 0,
    };
    grouped(us, decimals)
}

/// A number with this many decimals, and commas between thousands.
pub(super) fn grouped(value: f64, decimals: usize) -> String {
    let written = format!("{value:.decimals$}");
    let (sign, rest) = written.strip_prefix('-').map_or(("", &written[..]), |rest| ("-", rest));
    let (whole, fraction) = rest.split_at(rest.find('.').unwrap_or(rest.len()));
    let mut grouped = sign.to_owned();
    for (at, digit) in whole.chars().enumerate() {
        if at > 0 && (whole.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped + fraction
}

/// A whole number, likewise.
pub(super) fn count(value: u64) -> String {
    // A float could not hold every value.
    let digits = value.to_string();
    let groups: Vec<&str> = digits
        .as_bytes()
        .rchunks(3)
        .rev()
        .map(|group| str::from_utf8(group).expect("digits"))
        .collect();
    groups.join(",")
}

/// A ratio with its interval.
pub(super) fn ratio(Estimate { median, interval, .. }: &Estimate) -> String {
    match interval {
        Some(Interval { low, high, .. }) => format!("{median:.3} ({low:.3} to {high:.3})"),
        None => format!("{median:.3}"),
    }
}

/// An interval by itself.
pub(super) fn interval(Estimate { interval, .. }: &Estimate) -> String {
    match interval {
        Some(Interval { low, high, .. }) => format!("{low:.3} to {high:.3}"),
        None => "–".to_owned(),
    }
}

/// What a ratio says, in words.
pub(super) fn difference(estimate: &Estimate) -> String {
    match estimate.verdict() {
        Verdict::NotShown => return "no difference shown".to_owned(),
        Verdict::TooFew => return "too few rounds to tell".to_owned(),
        Verdict::Different => {}
    }
    let ratio = estimate.median;
    match ratio {
        ..1.0 => format!("{:.1} % less", (1.0 - ratio) * 100.0),
        ..2.0 => format!("{:.1} % more", (ratio - 1.0) * 100.0),
        _ => format!("{ratio:.2} times as much"),
    }
}

/// A name cut to at most `characters_max` characters, with an ellipsis if it was longer.
pub(super) fn cut(name: &str, characters_max: usize) -> String {
    if name.chars().count() <= characters_max {
        return name.to_owned();
    }
    let kept: String = name.chars().take(characters_max - 1).collect();
    kept + "…"
}

/// A date and time, given in seconds since 1970.
pub(super) fn moment(seconds: f64) -> String {
    // The last second of the year 9999.
    const SECONDS_MAX: f64 = 253_402_300_799.0;
    if !(0.0..=SECONDS_MAX).contains(&seconds) {
        return "at an unknown time".to_owned();
    }
    let moment = UNIX_EPOCH + Duration::from_secs(seconds as u64);
    humantime::format_rfc3339_seconds(moment).to_string().replace('T', " ").replace('Z', " UTC")
}

/// A command line that a shell would take.
pub(super) fn command(words: &[String]) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_./:=,@%+".contains(c);
    let quoted = words.iter().map(|word| {
        if !word.is_empty() && word.chars().all(plain) {
            word.clone()
        } else {
            format!("'{}'", word.replace('\'', r"'\''"))
        }
    });
    quoted.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// An estimate with the wanted confidence.
    pub(in crate::report) fn certain(low: f64, median: f64, high: f64) -> Estimate {
        let interval = Interval { low, high, confidence: 0.99, wanted: 0.99 };
        Estimate { median, rounds: 15, interval: Some(interval) }
    }

    #[test]
    fn latencies_have_three_digits_or_more() {
        let ns = [0.0, 1.0, 999.0, 1_234.0, 12_340.0, 123_400.0, 1_234_000.0, 1e10];
        let shown = ["0.000", "0.001", "0.999", "1.23", "12.3", "123", "1,234", "10,000,000"];
        assert_eq!(ns.map(us), shown);
    }

    #[test]
    fn thousands_are_separated() {
        assert_eq!([0, 999, 1000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(count(u64::MAX), "18,446,744,073,709,551,615");
        assert_eq!(grouped(-1234.5, 1), "-1,234.5");
    }

    #[test]
    fn a_difference_is_stated_only_if_it_is_shown() {
        let of = |low, median, high| difference(&certain(low, median, high));
        assert_eq!(of(0.98, 1.01, 1.02), "no difference shown");
        assert_eq!(of(1.1, 1.2, 1.3), "20.0 % more");
        assert_eq!(of(0.7, 0.75, 0.8), "25.0 % less");
        assert_eq!(of(2.0, 3.0, 4.0), "3.00 times as much");
        let few = Estimate { median: 2.0, rounds: 5, interval: None };
        assert_eq!(difference(&few), "too few rounds to tell");
        assert_eq!([ratio(&few), interval(&few)], ["2.000", "–"]);
    }

    #[test]
    fn names_are_cut_between_characters() {
        assert_eq!(cut("漢字漢字", 4), "漢字漢字");
        assert_eq!(cut("漢字漢字漢", 4), "漢字漢…");
    }

    #[test]
    fn impossible_dates_are_unknown() {
        assert_eq!(moment(86_400.5), "1970-01-02 00:00:00 UTC");
        for wrong in [f64::NAN, -1.0, 1e300] {
            assert_eq!(moment(wrong), "at an unknown time");
        }
    }

    #[test]
    fn commands_are_quoted_for_a_shell() {
        let words = ["ringbench", "--name", "it's", ""].map(str::to_owned);
        assert_eq!(command(&words), r"ringbench --name 'it'\''s' ''");
    }
}
