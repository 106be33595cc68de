//! The oracle: what a server owes to a client, by a plain reading of RFC 6455.
//!
//! It takes everything that a client ever sends at once, assembles messages in memory, and shares no code
//! with the server. It determines every byte of the answer except two texts for people: the reason in a
//! close frame that fails a connection, and the fields and page of an HTTP response that refuses one. It
//! also knows how much must have arrived before each byte of the answer is due, and with which byte it is
//! certain that the connection fails.
//!
//! Of compression it knows what is owed for messages that are valid, not which ones are.

use std::cmp::Ordering;
use std::ops::Range;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::client::{ACCEPT, RESPONSE};
use crate::frame::{CLOSE, FIN, PONG, RSV1, header, reply};
use crate::inflate::Inflater;

/// The largest payload of a control frame (section 5.5).
const CONTROL_MAX: usize = 125;
/// Bytes of a masking key.
const KEY_BYTES: usize = 4;

/// The close frame of a server that stops.
pub const GOING_AWAY: &[u8] = b"\x88\x02\x03\xe9";

/// A rule for the frames of a client, named by how it is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rule {
    /// RSV bits without a meaning (section 5.2).
    ReservedBit,
    /// An opcode without a meaning (section 5.2).
    ReservedOpcode,
    /// A client must mask (section 5.1).
    Unmasked,
    /// A length that is not in its shortest form or has 64 bits (section 5.2).
    LengthEncoding,
    /// A control frame in fragments (section 5.5).
    ControlFragmented,
    /// A control frame with a payload of more than 125 bytes (section 5.5).
    ControlTooLong,
    /// A fragment that continues nothing (section 5.4).
    ContinuationUnexpected,
    /// A message within a message (section 5.4).
    ContinuationExpected,
    /// Text that is not UTF-8 (section 8.1).
    TextNotUtf8,
    /// A close frame with one byte (section 5.5.1).
    CloseTruncated,
    /// A code that must not be sent (section 7.4).
    CloseCodeInvalid,
    /// A reason that is not UTF-8 (section 5.5.1).
    CloseReasonNotUtf8,
    /// A message over the server's limit (section 10.4).
    MessageTooBig,
}

impl Rule {
    /// All of them.
    pub const ALL: [Rule; 13] = [
        Rule::ReservedBit,
        Rule::ReservedOpcode,
        Rule::Unmasked,
        Rule::LengthEncoding,
        Rule::ControlFragmented,
        Rule::ControlTooLong,
        Rule::ContinuationUnexpected,
        Rule::ContinuationExpected,
        Rule::TextNotUtf8,
        Rule::CloseTruncated,
        Rule::CloseCodeInvalid,
        Rule::CloseReasonNotUtf8,
        Rule::MessageTooBig,
    ];

    /// The close code that breaking it costs (section 7.4.1).
    pub fn close_code(self) -> u16 {
        match self {
            Rule::TextNotUtf8 | Rule::CloseReasonNotUtf8 => 1007,
            Rule::MessageTooBig => 1009,
            Rule::ReservedBit
            | Rule::ReservedOpcode
            | Rule::Unmasked
            | Rule::LengthEncoding
            | Rule::ControlFragmented
            | Rule::ControlTooLong
            | Rule::ContinuationUnexpected
            | Rule::ContinuationExpected
            | Rule::CloseTruncated
            | Rule::CloseCodeInvalid => 1002,
        }
    }
}

/// How what is owed ends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Ending {
    /// Not at all: the server waits for more.
    #[default]
    Open,
    /// With the bytes owed, and then the end of the stream.
    Said,
    /// With a close frame that fails the connection, and then the end of the stream.
    Failed(Rule),
    /// With the bytes owed, which include the close frame of a server that stops. The rule was broken after
    /// that, so no other close frame is sent.
    Untold(Rule),
    /// With an HTTP response of this status, and then the end of the stream.
    Refused(u16),
}

/// How what was sent compares with what is owed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fit {
    /// Something else was sent.
    Not,
    /// It is a beginning.
    Part,
    /// It is all.
    Whole,
}

