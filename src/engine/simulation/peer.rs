//! The peers: in which pieces each of them sends its script, when it reads, and how it leaves.
//!
//! A seed determines a peer once. What the server does never changes what the peer says, with one
//! exception: it may answer the close frame of a server that stops.

use std::time::Duration;

use super::scenario::Scenario;
use super::script::Script;
use testkit::Random;
use testkit::oracle::{Compressed, Fit, Owed, Stream};

/// When a peer reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reading {
    Promptly,
    /// With pauses.
    Slowly,
    /// Only after it has written a whole message; it writes the next once it has the echo.
    BetweenMessages,
    Never,
}

/// What a peer does when it has sent everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Finale {
    /// It closes when the server has.
    Follow,
    /// It sends the end of the stream immediately, and reads on.
    HalfClose,
    /// It sends the end of the stream when it has all that it is owed.
    CloseAfterEcho,
    /// It closes immediately, so that its kernel answers further bytes with a reset.
    Vanish,
    /// It resets the connection immediately.
    Reset,
    /// It stays.
    Linger,
}

/// What a peer can do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Act {
    Write,
    Read,
    AnswerClose,
    End,
    Reset,
}

/// What a peer sees of the server.
#[derive(Debug, Clone, Copy)]
pub(super) struct View {
    /// Bytes that the server's socket has room for.
    pub(super) window: usize,
    /// Bytes sent to the peer.
    pub(super) sent: usize,
    /// The end of the stream came.
    pub(super) is_shut: bool,
    /// The server has sent a close frame because it stops.
    pub(super) is_going_away: bool,
}

/// A peer.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) input: Vec<u8>,
    pub(super) owed: Owed,
    /// What it gets is compressed anew.
    pub(super) is_recompressed: bool,
    /// Bytes of the request.
    pub(super) head: usize,
    /// Positions in the input at which messages end.
    message_ends: Vec<usize>,
    /// Bytes that the server's socket keeps for it until it reads.
    pub(super) room: usize,
    pub(super) written: usize,
    pub(super) read: usize,
    pub(super) has_ended: bool,
    pub(super) is_reset: bool,
    reading: Reading,
    finale: Finale,
    answers_close: bool,
    segment_max: usize,
    /// If not 0, one act in this many is a reset.
    resets: usize,
    pub(super) wakes_at: Duration,
}

impl Peer {
    pub(super) fn new(random: &mut Random, scenario: &Scenario) -> Peer {
        let reading = match random.below(12) {
            0..6 => Reading::Promptly,
            6..8 => Reading::Slowly,
            8..11 => Reading::BetweenMessages,
            _ => Reading::Never,
        };
        let script = Script::new(random, scenario);
        let segments: &[usize] = match script.input.len() {
            _ if script.is_small => &[300, 9000],
            0..500 => &[1, 5, 40, 300, 300],
            500..4000 => &[20, 300, 9000],
            _ => &[500, 9000, 1 << 20],
        };
        let finales = [
            Finale::Follow,
            Finale::Follow,
            Finale::HalfClose,
            Finale::CloseAfterEcho,
            Finale::CloseAfterEcho,
            Finale::Vanish,
            Finale::Reset,
            Finale::Linger,
        ];
        let rooms = [3, 60, 500, 5000, 200_000, 10 << 20];
        Peer {
            owed: Owed::for_stream_of(
                &Stream {
                    bytes: &script.input,
                    head: script.head,
                    status: script.status,
                    message_max: scenario.message_max as u64,
                },
                script.compressed,
            ),
            is_recompressed: script.compressed == Some(Compressed::Recompressed),
            head: script.head,
            input: script.input,
            message_ends: script.message_ends,
            room: random.pick(match (script.is_flood, script.is_long) {
                (true, _) => &rooms[..3],
                (false, true) => &rooms[3..],
                (false, false) => &rooms,
            }),
            written: 0,
            read: 0,
            has_ended: false,
            is_reset: false,
            reading: match (script.is_flood, script.is_ping_pong) {
                (true, _) => Reading::Never,
                (false, true) => Reading::BetweenMessages,
                (false, false) => reading,
            },
            finale: random.pick(&finales),
            answers_close: random.one_in(2),
            segment_max: random.pick(segments),
            resets: if !script.is_flood && random.one_in(12) { 1 + random.below(40) } else { 0 },
            wakes_at: Duration::ZERO,
        }
    }

