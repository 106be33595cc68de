//! What the tests of the program share: names of the crate `testkit`.

#![allow(unused_imports, reason = "each test target uses its own part")]

pub(crate) use testkit::process::{end, run_by, spawn, wait_for_end};
pub(crate) use testkit::seccomp::{IO_URING_REGISTER, without, without_io_uring};
pub(crate) use testkit::server::{can_offload, run};
pub(crate) use testkit::*;

/// The server's program.
#[allow(dead_code, reason = "each test target uses its own part")]
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_ringecho");
