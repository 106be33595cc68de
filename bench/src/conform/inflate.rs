//! A strict inflater (RFC 1951, RFC 7692 section 7.2.2), for what other inflaters do not tell: how far
//! back a message refers, and whether it ends where it should.
//!
//! A message has to end with an empty stored block, of which the sender has left out the last four bytes.
//! It may refer to what came before it within the window that was agreed on, and to earlier messages if
//! that was agreed on, too. A final block (BFINAL) ends at a byte; what follows may refer to what comes
//! before it.

use std::fmt;
use std::sync::OnceLock;

use ringecho::protocol::violation::Violation;

/// What RFC 7692 section 7.2.1 removes from the end of a message.
pub const TAIL: [u8; 4] = [0, 0, 0xff, 0xff];

/// The longest code (RFC 1951 section 3.2.7).
const CODE_BITS_MAX: usize = 15;
/// Codes up to this length are looked up in one step.
const TABLE_BITS: usize = 10;
/// How far DEFLATE refers back at most, in bytes.
const WINDOW_MAX: usize = 32 << 10;
/// How much is kept before what is no longer referred to is dropped.
const MEMORY_MAX: usize = 4 * WINDOW_MAX;

/// What is wrong with a compressed message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broken {
    /// It is no DEFLATE stream, or refers to what there is not.
    Invalid,
    /// It refers so many bytes back, which is further than was agreed on.
    BeyondWindow(usize),
    /// It does not end with the beginning of an empty stored block.
    Unfinished,
    /// It is too long to be an answer.
    TooLong,
}

impl Broken {
    /// The rule that it breaks.
    pub fn violation(self) -> Violation {
        match self {
            Broken::Invalid | Broken::BeyondWindow(_) | Broken::Unfinished => {
                Violation::CompressionInvalid
            }
            Broken::TooLong => Violation::MessageTooBig,
        }
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Broken::Invalid => f.write_str("it is no DEFLATE stream (RFC 1951)"),
            Broken::BeyondWindow(distance) => write!(
                f,
                "it refers {distance} bytes back, beyond the agreed window (RFC 7692 section 7.1.2)"
            ),
            Broken::Unfinished => f.write_str(
                "it does not end with the beginning of an empty block (RFC 7692 section 7.2.1)",
            ),
            Broken::TooLong => f.write_str("it is longer than any answer"),
        }
    }
}

/// Inflates the messages of one direction of a connection, one after another.
#[derive(Debug)]
pub struct Inflater {
    /// What may be referred to, and then the message.
    memory: Vec<u8>,
    /// The largest distance of a reference.
    window: usize,
    takes_over: bool,
    /// The input of the message that is being inflated.
    input: Vec<u8>,
}

impl Inflater {
    /// For messages with a window of so many bits, which refer to earlier ones or not.
    pub fn new(window_bits: u8, takes_over: bool) -> Inflater {
        let (memory, input) = (Vec::new(), Vec::new());
        Inflater { memory, window: 1 << window_bits, takes_over, input }
    }

    /// Takes `history` for what was inflated last.
    pub fn remember(&mut self, history: &[u8]) {
        self.memory.clear();
        self.memory.extend_from_slice(history);
    }

    /// The message of a compressed payload, which stays until the next one. It has at most `bytes_max`
    /// bytes.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub fn message(&mut self, payload: &[u8], bytes_max: usize) -> Result<&[u8], Broken> {
        if !self.takes_over {
            self.memory.clear();
        } else if self.memory.len() > MEMORY_MAX {
            self.memory.drain(..self.memory.len() - WINDOW_MAX);
        }
        let begin = self.memory.len();
        let mut input = std::mem::take(&mut self.input);
        input.clear();
        input.extend_from_slice(payload);
        input.extend_from_slice(&TAIL);
        let mut bits = Bits { bytes: &input, at: 0, buffer: 0, count: 0 };
        let mut output =
            Output { memory: &mut self.memory, window: self.window, end_max: begin + bytes_max };
        let inflated = inflate(&mut bits, payload.len(), &mut output);
        let inflated = inflated.map_err(|broken| match broken {
            // What ends too early takes the tail for something else.
            Broken::Invalid if bits.place() > payload.len() => Broken::Unfinished,
            broken => broken,
        });
        self.input = input;
        inflated.map(|()| &self.memory[begin..])
    }
}

