//! One connection in the client's role: messages become octets, and octets become echoes. No input or
//! output is done here but by [`open`], which waits for the opening handshake.
//!
//! Masking keys come from a seeded generator, a new one for each frame, and so the octets of a session
//! are the same for the same seed (RFC 6455 section 5.3 wants keys that a web page cannot guess;
//! there is none here).

use std::fmt;
use std::io::{self, Read as _, Write as _};
use std::time::Duration;

use flate2::{Compress, Compression, FlushCompress};
use ringecho::protocol::client::{Refusal, Request};
use ringecho::protocol::frame::{self, COMPRESSED, FINAL, Header, Opcode};
use ringecho::protocol::inflate::{Inflater, TAIL};
use ringecho::protocol::violation::Violation;

use crate::random::Random;
use crate::target::{Stream, Target};

/// How long the opening handshake may take.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Octets that are received at a time, at least.
pub const ROOM: usize = 64 << 10;
/// The most that an echo may inflate to, in bytes: 1 GiB, the largest message of ringecho.
const INFLATED_MAX: usize = 1 << 30;

/// Text or binary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// UTF-8.
    Text,
    /// Anything.
    Binary,
}

impl Form {
    fn opcode(self) -> Opcode {
        match self {
            Form::Text => Opcode::Text,
            Form::Binary => Opcode::Binary,
        }
    }
}

/// Why a server cannot be measured, or can no longer.
#[derive(Debug)]
pub enum Problem {
    /// Nobody listens there.
    NoServer(io::Error),
    /// What listens there is no WebSocket server.
    NoWebSocket(Refusal),
    /// It has no permessage-deflate, or only with parameters.
    NoCompression(Option<String>),
    /// It did not answer in time.
    Silent,
    /// It broke the protocol.
    Broken(Violation),
    /// It sent something that is no echo: which message, counted from 0, and the first octet that
    /// differs.
    WrongEcho(u64, usize),
    /// It sent an echo as another form, text for binary or the other way round.
    WrongForm(u64),
    /// It closed the connection, with this code.
    Closed(Option<u16>),
    /// The connection was lost.
    Lost(io::Error),
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::NoServer(error) => {
                write!(f, "nobody to measure: {error}; start the server, or check the address")
            }
            Problem::NoWebSocket(refusal) => write!(
                f,
                "this is no WebSocket server: {refusal}; write tcp:// to measure plain octets"
            ),
            Problem::NoCompression(None) => {
                f.write_str("the server declines permessage-deflate; leave compression off")
            }
            Problem::NoCompression(Some(answer)) => write!(
                f,
                "the server agrees to {answer:?}, and only permessage-deflate without parameters is \
                 measured"
            ),
            Problem::Silent => f.write_str("no answer in time"),
            Problem::Broken(violation) => {
                write!(f, "the server broke the protocol: {}", violation.reason())
            }
            Problem::WrongEcho(message, octet) => {
                write!(f, "the echo of message {message} differs from it at octet {octet}")
            }
            Problem::WrongForm(message) => {
                write!(f, "message {message} came back as text for binary, or binary for text")
            }
            Problem::Closed(Some(code)) => write!(f, "the server closed with code {code}"),
            Problem::Closed(None) => f.write_str("the server closed the connection"),
            Problem::Lost(error) => write!(f, "the connection was lost: {error}"),
        }
    }
}

impl std::error::Error for Problem {}

/// The opening handshake as it went over the wire.
#[derive(Debug, Clone, Default)]
pub struct Handshake {
    /// What was sent.
    pub request: Vec<u8>,
    /// What was answered, without the frames behind it.
    pub response: Vec<u8>,
}

/// What is compressed in both directions, with context takeover.
struct Codec {
    deflater: Compress,
    inflater: Inflater,
}

/// A connection's state.
#[expect(missing_debug_implementations, reason = "the deflater has none")]
pub struct Session {
    /// Whether messages are frames; else octets.
    is_framed: bool,
    keys: Random,
    codec: Option<Codec>,
    /// Room for octets, of which those from `read` to `end` are received and not yet used up.
    received: Vec<u8>,
    read: usize,
    end: usize,
    /// The message whose fragments are arriving.
    echo: Vec<u8>,
    form: Option<Form>,
    is_compressed: bool,
}

/// What has come.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// A whole message stands in [`Session::echo`].
    Echo(Form),
    /// The server sent a close frame, with this code. The octets are those of the frame.
    Close(Option<u16>, Vec<u8>),
    /// A ping, with what its pong has to repeat.
    Ping(Vec<u8>),
}

