//! The command line: what is printed where, the status at the end, signals, and the counters.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command};
use std::thread;

use core_affinity::CoreId;
use rustix::io::Errno;
use rustix::net::SendFlags;
use rustix::process::{Signal, WaitOptions, kill_process, waitpid};
use serde_json::Value;
use testkit::{
    BINARY, CLOSE, Client, Ended, FIN, IO_URING_REGISTER, REQUEST, RESPONSE, Server, TEXT, end,
    frame, pattern, program, reply, run, say, spawn, temporary_file, wait_until, without,
    without_io_uring,
};

/// The counters, in the order of the statistics file and of the summary.
const COUNTERS: [&str; 19] = [
    "connections_accepted",
    "connections_open",
    "connections_rejected",
    "connections_overrun",
    "messages",
    "messages_offloaded",
    "messages_mirrored",
    "messages_recompressed",
    "frames_in",
    "frames_out",
    "bytes_in",
    "bytes_out",
    "syscalls",
    "syscalls_per_message",
    "buffers_exhausted",
    "spill_bytes_kept",
    "spill_allocations",
    "protocol_violations",
    "spins",
];

/// The CPUs that this process may use.
fn cpus() -> Vec<usize> {
    core_affinity::get_core_ids().expect("a list").into_iter().map(|core| core.id).collect()
}

/// Checks that the server ended at once with status 1 and one line, and gives that line.
#[track_caller]
fn refusal(ended: Ended) -> String {
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert_eq!(ended.stdout, "", "{ended:?}");
    let line = ended.stderr.strip_suffix('\n').expect("a line").to_owned();
    assert!(line.starts_with("ringecho: ") && !line.contains('\n'), "{line:?}");
    line
}

/// The names of the counters in a summary of one column.
fn names_in(summary: &str) -> Vec<&str> {
    summary.lines().filter_map(|line| line.split_whitespace().next()).collect()
}

/// What is printed after the first line.
fn summary_of(ended: &Ended) -> &str {
    ended.stdout.split_once('\n').expect("a first line").1
}

/// What a client that answers close frames receives when the server stops.
#[track_caller]
fn expect_going_away(client: &mut Client) {
    client.expect(CLOSE, &1001u16.to_be_bytes());
    client.send_frame(CLOSE, &1001u16.to_be_bytes());
    client.expect_end();
}

#[test]
fn the_first_line_says_where_and_how_and_then_it_accepts() {
    let cpu = cpus()[0];
    for (workers, list, wait) in [
        ("1", format!("1 worker on CPU {cpu}"), "block"),
        ("2", format!("2 workers on CPU {cpu}"), "adaptive"),
    ] {
        let server = Server::start(&[
            "--engine",
            "uring",
            "--workers",
            workers,
            "--cpus",
            &cpu.to_string(),
            "--wait",
            wait,
        ]);
        let address = server.address();
        assert_ne!(address.port(), 0);
        assert_eq!(
            server.greeting(),
            format!(
                "ringecho listening on ws://{address} (engine uring, {list}, wait {wait}, \
                 compression mirror)"
            )
        );
        Client::connect(address).close();
    }
}

#[test]
fn without_options_there_is_a_worker_for_each_cpu_and_the_wait_is_adaptive() {
    let server = Server::start(&[]);
    let workers = cpus().len();
    let plural = if workers == 1 { "" } else { "s" };
    let greeting = server.greeting();
    assert!(greeting.contains(&format!(", {workers} worker{plural} on CPU{plural} ")));
    assert!(greeting.ends_with(", wait adaptive, compression mirror)"), "{greeting}");
    assert_eq!(server.statistics()["workers"].as_array().map(Vec::len), Some(workers));
}

#[test]
fn it_listens_on_several_addresses() {
    let listen = ["--listen", "127.0.0.1:0", "--listen", "127.0.0.1:0", "--workers", "2"];
    let server = Server::start(&listen);
    let addresses = server.addresses();
    assert_eq!(addresses.len(), 2, "{}", server.greeting());
    assert_ne!(addresses[0], addresses[1]);
    for address in addresses {
        let mut client = Client::connect(address);
        client.echo(TEXT, b"here");
        client.close();
    }
}

