//! The real command against servers that behave badly: what it says, what it keeps, how it ends.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use ringbench::results::Results;
use rustix::process::{Pid, Signal, kill_process};

/// Runs `ringbench` to its end.
fn run(arguments: &[&str]) -> Output {
    command(arguments).output().expect("the program runs")
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringbench"));
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A path in a directory of this test's own, which does not exist.
fn path(name: &str) -> PathBuf {
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(std::process::id().to_string());
    std::fs::create_dir_all(&directory).expect("a directory");
    directory.join(name)
}

/// A server of plain octets that echoes what `change` makes of each read, until it says no.
fn server(change: fn(usize, &mut Vec<u8>) -> bool) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let serve = move |mut stream: TcpStream| {
        let mut octets = [0; 4096];
        for number in 0.. {
            let Ok(count @ 1..) = stream.read(&mut octets) else { return };
            let mut answer = octets[..count].to_vec();
            if !change(number, &mut answer) || stream.write_all(&answer).is_err() {
                return;
            }
        }
    };
    thread::spawn(move || listener.incoming().flatten().for_each(serve));
    address.to_string()
}

/// The result that was written with this prefix.
fn result(prefix: &str) -> Results {
    Results::read(&path(&format!("{prefix}.json"))).expect("a result")
}

fn text(octets: &[u8]) -> String {
    String::from_utf8_lossy(octets).into_owned()
}

#[test]
fn an_echo_that_differs_is_named_with_message_and_byte() {
    let address = server(|number, octets| {
        if number == 70 {
            octets[9] ^= 1;
        }
        true
    });
    let prefix = path("differs");
    let target = format!("tcp://{address}");
    let output = prefix.to_str().expect("UTF-8");
    let ended = run(&["rtt", &target, "--size", "16", "--rounds", "1", "--output", output]);
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    let said = text(&ended.stderr);
    assert!(said.contains("message 70: echo differs at byte 9"), "{said}");
    // What was measured until then is kept, and marked.
    let kept = result("differs");
    // The wrong echo is no message.
    assert_eq!(kept.measurements[0].messages, 70);
    assert_eq!(kept.measurements[0].latencies.count(), 70);
    assert!(kept.cut_short.expect("a mark").contains("message 70"));
    assert!(text(&ended.stdout).starts_with("CUT SHORT: "), "{}", text(&ended.stdout));
}

#[test]
fn a_connection_lost_midway_leaves_what_was_measured() {
    let address = server(|number, _| number < 50);
    let prefix = path("lost");
    let output = prefix.to_str().expect("UTF-8");
    let target = format!("tcp://{address}");
    let ended = run(&["rtt", &target, "--size", "16", "--rounds", "3", "--output", output]);
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert!(text(&ended.stderr).contains("closed"), "{}", text(&ended.stderr));
    assert_eq!(result("lost").measurements[0].messages, 50);
}

#[test]
fn what_is_no_websocket_server_is_told() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
        }
    });
    let target = format!("ws://{address}/");
    for arguments in [&["rtt", &target][..], &["load", &target]] {
        let ended = run(arguments);
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        let said = text(&ended.stderr);
        assert!(said.contains("not a WebSocket server") && said.contains("404"), "{said}");
        assert!(ended.stdout.is_empty(), "{ended:?}");
    }
}

#[test]
fn an_interrupt_ends_it_with_what_there_is() {
    let address = server(|_, _| true);
    let prefix = path("interrupted");
    let output = prefix.to_str().expect("UTF-8");
    let target = format!("tcp://{address}");
    let endless = ["--size", "16", "--messages", "100000000", "--rounds", "1"];
    let mut child = command(&[&["rtt", &target][..], &endless, &["--output", output]].concat())
        .spawn()
        .expect("the program runs");
    thread::sleep(Duration::from_millis(700));
    kill_process(Pid::from_child(&child), Signal::INT).expect("it runs");
    let status = child.wait().expect("its end");
    assert_eq!(status.code(), Some(0));
    let kept = result("interrupted");
    assert_eq!(kept.cut_short.as_deref(), Some("ended by a signal"));
    let messages = kept.measurements[0].messages;
    assert!((1..100_000_000).contains(&messages), "{messages}");
    assert_eq!(kept.measurements[0].latencies.count(), messages);
}

#[test]
fn options_that_make_no_sense_are_told() {
    for (arguments, status, word) in [
        (&["rtt", "http://a/"][..], 2, "ws://127.0.0.1:9001/"),
        (&["rtt", "--case", "9.9.1"], 1, "9.7.1 to 9.7.6"),
        (&["rtt", "--histogram"], 1, "--case"),
        (&["rtt", "tcp://127.0.0.1:1", "--size", "0"], 1, "--size"),
        (&["rtt", "--client-cpu", "4095"], 1, "--client-cpu"),
        (&["load", "ws://127.0.0.1:1/"], 1, "start the server"),
        (&["load", "ws://127.0.0.1:1/", "--pipeline", "4"], 1, "--rate max"),
        (&["load", "ws://127.0.0.1:1/", "--rate", "fast"], 2, "max"),
        (&["load", "ws://127.0.0.1:1/", "--duration", "0s"], 2, "more than 0"),
        (&["load", "ws://127.0.0.1:1/", "--mix", "lots"], 2, "mix"),
        (&["compare", "ws://127.0.0.1:1/"], 2, "TARGETS"),
        (&["compare", "sleep 1", "sleep 1"], 1, "{port}"),
        (&["merge", "/nowhere/at/all.json", "-o", "x"], 1, "all.json"),
        (&["report", "Cargo.toml"], 1, "no result of ringbench"),
    ] {
        let ended = run(arguments);
        assert_eq!(ended.status.code(), Some(status), "{arguments:?} {ended:?}");
        let said = text(&ended.stderr);
        assert!(said.contains(word), "{arguments:?}: {said}");
    }
}
