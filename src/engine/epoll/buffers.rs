//! The memory that sockets are read into.
//!
//! Each receive takes the next part of it, as long as the received bytes. Sends are tried immediately, so
//! all leases are back when the pump has looked at what was received, and the memory is used from its
//! beginning again: with few bytes at a time, it stays in the CPU's cache.
//!
//! The memory counts as several buffers, because a lease says where it is by the number of a buffer and
//! 32 bits. No lease reaches from one into the next.

use crate::engine::BufferConfig;
use crate::engine::reply::{Fill, Lease, Pinned};
use crate::memory::Mapping;

/// The memory of one worker, and which part of it is free.
#[derive(Debug)]
pub(super) struct Buffers {
    memory: Mapping,
    /// How much of it is used, in bytes.
    end: usize,
    /// The size of each buffer in bytes.
    size: usize,
    /// The first byte that is not leased, counted from the beginning of the memory.
    free: usize,
    /// Leases that are not back.
    leases: usize,
}

impl Buffers {
    /// Buffers in `memory`, which is large enough.
    pub(super) fn new(memory: Mapping, config: BufferConfig) -> Buffers {
        let end = config.memory_bytes();
        Buffers { memory, end, size: config.bytes as usize, free: 0, leases: 0 }
    }

    /// How many more receives are sure to find room.
    pub(super) fn ready(&self) -> usize {
        (self.end - self.free).div_ceil(self.size)
    }

    /// Where the next receive may put bytes: the rest of a buffer; not empty if any are
    /// [`ready`](Buffers::ready).
    pub(super) fn room(&mut self) -> &mut [u8] {
        let end = (self.free / self.size + 1) * self.size;
        &mut self.memory.bytes()[self.free..end]
    }

    /// Leases the first `received` bytes of the room.
    pub(super) fn lease(&mut self, received: u32) -> Lease {
        let buffer = self.free / self.size;
        let start = (self.free % self.size) as u32;
        let end = start + received;
        let fill = if end as usize == self.size { Fill::Full } else { Fill::Partial };
        self.free += received as usize;
        self.leases += 1;
        Lease::new(buffer as u32, start..end, fill)
    }

    /// The bytes of a lease.
    #[inline]
    pub(super) fn bytes(&mut self, lease: &Lease) -> &mut [u8] {
        &mut self.memory.bytes()[lease.buffer() as usize * self.size..][lease.range()]
    }

    /// The bytes of a reply.
    #[inline]
    pub(super) fn sent(&mut self, reply: &Pinned) -> &[u8] {
        &self.memory.bytes()[reply.lease().buffer() as usize * self.size..][reply.range()]
    }

    /// Takes a lease back.
    #[inline]
    pub(super) fn recycle(&mut self, _lease: Lease) {
        self.leases -= 1;
        if self.leases == 0 {
            self.free = 0;
        }
    }
}
