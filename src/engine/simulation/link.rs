//! A TCP connection between a peer and the server: the bytes in flight in both directions, its end or
//! reset, and what the server knows of it.
//!
//! This determines what the server may send and when it may close the connection. Every byte is compared
//! with what the peer is owed when it is sent. A link knows no operations, buffers or descriptors.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use super::decoder::Decoder;
use super::layer::{self, PeerEnd};
use super::peer::{Act, Peer, View};
use crate::engine::pump::{FAREWELL_MAX, LINGER_MAX, Timeouts};
use crate::protocol::{Dismissal, close};
use testkit::Random;
use testkit::oracle::{Fit, GOING_AWAY};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The peer has not connected.
    Waiting,
    /// The listener has it.
    Backlog,
    /// It has a descriptor.
    Open,
    /// The server does not know that it is closed.
    Closed,
    Gone,
}

/// By how much the pump's times are rounded.
const TICK: Duration = Duration::from_millis(1);
/// How the response begins to a peer that takes too long for its opening handshake.
const LATE: &[u8] = b"HTTP/1.1 408 ";

/// A connection, both ends of it.
#[derive(Debug)]
pub(super) struct Link {
    peer: Peer,
    stage: Stage,
    /// Bytes handed to its socket.
    arrived: usize,
    /// Bytes that left the socket, and that the pump knows of, or the program in its stead.
    taken: usize,
    reported: usize,
    /// All bytes sent, inflated if they are compressed anew, and how many of them are those that what is owed begins
    /// with.
    sent: Vec<u8>,
    decoder: Option<Decoder>,
    /// The peer's end of the layer, if the connection has one.
    layer: Option<PeerEnd>,
    /// Bytes that the socket has taken to send, but for pings, and those of pings.
    taken_to_send: usize,
    pinged: usize,
    matched: usize,
    /// Until `settles_at` the kernel reports only `settled` bytes as given to it for sending.
    settles_at: Duration,
    settled: usize,
    is_broken: bool,
    /// The kernel has dropped what the peer wrote.
    is_overrun: bool,
    shut_at: Option<Duration>,
    is_refused: bool,
    /// An operation was cancelled when the server might have given the connection up.
    was_given_up: bool,
    /// The pump knows that the peer's stream is over.
    has_ended: bool,
    accepted_at: Duration,
    /// When the pump learned what ends the connection, and last that bytes were sent.
    ending_at: Option<Duration>,
    progressed_at: Option<Duration>,
    /// Bytes that the pump knew of when it learned that it is to stop.
    stopped_at: Option<usize>,
    /// For how many bytes the pump may have answered since, waiting for echoes.
    went_on_to: usize,
    /// The peer's stream was over by then.
    had_ended: bool,
    timeouts: Timeouts,
    /// The server may close it for want of memory.
    may_be_shed: bool,
    /// When the pump last learned of bytes of the peer.
    heard_at: Duration,
    /// The peer has been silent for too long, or the connection open.
    was_idle: bool,
    has_expired: bool,
    /// Bytes that the pump knew of when the time for the opening handshake was over, or the peer silent for too long.
    late_at: Option<usize>,
    /// Why the server has closed it of its own accord.
    dismissal: Option<Dismissal>,
}

impl Link {
    pub(super) fn new(peer: Peer, timeouts: Timeouts, may_be_shed: bool) -> Link {
        Link {
            decoder: peer.is_recompressed.then(Decoder::default),
            layer: None,
            taken_to_send: 0,
            pinged: 0,
            peer,
            stage: Stage::Waiting,
            arrived: 0,
            taken: 0,
            reported: 0,
            sent: Vec::new(),
            matched: 0,
            settles_at: Duration::ZERO,
            settled: 0,
            is_broken: false,
            is_overrun: false,
            shut_at: None,
            is_refused: false,
            was_given_up: false,
            has_ended: false,
            accepted_at: Duration::ZERO,
            ending_at: None,
            progressed_at: None,
            stopped_at: None,
            went_on_to: 0,
            had_ended: false,
            timeouts,
            may_be_shed,
            heard_at: Duration::ZERO,
            was_idle: false,
            has_expired: false,
            late_at: None,
            dismissal: None,
        }
    }

