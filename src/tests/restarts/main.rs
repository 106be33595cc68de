//! Restarts without a failed connection, by takeover and by socket activation, and the end of a server that has
//! lost a worker.

mod activation;
mod crowd;
mod takeover;
mod worker;

use testkit::{Ended, can_offload};

/// The options of an engine.
type Engine = &'static [&'static str];

/// All engines. Where the kernel does not offload, that is left out, and said.
fn engines(test: &str) -> Vec<Engine> {
    let mut engines: Vec<Engine> = vec![&["--engine", "uring"], &["--engine", "epoll"]];
    if cfg!(feature = "tokio-uring") {
        engines.push(&["--engine", "tokio-uring"]);
    }
    if can_offload(test) {
        engines.push(&["--engine", "uring", "--offload", "on"]);
    }
    engines
}

/// Checks that the server ended with status 1 and one line, and gives that line.
#[track_caller]
fn refusal(ended: Ended) -> String {
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    let line = ended.stderr.strip_suffix('\n').expect("a line").to_owned();
    assert!(line.starts_with("ringecho: ") && !line.contains('\n'), "{line:?}");
    line
}