    /// What the peer can do, now or when it wakes.
    pub(super) fn acts(&self, view: View, acts: &mut Vec<Act>) {
        acts.clear();
        if self.is_reset {
            return;
        }
        let has_read_all = self.read == view.sent;
        let has_written_all = self.written == self.input.len();
        let is_between = self.reading == Reading::BetweenMessages
            && (has_written_all || self.message_ends.binary_search(&self.written).is_ok());
        let waits_for_echo = is_between && self.read < self.owed.owed_at_least(self.written);
        if !self.has_ended
            && !has_written_all
            && !view.is_shut
            && view.window > 0
            && !waits_for_echo
        {
            acts.push(Act::Write);
        }
        let reads = match self.reading {
            Reading::Promptly | Reading::Slowly => true,
            Reading::BetweenMessages => is_between || view.is_shut,
            Reading::Never => false,
        };
        if reads && !has_read_all {
            acts.push(Act::Read);
        }
        if self.answers_close && view.is_going_away && has_read_all && !self.has_ended {
            acts.push(Act::AnswerClose);
        }
        let finishes = match self.finale {
            Finale::Follow => false,
            Finale::HalfClose | Finale::Vanish => has_written_all,
            Finale::CloseAfterEcho => has_written_all && self.read >= self.owed.bytes.len(),
            Finale::Reset if has_written_all => {
                acts.push(Act::Reset);
                false
            }
            Finale::Reset | Finale::Linger => false,
        };
        let follows = view.is_shut && has_read_all && self.finale != Finale::Linger;
        if !self.has_ended && (finishes || follows) {
            acts.push(Act::End);
        }
        // What comes to a closed socket is answered with a reset.
        if self.has_ended && self.finale == Finale::Vanish && !has_read_all {
            acts.push(Act::Reset);
        }
    }

    /// Performs `act`.
    pub(super) fn act(&mut self, act: Act, view: View, random: &mut Random, now: Duration) {
        if self.resets > 0 && random.one_in(self.resets + 1) {
            self.is_reset = true;
            return;
        }
        match act {
            Act::Write => {
                let left = (self.input.len() - self.written).min(view.window);
                let mut most = left.min(1 + random.below(self.segment_max));
                if self.reading == Reading::BetweenMessages {
                    let next = self.message_ends.partition_point(|&end| end <= self.written);
                    if let Some(end) = self.message_ends.get(next) {
                        most = most.min(end - self.written);
                    }
                }
                self.written += most;
            }
            Act::Read => {
                let most = view.sent - self.read;
                self.read += if random.one_in(3) { 1 + random.below(most) } else { most };
                if self.reading == Reading::Slowly {
                    self.wakes_at = now + Duration::from_millis(random.below(1500) as u64);
                }
            }
            Act::AnswerClose => self.answer_close(),
            Act::End => self.has_ended = true,
            Act::Reset => self.is_reset = true,
        }
    }

    /// Ends the input with a close frame, at the next boundary between two frames.
    fn answer_close(&mut self) {
        self.answers_close = false;
        let next = self.owed.boundaries.partition_point(|&(end, _)| end < self.written);
        if let Some(&(end, _)) = self.owed.boundaries.get(next) {
            self.input.truncate(end);
            self.input.extend_from_slice(b"\x88\x82\0\0\0\0\x03\xe9");
            self.finale = Finale::Follow;
        }
    }

    pub(super) fn never_reads(&self) -> bool {
        self.reading == Reading::Never
    }

    /// Whether all that is owed for all that the peer has written was sent, or more.
    pub(super) fn has_its_due(&self, sent: usize, fit: Fit) -> bool {
        if self.written == self.input.len() {
            fit == Fit::Whole
        } else {
            sent >= self.owed.owed_at_least(self.written)
        }
    }
}
