//! Engines move bytes between sockets and the protocol, and know nothing of frames.
//!
//! Each engine is a [`ring::Ring`] under the one [`pump::Pump`], so that the behaviour of connections
//! is decided in one place: an engine only says how operations reach the kernel.
//!
//! An engine starts in two steps, both on the thread of its worker. [`Engine::prepare`] takes from
//! the kernel everything that could be refused: the ring, the memory, the kernel's program. When
//! all workers have that, [`Prepared::serve`] serves the listeners. In between, no client can have
//! connected, so the server can still drop it all and choose another engine.
//!
//! The modules that this file imports do not import it back, and no engine imports another.

pub mod config;
pub mod epoll;
pub mod error;
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

use std::os::fd::OwnedFd;

use self::wait::ThreadClock;
use crate::offload::{self, program::Program};
use crate::sandbox::Needs;

pub use self::config::{BufferConfig, WorkerConfig};
pub use self::error::EngineError;

/// How bytes reach the kernel and come from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// io_uring: one system call per message.
    Uring,
    /// epoll and the system calls of sockets: three per message.
    Epoll,
    /// io_uring through the crates tokio-uring and tokio, to compare with.
    #[cfg(feature = "tokio-uring")]
    TokioUring,
}

impl Engine {
    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Engine::Uring => "uring",
            Engine::Epoll => "epoll",
            #[cfg(feature = "tokio-uring")]
            Engine::TokioUring => "tokio-uring",
        }
    }

    /// What the thread of a worker needs once it is prepared.
    pub fn needs(self, offload: offload::Policy) -> Needs {
        let needs = Needs::default().calling(ThreadClock::CALLS).calling(match self {
            Engine::Uring => uring::CALLS,
            Engine::Epoll => epoll::CALLS,
            #[cfg(feature = "tokio-uring")]
            Engine::TokioUring => tokio_uring::CALLS,
        });
        match offload {
            offload::Policy::Off => needs,
            offload::Policy::On | offload::Policy::Auto => needs.calling(Program::CALLS),
        }
    }

    /// Takes the ring and the memory of one worker. The calling thread is the one that must serve.
    ///
    /// # Errors
    ///
    /// When the kernel refuses what this engine needs; then nothing of it is kept.
    pub fn prepare(self, worker: &WorkerConfig) -> Result<Prepared, EngineError> {
        Ok(match self {
            Engine::Uring => Prepared::Uring(Box::new(uring::PreparedRing::new(worker)?)),
            Engine::Epoll => Prepared::Epoll(epoll::PreparedEpoll::new(worker)?),
            #[cfg(feature = "tokio-uring")]
            Engine::TokioUring => Prepared::TokioUring(tokio_uring::PreparedRuntime::new(worker)?),
        })
    }
}

/// A worker that has all that it needs to serve. It belongs to the thread that prepared it.
pub enum Prepared {
    /// For [`Engine::Uring`].
    Uring(Box<uring::PreparedRing>),
    /// For [`Engine::Epoll`].
    Epoll(epoll::PreparedEpoll),
    /// For [`Engine::TokioUring`].
    #[cfg(feature = "tokio-uring")]
    TokioUring(tokio_uring::PreparedRuntime),
}

impl Prepared {
    /// Whether the memory for messages is locked, so that it cannot be swapped out.
    pub fn is_locked(&self) -> bool {
        match self {
            Prepared::Uring(prepared) => prepared.is_locked(),
            Prepared::Epoll(prepared) => prepared.is_locked(),
            // Registering the memory has locked it.
            #[cfg(feature = "tokio-uring")]
            Prepared::TokioUring(_) => true,
        }
    }

    /// Serves connections on this thread until the worker is told to stop. Calls `started` once
    /// connections are accepted. The listeners are already listening.
    ///
    /// # Errors
    ///
    /// When a listener cannot be watched, or the engine breaks.
    pub fn serve(
        self,
        worker: WorkerConfig,
        listeners: Vec<OwnedFd>,
        started: impl FnOnce(),
    ) -> Result<(), EngineError> {
        match self {
            Prepared::Uring(prepared) => prepared.serve(&worker, listeners, started),
            Prepared::Epoll(prepared) => prepared.serve(&worker, listeners, started),
            #[cfg(feature = "tokio-uring")]
            Prepared::TokioUring(prepared) => prepared.serve(worker, listeners, started),
        }
    }
}
