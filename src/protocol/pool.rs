//! The memory of compression that connections share: units, which they borrow for a message, and the
//! budget of recompression.
//!
//! A unit inflates a message, and compresses it again if need be. It takes 47 KiB, and several times as
//! much with a compressor. So a connection has one only while a message is unfinished, and keeps nothing but
//! the end of its messages in between. The unit that comes back still knows these, and stays with the
//! connection under a [`Ticket`] until another one needs it: a connection that is busy alone copies nothing.
//!
//! A connection whose messages are compressed again reserves the most that it may need before it agrees to
//! that, so that nothing has to be refused later.
//!
//! All memory of compression is counted, by a [`Charge`] with each part of it.
//!
//! Invariant: at most [`KEPT`] units are idle. This file does not know what is in a message.

use std::cell::{Cell, RefCell};
use std::num::NonZeroU64;
use std::rc::Rc;

use super::allowance;
use super::deflate::Deflater;
use super::extension::{Agreement, Echo, WINDOW_BITS_MAX};
use super::inflate::Inflater;

/// The memory that recompression may take on all connections of a server unless told otherwise.
pub const RECOMPRESSION_MEMORY_DEFAULT: usize = 64 << 20;

/// The most units that a worker keeps while no message needs them.
pub const KEPT: usize = 8;

/// Bytes that count as taken for as long as this is there.
#[derive(Debug)]
pub(super) struct Charge {
    taken: Rc<Cell<usize>>,
    bytes: usize,
}

