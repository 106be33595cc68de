//! Compressed messages over sockets, to the server of the engine that is tested.

use std::io::Write as _;
use std::net::Shutdown;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use ringecho::protocol::Policy;

use crate::agreement::{Offer, connect, request};
use crate::script::{Script, Size};
use crate::sender::Sender;
use testkit::{Client, RSV1, Random, Server, TEXT, cases};

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

#[test]
fn the_option_bounds_the_memory_over_all_workers() {
    let arguments = |memory| ["--compression", "deflate", "--recompression-memory", memory];
    for (memory, workers, agreed) in [("0", "1", 0), ("1MiB", "1", 3), ("1MiB", "4", 0)] {
        let server = Server::start(&[&arguments(memory)[..], &["--workers", workers]].concat());
        let mut clients: Vec<Client> = (0..6).map(|_| Client::open(server.address())).collect();
        let request = request("permessage-deflate");
        let count = clients
            .iter_mut()
            .filter_map(|client| client.handshake_by(&request).contains("permessage").then_some(()))
            .count();
        assert_eq!(count, agreed, "{memory} {workers}");
        for client in &mut clients[count..] {
            client.echo(TEXT, b"without compression");
        }
        clients.into_iter().for_each(Client::close);
        let ended = server.terminate();
        assert_eq!(ended.count("compression_declined"), 6 - agreed as u64);
    }
}
