//! Section 5: fragmented messages, and control frames between their fragments.

use super::super::case::{CONTINUATION, PING, PONG, PROTOCOL_ERROR, TEXT};
use super::*;

const CLAUSE: &str = "RFC 6455 5.4";
const FAILS: &str = "The peer fails the connection with code 1002.";
const NOTHING_TO_CONTINUE: &str =
    "The peer fails the connection with code 1002, because there is no message to continue.";
const PARTS: [&str; 5] = ["part one, ", "part two, ", "part three, ", "part four, ", "part five"];
/// How long the script of the last two cases pauses between fragments.
const PAUSE: Duration = Duration::from_secs(1);

fn number(case: u16) -> Number {
    Number::pair(5, case)
}

fn first(payload: &str) -> Frame {
    Frame::new(TEXT, payload).unfinished()
}

fn middle(payload: &str) -> Frame {
    Frame::new(CONTINUATION, payload).unfinished()
}

fn last(payload: &str) -> Frame {
    Frame::new(CONTINUATION, payload)
}

/// A control frame in two fragments.
fn control(case: u16, opcode: u8, name: &str) -> Case {
    let frames = [Frame::new(opcode, PARTS[0]).unfinished(), last(PARTS[1])];
    failing(number(case), "RFC 6455 5.5", vec![at_once(frames)], PROTOCOL_ERROR)
        .says(format!("Sends a {name} in two fragments."), FAILS)
}

/// A message in two fragments.
fn two(case: u16, chop: Chop) -> Case {
    let script = vec![chopped([first(PARTS[0]), last(PARTS[1])], chop)];
    answered(number(case), CLAUSE, script, vec![text(&*PARTS[..2].concat())]).says(
        format!("Sends a text message in two fragments{}.", cut(chop)),
        "The message comes back, and the connection is closed with code 1000.",
    )
}

/// The same with a ping between them.
fn two_with_ping(case: u16, chop: Chop) -> Case {
    let frames = [first(PARTS[0]), Frame::new(PING, "between"), last(PARTS[1])];
    let answers = vec![Expected::Pong(b"between".to_vec()), text(&*PARTS[..2].concat())];
    answered(number(case), CLAUSE, vec![chopped(frames, chop)], answers).says(
        format!("Sends a text message in two fragments with a ping between them{}.", cut(chop)),
        "A pong comes back, then the message, and the connection is closed with code 1000.",
    )
}

/// A continuation frame with nothing to continue, and then a message.
fn orphan(case: u16, frame: Frame, chop: Chop) -> Case {
    let (with, frames) = match frame.is_final {
        true => ("with", [frame, Frame::new(TEXT, "a whole message")]),
        false => ("without", [frame, Frame::new(TEXT, "a whole message")]),
    };
    failing(number(case), CLAUSE, vec![chopped(frames, chop)], PROTOCOL_ERROR).says(
        format!(
            "Sends a continuation frame {with} FIN outside any message, then a text message{}.",
            cut(chop)
        ),
        NOTHING_TO_CONTINUE,
    )
}

/// Twice a continuation frame with nothing to continue, and then a message in two fragments.
fn orphans(case: u16, frame: Frame) -> Case {
    let with = if frame.is_final { "with" } else { "without" };
    let frames: Vec<Frame> =
        (0..2).flat_map(|_| [frame.clone(), first(PARTS[1]), last(PARTS[2])]).collect();
    failing(number(case), CLAUSE, vec![at_once(frames)], PROTOCOL_ERROR).says(
        format!(
            "Sends twice: a continuation frame {with} FIN outside any message, then a text message in \
             two fragments."
        ),
        NOTHING_TO_CONTINUE,
    )
}

/// A message in five fragments with pings between them, and a pause in the middle.
fn five_with_pause(case: u16, chop: Chop) -> Case {
    let ping = |payload| Frame::new(PING, payload);
    let [one, two, three, four, five] = PARTS;
    let script = vec![
        chopped([first(one), middle(two), ping("ping one")], chop),
        Step::Pause(PAUSE, 'A'),
        chopped([middle(three), middle(four), ping("ping two"), last(five)], chop),
    ];
    let answers = vec![
        Expected::Pong(b"ping one".to_vec()),
        Expected::Silence('A'),
        Expected::Pong(b"ping two".to_vec()),
        text(&*PARTS.concat()),
    ];
    let late = [&[Expected::Silence('A')][..], &answers[..1], &answers[2..]].concat();
    answered(number(case), CLAUSE, script, answers).or(Behavior::NonStrict, late).says(
        format!(
            "Sends two fragments of a text message and a ping, pauses for a second, and sends two \
             fragments, a ping and the last fragment{}.",
            cut(chop)
        ),
        "The first ping is answered before the message is complete. Then come the second pong and the \
         message, and the connection is closed with code 1000.",
    )
}

pub(super) fn cases() -> Vec<Case> {
    let unasked = "nothing to continue";
    // The echo of what came before may be lost when the connection fails.
    let after = [first(PARTS[0]), last(PARTS[1]), middle(PARTS[2]), Frame::new(TEXT, PARTS[3])];
    let after = Case {
        outcomes: vec![(Behavior::Ok, vec![text(&*PARTS[..2].concat())])],
        ..failing(number(15), CLAUSE, vec![at_once(after)], PROTOCOL_ERROR)
    };
    let twice = [first(PARTS[0]), Frame::new(TEXT, PARTS[1])];
    vec![
        control(1, PING, "ping"),
        control(2, PONG, "pong"),
        two(3, Chop::Whole),
        two(4, Chop::Frames),
        two(5, Chop::Bytes(1)),
        two_with_ping(6, Chop::Whole),
        two_with_ping(7, Chop::Frames),
        two_with_ping(8, Chop::Bytes(1)),
        orphan(9, last(unasked), Chop::Whole),
        orphan(10, last(unasked), Chop::Frames),
        orphan(11, last(unasked), Chop::Bytes(1)),
        orphan(12, middle(unasked), Chop::Whole),
        orphan(13, middle(unasked), Chop::Frames),
        orphan(14, middle(unasked), Chop::Bytes(1)),
        after.or(Behavior::NonStrict, Vec::new()).says(
            "Sends a text message in two fragments, then a continuation frame without FIN outside any \
             message, then a text message.",
            "The first message comes back. Then the peer fails the connection with code 1002, because \
             there is no message to continue.",
        ),
        orphans(16, middle(PARTS[0])),
        orphans(17, last(PARTS[0])),
        failing(number(18), CLAUSE, vec![at_once(twice)], PROTOCOL_ERROR).says(
            "Sends a text message in two fragments, of which the second has the opcode of text too.",
            "The peer fails the connection with code 1002, because all fragments after the first are \
             continuation frames.",
        ),
        five_with_pause(19, Chop::Whole),
        five_with_pause(20, Chop::Frames),
    ]
}
