//! The connections that wait for their turns, and whether anybody else waits while they have them.
//!
//! Much at a time costs less than little at a time, but whoever sends a message meanwhile waits for all of it. So
//! there is less at a time while connections have *neighbours*: for some cycles after a connection that is not heavy
//! was served and another one before it. For the same reason turns are put off, once, if the answer to such a
//! connection leaves only with the next submission.
//!
//! This file does not know what is done in a turn, nor how much.

use std::collections::VecDeque;

use crate::slab::ConnectionId;

/// For how many cycles with turns connections have neighbours after one was served.
const NEIGHBOURLY_CYCLES: u8 = 64;

/// The connections of a worker that wait for their turns, in that order.
#[derive(Debug, Default)]
pub(super) struct Line {
    waiting: VecDeque<ConnectionId>,
    served_last: Option<ConnectionId>,
    /// For how many more cycles with turns there are neighbours.
    neighbourly: u8,
    /// An answer leaves with the next submission.
    is_answer_due: bool,
    /// The turns of the last cycle that had any were put off.
    was_put_off: bool,
}

impl Line {
    pub(super) fn push(&mut self, id: ConnectionId) {
        self.waiting.push_back(id);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Begins the turns of a cycle, at most one for each connection that waits now. Returns how many.
    pub(super) fn begin_turns(&mut self) -> usize {
        self.was_put_off = self.is_answer_due && !self.was_put_off;
        if self.was_put_off {
            return 0;
        }
        self.neighbourly = self.neighbourly.saturating_sub(1);
        self.waiting.len()
    }

    /// The next connection, which has its turn now.
    pub(super) fn pop(&mut self) -> Option<ConnectionId> {
        let id = self.waiting.pop_front()?;
        self.served_last = Some(id);
        Some(id)
    }

    /// A heavy connection is served outside of its turn.
    pub(super) fn served_heavy(&mut self, id: ConnectionId) {
        self.served_last = Some(id);
    }

    /// A connection that is not heavy is served.
    #[inline]
    pub(super) fn served(&mut self, id: ConnectionId) {
        if self.served_last.replace(id).is_some_and(|last| last != id) {
            self.neighbourly = NEIGHBOURLY_CYCLES;
        }
    }

    /// The answer to a connection that is not heavy leaves with the next submission.
    #[inline]
    pub(super) fn answered(&mut self) {
        self.is_answer_due = true;
    }

    /// All operations are being submitted.
    #[inline]
    pub(super) fn submitted(&mut self) {
        self.is_answer_due = false;
    }

    /// Whether somebody else may be waiting while a connection has its turn.
    pub(super) fn has_neighbours(&self) -> bool {
        self.neighbourly > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(slot: u32) -> ConnectionId {
        ConnectionId { slot, generation: 0 }
    }

    #[test]
    fn turns_are_put_off_once_for_an_answer_that_is_still_to_leave() {
        let mut line = Line::default();
        line.push(id(1));
        assert_eq!(line.begin_turns(), 1);
        for _ in 0..2 {
            line.answered();
            assert_eq!(line.begin_turns(), 0, "the answer leaves first");
            line.answered();
            assert_eq!(line.begin_turns(), 1, "whoever waits has a turn every second time");
        }
        line.submitted();
        assert_eq!(line.begin_turns(), 1);
    }

    #[test]
    fn there_are_neighbours_for_some_cycles_after_one_was_served() {
        let mut line = Line::default();
        for _ in 0..3 {
            line.push(id(1));
            line.begin_turns();
            line.pop();
            line.served_heavy(id(2));
        }
        assert!(!line.has_neighbours(), "only heavy connections are served");
        line.served(id(3));
        for _ in 0..NEIGHBOURLY_CYCLES {
            assert!(line.has_neighbours());
            line.begin_turns();
        }
        assert!(!line.has_neighbours());
        line.served(id(3));
        assert!(!line.has_neighbours(), "it was served alone since");
        for serve in [Line::served_heavy, Line::served] {
            serve(&mut line, id(1));
            line.served(id(3));
            assert!(line.has_neighbours());
            for _ in 0..NEIGHBOURLY_CYCLES {
                line.begin_turns();
            }
            assert!(!line.has_neighbours());
        }
    }
}