/// Everything that a client ever sends on a connection.
#[derive(Debug, Clone, Copy)]
pub struct Stream<'a> {
    /// The bytes, the opening handshake first.
    pub bytes: &'a [u8],
    /// Bytes of the opening handshake, or as many as show that it is refused.
    pub head: usize,
    /// The status that it is answered with.
    pub status: u16,
    /// The largest message accepted.
    pub message_max: u64,
}

/// How a server echoes compressed messages, all of which are valid (RFC 7692).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compressed {
    /// Frame by frame, with the same compressed payload.
    Mirrored,
    /// Message by message, compressed anew. What is owed is the message itself, in one frame that is not
    /// compressed, with its last byte.
    Recompressed,
}

/// Everything that is owed to a client for everything that it ever sends.
#[derive(Debug, Clone, Default)]
pub struct Owed {
    /// What is owed before the ending.
    pub bytes: Vec<u8>,
    /// When the bytes are due, in their order.
    due: Vec<Due>,
    /// The ends of the request and of each whole frame: bytes that came by then, and bytes owed for them.
    pub boundaries: Vec<(usize, usize)>,
    /// How it ends.
    pub ending: Ending,
    /// Where the frame begins that brings the ending, and after how many bytes the ending is certain;
    /// beyond every stream while there is none.
    ending_from: usize,
    ending_by: usize,
    /// Whole messages before the ending.
    pub messages: u64,
    /// The ranges of binary payloads in the stream, whether they have come or not.
    binary: Vec<Range<usize>>,
    /// The close frame of a server that closes of its own accord, if it is not [`GOING_AWAY`].
    pub farewell: Option<Vec<u8>>,
}

/// Bytes that are due at once, or each with the byte of a binary payload that it echoes.
#[derive(Debug, Clone, Copy)]
struct Due {
    /// Bytes owed before them and with them.
    owed: (usize, usize),
    /// Bytes that must have arrived.
    at: usize,
    pace: Pace,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pace {
    /// All of them at `at`.
    Together,
    /// The first after one byte more than `at`, the next after two.
    OneByOne,
}

impl Owed {
    /// What is owed for `stream`, without compression.
    pub fn for_stream(stream: &Stream<'_>) -> Owed {
        Owed::for_stream_of(stream, None)
    }

    /// What is owed for `stream`, whose request offers `permessage-deflate` if messages are `compressed`.
    pub fn for_stream_of(stream: &Stream<'_>, compressed: Option<Compressed>) -> Owed {
        let Stream { bytes, head, status, .. } = *stream;
        let mut owed = Owed { ending_from: usize::MAX, ending_by: usize::MAX, ..Owed::default() };
        if bytes.len() < head {
            return owed;
        }
        if status != 101 {
            owed.end(Ending::Refused(status), 0, head);
            return owed;
        }
        owed.say(head, &response(&bytes[..head], compressed));
        owed.boundaries.push((head, owed.bytes.len()));
        owed.frames(stream, compressed);
        owed
    }

    /// What is owed if the server refuses the connection with status 503.
    pub fn refuse(&mut self) {
        if let Some(&(head, _)) = self.boundaries.first() {
            self.bytes.clear();
            self.due.clear();
            self.boundaries.clear();
            self.end(Ending::Refused(503), 0, head);
        }
    }

    /// What is owed if the server refuses the connection because its opening handshake takes too long.
    pub fn time_out(&mut self) {
        self.bytes.clear();
        self.due.clear();
        self.boundaries.clear();
        self.end(Ending::Refused(408), 0, 0);
    }

    /// Whether a whole frame of the client, or its request, ends where so many bytes are owed.
    pub fn is_boundary(&self, sent: usize) -> bool {
        self.boundaries.iter().any(|&(_, owed)| owed == sent)
    }

    /// How many bytes are due once `input` bytes came, without those of the ending.
    pub fn due_after(&self, input: usize) -> usize {
        let begun = self.due.partition_point(|due| due.at <= input);
        let Some(last) = begun.checked_sub(1).map(|last| self.due[last]) else { return 0 };
        match last.pace {
            Pace::Together => last.owed.1,
            Pace::OneByOne => last.owed.1.min(last.owed.0 + (input - last.at)),
        }
    }

