//! What happens when the workers have more heap memory than they may.
//!
//! Beyond the limit, a connection that has much of it is not read; beyond the limit and an eighth, none is. If that
//! does not help for [`PATIENCE`], those that have most are closed until it does, some every [`LOOK`]. So a peer that
//! takes memory and never gives it back ends nobody but itself.
//!
//! Each worker reports what it has when that has changed by more than [`GRAIN`], so that the count that all of them
//! share is rarely written. A worker that has its share of the limit looks at that count every [`LOOK`] even if nothing
//! else wakes it: of several workers beyond the limit, one at least has its share. This file does not know what the
//! memory is for: see `Context::memory_bytes`.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use super::Pump;
use super::deadlines::Due;
use super::peer::Stage;
use super::turn::Turn;
use crate::engine::ring::Ring;
use crate::protocol::Dismissal;
use crate::slab::ConnectionId;

/// The limit on all heap memory for messages and compression unless told otherwise, in bytes.
pub const MEMORY_MAX_DEFAULT: usize = 1 << 30;
/// How long the limit may be exceeded before connections are closed.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often a worker looks whether there is memory again.
const LOOK: Duration = Duration::from_millis(100);
/// By how many bytes what a worker has may differ from what it has reported.
const GRAIN: usize = 64 << 10;
/// How many bytes are much for one connection.
const MUCH: usize = 64 << 10;
/// The part of the limit that is to be freed by those that are closed at a time.
const SHED_PART: usize = 64;

/// The limit on heap memory, which all workers share.
// Every cycle reads it, so it has cache lines of its own.
#[derive(Debug)]
#[repr(align(128))]
pub struct MemoryLimit {
    used: AtomicUsize,
    max: usize,
    workers: usize,
}

/// How short memory is.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Shortage {
    /// It is not.
    #[default]
    None,
    /// The limit is exceeded.
    Some,
    /// It is exceeded by an eighth.
    Dire,
}

impl MemoryLimit {
    /// A limit of `max` bytes over all of `workers` workers.
    pub fn new(max: usize, workers: usize) -> MemoryLimit {
        MemoryLimit { used: AtomicUsize::new(0), max, workers }
    }

    /// How short memory is, where it was `before`. A state ends an eighth below where it began, so that it does not
    /// begin again at once.
    #[inline]
    fn shortage(&self, before: Shortage) -> Shortage {
        let used = self.used.load(Relaxed);
        let eighth = self.max / 8;
        let slack = |state| if before >= state { eighth } else { 0 };
        if used > self.max.saturating_add(eighth) - slack(Shortage::Dire) {
            Shortage::Dire
        } else if used > self.max - slack(Shortage::Some) {
            Shortage::Some
        } else {
            Shortage::None
        }
    }

    /// Whether `bytes` bytes are a worker's share of what all of them have, or more.
    fn is_share(&self, bytes: usize) -> bool {
        bytes.saturating_mul(self.workers) >= self.used.load(Relaxed)
    }

    /// Whether they are a worker's share of the limit, or more.
    fn is_share_of_limit(&self, bytes: usize) -> bool {
        bytes.saturating_mul(self.workers) >= self.max
    }
}

/// What a worker knows of memory.
#[derive(Debug)]
pub(super) struct Memory<'a> {
    limit: &'a MemoryLimit,
    /// What it has reported, in bytes.
    reported: usize,
    shortage: Shortage,
    /// When the shortage began.
    short_since: Duration,
    /// There is a deadline to look again.
    is_watched: bool,
}

impl<'a> Memory<'a> {
    pub(super) fn new(limit: &'a MemoryLimit) -> Memory<'a> {
        Memory {
            limit,
            reported: 0,
            shortage: Shortage::None,
            short_since: Duration::ZERO,
            is_watched: false,
        }
    }

    /// Tells the other workers that this one has `bytes` bytes.
    fn report(&mut self, bytes: usize) {
        // Wraps around if it has less than before.
        self.limit.used.fetch_add(bytes.wrapping_sub(self.reported), Relaxed);
        self.reported = bytes;
    }

    /// Whether it must be looked at again, even if nothing happens on this worker.
    fn needs_watch(&self) -> bool {
        self.shortage > Shortage::None || self.limit.is_share_of_limit(self.reported)
    }

    /// Whether a connection that has `bytes` bytes may be read.
    #[inline]
    pub(super) fn admits(&self, bytes: impl FnOnce() -> usize) -> bool {
        match self.shortage {
            Shortage::None => true,
            Shortage::Some => bytes() < MUCH,
            Shortage::Dire => false,
        }
    }
}

impl Drop for Memory<'_> {
    fn drop(&mut self) {
        self.report(0);
    }
}

