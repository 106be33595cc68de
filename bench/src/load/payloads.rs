//! The payloads of messages, and the stamp in each that says which message an echo belongs to.
//!
//! The payload of message `number` of a connection follows from the seed, the connection and the
//! number alone, so no payload is kept while a message is in flight. A payload is a slice of a pool
//! drawn beforehand, with the stamp over its first bytes. The stamp is the message's number, scrambled
//! so that a damaged stamp is very unlikely to be that of another message nearby.
//!
//! This file knows nothing of time, of sockets or of which messages are in flight.

use std::sync::Arc;

use super::mix::{Kind, Mix};
use crate::random::Random;
use crate::records::Records;
use crate::session::Form;

/// Places in the pool at which a payload may begin.
const OFFSETS: usize = 4096;
/// The same for compressed messages: enough that the compressor's window of 32 KiB rarely holds the
/// same text twice.
const OFFSETS_COMPRESSED: usize = 8 << 20;
/// Bits of a whole stamp.
const STAMP_BITS: u32 = 64;
/// Shorter stamps repeat too soon to recognise a second echo of a message that was already answered.
const DISTINCT_BITS: u32 = 32;

/// Whether the messages of a load are compressed, which decides what text they consist of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pool {
    /// Text of 64 letters, digits and marks, all equally frequent.
    Random,
    /// Text cut from JSON.
    Compressible,
}

/// The messages of a connection that an echo could belong to, by number.
#[derive(Debug, Clone, Copy)]
pub(super) struct Awaited {
    pub(super) connection: usize,
    /// The first one that is in flight.
    pub(super) next: u64,
    /// One past the last one sent.
    pub(super) end: u64,
}

/// Makes payloads and recognises them. Clones share the pools.
#[derive(Debug, Clone)]
pub(super) struct Payloads {
    mix: Mix,
    seed: u64,
    offsets: usize,
    text: Arc<[u8]>,
    binary: Arc<[u8]>,
    /// The last payload.
    payload: Vec<u8>,
}

impl Payloads {
    /// Draws pools long enough for the largest messages of `mix`.
    pub(super) fn new(mix: &Mix, seed: u64, pool: Pool) -> Payloads {
        let mut random = Random::new(seed);
        let offsets = match pool {
            Pool::Random => OFFSETS,
            Pool::Compressible => OFFSETS_COMPRESSED,
        };
        let length = |form| {
            let sizes = mix.kinds().iter().filter(|kind| kind.form == form).map(|kind| kind.size);
            sizes.max().map_or(0, |size| size + offsets)
        };
        let text = match (length(Form::Text), pool) {
            (0, _) => Arc::default(),
            (length, Pool::Compressible) => Records::new(seed).message(length).into_bytes().into(),
            (length, Pool::Random) => (0..length).map(|_| b'0' + random.below(64) as u8).collect(),
        };
        let binary = (0..length(Form::Binary)).map(|_| random.number() as u8).collect();
        Payloads { mix: mix.clone(), seed, offsets, text, binary, payload: Vec::new() }
    }

    /// What kind message `number` of a connection is.
    #[inline]
    pub(super) fn kind(&self, connection: usize, number: u64) -> Kind {
        match self.mix.kinds() {
            [only] => *only,
            _ => *self.mix.kind(self.draw(connection, number)),
        }
    }

    #[inline]
    fn draw(&self, connection: usize, number: u64) -> u64 {
        Random::new(self.seed ^ (connection as u64).rotate_left(40) ^ number).number()
    }

    /// The payload of message `number` of a connection, which is of this kind.
    #[inline]
    pub(super) fn payload(&mut self, kind: &Kind, connection: usize, number: u64) -> &[u8] {
        let drawn = self.draw(connection, number);
        let pool = match kind.form {
            Form::Text => &self.text,
            Form::Binary => &self.binary,
        };
        // The choice of the kind took the low bits.
        let offset = (drawn >> 32) as usize % self.offsets;
        self.payload.clear();
        self.payload.extend_from_slice(&pool[offset..offset + kind.size]);
        let bits = stamp_bits(kind.form, kind.size);
        let mut stamp = scramble(identity(connection, number), bits);
        for byte in self.payload.iter_mut().take(stamp_bytes(kind.form)) {
            *byte = stamp_byte(kind.form, stamp);
            stamp >>= bits_per_byte(kind.form);
        }
        &self.payload
    }

