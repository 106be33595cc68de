//! Compressed messages of a server's connection (RFC 7692 section 7.2): each is inflated piece by piece
//! to be checked, and recompressed if its compressed bytes cannot be echoed as they are.
//!
//! An inflated message is never held whole. It passes through the worker's scratch memory piece by
//! piece, is checked there and, if need be, compressed again. So a message costs the memory of the unit
//! that does this, however large it is when inflated.
//!
//! Between two messages a connection keeps their last bytes, as many as the next one may refer to, and
//! nothing without context takeover. A compressor that may refer to earlier messages is kept whole: to give
//! it the window anew takes several times as long as to compress a message of 1 KiB.
//!
//! This file knows no frames, and does not decide what is mirrored: see `extension`.

use std::cell::RefCell;

use super::allowance::{self, Allowance};
use super::extension::{Agreement, Echo, WINDOW_BITS_MAX};
use super::inflate::Outcome;
use super::pool::{Charge, Pool, Reservation, Ticket, Unit};
use super::utf8::Utf8;
use super::violation::Violation;
use super::window::Window;

/// Bytes that are inflated at a time.
const SCRATCH: usize = 16 << 10;

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
    /// The compression level for recompressing, from 1 to 9.
    pub level: u8,
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
    /// Present while there is anything in it.
    state: Option<Box<State>>,
}

/// What a connection has for compression beside the agreement.
#[derive(Debug, Default)]
struct State {
    window: Window,
    /// Of the unit that still knows the window.
    ticket: Option<Ticket>,
    /// Present while a message is unfinished, its output is still needed, or its compressor is.
    unit: Option<Box<Unit>>,
    /// Present if messages are recompressed.
    reservation: Option<Reservation>,
    /// Of the window; present once there was a message.
    charge: Option<Charge>,
}

impl Compression {
    /// Without recompression, this allocates nothing.
    pub(super) fn new(agreement: Agreement, reservation: Option<Reservation>) -> Compression {
        let reserved = |it| Box::new(State { reservation: Some(it), ..State::default() });
        Compression { agreement, state: reservation.map(reserved) }
    }

    /// How compressed messages are echoed.
    pub fn echo(&self) -> Echo {
        self.agreement.echo
    }

    /// Bytes inflated so far of the unfinished message.
    pub fn inflated_bytes(&self) -> u64 {
        self.unit().map_or(0, |unit| unit.inflated_bytes)
    }

    /// Starts a message. `level` is the compression level for recompressing, from 1 to 9.
    pub fn begin(&mut self, level: u8, pool: &Pool, allowance: &Allowance) {
        let state = self.state.get_or_insert_default();
        state.charge.get_or_insert_with(|| pool.charge());
        let idle = || state.ticket.take().and_then(|ticket| pool.retake(ticket));
        let kept = state.unit.take().or_else(idle);
        let mut unit = match kept {
            Some(mut unit) => {
                if self.agreement.client_reach().is_none() {
                    unit.inflater.reset();
                }
                if let Some(deflater) = &mut unit.deflater
                    && !self.agreement.keeps_deflater()
                {
                    deflater.reset();
                    allowance.spend(allowance::DEFLATER_RESET);
                }
                unit
            }
            None => {
                let (mut unit, work) = pool.take(level, self.agreement.deflater_bits());
                let pieces = state.window.pieces();
                unit.inflater.prime(pieces);
                let bytes = (pieces[0].len() + pieces[1].len()) as i64;
                allowance.spend(work + bytes / allowance::INFLATER_PRIMED_BYTES);
                unit
            }
        };
        unit.inflated_bytes = 0;
        unit.is_finished = false;
        state.unit = Some(unit);
    }

    /// Inflates the next piece of the message's payload, until the allowance is used up. If it was not
    /// done, the next call goes on with the rest of the piece, which may be empty.
    ///
    /// # Errors
    ///
    /// The rule that the first wrong byte breaks.
    pub fn take(&mut self, piece: &[u8], bounds: &mut Bounds<'_>) -> Result<Taken, Violation> {
        let state = self.state.as_mut().expect("a message was begun");
        state.inflate(piece, self.agreement.window_bytes(), bounds)
    }