#[test]
fn it_listens_on_ipv6_and_ipv4_at_once() {
    if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_err() {
        return say("SKIPPED it_listens_on_ipv6_and_ipv4_at_once: there is no IPv6 here");
    }
    let server = Server::start(&["--listen", "[::1]:0", "--listen", "127.0.0.1:0"]);
    let addresses = server.addresses();
    assert!(addresses[0].is_ipv6() && addresses[1].is_ipv4(), "{}", server.greeting());
    for address in addresses {
        let mut client = Client::connect(address);
        client.echo(TEXT, b"here");
        client.close();
    }
}

#[test]
fn an_address_in_use_is_an_error_that_names_the_process() {
    let other = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = other.local_addr().expect("an address");
    let here = format!("in use by process {} (", std::process::id());
    for listen in [address.to_string(), format!("0.0.0.0:{}", address.port())] {
        let line = refusal(run(&["--listen", &listen]));
        assert!(line.contains(&listen) && line.contains(&here), "{line}");
        assert!(line.contains("choose another port"), "{line}");
    }
    // Two servers would share the port if they could.
    let server = Server::start(&[]);
    let address = server.address().to_string();
    let line = refusal(run(&["--listen", &address]));
    let holder = format!("in use by process {} (ringecho)", server.pid().as_raw_pid());
    assert!(line.contains(&address) && line.contains(&holder), "{line}");
    let mut client = Client::connect(server.address());
    client.echo(TEXT, b"still here");
}

#[test]
fn the_ipv6_wildcard_takes_ipv4_unless_ipv6_only_is_given() {
    if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_err() {
        return say("SKIPPED the_ipv6_wildcard_takes_ipv4: there is no IPv6 here");
    }
    for (options, takes_ipv4) in [(&[][..], true), (&["--ipv6-only"][..], false)] {
        let server = Server::start(&[&["--listen", "[::]:0", "--workers", "2"], options].concat());
        let port = server.address().port();
        let mut client = Client::connect((Ipv6Addr::LOCALHOST, port).into());
        client.echo(TEXT, b"six");
        let ipv4 = (Ipv4Addr::LOCALHOST, port);
        assert_eq!(TcpStream::connect(ipv4).is_ok(), takes_ipv4, "{options:?}");
        if takes_ipv4 {
            let mut client = Client::connect(ipv4.into());
            client.echo(TEXT, b"four");
            let listen = format!("0.0.0.0:{port}");
            let line = refusal(run(&["--listen", &listen]));
            assert!(line.contains("(ringecho)"), "{line}");
        }
    }
}

#[test]
fn an_address_given_twice_is_a_usage_error() {
    for (first, second, told) in [
        ("127.0.0.1:9001", "127.0.0.1:9001", "127.0.0.1:9001 is given twice"),
        ("[::]:9001", "0.0.0.0:9001", "[::]:9001 already takes the connections to 0.0.0.0:9001"),
        ("unix:/run/twice", "unix:/run/./twice", "unix:/run/twice is given twice"),
    ] {
        let ended = run(&["--listen", first, "--listen", second]);
        assert_eq!(ended.status.code(), Some(2), "{ended:?}");
        assert!(ended.stderr.contains(told), "{ended:?}");
        assert!(ended.stderr.contains("leave one of them out"), "{ended:?}");
    }
}

/// The kernel closes the sockets of a ring a moment after its process was killed.
#[test]
fn a_server_starts_where_one_was_killed_an_instant_before() {
    let path = temporary_file("restart.sock");
    let unix = format!("unix:{}", path.display());
    let mut server =
        Server::start(&["--workers", "2", "--listen", "127.0.0.1:0", "--listen", &unix]);
    let address = server.address().to_string();
    for _ in 0..10 {
        let mut client = Client::connect(server.address());
        client.echo(TEXT, b"before");
        server.signal(Signal::KILL);
        assert!(!server.wait().status.success());
        let arguments = ["--workers", "2", "--listen", &address, "--listen", &unix];
        server = Server::start(&arguments);
        UnixStream::connect(&path).expect("a listener");
    }
    assert_eq!(server.terminate().status.code(), Some(0));
}

#[test]
fn an_address_of_another_machine_is_an_error() {
    // RFC 5737: TEST-NET-1 is assigned to no host.
    let line = refusal(run(&["--listen", "192.0.2.1:9001"]));
    assert!(line.contains("192.0.2.1:9001"), "{line}");
}

#[test]
fn a_malformed_cpu_list_is_a_usage_error() {
    for list in ["1-", "x", "", "0,1-y"] {
        let ended = run(&["--listen", "127.0.0.1:0", "--cpus", list]);
        assert_eq!(ended.status.code(), Some(2), "{ended:?}");
        assert!(ended.stderr.contains("such as 0,2-5"), "{ended:?}");
    }
}

