//! Signals, and how the server ends its connections.

use std::net::Shutdown;
use std::thread;

use rustix::process::{Signal, WaitOptions, waitpid};
use testkit::{
    BINARY, CLOSE, Client, FIN, REQUEST, RESPONSE, Server, TEXT, can_offload, frame, pattern,
    reply, wait_until,
};

use crate::{COUNTERS, names_in, summary_of};

/// What a client that answers close frames receives when the server stops.
#[track_caller]
fn expect_going_away(client: &mut Client) {
    client.expect(CLOSE, &1001u16.to_be_bytes());
    client.send_frame(CLOSE, &1001u16.to_be_bytes());
    client.expect_end();
}

#[test]
fn sigint_and_sigterm_close_every_connection_with_1001() {
    for signal in [Signal::INT, Signal::TERM] {
        let server = Server::start(&["--workers", "2"]);
        let mut clients: Vec<Client> = (0..20).map(|_| Client::connect(server.address())).collect();
        for client in &mut clients {
            client.echo(TEXT, b"before");
        }
        let mut silent = Client::open(server.address());
        let mut asking = Client::open(server.address());
        asking.write(&REQUEST.as_bytes()[..20]);
        server.wait_for_count("connections_open", 22);
        server.signal(signal);
        for client in &mut clients {
            expect_going_away(client);
        }
        // No WebSocket connection, no close frame.
        silent.expect_end();
        asking.expect_end();
        drop((clients, silent, asking));
        let ended = server.wait();
        assert_eq!(ended.status.code(), Some(0), "{ended:?}");
        assert_eq!(ended.count("connections_open"), 0);
        // Two workers: a head line, then a line for each counter.
        let summary = names_in(summary_of(&ended));
        assert_eq!(summary[0], "total");
        assert_eq!(summary[1..], COUNTERS);
    }
}

/// Also with bursts of messages: what was received whole by then is echoed, and counted as that.
#[test]
fn a_stop_in_full_traffic_cuts_nothing_in_two_and_loses_no_echo() {
    for (engine, wait) in [
        ("uring", "block"),
        ("uring", "adaptive"),
        ("uring", "sqpoll"),
        ("epoll", "block"),
        ("epoll", "adaptive"),
        #[cfg(feature = "tokio-uring")]
        ("tokio-uring", "block"),
    ] {
        let server = Server::start(&["--workers", "2", "--engine", engine, "--wait", wait]);
        // A connection that is not open yet when the server stops is not part of the traffic.
        let clients: Vec<_> = (0..16).map(|_| Client::connect(server.address())).collect();
        let clients: Vec<_> = (0..)
            .zip(clients)
            .map(|(number, mut client)| {
                thread::spawn(move || {
                    let payload = pattern(100 << (number % 10));
                    let burst = 1 + number % 4;
                    let sent = frame(BINARY, &payload).repeat(burst);
                    for echoes in 0u64.. {
                        if echoes % burst as u64 == 0 {
                            client.write(&sent);
                        }
                        let received = client.read_frame();
                        if received.first == CLOSE {
                            assert_eq!(received.payload, 1001u16.to_be_bytes());
                            client.send_frame(CLOSE, &1001u16.to_be_bytes());
                            client.expect_end();
                            return echoes;
                        }
                        assert!(received.payload == payload, "the echo is not what was sent");
                    }
                    unreachable!()
                })
            })
            .collect();
        wait_until("all are talking", || server.count("messages") > 1_000);
        let ended = server.terminate();
        let echoes = clients.into_iter().map(|client| client.join().expect("echoes, then the end"));
        assert_eq!(ended.count("messages"), echoes.sum::<u64>(), "{engine} {wait}");
        assert_eq!(ended.status.code(), Some(0), "{engine} {wait} {ended:?}");
        assert_eq!(ended.count("connections_open"), 0);
        assert_eq!(ended.count("protocol_violations"), 0);
    }
}

/// A client that has connected cannot know that the server stops.
#[test]
fn opening_handshakes_in_progress_are_answered_before_the_end() {
    let mut engines = vec!["uring", "epoll"];
    if cfg!(feature = "tokio-uring") {
        engines.push("tokio-uring");
    }
    if can_offload("opening_handshakes_in_progress_are_answered_before_the_end") {
        engines.push("offload");
    }
    for engine in engines {
        let server = match engine {
            "offload" => Server::start(&["--workers", "2", "--engine", "uring", "--offload", "on"]),
            engine => Server::start(&["--workers", "2", "--engine", engine]),
        };
        let mut open = Client::connect(server.address());
        let mut accepted: Vec<Client> = (0..8).map(|_| Client::open(server.address())).collect();
        let mut silent = Client::open(server.address());
        server.wait_for_count("connections_open", 10);
        // It is held, so that all of this happens before it knows of the stop, or after.
        server.signal(Signal::STOP);
        let stopped = waitpid(Some(server.pid()), WaitOptions::UNTRACED).expect("a child");
        assert!(stopped.is_some_and(|(_, status)| status.stopped()));
        let mut waiting: Vec<Client> = (0..8).map(|_| Client::open(server.address())).collect();
        let request = [REQUEST.as_bytes(), &frame(TEXT, b"just in time")].concat();
        for client in accepted.iter_mut().chain(&mut waiting) {
            client.write(&request);
        }
        server.signal(Signal::TERM);
        server.signal(Signal::CONT);
        expect_going_away(&mut open);
        for client in accepted.iter_mut().chain(&mut waiting) {
            assert_eq!(String::from_utf8_lossy(&client.read(RESPONSE.len())), RESPONSE, "{engine}");
            client.expect(TEXT, b"just in time");
            expect_going_away(client);
        }
        silent.expect_end();
        drop((open, accepted, waiting, silent));
        let ended = server.wait();
        assert_eq!(ended.status.code(), Some(0), "{engine} {ended:?}");
        assert_eq!(ended.count("connections_accepted"), 18, "{engine}");
        assert_eq!(ended.count("messages"), 16, "{engine}");
    }
}

