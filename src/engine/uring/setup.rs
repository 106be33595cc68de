//! How a worker's ring is set up: which features it asks for, what memory it takes, and what to do
//! where the kernel refuses.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsRawFd as _;

use io_uring::IoUring;
use rustix::io::Errno;

use super::abilities::{Ability, Feature, NEEDED, NEEDED_SQPOLL, PROBED, WELCOME};
use super::buffer_ring::BufferRing;
use super::queues::Queues;
use super::{KernelRing, Offloading};
use crate::buffer::HEADROOM;
use crate::engine::wait::{WaitStrategy, Waiter};
use crate::engine::{BufferConfig, EngineError, Parts};
use crate::memory::Mapping;
use crate::metrics::Counters;
use crate::offload;

/// Entries of the submission queue. When it is full, it is submitted without waiting.
const SUBMISSIONS: u32 = 1024;
/// Entries of the completion queue for one of the submission queue. When it is full, the kernel
/// keeps what is over.
const COMPLETIONS_A_SUBMISSION: u32 = 4;

/// Whether [`serve`] can be expected to work: sets a small ring up with the same features, and
/// receives by one as it does. A seccomp profile may refuse any of the calls.
///
/// # Errors
///
/// What the kernel refuses, and what to do about it.
pub fn probe(strategy: WaitStrategy) -> Result<(), EngineError> {
    set_up(strategy, PROBED)?;
    Ability::MultishotReceive.probe().map_err(|error| {
        let remedy = remedy(&error);
        EngineError::new("use io_uring", error).with_remedy(remedy)
    })
}

fn set_up(strategy: WaitStrategy, submissions: u32) -> Result<IoUring, EngineError> {
    let is_sqpoll = matches!(strategy, WaitStrategy::Sqpoll(_));
    let needed = if is_sqpoll { NEEDED_SQPOLL } else { NEEDED };
    negotiate(needed, WELCOME, |features| {
        let mut builder = IoUring::builder();
        builder.setup_cqsize(submissions * COMPLETIONS_A_SUBMISSION);
        for feature in features {
            feature.add_to(&mut builder);
        }
        builder.build(submissions)
    })
}

/// The memory and the kernel's ring of one worker. [`Resources::ring`] makes it usable.
pub(super) struct Resources {
    uring: IoUring,
    pub(super) parts: Parts,
    memory: Mapping,
    entries: Mapping,
}

impl Resources {
    /// Takes the memory and sets the ring up. The calling thread is the one that must use it
    /// (`IORING_SETUP_SINGLE_ISSUER`).
    ///
    /// # Errors
    ///
    /// When the kernel refuses: the error names the missing feature and what to do.
    pub(super) fn new(parts: Parts) -> Result<Resources, EngineError> {
        let uring = set_up(parts.strategy, SUBMISSIONS)?;
        let BufferConfig { count, octets } = parts.buffers;
        assert!(count.is_power_of_two() && octets as usize > HEADROOM, "checked by the caller");
        let memory = Mapping::new(parts.buffers.memory_octets()).map_err(EngineError::no_memory)?;
        let entries = Mapping::new(parts.buffers.entries_octets());
        Ok(Resources { uring, parts, memory, entries: entries.map_err(EngineError::no_memory)? })
    }

    /// Whether the memory for messages cannot be swapped out.
    pub(super) fn is_locked(&self) -> bool {
        self.memory.is_locked() && self.entries.is_locked()
    }

