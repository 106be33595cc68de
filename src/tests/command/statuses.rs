//! What ends the program at once: its exit status, and what it says.

use std::fs::File;
use std::process::Command;

use rustix::io::Errno;
use testkit::{Client, IO_URING_REGISTER, Server, program, run, without, without_io_uring};

use crate::{converse, refusal};

/// What ends the program at once, with its status, and something that it says on standard output
/// (status 0) or standard error. Signals have tests of their own.
const STATUSES: &[(i32, &[&str], &str)] = &[
    (0, &["--help"], "--listen"),
    (0, &["-h"], "--listen"),
    (0, &["help"], "--listen"),
    (0, &["help", "doctor"], "--json"),
    (0, &["doctor", "--help"], "--json"),
    (0, &["doctor"], "verdict"),
    (0, &["doctor", "--json"], "\"checks\""),
    (0, &["--version"], env!("CARGO_PKG_VERSION")),
    (1, &["--listen", "192.0.2.1:0"], "cannot listen on 192.0.2.1:0"),
    (1, &["--listen", "unix:/nowhere/at/all.sock"], "create the directory first"),
    (1, &["--listen", "127.0.0.1:0", "--cpus", "1023"], "cannot run on CPU 1023"),
    (1, &["--stats-file", "/nowhere/at/all.json"], "cannot write --stats-file"),
    (1, &["--stats-file", "/"], "cannot write --stats-file"),
    (1, &["--stats-file", "/run/no-such-directory/"], "Is a directory"),
    (2, &["--nonsense"], "--nonsense"),
    (2, &["nonsense"], "nonsense"),
    (2, &["--listen"], "--listen <ADDRESS>"),
    (2, &["--listen", "localhost"], "such as 127.0.0.1:9001"),
    (2, &["--listen", "::1"], "[::]:9001"),
    (2, &["--listen", "unix:"], "unix:/run/ringecho.sock"),
    (2, &["--listen", "127.0.0.1:70000"], "from 0 to 65535"),
    (2, &["--listen", "[fe80::1%lo]:1"], "[fe80::1%2]:9001"),
    (2, &["--listen", "224.0.0.1:1"], "multicast"),
    (1, &["--listen", "[fe80::1]:0"], "[fe80::1%2]:9001"),
    (2, &["--listen", "127.0.0.1:1", "--listen", "127.0.0.1:1"], "given twice"),
    (2, &["--ipv6-only"], "--listen [::]:9001"),
    (2, &["--unix-mode", "600"], "--listen unix:/PATH"),
    (2, &["--takeover", "/run/door"], "unix:/run/ringecho.takeover"),
    (2, &["--takeover", "unix:/run/"], "is a directory"),
    (1, &["--takeover", "unix:/nowhere/at/all"], "create the directory first"),
    (2, &["--unix-mode", "9"], "such as 660"),
    (2, &["--workers", "0"], "from 1 to 1024"),
    (2, &["--cpus", "1-"], "such as 0,2-5"),
    (2, &["--wait", "never"], "adaptive"),
    (2, &["--engine", "uring2"], "epoll"),
    (2, &["--offload", "maybe"], "auto"),
    (2, &["--sandbox", "maybe"], "off"),
    (2, &["--protocol", "udp"], "websocket"),
    (2, &["--compression", "gzip"], "mirror"),
    (2, &["--message-max", "0"], "such as 64KiB"),
    (2, &["--message-max", "2GiB"], "1.0 GiB"),
    (2, &["--connections-max", "0"], "from 1 to"),
    (2, &["--buffers", "3"], "power of two"),
    (2, &["--buffer-size", "1"], "such as 64KiB"),
    (2, &["--buffer-size", "1025"], "multiple of 64"),
    (2, &["--spin-us", "0"], "from 1 to 1000000"),
    (2, &["--spin-us", "-1"], "-1"),
    (2, &["--compression-level", "10"], "from 1 to 9"),
    (2, &["--wait", "block", "--wait", "spin"], "--wait"),
    (2, &["--wait", "block", "--spin-us", "9"], "no effect with --wait block"),
    (2, &["--compression", "off", "--compression-level", "9"], "no effect with --compression off"),
    (2, &["--message-max", "1KiB", "--offload", "on"], "at least 16KiB"),
    (2, &["--protocol", "tcp", "--compression", "off"], "no effect with --protocol tcp"),
    (2, &["--json"], "--json"),
    (2, &["doctor", "--nonsense"], "Usage: ringecho doctor"),
    (2, &["doctor", "--workers", "2"], "Usage: ringecho doctor"),
    (2, &["help", "nonsense"], "nonsense"),
];

