//! Memory on its way between a ring and the pump, and how a send ended.
//!
//! A [`Lease`] is the right to the bytes of one receive, which are a part of a pinned buffer. A ring
//! gives it out and gets it back either as it is or as a [`Reply`]. A reply is cut only from what its
//! lease covers, so no send reaches into the bytes of another receive, or into what an earlier
//! connection left behind.
//!
//! This file does not know where the buffers are.

use std::ops::Range;

use bytes::{Buf as _, Bytes};
use rustix::io::Errno;

/// Whether a receive took all the room that it had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fill {
    /// It did, so there may be more to receive.
    Full,
    /// It did not.
    Partial,
}

/// A part of a pinned buffer on loan from the ring, to be sent or recycled; nothing else gives it back.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub struct Lease {
    buffer: u32,
    start: u32,
    length: u32,
    fill: Fill,
}

impl Lease {
    /// The lease of the part `received` of the buffer with this number. A ring makes no lease of bytes
    /// of which another is not back.
    #[inline]
    pub(in crate::engine) fn new(buffer: u32, received: Range<u32>, fill: Fill) -> Lease {
        Lease { buffer, start: received.start, length: received.end - received.start, fill }
    }

    /// The buffer's number.
    #[inline]
    pub(in crate::engine) fn buffer(&self) -> u32 {
        self.buffer
    }

    /// The part of the buffer.
    #[inline]
    pub(in crate::engine) fn range(&self) -> Range<usize> {
        self.start as usize..(self.start + self.length) as usize
    }

    /// Whether there may be more to receive, because this receive had no room for more.
    #[inline]
    pub fn is_full(&self) -> bool {
        self.fill == Fill::Full
    }
}

/// A part of a lease that is to be sent.
#[derive(Debug)]
pub struct Pinned {
    lease: Lease,
    /// Within the lease.
    range: Range<u32>,
}

impl Pinned {
    /// The bytes of the buffer that are to be sent: always a valid range, and within the lease.
    #[inline]
    pub(in crate::engine) fn range(&self) -> Range<usize> {
        let start = self.lease.start as usize;
        start + self.range.start as usize..start + self.range.end as usize
    }

    /// The lease.
    #[inline]
    pub(in crate::engine) fn lease(&self) -> &Lease {
        &self.lease
    }

    /// The lease, and the part of its bytes that was to be sent.
    pub fn into_parts(self) -> (Lease, Range<usize>) {
        (self.lease, self.range.start as usize..self.range.end as usize)
    }
}

/// Memory to be sent.
#[derive(Debug)]
pub enum Reply {
    /// Received bytes in a pinned buffer; see [`Reply::pinned`].
    Pinned(Pinned),
    /// Memory from the heap, all of it to be sent.
    Heap(Bytes),
}

impl Reply {
    /// The part `range` of the received bytes of a lease.
    ///
    /// # Panics
    ///
    /// When the range is reversed, or ends after what was received.
    #[inline]
    pub fn pinned(lease: Lease, range: Range<usize>) -> Reply {
        assert!(
            range.start <= range.end && range.end <= lease.length as usize,
            "a reply of {range:?} in {lease:?}"
        );
        Reply::Pinned(Pinned { lease, range: range.start as u32..range.end as u32 })
    }

    /// How many bytes are to be sent.
    #[inline]
    pub fn len(&self) -> usize {
        match self {
            Reply::Pinned(pinned) => pinned.range.len(),
            Reply::Heap(bytes) => bytes.len(),
        }
    }

    /// Whether there is nothing to be sent.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How the send of this reply ended, and how many bytes the kernel took, from the kernel's
    /// `result`. A lease that is not needed any more
    /// goes to `recycle`.
    #[inline]
    pub(in crate::engine) fn ended(
        self,
        result: Result<u32, Errno>,
        recycle: impl FnOnce(Lease),
    ) -> (Sent, u32) {
        let (sent, bytes) = match result {
            Ok(bytes) if bytes as usize == self.len() => (Sent::Whole, bytes),
            Err(errno) if breaks_connection(errno) => (Sent::Failed(errno), 0),
            Ok(bytes) => return (self.cut(bytes), bytes),
            Err(_) => return (Sent::Cut(self), 0),
        };
        if let Reply::Pinned(pinned) = self {
            recycle(pinned.lease);
        }
        (sent, bytes)
    }

