//! `ringbench compare`

use std::io::Write;
use std::time::{Duration, Instant};

use super::cpus::cpus;
use super::load::plan;
use super::output::finish;
use super::rtt::{add, cases};
use super::{Outcome, command_line};
use crate::cli::Compare;
use crate::compare::{self, Contestant};
use crate::environment::Environment;
use crate::results::{Kind, Measurement, Results, Round};
use crate::stop::Stop;
use crate::{load, rtt};

/// `ringbench compare`
///
/// # Errors
///
/// What went wrong.
pub fn compare(options: &Compare, stop: &Stop, output: &mut impl Write) -> Outcome {
    let names = if options.messages.size.is_none() { vec!["9.7.2".to_owned()] } else { vec![] };
    let [case] = &cases(&options.messages, &names)?[..] else {
        unreachable!("one case was asked for")
    };
    let cpus = cpus(&options.common)?;
    let mut results = Results::new(Kind::Compare, command_line(), Environment::here());
    if options.load.is_none() {
        cpus.pin();
    }
    if options.targets.iter().any(|target| compare::is_command(target)) {
        cpus.warn(&mut results.warnings);
    }
    let mut said: Vec<String> = Vec::new();
    let contestants: Vec<Contestant> = options
        .targets
        .iter()
        .map(|text| Contestant::new(text, &cpus.servers))
        .collect::<Result<_, _>>()?;
    let mut turn = |contestant: &Contestant, round: usize| {
        if stop.is_requested() {
            return Ok(None);
        }
        let failed = |problem: &dyn std::fmt::Display| format!("{}: {problem}", contestant.name);
        let seed = options.common.seed.wrapping_add(round as u64);
        if let Some(duration) = options.load {
            let mut plan = plan(&contestant.target, &options.traffic, &cpus, &options.common);
            // The first round does not count, which warms up enough.
            (plan.duration, plan.warm_up, plan.seed) = (duration, Duration::ZERO, seed);
            let outcome = load::run(&plan, stop, &mut |_| {}).map_err(|error| failed(&error))?;
            if let Some(problem) = outcome.problems.first() {
                return Err(failed(problem));
            }
            for warning in outcome.warnings {
                // The figures in it change from round to round.
                let begins = |known: &String| known.split(':').next() == warning.split(':').next();
                if round > 0 && !said.iter().any(begins) {
                    said.push(warning);
                }
            }
            return Ok(outcome.cut_short.is_none().then(|| whole(outcome.measurement)));
        }
        let began = Instant::now();
        let wait = options.messages.wait.wait();
        let outcome = rtt::run(&contestant.target, case, wait, seed, stop)
            .map_err(|problem| failed(&problem))?;
        if let Some(problem) = outcome.problem {
            return Err(failed(&problem));
        }
        let mut measurement =
            Measurement { description: case.description(), ..Measurement::default() };
        add(&mut measurement, case, &outcome, began.elapsed() - outcome.duration);
        Ok((outcome.latencies.count() == case.messages).then_some(measurement))
    };
    let rounds = options.rounds as usize;
    let mut compared = compare::run(&contestants, rounds, options.common.seed, &mut turn);
    if compared.problem.is_none() && !stop.is_requested() {
        compare::count_syscalls(&contestants, &mut compared.measurements, |contestant| {
            turn(contestant, 0)
        });
    }
    (results.measurements, results.ratios) = (compared.measurements, compared.ratios);
    results.warnings.extend(said);
    results.warnings.extend(compared.warning);
    results.cut_short.clone_from(&compared.problem);
    if stop.is_requested() {
        results.cut_short = Some("ended by a signal".to_owned());
    }
    results.measurements.retain(|measurement| measurement.messages > 0);
    finish(&mut results, options.common.output.as_deref(), output)?;
    match compared.problem {
        Some(problem) => Err(problem),
        None => Ok(()),
    }
}

/// A load as one round, as which it is compared.
fn whole(mut measurement: Measurement) -> Measurement {
    let seconds = measurement.rounds.iter().map(|round| round.duration_s).sum();
    measurement.rounds = vec![Round::new(0.0, seconds, &measurement.latencies)];
    measurement
}
