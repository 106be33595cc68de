//! What is to be done at a certain time: one heap for each worker, checked once per cycle.
//!
//! Entries are not removed when a connection ends: its id then finds nothing. They are swept out when
//! they outnumber the open connections, so the heap stays bounded.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use super::Pump;
use super::peer::Stage;
use crate::engine::ring::Ring;
use crate::protocol::Dismissal;
use crate::slab::ConnectionId;

/// How long a stopping worker waits for the rest of an opening handshake, to answer it before it closes the
/// connection. The connection may be so new that its request is still on the way.
pub const HANDSHAKE_GRACE: Duration = Duration::from_secs(1);
/// How long a peer may go without reading anything of the last bytes that are sent to it.
pub const FAREWELL_MAX: Duration = Duration::from_secs(30);
/// How long the server, having sent everything, waits for the peer to close too. How long it waits for the answer
/// to a close frame, too.
pub const LINGER_MAX: Duration = Duration::from_secs(5);
/// How much later than the clock that is cheap to read the time may be.
const LAG_MAX: Duration = Duration::from_millis(20);

/// Entries of connections that are gone, before they are swept out.
const SLACK: usize = 64;

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Due {
    /// End a connection, if it is still in this stage and its peer has made no progress.
    End(ConnectionId, Stage),
    /// Look at an offloaded connection again.
    Look(ConnectionId),
    /// Close an offloaded connection, or one whose opening handshake the stop has found in progress.
    Dismiss(ConnectionId, Dismissal),
    /// Look for opening handshakes that take too long.
    Handshakes,
    /// Look for connections that have been open for too long.
    Lifetimes,
    /// Look for silent peers.
    Round,
    /// Look whether there is memory again.
    Memory,
    /// Accept again on this listener.
    Accept(u32),
    /// Stop, after everything that came before.
    Stop,
    /// End the connections that have not drained.
    Drained,
}

/// What is to be done, ordered by time.
#[derive(Debug, Default)]
pub(super) struct Deadlines(BinaryHeap<Reverse<(Duration, Due)>>);

impl Deadlines {
    /// Schedules `due` for this time on the ring's clock.
    pub(super) fn set(&mut self, at: Duration, due: Due) {
        self.0.push(Reverse((at, due)));
    }

    /// Whether something may be due, according to the clock that is cheap to read.
    #[inline]
    pub(super) fn may_be_due(&self, recently: Duration) -> bool {
        self.first().is_some_and(|at| at <= recently + LAG_MAX)
    }

    /// The time of the first.
    #[inline]
    pub(super) fn first(&self) -> Option<Duration> {
        self.0.peek().map(|&Reverse((at, _))| at)
    }

    fn take_due(&mut self, now: Duration) -> Option<Due> {
        self.first().filter(|&at| at <= now)?;
        self.0.pop().map(|Reverse((_, due))| due)
    }

    /// Whether entries of connections that are gone may be more than those of the `open` ones.
    pub(super) fn is_littered(&self, open: usize) -> bool {
        self.0.len() > 2 * open + SLACK
    }

    /// Removes the entries of connections that are gone.
    pub(super) fn sweep(&mut self, mut is_open: impl FnMut(ConnectionId) -> bool) {
        self.0.retain(|&Reverse((_, due))| match due {
            Due::End(id, _) | Due::Look(id) | Due::Dismiss(id, _) => is_open(id),
            Due::Accept(_)
            | Due::Handshakes
            | Due::Lifetimes
            | Due::Round
            | Due::Memory
            | Due::Stop
            | Due::Drained => true,
        });
    }
}

impl<R: Ring> Pump<'_, R> {
    #[cold]
    pub(super) fn meet_deadlines(&mut self) {
        let now = self.worker.ring.now();
        while let Some(due) = self.worker.deadlines.take_due(now) {
            match due {
                Due::End(id, stage) => self.at(id, |mut turn| turn.end_unless_progressing(stage)),
                Due::Look(id) => self.at(id, |mut turn| turn.look()),
                Due::Dismiss(id, dismissal) => self.at(id, |mut turn| turn.dismiss(dismissal)),
                Due::Handshakes => self.end_handshakes(now),
                Due::Lifetimes => self.end_lifetimes(now),
                Due::Round => self.go_round(now),
                Due::Memory => self.look_at_memory(now),
                Due::Accept(listener) => self.admissions.resume(listener),
                Due::Stop => self.stop(),
                Due::Drained => self.cut(),
            }
        }
    }
}

impl<R: Ring> Pump<'_, R> {
    /// From now on, connections have the time that draining may take.
    pub(super) fn limit_drain(&mut self) {
        if let Some(drain) = self.worker.timers.timeouts.drain {
            let at = self.worker.ring.now() + drain;
            self.worker.deadlines.set(at, Due::Drained);
        }
    }

    /// Drops the connections that have not drained in time. Others may still come in, from the queue of a listener, if
    /// the worker was kept from running; they have as long.
    fn cut(&mut self) {
        self.limit_drain();
        self.at_each(|mut turn| {
            if turn.peer.stage < Stage::Leaving {
                turn.worker.context.counters.connections_cut.add(1);
            }
            turn.drop_now();
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_due_comes_in_the_order_of_its_time_and_nothing_comes_early() {
        let mut deadlines = Deadlines::default();
        let second = Duration::from_secs;
        for listener in [3, 1, 2] {
            deadlines.set(second(listener.into()), Due::Accept(listener));
        }
        assert_eq!(deadlines.first(), Some(second(1)));
        assert_eq!(deadlines.take_due(Duration::ZERO), None);
        assert_eq!(deadlines.take_due(second(2)), Some(Due::Accept(1)));
        assert_eq!(deadlines.take_due(second(2)), Some(Due::Accept(2)));
        assert_eq!(deadlines.take_due(second(2)), None);
    }

    #[test]
    fn entries_of_connections_that_are_gone_are_swept_out_and_no_others() {
        let mut deadlines = Deadlines::default();
        deadlines.set(Duration::ZERO, Due::Stop);
        for slot in 0..SLACK as u32 + 2 {
            let id = ConnectionId { slot, generation: 0 };
            deadlines.set(Duration::ZERO, Due::End(id, Stage::Farewell));
        }
        assert!(deadlines.is_littered(1) && !deadlines.is_littered(2));
        deadlines.sweep(|id| id.slot == 7);
        assert_eq!(deadlines.0.len(), 2);
    }
}
