//! TLS on one connection, the server's side or the client's: records in, records out.
//!
//! The unbuffered interface of rustls reads records where they lie and writes records where it is told to, so all
//! that is kept here is what has arrived of a record that is not complete. Between two messages that is nothing.

use std::error;
use std::fmt;
use std::mem;
use std::ops::DerefMut;
use std::sync::Arc;

use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::pki_types::ServerName;
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncryptError, InsufficientSizeError, UnbufferedConnectionCommon,
    UnbufferedStatus,
};
use rustls::{ClientConfig, Error, ProtocolVersion, ServerConfig};

use crate::protocol::{Layer, Progress};

/// Bytes of a record's header, the last two of which are the length of what follows (RFC 8446 section 5.1).
const HEADER_BYTES: usize = 5;
/// The most bytes of plain text in a record (RFC 8446 section 5.1).
const RECORD_PLAIN_MAX: usize = 1 << 14;
/// The most bytes of a record, with its header (RFC 5246 section 6.2.3).
const RECORD_BYTES_MAX: usize = HEADER_BYTES + RECORD_PLAIN_MAX + 2048;
/// No cipher suite that is offered adds more to a record: the header, a nonce of 8 bytes, a tag of 16.
const OVERHEAD_MAX: usize = 32;
/// The answer to a request in plain HTTP.
const PLAIN_HTTP: &str = "HTTP/1.1 400 Bad Request\r\n\
    Content-Type: text/plain; charset=utf-8\r\n\
    Content-Length: 74\r\n\
    Connection: close\r\n\r\n\
    This port speaks TLS: write wss:// instead of ws://, https:// for http://\n";

/// How far a connection has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Nothing has been received.
    Silent,
    /// Records come and go.
    Talking,
    /// The peer has said that nothing more follows, and what comes now is dropped.
    Ended,
    /// Its keys are used up, and TLS 1.2 has no way to new ones.
    Exhausted,
}

/// What the server says once the handshake is done.
#[derive(Clone, Copy)]
enum Words<'a> {
    Plain(&'a [u8]),
    /// That nothing more follows.
    Farewell,
}

/// One of the two sides of TLS, for which rustls has a type each, with methods of the same names.
trait Side: DerefMut<Target = UnbufferedConnectionCommon<Self::Data>> + Send {
    type Data;

    /// Whether something else may come first than a record: a request in plain HTTP.
    const MAY_BE_MISTAKEN: bool;

    fn process<'c, 'i>(&'c mut self, records: &'i mut [u8])
    -> UnbufferedStatus<'c, 'i, Self::Data>;
}

impl Side for UnbufferedServerConnection {
    type Data = ServerConnectionData;

    const MAY_BE_MISTAKEN: bool = true;

    fn process<'c, 'i>(
        &'c mut self,
        records: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(records)
    }
}

impl Side for UnbufferedClientConnection {
    type Data = ClientConnectionData;

    const MAY_BE_MISTAKEN: bool = false;

    fn process<'c, 'i>(
        &'c mut self,
        records: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(records)
    }
}

/// The TLS of one connection.
struct TlsLayer<S> {
    connection: S,
    /// What has come of a record that is not complete, or of a handshake message in several records, as rustls has
    /// left it.
    held: Vec<u8>,
    stage: Stage,
    /// Why it cannot go on.
    failure: Option<Box<Error>>,
}

impl<S> fmt::Debug for TlsLayer<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The connection has the keys.
        let held = self.held.len();
        f.debug_struct("TlsLayer").field("stage", &self.stage).field("held", &held).finish()
    }
}

/// The server's side of TLS on a new connection.
///
/// # Errors
///
/// When the configuration contradicts itself.
pub(super) fn accepting(config: Arc<ServerConfig>) -> Result<Box<dyn Layer>, Error> {
    Ok(Box::new(TlsLayer::new(UnbufferedServerConnection::new(config)?)))
}

/// The client's side of TLS on a new connection to the server of this name. Appends to `sealed` what opens it.
///
/// # Errors
///
/// When the configuration contradicts itself, or has nothing to offer.
pub fn connecting(
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    sealed: &mut Vec<u8>,
) -> Result<Box<dyn Layer>, Error> {
    let mut layer = TlsLayer::new(UnbufferedClientConnection::new(config, name)?);
    let (_, progress) = layer.read(&mut [], &mut Vec::new(), sealed);
    match (progress, layer.failure.take()) {
        (Progress::Failed, Some(failure)) => Err(*failure),
        _ => Ok(Box::new(layer)),
    }
}

