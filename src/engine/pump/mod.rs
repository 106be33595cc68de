//! The pump: what a completion means for a connection, and which operation follows.
//!
//! The path of one message: a multishot receive completes with a pinned buffer, the protocol turns
//! the buffer into the reply where it stands, the reply is pushed as a send, and the next
//! [`Blocking::enter`] both submits it and waits for the next message. That is one system call.
//!
//! Each connection has at most one send in flight and at most one receive. After every event
//! [`Pump::settle`] compares what the connection should be doing with what it does, and starts or
//! cancels operations to close the gap; so there is one place that decides, whatever came in
//! whichever order. A slot is freed when nothing is in flight on it and its socket is closed.
//!
//! A pinned buffer is held only from its receive to the end of the next submission: whatever has
//! to wait moves to the heap, so a peer that does not read can never run the buffer ring dry.
//!
//! The pump does not look at frames, holds no unsafe code, and does not know whether its ring is
//! the kernel's or the one simulated in the tests.

mod offloaded;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use bytes::BytesMut;
use offloaded::{Offloaded, Watching, hand_over};
use rustix::io::Errno;
use tracing::warn;

use super::ring::{
    Blocking, Completion, Further, Lease, Patience, Received, Reply, Ring, Sent, Socket, Wait,
};
use crate::buffer::{Cursors, HEADROOM, Region, Spill};
use crate::offload::{self, FEW};
use crate::protocol::{Admission, CloseCode, Connection, Context, Next};
use crate::slab::{ConnectionId, Slab};

/// How long a stopping worker waits for its peers to answer the close frame.
pub const DRAIN_MAX: Duration = Duration::from_secs(5);
/// How long a peer that is owed its last octets may take none of them.
pub const FAREWELL_MAX: Duration = Duration::from_secs(30);
/// How long the server, having said all, waits for the peer to close too.
pub const LINGER_MAX: Duration = Duration::from_secs(5);
/// How long accepting rests when there are no descriptors or no memory for another connection.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Reply octets that may wait behind a send, before receiving stops, beside those of an unfinished
/// message: then a peer that does not read has cost this, a message that is being sent, a message
/// that is coming, and what one submission could receive.
pub const BACKLOG_MAX: usize = 64 << 10;
/// Connections over the limit that a worker answers at a time; further ones are closed at once.
pub const REFUSED_MAX: usize = 64;
/// How long nothing more is said of a failure to accept.
pub const WARNING_PAUSE: Duration = Duration::from_secs(60);
/// How long it takes until the pump looks again for what only the kernel's own threads can bring on.
/// Each time that there is nothing yet, it takes twice as long, up to [`SECOND_LOOK_MAX`].
pub const SECOND_LOOK: Duration = Duration::from_micros(100);
/// See [`SECOND_LOOK`].
pub const SECOND_LOOK_MAX: Duration = Duration::from_millis(100);
/// Deadlines of connections that are gone, before they are swept out.
const DUE_SLACK: usize = 64;

/// The limit on open connections, which all workers share.
#[derive(Debug)]
pub struct Limit {
    open: AtomicUsize,
    max: usize,
}

impl Limit {
    /// A limit of `max` connections open at a time.
    pub fn new(max: usize) -> Limit {
        Limit { open: AtomicUsize::new(0), max }
    }

    fn admit(&self) -> bool {
        let admitted = self.open.fetch_add(1, Relaxed) < self.max;
        if !admitted {
            self.release();
        }
        admitted
    }

    fn release(&self) {
        self.open.fetch_sub(1, Relaxed);
    }
}

