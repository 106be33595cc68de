//! Round trips against servers that behave in ways that ringecho does not.

mod support;

use ringbench::rtt::{self, Case, Wait};
use ringbench::session::Form;
use ringbench::stop::Stop;

use support::{Fake, send_back};

fn case(payload_bytes: usize, messages: u64) -> Case {
    Case { name: "test".to_owned(), octets: payload_bytes, form: Form::Text, messages }
}

fn stop() -> Stop {
    Stop::new().expect("a pipe")
}

#[test]
fn right_echoes_are_counted() {
    let server = Fake::echo(send_back);
    let target = server.url().parse().expect("a target");
    let outcome = rtt::run(&target, &case(16, 20), Wait::Block, 1, &stop()).expect("a connection");
    assert!(outcome.problem.is_none(), "{:?}", outcome.problem);
    assert_eq!(outcome.latencies.count(), 20);
    assert_eq!(server.accepted(), 1);
}
