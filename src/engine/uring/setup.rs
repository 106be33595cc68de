//! How a worker's ring is set up: which features it asks for, what memory it takes, and whether it
//! receives.
//!
//! The kernel can refuse each of these steps, and all of them happen before the worker listens, so
//! a refusal costs no client its connection.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use io_uring::register::Restriction;
use io_uring::squeue::Flags;
use io_uring::{IoUring, opcode};
use rustix::io::Errno;
use tracing::warn;

use super::abilities::{Feature, NEEDED, NEEDED_SQPOLL, WELCOME, receive_to_the_end};
use super::buffer_ring::BufferRing;
use super::{KernelRing, REGISTER_RING_FDS};
use crate::engine::pump::Pump;
use crate::engine::wait::{ThreadClock, WaitStrategy, Waiter};
use crate::engine::{EngineError, WorkerConfig};
use crate::offload::program::Program;
use crate::offload::{self, AUTO_RUN};
use crate::protocol::Limits;
use crate::sandbox;

/// Entries of the submission queue. When it is full, it is submitted without waiting.
const SUBMISSIONS: u32 = 1024;
/// Entries of the completion queue. When it is full, the kernel keeps further completions.
const COMPLETIONS: u32 = 4 * SUBMISSIONS;

/// All that the server asks of a ring.
const OPERATIONS: [u8; 7] = [
    opcode::Accept::CODE,
    opcode::AsyncCancel::CODE,
    opcode::Close::CODE,
    opcode::PollAdd::CODE,
    opcode::Recv::CODE,
    opcode::Send::CODE,
    opcode::Timeout::CODE,
];
/// The flags that it sets.
const FLAGS: Flags = Flags::SKIP_SUCCESS.union(Flags::BUFFER_SELECT);

/// The kernel's ring of one worker, and the memory that it uses.
pub struct PreparedRing {
    // In this order they are dropped: see invariant 3 of the engine.
    pub(super) uring: IoUring,
    pub(super) buffers: BufferRing,
    pub(super) program: Option<Program>,
    /// Until it is used.
    pub(super) clock: Option<ThreadClock>,
    /// How much a multishot receive takes before other operations have their turns, in bytes; 0 if the kernel
    /// decides that.
    pub(super) receive_max: u32,
}

impl PreparedRing {
    /// Sets the ring up, gives it its buffers, and receives with it once. The calling thread is the
    /// one that must use it (`IORING_SETUP_SINGLE_ISSUER`).
    ///
    /// # Errors
    ///
    /// When the kernel refuses a step: the error names it, and says what to do.
    pub fn new(worker: &WorkerConfig) -> Result<PreparedRing, EngineError> {
        let uring = set_up(worker.wait, worker.sandbox)?;
        let buffers = BufferRing::registered(worker.buffers, &uring.submitter())
            .map_err(EngineError::no_memory)?
            .map_err(|error| EngineError::io_uring("register the buffer ring", error))?;
        if worker.sandbox == sandbox::Policy::On {
            restrict(&uring)?;
        }
        let mut prepared =
            PreparedRing { uring, buffers, program: None, clock: None, receive_max: Limits::PIECE };
        prepared.try_receiving()?;
        prepared.program = match worker.offload {
            offload::Policy::Off => None,
            offload::Policy::On | offload::Policy::Auto => Some(load_program()?),
        };
        prepared.clock = Some(Waiter::clock(worker.wait));
        Ok(prepared)
    }

    /// Whether the memory for messages cannot be swapped out.
    pub fn is_locked(&self) -> bool {
        self.buffers.is_locked()
    }

    /// Serves connections until the worker is told to stop. Calls `started` once they are accepted.
    ///
    /// # Errors
    ///
    /// When the ring breaks.
    pub fn serve(
        mut self,
        worker: &WorkerConfig,
        listeners: Vec<OwnedFd>,
        started: impl FnOnce(),
    ) -> Result<(), EngineError> {
        let context = worker.context();
        let ring = KernelRing::new(&mut self, worker, listeners);
        let pump = Pump::new(ring, context, &worker.shared, worker.timeouts)
            .with_offload(worker.offload, AUTO_RUN)
            .with_timing(worker.timing)
            .with_mailbox(worker.mailbox.clone());
        started();
        let outcome = pump.run().map_err(|error| EngineError::new("go on serving", error));
        if outcome.is_err() {
            // Operations may still be in flight in this memory.
            std::mem::forget(self);
        }
        outcome
    }

