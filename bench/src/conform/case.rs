//! What a case is: plain data, which names no socket and no clock.
//!
//! A case says what is sent and how it is cut into pieces, what may come back and what each answer is
//! worth, and how the connection has to end. [`super::exchange`] carries it out, [`super::verdict`]
//! judges it. A case is written for one end of a connection and runs in either role.

use std::fmt;
use std::time::Duration;

use super::corpora::Corpus;
use super::deflate::Offer;
use super::number::Number;
use super::transcript::Event;
use super::verdict::Behavior;
use crate::session::Form;
use crate::socket::Sealing;

/// The opcode of a continuation frame (RFC 6455 section 5.2).
pub const CONTINUATION: u8 = 0;
/// That of a text frame.
pub const TEXT: u8 = 1;
/// That of a binary frame.
pub const BINARY: u8 = 2;
/// That of a close frame.
pub const CLOSE: u8 = 8;
/// That of a ping.
pub const PING: u8 = 9;
/// That of a pong.
pub const PONG: u8 = 10;

/// Normal closure (RFC 6455 section 7.4.1).
pub const NORMAL: u16 = 1000;
/// A protocol error.
pub const PROTOCOL_ERROR: u16 = 1002;
/// A payload that does not fit the type of its message, such as text that is not UTF-8.
pub const INVALID_PAYLOAD: u16 = 1007;

/// The section of cases about TLS.
pub const SECTION_TLS: u16 = 26;

/// A case.
#[derive(Debug, Clone)]
pub struct Case {
    /// Its number.
    pub number: Number,
    /// The rule that it tests, such as `RFC 6455 5.5.1`.
    pub clause: &'static str,
    /// What is sent, in a sentence.
    pub description: String,
    /// What has to come back, in a sentence.
    pub expectation: String,
    /// What is sent on an earlier connection, which is then reset; nothing without one.
    pub earlier: Vec<Step>,
    /// How the connection is opened.
    pub opening: Opening,
    /// What is sent.
    pub script: Vec<Step>,
    /// Into how many sends it is cut, if not as the script says.
    pub sends: Sends,
    /// What happens if the peer does nothing.
    pub limit: Limit,
    /// What the peer may send back, and what that is worth. The first that fits counts; if none does,
    /// the case has failed.
    pub outcomes: Vec<(Behavior, Vec<Expected>)>,
    /// How the connection has to end.
    pub close: Ending,
    /// What is offered in the opening handshake, in order of preference; nothing without compression.
    pub offers: Vec<Offer>,
    /// What must be agreed on compression for the case to make sense.
    pub needs: Needs,
}

/// How the connection of a case is opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Opening {
    /// As it should be, before the case begins.
    Given,
    /// By this request, which tests a server. `{host}`, `{target}` and `{key}` stand for those of the
    /// connection.
    Request(Vec<u8>, Chop),
    /// By this response, which tests a client. `{accept}` stands for the answer to its key.
    Response(Vec<u8>, Chop),
}

/// Into how many sends a script is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sends {
    /// As its steps say.
    AsWritten,
    /// Everything between two pauses is one, with the request or response before it.
    Joined,
    /// Each byte is one.
    Bytes,
}

/// What must be agreed on compression for a case to make sense. Without it, the case is UNIMPLEMENTED.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// As much as is offered.
    Offered,
    /// Also that this side's messages may refer to earlier ones.
    Takeover,
}

/// A part of what is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Frames, whatever they contain.
    Frames(Vec<Frame>, Chop),
    /// The header of a frame and the first bytes of its payload.
    Begin(Frame, usize),
    /// As many further bytes of the frame that was begun.
    More(usize),
    /// The end of what this side sends: half of the connection is closed.
    End,
    /// A reset of the connection.
    Reset,
    /// Something that is done to TLS, below what is sent. It bears on the steps after it.
    Tls(Sealing),
    /// Waits, and notes this name if the connection is still open after that. If it is not, the rest is
    /// left out.
    Pause(Duration, char),
    /// A close frame with this payload. It begins the closing handshake, valid or not.
    Close(Vec<u8>),
    /// Messages, the next one when the echo of the last one has come. If an echo is wrong, the rest is
    /// left out.
    RoundTrips(RoundTrips),
}

/// How bytes are cut into sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chop {
    /// All at once.
    Whole,
    /// Each frame by itself.
    Frames,
    /// So many bytes at a time, at most.
    Bytes(usize),
}

/// A frame, valid or not. Whether it is masked depends on the role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// FIN.
    pub is_final: bool,
    /// RSV1, RSV2 and RSV3, from the highest bit to the lowest: 0 to 7.
    pub reserved: u8,
    /// The opcode, 0 to 15.
    pub opcode: u8,
    /// The rest of its header.
    pub header: Header,
    /// The payload.
    pub payload: Payload,
}