#[test]
fn a_cpu_that_the_kernel_refuses_is_an_error() {
    let line = refusal(run(&["--listen", "127.0.0.1:0", "--cpus", "1023"]));
    assert!(line.contains("CPU 1023") && line.contains("--cpus"), "{line}");
}

/// The CPUs that `isolcpus` and `taskset` leave to a process are a default, not a limit.
#[test]
fn a_cpu_outside_the_affinity_mask_is_used_when_it_is_named() {
    let [first, second, ..] = cpus()[..] else {
        return say("SKIPPED a_cpu_outside_the_affinity_mask: there is only one CPU");
    };
    let server = thread::spawn(move || {
        // A child inherits the affinity mask of the thread that starts it.
        assert!(core_affinity::set_for_current(CoreId { id: first }));
        Server::start(&["--cpus", &second.to_string()])
    });
    let server = server.join().expect("a thread");
    let expected = format!("1 worker on CPU {second},");
    assert!(server.greeting().contains(&expected), "{}", server.greeting());
    let tasks = format!("/proc/{}/task", server.pid().as_raw_pid());
    let is_pinned = fs::read_dir(tasks).expect("a process").any(|task| {
        let task = task.expect("a thread").path();
        let name = fs::read_to_string(task.join("comm")).unwrap_or_default();
        let status = fs::read_to_string(task.join("status")).unwrap_or_default();
        name == "worker-0\n" && status.contains(&format!("Cpus_allowed_list:\t{second}\n"))
    });
    assert!(is_pinned, "no worker runs on CPU {second} alone");
    let mut client = Client::connect(server.address());
    client.echo(TEXT, b"there");
}

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
    (2, &["--unix-mode", "9"], "such as 660"),
    (2, &["--workers", "0"], "from 1 to 1024"),
    (2, &["--cpus", "1-"], "such as 0,2-5"),
    (2, &["--wait", "never"], "adaptive"),
    (2, &["--engine", "uring2"], "epoll"),
    (2, &["--offload", "maybe"], "auto"),
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
        "--workers",
        "--cpus",
        "--engine",
        "uring",
        "epoll",
        "--offload",
        "--protocol",
        "--compression",
        "--compression-level",
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

#[test]
fn sigint_and_sigterm_close_every_connection_with_1001() {
    for signal in [Signal::INT, Signal::TERM] {
        let server = Server::start(&["--workers", "2"]);
        let mut clients: Vec<Client> = (0..20).map(|_| Client::connect(server.address())).collect();
        for client in &mut clients {
            client.echo(TEXT, b"before");
        }
        let mut silent = Client::open(server.address());
        let mut asking = Client::open(server.address());
        asking.write(&REQUEST.as_bytes()[..20]);
        server.wait_for_count("connections_open", 22);
        server.signal(signal);
        for client in &mut clients {
            expect_going_away(client);
        }
        // No WebSocket connection, no close frame.
        silent.expect_end();
        asking.expect_end();
        drop((clients, silent, asking));
        let ended = server.wait();
        assert_eq!(ended.status.code(), Some(0), "{ended:?}");
        assert_eq!(ended.count("connections_open"), 0);
        // Two workers: a head line, then a line for each counter.
        let summary = names_in(summary_of(&ended));
        assert_eq!(summary[0], "total");
        assert_eq!(summary[1..], COUNTERS);
    }
}

#[test]
fn a_stop_in_full_traffic_cuts_nothing_in_two() {
    for wait in ["block", "adaptive", "sqpoll"] {
        let server = Server::start(&["--workers", "2", "--wait", wait]);
        // A connection that is not open yet when the server stops is not part of the traffic.
        let clients: Vec<_> = (0..16).map(|_| Client::connect(server.address())).collect();
        let clients: Vec<_> = (0..)
            .zip(clients)
            .map(|(number, mut client)| {
                thread::spawn(move || {
                    let payload = pattern(100 << (number % 10));
                    let sent = frame(BINARY, &payload);
                    loop {
                        client.write(&sent);
                        let received = client.read_frame();
                        if received.first == CLOSE {
                            assert_eq!(received.payload, 1001u16.to_be_bytes());
                            client.send_frame(CLOSE, &1001u16.to_be_bytes());
                            return client.expect_end();
                        }
                        assert!(received.payload == payload, "the echo is not what was sent");
                    }
                })
            })
            .collect();
        wait_until("all are talking", || server.count("messages") > 1_000);
        let ended = server.terminate();
        for client in clients {
            client.join().expect("echoes, then the close frame, then FIN");
        }
        assert_eq!(ended.status.code(), Some(0), "{wait} {ended:?}");
        assert_eq!(ended.count("connections_open"), 0);
        assert_eq!(ended.count("protocol_violations"), 0);
    }
}

