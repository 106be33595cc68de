//! The server as a process, and a client that speaks WebSocket octet by octet.
//!
//! Nothing here shares code with the server: what it gets wrong cannot be got wrong here in the
//! same way. Every wait ends after [`TIMEOUT`] with a panic that says what was waited for, and no
//! process outlives its [`Server`].

#![allow(dead_code, reason = "each test target uses its own part")]

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::io::Errno;
use rustix::net::sockopt;
use rustix::process::{Pid, Signal, kill_process};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
use serde_json::Value;

/// The server's program.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_ringecho");
/// Longer than anything takes that works.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(60);
/// Between two looks at what cannot be waited for.
const PAUSE: Duration = Duration::from_millis(5);

/// First octets of frames: FIN and the opcode.
pub(crate) const TEXT: u8 = 0x81;
pub(crate) const BINARY: u8 = 0x82;
pub(crate) const CLOSE: u8 = 0x88;
pub(crate) const PING: u8 = 0x89;
pub(crate) const PONG: u8 = 0x8A;
/// FIN alone, to be taken off a first octet.
pub(crate) const FIN: u8 = 0x80;

/// The masking key of all frames sent here.
pub(crate) const KEY: [u8; 4] = [0x37, 0xFA, 0x21, 0x3D];

/// The request of [`Client::handshake`], with the key of RFC 6455 section 1.3.
pub(crate) const REQUEST: &str = "GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n\
    Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
/// The server's answer to it.
pub(crate) const RESPONSE: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\
    Connection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// The masked frame that a client sends.
pub(crate) fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = reply(first, payload);
    frame[1] |= 0x80;
    let header = frame.len() - payload.len();
    frame.splice(header..header, KEY);
    for (octet, key) in frame[header + KEY.len()..].iter_mut().zip(KEY.iter().cycle()) {
        *octet ^= key;
    }
    frame
}

/// The unmasked frame that the server sends.
pub(crate) fn reply(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(payload.len() + 14);
    frame.push(first);
    match payload.len() {
        length @ 0..126 => frame.push(length as u8),
        length @ 126..0x1_0000 => {
            frame.push(126);
            frame.extend((length as u16).to_be_bytes());
        }
        length => {
            frame.push(127);
            frame.extend((length as u64).to_be_bytes());
        }
    }
    frame.extend(payload);
    frame
}

/// `length` octets that look different at every place; also as text, all of it ASCII.
pub(crate) fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|place| (place * 31 + place / 251) as u8 & 0x7F).collect()
}

/// Says something that is seen although the test passes: what was measured, or what was skipped.
pub(crate) fn say(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Octets of memory that a process has in use.
pub(crate) fn resident_octets(pid: Pid) -> u64 {
    let text = fs::read_to_string(format!("/proc/{}/smaps_rollup", pid.as_raw_pid()));
    let text = text.expect("a process");
    let line = text.lines().find_map(|line| line.strip_prefix("Rss:")).expect("a line");
    let kilobytes = line.trim().strip_suffix(" kB").expect("kilobytes");
    kilobytes.parse::<u64>().expect("a number") * 1024
}

/// Keeps the kernel from taking ever more for a client that does not read. Less than a few segments
/// of the loopback would make the server's kernel wait for timers.
pub(crate) fn limit_receiving(client: &Client) {
    sockopt::set_socket_recv_buffer_size(client.stream(), 256 << 10).expect("an option");
}

/// Looks at `condition` until it holds.
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + TIMEOUT;
    while !condition() {
        assert!(Instant::now() < end, "waited in vain until {what}");
        thread::sleep(PAUSE);
    }
}

/// A running server. It is killed when dropped.
pub(crate) struct Server {
    child: Child,
    greeting: String,
    address: SocketAddr,
    output: Option<JoinHandle<String>>,
    errors: Option<JoinHandle<String>>,
    stats_file: PathBuf,
}

/// A server that has ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    /// All it printed, the first line included.
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    /// What stands in the statistics file; null if there is none.
    pub(crate) statistics: Value,
}

impl Ended {
    /// The sum of a counter over all workers.
    pub(crate) fn count(&self, name: &str) -> u64 {
        count(&self.statistics, name)
    }
}

/// A counter in the `total` of `statistics`.
fn count(statistics: &Value, name: &str) -> u64 {
    statistics["total"][name].as_u64().unwrap_or_else(|| panic!("no {name} in {statistics}"))
}

