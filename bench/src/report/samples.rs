//! Plausible results, for the tests.

use std::time::Duration;

use crate::environment::Environment;
use crate::latency::Latencies;
use crate::random::Random;
use crate::results::{Cost, Floor, Kind, Measurement, Ratio, Results, Round};
use crate::statistics;

/// One of each kind.
pub(super) fn all() -> Vec<Results> {
    vec![round_trips(), load(), comparison()]
}

/// Cases of several sizes, some of them compressed, as `ringbench rtt` measures them.
pub(super) fn round_trips() -> Results {
    let mut random = Random::new(1);
    let mut results = result(Kind::Rtt, "ringbench rtt --rounds 20 ws://127.0.0.1:9001");
    results.warnings = vec![
        "This is a virtual machine: the host may take its CPUs away at any time.".to_owned(),
        "The frequency governor is powersave; figures vary with what ran before.".to_owned(),
    ];
    let sizes = ["16 bytes", "1 KiB", "4 KiB", "16 KiB", "64 KiB", "256 KiB"];
    let kinds = ["text", "binary", "text in fragments", "text, compressed"];
    for (group, kind) in kinds.iter().enumerate() {
        for (step, size) in sizes.iter().enumerate() {
            let median_us = 17.0 + 2.0 * group as f64 + 3.0 * 2.3f64.powi(step as i32);
            let rounds = Rounds { number: 20, messages: 500, seconds: 0.02, median_us };
            let mut measurement = rounds.measure(&mut random);
            measurement.name = format!("9.{}.{}", group + 1, step + 1);
            measurement.description = format!("{kind} of {size}");
            results.measurements.push(measurement);
        }
    }
    results.floor = Some(Floor { block_ns: 14_200, spin_ns: 6_870 });
    results
}

/// A minute of many connections, ended early.
pub(super) fn load() -> Results {
    let mut random = Random::new(2);
    let command = "ringbench load --connections 200 --seconds 120 ws://127.0.0.1:9001";
    let mut results = result(Kind::Load, command);
    results.cut_short = Some("SIGINT after 60 s".to_owned());
    let rounds = Rounds { number: 60, messages: 4000, seconds: 1.0, median_us: 310.0 };
    let mut measurement = rounds.measure(&mut random);
    measurement.name = "200 connections".to_owned();
    measurement.description = "text of 16 bytes, as fast as they come back".to_owned();
    measurement.lost = 3;
    measurement.cost = Some(Cost {
        cpu_us: Some(4.283),
        user_us: Some(0.412),
        system_us: Some(3.871),
        machine_us: None,
        context_switches: Some(0.0312),
        syscalls: Some(0.204),
        resident_bytes: 9_437_184,
    });
    results.measurements.push(measurement);
    results
}

/// Four servers; the others are compared with the first.
pub(super) fn comparison() -> Results {
    let mut random = Random::new(3);
    let command = "ringbench compare --rounds 15 uring epoll tokio-uring 'node bench/peers/ws'";
    let mut results = result(Kind::Compare, command);
    results.warnings = vec!["Client and server share two CPUs.".to_owned()];
    let targets = [
        ("ringecho, uring", 18.1, Some(1.0)),
        ("ringecho, epoll", 18.4, Some(3.0)),
        ("ringecho, tokio-uring", 22.9, Some(2.01)),
        ("ws on node", 47.3, None),
    ];
    for (name, median_us, syscalls) in targets {
        let rounds = Rounds { number: 15, messages: 2000, seconds: 0.1, median_us };
        let mut measurement = rounds.measure(&mut random);
        measurement.name = name.to_owned();
        measurement.description = "text of 16 bytes, one at a time".to_owned();
        measurement.cost = Some(Cost {
            cpu_us: Some(median_us * 0.3),
            user_us: Some(median_us / 20.0),
            system_us: Some(median_us / 4.0),
            machine_us: Some(median_us),
            context_switches: Some(1.0 + median_us / 1000.0),
            syscalls,
            resident_bytes: (median_us * 400_000.0) as u64,
        });
        results.measurements.push(measurement);
    }
    for (figure, of_round) in [
        ("p50", (|round| round.p50_ns as f64) as fn(&Round) -> f64),
        ("p99", |round| round.p99_ns as f64),
        // Far enough apart for a logarithmic axis, beside the longest heading.
        ("machine CPU", |round| (round.p50_ns as f64).powi(4)),
    ] {
        let [first, others @ ..] = &results.measurements[..] else { unreachable!("four targets") };
        for other in others {
            let pairs = other.rounds.iter().zip(&first.rounds);
            let ratios: Vec<f64> = pairs.map(|(of, to)| of_round(of) / of_round(to)).collect();
            results.ratios.push(Ratio {
                figure: figure.to_owned(),
                of: other.name.clone(),
                to: first.name.clone(),
                estimate: statistics::estimate(&ratios, 9),
            });
        }
    }
    results.floor = Some(Floor { block_ns: 14_200, spin_ns: 6_870 });
    results
}

fn result(kind: Kind, command: &str) -> Results {
    let environment = Environment {
        ringbench: "0.1.0".to_owned(),
        kernel: "6.12.48-generic".to_owned(),
        cpu: "AMD EPYC 9354P 32-Core Processor".to_owned(),
        cpus: vec![0, 1],
        governor: String::new(),
        is_virtual: true,
        clocksource: "kvm-clock".to_owned(),
        congestion_control: "cubic".to_owned(),
    };
    let command = command.split(' ').map(|word| word.trim_matches('\'').to_owned()).collect();
    Results { started_at_s: 1_790_000_000.0, ..Results::new(kind, command, environment) }
}

struct Rounds {
    number: usize,
    messages: u64,
    seconds: f64,
    median_us: f64,
}

impl Rounds {
    fn measure(&self, random: &mut Random) -> Measurement {
        let mut part = || (random.below(1_000_000) as f64 + 0.5) / 1e6;
        let mut all = Latencies::default();
        let mut rounds = Vec::new();
        for round in 0..self.number {
            let drift = 0.97 + 0.06 * part();
            let messages = self.messages - (self.messages as f64 * 0.15 * part()) as u64;
            let mut latencies = Latencies::default();
            for _ in 0..messages {
                // A bulk, and a tail that falls by a power.
                let bulk = 0.9 + 0.2 * part();
                let tail = 0.02 * (1.0 / part() - 1.0).powf(0.75);
                let us = self.median_us * drift * (bulk + tail);
                latencies.record(Duration::from_secs_f64(us / 1e6));
            }
            rounds.push(Round::new(round as f64 * self.seconds, self.seconds, &latencies));
            all.add(&latencies);
        }
        Measurement {
            messages: all.count(),
            payload_bytes: all.count() * 16,
            latencies: all,
            rounds,
            ..Measurement::default()
        }
    }
}
