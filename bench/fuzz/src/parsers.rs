//! The fuzz targets that are fast, in a program without anything else: libFuzzer looks at all counters of a
//! program after each input.

#![no_main]

mod choice;
mod handshake;
mod inflate;
mod negotiation;
#[allow(dead_code, reason = "a part of it is used here")]
mod setup;

use libfuzzer_sys::{Corpus, fuzz_target};

use crate::choice::{Choice, Target};

const TARGETS: [(&str, Target); 3] =
    [("handshake", handshake::run), ("inflate", inflate::run), ("negotiation", negotiation::run)];

static CHOICE: Choice = Choice::new();

fuzz_target!(init: CHOICE.make(&TARGETS), |data: &[u8]| -> Corpus { CHOICE.run(data) });
