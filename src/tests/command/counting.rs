//! The counters: the summary, the statistics file, and outputs that go away.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::TcpStream;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::process::{Child, Command};

use rustix::process::{Signal, kill_process};
use serde_json::Value;
use testkit::{
    BINARY, Client, REQUEST, RESPONSE, Server, TEXT, end, pattern, program, spawn, temporary_file,
};

use crate::{COUNTERS, converse, names_in, refusal, summary_of};

#[test]
fn the_counters_are_exact() {
    let server = Server::start(&["--engine", "uring", "--workers", "1", "--wait", "block"]);
    let mut client = Client::connect(server.address());
    converse(&mut client, 1000);
    let (request, response) = (REQUEST.len() as u64, RESPONSE.len() as u64);
    let expected = |statistics: &Value, open: u64, close: u64| {
        let names: Vec<&String> = statistics.as_object().expect("an object").keys().collect();
        assert_eq!(names, ["total", "workers"]);
        let workers = statistics["workers"].as_array().expect("an array");
        assert_eq!(workers, &[statistics["total"].clone()]);
        let total = statistics["total"].as_object().expect("an object");
        assert_eq!(total.keys().collect::<Vec<&String>>(), COUNTERS);
        for (name, value) in [
            ("connections_accepted", 1),
            ("connections_open", open),
            ("connections_rejected", 0),
            ("connections_overrun", 0),
            ("messages", 1000),
            ("messages_offloaded", 0),
            ("messages_mirrored", 0),
            ("messages_recompressed", 0),
            ("compression_declined", 0),
            ("frames_in", 1000 + close),
            ("frames_out", 1000 + close),
            ("bytes_in", request + 1000 * 22 + close * 8),
            ("bytes_out", response + 1000 * 18 + close * 4),
            ("buffers_exhausted", 0),
            ("spill_bytes_kept", 0),
            ("spill_allocations", 0),
            ("memory_bytes", 0),
            ("memory_shortages", 0),
            ("protocol_violations", 0),
            ("messages_overfragmented", 0),
            ("control_floods", 0),
            ("addresses_refused", 0),
            ("origins_refused", 0),
            ("paths_refused", 0),
            ("handshakes_timed_out", 0),
            ("pings_sent", 0),
            ("connections_timed_out", 0),
            ("connections_expired", 0),
            ("connections_shed", 0),
            ("connections_cut", 0),
            ("spins", 0),
        ] {
            assert_eq!(total[name].as_u64(), Some(value), "{name} of {statistics}");
        }
        let syscalls = total["syscalls"].as_u64().expect("a count");
        assert!(syscalls > 0);
        let ratio = total["syscalls_per_message"].as_f64().expect("a ratio");
        assert_eq!(ratio, syscalls as f64 / 1000.0);
    };
    // The last send is counted when the next completion is.
    server.wait_for_count("connections_open", 1);
    let before = server.statistics();
    assert_eq!(before["total"]["messages"].as_u64(), Some(1000), "{before}");
    assert_eq!(before["total"]["connections_open"].as_u64(), Some(1), "{before}");
    client.close();
    server.wait_for_count("connections_open", 0);
    expected(&server.statistics(), 0, 1);
    let ended = server.terminate();
    assert_eq!(ended.status.code(), Some(0));
    expected(&ended.statistics, 0, 1);

    // The summary has the same counts.
    let summary = summary_of(&ended);
    assert_eq!(names_in(summary), COUNTERS);
    for (line, name) in summary.lines().zip(COUNTERS) {
        let number = line.split_whitespace().nth(1).expect("a number");
        match ended.statistics["total"][name].as_u64() {
            Some(value) => assert_eq!(number, value.to_string(), "{line}"),
            None => assert!(number.starts_with("1.0"), "{line}"),
        }
    }
}

#[test]
fn the_total_is_the_sum_over_the_workers() {
    let server = Server::start(&["--workers", "3"]);
    for _ in 0..30 {
        let mut client = Client::connect(server.address());
        client.echo(BINARY, &pattern(300));
        client.close();
    }
    server.wait_for_count("connections_open", 0);
    let ended = server.terminate();
    let workers = ended.statistics["workers"].as_array().expect("an array");
    assert_eq!(workers.len(), 3);
    for name in COUNTERS.into_iter().filter(|&name| name != "syscalls_per_message") {
        let sum: u64 = workers.iter().map(|worker| worker[name].as_u64().expect("a count")).sum();
        assert_eq!(ended.count(name), sum, "{name}");
    }
    assert_eq!(ended.count("messages"), 30);
    assert_eq!(ended.count("frames_out"), 60);
}

/// A server that is no [`Server`]: with `arguments`, and its first line read from its output.
fn start_by_hand(arguments: &[&str]) -> (Child, BufReader<std::process::ChildStdout>, Client) {
    let mut command = Command::new(program());
    let mut child = spawn(command.args(["--listen", "127.0.0.1:0"]).args(arguments));
    let (output, client) = greeted(&mut child);
    (child, output, client)
}

/// The output of a server after its first line, and a connection to it.
fn greeted(child: &mut Child) -> (BufReader<std::process::ChildStdout>, Client) {
    let mut output = BufReader::new(child.stdout.take().expect("a pipe"));
    let mut greeting = String::new();
    output.read_line(&mut greeting).expect("a first line");
    let address = greeting.split_once("ws://").and_then(|(_, rest)| rest.split_once(' '));
    let (address, _) = address.expect("an address");
    (output, Client::connect(address.parse().expect("an address")))
}

