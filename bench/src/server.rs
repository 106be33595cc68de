//! A server that is started here: a process with a guard ([`crate::guard`]) above it.
//!
//! The last lines that it prints are kept, to be shown when something goes wrong. Nothing here knows
//! what is measured.

use std::collections::VecDeque;
use std::fmt;
use std::io::{BufRead as _, BufReader, PipeReader, Read as _, pipe};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ringecho::cpus;
use rustix::process::Signal;

use crate::guard::{END_TIMEOUT, ENDED, FAILED};
use crate::listening;
use crate::process::{descendants, signal_descendants};
use crate::stop::Stop;
use crate::usage::Usage;

/// How long a server may take until it listens.
pub const START_TIMEOUT: Duration = Duration::from_secs(20);
/// How much longer than the server its guard may take to end.
const GUARD_TIMEOUT: Duration = Duration::from_secs(5);
/// How often to check for something that is waited for.
const CHECK_INTERVAL: Duration = Duration::from_millis(20);
/// Time for a server to fall asleep, after which the kernel's figures about it are up to date.
const IDLE_PAUSE: Duration = Duration::from_millis(20);
/// How long the last lines of a server that has ended are waited for.
const LINES_TIMEOUT: Duration = Duration::from_secs(1);
/// Lines that are kept of what a server prints, and the bytes of each.
const LINES_MAX: usize = 10;
const LINE_BYTES_MAX: u64 = 1000;

/// A program in the directory of this one.
pub fn program(name: &str) -> PathBuf {
    // Without /proc, only the name that this program was called by is known.
    let called = || std::env::args_os().next().unwrap_or_default().into();
    std::env::current_exe().unwrap_or_else(|_| called()).with_file_name(name)
}

/// What to start, and where.
#[derive(Debug, Clone, Copy)]
pub struct Launch<'a> {
    /// The program and its arguments.
    pub words: &'a [String],
    /// The CPUs that it may use; if empty, those of this process.
    pub cpus: &'a [usize],
    /// Ends the wait until it is ready.
    pub stop: &'a Stop,
}

/// How to find out that a server is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ready {
    /// It prints an address, after `://`.
    Prints,
    /// It listens on this port.
    Listens(u16),
}

/// A running server. It is ended when this is dropped.
#[derive(Debug)]
pub struct Server {
    guard: Child,
    /// The guard ends when this does.
    lifeline: UnixStream,
    /// All that the guard has written so far.
    said: Vec<u8>,
    /// How the server ended, if it has.
    ended: Option<String>,
    output: Arc<Mutex<Output>>,
    reader: Option<JoinHandle<()>>,
    program: String,
    address: String,
}

/// What a server has printed.
#[derive(Debug, Default)]
struct Output {
    lines: VecDeque<String>,
    /// The first address in it.
    address: Option<String>,
}

impl Server {
    /// Starts a server and waits until it serves.
    ///
    /// # Errors
    ///
    /// What went wrong, with the last lines that the server printed. It is ended then.
    pub fn start(launch: Launch<'_>, ready: Ready) -> Result<Server, String> {
        let mut server = Server::spawn(launch)?;
        let until = Instant::now() + START_TIMEOUT;
        loop {
            let address = match ready {
                Ready::Prints => server.output().address.clone(),
                Ready::Listens(port) => {
                    listening::address_on(port).map(|ip| SocketAddr::new(ip, port).to_string())
                }
            };
            if let Some(ended) = server.ended() {
                return Err(format!("{} {ended}{}", server.program, server.last_lines()));
            }
            if let Some(address) = address {
                server.address = address;
                return Ok(server);
            }
            if launch.stop.is_requested() {
                return Err(format!("{} was ended by a signal before it served", server.program));
            }
            if Instant::now() > until {
                let not_ready = server.not_ready(ready);
                return Err(format!("{not_ready}{}", server.last_lines()));
            }
            thread::sleep(CHECK_INTERVAL);
        }
    }

    fn spawn(launch: Launch<'_>) -> Result<Server, String> {
        let program = launch.words.first().cloned().unwrap_or_default();
        let failed = |error: &dyn fmt::Display| format!("cannot start {program}: {error}");
        let (lifeline, end) = UnixStream::pair().map_err(|error| failed(&error))?;
        let (printed, output) = pipe().map_err(|error| failed(&error))?;
        let errors = output.try_clone().map_err(|error| failed(&error))?;
        let mut command = Command::new(self::program("ringbench"));
        command.arg("guard");
        if !launch.cpus.is_empty() {
            command.args(["--cpus", &cpus::list(launch.cpus)]);
        }
        let guard = command
            .arg("--")
            .args(launch.words)
            .process_group(0)
            .stdin(Stdio::from(OwnedFd::from(end)))
            .stdout(Stdio::from(output))
            .stderr(Stdio::from(errors))
            .spawn()
            .map_err(|error| failed(&format_args!("its guard: {error}")))?;
        // Drops this program's copies of the guard's ends of the socket and the pipe.
        drop(command);
        lifeline.set_nonblocking(true).map_err(|error| failed(&error))?;
        let output = Arc::<Mutex<Output>>::default();
        let kept = Arc::clone(&output);
        let reader = thread::Builder::new()
            .name("output".to_owned())
            .spawn(move || keep(printed, &kept))
            .map_err(|error| failed(&error))?;
        let (said, ended, reader, address) = (Vec::new(), None, Some(reader), String::new());
        Ok(Server { guard, lifeline, said, ended, output, reader, program, address })
    }

