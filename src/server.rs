//! The server: a worker on each CPU, with listeners, a ring, memory and connections of its own.
//!
//! Workers share only the request to stop and the count of open connections; their counters can be
//! read from outside. This module decides what the workers are made of and starts and ends them; it
//! does not know what they do with a byte. What is kept for the server that takes over is in [`estate`].

mod estate;

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use rustix::event::EventfdFlags;
use serde::Serialize;
use tracing::{info, warn};

use self::estate::{Entrance, Estate};
use crate::cpus;
use crate::engine::pump::{Limit, Mailbox, MemoryLimit, Shared, Shown, Timeouts, Timing};
use crate::engine::wait::{Pace, WaitStrategy, measure_wake_up};
use crate::engine::{BufferConfig, Engine, EngineError, WorkerConfig};
use crate::linux;
use crate::listen::takeover::{self, TakeoverError};
use crate::listen::{self, Address, DualStack, Endpoint, ListenError, Listening, Transport};
use crate::metrics::{Counters, ResidenceSnapshot, Snapshot};
use crate::offload::{self, program::Program};
use crate::protocol::{Access, Protocol, Settings, Subprotocol};
use crate::retry::retry;
use crate::sandbox::{self, Needs};
use crate::tls::{self, Tls};
use crate::workers::{self, Listener, Memory, Serving, Worker, Workers};

/// How long to try again when the kernel refuses memory: the rings of a killed server count against the
/// limit on locked memory of its user for a moment longer.
const MEMORY_WAIT_MAX: Duration = Duration::from_millis(500);

/// The configuration of a server.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where to listen, and what is spoken there; port 0 becomes a free port.
    pub listen: Vec<Endpoint>,
    /// What TLS is made from, where it is spoken.
    pub tls: Option<tls::Source>,
    /// Whether `[::]` takes IPv4 too.
    pub dual_stack: DualStack,
    /// The path of the Unix socket at which this server takes over from an older one, and at which it waits for
    /// the one that takes over from it.
    pub takeover: Option<PathBuf>,
    /// The file mode of Unix sockets; if not given, the umask decides.
    pub unix_mode: Option<u32>,
    /// The number of workers; if not given, one for each of `cpus`.
    pub workers: Option<usize>,
    /// The CPUs for the workers, used in this order and again from the first when there are more
    /// workers; if not given, all in the affinity mask of the process.
    pub cpus: Option<Vec<usize>>,
    /// The interface to the kernel; if not given, io_uring if all workers can use it, else epoll.
    pub engine: Option<Engine>,
    /// How a worker waits.
    pub wait: WaitStrategy,
    /// The longest spin before a sleep, where the strategy leaves that open; if not given, it follows
    /// from the cost of a wake-up.
    pub spin_max: Option<Duration>,
    /// The protocol's settings, the same for every connection.
    pub settings: Settings,
    /// The subprotocol to accept.
    pub subprotocol: Subprotocol,
    /// The requests to accept.
    pub access: Access,
    /// The most connections open at a time, over all workers.
    pub connections_max: usize,
    /// The most connections open at a time from one address, if there is a limit.
    pub connections_per_address: Option<usize>,
    /// The most heap memory for messages and compression, over all workers, in bytes; [`usize::MAX`] if there is no
    /// limit.
    pub memory_max: usize,
    /// How long connections may take.
    pub timeouts: Timeouts,
    /// Whether it is measured how long messages stay in the server, and workers can be asked what is open.
    pub timing: Timing,
    /// The pinned memory of each worker.
    pub buffers: BufferConfig,
    /// Bytes that each worker keeps for spills that are not in use, at most its share of a quarter of `memory_max`.
    pub spill_pool: usize,
    /// The most bytes that recompression may take, over all workers, which have equal shares.
    pub recompression_memory: usize,
    /// Which connections the kernel echoes by itself.
    pub offload: offload::Policy,
    /// Whether the workers lock themselves down before they serve.
    pub sandbox: sandbox::Policy,
}

