//! `--engine auto` serves wherever epoll can: whatever the kernel refuses of io_uring, the server
//! starts with epoll and says why.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use rustix::io::Errno;
use testkit::seccomp::{Calls, IO_URING_ENTER, IO_URING_REGISTER, IO_URING_SETUP, refusing};
use testkit::server::can_offload;
use testkit::{Client, Ended, Server, TEXT, program, run_by, say};

/// `IORING_OFF_SQES`: where a ring's submissions are mapped from (io_uring_setup(2)).
const SUBMISSIONS_OFFSET: u64 = 0x1000_0000;
/// `IORING_REGISTER_PBUF_RING` (io_uring_register(2)).
const REGISTER_BUFFER_RING: u64 = 22;
/// `MADV_POPULATE_WRITE` (madvise(2)).
const POPULATE_WRITE: u64 = 23;
/// The words of the warning.
const INSTEAD: &str = "with epoll instead of io_uring: ";
/// The user and group `nobody`, whom limits on locked memory bind.
const NOBODY: u32 = 65534;

fn command(engine: &str, workers: usize) -> Command {
    let mut command = Command::new(program());
    command.args(["--listen", "127.0.0.1:0", "--engine", engine]);
    command.args(["--workers", &workers.to_string(), "--buffers", "64"]);
    command.args(["--buffer-size", "16KiB"]);
    command
}

/// The same under a limit that `ulimit` sets, for a user whom it binds.
fn limited(engine: &str, workers: usize, limit: &str, value: u64) -> Command {
    let inner = command(engine, workers);
    let mut outer = Command::new("sh");
    outer.args(["-c", &format!("ulimit {limit} {value} && exec \"$0\" \"$@\"")]);
    outer.arg(inner.get_program()).args(inner.get_args());
    if rustix::process::geteuid().is_root() {
        outer.uid(NOBODY).gid(NOBODY);
    }
    outer
}

fn serves_by(server: &Server, engine: &str) -> bool {
    server.greeting().contains(&format!("(engine {engine}, "))
}

/// Lets the server echo and end, and returns the reasons that it gave for not using io_uring.
fn reasons(server: Server) -> Vec<String> {
    let mut client = Client::connect(server.address());
    client.echo(TEXT, b"hello");
    client.close();
    let Ended { status, stderr, .. } = server.terminate();
    assert_eq!(status.code(), Some(0), "{stderr}");
    stderr.lines().filter_map(|line| line.split_once(INSTEAD)).map(|(_, why)| why.into()).collect()
}

#[test]
fn whatever_is_refused_of_io_uring_epoll_serves() {
    for (calls, errno, reason) in [
        (Calls::all(IO_URING_SETUP), Errno::NOMEM, "cannot set up io_uring: "),
        (Calls::all(IO_URING_SETUP), Errno::INVAL, "Linux 6.1"),
        (Calls::all(IO_URING_ENTER), Errno::PERM, "cannot receive with io_uring: "),
        (Calls::all(IO_URING_REGISTER), Errno::PERM, "cannot register the buffer ring: "),
        (
            Calls::with(IO_URING_REGISTER, 1, REGISTER_BUFFER_RING),
            Errno::NOMEM,
            "cannot register the buffer ring: ",
        ),
        (
            Calls::with(libc::SYS_mmap, 5, SUBMISSIONS_OFFSET),
            Errno::NOMEM,
            "cannot set up io_uring: ",
        ),
    ] {
        refusing(calls, errno, || {
            let server = Server::start_by(command("auto", 2));
            assert!(serves_by(&server, "epoll"), "{calls:?}: {}", server.greeting());
            let reasons = reasons(server);
            assert!(reasons.len() == 1 && reasons[0].contains(reason), "{calls:?}: {reasons:?}");
            // Whoever asks for io_uring is told the same.
            let ended = run_by(&mut command("uring", 2));
            assert_eq!(ended.status.code(), Some(1), "{ended:?}");
            assert!(ended.stderr.contains(&reasons[0]), "{ended:?}");
        });
    }
}

#[test]
fn a_kernel_without_io_uring_that_cannot_populate_memory_serves_by_epoll() {
    let populate = Calls::with(libc::SYS_madvise, 2, POPULATE_WRITE);
    refusing(populate, Errno::INVAL, || {
        refusing(Calls::all(IO_URING_SETUP), Errno::NOSYS, || {
            let server = Server::start_by(command("auto", 1));
            assert!(serves_by(&server, "epoll"), "{}", server.greeting());
            assert_eq!(reasons(server).len(), 1);
        });
    });
}

#[test]
fn with_any_limit_on_locked_memory_it_serves() {
    let hard = rustix::process::getrlimit(rustix::process::Resource::Memlock).maximum;
    for kilobytes in [0, 64, 256, 1 << 10, 4 << 10, 8 << 10] {
        if hard.is_some_and(|hard| kilobytes << 10 > hard) {
            continue;
        }
        let server = Server::start_by(limited("auto", 8, "-l", kilobytes));
        let is_epoll = serves_by(&server, "epoll");
        assert!(is_epoll || kilobytes > 64, "rings of {kilobytes} KiB");
        let reasons = reasons(server);
        assert_eq!(reasons.len(), usize::from(is_epoll), "{kilobytes} KiB: {reasons:?}");
        assert!(reasons.iter().all(|why| why.contains("ulimit -l")), "{reasons:?}");
    }
}

