//! The doctor: what it prints for people and for machines, and that it needs nothing to do so.

use std::collections::BTreeSet;
use std::fs::File;
use std::process::{Command, Stdio};

use rustix::io::Errno;
use serde_json::Value;
use testkit::{Ended, end, program, run, run_by, say, without_io_uring};

/// Every check, in the order of the table.
const CHECKS: [&str; 32] = [
    "kernel version",
    "IORING_SETUP_SQPOLL",
    "IORING_SETUP_SUBMIT_ALL",
    "IORING_SETUP_TASKRUN_FLAG",
    "buffer ring",
    "multishot accept",
    "IORING_SETUP_SINGLE_ISSUER",
    "multishot receive",
    "IORING_SETUP_DEFER_TASKRUN",
    "IORING_SETUP_NO_SQARRAY",
    "kernel.io_uring_disabled",
    "seccomp",
    "BPF program",
    "sandbox",
    "locked memory",
    "descriptors",
    "CPUs allowed",
    "CPUs isolated",
    "CPUs tickless",
    "frequency governor",
    "deepest idle state",
    "wake-up",
    "SMT siblings",
    "NUMA nodes",
    "virtual machine",
    "clock source",
    "congestion control",
    "net.core.busy_poll",
    "net.core.busy_read",
    "kernel TLS",
    "huge pages free",
    "transparent huge pages",
];
/// Checks that try io_uring.
const ABILITIES: std::ops::Range<usize> = 1..10;
/// Those of them that the server can do without.
const OPTIONAL: [&str; 2] = ["IORING_SETUP_SQPOLL", "IORING_SETUP_NO_SQARRAY"];

/// Checks that the doctor succeeded, and returns what it printed.
#[track_caller]
fn printed(ended: Ended) -> String {
    assert_eq!((ended.status.code(), ended.stderr.as_str()), (Some(0), ""), "{ended:?}");
    ended.stdout
}

/// The checks in the doctor's JSON, whose format is checked.
#[track_caller]
fn checks(json: &str) -> Vec<Value> {
    let report: Value = serde_json::from_str(json).expect("JSON");
    let checks = report["checks"].as_array().expect("an array").clone();
    for check in &checks {
        let fields: Vec<&String> = check.as_object().expect("an object").keys().collect();
        assert_eq!(fields, ["name", "found", "wanted", "verdict", "command"]);
        for field in ["found", "wanted"] {
            assert_ne!(check[field].as_str().expect("text"), "", "{check}");
        }
        let verdict = check["verdict"].as_str().expect("text");
        assert!(["fine", "warn", "fail", "unknown", "absent"].contains(&verdict), "{check}");
        let command = &check["command"];
        let is_command = command.as_str().is_some_and(|command| !command.is_empty());
        assert!(
            command.is_null() || (is_command && ["warn", "fail"].contains(&verdict)),
            "{check}"
        );
    }
    let names: Vec<&str> =
        checks.iter().map(|check| check["name"].as_str().expect("text")).collect();
    assert_eq!(names, CHECKS);
    checks
}

/// Checks that the table names every check, each at the beginning of one line.
#[track_caller]
fn expect_table(table: &str) {
    for name in CHECKS {
        let begins =
            |line: &&str| line.strip_prefix("  ").is_some_and(|line| line.starts_with(name));
        assert_eq!(table.lines().filter(begins).count(), 1, "{name}\n{table}");
    }
    for heading in
        ["kernel", "io_uring", "offload", "sandbox", "limits", "CPUs", "network", "memory"]
    {
        assert_eq!(table.lines().filter(|line| *line == heading).count(), 1, "{heading}\n{table}");
    }
}

#[test]
fn the_table_names_every_check() {
    let table = printed(run(&["doctor"]));
    expect_table(&table);
    say(&table);
}

#[test]
fn json_has_what_the_table_has() {
    let table = printed(run(&["doctor"]));
    let words: BTreeSet<&str> = table.split_whitespace().collect();
    for check in checks(&printed(run(&["doctor", "--json"]))) {
        for field in ["found", "wanted", "verdict", "command"] {
            for word in check[field].as_str().unwrap_or_default().split_whitespace() {
                // Huge pages come and go with the servers of other tests, and a wake-up is measured anew.
                let is_told = words.contains(word)
                    || check["name"] == "huge pages free"
                    || check["name"] == "wake-up";
                assert!(is_told, "{word} of {check} is not in\n{table}");
            }
        }
    }
}

#[test]
fn where_the_server_runs_the_doctor_finds_io_uring_in_order() {
    for check in &checks(&printed(run(&["doctor", "--json"])))[ABILITIES] {
        let name = check["name"].as_str().expect("text");
        if !OPTIONAL.contains(&name) {
            assert_eq!(check["found"], "works", "{check}");
            assert_eq!(check["verdict"], "fine", "{check}");
        }
    }
}

#[test]
fn without_io_uring_it_says_so_and_ends_well() {
    for errno in [Errno::PERM, Errno::NOSYS] {
        let json = printed(without_io_uring(errno, || run(&["doctor", "--json"])));
        let checks = checks(&json);
        for check in &checks[ABILITIES] {
            let name = check["name"].as_str().expect("text");
            let found = check["found"].as_str().expect("text");
            assert!(found.starts_with("refused under a seccomp filter: "), "{check}");
            let verdict = if OPTIONAL.contains(&name) { "warn" } else { "fail" };
            assert_eq!(check["verdict"], verdict, "{check}");
        }
        let seccomp = &checks[ABILITIES.end + 1];
        assert_eq!(seccomp["found"], "2, a filter, and io_uring_setup is refused");
        assert_eq!(seccomp["verdict"], "fail");
        expect_table(&printed(without_io_uring(errno, || run(&["doctor"]))));
    }
}

#[test]
fn it_needs_neither_input_nor_a_terminal() {
    for closed in ["<&-", "<&- 2>&-"] {
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(format!("exec \"$0\" doctor {closed}")).arg(program());
        expect_table(&printed(run_by(shell.env_clear())));
    }
}

#[test]
fn output_that_cannot_be_written_is_an_error_unless_its_reader_has_gone() {
    let mut command = Command::new(program());
    command.arg("doctor").stdin(Stdio::null()).stderr(Stdio::piped());
    let full = File::options().write(true).open("/dev/full").expect("a device");
    let ended = end(command.stdout(full).spawn().expect("the program runs"));
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert!(ended.stderr.contains("cannot write to standard output"), "{ended:?}");

    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let ended = end(command.stdout(writer).spawn().expect("the program runs"));
    assert_eq!((ended.status.code(), ended.stderr.as_str()), (Some(0), ""), "{ended:?}");
}

#[test]
fn wrong_usage_ends_with_status_2() {
    for arguments in [
        &["doctor", "--nonsense"][..],
        &["doctor", "nonsense"],
        &["doctor", "--listen", "127.0.0.1:0"],
        &["--workers", "1", "doctor"],
        &["--json"],
    ] {
        let ended = run(arguments);
        assert_eq!(ended.status.code(), Some(2), "{arguments:?} {ended:?}");
        assert_eq!(ended.stdout, "", "{arguments:?}");
        assert!(ended.stderr.contains("--help"), "{arguments:?} {ended:?}");
    }
}

#[test]
fn help_tells_of_it() {
    assert!(printed(run(&["--help"])).contains("doctor"));
    let help = printed(run(&["doctor", "--help"]));
    assert!(help.contains("--json") && !help.contains("--listen"), "{help}");
}
