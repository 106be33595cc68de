//! What a server answers to a stream, cut in every way, and what it should answer.

use ringecho::metrics::Counters;
use ringecho::protocol::{Context, Limits, Policy, Settings};

use testkit::frame::parse;
use testkit::inflate::Inflater;
use testkit::{FIN, Frame, RSV1, frame};

use crate::agreement::request;
use crate::peer::{Peer, STEP};

/// After how many bytes of its payload it is certain that a message is no text, or too large.
pub(crate) fn certain_after(payload: &[u8], is_text: bool, message_max: u64) -> Option<usize> {
    (0..=payload.len()).find(|&end| {
        let output = Inflater::default().beginning(&payload[..end]);
        let is_wrong = std::str::from_utf8(&output).is_err_and(|error| error.error_len().is_some());
        is_text && is_wrong || output.len() as u64 > message_max
    })
}

/// Sends a message byte by byte, to be failed after `certain` bytes of its payload.
pub(crate) fn check_certain(
    settings: Settings,
    first: u8,
    payload: &[u8],
    certain: usize,
    code: u16,
) {
    let bytes = frame(first | RSV1, payload);
    let header = bytes.len() - payload.len();
    check_certain_in(settings, &bytes, header + certain, code);
}

pub(crate) fn check_certain_in(settings: Settings, bytes: &[u8], certain: usize, code: u16) {
    let cuts: Vec<usize> = (1..bytes.len()).collect();
    let answer = answer(settings, "permessage-deflate", bytes, &cuts);
    assert_eq!(answer.code(), Some(code), "{bytes:x?}");
    assert_eq!(answer.closed_after, Some(certain), "{settings:?} {bytes:x?}");
}

/// What a server answers to a stream after its handshake.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) frames: Vec<Frame>,
    /// After how many bytes it had no more to say.
    pub(crate) closed_after: Option<usize>,
}

impl Answer {
    /// The code with which it failed.
    pub(crate) fn code(&self) -> Option<u16> {
        let code = self.frames.last().and_then(Frame::close_code);
        assert_eq!(code.is_some(), self.closed_after.is_some(), "{self:x?}");
        code
    }

    /// Its frames. Those that were compressed again say only what their message inflates to: where
    /// the output of zlib ends with the memory that it was given, it flushes once more.
    pub(crate) fn said(&self, policy: Policy) -> Vec<(u8, Vec<u8>)> {
        let mut inflater = Inflater::default();
        let (mut is_compressed, mut payload) = (false, Vec::new());
        let said = self.frames.iter().map(|frame| {
            let is_control = frame.first & 0x08 != 0;
            if !is_control && frame.first & 0x0f != 0 {
                is_compressed = frame.first & RSV1 != 0;
            }
            if is_control || !is_compressed || policy == Policy::Mirror {
                return (frame.first, frame.payload.clone());
            }
            payload.extend(&frame.payload);
            if frame.first & FIN == 0 {
                return (frame.first, Vec::new());
            }
            let payload = std::mem::take(&mut payload);
            (frame.first, inflater.message(&payload).expect("the server's can be inflated"))
        });
        said.collect()
    }
}

pub(crate) fn answer(settings: Settings, offer: &str, bytes: &[u8], cuts: &[usize]) -> Answer {
    answer_in(16384, settings, offer, bytes, cuts)
}

pub(crate) fn answer_in(
    room: usize,
    settings: Settings,
    offer: &str,
    bytes: &[u8],
    cuts: &[usize],
) -> Answer {
    answer_within(Limits::default(), room, settings, offer, (bytes, cuts))
}

fn answer_within(
    limits: Limits,
    room: usize,
    settings: Settings,
    offer: &str,
    (bytes, cuts): (&[u8], &[usize]),
) -> Answer {
    let counters = Counters::default();
    let context = Context::new(settings, &counters).with_limits(limits);
    let mut peer = Peer::new(room, &context);
    peer.handshake(&request(offer));
    peer.feed(bytes, cuts, None);
    peer.send(usize::MAX);
    Answer { frames: parse(&peer.sent), closed_after: peer.closed_after }
}

/// The answers to a stream cut once at each byte, at all of them, and not at all. They say the
/// same.
pub(crate) fn every_cut(settings: Settings, offer: &str, bytes: &[u8]) -> Vec<Answer> {
    let whole = answer(settings, offer, bytes, &[]);
    let all: Vec<usize> = (1..bytes.len()).collect();
    let ways = all.chunks(1).map(|cut| (16384, cut)).chain([(16384, &all[..]), (16, &[])]);
    let mut answers: Vec<Answer> = ways
        .flat_map(|(room, cuts)| [Limits::default(), STEP].map(|limits| (limits, room, cuts)))
        .map(|(limits, room, cuts)| answer_within(limits, room, settings, offer, (bytes, cuts)))
        .collect();
    let said = whole.said(settings.policy);
    for answer in &answers {
        assert_eq!(answer.said(settings.policy), said, "{settings:?} {bytes:x?}");
    }
    answers.push(whole);
    answers
}