#[test]
fn it_stops_although_peers_never_answer_or_never_read() {
    let server = Server::start(&["--workers", "1"]);
    let mut silent = Client::connect(server.address());
    let mut vanished = Client::connect(server.address());
    vanished.send_frame(TEXT, b"gone");
    // More than the sockets take, so that the server's send waits.
    let clogged = Client::connect(server.address());
    let stream = clogged.stream().try_clone().expect("a descriptor");
    let (begun, has_begun) = std::sync::mpsc::channel();
    let writer = thread::spawn(move || {
        let message = frame(BINARY, &pattern(1 << 20));
        let mut stream = &stream;
        for _ in 0..64 {
            if std::io::Write::write_all(&mut stream, &message).is_err() {
                break;
            }
            let _ = begun.send(());
        }
    });
    has_begun.recv().expect("a message is written");
    server.signal(Signal::TERM);
    silent.expect(CLOSE, &1001u16.to_be_bytes());
    let ended = server.wait();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert_eq!(names_in(summary_of(&ended)), COUNTERS);
    assert_eq!(ended.count("connections_open"), 0);
    let _ = clogged.stream().shutdown(Shutdown::Both);
    writer.join().expect("a thread");
}

#[test]
fn a_second_signal_ends_at_once() {
    for (first, second, status) in [
        (Signal::TERM, Signal::TERM, 143),
        (Signal::INT, Signal::INT, 130),
        (Signal::TERM, Signal::INT, 130),
    ] {
        let mut server = Server::start(&[]);
        let mut silent = Client::connect(server.address());
        server.signal(first);
        silent.expect(CLOSE, &1001u16.to_be_bytes());
        // One that comes at once counts as the first.
        wait_until("the server ends", || {
            server.signal(second);
            !server.is_running()
        });
        let ended = server.wait();
        assert_eq!(ended.status.code(), Some(status), "{ended:?}");
        // The drain was not waited for, or there would be a summary.
        assert_eq!(summary_of(&ended), "");
    }
}

/// `timeout` sends a signal to its child and then to the whole group.
#[test]
fn a_signal_that_arrives_twice_is_one() {
    let server = Server::start(&["--workers", "1"]);
    let mut client = Client::connect(server.address());
    server.signal(Signal::TERM);
    server.signal(Signal::TERM);
    expect_going_away(&mut client);
    let ended = server.wait();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert_eq!(names_in(summary_of(&ended)), COUNTERS);
}

#[test]
fn a_stop_within_a_frame_lets_binary_finish_and_drops_text() {
    let server = Server::start(&["--workers", "1"]);
    let payload = pattern(100_000);
    let (sent, echoed) = (frame(BINARY, &payload), reply(BINARY, &payload));
    let half = payload.len() / 2;
    let mut binary = Client::connect(server.address());
    binary.write(&sent[..half]);
    // The header is four bytes shorter without the key.
    let first = binary.read(half - 4);
    let mut text = Client::connect(server.address());
    text.echo(TEXT, b"before");
    let cut = frame(TEXT, b"never echoed");
    text.write(&cut[..10]);
    let mut fragments = Client::connect(server.address());
    fragments.echo(BINARY & !FIN, b"a fragment");
    server.wait_for_count("bytes_in", {
        let request = REQUEST.len() as u64;
        3 * request + half as u64 + 6 + 6 + 10 + 16
    });

    server.signal(Signal::TERM);
    // Between fragments control frames may stand (RFC 6455 section 5.4).
    expect_going_away(&mut fragments);
    text.expect(CLOSE, &1001u16.to_be_bytes());
    text.write(&cut[10..]);
    text.send_frame(TEXT, b"not echoed either");
    text.send_frame(CLOSE, &1001u16.to_be_bytes());
    text.expect_end();
    binary.write(&sent[half..]);
    let second = binary.read(echoed.len() - first.len());
    assert!([first, second].concat() == echoed, "the echo is not what was sent");
    expect_going_away(&mut binary);

    drop((binary, text, fragments));
    let ended = server.wait();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert_eq!((ended.count("messages"), ended.count("protocol_violations")), (2, 0));
}

