//! What must hold whenever the simulation comes to rest, and when the pump is over.

use std::time::Duration;

use super::{Connection, Flight, Kernel, Link};
use crate::engine::pump::SECOND_LOOK_MAX;

/// A state in which no step is possible.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rest {
    /// It ends when a peer moves or a deadline comes.
    Passing,
    /// Only the stop can end it.
    Final,
}

impl Kernel {
    /// Checks what must hold when the pump is over.
    pub(in crate::engine::simulation) fn check_end(&self) {
        let buffers = &self.buffers;
        assert_eq!(buffers.ready(), buffers.len(), "buffers are lost");
        assert_eq!(self.totals.accepted, self.totals.closed, "sockets are left open");
        assert!(self.listeners.iter().all(|listener| !listener.is_open), "a listener is open");
        assert!(self.completed.is_empty() && self.active.is_empty(), "operations are left");
        let links = self.connections.iter().map(|connection| &connection.link);
        let sent: usize = links.map(Link::taken_to_send).sum();
        assert_eq!(sent as u64, self.totals.bytes_out + self.totals.bytes_echoed);
        let stopped = self.stopped.expect("the pump had to stop");
        let slack = Duration::from_millis(100);
        let drain = self.scenario.timeouts.drain.expect("it is bounded");
        let is_late = self.now > stopped + drain + slack;
        assert!(!is_late || self.scenario.stall_max > Duration::ZERO, "stopping took too long");
    }

    /// Checks what must hold at rest. The pump waits until `until`.
    pub(super) fn check_rest(&self, rest: Rest, until: Option<Duration>) {
        for &number in &self.active {
            let connection = &self.connections[number];
            let &Connection { ref link, place, send, .. } = connection;
            if link.is_waiting_for_accept() && until.is_some() {
                continue;
            }
            // The pump is about to look again.
            if place.is_some() && until.is_some_and(|until| until <= self.now + SECOND_LOOK_MAX) {
                continue;
            }
            assert!(link.is_open(), "connection {number} is not served: {connection}");
            let is_told = self.scenario.stall_max > Duration::ZERO || send != Flight::Not;
            assert!(is_told || !link.is_overdue(self.now), "{number} is overdue: {connection}");
            // It may have to wait for memory.
            if self.scenario.memory_max < usize::MAX && until.is_some() {
                continue;
            }
            // It waits for the answer to its close frame.
            if link.is_dismissed() && until.is_some() {
                continue;
            }
            // The pump goes by its deadline then.
            if connection.is_deaf && link.is_shut() && until.is_some() {
                continue;
            }
            assert!(!link.is_lost(), "a broken {number} is open: {connection}");
            let is_echoing = place.is_some_and(|place| self.is_echoing(place));
            if (send == Flight::Armed || is_echoing) && link.room() == 0 {
                let may_wait = rest == Rest::Passing || link.may_stall();
                assert!(may_wait, "connection {number} can never go on: {connection}");
                continue;
            }
            assert!(
                link.is_idle() && (!link.is_ending() || link.is_shut() && rest == Rest::Passing),
                "connection {number} waits in vain: {connection}"
            );
        }
    }
}
