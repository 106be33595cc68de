//! Section 10: a message that the sender cuts into fragments by itself.

use super::super::case::Content;
use super::*;

const BYTES: usize = 65536;
const FRAGMENT_BYTES: usize = 1300;

pub(super) fn cases() -> Vec<Case> {
    let trips = RoundTrips {
        count: 1,
        form: Form::Text,
        content: Content::Same(Payload::Repeated(b"*", BYTES)),
        fragment_bytes: Some(FRAGMENT_BYTES),
        chop: Chop::Whole,
    };
    let fragments = BYTES.div_ceil(FRAGMENT_BYTES);
    let case = round_trips(Number::triple(10, 1, 1), "RFC 6455 5.4", trips, LONG);
    vec![case.says(
        format!(
            "Sends a text message of {BYTES} bytes in {fragments} fragments of {FRAGMENT_BYTES} bytes, \
             of which the last is shorter."
        ),
        "The message comes back, and the connection is closed with code 1000.",
    )]
}
