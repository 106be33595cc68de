//! Section 24: permessage-deflate by the letter (RFC 7692): what is offered, streams that are valid and
//! that are not, the bit that marks them, and what a message may refer to.
//!
//! The RFC does not say what a stream that is no DEFLATE costs. It cannot be echoed, so the peer has to
//! fail the connection; where a decompressor usually stops early without noticing, to echo what it has
//! found is NON-STRICT.

use std::sync::LazyLock;

use super::super::case::{BINARY, CLOSE, CONTINUATION, INVALID_PAYLOAD, NORMAL, PING, PONG};
use super::super::case::{PROTOCOL_ERROR, TEXT, Weight};
use super::super::deflate::{Offer, compress};
use super::*;

const HELLO: &str = "Hello";
const STREAM: &str = "RFC 7692 7.2.2";
const BIT: &str = "RFC 7692 6";
const BACK: &str = "The message comes back, and the connection is closed with code 1000.";
const DECLINES: &str = "The server opens the connection without compression.";
const FAILS: &str = "The peer fails the connection.";
/// RSV1 (RFC 7692 section 6).
const RSV1: u8 = 4;
/// Codes for a stream that cannot be inflated.
const CODES: [u16; 4] = [INVALID_PAYLOAD, PROTOCOL_ERROR, 1003, 1011];
/// "Hello" in a block with fixed codes (RFC 7692 section 7.2.3.1).
const FIXED: &[u8] = b"\xf2\x48\xcd\xc9\xc9\x07\x00";
/// "Hello" again, by a reference to the message before (section 7.2.3.2).
const AGAIN: &[u8] = b"\xf2\x00\x11\x00\x00";
/// The length of what a bomb inflates to.
const BOMB_BYTES: usize = 16 << 20;
/// The bomb, a thousandth of that.
static BOMB: LazyLock<Vec<u8>> = LazyLock::new(|| compress(&vec![0; BOMB_BYTES]));

fn compressed(payload: impl Into<Payload>) -> Frame {
    Frame::new(TEXT, payload).reserved(RSV1)
}

fn request(offers: &[&str]) -> Vec<u8> {
    let field = |offer: &&str| format!("Sec-WebSocket-Extensions: {offer}\r\n");
    let fields: String = offers.iter().map(field).collect();
    format!(
        "GET {{target}} HTTP/1.1\r\nHost: {{host}}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: {{key}}\r\nSec-WebSocket-Version: 13\r\n{fields}\r\n"
    )
    .into_bytes()
}

/// A case of offers, and of a message that is not compressed.
fn offering(number: Number, clause: &'static str, offers: &[&str]) -> Case {
    let script = vec![at_once([Frame::new(TEXT, HELLO)])];
    let case = answered(number, clause, script, vec![text(HELLO)]);
    let offers_shown = offers.join("`, and `");
    case.opened(Opening::Request(request(offers), Chop::Whole))
        .says(format!("Offers `{offers_shown}`."), DECLINES)
}

/// Offers that a server must decline (RFC 7692 section 7.1).
fn declined() -> Vec<Case> {
    let parameters = [
        "x-unknown",
        "server_no_context_takeover=1",
        "client_no_context_takeover=true",
        "server_no_context_takeover; server_no_context_takeover",
        "client_no_context_takeover; client_no_context_takeover",
        "server_max_window_bits",
        "server_max_window_bits=7",
        "server_max_window_bits=16",
        "server_max_window_bits=08",
        "server_max_window_bits=+9",
        "server_max_window_bits=-9",
        "server_max_window_bits=9x",
        "server_max_window_bits=265",
        "server_max_window_bits=9; server_max_window_bits=9",
        "client_max_window_bits=7",
        "client_max_window_bits=16",
        "client_max_window_bits=010",
        "client_max_window_bits=\"7\"",
        "client_max_window_bits; client_max_window_bits=10",
    ];
    let malformed = [";", "; ;", "; =1", "; server_max_window_bits=", "; a b", "; a=\"b"];
    let refused = || vec![Expected::Refused(400, 599, None)];
    let invalid = parameters.map(|it| (format!("permessage-deflate; {it}"), Behavior::Ok));
    // RFC 6455 section 9.1: whoever receives what breaks the grammar fails the connection.
    let malformed = malformed.map(|it| (format!("permessage-deflate{it}"), Behavior::NonStrict));
    (1..)
        .zip(invalid.into_iter().chain(malformed))
        .map(|(case, (offer, opened))| {
            let number = Number::triple(24, 1, case);
            let clause = if opened == Behavior::Ok { "RFC 7692 7.1" } else { "RFC 6455 9.1" };
            let other = if opened == Behavior::Ok { Behavior::NonStrict } else { Behavior::Ok };
            let case = offering(number, clause, &[&offer]);
            let Case { description, .. } = case.clone();
            let outcomes = vec![(opened, vec![text(HELLO)]), (other, refused())];
            let refuses = "The server refuses the request.";
            let expectation = if opened == Behavior::Ok { DECLINES } else { refuses };
            Case { outcomes, ..case }.says(description, expectation)
        })
        .collect()
}

