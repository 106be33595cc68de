//! Connections whose waits always end.
//!
//! A [`Stream`] itself never waits, except in [`Stream::receive_sleeping`], for at most [`SLICE`].
//! Every longer wait goes through a [`Deadline`]. It applies to a step as a whole, however many bytes
//! trickle in meanwhile, and ends at once when the stop is requested. This file knows no frames, and of TLS
//! only when to go through it.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, ToSocketAddrs as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use ringecho::listen::{self, Address, ListenError, Listening, SocketFile};
use ringecho::protocol::Layer;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with,
    connect, recv, send, socket_with,
};

use crate::problem::{Problem, Step};
use crate::secured::Secured;
use crate::stop::Stop;
use crate::target::Endpoint;
use crate::tls::{Failure, Tls};

pub use crate::secured::Sealing;

/// How long connecting may take, with the resolution of the host name.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest wait of one system call.
pub const SLICE: Duration = Duration::from_millis(200);
/// How often to check for the stop while a name is resolved.
const RESOLUTION_SLICE: Duration = Duration::from_millis(20);
/// How long to wait before connecting again to a Unix socket whose backlog is full.
const BACKLOG_PAUSE: Duration = Duration::from_millis(10);
/// The clock is read every [`SLICE`] at least while the process runs. If more time than this has passed
/// between two reads, the process (Ctrl-Z) or its virtual machine was suspended.
const SUSPENSION_MIN: Duration = Duration::from_secs(1);

/// The deadline of a step, which the stop ends early.
///
/// Time during which the process was suspended does not count: the server may have been suspended too.
#[derive(Debug)]
pub struct Deadline<'a> {
    step: Step,
    timeout: Duration,
    until: Instant,
    /// When the clock was last looked at.
    looked: Instant,
    stop: Option<&'a Stop>,
}

impl<'a> Deadline<'a> {
    /// The deadline of a step that begins now.
    pub fn new(step: Step, timeout: Duration, stop: &'a Stop) -> Deadline<'a> {
        Deadline::since(Instant::now(), step, timeout, stop)
    }

    /// The deadline of a step that began at `begin`. Reads no clock.
    #[inline]
    pub fn since(begin: Instant, step: Step, timeout: Duration, stop: &'a Stop) -> Deadline<'a> {
        Deadline { step, timeout, until: begin + timeout, looked: begin, stop: Some(stop) }
    }

    /// The deadline of a step that takes place after the stop was requested.
    pub fn regardless(step: Step, timeout: Duration) -> Deadline<'a> {
        let now = Instant::now();
        Deadline { step, timeout, until: now + timeout, looked: now, stop: None }
    }

    /// Checks whether the step may go on.
    ///
    /// # Errors
    ///
    /// [`Problem::Stopped`] and [`Problem::TimedOut`].
    #[inline]
    pub fn check(&mut self) -> Result<(), Problem> {
        if self.stop.is_some_and(Stop::is_requested) {
            return Err(Problem::Stopped);
        }
        let now = Instant::now();
        let passed = now - self.looked;
        if passed > SUSPENSION_MIN {
            self.until += passed;
        }
        self.looked = now;
        if now > self.until {
            return Err(Problem::TimedOut(self.step, self.timeout));
        }
        Ok(())
    }

    /// Waits for one of `events` on `socket`, and returns those that came.
    ///
    /// # Errors
    ///
    /// As [`Deadline::check`], and [`Problem::Lost`] if the kernel cannot wait.
    pub fn wait(&mut self, socket: impl AsFd, events: PollFlags) -> Result<PollFlags, Problem> {
        loop {
            self.check()?;
            let came = self.poll(Some(PollFd::new(&socket, events)), self.slice())?;
            if !came.is_empty() {
                return Ok(came);
            }
        }
    }

    /// Sleeps for `duration`, before something is tried again.
    ///
    /// # Errors
    ///
    /// As [`Deadline::wait`].
    pub fn pause(&mut self, duration: Duration) -> Result<(), Problem> {
        self.check()?;
        self.poll(None, self.slice().min(duration))?;
        self.check()
    }

    /// Waits for `watched`, the stop, a signal or the end of `duration`, and returns what came on
    /// `watched`.
    fn poll(&self, watched: Option<PollFd<'_>>, duration: Duration) -> Result<PollFlags, Problem> {
        let stop = self.stop.map(|stop| PollFd::new(stop, PollFlags::IN));
        let is_watched = watched.is_some();
        let mut all: Vec<PollFd<'_>> = watched.into_iter().chain(stop).collect();
        let timeout = Timespec {
            tv_sec: duration.as_secs() as i64,
            tv_nsec: i64::from(duration.subsec_nanos()),
        };
        match poll(&mut all, Some(&timeout)) {
            Ok(_) if is_watched => Ok(all[0].revents()),
            Ok(_) | Err(Errno::INTR) => Ok(PollFlags::empty()),
            Err(error) => Err(Problem::Lost(error.into())),
        }
    }

    fn slice(&self) -> Duration {
        (self.until - self.looked).min(SLICE)
    }

    /// The same step, for one of `parts` equal shares of the time that is left.
    fn share(&self, parts: usize) -> Deadline<'a> {
        let left = self.until.saturating_duration_since(self.looked);
        Deadline { until: self.looked + left / parts.max(1) as u32, ..*self }
    }
}