    /// Whether `echo` has the length and the stamp of message `number` of a connection, which is of
    /// this kind.
    #[inline]
    pub(super) fn is_stamped(kind: &Kind, connection: usize, number: u64, echo: &[u8]) -> bool {
        let mut stamp = scramble(identity(connection, number), stamp_bits(kind.form, kind.size));
        echo.len() == kind.size
            && echo.iter().take(stamp_bytes(kind.form)).all(|&byte| {
                let is_right = byte == stamp_byte(kind.form, stamp);
                stamp >>= bits_per_byte(kind.form);
                is_right
            })
    }

    /// The message that `echo`, which does not answer the next one awaited, belongs to by its stamp:
    /// one that was sent after it, or one before it.
    pub(super) fn number_in(&self, awaited: &Awaited, form: Form, echo: &[u8]) -> Option<u64> {
        let Awaited { connection, next, end } = *awaited;
        let bits = stamp_bits(form, echo.len());
        let found = unscramble(stamp_in(form, echo)?, bits);
        let is_kind = |number: &u64| {
            let kind = self.kind(connection, *number);
            kind.size == echo.len() && kind.form == form
        };
        let after = next.checked_add(low(found.wrapping_sub(identity(connection, next)), bits));
        if let Some(after) = after.filter(|after| *after < end && bits > 0) {
            return Some(after).filter(is_kind);
        }
        let last = next.checked_sub(1)?;
        let before = last.checked_sub(low(identity(connection, last).wrapping_sub(found), bits));
        before.filter(|_| bits >= DISTINCT_BITS).filter(is_kind)
    }
}

/// What a stamp encodes: the number of a message, and its connection.
fn identity(connection: usize, number: u64) -> u64 {
    number.wrapping_add((connection as u64).rotate_left(40))
}

/// Bits of the stamp in each byte: text has a hexadecimal digit there.
const fn bits_per_byte(form: Form) -> u32 {
    match form {
        Form::Text => 4,
        Form::Binary => 8,
    }
}

const fn stamp_bytes(form: Form) -> usize {
    (STAMP_BITS / bits_per_byte(form)) as usize
}

/// Bits of the stamp of a message of this size.
fn stamp_bits(form: Form, size: usize) -> u32 {
    size.min(stamp_bytes(form)) as u32 * bits_per_byte(form)
}

/// The byte for the lowest bits of `stamp`.
#[inline]
fn stamp_byte(form: Form, stamp: u64) -> u8 {
    match form {
        Form::Text => b"0123456789abcdef"[(stamp & 15) as usize],
        Form::Binary => stamp as u8,
    }
}

/// Reads a stamp; nothing if text holds something else than hexadecimal digits there.
fn stamp_in(form: Form, echo: &[u8]) -> Option<u64> {
    let mut stamp = 0;
    for (at, &byte) in echo.iter().take(stamp_bytes(form)).enumerate() {
        let bits = match (form, byte) {
            (Form::Text, b'0'..=b'9') => byte - b'0',
            (Form::Text, b'a'..=b'f') => byte - b'a' + 10,
            (Form::Text, _) => return None,
            (Form::Binary, byte) => byte,
        };
        stamp |= u64::from(bits) << (at as u32 * bits_per_byte(form));
    }
    Some(stamp)
}

/// Odd, so that multiplying by them can be undone; from the generator splitmix64.
const FACTORS: [u64; 2] = [0xbf58_476d_1ce4_e5b9, 0x94d0_49bb_1331_11eb];

/// The lowest `bits` of a number.
fn low(number: u64, bits: u32) -> u64 {
    number & u64::MAX.checked_shr(u64::BITS - bits).unwrap_or(0)
}

/// Maps numbers of this many bits one to one, so that neighbours land far apart.
#[inline]
fn scramble(number: u64, bits: u32) -> u64 {
    let mixed = low(number.wrapping_mul(FACTORS[0]), bits);
    low(fold(mixed, bits).wrapping_mul(FACTORS[1]), bits)
}

/// Undoes [`scramble`].
fn unscramble(stamp: u64, bits: u32) -> u64 {
    let mixed = low(stamp.wrapping_mul(inverse(FACTORS[1])), bits);
    low(fold(mixed, bits).wrapping_mul(inverse(FACTORS[0])), bits)
}

/// Mixes the upper half of the bits into the lower. It is its own inverse.
fn fold(number: u64, bits: u32) -> u64 {
    number ^ (number >> bits.div_ceil(2).max(1))
}

