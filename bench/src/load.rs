//! A load of many connections on one server, and what it measures.
//!
//! By default the loop is open: each connection has a schedule that does not depend on echoes, and a
//! latency counts from the time at which its message was *due*. When the server stalls, messages keep
//! falling due, and the time that they wait shows in their latencies (no coordinated omission).
//! [`Rate::Max`] closes the loop: a message leaves when an echo has come, and its latency counts from
//! the actual send, so a stall shows in only a few messages. It measures the throughput that a server
//! can reach, not how long a user waits.
//!
//! Every message that was due is counted once: as echoed, wrong, lost or unsent. It belongs to the
//! part of the measurement in which it was due.
//!
//! This module owns the threads. It prints nothing, and it does not know the command line.

mod connection;
mod judge;
mod ledger;
mod mix;
mod opener;
mod payloads;
mod plan;
mod schedule;
mod tally;
mod warnings;
mod worker;

use std::convert::Infallible;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, SystemTime};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

pub use self::mix::{Kind, Mix, SIZE_MAX};
pub use self::plan::{
    CLOSE_TIMEOUT, CONNECTIONS_MAX, DRAIN_DEFAULT, LoadError, PIPELINE_MAX, Plan, Rate,
};
pub use self::schedule::PARTS_MAX;
pub use self::tally::Counts;
pub use self::worker::SPIN;

use self::ledger::Pace;
use self::opener::{Link, Openers, Reopening};
use self::payloads::{Payloads, Pool};
use self::schedule::{Schedule, Window, now_ns};
use self::tally::{Sums, Tally};
use self::worker::{Assignment, Ended};
use crate::latency::Latencies;
use crate::problem::Problem;
use crate::results::{LoadFigures, Measurement};
use crate::stop::Stop;
use crate::verdict::Farewells;

/// How often the sums are taken and progress is reported.
const COLLECTION: Duration = Duration::from_millis(250);
/// A thread that wakes this much too late did not run meanwhile.
const PAUSE_MIN: Duration = Duration::from_millis(500);
/// Time for the threads to start before the first message is due, and for each connection.
const LEAD: Duration = Duration::from_millis(20);
const LEAD_EACH: Duration = Duration::from_micros(10);
/// Descriptors for everything but threads and connections.
const DESCRIPTORS_OTHER: u64 = 64;
/// Descriptors of each thread.
const DESCRIPTORS_THREAD: u64 = 4;

/// The state of a load that runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress {
    /// The time since the warm-up ended; 0 during the warm-up.
    pub elapsed: Duration,
    /// Echoes per second since the last report, including those of the warm-up.
    pub rate: f64,
    /// Messages echoed so far, without those of the warm-up.
    pub messages: u64,
    /// The median of their latencies, in nanoseconds.
    pub p50_ns: u64,
    /// The 99th percentile of their latencies, in nanoseconds.
    pub p99_ns: u64,
    /// Wrong echoes, lost messages and failed connections together, including the warm-up's.
    pub errors: u64,
}

/// What the caller is told while a load runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Event {
    /// All connections are open, and nothing was sent on them.
    Opened,
    /// About four times a second.
    Progress(Progress),
    /// Nothing is in flight any more, and no connection was closed because the load is over.
    Drained,
}

/// What was measured.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// The figures. Each of `rounds` is a part of a second; a message belongs to the part in which it
    /// was due. `latencies` includes lost messages, as if their echoes had come when the load stopped
    /// waiting.
    pub measurement: Measurement,
    /// The parts: when each began and ended, counted from the end of the warm-up, and its latencies.
    pub parts: Vec<(Duration, Duration, Latencies)>,
    /// When messages began to count.
    pub started_at: SystemTime,
    /// The counts of the warm-up's messages.
    pub warm_up: Counts,
    /// What to keep in mind when reading the figures, in sentences.
    pub warnings: Vec<String>,
    /// Why it ended early, if it did.
    pub cut_short: Option<String>,
    /// How the server closed the connections on which nothing was in flight any more.
    pub farewells: Farewells,
    /// The first problems of connections, in sentences.
    pub problems: Vec<String>,
}

