//! More at once than the queues of a ring hold.

use rustix::process::{Resource, Rlimit, Signal, WaitOptions, getrlimit, setrlimit, waitpid};
use testkit::{BINARY, Client, Server, TEXT, frame, pattern, say};

use crate::engines;

/// Completions that the queue of a worker's ring holds.
const COMPLETIONS: usize = 4096;

/// Holds the server while `call` runs, so that all of what happens meanwhile is there at once.
fn hold(server: &Server, call: impl FnOnce()) {
    server.signal(Signal::STOP);
    let stopped = waitpid(Some(server.pid()), WaitOptions::UNTRACED).expect("a child");
    assert!(stopped.is_some_and(|(_, status)| status.stopped()));
    call();
    server.signal(Signal::CONT);
}

#[test]
fn more_completions_than_the_queue_holds_are_all_seen() {
    const CONNECTIONS: usize = COMPLETIONS + 900;
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    if maximum.is_some_and(|maximum| maximum < CONNECTIONS as u64 + 500) {
        return say("SKIPPED: more_completions_than_the_queue_holds: too few descriptors");
    }
    let options = engines().map(|engine| ["--engine", engine]).chain([["--wait", "sqpoll"]]);
    for option in options {
        let server = Server::start(&[&option[..], &["--workers", "1"]].concat());
        let mut clients: Vec<Client> =
            (0..CONNECTIONS).map(|_| Client::connect(server.address())).collect();
        let message = |number: usize| format!("message of connection {number}").into_bytes();
        for _ in 0..2 {
            hold(&server, || {
                for (number, client) in clients.iter_mut().enumerate() {
                    client.send_frame(TEXT, &message(number));
                }
            });
            for (number, client) in clients.iter_mut().enumerate() {
                client.expect(TEXT, &message(number));
            }
        }
        // And as many ends.
        hold(&server, || clients.clear());
        server.wait_for_count("connections_open", 0);
        let ended = server.terminate();
        assert_eq!(ended.status.code(), Some(0), "{option:?}");
        assert_eq!(ended.count("messages"), 2 * CONNECTIONS as u64, "{option:?}");
    }
}

#[test]
fn more_bytes_at_once_than_buffers_hold_come_back_in_order() {
    for engine in engines() {
        let buffers = ["--buffers", "1", "--buffer-size", "4KiB", "--workers", "1"];
        let server = Server::start(&[&["--engine", engine][..], &buffers].concat());
        let mut clients: Vec<Client> =
            (0..100).map(|_| Client::connect(server.address())).collect();
        let payload = pattern(30_000);
        for _ in 0..5 {
            let message = frame(BINARY, &payload);
            hold(&server, || clients.iter_mut().for_each(|client| client.write(&message)));
            clients.iter_mut().for_each(|client| client.expect(BINARY, &payload));
        }
        clients.into_iter().for_each(Client::close);
        server.wait_for_count("connections_open", 0);
        let ended = server.terminate();
        assert_eq!(ended.count("messages"), 500, "{engine}");
        if engine != "epoll" {
            assert_ne!(ended.count("buffers_exhausted"), 0, "{engine}");
        }
    }
}