/// Inflates all blocks. The tail, which begins at `tail`, must be the end of an empty stored block.
fn inflate(bits: &mut Bits<'_>, tail: usize, output: &mut Output<'_>) -> Result<(), Broken> {
    loop {
        let header = bits.take(3)?;
        match header >> 1 {
            0 => {
                let begin = bits.align();
                let (length, complement) = (bits.take(16)?, bits.take(16)?);
                if length != !complement & 0xffff {
                    return Err(Broken::Invalid);
                }
                if begin == tail {
                    return Ok(());
                }
                output.append(bits.bytes(length as usize)?)?;
            }
            1 => {
                let (literals, distances) = fixed_codes();
                symbols(literals, distances, bits, output)?;
            }
            2 => {
                let (literals, distances) = codes(bits)?;
                symbols(&literals, &distances, bits, output)?;
            }
            _ => return Err(Broken::Invalid),
        }
        if header & 1 == 1 {
            bits.align();
        }
    }
}

/// The symbols of a block, to its end.
fn symbols(
    literals: &Code,
    distances: &Code,
    bits: &mut Bits<'_>,
    output: &mut Output<'_>,
) -> Result<(), Broken> {
    loop {
        // The longest pair of length and distance has 48 bits.
        bits.fill();
        let symbol = literals.read(bits)?;
        if symbol < 256 {
            output.push(symbol as u8)?;
            continue;
        }
        let Some(length) = symbol.checked_sub(257) else { return Ok(()) };
        let (base, extra) = *LENGTHS.get(usize::from(length)).ok_or(Broken::Invalid)?;
        let length = base + bits.take_filled(extra)? as usize;
        let distance = distances.read(bits)?;
        let (base, extra) = *DISTANCES.get(usize::from(distance)).ok_or(Broken::Invalid)?;
        output.copy(length, base + bits.take_filled(extra)? as usize)?;
    }
}

/// What is inflated.
struct Output<'a> {
    memory: &'a mut Vec<u8>,
    window: usize,
    /// How long the memory may become.
    end_max: usize,
}

impl Output<'_> {
    fn push(&mut self, byte: u8) -> Result<(), Broken> {
        self.has_room_for(1)?;
        self.memory.push(byte);
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), Broken> {
        self.has_room_for(bytes.len())?;
        self.memory.extend_from_slice(bytes);
        Ok(())
    }

    fn copy(&mut self, length: usize, distance: usize) -> Result<(), Broken> {
        if distance > self.window {
            return Err(Broken::BeyondWindow(distance));
        }
        let from = self.memory.len().checked_sub(distance).ok_or(Broken::Invalid)?;
        self.has_room_for(length)?;
        if distance >= length {
            self.memory.extend_from_within(from..from + length);
        } else {
            // It overlaps what it makes.
            for at in from..from + length {
                self.memory.push(self.memory[at]);
            }
        }
        Ok(())
    }

    fn has_room_for(&self, bytes: usize) -> Result<(), Broken> {
        if self.memory.len() + bytes > self.end_max { Err(Broken::TooLong) } else { Ok(()) }
    }
}

/// The bits of a stream, the lowest of each byte first.
struct Bits<'a> {
    bytes: &'a [u8],
    /// The next byte that is not in the buffer.
    at: usize,
    buffer: u64,
    /// How many bits the buffer has.
    count: u32,
}

impl<'a> Bits<'a> {
    /// Makes it 56 bits at least, or all that are left.
    fn fill(&mut self) {
        if let Some(word) = self.bytes[self.at..].first_chunk() {
            self.buffer |= u64::from_le_bytes(*word) << self.count;
            let bytes = (63 - self.count) / 8;
            self.at += bytes as usize;
            self.count += 8 * bytes;
            // Bits of a byte that is not counted are the same when it is.
            return;
        }
        while self.count <= 56
            && let Some(byte) = self.bytes.get(self.at)
        {
            self.buffer |= u64::from(*byte) << self.count;
            self.at += 1;
            self.count += 8;
        }
    }

    fn take(&mut self, count: u32) -> Result<u32, Broken> {
        self.fill();
        self.take_filled(count)
    }

    /// Takes bits of the buffer.
    fn take_filled(&mut self, count: u32) -> Result<u32, Broken> {
        let bits = self.buffer as u32 & ((1 << count) - 1);
        self.skip(count)?;
        Ok(bits)
    }

    fn skip(&mut self, count: u32) -> Result<(), Broken> {
        self.count = self.count.checked_sub(count).ok_or(Broken::Unfinished)?;
        self.buffer >>= count;
        Ok(())
    }

    /// Leaves out the rest of a byte. Returns the place of the next one.
    fn align(&mut self) -> usize {
        self.at = self.place();
        (self.buffer, self.count) = (0, 0);
        self.at
    }

