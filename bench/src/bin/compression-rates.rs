//! Measures what permessage-deflate costs the server: messages per second of its processor time,
//! of `--compression mirror`, of `--compression deflate` and of the npm package `ws`, alternately,
//! in rounds, with ratios paired by round.
//!
//! The client sends a message and waits for its echo, on one connection and on a processor of its
//! own. What it sends it has deflated before, and what it receives it inflates and compares after
//! the processor time is taken. All three servers run for the whole time, so that the compiler of
//! `ws` is done when it counts; those that wait take no processor time.

use std::io::{BufRead, BufReader, Error, ErrorKind, Read, Result, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use core_affinity::CoreId;
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};
use ringbench::records::Records;
use ringbench::server::{Server, program};
use ringbench::{masked_frame, spread};

const ROUNDS: usize = 9;
const SEED: u64 = 7692;
/// The level of `ws` too, whose default is zlib's.
const LEVEL: u32 = 6;
/// How many times the rate of `deflate` that of `mirror` should be in the case of `TARGET_OCTETS`.
const TARGET: f64 = 5.0;
const TARGET_OCTETS: usize = 64 << 10;
/// What a sync flush ends with and a message leaves out (RFC 7692 section 7.2.1).
const TAIL: [u8; 4] = [0x00, 0x00, 0xff, 0xff];
/// Time for the server to fall asleep, after which the account of its processor time is complete.
const REST: Duration = Duration::from_millis(20);
/// An echo that takes longer does not come.
const ECHO_TIMEOUT: Duration = Duration::from_secs(10);

/// One size of message.
#[derive(Debug, Clone, Copy)]
struct Case {
    octets: usize,
    /// The messages measured in a round; a tenth as many go before them.
    messages: usize,
}

const CASES: [Case; 3] = [
    Case { octets: 16, messages: 20_000 },
    Case { octets: 1 << 10, messages: 10_000 },
    Case { octets: TARGET_OCTETS, messages: 500 },
];

/// What one server did in one round.
#[derive(Debug, Clone, Copy)]
struct Round {
    /// Messages per second of processor time.
    rate: f64,
    /// Octets of the echoes' payloads to one octet of the messages.
    deflated: f64,
}

/// What the client sends in every round of a case.
struct Messages {
    case: Case,
    texts: Vec<String>,
    frames: Vec<Vec<u8>>,
    /// Octets of the frames' payloads to one octet of the messages.
    deflated: f64,
}

impl Messages {
    /// The messages of a connection, deflated in order, each with what went before as its context.
    fn deflate(case: Case) -> Messages {
        let mut records = Records::new(SEED);
        let count = case.messages / 10 + case.messages;
        let texts: Vec<String> = (0..count).map(|_| records.message(case.octets)).collect();
        let mut context = Compress::new(Compression::new(LEVEL), false);
        // One call flushes all only if it does not fill the room.
        let mut payload = Vec::with_capacity(2 * case.octets + 64);
        let mut payload_octets = 0;
        let mut deflate = |text: &String| {
            payload.clear();
            context
                .compress_vec(text.as_bytes(), &mut payload, FlushCompress::Sync)
                .expect("deflating cannot fail");
            assert!(payload.len() < payload.capacity(), "there was room");
            let payload = payload.strip_suffix(&TAIL).expect("a sync flush");
            payload_octets += payload.len();
            // FIN, RSV1 for a message that is deflated, and the opcode of text.
            masked_frame(0xc1, payload)
        };
        let frames = texts.iter().map(&mut deflate).collect();
        let deflated = payload_octets as f64 / (count * case.octets) as f64;
        Messages { case, texts, frames, deflated }
    }
}

