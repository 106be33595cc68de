//! The command line and what the program says: one file per subject.

mod configuring;
mod counting;
mod listening;
mod serving;
mod statuses;
mod stopping;

use testkit::{Client, Ended, TEXT, frame};

/// The counters, in the order of the statistics file and of the summary.
const COUNTERS: [&str; 35] = [
    "connections_accepted",
    "connections_open",
    "connections_rejected",
    "pages_served",
    "connections_overrun",
    "messages",
    "messages_offloaded",
    "messages_mirrored",
    "messages_recompressed",
    "compression_declined",
    "frames_in",
    "frames_out",
    "bytes_in",
    "bytes_out",
    "syscalls",
    "syscalls_per_message",
    "buffers_exhausted",
    "spill_bytes_kept",
    "spill_allocations",
    "memory_bytes",
    "memory_shortages",
    "protocol_violations",
    "messages_overfragmented",
    "control_floods",
    "tls_failures",
    "addresses_refused",
    "origins_refused",
    "paths_refused",
    "handshakes_timed_out",
    "pings_sent",
    "connections_timed_out",
    "connections_expired",
    "connections_shed",
    "connections_cut",
    "spins",
];

/// The CPUs that this process may use.
fn cpus() -> Vec<usize> {
    core_affinity::get_core_ids().expect("a list").into_iter().map(|core| core.id).collect()
}

/// Checks that the server ended at once with status 1 and one line, and gives that line.
#[track_caller]
fn refusal(ended: Ended) -> String {
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert_eq!(ended.stdout, "", "{ended:?}");
    let line = ended.stderr.strip_suffix('\n').expect("a line").to_owned();
    assert!(line.starts_with("ringecho: ") && !line.contains('\n'), "{line:?}");
    line
}

/// The names of the counters in a summary of one column.
fn names_in(summary: &str) -> Vec<&str> {
    summary.lines().filter_map(|line| line.split_whitespace().next()).collect()
}

/// What is printed after the first line.
fn summary_of(ended: &Ended) -> &str {
    ended.stdout.split_once('\n').expect("a first line").1
}

/// The reference conversation: `messages` texts of 16 bytes one after the other.
fn converse(client: &mut Client, messages: usize) {
    let sent = frame(TEXT, b"0123456789abcdef");
    for _ in 0..messages {
        client.write(&sent);
        client.expect(TEXT, b"0123456789abcdef");
    }
}

/// The system calls for each message.
fn syscalls_per_message(ended: &Ended) -> f64 {
    ended.statistics["total"]["syscalls_per_message"].as_f64().expect("a ratio")
}