/// The reference conversation: `messages` texts of 16 bytes one after the other.
fn converse(client: &mut Client, messages: usize) {
    let sent = frame(TEXT, b"0123456789abcdef");
    for _ in 0..messages {
        client.write(&sent);
        client.expect(TEXT, b"0123456789abcdef");
    }
}

#[test]
fn the_counters_are_exact() {
    let server = Server::start(&["--engine", "uring", "--workers", "1", "--wait", "block"]);
    let mut client = Client::connect(server.address());
    converse(&mut client, 1000);
    let (request, response) = (REQUEST.len() as u64, RESPONSE.len() as u64);
    let expected = |statistics: &Value, open: u64, close: u64| {
        let names: Vec<&String> = statistics.as_object().expect("an object").keys().collect();
        assert_eq!(names, ["total", "workers"]);
        let workers = statistics["workers"].as_array().expect("an array");
        assert_eq!(workers, &[statistics["total"].clone()]);
        let total = statistics["total"].as_object().expect("an object");
        assert_eq!(total.keys().collect::<Vec<&String>>(), COUNTERS);
        for (name, value) in [
            ("connections_accepted", 1),
            ("connections_open", open),
            ("connections_rejected", 0),
            ("connections_overrun", 0),
            ("messages", 1000),
            ("messages_offloaded", 0),
            ("messages_mirrored", 0),
            ("messages_recompressed", 0),
            ("frames_in", 1000 + close),
            ("frames_out", 1000 + close),
            ("bytes_in", request + 1000 * 22 + close * 8),
            ("bytes_out", response + 1000 * 18 + close * 4),
            ("buffers_exhausted", 0),
            ("spill_bytes_kept", 0),
            ("spill_allocations", 0),
            ("protocol_violations", 0),
            ("spins", 0),
        ] {
            assert_eq!(total[name].as_u64(), Some(value), "{name} of {statistics}");
        }
        let syscalls = total["syscalls"].as_u64().expect("a count");
        assert!(syscalls > 0);
        let ratio = total["syscalls_per_message"].as_f64().expect("a ratio");
        assert_eq!(ratio, syscalls as f64 / 1000.0);
    };
    // The last send is counted when the next completion is.
    server.wait_for_count("connections_open", 1);
    let before = server.statistics();
    assert_eq!(before["total"]["messages"].as_u64(), Some(1000), "{before}");
    assert_eq!(before["total"]["connections_open"].as_u64(), Some(1), "{before}");
    client.close();
    server.wait_for_count("connections_open", 0);
    expected(&server.statistics(), 0, 1);
    let ended = server.terminate();
    assert_eq!(ended.status.code(), Some(0));
    expected(&ended.statistics, 0, 1);

    // The summary has the same counts.
    let summary = summary_of(&ended);
    assert_eq!(names_in(summary), COUNTERS);
    for (line, name) in summary.lines().zip(COUNTERS) {
        let number = line.split_whitespace().nth(1).expect("a number");
        match ended.statistics["total"][name].as_u64() {
            Some(value) => assert_eq!(number, value.to_string(), "{line}"),
            None => assert!(number.starts_with("1.0"), "{line}"),
        }
    }
}

#[test]
fn the_total_is_the_sum_over_the_workers() {
    let server = Server::start(&["--workers", "3"]);
    for _ in 0..30 {
        let mut client = Client::connect(server.address());
        client.echo(BINARY, &pattern(300));
        client.close();
    }
    server.wait_for_count("connections_open", 0);
    let ended = server.terminate();
    let workers = ended.statistics["workers"].as_array().expect("an array");
    assert_eq!(workers.len(), 3);
    for name in COUNTERS.into_iter().filter(|&name| name != "syscalls_per_message") {
        let sum: u64 = workers.iter().map(|worker| worker[name].as_u64().expect("a count")).sum();
        assert_eq!(ended.count(name), sum, "{name}");
    }
    assert_eq!(ended.count("messages"), 30);
    assert_eq!(ended.count("frames_out"), 60);
}

/// A server that is no [`Server`]: with `arguments`, and its first line read from its output.
fn start_by_hand(arguments: &[&str]) -> (Child, BufReader<std::process::ChildStdout>, Client) {
    let mut command = Command::new(program());
    let mut child = spawn(command.args(["--listen", "127.0.0.1:0"]).args(arguments));
    let (output, client) = greeted(&mut child);
    (child, output, client)
}

