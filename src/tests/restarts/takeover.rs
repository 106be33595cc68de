//! `--takeover`: a server takes the listening sockets from an older one, which serves on until that has worked.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use rustix::net::{
    self, AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use rustix::process::Signal;
use testkit::{
    CLOSE, Client, REQUEST, RESPONSE, Server, TEXT, program, run, run_by, say, temporary_file,
    wait_until,
};

use crate::crowd::restart_in_full_traffic;
use crate::{Engine, engines, refusal};

/// What a newer server says first.
const TAKE: &[u8] = br#"{"Take":{"version":1}}"#;
/// A user without rights.
const NOBODY: u32 = 65534;

/// The door of the servers of one test: its path, and the option's value.
fn door() -> (PathBuf, String) {
    let path = temporary_file("takeover.sock");
    let option = format!("unix:{}", path.display());
    (path, option)
}

/// Starts a server that takes over from the one at the door, if there is one.
fn start(door: &str, arguments: &[&str]) -> Server {
    Server::start(&[arguments, &["--takeover", door]].concat())
}

fn echoes(address: SocketAddr) {
    let mut client = Client::connect(address);
    client.echo(TEXT, b"here");
    client.close();
}

/// The opening handshake on a Unix socket.
fn answers(path: &Path) {
    let mut client = UnixStream::connect(path).expect("a listener");
    client.write_all(REQUEST.as_bytes()).expect("connected");
    let mut response = vec![0; RESPONSE.len()];
    client.read_exact(&mut response).expect("connected");
    assert_eq!(String::from_utf8_lossy(&response), RESPONSE);
}

fn seqpacket() -> OwnedFd {
    let flags = SocketFlags::CLOEXEC;
    net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).expect("a socket")
}

fn receive(connection: &OwnedFd) -> Vec<u8> {
    let mut message = vec![0; 1 << 16];
    let (_, bytes) = net::recv(connection, &mut message[..], RecvFlags::empty()).expect("a peer");
    message.truncate(bytes);
    message
}

fn restart(what: &str, connections: usize, engine: impl Fn(usize) -> Engine) {
    let (path, door) = door();
    // The kernel would distribute connections over the sockets of both, were they not handed over.
    let workers = |number: usize| ["2", "1", "3", "2"][number % 4];
    restart_in_full_traffic(
        &format!("{what} by takeover"),
        connections,
        |number, older| {
            let listen = older.map_or("127.0.0.1:0".into(), |older| older.address().to_string());
            let own = ["--listen", &listen, "--workers", workers(number)];
            start(&door, &[engine(number), &own].concat())
        },
        |_| {},
    );
    assert!(!path.exists());
}

#[test]
fn a_takeover_in_full_traffic_fails_no_connection() {
    for engine in engines("a_takeover_in_full_traffic_fails_no_connection") {
        restart(&format!("{engine:?}"), 1_000, |_| engine);
    }
}

#[test]
fn among_10_000_connections_servers_with_other_engines_take_over_and_none_fails() {
    let engines =
        engines("among_10_000_connections_servers_with_other_engines_take_over_and_none_fails");
    restart("all engines in turn", 10_000, |number| engines[number % engines.len()]);
}

#[test]
fn where_no_server_is_there_it_starts_as_usual_and_only_its_user_may_take_over() {
    let (path, door) = door();
    let server = start(&door, &["--workers", "1"]);
    let mode = fs::metadata(&path).expect("a file").permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    echoes(server.address());
    // Killed, it leaves the file behind, which the next one replaces.
    server.signal(Signal::KILL);
    server.wait();
    assert!(path.exists());
    let server = start(&door, &["--workers", "1"]);
    echoes(server.address());
    assert_eq!(server.terminate().status.code(), Some(0));
    assert!(!path.exists());
    // What is no socket is left alone.
    fs::write(&path, "another's").expect("a file");
    let line = refusal(run(&["--listen", "127.0.0.1:0", "--takeover", &door]));
    assert!(line.contains(&door) && line.contains("not a socket"), "{line}");
    assert_eq!(fs::read_to_string(&path).expect("it is left alone"), "another's");
    fs::remove_file(&path).expect("a file");
}

#[test]
fn a_newer_server_that_fails_changes_nothing() {
    let (path, door) = door();
    let older = start(&door, &["--workers", "2"]);
    let address = older.address();
    let mut client = Client::connect(address);
    client.echo(TEXT, b"before");
    // One that ends with all sockets in its hands.
    let connection = seqpacket();
    net::connect(&connection, &SocketAddrUnix::new(&path).expect("a path")).expect("a server");
    net::send(&connection, TAKE, SendFlags::empty()).expect("a server");
    let mut messages = String::new();
    while !messages.ends_with("\"Door\"") {
        messages += str::from_utf8(&receive(&connection)).expect("text");
    }
    assert!(messages.contains(&format!("\"address\":\"{address}\"")), "{messages}");
    drop(connection);
    client.echo(TEXT, b"still here");
    // One that says what nobody understands.
    let connection = seqpacket();
    net::connect(&connection, &SocketAddrUnix::new(&path).expect("a path")).expect("a server");
    net::send(&connection, b"hello", SendFlags::empty()).expect("a server");
    assert_eq!(receive(&connection), b"");
    client.echo(TEXT, b"still here");
    // A real one, which cannot have one of its addresses.
    let other = TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = other.local_addr().expect("an address").to_string();
    let listen = address.to_string();
    let listen = ["--listen", &listen, "--listen", &taken, "--takeover", &door];
    let line = refusal(run(&listen));
    assert!(line.contains(&taken) && line.contains("in use"), "{line}");
    client.echo(TEXT, b"still here");
    echoes(address);
    client.close();
    // And it can be taken over from as before.
    drop(other);
    let newer = start(&door, &listen[..4]);
    let ended = older.wait();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert!(ended.stderr.contains("no other server has taken over"), "{ended:?}");
    assert!(ended.stderr.contains("another server has taken over"), "{ended:?}");
    newer.addresses().into_iter().for_each(echoes);
}

