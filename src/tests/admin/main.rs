//! The admin listener: the real program, asked over HTTP.

mod connections;
mod ends;
mod logs;
mod metrics;
mod requests;
mod threads;
mod top;

use std::io::{Read, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use testkit::{Server, TIMEOUT, can_offload};

/// What a server answered.
#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    content: String,
}

impl Answer {
    /// The value of a header field.
    fn field(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.into_iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }
}

/// Where the admin listener of a server is, as its first line says.
fn admin_of(server: &Server) -> &str {
    let (_, rest) = server.greeting().split_once(", admin ").expect("an admin listener");
    rest.strip_suffix(')').expect("the end of the line")
}

fn connect(server: &Server) -> TcpStream {
    let address: SocketAddr = admin_of(server).parse().expect("an address");
    let stream = TcpStream::connect(address).expect("the admin listener");
    stream.set_read_timeout(Some(TIMEOUT)).expect("an option");
    stream
}

/// The answer to these bytes, to the end of the connection.
fn ask(server: &Server, request: &[u8]) -> Answer {
    let mut stream = connect(server);
    stream.write_all(request).expect("connected");
    answer(stream)
}

fn answer(mut stream: impl Read) -> Answer {
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("an answer, then the end");
    let (head, content) = text.split_once("\r\n\r\n").expect("a head");
    let status = head.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3));
    let status = status.and_then(|status| status.parse().ok()).expect("a status");
    Answer { status, head: head.to_owned(), content: content.to_owned() }
}

fn get(server: &Server, path: &str) -> Answer {
    ask(server, format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n").as_bytes())
}

/// The same over a Unix socket.
fn get_unix(path: &std::path::Path, target: &str) -> Answer {
    let mut stream = UnixStream::connect(path).expect("the admin listener");
    stream.set_read_timeout(Some(TIMEOUT)).expect("an option");
    let request = format!("GET {target} HTTP/1.1\r\nHost: test\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("connected");
    answer(stream)
}

/// The options of all engines. Where the kernel does not offload, that is left out, and said.
fn engines(test: &str) -> Vec<&'static [&'static str]> {
    let mut engines: Vec<&[&str]> = vec![&["--engine", "uring"], &["--engine", "epoll"]];
    if cfg!(feature = "tokio-uring") {
        engines.push(&["--engine", "tokio-uring"]);
    }
    if can_offload(test) {
        engines.push(&["--engine", "uring", "--offload", "on"]);
    }
    engines
}

/// Starts a server with an admin listener on a free port.
fn start(arguments: &[&str]) -> Server {
    Server::start(&[arguments, &["--admin", "127.0.0.1:0"]].concat())
}

/// Longer than anything that a test waits for on purpose.
const PATIENCE: Duration = TIMEOUT;
