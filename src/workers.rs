//! The threads of the workers, from their start to their end.
//!
//! A thread first prepares its engine: it takes the ring and the memory that it will use, and
//! reports whether it has them. Then it waits for its listeners. Only when every thread is prepared
//! does anybody listen, so if one cannot have what it needs, all of them give up what they took, and
//! the server is free to try another engine.
//!
//! A panic ends the process. But the kernel may end a thread alone, as a seccomp filter can demand, and
//! the connections that are the thread's would hang while new ones still go to it. So whoever waits for the
//! threads watches each of them, and gives up at once when one is gone without having said so.
//!
//! This module does not know what a worker does with a byte.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open, test_kill_process};
use tracing::warn;

use crate::cpus;
use crate::engine::{Engine, EngineError, WorkerConfig};
use crate::protocol::Acceptor;
use crate::sandbox::{self, Call};

/// What a thread calls that waits for the workers: it watches their threads, and looks for one with a signal that is
/// none.
pub const CALLS: &[Call] = &[
    Call::Any(libc::SYS_pidfd_open),
    Call::Any(libc::SYS_ppoll),
    #[cfg(target_arch = "x86_64")]
    Call::Any(libc::SYS_poll),
    Call::With(libc::SYS_kill, 1, &[0]),
];

/// How often to look whether a thread is still there, where the kernel does not tell.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// `PIDFD_THREAD` (pidfd_open(2)): for a thread, not for its process. It came with Linux 6.9.
const PIDFD_THREAD: PidfdFlags = PidfdFlags::from_bits_retain(libc::O_EXCL as u32);

/// A worker that is to be started.
#[derive(Debug, Clone)]
pub struct Worker {
    /// The CPU that it runs on.
    pub cpu: usize,
    /// What its engine is told.
    pub config: WorkerConfig,
}

/// What a worker accepts connections from.
#[derive(Debug)]
pub struct Listener {
    /// A socket that is listening.
    pub socket: OwnedFd,
    /// What makes the layers of its connections; none if they are plain.
    pub acceptor: Option<Arc<dyn Acceptor>>,
}

/// A message from a worker's thread.
#[derive(Debug)]
enum Report {
    /// The engine is prepared, or cannot be.
    Prepared(Result<Memory, EngineError>),
    /// Connections are accepted.
    Started,
}

/// Whether the memory for messages can be swapped out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// It is locked.
    Locked,
    /// It is not.
    Swappable,
}

/// The threads of all workers, in the order of the workers.
#[derive(Debug)]
pub struct Workers {
    threads: Vec<Thread>,
    reports: Receiver<Report>,
    memory: Memory,
}

#[derive(Debug)]
struct Thread {
    number: usize,
    handle: JoinHandle<Result<(), EngineError>>,
    id: Pid,
    /// Tells when it ends, from the time on at which it serves. None if the kernel is older, or no descriptor is
    /// left: then somebody has to look from time to time.
    pidfd: Option<OwnedFd>,
    /// It has come to its end by itself.
    is_done: Arc<AtomicBool>,
    /// Takes the listeners once. When it is dropped unused, the thread ends.
    listeners: Option<Sender<Vec<Listener>>>,
}

impl Workers {
    /// Starts a thread for each worker, and returns when all of them have what `engine` needs.
    ///
    /// # Errors
    ///
    /// When one cannot have it; then all threads have ended.
    pub fn prepare(engine: Engine, workers: &[Worker]) -> Result<Workers, EngineError> {
        let (sender, reports) = mpsc::channel();
        let mut prepared = Workers { threads: Vec::new(), reports, memory: Memory::Locked };
        for (number, worker) in workers.iter().enumerate() {
            match start(number, engine, worker.clone(), sender.clone()) {
                Ok(thread) => prepared.threads.push(thread),
                Err(error) => {
                    prepared.give_up();
                    let error = EngineError::new("start a thread", error);
                    let remedy = format!("{}, or lower --workers", error.remedy);
                    return Err(error.with_remedy(remedy));
                }
            }
        }
        for _ in workers {
            match prepared.next_report() {
                Ok(Report::Prepared(Ok(Memory::Locked))) => {}
                Ok(Report::Prepared(Ok(Memory::Swappable))) => prepared.memory = Memory::Swappable,
                Ok(Report::Prepared(Err(error))) | Err(error) => {
                    prepared.give_up();
                    return Err(error);
                }
                Ok(Report::Started) => unreachable!("no thread has its listeners yet"),
            }
        }
        Ok(prepared)
    }