/// What the header of a frame says of mask and length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Header {
    /// What it should.
    Right,
    /// The frame is masked if it should not be, and the other way round.
    MaskedWrongly,
    /// The length has 16 bits, although it is short.
    Length16,
    /// The length has 64 bits, and is this one.
    Length64(u64),
}

/// The payload of a frame or a message. Long ones are not kept in memory.
#[derive(Debug, Clone)]
pub enum Payload {
    /// These bytes.
    Bytes(Vec<u8>),
    /// A pattern, repeated and cut off to this length.
    Repeated(&'static [u8], usize),
}

/// Messages that are sent one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoundTrips {
    /// How many.
    pub count: u32,
    /// Text or binary.
    pub form: Form,
    /// What they contain.
    pub content: Content,
    /// The length of a fragment's payload, if each message is cut into fragments.
    pub fragment_bytes: Option<usize>,
    /// How each is cut into sends.
    pub chop: Chop,
}

/// What messages contain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// All the same.
    Same(Payload),
    /// Successive parts of this length of a text that begins again at its end. They are compressed.
    Of(Corpus, usize),
}

/// Something that may come back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expected {
    /// A message.
    Message(Form, Payload),
    /// A pong.
    Pong(Vec<u8>),
    /// Nothing during the pause of this name, which the connection survives.
    Silence(char),
    /// Pongs that answer pings whose payloads begin with their number, 32 bits, in their order. A peer
    /// need not answer all of them (RFC 6455 section 5.5.3); the last one must be this, if there is one.
    Pongs(Option<u32>),
    /// An HTTP response with a status from the first to the second, and perhaps this field.
    Refused(u16, u16, Option<&'static str>),
    /// The end of the connection instead of an HTTP response.
    HungUp,
    /// An agreement on permessage-deflate that this offer allows.
    Agreed(Offer),
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Expected::Message(form, payload) => {
                write!(f, "{}", Event::Message(*form, payload.to_vec()))
            }
            Expected::Pong(payload) => write!(f, "{}", Event::Pong(payload.clone())),
            Expected::Silence(name) => write!(f, "{}", Event::Silence(*name)),
            Expected::Pongs(Some(last)) => write!(f, "pongs up to number {last}"),
            Expected::Pongs(None) => f.write_str("any pongs"),
            Expected::Refused(from, to, None) => write!(f, "a response of status {from} to {to}"),
            Expected::Refused(from, to, Some(field)) => {
                write!(f, "a response of status {from} to {to} with {field}")
            }
            Expected::HungUp => f.write_str("the end of the connection without a response"),
            Expected::Agreed(_) => f.write_str("an agreement that the offer allows"),
        }
    }
}

/// What happens if the peer does nothing for so long after everything was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// The connection is failed.
    Fail(Duration),
    /// The connection is closed.
    Close(Duration),
}

/// How the connection has to end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    /// Who sends the first close frame, or ends the connection without one.
    pub by: End,
    /// The close codes that the peer may send. A close frame without a code is right everywhere.
    /// Where this side closes, it sends the first of them.
    pub codes: Vec<u16>,
    /// Whether the closing handshake has to be complete (RFC 6455 section 7.1.4).
    pub needs_handshake: bool,
    /// How it bears on the verdict of the whole case.
    pub weight: Weight,
}

/// An end of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// This program.
    Ours,
    /// What is tested.
    Theirs,
    /// Either: the peer may fail the connection. If it does not and has answered, this side closes.
    Either,
}

/// How the end of the connection bears on the verdict of the whole case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weight {
    /// It has a verdict of its own only.
    Apart,
    /// A wrong code fails the case.
    CodeCounts,
    /// An end by the wrong side fails the case.
    EndCounts,
    /// What the RFC recommends counts, too: the peer sends one close frame, and does not reset the
    /// connection. Otherwise the case is NON-STRICT.
    FormCounts,
    /// An end by the wrong side fails the case, and what RFC 8446 demands counts, too: the peer says in TLS
    /// that it ends. Otherwise the case is NON-STRICT, because a reset may have overtaken that.
    TlsCounts,
    /// The RFC leaves everything open: nothing that happens is wrong.
    Open,
}

impl Frame {
    /// A whole frame with this payload.
    pub fn new(opcode: u8, payload: impl Into<Payload>) -> Frame {
        let (header, payload) = (Header::Right, payload.into());
        Frame { is_final: true, reserved: 0, opcode, header, payload }
    }

    /// The same without FIN.
    pub fn unfinished(self) -> Frame {
        Frame { is_final: false, ..self }
    }

    /// The same with these reserved bits.
    pub fn reserved(self, reserved: u8) -> Frame {
        Frame { reserved, ..self }
    }

    /// The same with this rest of the header.
    pub fn with(self, header: Header) -> Frame {
        Frame { header, ..self }
    }

