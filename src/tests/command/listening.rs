//! Where the server listens, and on which CPUs its workers run.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::{fs, thread};

use core_affinity::CoreId;
use rustix::process::Signal;
use testkit::{Client, REQUEST, RESPONSE, Server, TEXT, run, say, temporary_file};

use crate::{cpus, refusal};

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
