//! How connections begin, and those that do not come about.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use rustls::version::{TLS12, TLS13};
use rustls::{AlertDescription, ClientConfig, ClientConnection, Error, HandshakeKind};
use testkit::certificate::Kind;
use testkit::client::prepare;
use testkit::{Authority, Client, REQUEST, Server, TEXT, TIMEOUT};

use crate::{Place, TlsStream, VERSIONS, end, on_every_engine, stream, stream_for};

/// What a client's hello is, as bytes.
fn hello(config: ClientConfig) -> Vec<u8> {
    let name = ServerName::try_from("localhost").expect("a name");
    let mut client = ClientConnection::new(Arc::new(config), name).expect("a client");
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).expect("memory");
    bytes
}

fn connect(address: SocketAddr) -> TcpStream {
    let socket = TcpStream::connect_timeout(&address, TIMEOUT).expect("a connection");
    prepare(&socket);
    socket
}

/// The alert with which the server has ended the handshake.
fn alert(mut stream: TlsStream) -> AlertDescription {
    // In TLS 1.3 the client has finished before the server looks at its certificate.
    let outcome = stream.flush().and_then(|()| stream.read(&mut [0]));
    let error = outcome.expect_err("the handshake fails");
    let Some(Error::AlertReceived(alert)) = error.get_ref().and_then(|it| it.downcast_ref()) else {
        panic!("{error}");
    };
    // After that comes the end.
    let mut rest = Vec::new();
    stream.sock.read_to_end(&mut rest).expect("FIN and not RST");
    assert!(rest.is_empty());
    *alert
}

#[test]
fn a_handshake_may_come_byte_by_byte() {
    let place = Place::new();
    on_every_engine(|engine| {
        let server = place.start(engine);
        for version in VERSIONS {
            let mut stream = stream(server.address(), place.config(version));
            while stream.conn.is_handshaking() {
                let mut bytes = Vec::new();
                while stream.conn.wants_write() {
                    stream.conn.write_tls(&mut bytes).expect("memory");
                }
                for byte in bytes {
                    stream.sock.write_all(&[byte]).expect("the server reads");
                }
                if stream.conn.is_handshaking() {
                    stream.conn.read_tls(&mut stream.sock).expect("the server sends");
                    stream.conn.process_new_packets().expect("a handshake");
                }
            }
            let mut client = Client::over(stream);
            client.handshake();
            client.echo(TEXT, b"at last");
            client.close();
        }
        assert_eq!(end(server).count("tls_failures"), 0);
    });
}

