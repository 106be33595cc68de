//! What every start serves: each way to wait, system calls per message, plain bytes.

use rustix::net::SendFlags;
use rustix::process::{Signal, WaitOptions, waitpid};
use testkit::{BINARY, Client, Server, TEXT, frame, pattern, say};

use crate::{converse, syscalls_per_message};

#[test]
fn every_way_to_wait_echoes() {
    for wait in ["block", "spin", "adaptive", "sqpoll"] {
        let server = Server::start(&["--wait", wait, "--workers", "1"]);
        let mut client = Client::connect(server.address());
        converse(&mut client, 200);
        for length in [0, 125, 126, 65_535, 65_536, 300_000] {
            client.echo(BINARY, &pattern(length));
        }
        let mut other = Client::connect(server.address());
        other.echo(TEXT, &pattern(40_000));
        other.close();
        client.close();
        server.wait_for_count("connections_open", 0);
        let ended = server.terminate();
        assert_eq!(ended.status.code(), Some(0), "{wait} {ended:?}");
        assert_eq!(ended.count("messages"), 207, "{wait}");
        match wait {
            "block" => assert_eq!(ended.count("spins"), 0),
            "spin" => assert_ne!(ended.count("spins"), 0),
            _ => {}
        }
    }
}

#[test]
fn a_message_costs_one_system_call() {
    let server = Server::start(&["--engine", "uring", "--workers", "1", "--wait", "block"]);
    let mut client = Client::connect(server.address());
    converse(&mut client, 10_000);
    client.close();
    let ended = server.terminate();
    assert_eq!(ended.count("messages"), 10_000);
    let ratio = syscalls_per_message(&ended);
    say(&format!("system calls per message, one connection: {ratio:.4}"));
    assert!(ratio <= 1.01, "{}", ended.statistics);
}

#[test]
fn messages_that_wait_together_share_their_system_calls() {
    let server = Server::start(&["--engine", "uring", "--workers", "1", "--wait", "block"]);
    let mut clients: Vec<Client> = (0..64).map(|_| Client::connect(server.address())).collect();
    let sent = frame(TEXT, b"0123456789abcdef");
    for _ in 0..300 {
        // The server is held while the messages are written, so that the count depends neither on
        // the client's speed nor on the CPUs.
        server.signal(Signal::STOP);
        let stopped = waitpid(Some(server.pid()), WaitOptions::UNTRACED).expect("a child");
        assert!(stopped.is_some_and(|(_, status)| status.stopped()));
        for client in &mut clients {
            client.write(&sent);
        }
        server.signal(Signal::CONT);
        for client in &mut clients {
            client.expect(TEXT, b"0123456789abcdef");
        }
    }
    for client in clients {
        client.close();
    }
    let ended = server.terminate();
    assert_eq!(ended.count("messages"), 64 * 300);
    let ratio = syscalls_per_message(&ended);
    say(&format!("system calls per message, 64 connections in lock step: {ratio:.4}"));
    assert!(ratio <= 0.1, "{}", ended.statistics);
}

#[test]
fn plain_bytes_come_back_and_are_counted() {
    let server = Server::start(&["--protocol", "tcp", "--workers", "1", "--connections-max", "1"]);
    assert!(server.greeting().contains(" tcp://127.0.0.1:"), "{}", server.greeting());
    let mut client = Client::open(server.address());
    for number in 0..100 {
        let bytes = pattern(1 + number * 3);
        client.write(&bytes);
        assert_eq!(client.read(bytes.len()), bytes);
    }
    // One too many is let go, when it says something.
    let mut other = Client::open(server.address());
    other.write(b"hello");
    other.expect_end();
    server.signal(Signal::TERM);
    client.expect_end();
    drop((client, other));
    let ended = server.wait();
    assert_eq!(ended.status.code(), Some(0));
    let bytes: u64 = (0..100).map(|number| 1 + number * 3).sum();
    assert_eq!((ended.count("messages"), ended.count("connections_rejected")), (100, 1));
    assert_eq!((ended.count("bytes_in"), ended.count("bytes_out")), (bytes + 5, bytes));
}

/// epoll alone takes a short receive for an empty socket.
#[test]
fn epoll_reads_what_follows_urgent_data() {
    let server = Server::start(&["--protocol", "tcp", "--engine", "epoll"]);
    let mut client = Client::open(server.address());
    for _ in 0..10 {
        server.signal(Signal::STOP);
        client.write(b"before");
        rustix::net::send(client.stream(), b"!", SendFlags::OOB).expect("connected");
        client.write(b"behind");
        server.signal(Signal::CONT);
        // The urgent byte is no part of the stream (tcp(7)).
        assert_eq!(client.read(12), b"beforebehind");
    }
}
