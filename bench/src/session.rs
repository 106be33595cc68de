//! One connection in the client's role: turns messages into bytes, and received bytes into echoes. It
//! does no input or output and reads no clock.
//!
//! Masking keys come from a seeded generator, a new one for each frame, so the bytes of a session are
//! the same for the same seed. RFC 6455 section 5.3 asks for keys that a web page cannot guess; no web
//! page is involved here.

use std::fmt;

use ringecho::protocol::CloseCode;
use ringecho::protocol::client::Request;
use ringecho::protocol::close;
use ringecho::protocol::frame::{self, COMPRESSED, FINAL, Header, Opcode};
use ringecho::protocol::violation::Violation;

use crate::compression::Codec;
use crate::problem::Problem;
use crate::random::Random;
use crate::verdict::{Sent, judge_echo};

/// The least room for a receive, in bytes.
pub const ROOM: usize = 64 << 10;

/// Bytes by which a message of the server may be longer than twice the longest one that it was sent: an
/// echo may be compressed badly, and what is longer still is no echo and not kept.
const EXCESS_MAX: usize = 1 << 20;

/// Text or binary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// UTF-8.
    Text,
    /// Anything.
    Binary,
}

impl Form {
    /// The opcode of a message's first frame.
    pub fn opcode(self) -> Opcode {
        match self {
            Form::Text => Opcode::Text,
            Form::Binary => Opcode::Binary,
        }
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Form::Text => "text",
            Form::Binary => "binary",
        })
    }
}

/// A connection's state.
#[expect(missing_debug_implementations, reason = "the deflater has none")]
pub struct Session {
    /// Whether messages are frames; else they are plain bytes.
    is_framed: bool,
    keys: Random,
    codec: Option<Codec>,
    /// The receive buffer; bytes from `read` to `end` are received and not yet parsed.
    received: Vec<u8>,
    read: usize,
    end: usize,
    /// The longest message sent so far, in bytes.
    longest: usize,
    /// The message whose fragments are arriving.
    echo: Vec<u8>,
    form: Option<Form>,
    is_compressed: bool,
}

/// The bytes of an answer to an opening handshake, and the value of Sec-WebSocket-Extensions in it.
pub(crate) type Response = (Vec<u8>, Option<String>);

/// Something that the server sent.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// A whole message, which [`Session::echo`] returns.
    Echo(Form),
    /// A close frame: its code, and the bytes of the whole frame.
    Close(Option<u16>, Vec<u8>),
    /// A ping with its payload, which the pong has to repeat.
    Ping(Vec<u8>),
}

impl Session {
    /// A session of frames, whose masking keys follow from `seed`.
    pub(crate) fn framed(seed: u64) -> Session {
        Session { is_framed: true, ..Session::plain(seed) }
    }

    /// A session of plain bytes.
    pub(crate) fn plain(seed: u64) -> Session {
        Session {
            is_framed: false,
            keys: Random::new(seed),
            codec: None,
            received: vec![0; 2 * ROOM],
            read: 0,
            end: 0,
            longest: 0,
            echo: Vec::new(),
            form: None,
            is_compressed: false,
        }
    }

    /// The nonce of an opening handshake (RFC 6455 section 4.1).
    pub(crate) fn nonce(&mut self) -> [u8; 16] {
        let mut nonce = [0; 16];
        for half in nonce.chunks_mut(8) {
            half.copy_from_slice(&self.keys.number().to_ne_bytes());
        }
        nonce
    }

    fn key(&mut self) -> [u8; 4] {
        (self.keys.number() as u32).to_ne_bytes()
    }

    /// Appends a message to `output`, split into `fragments` of about the same length.
    pub fn message(&mut self, output: &mut Vec<u8>, form: Form, payload: &[u8], fragments: usize) {
        self.longest = self.longest.max(payload.len());
        if !self.is_framed {
            return output.extend_from_slice(payload);
        }
        let deflated = self.codec.as_mut().map(|codec| codec.deflate(payload));
        let first = if deflated.is_some() { COMPRESSED } else { 0 } | form.opcode() as u8;
        let payload = deflated.as_deref().unwrap_or(payload);
        let length = payload.len().div_ceil(fragments).max(1);
        let mut pieces = payload.chunks(length).peekable();
        let mut first = first;
        loop {
            let piece = pieces.next().unwrap_or_default();
            let last = if pieces.peek().is_none() { FINAL } else { 0 };
            let key = self.key();
            frame::append(output, last | first, piece, key);
            if last != 0 {
                return;
            }
            first = Opcode::Continuation as u8;
        }
    }

    /// Appends a control frame to `output`, unless messages are plain bytes.
    pub fn control(&mut self, output: &mut Vec<u8>, opcode: Opcode, payload: &[u8]) {
        if self.is_framed {
            let key = self.key();
            frame::append(output, FINAL | opcode as u8, payload, key);
        }
    }

