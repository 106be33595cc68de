//! The kernel's io_uring as a [`Ring`].
//!
//! The reply of a ping-pong must be submitted by the same system call that waits for the next
//! message, and its own completion must not end that wait. So a send without patience carries
//! `IOSQE_CQE_SKIP_SUCCESS` and `MSG_DONTWAIT | MSG_WAITALL`: it is tried when it is submitted,
//! and leaves a completion only if it was cut short. When the submitting call has returned and the
//! completion queue is drained, the sends without a completion are known to be whole.
//!
//! A multishot receive can miss that a connection is reset. When the octets before the reset and the
//! reset are both there before the kernel's one look at the socket, it receives the octets, finds
//! nothing behind them, and waits for a wake-up that has been. Up to Linux 6.18.19 it is so whenever
//! both come before the worker looks; since then (commit a68ed2df7213, "io_uring/poll: fix multishot
//! recv missing EOF on wakeup race") only when both come while the receive is being armed. So octets
//! that are not answered are followed by a send of nothing, which fails if the connection is broken,
//! and leaves no completion if it is not.
//!
//! Invariants that the unsafe blocks rely on:
//!
//! 1. A buffer is in one of three hands: the kernel's (its entry lies between the buffer ring's
//!    head and tail), a [`Lease`]'s, or a [`Reply`]'s. Leases cannot be copied, so only their
//!    holder reads or writes the buffer.
//! 2. The memory of a reply is kept in `quick` or `patient` from the moment that its send is
//!    pushed until the send is known to be over: a quick one when it is submitted and the queue is
//!    drained, a patient one when its completion is seen.
//! 3. The mappings outlive the ring: they are declared after it and so dropped after it, and a
//!    worker ends only when all its operations have. If the ring breaks, all of it is leaked
//!    (`Pump::run` and [`serve`]). A panic aborts the process (see `Cargo.toml`).
//! 4. The buffer ring has `count` entries, a power of two; the entry of position `tail % count` is
//!    never one that the kernel may read, because there are `count` buffers in all.

#![expect(unsafe_code, reason = "the kernel reads and writes memory; see the invariants above")]

use std::collections::HashMap;
use std::io::{self, Write as _};
use std::marker::PhantomData;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use io_uring::squeue::{self, Flags};
use io_uring::types::{BufRingEntry, Fd, SubmitArgs, Timespec};
use io_uring::{Builder, CompletionQueue, IoUring, SubmissionQueue, Submitter, cqueue, opcode};
use rustix::io::Errno;
use rustix::net::{SendFlags, Shutdown};

use super::pump::{Limit, Pump};
use super::ring::{
    Blocking, Completion, Further, Lease, Patience, Received, Reply, Ring, Sent, Socket, Wait,
};
use super::token::{Op, Token};
use super::wait::{Source, WaitStrategy, Waiter};
use super::{BufferConfig, EngineError, Parts};
use crate::buffer::HEADROOM;
use crate::memory::Mapping;
use crate::metrics::Counters;
use crate::offload::program::Program;
use crate::offload::record::Record;
use crate::offload::{self, AUTO_RUN};
use crate::protocol::Context;
use crate::slab::Key;

/// Entries of the submission queue. When it is full, it is submitted without waiting.
const SUBMISSIONS: u32 = 1024;
/// Entries of the completion queue for one of the submission queue. When it is full, the kernel
/// keeps what is over.
const COMPLETIONS_A_SUBMISSION: u32 = 4;
/// How long the kernel's thread polls before it sleeps, under `sqpoll`, in milliseconds.
const SQPOLL_IDLE_MS: u32 = 50;
/// Entries of the rings that only find out what the kernel can do.
const PROBED: u32 = 4;
/// How often a socket is asked what it was given for sending, while acknowledgements arrive.
const READINGS: usize = 8;
/// The one group of buffers.
const GROUP: u16 = 0;
/// `IORING_ENTER_GETEVENTS` and its siblings (io_uring_enter(2)).
const ENTER_GETEVENTS: u32 = 1;
const ENTER_SQ_WAKEUP: u32 = 2;
const ENTER_EXT_ARG: u32 = 8;

