//! What the pump knows of one connection: where it stands, and which of its operations are in flight.
//!
//! An idle peer is this struct and nothing more: it holds no buffer and no heap memory. This file
//! decides nothing; `turn` does.

use super::heavy::Heavy;
use super::offloaded::{OffloadProgress, Offloaded};
use crate::engine::ring::{Patience, Socket};
use crate::protocol::{Admission, Channel, Dialogue, Dismissal, Moment};

/// Where a connection is between its accept and its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    /// What the peer sends is answered.
    Serving,
    /// The server has nothing more to say; the rest of it is being sent.
    Farewell,
    /// Everything is sent, and the socket is shut down for writing. What still arrives is dropped
    /// until the peer closes.
    Draining,
    /// The connection is over; its operations are ending.
    Leaving,
    /// Nothing is in flight but the close of the socket.
    Closing,
}

/// The receive of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Receiving {
    /// None is in flight.
    Off,
    /// In flight, until it is paused.
    On,
    /// Of a heavy connection: in flight, until it has brought something.
    Piece,
    /// Paused; its last completion is still to come.
    Pausing,
    /// Cancelled; its last completion is still to come.
    Stopping,
    /// None is in flight until a buffer is free.
    Starved,
    /// Of an offloaded connection: a single receive, which does not wait, is in flight.
    Once,
}

/// The send of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sending {
    /// None is in flight.
    Nothing,
    /// One that ends when it is submitted is in flight.
    Quick,
    /// One that waits for the peer is in flight.
    Patient,
    /// None is in flight: the rest of a reply waits for the connection's turn.
    Waiting,
    /// One that waited for the peer has been cancelled.
    Stopping,
}

impl Sending {
    pub(super) fn of(patience: Patience) -> Sending {
        match patience {
            Patience::None => Sending::Quick,
            Patience::Unlimited => Sending::Patient,
        }
    }
}

/// Why a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// It does not.
    No,
    /// The dialogue has said its last: after a closing handshake, a refused request, or a broken rule.
    Said,
    /// The client sends no more, without a closing handshake.
    ByClient,
    /// It is broken: reset, or an operation failed.
    Broken,
    /// A deadline of its end has come.
    TimedOut,
    /// The server has asked for it.
    Dismissed(Dismissal),
}

impl End {
    /// For a line in the log.
    pub(super) fn reason(self) -> &'static str {
        match self {
            End::No => "it was never served",
            End::Said => "the protocol ended it",
            End::ByClient => "the client ended it without a closing handshake",
            End::Broken => "it was reset, or an operation failed",
            End::TimedOut => "its client took too long to end it",
            End::Dismissed(Dismissal::Stopping) => "the server stops",
            End::Dismissed(Dismissal::Idle) => "its client was silent for too long",
            End::Dismissed(Dismissal::Expired) => "it was open for as long as one may be",
            End::Dismissed(Dismissal::Memory) => "memory was short",
        }
    }
}

/// Whether a peer reads the last bytes that are sent to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// It has no deadline.
    Unwatched,
    /// It has read nothing since its deadline was set.
    None,
    /// It has read something since then.
    Some,
}

/// One connection. `P` is the place of an offloaded one.
#[derive(Debug)]
pub(super) struct Peer<P> {
    pub(super) dialogue: Dialogue,
    /// What lies between the dialogue and the wire, if anything.
    pub(super) channel: Option<Box<Channel>>,
    pub(super) socket: Socket,
    pub(super) stage: Stage,
    pub(super) receiving: Receiving,
    pub(super) sending: Sending,
    /// The peer sends no more.
    pub(super) has_ended: bool,
    pub(super) progress: Progress,
    /// The first reason for its end.
    pub(super) end: End,
    pub(super) admission: Admission,
    pub(super) offload_progress: OffloadProgress,
    pub(super) offloaded: Option<Box<Offloaded<P>>>,
    pub(super) heavy: Option<Box<Heavy>>,
    /// It is among those that wait for their turns.
    pub(super) is_in_line: bool,
    /// The send in flight is the rest of one for which the socket had no room.
    pub(super) is_resent: bool,
    /// It was sent a ping, and nothing has come since.
    pub(super) is_pinged: bool,
    /// The server closes it, although it does not stop.
    pub(super) is_dismissed: bool,
    /// When something last came from it.
    pub(super) heard_at: Moment,
}

impl<P> Peer<P> {
    pub(super) fn new(
        socket: Socket,
        admission: Admission,
        progress: OffloadProgress,
        now: Moment,
    ) -> Peer<P> {
        Peer {
            dialogue: Dialogue::new(admission),
            channel: None,
            socket,
            stage: Stage::Serving,
            receiving: Receiving::Off,
            sending: Sending::Nothing,
            has_ended: false,
            progress: Progress::Unwatched,
            end: End::No,
            admission,
            offload_progress: progress,
            offloaded: None,
            heavy: None,
            is_in_line: false,
            is_resent: false,
            is_pinged: false,
            is_dismissed: false,
            heard_at: now,
        }
    }

    /// It ends, and this is why, unless it ends already.
    pub(super) fn ends(&mut self, why: End) {
        if self.end == End::No {
            self.end = why;
        }
    }

    /// Heap bytes that wait, to be sent or for the rest of their frame.
    pub(super) fn heap_bytes(&self) -> usize {
        self.dialogue.heap_bytes() + self.rest_bytes() + self.channel_bytes()
    }

    /// All heap memory for its messages and their compression, in bytes, but for the reply that is being sent.
    pub(super) fn memory_bytes(&self) -> usize {
        self.dialogue.memory_bytes() + self.rest_bytes() + self.channel_bytes()
    }

    /// Whether a part of a reply waits for the connection's turn, in which it is handed over for sending.
    pub(super) fn has_rest(&self) -> bool {
        self.heavy.as_ref().is_some_and(|heavy| heavy.has_rest())
    }

    /// Whether something that is sealed waits to be sent.
    pub(super) fn has_waiting(&self) -> bool {
        self.channel.as_ref().is_some_and(|channel| channel.has_waiting())
    }

    fn channel_bytes(&self) -> usize {
        self.channel.as_ref().map_or(0, |channel| channel.heap_bytes())
    }

    fn rest_bytes(&self) -> usize {
        self.heavy.as_ref().map_or(0, |heavy| heavy.rest_bytes())
    }
}
