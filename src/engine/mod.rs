//! Engines move bytes between sockets and the protocol, and know nothing of frames.
//!
//! Each engine is a [`ring::Ring`] under the one [`pump::Pump`], so that what a connection may
//! count on is decided in one place: an engine says how operations reach the kernel, and no more.

pub mod pump;
pub mod ring;
#[cfg(test)]
mod simulation;
pub mod socket;
pub mod token;
pub mod uring;
pub mod wait;

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use self::pump::Limit;
use self::wait::WaitStrategy;
use crate::protocol::Context;

/// How bytes reach the kernel and come from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// io_uring, one system call a message.
    Uring,
}

impl Engine {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Engine::Uring => "uring",
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
        context: Context<'_>,
        limit: &Limit,
        started: impl FnOnce(bool),
    ) -> Result<(), EngineError> {
        match self {
            Engine::Uring => uring::serve(parts, context, limit, started),
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
