//! The process between `ringbench` and a server that it starts (`ringbench guard`, hidden).
//!
//! It starts the command in a process group of its own, so that Ctrl-C in a terminal does not reach
//! it, and ends everything below it when its standard input ends: because `ringbench` is done, or
//! because it was killed. It becomes the parent of whatever the command leaves behind (a child
//! subreaper, PR_SET_CHILD_SUBREAPER(2const)), so no process stays, and the kernel adds the CPU time
//! of ended processes to that of its children. It sleeps while a server is measured.
//!
//! Its standard input is a socket, to which it also writes lines: [`STARTED`]; [`FAILED`] and why; or
//! [`ENDED`] and how. The command prints to the guard's own standard output and error.

use std::ffi::OsString;
use std::io::{Read as _, stdin};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, getpid, kill_process_group, set_child_subreaper};
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::process::signal_descendants;

/// The command runs.
pub const STARTED: &str = "started";
/// The command could not be started; the rest of the line says why.
pub const FAILED: &str = "failed ";
/// The command and all that it had started are gone; the rest of the line says how it ended.
pub const ENDED: &str = "ended ";
/// How long a server may take to end after SIGTERM, before SIGKILL.
pub const END_TIMEOUT: Duration = Duration::from_secs(10);
/// How often processes that are to end are signalled again.
const SIGNAL_INTERVAL: Duration = Duration::from_millis(50);

/// Runs the command `words` on the CPUs `cpus` (if empty, any) until it ends, or until standard input
/// does.
pub fn run(cpus: &[usize], words: &[OsString]) {
    pin(cpus);
    // If the kernel refuses, processes that the command leaves behind are not found.
    let _ = set_child_subreaper(Some(getpid()));
    let [program, arguments @ ..] = words else {
        return say(&format!("{FAILED}there is no command"));
    };
    let spawned =
        Command::new(program).args(arguments).stdin(Stdio::null()).process_group(0).spawn();
    let child = match spawned {
        Ok(child) => Pid::from_child(&child),
        Err(error) => return say(&format!("{FAILED}{error}")),
    };
    say(STARTED);
    thread::spawn(move || wait_for_all(child));
    // Nothing is ever sent: this returns at the end of the input.
    let _ = stdin().lock().read(&mut [0]);
    end(child);
}

/// Waits until no process is left below this one, and ends this one.
fn wait_for_all(child: Pid) {
    let mut status = None;
    loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((pid, how))) if pid == child => status = Some(how.as_raw()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => break,
        }
    }
    let how = status.map_or("unknown".to_owned(), |raw| ExitStatus::from_raw(raw).to_string());
    say(&format!("{ENDED}{how}"));
    std::process::exit(0);
}

/// Ends all processes below this one, which ends this one too ([`wait_for_all`]).
fn end(child: Pid) {
    let below = std::process::id();
    let signal = |signal| {
        let _ = kill_process_group(child, signal);
        signal_descendants(below, signal);
    };
    signal(Signal::TERM);
    // A stopped process handles SIGTERM only once it continues.
    signal(Signal::CONT);
    let until = Instant::now() + END_TIMEOUT;
    while Instant::now() < until {
        thread::sleep(SIGNAL_INTERVAL);
    }
    loop {
        signal(Signal::KILL);
        thread::sleep(SIGNAL_INTERVAL);
    }
}

/// Pins this thread, and with it all that it starts.
fn pin(cpus: &[usize]) {
    let mut set = CpuSet::new();
    for &cpu in cpus.iter().filter(|&&cpu| cpu < CpuSet::MAX_CPU) {
        set.set(cpu);
    }
    if set.count() > 0 {
        // They were allowed when the command line was read; if not now, the server runs elsewhere.
        let _ = sched_setaffinity(None, &set);
    }
}

fn say(line: &str) {
    // If nobody listens any more, standard input has ended too, which ends the guard.
    let _ = rustix::io::write(stdin(), format!("{line}\n").as_bytes());
}
