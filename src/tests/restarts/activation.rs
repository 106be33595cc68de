//! Sockets that come from a service manager. The tests play systemd: they hold the sockets, and start and stop
//! the servers.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;

use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
use rustix::process::Signal;
use testkit::{Client, Ended, REQUEST, RESPONSE, Server, TEXT, program, run_by, temporary_file};

use crate::crowd::restart_in_full_traffic;
use crate::{engines, refusal};

/// A command that starts the server with these sockets as its descriptors from 3 on, and with these variables.
/// The copies of the sockets are to be dropped when it has started.
fn command(sockets: &[&dyn AsFd], variables: &str, arguments: &[&str]) -> (Command, Vec<OwnedFd>) {
    let mut script = format!("export {variables}; exec \"$0\" \"$@\"");
    let mut copies = Vec::new();
    for (socket, number) in sockets.iter().zip(3..) {
        // Beyond those that the shell uses for itself and those that it makes.
        let copy = fcntl_dupfd_cloexec(socket.as_fd(), 100).expect("a descriptor");
        fcntl_setfd(&copy, FdFlags::empty()).expect("a flag");
        let inherited = copy.as_raw_fd();
        script += &format!(" {number}<&{inherited} {inherited}<&-");
        copies.push(copy);
    }
    let mut command = Command::new("bash");
    command.args(["-c", &script]).arg(program()).args(arguments);
    (command, copies)
}

/// The variables that announce so many sockets.
fn announced(count: usize) -> String {
    format!("LISTEN_PID=$$ LISTEN_FDS={count}")
}

fn start(sockets: &[&dyn AsFd], arguments: &[&str]) -> Server {
    let (command, copies) = command(sockets, &announced(sockets.len()), arguments);
    let server = Server::start_by(command);
    drop(copies);
    server
}

/// Runs the server to its end, which comes soon.
fn run(sockets: &[&dyn AsFd], variables: &str, arguments: &[&str]) -> Ended {
    let (mut command, copies) = command(sockets, variables, arguments);
    let ended = run_by(&mut command);
    drop(copies);
    ended
}

fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    (listener, address)
}

fn echoes(address: SocketAddr) {
    let mut client = Client::connect(address);
    client.echo(TEXT, b"here");
    client.close();
}

#[test]
fn a_restart_by_the_service_manager_fails_no_connection() {
    for engine in engines("a_restart_by_the_service_manager_fails_no_connection") {
        let (socket, address) = listener();
        let workers = |number: usize| ["1", "2", "3"][number % 3];
        restart_in_full_traffic(
            &format!("{engine:?} by socket activation"),
            1_000,
            |number, _| {
                let arguments = [engine, &["--workers", workers(number)]].concat();
                let server = start(&[&socket], &arguments);
                assert_eq!(server.addresses(), [address]);
                server
            },
            |older| older.signal(Signal::TERM),
        );
    }
}

#[test]
fn connections_wait_for_a_server_that_is_not_there_yet() {
    let (socket, address) = listener();
    let mut early = Client::open(address);
    early.write(REQUEST.as_bytes());
    let server = start(&[&socket], &["--workers", "2"]);
    assert_eq!(String::from_utf8_lossy(&early.read(RESPONSE.len())), RESPONSE);
    early.echo(TEXT, b"patience");
    early.close();
    assert_eq!(server.terminate().status.code(), Some(0));
    // The manager still has the socket.
    TcpStream::connect(address).expect("a queue");
}

#[test]
fn several_sockets_are_listened_on_and_their_files_stay() {
    let path = temporary_file("activated.sock");
    let unix = UnixListener::bind(&path).expect("a socket");
    let ((first, first_address), (second, second_address)) = (listener(), listener());
    for engine in engines("several_sockets_are_listened_on_and_their_files_stay") {
        // By default the server would listen on port 9001.
        let arguments = [engine, &["--workers", "2"]].concat();
        let server = start(&[&first, &unix, &second], &arguments);
        assert_eq!(server.addresses(), [first_address, second_address], "{}", server.greeting());
        assert!(server.greeting().contains(&format!("unix:{}", path.display())));
        server.addresses().into_iter().for_each(echoes);
        let mut client = UnixStream::connect(&path).expect("a listener");
        client.write_all(REQUEST.as_bytes()).expect("connected");
        let mut response = vec![0; RESPONSE.len()];
        client.read_exact(&mut response).expect("connected");
        drop(client);
        assert_eq!(server.terminate().status.code(), Some(0));
        assert!(path.exists());
    }
    fs::remove_file(&path).expect("a file");
}

#[test]
fn addresses_that_are_given_are_listened_on_as_well_and_none_twice() {
    let (socket, address) = listener();
    let listen = address.to_string();
    let server =
        start(&[&socket], &["--listen", "127.0.0.1:0", "--listen", &listen, "--workers", "2"]);
    let addresses = server.addresses();
    assert_eq!((addresses.len(), addresses[1]), (2, address), "{}", server.greeting());
    addresses.into_iter().for_each(echoes);
}

#[test]
fn sockets_for_another_process_are_left_alone() {
    let (socket, address) = listener();
    for variables in ["LISTEN_PID=1 LISTEN_FDS=1", "LISTEN_FDS=1", "LISTEN_PID=$$ LISTEN_FDS=0"] {
        let (command, copies) = command(&[&socket], variables, &["--listen", "127.0.0.1:0"]);
        let server = Server::start_by(command);
        drop(copies);
        assert_ne!(server.address(), address, "{variables}");
        echoes(server.address());
    }
}

#[test]
fn what_cannot_be_listened_on_is_named() {
    let (socket, address) = listener();
    let datagrams = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let connected = TcpStream::connect(address).expect("a queue");
    let file = fs::File::open("/dev/null").expect("a device");
    let wrong: [(&dyn AsFd, &str); 3] = [
        (&datagrams, "descriptor 4 (second) is not a stream socket of TCP or Unix"),
        (&connected, "descriptor 4 (second) does not listen"),
        (&file, "descriptor 4 (second) is not a stream socket of TCP or Unix"),
    ];
    for (wrong, told) in wrong {
        let variables = announced(2) + " LISTEN_FDNAMES=first:second";
        let line = refusal(run(&[&socket, wrong], &variables, &[]));
        assert!(line.contains(told), "{line}");
    }
    for (variables, told) in [
        ("LISTEN_PID=$$ LISTEN_FDS=2", "descriptor 4 is not a stream socket"),
        ("LISTEN_PID=$$ LISTEN_FDS=many", "LISTEN_FDS is \"many\", not a whole number from 0"),
        ("LISTEN_PID=me LISTEN_FDS=1", "LISTEN_PID is \"me\", not a whole number from 0"),
        (
            "LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=one:two",
            "LISTEN_FDNAMES should have 1 names, separated by colons",
        ),
    ] {
        let line = refusal(run(&[&socket], variables, &[]));
        assert!(line.contains(told), "{line}");
    }
}
