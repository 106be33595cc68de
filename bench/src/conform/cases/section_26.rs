//! Section 26: TLS, where a connection has it. How what is sent is cut into records, and these into segments,
//! means nothing (group 1); how TLS ends (group 2); what is no record, or was changed on its way (group 3).
//!
//! In the other sections over TLS, each send is a record, or several if it is long.

use super::super::case::Weight;
use super::super::case::{BINARY, CONTINUATION, NORMAL, PING, PROTOCOL_ERROR, SECTION_TLS, TEXT};
use super::*;
use crate::socket::Sealing;

const HELLO: &str = "Hello, records";
const RECORDS: &str = "RFC 8446 5.1";
const ENDS: &str = "RFC 8446 6.1";
const FAULTS: &str = "RFC 8446 5";
/// Codes of a peer that closes when it finds that the other side has ended, or is not understood.
const CODES: [u16; 5] = [NORMAL, 1001, PROTOCOL_ERROR, 1007, 1011];
const ECHOED: &str = "The message comes back.";
const ENDED: &str = "The peer ends the connection, and says so in TLS before.";

fn hello() -> Step {
    at_once([Frame::new(TEXT, HELLO)])
}

fn number(group: u16, case: u16) -> Number {
    Number::triple(SECTION_TLS, group, case)
}

/// Everything comes back, however it is cut.
fn cut_as(case: u16, sealings: &[Sealing], frames: Vec<Frame>, answers: Vec<Expected>) -> Case {
    let mut script: Vec<Step> = sealings.iter().map(|sealing| Step::Tls(*sealing)).collect();
    script.push(at_once(frames));
    answered(number(1, case), RECORDS, script, answers).within(LONG)
}

/// The peer ends the connection. Before that, it may send these answers.
fn ending(group: u16, case: u16, script: Vec<Step>, answers: Vec<Expected>) -> Case {
    let clause = if group == 2 { ENDS } else { FAULTS };
    let close = Ending { codes: CODES.into(), ..Ending::failed_with(NORMAL) };
    let case = failing(number(group, case), clause, script, NORMAL);
    let case = Case { close: close.weighing(Weight::TlsCounts), ..case };
    if answers.is_empty() { case } else { case.or(Behavior::Ok, answers) }
}

fn records() -> Vec<Case> {
    use Sealing::{Records, Segments};
    let one = || vec![Frame::new(TEXT, HELLO)];
    let long = |bytes| Payload::Repeated(b"0123456789abcdef", bytes);
    let binary = |bytes| vec![Frame::new(BINARY, long(bytes))];
    let back = |bytes| vec![Expected::Message(Form::Binary, long(bytes))];
    let fragments = vec![
        Frame::new(TEXT, "Hello, ").unfinished(),
        Frame::new(PING, "ping"),
        Frame::new(CONTINUATION, "records"),
    ];
    let pong = Expected::Pong(b"ping".to_vec());
    vec![
        cut_as(1, &[Records(1)], one(), vec![text(HELLO)])
            .says("Sends a text message, each byte in a record of its own, at once.", ECHOED),
        cut_as(2, &[Segments(1)], one(), vec![text(HELLO)])
            .says("Sends a text message in a record whose bytes leave one by one.", ECHOED),
        cut_as(3, &[Records(1), Segments(1)], one(), vec![text(HELLO)]).says(
            "Sends a text message, each byte in a record of its own, whose bytes leave one by one.",
            ECHOED,
        ),
        cut_as(4, &[], vec![Frame::new(TEXT, HELLO); 3], vec![text(HELLO); 3])
            .says("Sends three text messages in one record.", "The messages come back."),
        cut_as(5, &[Records(3)], fragments, vec![pong, text(HELLO)]).says(
            "Sends a text message in two fragments with a ping between, 3 bytes in each record.",
            "A pong comes, and the message.",
        ),
        cut_as(6, &[Records(1000)], binary(1 << 20), back(1 << 20))
            .says("Sends a binary message of 1 MiB, 1,000 bytes in each record.", ECHOED),
        cut_as(7, &[Segments(1000)], binary(1 << 16), back(1 << 16)).says(
            "Sends a binary message of 64 KiB in records that leave 1,000 bytes at a time.",
            ECHOED,
        ),
    ]
}

fn ends() -> Vec<Case> {
    let close = || Step::Close(NORMAL.to_be_bytes().into());
    let closed = answered(number(2, 1), ENDS, vec![close()], Vec::new());
    let closed = Case { close: Ending::clean().weighing(Weight::TlsCounts), ..closed };
    let lost = || at_once([Frame::new(TEXT, "lost")]);
    vec![
        closed.says(
            "Sends a close frame.",
            "The peer answers with a close frame. Who ends the connection says so in TLS before.",
        ),
        ending(2, 2, vec![hello(), Step::End], vec![text(HELLO)]).says(
            "Sends a text message, and ends what it sends, which it says in TLS.",
            "The peer may send the message back, ends the connection, and says so in TLS before.",
        ),
        ending(2, 3, vec![hello(), Step::Tls(Sealing::EndUnsaid), Step::End], vec![text(HELLO)])
            .says(
                "Sends a text message, and ends what it sends, which it does not say in TLS.",
                "The peer may send the message back, and ends the connection.",
            ),
        ending(
            2,
            4,
            vec![hello(), Step::Tls(Sealing::Cut), lost(), Step::End],
            vec![text(HELLO)],
        )
        .says(
            "Sends a text message, then another one whose record lacks its last byte, and ends what it \
             sends.",
            "The peer may send the first message back, and ends the connection.",
        ),
    ]
}

fn faults() -> Vec<Case> {
    let raw = |bytes: &'static [u8]| vec![Step::Tls(Sealing::Raw(bytes))];
    vec![
        ending(3, 1, vec![Step::Tls(Sealing::Spoiled), hello()], Vec::new())
            .says("Sends a text message in a record whose last byte is changed.", ENDED),
        ending(3, 2, raw(b"\x81\x05Hello"), Vec::new())
            .says("Sends a frame that is in no record.", ENDED),
        ending(3, 3, raw(b"\x17\x03\x03\x00\x05Hello"), Vec::new())
            .says("Sends a record that is not encrypted.", ENDED),
        ending(3, 4, raw(b"\x17\x03\x03\xff\xff"), Vec::new())
            .says("Sends the header of a record that is longer than allowed.", ENDED),
        ending(3, 5, raw(b"\x63\x03\x03\x00\x05Hello"), Vec::new())
            .says("Sends a record of an unknown type.", ENDED),
    ]
}

pub(super) fn cases() -> Vec<Case> {
    [records(), ends(), faults()].concat()
}
