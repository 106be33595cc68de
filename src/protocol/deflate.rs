//! Compressed messages of a server's connection (RFC 7692 section 7.2): each is inflated piece by piece
//! to be checked, and recompressed if its compressed bytes cannot be echoed as they are.
//!
//! An inflated message is never held whole. It passes through the worker's scratch memory piece by
//! piece, is checked there and, if need be, compressed again. So a message costs the memory of the
//! window, however large it is when inflated.
//!
//! This file knows no frames, and does not decide what is mirrored: see `extension`.

use std::cell::RefCell;
use std::fmt;

use flate2::{Compress, FlushCompress};

use super::allowance::{self, Allowance};
use super::extension::{Agreement, Echo, WINDOW_BITS_MAX};
use super::inflate::{Inflater, Outcome, TAIL};
use super::utf8::Utf8;
use super::violation::Violation;

/// Bytes that are inflated at a time.
const SCRATCH: usize = 16 << 10;
/// The same where they are compressed again, which may take long for each byte.
const SCRATCH_RECOMPRESSED: usize = 1 << 10;

/// The header of an empty block without compression, with its padding. Its length fields are [`TAIL`].
const EMPTY_BLOCK_HEADER: u8 = 0;

/// The longest payload of a compressed message, in bytes, where a message may inflate to `message_max`
/// bytes: incompressible data grows by block headers, and each flush of the sender adds a block.
pub fn compressed_max(message_max: u64) -> u64 {
    message_max + message_max / 8 + 1024
}

/// Memory to inflate into, one for all connections of a worker, taken when it is first needed.
#[derive(Debug, Default)]
pub struct Scratch(RefCell<Vec<u8>>);

/// What limits the message that is being inflated.
#[derive(Debug)]
pub struct Bounds<'a> {
    /// The most bytes that it may inflate to.
    pub message_max: u64,
    /// Where inflated bytes are checked.
    pub scratch: &'a Scratch,
    /// The work that may be done now.
    pub allowance: &'a Allowance,
    /// The state of the UTF-8 check, if the message is text.
    pub text: Option<&'a mut Utf8>,
}

/// How far a piece of payload was inflated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// Bytes taken from the piece.
    pub bytes: usize,
    /// Whether all of it is inflated. If not, the allowance is used up.
    pub is_done: bool,
}

/// The compressed messages of one connection.
#[derive(Debug)]
pub struct Compression {
    agreement: Agreement,
    /// Allocated with the first compressed message.
    state: Option<Box<State>>,
}

impl Compression {
    /// Allocates nothing: that happens with the first compressed message.
    pub fn new(agreement: Agreement) -> Compression {
        Compression { agreement, state: None }
    }

    /// How compressed messages are echoed.
    pub fn echo(&self) -> Echo {
        self.agreement.echo
    }

    /// Bytes inflated so far of the unfinished message.
    pub fn inflated_bytes(&self) -> u64 {
        self.state.as_ref().map_or(0, |state| state.inflated_bytes)
    }

    /// Starts a message. `level` is the compression level for recompressing, from 1 to 9.
    pub fn begin(&mut self, level: u8) {
        let state = self.state.get_or_insert_with(|| Box::new(State::new(&self.agreement, level)));
        state.inflated_bytes = 0;
        if self.agreement.client_no_context_takeover {
            state.inflater.reset();
        }
    }

    /// Inflates the next piece of the message's payload, until the allowance is used up. If it was not
    /// done, the next call goes on with the rest of the piece, which may be empty.
    ///
    /// # Errors
    ///
    /// The rule that the first wrong byte breaks.
    pub fn take(&mut self, piece: &[u8], bounds: &mut Bounds<'_>) -> Result<Taken, Violation> {
        self.state.as_mut().expect("a message was begun").inflate(piece, bounds)
    }

