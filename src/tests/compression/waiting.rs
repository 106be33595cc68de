//! Replies far longer than their requests, which wait for a peer that does not read.

use std::io::Write as _;
use std::net::Shutdown;
use std::thread;
use std::time::Duration;

use flate2::{Compress, FlushCompress};
use ringecho::protocol::Policy;
use rustix::process::Signal;

use crate::agreement::{Agreed, Offer, connect};
use crate::receiver::Receiver;
use crate::sender::{Sender, deflate};
use testkit::RSV1;
use testkit::inflate::TAIL;
use testkit::{BINARY, CLOSE, Client, Random, Server, TEXT, frame, say, wait_until};

/// Messages that come back seventy times as long: each repeats what stands further back than the
/// server may refer to.
struct Amplified {
    requests: Vec<u8>,
    messages: Vec<Vec<u8>>,
    receiver: Receiver,
}

impl Amplified {
    const OFFER: Offer = Offer { server_max_window_bits: Some(9), ..Offer::NONE };

    fn new(agreed: Agreed, messages: u32) -> Amplified {
        let noise = Random::new(1).bytes(16_000);
        let mut zlib = Compress::new(flate2::Compression::new(6), false);
        let messages: Vec<Vec<u8>> =
            (0..messages).map(|number| [&number.to_be_bytes(), &noise[..]].concat()).collect();
        let mut requests = Vec::new();
        for message in &messages {
            let mut payload = deflate(&mut zlib, message, FlushCompress::Sync);
            payload.truncate(payload.len() - TAIL.len());
            requests.extend(frame(BINARY | RSV1, &payload));
        }
        assert!(requests.len() < messages.len() * 300 + 20_000, "{} bytes", requests.len());
        Amplified { requests, messages, receiver: Receiver::new(agreed) }
    }

    /// Reads the echoes that come before a close frame or, with `count`, that many of them.
    fn read(mut self, client: &mut Client, count: usize) -> usize {
        for (number, message) in self.messages.iter().enumerate().take(count) {
            let frame = client.read_frame();
            if frame.first == CLOSE {
                assert_eq!(frame.payload, 1001u16.to_be_bytes());
                return number;
            }
            assert_eq!(frame.first, BINARY | RSV1, "message {number}");
            assert!(frame.payload.len() > 15_000, "message {number} is no longer than it came");
            let echoed = self.receiver.inflate(&frame.payload).expect("it can be inflated");
            assert!(echoed == *message, "message {number} is not what was sent");
        }
        count
    }
}

/// Waits until the server echoes no more, and returns the number of messages that it has echoed.
fn stalled(server: &Server) -> u64 {
    let mut messages = 0;
    wait_until("the server stops echoing", || {
        let last = std::mem::replace(&mut messages, server.count("messages"));
        thread::sleep(Duration::from_millis(150));
        last == messages && last > 0 && last == server.count("messages")
    });
    messages
}

#[test]
fn replies_far_longer_than_their_requests_wait_until_they_are_read() {
    const MESSAGES: u32 = 1500;
    const GROWTH_MAX: u64 = 10 << 20;
    let server = Server::start(&["--compression", "deflate", "--workers", "1"]);
    let (mut other, agreed) = connect(&server, Offer::NONE, Policy::Deflate);
    let mut sender = Sender::new(agreed.expect("an agreement"), &mut Random::new(1));
    sender.is_by_hand = false;
    for _ in 0..600 {
        other.echo(BINARY, &[7; 16_000]);
    }
    other.send_frame(BINARY | RSV1, &sender.compress(b"warm", &mut Random::new(1)));
    other.read_frame();
    let before = server.resident_bytes();
    let (mut client, agreed) = connect(&server, Amplified::OFFER, Policy::Deflate);
    client.limit_receiving();
    let amplified = Amplified::new(agreed.expect("an agreement"), MESSAGES);
    let mut stream = client.stream().try_clone().expect("a descriptor");
    let requests = amplified.requests.clone();
    let writer = thread::spawn(move || {
        stream.write_all(&requests).expect("the server takes bytes");
        stream.shutdown(Shutdown::Write).expect("a connection");
    });
    let echoed = stalled(&server);
    let grown = server.resident_bytes().saturating_sub(before);
    say(&format!("memory of replies that wait: {grown} bytes after {echoed} messages"));
    assert!(echoed < u64::from(MESSAGES) * 3 / 4, "{echoed} messages are echoed to nobody");
    assert!(grown < GROWTH_MAX, "{grown} bytes of memory for one peer");
    other.echo(TEXT, b"served");
    let read = amplified.read(&mut client, MESSAGES as usize);
    assert_eq!(read, MESSAGES as usize);
    client.expect_end();
    writer.join().expect("all is written");
    other.close();
    let ended = server.terminate();
    assert_eq!(ended.count("messages_recompressed"), u64::from(MESSAGES) + 1);
    assert_eq!(ended.count("protocol_violations"), 0);
}

#[test]
fn after_a_half_close_replies_longer_than_their_requests_arrive() {
    let server = Server::start(&["--compression", "deflate", "--workers", "1"]);
    for messages in [1, 2, 5, 40, 300] {
        let (mut client, agreed) = connect(&server, Amplified::OFFER, Policy::Deflate);
        client.limit_receiving();
        let amplified = Amplified::new(agreed.expect("an agreement"), messages);
        client.write(&amplified.requests);
        client.stream().shutdown(Shutdown::Write).expect("a connection");
        if messages > 2 {
            thread::sleep(Duration::from_millis(50));
        }
        assert_eq!(amplified.read(&mut client, messages as usize), messages as usize);
        client.expect_end();
    }
    server.wait_for_count("connections_open", 0);
    assert_eq!(server.terminate().count("messages"), 1 + 2 + 5 + 40 + 300);
}

#[test]
fn a_server_that_stops_sends_what_it_owes_and_then_its_close_frame() {
    const MESSAGES: u32 = 1000;
    let server = Server::start(&["--compression", "deflate", "--workers", "1"]);
    let (mut client, agreed) = connect(&server, Amplified::OFFER, Policy::Deflate);
    client.limit_receiving();
    let amplified = Amplified::new(agreed.expect("an agreement"), MESSAGES);
    let mut stream = client.stream().try_clone().expect("a descriptor");
    let requests = amplified.requests.clone();
    let writer =
        thread::spawn(move || stream.write_all(&requests).expect("the server takes bytes"));
    let echoed = stalled(&server);
    assert!(echoed < u64::from(MESSAGES), "{echoed} messages are echoed to nobody");
    server.signal(Signal::TERM);
    let read = amplified.read(&mut client, MESSAGES as usize);
    writer.join().expect("all is written");
    client.send_frame(CLOSE, &1001u16.to_be_bytes());
    client.expect_end();
    let ended = server.wait();
    assert!(ended.status.success(), "{ended:?}");
    assert_eq!(
        read as u64,
        ended.count("messages"),
        "all that was echoed comes, and then the close frame"
    );
    assert!(read as u64 >= echoed, "{read} of the {echoed} messages that were echoed");
    assert_eq!(ended.count("protocol_violations"), 0);
}
