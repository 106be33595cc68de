//! Measures what each engine costs: system calls and processor time a message, and round trips, for
//! 1, 64 and 1,000 connections, alternately, in rounds, with ratios to the first paired by round.
//!
//! The client runs on a processor of its own and has one message under way on each connection; it
//! takes echoes as they come, compares them, and sends the next. All servers of a table run for the
//! whole of it; those that wait take no processor time.

use std::fmt::Write as _;
use std::io::{Error, Read as _, Result, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use core_affinity::CoreId;
use ringbench::compare;
use ringbench::server::{Server, program};
use ringbench::{REQUEST, masked_frame, spread};
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};

const ROUNDS: usize = 9;
/// Messages of a round; a tenth as many go before them.
const MESSAGES: usize = 30_000;
const CONNECTIONS: [usize; 3] = [1, 64, 1000];
const PAYLOAD: &[u8; 16] = b"0123456789abcdef";
/// An echo that takes longer does not come.
const ECHO_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for the server to fall asleep, after which the account of its processor time is complete.
const REST: Duration = Duration::from_millis(20);

/// What is measured; the first is what the others are compared with.
const SERVERS: [(&str, &[&str]); 7] = [
    ("uring", &["--engine", "uring", "--wait", "block"]),
    ("tokio-uring", &["--engine", "tokio-uring"]),
    ("epoll", &["--engine", "epoll", "--wait", "block"]),
    ("uring, tcp", &["--engine", "uring", "--wait", "block", "--protocol", "tcp"]),
    ("epoll, tcp", &["--engine", "epoll", "--wait", "block", "--protocol", "tcp"]),
    ("uring, adaptive", &["--engine", "uring", "--wait", "adaptive"]),
    ("epoll, adaptive", &["--engine", "epoll", "--wait", "adaptive"]),
];

/// One server of a table.
struct Measured {
    name: &'static str,
    server: Server,
    stats_file: PathBuf,
    client: Client,
    rounds: Vec<Round>,
}

/// What one server did in one round; times in microseconds.
#[derive(Debug, Clone, Copy)]
struct Round {
    cpu_us: f64,
    p50_us: f64,
    p99_us: f64,
    p999_us: f64,
}

/// Connections with one message under way on each.
struct Client {
    epoll: std::os::fd::OwnedFd,
    streams: Vec<TcpStream>,
    sent: Vec<Instant>,
    request: Vec<u8>,
    reply: Vec<u8>,
}

impl Client {
    fn connect(address: &str, connections: usize, is_plain: bool) -> Result<Client> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let mut streams = Vec::with_capacity(connections);
        for number in 0..connections as u64 {
            let mut stream = TcpStream::connect(address)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(ECHO_TIMEOUT))?;
            if !is_plain {
                stream.write_all(REQUEST)?;
                let mut response = Vec::new();
                while !response.ends_with(b"\r\n\r\n") {
                    let mut octet = [0];
                    stream.read_exact(&mut octet)?;
                    response.push(octet[0]);
                }
            }
            epoll::add(&epoll, &stream, EventData::new_u64(number), EventFlags::IN)?;
            streams.push(stream);
        }
        let (request, reply) = if is_plain {
            (PAYLOAD.to_vec(), PAYLOAD.to_vec())
        } else {
            (masked_frame(0x81, PAYLOAD), [&[0x81, PAYLOAD.len() as u8], &PAYLOAD[..]].concat())
        };
        Ok(Client { epoll, streams, sent: vec![Instant::now(); connections], request, reply })
    }

    fn send(&mut self, number: usize) -> Result<()> {
        self.sent[number] = Instant::now();
        self.streams[number].write_all(&self.request)
    }

    /// Has `messages` echoed, and gives the round trips in nanoseconds.
    fn exchange(&mut self, messages: usize) -> Result<Vec<u64>> {
        let mut trips = Vec::with_capacity(messages);
        let mut sent = self.streams.len().min(messages);
        for number in 0..sent {
            self.send(number)?;
        }
        let mut events: Vec<Event> = Vec::with_capacity(1024);
        let mut octets = vec![0; self.reply.len()];
        let timeout = rustix::event::Timespec { tv_sec: ECHO_TIMEOUT.as_secs() as i64, tv_nsec: 0 };
        while trips.len() < messages {
            events.clear();
            // With one connection its read waits as well, and costs a call less.
            if self.streams.len() > 1 {
                let room = rustix::buffer::spare_capacity(&mut events);
                epoll::wait(&self.epoll, room, Some(&timeout))?;
                if events.is_empty() {
                    return Err(Error::other("an echo does not come"));
                }
            } else {
                events.push(Event { flags: EventFlags::IN, data: EventData::new_u64(0) });
            }
            for event in &events {
                let number = event.data.u64() as usize;
                self.streams[number].read_exact(&mut octets)?;
                trips.push(self.sent[number].elapsed().as_nanos() as u64);
                if octets != self.reply {
                    return Err(Error::other("an echo is another than what was sent"));
                }
                if sent < messages {
                    sent += 1;
                    self.send(number)?;
                }
            }
        }
        Ok(trips)
    }
}