/// Abilities of a ring that its set-up asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feature {
    /// A bad submission does not hold up those behind it.
    SubmitAll,
    /// Memory tells when completions are pending, so that spinning needs no system call.
    TaskrunFlag,
    /// One thread submits.
    SingleIssuer,
    /// Completions are made when that thread asks for them, not whenever it is interrupted.
    DeferTaskrun,
    /// Submissions are taken in order, without a table of indices.
    NoSubmissionArray,
    /// A kernel thread submits.
    Sqpoll,
}

impl Feature {
    fn add_to(self, builder: &mut Builder) {
        match self {
            Feature::SubmitAll => builder.setup_submit_all(),
            Feature::TaskrunFlag => builder.setup_taskrun_flag(),
            Feature::SingleIssuer => builder.setup_single_issuer(),
            Feature::DeferTaskrun => builder.setup_defer_taskrun(),
            Feature::NoSubmissionArray => builder.setup_no_sqarray(),
            Feature::Sqpoll => builder.setup_sqpoll(SQPOLL_IDLE_MS),
        };
    }

    /// The kernel's name for it, and the first version that has it (io_uring_setup(2)).
    fn name(self) -> (&'static str, &'static str) {
        match self {
            Feature::SubmitAll => ("IORING_SETUP_SUBMIT_ALL", "5.18"),
            Feature::TaskrunFlag => ("IORING_SETUP_TASKRUN_FLAG", "5.19"),
            Feature::SingleIssuer => ("IORING_SETUP_SINGLE_ISSUER", "6.0"),
            Feature::DeferTaskrun => ("IORING_SETUP_DEFER_TASKRUN", "6.1"),
            Feature::NoSubmissionArray => ("IORING_SETUP_NO_SQARRAY", "6.6"),
            Feature::Sqpoll => ("IORING_SETUP_SQPOLL", "5.11"),
        }
    }