impl<S: Side> TlsLayer<S> {
    fn new(connection: S) -> TlsLayer<S> {
        TlsLayer { connection, held: Vec::new(), stage: Stage::Silent, failure: None }
    }

    /// How many bytes are missing until what is held is a record; as many as there are if that is not what is held.
    fn missing_bytes(&self) -> usize {
        match *self.held {
            [_, _, _, high, low, ..] => {
                let record_bytes = HEADER_BYTES + usize::from(u16::from_be_bytes([high, low]));
                let missing = record_bytes.saturating_sub(self.held.len());
                if missing == 0 { usize::MAX } else { missing }
            }
            _ => HEADER_BYTES - self.held.len(),
        }
    }

    /// Reads records until the first that is not complete, or that ends the connection. Returns how many bytes
    /// were read.
    fn read(
        &mut self,
        records: &mut [u8],
        plain: &mut Vec<u8>,
        sealed: &mut Vec<u8>,
    ) -> (usize, Progress) {
        let mut read = 0;
        loop {
            let status = self.connection.process(&mut records[read..]);
            let UnbufferedStatus { mut discard, state } = status;
            let mut failure = None;
            let progress = match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    let mut outcome = None;
                    while let Some(record) = traffic.next_record() {
                        match record {
                            Ok(record) => {
                                discard += record.discard;
                                plain.extend_from_slice(record.payload);
                            }
                            Err(error) => {
                                failure = Some(error);
                                outcome = Some(Progress::Failed);
                            }
                        }
                    }
                    outcome
                }
                Ok(ConnectionState::EncodeTlsData(mut data)) => {
                    append(sealed, RECORD_PLAIN_MAX, |room| encoded(data.encode(room)));
                    None
                }
                Ok(ConnectionState::TransmitTlsData(data)) => {
                    data.done();
                    None
                }
                Ok(ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_)) => {
                    Some(Progress::Continue)
                }
                Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => Some(Progress::Ended),
                Err(error) => {
                    failure = Some(error);
                    Some(Progress::Failed)
                }
                // Early data is not offered, and there is no further state today.
                Ok(_) => Some(Progress::Failed),
            };
            read += discard;
            match progress {
                None => {}
                Some(Progress::Failed) => {
                    self.failure = failure.map(Box::new);
                    self.encode_alerts(&mut records[read..], sealed);
                    return (read, Progress::Failed);
                }
                Some(progress) => return (read, progress),
            }
        }
    }

    /// Appends what rustls has to say of its own accord, such as an alert; `records` is what was not read.
    fn encode_alerts(&mut self, records: &mut [u8], sealed: &mut Vec<u8>) {
        // If there is none, rustls would look at what it could not read again.
        while self.connection.wants_write()
            && let Ok(ConnectionState::EncodeTlsData(mut data)) =
                self.connection.process(records).state
        {
            append(sealed, RECORD_PLAIN_MAX, |room| encoded(data.encode(room)));
        }
    }

    /// Appends to `sealed` what is to be said, for which about `bytes` are needed.
    fn say(&mut self, words: Words<'_>, bytes: usize, sealed: &mut Vec<u8>) {
        let mut held = mem::take(&mut self.held);
        loop {
            // What is held was read already, but rustls remembers places in it.
            match self.connection.process(&mut held).state {
                Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                    let mut is_exhausted = false;
                    let mut write = |room: &mut [u8]| match words {
                        Words::Plain(plain) => traffic.encrypt(plain, room),
                        Words::Farewell => traffic.queue_close_notify(room),
                    };
                    append(sealed, bytes, |room| match write(room) {
                        Ok(written) => Ok(written),
                        Err(EncryptError::InsufficientSize(error)) => Err(error.required_size),
                        Err(EncryptError::EncryptExhausted) => {
                            is_exhausted = true;
                            Ok(0)
                        }
                    });
                    if is_exhausted {
                        self.stage = Stage::Exhausted;
                        // It says that nothing more follows.
                        self.encode_alerts(&mut held, sealed);
                    }
                    break;
                }
                Ok(ConnectionState::EncodeTlsData(mut data)) => {
                    append(sealed, RECORD_PLAIN_MAX, |room| encoded(data.encode(room)));
                }
                Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
                Ok(_) | Err(_) => break,
            }
        }
        self.held = held;
    }
}

