//! What one peer and the server say to each other: received bytes go in; bytes to send and a decision
//! come out.
//!
//! A dialogue owns a [`Connection`] and what a receive buffer cannot keep until the next receive, in a
//! [`Spill`]: the beginning of a frame, and replies that have to wait. If nothing has to be sent first,
//! the reply is written into the receive buffer itself and sent from there.
//!
//! Invariants:
//!
//! 1. Replies come out in the order of their requests. So while a spill exists, the buffer holds no
//!    reply: everything received is appended to the spill.
//! 2. A dialogue that waits for room has a reply in its spill. Taking that reply makes the room.
//! 3. A dialogue that has yielded has a spill, and appends to it what is received, until
//!    [`Dialogue::proceed`] goes on.
//! 4. Idle, between two messages, it owns no heap memory, unless compression was negotiated.
//!
//! It does no input or output and reads no clock. It does not know whose memory the buffer is, who
//! sends the replies, nor when.

use std::ops::Range;

use super::connection::{Connection, Next};
use super::context::Context;
use super::dismissal::Dismissal;
use super::handshake::Admission;
use super::violation::Violation;
use crate::buffer::{Chain, Cursors, Region, Spill};

/// Where a reply may be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// Into the receive buffer: nothing is being sent to the peer.
    InPlace,
    /// Into the spill, because an earlier reply is still being sent. [`Dialogue::take_reply`] returns
    /// it later.
    Queued,
}

/// How many bytes are appended to a spill at a time, so that they are still in the CPU's cache when they are
/// unmasked.
const PART: usize = 64 << 10;

/// What the caller does once the replies so far are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Decision {
    /// Receive more.
    Continue,
    /// Receive nothing for now. Let the other connections go on, then call [`Dialogue::proceed`]: what
    /// was received takes more work than one turn may.
    Yield,
    /// Shut the connection down for writing and read until the peer ends it.
    Close,
}

/// What follows from received bytes.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub struct Answer {
    /// The part of the receive buffer to send now; often empty.
    pub reply: Range<usize>,
    /// What to do after that.
    pub decision: Decision,
}

/// The server's side of the conversation with one peer.
#[derive(Debug)]
pub struct Dialogue {
    connection: Connection,
    spill: Option<Box<Spill>>,
    /// It has yielded, and not gone on since.
    has_yielded: bool,
}

impl Dialogue {
    /// A dialogue before its opening handshake.
    pub fn new(admission: Admission) -> Dialogue {
        Dialogue { connection: Connection::new(admission), spill: None, has_yielded: false }
    }

    /// Answers the bytes received into `buffer`. Afterwards only the part of it that is to be sent
    /// matters.
    // Never inlined, so that `scripts/instructions` finds it and its callers do not change the count. It has
    // a caller for each engine, so it would not be inlined anyway.
    #[inline(never)]
    pub fn received(&mut self, buffer: &mut [u8], output: Output, context: &Context<'_>) -> Answer {
        // The path of a short message that came alone ends here, with an exit of its own.
        if output == Output::InPlace && self.spill.is_none() {
            match self.connection.echo_alone(buffer, context) {
                Ok(Some(reply_bytes)) => {
                    return Answer { reply: 0..reply_bytes, decision: Decision::Continue };
                }
                Ok(None) => {}
                Err(violation) => return self.refuse(violation, context),
            }
        }
        self.answer(buffer, output, context)
    }

    #[cold]
    #[inline(never)]
    fn refuse(&mut self, violation: Violation, context: &Context<'_>) -> Answer {
        let mut cursors = Cursors::received(0);
        let mut region = Region::new(&mut [], &mut cursors);
        let next = self.connection.violated(violation, &mut region, context);
        Answer { reply: 0..0, decision: self.follow(next, context) }
    }

    /// [`Dialogue::received`], for all but a short message that came alone.
    // Apart, because it takes more registers.
    #[inline(never)]
    fn answer(&mut self, buffer: &mut [u8], output: Output, context: &Context<'_>) -> Answer {
        let is_in_place =
            output == Output::InPlace && self.spill.is_none() && !self.connection.is_in_handshake();
        if !is_in_place {
            return Answer { reply: 0..0, decision: self.append(buffer, context) };
        }
        context.allowance.begin_turn();
        let mut cursors = Cursors::received(buffer.len());
        let next = self.connection.advance(&mut Region::new(buffer, &mut cursors), context);
        // What was echoed whole has an exit of its own, which saves six instructions.
        if next == Next::Receive && !cursors.has_leftover() {
            return Answer { reply: cursors.reply(), decision: Decision::Continue };
        }
        let decision = self.keep(buffer, &mut cursors, next, context);
        Answer { reply: cursors.reply(), decision }
    }

