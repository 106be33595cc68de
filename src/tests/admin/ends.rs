//! Stops, takeovers, sockets that are passed, and addresses that cannot be had.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;

use rustix::process::Signal;
use testkit::{CLOSE, Client, Server, TEXT, run, temporary_file, wait_until};

use crate::{admin_of, engines, get, get_unix, start};

#[test]
fn a_server_that_drains_is_healthy_and_not_ready() {
    for engine in engines("a_server_that_drains_is_healthy_and_not_ready") {
        let server = start(&[engine, &["--workers", "1", "--drain-timeout", "0"]].concat());
        let mut client = Client::connect(server.address());
        client.echo(TEXT, b"here");
        assert_eq!(get(&server, "/readyz").status, 200);
        server.signal(Signal::TERM);
        client.expect(CLOSE, &1001_u16.to_be_bytes());
        wait_until("it is not ready", || get(&server, "/readyz").status == 503);
        let answer = get(&server, "/readyz");
        assert_eq!((answer.status, answer.content.as_str()), (503, "draining\n"));
        assert_eq!(get(&server, "/healthz").status, 200);
        let metrics = get(&server, "/metrics").content;
        assert!(metrics.contains("ringecho_connections_open{worker=\"0\"} 1\n"), "{metrics}");
        client.send_frame(CLOSE, &1001_u16.to_be_bytes());
        client.expect_end();
        assert_eq!(server.wait().status.code(), Some(0), "{engine:?}");
    }
}

#[test]
fn a_unix_socket_has_its_mode_and_goes_with_the_server() {
    let path = temporary_file("admin.sock");
    let address = format!("unix:{}", path.display());
    drop(UnixListener::bind(&path).expect("a stale file"));
    let server = Server::start(&["--workers", "1", "--admin", &address, "--unix-mode", "620"]);
    assert_eq!(admin_of(&server), address);
    let mode = fs::metadata(&path).expect("a file").permissions().mode() & 0o777;
    assert_eq!(mode, 0o620);
    assert_eq!(get_unix(&path, "/healthz").content, "ok\n");
    assert_eq!(server.terminate().status.code(), Some(0));
    assert!(!path.exists());
}

#[test]
fn an_address_that_cannot_be_had_is_an_error_before_the_start() {
    let held = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = held.local_addr().expect("an address").to_string();
    let ended = run(&["--listen", "127.0.0.1:0", "--admin", &address]);
    assert_eq!((ended.status.code(), ended.stdout.as_str()), (Some(1), ""));
    let told = format!("ringecho: --admin: cannot listen on {address}: it is in use by process ");
    assert!(ended.stderr.starts_with(&told), "{ended:?}");
    let ended = run(&["--listen", "127.0.0.1:0", "--admin", "unix:/nowhere/at/all"]);
    assert_eq!(ended.status.code(), Some(1));
    assert!(ended.stderr.contains("create the directory first"), "{ended:?}");
}

/// The older server leaves the address when the newer one is ready, and goes on draining without it.
#[test]
fn the_server_that_takes_over_answers_at_the_same_address() {
    let (door, path) = (temporary_file("door.sock"), temporary_file("admin.sock"));
    let door = format!("unix:{}", door.display());
    let unix = format!("unix:{}", path.display());
    let port = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    for admin in [port.to_string(), unix] {
        let options = ["--workers", "1", "--takeover", &door, "--admin", &admin];
        let older = Server::start(&[&options[..], &["--drain-timeout", "0"]].concat());
        let mut client = Client::connect(older.address());
        client.echo(TEXT, b"here");
        let listen = older.address().to_string();
        let newer = Server::start(&[&options[..], &["--listen", &listen]].concat());
        assert_eq!(admin_of(&newer), admin);
        client.expect(CLOSE, &1001_u16.to_be_bytes());
        for _ in 0..3 {
            let answer = match path.exists() {
                true => get_unix(&path, "/readyz"),
                false => get(&newer, "/readyz"),
            };
            assert_eq!((answer.status, answer.content.as_str()), (200, "ready\n"));
        }
        client.send_frame(CLOSE, &1001_u16.to_be_bytes());
        client.expect_end();
        assert_eq!(older.wait().status.code(), Some(0));
        // The file that is there now is the newer one's.
        assert_eq!(admin.starts_with("unix:"), path.exists());
        assert_eq!(newer.terminate().status.code(), Some(0));
        assert!(!path.exists());
    }
}

/// A server that has taken over cannot go back, so it serves without.
#[test]
fn a_server_that_takes_over_and_cannot_have_the_address_serves_and_says_so() {
    let held = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = held.local_addr().expect("an address").to_string();
    let door = temporary_file("door.sock");
    let door = format!("unix:{}", door.display());
    let server = Server::start(&["--workers", "1", "--takeover", &door, "--admin", &address]);
    assert!(!server.greeting().contains("admin"), "{}", server.greeting());
    let mut client = Client::connect(server.address());
    client.echo(TEXT, b"here");
    client.close();
    let ended = server.terminate();
    assert!(ended.stderr.contains("--admin: cannot listen on"), "{ended:?}");
    assert_eq!(ended.status.code(), Some(0));
}

/// Sockets that a service manager passes are for WebSocket; the admin listener opens its own.
#[test]
fn it_works_beside_sockets_that_are_passed() {
    use std::os::fd::AsRawFd as _;
    use std::process::Command;

    use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};

    let passed = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = passed.local_addr().expect("an address");
    let copy = fcntl_dupfd_cloexec(&passed, 100).expect("a descriptor");
    fcntl_setfd(&copy, FdFlags::empty()).expect("a flag");
    // Only a shell knows the id of the process that it becomes; descriptor 3 is the first that is passed.
    let number = copy.as_raw_fd();
    let script =
        format!("export LISTEN_PID=$$ LISTEN_FDS=1; exec \"$0\" \"$@\" 3<&{number} {number}<&-");
    let mut command = Command::new("bash");
    command.args(["-c", &script]).arg(testkit::program());
    command.args(["--workers", "1", "--admin", "127.0.0.1:0"]);
    let server = Server::start_by(command);
    assert_eq!(server.address(), address);
    assert_eq!(get(&server, "/readyz").status, 200);
    drop(TcpStream::connect(address).expect("a listener"));
    assert_eq!(server.terminate().status.code(), Some(0));
}
