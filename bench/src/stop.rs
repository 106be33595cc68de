//! What signals ask of a measurement: to end early (Ctrl-C), or to note that it was suspended
//! (Ctrl-Z and `fg`).
//!
//! [`Stop`] is both a flag, which a loop that must not slow down reads, and a descriptor, which any
//! wait can watch beside its own. Once requested, it stays so. This file does not end anything itself.

use std::io::{self, PipeReader, PipeWriter, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use ringecho::linux::field;
use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGTERM};
use signal_hook::{flag, low_level};

/// Whether a measurement is to end early, and whether it was suspended. Clones share this state.
#[derive(Debug, Clone)]
pub struct Stop {
    is_requested: Arc<AtomicBool>,
    was_suspended: Arc<AtomicBool>,
    /// Readable from the first request on; nobody ever reads it.
    bell: Arc<PipeReader>,
    ringer: Arc<PipeWriter>,
}

impl Stop {
    /// A stop that is not requested and does not watch signals.
    ///
    /// # Errors
    ///
    /// When the process has no descriptors left for a pipe.
    pub fn new() -> io::Result<Stop> {
        let (bell, ringer) = io::pipe()?;
        let (bell, ringer) = (Arc::new(bell), Arc::new(ringer));
        Ok(Stop { is_requested: Arc::default(), was_suspended: Arc::default(), bell, ringer })
    }

    /// Lets SIGINT, SIGTERM and SIGHUP request the stop, and a second one end the process with status
    /// 128 + its number. Notes SIGCONT. SIGHUP stays ignored where it is, as nohup(1) wants it.
    ///
    /// # Errors
    ///
    /// When the system refuses to install a handler.
    pub fn watch_signals(&self) -> io::Result<()> {
        let hangup = if ignores_hangup() { None } else { Some(SIGHUP) };
        for signal in [SIGINT, SIGTERM].into_iter().chain(hangup) {
            // Registered first, so that it sees the flag as earlier signals left it.
            flag::register_conditional_shutdown(signal, 128 + signal, self.is_requested.clone())?;
            flag::register(signal, self.is_requested.clone())?;
            low_level::pipe::register(signal, OwnedFd::from(self.ringer.try_clone()?))?;
        }
        flag::register(SIGCONT, self.was_suspended.clone())?;
        Ok(())
    }

    /// Requests the stop, as a signal would.
    pub fn request(&self) {
        self.is_requested.store(true, Relaxed);
        // If the pipe is full, it is readable already.
        let _ = (&*self.ringer).write(&[0]);
    }

    /// Whether the stop was requested.
    #[inline]
    pub fn is_requested(&self) -> bool {
        self.is_requested.load(Relaxed)
    }

    /// Whether the process was stopped and continued (SIGSTOP or Ctrl-Z, then SIGCONT or `fg`) since
    /// this was last asked: each measurement of several answers for its own time.
    pub fn take_suspension(&self) -> bool {
        self.was_suspended.swap(false, Relaxed)
    }

    /// A warning, if it was; as [`Stop::take_suspension`].
    pub fn suspension_warning(&self) -> Option<String> {
        self.take_suspension().then(|| {
            "ringbench was suspended and continued: latencies and durations contain that time."
                .to_owned()
        })
    }
}

/// Whether whoever started this process has it ignore SIGHUP (the mask of proc_pid_status(5)).
fn ignores_hangup() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = field(&status, "SigIgn").and_then(|mask| u64::from_str_radix(mask, 16).ok());
    ignored.is_some_and(|mask| mask & 1 << (SIGHUP - 1) != 0)
}

/// Readable once the stop was requested.
impl AsFd for Stop {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    fn is_readable(stop: &Stop) -> bool {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut [PollFd::new(stop, PollFlags::IN)], Some(&now)).expect("a poll") == 1
    }

    #[test]
    fn a_request_is_seen_by_flag_and_by_every_wait() {
        let stop = Stop::new().expect("a pipe");
        assert!(!stop.is_requested() && !is_readable(&stop));
        stop.request();
        assert!(stop.is_requested() && is_readable(&stop) && is_readable(&stop));
    }

    #[test]
    fn a_suspension_is_told_once() {
        let stop = Stop::new().expect("a pipe");
        assert!(!stop.take_suspension());
        stop.was_suspended.store(true, Relaxed);
        assert!(stop.suspension_warning().is_some() && stop.suspension_warning().is_none());
    }
}
