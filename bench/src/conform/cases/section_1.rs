//! Section 1: unfragmented messages of every form of length.

use super::*;

/// Lengths around where their encoding changes (RFC 6455 section 5.2).
const LENGTHS: [usize; 7] = [0, 125, 126, 127, 128, 65535, 65536];
/// The size of the sends of the last case of each group.
const CHOP_BYTES: usize = 997;

pub(super) fn cases() -> Vec<Case> {
    let group = |group, form: Form, byte: &'static [u8]| {
        let lengths = LENGTHS.map(|length| (length, Chop::Whole));
        let chopped = [(65536, Chop::Bytes(CHOP_BYTES))];
        (1..).zip(lengths.into_iter().chain(chopped)).map(move |(case, (length, chop))| {
            let payload = Payload::Repeated(byte, length);
            let frame = Frame::new(form.opcode() as u8, payload.clone());
            let (number, script) =
                (Number::triple(1, group, case), vec![super::chopped([frame], chop)]);
            let echo = Expected::Message(form, payload);
            let limit = if length < 65535 { SHORT } else { LONG };
            answered(number, "RFC 6455 5.6", script, vec![echo]).within(limit).says(
                format!("Sends a {form} message of {length} bytes in one frame{}.", cut(chop)),
                "The message comes back, and the connection is closed with code 1000.",
            )
        })
    };
    group(1, Form::Text, b"*").chain(group(2, Form::Binary, b"\xfe")).collect()
}
