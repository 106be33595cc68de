//! The ring through which the kernel takes buffers to receive into.
//!
//! From Linux 6.15 on the kernel consumes a buffer incrementally: each receive takes the next part of
//! it, as long as the received bytes, until the buffer is used up. So a few large buffers take both
//! many small messages and a few large ones. Before, each receive takes a whole buffer, and the same
//! memory is divided into more of them ([`BufferConfig::divided`]). Linux 6.12 to 6.14 could do it too, but
//! until commit 687b2bae0eff the completions of two receives may change places, and then nothing tells which of
//! them took which part.
//!
//! Invariants that the unsafe blocks rely on:
//!
//! 1. The two mappings hold `count` buffers of `bytes` bytes, and `count` entries. Only the
//!    [`BufferRing`] and the kernel use them, and whoever owns both drops the kernel's ring first.
//! 2. A byte of a buffer is in one of three hands: the kernel's (the buffer's entry lies between the
//!    buffer ring's head and tail, and the byte is not yet consumed), a [`Lease`]'s, or a reply's.
//!    Leases cannot be copied and do not overlap, so only their holder reads or writes their bytes. A
//!    buffer is given back to the kernel when it is used up and none of its bytes is leased.
//! 3. There are as many entries as buffers, a power of two. So when a buffer is given back, the entry at
//!    `tail % count` is not the kernel's.

#![expect(
    unsafe_code,
    reason = "the kernel reads and writes the buffers; see the invariants above"
)]

use std::io;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::Submitter;
use io_uring::types::BufRingEntry;
use rustix::io::Errno;

use crate::engine::BufferConfig;
use crate::engine::reply::{Fill, Lease, Pinned};
use crate::linux;
use crate::memory::Mapping;

/// The id of the only group of buffers.
pub(super) const GROUP: u16 = 0;
/// The first kernel that completes receives in the order in which they took parts of a buffer.
const ORDERED_SINCE: (u32, u32) = (6, 15);
/// `IOU_PBUF_RING_INC` (io_uring_register_buf_ring(3)).
const INCREMENTAL: u16 = 2;

/// How much of a buffer a receive takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Consumption {
    /// As much as it receives.
    Incremental,
    /// All of it.
    Whole,
}

/// What has become of a buffer since it was last given to the kernel.
#[derive(Debug, Clone, Copy, Default)]
struct Use {
    /// Bytes from its beginning that receives have taken.
    consumed: u32,
    /// Leases that are not back.
    leases: u32,
}

/// The ring through which the kernel takes buffers (io_uring_register_buf_ring(3)), and the
/// buffers.
#[derive(Debug)]
pub(super) struct BufferRing {
    consumption: Consumption,
    config: BufferConfig,
    memory: Mapping,
    entries: Mapping,
    uses: Vec<Use>,
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
    pub(super) fn new(config: BufferConfig, consumption: Consumption) -> io::Result<BufferRing> {
        assert!(config.count.is_power_of_two() && config.bytes > 0, "checked before: {config:?}");
        let config = match consumption {
            Consumption::Incremental => config,
            Consumption::Whole => config.divided(),
        };
        let mut ring = BufferRing {
            consumption,
            config,
            memory: Mapping::new(config.memory_bytes())?,
            entries: Mapping::new(config.entries_bytes())?,
            uses: vec![Use::default(); config.count.into()],
            tail: 0,
            ready: 0,
        };
        for id in 0..config.count {
            ring.give(id);
        }
        Ok(ring)
    }

    /// A ring that is registered with the kernel, with incremental consumption if the kernel is right about it.
    /// The kernel's ring must be gone before this one is dropped.
    ///
    /// # Errors
    ///
    /// The first error is that of taking memory, the second that of the registration.
    pub(super) fn registered(
        config: BufferConfig,
        submitter: &Submitter<'_>,
    ) -> io::Result<io::Result<BufferRing>> {
        if linux::running_version().is_some_and(|version| version >= ORDERED_SINCE) {
            let ring = BufferRing::new(config, Consumption::Incremental)?;
            match ring.register(submitter) {
                Ok(()) => return Ok(Ok(ring)),
                Err(error) if Errno::from_io_error(&error) == Some(Errno::INVAL) => drop(ring),
                Err(error) => return Ok(Err(error)),
            }
        }
        let ring = BufferRing::new(config, Consumption::Whole)?;
        Ok(ring.register(submitter).map(|()| ring))
    }