    /// Sets a small ring up with it, and with what the kernel does not take it without.
    fn probe(self) -> io::Result<()> {
        let mut builder = IoUring::builder();
        match self {
            Feature::TaskrunFlag => {
                // Either this or `DEFER_TASKRUN` must go with it; this one is as old as it.
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

/// Without these there is no serving. Each is usable with those before it: `TASKRUN_FLAG` is refused
/// without `DEFER_TASKRUN`, which is younger. The buffer ring and multishot receives are as old.
const NEEDED: &[Feature] =
    &[Feature::SubmitAll, Feature::SingleIssuer, Feature::DeferTaskrun, Feature::TaskrunFlag];
const NEEDED_SQPOLL: &[Feature] = &[Feature::Sqpoll, Feature::SubmitAll, Feature::SingleIssuer];
/// These are used where the kernel has them; the newest last.
const WELCOME: &[Feature] = &[Feature::NoSubmissionArray];

/// Something that the server asks of the kernel's io_uring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ability {
    /// A ring can be set up with this.
    SetUp(Feature),
    /// The kernel takes buffers to receive into from memory that it shares with the process.
    BufferRing,
    /// One submission receives again and again.
    MultishotReceive,
    /// One submission accepts again and again.
    MultishotAccept,
}

/// What an ability is needed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To serve, however the server waits.
    Serving,
    /// To serve under `--wait sqpoll`.
    Sqpoll,
    /// Nothing; it saves time where the kernel has it.
    Speed,
}

impl Ability {
    /// All of them, in the order of the versions that they came with.
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

    /// Its name, and the first version of Linux that has it (io_uring_setup(2),
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

    /// Finds out by using it, on a ring of its own that is gone afterwards.
    ///
    /// # Errors
    ///
    /// `EINVAL` where the kernel does not know it; anything else where the kernel refuses io_uring
    /// as a whole, or what the attempt takes.
    pub fn probe(self) -> io::Result<()> {
        match self {
            Ability::SetUp(feature) => feature.probe(),
            Ability::BufferRing => probe_buffer_ring(),
            Ability::MultishotReceive => probe_multishot_receive(),
            Ability::MultishotAccept => probe_multishot_accept(),
        }
    }
}

/// The memory of an attempt: a page or so.
const PROBED_BUFFERS: BufferConfig = BufferConfig { count: 2, octets: 2048 };

fn probe_buffer_ring() -> io::Result<()> {
    let mut memory = Mapping::new(PROBED_BUFFERS.memory_octets())?;
    let mut entries = Mapping::new(PROBED_BUFFERS.entries_octets())?;
    let uring = IoUring::new(PROBED)?;
    BufferRing::new(PROBED_BUFFERS, &mut memory, &mut entries).register(&uring.submitter())
}

/// Receives an octet and the end of the stream, so that the operation is over afterwards and
/// nothing is in flight in the memory that goes away.
fn probe_multishot_receive() -> io::Result<()> {
    let mut memory = Mapping::new(PROBED_BUFFERS.memory_octets())?;
    let mut entries = Mapping::new(PROBED_BUFFERS.entries_octets())?;
    let mut uring = IoUring::new(PROBED)?;
    BufferRing::new(PROBED_BUFFERS, &mut memory, &mut entries).register(&uring.submitter())?;
    let (socket, mut peer) = UnixStream::pair()?;
    peer.write_all(&[0])?;
    drop(peer);
    let receive = opcode::RecvMulti::new(Fd(socket.as_raw_fd()), GROUP).build();
    push_alone(&mut uring, &receive);
    let mut results = Vec::new();
    loop {
        match uring.submit_and_wait(1) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            Ok(_) | Err(_) => {}
        }
        for entry in uring.completion() {
            results.push(entry.result());
            if !cqueue::more(entry.flags()) {
                return outcome(results[0]);
            }
        }
    }
}

/// Accepts from a listener to which nobody connects. A kernel that does not know how refuses that
/// at once; otherwise the operation is in flight until the ring is closed, and uses no memory.
fn probe_multishot_accept() -> io::Result<()> {
    let mut uring = IoUring::new(PROBED)?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    push_alone(&mut uring, &opcode::AcceptMulti::new(Fd(listener.as_raw_fd())).build());
    uring.submit()?;
    uring.completion().next().map_or(Ok(()), |entry| outcome(entry.result()))
}

fn push_alone(uring: &mut IoUring, entry: &squeue::Entry) {
    // SAFETY: the caller's socket outlives the operation, which takes its memory from a buffer
    // ring, if any.
    let pushed = unsafe { uring.submission().push(entry) };
    pushed.expect("there is room for one");
}

/// The result of a completion as a result.
fn outcome(result: i32) -> io::Result<()> {
    if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(()) }
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
pub(super) fn remedy(error: &io::Error) -> &'static str {
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

/// Serves the connections of one worker until it is told to stop. `started` is called when all
/// is ready, with whether the memory for messages is locked.
///
/// # Errors
///
/// When the kernel refuses what is needed, or the ring breaks.
pub fn serve(
    parts: Parts,
    context: Context<'_>,
    limit: &Limit,
    started: impl FnOnce(bool),
) -> Result<(), EngineError> {
    let mut resources = Resources::new(parts)?;
    let is_locked = resources.is_locked();
    let policy = resources.parts.offload;
    let pump =
        Pump::new(resources.ring(context.counters)?, context, limit).with_offload(policy, AUTO_RUN);
    started(is_locked);
    let outcome = pump.run().map_err(|error| EngineError::new("go on serving", error));
    if outcome.is_err() {
        // Operations may still be in flight in this memory.
        std::mem::forget(resources);
    }
    outcome
}

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
struct Resources {
    uring: IoUring,
    parts: Parts,
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
    fn new(parts: Parts) -> Result<Resources, EngineError> {
        let uring = set_up(parts.strategy, SUBMISSIONS)?;
        let BufferConfig { count, octets } = parts.buffers;
        assert!(count.is_power_of_two() && octets as usize > HEADROOM, "checked by the caller");
        let memory = Mapping::new(parts.buffers.memory_octets()).map_err(EngineError::no_memory)?;
        let entries = Mapping::new(parts.buffers.entries_octets());
        Ok(Resources { uring, parts, memory, entries: entries.map_err(EngineError::no_memory)? })
    }

    /// Whether the memory for messages cannot be swapped out.
    fn is_locked(&self) -> bool {
        self.memory.is_locked() && self.entries.is_locked()
    }

