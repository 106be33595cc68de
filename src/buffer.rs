//! A region of memory in which received bytes become the reply.
//!
//! A region is a slice and five cursors into it:
//!
//! ```text
//! 0 ......... sent ..... ready ..... written ..... unread ..... end
//!   headroom       reply       held           gap        received
//! ```
//!
//! `sent..ready` may be sent. `ready..written` is output that must not be sent yet, because its frame is
//! not whole. `unread..end` has been received and not parsed. The gap is the difference in length between
//! request and reply: a server's frame has no mask.
//!
//! Invariant: `sent <= ready <= written <= unread <= end <= bytes.len()`. A short send, a frame
//! that ends in the middle of its header or a request split anywhere is no special case: a cursor has not
//! moved yet.
//!
//! An echo is never longer than its request. What can be longer is written into a [`Spill`] only: the
//! answer to the opening handshake and a close frame, for which a spill begins with [`HEADROOM`] free
//! bytes, and recompressed messages, for which its gap is widened ([`Spill::widen`]).
//!
//! A spill may have output in earlier blocks, a [`Chain`], in front of the block that its region is in. What is
//! held may begin there, and is released or taken back with what the region holds. While any of it is held,
//! nothing in the region may be sent.
//!
//! This module does not know frames or sockets. Its file `spill` has the region on the heap, `pool` owns the memory
//! of spills, `chain` puts blocks in a row.

mod chain;
mod pool;
mod spill;

pub use self::chain::Chain;
pub use self::pool::{Block, SPILL_POOL_DEFAULT, SpillPool};
pub use self::spill::Spill;

/// Bytes that a spill keeps free before the first received byte, so that what the server adds of its own
/// (the answer to a handshake, a close frame) fits however full the spill is.
pub const HEADROOM: usize = 512;

/// The cursors of a region, apart from its memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursors {
    sent: u32,
    ready: u32,
    written: u32,
    unread: u32,
    end: u32,
}

impl Cursors {
    /// The cursors of a region that holds `received` bytes and nothing else.
    #[inline]
    pub fn received(received: usize) -> Cursors {
        Cursors { sent: 0, ready: 0, written: 0, unread: 0, end: received as u32 }
    }

    /// The cursors of a spill that holds nothing.
    fn spill() -> Cursors {
        let start = HEADROOM as u32;
        Cursors { sent: start, ready: start, written: start, unread: start, end: start }
    }

    /// The cursors after all from `from` on has moved to where a spill begins.
    fn moved(self, from: u32) -> Cursors {
        let moved = |cursor: u32| HEADROOM as u32 + cursor.saturating_sub(from);
        let Cursors { sent, ready, written, unread, end } = self;
        Cursors {
            sent: moved(sent),
            ready: moved(ready),
            written: moved(written),
            unread: moved(unread),
            end: moved(end),
        }
    }

    /// The bytes that may be sent, as positions in the region.
    #[inline]
    pub fn reply(&self) -> std::ops::Range<usize> {
        self.sent as usize..self.ready as usize
    }

    /// Whether the region holds anything that is not yet part of a reply.
    #[inline]
    pub fn has_leftover(&self) -> bool {
        self.leftover_bytes() > 0
    }

    /// Bytes that are not yet part of a reply: those held and those unread.
    #[inline]
    fn leftover_bytes(&self) -> u32 {
        (self.written - self.ready) + (self.end - self.unread)
    }

    #[inline]
    fn check(&self, length: usize) {
        debug_assert!(
            self.sent <= self.ready
                && self.ready <= self.written
                && self.written <= self.unread
                && self.unread <= self.end
                && self.end as usize <= length,
            "{self:?} in {length}"
        );
    }
}

/// A region: memory and the cursors into it.
#[derive(Debug)]
pub struct Region<'a> {
    bytes: &'a mut [u8],
    cursors: &'a mut Cursors,
    /// The earlier output of a spill.
    earlier: Option<&'a mut Chain>,
}

