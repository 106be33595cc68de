//! The opening handshake through a dialogue: any bytes in any pieces. It sends what the handshake answers, and
//! nothing before that is certain.

use libfuzzer_sys::Corpus;
use ringecho::metrics::Counters;
use ringecho::protocol::pool::Budget;
use ringecho::protocol::{Admission, Context, Decision, handshake};

use crate::peer::Peer;
use crate::setup::{policy, settings, terms};

/// More than a receive of this target has, in bytes.
const ROOM: usize = 1024;
/// The most pieces. All that came before is read again with each.
const PIECES: usize = 16;

pub(crate) fn run(data: &[u8]) -> Corpus {
    let [choice, piece, received @ ..] = data else { return Corpus::Reject };
    let (policy, _) = policy(*choice);
    let piece = (usize::from(*piece) + 1).max(received.len() / PIECES);
    let counters = Counters::default();
    let context = Context::new(settings(1 << 16, policy), &counters);
    let mut peer = Peer::new(ROOM, &context);
    for chunk in received.chunks(piece) {
        peer.receive(chunk);
        peer.proceed(usize::MAX);
        peer.send(usize::MAX);
    }
    let recompression = Budget::new(64 << 20);
    let answered = handshake::answer(received, Admission::Open, &terms(policy, &recompression));
    match answered {
        Ok(None) => assert!(peer.sent.is_empty() && peer.decision == Decision::Continue),
        Ok(Some(accepted)) => assert!(peer.sent.starts_with(&accepted.response)),
        Err(rejection) => {
            assert_eq!(peer.sent, rejection.response());
            assert_eq!(peer.decision, Decision::Close);
        }
    }
    Corpus::Keep
}
