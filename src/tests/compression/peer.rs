//! A connection without a socket.

use bytes::{Buf as _, BytesMut};
use ringecho::buffer::{Cursors, HEADROOM, Region, Spill};
use ringecho::protocol::{Admission, CloseCode, Connection, Context, Next};

use crate::agreement::request;
use testkit::Random;

/// A connection fed as the engine feeds it: in place while nothing waits, else by a spill, which is
/// widened when it is asked for.
pub(crate) struct Peer<'a> {
    pub(crate) connection: Connection,
    pub(crate) context: &'a Context<'a>,
    pub(crate) pinned: Vec<u8>,
    pub(crate) spill: Option<Spill>,
    pub(crate) sending: BytesMut,
    pub(crate) sent: Vec<u8>,
    pub(crate) next: Next,
    /// The protocol waits for room until more is sent.
    pub(crate) is_held: bool,
    /// What decides whether it waits and how much is sent at a time; without it all goes at once.
    pub(crate) holds: Option<Random>,
    pub(crate) received: usize,
    pub(crate) closed_after: Option<usize>,
}

impl<'a> Peer<'a> {
    pub(crate) fn new(room: usize, context: &'a Context<'a>) -> Peer<'a> {
        Peer {
            connection: Connection::new(Admission::Open),
            context,
            pinned: vec![0xee; HEADROOM + room],
            spill: None,
            sending: BytesMut::new(),
            sent: Vec::new(),
            next: Next::Receive,
            is_held: false,
            holds: None,
            received: 0,
            closed_after: None,
        }
    }

    /// The opening handshake; returns the response.
    pub(crate) fn handshake(&mut self, offer: &str) -> String {
        self.feed(request(offer).as_bytes(), &[]);
        self.send(usize::MAX);
        self.received = 0;
        let response = String::from_utf8(std::mem::take(&mut self.sent)).expect("ASCII");
        assert!(response.ends_with("\r\n\r\n"), "{response}");
        response
    }

    /// Receives `octets`, cut at these places and where a buffer is full.
    pub(crate) fn feed(&mut self, octets: &[u8], cuts: &[usize]) {
        let room = self.pinned.len() - HEADROOM;
        let mut from = 0;
        for &cut in cuts.iter().chain([&octets.len()]) {
            for chunk in octets[from..cut].chunks(room) {
                self.receive(chunk);
                self.received += chunk.len();
                if self.next == Next::Close && self.closed_after.is_none() {
                    self.closed_after = Some(self.received);
                }
                let most = |random: &mut Random| random.below(2) * random.below(4 * room);
                let count = self.holds.as_mut().map_or(usize::MAX, most);
                self.send(count);
            }
            from = cut;
        }
    }

    pub(crate) fn receive(&mut self, chunk: &[u8]) {
        if self.sending.is_empty() && self.spill.is_none() {
            let mut cursors = Cursors::received(chunk.len());
            self.pinned[HEADROOM..HEADROOM + chunk.len()].copy_from_slice(chunk);
            let region = &mut Region::new(&mut self.pinned, &mut cursors);
            self.next = self.connection.advance(region, self.context);
            if cursors.has_leftover() {
                self.spill = Some(Spill::leftover(&self.pinned, &mut cursors));
            }
            self.sending = BytesMut::from(&self.pinned[cursors.reply()]);
        } else {
            let spill = self.spill.get_or_insert_default();
            spill.append(chunk);
            self.next = self.connection.advance(&mut spill.region(), self.context);
            self.spill.take_if(|spill| spill.is_empty());
        }
        self.expand();
        self.settle();
    }

    pub(crate) fn expand(&mut self) {
        let mut answered = None;
        while let Next::Expand(octets) = self.next {
            let waiting = self.sending.len() + self.spill.as_ref().map_or(0, Spill::reply_bytes);
            self.is_held =
                waiting > 0 && self.holds.as_mut().is_some_and(|random| random.one_in(2));
            if self.is_held {
                break;
            }
            if octets > 0 {
                assert_ne!(answered.replace(self.answered()), Some(self.answered()), "no progress");
            }
            let spill = self.spill.get_or_insert_default();
            spill.widen(octets);
            self.next = self.connection.advance(&mut spill.region(), self.context);
        }
        self.spill.take_if(|spill| spill.is_empty());
    }

    pub(crate) fn close(&mut self) {
        let spill = self.spill.get_or_insert_default();
        self.next = self.connection.close(CloseCode::GOING_AWAY, &mut spill.region(), self.context);
        self.is_held = false;
        self.spill.take_if(|spill| spill.is_empty());
        self.settle();
    }

    /// A send that is cut short after `octets`, with those that follow it.
    pub(crate) fn send(&mut self, mut octets: usize) {
        while octets > 0 && !self.sending.is_empty() {
            let count = octets.min(self.sending.len());
            self.sent.extend_from_slice(&self.sending[..count]);
            self.sending.advance(count);
            octets -= count;
            self.settle();
        }
    }

    pub(crate) fn settle(&mut self) {
        loop {
            if self.sending.is_empty()
                && let Some(spill) = self.spill.take_if(|spill| spill.has_reply())
            {
                (self.sending, self.spill) = spill.split_reply();
            }
            // What waits for room must not wait for nothing.
            if !self.is_held || !self.sending.is_empty() {
                return;
            }
            self.next = Next::Expand(0);
            self.expand();
        }
    }

    /// Octets of the answer so far, sent or not.
    pub(crate) fn answered(&self) -> usize {
        let waiting = self.spill.as_ref().map_or(0, Spill::reply_bytes);
        self.sent.len() + self.sending.len() + waiting
    }
}
