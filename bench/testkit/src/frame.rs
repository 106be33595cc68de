//! Frames (RFC 6455 section 5.2), valid or not: builds those of a client and of a server, and parses a
//! server's.

/// FIN and the opcode of a text frame; those of the other kinds follow.
pub const TEXT: u8 = 0x81;
/// FIN and the opcode of a binary frame.
pub const BINARY: u8 = 0x82;
/// FIN and the opcode of a close frame.
pub const CLOSE: u8 = 0x88;
/// FIN and the opcode of a ping.
pub const PING: u8 = 0x89;
/// FIN and the opcode of a pong.
pub const PONG: u8 = 0x8A;
/// FIN alone: the first byte of a message's last fragment.
pub const FIN: u8 = 0x80;
/// RSV1: the message is compressed (RFC 7692 section 6).
pub const RSV1: u8 = 0x40;

/// The masking key of [`frame`].
pub const KEY: [u8; 4] = [0x37, 0xFA, 0x21, 0x3D];

/// A frame, unmasked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// FIN, the reserved bits and the opcode.
    pub first: u8,
    /// Its payload, whole.
    pub payload: Vec<u8>,
}

impl Frame {
    /// The code of a close frame that has one.
    pub fn close_code(&self) -> Option<u16> {
        let code = self.payload.first_chunk().map(|code| u16::from_be_bytes(*code));
        code.filter(|_| self.first == CLOSE)
    }
}

/// The masked frame that a client sends, with [`KEY`].
pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    masked(first, payload, KEY)
}

/// The masked frame that a client sends, with this key.
pub fn masked(first: u8, payload: &[u8], key: [u8; 4]) -> Vec<u8> {
    let mut frame = header(first, payload.len() as u64, Some(key));
    frame.extend(payload.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key));
    frame
}

/// The unmasked frame that the server sends.
pub fn reply(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = header(first, payload.len() as u64, None);
    frame.extend(payload);
    frame
}

/// The header of a frame, with the length in its shortest form.
pub fn header(first: u8, length: u64, key: Option<[u8; 4]>) -> Vec<u8> {
    let mask = if key.is_some() { 0x80 } else { 0 };
    let mut header = vec![first];
    match length {
        0..126 => header.push(mask | length as u8),
        126..0x1_0000 => {
            header.push(mask | 126);
            header.extend((length as u16).to_be_bytes());
        }
        _ => {
            header.push(mask | 127);
            header.extend(length.to_be_bytes());
        }
    }
    header.extend(key.into_iter().flatten());
    header
}

/// Splits what a server sent into its frames, all of which are whole and unmasked.
pub fn parse(mut bytes: &[u8]) -> Vec<Frame> {
    let mut frames = Vec::new();
    while let [first, second, rest @ ..] = bytes {
        let extension = match second {
            0..126 => 0,
            126 => 2,
            127 => 8,
            _ => panic!("a server does not mask: {bytes:x?}"),
        };
        let (extension, rest) = rest.split_at(extension);
        let length = match extension {
            [] => usize::from(*second),
            _ => extension.iter().fold(0, |length, &byte| length << 8 | usize::from(byte)),
        };
        let (payload, rest) = rest.split_at(length);
        frames.push(Frame { first: *first, payload: payload.to_vec() });
        bytes = rest;
    }
    assert_eq!(bytes, b"", "the last frame is whole");
    frames
}

#[cfg(test)]
mod tests {
    use super::{BINARY, CLOSE, Frame, TEXT, frame, parse, reply};

    /// RFC 6455 section 5.7.
    #[test]
    fn frames_are_those_of_the_standard() {
        assert_eq!(frame(TEXT, b"Hello"), b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58");
        assert_eq!(reply(TEXT, b"Hello"), b"\x81\x05Hello");
        assert_eq!(reply(BINARY, &[7; 256])[..4], [0x82, 0x7e, 1, 0]);
        assert_eq!(reply(BINARY, &[7; 65536])[..10], [0x82, 0x7f, 0, 0, 0, 0, 0, 1, 0, 0]);
    }

    #[test]
    fn what_is_built_is_read() {
        let payloads = [0, 1, 125, 126, 65535, 65536].map(|length| vec![7; length]);
        let bytes: Vec<u8> = payloads.iter().flat_map(|payload| reply(BINARY, payload)).collect();
        let frames: Vec<Vec<u8>> = parse(&bytes).into_iter().map(|frame| frame.payload).collect();
        assert_eq!(frames, payloads);
        let close = Frame { first: CLOSE, payload: b"\x03\xe8bye".to_vec() };
        assert_eq!(close.close_code(), Some(1000));
    }
}