impl<R: Ring> Pump<'_, R> {
    /// Compares what the worker has with what it may have.
    #[inline]
    pub(super) fn watch_memory(&mut self) {
        let bytes = self.worker.context.memory_bytes();
        let memory = &self.worker.memory;
        if bytes.abs_diff(memory.reported) > GRAIN
            || memory.limit.shortage(memory.shortage) != memory.shortage
        {
            self.settle_memory();
        }
    }

    #[cold]
    fn settle_memory(&mut self) {
        let Pump { worker, .. } = self;
        worker.memory.report(worker.context.memory_bytes());
        let before = worker.memory.shortage;
        if worker.memory.limit.shortage(before) > Shortage::None {
            // What is kept for later messages goes first.
            worker.context.trim();
            worker.memory.report(worker.context.memory_bytes());
        }
        worker.context.counters.memory_bytes.set(worker.memory.reported as u64);
        let after = worker.memory.limit.shortage(before);
        worker.memory.shortage = after;
        let needs_watch = worker.memory.needs_watch();
        if needs_watch && !std::mem::replace(&mut worker.memory.is_watched, true) {
            worker.deadlines.set(worker.ring.now() + LOOK, Due::Memory);
        }
        if before == Shortage::None && after > Shortage::None {
            worker.memory.short_since = worker.ring.now();
            worker.context.counters.memory_shortages.add(1);
        }
        if after != before {
            self.at_each(|mut turn| turn.settle_for_memory());
        }
    }

    /// Looks again whether memory is short, and closes connections if it has been for long.
    pub(super) fn look_at_memory(&mut self, now: Duration) {
        self.worker.memory.is_watched = false;
        self.settle_memory();
        let memory = &self.worker.memory;
        let is_lasting = memory.shortage > Shortage::None && now >= memory.short_since + PATIENCE;
        if is_lasting && memory.limit.is_share(memory.reported) {
            self.shed();
        }
    }

    /// Closes the connections that have most of the memory, until a part of the limit is free.
    fn shed(&mut self) {
        let wanted = self.worker.memory.limit.max / SHED_PART;
        let open = self
            .peers
            .iter_mut()
            .filter(|(_, peer)| peer.stage <= Stage::Farewell && !peer.is_dismissed);
        let mut holders: Vec<(usize, ConnectionId)> = open
            .map(|(id, peer)| (peer.memory_bytes(), id))
            .filter(|&(bytes, _)| bytes > 0)
            .collect();
        holders.sort_unstable();
        let mut freed = 0;
        while let Some((bytes, id)) = holders.pop() {
            self.at(id, |mut turn| turn.shed());
            freed += bytes;
            if freed >= wanted {
                break;
            }
        }
    }
}

impl<R: Ring> Turn<'_, '_, R> {
    /// Memory is short, or no longer.
    fn settle_for_memory(&mut self) {
        if self.peer.stage == Stage::Serving {
            self.settle_slowly();
        }
    }

    /// Closes a connection because of the memory that it has.
    fn shed(&mut self) {
        self.worker.context.counters.connections_shed.add(1);
        self.dismiss(Dismissal::Memory);
        // It does not read what it is sent, or a part of its message is sent already.
        if self.peer.memory_bytes() >= MUCH {
            self.drop_now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shortage_begins_beyond_the_limit_and_ends_well_below_it() {
        let limit = MemoryLimit::new(8000, 1);
        let mut memory = Memory::new(&limit);
        let mut before = Shortage::None;
        for (bytes, after) in [
            (8000, Shortage::None),
            (8001, Shortage::Some),
            (9000, Shortage::Some),
            (9001, Shortage::Dire),
            (8001, Shortage::Dire),
            (8000, Shortage::Some),
            (7001, Shortage::Some),
            (7000, Shortage::None),
            (8000, Shortage::None),
        ] {
            memory.report(bytes);
            before = limit.shortage(before);
            assert_eq!(before, after, "{bytes}");
        }
    }

    #[test]
    fn no_limit_is_never_exceeded() {
        let limit = MemoryLimit::new(usize::MAX, 4);
        let mut memory = Memory::new(&limit);
        memory.report(usize::MAX / 2);
        assert_eq!(limit.shortage(Shortage::None), Shortage::None);
    }

    #[test]
    fn what_a_worker_has_counts_until_it_ends() {
        let limit = MemoryLimit::new(100, 2);
        let mut memories = [Memory::new(&limit), Memory::new(&limit)];
        memories[0].report(80);
        memories[1].report(30);
        memories[0].report(70);
        assert_eq!(limit.used.load(Relaxed), 100);
        assert!(limit.is_share(70) && limit.is_share(50) && !limit.is_share(49));
        assert!(memories[0].needs_watch() && !memories[1].needs_watch(), "30 of 100 are no share");
        drop(memories);
        assert_eq!(limit.used.load(Relaxed), 0);
    }

    #[test]
    fn whoever_has_much_is_not_read_first() {
        let limit = MemoryLimit::new(0, 1);
        let mut memory = Memory::new(&limit);
        let mut admits = |shortage, bytes| {
            memory.shortage = shortage;
            memory.admits(|| bytes)
        };
        assert!(admits(Shortage::None, usize::MAX));
        assert!(admits(Shortage::Some, MUCH - 1) && !admits(Shortage::Some, MUCH));
        assert!(!admits(Shortage::Dire, 0));
    }
}
