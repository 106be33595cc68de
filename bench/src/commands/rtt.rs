//! `ringbench rtt`

use std::io::Write;
use std::time::{Duration, Instant, SystemTime};

use ringecho::cpus;

use super::cpus::{Cpus, cpus};
use super::floor::calibrate;
use super::output::{Files, finish};
use super::{ENDED_BY_SIGNAL, Failure, Outcome, command_line, tls};
use crate::case_report::{self, CaseReport};
use crate::cli::{Messages, Rtt};
use crate::environment::Environment;
use crate::results::{Kind, Measurement, Results, Round};
use crate::rtt::report::{Run, report};
use crate::rtt::{self, CLOSE_TIMEOUT, Case, Plan};
use crate::server::{Launch, Ready, Server, program};
use crate::stop::Stop;
use crate::target::Target;
use crate::verdict::Farewells;

/// `ringbench rtt`
///
/// # Errors
///
/// What went wrong. What was measured before is printed first.
pub fn rtt(options: &Rtt, stop: &Stop, output: &mut impl Write) -> Outcome {
    let mut cases = cases(&options.messages, &options.case)?;
    if options.histogram && cases.len() != 1 {
        return Err(Failure::Usage(
            "--histogram needs a single case; add --case 9.7.2 or --size 16".to_owned(),
        ));
    }
    let is_over_tls = options.target.as_ref().is_some_and(|target| target.tls.is_some());
    let trust = tls::trust(&options.tls, is_over_tls)?;
    let cpus = cpus(&options.common)?;
    let mut results = Results::new(Kind::Rtt, command_line(), Environment::here());
    results.warnings.extend(tls::warning(&options.tls));
    cpus.pin();
    if options.target.is_none() {
        cpus.warn(&mut results.warnings);
    }
    if options.target.as_ref().is_some_and(|target| target.websocket.is_none()) {
        // In a stream of bytes, an empty message cannot be seen.
        cases.retain(|case| case.payload_bytes > 0);
        if cases.is_empty() {
            return Err(Failure::Usage(
                "tcp:// has no empty messages; give a --size above 0".to_owned(),
            ));
        }
    }
    let names = cases.iter().map(|case| case.name.as_str());
    let files = Files::open(options.common.output.as_deref(), names)?;
    if let Some(directory) = &options.report {
        case_report::prepare(directory)
            .map_err(|error| format!("cannot write to {}: {error}", directory.display()))?;
    }
    if options.calibrate {
        results.floor = match calibrate(&cpus.servers, options.common.seed, stop) {
            // The rounds below end at once too, and report it.
            Err(_) if stop.is_requested() => None,
            floor => Some(floor?),
        };
    }
    let (mut target, _sibling) = target_of(options, &cpus, stop)?;
    if let Some(trust) = &trust {
        target = target.trusting(trust);
    }
    results.measurements = cases.iter().map(unmeasured).collect();
    let mut rounds = Rounds {
        options,
        target: &target,
        stop,
        begin: Instant::now(),
        farewells: Farewells::default(),
        reports: Vec::new(),
    };
    let ending = rounds.run(&cases, &mut results.measurements);
    results.measurements.retain(|measurement| measurement.messages > 0);
    results.cut_short = ending.cut_short(&results.measurements);
    results.warnings.extend(rounds.farewells.warning(CLOSE_TIMEOUT));
    results.warnings.extend(stop.suspension_warning());
    let mut problems = finish(&mut results, &[], files, output);
    if let (Some(directory), [first, ..]) = (&options.report, &rounds.reports[..]) {
        let written = case_report::write(directory, &first.agent, &rounds.reports);
        problems.note(
            written.map_err(|error| format!("cannot write to {}: {error}", directory.display())),
        );
    }
    if options.histogram
        && let [measurement] = results.measurements.as_slice()
    {
        let histogram = writeln!(output).and_then(|()| measurement.latencies.write_hgrm(output));
        problems.note_standard_output(histogram.and_then(|()| output.flush()));
    }
    problems.outcome(match ending {
        Ending::Failed(problem) => Err(problem),
        Ending::Whole | Ending::Stopped => Ok(()),
    })
}

/// A case before its first round.
fn unmeasured(case: &Case) -> Measurement {
    let (name, description) = (case.name.clone(), case.description());
    Measurement { name, description, ..Measurement::default() }
}

/// The target, and its server if that is started here.
fn target_of(options: &Rtt, cpus: &Cpus, stop: &Stop) -> Result<(Target, Option<Server>), String> {
    if let Some(target) = &options.target {
        return Ok((target.clone(), None));
    }
    let sibling = start_sibling(&cpus.servers, stop)?;
    let target = format!("ws://{}/", sibling.address()).parse()?;
    Ok((target, Some(sibling)))
}

