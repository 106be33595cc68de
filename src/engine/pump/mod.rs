//! The pump: what a completion means for a connection, and which operation follows.
//!
//! The path of one message: a multishot receive completes with a pinned buffer, the dialogue turns the
//! bytes in that buffer into the reply, the reply is queued as a send, and the next [`Blocking::enter`]
//! both submits it and waits for the next message. That is one system call.
//!
//! Each connection has at most one send and at most one receive in flight. After every event
//! `Turn::settle` compares what the connection should be doing with what it does, and starts or cancels
//! operations to close the gap: one place decides, whatever the order of events. A slot is freed
//! when nothing is in flight for it and its socket is closed.
//!
//! A pinned buffer is held only from its receive to the end of the next submission. Whatever has to
//! wait moves to the heap, so a peer that does not read cannot run the buffer ring dry.
//!
//! The pump does not look at frames and holds no unsafe code. It does not know whether its ring is the
//! kernel's or the one simulated in the tests. Its files: `peer`, the state of a connection; `turn`,
//! what an event means for it; `heavy`, those that receive and send by turns, and `line`, whose turn it
//! is; `layered`, those with a layer such as TLS; `offloaded`, the same for connections that the kernel echoes;
//! `admission`, how connections come in; `deadlines`, what is due when; `timeouts`, how long connections may
//! take; `memory`, what happens when they have too much of it; `inspection`, what is open; `stopwatch`, how long messages stay.

mod admission;
mod deadlines;
mod heavy;
mod inspection;
mod layered;
mod line;
mod memory;
mod offloaded;
mod peer;
mod stopwatch;
mod timeouts;
mod turn;

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use self::admission::Admissions;
pub use self::admission::{ACCEPT_PAUSE, FAILURES_MAX, Limit, REFUSED_MAX, WARNING_PAUSE};
use self::deadlines::Deadlines;
pub use self::deadlines::{FAREWELL_MAX, HANDSHAKE_GRACE, LINGER_MAX};
use self::inspection::Ledgers;
pub use self::inspection::{Mailbox, ROWS_MAX, Row, SLOTS_MAX, Shown};
use self::line::Line;
use self::memory::Memory;
pub use self::memory::{MEMORY_MAX_DEFAULT, MemoryLimit};
pub use self::offloaded::{SECOND_LOOK, SECOND_LOOK_MAX};
use self::peer::{Peer, Receiving};
use self::stopwatch::Stopwatch;
pub use self::stopwatch::Timing;
pub use self::timeouts::Timeouts;
use self::timeouts::Timers;
use self::turn::Turn;
use super::ring::{Blocking, Completion, Further, Received, Ring, Wait};
use crate::offload;
use crate::protocol::{Context, Dismissal, Moment};
use crate::slab::{ConnectionId, Slab};

/// The most slots whose addresses a worker reserves. Memory is taken for those that are used: doubling
/// the slots instead would move all connections at once, and leave behind as much memory as they take.
const SLOTS_RESERVED: usize = 1 << 17;

/// What the connections of a server may take in all, which its workers share.
#[derive(Debug)]
pub struct Shared {
    /// The limit on open connections.
    pub connections: Limit,
    /// The limit on heap memory.
    pub memory: MemoryLimit,
}

/// Serves the connections of one worker.
#[derive(Debug)]
pub struct Pump<'a, R: Ring> {
    peers: Slab<Peer<R::Place>>,
    admissions: Admissions<'a>,
    /// Measures how long messages stay, if somebody wants to know.
    stopwatch: Option<Stopwatch>,
    worker: Worker<'a, R>,
}

