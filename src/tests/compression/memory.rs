//! The memory that compression takes: of a bomb, and of a connection from its first message to its end.

use flate2::{Compress, FlushCompress};
use ringecho::buffer::{Cursors, Region};
use ringecho::metrics::Counters;
use ringecho::protocol::violation::Violation;
use ringecho::protocol::{
    Admission, Connection, Context, Decision, Next, Policy, Protocol, Settings,
};

use crate::POLICIES;
use crate::agreement::{request, settings};
use crate::heap;
use crate::peer::Peer;
use crate::sender::deflate;
use testkit::RSV1;
use testkit::frame::parse;
use testkit::{BINARY, FIN, PING, TEXT, frame, say};

#[test]
fn a_bomb_goes_off_at_the_limit_and_costs_little() {
    const LIMIT: u64 = 64 << 20;
    let chunk = {
        let mut zlib = Compress::new(flate2::Compression::new(9), false);
        deflate(&mut zlib, &vec![0; 1 << 20], FlushCompress::Sync)
    };
    let close_bytes = 2 + 2 + Violation::MessageTooBig.reason().len();
    // The beginning of ten gigabytes.
    assert!(chunk.len() < 1100, "{} bytes", chunk.len());
    let frames = [frame(BINARY & !FIN | RSV1, &chunk), frame(0, &chunk)];
    let one_frame = [frame(BINARY | RSV1, &vec![0; 10_000 * chunk.len()])[..14].to_vec(), {
        // The key stays in step with the pieces.
        let mut piece = frame(BINARY, &chunk.repeat(4));
        piece.drain(..8);
        piece
    }];
    let (each, together) = ([&frames[0], &frames[1]], [&one_frame[0], &one_frame[1]]);
    for (policy, [begin, piece], megabytes, bytes_max) in [
        (Policy::Mirror, each, 1, 128 << 10),
        (Policy::Deflate, each, 1, 640 << 10),
        // What is compressed is held, the frame being unfinished.
        (Policy::Mirror, together, 4, 384 << 10),
        (Policy::Deflate, together, 4, 768 << 10),
    ] {
        let counters = Counters::default();
        let settings =
            Settings { protocol: Protocol::WebSocket, message_max: LIMIT, policy, level: 6 };
        let before = heap::held();
        let context = Context::new(settings, &counters);
        let mut peer = Peer::new(16384, &context);
        peer.handshake(&request("permessage-deflate"));
        heap::restart_peak();
        peer.feed(begin, &[], None);
        let mut inflated = if begin.len() > 14 { 1 } else { 0 };
        while peer.decision != Decision::Close {
            assert!(inflated <= LIMIT >> 20, "{inflated} MiB are taken");
            peer.feed(piece, &[], None);
            inflated += megabytes;
            peer.send(usize::MAX);
            let replies = std::mem::take(&mut peer.sent);
            if peer.decision == Decision::Close {
                let close = replies.len() - close_bytes;
                assert_eq!(parse(&replies[close..])[0].close_code(), Some(1009));
            }
        }
        assert!(inflated > LIMIT >> 20, "closed after {inflated} MiB");
        let peak = heap::peak() - before;
        say(&format!("memory of a bomb: {peak} bytes ({policy:?}, {megabytes} MiB at a time)"));
        assert!(peak < bytes_max, "{peak} bytes of memory for a bomb ({policy:?})");
        drop(peer);
        drop(context);
        assert_eq!(heap::held(), before);
    }
}

#[test]
fn a_connection_takes_memory_with_its_first_compressed_message_and_gives_it_back() {
    const BYTES_MAX: isize = 48 << 10;
    let plain = [frame(TEXT, b"plain"), frame(BINARY, &[7; 300]), frame(PING, b"")].concat();
    let compressed = [
        frame(TEXT | RSV1, b"\xf2\x48\xcd\xc9\xc9\x07\x00"),
        frame(TEXT & !FIN | RSV1, b"\xf2\x00\x11"),
        frame(FIN, b"\x00\x00"),
    ]
    .concat();
    for policy in POLICIES {
        let counters = Counters::default();
        let context = Context::new(settings(policy), &counters);
        let mut pinned = vec![0; 4096];
        // Long enough that the response is not longer and fits in its place.
        let padding = format!("X-Padding: {}\r\nHost", "-".repeat(200));
        let request = request("permessage-deflate").replacen("Host", &padding, 1);
        let mut tell = |connection: &mut Connection, bytes: &[u8]| {
            let mut cursors = Cursors::received(bytes.len());
            pinned[..bytes.len()].copy_from_slice(bytes);
            let next = connection.advance(&mut Region::new(&mut pinned, &mut cursors), &context);
            (next, cursors.reply().len())
        };
        // What a worker takes once.
        let mut first = Connection::new(Admission::Open);
        let _ = tell(&mut first, request.as_bytes());
        let _ = tell(&mut first, &compressed);
        drop(first);

        let before = heap::held();
        let mut connection = Connection::new(Admission::Open);
        let (_, response) = tell(&mut connection, request.as_bytes());
        assert!(response > 150, "compression is agreed on");
        assert_eq!(heap::held(), before, "after the handshake");
        let allocations = heap::allocations();
        assert!(tell(&mut connection, &plain).1 > 300);
        assert_eq!(heap::allocations(), allocations, "for messages that are not compressed");
        if policy == Policy::Deflate {
            // How much is up to the compressor. Room for a longer reply is asked for.
            let _ = tell(&mut connection, &compressed);
            assert!(heap::held() > before);
        } else {
            assert_eq!(tell(&mut connection, &compressed).0, Next::Receive);
            let taken = heap::held() - before;
            say(&format!("memory of a connection that compresses: {taken} bytes"));
            assert!((32 << 10..=BYTES_MAX).contains(&taken), "{taken} bytes");
            for _ in 0..3 {
                let (_, replied) = tell(&mut connection, &[&compressed[..], &plain].concat());
                assert!(replied > 300);
            }
            assert_eq!(heap::held() - before, taken, "after more messages");
        }
        drop(connection);
        assert_eq!(heap::held(), before, "after the end");
    }
}
