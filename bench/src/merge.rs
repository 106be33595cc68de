//! Adds results up, such as those of one load from many machines.
//!
//! Counts and histograms are added, all warnings and descriptions are kept, and [`Results::parts`]
//! records where each part came from. What cannot be added is left out, with a warning. Times are
//! shifted by when each part began, so the machines' clocks have to agree.
//!
//! This file reads and writes no files.

use std::collections::BTreeMap;

use crate::results::{Kind, LoadFigures, Measurement, Part, Results, Round};

/// A result to add, and the name of its file.
#[derive(Debug, Clone)]
pub struct Source {
    /// The file, for messages.
    pub file: String,
    /// What it holds.
    pub results: Results,
}

/// Adds all sources up.
///
/// # Errors
///
/// When they cannot be added up, in one line.
pub fn merge(mut sources: Vec<Source>) -> Result<Results, String> {
    if sources.len() == 1 {
        return Ok(sources.remove(0).results);
    }
    let Some(first) = sources.first() else { return Err("there is nothing to merge".to_owned()) };
    let (kind, environment) = (first.results.kind, first.results.environment.clone());
    if let Some(other) = sources.iter().find(|source| source.results.kind != kind) {
        return Err(format!(
            "{} and {} come from different commands and cannot be added up",
            first.file, other.file
        ));
    }
    let mut sum = Results::new(kind, first.results.command.clone(), environment);
    let starts = sources.iter().map(|source| source.results.started_at_s);
    sum.started_at_s = starts.fold(f64::INFINITY, f64::min);
    sum.warnings = warnings(&sources);
    sum.cut_short = cut_short(&sources);
    sum.parts = sources.iter().flat_map(parts_of).collect();
    let mut groups: Vec<Vec<(f64, Measurement)>> = Vec::new();
    for source in sources {
        let moved_s = source.results.started_at_s - sum.started_at_s;
        for measurement in source.results.measurements {
            let same = |group: &&mut Vec<(f64, Measurement)>| group[0].1.name == measurement.name;
            match groups.iter_mut().find(same) {
                Some(group) => group.push((moved_s, measurement)),
                None => groups.push(vec![(moved_s, measurement)]),
            }
        }
    }
    for group in groups {
        sum.measurements.push(add(kind, group, &mut sum.warnings));
    }
    Ok(sum)
}

/// Where a source came from; if it is a sum itself, where its parts did.
fn parts_of(source: &Source) -> Vec<Part> {
    let Source { file, results } = source;
    if !results.parts.is_empty() {
        return results.parts.clone();
    }
    vec![Part {
        file: file.clone(),
        command: results.command.clone(),
        environment: results.environment.clone(),
        started_at_s: results.started_at_s,
    }]
}

fn warnings(sources: &[Source]) -> Vec<String> {
    let mut warnings: Vec<String> = Vec::new();
    let mut warn = |warning: String| {
        if !warnings.contains(&warning) {
            warnings.push(warning);
        }
    };
    for (at, Source { file, results }) in sources.iter().enumerate() {
        results.warnings.iter().cloned().for_each(&mut warn);
        let earlier = &sources[..at];
        if let Some(same) = earlier.iter().find(|earlier| earlier.results == *results) {
            warn(format!("The same result twice: {file} holds what {} does.", same.file));
        }
    }
    let first = &sources[0].results;
    if sources.iter().any(|source| source.results.environment != first.environment) {
        warn("The parts were measured on different machines.".to_owned());
    }
    let is_left_out = |results: &Results| {
        let has_cost = results.measurements.iter().any(|measurement| measurement.cost.is_some());
        has_cost || !results.ratios.is_empty() || results.floor.is_some()
    };
    if sources.iter().any(|source| is_left_out(&source.results)) {
        warn("Ratios, floors and costs of the parts do not add up and are left out.".to_owned());
    }
    warnings
}

fn cut_short(sources: &[Source]) -> Option<String> {
    let reasons: Vec<String> = sources
        .iter()
        .filter_map(|Source { file, results }| {
            results.cut_short.as_ref().map(|reason| format!("{file}: {reason}"))
        })
        .collect();
    (!reasons.is_empty()).then(|| reasons.join("; "))
}

