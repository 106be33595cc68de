//! The ring through which the kernel takes buffers to receive into.
//!
//! Invariants that the unsafe blocks rely on:
//!
//! 1. The two mappings hold `count` buffers of `bytes` bytes and `count` entries. Only the
//!    [`BufferRing`] and the kernel use them, and whoever owns both drops the kernel's ring first.
//! 2. A buffer is in one of three hands: the kernel's (its entry lies between the buffer ring's
//!    head and tail), a [`Lease`]'s, or a reply's. Leases cannot be copied, so only their holder
//!    reads or writes the buffer.
//! 3. There are `count` entries, a power of two, and `count` buffers. So when a buffer is given back,
//!    fewer than `count` entries are the kernel's, and the one at `tail % count` is not.

#![expect(
    unsafe_code,
    reason = "the kernel reads and writes the buffers; see the invariants above"
)]

use std::io;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::Submitter;
use io_uring::types::BufRingEntry;

use crate::buffer::HEADROOM;
use crate::engine::BufferConfig;
use crate::engine::reply::{Lease, Pinned};
use crate::memory::Mapping;

/// The id of the only group of buffers.
pub(super) const GROUP: u16 = 0;

/// The ring through which the kernel takes buffers (io_uring_register_buf_ring(3)), and the
/// buffers.
#[derive(Debug)]
pub(super) struct BufferRing {
    config: BufferConfig,
    memory: Mapping,
    entries: Mapping,
    tail: u16,
    /// Buffers in the kernel's hands.
    ready: usize,
}

impl BufferRing {
    /// A ring that holds all buffers, ready to be registered.
    ///
    /// # Errors
    ///
    /// When there is not that much memory.
    pub(super) fn new(config: BufferConfig) -> io::Result<BufferRing> {
        let is_valid = config.count.is_power_of_two() && config.bytes as usize > HEADROOM;
        assert!(is_valid, "checked by the caller: {config:?}");
        let mut ring = BufferRing {
            config,
            memory: Mapping::new(config.memory_bytes())?,
            entries: Mapping::new(config.entries_bytes())?,
            tail: 0,
            ready: 0,
        };
        for id in 0..config.count {
            ring.recycle(Lease::new(id.into(), 0));
        }
        Ok(ring)
    }

    /// Gives the buffers to the kernel. The kernel's ring must be gone before this one is dropped.
    pub(super) fn register(&self, submitter: &Submitter<'_>) -> io::Result<()> {
        let entries = self.entries.start().as_ptr() as u64;
        // SAFETY: invariant 1; the mapping is page-aligned.
        unsafe { submitter.register_buf_ring_with_flags(entries, self.config.count, GROUP, 0) }
    }

    /// Whether neither the buffers nor the ring can be swapped out.
    pub(super) fn is_locked(&self) -> bool {
        self.memory.is_locked() && self.entries.is_locked()
    }

    /// How many buffers the kernel has ready for receiving.
    pub(super) fn ready(&self) -> usize {
        self.ready
    }

    /// Where a reply begins. All of it lies in its buffer, and ends where what was received ends.
    #[inline]
    pub(super) fn start_of(&self, reply: &Pinned) -> *const u8 {
        self.address(reply.lease()).wrapping_add(reply.range().start).cast_const()
    }

    /// Where a buffer begins.
    #[inline]
    fn address(&self, lease: &Lease) -> *mut u8 {
        assert!(lease.buffer() < self.config.count.into());
        // SAFETY: invariant 1 and the assertion.
        unsafe {
            self.memory.start().as_ptr().add(lease.buffer() as usize * self.config.bytes as usize)
        }
    }

    #[inline]
    pub(super) fn bytes<'b>(&'b mut self, lease: &'b mut Lease) -> &'b mut [u8] {
        let address = self.address(lease);
        // SAFETY: invariant 2; the borrow of the lease lasts as long as that of its memory.
        unsafe { std::slice::from_raw_parts_mut(address, self.config.bytes as usize) }
    }

    #[inline]
    pub(super) fn recycle(&mut self, lease: Lease) {
        let position = usize::from(self.tail & (self.config.count - 1));
        let address = self.address(&lease) as u64;
        let entries = self.entries.start().as_ptr().cast::<BufRingEntry>();
        // SAFETY: invariant 1, and the position is below `count`.
        let entry = unsafe { entries.add(position) };
        // SAFETY: invariant 3. The fields are written one by one, because the last field of the first
        // entry is the tail, which the kernel reads.
        let entry = unsafe { &mut *entry };
        entry.set_addr(address + HEADROOM as u64);
        entry.set_len(self.config.bytes - HEADROOM as u32);
        entry.set_bid(lease.buffer() as u16);
        self.tail = self.tail.wrapping_add(1);
        // The kernel must see the entry before the tail.
        // SAFETY: invariant 1; the mapping was zeroed, holds at least one entry, and is page-aligned.
        let tail = unsafe { BufRingEntry::tail(entries) };
        // SAFETY: invariant 1; the tail lies in the first entry, aligned to its two bytes, and no
        // reference to that entry is left.
        let tail = unsafe { AtomicU16::from_ptr(tail.cast_mut()) };
        tail.store(self.tail, Ordering::Release);
        self.ready += 1;
    }

    /// Notes that the kernel took a buffer and put `received` bytes into it.
    #[inline]
    pub(super) fn lease(&mut self, id: u16, received: u32) -> Lease {
        assert!(HEADROOM as u32 + received <= self.config.bytes, "{received} bytes in a buffer");
        self.ready -= 1;
        Lease::new(id.into(), received)
    }
}