/// Offers that a server may agree to.
fn agreed() -> Vec<Case> {
    let window = |bits| Offer { server_max_window_bits: Some(bits), ..Offer::PLAIN };
    let fresh = Offer { server_no_context_takeover: true, ..Offer::PLAIN };
    let both = Offer { server_no_context_takeover: true, server_max_window_bits: Some(12) };
    let rows: [(&[&str], Offer); 16] = [
        (&["permessage-deflate"], Offer::PLAIN),
        (&["permessage-deflate; server_no_context_takeover"], fresh),
        (&["permessage-deflate; client_no_context_takeover"], Offer::PLAIN),
        (&["permessage-deflate; client_max_window_bits"], Offer::PLAIN),
        (&["permessage-deflate; client_max_window_bits=10"], Offer::PLAIN),
        (&["permessage-deflate; client_max_window_bits=8"], Offer::PLAIN),
        (&["permessage-deflate; server_max_window_bits=8"], window(8)),
        (&["permessage-deflate; server_max_window_bits=9"], window(9)),
        (&["permessage-deflate; server_max_window_bits=15"], window(15)),
        (&["permessage-deflate; server_max_window_bits=\"10\""], window(10)),
        (
            &["permessage-deflate; client_max_window_bits=12; server_no_context_takeover; \
               client_no_context_takeover; server_max_window_bits=12"],
            both,
        ),
        (
            &["permessage-deflate\t; \tserver_max_window_bits=10 ;client_max_window_bits"],
            window(10),
        ),
        (
            &["permessage-deflate; server_max_window_bits=7, \
               permessage-deflate; server_max_window_bits=11"],
            window(11),
        ),
        (&["x-unknown; a=1, permessage-deflate; server_no_context_takeover"], fresh),
        (&["x-unknown", "permessage-deflate; server_no_context_takeover"], fresh),
        (&[", ,permessage-deflate,"], Offer::PLAIN),
    ];
    (1..)
        .zip(rows)
        .map(|(case, (offers, agreed))| {
            let case = offering(Number::triple(24, 2, case), "RFC 7692 7.1", offers);
            let description = case.description.clone();
            let outcomes = vec![
                (Behavior::Ok, vec![Expected::Agreed(agreed), text(HELLO)]),
                (Behavior::Unimplemented, vec![text(HELLO)]),
                (Behavior::NonStrict, vec![Expected::Refused(400, 599, None)]),
            ];
            Case { outcomes, ..case }.says(
                description,
                "The server agrees and keeps to the offer, or opens the connection without \
                 compression.",
            )
        })
        .collect()
}

/// Frames, compressed where they say so, that come back as these messages.
fn valid(case: u16, frames: Vec<Frame>, messages: &[&str]) -> Case {
    let answers = messages.iter().map(|message| text(*message)).collect();
    let number = Number::triple(24, 3, case);
    let case = answered(number, STREAM, vec![at_once(frames)], answers);
    Case { offers: vec![Offer::PLAIN], ..case }
}