    /// Keeps what is left over in the buffer, then follows.
    #[inline(never)]
    fn keep(
        &mut self,
        buffer: &[u8],
        cursors: &mut Cursors,
        next: Next,
        context: &Context<'_>,
    ) -> Decision {
        if cursors.has_leftover() {
            let expected = self.connection.held_left();
            let pool = &context.spill_pool;
            self.spill = Some(Box::new(Spill::leftover(buffer, cursors, expected, pool)));
        }
        self.follow(next, context)
    }

    // Apart from the path of a message that came whole, which takes fewer registers.
    #[inline(never)]
    fn append(&mut self, received: &mut [u8], context: &Context<'_>) -> Decision {
        if !self.has_yielded {
            context.allowance.begin_turn();
        }
        let mut decision = Decision::Continue;
        for part in received.chunks_mut(PART) {
            match decision {
                Decision::Continue if !self.has_yielded => {
                    decision = self.append_and_advance(part, context);
                }
                // The rest waits for its turn.
                Decision::Continue | Decision::Yield => self.append_unread(part, context),
                Decision::Close => break,
            }
        }
        self.drop_empty_spill();
        decision
    }

    fn append_and_advance(&mut self, part: &mut [u8], context: &Context<'_>) -> Decision {
        let direct = self.connection.direct_bytes(part.len(), context);
        let (mut payload, part) = part.split_at_mut(direct);
        while !payload.is_empty() {
            let expected = self.connection.held_left();
            let spill = spill_of(&mut self.spill, context);
            let target = spill.extend(payload.len(), expected);
            let (received, rest) = payload.split_at_mut(target.len());
            payload = rest;
            if let Err(violation) = self.connection.payload_into(received, target, context) {
                let next = self.connection.violated(violation, &mut spill.region(), context);
                return self.follow(next, context);
            }
            if self.connection.is_sent_early() {
                spill.region().release();
            }
        }
        if part.is_empty() {
            return Decision::Continue;
        }
        self.append_unread(part, context);
        self.advance(context)
    }

    fn append_unread(&mut self, part: &[u8], context: &Context<'_>) {
        let expected = self.connection.held_left();
        spill_of(&mut self.spill, context).append(part, expected);
    }

    /// Goes on where the dialogue has yielded; does nothing if it has not.
    pub fn proceed(&mut self, context: &Context<'_>) -> Decision {
        if !std::mem::take(&mut self.has_yielded) {
            return Decision::Continue;
        }
        context.allowance.begin_turn();
        let decision = self.advance(context);
        self.drop_empty_spill();
        decision
    }

    /// Goes on with a turn: with what is in the spill.
    fn advance(&mut self, context: &Context<'_>) -> Decision {
        let spill = spill_of(&mut self.spill, context);
        let next = self.connection.advance(&mut spill.region(), context);
        self.follow(next, context)
    }

    fn follow(&mut self, next: Next, context: &Context<'_>) -> Decision {
        match next {
            Next::Receive => Decision::Continue,
            Next::Yield => self.pause(context),
            Next::Expand(bytes) => self.expand(bytes, context),
            Next::Fail(violation) => {
                let spill = spill_of(&mut self.spill, context);
                self.connection.fail(violation, &mut spill.region(), context);
                Decision::Close
            }
            Next::Close => Decision::Close,
        }
    }

    #[cold]
    fn pause(&mut self, context: &Context<'_>) -> Decision {
        self.has_yielded = true;
        spill_of(&mut self.spill, context);
        Decision::Yield
    }

    /// Whether what is received next must be appended to a spill, even if that is empty.
    fn needs_spill(&self) -> bool {
        self.has_yielded || self.connection.owes_close()
    }

    fn drop_empty_spill(&mut self) {
        if !self.needs_spill() {
            self.spill.take_if(|spill| spill.is_empty());
        }
    }

    /// Gives the connection the room that it asks for, unless the dialogue is full.
    #[cold]
    fn expand(&mut self, bytes: usize, context: &Context<'_>) -> Decision {
        let mut next = Next::Expand(bytes);
        while let Next::Expand(bytes) = next {
            if self.is_full(context) {
                return Decision::Continue;
            }
            let spill = spill_of(&mut self.spill, context);
            spill.widen(bytes);
            next = self.connection.advance(&mut spill.region(), context);
        }
        let decision = self.follow(next, context);
        self.drop_empty_spill();
        decision
    }

