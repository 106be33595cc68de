//! The system calls of sockets that the ring makes: accept4(2), recv(2), send(2) and close(2), each with
//! what it changes in the table of sockets.
//!
//! This file does not decide when a call is made; `ring` does.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{self, RecvFlags, SendFlags, SocketFlags};

use super::edges::CONNECTION;
use super::ring::EpollRing;
use super::sockets::{EmptyWhen, Entry, Listener, queue};
use crate::engine::ring::{
    ADMISSIONS_MAX, Completion, Further, LAST_ADMISSIONS_MAX, Received, Reply, Sent, Socket,
};
use crate::slab::ConnectionId;

impl EpollRing<'_> {
    /// One send(2).
    #[inline]
    pub(super) fn attempt(&mut self, place: i32, id: ConnectionId, reply: Reply) -> (Sent, u32) {
        let entry = self.entries[place as usize].as_ref().expect("its socket is open");
        debug_assert_eq!(entry.id, Some(id));
        let bytes = match &reply {
            Reply::Pinned(pinned) => self.buffers.sent(pinned),
            Reply::Heap(bytes) => bytes,
        };
        self.counters.syscalls.add(1);
        let sent = net::send(&entry.fd, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
        reply.ended(sent.map(|count| count as u32), |lease| self.buffers.recycle(lease))
    }

    /// Reads each socket that may have input once, as long as there are buffers.
    #[inline]
    pub(super) fn read(&mut self, completions: &mut Vec<Completion>) {
        for _ in 0..self.readable.len() {
            // Sockets that are left over come first the next time.
            if self.buffers.ready() == 0 {
                return;
            }
            let place = self.readable.pop_front();
            completions.extend(place.and_then(|place| self.read_one(place)));
        }
    }

    /// One recv(2), if the socket is still to be read.
    #[inline]
    fn read_one(&mut self, place: i32) -> Option<Completion> {
        let entry = self.entries[place as usize].as_mut().filter(|entry| entry.is_queued)?;
        entry.is_queued = false;
        if !entry.is_receiving {
            return None;
        }
        let room = self.buffers.room();
        let length = room.len().min(entry.receive_max);
        let room = &mut room[..length];
        self.counters.syscalls.add(1);
        let result = net::recv(&entry.fd, room, RecvFlags::DONTWAIT).map(|(_, count)| count);
        let id = entry.id.expect("it receives");
        let received = match result {
            Ok(0) => Received::End,
            Ok(count) => {
                let is_empty = entry.empty_when == EmptyWhen::ShortReceive
                    && count < length
                    && !entry.has_ended;
                entry.is_readable = !is_empty;
                entry.is_receiving = !entry.is_single;
                if entry.is_readable {
                    queue(&mut self.readable, entry, place);
                }
                let bytes = count as u32;
                let received = Received::Data { lease: self.buffers.lease(bytes), bytes };
                let further = if entry.is_single { Further::Over } else { Further::More };
                return Some(Completion::Received { id, received, further });
            }
            Err(Errno::AGAIN) => {
                entry.is_readable = false;
                return None;
            }
            Err(Errno::INTR) => {
                queue(&mut self.readable, entry, place);
                return None;
            }
            Err(errno) => Received::Failed(errno),
        };
        entry.is_receiving = false;
        Some(Completion::Received { id, received, further: Further::Over })
    }

    /// Accepts waiting connections: at most [`ADMISSIONS_MAX`] on each listener, so that the open ones do
    /// not have to wait long.
    pub(super) fn accept_some(&mut self, completions: &mut Vec<Completion>) {
        for number in 0..self.listeners.len() {
            for _ in 0..ADMISSIONS_MAX {
                let Some((result, further)) = self.accept_one(number) else { break };
                let listener = number as u32;
                completions.push(Completion::Accepted { listener, result, further });
            }
        }
    }

    /// One accept4(2), if it is asked for and a connection may wait.
    fn accept_one(&mut self, number: usize) -> Option<(Result<Socket, Errno>, Further)> {
        let listener = self.listeners[number].as_mut();
        let listener = listener.filter(|it| it.is_accepting && it.is_readable)?;
        let empty_when = listener.empty_when;
        self.counters.syscalls.add(1);
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let result = match net::accept_with(&listener.fd, flags) {
            Err(Errno::AGAIN) => {
                listener.is_readable = false;
                return None;
            }
            result => result.and_then(|fd| self.add(fd, empty_when)),
        };
        if result.is_ok() {
            return Some((result, Further::More));
        }
        // The connections are still waiting, but no further edge will say so.
        if let Some(listener) = &mut self.listeners[number] {
            listener.is_accepting = false;
        }
        Some((result, Further::Over))
    }

    /// Closes a listener, after accepting the connections that wait on it.
    pub(super) fn accept_last(&mut self, number: usize, waiting: &mut VecDeque<Socket>) {
        let Some(Listener { fd, empty_when, .. }) = self.listeners[number].take() else { return };
        self.counters.syscalls.add(2);
        // Closing it would not do that: another process may have a descriptor of the same socket.
        let _ = epoll::delete(&self.edges.epoll, &fd);
        for _ in 0..LAST_ADMISSIONS_MAX {
            self.counters.syscalls.add(1);
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let accepted = net::accept_with(&fd, flags);
            let Ok(socket) = accepted.and_then(|socket| self.add(socket, empty_when)) else {
                break;
            };
            waiting.push_back(socket);
        }
    }

    /// Watches a socket. Edges that come before its first receive are remembered.
    pub(super) fn add(&mut self, fd: OwnedFd, empty_when: EmptyWhen) -> Result<Socket, Errno> {
        let place = self.vacant.pop().unwrap_or_else(|| {
            self.entries.push(None);
            i32::try_from(self.entries.len() - 1).expect("fewer than 2^31 descriptors")
        });
        let flags =
            EventFlags::IN | EventFlags::PRI | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        self.counters.syscalls.add(1);
        let data = EventData::new_u64(CONNECTION | place as u64);
        if let Err(errno) = epoll::add(&self.edges.epoll, &fd, data, flags) {
            self.counters.syscalls.add(1);
            self.vacant.push(place);
            return Err(errno);
        }
        self.entries[place as usize] = Some(Entry {
            fd,
            id: None,
            empty_when,
            is_receiving: false,
            receive_max: 0,
            is_single: false,
            // The first request often arrives together with the connection.
            is_readable: true,
            has_ended: false,
            is_queued: false,
            waiting: None,
        });
        Ok(Socket(place))
    }

    pub(super) fn remove(&mut self, socket: &Socket) {
        // Closing also removes it from the epoll instance.
        self.counters.syscalls.add(1);
        self.entries[socket.0 as usize] = None;
        self.vacant.push(socket.0);
    }
}
