//! The counters of a worker.
//!
//! A worker alone writes its counters; any thread may read them at any time. Each worker's counters
//! have cache lines of their own, so that counting costs a plain addition and no other core ever
//! waits for it. This module does not know who counts what: it names the counters, once, in the table
//! below.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use serde::Serialize;

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

    /// Subtracts `amount`, for gauges. Only the owning worker may call this.
    #[inline]
    pub fn subtract(&self, amount: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_sub(amount), Relaxed);
    }

    /// Sets a gauge. Only the owning worker may call this.
    #[inline]
    pub fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    /// The count at this moment.
    #[inline]
    pub fn value(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// What the kernel has echoed by itself, at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Echoed {
    /// Frames, each a whole message.
    pub frames: u64,
    /// Bytes received, headers included.
    pub bytes_in: u64,
    /// Bytes of the echoes.
    pub bytes_out: u64,
}

/// Where the kernel counts what it echoes by itself.
pub trait EchoCounts: fmt::Debug + Send + Sync {
    /// The counts at this moment.
    fn read(&self) -> Echoed;
}

/// Makes [`Counters`] and [`Snapshot`] from one table of names. A name is followed by the field of
/// [`Echoed`] that is added to it, if there is one. The ratio comes between two parts of the
/// table, next to the counts that it divides.
macro_rules! counters {
    (
        $($(#[$documentation:meta])* $name:ident $(+ $echoed:ident)?),*;
        ratio $ratio:ident;
        $($(#[$later_documentation:meta])* $later:ident,)*
    ) => {
        /// What one worker counts while it serves. Bytes are those of the TCP stream, the opening
        /// handshake included.
        #[derive(Debug, Default)]
        #[repr(align(128))]
        pub struct Counters {
            $($(#[$documentation])* pub $name: Counter,)*
            $($(#[$later_documentation])* pub $later: Counter,)*
            echoed: OnceLock<Arc<dyn EchoCounts>>,
        }

        impl Counters {
            /// The counts at this moment, those of the kernel's echoes included.
            pub fn snapshot(&self) -> Snapshot {
                let echoed = self.echoed.get().map(|counts| counts.read()).unwrap_or_default();
                Snapshot {
                    $($name: self.$name.value() $(+ echoed.$echoed)?,)*
                    $ratio: 0.0,
                    $($later: self.$later.value(),)*
                }
                .with_ratio()
            }
        }

        /// Counts at one moment, of one worker or summed.
        #[derive(Debug, Default, Clone, PartialEq, Serialize)]
        pub struct Snapshot {
            $($(#[$documentation])* pub $name: u64,)*
            /// `syscalls / messages`; 0 while there are no messages.
            pub $ratio: f64,
            $($(#[$later_documentation])* pub $later: u64,)*
        }

        impl Snapshot {
            /// The sum over `workers`.
            pub fn sum<'a>(workers: impl IntoIterator<Item = &'a Snapshot>) -> Snapshot {
                let mut total = Snapshot::default();
                for worker in workers {
                    $(total.$name += worker.$name;)*
                    $(total.$later += worker.$later;)*
                }
                total.with_ratio()
            }
        }
    };
}

counters! {
    /// Connections taken from a listener.
    connections_accepted,
    /// Connections open now.
    connections_open,
    /// Connections refused: over the limit, or with an invalid opening handshake.
    connections_rejected,
    /// Times that a browser got the page instead of a WebSocket.
    pages_served,
    /// Offloaded connections dropped because their peer had sent too much that was not received.
    connections_overrun,
    /// Whole data messages echoed: frames with FIN, text or binary.
    messages + frames,
    /// Messages echoed by the kernel itself; they are counted as messages, frames and bytes too.
    messages_offloaded + frames,
    /// Compressed messages whose compressed bytes were echoed as they were.
    messages_mirrored,
    /// Compressed messages inflated and recompressed.
    messages_recompressed,
    /// Connections to which compression was declined for want of memory to recompress.
    compression_declined,
    /// Whole frames read from peers, control frames included.
    frames_in + frames,
    /// Frames written for peers, control frames included.
    frames_out + frames,
    /// Bytes received.
    bytes_in + bytes_in,
    /// Bytes the kernel accepted for sending.
    bytes_out + bytes_out,
    /// System calls that the worker made while serving, without those of the allocator for messages
    /// larger than a buffer.
    syscalls;
    ratio syscalls_per_message;
    /// Receives that found no pinned buffer, and were started again or took heap memory.
    buffers_exhausted,
    /// Bytes of memory kept for spills and not in use now.
    spill_bytes_kept,
    /// Blocks of 16 KiB and more that spills took from the allocator, because none was kept that fitted.
    spill_allocations,
    /// Heap memory for messages and compression now, in bytes, to 64 KiB.
    memory_bytes,
    /// Times that memory was so short that connections were not read.
    memory_shortages,
    /// Connections failed because the peer broke a rule of the protocol.
    protocol_violations,
    /// Those of them with a message in too many frames.
    messages_overfragmented,
    /// Those of them with too many control frames in a second.
    control_floods,
    /// Connections ended because what was received on them was not TLS, or had been changed on its way.
    tls_failures,
    /// Connections refused because their address had too many.
    addresses_refused,
    /// Opening handshakes refused because of their origin.
    origins_refused,
    /// Opening handshakes refused because of their path.
    paths_refused,
    /// Opening handshakes that were not finished in time.
    handshakes_timed_out,
    /// Pings sent to silent peers.
    pings_sent,
    /// Connections closed because nothing was received for too long.
    connections_timed_out,
    /// Connections closed because they had been open for as long as one may.
    connections_expired,
    /// Connections closed for want of memory.
    connections_shed,
    /// Connections dropped because a stopping server had waited for them for long enough.
    connections_cut,
    /// Polls of the completion queue that found nothing, made instead of sleeping.
    spins,
}

impl Counters {
    /// Adds what the kernel echoes by itself from now on. A second call is ignored: a worker has one
    /// program in the kernel.
    pub fn add_echoed(&self, counts: Arc<dyn EchoCounts>) {
        let _ = self.echoed.set(counts);
    }
}

impl Snapshot {
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

    #[derive(Debug)]
    struct Elsewhere;

    impl EchoCounts for Elsewhere {
        fn read(&self) -> Echoed {
            Echoed { frames: 3, bytes_in: 50, bytes_out: 40 }
        }
    }

    #[test]
    fn echoes_of_the_kernel_are_messages_frames_and_bytes_too() {
        let counters = Counters::default();
        counters.messages.add(1);
        counters.bytes_in.add(7);
        counters.add_echoed(Arc::new(Elsewhere));
        let expected = Snapshot {
            messages: 4,
            messages_offloaded: 3,
            frames_in: 3,
            frames_out: 3,
            bytes_in: 57,
            bytes_out: 40,
            ..Snapshot::default()
        };
        assert_eq!(counters.snapshot(), expected);
    }

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