    /// Gives the buffers to the kernel.
    fn register(&self, submitter: &Submitter<'_>) -> io::Result<()> {
        let entries = self.entries.start().as_ptr() as u64;
        let flags = match self.consumption {
            Consumption::Incremental => INCREMENTAL,
            Consumption::Whole => 0,
        };
        // SAFETY: invariant 1; the mapping is page-aligned.
        unsafe { submitter.register_buf_ring_with_flags(entries, self.config.count, GROUP, flags) }
    }

    /// Whether neither the buffers nor the ring can be swapped out.
    pub(super) fn is_locked(&self) -> bool {
        self.memory.is_locked() && self.entries.is_locked()
    }

    /// How many receives are sure to find memory; if the kernel consumes incrementally, each of them
    /// may use up a buffer.
    pub(super) fn ready(&self) -> usize {
        self.ready
    }

    /// Where a reply begins. All of it lies within its lease.
    #[inline]
    pub(super) fn start_of(&self, reply: &Pinned) -> *const u8 {
        self.address(reply.lease().buffer(), reply.range().start).cast_const()
    }

    /// Where a byte of a buffer is.
    #[inline]
    fn address(&self, buffer: u32, offset: usize) -> *mut u8 {
        assert!(buffer < self.config.count.into() && offset <= self.config.bytes as usize);
        let offset = buffer as usize * self.config.bytes as usize + offset;
        // SAFETY: invariant 1 and the assertion.
        unsafe { self.memory.start().as_ptr().add(offset) }
    }

    /// The received bytes of a lease.
    #[inline]
    pub(super) fn bytes<'b>(&'b mut self, lease: &'b mut Lease) -> &'b mut [u8] {
        let range = lease.range();
        assert!(range.end <= self.config.bytes as usize);
        let address = self.address(lease.buffer(), range.start);
        // SAFETY: invariant 2 and the assertion; the borrow of the lease lasts as long as that of its
        // bytes.
        unsafe { std::slice::from_raw_parts_mut(address, range.len()) }
    }

    /// Takes a lease back.
    #[inline]
    pub(super) fn recycle(&mut self, lease: Lease) {
        let used = &mut self.uses[lease.buffer() as usize];
        used.leases -= 1;
        if used.leases == 0 && used.consumed == self.config.bytes {
            *used = Use::default();
            self.give(lease.buffer() as u16);
        }
    }

    /// Gives a buffer to the kernel.
    fn give(&mut self, id: u16) {
        let position = usize::from(self.tail & (self.config.count - 1));
        let address = self.address(id.into(), 0) as u64;
        let entries = self.entries.start().as_ptr().cast::<BufRingEntry>();
        // SAFETY: invariant 1, and the position is below `count`.
        let entry = unsafe { entries.add(position) };
        // SAFETY: invariant 3. The fields are written one by one, because the last field of the first
        // entry is the tail, which the kernel reads.
        let entry = unsafe { &mut *entry };
        entry.set_addr(address);
        entry.set_len(self.config.bytes);
        entry.set_bid(id);
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

    /// Notes that a receive took `received` bytes of a buffer: the next ones, because completions come
    /// in the order in which the kernel filled the buffer.
    #[inline]
    pub(super) fn lease(&mut self, id: u16, received: u32) -> Lease {
        let used = &mut self.uses[usize::from(id)];
        let start = used.consumed;
        let end = start + received;
        assert!(end <= self.config.bytes, "{received} bytes after {start} in a buffer");
        let fill = if end == self.config.bytes { Fill::Full } else { Fill::Partial };
        used.leases += 1;
        used.consumed = match self.consumption {
            Consumption::Incremental => end,
            Consumption::Whole => self.config.bytes,
        };
        self.ready -= usize::from(used.consumed == self.config.bytes);
        Lease::new(id.into(), start..end, fill)
    }
}
