//! The memory through which the program in the kernel and user space talk about a connection.
//!
//! Each field has one writer. The program counts the bytes that it passes up, and user space counts
//! how many of those it has answered. The program echoes only while the two counts are equal: then the
//! gate is open. For each packet that it passes up, the program sends a notice, unless user space has
//! not taken the last one. Each side writes its own count before it reads the other's, with a full
//! barrier in between, so at least one side sees the other's write: either the program sees that the
//! last notice is taken, or user space, having taken it, sees that there is more to read.
//!
//! User space also counts what it has received. If too much is passed up and not received, the program
//! drops what comes, and the connection is given up.

#[cfg(not(all(test, weak_memory)))]
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::Duration;

#[cfg(all(test, weak_memory))]
use super::orderings::AtomicU64;
use crate::metrics::Echoed;

/// A count of answered bytes that the program never reaches, so that the gate stays shut.
const SHUT: u64 = u64::MAX;

/// A connection's record, laid out like `struct record` in `verdict.bpf.c`. Counts start when the
/// connection is attached.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct Record {
    // Written by the program.
    begun: AtomicU64,
    done: AtomicU64,
    passed: AtomicU64,
    notices: AtomicU64,
    echoed_frames: AtomicU64,
    echoed_out: AtomicU64,
    cleared: AtomicU64,
    echoed_at_ns: AtomicU64,
    // Written by user space, on a cache line of its own.
    answered: AtomicU64,
    sent: AtomicU64,
    notices_taken: AtomicU64,
    received: AtomicU64,
    unused: [AtomicU64; 4],
    // Written by the program, when it passes something up.
    marked: AtomicU64,
    weight: AtomicU64,
    weight_before: AtomicU64,
    overrun: AtomicU64,
    // Written by the program with each packet. It takes the first one's from the socket.
    sequence: AtomicU64,
}

impl Record {
    /// Makes this the record of a new connection, with the gate shut. To be called only while the
    /// program cannot run for it. The counts of notices are kept, because a notice of the previous
    /// connection may not have been taken yet.
    pub fn reset(&self) {
        for count in [
            &self.begun,
            &self.done,
            &self.passed,
            &self.echoed_frames,
            &self.echoed_out,
            &self.cleared,
            &self.echoed_at_ns,
            &self.sent,
            &self.received,
            &self.marked,
            &self.weight,
            &self.weight_before,
            &self.overrun,
        ] {
            count.store(0, Relaxed);
        }
        self.shut();
    }

    /// Lets the program echo: of the bytes that it passed up, `answered` are answered, and since the
    /// connection began `sent` bytes have been sent, answers included, or are about to be; the program
    /// waits until those are in the socket's send queue. Returns whether everything that was passed up
    /// is answered. If not, the gate stays shut, and there is more to read.
    pub fn open(&self, answered: u64, sent: u64) -> bool {
        self.sent.store(sent, SeqCst);
        interleave();
        self.answered.store(answered, SeqCst);
        interleave();
        self.passed.load(SeqCst) == answered
    }

    /// Lets the program echo nothing more. A run that saw the gate open may still be in progress: see
    /// [`Record::is_quiet`].
    pub fn shut(&self) {
        interleave();
        self.answered.store(SHUT, SeqCst);
    }

    /// Whether every run of the program that saw the gate open is over, so that
    /// [`Record::echoed_out`] no longer changes. Only for a record that is shut.
    pub fn is_quiet(&self) -> bool {
        // In this order, because a run that begins in between sees the gate shut.
        interleave();
        let done = self.done.load(SeqCst);
        interleave();
        self.begun.load(SeqCst) == done
    }

    /// How many bytes the program has passed up.
    pub fn passed(&self) -> u64 {
        interleave();
        self.passed.load(SeqCst)
    }

    /// How many frames it has echoed.
    pub fn echoed_frames(&self) -> u64 {
        interleave();
        self.echoed_frames.load(SeqCst)
    }

    /// How many bytes the echoes had.
    pub fn echoed_out(&self) -> u64 {
        interleave();
        self.echoed_out.load(SeqCst)
    }

    /// When it has last echoed, on `CLOCK_MONOTONIC`, if it has.
    pub fn echoed_at(&self) -> Option<Duration> {
        let time = self.echoed_at_ns.load(Relaxed);
        (time > 0).then_some(Duration::from_nanos(time))
    }

    /// Says that `bytes` bytes of those passed up are received.
    pub fn receive(&self, bytes: u64) {
        interleave();
        self.received.store(bytes, SeqCst);
    }

    /// Whether the program drops all further packets because too many are passed up and not received.
    /// Then the connection is lost.
    pub fn is_overrun(&self) -> bool {
        interleave();
        self.overrun.load(SeqCst) != 0
    }

    /// Notes that user space has taken a notice. The program sends another one with the next packet that
    /// it passes up; [`Record::passed`] counts what it passed up before.
    pub fn take_notice(&self) {
        let taken = self.notices_taken.load(Relaxed);
        self.notices_taken.store(taken.wrapping_add(1), SeqCst);
    }
}

/// What the program has echoed on all connections of a worker, laid out like `struct totals`.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct Totals {
    frames: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
}