impl Server {
    /// Starts the server with `arguments` on a free port of 127.0.0.1, unless they have a
    /// `--listen`, and returns when it has printed its first line. RINGECHO_TEST_ENGINE names the
    /// engine where they do not, and do not want what only one has; `offload` is io_uring that leaves
    /// to the kernel what it can.
    pub(crate) fn start(arguments: &[&str]) -> Server {
        let mut command = Command::new(PROGRAM);
        command.args(arguments);
        if !arguments.contains(&"--listen") {
            command.args(["--listen", "127.0.0.1:0"]);
        }
        if let Ok(engine) = std::env::var("RINGECHO_TEST_ENGINE") {
            let (engine, others): (&[&str], &[&str]) = match engine.as_str() {
                "offload" => {
                    (&["--engine", "uring", "--offload", "on"], &["--engine", "--protocol"])
                }
                "tokio-uring" => {
                    (&["--engine", "tokio-uring"], &["--engine", "sqpoll", "adaptive", "spin"])
                }
                engine => (&["--engine", engine], &["--engine", "sqpoll"]),
            };
            if !arguments.iter().any(|argument| others.contains(argument)) {
                command.args(engine);
            }
        }
        Server::start_by(command)
    }

    /// Starts it by a command that takes the program's arguments at its end, with a `--listen` but
    /// no `--stats-file`. The command must keep its process id.
    pub(crate) fn start_by(mut command: Command) -> Server {
        let stats_file = temporary_file("stats.json");
        command.arg("--stats-file").arg(&stats_file);
        let mut child = spawn(&mut command);
        let mut stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        let errors = collect(child.stderr.take().expect("a pipe"));
        let (sender, receiver) = mpsc::channel();
        let output = thread::spawn(move || {
            let mut text = String::new();
            let _ = stdout.read_line(&mut text);
            let _ = sender.send(text.clone());
            let _ = stdout.read_to_string(&mut text);
            text
        });
        let greeting = receiver.recv_timeout(TIMEOUT).unwrap_or_default();
        let Some(address) = addresses_in(&greeting).first().copied() else {
            let _ = child.kill();
            let _ = child.wait();
            let stderr = errors.join().expect("a reader");
            panic!("the server did not start: {greeting:?} {stderr:?}");
        };
        let (output, errors) = (Some(output), Some(errors));
        Server { child, greeting, address, output, errors, stats_file }
    }

    /// Where it listens; the first address of several.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where it listens, all of it.
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        addresses_in(&self.greeting)
    }

    /// Its first line.
    pub(crate) fn greeting(&self) -> &str {
        self.greeting.trim_end()
    }

    /// Its process.
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Whether it still runs.
    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child").is_none()
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("a child that nobody has waited for");
    }

    /// Its counters now, by way of SIGUSR1: an object with `total` and `workers`.
    pub(crate) fn statistics(&self) -> Value {
        // The file appears whole or not at all.
        let _ = fs::remove_file(&self.stats_file);
        self.signal(Signal::USR1);
        wait_until("the statistics are written", || self.stats_file.exists());
        let text = fs::read(&self.stats_file).expect("statistics");
        serde_json::from_slice(&text).expect("JSON")
    }

    /// A counter now, summed over all workers.
    pub(crate) fn count(&self, name: &str) -> u64 {
        count(&self.statistics(), name)
    }

    /// Waits until a counter has this value.
    pub(crate) fn wait_for_count(&self, name: &str, value: u64) {
        wait_until(&format!("{name} is {value}"), || self.count(name) == value);
    }

    /// Sends SIGTERM and waits for the end.
    pub(crate) fn terminate(self) -> Ended {
        self.signal(Signal::TERM);
        self.wait()
    }

    /// Waits for the end.
    pub(crate) fn wait(mut self) -> Ended {
        let status = wait_for_end(&mut self.child);
        let statistics = fs::read(&self.stats_file).map_or(Value::Null, |text| {
            serde_json::from_slice(&text).expect("the statistics file holds JSON")
        });
        Ended {
            status,
            stdout: self.output.take().expect("not yet taken").join().expect("a reader"),
            stderr: self.errors.take().expect("not yet taken").join().expect("a reader"),
            statistics,
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It fails if the child has been waited for, and then it is gone.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.stats_file);
    }
}

/// Whether the server can leave echoes to the kernel here; if not, it is said that `test` is skipped,
/// and why.
pub(crate) fn can_offload(test: &str) -> bool {
    let policy = ["--engine", "uring", "--workers", "1", "--offload", "auto"];
    let server = Server::start(&policy);
    let can = server.greeting().ends_with(", offload auto)");
    let ended = server.terminate();
    if !can {
        say(&format!("SKIPPED: {test}: {}", ended.stderr.trim_end()));
    }
    can
}

/// Runs the server with `arguments` and nothing else, to its end: for what does not start.
pub(crate) fn run(arguments: &[&str]) -> Ended {
    let mut command = Command::new(PROGRAM);
    run_by(command.args(arguments))
}

/// Runs a command to its end.
pub(crate) fn run_by(command: &mut Command) -> Ended {
    end(spawn(command))
}