/// Opens a session on `stream`, which waits: connects it as the target wants it.
///
/// # Errors
///
/// When the server does not answer, or not as a WebSocket server has to.
pub fn open(
    stream: &mut Stream,
    target: &Target,
    compresses: bool,
    seed: u64,
) -> Result<(Session, Handshake), Problem> {
    let mut session = Session::new(target.websocket.is_some(), seed);
    let Some((host, path)) = &target.websocket else {
        return Ok((session, Handshake::default()));
    };
    let mut key = [0; 16];
    for half in key.chunks_mut(8) {
        half.copy_from_slice(&session.keys.number().to_ne_bytes());
    }
    let extensions = compresses.then_some("permessage-deflate");
    let request = Request { host, target: path, key, extensions };
    let octets = request.octets();
    stream.set_waiting(Some(HANDSHAKE_TIMEOUT)).map_err(Problem::Lost)?;
    stream.write_all(&octets).map_err(Problem::Lost)?;
    loop {
        let room = session.room();
        let count = match stream.read(room) {
            Ok(0) => return Err(Problem::Closed(None)),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(Problem::Silent),
            Err(error) => return Err(Problem::Lost(error)),
        };
        session.filled(count);
        let answer = request.check(session.unread()).map_err(Problem::NoWebSocket)?;
        if let Some(accepted) = answer {
            if compresses {
                if accepted.extensions.as_deref() != Some("permessage-deflate") {
                    return Err(Problem::NoCompression(accepted.extensions));
                }
                session.codec = Some(Codec {
                    deflater: Compress::new(Compression::default(), false),
                    inflater: Inflater::default(),
                });
            }
            let response = session.unread()[..accepted.head_bytes].to_vec();
            session.read += accepted.head_bytes;
            return Ok((session, Handshake { request: octets, response }));
        }
    }
}

impl Session {
    fn new(is_framed: bool, seed: u64) -> Session {
        Session {
            is_framed,
            keys: Random::new(seed),
            codec: None,
            received: vec![0; 2 * ROOM],
            read: 0,
            end: 0,
            echo: Vec::new(),
            form: None,
            is_compressed: false,
        }
    }

    /// A session of frames without an opening handshake, for tests.
    #[cfg(test)]
    pub(crate) fn opened(seed: u64) -> Session {
        Session::new(true, seed)
    }

    fn key(&mut self) -> [u8; 4] {
        (self.keys.number() as u32).to_ne_bytes()
    }

    /// Appends the octets of a message, in so many fragments of about the same length.
    pub fn message(&mut self, output: &mut Vec<u8>, form: Form, payload: &[u8], fragments: usize) {
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

    /// Appends the octets of a control frame, where there are frames.
    pub fn control(&mut self, output: &mut Vec<u8>, opcode: Opcode, payload: &[u8]) {
        if self.is_framed {
            let key = self.key();
            frame::append(output, FINAL | opcode as u8, payload, key);
        }
    }

    /// Where received octets go, at least [`ROOM`]; say by [`Session::filled`] how many came.
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

    /// Gives what is used up back, and grows where a message has not come whole.
    #[cold]
    fn make_room(&mut self) {
        self.received.copy_within(self.read..self.end, 0);
        (self.read, self.end) = (0, self.end - self.read);
        if self.received.len() - self.end < ROOM {
            self.received.resize((self.end + ROOM).next_power_of_two(), 0);
        }
    }

    /// Notes that `count` octets were received into the last [`Session::room`].
    #[inline]
    pub fn filled(&mut self, count: usize) {
        self.end += count;
    }

    fn unread(&self) -> &[u8] {
        &self.received[self.read..self.end]
    }

    /// The next thing that has come whole. `payload` is how many octets the next echo has, which
    /// says where it ends if there are no frames.
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
            let end = header.header_length as u64 + header.payload_length;
            if (unread.len() as u64) < end {
                return Ok(None);
            }
            let (octets, payload) = (end as usize, header.header_length..end as usize);
            match header.opcode {
                Opcode::Ping => {
                    let ping = unread[payload].to_vec();
                    self.read += octets;
                    return Ok(Some(Event::Ping(ping)));
                }
                Opcode::Pong => self.read += octets,
                Opcode::Close => {
                    let code = unread[payload].first_chunk().map(|code| u16::from_be_bytes(*code));
                    let frame = unread[..octets].to_vec();
                    self.read += octets;
                    return Ok(Some(Event::Close(code, frame)));
                }
                Opcode::Text | Opcode::Binary | Opcode::Continuation => {
                    if let Some(form) = self.fragment(&header, octets)? {
                        return Ok(Some(Event::Echo(form)));
                    }
                }
            }
        }
    }

    /// Takes a fragment; gives the form of its message if that is whole.
    fn fragment(&mut self, header: &Header, octets: usize) -> Result<Option<Form>, Problem> {
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
        let payload = &self.received[self.read + header.header_length..self.read + octets];
        self.echo.extend_from_slice(payload);
        self.read += octets;
        if !header.is_final {
            return Ok(None);
        }
        if self.is_compressed
            && let Some(codec) = &mut self.codec
        {
            self.echo = codec.inflate(&self.echo)?;
        }
        Ok(self.form.take())
    }

    /// The payload of the last echo.
    pub fn echo(&self) -> &[u8] {
        &self.echo
    }

    /// Compares the last echo with what was sent as message `number`.
    ///
    /// # Errors
    ///
    /// Where it differs.
    #[inline]
    pub fn compare(&self, number: u64, form: (Form, Form), payload: &[u8]) -> Result<(), Problem> {
        if self.echo == payload {
            let (sent, come) = form;
            return if sent == come || !self.is_framed {
                Ok(())
            } else {
                Err(Problem::WrongForm(number))
            };
        }
        let same = self.echo.iter().zip(payload).take_while(|(come, sent)| come == sent).count();
        Err(Problem::WrongEcho(number, same))
    }
}

