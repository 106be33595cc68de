//! Inflating the payloads of compressed messages (RFC 7692 section 7.2.2), for either role.
//!
//! A sender takes the tail `00 00 ff ff` off the end of each message, and the receiver puts it back.
//! The tail belongs to an empty block, so it inflates to nothing. Where it inflates to anything, the
//! payload ends in the wrong place, and that output is not the peer's data: [`Inflater::finish`]
//! refuses the message.
//!
//! A block with BFINAL set ends a data set of DEFLATE (RFC 1951 section 3.2.3, RFC 7692 section
//! 7.2.3.4). What follows, in the same message or the next, is another data set, which refers to
//! nothing before it.
//!
//! The inflater always has the largest window. A peer that refers further back than it agreed to is caught
//! where the inflater does not know what is there: see [`Inflater::prime`]. This file knows neither frames
//! nor text.

use std::fmt;

use zlib_rs::{Inflate, InflateFlush, Status};

use super::extension::WINDOW_BITS_MAX;
use super::violation::Violation;

/// What a sender takes off the end of a message (RFC 7692 section 7.2.1): the length fields of an
/// empty block without compression.
pub const TAIL: [u8; 4] = [0, 0, 0xff, 0xff];

/// A whole empty block without compression: a header of three bits, padding, and [`TAIL`].
const EMPTY_BLOCK: [u8; 5] = [0, 0, 0, 0xff, 0xff];

/// The inflater of one direction of a connection.
pub struct Inflater(Inflate);

impl fmt::Debug for Inflater {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inflater").field("total_out", &self.0.total_out()).finish_non_exhaustive()
    }
}

impl Default for Inflater {
    fn default() -> Inflater {
        Inflater(Inflate::new(false, WINDOW_BITS_MAX))
    }
}

/// What one call of the inflater did.
#[derive(Debug, Clone, Copy)]
pub(super) struct Step {
    /// Bytes taken from the input.
    pub(super) read: usize,
    /// Bytes of output. They come before what `outcome` says, also where that is an error.
    pub(super) written: usize,
    pub(super) outcome: Outcome,
}

/// How a call of the inflater ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The input is used up, the output is full, or a block has ended.
    Paused,
    /// A data set has ended, and the next one begins.
    DataSetEnded,
    /// What follows cannot be inflated.
    Invalid,
}

impl Inflater {
    /// Forgets all earlier messages.
    pub fn reset(&mut self) {
        self.0.reset(false);
    }

    /// Makes `pieces`, the end of the earlier messages, all that the next one may refer to. The inflater
    /// was reset.
    pub(super) fn prime(&mut self, pieces: [&[u8]; 2]) {
        for piece in pieces {
            self.0.set_dictionary(piece).expect("a stream without a header takes any");
        }
    }

    /// Inflates a whole message.
    ///
    /// # Errors
    ///
    /// [`Violation::CompressionInvalid`] if the payload cannot be inflated or does not end between two
    /// blocks, [`Violation::MessageTooBig`] if it inflates to more than `message_max` bytes. Nothing
    /// more can be inflated after an error.
    pub fn message(
        &mut self,
        mut payload: &[u8],
        message_max: usize,
    ) -> Result<Vec<u8>, Violation> {
        let mut message = vec![0; payload.len().saturating_mul(4).clamp(64, 64 << 10)];
        let mut length = 0;
        loop {
            let step = self.step(payload, &mut message[length..]);
            payload = &payload[step.read..];
            length += step.written;
            if length > message_max {
                return Err(Violation::MessageTooBig);
            }
            match step.outcome {
                Outcome::Invalid => return Err(Violation::CompressionInvalid),
                // More output may be ready than there was room for.
                Outcome::Paused if length == message.len() => message.resize(2 * length, 0),
                Outcome::Paused if payload.is_empty() => break,
                Outcome::Paused => {}
                Outcome::DataSetEnded => {}
            }
        }
        self.finish()?;
        message.truncate(length);
        Ok(message)
    }

    /// Inflates as much of `input` as `output` has room for, but no further than to the end of a block:
    /// reading the tables of a block takes long compared with the output that they may stand for.
    pub(super) fn step(&mut self, input: &[u8], output: &mut [u8]) -> Step {
        self.step_until(InflateFlush::Block, input, output)
    }

