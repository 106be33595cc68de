//! What a server uses of the machine: the CPU time, context switches and memory of all descendants of a
//! process, from `/proc` and the kernel's CPU clocks.
//!
//! A figure that cannot be known is left out. The CPU clock of a process includes its ended threads.
//! The CPU time of an ended process is added to its parent's, in clock ticks, unless the parent
//! ignores SIGCHLD.

use std::fs;
use std::io::{Error, Result};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

use crate::process::{Stat, descendants};
use crate::results::Cost;

/// The least clock ticks for a figure that is counted in them: one tick is then 5 % of it.
const TICKS_MIN: u64 = 20;
/// The largest part of the CPU time that ended threads may have used. Their context switches are
/// unknown.
const ENDED_PART_MAX: f64 = 0.05;
/// SIGCHLD in the masks of `/proc/PID/status`.
const SIGCHLD_BIT: u64 = 1 << (17 - 1);

/// What the processes of a server have used so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Usage {
    /// The CPU time of running processes, including their ended threads.
    pub cpu_time: Duration,
    /// The CPU time of running threads.
    pub thread_time: Duration,
    /// CPU time in user mode, in clock ticks, including ended processes.
    pub user_ticks: u64,
    /// The same in the kernel.
    pub system_ticks: u64,
    /// CPU time of processes that have ended, in clock ticks.
    pub ended_ticks: u64,
    /// Page faults of processes that have ended.
    pub ended_faults: u64,
    /// Context switches of running threads, voluntary or not.
    pub context_switches: u64,
    /// CPU time of the whole machine, in clock ticks.
    pub machine_ticks: u64,
    /// Resident memory now.
    pub resident_bytes: u64,
    /// Whether the CPU time of processes that end would be lost.
    pub forgets_children: bool,
}

impl Usage {
    /// What all descendants of `ancestor` have used so far. The ancestor itself does not count, but its
    /// ended children do. The server has to be idle: the kernel updates the figures of a running thread
    /// only at the next clock tick.
    ///
    /// # Errors
    ///
    /// When a process is gone meanwhile, there is none, or there is no `/proc`.
    pub fn below(ancestor: u32) -> Result<Usage> {
        let mut usage = Usage::default();
        usage.add_ended(&Stat::of(ancestor)?);
        let pids = descendants(ancestor);
        if pids.is_empty() {
            return Err(Error::other("no process is left"));
        }
        for pid in pids {
            usage.add(pid)?;
        }
        usage.machine_ticks = busy_ticks(&fs::read_to_string("/proc/stat")?);
        Ok(usage)
    }

    fn add_ended(&mut self, stat: &Stat) {
        self.user_ticks += stat.ended_user_ticks;
        self.system_ticks += stat.ended_system_ticks;
        self.ended_ticks += stat.ended_user_ticks + stat.ended_system_ticks;
        self.ended_faults += stat.ended_faults;
    }

    fn add(&mut self, pid: u32) -> Result<()> {
        let raw = i32::try_from(pid).map_err(Error::other)?;
        let clock = ClockId::pid_cpu_clock_id(Pid::from_raw(raw))?;
        self.cpu_time += Duration::from(clock_gettime(clock)?);
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            let task = task?.path();
            let schedule = fs::read_to_string(task.join("schedstat"))?;
            let ran_ns = schedule.split(' ').next().and_then(|field| field.parse::<u64>().ok());
            let ran_ns = ran_ns.ok_or_else(|| Error::other("schedstat has no number"))?;
            self.thread_time += Duration::from_nanos(ran_ns);
            let status = fs::read_to_string(task.join("status"))?;
            self.context_switches += number(&status, "voluntary_ctxt_switches:");
            self.context_switches += number(&status, "nonvoluntary_ctxt_switches:");
        }
        let stat = Stat::of(pid)?;
        self.add_ended(&stat);
        self.user_ticks += stat.user_ticks;
        self.system_ticks += stat.system_ticks;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        self.resident_bytes += number(&status, "VmRSS:") * 1024;
        let ignored = value(&status, "SigIgn:").and_then(|mask| u64::from_str_radix(mask, 16).ok());
        self.forgets_children |= ignored.is_some_and(|mask| mask & SIGCHLD_BIT != 0);
        Ok(())
    }

    /// What was used since `before`, per message.
    pub fn since(&self, before: &Usage, messages: u64) -> Cost {
        let messages = messages.max(1) as f64;
        let cpu_us = self.cpu_us_since(before);
        let cpu_us = cpu_us.map(|us| us / messages);
        let [user_us, system_us] = split(cpu_us, self.ticks_since(before));
        let machine_ticks = self.machine_ticks.saturating_sub(before.machine_ticks);
        let switches = self.context_switches.checked_sub(before.context_switches);
        let switches = switches.filter(|_| !self.has_lost_threads_since(before));
        Cost {
            cpu_us,
            user_us,
            system_us,
            machine_us: (machine_ticks >= TICKS_MIN)
                .then(|| ticks_to_us(machine_ticks as f64) / messages),
            context_switches: switches.map(|switches| switches as f64 / messages),
            syscalls: None,
            resident_bytes: self.resident_bytes,
        }
    }

    /// The clock ticks since `before` in user mode and in the kernel.
    pub fn ticks_since(&self, before: &Usage) -> [u64; 2] {
        [
            self.user_ticks.saturating_sub(before.user_ticks),
            self.system_ticks.saturating_sub(before.system_ticks),
        ]
    }

    /// The CPU time since `before`, in µs; nothing if it is not known well enough.
    fn cpu_us_since(&self, before: &Usage) -> Option<f64> {
        if self.forgets_children || before.forgets_children {
            return None;
        }
        // Negative if a process that had used some has ended.
        let living_us = (self.cpu_time.as_secs_f64() - before.cpu_time.as_secs_f64()) * 1e6;
        if self.ended_faults == before.ended_faults {
            return (living_us >= 0.0).then_some(living_us);
        }
        let ended = self.ended_ticks.saturating_sub(before.ended_ticks) as f64;
        let all_us = living_us + ticks_to_us(ended);
        (all_us >= ticks_to_us(TICKS_MIN as f64)).then_some(all_us)
    }

    /// Whether threads that did a part of the work have ended since `before`.
    fn has_lost_threads_since(&self, before: &Usage) -> bool {
        let lost_s = |usage: &Usage| usage.cpu_time.as_secs_f64() - usage.thread_time.as_secs_f64();
        let taken_s = self.cpu_time.as_secs_f64() - before.cpu_time.as_secs_f64();
        self.ended_faults != before.ended_faults
            || lost_s(self) - lost_s(before) > taken_s.abs() * ENDED_PART_MAX
    }
}

