//! The payloads of compressed messages, against a plain inflater: the headers of blocks, their codes, references
//! into what came before, and where a payload may end.
//!
//! The inflater is used again and again, as the server does: after a reset it must know nothing of what came
//! before. An input that fails in a run and not alone has found one that does.

use std::cell::RefCell;

use libfuzzer_sys::Corpus;
use ringecho::protocol::inflate::Inflater;
use ringecho::protocol::violation::Violation;
use testkit::inflate::{self, End};

/// The longest message in bytes.
const BYTES_MAX: usize = 4096;

thread_local! {
    static INFLATER: RefCell<Inflater> = RefCell::default();
}

pub(crate) fn run(data: &[u8]) -> Corpus {
    let [place, payloads @ ..] = data else { return Corpus::Reject };
    // Two messages of one connection.
    let (first, second) = payloads.split_at(payloads.len() * usize::from(*place) / 256);
    INFLATER.with_borrow_mut(|inflater| {
        inflater.reset();
        let mut plain = inflate::Inflater::default();
        for payload in [first, second].into_iter().skip(usize::from(first.is_empty())) {
            if !check(payload, inflater, &mut plain) {
                return;
            }
        }
    });
    Corpus::Keep
}

/// Whether more can be inflated after this.
fn check(payload: &[u8], inflater: &mut Inflater, plain: &mut inflate::Inflater) -> bool {
    let before = plain.clone();
    let inflated = inflater.message(payload, BYTES_MAX);
    match (plain.message(payload), &inflated) {
        (Ok(message), Ok(inflated)) => assert_eq!(message, *inflated),
        (Ok(message), Err(Violation::MessageTooBig)) => assert!(message.len() > BYTES_MAX),
        // What is wrong as well as too long may be refused for either.
        (Err(_), Err(Violation::MessageTooBig)) => {
            assert!(before.beginning(payload).len() > BYTES_MAX);
        }
        (Err(End::Within | End::Invalid), Err(Violation::CompressionInvalid)) => {}
        (message, inflated) => panic!("{inflated:?} for {message:?}"),
    }
    inflated.is_ok()
}
