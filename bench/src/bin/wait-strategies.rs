//! Measures the wait strategies of the server against each other: the round trip of the reference
//! case (text messages of 16 bytes, one after the other, on one connection), alternately, in
//! rounds, as a ratio to `block` paired by round.
//!
//! Three placements: client and server on processors of their own; both on one; and a busy
//! neighbour on the server's processor, whose lost share is measured too.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use core_affinity::CoreId;
use ringbench::server::{Server, program};
use ringbench::spread;

const STRATEGIES: [&str; 4] = ["block", "spin", "adaptive", "sqpoll"];
const ROUNDS: usize = 9;
const WARM_UP: usize = 500;
const MESSAGES: usize = 3000;

/// Who shares which processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Placement {
    Apart,
    Together,
    BusyNeighbour,
}

/// What one round measured.
#[derive(Debug, Clone, Copy)]
struct Round {
    p50_us: f64,
    p99_us: f64,
    /// The part of its processor that the neighbour got.
    neighbour: f64,
}

fn start(cpu: usize, wait: &str) -> Server {
    let cpu = cpu.to_string();
    let mut command = Command::new(program());
    command.args(["--listen", "127.0.0.1:0", "--cpus", &cpu, "--wait", wait]);
    Server::start(&mut command).unwrap_or_else(|error| panic!("{error}"))
}

/// Runs the reference case from `cpu`, on a thread of its own so that servers started later do not
/// inherit the pinning.
fn round_trips_from(cpu: usize, address: &str) -> Vec<Duration> {
    std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            core_affinity::set_for_current(CoreId { id: cpu });
            round_trips(address)
        });
        client.join().expect("the client ends")
    })
}

/// Runs the reference case and gives the sorted round trips.
fn round_trips(address: &str) -> Vec<Duration> {
    let mut stream = TcpStream::connect(address).expect("a server");
    stream.set_nodelay(true).expect("TCP_NODELAY");
    let request = "GET / HTTP/1.1\r\nHost: bench\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
    stream.write_all(request.as_bytes()).expect("a request");
    let mut answer = [0; 129];
    stream.read_exact(&mut answer).expect("an answer");
    let frame = ringbench::text_frame(16);
    let mut echo = [0; 18];
    let mut times: Vec<Duration> = (0..WARM_UP + MESSAGES)
        .map(|_| {
            let begin = Instant::now();
            stream.write_all(&frame).expect("sent");
            stream.read_exact(&mut echo).expect("an echo");
            begin.elapsed()
        })
        .skip(WARM_UP)
        .collect();
    assert_eq!(&echo[2..], b"abcdefghijklmnop");
    times.sort_unstable();
    times
}

/// Counts as fast as it can until told to stop.
fn count(cpu: usize, stop: &AtomicBool, counted: &AtomicU64) {
    core_affinity::set_for_current(CoreId { id: cpu });
    while !stop.load(Relaxed) {
        for _ in 0..1000 {
            std::hint::black_box(counted.fetch_add(1, Relaxed));
        }
    }
}

/// Runs `work` beside a neighbour on `cpu` and gives its counts a second.
fn beside_neighbour<T>(cpu: usize, work: impl FnOnce() -> T) -> (T, f64) {
    let stop = Arc::new(AtomicBool::new(false));
    let counted = Arc::new(AtomicU64::new(0));
    let thread = {
        let (stop, counted) = (stop.clone(), counted.clone());
        std::thread::spawn(move || count(cpu, &stop, &counted))
    };
    let begin = Instant::now();
    let result = work();
    let rate = counted.load(Relaxed) as f64 / begin.elapsed().as_secs_f64();
    stop.store(true, Relaxed);
    thread.join().expect("the neighbour ends");
    (result, rate)
}

fn measure(placement: Placement, wait: &str, cpus: [usize; 2]) -> Round {
    let [server_cpu, client_cpu] = cpus;
    let server = start(server_cpu, wait);
    let client_cpu = if placement == Placement::Together { server_cpu } else { client_cpu };
    let (times, neighbour) = if placement == Placement::BusyNeighbour {
        let ((), alone) =
            beside_neighbour(client_cpu, || std::thread::sleep(Duration::from_millis(50)));
        let (times, rate) =
            beside_neighbour(server_cpu, || round_trips_from(client_cpu, server.address()));
        (times, rate / alone)
    } else {
        (round_trips_from(client_cpu, server.address()), 0.0)
    };
    let at = |part: f64| times[(times.len() as f64 * part) as usize].as_secs_f64() * 1e6;
    Round { p50_us: at(0.5), p99_us: at(0.99), neighbour }
}

fn main() {
    let cpus: Vec<usize> =
        core_affinity::get_core_ids().unwrap_or_default().iter().map(|core| core.id).collect();
    let &[server_cpu, client_cpu, ..] = cpus.as_slice() else {
        eprintln!("wait-strategies: two processors are needed; this process may use {cpus:?}");
        std::process::exit(1);
    };
    println!("16-byte text, one connection, {MESSAGES} messages a round, {ROUNDS} rounds;");
    println!("median of the rounds (least to greatest)");
    for placement in [Placement::Apart, Placement::Together, Placement::BusyNeighbour] {
        let mut rounds: Vec<[Round; STRATEGIES.len()]> = Vec::new();
        for number in 0..ROUNDS {
            let mut round = [Round { p50_us: 0.0, p99_us: 0.0, neighbour: 0.0 }; STRATEGIES.len()];
            // Another one begins each time.
            for turn in 0..STRATEGIES.len() {
                let strategy = (number + turn) % STRATEGIES.len();
                round[strategy] =
                    measure(placement, STRATEGIES[strategy], [server_cpu, client_cpu]);
            }
            rounds.push(round);
        }
        println!("\n{placement:?}");
        println!("{:10} {:28} {:28} {:28} neighbour's part", "", "p50 µs", "p99 µs", "p50 / block");
        for (strategy, name) in STRATEGIES.iter().enumerate() {
            let of = |value: fn(&Round) -> f64| {
                spread(rounds.iter().map(|round| value(&round[strategy])), 2)
            };
            let ratio =
                spread(rounds.iter().map(|round| round[strategy].p50_us / round[0].p50_us), 2);
            println!(
                "{name:10} {:28} {:28} {ratio:28} {}",
                of(|round| round.p50_us),
                of(|round| round.p99_us),
                of(|round| round.neighbour)
            );
        }
    }
}
