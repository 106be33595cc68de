//! Warnings about a load: where its figures say less than they seem to, and what to do about it. The
//! warning about too few messages for a percentile is made in `commands/output.rs`, for all kinds of
//! measurement.
//!
//! Each warning begins with words that do not change from run to run, followed by a colon, so that a
//! comparison can print each kind once.

use std::time::Duration;

use ringecho::cpus;

use super::worker::Ended;
use super::{Counts, Outcome, Plan, Rate};
use crate::latency::PERCENTILES;

/// The largest share of the latency that the client's own lag may have, at any percentile.
const LAG_SHARE: f64 = 0.1;
/// The largest share of the time that a thread may run.
const UTILISATION_MAX: f64 = 0.95;
/// The least share of the due messages that must be echoed.
const RATE_SHARE: f64 = 0.99;

/// Time during which the client did not run.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Pause {
    /// As much of it as was noticed.
    pub(super) lost: Duration,
    /// Whether the process was stopped and continued by signals.
    pub(super) was_suspended: bool,
}

/// The warnings about an outcome, as sentences.
pub(super) fn about(plan: &Plan, outcome: &Outcome, ended: &[Ended], pause: Pause) -> Vec<String> {
    let all = [
        failures(plan, outcome),
        losses(plan, outcome),
        unsent(outcome),
        nothing_due(plan, outcome),
        warm_up(outcome),
        lag(outcome),
        rate(plan, outcome),
        paused(pause),
        utilisation(plan, ended),
        sharing(plan),
        outcome.farewells.warning(plan.close),
    ];
    all.into_iter().flatten().collect()
}

fn failures(plan: &Plan, outcome: &Outcome) -> Option<String> {
    let first = outcome.problems.first()?;
    let failed = outcome.figures().connections_failed;
    let wrong = outcome.counts().wrong_echoes();
    Some(format!(
        "Problems with the server: {failed} of {} connections failed and {wrong} echoes were wrong; \
         the first problem: {first}.",
        plan.connections
    ))
}

fn losses(plan: &Plan, outcome: &Outcome) -> Option<String> {
    let lost = outcome.counts().lost;
    (lost > 0).then(|| {
        format!(
            "Messages were lost: no echo of {lost} came within {:?} after the last message. Their \
             latencies count as the time that they were waited for, which is a lower bound.",
            plan.drain
        )
    })
}

fn unsent(outcome: &Outcome) -> Option<String> {
    let unsent = outcome.counts().unsent;
    (unsent > 0).then(|| {
        format!(
            "Messages were not sent: {unsent} were due, but their connections had failed or had no \
             room, or the client was too far behind. The latencies do not include them."
        )
    })
}

fn nothing_due(plan: &Plan, outcome: &Outcome) -> Option<String> {
    let Rate::PerSecond(rate) = plan.rate else { return None };
    (outcome.counts().due() == 0 && outcome.cut_short.is_none()).then(|| {
        format!(
            "No message was due: at {rate} messages a second the first one is due {:.3e} s after \
             the beginning.",
            0.5 / rate
        )
    })
}

fn warm_up(outcome: &Outcome) -> Option<String> {
    let counts = &outcome.warm_up;
    let Counts { lost, unsent, .. } = *counts;
    let wrong = counts.wrong_echoes();
    (wrong + lost + unsent > 0).then(|| {
        format!(
            "The warm-up had problems too: wrong echoes {wrong}, lost messages {lost}, unsent \
             messages {unsent}."
        )
    })
}

