//! The configuration of a worker, as its engine needs it.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::pump::{Mailbox, Shared, Timeouts, Timing};
use super::wait::{Pace, WaitStrategy};
use crate::buffer::SpillPool;
use crate::metrics::Counters;
use crate::offload;
use crate::protocol::{Acceptor, Access, Context, Settings, Subprotocol};
use crate::sandbox;

/// The size of a buffer, in bytes, where each receive takes a whole one.
const PIECE: u32 = 16 << 10;
/// The most buffers that io_uring takes in one ring.
const MOST: u16 = 1 << 15;

/// How much pinned memory a worker has for messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BufferConfig {
    /// The number of buffers: a power of two, at most 32,768.
    pub count: u16,
    /// The size of each buffer in bytes; a multiple of 64.
    pub bytes: u32,
}

impl BufferConfig {
    /// The size of all buffers together, in bytes.
    pub fn memory_bytes(self) -> usize {
        usize::from(self.count) * self.bytes as usize
    }

    /// The same memory, or a little less, in buffers for receives that take a whole one each: of 16 KiB,
    /// unless they are smaller already or would be too many.
    #[must_use]
    pub fn divided(self) -> BufferConfig {
        let pieces = (self.bytes / PIECE).max(1).min(u32::from(MOST / self.count));
        // A power of two, as the count must be one.
        let pieces = 1 << pieces.ilog2();
        let bytes = self.bytes / pieces;
        BufferConfig { count: self.count * pieces as u16, bytes: bytes - bytes % 64 }
    }

    /// The size of the ring through which io_uring takes them, in bytes: an entry for each buffer.
    pub fn entries_bytes(self) -> usize {
        usize::from(self.count) * size_of::<io_uring::types::BufRingEntry>()
    }
}

/// All that an engine needs to know to serve as one worker, except where to listen.
#[derive(Debug, Clone)]
pub struct WorkerConfig {
    /// The worker's memory.
    pub buffers: BufferConfig,
    /// How many bytes it keeps for spills that are not in use.
    pub spill_pool: usize,
    /// How many bytes recompression may take on its connections.
    pub recompression_memory: usize,
    /// How the worker waits.
    pub wait: WaitStrategy,
    /// How long it may spin, if its strategy leaves that open.
    pub pace: Pace,
    /// Which connections are left to the kernel; only [`super::Engine::Uring`] can do that.
    pub offload: offload::Policy,
    /// Whether the worker locks itself down before it serves.
    pub sandbox: sandbox::Policy,
    /// The protocol's settings, the same for every connection.
    pub settings: Settings,
    /// Which subprotocol is accepted.
    pub subprotocol: Subprotocol,
    /// Which requests are accepted.
    pub access: Access,
    /// How long connections may take.
    pub timeouts: Timeouts,
    /// Whether it is measured how long messages stay.
    pub timing: Timing,
    /// Through what the worker is asked what is open, if anybody asks.
    pub mailbox: Option<Arc<Mailbox>>,
    /// What makes the layers of connections, by the number of their listener; none where they are plain.
    pub acceptors: Vec<Option<Arc<dyn Acceptor>>>,
    /// Becomes readable when the worker is to stop.
    pub stop: Arc<OwnedFd>,
    /// Where the worker counts.
    pub counters: Arc<Counters>,
    /// What the connections of all workers may take.
    pub shared: Arc<Shared>,
}

impl WorkerConfig {
    /// What the connections of the worker have in common.
    pub(in crate::engine) fn context(&self) -> Context<'_> {
        Context::new(self.settings, &self.counters)
            .with_subprotocol(self.subprotocol.clone())
            .with_access(self.access.clone())
            .with_spill_pool(SpillPool::new(self.spill_pool, self.counters.clone()))
            .with_recompression_memory(self.recompression_memory)
            .with_acceptors(self.acceptors.clone())
    }
}

#[cfg(test)]
impl WorkerConfig {
    /// A worker with two small buffers, for the tests of engines.
    pub(in crate::engine) fn for_test(wait: WaitStrategy) -> WorkerConfig {
        use crate::engine::pump::{Limit, MemoryLimit};
        use crate::protocol::{FrameLimits, Policy, Protocol};

        let flags = rustix::event::EventfdFlags::CLOEXEC | rustix::event::EventfdFlags::NONBLOCK;
        WorkerConfig {
            buffers: BufferConfig { count: 2, bytes: 1024 },
            spill_pool: 1 << 20,
            recompression_memory: 0,
            wait,
            pace: Pace::new(None, None),
            offload: offload::Policy::Off,
            sandbox: sandbox::Policy::On,
            settings: Settings {
                protocol: Protocol::WebSocket,
                message_max: 1 << 20,
                policy: Policy::Off,
                level: 1,
                frames: FrameLimits::NONE,
            },
            subprotocol: Subprotocol::Any,
            access: Access::default(),
            timeouts: Timeouts::DEFAULT,
            timing: Timing::Off,
            mailbox: None,
            acceptors: Vec::new(),
            stop: Arc::new(rustix::event::eventfd(0, flags).expect("an eventfd")),
            counters: Arc::default(),
            shared: Arc::new(Shared {
                connections: Limit::new(1),
                memory: MemoryLimit::new(usize::MAX, 1),
            }),
        }
    }
}

/// A listener for the tests of engines, and its address. A connection is in its queue as soon as connect(2) returns.
#[cfg(test)]
pub(in crate::engine) fn listener_for_test(
    name: &str,
) -> (std::os::unix::net::UnixListener, std::os::unix::net::SocketAddr) {
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::net::{SocketAddr, UnixListener};

    let name = format!("ringecho-unit-{}-{name}", std::process::id());
    let address = SocketAddr::from_abstract_name(name).expect("a name");
    (UnixListener::bind_addr(&address).expect("a listener"), address)
}