    /// The place of the first byte of which nothing is taken.
    fn place(&self) -> usize {
        self.at - self.count as usize / 8
    }

    /// Takes bytes, after [`Bits::align`] or whole ones.
    fn bytes(&mut self, count: usize) -> Result<&'a [u8], Broken> {
        let begin = self.align();
        let bytes = self.bytes.get(begin..begin + count).ok_or(Broken::Unfinished)?;
        self.at += count;
        Ok(bytes)
    }
}

/// A Huffman code.
struct Code {
    /// For each beginning of [`TABLE_BITS`] bits, the symbol and the length of its code in the lowest 4
    /// bits; 0 if that is longer.
    table: Box<[u16; 1 << TABLE_BITS]>,
    /// How many symbols each length has.
    counts: [u16; CODE_BITS_MAX + 1],
    /// The symbols in the order of their codes.
    symbols: Vec<u16>,
}

impl Code {
    /// A code of these lengths (RFC 1951 section 3.2.2). It must be complete, or have one symbol of one
    /// bit, or none.
    fn new(lengths: &[u8]) -> Result<Code, Broken> {
        let mut counts = [0u16; CODE_BITS_MAX + 1];
        lengths.iter().for_each(|length| counts[usize::from(*length)] += 1);
        counts[0] = 0;
        let (mut left, mut offsets, mut codes) = (1i32, [0u16; 17], [0u16; 17]);
        for bits in 1..=CODE_BITS_MAX {
            left = 2 * left - i32::from(counts[bits]);
            if left < 0 {
                return Err(Broken::Invalid);
            }
            offsets[bits + 1] = offsets[bits] + counts[bits];
            codes[bits + 1] = (codes[bits] + counts[bits]) << 1;
        }
        let all: u16 = counts.iter().sum();
        if left > 0 && all != counts[1] {
            return Err(Broken::Invalid);
        }
        let mut table = Box::new([0; 1 << TABLE_BITS]);
        let mut symbols = vec![0; usize::from(all)];
        for (symbol, length) in (0..).zip(lengths.iter().copied().map(usize::from)) {
            if length == 0 {
                continue;
            }
            symbols[usize::from(offsets[length])] = symbol;
            offsets[length] += 1;
            if length <= TABLE_BITS {
                let first = usize::from(codes[length].reverse_bits() >> (16 - length));
                let places = (first..1 << TABLE_BITS).step_by(1 << length);
                places.for_each(|place| table[place] = symbol << 4 | length as u16);
            }
            codes[length] += 1;
        }
        Ok(Code { table, counts, symbols })
    }

    /// The next symbol of a filled buffer.
    fn read(&self, bits: &mut Bits<'_>) -> Result<u16, Broken> {
        let entry = self.table[bits.buffer as usize & ((1 << TABLE_BITS) - 1)];
        if entry != 0 {
            bits.skip(u32::from(entry & 15))?;
            return Ok(entry >> 4);
        }
        let (mut code, mut first, mut index) = (0u32, 0u32, 0u32);
        for length in 1..=CODE_BITS_MAX {
            code |= (bits.buffer >> (length - 1)) as u32 & 1;
            let count = u32::from(self.counts[length]);
            if code < first + count {
                bits.skip(length as u32)?;
                return Ok(self.symbols[(index + code - first) as usize]);
            }
            index += count;
            first = (first + count) << 1;
            code <<= 1;
        }
        // The bits behind the end are 0.
        Err(if bits.count < CODE_BITS_MAX as u32 { Broken::Unfinished } else { Broken::Invalid })
    }
}

/// The lengths of symbols from 257 on, and how many bits are added (RFC 1951 section 3.2.5).
const LENGTHS: [(usize, u32); 29] = {
    let mut lengths = [(258, 0); 29];
    let (mut code, mut length) = (0, 3);
    while code < 28 {
        let extra = if code < 8 { 0 } else { code as u32 / 4 - 1 };
        lengths[code] = (length, extra);
        length += 1 << extra;
        code += 1;
    }
    lengths
};

/// The same of distances.
const DISTANCES: [(usize, u32); 30] = {
    let mut distances = [(0, 0); 30];
    let (mut code, mut distance) = (0, 1);
    while code < 30 {
        let extra = if code < 4 { 0 } else { code as u32 / 2 - 1 };
        distances[code] = (distance, extra);
        distance += 1 << extra;
        code += 1;
    }
    distances
};

