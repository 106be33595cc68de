//! What all connections of a server, and of one of its workers, have in common.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use super::allowance::{Allowance, Limits};
use super::compression::Scratch;
use super::extension::Policy;
use super::frame::CONTROL_PAYLOAD_MAX;
use super::handshake::{Access, Rejection, Subprotocol, Terms};
use super::layer::{Acceptor, Texts};
use super::moment::Moment;
use super::pool::{Budget, Pool, RECOMPRESSION_MEMORY_DEFAULT};
use crate::buffer::{SPILL_POOL_DEFAULT, SpillPool};
use crate::metrics::Counters;

/// Reply bytes that may wait to be sent to one peer before nothing more is received from it, in addition to
/// the replies to an unfinished message.
pub const BACKLOG_MAX: usize = 64 << 10;

/// What a server speaks, on all its connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// RFC 6455.
    WebSocket,
    /// Plain bytes: all that is received is echoed. Each receive counts as a message.
    Tcp,
}

/// The settings of a server, the same for all its connections.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// The wire protocol.
    pub protocol: Protocol,
    /// The largest message accepted, in bytes of payload, inflated. A larger one fails the connection
    /// with close code 1009.
    pub message_max: u64,
    /// How offers of permessage-deflate are answered.
    pub policy: Policy,
    /// The compression level for recompressed messages, from 1 (fastest) to 9 (smallest).
    pub level: u8,
    /// How many frames a peer may send.
    pub frames: FrameLimits,
}

/// How many frames a peer may send, so that none can occupy a worker with frames that carry nothing. More
/// of them fail the connection with close code 1008.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameLimits {
    /// The most frames of one message; [`u32::MAX`] if there is no limit.
    pub message: u32,
    /// The most control frames in a second of the worker's clock; [`u16::MAX`] if there is no limit.
    pub control: u16,
}

impl FrameLimits {
    /// The limits of a server without options.
    pub const DEFAULT: FrameLimits = FrameLimits { message: 65_536, control: 100 };

    /// Any number of frames.
    pub const NONE: FrameLimits = FrameLimits { message: u32::MAX, control: u16::MAX };
}

/// What all connections of a worker have in common.
#[derive(Debug)]
pub struct Context<'a> {
    pub(super) settings: Settings,
    subprotocol: Subprotocol,
    access: Access,
    /// The longest payload that is echoed the short way, in bytes: see `connection/frames.rs`.
    pub(super) short_max: u8,
    backlog_max: usize,
    /// Where spills and replies on the heap take their memory.
    pub spill_pool: SpillPool,
    /// Where messages, frames and violations are counted.
    pub counters: &'a Counters,
    pub(super) scratch: Scratch,
    /// What inflates and compresses messages.
    pub(super) pool: Pool,
    /// The memory that may still be taken for recompression.
    pub(super) recompression: Budget,
    /// The work that the connections may do now.
    pub allowance: Allowance,
    /// The time, to some milliseconds.
    pub now: Cell<Moment>,
    /// What makes the layer of a connection, by the number of its listener; none where it is plain.
    acceptors: Vec<Option<Arc<dyn Acceptor>>>,
    /// Where layers decrypt and encrypt.
    pub texts: RefCell<Texts>,
}

impl<'a> Context<'a> {
    /// The context of one worker, which accepts any subprotocol.
    pub fn new(settings: Settings, counters: &'a Counters) -> Context<'a> {
        let short_max = settings.message_max.min(CONTROL_PAYLOAD_MAX) as u8;
        Context {
            settings,
            subprotocol: Subprotocol::Any,
            access: Access::default(),
            short_max,
            backlog_max: BACKLOG_MAX,
            spill_pool: SpillPool::new(SPILL_POOL_DEFAULT, Arc::default()),
            counters,
            scratch: Scratch::default(),
            pool: Pool::default(),
            recompression: Budget::new(RECOMPRESSION_MEMORY_DEFAULT),
            allowance: Allowance::new(Limits::default()),
            now: Cell::default(),
            acceptors: Vec::new(),
            texts: RefCell::default(),
        }
    }

    /// The same, but it accepts `subprotocol`.
    #[must_use]
    pub fn with_subprotocol(self, subprotocol: Subprotocol) -> Context<'a> {
        Context { subprotocol, ..self }
    }

    /// The same, but only the requests that `access` allows are accepted, instead of all.
    #[must_use]
    pub fn with_access(self, access: Access) -> Context<'a> {
        Context { access, ..self }
    }

    /// The same, but this many reply bytes may wait to be sent to one peer, instead of
    /// [`BACKLOG_MAX`].
    #[must_use]
    pub fn with_backlog_max(self, bytes: usize) -> Context<'a> {
        Context { backlog_max: bytes, ..self }
    }

    /// The same, but its connections may do this much work at a time.
    #[must_use]
    pub fn with_limits(self, limits: Limits) -> Context<'a> {
        Context { allowance: Allowance::new(limits), ..self }
    }

    /// The same, but spills take their memory from this pool, instead of one that nobody counts.
    #[must_use]
    pub fn with_spill_pool(self, spill_pool: SpillPool) -> Context<'a> {
        Context { spill_pool, ..self }
    }

    /// The same, but recompression may take this much memory on all its connections together, in bytes,
    /// instead of [`RECOMPRESSION_MEMORY_DEFAULT`].
    #[must_use]
    pub fn with_recompression_memory(self, bytes: usize) -> Context<'a> {
        Context { recompression: Budget::new(bytes), ..self }
    }

    /// The same, but connections have the layers that these make, by the number of their listeners, instead of none.
    #[must_use]
    pub fn with_acceptors(self, acceptors: Vec<Option<Arc<dyn Acceptor>>>) -> Context<'a> {
        Context { acceptors, ..self }
    }

    /// What makes the layers of the connections to this listener, if they have any.
    pub fn acceptor(&self, listener: u32) -> Option<&dyn Acceptor> {
        self.acceptors.get(listener as usize)?.as_deref()
    }

    /// Heap memory for messages and compression, in bytes; what is kept for later ones included.
    #[inline]
    pub fn memory_bytes(&self) -> usize {
        self.spill_pool.bytes() + self.pool.bytes()
    }

    /// Gives back the memory that is kept for later.
    pub fn trim(&self) {
        self.spill_pool.trim();
        self.pool.trim();
    }

    /// What opening handshakes are answered with.
    pub(super) fn terms(&self) -> Terms<'_> {
        Terms {
            policy: self.settings.policy,
            subprotocol: &self.subprotocol,
            access: &self.access,
            recompression: &self.recompression,
        }
    }

    /// The response to a request that was refused, if it asked for the page.
    pub(super) fn page_for(&self, request: &[u8], rejection: Rejection) -> Option<[&[u8]; 2]> {
        self.access.page.as_ref()?.response_to(request, rejection)
    }

    /// Reply bytes that may wait to be sent to one peer.
    pub(super) fn backlog_max(&self) -> usize {
        self.backlog_max
    }

    /// The largest message that is echoed, in bytes.
    pub fn message_max(&self) -> u64 {
        self.settings.message_max
    }
}
