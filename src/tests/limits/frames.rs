//! Frames that carry little: fragments without end, and floods of control frames.

use std::io::Write as _;
use std::thread;

use testkit::{Client, FIN, PING, PONG, TEXT, frame};

use crate::{expect_close, on_every_engine};

fn fragments(count: usize) -> Vec<u8> {
    let begin = frame(TEXT & !FIN, b"a");
    let middle = frame(0, b"b");
    let end = frame(FIN, b"c");
    [begin, middle.repeat(count - 2), end].concat()
}

#[test]
fn a_message_may_have_the_most_frames_and_not_one_more() {
    on_every_engine(&["--message-frames-max", "5"], |server| {
        let mut client = Client::connect(server.address());
        for count in [5, 2, 5] {
            client.write(&fragments(count));
            for _ in 0..count {
                client.read_frame();
            }
        }
        // An empty frame at the end does not count.
        client.write(&[fragments(6)[..5 * 7].to_vec(), frame(FIN, b"")].concat());
        for _ in 0..6 {
            client.read_frame();
        }
        client.echo(TEXT, b"hello");
        client.write(&fragments(6));
        for _ in 0..5 {
            client.read_frame();
        }
        expect_close(&mut client, 1008);
        client.expect_end();
        assert_eq!(server.count("messages_overfragmented"), 1);
        assert_eq!(server.count("protocol_violations"), 1);
    });
}

#[test]
fn by_default_a_message_may_have_65536_frames_and_not_one_more() {
    on_every_engine(&[], |server| {
        let mut client = Client::connect(server.address());
        thread::scope(|scope| {
            let mut writer = client.stream().try_clone().expect("a descriptor");
            scope.spawn(move || {
                writer.write_all(&fragments(65_536)).expect("the server reads");
                // It is refused before all of it is read.
                let _ = writer.write_all(&fragments(65_537));
            });
            for _ in 0..65_536 + 65_536 {
                client.read_frame();
            }
            expect_close(&mut client, 1008);
        });
    });
}

#[test]
fn control_frames_have_a_rate() {
    on_every_engine(&["--control-frames-max", "5"], |server| {
        let mut client = Client::connect(server.address());
        client.write(&frame(PING, b"ping").repeat(5));
        for _ in 0..5 {
            client.expect(PONG, b"ping");
        }
        // A second may end within them.
        client.write(&frame(PONG, b"").repeat(20));
        expect_close(&mut client, 1008);
        client.expect_end();
        assert_eq!(server.count("control_floods"), 1);
    });
}

#[test]
fn by_default_a_hundred_control_frames_are_answered() {
    on_every_engine(&[], |server| {
        let mut client = Client::connect(server.address());
        client.write(&frame(PING, b"ping").repeat(100));
        for _ in 0..100 {
            client.expect(PONG, b"ping");
        }
        client.write(&frame(PING, b"ping").repeat(400));
        let mut pongs = 0;
        loop {
            let frame = client.read_frame();
            if frame.first != PONG {
                assert_eq!(frame.close_code(), Some(1008));
                break;
            }
            pongs += 1;
        }
        assert!(pongs <= 300, "{pongs}");
    });
}

#[test]
fn without_limits_all_is_answered() {
    on_every_engine(&["--control-frames-max", "0", "--message-frames-max", "0"], |server| {
        let mut client = Client::connect(server.address());
        client.write(&frame(PING, b"ping").repeat(2000));
        for _ in 0..2000 {
            client.expect(PONG, b"ping");
        }
        client.close();
    });
}
