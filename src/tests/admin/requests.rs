//! Requests, well-formed and not, and peers that take their time.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};

use testkit::Server;

use crate::{PATIENCE, answer, ask, connect, get, start};

#[test]
fn each_path_has_its_answer() {
    let server = start(&["--workers", "1"]);
    for (path, status, content) in [
        ("/healthz", 200, "ok\n"),
        ("/readyz", 200, "ready\n"),
        ("/readyz?verbose", 200, "ready\n"),
        ("http://localhost/healthz", 200, "ok\n"),
    ] {
        let answer = get(&server, path);
        assert_eq!((answer.status, answer.content.as_str()), (status, content), "{path}");
        assert_eq!(answer.field("Content-Type"), Some("text/plain; charset=utf-8"));
        assert_eq!(answer.field("Content-Length"), Some(content.len().to_string().as_str()));
        assert_eq!(answer.field("Connection"), Some("close"));
    }
    // The page for people names what there is.
    let index = get(&server, "/");
    assert_eq!(index.status, 200);
    for line in index.content.lines() {
        let path = line.split(' ').next().expect("a path");
        assert_eq!(get(&server, path).status, 200, "{path}");
    }
    for path in ["/metrics/", "/healthz/..", "/favicon.ico", "//metrics"] {
        assert_eq!(get(&server, path).status, 404, "{path}");
    }
    assert_eq!(server.terminate().status.code(), Some(0));
}

#[test]
fn what_is_no_such_request_is_refused() {
    let server = start(&["--workers", "1"]);
    let head = ask(&server, b"HEAD /metrics HTTP/1.1\r\nHost: test\r\n\r\n");
    assert_eq!((head.status, head.content.as_str()), (200, ""));
    assert!(head.field("Content-Length").is_some_and(|length| length.len() > 3), "{head:?}");
    let post = ask(&server, b"POST /metrics HTTP/1.1\r\nHost: test\r\nContent-Length: 2\r\n\r\nhi");
    assert_eq!((post.status, post.field("Allow")), (405, Some("GET, HEAD")));
    let long = format!("GET / HTTP/1.1\r\nHost: test\r\nLong: {}\r\n\r\n", "a".repeat(100_000));
    for (request, status) in [
        (&b"GET / HTTP/1.1\r\n\r\n"[..], 400),
        (b"hello\r\n\r\n", 400),
        (b"\x16\x03\x01\x00\x05hello", 400),
        (b"GET / HTTP/1.1\r\nHost: test\r\nContent-Length: 9\r\n\r\n", 400),
        // All of it is read, or else the answer would be lost in a reset.
        (long.as_bytes(), 431),
    ] {
        let answer = ask(&server, request);
        assert_eq!(answer.status, status, "{answer:?}");
        assert!(answer.content.ends_with(".\n"), "{answer:?}");
    }
    assert_eq!(server.terminate().status.code(), Some(0));
}

#[test]
fn a_request_in_pieces_is_answered() {
    let server = start(&["--workers", "1"]);
    let mut stream = connect(&server);
    stream.set_nodelay(true).expect("an option");
    for byte in b"GET /healthz HTTP/1.1\r\nHost: test\r\n\r\n" {
        stream.write_all(&[*byte]).expect("connected");
    }
    assert_eq!(answer(stream).content, "ok\n");
}

/// More peers than there are places, none of which says anything; one that begins a request, one that reads no answer,
/// and one that is gone. Whoever comes next is answered, once their time is up.
#[test]
fn peers_that_do_nothing_lose_their_places() {
    let server = start(&["--workers", "1"]);
    let silent: Vec<TcpStream> = (0..40).map(|_| connect(&server)).collect();
    let mut slow = connect(&server);
    slow.write_all(b"GET /hea").expect("connected");
    let mut deaf = connect(&server);
    deaf.write_all(b"GET /metrics HTTP/1.1\r\nHost: test\r\n\r\n").expect("connected");
    drop(connect(&server));
    let mut ended = connect(&server);
    ended.shutdown(Shutdown::Write).expect("connected");
    assert_eq!(get(&server, "/healthz").content, "ok\n");
    assert_eq!(answer(slow).status, 408);
    for mut stream in silent {
        assert_eq!(stream.read(&mut [0]).expect("the end"), 0);
    }
    assert_eq!(ended.read(&mut [0]).expect("the end"), 0);
    ends_in_time(server);
}

/// An answer that is under way, and a peer that waits, do not hold the server up.
fn ends_in_time(server: Server) {
    let begin = std::time::Instant::now();
    assert_eq!(server.terminate().status.code(), Some(0));
    assert!(begin.elapsed() < PATIENCE);
}
