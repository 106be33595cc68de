//! Section 4: the opcodes that are reserved, for data frames (group 1) and control frames (group 2).

use super::super::case::{PING, PROTOCOL_ERROR, TEXT};
use super::*;

const HELLO: &str = "Hello, opcodes";

pub(super) fn cases() -> Vec<Case> {
    let group = |group, first: u8| {
        let case = move |case: u16, frames: Vec<Frame>, chop| {
            let script = vec![chopped(frames, chop)];
            failing(Number::triple(4, group, case), "RFC 6455 5.2", script, PROTOCOL_ERROR)
        };
        let alone = move |number: u16, payload: &str| {
            let opcode = first + number as u8 - 1;
            let payload_is = if payload.is_empty() { "no payload" } else { "a payload" };
            case(number, vec![Frame::new(opcode, payload)], Chop::Whole).says(
                format!("Sends a frame with the reserved opcode {opcode} and {payload_is}."),
                "The peer fails the connection with code 1002.",
            )
        };
        let between = move |number: u16, payload: &str, chop| {
            let opcode = first + number as u8 - 1;
            let frames =
                vec![Frame::new(TEXT, HELLO), Frame::new(opcode, payload), Frame::new(PING, "")];
            let payload_is = if payload.is_empty() { "no payload" } else { "a payload" };
            let echoed = Case {
                outcomes: vec![(Behavior::Ok, vec![text(HELLO)])],
                ..case(number, frames, chop)
            };
            echoed.or(Behavior::NonStrict, Vec::new()).says(
                format!(
                    "Sends a text message, then a frame with the reserved opcode {opcode} and \
                     {payload_is}, then a ping{}.",
                    cut(chop)
                ),
                "The message comes back. The peer fails the connection with code 1002 at the next \
                 frame, and does not answer the ping.",
            )
        };
        [
            alone(1, ""),
            alone(2, "of no known kind"),
            between(3, "", Chop::Whole),
            between(4, HELLO, Chop::Whole),
            between(5, HELLO, Chop::Bytes(1)),
        ]
    };
    [group(1, 3), group(2, 11)].into_iter().flatten().collect()
}
