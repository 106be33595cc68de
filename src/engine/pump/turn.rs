//! What an event means for one connection, and the one place that decides which operations follow.
//!
//! A [`Turn`] borrows the connection and what the worker's connections share. It does not see the other
//! connections.

use std::time::Duration;

use bytes::Bytes;
use rustix::io::Errno;

use super::Worker;
use super::deadlines::{Due, FAREWELL_MAX, HANDSHAKE_GRACE, LINGER_MAX};
use super::layered::note_unanswered;
use super::offloaded::{Arrival, OffloadProgress, SECOND_LOOK};
use super::peer::{End, Peer, Progress, Receiving, Sending, Stage};
use crate::buffer::SpillPool;
use crate::engine::ring::{Further, Lease, Patience, Received, Reply, Ring, Sent, Socket};
use crate::offload;
use crate::protocol::{Decision, Dismissal, Output};
use crate::slab::ConnectionId;

/// One connection at one event.
pub(super) struct Turn<'t, 'a, R: Ring> {
    pub(super) id: ConnectionId,
    pub(super) peer: &'t mut Peer<R::Place>,
    pub(super) worker: &'t mut Worker<'a, R>,
}

impl<R: Ring> Turn<'_, '_, R> {
    #[inline]
    pub(super) fn received(&mut self, received: Received, further: Further) {
        if further == Further::Over {
            self.peer.receiving = Receiving::Off;
        }
        if let Some(offloaded) = &mut self.peer.offloaded
            && received != Received::NoBuffer
        {
            offloaded.is_unread = false;
        }
        match received {
            Received::Data { lease, bytes } => self.received_data(lease, bytes as usize),
            Received::NoBuffer => {
                self.worker.context.counters.buffers_exhausted.add(1);
                self.peer.receiving = Receiving::Starved;
                self.worker.starved.push_back(self.id);
            }
            Received::End if self.postpone_end() => {}
            Received::End => self.ended(),
            // Only this pump cancels, and it knows why.
            Received::Failed(Errno::CANCELED) => {}
            Received::Failed(Errno::AGAIN) if self.peer.offloaded.is_some() => self.found_nothing(),
            Received::Failed(_) => self.mark_broken(),
        }
        self.settle();
    }

    #[inline]
    fn received_data(&mut self, lease: Lease, bytes: usize) {
        let Turn { id, peer, worker } = self;
        worker.context.counters.bytes_in.add(bytes as u64);
        if let Some(ledgers) = &mut worker.ledgers {
            ledgers.received(*id, bytes);
        }
        peer.heard_at = worker.context.now.get();
        if bytes > worker.context.allowance.piece() / 2 || peer.heavy.is_some() {
            self.weigh(bytes, lease.is_full());
        }
        let Turn { peer, worker, .. } = self;
        // A full buffer may hold the first part of a packet, of which the rest is still to come.
        if peer.offload_progress == OffloadProgress::Attaching && lease.is_full() {
            peer.offload_progress = OffloadProgress::Waiting(0);
        }
        if let Some(offloaded) = &mut peer.offloaded {
            let record = worker.ring.record(&offloaded.place);
            offloaded.gate.received(bytes as u64, record);
            offloaded.rest = SECOND_LOOK;
            // It came before its notice.
            offloaded.gate.wake(record);
        }
        if peer.stage != Stage::Serving {
            worker.ring.recycle(lease);
        } else if peer.channel.is_some() {
            self.answer_layered(lease);
        } else {
            self.answer(lease, bytes);
        }
    }

    /// Lets the dialogue answer what was received, and sends the reply if it is in the buffer.
    #[inline]
    fn answer(&mut self, mut lease: Lease, bytes: usize) {
        let Turn { peer, worker, .. } = self;
        let is_sending = peer.sending != Sending::Nothing;
        let output = if is_sending { Output::Queued } else { Output::InPlace };
        let buffer = worker.ring.bytes(&mut lease);
        let answer = peer.dialogue.received(buffer, output, &worker.context);
        if peer.offload_progress != OffloadProgress::Done || peer.offloaded.is_some() {
            let arrival = Arrival {
                could_echo: offload::could_echo(bytes, &buffer[answer.reply.clone()]),
                is_drained: !lease.is_full(),
            };
            self.arrived(arrival);
        }
        if answer.reply.is_empty() {
            self.worker.ring.recycle(lease);
            note_unanswered(&mut self.worker.unanswered, self.id);
        } else {
            self.send(Reply::pinned(lease, answer.reply));
        }
        self.follow(answer.decision);
    }