    /// Ends the message.
    ///
    /// # Errors
    ///
    /// [`Violation::CompressionInvalid`] if the payload does not end where section 7.2.1 lets it end.
    pub fn finish(&mut self, allowance: &Allowance) -> Result<(), Violation> {
        let Some(state) = &mut self.state else { return Ok(()) };
        state.inflater.finish()?;
        if let Some(deflater) = &mut state.deflater {
            compress(deflater, &[], &mut state.output, FlushCompress::Sync);
            allowance.spend(allowance::TABLES);
            match state.output.strip_suffix(&TAIL) {
                Some(kept) => state.output.truncate(kept.len()),
                // The deflater flushes nothing if nothing was written since the last flush. An empty
                // message is this one byte (section 7.2.3.6).
                None => state.output.push(EMPTY_BLOCK_HEADER),
            }
            if self.agreement.server_no_context_takeover {
                deflater.reset();
            }
        }
        state.inflated_bytes = 0;
        Ok(())
    }

    /// How many bytes [`Compression::take_output`] would return.
    pub fn output_bytes(&self) -> usize {
        self.state.as_ref().map_or(0, |state| state.output.len())
    }

    /// The bytes recompressed since the last call.
    pub fn take_output(&mut self) -> Vec<u8> {
        self.state.as_mut().map(|state| std::mem::take(&mut state.output)).unwrap_or_default()
    }
}

struct State {
    inflater: Inflater,
    /// Bytes inflated so far of the message.
    inflated_bytes: u64,
    /// Present if messages are recompressed.
    deflater: Option<Compress>,
    /// Its output.
    output: Vec<u8>,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State")
            .field("inflated_bytes", &self.inflated_bytes)
            .finish_non_exhaustive()
    }
}

impl State {
    fn new(agreement: &Agreement, level: u8) -> State {
        let deflater = || {
            let bits = agreement.server_max_window_bits.unwrap_or(WINDOW_BITS_MAX);
            Compress::new_with_window_bits(flate2::Compression::new(level.into()), false, bits)
        };
        State {
            inflater: Inflater::default(),
            inflated_bytes: 0,
            deflater: (agreement.echo == Echo::Recompressed).then(deflater),
            output: Vec::new(),
        }
    }

    fn inflate(&mut self, piece: &[u8], bounds: &mut Bounds<'_>) -> Result<Taken, Violation> {
        let scratch = &mut *bounds.scratch.0.borrow_mut();
        scratch.resize(SCRATCH, 0);
        let (room, byte) = match self.deflater {
            None => (SCRATCH, allowance::INFLATED_BYTE),
            Some(_) => (SCRATCH_RECOMPRESSED, allowance::DEFLATED_BYTE),
        };
        let mut bytes = 0;
        loop {
            let step = self.inflater.step(&piece[bytes..], &mut scratch[..room]);
            bytes += step.read;
            let tables = allowance::TABLES.min(allowance::TABLES_BYTE * step.read as i64);
            bounds.allowance.spend(allowance::INFLATE + tables + byte * step.written as i64);
            // These bytes come first, however the step ended.
            self.accept(&scratch[..step.written], bounds.message_max, bounds.text.as_deref_mut())?;
            match step.outcome {
                Outcome::Invalid => return Err(Violation::CompressionInvalid),
                Outcome::Paused if bytes == piece.len() && step.written < room => {
                    return Ok(Taken { bytes, is_done: true });
                }
                // More output may be ready than the scratch had room for, a block has ended, or another
                // data set follows.
                Outcome::Paused | Outcome::DataSetEnded => {}
            }
            if bounds.allowance.is_spent() {
                return Ok(Taken { bytes, is_done: false });
            }
        }
    }

    /// Checks the next piece of the inflated message, and compresses it again if need be.
    fn accept(
        &mut self,
        piece: &[u8],
        message_max: u64,
        text: Option<&mut Utf8>,
    ) -> Result<(), Violation> {
        let allowed = (message_max - self.inflated_bytes).min(piece.len() as u64) as usize;
        if let Some(text) = text {
            text.check(&piece[..allowed]).map_err(|_| Violation::TextNotUtf8)?;
        }
        if allowed < piece.len() {
            return Err(Violation::MessageTooBig);
        }
        self.inflated_bytes += piece.len() as u64;
        if let Some(deflater) = &mut self.deflater
            && !piece.is_empty()
        {
            compress(deflater, piece, &mut self.output, FlushCompress::None);
        }
        Ok(())
    }
}

/// Compresses all of `input` and appends what comes out to `output`.
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
