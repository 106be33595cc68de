//! What a [`Dialogue`](ringecho::protocol::Dialogue) must answer to a stream, checked while it arrives: in
//! any pieces, however slowly the answer is taken.
//!
//! The property tests feed it what their generator writes, the fuzz targets what the fuzzer does.

#![allow(dead_code, reason = "each target uses its own part")]

use std::fmt;

use ringecho::buffer::{SPILL_POOL_DEFAULT, SpillPool};
use ringecho::metrics::Counters;
use ringecho::protocol::violation::Violation;
use ringecho::protocol::{Context, Decision, FrameLimits, Limits, Policy, Protocol, Settings};
use testkit::oracle::{self, Ending, Owed, Rule};
use testkit::{CLOSE, Random, reply};

use crate::peer::{Peer, STEP};

/// The size of a small block of memory, in bytes.
pub(crate) const BLOCK: usize = 1024;

/// A way to feed a stream.
#[derive(Clone, Copy)]
pub(crate) struct Way<'a> {
    /// Bytes that a pinned buffer takes.
    pub(crate) room: usize,
    /// Where the stream is cut, in ascending order.
    pub(crate) cuts: &'a [usize],
    pub(crate) sends: Sends,
    /// The server begins to close after this many bytes, at which there is a cut.
    pub(crate) close_at: Option<usize>,
}

impl fmt::Debug for Way<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Way { room, cuts, sends, close_at } = self;
        let shown = &cuts[..cuts.len().min(8)];
        let count = cuts.len();
        write!(f, "room {room}, {count} cuts {shown:?}, {sends:?}, close_at {close_at:?}")
    }
}

/// How much of the reply is sent after each receive.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Sends {
    /// All of it.
    Whole,
    /// Nothing before the end of the stream.
    Never,
    /// Whatever this seed comes to.
    Random(u64),
}

impl Sends {
    pub(crate) fn random(random: &mut Random) -> Sends {
        match random.below(4) {
            0 => Sends::Whole,
            1 => Sends::Never,
            _ => Sends::Random(random.number()),
        }
    }
}

/// Feeds `stream` in this `way` and compares what is answered at each point with `verdict`, with one
/// turn for each receive and with a turn for each step. If it is long, it is also kept in small blocks of memory.
pub(crate) fn check(stream: &Stream, verdict: &Verdict, way: Way<'_>) {
    for limits in [Limits::default(), STEP] {
        let pool = SpillPool::new(SPILL_POOL_DEFAULT, Default::default());
        check_within(limits, pool, stream, verdict, way);
        if stream.bytes.len() > BLOCK {
            let pool = SpillPool::with_block(SPILL_POOL_DEFAULT, BLOCK, Default::default());
            check_within(limits, pool, stream, verdict, way);
        }
    }
}

/// The same, once: with `limits` to the work that is done at a time, and with memory from `pool`.
pub(crate) fn check_within(
    limits: Limits,
    pool: SpillPool,
    stream: &Stream,
    verdict: &Verdict,
    way: Way<'_>,
) {
    let counters = Counters::default();
    let settings = Settings {
        protocol: Protocol::WebSocket,
        message_max: stream.message_max,
        policy: Policy::Mirror,
        level: 6,
        frames: FrameLimits::NONE,
    };
    let context = Context::new(settings, &counters).with_limits(limits).with_spill_pool(pool);
    let mut peer = Peer::new(way.room, &context);
    let mut random = Random::new(if let Sends::Random(seed) = way.sends { seed } else { 0 });
    let end = stream.bytes.len();
    let mut received = 0;
    for &cut in way.cuts.iter().chain([&end]) {
        for chunk in stream.bytes[received..cut].chunks(way.room) {
            peer.receive(chunk);
            peer.proceed(usize::MAX);
            received += chunk.len();
            if way.close_at == Some(received) {
                peer.close();
            }
            let due = verdict.due_after(received);
            let is_over = verdict.is_over_after(received);
            if peer.answered() != due || (peer.decision == Decision::Close) != is_over {
                panic!(
                    "after {received} bytes {} are answered and not {due}, then {:?}\n\
                     {way:?}\n{stream:?}",
                    peer.answered(),
                    peer.decision
                );
            }
            match way.sends {
                Sends::Whole => peer.send(usize::MAX),
                Sends::Never => {}
                Sends::Random(_) if random.one_in(2) => {}
                Sends::Random(_) => peer.send(random.below(2 * way.room)),
            }
        }
    }
    peer.send(usize::MAX);
    assert_same(&peer.sent, &verdict.answer(), || format!("{way:?}\n{stream:?}"));
    assert!(verdict.owed.ended_at().is_none() || !peer.has_spill(), "memory kept after the close");
    let violations = u64::from(verdict.owed.broken().is_some());
    assert_eq!(counters.protocol_violations.value(), violations, "violations");
    if way.close_at.is_none() {
        assert_eq!(counters.messages.value(), verdict.owed.messages, "messages");
    }
}