/// A connection with permessage-deflate.
struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    fn connect(address: &str) -> Result<Client> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ECHO_TIMEOUT))?;
        let mut stream = BufReader::with_capacity(64 << 10, stream);
        let request = "GET / HTTP/1.1\r\nHost: bench\r\nUpgrade: websocket\r\n\
                       Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
                       Sec-WebSocket-Version: 13\r\n\
                       Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n";
        stream.get_mut().write_all(request.as_bytes())?;
        let mut status = String::new();
        stream.read_line(&mut status)?;
        if !status.starts_with("HTTP/1.1 101 ") {
            return Err(Error::other(format!("answered {:?}", status.trim_end())));
        }
        let mut extensions = String::new();
        loop {
            let mut line = String::new();
            stream.read_line(&mut line)?;
            match line.trim_end().split_once(':') {
                Some((name, value)) if name.eq_ignore_ascii_case("sec-websocket-extensions") => {
                    extensions.push_str(value.trim());
                }
                Some(_) => {}
                None => break,
            }
        }
        // Parameters would limit the window or end the context: another measurement.
        if extensions != "permessage-deflate" {
            let complaint = format!("answered extensions {extensions:?}, not permessage-deflate");
            return Err(Error::other(complaint));
        }
        Ok(Client { stream })
    }

    /// Sends a message and appends the payload of its echo to `echoes`.
    fn echo(&mut self, frame: &[u8], echoes: &mut Vec<u8>) -> Result<()> {
        self.stream.get_mut().write_all(frame)?;
        // RSV1 and the opcode stand in the first fragment only (RFC 7692 section 6).
        let mut expected = 0x41;
        loop {
            let first = self.octets::<1>()?[0];
            if first & 0x7f != expected {
                return Err(Error::other(format!("a frame began with {first:#04x}")));
            }
            // A server's frame with a mask has its highest bit set and is none of these.
            let length = match self.octets::<1>()?[0] {
                length @ 0..=125 => u64::from(length),
                126 => u64::from(u16::from_be_bytes(self.octets()?)),
                127 => u64::from_be_bytes(self.octets()?),
                masked => return Err(Error::other(format!("a frame has length {masked:#04x}"))),
            };
            if (&mut self.stream).take(length).read_to_end(echoes)? as u64 != length {
                return Err(Error::other("an echo ended early"));
            }
            if first & 0x80 != 0 {
                return Ok(());
            }
            expected = 0;
        }
    }

    fn octets<const COUNT: usize>(&mut self) -> Result<[u8; COUNT]> {
        let mut octets = [0; COUNT];
        self.stream.read_exact(&mut octets)?;
        Ok(octets)
    }
}

/// Has every message echoed on a new connection.
fn measure(server: &Server, messages: &Messages) -> Result<Round> {
    let Messages { case, texts, frames, .. } = messages;
    let mut client = Client::connect(server.address())?;
    let mut echoes = Vec::with_capacity(2 * frames.iter().map(Vec::len).sum::<usize>());
    let mut ends = Vec::with_capacity(frames.len());
    let mut exchange = |frames: &[Vec<u8>]| -> Result<Duration> {
        for frame in frames {
            client.echo(frame, &mut echoes).map_err(|error| match error.kind() {
                ErrorKind::WouldBlock => Error::other("an echo does not come"),
                _ => error,
            })?;
            ends.push(echoes.len());
        }
        std::thread::sleep(REST);
        server.cpu_time()
    };
    let (before, measured) = frames.split_at(frames.len() - case.messages);
    let begin = exchange(before)?;
    let end = exchange(measured)?;
    compare(texts, &echoes, &ends)?;
    let cpu_time = end
        .checked_sub(begin)
        .ok_or_else(|| Error::other("a thread of the server ended, with its account"))?
        .as_secs_f64();
    let deflated = echoes.len() as f64 / (frames.len() * case.octets) as f64;
    Ok(Round { rate: case.messages as f64 / cpu_time, deflated })
}

/// Inflates the echoes, whose payloads end at `ends`, and compares them with the messages.
fn compare(texts: &[String], echoes: &[u8], ends: &[usize]) -> Result<()> {
    let mut context = Decompress::new(false);
    let mut begin = 0;
    for (number, (text, &end)) in texts.iter().zip(ends).enumerate() {
        // An octet more than it takes, so that nothing is held back for want of room.
        let mut inflated = Vec::with_capacity(text.len() + 1);
        for part in [&echoes[begin..end], &TAIL] {
            let taken = context.total_in();
            context.decompress_vec(part, &mut inflated, FlushDecompress::Sync)?;
            if context.total_in() - taken != part.len() as u64 {
                return Err(Error::other(format!("the echo of message {number} is too long")));
            }
        }
        if inflated != text.as_bytes() {
            return Err(Error::other(format!("message {number} and its echo differ")));
        }
        begin = end;
    }
    Ok(())
}

fn start_ringecho(cpu: usize, options: &[&str]) -> Result<Server> {
    let cpu = cpu.to_string();
    let mut command = Command::new(program());
    command.args(["--listen", "127.0.0.1:0", "--workers", "1", "--cpus", &cpu, "--wait", "block"]);
    Server::start(command.arg("--compression").args(options))
        .map_err(|error| Error::other(format!("{error} with --compression {}", options.join(" "))))
}

