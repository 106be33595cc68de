//! A plain, slow inflater (RFC 1951). It can inflate a message up to any byte, and knows the greatest
//! distance of a reference.

use std::sync::OnceLock;

/// The bytes that section 7.2.1 of RFC 7692 removes from the end of a message.
pub const TAIL: [u8; 4] = [0, 0, 0xff, 0xff];

/// Inflates the messages of one direction of a connection, one after another.
#[derive(Debug, Clone, Default)]
pub struct Inflater {
    /// Everything since the last final block: what may be referred to.
    history: Vec<u8>,
    /// The greatest distance of a reference so far.
    greatest: usize,
}

/// Why there is no more output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The input ends between two blocks.
    Between,
    /// The input ends within a block: more must follow.
    Within,
    /// The input is no DEFLATE stream, whatever follows.
    Invalid,
}

/// The bits of a stream, the lowest of each byte first.
struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Bits<'_> {
    fn take(&mut self, count: u32) -> Result<usize, End> {
        let mut bits = 0;
        for place in 0..count {
            let byte = self.bytes.get(self.at / 8).ok_or(End::Within)?;
            bits |= usize::from(byte >> (self.at % 8) & 1) << place;
            self.at += 1;
        }
        Ok(bits)
    }

    fn align(&mut self) {
        self.at = self.at.next_multiple_of(8);
    }
}

/// A Huffman code: how many symbols each length has, and the symbols in the order of their codes.
struct Code {
    counts: [usize; 16],
    symbols: Vec<usize>,
    /// Codes of the greatest length that are not assigned; negative if more were assigned than exist.
    left: isize,
}

impl Code {
    fn new(lengths: &[usize]) -> Code {
        let mut counts = [0; 16];
        lengths.iter().for_each(|&length| counts[length] += 1);
        let mut left = 1;
        for &count in &counts[1..] {
            left = left * 2 - count as isize;
            if left < 0 {
                break;
            }
        }
        let mut symbols: Vec<usize> = (0..lengths.len()).filter(|&at| lengths[at] > 0).collect();
        symbols.sort_by_key(|&symbol| lengths[symbol]);
        Code { counts, symbols, left }
    }

    /// Whether it can be used: complete, or of one symbol with one bit, or empty.
    fn is_usable(&self) -> bool {
        self.left == 0 || self.left > 0 && self.counts[1..].iter().sum::<usize>() == self.counts[1]
    }

    fn read(&self, bits: &mut Bits<'_>) -> Result<usize, End> {
        let (mut code, mut first, mut index) = (0, 0, 0);
        for &count in &self.counts[1..] {
            code |= bits.take(1)?;
            if code < first + count {
                return Ok(self.symbols[index + code - first]);
            }
            index += count;
            first = (first + count) << 1;
            code <<= 1;
        }
        Err(End::Invalid)
    }
}

/// The lengths of symbols from 257 on, and how many bits are added (RFC 1951 section 3.2.5).
pub(crate) const LENGTHS: [(usize, u32); 29] = {
    let mut lengths = [(0, 0); 29];
    let (mut code, mut length) = (0, 3);
    while code < 28 {
        let extra = if code < 8 { 0 } else { code as u32 / 4 - 1 };
        lengths[code] = (length, extra);
        length += 1 << extra;
        code += 1;
    }
    lengths[28] = (258, 0);
    lengths
};