    /// The ring, ready to be used by this thread. `counters` gets its system calls and spins.
    ///
    /// # Errors
    ///
    /// When the kernel does not take the buffers.
    fn ring<'a>(&'a mut self, counters: &'a Counters) -> Result<KernelRing<'a>, EngineError> {
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

/// The ring by which the kernel takes buffers to receive into (io_uring_register_buf_ring(3)).
#[derive(Debug)]
struct BufferRing<'a> {
    config: BufferConfig,
    memory: *mut u8,
    entries: *mut BufRingEntry,
    mappings: PhantomData<&'a mut Mapping>,
    tail: u16,
    /// Buffers in the kernel's hands.
    ready: usize,
}

impl<'a> BufferRing<'a> {
    /// A ring with all its buffers in the kernel's hands.
    fn new(
        config: BufferConfig,
        memory: &'a mut Mapping,
        entries: &'a mut Mapping,
    ) -> BufferRing<'a> {
        let entries = entries.start().as_ptr().cast::<BufRingEntry>();
        let mut ring = BufferRing {
            config,
            memory: memory.start().as_ptr(),
            entries,
            mappings: PhantomData,
            tail: 0,
            ready: 0,
        };
        for id in 0..config.count {
            ring.recycle(Lease(id.into()));
        }
        ring
    }

    /// Gives them to the kernel. The mappings must be dropped after the ring.
    fn register(&self, submitter: &Submitter<'_>) -> io::Result<()> {
        let entries = self.entries as u64;
        // SAFETY: the mapping holds `count` entries, page-aligned, and invariant 3.
        unsafe { submitter.register_buf_ring_with_flags(entries, self.config.count, GROUP, 0) }
    }

    /// Where a buffer begins.
    #[inline]
    fn address(&self, lease: &Lease) -> *mut u8 {
        debug_assert!(lease.0 < self.config.count.into());
        // SAFETY: the mapping holds `count` buffers of `octets` octets.
        unsafe { self.memory.add(lease.0 as usize * self.config.octets as usize) }
    }

    #[inline]
    fn bytes<'b>(&'b mut self, lease: &'b mut Lease) -> &'b mut [u8] {
        let address = self.address(lease);
        // SAFETY: invariant 1; the borrow of the lease lasts as long as that of its memory.
        unsafe { std::slice::from_raw_parts_mut(address, self.config.octets as usize) }
    }

    #[inline]
    fn recycle(&mut self, lease: Lease) {
        let position = usize::from(self.tail & (self.config.count - 1));
        let address = self.address(&lease) as u64;
        // SAFETY: the mapping holds `count` entries, and the position is below that.
        let entry = unsafe { self.entries.add(position) };
        // SAFETY: invariant 4. The fields are written one by one: the last one of the first entry
        // is the tail, which the kernel reads.
        let entry = unsafe { &mut *entry };
        entry.set_addr(address + HEADROOM as u64);
        entry.set_len(self.config.octets - HEADROOM as u32);
        entry.set_bid(lease.0 as u16);
        self.tail = self.tail.wrapping_add(1);
        // The entry must be there before the tail says so.
        // SAFETY: the mapping was zeroed, holds at least one entry, and is page-aligned.
        let tail = unsafe { BufRingEntry::tail(self.entries) };
        // SAFETY: the tail lies in the first entry, aligned to its two octets, and no reference to
        // that entry is left.
        let tail = unsafe { AtomicU16::from_ptr(tail.cast_mut()) };
        tail.store(self.tail, Ordering::Release);
        self.ready += 1;
    }

    /// Notes that the kernel took a buffer.
    #[inline]
    fn lease(&mut self, id: u16) -> Lease {
        self.ready -= 1;
        Lease(id.into())
    }
}

/// The queues that the kernel and this thread share.
struct Queues<'a> {
    /// The one submitter: it remembers that the ring is registered.
    submitter: Submitter<'a>,
    submissions: SubmissionQueue<'a>,
    completions: CompletionQueue<'a>,
    is_sqpoll: bool,
    counters: &'a Counters,
}

impl Queues<'_> {
    /// One io_uring_enter(2): submits what is queued, moves completions, and waits for `wanted`
    /// of them or for `timeout`.
    #[inline]
    fn call(&mut self, wanted: u32, timeout: Option<Duration>) -> io::Result<()> {
        self.submissions.sync();
        let queued = self.submissions.len() as u32;
        let mut flags = ENTER_GETEVENTS;
        let mut to_submit = queued;
        if self.is_sqpoll {
            to_submit = 0;
            if self.submissions.need_wakeup() {
                flags |= ENTER_SQ_WAKEUP;
                to_submit = queued;
            } else if wanted == 0 && !self.submissions.cq_overflow() {
                return Ok(());
            }
        }
        self.counters.syscalls.add(1);
        let result = match timeout {
            None => {
                // SAFETY: no argument is passed.
                unsafe { self.submitter.enter::<u64>(to_submit, wanted, flags, None) }
            }
            Some(timeout) => {
                let timespec = Timespec::from(timeout);
                let arguments = SubmitArgs::new().timespec(&timespec);
                let flags = flags | ENTER_EXT_ARG;
                // SAFETY: the arguments and what they point to outlive the call.
                unsafe { self.submitter.enter(to_submit, wanted, flags, Some(&arguments)) }
            }
        };
        self.submissions.sync();
        match result {
            Ok(_) => Ok(()),
            // ETIME: the timeout. EINTR: a signal. EBUSY, EAGAIN: completions must be drained, or
            // memory is short, before the rest is submitted.
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::TIME | Errno::INTR | Errno::BUSY | Errno::AGAIN) => Ok(()),
                _ => Err(error),
            },
        }
    }
}

