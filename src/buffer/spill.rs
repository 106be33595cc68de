//! A region on the heap, in blocks of a pool.
//!
//! The region of [`crate::buffer`] is in the last block; earlier ones hold output in front of it.

use std::mem;

use super::{Block, Chain, Cursors, HEADROOM, Region, SpillPool};

/// A region on the heap, for what a pinned buffer cannot keep: a frame or a request that is not whole, or
/// bytes that arrived while an earlier reply was still in flight. Its memory comes from a [`SpillPool`].
///
/// When its block is full, output stays where it is and goes out from there, and the region goes on in another
/// block. So a step moves less output than a quarter of a large block has, however long a frame is.
///
/// Several methods are told that `expected` more bytes of the frame that is held are to come. Nobody reads what is
/// held of such a frame; what else is held stays in one block with what follows it.
#[derive(Debug)]
pub struct Spill {
    /// Output that goes out before that of the region.
    earlier: Chain,
    block: Block,
    cursors: Cursors,
}

impl Spill {
    /// A spill that holds nothing.
    pub fn new(pool: &SpillPool) -> Spill {
        let block = pool.take(2 * HEADROOM);
        Spill { earlier: Chain::default(), block, cursors: Cursors::spill() }
    }

    /// A spill that holds nothing, with memory from where this one has it.
    pub fn successor(&self) -> Spill {
        Spill::new(self.block.pool())
    }

    /// Moves all that follows the reply into a spill; the region keeps the reply.
    pub fn leftover(
        bytes: &[u8],
        cursors: &mut Cursors,
        expected: usize,
        pool: &SpillPool,
    ) -> Spill {
        let held = &bytes[cursors.ready as usize..cursors.written as usize];
        let unread = &bytes[cursors.unread as usize..cursors.end as usize];
        let needed = HEADROOM + held.len() + unread.len();
        let block = pool.take_wanted(needed, wanted(needed, expected, pool));
        let mut spill = Spill { earlier: Chain::default(), block, cursors: Cursors::spill() };
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

    /// Appends received bytes. Closes the gap first, which would otherwise grow as long as something is left
    /// over; the unread bytes that this moves are never more than a header or a request.
    pub fn append(&mut self, received: &[u8], expected: usize) {
        let Cursors { written, unread, end, .. } = self.cursors;
        if unread > written {
            self.block.bytes().copy_within(unread as usize..end as usize, written as usize);
        }
        self.cursors.unread = written;
        self.cursors.end = end - (unread - written);
        self.make_room(received.len(), expected);
        let start = self.cursors.end as usize;
        let end = start + received.len();
        self.block.bytes()[start..end].copy_from_slice(received);
        self.cursors.end = end as u32;
    }

    /// Extends what is written by at most `most` bytes, and by at least one, to be filled in by the caller.
    /// Nothing may be unread.
    pub fn extend(&mut self, most: usize, expected: usize) -> &mut [u8] {
        assert_eq!(self.unread_bytes(), 0, "output would overtake input");
        let Cursors { written, .. } = self.cursors;
        self.cursors.unread = written;
        self.cursors.end = written;
        if written as usize == self.block.length() {
            self.make_room(most, expected);
        }
        let start = self.cursors.written as usize;
        let end = self.block.length().min(start + most);
        self.cursors.written = end as u32;
        self.cursors.unread = end as u32;
        self.cursors.end = end as u32;
        &mut self.block.bytes()[start..end]
    }

    /// Makes room for `count` bytes after the last one.
    fn make_room(&mut self, count: usize, expected: usize) {
        let Cursors { sent, ready, written, end, .. } = self.cursors;
        let length = self.block.length();
        if end as usize + count <= length {
            return;
        }
        let output = if expected > 0 { written } else { ready };
        if self.is_much(output - sent) {
            let least = (2 * length).min(self.block.pool().block());
            self.go_on(output, count, expected, least);
        } else {
            // Twice as large, so that moving costs little in proportion.
            self.go_on(sent, count, expected, 2 * length);
        }
    }

    /// Whether so much output of a block stays there: enough that few blocks are mostly empty.
    fn is_much(&self, output: u32) -> bool {
        4 * output as usize >= self.block.length().max(self.block.pool().block())
    }

    /// Goes on in a block of at least `least` bytes, which has room for `count` more, with all that follows
    /// `output`. What is before stays in the present block.
    fn go_on(&mut self, output: u32, count: usize, expected: usize, least: usize) {
        let Cursors { sent, ready, end, .. } = self.cursors;
        let moved = output as usize..end as usize;
        let needed = HEADROOM + moved.len() + count;
        let pool = self.block.pool();
        let mut block = pool.take_wanted(needed.max(least), wanted(needed, expected, pool));
        let target = &mut block.bytes()[HEADROOM..][..moved.len()];
        target.copy_from_slice(&self.block.bytes()[moved]);
        let full = mem::replace(&mut self.block, block);
        if output > sent {
            let ready = ready.min(output) - sent;
            self.earlier.push(full.freeze().slice(sent as usize..output as usize), ready as usize);
        }
        self.cursors = self.cursors.moved(output);
    }

    /// Makes the gap at least `bytes` wide, and wider if much is unread: moving all unread bytes for each
    /// frame would take quadratic time.
    pub fn widen(&mut self, bytes: usize) {
        let gap = self.region().gap();
        if bytes <= gap {
            return;
        }
        let missing = bytes.max(self.unread_bytes() / 2) - gap;
        self.make_room(missing, 0);
        let Cursors { unread, end, .. } = self.cursors;
        self.block.bytes().copy_within(unread as usize..end as usize, unread as usize + missing);
        self.cursors.unread += missing as u32;
        self.cursors.end += missing as u32;
    }

    /// The region in this spill.
    pub fn region(&mut self) -> Region<'_> {
        debug_assert!(!self.earlier.has_held() || self.cursors.reply().is_empty(), "overtaken");
        let earlier = Some(&mut self.earlier);
        Region { earlier, ..Region::new(self.block.bytes(), &mut self.cursors) }
    }

