//! Threads that open connections: all at the beginning, and again those that were closed after a
//! number of messages.
//!
//! Opening waits, in the resolver even in a way that nothing can interrupt. So it has threads of its
//! own that nobody waits for: they end when they have no more work, and a load that is over or was
//! told to stop leaves them behind. There are few enough that no server's backlog of connections
//! overflows, and enough that a long way to it does not add up.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use rustix::event::EventfdFlags;

use super::{LoadError, Plan};
use crate::opening::{self, Compression, Opening};
use crate::problem::Problem;
use crate::stop::Stop;

/// Connections that are being opened at a time, at most.
const OPENERS: usize = 16;
/// How often it is seen, while connections are opened, whether the load is to stop.
const STOP_CHECK: Duration = Duration::from_millis(20);

/// A connection that is open, whose socket does not wait.
pub(super) type Link = opening::Opened;

/// Opens connection `number` for the `life`th time.
fn open(plan: &Plan, number: usize, life: u64, stop: &Stop) -> Result<Link, Problem> {
    let seed = plan.seed ^ (number as u64).rotate_left(40) ^ life.rotate_left(16);
    let compression = if plan.compresses { Compression::Deflate } else { Compression::Off };
    Opening { compression, ..Opening::new(&plan.target, seed) }.open(stop)
}

/// Which of the connections of whoever asked, and what became of opening it.
type Opened = (usize, Result<Link, Problem>);

/// A connection to open.
struct Job {
    number: usize,
    life: u64,
    /// What the connection is called in the reply.
    index: usize,
    reply: mpsc::Sender<Opened>,
    /// Rung after the reply, for those who wait for other things too.
    bell: Option<Arc<OwnedFd>>,
}

/// The threads, as long as anybody may have work for them.
#[derive(Clone)]
pub(super) struct Openers {
    jobs: mpsc::Sender<Job>,
}

impl Openers {
    /// Starts them. They inherit the CPUs of this thread.
    pub(super) fn start(plan: &Arc<Plan>, stop: &Stop) -> Result<Openers, LoadError> {
        let (jobs, queue) = mpsc::channel();
        let queue = Arc::new(Mutex::new(queue));
        for at in 0..plan.connections.min(OPENERS) {
            let (plan, queue, stop) = (Arc::clone(plan), Arc::clone(&queue), stop.clone());
            thread::Builder::new()
                .name(format!("opener-{at}"))
                .spawn(move || work(&plan, &queue, &stop))
                .map_err(LoadError::no_thread)?;
        }
        Ok(Openers { jobs })
    }

    /// Opens all connections of a plan; gives them in their order, or nothing if it was told to stop
    /// before.
    ///
    /// # Errors
    ///
    /// What the first connection meets, for all would; and that there are too few descriptors.
    pub(super) fn open_all(
        &self,
        plan: &Plan,
        stop: &Stop,
    ) -> Result<Option<Vec<Result<Link, Problem>>>, LoadError> {
        let (reply, opened) = mpsc::channel();
        let ask = |number| {
            let job = Job { number, life: 0, index: number, reply: reply.clone(), bell: None };
            self.jobs.send(job).expect("the openers are there as long as this");
        };
        ask(0);
        let Some((_, first)) = receive(&opened, stop) else { return Ok(None) };
        let mut links = vec![(0, Ok(first.map_err(LoadError::Server)?))];
        (1..plan.connections).for_each(ask);
        while links.len() < plan.connections {
            let Some(link) = receive(&opened, stop) else { return Ok(None) };
            if link.1.as_ref().is_err_and(Problem::is_out_of_descriptors) {
                let allowed = links.iter().filter(|(_, link)| link.is_ok()).count() as u64;
                return Err(LoadError::Descriptors { needed: plan.connections as u64, allowed });
            }
            links.push(link);
        }
        links.sort_unstable_by_key(|&(number, _)| number);
        Ok(Some(links.into_iter().map(|(_, link)| link).collect()))
    }
}

/// The next reply, or nothing if the load is to stop.
fn receive(opened: &mpsc::Receiver<Opened>, stop: &Stop) -> Option<Opened> {
    loop {
        if stop.is_requested() {
            return None;
        }
        match opened.recv_timeout(STOP_CHECK) {
            Ok((_, Err(Problem::Stopped))) => return None,
            Ok(opened) => return Some(opened),
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => unreachable!("this side holds a sender"),
        }
    }
}

/// Works until there can be no more jobs.
fn work(plan: &Plan, queue: &Mutex<mpsc::Receiver<Job>>, stop: &Stop) {
    loop {
        // Whoever waits for the next job holds the lock, and the others wait for it.
        let job = queue.lock().expect("no opener panics").recv();
        let Ok(Job { number, life, index, reply, bell }) = job else { return };
        let link = open(plan, number, life, stop);
        // Whoever asked may be gone.
        if reply.send((index, link)).is_ok()
            && let Some(bell) = bell
        {
            let _ = rustix::io::write(&*bell, &1u64.to_ne_bytes());
        }
    }
}

/// A worker's way to have connections opened again.
pub(super) struct Reopening {
    openers: Openers,
    reply: mpsc::Sender<Opened>,
    opened: mpsc::Receiver<Opened>,
    /// Readable when something was opened.
    pub(super) bell: Arc<OwnedFd>,
}

impl Reopening {
    /// One for a worker.
    pub(super) fn new(openers: &Openers) -> Result<Reopening, LoadError> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let bell = rustix::event::eventfd(0, flags)
            .map_err(|error| LoadError::System("make an eventfd", io::Error::from(error)))?;
        let (reply, opened) = mpsc::channel();
        Ok(Reopening { openers: openers.clone(), reply, opened, bell: Arc::new(bell) })
    }

    /// Has a connection opened again.
    pub(super) fn reopen(&self, index: usize, number: usize, life: u64) {
        let (reply, bell) = (self.reply.clone(), Some(Arc::clone(&self.bell)));
        let job = Job { number, life, index, reply, bell };
        self.openers.jobs.send(job).expect("the openers are there as long as this");
    }

    /// What was opened since the last time.
    pub(super) fn opened(&self) -> Vec<Opened> {
        // Only the bell matters, and not how often it rang.
        let _ = rustix::io::read(&*self.bell, &mut [0; 8]);
        self.opened.try_iter().collect()
    }
}
