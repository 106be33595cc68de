//! Compressing messages again (RFC 7692 section 7.2.1).
//!
//! This file knows neither frames nor connections, and does not decide when to compress.

use std::fmt;

use zlib_rs::{Deflate, DeflateConfig, DeflateFlush};

use super::inflate::TAIL;

/// The header of an empty block without compression, with its padding. Its length fields are [`TAIL`].
const EMPTY_BLOCK_HEADER: u8 = 0;

/// The compressor writes a block when it has 2 to the power of 6 more than this symbols: literals and references.
/// A block is written in one step, which takes some 20 µs for these 4096 symbols, and twice to three times as long
/// for the 16,384 that are usual. Messages are longer by less than one per cent.
const MEMORY_LEVEL: i32 = 6;

/// The compressor of one direction of a connection.
pub(super) struct Deflater {
    zlib: Deflate,
    window_bits: u8,
}

impl fmt::Debug for Deflater {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Deflater").field("window_bits", &self.window_bits).finish_non_exhaustive()
    }
}

impl Deflater {
    /// A compressor with a window of 2 to the power of `window_bits` bytes, 9 to 15. `level` is from 1 to 9.
    pub(super) fn new(level: u8, window_bits: u8) -> Deflater {
        let config = DeflateConfig {
            level: level.into(),
            // Negative: without a header.
            window_bits: -i32::from(window_bits),
            mem_level: MEMORY_LEVEL,
            ..DeflateConfig::default()
        };
        Deflater { zlib: Deflate::new_with_config(config), window_bits }
    }

    pub(super) fn window_bits(&self) -> u8 {
        self.window_bits
    }

    /// Forgets all earlier messages.
    pub(super) fn reset(&mut self) {
        self.zlib.reset();
    }

    /// Compresses the next piece of a message, and appends what comes out to `output`.
    pub(super) fn compress(&mut self, piece: &[u8], output: &mut Vec<u8>) {
        self.run(piece, output, DeflateFlush::NoFlush);
    }

    /// Ends a message, and appends the rest of it to `output`.
    pub(super) fn finish(&mut self, output: &mut Vec<u8>) {
        self.run(&[], output, DeflateFlush::SyncFlush);
        match output.strip_suffix(&TAIL) {
            Some(kept) => output.truncate(kept.len()),
            // Nothing is flushed if nothing was written since the last flush. An empty message is this
            // one byte (section 7.2.3.6).
            None => output.push(EMPTY_BLOCK_HEADER),
        }
    }

    fn run(&mut self, mut input: &[u8], output: &mut Vec<u8>, flush: DeflateFlush) {
        loop {
            let (length, total_in, total_out) =
                (output.len(), self.zlib.total_in(), self.zlib.total_out());
            output.resize(length + input.len() / 2 + 64, 0);
            self.zlib.compress(input, &mut output[length..], flush).expect("a sound state");
            let end = length + (self.zlib.total_out() - total_out) as usize;
            input = &input[(self.zlib.total_in() - total_in) as usize..];
            let is_full = end == output.len();
            output.truncate(end);
            if input.is_empty() && !is_full {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use testkit::inflate::Inflater;

    use super::*;

    fn message(deflater: &mut Deflater, message: &[u8]) -> Vec<u8> {
        let mut output = Vec::new();
        deflater.compress(message, &mut output);
        deflater.finish(&mut output);
        output
    }

    #[test]
    fn messages_refer_to_earlier_ones_until_it_is_reset() {
        let text = testkit::Random::new(1).bytes(200);
        for bits in 9..=15 {
            let (mut deflater, mut receiver) = (Deflater::new(6, bits), Inflater::default());
            let payloads = [(); 2].map(|()| message(&mut deflater, &text));
            for payload in &payloads {
                assert_eq!(receiver.message(payload).as_deref(), Ok(&text[..]));
            }
            assert!(payloads[0].len() > 200 && payloads[1].len() < 20);
            deflater.reset();
            assert_eq!(message(&mut deflater, &text), payloads[0]);
        }
    }

    #[test]
    fn an_empty_message_is_a_zero() {
        let mut deflater = Deflater::new(6, 15);
        for _ in 0..2 {
            let mut output = Vec::new();
            deflater.finish(&mut output);
            assert_eq!(output, [0]);
            assert!(message(&mut deflater, b"Hello").len() > 1);
        }
    }
}
