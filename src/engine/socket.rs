//! Listening sockets.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketFlags, SocketType, sockopt};

/// Connections that may wait to be accepted, on each listener. The kernel lowers it to
/// `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

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
