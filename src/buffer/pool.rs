//! The memory of spills, recycled.
//!
//! Memory that is mapped, touched and unmapped for each message costs a page fault for each 4 KiB. So a
//! worker keeps what its spills have given back, up to a limit, and takes from there first.
//!
//! Blocks have few sizes, so that messages of all lengths share them: [`BLOCK`], halves of it, and multiples.
//!
//! Invariant: the blocks in `free` hold `kept` bytes, at most `limit`.

use std::collections::BTreeMap;
use std::fmt;
use std::mem;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::HEADROOM;
use crate::metrics::Counters;

/// The most bytes that a pool keeps unless told otherwise: two of the largest messages of 64 MiB.
pub const SPILL_POOL_DEFAULT: usize = 128 << 20;
/// The size of a large block, in bytes. Beside the headroom, it has room for the larger piece that a heavy
/// connection receives and sends at a time.
const BLOCK: usize = (272 << 10) + HEADROOM;
/// The smallest block that is kept, in bytes. The allocator recycles smaller ones without page faults.
const KEPT_MIN: usize = 16 << 10;

/// The memory that the spills of one worker have given back.
///
/// One thread uses it, so its lock is always free. It has one because [`Bytes::from_owner`] asks that the
/// owner could be sent to another thread.
#[derive(Clone)]
pub struct SpillPool(Arc<Shared>);

struct Shared {
    limit: usize,
    block: usize,
    free: Mutex<Free>,
    /// Bytes that were taken from the allocator and not given back to it.
    taken: AtomicUsize,
    counters: Arc<Counters>,
}

#[derive(Default)]
struct Free {
    /// By size. The latest last: it is the likeliest to be in the CPU's cache.
    blocks: BTreeMap<usize, Vec<Vec<u8>>>,
    kept: usize,
}

impl SpillPool {
    /// A pool that keeps at most `limit` bytes, and counts what it does.
    pub fn new(limit: usize, counters: Arc<Counters>) -> SpillPool {
        SpillPool::with_block(limit, BLOCK, counters)
    }

    /// The same, but a large block has `block` bytes.
    pub fn with_block(limit: usize, block: usize, counters: Arc<Counters>) -> SpillPool {
        let (free, taken) = (Mutex::default(), AtomicUsize::new(0));
        SpillPool(Arc::new(Shared { limit, block, free, taken, counters }))
    }

    /// The size of a large block, in bytes.
    #[inline]
    pub fn block(&self) -> usize {
        self.0.block
    }

    /// Takes a block of at least `bytes` bytes, whatever is in them.
    pub fn take(&self, bytes: usize) -> Block {
        // What would be kept when it comes back is looked for here first, or it would be kept in vain.
        let small = bytes.next_power_of_two();
        if small < KEPT_MIN {
            return Block { memory: self.allocated(small), pool: self.clone() };
        }
        let memory = self.recycled(bytes).unwrap_or_else(|| {
            self.0.counters.spill_allocations.add(1);
            self.allocated(self.0.rounded(bytes))
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

    /// All bytes that it has taken from the allocator: of blocks that are in use, and of those that are kept.
    #[inline]
    pub fn bytes(&self) -> usize {
        self.0.taken.load(Relaxed)
    }

    /// Gives back all blocks that are kept.
    pub fn trim(&self) {
        let mut free = self.0.free();
        let kept = mem::take(&mut *free).kept;
        self.0.counters.spill_bytes_kept.subtract(kept as u64);
        self.0.taken.fetch_sub(kept, Relaxed);
    }

    fn allocated(&self, bytes: usize) -> Vec<u8> {
        self.0.taken.fetch_add(bytes, Relaxed);
        vec![0; bytes]
    }

    /// A copy of `bytes`.
    pub fn copy(&self, bytes: &[u8]) -> Bytes {
        let mut block = self.take(bytes.len());
        block.bytes()[..bytes.len()].copy_from_slice(bytes);
        block.freeze().slice(..bytes.len())
    }

    /// A block that fits without wasting too much.
    fn recycled(&self, bytes: usize) -> Option<Vec<u8>> {
        let mut free = self.0.free();
        let mut fitting = free.blocks.range_mut(bytes..=2 * self.0.rounded(bytes));
        let block = fitting.find_map(|(_, blocks)| blocks.pop())?;
        free.kept -= block.len();
        self.0.counters.spill_bytes_kept.subtract(block.len() as u64);
        Some(block)
    }

    /// Keeps a block, or gives it back to the system.
    fn give_back(&self, block: Vec<u8>) {
        let mut free = self.0.free();
        let size = block.len();
        if size >= KEPT_MIN && size <= self.0.limit - free.kept {
            free.kept += size;
            self.0.counters.spill_bytes_kept.add(size as u64);
            free.blocks.entry(size).or_default().push(block);
        } else {
            self.0.taken.fetch_sub(size, Relaxed);
        }
    }
}

impl Shared {
    fn free(&self) -> MutexGuard<'_, Free> {
        // Nothing panics while it is held.
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The size of a block for `bytes` bytes: a large block, half of one and so on, or several of them.
    fn rounded(&self, bytes: usize) -> usize {
        match self.block / bytes.max(1) {
            0 => bytes.next_multiple_of(self.block),
            fits => self.block >> fits.ilog2(),
        }
    }
}

impl fmt::Debug for SpillPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpillPool").field("limit", &self.0.limit).finish_non_exhaustive()
    }
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
    fn blocks_around_the_smallest_that_is_kept_are_taken_again() {
        for bytes in [KEPT_MIN / 2, KEPT_MIN / 2 + 1, KEPT_MIN - 1, KEPT_MIN, KEPT_MIN + 1] {
            let (pool, counters) = pool(SPILL_POOL_DEFAULT);
            for _ in 0..10 {
                assert!(pool.take(bytes).length() >= bytes);
            }
            let kept = counters.spill_bytes_kept.value();
            assert!(kept <= 2 * KEPT_MIN as u64, "{kept} bytes are kept of ten times {bytes}");
            assert_eq!(pool.bytes() as u64, kept);
        }
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
        assert_eq!(counters.spill_bytes_kept.value(), 2 * BLOCK as u64);
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
    fn what_is_kept_counts_until_it_is_given_up() {
        let (pool, counters) = pool(64 << 20);
        let blocks = [pool.take(100), pool.take(300_000)];
        assert_eq!(pool.bytes(), 128 + 2 * BLOCK);
        drop(blocks);
        assert_eq!(pool.bytes(), 2 * BLOCK);
        let block = pool.take(300_000);
        assert_eq!(pool.bytes(), 2 * BLOCK);
        pool.trim();
        assert_eq!(pool.bytes(), 2 * BLOCK, "it is in use");
        drop(block);
        pool.trim();
        assert_eq!((pool.bytes(), counters.spill_bytes_kept.value()), (0, 0));
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
    fn blocks_are_halves_or_multiples_of_a_large_one() {
        let (pool, _) = pool(0);
        for (bytes, size) in [
            (KEPT_MIN, BLOCK / 16),
            (BLOCK / 16 + 1, BLOCK / 8),
            (64 << 10, BLOCK / 4),
            (BLOCK / 2, BLOCK / 2),
            (BLOCK / 2 + 1, BLOCK),
            (BLOCK, BLOCK),
            (BLOCK + 1, 2 * BLOCK),
            ((16 << 20) + 10, 61 * BLOCK),
        ] {
            assert_eq!(pool.take(bytes).length(), size, "{bytes}");
        }
    }
}