/// The inverse of an odd number modulo 2^64, by Newton's method: the first guess has three right bits,
/// and each step doubles them.
const fn inverse(odd: u64) -> u64 {
    let mut inverse = odd;
    let mut step = 0;
    while step < 5 {
        inverse = inverse.wrapping_mul(2u64.wrapping_sub(odd.wrapping_mul(inverse)));
        step += 1;
    }
    inverse
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn payloads(mix: &str) -> Payloads {
        Payloads::new(&mix.parse().expect("a mix"), 1, Pool::Random)
    }

    #[test]
    fn kinds_are_drawn_by_their_weights() {
        let payloads = payloads("16*90,4096:binary*10");
        let large = (0..10_000).filter(|&number| payloads.kind(3, number).size == 4096).count();
        assert!((850..1150).contains(&large), "{large} of 10000");
    }

    #[test]
    fn payloads_are_ascii_for_text_and_differ_from_message_to_message() {
        let mut payloads = payloads("16,40:binary");
        let kinds = payloads.mix.kinds().to_vec();
        let mut seen = HashSet::new();
        for connection in 0..10 {
            for number in 0..100 {
                let payload = payloads.payload(&kinds[0], connection, number).to_vec();
                assert!(payload.len() == 16 && payload.is_ascii());
                assert_eq!(payloads.payload(&kinds[0], connection, number), payload);
                assert!(seen.insert(payload));
                assert!(seen.insert(payloads.payload(&kinds[1], connection, number).to_vec()));
            }
        }
    }

    #[test]
    fn scrambling_is_undone_whatever_the_width() {
        for bits in (0..=64).step_by(4) {
            let mut random = Random::new(u64::from(bits));
            for _ in 0..1000 {
                let number = low(random.number(), bits);
                let scrambled = scramble(number, bits);
                assert_eq!(low(scrambled, bits), scrambled);
                assert_eq!(unscramble(scrambled, bits), number, "{bits} bits");
            }
        }
    }

    #[test]
    fn an_echo_says_which_message_it_belongs_to() {
        for mix in ["16", "4", "8:binary", "2:binary", "100", "16,40:binary"] {
            let mut payloads = payloads(mix);
            let awaited = Awaited { connection: 7, next: 1000, end: 1020 };
            for number in [1001, 1007, 1019] {
                let kind = payloads.kind(7, number);
                let echo = payloads.payload(&kind, 7, number).to_vec();
                assert!(Payloads::is_stamped(&kind, 7, number, &echo));
                assert!(!Payloads::is_stamped(&kind, 7, 1000, &echo));
                assert_eq!(payloads.number_in(&awaited, kind.form, &echo), Some(number), "{mix}");
            }
        }
    }

    #[test]
    fn an_earlier_message_is_recognised_where_the_stamp_is_long_enough() {
        let awaited = Awaited { connection: 0, next: 1000, end: 1000 };
        for (mix, number) in [("16", Some(3)), ("8", Some(3)), ("4:binary", Some(3)), ("4", None)] {
            let mut payloads = payloads(mix);
            let kind = payloads.kind(0, 3);
            let echo = payloads.payload(&kind, 0, 3).to_vec();
            assert_eq!(payloads.number_in(&awaited, kind.form, &echo), number, "{mix}");
        }
    }

    /// Whichever bit of a stamp is damaged, the echo is not taken for that of another message in
    /// flight or answered.
    #[test]
    fn a_damaged_stamp_belongs_to_no_message() {
        for mix in ["16", "64:binary"] {
            let mut payloads = payloads(mix);
            let awaited = Awaited { connection: 1, next: 5000, end: 5100 };
            let kind = payloads.kind(1, 5000);
            let right = payloads.payload(&kind, 1, 5000).to_vec();
            for bit in 0..stamp_bytes(kind.form) * 8 {
                let mut echo = right.clone();
                echo[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(payloads.number_in(&awaited, kind.form, &echo), None, "bit {bit}");
            }
        }
    }

    #[test]
    fn empty_messages_have_no_stamp() {
        let payloads = payloads("0");
        let awaited = Awaited { connection: 0, next: 3, end: 9 };
        assert!(Payloads::is_stamped(&payloads.kind(0, 3), 0, 3, b""));
        assert_eq!(payloads.number_in(&awaited, Form::Text, b""), None);
    }
}
