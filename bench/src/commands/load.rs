//! `ringbench load`

use std::io::Write;
use std::time::UNIX_EPOCH;

use ringecho::cpus::CpuList;

use super::cpus::{Cpus, cpus};
use super::live_line::LiveLine;
use super::output::{Files, finish};
use super::{ENDED_BY_SIGNAL, Failure, Outcome, command_line, tls};
use crate::cli::{Common, Load, Traffic};
use crate::environment::Environment;
use crate::load::{self, Counts, Event, LoadError, Plan, Rate};
use crate::results::{Kind, Measurement, Results};
use crate::stop::Stop;
use crate::tables;
use crate::target::Target;

/// `ringbench load`
///
/// # Errors
///
/// When nothing could be measured, all connections failed, or an echo was wrong. Other problems of
/// connections are printed as warnings.
pub fn load(options: &Load, stop: &Stop, output: &mut impl Write) -> Outcome {
    check(&options.traffic)?;
    let trust = tls::trust(&options.tls, options.target.tls.is_some())?;
    let names = [options.target.to_string()];
    let files = Files::open(options.common.output.as_deref(), names.iter().map(String::as_str))?;
    let cpus = cpus(&options.common)?;
    let target = match &trust {
        Some(trust) => options.target.clone().trusting(trust),
        None => options.target.clone(),
    };
    let mut plan = plan(&target, &options.traffic, &cpus, &options.common);
    (plan.duration, plan.warm_up) = (options.duration, options.warm_up);
    (plan.drain, plan.mix) = (options.drain, options.mix());
    // The server was started elsewhere, so only the user knows its CPUs.
    plan.server_cpus = options.common.server_cpus.clone().map(|CpuList(cpus)| cpus);
    let mut results = Results::new(Kind::Load, command_line(), Environment::here());
    results.warnings.extend(tls::warning(&options.tls));
    let live = LiveLine::on_terminal();
    let outcome = load::run(&plan, stop, &mut |event| {
        if let Event::Progress(progress) = event {
            live.show(&tables::progress(&progress, plan.duration));
        }
    });
    live.clear();
    let outcome = match outcome {
        Ok(outcome) => outcome,
        Err(_) if stop.is_requested() => {
            results.cut_short = Some(format!("{ENDED_BY_SIGNAL} before the load began"));
            return finish(&mut results, &[], files, output).outcome(Ok(()));
        }
        Err(error @ (LoadError::Plan(_) | LoadError::Cpu(_))) => {
            return Err(Failure::Usage(error.to_string()));
        }
        Err(error) => return Err(format!("{}: {error}", options.target).into()),
    };
    let verdict = verdict(&outcome);
    if let Ok(begin) = outcome.started_at.duration_since(UNIX_EPOCH) {
        results.started_at_s = begin.as_secs_f64();
    }
    results.cut_short.clone_from(&outcome.cut_short);
    results.warnings.extend(outcome.warnings);
    for problem in outcome.problems {
        if !results.warnings.iter().any(|warning| warning.contains(&problem)) {
            results.warnings.push(problem);
        }
    }
    let summary = summary(&outcome.measurement);
    results.measurements.push(outcome.measurement);
    let mut problems = finish(&mut results, &outcome.parts, files, output);
    problems.note_standard_output(writeln!(output, "{summary}"));
    problems.outcome(verdict)
}

/// Checks options that depend on each other.
pub(super) fn check(traffic: &Traffic) -> Result<(), Failure> {
    if traffic.pipeline > 1 && traffic.rate != Rate::Max {
        return Err(Failure::Usage("--pipeline needs --rate max".to_owned()));
    }
    Ok(())
}

/// The line below the table: what to look at first when something went wrong.
fn summary(measurement: &Measurement) -> String {
    let load = measurement.load.as_ref().expect("a load has figures of its own");
    format!(
        "wrong echoes {}, failed connections {}, reconnects {}, unsent messages {}",
        measurement.wrong + measurement.unasked,
        load.connections_failed,
        load.reconnects,
        measurement.unsent
    )
}

/// Fails if an echo was wrong, all connections failed or nothing came back.
pub(super) fn verdict(outcome: &load::Outcome) -> Result<(), String> {
    let counts = outcome.counts();
    let is_closed_loop = outcome.figures().rate_asked.is_none();
    let [wrong, warm_up] = [&counts, &outcome.warm_up].map(Counts::wrong_echoes);
    match &outcome.cut_short {
        _ if warm_up > 0 => {
            Err(format!("{wrong} echoes were wrong, and {warm_up} before messages counted"))
        }
        _ if wrong > 0 => Err(format!("{wrong} echoes were wrong")),
        Some(reason) if outcome.has_failed() => Err(reason.clone()),
        None if counts.echoed == 0 && (counts.due() > 0 || is_closed_loop) => {
            Err("no echo came back".to_owned())
        }
        Some(_) | None => Ok(()),
    }
}

/// The plan that the options ask for.
pub(super) fn plan(target: &Target, traffic: &Traffic, cpus: &Cpus, common: &Common) -> Plan {
    Plan {
        connections: traffic.connections as usize,
        rate: traffic.rate,
        pipeline: traffic.pipeline as usize,
        mix: traffic.mix.clone(),
        compresses: traffic.compress,
        reconnect_every: traffic.reconnect_every,
        verify_every: traffic.verify_every,
        threads: traffic.threads.into(),
        cpus: cpus.clients.clone(),
        spins: traffic.spin,
        seed: common.seed,
        ..Plan::new(target.clone())
    }
}
