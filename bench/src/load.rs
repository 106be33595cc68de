//! A load of many connections on one server, and what it measures.
//!
//! By default the loop is open: each connection has a schedule that does not depend on echoes, and a
//! latency counts from the time at which its message was *to be* sent. When the server stalls,
//! messages go on leaving, and what waits meanwhile is seen in the latencies (no coordinated
//! omission). [`Rate::Max`] closes the loop: a message leaves when an echo has come, and its latency
//! counts from the actual send, so that a stall is seen in few messages only; it tells what a server
//! can do and not how long a user waits.
//!
//! This module owns the threads and the sums. It prints nothing, and it does not know the command
//! line.

mod mix;
mod opener;
mod schedule;
mod warnings;
mod worker;

use std::fmt;
use std::io;
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::Duration;

pub use self::mix::{Kind, Mix, SIZE_MAX};
pub use self::worker::{CLOSE_TIMEOUT, DRAIN_TIMEOUT, SPIN};

use self::mix::Payloads;
use self::opener::Reopening;
use self::schedule::{Schedule, Window, now_ns};
use self::worker::{Ended, Pace, Parts, Tally};
use crate::latency::Latencies;
use crate::results::{Measurement, Round};
use crate::session::Problem;
use crate::stop::Stop;
use crate::target::Target;

/// Messages of one connection that may wait for their echoes in an open loop, if a plan has no
/// reason for another limit. A connection that is further behind is given up.
pub const BACKLOG_MAX: u64 = 1_000_000;
/// Parts that a measurement is divided into, at most: of a second each, or longer where it takes
/// longer than that many seconds. Each has a histogram of its own, of 280 KiB.
pub const SECONDS_MAX: u32 = 300;
/// Connections, at most.
pub const CONNECTIONS_MAX: usize = 1_000_000;
/// Messages that may be under way on a connection of a closed loop, at most.
pub const PIPELINE_MAX: usize = 65_536;
/// How often the sums are taken, and progress is told.
const COLLECTION: Duration = Duration::from_millis(250);
/// How often it is seen whether the load is to stop.
const STOP_CHECK: Duration = Duration::from_millis(20);
/// Time for the threads to start before the first message is due, and for each connection.
const LEAD: Duration = Duration::from_millis(20);
const LEAD_EACH: Duration = Duration::from_micros(10);
/// Descriptors for everything but connections.
const DESCRIPTORS_BESIDE: u64 = 64;
/// Descriptors of each thread.
const DESCRIPTORS_THREAD: u64 = 4;

/// How fast messages leave.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rate {
    /// So many a second over all connections, whatever comes back: an open loop.
    PerSecond(f64),
    /// As fast as echoes come, with a number of messages under way on each connection: a closed
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
    /// Messages under way on each connection, for [`Rate::Max`].
    pub pipeline: usize,
    /// Which messages.
    pub mix: Mix,
    /// Whether messages are compressed by permessage-deflate.
    pub compresses: bool,
    /// After how many messages a connection is closed and opened again. What is due meanwhile waits,
    /// and its latency has this time in it.
    pub reconnect_every: Option<u64>,
    /// How long messages count.
    pub duration: Duration,
    /// How long they do not count before that.
    pub warm_up: Duration,
    /// Threads that send and receive, each with connections of its own; not more than there are
    /// connections.
    pub threads: usize,
    /// The processors for the threads, in this order and from the front again when they run out;
    /// empty: the threads are not pinned.
    pub cpus: Vec<usize>,
    /// The processors of the server, where they are known, for a warning.
    pub server_cpus: Option<Vec<usize>>,
    /// Of how many messages of a connection one is compared with its echo; 1: all are. Form and
    /// length are checked of all.
    pub verify_every: u64,
    /// Whether the threads stay awake for the last [`SPIN`] before a message is due, and so hit its
    /// time more closely. They take a whole processor each where messages are closer than that.
    pub spins: bool,
    /// Messages of one connection that may wait for their echoes in an open loop: [`BACKLOG_MAX`].
    pub backlog_max: u64,
    /// What payloads and masking keys follow from.
    pub seed: u64,
}

