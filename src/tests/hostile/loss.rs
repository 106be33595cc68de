//! Packets that are lost on the way, in both directions, and sent again.

use std::os::fd::AsFd;
use std::thread;

use testkit::{
    BINARY, Client, PING, PONG, REQUEST, Server, TEXT, cases, frame, hurry, lose, pattern, say,
};

/// One packet in so many is lost, on either side: on kernels that soon send again, and on others.
const TIMES: u32 = 4;
const TIMES_SLOW: u32 = 12;
const CLIENTS: usize = 32;
const BURSTS: usize = 30;

fn lose_some(socket: impl AsFd) {
    let times = if hurry(&socket).is_ok() { TIMES } else { TIMES_SLOW };
    lose(socket, times);
}

/// What one client has sent.
#[derive(Debug, Default)]
struct Sent {
    frames: u64,
    messages: u64,
    bytes: u64,
}

/// TCP joins small packets when it sends them again, those that have arrived with those that have not, and
/// whoever reads beneath the receive queue, as the program of offload does, is shown what it had before.
#[test]
fn what_is_lost_and_sent_again_is_answered_and_counted_once() {
    const TEST: &str = "what_is_lost_and_sent_again_is_answered_and_counted_once";
    let server = Server::start(&["--workers", "1"]);
    match server.listeners() {
        Ok(listeners) => listeners.iter().for_each(lose_some),
        // Then only the clients lose some.
        Err(error) => say(&format!("SKIPPED in part: {TEST}: the server loses nothing: {error}")),
    }
    let address = server.address();
    let clients: Vec<_> = cases(TEST, CLIENTS)
        .map(|mut case| {
            thread::spawn(move || {
                let random = &mut case.random;
                let mut client = Client::connect(address);
                lose_some(client.stream());
                let mut sent = Sent { bytes: REQUEST.len() as u64, ..Sent::default() };
                for _ in 0..BURSTS {
                    let burst: Vec<(u8, Vec<u8>)> = (0..1 + random.below(4))
                        .map(|_| {
                            let first = match random.below(10) {
                                0 => PING,
                                1..5 => TEXT,
                                _ => BINARY,
                            };
                            let length = random.pick(&[0, 1, 5, 16, 16, 100, 125, 1000]);
                            (first, pattern(if first == PING { length.min(125) } else { length }))
                        })
                        .collect();
                    for (first, payload) in &burst {
                        let bytes = frame(*first, payload);
                        // Each in a packet of its own.
                        client.write(&bytes);
                        sent.frames += 1;
                        sent.messages += u64::from(*first != PING);
                        sent.bytes += bytes.len() as u64;
                    }
                    for (first, payload) in &burst {
                        client.expect(if *first == PING { PONG } else { *first }, payload);
                    }
                }
                client.close();
                // The close frame.
                Sent { frames: sent.frames + 1, bytes: sent.bytes + 8, ..sent }
            })
        })
        .collect();
    let sent = clients.into_iter().map(|client| client.join().expect("every echo")).fold(
        Sent::default(),
        |sum, sent| Sent {
            frames: sum.frames + sent.frames,
            messages: sum.messages + sent.messages,
            bytes: sum.bytes + sent.bytes,
        },
    );
    server.wait_for_count("connections_open", 0);
    let ended = server.terminate();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    for (name, expected) in [
        ("connections_accepted", CLIENTS as u64),
        ("frames_in", sent.frames),
        ("messages", sent.messages),
        ("bytes_in", sent.bytes),
        ("protocol_violations", 0),
    ] {
        assert_eq!(ended.count(name), expected, "{name}: {}", ended.statistics);
    }
}
