//! The client's compressors.

use std::collections::HashMap;

use flate2::{Compress, FlushCompress};

use crate::TAIL;
use crate::agreement::Agreed;
use crate::receiver::{DISTANCES, LENGTHS};
use crate::support::Random;

/// The client's compressor.
pub(crate) struct Sender {
    pub(crate) agreed: Agreed,
    pub(crate) zlib: Compress,
    pub(crate) by_hand: ByHand,
    /// One connection has one compressor: the two would not know each other's history.
    pub(crate) is_by_hand: bool,
}

impl Sender {
    pub(crate) fn new(agreed: Agreed, random: &mut Random) -> Sender {
        let level = flate2::Compression::new(random.below(10) as u32);
        let bits = agreed.client_bits as u8;
        Sender {
            agreed,
            zlib: Compress::new_with_window_bits(level, false, bits.max(9)),
            by_hand: ByHand::new(1 << bits),
            is_by_hand: bits < 9 || random.one_in(3),
        }
    }

    /// The payload of a message, in the ways of section 7.2.3.
    pub(crate) fn compress(&mut self, message: &[u8], random: &mut Random) -> Vec<u8> {
        if self.agreed.client_no_context_takeover {
            self.zlib.reset();
            self.by_hand.forget();
        }
        let mut rest = message;
        let mut payload = Vec::new();
        loop {
            let most = if random.one_in(3) { random.below(rest.len() + 1) } else { rest.len() };
            let (piece, others) = rest.split_at(most);
            let is_last = others.is_empty();
            rest = others;
            if self.is_by_hand {
                payload.extend(self.by_hand.blocks(piece, is_last, random));
                if is_last {
                    return payload;
                }
                continue;
            }
            let flushes = [FlushCompress::Partial, FlushCompress::Sync, FlushCompress::Full];
            let flush = match random.below(8) {
                0 => FlushCompress::Finish,
                1..4 => random.pick(&flushes),
                _ => FlushCompress::None,
            };
            payload.extend(deflate(&mut self.zlib, piece, flush));
            let has_finished = matches!(flush, FlushCompress::Finish);
            if has_finished {
                self.zlib.reset();
            }
            if !is_last {
                continue;
            }
            // Section 7.2.3.4: behind a block with BFINAL set stands an octet of zero.
            if has_finished {
                payload.push(0);
                return payload;
            }
            payload.extend(deflate(&mut self.zlib, &[], FlushCompress::Sync));
            match payload.strip_suffix(&TAIL) {
                Some(kept) => payload.truncate(kept.len()),
                // Section 7.2.3.6: nothing to be flushed.
                None => payload.push(0),
            }
            return payload;
        }
    }
}

/// All that zlib makes of `input`.
pub(crate) fn deflate(zlib: &mut Compress, mut input: &[u8], flush: FlushCompress) -> Vec<u8> {
    let mut output = Vec::with_capacity(input.len() / 2 + 64);
    loop {
        output.reserve(64);
        let before = zlib.total_in();
        zlib.compress_vec(input, &mut output, flush).expect("a state of zlib");
        input = &input[(zlib.total_in() - before) as usize..];
        if input.is_empty() && output.len() < output.capacity() {
            return output;
        }
    }
}

/// A compressor that writes stored blocks and ones with fixed codes, and refers as far back as the
/// window goes.
pub(crate) struct ByHand {
    pub(crate) window: usize,
    pub(crate) history: Vec<u8>,
    /// Where three octets were last seen.
    pub(crate) seen: HashMap<[u8; 3], usize>,
    pub(crate) octets: Vec<u8>,
    /// Bits that are no octet yet, and how many.
    pub(crate) bits: u32,
    pub(crate) count: u32,
}

impl ByHand {
    pub(crate) fn new(window: usize) -> ByHand {
        let (history, octets) = (Vec::new(), Vec::new());
        ByHand { window, history, seen: HashMap::new(), octets, bits: 0, count: 0 }
    }

    pub(crate) fn forget(&mut self) {
        self.history.clear();
        self.seen.clear();
    }

