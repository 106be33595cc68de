//! Unmasking (RFC 6455 section 5.3), in the same pass that moves the payload to its place in the
//! reply.

use std::cell::Cell;

use fearless_simd::{Level, dispatch};

/// Bytes handled at a time. The compiler turns a block into vector instructions.
const BLOCK: usize = 64;

/// A masking key, rotated so that its first byte is the next to be used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Mask(u32);

impl Mask {
    /// The mask for the key as it is in the frame.
    #[inline]
    pub fn new(key: [u8; 4]) -> Mask {
        Mask(u32::from_ne_bytes(key))
    }

    /// The key twice, as it is xor-ed to eight bytes.
    #[inline]
    fn word(self) -> u64 {
        u64::from(self.0) << 32 | u64::from(self.0)
    }

    /// The mask after `count` more bytes.
    #[inline]
    #[must_use]
    pub fn after(self, count: usize) -> Mask {
        let bits = (count % 4) as u32 * 8;
        if cfg!(target_endian = "little") {
            Mask(self.0.rotate_right(bits))
        } else {
            Mask(self.0.rotate_left(bits))
        }
    }
}

/// Unmasks `window[distance..]` to the beginning of `window`, and returns whether all of it is ASCII.
///
/// # Panics
///
/// When `window` is shorter than `distance`.
#[inline(always)]
pub fn unmask(window: &mut [u8], distance: usize, mask: Mask) -> bool {
    // Cells let source and target overlap. Each step reads before it writes, and writes nothing
    // that a later step reads.
    let window = Cell::from_mut(window).as_slice_of_cells();
    let source = &window[distance..];
    let target = &window[..source.len()];
    let word = mask.word();
    let seen = if source.len() < BLOCK {
        unmask_pieces(source, target, word)
    } else {
        unmask_blocks(source, target, word)
    };
    is_ascii(seen)
}

/// Unmasks `source` into `target`, which is as long, and returns whether all of it is ASCII. The bytes of
/// `source` stay as they are.
pub fn unmask_into(source: &mut [u8], target: &mut [u8], mask: Mask) -> bool {
    let source = Cell::from_mut(source).as_slice_of_cells();
    let target = Cell::from_mut(target).as_slice_of_cells();
    is_ascii(unmask_blocks(source, target, mask.word()))
}

/// Whether bytes are ASCII that give this when they are or-ed together.
#[inline]
fn is_ascii(seen: u64) -> bool {
    seen & 0x8080_8080_8080_8080 == 0
}

/// Unmasks less than a block, in pieces whose lengths are powers of two: a loop does not pay for so few
/// bytes. Returns the unmasked bytes, or-ed together.
#[inline(always)]
fn unmask_pieces(source: &[Cell<u8>], target: &[Cell<u8>], word: u64) -> u64 {
    let (seen_32, source, target) = unmask_piece::<32>(source, target, word);
    let (seen_16, source, target) = unmask_piece::<16>(source, target, word);
    let (seen_8, source, target) = unmask_piece::<8>(source, target, word);
    let mut seen = seen_32 | seen_16 | seen_8;
    for ((source, target), key) in source.iter().zip(target).zip(word.to_ne_bytes()) {
        let byte = source.get() ^ key;
        target.set(byte);
        seen |= u64::from(byte);
    }
    seen
}

/// Unmasks `N` bytes if there are that many, and returns the rest of both.
#[inline(always)]
fn unmask_piece<'a, const N: usize>(
    source: &'a [Cell<u8>],
    target: &'a [Cell<u8>],
    word: u64,
) -> (u64, &'a [Cell<u8>], &'a [Cell<u8>]) {
    match (source.split_first_chunk::<N>(), target.split_first_chunk::<N>()) {
        (Some((from, source)), Some((to, target))) => {
            (unmask_array(from, to, word), source, target)
        }
        _ => (0, source, target),
    }
}

/// Unmasks any length, with the widest vectors that this CPU has.
#[inline(never)]
fn unmask_blocks(source: &[Cell<u8>], target: &[Cell<u8>], word: u64) -> u64 {
    dispatch!(Level::new(), _simd => unmask_any(source, target, word))
}

