//! What the environment does to the server, and what the server may do to its environment: one file per subject.
//!
//! What this machine does not allow a test to arrange is said as `SKIPPED`, with the reason.

mod cgroups;
mod clocks;
mod cpus;
mod interfaces;
mod outputs;
mod queues;
mod sandbox;

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::SocketAddr;
use std::process::{Child, ChildStdout, Command};

use rustix::process::{Pid, Signal, kill_process};
use testkit::{BINARY, Client, Ended, TEXT, end, pattern, program, spawn};

/// Every engine that was built.
fn engines() -> impl Iterator<Item = &'static str> {
    let has_runtime = cfg!(feature = "tokio-uring");
    ["uring", "epoll", "tokio-uring"]
        .into_iter()
        .filter(move |engine| has_runtime || *engine != "tokio-uring")
}

/// Short and long echoes on a connection of their own.
fn converse(address: SocketAddr) {
    let mut client = Client::connect(address);
    for length in [0, 1, 125, 126, 5_000, 65_536, 300_000] {
        client.echo(BINARY, &pattern(length));
        client.echo(TEXT, &pattern(length));
    }
    client.close();
}

/// A server that was started by hand, so without a statistics file. It is killed when dropped.
struct Bare {
    child: Option<Child>,
    output: BufReader<ChildStdout>,
    greeting: String,
}

impl Bare {
    /// Starts it with `arguments` on a free port of 127.0.0.1.
    fn start(arguments: &[&str]) -> Bare {
        let mut command = Command::new(program());
        Bare::start_by(command.args(["--listen", "127.0.0.1:0"]).args(arguments))
    }

    /// Starts it by a command that keeps its process id, and returns when it has printed its first line.
    fn start_by(command: &mut Command) -> Bare {
        let mut child = spawn(command);
        let mut output = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut greeting = String::new();
        output.read_line(&mut greeting).expect("a first line");
        if greeting.is_empty() {
            panic!("the server did not start: {:?}", end(child));
        }
        Bare { child: Some(child), output, greeting }
    }

    /// Its first TCP address.
    fn address(&self) -> SocketAddr {
        let after = self.greeting.split_once("ws://").expect("an address").1;
        after.split([' ', '\n']).next().and_then(|text| text.parse().ok()).expect("an address")
    }

    fn pid(&self) -> Pid {
        Pid::from_child(self.child.as_ref().expect("it has not ended"))
    }

    fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("a child");
    }

    /// Waits for its end. The standard output is what it printed after its first line.
    fn wait(mut self) -> Ended {
        let child = self.child.take().expect("it has not ended");
        let mut stdout = String::new();
        self.output.read_to_string(&mut stdout).expect("text");
        Ended { stdout, ..end(child) }
    }

    /// Sends SIGTERM and waits for the end.
    fn terminate(self) -> Ended {
        self.signal(Signal::TERM);
        self.wait()
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
