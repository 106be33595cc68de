//! The counters of a worker.
//!
//! A worker alone writes its counters; any thread may read them at any time. Each worker's counters
//! have cache lines of their own, so that counting costs a plain addition and no other core ever
//! waits for it. This module does not know who counts what: it names the counters, once, in the table
//! below, from which everything that shows them takes their names and what they mean.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

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

/// Whether a count may go down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It only grows.
    Counter,
    /// It says how much there is now.
    Gauge,
}

/// What a count is.
#[derive(Debug, Clone, Copy)]
pub struct Description {
    /// Its name, as in the statistics file.
    pub name: &'static str,
    /// What is counted, in a sentence.
    pub help: &'static str,
    /// Whether it may go down.
    pub kind: Kind,
}

/// Makes [`Counters`] and [`Snapshot`] from one table of names. A name is followed by the field of
/// [`Echoed`] that is added to it, if there is one, and by `: gauge` if it may go down. The ratio comes between
/// two parts of the table, next to the counts that it divides.
macro_rules! counters {
    (@kind) => { Kind::Counter };
    (@kind gauge) => { Kind::Gauge };
    (
        $($(#[doc = $text:literal])* $name:ident $(+ $echoed:ident)? $(: $kind:ident)?),*;
        ratio $ratio:ident;
        $($(#[doc = $later_text:literal])* $later:ident $(: $later_kind:ident)?,)*
    ) => {
        /// What one worker counts while it serves. Bytes are those of the TCP stream, the opening
        /// handshake included.
        #[derive(Debug, Default)]
        #[repr(align(128))]
        pub struct Counters {
            $($(#[doc = $text])* pub $name: Counter,)*
            $($(#[doc = $later_text])* pub $later: Counter,)*
            /// How long messages stay in the server, where that is measured.
            pub residence: Residence,
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
            $($(#[doc = $text])* pub $name: u64,)*
            /// `syscalls / messages`; 0 while there are no messages.
            pub $ratio: f64,
            $($(#[doc = $later_text])* pub $later: u64,)*
        }

        impl Snapshot {
            /// What each count is, in the order of the table. The ratio is none of them.
            pub const DESCRIPTIONS: &[Description] = &[
                $(Description {
                    name: stringify!($name),
                    help: concat!($($text),*),
                    kind: counters!(@kind $($kind)?),
                },)*
                $(Description {
                    name: stringify!($later),
                    help: concat!($($later_text),*),
                    kind: counters!(@kind $($later_kind)?),
                },)*
            ];

            /// The counts, in the order of [`Snapshot::DESCRIPTIONS`].
            pub fn counts(&self) -> [u64; Snapshot::DESCRIPTIONS.len()] {
                [$(self.$name,)* $(self.$later,)*]
            }

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
    connections_open: gauge,
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
    spill_bytes_kept: gauge,
    /// Blocks of 16 KiB and more that spills took from the allocator, because none was kept that fitted.
    spill_allocations,
    /// Heap memory for messages and compression now, in bytes, to 64 KiB.
    memory_bytes: gauge,
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

/// The upper bounds of the first eight buckets of [`Residence`], in nanoseconds; those of the next eight are
/// twice as high, and so on. Each is 9 to 9.4 % above the one before.
const FIRST_BOUNDS_NS: [u64; 8] = [128, 140, 152, 166, 181, 197, 215, 235];
/// How often the bounds double: up to 2^30 ns, about a second.
const DOUBLINGS: usize = 23;

/// The upper bounds of the buckets of [`Residence`] in nanoseconds, each included. Longer times have one more
/// bucket, without a bound.
pub const RESIDENCE_BOUNDS_NS: [u64; 8 * DOUBLINGS + 1] = {
    let mut bounds = [FIRST_BOUNDS_NS[0] << DOUBLINGS; 8 * DOUBLINGS + 1];
    let mut place = 0;
    while place < 8 * DOUBLINGS {
        bounds[place] = FIRST_BOUNDS_NS[place % 8] << (place / 8);
        place += 1;
    }
    bounds
};

/// How long messages stay in the server: from the moment at which a worker sees that their last bytes have come,
/// to the one at which it gives their echoes to the kernel. Only the owning worker adds to it.
#[derive(Debug)]
pub struct Residence {
    /// By the bounds, and the last one without.
    buckets: [Counter; RESIDENCE_BOUNDS_NS.len() + 1],
    sum_ns: Counter,
}

impl Default for Residence {
    fn default() -> Residence {
        Residence {
            buckets: std::array::from_fn(|_| Counter::default()),
            sum_ns: Counter::default(),
        }
    }
}

impl Residence {
    /// Adds so many messages that have all stayed for `time`. Only the owning worker may call this.
    #[inline]
    pub fn add(&self, time: Duration, messages: u64) {
        let time_ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let bucket = RESIDENCE_BOUNDS_NS.partition_point(|&bound| bound < time_ns);
        self.buckets[bucket].add(messages);
        self.sum_ns.add(time_ns.saturating_mul(messages));
    }

    /// Adds what this has counted to `sum`.
    pub fn add_to(&self, sum: &mut ResidenceSnapshot) {
        for (count, bucket) in sum.counts.iter_mut().zip(&self.buckets) {
            *count += bucket.value();
        }
        sum.sum_ns = sum.sum_ns.wrapping_add(self.sum_ns.value());
    }
}

/// The times of [`Residence`] at one moment, of one worker or summed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResidenceSnapshot {
    /// Messages by [`RESIDENCE_BOUNDS_NS`], each counted once; last those beyond all bounds.
    pub counts: [u64; RESIDENCE_BOUNDS_NS.len() + 1],
    /// The sum of all times, in nanoseconds.
    pub sum_ns: u64,
}

impl Default for ResidenceSnapshot {
    fn default() -> ResidenceSnapshot {
        ResidenceSnapshot { counts: [0; RESIDENCE_BOUNDS_NS.len() + 1], sum_ns: 0 }
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
    fn every_count_is_described_and_only_what_goes_down_is_a_gauge() {
        let counters = Counters::default();
        counters.connections_accepted.add(1);
        counters.spins.add(2);
        let counts = counters.snapshot().counts();
        assert_eq!((counts[0], counts.last()), (1, Some(&2)));
        let object = serde_json::to_value(Snapshot::default()).expect("numbers");
        let names = object.as_object().expect("a struct").keys().map(String::as_str);
        let names: Vec<&str> = names.filter(|&name| name != "syscalls_per_message").collect();
        let described = Snapshot::DESCRIPTIONS.iter();
        assert_eq!(described.clone().map(|it| it.name).collect::<Vec<&str>>(), names);
        for Description { help, .. } in described.clone() {
            assert!(help.trim().ends_with('.'), "{help}");
        }
        let gauges = described.filter(|it| it.kind == Kind::Gauge).map(|it| it.name);
        let expected = ["connections_open", "spill_bytes_kept", "memory_bytes"];
        assert_eq!(gauges.collect::<Vec<&str>>(), expected);
    }

    #[test]
    fn the_bounds_of_residence_times_are_at_most_ten_percent_apart() {
        for (lower, upper) in RESIDENCE_BOUNDS_NS.iter().zip(&RESIDENCE_BOUNDS_NS[1..]) {
            assert!(upper > lower && upper * 10 <= lower * 11, "{lower} {upper}");
        }
        assert_eq!(RESIDENCE_BOUNDS_NS.last(), Some(&(1 << 30)));
    }

    #[test]
    fn a_residence_time_is_counted_up_to_its_bound() {
        let residence = Residence::default();
        for (time_ns, messages) in [(0, 1), (128, 2), (129, 4), (1 << 30, 8), ((1 << 30) + 1, 16)] {
            residence.add(Duration::from_nanos(time_ns), messages);
        }
        let mut sum = ResidenceSnapshot::default();
        residence.add_to(&mut sum);
        residence.add_to(&mut sum);
        let last = RESIDENCE_BOUNDS_NS.len();
        let counted = [0, 1, last - 1, last].map(|bucket| sum.counts[bucket]);
        assert_eq!(counted, [6, 8, 16, 32]);
        assert_eq!(sum.counts.iter().sum::<u64>(), 62);
        assert_eq!(sum.sum_ns, 2 * (2 * 128 + 4 * 129 + 24 * (1 << 30) + 16));
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
