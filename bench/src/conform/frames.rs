//! Frames as bytes: writes any, valid or not, and reads strictly what the peer sends (RFC 6455
//! section 5.2).
//!
//! This is written apart from the server's own parser on purpose. A mistake in code that both sides
//! share would hide itself.

use std::ops::Range;

use ringecho::protocol::violation::Violation;

use super::case::{BINARY, CLOSE, CONTINUATION, Header, PING, PONG, TEXT};

/// The least room for a receive, in bytes.
const ROOM: usize = 128 << 10;
/// The most that is made room for at once, however long a frame says it is.
const ROOM_MAX: usize = 1 << 20;
/// The longest payload of a control frame (RFC 6455 section 5.5).
const CONTROL_PAYLOAD_MAX: u64 = 125;

/// Appends a frame to `output`, masked if there is a `key`. `first` is the first byte of its header.
pub fn append(output: &mut Vec<u8>, first: u8, payload: &[u8], key: Option<[u8; 4]>) {
    let masked = if key.is_some() { 0x80 } else { 0 };
    output.push(first);
    match payload.len() {
        length @ 0..=125 => output.push(masked | length as u8),
        length @ 126..=0xffff => {
            output.push(masked | 126);
            output.extend((length as u16).to_be_bytes());
        }
        length => {
            output.push(masked | 127);
            output.extend((length as u64).to_be_bytes());
        }
    }
    let Some(key) = key else { return output.extend_from_slice(payload) };
    output.extend(key);
    let start = output.len();
    output.extend_from_slice(payload);
    mask(&mut output[start..], key);
}

/// Appends a frame whose length is written as `header` says. The key is as it should not be already.
pub fn append_with(
    output: &mut Vec<u8>,
    first: u8,
    payload: &[u8],
    key: Option<[u8; 4]>,
    header: Header,
) {
    let masked = if key.is_some() { 0x80 } else { 0 };
    match header {
        Header::Right | Header::MaskedWrongly => return append(output, first, payload, key),
        Header::Length16 => {
            output.extend([first, masked | 126]);
            output.extend((payload.len() as u16).to_be_bytes());
        }
        Header::Length64(length) => {
            output.extend([first, masked | 127]);
            output.extend(length.to_be_bytes());
        }
    }
    output.extend(key.into_iter().flatten());
    let start = output.len();
    output.extend_from_slice(payload);
    mask(&mut output[start..], key.unwrap_or_default());
}

/// Masks or unmasks a payload (RFC 6455 section 5.3).
fn mask(payload: &mut [u8], key: [u8; 4]) {
    let [a, b, c, d] = key;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (words, rest) = payload.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
    }
    for (byte, key) in rest.iter_mut().zip(key.iter().cycle()) {
        *byte ^= key;
    }
}

/// Checks the payload of a close frame (RFC 6455 sections 5.5.1 and 7.4).
///
/// # Errors
///
/// The rule that it breaks.
pub fn check_close(payload: &[u8]) -> Result<(), Violation> {
    let Some((code, reason)) = payload.split_first_chunk() else {
        return if payload.is_empty() { Ok(()) } else { Err(Violation::CloseTruncated) };
    };
    match u16::from_be_bytes(*code) {
        // 1004, 1005, 1006 and 1015 are reserved; 1012 to 1014 were registered later.
        1000..=1003 | 1007..=1014 | 3000..=4999 => {}
        _ => return Err(Violation::CloseCodeInvalid),
    }
    str::from_utf8(reason).map(drop).map_err(|_| Violation::CloseReasonNotUtf8)
}

/// What the frames of a peer may be like.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// Whether they are masked: those of a client are, those of a server are not (RFC 6455 section 5.1).
    pub is_masked: bool,
    /// Whether RSV1 may mark a compressed message (RFC 7692 section 6).
    pub allows_compression: bool,
    /// The longest payload of a frame.
    pub payload_max: u64,
}

/// A frame that was received whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// FIN.
    pub is_final: bool,
    /// RSV1.
    pub is_compressed: bool,
    /// The opcode, which is not reserved.
    pub opcode: u8,
    /// The masking key.
    pub key: Option<[u8; 4]>,
    /// The length of the frame with its header.
    pub wire_bytes: usize,
    /// Where [`Reader::bytes`] finds the payload, until more is read.
    pub payload: Range<usize>,
}

/// Received bytes, from which frames are taken.
#[derive(Debug)]
pub struct Reader {
    rules: Rules,
    /// What `read` to `end` is of is received and not yet taken.
    memory: Vec<u8>,
    read: usize,
    end: usize,
    /// How long the next frame is, once that is known.
    awaited: usize,
}

impl Reader {
    /// A reader for frames of these rules, which has received `bytes` already.
    pub fn new(rules: Rules, bytes: &[u8]) -> Reader {
        Reader { rules, memory: bytes.to_vec(), read: 0, end: bytes.len(), awaited: 0 }
    }

