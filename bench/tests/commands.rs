//! The real command against servers that misbehave: what it prints, what it keeps, how it ends.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use ringbench::results::Results;
use rustix::process::{Pid, Signal, kill_process};
use testkit::fake::{Fake, Peer};
use testkit::{Ended, end, run_by, spawn, wait_until};

/// Runs `ringbench` to its end.
fn run(arguments: &[&str]) -> Ended {
    run_by(&mut ringbench(arguments))
}

fn ringbench(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringbench"));
    command.args(arguments);
    command
}

/// A path in this test process's own directory. Nothing is there yet.
fn path(name: &str) -> PathBuf {
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(std::process::id().to_string());
    std::fs::create_dir_all(&directory).expect("a directory");
    directory.join(name)
}

/// The target of a server of plain bytes that echoes what `change` makes of each message of 16
/// bytes, until it returns false.
fn server(change: impl Fn(usize, &mut [u8]) -> bool + Copy + Send + Sync + 'static) -> String {
    let echo = move |peer: &mut Peer, _| peer.echo_bytes(|at, bytes| change(at / 16, bytes));
    Fake::start(echo).plain()
}

/// The result that was written with this prefix.
fn result(prefix: &str) -> Results {
    Results::read(&path(&format!("{prefix}.json"))).expect("a result")
}

#[test]
fn an_echo_that_differs_is_named_with_message_and_byte() {
    let target = server(|number, bytes| {
        if number == 70 {
            bytes[9] ^= 1;
        }
        true
    });
    let prefix = path("differs");
    let output = prefix.to_str().expect("UTF-8");
    let ended = run(&["rtt", &target, "--size", "16", "--rounds", "1", "--output", output]);
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    let said = ended.stderr;
    assert!(said.contains("message 70: echo differs at byte 9"), "{said}");
    // What was measured before is kept, and marked as cut short.
    let kept = result("differs");
    // The wrong echo is no message.
    assert_eq!(kept.measurements[0].messages, 70);
    assert_eq!(kept.measurements[0].latencies.count(), 70);
    assert!(kept.cut_short.expect("a mark").contains("message 70"));
    assert!(ended.stdout.starts_with("CUT SHORT: "), "{}", ended.stdout);
}

#[test]
fn a_connection_lost_midway_leaves_what_was_measured() {
    let target = server(|number, _| number < 50);
    let prefix = path("lost");
    let output = prefix.to_str().expect("UTF-8");
    let ended = run(&["rtt", &target, "--size", "16", "--rounds", "3", "--output", output]);
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert!(ended.stderr.contains("closed"), "{}", ended.stderr);
    assert_eq!(result("lost").measurements[0].messages, 50);
}

