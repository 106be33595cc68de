//! A conformance suite for WebSocket servers: the 517 cases of the Autobahn suite by their numbers, and
//! its verdicts; and own cases of what that suite leaves out, numbered from 20 up and counted apart.
//!
//! ```text
//! cases ── case ──┐
//!                 ├─ exchange ── driver ── suite ── text, results, report, junit
//! frames, deflate ┘     │                    │
//!                   transcript ───────── verdict, expected
//! ```
//!
//! - A [`Case`] is plain data (`case`); the tables and generators of all cases are in `cases`, a file
//!   for each section.
//! - An [`Exchange`](exchange::Exchange) carries a case out. It is one end of a connection without input,
//!   output or clock: bytes and moments go in; bytes, deadlines and a
//!   [`Transcript`](transcript::Transcript) come out. So it fits any stream of bytes
//!   ([`Wire`](driver::Wire)), and either role.
//! - `verdict` judges a transcript by the rules of the Autobahn suite. What is expected of a case, that
//!   it passes or what a file says, is a question of its own (`expected`).
//! - `text` is what a terminal shows; `results` is everything as JSON; `report` has the format of the
//!   Autobahn suite; `junit` is for CI systems.
//! - [`api`] is all of it as a library, for tests in Rust: [`Suite`] and [`Report`].
//! - `suite` runs several cases at a time, those that take longest first. Cases share nothing but the
//!   texts and compressed messages that are the same for every server (`corpora`, `deflate`).
//!
//! - `serving` is the other role: it serves the cases to clients, by the protocol of the Autobahn suite. It
//!   reads their requests (`request`) and keeps what came of their cases (`agents`).
//!
//! # Transports
//!
//! A case runs on anything that carries bytes in both directions. WebSocket over HTTP/2 (RFC 8441) and
//! HTTP/3 (RFC 9220) is a stream within a connection, opened by an extended CONNECT instead of a request with
//! Upgrade. What tests that opens its streams by itself, and implements [`Wire`](driver::Wire) for them:
//! `send` takes what flow control has room for, `end` is END_STREAM, `reset` is RST_STREAM with CANCEL (RFC
//! 8441 section 5). From the answer to its CONNECT it makes [`Terms`](deflate::Terms), and passes both to
//! [`Exchange::new`](exchange::Exchange::new) and [`drive`](driver::drive). It runs the cases that are
//! opened as [`Given`](case::Opening::Given); the others are about heads of HTTP/1.1, and need
//! counterparts. Nothing else of a case, of its verdict or of a report names a socket; where they say TCP, the
//! stream is meant.
//!
//! What the peer sends is read, inflated and judged by code of its own: a mistake that this program shared
//! with `ringecho` would hide itself. Of `ringecho`'s protocol it uses the names of broken rules and the
//! client's opening handshake, with the grammar of extensions, as the other commands do
//! ([`crate::opening`]). Where the opening handshake is what is tested, it is read apart, too (`head`).
//!
//! No case sleeps, except where it tests what happens in a pause. Every wait has a deadline and ends when
//! the peer acts.

pub mod agents;
pub mod api;
pub mod case;
pub mod cases;
pub mod corpora;
pub mod deflate;
pub mod driver;
pub mod exchange;
pub mod expected;
pub mod frames;
pub mod head;
pub mod inflate;
pub mod junit;
pub mod number;
pub mod report;
pub mod request;
pub mod results;
pub mod serving;
pub mod suite;
pub mod text;
pub mod transcript;
pub mod verdict;

#[cfg(test)]
mod tests;

pub use self::api::{Report, Servers, Suite, SuiteError, Tested};
pub use self::case::Case;
pub use self::cases::Volume;
pub use self::expected::Expectations;
pub use self::number::{Number, Pattern};
pub use self::results::Results;
pub use self::serving::{Clients, Serving};
pub use self::suite::{Judged, Plan};
pub use self::verdict::{Behavior, BehaviorClose, Demand, Verdict};