fn lag(outcome: &Outcome) -> Option<String> {
    let lags = &outcome.figures().lags;
    let latencies = &outcome.measurement.latencies;
    let us = |ns: u64| ns as f64 / 1e3;
    let late: Vec<String> = PERCENTILES
        .iter()
        .map(|&percent| (percent, lags.percentile_ns(percent), latencies.percentile_ns(percent)))
        .filter(|&(_, lag_ns, latency_ns)| lag_ns as f64 > latency_ns as f64 * LAG_SHARE)
        .map(|(percent, lag_ns, latency_ns)| {
            format!("{:.1} of {:.1} µs at p{percent}", us(lag_ns), us(latency_ns))
        })
        .collect();
    (lags.count() > 0 && latencies.count() > 0 && !late.is_empty()).then(|| {
        format!(
            "The client sent late: its own lag is more than a tenth of the latency, {}. Use --spin, \
             more --threads or CPUs that nothing else uses, or a lower rate.",
            late.join(", ")
        )
    })
}

/// The rate falls short only if messages were lost or not sent, never because echoes took long.
fn rate(plan: &Plan, outcome: &Outcome) -> Option<String> {
    let Rate::PerSecond(asked) = plan.rate else { return None };
    let counts = outcome.counts();
    let Counts { echoed, wrong, lost, unsent, .. } = counts;
    let (_, end, _) = outcome.parts.last()?;
    ((echoed as f64) < counts.due() as f64 * RATE_SHARE).then(|| {
        format!(
            "The rate was not reached: {:.1} messages a second were echoed of {asked} asked for \
             (of {}, {wrong} wrong, {lost} lost, {unsent} unsent).",
            echoed as f64 / end.as_secs_f64().max(f64::MIN_POSITIVE),
            counts.due()
        )
    })
}

fn paused(pause: Pause) -> Option<String> {
    let lost = pause.lost.as_secs_f64();
    let why = match (pause.was_suspended, pause.lost.is_zero()) {
        (false, true) => return None,
        (true, true) => "the client was suspended for a moment".to_owned(),
        (true, false) => format!("the client was suspended for about {lost:.1} s"),
        (false, false) => format!("the client did not run for about {lost:.1} s"),
    };
    Some(format!(
        "Time was lost: {why}. Messages that were due meanwhile were sent late, and their latencies \
         include that."
    ))
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
            "The client ran out of CPU time: {busy} of its {} threads ran for more than 95 % of the \
             time ({:.0} %), so the figures may be its own and not the server's. Use more --threads.",
            ended.len(),
            most * 100.0
        )
    })
}