#[test]
fn a_server_that_is_no_websocket_server_is_named() {
    let server = Fake::start(|peer, _| {
        peer.request()?;
        peer.send(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
    });
    let target = server.url();
    for arguments in [&["rtt", &target][..], &["load", &target]] {
        let ended = run(arguments);
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        let said = &ended.stderr;
        assert!(said.contains("not a WebSocket server") && said.contains("404"), "{said}");
        assert!(ended.stdout.is_empty(), "{ended:?}");
    }
}

#[test]
fn an_interrupt_keeps_what_was_measured() {
    static ECHOED: AtomicUsize = AtomicUsize::new(0);
    let target = server(|number, _| {
        ECHOED.fetch_max(number, Ordering::Relaxed);
        true
    });
    let prefix = path("interrupted");
    let output = prefix.to_str().expect("UTF-8");
    let endless = ["--size", "16", "--messages", "100000000", "--rounds", "1"];
    let arguments = [&["rtt", &target][..], &endless, &["--output", output]].concat();
    let child = spawn(&mut ringbench(&arguments));
    // More than the warm-up.
    wait_until("it measures", || ECHOED.load(Ordering::Relaxed) > 5000);
    kill_process(Pid::from_child(&child), Signal::INT).expect("it runs");
    assert_eq!(end(child).status.code(), Some(0));
    let kept = result("interrupted");
    assert_eq!(kept.cut_short.as_deref(), Some("ended by a signal"));
    let messages = kept.measurements[0].messages;
    assert!((1..100_000_000).contains(&messages), "{messages}");
    assert_eq!(kept.measurements[0].latencies.count(), messages);
}

/// Every exit status that the documents name, and what the message says to do.
#[test]
fn every_failure_has_its_status_and_says_what_to_do() {
    let report = path("not-a-result.json");
    std::fs::write(&report, "{}").expect("a file");
    let report = report.to_str().expect("UTF-8");
    for (arguments, status, word) in [
        (&["--help"][..], 0, ""),
        (&["rtt", "--help"], 0, ""),
        (&["--version"], 0, ""),
        // Nothing could be measured, read or written.
        (&["load", "ws://127.0.0.1:1/"], 1, "127.0.0.1:1"),
        (&["rtt", "ws://127.0.0.1:1/"], 1, "127.0.0.1:1"),
        (&["merge", "/nowhere/at/all.json", "-o", "x"], 1, "all.json"),
        (&["report", "Cargo.toml"], 1, "not a result of ringbench"),
        (&["report", report], 1, "not a result of ringbench"),
        // The command line makes no sense.
        (&[], 2, "Usage: ringbench"),
        (&["measure"], 2, "Usage: ringbench"),
        (&["rtt", "http://a/"], 2, "ws://127.0.0.1:9001/"),
        (&["rtt", "--case", "9.9.1"], 2, "9.7.1 to 9.7.6"),
        (&["rtt", "--histogram"], 2, "--case 9.7.2"),
        (&["rtt", "tcp://127.0.0.1:1", "--size", "0"], 2, "--size above 0"),
        (&["rtt", "--client-cpu", "4095"], 2, "may not use CPU 4095"),
        (&["rtt", "--size", "16", "--case", "9.7.2"], 2, "cannot be used with"),
        (&["load", "ws://127.0.0.1:1/", "--server-cpus", "4095"], 2, "--server-cpus"),
        (&["load", "ws://127.0.0.1:1/", "--pipeline", "4"], 2, "--rate max"),
        (&["load", "tcp://127.0.0.1:1/", "--compress"], 2, ""),
        (&["load", "ws://127.0.0.1:1/", "--rate", "fast"], 2, "max"),
        (&["load", "ws://127.0.0.1:1/", "--duration", "0s"], 2, "more than 0"),
        (&["load", "ws://127.0.0.1:1/", "--mix", "lots"], 2, "mix"),
        (&["compare", "ws://127.0.0.1:1/"], 2, "TARGETS"),
        (&["compare", "sleep 1", "sleep 1"], 2, "{port}"),
        (&["compare", "PORT={port} a", "b {port}"], 2, "env"),
        (&["compare", "a=ws://127.0.0.1:1/", "a=ws://127.0.0.1:2/"], 2, "NAME=TARGET"),
        (&["compare", "ws://a/", "ws://b/", "--connections", "4"], 2, "--load TIME"),
        (&["merge", "a.json"], 2, "--output"),
        (&["report"], 2, "RESULTS"),
    ] {
        let ended = run(arguments);
        assert_eq!(ended.status.code(), Some(status), "{arguments:?} {ended:?}");
        let said = ended.stderr;
        assert!(said.contains(word), "{arguments:?}: {said}");
        if status == 2 {
            let command = arguments.first().filter(|it| **it != "measure").copied();
            let usage = format!("Usage: ringbench {}", command.unwrap_or_default());
            assert!(said.contains(usage.trim_end()), "{arguments:?}: {said}");
        }
    }
}

#[test]
fn a_second_signal_ends_the_program_at_once() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let target = format!("tcp://{}", listener.local_addr().expect("an address"));
    // It accepts and never answers; the first signal is sent while an echo is waited for.
    let prefix = path("twice");
    let prefix = prefix.to_str().expect("UTF-8");
    let endless = ["--size", "16", "--messages", "100000000", "--rounds", "10000"];
    let arguments = [&["rtt", &target][..], &endless, &["-o", prefix]].concat();
    let child = spawn(&mut ringbench(&arguments));
    let _held = listener.accept().expect("a connection");
    // Both arrive before it sees the first one, or it ends between them.
    for _ in 0..2 {
        let _ = kill_process(Pid::from_child(&child), Signal::TERM);
    }
    let ended = end(child);
    assert!(matches!(ended.status.code(), Some(0 | 143)), "{ended:?}");
}