/// Why the server cannot start, or why it ended.
#[derive(Debug)]
pub enum ServerError {
    /// An address cannot be listened on.
    Listen(ListenError),
    /// An older server cannot be taken over from.
    Takeover(TakeoverError),
    /// There can be no TLS.
    Tls(tls::StartError),
    /// The kernel refuses to run a thread on a CPU that was asked for.
    CpuRefused(usize, io::Error),
    /// The control group of the process may have less memory than the buffers take.
    Memory {
        /// The bytes of all buffers.
        needed: u64,
        /// The bytes that the group may have.
        allowed: u64,
    },
    /// A worker could not start, its engine broke, or the kernel has ended its thread.
    Engine(EngineError),
    /// Offload was demanded and is not possible.
    Offload(String),
    /// The kernel refused something else: what was attempted, and its error.
    System(&'static str, io::Error),
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ServerError::Listen(error) => error.fmt(f),
            ServerError::CpuRefused(cpu, source) => {
                write!(f, "cannot run on CPU {cpu}: {source}; choose other CPUs with --cpus")?;
                match cpus::online() {
                    Some(online) => write!(f, " (online: {online})"),
                    None => Ok(()),
                }
            }
            ServerError::Takeover(error) => error.fmt(f),
            ServerError::Tls(error) => error.fmt(f),
            ServerError::Memory { needed, allowed } => write!(
                f,
                "the buffers take {}, and the control group may have {}; lower --buffers, \
                 --buffer-size or --workers",
                ByteSize(*needed),
                ByteSize(*allowed),
            ),
            ServerError::Engine(error) => error.fmt(f),
            ServerError::Offload(reason) => write!(f, "cannot offload echoes: {reason}"),
            ServerError::System(step, source) => {
                write!(f, "cannot {step}: {source}")?;
                match linux::remedy(source) {
                    "" => Ok(()),
                    remedy => write!(f, "; {remedy}"),
                }
            }
        }
    }
}

impl std::error::Error for ServerError {}

impl From<ListenError> for ServerError {
    fn from(error: ListenError) -> Self {
        ServerError::Listen(error)
    }
}

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
    /// Those of each worker, in the order of the workers.
    pub workers: Vec<Snapshot>,
}

/// Reads the counters of a server's workers, has certificates read again, and asks the workers to stop, from any
/// thread.
#[derive(Debug, Clone)]
pub struct Control {
    stop: Arc<OwnedFd>,
    counters: Arc<[Arc<Counters>]>,
    /// Of each worker, if questions were wanted.
    mailboxes: Arc<[Arc<Mailbox>]>,
    estate: Arc<Mutex<Estate>>,
    tls: Option<Arc<Tls>>,
    /// Another server has taken over.
    has_successor: Arc<AtomicBool>,
}

impl Control {
    /// Asks all workers to stop. They close their connections and end within [`Timeouts::drain`].
    pub fn stop(&self) {
        // Else connections would wait for a server that does not accept them any more.
        self.estate().close();
        workers::stop(&self.stop);
    }

    /// Reads the files of certificates again, for connections that come from now on. If that fails, nothing changes.
    pub fn reload(&self) {
        let Some(tls) = &self.tls else { return };
        match tls.reload() {
            Ok(doubts) => {
                doubts.iter().for_each(|doubt| warn!("{doubt}"));
                info!("new connections get the certificates that the files have now");
            }
            Err(error) => warn!("new connections get the same certificates as before: {error}"),
        }
    }

    /// Becomes readable, and stays so, when the workers are asked to stop.
    pub fn stopping(&self) -> BorrowedFd<'_> {
        self.stop.as_fd()
    }

    /// Whether another server has taken over. It is known before [`Control::stopping`] becomes readable.
    pub fn has_successor(&self) -> bool {
        self.has_successor.load(Ordering::Acquire)
    }

    /// Leaves the addresses to another server, which accepts connections now, and stops.
    fn make_way(&self) {
        self.has_successor.store(true, Ordering::Release);
        self.stop();
    }

    fn estate(&self) -> MutexGuard<'_, Estate> {
        self.estate.lock().expect("a panic ends the process")
    }

    /// The counts at this moment.
    pub fn statistics(&self) -> Statistics {
        let workers: Vec<Snapshot> =
            self.counters.iter().map(|counters| counters.snapshot()).collect();
        Statistics { total: Snapshot::sum(&workers), workers }
    }

    /// What is open, by worker; no worker unless [`Config::timing`] is on. `None` for one that does not answer within
    /// `time`.
    pub fn connections(&self, time: Duration) -> Vec<Option<Shown>> {
        let asked: Vec<_> = self.mailboxes.iter().map(|mailbox| mailbox.ask()).collect();
        let until = Instant::now() + time;
        let answers = asked.into_iter().map(|answer| {
            answer.recv_timeout(until.saturating_duration_since(Instant::now())).ok()
        });
        answers.collect()
    }

    /// How long messages have stayed in the server, over all workers; nothing unless that is measured.
    pub fn residence(&self) -> ResidenceSnapshot {
        let mut sum = ResidenceSnapshot::default();
        self.counters.iter().for_each(|counters| counters.residence.add_to(&mut sum));
        sum
    }
}