    /// It comes to a listener, whose connections have a layer or not.
    pub(super) fn connect(&mut self, is_layered: bool) {
        self.stage = Stage::Backlog;
        self.layer = is_layered.then(PeerEnd::default);
    }

    /// It gets a descriptor.
    pub(super) fn open(&mut self) {
        self.stage = Stage::Open;
    }

    /// The pump learns of it and has to serve it.
    pub(super) fn admit(&mut self, now: Duration) {
        self.accepted_at = now;
        self.heard_at = now;
    }

    /// The pump learns of it and has to refuse it.
    pub(super) fn refuse(&mut self, now: Duration) {
        self.accepted_at = now;
        self.heard_at = now;
        self.is_refused = true;
        self.peer.owed.refuse();
    }

    pub(super) fn is_refused(&self) -> bool {
        self.is_refused
    }

    pub(super) fn is_waiting_for_accept(&self) -> bool {
        self.stage == Stage::Backlog
    }

    pub(super) fn is_open(&self) -> bool {
        self.stage == Stage::Open
    }

    pub(super) fn close(&mut self) {
        self.stage = Stage::Closed;
    }

    /// The pump knows that it is closed, or never learns of it.
    pub(super) fn retire(&mut self) {
        self.stage = Stage::Gone;
    }

    /// When the peer moves again, if it pauses.
    pub(super) fn wakes_at(&self) -> Duration {
        self.peer.wakes_at
    }

    /// What the peer can do next.
    pub(super) fn acts(&self, window: usize, acts: &mut Vec<Act>) {
        self.peer.acts(self.view(window), acts);
    }

    pub(super) fn act(&mut self, act: Act, window: usize, random: &mut Random, now: Duration) {
        self.peer.act(act, self.view(window), random, now);
    }

    fn view(&self, window: usize) -> View {
        View {
            window: window - (self.peer.written - self.taken),
            sent: self.sent.len(),
            is_shut: self.shut_at.is_some() || self.stage == Stage::Closed,
            is_going_away: self.stopped_at.is_some()
                && self.sent.ends_with(self.peer.owed.farewell.as_deref().unwrap_or(GOING_AWAY))
                && self.fit() == Fit::Whole,
        }
    }

    /// Whether the peer's stream ends after what it has written.
    pub(super) fn has_peer_ended(&self) -> bool {
        self.peer.has_ended
    }

    /// The connection is reset, or breaks with the next operation.
    pub(super) fn is_failed(&self) -> bool {
        self.peer.is_reset || self.is_broken
    }

    pub(super) fn is_over(&self) -> bool {
        self.peer.has_ended || self.is_failed()
    }

    pub(super) fn break_off(&mut self) {
        self.is_broken = true;
    }

    /// The kernel drops what the peer writes from now on. Whether that is new.
    pub(super) fn overrun(&mut self) -> bool {
        !std::mem::replace(&mut self.is_overrun, true)
    }

    /// The server has to give it up, and may find that out in any way.
    pub(super) fn is_lost(&self) -> bool {
        self.is_overrun || self.is_failed()
    }

    /// Bytes that the socket holds.
    pub(super) fn receivable(&self) -> usize {
        self.peer.written - self.taken
    }

    /// Those bytes.
    pub(super) fn unseen(&self) -> &[u8] {
        &self.peer.input[self.taken..self.peer.written]
    }

