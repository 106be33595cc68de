//! Test support: starts `ringecho`, talks to it, and judges its answers.
//!
//! Nothing here depends on the server's crate, so that a mistake made there is not repeated here. It holds
//! one generator of random numbers, one builder and parser of frames, one oracle for RFC 6455, one
//! inflater and one compressor for RFC 1951, a scripted client, a scripted server, an echo server with
//! faults to choose, and the real program as a process. Everything fails with a panic whose message says
//! what was expected.

pub mod certificate;
pub mod client;
pub mod deflate;
pub mod fake;
pub mod frame;
pub mod inflate;
pub mod injection;
pub mod loss;
pub mod mutant;
pub mod oracle;
pub mod process;
pub mod random;
pub mod repair;
pub mod seccomp;
pub mod server;

pub use certificate::{Authority, Issued};
pub use client::{Client, REQUEST, RESPONSE};
pub use frame::{BINARY, CLOSE, FIN, Frame, KEY, PING, PONG, RSV1, TEXT, frame, reply};
pub use loss::{deafen, hurry, lose};
pub use process::{Ended, PAUSE, TIMEOUT, end, run_by, say, spawn, temporary_file, wait_until};
pub use random::{Case, Random, cases};
pub use seccomp::{IO_URING_REGISTER, without, without_io_uring};
pub use server::{Server, can_offload, program, run};

/// `length` bytes that differ from their neighbours at every place; also valid as text, all of it ASCII.
pub fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|place| (place * 31 + place / 251) as u8 & 0x7F).collect()
}