impl Totals {
    /// The counts at this moment.
    pub fn read(&self) -> Echoed {
        Echoed {
            frames: self.frames.load(Relaxed),
            bytes_in: self.bytes_in.load(Relaxed),
            bytes_out: self.bytes_out.load(Relaxed),
        }
    }
}

/// Marks where the program may run between two accesses of user space. In the tests it does.
#[cfg(not(test))]
#[inline]
fn interleave() {}

#[cfg(test)]
use program::interleave;

/// The program's side, for the simulated kernel.
#[cfg(test)]
pub mod program {
    use std::cell::RefCell;
    use std::sync::atomic::Ordering::Acquire;

    use super::*;

    type Hook = Box<dyn FnMut()>;

    thread_local! {
        static HOOK: RefCell<Option<Hook>> = const { RefCell::new(None) };
    }

    /// Has this thread call `hook` wherever the program may run between two accesses of user space.
    pub fn set_hook(hook: Hook) {
        HOOK.set(Some(hook));
    }

    pub(super) fn interleave() {
        HOOK.with_borrow_mut(|hook| hook.iter_mut().for_each(|hook| hook()));
    }

    /// What the program does to a record, each of it in one step.
    ///
    /// Its memory orderings are those of `verdict.bpf.c`: adding with `SeqCst` is a full barrier, and all else is
    /// as weak as it can be.
    impl Record {
        /// A run begins.
        pub fn begin(&self) {
            self.begun.fetch_add(1, SeqCst);
        }

        /// A run is over.
        pub fn finish(&self) {
            self.done.fetch_add(1, SeqCst);
        }

        /// Whether everything that was passed up is answered.
        pub fn is_open(&self) -> bool {
            // Acquire stands for the address of `sent`, which depends on what is read here.
            self.answered.load(Acquire) == self.passed.load(Relaxed)
        }

        /// How many bytes are in flight to the peer, which has acknowledged `acknowledged`.
        pub fn flight(&self, acknowledged: u64) -> i64 {
            let given = self.sent.load(Relaxed) + self.echoed_out.load(Relaxed);
            given.wrapping_sub(acknowledged).cast_signed()
        }

        /// Whether the answers are in the socket's send queue, which was given `written` bytes.
        pub fn is_clear(&self, written: u64) -> bool {
            let sent = self.sent.load(Relaxed);
            if self.cleared.load(Relaxed) != sent {
                if written < sent + self.echoed_out.load(Relaxed) {
                    return false;
                }
                self.cleared.store(sent, Relaxed);
            }
            true
        }

        /// A frame is echoed with `echoed` bytes.
        pub fn echo(&self, echoed: u64, now: Duration) {
            self.echoed_at_ns.store(now.as_nanos() as u64, Relaxed);
            self.echoed_frames.fetch_add(1, Relaxed);
            self.echoed_out.fetch_add(echoed, Relaxed);
        }

        /// A packet of `bytes` bytes is passed up, or dropped if more than `unreceived_max` bytes may
        /// then be waiting to be received. Returns whether it is passed up.
        pub fn pass(&self, bytes: u64, unreceived_max: u64) -> bool {
            let (received, passed) = (self.received.load(Relaxed), self.passed.load(Relaxed));
            if received >= self.marked.load(Relaxed) {
                let weight = self.weight.swap(0, Relaxed);
                let is_empty = received == passed;
                self.weight_before.store(if is_empty { 0 } else { weight }, Relaxed);
                self.marked.store(passed, Relaxed);
            }
            let weight = self.weight.fetch_add(bytes, Relaxed) + bytes;
            if self.weight_before.load(Relaxed) + weight > unreceived_max {
                self.overrun.store(1, Relaxed);
            }
            self.passed.fetch_add(bytes, SeqCst);
            self.overrun.load(Relaxed) == 0
        }

        /// Whether all notices are taken.
        pub fn is_noticed(&self) -> bool {
            self.notices_taken.load(Relaxed) == self.notices.load(Relaxed)
        }

        /// A notice is sent.
        pub fn notify(&self) {
            self.notices.fetch_add(1, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    #[test]
    fn it_is_laid_out_as_the_program_has_it() {
        assert_eq!((size_of::<Record>(), align_of::<Record>()), (192, 64));
        assert_eq!(offset_of!(Record, passed), 16);
        assert_eq!(offset_of!(Record, echoed_at_ns), 56);
        assert_eq!(offset_of!(Record, answered), 64);
        assert_eq!(offset_of!(Record, received), 88);
        assert_eq!(offset_of!(Record, marked), 128);
        assert_eq!(offset_of!(Record, overrun), 152);
        assert_eq!(offset_of!(Record, sequence), 160);
    }

    #[test]
    fn a_new_connection_keeps_the_notice_of_the_one_before() {
        let record = Record::default();
        record.notices.store(1, SeqCst);
        record.reset();
        assert_eq!(record.notices.load(SeqCst), 1);
        record.take_notice();
        assert_eq!(record.notices_taken.load(SeqCst), 1);
    }

    #[test]
    fn the_gate_opens_when_all_that_was_passed_is_answered() {
        let record = Record::default();
        record.reset();
        record.passed.store(30, SeqCst);
        assert!(!record.open(20, 7));
        assert!(record.open(30, 9));
        record.shut();
        assert_ne!(record.answered.load(SeqCst), record.passed());
    }
}
