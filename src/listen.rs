//! Listening sockets.

use std::fmt;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};

/// Connections that may wait to be accepted, on each listener. The kernel lowers it to
/// `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// An address and a port; port 0 means a free one.
    Tcp(SocketAddr),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(address) => address.fmt(f),
            Address::Unix(path) => write!(f, "{UNIX}{}", path.display()),
        }
    }
}

/// What a Unix socket's address begins with.
pub const UNIX: &str = "unix:";

/// The file of a Unix socket, which goes with this value.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Device and number, so that another's file at the same path is left alone.
    identity: (u64, u64),
}

impl SocketFile {
    fn at(path: &Path) -> io::Result<SocketFile> {
        Ok(SocketFile { path: path.to_owned(), identity: identity(path)? })
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let found = fs::symlink_metadata(path)?;
    Ok((found.dev(), found.ino()))
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|found| found == self.identity) {
            // Where it is refused, the file is found to be stale the next time.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Opens a listener for each of `workers` on one Unix socket, which all of them share. `mode` is the
/// file's, if not what the umask leaves; who may write to it may connect. A file that nobody listens
/// on is replaced.
///
/// # Errors
///
/// When somebody listens there, the file is none of a socket, or cannot be made.
pub fn listen_unix(
    path: &Path,
    mode: Option<u32>,
    workers: usize,
) -> io::Result<(Vec<OwnedFd>, SocketFile)> {
    remove_stale(path)?;
    let flags = SocketFlags::CLOEXEC;
    let listener = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    net::bind(&listener, &SocketAddrUnix::new(path)?)?;
    let file = SocketFile::at(path)?;
    if let Some(mode) = mode {
        // Nobody can connect before the socket listens.
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    }
    net::listen(&listener, BACKLOG)?;
    let shared =
        (1..workers).map(|_| listener.try_clone()).collect::<io::Result<Vec<OwnedFd>>>()?;
    Ok((std::iter::once(listener).chain(shared).collect(), file))
}

/// Removes the file of a socket on which nobody listens any more.
fn remove_stale(path: &Path) -> io::Result<()> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !found.file_type().is_socket() {
        return Err(Errno::EXIST.into());
    }
    // One that waits would wait for as long as the listener's queue is full.
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let probe = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match net::connect(&probe, &SocketAddrUnix::new(path)?) {
        Err(Errno::CONNREFUSED) => fs::remove_file(path),
        Ok(()) | Err(Errno::AGAIN) => Err(Errno::ADDRINUSE.into()),
        Err(error) => Err(error.into()),
    }
}

/// Opens one listener for each of `workers` on the same address, between which the kernel
/// distributes the connections. Port 0 becomes a free port, the same for all. Returns the
/// listeners and the address with its real port.
///
/// # Errors
///
/// When the address is in use, also by another process that would share it, or cannot be had.
pub fn listen(address: SocketAddr, workers: usize) -> io::Result<(Vec<OwnedFd>, SocketAddr)> {
    // Listeners with SO_REUSEPORT would quietly share the address with those of another process
    // of the same user; one without it finds that out. It is bound but never listens, so it leaves
    // nothing behind.
    let probe = socket(address)?;
    net::bind(&probe, &address)?;
    let address = local_address(&probe)?;
    drop(probe);
    let listeners = (0..workers)
        .map(|_| {
            let listener = socket(address)?;
            sockopt::set_socket_reuseport(&listener, true)?;
            // Accepted sockets inherit it.
            sockopt::set_tcp_nodelay(&listener, true)?;
            net::bind(&listener, &address)?;
            net::listen(&listener, BACKLOG)?;
            Ok(listener)
        })
        .collect::<io::Result<Vec<OwnedFd>>>()?;
    Ok((listeners, address))
}

fn socket(address: SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if address.is_ipv6() {
        // `[::]` and `0.0.0.0` are two addresses.
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    Ok(socket)
}

fn local_address(socket: &OwnedFd) -> io::Result<SocketAddr> {
    let address = net::getsockname(socket)?;
    SocketAddr::try_from(address).map_err(|_| Errno::AFNOSUPPORT.into())
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpStream};

    use super::*;

    #[test]
    fn all_listeners_share_one_free_port() {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let (listeners, address) = listen(any, 3).expect("three listeners");
        assert_eq!(listeners.len(), 3);
        assert_ne!(address.port(), 0);
        TcpStream::connect(address).expect("a listener");
    }

    #[test]
    fn an_address_in_use_is_an_error_even_if_it_could_be_shared() {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let (_listeners, address) = listen(any, 1).expect("a listener");
        let error = listen(address, 1).expect_err("in use");
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }
}