    /// The buffer to receive into, at least [`ROOM`] bytes. Call [`Session::filled`] with how many came.
    #[inline]
    pub fn room(&mut self) -> &mut [u8] {
        if self.read == self.end {
            (self.read, self.end) = (0, 0);
        }
        if self.received.len() - self.end < ROOM {
            self.make_room();
        }
        &mut self.received[self.end..]
    }

    /// Moves what is unread to the front, and grows where an unfinished message needs it.
    #[cold]
    fn make_room(&mut self) {
        self.received.copy_within(self.read..self.end, 0);
        (self.read, self.end) = (0, self.end - self.read);
        if self.received.len() - self.end < ROOM {
            self.received.resize((self.end + ROOM).next_power_of_two(), 0);
        }
    }

    /// Notes that `count` bytes were received into the last [`Session::room`].
    #[inline]
    pub fn filled(&mut self, count: usize) {
        self.end += count;
    }

    /// The bytes that are received and not yet parsed.
    pub fn unread(&self) -> &[u8] {
        &self.received[self.read..self.end]
    }

    /// Reads the answer to `request`, if all of it was received, and returns its bytes; frames follow. If
    /// extensions were offered, all messages are compressed from then on.
    ///
    /// # Errors
    ///
    /// When the answer opens no WebSocket connection, or declines the compression that was offered.
    pub(crate) fn opened(&mut self, request: &Request<'_>) -> Result<Option<Vec<u8>>, Problem> {
        let Some((response, extensions)) = self.answered(request)? else { return Ok(None) };
        if request.extensions.is_some() {
            self.codec = Some(Codec::agreed(extensions.as_deref())?);
        }
        Ok(Some(response))
    }

    /// Reads the answer to `request`, if all of it was received. What the extensions in it mean is for
    /// the caller to judge.
    ///
    /// # Errors
    ///
    /// When the answer opens no WebSocket connection.
    pub(crate) fn answered(&mut self, request: &Request<'_>) -> Result<Option<Response>, Problem> {
        let accepted = request.check(self.unread()).map_err(Problem::Refused)?;
        let Some(accepted) = accepted else { return Ok(None) };
        let response = self.unread()[..accepted.head_bytes].to_vec();
        self.read += accepted.head_bytes;
        Ok(Some((response, accepted.extensions)))
    }

    /// The next complete event. `payload` is the length of the next echo in bytes, which says where it
    /// ends if messages are plain bytes.
    ///
    /// # Errors
    ///
    /// When the server broke the protocol.
    pub fn next(&mut self, payload: usize) -> Result<Option<Event>, Problem> {
        if !self.is_framed {
            let unread = &self.received[self.read..self.end];
            if unread.len() < payload {
                return Ok(None);
            }
            self.echo.clear();
            self.echo.extend_from_slice(&unread[..payload]);
            self.read += payload;
            return Ok(Some(Event::Echo(Form::Binary)));
        }
        let extension_bits = if self.codec.is_some() { COMPRESSED } else { 0 };
        loop {
            let unread = &self.received[self.read..self.end];
            let header = Header::parse_reply(unread, extension_bits).map_err(Problem::Broken)?;
            let Some(header) = header else { return Ok(None) };
            let begun = if header.opcode == Opcode::Continuation { self.echo.len() } else { 0 };
            let echo_max = 2 * self.longest + EXCESS_MAX;
            if header.payload_length > (echo_max - begun) as u64 {
                return Err(Problem::TooLong(echo_max));
            }
            let end = header.header_length as u64 + header.payload_length;
            if (unread.len() as u64) < end {
                return Ok(None);
            }
            let (frame_bytes, payload) = (end as usize, header.header_length..end as usize);
            match header.opcode {
                Opcode::Ping => {
                    let ping = unread[payload].to_vec();
                    self.read += frame_bytes;
                    return Ok(Some(Event::Ping(ping)));
                }
                Opcode::Pong => self.read += frame_bytes,
                Opcode::Close => {
                    let code = close::check(&unread[payload]).map_err(Problem::Broken)?;
                    let code = code.map(CloseCode::value);
                    let frame = unread[..frame_bytes].to_vec();
                    self.read += frame_bytes;
                    return Ok(Some(Event::Close(code, frame)));
                }
                Opcode::Text | Opcode::Binary | Opcode::Continuation => {
                    if let Some(form) = self.fragment(&header, frame_bytes)? {
                        return Ok(Some(Event::Echo(form)));
                    }
                }
            }
        }
    }

