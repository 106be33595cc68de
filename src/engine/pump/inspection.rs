//! What is open, for an operator who asks.
//!
//! A question comes through a [`Mailbox`], whose descriptor ends the worker's wait. The worker answers at the end of
//! that cycle, with at most [`ROWS_MAX`] connections, and looks at no more than [`SLOTS_MAX`] of its slots, so that a
//! question costs the connections some microseconds. It keeps a [`Ledger`] of each connection only if it has a
//! mailbox.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use serde::Serialize;

use super::offloaded::OffloadProgress;
use super::peer::{Peer, Receiving, Stage};
use crate::engine::ring::Ring;
use crate::slab::ConnectionId;

/// The most connections that a worker shows.
pub const ROWS_MAX: usize = 256;
/// The most slots that a worker looks at for them. The slots of connections that have ended are used again first, so
/// only after a burst are there more than connections.
pub const SLOTS_MAX: usize = 4096;

/// A connection.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// The number of its slot, which another connection may have had before.
    pub slot: u32,
    /// Seconds since it was accepted, to some milliseconds.
    pub age_seconds: f64,
    /// Bytes received, without those that the kernel echoed by itself.
    pub bytes_in: u64,
    /// Bytes that the kernel accepted for sending, without those of its own echoes.
    pub bytes_out: u64,
    /// What lies between the protocol and the socket: `plain` or `tls`.
    pub transport: &'static str,
    /// `permessage-deflate`, or empty.
    pub extension: &'static str,
    /// What the engine does with it.
    pub state: &'static str,
}

/// What a worker shows.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Shown {
    /// How many connections are open.
    pub open: usize,
    /// The first of them, by their slots.
    pub connections: Vec<Row>,
}

/// Through what a worker is asked.
#[derive(Debug)]
pub struct Mailbox {
    wake: Arc<OwnedFd>,
    question: Mutex<Option<SyncSender<Shown>>>,
}

impl Mailbox {
    /// An empty one.
    ///
    /// # Errors
    ///
    /// When the kernel refuses a descriptor.
    pub fn new() -> io::Result<Mailbox> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Mailbox { wake: Arc::new(wake), question: Mutex::default() })
    }

    /// Asks, and returns where the answer comes. A question that was not taken yet gets none.
    pub fn ask(&self) -> Receiver<Shown> {
        let (sender, receiver) = sync_channel(1);
        *self.question.lock().expect("a panic ends the process") = Some(sender);
        // It fails only if it has been written to 2^64 times.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
        receiver
    }

    /// Becomes readable at the first question and stays so; each question is an edge.
    pub fn questions(&self) -> &Arc<OwnedFd> {
        &self.wake
    }

    fn take(&self) -> Option<SyncSender<Shown>> {
        self.question.lock().expect("a panic ends the process").take()
    }
}

/// What is noted of a connection, only to be shown.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Ledger {
    accepted: Duration,
    bytes_in: u64,
    bytes_out: u64,
}

/// The ledgers of a worker's connections, by their slots.
#[derive(Debug)]
pub(super) struct Ledgers {
    mailbox: Arc<Mailbox>,
    ledgers: Vec<Ledger>,
    /// There is a question.
    pub(super) is_asked: bool,
}

impl Ledgers {
    pub(super) fn new(mailbox: Arc<Mailbox>) -> Ledgers {
        Ledgers { mailbox, ledgers: Vec::new(), is_asked: false }
    }

    pub(super) fn accepted(&mut self, id: ConnectionId, now: Duration) {
        let slot = id.slot as usize;
        if self.ledgers.len() <= slot {
            self.ledgers.resize(slot + 1, Ledger::default());
        }
        self.ledgers[slot] = Ledger { accepted: now, ..Ledger::default() };
    }

    #[inline]
    pub(super) fn received(&mut self, id: ConnectionId, bytes: usize) {
        self.ledgers[id.slot as usize].bytes_in += bytes as u64;
    }

    #[inline]
    pub(super) fn sent(&mut self, id: ConnectionId, bytes: u32) {
        self.ledgers[id.slot as usize].bytes_out += u64::from(bytes);
    }
}

impl<R: Ring> super::Pump<'_, R> {
    /// Answers the question, if nobody has answered it yet.
    #[cold]
    pub(super) fn answer_question(&mut self) {
        let now = self.worker.ring.recently();
        let Some(ledgers) = &mut self.worker.ledgers else { return };
        ledgers.is_asked = false;
        let Some(answer) = ledgers.mailbox.take() else { return };
        let mut connections = Vec::with_capacity(self.peers.len().min(ROWS_MAX));
        for slot in 0..self.peers.slots().min(SLOTS_MAX) {
            if connections.len() == ROWS_MAX {
                break;
            }
            if let Some((id, peer)) = self.peers.at_slot(slot) {
                connections.push(row(id, peer, ledgers.ledgers[slot], now));
            }
        }
        // Whoever asked may have given up.
        let _ = answer.try_send(Shown { open: self.peers.len(), connections });
    }
}

fn row<P>(id: ConnectionId, peer: &Peer<P>, ledger: Ledger, now: Duration) -> Row {
    let Ledger { accepted, bytes_in, bytes_out } = ledger;
    let is_compressed = peer.dialogue.connection().is_compressed();
    Row {
        slot: id.slot,
        age_seconds: now.saturating_sub(accepted).as_secs_f64(),
        bytes_in,
        bytes_out,
        transport: if peer.channel.is_some() { "tls" } else { "plain" },
        extension: if is_compressed { "permessage-deflate" } else { "" },
        state: state(peer),
    }
}

fn state<P>(peer: &Peer<P>) -> &'static str {
    match peer.stage {
        Stage::Serving if peer.dialogue.connection().is_in_handshake() => "handshake",
        Stage::Serving if peer.is_dismissed => "dismissed",
        Stage::Serving if peer.receiving == Receiving::Starved => "without buffer",
        Stage::Serving if peer.is_in_line => "waits for its turn",
        Stage::Serving if peer.offloaded.is_some() => "offloaded",
        Stage::Serving if peer.offload_progress == OffloadProgress::Attaching => "attaching",
        Stage::Serving if peer.receiving == Receiving::Off => "not read",
        Stage::Serving if peer.heavy.is_some() => "heavy",
        Stage::Serving => "serving",
        Stage::Farewell => "farewell",
        Stage::Draining => "draining",
        Stage::Leaving => "leaving",
        Stage::Closing => "closing",
    }
}
