//! Taking the listening sockets from an older server, so that none of its clients is refused during a restart.
//!
//! The older server waits at its *door*, a Unix socket of its own. The newer one connects to it, gets all
//! sockets and the door itself, accepts connections on those that it wants, and says so. Only then does the older
//! server stop. Until then it serves as if nothing had happened, so the newer one may fail at any time.
//!
//! What is spoken on a socket, plain or TLS, is not handed over: the newer server has its own options.
//!
//! The sockets themselves are handed over, not their addresses: connections that wait in the queue of a socket
//! are lost when its last descriptor is closed. What is in the file system stays where it is, and goes with the
//! newer server from then on.
//!
//! Both sides take only a process of the same user, or of root, for a server. This module opens no thread and
//! does not know what a server is otherwise.

use std::fmt;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::{Errno, retry_on_intr};
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{
    self, AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use serde::{Deserialize, Serialize};

use super::{
    Address, DualStack, ListenError, Listening, SocketFile, Transport, bind_unix, is_same,
    open_retrying,
};
use crate::linux;
use crate::sandbox::Call;

/// What a thread calls that waits at a [`Door`]. It gives descriptors to whoever comes, and says whether the files of
/// Unix sockets are still there.
pub const CALLS: &[Call] = &[
    Call::Any(libc::SYS_accept4),
    Call::Any(libc::SYS_getsockopt),
    Call::Any(libc::SYS_setsockopt),
    Call::Any(libc::SYS_sendmsg),
    Call::Any(libc::SYS_recvmsg),
    Call::Any(libc::SYS_geteuid),
    Call::Any(libc::SYS_getcwd),
    Call::Any(libc::SYS_statx),
    Call::Any(libc::SYS_newfstatat),
    #[cfg(target_arch = "x86_64")]
    Call::Any(libc::SYS_lstat),
];
/// The version of the messages. A server takes over only from one that has the same.
const VERSION: u32 = 1;
/// The most sockets in one message; the kernel allows 253 (`SCM_MAX_FD`).
const SOCKETS_MAX: usize = 64;
/// Bytes of the longest message.
const BYTES_MAX: usize = 64 << 10;
/// How long one side waits for an answer that needs no time.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// Who may open the door: the user of the server, and root.
const DOOR_MODE: u32 = 0o600;

/// What the two servers tell each other. Sockets come with some of the messages, as `SCM_RIGHTS` (unix(7)).
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Message {
    /// From the newer server: it asks for the sockets.
    Take { version: u32 },
    /// From the older one: sockets on this address. It may repeat the address with further ones.
    Sockets { address: String, has_file: bool },
    /// From the older one, last: the door.
    Door,
    /// From the newer server: it accepts connections, on these addresses of the older one.
    Ready { addresses: Vec<String> },
}

/// Why a server cannot take over.
#[derive(Debug)]
pub struct TakeoverError {
    path: PathBuf,
    source: io::Error,
}

impl fmt::Display for TakeoverError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let TakeoverError { path, source } = self;
        let path = path.display();
        write!(f, "cannot take over from the server at unix:{path}: {source}")?;
        let remedy = match (Errno::from_io_error(source), source.kind()) {
            (Some(Errno::AGAIN), _) => "it does not answer; stop it, or wait until it does",
            (Some(Errno::PROTOTYPE), _) => "something else listens there; choose another path",
            (_, io::ErrorKind::PermissionDenied) => "run as the same user, or choose another path",
            _ => linux::remedy(source),
        };
        if remedy.is_empty() { Ok(()) } else { write!(f, "; {remedy}") }
    }
}

impl std::error::Error for TakeoverError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// The socket at which a server waits for the one that takes over from it.
#[derive(Debug)]
pub struct Door(OwnedFd);

impl Door {
    /// Opens the door at `path`, which nobody may enter but this user and root.
    ///
    /// # Errors
    ///
    /// When another process listens there, or the kernel refuses it.
    pub fn open(path: &Path) -> Result<(Door, SocketFile), ListenError> {
        let address = Address::Unix(path.to_owned());
        let attempt = || bind_unix(path, SocketType::SEQPACKET, Some(DOOR_MODE));
        let (socket, file) = open_retrying(&address, DualStack::On, attempt)?;
        Ok((Door(socket), file))
    }