#[test]
fn where_the_older_server_ends_in_the_middle_the_newer_one_starts_as_usual() {
    let (path, door) = door();
    let listening = seqpacket();
    net::bind(&listening, &SocketAddrUnix::new(&path).expect("a path")).expect("a path");
    net::listen(&listening, 1).expect("a socket");
    let older = thread::spawn(move || {
        let connection = net::accept(&listening).expect("a newer server");
        assert_eq!(receive(&connection), TAKE);
        let offer = br#"{"Sockets":{"address":"127.0.0.1:1","has_file":false}}"#;
        net::send(&connection, offer, SendFlags::empty()).expect("a newer server");
        // The kernel closes both at once.
        drop((connection, listening));
    });
    let server = Server::try_start_by({
        let mut command = Command::new(program());
        command.args(["--listen", "127.0.0.1:0", "--workers", "1", "--takeover", &door]);
        command
    });
    older.join().expect("a thread");
    let server = server.expect("it opens its own sockets");
    echoes(server.address());
    // It waits at the door itself.
    let newer = start(&door, &["--listen", &server.address().to_string(), "--workers", "1"]);
    assert_eq!(server.wait().status.code(), Some(0));
    echoes(newer.address());
}

#[test]
fn of_other_addresses_only_the_wanted_ones_are_taken() {
    let (_, door) = door();
    let (kept, left) = (temporary_file("kept.sock"), temporary_file("left.sock"));
    let unix = |path: &Path| format!("unix:{}", path.display());
    let (kept_option, left_option) = (unix(&kept), unix(&left));
    let any = "127.0.0.1:0";
    let older = start(
        &door,
        &[
            "--listen",
            any,
            "--listen",
            any,
            "--listen",
            &kept_option,
            "--listen",
            &left_option,
            "--workers",
            "2",
        ],
    );
    let [wanted, unwanted] = older.addresses()[..] else { panic!("{}", older.greeting()) };
    let listen = wanted.to_string();
    let arguments = ["--listen", any, "--listen", &kept_option, "--listen", &listen];
    let newer = start(&door, &[&arguments[..], &["--workers", "3"]].concat());
    assert_eq!(older.wait().status.code(), Some(0));
    let addresses = newer.addresses();
    assert_eq!((addresses.len(), addresses[1]), (2, wanted), "{}", newer.greeting());
    addresses.into_iter().for_each(echoes);
    answers(&kept);
    // The others have gone with the older server.
    assert!(TcpStream::connect(unwanted).is_err());
    assert!(!left.exists());
    // The file goes with whoever has it last.
    let newest = start(&door, &["--listen", &kept_option, "--listen", &listen]);
    assert_eq!(newer.wait().status.code(), Some(0));
    answers(&kept);
    echoes(newest.address());
    assert_eq!(newest.terminate().status.code(), Some(0));
    assert!(!kept.exists());
}

/// Its copies of the listening sockets would keep clients waiting whom nobody serves.
#[test]
fn a_server_that_stops_takes_no_connection_although_another_could_take_over() {
    let (path, door) = door();
    for engine in
        engines("a_server_that_stops_takes_no_connection_although_another_could_take_over")
    {
        let own = ["--workers", "2", "--drain-timeout", "0"];
        let server = start(&door, &[engine, &own].concat());
        let mut slow = Client::connect(server.address());
        server.signal(Signal::TERM);
        slow.expect(CLOSE, &1001u16.to_be_bytes());
        wait_until("connections are refused", || TcpStream::connect(server.address()).is_err());
        slow.send_frame(CLOSE, &1001u16.to_be_bytes());
        slow.expect_end();
        drop(slow);
        assert_eq!(server.wait().status.code(), Some(0));
        assert!(!path.exists());
    }
}

#[test]
fn another_user_can_neither_take_over_nor_be_taken_over_from() {
    if !rustix::process::geteuid().is_root() {
        return say(
            "SKIPPED: another_user_can_neither: only root can start a server as another user",
        );
    }
    let (path, door) = door();
    let older = start(&door, &["--workers", "1"]);
    let listen = older.address().to_string();
    let as_nobody = || {
        let mut command = Command::new(program());
        command.args(["--listen", &listen, "--workers", "1", "--takeover", &door]);
        command.uid(NOBODY).gid(NOBODY);
        run_by(&mut command)
    };
    let line = refusal(as_nobody());
    assert!(line.contains("Permission denied") && line.contains("run as the same user"), "{line}");
    // Whatever the mode of the file.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).expect("a file");
    let ended = as_nobody();
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    echoes(older.address());
    assert!(older.terminate().stderr.contains("user 65534 is on the other side"));

    // A socket of another user is not trusted either, not even by root.
    let mut foreign = Command::new(program());
    let directory = temporary_file("foreign");
    fs::create_dir(&directory).expect("a directory");
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o777)).expect("a directory");
    let door = format!("unix:{}", directory.join("door").display());
    foreign.args(["--listen", "127.0.0.1:0", "--workers", "1", "--takeover", &door]);
    let foreign = Server::start_by({
        foreign.uid(NOBODY).gid(NOBODY).current_dir(&directory);
        foreign
    });
    let line = refusal(run(&["--listen", "127.0.0.1:0", "--takeover", &door]));
    assert!(line.contains("user 65534 is on the other side"), "{line}");
    echoes(foreign.address());
    foreign.terminate();
    fs::remove_dir_all(&directory).expect("a directory");
}
