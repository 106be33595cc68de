//! A peer without a socket: a dialogue driven as an engine drives it.

#![allow(dead_code, reason = "each test target uses its own part")]

use bytes::{Buf as _, Bytes};
use ringecho::buffer::Chain;
use ringecho::protocol::{Admission, Context, Decision, Dialogue, Dismissal, Limits, Output};
use testkit::Random;

/// The least that may be done in one turn: one frame, or one step of the inflater.
pub(crate) const STEP: Limits = Limits { cycle: 1, turn: 1 };

/// One end of a dialogue, with the buffer that it receives into and the reply that is being sent.
pub(crate) struct Peer<'a> {
    dialogue: Dialogue,
    context: &'a Context<'a>,
    buffer: Vec<u8>,
    sending: Bytes,
    /// What follows it.
    rest: Chain,
    /// What was sent.
    pub(crate) sent: Vec<u8>,
    /// What was decided last.
    pub(crate) decision: Decision,
    received: usize,
    /// After how many bytes the server had nothing more to say.
    pub(crate) closed_after: Option<usize>,
}

impl<'a> Peer<'a> {
    /// A peer before its opening handshake, of which the buffer takes `room` bytes.
    pub(crate) fn new(room: usize, context: &'a Context<'a>) -> Peer<'a> {
        Peer {
            dialogue: Dialogue::new(Admission::Open),
            context,
            buffer: vec![0xee; room],
            sending: Bytes::new(),
            rest: Chain::default(),
            sent: Vec::new(),
            decision: Decision::Continue,
            received: 0,
            closed_after: None,
        }
    }

    /// The opening handshake with `request`; gives the response. What was received counts from here on.
    pub(crate) fn handshake(&mut self, request: &str) -> String {
        self.feed(request.as_bytes(), &[], None);
        self.send(usize::MAX);
        self.received = 0;
        let response = String::from_utf8(std::mem::take(&mut self.sent)).expect("ASCII");
        assert!(response.ends_with("\r\n\r\n"), "{response}");
        response
    }

    /// Receives `bytes`, cut at these places and where the buffer is full. After each receive everything is
    /// answered and sent, or as much as chance has it; at the end, everything is answered.
    pub(crate) fn feed(&mut self, bytes: &[u8], cuts: &[usize], mut chance: Option<&mut Random>) {
        let room = self.buffer.len();
        let mut from = 0;
        for &cut in cuts.iter().chain([&bytes.len()]) {
            for chunk in bytes[from..cut].chunks(room) {
                self.receive(chunk);
                let turns = |random: &mut &mut Random| random.below(4);
                self.proceed(chance.as_mut().map_or(usize::MAX, turns));
                let most = |random: &mut &mut Random| random.below(2) * random.below(4 * room);
                self.send(chance.as_mut().map_or(usize::MAX, most));
            }
            from = cut;
        }
        self.proceed(usize::MAX);
    }

    /// One receive.
    pub(crate) fn receive(&mut self, chunk: &[u8]) {
        let output = if self.sending.is_empty() { Output::InPlace } else { Output::Queued };
        let buffer = &mut self.buffer[..chunk.len()];
        buffer.copy_from_slice(chunk);
        let answer = self.dialogue.received(buffer, output, self.context);
        if !answer.reply.is_empty() {
            assert!(self.sending.is_empty(), "a reply in the buffer would overtake another");
            self.sending = Bytes::copy_from_slice(&self.buffer[answer.reply]);
        }
        self.received += chunk.len();
        self.follow(answer.decision);
    }

    /// The server begins to close.
    pub(crate) fn close(&mut self) {
        let decision = self.dialogue.dismiss(Dismissal::Stopping, self.context);
        self.follow(decision);
        self.proceed(usize::MAX);
    }

    /// A send that is cut short after `count` bytes, with those that follow it.
    pub(crate) fn send(&mut self, mut count: usize) {
        while count > 0 {
            if self.sending.is_empty() {
                if !self.dialogue.has_yielded() {
                    return;
                }
                self.proceed(1);
                continue;
            }
            let sent = count.min(self.sending.len());
            self.sent.extend_from_slice(&self.sending[..sent]);
            self.sending.advance(sent);
            count -= sent;
            self.go_on();
            self.settle();
        }
    }

    /// Bytes of the answer so far, sent or not.
    pub(crate) fn answered(&self) -> usize {
        let sending = self.sending.len() + self.rest.bytes();
        self.sent.len() + sending + self.dialogue.reply_bytes()
    }

    /// Whether it keeps any bytes.
    pub(crate) fn has_spill(&self) -> bool {
        self.dialogue.has_spill()
    }

    /// Takes at most this many turns, while there is something left to answer.
    pub(crate) fn proceed(&mut self, turns: usize) {
        for _ in 0..turns {
            if !self.dialogue.has_yielded() {
                return;
            }
            let decision = self.dialogue.proceed(self.context);
            self.follow(decision);
        }
    }

    fn follow(&mut self, decision: Decision) {
        self.decision = decision;
        if decision == Decision::Close && self.closed_after.is_none() {
            self.closed_after = Some(self.received);
        }
        self.settle();
    }

    /// Sends the next part of a reply.
    fn go_on(&mut self) {
        if self.sending.is_empty() {
            self.sending = self.rest.take_part(usize::MAX);
        }
    }

    /// Sends what waits, as soon as nothing is being sent, and so makes room.
    fn settle(&mut self) {
        if self.sending.is_empty()
            && let Some(reply) = self.dialogue.take_reply()
        {
            self.rest = reply;
            self.go_on();
        }
        if self.dialogue.is_waiting_for_room() {
            assert!(!self.sending.is_empty(), "it waits for room, and nothing is being sent");
            let decision = self.dialogue.make_room(self.context);
            if !self.dialogue.is_waiting_for_room() {
                self.follow(decision);
            }
        }
    }
}
