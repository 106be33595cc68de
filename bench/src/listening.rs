//! Where processes listen for TCP connections, as `/proc/net/tcp` and `tcp6` show it.
//!
//! Reading the tables does not connect, so the server sees no broken handshake.

use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};

/// The state LISTEN (`include/net/tcp_states.h`).
const LISTEN: &str = "0A";

/// A listening socket: its address and its inode number.
type Listener = (SocketAddr, u64);

/// All listening TCP sockets of this network namespace; nothing if `/proc` does not show them.
fn all() -> Option<Vec<Listener>> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(fs::read_to_string);
    if tables.iter().all(Result::is_err) {
        return None;
    }
    let texts = tables.iter().flatten();
    Some(texts.flat_map(|text| text.lines().filter_map(parse)).collect())
}

/// A line of one of the tables, if its socket listens.
fn parse(line: &str) -> Option<Listener> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let &[_, local, _, LISTEN, _, _, _, _, _, inode, ..] = fields.as_slice() else { return None };
    let (address, port) = local.split_once(':')?;
    let address = match address.len() {
        8 => IpAddr::from(word(address)?),
        32 => {
            let mut bytes = [0; 16];
            for (at, part) in bytes.chunks_mut(4).enumerate() {
                part.copy_from_slice(&word(address.get(8 * at..8 * at + 8)?)?);
            }
            Ipv6Addr::from(bytes).to_canonical()
        }
        _ => return None,
    };
    let port = u16::from_str_radix(port, 16).ok()?;
    Some((SocketAddr::new(address, port), inode.parse().ok()?))
}

/// Four bytes of an address, which the kernel prints as a number in this machine's byte order.
fn word(text: &str) -> Option<[u8; 4]> {
    u32::from_str_radix(text, 16).ok().map(u32::to_ne_bytes)
}

/// The address at which a server on `port` can be reached from this machine, 127.0.0.1 if possible;
/// nothing if no one listens there yet.
pub fn address_on(port: u16) -> Option<IpAddr> {
    let Some(listeners) = all() else {
        let localhosts = [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()];
        return localhosts
            .into_iter()
            .find(|&address| std::net::TcpStream::connect(SocketAddr::new(address, port)).is_ok());
    };
    let here = listeners.iter().map(|(address, _)| *address);
    let addresses: Vec<IpAddr> =
        here.filter(|address| address.port() == port).map(|address| address.ip()).collect();
    let v4 = IpAddr::from(Ipv4Addr::LOCALHOST);
    let listens_on = |address: IpAddr| addresses.contains(&address);
    if listens_on(v4) || listens_on(Ipv4Addr::UNSPECIFIED.into()) {
        return Some(v4);
    }
    if listens_on(Ipv6Addr::UNSPECIFIED.into()) {
        // It may accept IPv4 too (ipv6(7), IPV6_V6ONLY). Then its port is also in use there.
        let in_use =
            TcpListener::bind((v4, port)).is_err_and(|error| error.kind() == ErrorKind::AddrInUse);
        return Some(if in_use { v4 } else { Ipv6Addr::LOCALHOST.into() });
    }
    addresses.into_iter().min()
}

/// The addresses on which these processes listen.
pub fn addresses_of(pids: &[u32]) -> Vec<SocketAddr> {
    let descriptors = pids.iter().filter_map(|pid| fs::read_dir(format!("/proc/{pid}/fd")).ok());
    let links =
        descriptors.flatten().flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
    let inodes: Vec<u64> = links
        .filter_map(|link| link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok())
        .collect();
    let mut found: Vec<SocketAddr> = all()
        .unwrap_or_default()
        .into_iter()
        .filter(|(_, inode)| inodes.contains(inode))
        .map(|(address, _)| address)
        .collect();
    found.sort_unstable();
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn tables_of_the_kernel_are_read() {
        let of = |line| parse(line).map(|(address, inode)| (address.to_string(), inode));
        let v4 =
            "   0: 0100007F:2329 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 5 1";
        assert_eq!(of(v4), Some(("127.0.0.1:9001".to_owned(), 5)));
        let v6 = "   1: 00000000000000000000000001000000:2329 \
                  00000000000000000000000000000000:0000 0A 0:0 00:0 0 0 0 6 1";
        assert_eq!(of(v6), Some(("[::1]:9001".to_owned(), 6)));
        let mapped = v6
            .replace(":2329 ", ":0001 ")
            .replace("00000000000000000000000001000000", "0000000000000000FFFF00000100007F");
        assert_eq!(of(&mapped), Some(("127.0.0.1:1".to_owned(), 6)));
        let connected = v4.replace(" 0A ", " 01 ");
        assert_eq!(of(&connected), None);
        assert_eq!(of("  sl  local_address rem_address   st tx_queue rx_queue"), None);
    }

    #[test]
    fn a_listener_is_found_at_an_address_that_reaches_it() {
        for (listen, reach) in
            [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::1", "::1")]
        {
            let Ok(listener) = TcpListener::bind((listen, 0)) else {
                assert!(listen.contains(':'), "a machine without IPv4");
                continue;
            };
            let address = listener.local_addr().expect("an address");
            assert_eq!(address_on(address.port()), Some(reach.parse().expect("an address")));
            assert!(addresses_of(&[std::process::id()]).contains(&address));
        }
    }
}
