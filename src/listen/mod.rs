//! Listening: addresses, and the sockets that are opened on them.
//!
//! An address is opened for all workers at once, or not at all. One that is in use is tried again for
//! a moment, since the kernel closes the sockets of an io_uring server only 20 to 30 ms after the
//! process was killed. Sockets may also come from outside: [`passed`] takes them from a service manager,
//! [`takeover`] from an older server. This module accepts no client and does not know who will.

mod address;
mod holder;
pub mod passed;
pub mod takeover;

use std::fmt;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};

use crate::linux;
use crate::retry::retry;
use crate::sandbox::{Call, Needs};

pub use self::address::{
    Address, AddressError, DualStack, Endpoint, Overlap, Transport, is_same, overlap,
};
pub use self::holder::Holder;

/// How long to try an address that is in use.
pub const ADDRESS_WAIT_MAX: Duration = Duration::from_secs(1);
/// Connections that may wait to be accepted, on each listener. The kernel lowers it to
/// `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// How to listen.
#[derive(Debug, Default, Clone, Copy)]
pub struct Options {
    /// The number of workers, each of which gets a listener.
    pub workers: usize,
    /// Whether `[::]` takes IPv4 too.
    pub dual_stack: DualStack,
    /// The mode of a Unix socket's file; what the umask leaves if not given.
    pub unix_mode: Option<u32>,
}

/// The listeners on one address.
#[derive(Debug)]
pub struct Listening {
    /// The address, with its real port.
    pub address: Address,
    /// What is spoken there.
    pub transport: Transport,
    /// At least one socket. Among several the kernel distributes the connections.
    pub sockets: Vec<OwnedFd>,
    /// The file of a Unix socket, if it goes with this server.
    pub file: Option<SocketFile>,
}

/// Distributes the sockets of one address over `workers` workers. Each gets at least one socket, and none is
/// left over, because the kernel gives connections to each of them. Workers may share one.
///
/// # Errors
///
/// When descriptors run out.
pub fn share(sockets: Vec<OwnedFd>, workers: usize) -> io::Result<Vec<Vec<OwnedFd>>> {
    let count = sockets.len();
    let mut shares: Vec<Vec<OwnedFd>> = (0..workers).map(|_| Vec::new()).collect();
    for (number, socket) in sockets.into_iter().enumerate() {
        for further in (number + count..workers).step_by(count) {
            shares[further].push(socket.try_clone()?);
        }
        shares[number % workers].push(socket);
    }
    Ok(shares)
}

/// Why an address cannot be listened on.
#[derive(Debug)]
pub struct ListenError {
    /// The address, as it was given.
    pub address: Address,
    /// What the kernel answered.
    pub source: io::Error,
    /// Who listens there, if the address is in use.
    pub holder: Option<Holder>,
}

impl fmt::Display for ListenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ListenError { address, source, holder } = self;
        write!(f, "cannot listen on {address}: ")?;
        let place = match address {
            Address::Tcp(_) => "port",
            Address::Unix(_) => "path",
        };
        if let Some(holder) = holder {
            return write!(f, "it is in use by {holder}; end that, or choose another {place}");
        }
        write!(f, "{source}")?;
        let remedy = match (address, source.kind()) {
            (Address::Tcp(_), io::ErrorKind::PermissionDenied) => {
                "ports below 1024 need CAP_NET_BIND_SERVICE"
            }
            (Address::Tcp(_), io::ErrorKind::AddrNotAvailable) => {
                "choose an address of this machine, or 0.0.0.0 or [::] for all of them"
            }
            // The kernel cannot tell which link is meant.
            (Address::Tcp(SocketAddr::V6(_)), io::ErrorKind::InvalidInput) => {
                "a link-local address needs the number of its interface, such as [fe80::1%2]:9001"
            }
            (Address::Unix(_), io::ErrorKind::AlreadyExists) => {
                "the file there is not a socket: choose another path"
            }
            (Address::Unix(_), io::ErrorKind::NotFound) => "create the directory first",
            _ => linux::remedy(source),
        };
        if remedy.is_empty() { Ok(()) } else { write!(f, "; {remedy}") }
    }
}

impl std::error::Error for ListenError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

impl ListenError {
    /// An address on which no socket could be opened, or kept.
    pub fn new(address: &Address, source: io::Error) -> ListenError {
        ListenError { address: address.clone(), source, holder: None }
    }
}

/// Opens the plain listeners of one address. Waits for at most [`ADDRESS_WAIT_MAX`] while it is in use.
///
/// # Errors
///
/// When the address is in use, even by a process that would share it, or the kernel refuses it.
pub fn open(address: &Address, options: Options) -> Result<Listening, ListenError> {
    open_retrying(address, options.dual_stack, || match address {
        Address::Tcp(address) => open_tcp(*address, options),
        Address::Unix(path) => open_unix(path, options),
    })
}

