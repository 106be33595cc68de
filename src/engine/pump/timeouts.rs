//! How long connections may take: for the opening handshake, in silence, and in all.
//!
//! A message costs nothing for them: it notes the time, which the worker has read once for the whole cycle. The
//! connections are looked at in *rounds*: one after the other, all of them within a sixteenth of the shortest time of
//! silence that matters, some at a time. So silence is noticed up to that much late, and an idle connection needs no
//! memory for a deadline of its own. What is due a fixed time after the accept waits in a [`Queue`] in the order of
//! the accepts, which has one deadline.
//!
//! Invariant: the deadlines of this file are at most three, one of each kind.

use std::collections::VecDeque;
use std::time::Duration;

use super::Pump;
use super::deadlines::{Deadlines, Due};
use super::peer::{Sending, Stage};
use super::turn::Turn;
use crate::engine::ring::Ring;
use crate::protocol::{Admission, Dismissal, Moment};
use crate::slab::ConnectionId;

/// The least time between two looks at the same connection.
const ROUND_MIN: Duration = Duration::from_millis(10);
/// The part of the shortest time of silence within which all connections are looked at.
const ROUND_PART: u32 = 16;
/// Connections that are looked at in one go.
const SLOTS_AT_ONCE: usize = 1024;
/// How long the others have their turns before the next ones are.
const LATER: Duration = Duration::from_millis(1);
/// Connections in a queue that need nothing any more, before they are taken out.
const SLACK: usize = 64;

/// How long connections may take; `None` stands for any time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// From the accept to the end of the opening handshake. Then the client gets status 408.
    pub handshake: Option<Duration>,
    /// Without a byte from the peer. Then it gets a ping.
    pub ping: Option<Duration>,
    /// Without a byte from the peer, pinged or not. Then the connection is closed; in the opening handshake, the client
    /// gets status 408.
    pub idle: Option<Duration>,
    /// From the accept on. Then the connection is closed.
    pub lifetime: Option<Duration>,
    /// From the request to stop on. Then the connections that are left are dropped.
    pub drain: Option<Duration>,
}

impl Timeouts {
    /// The times of a server without options.
    pub const DEFAULT: Timeouts = Timeouts {
        handshake: Some(Duration::from_secs(10)),
        ping: Some(Duration::from_secs(60)),
        idle: Some(Duration::from_secs(150)),
        lifetime: None,
        drain: Some(Duration::from_secs(5)),
    };

    /// How long a round takes, if silence matters at all.
    fn round(&self) -> Option<Duration> {
        let shortest = self.ping.into_iter().chain(self.idle).min()?;
        Some((shortest / ROUND_PART).max(ROUND_MIN))
    }
}

/// Connections for which something is due the same time after their accept, in the order of their accepts.
#[derive(Debug)]
struct Queue {
    after: Option<Duration>,
    waiting: VecDeque<(Moment, ConnectionId)>,
    /// There is a deadline for the first of them, or an earlier one.
    has_deadline: bool,
}

impl Queue {
    fn new(after: Option<Duration>) -> Queue {
        Queue { after, waiting: VecDeque::new(), has_deadline: false }
    }

    /// Appends a connection that was accepted now, where `open` of them are open. Returns how long it is until
    /// the queue must be looked at, unless there is a deadline for that.
    fn push(
        &mut self,
        id: ConnectionId,
        now: Moment,
        open: usize,
        mut is_needed: impl FnMut(ConnectionId) -> bool,
    ) -> Option<Duration> {
        let after = self.after?;
        while self.waiting.front().is_some_and(|&(_, id)| !is_needed(id)) {
            self.waiting.pop_front();
        }
        // One that takes its time must not keep all that came after it in the queue.
        if self.waiting.len() > 2 * open + SLACK {
            self.waiting.retain(|&(_, id)| is_needed(id));
        }
        self.waiting.push_back((now, id));
        (!std::mem::replace(&mut self.has_deadline, true)).then_some(after)
    }

    /// The first connection, if it is due. Otherwise the deadline has been met, and it says how long it is until
    /// the next one, if there is anything in the queue.
    fn pop_due(&mut self, now: Moment) -> Result<ConnectionId, Option<Duration>> {
        let first = self.waiting.front().copied().zip(self.after);
        let Some(((since, id), after)) = first else {
            self.has_deadline = false;
            return Err(None);
        };
        match after.checked_sub(now.since(since)) {
            None | Some(Duration::ZERO) => {
                self.waiting.pop_front();
                Ok(id)
            }
            Some(left) => Err(Some(left)),
        }
    }
}