    /// Ends a message, after all output of its payload has been taken: checks that the payload ends
    /// where the tail belongs, so that both end between two blocks, at the end of a byte.
    ///
    /// The inflater stops after each block. So it must read the tail and nothing beyond, and then an
    /// empty block and nothing beyond, and both inflate to nothing. Says whether a data set has ended
    /// with the payload.
    ///
    /// # Errors
    ///
    /// [`Violation::CompressionInvalid`]. A payload without a byte is such a case: the tail alone is no
    /// block (section 7.2.3.6 writes an empty message as one byte, zero). So is a block without
    /// compression that lacks its last four bytes, for which the tail would stand in.
    pub(super) fn finish(&mut self) -> Result<Outcome, Violation> {
        let [tail, probe] = [[&TAIL[..], &EMPTY_BLOCK].concat(), [&EMPTY_BLOCK[..], &[0]].concat()];
        let step = self.step_until(InflateFlush::Block, &tail, &mut [0]);
        if step.read != TAIL.len() || step.written > 0 || step.outcome == Outcome::Invalid {
            return Err(Violation::CompressionInvalid);
        }
        let step = self.step_until(InflateFlush::Block, &probe, &mut [0]);
        // After the last block of a data set the inflater stops as well, and reports that end only now.
        let read = if step.outcome == Outcome::DataSetEnded { 0 } else { EMPTY_BLOCK.len() };
        if step.read != read || step.written > 0 || step.outcome == Outcome::Invalid {
            return Err(Violation::CompressionInvalid);
        }
        Ok(step.outcome)
    }

    fn step_until(&mut self, flush: InflateFlush, input: &[u8], output: &mut [u8]) -> Step {
        let (total_in, total_out) = (self.0.total_in(), self.0.total_out());
        let status = self.0.decompress(input, output, flush);
        let read = (self.0.total_in() - total_in) as usize;
        let written = (self.0.total_out() - total_out) as usize;
        let outcome = match status {
            Ok(Status::Ok | Status::BufError) => Outcome::Paused,
            Ok(Status::StreamEnd) => {
                self.reset();
                Outcome::DataSetEnded
            }
            Err(_) => Outcome::Invalid,
        };
        Step { read, written, outcome }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELLO: &[u8] = b"\xf2\x48\xcd\xc9\xc9\x07\x00";
    /// Section 7.2.3.4: the same with BFINAL set, and the empty block that is appended then.
    const HELLO_FINAL: &[u8] = b"\xf3\x48\xcd\xc9\xc9\x07\x00\x00";
    /// Section 7.2.3.2: a reference to the message before.
    const HELLO_AGAIN: &[u8] = b"\xf2\x00\x11\x00\x00";

    #[test]
    fn messages_one_after_the_other() {
        let mut inflater = Inflater::default();
        for (payload, message) in [
            (HELLO, &b"Hello"[..]),
            (HELLO_AGAIN, b"Hello"),
            (b"\0", b""),
            (HELLO_AGAIN, b"Hello"),
            (HELLO_FINAL, b"Hello"),
            (HELLO, b"Hello"),
            (b"\x01\x05\0\xfa\xffHello\xf3\x48\xcd\xc9\xc9\x07\x00\x00", b"HelloHello"),
        ] {
            assert_eq!(inflater.message(payload, 10).as_deref(), Ok(message), "{payload:x?}");
        }
        assert_eq!(inflater.message(HELLO, 4), Err(Violation::MessageTooBig));
    }

    #[test]
    fn a_data_set_that_ended_is_not_referred_to() {
        let mut inflater = Inflater::default();
        inflater.message(HELLO_FINAL, 5).expect("a message");
        assert_eq!(inflater.message(HELLO_AGAIN, 5), Err(Violation::CompressionInvalid));
    }

    #[test]
    fn a_message_refers_to_what_the_inflater_was_primed_with_and_no_further() {
        for (pieces, message) in [
            ([&b"Hel"[..], b"lo"], Ok(&b"Hello"[..])),
            ([b"", b"Hello"], Ok(b"Hello")),
            ([b"Good day", b"Hello"], Ok(b"Hello")),
            ([b"", b"llo"], Err(Violation::CompressionInvalid)),
        ] {
            let mut inflater = Inflater::default();
            inflater.message(HELLO, 5).expect("a message");
            inflater.reset();
            inflater.prime(pieces);
            let inflated = inflater.message(HELLO_AGAIN, 5);
            assert_eq!(inflated.as_deref(), message.as_ref().map(|message| *message));
        }
    }

    #[test]
    fn a_payload_that_does_not_end_between_two_blocks_is_refused() {
        // In the last one the tail would stand in for the data of the block.
        for payload in [
            &b""[..],
            &HELLO[..6],
            &HELLO_FINAL[..7],
            b"\x00\x05\x00\xfa\xffHell",
            b"\x00\x04\x00\xfb\xff",
        ] {
            let message = Inflater::default().message(payload, 5);
            assert_eq!(message, Err(Violation::CompressionInvalid), "{payload:x?}");
        }
    }

    #[test]
    fn a_message_far_longer_than_its_payload_comes_out_whole() {
        let mut deflater = flate2::Compress::new(flate2::Compression::best(), false);
        let message = vec![7; 300_000];
        let mut payload = Vec::with_capacity(message.len());
        let flush = flate2::FlushCompress::Sync;
        deflater.compress_vec(&message, &mut payload, flush).expect("room for all");
        let payload = payload.strip_suffix(&TAIL).expect("a flush ends with it");
        let mut inflater = Inflater::default();
        assert_eq!(inflater.message(payload, message.len()).as_deref(), Ok(&message[..]));
    }
}
