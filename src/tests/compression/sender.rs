//! The client's compressors.

use flate2::{Compress, FlushCompress};

use crate::agreement::Agreed;
use testkit::Random;
use testkit::deflate::{Compressor, Place};
use testkit::inflate::TAIL;

/// The client's compressor.
pub(crate) struct Sender {
    pub(crate) agreed: Agreed,
    pub(crate) zlib: Compress,
    pub(crate) by_hand: Compressor,
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
            by_hand: Compressor::new(1 << bits),
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
                let place = if is_last { Place::Last } else { Place::Within };
                payload.extend(self.by_hand.blocks(piece, place, random));
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
            // Section 7.2.3.4: a block with BFINAL set is followed by a zero byte.
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
