//! Clocks that are not what they seem.
//!
//! The wall clock may be set while the server runs. It does not notice, because it never looks at it; that no source
//! names it is a rule of the house. What it does read, the monotonic clock, tells only how much time has passed.

use std::process::Command;

use rustix::process::Signal;
use testkit::{CLOSE, Client, TEXT, program, say};

use crate::{Bare, converse, engines};

#[test]
fn how_long_the_machine_has_run_does_not_matter() {
    const TEST: &str = "how_long_the_machine_has_run_does_not_matter";
    // In a name space of its own, the clock is more than a hundred years ahead, about as far as the kernel allows.
    let seconds = "4000000000";
    let user = if rustix::process::geteuid().is_root() { &[][..] } else { &["--map-root-user"] };
    let unshare = || {
        let mut outer = Command::new("unshare");
        outer.args(user).args(["--time", "--monotonic", seconds, "--boottime", seconds]);
        outer
    };
    // The name space is entered by a program that is executed, from Linux 6.3 on.
    let tried = unshare().args(["cat", "/proc/uptime"]).output().expect("unshare");
    if !tried.stdout.starts_with(b"4000") {
        return say(&format!("SKIPPED: {TEST}: the clock cannot be set ahead here: {tried:?}"));
    }
    for engine in engines() {
        let mut command = unshare();
        command.arg(program()).args(["--listen", "127.0.0.1:0", "--engine", engine]);
        let server = Bare::start_by(command.args(["--workers", "1"]));
        converse(server.address());
        let mut client = Client::connect(server.address());
        client.echo(TEXT, b"long ago");
        let mut silent = Client::connect(server.address());
        server.signal(Signal::TERM);
        client.expect(CLOSE, &1001u16.to_be_bytes());
        client.send_frame(CLOSE, &1001u16.to_be_bytes());
        client.expect_end();
        // One that does not close is waited for, and not for a hundred years.
        silent.expect(CLOSE, &1001u16.to_be_bytes());
        let ended = server.wait();
        assert_eq!(ended.status.code(), Some(0), "{engine} {ended:?}");
    }
}
