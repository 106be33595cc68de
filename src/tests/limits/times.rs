//! Time: handshakes that do not end, silence, age, and the end of the server.
//!
//! The times are long enough that a machine that is busy with other tests does not end a connection too early.

use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use testkit::{BINARY, CLOSE, Client, PING, PONG, REQUEST, TEXT, frame, wait_until};

use crate::{answer_close, expect_close, on_every_engine};

fn status(answer: &[u8]) -> &str {
    std::str::from_utf8(answer).expect("text").lines().next().unwrap_or_default()
}

#[test]
fn a_handshake_that_takes_too_long_is_refused_however_it_is_drawn_out() {
    on_every_engine(&["--handshake-timeout", "3s"], |server| {
        let mut in_time = Client::connect(server.address());
        let mut silent = Client::open(server.address());
        let mut slow = Client::open(server.address());
        for byte in REQUEST.as_bytes() {
            slow.write(&[*byte]);
            if server.count("handshakes_timed_out") == 2 {
                break;
            }
            thread::sleep(Duration::from_millis(50));
        }
        for client in [&mut silent, &mut slow] {
            let answer = client.read_to_end().expect("an answer, and FIN");
            assert_eq!(status(&answer), "HTTP/1.1 408 Request Timeout");
        }
        assert_eq!(server.count("handshakes_timed_out"), 2);
        assert_eq!(server.count("connections_rejected"), 2);
        in_time.echo(TEXT, b"still here");
        in_time.close();
    });
}

#[test]
fn silence_in_the_handshake_is_answered_like_a_late_one() {
    let options = ["--handshake-timeout", "0", "--ping-after", "500ms", "--idle-timeout", "1s"];
    on_every_engine(&options, |server| {
        let mut client = Client::open(server.address());
        client.write(&REQUEST.as_bytes()[..50]);
        let answer = client.read_to_end().expect("an answer, and FIN");
        assert_eq!(status(&answer), "HTTP/1.1 408 Request Timeout");
        assert_eq!(server.count("handshakes_timed_out"), 1);
        assert_eq!(server.count("connections_timed_out"), 0);
        assert_eq!(server.count("pings_sent"), 0);
    });
}

/// Sends a text and reads its echo. Pings may come before it.
fn echo_after_pings(client: &mut Client) {
    client.send_frame(TEXT, b"hello");
    while client.read_frame().first != TEXT {}
}

#[test]
fn a_silent_peer_gets_a_ping_and_stays_if_it_answers() {
    on_every_engine(&["--ping-after", "500ms", "--idle-timeout", "0"], |server| {
        let mut client = Client::connect(server.address());
        // Enough to be offloaded.
        for _ in 0..20 {
            echo_after_pings(&mut client);
        }
        for _ in 0..3 {
            client.expect(PING, b"");
            client.send_frame(PONG, b"");
        }
        echo_after_pings(&mut client);
        assert!(server.count("pings_sent") >= 3);
        assert_eq!(server.count("frames_in"), 24);
        assert_eq!(server.count("connections_open"), 1);
    });
}

#[test]
fn a_peer_that_does_not_answer_gets_one_ping() {
    on_every_engine(&["--ping-after", "1s", "--idle-timeout", "4s"], |server| {
        let mut client = Client::connect(server.address());
        client.expect(PING, b"");
        expect_close(&mut client, 1001);
        assert_eq!(server.count("pings_sent"), 1);
        answer_close(client, 1001);
    });
}

#[test]
fn a_silent_connection_is_closed_and_a_talkative_one_is_not() {
    on_every_engine(&["--ping-after", "0", "--idle-timeout", "3s"], |server| {
        let mut silent = Client::connect(server.address());
        silent.echo(TEXT, b"hello");
        let mut talkative = Client::connect(server.address());
        thread::scope(|scope| {
            let waiting = scope.spawn(|| expect_close(&mut silent, 1001));
            while !waiting.is_finished() {
                // Echoed by the kernel, if anything is.
                talkative.echo(TEXT, b"hello");
                thread::sleep(Duration::from_millis(1));
            }
        });
        assert_eq!(server.count("connections_timed_out"), 1);
        answer_close(silent, 1001);
        talkative.close();
    });
}

#[test]
fn a_peer_that_leaves_a_frame_unfinished_is_dropped() {
    on_every_engine(&["--ping-after", "1s", "--idle-timeout", "3s"], |server| {
        let mut client = Client::connect(server.address());
        // A part of it is echoed, so neither a ping nor a close frame can follow.
        client.write(&frame(BINARY, &[7; 1000])[..500]);
        wait_until("it is gone", || server.count("connections_open") == 0);
        assert_eq!(server.count("connections_timed_out"), 1);
        assert_eq!(server.count("pings_sent"), 0);
    });
}

#[test]
fn a_connection_lives_for_its_lifetime_whatever_it_does() {
    on_every_engine(&["--lifetime", "3s"], |server| {
        let mut silent = Client::connect(server.address());
        let mut talkative = Client::connect(server.address());
        loop {
            talkative.send_frame(TEXT, b"hello");
            let frame = talkative.read_frame();
            if frame.first != TEXT {
                assert_eq!(frame.close_code(), Some(1001));
                break;
            }
        }
        expect_close(&mut silent, 1001);
        answer_close(silent, 1001);
        assert_eq!(server.count("connections_expired"), 2);
    });
}

#[test]
fn a_stopping_server_waits_for_as_long_as_it_is_told() {
    on_every_engine(&["--drain-timeout", "3s"], |server| {
        // It never answers the close frame.
        let mut stubborn = Client::connect(server.address());
        stubborn.echo(TEXT, b"hello");
        let mut polite = Client::connect(server.address());
        server.signal(Signal::TERM);
        polite.expect(CLOSE, &1001u16.to_be_bytes());
        answer_close(polite, 1001);
        let ended = server.wait();
        assert_eq!(ended.status.code(), Some(0), "{ended:?}");
        assert_eq!(ended.count("connections_cut"), 1);
        drop(stubborn);
    });
}
