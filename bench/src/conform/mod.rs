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
//! - `suite` runs several cases at a time, those that take longest first. Cases share nothing but the
//!   texts and compressed messages that are the same for every server (`corpora`, `deflate`).
//!
//! What the peer sends is read, inflated and judged by code of its own: a mistake that this program shared
//! with `ringecho` would hide itself. Of `ringecho`'s protocol it uses the names of broken rules and the
//! client's opening handshake, with the grammar of extensions, as the other commands do
//! ([`crate::opening`]). Where the opening handshake is what is tested, it is read apart, too (`head`).
//!
//! No case sleeps, except where it tests what happens in a pause. Every wait has a deadline and ends when
//! the peer acts.

pub mod case;
pub mod cases;
pub mod corpora;
pub mod deflate;
pub mod driver;
pub mod exchange;
pub mod expected;
pub mod frames;
pub mod head;
pub mod junit;
pub mod number;
pub mod report;
pub mod results;
pub mod suite;
pub mod text;
pub mod transcript;
pub mod verdict;

#[cfg(test)]
mod tests;

pub use self::case::Case;
pub use self::cases::Volume;
pub use self::expected::Expectations;
pub use self::number::{Number, Pattern};
pub use self::results::Results;
pub use self::suite::{Judged, Plan};
pub use self::verdict::{Behavior, BehaviorClose, Demand, Verdict};
