//! The opening handshake over a socket: what opens a WebSocket, and what is refused how (RFC 6455 section
//! 4.2, RFC 9112 sections 2 to 5, RFC 9110 sections 7.8 and 15). `docs/conformance.md` lists the rules.

use testkit::{Client, REQUEST, RESPONSE, Server, TEXT, server};

/// [`REQUEST`] with `from` replaced once.
fn changed(from: &str, to: &str) -> String {
    assert!(REQUEST.contains(from), "{from:?}");
    REQUEST.replacen(from, to, 1)
}

/// Sends `request`, and returns the response to it, after which the server must close.
fn refused(server: &Server, request: &str) -> String {
    let mut client = Client::open(server.address());
    client.write(request.as_bytes());
    let response = client.read_to_end().expect("a response, and the end");
    String::from_utf8(response).expect("ASCII")
}

#[test]
fn what_opens_a_websocket() {
    let server = Server::start(&[]);
    for (from, to) in [
        // RFC 9112 section 2.2: an empty line before the request.
        ("GET /", "\r\nGET /"),
        // RFC 9112 section 3.2: origin form and absolute form, of whatever authority.
        ("GET /", "GET //a/%20?b=/?c"),
        ("GET /", "GET http://localhost/"),
        ("GET /", "GET https://other.example:8443"),
        ("GET /", "GET ws://[::1]?a"),
        // RFC 9110 section 2.5: a higher minor version is processed as the highest that is known.
        ("HTTP/1.1", "HTTP/1.2"),
        // RFC 9110 sections 5.1, 5.6.1, 7.6.1 and 7.8: names, options and protocols ignore case, lists
        // may be split and have empty elements.
        ("Upgrade: websocket", "upgrade: h2c,, WebSocket"),
        ("Upgrade: websocket", "Upgrade: h2c\r\nUPGRADE:WEBSOCKET"),
        ("Connection: Upgrade", "Connection: keep-alive,\tupgrade"),
        ("Host: localhost", "Host:\t[::1]:9001 "),
        ("Host: localhost", "Host: elsewhere.example"),
        // No content follows: there is nothing to expect (RFC 9110 section 10.1.1).
        ("Host", "Content-Length: 0\r\nExpect: 100-continue\r\nHost"),
        ("Host", "Origin: http://a\r\nCookie: b=c\r\nAuthorization: Basic x\r\nHost"),
    ] {
        let mut client = Client::open(server.address());
        assert_eq!(client.handshake_by(&changed(from, to)), RESPONSE, "{to:?}");
        client.echo(TEXT, b"open");
        client.close();
    }
}

