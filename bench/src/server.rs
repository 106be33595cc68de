//! A server that is measured, as a process of its own.

use std::io::{BufRead, BufReader, Error, Result};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// The server's program, which stands beside the program of the benchmark.
pub fn program() -> PathBuf {
    std::env::current_exe().expect("this program").with_file_name("ringecho")
}

/// A server that ends with this value.
#[derive(Debug)]
pub struct Server {
    child: Child,
    address: String,
}

impl Server {
    /// Starts a server and waits until it prints where it listens: its first line has an address
    /// behind `ws://` or `tcp://`.
    pub fn start(command: &mut Command) -> Result<Server> {
        let name = command.get_program().display().to_string();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| Error::other(format!("cannot start {name}: {error}")))?;
        let mut line = String::new();
        let output = child.stdout.as_mut().expect("piped");
        BufReader::new(output).read_line(&mut line)?;
        let mut server = Server { child, address: String::new() };
        let Some((_, rest)) = line.split_once("://") else {
            // It printed why on standard error, which is the benchmark's too.
            return Err(Error::other(format!("{name} does not listen")));
        };
        server.address = rest.split_whitespace().next().unwrap_or_default().to_owned();
        Ok(server)
    }

    /// Where it listens, as `address:port`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Asks the server to end, and waits until it has.
    pub fn end(mut self) -> Result<()> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        let status = self.child.wait()?;
        if status.success() { Ok(()) } else { Err(Error::other(format!("it ended with {status}"))) }
    }

    /// The processor time, user's and system's, that the process has taken so far.
    ///
    /// It is the sum of the first field of `/proc/PID/task/*/schedstat`, which is in nanoseconds:
    /// `/proc/PID/stat` counts ticks of 10 ms, too coarse for a round, and `/proc/PID/schedstat` is
    /// that of the first thread alone. The time of a running thread is brought up to date at the
    /// next tick only, and that of a thread that ended is lost, so the server has to be idle and
    /// its threads have to stay.
    pub fn cpu_time(&self) -> Result<Duration> {
        let mut sum_ns = 0;
        for task in std::fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let account = std::fs::read_to_string(task?.path().join("schedstat"))?;
            let ran_ns = account.split(' ').next().and_then(|field| field.parse::<u64>().ok());
            sum_ns += ran_ns.ok_or_else(|| Error::other("schedstat has no number"))?;
        }
        Ok(Duration::from_nanos(sum_ns))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The figures are taken; how it ends does not matter.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
