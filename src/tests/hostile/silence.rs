//! Peers that fall silent: whose machine is gone, and whose process is stopped.

use std::io::Write as _;
use std::net::{Shutdown, SocketAddr};
use std::process::Command;
use std::thread;

use rustix::process::{Pid, Signal, kill_process};
use testkit::{BINARY, CLOSE, Client, TEXT, deafen, end, frame, pattern, say, spawn, wait_until};

use crate::Place;

/// A peer that is half open: it neither acknowledges nor resets. TCP alone would find out after many minutes.
#[test]
fn peers_that_are_gone_without_a_word_cost_little_and_do_not_hold_up_the_end() {
    const PEERS: usize = 200;
    const BYTES_MAX: u64 = 64 << 10;
    let mut place = Place::with(&[]);
    let large = pattern(100_000);
    let mut peers: Vec<Client> =
        (0..PEERS).map(|_| Client::connect(place.server.address())).collect();
    let mut messages = PEERS as u64;
    for (number, peer) in peers.iter_mut().enumerate() {
        peer.echo(TEXT, b"hello");
        match number % 4 {
            // With nothing under way, or in the middle of something.
            0 => {}
            1 => peer.write(&frame(TEXT, b"the rest never comes")[..15]),
            // With an echo that nobody will acknowledge.
            2 => {
                deafen(peer.stream());
                peer.send_frame(TEXT, b"unheard");
                messages += 1;
            }
            _ => {
                deafen(peer.stream());
                peer.stream().set_nonblocking(true).expect("an option");
                // As much of it as leaves without an acknowledgement.
                let _ = peer.stream().write(&frame(BINARY, &large));
            }
        }
        deafen(peer.stream());
    }
    wait_until("what they have sent is answered", || {
        place.serve_neighbour();
        place.server.count("messages") >= place.neighbour_messages + messages
    });
    assert_eq!(place.server.count("connections_open"), 1 + PEERS as u64);
    let each = place.grown_bytes() / PEERS as u64;
    say(&format!("a peer that is gone: {each} bytes of memory"));
    assert!(each <= BYTES_MAX, "{each} bytes of memory for each peer");
    // The peers are still there, and silent.
    assert_eq!(place.end().count("protocol_violations"), 0);
    drop(peers);
}

/// The address of the server, for the process that is stopped.
const ADDRESS: &str = "RINGECHO_TEST_STOPPED_CLIENT";
const PAYLOAD_BYTES: usize = 64 << 10;
const REPORT: &str = "echoes: ";

/// Sends without pause until the server goes away, and checks every echo.
fn be_the_client(address: SocketAddr) {
    let mut client = Client::connect(address);
    client.limit_receiving();
    let payload = pattern(PAYLOAD_BYTES);
    let mut stream = client.stream().try_clone().expect("a descriptor");
    let message = frame(BINARY, &payload);
    let writer = thread::spawn(move || while stream.write_all(&message).is_ok() {});
    let mut echoes = 0;
    loop {
        let received = client.read_frame();
        if received.first == CLOSE {
            assert_eq!(received.payload, 1001_u16.to_be_bytes());
            break;
        }
        assert!(received.payload == payload, "echo {echoes}");
        echoes += 1;
    }
    client.stream().shutdown(Shutdown::Both).expect("connected");
    writer.join().expect("a thread");
    println!("{REPORT}{echoes}");
}

#[test]
fn a_client_that_is_stopped_costs_bounded_memory_and_goes_on_where_it_was() {
    const TEST: &str =
        "silence::a_client_that_is_stopped_costs_bounded_memory_and_goes_on_where_it_was";
    const GROWTH_MAX: u64 = 8 << 20;
    if let Ok(address) = std::env::var(ADDRESS) {
        return be_the_client(address.parse().expect("an address"));
    }
    let mut place = Place::with(&["--spill-pool", "1MiB"]);
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(["--exact", TEST, "--nocapture"]);
    let client = spawn(command.env(ADDRESS, place.server.address().to_string()));
    let pid = Pid::from_child(&client);
    for _ in 0..5 {
        let before = place.server.count("bytes_in");
        wait_until("it talks", || {
            place.server.count("bytes_in") > before + 100 * PAYLOAD_BYTES as u64
        });
        kill_process(pid, Signal::STOP).expect("a child");
        let messages = place.server.count("messages");
        place.wait_until_stuck();
        let grown = place.grown_bytes();
        say(&format!("a client that is stopped: {grown} bytes of memory"));
        assert!(grown <= GROWTH_MAX, "{grown} bytes of memory");
        assert!(place.server.count("messages") > messages);
        kill_process(pid, Signal::CONT).expect("a child");
    }
    let before = place.server.count("bytes_in");
    wait_until("it talks again", || {
        place.server.count("bytes_in") > before + 100 * PAYLOAD_BYTES as u64
    });
    let neighbour_messages = place.neighbour_messages;
    let ended = place.end();
    let client = end(client);
    assert!(client.status.success(), "{client:?}");
    let echoes = client.stdout.lines().find_map(|line| line.split_once(REPORT));
    let echoes: u64 = echoes.expect("a report").1.parse().expect("a number");
    // What was received whole before the end is answered.
    assert_eq!(ended.count("messages") - neighbour_messages, echoes, "{}", ended.statistics);
}
