//! The client's role of `ringbench`: any bytes of a server, received in any pieces. What it makes of them does
//! not depend on the pieces, and begins with what a plain reading finds.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as BASE64;
use libfuzzer_sys::Corpus;
use ringecho::protocol::client::Request;
use testkit::inflate::Inflater;
use testkit::oracle::accept_of;
use testkit::{CLOSE, FIN, PING, PONG, RSV1};

use crate::session::{Event, Form, Session};

const SEED: u64 = 1;
const OFFER: &str = "permessage-deflate";
/// No echo is refused for its length that is not longer.
const MESSAGE_MAX: usize = 1 << 20;
/// What was sent before.
const MESSAGE: &[u8] = b"a message";

/// What came out of a stream, in order, with messages; and what ended it.
#[derive(Debug, PartialEq, Eq)]
struct Heard {
    is_open: bool,
    events: Vec<(Event, Vec<u8>)>,
    /// The problem, in its own words.
    problem: Option<String>,
}

pub(crate) fn run(data: &[u8]) -> Corpus {
    let [choice, piece, rest @ ..] = data else { return Corpus::Reject };
    let is_compressed = choice & 1 != 0;
    let has_response = choice & 2 != 0;
    let mut bytes = if has_response { response(is_compressed) } else { Vec::new() };
    let head = bytes.len();
    bytes.extend(rest);
    let whole = hear(&bytes, is_compressed, usize::MAX);
    let pieces = hear(&bytes, is_compressed, usize::from(*piece) + 1);
    assert_eq!(whole, pieces);
    if has_response {
        assert!(whole.is_open);
        let expected = read(&bytes[head..], is_compressed);
        assert!(whole.events.starts_with(&expected), "{whole:?} but not {expected:?}");
    }
    Corpus::Keep
}

/// The response that opens the connection.
fn response(is_compressed: bool) -> Vec<u8> {
    let key = BASE64.encode(Session::framed(SEED).nonce());
    let accept = accept_of(&key);
    let extensions = match is_compressed {
        true => format!("Sec-WebSocket-Extensions: {OFFER}\r\n"),
        false => String::new(),
    };
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\n{extensions}\r\n"
    )
    .into_bytes()
}

/// Lets a session receive `bytes` in pieces of `piece` bytes.
fn hear(bytes: &[u8], is_compressed: bool, piece: usize) -> Heard {
    let mut session = Session::framed(SEED);
    let key = session.nonce();
    let extensions = is_compressed.then_some(OFFER);
    let request = Request { host: "fuzz", target: "/", key, extensions };
    let mut heard = Heard { is_open: false, events: Vec::new(), problem: None };
    let mut rest = bytes;
    while !rest.is_empty() && heard.problem.is_none() {
        let room = session.room();
        let count = piece.min(rest.len()).min(room.len());
        room[..count].copy_from_slice(&rest[..count]);
        session.filled(count);
        rest = &rest[count..];
        heard.listen(&mut session, &request);
    }
    heard
}

impl Heard {
    fn listen(&mut self, session: &mut Session, request: &Request<'_>) {
        if !self.is_open {
            match session.opened(request) {
                Ok(None) => return,
                Ok(Some(_)) => self.is_open = true,
                Err(problem) => return self.problem = Some(problem.to_string()),
            }
            session.message(&mut Vec::new(), Form::Binary, MESSAGE, 1);
        }
        loop {
            match session.next(MESSAGE.len()) {
                Ok(None) => return,
                Ok(Some(event @ Event::Echo(_))) => {
                    self.events.push((event, session.echo().to_vec()));
                }
                Ok(Some(event @ (Event::Close(..) | Event::Ping(_)))) => {
                    self.events.push((event, Vec::new()));
                }
                Err(problem) => return self.problem = Some(problem.to_string()),
            }
        }
    }
}

/// What `bytes` hold, up to the first thing that is not as a server should send it.
fn read(bytes: &[u8], is_compressed: bool) -> Vec<(Event, Vec<u8>)> {
    let mut events = Vec::new();
    let mut inflater = Inflater::default();
    // The first byte of the message that is arriving, and its payload.
    let mut message: Option<(u8, Vec<u8>)> = None;
    let mut at = 0;
    while let Some((first, header, payload)) = frame(&bytes[at..]) {
        let whole = &bytes[at..at + header + payload.len()];
        at += whole.len();
        match (first, &mut message) {
            (PING, _) if payload.len() < 126 => {
                events.push((Event::Ping(payload.to_vec()), Vec::new()));
            }
            (PONG, _) if payload.len() < 126 => {}
            (CLOSE, _) if payload.len() < 126 => {
                let code = payload.first_chunk().map(|code| u16::from_be_bytes(*code));
                let is_right = code.map_or(payload.is_empty(), |code| {
                    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
                        && str::from_utf8(&payload[2..]).is_ok()
                });
                if !is_right {
                    return events;
                }
                events.push((Event::Close(code, whole.to_vec()), Vec::new()));
            }
            (0 | FIN, Some((_, before))) => before.extend(payload),
            (first, None) => {
                let bits = if is_compressed { RSV1 } else { 0 };
                if !matches!(first & !(FIN | bits), 1 | 2) {
                    return events;
                }
                message = Some((first, payload.to_vec()));
            }
            _ => return events,
        }
        if first & FIN == 0 || first & 8 != 0 {
            continue;
        }
        let Some((first, mut payload)) = message.take() else { return events };
        if first & RSV1 != 0 {
            match inflater.message(&payload) {
                Ok(inflated) if inflated.len() <= MESSAGE_MAX => payload = inflated,
                Ok(_) | Err(_) => return events,
            }
        }
        let form = if first & 0x0f == 1 { Form::Text } else { Form::Binary };
        events.push((Event::Echo(form), payload));
    }
    events
}

/// The first byte, the length of the header and the payload of a whole frame with the shortest length.
fn frame(bytes: &[u8]) -> Option<(u8, usize, &[u8])> {
    let (&first, rest) = bytes.split_first()?;
    let (header, length) = match *rest {
        [length @ 0..126, ..] => (2, u64::from(length)),
        [126, high, low, ..] => (4, u64::from(u16::from_be_bytes([high, low]))),
        [127, a, b, c, d, e, f, g, h, ..] => (10, u64::from_be_bytes([a, b, c, d, e, f, g, h])),
        _ => return None,
    };
    let is_shortest = match header {
        2 => true,
        4 => length > 125,
        _ => (0x1_0000..1 << 63).contains(&length),
    };
    let end = usize::try_from(length).ok()?.checked_add(header)?;
    let payload = bytes.get(header..end).filter(|_| is_shortest)?;
    Some((first, header, payload))
}
