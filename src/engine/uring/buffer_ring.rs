//! The ring through which the kernel takes buffers to receive into.
//!
//! Invariants that the unsafe blocks rely on:
//!
//! 1. The two mappings hold `count` buffers of `octets` octets and `count` entries, and are
//!    borrowed by the [`BufferRing`], which is their only user beside the kernel. They are dropped
//!    after the kernel's ring.
//! 2. A buffer is in one of three hands: the kernel's (its entry lies between the buffer ring's
//!    head and tail), a [`Lease`]'s, or a reply's. Leases cannot be copied, so only their holder
//!    reads or writes the buffer.
//! 3. The buffer ring has `count` entries, a power of two; the entry of position `tail % count` is
//!    never one that the kernel may read, because there are `count` buffers in all.

#![expect(
    unsafe_code,
    reason = "the kernel reads and writes the buffers; see the invariants above"
)]

use std::io;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::Submitter;
use io_uring::types::BufRingEntry;

use crate::buffer::HEADROOM;
use crate::engine::BufferConfig;
use crate::engine::reply::{Lease, Pinned};
use crate::memory::Mapping;

/// The one group of buffers.
pub(super) const GROUP: u16 = 0;

/// The ring by which the kernel takes buffers to receive into (io_uring_register_buf_ring(3)).
#[derive(Debug)]
pub(super) struct BufferRing<'a> {
    config: BufferConfig,
    memory: *mut u8,
    entries: *mut BufRingEntry,
    mappings: PhantomData<&'a mut Mapping>,
    tail: u16,
    /// Buffers in the kernel's hands.
    pub(super) ready: usize,
}

impl<'a> BufferRing<'a> {
    /// A ring with all its buffers in the kernel's hands.
    pub(super) fn new(
        config: BufferConfig,
        memory: &'a mut Mapping,
        entries: &'a mut Mapping,
    ) -> BufferRing<'a> {
        let entries = entries.start().as_ptr().cast::<BufRingEntry>();
        let mut ring = BufferRing {
            config,
            memory: memory.start().as_ptr(),
            entries,
            mappings: PhantomData,
            tail: 0,
            ready: 0,
        };
        for id in 0..config.count {
            ring.recycle(Lease::new(id.into(), 0));
        }
        ring
    }

    /// Gives them to the kernel. The mappings must be dropped after the ring.
    pub(super) fn register(&self, submitter: &Submitter<'_>) -> io::Result<()> {
        let entries = self.entries as u64;
        // SAFETY: the mapping holds `count` entries, page-aligned, and invariant 1.
        unsafe { submitter.register_buf_ring_with_flags(entries, self.config.count, GROUP, 0) }
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
        unsafe { self.memory.add(lease.buffer() as usize * self.config.octets as usize) }
    }

    #[inline]
    pub(super) fn bytes<'b>(&'b mut self, lease: &'b mut Lease) -> &'b mut [u8] {
        let address = self.address(lease);
        // SAFETY: invariant 2; the borrow of the lease lasts as long as that of its memory.
        unsafe { std::slice::from_raw_parts_mut(address, self.config.octets as usize) }
    }

    #[inline]
    pub(super) fn recycle(&mut self, lease: Lease) {
        let position = usize::from(self.tail & (self.config.count - 1));
        let address = self.address(&lease) as u64;
        // SAFETY: the mapping holds `count` entries, and the position is below that.
        let entry = unsafe { self.entries.add(position) };
        // SAFETY: invariant 3. The fields are written one by one: the last one of the first entry
        // is the tail, which the kernel reads.
        let entry = unsafe { &mut *entry };
        entry.set_addr(address + HEADROOM as u64);
        entry.set_len(self.config.octets - HEADROOM as u32);
        entry.set_bid(lease.buffer() as u16);
        self.tail = self.tail.wrapping_add(1);
        // The entry must be there before the tail says so.
        // SAFETY: the mapping was zeroed, holds at least one entry, and is page-aligned.
        let tail = unsafe { BufRingEntry::tail(self.entries) };
        // SAFETY: the tail lies in the first entry, aligned to its two octets, and no reference to
        // that entry is left.
        let tail = unsafe { AtomicU16::from_ptr(tail.cast_mut()) };
        tail.store(self.tail, Ordering::Release);
        self.ready += 1;
    }

    /// Notes that the kernel took a buffer and put `received` bytes into it.
    #[inline]
    pub(super) fn lease(&mut self, id: u16, received: u32) -> Lease {
        assert!(HEADROOM as u32 + received <= self.config.octets, "{received} bytes in a buffer");
        self.ready -= 1;
        Lease::new(id.into(), received)
    }
}
