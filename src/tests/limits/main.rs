//! What peers may take of the server: each limit with the real program, on every engine.

mod access;
mod addresses;
mod frames;
mod memory;
mod times;

use std::sync::LazyLock;
use std::thread;

use testkit::{CLOSE, Client, Server, can_offload};

/// The engines, and offload where it can be had.
const ENGINES: &[&[&str]] = &[
    &["--engine", "uring"],
    &["--engine", "epoll"],
    #[cfg(feature = "tokio-uring")]
    &["--engine", "tokio-uring"],
    &["--engine", "uring", "--offload", "on"],
];

/// Runs `test` on every engine at the same time, with a server with these options, of one worker unless they say
/// otherwise.
fn on_every_engine(options: &[&str], test: impl Fn(Server) + Sync) {
    let workers: &[&str] = if options.contains(&"--workers") { &[] } else { &["--workers", "1"] };
    static CAN_OFFLOAD: LazyLock<bool> =
        LazyLock::new(|| can_offload("limits of offloaded connections"));
    thread::scope(|scope| {
        for &engine in ENGINES {
            if engine.contains(&"--offload") && !*CAN_OFFLOAD {
                continue;
            }
            let test = &test;
            scope.spawn(move || test(Server::start(&[engine, options, workers].concat())));
        }
    });
}

/// Reads a close frame with this code and a reason.
#[track_caller]
fn expect_close(client: &mut Client, code: u16) {
    let frame = client.read_frame();
    assert_eq!(frame.first, CLOSE, "{frame:?}");
    assert_eq!(frame.close_code(), Some(code));
    assert!(frame.payload.len() > 10, "a reason");
}

/// Ends the connection as its client.
fn answer_close(mut client: Client, code: u16) {
    client.send_frame(CLOSE, &code.to_be_bytes());
    client.expect_end();
}
