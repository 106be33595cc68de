//! The client's inflaters.

use flate2::{Decompress, FlushDecompress, Status};

use crate::TAIL;
use crate::agreement::Agreed;

/// The client's inflater: two that have to agree, and keep to the window.
pub(crate) struct Receiver {
    pub(crate) agreed: Agreed,
    pub(crate) zlib: Decompress,
    pub(crate) plain: Inflater,
}

impl Receiver {
    pub(crate) fn new(agreed: Agreed) -> Receiver {
        // zlib's least window is wider than the least there is. The other one knows.
        let zlib = Decompress::new_with_window_bits(false, agreed.server_bits.max(9) as u8);
        Receiver { agreed, zlib, plain: Inflater::default() }
    }

    pub(crate) fn inflate(&mut self, payload: &[u8]) -> Result<Vec<u8>, String> {
        if self.agreed.server_no_context_takeover {
            self.zlib.reset(false);
            self.plain = Inflater::default();
        }
        let message = self.plain.message(payload).map_err(|end| format!("{end:?}"))?;
        let (greatest, bits) = (self.plain.greatest, self.agreed.server_bits);
        if greatest > 1 << bits {
            return Err(format!("a distance of {greatest} in a window of {bits} bits"));
        }
        let input = [payload, &TAIL].concat();
        let (mut rest, mut output) = (&input[..], Vec::with_capacity(message.len() + 1));
        while !rest.is_empty() {
            let before = self.zlib.total_in();
            let status = self.zlib.decompress_vec(rest, &mut output, FlushDecompress::Sync);
            let status = status.map_err(|error| error.to_string())?;
            let read = (self.zlib.total_in() - before) as usize;
            rest = &rest[read..];
            if status == Status::StreamEnd {
                self.zlib.reset(false);
            } else if read == 0 {
                return Err("zlib inflates to more".to_owned());
            }
        }
        if output != message {
            return Err("zlib inflates to something else".to_owned());
        }
        Ok(message)
    }
}

/// A plain, slow inflater (RFC 1951), which can be asked after any octet.
#[derive(Clone, Default)]
pub(crate) struct Inflater {
    /// All of the data set.
    pub(crate) history: Vec<u8>,
    /// The greatest distance so far.
    pub(crate) greatest: usize,
}

/// Why there are no more octets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// There is no block to go on with.
    Between,
    /// More must follow.
    Within,
    /// Nothing that follows could make it right.
    Invalid,
}

/// The bits of a stream, the lowest of each octet first.
pub(crate) struct Bits<'a> {
    pub(crate) octets: &'a [u8],
    pub(crate) at: usize,
}

impl Bits<'_> {
    pub(crate) fn take(&mut self, count: u32) -> Result<usize, End> {
        let mut bits = 0;
        for place in 0..count {
            let octet = self.octets.get(self.at / 8).ok_or(End::Within)?;
            bits |= usize::from(octet >> (self.at % 8) & 1) << place;
            self.at += 1;
        }
        Ok(bits)
    }

    pub(crate) fn align(&mut self) {
        self.at = self.at.next_multiple_of(8);
    }
}

/// A Huffman code: how many symbols each length has, and the symbols in the order of their codes.
pub(crate) struct Code {
    pub(crate) counts: [usize; 16],
    pub(crate) symbols: Vec<usize>,
    /// Codes of the greatest length that stand for nothing; less than none is too many.
    pub(crate) left: isize,
}

impl Code {
    pub(crate) fn new(lengths: &[usize]) -> Code {
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
    pub(crate) fn is_usable(&self) -> bool {
        self.left == 0 || self.left > 0 && self.counts[1..].iter().sum::<usize>() == self.counts[1]
    }

    pub(crate) fn read(&self, bits: &mut Bits<'_>) -> Result<usize, End> {
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
    /// A whole message, or what is wrong with it: it must end between two blocks, at the end of an
    /// octet.
    pub(crate) fn message(&mut self, payload: &[u8]) -> Result<Vec<u8>, End> {
        let mut output = Vec::new();
        match self.inflate(&[payload, &TAIL].concat(), &mut output) {
            End::Between => Ok(output),
            end @ (End::Within | End::Invalid) => Err(end),
        }
    }

    /// Inflates all that can be known of `octets`.
    pub(crate) fn inflate(&mut self, octets: &[u8], output: &mut Vec<u8>) -> End {
        let mut bits = Bits { octets, at: 0 };
        while bits.at < octets.len() * 8 {
            if let Err(end) = self.block(&mut bits, output) {
                return end;
            }
        }
        End::Between
    }

    pub(crate) fn block(&mut self, bits: &mut Bits<'_>, output: &mut Vec<u8>) -> Result<(), End> {
        let is_final = bits.take(1)? == 1;
        match bits.take(2)? {
            0 => {
                bits.align();
                let (length, complement) = (bits.take(16)?, bits.take(16)?);
                if length != !complement & 0xffff {
                    return Err(End::Invalid);
                }
                for _ in 0..length {
                    self.say(bits.take(8)? as u8, output);
                }
            }
            1 => {
                let mut lengths = [8; 288];
                lengths[144..256].fill(9);
                lengths[256..280].fill(7);
                self.symbols(&Code::new(&lengths), &Code::new(&[5; 30]), bits, output)?;
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

    pub(crate) fn symbols(
        &mut self,
        literals: &Code,
        distances: &Code,
        bits: &mut Bits<'_>,
        output: &mut Vec<u8>,
    ) -> Result<(), End> {
        loop {
            let symbol = literals.read(bits)?;
            if symbol < 256 {
                self.say(symbol as u8, output);
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
                self.say(self.history[self.history.len() - distance], output);
            }
        }
    }

    pub(crate) fn say(&mut self, octet: u8, output: &mut Vec<u8>) {
        self.history.push(octet);
        output.push(octet);
    }
}

/// The codes that a block brings with it (RFC 1951 section 3.2.7).
pub(crate) fn codes(bits: &mut Bits<'_>) -> Result<(Code, Code), End> {
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
