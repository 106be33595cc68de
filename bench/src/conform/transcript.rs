//! What happened on one connection: events in their order, how it ended, and what went over the wire.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use ringecho::protocol::violation::Violation;
use serde::Serialize;

use super::case::CLOSE;
use super::inflate::Broken;
use super::number::Number;
use crate::rtt::SizeCounts;
use crate::session::Form;

/// Bytes of a payload that are shown.
const SHOWN_MAX: usize = 40;
/// Bytes of a send, a receive or a payload that the wire log holds.
const LOGGED_MAX: usize = 256;

/// Something that the peer sent, or a pause in which it did not end the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A whole message.
    Message(Form, Vec<u8>),
    /// A ping.
    Ping(Vec<u8>),
    /// A pong.
    Pong(Vec<u8>),
    /// Nothing, during the pause of this name.
    Silence(char),
    /// An HTTP response that opens no connection: its status, and its fields by name and value.
    Refused(u16, Vec<(String, String)>),
    /// The end of the connection instead of an HTTP response.
    HungUp,
    /// The opening of a connection that should not be opened.
    Opened,
    /// An agreement on an extension, as the server wrote it.
    Agreed(String),
}

/// How messages and their echoes went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rounds {
    /// How many were to be sent.
    pub count: u32,
    /// How many came back right.
    pub right: u32,
    /// What was wrong with the one after that.
    pub wrong: Option<String>,
}

/// What went over the wire.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Traffic {
    /// Receives by their size in bytes, with the response of the opening handshake.
    pub received: SizeCounts,
    /// Sends by their size in bytes, with the request.
    pub sent: SizeCounts,
    /// Received frames by opcode.
    pub frames_received: BTreeMap<u8, u64>,
    /// Sent frames by opcode.
    pub frames_sent: BTreeMap<u8, u64>,
}

/// How the connection ended, in the words of the Autobahn suite. *Me* is this program.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Closing {
    /// Whether this program was the server.
    pub is_server: bool,
    /// Whether it sent the first close frame.
    pub closed_by_me: bool,
    /// Whether it failed the connection.
    pub failed_by_me: bool,
    /// Whether it ended the TCP connection.
    pub dropped_by_me: bool,
    /// Whether both close frames were sent and the server ended the TCP connection.
    pub was_clean: bool,
    /// Why it was not clean.
    pub was_not_clean_reason: Option<String>,
    /// Whether the server did not end the TCP connection in time.
    pub was_server_connection_drop_timeout: bool,
    /// Whether the opening handshake took too long.
    pub was_open_handshake_timeout: bool,
    /// Whether the peer did not answer a close frame in time.
    pub was_close_handshake_timeout: bool,
    /// The code in the close frame that this program sent.
    pub local_close_code: Option<u16>,
    /// The reason in it, in hexadecimal if it is not UTF-8.
    pub local_close_reason: Option<String>,
    /// The code in the peer's close frame.
    pub remote_close_code: Option<u16>,
    /// The reason in it.
    pub remote_close_reason: Option<String>,
}

/// A line of the wire log. Of long bytes it holds the beginning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A send.
    Sent(Octets),
    /// A receive.
    Received(Octets),
    /// A frame that was sent: the first byte of its header, its payload and its masking key.
    FrameSent(u8, Octets, Option<[u8; 4]>),
    /// A frame that was received. Its payload is unmasked.
    FrameReceived(u8, Octets),
    /// A pause of this length and name begins.
    Pause(Duration, char),
    /// A pause of this name is over.
    PauseOver(char),
    /// The time is over, and the connection is failed or closed.
    LimitOver,
    /// From here on nothing is logged, because there is too much of it.
    Off,
    /// From here on everything is logged again.
    On,
}

/// Bytes of the wire log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Octets {
    /// How many there are.
    pub count: usize,
    /// The first of them.
    pub beginning: Vec<u8>,
}

impl Octets {
    /// What is logged of these bytes.
    pub fn of(bytes: &[u8]) -> Octets {
        let beginning = bytes[..bytes.len().min(LOGGED_MAX)].to_vec();
        Octets { count: bytes.len(), beginning }
    }
}

/// Everything that is known of one case.
#[derive(Debug, Clone)]
pub struct Transcript {
    /// The case.
    pub number: Number,
    /// Why there was no connection, if there was none.
    pub refused: Option<String>,
    /// Whether the peer declined the compression that the case needs.
    pub lacks_compression: bool,
    /// Whether the opening handshake, which is what is tested, opened no connection.
    pub is_unopened: bool,
    /// What came, in order.
    pub events: Vec<Event>,
    /// How messages and their echoes went, if the case has some.
    pub rounds: Option<Rounds>,
    /// The first rule that the peer broke in its frames.
    pub violation: Option<Violation>,
    /// What was wrong with a compressed message, if that was it.
    pub not_inflated: Option<Broken>,
    /// Whether the rule was broken by a close frame.
    pub is_close_broken: bool,
    /// Whether the peer ended the TCP connection by a reset.
    pub is_reset: bool,
    /// How it ended.
    pub closing: Closing,
    /// What went over the wire.
    pub traffic: Traffic,
    /// The same in its order, without the opening handshake and without round trips.
    pub log: Vec<Entry>,
}

impl Transcript {
    /// A transcript of nothing.
    pub fn new(number: Number) -> Transcript {
        Transcript {
            number,
            refused: None,
            lacks_compression: false,
            is_unopened: false,
            events: Vec::new(),
            rounds: None,
            violation: None,
            not_inflated: None,
            is_close_broken: false,
            is_reset: false,
            closing: Closing::default(),
            traffic: Traffic::default(),
            log: Vec::new(),
        }
    }

    /// Notes that a compressed message could not be inflated. Returns the rule that it breaks.
    pub fn not_inflated(&mut self, broken: Broken) -> Violation {
        self.not_inflated.get_or_insert(broken);
        broken.violation()
    }

    /// How many close frames came.
    pub fn close_frames(&self) -> u64 {
        self.traffic.frames_received.get(&CLOSE).copied().unwrap_or(0)
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Event::Message(form, payload) => write!(f, "{form} message {}", shown(payload)),
            Event::Ping(payload) => write!(f, "ping {}", shown(payload)),
            Event::Pong(payload) => write!(f, "pong {}", shown(payload)),
            Event::Silence(name) => write!(f, "connection open after pause {name}"),
            Event::Refused(status, _) => write!(f, "a response of status {status}"),
            Event::HungUp => f.write_str("the end of the connection without a response"),
            Event::Opened => f.write_str("the connection is opened"),
            Event::Agreed(text) => write!(f, "agreement to {text:?}"),
        }
    }
}

/// A payload as text within quotes, or in hexadecimal if it is not text; its beginning, if it is long.
pub fn shown(payload: &[u8]) -> String {
    let (kept, rest) = payload.split_at(payload.len().min(SHOWN_MAX));
    let kept = match str::from_utf8(kept) {
        Ok(text) => format!("{text:?}"),
        Err(_) => format!("0x{}", hexadecimal(kept)),
    };
    if rest.is_empty() { kept } else { format!("{kept}... ({} bytes)", payload.len()) }
}

/// Bytes in hexadecimal.
pub fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_are_shown_as_text_where_they_are_text() {
        assert_eq!(shown(b""), "\"\"");
        assert_eq!(shown(b"a\x1b"), "\"a\\u{1b}\"");
        assert_eq!(shown(b"\xff\x00"), "0xff00");
        let long = shown(&[b'*'; 65536]);
        assert!(long.ends_with("*\"... (65536 bytes)") && long.len() < 70, "{long}");
    }
}
