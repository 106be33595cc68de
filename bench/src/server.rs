//! A server that is measured, as a process of its own.

use std::io::{BufRead, BufReader, Error, Result};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::results::Cost;

/// Ticks of the machine below which its processor time is not known well enough: a tick is a
/// twentieth part of them.
const MACHINE_TICKS_MIN: u64 = 20;

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
    /// # Errors
    ///
    /// When the process is gone.
    pub fn cpu_time(&self) -> Result<Duration> {
        cpu_time_of(self.child.id())
    }
}

/// The processor time, user's and system's, that a process has taken so far.
///
/// It is the sum of the first field of `/proc/PID/task/*/schedstat`, which is in nanoseconds:
/// `/proc/PID/stat` counts ticks of 10 ms, too coarse for a round, and `/proc/PID/schedstat` is that
/// of the first thread alone. The time of a running thread is brought up to date at the next tick
/// only, and that of a thread that ended is lost, so the server has to be idle and its threads have
/// to stay.
fn cpu_time_of(pid: u32) -> Result<Duration> {
    let mut sum_ns = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let account = std::fs::read_to_string(task?.path().join("schedstat"))?;
        let ran_ns = account.split(' ').next().and_then(|field| field.parse::<u64>().ok());
        sum_ns += ran_ns.ok_or_else(|| Error::other("schedstat has no number"))?;
    }
    Ok(Duration::from_nanos(sum_ns))
}

/// What a process has taken so far.
///
/// Processor time is parted into user's and system's as the ticks of `/proc/PID/stat` are; context
/// switches are the sums over its threads.
///
/// # Errors
///
/// When the process is gone.
pub fn usage_of(pid: u32) -> Result<Usage> {
    let directory = format!("/proc/{pid}");
    let mut usage = Usage { cpu_time: cpu_time_of(pid)?, ..Usage::default() };
    for task in std::fs::read_dir(format!("{directory}/task"))? {
        let status = std::fs::read_to_string(task?.path().join("status"))?;
        usage.context_switches += field(&status, "voluntary_ctxt_switches:");
        usage.context_switches += field(&status, "nonvoluntary_ctxt_switches:");
    }
    let status = std::fs::read_to_string(format!("{directory}/status"))?;
    usage.machine_ticks = busy_ticks(&std::fs::read_to_string("/proc/stat")?);
    usage.resident_octets = field(&status, "VmRSS:") * 1024;
    let stat = std::fs::read_to_string(format!("{directory}/stat"))?;
    // Fields 14 and 15, counted from the name in parentheses, which is the second (proc(5)).
    let behind_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let mut ticks = behind_name.split_whitespace().skip(11).map(|ticks| ticks.parse().unwrap_or(0));
    (usage.user_ticks, usage.system_ticks) = (ticks.next().unwrap_or(0), ticks.next().unwrap_or(0));
    Ok(usage)
}

/// What a process has taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Processor time, user's and system's.
    pub cpu_time: Duration,
    /// Ticks in user mode, of a hundredth of a second.
    pub user_ticks: u64,
    /// Ticks in the kernel.
    pub system_ticks: u64,
    /// Times that a thread gave its processor up or lost it.
    pub context_switches: u64,
    /// Ticks in which a processor of the machine was busy, with whatever.
    pub machine_ticks: u64,
    /// Memory in use now.
    pub resident_octets: u64,
}

impl Usage {
    /// What was taken since `before`, a message.
    pub fn since(&self, before: &Usage, messages: u64) -> Cost {
        let messages = messages.max(1) as f64;
        let total_us = self.cpu_time.saturating_sub(before.cpu_time).as_secs_f64() * 1e6;
        let [user, system] = [
            self.user_ticks.saturating_sub(before.user_ticks) as f64,
            self.system_ticks.saturating_sub(before.system_ticks) as f64,
        ];
        let user_part = if user + system > 0.0 { user / (user + system) } else { 0.0 };
        let machine_ticks = self.machine_ticks.saturating_sub(before.machine_ticks);
        let switches = self.context_switches.saturating_sub(before.context_switches);
        Cost {
            user_us: total_us * user_part / messages,
            system_us: total_us * (1.0 - user_part) / messages,
            machine_us: (machine_ticks >= MACHINE_TICKS_MIN).then(|| {
                let ticks_per_second = rustix::param::clock_ticks_per_second() as f64;
                machine_ticks as f64 / ticks_per_second * 1e6 / messages
            }),
            context_switches: switches as f64 / messages,
            syscalls: None,
            resident_octets: self.resident_octets,
        }
    }
}

/// The ticks of all processors that were neither idle nor lost to other machines: of the first line
/// of `/proc/stat` those for user, nice, system, irq and softirq (proc_stat(5)).
fn busy_ticks(stat: &str) -> u64 {
    let line = stat.lines().next().unwrap_or_default();
    let ticks: Vec<u64> =
        line.split_whitespace().skip(1).map(|ticks| ticks.parse().unwrap_or(0)).collect();
    [0, 1, 2, 5, 6].iter().filter_map(|&at| ticks.get(at)).sum()
}

/// The number in the line of `status` that begins with `name`; 0 if there is none.
fn field(status: &str, name: &str) -> u64 {
    let value = status.lines().find_map(|line| line.strip_prefix(name));
    let number = value.and_then(|value| value.split_whitespace().next());
    number.and_then(|number| number.parse().ok()).unwrap_or(0)
}

impl Drop for Server {
    fn drop(&mut self) {
        // The figures are taken; how it ends does not matter.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_and_stolen_ticks_are_not_busy() {
        let stat = "cpu  1 20 300 4000 50000 600000 7000000 80000000 900000000 0\ncpu0 1 1 1 1";
        assert_eq!(busy_ticks(stat), 7_600_321);
        let before = Usage { machine_ticks: 100, ..Usage::default() };
        let after = |machine_ticks| Usage { machine_ticks, ..before };
        assert_eq!(after(119).since(&before, 10).machine_us, None);
        assert!(after(120).since(&before, 10).machine_us.is_some());
    }
}
