//! The descendants of a process, as `/proc` shows them.
//!
//! A server may be started by a wrapper, so whatever is done to a server is done to all of its
//! processes. Nothing here starts or waits for a process.

use std::fs;
use std::io::{Error, Result};

use rustix::process::{Pid, Signal, kill_process};

/// What `/proc/PID/stat` says of a process (proc_pid_stat(5)). CPU times are in clock ticks and
/// include threads that have ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// The parent's process ID.
    pub parent: u32,
    /// CPU time in user mode.
    pub user_ticks: u64,
    /// CPU time in the kernel.
    pub system_ticks: u64,
    /// CPU time of children that have ended and were waited for, in user mode.
    pub ended_user_ticks: u64,
    /// The same in the kernel.
    pub ended_system_ticks: u64,
    /// Page faults of these children. Every process has some, so this number shows that another child
    /// has ended even if its CPU time was less than a tick.
    pub ended_faults: u64,
}

impl Stat {
    /// Reads the current values for `pid`.
    ///
    /// # Errors
    ///
    /// When the process is gone, or there is no `/proc`.
    pub fn of(pid: u32) -> Result<Stat> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        Stat::parse(&text).ok_or_else(|| Error::other(format!("/proc/{pid}/stat makes no sense")))
    }

    fn parse(text: &str) -> Option<Stat> {
        // The second field is the name in parentheses, which may hold spaces and parentheses.
        let (_, rest) = text.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Stat {
            parent: u32::try_from(field(4)?).ok()?,
            ended_faults: field(11)?,
            user_ticks: field(14)?,
            system_ticks: field(15)?,
            ended_user_ticks: field(16)?,
            ended_system_ticks: field(17)?,
        })
    }
}

/// All processes below `ancestor`, each after its parent; none if there is no `/proc`.
pub fn descendants(ancestor: u32) -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let parents: Vec<(u32, u32)> =
        pids.filter_map(|pid| Some((pid, Stat::of(pid).ok()?.parent))).collect();
    let mut found = vec![ancestor];
    let mut at = 0;
    while let Some(&parent) = found.get(at) {
        let children = parents.iter().filter(|(_, its_parent)| *its_parent == parent);
        found.extend(children.map(|(pid, _)| *pid));
        at += 1;
    }
    found.split_off(1)
}

/// Sends `signal` to all processes below `ancestor`.
pub fn signal_descendants(ancestor: u32, signal: Signal) {
    for pid in descendants(ancestor) {
        if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
            // A process that has ended meanwhile needs no signal.
            let _ = kill_process(pid, signal);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_counted_from_the_last_parenthesis() {
        let text = "7 (a) (b c) S 3 7 7 0 -1 4194560 100 200 0 0 11 12 13 14 20 0 1 0 5 6 7";
        let expected = Stat {
            parent: 3,
            user_ticks: 11,
            system_ticks: 12,
            ended_user_ticks: 13,
            ended_system_ticks: 14,
            ended_faults: 200,
        };
        assert_eq!(Stat::parse(text), Some(expected));
        assert_eq!(Stat::parse("7 (a) S 3"), None);
        assert_eq!(Stat::parse(""), None);
    }

    #[test]
    fn a_child_is_a_descendant_of_its_parent() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("sleep");
        let found = descendants(std::process::id());
        let _ = child.kill();
        let _ = child.wait();
        assert!(found.contains(&child.id()), "{found:?}");
    }
}
