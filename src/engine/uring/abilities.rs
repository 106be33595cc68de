//! What the server asks of the kernel's io_uring, and how to find out whether it is there.
//!
//! Invariant that the unsafe block relies on:
//!
//! 1. A probing operation takes its memory from a buffer ring, if any, and is over before that
//!    memory and its socket are gone.

#![expect(unsafe_code, reason = "operations are submitted; see the invariant above")]

use std::io::{self, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;

use io_uring::types::Fd;
use io_uring::{Builder, IoUring, cqueue, opcode, squeue};

use super::buffer_ring::{BufferRing, GROUP};
use crate::engine::BufferConfig;

/// How long the kernel thread of `sqpoll` polls before it sleeps, in milliseconds.
const SQPOLL_IDLE_MS: u32 = 50;
/// Entries of a ring that only probes the kernel.
pub(super) const PROBED: u32 = 4;

/// A feature that a ring is set up with (`IORING_SETUP_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feature {
    /// A bad submission does not stop those after it.
    SubmitAll,
    /// The kernel sets a flag in shared memory when completions are pending, so that spinning needs no
    /// system call.
    TaskrunFlag,
    /// Only one thread submits.
    SingleIssuer,
    /// Completions are posted when that thread asks for them, instead of interrupting it.
    DeferTaskrun,
    /// Submissions are taken in order, without an array of indices.
    NoSubmissionArray,
    /// A kernel thread submits.
    Sqpoll,
}

impl Feature {
    pub(super) fn add_to(self, builder: &mut Builder) {
        match self {
            Feature::SubmitAll => builder.setup_submit_all(),
            Feature::TaskrunFlag => builder.setup_taskrun_flag(),
            Feature::SingleIssuer => builder.setup_single_issuer(),
            Feature::DeferTaskrun => builder.setup_defer_taskrun(),
            Feature::NoSubmissionArray => builder.setup_no_sqarray(),
            Feature::Sqpoll => builder.setup_sqpoll(SQPOLL_IDLE_MS),
        };
    }

    /// The kernel's name for it, and the first version of Linux with it (io_uring_setup(2)).
    pub(super) fn name(self) -> (&'static str, &'static str) {
        match self {
            Feature::SubmitAll => ("IORING_SETUP_SUBMIT_ALL", "5.18"),
            Feature::TaskrunFlag => ("IORING_SETUP_TASKRUN_FLAG", "5.19"),
            Feature::SingleIssuer => ("IORING_SETUP_SINGLE_ISSUER", "6.0"),
            Feature::DeferTaskrun => ("IORING_SETUP_DEFER_TASKRUN", "6.1"),
            Feature::NoSubmissionArray => ("IORING_SETUP_NO_SQARRAY", "6.6"),
            Feature::Sqpoll => ("IORING_SETUP_SQPOLL", "5.11"),
        }
    }

    /// Sets up a small ring with it, and with the features that it requires.
    pub(super) fn probe(self) -> io::Result<()> {
        let mut builder = IoUring::builder();
        match self {
            Feature::TaskrunFlag => {
                // It requires this or `DEFER_TASKRUN`, and this one is as old as it is.
                builder.setup_coop_taskrun();
            }
            Feature::DeferTaskrun => Feature::SingleIssuer.add_to(&mut builder),
            Feature::SubmitAll
            | Feature::SingleIssuer
            | Feature::NoSubmissionArray
            | Feature::Sqpoll => {}
        }
        self.add_to(&mut builder);
        builder.build(PROBED).map(drop)
    }
}

/// The server cannot serve without these. Each can be used together with those before it:
/// `TASKRUN_FLAG` is refused without `DEFER_TASKRUN`, which is newer.
pub(super) const NEEDED: &[Feature] =
    &[Feature::SubmitAll, Feature::SingleIssuer, Feature::DeferTaskrun, Feature::TaskrunFlag];
pub(super) const NEEDED_SQPOLL: &[Feature] =
    &[Feature::Sqpoll, Feature::SubmitAll, Feature::SingleIssuer];
/// These are used if the kernel has them; the newest is last.
pub(super) const WELCOME: &[Feature] = &[Feature::NoSubmissionArray];

/// Something that the server needs, or uses if it is there, of the kernel's io_uring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ability {
    /// A ring can be set up with this.
    SetUp(Feature),
    /// The kernel takes receive buffers from a ring that it shares with the process.
    BufferRing,
    /// One submission receives again and again.
    MultishotReceive,
    /// One submission accepts again and again.
    MultishotAccept,
}

/// What an ability is needed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To serve, with any wait strategy.
    Serving,
    /// To serve under `--wait sqpoll`.
    Sqpoll,
    /// Only to save time.
    Speed,
}

impl Ability {
    /// All of them, in the order in which Linux got them.
    pub const ALL: [Ability; 9] = [
        Ability::SetUp(Feature::Sqpoll),
        Ability::SetUp(Feature::SubmitAll),
        Ability::SetUp(Feature::TaskrunFlag),
        Ability::BufferRing,
        Ability::MultishotAccept,
        Ability::SetUp(Feature::SingleIssuer),
        Ability::MultishotReceive,
        Ability::SetUp(Feature::DeferTaskrun),
        Ability::SetUp(Feature::NoSubmissionArray),
    ];