/// Round trips of a few messages with these options.
fn few(target: &str, options: &[&str]) -> Ended {
    let few = ["rtt", target, "--size", "16", "--messages", "20", "--rounds", "2"];
    run(&[&few[..], options].concat())
}

#[test]
fn outputs_are_opened_before_anything_is_measured() {
    // Nobody listens there, so the message shows which was tried first.
    let target = "tcp://127.0.0.1:1";
    for options in
        [&["-o", "/nowhere/at/all"][..], &["--report", "/dev/null/x"], &["-o", "/proc/version/x"]]
    {
        let ended = few(target, options);
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        let said = ended.stderr;
        assert!(said.contains("cannot write") && said.contains(options[1]), "{said}");
        assert!(!said.contains("refused"), "{said}");
    }
    // Files that were opened and not written are removed.
    let prefix = path("unmeasured");
    let ended = few(target, &["-o", prefix.to_str().expect("UTF-8")]);
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    let csv = path("unmeasured-16_bytes.csv");
    assert!(!csv.exists(), "{}", csv.display());
}

#[test]
fn a_standard_error_that_cannot_be_written_changes_no_status() {
    let full = std::fs::File::options().write(true).open("/dev/full").expect("/dev/full");
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringbench"));
    let status = command.args(["rtt", "ws://127.0.0.1:1"]).stderr(full).status().expect("it runs");
    assert_eq!(status.code(), Some(1));
}

#[test]
fn what_cannot_be_written_does_not_keep_the_rest_from_being_written() {
    let target = server(|_, _| true);
    let prefix = path("partly");
    // One of the files is full.
    let full = path("partly-16_bytes.csv");
    std::os::unix::fs::symlink("/dev/full", &full).expect("a link");
    let ended = few(&target, &["-o", prefix.to_str().expect("UTF-8")]);
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    let said = ended.stderr;
    assert!(said.contains("partly-16_bytes.csv: No space left"), "{said}");
    assert_eq!(result("partly").measurements[0].messages, 40);
    assert!(path("partly-16_bytes.hlog").metadata().expect("a file").len() > 0);
    // Standard output is full.
    let prefix = path("unprinted");
    let few = ["rtt", &target, "--size", "16", "--messages", "20", "--rounds", "2"];
    let full = std::fs::File::options().write(true).open("/dev/full").expect("/dev/full");
    let mut command = ringbench(&[&few[..], &["-o", prefix.to_str().expect("UTF-8")]].concat());
    command.stdin(Stdio::null()).stdout(full).stderr(Stdio::piped());
    let ended = end(command.spawn().expect("the program runs"));
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert!(ended.stderr.contains("standard output"), "{ended:?}");
    assert_eq!(result("unprinted").measurements[0].messages, 40);
}

#[test]
fn a_name_that_is_too_long_for_a_file_is_cut() {
    let target = server(|_, _| true);
    let names = ["q", "r"].map(|letter| letter.repeat(300));
    let targets = names.each_ref().map(|name| format!("{name}={target}"));
    let prefix = path("long");
    let output = ["-o", prefix.to_str().expect("UTF-8")];
    let rest = ["--rounds", "1", "--size", "16", "--messages", "20"];
    let ended = run(&[&["compare", &targets[0], &targets[1]][..], &rest, &output].concat());
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    let files = std::fs::read_dir(prefix.parent().expect("a directory")).expect("a directory");
    let names = files.flatten().map(|file| file.file_name().into_string().expect("UTF-8"));
    assert_eq!(names.filter(|name| name.starts_with("long-")).count(), 6);
    // One round has medians and no interval.
    let said = ended.stdout;
    assert!(said.contains("too few rounds to tell"), "{said}");
    assert!(said.contains("at least 6 are needed"), "{said}");
}

