//! Peers that dawdle: a byte at a time, or frames without content.

use std::io::Write as _;
use std::thread;

use testkit::{BINARY, CLOSE, Client, FIN, REQUEST, RESPONSE, TEXT, frame, pattern, reply, say};

use crate::Place;

#[test]
fn hundreds_of_peers_that_send_a_byte_at_a_time_are_all_answered() {
    const PEERS: usize = 300;
    // What a peer may cost that has sent half a request or half a frame.
    const BYTES_MAX: u64 = 8192;
    let mut place = Place::with(&[]);
    let script = [
        REQUEST.as_bytes(),
        &frame(TEXT, "grüße".as_bytes()),
        &frame(TEXT & !FIN, b"two "),
        &frame(FIN, b"fragments"),
        &frame(CLOSE, &1000_u16.to_be_bytes()),
    ]
    .concat();
    let mut peers: Vec<Client> = (0..PEERS).map(|_| Client::open(place.server.address())).collect();
    for (number, byte) in script.iter().enumerate() {
        peers.iter_mut().for_each(|peer| peer.write(&[*byte]));
        if number % 20 == 0 {
            place.serve_neighbour();
        }
        if number == REQUEST.len() / 2 || number == REQUEST.len() + 9 {
            let each = place.grown_bytes() / PEERS as u64;
            say(&format!("a peer that has sent {number} bytes one by one: {each} bytes of memory"));
            assert!(each <= BYTES_MAX, "{each} bytes for each peer after {number}");
        }
    }
    for mut peer in peers {
        assert_eq!(peer.read(RESPONSE.len()), RESPONSE.as_bytes());
        peer.expect(TEXT, "grüße".as_bytes());
        peer.expect(TEXT & !FIN, b"two ");
        peer.expect(FIN, b"fragments");
        peer.expect_close(1000);
    }
    place.wait_until_alone();
    assert_eq!(place.end().count("protocol_violations"), 0);
}

#[test]
fn frames_of_16_mib_in_segments_of_one_byte_cost_no_more_than_others() {
    const PAYLOAD_BYTES: usize = 16 << 20;
    // Of each frame's beginning and of its end; what is between them comes in one piece.
    const SINGLE_BYTES: usize = 100_000;
    // The frame, which is held if it is text, its echo, and what the pools keep of earlier blocks.
    const GROWTH_MAX: u64 = 3 * PAYLOAD_BYTES as u64;
    let mut place = Place::with(&[]);
    let payload = pattern(PAYLOAD_BYTES);
    for first in [BINARY, TEXT] {
        let mut client = Client::connect(place.server.address());
        let mut stream = client.stream().try_clone().expect("a descriptor");
        let sent = frame(first, &payload);
        let sending = thread::spawn(move || {
            let (begin, rest) = sent.split_at(SINGLE_BYTES);
            let (middle, end) = rest.split_at(rest.len() - SINGLE_BYTES);
            for part in begin.chunks(1).chain([middle]).chain(end.chunks(1)) {
                stream.write_all(part).expect("the server reads");
            }
        });
        let mut grown = 0;
        while !sending.is_finished() {
            place.serve_neighbour();
            grown = grown.max(place.grown_bytes());
        }
        client.expect(first, &payload);
        sending.join().expect("all is sent");
        client.close();
        say(&format!("16 MiB in segments of one byte ({first:#x}): {grown} bytes of memory"));
        assert!(grown <= GROWTH_MAX, "{grown} bytes of memory");
    }
    place.wait_until_alone();
    assert_eq!(place.end().count("protocol_violations"), 0);
}

#[test]
fn a_million_empty_frames_are_a_million_echoes() {
    const MESSAGES: u64 = 1_000_000;
    // A message of fragments, all of them empty.
    const FRAGMENTS: u64 = 60_000;
    const GROWTH_MAX: u64 = 8 << 20;
    let mut place = Place::with(&[]);
    let mut client = Client::connect(place.server.address());
    let mut stream = client.stream().try_clone().expect("a descriptor");
    let sending = thread::spawn(move || {
        let message = frame(BINARY, b"").repeat(10_000);
        for _ in 0..MESSAGES / 10_000 {
            stream.write_all(&message).expect("the server reads");
        }
        stream.write_all(&frame(TEXT & !FIN, b"")).expect("the server reads");
        stream.write_all(&frame(0, b"").repeat(FRAGMENTS as usize)).expect("the server reads");
        stream.write_all(&frame(FIN, b"")).expect("the server reads");
    });
    let echoes = reply(BINARY, b"").repeat(10_000);
    for number in 0..MESSAGES / 10_000 {
        assert!(client.read(echoes.len()) == echoes, "the echoes from {number}0000 on");
        if number % 10 == 0 {
            place.serve_neighbour();
        }
    }
    client.expect(TEXT & !FIN, b"");
    let fragments = reply(0, b"").repeat(FRAGMENTS as usize);
    assert!(client.read(fragments.len()) == fragments, "the echoes of fragments");
    client.expect(FIN, b"");
    sending.join().expect("all is sent");
    client.close();
    place.wait_until_alone();
    let grown = place.grown_bytes();
    say(&format!("a million empty frames: {grown} bytes of memory"));
    assert!(grown <= GROWTH_MAX, "{grown} bytes of memory");
    let neighbour_messages = place.neighbour_messages;
    let ended = place.end();
    assert_eq!(ended.count("messages") - neighbour_messages, MESSAGES + 1);
    // The message of fragments has two more, and each of the two clients a close frame.
    let frames = MESSAGES + FRAGMENTS + 2 + 2;
    assert_eq!(ended.count("frames_in") - neighbour_messages, frames);
}
