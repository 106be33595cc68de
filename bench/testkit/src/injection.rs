//! Has a thread of another process make a system call, with ptrace(2).
//!
//! So a test can try in the real program what the program itself never tries. The thread is stopped within a system call,
//! makes another one, and then goes on with the first as if a signal had interrupted it. The caller must be allowed to
//! trace the process, as it is for its own children.

use std::io;

use nix::sys::ptrace::{self, AddressType, Options};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::process::wait_until;

/// Whether this machine's registers are known here.
pub const IS_SUPPORTED: bool = cfg!(target_arch = "x86_64");

/// What became of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// What the kernel answered: a negated error number, or a result.
    Returned(i64),
    /// The thread was ended, by this signal if by one.
    Ended(Option<i32>),
}

/// A thread of another process, stopped. It goes on when this is dropped.
#[derive(Debug)]
pub struct Stopped {
    thread: Pid,
    is_there: bool,
}

impl Stopped {
    /// Stops a thread that waits in a system call, or will soon.
    ///
    /// # Errors
    ///
    /// When this process may not trace the thread.
    pub fn at(thread: i32) -> io::Result<Stopped> {
        let thread = Pid::from_raw(thread);
        ptrace::seize(thread, Options::empty())?;
        let stopped = Stopped { thread, is_there: true };
        wait_until("the thread is in a system call", || {
            ptrace::interrupt(thread).expect("a traced thread");
            stopped.wait();
            let is_in_call = stopped.is_in_call();
            if !is_in_call {
                ptrace::cont(thread, None).expect("a stopped thread");
            }
            is_in_call
        });
        Ok(stopped)
    }

    fn wait(&self) -> WaitStatus {
        waitpid(self.thread, Some(WaitPidFlag::__WALL)).expect("a traced thread")
    }

    /// Writes `bytes` into the memory of the process, followed by zeros up to a multiple of 8.
    pub fn write(&self, address: u64, bytes: &[u8]) {
        for (place, chunk) in (address..).step_by(8).zip(bytes.chunks(8)) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            let word = i64::from_ne_bytes(word);
            ptrace::write(self.thread, place as AddressType, word).expect("mapped memory");
        }
    }
}

#[cfg(target_arch = "x86_64")]
impl Stopped {
    /// The instruction `syscall`.
    const CALL: [u8; 2] = [0x0F, 0x05];

    /// Whether the thread stopped behind the instruction.
    fn is_in_call(&self) -> bool {
        let registers = ptrace::getregs(self.thread).expect("a stopped thread");
        let before = (registers.rip - 2) as AddressType;
        let word = ptrace::read(self.thread, before).expect("mapped memory");
        word.to_ne_bytes()[..2] == Stopped::CALL
    }

    /// Makes a system call with these arguments.
    pub fn call(&mut self, number: i64, arguments: [u64; 6]) -> Outcome {
        let before = ptrace::getregs(self.thread).expect("a stopped thread");
        let mut registers = before;
        [registers.rdi, registers.rsi, registers.rdx, registers.r10, registers.r8, registers.r9] =
            arguments;
        registers.rax = number as u64;
        registers.rip -= Stopped::CALL.len() as u64;
        // No call that a signal has interrupted, which the kernel would repeat.
        registers.orig_rax = u64::MAX;
        ptrace::setregs(self.thread, registers).expect("a stopped thread");
        ptrace::step(self.thread, None).expect("a stopped thread");
        match self.wait() {
            WaitStatus::Signaled(_, signal, _) => {
                self.is_there = false;
                return Outcome::Ended(Some(signal as i32));
            }
            WaitStatus::Exited(..) => {
                self.is_there = false;
                return Outcome::Ended(None);
            }
            _ => {}
        }
        let after = ptrace::getregs(self.thread).expect("a stopped thread");
        ptrace::setregs(self.thread, before).expect("a stopped thread");
        Outcome::Returned(after.rax as i64)
    }
}

#[cfg(not(target_arch = "x86_64"))]
impl Stopped {
    fn is_in_call(&self) -> bool {
        unimplemented_here()
    }

    /// Makes a system call with these arguments.
    pub fn call(&mut self, _number: i64, _arguments: [u64; 6]) -> Outcome {
        unimplemented_here()
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn unimplemented_here() -> ! {
    panic!("check IS_SUPPORTED first")
}

impl Drop for Stopped {
    fn drop(&mut self) {
        if self.is_there {
            // It fails if the process has been killed meanwhile.
            let _ = ptrace::detach(self.thread, None);
        }
    }
}
