//! Resource limits of the process: locked memory and descriptors.

use super::Limit;
use super::machine::{Machine, Row};
use super::report::{Check, Heading};
use crate::engine::pump::REFUSED_MAX;
use crate::linux::field;

/// Bytes of a page, in which locked memory is counted.
const PAGE: usize = 4096;
/// Descriptors of a worker besides its connections: ring, listener, schedstat, and connections that it
/// is refusing.
const DESCRIPTORS_OF_WORKER: usize = 3 + REFUSED_MAX;
/// Descriptors of the process besides its workers': standard streams, signals, the request to stop.
const DESCRIPTORS_OF_PROCESS: usize = 16;
/// `CAP_IPC_LOCK` in a mask of capabilities (capabilities(7)).
const CAPABILITY_IPC_LOCK: u64 = 1 << 14;

pub(super) fn checks(machine: Machine<'_>) -> Vec<Check> {
    vec![locked_memory(machine), descriptors(machine)]
}

fn locked_memory(machine: Machine<'_>) -> Check {
    let buffers = machine.facts.buffers;
    let of_worker = [buffers.memory_bytes(), buffers.entries_bytes()];
    let of_worker: usize = of_worker.iter().map(|bytes| bytes.next_multiple_of(PAGE)).sum();
    let needed = (of_worker * machine.workers()) as u64;
    let kibibytes = |bytes: u64| bytes.div_ceil(1024);
    let wanted = format!("{} KiB, {} KiB per worker", kibibytes(needed), of_worker / 1024);
    let row = Row::new(Heading::Limits, "locked memory", wanted);
    let Limit { soft, hard } = machine.facts.locked_bytes;
    let Some(soft) = soft else {
        return row.fine("unlimited");
    };
    // Rounded down, so that a shortage of less than a kibibyte shows.
    let found = format!("{} KiB", soft / 1024);
    if soft >= needed {
        row.fine(found)
    } else if may_lock_everything(machine) {
        row.fine(format!("{found}, which CAP_IPC_LOCK lifts"))
    } else if hard.is_none_or(|hard| hard >= needed) {
        row.warn(found, Some(format!("ulimit -S -l {}", kibibytes(needed))))
    } else {
        let command = format!("sudo prlimit --pid $$ --memlock={needed}");
        row.warn(found, Some(command))
    }
}

/// Whether `CAP_IPC_LOCK` lifts the limit on locked memory, which it does not in a container's own user
/// namespace.
fn may_lock_everything(machine: Machine<'_>) -> bool {
    let status = machine.read("proc/self/status").unwrap_or_default();
    let capabilities = field(&status, "CapEff").and_then(|mask| u64::from_str_radix(mask, 16).ok());
    let users = machine.read("proc/self/uid_map").unwrap_or_default();
    // In the initial namespace, every user is mapped to itself (user_namespaces(7)).
    let is_machine = users.split_whitespace().eq(["0", "0", "4294967295"]);
    is_machine && capabilities.is_some_and(|mask| mask & CAPABILITY_IPC_LOCK != 0)
}

fn descriptors(machine: Machine<'_>) -> Check {
    let beside = DESCRIPTORS_OF_PROCESS + machine.workers() * DESCRIPTORS_OF_WORKER;
    let connections_max = machine.facts.connections_max;
    let needed = (connections_max + beside) as u64;
    let wanted = format!("hard {needed}, for {connections_max} connections");
    let row = Row::new(Heading::Limits, "descriptors", wanted);
    let shown = |limit: Option<u64>| limit.map_or("unlimited".into(), |limit| limit.to_string());
    let Limit { soft, hard } = machine.facts.descriptors;
    let found = format!("soft {}, hard {}", shown(soft), shown(hard));
    // The server raises the soft limit itself.
    if hard.is_none_or(|hard| hard >= needed) {
        return row.fine(found);
    }
    row.warn(found, Some(format!("sudo prlimit --pid $$ --nofile={needed}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Facts;
    use crate::doctor::fixture::{STATUS, UNLIMITED, check_with, expect, facts};
    use crate::doctor::report::Verdict::{Fine, Warn};

    fn limit(soft: u64, hard: u64) -> Limit {
        Limit { soft: Some(soft), hard: Some(hard) }
    }

    #[test]
    fn locked_memory_is_measured_against_the_buffers() {
        // Four workers: 4 MiB of buffers and a page of their ring each.
        let needed = 4 * ((4 << 20) + 4096);
        let with = |locked_bytes, files: &[(&str, &str)]| {
            check_with(&Facts { locked_bytes, ..facts() }, "locked memory", files)
        };
        let row = with(UNLIMITED, &[]);
        expect(&row, Fine, "unlimited", None);
        assert_eq!(row.wanted, "16400 KiB, 4100 KiB per worker");
        expect(&with(limit(needed, needed), &[]), Fine, "16400 KiB", None);
        let raise = "sudo prlimit --pid $$ --memlock=16793600";
        expect(&with(limit(needed - 1, needed - 1), &[]), Warn, "16399 KiB", Some(raise));
        let own = Some("ulimit -S -l 16400");
        expect(&with(limit(0, needed), &[]), Warn, "0 KiB", own);
        expect(&with(Limit { soft: Some(65536), hard: None }, &[]), Warn, "64 KiB", own);

        let users = ("proc/self/uid_map", "         0          0 4294967295\n");
        let capable = (STATUS, "CapEff:\t0000000000004000\n");
        expect(&with(limit(0, 0), &[users, capable]), Fine, "CAP_IPC_LOCK", None);
        for files in [
            [users, (STATUS, "CapEff:\tffffffffffffbfff\n")],
            [users, (STATUS, "CapEff:\tall\n")],
            // A capability over a container's own users does not count.
            [("proc/self/uid_map", "0 1000 1\n"), capable],
            [("proc/self/uid_map", ""), capable],
        ] {
            expect(&with(limit(0, 0), &files), Warn, "0 KiB", Some(raise));
        }
    }

    #[test]
    fn descriptors_are_measured_against_the_connections() {
        let needed = 1000 + 16 + 4 * 67;
        let with = |descriptors| {
            let name = "descriptors";
            check_with(&Facts { descriptors, ..facts() }, name, &[])
        };
        expect(&with(UNLIMITED), Fine, "soft unlimited, hard unlimited", None);
        // The server raises the soft limit.
        expect(&with(limit(100, needed)), Fine, "soft 100, hard 1284", None);
        let command = Some("sudo prlimit --pid $$ --nofile=1284");
        expect(&with(limit(100, needed - 1)), Warn, "hard 1283", command);
        assert!(with(UNLIMITED).wanted.contains("1000 connections"));
    }
}
