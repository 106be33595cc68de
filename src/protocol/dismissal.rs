//! Why the server ends a connection on which the peer broke no rule, and what it says then.

use super::close_code::CloseCode;

/// Why the server closes a connection of its own accord.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dismissal {
    /// The server stops.
    Stopping,
    /// The peer has sent nothing for too long.
    Idle,
    /// The connection has been open for as long as one may.
    Expired,
    /// The server is short of memory, of which this connection has much.
    Memory,
}

impl Dismissal {
    /// The code of the close frame (RFC 6455 section 7.4.1; 1013 is from the IANA registry of section 11.7).
    pub fn close_code(self) -> CloseCode {
        match self {
            Dismissal::Stopping | Dismissal::Idle | Dismissal::Expired => CloseCode::GOING_AWAY,
            Dismissal::Memory => CloseCode::TRY_AGAIN_LATER,
        }
    }

    /// The reason in the close frame: ASCII, at most 123 bytes. The code of a stopping server says all.
    pub fn reason(self) -> &'static str {
        match self {
            Dismissal::Stopping => "",
            Dismissal::Idle => "nothing was received for too long",
            Dismissal::Expired => "connections are not open for longer on this server",
            Dismissal::Memory => "the server is short of memory",
        }
    }
}