#[test]
fn plain_http_at_a_port_of_tls_is_told_so() {
    let place = Place::new();
    on_every_engine(|engine| {
        let server = place.start(engine);
        let mut client = Client::open(server.address());
        client.write(REQUEST.as_bytes());
        let response = client.read_to_end().expect("FIN and not RST");
        let response = String::from_utf8(response).expect("text");
        assert!(response.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{response}");
        assert!(response.contains("wss://"), "{response}");
        server.wait_for_count("connections_open", 0);
        assert_eq!(end(server).count("tls_failures"), 1);
    });
}

#[test]
fn a_client_hello_at_a_plain_port_is_refused() {
    let place = Place::new();
    on_every_engine(|engine| {
        let server = Server::start(&[engine, &["--workers", "1"]].concat());
        for version in VERSIONS {
            let mut stream = stream(server.address(), place.config(version));
            let error = stream.flush().and_then(|()| stream.read(&mut [0])).expect_err("no TLS");
            assert_eq!(error.kind(), ErrorKind::InvalidData, "{error}");
            let mut socket = connect(server.address());
            socket.write_all(&hello(place.config(version))).expect("the server reads");
            let mut response = String::new();
            socket.read_to_string(&mut response).expect("FIN and not RST");
            assert!(response.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{response}");
        }
        server.wait_for_count("connections_open", 0);
        assert_eq!(end(server).count("connections_rejected"), 4);
    });
}

#[test]
fn what_is_no_handshake_is_answered_with_an_alert() {
    let place = Place::new();
    on_every_engine(|engine| {
        let server = place.start(engine);
        let good = hello(place.config(&TLS13));
        let mut changed = good.clone();
        // The length of the session's id.
        changed[43] ^= 0xFF;
        let attempts = [
            b"\x16\x03\x01\xff\xff\x01".to_vec(),
            b"\x17\x03\x03\x00\x01a".to_vec(),
            b"\0\0\0\0\0\0\0\0".to_vec(),
            changed,
        ];
        for attempt in &attempts {
            let mut socket = connect(server.address());
            socket.write_all(attempt).expect("the server reads");
            let mut answer = Vec::new();
            socket.read_to_end(&mut answer).expect("FIN and not RST");
            // A fatal alert (RFC 8446 section 6).
            assert!(matches!(answer[..], [21, 3, _, 0, 2, 2, _]), "{attempt:x?}: {answer:x?}");
        }
        // An end in the middle is none of the server's business.
        for cut in [0, 1, 5, 100] {
            drop({
                let mut socket = connect(server.address());
                socket.write_all(&good[..cut]).expect("the server reads");
                socket
            });
        }
        server.wait_for_count("connections_open", 0);
        assert_eq!(end(server).count("tls_failures"), attempts.len() as u64);
    });
}

#[test]
fn a_handshake_of_either_kind_must_be_done_in_time() {
    let place = Place::new();
    on_every_engine(|engine| {
        let server = place.start(&[engine, &["--handshake-timeout", "300ms"]].concat());
        // In the middle of the one there is no way to say anything.
        for cut in [0, 60] {
            let mut socket = connect(server.address());
            let hello = hello(place.config(&TLS13));
            socket.write_all(&hello[..cut]).expect("the server reads");
            let mut answer = Vec::new();
            socket.read_to_end(&mut answer).expect("FIN and not RST");
            assert!(answer.is_empty(), "{answer:x?}");
        }
        // In the middle of the other there is.
        let mut client = Client::over(stream(server.address(), place.config(&TLS13)));
        client.write(&REQUEST.as_bytes()[..20]);
        let response = client.read_to_end().expect("an end of TLS");
        let response = String::from_utf8(response).expect("text");
        assert!(response.starts_with("HTTP/1.1 408 Request Timeout\r\n"), "{response}");
        server.wait_for_count("connections_open", 0);
        let ended = end(server);
        assert_eq!(ended.count("handshakes_timed_out"), 3, "{ended:?}");
        assert_eq!(ended.count("tls_failures"), 0, "{ended:?}");
    });
}

#[test]
fn one_connection_too_many_is_told_so_within_tls() {
    let place = Place::new();
    on_every_engine(|engine| {
        let server = place.start(&[engine, &["--connections-max", "1"]].concat());
        for version in VERSIONS {
            let mut first = place.connect(server.address(), version);
            let mut second = Client::over(stream(server.address(), place.config(version)));
            second.write(REQUEST.as_bytes());
            let response = second.read_to_end().expect("an end of TLS");
            let response = String::from_utf8(response).expect("text");
            assert!(response.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{response}");
            first.echo(TEXT, b"still here");
            first.close();
            drop(second);
            server.wait_for_count("connections_open", 0);
        }
        assert_eq!(end(server).count("connections_rejected"), 2);
    });
}

#[test]
fn a_request_that_is_not_for_a_websocket_is_answered_within_tls() {
    let place = Place::new();
    let server = place.start(&["--no-page"]);
    let mut client = Client::over(stream(server.address(), place.config(&TLS13)));
    client.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let response = client.read_to_end().expect("an end of TLS");
    assert!(response.starts_with(b"HTTP/1.1 426 "), "{}", String::from_utf8_lossy(&response));
    drop(client);
    end(server);
}

#[test]
fn sessions_are_resumed() {
    let place = Place::new();
    on_every_engine(|engine| {
        // Whichever worker a connection comes to.
        let server = place.start(&[engine, &["--workers", "2"]].concat());
        for version in VERSIONS {
            let mut config = place.config(version);
            config.resumption = Resumption::in_memory_sessions(8);
            for number in 0..6 {
                let mut client = Client::over(stream(server.address(), config.clone()));
                client.handshake();
                client.echo(TEXT, b"again");
                let kind = if number == 0 { HandshakeKind::Full } else { HandshakeKind::Resumed };
                assert_eq!(client.stream().conn.handshake_kind(), Some(kind), "{number}");
                client.close();
            }
        }
        end(server);
    });
}

#[test]
fn a_client_gets_the_certificate_for_the_name_it_asks_for() {
    let place = Place::new();
    let second = place.certificate("second", &["second.example"]);
    let second: Vec<&str> = second.iter().map(String::as_str).collect();
    on_every_engine(|engine| {
        let server = place.start(&[engine, &second].concat());
        for name in ["second.example", "localhost"] {
            // It checks the name.
            let config = place.config(&TLS13);
            let mut client = Client::over(stream_for(name, server.address(), config));
            client.handshake();
            client.close();
        }
        let other = stream_for("third.example", server.address(), place.config(&TLS13));
        let error = { other }.flush().expect_err("there is no such certificate");
        assert_eq!(error.kind(), ErrorKind::InvalidData, "{error}");
        server.wait_for_count("connections_open", 0);
        end(server);
    });
}

#[test]
fn clients_must_show_a_certificate_if_that_is_demanded() {
    let place = Place::new();
    let authority = place.authority_file();
    let others = Authority::new("another authority");
    on_every_engine(|engine| {
        let server = place.start(&[engine, &["--tls-client-ca", &authority]].concat());
        for version in VERSIONS {
            let known = place.authority.issue_as(Kind::Client, &["somebody"]);
            let config = place.config_as(version, Some(known));
            let mut client = Client::over(stream(server.address(), config));
            client.handshake();
            client.echo(TEXT, b"it is me");
            client.close();
            let missing = alert(stream(server.address(), place.config(version)));
            assert_eq!(missing, AlertDescription::CertificateRequired);
            let foreign = others.issue_as(Kind::Client, &["somebody"]);
            let config = place.config_as(version, Some(foreign));
            let unknown = alert(stream(server.address(), config));
            assert_eq!(unknown, AlertDescription::UnknownCA);
        }
        server.wait_for_count("connections_open", 0);
        assert_eq!(end(server).count("tls_failures"), 4);
    });
}

#[test]
fn only_http_1_1_is_agreed_on() {
    let place = Place::new();
    let server = place.start(&[]);
    let mut config = place.config(&TLS12);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let mut client = Client::over(stream(server.address(), config.clone()));
    client.handshake();
    assert_eq!(client.stream().conn.alpn_protocol(), Some(&b"http/1.1"[..]));
    client.close();
    config.alpn_protocols.pop();
    let told = alert(stream(server.address(), config));
    assert_eq!(told, AlertDescription::NoApplicationProtocol);
    server.wait_for_count("connections_open", 0);
    end(server);
}