/// A connection, not yet opened as a WebSocket. For TCP, Nagle's algorithm is off.
///
/// If it is encrypted, what is sent and received here is what is within TLS, and a part of the last send may
/// still wait for room in the socket: it goes out with whatever is called next.
#[derive(Debug)]
pub struct Stream {
    socket: TcpStream,
    /// What lies between, if anything.
    secured: Option<Box<Secured>>,
}

impl Stream {
    /// Connects.
    ///
    /// # Errors
    ///
    /// When nobody listens there, the name is not known, or it takes too long.
    pub fn connect(endpoint: &Endpoint, deadline: &mut Deadline<'_>) -> Result<Stream, Problem> {
        let socket = match endpoint {
            Endpoint::Tcp(address) => connect_to_any(&resolve(address, deadline)?, deadline)?,
            Endpoint::Unix(path) => connect_unix(path, deadline)?,
        };
        Stream::of(socket).map_err(Problem::CannotConnect)
    }

    /// A stream on a socket that is connected.
    fn of(socket: OwnedFd) -> io::Result<Stream> {
        // Reading, writing and shutting down are the same for every stream socket.
        let socket = TcpStream::from(socket);
        socket.set_nonblocking(false)?;
        sockopt::set_socket_timeout(&socket, Timeout::Recv, Some(SLICE))?;
        Ok(Stream { socket, secured: None })
    }

    /// Goes through the handshake of TLS, as the client.
    ///
    /// # Errors
    ///
    /// When the server does not speak TLS or is not trusted, or it takes too long.
    pub fn secure(&mut self, tls: &Tls, deadline: &mut Deadline<'_>) -> Result<(), Problem> {
        let mut opening = Vec::new();
        let layer = tls.layer(&mut opening).map_err(Problem::NoTls)?;
        self.shake_hands(Secured::new(layer, opening), deadline)
    }

    /// Goes through the handshake of TLS, as the server, whose side is `layer`.
    ///
    /// # Errors
    ///
    /// When the client does not speak TLS, does not trust this side, or it takes too long.
    pub fn secure_accepted(
        &mut self,
        layer: Box<dyn Layer>,
        deadline: &mut Deadline<'_>,
    ) -> Result<(), Problem> {
        self.shake_hands(Secured::new(layer, Vec::new()), deadline)
    }

    fn shake_hands(
        &mut self,
        mut secured: Secured,
        deadline: &mut Deadline<'_>,
    ) -> Result<(), Problem> {
        let mut room = [0; 4096];
        let lost = |error: io::Error| match Failure::of(&error) {
            Some(failure) => Problem::NoTls(failure),
            None => Problem::Lost(error),
        };
        secured.push(&self.socket).map_err(lost)?;
        while !secured.is_open() {
            let room_too = if secured.has_pending() { PollFlags::OUT } else { PollFlags::empty() };
            deadline.wait(&self.socket, PollFlags::IN | room_too)?;
            match secured.fill(&self.socket, &mut room, RecvFlags::DONTWAIT) {
                Ok(0) => return Err(Problem::NoTls(Failure::Ended)),
                Ok(_) => {}
                Err(error) if is_transient(&error) => {}
                Err(error) => return Err(lost(error)),
            }
        }
        self.secured = Some(Box::new(secured));
        Ok(())
    }

    /// What both sides of TLS have agreed on; nothing if the connection is plain.
    pub fn agreed(&self) -> Option<String> {
        self.secured.as_ref().and_then(|secured| secured.agreed())
    }

    /// Receives what has come, without waiting; 0 at the end of the connection.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::WouldBlock`] where nothing has come, or nothing that is complete.
    #[inline]
    pub fn receive(&mut self, room: &mut [u8]) -> io::Result<usize> {
        if let Some(secured) = &mut self.secured {
            return secured.receive(&self.socket, room, RecvFlags::DONTWAIT);
        }
        let (count, _) = recv(&self.socket, room, RecvFlags::DONTWAIT)?;
        Ok(count)
    }

