//! Addresses to listen on: how they are written, what is spoken there, and whether two of them are in each other's
//! way.
//!
//! This module opens no socket. It looks at the file system only to tell whether two paths lead to
//! the same file.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The prefix of a Unix socket's address.
const UNIX: &str = "unix:";
/// Bytes of the longest path of a Unix socket, without the zero that ends it (unix(7)).
const UNIX_PATH_BYTES_MAX: usize = 107;

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// An IP address and a port; port 0 means a free one.
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

/// What connections to an address carry the protocol in.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// Nothing: it lies open.
    #[default]
    Plain,
    /// TLS.
    Tls,
}

/// An address to listen on, and what is spoken there. It is written as an address alone, which is plain, or as the
/// URL of one: `ws://` is plain too, `wss://` is TLS (RFC 6455 section 3). Unix sockets have no URL, and no TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Where to listen.
    pub address: Address,
    /// What is spoken there.
    pub transport: Transport,
}

impl From<Address> for Endpoint {
    /// A plain one.
    fn from(address: Address) -> Endpoint {
        Endpoint { address, transport: Transport::Plain }
    }
}

impl FromStr for Endpoint {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Endpoint, AddressError> {
        if text.starts_with(UNIX) {
            return text.parse::<Address>().map(Endpoint::from);
        }
        let (transport, text) = match text.split_once("://") {
            None => return text.parse::<Address>().map(Endpoint::from),
            Some(("ws", rest)) => (Transport::Plain, rest),
            Some(("wss", rest)) => (Transport::Tls, rest),
            Some(_) => return Err(AddressError::Scheme),
        };
        // A URL may end with a path, of which this is the least.
        match text.strip_suffix('/').unwrap_or(text).parse()? {
            Address::Unix(_) => Err(AddressError::UnixScheme),
            address => Ok(Endpoint { address, transport }),
        }
    }
}

/// Why a text is not an address to listen on; says what to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressError {
    /// It is neither an IP address with a port nor `unix:` with a path.
    Malformed,
    /// It is an IP address, or a host name, without a port.
    NoPort,
    /// Its port is no number, or larger than 65535.
    Port,
    /// Its IPv6 address has a zone that is no number.
    Zone,
    /// It stands for a group of machines or for all of them, and a TCP connection leads to one.
    Group,
    /// It is a URL of another scheme than WebSocket's.
    Scheme,
    /// It is the URL of a Unix socket.
    UnixScheme,
    /// No path follows `unix:`.
    NoPath,
    /// The path can only be that of a directory.
    Directory,
    /// The path is longer than the kernel takes.
    LongPath,
}

impl fmt::Display for AddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AddressError::Malformed => f.write_str(
                "write an IP address and a port, such as 127.0.0.1:9001, 0.0.0.0:9001 or [::]:9001, \
                 or unix:/PATH",
            ),
            AddressError::NoPort => {
                f.write_str("the port is missing; write it after a colon, such as 127.0.0.1:9001 or [::]:9001")
            }
            AddressError::Port => f.write_str("write a port from 0 to 65535"),
            AddressError::Zone => f.write_str(
                "write the number of the interface after %, such as [fe80::1%2]:9001; ip link shows it",
            ),
            AddressError::Group => f.write_str(
                "multicast and broadcast addresses take no connections; write an address of this \
                 machine, or 0.0.0.0 or [::] for all of them",
            ),
            AddressError::Scheme => f.write_str("write ws:// or wss:// before the address, or nothing"),
            AddressError::UnixScheme => f.write_str(
                "a Unix socket is plain, since it does not leave the machine; write unix:/PATH alone",
            ),
            AddressError::NoPath => f.write_str(
                "the path is missing; write it after unix:, such as unix:/run/ringecho.sock",
            ),
            AddressError::Directory => {
                f.write_str("a path that ends with / is a directory; write the path of a file in it")
            }
            AddressError::LongPath => {
                write!(f, "the path of a Unix socket has at most {UNIX_PATH_BYTES_MAX} bytes")
            }
        }
    }
}

impl std::error::Error for AddressError {}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Address, AddressError> {
        if let Some(path) = text.strip_prefix(UNIX) {
            return match path.len() {
                0 => Err(AddressError::NoPath),
                _ if path.ends_with('/') => Err(AddressError::Directory),
                1..=UNIX_PATH_BYTES_MAX => Ok(Address::Unix(path.into())),
                _ => Err(AddressError::LongPath),
            };
        }
        let Ok(address) = text.parse::<SocketAddr>() else { return Err(what_is_wrong(text)) };
        // An IPv4 address in IPv6 form is that IPv4 address (RFC 4291 section 2.5.5.2).
        let address = match address {
            SocketAddr::V6(long) => match long.ip().to_ipv4_mapped() {
                Some(ip) => (ip, long.port()).into(),
                None => address,
            },
            SocketAddr::V4(_) => address,
        };
        let is_broadcast = address.ip() == IpAddr::V4(Ipv4Addr::BROADCAST);
        if is_broadcast || address.ip().is_multicast() {
            return Err(AddressError::Group);
        }
        Ok(Address::Tcp(address))
    }
}

