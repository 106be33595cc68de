//! `ringbench compare`

use std::io::Write;
use std::time::{Duration, Instant};

use super::cpus::{Cpus, cpus};
use super::load::{check, plan, verdict};
use super::output::{Files, finish};
use super::rtt::{add, cases};
use super::{ENDED_BY_SIGNAL, Failure, Outcome, command_line, tls};
use crate::candidate::Candidate;
use crate::cli::Compare;
use crate::compare::{self, Turn};
use crate::environment::Environment;
use crate::load::Event;
use crate::results::{Kind, Measurement, Results, Round};
use crate::rtt::{CLOSE_TIMEOUT, Case};
use crate::stop::Stop;
use crate::usage::Usage;
use crate::verdict::{Farewell, Farewells};
use crate::{load, rtt};

/// `ringbench compare`
///
/// # Errors
///
/// What went wrong. What was measured before is printed and written first.
pub fn compare(options: &Compare, stop: &Stop, output: &mut impl Write) -> Outcome {
    let names = if options.messages.size.is_none() { vec!["9.7.2".to_owned()] } else { vec![] };
    let [case] = &cases(&options.messages, &names)?[..] else {
        unreachable!("one case was asked for")
    };
    let cpus = cpus(&options.common)?;
    check(&options.traffic)?;
    let mut candidates = candidates(&options.targets)?;
    if let Some(trust) = tls::trust(&options.tls, candidates.iter().any(Candidate::is_over_tls))? {
        candidates.iter_mut().for_each(|candidate| candidate.trust(&trust));
    }
    let names: Vec<String> = candidates.iter().map(|it| it.name.clone()).collect();
    let files = Files::open(options.common.output.as_deref(), names.iter().map(String::as_str))?;
    let mut results = Results::new(Kind::Compare, command_line(), Environment::here());
    results.warnings.extend(tls::warning(&options.tls));
    if options.load.is_none() {
        cpus.pin();
    }
    if candidates.iter().any(Candidate::is_started_here) {
        cpus.warn(&mut results.warnings);
    }
    let plan = compare::Plan {
        rounds: options.rounds as usize,
        seed: options.common.seed,
        cpus: &cpus.servers,
        between: options.between(),
        stop,
    };
    let turns = Turns { options, case, cpus: &cpus, stop };
    let mut noted = Noted::default();
    let mut measure =
        |candidate: &Candidate, round: usize| turns.measure(candidate, round, &mut noted);
    let mut compared = compare::run(&mut candidates, &plan, &mut measure);
    if compared.problem.is_none() && !stop.is_requested() {
        let measurements = &mut compared.measurements;
        compare::count_syscalls(&mut candidates, measurements, &plan, &mut measure);
    }
    drop(candidates);
    (results.measurements, results.ratios) = (compared.measurements, compared.ratios);
    results.warnings.extend(noted.into_warnings());
    results.warnings.extend(compared.warnings);
    results.warnings.extend(stop.suspension_warning());
    results.measurements.retain(|measurement| measurement.messages > 0);
    let problem = compared.problem.filter(|_| !stop.is_requested());
    results.cut_short = match (&problem, results.measurements.is_empty()) {
        (Some(problem), _) => Some(problem.clone()),
        (None, _) if !stop.is_requested() => None,
        (None, false) => Some(ENDED_BY_SIGNAL.to_owned()),
        (None, true) => Some(format!("{ENDED_BY_SIGNAL} before the first round that counts")),
    };
    finish(&mut results, &[], files, output).outcome(problem.map_or(Ok(()), Err))
}

fn candidates(texts: &[String]) -> Result<Vec<Candidate>, Failure> {
    let mut candidates: Vec<Candidate> = Vec::new();
    for text in texts {
        let candidate = Candidate::parse(text).map_err(Failure::Usage)?;
        if candidates.iter().any(|other| other.name == candidate.name) {
            return Err(Failure::Usage(format!(
                "two targets are named {:?}; write NAME=TARGET to tell them apart",
                candidate.name
            )));
        }
        candidates.push(candidate);
    }
    Ok(candidates)
}

/// What was noticed in all rounds and does not make them invalid.
#[derive(Default)]
struct Noted {
    warnings: Vec<String>,
    /// How each candidate closed its connections.
    farewells: Vec<(String, Farewells)>,
}

