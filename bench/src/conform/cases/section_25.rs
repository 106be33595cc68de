//! Section 25: headers that are not as they should be, and many small frames.
//!
//! A peer may limit how many frames it takes (RFC 6455 section 10.4 and code 1008). To fail the
//! connection for that is INFORMATIONAL.

use super::super::case::Weight;
use super::super::case::{BINARY, CONTINUATION, Header, NORMAL, PING, PONG, PROTOCOL_ERROR, TEXT};
use super::*;

const HELLO: &str = "Hello, limits";
const LENGTH: &str = "RFC 6455 5.2";
const MASK: &str = "RFC 6455 5.1";
const LIMITS: &str = "RFC 6455 10.4";
const FAILS: &str = "The peer fails the connection with code 1002.";
/// Codes of a peer that fails the connection for a limit, after that of this side.
const CODES: [u16; 5] = [NORMAL, 1008, 1009, 1011, 1013];
/// Frames of a flood.
const FRAMES: u32 = 10_000;

fn wrong(case: u16, clause: &'static str, frames: Vec<Frame>) -> Case {
    let script = vec![at_once(frames)];
    let case = failing(Number::triple(25, 1, case), clause, script, PROTOCOL_ERROR);
    Case { close: case.close.clone().weighing(Weight::EndCounts), ..case }
}

/// A length that is not in its shortest form. The RFC tells the sender how to write it, and not the
/// receiver to refuse it.
fn lengthy(case: u16, frame: Frame, echo: Expected) -> Case {
    let close = Ending::either([NORMAL, PROTOCOL_ERROR]);
    Case { close, ..wrong(case, LENGTH, vec![frame]) }.or(Behavior::NonStrict, vec![echo]).says(
        String::new(),
        "The peer fails the connection with code 1002. To take the frame is not strict.",
    )
}

fn headers() -> Vec<Case> {
    let hello = |header| Frame::new(TEXT, HELLO).with(header);
    let ping = |header| Frame::new(PING, "ping").with(header);
    let long = Payload::Repeated(b"*", 200);
    let masked = Header::MaskedWrongly;
    let length = |bytes: usize| Header::Length64(bytes as u64);
    let second = vec![Frame::new(TEXT, HELLO), hello(masked)];
    let after = Case {
        outcomes: vec![(Behavior::Ok, vec![text(HELLO)]), (Behavior::NonStrict, Vec::new())],
        ..wrong(4, MASK, second)
    };
    let says = |case: Case, description: &str| {
        let expectation = case.expectation.clone();
        case.says(description, expectation)
    };
    let pong = || Expected::Pong(b"ping".to_vec());
    let topmost = Frame::new(BINARY, "abcd").with(Header::Length64(1 << 63 | 4));
    let endless = Frame::new(BINARY, "abcd").with(Header::Length64(1 << 62));
    let codes = [NORMAL, 1001, 1009, PROTOCOL_ERROR, 1007, 1008, 1011];
    // The RFC says what a sender must write, and not that a receiver must not wait for so much.
    let ended = |case: Case, frame: Frame| Case {
        script: vec![at_once([frame]), Step::End],
        close: Ending { codes: codes.into(), ..Ending::failed_with(NORMAL) }
            .weighing(Weight::EndCounts),
        ..case
    };
    let topmost = ended(wrong(10, LENGTH, Vec::new()), topmost);
    let endless = ended(wrong(12, LIMITS, Vec::new()), endless);
    vec![
        wrong(1, MASK, vec![hello(masked)]).says(
            "Sends a text message that is masked if this side is a server, and not if it is a client.",
            FAILS,
        ),
        wrong(2, MASK, vec![ping(masked)]).says("Sends a ping with the same fault.", FAILS),
        wrong(3, MASK, vec![Frame::new(TEXT, "a").unfinished(), Frame::new(CONTINUATION, "b").with(masked)])
            .says("Sends a message with the same fault in its second fragment.", FAILS),
        after.says("Sends a message, and a second one with the same fault.", FAILS),
        says(lengthy(5, hello(Header::Length16), text(HELLO)), "Sends a short length in 16 bits."),
        says(
            lengthy(6, hello(length(HELLO.len())), text(HELLO)),
            "Sends a short length in 64 bits.",
        ),
        says(
            lengthy(7, Frame::new(TEXT, long.clone()).with(length(200)), text(long)),
            "Sends a length of 200 in 64 bits.",
        ),
        says(lengthy(8, ping(Header::Length16), pong()), "Sends a ping with a length of 16 bits."),
        says(lengthy(9, ping(length(4)), pong()), "Sends a ping with a length of 64 bits."),
        topmost.says(
            "Sends a frame of four bytes and a length of 64 bits whose highest bit is set, and ends \
             what it sends.",
            "The peer fails or ends the connection.",
        ),
        wrong(11, "RFC 6455 5.5", vec![Frame::new(PING, Payload::Repeated(b"*", 126))])
            .says("Sends a ping of 126 bytes.", FAILS),
        endless.says(
            "Sends the header of a frame of 2^62 bytes and four of them, and ends what it sends.",
            "The peer fails or ends the connection.",
        ),
    ]
}

