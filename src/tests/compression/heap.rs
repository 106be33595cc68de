//! Counts what this thread has on the heap.
//!
//! Invariants that the unsafe code relies on:
//!
//! 1. `System` does all the work, and is called with what the caller has passed: whoever keeps to the
//!    contract of this allocator keeps to that of `System`.
//! 2. The counts are of this thread, and counting allocates nothing.

#![expect(unsafe_code, reason = "an allocator is unsafe to write; see the invariants above")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// Bytes on the heap; negative where this thread has freed more than it has taken.
pub(crate) fn held() -> isize {
    HELD.get()
}

/// The most since [`restart_peak`].
pub(crate) fn peak() -> isize {
    PEAK.get()
}

pub(crate) fn restart_peak() {
    PEAK.set(HELD.get());
}

/// How often something was allocated.
pub(crate) fn allocations() -> u64 {
    ALLOCATIONS.get()
}

fn taken(bytes: usize) {
    HELD.set(HELD.get() + bytes as isize);
    PEAK.set(PEAK.get().max(HELD.get()));
    ALLOCATIONS.set(ALLOCATIONS.get() + 1);
}

fn freed(bytes: usize) {
    HELD.set(HELD.get() - bytes as isize);
}

// SAFETY: invariants 1 and 2.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        taken(layout.size());
        // SAFETY: invariant 1.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        taken(layout.size());
        // SAFETY: invariant 1.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        freed(layout.size());
        // SAFETY: invariant 1.
        unsafe { System.dealloc(place, layout) }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        // Both exist while one is copied to the other.
        taken(bytes);
        freed(layout.size());
        // SAFETY: invariant 1.
        unsafe { System.realloc(place, layout, bytes) }
    }
}