    /// The ring, ready to be used by this thread. `counters` gets its system calls and spins.
    ///
    /// # Errors
    ///
    /// When the kernel does not take the buffers.
    pub(super) fn ring<'a>(
        &'a mut self,
        counters: &'a Counters,
    ) -> Result<KernelRing<'a>, EngineError> {
        let offload = match self.parts.offload {
            offload::Policy::Off => None,
            offload::Policy::On | offload::Policy::Auto => Some(Offloading::new(counters)?),
        };
        let (mut submitter, submissions, completions) = self.uring.split();
        // Saves the look-up of the descriptor in each call; where it is refused, that is all.
        let _ = submitter.register_ring_fd();
        let buffers = BufferRing::new(self.parts.buffers, &mut self.memory, &mut self.entries);
        buffers.register(&submitter).map_err(|error| {
            EngineError::new("register the buffer ring", error)
                .with_remedy("buffer rings came with Linux 5.19; ringecho needs 6.1 or newer")
        })?;
        Ok(KernelRing {
            queues: Queues {
                submitter,
                submissions,
                completions,
                is_sqpoll: matches!(self.parts.strategy, WaitStrategy::Sqpoll(_)),
                counters,
            },
            waiter: Waiter::new(self.parts.strategy, counters),
            buffers,
            listeners: self.parts.listeners.drain(..).map(Some).collect(),
            stop: self.parts.stop.as_raw_fd(),
            quick: Vec::new(),
            patient: HashMap::new(),
            entries: Vec::new(),
            cut: Vec::new(),
            broken: None,
            offload,
            counters,
        })
    }
}

/// Sets a ring up with all features, or without as many of the welcome ones as it takes.
fn negotiate<T>(
    needed: &[Feature],
    welcome: &[Feature],
    mut set_up: impl FnMut(&[Feature]) -> io::Result<T>,
) -> Result<T, EngineError> {
    const STEP: &str = "set up io_uring";
    let all: Vec<Feature> = needed.iter().chain(welcome).copied().collect();
    let mut count = all.len();
    loop {
        match set_up(&all[..count]) {
            Ok(ring) => return Ok(ring),
            Err(error) if Errno::from_io_error(&error) != Some(Errno::INVAL) => {
                let remedy = remedy(&error);
                return Err(EngineError::new(STEP, error).with_remedy(remedy));
            }
            Err(_) if count > needed.len() => count -= 1,
            Err(error) => {
                let missing = (1..=needed.len())
                    .find(|&count| set_up(&all[..count]).is_err())
                    .map_or(needed[0], |count| needed[count - 1]);
                let (name, version) = missing.name();
                let remedy = format!(
                    "this kernel lacks {name}, which came with Linux {version}; ringecho needs \
                     Linux 6.1 or newer"
                );
                return Err(EngineError::new(STEP, error).with_remedy(remedy));
            }
        }
    }
}

/// What to do when the kernel refuses to set a ring up.
pub(in crate::engine) fn remedy(error: &io::Error) -> &'static str {
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
        Some(Errno::NOMEM) => "raise the limit on locked memory (ulimit -l)",
        Some(Errno::MFILE | Errno::NFILE) => "raise the limit on descriptors (ulimit -n)",
        _ => "ringecho needs Linux 6.1 or newer with io_uring",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A kernel that knows only `known`.
    fn kernel(known: &[Feature]) -> impl FnMut(&[Feature]) -> io::Result<usize> {
        move |features| {
            if features.iter().all(|feature| known.contains(feature)) {
                Ok(features.len())
            } else {
                Err(Errno::INVAL.into())
            }
        }
    }

    #[test]
    fn a_new_kernel_gives_all_features() {
        let all: Vec<Feature> = NEEDED.iter().chain(WELCOME).copied().collect();
        assert_eq!(negotiate(NEEDED, WELCOME, kernel(&all)).expect("a ring"), all.len());
    }

    #[test]
    fn linux_6_1_gives_what_is_needed() {
        assert_eq!(negotiate(NEEDED, WELCOME, kernel(NEEDED)).expect("a ring"), NEEDED.len());
    }

    #[test]
    fn an_older_kernel_is_told_what_it_lacks() {
        let error = negotiate(NEEDED, WELCOME, kernel(&[Feature::SubmitAll])).expect_err("too old");
        let text = error.to_string();
        assert!(text.contains("IORING_SETUP_SINGLE_ISSUER"), "{text}");
        assert!(text.contains("6.0") && text.contains("Linux 6.1 or newer"), "{text}");
    }

    #[test]
    fn a_refusal_is_not_taken_for_an_old_kernel() {
        let error = negotiate(NEEDED, WELCOME, |_| Err::<(), _>(Errno::PERM.into()));
        let text = error.expect_err("refused").to_string();
        assert!(text.contains("kernel.io_uring_disabled"), "{text}");
    }
}