#[test]
fn sighup_has_no_effect() {
    let server = Server::start(&["--workers", "1"]);
    let mut client = Client::connect(server.address());
    for _ in 0..3 {
        server.signal(Signal::HUP);
        // Signals are obeyed one after the other.
        server.statistics();
        client.echo(TEXT, b"still here");
    }
    client.close();
    assert_eq!(server.terminate().status.code(), Some(0));
}

#[test]
fn it_stops_although_peers_never_answer_or_never_read() {
    let server = Server::start(&["--workers", "1"]);
    let mut silent = Client::connect(server.address());
    let mut vanished = Client::connect(server.address());
    vanished.send_frame(TEXT, b"gone");
    // More than the sockets take, so that the server's send waits.
    let clogged = Client::connect(server.address());
    let stream = clogged.stream().try_clone().expect("a descriptor");
    let (begun, has_begun) = std::sync::mpsc::channel();
    let writer = thread::spawn(move || {
        let message = frame(BINARY, &pattern(1 << 20));
        let mut stream = &stream;
        for _ in 0..64 {
            if std::io::Write::write_all(&mut stream, &message).is_err() {
                break;
            }
            let _ = begun.send(());
        }
    });
    has_begun.recv().expect("a message is written");
    server.signal(Signal::TERM);
    silent.expect(CLOSE, &1001u16.to_be_bytes());
    let ended = server.wait();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert_eq!(names_in(summary_of(&ended)), COUNTERS);
    assert_eq!(ended.count("connections_open"), 0);
    let _ = clogged.stream().shutdown(Shutdown::Both);
    writer.join().expect("a thread");
}

#[test]
fn a_second_signal_ends_at_once() {
    for (first, second, status) in [
        (Signal::TERM, Signal::TERM, 143),
        (Signal::INT, Signal::INT, 130),
        (Signal::TERM, Signal::INT, 130),
    ] {
        let mut server = Server::start(&[]);
        let mut silent = Client::connect(server.address());
        server.signal(first);
        silent.expect(CLOSE, &1001u16.to_be_bytes());
        // One that comes at once counts as the first.
        wait_until("the server ends", || {
            server.signal(second);
            !server.is_running()
        });
        let ended = server.wait();
        assert_eq!(ended.status.code(), Some(status), "{ended:?}");
        // The drain was not waited for, or there would be a summary.
        assert_eq!(summary_of(&ended), "");
    }
}

/// `timeout` sends a signal to its child and then to the whole group.
#[test]
fn a_signal_that_arrives_twice_is_one() {
    let server = Server::start(&["--workers", "1"]);
    let mut client = Client::connect(server.address());
    server.signal(Signal::TERM);
    server.signal(Signal::TERM);
    expect_going_away(&mut client);
    let ended = server.wait();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert_eq!(names_in(summary_of(&ended)), COUNTERS);
}

#[test]
fn a_stop_within_a_frame_lets_binary_finish_and_drops_text() {
    let server = Server::start(&["--workers", "1"]);
    let payload = pattern(100_000);
    let (sent, echoed) = (frame(BINARY, &payload), reply(BINARY, &payload));
    let half = payload.len() / 2;
    let mut binary = Client::connect(server.address());
    binary.write(&sent[..half]);
    // The header is four bytes shorter without the key.
    let first = binary.read(half - 4);
    let mut text = Client::connect(server.address());
    text.echo(TEXT, b"before");
    let cut = frame(TEXT, b"never echoed");
    text.write(&cut[..10]);
    let mut fragments = Client::connect(server.address());
    fragments.echo(BINARY & !FIN, b"a fragment");
    server.wait_for_count("bytes_in", {
        let request = REQUEST.len() as u64;
        3 * request + half as u64 + 6 + 6 + 10 + 16
    });

    server.signal(Signal::TERM);
    // Between fragments control frames may stand (RFC 6455 section 5.4).
    expect_going_away(&mut fragments);
    text.expect(CLOSE, &1001u16.to_be_bytes());
    text.write(&cut[10..]);
    text.send_frame(TEXT, b"not echoed either");
    text.send_frame(CLOSE, &1001u16.to_be_bytes());
    text.expect_end();
    binary.write(&sent[half..]);
    let second = binary.read(echoed.len() - first.len());
    assert!([first, second].concat() == echoed, "the echo is not what was sent");
    expect_going_away(&mut binary);

    drop((binary, text, fragments));
    let ended = server.wait();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert_eq!((ended.count("messages"), ended.count("protocol_violations")), (2, 0));
}
