//! io_uring through the crates tokio-uring and tokio, as a [`super::ring::Ring`]. This is how servers
//! on io_uring are usually written in Rust; under the same pump, its cost can be compared.
//!
//! Each worker has one runtime, whose tasks all run on its thread: one for each connection, one for
//! each listener, one that waits for the stop, and the pump's. They have [`shared::Shared`] in
//! common. A connection's task has at most one read and one write in flight, and puts their results
//! into `Shared`; the pump's task takes all results that are there together. The pump knows nothing of
//! tasks, and the tasks know nothing of frames.
//!
//! **One read at a time.** tokio-uring has no multishot operations. A connection reads again when the
//! pump has looked at the bytes of its last read; the new read is submitted right after the reply. So
//! bytes that wait for the pump, or for a peer that does not read, never take more than one buffer
//! per connection.
//!
//! **System calls.** In a ping-pong, a message takes three rounds of `io_uring_enter` and
//! `epoll_wait`: six system calls (`perf trace` and [`count_calls`] agree).
//!
//! - tokio-uring submits when tokio is about to sleep in its `epoll_wait` on the ring's descriptor.
//!   The first round submits the reply and the read. The reply's completion is posted immediately,
//!   makes the ring readable and ends the sleep.
//! - In the second round, the bytes of the next message arrive as work for the sleeping thread, which
//!   ends `epoll_wait` with `EINTR`; the kernel reads them only on the way out.
//! - In the third round, the ring is readable.
//!
//! If the next message arrives before the thread sleeps, rounds coincide: with 64 ping-pong clients a
//! message costs 0.2 calls. The extra rounds cannot be avoided with tokio-uring: it cannot suppress
//! the completion of a write, and it passes `IORING_ENTER_GETEVENTS` only to a full ring, without
//! which a ring with `IORING_SETUP_DEFER_TASKRUN` completes no read at all. Of the flags that work,
//! `COOP_TASKRUN` saves interrupts (at 100 connections 6 to 7 µs of CPU time per message instead of
//! 8); `TASKRUN_FLAG` sets a flag that tokio-uring does not read. Spinning is useless because nothing
//! is submitted while the runtime is awake, so a worker sleeps whatever [`WorkerConfig::wait`] says.
//!
//! **Why the pump is a task.** As the future of `block_on` it would be polled before the runtime's
//! tasks, and each wake-up would be another `epoll_wait`. Tasks may borrow only what is `'static`,
//! hence the leak in [`PreparedRuntime::serve`].
//!
//! **Buffers.** Registered buffers count against the limit on locked memory, in whole pages, and
//! tokio-uring registers at most [`FIXED_MAX`]. A read holds its buffer while it waits, as does a
//! write. A receive that finds no free buffer takes heap memory, and is counted as
//! `buffers_exhausted`. So neither idle connections nor peers that do not read can starve others, who
//! then receive up to [`buffers::HEAP_BYTES`] bytes at a time. Bytes are never copied for that. An
//! idle connection takes 4 KB: its task, and the memory of its read if that is not registered.
//!
//! **Ends.** tokio-uring cannot cancel an operation. A pause lets the read in flight be the last. When
//! a connection is over, its socket is shut down in both directions, which ends what is in flight. A
//! runtime is dropped when the pump is over, and then no operation is in flight; if one were,
//! tokio-uring would wait for it, because it owns the memory of its operations. So nothing is leaked
//! when a worker fails. If the kernel has no memory for a submission, tokio-uring panics.
//!
//! Tokio's reactor watches the listeners and the stop, and each connection is accepted by a call,
//! because an accept could not be cancelled either. Accepted descriptors are only read and written,
//! so any kind of stream socket will do.

mod buffers;
mod connection;
mod listener;
mod ring;
mod shared;

use std::future::{Future as _, poll_fn};
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_uring::Runtime;
use tokio_uring::buf::fixed::FixedBufRegistry;
use tracing::warn;

use self::ring::TokioRing;
use super::pump::Pump;
use super::ring::Wait;
use super::wait::monotonic;
use super::{BufferConfig, EngineError, WorkerConfig};
use crate::metrics::Counters;
use crate::sandbox::Call;

/// Entries of the submission queue. When it is full, it is submitted.
const SUBMISSIONS: u32 = 1024;
/// Entries of the completion queue. When it is full, the kernel keeps further completions.
const COMPLETIONS: u32 = 4096;
/// The most buffers that tokio-uring registers (`UIO_MAXIOV`); it drops further ones silently.
pub const FIXED_MAX: u16 = 1024;
/// What a worker calls once it is prepared. The runtime's ring itself cannot be restricted: it is enabled when the
/// runtime hands it out.
pub(super) const CALLS: &[Call] = &[
    Call::Any(libc::SYS_io_uring_enter),
    Call::Any(libc::SYS_epoll_ctl),
    Call::Any(libc::SYS_epoll_pwait),
    Call::Any(libc::SYS_accept4),
    Call::Any(libc::SYS_shutdown),
    Call::Any(libc::SYS_getpeername),
    Call::With(libc::SYS_ioctl, 1, &[libc::FIONBIO as u32]),
    #[cfg(target_arch = "x86_64")]
    Call::Any(libc::SYS_epoll_wait),
];
/// The runtime of one worker, with its registered memory.
pub struct PreparedRuntime {
    runtime: Runtime,
    buffers: FixedBufRegistry<Vec<u8>>,
    count: u16,
}