impl Codec {
    fn deflate(&mut self, payload: &[u8]) -> Vec<u8> {
        let mut output = Vec::with_capacity(payload.len() + payload.len() / 8 + 64);
        let begin = self.deflater.total_in();
        loop {
            let taken = (self.deflater.total_in() - begin) as usize;
            self.deflater
                .compress_vec(&payload[taken..], &mut output, FlushCompress::Sync)
                .expect("deflating cannot fail");
            if output.len() < output.capacity() {
                break;
            }
            output.reserve(output.capacity());
        }
        // RFC 7692 section 7.2.3.6: an empty block is an octet of zero. The deflater makes none when
        // there is nothing since the last flush.
        match output.len().checked_sub(TAIL.len()) {
            Some(length) => output.truncate(length),
            None => output.push(0),
        }
        output
    }

    fn inflate(&mut self, payload: &[u8]) -> Result<Vec<u8>, Problem> {
        self.inflater.message(payload, INFLATED_MAX).map_err(Problem::Broken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receive(session: &mut Session, octets: &[u8]) {
        session.room()[..octets.len()].copy_from_slice(octets);
        session.filled(octets.len());
    }

    #[test]
    fn an_echo_in_fragments_with_control_frames_between_is_put_together() {
        let mut session = Session::opened(1);
        let octets = b"\x01\x03one\x89\x01?\x00\x00\x8a\x00\x80\x04 two\x88\x02\x03\xe8";
        for octet in &octets[..octets.len() - 1] {
            receive(&mut session, &[*octet]);
        }
        assert_eq!(session.next(7).expect("right"), Some(Event::Ping(b"?".to_vec())));
        assert_eq!(session.next(7).expect("right"), Some(Event::Echo(Form::Text)));
        assert_eq!(session.echo(), b"one two");
        session.compare(0, (Form::Text, Form::Text), b"one two").expect("the same");
        let differs = session.compare(3, (Form::Text, Form::Text), b"one too");
        assert!(matches!(differs, Err(Problem::WrongEcho(3, 5))), "{differs:?}");
        let differs = session.compare(3, (Form::Binary, Form::Text), b"one two");
        assert!(matches!(differs, Err(Problem::WrongForm(3))), "{differs:?}");
        assert_eq!(session.next(7).expect("right"), None);
        receive(&mut session, b"\xe8");
        let close = Event::Close(Some(1000), b"\x88\x02\x03\xe8".to_vec());
        assert_eq!(session.next(7).expect("right"), Some(close));
    }

    #[test]
    fn a_server_that_breaks_the_protocol_is_told_so() {
        for (octets, violation) in [
            (&b"\x80\x00"[..], Violation::ContinuationUnexpected),
            (b"\x01\x00\x01\x00", Violation::ContinuationExpected),
            (b"\x81\x80abcd", Violation::Masked),
            (b"\xc1\x00", Violation::ReservedBit),
        ] {
            let mut session = Session::opened(1);
            receive(&mut session, octets);
            let broken = session.next(0).expect_err("wrong");
            assert!(matches!(broken, Problem::Broken(found) if found == violation), "{broken}");
        }
    }

    #[test]
    fn an_empty_message_is_compressed_wherever_it_comes() {
        let mut codec = Codec {
            deflater: Compress::new(Compression::default(), false),
            inflater: Inflater::default(),
        };
        for payload in [&b""[..], b"", b"one", b"", b"", b"one two"] {
            let deflated = codec.deflate(payload);
            assert!(!deflated.is_empty());
            assert_eq!(codec.inflate(&deflated).expect("right"), payload);
        }
    }

    #[test]
    fn messages_are_masked_anew_each_time_and_parted_as_asked() {
        let mut session = Session::opened(1);
        let mut octets = Vec::new();
        for fragments in [1, 3, 1] {
            session.message(&mut octets, Form::Binary, b"0123456789", fragments);
        }
        let (mut at, mut seen) = (0, Vec::new());
        while at < octets.len() {
            let header = Header::parse(&octets[at..], 0).expect("right").expect("whole");
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
    fn plain_octets_end_where_the_message_did() {
        let mut session = Session::new(false, 1);
        receive(&mut session, b"0123456");
        assert_eq!(session.next(4).expect("right"), Some(Event::Echo(Form::Binary)));
        assert_eq!(session.echo(), b"0123");
        assert_eq!(session.next(4).expect("right"), None);
    }
}
