//! What is between a stream and its socket where the connection is encrypted: what comes is opened, what
//! goes is sealed, by a [`Layer`], which is all that is known of it here. Nothing here waits.
//!
//! Bytes that were taken for sending and have no room in the socket wait here. They are a part of one send,
//! at most [`PART`] bytes and what sealing adds, and go before anything else.

use std::io;
use std::net::{Shutdown, TcpStream};

use ringecho::protocol::{Layer, Progress};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use crate::tls;

/// The most bytes that are sealed at a time.
const PART: usize = 64 << 10;
/// The most bytes that a layer may hold back of what came earlier: a record of TLS (RFC 5246 section
/// 6.2.3).
const HELD_MAX: usize = 5 + (1 << 14) + 2048;

/// The layer of one connection, and what waits on both sides of it.
#[derive(Debug)]
pub(crate) struct Secured {
    layer: Box<dyn Layer>,
    /// Opened; the bytes before `taken` are taken.
    plain: Vec<u8>,
    taken: usize,
    /// Sealed; the bytes before `sent` are sent.
    sealed: Vec<u8>,
    sent: usize,
    /// Nothing more can be opened.
    has_failed: bool,
    /// Whether the sending direction is to be shut down once everything is sent.
    ends: bool,
}

impl Secured {
    /// A new connection, on which `sealed` is sent first.
    pub(crate) fn new(layer: Box<dyn Layer>, sealed: Vec<u8>) -> Secured {
        let (plain, taken, sent) = (Vec::new(), 0, 0);
        Secured { layer, plain, taken, sealed, sent, has_failed: false, ends: false }
    }

    /// Whether its handshake is done and all of this side's part was sent.
    pub(crate) fn is_open(&self) -> bool {
        self.layer.is_open() && !self.has_pending()
    }

    /// What both sides have agreed on.
    pub(crate) fn agreed(&self) -> Option<String> {
        self.layer.agreed()
    }

    /// Whether something was opened that nobody has taken.
    pub(crate) fn has_plain(&self) -> bool {
        self.taken < self.plain.len()
    }

    /// Whether something waits for room in the socket.
    pub(crate) fn has_pending(&self) -> bool {
        self.sent < self.sealed.len()
    }

    /// Sends of what waits as much as there is room for.
    pub(crate) fn push(&mut self, socket: &TcpStream) -> io::Result<()> {
        while self.has_pending() {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match send(socket, &self.sealed[self.sent..], flags) {
                Ok(count) => self.sent += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        self.sealed.clear();
        self.sent = 0;
        if std::mem::take(&mut self.ends) {
            socket.shutdown(Shutdown::Write)?;
        }
        Ok(())
    }

    /// Takes as much of `bytes` as can be sealed at once, and sends what there is room for.
    pub(crate) fn send(&mut self, socket: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
        self.push(socket)?;
        if self.has_pending() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let part = &bytes[..bytes.len().min(PART)];
        self.layer.seal(part, &mut self.sealed);
        if self.sealed.is_empty() && !part.is_empty() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        self.push(socket)?;
        Ok(part.len())
    }

    /// Receives once, and opens what has come. Into room of 64 KiB or more, it puts everything that it has
    /// opened.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::WouldBlock`] also if what has come carries nothing, such as the beginning of a
    /// record.
    pub(crate) fn receive(
        &mut self,
        socket: &TcpStream,
        room: &mut [u8],
        flags: RecvFlags,
    ) -> io::Result<usize> {
        if self.has_plain() {
            return Ok(self.take(room));
        }
        if self.has_failed {
            return Err(self.failure());
        }
        // What cannot be sent must not hide what has come, such as the alert that says why.
        let pushed = self.push(socket);
        // The layer may have held back the beginning of a record.
        let place = match room.len() {
            all if all < 2 * HELD_MAX => &mut *room,
            all => &mut room[..all - HELD_MAX],
        };
        let (count, _) = recv(socket, &mut *place, flags)?;
        if count == 0 {
            return Ok(0);
        }
        let progress = self.layer.open(&mut place[..count], &mut self.plain, &mut self.sealed);
        self.has_failed = progress == Progress::Failed;
        pushed.and_then(|()| self.push(socket)).or_else(|error| match self.has_plain() {
            true => Ok(()),
            false if self.has_failed => Err(self.failure()),
            false => Err(error),
        })?;
        match (self.has_plain(), self.has_failed) {
            (true, _) => Ok(self.take(room)),
            (false, true) => Err(self.failure()),
            (false, false) => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// Says that nothing more follows, and shuts down the sending direction after that.
    pub(crate) fn end(&mut self, socket: &TcpStream) -> io::Result<()> {
        self.layer.close(&mut self.sealed);
        self.ends = true;
        self.push(socket)
    }

    /// Says that nothing more follows, if there is room for it, because the socket is about to be closed
    /// (RFC 8446 section 6.1).
    pub(crate) fn take_leave(&mut self, socket: &TcpStream) {
        if !self.has_failed {
            self.layer.close(&mut self.sealed);
            let _ = self.push(socket);
        }
    }

    fn take(&mut self, room: &mut [u8]) -> usize {
        let left = &self.plain[self.taken..];
        let count = left.len().min(room.len());
        room[..count].copy_from_slice(&left[..count]);
        self.taken += count;
        if !self.has_plain() {
            self.plain.clear();
            self.taken = 0;
        }
        count
    }

    fn failure(&self) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, tls::failure(&*self.layer))
    }
}