    /// Splits the bytes that may be sent from the rest, if there is a rest. The reply is not copied.
    pub fn split_reply(mut self, expected: usize) -> (Chain, Option<Spill>) {
        let Cursors { sent, ready, written, .. } = self.cursors;
        if ready > sent && expected > 0 && self.is_much(written - ready) {
            self.go_on(written, 0, expected, 0);
        }
        let mut reply = self.earlier.take_ready();
        let in_region = self.cursors.reply();
        if in_region.is_empty() {
            return (reply, (!self.is_empty()).then_some(self));
        }
        let pool = self.block.pool().clone();
        let rest = self
            .cursors
            .has_leftover()
            .then(|| Spill::leftover(self.block.bytes(), &mut self.cursors, expected, &pool));
        let bytes = in_region.len();
        reply.push(self.block.freeze().slice(in_region), bytes);
        (reply, rest)
    }

    /// How many bytes may be sent.
    pub fn reply_bytes(&self) -> usize {
        self.earlier.ready() + self.cursors.reply().len()
    }

    /// How many bytes are received and not parsed.
    pub fn unread_bytes(&self) -> usize {
        (self.cursors.end - self.cursors.unread) as usize
    }

    /// Whether there is anything to send.
    pub fn has_reply(&self) -> bool {
        self.reply_bytes() > 0
    }

    /// Bytes that this spill holds for the connection, not counting its headroom.
    pub fn bytes_kept(&self) -> usize {
        self.earlier.bytes() + (self.cursors.end as usize).saturating_sub(HEADROOM)
    }

    /// Whether there is neither a reply nor anything left over.
    pub fn is_empty(&self) -> bool {
        self.earlier.is_empty() && self.cursors.reply().is_empty() && !self.cursors.has_leftover()
    }
}

/// The size of a block in which `needed` bytes have room, and the `expected` ones if they fit into a large block.
fn wanted(needed: usize, expected: usize, pool: &SpillPool) -> usize {
    (needed + expected).min(pool.block()).max(needed)
}

#[cfg(test)]
mod tests {
    use testkit::Random;

    use super::*;
    use crate::buffer::SPILL_POOL_DEFAULT;
    use crate::buffer::chain::tests::all_of;

    fn pool() -> SpillPool {
        SpillPool::new(SPILL_POOL_DEFAULT, Default::default())
    }

    fn received(payload: &[u8]) -> (Vec<u8>, Cursors) {
        (payload.to_vec(), Cursors::received(payload.len()))
    }