/// A server that accepts connections.
#[derive(Debug)]
pub struct Server {
    engine: Engine,
    offload: offload::Policy,
    endpoints: Vec<Endpoint>,
    cpus: Vec<usize>,
    serving: Serving,
    control: Control,
}

impl Server {
    /// Starts the workers, and returns when all of them accept, on the configured addresses and on the sockets
    /// that were `passed`. An older server, if one is to be taken over from, stops then.
    ///
    /// # Errors
    ///
    /// When a certificate, an address, a CPU, memory, io_uring or offload was asked for and is refused, or the older server
    /// does not answer. Then that server goes on.
    pub fn start(config: &Config, passed: Vec<Listening>) -> Result<Server, ServerError> {
        let cpus = assign_cpus(config)?;
        check_memory(config, cpus.len())?;
        let tls = config.tls.as_ref().map(|source| load(source, config)).transpose()?;
        let stop = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|error| ServerError::System("make an eventfd", error.into()))?;
        let control = Control {
            stop: Arc::new(stop),
            counters: cpus.iter().map(|_| Arc::default()).collect(),
            mailboxes: mailboxes(config, cpus.len())?,
            estate: Arc::default(),
            tls: tls.map(Arc::new),
            has_successor: Arc::default(),
        };
        let chosen =
            choose(&Wanted { config, pace: pace(config, &cpus), cpus: &cpus, control: &control })?;
        let tls = control.tls.as_ref();
        let listeners = listen(config, passed, cpus.len(), tls);
        let Listeners { listening, shares, entrance } = match listeners {
            Ok(listeners) => listeners,
            Err(error) => {
                chosen.workers.give_up();
                return Err(error);
            }
        };
        chosen.say_what_is_missing();
        let Chosen { engine, offload, workers, .. } = chosen;
        let endpoint = |opened: &Listening| Endpoint {
            address: opened.address.clone(),
            transport: opened.transport,
        };
        let endpoints = listening.iter().map(endpoint).collect();
        let serving = workers.serve(shares)?;
        estate::keep(&control, listening, entrance, config.sandbox);
        Ok(Server { engine, offload, endpoints, cpus, serving, control })
    }

    /// Where it listens, with real ports, and what is spoken there.
    pub fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// The engine that it uses.
    pub fn engine(&self) -> Engine {
        self.engine
    }

    /// Which connections the kernel echoes by itself.
    pub fn offload(&self) -> offload::Policy {
        self.offload
    }

    /// The CPU of each worker.
    pub fn cpus(&self) -> &[usize] {
        &self.cpus
    }

    /// A handle on the running server.
    pub fn control(&self) -> Control {
        self.control.clone()
    }

    /// What a thread needs that only calls [`Server::join`] from now on.
    pub fn needs(&self) -> Needs {
        self.control.estate().needs().calling(workers::CALLS)
    }

    /// Waits until all workers have ended, or one of them has failed.
    ///
    /// # Errors
    ///
    /// When a worker's engine broke, or the kernel has ended its thread. In the latter case others may still
    /// serve, and the process should end.
    pub fn join(self) -> Result<Statistics, ServerError> {
        let outcome = self.serving.join();
        drop(std::mem::take(&mut *self.control.estate()));
        outcome?;
        Ok(self.control.statistics())
    }
}

/// Everything that is listened on.
struct Listeners {
    /// By their addresses; with sockets only if they are kept for another server.
    listening: Vec<Listening>,
    /// The sockets of each worker.
    shares: Vec<Vec<Listener>>,
    entrance: Option<Entrance>,
}