impl Source for Queues<'_> {
    /// With `IORING_SETUP_TASKRUN_FLAG` the kernel says in shared memory that completions are
    /// pending, so this reads memory and makes no system call until there is something.
    #[inline]
    fn look(&mut self) -> io::Result<bool> {
        if !self.submissions.is_empty() || self.submissions.taskrun() {
            self.call(0, None)?;
        }
        self.completions.sync();
        Ok(!self.completions.is_empty())
    }

    #[inline]
    fn sleep(&mut self, most: Option<Duration>) -> io::Result<()> {
        self.call(1, most)
    }
}

/// The kernel's ring, in the hands of the worker's thread.
struct KernelRing<'a> {
    queues: Queues<'a>,
    waiter: Waiter<'a>,
    buffers: BufferRing<'a>,
    listeners: Vec<Option<OwnedFd>>,
    stop: RawFd,
    /// Sends that leave a completion only if they are cut short, in the order of their pushing.
    quick: Vec<(Key, Reply)>,
    /// Sends that leave a completion, by slot: a connection has one at a time.
    patient: HashMap<u32, Reply>,
    /// Scratch: what was drained from the completion queue.
    entries: Vec<cqueue::Entry>,
    /// Scratch: the quick sends among it, with their results.
    cut: Vec<(Key, i32)>,
    /// Why the ring no longer submits, until `enter` says so.
    broken: Option<io::Error>,
    offload: Option<Offloading>,
    counters: &'a Counters,
}

/// The program that echoes for this worker, and which connections it sees.
struct Offloading {
    program: Program,
    /// The connection at each place.
    keys: Vec<Option<Key>>,
    /// The poll of the notices goes on.
    is_polling: bool,
}

impl Offloading {
    fn new(counters: &Counters) -> Result<Offloading, EngineError> {
        let program = Program::load()
            .map_err(|error| EngineError::new("offload echoes", io::Error::other(error)))?;
        counters.add_echoed(program.totals());
        let keys = (0..offload::PLACES).map(|_| None).collect();
        Ok(Offloading { program, keys, is_polling: false })
    }
}

/// Why a ring without a program has no place.
const ENLISTED: &str = "only an enlisted connection has a place";