    /// Waits for a server that asks for the sockets.
    ///
    /// # Errors
    ///
    /// When something else has come, or the kernel refuses it.
    pub fn successor(&self) -> io::Result<Successor> {
        let connection = retry_on_intr(|| net::accept_with(&self.0, SocketFlags::CLOEXEC))?;
        check_peer(&connection)?;
        limit_waiting(&connection)?;
        match receive(&connection)? {
            (Message::Take { version: VERSION }, _) => Ok(Successor(connection)),
            (message, _) => Err(unexpected(&message)),
        }
    }
}

/// A server that takes over from this one.
#[derive(Debug)]
pub struct Successor(OwnedFd);

impl Successor {
    /// Gives it a share of all sockets, and of the door.
    ///
    /// # Errors
    ///
    /// When it has ended, or the kernel refuses it.
    pub fn give(&self, listening: &[Listening], door: &Door) -> io::Result<()> {
        for Listening { address, sockets, file, .. } in listening {
            let has_file = file.as_ref().is_some_and(SocketFile::is_there);
            let message = Message::Sockets { address: name(address), has_file };
            for sockets in sockets.chunks(SOCKETS_MAX) {
                let sockets: Vec<BorrowedFd<'_>> = sockets.iter().map(|it| it.as_fd()).collect();
                send(&self.0, &message, &sockets)?;
            }
        }
        send(&self.0, &Message::Door, &[door.0.as_fd()])
    }

    /// Waits until it accepts connections, and returns on which of the addresses, as [`name`] writes them.
    ///
    /// # Errors
    ///
    /// When it has ended before.
    pub fn ready(self) -> io::Result<Vec<String>> {
        // It may still have other addresses to open. When it ends, so does the connection.
        sockopt::set_socket_timeout(&self.0, Timeout::Recv, None)?;
        match receive(&self.0)? {
            (Message::Ready { addresses }, _) => Ok(addresses),
            (message, _) => Err(unexpected(&message)),
        }
    }
}

/// The name of an address for both servers, whatever their directories.
pub fn name(address: &Address) -> String {
    match address {
        Address::Tcp(_) => address.to_string(),
        Address::Unix(path) => {
            Address::Unix(std::path::absolute(path).unwrap_or_else(|_| path.clone())).to_string()
        }
    }
}

/// What an older server has handed over.
#[derive(Debug)]
pub struct Inheritance {
    connection: OwnedFd,
    path: PathBuf,
    offered: Vec<Offered>,
    /// What [`Inheritance::claim`] has given out: the name of the address, and whether a file goes with it.
    claimed: Vec<(String, bool)>,
    door: Door,
}

#[derive(Debug)]
struct Offered {
    name: String,
    listening: Listening,
    has_file: bool,
}

/// Asks the server at the door `path` for its sockets. Nobody may be there, or no longer: then there is nothing
/// to take.
///
/// # Errors
///
/// When somebody is there who is not a server of this user, does not answer, or cannot be understood.
pub fn take(path: &Path) -> Result<Option<Inheritance>, TakeoverError> {
    let outcome = connect(path).and_then(|connection| receive_all(connection, path));
    let is_nobody = |error: &io::Error| {
        matches!(
            error.kind(),
            io::ErrorKind::NotFound
                | io::ErrorKind::ConnectionRefused
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::BrokenPipe
                | io::ErrorKind::UnexpectedEof
        )
    };
    match outcome {
        Ok(inheritance) => Ok(Some(inheritance)),
        Err(error) if is_nobody(&error) => Ok(None),
        Err(source) => Err(TakeoverError { path: path.to_owned(), source }),
    }
}

fn connect(path: &Path) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    let connection = net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    // It limits how long a full queue is waited for, too.
    limit_waiting(&connection)?;
    retry_on_intr(|| net::connect(&connection, &SocketAddrUnix::new(path)?))?;
    check_peer(&connection)?;
    Ok(connection)
}