#[test]
fn a_result_that_is_read_is_not_replaced() {
    let target = server(|_, _| true);
    let prefix = path("kept");
    let ended = few(&target, &["-o", prefix.to_str().expect("UTF-8")]);
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    let json = path("kept.json");
    let link = path("link-to-kept.html");
    std::os::unix::fs::symlink(&json, &link).expect("a link");
    for output in [&json, &link] {
        let [input, output] = [&json, output].map(|path| path.to_str().expect("UTF-8"));
        let ended = run(&["report", input, "-o", output]);
        assert_eq!(ended.status.code(), Some(2), "{ended:?}");
    }
    assert_eq!(result("kept").measurements[0].messages, 40);
}

#[test]
fn an_output_that_names_no_file_is_a_usage_error() {
    let directory = path("a-directory");
    std::fs::create_dir_all(&directory).expect("a directory");
    for prefix in [format!("{}/", directory.display()), format!("{}/..", directory.display())] {
        let ended = run(&["rtt", "ws://127.0.0.1:1/", "--output", &prefix]);
        assert_eq!(ended.status.code(), Some(2), "{ended:?}");
        assert!(ended.stderr.contains("DIRECTORY/NAME"), "{}", ended.stderr);
    }
    assert_eq!(std::fs::read_dir(&directory).expect("a directory").count(), 0);
}

#[test]
fn numbers_that_nothing_has_are_no_result() {
    let target = server(|_, _| true);
    let prefix = path("plausible");
    let output = prefix.to_str().expect("UTF-8");
    let measured = ["--messages", "10", "--rounds", "1", "--output", output];
    assert!(run(&[&["rtt", &target, "--size", "16"][..], &measured].concat()).status.success());
    let right = path("plausible.json");
    let right = std::fs::read_to_string(&right).expect("a result");
    let value: serde_json::Value = serde_json::from_str(&right).expect("JSON");
    for (pointer, number) in [
        ("/started_at_s", serde_json::json!(1e300)),
        ("/started_at_s", serde_json::json!(-1.0)),
        ("/measurements/0/messages", serde_json::json!(u64::MAX)),
        ("/measurements/0/rounds/0/begin_s", serde_json::json!(1e308)),
        ("/measurements/0/rounds/0/duration_s", serde_json::json!(-1.0)),
    ] {
        let mut wrong = value.clone();
        *wrong.pointer_mut(pointer).expect("a number") = number;
        let file = path("implausible.json");
        std::fs::write(&file, wrong.to_string()).expect("a file");
        let file = file.to_str().expect("UTF-8");
        let sum = path("sum");
        let sum = sum.to_str().expect("UTF-8");
        for ended in [
            run(&["merge", &format!("{output}.json"), file, "--output", sum]),
            run(&["report", file, "--output", sum]),
        ] {
            assert_eq!(ended.status.code(), Some(1), "{pointer}: {ended:?}");
            assert!(ended.stderr.contains("not a result"), "{}", ended.stderr);
        }
    }
}

#[test]
fn shells_and_man_pages_know_the_commands() {
    let script = run(&["completions", "bash"]).stdout;
    assert!(script.contains("conform") && script.contains("--calibrate"), "{script}");
    let page = run(&["man"]).stdout;
    assert!(page.contains(".TH ringbench 1") && page.contains("ringbench\\-load(1)"), "{page}");
    let page = run(&["man", "load"]).stdout;
    assert!(page.contains(".TH ringbench-load 1") && page.contains("\\-\\-rate"), "{page}");
    // Those for the program itself are no one's business.
    let ended = run(&["man", "guard"]);
    assert_eq!(ended.status.code(), Some(2));
    assert!(ended.stderr.contains("write one of rtt, load"), "{ended:?}");
}
