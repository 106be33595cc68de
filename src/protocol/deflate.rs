//! Compressed messages (RFC 7692 section 7.2): each is inflated piece by piece to be checked, and
//! compressed again where its octets cannot go back as they came.
//!
//! What is inflated stands nowhere whole. It passes through the worker's scratch memory a piece at
//! a time, is checked there and, maybe, compressed again, so that a message costs the memory of the
//! window, whatever it inflates to.
//!
//! The inflater always has the largest window. A client that looks further back than it agreed to
//! is let through: whoever looks back too far meets its own octets again.
//!
//! This file knows no frames, and does not say what is mirrored: see `extension`.

use std::cell::RefCell;
use std::fmt;

use flate2::{Compress, FlushCompress};
use zlib_rs::{Inflate, InflateFlush, Status};

use super::extension::{Agreement, Echo, WINDOW_BITS_MAX};
use super::utf8::Utf8;
use super::violation::Violation;

/// Octets that are inflated at a time.
const SCRATCH: usize = 32 << 10;

/// An empty block without compression, whole: a header of three bits, padding, and what section
/// 7.2.1 takes off the end of a message and section 7.2.2 puts back.
const EMPTY_BLOCK: [u8; 5] = [0, 0, 0, 0xff, 0xff];
/// What a sender takes off the end of a message.
const TAIL: &[u8] = &[0, 0, 0xff, 0xff];

/// The octets of payload that a compressed message may have where `message_max` inflated ones are
/// allowed: room for what compression adds to octets that cannot be compressed, and for a block
/// wherever the sender flushed.
pub fn compressed_max(message_max: u64) -> u64 {
    message_max + message_max / 8 + 1024
}

/// Memory to inflate into, one for all connections of a worker, taken when it is first needed.
#[derive(Debug, Default)]
pub struct Scratch(RefCell<Vec<u8>>);

/// What the message that is being inflated may be.
#[derive(Debug)]
pub struct Bounds<'a> {
    /// The most octets that it may inflate to.
    pub message_max: u64,
    /// Where inflated octets are put to be looked at.
    pub scratch: &'a Scratch,
    /// The text so far, if it is to be one.
    pub text: Option<&'a mut Utf8>,
}

/// The compressed messages of one connection.
#[derive(Debug)]
pub struct Compression {
    agreement: Agreement,
    /// Since the first compressed message.
    state: Option<Box<State>>,
}

impl Compression {
    /// Nothing is allocated before there is a compressed message.
    pub fn new(agreement: Agreement) -> Compression {
        Compression { agreement, state: None }
    }

    /// What becomes of compressed messages.
    pub fn echo(&self) -> Echo {
        self.agreement.echo
    }

    /// Octets inflated so far of the message that is unfinished.
    pub fn inflated_bytes(&self) -> u64 {
        self.state.as_ref().map_or(0, |state| state.octets)
    }

    /// Begins a message. `level` is that of a deflater, from 1 to 9.
    pub fn begin(&mut self, level: u8) {
        let state = self.state.get_or_insert_with(|| Box::new(State::new(&self.agreement, level)));
        state.octets = 0;
        if self.agreement.client_no_context_takeover {
            state.inflater.reset(false);
        }
    }

    /// Inflates the next piece of the message's payload.
    ///
    /// # Errors
    ///
    /// What the first octet that may not be there violates.
    pub fn take(&mut self, piece: &[u8], bounds: &mut Bounds<'_>) -> Result<(), Violation> {
        self.state.as_mut().map_or(Ok(()), |state| state.inflate(piece, bounds))
    }

    /// Ends the message.
    ///
    /// # Errors
    ///
    /// As [`Compression::take`], and when the payload does not end as section 7.2.1 has it.
    pub fn finish(&mut self, bounds: &mut Bounds<'_>) -> Result<(), Violation> {
        let Some(state) = &mut self.state else { return Ok(()) };
        state.end(bounds)?;
        if let Some(deflater) = &mut state.deflater {
            compress(deflater, &[], &mut state.output, FlushCompress::Sync);
            match state.output.strip_suffix(TAIL) {
                Some(kept) => state.output.truncate(kept.len()),
                // Nothing to flush since the last message, so the block is still to be written.
                None => state.output.push(EMPTY_BLOCK[0]),
            }
            if self.agreement.server_no_context_takeover {
                deflater.reset();
            }
        }
        state.octets = 0;
        Ok(())
    }

    /// How many octets [`Compression::take_output`] would give.
    pub fn output_bytes(&self) -> usize {
        self.state.as_ref().map_or(0, |state| state.output.len())
    }

    /// The octets compressed again since the last call.
    pub fn take_output(&mut self) -> Vec<u8> {
        self.state.as_mut().map(|state| std::mem::take(&mut state.output)).unwrap_or_default()
    }
}