impl Plan {
    /// One connection, and a message of 16 octets of text a millisecond for ten seconds.
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
            threads: 1,
            cpus: Vec::new(),
            server_cpus: None,
            verify_every: 1,
            spins: false,
            backlog_max: BACKLOG_MAX,
            seed: 1,
        }
    }

    /// The threads that are started.
    fn threads(&self) -> usize {
        self.threads.min(self.connections)
    }

    /// Whether the server echoes octets and knows no messages.
    fn is_plain(&self) -> bool {
        self.target.websocket.is_none()
    }

    fn check(&self) -> Result<(), LoadError> {
        let asks = |complaint: &str| Err(LoadError::Plan(complaint.to_owned()));
        if !(1..=CONNECTIONS_MAX).contains(&self.connections) {
            return asks("the connections are from 1 to 1000000");
        }
        if self.threads == 0 {
            return asks("at least one thread sends");
        }
        if let Rate::PerSecond(rate) = self.rate
            && !(rate.is_finite() && rate > 0.0)
        {
            return asks("the rate is more than 0 messages a second");
        }
        if !(1..=PIPELINE_MAX).contains(&self.pipeline) {
            return asks("the messages under way on a connection are from 1 to 65536");
        }
        if self.duration.is_zero() {
            return asks("the duration is more than 0");
        }
        if self.verify_every == 0 || self.reconnect_every == Some(0) || self.backlog_max == 0 {
            return asks("counts of messages are more than 0");
        }
        if self.is_plain() {
            if self.compresses {
                return asks(
                    "plain octets are not compressed; leave compression off, or use ws://",
                );
            }
            if self.mix.kinds().iter().any(|kind| kind.size == 0 || kind.fragments > 1) {
                return asks(
                    "plain octets have no empty messages and no fragments; write another mix, or \
                     use ws://",
                );
            }
        }
        let allowed = core_affinity::get_core_ids().unwrap_or_default();
        match self.cpus.iter().find(|&&cpu| allowed.iter().all(|core| core.id != cpu)) {
            Some(&cpu) => Err(LoadError::Cpu(cpu)),
            None => Ok(()),
        }
    }
}

/// Why there is no load.
#[derive(Debug)]
pub enum LoadError {
    /// The plan asks for something that cannot be; what, and what to ask for instead.
    Plan(String),
    /// The server cannot be measured.
    Server(Problem),
    /// This process may not use this processor.
    Cpu(usize),
    /// There are more connections than descriptors: what is needed, and what may be had.
    Descriptors(u64, u64),
    /// The system refused something.
    System(&'static str, io::Error),
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LoadError::Plan(complaint) => f.write_str(complaint),
            LoadError::Server(problem) => problem.fmt(f),
            LoadError::Cpu(cpu) => {
                write!(f, "this process may not use processor {cpu}; see taskset -pc $$")
            }
            LoadError::Descriptors(needed, allowed) => write!(
                f,
                "so many connections need {needed} descriptors, and this process may have {allowed}; \
                 raise the hard limit (ulimit -Hn, LimitNOFILE=), or ask for fewer connections"
            ),
            LoadError::System(what, error) => write!(f, "cannot {what}: {error}"),
        }
    }
}

impl std::error::Error for LoadError {}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress {
    /// How long messages have counted, or 0 in the warm-up.
    pub elapsed: Duration,
    /// Echoes a second since the last time, those of the warm-up too.
    pub rate: f64,
    /// Messages echoed so far that count.
    pub messages: u64,
    /// Their latencies, in nanoseconds.
    pub p50_ns: u64,
    /// Likewise.
    pub p99_ns: u64,
    /// Messages lost, echoes that were wrong, and connections that failed.
    pub errors: u64,
}

