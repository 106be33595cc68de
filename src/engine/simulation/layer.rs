//! A layer like TLS, but so simple that both of its ends are written here: what the peer sends is encrypted byte by
//! byte, and what the server sends comes in records.
//!
//! A byte is encrypted with a key that only its place in the stream determines. So whatever is sealed twice, left out
//! or sent in another order cannot be read. Now and then the server's end has something to say of its own, as TLS has in
//! its handshake, and it says farewell once.

use std::cell::Cell;

use crate::protocol::{Acceptor, Layer, Progress};

/// The most bytes of a record, without its header.
const RECORD_MAX: usize = 700;
const HEADER_BYTES: usize = 3;
/// Bytes of a connection of which opening the first costs much, as in a handshake. A request has more.
const LABORIOUS: usize = 100;

thread_local! {
    /// Whether something laborious was opened in this cycle of the simulated worker.
    static LABOURED: Cell<bool> = const { Cell::new(false) };
}

/// Begins a cycle of the simulated worker, in which one handshake may go on.
pub(super) fn begin_cycle() {
    LABOURED.with(|it| it.set(false));
}

/// What a record is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Data = 1,
    /// Of the layer itself.
    Own = 2,
    Farewell = 3,
}

/// The key of the byte at this place of a stream.
fn key(place: usize) -> u8 {
    (place as u8).wrapping_mul(167) ^ (place >> 8) as u8 ^ 0x5a
}

/// Encrypts bytes of a stream, or decrypts them, from this place on.
pub(super) fn encrypt(bytes: &mut [u8], place: usize) {
    for (byte, place) in bytes.iter_mut().zip(place..) {
        *byte ^= key(place);
    }
}

/// Makes the server's ends.
#[derive(Debug)]
pub(super) struct Accepting;

impl Acceptor for Accepting {
    fn accept(&self) -> Box<dyn Layer> {
        Box::new(ServerEnd::default())
    }
}

/// The server's end of a connection.
#[derive(Debug, Default)]
struct ServerEnd {
    received: usize,
    /// Bytes of records, without headers.
    sent: usize,
}

impl ServerEnd {
    fn record(&mut self, kind: Kind, bytes: &[u8], sealed: &mut Vec<u8>) {
        sealed.push(kind as u8);
        sealed.extend_from_slice(&(bytes.len() as u16).to_be_bytes());
        let begin = sealed.len();
        sealed.extend_from_slice(bytes);
        encrypt(&mut sealed[begin..], self.sent);
        self.sent += bytes.len();
    }
}

impl Layer for ServerEnd {
    fn open(&mut self, received: &mut [u8], plain: &mut Vec<u8>, sealed: &mut Vec<u8>) -> Progress {
        if self.is_laborious() {
            let before = LABOURED.with(|it| it.replace(true));
            assert!(!before, "a second handshake went on in the same cycle");
        }
        encrypt(received, self.received);
        // Once in so many bytes.
        let is_moved = self.received / 256 != (self.received + received.len()) / 256;
        if self.received == 0 || is_moved {
            self.record(Kind::Own, b"own", sealed);
        }
        self.received += received.len();
        plain.extend_from_slice(received);
        Progress::Continue
    }

    fn is_open(&self) -> bool {
        true
    }

    fn is_laborious(&self) -> bool {
        self.received < LABORIOUS
    }

    fn seal(&mut self, plain: &[u8], sealed: &mut Vec<u8>) {
        for bytes in plain.chunks(RECORD_MAX) {
            self.record(Kind::Data, bytes, sealed);
        }
    }

    fn close(&mut self, sealed: &mut Vec<u8>) {
        self.record(Kind::Farewell, b"", sealed);
    }

    fn held_bytes(&self) -> usize {
        0
    }
}

/// The peer's end: it reads what the server sends.
#[derive(Debug, Default)]
pub(super) struct PeerEnd {
    header: Vec<u8>,
    /// Bytes of the record in progress that are still to come.
    left: usize,
    /// Bytes of records, without headers.
    read: usize,
    has_farewell: bool,
}

impl PeerEnd {
    /// Reads bytes and appends what they carry to `plain`. An error says what is wrong with them.
    pub(super) fn push(&mut self, bytes: &[u8], plain: &mut Vec<u8>) -> Result<(), String> {
        let mut bytes = bytes;
        while let Some((&first, rest)) = bytes.split_first() {
            if self.has_farewell {
                return Err(format!("{} bytes follow the farewell of the layer", bytes.len()));
            }
            if self.left == 0 {
                self.header.push(first);
                bytes = rest;
                self.begin()?;
                continue;
            }
            let (part, rest) = bytes.split_at(self.left.min(bytes.len()));
            if self.header[0] == Kind::Data as u8 {
                let begin = plain.len();
                plain.extend_from_slice(part);
                encrypt(&mut plain[begin..], self.read);
            }
            self.read += part.len();
            self.left -= part.len();
            bytes = rest;
            self.end();
        }
        Ok(())
    }

    /// Begins a record if its header is there.
    fn begin(&mut self) -> Result<(), String> {
        if self.header.len() < HEADER_BYTES {
            return Ok(());
        }
        let is_known = (Kind::Data as u8..=Kind::Farewell as u8).contains(&self.header[0]);
        if !is_known {
            return Err(format!("{:02x?} is no header of a record", self.header));
        }
        self.left = usize::from(u16::from_be_bytes([self.header[1], self.header[2]]));
        self.has_farewell = self.header[0] == Kind::Farewell as u8;
        self.end();
        Ok(())
    }

    fn end(&mut self) {
        if self.left == 0 && self.header.len() == HEADER_BYTES {
            self.header.clear();
        }
    }

    /// Whether it has been said that nothing more follows.
    pub(super) fn has_farewell(&self) -> bool {
        self.has_farewell
    }
}