pub(crate) fn assert_same(answer: &[u8], expected: &[u8], of: impl Fn() -> String) {
    if answer == expected {
        return;
    }
    let same = answer.iter().zip(expected).take_while(|(left, right)| left == right).count();
    let rest = |bytes: &[u8]| bytes[same..bytes.len().min(same + 40)].escape_ascii().to_string();
    panic!(
        "after {same} bytes the answer of {} goes on with {}\nand not, to {}, with {}\n{}",
        answer.len(),
        rest(answer),
        expected.len(),
        rest(expected),
        of()
    );
}

/// What the server must do with a stream: what is owed, and the close frame that tells of a failure.
pub(crate) struct Verdict {
    pub(crate) owed: Owed,
    failure: Vec<u8>,
}

impl Verdict {
    fn new(owed: Owed) -> Verdict {
        let failure = match owed.ending {
            Ending::Failed(rule) => {
                let reason = violation(rule).reason().as_bytes();
                reply(CLOSE, &[&rule.close_code().to_be_bytes(), reason].concat())
            }
            Ending::Open | Ending::Said | Ending::Untold(_) | Ending::Refused(_) => Vec::new(),
        };
        Verdict { owed, failure }
    }

    /// The whole answer.
    pub(crate) fn answer(&self) -> Vec<u8> {
        [&self.owed.bytes[..], &self.failure].concat()
    }

    /// How much of it is due once `received` bytes came.
    fn due_after(&self, received: usize) -> usize {
        let failure = if self.is_over_after(received) { self.failure.len() } else { 0 };
        self.owed.due_after(received) + failure
    }

    /// Whether the server has nothing more to say once `received` bytes came.
    fn is_over_after(&self, received: usize) -> bool {
        self.owed.ended_at().is_some_and(|at| at <= received)
    }
}

/// The server's name for a broken rule, with its text.
fn violation(rule: Rule) -> Violation {
    match rule {
        Rule::ReservedBit => Violation::ReservedBit,
        Rule::ReservedOpcode => Violation::ReservedOpcode,
        Rule::Unmasked => Violation::Unmasked,
        Rule::LengthEncoding => Violation::LengthEncoding,
        Rule::ControlFragmented => Violation::ControlFragmented,
        Rule::ControlTooLong => Violation::ControlTooLong,
        Rule::ContinuationUnexpected => Violation::ContinuationUnexpected,
        Rule::ContinuationExpected => Violation::ContinuationExpected,
        Rule::TextNotUtf8 => Violation::TextNotUtf8,
        Rule::CloseTruncated => Violation::CloseTruncated,
        Rule::CloseCodeInvalid => Violation::CloseCodeInvalid,
        Rule::CloseReasonNotUtf8 => Violation::CloseReasonNotUtf8,
        Rule::MessageTooBig => Violation::MessageTooBig,
    }
}

/// All that a client sends on a connection.
pub(crate) struct Stream {
    pub(crate) bytes: Vec<u8>,
    /// Bytes of the opening handshake.
    pub(crate) head: usize,
    pub(crate) message_max: u64,
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Stream { bytes, head, message_max } = self;
        let frames = bytes.get(*head..).unwrap_or_default();
        let shown = frames[..frames.len().min(120)].escape_ascii();
        write!(f, "{} bytes, from {head} on {shown}, message_max {message_max}", bytes.len())
    }
}

impl Stream {
    /// What is owed for it.
    pub(crate) fn verdict(&self) -> Verdict {
        Verdict::new(Owed::for_stream(&self.read()))
    }

    /// What is owed for it if the server begins to close after `close_at` bytes.
    pub(crate) fn verdict_with_close(&self, close_at: usize) -> Verdict {
        let stream = self.read();
        Verdict::new(Owed::for_stream(&stream).with_close(&stream, close_at))
    }

    fn read(&self) -> oracle::Stream<'_> {
        let Stream { bytes, head, message_max } = self;
        oracle::Stream { bytes, head: *head, status: 101, message_max: *message_max }
    }
}
