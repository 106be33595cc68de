//! The threads of the workers, from their start to their end.
//!
//! A thread first prepares its engine: it takes the ring and the memory that it will use, and
//! reports whether it has them. Then it waits for its listeners. Only when every thread is prepared
//! does anybody listen, so if one cannot have what it needs, all of them give up what they took, and
//! the server is free to try another engine.
//!
//! This module does not know what a worker does with a byte.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};

use tracing::warn;

use crate::cpus;
use crate::engine::{Engine, EngineError, WorkerConfig};
use crate::sandbox;

/// A worker that is to be started.
#[derive(Debug, Clone)]
pub struct Worker {
    /// The CPU that it runs on.
    pub cpu: usize,
    /// What its engine is told.
    pub config: WorkerConfig,
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
    handle: JoinHandle<Result<(), EngineError>>,
    /// Takes the listeners once. When it is dropped unused, the thread ends.
    listeners: Sender<Vec<OwnedFd>>,
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
            match prepared.reports.recv().expect("a thread reports before it ends") {
                Report::Prepared(Ok(Memory::Locked)) => {}
                Report::Prepared(Ok(Memory::Swappable)) => prepared.memory = Memory::Swappable,
                Report::Prepared(Err(error)) => {
                    prepared.give_up();
                    return Err(error);
                }
                Report::Started => unreachable!("no thread has its listeners yet"),
            }
        }
        Ok(prepared)
    }

    /// Whether the memory of any worker can be swapped out.
    pub fn memory(&self) -> Memory {
        self.memory
    }

    /// Ends the threads, none of which serves yet.
    pub fn give_up(self) {
        for Thread { handle, listeners } in self.threads {
            drop(listeners);
            // What it could not prepare, it has reported.
            let _ = handle.join().expect("a panic ends the process");
        }
    }

    /// Hands each worker its listeners, and returns when all of them accept connections.
    ///
    /// # Errors
    ///
    /// When one cannot; then all of them have been told to stop, and have ended.
    pub fn serve(self, listeners: Vec<Vec<OwnedFd>>) -> Result<Serving, EngineError> {
        let mut handles = Vec::new();
        for (thread, listeners) in self.threads.into_iter().zip(listeners) {
            // It waits for them, and for nothing else.
            let _ = thread.listeners.send(listeners);
            handles.push(thread.handle);
        }
        let serving = Serving { handles };
        let started = self.reports.iter().take(serving.handles.len()).count();
        if started == serving.handles.len() {
            return Ok(serving);
        }
        Err(serving.join().expect_err("a worker that did not start says why"))
    }
}

/// The threads of workers that serve.
#[derive(Debug)]
pub struct Serving {
    handles: Vec<JoinHandle<Result<(), EngineError>>>,
}

impl Serving {
    /// Waits until all of them have ended.
    ///
    /// # Errors
    ///
    /// The first of theirs.
    pub fn join(self) -> Result<(), EngineError> {
        let mut outcome = Ok(());
        for thread in self.handles {
            outcome = outcome.and(thread.join().expect("a panic ends the process"));
        }
        outcome
    }
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
    let handle = thread::Builder::new()
        .name(format!("worker-{number}"))
        .spawn(move || run(number, engine, worker, &reports, &handed))?;
    Ok(Thread { handle, listeners })
}

/// The life of a worker's thread.
fn run(
    number: usize,
    engine: Engine,
    worker: Worker,
    reports: &Sender<Report>,
    listeners: &Receiver<Vec<OwnedFd>>,
) -> Result<(), EngineError> {
    let Worker { cpu, config } = worker;
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
    if config.sandbox == sandbox::Policy::On {
        // What this kernel cannot enforce is the same for every thread; the main thread says it.
        sandbox::enter(&engine.needs(config.offload));
    }
    let stopped = config.stop.clone();
    let outcome = prepared.serve(config, listeners, || report(Report::Started));
    if outcome.is_err() {
        stop(&stopped);
    }
    outcome
}