/// What was measured.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// The figures. `lost` are the messages whose echoes did not come in time or whose connections
    /// failed; `rounds` are the seconds. A message belongs to the second in which its echo came; what
    /// came after the end belongs to the last one, which is longer by that.
    pub measurement: Measurement,
    /// The seconds: begin and end, after the measurement's begin, and the latencies.
    pub seconds: Vec<(Duration, Duration, Latencies)>,
    /// What to keep in mind when reading the figures, in sentences.
    pub warnings: Vec<String>,
    /// Whether it ended early, and what by.
    pub cut_short: Option<String>,
    /// Connections that could not be opened, or failed later.
    pub connections_failed: u64,
    /// Connections that were closed and opened again as planned.
    pub reconnects: u64,
    /// Echoes that differ from their messages. They are no messages of the measurement.
    pub wrong: u64,
    /// How far after its time a message was looked at: the generator's own delay, which the
    /// latencies of an open loop contain.
    pub lag: Latencies,
    /// The first problems of connections, in sentences.
    pub problems: Vec<String>,
}

/// Loads a server as planned, until the time is over or `stop` is requested. `progress` is called about
/// four times a second, on this thread.
///
/// # Errors
///
/// When the plan cannot be carried out, or the first connection cannot be opened. Problems of some
/// connections later are counted, and the others go on.
pub fn run(
    plan: &Plan,
    stop: &Stop,
    progress: &mut dyn FnMut(&Progress),
) -> Result<Outcome, LoadError> {
    plan.check()?;
    provide_descriptors(plan)?;
    let links = opener::open_all(plan, stop)?;
    let threads = plan.threads();
    let payloads = Payloads::new(&plan.mix, plan.seed, plan.compresses);
    let (reopening, openers) = Reopening::of(plan)?;
    let tallies: Vec<Mutex<Tally>> = (0..threads).map(|_| Mutex::default()).collect();
    let begin_ns = now_ns() + (LEAD + LEAD_EACH * plan.connections as u32).as_nanos() as u64;
    let window = Window::new(begin_ns, plan.warm_up, plan.duration);
    let pace = match plan.rate {
        Rate::PerSecond(rate) => Pace::Open(Schedule::new(begin_ns, plan.connections, rate)),
        Rate::Max => Pace::Closed { begin_ns },
    };
    let mut all_parts: Vec<Parts<'_>> = tallies
        .iter()
        .zip(reopening)
        .enumerate()
        .map(|(at, (tally, reopening))| Parts {
            plan,
            pace,
            window,
            stop,
            tally,
            payloads: payloads.clone(),
            reopening,
            links: Vec::new(),
            cpu: plan.cpus.get(at % plan.cpus.len().max(1)).copied(),
        })
        .collect();
    for (number, link) in links.into_iter().enumerate() {
        all_parts[number % threads].links.push((number, link));
    }
    let mut sums = Sums::new(window, plan.duration);
    let ended = thread::scope(|scope| {
        for (at, opener) in openers.into_iter().enumerate() {
            let opener = move || opener.run(plan, at);
            let named = thread::Builder::new().name(format!("opener-{at}"));
            named.spawn_scoped(scope, opener).map_err(no_thread)?;
        }
        let (alive, all) = mpsc::channel::<()>();
        let mut handles = Vec::with_capacity(threads);
        for (at, parts) in all_parts.into_iter().enumerate() {
            let alive = alive.clone();
            let work = move || {
                let ended = worker::run(parts);
                drop(alive);
                ended
            };
            let named = thread::Builder::new().name(format!("load-{at}"));
            handles.push(named.spawn_scoped(scope, work).map_err(no_thread)?);
        }
        drop(alive);
        sums.watch(&tallies, &all, progress);
        let ended = handles.into_iter().map(|handle| handle.join().expect("a worker's panic"));
        ended.collect::<Result<Vec<Ended>, LoadError>>()
    })?;
    sums.collect(&tallies);
    Ok(outcome(plan, window, sums, tallies, &ended))
}

