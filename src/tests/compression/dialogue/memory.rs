//! The memory that compression takes: of a bomb, of each agreement, and of recompression in all.

use flate2::{Compress, FlushCompress};
use ringecho::buffer::{Cursors, Region};
use ringecho::metrics::Counters;
use ringecho::protocol::extension::{Negotiated, Offer, agree, negotiate};
use ringecho::protocol::pool::bytes_reserved;
use ringecho::protocol::violation::Violation;
use ringecho::protocol::{
    Admission, Connection, Context, Decision, Dismissal, FrameLimits, Next, Policy, Protocol,
    Settings,
};

use crate::POLICIES;
use crate::agreement::{request, settings};
use crate::heap;
use crate::peer::Peer;
use crate::sender::deflate;
use testkit::RSV1;
use testkit::frame::parse;
use testkit::{BINARY, CLOSE, FIN, PING, TEXT, frame, say};

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
        (Policy::Mirror, each, 1, 160 << 10),
        (Policy::Deflate, each, 1, 640 << 10),
        // What is compressed is held, the frame being unfinished.
        (Policy::Mirror, together, 4, 384 << 10),
        (Policy::Deflate, together, 4, 768 << 10),
    ] {
        let counters = Counters::default();
        let settings = Settings {
            protocol: Protocol::WebSocket,
            message_max: LIMIT,
            policy,
            level: 6,
            frames: FrameLimits::NONE,
        };
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

/// The document whose tables are measured here.
const DOCUMENT: &str = include_str!("../../../../docs/internals/compression.md");

/// One connection, without anything around it.
struct Bare<'a> {
    connection: Connection,
    context: &'a Context<'a>,
    pinned: Vec<u8>,
}

impl<'a> Bare<'a> {
    /// A connection that has agreed on compression.
    fn open(offer: &str, context: &'a Context<'a>) -> Bare<'a> {
        let connection = Connection::new(Admission::Open);
        let mut bare = Bare { connection, context, pinned: vec![0; 256 << 10] };
        // Long enough that the response is not longer and fits in its place.
        let padding = format!("X-Padding: {}\r\nHost", "-".repeat(200));
        let request = request(offer).replacen("Host", &padding, 1);
        assert!(bare.tell(request.as_bytes()) > 150, "compression is agreed on");
        bare
    }

    /// Receives `bytes`, and says how many come back.
    fn tell(&mut self, bytes: &[u8]) -> usize {
        let mut cursors = Cursors::received(bytes.len());
        self.pinned[..bytes.len()].copy_from_slice(bytes);
        loop {
            let mut region = Region::new(&mut self.pinned, &mut cursors);
            match self.connection.advance(&mut region, self.context) {
                Next::Receive => return cursors.reply().len(),
                Next::Yield => {}
                next => panic!("{next:?}"),
            }
        }
    }

    /// The heap memory of the connection.
    fn bytes(self) -> isize {
        let Bare { connection, context: _, pinned: _ } = self;
        let before = heap::held();
        drop(connection);
        before - heap::held()
    }
}

/// The memory of a connection between two messages and during one, in bytes.
fn memory_of(policy: Policy, offer: &str) -> [isize; 2] {
    // Larger than any window. Without compression, so that the reply is no longer than the request.
    let message = vec![7; 70_000];
    let stored: Vec<u8> = message.chunks(1000).flat_map(stored).chain([0]).collect();
    let (begin, end) = stored.split_at(stored.len() / 2);
    let counters = Counters::default();
    let context = Context::new(settings(policy), &counters);
    let after = |frames: &[Vec<u8>]| {
        let mut bare = Bare::open(offer, &context);
        for frame in frames {
            bare.tell(frame);
        }
        bare.bytes()
    };
    let whole = frame(BINARY | RSV1, &stored);
    let halves = [frame(BINARY & !FIN | RSV1, begin), frame(FIN, end)];
    let [first, last] = &halves;
    let between = after(&[whole.clone(), whole.clone()]);
    assert_eq!(between, after(&[whole.clone(), first.clone(), last.clone()]), "{offer}");
    [between, after(&[whole, first.clone()])]
}

/// A block without compression.
fn stored(piece: &[u8]) -> Vec<u8> {
    let length = piece.len() as u16;
    [&[0][..], &length.to_le_bytes(), &(!length).to_le_bytes(), piece].concat()
}

/// The parameters of an offer, by the bits of the window.
type Parameters = fn(u32) -> String;

#[test]
fn each_agreement_costs_what_the_document_says() {
    let agreements: [(Policy, Parameters); 5] = [
        (Policy::Mirror, |bits| {
            format!("client_max_window_bits={bits}; client_no_context_takeover")
        }),
        (Policy::Mirror, |bits| format!("client_max_window_bits={bits}")),
        (Policy::Deflate, |bits| {
            let none = "client_no_context_takeover; server_no_context_takeover";
            format!("server_max_window_bits={bits}; {none}")
        }),
        (Policy::Deflate, |bits| {
            format!("server_max_window_bits={bits}; server_no_context_takeover")
        }),
        (Policy::Deflate, |bits| format!("server_max_window_bits={bits}")),
    ];
    let mut missing = Vec::new();
    for bits in 8..=15 {
        let mut rows = [format!("| {bits} |"), format!("| {bits} |")];
        for (policy, parameters) in agreements {
            if policy == Policy::Deflate && bits == 8 {
                rows.iter_mut().for_each(|row| row.push_str(" declined |"));
                continue;
            }
            let offer = format!("permessage-deflate; {}", parameters(bits));
            let costs = memory_of(policy, &offer);
            for (row, bytes) in rows.iter_mut().zip(costs) {
                row.push_str(&format!(" {} |", grouped(bytes)));
            }
            let window = 1 << bits;
            if policy == Policy::Mirror {
                let most = if parameters(bits).contains("no_context") { 0 } else { window + 80 };
                assert!(costs[0] <= most, "{costs:?} bytes for {offer}");
                assert!(bits < 15 || costs[0] <= 34 << 10, "{costs:?} bytes for {offer}");
            } else {
                let offers = [offer.as_bytes()].into_iter();
                let Ok(Negotiated::Agreed(agreement)) = negotiate(offers, policy, |_| true) else {
                    panic!("{offer} is declined");
                };
                assert!(costs[1] <= bytes_reserved(&agreement) as isize, "{costs:?} bytes");
            }
        }
        missing.extend(rows.into_iter().filter(|row| !DOCUMENT.contains(row)));
    }
    assert!(missing.is_empty(), "docs/internals/compression.md lacks\n{}", missing.join("\n"));
}

