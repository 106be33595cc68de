//! Engines move bytes between sockets and the protocol, and know nothing of frames.

pub mod kernel;
pub mod ring;
#[cfg(test)]
mod simulation;
pub mod socket;
pub mod token;
pub mod uring;
pub mod wait;

use std::fmt;
use std::io;

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
