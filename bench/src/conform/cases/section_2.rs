//! Section 2: pings and pongs.

use super::super::case::{PING, PONG, PROTOCOL_ERROR};
use super::*;

const PINGS: &str = "RFC 6455 5.5.2";
const PONGS: &str = "RFC 6455 5.5.3";
const ANSWERED: &str = "A pong with the same payload comes back, and the connection is closed with code \
                        1000.";
const NOTHING: &str = "Nothing comes back but a close frame with code 1000.";

fn number(case: u16) -> Number {
    Number::pair(2, case)
}

/// A ping with this payload, which is answered.
fn ping(case: u16, payload: &[u8], chop: Chop) -> Case {
    let script = vec![chopped([Frame::new(PING, payload)], chop)];
    answered(number(case), PINGS, script, vec![Expected::Pong(payload.to_vec())])
}

/// Ten pings.
fn pings(case: u16, chop: Chop) -> Case {
    let payloads: Vec<Vec<u8>> = (0..10).map(|at| format!("ping number {at}").into()).collect();
    let frames = payloads.iter().map(|payload| Frame::new(PING, &payload[..]));
    let script = vec![chopped(frames, chop)];
    let pongs = payloads.iter().cloned().map(Expected::Pong).collect();
    answered(number(case), PINGS, script, pongs).says(
        format!("Sends ten pings, each with a payload of its own{}.", cut(chop)),
        "A pong comes back for each ping, in the same order. RFC 6455 lets a peer answer only the last \
         ping, but this case does not.",
    )
}

pub(super) fn cases() -> Vec<Case> {
    let unasked = "a pong that nobody asked for";
    let close = || Step::Close(1000u16.to_be_bytes().to_vec());
    let too_long = vec![at_once([Frame::new(PING, Payload::Repeated(b"\xfe", 126))])];
    let pong = |case, payload: &str| {
        let script = vec![at_once([Frame::new(PONG, payload)]), close()];
        answered(number(case), PONGS, script, Vec::new())
    };
    let both = [Frame::new(PONG, unasked), Frame::new(PING, "a ping")];
    vec![
        ping(1, b"", Chop::Whole).says("Sends a ping without a payload.", ANSWERED),
        ping(2, b"a short ping", Chop::Whole).says("Sends a ping with text.", ANSWERED),
        ping(3, b"\x00\xff\xfe\xfd\xfc\xfb\x00\xff", Chop::Whole)
            .says("Sends a ping with bytes that are not UTF-8.", ANSWERED),
        ping(4, &[0xfe; 125], Chop::Whole)
            .says("Sends a ping with a payload of 125 bytes, the most that is allowed.", ANSWERED),
        failing(number(5), "RFC 6455 5.5", too_long, PROTOCOL_ERROR).says(
            "Sends a ping with a payload of 126 bytes, one more than is allowed.",
            "The peer fails the connection with code 1002.",
        ),
        ping(6, &[0xfe; 125], Chop::Bytes(1))
            .says("Sends a ping with a payload of 125 bytes, byte by byte.", ANSWERED),
        pong(7, "").says("Sends a pong without a payload, and closes.", NOTHING),
        pong(8, unasked).says("Sends a pong with a payload, and closes.", NOTHING),
        answered(number(9), PONGS, vec![at_once(both)], vec![Expected::Pong(b"a ping".to_vec())])
            .says(
                "Sends a pong that nobody asked for, and then a ping.",
                "Only the ping is answered, and the connection is closed with code 1000.",
            ),
        pings(10, Chop::Whole),
        pings(11, Chop::Bytes(1)),
    ]
}
