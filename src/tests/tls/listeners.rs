//! Where TLS is spoken: on addresses, on sockets that were passed, and on those of an older server.

use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::process::Command;

use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
use rustls::version::TLS13;
use testkit::{Client, Server, TEXT, program, temporary_file};

use crate::{Place, end, on_every_engine};

#[test]
fn the_first_line_says_what_is_spoken_where() {
    let place = Place::new();
    let path = temporary_file("plain.sock");
    let unix = format!("unix:{}", path.display());
    let listen = ["--listen", "ws://127.0.0.1:0", "--listen", &unix, "--listen", "127.0.0.1:0"];
    let server = place.start(&listen);
    let [first, second, sealed] = server.addresses()[..] else { panic!("{server:?}") };
    let told = format!("listening on ws://{first} {unix} ws://{second} wss://{sealed} (");
    assert!(server.greeting().contains(&told), "{}", server.greeting());
    for address in [first, second] {
        let mut client = Client::connect(address);
        client.echo(TEXT, b"plain");
        client.close();
    }
    place.connect(sealed, &TLS13).close();
    server.wait_for_count("connections_open", 0);
    end(server);
}

#[test]
fn a_socket_that_was_passed_is_what_the_option_for_its_address_says() {
    let place = Place::new();
    let sockets = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").expect("a port"));
    let addresses = sockets.each_ref().map(|it| it.local_addr().expect("an address"));
    let copies = sockets.each_ref().map(|socket| {
        let copy = fcntl_dupfd_cloexec(socket, 100).expect("a descriptor");
        fcntl_setfd(&copy, FdFlags::empty()).expect("a flag");
        copy
    });
    let [first, second] = copies.each_ref().map(AsRawFd::as_raw_fd);
    let script = format!(
        "export LISTEN_PID=$$ LISTEN_FDS=2; exec \"$0\" \"$@\" 3<&{first} {first}<&- 4<&{second} \
         {second}<&-"
    );
    let mut command = Command::new("bash");
    command.args(["-c", &script]).arg(program()).args(&place.own);
    command.args(["--workers", "2", "--listen", &format!("wss://{}", addresses[1])]);
    let server = Server::start_by(command);
    drop(copies);
    // In the order of the options, then of the sockets.
    assert_eq!(server.addresses(), [addresses[1], addresses[0]], "{}", server.greeting());
    let mut client = place.connect(addresses[1], &TLS13);
    client.echo(TEXT, b"sealed");
    client.close();
    let mut client = Client::connect(addresses[0]);
    client.echo(TEXT, b"plain");
    client.close();
    server.wait_for_count("connections_open", 0);
    end(server);
}

#[test]
fn a_server_that_takes_over_speaks_what_its_own_options_say() {
    let place = Place::new();
    on_every_engine(|engine| {
        let door = format!("unix:{}", temporary_file("door").display());
        let takeover = [engine, &["--takeover", &door]].concat();
        let older = place.start(&takeover);
        let address = older.address();
        let listen = format!("wss://{address}");
        let own: Vec<&str> = place.own.iter().map(String::as_str).collect();
        let newer = |listen: &str, own: &[&str]| {
            let arguments = ["--listen", listen, "--workers", "2"];
            Server::start(&[&takeover[..], &arguments, own].concat())
        };
        let second = newer(&listen, &own);
        assert_eq!(older.wait().status.code(), Some(0));
        let mut client = place.connect(address, &TLS13);
        client.echo(TEXT, b"sealed");
        client.close();
        let third = newer(&format!("ws://{address}"), &[]);
        assert_eq!(second.wait().status.code(), Some(0));
        let mut client = Client::connect(address);
        client.echo(TEXT, b"plain");
        client.close();
        third.wait_for_count("connections_open", 0);
        end(third);
    });
}
