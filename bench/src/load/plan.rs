//! What to load a server with, and why a load cannot be run.

use std::fmt;
use std::io;
use std::time::Duration;

use ringecho::cpus;

use super::mix::Mix;
use crate::problem::Problem;
use crate::target::Target;

/// The most connections of a load.
pub const CONNECTIONS_MAX: usize = 1_000_000;
/// The most messages in flight on a connection of a closed loop.
pub const PIPELINE_MAX: usize = 65_536;
/// How long [`Plan::new`] waits for echoes after the last message.
pub const DRAIN_DEFAULT: Duration = Duration::from_secs(3);
/// How long a server may take to close a connection after a close frame.
pub const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// How fast messages leave.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rate {
    /// This many a second over all connections, whatever comes back: an open loop.
    PerSecond(f64),
    /// As fast as echoes come, with a number of messages in flight on each connection: a closed
    /// loop.
    Max,
}

/// What to load a server with.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The server.
    pub target: Target,
    /// How many connections.
    pub connections: usize,
    /// How fast messages leave.
    pub rate: Rate,
    /// Messages in flight on each connection, for [`Rate::Max`].
    pub pipeline: usize,
    /// Which messages.
    pub mix: Mix,
    /// Whether messages are compressed with permessage-deflate.
    pub compresses: bool,
    /// After how many messages a connection is closed and opened again. What is due meanwhile waits,
    /// and its latency includes that time.
    pub reconnect_every: Option<u64>,
    /// How long messages count.
    pub duration: Duration,
    /// How long messages are sent before that without counting.
    pub warm_up: Duration,
    /// How long to wait for echoes after the last message. A message without an echo by then is lost.
    pub drain: Duration,
    /// How long a server may take to close a connection after a close frame.
    pub close: Duration,
    /// The most threads that send and receive. Each has at least one connection.
    pub threads: usize,
    /// The CPUs that the threads are pinned to, in this order, starting over when there are more
    /// threads. If empty, threads are not pinned.
    pub cpus: Vec<usize>,
    /// The CPUs of the server if they are known, for a warning about CPUs that both use.
    pub server_cpus: Option<Vec<usize>>,
    /// One in this many messages of a connection is compared with its echo byte by byte. Form,
    /// length and stamp are checked of all.
    pub verify_every: u64,
    /// Whether threads busy-wait for the last [`SPIN`](super::SPIN) before a message is due, so that it
    /// leaves on time. Each takes a whole CPU if messages are closer together than that.
    pub spins: bool,
    /// The seed of payloads and masking keys.
    pub seed: u64,
}

impl Plan {
    /// One connection, and a text message of 16 bytes every millisecond for ten seconds.
    pub fn new(target: Target) -> Plan {
        Plan {
            target,
            connections: 1,
            rate: Rate::PerSecond(1000.0),
            pipeline: 1,
            mix: "16:text".parse().expect("a mix"),
            compresses: false,
            reconnect_every: None,
            duration: Duration::from_secs(10),
            warm_up: Duration::from_secs(1),
            drain: DRAIN_DEFAULT,
            close: CLOSE_TIMEOUT,
            threads: 1,
            cpus: Vec::new(),
            server_cpus: None,
            verify_every: 1,
            spins: false,
            seed: 1,
        }
    }

    /// The threads that are started.
    pub(super) fn threads(&self) -> usize {
        self.threads.min(self.connections)
    }

    /// The CPUs that the threads are pinned to.
    pub(super) fn thread_cpus(&self) -> &[usize] {
        &self.cpus[..self.threads().min(self.cpus.len())]
    }

    /// Whether the server echoes bytes and knows no messages.
    pub(super) fn is_plain(&self) -> bool {
        self.target.websocket.is_none()
    }

    /// The rate asked for, in messages a second.
    pub(super) fn rate_asked(&self) -> Option<f64> {
        match self.rate {
            Rate::PerSecond(rate) => Some(rate),
            Rate::Max => None,
        }
    }