fn no_thread(error: io::Error) -> LoadError {
    LoadError::System("start a thread", error)
}

/// Raises the soft limit on descriptors as far as it goes, and sees whether that is enough.
fn provide_descriptors(plan: &Plan) -> Result<(), LoadError> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let needed =
        plan.connections as u64 + plan.threads() as u64 * DESCRIPTORS_THREAD + DESCRIPTORS_BESIDE;
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    // None is no limit.
    if current.is_none_or(|current| current >= needed) {
        return Ok(());
    }
    // Where it is refused, the limit is seen to be too low.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    match getrlimit(Resource::Nofile).current {
        Some(allowed) if allowed < needed => Err(LoadError::Descriptors(needed, allowed)),
        Some(_) | None => Ok(()),
    }
}

/// What the workers' tallies come to, second by second.
struct Sums {
    window: Window,
    /// How long a second is here.
    second_ns: u64,
    second_begin_ns: u64,
    second: Latencies,
    seconds: Vec<(u64, u64, Latencies)>,
    total: Latencies,
    echoes: u64,
    errors: u64,
}

impl Sums {
    fn new(window: Window, duration: Duration) -> Sums {
        let seconds = duration.as_secs_f64() / f64::from(SECONDS_MAX);
        Sums {
            window,
            second_ns: seconds.ceil().max(1.0) as u64 * 1_000_000_000,
            second_begin_ns: window.begin_ns,
            second: Latencies::default(),
            seconds: Vec::new(),
            total: Latencies::default(),
            echoes: 0,
            errors: 0,
        }
    }

    /// Takes the sums and tells progress until all workers have ended.
    fn watch(
        &mut self,
        tallies: &[Mutex<Tally>],
        all: &mpsc::Receiver<()>,
        progress: &mut dyn FnMut(&Progress),
    ) {
        let collection_ns = COLLECTION.as_nanos() as u64;
        // The times are counted from the begin of what counts, so that seconds end at seconds.
        let mut next_ns = self.window.begin_ns;
        next_ns -= (next_ns.saturating_sub(now_ns()) / collection_ns) * collection_ns;
        let mut last = (now_ns(), 0);
        loop {
            let wait = Duration::from_nanos(next_ns.saturating_sub(now_ns()));
            match all.recv_timeout(wait) {
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Ok(()) | Err(mpsc::RecvTimeoutError::Disconnected) => return,
            }
            self.collect(tallies);
            let now_ns = now_ns();
            // A rest of less than half a second belongs to the one before it.
            let rest_ns = self.window.end_ns.saturating_sub(now_ns);
            if now_ns >= self.second_begin_ns + self.second_ns && rest_ns * 2 >= self.second_ns {
                self.end_second(now_ns);
            }
            let interval_s = (now_ns - last.0) as f64 / 1e9;
            let elapsed_ns = now_ns.min(self.window.end_ns).saturating_sub(self.window.begin_ns);
            progress(&Progress {
                elapsed: Duration::from_nanos(elapsed_ns),
                rate: (self.echoes - last.1) as f64 / interval_s,
                messages: self.total.count(),
                p50_ns: self.total.percentile_ns(50.0),
                p99_ns: self.total.percentile_ns(99.0),
                errors: self.errors,
            });
            last = (now_ns, self.echoes);
            while next_ns <= now_ns {
                next_ns += collection_ns;
            }
        }
    }

    /// Takes what was recorded since the last time.
    fn collect(&mut self, tallies: &[Mutex<Tally>]) {
        [self.echoes, self.errors] = [0, 0];
        for tally in tallies {
            // An empty one is made beforehand, for no worker is to wait for that.
            let mut latencies = Latencies::default();
            let mut tally = tally.lock().expect("no worker panics");
            std::mem::swap(&mut tally.latencies, &mut latencies);
            self.echoes += tally.echoes;
            self.errors += tally.lost + tally.wrong + tally.failed;
            drop(tally);
            self.second.add(&latencies);
            self.total.add(&latencies);
        }
    }