    /// A seccomp profile may allow a ring to be set up and refuse to enter it, and some kernels
    /// that are not Linux know only part of the operations.
    fn try_receiving(&mut self) -> Result<(), EngineError> {
        let mut receive = |most| {
            let sockets = UnixStream::pair().map_err(|error| {
                EngineError::new("open a pair of Unix sockets to try io_uring with", error)
            })?;
            Ok(receive_to_the_end(&mut self.uring, &mut self.buffers, sockets, most))
        };
        let mut received = receive(self.receive_max)?;
        if matches!(&received, Err(error) if Errno::from_io_error(error) == Some(Errno::INVAL)) {
            self.receive_max = 0;
            received = receive(0)?;
        }
        received.map_err(|error| EngineError::io_uring("receive with io_uring", error))
    }
}

fn load_program() -> Result<Program, EngineError> {
    Program::load().map_err(|error| EngineError::new("offload echoes", io::Error::other(error)))
}

/// Lets a ring do only what the server asks of it, and enables it.
fn restrict(uring: &IoUring) -> Result<(), EngineError> {
    let operations = OPERATIONS.map(Restriction::sqe_op);
    let others =
        [Restriction::sqe_flags_allowed(FLAGS.bits()), Restriction::register_op(REGISTER_RING_FDS)];
    let mut all: Vec<Restriction> = operations.into_iter().chain(others).collect();
    let submitter = uring.submitter();
    // A ring without restrictions serves just as well.
    if let Err(error) = submitter.register_restrictions(&mut all) {
        warn!("the ring is not restricted to what the server asks of it: {error}");
    }
    submitter
        .register_enable_rings()
        .map_err(|error| EngineError::io_uring("enable the ring", error))
}

