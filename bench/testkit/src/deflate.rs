//! A handwritten compressor (RFC 1951), for what zlib does not produce: windows of 256 bytes, references to
//! the very edge of the window, and unusual but valid blocks.

use std::collections::HashMap;

use crate::inflate::{DISTANCES, LENGTHS};
use crate::random::Random;

/// The position of a piece in its message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// More pieces follow.
    Within,
    /// It ends the message.
    Last,
}

/// The header bit BFINAL of a block (RFC 1951 section 3.2.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Block {
    NotFinal = 0,
    Final = 1,
}

/// Which of several places with the same bytes is referred to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reference {
    /// The nearest.
    Nearest,
    /// The farthest that is known.
    Farthest,
}

/// Writes stored blocks and ones with fixed codes, and refers as far back as the window reaches.
#[derive(Debug)]
pub struct Compressor {
    window: usize,
    history: Vec<u8>,
    /// Where three bytes were last seen, or first within the window.
    seen: HashMap<[u8; 3], usize>,
    reference: Reference,
    bytes: Vec<u8>,
    /// Bits that are not yet a byte, and how many.
    bits: u32,
    count: u32,
}

impl Compressor {
    /// A compressor with a window of `window` bytes.
    pub fn new(window: usize) -> Compressor {
        Compressor::referring(Reference::Nearest, window)
    }

    /// A compressor with a window of `window` bytes that refers to these places, and also to the edge of the
    /// window.
    pub fn referring(reference: Reference, window: usize) -> Compressor {
        let (history, bytes) = (Vec::new(), Vec::new());
        Compressor { window, history, seen: HashMap::new(), reference, bytes, bits: 0, count: 0 }
    }

    /// Forgets everything, as without context takeover.
    pub fn forget(&mut self) {
        self.history.clear();
        self.seen.clear();
    }

    /// One block for `piece`, and possibly empty blocks. After the last piece of a message comes the
    /// beginning of the empty block whose rest, [`TAIL`](crate::inflate::TAIL), is removed.
    pub fn blocks(&mut self, piece: &[u8], place: Place, random: &mut Random) -> Vec<u8> {
        let block = if random.one_in(6) { Block::Final } else { Block::NotFinal };
        if piece.len() < 60_000 && random.one_in(4) {
            self.stored(piece, block);
        } else {
            self.fixed(piece, block);
        }
        if block == Block::Final {
            self.align();
            self.forget();
        }
        match random.below(6) {
            0 => self.stored(b"", Block::NotFinal),
            1 => self.fixed(b"", Block::NotFinal),
            _ => {}
        }
        if place == Place::Last {
            self.put(0, 3);
            self.align();
        }
        std::mem::take(&mut self.bytes)
    }

    /// A whole message in a single block, as far as possible by references into the window, without the
    /// [`TAIL`](crate::inflate::TAIL).
    pub fn message(&mut self, message: &[u8]) -> Vec<u8> {
        self.fixed(message, Block::NotFinal);
        self.put(0, 3);
        self.align();
        std::mem::take(&mut self.bytes)
    }

    fn stored(&mut self, piece: &[u8], block: Block) {
        self.put(block as u32, 3);
        self.align();
        let length = piece.len() as u16;
        self.bytes.extend(length.to_le_bytes());
        self.bytes.extend((!length).to_le_bytes());
        self.bytes.extend(piece);
        for &byte in piece {
            self.remember(byte);
        }
    }

    fn fixed(&mut self, piece: &[u8], block: Block) {
        self.put(block as u32 | 1 << 1, 3);
        let mut at = 0;
        while at < piece.len() {
            let (length, distance) = self.longest(&piece[at..]);
            if length < 3 {
                self.symbol(u32::from(piece[at]));
                self.remember(piece[at]);
                at += 1;
                continue;
            }
            // Length 258 has its own code, although the code before it covers it too.
            let code = LENGTHS.iter().rposition(|&(base, _)| base <= length).expect("three");
            let (base, extra) = LENGTHS[code];
            self.symbol(257 + code as u32);
            self.put((length - base) as u32, extra);
            let code = DISTANCES.iter().rposition(|&(base, _)| base <= distance).expect("one");
            let (base, extra) = DISTANCES[code];
            self.code(code as u32, 5);
            self.put((distance - base) as u32, extra);
            for &byte in &piece[at..at + length] {
                self.remember(byte);
            }
            at += length;
        }
        self.symbol(256);
    }

