//! The pinned buffers: what they hold, and who owns them.
//!
//! A buffer is in one [`Place`] at a time; every move names the place that it comes from, which is checked.
//! This file does not know which operation a buffer serves.

use std::collections::VecDeque;

use crate::buffer::HEADROOM;
use crate::engine::ring::Lease;

/// Where a buffer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Ready,
    Completion,
    Lease,
    Reply,
}

#[derive(Debug)]
pub(super) struct Buffers {
    memory: Vec<Vec<u8>>,
    places: Vec<Place>,
    /// Those that are ready, in the order in which they are taken.
    ready: VecDeque<u16>,
    /// Bytes received that one of them takes.
    capacity: usize,
}

impl Buffers {
    pub(super) fn new(count: usize, capacity: usize) -> Buffers {
        let mut buffers =
            Buffers { memory: Vec::new(), places: Vec::new(), ready: VecDeque::new(), capacity };
        (0..count).for_each(|_| buffers.add());
        buffers
    }

    /// Makes one more.
    pub(super) fn add(&mut self) {
        self.ready.push_back(self.memory.len() as u16);
        self.places.push(Place::Ready);
        self.memory.push(vec![0xa5; HEADROOM + self.capacity]);
    }

    pub(super) fn len(&self) -> usize {
        self.memory.len()
    }

    /// Buffers that are in this place.
    pub(super) fn count(&self, place: Place) -> usize {
        self.places.iter().filter(|&&other| other == place).count()
    }

    pub(super) fn is_one_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Takes a buffer that is ready, for a completion.
    pub(super) fn take(&mut self) -> Option<Lease> {
        self.take_with(0)
    }

    /// Takes a buffer that is ready, for a completion, and puts bytes into it.
    pub(super) fn fill(&mut self, bytes: &[u8]) -> Option<Lease> {
        let lease = self.take_with(bytes.len())?;
        self.memory[lease.buffer() as usize][HEADROOM..HEADROOM + bytes.len()]
            .copy_from_slice(bytes);
        Some(lease)
    }

    fn take_with(&mut self, bytes: usize) -> Option<Lease> {
        let lease = Lease::new(self.ready.pop_front()?.into(), bytes as u32);
        self.pass(&lease, Place::Ready, Place::Completion);
        Some(lease)
    }

    /// The buffer goes from one place to another.
    pub(super) fn pass(&mut self, lease: &Lease, from: Place, to: Place) {
        let place = &mut self.places[lease.buffer() as usize];
        assert_eq!(*place, from, "buffer {} goes to {to:?} from elsewhere", lease.buffer());
        *place = to;
    }

    /// The buffer is ready again.
    pub(super) fn recycle(&mut self, lease: Lease, from: Place) {
        self.pass(&lease, from, Place::Ready);
        self.ready.push_back(lease.buffer() as u16);
    }

    pub(super) fn bytes(&self, lease: &Lease) -> &[u8] {
        &self.memory[lease.buffer() as usize]
    }

    /// The bytes of a buffer that is on loan.
    pub(super) fn bytes_mut(&mut self, lease: &Lease) -> &mut [u8] {
        assert_eq!(
            self.places[lease.buffer() as usize],
            Place::Lease,
            "a look at another's buffer"
        );
        &mut self.memory[lease.buffer() as usize]
    }
}