    /// These bytes leave the socket.
    pub(super) fn receive(&mut self, bytes: usize) -> Cow<'_, [u8]> {
        let from = self.taken;
        self.taken += bytes;
        let input = &self.peer.input[from..self.taken];
        if self.layer.is_none() {
            return Cow::Borrowed(input);
        }
        let mut input = input.to_vec();
        layer::encrypt(&mut input, from);
        Cow::Owned(input)
    }

    /// The pump learns that these bytes were received.
    pub(super) fn report(&mut self, bytes: usize, now: Duration) {
        self.note_time(now);
        self.reported += bytes;
        if bytes > 0 {
            self.heard_at = self.heard_at.max(now);
        }
    }

    /// Notes which times are over.
    fn note_time(&mut self, now: Duration) {
        let Timeouts { handshake, idle, lifetime, .. } = self.timeouts;
        let is_refused = self.is_refused;
        let is_past = |since: Duration, most: Option<Duration>| {
            most.is_some_and(|most| now + TICK >= since + most) && !is_refused
        };
        let is_silent = is_past(self.heard_at, idle);
        self.was_idle |= is_silent;
        self.has_expired |= is_past(self.accepted_at, lifetime);
        if is_silent || is_past(self.accepted_at, handshake) {
            self.late_at.get_or_insert(self.reported);
        }
    }

    /// Whether its opening handshake took too long, or did not go on.
    fn is_late(&self) -> bool {
        self.late_at.is_some_and(|known| known < self.peer.head)
    }

    /// Whether what was sent ends with whole frames.
    pub(super) fn is_at_boundary(&self) -> bool {
        self.decoder.as_ref().is_none_or(Decoder::is_between_frames)
            && self.peer.owed.is_boundary(self.sent.len())
            && self.matched == self.sent.len()
    }

    /// Whether the server may send a ping now.
    pub(super) fn may_be_pinged(&self, now: Duration) -> bool {
        self.timeouts.ping.is_some_and(|after| now + TICK >= self.heard_at + after)
    }

    /// Finds the reason for which the server may have closed the connection of its own accord, so that what was sent
    /// is what is owed.
    fn explain(&mut self, now: Duration) -> bool {
        self.note_time(now);
        let common = self.sent.len().min(LATE.len());
        if self.is_late() && common > 0 && self.sent[..common] == LATE[..common] {
            self.peer.owed.time_out();
            self.matched = 0;
            self.ending_at.get_or_insert(now);
            if self.fit() != Fit::Not {
                return true;
            }
        }
        for (dismissal, is_reason) in [
            (Dismissal::Idle, self.was_idle),
            (Dismissal::Expired, self.has_expired),
            (Dismissal::Memory, self.may_be_shed),
        ] {
            if !is_reason {
                continue;
            }
            self.dismissal = Some(dismissal);
            self.peer.owed.farewell =
                Some(close::frame(dismissal.close_code(), dismissal.reason()));
            // What was received and waited for its turn is not answered.
            self.stopped_at = Some(0);
            self.went_on_to = self.reported;
            self.had_ended |= self.has_ended;
            if self.fit() != Fit::Not {
                self.ending_at.get_or_insert(now);
                return true;
            }
        }
        false
    }

    /// Whether the server has said that it closes the connection of its own accord.
    pub(super) fn is_dismissed(&self) -> bool {
        self.dismissal.is_some()
    }

    /// Whether the server should have said that it closes the connection, or have closed it if it cannot say so.
    pub(super) fn is_overdue(&self, now: Duration) -> bool {
        let Timeouts { handshake, idle, lifetime, ping, .. } = self.timeouts;
        let silence = idle.into_iter().chain(ping).min().unwrap_or_default();
        let slack = silence / 8 + LINGER_MAX + Duration::from_millis(100);
        let is_past = |since: Duration, most: Option<Duration>| {
            most.is_some_and(|most| now > since + most + slack)
        };
        let heard_at = self.heard_at.max(self.progressed_at.unwrap_or_default());
        let is_in_handshake = self.reported < self.peer.head;
        self.shut_at.is_none()
            && self.dismissal.is_none()
            && self.stopped_at.is_none()
            && self.ending_at.is_none()
            && !self.is_refused
            && (is_past(heard_at, idle)
                || is_past(self.accepted_at, lifetime)
                || is_in_handshake && is_past(self.accepted_at, handshake))
    }

    /// The pump knows of all that was received.
    pub(super) fn is_all_reported(&self) -> bool {
        self.taken == self.reported
    }

    /// The pump learns that there is nothing more to receive for now, which is the end of the
    /// stream once it knows of all bytes: an offloaded socket says so before it gives up what is
    /// queued.
    pub(super) fn report_end(&mut self) {
        self.has_ended = self.reported == self.peer.written;
    }

    /// Notes when the pump first knew of what ends the connection.
    pub(super) fn mark_ending(&mut self, now: Duration) {
        if self.has_ended || self.peer.owed.ends_by(self.reported) {
            self.ending_at.get_or_insert(now);
        }
    }

    /// The pump learns that bytes were sent.
    pub(super) fn mark_progress(&mut self, now: Duration, stopped: Option<Duration>) {
        // If its time was over by now, the pump may have given it up before it learned of this.
        self.was_given_up = self.is_given_up(now, stopped);
        self.progressed_at = Some(now);
    }

    /// The pump learns that it is to stop.
    pub(super) fn stop(&mut self) {
        // It has its close frame already.
        if self.dismissal.is_some() {
            return;
        }
        self.stopped_at = Some(self.reported);
        self.had_ended = self.has_ended;
    }

    /// Whether the stop found it in its opening handshake, which is answered nevertheless.
    pub(super) fn was_opening(&self) -> bool {
        let head = self.peer.owed.boundaries.first();
        let is_within = |at| head.is_none_or(|&(end, _)| at < end);
        self.dismissal.is_none() && self.stopped_at.is_some_and(is_within)
    }

    /// The pump, or the program in its stead, may have answered what came after the stop.
    pub(super) fn go_on(&mut self) {
        if self.stopped_at.is_some() {
            self.went_on_to = self.reported;
        }
    }

    /// What the peer has written since the socket was offloaded, or since this was asked.
    pub(super) fn arrive(&mut self) -> &[u8] {
        let from = std::mem::replace(&mut self.arrived, self.peer.written);
        &self.peer.input[from..self.arrived]
    }

    /// Whole frames that left the socket of a connection that was offloaded.
    pub(super) fn frames_taken(&self) -> usize {
        if self.arrived == 0 {
            return 0;
        }
        let ends = &self.peer.owed.boundaries;
        ends.partition_point(|&(end, _)| end <= self.taken).saturating_sub(1)
    }

    /// Bytes that the peer has acknowledged.
    pub(super) fn acknowledged(&self) -> usize {
        self.peer.read + self.pinged
    }

    /// Bytes that the socket has taken to send.
    pub(super) fn taken_to_send(&self) -> usize {
        self.taken_to_send + self.pinged
    }

    /// Bytes given to the kernel for sending, as it says itself.
    pub(super) fn written(&self, now: Duration) -> usize {
        if now < self.settles_at { self.settled } else { self.taken_to_send() }
    }

    /// The socket takes these bytes of a ping, which the peer ignores.
    pub(super) fn ping(&mut self, bytes: usize) {
        self.pinged += bytes;
    }

    /// Bytes that the socket can take.
    pub(super) fn room(&self) -> usize {
        self.peer.room.saturating_sub(self.sent.len() - self.peer.read)
    }

    /// The socket takes these bytes, for which it has room. An error says what is wrong with them.
    pub(super) fn send(
        &mut self,
        bytes: &[u8],
        now: Duration,
        random: &mut Random,
    ) -> Result<(), String> {
        let begin = self.sent.len();
        if now >= self.settles_at && random.one_in(4) {
            self.settled = self.taken_to_send();
            self.settles_at = now + Duration::from_micros(random.below(300) as u64);
        }
        self.taken_to_send += bytes.len();
        let mut plain = Vec::new();
        let bytes = match &mut self.layer {
            None => bytes,
            Some(layer) => {
                layer.push(bytes, &mut plain)?;
                &plain
            }
        };
        match &mut self.decoder {
            Some(decoder) => decoder.push(bytes, &mut self.sent)?,
            None => self.sent.extend_from_slice(bytes),
        }
        if self.matched == begin {
            let owed = self.peer.owed.bytes[begin..].iter();
            self.matched += self.sent[begin..].iter().zip(owed).take_while(|(a, b)| a == b).count();
        }
        if self.fit() != Fit::Not || self.explain(now) {
            return Ok(());
        }
        let from = self.matched.min(begin);
        let (got, owed) = (&self.sent[from..], self.matched - from);
        Err(format!("{got:02x?} at byte {from}, {owed} of them as owed"))
    }

    /// How what was sent fits what is owed.
    fn fit(&self) -> Fit {
        let owed = &self.peer.owed;
        let mut fit = owed.fit(&self.sent, self.matched, self.stopped_at);
        if let Some(from) = self.stopped_at
            && from < self.went_on_to
        {
            let ends = owed.boundaries.iter().map(|&(end, _)| end);
            let ends = ends.filter(|&end| end > from && end < self.went_on_to);
            let fits = ends
                .chain([self.went_on_to])
                .map(|end| owed.fit(&self.sent, self.matched, Some(end)));
            fit = fits.fold(fit, Fit::max);
        }
        // The close frame may follow late, after the kernel's echoes or the opening handshake, and the peer end before
        // that.
        let may_be_late = self.arrived > 0 || self.was_opening();
        let had_ended = self.had_ended || self.has_ended && may_be_late;
        if had_ended { fit.max(owed.fit(&self.sent, self.matched, None)) } else { fit }
    }

    pub(super) fn is_shut(&self) -> bool {
        self.shut_at.is_some()
    }

    /// Whether the server has said all, so that its stream may end.
    pub(super) fn may_shut_down(&mut self, now: Duration) -> bool {
        self.is_all_said() || self.explain(now) && self.is_all_said()
    }

    fn is_all_said(&self) -> bool {
        let ends = self.peer.owed.ends_by(self.reported) || self.stopped_at.is_some();
        let has_farewell = self.layer.as_ref().is_none_or(PeerEnd::has_farewell);
        ends && self.fit() == Fit::Whole && has_farewell || self.is_lost()
    }

    pub(super) fn shut_down(&mut self, now: Duration) {
        self.shut_at = Some(now);
    }

    /// Whether the peer has got all that it is owed, and has ended its stream.
    pub(super) fn is_fulfilled(&self) -> bool {
        self.has_ended && self.fit() == Fit::Whole
    }

    /// Whether the server may give the connection up without having said all.
    pub(super) fn is_given_up(&mut self, now: Duration, stopped: Option<Duration>) -> bool {
        self.note_time(now);
        let is_past = |since: Option<Duration>, most| since.is_some_and(|at| now >= at + most);
        self.was_given_up
            || self.is_lost()
            || self.timeouts.drain.is_some_and(|drain| is_past(stopped, drain))
            // Nothing of a close frame or of a response may have fitted, so nobody knows when it was due.
            || self.was_idle
            || self.has_expired
            || self.is_late()
            || self.may_be_shed
            || is_past(self.shut_at, LINGER_MAX)
            || self.shut_at.is_none()
                && is_past(self.ending_at.max(self.progressed_at), FAREWELL_MAX)
                && self.ending_at.is_some()
            || self.is_refused && now >= self.accepted_at + LINGER_MAX
    }

    /// The server cancels an operation, and gives the connection up if it may.
    pub(super) fn mark_cancelled(&mut self, now: Duration, stopped: Option<Duration>) {
        self.was_given_up = self.is_given_up(now, stopped);
    }

    /// Whether the server must have noticed what ends the connection.
    pub(super) fn is_ending(&self) -> bool {
        self.peer.owed.has_ended_by(self.reported)
    }

    /// Whether the server may wait for room forever: for a peer that never reads.
    pub(super) fn may_stall(&self) -> bool {
        self.peer.never_reads() && !self.is_ending() && !self.has_ended
    }

    /// Whether the server has received all and has answered it.
    pub(super) fn is_idle(&self) -> bool {
        self.taken == self.peer.written
            && self.peer.has_its_due(self.sent.len(), self.fit())
            && !self.peer.has_ended
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?}; {} bytes written of {}, {} taken, {} known; {} bytes sent, {} as owed of {}, \
             {} read; ended {}, reset {}, broken {}, refused {}, shut {:?}, ending {:?}, stopped \
             {:?}",
            self.stage,
            self.peer.written,
            self.peer.input.len(),
            self.taken,
            self.reported,
            self.sent.len(),
            self.matched,
            self.peer.owed.bytes.len(),
            self.peer.read,
            self.peer.has_ended,
            self.peer.is_reset,
            self.is_broken,
            self.is_refused,
            self.shut_at,
            self.ending_at,
            self.stopped_at
        )
    }
}