#[test]
fn a_reader_of_its_output_that_goes_away_is_no_reason_to_fail() {
    let stats_file = temporary_file("unread.json");
    let path = stats_file.to_str().expect("a path in UTF-8");
    let (child, output, mut client) = start_by_hand(&["--workers", "1", "--stats-file", path]);
    drop(output);
    client.echo(TEXT, b"unread");
    client.close();
    kill_process(rustix::process::Pid::from_child(&child), Signal::TERM).expect("a child");
    let ended = end(child);
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert!(!ended.stderr.contains("ringecho: "), "{ended:?}");
    let text = fs::read(&stats_file).expect("statistics");
    let statistics: Value = serde_json::from_slice(&text).expect("JSON");
    assert_eq!(statistics["total"]["messages"].as_u64(), Some(1));
    fs::remove_file(&stats_file).expect("a file");
}

#[test]
fn a_reader_of_its_errors_that_goes_away_is_no_reason_to_end() {
    let fifo = temporary_file("unread.fifo");
    let path = fifo.to_str().expect("a path in UTF-8");
    assert!(Command::new("mkfifo").arg(path).status().expect("mkfifo").success());
    for engine in ["uring", "epoll"] {
        let mut command = Command::new("sh");
        command.args(["-c", "ulimit -n 24 && exec \"$0\" \"$@\""]);
        command.arg(program()).args(["--engine", engine]);
        command.args(["--listen", "127.0.0.1:0", "--workers", "1", "--stats-file", path]);
        let mut child = spawn(&mut command);
        drop(child.stderr.take());
        let (output, mut client) = greeted(&mut child);
        // More than there are descriptors for, of which the worker warns.
        let address = client.stream().peer_addr().expect("a peer");
        let crowd: Vec<TcpStream> =
            (0..40).map(|_| TcpStream::connect(address).expect("a backlog")).collect();
        // Nobody reads the FIFO, of which the thread for signals complains.
        kill_process(rustix::process::Pid::from_child(&child), Signal::USR1).expect("a child");
        for _ in 0..100 {
            client.echo(TEXT, b"still there");
        }
        drop(crowd);
        client.close();
        kill_process(rustix::process::Pid::from_child(&child), Signal::TERM).expect("a child");
        let lines: Vec<String> = output.lines().map_while(Result::ok).collect();
        assert_eq!(names_in(&lines.join("\n")), COUNTERS, "{engine}");
        assert_eq!(end(child).status.code(), Some(1), "{engine}");
    }
    fs::remove_file(fifo).expect("a FIFO");
}

#[test]
fn a_statistics_file_that_can_no_longer_be_written_is_an_error_after_the_summary() {
    let directory = temporary_file("directory");
    fs::create_dir(&directory).expect("a directory");
    let stats_file = directory.join("stats.json");
    let path = stats_file.to_str().expect("a path in UTF-8");
    let (mut child, output, mut client) = start_by_hand(&["--workers", "1", "--stats-file", path]);
    fs::remove_dir(&directory).expect("nothing is in it");
    client.echo(TEXT, b"uncounted");
    client.close();
    kill_process(rustix::process::Pid::from_child(&child), Signal::TERM).expect("a child");
    let summary: Vec<String> = output.lines().map_while(Result::ok).collect();
    assert_eq!(names_in(&summary.join("\n")), COUNTERS);
    child.stdout = None;
    let line = refusal(end(child));
    assert!(line.contains("--stats-file") && line.contains(path), "{line}");
}

#[test]
fn statistics_go_through_links_and_fifos_and_to_standard_output() {
    let directory = temporary_file("places");
    fs::create_dir(&directory).expect("a directory");
    let place = |name: &str| directory.join(name).to_str().expect("a path in UTF-8").to_owned();
    // Runs a server with this statistics file, and returns what it printed after its first line.
    let run = |path: &str, status: i32| {
        let (child, output, client) = start_by_hand(&["--workers", "1", "--stats-file", path]);
        client.close();
        kill_process(rustix::process::Pid::from_child(&child), Signal::TERM).expect("a child");
        let lines: Vec<String> = output.lines().map_while(Result::ok).collect();
        assert_eq!(end(child).status.code(), Some(status), "{path}");
        lines.join("\n")
    };
    let parse = |text: &str| serde_json::from_str::<Value>(text).expect("JSON");

    fs::write(place("file"), "old").expect("a file");
    fs::set_permissions(place("file"), fs::Permissions::from_mode(0o604)).expect("a mode");
    std::os::unix::fs::symlink("file", place("link")).expect("a link");
    run(&place("link"), 0);
    assert!(fs::symlink_metadata(place("link")).expect("a link").is_symlink());
    assert_eq!(fs::metadata(place("file")).expect("a file").permissions().mode() & 0o777, 0o604);
    parse(&fs::read_to_string(place("file")).expect("a file"));

    let fifo = place("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().expect("mkfifo").success());
    // Without a reader, opening fails at once instead of waiting.
    run(&fifo, 1);
    // Opened for reading and writing, it has a reader at once (fifo(7)).
    let mut reader = File::options().read(true).write(true).open(&fifo).expect("a FIFO");
    run(&fifo, 0);
    let mut text = vec![0; 1 << 16];
    let length = reader.read(&mut text).expect("what the server wrote");
    parse(str::from_utf8(&text[..length]).expect("UTF-8"));
    assert!(fs::metadata(&fifo).expect("a FIFO").file_type().is_fifo());

    let printed = run("/dev/stdout", 0);
    let (summary, json) = printed.split_once('{').expect("JSON after the summary");
    assert_eq!(names_in(summary), COUNTERS);
    parse(&format!("{{{json}"));
    fs::remove_dir_all(&directory).expect("a directory");
}