impl PreparedRuntime {
    /// Sets the runtime up and registers its memory, which locks it.
    ///
    /// # Errors
    ///
    /// When the kernel refuses either.
    pub fn new(worker: &WorkerConfig) -> Result<PreparedRuntime, EngineError> {
        let mut flags = tokio_uring::uring_builder();
        flags.setup_cqsize(COMPLETIONS);
        flags.setup_submit_all().setup_coop_taskrun().setup_single_issuer();
        let mut builder = tokio_uring::builder();
        builder.entries(SUBMISSIONS).uring_builder(&flags);
        let runtime = Runtime::new(&builder)
            .map_err(|error| EngineError::io_uring("set up io_uring", error))?;
        let BufferConfig { count, bytes } = worker.buffers.divided();
        if count > FIXED_MAX {
            warn!("tokio-uring registers only {FIXED_MAX} of {count} buffers");
        }
        let count = count.min(FIXED_MAX);
        let buffers = FixedBufRegistry::new((0..count).map(|_| vec![0; bytes as usize]));
        runtime.block_on(async { buffers.register() }).map_err(|error| {
            EngineError::new("register the memory for messages", error).with_remedy(
                "raise the limit on locked memory (ulimit -l), or lower --buffers or --buffer-size",
            )
        })?;
        Ok(PreparedRuntime { runtime, buffers, count })
    }

    /// Serves connections until the worker is told to stop. Calls `started` once they are accepted.
    ///
    /// # Errors
    ///
    /// When a descriptor cannot be watched.
    pub fn serve(
        self,
        worker: WorkerConfig,
        listeners: Vec<OwnedFd>,
        started: impl FnOnce(),
    ) -> Result<(), EngineError> {
        // Tasks may borrow only what is never freed: see "Why the pump is a task".
        let worker: &'static WorkerConfig = Box::leak(Box::new(worker));
        let PreparedRuntime { runtime, buffers, count } = self;
        runtime.block_on(async {
            let ready = (0..count.into()).filter_map(|index| buffers.check_out(index)).collect();
            let ring = TokioRing::new(worker, listeners, ready)?;
            let pump = Pump::new(ring, worker.context(), &worker.shared, worker.timeouts)
                .with_timing(worker.timing)
                .with_mailbox(worker.mailbox.clone());
            started();
            let serving = tokio_uring::spawn(work(pump));
            count_calls(&worker.counters, serving).await;
            Ok(())
        })
    }
}

/// Waits for `serving`, and meanwhile counts the runtime's system calls: see "System calls".
async fn count_calls(counters: &Counters, serving: JoinHandle<()>) {
    let metrics = Handle::current().metrics();
    let mut parks = None;
    let mut serving = pin!(serving);
    let ended = poll_fn(|cx| {
        let now = metrics.worker_park_count(0);
        counters.syscalls.add(match parks.replace(now) {
            None => 0,
            Some(before) if before == now => 1,
            Some(before) => 2 * (now - before),
        });
        serving.as_mut().poll(cx)
    });
    if let Err(error) = ended.await {
        std::panic::resume_unwind(error.into_panic());
    }
}

/// Runs the pump until it is over.
async fn work(mut pump: Pump<'static, TokioRing>) {
    let shared = pump.ring().shared.clone();
    let mut completions = Vec::new();
    let mut alarm = pin!(tokio::time::sleep(Duration::ZERO));
    let mut alarmed = None;
    pump.start();
    while !pump.is_over() {
        match pump.wanted() {
            // It is over when the runtime submits, which it does before it sleeps. A time that has come would
            // be noticed a millisecond later.
            Wait::Not => tokio_uring::no_op().await.expect("nothing can fail"),
            Wait::Until(until) => {
                if until.is_some() && until != alarmed {
                    let left = until.unwrap_or_default().saturating_sub(monotonic());
                    alarm.as_mut().reset(Instant::now() + left);
                    alarmed = until;
                }
                poll_fn(|cx| {
                    let is_due = until.is_some() && alarm.as_mut().poll(cx).is_ready();
                    if is_due { Poll::Ready(()) } else { shared.poll_events(cx) }
                })
                .await;
            }
        }
        pump.ring().collect(&mut completions);
        pump.take(&mut completions);
        shared.go_on();
    }
}
