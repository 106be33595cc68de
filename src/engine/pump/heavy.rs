//! Heavy connections, which receive and send by turns.
//!
//! The kernel copies what is received and sent, many megabytes at a time if it is let. So a connection that
//! received much at once, whose reply is long, or that has yielded is *heavy*: it receives a piece at a time and sends
//! a piece at a time. A piece is at most [`Limits::PIECE`](crate::protocol::Limits::PIECE) bytes. If more of the
//! same is known to wait, the next piece waits for the connection's turn, and the kernel's copying is a part of the
//! cycle's work. What a heavy connection has received is answered after what the others have.
//!
//! Larger pieces cost less, by a quarter of the CPU time. So they are larger while connections have no neighbours: then
//! nobody waits for them.
//!
//! A connection is heavy until it has received little a number of times in a row. This file does not know in which
//! order connections have their turns.

use super::offloaded::OffloadProgress;
use super::peer::{Receiving, Sending, Stage};
use super::turn::Turn;
use crate::buffer::Chain;
use crate::engine::ring::Ring;
use crate::protocol::Dismissal;

/// How many times as large pieces are while connections have no neighbours. Unmasking one must still be less than a
/// cycle's work.
const LARGER: usize = 4;
/// How often in a row a heavy connection has to receive little until it is heavy no more. Changing over costs a
/// cancellation, so it must not happen for each message.
const LITTLE_MIN: u8 = 16;

/// What only a heavy connection has.
#[derive(Debug, Default)]
pub(super) struct Heavy {
    /// What follows the piece of a reply that is being sent.
    rest: Chain,
    /// The next receive waits for the connection's turn.
    is_receive_due: bool,
    /// Receives in a row that brought little.
    little: u8,
}

impl Heavy {
    pub(super) fn has_rest(&self) -> bool {
        !self.rest.is_empty()
    }

    pub(super) fn rest_bytes(&self) -> usize {
        self.rest.bytes()
    }
}

impl<R: Ring> Turn<'_, '_, R> {
    /// Decides whether the connection is heavy, from what it has received.
    #[cold]
    pub(super) fn weigh(&mut self, bytes: usize, is_full: bool) {
        let piece = self.worker.context.allowance.piece();
        let is_much = bytes > piece / 2;
        let heavy = self.heavy();
        heavy.is_receive_due |= bytes >= piece || is_full;
        heavy.little = if is_much || is_full { 0 } else { heavy.little.saturating_add(1) };
        if heavy.little >= LITTLE_MIN && !heavy.has_rest() && !heavy.is_receive_due {
            self.peer.heavy = None;
        }
    }

    fn heavy(&mut self) -> &mut Heavy {
        // A piece may end within a packet, of which the kernel's program would see the rest.
        if self.peer.offload_progress == OffloadProgress::Attaching {
            self.peer.offload_progress = OffloadProgress::Waiting(0);
        }
        self.peer.heavy.get_or_insert_default()
    }

    /// The connection was given more than it may do in one turn.
    #[cold]
    pub(super) fn mark_yielded(&mut self) {
        let heavy = self.heavy();
        heavy.is_receive_due = true;
        heavy.little = 0;
        self.stand_in_line();
    }

    /// Bytes that are received or sent at a time now.
    fn piece(&self) -> usize {
        let piece = self.worker.context.allowance.piece();
        if self.worker.line.has_neighbours() { piece } else { LARGER * piece }
    }

    fn stand_in_line(&mut self) {
        if !std::mem::replace(&mut self.peer.is_in_line, true) {
            self.worker.line.push(self.id);
        }
    }

    /// Sends the next piece, goes on with what the connection was given before it yielded, and receives the next
    /// piece when that is done.
    pub(super) fn take_turn(&mut self) {
        self.peer.is_in_line = false;
        if self.peer.sending == Sending::Waiting
            && let Some(heavy) = &mut self.peer.heavy
        {
            let rest = std::mem::take(&mut heavy.rest);
            self.send_pieces(rest);
        }
        let has_yielded = self.peer.dialogue.has_yielded();
        let decision = self.peer.dialogue.proceed(&self.worker.context);
        if let Some(heavy) = &mut self.peer.heavy {
            heavy.is_receive_due = false;
        }
        self.follow(decision);
        if has_yielded && self.worker.is_stopping {
            self.dismiss(Dismissal::Stopping);
        } else {
            self.settle();
        }
    }

    /// Sends the first piece of a reply; the rest waits. What is received at a time is sent at a time.
    pub(super) fn send_pieces(&mut self, mut reply: Chain) {
        if self.is_mute() {
            return;
        }
        let first = reply.take_part(self.piece());
        if !reply.is_empty() {
            self.worker.context.allowance.spend_copying(first.len());
            self.heavy().rest = reply;
        }
        self.send_from_heap(first);
    }

    /// A send is whole; if it was a piece, the next one waits for the connection's turn.
    #[inline]
    pub(super) fn wait_to_send(&mut self) {
        if self.peer.has_rest() && self.peer.stage < Stage::Leaving {
            self.peer.sending = Sending::Waiting;
            self.stand_in_line();
        }
    }

    /// Receives the next piece, or waits for the turn to.
    #[cold]
    pub(super) fn receive_piece(&mut self) {
        let bytes = self.piece();
        let Turn { id, peer, worker } = self;
        if peer.heavy.as_ref().is_some_and(|heavy| heavy.is_receive_due) {
            return self.stand_in_line();
        }
        worker.context.allowance.spend_copying(2 * bytes);
        worker.ring.receive_piece(*id, &peer.socket, bytes);
        peer.receiving = Receiving::Piece;
    }
}