/// Starts the server under a limit by epoll and by `auto`, from `values`, and sees that `auto` serves
/// wherever epoll does. Some of the values must be too low for epoll, and some high enough.
fn auto_serves_where_epoll_does(limit: &str, values: impl Iterator<Item = u64>) {
    let (mut refused, mut served) = (0, 0);
    for value in values {
        if let Err(why) = Server::try_start_by(limited("epoll", 2, limit, value)) {
            assert!(why.contains(&format!("(ulimit {limit}")), "ulimit {limit} {value}: {why}");
            refused += 1;
            continue;
        }
        served += 1;
        if let Err(why) = Server::try_start_by(limited("auto", 2, limit, value)) {
            panic!("ulimit {limit} {value}: epoll serves and auto does not: {why}");
        }
    }
    assert!(refused > 0 && served > 0, "{refused} refused, {served} served");
}

#[test]
fn with_few_descriptors_it_serves_where_epoll_does() {
    auto_serves_where_epoll_does("-n", 4..20);
}

#[test]
fn without_threads_the_error_names_the_limit() {
    let inner = command("auto", 1);
    let mut outer = Command::new("prlimit");
    outer.arg("--nproc=1").arg(inner.get_program()).args(inner.get_args());
    if rustix::process::geteuid().is_root() {
        outer.uid(NOBODY).gid(NOBODY);
    }
    let why = Server::try_start_by(outer).expect_err("no thread can be started");
    assert!(why.contains("cannot start a thread: ") && why.contains("ulimit -u"), "{why}");
}

#[test]
fn with_few_descriptors_it_gives_up_offload_before_io_uring() {
    if !can_offload("with_few_descriptors_it_gives_up_offload_before_io_uring") {
        return;
    }
    let start = |limit: u64, offload: &str| {
        let script = format!("ulimit -n {limit} && exec \"$0\" \"$@\"");
        // Two workers would need more at times, when both try their rings at once.
        let inner = command("auto", 1);
        let mut outer = Command::new("sh");
        outer.args(["-c", &script]).arg(inner.get_program()).args(inner.get_args());
        outer.args(["--offload", offload]);
        Server::try_start_by(outer)
    };
    let mut given_up = 0;
    for limit in 8..40 {
        let Ok(plain) = start(limit, "off") else { continue };
        let server = match start(limit, "auto") {
            Ok(server) => server,
            // The program fits, and then there are none left for the listeners.
            Err(why) if why.contains("cannot listen") && why.contains("ulimit -n") => continue,
            Err(why) => panic!("ulimit -n {limit}: {why}"),
        };
        let greeting = server.greeting();
        if serves_by(&plain, "uring") {
            assert!(serves_by(&server, "uring"), "ulimit -n {limit}: {greeting}");
            given_up += usize::from(!greeting.contains("offload auto"));
        }
    }
    assert!(given_up > 0, "no limit was too low for offload alone");
}

/// The kernel counts the rings of a killed server against its user's limit for some 30 ms longer.
#[test]
fn where_a_server_with_little_locked_memory_was_killed_the_next_one_has_its_rings() {
    if !rustix::process::geteuid().is_root() {
        return say("SKIPPED: where_a_server_was_killed: only root can start one as another user");
    }
    // A user of this test alone, whose locked memory nobody else uses.
    let user = NOBODY - 1;
    let start = |engine: &str, kilobytes: u64| {
        let mut command = limited(engine, 1, "-l", kilobytes);
        Server::try_start_by({
            command.uid(user).gid(user);
            command
        })
    };
    // What is just enough for one is too little for two.
    let enough = (64..8192).step_by(64).find(|&kilobytes| start("uring", kilobytes).is_ok());
    let enough = enough.expect("a limit that is enough");
    // On a busy machine the kernel may take longer than a server waits, so some may be without.
    let (mut tried, mut have) = (0, 0);
    while have < 3 && tried < 20 {
        let killed = (0..100).any(|_| start("uring", enough).is_ok());
        assert!(killed, "{enough} KiB were enough once, and are not any more");
        let next = start("auto", enough).expect("epoll always serves");
        have += i32::from(serves_by(&next, "uring"));
        tried += 1;
    }
    assert!(have == 3, "{enough} KiB: {have} of {tried}");
}

#[test]
fn without_proc_and_sys_it_serves() {
    // In a mount namespace of its own; where the kernel allows none, there is nothing to be seen.
    let script = "mount -t tmpfs none /proc && mount -t tmpfs none /sys && exec \"$0\" \"$@\"";
    let user = if rustix::process::geteuid().is_root() { &[][..] } else { &["-r"] };
    let unshare = |arguments: &[&str]| {
        let mut outer = Command::new("unshare");
        outer.args(user).args(["-m", "sh", "-c", script]).args(arguments);
        outer
    };
    if !unshare(&["true"]).status().is_ok_and(|status| status.success()) {
        return say("SKIPPED: without_proc_and_sys_it_serves: no mount namespaces here");
    }
    let runtime = if cfg!(feature = "tokio-uring") { &["tokio-uring"][..] } else { &[] };
    for engine in ["auto", "epoll"].iter().chain(runtime) {
        let inner = command(engine, 2);
        let mut outer = unshare(&[]);
        outer.arg(inner.get_program()).args(inner.get_args());
        assert_eq!(reasons(Server::start_by(outer)), [""; 0]);
    }
}

#[test]
fn what_only_io_uring_can_do_has_no_fallback() {
    for arguments in [["--wait", "sqpoll"], ["--offload", "on"]] {
        let ended = refusing(Calls::all(IO_URING_SETUP), Errno::PERM, || {
            run_by(command("auto", 1).args(arguments))
        });
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        assert!(ended.stdout.is_empty() && !ended.stderr.contains(INSTEAD), "{ended:?}");
    }
}
