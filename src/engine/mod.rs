//! Engines move bytes between sockets and the protocol, and know nothing of frames.
//!
//! Each engine is a [`ring::Ring`] under the one [`pump::Pump`], so that what a connection may
//! count on is decided in one place: an engine says how operations reach the kernel, and no more.

pub mod epoll;
pub mod pump;
pub mod reply;
pub mod ring;
#[cfg(test)]
mod simulation;
pub mod token;
#[cfg(feature = "tokio-uring")]
pub mod tokio_uring;
pub mod uring;
pub mod wait;

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use self::pump::Limit;
use self::wait::WaitStrategy;
use crate::offload;
use crate::protocol::Context;

/// How bytes reach the kernel and come from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// io_uring, one system call a message.
    Uring,
    /// epoll and the system calls of sockets, three a message.
    Epoll,
    /// io_uring by way of the crates tokio-uring and tokio, to be compared with.
    #[cfg(feature = "tokio-uring")]
    TokioUring,
}

impl Engine {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Engine::Uring => "uring",
            Engine::Epoll => "epoll",
            #[cfg(feature = "tokio-uring")]
            Engine::TokioUring => "tokio-uring",
        }
    }

    /// The engine to serve with where none is asked for: io_uring where it can be had, else epoll,
    /// with the reason. Only io_uring has [`WaitStrategy::Sqpoll`], so there is no other for it.
    ///
    /// # Errors
    ///
    /// Why io_uring cannot be had, where nothing else will do.
    pub fn choose(strategy: WaitStrategy) -> Result<(Engine, Option<EngineError>), EngineError> {
        match (uring::probe(strategy), strategy) {
            (Ok(()), _) => Ok((Engine::Uring, None)),
            (Err(error), WaitStrategy::Sqpoll(_)) => Err(error),
            (Err(error), WaitStrategy::Block | WaitStrategy::Spin | WaitStrategy::Adaptive(_)) => {
                Ok((Engine::Epoll, Some(error)))
            }
        }
    }

    /// Serves the connections of one worker on this thread, until it is told to stop. `started` is
    /// called when all is ready, with whether the memory for messages is locked.
    ///
    /// # Errors
    ///
    /// When the kernel refuses what is needed, or the engine breaks.
    pub fn serve(
        self,
        parts: Parts,
        context: Context<'static>,
        limit: &'static Limit,
        started: impl FnOnce(bool),
    ) -> Result<(), EngineError> {
        match self {
            Engine::Uring => uring::serve(parts, context, limit, started),
            Engine::Epoll => epoll::serve(parts, context, limit, started),
            #[cfg(feature = "tokio-uring")]
            Engine::TokioUring => tokio_uring::serve(parts, context, limit, started),
        }
    }
}

/// What the memory of one worker is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BufferConfig {
    /// How many buffers, a power of two, at most 32,768.
    pub count: u16,
    /// Octets of each, the headroom included; a multiple of 64.
    pub octets: u32,
}

impl BufferConfig {
    /// Octets of the buffers.
    pub fn memory_octets(self) -> usize {
        usize::from(self.count) * self.octets as usize
    }

    /// Octets of the ring by which io_uring takes them.
    pub fn entries_octets(self) -> usize {
        usize::from(self.count) * size_of::<io_uring::types::BufRingEntry>()
    }
}

/// What a worker's ring is made from.
#[derive(Debug)]
pub struct Parts {
    /// The listeners, already listening.
    pub listeners: Vec<OwnedFd>,
    /// Becomes readable when the worker is to stop.
    pub stop: Arc<OwnedFd>,
    /// The buffers.
    pub buffers: BufferConfig,
    /// How to wait.
    pub strategy: WaitStrategy,
    /// Which connections are left to the kernel; only [`Engine::Uring`] can.
    pub offload: offload::Policy,
}

/// An engine could not start, or its ring broke.
#[derive(Debug)]
pub struct EngineError {
    /// What was being done.
    pub step: &'static str,
    /// What the kernel said.
    pub source: io::Error,
    /// What to do about it, if that is known.
    pub remedy: String,
}

impl EngineError {
    /// An error with no known remedy.
    pub fn new(step: &'static str, source: io::Error) -> EngineError {
        EngineError { step, source, remedy: String::new() }
    }

    /// The memory for messages could not be had.
    pub fn no_memory(source: io::Error) -> EngineError {
        EngineError::new("take the memory for messages", source)
            .with_remedy("lower --buffers or --buffer-size")
    }

    /// The same with a remedy.
    #[must_use]
    pub fn with_remedy(mut self, remedy: impl Into<String>) -> EngineError {
        self.remedy = remedy.into();
        self
    }
}

impl fmt::Display for EngineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}: {}", self.step, self.source)?;
        if self.remedy.is_empty() { Ok(()) } else { write!(f, "; {}", self.remedy) }
    }
}

impl std::error::Error for EngineError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}