impl KernelRing<'_> {
    /// Queues a submission.
    #[inline]
    fn push(&mut self, submission: squeue::Entry, token: Token) {
        let submission = submission.user_data(token.0);
        // SAFETY: what the operation reads or writes is covered by invariants 1 and 2.
        while unsafe { self.queues.submissions.push(&submission) }.is_err() {
            self.queues.submissions.sync();
            if let Err(error) = self.queues.call(0, None) {
                self.broken = Some(error);
                return;
            }
        }
    }

    /// Drains the completion queue, and what the kernel kept because it was full.
    #[inline]
    fn drain(&mut self) -> io::Result<()> {
        let queues = &mut self.queues;
        loop {
            queues.completions.sync();
            for entry in &mut queues.completions {
                self.entries.push(entry);
            }
            // Until the kernel knows that they are taken, it does not wait for others.
            queues.completions.sync();
            // A quick send that was cut short must be seen before it is taken for whole, so
            // neither submissions nor completions may be left behind.
            if !queues.submissions.cq_overflow()
                && (queues.submissions.is_empty() || self.quick.is_empty())
            {
                return Ok(());
            }
            queues.call(0, None)?;
        }
    }

    /// Reports the quick sends, all of which are over.
    #[inline]
    fn report_quick(&mut self, completions: &mut Vec<Completion>) {
        if !self.queues.is_sqpoll {
            for entry in &self.entries {
                let token = Token(entry.user_data());
                if token.op() == Op::Send && !self.patient.contains_key(&token.key().slot) {
                    self.cut.push((token.key(), entry.result()));
                }
            }
        }
        for (key, reply) in self.quick.drain(..) {
            let octets = reply.len();
            let result = if self.cut.is_empty() {
                octets as i32
            } else {
                let cut = self.cut.iter().find(|&&(cut, _)| cut == key);
                cut.map_or(octets as i32, |&(_, result)| result)
            };
            completions.push(finish(&mut self.buffers, key, reply, result));
        }
        self.cut.clear();
    }

    #[inline]
    fn report(&mut self, entry: &cqueue::Entry) -> Option<Completion> {
        let token = Token(entry.user_data());
        let result = entry.result();
        let further = if cqueue::more(entry.flags()) { Further::More } else { Further::Over };
        let errno = || Errno::from_raw_os_error(-result);
        match token.op() {
            Op::Receive => {
                let received = match (result, cqueue::buffer_select(entry.flags())) {
                    (1.., Some(id)) => {
                        Received::Data { lease: self.buffers.lease(id), octets: result as u32 }
                    }
                    (_, lent) => {
                        // The end of the stream may come with a buffer that it did not fill.
                        if let Some(id) = lent {
                            let lease = self.buffers.lease(id);
                            self.buffers.recycle(lease);
                        }
                        match result {
                            0.. => Received::End,
                            _ if errno() == Errno::NOBUFS => Received::NoBuffer,
                            _ => Received::Failed(errno()),
                        }
                    }
                };
                Some(Completion::Received { key: token.key(), received, further })
            }
            Op::Send => {
                let reply = self.patient.remove(&token.key().slot)?;
                Some(finish(&mut self.buffers, token.key(), reply, result))
            }
            Op::Accept => {
                let result = if result < 0 { Err(errno()) } else { Ok(Socket(result)) };
                Some(Completion::Accepted { listener: token.key().slot, result, further })
            }
            Op::Close => Some(Completion::Closed { key: token.key() }),
            Op::Stop => Some(Completion::StopRequested),
            Op::HangUp => Some(Completion::HungUp { key: token.key() }),
            Op::Verify => failure(result).map(|_| Completion::Broken { key: token.key() }),
            // Taken by `take_notices`.
            Op::Notices => None,
            // What was cancelled has a completion of its own.
            Op::Cancel => None,
        }
    }

    fn poll_notices(&mut self) {
        if let Some(offload) = &mut self.offload {
            offload.is_polling = true;
            let readable = rustix::event::PollFlags::IN.bits().into();
            let ring = Fd(offload.program.notices().as_raw_fd());
            let poll = opcode::PollAdd::new(ring, readable).multi(true).build();
            self.push(poll, Token::new(Op::Notices, Self::listener_key(0)));
        }
    }

    #[cold]
    fn take_notices(&mut self, further: bool, completions: &mut Vec<Completion>) {
        let Some(offload) = &mut self.offload else { return };
        let keys = &offload.keys;
        offload.program.take_notices(|place| {
            let key = keys.get(place as usize).copied().flatten();
            completions.extend(key.map(|key| Completion::Passed { key }));
        });
        if !further {
            self.poll_notices();
        }
    }

    fn program(&self) -> &Program {
        &self.offload.as_ref().expect(ENLISTED).program
    }

    fn cancel(&mut self, op: Op, key: Key) {
        let cancel = opcode::AsyncCancel::new(Token::new(op, key).0).build();
        self.push(cancel.flags(Flags::SKIP_SUCCESS), Token::new(Op::Cancel, key));
    }

    fn listener_key(listener: u32) -> Key {
        Key { slot: listener, generation: 0 }
    }
}

fn borrow(socket: &Socket) -> BorrowedFd<'_> {
    // SAFETY: the socket is open: only `close` and `discard` close it, and take it away.
    unsafe { BorrowedFd::borrow_raw(socket.0) }
}

/// What has broken the connection of a send, if its `result` says so.
#[inline]
fn failure(result: i32) -> Option<Errno> {
    let errno = (result < 0).then(|| Errno::from_raw_os_error(-result))?;
    (!matches!(errno, Errno::AGAIN | Errno::INTR | Errno::CANCELED)).then_some(errno)
}