    #[inline]
    pub(super) fn follow(&mut self, decision: Decision) {
        match decision {
            Decision::Continue => {}
            Decision::Yield => self.mark_yielded(),
            Decision::Close => self.say_farewell(),
        }
    }

    /// Sends the next reply; none is in flight.
    #[inline]
    pub(super) fn send(&mut self, reply: Reply) {
        let Turn { id, peer, worker } = self;
        if let Some(offloaded) = &mut peer.offloaded {
            offloaded.gate.sent(reply.len() as u64);
        }
        let patience = worker.ring.send(*id, &peer.socket, reply, Patience::None);
        peer.sending = Sending::of(patience);
        worker.quick_sends += usize::from(peer.sending == Sending::Quick);
        if !R::SENDS_AT_ONCE && peer.heavy.is_none() {
            worker.line.answered();
        }
    }

    #[inline]
    pub(super) fn sent(&mut self, sent: Sent, bytes: u32) {
        let Turn { id, peer, worker } = self;
        worker.context.counters.bytes_out.add(u64::from(bytes));
        if let Some(ledgers) = &mut worker.ledgers {
            ledgers.sent(*id, bytes);
        }
        let was_resent = std::mem::take(&mut peer.is_resent);
        peer.sending = Sending::Nothing;
        if bytes > 0 && peer.progress == Progress::None {
            peer.progress = Progress::Some;
        }
        if bytes > 0 && was_resent {
            // The socket has room again, so the peer has read something: it is there, even if nothing is
            // received from it.
            peer.heard_at = worker.context.now.get();
        }
        match sent {
            Sent::Whole => self.wait_to_send(),
            Sent::Cut(rest) => {
                let rest = unpin(&mut worker.ring, rest, &worker.context.spill_pool);
                if peer.stage != Stage::Leaving {
                    let rest = Reply::Heap(rest);
                    let patience = worker.ring.send(*id, &peer.socket, rest, Patience::Unlimited);
                    peer.sending = Sending::of(patience);
                    peer.is_resent = true;
                }
            }
            Sent::Failed(_) => self.mark_broken(),
        }
        self.settle();
    }

    /// Finds out whether the connection is broken, if no reply is going to.
    pub(super) fn verify(&mut self) {
        let Turn { id, peer, worker } = self;
        // The peer of an offloaded connection is watched.
        let is_watched = peer.offloaded.is_some();
        if peer.stage == Stage::Serving && !is_watched && !peer.dialogue.has_reply() {
            worker.ring.verify(*id, &peer.socket);
        }
    }

    #[cold]
    pub(super) fn broken(&mut self) {
        // A connection that is shut down looks broken too; it has a deadline instead.
        if self.peer.stage == Stage::Serving {
            self.drop_now();
        }
    }

    /// Starts and cancels operations until the connection does what it should.
    #[inline]
    pub(super) fn settle(&mut self) {
        let peer = &self.peer;
        let is_plain = peer.stage == Stage::Serving
            && peer.receiving == Receiving::On
            && !peer.dialogue.has_spill()
            && peer.offload_progress != OffloadProgress::Attaching
            && peer.offloaded.is_none()
            && peer.heavy.is_none()
            && peer.channel.is_none()
            && !peer.has_ended;
        if !is_plain {
            self.settle_slowly();
        }
    }

    #[cold]
    pub(super) fn settle_slowly(&mut self) {
        if self.peer.stage == Stage::Serving && self.peer.has_ended {
            self.peer.ends(End::ByClient);
            self.peer.stage = Stage::Farewell;
        }
        if matches!(self.peer.stage, Stage::Serving | Stage::Farewell) {
            self.send_waiting();
            self.make_room();
            self.send_of_layer();
        }
        self.settle_farewell();
        if self.peer.stage == Stage::Draining && self.peer.has_ended {
            self.peer.stage = Stage::Leaving;
        }
        match self.peer.stage {
            Stage::Serving | Stage::Farewell | Stage::Draining => {
                self.attach();
                self.settle_offload();
                self.settle_receiving();
            }
            Stage::Leaving => self.tear_down(),
            Stage::Closing => {}
        }
    }

    /// Sends the reply that waits, if none is in flight.
    fn send_waiting(&mut self) {
        if self.peer.sending == Sending::Nothing
            && let Some(reply) = self.peer.dialogue.take_reply()
        {
            self.send_pieces(reply);
        }
    }

    /// Continues a dialogue that waits for room, now that less waits to be sent.
    fn make_room(&mut self) {
        if self.peer.dialogue.is_waiting_for_room() {
            let decision = self.peer.dialogue.make_room(&self.worker.context);
            self.follow(decision);
            self.send_waiting();
        }
    }