/// The output of a server after its first line, and a connection to it.
fn greeted(child: &mut Child) -> (BufReader<std::process::ChildStdout>, Client) {
    let mut output = BufReader::new(child.stdout.take().expect("a pipe"));
    let mut greeting = String::new();
    output.read_line(&mut greeting).expect("a first line");
    let address = greeting.split_once("ws://").and_then(|(_, rest)| rest.split_once(' '));
    let (address, _) = address.expect("an address");
    (output, Client::connect(address.parse().expect("an address")))
}

#[test]
fn a_reader_of_its_output_that_goes_away_is_no_reason_to_fail() {
    let stats_file = temporary_file("unread.json");
    let path = stats_file.to_str().expect("a path in UTF-8");
    let (child, output, mut client) = start_by_hand(&["--workers", "1", "--stats-file", path]);
    drop(output);
    client.echo(TEXT, b"unread");
    client.close();
    kill_process(rustix::process::Pid::from_child(&child), Signal::TERM).expect("a child");
    let ended = end(child);
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert!(!ended.stderr.contains("ringecho: "), "{ended:?}");
    let text = fs::read(&stats_file).expect("statistics");
    let statistics: Value = serde_json::from_slice(&text).expect("JSON");
    assert_eq!(statistics["total"]["messages"].as_u64(), Some(1));
    fs::remove_file(&stats_file).expect("a file");
}

#[test]
fn a_reader_of_its_errors_that_goes_away_is_no_reason_to_end() {
    let fifo = temporary_file("unread.fifo");
    let path = fifo.to_str().expect("a path in UTF-8");
    assert!(Command::new("mkfifo").arg(path).status().expect("mkfifo").success());
    for engine in ["uring", "epoll"] {
        let mut command = Command::new("sh");
        command.args(["-c", "ulimit -n 24 && exec \"$0\" \"$@\""]);
        command.arg(program()).args(["--engine", engine]);
        command.args(["--listen", "127.0.0.1:0", "--workers", "1", "--stats-file", path]);
        let mut child = spawn(&mut command);
        drop(child.stderr.take());
        let (output, mut client) = greeted(&mut child);
        // More than there are descriptors for, of which the worker warns.
        let address = client.stream().peer_addr().expect("a peer");
        let crowd: Vec<TcpStream> =
            (0..40).map(|_| TcpStream::connect(address).expect("a backlog")).collect();
        // Nobody reads the FIFO, of which the thread for signals complains.
        kill_process(rustix::process::Pid::from_child(&child), Signal::USR1).expect("a child");
        for _ in 0..100 {
            client.echo(TEXT, b"still there");
        }
        drop(crowd);
        client.close();
        kill_process(rustix::process::Pid::from_child(&child), Signal::TERM).expect("a child");
        let lines: Vec<String> = output.lines().map_while(Result::ok).collect();
        assert_eq!(names_in(&lines.join("\n")), COUNTERS, "{engine}");
        assert_eq!(end(child).status.code(), Some(1), "{engine}");
    }
    fs::remove_file(fifo).expect("a FIFO");
}

#[test]
fn a_statistics_file_that_can_no_longer_be_written_is_an_error_after_the_summary() {
    let directory = temporary_file("directory");
    fs::create_dir(&directory).expect("a directory");
    let stats_file = directory.join("stats.json");
    let path = stats_file.to_str().expect("a path in UTF-8");
    let (mut child, output, mut client) = start_by_hand(&["--workers", "1", "--stats-file", path]);
    fs::remove_dir(&directory).expect("nothing is in it");
    client.echo(TEXT, b"uncounted");
    client.close();
    kill_process(rustix::process::Pid::from_child(&child), Signal::TERM).expect("a child");
    let summary: Vec<String> = output.lines().map_while(Result::ok).collect();
    assert_eq!(names_in(&summary.join("\n")), COUNTERS);
    child.stdout = None;
    let line = refusal(end(child));
    assert!(line.contains("--stats-file") && line.contains(path), "{line}");
}

