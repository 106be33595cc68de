//! Why an engine could not start, and what to do about it.

use std::fmt;
use std::io;

use rustix::io::Errno;

use crate::linux;

/// An engine could not start, or its ring broke.
#[derive(Debug)]
pub struct EngineError {
    /// What was being done.
    pub step: &'static str,
    /// What the kernel said.
    pub source: io::Error,
    /// What to do about it; empty if that is not known.
    pub remedy: String,
}

impl EngineError {
    /// An error with no known remedy but to raise a limit, if that is why.
    pub fn new(step: &'static str, source: impl Into<io::Error>) -> EngineError {
        let source = source.into();
        let remedy = linux::remedy(&source).to_owned();
        EngineError { step, source, remedy }
    }

    /// The memory for messages could not be mapped.
    pub fn no_memory(source: io::Error) -> EngineError {
        EngineError::new("allocate the memory for messages", source)
            .with_remedy("lower --buffers or --buffer-size")
    }

    /// The kernel refused a step that sets up io_uring.
    pub fn io_uring(step: &'static str, source: io::Error) -> EngineError {
        let remedy = remedy(&source);
        let error = EngineError::new(step, source);
        if error.remedy.is_empty() { error.with_remedy(remedy) } else { error }
    }

    /// The same error with a remedy.
    #[must_use]
    pub fn with_remedy(mut self, remedy: impl Into<String>) -> EngineError {
        self.remedy = remedy.into();
        self
    }

    /// Whether the kernel refused memory, which includes memory that cannot be locked.
    pub fn is_memory(&self) -> bool {
        Errno::from_io_error(&self.source) == Some(Errno::NOMEM)
    }
}

/// What to do when the kernel refuses io_uring.
fn remedy(error: &io::Error) -> &'static str {
    match Errno::from_io_error(error) {
        Some(Errno::NOSYS) => {
            "this kernel has no io_uring, or a seccomp filter hides it; ringecho needs Linux 6.1 \
             or newer, and in a container a seccomp profile that allows io_uring"
        }
        Some(Errno::PERM | Errno::ACCESS) => {
            "io_uring is switched off: check that sysctl kernel.io_uring_disabled is 0, and in a \
             container that the seccomp profile allows io_uring_setup, io_uring_enter and \
             io_uring_register"
        }
        Some(Errno::NOMEM) => {
            "raise the limit on locked memory (ulimit -l), or lower --workers or --buffers"
        }
        _ => "ringecho needs Linux 6.1 or newer with io_uring",
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
