//! Close frames: what one may hold, and how one is written (RFC 6455 section 5.5.1).

use super::close_code::CloseCode;
use super::frame::{FINAL, Opcode};
use super::utf8;
use super::violation::Violation;

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

/// A server's close frame, unmasked, with the text `reason`.
///
/// # Panics
///
/// When `reason` is longer than the 123 bytes that a control frame leaves for it.
pub fn frame(code: CloseCode, reason: &str) -> Vec<u8> {
    assert!(reason.len() <= 123, "a close reason has at most 123 bytes");
    let mut frame = vec![FINAL | Opcode::Close as u8, 2 + reason.len() as u8];
    frame.extend_from_slice(&code.value().to_be_bytes());
    frame.extend_from_slice(reason.as_bytes());
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

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
