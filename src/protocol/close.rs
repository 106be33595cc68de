//! Close frames: their codes, and which of them a peer may send (RFC 6455 section 7.4).

use super::frame::{FINAL, Opcode};
use super::utf8;
use super::violation::Violation;

/// The status code of a close frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CloseCode(u16);

impl CloseCode {
    /// The connection has done what it was for.
    pub const NORMAL: CloseCode = CloseCode(1000);
    /// The endpoint goes away: the server stops.
    pub const GOING_AWAY: CloseCode = CloseCode(1001);
    /// The peer broke the protocol.
    pub const PROTOCOL_ERROR: CloseCode = CloseCode(1002);
    /// Data did not fit the type of its message: text that is not UTF-8.
    pub const INVALID_DATA: CloseCode = CloseCode(1007);
    /// The message is too big for this endpoint.
    pub const MESSAGE_TOO_BIG: CloseCode = CloseCode(1009);

    /// The code as a number.
    pub fn value(self) -> u16 {
        self.0
    }

    /// The code `value`, if an endpoint may send it: the codes registered for use in a frame
    /// (1000 to 1003 and 1007 to 1014; 1004 is reserved, 1005, 1006 and 1015 never travel), and
    /// the ranges for libraries and applications, 3000 to 4999 (section 7.4.2).
    pub fn sendable(value: u16) -> Option<CloseCode> {
        matches!(value, 1000..=1003 | 1007..=1014 | 3000..=4999).then_some(CloseCode(value))
    }
}

/// Checks the payload of a peer's close frame. `None` is a close without a code, which is allowed
/// (section 5.5.1).
pub fn check(payload: &[u8]) -> Result<Option<CloseCode>, Violation> {
    match payload {
        [] => Ok(None),
        [_] => Err(Violation::CloseTruncated),
        [high, low, reason @ ..] => {
            let code = CloseCode::sendable(u16::from_be_bytes([*high, *low]))
                .ok_or(Violation::CloseCodeInvalid)?;
            if utf8::is_valid(reason) { Ok(Some(code)) } else { Err(Violation::CloseReasonNotUtf8) }
        }
    }
}

/// A server's close frame, unmasked, with `reason` as its text.
///
/// # Panics
///
/// When `reason` is longer than the 123 octets that a control frame has left for it.
pub fn frame(code: CloseCode, reason: &str) -> Vec<u8> {
    assert!(reason.len() <= 123, "a close reason of at most 123 octets");
    let mut frame = vec![FINAL | Opcode::Close as u8, 2 + reason.len() as u8];
    frame.extend_from_slice(&code.value().to_be_bytes());
    frame.extend_from_slice(reason.as_bytes());
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_that_may_be_sent() {
        let sendable: Vec<u16> =
            (0..=u16::MAX).filter(|&value| CloseCode::sendable(value).is_some()).collect();
        let expected: Vec<u16> =
            [1000, 1001, 1002, 1003].into_iter().chain(1007..=1014).chain(3000..=4999).collect();
        assert_eq!(sendable, expected);
    }

    #[test]
    fn payloads_of_close_frames() {
        assert_eq!(check(b""), Ok(None));
        assert_eq!(check(&[3]), Err(Violation::CloseTruncated));
        assert_eq!(check(&[3, 232]), Ok(Some(CloseCode::NORMAL)));
        assert_eq!(check("\u{3}\u{1}".as_bytes()), Err(Violation::CloseCodeInvalid));
        assert_eq!(check(&[3, 232, b'o', b'k']), Ok(Some(CloseCode::NORMAL)));
        assert_eq!(check(&[3, 232, 0xc3]), Err(Violation::CloseReasonNotUtf8));
    }

    #[test]
    fn a_close_frame_on_the_wire() {
        assert_eq!(frame(CloseCode::GOING_AWAY, "bye"), b"\x88\x05\x03\xe9bye");
    }
}
