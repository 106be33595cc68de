//! Threads that open connections: all at the beginning, and later those that were closed after a
//! number of messages.
//!
//! Opening a connection blocks, and a name lookup cannot even be interrupted. So it happens on
//! threads that nobody joins: they end when they have no more work, and a load that is over or
//! stopped leaves them behind. There are few enough not to overflow a server's backlog, and enough to
//! hide the round trips to a distant server.

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

/// The most connections that are being opened at once.
const OPENERS: usize = 16;
/// How often to check, while connections are opened, whether the load is to stop.
const STOP_CHECK: Duration = Duration::from_millis(20);

/// An open connection, whose socket does not block.
pub(super) type Link = opening::Opened;

/// Opens connection `number` for the `life`th time.
fn open(plan: &Plan, number: usize, life: u64, stop: &Stop) -> Result<Link, Problem> {
    let seed = plan.seed ^ (number as u64).rotate_left(40) ^ life.rotate_left(16);
    let compression = if plan.compresses { Compression::Deflate } else { Compression::Off };
    Opening { compression, ..Opening::new(&plan.target, seed) }.open(stop)
}

/// The reply to a [`Job`]: its index, and the connection or why it could not be opened.
type Opened = (usize, Result<Link, Problem>);

/// A connection to open.
struct Job {
    number: usize,
    life: u64,
    /// Identifies the connection in the reply.
    index: usize,
    reply: mpsc::Sender<Opened>,
    /// Made readable after the reply, for a requester that waits with epoll.
    bell: Option<Arc<OwnedFd>>,
}

/// A handle to the threads, which end when the last handle is dropped.
#[derive(Clone)]
pub(super) struct Openers {
    jobs: mpsc::Sender<Job>,
}

impl Openers {
    /// Starts the threads. They inherit the CPUs of the calling thread.
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

    /// Opens all connections of a plan. Returns them in their order, each with the problem that it
    /// met, or nothing if the stop was requested first.
    ///
    /// # Errors
    ///
    /// The problem of the first connection, as all others would meet it too; too few descriptors; and
    /// [`OPENERS`] connections in a row that were not answered in time, as all later ones would have to
    /// be waited for as long.
    pub(super) fn open_all(
        &self,
        plan: &Plan,
        stop: &Stop,
    ) -> Result<Option<Vec<Result<Link, Problem>>>, LoadError> {
        let (reply, opened) = mpsc::channel();
        let ask = |number| {
            let job = Job { number, life: 0, index: number, reply: reply.clone(), bell: None };
            self.jobs.send(job).expect("the openers live as long as their handles");
        };
        ask(0);
        let Some((_, first)) = receive(&opened, stop) else { return Ok(None) };
        let mut links = vec![(0, Ok(first.map_err(LoadError::Server)?))];
        // The rest one by one, so that an error leaves few behind.
        let mut rest = 1..plan.connections;
        rest.by_ref().take(OPENERS).for_each(ask);
        let mut unanswered = 0;
        while links.len() < plan.connections {
            let Some((number, link)) = receive(&opened, stop) else { return Ok(None) };
            let answered = || links.iter().filter(|(_, link)| link.is_ok()).count() as u64;
            if link.as_ref().is_err_and(Problem::is_out_of_descriptors) {
                let needed = plan.connections as u64;
                return Err(LoadError::Descriptors { needed, allowed: answered() });
            }
            unanswered = match &link {
                Err(Problem::TimedOut(..)) => unanswered + 1,
                Err(_) | Ok(_) => 0,
            };
            match link {
                Err(problem) if unanswered == OPENERS => {
                    return Err(LoadError::Silent { answered: answered(), problem });
                }
                link => links.push((number, link)),
            }
            rest.next().into_iter().for_each(ask);
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

/// Works until the last handle is dropped.
fn work(plan: &Plan, queue: &Mutex<mpsc::Receiver<Job>>, stop: &Stop) {
    loop {
        // One thread waits for the next job with the lock held; the others wait for the lock.
        let job = queue.lock().expect("no opener panics").recv();
        let Ok(Job { number, life, index, reply, bell }) = job else { return };
        let link = open(plan, number, life, stop);
        // The requester may be gone.
        if reply.send((index, link)).is_ok()
            && let Some(bell) = bell
        {
            let _ = rustix::io::write(&*bell, &1u64.to_ne_bytes());
        }
    }
}

/// Has connections of one worker opened again.
pub(super) struct Reopening {
    openers: Openers,
    reply: mpsc::Sender<Opened>,
    opened: mpsc::Receiver<Opened>,
    /// Readable when a reply has come.
    pub(super) bell: Arc<OwnedFd>,
}

impl Reopening {
    pub(super) fn new(openers: &Openers) -> Result<Reopening, LoadError> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let bell = rustix::event::eventfd(0, flags)
            .map_err(|error| LoadError::System("make an eventfd", io::Error::from(error)))?;
        let (reply, opened) = mpsc::channel();
        Ok(Reopening { openers: openers.clone(), reply, opened, bell: Arc::new(bell) })
    }

    /// Asks for a connection to be opened for the `life`th time.
    pub(super) fn reopen(&self, index: usize, number: usize, life: u64) {
        let (reply, bell) = (self.reply.clone(), Some(Arc::clone(&self.bell)));
        let job = Job { number, life, index, reply, bell };
        self.openers.jobs.send(job).expect("the openers live as long as their handles");
    }

    /// The replies since the last call.
    pub(super) fn opened(&self) -> Vec<Opened> {
        // How often the bell rang does not matter.
        let _ = rustix::io::read(&*self.bell, &mut [0; 8]);
        self.opened.try_iter().collect()
    }
}