    fn extend(spill: &mut Spill, mut payload: &[u8], expected: usize) {
        while !payload.is_empty() {
            let target = spill.extend(payload.len(), expected);
            let (part, rest) = payload.split_at(target.len());
            target.copy_from_slice(part);
            payload = rest;
        }
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
        assert_eq!(all_of(spill.split_reply(0).0), b"abc0123456789");
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
        assert!(all_of(reply).ends_with(b"unread"));
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
        extend(&mut spill, &[b'x'; 5000], 100);
        assert_eq!(spill.region().held(), [b'x'; 5000]);
        spill.append(b"unread", 0);
        assert_eq!(spill.region().unread(), b"unread");
        spill.region().release();
        let reply = all_of(spill.split_reply(0).0);
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
        assert_eq!(all_of(reply), [&b"owed."[..], &[b'x'; 300]].concat());
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
    fn a_long_frame_is_moved_once_at_most() {
        const LENGTH: usize = 10 << 20;
        let pool = pool();
        // Blocks that it can take at once.
        drop((0..40).map(|_| pool.take(pool.block())).collect::<Vec<_>>());
        let mut spill = Spill::new(&pool);
        let begin = Random::new(1).bytes(LENGTH);
        let mut left = LENGTH;
        for part in begin.chunks(5000) {
            left -= part.len();
            let at = spill.block.as_ref().as_ptr();
            let parts = spill.earlier.bytes();
            extend(&mut spill, part, left + 1);
            let has_moved = spill.block.as_ref().as_ptr() != at && spill.earlier.bytes() == parts;
            assert!(!has_moved || spill.bytes_kept() <= 5000, "{} bytes", spill.bytes_kept());
        }
        assert_eq!((spill.bytes_kept(), spill.reply_bytes()), (LENGTH, 0));
        spill.region().release();
        assert_eq!((spill.bytes_kept(), spill.reply_bytes()), (LENGTH, LENGTH));
        let (reply, rest) = spill.split_reply(0);
        assert!(rest.is_none());
        assert!(all_of(reply) == begin);
    }

    #[test]
    fn what_is_held_of_a_long_frame_is_taken_back_whole_and_what_is_owed_is_not() {
        let mut spill = Spill::new(&pool());
        extend(&mut spill, &[b'o'; 600_000], 0);
        spill.region().release();
        extend(&mut spill, &[b'h'; 2_000_000], 1);
        assert_eq!((spill.reply_bytes(), spill.bytes_kept()), (600_000, 2_600_000));
        let mut region = spill.region();
        region.retract();
        region.write(b"close");
        region.release();
        assert_eq!(spill.reply_bytes(), 600_005);
        let (reply, rest) = spill.split_reply(0);
        assert!(rest.is_none());
        assert_eq!(all_of(reply), [&[b'o'; 600_000][..], b"close"].concat());
    }

    #[test]
    fn a_reply_is_split_from_a_long_frame_behind_it_without_moving_that() {
        let mut spill = Spill::new(&pool());
        extend(&mut spill, b"owed", 0);
        spill.region().release();
        extend(&mut spill, &[b'h'; 200_000], 100_000);
        let held = spill.region().held().as_ptr();
        let (reply, rest) = spill.split_reply(100_000);
        assert_eq!(all_of(reply), b"owed");
        let mut rest = rest.expect("what is held");
        assert_eq!((rest.reply_bytes(), rest.bytes_kept()), (0, 200_000));
        rest.region().release();
        let (mut reply, rest) = rest.split_reply(0);
        assert_eq!((reply.take_part(usize::MAX).as_ptr(), rest.is_none()), (held, true));
    }

    /// What a spill holds, in vectors.
    #[derive(Default)]
    struct Model {
        owed: Vec<u8>,
        held: Vec<u8>,
        unread: Vec<u8>,
        /// Whether more is expected of the frame that is held.
        expected: usize,
    }

    impl Model {
        fn step(&mut self, mut spill: Spill, random: &mut Random) -> Spill {
            if self.held.is_empty() {
                self.expected = 1000 * random.below(2);
            }
            let most = random.pick(&[10, 100, 2000]);
            let count = random.below(most);
            match random.below(9) {
                0 => {
                    let received = random.bytes(count);
                    spill.append(&received, self.expected);
                    self.unread.extend(received);
                }
                1 if self.unread.is_empty() => {
                    let payload = random.bytes(count);
                    extend(&mut spill, &payload, self.expected);
                    self.held.extend(payload);
                }
                2 => {
                    let count = count.min(self.unread.len());
                    let mut region = spill.region();
                    let (bytes, to, from) = region.parts();
                    bytes.copy_within(from..from + count, to);
                    region.moved(count);
                    self.held.extend(self.unread.drain(..count));
                }
                3 => {
                    let count = count.min(self.unread.len());
                    spill.region().skip(count);
                    self.unread.drain(..count);
                }
                4 => {
                    spill.region().release();
                    self.owed.append(&mut self.held);
                }
                5 => {
                    spill.region().retract();
                    self.held.clear();
                }
                6 => {
                    spill.widen(count);
                    let output = random.bytes(count);
                    spill.region().write(&output);
                    self.held.extend(output);
                }
                _ if random.one_in(3) => {
                    let fresh = spill.successor();
                    let (reply, rest) = spill.split_reply(self.expected);
                    assert_eq!(all_of(reply), self.owed);
                    self.owed.clear();
                    assert_eq!(rest.is_none(), self.held.is_empty() && self.unread.is_empty());
                    spill = rest.unwrap_or(fresh);
                }
                _ => {}
            }
            spill
        }

        fn check(&self, spill: &mut Spill) {
            let Model { owed, held, unread, expected } = self;
            assert_eq!((spill.reply_bytes(), spill.unread_bytes()), (owed.len(), unread.len()));
            assert_eq!(spill.has_reply(), !owed.is_empty());
            let gap = spill.region().gap();
            assert_eq!(spill.bytes_kept(), owed.len() + held.len() + gap + unread.len());
            assert_eq!(spill.region().unread(), unread);
            assert!(held.ends_with(spill.region().held()));
            assert!(*expected > 0 || spill.region().held().len() == held.len(), "held in pieces");
        }
    }

    #[test]
    fn however_many_blocks_a_spill_has_it_does_what_one_does() {
        for seed in 0..3000 {
            let mut random = Random::new(seed);
            let block = random.pick(&[1024, 4096]);
            let pool = SpillPool::with_block(1 << 20, block, Default::default());
            let mut spill = Spill::new(&pool);
            let mut model = Model::default();
            println!("seed {seed}");
            for _ in 0..random.below(60) {
                spill = model.step(spill, &mut random);
                model.check(&mut spill);
            }
        }
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
        assert_eq!(all_of(reply), b"all of it");
        assert!(rest.is_none());
    }
}