/// The fixed codes (RFC 1951 section 3.2.6).
fn fixed_codes() -> &'static (Code, Code) {
    static CODES: OnceLock<(Code, Code)> = OnceLock::new();
    CODES.get_or_init(|| {
        let mut lengths = [8; 288];
        lengths[144..256].fill(9);
        lengths[256..280].fill(7);
        let code = |lengths: &[u8]| Code::new(lengths).expect("a complete code");
        (code(&lengths), code(&[5; 32]))
    })
}

/// The codes of a block that has its own (RFC 1951 section 3.2.7).
fn codes(bits: &mut Bits<'_>) -> Result<(Code, Code), Broken> {
    const ORDER: [usize; 19] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];
    let (literals, distances) = (bits.take(5)? as usize + 257, bits.take(5)? as usize + 1);
    let count = bits.take(4)? as usize + 4;
    if literals > 286 || distances > 30 {
        return Err(Broken::Invalid);
    }
    let mut lengths = [0; 19];
    for place in &ORDER[..count] {
        lengths[*place] = bits.take(3)? as u8;
    }
    // This code, unlike the others, has to be complete.
    let used = lengths.iter().filter(|length| **length > 0);
    if used.map(|length| 128u32 >> length).sum::<u32>() != 128 {
        return Err(Broken::Invalid);
    }
    let code = Code::new(&lengths)?;
    let all = literals + distances;
    let mut lengths = Vec::with_capacity(all);
    while lengths.len() < all {
        bits.fill();
        let (length, times) = match code.read(bits)? {
            16 => (*lengths.last().ok_or(Broken::Invalid)?, 3 + bits.take_filled(2)?),
            17 => (0, 3 + bits.take_filled(3)?),
            18 => (0, 11 + bits.take_filled(7)?),
            length => (length as u8, 1),
        };
        lengths.extend(std::iter::repeat_n(length, times as usize));
    }
    // Without an end, a block has none.
    if lengths.len() > all || lengths[256] == 0 {
        return Err(Broken::Invalid);
    }
    Ok((Code::new(&lengths[..literals])?, Code::new(&lengths[literals..])?))
}

#[cfg(test)]
mod tests {
    use flate2::{Compress, Compression, FlushCompress};
    use testkit::deflate::{Compressor, Place, Reference};
    use testkit::random::cases;

    use super::*;

    /// Everything that zlib makes of texts of every kind, at every level and with every window.
    #[test]
    fn what_zlib_deflates_is_inflated_within_its_window() {
        for mut case in cases("what_zlib_deflates_is_inflated_within_its_window", 150) {
            let random = &mut case.random;
            let window_bits = 9 + random.below(7) as u8;
            let level = Compression::new(random.below(10) as u32);
            let mut deflater = Compress::new_with_window_bits(level, false, window_bits);
            let mut inflater = Inflater::new(window_bits, true);
            for _ in 0..6 {
                let (length, letters) = (random.below(90_000), 1 + random.below(256));
                let message: Vec<u8> = (0..length).map(|_| random.below(letters) as u8).collect();
                let mut payload = Vec::with_capacity(2 * length + 1000);
                deflater
                    .compress_vec(&message, &mut payload, FlushCompress::Sync)
                    .expect("it cannot fail");
                payload.truncate(payload.len() - TAIL.len());
                assert_eq!(inflater.message(&payload, length), Ok(&message[..]));
                if length > 0 {
                    let mut fresh = Inflater::new(15, true);
                    assert_ne!(fresh.message(&payload, length - 1), Ok(&message[..]));
                }
            }
        }
    }

    /// The compressor of the testkit also writes final blocks, and refers to the very edge of its window.
    #[test]
    fn unusual_blocks_are_inflated_and_no_reference_goes_beyond_the_window() {
        for mut case in cases("unusual_blocks_are_inflated", 300) {
            let random = &mut case.random;
            let window_bits = 8 + random.below(8) as u8;
            let mut compressor = Compressor::referring(Reference::Farthest, 1 << window_bits);
            let mut inflater = Inflater::new(window_bits, true);
            for _ in 0..4 {
                let length = random.below(3000);
                let message: Vec<u8> = (0..length).map(|_| random.below(4) as u8).collect();
                let (left, right) = message.split_at(random.below(length + 1));
                let payload = [(left, Place::Within), (right, Place::Last)]
                    .map(|(piece, place)| compressor.blocks(piece, place, random))
                    .concat();
                assert_eq!(inflater.message(&payload, length), Ok(&message[..]));
            }
        }
        let far = [b"abcdefgh", &[b'-'; 300][..], b"abcdefgh"].concat();
        let payload = Compressor::referring(Reference::Farthest, 1 << 15).message(&far);
        assert_eq!(Inflater::new(9, true).message(&payload, 1000), Ok(&far[..]));
        let found = Inflater::new(8, true).message(&payload, 1000).map(<[u8]>::to_vec);
        assert!(matches!(found, Err(Broken::BeyondWindow(257..))), "{found:?}");
    }