/// Where a connection is between its accept and its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    /// What comes is answered.
    Serving,
    /// All is said; the rest of it is being sent.
    Farewell,
    /// All is sent and shut down; what still comes is dropped until the peer closes.
    Draining,
    /// The connection is over; its operations are ending.
    Leaving,
    /// The socket is being closed, with nothing else in flight.
    Closing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Receiving {
    Off,
    On,
    /// Paused, its last completion still to come.
    Pausing,
    /// Cancelled, its last completion still to come.
    Stopping,
    /// Off until a buffer is free.
    Starved,
    /// Of an offloaded connection: what is there, once.
    Once,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sending {
    Nothing,
    /// A send that is over when it is submitted.
    Quick,
    /// A send that waits for the peer.
    Patient,
    /// A send that waited and has been cancelled.
    Stopping,
}

impl Sending {
    fn of(patience: Patience) -> Sending {
        match patience {
            Patience::None => Sending::Quick,
            Patience::Unlimited => Sending::Patient,
        }
    }
}

/// How far a connection is from its accept to where it may be offloaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OffloadProgress {
    /// The opening handshake is not done.
    Handshake,
    /// It is to be offloaded after a run of messages that the kernel could have echoed, of which there
    /// were so many.
    Waiting(u8),
    /// It is to be offloaded as soon as nothing is in flight.
    Attaching,
    Done,
}

/// Whether a peer takes what it is owed at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// It has no deadline.
    Unwatched,
    /// It has taken nothing since its deadline was set.
    None,
    Some,
}

/// A connection. Idle, it is this and no more: no buffer, no heap memory.
#[derive(Debug)]
struct Peer<P> {
    protocol: Connection,
    /// What a pinned buffer could not keep: see [`Spill`].
    spill: Option<Box<Spill>>,
    socket: Socket,
    stage: Stage,
    receiving: Receiving,
    sending: Sending,
    /// The peer sends no more.
    has_ended: bool,
    /// The protocol waits for room, and that for the peer to read.
    is_waiting_for_room: bool,
    progress: Progress,
    admission: Admission,
    offload_progress: OffloadProgress,
    offloaded: Option<Box<Offloaded<P>>>,
}

impl<P> Peer<P> {
    fn take_reply(&mut self) -> Option<BytesMut> {
        let spill = self.spill.take_if(|spill| spill.has_reply())?;
        let (reply, rest) = spill.split_reply();
        self.spill = rest.map(Box::new);
        Some(reply)
    }

    fn reply_octets(&self) -> usize {
        self.spill.as_ref().map_or(0, |spill| spill.reply_bytes())
    }

    /// How long the reply to the unfinished message can be so far, with an eighth for the headers
    /// of its fragments.
    fn unfinished_octets(&self) -> usize {
        let payload = self.protocol.message_bytes() as usize;
        payload + payload / 8
    }

    /// Whether enough waits to be sent. Many clients read nothing before they have written a
    /// message whole, so what waits of an unfinished message does not count, or the two would wait
    /// for each other.
    fn is_full(&self) -> bool {
        self.reply_octets() >= BACKLOG_MAX + self.unfinished_octets()
    }
}

/// What is to be done at a certain time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    /// End a connection, if it is still in this stage.
    Leave(ConnectionId, Stage),
    /// Look at an offloaded connection again.
    Look(ConnectionId),
    /// Say to an offloaded connection that the server goes away.
    GoAway(ConnectionId),
    /// Accept again on this listener.
    Accept(u32),
    /// End what has not drained.
    Stop,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Accepting {
    On,
    Paused,
    Closed,
}

/// Serves the connections of one worker.
#[derive(Debug)]
pub struct Pump<'a, R: Ring> {
    ring: R,
    context: Context<'a>,
    limit: &'a Limit,
    offload: offload::Policy,
    /// Messages that the kernel could have echoed, in a row, before a connection is left to it.
    run_wanted: u8,
    peers: Slab<Peer<R::Place>>,
    listeners: Vec<Accepting>,
    /// Connections whose receive found no buffer, in that order.
    starved: VecDeque<ConnectionId>,
    /// Connections of which octets were received this turn that are not answered.
    unanswered: Vec<ConnectionId>,
    due: BinaryHeap<Reverse<(Duration, Due)>>,
    refused: usize,
    /// When a failure to accept was last said.
    warned_at: Option<Duration>,
    is_stopping: bool,
    /// Sends that are over with the next submission.
    quick_sends: usize,
    /// Something is to be done as soon as such a send is over.
    is_eager: bool,
}