#[test]
fn what_is_refused_and_how() {
    let server = Server::start(&[]);
    let upgrade =
        "Connection: close, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n";
    for (from, to, status, demanded) in [
        // RFC 9112 section 3: the request line.
        ("GET /", "POST /", 405, "Allow: GET\r\n"),
        ("GET /", "get /", 405, "Allow: GET\r\n"),
        ("GET /", "OPTIONS *", 405, "Allow: GET\r\n"),
        ("GET /", "CONNECT a:80", 405, "Allow: GET\r\n"),
        ("GET /", "GET\t/", 400, ""),
        ("GET /", "GET  /", 400, ""),
        ("HTTP/1.1", "HTTP/1.0", 505, "HTTP/1.1"),
        ("HTTP/1.1", "HTTP/2.0", 505, "HTTP/1.1"),
        ("HTTP/1.1", "http/1.1", 400, ""),
        // RFC 9112 section 3.2 and RFC 3986: the request target.
        ("GET /", "GET *", 400, "/echo"),
        ("GET /", "GET localhost:9001", 400, "/echo"),
        ("GET /", "GET http:///", 400, "/echo"),
        ("GET /", "GET http://user@localhost/", 400, "/echo"),
        ("GET /", "GET ftp://localhost/", 400, "/echo"),
        ("GET /", "GET /#fragment", 400, "percent-encoded"),
        ("GET /", "GET /%zz", 400, "percent-encoded"),
        ("GET /", "GET /\u{e9}", 400, "percent-encoded"),
        ("GET /", "GET /\u{7f}", 400, "percent-encoded"),
        // RFC 9112 sections 2.2 and 5: fields.
        ("Host: localhost", " Host: localhost", 400, ""),
        ("Host: localhost", "Host : localhost", 400, ""),
        ("Host: localhost", "Host: localhost\r\n folded", 400, ""),
        ("Host: localhost", "Host: localhost\0", 400, ""),
        ("Host: localhost", "Host: localhost\rX: y", 400, ""),
        ("Host: localhost\r\n", "Host: localhost\n", 400, ""),
        // RFC 9112 section 3.2: Host.
        ("Host: localhost\r\n", "", 400, "Host"),
        ("Host: localhost", "Host: localhost\r\nHost: localhost", 400, "once"),
        ("Host: localhost", "Host:", 400, "Host"),
        ("Host: localhost", "Host: a b", 400, "Host"),
        ("Host: localhost", "Host: a:65536", 400, "Host"),
        // RFC 9112 section 6.3: content.
        ("Host", "Content-Length: 5\r\nHost", 400, "content"),
        ("Host", "Transfer-Encoding: chunked\r\nHost", 400, "content"),
        // RFC 6455 section 4.2.1.
        ("Upgrade: websocket\r\n", "", 426, upgrade),
        ("Upgrade: websocket", "Upgrade: websocket/13", 426, upgrade),
        ("Connection: Upgrade\r\n", "", 400, "Connection: Upgrade"),
        ("Sec-WebSocket-Version: 13\r\n", "", 426, upgrade),
        ("Version: 13", "Version: 8", 426, upgrade),
        ("Version: 13", "Version: 13, 8", 426, upgrade),
        ("Version: 13", "Version: 13\r\nSec-WebSocket-Version: 13", 426, upgrade),
        ("Sec-WebSocket-Key", "X", 400, "Sec-WebSocket-Key"),
        ("Sec-WebSocket-Key", "Sec-WebSocket-Key: a\r\nSec-WebSocket-Key", 400, "once"),
        ("ZQ==", "ZWU=", 400, "16 random bytes"),
        ("ZQ==", "ZQ", 400, "16 random bytes"),
        // RFC 6455 sections 4.3 and 9.1.
        ("Host", "Sec-WebSocket-Protocol: a b\r\nHost", 400, "Sec-WebSocket-Protocol"),
        ("Host", "Sec-WebSocket-Extensions: a; b=\r\nHost", 400, "Sec-WebSocket-Extensions"),
    ] {
        let response = refused(&server, &changed(from, to));
        let what = format!("{to:?} for {from:?}: {response}");
        assert!(response.starts_with(&format!("HTTP/1.1 {status} ")), "{what}");
        assert!(response.contains(demanded), "{what}");
        assert!(response.contains("\r\nConnection: close"), "{what}");
        let (head, body) = response.split_once("\r\n\r\n").expect("a head");
        assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{what}");
        assert!(body.len() > 10 && body.ends_with(".\n"), "{what}");
    }
    let head = refused(&server, &changed("GET", "HEAD"));
    assert!(head.starts_with("HTTP/1.1 405 ") && head.ends_with("\r\n\r\n"), "{head}");
}

#[test]
fn what_is_too_long_is_refused_by_its_part() {
    let server = Server::start(&[]);
    let long = "a".repeat(8192);
    for (request, status) in [
        (long.clone(), 501),
        (changed("GET /", &format!("GET /{long}")), 414),
        (changed("Host", &format!("X: {long}\r\nHost")), 431),
        (changed("Host", &format!("{}Host", "X: y\r\n".repeat(64))), 431),
    ] {
        let response = refused(&server, &request);
        assert!(response.starts_with(&format!("HTTP/1.1 {status} ")), "{response}");
    }
}

#[test]
fn the_first_subprotocol_is_accepted_or_the_one_that_is_named() {
    let offer = changed("Host", "Sec-WebSocket-Protocol: soap, chat\r\nHost");
    for (arguments, chosen) in [
        (&[][..], Some("soap")),
        (&["--subprotocol", "any"], Some("soap")),
        (&["--subprotocol", "chat"], Some("chat")),
        (&["--subprotocol", "mqtt"], None),
    ] {
        let server = Server::start(arguments);
        let mut client = Client::open(server.address());
        let response = client.handshake_by(&offer);
        let field = chosen.map(|name| format!("Sec-WebSocket-Protocol: {name}\r\n"));
        let expected =
            format!("{}{}\r\n", &RESPONSE[..RESPONSE.len() - 2], field.unwrap_or_default());
        assert_eq!(response, expected, "{arguments:?}");
        client.echo(TEXT, b"open");
        let mut client = Client::open(server.address());
        assert_eq!(client.handshake_by(REQUEST), RESPONSE, "{arguments:?}");
    }
}

#[test]
fn a_subprotocol_is_a_token_and_needs_websocket() {
    for arguments in [
        &["--subprotocol", "a b"][..],
        &["--subprotocol", ""],
        &["--subprotocol", "a,b"],
        &["--subprotocol", "chat", "--protocol", "tcp"],
    ] {
        let ended = server::run(arguments);
        assert_eq!(ended.status.code(), Some(2), "{arguments:?}: {}", ended.stderr);
        assert!(ended.stderr.contains("--subprotocol"), "{}", ended.stderr);
    }
}