/// Why a text is not an IP address with a port.
fn what_is_wrong(text: &str) -> AddressError {
    if text.trim_matches(['[', ']']).parse::<IpAddr>().is_ok() {
        return AddressError::NoPort;
    }
    let Some((host, _)) = text.rsplit_once(':') else { return AddressError::Malformed };
    let is_address = |host: &str| format!("{host}:0").parse::<SocketAddr>().is_ok();
    match host.split_once('%') {
        _ if is_address(host) => AddressError::Port,
        Some((address, _)) if is_address(&format!("{address}]")) => AddressError::Zone,
        Some(_) | None => AddressError::Malformed,
    }
}

/// Whether a socket on the IPv6 wildcard address takes IPv4 connections as well.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum DualStack {
    /// `[::]` takes both.
    #[default]
    On,
    /// `[::]` takes IPv6 alone.
    Off,
}

/// Two addresses of a list of which one is superfluous.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overlap<'a> {
    /// The address that takes all connections of the other.
    pub outer: &'a Address,
    /// The other.
    pub inner: &'a Address,
}

impl fmt::Display for Overlap<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Overlap { outer, inner } = self;
        if outer == inner {
            write!(f, "{outer} is given twice")
        } else if matches!(outer, Address::Unix(_)) {
            write!(f, "{outer} and {inner} are the same file")
        } else {
            write!(f, "{outer} already takes the connections to {inner}")
        }
    }
}

/// The first two of `addresses` that cannot both be listened on.
pub fn overlap(addresses: &[Address], dual_stack: DualStack) -> Option<Overlap<'_>> {
    let pairs = addresses.iter().enumerate().flat_map(|(number, address)| {
        addresses[..number].iter().map(move |earlier| (earlier, address))
    });
    pairs.into_iter().find_map(|(earlier, later)| {
        if covers(earlier, later, dual_stack) {
            Some(Overlap { outer: earlier, inner: later })
        } else if covers(later, earlier, dual_stack) {
            Some(Overlap { outer: later, inner: earlier })
        } else {
            None
        }
    })
}

/// Whether a listener on `outer` gets the connections to `inner`.
pub(super) fn covers(outer: &Address, inner: &Address, dual_stack: DualStack) -> bool {
    match (outer, inner) {
        (Address::Tcp(outer), Address::Tcp(inner)) => {
            let is_same_port = outer.port() != 0 && outer.port() == inner.port();
            is_same_port
                && match (outer, inner) {
                    (SocketAddr::V4(outer), SocketAddr::V4(inner)) => {
                        outer.ip().is_unspecified() || outer.ip() == inner.ip()
                    }
                    (SocketAddr::V6(outer), SocketAddr::V6(inner)) => {
                        let is_same = outer.ip() == inner.ip();
                        outer.ip().is_unspecified()
                            || (is_same && outer.scope_id() == inner.scope_id())
                    }
                    (SocketAddr::V6(outer), SocketAddr::V4(_)) => {
                        outer.ip().is_unspecified() && dual_stack == DualStack::On
                    }
                    (SocketAddr::V4(_), SocketAddr::V6(_)) => false,
                }
        }
        (Address::Unix(outer), Address::Unix(inner)) => real(outer) == real(inner),
        (Address::Tcp(_), Address::Unix(_)) | (Address::Unix(_), Address::Tcp(_)) => false,
    }
}

/// Whether a listener on one of the addresses gets just the connections of the other: they are one address, and
/// not port 0, which is another one each time.
pub fn is_same(one: &Address, other: &Address) -> bool {
    covers(one, other, DualStack::On) && covers(other, one, DualStack::On)
}