    /// Takes the reply that waits in the spill, all of which is to be sent next.
    ///
    /// A dialogue that has yielded gives out a short reply only with what follows: what is still unread
    /// is copied each time.
    pub fn take_reply(&mut self) -> Option<Chain> {
        let (has_yielded, needs_spill) = (self.has_yielded, self.needs_spill());
        let is_due = |spill: &mut Box<Spill>| {
            spill.has_reply() && (!has_yielded || spill.reply_bytes() >= spill.unread_bytes())
        };
        let spill = self.spill.take_if(is_due)?;
        let next = needs_spill.then(|| spill.successor());
        let (reply, rest) = spill.split_reply(self.connection.held_left());
        self.spill = rest.or(next).map(Box::new);
        Some(reply)
    }

    /// Continues a dialogue that waits for room, if taking a reply has made some; otherwise does
    /// nothing.
    pub fn make_room(&mut self, context: &Context<'_>) -> Decision {
        if !self.is_waiting_for_room() {
            return Decision::Continue;
        }
        context.allowance.begin_turn();
        self.expand(0, context)
    }

    /// Starts the closing handshake. The close frame is appended to what waits to be sent.
    pub fn dismiss(&mut self, dismissal: Dismissal, context: &Context<'_>) -> Decision {
        let was_waiting = self.is_waiting_for_room();
        let spill = spill_of(&mut self.spill, context);
        let mut next = self.connection.dismiss(dismissal, &mut spill.region(), context);
        if self.has_yielded {
            // The rest of what was received is read in its own turns.
            return Decision::Continue;
        }
        if was_waiting {
            // Nothing waits for room any more, so what was received after it is read now.
            next = self.connection.advance(&mut spill.region(), context);
        }
        self.drop_empty_spill();
        self.follow(next, context)
    }

    /// Appends a ping to what waits to be sent, if no frame is unfinished. Returns whether it did.
    pub fn ping(&mut self, context: &Context<'_>) -> bool {
        if self.has_yielded {
            return false;
        }
        let spill = spill_of(&mut self.spill, context);
        let is_written = self.connection.ping(&mut spill.region(), context);
        self.drop_empty_spill();
        is_written
    }

    /// Refuses a peer that takes too long for its opening handshake: it gets what waits to be sent then.
    /// Does nothing once the handshake is done.
    pub fn refuse_late(&mut self, context: &Context<'_>) -> Decision {
        let spill = spill_of(&mut self.spill, context);
        let is_late = self.connection.refuse_late(&mut spill.region(), context);
        self.drop_empty_spill();
        if is_late { Decision::Close } else { Decision::Continue }
    }

    /// Drops all bytes that wait to be sent or parsed: the connection is over.
    pub fn discard(&mut self) {
        self.spill = None;
        self.has_yielded = false;
    }

    /// Whether the dialogue waits for [`Dialogue::proceed`].
    #[inline]
    pub fn has_yielded(&self) -> bool {
        self.has_yielded
    }

    /// Whether a reply waits to be taken.
    #[inline]
    pub fn has_reply(&self) -> bool {
        self.spill.as_ref().is_some_and(|spill| spill.has_reply())
    }

    /// Reply bytes that wait to be taken.
    pub fn reply_bytes(&self) -> usize {
        self.spill.as_ref().map_or(0, |spill| spill.reply_bytes())
    }

    /// Whether any bytes wait: to be sent, or for the rest of their frame.
    #[inline]
    pub fn has_spill(&self) -> bool {
        self.spill.is_some()
    }

    /// Whether the dialogue waits until a reply is taken: see [`Dialogue::make_room`].
    pub fn is_waiting_for_room(&self) -> bool {
        self.connection.is_expanding()
    }

    /// Whether more replies wait than the context allows, so that nothing should be received until some
    /// are sent. The reply to an unfinished message does not count: many clients read nothing before
    /// they have written a whole message, and server and client would wait for each other.
    pub fn is_full(&self, context: &Context<'_>) -> bool {
        let unfinished = self.connection.message_bytes() as usize;
        // An eighth is for the headers of the fragments.
        self.reply_bytes() > context.backlog_max() + unfinished + unfinished / 8
    }

