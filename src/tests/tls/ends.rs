//! How connections end: in order, or because of what came.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::Shutdown;

use rustls::version::TLS13;
use testkit::{BINARY, CLOSE, TEXT, frame, pattern};

use crate::{Place, TlsClient, VERSIONS, end, on_every_engine};

/// What the client would send, sealed.
fn sealed(client: &mut TlsClient, bytes: &[u8]) -> Vec<u8> {
    let connection = &mut client.stream_mut().conn;
    connection.writer().write_all(bytes).expect("memory");
    let mut sealed = Vec::new();
    while connection.wants_write() {
        connection.write_tls(&mut sealed).expect("memory");
    }
    sealed
}

#[test]
fn the_end_of_tls_comes_before_that_of_tcp() {
    let place = Place::new();
    on_every_engine(|engine| {
        let server = place.start(engine);
        for version in VERSIONS {
            let mut client = place.connect(server.address(), version);
            client.send_frame(CLOSE, &1000_u16.to_be_bytes());
            client.expect(CLOSE, &1000_u16.to_be_bytes());
            // Without the one, rustls reports the other as an error.
            client.expect_end();
            let mut rest = Vec::new();
            client.stream_mut().sock.read_to_end(&mut rest).expect("FIN and not RST");
            assert!(rest.is_empty());
        }
        server.wait_for_count("connections_open", 0);
        assert_eq!(end(server).count("tls_failures"), 0);
    });
}

#[test]
fn a_client_may_end_its_side_first() {
    let place = Place::new();
    on_every_engine(|engine| {
        let server = place.start(engine);
        for version in VERSIONS {
            // With the end of TLS, and with that of TCP as well.
            for is_cut in [false, true] {
                let mut client = place.connect(server.address(), version);
                client.send_frame(BINARY, &pattern(100_000));
                client.stream_mut().conn.send_close_notify();
                client.stream_mut().flush().expect("the server reads");
                if is_cut {
                    client.stream().sock.shutdown(Shutdown::Write).expect("connected");
                }
                client.expect(BINARY, &pattern(100_000));
                client.expect_end();
            }
            // Without either there is no end, and without the first it is cut off.
            let mut client = place.connect(server.address(), version);
            client.send_frame(BINARY, b"the last");
            client.stream().sock.shutdown(Shutdown::Write).expect("connected");
            client.expect(BINARY, b"the last");
            client.expect_end();
        }
        server.wait_for_count("connections_open", 0);
        assert_eq!(end(server).count("messages"), 6);
    });
}

#[test]
fn a_record_that_was_changed_ends_the_connection_with_an_alert() {
    let place = Place::new();
    on_every_engine(|engine| {
        let server = place.start(engine);
        for version in VERSIONS {
            let mut client = place.connect(server.address(), version);
            client.echo(TEXT, b"so far");
            let mut bytes = sealed(&mut client, &frame(TEXT, b"hello"));
            let last = bytes.len() - 1;
            bytes[last] ^= 1;
            client.stream_mut().sock.write_all(&bytes).expect("the server reads");
            let error = client.read_to_end().expect_err("an alert");
            assert_eq!(error.kind(), ErrorKind::InvalidData);
            assert!(error.to_string().contains("BadRecordMac"), "{error}");
            let mut rest = Vec::new();
            client.stream_mut().sock.read_to_end(&mut rest).expect("FIN and not RST");
            assert!(rest.is_empty());
        }
        server.wait_for_count("connections_open", 0);
        let ended = end(server);
        assert_eq!((ended.count("tls_failures"), ended.count("messages")), (2, 2), "{ended:?}");
        assert_eq!(ended.count("protocol_violations"), 0, "{ended:?}");
    });
}

#[test]
fn a_record_that_is_cut_off_is_not_read() {
    let place = Place::new();
    on_every_engine(|engine| {
        let server = place.start(engine);
        for version in VERSIONS {
            for kept in [1, 5, 20] {
                let mut client = place.connect(server.address(), version);
                let bytes = sealed(&mut client, &frame(TEXT, b"hello"));
                let stream = client.stream_mut();
                stream.sock.write_all(&bytes[..kept]).expect("the server reads");
                stream.sock.shutdown(Shutdown::Write).expect("connected");
                client.expect_end();
            }
        }
        server.wait_for_count("connections_open", 0);
        assert_eq!(end(server).count("messages"), 0);
    });
}

#[test]
fn a_broken_rule_of_websocket_is_answered_within_tls() {
    let place = Place::new();
    on_every_engine(|engine| {
        let server = place.start(engine);
        let mut client = place.connect(server.address(), &TLS13);
        // It is not masked (RFC 6455 section 5.1).
        client.write(b"\x81\x01a");
        let close = client.read_frame();
        assert_eq!((close.first, close.close_code()), (CLOSE, Some(1002)));
        client.expect_end();
        server.wait_for_count("connections_open", 0);
        assert_eq!(end(server).count("protocol_violations"), 1);
    });
}

#[test]
fn a_stop_says_goodbye_within_tls() {
    let place = Place::new();
    on_every_engine(|engine| {
        let server = place.start(engine);
        let mut clients = VERSIONS.map(|version| place.connect(server.address(), version));
        server.signal(rustix::process::Signal::TERM);
        for client in &mut clients {
            let close = client.read_frame();
            assert_eq!((close.first, close.close_code()), (CLOSE, Some(1001)));
            client.send_frame(CLOSE, &close.payload);
            client.expect_end();
        }
        drop(clients);
        let ended = server.wait();
        assert_eq!(ended.status.code(), Some(0), "{ended:?}");
        assert_eq!(ended.count("connections_cut"), 0, "{ended:?}");
    });
}

#[test]
fn new_keys_may_come_at_any_time() {
    let place = Place::new();
    on_every_engine(|engine| {
        let server = place.start(engine);
        let mut client = place.connect(server.address(), &TLS13);
        for _ in 0..20 {
            client.stream_mut().conn.refresh_traffic_keys().expect("TLS 1.3");
            client.echo(BINARY, &pattern(1000));
        }
        client.close();
        end(server);
    });
}
