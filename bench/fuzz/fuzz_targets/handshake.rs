//! The server's side of the opening handshake: any bytes, received in any pieces.
//!
//! What is answered does not depend on the pieces, an accepted key is answered with what belongs to it, the
//! client's side accepts the answer, and a dialogue sends exactly that.

#![no_main]

#[path = "../../../src/tests/peer.rs"]
mod peer;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as BASE64;
use libfuzzer_sys::fuzz_target;
use ringecho::metrics::Counters;
use ringecho::protocol::handshake::{self, Accepted, RESPONSE_GROWTH_MAX, Rejection};
use ringecho::protocol::pool::Budget;
use ringecho::protocol::{Admission, Context, Decision, Policy, client};
use ringecho_fuzz::{policy, settings, terms};
use testkit::oracle::accept_of;

use crate::peer::Peer;

/// More than a receive of this target has, in bytes.
const ROOM: usize = 256;
/// How many beginnings of a request are answered.
const BEGINNINGS: usize = 256;

type Answered = Result<Option<Accepted>, Rejection>;

fuzz_target!(|data: &[u8]| {
    let [choice, piece, received @ ..] = data else { return };
    let policy = policy(*choice);
    let answered = answer(received, Admission::Open, policy);
    check_beginnings(received, policy, &answered);
    match &answered {
        Ok(Some(accepted)) => {
            check_accepted(received, accepted);
            assert_eq!(answer(received, Admission::Full, policy), Err(Rejection::Full));
        }
        Ok(None) | Err(_) => assert_eq!(answer(received, Admission::Full, policy), answered),
    }
    check_dialogue(received, usize::from(*piece) + 1, policy, &answered);
});

fn answer(received: &[u8], admission: Admission, policy: Policy) -> Answered {
    let recompression = Budget::new(64 << 20);
    handshake::answer(received, admission, &terms(policy, &recompression))
}

/// What is decided before everything came is still decided when it has.
fn check_beginnings(received: &[u8], policy: Policy, answered: &Answered) {
    let step = received.len() / BEGINNINGS + 1;
    for end in (0..received.len()).step_by(step) {
        let early = answer(&received[..end], Admission::Open, policy);
        if early != Ok(None) {
            return assert_eq!(early, *answered, "after {end} bytes");
        }
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

fn check_dialogue(received: &[u8], piece: usize, policy: Policy, answered: &Answered) {
    let counters = Counters::default();
    let context = Context::new(settings(1 << 16, policy), &counters);
    let mut peer = Peer::new(ROOM, &context);
    for chunk in received.chunks(piece) {
        peer.receive(chunk);
        peer.proceed(usize::MAX);
        peer.send(usize::MAX);
    }
    match answered {
        Ok(None) => assert!(peer.sent.is_empty() && peer.decision == Decision::Continue),
        Ok(Some(accepted)) => assert!(peer.sent.starts_with(&accepted.response)),
        Err(rejection) => {
            assert_eq!(peer.sent, rejection.response());
            assert_eq!(peer.decision, Decision::Close);
        }
    }
}