struct State {
    inflater: Inflate,
    /// Octets inflated so far of the message.
    octets: u64,
    /// Where messages are compressed again.
    deflater: Option<Compress>,
    /// What came out of it.
    output: Vec<u8>,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State").field("octets", &self.octets).finish_non_exhaustive()
    }
}

impl State {
    fn new(agreement: &Agreement, level: u8) -> State {
        let deflater = || {
            let bits = agreement.server_max_window_bits.unwrap_or(WINDOW_BITS_MAX);
            Compress::new_with_window_bits(flate2::Compression::new(level.into()), false, bits)
        };
        State {
            inflater: Inflate::new(false, WINDOW_BITS_MAX),
            octets: 0,
            deflater: (agreement.echo == Echo::Recompressed).then(deflater),
            output: Vec::new(),
        }
    }

    fn inflate(&mut self, mut piece: &[u8], bounds: &mut Bounds<'_>) -> Result<(), Violation> {
        loop {
            let step = self.step(piece, InflateFlush::NoFlush, bounds)?;
            piece = &piece[step.read..];
            // Else more may be ready than the scratch had room for, or another data set follows.
            if !step.has_ended && step.written < SCRATCH {
                return Ok(());
            }
        }
    }

    /// Checks that the payload ends where the octets that its sender took off belong: between two
    /// blocks, at the end of an octet. The inflater stops behind a block, so it reads these octets
    /// and no more, and then an empty block and no more. That block leaves no trace.
    fn end(&mut self, bounds: &mut Bounds<'_>) -> Result<(), Violation> {
        let [tail, probe] = [[TAIL, &EMPTY_BLOCK].concat(), [&EMPTY_BLOCK[..], &[0]].concat()];
        let step = self.step(&tail, InflateFlush::Block, bounds)?;
        if step.read != TAIL.len() {
            return Err(Violation::CompressionInvalid);
        }
        let step = self.step(&probe, InflateFlush::Block, bounds)?;
        // Behind the last block of a data set it stops too, and says only now that this was the end.
        let read = if step.has_ended { 0 } else { EMPTY_BLOCK.len() };
        if step.read != read || step.written > 0 {
            return Err(Violation::CompressionInvalid);
        }
        Ok(())
    }

    /// Inflates as much of `input` as the scratch has room for.
    fn step(
        &mut self,
        input: &[u8],
        flush: InflateFlush,
        bounds: &mut Bounds<'_>,
    ) -> Result<Step, Violation> {
        let scratch = &mut *bounds.scratch.0.borrow_mut();
        scratch.resize(SCRATCH, 0);
        let (total_in, total_out) = (self.inflater.total_in(), self.inflater.total_out());
        let status = self.inflater.decompress(input, scratch, flush);
        let read = (self.inflater.total_in() - total_in) as usize;
        let written = (self.inflater.total_out() - total_out) as usize;
        // Whatever ended it, these octets came first.
        let output = &scratch[..written];
        let allowed = (bounds.message_max - self.octets).min(written as u64) as usize;
        if let Some(text) = &mut bounds.text {
            text.check(&output[..allowed]).map_err(|_| Violation::TextNotUtf8)?;
        }
        if allowed < written {
            return Err(Violation::MessageTooBig);
        }
        self.octets += written as u64;
        if let Some(deflater) = &mut self.deflater
            && !output.is_empty()
        {
            compress(deflater, output, &mut self.output, FlushCompress::None);
        }
        let has_ended = match status {
            Ok(Status::Ok | Status::BufError) => false,
            // A block with BFINAL set ends a data set of DEFLATE (RFC 1951 section 3.2.3); what
            // follows in this message or the next is another, and refers to nothing before it.
            Ok(Status::StreamEnd) => {
                self.inflater.reset(false);
                true
            }
            Err(_) => return Err(Violation::CompressionInvalid),
        };
        Ok(Step { read, written, has_ended })
    }
}

/// What one call of the inflater did.
struct Step {
    /// Octets taken from the input.
    read: usize,
    /// Octets inflated.
    written: usize,
    /// Whether a data set has ended.
    has_ended: bool,
}

/// Compresses all of `input` and adds what comes out to `output`.
fn compress(deflater: &mut Compress, mut input: &[u8], output: &mut Vec<u8>, flush: FlushCompress) {
    loop {
        output.reserve(input.len() / 2 + 64);
        let total_in = deflater.total_in();
        deflater.compress_vec(input, output, flush).expect("its state was made for this");
        input = &input[(deflater.total_in() - total_in) as usize..];
        if input.is_empty() && output.len() < output.capacity() {
            return;
        }
    }
}
