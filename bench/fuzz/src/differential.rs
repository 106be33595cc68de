//! The server compared with tungstenite: which handshakes, frames and messages are accepted, what is echoed,
//! and with which close code a connection fails.
//!
//! Where the two differ on purpose, the difference is named here.

use std::io::{self, Cursor, Read, Write};

use arbitrary::Arbitrary;
use ringecho::metrics::Counters;
use ringecho::protocol::pool::Budget;
use ringecho::protocol::{Admission, Context, Policy, handshake};
use testkit::frame::{header, masked, parse};
use testkit::{CLOSE, FIN, PONG, REQUEST, Random};
use tungstenite::error::{Error, ProtocolError};
use tungstenite::handshake::machine::TryParse as _;
use tungstenite::handshake::server::{Request, create_response};
use tungstenite::protocol::{Message, Role, WebSocket, WebSocketConfig};

use crate::peer::Peer;
use crate::setup::{settings, terms};

/// The largest messages accepted.
const LIMITS: [u64; 4] = [1, 125, 300, 1 << 20];

#[derive(Debug, Arbitrary)]
pub(crate) enum Input<'a> {
    /// An opening handshake with this head.
    Head(&'a [u8]),
    /// Whole frames after an opening handshake.
    Frames { limit: u8, seed: u64, frames: Vec<Frame<'a>> },
}

#[derive(Debug, Arbitrary)]
pub(crate) struct Frame<'a> {
    first: u8,
    is_masked: Masking,
    payload: Payload<'a>,
}

#[derive(Debug, Arbitrary)]
enum Masking {
    Key([u8; 4]),
    Zero,
    /// Which no client may do.
    None(bool),
}

#[derive(Debug, Arbitrary)]
enum Payload<'a> {
    Bytes(&'a [u8]),
    Text(&'a str),
    /// A close code and a reason.
    Code(u16, &'a str),
    Long(u8, u16),
}

impl Frame<'_> {
    fn payload(&self) -> Vec<u8> {
        match self.payload {
            Payload::Bytes(bytes) => bytes.to_vec(),
            Payload::Text(text) => text.as_bytes().to_vec(),
            Payload::Code(code, reason) => [&code.to_be_bytes()[..], reason.as_bytes()].concat(),
            Payload::Long(byte, bytes) => vec![byte; usize::from(bytes)],
        }
    }

    fn append_to(&self, bytes: &mut Vec<u8>) {
        let payload = self.payload();
        match self.is_masked {
            Masking::Key(key) => bytes.extend(masked(self.first, &payload, key)),
            Masking::Zero | Masking::None(false) => {
                bytes.extend(masked(self.first, &payload, [0; 4]));
            }
            Masking::None(true) => {
                bytes.extend(header(self.first, payload.len() as u64, None));
                bytes.extend(payload);
            }
        }
    }
}

pub(crate) fn run(input: Input<'_>) {
    match input {
        Input::Head(head) => compare_heads(head),
        Input::Frames { limit, seed, frames } => {
            let message_max = LIMITS[usize::from(limit) % LIMITS.len()];
            let mut bytes = Vec::new();
            frames.iter().for_each(|frame| frame.append_to(&mut bytes));
            compare(&ours(&bytes, message_max, seed), &theirs(bytes, message_max));
        }
    }
}

/// What a server makes of frames.
#[derive(Debug, Default)]
struct Said {
    /// Whole messages, with whether they are text.
    messages: Vec<(bool, Vec<u8>)>,
    pongs: Vec<Vec<u8>>,
    end: End,
}

/// How it ends.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The server waits for more.
    #[default]
    Open,
    /// The client's close frame is answered, with this code.
    Closed(Option<u16>),
    /// The connection fails with this code.
    Failed(u16),
}

impl Said {
    /// Reads what a server has sent.
    fn read(sent: &[u8]) -> Said {
        let mut said = Said::default();
        let mut message = None;
        for frame in parse(sent) {
            match frame.first {
                CLOSE => said.end = End::Closed(frame.close_code()),
                PONG => said.pongs.push(frame.payload),
                first => {
                    let begun = || (first & 0x0f == 1, Vec::new());
                    message.get_or_insert_with(begun).1.extend(frame.payload);
                    said.messages.extend(message.take_if(|_| first & FIN != 0));
                }
            }
        }
        said
    }
}

fn ours(bytes: &[u8], message_max: u64, seed: u64) -> Said {
    let counters = Counters::default();
    let context = Context::new(settings(message_max, Policy::Off), &counters);
    let mut peer = Peer::new(1024, &context);
    peer.handshake(REQUEST);
    let mut random = Random::new(seed);
    let cuts = random.cuts(bytes.len().max(1));
    peer.feed(bytes, &cuts, Some(&mut random));
    peer.send(usize::MAX);
    let mut said = Said::read(&peer.sent);
    if counters.protocol_violations.value() > 0
        && let End::Closed(Some(code)) = said.end
    {
        said.end = End::Failed(code);
    }
    said
}