    /// Shuts the socket down or leaves when everything is said and sent.
    fn settle_farewell(&mut self) {
        if !matches!(self.peer.stage, Stage::Serving | Stage::Farewell) {
            return;
        }
        let Turn { peer, worker, .. } = self;
        let is_farewell = peer.stage == Stage::Farewell;
        if peer.sending == Sending::Quick {
            let has_more = peer.dialogue.has_reply() || peer.has_rest() || peer.has_waiting();
            worker.is_eager |= is_farewell || has_more;
        }
        let is_answered = !peer.dialogue.has_yielded();
        if is_farewell && is_answered && peer.sending == Sending::Nothing {
            self.finish_farewell();
        }
        // What is still to be sent waits for the peer, or for the kernel to move on. What waits for the connection's
        // turn, to be answered or to be sent, does not.
        if self.peer.stage == Stage::Farewell
            && is_answered
            && !matches!(self.peer.sending, Sending::Quick | Sending::Waiting)
            && self.peer.progress == Progress::Unwatched
        {
            self.peer.progress = Progress::None;
            self.end_after(FAREWELL_MAX, Stage::Farewell);
        }
    }

    fn finish_farewell(&mut self) {
        if !self.is_flushed() {
            self.look_again();
        } else if self.close_layer() {
            // It goes on when that is sent.
        } else if self.peer.has_ended {
            self.peer.stage = Stage::Leaving;
        } else {
            // Section 7.1.1: the server closes first. What it has sent must not be lost to a reset, so
            // what the peer sends is read to its end before the socket is closed.
            self.worker.ring.shut_down(&self.peer.socket);
            self.peer.stage = Stage::Draining;
            self.peer.progress = Progress::Unwatched;
            self.end_after(LINGER_MAX, Stage::Draining);
        }
    }

    /// Starts or pauses the receive.
    fn settle_receiving(&mut self) {
        let is_layer_full = self.is_layer_full();
        let is_layer_behind = self.is_layer_behind();
        let Turn { id, peer, worker } = self;
        let is_full = peer.dialogue.is_full(&worker.context) || is_layer_full;
        let is_clogged = peer.sending != Sending::Nothing && is_full;
        let is_attaching = peer.offload_progress == OffloadProgress::Attaching;
        // What comes from a peer to which the server has said its last takes no memory.
        let is_dropped = peer.stage != Stage::Serving || peer.dialogue.connection().is_closing();
        let mut is_wanted = !peer.has_ended
            && !is_clogged
            && !is_layer_behind
            && !is_attaching
            && !peer.dialogue.has_yielded()
            && (is_dropped || worker.memory.admits(|| peer.memory_bytes()));
        if let Some(offloaded) = &peer.offloaded {
            if peer.receiving == Receiving::Off
                && is_wanted
                && offloaded.is_readable(worker.ring.record(&offloaded.place))
            {
                worker.ring.receive_once(&offloaded.place, *id, &peer.socket);
                peer.receiving = Receiving::Once;
            }
            is_wanted = false;
        }
        let is_heavy = peer.heavy.is_some();
        match peer.receiving {
            Receiving::Off if is_wanted && is_heavy => self.receive_piece(),
            Receiving::Off if is_wanted => {
                worker.ring.receive(*id, &peer.socket);
                peer.receiving = Receiving::On;
            }
            Receiving::On | Receiving::Piece
                if !is_wanted || is_heavy && peer.receiving == Receiving::On =>
            {
                worker.ring.pause_receive(*id);
                peer.receiving = Receiving::Pausing;
            }
            Receiving::Off
            | Receiving::On
            | Receiving::Piece
            | Receiving::Pausing
            | Receiving::Stopping
            | Receiving::Starved
            | Receiving::Once => {}
        }
    }

    /// Ends the operations of a connection that is over, then closes its socket.
    fn tear_down(&mut self) {
        let is_unwatched = self.end_watch();
        let Turn { id, peer, worker } = self;
        peer.dialogue.discard();
        peer.heavy = None;
        if peer.sending == Sending::Waiting {
            peer.sending = Sending::Nothing;
        }
        if matches!(
            peer.receiving,
            Receiving::On | Receiving::Piece | Receiving::Pausing | Receiving::Once
        ) {
            worker.ring.cancel_receive(*id);
            peer.receiving = Receiving::Stopping;
        }
        if peer.sending == Sending::Patient {
            worker.ring.cancel_send(*id);
            peer.sending = Sending::Stopping;
        }
        // A quick send ends by itself with the next submission.
        worker.is_eager |= peer.sending == Sending::Quick;
        if is_unwatched && peer.receiving != Receiving::Stopping && peer.sending == Sending::Nothing
        {
            peer.stage = Stage::Closing;
            let socket = std::mem::replace(&mut peer.socket, Socket(-1));
            if let Some(offloaded) = peer.offloaded.take() {
                worker.ring.detach(offloaded.place, &socket);
            }
            worker.ring.close(*id, socket);
        }
    }

