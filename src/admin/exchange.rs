//! One connection to the admin listener: a request is received, the answer sent, and the end of the peer awaited.
//!
//! Each of the three has a deadline, so that no peer keeps its place. Nothing here waits.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{SendFlags, Shutdown};

use super::http::{HEAD_BYTES_MAX, Method, Progress, Request, Response, parse};

/// The longest time in which a request has to come.
pub const REQUEST_TIME_MAX: Duration = Duration::from_secs(5);
/// The longest time in which an answer has to be taken.
pub const RESPONSE_TIME_MAX: Duration = Duration::from_secs(10);
/// How long to wait for the end of a peer that has its answer. Closing before would reset the connection if
/// anything more had come, and the answer might be lost (RFC 9112 section 9.6).
pub const LINGER_MAX: Duration = Duration::from_secs(1);

/// What is done on a connection.
#[derive(Debug)]
enum Stage {
    /// The head of a request is received.
    Receiving(Vec<u8>),
    /// The answer is sent, of which so many bytes are gone.
    Sending(Vec<u8>, usize),
    /// What still comes is dropped.
    Draining,
}

/// Whether a connection goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outlook {
    Open,
    Over,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Exchange {
    socket: OwnedFd,
    stage: Stage,
    until: Instant,
}

impl AsFd for Exchange {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Exchange {
    /// A connection that was accepted now. The socket must not block.
    pub(super) fn new(socket: OwnedFd, now: Instant) -> Exchange {
        Exchange { socket, stage: Stage::Receiving(Vec::new()), until: now + REQUEST_TIME_MAX }
    }

    /// When it has to go on, at the latest.
    pub(super) fn until(&self) -> Instant {
        self.until
    }

    /// What it waits for.
    pub(super) fn awaited(&self) -> PollFlags {
        match self.stage {
            Stage::Receiving(_) | Stage::Draining => PollFlags::IN,
            Stage::Sending(..) => PollFlags::OUT,
        }
    }

    /// Its deadline has come: a request that is not whole is answered, everything else is over.
    pub(super) fn expired(&mut self, now: Instant) -> Outlook {
        match &self.stage {
            Stage::Receiving(received) if !received.is_empty() => {
                let told = Response::told(408, "The request took too long.");
                self.send(told.encode(Method::Get), now)
            }
            Stage::Receiving(_) | Stage::Sending(..) | Stage::Draining => Outlook::Over,
        }
    }

    /// Goes on, now that what it waited for has come.
    pub(super) fn proceed(
        &mut self,
        now: Instant,
        answer: impl FnOnce(&Request) -> Response,
    ) -> Outlook {
        match &mut self.stage {
            Stage::Receiving(received) => {
                let mut piece = [0; HEAD_BYTES_MAX];
                match rustix::io::read(&self.socket, &mut piece) {
                    Ok(0) => return Outlook::Over,
                    Ok(length) => received.extend_from_slice(&piece[..length]),
                    Err(Errno::AGAIN | Errno::INTR) => return Outlook::Open,
                    Err(_) => return Outlook::Over,
                }
                let (method, response) = match parse(received) {
                    Progress::Partial => return Outlook::Open,
                    Progress::Whole(request) => (request.method, answer(&request)),
                    Progress::Refused(response) => (Method::Get, response),
                };
                self.send(response.encode(method), now)
            }
            Stage::Sending(..) => self.send_more(now),
            Stage::Draining => {
                let mut piece = [0; HEAD_BYTES_MAX];
                match rustix::io::read(&self.socket, &mut piece) {
                    Ok(1..) | Err(Errno::AGAIN | Errno::INTR) => Outlook::Open,
                    Ok(0) | Err(_) => Outlook::Over,
                }
            }
        }
    }

    fn send(&mut self, response: Vec<u8>, now: Instant) -> Outlook {
        self.stage = Stage::Sending(response, 0);
        self.until = now + RESPONSE_TIME_MAX;
        self.send_more(now)
    }

    /// Sends as much as the socket takes.
    fn send_more(&mut self, now: Instant) -> Outlook {
        let Stage::Sending(response, sent) = &mut self.stage else { return Outlook::Open };
        while *sent < response.len() {
            match rustix::net::send(&self.socket, &response[*sent..], SendFlags::NOSIGNAL) {
                Ok(length) => *sent += length,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Outlook::Open,
                Err(_) => return Outlook::Over,
            }
        }
        // It fails if the peer has reset the connection, which the next read finds out.
        let _ = rustix::net::shutdown(&self.socket, Shutdown::Write);
        self.stage = Stage::Draining;
        self.until = now + LINGER_MAX;
        Outlook::Open
    }
}