/// Appends what `write` writes into `bytes` bytes of room, or into as many as it says it needs instead.
fn append(
    sealed: &mut Vec<u8>,
    bytes: usize,
    mut write: impl FnMut(&mut [u8]) -> Result<usize, usize>,
) {
    let end = sealed.len();
    let mut room = bytes;
    loop {
        sealed.resize(end + room, 0);
        match write(&mut sealed[end..]) {
            Ok(written) => return sealed.truncate(end + written),
            Err(needed) => room = needed,
        }
    }
}

/// The bytes that were encoded, or the bytes that are needed for it.
fn encoded(outcome: Result<usize, EncodeError>) -> Result<usize, usize> {
    match outcome {
        Ok(written) => Ok(written),
        Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size })) => {
            Err(required_size)
        }
        Err(EncodeError::AlreadyEncoded) => Ok(0),
    }
}

impl<S: Side> Layer for TlsLayer<S> {
    fn open(&mut self, received: &mut [u8], plain: &mut Vec<u8>, sealed: &mut Vec<u8>) -> Progress {
        match self.stage {
            // The method of a request. A record begins with a number below 0x20 (RFC 8446 section 5.1).
            Stage::Silent
                if S::MAY_BE_MISTAKEN && received.first().is_some_and(u8::is_ascii_alphabetic) =>
            {
                self.stage = Stage::Ended;
                sealed.extend_from_slice(PLAIN_HTTP.as_bytes());
                return Progress::Failed;
            }
            Stage::Silent => self.stage = Stage::Talking,
            Stage::Talking => {}
            Stage::Ended | Stage::Exhausted => return Progress::Ended,
        }
        let mut rest = received;
        let mut progress = Progress::Continue;
        while !self.held.is_empty() && !rest.is_empty() && progress == Progress::Continue {
            let (first, further) = rest.split_at_mut(self.missing_bytes().min(rest.len()));
            self.held.extend_from_slice(first);
            rest = further;
            let mut held = mem::take(&mut self.held);
            let read;
            (read, progress) = self.read(&mut held, plain, sealed);
            if read < held.len() {
                held.drain(..read);
                held.shrink_to(RECORD_BYTES_MAX);
                self.held = held;
            }
        }
        if !rest.is_empty() && progress == Progress::Continue {
            let read;
            (read, progress) = self.read(rest, plain, sealed);
            self.held = rest[read..].to_vec();
        }
        if progress != Progress::Continue {
            self.stage = Stage::Ended;
            self.held = Vec::new();
        }
        progress
    }

    fn is_open(&self) -> bool {
        !self.connection.is_handshaking() && self.stage != Stage::Exhausted
    }

    fn seal(&mut self, plain: &[u8], sealed: &mut Vec<u8>) {
        let records = plain.len().div_ceil(RECORD_PLAIN_MAX);
        let bytes = plain.len() + records * OVERHEAD_MAX;
        self.say(Words::Plain(plain), bytes, sealed);
    }

    fn close(&mut self, sealed: &mut Vec<u8>) {
        if self.is_open() {
            self.say(Words::Farewell, 2 * OVERHEAD_MAX, sealed);
        }
    }

    fn held_bytes(&self) -> usize {
        self.held.capacity()
    }

    fn failure(&self) -> Option<&(dyn error::Error + 'static)> {
        self.failure.as_deref().map(|failure| failure as _)
    }

    fn agreed(&self) -> Option<String> {
        let version = match self.connection.protocol_version()? {
            ProtocolVersion::TLSv1_2 => "TLS 1.2",
            ProtocolVersion::TLSv1_3 => "TLS 1.3",
            _ => return None,
        };
        let suite = self.connection.negotiated_cipher_suite()?.suite();
        // rustls tells those of TLS 1.3 by a name of its own.
        let suite = format!("{suite:?}").replace("TLS13_", "TLS_");
        Some(format!("{version} with {suite}"))
    }
}