    /// Ends the message.
    ///
    /// # Errors
    ///
    /// [`Violation::CompressionInvalid`] if the payload does not end where section 7.2.1 lets it end.
    pub fn finish(&mut self, pool: &Pool, allowance: &Allowance) -> Result<(), Violation> {
        let state = self.state.as_mut().expect("a message was begun");
        let unit = state.unit.as_mut().expect("a message was begun");
        if unit.inflater.finish()? == Outcome::DataSetEnded {
            state.window.clear();
        }
        unit.inflated_bytes = 0;
        unit.is_finished = true;
        match &mut unit.deflater {
            Some(deflater) => {
                let before = unit.output.len();
                deflater.finish(&mut unit.output);
                let grown = (unit.output.len() - before) as i64;
                allowance.spend(allowance::TABLES + allowance::DEFLATED_OUTPUT_BYTE * grown);
                unit.count();
            }
            None => self.give_back(pool),
        }
        Ok(())
    }

    /// How many bytes [`Compression::take_output`] would return.
    pub fn output_bytes(&self) -> usize {
        self.unit().map_or(0, |unit| unit.output.len())
    }

    /// The bytes recompressed since the last call.
    pub fn take_output(&mut self, pool: &Pool) -> Vec<u8> {
        let Some(unit) = self.state.as_mut().and_then(|state| state.unit.as_mut()) else {
            return Vec::new();
        };
        let output = std::mem::take(&mut unit.output);
        unit.count();
        if unit.is_finished {
            self.give_back(pool);
        }
        output
    }

    /// The heap memory that it holds, in bytes: of its window, and of its unit while it has one.
    pub(super) fn memory_bytes(&self) -> usize {
        self.state.as_ref().map_or(0, |state| {
            let window = state.charge.as_ref().map_or(0, Charge::bytes);
            window + state.unit.as_ref().map_or(0, |unit| unit.bytes())
        })
    }

    /// Gives up all memory: no message follows.
    pub fn end(&mut self) {
        self.state = None;
    }

    fn unit(&self) -> Option<&Unit> {
        self.state.as_ref()?.unit.as_deref()
    }

    /// Gives back the unit of a message that has ended, and what is not needed for the next one.
    fn give_back(&mut self, pool: &Pool) {
        let Some(state) = self.state.as_mut().filter(|_| !self.agreement.keeps_deflater()) else {
            return;
        };
        let Some(unit) = state.unit.take() else { return };
        // An inflater that goes on refers back as far as the largest window reaches. Where less is agreed
        // on, it is primed for each message, so that no answer depends on who else is busy.
        let is_exact = self.agreement.client_reach() == Some(1 << WINDOW_BITS_MAX);
        if is_exact && !state.window.is_empty() {
            state.ticket = Some(pool.give_back_warm(unit));
        } else {
            pool.give_back(unit);
        }
        if state.window.is_empty() && state.reservation.is_none() {
            self.state = None;
        }
    }
}

impl State {
    fn inflate(
        &mut self,
        piece: &[u8],
        window_bytes: Option<usize>,
        bounds: &mut Bounds<'_>,
    ) -> Result<Taken, Violation> {
        let unit = self.unit.as_mut().expect("a message was begun");
        let scratch = &mut *bounds.scratch.0.borrow_mut();
        scratch.resize(SCRATCH, 0);
        let (room, byte) = match unit.deflater {
            None => (SCRATCH, allowance::INFLATED_BYTE),
            Some(_) => bounds.allowance.recompression(bounds.level),
        };
        let mut bytes = 0;
        loop {
            let step = unit.inflater.step(&piece[bytes..], &mut scratch[..room]);
            bytes += step.read;
            let tables = allowance::TABLES.min(allowance::TABLES_BYTE * step.read as i64);
            bounds.allowance.spend(allowance::INFLATE + tables + byte * step.written as i64);
            // These bytes come first, however the step ended.
            let inflated = &scratch[..step.written];
            let before = unit.output.len();
            unit.accept(inflated, bounds.message_max, bounds.text.as_deref_mut())?;
            let grown = (unit.output.len() - before) as i64;
            bounds.allowance.spend(allowance::DEFLATED_OUTPUT_BYTE * grown);
            if let Some(size) = window_bytes {
                self.window.push(inflated, size);
                if let Some(charge) = &mut self.charge {
                    charge.set(self.window.capacity());
                }
            }
            match step.outcome {
                Outcome::Invalid => return Err(Violation::CompressionInvalid),
                Outcome::Paused if bytes == piece.len() && step.written < room => {
                    return Ok(Taken { bytes, is_done: true });
                }
                // More output may be ready than the scratch had room for, or a block has ended.
                Outcome::Paused => {}
                Outcome::DataSetEnded => self.window.clear(),
            }
            if bounds.allowance.is_spent() {
                return Ok(Taken { bytes, is_done: false });
            }
        }
    }
}

impl Unit {
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
            deflater.compress(piece, &mut self.output);
            self.count();
        }
        Ok(())
    }
}
