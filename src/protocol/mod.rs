//! RFC 6455 and RFC 7692, and as much of HTTP as they need, without input, output or clock: bytes come in
//! as arguments, and bytes and a decision go out.
//!
//! This is the only place that knows the WebSocket protocol and HTTP. It names no socket, thread, clock or
//! engine, and forbids unsafe code.

#![forbid(unsafe_code)]

pub mod allowance;
pub mod client;
pub mod close;
pub mod close_code;
pub mod compression;
pub mod connection;
pub mod context;
mod deflate;
pub mod dialogue;
pub mod dismissal;
pub mod extension;
mod fields;
pub mod frame;
pub mod handshake;
pub mod inflate;
pub mod layer;
pub mod mask;
pub mod moment;
pub mod pool;
pub mod uri;
pub mod utf8;
pub mod violation;
mod window;

pub use allowance::Limits;
pub use close_code::CloseCode;
pub use connection::{Connection, Next};
pub use context::{Context, FrameLimits, Protocol, Settings};
pub use dialogue::{Answer, Decision, Dialogue, Output};
pub use dismissal::Dismissal;
pub use extension::Policy;
pub use handshake::{Access, Admission, Origin, Page, RequestPath, Subprotocol};
pub use layer::{Acceptor, Channel, Layer, Progress, Texts};
pub use moment::Moment;
