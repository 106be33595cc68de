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

/// What is done to what is sealed from then on, to test how a peer takes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sealing {
    /// At most so many bytes go into a record.
    Records(usize),
    /// At most so many bytes leave at a time.
    Segments(usize),
    /// The last byte of the next send is changed.
    Spoiled,
    /// The last byte of the next send is left out. Nothing can be sent after that.
    Cut,
    /// These bytes are sent, without being sealed.
    Raw(&'static [u8]),
    /// The end does not say that nothing more follows.
    EndUnsaid,
}

/// What waits to be done to the next send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Spoiled,
    Cut,
}

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
    /// The peer has said that nothing more follows, or has ended its direction without that.
    has_said_end: bool,
    has_ended: bool,
    /// Nothing more is to be said, not even that nothing more follows.
    is_mute: bool,
    record_bytes: usize,
    segment_bytes: usize,
    fault: Option<Fault>,
    /// Whether the sending direction is to be shut down once everything is sent.
    ends: bool,
}

impl Secured {
    /// A new connection, on which `sealed` is sent first.
    pub(crate) fn new(layer: Box<dyn Layer>, sealed: Vec<u8>) -> Secured {
        Secured {
            layer,
            plain: Vec::new(),
            taken: 0,
            sealed,
            sent: 0,
            has_failed: false,
            has_said_end: false,
            has_ended: false,
            is_mute: false,
            record_bytes: usize::MAX,
            segment_bytes: usize::MAX,
            fault: None,
            ends: false,
        }
    }

    /// Seals otherwise from now on.
    pub(crate) fn seal_otherwise(&mut self, socket: &TcpStream, how: Sealing) -> io::Result<()> {
        match how {
            Sealing::Records(bytes) => self.record_bytes = bytes,
            Sealing::Segments(bytes) => self.segment_bytes = bytes,
            Sealing::Spoiled => self.fault = Some(Fault::Spoiled),
            Sealing::Cut => self.fault = Some(Fault::Cut),
            Sealing::Raw(bytes) => {
                self.sealed.extend_from_slice(bytes);
                return self.push(socket);
            }
            Sealing::EndUnsaid => self.is_mute = true,
        }
        Ok(())
    }

    /// Whether the peer has ended its direction without saying so before.
    pub(crate) fn has_ended_unsaid(&self) -> bool {
        self.has_ended && !self.has_said_end
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
            let waiting = &self.sealed[self.sent..];
            match send(socket, &waiting[..waiting.len().min(self.segment_bytes)], flags) {
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
        if !self.is_mute {
            for record in part.chunks(self.record_bytes) {
                self.layer.seal(record, &mut self.sealed);
            }
        }
        match (self.sealed.last_mut(), self.fault.take()) {
            (None, _) => return Err(io::ErrorKind::BrokenPipe.into()),
            (Some(_), None) => {}
            (Some(last), Some(Fault::Spoiled)) => *last ^= 1,
            (Some(_), Some(Fault::Cut)) => {
                self.sealed.pop();
                self.is_mute = true;
            }
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
        // The layer may have held back the beginning of a record.
        let place = match room.len() {
            all if all < 2 * HELD_MAX => &mut *room,
            all => &mut room[..all - HELD_MAX],
        };
        match self.fill(socket, place, flags)? {
            0 => Ok(0),
            _ if self.has_plain() => Ok(self.take(room)),
            _ => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// Receives once into `place`, and keeps what it opens. Returns how many bytes have come; 0 at the end.
    pub(crate) fn fill(
        &mut self,
        socket: &TcpStream,
        place: &mut [u8],
        flags: RecvFlags,
    ) -> io::Result<usize> {
        if self.has_failed {
            return Err(self.failure());
        }
        // What cannot be sent must not hide what has come, such as the alert that says why.
        let pushed = self.push(socket);
        let (count, _) = recv(socket, &mut *place, flags)?;
        if count == 0 {
            self.has_ended = true;
            return Ok(0);
        }
        let progress = self.layer.open(&mut place[..count], &mut self.plain, &mut self.sealed);
        self.has_failed = progress == Progress::Failed;
        self.has_said_end |= progress == Progress::Ended;
        pushed.and_then(|()| self.push(socket)).or_else(|error| match self.has_plain() {
            true => Ok(()),
            false if self.has_failed => Err(self.failure()),
            false => Err(error),
        })?;
        match self.has_failed && !self.has_plain() {
            true => Err(self.failure()),
            false => Ok(count),
        }
    }

    /// Says that nothing more follows, and shuts down the sending direction after that.
    pub(crate) fn end(&mut self, socket: &TcpStream) -> io::Result<()> {
        if !self.is_mute {
            self.layer.close(&mut self.sealed);
            self.is_mute = true;
        }
        self.ends = true;
        self.push(socket)
    }

    /// Says that nothing more follows, if there is room for it, because the socket is about to be closed
    /// (RFC 8446 section 6.1).
    pub(crate) fn take_leave(&mut self, socket: &TcpStream) {
        if !self.has_failed && !self.is_mute {
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