    pub(super) fn check(&self) -> Result<(), LoadError> {
        let wrong = |complaint: &str| Err(LoadError::Plan(complaint.to_owned()));
        if !(1..=CONNECTIONS_MAX).contains(&self.connections) {
            return wrong("the number of connections is from 1 to 1000000");
        }
        if self.threads == 0 {
            return wrong("a load needs at least one thread");
        }
        if let Rate::PerSecond(rate) = self.rate
            && !(rate.is_finite() && rate > 0.0)
        {
            return wrong("the rate is more than 0 messages a second");
        }
        if !(1..=PIPELINE_MAX).contains(&self.pipeline) {
            return wrong("the number of messages in flight on a connection is from 1 to 65536");
        }
        if self.duration.is_zero() {
            return wrong("the duration is more than 0");
        }
        if self.verify_every == 0 || self.reconnect_every == Some(0) {
            return wrong("counts of messages are more than 0");
        }
        if self.is_plain() {
            if self.compresses {
                return wrong("tcp:// has no compression; leave it off, or use ws://");
            }
            if self.mix.kinds().iter().any(|kind| kind.size == 0 || kind.fragments > 1) {
                return wrong(
                    "tcp:// has no empty messages and no fragments; choose other messages, or use \
                     ws://",
                );
            }
        }
        let allowed = cpus::allowed().unwrap_or_default();
        match self.cpus.iter().find(|cpu| !allowed.contains(cpu)) {
            Some(&cpu) => Err(LoadError::Cpu(cpu)),
            None => Ok(()),
        }
    }

    /// A sentence that describes the load.
    pub(super) fn description(&self) -> String {
        let plural = if self.connections == 1 { "" } else { "s" };
        let mut text = match self.rate {
            Rate::PerSecond(rate) => format!(
                "{} connection{plural}, {rate} messages a second in an open loop, latencies from \
                 the scheduled send",
                self.connections
            ),
            Rate::Max => format!(
                "{} connection{plural}, {} in flight on each in a closed loop, latencies from the \
                 actual send",
                self.connections, self.pipeline
            ),
        };
        text += &format!("; messages {}", self.mix);
        if self.compresses {
            text += ", compressed";
        }
        if let Some(count) = self.reconnect_every {
            text += &format!("; a new connection after {count} messages");
        }
        text
    }
}

/// Why a load cannot be run.
#[derive(Debug)]
pub enum LoadError {
    /// The plan is impossible: what is wrong, and what to ask for instead.
    Plan(String),
    /// The server cannot be measured.
    Server(Problem),
    /// This process may not use this CPU.
    Cpu(usize),
    /// The server answered some opening handshakes, and then no more.
    Silent {
        /// How many it answered.
        answered: u64,
        /// How long the last of several others was waited for.
        problem: Problem,
    },
    /// There are fewer descriptors than connections.
    Descriptors {
        /// How many are needed.
        needed: u64,
        /// How many this process may have.
        allowed: u64,
    },
    /// The system refused something.
    System(&'static str, io::Error),
}

impl LoadError {
    pub(super) fn no_thread(error: io::Error) -> LoadError {
        LoadError::System("start a thread", error)
    }
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LoadError::Plan(complaint) => f.write_str(complaint),
            LoadError::Server(problem) => problem.fmt(f),
            LoadError::Silent { answered, problem } => {
                write!(f, "the server opened {answered} connections and no more: {problem}")
            }
            LoadError::Cpu(cpu) => {
                write!(f, "this process may not use CPU {cpu}; see taskset -pc $$")
            }
            LoadError::Descriptors { needed, allowed } => write!(
                f,
                "these connections need {needed} descriptors, and this process may have {allowed}; \
                 raise the hard limit (ulimit -Hn, LimitNOFILE=), or ask for fewer connections"
            ),
            LoadError::System(what, error) => write!(f, "cannot {what}: {error}"),
        }
    }
}

impl std::error::Error for LoadError {}
