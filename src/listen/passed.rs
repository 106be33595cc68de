//! Sockets that a service manager has opened before it started this process: systemd's socket activation
//! (sd_listen_fds(3)).
//!
//! The manager keeps the sockets open, so no connection is refused while the server restarts, and it looks
//! after the files of Unix sockets. This module reads no environment; the program hands it over.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;

use listenfd::ListenFd;
use rustix::io::Errno;
use rustix::net::{self, SocketAddrAny, SocketAddrUnix, sockopt};

use super::{Address, Listening, Transport, is_same};

/// The first descriptor that is passed.
const FIRST: usize = 3;
/// The most descriptors that are taken.
const COUNT_MAX: usize = 1024;

/// What the environment says of sockets that were passed.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    /// `LISTEN_PID`: the process that they are for.
    pub pid: Option<OsString>,
    /// `LISTEN_FDS`: how many they are.
    pub fds: Option<OsString>,
    /// `LISTEN_FDNAMES`: their names, separated by colons.
    pub names: Option<OsString>,
}

/// Why sockets that were passed cannot be listened on.
#[derive(Debug)]
pub enum PassedError {
    /// A variable is not a whole number up to this one: its name, its value, the number.
    Variable(&'static str, OsString, usize),
    /// `LISTEN_FDNAMES` does not have a name for each of so many sockets.
    Names(usize),
    /// A descriptor, by its number and its name, is not what it should be.
    Descriptor(usize, String, &'static str),
    /// The kernel refuses to say something about a descriptor.
    Refused(usize, io::Error),
}

impl fmt::Display for PassedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("cannot listen on the sockets that were passed: ")?;
        match self {
            PassedError::Variable(name, value, most) => {
                write!(f, "{name} is {value:?}, not a whole number from 0 to {most}")
            }
            PassedError::Names(count) => {
                write!(f, "LISTEN_FDNAMES should have {count} names, separated by colons")
            }
            PassedError::Descriptor(number, name, problem) if name.is_empty() => {
                write!(f, "descriptor {number} {problem}")
            }
            PassedError::Descriptor(number, name, problem) => {
                write!(f, "descriptor {number} ({name}) {problem}")
            }
            PassedError::Refused(number, source) => write!(f, "descriptor {number}: {source}"),
        }
    }
}

impl std::error::Error for PassedError {}

impl Environment {
    /// How many sockets were passed to the process `pid`; those for another process are not ours.
    ///
    /// # Errors
    ///
    /// When one of the variables is malformed.
    pub fn count(&self, pid: u32) -> Result<usize, PassedError> {
        let (Some(for_pid), Some(fds)) = (&self.pid, &self.fds) else { return Ok(0) };
        let number = |name, value: &OsStr, most: usize| {
            let number = value.to_str().and_then(|text| text.parse().ok());
            number
                .filter(|&number| number <= most)
                .ok_or_else(|| PassedError::Variable(name, value.to_owned(), most))
        };
        if number("LISTEN_PID", for_pid, u32::MAX as usize)? != pid as usize {
            return Ok(0);
        }
        number("LISTEN_FDS", fds, COUNT_MAX)
    }

    /// A name for each of `count` sockets, empty if they have none.
    fn names(&self, count: usize) -> Result<Vec<String>, PassedError> {
        let Some(names) = &self.names else { return Ok(vec![String::new(); count]) };
        let names: Vec<String> = names.as_bytes().split(|&byte| byte == b':').map(lossy).collect();
        if names.len() == count { Ok(names) } else { Err(PassedError::Names(count)) }
    }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Takes all sockets that were passed. Those with the same address are listened on together.
///
/// # Errors
///
/// When one is not a stream socket of TCP or Unix that listens, on an address that can be named.
pub fn take(mut fds: ListenFd, environment: &Environment) -> Result<Vec<Listening>, PassedError> {
    let mut passed: Vec<Listening> = Vec::new();
    for (index, name) in environment.names(fds.len())?.into_iter().enumerate() {
        let number = FIRST + index;
        let wrong = |problem| PassedError::Descriptor(number, name.clone(), problem);
        let refused = |errno: Errno| PassedError::Refused(number, errno.into());
        let socket = match fds.take_tcp_listener(index) {
            Ok(Some(socket)) => OwnedFd::from(socket),
            Ok(None) | Err(_) => match fds.take_unix_listener(index) {
                Ok(Some(socket)) => OwnedFd::from(socket),
                Ok(None) | Err(_) => {
                    return Err(wrong("is not a stream socket of TCP or Unix; use ListenStream="));
                }
            },
        };
        if !sockopt::socket_acceptconn(&socket).map_err(refused)? {
            return Err(wrong("does not listen; use Accept=no"));
        }
        let address = address_of(net::getsockname(&socket).map_err(refused)?)
            .ok_or_else(|| wrong("has an address without a name in the file system"))?;
        if let Address::Tcp(_) = address {
            // Accepted sockets inherit it.
            sockopt::set_tcp_nodelay(&socket, true).map_err(refused)?;
        }
        match passed.iter_mut().find(|earlier| is_same(&earlier.address, &address)) {
            Some(earlier) => earlier.sockets.push(socket),
            None => passed.push(Listening {
                address,
                transport: Transport::Plain,
                sockets: vec![socket],
                file: None,
            }),
        }
    }
    Ok(passed)
}

fn address_of(address: SocketAddrAny) -> Option<Address> {
    if let Ok(address) = address.clone().try_into() {
        return Some(Address::Tcp(address));
    }
    let address = SocketAddrUnix::try_from(address).ok()?;
    Some(Address::Unix(OsStr::from_bytes(address.path_bytes()?).into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(pid: &str, fds: &str, names: Option<&str>) -> Environment {
        Environment { pid: Some(pid.into()), fds: Some(fds.into()), names: names.map(Into::into) }
    }

    #[test]
    fn only_sockets_for_this_process_count() {
        for (pid, fds, count) in [("7", "2", 2), ("7", "0", 0), ("8", "2", 0), ("8", "many", 0)] {
            assert_eq!(
                environment(pid, fds, None).count(7).expect("numbers"),
                count,
                "{pid} {fds}"
            );
        }
        assert_eq!(Environment::default().count(7).expect("nothing is passed"), 0);
        let without_pid = Environment { pid: None, ..environment("", "1", None) };
        assert_eq!(without_pid.count(7).expect("as sd_listen_fds does it"), 0);
    }

    #[test]
    fn malformed_variables_are_named() {
        for (pid, fds, named) in [
            ("seven", "1", "LISTEN_PID"),
            ("", "1", "LISTEN_PID"),
            ("7", "one", "LISTEN_FDS"),
            ("7", "-1", "LISTEN_FDS"),
            ("7", "", "LISTEN_FDS"),
            ("7", "1025", "LISTEN_FDS"),
        ] {
            let error = environment(pid, fds, None).count(7).expect_err("malformed").to_string();
            assert!(error.contains(named) && error.contains("whole number"), "{error}");
        }
        let environment = environment("7", "2", Some("one:two:three"));
        let error = environment.names(2).expect_err("three names").to_string();
        assert!(error.contains("LISTEN_FDNAMES should have 2 names"), "{error}");
        assert_eq!(environment.names(3).expect("three names"), ["one", "two", "three"]);
    }
}