/// Compiled once per vector width.
#[inline(always)]
fn unmask_any(source: &[Cell<u8>], target: &[Cell<u8>], word: u64) -> u64 {
    let (blocks, rest) = source.as_chunks::<BLOCK>();
    let (target_blocks, target_rest) = target.as_chunks::<BLOCK>();
    let mut seen = [0u64; BLOCK / 8];
    for (source, target) in blocks.iter().zip(target_blocks) {
        let mut block = [0u64; BLOCK / 8];
        for (unmasked, source) in block.iter_mut().zip(source.as_chunks().0) {
            *unmasked = load(source) ^ word;
        }
        for ((unmasked, seen), target) in block.iter().zip(&mut seen).zip(target.as_chunks().0) {
            *seen |= unmasked;
            store(target, *unmasked);
        }
    }
    seen.into_iter().fold(unmask_pieces(rest, target_rest, word), |all, seen| all | seen)
}

/// Unmasks `N` bytes, a multiple of 8.
#[inline(always)]
fn unmask_array<const N: usize>(source: &[Cell<u8>; N], target: &[Cell<u8>; N], word: u64) -> u64 {
    let mut seen = 0;
    for (source, target) in source.as_chunks().0.iter().zip(target.as_chunks().0) {
        let unmasked = load(source) ^ word;
        store(target, unmasked);
        seen |= unmasked;
    }
    seen
}

#[inline(always)]
fn load(cells: &[Cell<u8>; 8]) -> u64 {
    u64::from_ne_bytes(std::array::from_fn(|at| cells[at].get()))
}

#[inline(always)]
fn store(cells: &[Cell<u8>; 8], word: u64) {
    for (cell, byte) in cells.iter().zip(word.to_ne_bytes()) {
        cell.set(byte);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

    fn pattern(count: usize) -> Vec<u8> {
        (0..count).map(|at| (at * 7 + at / 251) as u8 & 0x7f).collect()
    }

    #[test]
    fn every_length_at_every_distance() {
        for count in (0..200).chain([255, 256, 1000, 4096]) {
            for distance in [0, 1, 3, 4, 6, 8, 10, 63, 64, 65] {
                let plain = pattern(count);
                let mut bytes = vec![0xee; distance];
                bytes.extend(plain.iter().enumerate().map(|(at, byte)| byte ^ KEY[at % 4]));
                let is_ascii = unmask(&mut bytes, distance, Mask::new(KEY));
                assert_eq!(bytes[..count], plain, "count {count}, distance {distance}");
                assert!(is_ascii);
            }
        }
    }

    #[test]
    fn into_other_memory_every_length_is_unmasked_and_the_source_is_kept() {
        for count in (0..200).chain([1000, 4096]) {
            let plain = pattern(count);
            let masked: Vec<u8> =
                plain.iter().enumerate().map(|(at, byte)| byte ^ KEY[at % 4]).collect();
            let (mut source, mut target) = (masked.clone(), vec![0; count]);
            assert!(unmask_into(&mut source, &mut target, Mask::new(KEY)));
            assert_eq!((source, target), (masked, plain), "count {count}");
        }
        assert!(!unmask_into(&mut [0x7f, 0x80], &mut [0; 2], Mask::new([0; 4])));
    }

    #[test]
    fn one_byte_beyond_ascii_is_seen_at_every_place() {
        for at in 0..150 {
            let mut plain = pattern(150);
            plain[at] = 0x80;
            assert!(!unmask(&mut plain, 0, Mask::new([0; 4])), "at {at}");
        }
    }

    #[test]
    fn the_phase_is_kept_across_pieces() {
        let plain = pattern(97);
        for split in 0..=plain.len() {
            let mut bytes: Vec<u8> =
                plain.iter().enumerate().map(|(at, byte)| byte ^ KEY[at % 4]).collect();
            let mask = Mask::new(KEY);
            unmask(&mut bytes[..split], 0, mask);
            unmask(&mut bytes[split..], 0, mask.after(split));
            assert_eq!(bytes, plain, "split at {split}");
        }
    }
}