impl Charge {
    /// How many they are.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Changes how many they are.
    pub(super) fn set(&mut self, bytes: usize) {
        self.taken.set(self.taken.get() - self.bytes + bytes);
        self.bytes = bytes;
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// What inflates a message and compresses it again.
#[derive(Debug)]
pub(super) struct Unit {
    pub(super) inflater: Inflater,
    /// Present if the message is compressed again.
    pub(super) deflater: Option<Deflater>,
    /// Its output.
    pub(super) output: Vec<u8>,
    /// Bytes inflated so far of the message.
    pub(super) inflated_bytes: u64,
    /// The message has ended, and only its output is still needed.
    pub(super) is_finished: bool,
    charge: Charge,
}

impl Unit {
    fn new(level: u8, deflater_bits: Option<u8>, charge: Charge) -> Unit {
        let mut unit = Unit {
            inflater: Inflater::default(),
            deflater: deflater_bits.map(|bits| Deflater::new(level, bits)),
            output: Vec::new(),
            inflated_bytes: 0,
            is_finished: false,
            charge,
        };
        unit.count();
        unit
    }

    /// Counts its memory after its output has grown.
    pub(super) fn count(&mut self) {
        let deflater = self.deflater_bits().map_or(0, deflater_bytes);
        self.charge.set(INFLATER_BYTES + deflater + self.output.capacity());
    }

    /// Its memory, as it was last counted.
    pub(super) fn bytes(&self) -> usize {
        self.charge.bytes()
    }

    fn deflater_bits(&self) -> Option<u8> {
        self.deflater.as_ref().map(Deflater::window_bits)
    }
}

/// Names a unit that was given back, and no other one ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ticket(NonZeroU64);

/// The units of a worker that no message needs.
#[derive(Debug, Default)]
pub struct Pool {
    /// The one that was given back last is last. With a ticket, it knows the window of a connection.
    idle: RefCell<Vec<(Option<Ticket>, Box<Unit>)>>,
    tickets: Cell<u64>,
    taken: Rc<Cell<usize>>,
}

impl Pool {
    /// All bytes of compression, of units and of the windows of connections.
    pub(super) fn bytes(&self) -> usize {
        self.taken.get()
    }

    /// Counts memory, none at first.
    pub(super) fn charge(&self) -> Charge {
        Charge { taken: self.taken.clone(), bytes: 0 }
    }

    /// Drops the units that no message needs.
    pub(super) fn trim(&self) {
        self.idle.borrow_mut().clear();
    }

    /// The unit that was given back under `ticket`, if nobody has needed it since.
    pub(super) fn retake(&self, ticket: Ticket) -> Option<Box<Unit>> {
        let mut idle = self.idle.borrow_mut();
        let at = idle.iter().position(|&(kept_as, _)| kept_as == Some(ticket))?;
        Some(idle.remove(at).1)
    }

    /// A unit that knows nothing, with a compressor for a window of so many bits, or none; and the work
    /// that this took.
    pub(super) fn take(&self, level: u8, deflater_bits: Option<u8>) -> (Box<Unit>, i64) {
        let mut idle = self.idle.borrow_mut();
        let is_full = idle.len() == KEPT;
        // One that knows a window is taken only if there is no room for one more.
        let at = idle.iter().position(|(ticket, unit)| {
            unit.deflater_bits() == deflater_bits && (ticket.is_none() || is_full)
        });
        let Some(at) = at else {
            let unit = Unit::new(level, deflater_bits, self.charge());
            return (Box::new(unit), allowance::UNIT_MADE);
        };
        let (_, mut unit) = idle.remove(at);
        unit.inflater.reset();
        match &mut unit.deflater {
            Some(deflater) => {
                deflater.reset();
                (unit, allowance::DEFLATER_RESET)
            }
            None => (unit, 0),
        }
    }

    /// Takes back a unit that knows nothing of use.
    pub(super) fn give_back(&self, unit: Box<Unit>) {
        self.keep(None, unit);
    }

    /// Takes back a unit that still knows the window of its connection.
    pub(super) fn give_back_warm(&self, unit: Box<Unit>) -> Ticket {
        self.tickets.set(self.tickets.get() + 1);
        let ticket = Ticket(NonZeroU64::new(self.tickets.get()).expect("more than none"));
        self.keep(Some(ticket), unit);
        ticket
    }

    fn keep(&self, ticket: Option<Ticket>, unit: Box<Unit>) {
        let mut idle = self.idle.borrow_mut();
        if idle.len() == KEPT {
            idle.remove(0);
        }
        idle.push((ticket, unit));
    }
}

/// The memory that recompression may still take.
#[derive(Debug, Clone)]
pub struct Budget(Rc<Cell<usize>>);

impl Budget {
    /// A budget of `bytes` bytes.
    pub fn new(bytes: usize) -> Budget {
        Budget(Rc::new(Cell::new(bytes)))
    }

    /// Whether a connection under `agreement` can be taken on.
    pub fn has_room_for(&self, agreement: &Agreement) -> bool {
        bytes_reserved(agreement) <= self.0.get()
    }

    /// Reserves what a connection under `agreement` needs at most. A mirrored one needs nothing.
    ///
    /// # Panics
    ///
    /// If there is not that much.
    pub(super) fn reserve(&self, agreement: &Agreement) -> Option<Reservation> {
        let bytes = bytes_reserved(agreement);
        let left = self.0.get().checked_sub(bytes).expect("the caller has asked");
        self.0.set(left);
        (bytes > 0).then(|| Reservation { budget: self.clone(), bytes: bytes as u32 })
    }
}

/// A connection's share of a budget, which gets it back when this is dropped.
#[derive(Debug)]
pub(super) struct Reservation {
    budget: Budget,
    bytes: u32,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.0.set(self.budget.0.get() + self.bytes as usize);
    }
}

/// The heap memory of a unit without a compressor, in bytes.
const INFLATER_BYTES: usize = 48 << 10;
/// That of a compressor, apart from what depends on its window.
const DEFLATER_BYTES: usize = 160 << 10;
/// Bytes of a compressor for each byte of its window: the window and as much after it, and two bytes for
/// the earlier place with the same hash.
const DEFLATER_BYTES_PER_WINDOW_BYTE: usize = 4;
/// What a connection keeps beside its window.
const STATE_BYTES: usize = 128;

/// The most heap memory that compression takes on a connection whose messages are compressed again, in
/// bytes, without the replies that wait to be sent; 0 if they are mirrored.
pub fn bytes_reserved(agreement: &Agreement) -> usize {
    match agreement.echo {
        Echo::Mirrored => 0,
        Echo::Recompressed => {
            let bits = agreement.server_max_window_bits.unwrap_or(WINDOW_BITS_MAX);
            let window = agreement.window_bytes().unwrap_or(0);
            INFLATER_BYTES + deflater_bytes(bits) + window + STATE_BYTES
        }
    }
}

/// The heap memory of a compressor for a window of so many bits, in bytes.
fn deflater_bytes(bits: u8) -> usize {
    DEFLATER_BYTES + (DEFLATER_BYTES_PER_WINDOW_BYTE << bits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::extension::{Offer, Policy, agree};

    /// What the units of a pool are kept for, the oldest first.
    fn kept(pool: &Pool) -> Vec<Option<Ticket>> {
        pool.idle.borrow().iter().map(|&(ticket, _)| ticket).collect()
    }

    #[test]
    fn a_unit_stays_with_its_connection_until_another_one_needs_it() {
        let pool = Pool::default();
        let tickets: Vec<Ticket> =
            (0..KEPT).map(|_| pool.give_back_warm(pool.take(6, None).0)).collect();
        assert_eq!(kept(&pool), tickets.iter().copied().map(Some).collect::<Vec<_>>());
        let unit = pool.retake(tickets[3]).expect("nobody has needed it");
        assert!(pool.retake(tickets[3]).is_none(), "it is in use");
        let again = pool.give_back_warm(unit);
        assert!(!tickets.contains(&again));
        assert!(pool.retake(tickets[3]).is_none(), "it was given back under another ticket");
        // The one that was given back longest ago is taken from its connection.
        pool.give_back(pool.take(6, None).0);
        assert!(pool.retake(tickets[0]).is_none() && pool.retake(tickets[1]).is_some());
        // One without a ticket is nobody's, and is taken first.
        pool.give_back(pool.take(6, None).0);
        assert_eq!(kept(&pool).iter().filter(|ticket| ticket.is_none()).count(), 1);
    }

    #[test]
    fn no_more_units_are_kept_than_the_limit_and_each_fits_who_takes_it() {
        let pool = Pool::default();
        let kinds = [None, Some(9), Some(15)];
        let units: Vec<Box<Unit>> =
            (0..3 * KEPT).map(|number| pool.take(6, kinds[number % 3]).0).collect();
        for (number, unit) in units.into_iter().enumerate() {
            assert_eq!(unit.deflater_bits(), kinds[number % 3]);
            pool.give_back(unit);
        }
        assert_eq!(kept(&pool).len(), KEPT);
        for _ in 0..2 * KEPT {
            assert_eq!(pool.take(6, Some(9)).0.deflater_bits(), Some(9));
        }
    }

    #[test]
    fn all_memory_counts_until_it_is_given_up() {
        let pool = Pool::default();
        let (mut unit, _) = pool.take(6, Some(15));
        let made = pool.bytes();
        assert!(made > INFLATER_BYTES + DEFLATER_BYTES);
        unit.output = Vec::with_capacity(1000);
        unit.count();
        assert_eq!(pool.bytes(), made + 1000);
        let mut window = pool.charge();
        window.set(512);
        pool.give_back(unit);
        assert_eq!(pool.bytes(), made + 1512, "an idle unit counts");
        pool.trim();
        assert_eq!(pool.bytes(), 512);
        drop(window);
        assert_eq!(pool.bytes(), 0);
    }

    #[test]
    fn what_a_connection_reserves_comes_back_with_its_end() {
        let policy = Policy::Deflate;
        let agreement = agree(&Offer::default(), policy).expect("an offer without parameters");
        let bytes = bytes_reserved(&agreement);
        assert_eq!(RECOMPRESSION_MEMORY_DEFAULT / bytes, 194, "the document says so");
        let budget = Budget::new(2 * bytes - 1);
        let reservation = budget.reserve(&agreement);
        assert!(!budget.has_room_for(&agreement));
        let smaller = Offer { server_max_window_bits: Some(9), ..Offer::default() };
        assert!(budget.has_room_for(&agree(&smaller, policy).expect("an offer of 9 bits")));
        drop(reservation);
        assert!(budget.has_room_for(&agreement));
        let mirrored = agree(&Offer::default(), Policy::Mirror).expect("the same offer");
        assert!(Budget::new(0).has_room_for(&mirrored));
        assert!(Budget::new(0).reserve(&mirrored).is_none());
    }
}