fn streams() -> Vec<Case> {
    let whole = |case, payload: &[u8]| valid(case, vec![compressed(payload)], &[HELLO]);
    let cut = |sizes: usize| -> Vec<Frame> {
        let pieces: Vec<&[u8]> = FIXED.chunks(sizes).collect();
        let last = pieces.len() - 1;
        let frame = |(at, piece): (usize, &&[u8])| match at {
            0 => compressed(*piece).unfinished(),
            at if at == last => Frame::new(CONTINUATION, *piece),
            _ => Frame::new(CONTINUATION, *piece).unfinished(),
        };
        pieces.iter().enumerate().map(frame).collect()
    };
    let mut between = cut(4);
    between.insert(1, Frame::new(PING, "between"));
    let empty = vec![
        compressed("").unfinished(),
        Frame::new(CONTINUATION, "").unfinished(),
        Frame::new(CONTINUATION, FIXED).unfinished(),
        Frame::new(CONTINUATION, ""),
    ];
    // RFC 7692 section 7.2.3.4 shows it, but does not say that every receiver must know it.
    let last = whole(5, b"\xf3\x48\xcd\xc9\xc9\x07\x00\x00");
    let codes: Vec<u16> = [NORMAL].into_iter().chain(CODES).collect();
    let last = Case { close: Ending::either(codes), ..last }.or(Behavior::NonStrict, Vec::new());
    let words: String = (0..40).map(|at| format!("{} words; ", at * at)).collect();
    let ping = Case {
        outcomes: vec![(Behavior::Ok, vec![Expected::Pong(b"between".to_vec()), text(HELLO)])],
        ..valid(11, between, &[])
    };
    vec![
        whole(1, FIXED).says("Sends a block with fixed codes.", BACK),
        valid(2, vec![compressed(compress(words.as_bytes()))], &[&words])
            .says("Sends a block with codes of its own.", BACK),
        whole(3, b"\x00\x05\x00\xfa\xffHello\x00").says("Sends a stored block.", BACK),
        whole(4, b"\xf2\x48\x05\x00\x00\x00\xff\xff\xca\xc9\xc9\x07\x00")
            .says("Sends two blocks with a flush between them.", BACK),
        last.says(
            "Sends a block with BFINAL, and an empty one after it.",
            "The message comes back. To fail the connection is not strict.",
        ),
        whole(6, b"\x00\x00\x00\xff\xff\x00\x00\x00\xff\xff\xf2\x48\xcd\xc9\xc9\x07\x00")
            .says("Sends two empty stored blocks and one that is not empty.", BACK),
        valid(7, vec![compressed("\0")], &[""])
            .says("Sends an empty message as an empty block.", BACK),
        valid(8, vec![compressed(&b"\x4a\x04\x02\x00\x00"[..])], &["aaaa"])
            .says("Sends a reference that overlaps what it copies.", BACK),
        valid(9, cut(1), &[HELLO]).says("Sends a compressed message in fragments of a byte.", BACK),
        valid(10, empty, &[HELLO])
            .says("Sends a compressed message in fragments of which all but one are empty.", BACK),
        ping.says(
            "Sends a compressed message in two fragments with a ping between them.",
            "A pong comes back, then the message.",
        ),
        valid(
            12,
            vec![Frame::new(TEXT, "plain"), compressed(FIXED), Frame::new(TEXT, "plain")],
            &["plain", HELLO, "plain"],
        )
        .says("Sends a compressed message between two that are not.", BACK),
        valid(13, vec![Frame::new(TEXT, "")], &[""])
            .says("Sends an empty message that is not compressed.", BACK),
    ]
}

/// A stream that the peer has to refuse, or that it may take for this message.
fn invalid(case: u16, payload: &[u8], taken_for: Option<&str>) -> Case {
    let (number, script) = (Number::triple(24, 4, case), vec![at_once([compressed(payload)])]);
    let case = failing(number, STREAM, script, INVALID_PAYLOAD);
    let case = match taken_for {
        None => {
            let close = Ending { codes: CODES.into(), ..case.close.clone() };
            Case { close: close.weighing(Weight::EndCounts), ..case }
        }
        Some(message) => {
            let codes: Vec<u16> = [NORMAL].into_iter().chain(CODES).collect();
            let case = Case { close: Ending::either(codes), ..case };
            case.or(Behavior::NonStrict, vec![text(message)])
        }
    };
    Case { offers: vec![Offer::PLAIN], ..case }
}

