//! Peers that send and never read.

use rustix::io::Errno;
use rustix::net::{SendFlags, send, sockopt};
use testkit::{BINARY, Client, TEXT, frame, pattern, reply, say};

use crate::{Place, is_offloading};

/// How much memory may be left behind: far less than what the peers have made the server hold.
const LEFT_MAX: u64 = 4 << 20;

/// A peer that sends one message after the other, whole or in part, as far as the server takes it.
struct Sender {
    client: Client,
    message: Vec<u8>,
    sent: usize,
}

impl Sender {
    fn new(place: &Place, first: u8, payload_bytes: usize) -> Sender {
        let client = Client::connect(place.server.address());
        client.limit_receiving();
        sockopt::set_socket_send_buffer_size(client.stream(), 64 << 10).expect("an option");
        Sender { client, message: frame(first, &pattern(payload_bytes)), sent: 0 }
    }

    /// Sends until the sockets are full; returns whether they took anything.
    fn send(&mut self) -> bool {
        let before = self.sent;
        loop {
            let rest = &self.message[self.sent % self.message.len()..];
            match send(self.client.stream(), rest, SendFlags::DONTWAIT) {
                Ok(count) => self.sent += count,
                Err(Errno::AGAIN) => return self.sent > before,
                Err(error) => panic!("the server has given the connection up: {error}"),
            }
        }
    }

    /// Reads every echo of a whole message.
    fn read(&mut self, first: u8, payload_bytes: usize) {
        let expected = reply(first, &pattern(payload_bytes));
        for number in 0..self.sent / self.message.len() {
            assert!(self.client.read(expected.len()) == expected, "echo {number}");
        }
    }
}

/// What is queued in the server for a peer that does not read is at most the message being sent, the one that
/// arrives, 64 KiB of others, and one receive.
#[test]
fn a_hundred_peers_that_never_read_cost_bounded_memory_and_nobody_an_echo() {
    const PEERS: usize = 100;
    const PAYLOAD_BYTES: usize = 64 << 10;
    // A receive takes at most 68 KiB, and of an offloaded connection at most a pinned buffer of 1 MiB.
    let bytes_max: u64 = if is_offloading() { 1280 << 10 } else { 512 << 10 };
    // Without a pool, what the server no longer needs is no longer resident.
    let mut place = Place::with(&["--spill-pool", "0"]);
    place.limit_sockets();
    for first in [BINARY, TEXT] {
        let mut senders: Vec<Sender> =
            (0..PEERS).map(|_| Sender::new(&place, first, PAYLOAD_BYTES)).collect();
        place.wait_until_clogged(|| senders.iter_mut().fold(false, |moved, it| it.send() | moved));
        let sent: usize = senders.iter().map(|sender| sender.sent).sum();
        let each = place.grown_bytes() / PEERS as u64;
        say(&format!(
            "{PEERS} peers that never read ({first:#x}): {each} bytes of memory each, {} sent",
            sent / PEERS
        ));
        assert!(each <= bytes_max, "{each} bytes of memory for each peer");
        place.serve_neighbour();

        // Half of them read everything in the end; the others are gone with all that waits for them.
        for sender in senders.iter_mut().step_by(2) {
            sender.read(first, PAYLOAD_BYTES);
        }
        drop(senders);
        place.wait_until_alone();
        place.serve_neighbour();
        let left = place.grown_bytes();
        assert!(left <= LEFT_MAX, "{left} bytes of memory are left behind");
    }
    let ended = place.end();
    assert_eq!(ended.count("protocol_violations"), 0);
    assert_eq!(ended.count("connections_overrun"), 0);
}