    /// Heap bytes that wait, to be sent or for the rest of their frame.
    pub fn heap_bytes(&self) -> usize {
        self.spill.as_ref().map_or(0, |spill| spill.bytes_kept())
    }

    /// All heap memory for messages and compression that the connection holds, in bytes.
    pub fn memory_bytes(&self) -> usize {
        self.heap_bytes() + self.connection.compression_bytes()
    }

    /// The state of the protocol.
    #[inline]
    pub fn connection(&self) -> &Connection {
        &self.connection
    }
}

/// The spill, which is created if there is none.
fn spill_of<'s>(spill: &'s mut Option<Box<Spill>>, context: &Context<'_>) -> &'s mut Spill {
    spill.get_or_insert_with(|| Box::new(Spill::new(&context.spill_pool)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Counters;
    use crate::protocol::{FrameLimits, Limits, Policy, Protocol, Settings};

    const SETTINGS: Settings = Settings {
        protocol: Protocol::WebSocket,
        message_max: 1000,
        policy: Policy::Deflate,
        level: 6,
        frames: FrameLimits::NONE,
    };
    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: test\r\nUpgrade: websocket\r\n\
        Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
        Sec-WebSocket-Version: 13\r\n";
    /// "Hello", masked with a key of zeros.
    const HELLO: &[u8] = b"\x81\x85\0\0\0\0Hello";
    const ECHO: &[u8] = b"\x81\x05Hello";

    /// Receives `bytes` into a buffer of their own, and returns what is to be sent from there.
    fn receive(
        dialogue: &mut Dialogue,
        bytes: &[u8],
        output: Output,
        context: &Context<'_>,
    ) -> Vec<u8> {
        let mut buffer = bytes.to_vec();
        let answer = dialogue.received(&mut buffer, output, context);
        assert_eq!(answer.decision, Decision::Continue);
        buffer[answer.reply].to_vec()
    }

    /// The reply that waits.
    fn take(dialogue: &mut Dialogue) -> Option<Vec<u8>> {
        let mut reply = dialogue.take_reply()?;
        let bytes = reply.take_part(usize::MAX).to_vec();
        assert!(reply.is_empty());
        Some(bytes)
    }

    fn open(offer: &str, context: &Context<'_>) -> Dialogue {
        let mut dialogue = Dialogue::new(Admission::Open);
        let request = [REQUEST, offer.as_bytes(), b"\r\n"].concat();
        assert_eq!(receive(&mut dialogue, &request, Output::InPlace, context), b"");
        let response = take(&mut dialogue).expect("a response");
        assert!(response.starts_with(b"HTTP/1.1 101 "));
        dialogue
    }

    #[test]
    fn a_whole_message_is_answered_in_place_and_leaves_nothing_behind() {
        let counters = Counters::default();
        let context = Context::new(SETTINGS, &counters);
        let mut dialogue = open("", &context);
        assert_eq!(receive(&mut dialogue, HELLO, Output::InPlace, &context), ECHO);
        assert!(!dialogue.has_spill());
        assert_eq!(dialogue.heap_bytes(), 0);
    }

    #[test]
    fn a_short_message_that_breaks_a_rule_is_refused() {
        let counters = Counters::default();
        let context = Context::new(SETTINGS, &counters);
        let mut dialogue = open("", &context);
        let mut buffer = *b"\x81\x82\0\0\0\0\xc3\x28";
        let answer = dialogue.received(&mut buffer, Output::InPlace, &context);
        assert_eq!((answer.reply.len(), answer.decision), (0, Decision::Close));
        let reply = take(&mut dialogue).expect("a close frame");
        assert_eq!(reply[2..4], [0x03, 0xef]);
        assert_eq!((counters.protocol_violations.value(), counters.messages.value()), (1, 0));
    }

    /// A text of which only the first 100 bytes of its frame have come.
    fn begin_text(text: &str, dialogue: &mut Dialogue, context: &Context<'_>) -> Vec<u8> {
        let mut frame = testkit::frame(testkit::TEXT, text.as_bytes());
        let rest = frame.split_off(100);
        assert_eq!(receive(dialogue, &frame, Output::InPlace, context), b"");
        rest
    }

    #[test]
    fn a_text_in_parts_is_checked_across_them_and_echoed_whole() {
        let counters = Counters::default();
        let context = Context::new(SETTINGS, &counters);
        let mut dialogue = open("", &context);
        let text = "aß水🦀".repeat(90);
        let mut rest = begin_text(&text, &mut dialogue, &context);
        while !rest.is_empty() {
            let part: Vec<u8> = rest.drain(..rest.len().min(7)).collect();
            assert_eq!(receive(&mut dialogue, &part, Output::InPlace, &context), b"");
        }
        let echo = take(&mut dialogue).expect("an echo");
        assert_eq!(echo[4..], *text.as_bytes());
        assert!(!dialogue.has_spill());
    }

    #[test]
    fn what_is_not_text_is_refused_in_the_part_that_has_it() {
        let counters = Counters::default();
        let context = Context::new(SETTINGS, &counters);
        let mut dialogue = open("", &context);
        let mut rest = begin_text(&"z".repeat(500), &mut dialogue, &context);
        rest[50] ^= 0x80;
        let answer = dialogue.received(&mut rest[..100], Output::InPlace, &context);
        assert_eq!((answer.reply.len(), answer.decision), (0, Decision::Close));
        assert_eq!(take(&mut dialogue).expect("a close frame")[2..4], [0x03, 0xef]);
    }

    #[test]
    fn while_a_reply_is_being_sent_the_next_ones_wait_and_come_out_in_order() {
        let counters = Counters::default();
        let context = Context::new(SETTINGS, &counters);
        let mut dialogue = open("", &context);
        let (begin, rest) = HELLO.split_at(8);
        let both = [HELLO, begin].concat();
        assert_eq!(receive(&mut dialogue, &both, Output::Queued, &context), b"");
        // The spill keeps what follows from overtaking, even if nothing is being sent.
        assert_eq!(receive(&mut dialogue, rest, Output::InPlace, &context), b"");
        assert_eq!(take(&mut dialogue).as_deref(), Some(&[ECHO, ECHO].concat()[..]));
        assert_eq!(take(&mut dialogue), None);
        assert_eq!(receive(&mut dialogue, HELLO, Output::InPlace, &context), ECHO);
    }

    #[test]
    fn the_close_frame_follows_what_waits() {
        let counters = Counters::default();
        let context = Context::new(SETTINGS, &counters);
        let mut dialogue = open("", &context);
        assert_eq!(receive(&mut dialogue, HELLO, Output::Queued, &context), b"");
        assert_eq!(dialogue.dismiss(Dismissal::Stopping, &context), Decision::Continue);
        let owed = [ECHO, b"\x88\x02\x03\xe9"].concat();
        assert_eq!(take(&mut dialogue).as_deref(), Some(&owed[..]));
        let mut buffer = *b"\x88\x82\0\0\0\0\x03\xe9";
        let answer = dialogue.received(&mut buffer, Output::InPlace, &context);
        assert_eq!((answer.reply.len(), answer.decision), (0, Decision::Close));
    }

    #[test]
    fn a_message_that_grows_waits_for_room_until_a_reply_is_taken() {
        let counters = Counters::default();
        let limits = Limits { cycle: 1 << 20, turn: 1 };
        let context = Context::new(SETTINGS, &counters).with_backlog_max(0).with_limits(limits);
        let offer = "Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=9\r\n";
        let mut dialogue = open(offer, &context);
        // The client refers to its first message, which is further back than the server may refer to.
        let message = testkit::Random::new(1).bytes(900);
        let mut compress = flate2::Compress::new(flate2::Compression::new(6), false);
        let mut frame = || {
            let mut payload = Vec::with_capacity(2 * message.len());
            let flush = flate2::FlushCompress::Sync;
            compress.compress_vec(&message, &mut payload, flush).expect("a deflate stream");
            payload.truncate(payload.len() - 4);
            testkit::frame(testkit::BINARY | testkit::RSV1, &payload)
        };
        let (first, second) = (frame(), frame());
        assert!(first.len() > 900 && second.len() < 100);
        let both = [first, second].concat();
        assert_eq!(receive(&mut dialogue, &both, Output::Queued, &context), b"");
        assert!(dialogue.is_waiting_for_room() && dialogue.is_full(&context));
        assert_eq!(dialogue.make_room(&context), Decision::Continue);
        assert!(dialogue.is_waiting_for_room(), "no reply was taken");
        assert!(take(&mut dialogue).is_some_and(|reply| reply.len() > 900));
        assert_eq!(dialogue.make_room(&context), Decision::Continue);
        assert!(!dialogue.is_waiting_for_room());
        assert!(take(&mut dialogue).is_some_and(|reply| reply.len() > 900));
        assert!(!dialogue.has_spill());
    }
}