    /// From here on RSV1 may mark a compressed message.
    pub fn allow_compression(&mut self) {
        self.rules.allows_compression = true;
    }

    /// What has come and is not taken.
    pub fn unread(&self) -> &[u8] {
        &self.memory[self.read..self.end]
    }

    /// Skips so much of it, which is no frame.
    pub fn skip(&mut self, bytes: usize) {
        self.read += bytes;
    }

    /// The buffer to receive into. Call [`Reader::filled`] with how many bytes came.
    pub fn room(&mut self) -> &mut [u8] {
        if self.read == self.end {
            (self.read, self.end) = (0, 0);
        }
        let missing = self.awaited.saturating_sub(self.end - self.read);
        let room = missing.clamp(ROOM, ROOM_MAX);
        if self.memory.len() - self.end < room {
            self.memory.copy_within(self.read..self.end, 0);
            (self.read, self.end) = (0, self.end - self.read);
            let needed = self.end + room;
            if self.memory.len() < needed {
                // Twice the length at least, so that a long frame is not moved again and again.
                self.memory.resize(needed.max(2 * self.memory.len()), 0);
            }
        }
        &mut self.memory[self.end..]
    }

    /// The first `count` bytes of the last [`Reader::room`], before they are noted.
    pub fn newest(&self, count: usize) -> &[u8] {
        &self.memory[self.end..self.end + count]
    }

    /// Notes that `count` bytes were received into the last [`Reader::room`].
    pub fn filled(&mut self, count: usize) {
        self.end += count;
    }

    /// The next frame, if it is there whole.
    ///
    /// # Errors
    ///
    /// The rule that it breaks.
    pub fn take(&mut self) -> Result<Option<Received>, Violation> {
        let unread = &mut self.memory[self.read..self.end];
        let [first, second, ..] = *unread else { return Ok(None) };
        let (is_final, reserved, opcode) = (first & 0x80 != 0, first >> 4 & 7, first & 15);
        let (is_masked, short) = (second & 0x80 != 0, second & 0x7f);
        match opcode {
            CONTINUATION | TEXT | BINARY | CLOSE | PING | PONG => {}
            _ => return Err(Violation::ReservedOpcode),
        }
        let starts_message = matches!(opcode, TEXT | BINARY);
        match reserved {
            0 => {}
            4 if self.rules.allows_compression && starts_message => {}
            4 if self.rules.allows_compression => return Err(Violation::CompressedBitMisplaced),
            _ => return Err(Violation::ReservedBit),
        }
        match (is_masked, self.rules.is_masked) {
            (true, false) => return Err(Violation::Masked),
            (false, true) => return Err(Violation::Unmasked),
            (true, true) | (false, false) => {}
        }
        let is_control = opcode >= CLOSE;
        if is_control && !is_final {
            return Err(Violation::ControlFragmented);
        }
        let rest = &unread[2..];
        let (length, extended) = match short {
            126 => {
                let Some(length) = rest.first_chunk() else { return Ok(None) };
                (u64::from(u16::from_be_bytes(*length)), 2)
            }
            127 => {
                let Some(length) = rest.first_chunk() else { return Ok(None) };
                (u64::from_be_bytes(*length), 8)
            }
            short => (u64::from(short), 0),
        };
        // "The minimal number of bytes MUST be used to encode the length"; "the most significant bit
        // MUST be 0".
        if extended == 2 && length < 126 || extended == 8 && (length <= 0xffff || length >> 63 != 0)
        {
            return Err(Violation::LengthEncoding);
        }
        if is_control && length > CONTROL_PAYLOAD_MAX {
            return Err(Violation::ControlTooLong);
        }
        if length > self.rules.payload_max {
            return Err(Violation::MessageTooBig);
        }
        let header = 2 + extended + if is_masked { 4 } else { 0 };
        let whole = header + length as usize;
        if unread.len() < whole {
            self.awaited = whole;
            return Ok(None);
        }
        let key = is_masked.then(|| [0, 1, 2, 3].map(|at| unread[header - 4 + at]));
        if let Some(key) = key {
            mask(&mut unread[header..whole], key);
        }
        let payload = self.read + header..self.read + whole;
        self.read += whole;
        self.awaited = 0;
        let (is_compressed, wire_bytes) = (reserved != 0, whole);
        Ok(Some(Received { is_final, is_compressed, opcode, key, wire_bytes, payload }))
    }

