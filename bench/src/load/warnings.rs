//! What is to be kept in mind when reading the figures of a load: where they say less than they seem
//! to, and what to do about it.

use super::worker::Ended;
use super::{Outcome, Plan, Rate};
use crate::latency::{Latencies, PERCENTILES};

/// A generator that is later than this distorts any figure, in nanoseconds.
const LAG_NS_MAX: u64 = 1_000_000;
/// The part of the median latency that the generator's lag may be.
const LAG_PART: u64 = 10;
/// The part of its time that a thread may run.
const UTILISATION_MAX: f64 = 0.95;
/// The part of the rate asked for that has to be reached.
const RATE_PART: f64 = 0.99;

/// The warnings about an outcome, as sentences.
pub(super) fn about(plan: &Plan, outcome: &Outcome, ended: &[Ended]) -> Vec<String> {
    let all = [
        failures(plan, outcome),
        lag(outcome),
        unsent(ended),
        rate(plan, outcome),
        utilisation(plan, ended),
        sharing(plan),
        samples(&outcome.measurement.latencies),
    ];
    all.into_iter().flatten().collect()
}

fn failures(plan: &Plan, outcome: &Outcome) -> Option<String> {
    let first = outcome.problems.first()?;
    let Outcome { connections_failed, wrong, .. } = outcome;
    Some(format!(
        "{connections_failed} of {} connections failed and {wrong} echoes were wrong; the first \
         problem: {first}",
        plan.connections
    ))
}

fn lag(outcome: &Outcome) -> Option<String> {
    let Outcome { lag, measurement, .. } = outcome;
    let p99_ns = lag.percentile_ns(99.0);
    let limit_ns = LAG_NS_MAX.min(measurement.latencies.percentile_ns(50.0) / LAG_PART);
    if lag.count() == 0 || p99_ns <= limit_ns {
        return None;
    }
    let late = lag.counts().into_iter().filter(|&(lag_ns, _)| lag_ns > limit_ns);
    let late: u64 = late.map(|(_, count)| count).sum();
    let us = |ns: u64| ns as f64 / 1e3;
    Some(format!(
        "the generator missed its schedule: {late} of {} messages were more than {:.1} µs late, p99 \
         {:.1} µs, at most {:.1} µs, and the latencies contain that; let it spin, give it more \
         threads or processors of its own, or lower the rate",
        lag.count(),
        us(limit_ns),
        us(p99_ns),
        us(lag.max_ns())
    ))
}

fn unsent(ended: &[Ended]) -> Option<String> {
    let unsent: u64 = ended.iter().map(|ended| ended.unsent).sum();
    (unsent > 0).then(|| {
        format!(
            "the generator was so far behind its schedule at the end that it did not send about \
             {unsent} messages; give it more threads, or lower the rate"
        )
    })
}

fn rate(plan: &Plan, outcome: &Outcome) -> Option<String> {
    let Rate::PerSecond(asked) = plan.rate else { return None };
    let (_, end, _) = outcome.seconds.last()?;
    let mut messages = outcome.measurement.messages as f64;
    let seconds = end.as_secs_f64();
    let achieved = messages / seconds;
    // Of few messages a second, one more or less is no shortfall.
    messages += 1.0;
    (messages < asked * seconds * RATE_PART).then(|| {
        format!(
            "the rate was not reached: {achieved:.1} messages a second came back of {asked} asked for"
        )
    })
}

fn utilisation(plan: &Plan, ended: &[Ended]) -> Option<String> {
    // A thread that spins is always busy.
    if plan.spins {
        return None;
    }
    let busy = ended.iter().filter(|ended| ended.utilisation > UTILISATION_MAX).count();
    let most = ended.iter().map(|ended| ended.utilisation).fold(0.0, f64::max);
    (busy > 0).then(|| {
        format!(
            "{busy} of the generator's {} threads ran out of processor time ({:.0} %), so the \
             figures may be its own and not the server's; give it more threads",
            ended.len(),
            most * 100.0
        )
    })
}

fn sharing(plan: &Plan) -> Option<String> {
    let server = plan.server_cpus.as_deref()?;
    if plan.cpus.is_empty() {
        let allowed = core_affinity::get_core_ids().unwrap_or_default();
        return allowed.iter().any(|cpu| server.contains(&cpu.id)).then(|| {
            "the generator is not pinned and may run on the server's processors; pin it to others"
                .to_owned()
        });
    }
    let cpu = plan.cpus.iter().take(plan.threads()).find(|cpu| server.contains(cpu))?;
    Some(format!(
        "the generator and the server share processor {cpu}, so each waits for the other; give them \
         processors of their own"
    ))
}

fn samples(latencies: &Latencies) -> Option<String> {
    let unsupported: Vec<String> = PERCENTILES
        .into_iter()
        .filter(|&percent| !latencies.supports(percent))
        .map(|percent| format!("p{percent}"))
        .collect();
    (!unsupported.is_empty()).then(|| {
        format!(
            "{} messages are too few for {}, of which a hundred have to lie beyond; measure longer",
            latencies.count(),
            unsupported.join(" and ")
        )
    })
}
