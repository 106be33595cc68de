//! What is known of each open socket and listener.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, sockopt};

use super::edges::LISTENER;
use crate::engine::ring::Reply;
use crate::slab::ConnectionId;

/// What shows that a socket has no more input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EmptyWhen {
    /// A receive returned less than there was room for, as with TCP (epoll(7), "Questions and answers").
    ShortReceive,
    /// A receive failed with `EAGAIN`.
    Again,
}

/// An open socket.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) fd: OwnedFd,
    /// Known from its first operation on.
    pub(super) id: Option<ConnectionId>,
    pub(super) empty_when: EmptyWhen,
    pub(super) is_receiving: bool,
    /// The most that the next receive may take, in bytes, and whether another one follows it.
    pub(super) receive_max: usize,
    pub(super) is_single: bool,
    /// Whether there may be input: an edge came, and since then nothing has shown that the socket is
    /// empty.
    pub(super) is_readable: bool,
    /// Whether the peer has ended or broken the connection, which only a receive that finds no bytes
    /// reports.
    pub(super) has_ended: bool,
    /// Whether it is among the places to be read.
    pub(super) is_queued: bool,
    /// A reply that waits until the socket takes more.
    pub(super) waiting: Option<Reply>,
}

/// An open listener.
#[derive(Debug)]
pub(super) struct Listener {
    pub(super) fd: OwnedFd,
    pub(super) is_accepting: bool,
    pub(super) is_readable: bool,
    /// Of the sockets that it accepts.
    pub(super) empty_when: EmptyWhen,
}

impl Listener {
    /// A listener whose edges come with its `number`.
    pub(super) fn watched(fd: OwnedFd, number: u64, epoll: &OwnedFd) -> Result<Listener, Errno> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        // Several workers may listen on one socket; a connection should wake only one of them.
        let flags = EventFlags::IN | EventFlags::EXCLUSIVE | EventFlags::ET;
        epoll::add(epoll, &fd, EventData::new_u64(LISTENER | number), flags)?;
        let family = sockopt::socket_domain(&fd)?;
        let is_tcp = family == AddressFamily::INET || family == AddressFamily::INET6;
        Ok(Listener {
            fd,
            is_accepting: false,
            // Connections may have come before it was watched.
            is_readable: true,
            empty_when: if is_tcp { EmptyWhen::ShortReceive } else { EmptyWhen::Again },
        })
    }
}

/// Puts a socket among those to be read, unless it is there already.
#[inline]
pub(super) fn queue(readable: &mut VecDeque<i32>, entry: &mut Entry, place: i32) {
    if entry.is_receiving && !entry.is_queued {
        entry.is_queued = true;
        readable.push_back(place);
    }
}
