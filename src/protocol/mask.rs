//! Unmasking (RFC 6455 section 5.3), in the same pass that moves the payload to its place in the
//! reply.

/// Octets handled at a time. The compiler turns a block into vector instructions.
const BLOCK: usize = 64;

/// A masking key, turned so that its first octet is the next to be used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Mask(u32);

impl Mask {
    /// The mask of the key as it stands in the frame.
    #[inline]
    pub fn new(key: [u8; 4]) -> Mask {
        Mask(u32::from_ne_bytes(key))
    }

    /// The mask after `count` further octets.
    #[inline]
    #[must_use]
    pub fn after(self, count: usize) -> Mask {
        let octets = (count % 4) as u32 * 8;
        if cfg!(target_endian = "little") {
            Mask(self.0.rotate_right(octets))
        } else {
            Mask(self.0.rotate_left(octets))
        }
    }
}

/// Unmasks `bytes[from..from + count]` to `bytes[to..to + count]`, where `to <= from`. Returns
/// all unmasked octets or-ed together: it is ASCII if and only if all of them are.
#[inline]
pub fn unmask(bytes: &mut [u8], from: usize, to: usize, count: usize, mask: Mask) -> u8 {
    debug_assert!(to <= from);
    let wide = u64::from(mask.0) << 32 | u64::from(mask.0);
    let mut done = 0;
    let mut seen = 0;
    if count >= BLOCK {
        (done, seen) = unmask_blocks(bytes, from, to, count, wide);
    }
    // Each step reads before it writes, and writes only below what the next step reads.
    while done + 8 <= count {
        let word = load(bytes, from + done) ^ wide;
        bytes[to + done..to + done + 8].copy_from_slice(&word.to_ne_bytes());
        seen |= word;
        done += 8;
    }
    let key = wide.to_ne_bytes();
    let mut tail = 0;
    while done < count {
        let octet = bytes[from + done] ^ key[done % 4];
        bytes[to + done] = octet;
        tail |= octet;
        done += 1;
    }
    let folded = seen | seen >> 32;
    let folded = folded | folded >> 16;
    (folded | folded >> 8) as u8 | tail
}

fn unmask_blocks(
    bytes: &mut [u8],
    from: usize,
    to: usize,
    count: usize,
    wide: u64,
) -> (usize, u64) {
    let mut seen = [0u64; BLOCK / 8];
    let mut done = 0;
    while done + BLOCK <= count {
        let mut block: [u8; BLOCK] =
            bytes[from + done..from + done + BLOCK].try_into().expect("a block");
        for (word, seen) in block.as_chunks_mut::<8>().0.iter_mut().zip(&mut seen) {
            let unmasked = u64::from_ne_bytes(*word) ^ wide;
            *seen |= unmasked;
            *word = unmasked.to_ne_bytes();
        }
        bytes[to + done..to + done + BLOCK].copy_from_slice(&block);
        done += BLOCK;
    }
    (done, seen.into_iter().fold(0, |all, word| all | word))
}

#[inline]
fn load(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("eight octets"))
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
                bytes.extend(plain.iter().enumerate().map(|(at, octet)| octet ^ KEY[at % 4]));
                let seen = unmask(&mut bytes, distance, 0, count, Mask::new(KEY));
                assert_eq!(bytes[..count], plain, "count {count}, distance {distance}");
                assert_eq!(seen, plain.iter().fold(0, |all, octet| all | octet));
            }
        }
    }

    #[test]
    fn one_octet_beyond_ascii_is_seen_wherever_it_stands() {
        for at in 0..150 {
            let mut plain = pattern(150);
            plain[at] = 0x80;
            assert!(unmask(&mut plain, 0, 0, 150, Mask::new([0; 4])) >= 0x80, "at {at}");
        }
    }

    #[test]
    fn the_phase_is_kept_across_pieces() {
        let plain = pattern(97);
        for split in 0..=plain.len() {
            let mut bytes: Vec<u8> =
                plain.iter().enumerate().map(|(at, octet)| octet ^ KEY[at % 4]).collect();
            let mask = Mask::new(KEY);
            unmask(&mut bytes, 0, 0, split, mask);
            unmask(&mut bytes, split, split, plain.len() - split, mask.after(split));
            assert_eq!(bytes, plain, "split at {split}");
        }
    }
}