impl Outcome {
    /// The counts of all messages but the warm-up's.
    pub fn counts(&self) -> Counts {
        let Measurement { messages, wrong, lost, unsent, unasked, .. } = self.measurement;
        Counts { echoed: messages, wrong, lost, unsent, unasked }
    }

    /// The figures that only a load has.
    pub fn figures(&self) -> &LoadFigures {
        self.measurement.load.as_ref().expect("a load has figures of its own")
    }

    /// Whether all connections failed.
    pub fn has_failed(&self) -> bool {
        self.figures().connections_failed == self.figures().connections
    }
}

/// Loads a server as planned, until the time is over or `stop` is requested. Calls `tell` on the calling
/// thread, which is confined to the CPUs of the plan meanwhile. The load waits for `tell`, but for progress.
///
/// # Errors
///
/// When the plan cannot be carried out, or the first connection cannot be opened. Problems of some
/// connections later are counted, and the others go on.
pub fn run(plan: &Plan, stop: &Stop, tell: &mut dyn FnMut(Event)) -> Result<Outcome, LoadError> {
    plan.check()?;
    provide_descriptors(plan)?;
    let _confined = Confined::to(plan.thread_cpus());
    let openers = Openers::start(&Arc::new(plan.clone()), stop)?;
    let Some(links) = openers.open_all(plan, stop)? else {
        return Ok(Outcome {
            cut_short: Some("stopped while connections were being opened".to_owned()),
            ..Run::new(plan, stop).outcome(Tally::default(), &[])
        });
    };
    tell(Event::Opened);
    let tallies: Vec<Mutex<Tally>> = (0..plan.threads()).map(|_| Mutex::default()).collect();
    let mut run = Run::new(plan, stop);
    run.tls = links.iter().flatten().find_map(|link| link.stream.agreed());
    let assignments = run.assignments(&tallies, links, &openers)?;
    let ended = run.work(assignments, &tallies, tell)?;
    Ok(run.outcome(tally::total(tallies), &ended))
}

/// Confines the calling thread to some CPUs until this is dropped, so that its work does not disturb
/// the server.
struct Confined(Option<CpuSet>);

impl Confined {
    fn to(cpus: &[usize]) -> Confined {
        let mut set = CpuSet::new();
        cpus.iter().filter(|&&cpu| cpu < CpuSet::MAX_CPU).for_each(|&cpu| set.set(cpu));
        let before = sched_getaffinity(None).ok().filter(|_| !cpus.is_empty());
        // If the kernel refuses, the workers fail with the reason.
        Confined(before.filter(|_| sched_setaffinity(None, &set).is_ok()))
    }
}

impl Drop for Confined {
    fn drop(&mut self) {
        if let Confined(Some(before)) = self {
            let _ = sched_setaffinity(None, before);
        }
    }
}

/// Raises the soft limit on descriptors to the hard limit if needed, and checks that it is enough.
fn provide_descriptors(plan: &Plan) -> Result<(), LoadError> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let needed =
        plan.connections as u64 + plan.threads() as u64 * DESCRIPTORS_THREAD + DESCRIPTORS_OTHER;
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    // `None` means that there is no limit.
    if current.is_none_or(|current| current >= needed) {
        return Ok(());
    }
    // If the kernel refuses, the limit read below is too low.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    match getrlimit(Resource::Nofile).current {
        Some(allowed) if allowed < needed => Err(LoadError::Descriptors { needed, allowed }),
        Some(_) | None => Ok(()),
    }
}

/// A load in progress.
struct Run<'a> {
    plan: &'a Plan,
    stop: &'a Stop,
    pace: Pace,
    window: Window,
    started_at: SystemTime,
    sums: Sums,
    /// The time in which this process did not run.
    paused: Duration,
    /// What TLS has agreed on.
    tls: Option<String>,
}