    /// Receives what has come, or sleeps until something comes, for at most [`SLICE`].
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::WouldBlock`] where nothing has come, or nothing that is complete;
    /// [`io::ErrorKind::Interrupted`] by a signal.
    #[inline]
    pub fn receive_sleeping(&mut self, room: &mut [u8]) -> io::Result<usize> {
        if let Some(secured) = &mut self.secured {
            secured.push(&self.socket)?;
            if secured.has_pending() {
                let either = PollFlags::IN | PollFlags::OUT;
                let slice = Timespec { tv_sec: 0, tv_nsec: i64::from(SLICE.subsec_nanos()) };
                poll(&mut [PollFd::new(&self.socket, either)], Some(&slice))?;
                return secured.receive(&self.socket, room, RecvFlags::DONTWAIT);
            }
            return secured.receive(&self.socket, room, RecvFlags::empty());
        }
        let (count, _) = recv(&self.socket, room, RecvFlags::empty())?;
        Ok(count)
    }

    /// Sends as much as the socket has room for, without waiting for more.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::WouldBlock`] where there is no room.
    #[inline]
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(secured) = &mut self.secured {
            return secured.send(&self.socket, bytes);
        }
        Ok(send(&self.socket, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?)
    }

    /// Waits for one of `events`, and returns those that came, or room for what waits in TLS.
    ///
    /// # Errors
    ///
    /// As [`Deadline::wait`].
    pub fn wait(
        &self,
        events: PollFlags,
        deadline: &mut Deadline<'_>,
    ) -> Result<PollFlags, Problem> {
        let mut events = events;
        if let Some(secured) = &self.secured {
            if events.contains(PollFlags::IN) && secured.has_plain() {
                deadline.check()?;
                return Ok(PollFlags::IN);
            }
            if secured.has_pending() {
                events |= PollFlags::OUT;
            }
        }
        deadline.wait(&self.socket, events)
    }

    /// Seals otherwise from now on, if there is TLS.
    ///
    /// # Errors
    ///
    /// When the connection is plain, or gone already.
    pub fn seal_otherwise(&mut self, how: Sealing) -> io::Result<()> {
        match &mut self.secured {
            Some(secured) => secured.seal_otherwise(&self.socket, how),
            None => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Whether the peer has ended the connection without saying so in TLS.
    pub fn has_ended_unsaid(&self) -> bool {
        self.secured.as_ref().is_some_and(|secured| secured.has_ended_unsaid())
    }

    /// Whether a part of what was sent waits for room in the socket.
    pub fn has_pending(&self) -> bool {
        self.secured.as_ref().is_some_and(|secured| secured.has_pending())
    }

    /// Shuts down the sending direction; TLS says so first.
    ///
    /// # Errors
    ///
    /// When the connection is gone already.
    pub fn end(&mut self) -> io::Result<()> {
        match &mut self.secured {
            Some(secured) => secured.end(&self.socket),
            None => self.socket.shutdown(Shutdown::Write),
        }
    }

    /// Makes the end of the connection, which comes with this value's, a reset.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn reset_at_end(&mut self) -> io::Result<()> {
        // A reset says nothing more.
        self.secured = None;
        Ok(sockopt::set_socket_linger(&self.socket, Some(Duration::ZERO))?)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Some(secured) = &mut self.secured {
            secured.take_leave(&self.socket);
        }
    }
}

/// A socket that accepts connections, one at a time and never waiting too long.
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
    /// Where it listens, with its real port.
    address: Address,
    #[expect(dead_code, reason = "it is removed when it is dropped")]
    file: Option<SocketFile>,
}

impl Listener {
    /// Listens on an address. Port 0 is a free one.
    ///
    /// # Errors
    ///
    /// When the address is in use, or the kernel refuses it.
    pub fn open(address: &Address) -> Result<Listener, ListenError> {
        let options = listen::Options { workers: 1, ..listen::Options::default() };
        let Listening { address, mut sockets, file, .. } = listen::open(address, options)?;
        let socket = sockets.remove(0);
        // What was there when poll(2) looked may be gone when it is accepted.
        rustix::io::ioctl_fionbio(&socket, true)
            .map_err(|error| ListenError::new(&address, error.into()))?;
        Ok(Listener { socket, address, file })
    }

