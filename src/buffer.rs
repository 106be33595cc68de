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
//! This module does not know frames or sockets. Its file `pool` owns the memory of spills.

mod pool;

use bytes::Bytes;

pub use self::pool::{Block, SPILL_POOL_DEFAULT, SpillPool};

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
}

impl<'a> Region<'a> {
    /// Puts memory and cursors together.
    #[inline]
    pub fn new(bytes: &'a mut [u8], cursors: &'a mut Cursors) -> Region<'a> {
        cursors.check(bytes.len());
        Region { bytes, cursors }
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

    /// The output that waits for its frame to be whole.
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
    }

    /// Takes back the output that waits for its frame to be whole.
    #[inline]
    pub fn retract(&mut self) {
        self.cursors.written = self.cursors.ready;
    }
}

/// A region on the heap, for what a pinned buffer cannot keep: a frame or a request that is not whole, or
/// bytes that arrived while an earlier reply was still in flight. Its memory comes from a [`SpillPool`].
#[derive(Debug)]
pub struct Spill {
    block: Block,
    cursors: Cursors,
}

impl Spill {
    /// A spill that holds nothing.
    pub fn new(pool: &SpillPool) -> Spill {
        Spill { block: pool.take(2 * HEADROOM), cursors: Cursors::spill() }
    }

    /// A spill that holds nothing, with memory from where this one has it.
    pub fn successor(&self) -> Spill {
        Spill::new(self.block.pool())
    }

    /// Moves all that follows the reply into a spill, to which `expected` more bytes are likely to be
    /// appended; the region keeps the reply.
    pub fn leftover(
        bytes: &[u8],
        cursors: &mut Cursors,
        expected: usize,
        pool: &SpillPool,
    ) -> Spill {
        let held = &bytes[cursors.ready as usize..cursors.written as usize];
        let unread = &bytes[cursors.unread as usize..cursors.end as usize];
        let needed = HEADROOM + held.len() + unread.len();
        let mut spill =
            Spill { block: pool.take_wanted(needed, needed + expected), cursors: Cursors::spill() };
        let target = &mut spill.block.bytes()[HEADROOM..needed];
        target[..held.len()].copy_from_slice(held);
        target[held.len()..].copy_from_slice(unread);
        spill.cursors.written += held.len() as u32;
        spill.cursors.unread = spill.cursors.written;
        spill.cursors.end = needed as u32;
        cursors.written = cursors.ready;
        cursors.unread = cursors.ready;
        cursors.end = cursors.ready;
        spill
    }

    /// Appends received bytes, after which `expected` more are likely to be appended. Closes the gap
    /// first, which would otherwise grow as long as something is left over; the unread bytes that this
    /// moves are never more than a header or a request.
    pub fn append(&mut self, received: &[u8], expected: usize) {
        let Cursors { written, unread, end, .. } = self.cursors;
        if unread > written {
            self.block.bytes().copy_within(unread as usize..end as usize, written as usize);
        }
        self.cursors.unread = written;
        let start = (end - (unread - written)) as usize;
        self.cursors.end = start as u32;
        let end = start + received.len();
        self.make_room(end, expected);
        self.block.bytes()[start..end].copy_from_slice(received);
        self.cursors.end = end as u32;
    }

    /// Extends what is written by `count` bytes, to be filled in by the caller, after which `expected` more
    /// are likely to be appended. Nothing may be unread.
    pub fn extend(&mut self, count: usize, expected: usize) -> &mut [u8] {
        assert_eq!(self.unread_bytes(), 0, "output would overtake input");
        let written = self.cursors.written as usize;
        let end = written + count;
        self.cursors.end = written as u32;
        self.make_room(end, expected);
        self.cursors.written = end as u32;
        self.cursors.unread = end as u32;
        self.cursors.end = end as u32;
        &mut self.block.bytes()[written..end]
    }