    /// RFC 7692 section 7.2.3.
    #[test]
    fn messages_are_those_of_the_standard() {
        let again = b"\xf2\x00\x11\x00\x00";
        let mut inflater = Inflater::new(15, true);
        for payload in [&b"\xf2\x48\xcd\xc9\xc9\x07\x00"[..], again] {
            assert_eq!(inflater.message(payload, 5), Ok(&b"Hello"[..]));
        }
        for payload in [
            &b"\x00\x05\x00\xfa\xff\x48\x65\x6c\x6c\x6f\x00"[..],
            b"\xf3\x48\xcd\xc9\xc9\x07\x00\x00",
            b"\xf2\x48\x05\x00\x00\x00\xff\xff\xca\xc9\xc9\x07\x00",
        ] {
            assert_eq!(Inflater::new(15, true).message(payload, 5), Ok(&b"Hello"[..]));
        }
        assert_eq!(Inflater::new(15, true).message(b"\0", 0), Ok(&b""[..]));
        let mut fresh = Inflater::new(15, false);
        fresh.message(b"\xf2\x48\xcd\xc9\xc9\x07\x00", 5).expect("valid");
        assert_eq!(fresh.message(again, 5), Err(Broken::Invalid));
        fresh.remember(b"Hello");
        assert_eq!(fresh.message(again, 5), Err(Broken::Invalid), "it forgets");
        inflater.remember(b"Jallo");
        assert_eq!(inflater.message(again, 5), Ok(&b"Hallo"[..]));
    }

    #[test]
    fn a_message_ends_with_the_beginning_of_an_empty_block() {
        let hello = b"\xf2\x48\xcd\xc9\xc9\x07\x00";
        for payload in [
            &hello[..4],
            &hello[..6],
            b"",
            &[&hello[..], &TAIL].concat(),
            b"\x00\x05\x00\xfa\xffHe",
            // The tail becomes the rest of a stored block.
            b"\x00\x04\x00\xfb\xff",
            b"\xf3\x48\xcd\xc9\xc9\x07\x00",
            b"\x00\x05\x00",
        ] {
            let found = Inflater::new(15, true).message(payload, 1000).map(<[u8]>::to_vec);
            assert_eq!(found, Err(Broken::Unfinished), "{payload:x?}");
        }
        for payload in [&b"\x06\x00"[..], b"\x00\x05\x00\xfa\xfeHello\x00", b"\x4a\x04\x42\x00\x00"]
        {
            let found = Inflater::new(15, true).message(payload, 1000).map(<[u8]>::to_vec);
            assert_eq!(found, Err(Broken::Invalid), "{payload:x?}");
        }
        let found = Inflater::new(15, true).message(hello, 4).map(<[u8]>::to_vec);
        assert_eq!(found, Err(Broken::TooLong));
    }

    /// Whatever is broken in a message, it is an error or another message, as the inflater of the testkit
    /// finds it.
    #[test]
    fn broken_messages_are_found_as_another_inflater_finds_them() {
        for mut case in cases("broken_messages_are_found", 3000) {
            let random = &mut case.random;
            let length = random.below(400);
            let message: Vec<u8> = (0..length).map(|_| random.below(40) as u8).collect();
            let level = Compression::new(random.below(10) as u32);
            let mut deflater = Compress::new(level, false);
            let mut payload = Vec::with_capacity(2 * length + 1000);
            deflater
                .compress_vec(&message, &mut payload, FlushCompress::Sync)
                .expect("it cannot fail");
            payload.truncate(payload.len() - TAIL.len());
            let at = random.below(payload.len());
            match random.below(3) {
                0 => payload.truncate(at),
                1 => payload[at] ^= 1 << random.below(8),
                _ => {
                    payload.remove(at);
                }
            }
            let found = Inflater::new(15, true).message(&payload, 1 << 20).map(<[u8]>::to_vec);
            let expected = testkit::inflate::Inflater::default().message(&payload);
            match (found, expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected),
                (Err(_), Err(_)) => {}
                (found, expected) => panic!("{payload:x?}: {found:?}, {expected:?}"),
            }
        }
    }
}
