//! Section 23: how a connection ends in every state: a close frame (group 1), the end of what this side
//! sends (group 2), a reset, after which the server serves the next connection (group 3), and what the RFC
//! recommends: that the peer sends one close frame and ends the TCP connection in order (group 4).

use super::super::case::{BINARY, CLOSE, CONTINUATION, INVALID_PAYLOAD, NORMAL, PING, PONG};
use super::super::case::{Header, PROTOCOL_ERROR, TEXT, Weight};
use super::*;

const HELLO: &str = "Hello, end";
const FRAMES: &str = "RFC 6455 5.5.1";
const FAILS: &str = "RFC 6455 7.1.7";
const ENDED: &str = "RFC 6455 7.1.5";
/// Codes of a peer that closes when it finds that the other side has ended.
const CODES: [u16; 5] = [NORMAL, 1001, PROTOCOL_ERROR, 1007, 1011];
const CLOSED: &str = "The peer answers with a close frame and code 1000, and nothing else.";
const ENDS: &str = "The peer ends the connection.";
const SERVES: &str = "The server opens the next connection, and a message comes back on it.";

fn hello() -> Frame {
    Frame::new(TEXT, HELLO)
}

fn begun(opcode: u8) -> Step {
    at_once([Frame::new(opcode, "begun").unfinished()])
}

fn long() -> Frame {
    Frame::new(BINARY, Payload::Repeated(b"0123456789abcdef", 1 << 20))
}

/// This side closes, and the handshake has to be complete.
fn closing(case: u16, script: Vec<Step>) -> Case {
    let close = Ending::clean().weighing(Weight::CodeCounts);
    let case = answered(Number::triple(23, 1, case), FRAMES, script, Vec::new());
    Case { limit: Limit::Fail(SHORT), close, ..case }
}

/// This side ends what it sends, and the peer the connection. What was sent before may be answered.
fn ending(case: u16, mut script: Vec<Step>, answers: Vec<Expected>) -> Case {
    script.push(Step::End);
    let close = Ending { codes: CODES.into(), ..Ending::failed_with(NORMAL) };
    let case = failing(Number::triple(23, 2, case), ENDED, script, NORMAL);
    let case = Case { close: close.weighing(Weight::EndCounts), ..case };
    if answers.is_empty() { case } else { case.or(Behavior::Ok, answers) }
}

fn reset(case: u16, earlier: Vec<Step>) -> Case {
    let script = vec![at_once([hello()])];
    let case = answered(Number::triple(23, 3, case), FAILS, script, vec![text(HELLO)]);
    // A reset right after the opening has an empty script before it.
    let earlier = if earlier.is_empty() { vec![Step::Reset] } else { earlier };
    Case { earlier, ..case }
}

fn closes() -> Vec<Case> {
    let normal = || Step::Close(NORMAL.to_be_bytes().into());
    // RFC 6455 section 5.5.1: the answer has the same code "typically".
    let unfinished = |case, opcode| {
        let case = closing(case, vec![begun(opcode), normal()]);
        Case { close: Ending { codes: vec![NORMAL, PROTOCOL_ERROR], ..case.close.clone() }, ..case }
    };
    let behind = |case, frame: Frame| closing(case, vec![normal(), at_once([frame])]);
    let joined = |case, frame: Frame| behind(case, frame).sent(Sends::Joined);
    vec![
        closing(1, vec![normal()]).says("Sends a close frame and nothing else.", CLOSED),
        unfinished(2, TEXT)
            .says("Sends the first fragment of a text message and a close frame.", CLOSED),
        unfinished(3, BINARY)
            .says("Sends the first fragment of a binary message and a close frame.", CLOSED),
        closing(4, vec![at_once([Frame::new(PONG, "")]), normal()])
            .says("Sends a pong that nobody asked for and a close frame.", CLOSED),
        joined(5, hello()).says("Sends a text message in one segment with a close frame.", CLOSED),
        joined(6, Frame::new(PING, ""))
            .says("Sends a ping in one segment with a close frame.", CLOSED),
        joined(7, Frame::new(CLOSE, PROTOCOL_ERROR.to_be_bytes().to_vec())).says(
            "Sends a second close frame, with code 1002, in one segment with the first.",
            CLOSED,
        ),
        joined(8, Frame::new(CONTINUATION, "orphan")).says(
            "Sends a close frame, and in one segment a continuation frame outside any message.",
            CLOSED,
        ),
        joined(9, Frame::new(15, "a").reserved(7))
            .says("Sends a close frame, and in one segment a frame that breaks the RFC.", CLOSED),
        behind(10, long()).says("Sends a binary message of 1 MiB after a close frame.", CLOSED),
        closing(11, vec![Step::Close(Vec::new()), Step::End])
            .says("Sends a close frame without a code, and ends what it sends.", CLOSED),
        closing(12, vec![normal(), Step::End])
            .says("Sends a close frame, and ends what it sends.", CLOSED),
    ]
}