/// A client that sends everything at once.
struct Wire {
    received: Cursor<Vec<u8>>,
    sent: Vec<u8>,
}

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.received.read(buffer)
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.sent.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn theirs(bytes: Vec<u8>, message_max: u64) -> Said {
    let wire = Wire { received: Cursor::new(bytes), sent: Vec::new() };
    let config = WebSocketConfig::default()
        .max_message_size(Some(message_max as usize))
        .max_frame_size(None)
        .read_buffer_size(4096)
        .write_buffer_size(0);
    let mut socket = WebSocket::from_raw_socket(wire, Role::Server, Some(config));
    let problem = loop {
        let outcome = match socket.read() {
            Ok(message @ (Message::Text(_) | Message::Binary(_))) => socket.send(message),
            Ok(Message::Ping(_) | Message::Pong(_) | Message::Close(_) | Message::Frame(_)) => {
                Ok(())
            }
            Err(problem) => Err(problem),
        };
        if let Err(problem) = outcome {
            break problem;
        }
    };
    let mut said = Said::read(&socket.get_ref().sent);
    said.end = match problem {
        Error::ConnectionClosed => said.end,
        Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => End::Open,
        Error::Protocol(_) => End::Failed(1002),
        Error::Utf8(_) => End::Failed(1007),
        Error::Capacity(_) => End::Failed(1009),
        problem => panic!("{problem}"),
    };
    said
}

fn compare(ours: &Said, theirs: &Said) {
    assert_eq!(ours.messages, theirs.messages, "{ours:?} {theirs:?}");
    assert_eq!(ours.pongs, theirs.pongs, "{ours:?} {theirs:?}");
    let is_same = match (ours.end, theirs.end) {
        // It answers a code that must not be sent with 1002, as if that was the client's; and so it does with
        // 1014, which is not in its list.
        (End::Failed(1002) | End::Closed(Some(1014)), End::Closed(Some(1002))) => true,
        // A close frame whose code is wrong as well as its reason: we look at the code first.
        (End::Failed(1002), End::Failed(1007)) => true,
        (ours, theirs) => ours == theirs,
    };
    assert!(is_same, "{ours:?} {theirs:?}");
}

/// Whoever accepts a handshake gives the same answer, and takes the same bytes for it.
fn compare_heads(head: &[u8]) {
    let recompression = Budget::new(0);
    let ours = handshake::answer(head, Admission::Open, &terms(Policy::Off, &recompression));
    let theirs = Request::try_parse(head).and_then(|parsed| match parsed {
        Some((length, request)) => Ok(Some((length, create_response(&request)?))),
        None => Ok(None),
    });
    match (ours, theirs) {
        (Ok(Some(ours)), Ok(Some((length, response)))) => {
            assert_eq!(ours.head_bytes, length);
            let accept = response.headers()["Sec-WebSocket-Accept"].to_str().expect("ASCII");
            let ours = str::from_utf8(&ours.response).expect("ASCII");
            assert!(ours.contains(&format!("Sec-WebSocket-Accept: {accept}\r\n")), "{ours}");
        }
        (Ok(Some(ours)), theirs) => assert!(
            differs_on_purpose(&head[..ours.head_bytes]),
            "tungstenite refuses: {theirs:?}\n{}",
            head.escape_ascii()
        ),
        // We demand more: the Host field, line ends, a key once, and so on.
        (Ok(None) | Err(_), _) => {}
    }
}

/// Whether a head that we accept has something in it that tungstenite does not take.
fn differs_on_purpose(head: &[u8]) -> bool {
    let text = String::from_utf8_lossy(head);
    let mut lines = text.trim_start_matches("\r\n").split("\r\n");
    let line = lines.next().unwrap_or_default();
    let values = |name: &str| -> Vec<String> {
        let fields = text.split("\r\n").skip(1).filter_map(|line| line.split_once(':'));
        let values = fields.filter(|(field, _)| field.eq_ignore_ascii_case(name));
        values.map(|(_, value)| value.trim().to_owned()).collect()
    };
    let (upgrade, connection) = (values("Upgrade"), values("Connection"));
    let key = values("Sec-WebSocket-Key");
    let is_key = |key: &String| {
        key.ends_with("A==") || key.ends_with("Q==") || key.ends_with("g==") || key.ends_with("w==")
    };
    // HTTP/1.2 and later.
    !line.ends_with("HTTP/1.1")
        // What the crate `http` does not take for a URI.
        || line.split(' ').nth(1).is_none_or(|target| target.parse::<tungstenite::http::Uri>().is_err())
        // It looks only at the first field, and splits no list of protocols.
        || upgrade.len() != 1
        || !upgrade[0].eq_ignore_ascii_case("websocket")
        // It looks only at the first field, and splits it at spaces and commas.
        || connection.len() != 1
        || !connection[0].split([' ', ',']).any(|token| token.eq_ignore_ascii_case("upgrade"))
        || !connection[0].is_ascii()
        // RFC 6455 section 4.3 leaves the unused bits of the last character open; it does not.
        || !key.iter().all(is_key)
}
