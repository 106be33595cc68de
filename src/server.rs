//! The server: a worker thread for each processor, each with its own listeners, ring, memory and
//! connections.
//!
//! Workers share nothing but the request to stop, the count of open connections and, to be read,
//! their counters. This module starts and ends them; it does not know what they do with a byte.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};

use rustix::event::EventfdFlags;
use serde::Serialize;
use tracing::warn;

use crate::cpus;
use crate::engine::pump::Limit;
use crate::engine::wait::WaitStrategy;
use crate::engine::{BufferConfig, Engine, EngineError, Parts};
use crate::linux;
use crate::listen::{self, Address, SocketFile};
use crate::metrics::{Counters, Snapshot};
use crate::offload::{self, program::Program};
use crate::protocol::{Context, Protocol, Settings};

/// What to serve, and how.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where to listen; port 0 becomes a free port.
    pub listen: Vec<Address>,
    /// The mode of Unix sockets' files, if not what the umask leaves.
    pub unix_mode: Option<u32>,
    /// How many workers; as many as processors if not given.
    pub workers: Option<usize>,
    /// The CPUs for the workers, used in this order and again from the first when there are more
    /// workers; if not given, all in the affinity mask of the process.
    pub cpus: Option<Vec<usize>>,
    /// How bytes reach the kernel; see [`Engine::choose`] if not given.
    pub engine: Option<Engine>,
    /// How a worker waits.
    pub wait: WaitStrategy,
    /// What is done for every connection.
    pub settings: Settings,
    /// Connections open at a time, over all workers.
    pub connections_max: usize,
    /// The pinned memory of each worker.
    pub buffers: BufferConfig,
    /// Which connections are left to the kernel.
    pub offload: offload::Policy,
}

/// Why the server could not start or go on.
#[derive(Debug)]
pub enum ServerError {
    /// An address to listen on could not be had.
    Listen(Address, io::Error),
    /// The kernel refuses to run a thread on a CPU that was asked for.
    CpuRefused(usize, io::Error),
    /// A worker could not start, or its ring broke.
    Engine(EngineError),
    /// Echoes cannot be offloaded, as was asked for.
    Offload(String),
    /// Threads or descriptors could not be had.
    System(&'static str, io::Error),
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ServerError::Listen(address, source) => {
                write!(f, "cannot listen on {address}: {source}")?;
                match (address, source.kind()) {
                    (Address::Tcp(_), io::ErrorKind::AddrInUse) => {
                        f.write_str("; end the process that listens there, or choose another port")
                    }
                    (Address::Tcp(_), io::ErrorKind::PermissionDenied) => {
                        f.write_str("; ports below 1024 need CAP_NET_BIND_SERVICE")
                    }
                    (Address::Unix(_), io::ErrorKind::AddrInUse) => {
                        f.write_str("; end the process that listens there, or choose another path")
                    }
                    (Address::Unix(_), io::ErrorKind::AlreadyExists) => {
                        f.write_str("; the file there is no socket: choose another path")
                    }
                    (Address::Unix(_), io::ErrorKind::NotFound) => {
                        f.write_str("; make the directory first")
                    }
                    _ => Ok(()),
                }
            }
            ServerError::CpuRefused(cpu, source) => {
                write!(f, "cannot run on CPU {cpu}: {source}; choose other CPUs with --cpus")?;
                match cpus::online() {
                    Some(online) => write!(f, " (online: {online})"),
                    None => Ok(()),
                }
            }
            ServerError::Engine(error) => error.fmt(f),
            ServerError::Offload(reason) => write!(f, "cannot offload echoes: {reason}"),
            ServerError::System(step, source) => write!(f, "cannot {step}: {source}"),
        }
    }
}

impl std::error::Error for ServerError {}

impl From<EngineError> for ServerError {
    fn from(error: EngineError) -> Self {
        ServerError::Engine(error)
    }
}

/// The counts of all workers.
#[derive(Debug, Serialize)]
pub struct Statistics {
    /// The sums.
    pub total: Snapshot,
    /// Each worker's own, in the order of the workers.
    pub workers: Vec<Snapshot>,
}