/// Many frames, of which the peer may find that they are too many. It may have answered some pings.
fn flood(case: u16, frames: Vec<Frame>, answers: Vec<Expected>) -> Case {
    let case = answered(Number::triple(25, 2, case), LIMITS, vec![at_once(frames)], answers);
    Case { close: Ending::either(CODES), ..case }
        .within(LONG)
        .or(Behavior::Informational, vec![Expected::Pongs(None)])
}

fn floods() -> Vec<Case> {
    let numbers = || 0..FRAMES;
    let ping = |number: u32| Frame::new(PING, number.to_be_bytes().to_vec());
    let hello = || Frame::new(TEXT, HELLO);
    let pongs = || Expected::Pongs(Some(FRAMES - 1));
    let message = |payload: &str, count: u32| -> Vec<Frame> {
        let fragment = |_| Frame::new(CONTINUATION, payload).unfinished();
        let first = Frame::new(TEXT, payload).unfinished();
        let last = Frame::new(CONTINUATION, payload);
        [first].into_iter().chain((2..count).map(fragment)).chain([last]).collect()
    };
    let among = || -> Vec<Frame> {
        let fragments = message("*", FRAMES);
        (0..).zip(fragments).flat_map(|(number, frame)| [ping(number), frame]).collect()
    };
    let whole = Payload::Repeated(b"*", FRAMES as usize);
    let messages = vec![Frame::new(TEXT, ""); 1000];
    let largest = |number: u32| {
        let payload = [&number.to_be_bytes()[..], &[b'*'; 121]].concat();
        Frame::new(PING, payload)
    };
    let back = "The message comes back.";
    let pinged = "The last ping is answered, and perhaps others; then the message comes back.";
    vec![
        flood(
            1,
            numbers().map(|_| Frame::new(PONG, "")).chain([hello()]).collect(),
            vec![text(HELLO)],
        )
        .says("Sends 10,000 empty pongs that nobody asked for, and a text message.", back),
        flood(2, numbers().map(ping).chain([hello()]).collect(), vec![pongs(), text(HELLO)])
            .says("Sends 10,000 pings and a text message at once.", pinged),
        flood(
            3,
            (0..1000).map(largest).chain([hello()]).collect(),
            vec![Expected::Pongs(Some(999)), text(HELLO)],
        )
        .says("Sends 1,000 pings of 125 bytes and a text message at once.", pinged),
        flood(4, message("", FRAMES), vec![text("")])
            .says("Sends an empty text message in 10,000 fragments.", back),
        flood(5, message("*", FRAMES), vec![text(whole.clone())])
            .says("Sends a text message in 10,000 fragments of a byte.", back),
        flood(6, among(), vec![pongs(), text(whole)])
            .says("Sends a text message in 10,000 fragments with a ping before each.", pinged),
        flood(7, messages, vec![text(""); 1000])
            .says("Sends 1,000 empty text messages at once.", "All messages come back."),
    ]
}

pub(super) fn cases() -> Vec<Case> {
    headers().into_iter().chain(floods()).collect()
}