#[test]
fn every_end_has_its_status() {
    for &(status, arguments, told) in STATUSES {
        let ended = run(arguments);
        assert_eq!(ended.status.code(), Some(status), "{arguments:?} {ended:?}");
        let (used, unused) = match status {
            0 => (&ended.stdout, &ended.stderr),
            _ => (&ended.stderr, &ended.stdout),
        };
        assert!(used.contains(told), "{arguments:?} {ended:?}");
        assert_eq!(unused, "", "{arguments:?}");
        match status {
            1 => assert!(used.starts_with("ringecho: ") && used.lines().count() == 1, "{used}"),
            2 => assert!(used.starts_with("error: ") && used.contains("--help"), "{used}"),
            _ => {}
        }
    }
}

#[test]
fn output_that_cannot_be_written_is_an_error_whatever_it_is() {
    for arguments in [&["--help"][..], &["help", "doctor"], &["--version"], &["doctor"]] {
        let full = File::options().write(true).open("/dev/full").expect("a device");
        let ended = Command::new(program()).args(arguments).stdout(full).output().expect("it runs");
        let stderr = String::from_utf8(ended.stderr).expect("UTF-8");
        assert_eq!(ended.status.code(), Some(1), "{arguments:?}: {stderr}");
        assert!(stderr.starts_with("ringecho: cannot write to standard output"), "{stderr}");
    }
}

#[test]
fn help_names_every_option_and_version_prints_the_version() {
    let help = run(&["--help"]);
    assert_eq!((help.status.code(), help.stderr.as_str()), (Some(0), ""));
    for word in [
        "--listen",
        "--ipv6-only",
        "--unix-mode",
        "--takeover",
        "--workers",
        "--cpus",
        "--engine",
        "uring",
        "epoll",
        "--offload",
        "--protocol",
        "--compression",
        "--compression-level",
        "--recompression-memory",
        "--wait",
        "block",
        "spin",
        "adaptive",
        "sqpoll",
        "--spin-us",
        "--message-max",
        "--connections-max",
        "--buffers",
        "--buffer-size",
        "--spill-pool",
        "--sandbox",
        "--stats-file",
        "--help",
        "--version",
    ] {
        assert!(help.stdout.contains(word), "{word} is not in {}", help.stdout);
    }
    let version = run(&["--version"]);
    assert_eq!(version.status.code(), Some(0));
    assert_eq!(version.stdout, format!("ringecho {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn without_io_uring_the_error_names_the_remedy() {
    let refused = |errno| {
        let arguments = ["--listen", "127.0.0.1:0", "--engine", "uring"];
        refusal(without_io_uring(errno, || run(&arguments)))
    };
    let line = refused(Errno::NOSYS);
    assert!(line.contains("io_uring") && line.contains("Linux 6.1"), "{line}");
    assert!(line.contains("seccomp"), "{line}");
    let line = refused(Errno::PERM);
    assert!(line.contains("kernel.io_uring_disabled") && line.contains("seccomp"), "{line}");
}

#[test]
fn without_io_uring_it_serves_by_epoll_and_says_why() {
    for (errno, reason) in [(Errno::NOSYS, "Linux 6.1"), (Errno::PERM, "kernel.io_uring_disabled")]
    {
        let server = without_io_uring(errno, || Server::start(&["--engine", "auto"]));
        assert!(server.greeting().contains("(engine epoll, "), "{}", server.greeting());
        let mut client = Client::connect(server.address());
        converse(&mut client, 100);
        client.close();
        let ended = server.terminate();
        assert_eq!(ended.status.code(), Some(0), "{ended:?}");
        let lines: Vec<&str> = ended
            .stderr
            .lines()
            .filter(|line| line.contains("epoll instead of io_uring"))
            .collect();
        assert!(lines.len() == 1 && lines[0].contains(reason), "{ended:?}");
    }
    // A profile may allow only some of the calls.
    let server = without(IO_URING_REGISTER, Errno::PERM, || Server::start(&["--engine", "auto"]));
    assert!(server.greeting().contains("(engine epoll, "), "{}", server.greeting());
    server.terminate();
    // Only io_uring has a thread of the kernel to wait with.
    let arguments = ["--listen", "127.0.0.1:0", "--wait", "sqpoll"];
    let line = refusal(without_io_uring(Errno::PERM, || run(&arguments)));
    assert!(line.contains("kernel.io_uring_disabled"), "{line}");
}
