//! Clients who come and go while servers are restarted, and what none of them may see: a connection that is
//! refused or reset, a handshake without an answer, a message without its echo, an end without a close frame.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread::{self, JoinHandle};

use testkit::{BINARY, CLOSE, Client, Server, say, wait_until};

/// Connections in all, at least.
const CONNECTIONS: usize = 10_000;
/// Clients at a time.
const CLIENTS: usize = 8;
/// How often the server is restarted meanwhile.
const RESTARTS: usize = 6;
/// The most messages on a connection.
const MESSAGES: u64 = 16;

/// What a client has seen.
#[derive(Debug, Default, Clone, Copy)]
struct Seen {
    connections: u64,
    echoes: u64,
    /// Connections that the server has closed with code 1001, because it stops.
    farewells: u64,
}

/// The clients, at work.
struct Crowd {
    visits: Arc<AtomicUsize>,
    /// There are no further restarts.
    is_late: Arc<AtomicBool>,
    clients: Vec<JoinHandle<Seen>>,
}

impl Crowd {
    fn at(address: SocketAddr) -> Crowd {
        let (visits, is_late) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let client = |_| {
            let (visits, is_late) = (visits.clone(), is_late.clone());
            thread::spawn(move || {
                let mut seen = Seen::default();
                while visits.fetch_add(1, Relaxed) < CONNECTIONS || !is_late.load(Relaxed) {
                    visit(address, seen.connections % MESSAGES, &mut seen);
                    seen.connections += 1;
                }
                seen
            })
        };
        let clients = (0..CLIENTS).map(client).collect();
        Crowd { visits, is_late, clients }
    }

    /// Waits until `visits` connections have begun, or a client has failed. Returns whether none has.
    fn wait_for(&self, visits: usize) -> bool {
        let has_failed = || self.clients.iter().any(JoinHandle::is_finished);
        wait_until(&format!("{visits} connections have begun"), || {
            self.visits.load(Relaxed) >= visits || has_failed()
        });
        !has_failed()
    }

    /// What they have seen together.
    fn end(self) -> Seen {
        self.is_late.store(true, Relaxed);
        let mut sum = Seen::default();
        for client in self.clients {
            let seen = client.join().expect("no failed connection");
            sum.connections += seen.connections;
            sum.echoes += seen.echoes;
            sum.farewells += seen.farewells;
        }
        sum
    }
}

/// One connection, from its opening handshake to the end.
fn visit(address: SocketAddr, messages: u64, seen: &mut Seen) {
    let mut client = Client::connect(address);
    for number in 0..messages {
        client.send_frame(BINARY, &number.to_be_bytes());
        let received = client.read_frame();
        if received.first == CLOSE {
            assert_eq!(received.payload, 1001u16.to_be_bytes());
            client.send_frame(CLOSE, &received.payload);
            client.expect_end();
            seen.farewells += 1;
            return;
        }
        assert_eq!(received.payload, number.to_be_bytes());
        seen.echoes += 1;
    }
    client.send_frame(CLOSE, &1000u16.to_be_bytes());
    let received = client.read_frame();
    assert_eq!(received.first, CLOSE);
    // Both sides may close at the same time.
    match received.payload[..].try_into().map(u16::from_be_bytes) {
        Ok(1000) => {}
        Ok(1001) => seen.farewells += 1,
        code => panic!("closed with {code:?}"),
    }
    client.expect_end();
}

/// Restarts the server again and again while the clients come and go. `start` starts it, the first time with
/// number 0, and `stop` ends the one before, when the next one has started.
pub(crate) fn restart_in_full_traffic(
    what: &str,
    mut start: impl FnMut(usize, Option<&Server>) -> Server,
    stop: impl Fn(Server) -> testkit::Ended,
) {
    let mut server = start(0, None);
    let crowd = Crowd::at(server.address());
    let (mut accepted, mut messages) = (0, 0);
    let mut count = |ended: testkit::Ended| {
        assert_eq!(ended.status.code(), Some(0), "{what}: {ended:?}");
        assert_eq!(ended.count("connections_rejected"), 0, "{what}: {ended:?}");
        assert_eq!(ended.count("protocol_violations"), 0, "{what}: {ended:?}");
        accepted += ended.count("connections_accepted");
        messages += ended.count("messages");
    };
    for number in 1..=RESTARTS {
        if !crowd.wait_for(number * CONNECTIONS / (RESTARTS + 1)) {
            panic!("{what}: a client has failed before restart {number}: {:?}", server.terminate());
        }
        let next = start(number, Some(&server));
        count(stop(std::mem::replace(&mut server, next)));
    }
    let seen = crowd.end();
    count(server.terminate());
    assert_eq!(accepted, seen.connections, "{what}: each connection belongs to one server");
    assert_eq!(messages, seen.echoes, "{what}: an echo is lost");
    say(&format!(
        "{what}: {accepted} connections, {RESTARTS} restarts, {messages} echoes, {} closed with 1001",
        seen.farewells
    ));
}