fn sharing(plan: &Plan) -> Option<String> {
    let server = plan.server_cpus.as_deref()?;
    if plan.cpus.is_empty() {
        let allowed = cpus::allowed().unwrap_or_default();
        return allowed.iter().any(|cpu| server.contains(cpu)).then(|| {
            "The client is not pinned: it may run on the server's CPUs; pin it to others."
                .to_owned()
        });
    }
    let cpu = plan.thread_cpus().iter().find(|cpu| server.contains(cpu))?;
    Some(format!(
        "Client and server share a CPU: on CPU {cpu}, each waits for the other; choose different \
         CPUs with --client-cpu and --server-cpus."
    ))
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::latency::Latencies;
    use crate::results::{LoadFigures, Measurement};
    use crate::verdict::{Farewell, Farewells};

    /// A second of this many messages of 100 µs each, sent this late.
    fn outcome(messages: u64, lag: Duration) -> Outcome {
        let (mut latencies, mut lags) = (Latencies::default(), Latencies::default());
        for _ in 0..messages {
            latencies.record(Duration::from_micros(100));
            lags.record(lag);
        }
        let load = LoadFigures { connections: 1, lags, ..LoadFigures::default() };
        Outcome {
            parts: vec![(Duration::ZERO, Duration::from_secs(1), latencies.clone())],
            measurement: Measurement {
                messages,
                latencies,
                load: Some(load),
                ..Measurement::default()
            },
            started_at: SystemTime::UNIX_EPOCH,
            warm_up: Counts::default(),
            warnings: Vec::new(),
            cut_short: None,
            farewells: Farewells::default(),
            problems: Vec::new(),
        }
    }

    fn plan() -> Plan {
        Plan::new("ws://127.0.0.1:9001/".parse().expect("a target"))
    }

    fn ended(utilisation: f64) -> Ended {
        let (lag, sent) = (Latencies::default(), Vec::new());
        Ended { lag, utilisation, end_ns: 0, has_failed: false, sent }
    }

    #[test]
    fn a_good_load_has_no_warnings() {
        let outcome = outcome(1000, Duration::from_micros(9));
        let warnings = about(&plan(), &outcome, &[ended(0.5)], Pause::default());
        assert_eq!(warnings, Vec::<String>::new());
    }

    #[test]
    fn each_warning_names_the_problem_and_its_size() {
        let late = outcome(1000, Duration::from_micros(11));
        let well = outcome(1000, Duration::from_micros(9));
        let with = |change: fn(&mut Outcome)| {
            let mut outcome = well.clone();
            change(&mut outcome);
            outcome
        };
        let few = with(|it| it.measurement.unsent = 20);
        let lossy = with(|it| it.measurement.lost = 3);
        let failed = with(|it| it.problems = vec!["connection 0: no answer in time".to_owned()]);
        let early = with(|it| it.warm_up.wrong = 2);
        let rude = with(|it| it.farewells.note(Farewell::ResetUnanswered));
        let none = with(|it| it.measurement.messages = 0);
        let shared = Plan { cpus: vec![2, 3], threads: 1, server_cpus: Some(vec![2]), ..plan() };
        let slow = Plan { rate: Rate::PerSecond(1e-11), ..plan() };
        let paused = Pause { lost: Duration::from_secs(2), was_suspended: true };
        let no = Pause::default();
        for (plan, outcome, utilisation, pause, warnings) in [
            (plan(), &late, 0.5, no, &["11.0 of 100.0 µs at p50"][..]),
            (
                plan(),
                &few,
                0.5,
                no,
                &["20 were due", "1000.0 messages a second were echoed of 1000 asked for"],
            ),
            (plan(), &lossy, 0.5, no, &["no echo of 3 came within 3s"]),
            (plan(), &failed, 0.5, no, &["0 of 1 connections failed"]),
            (plan(), &early, 0.5, no, &["wrong echoes 2, lost messages 0"]),
            (plan(), &rude, 0.5, no, &["on 1 of 1 connection, the server reset the connection"]),
            (slow, &none, 0.5, no, &["due 5.000e10 s after"]),
            (plan(), &well, 0.96, no, &["1 of its 1 threads ran"]),
            (plan(), &well, 0.5, paused, &["suspended for about 2.0 s"]),
            (shared, &well, 0.5, no, &["on CPU 2"]),
        ] {
            let said = about(&plan, outcome, &[ended(utilisation)], pause);
            assert_eq!(said.len(), warnings.len(), "{said:?}");
            for (said, warning) in said.iter().zip(warnings) {
                assert!(said.contains(warning) && said.ends_with('.'), "{said}");
                assert!(said.contains(": "), "{said}");
            }
        }
    }

    /// Twenty milliseconds once in eight seconds are in p99.9 and in nothing below.
    #[test]
    fn a_lag_of_few_messages_costs_a_warning_at_the_percentile_that_it_decides() {
        let mut outcome = outcome(8000, Duration::from_micros(9));
        let Some(figures) = &mut outcome.measurement.load else { unreachable!() };
        for ms in 0..20 {
            figures.lags.record(Duration::from_millis(ms));
            outcome.measurement.latencies.record(Duration::from_millis(50 + ms));
        }
        let said = lag(&outcome).expect("a warning");
        assert!(
            said.contains("p99.9") && !said.contains("p99,") && !said.contains("p50"),
            "{said}"
        );
    }

    #[test]
    fn only_cpus_that_are_used_are_shared() {
        let used = Plan { cpus: vec![2, 3], threads: 1, server_cpus: Some(vec![3]), ..plan() };
        assert_eq!(sharing(&Plan { connections: 2, ..used.clone() }), None);
        assert!(sharing(&Plan { connections: 2, threads: 2, ..used }).is_some());
    }
}
