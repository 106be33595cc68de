//! Everything that may be agreed on, and random messages under it, without sockets and over them.

use std::io::Write as _;
use std::net::Shutdown;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use ringecho::buffer::{SPILL_POOL_DEFAULT, SpillPool};
use ringecho::metrics::Counters;
use ringecho::protocol::{Context, Decision, FrameLimits, Limits, Policy, Protocol, Settings};

use crate::agreement::{Offer, connect, request};
use crate::peer::Peer;
use crate::script::{Script, Size};
use crate::sender::Sender;
use crate::{MESSAGE_MAX, ROOMS};
use testkit::{RSV1, Random, Server, TEXT, cases};

#[test]
fn every_combination_of_parameters_mirrored_where_they_allow_it() {
    every_combination("every_combination_of_parameters_mirrored", Policy::Mirror);
}

#[test]
fn every_combination_of_parameters_compressed_again() {
    every_combination("every_combination_of_parameters_compressed", Policy::Deflate);
}

fn every_combination(test: &'static str, policy: Policy) {
    let offers = Offer::all();
    let mut echoed = [0; 3];
    for mut case in cases(test, offers.len()) {
        // Seeds follow each other, so each offer has its turn.
        let offer = offers[(case.seed % offers.len() as u64) as usize];
        let size = if case.seed % 23 == 0 { Size::Large } else { Size::Small };
        let random = &mut case.random;
        let counters = Counters::default();
        let level = 1 + random.below(9) as u8;
        let settings = Settings {
            protocol: Protocol::WebSocket,
            message_max: MESSAGE_MAX,
            policy,
            level,
            frames: FrameLimits::NONE,
        };
        let backlog_max = random.pick(&[0, 100, 5000, 64 << 10]);
        let turn = random.pick(&[1, 200, 10_000]);
        let block = random.pick(&[1024, 272 << 10]);
        let context = Context::new(settings, &counters)
            .with_spill_pool(SpillPool::with_block(SPILL_POOL_DEFAULT, block, Default::default()))
            .with_backlog_max(backlog_max)
            .with_limits(Limits { cycle: 2 * turn, turn });
        let mut peer = Peer::new(random.pick(&ROOMS), &context);
        let response = peer.handshake(&request(&offer.field()));
        let agreed = offer.answered(&response, policy);
        let script = Script::write(agreed, size, random);
        let cuts = random.cuts(script.bytes.len());
        peer.feed(&script.bytes, &cuts, Some(&mut *random));
        peer.send(usize::MAX);
        assert_eq!(peer.decision, Decision::Continue, "{offer:?} {script:?}");
        assert!(!peer.has_spill(), "memory is kept of {offer:?} {script:?}");
        script.check(&peer.sent, &format!("{offer:?} {policy:?}"));
        let compressed = script.compressed_messages();
        let is_mirrored = agreed.is_some_and(|agreed| agreed.is_mirrored);
        let expected = if is_mirrored { (compressed, 0) } else { (0, compressed) };
        let counted = (counters.messages_mirrored.value(), counters.messages_recompressed.value());
        assert_eq!(counted, expected, "{offer:?} {policy:?}");
        assert_eq!(counters.messages.value(), script.messages.len() as u64);
        echoed[agreed.map_or(0, |agreed| 1 + usize::from(agreed.is_mirrored))] += 1;
    }
    // Declined are windows of 256 bytes that the server would have to compress for.
    let expected = match policy {
        Policy::Mirror => [4, 24, 332],
        Policy::Deflate => [40, 320, 0],
        Policy::Off => unreachable!("nothing is compressed"),
    };
    assert_eq!(echoed, expected, "declined, compressed again, mirrored");
}

#[test]
fn over_sockets_mirrored() {
    over_sockets("over_sockets_mirrored", "mirror", &["--buffers", "2", "--buffer-size", "1KiB"]);
}

#[test]
fn over_sockets_compressed_again() {
    over_sockets("over_sockets_compressed_again", "deflate", &[]);
}

/// Random scripts on four connections at a time, each read late or at once.
fn over_sockets(test: &'static str, compression: &str, arguments: &[&str]) {
    let policy = if compression == "mirror" { Policy::Mirror } else { Policy::Deflate };
    let server = Server::start(&[&["--compression", compression], arguments].concat());
    let offers = Offer::all();
    let cases = Mutex::new(cases(test, 100));
    let next = || cases.lock().ok()?.next();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while let Some(mut case) = next() {
                    let random = &mut case.random;
                    let offer = random.pick(&offers);
                    let (mut client, agreed) = connect(&server, offer, policy);
                    let size = if random.one_in(40) { Size::Large } else { Size::Small };
                    let script = Script::write(agreed, size, random);
                    let mut socket = client.stream().try_clone().expect("a descriptor");
                    let cuts = random.cuts(script.bytes.len());
                    let replies = thread::scope(|scope| {
                        scope.spawn(|| {
                            let mut from = 0;
                            for &cut in cuts.iter().chain([&script.bytes.len()]) {
                                let bytes = &script.bytes[from..cut];
                                socket.write_all(bytes).expect("the server reads to the end");
                                from = cut;
                            }
                            socket.shutdown(Shutdown::Write).expect("still connected");
                        });
                        if random.one_in(3) {
                            thread::sleep(Duration::from_millis(20));
                        }
                        client.read_to_end()
                    });
                    let replies = replies.expect("FIN and not RST");
                    script.check(&replies, &format!("{offer:?} {policy:?}"));
                }
            });
        }
    });
    let ended = server.terminate();
    assert!(ended.status.success(), "{ended:?}");
    assert_eq!(ended.count("protocol_violations"), 0);
    assert_eq!(ended.count("connections_open"), 0);
}

/// A connection that yields lets the worker enter its ring once more.
#[test]
fn a_message_that_is_alone_is_recompressed_in_one_turn() {
    const MESSAGES: u64 = 300;
    let arguments = ["--compression", "deflate", "--workers", "1", "--wait", "block"];
    let server = Server::start(&[&arguments[..], &["--engine", "uring"]].concat());
    let (mut client, agreed) = connect(&server, Offer::NONE, Policy::Deflate);
    let random = &mut Random::new(1);
    let mut sender = Sender::new(agreed.expect("an agreement"), random);
    for _ in 0..MESSAGES {
        // Few letters take longest.
        let text: Vec<u8> = random.bytes(1024).iter().map(|byte| b'a' + byte % 4).collect();
        client.send_frame(TEXT | RSV1, &sender.compress(&text, random));
        client.read_frame();
    }
    client.close();
    let ended = server.terminate();
    assert_eq!(ended.count("messages_recompressed"), MESSAGES);
    let calls = ended.count("syscalls");
    assert!(calls < MESSAGES + 50, "{calls} system calls");
}
