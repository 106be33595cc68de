//! Memory on its way between a ring and the pump, and how a send ended.
//!
//! A [`Lease`] is the right to one pinned buffer. A ring gives it out together with the bytes that
//! it received, and gets it back either as it is or as a [`Reply`]. A lease remembers where the
//! bytes in its buffer end, and a reply is cut from it only up to there, so no send reaches into
//! the neighbouring buffer or into what an earlier connection left behind in this one.
//!
//! This file does not know where the buffers are.

use std::ops::Range;

use bytes::{Buf as _, BytesMut};
use rustix::io::Errno;

use crate::buffer::HEADROOM;

/// A pinned buffer on loan from the ring, to be sent or recycled; nothing else gives it back.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub struct Lease {
    buffer: u32,
    /// Bytes from the beginning of the buffer to the end of what was received.
    filled: u32,
}

impl Lease {
    /// The lease of the buffer with this number, into which the ring received `received` bytes
    /// after the headroom. A ring makes no second lease of a buffer before the first is back.
    #[inline]
    pub(in crate::engine) fn new(buffer: u32, received: u32) -> Lease {
        Lease { buffer, filled: HEADROOM as u32 + received }
    }

    /// The buffer's number.
    #[inline]
    pub(in crate::engine) fn buffer(&self) -> u32 {
        self.buffer
    }
}

/// A part of a pinned buffer that is to be sent.
#[derive(Debug)]
pub struct Pinned {
    lease: Lease,
    range: Range<u32>,
}

impl Pinned {
    /// The bytes of the leased buffer that are to be sent: always a valid range, which ends no
    /// later than what was received into the buffer.
    #[inline]
    pub(in crate::engine) fn range(&self) -> Range<usize> {
        self.range.start as usize..self.range.end as usize
    }

    /// The lease of the buffer.
    #[inline]
    pub(in crate::engine) fn lease(&self) -> &Lease {
        &self.lease
    }

    /// The lease, and the part of its buffer that was to be sent.
    pub fn into_parts(self) -> (Lease, Range<usize>) {
        let range = self.range();
        (self.lease, range)
    }
}

/// Memory to be sent.
#[derive(Debug)]
pub enum Reply {
    /// A part of a pinned buffer; see [`Reply::pinned`].
    Pinned(Pinned),
    /// Memory from the heap, all of it to be sent.
    Heap(BytesMut),
}

impl Reply {
    /// The part `range` of a leased buffer. It may begin in the headroom, where a reply is put that
    /// is longer than its request.
    ///
    /// # Panics
    ///
    /// When the range is reversed, or ends after what was received into the buffer.
    #[inline]
    pub fn pinned(lease: Lease, range: Range<usize>) -> Reply {
        assert!(
            range.start <= range.end && range.end <= lease.filled as usize,
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

    const START: usize = HEADROOM;

    fn reply() -> Reply {
        Reply::pinned(Lease::new(3, 100), START..START + 96)
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
        assert_eq!(Reply::pinned(Lease::new(0, 100), START..START + 100).len(), 100);
        assert_eq!(Reply::pinned(Lease::new(0, 0), 0..START).len(), START);
    }

    #[test]
    #[should_panic = "a reply of"]
    fn a_reply_does_not_reach_beyond_the_received_bytes() {
        let _ = Reply::pinned(Lease::new(0, 100), START..START + 101);
    }

    #[test]
    #[should_panic = "a reply of"]
    #[expect(clippy::reversed_empty_ranges, reason = "that is what must be refused")]
    fn a_reply_is_not_reversed() {
        let _ = Reply::pinned(Lease::new(0, 100), START + 1..START);
    }

    #[test]
    #[should_panic = "a reply of"]
    fn a_range_that_does_not_fit_32_bits_is_not_cut_off() {
        let _ = Reply::pinned(Lease::new(0, 100), START..(1 << 32) + START);
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
        let reply = Reply::Heap(BytesMut::from(&b"hello"[..]));
        let (Sent::Cut(Reply::Heap(rest)), 2) = reply.ended(Ok(2), |_| panic!("no lease")) else {
            panic!("cut")
        };
        assert_eq!(rest, &b"llo"[..]);
    }
}