/// CPU time split into user mode's and the kernel's by clock ticks of each; nothing where these are too
/// few to tell.
pub fn split(cpu_us: Option<f64>, [user, system]: [u64; 2]) -> [Option<f64>; 2] {
    let ticks = user + system;
    let cpu_us = cpu_us.filter(|_| ticks >= TICKS_MIN);
    [user, system].map(|part| cpu_us.map(|us| us * part as f64 / ticks as f64))
}

fn ticks_to_us(ticks: f64) -> f64 {
    ticks / rustix::param::clock_ticks_per_second() as f64 * 1e6
}

/// The ticks for which all CPUs together were busy, neither idle nor stolen by other virtual machines:
/// user, nice, system, irq and softirq in the first line of `/proc/stat` (proc_stat(5)).
fn busy_ticks(stat: &str) -> u64 {
    let line = stat.lines().next().unwrap_or_default();
    let ticks: Vec<u64> =
        line.split_whitespace().skip(1).map(|ticks| ticks.parse().unwrap_or(0)).collect();
    [0, 1, 2, 5, 6].iter().filter_map(|&at| ticks.get(at)).sum()
}

/// The first word after `name` in the line of `status` that begins with it.
fn value<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()
}

/// The number after `name`; 0 if there is none.
fn number(status: &str, name: &str) -> u64 {
    value(status, name).and_then(|number| number.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_and_stolen_ticks_are_not_busy() {
        let stat = "cpu  1 20 300 4000 50000 600000 7000000 80000000 900000000 0\ncpu0 1 1 1 1";
        assert_eq!(busy_ticks(stat), 7_600_321);
        let before = Usage { machine_ticks: 100, ..Usage::default() };
        let after = |machine_ticks| Usage { machine_ticks, ..before.clone() };
        assert_eq!(after(119).since(&before, 10).machine_us, None);
        assert!(after(120).since(&before, 10).machine_us.is_some());
    }

    #[test]
    fn a_few_ticks_do_not_tell_user_mode_from_the_kernel() {
        assert_eq!(split(Some(8.0), [0, TICKS_MIN - 1]), [None, None]);
        assert_eq!(split(Some(8.0), [TICKS_MIN, 3 * TICKS_MIN]), [Some(2.0), Some(6.0)]);
        assert_eq!(split(None, [TICKS_MIN, 0]), [None, None]);
    }

    fn taken(cpu_ms: u64, thread_ms: u64, ended_ticks: u64, ended_faults: u64) -> Usage {
        Usage {
            cpu_time: Duration::from_millis(cpu_ms),
            thread_time: Duration::from_millis(thread_ms),
            ended_ticks,
            ended_faults,
            context_switches: cpu_ms,
            ..Usage::default()
        }
    }

    #[test]
    fn threads_that_have_ended_count_and_their_context_switches_are_left_out() {
        let before = taken(10, 10, 0, 0);
        let steady = taken(30, 30, 0, 0).since(&before, 100);
        assert_eq!(steady.cpu_us.map(f64::round), Some(200.0));
        assert!(steady.context_switches.is_some());
        // Of 20 ms, a thread that is gone has taken 15.
        let ended = taken(30, 15, 0, 0).since(&before, 100);
        assert_eq!(ended.cpu_us.map(f64::round), Some(200.0));
        assert_eq!(ended.context_switches, None);
    }

    #[test]
    fn processes_that_have_ended_count_where_ticks_are_enough() {
        let second = rustix::param::clock_ticks_per_second();
        let before = taken(10, 10, 0, 0);
        let enough = taken(10, 10, second, 1).since(&before, 1000);
        assert_eq!(enough.cpu_us.map(f64::round), Some(1000.0));
        assert_eq!(enough.context_switches, None);
        assert_eq!(taken(10, 10, 1, 1).since(&before, 1000).cpu_us, None);
        // The work of one that ended before a tick was over would be lost.
        assert_eq!(taken(20, 20, 0, 1).since(&before, 1000).cpu_us, None);
        let forgetful = Usage { forgets_children: true, ..taken(30, 30, 0, 0) };
        assert_eq!(forgetful.since(&before, 1000).cpu_us, None);
    }
}
