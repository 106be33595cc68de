//! Which process holds an address, as far as `/proc` says (proc(5)).
//!
//! It looks only after listening has failed, so it may be slow; what it cannot read it leaves out.

use std::fmt;

use procfs::net::{TcpState, UnixState};
use procfs::process::{FDTarget, all_processes};

use super::address::{Address, DualStack, covers};

/// Who has a listening socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// A process.
    Process {
        /// Its process id.
        pid: i32,
        /// Its name.
        name: String,
    },
    /// A process of this user, at which this process may not look.
    User(u32),
    /// `/proc` does not show it.
    Unknown,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Holder::Process { pid, name } => write!(f, "process {pid} ({name})"),
            Holder::User(uid) => write!(f, "a process of user {uid}"),
            Holder::Unknown => f.write_str("another process"),
        }
    }
}

/// A listening socket: its inode, and the user who made it where that is known.
struct Socket {
    inode: u64,
    uid: Option<u32>,
}

impl Holder {
    /// The process that listens where a socket at `address` would.
    pub(super) fn of(address: &Address, dual_stack: DualStack) -> Holder {
        let sockets = match address {
            Address::Tcp(_) => tcp_sockets(address, dual_stack),
            Address::Unix(_) => unix_sockets(address),
        };
        let process = sockets.iter().find_map(|socket| process_with(socket.inode));
        let user = sockets.iter().find_map(|socket| socket.uid);
        process.or(user.map(Holder::User)).unwrap_or(Holder::Unknown)
    }
}

fn tcp_sockets(address: &Address, dual_stack: DualStack) -> Vec<Socket> {
    let tables = [procfs::net::tcp(), procfs::net::tcp6()];
    let listening = tables.into_iter().flatten().flatten().filter(|entry| {
        // The tables do not say whether a socket on [::] takes IPv4 too.
        let theirs = Address::Tcp(entry.local_address);
        entry.state == TcpState::Listen
            && (covers(&theirs, address, DualStack::On) || covers(address, &theirs, dual_stack))
    });
    listening.map(|entry| Socket { inode: entry.inode, uid: Some(entry.uid) }).collect()
}

fn unix_sockets(address: &Address) -> Vec<Socket> {
    let is_there = |path| covers(&Address::Unix(path), address, DualStack::On);
    let sockets = procfs::net::unix().into_iter().flatten();
    let listening = sockets.filter(|entry| {
        entry.state == UnixState::UNCONNECTED && entry.path.clone().is_some_and(is_there)
    });
    listening.map(|entry| Socket { inode: entry.inode, uid: None }).collect()
}

/// The process that has a descriptor of the socket.
fn process_with(inode: u64) -> Option<Holder> {
    let has_it = |process: &procfs::process::Process| {
        let descriptors = process.fd().into_iter().flatten().flatten();
        descriptors.into_iter().any(
            |descriptor| matches!(descriptor.target, FDTarget::Socket(found) if found == inode),
        )
    };
    let process = all_processes().ok()?.flatten().find(has_it)?;
    let name = process.stat().map(|stat| stat.comm).unwrap_or_default();
    Some(Holder::Process { pid: process.pid(), name })
}