    /// Whether the memory of any worker can be swapped out.
    pub fn memory(&self) -> Memory {
        self.memory
    }

    /// Ends the threads, none of which serves yet.
    pub fn give_up(mut self) {
        for thread in &mut self.threads {
            thread.listeners = None;
        }
        // What one could not prepare, it has reported.
        let _ = join(self.threads);
    }

    /// The next report of a thread; an error if there is none, because a thread has ended.
    fn next_report(&self) -> Result<Report, EngineError> {
        loop {
            match self.reports.recv_timeout(LOOK_AGAIN) {
                Ok(report) => return Ok(report),
                Err(RecvTimeoutError::Timeout) => {
                    let is_lost = |thread: &&Thread| thread.is_gone() && !thread.is_done();
                    if let Some(thread) = self.threads.iter().find(is_lost) {
                        return Err(lost(thread.number));
                    }
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(EngineError::new("start", io::Error::other("no worker is left")));
                }
            }
        }
    }

    /// Hands each worker its listeners, and returns when all of them accept connections.
    ///
    /// # Errors
    ///
    /// When one cannot; then all of them have been told to stop, and have ended.
    pub fn serve(mut self, listeners: Vec<Vec<Listener>>) -> Result<Serving, EngineError> {
        for (thread, listeners) in self.threads.iter_mut().zip(listeners) {
            if let Some(sender) = thread.listeners.take() {
                // It waits for them, and for nothing else.
                let _ = sender.send(listeners);
            }
        }
        let failed = self.threads.iter().find_map(|_| self.next_report().err());
        for thread in &mut self.threads {
            thread.pidfd = pidfd_open(thread.id, PIDFD_THREAD).ok();
        }
        let serving = Serving { threads: self.threads };
        match failed {
            None => Ok(serving),
            // A worker that did not start says why.
            Some(error) => serving.join().and(Err(error)),
        }
    }
}

/// The threads of workers that serve.
#[derive(Debug)]
pub struct Serving {
    threads: Vec<Thread>,
}

impl Serving {
    /// Waits until all of them have ended, or until the kernel has ended one alone: then the others still
    /// serve.
    ///
    /// # Errors
    ///
    /// The first of theirs.
    pub fn join(self) -> Result<(), EngineError> {
        join(self.threads)
    }
}

impl Thread {
    fn is_done(&self) -> bool {
        self.is_done.load(Ordering::Acquire)
    }