#[test]
fn statistics_go_through_links_and_fifos_and_to_standard_output() {
    let directory = temporary_file("places");
    fs::create_dir(&directory).expect("a directory");
    let place = |name: &str| directory.join(name).to_str().expect("a path in UTF-8").to_owned();
    // Runs a server with this statistics file, and returns what it printed after its first line.
    let run = |path: &str, status: i32| {
        let (child, output, client) = start_by_hand(&["--workers", "1", "--stats-file", path]);
        client.close();
        kill_process(rustix::process::Pid::from_child(&child), Signal::TERM).expect("a child");
        let lines: Vec<String> = output.lines().map_while(Result::ok).collect();
        assert_eq!(end(child).status.code(), Some(status), "{path}");
        lines.join("\n")
    };
    let parse = |text: &str| serde_json::from_str::<Value>(text).expect("JSON");

    fs::write(place("file"), "old").expect("a file");
    fs::set_permissions(place("file"), fs::Permissions::from_mode(0o604)).expect("a mode");
    std::os::unix::fs::symlink("file", place("link")).expect("a link");
    run(&place("link"), 0);
    assert!(fs::symlink_metadata(place("link")).expect("a link").is_symlink());
    assert_eq!(fs::metadata(place("file")).expect("a file").permissions().mode() & 0o777, 0o604);
    parse(&fs::read_to_string(place("file")).expect("a file"));

    let fifo = place("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().expect("mkfifo").success());
    // Without a reader, opening fails at once instead of waiting.
    run(&fifo, 1);
    // Opened for reading and writing, it has a reader at once (fifo(7)).
    let mut reader = File::options().read(true).write(true).open(&fifo).expect("a FIFO");
    run(&fifo, 0);
    let mut text = vec![0; 1 << 16];
    let length = reader.read(&mut text).expect("what the server wrote");
    parse(str::from_utf8(&text[..length]).expect("UTF-8"));
    assert!(fs::metadata(&fifo).expect("a FIFO").file_type().is_fifo());

    let printed = run("/dev/stdout", 0);
    let (summary, json) = printed.split_once('{').expect("JSON after the summary");
    assert_eq!(names_in(summary), COUNTERS);
    parse(&format!("{{{json}"));
    fs::remove_dir_all(&directory).expect("a directory");
}

#[test]
fn every_way_to_wait_echoes() {
    for wait in ["block", "spin", "adaptive", "sqpoll"] {
        let server = Server::start(&["--wait", wait, "--workers", "1"]);
        let mut client = Client::connect(server.address());
        converse(&mut client, 200);
        for length in [0, 125, 126, 65_535, 65_536, 300_000] {
            client.echo(BINARY, &pattern(length));
        }
        let mut other = Client::connect(server.address());
        other.echo(TEXT, &pattern(40_000));
        other.close();
        client.close();
        server.wait_for_count("connections_open", 0);
        let ended = server.terminate();
        assert_eq!(ended.status.code(), Some(0), "{wait} {ended:?}");
        assert_eq!(ended.count("messages"), 207, "{wait}");
        match wait {
            "block" => assert_eq!(ended.count("spins"), 0),
            "spin" => assert_ne!(ended.count("spins"), 0),
            _ => {}
        }
    }
}

/// The system calls for each message.
fn syscalls_per_message(ended: &Ended) -> f64 {
    ended.statistics["total"]["syscalls_per_message"].as_f64().expect("a ratio")
}

#[test]
fn a_message_costs_one_system_call() {
    let server = Server::start(&["--engine", "uring", "--workers", "1", "--wait", "block"]);
    let mut client = Client::connect(server.address());
    converse(&mut client, 10_000);
    client.close();
    let ended = server.terminate();
    assert_eq!(ended.count("messages"), 10_000);
    let ratio = syscalls_per_message(&ended);
    say(&format!("system calls per message, one connection: {ratio:.4}"));
    assert!(ratio <= 1.01, "{}", ended.statistics);
}

#[test]
fn messages_that_wait_together_share_their_system_calls() {
    let server = Server::start(&["--engine", "uring", "--workers", "1", "--wait", "block"]);
    let mut clients: Vec<Client> = (0..64).map(|_| Client::connect(server.address())).collect();
    let sent = frame(TEXT, b"0123456789abcdef");
    for _ in 0..300 {
        // The server is held while the messages are written, so that the count depends neither on
        // the client's speed nor on the CPUs.
        server.signal(Signal::STOP);
        let stopped = waitpid(Some(server.pid()), WaitOptions::UNTRACED).expect("a child");
        assert!(stopped.is_some_and(|(_, status)| status.stopped()));
        for client in &mut clients {
            client.write(&sent);
        }
        server.signal(Signal::CONT);
        for client in &mut clients {
            client.expect(TEXT, b"0123456789abcdef");
        }
    }
    for client in clients {
        client.close();
    }
    let ended = server.terminate();
    assert_eq!(ended.count("messages"), 64 * 300);
    let ratio = syscalls_per_message(&ended);
    say(&format!("system calls per message, 64 connections in lock step: {ratio:.4}"));
    assert!(ratio <= 0.1, "{}", ended.statistics);
}

#[test]
fn a_unix_socket_has_the_mode_asked_for_and_goes_with_the_server() {
    let path = temporary_file("mode.sock");
    let listen = format!("unix:{}", path.display());
    for (option, mode) in [("600", 0o600), ("666", 0o666)] {
        let arguments = ["--listen", "127.0.0.1:0", "--listen", &listen, "--unix-mode", option];
        let server = Server::start(&[&arguments[..], &["--workers", "2"]].concat());
        assert!(server.greeting().contains(&listen), "{}", server.greeting());
        let found = fs::metadata(&path).expect("the socket's file");
        assert_eq!(found.permissions().mode() & 0o777, mode);
        // As many as find each of the workers.
        let clients: Vec<UnixStream> =
            (0..20).map(|_| UnixStream::connect(&path).expect("a listener")).collect();
        for mut client in &clients {
            client.write_all(REQUEST.as_bytes()).expect("connected");
            let mut response = vec![0; RESPONSE.len()];
            client.read_exact(&mut response).expect("connected");
            assert_eq!(String::from_utf8_lossy(&response), RESPONSE);
        }
        drop(clients);
        assert_eq!(server.terminate().status.code(), Some(0));
        assert!(!path.exists());
    }
}

#[test]
fn a_stale_unix_socket_is_replaced_and_nothing_else_is() {
    let path = temporary_file("stale.sock");
    let listen = format!("unix:{}", path.display());
    let arguments = ["--listen", "127.0.0.1:0", "--listen", &listen];
    let server = Server::start(&arguments);
    let line = refusal(run(&["--listen", &listen]));
    assert!(line.contains(&listen) && line.contains("another path"), "{line}");
    // Killed by SIGKILL, it leaves its socket file behind.
    server.signal(Signal::KILL);
    server.wait();
    assert!(path.exists());
    let server = Server::start(&arguments);
    UnixStream::connect(&path).expect("a listener");
    // A file that another server has created since is not this server's to remove.
    fs::remove_file(&path).expect("a file");
    fs::write(&path, "another's").expect("a file");
    assert_eq!(server.terminate().status.code(), Some(0));
    let line = refusal(run(&["--listen", &listen]));
    assert!(line.contains("not a socket"), "{line}");
    assert_eq!(fs::read_to_string(&path).expect("it is left alone"), "another's");
    let line = refusal(run(&["--listen", "unix:/nowhere/at/all.sock"]));
    assert!(line.contains("directory"), "{line}");
}

#[test]
fn plain_bytes_come_back_and_are_counted() {
    let server = Server::start(&["--protocol", "tcp", "--workers", "1", "--connections-max", "1"]);
    assert!(server.greeting().contains(" tcp://127.0.0.1:"), "{}", server.greeting());
    let mut client = Client::open(server.address());
    for number in 0..100 {
        let bytes = pattern(1 + number * 3);
        client.write(&bytes);
        assert_eq!(client.read(bytes.len()), bytes);
    }
    // One too many is let go, when it says something.
    let mut other = Client::open(server.address());
    other.write(b"hello");
    other.expect_end();
    server.signal(Signal::TERM);
    client.expect_end();
    drop((client, other));
    let ended = server.wait();
    assert_eq!(ended.status.code(), Some(0));
    let bytes: u64 = (0..100).map(|number| 1 + number * 3).sum();
    assert_eq!((ended.count("messages"), ended.count("connections_rejected")), (100, 1));
    assert_eq!((ended.count("bytes_in"), ended.count("bytes_out")), (bytes + 5, bytes));
}

/// epoll alone takes a short receive for an empty socket.
#[test]
fn epoll_reads_what_follows_urgent_data() {
    let server = Server::start(&["--protocol", "tcp", "--engine", "epoll"]);
    let mut client = Client::open(server.address());
    for _ in 0..10 {
        server.signal(Signal::STOP);
        client.write(b"before");
        rustix::net::send(client.stream(), b"!", SendFlags::OOB).expect("connected");
        client.write(b"behind");
        server.signal(Signal::CONT);
        // The urgent byte is no part of the stream (tcp(7)).
        assert_eq!(client.read(12), b"beforebehind");
    }
}