fn start_ws() -> Result<Server> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/ws");
    if !directory.join("node_modules/ws").exists() {
        return Err(Error::other("it is not installed"));
    }
    Server::start(Command::new("node").arg(directory.join("server.mjs")))
}

/// Starts the servers on `cpu`: `mirror`, `deflate` and, where it is installed, `ws`.
fn start(cpu: usize) -> Result<Vec<(&'static str, Server)>> {
    // `ws` has no option for its processor; it inherits this thread's.
    core_affinity::set_for_current(CoreId { id: cpu });
    let level = LEVEL.to_string();
    let mut servers = vec![
        ("mirror", start_ringecho(cpu, &["mirror"])?),
        ("deflate", start_ringecho(cpu, &["deflate", "--compression-level", &level])?),
    ];
    match start_ws() {
        Ok(server) => servers.push(("ws", server)),
        Err(error) => eprintln!(
            "compression-rates: goes on without ws: {error}; install Node.js and run `npm ci` in \
             bench/peers/ws"
        ),
    }
    Ok(servers)
}

/// Prints the table of a case; `rounds` are in the order of `names`, which `mirror` heads.
fn report(messages: &Messages, names: &[&str], rounds: &[Vec<Round>]) {
    let Messages { case, deflated, .. } = messages;
    println!(
        "\n{} octets, {} messages a round, deflated to {deflated:.2} of that",
        case.octets, case.messages
    );
    println!("{:8} {:30} {:24} echo deflated to", "", "messages / CPU s", "mirror / this");
    for (server, name) in names.iter().enumerate() {
        let rates = spread(rounds.iter().map(|round| round[server].rate), 0);
        let ratios = spread(rounds.iter().map(|round| round[0].rate / round[server].rate), 2);
        println!("{name:8} {rates:30} {ratios:24} {:.2}", rounds[0][server].deflated);
    }
}

fn run(rounds: usize) -> Result<()> {
    let cpus: Vec<usize> =
        core_affinity::get_core_ids().unwrap_or_default().iter().map(|core| core.id).collect();
    let &[server_cpu, client_cpu, ..] = cpus.as_slice() else {
        let complaint = format!("two processors are needed; this process may use {cpus:?}");
        return Err(Error::other(complaint));
    };
    let servers = start(server_cpu)?;
    core_affinity::set_for_current(CoreId { id: client_cpu });
    let names: Vec<&str> = servers.iter().map(|(name, _)| *name).collect();

    println!(
        "text messages of JSON, one connection, context takeover, level {LEVEL}, {rounds} rounds;"
    );
    println!("median of the rounds (least to greatest)");
    for case in CASES {
        let messages = Messages::deflate(case);
        let mut table: Vec<Vec<Round>> = Vec::new();
        for number in 0..rounds {
            let mut row = vec![Round { rate: 0.0, deflated: 0.0 }; servers.len()];
            // Another one begins each time.
            for turn in 0..servers.len() {
                let at = (number + turn) % servers.len();
                let (name, server) = &servers[at];
                row[at] = measure(server, &messages)
                    .map_err(|error| Error::other(format!("{name}: {error}")))?;
            }
            table.push(row);
        }
        report(&messages, &names, &table);
        if case.octets == TARGET_OCTETS {
            judge(&table);
        }
    }
    Ok(())
}

fn judge(rounds: &[Vec<Round>]) {
    let mut ratios: Vec<f64> = rounds.iter().map(|round| round[0].rate / round[1].rate).collect();
    ratios.sort_by(f64::total_cmp);
    let ratio = ratios[(ratios.len() - 1) / 2];
    let verdict = if ratio >= TARGET { "met" } else { "missed" };
    println!("\ntarget, mirror at least {TARGET} times deflate here: {verdict}, {ratio:.2}");
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let rounds = match (arguments.next().map(|rounds| rounds.parse()), arguments.next()) {
        (None, _) => ROUNDS,
        (Some(Ok(rounds @ 1..)), None) => rounds,
        _ => {
            eprintln!("usage: compression-rates [ROUNDS]");
            return ExitCode::from(2);
        }
    };
    match run(rounds) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("compression-rates: {error}");
            ExitCode::FAILURE
        }
    }
}
