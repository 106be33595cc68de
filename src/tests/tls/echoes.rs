//! Messages within TLS.

use std::io::{Read as _, Write as _};
use std::thread;
use std::time::Duration;

use rustls::version::TLS13;
use testkit::inflate::Inflater;
use testkit::{BINARY, Client, PAUSE, PING, PONG, RSV1, TEXT, frame, pattern, reply};

use crate::{Place, VERSIONS, end, on_every_engine, stream};

#[test]
fn messages_of_every_size_are_echoed() {
    let place = Place::new();
    on_every_engine(|engine| {
        let server = place.start(engine);
        for version in VERSIONS {
            let mut client = place.connect(server.address(), version);
            let sizes = [0, 1, 16, 125, 126, 16_361, 16_362, 16_384, 65_535, 65_536, 300_000];
            for size in sizes {
                client.echo(TEXT, &pattern(size));
                client.echo(BINARY, &pattern(size));
            }
            client.send_frame(PING, b"here?");
            client.expect(PONG, b"here?");
            client.close();
        }
        let ended = end(server);
        assert_eq!((ended.count("messages"), ended.count("tls_failures")), (44, 0), "{ended:?}");
    });
}

#[test]
fn a_message_of_16_mib_is_echoed() {
    let place = Place::new();
    let message = pattern(16 << 20);
    on_every_engine(|engine| {
        let server = place.start(engine);
        for version in VERSIONS {
            let mut client = place.connect(server.address(), version);
            client.send_frame(BINARY, &message);
            client.expect(BINARY, &message);
            client.send_frame(TEXT, &message);
            client.expect(TEXT, &message);
            client.close();
        }
        server.wait_for_count("connections_open", 0);
        end(server);
    });
}

#[test]
fn a_thousand_messages_at_once_are_echoed_in_order() {
    let place = Place::new();
    on_every_engine(|engine| {
        let server = place.start(engine);
        for version in VERSIONS {
            let mut client = place.connect(server.address(), version);
            let sizes = (0..1000).map(|number| number * 7 % 300);
            let all: Vec<u8> =
                sizes.clone().flat_map(|size| frame(BINARY, &pattern(size))).collect();
            client.write(&all);
            for size in sizes {
                client.expect(BINARY, &pattern(size));
            }
            client.close();
        }
        assert_eq!(end(server).count("messages"), 2000);
    });
}

#[test]
fn a_small_message_takes_one_system_call() {
    let place = Place::new();
    let server = place.start(&["--engine", "uring", "--wait", "block"]);
    let mut client = place.connect(server.address(), &TLS13);
    client.echo(BINARY, &[7; 16]);
    // The statistics take calls of another thread only.
    let before = server.count("syscalls");
    for _ in 0..1000 {
        client.echo(BINARY, &[7; 16]);
    }
    let calls = server.count("syscalls") - before;
    assert!((990..=1010).contains(&calls), "{calls} system calls for 1000 messages");
    client.close();
    end(server);
}

#[test]
fn compressed_messages_are_echoed_as_they_came() {
    let place = Place::new();
    on_every_engine(|engine| {
        let server = place.start(engine);
        let mut client = Client::over(stream(server.address(), place.config(&TLS13)));
        let request = testkit::REQUEST.trim_end().to_owned()
            + "\r\nSec-WebSocket-Extensions: permessage-deflate; client_no_context_takeover; \
               server_no_context_takeover\r\n\r\n";
        let response = client.handshake_by(&request);
        assert!(response.contains("permessage-deflate"), "{response}");
        let text = b"compress this, compress this, compress this".repeat(1000);
        let mut compressor = testkit::deflate::Compressor::new(32 << 10);
        let compressed = compressor.message(&text);
        client.send_frame(TEXT | RSV1, &compressed);
        let echo = client.read_frame();
        assert_eq!(echo.first, TEXT | RSV1);
        assert_eq!(Inflater::default().message(&echo.payload).expect("a stream"), text);
        client.close();
        assert_eq!(end(server).count("messages_mirrored"), 1);
    });
}

#[test]
fn a_client_that_reads_late_gets_everything_and_the_server_does_not_grow() {
    const MESSAGES: usize = 400;
    let place = Place::new();
    let message = pattern(100_000);
    on_every_engine(|engine| {
        let server = place.start(engine);
        let before = server.resident_bytes();
        let mut client = place.connect(server.address(), &TLS13);
        testkit::client::prepare(&client.stream().sock);
        // It neither reads nor looks: all records are sealed here, and written by another thread.
        let all: Vec<u8> = frame(BINARY, &message).repeat(MESSAGES);
        let stream = client.stream_mut();
        let mut sealed = Vec::new();
        for piece in all.chunks(16 << 10) {
            stream.conn.writer().write_all(piece).expect("memory");
            while stream.conn.wants_write() {
                stream.conn.write_tls(&mut sealed).expect("memory");
            }
        }
        let mut socket = stream.sock.try_clone().expect("a descriptor");
        thread::scope(|scope| {
            scope.spawn(move || socket.write_all(&sealed).expect("the server reads"));
            let mut last = 0;
            testkit::wait_until("the server receives nothing more", || {
                thread::sleep(20 * PAUSE.max(Duration::from_millis(5)));
                let received = server.count("bytes_in");
                std::mem::replace(&mut last, received) == received && received > 1 << 20
            });
            assert!(server.count("messages") < MESSAGES as u64, "it waits for the client");
            let grown = server.resident_bytes().saturating_sub(before);
            assert!(grown < 24 << 20, "{grown} bytes");
            for _ in 0..MESSAGES {
                client.expect(BINARY, &message);
            }
        });
        client.close();
        assert_eq!(end(server).count("messages"), MESSAGES as u64);
    });
}

#[test]
fn connections_with_and_without_tls_are_served_side_by_side() {
    let place = Place::new();
    on_every_engine(|engine| {
        let server = place.start(&[engine, &["--listen", "127.0.0.1:0"]].concat());
        let [plain, sealed] = server.addresses()[..] else { panic!("{}", server.greeting()) };
        let mut plain = Client::connect(plain);
        let mut sealed = place.connect(sealed, &TLS13);
        for size in [10, 1000, 100_000] {
            plain.send_frame(BINARY, &pattern(size));
            sealed.send_frame(TEXT, &pattern(size));
            plain.expect(BINARY, &pattern(size));
            sealed.expect(TEXT, &pattern(size));
        }
        // What travels is not what is said.
        let mut stream = stream(server.addresses()[1], place.config(&TLS13));
        stream.write_all(testkit::REQUEST.as_bytes()).expect("the server reads");
        let mut response = vec![0; testkit::RESPONSE.len()];
        stream.read_exact(&mut response).expect("an answer");
        stream.write_all(&frame(TEXT, b"a secret")).expect("the server reads");
        let mut records = vec![0; 2 + 8 + 22];
        stream.sock.read_exact(&mut records).expect("a record");
        assert_eq!(records[..3], [23, 3, 3]);
        assert!(!records.windows(8).any(|window| window == b"a secret"));
        let mut plain_text = vec![0; 10];
        let mut rest = &records[..];
        stream.conn.read_tls(&mut rest).expect("memory");
        stream.conn.process_new_packets().expect("a record");
        stream.conn.reader().read_exact(&mut plain_text).expect("a frame");
        assert_eq!(plain_text, reply(TEXT, b"a secret"));
        plain.close();
        sealed.close();
        drop(stream);
        server.wait_for_count("connections_open", 0);
        end(server);
    });
}
