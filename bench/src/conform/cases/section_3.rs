//! Section 3: the reserved bits, which no extension gives a meaning.

use super::super::case::{BINARY, CLOSE, PING, PROTOCOL_ERROR, TEXT};
use super::*;

const HELLO: &str = "Hello, reserved bits";

pub(super) fn cases() -> Vec<Case> {
    let case = |case, frames: Vec<Frame>, chop| {
        let script = vec![chopped(frames, chop)];
        failing(Number::pair(3, case), "RFC 6455 5.2", script, PROTOCOL_ERROR)
    };
    let alone = |number, what: &str, frame: Frame| {
        let reserved = frame.reserved;
        case(number, vec![frame], Chop::Whole).says(
            format!("Sends {what} whose reserved bits are {reserved}."),
            "The peer fails the connection with code 1002.",
        )
    };
    // The echo of what came before may be lost when the connection fails.
    let between = |number, reserved, chop| {
        let frames = vec![
            Frame::new(TEXT, HELLO),
            Frame::new(TEXT, HELLO).reserved(reserved),
            Frame::new(PING, ""),
        ];
        let echoed = Case {
            outcomes: vec![(Behavior::Ok, vec![text(HELLO)])],
            ..case(number, frames, chop)
        };
        echoed.or(Behavior::NonStrict, Vec::new()).says(
            format!(
                "Sends a text message, then one whose reserved bits are {reserved}, then a ping{}.",
                cut(chop)
            ),
            "The first message comes back. The peer fails the connection with code 1002 at the second \
             one, and does not answer the ping.",
        )
    };
    let bytes: &[u8] = b"\x00\xff\xfe\xfd\xfc\xfb\x00\xff";
    vec![
        alone(1, "a text message", Frame::new(TEXT, HELLO).reserved(1)),
        between(2, 2, Chop::Whole),
        between(3, 3, Chop::Frames),
        between(4, 4, Chop::Bytes(1)),
        alone(5, "a binary message", Frame::new(BINARY, bytes).reserved(5)),
        alone(6, "a ping", Frame::new(PING, HELLO).reserved(6)),
        alone(7, "a close frame", Frame::new(CLOSE, "").reserved(7)),
    ]
}