    /// Its name, and the first version of Linux with it (io_uring_setup(2),
    /// io_uring_enter(2), io_uring_register(2)).
    pub fn name(self) -> (&'static str, &'static str) {
        match self {
            Ability::SetUp(feature) => feature.name(),
            Ability::BufferRing => ("buffer ring", "5.19"),
            Ability::MultishotReceive => ("multishot receive", "6.0"),
            Ability::MultishotAccept => ("multishot accept", "5.19"),
        }
    }

    /// What it is needed for.
    pub fn purpose(self) -> Purpose {
        match self {
            Ability::SetUp(feature) if NEEDED.contains(&feature) => Purpose::Serving,
            Ability::SetUp(feature) if WELCOME.contains(&feature) => Purpose::Speed,
            Ability::SetUp(_) => Purpose::Sqpoll,
            Ability::BufferRing | Ability::MultishotReceive | Ability::MultishotAccept => {
                Purpose::Serving
            }
        }
    }

    /// Finds out whether the kernel has it, by using it on a ring of its own.
    ///
    /// # Errors
    ///
    /// `EINVAL` if the kernel does not know it. Any other error means that the kernel refuses io_uring
    /// altogether, or memory or descriptors for the attempt.
    pub fn probe(self) -> io::Result<()> {
        match self {
            Ability::SetUp(feature) => feature.probe(),
            Ability::BufferRing => ring_with_buffers().map(drop),
            Ability::MultishotReceive => probe_multishot_receive(),
            Ability::MultishotAccept => probe_multishot_accept(),
        }
    }
}

/// The memory for an attempt: about a page.
const PROBED_BUFFERS: BufferConfig = BufferConfig { count: 2, bytes: 2048 };

/// A small ring with a buffer ring. They are dropped in this order.
fn ring_with_buffers() -> io::Result<(IoUring, BufferRing)> {
    let uring = IoUring::new(PROBED)?;
    let buffers = BufferRing::registered(PROBED_BUFFERS, &uring.submitter())??;
    Ok((uring, buffers))
}

fn probe_multishot_receive() -> io::Result<()> {
    let (uring, buffers) = &mut ring_with_buffers()?;
    receive_to_the_end(uring, buffers, UnixStream::pair()?, 0)
}

/// Receives one byte and the end of the stream from a pair of sockets, with one multishot
/// operation, of which others have their turns after `most` bytes, if that is not 0. Afterwards the operation is over
/// and all buffers are the kernel's again.
///
/// # Errors
///
/// `EINVAL` if the kernel has no multishot receive, or none of which it limits the bytes.
pub(super) fn receive_to_the_end(
    uring: &mut IoUring,
    buffers: &mut BufferRing,
    (socket, mut peer): (UnixStream, UnixStream),
    most: u32,
) -> io::Result<()> {
    peer.write_all(&[0])?;
    drop(peer);
    push_alone(uring, &opcode::RecvMulti::new(Fd(socket.as_raw_fd()), GROUP).len(most).build());
    let mut first = None;
    loop {
        match uring.submit_and_wait(1) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            Ok(_) | Err(_) => {}
        }
        for entry in uring.completion() {
            first.get_or_insert(entry.result());
            if let Some(id) = cqueue::buffer_select(entry.flags()) {
                let lease = buffers.lease(id, entry.result().max(0) as u32);
                buffers.recycle(lease);
            }
            if !cqueue::more(entry.flags()) {
                return outcome(first.unwrap_or_default());
            }
        }
    }
}

/// Accepts on a listener that nobody connects to. A kernel without multishot accept refuses that
/// immediately; otherwise the operation stays in flight until the ring is closed, and uses no memory.
fn probe_multishot_accept() -> io::Result<()> {
    let mut uring = IoUring::new(PROBED)?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    push_alone(&mut uring, &opcode::AcceptMulti::new(Fd(listener.as_raw_fd())).build());
    uring.submit()?;
    uring.completion().next().map_or(Ok(()), |entry| outcome(entry.result()))
}

pub(super) fn push_alone(uring: &mut IoUring, entry: &squeue::Entry) {
    // SAFETY: invariant 1.
    let pushed = unsafe { uring.submission().push(entry) };
    pushed.expect("there is room for one");
}

/// The result of a completion as a result.
fn outcome(result: i32) -> io::Result<()> {
    if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_serves_has_every_ability_that_serving_needs() {
        for ability in Ability::ALL {
            let probed = ability.probe();
            match ability.purpose() {
                Purpose::Serving => probed.unwrap_or_else(|error| panic!("{ability:?}: {error}")),
                // Older kernels do without.
                Purpose::Sqpoll | Purpose::Speed => {}
            }
        }
    }

    #[test]
    fn every_feature_of_a_set_up_is_among_the_abilities() {
        for (features, purpose) in [(NEEDED, Purpose::Serving), (WELCOME, Purpose::Speed)] {
            for feature in features {
                assert!(Ability::ALL.contains(&Ability::SetUp(*feature)), "{feature:?}");
                assert_eq!(Ability::SetUp(*feature).purpose(), purpose, "{feature:?}");
            }
        }
        for feature in NEEDED_SQPOLL {
            assert!(Ability::ALL.contains(&Ability::SetUp(*feature)), "{feature:?}");
        }
    }
}