/// What `attempt` opens at `address`, again and again for [`ADDRESS_WAIT_MAX`] while it is in use.
fn open_retrying<T>(
    address: &Address,
    dual_stack: DualStack,
    attempt: impl FnMut() -> io::Result<T>,
) -> Result<T, ListenError> {
    let is_in_use = |error: &io::Error| error.kind() == io::ErrorKind::AddrInUse;
    retry(ADDRESS_WAIT_MAX, is_in_use, attempt).map_err(|source| {
        let holder = is_in_use(&source).then(|| Holder::of(address, dual_stack));
        ListenError { address: address.clone(), source, holder }
    })
}

/// Opens a listener for each worker on the same address, between which the kernel distributes the
/// connections. Port 0 becomes a free port, the same for all.
fn open_tcp(address: SocketAddr, options: Options) -> io::Result<Listening> {
    // Listeners with SO_REUSEPORT would share the address with those of another process of the same
    // user and say nothing; a socket without it finds that out. It is bound but never listens, so it
    // leaves nothing behind.
    let probe = tcp_socket(address, options.dual_stack)?;
    net::bind(&probe, &address)?;
    let address = local_address(&probe)?;
    drop(probe);
    let sockets = (0..options.workers)
        .map(|_| {
            let listener = tcp_socket(address, options.dual_stack)?;
            sockopt::set_socket_reuseport(&listener, true)?;
            // Accepted sockets inherit it.
            sockopt::set_tcp_nodelay(&listener, true)?;
            net::bind(&listener, &address)?;
            net::listen(&listener, BACKLOG)?;
            Ok(listener)
        })
        .collect::<io::Result<Vec<OwnedFd>>>()?;
    let address = Address::Tcp(address);
    Ok(Listening { address, transport: Transport::Plain, sockets, file: None })
}

fn tcp_socket(address: SocketAddr, dual_stack: DualStack) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if address.is_ipv6() {
        // Whatever net.ipv6.bindv6only says.
        sockopt::set_ipv6_v6only(&socket, dual_stack == DualStack::Off)?;
    }
    Ok(socket)
}

fn local_address(socket: &OwnedFd) -> io::Result<SocketAddr> {
    let address = net::getsockname(socket)?;
    SocketAddr::try_from(address).map_err(|_| Errno::AFNOSUPPORT.into())
}

/// Opens one listener on a Unix socket, which all workers share. A file on which nobody listens is
/// replaced; whoever may write to the file may connect.
fn open_unix(path: &Path, options: Options) -> io::Result<Listening> {
    let (listener, file) = bind_unix(path, SocketType::STREAM, options.unix_mode)?;
    let address = Address::Unix(path.to_owned());
    let transport = Transport::Plain;
    Ok(Listening { address, transport, sockets: vec![listener], file: Some(file) })
}

/// A socket of this type that listens at `path`, and its file.
fn bind_unix(
    path: &Path,
    kind: SocketType,
    mode: Option<u32>,
) -> io::Result<(OwnedFd, SocketFile)> {
    remove_stale(path, kind)?;
    let listener = net::socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
    net::bind(&listener, &SocketAddrUnix::new(path)?)?;
    let file = SocketFile::at(path)?;
    if let Some(mode) = mode {
        // Nobody can connect before the socket listens.
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    }
    net::listen(&listener, BACKLOG)?;
    Ok((listener, file))
}

/// Removes the file of a socket on which nobody listens any more.
fn remove_stale(path: &Path, kind: SocketType) -> io::Result<()> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !found.file_type().is_socket() {
        return Err(Errno::EXIST.into());
    }
    // A blocking connect would wait for as long as the listener's queue is full.
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let probe = net::socket_with(AddressFamily::UNIX, kind, flags, None)?;
    match net::connect(&probe, &SocketAddrUnix::new(path)?) {
        Err(Errno::CONNREFUSED) => fs::remove_file(path),
        // One of another type may listen too.
        Ok(()) | Err(Errno::AGAIN | Errno::PROTOTYPE) => Err(Errno::ADDRINUSE.into()),
        Err(error) => Err(error.into()),
    }
}

/// The file of a Unix socket, which is removed when this value is dropped.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Device and inode, so that another server's file at the same path is left alone.
    identity: (u64, u64),
}

/// The system calls with which a [`SocketFile`] is dropped.
const CALLS: &[Call] = &[
    Call::Any(libc::SYS_statx),
    Call::Any(libc::SYS_newfstatat),
    Call::Any(libc::SYS_unlinkat),
    #[cfg(target_arch = "x86_64")]
    Call::Any(libc::SYS_lstat),
    #[cfg(target_arch = "x86_64")]
    Call::Any(libc::SYS_unlink),
];