/// Adds up measurements of one name, each with the seconds from the first start to its own.
fn add(kind: Kind, group: Vec<(f64, Measurement)>, warnings: &mut Vec<String>) -> Measurement {
    let mut sum = Measurement { name: group[0].1.name.clone(), ..Measurement::default() };
    let mut descriptions: Vec<String> = Vec::new();
    let mut rounds = Vec::new();
    let mut loads = Vec::new();
    for (moved_s, mut measurement) in group {
        let parts = std::mem::take(&mut measurement.rounds);
        if let Some(load) = measurement.load.take() {
            let end_s = parts.last().map_or(0.0, |part| part.begin_s + part.duration_s);
            loads.push((moved_s..moved_s + end_s, load));
        }
        rounds.push((moved_s, parts));
        let description = std::mem::take(&mut measurement.description);
        if !descriptions.contains(&description) {
            descriptions.push(description);
        }
        sum.add(measurement);
    }
    sum.description = descriptions.join(" / ");
    sum.rounds = match kind {
        Kind::Load => side_by_side(rounds),
        Kind::Rtt | Kind::Compare => one_after_the_other(rounds),
    };
    if !loads.is_empty() {
        sum.load = Some(figures(&sum.name, loads, warnings));
    }
    sum
}

/// The figures of loads that ran at these times.
fn figures(
    name: &str,
    loads: Vec<(std::ops::Range<f64>, LoadFigures)>,
    warnings: &mut Vec<String>,
) -> LoadFigures {
    let begin_s = loads.iter().map(|(time, _)| time.start).fold(0.0, f64::max);
    let end_s = loads.iter().map(|(time, _)| time.end).fold(f64::INFINITY, f64::min);
    if begin_s >= end_s {
        warnings.push(format!(
            "The loads of {name} did not all run at the same time; the rate asked for is their sum \
             all the same."
        ));
    }
    let rate = |load: &LoadFigures| {
        load.rate_asked.map_or("max".to_owned(), |rate| format!("{rate} a second"))
    };
    let mut rates: Vec<String> = loads.iter().map(|(_, load)| rate(load)).collect();
    rates.dedup();
    if rates.len() > 1 {
        warnings.push(format!("The rates of {name} differ: {}.", rates.join(", ")));
    }
    let mut sum = LoadFigures { rate_asked: Some(0.0), ..LoadFigures::default() };
    for (_, load) in loads {
        sum.rate_asked = sum.rate_asked.zip(load.rate_asked).map(|(one, other)| one + other);
        sum.connections += load.connections;
        sum.connections_failed += load.connections_failed;
        sum.reconnects += load.reconnects;
        sum.lags.add(&load.lags);
    }
    sum
}

/// Rounds in the order of time.
fn one_after_the_other(all: Vec<(f64, Vec<Round>)>) -> Vec<Round> {
    let moved = |(moved_s, rounds): (f64, Vec<Round>)| {
        rounds.into_iter().map(move |round| Round { begin_s: round.begin_s + moved_s, ..round })
    };
    let mut rounds: Vec<Round> = all.into_iter().flat_map(moved).collect();
    rounds.sort_by(|one, other| one.begin_s.total_cmp(&other.begin_s));
    rounds
}

/// The rounds of loads that ran at the same time: rounds of the same second become one. Machines do
/// not begin at the same moment, so each load is shifted to the nearest round of the first, and its
/// rounds then match those of the others.
fn side_by_side(all: Vec<(f64, Vec<Round>)>) -> Vec<Round> {
    let length_s = |rounds: &[Round]| match rounds {
        [] => 0.0,
        [only] => only.duration_s,
        [first, second, ..] => second.begin_s - first.begin_s,
    };
    let step_s = all.iter().map(|(_, rounds)| length_s(rounds)).fold(0.0, f64::max);
    if all.len() < 2 || step_s <= 0.0 {
        return one_after_the_other(all);
    }
    let first_s = all.iter().map(|(moved_s, _)| *moved_s).fold(f64::INFINITY, f64::min);
    let mut cells: BTreeMap<i64, Round> = BTreeMap::new();
    for (moved_s, rounds) in all {
        let moved_s = first_s + ((moved_s - first_s) / step_s).round() * step_s;
        for mut round in rounds {
            round.begin_s += moved_s;
            let middle_s = round.begin_s + round.duration_s / 2.0;
            let cell = ((middle_s - first_s) / step_s).floor() as i64;
            match cells.get_mut(&cell) {
                Some(known) => join(known, &round),
                None => drop(cells.insert(cell, round)),
            }
        }
    }
    cells.into_values().collect()
}