fn measure(measured: &mut Measured) -> Result<Round> {
    measured.client.exchange(MESSAGES / 10)?;
    std::thread::sleep(REST);
    let begin = measured.server.cpu_time()?;
    let mut trips = measured.client.exchange(MESSAGES)?;
    std::thread::sleep(REST);
    let cpu_time = measured.server.cpu_time()?.saturating_sub(begin);
    trips.sort_unstable();
    let at = |part: f64| trips[((trips.len() - 1) as f64 * part) as usize] as f64 / 1000.0;
    Ok(Round {
        cpu_us: cpu_time.as_secs_f64() * 1e6 / MESSAGES as f64,
        p50_us: at(0.5),
        p99_us: at(0.99),
        p999_us: at(0.999),
    })
}

fn start(cpu: usize, connections: usize, directory: &Path) -> Result<Vec<Measured>> {
    let start = |(number, (name, options)): (usize, &(&'static str, &[&str]))| {
        let stats_file = directory.join(format!("engines-{number}.json"));
        let mut command = Command::new(program());
        command.args(["--listen", "127.0.0.1:0", "--workers", "1", "--cpus", &cpu.to_string()]);
        command.args(*options).arg("--stats-file").arg(&stats_file);
        // It may use only the processors of the thread that starts it.
        let server = compare::on(&[cpu], || Server::start(&mut command))?;
        let is_plain = options.contains(&"tcp");
        let client = Client::connect(server.address(), connections, is_plain)?;
        Ok(Measured { name, server, stats_file, client, rounds: Vec::new() })
    };
    SERVERS.iter().enumerate().map(start).collect()
}

/// The system calls a message that a server counted, after its end.
fn syscalls(stats_file: &Path) -> Result<f64> {
    let text = std::fs::read_to_string(stats_file)?;
    let statistics: serde_json::Value = serde_json::from_str(&text)?;
    std::fs::remove_file(stats_file)?;
    let ratio = statistics["total"]["syscalls_per_message"].as_f64();
    ratio.ok_or_else(|| Error::other("the statistics have no syscalls_per_message"))
}

fn run(rounds: usize) -> Result<()> {
    let cpus: Vec<usize> =
        core_affinity::get_core_ids().unwrap_or_default().iter().map(|core| core.id).collect();
    let &[server_cpu, client_cpu, ..] = cpus.as_slice() else {
        let complaint = format!("two processors are needed; this process may use {cpus:?}");
        return Err(Error::other(complaint));
    };
    core_affinity::set_for_current(CoreId { id: client_cpu });
    println!(
        "{} octets, {MESSAGES} messages a round, {rounds} rounds; median of the rounds (least to \
         greatest); ratios to {} by round",
        PAYLOAD.len(),
        SERVERS[0].0
    );
    for connections in CONNECTIONS {
        let mut table = start(server_cpu, connections, &std::env::temp_dir())?;
        for number in 0..rounds {
            for turn in 0..table.len() {
                // Another one begins each time.
                let at = (number + turn) % SERVERS.len();
                let measured = &mut table[at];
                let round = measure(measured)
                    .map_err(|error| Error::other(format!("{}: {error}", measured.name)))?;
                measured.rounds.push(round);
            }
        }
        report(connections, table)?;
    }
    Ok(())
}

/// Prints a table, as Markdown, after the servers have ended.
fn report(connections: usize, table: Vec<Measured>) -> Result<()> {
    println!("\n{connections} connections\n");
    println!(
        "| engine | system calls a message | CPU µs a message | ratio | p50 µs | ratio | p99 µs | \
         p99.9 µs |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    let first = table[0].rounds.clone();
    for Measured { name, server, stats_file, client, rounds } in table {
        drop(client);
        server.end()?;
        let mut line = format!("| {name} | {:.2}", syscalls(&stats_file)?);
        let mut cell = |text: String| write!(line, " | {}", text.trim_start());
        let of = |field: fn(&Round) -> f64, decimals| spread(rounds.iter().map(field), decimals);
        let ratio = |field: fn(&Round) -> f64| {
            spread(rounds.iter().zip(&first).map(|(round, first)| field(round) / field(first)), 2)
        };
        let cells = [
            of(|round| round.cpu_us, 1),
            ratio(|round| round.cpu_us),
            of(|round| round.p50_us, 1),
            ratio(|round| round.p50_us),
            of(|round| round.p99_us, 0),
            of(|round| round.p999_us, 0),
        ];
        for text in cells {
            cell(text).expect("a string");
        }
        println!("{line} |");
    }
    Ok(())
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let rounds = match (arguments.next().map(|rounds| rounds.parse()), arguments.next()) {
        (None, _) => ROUNDS,
        (Some(Ok(rounds @ 1..)), None) => rounds,
        _ => {
            eprintln!("usage: engines [ROUNDS]");
            return ExitCode::from(2);
        }
    };
    match run(rounds) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("engines: {error}");
            ExitCode::FAILURE
        }
    }
}