impl<'a, R: Ring> Pump<'a, R> {
    /// A pump that serves what comes in on the listeners of `ring`.
    pub fn new(ring: R, context: Context<'a>, limit: &'a Limit) -> Pump<'a, R> {
        Pump {
            ring,
            context,
            limit,
            offload: offload::Policy::Off,
            run_wanted: 0,
            peers: Slab::default(),
            listeners: Vec::new(),
            starved: VecDeque::new(),
            unanswered: Vec::new(),
            due: BinaryHeap::new(),
            refused: 0,
            warned_at: None,
            is_stopping: false,
            quick_sends: 0,
            is_eager: false,
        }
    }

    /// Has connections offloaded by this policy; by `Auto` after a run of `auto_run` messages that the
    /// kernel could have echoed.
    #[must_use]
    pub fn with_offload(mut self, policy: offload::Policy, auto_run: u8) -> Pump<'a, R> {
        self.offload = policy;
        self.run_wanted = if policy == offload::Policy::Auto { auto_run } else { 0 };
        self
    }

    /// Serves until the ring says to stop and the connections have drained.
    ///
    /// # Errors
    ///
    /// When the ring itself is broken.
    pub fn run(mut self) -> io::Result<()>
    where
        R: Blocking,
    {
        let mut completions = Vec::new();
        self.start();
        while !self.is_over() {
            if let Err(error) = self.turn(&mut completions) {
                // The kernel may still read and write what this pump owns.
                std::mem::forget(self);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Starts accepting.
    pub fn start(&mut self) {
        self.ring.watch_stop();
        for listener in 0..self.ring.listeners() {
            self.ring.accept(listener);
            self.listeners.push(Accepting::On);
        }
    }

    /// Whether the worker was told to stop and nothing is left to be done.
    pub fn is_over(&self) -> bool {
        self.is_stopping
            && self.peers.is_empty()
            && self.listeners.iter().all(|&accepting| accepting == Accepting::Closed)
    }

    /// Submits, waits once, and handles what has completed. `completions` is scratch.
    ///
    /// # Errors
    ///
    /// When the ring itself is broken.
    #[inline]
    pub fn turn(&mut self, completions: &mut Vec<Completion>) -> io::Result<()>
    where
        R: Blocking,
    {
        let wait = self.wanted();
        self.ring.enter(wait, completions)?;
        self.take(completions);
        Ok(())
    }

    /// How long the ring may wait now, having submitted all operations.
    #[inline]
    pub fn wanted(&mut self) -> Wait {
        let wait = if self.is_eager {
            Wait::Not
        } else {
            Wait::Until(self.due.peek().map(|&Reverse((at, _))| at))
        };
        self.is_eager = false;
        self.quick_sends = 0;
        wait
    }

    /// Handles what has completed, and what has become due.
    #[inline]
    pub fn take(&mut self, completions: &mut Vec<Completion>) {
        for completion in completions.drain(..) {
            self.complete(completion);
        }
        if !self.unanswered.is_empty() {
            self.verify_unanswered();
        }
        if !self.due.is_empty() {
            self.meet_deadlines();
        }
        if !self.starved.is_empty() {
            self.feed_starved();
        }
    }

    /// The ring, for the tests to look at.
    pub fn ring(&mut self) -> &mut R {
        &mut self.ring
    }

    /// How many connections have a slot.
    pub fn connections(&self) -> usize {
        self.peers.len()
    }

    /// Heap octets that the connections keep, beside the replies that the ring is sending.
    pub fn heap_octets(&mut self) -> usize {
        let ids: Vec<ConnectionId> = self.peers.ids().collect();
        ids.into_iter()
            .filter_map(|id| self.peers.get_mut(id)?.spill.as_ref().map(|spill| spill.bytes_kept()))
            .sum()
    }

    #[inline]
    fn complete(&mut self, completion: Completion) {
        match completion {
            Completion::Received { id, received, further } => {
                self.received(id, received, further);
            }
            Completion::Sent { id, sent, octets } => self.sent(id, sent, octets),
            Completion::Accepted { listener, result, further } => {
                self.accepted(listener, result, further);
            }
            Completion::Passed { id } => self.passed(id),
            Completion::HungUp { id } => self.hung_up(id),
            Completion::Broken { id } => self.broken(id),
            Completion::Closed { id } => self.closed(id),
            Completion::StopRequested => self.stop(),
        }
    }

    #[inline]
    fn received(&mut self, id: ConnectionId, received: Received, further: Further) {
        let Some(peer) = self.peers.get_mut(id) else {
            // Of an earlier tenant of the slot.
            if let Received::Data { lease, .. } = received {
                self.ring.recycle(lease);
            }
            return;
        };
        if further == Further::Over {
            peer.receiving = Receiving::Off;
        }
        if let Some(offloaded) = &mut peer.offloaded
            && received != Received::NoBuffer
        {
            offloaded.is_unread = false;
        }
        match received {
            Received::Data { mut lease, octets } => {
                self.context.counters.bytes_in.add(u64::from(octets));
                // A part of a packet may be left.
                if peer.offload_progress == OffloadProgress::Attaching
                    && HEADROOM + octets as usize == self.ring.bytes(&mut lease).len()
                {
                    peer.offload_progress = OffloadProgress::Waiting(0);
                }
                if let Some(offloaded) = &mut peer.offloaded {
                    let record = self.ring.record(&offloaded.place);
                    offloaded.gate.received(octets.into(), record);
                    offloaded.rest = SECOND_LOOK;
                    // It came before its notice.
                    offloaded.gate.wake(record);
                }
                if peer.stage == Stage::Serving {
                    self.answer(id, lease, octets as usize);
                } else {
                    self.ring.recycle(lease);
                }
            }
            Received::NoBuffer => {
                self.context.counters.buffers_exhausted.add(1);
                peer.receiving = Receiving::Starved;
                self.starved.push_back(id);
            }
            Received::End => self.ended(id),
            // Only this pump cancels, and it knows why.
            Received::Failed(Errno::CANCELED) => {}
            Received::Failed(Errno::AGAIN) if peer.offloaded.is_some() => self.found_nothing(id),
            Received::Failed(_) => self.mark_broken(id),
        }
        self.settle(id);
    }

    /// Lets the protocol answer what was received, in place if nothing stands before it.
    #[inline]
    fn answer(&mut self, id: ConnectionId, mut lease: Lease, octets: usize) {
        let Some(peer) = self.peers.get_mut(id) else { return self.ring.recycle(lease) };
        let bytes = self.ring.bytes(&mut lease);
        let mut is_answered = false;
        let next = if peer.sending == Sending::Nothing && peer.spill.is_none() {
            let mut cursors = Cursors::received(octets);
            let next = peer.protocol.advance(&mut Region::new(bytes, &mut cursors), &self.context);
            if cursors.has_leftover() {
                peer.spill = Some(Box::new(Spill::leftover(bytes, &mut cursors)));
            }
            let reply = cursors.reply();
            if let Some(offloaded) = &mut peer.offloaded {
                let reply = &bytes[reply.start..reply.end];
                offloaded.gate.answered(offload::could_echo(octets, reply));
            } else if peer.offload_progress != OffloadProgress::Done {
                // A buffer that is not full has emptied the socket.
                let is_drained = HEADROOM + octets < bytes.len();
                let could_echo = offload::could_echo(octets, &bytes[reply.start..reply.end]);
                self.advance_towards_offload(id, could_echo, is_drained);
            }
            let Some(peer) = self.peers.get_mut(id) else { return self.ring.recycle(lease) };
            if reply.is_empty() {
                self.ring.recycle(lease);
            } else {
                is_answered = true;
                hand_over(peer, reply.len());
                let reply = Reply::pinned(lease, reply);
                let patience = self.ring.send(id, &peer.socket, reply, Patience::None);
                peer.sending = Sending::of(patience);
                self.quick_sends += usize::from(peer.sending == Sending::Quick);
            }
            next
        } else {
            let is_drained = HEADROOM + octets < bytes.len();
            let spill = peer.spill.get_or_insert_default();
            spill.append(&bytes[HEADROOM..HEADROOM + octets]);
            self.ring.recycle(lease);
            let next = peer.protocol.advance(&mut spill.region(), &self.context);
            peer.spill.take_if(|spill| spill.is_empty());
            if let Some(offloaded) = &mut peer.offloaded {
                // More came than one frame at a time.
                offloaded.gate.answered(false);
            } else if peer.offload_progress != OffloadProgress::Done {
                self.advance_towards_offload(id, false, is_drained);
            }
            next
        };
        match next {
            Next::Receive => {}
            Next::Expand(octets) => self.expand(id, octets),
            Next::Close => self.say_farewell(id),
        }
        // A long message comes in many pieces at a time.
        if !is_answered && self.unanswered.last() != Some(&id) {
            self.unanswered.push(id);
        }
    }

    /// Has connections verified, where no answer to what was received will find out that they are
    /// broken.
    #[cold]
    fn verify_unanswered(&mut self) {
        self.unanswered.sort_unstable();
        self.unanswered.dedup();
        for id in self.unanswered.drain(..) {
            let Some(peer) = self.peers.get_mut(id) else { continue };
            let is_answered = peer.spill.as_ref().is_some_and(|spill| spill.has_reply());
            // The peer of an offloaded connection is watched.
            if peer.stage == Stage::Serving && peer.offloaded.is_none() && !is_answered {
                self.ring.verify(id, &peer.socket);
            }
        }
    }

    /// Gives the protocol the room that it asks for, or holds it until the peer has read some of
    /// what it is owed.
    #[cold]
    fn expand(&mut self, id: ConnectionId, octets: usize) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        let mut next = Next::Expand(octets);
        while let Next::Expand(octets) = next {
            peer.is_waiting_for_room = peer.is_full();
            if peer.is_waiting_for_room {
                return;
            }
            let spill = peer.spill.get_or_insert_default();
            spill.widen(octets);
            next = peer.protocol.advance(&mut spill.region(), &self.context);
        }
        peer.spill.take_if(|spill| spill.is_empty());
        if next == Next::Close {
            self.say_farewell(id);
        }
    }

    #[inline]
    fn sent(&mut self, id: ConnectionId, sent: Sent, octets: u32) {
        self.context.counters.bytes_out.add(u64::from(octets));
        let Some(peer) = self.peers.get_mut(id) else { return };
        peer.sending = Sending::Nothing;
        if octets > 0 && peer.progress == Progress::None {
            peer.progress = Progress::Some;
        }
        match sent {
            Sent::Whole => {}
            Sent::Cut(rest) => {
                let rest = unpin(&mut self.ring, rest);
                if peer.stage != Stage::Leaving {
                    let rest = Reply::Heap(rest);
                    let patience = self.ring.send(id, &peer.socket, rest, Patience::Unlimited);
                    peer.sending = Sending::of(patience);
                }
            }
            Sent::Failed(_) => self.mark_broken(id),
        }
        self.settle(id);
    }

    /// Starts and cancels operations until the connection does what it should.
    #[inline]
    fn settle(&mut self, id: ConnectionId) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        let is_plain = peer.stage == Stage::Serving
            && peer.receiving == Receiving::On
            && peer.spill.is_none()
            && peer.offload_progress != OffloadProgress::Attaching
            && peer.offloaded.is_none()
            && !peer.has_ended;
        if !is_plain {
            self.settle_slowly(id);
        }
    }

    #[cold]
    fn settle_slowly(&mut self, id: ConnectionId) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        if peer.stage == Stage::Serving && peer.has_ended {
            peer.stage = Stage::Farewell;
        }
        if matches!(peer.stage, Stage::Serving | Stage::Farewell) {
            self.send_waiting(id);
            self.resume(id);
        }
        self.settle_farewell(id);
        let Some(peer) = self.peers.get_mut(id) else { return };
        if peer.stage == Stage::Draining && peer.has_ended {
            peer.stage = Stage::Leaving;
        }
        if peer.stage == Stage::Leaving {
            return self.tear_down(id);
        }
        if peer.stage == Stage::Closing {
            return;
        }
        self.attach(id);
        self.settle_offload(id);
        self.settle_receiving(id);
    }

    /// Shuts down or closes when all is said and sent.
    fn settle_farewell(&mut self, id: ConnectionId) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        if matches!(peer.stage, Stage::Serving | Stage::Farewell) {
            if peer.sending == Sending::Quick {
                self.is_eager |= peer.stage == Stage::Farewell || peer.reply_octets() > 0;
            }
            if peer.sending == Sending::Nothing && peer.stage == Stage::Farewell {
                let is_flushed = self.is_flushed(id);
                let Some(peer) = self.peers.get_mut(id) else { return };
                if !is_flushed {
                    self.look_again(id);
                } else if peer.has_ended {
                    peer.stage = Stage::Leaving;
                } else {
                    // Section 7.1.1: the server closes first; what it has sent must not be lost
                    // to a reset, so the peer's octets are read to their end before the close.
                    self.ring.shut_down(&peer.socket);
                    peer.stage = Stage::Draining;
                    peer.progress = Progress::Unwatched;
                    self.leave_after(LINGER_MAX, id, Stage::Draining);
                }
            }
        }
        let Some(peer) = self.peers.get_mut(id) else { return };
        // What is still to be sent waits for the peer, or for the kernel to move on.
        if peer.stage == Stage::Farewell
            && peer.sending != Sending::Quick
            && peer.progress == Progress::Unwatched
        {
            peer.progress = Progress::None;
            self.leave_after(FAREWELL_MAX, id, Stage::Farewell);
        }
    }

    /// Receives, or does not.
    fn settle_receiving(&mut self, id: ConnectionId) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        let is_clogged = peer.sending != Sending::Nothing && peer.is_full();
        let mut is_wanted =
            !peer.has_ended && !is_clogged && peer.offload_progress != OffloadProgress::Attaching;
        if let Some(offloaded) = &peer.offloaded {
            let has_more = offloaded.gate.has_more(self.ring.record(&offloaded.place));
            is_wanted &=
                !offloaded.is_resting && (has_more || offloaded.has_hung_up || offloaded.is_unread);
            if peer.receiving == Receiving::Off && is_wanted {
                self.ring.receive_once(&offloaded.place, id, &peer.socket);
                peer.receiving = Receiving::Once;
            }
            is_wanted = false;
        }
        match peer.receiving {
            Receiving::Off if is_wanted => {
                self.ring.receive(id, &peer.socket);
                peer.receiving = Receiving::On;
            }
            Receiving::On if !is_wanted => {
                self.ring.pause_receive(id);
                peer.receiving = Receiving::Pausing;
            }
            Receiving::Off
            | Receiving::On
            | Receiving::Pausing
            | Receiving::Stopping
            | Receiving::Starved
            | Receiving::Once => {}
        }
    }

    /// Sends what waits, if nothing is being sent.
    fn send_waiting(&mut self, id: ConnectionId) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        if peer.sending == Sending::Nothing
            && let Some(reply) = peer.take_reply()
        {
            hand_over(peer, reply.len());
            let reply = Reply::Heap(reply);
            let patience = self.ring.send(id, &peer.socket, reply, Patience::None);
            peer.sending = Sending::of(patience);
            self.quick_sends += usize::from(peer.sending == Sending::Quick);
        }
    }

    /// Lets a protocol that was held go on, now that less waits to be sent.
    fn resume(&mut self, id: ConnectionId) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        if peer.is_waiting_for_room {
            self.expand(id, 0);
            self.send_waiting(id);
        }
    }

    /// Ends the operations of a connection that is over, then closes its socket.
    fn tear_down(&mut self, id: ConnectionId) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        peer.spill = None;
        if matches!(peer.receiving, Receiving::On | Receiving::Pausing | Receiving::Once) {
            self.ring.cancel_receive(id);
            peer.receiving = Receiving::Stopping;
        }
        if peer.sending == Sending::Patient {
            self.ring.cancel_send(id);
            peer.sending = Sending::Stopping;
        }
        // A quick send ends by itself with the next submission.
        self.is_eager |= peer.sending == Sending::Quick;
        if let Some(offloaded) = &mut peer.offloaded
            && offloaded.watching == Watching::On
        {
            self.ring.cancel_watch(&offloaded.place, id);
            offloaded.watching = Watching::Stopping;
        }
        let is_watched =
            peer.offloaded.as_ref().is_some_and(|it| it.watching == Watching::Stopping);
        if peer.receiving != Receiving::Stopping && peer.sending == Sending::Nothing && !is_watched
        {
            peer.stage = Stage::Closing;
            let socket = std::mem::replace(&mut peer.socket, Socket(-1));
            if let Some(offloaded) = peer.offloaded.take() {
                self.ring.detach(offloaded.place, &socket);
            }
            self.ring.close(id, socket);
        }
    }

    /// Nothing more is to be said than what waits to be sent.
    #[cold]
    fn say_farewell(&mut self, id: ConnectionId) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        if peer.stage == Stage::Serving {
            peer.stage = Stage::Farewell;
        }
    }

    /// The connection is broken: nothing more can be sent or received.
    #[cold]
    fn mark_broken(&mut self, id: ConnectionId) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        if peer.stage != Stage::Closing {
            peer.stage = Stage::Leaving;
        }
    }

    #[cold]
    fn broken(&mut self, id: ConnectionId) {
        // What is shut down looks broken too; then a deadline sees to the rest.
        if self.peers.get_mut(id).is_some_and(|peer| peer.stage == Stage::Serving) {
            self.drop_now(id);
        }
    }

    #[cold]
    fn accepted(&mut self, listener: u32, result: Result<Socket, Errno>, further: Further) {
        let problem = result.as_ref().err().copied();
        if let Ok(socket) = result {
            self.admit(socket);
        }
        if further == Further::More {
            return;
        }
        if self.is_stopping {
            self.ring.close_listener(listener);
            self.listeners[listener as usize] = Accepting::Closed;
            return;
        }
        match problem {
            // The multishot accept ended by itself, or one connection was gone before it was
            // taken (accept(2)); the next one is as good as any.
            None | Some(Errno::CONNABORTED | Errno::INTR | Errno::AGAIN | Errno::PROTO) => {
                self.ring.accept(listener);
            }
            Some(problem) => {
                let now = self.ring.now();
                if self.warned_at.is_none_or(|at| now >= at + WARNING_PAUSE) {
                    self.warned_at = Some(now);
                    warn!(
                        "cannot accept: {problem}; trying again every {} ms. If descriptors have \
                         run out, raise the limit (ulimit -n) or lower --connections-max",
                        ACCEPT_PAUSE.as_millis()
                    );
                }
                self.listeners[listener as usize] = Accepting::Paused;
                self.due.push(Reverse((now + ACCEPT_PAUSE, Due::Accept(listener))));
            }
        }
    }

    fn admit(&mut self, socket: Socket) {
        let counters = self.context.counters;
        counters.connections_accepted.add(1);
        if self.is_stopping {
            return self.ring.discard(socket);
        }
        let admission = if self.limit.admit() { Admission::Open } else { Admission::Full };
        if admission == Admission::Full {
            counters.connections_rejected.add(1);
            if self.refused == REFUSED_MAX {
                return self.ring.discard(socket);
            }
            self.refused += 1;
        }
        counters.connections_open.add(1);
        let id = self.peers.insert(Peer {
            protocol: Connection::new(admission),
            spill: None,
            socket,
            stage: Stage::Serving,
            receiving: Receiving::Off,
            sending: Sending::Nothing,
            has_ended: false,
            is_waiting_for_room: false,
            progress: Progress::Unwatched,
            admission,
            offload_progress: self.offload_progress(),
            offloaded: None,
        });
        if self.is_crowded() && self.peers.len() == FEW + 1 {
            self.take_all_back();
        }
        if admission == Admission::Full {
            self.leave_after(LINGER_MAX, id, Stage::Serving);
        }
        self.settle(id);
    }

    fn leave_after(&mut self, time: Duration, id: ConnectionId, stage: Stage) {
        self.due.push(Reverse((self.ring.now() + time, Due::Leave(id, stage))));
    }

    #[cold]
    fn closed(&mut self, id: ConnectionId) {
        let Some(peer) = self.peers.remove(id) else { return };
        self.context.counters.connections_open.subtract(1);
        match peer.admission {
            Admission::Open => self.limit.release(),
            Admission::Full => self.refused -= 1,
        }
        // Most connections are gone before they are due; what they leave behind stays bounded.
        if self.due.len() > 2 * self.peers.len() + DUE_SLACK {
            self.due.retain(|&Reverse((_, due))| match due {
                Due::Leave(id, _) | Due::Look(id) | Due::GoAway(id) => {
                    self.peers.get_mut(id).is_some()
                }
                Due::Accept(_) | Due::Stop => true,
            });
        }
    }

    #[cold]
    fn stop(&mut self) {
        if self.is_stopping {
            return;
        }
        self.is_stopping = true;
        self.due.push(Reverse((self.ring.now() + DRAIN_MAX, Due::Stop)));
        for listener in 0..self.ring.listeners() {
            match self.listeners[listener as usize] {
                Accepting::On => self.ring.cancel_accept(listener),
                Accepting::Paused => {
                    self.ring.close_listener(listener);
                    self.listeners[listener as usize] = Accepting::Closed;
                }
                Accepting::Closed => {}
            }
        }
        for id in self.peers.ids().collect::<Vec<ConnectionId>>() {
            self.go_away(id);
        }
    }

    /// Says to a peer that the server goes away.
    fn go_away(&mut self, id: ConnectionId) {
        if !self.is_flushed(id) {
            // The close frame comes behind all that the kernel has echoed.
            self.due.push(Reverse((self.ring.now() + SECOND_LOOK, Due::GoAway(id))));
            return self.settle(id);
        }
        let Some(peer) = self.peers.get_mut(id) else { return };
        if peer.stage != Stage::Serving {
            return;
        }
        let spill = peer.spill.get_or_insert_default();
        let region = &mut spill.region();
        let next = peer.protocol.close(CloseCode::GOING_AWAY, region, &self.context);
        peer.spill.take_if(|spill| spill.is_empty());
        if next == Next::Close {
            self.say_farewell(id);
        }
        self.settle(id);
    }

    #[cold]
    fn meet_deadlines(&mut self) {
        let now = self.ring.now();
        while let Some(&Reverse((at, due))) = self.due.peek()
            && at <= now
        {
            self.due.pop();
            match due {
                Due::Leave(id, stage) => self.leave_unless_progressing(id, stage),
                Due::Look(id) => {
                    if let Some(peer) = self.peers.get_mut(id)
                        && let Some(offloaded) = &mut peer.offloaded
                    {
                        offloaded.is_resting = false;
                    }
                    self.settle(id);
                }
                Due::GoAway(id) => self.go_away(id),
                Due::Accept(listener) => {
                    if self.listeners[listener as usize] == Accepting::Paused {
                        self.listeners[listener as usize] = Accepting::On;
                        self.ring.accept(listener);
                    }
                }
                Due::Stop => {
                    for id in self.peers.ids().collect::<Vec<ConnectionId>>() {
                        self.drop_now(id);
                    }
                }
            }
        }
    }

    fn leave_unless_progressing(&mut self, id: ConnectionId, stage: Stage) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        if peer.stage != stage {
            return;
        }
        if peer.progress == Progress::Some {
            peer.progress = Progress::None;
            self.leave_after(FAREWELL_MAX, id, stage);
        } else {
            self.drop_now(id);
        }
    }

    fn drop_now(&mut self, id: ConnectionId) {
        self.mark_broken(id);
        self.settle(id);
    }

    /// Starts as many starved receives as there are buffers for.
    #[cold]
    fn feed_starved(&mut self) {
        let mut buffers = self.ring.buffers_ready();
        while buffers > 0
            && let Some(id) = self.starved.pop_front()
        {
            let Some(peer) = self.peers.get_mut(id) else { continue };
            if peer.receiving != Receiving::Starved {
                continue;
            }
            peer.receiving = Receiving::Off;
            self.settle(id);
            // Who no longer wants to receive leaves the buffer to the next.
            let is_fed = self
                .peers
                .get_mut(id)
                .is_some_and(|peer| matches!(peer.receiving, Receiving::On | Receiving::Once));
            buffers -= usize::from(is_fed);
        }
        // The buffers of quick sends come back with the next submission.
        self.is_eager |= !self.starved.is_empty() && self.quick_sends > 0;
    }
}

/// The memory of `reply` on the heap; a pinned buffer goes back to its ring.
fn unpin<R: Ring>(ring: &mut R, reply: Reply) -> BytesMut {
    match reply {
        Reply::Heap(bytes) => bytes,
        Reply::Pinned(pinned) => {
            let (mut lease, range) = pinned.into_parts();
            let rest = BytesMut::from(&ring.bytes(&mut lease)[range]);
            ring.recycle(lease);
            rest
        }
    }
}