/// Reads the counters of a server's workers, and asks them to stop, from any thread.
#[derive(Debug, Clone)]
pub struct Control {
    stop: Arc<OwnedFd>,
    /// They are never freed: a runtime's tasks may borrow only what outlives every scope, and a
    /// process starts one server.
    counters: &'static [Counters],
}

impl Control {
    /// Asks all workers to stop. They close their connections and end within
    /// [`crate::engine::pump::DRAIN_MAX`].
    pub fn stop(&self) {
        // It fails only if it has been written to 2^64 times.
        let _ = rustix::io::write(&self.stop, &1u64.to_ne_bytes());
    }

    /// The counts at this moment.
    pub fn statistics(&self) -> Statistics {
        let workers: Vec<Snapshot> = self.counters.iter().map(Counters::snapshot).collect();
        Statistics { total: Snapshot::sum(&workers), workers }
    }
}

/// A server that accepts connections.
#[derive(Debug)]
pub struct Server {
    engine: Engine,
    offload: offload::Policy,
    addresses: Vec<Address>,
    /// Removed when the server has ended.
    files: Vec<SocketFile>,
    cpus: Vec<usize>,
    threads: Vec<JoinHandle<Result<(), EngineError>>>,
    control: Control,
}

impl Server {
    /// Starts the workers, and returns when all of them accept.
    ///
    /// # Errors
    ///
    /// When an address, a processor, memory or io_uring cannot be had.
    pub fn start(config: &Config) -> Result<Server, ServerError> {
        let cpus = assign_cpus(config)?;
        let engine = choose_engine(config)?;
        let offload = choose_offload(config, engine)?;
        let mut addresses = Vec::new();
        let mut files = Vec::new();
        let mut listeners: Vec<Vec<OwnedFd>> = cpus.iter().map(|_| Vec::new()).collect();
        for asked in &config.listen {
            let failed = |error| ServerError::Listen(asked.clone(), error);
            let opened = match asked {
                Address::Tcp(address) => {
                    let (opened, address) = listen::listen(*address, cpus.len()).map_err(failed)?;
                    addresses.push(Address::Tcp(address));
                    opened
                }
                Address::Unix(path) => {
                    let (opened, file) =
                        listen::listen_unix(path, config.unix_mode, cpus.len()).map_err(failed)?;
                    addresses.push(asked.clone());
                    files.push(file);
                    opened
                }
            };
            for (listeners, opened) in listeners.iter_mut().zip(opened) {
                listeners.push(opened);
            }
        }
        let stop = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|error| ServerError::System("make an eventfd", error.into()))?;
        let control = Control {
            stop: Arc::new(stop),
            counters: cpus.iter().map(|_| Counters::default()).collect::<Vec<Counters>>().leak(),
        };
        // Never freed, like the counters.
        let limit: &'static Limit = Box::leak(Box::new(Limit::new(config.connections_max)));
        let mut server =
            Server { engine, offload, addresses, files, cpus, threads: Vec::new(), control };
        let (ready, started) = mpsc::channel();
        for (number, listeners) in listeners.into_iter().enumerate() {
            let worker = Worker {
                number,
                cpu: server.cpus[number],
                engine,
                parts: Parts {
                    listeners,
                    stop: server.control.stop.clone(),
                    buffers: config.buffers,
                    strategy: config.wait,
                    offload,
                },
                settings: config.settings,
                limit,
                control: server.control.clone(),
                ready: ready.clone(),
            };
            let name = format!("worker-{number}");
            match thread::Builder::new().name(name).spawn(move || worker.run()) {
                Ok(thread) => server.threads.push(thread),
                Err(error) => {
                    server.control.stop();
                    server.join()?;
                    return Err(ServerError::System("start a thread", error));
                }
            }
        }
        drop(ready);
        let locked: Vec<bool> = started.iter().take(server.threads.len()).collect();
        if locked.len() < server.threads.len() {
            server.control.stop();
            return Err(server.join().expect_err("a worker that did not start says why"));
        }
        if !locked.iter().all(|&is_locked| is_locked) {
            warn!(
                "the memory for messages is not locked and may be swapped out; raise the limit on \
                 locked memory (ulimit -l), or lower --buffers"
            );
        }
        Ok(server)
    }

    /// Where it listens, with real ports.
    pub fn addresses(&self) -> &[Address] {
        &self.addresses
    }

    /// What it serves with.
    pub fn engine(&self) -> Engine {
        self.engine
    }

    /// Which connections it leaves to the kernel.
    pub fn offload(&self) -> offload::Policy {
        self.offload
    }

    /// The processor of each worker.
    pub fn cpus(&self) -> &[usize] {
        &self.cpus
    }

    /// A handle on the running server.
    pub fn control(&self) -> Control {
        self.control.clone()
    }

    /// Waits until all workers have ended.
    ///
    /// # Errors
    ///
    /// When a worker's ring broke, or a worker could not start.
    pub fn join(self) -> Result<Statistics, ServerError> {
        let mut outcome = Ok(());
        for thread in self.threads {
            let ended = thread.join().expect("a panic ends the process");
            outcome = outcome.and(ended);
        }
        drop(self.files);
        outcome?;
        Ok(self.control.statistics())
    }
}