fn broken() -> Vec<Case> {
    let not_utf8 = invalid(9, &compress(b"Hello\xff"), None);
    let not_utf8 = Case { clause: "RFC 6455 8.1", ..not_utf8 };
    vec![
        invalid(1, b"\x06\x00", None).says("Sends a block of the reserved type.", FAILS),
        invalid(2, b"\x00\x05\x00\xfa\xfeHello\x00", None)
            .says("Sends a stored block whose two lengths do not agree.", FAILS),
        invalid(3, b"\x4a\x04\x42\x00\x00", None)
            .says("Refers to two bytes before, where there is one.", FAILS),
        invalid(4, AGAIN, None).says("Refers to a message before the first one.", FAILS),
        // With the four bytes that a receiver appends, its last bits become a letter and an end.
        invalid(5, &FIXED[..4], Some("Hel"))
            .or(Behavior::NonStrict, vec![text("Helh")])
            .says("Sends a stream that ends within a block.", FAILS),
        invalid(6, b"\x00\x05\x00\xfa\xffHe", Some("He"))
            .says("Sends a stream that ends within a stored block.", FAILS),
        invalid(7, b"", Some("")).says("Sends a compressed message of no bytes.", FAILS),
        invalid(8, &[FIXED, b"\x00\x00\xff\xff"].concat(), Some(HELLO)).says(
            "Sends a stream whose end is not removed, so that it ends within a block.",
            FAILS,
        ),
        not_utf8.says("Sends compressed text that is not UTF-8.", FAILS),
        invalid(10, b"\xf3\x48\xcd\xc9\xc9\x07\x00\x06\x00", Some(HELLO))
            .says("Sends a block with BFINAL, and one of the reserved type after it.", FAILS),
        invalid(11, b"Hello, this is not compressed.", None)
            .says("Sends text that is not compressed and says it is.", FAILS),
    ]
}

/// RSV1 where it does not belong, and the other reserved bits.
fn misplaced() -> Vec<Case> {
    let rows: [(&str, Vec<Frame>); 9] = [
        ("Sends a ping with RSV1.", vec![Frame::new(PING, "a").reserved(RSV1)]),
        ("Sends a pong with RSV1.", vec![Frame::new(PONG, "a").reserved(RSV1)]),
        (
            "Sends a close frame with RSV1.",
            vec![Frame::new(CLOSE, &b"\x03\xe8"[..]).reserved(RSV1)],
        ),
        (
            "Sends a compressed message with RSV1 on both of its fragments.",
            vec![
                compressed(&FIXED[..4]).unfinished(),
                Frame::new(CONTINUATION, &FIXED[4..]).reserved(RSV1),
            ],
        ),
        (
            "Sends a message with RSV1 on its second fragment only.",
            vec![
                Frame::new(TEXT, "Hel").unfinished(),
                Frame::new(CONTINUATION, "lo").reserved(RSV1),
            ],
        ),
        (
            "Sends a ping with RSV1 between two fragments.",
            vec![compressed(&FIXED[..4]).unfinished(), Frame::new(PING, "").reserved(RSV1)],
        ),
        ("Sends a compressed message with RSV2.", vec![compressed(FIXED).reserved(6)]),
        ("Sends a compressed message with RSV3.", vec![compressed(FIXED).reserved(5)]),
        ("Sends a message with RSV2.", vec![Frame::new(TEXT, HELLO).reserved(2)]),
    ];
    let case = |(case, (description, frames)): (u16, (&str, Vec<Frame>))| {
        let (number, script) = (Number::triple(24, 5, case), vec![at_once(frames)]);
        let case = failing(number, BIT, script, PROTOCOL_ERROR);
        let close = case.close.clone().weighing(Weight::EndCounts);
        let expectation = "The peer fails the connection with code 1002.";
        Case { close, offers: vec![Offer::PLAIN], ..case }.says(description, expectation)
    };
    (1..).zip(rows).map(case).collect()
}

fn bombs() -> Vec<Case> {
    let frame = || Frame::new(BINARY, BOMB.clone()).reserved(RSV1);
    let half = BOMB.len() / 2;
    let fragments = vec![
        Frame::new(BINARY, &BOMB[..half]).reserved(RSV1).unfinished(),
        Frame::new(CONTINUATION, &BOMB[half..]),
    ];
    let codes = [NORMAL, 1009, 1008, 1003, 1011, PROTOCOL_ERROR, INVALID_PAYLOAD];
    let bomb = |case, frames: Vec<Frame>| {
        let zeros = Expected::Message(Form::Binary, Payload::Repeated(b"\0", BOMB_BYTES));
        let number = Number::triple(24, 6, case);
        let case = answered(number, "RFC 6455 10.4", vec![at_once(frames)], vec![zeros]);
        let case = Case { close: Ending::either(codes), ..case }.or(Behavior::Ok, Vec::new());
        Case { offers: vec![Offer::PLAIN], ..case }.within(LONG)
    };
    let either = "The message comes back, or the peer fails the connection because it is too long.";
    vec![
        bomb(1, vec![frame()]).says("Sends 16 KiB that inflate to 16 MiB.", either),
        bomb(2, fragments).says("Sends 16 KiB that inflate to 16 MiB in two fragments.", either),
    ]
}