    /// Takes a frame of a message; returns the form of the message if that is complete.
    fn fragment(&mut self, header: &Header, frame_bytes: usize) -> Result<Option<Form>, Problem> {
        match (header.opcode, self.form) {
            (Opcode::Continuation, None) => {
                return Err(Problem::Broken(Violation::ContinuationUnexpected));
            }
            (Opcode::Text | Opcode::Binary, Some(_)) => {
                return Err(Problem::Broken(Violation::ContinuationExpected));
            }
            (Opcode::Text, None) => self.form = Some(Form::Text),
            (Opcode::Binary, None) => self.form = Some(Form::Binary),
            (Opcode::Continuation | Opcode::Close | Opcode::Ping | Opcode::Pong, _) => {}
        }
        if header.opcode != Opcode::Continuation {
            self.echo.clear();
            self.is_compressed = header.is_compressed;
        }
        let payload = &self.received[self.read + header.header_length..self.read + frame_bytes];
        self.echo.extend_from_slice(payload);
        self.read += frame_bytes;
        if !header.is_final {
            return Ok(None);
        }
        if self.is_compressed
            && let Some(codec) = &mut self.codec
        {
            self.echo = codec.inflate(&self.echo, 2 * self.longest + EXCESS_MAX)?;
        }
        Ok(self.form.take())
    }

    /// The payload of the last echo.
    pub fn echo(&self) -> &[u8] {
        &self.echo
    }

    /// Judges the last echo, which came as `form`.
    ///
    /// # Errors
    ///
    /// As [`judge_echo`].
    #[inline]
    pub fn judge(&self, sent: &Sent<'_>, form: Form) -> Result<(), Problem> {
        // Plain bytes have no form that could differ.
        let form = if self.is_framed { form } else { sent.form };
        judge_echo(sent, form, &self.echo)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receive(session: &mut Session, bytes: &[u8]) {
        session.room()[..bytes.len()].copy_from_slice(bytes);
        session.filled(bytes.len());
    }

    #[test]
    fn an_echo_in_fragments_with_control_frames_between_is_joined() {
        let mut session = Session::framed(1);
        let bytes = b"\x01\x03one\x89\x01?\x00\x00\x8a\x00\x80\x04 two\x88\x02\x03\xe8";
        for byte in &bytes[..bytes.len() - 1] {
            receive(&mut session, &[*byte]);
        }
        assert_eq!(session.next(7).expect("right"), Some(Event::Ping(b"?".to_vec())));
        assert_eq!(session.next(7).expect("right"), Some(Event::Echo(Form::Text)));
        assert_eq!(session.echo(), b"one two");
        assert_eq!(session.next(7).expect("right"), None);
        receive(&mut session, b"\xe8");
        let close = Event::Close(Some(1000), b"\x88\x02\x03\xe8".to_vec());
        assert_eq!(session.next(7).expect("right"), Some(close));
    }

    #[test]
    fn a_broken_rule_is_named() {
        for (bytes, violation) in [
            (&b"\x80\x00"[..], Violation::ContinuationUnexpected),
            (b"\x01\x00\x01\x00", Violation::ContinuationExpected),
            (b"\x81\x80abcd", Violation::Masked),
            (b"\xc1\x00", Violation::ReservedBit),
            (b"\x88\x01a", Violation::CloseTruncated),
            (b"\x88\x02\x03\xed", Violation::CloseCodeInvalid),
        ] {
            let mut session = Session::framed(1);
            receive(&mut session, bytes);
            let broken = session.next(0).expect_err("wrong");
            assert!(matches!(broken, Problem::Broken(found) if found == violation), "{broken}");
        }
    }

    #[test]
    fn messages_are_masked_anew_each_time_and_split_as_asked() {
        let mut session = Session::framed(1);
        let mut bytes = Vec::new();
        for fragments in [1, 3, 1] {
            session.message(&mut bytes, Form::Binary, b"0123456789", fragments);
        }
        let (mut at, mut seen) = (0, Vec::new());
        while at < bytes.len() {
            let header = Header::parse(&bytes[at..], 0).expect("right").expect("whole");
            seen.push((header.opcode, header.is_final, header.payload_length, header.mask));
            at += header.header_length + header.payload_length as usize;
        }
        let shape: Vec<_> =
            seen.iter().map(|&(opcode, last, payload, _)| (opcode, last, payload)).collect();
        use Opcode::{Binary, Continuation};
        assert_eq!(
            shape,
            [
                (Binary, true, 10),
                (Binary, false, 4),
                (Continuation, false, 4),
                (Continuation, true, 2),
                (Binary, true, 10)
            ]
        );
        assert_ne!(seen[0].3, seen[4].3);
    }

    #[test]
    fn plain_bytes_end_where_the_message_did() {
        let mut session = Session::plain(1);
        receive(&mut session, b"0123456");
        assert_eq!(session.next(4).expect("right"), Some(Event::Echo(Form::Binary)));
        assert_eq!(session.echo(), b"0123");
        assert_eq!(session.next(4).expect("right"), None);
    }
}
