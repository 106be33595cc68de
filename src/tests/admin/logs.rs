//! The log of the real program: levels, forms, and the reasons of connections.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use serde_json::Value;
use testkit::{Client, Server, TEXT, program, run, run_by};

use crate::engines;

#[test]
fn each_connection_has_a_line_at_debug_with_the_reason_of_its_end() {
    for engine in engines("each_connection_has_a_line_at_debug_with_the_reason_of_its_end") {
        let options =
            [engine, &["--workers", "1", "--log-level", "debug", "--log", "json"]].concat();
        let server = Server::start(&options);
        let open = || {
            let mut client = Client::connect(server.address());
            client.echo(TEXT, b"here");
            client
        };
        open().close();
        server.wait_for_count("connections_open", 0);
        drop(open());
        server.wait_for_count("connections_open", 0);
        let mut broken = open();
        broken.write(b"\xff\xff");
        broken.read_to_end().expect("a close frame");
        drop(broken);
        server.wait_for_count("connections_open", 0);
        let mut last = open();
        server.signal(rustix::process::Signal::TERM);
        last.expect(testkit::CLOSE, &1001_u16.to_be_bytes());
        last.send_frame(testkit::CLOSE, &1001_u16.to_be_bytes());
        last.expect_end();
        let ended = server.wait();
        let lines = ended.stderr.lines().map(|line| serde_json::from_str(line).expect("JSON"));
        let lines: Vec<Value> = lines.collect();
        let ends = lines.iter().filter(|line| line["level"] == "DEBUG");
        let ends: Vec<&Value> =
            ends.filter(|line| line["fields"]["worker"] == "worker-0").collect();
        let reasons: Vec<&str> = ends
            .iter()
            .filter_map(|line| {
                line["fields"]["message"].as_str()?.strip_prefix("a connection has ended: ")
            })
            .collect();
        let expected = [
            "the protocol ended it",
            "the client ended it without a closing handshake",
            "the protocol ended it",
            "the server stops",
        ];
        assert_eq!(reasons, expected, "{engine:?} {}", ended.stderr);
        assert!(ends.iter().all(|line| line["fields"]["slot"] == 0), "{}", ended.stderr);
    }
}

#[test]
fn the_variable_counts_where_no_level_is_given() {
    let lines = |options: &[&str], variable: &str| {
        let options = [&["--workers", "1"], options].concat();
        let server = Server::start_with(&options, &[("RUST_LOG", variable)]);
        let mut client = Client::connect(server.address());
        client.echo(TEXT, b"here");
        client.close();
        server.wait_for_count("connections_open", 0);
        server.terminate().stderr
    };
    assert!(lines(&[], "ringecho::engine=debug").contains("a connection has ended"));
    assert_eq!(lines(&["--log-level", "warn"], "debug"), "");
    assert_eq!(lines(&[], ""), "");
    let text = lines(&[], "much=more=most");
    assert!(text.contains("RUST_LOG: ") && text.contains("MODULE=LEVEL"), "{text}");
}

#[test]
fn the_reason_why_the_program_ends_has_the_form_of_the_log() {
    let bad = ["--listen", "127.0.0.1:0", "--admin", "unix:/nowhere/at/all"];
    let ended = run(&[&bad[..], &["--log", "json"]].concat());
    assert_eq!(ended.status.code(), Some(1));
    let value: Value = serde_json::from_str(&ended.stderr).expect("one object");
    assert_eq!(value["level"], "ERROR");
    let message = value["fields"]["message"].as_str().expect("text");
    assert!(message.contains("create the directory first"), "{message}");
}

/// A shell that knows what its standard error is plays systemd.
#[test]
fn lines_for_the_journal_begin_with_their_priority() {
    let script = "JOURNAL_STREAM=$(stat -L -c %d:%i /proc/$$/fd/2) exec \"$0\" \"$@\"";
    let mut command = Command::new("sh");
    command.arg0("sh").args(["-c", script]).arg(program());
    command.args(["--listen", "127.0.0.1:0", "--admin", "unix:/nowhere/at/all"]);
    let ended = run_by(&mut command);
    assert!(ended.stderr.starts_with("<3>ringecho: --admin: "), "{ended:?}");
    // Another stream is not the journal.
    let mut command = Command::new(program());
    command.args(["--listen", "127.0.0.1:0", "--admin", "unix:/nowhere/at/all"]);
    let ended = run_by(command.env("JOURNAL_STREAM", "8:1"));
    assert!(ended.stderr.starts_with("ringecho: --admin: "), "{ended:?}");
}