    /// Where it listens, as `address:port`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// How it ended, if it has, to print after its name. A command whose processes still run has not
    /// ended.
    pub fn ended(&mut self) -> Option<String> {
        // It fails with what has come so far read, as the socket does not block.
        let _ = self.lifeline.read_to_end(&mut self.said);
        let said = String::from_utf8_lossy(&self.said);
        for line in said.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
            if let Some(why) = line.strip_prefix(FAILED) {
                self.ended = Some(format!("cannot be started: {why}"));
            }
            if let Some(how) = line.strip_prefix(ENDED) {
                self.ended = Some(format!("has ended, with {how}"));
            }
        }
        if self.ended.is_none() && matches!(self.guard.try_wait(), Ok(Some(_))) {
            self.ended = Some("has lost its guard".to_owned());
        }
        self.ended.clone()
    }

    /// How it ended, waiting up to `time` for that.
    pub fn ended_within(&mut self, time: Duration) -> Option<String> {
        let until = Instant::now() + time;
        while self.ended().is_none() && Instant::now() < until {
            thread::sleep(CHECK_INTERVAL);
        }
        self.ended()
    }

    /// The last lines that it printed, to append to a message; empty if it printed nothing.
    pub fn last_lines(&self) -> String {
        let until = Instant::now() + LINES_TIMEOUT;
        let is_reading = || self.reader.as_ref().is_some_and(|reader| !reader.is_finished());
        while self.ended.is_some() && is_reading() && Instant::now() < until {
            thread::sleep(CHECK_INTERVAL);
        }
        let output = self.output();
        if output.lines.is_empty() {
            return String::new();
        }
        let lines = output.lines.iter().map(|line| format!("\n  {line}"));
        format!("; the last it printed:{}", lines.collect::<String>())
    }

    /// Stops all of its processes, until [`Server::resume`].
    pub fn pause(&self) {
        signal_descendants(self.guard.id(), Signal::STOP);
    }

    /// Lets its processes go on.
    pub fn resume(&self) {
        signal_descendants(self.guard.id(), Signal::CONT);
    }

    /// Its processes.
    pub fn processes(&self) -> Vec<u32> {
        descendants(self.guard.id())
    }

    /// What it has used so far, if that can be read. Waits until the server is idle.
    pub fn usage(&self) -> Option<Usage> {
        thread::sleep(IDLE_PAUSE);
        Usage::below(self.guard.id()).ok()
    }

    fn output(&self) -> std::sync::MutexGuard<'_, Output> {
        self.output.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn not_ready(&self, ready: Ready) -> String {
        let (program, seconds) = (&self.program, START_TIMEOUT.as_secs());
        let port = match ready {
            Ready::Prints => return format!("{program} printed no address in {seconds} s"),
            Ready::Listens(port) => port,
        };
        let elsewhere = listening::addresses_of(&self.processes());
        let elsewhere: Vec<String> = elsewhere.iter().map(ToString::to_string).collect();
        let elsewhere = match elsewhere.as_slice() {
            [] => "it does not listen at all".to_owned(),
            some => format!("it listens on {}", some.join(", ")),
        };
        format!(
            "{program} did not listen on port {port} in {seconds} s ({elsewhere}); it must listen on \
             127.0.0.1 or ::1 and the port that replaces {{port}} in the command"
        )
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Its guard sees this and ends everything below it.
        let _ = self.lifeline.shutdown(std::net::Shutdown::Both);
        let until = Instant::now() + END_TIMEOUT + GUARD_TIMEOUT;
        while matches!(self.guard.try_wait(), Ok(None)) {
            if Instant::now() > until {
                signal_descendants(self.guard.id(), Signal::KILL);
                let _ = self.guard.kill();
                let _ = self.guard.wait();
                return;
            }
            thread::sleep(CHECK_INTERVAL);
        }
    }
}

/// Keeps the last lines that a server prints, until it closes its output.
fn keep(printed: PipeReader, kept: &Mutex<Output>) {
    let mut printed = BufReader::new(printed);
    let mut line = Vec::new();
    loop {
        line.clear();
        match printed.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line) {
            Ok(1..) => {}
            Ok(0) | Err(_) => return,
        }
        let line = String::from_utf8_lossy(&line).trim_end().to_owned();
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.address.is_none() {
            kept.address = address_in(&line);
        }
        if kept.lines.len() == LINES_MAX {
            kept.lines.pop_front();
        }
        if !line.is_empty() {
            kept.lines.push_back(line);
        }
    }
}

/// The address after `://` in a line.
fn address_in(line: &str) -> Option<String> {
    let (_, rest) = line.split_once("://")?;
    Some(rest.split_whitespace().next()?.trim_end_matches('/').to_owned())
}
