//! The admin listener: answers those who watch the server, over HTTP, on one thread of its own.
//!
//! That thread reads the counters that the workers write anyway, so it takes nothing from them but, if no other CPU
//! is left, the time of their CPU. It serves at most [`CONNECTIONS_MAX`] connections, with a deadline for each step
//! of each, and keeps no connection open. It has nothing to do with WebSocket connections, and a request changes
//! nothing. [`connections`] asks the workers what is open, at the end of a cycle of theirs. [`http`] reads requests, [`exchange`] is one connection, [`exposition`] writes the metrics.

mod connections;
mod exchange;
mod exposition;
mod http;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::SocketFlags;
use tracing::warn;

use self::exchange::{Exchange, Outlook};
use self::exposition::{Exposition, FORMATS, Process};
use self::http::{PLAIN, Request, Response};
use crate::cpus;
use crate::listen::{self, Address, ListenError, Listening, SocketFile};
use crate::sandbox::{self, Call};
use crate::server::Control;

pub use self::connections::WORKERS_TIME_MAX;
pub use self::exchange::{LINGER_MAX, REQUEST_TIME_MAX, RESPONSE_TIME_MAX};
pub use self::http::{FIELDS_MAX, HEAD_BYTES_MAX};

/// The most connections at a time. Further ones wait in the kernel's queue.
pub const CONNECTIONS_MAX: usize = 16;
/// How long to accept nothing after an accept has failed, such as for want of descriptors.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the thread calls.
const CALLS: &[Call] = &[
    Call::Any(libc::SYS_ppoll),
    #[cfg(target_arch = "x86_64")]
    Call::Any(libc::SYS_poll),
    Call::Any(libc::SYS_accept4),
    Call::Any(libc::SYS_shutdown),
];

/// What can be asked for, for people.
const INDEX: &str = "\
/healthz  200 while the process answers
/readyz   200 while connections are accepted, 503 once the server stops
/metrics  the counters, for Prometheus and OpenMetrics
/debug/connections  what is open: a table, or JSON by the Accept field
";

/// What is the same for as long as the server runs.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The name of the engine.
    pub engine: &'static str,
    /// The CPU of each worker.
    pub cpus: Vec<usize>,
    /// The most connections, over all workers.
    pub connections_max: usize,
    /// The most heap memory for messages and compression, over all workers, in bytes, if there is a limit.
    pub memory_max: Option<usize>,
    /// The pinned memory of all workers, in bytes.
    pub pinned_bytes: usize,
}

/// Opens the listener.
///
/// # Errors
///
/// When the address is in use, or the kernel refuses it.
pub fn open(address: &Address, unix_mode: Option<u32>) -> Result<Listening, ListenError> {
    listen::open(address, listen::Options { workers: 1, unix_mode, ..listen::Options::default() })
}

/// The thread that answers.
#[derive(Debug)]
pub struct Admin {
    address: Address,
    end: Arc<OwnedFd>,
    thread: JoinHandle<()>,
}

impl Admin {
    /// Starts answering on `listening`. The thread keeps off the CPUs of the workers, if it can.
    ///
    /// # Errors
    ///
    /// When the kernel refuses a descriptor or a thread.
    pub fn start(
        listening: Listening,
        control: Control,
        facts: Facts,
        sandbox: sandbox::Policy,
    ) -> io::Result<Admin> {
        let Listening { address, mut sockets, file, .. } = listening;
        let socket = sockets.pop().expect("an address has a socket");
        rustix::io::ioctl_fionbio(&socket, true)?;
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let end = Arc::new(rustix::event::eventfd(0, flags)?);
        let needs = file.as_ref().map(SocketFile::needs).unwrap_or_default();
        let needs = needs.calling(CALLS).calling(exposition::CALLS);
        let cpus = facts.cpus.clone();
        let process = Process::open();
        let answers = Answers {
            control: control.clone(),
            exposition: Exposition::new(control, facts, process),
        };
        let listener = Listener { socket, _file: file };
        let ended = end.clone();
        let thread = thread::Builder::new().name("ringecho-admin".into()).spawn(move || {
            if let Err(error) = cpus::avoid(&cpus) {
                warn!("the admin listener may use a CPU of the workers: {error}");
            }
            if sandbox == sandbox::Policy::On {
                // What this kernel cannot enforce, the main thread says.
                sandbox::enter(&needs);
            }
            serve(listener, &answers, &ended);
        })?;
        Ok(Admin { address, end, thread })
    }