/// What the connections of a worker share.
#[derive(Debug)]
struct Worker<'a, R> {
    ring: R,
    context: Context<'a>,
    deadlines: Deadlines,
    timers: Timers,
    memory: Memory<'a>,
    /// Connections whose receive found no buffer, in that order.
    starved: VecDeque<ConnectionId>,
    /// Connections that wait for their turns.
    line: Line,
    /// Connections of whose layer a handshake is to go on.
    handshakes: VecDeque<ConnectionId>,
    /// What heavy connections have received in this cycle, for after what is quickly answered.
    put_off: Vec<(ConnectionId, Received, Further)>,
    /// Connections that received bytes in this cycle and have not answered them; some twice.
    unanswered: Vec<ConnectionId>,
    /// Connections that have a slot.
    connections: usize,
    offload: offload::Policy,
    /// Messages in a row that the kernel could have echoed, before it may echo those of a connection.
    run_wanted: u8,
    is_stopping: bool,
    /// What is noted of connections, if somebody may ask.
    ledgers: Option<Ledgers>,
    /// Connections that the stop found in their opening handshake.
    latecomers: Vec<ConnectionId>,
    /// Sends that end with the next submission.
    quick_sends: usize,
    /// The next cycle must not wait.
    is_eager: bool,
}

impl<'a, R: Ring> Pump<'a, R> {
    /// A pump that serves the connections to the listeners of `ring`.
    pub fn new(
        ring: R,
        context: Context<'a>,
        shared: &'a Shared,
        timeouts: Timeouts,
    ) -> Pump<'a, R> {
        Pump {
            peers: Slab::with_capacity(shared.connections.max().min(SLOTS_RESERVED)),
            admissions: Admissions::new(&shared.connections),
            stopwatch: None,
            worker: Worker {
                ring,
                context,
                deadlines: Deadlines::default(),
                timers: Timers::new(timeouts),
                memory: Memory::new(&shared.memory),
                starved: VecDeque::new(),
                line: Line::default(),
                handshakes: VecDeque::new(),
                put_off: Vec::new(),
                unanswered: Vec::new(),
                connections: 0,
                offload: offload::Policy::Off,
                run_wanted: 0,
                is_stopping: false,
                ledgers: None,
                latecomers: Vec::new(),
                quick_sends: 0,
                is_eager: false,
            },
        }
    }

    /// Offloads connections by this policy; by `Auto` after `auto_run` messages in a row that the
    /// kernel could have echoed.
    #[must_use]
    pub fn with_offload(mut self, policy: offload::Policy, auto_run: u8) -> Pump<'a, R> {
        self.worker.offload = policy;
        self.worker.run_wanted = if policy == offload::Policy::Auto { auto_run } else { 0 };
        self
    }

    /// Measures how long messages stay in the server if `timing` says so.
    #[must_use]
    pub fn with_timing(mut self, timing: Timing) -> Pump<'a, R> {
        self.stopwatch = (timing == Timing::On).then(Stopwatch::default);
        self
    }

    /// Answers the questions in `mailbox`, if there is one.
    #[must_use]
    pub fn with_mailbox(mut self, mailbox: Option<Arc<Mailbox>>) -> Pump<'a, R> {
        self.worker.ledgers = mailbox.map(Ledgers::new);
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
            if let Err(error) = self.cycle(&mut completions) {
                // The kernel may still read and write what this pump owns.
                std::mem::forget(self);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Starts accepting.
    pub fn start(&mut self) {
        self.worker.ring.watch_stop();
        self.worker.ring.watch_questions();
        self.admissions.open(self.worker.ring.listeners());
        self.settle_accepting();
    }

    /// Whether the worker was told to stop and nothing is left to be done.
    pub fn is_over(&self) -> bool {
        self.worker.is_stopping && self.peers.is_empty() && self.admissions.is_over()
    }

    /// Submits, waits once, and handles what has completed. `completions` is scratch.
    ///
    /// # Errors
    ///
    /// When the ring itself is broken.
    #[inline]
    pub fn cycle(&mut self, completions: &mut Vec<Completion>) -> io::Result<()>
    where
        R: Blocking,
    {
        let wait = self.wanted();
        self.worker.ring.enter(wait, completions)?;
        self.take(completions);
        Ok(())
    }

    /// How long the ring may wait now, having submitted all operations.
    #[inline]
    pub fn wanted(&mut self) -> Wait {
        let worker = &mut self.worker;
        if let Some(stopwatch) = &mut self.stopwatch {
            stopwatch.answered(worker.context.counters, || worker.ring.now());
        }
        worker.quick_sends = 0;
        worker.line.submitted();
        if std::mem::take(&mut worker.is_eager) {
            Wait::Not
        } else {
            Wait::Until(worker.deadlines.first())
        }
    }

    /// Handles what has completed, then what is due, then the connections that came in.
    #[inline]
    pub fn take(&mut self, completions: &mut Vec<Completion>) {
        if let Some(stopwatch) = &mut self.stopwatch {
            stopwatch.saw(self.worker.ring.now());
        }
        if self.worker.line.has_neighbours() {
            self.worker.context.allowance.begin_cycle();
        } else {
            self.worker.context.allowance.begin_lone_cycle();
        }
        let recently = self.worker.ring.recently();
        self.worker.context.now.set(Moment::at(recently));
        for completion in completions.drain(..) {
            self.complete(completion);
        }
        if !self.worker.put_off.is_empty() {
            self.complete_put_off();
        }
        if !self.worker.unanswered.is_empty() {
            self.verify_unanswered();
        }
        self.watch_memory();
        if self.worker.deadlines.may_be_due(recently) {
            self.meet_deadlines();
        }
        if self.admissions.is_unsettled() {
            self.settle_accepting();
        }
        if !self.worker.starved.is_empty() {
            self.feed_starved();
        }
        if !self.worker.line.is_empty() {
            self.serve_line();
        }
        if !self.worker.handshakes.is_empty() {
            self.go_on_with_a_handshake();
        }
        if !self.worker.latecomers.is_empty() {
            self.see_latecomers_off();
        }
        if self.worker.ledgers.as_ref().is_some_and(|ledgers| ledgers.is_asked) {
            self.answer_question();
        }
    }

    /// The ring, for the tests to look at.
    pub fn ring(&mut self) -> &mut R {
        &mut self.worker.ring
    }

    /// How many connections have a slot.
    pub fn connections(&self) -> usize {
        self.peers.len()
    }

    /// Heap bytes that the connections keep, not counting the replies that the ring is sending.
    pub fn heap_bytes(&mut self) -> usize {
        self.peers.iter_mut().map(|(_, peer)| peer.heap_bytes()).sum()
    }

    #[inline]
    fn complete(&mut self, completion: Completion) {
        match completion {
            Completion::Received { id, received, further } => match self.turn(id) {
                Some(turn) if turn.peer.heavy.is_some() => {
                    turn.worker.line.served_heavy(id);
                    turn.worker.put_off.push((id, received, further));
                }
                Some(mut turn) => {
                    turn.worker.line.served(id);
                    turn.received(received, further);
                }
                // It belongs to an earlier tenant of the slot.
                None => {
                    if let Received::Data { lease, .. } = received {
                        self.worker.ring.recycle(lease);
                    }
                }
            },
            Completion::Sent { id, sent, bytes } => {
                self.at(id, |mut turn| turn.sent(sent, bytes));
            }
            Completion::Accepted { listener, result, further } => {
                self.accepted(listener, result, further);
            }
            Completion::Passed { id } => self.at(id, |mut turn| turn.passed()),
            Completion::HungUp { id } => self.at(id, |mut turn| turn.hung_up()),
            Completion::Broken { id } => self.at(id, |mut turn| turn.broken()),
            Completion::Closed { id } => self.closed(id),
            Completion::Asked => {
                // At the end of the cycle.
                if let Some(ledgers) = &mut self.worker.ledgers {
                    ledgers.is_asked = true;
                }
            }
            Completion::StopRequested => {
                // Everything that was received by now is answered first, whatever came first.
                self.worker.deadlines.set(Duration::ZERO, deadlines::Due::Stop);
            }
        }
    }

    /// The connection of an event, resolved once, if it is still there.
    #[inline]
    fn turn(&mut self, id: ConnectionId) -> Option<Turn<'_, 'a, R>> {
        let peer = self.peers.get_mut(id)?;
        Some(Turn { id, peer, worker: &mut self.worker })
    }

    /// Gives a connection its turn, if it is still there.
    #[inline]
    fn at(&mut self, id: ConnectionId, event: impl FnOnce(Turn<'_, 'a, R>)) {
        if let Some(turn) = self.turn(id) {
            event(turn);
        }
    }

    /// Gives every connection its turn.
    fn at_each(&mut self, mut event: impl FnMut(Turn<'_, 'a, R>)) {
        for (id, peer) in self.peers.iter_mut() {
            event(Turn { id, peer, worker: &mut self.worker });
        }
    }

    /// Verifies connections where no answer to what was received will reveal that they are broken.
    #[cold]
    fn verify_unanswered(&mut self) {
        let mut unanswered = std::mem::take(&mut self.worker.unanswered);
        unanswered.sort_unstable();
        unanswered.dedup();
        for id in unanswered.drain(..) {
            self.at(id, |mut turn| turn.verify());
        }
        self.worker.unanswered = unanswered;
    }

    /// Answers what heavy connections have received.
    #[cold]
    fn complete_put_off(&mut self) {
        let mut put_off = std::mem::take(&mut self.worker.put_off);
        for (id, received, further) in put_off.drain(..) {
            self.at(id, |mut turn| turn.received(received, further));
        }
        self.worker.put_off = put_off;
    }

    /// Gives connections that wait for their turns their turns, until the work of this cycle is done. At least
    /// one has its turn unless all are put off, none has two, and the next cycle does not wait while any is left.
    #[cold]
    fn serve_line(&mut self) {
        for _ in 0..self.worker.line.begin_turns() {
            let Some(id) = self.worker.line.pop() else { break };
            self.at(id, |mut turn| turn.take_turn());
            if self.worker.context.allowance.is_spent() {
                break;
            }
        }
        self.worker.is_eager |= !self.worker.line.is_empty();
    }

    /// Lets one connection go on with the handshake of its layer. The next cycle does not wait while any is left.
    #[cold]
    fn go_on_with_a_handshake(&mut self) {
        while let Some(id) = self.worker.handshakes.pop_front() {
            let Some(mut turn) = self.turn(id) else { continue };
            turn.open_postponed();
            break;
        }
        self.worker.is_eager |= !self.worker.handshakes.is_empty();
    }

    #[cold]
    fn stop(&mut self) {
        if self.worker.is_stopping {
            return;
        }
        self.worker.is_stopping = true;
        self.limit_drain();
        self.admissions.stop();
        self.at_each(|mut turn| turn.stop());
    }

    /// Tells those that are open by now that the server goes away, and forgets those that are over.
    #[cold]
    fn see_latecomers_off(&mut self) {
        let mut latecomers = std::mem::take(&mut self.worker.latecomers);
        latecomers.retain(|&id| {
            let Some(mut turn) = self.turn(id) else { return false };
            let is_late = turn.is_in_handshake();
            if !is_late {
                turn.dismiss(Dismissal::Stopping);
            }
            is_late
        });
        self.worker.latecomers = latecomers;
    }

    /// Starts as many starved receives as there are buffers for.
    #[cold]
    fn feed_starved(&mut self) {
        let mut buffers = self.worker.ring.buffers_ready();
        while buffers > 0
            && let Some(id) = self.worker.starved.pop_front()
        {
            let Some(mut turn) = self.turn(id) else { continue };
            if turn.peer.receiving != Receiving::Starved {
                continue;
            }
            turn.peer.receiving = Receiving::Off;
            turn.settle();
            // A connection that no longer wants to receive leaves the buffer to the next.
            let is_fed =
                matches!(turn.peer.receiving, Receiving::On | Receiving::Piece | Receiving::Once);
            buffers -= usize::from(is_fed);
        }
        // The buffers of quick sends come back with the next submission.
        self.worker.is_eager |= !self.worker.starved.is_empty() && self.worker.quick_sends > 0;
    }
}
