//! Makes system calls fail, or end the thread that makes them, for a thread and the processes it starts, with
//! seccomp(2) filters.

use std::thread;

use rustix::io::Errno;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

/// The number of io_uring_setup(2) on all architectures.
pub const IO_URING_SETUP: i64 = 425;
/// The number of io_uring_enter(2) on all architectures.
pub const IO_URING_ENTER: i64 = 426;
/// The number of io_uring_register(2) on all architectures.
pub const IO_URING_REGISTER: i64 = 427;

/// Calls of one kind: all those of a system call, or those with a certain argument.
#[derive(Debug, Clone, Copy)]
pub struct Calls {
    number: i64,
    argument: Option<(u8, u64)>,
}

impl Calls {
    /// All calls with this number.
    pub fn all(number: i64) -> Calls {
        Calls { number, argument: None }
    }

    /// Those whose argument at `position`, counted from 0, is `value`.
    pub fn with(number: i64, position: u8, value: u64) -> Calls {
        Calls { number, argument: Some((position, value)) }
    }

    fn rules(self) -> Vec<SeccompRule> {
        let rule = self.argument.map(|(position, value)| {
            let length = SeccompCmpArgLen::Qword;
            SeccompCondition::new(position, length, SeccompCmpOp::Eq, value)
                .and_then(|condition| SeccompRule::new(vec![condition]))
                .expect("a rule")
        });
        rule.into_iter().collect()
    }
}

/// Runs `call` on a thread on which, and in whose children, io_uring_setup(2) fails with `errno`.
pub fn without_io_uring<T: Send>(errno: Errno, call: impl FnOnce() -> T + Send) -> T {
    without(IO_URING_SETUP, errno, call)
}

/// Runs `call` on a thread on which, and in whose children, the system call `number` fails with `errno`.
pub fn without<T: Send>(number: i64, errno: Errno, call: impl FnOnce() -> T + Send) -> T {
    refusing(Calls::all(number), errno, call)
}

/// Runs `call` on a thread on which, and in whose children, `calls` fail with `errno`.
pub fn refusing<T: Send>(calls: Calls, errno: Errno, call: impl FnOnce() -> T + Send) -> T {
    filtering(calls, SeccompAction::Errno(errno.raw_os_error() as u32), call)
}

/// Runs `call` on a thread on which, and in whose children, `calls` end the thread that makes them and no
/// other.
pub fn killing<T: Send>(calls: Calls, call: impl FnOnce() -> T + Send) -> T {
    filtering(calls, SeccompAction::KillThread, call)
}

fn filtering<T: Send>(calls: Calls, action: SeccompAction, call: impl FnOnce() -> T + Send) -> T {
    let filter: BpfProgram = SeccompFilter::new(
        [(calls.number, calls.rules())].into_iter().collect(),
        SeccompAction::Allow,
        action,
        std::env::consts::ARCH.try_into().expect("an architecture with seccomp"),
    )
    .and_then(TryInto::try_into)
    .expect("a filter");
    thread::scope(|scope| {
        let called = scope.spawn(|| {
            // The filter applies to this thread and its children only.
            seccompiler::apply_filter(&filter).expect("seccomp");
            call()
        });
        called.join().expect("a thread")
    })
}