    /// Where it listens, with the real port.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Ends it, and removes the file of its Unix socket.
    pub fn end(self) {
        // It fails only if it has been written to 2^64 times.
        let _ = rustix::io::write(&self.end, &1u64.to_ne_bytes());
        self.thread.join().expect("a panic ends the process");
    }
}

/// The socket, and its file, which goes with it.
#[derive(Debug)]
struct Listener {
    socket: OwnedFd,
    _file: Option<SocketFile>,
}

/// Serves until it is told to end, or, once another server has taken over, until the last answer is given. The address
/// is left to that server at once.
fn serve(listener: Listener, answers: &Answers, end: &OwnedFd) {
    let mut listener = Some(listener);
    let mut exchanges: Vec<Exchange> = Vec::new();
    let mut is_stopping = false;
    let mut paused_until: Option<Instant> = None;
    while listener.is_some() || !exchanges.is_empty() {
        let now = Instant::now();
        paused_until = paused_until.filter(|&until| now < until);
        let accepts = exchanges.len() < CONNECTIONS_MAX && paused_until.is_none();
        let accepting = listener.as_ref().filter(|_| accepts);
        let stopping = answers.control.stopping();
        let mut awaited = vec![PollFd::new(end, PollFlags::IN)];
        // It stays readable.
        let of_stop = if is_stopping { PollFlags::empty() } else { PollFlags::IN };
        awaited.push(PollFd::from_borrowed_fd(stopping, of_stop));
        awaited.extend(exchanges.iter().map(|it| PollFd::new(it, it.awaited())));
        awaited.extend(accepting.map(|it| PollFd::new(&it.socket, PollFlags::IN)));
        let deadline = exchanges.iter().map(Exchange::until).chain(paused_until).min();
        let left = deadline.map(|deadline| timespec(deadline.saturating_duration_since(now)));
        match poll(&mut awaited, left.as_ref()) {
            Ok(_) => {}
            // A signal came.
            Err(Errno::INTR) => continue,
            Err(error) => return warn!("the admin listener ends: {error}"),
        }
        let mut events = awaited.iter().map(|fd| !fd.revents().is_empty());
        let (is_over, stops) = (events.next() == Some(true), events.next() == Some(true));
        let events: Vec<bool> = events.collect();
        if is_over {
            return;
        }
        is_stopping |= stops;
        let now = Instant::now();
        let mut happened = events.into_iter();
        exchanges.retain_mut(|exchange| {
            let outlook = match happened.next() {
                Some(true) => exchange.proceed(now, |request| answers.to(request, is_stopping)),
                Some(false) | None if exchange.until() <= now => exchange.expired(now),
                Some(false) | None => Outlook::Open,
            };
            outlook == Outlook::Open
        });
        if happened.next() == Some(true)
            && let Some(Listener { socket, .. }) = &listener
        {
            match accept(socket) {
                Ok(Some(socket)) => exchanges.push(Exchange::new(socket, now)),
                Ok(None) => {}
                Err(_) => paused_until = Some(now + ACCEPT_PAUSE),
            }
        }
        if answers.control.has_successor() {
            listener = None;
        }
    }
}

/// The next connection, if there is one.
fn accept(listener: &impl AsFd) -> io::Result<Option<OwnedFd>> {
    match rustix::net::accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
        Ok(socket) => Ok(Some(socket)),
        // It is gone already.
        Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Rounded up, so that a deadline has come when the wait for it is over.
fn timespec(time: Duration) -> Timespec {
    let time = time + Duration::from_nanos(999_999);
    Timespec { tv_sec: time.as_secs() as i64, tv_nsec: i64::from(time.subsec_nanos()) }
}

/// What requests are answered with.
#[derive(Debug)]
struct Answers {
    control: Control,
    exposition: Exposition,
}

impl Answers {
    fn to(&self, request: &Request, is_stopping: bool) -> Response {
        match request.path.as_str() {
            "/" => Response::content(PLAIN, INDEX.to_owned()),
            "/healthz" => Response::told(200, "ok"),
            "/readyz" if is_stopping => Response::told(503, "draining"),
            "/readyz" => Response::told(200, "ready"),
            "/metrics" => {
                let offered = FORMATS.map(|(media_type, version, _)| (media_type, version));
                let media_type = http::preferred(&request.accept, &offered);
                let mut formats = FORMATS.iter().filter(|(name, ..)| *name == media_type);
                let (_, _, content_type) = formats.next().expect("one of those offered");
                Response::content(content_type, self.exposition.encode(media_type))
            }
            "/debug/connections" => connections::answer(&self.control, &request.accept),
            _ => {
                Response::told(404, "There is /healthz, /readyz, /metrics and /debug/connections.")
            }
        }
    }
}
