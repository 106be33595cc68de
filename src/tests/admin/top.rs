//! `ringecho top` where it cannot show anything; what it draws is tested beside the code.

use std::process::Command;

use testkit::{program, run, run_by};

#[test]
fn without_a_terminal_it_says_where_the_figures_are() {
    for arguments in [&["top"][..], &["top", "unix:/nowhere"]] {
        let ended = run(arguments);
        assert_eq!((ended.status.code(), ended.stdout.as_str()), (Some(1), ""));
        let told = "ringecho: top needs a terminal; the figures are at the path /metrics of ";
        assert!(ended.stderr.starts_with(told), "{ended:?}");
    }
}

/// script(1) gives it a terminal.
#[test]
fn where_nothing_answers_it_says_so_and_leaves_the_terminal_alone() {
    let held = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = held.local_addr().expect("an address");
    drop(held);
    let command = format!("{} top {address}", program().display());
    let ended = run_by(Command::new("script").args(["-qec", &command, "/dev/null"]));
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    let told = format!("ringecho: no server answers at {address}: ");
    assert!(ended.stdout.starts_with(&told), "{ended:?}");
    assert!(!ended.stdout.contains('\x1b'), "{ended:?}");
}
