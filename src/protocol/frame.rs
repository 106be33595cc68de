//! The header of a frame (RFC 6455 section 5.2), as a client sends it.
//!
//! A header is judged octet by octet: what is wrong in its first octet is found before the second
//! has come.

use super::mask::Mask;
use super::violation::Violation;

/// The FIN bit, in the first octet.
pub const FINAL: u8 = 0x80;
/// RSV1, RSV2 and RSV3, in the first octet.
const RESERVED: u8 = 0x70;
/// The mask bit, in the second octet.
pub const MASKED: u8 = 0x80;
/// The payload of a control frame, at most, in octets (section 5.5).
pub const CONTROL_PAYLOAD_MAX: u64 = 125;
/// Octets of a masking key.
pub const KEY: usize = 4;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Opcode {
    /// A further fragment of a message.
    Continuation = 0x0,
    /// The first or only fragment of a text.
    Text = 0x1,
    /// The first or only fragment of a binary message.
    Binary = 0x2,
    /// The close handshake.
    Close = 0x8,
    /// A question that a pong answers.
    Ping = 0x9,
    /// The answer to a ping, or unasked for.
    Pong = 0xa,
}

impl Opcode {
    #[inline]
    fn from_bits(bits: u8) -> Option<Opcode> {
        match bits {
            0x0 => Some(Opcode::Continuation),
            0x1 => Some(Opcode::Text),
            0x2 => Some(Opcode::Binary),
            0x8 => Some(Opcode::Close),
            0x9 => Some(Opcode::Ping),
            0xa => Some(Opcode::Pong),
            _ => None,
        }
    }

    #[inline]
    fn is_control(self) -> bool {
        self as u8 & 0x8 != 0
    }
}

/// A whole header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Whether the frame ends its message.
    pub is_final: bool,
    /// What the frame is.
    pub opcode: Opcode,
    /// Octets of payload.
    pub payload: u64,
    /// The masking key.
    pub mask: Mask,
    /// Octets of the header itself, the key included: 6, 8 or 14.
    pub octets: usize,
}

impl Header {
    /// Reads a header from the beginning of `unread`. `None`: right as far as it goes, but not
    /// whole.
    #[inline]
    pub fn parse(unread: &[u8]) -> Result<Option<Header>, Violation> {
        let &[first, ref rest @ ..] = unread else { return Ok(None) };
        if first & RESERVED != 0 {
            return Err(Violation::ReservedBit);
        }
        let Some(opcode) = Opcode::from_bits(first & 0x0f) else {
            return Err(Violation::ReservedOpcode);
        };
        let is_final = first & FINAL != 0;
        if opcode.is_control() && !is_final {
            return Err(Violation::ControlFragmented);
        }
        let &[second, ref rest @ ..] = rest else { return Ok(None) };
        // Section 5.1: the server must fail the connection on a frame that is not masked.
        if second & MASKED == 0 {
            return Err(Violation::Unmasked);
        }
        let (payload, extension) = match second & 0x7f {
            126 if opcode.is_control() => return Err(Violation::ControlTooLong),
            127 if opcode.is_control() => return Err(Violation::ControlTooLong),
            126 => {
                let Some(length) = rest.first_chunk() else { return Ok(None) };
                let payload = u64::from(u16::from_be_bytes(*length));
                if payload < 126 {
                    return Err(Violation::LengthEncoding);
                }
                (payload, 2)
            }
            127 => {
                let Some(length) = rest.first_chunk() else { return Ok(None) };
                let payload = u64::from_be_bytes(*length);
                if payload <= u64::from(u16::MAX) || payload >> 63 != 0 {
                    return Err(Violation::LengthEncoding);
                }
                (payload, 8)
            }
            short => (u64::from(short), 0),
        };
        let Some(&key) = rest[extension..].first_chunk::<KEY>() else { return Ok(None) };
        let octets = 2 + extension + KEY;
        Ok(Some(Header { is_final, opcode, payload, mask: Mask::new(key), octets }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_lengths() {
        let header = |octets: &[u8]| Header::parse(octets).expect("no violation").expect("whole");
        let short = header(b"\x81\x90abcd");
        assert_eq!((short.opcode, short.payload, short.octets), (Opcode::Text, 16, 6));
        assert!(short.is_final);
        let middle = header(b"\x02\xfe\x01\x00abcd");
        assert_eq!((middle.opcode, middle.payload, middle.octets), (Opcode::Binary, 256, 8));
        assert!(!middle.is_final);
        let long = header(b"\x80\xff\0\0\0\0\0\x01\0\0abcd");
        assert_eq!((long.opcode, long.payload, long.octets), (Opcode::Continuation, 65536, 14));
    }

    #[test]
    fn every_beginning_of_a_header_is_partial() {
        for whole in
            [&b"\x81\x90abcd"[..], b"\x81\xfe\0\x7eabcd", b"\x82\xff\0\0\0\0\0\x01\0\0abcd"]
        {
            for length in 0..whole.len() {
                assert_eq!(Header::parse(&whole[..length]), Ok(None));
            }
            assert!(Header::parse(whole).expect("no violation").is_some());
        }
    }

    #[test]
    fn violations_are_found_at_the_octet_that_breaks_the_rule() {
        let cases: &[(&[u8], Violation)] = &[
            (b"\xc1", Violation::ReservedBit),
            (b"\xa1", Violation::ReservedBit),
            (b"\x91", Violation::ReservedBit),
            (b"\x83", Violation::ReservedOpcode),
            (b"\x8f", Violation::ReservedOpcode),
            (b"\x09", Violation::ControlFragmented),
            (b"\x81\x05", Violation::Unmasked),
            (b"\x89\xfe", Violation::ControlTooLong),
            (b"\x88\xff", Violation::ControlTooLong),
            (b"\x81\xfe\0\x7d", Violation::LengthEncoding),
            (b"\x81\xff\0\0\0\0\0\0\xff\xff", Violation::LengthEncoding),
            (b"\x81\xff\x80\0\0\0\0\0\0\0", Violation::LengthEncoding),
        ];
        for &(octets, violation) in cases {
            assert_eq!(Header::parse(octets), Err(violation), "{octets:x?}");
            let before = &octets[..octets.len() - 1];
            assert_eq!(Header::parse(before), Ok(None), "before {octets:x?}");
        }
    }
}