    /// The longest of two references: to the edge of the window, and to where the next three bytes
    /// were last seen.
    fn longest(&self, rest: &[u8]) -> (usize, usize) {
        let end = self.history.len();
        let last = rest.first_chunk().and_then(|bytes| self.seen.get(bytes));
        let distances = [self.window, last.map_or(0, |place| end - place)];
        let reaches = |&distance: &usize| (1..=self.window.min(end)).contains(&distance);
        let lengths = distances.into_iter().filter(reaches).map(|distance| {
            let from = end - distance;
            let byte = |place: usize| {
                self.history.get(from + place).copied().unwrap_or_else(|| rest[place - distance])
            };
            let same = rest.iter().take(258).enumerate();
            (same.take_while(|&(place, &next)| byte(place) == next).count(), distance)
        });
        lengths.max().unwrap_or_default()
    }

    fn remember(&mut self, byte: u8) {
        self.history.push(byte);
        if let Some(last) = self.history.last_chunk() {
            let place = self.history.len() - 3;
            let seen = self.seen.entry(*last).or_insert(place);
            if self.reference == Reference::Nearest || place - *seen > self.window {
                *seen = place;
            }
        }
    }

    /// A literal or a length, by the fixed code (RFC 1951 section 3.2.6).
    fn symbol(&mut self, symbol: u32) {
        match symbol {
            0..144 => self.code(0x30 + symbol, 8),
            144..256 => self.code(0x190 + symbol - 144, 9),
            256..280 => self.code(symbol - 256, 7),
            _ => self.code(0xc0 + symbol - 280, 8),
        }
    }

    /// A Huffman code, whose first bit is its highest.
    fn code(&mut self, code: u32, count: u32) {
        self.put(code.reverse_bits() >> (32 - count), count);
    }

    fn put(&mut self, bits: u32, count: u32) {
        self.bits |= bits << self.count;
        self.count += count;
        while self.count >= 8 {
            self.bytes.push(self.bits as u8);
            self.bits >>= 8;
            self.count -= 8;
        }
    }

    fn align(&mut self) {
        self.put(0, (8 - self.count % 8) % 8);
    }
}

#[cfg(test)]
mod tests {
    use super::{Compressor, Place, Reference};
    use crate::inflate::Inflater;
    use crate::random::cases;

    #[test]
    fn what_is_compressed_is_inflated() {
        for mut case in cases("what_is_compressed_is_inflated", 200) {
            let random = &mut case.random;
            let window = 1 << (8 + random.below(8));
            let mut compressor = Compressor::new(window);
            let mut inflater = Inflater::default();
            for _ in 0..4 {
                let length = random.below(3000);
                let message: Vec<u8> = (0..length).map(|_| random.below(4) as u8).collect();
                let (left, right) = message.split_at(random.below(length + 1));
                let payload = [(left, Place::Within), (right, Place::Last)]
                    .map(|(piece, place)| compressor.blocks(piece, place, random))
                    .concat();
                assert_eq!(inflater.message(&payload), Ok(message));
            }
            assert!(inflater.greatest_distance() <= window);
        }
    }

    #[test]
    fn references_are_to_the_nearest_place_or_to_the_farthest() {
        let message = [b"abc1234", &b"abc5678"[..], b"abc"].concat();
        for (reference, window, distance) in [
            (Reference::Nearest, 1 << 15, 7),
            (Reference::Farthest, 1 << 15, 14),
            // What the window no longer reaches is forgotten.
            (Reference::Farthest, 10, 7),
        ] {
            let mut inflater = Inflater::default();
            let payload = Compressor::referring(reference, window).message(&message);
            assert_eq!(inflater.message(&payload).as_ref(), Ok(&message));
            assert_eq!(inflater.greatest_distance(), distance, "{reference:?} {window}");
        }
    }
}