/// The path without links in its directory; as it stands where the directory does not exist.
fn real(path: &Path) -> PathBuf {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let directory = parent.unwrap_or(Path::new(".")).canonicalize();
    match (directory, path.file_name()) {
        (Ok(directory), Some(name)) => directory.join(name),
        (Ok(_) | Err(_), _) => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Address {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn addresses_are_read_and_written_alike() {
        for text in ["127.0.0.1:9001", "0.0.0.0:0", "[::]:80", "[fe80::1%2]:80", "unix:/run/a b"] {
            assert_eq!(address(text).to_string(), text);
        }
        assert_eq!(address("[::ffff:127.0.0.1]:80"), address("127.0.0.1:80"));
        assert_eq!(address("[0:0::0]:80"), address("[::]:80"));
    }

    #[test]
    fn errors_say_what_to_write() {
        for (text, error) in [
            ("", AddressError::Malformed),
            ("9001", AddressError::Malformed),
            (":9001", AddressError::Malformed),
            ("localhost:9001", AddressError::Malformed),
            ("*:9001", AddressError::Malformed),
            ("/run/socket", AddressError::Malformed),
            ("127.0.0.1:65536", AddressError::Port),
            ("[::]:70000", AddressError::Port),
            ("127.0.0.1:", AddressError::Port),
            ("127.0.0.1:http", AddressError::Port),
            ("[fe80::1%2]:-1", AddressError::Port),
            ("[fe80::1%eth0]:80", AddressError::Zone),
            ("[fe80::1%]:80", AddressError::Zone),
            ("[x%eth0]:80", AddressError::Malformed),
            ("224.0.0.1:80", AddressError::Group),
            ("255.255.255.255:80", AddressError::Group),
            ("[ff02::1]:80", AddressError::Group),
            ("[::ffff:224.0.0.1]:80", AddressError::Group),
            ("unix:/run/", AddressError::Directory),
            ("::1:9001", AddressError::NoPort),
            ("127.0.0.1", AddressError::NoPort),
            ("[::1]", AddressError::NoPort),
            ("unix:", AddressError::NoPath),
        ] {
            assert_eq!(text.parse::<Address>(), Err(error), "{text}");
        }
        let longest = format!("unix:{}", "x".repeat(UNIX_PATH_BYTES_MAX));
        assert_eq!(address(&longest).to_string(), longest);
        assert_eq!((longest + "x").parse::<Address>(), Err(AddressError::LongPath));
    }

    #[test]
    fn a_url_says_what_is_spoken() {
        for (text, transport) in [
            ("127.0.0.1:9001", Transport::Plain),
            ("ws://127.0.0.1:9001", Transport::Plain),
            ("wss://127.0.0.1:9001", Transport::Tls),
            ("wss://127.0.0.1:9001/", Transport::Tls),
        ] {
            let expected = Endpoint { address: address("127.0.0.1:9001"), transport };
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
        let unix = "unix:/run/wss://socket";
        assert_eq!(unix.parse(), Ok(Endpoint::from(address(unix))));
        for (text, error) in [
            ("https://127.0.0.1:443", AddressError::Scheme),
            ("WSS://127.0.0.1:443", AddressError::Scheme),
            ("://127.0.0.1:443", AddressError::Scheme),
            ("wss://", AddressError::Malformed),
            ("wss://127.0.0.1", AddressError::NoPort),
            ("wss://localhost:443", AddressError::Malformed),
            ("wss://127.0.0.1:443/path", AddressError::Port),
            ("wss://unix:/run/socket", AddressError::UnixScheme),
            ("ws://unix:/run/socket", AddressError::UnixScheme),
        ] {
            assert_eq!(text.parse::<Endpoint>(), Err(error), "{text}");
        }
    }

    /// Pairs that overlap, and what is said of them.
    const OVERLAPS: [(&str, &str, &str); 12] = [
        ("127.0.0.1:9001", "127.0.0.1:9001", "127.0.0.1:9001 is given twice"),
        ("[::1]:9001", "[0:0::1]:9001", "[::1]:9001 is given twice"),
        ("[::ffff:127.0.0.1]:1", "127.0.0.1:1", "127.0.0.1:1 is given twice"),
        ("[::]:1", "0.0.0.0:1", "[::]:1 already takes the connections to 0.0.0.0:1"),
        ("0.0.0.0:1", "[::]:1", "[::]:1 already takes the connections to 0.0.0.0:1"),
        ("[::]:1", "127.0.0.1:1", "[::]:1 already takes the connections to 127.0.0.1:1"),
        ("[::]:1", "[::1]:1", "[::]:1 already takes the connections to [::1]:1"),
        ("127.0.0.1:1", "0.0.0.0:1", "0.0.0.0:1 already takes the connections to 127.0.0.1:1"),
        ("unix:/run/a", "unix:/run/a", "unix:/run/a is given twice"),
        ("unix:/run/a", "unix:/run//./a", "unix:/run/a is given twice"),
        ("unix:/run/a", "unix:/usr/../run/a", "are the same file"),
        ("unix:/proc/self/cwd/a", "unix:a", "are the same file"),
    ];

    #[test]
    fn an_address_that_another_one_covers_is_found_in_any_spelling() {
        for (first, second, told) in OVERLAPS {
            let addresses = ["127.0.0.1:7", first, "unix:/run/b", second].map(address);
            let found = overlap(&addresses, DualStack::On).expect(told);
            assert!(found.to_string().contains(told), "{found}");
        }
    }

    #[test]
    fn addresses_beside_each_other_do_not_overlap() {
        for (first, second) in [
            ("127.0.0.1:0", "127.0.0.1:0"),
            ("[::]:0", "0.0.0.0:0"),
            ("127.0.0.1:1", "127.0.0.1:2"),
            ("127.0.0.1:1", "127.0.0.2:1"),
            ("127.0.0.1:1", "[::1]:1"),
            ("0.0.0.0:1", "[::1]:1"),
            ("[fe80::1%1]:1", "[fe80::1%2]:1"),
            ("unix:/run/a", "unix:/run/b"),
            ("unix:/nowhere/a", "unix:/nowhere/b"),
        ] {
            assert_eq!(overlap(&[first, second].map(address), DualStack::On), None, "{first}");
        }
        let wildcards = ["[::]:1", "0.0.0.0:1"].map(address);
        assert_eq!(overlap(&wildcards, DualStack::Off), None);
        assert!(overlap(&wildcards, DualStack::On).is_some());
    }
}
