//! The server's settings, in the one place that has to know all of them.

use ringecho::protocol::handshake::{Access, Terms};
use ringecho::protocol::pool::Budget;
use ringecho::protocol::{FrameLimits, Policy, Protocol, Settings, Subprotocol};

/// All requests are accepted, and there is no page.
static ACCESS: Access = Access { origins: Vec::new(), path: None, page: None };

/// The settings of a server.
pub(crate) fn settings(message_max: u64, policy: Policy) -> Settings {
    let frames = FrameLimits::NONE;
    Settings { protocol: Protocol::WebSocket, message_max, policy, level: 6, frames }
}

/// What a server agrees to that accepts any request and subprotocol.
pub(crate) fn terms(policy: Policy, recompression: &Budget) -> Terms<'_> {
    Terms { policy, subprotocol: &Subprotocol::Any, access: &ACCESS, recompression }
}

/// A policy, and what is left of `choice` for other questions.
pub(crate) fn policy(choice: u8) -> (Policy, u8) {
    ([Policy::Mirror, Policy::Deflate, Policy::Off][usize::from(choice) % 3], choice / 3)
}