impl SocketFile {
    /// What a thread needs that drops it.
    pub fn needs(&self) -> Needs {
        let directory = self.path.parent().filter(|directory| !directory.as_os_str().is_empty());
        Needs::default().calling(CALLS).removing_in(directory.unwrap_or(Path::new(".")))
    }

    fn at(path: &Path) -> io::Result<SocketFile> {
        Ok(SocketFile { path: path.to_owned(), identity: identity(path)? })
    }

    /// Whether it is still the one at its path.
    fn is_there(&self) -> bool {
        identity(&self.path).is_ok_and(|found| found == self.identity)
    }

    /// Leaves it where it is: it goes with another server now.
    pub fn leave(mut self) {
        self.path.clear();
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let found = fs::symlink_metadata(path)?;
    Ok((found.dev(), found.ino()))
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.is_there() {
            // If it is refused, the next server finds that nobody listens on the file.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv6Addr, TcpListener, TcpStream};
    use std::thread;

    use super::*;

    fn listen(address: &str, workers: usize, dual_stack: DualStack) -> Listening {
        let options = Options { workers, dual_stack, unix_mode: None };
        open(&address.parse().expect("an address"), options).expect("listeners")
    }

    fn port(listening: &Listening) -> u16 {
        match &listening.address {
            Address::Tcp(address) => address.port(),
            Address::Unix(_) => panic!("not TCP"),
        }
    }

    #[test]
    fn all_listeners_share_one_free_port() {
        let listening = listen("127.0.0.1:0", 3, DualStack::On);
        assert_eq!(listening.sockets.len(), 3);
        assert_ne!(port(&listening), 0);
        TcpStream::connect(("127.0.0.1", port(&listening))).expect("a listener");
    }

    #[test]
    fn every_worker_has_a_socket_and_every_socket_a_worker() {
        for (count, workers) in [(1, 1), (1, 3), (2, 3), (3, 3), (5, 3), (3, 1), (2, 7)] {
            let sockets: Vec<OwnedFd> = (0..count)
                .map(|_| TcpListener::bind("127.0.0.1:0").expect("a port").into())
                .collect();
            let ports: Vec<_> = sockets.iter().map(|socket| local_address(socket).ok()).collect();
            let shares = share(sockets, workers).expect("descriptors");
            assert_eq!(shares.len(), workers);
            assert!(shares.iter().all(|share| !share.is_empty()), "{count} for {workers}");
            let shared: Vec<_> = shares.iter().flatten().map(|it| local_address(it).ok()).collect();
            assert!(ports.iter().all(|port| shared.contains(port)), "{count} for {workers}");
            assert_eq!(shared.len(), count.max(workers));
        }
    }

    #[test]
    fn an_address_in_use_is_an_error_that_names_the_process() {
        let listening = listen("127.0.0.1:0", 1, DualStack::On);
        let options = Options { workers: 1, ..Options::default() };
        let error = open(&listening.address, options).expect_err("in use");
        assert_eq!(error.source.kind(), io::ErrorKind::AddrInUse);
        let here = format!("process {} (", std::process::id());
        assert!(error.to_string().contains(&here), "{error}");
        let everywhere = Address::Tcp(([0, 0, 0, 0], port(&listening)).into());
        let error = open(&everywhere, options).expect_err("in use");
        assert!(error.to_string().contains(&here), "{error}");
    }

    #[test]
    fn an_address_that_comes_free_in_time_is_taken() {
        let held = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = Address::Tcp(held.local_addr().expect("an address"));
        let (begin, begun) = std::sync::mpsc::channel();
        let holder = thread::spawn(move || {
            begun.recv().expect("a word");
            thread::sleep(Duration::from_millis(30));
            drop(held);
        });
        begin.send(()).expect("it waits");
        let options = Options { workers: 1, ..Options::default() };
        assert_eq!(open(&address, options).expect("it comes free").address, address);
        holder.join().expect("a thread");
    }

    #[test]
    fn the_ipv6_wildcard_takes_ipv4_unless_it_must_not() {
        if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_err() {
            return eprintln!("SKIPPED the_ipv6_wildcard_takes_ipv4: there is no IPv6 here");
        }
        for (dual_stack, takes_ipv4) in [(DualStack::On, true), (DualStack::Off, false)] {
            let listening = listen("[::]:0", 1, dual_stack);
            let port = port(&listening);
            TcpStream::connect((Ipv6Addr::LOCALHOST, port)).expect("a listener");
            assert_eq!(TcpStream::connect(("127.0.0.1", port)).is_ok(), takes_ipv4);
        }
    }
}