    /// Takes a larger block if this one has fewer than `needed` bytes: for `expected` bytes more if the
    /// pool has one, else at least twice as large, so that moving costs little in proportion.
    fn make_room(&mut self, needed: usize, expected: usize) {
        let length = self.block.length();
        if needed <= length {
            return;
        }
        let kept = self.cursors.sent as usize..self.cursors.end as usize;
        let needed_next = needed.max(2 * length);
        let wanted = needed_next.max(needed + expected);
        let mut block = self.block.pool().take_wanted(needed_next, wanted);
        block.bytes()[kept.clone()].copy_from_slice(&self.block.bytes()[kept]);
        self.block = block;
    }

    /// Makes the gap at least `bytes` wide, and wider if much is unread: moving all unread bytes for each
    /// frame would take quadratic time.
    pub fn widen(&mut self, bytes: usize) {
        let gap = self.region().gap();
        if bytes <= gap {
            return;
        }
        let Cursors { unread, end, .. } = self.cursors;
        let missing = bytes.max((end - unread) as usize / 2) - gap;
        self.make_room(end as usize + missing, 0);
        self.block.bytes().copy_within(unread as usize..end as usize, unread as usize + missing);
        self.cursors.unread += missing as u32;
        self.cursors.end += missing as u32;
    }