/// What a worker knows of the times of its connections.
#[derive(Debug)]
pub(super) struct Timers {
    pub(super) timeouts: Timeouts,
    handshakes: Queue,
    lifetimes: Queue,
    /// The next slot to look at, and whether there is a deadline for that.
    next_slot: usize,
    is_on_round: bool,
}

impl Timers {
    pub(super) fn new(timeouts: Timeouts) -> Timers {
        Timers {
            timeouts,
            handshakes: Queue::new(timeouts.handshake),
            lifetimes: Queue::new(timeouts.lifetime),
            next_slot: 0,
            is_on_round: false,
        }
    }
}

impl<R: Ring> Pump<'_, R> {
    /// A connection was admitted: times begin.
    pub(super) fn start_timers(&mut self, id: ConnectionId) {
        let now = self.worker.ring.now();
        let moment = Moment::at(now);
        let Pump { worker, peers, .. } = self;
        let (timers, deadlines) = (&mut worker.timers, &mut worker.deadlines);
        let open = peers.len();
        let after = timers.handshakes.push(id, moment, open, |id| {
            peers.get_mut(id).is_some_and(|peer| peer.dialogue.connection().is_in_handshake())
        });
        deadlines.set_after(now, after, Due::Handshakes);
        let after = timers.lifetimes.push(id, moment, open, |id| peers.get_mut(id).is_some());
        deadlines.set_after(now, after, Due::Lifetimes);
        if let Some(round) = timers.timeouts.round()
            && !std::mem::replace(&mut timers.is_on_round, true)
        {
            deadlines.set(now + round, Due::Round);
        }
    }

    /// Refuses the connections whose opening handshake takes too long.
    pub(super) fn end_handshakes(&mut self, now: Duration) {
        for _ in 0..SLOTS_AT_ONCE {
            match self.worker.timers.handshakes.pop_due(Moment::at(now)) {
                Ok(id) => self.at(id, |mut turn| turn.refuse_late()),
                Err(left) => return self.worker.deadlines.set_after(now, left, Due::Handshakes),
            }
        }
        self.worker.deadlines.set(now + LATER, Due::Handshakes);
    }

    /// Closes the connections whose time is over.
    pub(super) fn end_lifetimes(&mut self, now: Duration) {
        for _ in 0..SLOTS_AT_ONCE {
            match self.worker.timers.lifetimes.pop_due(Moment::at(now)) {
                Ok(id) => self.at(id, |mut turn| turn.expire()),
                Err(left) => return self.worker.deadlines.set_after(now, left, Due::Lifetimes),
            }
        }
        self.worker.deadlines.set(now + LATER, Due::Lifetimes);
    }

    /// Looks for silence in the next slots.
    pub(super) fn go_round(&mut self, now: Duration) {
        let Some(round) = self.worker.timers.timeouts.round() else { return };
        if self.peers.is_empty() {
            self.worker.timers.is_on_round = false;
            return;
        }
        let slots = self.peers.slots();
        let first = self.worker.timers.next_slot;
        let end = (first + SLOTS_AT_ONCE).min(slots);
        for slot in first..end {
            if let Some((id, peer)) = self.peers.at_slot(slot) {
                Turn { id, peer, worker: &mut self.worker }.look_for_silence();
            }
        }
        self.worker.timers.next_slot = if end == slots { 0 } else { end };
        let parts = slots.div_ceil(SLOTS_AT_ONCE) as u32;
        self.worker.deadlines.set(now + round / parts, Due::Round);
    }
}

impl Deadlines {
    /// Schedules `due` for `after` from `now` on, if at all.
    fn set_after(&mut self, now: Duration, after: Option<Duration>, due: Due) {
        if let Some(after) = after {
            self.set(now + after, due);
        }
    }
}

impl<R: Ring> Turn<'_, '_, R> {
    /// When the connection was last known to be alive.
    fn heard_at(&self) -> Moment {
        let Turn { peer, worker, .. } = self;
        let Some(offloaded) = &peer.offloaded else { return peer.heard_at };
        let now = worker.context.now.get();
        match worker.ring.record(&offloaded.place).echoed_at().map(Moment::at) {
            Some(at) if now.since(at) < now.since(peer.heard_at) => at,
            Some(_) | None => peer.heard_at,
        }
    }