/// io_uring_setup(2) and io_uring_register(2), which are the same on all architectures.
const IO_URING_SETUP: i64 = 425;
pub(crate) const IO_URING_REGISTER: i64 = 427;

/// Calls `call` on a thread whose processes find that io_uring_setup(2) fails with `errno`.
pub(crate) fn without_io_uring<T: Send>(errno: Errno, call: impl FnOnce() -> T + Send) -> T {
    without(IO_URING_SETUP, errno, call)
}

/// The same for the system call of a `number`.
pub(crate) fn without<T: Send>(number: i64, errno: Errno, call: impl FnOnce() -> T + Send) -> T {
    let filter: BpfProgram = SeccompFilter::new(
        [(number, Vec::new())].into_iter().collect(),
        SeccompAction::Allow,
        SeccompAction::Errno(errno.raw_os_error() as u32),
        std::env::consts::ARCH.try_into().expect("an architecture with seccomp"),
    )
    .and_then(TryInto::try_into)
    .expect("a filter");
    thread::scope(|scope| {
        let called = scope.spawn(|| {
            // The filter is this thread's and its children's.
            seccompiler::apply_filter(&filter).expect("seccomp");
            call()
        });
        called.join().expect("a thread")
    })
}

/// Starts a command that is not to be waited for by a [`Server`].
pub(crate) fn spawn(command: &mut Command) -> Child {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program runs")
}

/// Waits for the end of a child, and reads its pipes as far as nobody has taken them.
pub(crate) fn end(mut child: Child) -> Ended {
    let stdout = child.stdout.take().map(collect);
    let stderr = child.stderr.take().map(collect);
    let status = wait_for_end(&mut child);
    let text = |reader: Option<JoinHandle<String>>| {
        reader.map_or_else(String::new, |reader| reader.join().expect("a reader"))
    };
    Ended { status, stdout: text(stdout), stderr: text(stderr), statistics: Value::Null }
}

/// A path that nobody else uses; the file is not made.
pub(crate) fn temporary_file(name: &str) -> PathBuf {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Relaxed);
    let unique = format!("{}-{number}-{name}", std::process::id());
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(unique)
}

fn collect(mut pipe: impl Read + Send + 'static) -> JoinHandle<String> {
    thread::spawn(move || {
        let mut text = String::new();
        let _ = pipe.read_to_string(&mut text);
        text
    })
}

/// Waits for the end of a child; one that does not end is killed.
pub(crate) fn wait_for_end(child: &mut Child) -> ExitStatus {
    let end = Instant::now() + TIMEOUT;
    loop {
        if let Some(status) = child.try_wait().expect("a child") {
            return status;
        }
        if Instant::now() > end {
            let _ = child.kill();
            panic!("the server did not end");
        }
        thread::sleep(PAUSE);
    }
}

/// The addresses in a first line.
fn addresses_in(greeting: &str) -> Vec<SocketAddr> {
    greeting
        .split_whitespace()
        .filter_map(|word| word.split_once("://").map(|(_, address)| address))
        .map(|address| address.parse().expect("an address"))
        .collect()
}

/// A frame from the server.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    /// FIN and the opcode.
    pub(crate) first: u8,
    pub(crate) payload: Vec<u8>,
}

