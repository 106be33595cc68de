//! A worker whose thread the kernel ends alone. The server must not go on with a hole: it says so, and exits.

use rustix::io::Errno;
use rustix::process::Signal;
use testkit::seccomp::{Calls, killing, refusing};
use testkit::{CLOSE, Client, Ended, Server, TEXT, run, temporary_file};

use crate::engines;

/// Starts a server in which shutdown(2) ends the thread that calls it, and lets one of its two workers call it.
fn lose_a_worker(arguments: &[&str]) -> Ended {
    // Only a worker calls it, when it has sent all that it owes a peer.
    let server = killing(Calls::all(libc::SYS_shutdown), || Server::start(arguments));
    let mut other = Client::connect(server.address());
    other.echo(TEXT, b"before");
    let mut client = Client::connect(server.address());
    client.send_frame(CLOSE, &1000u16.to_be_bytes());
    client.expect(CLOSE, &1000u16.to_be_bytes());
    server.wait()
}

#[test]
fn a_server_that_has_lost_a_worker_says_so_and_exits() {
    let path = temporary_file("lost.sock");
    let unix = format!("unix:{}", path.display());
    for engine in engines("a_server_that_has_lost_a_worker_says_so_and_exits") {
        let listen = ["--workers", "2", "--listen", "127.0.0.1:0", "--listen", &unix];
        let arguments = [engine, &listen].concat();
        let check = |ended: Ended| {
            assert_eq!(ended.status.code(), Some(1), "{engine:?} {ended:?}");
            let lines: Vec<&str> =
                ended.stderr.lines().filter(|line| line.starts_with("ringecho: ")).collect();
            let [line] = lines[..] else { panic!("{engine:?} {ended:?}") };
            assert!(line.contains("the kernel has ended the thread of worker "), "{line}");
            assert!(!path.exists());
        };
        check(lose_a_worker(&arguments));
        // Where the kernel gives no descriptor of a thread, as before Linux 6.9.
        let pidfd = Calls::all(libc::SYS_pidfd_open);
        check(refusing(pidfd, Errno::INVAL, || lose_a_worker(&arguments)));
    }
}

#[test]
fn where_the_kernel_gives_no_descriptor_of_a_thread_a_server_ends_as_usual() {
    let pidfd = Calls::all(libc::SYS_pidfd_open);
    let server = refusing(pidfd, Errno::INVAL, || Server::start(&["--workers", "3"]));
    Client::connect(server.address()).close();
    server.signal(Signal::TERM);
    let ended = server.wait();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert_eq!(ended.count("connections_accepted"), 1);
}

#[test]
fn a_worker_that_is_lost_before_it_serves_is_an_error_too() {
    // Each worker pins itself to its CPU first.
    let ended = killing(Calls::all(libc::SYS_sched_setaffinity), || {
        let arguments = ["--listen", "127.0.0.1:0", "--workers", "2"];
        run(&[&arguments[..], &["--engine", "epoll", "--wait", "block"]].concat())
    });
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert!(ended.stderr.contains("the kernel has ended the thread of worker 0"), "{ended:?}");
}