/// The engine asked for, or the best that can be had, and then it is said why it is not the first.
fn choose_engine(config: &Config) -> Result<Engine, ServerError> {
    if let Some(engine) = config.engine {
        return Ok(engine);
    }
    let (engine, reason) = Engine::choose(config.wait)?;
    if let Some(reason) = reason {
        warn!("serving with {} instead of io_uring: {reason}", engine.name());
    }
    Ok(engine)
}

/// Whether what was asked for can be had; where it was not demanded, it is said why it is left out.
fn choose_offload(config: &Config, engine: Engine) -> Result<offload::Policy, ServerError> {
    let reason = match (engine, config.settings.protocol) {
        _ if config.offload == offload::Policy::Off => return Ok(offload::Policy::Off),
        (Engine::Uring, Protocol::WebSocket) => match (Program::load(), linux::running_version()) {
            (Ok(_), Some(version))
                if config.offload == offload::Policy::Auto && version < offload::LINUX_MIN =>
            {
                let (major, minor) = offload::LINUX_MIN;
                format!(
                    "this kernel is older than {major}.{minor} and may lose or repeat octets; use \
                     --offload on if it has the fixes"
                )
            }
            (Ok(_), _) => return Ok(config.offload),
            (Err(error), _) => error.to_string(),
        },
        (_, Protocol::Tcp) => "there are no frames with --protocol tcp".to_owned(),
        (engine, Protocol::WebSocket) => {
            format!("the engine {} does not; use --engine uring", engine.name())
        }
    };
    if config.offload == offload::Policy::On {
        return Err(ServerError::Offload(reason));
    }
    warn!("echoing without offload: {reason}");
    Ok(offload::Policy::Off)
}

/// The CPU of each worker.
fn assign_cpus(config: &Config) -> Result<Vec<usize>, ServerError> {
    let cpus = match &config.cpus {
        Some(cpus) => {
            cpus::try_all(cpus).map_err(|(cpu, error)| ServerError::CpuRefused(cpu, error))?;
            cpus.clone()
        }
        None => cpus::allowed().map_err(|error| ServerError::System("list the CPUs", error))?,
    };
    let workers = config.workers.unwrap_or(cpus.len());
    Ok(cpus.iter().copied().cycle().take(workers).collect())
}

/// What a worker's thread starts with.
struct Worker {
    number: usize,
    cpu: usize,
    engine: Engine,
    parts: Parts,
    settings: Settings,
    limit: &'static Limit,
    control: Control,
    /// Told once the worker accepts, with whether its memory is locked.
    ready: mpsc::Sender<bool>,
}

impl Worker {
    fn run(self) -> Result<(), EngineError> {
        let control = self.control.clone();
        let outcome = self.serve();
        if outcome.is_err() {
            control.stop();
        }
        outcome
    }

    fn serve(self) -> Result<(), EngineError> {
        if cpus::pin(self.cpu).is_err() {
            warn!("worker {} cannot be pinned to CPU {}", self.number, self.cpu);
        }
        let context = Context::new(self.settings, &self.control.counters[self.number]);
        // The engine takes all it needs here, on the thread that uses it; and the memory after
        // pinning, so that it comes from the processor's own node. Listening began before: a
        // connection made from now on waits at worst for the first turn. Nobody listens if another
        // worker could not start.
        let ready = self.ready;
        self.engine.serve(self.parts, context, self.limit, move |is_locked| {
            let _ = ready.send(is_locked);
        })
    }
}
