//! Offloaded connections: the program that echoes for a worker, and which connection is at each of its
//! places.
//!
//! This file pushes no operations; the ring polls for notices and passes them on.

use std::os::fd::BorrowedFd;

use crate::engine::ring::Completion;
use crate::metrics::Counters;
use crate::offload;
use crate::offload::program::Program;
use crate::slab::ConnectionId;

/// How often to read how much a socket was given for sending, while acknowledgements arrive.
const READINGS: usize = 8;

/// The program that echoes for this worker, and the connections that it sees.
pub(super) struct Offloading<'a> {
    pub(super) program: Program,
    /// The connection at each place.
    ids: Vec<Option<ConnectionId>>,
    /// Whether notices are being polled for.
    pub(super) is_polling: bool,
    counters: &'a Counters,
}

impl<'a> Offloading<'a> {
    /// Has the echoes of `program` counted in `counters` from now on.
    pub(super) fn new(program: Program, counters: &'a Counters) -> Offloading<'a> {
        counters.add_echoed(program.totals());
        let ids = (0..offload::PLACES).map(|_| None).collect();
        Offloading { program, ids, is_polling: false, counters }
    }

    /// Attaches a connection as [`crate::engine::ring::Ring::attach`] says.
    pub(super) fn attach(
        &mut self,
        id: ConnectionId,
        socket: BorrowedFd<'_>,
    ) -> Option<(offload::Place, u64)> {
        let mut readings = (0..READINGS).map(|_| Program::written_exactly(socket));
        let written = readings.find_map(|written| {
            let calls = if written.is_ok() { Program::WRITTEN_EXACTLY_CALLS } else { 1 };
            self.counters.syscalls.add(calls);
            written.transpose()
        })?;
        // A socket that is not TCP, or is broken, cannot answer.
        let written = written.ok()?;
        self.counters.syscalls.add(Program::ATTACH_CALLS);
        // If no place is free, or the kernel refuses, the connection is served like any other.
        let place = self.program.attach(socket).ok()??;
        self.ids[place.0 as usize] = Some(id);
        Some((place, written))
    }

    /// Frees the place of a connection whose socket is closed next.
    pub(super) fn detach(&mut self, place: offload::Place, socket: BorrowedFd<'_>) {
        self.counters.syscalls.add(Program::DETACH_CALLS);
        self.ids[place.0 as usize] = None;
        self.program.detach(place, socket);
    }

    /// Appends a completion for each connection of which the program has sent a notice.
    #[cold]
    pub(super) fn take_notices(&mut self, completions: &mut Vec<Completion>) {
        let ids = &self.ids;
        self.program.take_notices(|place| {
            let id = ids.get(place as usize).copied().flatten();
            completions.extend(id.map(|id| Completion::Passed { id }));
        });
    }
}