/// Sets a ring up. If it is to be restricted, it does nothing before it is enabled.
fn set_up(wait: WaitStrategy, sandbox: sandbox::Policy) -> Result<IoUring, EngineError> {
    let is_sqpoll = matches!(wait, WaitStrategy::Sqpoll);
    let needed = if is_sqpoll { NEEDED_SQPOLL } else { NEEDED };
    negotiate(needed, WELCOME, |features| {
        let mut builder = IoUring::builder();
        builder.setup_cqsize(COMPLETIONS);
        if sandbox == sandbox::Policy::On {
            builder.setup_r_disabled();
        }
        for feature in features {
            feature.add_to(&mut builder);
        }
        builder.build(SUBMISSIONS)
    })
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
                return Err(EngineError::io_uring(STEP, error));
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

#[cfg(test)]
mod tests {
    use io_uring::squeue::Entry;
    use io_uring::types::Fd;
    use testkit::seccomp::{Calls, IO_URING_ENTER, IO_URING_REGISTER, IO_URING_SETUP, refusing};

    use super::super::abilities::push_alone;
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
    fn the_error_names_what_an_older_kernel_lacks() {
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

    /// `IORING_OFF_SQES`: where a ring's submissions are mapped from (io_uring_setup(2)).
    const SUBMISSIONS_OFFSET: u64 = 0x1000_0000;
    /// `MAP_SHARED | MAP_POPULATE`: only a ring is mapped with these.
    const RING_FLAGS: u64 = (libc::MAP_SHARED | libc::MAP_POPULATE) as u64;
    /// `IORING_REGISTER_PBUF_RING`, `IORING_REGISTER_RESTRICTIONS` and `IORING_REGISTER_ENABLE_RINGS`
    /// (io_uring_register(2)).
    const REGISTER_BUFFER_RING: u64 = 22;
    const REGISTER_RESTRICTIONS: u64 = 11;
    const REGISTER_ENABLE_RINGS: u64 = 12;

    /// Prepares a worker while `calls` fail with `errno`; the text of the error, if it cannot.
    fn prepare(calls: Calls, errno: Errno) -> Result<(), String> {
        refusing(calls, errno, || {
            let worker = WorkerConfig::for_test(WaitStrategy::Block);
            PreparedRing::new(&worker).map(drop).map_err(|error| error.to_string())
        })
    }

    #[test]
    fn every_refused_step_is_an_error_that_says_what_to_do() {
        let buffers = WorkerConfig::for_test(WaitStrategy::Block).buffers;
        let mapped = |bytes: usize| Calls::with(libc::SYS_mmap, 1, bytes as u64);
        let with_offset = Calls::with(libc::SYS_mmap, 5, SUBMISSIONS_OFFSET);
        let with_flags = Calls::with(libc::SYS_mmap, 3, RING_FLAGS);
        let register = Calls::with(IO_URING_REGISTER, 1, REGISTER_BUFFER_RING);
        for (calls, errno, step, remedy) in [
            (Calls::all(IO_URING_SETUP), Errno::NOSYS, "set up io_uring", "no io_uring"),
            (Calls::all(IO_URING_SETUP), Errno::PERM, "set up io_uring", "io_uring_disabled"),
            (Calls::all(IO_URING_SETUP), Errno::NOMEM, "set up io_uring", "ulimit -l"),
            (Calls::all(IO_URING_SETUP), Errno::MFILE, "set up io_uring", "ulimit -n"),
            (Calls::all(IO_URING_SETUP), Errno::INVAL, "set up io_uring", "Linux 6.1 or newer"),
            (with_flags, Errno::NOMEM, "set up io_uring", "ulimit -l"),
            (with_offset, Errno::NOMEM, "set up io_uring", "ulimit -l"),
            (with_offset, Errno::PERM, "set up io_uring", "seccomp"),
            (mapped(buffers.memory_bytes()), Errno::NOMEM, "allocate", "--buffers"),
            (mapped(buffers.entries_bytes()), Errno::NOMEM, "allocate", "--buffers"),
            (register, Errno::PERM, "register the buffer ring", "seccomp"),
            (register, Errno::NOMEM, "register the buffer ring", "ulimit -l"),
            (register, Errno::INVAL, "register the buffer ring", "Linux 6.1 or newer"),
            (
                Calls::with(IO_URING_REGISTER, 1, REGISTER_ENABLE_RINGS),
                Errno::PERM,
                "enable the ring",
                "seccomp",
            ),
            (Calls::all(IO_URING_ENTER), Errno::PERM, "receive with io_uring", "seccomp"),
            (Calls::all(libc::SYS_socketpair), Errno::MFILE, "a pair of Unix sockets", "ulimit -n"),
        ] {
            let error = prepare(calls, errno).expect_err(step);
            assert!(error.contains(step) && error.contains(remedy), "{calls:?} {errno}: {error}");
        }
    }

    #[test]
    fn what_serving_does_not_need_may_be_refused() {
        for (calls, errno) in [
            (Calls::all(libc::SYS_mlock), Errno::PERM),
            (Calls::all(libc::SYS_madvise), Errno::INVAL),
            (Calls::with(IO_URING_REGISTER, 1, REGISTER_RING_FDS.into()), Errno::PERM),
            (Calls::with(IO_URING_REGISTER, 1, REGISTER_RESTRICTIONS), Errno::PERM),
        ] {
            prepare(calls, errno).unwrap_or_else(|error| panic!("{calls:?}: {error}"));
        }
    }

    /// The result of an operation that a worker's ring is asked for.
    fn result_of(wait: WaitStrategy, sandbox: sandbox::Policy, entry: &Entry) -> i32 {
        let worker = WorkerConfig { sandbox, ..WorkerConfig::for_test(wait) };
        let mut prepared = PreparedRing::new(&worker).expect("a ring");
        push_alone(&mut prepared.uring, entry);
        prepared.uring.submit_and_wait(1).expect("it is submitted");
        prepared.uring.completion().next().expect("a completion").result()
    }

    #[test]
    fn a_ring_does_nothing_that_the_server_does_not_ask_of_it() {
        use sandbox::Policy::{Off, On};
        let socket = || opcode::Socket::new(libc::AF_INET, libc::SOCK_DGRAM, 0).build();
        let open = || opcode::OpenAt::new(Fd(libc::AT_FDCWD), c"/".as_ptr()).build();
        let receive = || opcode::Recv::new(Fd(-1), std::ptr::null_mut(), 0).build();
        let drained = || receive().flags(Flags::IO_DRAIN);
        for wait in [WaitStrategy::Block, WaitStrategy::Sqpoll] {
            for entry in [socket(), open(), drained()] {
                assert_eq!(result_of(wait, On, &entry), -libc::EACCES, "{wait:?} {entry:?}");
                assert_ne!(result_of(wait, Off, &entry), -libc::EACCES, "{wait:?} {entry:?}");
            }
            assert_eq!(result_of(wait, On, &receive()), -libc::EBADF, "{wait:?}");
        }
    }

    #[test]
    fn nothing_more_can_be_registered_with_a_ring() {
        let worker = WorkerConfig::for_test(WaitStrategy::Block);
        let prepared = PreparedRing::new(&worker).expect("a ring");
        let submitter = prepared.uring.submitter();
        let error = submitter.register_files(&[0]).expect_err("it is refused");
        assert_eq!(Errno::from_io_error(&error), Some(Errno::ACCESS));
    }
}