/// Takes the sockets for every address from those that were passed, then from an older server, and opens the
/// others.
fn listen(
    config: &Config,
    mut passed: Vec<Listening>,
    workers: usize,
    tls: Option<&Arc<Tls>>,
) -> Result<Listeners, ServerError> {
    let options =
        listen::Options { workers, dual_stack: config.dual_stack, unix_mode: config.unix_mode };
    let mut entrance = match &config.takeover {
        Some(path) => Some(match takeover::take(path).map_err(ServerError::Takeover)? {
            Some(inheritance) => Entrance::Inherited(inheritance),
            None => Entrance::open(path)?,
        }),
        None => None,
    };
    let mut listening = Vec::new();
    for Endpoint { address, transport } in &config.listen {
        let was_passed = passed.iter().position(|it| listen::is_same(&it.address, address));
        let taken = was_passed.map(|place| passed.remove(place));
        let taken = taken.or_else(|| entrance.as_mut()?.claim(address));
        let opened = match taken {
            Some(taken) => taken,
            None => listen::open(address, options)?,
        };
        listening.push(Listening { transport: *transport, ..opened });
    }
    listening.append(&mut passed);
    let shares = estate::distribute(&mut listening, workers, entrance.as_ref(), tls)?;
    Ok(Listeners { listening, shares, entrance })
}

/// Reads the certificates, or makes one, and says what clients will not like about it.
fn load(source: &tls::Source, config: &Config) -> Result<Tls, ServerError> {
    let addresses = config.listen.iter().filter_map(|endpoint| match endpoint {
        Endpoint { address: Address::Tcp(address), transport: Transport::Tls } => {
            Some(address.ip())
        }
        Endpoint { .. } => None,
    });
    let addresses: Vec<IpAddr> = addresses.collect();
    let (tls, doubts) = Tls::load(source, &addresses).map_err(ServerError::Tls)?;
    doubts.iter().for_each(|doubt| warn!("{doubt}"));
    if let Some(fingerprint) = tls.own_fingerprint() {
        warn!(
            "clients do not trust the certificate, which was made for this start; its SHA-256 \
             fingerprint is {fingerprint}"
        );
    }
    Ok(tls)
}

/// What all workers have in common, whatever their engine.
struct Wanted<'a> {
    config: &'a Config,
    pace: Pace,
    cpus: &'a [usize],
    control: &'a Control,
}

/// How long workers may spin. A wake-up is measured on the first of their CPUs, if it matters.
fn pace(config: &Config, cpus: &[usize]) -> Pace {
    let cpu = cpus.first().filter(|_| config.wait.is_paced());
    Pace::new(config.spin_max, cpu.and_then(|&cpu| measure_wake_up(cpu)))
}

/// An engine that all workers are prepared for.
struct Chosen {
    engine: Engine,
    offload: offload::Policy,
    workers: Workers,
    /// Why it is not the first choice.
    instead_of_uring: Option<EngineError>,
    /// Why it does not offload, although that was asked for.
    without_offload: Option<String>,
}

impl Chosen {
    /// Warns of everything that was asked for, or is expected, and could not be done.
    fn say_what_is_missing(&self) {
        if let Some(reason) = &self.instead_of_uring {
            warn!("serving with {} instead of io_uring: {reason}", self.engine.name());
        }
        if let Some(reason) = &self.without_offload {
            warn!("echoing without offload: {reason}");
        }
        // If memory is why there is no io_uring, the first warning has said what to do.
        let is_known = self.instead_of_uring.as_ref().is_some_and(EngineError::is_memory);
        if self.workers.memory() == Memory::Swappable && !is_known {
            warn!(
                "the memory for messages is not locked and may be swapped out; raise the limit on \
                 locked memory (ulimit -l), or lower --buffers"
            );
        }
    }
}