/// Adds a round of the same time. Percentiles cannot be added, so those of the slowest are kept.
fn join(round: &mut Round, other: &Round) {
    let end_s = f64::max(round.begin_s + round.duration_s, other.begin_s + other.duration_s);
    round.begin_s = round.begin_s.min(other.begin_s);
    round.duration_s = end_s - round.begin_s;
    round.messages += other.messages;
    round.p50_ns = round.p50_ns.max(other.p50_ns);
    round.p99_ns = round.p99_ns.max(other.p99_ns);
    round.max_ns = round.max_ns.max(other.max_ns);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::environment::Environment;
    use crate::latency::Latencies;

    /// A result of rounds of a second, of 100 messages each of this latency.
    fn source(kind: Kind, file: &str, started_at_s: f64, rounds: u64, us: u64) -> Source {
        let mut second = Latencies::default();
        (0..100).for_each(|_| second.record(Duration::from_micros(us)));
        let mut latencies = Latencies::default();
        (0..rounds).for_each(|_| latencies.add(&second));
        let rounds: Vec<Round> =
            (0..rounds).map(|round| Round::new(round as f64, 1.0, &second)).collect();
        let load = LoadFigures {
            rate_asked: Some(100.0),
            connections: 4,
            lags: second,
            ..LoadFigures::default()
        };
        let measurement = Measurement {
            name: "target".to_owned(),
            description: "100 a second".to_owned(),
            messages: latencies.count(),
            latencies,
            rounds,
            load: (kind == Kind::Load).then_some(load),
            ..Measurement::default()
        };
        let mut results = Results::new(kind, vec![file.to_owned()], Environment::default());
        results.started_at_s = started_at_s;
        results.measurements.push(measurement);
        Source { file: file.to_owned(), results }
    }

    fn load(file: &str, started_at_s: f64, rounds: u64, us: u64) -> Source {
        source(Kind::Load, file, started_at_s, rounds, us)
    }

    /// Two steady loads stay one, however far apart their beginnings lie within a second.
    #[test]
    fn loads_that_ran_at_the_same_time_keep_their_rate() {
        for moved_s in [0.0, 0.25, 0.4999, 0.5, 0.75, 1.0] {
            let sources = vec![load("a", 1000.0 + moved_s, 8, 300), load("b", 1000.0, 8, 100)];
            let sum = merge(sources).expect("a sum");
            let [measurement] = &sum.measurements[..] else { panic!("{sum:?}") };
            assert_eq!((sum.started_at_s, measurement.messages), (1000.0, 1600));
            let rates: Vec<f64> = measurement.rounds.iter().map(Round::rate).collect();
            let whole = if moved_s < 0.5 { 8 } else { 7 };
            let full = rates.iter().filter(|&&rate| rate == 200.0).count();
            assert_eq!(full, whole, "{moved_s}: {rates:?}");
            assert_eq!(measurement.rounds.iter().map(|round| round.messages).sum::<u64>(), 1600);
            assert!(measurement.rounds[3].p50_ns >= 300_000);
            let figures = measurement.load.as_ref().expect("figures");
            assert_eq!((figures.rate_asked, figures.connections), (Some(200.0), 8));
            assert_eq!(figures.lags.count(), 200);
            assert_eq!(sum.warnings, Vec::<String>::new());
        }
    }

    #[test]
    fn loads_one_after_the_other_are_not_laid_on_each_other() {
        let sum = merge(vec![load("a", 0.0, 3, 100), load("b", 60.0, 3, 200)]).expect("a sum");
        let rounds = &sum.measurements[0].rounds;
        let begins: Vec<f64> = rounds.iter().map(|round| round.begin_s).collect();
        assert_eq!(begins, [0.0, 1.0, 2.0, 60.0, 61.0, 62.0]);
        assert!(sum.warnings[0].contains("did not all run at the same time"), "{:?}", sum.warnings);
    }

    #[test]
    fn longer_rounds_take_the_shorter_ones_of_their_time() {
        let mut long = load("a", 0.0, 2, 100);
        for (at, round) in long.results.measurements[0].rounds.iter_mut().enumerate() {
            (round.begin_s, round.duration_s) = (at as f64 * 2.0, 2.0);
        }
        let sum = merge(vec![long, load("b", 0.1, 4, 100)]).expect("a sum");
        let rounds = &sum.measurements[0].rounds;
        let shape: Vec<_> =
            rounds.iter().map(|it| (it.begin_s, it.duration_s, it.messages)).collect();
        assert_eq!(shape, [(0.0, 2.0, 300), (2.0, 2.0, 300)]);
    }

    #[test]
    fn rounds_of_round_trips_are_moved_by_when_they_began() {
        let later = source(Kind::Rtt, "a", 1010.5, 2, 100);
        let sum = merge(vec![later, source(Kind::Rtt, "b", 1000.0, 2, 100)]).expect("a sum");
        let rounds = &sum.measurements[0].rounds;
        let begins: Vec<f64> = rounds.iter().map(|round| round.begin_s).collect();
        assert_eq!(begins, [0.0, 1.0, 10.5, 11.5]);
    }

    #[test]
    fn nothing_is_lost() {
        let (mut one, mut other) = (load("a", 0.0, 2, 100), load("b", 0.0, 2, 200));
        one.results.cut_short = Some("stopped".to_owned());
        one.results.warnings = vec!["W1.".to_owned(), "W2.".to_owned()];
        other.results.cut_short = Some("failed".to_owned());
        other.results.warnings = vec!["W2.".to_owned(), "W3.".to_owned()];
        let measurement = &mut other.results.measurements[0];
        measurement.description = "200 a second".to_owned();
        measurement.lost = 1;
        measurement.wrong = 2;
        measurement.unsent = 3;
        measurement.unasked = 4;
        measurement.payload_bytes = 5;
        let Some(figures) = &mut measurement.load else { unreachable!() };
        (figures.rate_asked, figures.reconnects) = (Some(200.0), 6);
        figures.connections_failed = 7;
        let mut third = other.results.measurements[0].clone();
        third.name = "another".to_owned();
        other.results.measurements.push(third);
        let sum = merge(vec![one, other]).expect("a sum");
        assert_eq!(sum.cut_short.as_deref(), Some("a: stopped; b: failed"));
        assert_eq!(sum.warnings[..3], ["W1.", "W2.", "W3."]);
        assert!(sum.warnings[3].contains("100 a second, 200 a second"), "{:?}", sum.warnings);
        let [target, another] = &sum.measurements[..] else { panic!("{sum:?}") };
        assert_eq!(another.name, "another");
        assert_eq!(target.description, "100 a second / 200 a second");
        assert_eq!((target.lost, target.wrong, target.unsent, target.unasked), (1, 2, 3, 4));
        assert_eq!(target.payload_bytes, 5);
        let figures = target.load.as_ref().expect("figures");
        assert_eq!((figures.reconnects, figures.connections_failed), (6, 7));
        let files: Vec<&str> = sum.parts.iter().map(|part| part.file.as_str()).collect();
        assert_eq!(files, ["a", "b"]);
        assert_eq!(sum.parts[1].command, ["b"]);
        // A sum can be added to.
        let again = Source { file: "sum".to_owned(), results: sum };
        let sum = merge(vec![again, load("c", 0.0, 2, 100)]).expect("a sum");
        let files: Vec<&str> = sum.parts.iter().map(|part| part.file.as_str()).collect();
        assert_eq!(files, ["a", "b", "c"]);
        assert_eq!(sum.measurements[0].rounds[0].messages, 300);
    }

    #[test]
    fn what_cannot_be_added_is_refused_or_named() {
        let mixed = vec![load("a", 0.0, 1, 1), source(Kind::Rtt, "b", 0.0, 1, 1)];
        assert!(merge(mixed).expect_err("two kinds").contains("a and b"));
        let copies = vec![load("a", 0.0, 2, 1), load("b", 0.0, 2, 1)];
        let mut copies = merge(copies).expect("a sum").warnings;
        assert_eq!(copies.pop(), None);
        let one = load("a", 0.0, 2, 1);
        let copy = Source { file: "copy".to_owned(), ..one.clone() };
        let warnings = merge(vec![one, copy]).expect("a sum").warnings;
        assert!(warnings[0].contains("copy holds what a does"), "{warnings:?}");
    }
}
