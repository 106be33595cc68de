//! How much work a connection may do before it lets the others go on.
//!
//! Work is measured in units of about one nanosecond on a machine of 2025, estimated from what was
//! done: a clock would have to be read for every frame, and this module reads none. A [`Limits`] says
//! how many units there are; an [`Allowance`] is what is left of them. It belongs to a worker, whose
//! connections share it:
//!
//! - In one cycle of the worker, all connections together may use [`Limits::cycle`] units, or
//!   some times as many while nobody else is waiting.
//! - A connection whose turn comes later in the cycle, when less is left, may use [`Limits::turn`]
//!   units nevertheless. So a small message is never put off because of what others did.
//!
//! The kernel's copying of what a heavy connection receives and sends is work too. It is counted when it is
//! asked for, by pieces of at most [`Limits::PIECE`] bytes.
//!
//! All other work is counted after it is done, in steps that are small compared with the limits. So every turn
//! makes some progress, and exceeds its limit by at most one step.
//!
//! This file does not know what happens to a connection that has used up its allowance.

use std::cell::Cell;

/// Echoing one frame, beside its payload.
pub(super) const FRAME: i64 = 20;
/// Payload bytes that are unmasked and moved for one unit.
pub(super) const PLAIN_BYTES: i64 = 8;
/// Answering an opening handshake.
pub(super) const HANDSHAKE: i64 = 4000;
/// One call of the inflater.
pub(super) const INFLATE: i64 = 100;
/// The most that reading the tables of one block costs the inflater, and what each byte of a shorter
/// input costs instead.
pub(super) const TABLES: i64 = 4000;
/// See [`TABLES`].
pub(super) const TABLES_BYTE: i64 = 64;
/// Inflating and checking one byte of output.
pub(super) const INFLATED_BYTE: i64 = 1;
/// Bytes of earlier messages that the inflater is given for one unit.
pub(super) const INFLATER_PRIMED_BYTES: i64 = 32;
/// Taking the memory of an inflater, and maybe of a compressor, from the allocator.
pub(super) const UNIT_MADE: i64 = 4000;
/// Preparing a compressor for a message that refers to no earlier one.
pub(super) const DEFLATER_RESET: i64 = 4000;
/// Compressing one byte again, by level from 1 to 9: the worst of what was found, which is random bytes at
/// the lowest level and texts of two to four different letters from level 6 on.
const DEFLATED_BYTE: [i64; 9] = [25, 40, 45, 45, 45, 95, 190, 440, 1450];

/// Writing one byte of what was compressed: the compressor does that by blocks.
pub(super) const DEFLATED_OUTPUT_BYTE: i64 = 5;

/// How many times as many units a cycle has for which nobody else waits.
const LONE: i64 = 8;

/// Bytes that the kernel copies for one unit, to or from a socket, with all that TCP does for them.
const COPIED_BYTES: i64 = 2;

/// How many units of work may be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// By all connections of a worker in one cycle.
    pub cycle: u32,
    /// By one connection in one turn, however much the others have done. At least 1.
    pub turn: u32,
}

impl Limits {
    /// Bytes that a heavy connection receives or sends at a time: a message of 64 KiB with its header, which takes less
    /// than a turn to unmask.
    pub const PIECE: u32 = 68 << 10;
}

impl Default for Limits {
    /// A cycle of some 25 µs, half of what it takes to wake a sleeping thread, so that a neighbour that does
    /// not wait for its wake-up has little more to wait for. A turn is some 10 µs: the whole of a pipeline
    /// that fits one receive buffer.
    fn default() -> Limits {
        Limits { cycle: 25_000, turn: 10_000 }
    }
}

/// What is left of the work that may be done now.
#[derive(Debug)]
pub struct Allowance {
    limits: Limits,
    piece: u32,
    left: Cell<i64>,
    /// What is left is that of a lone cycle.
    is_lone: Cell<bool>,
}

impl Allowance {
    pub(super) fn new(limits: Limits) -> Allowance {
        Allowance {
            limits,
            piece: Limits::PIECE,
            left: Cell::new(limits.cycle.into()),
            is_lone: Cell::new(false),
        }
    }

    /// Begins a cycle of the worker.
    #[inline]
    pub fn begin_cycle(&self) {
        self.left.set(self.limits.cycle.into());
        self.is_lone.set(false);
    }

    /// Begins a cycle of the worker, for which nobody else waits.
    #[inline]
    pub fn begin_lone_cycle(&self) {
        self.left.set(i64::from(self.limits.cycle) * LONE);
        self.is_lone.set(true);
    }

    /// Begins the turn of one connection.
    #[inline]
    pub(super) fn begin_turn(&self) {
        self.left.set(self.left.get().max(self.limits.turn.into()));
    }

    /// Records work that was done.
    #[inline]
    pub(super) fn spend(&self, units: i64) {
        self.left.set(self.left.get() - units);
    }

    /// Records work that was done, and returns whether nothing is left.
    #[inline]
    pub(super) fn is_spent_with(&self, units: i64) -> bool {
        self.spend(units);
        self.is_spent()
    }

    /// Records that the kernel is asked to copy this many bytes.
    pub fn spend_copying(&self, bytes: usize) {
        self.spend(bytes as i64 / COPIED_BYTES);
    }

    /// How many bytes are compressed again at a time, and what each costs. Together they cost 10,000 units, as
    /// much as a turn has, or four times that in a lone cycle, because inflating in small steps takes longer. But
    /// they are at least 32.
    pub(super) fn recompression(&self, level: u8) -> (usize, i64) {
        let byte = DEFLATED_BYTE[usize::from(level) - 1];
        let step = if self.is_lone.get() { 40_000 } else { 10_000 };
        ((step / byte).max(32) as usize, byte)
    }

    /// Bytes that a heavy connection receives or sends at a time.
    #[inline]
    pub fn piece(&self) -> usize {
        self.piece as usize
    }

    /// The same, but a heavy connection receives and sends this many bytes at a time, at least 2, instead of
    /// [`Limits::PIECE`].
    #[must_use]
    pub fn with_piece(self, bytes: u32) -> Allowance {
        Allowance { piece: bytes, ..self }
    }

    /// Whether nothing is left.
    #[inline]
    pub fn is_spent(&self) -> bool {
        self.left.get() <= 0
    }

    /// How many payload bytes may be unmasked with what is left; at least a few, so that every turn makes
    /// progress.
    pub(super) fn plain_bytes(&self) -> u64 {
        (self.left.get().max(1) * PLAIN_BYTES) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_has_its_own_share_when_the_cycle_has_nothing_left() {
        let allowance = Allowance::new(Limits { cycle: 100, turn: 30 });
        allowance.begin_turn();
        allowance.spend(60);
        assert!(!allowance.is_spent());
        allowance.begin_turn();
        allowance.spend(40);
        assert!(allowance.is_spent());
        for _ in 0..3 {
            allowance.begin_turn();
            allowance.spend(29);
            assert!(!allowance.is_spent());
            allowance.spend(1000);
            assert!(allowance.is_spent());
        }
        allowance.begin_cycle();
        assert!(!allowance.is_spent_with(99) && allowance.is_spent_with(1));
        allowance.begin_lone_cycle();
        assert!(!allowance.is_spent_with(799) && allowance.is_spent_with(1));
    }
}
