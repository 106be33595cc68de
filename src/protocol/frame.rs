//! The header of a frame (RFC 6455 section 5.2), as a client sends it and as a server does.
//!
//! A header is judged byte by byte: a violation in its first byte is found before the second has
//! arrived.

use super::mask::{self, Mask};
use super::violation::Violation;

/// The FIN bit, in the first byte.
pub const FINAL: u8 = 0x80;
/// RSV1, RSV2 and RSV3, in the first byte.
const RESERVED: u8 = 0x70;
/// RSV1, which marks a compressed message (RFC 7692 section 6).
pub const COMPRESSED: u8 = 0x40;
/// The mask bit, in the second byte.
pub const MASKED: u8 = 0x80;
/// The longest payload of a control frame, in bytes (section 5.5).
pub const CONTROL_PAYLOAD_MAX: u64 = 125;
/// The length of a masking key, in bytes.
pub const KEY: usize = 4;

/// The kind of a frame.
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
    /// A request for a pong.
    Ping = 0x9,
    /// The answer to a ping, or sent unasked.
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

    #[inline]
    fn begins_message(self) -> bool {
        matches!(self, Opcode::Text | Opcode::Binary)
    }
}

/// Who sent a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sender {
    Client,
    Server,
}

/// A whole header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Whether the frame ends its message.
    pub is_final: bool,
    /// Whether the frame begins a compressed message.
    pub is_compressed: bool,
    /// What the frame is.
    pub opcode: Opcode,
    /// Length of the payload, in bytes.
    pub payload_length: u64,
    /// The masking key; in a server's frame one that changes nothing.
    pub mask: Mask,
    /// Length of the header itself, including the key, in bytes: 6, 8 or 14 from a client, 2, 4 or 10
    /// from a server.
    pub header_length: usize,
}

impl Header {
    /// Parses a client's header at the beginning of `unread`; `Ok(None)` while it is valid but not whole.
    /// `extension_bits` are the reserved bits that an extension gives a meaning: [`COMPRESSED`] or none.
    #[inline]
    pub fn parse(unread: &[u8], extension_bits: u8) -> Result<Option<Header>, Violation> {
        Header::parse_from(Sender::Client, unread, extension_bits)
    }

    /// Parses a server's header at the beginning of `unread`, in the same way.
    #[inline]
    pub fn parse_reply(unread: &[u8], extension_bits: u8) -> Result<Option<Header>, Violation> {
        Header::parse_from(Sender::Server, unread, extension_bits)
    }

    #[inline]
    fn parse_from(
        sender: Sender,
        unread: &[u8],
        extension_bits: u8,
    ) -> Result<Option<Header>, Violation> {
        let &[first, ref rest @ ..] = unread else { return Ok(None) };
        if first & RESERVED & !extension_bits != 0 {
            return Err(Violation::ReservedBit);
        }
        let Some(opcode) = Opcode::from_bits(first & 0x0f) else {
            return Err(Violation::ReservedOpcode);
        };
        let is_compressed = first & COMPRESSED != 0;
        // RFC 7692 section 6: only the first fragment of a message has the bit.
        if is_compressed && !opcode.begins_message() {
            return Err(Violation::CompressedBitMisplaced);
        }
        let is_final = first & FINAL != 0;
        if opcode.is_control() && !is_final {
            return Err(Violation::ControlFragmented);
        }
        let &[second, ref rest @ ..] = rest else { return Ok(None) };
        // Section 5.1: a server must fail the connection on an unmasked frame, and a client on a masked
        // one.
        match (sender, second & MASKED != 0) {
            (Sender::Client, false) => return Err(Violation::Unmasked),
            (Sender::Server, true) => return Err(Violation::Masked),
            (Sender::Client, true) | (Sender::Server, false) => {}
        }
        let Some((payload_length, extension)) = payload_length(second, rest, opcode)? else {
            return Ok(None);
        };
        let (mask, key_length) = match sender {
            Sender::Server => (Mask::default(), 0),
            Sender::Client => {
                let Some(&key) = rest[extension..].first_chunk::<KEY>() else { return Ok(None) };
                (Mask::new(key), KEY)
            }
        };
        let header_length = 2 + extension + key_length;
        Ok(Some(Header { is_final, is_compressed, opcode, payload_length, mask, header_length }))
    }
}

/// The payload's length, and how many of the bytes after the first two extend it: 0, 2 or 8. `Ok(None)`
/// while these are not whole.
#[inline]
fn payload_length(
    second: u8,
    rest: &[u8],
    opcode: Opcode,
) -> Result<Option<(u64, usize)>, Violation> {
    match second & 0x7f {
        126 | 127 if opcode.is_control() => Err(Violation::ControlTooLong),
        126 => {
            let Some(length) = rest.first_chunk() else { return Ok(None) };
            let payload = u64::from(u16::from_be_bytes(*length));
            if payload < 126 { Err(Violation::LengthEncoding) } else { Ok(Some((payload, 2))) }
        }
        127 => {
            let Some(length) = rest.first_chunk() else { return Ok(None) };
            let payload = u64::from_be_bytes(*length);
            if payload <= u64::from(u16::MAX) || payload >> 63 != 0 {
                return Err(Violation::LengthEncoding);
            }
            Ok(Some((payload, 8)))
        }
        short => Ok(Some((u64::from(short), 0))),
    }
}