    fn end_second(&mut self, end_ns: u64) {
        self.seconds.push((self.second_begin_ns, end_ns, std::mem::take(&mut self.second)));
        self.second_begin_ns = end_ns;
    }
}

fn outcome(
    plan: &Plan,
    planned: Window,
    mut sums: Sums,
    tallies: Vec<Mutex<Tally>>,
    ended: &[Ended],
) -> Outcome {
    let mut tally = Tally::default();
    for other in tallies {
        tally.add(other.into_inner().expect("no worker panics"));
    }
    // With the stop flag all end at once; where the connections of one worker have failed, the
    // others went on.
    let ended_ns = ended.iter().map(|ended| ended.end_ns).max().unwrap_or(planned.end_ns);
    let end_ns = ended_ns.max(tally.last_ns).max(planned.begin_ns);
    match sums.seconds.last_mut() {
        // Of an early end less than half a second may be left.
        Some(last) if (end_ns - last.1.min(end_ns)) * 2 < sums.second_ns => {
            last.1 = last.1.max(end_ns);
            last.2.add(&sums.second);
        }
        Some(_) | None => sums.end_second(end_ns),
    }
    let since = |time_ns: u64| Duration::from_nanos(time_ns - planned.begin_ns);
    let seconds: Vec<(Duration, Duration, Latencies)> = sums
        .seconds
        .into_iter()
        .map(|(begin_ns, end_ns, latencies)| (since(begin_ns), since(end_ns), latencies))
        .collect();
    let rounds = seconds.iter().map(|(begin, end, latencies)| {
        Round::new(begin.as_secs_f64(), (*end - *begin).as_secs_f64(), latencies)
    });
    let measurement = Measurement {
        name: plan.target.to_string(),
        description: description(plan),
        messages: sums.total.count(),
        lost: tally.lost,
        payload_octets: tally.payload_octets,
        rounds: rounds.collect(),
        latencies: sums.total,
        ..Measurement::default()
    };
    let mut lag = Latencies::default();
    for ended in ended {
        lag.add(&ended.lag);
    }
    let first_problem = tally.problems.first().map_or("", String::as_str);
    let cut_short = if tally.failed == plan.connections as u64 {
        Some(format!("all connections failed; the first problem: {first_problem}"))
    } else if ended_ns < planned.end_ns {
        let [ran, all] = [ended_ns, planned.end_ns]
            .map(|end_ns| end_ns.saturating_sub(planned.begin_ns) as f64 / 1e9);
        Some(format!("it was told to stop after {ran:.1} of {all:.1} seconds"))
    } else {
        None
    };
    let mut outcome = Outcome {
        measurement,
        seconds,
        warnings: Vec::new(),
        cut_short,
        connections_failed: tally.failed,
        reconnects: tally.reconnects,
        wrong: tally.wrong,
        lag,
        problems: tally.problems,
    };
    outcome.warnings = warnings::about(plan, &outcome, ended);
    outcome
}

/// A sentence about what was done.
fn description(plan: &Plan) -> String {
    let plural = if plan.connections == 1 { "" } else { "s" };
    let mut text = match plan.rate {
        Rate::PerSecond(rate) => format!(
            "{} connection{plural}, {rate} messages a second in an open loop, latencies from the \
             scheduled send",
            plan.connections
        ),
        Rate::Max => format!(
            "{} connection{plural}, {} under way on each in a closed loop, latencies from the actual \
             send",
            plan.connections, plan.pipeline
        ),
    };
    text += &format!("; messages {}", plan.mix);
    if plan.compresses {
        text += ", compressed";
    }
    if let Some(count) = plan.reconnect_every {
        text += &format!("; a new connection after {count} messages");
    }
    text
}
