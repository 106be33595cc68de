//! The fuzz targets that are slow, in one program, which is linked once.
//!
//! What the tests drive dialogues and streams with is compiled from the same files here, and so is the client's
//! role of `ringbench`, because the rest of that crate would take longer to build than all of this.

#![no_main]

#[path = "../../../src/tests/compression/agreement.rs"]
#[allow(dead_code, reason = "a part of it is used here")]
mod agreement;
mod choice;
mod client;
mod command_line;
#[path = "../../src/compression.rs"]
#[allow(dead_code, unreachable_pub, reason = "a module of another crate")]
mod compression;
mod deflate;
mod dialogue;
mod differential;
mod opening;
#[path = "../../../src/tests/verdict.rs"]
mod owed;
#[path = "../../../src/tests/peer.rs"]
mod peer;
#[path = "../../src/problem.rs"]
#[allow(dead_code, unreachable_pub, reason = "a module of another crate")]
mod problem;
#[path = "../../src/random.rs"]
#[allow(dead_code, unreachable_pub, reason = "a module of another crate")]
mod random;
#[path = "../../../src/tests/compression/receiver.rs"]
#[allow(dead_code, reason = "a part of it is used here")]
mod receiver;
#[path = "../../../src/tests/compression/sender.rs"]
#[allow(dead_code, reason = "a part of it is used here")]
mod sender;
#[path = "../../src/session.rs"]
#[allow(
    dead_code,
    unreachable_pub,
    unfulfilled_lint_expectations,
    reason = "a module of another crate"
)]
mod session;
mod setup;
#[path = "../../src/tls.rs"]
#[allow(dead_code, unreachable_pub, reason = "a module of another crate")]
mod tls;
#[path = "../../src/verdict.rs"]
#[allow(dead_code, unreachable_pub, reason = "a module of another crate")]
mod verdict;

use arbitrary::{Arbitrary, Unstructured};
use libfuzzer_sys::{Corpus, fuzz_target};

use crate::choice::{Choice, Target};

/// The largest message that the server accepts, where the input names no other, in bytes.
const MESSAGE_MAX: u64 = 1 << 20;
/// The widest window of DEFLATE, in bits.
const BITS_MAX: u32 = 15;

const TARGETS: [(&str, Target); 6] = [
    ("client", client::run),
    ("command_line", |data| with(data, command_line::run)),
    ("deflate", |data| with(data, deflate::run)),
    ("dialogue", |data| with(data, dialogue::run)),
    ("differential", |data| with(data, differential::run)),
    ("opening", opening::run),
];

static CHOICE: Choice = Choice::new();

fuzz_target!(init: CHOICE.make(&TARGETS), |data: &[u8]| -> Corpus { CHOICE.run(data) });

/// Makes a structured input from the fuzzer's bytes.
fn with<'a, Input: Arbitrary<'a>>(data: &'a [u8], run: fn(Input)) -> Corpus {
    match Input::arbitrary_take_rest(Unstructured::new(data)) {
        Ok(input) => {
            run(input);
            Corpus::Keep
        }
        Err(_) => Corpus::Reject,
    }
}