    /// The server sends what waits, and then nothing more.
    #[cold]
    fn say_farewell(&mut self) {
        self.peer.ends(End::Said);
        if self.peer.stage == Stage::Serving {
            self.peer.stage = Stage::Farewell;
        }
    }

    /// The connection is broken: nothing more can be sent or received.
    #[cold]
    pub(super) fn mark_broken(&mut self) {
        self.peer.ends(End::Broken);
        if self.peer.stage != Stage::Closing {
            self.peer.stage = Stage::Leaving;
        }
    }

    /// Ends the connection, whatever is still to be sent or received.
    pub(super) fn drop_now(&mut self) {
        self.mark_broken();
        self.settle();
    }

    /// The worker is to stop. A handshake that is in progress is answered first: the peer cannot know that it
    /// came too late.
    pub(super) fn stop(&mut self) {
        if !self.is_in_handshake() {
            return self.dismiss(Dismissal::Stopping);
        }
        let at = self.worker.ring.now() + HANDSHAKE_GRACE;
        self.worker.deadlines.set(at, Due::Dismiss(self.id, Dismissal::Stopping));
        self.worker.latecomers.push(self.id);
    }

    /// Whether the opening handshake is in progress.
    pub(super) fn is_in_handshake(&self) -> bool {
        let Peer { stage, dialogue, .. } = &*self.peer;
        *stage == Stage::Serving && dialogue.connection().is_in_handshake()
    }

    /// Closes the connection, on which the peer has broken no rule.
    pub(super) fn dismiss(&mut self, dismissal: Dismissal) {
        if dismissal != Dismissal::Stopping && !std::mem::replace(&mut self.peer.is_dismissed, true)
        {
            // Time to answer the close frame, or to finish the message that it follows. A stopping worker has
            // a deadline for all of them.
            self.end_after(LINGER_MAX, Stage::Serving);
        }
        let is_flushed = self.is_flushed();
        if let Some(offloaded) = &mut self.peer.offloaded {
            offloaded.is_leaving = !is_flushed;
        }
        if !is_flushed {
            // The close frame must follow all that the kernel has echoed.
            let at = self.worker.ring.now() + self.rest();
            self.worker.deadlines.set(at, Due::Dismiss(self.id, dismissal));
            return self.settle();
        }
        if self.peer.stage != Stage::Serving {
            return self.settle();
        }
        // What was received is answered first, and what comes from now on is not: so not by turns.
        while dismissal != Dismissal::Memory && self.peer.dialogue.has_yielded() {
            let decision = self.peer.dialogue.proceed(&self.worker.context);
            self.follow(decision);
        }
        self.peer.ends(End::Dismissed(dismissal));
        let decision = self.peer.dialogue.dismiss(dismissal, &self.worker.context);
        self.follow(decision);
        self.settle();
    }

    fn end_after(&mut self, time: Duration, stage: Stage) {
        let at = self.worker.ring.now() + time;
        self.worker.deadlines.set(at, Due::End(self.id, stage));
    }

    /// A deadline has come: the connection ends if it is still in this stage, unless its peer has read
    /// something in the meantime.
    pub(super) fn end_unless_progressing(&mut self, stage: Stage) {
        if self.peer.stage != stage {
            return;
        }
        if self.peer.progress == Progress::Some {
            self.peer.progress = Progress::None;
            self.end_after(FAREWELL_MAX, stage);
        } else {
            self.peer.ends(End::TimedOut);
            self.drop_now();
        }
    }
}

/// The memory of `reply` on the heap; a pinned buffer goes back to its ring.
fn unpin<R: Ring>(ring: &mut R, reply: Reply, pool: &SpillPool) -> Bytes {
    match reply {
        Reply::Heap(bytes) => bytes,
        Reply::Pinned(pinned) => {
            let (mut lease, range) = pinned.into_parts();
            let rest = pool.copy(&ring.bytes(&mut lease)[range]);
            ring.recycle(lease);
            rest
        }
    }
}