/// A message in a stored block, which keeps to every window that may have been agreed on.
fn stored(message: &[u8]) -> Vec<u8> {
    let length = message.len() as u16;
    [&[0][..], &length.to_le_bytes(), &(!length).to_le_bytes(), message, &[0]].concat()
}

fn contexts() -> Vec<Case> {
    let number = |case| Number::triple(24, 7, case);
    let case = |case, offer: Offer, needs, frames: Vec<Frame>, messages: &[&str]| {
        let answers = messages.iter().map(|message| text(*message)).collect();
        let case = answered(number(case), "RFC 7692 7.1.1", vec![at_once(frames)], answers);
        Case { offers: vec![offer], needs, ..case }
    };
    let takeover = |number, frames: Vec<Frame>, messages: &[&str]| {
        case(number, Offer::PLAIN, Needs::Takeover, frames, messages)
    };
    let fresh = Offer { server_no_context_takeover: true, ..Offer::PLAIN };
    let near = Offer { server_max_window_bits: Some(9), ..Offer::PLAIN };
    let far = format!("a distance{}a distance", "-".repeat(590));
    let (first, again) = (|| compressed(FIXED), || compressed(AGAIN));
    vec![
        takeover(1, vec![first(), again()], &[HELLO, HELLO])
            .says("Refers to the message before.", "Both messages come back."),
        takeover(2, vec![first(), Frame::new(TEXT, "plain"), again()], &[HELLO, "plain", HELLO])
            .says(
                "Refers to the compressed message before one that is not.",
                "All messages come back.",
            ),
        takeover(3, vec![first(), compressed("\0"), again()], &[HELLO, "", HELLO])
            .says("Refers to the message before an empty one.", "All messages come back."),
        case(4, fresh, Needs::Offered, vec![first(), first(), first()], &[HELLO; 3]).says(
            "Asks the server not to refer to earlier messages, and sends the same one three times.",
            "Each message comes back by itself.",
        ),
        case(5, near, Needs::Offered, vec![compressed(stored(far.as_bytes()))], &[&far]).says(
            "Asks the server for a window of 512 bytes, and sends a message that begins and ends with \
             the same letters, 600 bytes apart.",
            "The message comes back, and refers to nothing beyond the window.",
        ),
    ]
}

pub(super) fn cases() -> Vec<Case> {
    [declined(), agreed(), streams(), broken(), misplaced(), bombs(), contexts()].concat()
}

#[cfg(test)]
mod tests {
    use super::super::super::deflate::{Echoes, Side};
    use super::*;

    /// What the cases say of their streams is what an inflater of another origin finds.
    #[test]
    fn valid_streams_inflate_and_broken_ones_do_not() {
        let side = Side { takes_over: true, window_bits: 15 };
        let inflated = |case: &Case| {
            let [Step::Frames(frames, _)] = &case.script[..] else { panic!("{}", case.number) };
            let frames = frames.iter().filter(|frame| frame.opcode < 8);
            let payloads: Vec<Vec<u8>> = frames.map(|frame| frame.payload.to_vec()).collect();
            let mut echoes = Echoes::new(side, side);
            echoes.inflate(&payloads.concat(), 1 << 20).map(<[u8]>::to_vec)
        };
        for case in streams() {
            let [(_, events), ..] = &case.outcomes[..] else { panic!("{}", case.number) };
            let Some(Expected::Message(_, payload)) = events.last() else { panic!() };
            if case.number < Number::triple(24, 3, 12) {
                let message = inflated(&case);
                assert_eq!(message, Ok(payload.to_vec()), "{}", case.number);
            }
        }
        for case in broken() {
            if let Ok(message) = inflated(&case) {
                str::from_utf8(&message).expect_err(&format!("{}", case.number));
            }
        }
        assert!(BOMB.len() < BOMB_BYTES / 500);
    }
}