/// Prepares all workers for the engine that was asked for, or else for the best one that all of
/// them can have.
fn choose(wanted: &Wanted<'_>) -> Result<Chosen, ServerError> {
    let config = wanted.config;
    let with = |engine| {
        let (mut offload, mut without_offload) = choose_offload(config, engine)?;
        let mut workers = prepare(wanted, engine, offload);
        // The program could be loaded once, and yet not for every worker.
        if let (Err(error), offload::Policy::Auto) = (&workers, offload) {
            without_offload = Some(error.to_string());
            offload = offload::Policy::Off;
            workers = prepare(wanted, engine, offload);
        }
        Ok(Chosen { engine, offload, workers: workers?, instead_of_uring: None, without_offload })
    };
    match with(config.engine.unwrap_or(Engine::Uring)) {
        Err(ServerError::Engine(error)) if config.engine.is_none() && !needs_io_uring(config) => {
            Ok(Chosen { instead_of_uring: Some(error), ..with(Engine::Epoll)? })
        }
        first => first,
    }
}

fn prepare(
    wanted: &Wanted<'_>,
    engine: Engine,
    offload: offload::Policy,
) -> Result<Workers, EngineError> {
    let &Wanted { config, pace, cpus, control } = wanted;
    let limit = Limit::new(config.connections_max);
    let shared = Arc::new(Shared {
        connections: match config.connections_per_address {
            Some(most) => limit.with_address_max(most),
            None => limit,
        },
        memory: MemoryLimit::new(config.memory_max, cpus.len()),
    });
    let workers = cpus.iter().zip(&*control.counters).enumerate();
    let workers = workers.map(|(number, (&cpu, counters))| Worker {
        cpu,
        config: WorkerConfig {
            buffers: config.buffers,
            // So that what idle workers keep leaves room for messages of the others.
            spill_pool: config.spill_pool.min(config.memory_max / 4 / cpus.len().max(1)),
            recompression_memory: config.recompression_memory / cpus.len().max(1),
            wait: config.wait,
            pace,
            offload,
            sandbox: config.sandbox,
            settings: config.settings,
            subprotocol: config.subprotocol.clone(),
            access: config.access.clone(),
            timeouts: config.timeouts,
            timing: config.timing,
            mailbox: control.mailboxes.get(number).cloned(),
            acceptors: Vec::new(),
            stop: control.stop.clone(),
            counters: counters.clone(),
            shared: shared.clone(),
        },
    });
    let workers = workers.collect::<Vec<Worker>>();
    retry(MEMORY_WAIT_MAX, EngineError::is_memory, || Workers::prepare(engine, &workers))
}

/// Whether only io_uring can do what was asked for.
fn needs_io_uring(config: &Config) -> bool {
    matches!(config.wait, WaitStrategy::Sqpoll) || config.offload == offload::Policy::On
}

/// Which connections the engine can leave to the kernel, of those that were asked for, and why not
/// all of them.
fn choose_offload(
    config: &Config,
    engine: Engine,
) -> Result<(offload::Policy, Option<String>), ServerError> {
    let reason = match (engine, config.settings.protocol) {
        _ if config.offload == offload::Policy::Off => return Ok((offload::Policy::Off, None)),
        (Engine::Uring, Protocol::WebSocket) => match (Program::load(), linux::running_version()) {
            (Ok(_), Some(version))
                if config.offload == offload::Policy::Auto && version < offload::LINUX_MIN =>
            {
                let (major, minor) = offload::LINUX_MIN;
                format!(
                    "this kernel is older than {major}.{minor} and may lose or repeat bytes; use \
                     --offload on if it has the fixes"
                )
            }
            (Ok(_), _) => return Ok((config.offload, None)),
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
    Ok((offload::Policy::Off, Some(reason)))
}

/// A mailbox for each worker, if they may be asked.
fn mailboxes(config: &Config, workers: usize) -> Result<Arc<[Arc<Mailbox>]>, ServerError> {
    let count = if config.timing == Timing::On { workers } else { 0 };
    let mailboxes = (0..count).map(|_| Mailbox::new().map(Arc::new)).collect::<io::Result<_>>();
    mailboxes.map_err(|error| ServerError::System("make an eventfd", error))
}

/// Refuses buffers for which the kernel would not refuse the memory, but end the process when it touches it.
fn check_memory(config: &Config, workers: usize) -> Result<(), ServerError> {
    let root = Path::new("/");
    let needed = (workers * config.buffers.memory_bytes()) as u64;
    match linux::memory_max(root) {
        Some(allowed) if allowed < needed && linux::huge_bytes_free(root) < needed => {
            Err(ServerError::Memory { needed, allowed })
        }
        Some(_) | None => Ok(()),
    }
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
