//! The real server as a process: starts it on a free port, reads its counters and ends it.
//!
//! Every wait ends after [`TIMEOUT`] with a panic, and no process outlives its [`Server`].

use std::fs;
use std::io::{self, BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use rustix::io::Errno;
use rustix::net::sockopt;
use rustix::process::{
    Pid, PidfdFlags, PidfdGetfdFlags, Signal, kill_process, pidfd_getfd, pidfd_open,
};
use serde_json::Value;

use crate::process::{
    Ended, TIMEOUT, collect, count, run_by, say, spawn, temporary_file, wait_for_end, wait_until,
};

/// The server's program: the one that cargo has built for the integration tests that run.
pub fn program() -> PathBuf {
    std::env::var_os("CARGO_BIN_EXE_ringecho").expect("cargo runs an integration test").into()
}

/// A running server. It is killed when dropped.
#[derive(Debug)]
pub struct Server {
    child: Child,
    greeting: String,
    address: SocketAddr,
    output: Option<JoinHandle<String>>,
    errors: Option<JoinHandle<String>>,
    stats_file: PathBuf,
}

impl Server {
    /// Starts the server with `arguments`, on a free port of 127.0.0.1 unless they have a `--listen`, and
    /// returns when it has printed its first line.
    ///
    /// `RINGECHO_TEST_ENGINE` names the engine of all servers whose arguments do not name one and do not
    /// need what only another has. `offload` stands for io_uring with `--offload on`.
    pub fn start(arguments: &[&str]) -> Server {
        Server::start_with(arguments, &[])
    }

    /// Does the same, with further variables in its environment.
    pub fn start_with(arguments: &[&str], environment: &[(&str, &str)]) -> Server {
        let mut command = Command::new(program());
        command.args(arguments).envs(environment.iter().copied());
        if !arguments.contains(&"--listen") {
            command.args(["--listen", "127.0.0.1:0"]);
        }
        if let Ok(engine) = std::env::var("RINGECHO_TEST_ENGINE") {
            // The kernel cannot echo what is sealed.
            let is_sealed =
                engine == "offload" && arguments.iter().any(|it| it.starts_with("wss:"));
            let (engine, others): (&[&str], &[&str]) = match engine.as_str() {
                "offload" => {
                    let others = &["--engine", "--protocol", "--message-max"];
                    (&["--engine", "uring", "--offload", "on"], others)
                }
                "tokio-uring" => {
                    (&["--engine", "tokio-uring"], &["--engine", "sqpoll", "adaptive", "spin"])
                }
                engine => (&["--engine", engine], &["--engine", "sqpoll"]),
            };
            if !is_sealed && !arguments.iter().any(|argument| others.contains(argument)) {
                command.args(engine);
            }
        }
        Server::start_by(command)
    }

    /// Starts it with a command that takes the program's arguments at its end and has a `--listen` but no
    /// `--stats-file`. The command must keep its process id.
    pub fn start_by(command: Command) -> Server {
        Server::try_start_by(command)
            .unwrap_or_else(|ended| panic!("the server did not start: {ended}"))
    }

    /// Does the same, or returns what the server printed to standard error if it did not start.
    pub fn try_start_by(mut command: Command) -> Result<Server, String> {
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
            return Err(errors.join().expect("a reader"));
        };
        let (output, errors) = (Some(output), Some(errors));
        Ok(Server { child, greeting, address, output, errors, stats_file })
    }

    /// Where it listens: the first of its addresses.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// All addresses where it listens.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        addresses_in(&self.greeting)
    }

    /// Its first line.
    pub fn greeting(&self) -> &str {
        self.greeting.trim_end()
    }

    /// Its process.
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Its resident memory in bytes.
    pub fn resident_bytes(&self) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.pid().as_raw_pid()));
        let text = text.expect("a process");
        let line = text.lines().find_map(|line| line.strip_prefix("Rss:")).expect("a line");
        let kilobytes = line.trim().strip_suffix(" kB").expect("kilobytes");
        kilobytes.parse::<u64>().expect("a number") * 1024
    }

    /// How many descriptors it has open.
    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid().as_raw_pid())).expect("a process").count()
    }

    /// Its listening sockets, to set options of: until these are dropped, they are open here too.
    ///
    /// # Errors
    ///
    /// When this process may not trace its children (pidfd_getfd(2)).
    pub fn listeners(&self) -> io::Result<Vec<OwnedFd>> {
        let process = pidfd_open(self.pid(), PidfdFlags::empty())?;
        let mut listeners = Vec::new();
        for entry in fs::read_dir(format!("/proc/{}/fd", self.pid().as_raw_pid()))? {
            let name = entry?.file_name();
            let number = name.to_str().and_then(|name| name.parse().ok()).expect("a number");
            match pidfd_getfd(&process, number, PidfdGetfdFlags::empty()) {
                Ok(fd) if sockopt::socket_acceptconn(&fd).unwrap_or(false) => listeners.push(fd),
                // Not a listener, or closed meanwhile.
                Ok(_) | Err(Errno::BADF) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(listeners)
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child").is_none()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("a child that nobody has waited for");
    }

    /// Its counters now, asked for with SIGUSR1: an object with `total` and `workers`.
    pub fn statistics(&self) -> Value {
        // The file appears whole or not at all.
        let _ = fs::remove_file(&self.stats_file);
        self.signal(Signal::USR1);
        wait_until("the statistics are written", || self.stats_file.exists());
        let text = fs::read(&self.stats_file).expect("statistics");
        serde_json::from_slice(&text).expect("JSON")
    }

    /// A counter now, summed over all workers.
    pub fn count(&self, name: &str) -> u64 {
        count(&self.statistics(), name)
    }

    /// Waits until a counter has this value.
    pub fn wait_for_count(&self, name: &str, value: u64) {
        wait_until(&format!("{name} is {value}"), || self.count(name) == value);
    }

    /// Sends SIGTERM and waits for the end.
    pub fn terminate(self) -> Ended {
        self.signal(Signal::TERM);
        self.wait()
    }

    /// Waits for the end.
    pub fn wait(mut self) -> Ended {
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

/// Whether the server can offload echoes here. If not, prints that `test` is skipped, and why.
pub fn can_offload(test: &str) -> bool {
    let policy = ["--engine", "uring", "--workers", "1", "--offload", "auto"];
    let server = Server::start(&policy);
    let can = server.greeting().ends_with(", offload auto)");
    let ended = server.terminate();
    if !can {
        say(&format!("SKIPPED: {test}: {}", ended.stderr.trim_end()));
    }
    can
}

/// Runs the server with `arguments` and nothing else to its end: for what does not start.
pub fn run(arguments: &[&str]) -> Ended {
    let mut command = Command::new(program());
    run_by(command.args(arguments))
}

/// The addresses in a greeting.
fn addresses_in(greeting: &str) -> Vec<SocketAddr> {
    greeting
        .split_whitespace()
        .filter_map(|word| word.split_once("://").map(|(_, address)| address))
        .map(|address| address.parse().expect("an address"))
        .collect()
}