/// The same of distances.
pub(crate) const DISTANCES: [(usize, u32); 30] = {
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

impl Inflater {
    /// Inflates a whole message, without its [`TAIL`], or says what is wrong with it: it must end
    /// between two blocks, at the end of a byte, and the tail adds nothing to it.
    pub fn message(&mut self, payload: &[u8]) -> Result<Vec<u8>, End> {
        let beginning = self.beginning(payload).len();
        let mut output = Vec::new();
        match self.inflate(&[payload, &TAIL].concat(), &mut output) {
            End::Between if output.len() > beginning => Err(End::Within),
            End::Between => Ok(output),
            end @ (End::Within | End::Invalid) => Err(end),
        }
    }

    /// As much of a message as can be inflated from the `payload` so far. Does not change the inflater.
    pub fn beginning(&self, payload: &[u8]) -> Vec<u8> {
        let mut output = Vec::new();
        self.clone().inflate(payload, &mut output);
        output
    }

    /// Forgets what is further back than `bytes`, so that the next message may not refer to it.
    pub fn keep_last(&mut self, bytes: usize) {
        self.history.drain(..self.history.len().saturating_sub(bytes));
    }

    /// The greatest distance of a reference so far.
    pub fn greatest_distance(&self) -> usize {
        self.greatest
    }

    /// Inflates as much of `bytes` as possible.
    fn inflate(&mut self, bytes: &[u8], output: &mut Vec<u8>) -> End {
        let mut bits = Bits { bytes, at: 0 };
        while bits.at < bytes.len() * 8 {
            if let Err(end) = self.block(&mut bits, output) {
                return end;
            }
        }
        End::Between
    }

    fn block(&mut self, bits: &mut Bits<'_>, output: &mut Vec<u8>) -> Result<(), End> {
        let is_final = bits.take(1)? == 1;
        match bits.take(2)? {
            0 => {
                bits.align();
                let (length, complement) = (bits.take(16)?, bits.take(16)?);
                if length != !complement & 0xffff {
                    return Err(End::Invalid);
                }
                for _ in 0..length {
                    self.put(bits.take(8)? as u8, output);
                }
            }
            1 => {
                let (literals, distances) = fixed_codes();
                self.symbols(literals, distances, bits, output)?;
            }
            2 => {
                let (literals, distances) = codes(bits)?;
                self.symbols(&literals, &distances, bits, output)?;
            }
            _ => return Err(End::Invalid),
        }
        if is_final {
            bits.align();
            self.history.clear();
        }
        Ok(())
    }

    fn symbols(
        &mut self,
        literals: &Code,
        distances: &Code,
        bits: &mut Bits<'_>,
        output: &mut Vec<u8>,
    ) -> Result<(), End> {
        loop {
            let symbol = literals.read(bits)?;
            if symbol < 256 {
                self.put(symbol as u8, output);
                continue;
            }
            let Some(code) = symbol.checked_sub(257) else { return Ok(()) };
            let &(base, extra) = LENGTHS.get(code).ok_or(End::Invalid)?;
            let length = base + bits.take(extra)?;
            let (base, extra) = DISTANCES[distances.read(bits)?];
            let distance = base + bits.take(extra)?;
            if distance > self.history.len() {
                return Err(End::Invalid);
            }
            self.greatest = self.greatest.max(distance);
            for _ in 0..length {
                self.put(self.history[self.history.len() - distance], output);
            }
        }
    }

    fn put(&mut self, byte: u8, output: &mut Vec<u8>) {
        self.history.push(byte);
        output.push(byte);
    }
}

/// The fixed Huffman codes (RFC 1951 section 3.2.6).
fn fixed_codes() -> &'static (Code, Code) {
    static CODES: OnceLock<(Code, Code)> = OnceLock::new();
    CODES.get_or_init(|| {
        let mut lengths = [8; 288];
        lengths[144..256].fill(9);
        lengths[256..280].fill(7);
        (Code::new(&lengths), Code::new(&[5; 30]))
    })
}

/// The dynamic Huffman codes of a block (RFC 1951 section 3.2.7).
fn codes(bits: &mut Bits<'_>) -> Result<(Code, Code), End> {
    let (literals, distances) = (bits.take(5)? + 257, bits.take(5)? + 1);
    let count = bits.take(4)? + 4;
    if literals > 286 || distances > 30 {
        return Err(End::Invalid);
    }
    let mut lengths = [0; 19];
    for place in [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15][..count].iter()
    {
        lengths[*place] = bits.take(3)?;
    }
    let code = Code::new(&lengths);
    if code.left != 0 {
        return Err(End::Invalid);
    }
    let mut lengths = Vec::new();
    while lengths.len() < literals + distances {
        let (length, times) = match code.read(bits)? {
            16 => (*lengths.last().ok_or(End::Invalid)?, 3 + bits.take(2)?),
            17 => (0, 3 + bits.take(3)?),
            18 => (0, 11 + bits.take(7)?),
            length => (length, 1),
        };
        lengths.extend(vec![length; times]);
    }
    if lengths.len() > literals + distances || lengths[256] == 0 {
        return Err(End::Invalid);
    }
    let (literals, distances) = (Code::new(&lengths[..literals]), Code::new(&lengths[literals..]));
    if !literals.is_usable() || !distances.is_usable() {
        return Err(End::Invalid);
    }
    Ok((literals, distances))
}

#[cfg(test)]
mod tests {
    use super::{End, Inflater};

    /// RFC 7692 section 7.2.3.
    #[test]
    fn messages_are_those_of_the_standard() {
        let mut inflater = Inflater::default();
        for payload in [&b"\xf2\x48\xcd\xc9\xc9\x07\x00"[..], b"\xf2\x00\x11\x00\x00"] {
            assert_eq!(inflater.message(payload).as_deref(), Ok(&b"Hello"[..]));
        }
        assert_eq!(inflater.greatest_distance(), 5);
        assert_eq!(inflater.beginning(b"\xf2\x48\xcd"), b"He");
        assert_eq!(inflater.clone().message(b"\xf2\x48\xcd"), Err(End::Within));
        // A final block ends all references into what came before.
        assert_eq!(
            inflater.message(b"\xf3\x48\xcd\xc9\xc9\x07\x00\x00").as_deref(),
            Ok(&b"Hello"[..])
        );
        assert_eq!(inflater.message(b"\xf2\x00\x11\x00\x00"), Err(End::Invalid));
    }

    #[test]
    fn what_was_forgotten_is_not_referred_to() {
        // The message refers to the last four bytes of the one before.
        for (bytes, outcome) in [(4, Ok(&b"Hello"[..])), (3, Err(End::Invalid))] {
            let mut inflater = Inflater::default();
            inflater.message(b"\xf2\x48\xcd\xc9\xc9\x07\x00").expect("a message");
            inflater.keep_last(bytes);
            let message = inflater.message(b"\xf2\x00\x11\x00\x00");
            assert_eq!(message.as_deref(), outcome.as_ref().map(|message| *message), "{bytes}");
        }
    }
}
