//! The counters of a worker.
//!
//! A worker alone writes its counters; anybody may read them at any time. Each worker's counters
//! stand on cache lines of their own, so that counting costs a plain addition and no other
//! worker's core ever waits for it.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use serde::Serialize;

/// What the kernel has echoed by itself, at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Echoed {
    /// Frames, each a whole message.
    pub frames: u64,
    /// The bytes that came in, headers included.
    pub bytes_in: u64,
    /// The bytes of the echoes.
    pub bytes_out: u64,
}

/// Where the kernel counts what it echoes by itself.
pub trait EchoCounts: fmt::Debug + Send + Sync {
    /// The counts at this moment.
    fn read(&self) -> Echoed;
}

/// A count that one thread writes and any thread reads.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `amount`. Only the owning worker may call this: it is a load and a store, so two
    /// writers would lose counts.
    #[inline]
    pub fn add(&self, amount: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(amount), Relaxed);
    }

    /// Takes `amount` off again, for gauges. Only the owning worker may call this.
    #[inline]
    pub fn subtract(&self, amount: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_sub(amount), Relaxed);
    }

    /// The count at this moment.
    #[inline]
    pub fn value(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// What one worker counts while it serves. Bytes are octets of the TCP stream, the opening
/// handshake included.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Counters {
    /// Connections taken from a listener.
    pub connections_accepted: Counter,
    /// Connections open now.
    pub connections_open: Counter,
    /// Connections turned away: over the limit, or with an opening handshake that was refused.
    pub connections_rejected: Counter,
    /// Offloaded connections given up because their peer had sent too much that was not received.
    pub connections_overrun: Counter,
    /// Whole data messages echoed: frames with FIN, text or binary.
    pub messages: Counter,
    /// Compressed messages echoed by the octets that they came in.
    pub messages_mirrored: Counter,
    /// Compressed messages inflated and compressed again.
    pub messages_recompressed: Counter,
    /// Frames read whole from peers, control frames included.
    pub frames_in: Counter,
    /// Frames written for peers, control frames included.
    pub frames_out: Counter,
    /// Octets received.
    pub bytes_in: Counter,
    /// Octets the kernel took for sending.
    pub bytes_out: Counter,
    /// System calls that the worker made while serving; what the allocator does for messages larger
    /// than a buffer is not in it.
    pub syscalls: Counter,
    /// Receives that found no pinned buffer, and had to be started again or took heap memory.
    pub buffers_exhausted: Counter,
    /// Connections failed because the peer broke a rule of the protocol.
    pub protocol_violations: Counter,
    /// Polls of the completion queue that found nothing, made instead of sleeping.
    pub spins: Counter,
    /// What the kernel has echoed by itself for this worker; its messages, frames and octets are
    /// counted among those above too.
    echoed: OnceLock<Arc<dyn EchoCounts>>,
}

impl Counters {
    /// Counts from now on what the kernel echoes by itself.
    pub fn add_echoed(&self, counts: Arc<dyn EchoCounts>) {
        // A worker has one program.
        let _ = self.echoed.set(counts);
    }

    /// The counts at this moment.
    pub fn snapshot(&self) -> Snapshot {
        let echoed = self.echoed.get().map(|counts| counts.read()).unwrap_or_default();
        Snapshot {
            connections_accepted: self.connections_accepted.value(),
            connections_open: self.connections_open.value(),
            connections_rejected: self.connections_rejected.value(),
            connections_overrun: self.connections_overrun.value(),
            messages: self.messages.value() + echoed.frames,
            messages_offloaded: echoed.frames,
            messages_mirrored: self.messages_mirrored.value(),
            messages_recompressed: self.messages_recompressed.value(),
            frames_in: self.frames_in.value() + echoed.frames,
            frames_out: self.frames_out.value() + echoed.frames,
            bytes_in: self.bytes_in.value() + echoed.bytes_in,
            bytes_out: self.bytes_out.value() + echoed.bytes_out,
            syscalls: self.syscalls.value(),
            syscalls_per_message: 0.0,
            buffers_exhausted: self.buffers_exhausted.value(),
            protocol_violations: self.protocol_violations.value(),
            spins: self.spins.value(),
        }
        .with_ratio()
    }
}

/// Counts at one moment, of one worker or summed; the fields are those of [`Counters`].
#[expect(missing_docs, reason = "each field is documented where it is counted")]
#[derive(Debug, Default, Clone, PartialEq, Serialize)]
pub struct Snapshot {
    pub connections_accepted: u64,
    pub connections_open: u64,
    pub connections_rejected: u64,
    pub connections_overrun: u64,
    pub messages: u64,
    pub messages_offloaded: u64,
    pub messages_mirrored: u64,
    pub messages_recompressed: u64,
    pub frames_in: u64,
    pub frames_out: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub syscalls: u64,
    /// `syscalls / messages`, 0 while there are no messages.
    pub syscalls_per_message: f64,
    pub buffers_exhausted: u64,
    pub protocol_violations: u64,
    pub spins: u64,
}

impl Snapshot {
    /// The sum over `workers`.
    pub fn sum<'a>(workers: impl IntoIterator<Item = &'a Snapshot>) -> Snapshot {
        let mut total = Snapshot::default();
        for worker in workers {
            total.connections_accepted += worker.connections_accepted;
            total.connections_open += worker.connections_open;
            total.connections_rejected += worker.connections_rejected;
            total.connections_overrun += worker.connections_overrun;
            total.messages += worker.messages;
            total.messages_offloaded += worker.messages_offloaded;
            total.messages_mirrored += worker.messages_mirrored;
            total.messages_recompressed += worker.messages_recompressed;
            total.frames_in += worker.frames_in;
            total.frames_out += worker.frames_out;
            total.bytes_in += worker.bytes_in;
            total.bytes_out += worker.bytes_out;
            total.syscalls += worker.syscalls;
            total.buffers_exhausted += worker.buffers_exhausted;
            total.protocol_violations += worker.protocol_violations;
            total.spins += worker.spins;
        }
        total.with_ratio()
    }

    fn with_ratio(mut self) -> Snapshot {
        if self.messages > 0 {
            self.syscalls_per_message = self.syscalls as f64 / self.messages as f64;
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_of_two_workers_share_no_cache_line() {
        assert_eq!(align_of::<Counters>(), 128);
        assert_eq!(size_of::<Counters>() % 128, 0);
    }

    #[test]
    fn a_sum_divides_the_sums_and_not_the_ratios() {
        let busy = Counters::default();
        busy.messages.add(90);
        busy.syscalls.add(90);
        let idle = Counters::default();
        idle.messages.add(10);
        idle.syscalls.add(110);
        let total = Snapshot::sum(&[busy.snapshot(), idle.snapshot()]);
        assert_eq!(total.messages, 100);
        assert_eq!(total.syscalls_per_message, 2.0);
    }

    #[test]
    fn no_messages_is_not_a_division_by_zero() {
        assert_eq!(Counters::default().snapshot().syscalls_per_message, 0.0);
    }
}