    /// The region in this spill.
    pub fn region(&mut self) -> Region<'_> {
        Region::new(self.block.bytes(), &mut self.cursors)
    }

    /// Splits the bytes that may be sent from the rest, if there is a rest. The reply is not copied; the
    /// rest moves to a spill of its own, to which `expected` more bytes are likely to be appended.
    pub fn split_reply(mut self, expected: usize) -> (Bytes, Option<Spill>) {
        let reply = self.cursors.reply();
        let pool = self.block.pool().clone();
        let rest = self
            .cursors
            .has_leftover()
            .then(|| Spill::leftover(self.block.bytes(), &mut self.cursors, expected, &pool));
        (self.block.freeze().slice(reply), rest)
    }

    /// How many bytes may be sent.
    pub fn reply_bytes(&self) -> usize {
        self.cursors.reply().len()
    }

    /// How many bytes are received and not parsed.
    pub fn unread_bytes(&self) -> usize {
        (self.cursors.end - self.cursors.unread) as usize
    }

    /// Whether there is anything to send.
    pub fn has_reply(&self) -> bool {
        self.cursors.sent < self.cursors.ready
    }

    /// Bytes that this spill holds for the connection, not counting its headroom.
    pub fn bytes_kept(&self) -> usize {
        self.cursors.end as usize - HEADROOM.min(self.cursors.end as usize)
    }

    /// Whether there is neither a reply nor anything left over.
    pub fn is_empty(&self) -> bool {
        self.cursors.sent == self.cursors.ready && !self.cursors.has_leftover()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool() -> SpillPool {
        SpillPool::new(SPILL_POOL_DEFAULT, Default::default())
    }

    fn received(payload: &[u8]) -> (Vec<u8>, Cursors) {
        (payload.to_vec(), Cursors::received(payload.len()))
    }

    #[test]
    fn output_fills_the_gap_that_input_left() {
        let (mut bytes, mut cursors) = received(b"headpayload");
        let mut region = Region::new(&mut bytes, &mut cursors);
        region.skip(4);
        region.write(b"HE");
        assert_eq!((region.held(), region.unread()), (&b"HE"[..], &b"payload"[..]));
        region.release();
        assert_eq!(&bytes[cursors.reply()], b"HE");
    }

    #[test]
    fn output_longer_than_the_gap_slides_into_the_headroom() {
        let mut spill = Spill::new(&pool());
        spill.append(b"abcdef", 0);
        let mut region = spill.region();
        region.moved(3);
        region.release();
        region.write(b"0123456789");
        assert_eq!((region.held(), region.unread()), (&b"0123456789"[..], &b"def"[..]));
        region.release();
        assert_eq!(spill.split_reply(0).0, b"abc0123456789"[..]);
    }

    #[test]
    fn what_is_not_reply_moves_to_a_spill_and_goes_on_there() {
        let (mut bytes, mut cursors) = received(b"reply, held, gap, unread");
        let mut region = Region::new(&mut bytes, &mut cursors);
        region.moved(5);
        region.release();
        region.skip(2);
        region.moved(4);
        region.skip(7);
        assert!(cursors.has_leftover());
        let mut spill = Spill::leftover(&bytes, &mut cursors, 0, &pool());
        assert_eq!(&bytes[cursors.reply()], b"reply");
        assert!(!cursors.has_leftover());
        assert_eq!(spill.region().unread(), b"unread");
        spill.append(b" more", 0);
        let mut region = spill.region();
        assert_eq!(region.unread(), b"unread more");
        region.moved(6);
        region.release();
        region.write(b"!");
        let (reply, rest) = spill.split_reply(0);
        assert_eq!(&reply[reply.len() - 6..], b"unread");
        let mut rest = rest.expect("held and unread bytes");
        let rest = rest.region();
        assert_eq!((rest.held(), rest.unread()), (&b"!"[..], &b" more"[..]));
    }

    #[test]
    fn extending_closes_the_gap_and_keeps_what_is_held() {
        let mut spill = Spill::new(&pool());
        spill.append(b"owed, gap", 0);
        let mut region = spill.region();
        region.moved(4);
        region.release();
        region.skip(5);
        spill.extend(5000, 100).fill(b'x');
        assert_eq!(spill.region().held(), [b'x'; 5000]);
        spill.append(b"unread", 0);
        assert_eq!(spill.region().unread(), b"unread");
        spill.region().release();
        let reply = spill.split_reply(0).0;
        assert_eq!((&reply[..5], reply.len()), (&b"owedx"[..], 5004));
    }

    #[test]
    fn a_widened_gap_takes_what_is_longer_than_its_request() {
        let mut spill = Spill::new(&pool());
        spill.append(b"owed.request next", 0);
        let mut region = spill.region();
        region.moved(5);
        region.release();
        region.skip(8);
        for (bytes, gap) in [(3, 8), (8, 8), (300, 300), (20, 300)] {
            spill.widen(bytes);
            assert_eq!(spill.region().gap(), gap);
        }
        let mut region = spill.region();
        region.write(&[b'x'; 300]);
        assert_eq!((region.gap(), region.unread()), (0, &b"next"[..]));
        region.release();
        let (reply, rest) = spill.split_reply(0);
        assert_eq!(reply, [&b"owed."[..], &[b'x'; 300]].concat());
        assert_eq!(rest.expect("the next request").region().unread(), b"next");
    }

    #[test]
    fn much_that_is_unread_is_not_moved_for_each_little_that_is_missing() {
        let mut spill = Spill::new(&pool());
        spill.append(&[0; 10_000], 0);
        spill.widen(1);
        assert_eq!(spill.region().gap(), 5000);
        spill.region().write(&[1; 100]);
        spill.widen(4900);
        assert_eq!(spill.region().gap(), 4900);
        assert_eq!(spill.region().unread().len(), 10_000);
    }

    #[test]
    fn what_is_stepped_over_leaves_no_memory_behind() {
        let mut spill = Spill::new(&pool());
        for _ in 0..1000 {
            spill.append(&[7; 100], 0);
            let mut region = spill.region();
            // As after the beginning of a header.
            region.skip(region.unread().len() - 1);
        }
        assert!(spill.bytes_kept() < 200, "{} bytes are kept", spill.bytes_kept());
    }

    #[test]
    fn a_spill_that_is_all_reply_leaves_nothing_behind() {
        let mut spill = Spill::new(&pool());
        assert!(spill.is_empty());
        spill.append(b"all of it", 0);
        spill.region().moved(9);
        spill.region().release();
        assert_eq!(spill.reply_bytes(), 9);
        let (reply, rest) = spill.split_reply(0);
        assert_eq!(&reply[..], b"all of it");
        assert!(rest.is_none());
    }
}