/// What the `result` of the send of `reply` means.
#[inline]
fn finish(buffers: &mut BufferRing<'_>, key: Key, mut reply: Reply, result: i32) -> Completion {
    let octets = result.max(0) as u32;
    let failure = failure(result);
    if octets as usize == reply.len() || failure.is_some() {
        if let Reply::Pinned { lease, .. } = reply {
            buffers.recycle(lease);
        }
        let sent = failure.map_or(Sent::Whole, Sent::Failed);
        return Completion::Sent { key, sent, octets };
    }
    match &mut reply {
        Reply::Pinned { octets: range, .. } => range.start += octets,
        Reply::Heap(bytes) => bytes::Buf::advance(bytes, octets as usize),
    }
    Completion::Sent { key, sent: Sent::Cut(reply), octets }
}

impl Ring for KernelRing<'_> {
    fn now(&self) -> Duration {
        self.waiter.now()
    }

    fn listeners(&self) -> u32 {
        self.listeners.len() as u32
    }

    fn accept(&mut self, listener: u32) {
        if let Some(fd) = &self.listeners[listener as usize] {
            let accept = opcode::AcceptMulti::new(Fd(fd.as_raw_fd()))
                .flags(rustix::net::SocketFlags::CLOEXEC.bits() as i32);
            self.push(accept.build(), Token::new(Op::Accept, Self::listener_key(listener)));
        }
    }

    fn cancel_accept(&mut self, listener: u32) {
        self.cancel(Op::Accept, Self::listener_key(listener));
    }

    fn close_listener(&mut self, listener: u32) {
        if self.listeners[listener as usize].take().is_some() {
            self.counters.syscalls.add(1);
        }
    }

    fn watch_stop(&mut self) {
        let readable = rustix::event::PollFlags::IN.bits().into();
        let poll = opcode::PollAdd::new(Fd(self.stop), readable).build();
        self.push(poll, Token::new(Op::Stop, Self::listener_key(0)));
    }

    #[inline]
    fn receive(&mut self, key: Key, socket: &Socket) {
        let receive = opcode::RecvMulti::new(Fd(socket.0), GROUP).build();
        self.push(receive, Token::new(Op::Receive, key));
    }

    fn cancel_receive(&mut self, key: Key) {
        self.cancel(Op::Receive, key);
    }

    #[inline]
    fn send(&mut self, key: Key, socket: &Socket, reply: Reply, patience: Patience) -> Patience {
        let start = match &reply {
            Reply::Pinned { lease, octets } => {
                self.buffers.address(lease).wrapping_add(octets.start as usize).cast_const()
            }
            Reply::Heap(bytes) => bytes.as_ptr(),
        };
        // MSG_WAITALL has no name in rustix, as it means nothing to send(2). Here it makes a send
        // that was cut short leave a completion despite SKIP_SUCCESS (io_uring_enter(2)).
        const WAIT_ALL: u32 = 0x100;
        let message = match patience {
            Patience::None => (SendFlags::NOSIGNAL | SendFlags::DONTWAIT).bits() | WAIT_ALL,
            Patience::Unlimited => SendFlags::NOSIGNAL.bits(),
        };
        let flags = message as i32;
        let send = opcode::Send::new(Fd(socket.0), start, reply.len() as u32).flags(flags).build();
        let token = Token::new(Op::Send, key);
        if patience == Patience::None && !self.queues.is_sqpoll {
            self.quick.push((key, reply));
            self.push(send.flags(Flags::SKIP_SUCCESS), token);
        } else {
            let previous = self.patient.insert(key.slot, reply);
            assert!(previous.is_none(), "a connection has one send in flight");
            self.push(send, token);
        }
        patience
    }

    fn cancel_send(&mut self, key: Key) {
        self.cancel(Op::Send, key);
    }

    fn verify(&mut self, key: Key, socket: &Socket) {
        let flags = (SendFlags::NOSIGNAL | SendFlags::DONTWAIT).bits() as i32;
        let send = opcode::Send::new(Fd(socket.0), std::ptr::null(), 0).flags(flags).build();
        self.push(send.flags(Flags::SKIP_SUCCESS), Token::new(Op::Verify, key));
    }

    fn shut_down(&mut self, socket: &Socket) {
        // The operation of io_uring would go to a worker thread of the kernel; this is one call.
        self.counters.syscalls.add(1);
        // It fails if the peer has reset the connection, which the receive reports.
        let _ = rustix::net::shutdown(borrow(socket), Shutdown::Write);
    }

    fn close(&mut self, key: Key, socket: Socket) {
        self.push(opcode::Close::new(Fd(socket.0)).build(), Token::new(Op::Close, key));
    }

    fn discard(&mut self, socket: Socket) {
        self.counters.syscalls.add(1);
        // SAFETY: the socket was accepted, never used, and is taken away from the caller.
        drop(unsafe { OwnedFd::from_raw_fd(socket.0) });
    }

    fn enlist(&mut self, key: Key, socket: &Socket) -> Option<(offload::Place, u64)> {
        let offload = self.offload.as_mut()?;
        let mut readings = (0..READINGS).map(|_| Program::written_exactly(borrow(socket)));
        let written = readings.find_map(|written| {
            let calls = if written.is_ok() { Program::WRITTEN_EXACTLY_CALLS } else { 1 };
            self.counters.syscalls.add(calls);
            written.transpose()
        })?;
        // What is not TCP cannot say, nor can what is broken.
        let written = written.ok()?;
        self.counters.syscalls.add(Program::ENLIST_CALLS);
        // Without a place, or where the kernel does not take it, it is served like any other.
        let place = offload.program.enlist(borrow(socket)).ok()??;
        offload.keys[place.0 as usize] = Some(key);
        if !offload.is_polling {
            self.poll_notices();
        }
        Some((place, written))
    }

    fn delist(&mut self, place: offload::Place, socket: &Socket) {
        let offload = self.offload.as_mut().expect(ENLISTED);
        self.counters.syscalls.add(Program::DELIST_CALLS);
        offload.keys[place.0 as usize] = None;
        offload.program.delist(place, borrow(socket));
    }

    fn record(&self, place: &offload::Place) -> &Record {
        self.program().record(place)
    }

    fn written(&self, socket: &Socket) -> u64 {
        self.counters.syscalls.add(Program::WRITTEN_CALLS);
        // A socket that cannot say is broken, which its receive reports.
        Program::written(borrow(socket)).unwrap_or(u64::MAX)
    }

    fn receive_once(&mut self, key: Key, socket: &Socket) {
        let flags = rustix::net::RecvFlags::DONTWAIT.bits() as i32;
        let receive = opcode::Recv::new(Fd(socket.0), std::ptr::null_mut(), 0)
            .buf_group(GROUP)
            .flags(flags)
            .build()
            .flags(Flags::BUFFER_SELECT);
        self.push(receive, Token::new(Op::Receive, key));
    }

    fn watch(&mut self, key: Key, socket: &Socket) {
        let hang_up = rustix::event::PollFlags::RDHUP.bits().into();
        let poll = opcode::PollAdd::new(Fd(socket.0), hang_up).build();
        self.push(poll, Token::new(Op::HangUp, key));
    }

    fn cancel_watch(&mut self, key: Key) {
        self.cancel(Op::HangUp, key);
    }

    #[inline]
    fn bytes<'a>(&'a mut self, lease: &'a mut Lease) -> &'a mut [u8] {
        self.buffers.bytes(lease)
    }

    #[inline]
    fn recycle(&mut self, lease: Lease) {
        self.buffers.recycle(lease);
    }

    fn buffers_ready(&self) -> usize {
        self.buffers.ready
    }
}

impl Blocking for KernelRing<'_> {
    #[inline]
    fn enter(&mut self, wait: Wait, completions: &mut Vec<Completion>) -> io::Result<()> {
        if let Some(error) = self.broken.take() {
            return Err(error);
        }
        match wait {
            Wait::Not => self.queues.call(0, None)?,
            Wait::Until(until) => self.waiter.wait(until, &mut self.queues)?,
        }
        self.drain()?;
        self.report_quick(completions);
        let mut entries = std::mem::take(&mut self.entries);
        for entry in entries.drain(..) {
            completions.extend(self.report(&entry));
            if Token(entry.user_data()).op() == Op::Notices {
                self.take_notices(cqueue::more(entry.flags()), completions);
            }
        }
        self.entries = entries;
        Ok(())
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

    #[test]
    fn a_refusal_is_not_taken_for_an_old_kernel() {
        let error = negotiate(NEEDED, WELCOME, |_| Err::<(), _>(Errno::PERM.into()));
        let text = error.expect_err("refused").to_string();
        assert!(text.contains("kernel.io_uring_disabled"), "{text}");
    }
}
