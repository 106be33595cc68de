//! Peers that reset their connections, in every state that a connection can be in.

use std::net::Shutdown;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{SendFlags, send, sockopt};
use testkit::{
    BINARY, CLOSE, Client, FIN, PING, REQUEST, Server, TEXT, frame, pattern, reply, say,
};

use crate::Place;

/// How many peers are in a state at once.
const PEERS: usize = 20;

/// Where a connection is when it is reset, and how a peer brings it there.
struct State {
    name: &'static str,
    /// What is sent, after the opening handshake unless it begins with one.
    sent: Vec<u8>,
    has_handshake: bool,
    /// What the server counts of it.
    frames: u64,
    violations: u64,
    rejected: u64,
    /// How many bytes of the answer are read.
    read_bytes: usize,
}

impl State {
    fn after_handshake(name: &'static str, sent: Vec<u8>, frames: u64) -> State {
        let (violations, rejected) = (0, 0);
        State { name, sent, has_handshake: true, frames, violations, rejected, read_bytes: 0 }
    }

    fn before_handshake(name: &'static str, sent: &[u8]) -> State {
        let has_handshake = false;
        State { has_handshake, ..State::after_handshake(name, sent.to_vec(), 0) }
    }
}

fn states() -> Vec<State> {
    let (close, text) = (frame(CLOSE, &1000_u16.to_be_bytes()), frame(TEXT, b"hello"));
    let large = frame(BINARY, &pattern(200_000));
    let held = frame(TEXT, &pattern(200_000));
    let answered = |state: State, read_bytes| State { read_bytes, ..state };
    vec![
        State::before_handshake("connected", b""),
        State::before_handshake("within the request", &REQUEST.as_bytes()[..50]),
        State::before_handshake("the response is unread", REQUEST.as_bytes()),
        State {
            rejected: 1,
            ..State::before_handshake("refused", b"GET /nothing HTTP/1.1\r\nHost: nobody\r\n\r\n")
        },
        State::before_handshake("the page is unread", b"GET / HTTP/1.1\r\nHost: nobody\r\n\r\n"),
        State::after_handshake("open", Vec::new(), 0),
        State::after_handshake("within a header", text[..4].to_vec(), 0),
        State::after_handshake(
            "within a payload that is echoed as it comes",
            large[..100_000].to_vec(),
            0,
        ),
        State::after_handshake("within a payload that is held", held[..100_000].to_vec(), 0),
        State::after_handshake("between fragments", frame(TEXT & !FIN, b"to be"), 1),
        answered(
            State::after_handshake("between messages", text.clone(), 1),
            reply(TEXT, b"hello").len(),
        ),
        State::after_handshake("an echo is unread", text.clone(), 1),
        State::after_handshake("a pong is unread", frame(PING, b"hello"), 1),
        State::after_handshake("a long echo is unread", large, 1),
        State::after_handshake("the close frame is unread", close.clone(), 1),
        answered(
            State::after_handshake("after the close frames", close, 1),
            reply(CLOSE, &1000_u16.to_be_bytes()).len(),
        ),
        State {
            violations: 1,
            ..State::after_handshake("after a broken rule", reply(TEXT, b"not masked"), 0)
        },
    ]
}

/// Closes the connections with a reset instead of FIN.
fn reset(peers: Vec<Client>) {
    for peer in peers {
        sockopt::set_socket_linger(peer.stream(), Some(Duration::ZERO)).expect("an option");
    }
}