/// A number with commas.
fn grouped(number: isize) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> = digits
        .as_bytes()
        .rchunks(3)
        .rev()
        .map(|group| std::str::from_utf8(group).expect("digits"))
        .collect();
    groups.join(",")
}

#[test]
fn a_connection_takes_memory_with_its_first_compressed_message() {
    let plain = [frame(TEXT, b"plain"), frame(BINARY, &[7; 300]), frame(PING, b"")].concat();
    let compressed = frame(TEXT | RSV1, b"\xf2\x48\xcd\xc9\xc9\x07\x00");
    let counters = Counters::default();
    let context = Context::new(settings(Policy::Mirror), &counters);
    let mut bare = Bare::open("permessage-deflate", &context);
    let (before, allocations) = (heap::held(), heap::allocations());
    assert!(bare.tell(&plain) > 300);
    assert_eq!(heap::allocations(), allocations, "for messages that are not compressed");
    assert!(bare.tell(&compressed) > 0);
    assert!(heap::held() > before);
    let mut other = Bare::open("permessage-deflate", &context);
    other.tell(&compressed);
    // As much as there is to refer to.
    assert!((1..100).contains(&other.bytes()));
    assert!((1..100).contains(&bare.bytes()));
}

#[test]
fn a_connection_that_fails_or_closes_keeps_nothing() {
    // A whole block, and then no type of block that there is.
    let begin = frame(BINARY & !FIN | RSV1, &stored(b"Hello"));
    for policy in POLICIES {
        let counters = Counters::default();
        let context = Context::new(settings(policy), &counters);
        for (last, next) in [
            (frame(FIN, b"\x06"), Next::Fail(Violation::CompressionInvalid)),
            (frame(TEXT, b"another"), Next::Fail(Violation::ContinuationExpected)),
            (frame(CLOSE, b"\x03\xe8"), Next::Close),
        ] {
            let mut bare = Bare::open("permessage-deflate", &context);
            bare.tell(&begin);
            let mut cursors = Cursors::received(last.len());
            bare.pinned[..last.len()].copy_from_slice(&last);
            let mut region = Region::new(&mut bare.pinned, &mut cursors);
            assert_eq!(bare.connection.advance(&mut region, &context), next);
            assert_eq!(bare.bytes(), 0, "{next:?}");
        }
        let mut bare = Bare::open("permessage-deflate", &context);
        let mut cursors = Cursors::received(begin.len());
        bare.pinned[..begin.len()].copy_from_slice(&begin);
        let mut region = Region::new(&mut bare.pinned, &mut cursors);
        context.allowance.begin_cycle();
        assert_eq!(bare.connection.advance(&mut region, &context), Next::Receive);
        // It takes the place of the key.
        let next = bare.connection.dismiss(Dismissal::Stopping, &mut region, &context);
        assert_eq!((next, bare.bytes()), (Next::Receive, 0));
    }
}

#[test]
fn recompression_beyond_its_memory_is_declined_and_counted() {
    const OFFER: &str = "permessage-deflate; server_max_window_bits=10";
    let agreement =
        agree(&Offer { server_max_window_bits: Some(10), ..Offer::default() }, Policy::Mirror);
    let bytes = bytes_reserved(&agreement.expect("an offer that can be met"));
    let counters = Counters::default();
    let context =
        Context::new(settings(Policy::Mirror), &counters).with_recompression_memory(3 * bytes - 1);
    let is_agreed = |offer: &str| {
        let mut peer = Peer::new(16384, &context);
        let is_agreed = peer.handshake(&request(offer)).contains("permessage-deflate");
        (peer, is_agreed)
    };
    let mut peers: Vec<(Peer<'_>, bool)> = (0..4).map(|_| is_agreed(OFFER)).collect();
    let agreed: Vec<bool> = peers.iter().map(|&(_, agreed)| agreed).collect();
    assert_eq!(agreed, [true, true, false, false]);
    assert_eq!(counters.compression_declined.value(), 2);
    // It goes on without, what is mirrored needs none of that memory, and the next offer may be such.
    peers[3].0.feed(&frame(TEXT, b"plain"), &[], None);
    peers[3].0.send(usize::MAX);
    assert_eq!(parse(&peers[3].0.sent)[0].payload, b"plain");
    assert!(is_agreed("permessage-deflate").1);
    assert!(is_agreed(&format!("{OFFER}, permessage-deflate")).1);
    assert_eq!(counters.compression_declined.value(), 2);
    // The end of a connection makes room for another.
    peers.remove(0);
    assert!(is_agreed(OFFER).1);
    // So does the end of its messages.
    peers[0].0.close();
    assert!(is_agreed(OFFER).1);
    assert_eq!(counters.compression_declined.value(), 2);
}