    /// Whether the kernel has ended it, in whatever way.
    fn is_gone(&self) -> bool {
        match &self.pidfd {
            Some(pidfd) => {
                let mut ends = [PollFd::new(pidfd, PollFlags::IN)];
                poll(&mut ends, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
            }
            // kill(2) finds a thread of this process by its own id, too.
            None => test_kill_process(self.id) == Err(Errno::SRCH),
        }
    }
}

/// Waits until all threads have ended, or until one has that did not come to its end.
fn join(mut threads: Vec<Thread>) -> Result<(), EngineError> {
    let mut outcome = Ok(());
    loop {
        for thread in std::mem::take(&mut threads) {
            // It is done before it is gone, so the order matters.
            let is_gone = thread.is_gone();
            if thread.is_done() {
                outcome = outcome.and(thread.handle.join().expect("a panic ends the process"));
            } else if is_gone {
                return Err(lost(thread.number));
            } else {
                threads.push(thread);
            }
        }
        if threads.is_empty() {
            return outcome;
        }
        let pidfds: Option<Vec<&OwnedFd>> = threads.iter().map(|it| it.pidfd.as_ref()).collect();
        match pidfds {
            Some(pidfds) => {
                let ends = pidfds.into_iter().map(|pidfd| PollFd::new(pidfd, PollFlags::IN));
                let mut ends: Vec<PollFd<'_>> = ends.collect();
                // It fails only if a signal comes.
                let _ = poll(&mut ends, None);
            }
            // A thread that comes to its end by itself ends the wait, if it does so after the look above: an
            // earlier wake-up may have been taken by the channel.
            None => thread::park_timeout(LOOK_AGAIN),
        }
    }
}

/// The kernel has ended the thread of this worker.
fn lost(number: usize) -> EngineError {
    let source = io::Error::other(format!("the kernel has ended the thread of worker {number}"));
    EngineError::new("go on", source)
        .with_remedy("see the kernel's log (dmesg) for the reason, such as a seccomp filter")
}

/// Asks all workers to stop whose [`WorkerConfig::stop`] this is.
pub fn stop(stop: &OwnedFd) {
    // It fails only if it has been written to 2^64 times.
    let _ = rustix::io::write(stop, &1u64.to_ne_bytes());
}

fn start(
    number: usize,
    engine: Engine,
    worker: Worker,
    reports: Sender<Report>,
) -> io::Result<Thread> {
    let (listeners, handed) = mpsc::channel();
    let (id, begun) = mpsc::channel();
    let is_done = Arc::new(AtomicBool::new(false));
    let end = End { is_done: is_done.clone(), waiting: thread::current() };
    let handle = thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
        let _end = end;
        let _ = id.send(rustix::thread::gettid());
        run(number, engine, worker, &reports, &handed)
    })?;
    let id = begun.recv().expect("it says who it is first");
    Ok(Thread { number, handle, id, pidfd: None, is_done, listeners: Some(listeners) })
}

/// Says, when it is dropped, that its thread has come to its end.
struct End {
    is_done: Arc<AtomicBool>,
    /// The thread that waits for it.
    waiting: thread::Thread,
}

impl Drop for End {
    fn drop(&mut self) {
        self.is_done.store(true, Ordering::Release);
        self.waiting.unpark();
    }
}

/// The life of a worker's thread.
fn run(
    number: usize,
    engine: Engine,
    worker: Worker,
    reports: &Sender<Report>,
    listeners: &Receiver<Vec<Listener>>,
) -> Result<(), EngineError> {
    let Worker { cpu, mut config } = worker;
    // First, so that the memory comes from the CPU's own node.
    if cpus::pin(cpu).is_err() {
        warn!("worker {number} cannot be pinned to CPU {cpu}");
    }
    let report = |report| {
        // Whoever started this thread listens until it serves.
        let _ = reports.send(report);
    };
    let prepared = match engine.prepare(&config) {
        Ok(prepared) => prepared,
        Err(error) => {
            report(Report::Prepared(Err(error)));
            return Ok(());
        }
    };
    let memory = if prepared.is_locked() { Memory::Locked } else { Memory::Swappable };
    report(Report::Prepared(Ok(memory)));
    let Ok(listeners) = listeners.recv() else { return Ok(()) };
    let sockets;
    (sockets, config.acceptors) =
        listeners.into_iter().map(|Listener { socket, acceptor }| (socket, acceptor)).unzip();
    if config.sandbox == sandbox::Policy::On {
        // What this kernel cannot enforce is the same for every thread; the main thread says it.
        sandbox::enter(&engine.needs(config.offload));
    }
    let stopped = config.stop.clone();
    let outcome = prepared.serve(config, sockets, || report(Report::Started));
    if outcome.is_err() {
        stop(&stopped);
    }
    outcome
}