    /// How many bytes are owed at least once `input` bytes came: those for whole frames.
    pub fn owed_at_least(&self, input: usize) -> usize {
        let whole = self.boundaries.partition_point(|&(end, _)| end <= input);
        if whole == 0 { 0 } else { self.boundaries[whole - 1].1 }
    }

    /// After how many bytes it is certain that the server has nothing more to say, if ever.
    pub fn ended_at(&self) -> Option<usize> {
        (self.ending != Ending::Open).then_some(self.ending_by)
    }

    /// The rule that was broken.
    pub fn broken(&self) -> Option<Rule> {
        match self.ending {
            Ending::Failed(rule) | Ending::Untold(rule) => Some(rule),
            Ending::Open | Ending::Said | Ending::Refused(_) => None,
        }
    }

    /// Whether the server has said or will say its last, once `input` bytes came.
    pub fn ends_by(&self, input: usize) -> bool {
        self.ending_from <= input
    }

    /// Whether the server must have noticed that the end came, once `input` bytes did.
    pub fn has_ended_by(&self, input: usize) -> bool {
        self.ending_by <= input
    }

    /// What is owed if the server begins to close after `close_at` bytes of `stream`.
    pub fn with_close(mut self, stream: &Stream<'_>, close_at: usize) -> Owed {
        if close_at < stream.head {
            let mut owed = Owed::default();
            owed.end(Ending::Said, 0, close_at);
            return owed;
        }
        if self.has_ended_by(close_at) {
            return self;
        }
        // The close frame cannot stand within a frame of which a part is sent.
        let inside = self.binary.iter().find(|payload| payload.contains(&close_at));
        let from = inside.map_or(close_at, |payload| payload.end);
        if from > stream.bytes.len() {
            return self;
        }
        self.bytes.truncate(self.due_after(from));
        self.due.retain(|due| due.owed.0 < self.bytes.len());
        self.say(from, GOING_AWAY);
        self.end(Ending::Open, usize::MAX, usize::MAX);
        // From here on only the client's close frame matters, or what is no frame at all.
        let mut at = stream.head;
        loop {
            let frame = match Arriving::read(&stream.bytes[at..], 0) {
                Ok(Some(frame)) if frame.is_whole() => frame,
                Ok(_) => return self,
                Err((bytes, rule)) => {
                    self.end(Ending::Untold(rule), at, at + bytes);
                    return self;
                }
            };
            at += frame.length();
            if at > from && frame.opcode() == 8 {
                self.end(Ending::Said, at, at);
                return self;
            }
        }
    }

    /// Compares all of `sent`, of which the first `matched` bytes are those owed, with what a server owes
    /// that learned after `stopped_at` bytes of input that it is to stop.
    pub fn fit(&self, sent: &[u8], matched: usize, stopped_at: Option<usize>) -> Fit {
        let rest = &sent[matched..];
        let plain = if matched == self.bytes.len() {
            fit_ending(rest, self.ending)
        } else if rest.is_empty() {
            Fit::Part
        } else {
            Fit::Not
        };
        match stopped_at {
            Some(input) if input < self.ending_from => self.fit_stopped(sent, matched, input),
            Some(input) if input < self.ending_by => {
                plain.max(self.fit_stopped(sent, matched, input))
            }
            Some(_) | None => plain,
        }
    }

    /// A server that stops sends everything owed, may finish the frame that is arriving, and sends its
    /// close frame after that; or nothing, if the request is not whole.
    fn fit_stopped(&self, sent: &[u8], matched: usize, input: usize) -> Fit {
        let whole = self.boundaries.partition_point(|&(end, _)| end <= input);
        if whole == 0 {
            return if sent.is_empty() { Fit::Whole } else { Fit::Not };
        }
        let farewell = self.farewell.as_deref().unwrap_or(GOING_AWAY);
        let fit = |end: usize| match sent.get(end..) {
            None if matched == sent.len() => Fit::Part,
            Some(rest) if matched >= end && rest == farewell => Fit::Whole,
            Some(rest) if matched >= end && farewell.starts_with(rest) => Fit::Part,
            None | Some(_) => Fit::Not,
        };
        let (begin, owed) = self.boundaries[whole - 1];
        let arriving = match self.boundaries.get(whole) {
            Some(&(_, end)) if begin < input => fit(end),
            None if begin < input && matched == sent.len() => {
                // The frame never becomes whole.
                if matched == self.bytes.len() { Fit::Whole } else { Fit::Part }
            }
            Some(_) | None => Fit::Not,
        };
        arriving.max(fit(owed))
    }

