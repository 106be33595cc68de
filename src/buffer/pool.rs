//! The memory of spills, recycled.
//!
//! Memory that is mapped, touched and unmapped for each message costs a page fault for each 4 KiB. So a
//! worker keeps what its spills have given back, up to a limit, and takes from there first.
//!
//! Invariant: the blocks in `free` hold `kept` bytes, at most `limit`.

use std::fmt;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use crate::metrics::Counters;

/// The most bytes that a pool keeps unless told otherwise: two of the largest messages of 64 MiB.
pub const SPILL_POOL_DEFAULT: usize = 128 << 20;
/// The smallest block that is kept, in bytes. The allocator recycles smaller ones without page faults.
const KEPT_MIN: usize = 16 << 10;
/// What the size of a block that can be kept is a multiple of: a page.
const STEP_MIN: usize = 4 << 10;

/// The memory that the spills of one worker have given back.
///
/// One thread uses it, so its lock is always free. It has one because [`Bytes::from_owner`] asks that the
/// owner could be sent to another thread.
#[derive(Clone)]
pub struct SpillPool(Arc<Shared>);

struct Shared {
    limit: usize,
    free: Mutex<Free>,
    counters: Arc<Counters>,
}

#[derive(Default)]
struct Free {
    /// The latest last: it is the likeliest to be in the CPU's cache.
    blocks: Vec<Vec<u8>>,
    kept: usize,
}

impl SpillPool {
    /// A pool that keeps at most `limit` bytes, and counts what it does.
    pub fn new(limit: usize, counters: Arc<Counters>) -> SpillPool {
        SpillPool(Arc::new(Shared { limit, free: Mutex::default(), counters }))
    }

    /// Takes a block of at least `bytes` bytes, whatever is in them.
    pub fn take(&self, bytes: usize) -> Block {
        if bytes < KEPT_MIN {
            return Block { memory: vec![0; bytes.next_power_of_two()], pool: self.clone() };
        }
        let memory = self.recycled(bytes).unwrap_or_else(|| {
            self.0.counters.spill_allocations.add(1);
            vec![0; rounded(bytes)]
        });
        Block { memory, pool: self.clone() }
    }

    /// Takes a block of at least `wanted` bytes if one is kept, and otherwise one of at least `needed`: memory
    /// that may never be used is not taken from the system.
    pub fn take_wanted(&self, needed: usize, wanted: usize) -> Block {
        match (wanted >= KEPT_MIN).then(|| self.recycled(wanted)).flatten() {
            Some(memory) => Block { memory, pool: self.clone() },
            None => self.take(needed),
        }
    }

    /// A copy of `bytes`.
    pub fn copy(&self, bytes: &[u8]) -> Bytes {
        let mut block = self.take(bytes.len());
        block.bytes()[..bytes.len()].copy_from_slice(bytes);
        block.freeze().slice(..bytes.len())
    }

    /// The latest block that fits without wasting too much.
    fn recycled(&self, bytes: usize) -> Option<Vec<u8>> {
        let mut free = self.0.free();
        let fits = |block: &Vec<u8>| (bytes..=2 * rounded(bytes)).contains(&block.len());
        let at = free.blocks.iter().rposition(fits)?;
        let block = free.blocks.remove(at);
        free.kept -= block.len();
        self.0.counters.spill_bytes_kept.subtract(block.len() as u64);
        Some(block)
    }

    /// Keeps a block, or gives it back to the system.
    fn give_back(&self, block: Vec<u8>) {
        let mut free = self.0.free();
        if block.len() >= KEPT_MIN && block.len() <= self.0.limit - free.kept {
            free.kept += block.len();
            self.0.counters.spill_bytes_kept.add(block.len() as u64);
            free.blocks.push(block);
        }
    }
}

impl Shared {
    fn free(&self) -> MutexGuard<'_, Free> {
        // Nothing panics while it is held.
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for SpillPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpillPool").field("limit", &self.0.limit).finish_non_exhaustive()
    }
}

/// The size of a block for `bytes` bytes: at most a quarter more, so that similar messages share blocks.
fn rounded(bytes: usize) -> usize {
    bytes.next_multiple_of((bytes.next_power_of_two() / 8).max(STEP_MIN))
}

/// Memory on loan from a pool, which gets it back when this is dropped.
#[derive(Debug)]
pub struct Block {
    memory: Vec<u8>,
    pool: SpillPool,
}

impl Block {
    /// All of it.
    #[inline]
    pub fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory
    }

    /// How many bytes it has.
    #[inline]
    pub fn length(&self) -> usize {
        self.memory.len()
    }

    /// The pool that it came from.
    pub fn pool(&self) -> &SpillPool {
        &self.pool
    }

    /// The same memory, to be sent. The pool gets it back when all that refers to it is dropped.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Block {
    fn as_ref(&self) -> &[u8] {
        &self.memory
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.pool.give_back(mem::take(&mut self.memory));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(limit: usize) -> (SpillPool, Arc<Counters>) {
        let counters = Arc::<Counters>::default();
        (SpillPool::new(limit, counters.clone()), counters)
    }

    #[test]
    fn memory_that_comes_back_is_taken_again() {
        let (pool, counters) = pool(1 << 20);
        let copy = pool.copy(&[7; 300_000]);
        let address = copy.as_ptr();
        assert_eq!((counters.spill_allocations.value(), counters.spill_bytes_kept.value()), (1, 0));
        let part = copy.slice(100..200);
        drop(copy);
        assert_eq!(counters.spill_bytes_kept.value(), 0, "a part of it is in use");
        drop(part);
        assert_eq!(counters.spill_bytes_kept.value(), rounded(300_000) as u64);
        assert_eq!(pool.take(290_000).as_ref().as_ptr(), address);
        assert_eq!(counters.spill_allocations.value(), 1);
    }

    #[test]
    fn no_more_is_kept_than_the_limit() {
        let (pool, counters) = pool(1 << 20);
        let blocks: Vec<Block> = (0..5).map(|_| pool.take(300_000)).collect();
        let size = blocks[0].length();
        drop(blocks);
        assert_eq!(counters.spill_bytes_kept.value(), ((1 << 20) / size * size) as u64);
        let (pool, counters) = self::pool(0);
        drop(pool.take(300_000));
        assert_eq!(counters.spill_bytes_kept.value(), 0);
    }

    #[test]
    fn a_small_spill_does_not_take_a_large_block() {
        let (pool, counters) = pool(64 << 20);
        drop(pool.take(16 << 20));
        let small = pool.take(KEPT_MIN);
        assert!(small.length() < 2 * KEPT_MIN);
        assert_eq!(pool.take(1).length(), 1);
        assert_eq!(counters.spill_allocations.value(), 2);
    }

    #[test]
    fn what_is_only_wanted_is_not_taken_from_the_system() {
        let (pool, _) = pool(64 << 20);
        assert!(pool.take_wanted(1000, 16 << 20).length() < 2000);
        drop(pool.take(16 << 20));
        assert!(pool.take_wanted(1000, 16 << 20).length() >= 16 << 20);
    }

    #[test]
    fn blocks_waste_at_most_a_quarter() {
        for bytes in [KEPT_MIN, 100_000, (1 << 20) + 526, 16 << 20, 64 << 20] {
            let size = rounded(bytes);
            assert!((bytes..=bytes + bytes / 4).contains(&size), "{bytes}: {size}");
        }
    }
}