    fn look_for_silence(&mut self) {
        // A connection over a limit has a deadline of its own.
        let is_served = self.peer.stage == Stage::Serving
            && self.peer.admission == Admission::Open
            && !self.peer.is_dismissed;
        if !is_served {
            return;
        }
        let silence = self.worker.context.now.get().since(self.heard_at());
        let Timeouts { ping, idle, .. } = self.worker.timers.timeouts;
        if idle.is_some_and(|most| silence >= most) {
            if self.peer.dialogue.connection().is_in_handshake() {
                return self.refuse_late();
            }
            self.worker.context.counters.connections_timed_out.add(1);
            self.dismiss(Dismissal::Idle);
        } else if ping.is_some_and(|most| silence >= most) {
            self.ping();
        } else {
            self.peer.is_pinged = false;
        }
    }

    /// Asks a silent peer whether it is still there, once.
    fn ping(&mut self) {
        if self.peer.is_pinged {
            return;
        }
        if self.is_flushed() {
            let peer = &mut self.peer;
            // What is being sent asks the peer's kernel just as well.
            if peer.sending == Sending::Nothing && !peer.dialogue.has_reply() {
                peer.is_pinged = peer.dialogue.ping(&self.worker.context);
            }
        }
        self.settle();
    }

    /// The opening handshake should be done, or go on.
    fn refuse_late(&mut self) {
        if self.peer.stage == Stage::Serving && self.peer.dialogue.connection().is_in_handshake() {
            let decision = self.peer.dialogue.refuse_late(&self.worker.context);
            self.follow(decision);
            self.settle();
        }
    }

    /// The connection has been open for as long as one may.
    fn expire(&mut self) {
        if self.peer.stage == Stage::Serving && !self.peer.is_dismissed {
            self.worker.context.counters.connections_expired.add(1);
            self.dismiss(Dismissal::Expired);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(slot: u32) -> ConnectionId {
        ConnectionId { slot, generation: 0 }
    }

    fn at(millis: u64) -> Moment {
        Moment::at(Duration::from_millis(millis))
    }

    #[test]
    fn connections_are_due_in_the_order_of_their_accepts_with_one_deadline() {
        let second = Duration::from_secs(1);
        let mut queue = Queue::new(Some(second));
        assert_eq!(queue.push(id(1), at(0), 1, |_| true), Some(second));
        assert_eq!(queue.push(id(2), at(300), 2, |_| true), None, "there is one already");
        assert_eq!(queue.pop_due(at(999)), Err(Some(Duration::from_millis(1))));
        assert_eq!(queue.pop_due(at(1000)), Ok(id(1)));
        assert_eq!(queue.pop_due(at(1000)), Err(Some(Duration::from_millis(300))));
        assert_eq!(
            queue.push(id(3), at(1100), 2, |_| false),
            None,
            "the next one is still to come"
        );
        assert_eq!(queue.waiting, [(at(1100), id(3))]);
        assert_eq!(queue.pop_due(at(3000)), Ok(id(3)));
        assert_eq!(queue.pop_due(at(3000)), Err(None));
        assert_eq!(queue.push(id(4), at(4000), 1, |_| true), Some(second));
        assert_eq!(Queue::new(None).push(id(1), at(0), 1, |_| true), None);
    }

    #[test]
    fn a_queue_does_not_grow_behind_one_that_takes_its_time() {
        let mut queue = Queue::new(Some(Duration::from_secs(1)));
        for slot in 0..10_000 {
            queue.push(id(slot), at(0), 1, |id| id == ConnectionId { slot: 0, generation: 0 });
            assert!(queue.waiting.len() <= SLACK + 3);
        }
        assert_eq!(queue.pop_due(at(1000)), Ok(id(0)));
    }

    #[test]
    fn a_round_takes_a_part_of_the_shortest_time() {
        let second = Duration::from_secs(1);
        let round = |ping, idle| Timeouts { ping, idle, ..Timeouts::DEFAULT }.round();
        assert_eq!(round(None, None), None);
        assert_eq!(round(Some(16 * second), Some(32 * second)), Some(second));
        assert_eq!(round(None, Some(32 * second)), Some(2 * second));
        assert_eq!(round(Some(second / 1000), None), Some(ROUND_MIN));
    }
}