    /// Where it listens.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// The next connection; nothing if none comes within [`SLICE`], or the stop is requested before.
    ///
    /// # Errors
    ///
    /// When the kernel cannot accept one, for example for lack of descriptors.
    pub fn accept(&self, stop: &Stop) -> io::Result<Option<Stream>> {
        let mut all = [PollFd::new(&self.socket, PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
        let slice = Timespec { tv_sec: 0, tv_nsec: i64::from(SLICE.subsec_nanos()) };
        match poll(&mut all, Some(&slice)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if stop.is_requested() {
            return Ok(None);
        }
        match accept_with(&self.socket, SocketFlags::CLOEXEC) {
            Ok(socket) => Stream::of(socket).map(Some),
            // accept(2): errors of a connection that has ended meanwhile are like no connection.
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// As [`Stream::receive`].
impl Read for Stream {
    #[inline]
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        self.receive(room)
    }
}

/// As [`Stream::send`].
impl Write for Stream {
    #[inline]
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.send(bytes)
    }

    /// Sends of what waits as much as there is room for.
    fn flush(&mut self) -> io::Result<()> {
        match &mut self.secured {
            Some(secured) => secured.push(&self.socket),
            None => Ok(()),
        }
    }
}

/// Whether a send or a receive that failed may succeed when it is tried again.
pub(crate) fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

fn cannot_connect(error: Errno) -> Problem {
    Problem::CannotConnect(error.into())
}

/// The addresses of `HOST:PORT`. Only the C library knows all the ways in which a system resolves
/// names, and its lookup cannot be interrupted. So a separate thread does it, and is abandoned if it
/// takes too long.
fn resolve(address: &str, deadline: &mut Deadline<'_>) -> Result<Vec<SocketAddr>, Problem> {
    if let Ok(address) = address.parse() {
        return Ok(vec![address]);
    }
    let (sender, resolved) = mpsc::channel();
    let address = address.to_owned();
    let resolve = move || {
        // It fails if nobody waits for the answer any more.
        let _ = sender.send(address.to_socket_addrs().map(Vec::from_iter));
    };
    let named = thread::Builder::new().name("resolver".to_owned());
    named.spawn(resolve).map_err(Problem::CannotResolve)?;
    loop {
        match resolved.recv_timeout(RESOLUTION_SLICE) {
            Ok(addresses) => return addresses.map_err(Problem::CannotResolve),
            Err(RecvTimeoutError::Timeout) => deadline.check()?,
            Err(RecvTimeoutError::Disconnected) => {
                return Err(Problem::CannotResolve(io::ErrorKind::Other.into()));
            }
        }
    }
}

/// Connects to the first of the addresses that answers. Each gets a share of the time that is left.
fn connect_to_any(
    addresses: &[SocketAddr],
    deadline: &mut Deadline<'_>,
) -> Result<OwnedFd, Problem> {
    let mut last = cannot_connect(Errno::ADDRNOTAVAIL);
    for (at, address) in addresses.iter().enumerate() {
        deadline.check()?;
        match connect_tcp(*address, &mut deadline.share(addresses.len() - at)) {
            Err(Problem::Stopped) => return Err(Problem::Stopped),
            Err(problem) => last = problem,
            connected => return connected,
        }
    }
    Err(last)
}

fn connect_tcp(address: SocketAddr, deadline: &mut Deadline<'_>) -> Result<OwnedFd, Problem> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = new_socket(family)?;
    sockopt::set_tcp_nodelay(&socket, true).map_err(cannot_connect)?;
    match connect(&socket, &address) {
        Ok(()) => {}
        // connect(2): it continues in the background, and the socket becomes writable at its end.
        Err(Errno::INPROGRESS | Errno::INTR) => {
            deadline.wait(&socket, PollFlags::OUT)?;
            sockopt::socket_error(&socket).map_err(cannot_connect)?.map_err(cannot_connect)?;
        }
        Err(error) => return Err(cannot_connect(error)),
    }
    let stream = TcpStream::from(socket);
    // A port that nobody listens on may be the one that the kernel chose for this end: TCP then
    // connects the socket to itself (RFC 9293 section 3.5, simultaneous open).
    if stream.local_addr().ok() == Some(address) {
        return Err(cannot_connect(Errno::CONNREFUSED));
    }
    Ok(stream.into())
}

fn connect_unix(path: &Path, deadline: &mut Deadline<'_>) -> Result<OwnedFd, Problem> {
    let address = SocketAddrUnix::new(path).map_err(cannot_connect)?;
    let socket = new_socket(AddressFamily::UNIX)?;
    loop {
        match connect(&socket, &address) {
            Ok(()) => return Ok(socket),
            // unix(7): the backlog is full, and nothing signals when that changes.
            Err(Errno::AGAIN | Errno::INTR) => deadline.pause(BACKLOG_PAUSE)?,
            Err(error) => return Err(cannot_connect(error)),
        }
    }
}

fn new_socket(family: AddressFamily) -> Result<OwnedFd, Problem> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socket_with(family, SocketType::STREAM, flags, None).map_err(cannot_connect)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::unix::net::UnixListener;

    use super::*;

    /// Long enough for whatever a loaded machine does.
    const GENEROUS: Duration = Duration::from_secs(60);

    fn listener() -> (TcpListener, Endpoint) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        (listener, Endpoint::Tcp(address.to_string()))
    }

    #[test]
    fn a_stream_neither_waits_for_room_nor_for_bytes() {
        let (listener, endpoint) = listener();
        let stop = Stop::new().expect("a pipe");
        let mut deadline = Deadline::new(Step::Connect, GENEROUS, &stop);
        let mut stream = Stream::connect(&endpoint, &mut deadline).expect("a listener");
        let _accepted = listener.accept().expect("a connection");
        let nothing = stream.receive(&mut [0; 16]).expect_err("nothing has come");
        assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
        let bytes = vec![0; 1 << 20];
        let full = loop {
            if let Err(error) = stream.send(&bytes) {
                break error;
            }
        };
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_wait_ends_with_its_step_and_with_the_stop() {
        let (listener, endpoint) = listener();
        let stop = Stop::new().expect("a pipe");
        let mut deadline = Deadline::new(Step::Connect, GENEROUS, &stop);
        let stream = Stream::connect(&endpoint, &mut deadline).expect("a listener");
        let _accepted = listener.accept().expect("a connection");
        let short = Duration::from_millis(20);
        let mut deadline = Deadline::new(Step::Echo, short, &stop);
        let ended = deadline.wait(&stream, PollFlags::IN).expect_err("nothing comes");
        assert!(matches!(ended, Problem::TimedOut(Step::Echo, after) if after == short), "{ended}");
        let ended = thread::scope(|scope| {
            let mut deadline = Deadline::new(Step::Echo, GENEROUS, &stop);
            let socket = stream.as_fd();
            let waits = scope.spawn(move || deadline.wait(socket, PollFlags::IN));
            stop.request();
            waits.join().expect("no panic")
        });
        assert!(matches!(ended, Err(Problem::Stopped)), "{ended:?}");
    }

    #[test]
    fn time_in_which_the_process_was_suspended_does_not_count() {
        let stop = Stop::new().expect("a pipe");
        let hour = Duration::from_secs(3600);
        // As if the clock had not been looked at for an hour.
        let begin = Instant::now().checked_sub(hour).expect("an hour since the machine's start");
        let mut deadline = Deadline::since(begin, Step::Echo, GENEROUS, &stop);
        deadline.check().expect("the hour does not count");
    }

    #[test]
    fn a_wait_for_a_full_backlog_of_a_unix_socket_ends() {
        let path = std::env::temp_dir().join(format!("ringbench-backlog-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).expect("a socket");
        rustix::net::listen(&listener, 0).expect("a backlog of one");
        let (endpoint, stop) = (Endpoint::Unix(path.clone()), Stop::new().expect("a pipe"));
        let connect =
            |timeout| Stream::connect(&endpoint, &mut Deadline::new(Step::Connect, timeout, &stop));
        let mut connected = Vec::new();
        let full = loop {
            match connect(Duration::from_millis(50)) {
                Ok(stream) => connected.push(stream),
                Err(problem) => break problem,
            }
        };
        assert!(matches!(full, Problem::TimedOut(Step::Connect, _)), "{full}");
        thread::scope(|scope| {
            let waits = scope.spawn(|| connect(GENEROUS));
            listener.accept().expect("one of them");
            waits.join().expect("no panic").expect("room in the backlog");
        });
        std::fs::remove_file(&path).expect("it is there");
    }

    #[test]
    fn nobody_listening_and_no_such_name_are_told_apart() {
        let (listener, endpoint) = listener();
        drop(listener);
        let stop = Stop::new().expect("a pipe");
        let connect = |endpoint| {
            let mut deadline = Deadline::new(Step::Connect, GENEROUS, &stop);
            Stream::connect(endpoint, &mut deadline).expect_err("nobody listens")
        };
        let refused = connect(&endpoint);
        assert!(matches!(refused, Problem::CannotConnect(_)), "{refused}");
        // A name with an empty label is invalid, so no server is asked.
        let unknown = connect(&Endpoint::Tcp("a..b:80".to_owned()));
        assert!(matches!(unknown, Problem::CannotResolve(_)), "{unknown}");
    }
}