/// The server has received everything before the reset.
#[test]
fn a_reset_in_any_state_leaves_nothing_behind_and_is_counted_exactly() {
    let mut place = Place::with(&[]);
    let (mut frames, mut violations, mut rejected) = (place.neighbour_messages, 0, 0);
    for state in states() {
        let before = place.server.count("bytes_in");
        let mut peers: Vec<Client> = (0..PEERS)
            .map(|_| {
                let mut peer = Client::open(place.server.address());
                if state.has_handshake {
                    peer.handshake();
                }
                peer.write(&state.sent);
                peer
            })
            .collect();
        let handshake = if state.has_handshake { REQUEST.len() } else { 0 };
        let expected = before + (PEERS * (handshake + state.sent.len())) as u64;
        place.server.wait_for_count("bytes_in", expected);
        place.server.wait_for_count("connections_open", 1 + PEERS as u64);
        peers.iter_mut().for_each(|peer| drop(peer.read(state.read_bytes)));
        reset(peers);
        place.wait_until_alone();
        place.serve_neighbour();
        frames += 100 + PEERS as u64 * state.frames;
        violations += PEERS as u64 * state.violations;
        rejected += PEERS as u64 * state.rejected;
        for (name, expected) in [
            ("frames_in", frames),
            ("protocol_violations", violations),
            ("connections_rejected", rejected),
        ] {
            assert_eq!(place.server.count(name), expected, "{name}, {}", state.name);
        }
    }
    // All buffers have come back: what is echoed now need not wait for any.
    let exhausted = place.server.count("buffers_exhausted");
    (0..6).for_each(|_| place.serve_neighbour());
    assert_eq!(place.end().count("buffers_exhausted"), exhausted);
}

/// Sends messages until the sockets are full; returns whether they took anything.
fn fill(peer: &Client, message: &[u8], sent: &mut usize) -> bool {
    let before = *sent;
    loop {
        let rest = &message[*sent % message.len()..];
        match send(peer.stream(), rest, SendFlags::DONTWAIT) {
            Ok(count) => *sent += count,
            Err(Errno::AGAIN) => return *sent > before,
            Err(error) => panic!("the server has given the connection up: {error}"),
        }
    }
}

#[test]
fn a_reset_while_replies_wait_frees_their_memory() {
    // What waits for each peer, at least, and what may be left behind of all.
    const HELD_MIN: u64 = 100_000;
    const LEFT_MAX: u64 = 1 << 20;
    let mut place = Place::with(&["--spill-pool", "0"]);
    place.limit_sockets();
    for (first, is_ended) in [(BINARY, false), (TEXT, true), (BINARY, true), (TEXT, false)] {
        let message = frame(first, &pattern(300_000));
        let mut peers: Vec<(Client, usize)> = (0..PEERS)
            .map(|_| {
                let peer = Client::connect(place.server.address());
                peer.limit_receiving();
                (peer, 0)
            })
            .collect();
        place.wait_until_clogged(|| {
            peers.iter_mut().fold(false, |moved, (peer, sent)| fill(peer, &message, sent) | moved)
        });
        if is_ended {
            // Then the server has only to send what waits.
            for (peer, _) in &peers {
                peer.stream().shutdown(Shutdown::Write).expect("connected");
            }
            place.serve_neighbour();
        }
        let held = place.grown_bytes();
        assert!(held >= PEERS as u64 * HELD_MIN, "only {held} bytes wait");
        reset(peers.into_iter().map(|(peer, _)| peer).collect());
        place.wait_until_alone();
        let left = place.grown_bytes();
        say(&format!("{first:#x}, {is_ended}: {held} bytes of memory, {left} after the reset"));
        assert!(left <= LEFT_MAX, "{left} bytes of memory are left behind");
    }
    assert_eq!(place.end().count("protocol_violations"), 0);
}

/// A server that is stopping waits for its peers to answer its close frame; those that reset have answered.
#[test]
fn a_reset_is_an_answer_to_a_server_that_stops() {
    let server = Server::start(&["--workers", "1"]);
    let mut peers: Vec<Client> = (0..PEERS).map(|_| Client::connect(server.address())).collect();
    for peer in &mut peers {
        peer.echo(TEXT, b"hello");
    }
    server.signal(rustix::process::Signal::TERM);
    for (number, peer) in peers.iter_mut().enumerate() {
        // Some have read it, the others may not even have received it.
        if number % 2 == 0 {
            peer.expect(CLOSE, &1001_u16.to_be_bytes());
        }
    }
    reset(peers);
    let ended = server.wait();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert_eq!(ended.count("messages"), PEERS as u64);
    assert_eq!(ended.count("connections_open"), 0);
    assert_eq!(ended.count("connections_accepted"), PEERS as u64);
}