fn ends() -> Vec<Case> {
    let frame = Frame::new(BINARY, Payload::Repeated(b"0123456789", 1000));
    let long_message = Expected::Message(Form::Binary, long().payload);
    let echoed = "The peer may send the message back, and ends the connection.";
    vec![
        ending(1, Vec::new(), Vec::new()).says("Ends what it sends, without a frame.", ENDS),
        ending(2, vec![at_once([hello()])], vec![text(HELLO)])
            .says("Sends a text message and ends what it sends.", echoed),
        ending(3, vec![begun(TEXT)], Vec::new())
            .says("Sends the first fragment of a text message and ends what it sends.", ENDS),
        ending(4, vec![Step::Begin(frame.clone(), 0)], Vec::new())
            .says("Sends the header of a frame of 1,000 bytes and ends what it sends.", ENDS),
        ending(5, vec![Step::Begin(frame, 500)], Vec::new())
            .says("Sends half of a frame of 1,000 bytes and ends what it sends.", ENDS),
        ending(6, vec![at_once([long()])], vec![long_message])
            .says("Sends a binary message of 1 MiB and ends what it sends.", echoed),
    ]
}

fn resets() -> Vec<Case> {
    let normal = Step::Close(NORMAL.to_be_bytes().into());
    let many: Vec<Frame> = (0..4).map(|_| long()).collect();
    vec![
        reset(1, Vec::new()).says("Resets a connection that was just opened.", SERVES),
        reset(2, vec![at_once([hello()])])
            .says("Resets a connection after a text message.", SERVES),
        reset(3, vec![begun(TEXT)])
            .says("Resets a connection after the first fragment of a text message.", SERVES),
        reset(4, vec![Step::Begin(long(), 1000)])
            .says("Resets a connection within a frame of 1 MiB.", SERVES),
        reset(5, vec![at_once(many)]).says(
            "Resets a connection after four messages of 1 MiB whose echoes are on their way.",
            SERVES,
        ),
        reset(6, vec![normal]).says("Resets a connection after a close frame.", SERVES),
    ]
}

/// Ends that have to be right and should be in order.
fn forms() -> Vec<Case> {
    let number = |case| Number::triple(23, 4, case);
    let weighed =
        |case: Case| Case { close: case.close.clone().weighing(Weight::FormCounts), ..case };
    let closed = |case, script: Vec<Step>, answers: Vec<Expected>| {
        weighed(answered(number(case), FRAMES, script, answers))
    };
    let fails = |case, frame: Frame, code| {
        weighed(failing(number(case), FAILS, vec![at_once([frame])], code))
    };
    let normal = || Step::Close(NORMAL.to_be_bytes().into());
    let one = "The peer answers with one close frame, and the TCP connection ends without a reset.";
    let failed = |code: u16| {
        format!(
            "The peer fails the connection. It should send a close frame, with code {code}, before it \
             ends the connection."
        )
    };
    let (protocol, text_code) = (PROTOCOL_ERROR, INVALID_PAYLOAD);
    let unmasked = hello().with(Header::MaskedWrongly);
    let control = Frame::new(PING, Payload::Repeated(b"*", 126));
    vec![
        closed(1, vec![normal()], Vec::new()).says("Sends a close frame.", one),
        closed(2, vec![at_once([hello()])], vec![text(HELLO)])
            .says("Sends a text message, and a close frame when it has come back.", one),
        fails(3, Frame::new(3, ""), protocol)
            .says("Sends a frame with a reserved opcode.", failed(protocol)),
        fails(4, hello().reserved(2), protocol)
            .says("Sends a text message with RSV2.", failed(protocol)),
        fails(5, Frame::new(CONTINUATION, "orphan"), protocol)
            .says("Sends a continuation frame outside any message.", failed(protocol)),
        fails(6, Frame::new(PING, "").unfinished(), protocol)
            .says("Sends a ping without FIN.", failed(protocol)),
        fails(7, control, protocol).says("Sends a ping of 126 bytes.", failed(protocol)),
        fails(8, unmasked, protocol).says(
            "Sends a text message that is masked if this side is a server, and not if it is a client.",
            failed(protocol),
        ),
        fails(9, Frame::new(TEXT, &b"\xff"[..]), text_code)
            .says("Sends text that is not UTF-8.", failed(text_code)),
    ]
}

pub(super) fn cases() -> Vec<Case> {
    [closes(), ends(), resets(), forms()].concat()
}
