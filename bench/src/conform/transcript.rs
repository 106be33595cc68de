//! What happened on one connection: events in their order, how it ended, and what went over the wire.

use std::fmt;

use ringecho::protocol::violation::Violation;

use super::case::CLOSE;
use super::inflate::Broken;
use super::number::Number;
use crate::session::Form;
use crate::wire::{Closing, Entry, Traffic, Volumes, hexadecimal};

/// Bytes of a payload that are shown.
const SHOWN_MAX: usize = 40;

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

/// Everything that is known of one case.
#[derive(Debug, Clone)]
pub struct Transcript {
    /// The case.
    pub number: Number,
    /// Why there was no connection, if there was none.
    pub refused: Option<String>,
    /// Whether nothing came that would be an answer to the request.
    pub is_unreachable: bool,
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
    /// Whether it ended without saying so in TLS, if there is TLS.
    pub is_unsaid: bool,
    /// How it ended.
    pub closing: Closing,
    /// What went over the wire.
    pub traffic: Traffic,
    /// The messages among that.
    pub messages: Volumes,
    /// The same in its order, without the opening handshake and without round trips.
    pub log: Vec<Entry>,
}

impl Transcript {
    /// A transcript of nothing.
    pub fn new(number: Number) -> Transcript {
        Transcript {
            number,
            refused: None,
            is_unreachable: false,
            lacks_compression: false,
            is_unopened: false,
            events: Vec::new(),
            rounds: None,
            violation: None,
            not_inflated: None,
            is_close_broken: false,
            is_reset: false,
            is_unsaid: false,
            closing: Closing::default(),
            traffic: Traffic::default(),
            messages: Volumes::default(),
            log: Vec::new(),
        }
    }

    /// Whether the peer opened the connection and then sent nothing at all, not even a close frame.
    pub fn is_silent(&self) -> bool {
        self.traffic.frames_received.is_empty() && self.closing.was_close_handshake_timeout
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