    /// The first byte of its header.
    pub fn first_byte(&self) -> u8 {
        u8::from(self.is_final) << 7 | self.reserved << 4 | self.opcode
    }
}

impl Payload {
    /// Its length in bytes.
    pub fn len(&self) -> usize {
        match self {
            Payload::Bytes(bytes) => bytes.len(),
            Payload::Repeated(_, length) => *length,
        }
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Its bytes.
    pub fn to_vec(&self) -> Vec<u8> {
        match self {
            Payload::Bytes(bytes) => bytes.clone(),
            Payload::Repeated(pattern, length) => {
                let mut bytes = pattern.repeat(length.div_ceil(pattern.len()));
                bytes.truncate(*length);
                bytes
            }
        }
    }
}

/// Two payloads are equal if they have the same bytes.
impl PartialEq for Payload {
    fn eq(&self, other: &Payload) -> bool {
        self.len() == other.len() && self.to_vec() == other.to_vec()
    }
}

impl Eq for Payload {}

impl From<&str> for Payload {
    fn from(text: &str) -> Payload {
        Payload::Bytes(text.into())
    }
}

impl From<&[u8]> for Payload {
    fn from(bytes: &[u8]) -> Payload {
        Payload::Bytes(bytes.into())
    }
}

impl From<Vec<u8>> for Payload {
    fn from(bytes: Vec<u8>) -> Payload {
        Payload::Bytes(bytes)
    }
}

impl Ending {
    /// This side closes when everything has come back, and the closing handshake is complete
    /// (RFC 6455 section 7.1.1 and 7.1.4).
    pub fn clean() -> Ending {
        let codes = vec![NORMAL];
        Ending { by: End::Ours, codes, needs_handshake: true, weight: Weight::Apart }
    }

    /// The peer fails the connection with this code, or none (RFC 6455 section 7.1.7).
    pub fn failed_with(code: u16) -> Ending {
        let codes = vec![code];
        Ending { by: End::Theirs, codes, needs_handshake: false, weight: Weight::Apart }
    }

    /// The peer may fail the connection with one of these codes, or none. If it does not, this side
    /// closes with the first of them.
    pub fn either(codes: impl Into<Vec<u16>>) -> Ending {
        let (by, codes) = (End::Either, codes.into());
        Ending { by, codes, needs_handshake: false, weight: Weight::EndCounts }
    }

    /// The same end with another weight.
    pub fn weighing(self, weight: Weight) -> Ending {
        Ending { weight, ..self }
    }
}

impl Opening {
    /// What is sent instead of what should be, and how it is cut.
    pub fn head(&self) -> Option<(&[u8], Chop)> {
        match self {
            Opening::Given => None,
            Opening::Request(head, chop) | Opening::Response(head, chop) => Some((head, *chop)),
        }
    }
}

impl Case {
    /// Whether it tests a server.
    pub fn tests_servers(&self) -> bool {
        !matches!(self.opening, Opening::Response(..))
    }

    /// Whether it is about TLS, and of no use without.
    pub fn needs_tls(&self) -> bool {
        self.number.section() == SECTION_TLS
    }

    /// Whether it tests a client. A client cannot be made to connect earlier, to be reset.
    pub fn tests_clients(&self) -> bool {
        !matches!(self.opening, Opening::Request(..)) && self.earlier.is_empty()
    }

    /// Whether a connection that is opened is of any use for it, or has failed it already.
    pub fn goes_on_when_opened(&self) -> bool {
        let refused = |events: &Vec<Expected>| {
            matches!(events[..], [Expected::Refused(..) | Expected::HungUp])
        };
        !self.outcomes.iter().all(|(_, events)| refused(events))
    }

    /// Whether its duration says something about the peer: it consists of round trips.
    pub fn is_timed(&self) -> bool {
        self.script.iter().any(|step| matches!(step, Step::RoundTrips(_)))
    }

    /// About how long it takes in seconds, to begin with what takes longest.
    pub fn cost(&self) -> f64 {
        /// Bytes a second of messages that are compressed, and that are not; messages a second.
        const RATES: [f64; 3] = [200e6, 1e9, 15e3];
        let step = |step: &Step| match step {
            Step::Pause(duration, _) => duration.as_secs_f64(),
            Step::RoundTrips(trips) => {
                let (bytes, rate) = match &trips.content {
                    Content::Same(payload) => (payload.len(), RATES[1]),
                    Content::Of(_, bytes) => (*bytes, RATES[0]),
                };
                f64::from(trips.count) * (bytes as f64 / rate + 1.0 / RATES[2])
            }
            Step::Frames(..)
            | Step::Begin(..)
            | Step::More(_)
            | Step::End
            | Step::Reset
            | Step::Tls(_)
            | Step::Close(_) => 0.0,
        };
        self.script.iter().map(step).sum()
    }
}