    /// One block for `piece`, and others without content. With the `last` piece of a message comes
    /// the beginning of the block whose rest is taken off.
    pub(crate) fn blocks(&mut self, piece: &[u8], is_last: bool, random: &mut Random) -> Vec<u8> {
        let is_final = random.one_in(6);
        if piece.len() < 60_000 && random.one_in(4) {
            self.stored(piece, is_final);
        } else {
            self.fixed(piece, is_final);
        }
        if is_final {
            self.align();
            self.forget();
        }
        match random.below(6) {
            0 => self.stored(b"", false),
            1 => self.fixed(b"", false),
            _ => {}
        }
        if is_last {
            self.put(0, 3);
            self.align();
        }
        std::mem::take(&mut self.octets)
    }

    pub(crate) fn stored(&mut self, piece: &[u8], is_final: bool) {
        self.put(u32::from(is_final), 3);
        self.align();
        let length = piece.len() as u16;
        self.octets.extend(length.to_le_bytes());
        self.octets.extend((!length).to_le_bytes());
        self.octets.extend(piece);
        for &octet in piece {
            self.remember(octet);
        }
    }

    pub(crate) fn fixed(&mut self, piece: &[u8], is_final: bool) {
        self.put(u32::from(is_final) | 1 << 1, 3);
        let mut at = 0;
        while at < piece.len() {
            let (length, distance) = self.longest(&piece[at..]);
            if length < 3 {
                self.symbol(u32::from(piece[at]));
                self.remember(piece[at]);
                at += 1;
                continue;
            }
            // Length 258 has a code of its own beside the last of the others.
            let code = LENGTHS.iter().rposition(|&(base, _)| base <= length).expect("three");
            let (base, extra) = LENGTHS[code];
            self.symbol(257 + code as u32);
            self.put((length - base) as u32, extra);
            let code = DISTANCES.iter().rposition(|&(base, _)| base <= distance).expect("one");
            let (base, extra) = DISTANCES[code];
            self.code(code as u32, 5);
            self.put((distance - base) as u32, extra);
            for &octet in &piece[at..at + length] {
                self.remember(octet);
            }
            at += length;
        }
        self.symbol(256);
    }

    /// The longest of two references: to the edge of the window, and to where the next three octets
    /// were last seen.
    pub(crate) fn longest(&self, rest: &[u8]) -> (usize, usize) {
        let end = self.history.len();
        let last = rest.first_chunk().and_then(|octets| self.seen.get(octets));
        let distances = [self.window, last.map_or(0, |place| end - place)];
        let reaches = |&distance: &usize| (1..=self.window.min(end)).contains(&distance);
        let lengths = distances.into_iter().filter(reaches).map(|distance| {
            let from = end - distance;
            let octet = |place: usize| {
                self.history.get(from + place).copied().unwrap_or_else(|| rest[place - distance])
            };
            let same = rest.iter().take(258).enumerate();
            (same.take_while(|&(place, &next)| octet(place) == next).count(), distance)
        });
        lengths.max().unwrap_or_default()
    }

    pub(crate) fn remember(&mut self, octet: u8) {
        self.history.push(octet);
        if let Some(last) = self.history.last_chunk() {
            self.seen.insert(*last, self.history.len() - 3);
        }
    }

    /// A literal or a length, by the fixed code (RFC 1951 section 3.2.6).
    pub(crate) fn symbol(&mut self, symbol: u32) {
        match symbol {
            0..144 => self.code(0x30 + symbol, 8),
            144..256 => self.code(0x190 + symbol - 144, 9),
            256..280 => self.code(symbol - 256, 7),
            _ => self.code(0xc0 + symbol - 280, 8),
        }
    }

    /// A Huffman code, whose first bit is its highest.
    pub(crate) fn code(&mut self, code: u32, count: u32) {
        self.put(code.reverse_bits() >> (32 - count), count);
    }

    pub(crate) fn put(&mut self, bits: u32, count: u32) {
        self.bits |= bits << self.count;
        self.count += count;
        while self.count >= 8 {
            self.octets.push(self.bits as u8);
            self.bits >>= 8;
            self.count -= 8;
        }
    }

    pub(crate) fn align(&mut self) {
        self.put(0, (8 - self.count % 8) % 8);
    }
}
