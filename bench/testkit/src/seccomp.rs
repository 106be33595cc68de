//! Processes that find system calls missing: seccomp(2) filters, which a thread and its children keep.

use std::thread;

use rustix::io::Errno;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

/// The number of io_uring_setup(2) on all architectures.
pub const IO_URING_SETUP: i64 = 425;
/// The number of io_uring_register(2) on all architectures.
pub const IO_URING_REGISTER: i64 = 427;

/// Runs `call` on a thread on which, and in whose children, io_uring_setup(2) fails with `errno`.
pub fn without_io_uring<T: Send>(errno: Errno, call: impl FnOnce() -> T + Send) -> T {
    without(IO_URING_SETUP, errno, call)
}

/// Runs `call` on a thread on which, and in whose children, the system call `number` fails with `errno`.
pub fn without<T: Send>(number: i64, errno: Errno, call: impl FnOnce() -> T + Send) -> T {
    let filter: BpfProgram = SeccompFilter::new(
        [(number, Vec::new())].into_iter().collect(),
        SeccompAction::Allow,
        SeccompAction::Errno(errno.raw_os_error() as u32),
        std::env::consts::ARCH.try_into().expect("an architecture with seccomp"),
    )
    .and_then(TryInto::try_into)
    .expect("a filter");
    thread::scope(|scope| {
        let called = scope.spawn(|| {
            // The filter is this thread's and its children's.
            seccompiler::apply_filter(&filter).expect("seccomp");
            call()
        });
        called.join().expect("a thread")
    })
}
