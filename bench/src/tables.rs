//! Results as text for a terminal.

use std::fmt::Write as _;
use std::time::Duration;

use crate::latency::PERCENTILES;
use crate::load::Progress;
use crate::results::{Kind, Measurement, Results};
use crate::statistics::{CONFIDENCE, Estimate, Interval, Verdict, median};

/// Nanoseconds as microseconds, with one decimal below 100.
pub fn us(ns: f64) -> String {
    let us = ns / 1000.0;
    match us {
        ..100.0 => format!("{us:.1}"),
        _ => format!("{us:.0}"),
    }
}

/// The whole text of a result.
pub fn page(results: &Results) -> String {
    let mut text = String::new();
    let write = |text: &mut String| -> std::fmt::Result {
        if let Some(reason) = &results.cut_short {
            writeln!(text, "CUT SHORT: {reason}\n")?;
        }
        if !results.measurements.is_empty() {
            latencies(results, text)?;
        }
        costs(results, text)?;
        ratios(results, text)?;
        if let Some(floor) = &results.floor {
            writeln!(
                text,
                "\nfloor, a plain TCP echo of 16 bytes: p50 {} µs asleep, {} µs spinning",
                us(floor.block_ns as f64),
                us(floor.spin_ns as f64)
            )?;
        }
        if !results.warnings.is_empty() {
            writeln!(text)?;
        }
        for warning in &results.warnings {
            writeln!(text, "warning: {warning}")?;
        }
        Ok(())
    };
    write(&mut text).expect("a string takes everything");
    text
}

/// The line that is shown while a load runs.
pub fn progress(progress: &Progress, duration: Duration) -> String {
    let (elapsed, whole) = (progress.elapsed.as_secs_f64(), duration.as_secs_f64());
    if progress.elapsed.is_zero() {
        return format!("warming up, {:.0} messages a second", progress.rate);
    }
    format!(
        "{elapsed:.1} of {whole:.1} s, {:.0} messages a second, p50 {} µs, p99 {} µs, errors {}",
        progress.rate,
        us(progress.p50_ns as f64),
        us(progress.p99_ns as f64),
        progress.errors
    )
}

fn latencies(results: &Results, text: &mut String) -> std::fmt::Result {
    let width = results.measurements.iter().map(|it| it.name.chars().count()).max().unwrap_or(0);
    let width = width.max(4);
    write!(text, "{:width$} {:>9} {:>6} {:>9}", "", "messages", "lost", "ms")?;
    for percent in PERCENTILES {
        write!(text, " {:>8}", format!("p{percent}"))?;
    }
    write!(text, " {:>8} {:>8}", "max", "mean")?;
    if results.floor.is_some() {
        write!(text, " {:>8} {:>8}", "/ asleep", "/ spin")?;
    }
    writeln!(text, "   (µs; ms: median round)")?;
    for measurement in &results.measurements {
        let latencies = &measurement.latencies;
        let shown = |shown: String| if latencies.count() == 0 { "-".to_owned() } else { shown };
        let durations: Vec<f64> =
            measurement.rounds.iter().map(|round| round.duration_s * 1000.0).collect();
        write!(
            text,
            "{:width$} {:>9} {:>6} {:>9}",
            measurement.name,
            measurement.messages,
            measurement.lost,
            if durations.is_empty() {
                "-".to_owned()
            } else {
                format!("{:.1}", median(&durations))
            }
        )?;
        for percent in PERCENTILES {
            write!(text, " {:>8}", shown(us(latencies.percentile_ns(percent) as f64)))?;
        }
        let [max, mean] = [latencies.max_ns() as f64, latencies.mean_ns()].map(|ns| shown(us(ns)));
        write!(text, " {max:>8} {mean:>8}")?;
        if let Some(floor) = &results.floor {
            let p50_ns = latencies.percentile_ns(50.0) as f64;
            let [asleep, spinning] = [floor.block_ns, floor.spin_ns]
                .map(|ns| shown(format!("{:.2}", p50_ns / ns as f64)));
            write!(text, " {asleep:>8} {spinning:>8}")?;
        }
        writeln!(text)?;
        lag(measurement, width, text)?;
    }
    Ok(())
}

/// How late a load sent its messages, below the latencies that include that.
fn lag(measurement: &Measurement, width: usize, text: &mut String) -> std::fmt::Result {
    let Some(load) = &measurement.load else { return Ok(()) };
    let lags = &load.lags;
    if lags.count() == 0 {
        return Ok(());
    }
    write!(text, "{:>width$} {:>9} {:>6} {:>9}", "lag", "", "", "")?;
    for percent in PERCENTILES {
        write!(text, " {:>8}", us(lags.percentile_ns(percent) as f64))?;
    }
    writeln!(text, " {:>8} {:>8}", us(lags.max_ns() as f64), us(lags.mean_ns()))
}