    /// All but the first `bytes` bytes.
    #[cold]
    fn cut(mut self, bytes: u32) -> Sent {
        match &mut self {
            Reply::Pinned(Pinned { range, .. }) => {
                assert!(bytes as usize <= range.len(), "the kernel took {bytes} of {range:?}");
                range.start += bytes;
            }
            Reply::Heap(heap) => heap.advance(bytes as usize),
        }
        Sent::Cut(self)
    }
}

/// How a send ended.
#[derive(Debug)]
pub enum Sent {
    /// All of it is sent, and its memory is the ring's again.
    Whole,
    /// A part of it is sent, or nothing; this is the rest.
    Cut(Reply),
    /// The connection is broken; the memory is the ring's again.
    Failed(Errno),
}

/// Whether a send that ended with this error can never be continued. The others say that the
/// socket's buffer was full (`EAGAIN`), or that the send was interrupted or cancelled.
#[inline]
pub(in crate::engine) fn breaks_connection(errno: Errno) -> bool {
    !matches!(errno, Errno::AGAIN | Errno::INTR | Errno::CANCELED)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where the leased bytes begin in their buffer.
    const START: usize = 700;

    fn lease() -> Lease {
        Lease::new(3, START as u32..START as u32 + 100, Fill::Partial)
    }

    fn reply() -> Reply {
        Reply::pinned(lease(), 0..96)
    }

    /// How the send of a pinned reply of 96 bytes ends, and whether its buffer comes back.
    fn ended(result: Result<u32, Errno>) -> (Sent, u32, bool) {
        let mut is_back = false;
        let (sent, bytes) = reply().ended(result, |lease| {
            assert_eq!(lease.buffer(), 3);
            is_back = true;
        });
        (sent, bytes, is_back)
    }

    #[test]
    fn a_reply_ends_where_the_received_bytes_end() {
        assert_eq!(Reply::pinned(lease(), 0..100).len(), 100);
    }

    #[test]
    #[should_panic = "a reply of"]
    fn a_reply_does_not_reach_beyond_the_received_bytes() {
        let _ = Reply::pinned(lease(), 0..101);
    }

    #[test]
    #[should_panic = "a reply of"]
    #[expect(clippy::reversed_empty_ranges, reason = "that is what must be refused")]
    fn a_reply_is_not_reversed() {
        let _ = Reply::pinned(lease(), 1..0);
    }

    #[test]
    #[should_panic = "a reply of"]
    fn a_range_that_does_not_fit_32_bits_is_not_cut_off() {
        let _ = Reply::pinned(lease(), 0..1 << 32);
    }

    #[test]
    fn a_whole_send_gives_the_buffer_back() {
        assert!(matches!(ended(Ok(96)), (Sent::Whole, 96, true)));
    }

    #[test]
    fn a_short_send_keeps_the_buffer_for_the_rest() {
        let (Sent::Cut(Reply::Pinned(rest)), 36, false) = ended(Ok(36)) else { panic!("cut") };
        assert_eq!(rest.range(), START + 36..START + 96);
    }

    #[test]
    fn a_send_that_can_be_tried_again_keeps_all() {
        for errno in [Errno::AGAIN, Errno::INTR, Errno::CANCELED] {
            let (Sent::Cut(rest), 0, false) = ended(Err(errno)) else { panic!("{errno}") };
            assert_eq!(rest.len(), 96);
        }
    }

    #[test]
    fn a_broken_connection_gives_the_buffer_back() {
        for errno in [Errno::PIPE, Errno::CONNRESET, Errno::TIMEDOUT] {
            let (sent, bytes, is_back) = ended(Err(errno));
            assert!(matches!(sent, Sent::Failed(failure) if failure == errno));
            assert_eq!((bytes, is_back), (0, true));
        }
    }

    #[test]
    #[should_panic = "the kernel took"]
    fn more_than_the_reply_cannot_have_been_sent() {
        let _ = ended(Ok(97));
    }

    #[test]
    fn the_rest_of_a_heap_reply_is_what_was_not_sent() {
        let reply = Reply::Heap(Bytes::from_static(b"hello"));
        let (Sent::Cut(Reply::Heap(rest)), 2) = reply.ended(Ok(2), |_| panic!("no lease")) else {
            panic!("cut")
        };
        assert_eq!(rest, &b"llo"[..]);
    }
}