impl Noted {
    /// Its figures change from round to round, but not the words before the colon.
    fn warning(&mut self, warning: String) {
        let begins = |known: &String| known.split(':').next() == warning.split(':').next();
        if !self.warnings.iter().any(begins) {
            self.warnings.push(warning);
        }
    }

    fn farewell(&mut self, name: &str, farewell: Farewell) {
        let at = self.farewells.iter().position(|(known, _)| known == name).unwrap_or_else(|| {
            self.farewells.push((name.to_owned(), Farewells::default()));
            self.farewells.len() - 1
        });
        self.farewells[at].1.note(farewell);
    }

    fn into_warnings(self) -> Vec<String> {
        let closings = self.farewells.iter().filter_map(|(name, farewells)| {
            Some(format!("{name}: {}", farewells.warning(CLOSE_TIMEOUT)?))
        });
        self.warnings.into_iter().chain(closings).collect()
    }
}

/// Measures a candidate once per round.
struct Turns<'a> {
    options: &'a Compare,
    case: &'a Case,
    cpus: &'a Cpus,
    stop: &'a Stop,
}

impl Turns<'_> {
    /// Measures round trips or a load; nothing if that was interrupted.
    fn measure(
        &self,
        candidate: &Candidate,
        round: usize,
        noted: &mut Noted,
    ) -> Result<Option<Turn>, String> {
        if self.stop.is_requested() {
            return Ok(None);
        }
        let seed = self.options.common.seed.wrapping_add(round as u64);
        match self.options.load {
            Some(duration) => self.load(candidate, duration, seed, noted),
            None => self.round_trips(candidate, seed, noted),
        }
    }

    fn load(
        &self,
        candidate: &Candidate,
        duration: Duration,
        seed: u64,
        noted: &mut Noted,
    ) -> Result<Option<Turn>, String> {
        let Turns { options, cpus, stop, .. } = self;
        let mut plan = plan(candidate.target()?, &options.traffic, cpus, &options.common);
        // The first round does not count, and is warm-up enough.
        (plan.duration, plan.warm_up, plan.seed) = (duration, Duration::ZERO, seed);
        let [mut before, mut after]: [Option<Usage>; 2] = [None, None];
        let outcome = load::run(&plan, stop, &mut |event| match event {
            Event::Opened => before = candidate.usage(),
            Event::Progress(_) => {}
            Event::Drained => after = candidate.usage(),
        });
        let outcome = outcome.map_err(|error| error.to_string())?;
        if stop.is_requested() {
            return Ok(None);
        }
        verdict(&outcome)?;
        // A round with fewer connections than the others is not the same load.
        if let Some(problem) = outcome.problems.into_iter().chain(outcome.cut_short).next() {
            return Err(problem);
        }
        outcome.warnings.into_iter().for_each(|warning| noted.warning(warning));
        Ok(Some((as_one_round(outcome.measurement), before.zip(after))))
    }

    fn round_trips(
        &self,
        candidate: &Candidate,
        seed: u64,
        noted: &mut Noted,
    ) -> Result<Option<Turn>, String> {
        let Turns { options, case, stop, .. } = self;
        let before = candidate.usage();
        let began = Instant::now();
        let target = candidate.target()?;
        let wait = options.messages.wait.wait();
        let plan = rtt::Plan { wait, seed, ..rtt::Plan::new(target, case) };
        let outcome = match rtt::run(&plan, stop) {
            Ok(outcome) => outcome,
            Err(_) if stop.is_requested() => return Ok(None),
            Err(problem) => return Err(problem.to_string()),
        };
        let after = candidate.usage();
        if stop.is_requested() {
            return Ok(None);
        }
        if let Some(problem) = outcome.problem {
            return Err(problem.to_string());
        }
        if let Some(farewell) = outcome.farewell {
            noted.farewell(&candidate.name, farewell);
        }
        let mut measurement =
            Measurement { description: case.description(), ..Measurement::default() };
        add(&mut measurement, case, &outcome, began.elapsed() - outcome.duration);
        let is_whole = outcome.latencies.count() == case.messages;
        Ok(is_whole.then(|| (measurement, before.zip(after))))
    }
}

/// The load with all its parts joined into one round, because figures are compared round by round.
fn as_one_round(mut measurement: Measurement) -> Measurement {
    let (messages, seconds) = (measurement.messages, measurement.duration_s());
    measurement.rounds =
        vec![Round { messages, ..Round::new(0.0, seconds, &measurement.latencies) }];
    measurement
}
