//! Results as text for a terminal.

use std::fmt::Write as _;
use std::time::Duration;

use crate::compare::verdict;
use crate::latency::PERCENTILES;
use crate::load::Progress;
use crate::results::{Kind, Results};
use crate::statistics::median;

/// Nanoseconds as microseconds, with as many digits as mean something.
pub fn us(ns: f64) -> String {
    let us = ns / 1000.0;
    match us {
        ..100.0 => format!("{us:.1}"),
        _ => format!("{us:.0}"),
    }
}

/// All of a result.
pub fn page(results: &Results) -> String {
    let mut text = String::new();
    let write = |text: &mut String| -> std::fmt::Result {
        if let Some(reason) = &results.cut_short {
            writeln!(text, "CUT SHORT: {reason}\n")?;
        }
        latencies(results, text)?;
        costs(results, text)?;
        ratios(results, text)?;
        if let Some(floor) = &results.floor {
            writeln!(
                text,
                "\nfloor, a plain TCP echo of 16 octets: p50 {} µs asleep, {} µs spinning",
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
    writeln!(text, "   (µs; ms: a round, median)")?;
    for measurement in &results.measurements {
        let latencies = &measurement.latencies;
        let durations: Vec<f64> =
            measurement.rounds.iter().map(|round| round.duration_s * 1000.0).collect();
        write!(
            text,
            "{:width$} {:>9} {:>6} {:>9.1}",
            measurement.name,
            measurement.messages,
            measurement.lost,
            median(&durations)
        )?;
        for percent in PERCENTILES {
            write!(text, " {:>8}", us(latencies.percentile_ns(percent) as f64))?;
        }
        write!(text, " {:>8} {:>8}", us(latencies.max_ns() as f64), us(latencies.mean_ns()))?;
        if let Some(floor) = &results.floor {
            let p50_ns = latencies.percentile_ns(50.0) as f64;
            let [asleep, spinning] = [floor.block_ns, floor.spin_ns].map(|ns| p50_ns / ns as f64);
            write!(text, " {asleep:>8.2} {spinning:>8.2}")?;
        }
        writeln!(text)?;
    }
    Ok(())
}

fn counted(figure: Option<f64>) -> String {
    figure.map_or("not counted".to_owned(), |figure| format!("{figure:.2}"))
}

fn costs(results: &Results, text: &mut String) -> std::fmt::Result {
    if results.measurements.iter().all(|measurement| measurement.cost.is_none()) {
        return Ok(());
    }
    writeln!(
        text,
        "\nserver, a message: processor time in µs (machine: of everything on it, client included), context \
         switches, system calls; resident memory"
    )?;
    for measurement in &results.measurements {
        let Some(cost) = &measurement.cost else { continue };
        writeln!(
            text,
            "{}: user {:.2}, system {:.2}, machine {}, switches {:.2}, calls {}; {:.1} MiB",
            measurement.name,
            cost.user_us,
            cost.system_us,
            counted(cost.machine_us),
            cost.context_switches,
            counted(cost.syscalls),
            cost.resident_octets as f64 / f64::from(1 << 20)
        )?;
    }
    Ok(())
}

fn ratios(results: &Results, text: &mut String) -> std::fmt::Result {
    if results.kind != Kind::Compare {
        return Ok(());
    }
    if let Some(first) = results.ratios.first() {
        writeln!(text, "\nratios to {}, paired by round: median (95 % interval)", first.to)?;
    }
    let width = results.ratios.iter().map(|ratio| ratio.of.chars().count()).max().unwrap_or(0);
    for ratio in &results.ratios {
        let estimate = &ratio.estimate;
        writeln!(
            text,
            "{:width$}  {:10} {:.3} ({:.3} to {:.3})  {}",
            ratio.of,
            ratio.figure,
            estimate.median,
            estimate.low,
            estimate.high,
            verdict(estimate)
        )?;
    }
    Ok(())
}
