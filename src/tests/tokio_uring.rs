//! What is particular to the engine `tokio-uring`: registered buffers that idle and stuck connections
//! hold, and operations that end by shutting a socket down.

use std::fs;
use std::io::Write;
use std::net::Shutdown;
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal};
use testkit::{BINARY, Client, REQUEST, Server, TEXT, frame, pattern, reply, wait_until};

/// Bytes of a message that is written again and again and not read.
const MESSAGE: usize = 60_000;

/// Starts the engine with four buffers, on one worker so that all connections share them.
fn start() -> Server {
    Server::start(&[
        "--engine",
        "tokio-uring",
        "--wait",
        "block",
        "--workers",
        "1",
        "--buffers",
        "4",
        "--buffer-size",
        "4KiB",
    ])
}

/// How many descriptors a process has open.
fn descriptors(pid: Pid) -> usize {
    fs::read_dir(format!("/proc/{}/fd", pid.as_raw_pid())).expect("a process").count()
}

/// A client that reads nothing and has written until its socket took no more. Returns also what it
/// could not write any more of its last message, and how many messages there are.
fn stuck_client(server: &Server) -> (Client, Vec<u8>, usize) {
    let client = Client::connect(server.address());
    client.limit_receiving();
    client.stream().set_nonblocking(true).expect("an option");
    let message = frame(BINARY, &pattern(MESSAGE));
    let (mut written, mut refusals) = (0, 0);
    // What the sockets and the server keep takes a while to fill.
    while refusals < 25 {
        let rest = &message[written % message.len()..];
        match client.stream().write(rest) {
            Ok(bytes) => (written, refusals) = (written + bytes, 0),
            Err(_) => {
                refusals += 1;
                thread::sleep(Duration::from_millis(2));
            }
        }
    }
    client.stream().set_nonblocking(false).expect("an option");
    let messages = written.div_ceil(message.len());
    (client, message[written - (messages - 1) * message.len()..].to_vec(), messages)
}

#[test]
fn more_idle_connections_than_buffers_all_echo() {
    let server = start();
    let mut clients: Vec<Client> = (0..100).map(|_| Client::connect(server.address())).collect();
    for round in 0..3 {
        for client in &mut clients {
            client.echo(TEXT, b"hello");
            client.echo(BINARY, &pattern(round * 5000));
        }
    }
    for client in clients {
        client.close();
    }
    let ended = server.terminate();
    assert!(ended.status.success(), "{ended:?}");
    assert!(ended.count("buffers_exhausted") > 0);
    assert_eq!(ended.count("messages"), 600);
}

#[test]
fn peers_that_never_read_starve_nobody_and_get_all_when_they_do() {
    let server = start();
    let mut stuck: Vec<_> = (0..12).map(|_| stuck_client(&server)).collect();
    let mut others: Vec<Client> = (0..20).map(|_| Client::connect(server.address())).collect();
    for _ in 0..5 {
        for client in &mut others {
            client.echo(TEXT, b"not starved");
            client.echo(BINARY, &pattern(20_000));
        }
    }
    for (mut client, rest, messages) in stuck.drain(..4) {
        let mut stream = client.stream().try_clone().expect("a descriptor");
        let writer = thread::spawn(move || stream.write_all(&rest).expect("the server reads"));
        for _ in 0..messages {
            client.expect(BINARY, &pattern(MESSAGE));
        }
        writer.join().expect("a writer");
        client.close();
    }
    drop(stuck);
    for client in others {
        client.close();
    }
    server.wait_for_count("connections_open", 0);
    assert!(server.terminate().status.success());
}

#[test]
fn a_stop_ends_reads_and_writes_that_are_pending() {
    let server = start();
    let stuck: Vec<_> = (0..6).map(|_| stuck_client(&server)).collect();
    let mut idle: Vec<Client> = (0..10).map(|_| Client::connect(server.address())).collect();
    let silent: Vec<Client> = (0..10).map(|_| Client::connect(server.address())).collect();
    let unborn: Vec<Client> = (0..10).map(|_| Client::open(server.address())).collect();
    server.signal(Signal::TERM);
    for client in &mut idle {
        client.expect_close(1001);
    }
    let ended = server.wait();
    assert!(ended.status.success(), "{ended:?}");
    assert_eq!(ended.count("connections_open"), 0);
    drop((stuck, silent, unborn));
}

#[test]
fn a_half_closed_connection_gets_its_echo_and_an_end() {
    let server = start();
    let mut client = Client::connect(server.address());
    client.send_frame(BINARY, &pattern(30_000));
    client.stream().shutdown(Shutdown::Write).expect("a connection");
    let expected = reply(BINARY, &pattern(30_000));
    assert!(client.read_to_end().expect("no reset") == expected);
    assert!(server.terminate().status.success());
}

#[test]
fn two_thousand_connections_come_and_go_and_leave_nothing_behind() {
    let server = start();
    let before = descriptors(server.pid());
    for number in 0..2000 {
        let mut client = Client::open(server.address());
        match number % 5 {
            // Gone before it has said anything, and within its request.
            0 => continue,
            1 => client.write(&REQUEST.as_bytes()[..50]),
            2 => {
                client.handshake();
                client.send_frame(BINARY, &pattern(9000));
            }
            _ => {
                client.handshake();
                client.echo(TEXT, b"hello");
                client.close();
            }
        }
    }
    server.wait_for_count("connections_accepted", 2000);
    server.wait_for_count("connections_open", 0);
    wait_until("the descriptors are closed", || descriptors(server.pid()) == before);
    assert!(server.terminate().status.success());
}