fn counted(figure: Option<f64>) -> String {
    figure.map_or("unknown".to_owned(), |figure| format!("{figure:.2}"))
}

fn costs(results: &Results, text: &mut String) -> std::fmt::Result {
    if results.measurements.iter().all(|measurement| measurement.cost.is_none()) {
        return Ok(());
    }
    writeln!(
        text,
        "\nserver, per message: CPU time in µs (machine: of everything on it, client included), \
         context switches, system calls; resident memory"
    )?;
    for measurement in &results.measurements {
        let Some(cost) = &measurement.cost else { continue };
        writeln!(
            text,
            "{}: CPU {} (user {}, system {}), machine {}, switches {}, calls {}; {:.1} MiB",
            measurement.name,
            counted(cost.cpu_us),
            counted(cost.user_us),
            counted(cost.system_us),
            counted(cost.machine_us),
            counted(cost.context_switches),
            counted(cost.syscalls),
            cost.resident_bytes as f64 / f64::from(1 << 20)
        )?;
    }
    Ok(())
}

fn ratios(results: &Results, text: &mut String) -> std::fmt::Result {
    if results.kind != Kind::Compare {
        return Ok(());
    }
    let Some(first) = results.ratios.first() else { return Ok(()) };
    let rounds = first.estimate.rounds;
    match first.estimate.interval {
        Some(interval) => writeln!(
            text,
            "\nratios to {}, paired by round: median of {rounds} rounds (interval, {})",
            first.to,
            confidence(&interval, results.ratios.len())
        )?,
        None => writeln!(text, "\nratios to {}, paired by round: median", first.to)?,
    }
    let width = results.ratios.iter().map(|ratio| ratio.of.chars().count()).max().unwrap_or(0);
    for ratio in &results.ratios {
        let Estimate { median, interval, .. } = ratio.estimate;
        write!(text, "{:width$}  {:12} {median:.3}", ratio.of, ratio.figure)?;
        if let Some(Interval { low, high, .. }) = interval {
            write!(text, " ({low:.3} to {high:.3})")?;
        }
        match ratio.estimate.verdict() {
            Verdict::Different => writeln!(text)?,
            Verdict::NotShown => writeln!(text, "  no difference shown")?,
            Verdict::TooFew => writeln!(text, "  too few rounds to tell")?,
        }
    }
    Ok(())
}

/// The confidence of one of `intervals` intervals, and of all of them at once.
pub fn confidence(interval: &Interval, intervals: usize) -> String {
    let percent = |part: f64| {
        // Rounded down, so that it is never said to be more than it is.
        let written = format!("{:.2}", (part * 1e4).floor() / 100.0);
        format!("{} %", written.trim_end_matches('0').trim_end_matches('.'))
    };
    let each = percent(interval.confidence);
    if intervals > 1 && interval.confidence >= interval.wanted {
        format!("{each} each, at least {} for all {intervals} at once", percent(CONFIDENCE))
    } else {
        format!("{each} each")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::environment::Environment;

    fn empty(kind: Kind) -> Results {
        Results::new(kind, Vec::new(), Environment::default())
    }

    #[test]
    fn what_has_no_messages_has_no_figures() {
        let measurement = Measurement { name: "9.7.2".to_owned(), ..Measurement::default() };
        let results = Results { measurements: vec![measurement], ..empty(Kind::Rtt) };
        let page = page(&results);
        let row = page.lines().find(|line| line.starts_with("9.7.2")).expect("a row");
        let cells: Vec<&str> = row.split_whitespace().collect();
        assert_eq!(cells, ["9.7.2", "0", "0", "-", "-", "-", "-", "-", "-", "-"]);
    }

    #[test]
    fn a_result_without_measurements_has_no_table() {
        let cut_short = Some("ended by a signal".to_owned());
        let results = Results { cut_short, ..empty(Kind::Compare) };
        assert_eq!(page(&results), "CUT SHORT: ended by a signal\n\n");
    }

    #[test]
    fn confidence_is_never_said_to_be_more_than_it_is() {
        let of = |confidence, wanted| Interval { low: 0.9, high: 1.1, confidence, wanted };
        assert_eq!(confidence(&of(0.96484375, 0.95), 1), "96.48 % each");
        let several = "99.26 % each, at least 95 % for all 4 at once";
        assert_eq!(confidence(&of(0.992_614_746, 0.9875), 4), several);
        // Too few rounds for that.
        assert_eq!(confidence(&of(0.96875, 0.9875), 4), "96.87 % each");
    }
}
