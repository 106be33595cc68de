//! Section 7: the closing handshake.

use super::super::case::{CLOSE, CONTINUATION, INVALID_PAYLOAD, NORMAL, PING, PROTOCOL_ERROR};
use super::super::case::{TEXT, Weight};
use super::*;

const FRAMES: &str = "RFC 6455 5.5.1";
const CODES: &str = "RFC 6455 7.4";
const CLOSED: &str = "The peer answers with a close frame and code 1000, and nothing else.";
const REFUSED: &str =
    "The peer fails the connection with code 1002, or ends it without a close frame.";
const HELLO: &str = "Hello, close";
/// The message before the close frame that may overtake its echo.
const LONG_MESSAGE: Payload = Payload::Repeated(b"0123456789", 256 << 10);

/// Codes that a peer may send (RFC 6455 sections 7.4.1 and 7.4.2).
const VALID: [u16; 13] =
    [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999];
/// Codes that it must not send.
const INVALID: [u16; 9] = [0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999];
/// Codes of which the RFC says nothing.
const UNDEFINED: [u16; 2] = [5000, 65535];

fn close(code: u16, reason: &[u8]) -> Step {
    Step::Close([&code.to_be_bytes()[..], reason].concat())
}

/// A case in which this side closes, with one of these codes in answer.
fn closing(number: Number, clause: &'static str, script: Vec<Step>, codes: &[u16]) -> Case {
    let close = Ending { codes: codes.to_vec(), ..Ending::clean() };
    Case {
        limit: Limit::Fail(SHORT),
        close: close.weighing(Weight::CodeCounts),
        ..answered(number, clause, script, Vec::new())
    }
}

/// The same where the close frame is invalid.
fn refused(number: Number, clause: &'static str, script: Vec<Step>, codes: &[u16]) -> Case {
    let case = closing(number, clause, script, codes);
    Case { close: Ending { needs_handshake: false, ..case.close.clone() }, ..case }
}

pub(super) fn cases() -> Vec<Case> {
    let number = |group, case| Number::triple(7, group, case);
    let normal = || close(NORMAL, b"");
    let after = |case, frame: Frame| {
        let script = vec![normal(), at_once([frame])];
        closing(number(1, case), FRAMES, script, &[NORMAL])
    };
    let hello = || Frame::new(TEXT, HELLO);
    let first = at_once([Frame::new(TEXT, "begun, ").unfinished()]);
    let rest = at_once([Frame::new(CONTINUATION, "not finished")]);
    let message = Case {
        outcomes: vec![(Behavior::Ok, vec![text(HELLO)])],
        ..closing(number(1, 1), FRAMES, vec![at_once([hello()])], &[NORMAL])
    };
    let long = vec![
        at_once([Frame::new(TEXT, LONG_MESSAGE), hello()]),
        normal(),
        at_once([Frame::new(PING, "")]),
    ];
    let long = closing(number(1, 6), FRAMES, long, &[NORMAL]);
    let long = Case {
        outcomes: vec![
            (Behavior::Ok, vec![text(LONG_MESSAGE), text(HELLO)]),
            (Behavior::NonStrict, Vec::new()),
        ],
        close: long.close.clone().weighing(Weight::Open),
        ..long
    };
    let third = |case, payload: Step| closing(number(3, case), FRAMES, vec![payload], &[NORMAL]);
    let broken = [&[0xce, 0xba, 0xed, 0xa0, 0x80][..], b"edited"].concat();
    let mut cases = vec![
        message.says(
            "Sends a text message, and closes when it has come back.",
            "The message comes back. The peer answers the close frame with code 1000.",
        ),
        after(2, Frame::new(CLOSE, "")).says("Sends two close frames.", CLOSED),
        after(3, Frame::new(PING, "")).says("Sends a ping after a close frame.", CLOSED),
        after(4, hello()).says("Sends a text message after a close frame.", CLOSED),
        closing(number(1, 5), FRAMES, vec![first, normal(), rest], &[NORMAL]).says(
            "Sends a close frame between the fragments of a text message, with the rest after it.",
            CLOSED,
        ),
        long.says(
            "Sends a text message of 256 KiB, a short one, a close frame and a ping at once.",
            "Whether the messages come back before the close frame is answered depends on the peer.",
        ),
        third(1, Step::Close(Vec::new()))
            .says("Sends a close frame without a code.", "The peer answers with a close frame."),
        refused(number(3, 2), FRAMES, vec![Step::Close(b"a".to_vec())], &[PROTOCOL_ERROR])
            .says("Sends a close frame with half a code.", REFUSED),
        third(3, normal()).says("Sends a close frame with code 1000.", CLOSED),
        third(4, close(NORMAL, b"The purpose is fulfilled"))
            .says("Sends a close frame with code 1000 and a reason.", CLOSED),
        third(5, close(NORMAL, &[b'*'; 123])).says(
            "Sends a close frame with code 1000 and a reason of 123 bytes, the longest that fits.",
            CLOSED,
        ),
        refused(number(3, 6), FRAMES, vec![close(NORMAL, &[b'*'; 124])], &[PROTOCOL_ERROR]).says(
            "Sends a close frame with code 1000 and a reason of 124 bytes, one too many.",
            REFUSED,
        ),
        refused(
            number(5, 1),
            FRAMES,
            vec![close(NORMAL, &broken)],
            &[PROTOCOL_ERROR, INVALID_PAYLOAD],
        )
        .says(
            "Sends a close frame with a reason that is not UTF-8.",
            "The peer fails the connection with code 1007 or 1002, or ends it without a close frame.",
        ),
    ];
    cases.extend((1..).zip(VALID).map(|(case, code)| {
        closing(number(7, case), CODES, vec![close(code, b"")], &[NORMAL, code]).says(
            format!("Sends a close frame with the valid code {code}."),
            "The peer answers with a close frame with the same code or 1000.",
        )
    }));
    cases.extend((1..).zip(INVALID).map(|(case, code)| {
        refused(number(9, case), CODES, vec![close(code, b"")], &[PROTOCOL_ERROR])
            .says(format!("Sends a close frame with the invalid code {code}."), REFUSED)
    }));
    cases.extend((1..).zip(UNDEFINED).map(|(case, code)| {
        let codes = [NORMAL, code, PROTOCOL_ERROR];
        let case = refused(number(13, case), CODES, vec![close(code, b"")], &codes);
        Case { close: case.close.clone().weighing(Weight::Open), ..case }.says(
            format!("Sends a close frame with code {code}, of which the RFC says nothing."),
            "Whatever the peer does is right.",
        )
    }));
    cases
}