/// A connection to the server. It reads and writes blocking, and fails by panics.
pub(crate) struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    /// A connection with the opening handshake behind it.
    pub(crate) fn connect(address: SocketAddr) -> Client {
        let mut client = Client::open(address);
        client.handshake();
        client
    }

    /// A connection of TCP alone.
    pub(crate) fn open(address: SocketAddr) -> Client {
        let stream = TcpStream::connect_timeout(&address, TIMEOUT).expect("a connection");
        stream.set_nodelay(true).expect("an option");
        stream.set_read_timeout(Some(TIMEOUT)).expect("an option");
        stream.set_write_timeout(Some(TIMEOUT)).expect("an option");
        Client { stream: BufReader::new(stream) }
    }

    /// The opening handshake.
    pub(crate) fn handshake(&mut self) {
        self.write(REQUEST.as_bytes());
        let response = self.read(RESPONSE.len());
        assert_eq!(String::from_utf8_lossy(&response), RESPONSE);
    }

    /// The opening handshake with `request`; returns the head of the response.
    pub(crate) fn handshake_by(&mut self, request: &str) -> String {
        self.write(request.as_bytes());
        let mut response = Vec::new();
        while !response.ends_with(b"\r\n\r\n") {
            response.extend(self.read(1));
        }
        String::from_utf8(response).expect("the server writes ASCII")
    }

    /// The socket, for its options and for shutting it down.
    pub(crate) fn stream(&self) -> &TcpStream {
        self.stream.get_ref()
    }

    /// Sends octets as they are.
    pub(crate) fn write(&mut self, octets: &[u8]) {
        self.stream.get_mut().write_all(octets).expect("the server takes octets");
    }

    /// Reads exactly `count` octets.
    pub(crate) fn read(&mut self, count: usize) -> Vec<u8> {
        let mut octets = vec![0; count];
        self.stream.read_exact(&mut octets).expect("the server sends octets");
        octets
    }

    /// Reads what comes before the end of the stream; an error if that is a reset.
    pub(crate) fn read_to_end(&mut self) -> io::Result<Vec<u8>> {
        let mut octets = Vec::new();
        self.stream.read_to_end(&mut octets)?;
        Ok(octets)
    }

    /// Sends a frame in one write.
    pub(crate) fn send_frame(&mut self, first: u8, payload: &[u8]) {
        self.write(&frame(first, payload));
    }

    /// Reads a frame, which is not masked and has its length in the shortest form.
    pub(crate) fn read_frame(&mut self) -> Frame {
        let header = self.read(2);
        let length = match header[1] {
            short @ 0..126 => u64::from(short),
            126 => {
                let length = self.read(2).try_into().map(u16::from_be_bytes).expect("two");
                assert!(length >= 126, "the length {length} has a shorter form");
                u64::from(length)
            }
            127 => {
                let length = self.read(8).try_into().map(u64::from_be_bytes).expect("eight");
                assert!(length > 0xFFFF, "the length {length} has a shorter form");
                length
            }
            masked => panic!("a server does not mask: {masked:#x}"),
        };
        Frame { first: header[0], payload: self.read(length as usize) }
    }

    /// Sends a frame and reads its echo.
    pub(crate) fn echo(&mut self, first: u8, payload: &[u8]) {
        self.send_frame(first, payload);
        self.expect(first, payload);
    }

    /// Reads a frame that must be this one.
    pub(crate) fn expect(&mut self, first: u8, payload: &[u8]) {
        let frame = self.read_frame();
        let shown = &frame.payload[..frame.payload.len().min(64)];
        assert_eq!(frame.first, first, "a frame with {shown:x?}");
        assert_eq!(frame.payload.len(), payload.len(), "a frame with {shown:x?}");
        let different = frame.payload.iter().zip(payload).position(|(left, right)| left != right);
        assert_eq!(different, None, "the first octet that is not what was sent");
    }

    /// Reads a close frame with this code and no reason, and the end of the stream after it.
    pub(crate) fn expect_close(&mut self, code: u16) {
        self.expect(CLOSE, &code.to_be_bytes());
        self.expect_end();
    }

    /// Reads the end of the stream: FIN, and nothing before it.
    pub(crate) fn expect_end(&mut self) {
        let rest = self.read_to_end().expect("FIN and not RST");
        assert_eq!(rest, b"", "octets before the end of the stream");
    }

    /// The closing handshake from this side, with code 1000.
    pub(crate) fn close(mut self) {
        self.send_frame(CLOSE, &1000u16.to_be_bytes());
        self.expect_close(1000);
    }
}

/// A test of what a generator makes of a seed. Its failure prints how to repeat it.
pub(crate) struct Case {
    test: &'static str,
    pub(crate) seed: u64,
    pub(crate) random: Random,
}

impl Drop for Case {
    fn drop(&mut self) {
        if thread::panicking() {
            let Case { test, seed, .. } = self;
            let target = env!("CARGO_CRATE_NAME");
            say(&format!("repeat: RINGECHO_SEED={seed} cargo test --test {target} {test}"));
        }
    }
}

/// So many cases of `test`. The seed of the first is that of the run, so that any of them can be
/// made the first.
pub(crate) fn cases(test: &'static str, count: usize) -> impl Iterator<Item = Case> + Send + use<> {
    let run = match std::env::var("RINGECHO_SEED") {
        Ok(seed) => seed.parse().expect("RINGECHO_SEED is a number"),
        Err(_) => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970");
            now.as_nanos() as u64 % 1_000_000_000_000
        }
    };
    println!("{test}: RINGECHO_SEED={run}");
    (0..count).map(move |number| {
        let seed = run.wrapping_add(number as u64);
        Case { test, seed, random: Random(seed) }
    })
}

/// SplitMix64.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    pub(crate) fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    pub(crate) fn octets(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next() as u8).collect()
    }

    /// Where to cut a stream of `octets`: into a few pieces, or into many small ones.
    pub(crate) fn cuts(&mut self, octets: usize) -> Vec<usize> {
        let most = self.pick(&[3, 40, 700, 5000, 100_000]).max(octets / 2000);
        let mut cuts = Vec::new();
        let mut at = 0;
        loop {
            at += 1 + self.below(most);
            if at >= octets {
                return cuts;
            }
            cuts.push(at);
        }
    }
}