fn receive_all(connection: OwnedFd, path: &Path) -> io::Result<Inheritance> {
    send(&connection, &Message::Take { version: VERSION }, &[])?;
    let mut offered: Vec<Offered> = Vec::new();
    loop {
        let (message, mut sockets) = receive(&connection)?;
        match message {
            Message::Sockets { address: name, has_file } => {
                if let Some(last) = offered.last_mut().filter(|last| last.name == name) {
                    last.listening.sockets.extend(sockets);
                    continue;
                }
                // One that cannot be written is of no use here.
                let Ok(address) = name.parse() else { continue };
                let transport = Transport::Plain;
                let listening = Listening { address, transport, sockets, file: None };
                offered.push(Offered { name, listening, has_file });
            }
            Message::Door if sockets.len() == 1 => {
                let door = Door(sockets.remove(0));
                let (path, claimed) = (path.to_owned(), Vec::new());
                return Ok(Inheritance { connection, path, offered, claimed, door });
            }
            message => return Err(unexpected(&message)),
        }
    }
}

impl Inheritance {
    /// The sockets on this address, if the older server has it. What is not claimed goes with that server.
    pub fn claim(&mut self, address: &Address) -> Option<Listening> {
        let is_it = |offered: &Offered| {
            is_same(&offered.listening.address, address) && !offered.listening.sockets.is_empty()
        };
        let place = self.offered.iter().position(is_it)?;
        let Offered { name, listening, has_file } = self.offered.swap_remove(place);
        self.claimed.push((name, has_file));
        Some(listening)
    }

    /// Tells the older server that this one accepts connections on what it has claimed, which is among
    /// `listening`. Files that went with the older server go with this one from now on; so does the door.
    pub fn begin(self, listening: &mut [Listening]) -> (Door, Option<SocketFile>) {
        let Inheritance { connection, path, claimed, door, .. } = self;
        let addresses = claimed.iter().map(|(name, _)| name.clone()).collect();
        // If it has ended meanwhile, that is as well.
        let _ = send(&connection, &Message::Ready { addresses }, &[]);
        for Listening { address, file, .. } in listening {
            let is_it =
                |(name, has_file): &(String, bool)| *has_file && *name == self::name(address);
            if let Address::Unix(path) = &*address
                && claimed.iter().any(is_it)
            {
                // If it is no longer there, it goes with nobody.
                *file = SocketFile::at(path).ok();
            }
        }
        (door, SocketFile::at(&path).ok())
    }
}

/// Checks that a process of this user, or of root, is on the other side (`SO_PEERCRED`, unix(7)).
fn check_peer(connection: &OwnedFd) -> io::Result<()> {
    let peer = sockopt::socket_peercred(connection)?.uid;
    if peer.is_root() || peer == rustix::process::geteuid() {
        return Ok(());
    }
    let problem = format!("user {} is on the other side", peer.as_raw());
    Err(io::Error::new(io::ErrorKind::PermissionDenied, problem))
}

fn limit_waiting(connection: &OwnedFd) -> io::Result<()> {
    sockopt::set_socket_timeout(connection, Timeout::Recv, Some(ANSWER_MAX))?;
    sockopt::set_socket_timeout(connection, Timeout::Send, Some(ANSWER_MAX))?;
    Ok(())
}

fn send(connection: &OwnedFd, message: &Message, sockets: &[BorrowedFd<'_>]) -> io::Result<()> {
    let text = serde_json::to_vec(message)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !sockets.is_empty() {
        let is_pushed = control.push(SendAncillaryMessage::ScmRights(sockets));
        assert!(is_pushed, "there is room for {SOCKETS_MAX} sockets");
    }
    let text = [IoSlice::new(&text)];
    retry_on_intr(|| net::sendmsg(connection, &text, &mut control, SendFlags::NOSIGNAL))?;
    Ok(())
}

fn receive(connection: &OwnedFd) -> io::Result<(Message, Vec<OwnedFd>)> {
    let mut text = vec![0; BYTES_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let received = retry_on_intr(|| {
        net::recvmsg(connection, &mut [IoSliceMut::new(&mut text)], &mut control, flags)
    })?;
    let mut sockets = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            sockets.extend(received);
        }
    }
    if received.flags.contains(ReturnFlags::CTRUNC) {
        // The kernel drops those for which no descriptor is left.
        return Err(Errno::MFILE.into());
    }
    match received.bytes {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        bytes => Ok((serde_json::from_slice(&text[..bytes])?, sockets)),
    }
}

