//! Connections are opened here: all at the beginning, and again those that are closed after a number
//! of messages.
//!
//! Opening waits, and so it is done on threads of its own, of which there are few enough that no
//! server's backlog of connections overflows and enough that a long way to it does not add up.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;

use core_affinity::CoreId;
use rustix::event::EventfdFlags;

use super::{LoadError, Plan};
use crate::session::{self, Problem, Session};
use crate::stop::Stop;
use crate::target::Stream;

/// Connections that are being opened at a time, at most.
const OPENERS: usize = 16;

/// A connection that is open and does not wait.
pub(super) struct Link {
    pub(super) stream: Stream,
    pub(super) session: Session,
}

/// Opens connection `number` for the `life`th time.
fn open(plan: &Plan, number: usize, life: u64) -> Result<Link, Problem> {
    let mut stream = Stream::connect(&plan.target.endpoint).map_err(Problem::NoServer)?;
    let seed = plan.seed ^ (number as u64).rotate_left(40) ^ life.rotate_left(16);
    let (session, _) = session::open(&mut stream, &plan.target, plan.compresses, seed)?;
    stream.set_waiting(None).map_err(Problem::Lost)?;
    Ok(Link { stream, session })
}

/// Opens all connections of a plan, in their order. What the first one meets, all would.
pub(super) fn open_all(plan: &Plan, stop: &Stop) -> Result<Vec<Result<Link, Problem>>, LoadError> {
    let mut links = vec![Ok(open(plan, 0, 0).map_err(LoadError::Server)?)];
    let next = AtomicUsize::new(1);
    let opened = Mutex::new(Vec::new());
    let work = || {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= plan.connections || stop.is_requested() {
                return;
            }
            let link = open(plan, number, 0);
            opened.lock().expect("no opener panics").push((number, link));
        }
    };
    thread::scope(|scope| {
        for _ in 1..plan.connections.min(OPENERS + 1) {
            scope.spawn(work);
        }
    });
    let mut opened = opened.into_inner().expect("no opener panics");
    opened.sort_unstable_by_key(|&(number, _)| number);
    links.extend(opened.into_iter().map(|(_, link)| link));
    for link in &links {
        if let Err(Problem::NoServer(error) | Problem::Lost(error)) = link
            && matches!(error.raw_os_error(), Some(EMFILE | ENFILE))
        {
            let needed = plan.connections as u64;
            return Err(LoadError::Descriptors(needed, links.iter().flatten().count() as u64));
        }
    }
    // Told to stop before all were open.
    let stopped = || Err(Problem::Lost(io::ErrorKind::Interrupted.into()));
    links.resize_with(plan.connections, stopped);
    Ok(links)
}

/// This process may have no more descriptors, or the system has none.
const EMFILE: i32 = 24;
const ENFILE: i32 = 23;

/// A connection to open again.
struct Job {
    /// Which worker it belongs to, and which of its connections it is.
    worker: usize,
    index: usize,
    number: usize,
    life: u64,
}

/// Which of a worker's connections, and what became of it.
type Opened = (usize, Result<Link, Problem>);

/// A worker's way to have connections opened again.
pub(super) struct Reopening {
    worker: usize,
    jobs: mpsc::Sender<Job>,
    opened: mpsc::Receiver<Opened>,
    /// Readable when something was opened.
    pub(super) bell: Arc<OwnedFd>,
}

impl Reopening {
    /// One for each worker, and the openers behind them; none where the plan needs none.
    pub(super) fn of(plan: &Plan) -> Result<(Vec<Option<Reopening>>, Vec<Opener>), LoadError> {
        let threads = plan.threads();
        if plan.reconnect_every.is_none() {
            return Ok(((0..threads).map(|_| None).collect(), Vec::new()));
        }
        let (jobs, queue) = mpsc::channel();
        let queue = Arc::new(Mutex::new(queue));
        let (mut workers, mut replies) = (Vec::new(), Vec::new());
        for worker in 0..threads {
            let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
            let bell = rustix::event::eventfd(0, flags)
                .map_err(|error| LoadError::System("make an eventfd", error.into()))?;
            let bell = Arc::new(bell);
            let (reply, opened) = mpsc::channel();
            replies.push((reply, bell.clone()));
            workers.push(Some(Reopening { worker, jobs: jobs.clone(), opened, bell }));
        }
        let openers = (0..plan.connections.min(OPENERS))
            .map(|_| Opener { queue: queue.clone(), replies: replies.clone() })
            .collect();
        Ok((workers, openers))
    }

    /// Has a connection opened again.
    pub(super) fn reopen(&self, index: usize, number: usize, life: u64) {
        let job = Job { worker: self.worker, index, number, life };
        self.jobs.send(job).expect("openers outlive the workers");
    }

    /// What was opened since the last time.
    pub(super) fn opened(&self) -> VecDeque<Opened> {
        // Only the bell matters, and not how often it rang.
        let _ = rustix::io::read(&*self.bell, &mut [0; 8]);
        self.opened.try_iter().collect()
    }
}

/// A thread that opens connections again.
pub(super) struct Opener {
    queue: Arc<Mutex<mpsc::Receiver<Job>>>,
    replies: Vec<(mpsc::Sender<Opened>, Arc<OwnedFd>)>,
}

impl Opener {
    /// Works until all workers have ended.
    pub(super) fn run(self, plan: &Plan, at: usize) {
        // The client's work belongs on the client's processors.
        if let Some(&id) = plan.cpus.get(at % plan.cpus.len().max(1)) {
            core_affinity::set_for_current(CoreId { id });
        }
        loop {
            // Whoever waits for the next job holds the lock, and the others wait for it.
            let job = self.queue.lock().expect("no opener panics").recv();
            let Ok(job) = job else { return };
            let link = open(plan, job.number, job.life);
            let (reply, bell) = &self.replies[job.worker];
            // A worker that has ended needs no connection.
            if reply.send((job.index, link)).is_ok() {
                let _ = rustix::io::write(&**bell, &1u64.to_ne_bytes());
            }
        }
    }
}
