//! What the two sides of a record may see of each other on machines that reorder reads and writes, by Loom.
//!
//! `interleavings.rs` goes through every order of whole steps, as if each write were seen at once. Here the same
//! record is made of Loom's atomics, which may show a thread old values for as long as the orderings in the source
//! allow it. So an ordering in `record.rs` that is too weak is found, and so is a barrier that is missing in
//! `verdict.bpf.c`, as far as [`program`](super::record::program) says what is there.
//!
//! Only with `--cfg weak_memory`: see `scripts/sanitize`.

#![cfg(weak_memory)]

use std::cell::Cell;
use std::sync::atomic::Ordering::{self, AcqRel, Acquire, Relaxed, Release, SeqCst};
use std::time::Duration;

use loom::sync::Arc;
use loom::sync::atomic::{self, fence};
use loom::thread::{self, JoinHandle};

use super::record::Record;

/// Bytes of a packet, and of its answer.
const REQUEST: u64 = 10;
const REPLY: u64 = 6;

loom::lazy_static! {
    /// Counts full barriers.
    static ref BARRIERS: atomic::AtomicU64 = atomic::AtomicU64::new(0);
}

/// A fence that is sequentially consistent. Loom tries two steps in both orders only if they touch the same object,
/// and a fence alone touches none.
fn full_barrier() {
    BARRIERS.fetch_add(1, Relaxed);
    fence(SeqCst);
}

/// Which accesses that are sequentially consistent have a barrier. Loom takes these for weaker ones, but knows fences
/// of that kind. A compiler may choose either, so the record has to work with both; the first shows a store that is too
/// weak, the second a load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Barriers {
    AfterStores,
    BeforeLoads,
}

thread_local! {
    static CHOSEN: Cell<Barriers> = const { Cell::new(Barriers::AfterStores) };
}

/// Loom's, with accesses that are sequentially consistent.
#[derive(Debug, Default)]
pub(super) struct AtomicU64(atomic::AtomicU64);

impl AtomicU64 {
    pub(super) fn load(&self, ordering: Ordering) -> u64 {
        if ordering != SeqCst {
            return self.0.load(ordering);
        }
        if CHOSEN.get() == Barriers::BeforeLoads {
            full_barrier();
        }
        self.0.load(Acquire)
    }

    pub(super) fn store(&self, value: u64, ordering: Ordering) {
        if ordering != SeqCst {
            return self.0.store(value, ordering);
        }
        self.0.store(value, Release);
        if CHOSEN.get() == Barriers::AfterStores {
            full_barrier();
        }
    }

    /// Only the program adds, with a full barrier on both sides.
    pub(super) fn fetch_add(&self, value: u64, ordering: Ordering) -> u64 {
        if ordering != SeqCst {
            return self.0.fetch_add(value, ordering);
        }
        full_barrier();
        let before = self.0.fetch_add(value, AcqRel);
        full_barrier();
        before
    }

    pub(super) fn swap(&self, value: u64, ordering: Ordering) -> u64 {
        assert_ne!(ordering, SeqCst, "nothing swaps so");
        self.0.swap(value, ordering)
    }
}

/// Tries everything that may happen in a scene.
fn explore(scene: fn()) {
    for barriers in [Barriers::AfterStores, Barriers::BeforeLoads] {
        loom::model(move || {
            CHOSEN.set(barriers);
            scene();
        });
    }
}

/// What became of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Echoed { in_flight: i64 },
    Passed { is_notified: bool },
}

/// Has the program see one packet of a frame, on a thread of its own.
fn arrives(record: &Arc<Record>) -> JoinHandle<Verdict> {
    let record = record.clone();
    thread::spawn(move || {
        record.begin();
        let verdict = if record.is_open() {
            let in_flight = record.flight(0);
            record.echo(REPLY, Duration::ZERO);
            Verdict::Echoed { in_flight }
        } else {
            record.pass(REQUEST, u64::MAX);
            let is_notified = record.is_noticed();
            if is_notified {
                record.notify();
            }
            Verdict::Passed { is_notified }
        };
        record.finish();
        verdict
    })
}

/// A record of which one packet was passed up, with a notice, which is not taken.
fn record() -> Arc<Record> {
    let record = Record::default();
    record.reset();
    record.pass(REQUEST, u64::MAX);
    record.notify();
    Arc::new(record)
}

#[test]
fn a_packet_without_a_notice_is_seen_by_whoever_takes_the_last_notice() {
    explore(|| {
        let record = record();
        let packet = arrives(&record);
        record.take_notice();
        let is_seen = record.passed() == 2 * REQUEST;
        let verdict = packet.join().expect("a verdict");
        assert!(is_seen || verdict == Verdict::Passed { is_notified: true }, "{verdict:?}");
    });
}

#[test]
fn a_gate_does_not_open_over_a_packet_without_a_notice() {
    explore(|| {
        let record = record();
        let packet = arrives(&record);
        record.take_notice();
        let is_open = record.open(REQUEST, REPLY);
        let verdict = packet.join().expect("a verdict");
        match verdict {
            Verdict::Echoed { .. } => assert!(is_open),
            Verdict::Passed { is_notified } => assert!(is_notified || !is_open),
        }
    });
}

#[test]
fn whatever_finds_the_gate_open_knows_what_is_sent_before_it() {
    explore(|| {
        let record = record();
        let packet = arrives(&record);
        record.open(REQUEST, REPLY);
        if let Verdict::Echoed { in_flight } = packet.join().expect("a verdict") {
            assert_eq!(in_flight, REPLY.cast_signed(), "an echo could overtake the answer");
        }
    });
}

#[test]
fn when_a_gate_is_shut_and_quiet_every_echo_is_seen() {
    explore(|| {
        let record = record();
        assert!(record.open(REQUEST, REPLY));
        let packet = arrives(&record);
        record.shut();
        let seen = record.is_quiet().then(|| record.echoed_out());
        packet.join().expect("a verdict");
        if let Some(seen) = seen {
            assert_eq!(seen, record.echoed_out(), "an echo could be overtaken by what follows");
        }
    });
}
