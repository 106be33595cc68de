//! Measures what each wait strategy of the server leaves to other work on its CPU: the share of the CPU
//! that a busy neighbour gets, and the round trip of case 9.7.2 beside that neighbour, as a ratio to
//! `block` within the same round.

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use ringbench::rtt::{self, Case, Plan};
use ringbench::server::{Launch, Ready, Server, program};
use ringbench::spread;
use ringbench::stop::Stop;
use ringbench::target::Target;
use ringecho::cpus;

const STRATEGIES: [&str; 4] = ["block", "spin", "adaptive", "sqpoll"];
const ROUNDS: usize = 9;
const MESSAGES: u64 = 3000;
/// How long the neighbour has a CPU to itself, to learn its full speed.
const ALONE: Duration = Duration::from_millis(50);

/// What one round measured.
#[derive(Debug, Clone, Copy, Default)]
struct Round {
    p50_us: f64,
    /// The share of the CPU that the neighbour got.
    share: f64,
}

/// Does `work` while another thread counts on `cpu`; returns also the counts per second.
fn beside_neighbour<T>(cpu: usize, work: impl FnOnce() -> T) -> (T, f64) {
    let (stop, counted) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            cpus::pin(cpu).expect("a CPU that this process may use");
            while !stop.load(Relaxed) {
                for _ in 0..1000 {
                    std::hint::black_box(counted.fetch_add(1, Relaxed));
                }
            }
        });
        let begin = Instant::now();
        let result = work();
        let rate = counted.load(Relaxed) as f64 / begin.elapsed().as_secs_f64();
        stop.store(true, Relaxed);
        (result, rate)
    })
}

fn measure(strategy: &str, [server_cpu, client_cpu]: [usize; 2]) -> Result<Round, String> {
    let stop = Stop::new().map_err(|error| error.to_string())?;
    let (program, cpu) = (program("ringecho").display().to_string(), server_cpu.to_string());
    let words = [&program, "--listen", "127.0.0.1:0", "--cpus", &cpu, "--wait", strategy];
    let words = words.map(ToOwned::to_owned);
    let launch = Launch { words: &words, cpus: &[server_cpu], stop: &stop };
    let server = Server::start(launch, Ready::Prints)?;
    let target: Target = format!("ws://{}/", server.address()).parse()?;
    let Some(case) = Case::autobahn(MESSAGES).into_iter().find(|case| case.name == "9.7.2") else {
        unreachable!("the reference case is among the suite's")
    };
    let run = || rtt::run(&Plan::new(&target, &case), &stop);
    let ((), alone) = beside_neighbour(client_cpu, || std::thread::sleep(ALONE));
    let (outcome, rate) = beside_neighbour(server_cpu, run);
    let outcome = outcome.map_err(|problem| problem.to_string())?;
    match outcome.problem {
        Some(problem) => Err(problem.to_string()),
        None => Ok(Round {
            p50_us: outcome.latencies.percentile_ns(50.0) as f64 / 1e3,
            share: rate / alone,
        }),
    }
}

fn measure_all() -> Result<(), String> {
    let allowed = cpus::allowed().map_err(|error| format!("cannot list the CPUs: {error}"))?;
    let &[server_cpu, client_cpu, ..] = allowed.as_slice() else {
        return Err(format!("two CPUs are needed; this process may use {allowed:?}"));
    };
    cpus::pin(client_cpu).map_err(|error| format!("cannot use CPU {client_cpu}: {error}"))?;
    println!("16-byte text, one connection, {MESSAGES} messages a round, {ROUNDS} rounds, with a");
    println!("neighbour on the server's CPU; median of the rounds (least to greatest)\n");
    println!("{:10} {:28} {:28} neighbour's share", "", "p50 µs", "p50 / block");
    let mut rounds = [[Round::default(); STRATEGIES.len()]; ROUNDS];
    for (number, round) in rounds.iter_mut().enumerate() {
        // Another strategy comes first in each round, so that no one always has the same place.
        for turn in 0..STRATEGIES.len() {
            let strategy = (number + turn) % STRATEGIES.len();
            round[strategy] = measure(STRATEGIES[strategy], [server_cpu, client_cpu])?;
        }
    }
    for (strategy, name) in STRATEGIES.iter().enumerate() {
        let of = |value: fn(&Round, &Round) -> f64| {
            spread(rounds.iter().map(|round| value(&round[strategy], &round[0])), 2)
        };
        let p50 = of(|it, _| it.p50_us);
        let ratio = of(|it, block| it.p50_us / block.p50_us);
        println!("{name:10} {p50:28} {ratio:28} {}", of(|it, _| it.share));
    }
    Ok(())
}

fn main() -> ExitCode {
    match measure_all() {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("busy-neighbour: {problem}");
            ExitCode::FAILURE
        }
    }
}
