//! The edges that epoll reports, and what their data means.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::Timespec;
use rustix::event::epoll::{self, Event};
use rustix::io::Errno;

use crate::engine::wait::Source;
use crate::metrics::Counters;

/// How many edges one call takes.
pub(super) const EVENTS: usize = 1024;
/// What an edge is of, in the upper half of its data. The lower half is the place of a connection or
/// the number of a listener.
pub(super) const CONNECTION: u64 = 0;
pub(super) const LISTENER: u64 = 1 << 32;
pub(super) const STOP: u64 = 2 << 32;

/// The epoll instance, and the edges that have not been noted yet.
pub(super) struct Edges<'a> {
    pub(super) epoll: OwnedFd,
    pub(super) events: Vec<Event>,
    pub(super) counters: &'a Counters,
}

impl Edges<'_> {
    /// One epoll_wait(2), which waits for at most `most`.
    pub(super) fn call(&mut self, most: Option<Duration>) -> io::Result<()> {
        let timeout = most.map(|most| Timespec {
            tv_sec: most.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: most.subsec_nanos().into(),
        });
        self.counters.syscalls.add(1);
        self.events.clear();
        let room = rustix::buffer::spare_capacity(&mut self.events);
        match epoll::wait(&self.epoll, room, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl Source for Edges<'_> {
    fn look(&mut self) -> io::Result<bool> {
        self.call(Some(Duration::ZERO))?;
        Ok(!self.events.is_empty())
    }

    fn sleep(&mut self, most: Option<Duration>) -> io::Result<()> {
        self.call(most)
    }
}
