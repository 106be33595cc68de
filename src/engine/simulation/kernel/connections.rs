//! The connections of the simulated kernel, and which of them are idle: nothing can happen to them next.
//!
//! Most are, most of the time. The search for the next step passes them over.

use std::ops::{Index, IndexMut};
use std::slice::Iter;
use std::time::Duration;

use super::Connection;

#[derive(Debug)]
pub(super) struct Connections {
    all: Vec<Connection>,
    /// Until when each is idle, unless it is changed before.
    idle_until: Vec<Duration>,
}

impl Connections {
    pub(super) fn new(all: Vec<Connection>) -> Connections {
        let idle_until = vec![Duration::ZERO; all.len()];
        Connections { all, idle_until }
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    pub(super) fn iter(&self) -> Iter<'_, Connection> {
        self.all.iter()
    }

    pub(super) fn is_idle(&self, number: usize, now: Duration) -> bool {
        now < self.idle_until[number]
    }

    /// Notes that nothing can happen to this connection before `until`, unless it is changed.
    pub(super) fn note_idle(&mut self, number: usize, until: Duration) {
        self.idle_until[number] = until;
    }
}

impl Index<usize> for Connections {
    type Output = Connection;

    fn index(&self, number: usize) -> &Connection {
        &self.all[number]
    }
}

impl IndexMut<usize> for Connections {
    /// What is changed is no longer idle.
    fn index_mut(&mut self, number: usize) -> &mut Connection {
        self.idle_until[number] = Duration::ZERO;
        &mut self.all[number]
    }
}