impl<'a> Region<'a> {
    /// Puts memory and cursors together.
    #[inline]
    pub fn new(bytes: &'a mut [u8], cursors: &'a mut Cursors) -> Region<'a> {
        cursors.check(bytes.len());
        Region { bytes, cursors, earlier: None }
    }

    /// The bytes received and not yet parsed.
    #[inline]
    pub fn unread(&self) -> &[u8] {
        &self.bytes[self.cursors.unread as usize..self.cursors.end as usize]
    }

    /// Whether any received bytes are not yet parsed.
    #[inline]
    pub fn has_unread(&self) -> bool {
        self.cursors.unread < self.cursors.end
    }

    /// The output that waits for its frame to be whole. Payload may also wait in earlier blocks of a spill.
    #[inline]
    pub fn held(&self) -> &[u8] {
        &self.bytes[self.cursors.ready as usize..self.cursors.written as usize]
    }

    /// How many bytes can be written without moving any.
    pub fn gap(&self) -> usize {
        (self.cursors.unread - self.cursors.written) as usize
    }

    /// Steps over `count` received bytes without output.
    #[inline]
    pub fn skip(&mut self, count: usize) {
        self.cursors.unread += count as u32;
        self.cursors.check(self.bytes.len());
    }

    /// Steps over all that was received.
    pub fn skip_all(&mut self) {
        self.cursors.unread = self.cursors.end;
    }

    /// All memory up to `end`, with the positions of `written` and `unread`, for a pass that turns unread
    /// bytes into written ones. Call [`Region::moved`] afterwards.
    #[inline]
    pub fn parts(&mut self) -> (&mut [u8], usize, usize) {
        let end = self.cursors.end as usize;
        (&mut self.bytes[..end], self.cursors.written as usize, self.cursors.unread as usize)
    }

    /// Records that `count` bytes from `unread` are now at `written`.
    #[inline]
    pub fn moved(&mut self, count: usize) {
        self.cursors.written += count as u32;
        self.cursors.unread += count as u32;
        self.cursors.check(self.bytes.len());
    }

    /// Records that the reply now ends at `written`, and the unread bytes begin at `unread`.
    #[inline]
    pub fn replied(&mut self, written: usize, unread: usize) {
        self.cursors.ready = written as u32;
        self.cursors.written = written as u32;
        self.cursors.unread = unread as u32;
        self.cursors.check(self.bytes.len());
    }

    /// Writes `output` after what is written. If the gap is too small, the unsent bytes slide into the
    /// headroom.
    ///
    /// # Panics
    ///
    /// When the headroom is used up, or there is none: see the head of this module.
    #[inline]
    pub fn write(&mut self, output: &[u8]) {
        let gap = self.gap();
        if output.len() > gap {
            self.slide_back(output.len() - gap);
        }
        let written = self.cursors.written as usize;
        self.bytes[written..written + output.len()].copy_from_slice(output);
        self.cursors.written += output.len() as u32;
        self.cursors.check(self.bytes.len());
    }

    #[cold]
    fn slide_back(&mut self, count: usize) {
        let Cursors { sent, written, .. } = *self.cursors;
        let target =
            (sent as usize).checked_sub(count).expect("the headroom has room for what is added");
        self.bytes.copy_within(sent as usize..written as usize, target);
        self.cursors.sent -= count as u32;
        self.cursors.ready -= count as u32;
        self.cursors.written -= count as u32;
    }

    /// Lets all that is written be sent.
    #[inline]
    pub fn release(&mut self) {
        self.cursors.ready = self.cursors.written;
        if let Some(earlier) = &mut self.earlier {
            earlier.release();
        }
    }

    /// Takes back the output that waits for its frame to be whole.
    #[inline]
    pub fn retract(&mut self) {
        self.cursors.written = self.cursors.ready;
        if let Some(earlier) = &mut self.earlier {
            earlier.retract();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_fills_the_gap_that_input_left() {
        let mut bytes = b"headpayload".to_vec();
        let mut cursors = Cursors::received(bytes.len());
        let mut region = Region::new(&mut bytes, &mut cursors);
        region.skip(4);
        region.write(b"HE");
        assert_eq!((region.held(), region.unread()), (&b"HE"[..], &b"payload"[..]));
        region.release();
        assert_eq!(&bytes[cursors.reply()], b"HE");
    }
}
