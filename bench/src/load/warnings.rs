//! What is to be kept in mind when reading the figures of a load: where they say less than they seem
//! to, and what to do about it. Which percentiles have too few messages behind them is said elsewhere,
//! for all kinds of measurement at once.

use super::worker::Ended;
use super::{DRAIN_TIMEOUT, Outcome, Plan, Rate};

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
        losses(outcome),
        lag(outcome),
        unsent(ended),
        rate(plan, outcome),
        utilisation(plan, ended),
        sharing(plan),
    ];
    all.into_iter().flatten().collect()
}

fn losses(outcome: &Outcome) -> Option<String> {
    let lost = outcome.measurement.lost;
    let seconds = DRAIN_TIMEOUT.as_secs();
    (lost > 0).then(|| {
        format!(
            "{lost} messages were lost: their connections failed, or their echoes did not come \
             within {seconds} seconds after the last message."
        )
    })
}

fn failures(plan: &Plan, outcome: &Outcome) -> Option<String> {
    let first = outcome.problems.first()?;
    let Outcome { connections_failed, wrong, .. } = outcome;
    Some(format!(
        "{connections_failed} of {} connections failed and {wrong} echoes were wrong; the first \
         problem: {first}.",
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
        "The generator missed its schedule: {late} of {} messages were more than {:.1} µs late, p99 \
         {:.1} µs, at most {:.1} µs, and the latencies contain that; let it spin, give it more \
         threads or processors of its own, or lower the rate.",
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
            "The generator was so far behind its schedule at the end that it did not send about \
             {unsent} messages; give it more threads, or lower the rate."
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
            "The rate was not reached: {achieved:.1} messages a second came back of {asked} asked for."
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
             figures may be its own and not the server's; give it more threads.",
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
            "The generator is not pinned and may run on the server's processors; pin it to others."
                .to_owned()
        });
    }
    let cpu = plan.cpus.iter().take(plan.threads()).find(|cpu| server.contains(cpu))?;
    Some(format!(
        "The generator and the server share processor {cpu}, so each waits for the other; give them \
         processors of their own."
    ))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::latency::Latencies;
    use crate::results::Measurement;

    /// A second of so many messages, each of 100 µs, that the generator was late for by this.
    fn outcome(messages: u64, lag: Duration) -> Outcome {
        let (mut latencies, mut lags) = (Latencies::default(), Latencies::default());
        for _ in 0..messages {
            latencies.record(Duration::from_micros(100));
            lags.record(lag);
        }
        Outcome {
            seconds: vec![(Duration::ZERO, Duration::from_secs(1), latencies.clone())],
            measurement: Measurement { messages, latencies, ..Measurement::default() },
            warnings: Vec::new(),
            cut_short: None,
            connections_failed: 0,
            reconnects: 0,
            wrong: 0,
            lag: lags,
            problems: Vec::new(),
        }
    }

    fn plan() -> Plan {
        Plan::new("ws://127.0.0.1:9001/".parse().expect("a target"))
    }

    fn ended(utilisation: f64, unsent: u64) -> Ended {
        Ended { lag: Latencies::default(), utilisation, unsent, end_ns: 0 }
    }

    #[test]
    fn what_is_well_is_not_warned_of() {
        let outcome = outcome(1000, Duration::from_micros(9));
        assert_eq!(about(&plan(), &outcome, &[ended(0.5, 0)]), Vec::<String>::new());
    }

    #[test]
    fn each_warning_says_what_and_how_much() {
        let late = outcome(1000, Duration::from_micros(11));
        let few = outcome(980, Duration::from_micros(9));
        let well = outcome(1000, Duration::from_micros(9));
        let lossy = Outcome {
            measurement: Measurement { lost: 3, ..well.measurement.clone() },
            ..well.clone()
        };
        let failed = Outcome {
            connections_failed: 1,
            problems: vec!["connection 0: no answer in time".to_owned()],
            ..well.clone()
        };
        let shared = Plan { cpus: vec![2, 3], threads: 1, server_cpus: Some(vec![2]), ..plan() };
        for (plan, outcome, ended, warning) in [
            (plan(), &late, ended(0.5, 0), "1000 of 1000 messages were more than 10.0 µs late"),
            (plan(), &few, ended(0.5, 0), "980.0 messages a second came back of 1000 asked for"),
            (plan(), &lossy, ended(0.5, 0), "3 messages were lost"),
            (plan(), &failed, ended(0.5, 0), "1 of 1 connections failed"),
            (plan(), &well, ended(0.96, 0), "1 of the generator's 1 threads ran out"),
            (plan(), &well, ended(0.5, 7), "did not send about 7 messages"),
            (shared, &well, ended(0.5, 0), "share processor 2"),
        ] {
            let warnings = about(&plan, outcome, &[ended]);
            assert_eq!(warnings.len(), 1, "{warnings:?}");
            assert!(warnings[0].contains(warning) && warnings[0].ends_with('.'), "{warnings:?}");
        }
    }

    #[test]
    fn only_processors_that_are_used_are_shared() {
        let used = Plan { cpus: vec![2, 3], threads: 1, server_cpus: Some(vec![3]), ..plan() };
        assert_eq!(sharing(&Plan { connections: 2, ..used.clone() }), None);
        assert!(sharing(&Plan { connections: 2, threads: 2, ..used }).is_some());
    }
}
