//! A slab whose ids name one tenant of a slot, not the slot.
//!
//! An id that outlives its entry finds nothing: the slot's generation has moved on. Slots are
//! reused last in, first out, so that a busy server stays in the same few cache lines.

/// Bits of a generation. It wraps after sixteen million tenants of one slot.
pub const GENERATION_BITS: u32 = 24;
const GENERATIONS: u32 = 1 << GENERATION_BITS;

/// Names one entry of a slab for as long as the entry is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId {
    /// The slot in the slab.
    pub slot: u32,
    /// Which tenant of that slot; below 2²⁴.
    pub generation: u32,
}

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    /// The next vacant slot while this one is vacant.
    next_vacant: u32,
    entry: Option<T>,
}

/// The end of the list of vacant slots.
const NONE: u32 = u32::MAX;

/// Entries, each with an id that carries a generation.
#[derive(Debug)]
pub struct Slab<T> {
    slots: Vec<Slot<T>>,
    vacant: u32,
    length: usize,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Slab::with_capacity(0)
    }
}

impl<T> Slab<T> {
    /// A slab with addresses for so many entries. Until it holds more, no entry ever moves, and it
    /// takes no more memory than the most entries that it has held at a time.
    pub fn with_capacity(entries: usize) -> Slab<T> {
        Slab { slots: Vec::with_capacity(entries), vacant: NONE, length: 0 }
    }

    /// Puts `entry` into a slot.
    pub fn insert(&mut self, entry: T) -> ConnectionId {
        self.length += 1;
        if self.vacant == NONE {
            let slot = u32::try_from(self.slots.len()).expect("fewer than 2^32 connections");
            self.slots.push(Slot { generation: 0, next_vacant: NONE, entry: Some(entry) });
            return ConnectionId { slot, generation: 0 };
        }
        let slot = self.vacant;
        let vacated = &mut self.slots[slot as usize];
        self.vacant = vacated.next_vacant;
        vacated.entry = Some(entry);
        ConnectionId { slot, generation: vacated.generation }
    }

    /// Removes the entry of `id` and returns it, if it is still there.
    pub fn remove(&mut self, id: ConnectionId) -> Option<T> {
        let slot = self.slots.get_mut(id.slot as usize)?;
        if slot.generation != id.generation {
            return None;
        }
        let entry = slot.entry.take()?;
        slot.generation = (slot.generation + 1) % GENERATIONS;
        slot.next_vacant = self.vacant;
        self.vacant = id.slot;
        self.length -= 1;
        Some(entry)
    }

    /// The entry of `id`, if it is still there.
    #[inline]
    pub fn get_mut(&mut self, id: ConnectionId) -> Option<&mut T> {
        let slot = self.slots.get_mut(id.slot as usize)?;
        if slot.generation == id.generation { slot.entry.as_mut() } else { None }
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// How many slots there are, vacant ones included.
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// The entry in this slot with its id, unless it is vacant.
    pub fn at_slot(&mut self, number: usize) -> Option<(ConnectionId, &mut T)> {
        let slot = self.slots.get_mut(number)?;
        let id = ConnectionId { slot: number as u32, generation: slot.generation };
        Some((id, slot.entry.as_mut()?))
    }

    /// All entries with their ids, in the order of their slots.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (ConnectionId, &mut T)> + '_ {
        self.slots.iter_mut().zip(0..).filter_map(|(slot, number)| {
            let id = ConnectionId { slot: number, generation: slot.generation };
            Some((id, slot.entry.as_mut()?))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_does_not_outlive_its_entry() {
        let mut slab = Slab::default();
        let first = slab.insert("first");
        assert_eq!(slab.remove(first), Some("first"));
        let second = slab.insert("second");
        assert_eq!(second.slot, first.slot);
        assert_eq!(slab.get_mut(first), None);
        assert_eq!(slab.remove(first), None);
        assert_eq!(slab.get_mut(second), Some(&mut "second"));
        assert_eq!(slab.len(), 1);
    }

    #[test]
    fn vacant_slots_are_filled_before_new_ones_are_made() {
        let mut slab = Slab::default();
        let ids: Vec<ConnectionId> = (0..10).map(|number| slab.insert(number)).collect();
        for &id in &ids[3..7] {
            slab.remove(id);
        }
        for number in 0..4 {
            assert!(slab.insert(100 + number).slot < 10);
        }
        assert_eq!(slab.insert(200).slot, 10);
        assert_eq!(slab.iter_mut().count(), 11);
    }

    #[test]
    fn entries_stay_where_they_are_while_the_capacity_lasts() {
        let mut slab = Slab::with_capacity(1000);
        let first = slab.insert(0);
        let place = std::ptr::from_mut(slab.get_mut(first).expect("an entry"));
        for number in 1..1000 {
            slab.insert(number);
        }
        assert_eq!(std::ptr::from_mut(slab.get_mut(first).expect("an entry")), place);
    }

    #[test]
    fn generations_wrap_within_their_bits() {
        let mut slab = Slab::default();
        let id = slab.insert(());
        slab.slots[0].generation = GENERATIONS - 1;
        let last = ConnectionId { generation: GENERATIONS - 1, ..id };
        assert_eq!(slab.remove(last), Some(()));
        assert_eq!(slab.insert(()).generation, 0);
    }
}
