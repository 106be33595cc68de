//! The pinned buffers: what they hold, and who owns it.
//!
//! A receive takes a part of a buffer, or all of it, as the kernel does before Linux 6.15. What it took is
//! in one [`Place`] at a time; every move names the place that it comes from, which is checked. A buffer is
//! ready again when it is used up and nothing of it is elsewhere. This file does not know which operation a
//! buffer serves.

use std::collections::VecDeque;

use crate::engine::ring::{Fill, Lease};

/// Where the bytes of a receive are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Completion,
    Lease,
    Reply,
}

#[derive(Debug)]
struct Buffer {
    memory: Vec<u8>,
    /// Bytes from its beginning that receives have taken.
    consumed: usize,
    /// What they took and is not back: where it begins, and where it is.
    taken: Vec<(usize, Place)>,
}

#[derive(Debug)]
pub(super) struct Buffers {
    buffers: Vec<Buffer>,
    /// Those that are ready, in the order in which they are used.
    ready: VecDeque<u16>,
    /// The size of each in bytes.
    capacity: usize,
    /// A receive takes no more than it brings.
    is_incremental: bool,
}

impl Buffers {
    pub(super) fn new(count: usize, capacity: usize, is_incremental: bool) -> Buffers {
        let ready = VecDeque::new();
        let mut buffers = Buffers { buffers: Vec::new(), ready, capacity, is_incremental };
        (0..count).for_each(|_| buffers.add());
        buffers
    }

    /// Makes one more.
    pub(super) fn add(&mut self) {
        self.ready.push_back(self.buffers.len() as u16);
        let memory = vec![0xa5; self.capacity];
        self.buffers.push(Buffer { memory, consumed: 0, taken: Vec::new() });
    }

    pub(super) fn len(&self) -> usize {
        self.buffers.len()
    }

    /// Receives whose bytes are in this place.
    pub(super) fn count(&self, place: Place) -> usize {
        let taken = self.buffers.iter().flat_map(|buffer| &buffer.taken);
        taken.filter(|&&(_, other)| other == place).count()
    }

    /// Buffers that are ready.
    pub(super) fn ready(&self) -> usize {
        self.ready.len()
    }

    /// Buffers that are ready as far as the pump knows, which has not seen all completions.
    pub(super) fn seem_ready(&self) -> usize {
        let is_completion = |&(_, place): &(usize, Place)| place == Place::Completion;
        let used_up = self.buffers.iter().filter(|buffer| buffer.consumed == self.capacity);
        let unseen = used_up.filter(|buffer| buffer.taken.iter().any(is_completion));
        self.ready() + unseen.count()
    }

    /// How many bytes the next receive may take; 0 if no buffer is ready.
    pub(super) fn room(&self) -> usize {
        self.ready.front().map_or(0, |&id| self.capacity - self.buffers[usize::from(id)].consumed)
    }

    /// Takes a byte of a buffer that is ready, for a completion.
    pub(super) fn take(&mut self) -> Option<Lease> {
        self.fill(&[0])
    }

    /// Takes as much as it needs of the first buffer that is ready, for a completion with these bytes.
    pub(super) fn fill(&mut self, bytes: &[u8]) -> Option<Lease> {
        let id = *self.ready.front()?;
        let buffer = &mut self.buffers[usize::from(id)];
        let start = buffer.consumed;
        let end = start + bytes.len();
        buffer.memory[start..end].copy_from_slice(bytes);
        buffer.taken.push((start, Place::Completion));
        buffer.consumed = if self.is_incremental { end } else { self.capacity };
        if buffer.consumed == self.capacity {
            self.ready.pop_front();
        }
        let fill = if end == self.capacity { Fill::Full } else { Fill::Partial };
        Some(Lease::new(id.into(), start as u32..end as u32, fill))
    }

    /// The bytes go from one place to another.
    pub(super) fn pass(&mut self, lease: &Lease, from: Place, to: Place) {
        let (_, place) = self.buffers[lease.buffer() as usize]
            .taken
            .iter_mut()
            .find(|(start, _)| *start == lease.range().start)
            .expect("they are not back");
        assert_eq!(*place, from, "{lease:?} goes to {to:?} from elsewhere");
        *place = to;
    }

    /// The bytes are back.
    pub(super) fn recycle(&mut self, lease: Lease, from: Place) {
        self.pass(&lease, from, from);
        let buffer = &mut self.buffers[lease.buffer() as usize];
        buffer.taken.retain(|&(start, _)| start != lease.range().start);
        if buffer.consumed == self.capacity && buffer.taken.is_empty() {
            buffer.consumed = 0;
            self.ready.push_back(lease.buffer() as u16);
        }
    }

    /// The bytes of a lease.
    pub(super) fn bytes(&self, lease: &Lease) -> &[u8] {
        &self.buffers[lease.buffer() as usize].memory[lease.range()]
    }

    /// The bytes of a lease that the pump holds.
    pub(super) fn bytes_mut(&mut self, lease: &Lease) -> &mut [u8] {
        self.pass(lease, Place::Lease, Place::Lease);
        &mut self.buffers[lease.buffer() as usize].memory[lease.range()]
    }
}