    fn end(&mut self, ending: Ending, from: usize, by: usize) {
        (self.ending, self.ending_from, self.ending_by) = (ending, from, by);
    }

    fn say(&mut self, at: usize, bytes: &[u8]) {
        self.say_at(at, bytes, Pace::Together);
    }

    fn say_at(&mut self, at: usize, bytes: &[u8], pace: Pace) {
        let before = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        self.due.push(Due { owed: (before, self.bytes.len()), at, pace });
    }

    fn frames(&mut self, stream: &Stream<'_>, compressed: Option<Compressed>) {
        let mut at = stream.head;
        let mut inflater = Inflater::default();
        // The message that is arriving: its kind, and its payload so far.
        let mut message: Option<(Kind, Vec<u8>)> = None;
        loop {
            let bits = if compressed.is_some() && message.is_none() { RSV1 } else { 0 };
            let frame = match Arriving::read(&stream.bytes[at..], bits) {
                Ok(Some(frame)) => frame,
                Ok(None) => return,
                Err((bytes, rule)) => return self.end(Ending::Failed(rule), at, at + bytes),
            };
            if let Some((bytes, rule)) = frame.broken(&message, stream.message_max) {
                return self.end(Ending::Failed(rule), at, at + bytes);
            }
            let is_whole = frame.is_whole();
            let end = at.saturating_add(frame.header.len()).saturating_add(KEY_BYTES);
            let payload_at = end;
            let end = end.saturating_add(frame.payload_length as usize);
            match frame.opcode() {
                8..=10 if !is_whole => return,
                8 => {
                    // The client's code without its reason.
                    self.say(end, &reply(CLOSE, &frame.payload[..frame.payload.len().min(2)]));
                    return self.end(Ending::Said, at, end);
                }
                9 => self.say(end, &reply(PONG, &frame.payload)),
                10 => {}
                opcode => {
                    let kind = match (&message, compressed) {
                        (Some((kind, _)), _) => *kind,
                        (None, Some(how)) if frame.is_compressed() => Kind::Compressed(how, opcode),
                        (None, _) => Kind::of(opcode),
                    };
                    match kind {
                        Kind::Binary => {
                            self.say(payload_at, &frame.header);
                            self.say_at(payload_at, &frame.payload, Pace::OneByOne);
                            self.binary.push(payload_at..end);
                        }
                        Kind::Text | Kind::Compressed(Compressed::Mirrored, _) if is_whole => {
                            self.say(end, &[&frame.header[..], &frame.payload].concat());
                        }
                        Kind::Compressed(Compressed::Recompressed, opcode)
                            if is_whole && frame.is_final() =>
                        {
                            let before =
                                message.as_ref().map_or(&[][..], |(_, before)| &before[..]);
                            let payload = [before, &frame.payload].concat();
                            let plain = inflater.message(&payload).expect("the tests compress");
                            self.say(end, &reply(FIN | opcode, &plain));
                        }
                        Kind::Text | Kind::Compressed(..) => {}
                    }
                    if !is_whole {
                        return;
                    }
                    message.get_or_insert((kind, Vec::new())).1.extend(&frame.payload);
                    if frame.is_final() {
                        self.messages += 1;
                        message = None;
                    }
                }
            }
            at = end;
            self.boundaries.push((at, self.bytes.len()));
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Binary,
    /// With the opcode of the message.
    Compressed(Compressed, u8),
}

impl Kind {
    fn of(opcode: u8) -> Kind {
        if opcode == 1 { Kind::Text } else { Kind::Binary }
    }
}

/// A frame as far as it has come, its header whole.
struct Arriving {
    /// The header of its echo: without mask bit and key.
    header: Vec<u8>,
    payload_length: u64,
    /// What has come of the payload, unmasked.
    payload: Vec<u8>,
}

impl Arriving {
    /// Reads a frame; nothing if its header is not whole. An error says after how many bytes it is certain
    /// that this is no frame of a client.
    /// `bits` are the reserved bits that it may have if it begins a message.
    fn read(bytes: &[u8], bits: u8) -> Result<Option<Arriving>, (usize, Rule)> {
        let Some(&first) = bytes.first() else { return Ok(None) };
        let opcode = first & 0x0f;
        let allowed = if matches!(opcode, 1 | 2) { bits } else { 0 };
        if first & 0x70 & !allowed != 0 {
            return Err((1, Rule::ReservedBit));
        }
        if ![0, 1, 2, 8, 9, 10].contains(&opcode) {
            return Err((1, Rule::ReservedOpcode));
        }
        if opcode >= 8 && first & FIN == 0 {
            return Err((1, Rule::ControlFragmented));
        }
        let Some(&second) = bytes.get(1) else { return Ok(None) };
        let Some(short) = second.checked_sub(0x80) else { return Err((2, Rule::Unmasked)) };
        if opcode >= 8 && usize::from(short) > CONTROL_MAX {
            return Err((2, Rule::ControlTooLong));
        }
        let extension = match short {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let Some(extended) = bytes.get(2..2 + extension) else { return Ok(None) };
        let payload_length = match short {
            126 | 127 => extended.iter().fold(0, |length, &byte| length << 8 | u64::from(byte)),
            _ => u64::from(short),
        };
        let shortest = header(first, payload_length, None);
        if shortest.len() != 2 + extension || payload_length >= 1 << 63 {
            return Err((2 + extension, Rule::LengthEncoding));
        }
        let Some((key, rest)) = bytes[shortest.len()..].split_first_chunk::<KEY_BYTES>() else {
            return Ok(None);
        };
        let arrived = rest.iter().take(usize::try_from(payload_length).expect("64 bits"));
        let payload = arrived.enumerate().map(|(at, byte)| byte ^ key[at % KEY_BYTES]).collect();
        Ok(Some(Arriving { header: shortest, payload_length, payload }))
    }

    fn opcode(&self) -> u8 {
        self.header[0] & 0x0f
    }

    fn is_compressed(&self) -> bool {
        self.header[0] & RSV1 != 0
    }

    fn is_final(&self) -> bool {
        self.header[0] & FIN != 0
    }

    fn is_whole(&self) -> bool {
        self.payload.len() as u64 == self.payload_length
    }

    /// Bytes of it that have come.
    fn length(&self) -> usize {
        self.header.len() + KEY_BYTES + self.payload.len()
    }

    /// The rule that it breaks in its place, and after how many of its bytes that is certain.
    fn broken(&self, message: &Option<(Kind, Vec<u8>)>, message_max: u64) -> Option<(usize, Rule)> {
        let header = self.header.len() + KEY_BYTES;
        let (kind, before) = match (self.opcode(), message) {
            (0, None) => return Some((header, Rule::ContinuationUnexpected)),
            (1 | 2, Some(_)) => return Some((header, Rule::ContinuationExpected)),
            (8, _) if self.is_whole() => return Some((self.length(), self.broken_close()?)),
            (8.., _) => return None,
            (_, Some((Kind::Compressed(..), _))) => return None,
            (1 | 2, None) if self.is_compressed() => return None,
            (opcode, None) => (Kind::of(opcode), &[][..]),
            (_, Some((kind, before))) => (*kind, &before[..]),
        };
        if before.len() as u64 + self.payload_length > message_max {
            return Some((header, Rule::MessageTooBig));
        }
        if kind == Kind::Binary {
            return None;
        }
        let text = [before, &self.payload].concat();
        let error = std::str::from_utf8(&text).err()?;
        // The first byte with which the text has an error that no further byte can mend.
        let is_wrong = |&bytes: &usize| {
            std::str::from_utf8(&text[..bytes]).is_err_and(|error| error.error_len().is_some())
        };
        let place = (error.valid_up_to()..=text.len()).find(is_wrong);
        let end = (self.is_whole() && self.is_final()).then_some(text.len());
        Some((header + place.or(end)? - before.len(), Rule::TextNotUtf8))
    }

    /// The rule that a close frame breaks.
    fn broken_close(&self) -> Option<Rule> {
        match self.payload[..] {
            [] => None,
            [_] => Some(Rule::CloseTruncated),
            [high, low, ref reason @ ..] => match u16::from_be_bytes([high, low]) {
                1000..=1003 | 1007..=1014 | 3000..=4999 => {
                    std::str::from_utf8(reason).err().map(|_| Rule::CloseReasonNotUtf8)
                }
                _ => Some(Rule::CloseCodeInvalid),
            },
        }
    }
}

/// The answer to a request that is right (section 4.2.2).
fn response(request: &[u8], compressed: Option<Compressed>) -> Vec<u8> {
    let request = std::str::from_utf8(request).expect("the tests write ASCII");
    let (_, key) = request.split_once("Sec-WebSocket-Key: ").expect("a request has a key");
    let key = key.split("\r\n").next().expect("a line");
    let mut response = RESPONSE.replace(ACCEPT, &accept_of(key));
    if compressed.is_some() {
        let end = response.len() - 2;
        response.insert_str(end, "Sec-WebSocket-Extensions: permessage-deflate\r\n");
    }
    response.into_bytes()
}

/// The `Sec-WebSocket-Accept` that answers a `Sec-WebSocket-Key` (section 1.3).
pub fn accept_of(key: &str) -> String {
    let keyed = format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    BASE64.encode(sha1_smol::Sha1::from(keyed).digest().bytes())
}

fn fit_ending(sent: &[u8], ending: Ending) -> Fit {
    match ending {
        Ending::Open | Ending::Said | Ending::Untold(_) if sent.is_empty() => Fit::Whole,
        Ending::Open | Ending::Said | Ending::Untold(_) => Fit::Not,
        Ending::Failed(rule) => {
            let [high, low] = rule.close_code().to_be_bytes();
            let length = sent.get(1).copied().unwrap_or(2);
            let begin = [CLOSE, length, high, low];
            let common = sent.len().min(4);
            let is_right = sent[..common] == begin[..common]
                && (2..=CONTROL_MAX).contains(&usize::from(length))
                && sent[common..].is_ascii();
            match sent.len().cmp(&(2 + usize::from(length))) {
                Ordering::Less if is_right => Fit::Part,
                Ordering::Equal if is_right => Fit::Whole,
                _ => Fit::Not,
            }
        }
        Ending::Refused(status) => fit_response(sent, status),
    }
}

fn fit_response(sent: &[u8], status: u16) -> Fit {
    let begin = format!("HTTP/1.1 {status} ");
    let common = sent.len().min(begin.len());
    if sent[..common] != begin.as_bytes()[..common] {
        return Fit::Not;
    }
    let Ok(text) = std::str::from_utf8(sent) else { return Fit::Not };
    let Some((head, page)) = text.split_once("\r\n\r\n") else { return Fit::Part };
    let length = head.split("\r\n").find_map(|line| line.strip_prefix("Content-Length: "));
    match length.and_then(|length| length.parse().ok()).map(|length| page.len().cmp(&length)) {
        Some(Ordering::Less) => Fit::Part,
        Some(Ordering::Equal) => Fit::Whole,
        Some(Ordering::Greater) | None => Fit::Not,
    }
}

#[cfg(test)]
mod tests {
    use super::{Ending, Fit, Owed, Rule, Stream};
    use crate::client::{REQUEST, RESPONSE};
    use crate::frame::{BINARY, CLOSE, TEXT, frame, masked, reply};

    fn owed(frames: &[u8]) -> Owed {
        let bytes = [REQUEST.as_bytes(), frames].concat();
        Owed::for_stream(&Stream {
            bytes: &bytes,
            head: REQUEST.len(),
            status: 101,
            message_max: 5,
        })
    }

    /// Sections 1.3 and 5.7.
    #[test]
    fn the_examples_of_the_standard_are_known() {
        let owed = owed(&frame(TEXT, b"Hello"));
        assert_eq!(owed.bytes, [RESPONSE.as_bytes(), b"\x81\x05Hello"].concat());
        let (head, answer) = (REQUEST.len(), RESPONSE.len());
        let due = [head - 1, head, head + 10, head + 11].map(|input| owed.due_after(input));
        assert_eq!(due, [0, answer, answer, answer + 7]);
        assert_eq!((owed.ended_at(), owed.messages, owed.ending), (None, 1, Ending::Open));
    }

    #[test]
    fn binary_payload_is_due_byte_by_byte() {
        let frame = frame(BINARY, b"Hello");
        let owed = owed(&frame[..9]);
        let (head, answer) = (REQUEST.len(), RESPONSE.len());
        let due = [5, 6, 7, 8, 9, 99].map(|input| owed.due_after(head + input) - answer);
        assert_eq!(due, [0, 2, 3, 4, 5, 5]);
        assert_eq!(owed.owed_at_least(head + 9), answer);
    }

    #[test]
    fn a_failure_is_certain_with_one_byte() {
        let head = REQUEST.len();
        for (frames, rule, at) in [
            (&b"\xc1"[..], Rule::ReservedBit, 1),
            (b"\x83", Rule::ReservedOpcode, 1),
            (b"\x09", Rule::ControlFragmented, 1),
            (b"\x81\x05", Rule::Unmasked, 2),
            (b"\x89\xfe", Rule::ControlTooLong, 2),
            (b"\x81\xfe\x00\x05kkkk", Rule::LengthEncoding, 4),
            (b"\x80\x80kkkk", Rule::ContinuationUnexpected, 6),
            (b"\x01\x80kkkk\x01\x80kkkk", Rule::ContinuationExpected, 12),
            (b"\x82\x86kkkk", Rule::MessageTooBig, 6),
            (&masked(TEXT, b"a\xe6\xb0b", [0; 4]), Rule::TextNotUtf8, 10),
            (&frame(TEXT, b"a\xe6\xb0"), Rule::TextNotUtf8, 9),
            (&frame(CLOSE, b"\x03"), Rule::CloseTruncated, 7),
            (&frame(CLOSE, b"\x03\xed"), Rule::CloseCodeInvalid, 8),
            (&frame(CLOSE, b"\x03\xe8\xff"), Rule::CloseReasonNotUtf8, 9),
        ] {
            let owed = owed(frames);
            assert_eq!(
                (owed.broken(), owed.ended_at()),
                (Some(rule), Some(head + at)),
                "{frames:x?}"
            );
            let answer = owed.bytes.len();
            let sent = [&owed.bytes[..], &reply(CLOSE, &rule.close_code().to_be_bytes())].concat();
            assert_eq!(owed.fit(&sent, answer, None), Fit::Whole, "{rule:?}");
            assert_eq!(owed.fit(&sent[..sent.len() - 1], answer, None), Fit::Part, "{rule:?}");
            let wrong = [&owed.bytes[..], &reply(CLOSE, b"\x03\xe8")].concat();
            assert_eq!(owed.fit(&wrong, answer, None), Fit::Not, "{rule:?}");
        }
    }

    #[test]
    fn a_server_that_closes_says_so_between_two_frames() {
        let frames = [frame(BINARY, b"Hello"), frame(CLOSE, b"\x03\xe9")].concat();
        let bytes = [REQUEST.as_bytes(), &frames].concat();
        let head = REQUEST.len();
        let stream = Stream { bytes: &bytes, head, status: 101, message_max: 5 };
        let owed = Owed::for_stream(&stream).with_close(&stream, head + 8);
        let expected = [RESPONSE.as_bytes(), b"\x82\x05Hello\x88\x02\x03\xe9"].concat();
        assert_eq!((owed.bytes.clone(), owed.ended_at()), (expected, Some(bytes.len())));
        assert_eq!(owed.due_after(head + 10), RESPONSE.len() + 6);
        assert_eq!(owed.due_after(head + 11), RESPONSE.len() + 7 + 4);
    }
}
