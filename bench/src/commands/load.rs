//! `ringbench load`

use std::io::{self, IsTerminal as _, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use ringecho::cpus::CpuList;

use super::cpus::{Cpus, cpus};
use super::output::{finish, write_log, written};
use super::{Outcome, command_line};
use crate::cli::{Common, Load, Traffic};
use crate::environment::Environment;
use crate::load::{self, Plan, Progress, Rate};
use crate::results::{Kind, Results};
use crate::stop::Stop;
use crate::tables;
use crate::target::Target;

/// `ringbench load`
///
/// # Errors
///
/// What went wrong; what some connections suffered is printed and is none of that.
pub fn load(options: &Load, stop: &Stop, output: &mut impl Write) -> Outcome {
    if options.traffic.pipeline > 1 && options.traffic.rate != Rate::Max {
        return Err("--pipeline goes with --rate max".to_owned());
    }
    let cpus = cpus(&options.common)?;
    let mut plan = plan(&options.target, &options.traffic, &cpus, &options.common);
    (plan.duration, plan.warm_up) = (options.duration, options.warm_up);
    // A server that somebody else has started runs where that one has put it.
    plan.server_cpus = options.common.server_cpus.clone().map(|CpuList(cpus)| cpus);
    let mut results = Results::new(Kind::Load, command_line(), Environment::here());
    let is_terminal = io::stderr().is_terminal();
    let mut begin = None;
    let mut live = |progress: &Progress| {
        if begin.is_none() && !progress.elapsed.is_zero() {
            begin = Some(SystemTime::now() - progress.elapsed);
        }
        if is_terminal {
            eprint!("\r\x1b[K{}", tables::progress(progress, plan.duration));
        }
    };
    let outcome = load::run(&plan, stop, &mut live);
    if is_terminal {
        eprint!("\r\x1b[K");
    }
    let outcome = outcome.map_err(|error| format!("{}: {error}", options.target))?;
    if let Some(begin) = begin.and_then(|begin| begin.duration_since(UNIX_EPOCH).ok()) {
        results.started_at_s = begin.as_secs_f64();
    }
    results.cut_short.clone_from(&outcome.cut_short);
    results.warnings.extend(outcome.warnings);
    for problem in outcome.problems {
        if !results.warnings.iter().any(|warning| warning.contains(&problem)) {
            results.warnings.push(problem);
        }
    }
    let echoed = outcome.measurement.messages;
    let name = outcome.measurement.name.clone();
    results.measurements.push(outcome.measurement);
    finish(&mut results, options.common.output.as_deref(), output)?;
    written(writeln!(
        output,
        "wrong echoes {}, connections failed {}, opened again {}",
        outcome.wrong, outcome.connections_failed, outcome.reconnects
    ))?;
    if let Some(prefix) = &options.common.output {
        // The log has an interval for each second, not one for all.
        let log = write_log(&results, prefix, &name, &outcome.seconds);
        log.map_err(|error| format!("cannot write --output {}: {error}", prefix.display()))?;
    }
    if outcome.wrong > 0 {
        return Err(format!("{} echoes were wrong", outcome.wrong));
    }
    if echoed == 0 {
        return Err("no echo came back".to_owned());
    }
    Ok(())
}

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