    /// The payload of the frame that was taken last.
    pub fn bytes(&self, payload: Range<usize>) -> &[u8] {
        &self.memory[payload]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVER: Rules =
        Rules { is_masked: false, allows_compression: false, payload_max: 1 << 20 };

    #[test]
    fn what_is_written_is_read_back_however_it_is_cut() {
        for length in [0, 1, 7, 8, 9, 125, 126, 127, 0xffff, 0x1_0000, 300_000] {
            let payload: Vec<u8> = (0..length).map(|at: usize| (at * 7) as u8).collect();
            for key in [None, Some([1, 2, 3, 4])] {
                let mut bytes = Vec::new();
                append(&mut bytes, 0x82, &payload, key);
                assert!(key.is_none() || length < 8 || !bytes.ends_with(&payload[length - 8..]));
                for step in [100_000, 1, 1000] {
                    if step == 1 && length > 1000 {
                        continue;
                    }
                    let rules = Rules { is_masked: key.is_some(), ..SERVER };
                    let mut reader = Reader::new(rules, &[]);
                    let (last, others) = bytes.split_last().expect("a header");
                    for piece in others.chunks(step) {
                        reader.room()[..piece.len()].copy_from_slice(piece);
                        reader.filled(piece.len());
                        assert_eq!(reader.take(), Ok(None));
                    }
                    reader.room()[0] = *last;
                    reader.filled(1);
                    let frame = reader.take().expect("valid").expect("whole");
                    assert!(frame.is_final && !frame.is_compressed && frame.opcode == BINARY);
                    assert_eq!(reader.bytes(frame.payload), payload);
                    assert_eq!(reader.take(), Ok(None));
                }
            }
        }
    }

    #[test]
    fn the_payload_of_a_close_frame_is_checked() {
        for code in [1000, 1003, 1007, 1011, 1014, 3000, 4999] {
            assert_eq!(check_close(&u16::to_be_bytes(code)), Ok(()), "{code}");
        }
        for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000] {
            let found = check_close(&u16::to_be_bytes(code));
            assert_eq!(found, Err(Violation::CloseCodeInvalid), "{code}");
        }
        assert_eq!(check_close(b""), Ok(()));
        assert_eq!(check_close(b"\x03"), Err(Violation::CloseTruncated));
        assert_eq!(check_close(b"\x03\xe8\xff"), Err(Violation::CloseReasonNotUtf8));
    }

    #[test]
    fn a_length_may_be_written_wrongly() {
        let frame = |header, key| {
            let mut bytes = Vec::new();
            append_with(&mut bytes, 0x82, b"ab", key, header);
            bytes
        };
        assert_eq!(frame(Header::Length16, None), b"\x82\x7e\x00\x02ab");
        assert_eq!(frame(Header::Length64(3), None), b"\x82\x7f\0\0\0\0\0\0\0\x03ab");
        assert_eq!(
            frame(Header::Length16, Some([1, 2, 3, 4])),
            b"\x82\xfe\x00\x02\x01\x02\x03\x04\x60\x60"
        );
        assert_eq!(frame(Header::MaskedWrongly, None), b"\x82\x02ab");
    }

    #[test]
    fn a_mask_is_that_of_the_standard() {
        // RFC 6455 section 5.7: a masked text frame that contains "Hello".
        let mut bytes = Vec::new();
        append(&mut bytes, 0x81, b"Hello", Some([0x37, 0xfa, 0x21, 0x3d]));
        assert_eq!(bytes, b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58");
    }

    #[test]
    fn every_broken_rule_is_named_and_bytes_that_came_early_count() {
        for (bytes, broken) in [
            (&b"\x83\x00"[..], Violation::ReservedOpcode),
            (b"\x8b\x00", Violation::ReservedOpcode),
            (b"\xc1\x00", Violation::ReservedBit),
            (b"\xa1\x00", Violation::ReservedBit),
            (b"\x91\x00", Violation::ReservedBit),
            (b"\x81\x80abcd", Violation::Masked),
            (b"\x09\x00", Violation::ControlFragmented),
            (b"\x89\x7e\x00\x7e", Violation::ControlTooLong),
            (b"\x81\x7e\x00\x7d", Violation::LengthEncoding),
            (b"\x81\x7f\x00\x00\x00\x00\x00\x00\xff\xff", Violation::LengthEncoding),
            (b"\x81\x7f\x80\x00\x00\x00\x00\x10\x00\x00", Violation::LengthEncoding),
            (b"\x81\x7f\x00\x00\x00\x00\x00\x10\x00\x01", Violation::MessageTooBig),
        ] {
            assert_eq!(Reader::new(SERVER, bytes).take(), Err(broken), "{bytes:x?}");
        }
        let client = Rules { is_masked: true, ..SERVER };
        assert_eq!(Reader::new(client, b"\x81\x00").take(), Err(Violation::Unmasked));
        let compressed = Rules { allows_compression: true, ..SERVER };
        let marked = Reader::new(compressed, b"\xc1\x00").take().expect("valid").expect("whole");
        assert!(marked.is_compressed);
        for bytes in [b"\xc0\x00", b"\xc9\x00"] {
            let broken = Reader::new(compressed, bytes).take();
            assert_eq!(broken, Err(Violation::CompressedBitMisplaced), "{bytes:x?}");
        }
    }
}