/// Appends a client's frame to `output`.
pub fn append(output: &mut Vec<u8>, first: u8, payload: &[u8], key: [u8; KEY]) {
    let (mut header, length) = reply_header(first, payload.len());
    header[1] |= MASKED;
    output.extend_from_slice(&header[..length]);
    output.extend_from_slice(&key);
    let start = output.len();
    output.extend_from_slice(payload);
    // Masking is its own inverse.
    mask::unmask(&mut output[start..], 0, Mask::new(key));
}

/// The header of a server's frame with the given first byte and a payload of `payload` bytes, and the
/// header's length: 2, 4 or 10 bytes.
pub fn reply_header(first: u8, payload: usize) -> ([u8; 10], usize) {
    let mut header = [first, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let length = (payload as u64).to_be_bytes();
    match payload {
        0..=125 => {
            header[1] = payload as u8;
            (header, 2)
        }
        126..=0xffff => {
            header[1] = 126;
            header[2..4].copy_from_slice(&length[6..]);
            (header, 4)
        }
        _ => {
            header[1] = 127;
            header[2..].copy_from_slice(&length);
            (header, 10)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_of_each_length_says_what_it_was_made_of() {
        for length in [0, 1, 125, 126, 0xffff, 0x1_0000] {
            let payload: Vec<u8> = (0..length).map(|at| at as u8).collect();
            let mut frame = b"before".to_vec();
            append(&mut frame, 0x82, &payload, [1, 2, 3, 4]);
            let frame = &mut frame[6..];
            let header = Header::parse(frame, 0).expect("no violation").expect("whole");
            assert_eq!((header.opcode, header.payload_length), (Opcode::Binary, length as u64));
            let masked = &mut frame[header.header_length..];
            mask::unmask(masked, 0, header.mask);
            assert_eq!(masked, payload);
            let (reply, header_length) = reply_header(0x82, payload.len());
            for end in 0..header_length {
                assert_eq!(Header::parse_reply(&reply[..end], 0), Ok(None));
            }
            let header = Header::parse_reply(&reply[..header_length], 0).expect("no violation");
            let header = header.expect("whole");
            assert_eq!(
                (header.payload_length, header.header_length),
                (length as u64, header_length)
            );
        }
        assert_eq!(Header::parse_reply(b"\x81\x85abcd", 0), Err(Violation::Masked));
    }

    #[test]
    fn the_three_lengths() {
        let header = |bytes: &[u8]| Header::parse(bytes, 0).expect("no violation").expect("whole");
        let short = header(b"\x81\x90abcd");
        assert_eq!(
            (short.opcode, short.payload_length, short.header_length),
            (Opcode::Text, 16, 6)
        );
        assert!(short.is_final);
        let middle = header(b"\x02\xfe\x01\x00abcd");
        assert_eq!(
            (middle.opcode, middle.payload_length, middle.header_length),
            (Opcode::Binary, 256, 8)
        );
        assert!(!middle.is_final);
        let long = header(b"\x80\xff\0\0\0\0\0\x01\0\0abcd");
        assert_eq!(
            (long.opcode, long.payload_length, long.header_length),
            (Opcode::Continuation, 65536, 14)
        );
    }

    #[test]
    fn headers_of_replies() {
        let header = |payload| {
            let (header, length) = reply_header(0xc1, payload);
            header[..length].to_vec()
        };
        assert_eq!(header(0), b"\xc1\0");
        assert_eq!(header(125), b"\xc1\x7d");
        assert_eq!(header(126), b"\xc1\x7e\0\x7e");
        assert_eq!(header(0xffff), b"\xc1\x7e\xff\xff");
        assert_eq!(header(0x10000), b"\xc1\x7f\0\0\0\0\0\x01\0\0");
    }

    #[test]
    fn every_beginning_of_a_header_is_partial() {
        for whole in
            [&b"\x81\x90abcd"[..], b"\x81\xfe\0\x7eabcd", b"\x82\xff\0\0\0\0\0\x01\0\0abcd"]
        {
            for length in 0..whole.len() {
                assert_eq!(Header::parse(&whole[..length], 0), Ok(None));
            }
            assert!(Header::parse(whole, 0).expect("no violation").is_some());
        }
    }

    #[test]
    fn violations_are_found_at_the_byte_that_breaks_the_rule() {
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
        for &(bytes, violation) in cases {
            assert_eq!(Header::parse(bytes, 0), Err(violation), "{bytes:x?}");
            let before = &bytes[..bytes.len() - 1];
            assert_eq!(Header::parse(before, 0), Ok(None), "before {bytes:x?}");
        }
    }

    #[test]
    fn rsv1_is_allowed_on_first_fragments_only_and_only_if_negotiated() {
        for first in 0..=u8::MAX {
            let (plain, agreed) = (Header::parse(&[first], 0), Header::parse(&[first], COMPRESSED));
            if first & COMPRESSED == 0 {
                assert_eq!(plain, agreed, "{first:x}");
                continue;
            }
            assert_eq!(plain, Err(Violation::ReservedBit), "{first:x}");
            let expected = match first & !FINAL {
                0x41 | 0x42 => Ok(None),
                0x40 | 0x48 | 0x49 | 0x4a => Err(Violation::CompressedBitMisplaced),
                0x43..=0x4f => Err(Violation::ReservedOpcode),
                _ => Err(Violation::ReservedBit),
            };
            assert_eq!(agreed, expected, "{first:x}");
        }
        let header = Header::parse(b"\xc1\x80abcd", COMPRESSED).expect("no violation");
        assert!(header.expect("whole").is_compressed);
    }
}