/// Starts the ringecho in the directory of this program, on these CPUs, or on any if there are none.
pub(super) fn start_sibling(cpus: &[usize], stop: &Stop) -> Result<Server, String> {
    let program = program("ringecho");
    if !program.exists() {
        return Err(format!(
            "there is no {}; build it (cargo build --release --workspace) or write a target",
            program.display()
        ));
    }
    let program = program.display().to_string();
    let words = [&program, "--listen", "127.0.0.1:0", "--workers", "1"];
    let mut words = words.map(ToOwned::to_owned).to_vec();
    if !cpus.is_empty() {
        words.extend(["--cpus".to_owned(), cpus::list(cpus)]);
    }
    Server::start(Launch { words: &words, cpus, stop }, Ready::Prints)
}

/// The cases that the options choose.
pub(super) fn cases(messages: &Messages, names: &[String]) -> Result<Vec<Case>, Failure> {
    if let Some(bytes) = messages.size {
        return Ok(vec![Case {
            name: format!("{bytes} bytes"),
            payload_bytes: bytes as usize,
            form: messages.form(),
            messages: messages.messages,
        }]);
    }
    let all = Case::autobahn(messages.messages);
    let is_of = |case: &Case, name: &String| {
        case.name == *name || case.name.starts_with(&format!("{name}."))
    };
    if let Some(name) = names.iter().find(|name| !all.iter().any(|case| is_of(case, name))) {
        return Err(Failure::Usage(format!(
            "there is no case {name:?}; write one of 9.7.1 to 9.7.6 and 9.8.1 to 9.8.6, or 9.7 or 9.8 \
             for all of a section"
        )));
    }
    let chosen = |case: &Case| names.is_empty() || names.iter().any(|name| is_of(case, name));
    Ok(all.into_iter().filter(chosen).collect())
}

/// How rounds of measurements end.
enum Ending {
    /// All rounds are measured.
    Whole,
    /// A signal ended them early.
    Stopped,
    /// Something went wrong; a line for standard error.
    Failed(String),
}

impl Ending {
    /// Why the results are not whole, if they are not.
    fn cut_short(&self, measurements: &[Measurement]) -> Option<String> {
        match self {
            Ending::Whole => None,
            Ending::Stopped if measurements.is_empty() => {
                Some(format!("{ENDED_BY_SIGNAL} before the first echo"))
            }
            Ending::Stopped => Some(ENDED_BY_SIGNAL.to_owned()),
            Ending::Failed(problem) => Some(problem.clone()),
        }
    }
}

/// Rounds, in each of which every case is measured once.
struct Rounds<'a> {
    options: &'a Rtt,
    target: &'a Target,
    stop: &'a Stop,
    begin: Instant,
    /// How the server closed the connections.
    farewells: Farewells,
    /// The reports of the first round, if there are to be some.
    reports: Vec<CaseReport>,
}

impl Rounds<'_> {
    /// Adds to the measurement of each case.
    fn run(&mut self, cases: &[Case], measurements: &mut [Measurement]) -> Ending {
        for round in 0..self.options.rounds {
            for (case, measurement) in cases.iter().zip(&mut *measurements) {
                match self.measure(round, case, measurement) {
                    Ending::Whole => {}
                    early @ (Ending::Stopped | Ending::Failed(_)) => return early,
                }
            }
        }
        Ending::Whole
    }

    fn measure(&mut self, round: u32, case: &Case, measurement: &mut Measurement) -> Ending {
        let Rounds { options, target, stop, begin, .. } = self;
        let began = begin.elapsed();
        let seed = options.common.seed.wrapping_add(u64::from(round));
        let plan = Plan { wait: options.messages.wait.wait(), seed, ..Plan::new(target, case) };
        let started = SystemTime::now();
        let outcome = match rtt::run(&plan, stop) {
            Ok(outcome) => outcome,
            Err(_) if stop.is_requested() => return Ending::Stopped,
            Err(failed) => return Ending::Failed(format!("{target}: {failed}")),
        };
        if let Some(farewell) = outcome.farewell {
            self.farewells.note(farewell);
        }
        if outcome.latencies.count() > 0 {
            add(measurement, case, &outcome, began);
        }
        if round == 0 && options.report.is_some() {
            let name = options.target.as_ref().map_or("ringecho".to_owned(), Target::to_string);
            let place = self.reports.len() + 1;
            let run = Run { place, name: &name, plan: &plan, started, outcome: &outcome };
            self.reports.push(report(&run));
        }
        match outcome.problem {
            Some(failed) => Ending::Failed(format!("{target}, case {}: {failed}", case.name)),
            None if stop.is_requested() => Ending::Stopped,
            None => Ending::Whole,
        }
    }
}

/// Adds a round to the measurement of its case; `began` counts from the start of the measurement.
pub(super) fn add(
    measurement: &mut Measurement,
    case: &Case,
    outcome: &rtt::Outcome,
    began: Duration,
) {
    let latencies = &outcome.latencies;
    let duration_s = outcome.duration.as_secs_f64();
    if let Some(tls) = &outcome.tls
        && !measurement.description.contains(tls)
    {
        measurement.description += &format!(" Over {tls}.");
    }
    measurement.messages += latencies.count();
    measurement.payload_bytes += latencies.count() * case.payload_bytes as u64;
    measurement.latencies.add(latencies);
    measurement.rounds.push(Round::new(began.as_secs_f64(), duration_s, latencies));
}