fn unexpected(message: &Message) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("it says {message:?}"))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    fn path(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("ringecho-unit-{}-{name}", std::process::id()))
    }

    /// A TCP address with so many sockets. It does not matter here that they have different ports.
    fn listening(count: usize) -> (Listening, Vec<std::net::SocketAddr>) {
        let sockets: Vec<TcpListener> =
            (0..count).map(|_| TcpListener::bind("127.0.0.1:0").expect("a port")).collect();
        let ports: Vec<_> = sockets.iter().map(|it| it.local_addr().expect("one")).collect();
        let sockets = sockets.into_iter().map(Into::into).collect();
        let (address, transport) = (Address::Tcp(ports[0]), Transport::Plain);
        (Listening { address, transport, sockets, file: None }, ports)
    }

    #[test]
    fn more_sockets_than_fit_into_one_message_are_handed_over() {
        let path = path("many.sock");
        let (door, _file) = Door::open(&path).expect("a door");
        let (many, ports) = listening(2 * SOCKETS_MAX + 1);
        let (other, _) = listening(1);
        let (wanted, unwanted) = (many.address.clone(), other.address.clone());
        let newer = thread::spawn(move || {
            let mut inheritance = take(&path).expect("a server").expect("sockets");
            assert!(inheritance.claim(&"127.0.0.1:1".parse().expect("an address")).is_none());
            let claimed = inheritance.claim(&wanted).expect("it is offered");
            assert!(inheritance.claim(&wanted).is_none(), "it is claimed twice");
            let (_door, file) = inheritance.begin(&mut []);
            file.expect("that of the door").leave();
            claimed.sockets.iter().map(|it| net::getsockname(it).expect("one")).collect::<Vec<_>>()
        });
        let successor = door.successor().expect("it comes");
        successor.give(&[many, other], &door).expect("it takes them");
        let kept = successor.ready().expect("it accepts");
        let taken = newer.join().expect("a thread");
        let taken: Vec<std::net::SocketAddr> =
            taken.into_iter().map(|address| address.try_into().expect("TCP")).collect();
        assert_eq!(taken, ports);
        assert_eq!(kept, [ports[0].to_string()]);
        assert!(!kept.contains(&name(&unwanted)));
    }

    #[test]
    fn a_server_that_ends_before_it_is_ready_changes_nothing() {
        let path = path("early.sock");
        let (door, _file) = Door::open(&path).expect("a door");
        let newer = path.clone();
        for last in [false, true] {
            let path = newer.clone();
            let newer = thread::spawn(move || match last {
                false => drop(connect(&path).expect("a door")),
                true => drop(take(&path).expect("a server").expect("sockets")),
            });
            let (listening, _) = listening(1);
            let outcome = door.successor().and_then(|successor| {
                successor.give(&[listening], &door)?;
                successor.ready()
            });
            assert_eq!(outcome.expect_err("it ends").kind(), io::ErrorKind::UnexpectedEof);
            newer.join().expect("a thread");
        }
        assert!(path.exists());
    }

    #[test]
    fn where_nobody_is_there_is_nothing_to_take() {
        let path = path("nobody.sock");
        assert!(take(&path).expect("no file").is_none());
        let (door, file) = Door::open(&path).expect("a door");
        drop(door);
        file.leave();
        assert!(take(&path).expect("a stale file").is_none());
        let (door, _file) = Door::open(&path).expect("the stale one is replaced");
        // One that ends in the middle.
        let older = thread::spawn(move || drop(door.successor().expect("it comes")));
        assert!(take(&path).expect("it ends").is_none());
        older.join().expect("a thread");
    }

    #[test]
    fn two_doors_are_not_opened_at_one_path() {
        let path = path("twice.sock");
        let (_door, _file) = Door::open(&path).expect("a door");
        let error = Door::open(&path).expect_err("in use").to_string();
        assert!(error.contains(&format!("process {} (", std::process::id())), "{error}");
    }
}