impl<'a> Run<'a> {
    /// A load whose first message is due once all threads have had time to start.
    fn new(plan: &'a Plan, stop: &'a Stop) -> Run<'a> {
        let lead = LEAD + LEAD_EACH * plan.connections as u32;
        let begin_ns = now_ns() + lead.as_nanos() as u64;
        let window = Window::new(begin_ns, plan.warm_up, plan.duration);
        Run {
            plan,
            stop,
            pace: match plan.rate {
                Rate::PerSecond(rate) => {
                    Pace::Open(Schedule::new(begin_ns, plan.connections, rate))
                }
                Rate::Max => Pace::Closed { begin_ns },
            },
            window,
            started_at: SystemTime::now() + lead + plan.warm_up,
            sums: Sums::new(window),
            paused: Duration::ZERO,
            tls: None,
        }
    }

    /// What each worker starts with.
    fn assignments<'b>(
        &self,
        tallies: &'b [Mutex<Tally>],
        links: Vec<Result<Link, Problem>>,
        openers: &Openers,
    ) -> Result<Vec<Assignment<'b>>, LoadError>
    where
        'a: 'b,
    {
        let plan = self.plan;
        let pool = if plan.compresses { Pool::Compressible } else { Pool::Random };
        let payloads = Payloads::new(&plan.mix, plan.seed, pool);
        let mut assignments = Vec::with_capacity(tallies.len());
        for (at, tally) in tallies.iter().enumerate() {
            let reopens = plan.reconnect_every.is_some();
            assignments.push(Assignment {
                plan,
                pace: self.pace,
                window: self.window,
                stop: self.stop,
                tally,
                payloads: payloads.clone(),
                reopening: reopens.then(|| Reopening::new(openers)).transpose()?,
                links: Vec::new(),
                cpu: plan.cpus.get(at % plan.cpus.len().max(1)).copied(),
            });
        }
        let threads = assignments.len();
        for (number, link) in links.into_iter().enumerate() {
            assignments[number % threads].links.push((number, link));
        }
        Ok(assignments)
    }

    /// Runs the workers to their end, and takes sums meanwhile.
    fn work(
        &mut self,
        assignments: Vec<Assignment<'_>>,
        tallies: &[Mutex<Tally>],
        tell: &mut dyn FnMut(Event),
    ) -> Result<Vec<Ended>, LoadError> {
        let ended = thread::scope(|scope| {
            let (draining, all_drained) = mpsc::channel::<Infallible>();
            let (alive, all_ended) = mpsc::channel::<Infallible>();
            // Dropped to let the workers close.
            let mut gates = Vec::with_capacity(assignments.len());
            let mut handles = Vec::with_capacity(assignments.len());
            for (at, assignment) in assignments.into_iter().enumerate() {
                let (gate, may_close) = mpsc::channel::<Infallible>();
                gates.push(gate);
                let (draining, alive) = (draining.clone(), alive.clone());
                let drained = move || {
                    drop(draining);
                    let _ = may_close.recv();
                };
                let work = move || {
                    let ended = worker::run(assignment, drained);
                    drop(alive);
                    ended
                };
                let named = thread::Builder::new().name(format!("load-{at}"));
                handles.push(named.spawn_scoped(scope, work).map_err(LoadError::no_thread)?);
            }
            drop((draining, alive));
            self.watch(&all_drained, tallies, tell);
            tell(Event::Drained);
            drop(gates);
            self.watch(&all_ended, tallies, tell);
            let ended = handles.into_iter().map(|handle| handle.join().expect("no worker panics"));
            ended.collect::<Result<Vec<Ended>, LoadError>>()
        })?;
        self.sums.collect(tallies);
        Ok(ended)
    }

    /// Takes the sums and reports progress until all workers have dropped their sender.
    fn watch(
        &mut self,
        all: &mpsc::Receiver<Infallible>,
        tallies: &[Mutex<Tally>],
        tell: &mut dyn FnMut(Event),
    ) {
        loop {
            let begin_ns = now_ns();
            match all.recv_timeout(COLLECTION) {
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
            }
            let late = Duration::from_nanos(now_ns() - begin_ns).saturating_sub(COLLECTION);
            if late >= PAUSE_MIN {
                self.paused += late;
            }
            self.sums.collect(tallies);
            tell(Event::Progress(self.sums.progress()));
        }
    }

    fn outcome(self, mut tally: Tally, ended: &[Ended]) -> Outcome {
        let Run { plan, stop, pace, window: planned, started_at, sums, paused, tls } = self;
        // A worker whose connections have all failed ends early while the others go on, so it does not
        // say when the load ended, unless all have failed. A stop ends all workers at once.
        let (failed, whole): (Vec<&Ended>, Vec<&Ended>) =
            ended.iter().partition(|ended| ended.has_failed);
        let of = if whole.is_empty() { &failed } else { &whole };
        let end_ns = of.iter().map(|ended| ended.end_ns).max().unwrap_or(0);
        if let Pace::Open(schedule) = pace {
            for ended in ended {
                let end_ns = if ended.has_failed { end_ns } else { ended.end_ns };
                count_unsent(&schedule, (planned.begin_ns, end_ns), &ended.sent, &mut tally);
            }
        }
        let window = planned.ended_at(end_ns);
        let total = sums.total.latencies.clone();
        let parts = sums.into_parts(window);
        let rounds = parts.iter().map(|(begin, end, part)| tally::round(*begin, *end, part));
        let mut lag = Latencies::default();
        ended.iter().for_each(|ended| lag.add(&ended.lag));
        let measurement = Measurement {
            name: plan.target.to_string(),
            description: match tls {
                Some(tls) => format!("{}; over {tls}", plan.description()),
                None => plan.description(),
            },
            messages: tally.counted.echoed,
            wrong: tally.counted.wrong,
            unasked: tally.counted.unasked,
            lost: tally.counted.lost,
            unsent: tally.counted.unsent,
            payload_bytes: tally.payload_bytes,
            rounds: rounds.collect(),
            latencies: total,
            load: Some(LoadFigures {
                rate_asked: plan.rate_asked(),
                connections: plan.connections as u64,
                connections_failed: tally.failed,
                reconnects: tally.reconnects,
                lags: lag,
            }),
            ..Measurement::default()
        };
        let first_problem = tally.problems.first().map_or("", String::as_str);
        let cut_short = if tally.failed == plan.connections as u64 {
            Some(format!("all connections failed; the first problem: {first_problem}"))
        } else if window != planned {
            let [ran, all] = [window, planned].map(|window| window.length_ns() as f64 / 1e9);
            Some(format!("stopped after {ran:.1} of {all:.1} seconds"))
        } else {
            None
        };
        let parts = parts.into_iter().map(|(begin, end, part)| (begin, end, part.latencies));
        let mut outcome = Outcome {
            measurement,
            parts: parts.collect(),
            started_at,
            warm_up: tally.warm_up,
            warnings: Vec::new(),
            cut_short,
            farewells: tally.farewells,
            problems: tally.problems,
        };
        let pause = warnings::Pause { lost: paused, was_suspended: stop.take_suspension() };
        outcome.warnings = warnings::about(plan, &outcome, ended, pause);
        outcome
    }
}

/// Counts the messages that were due and not sent. Of `times`, the first is the end of the warm-up and
/// the second that of the load, in nanoseconds.
fn count_unsent(schedule: &Schedule, times: (u64, u64), sent: &[(usize, u64)], tally: &mut Tally) {
    let begin_turns = schedule.turns_before(times.0.min(times.1));
    let end_turns = schedule.turns_before(times.1);
    for &(connection, sent) in sent {
        let begin = schedule.messages_in(begin_turns, connection);
        let end = schedule.messages_in(end_turns, connection);
        tally.warm_up.unsent += begin.saturating_sub(sent);
        tally.counted.unsent += end.saturating_sub(sent.max(begin));
    }
}
