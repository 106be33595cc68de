//! What goes over the wire of one connection, and how that ends, in the words of the Autobahn suite:
//! octets, chop size, `closedByMe`. Plain data: the measurements note it, and
//! [`case_report`](crate::case_report) writes it. *Me* is this program.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

/// Bytes of a send, a receive or a payload that the wire log holds.
const LOGGED_MAX: usize = 256;

/// How many sends or receives there were of each size in bytes.
pub type SizeCounts = BTreeMap<usize, u64>;

/// What went over the wire.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Traffic {
    /// Receives by their size in bytes, with the response of the opening handshake.
    pub received: SizeCounts,
    /// Sends by their size in bytes, with the request.
    pub sent: SizeCounts,
    /// Received frames by opcode.
    pub frames_received: BTreeMap<u8, u64>,
    /// Sent frames by opcode.
    pub frames_sent: BTreeMap<u8, u64>,
}

/// The messages of one direction, without control frames.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Volume {
    /// How many.
    pub messages: u64,
    /// Their frames.
    pub frames: u64,
    /// The bytes of these frames, with their headers.
    pub wire_bytes: u64,
    /// The bytes of the frames' payloads.
    pub payload_bytes: u64,
    /// The bytes of the messages once they are inflated.
    pub message_bytes: u64,
}

impl Volume {
    /// Adds a frame: the bytes of its payload, and all of its bytes.
    pub fn add_frame(&mut self, payload_bytes: usize, wire_bytes: usize) {
        self.frames += 1;
        self.payload_bytes += payload_bytes as u64;
        self.wire_bytes += wire_bytes as u64;
    }

    /// Adds a message that has so many bytes once it is inflated. Its frames are added apart.
    pub fn add_message(&mut self, bytes: usize) {
        self.messages += 1;
        self.message_bytes += bytes as u64;
    }
}

/// The messages of both directions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Volumes {
    /// Those that this program sent.
    pub sent: Volume,
    /// Those that it received.
    pub received: Volume,
}

/// How a connection ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Closing {
    /// Whether this program was the server.
    pub is_server: bool,
    /// Whether it sent the first close frame.
    pub closed_by_me: bool,
    /// Whether it failed the connection.
    pub failed_by_me: bool,
    /// Whether it ended the TCP connection.
    pub dropped_by_me: bool,
    /// Whether both close frames were sent and the server ended the TCP connection.
    pub was_clean: bool,
    /// Why it was not clean.
    pub was_not_clean_reason: Option<String>,
    /// Whether the server did not end the TCP connection in time.
    pub was_server_connection_drop_timeout: bool,
    /// Whether the opening handshake took too long.
    pub was_open_handshake_timeout: bool,
    /// Whether the peer did not answer a close frame in time.
    pub was_close_handshake_timeout: bool,
    /// The code in the close frame that this program sent.
    pub local_close_code: Option<u16>,
    /// The reason in it, in hexadecimal if it is not UTF-8.
    pub local_close_reason: Option<String>,
    /// The code in the peer's close frame.
    pub remote_close_code: Option<u16>,
    /// The reason in it.
    pub remote_close_reason: Option<String>,
}

/// What happens if the peer does nothing for too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtLimit {
    /// The connection is failed.
    Fail,
    /// It is closed.
    Close,
}

/// A line of the wire log. Of long bytes it holds the beginning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A send.
    Sent(Octets),
    /// A receive.
    Received(Octets),
    /// A frame that was sent: the first byte of its header, its payload and its masking key.
    FrameSent(u8, Octets, Option<[u8; 4]>),
    /// The same of a frame that was received. Its payload is unmasked.
    FrameReceived(u8, Octets, Option<[u8; 4]>),
    /// A pause of this length and name begins.
    Pause(Duration, char),
    /// A pause of this name is over.
    PauseOver(char),
    /// From here on the peer has this much time.
    Limit(AtLimit, Duration),
    /// The time is over.
    LimitOver(AtLimit),
    /// From here on nothing is logged, because there is too much of it.
    Off,
    /// From here on everything is logged again.
    On,
}

/// Bytes of the wire log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Octets {
    /// How many there are.
    pub count: usize,
    /// The first of them.
    pub beginning: Vec<u8>,
}

impl Octets {
    /// What is logged of these bytes.
    pub fn of(bytes: &[u8]) -> Octets {
        let beginning = bytes[..bytes.len().min(LOGGED_MAX)].to_vec();
        Octets { count: bytes.len(), beginning }
    }
}

/// Bytes in hexadecimal.
pub fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
