//! The server's side of the opening handshake: any bytes, received in any pieces.
//!
//! What is answered does not depend on the pieces, an accepted key is answered with what belongs to it, and the
//! client's side accepts the answer. Most inputs only go through the first of these checks, because the others take
//! ten times as long.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as BASE64;
use libfuzzer_sys::Corpus;
use ringecho::protocol::handshake::{
    self, Accepted, REQUEST_BYTES_MAX, RESPONSE_GROWTH_MAX, Rejection,
};
use ringecho::protocol::pool::Budget;
use ringecho::protocol::{Admission, Policy, client};
use testkit::oracle::accept_of;

use crate::setup::{policy, terms};

/// At how many places a head that is too long is cut.
const PLACES: usize = 2;

type Answered = Result<Option<Accepted>, Rejection>;

pub(crate) fn run(data: &[u8]) -> Corpus {
    let [choice, place, received @ ..] = data else { return Corpus::Reject };
    let (policy, choice) = policy(*choice);
    let place = usize::from(*place);
    match choice % 16 {
        0 => check_answer(received, policy),
        1 => check_long(received, place, policy),
        _ => check_beginning(received, received.len() * place / 256, policy),
    }
    Corpus::Keep
}

fn answer(received: &[u8], admission: Admission, policy: Policy) -> Answered {
    let recompression = Budget::new(64 << 20);
    handshake::answer(received, admission, &terms(policy, &recompression))
}

/// What is decided before everything came is still decided when it has.
fn check_beginning(received: &[u8], end: usize, policy: Policy) {
    let answered = answer(received, Admission::Open, policy);
    let early = answer(&received[..end], Admission::Open, policy);
    if early != Ok(None) {
        assert_eq!(early, answered, "after {end} bytes");
    }
}

/// The same again and again, until it is longer than a request may be.
fn check_long(received: &[u8], place: usize, policy: Policy) {
    if received.is_empty() {
        return;
    }
    let long = received.repeat(REQUEST_BYTES_MAX / received.len() + 1);
    let length = long.len();
    let answered = answer(&long, Admission::Open, policy);
    assert_ne!(answered, Ok(None));
    for end in (place..length).step_by(length / PLACES) {
        let early = answer(&long[..end], Admission::Open, policy);
        assert!(early == Ok(None) || early == answered, "{early:?} after {end} bytes");
    }
}

fn check_answer(received: &[u8], policy: Policy) {
    let answered = answer(received, Admission::Open, policy);
    match &answered {
        Ok(Some(accepted)) => {
            check_accepted(received, accepted);
            assert_eq!(answer(received, Admission::Full, policy), Err(Rejection::Full));
        }
        Ok(None) | Err(_) => assert_eq!(answer(received, Admission::Full, policy), answered),
    }
}

fn check_accepted(received: &[u8], accepted: &Accepted) {
    let head = &received[..accepted.head_bytes];
    assert!(head.ends_with(b"\r\n\r\n"));
    assert!(accepted.response.len() <= head.len() + RESPONSE_GROWTH_MAX);
    let response = str::from_utf8(&accepted.response).expect("ASCII");
    let key = key(head);
    let accept = format!("\r\nSec-WebSocket-Accept: {}\r\n", accept_of(key));
    assert!(response.contains(&accept), "{response}");
    // Another spelling of the same sixteen bytes has another answer.
    let canonical = BASE64.decode(key).ok().and_then(|key| <[u8; 16]>::try_from(key).ok());
    let Some(key) = canonical.filter(|_| !response.contains("\r\nSec-WebSocket-Protocol: ")) else {
        return;
    };
    let is_compressed = response.contains("\r\nSec-WebSocket-Extensions: ");
    let extensions = is_compressed.then_some("permessage-deflate");
    let request = client::Request { host: "fuzz", target: "/", key, extensions };
    let opened = request.check(&accepted.response).expect("what the client asked for");
    let opened = opened.expect("a whole response");
    assert_eq!(opened.head_bytes, accepted.response.len());
    let agreement = accepted.agreement.map(|agreement| agreement.to_string());
    assert_eq!(opened.extensions, agreement);
}

/// The value of Sec-WebSocket-Key, by a plain reading of the head.
fn key(head: &[u8]) -> &str {
    let mut lines = head.split(|&byte| byte == b'\n');
    let value = lines.find_map(|line| {
        let colon = line.iter().position(|&byte| byte == b':')?;
        let is_key = line[..colon].eq_ignore_ascii_case(b"Sec-WebSocket-Key");
        is_key.then(|| line[colon + 1..].trim_ascii())
    });
    str::from_utf8(value.expect("an accepted request has a key")).expect("base64")
}
