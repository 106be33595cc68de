//! Clients who come and go while servers are restarted, and what none of them may see: a connection that is
//! refused or reset, a handshake without an answer, a message without its echo, an end without a close frame.

use std::env;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread::{self, JoinHandle};

use testkit::{BINARY, CLOSE, Client, Ended, Server, say, wait_until};

/// Clients at a time.
const CLIENTS: usize = 8;
/// How often the server is restarted meanwhile.
const RESTARTS: usize = 6;
/// Each connection has fewer messages than this, in turn.
const MESSAGES: u64 = 4;

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
    /// Lets connections come to `address`: at least so many, and until there are no further restarts.
    fn at(address: SocketAddr, connections: usize) -> Crowd {
        let (visits, is_late) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let client = |_| {
            let (visits, is_late) = (visits.clone(), is_late.clone());
            thread::spawn(move || {
                let mut seen = Seen::default();
                while visits.fetch_add(1, Relaxed) < connections || !is_late.load(Relaxed) {
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

    /// What they have seen together, if none has failed.
    fn end(self) -> Option<Seen> {
        self.is_late.store(true, Relaxed);
        let seen: Vec<_> = self.clients.into_iter().map(JoinHandle::join).collect();
        let seen = seen.into_iter().collect::<Result<Vec<Seen>, _>>().ok()?;
        Some(Seen {
            connections: seen.iter().map(|seen| seen.connections).sum(),
            echoes: seen.iter().map(|seen| seen.echoes).sum(),
            farewells: seen.iter().map(|seen| seen.farewells).sum(),
        })
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

/// Restarts the server again and again while at least `connections` connections come and go, or as many as
/// `RINGECHO_RESTART_CONNECTIONS` says. `start` starts it, the first time with number 0, and `stop` lets the one
/// before end, when the next one has started.
pub(crate) fn restart_in_full_traffic(
    what: &str,
    connections: usize,
    mut start: impl FnMut(usize, Option<&Server>) -> Server,
    stop: impl Fn(&Server),
) {
    let connections = match env::var("RINGECHO_RESTART_CONNECTIONS") {
        Ok(number) => number.parse().expect("a number of connections"),
        Err(_) => connections,
    };
    let mut servers = vec![start(0, None)];
    let crowd = Crowd::at(servers[0].address(), connections);
    for number in 1..=RESTARTS {
        if !crowd.wait_for(number * connections / (RESTARTS + 1)) {
            break;
        }
        let older = servers.last().expect("a server");
        let newer = start(number, Some(older));
        stop(older);
        servers.push(newer);
    }
    let seen = crowd.end();
    // Only now: where all CPUs are busy, the kernel takes seconds to remove what /proc says of a process.
    let last = servers.pop().expect("a server");
    let mut ended: Vec<Ended> = servers.into_iter().map(Server::wait).collect();
    ended.push(last.terminate());
    let seen = seen.unwrap_or_else(|| panic!("{what}: a client has failed: {ended:?}"));
    for ended in &ended {
        assert_eq!(ended.status.code(), Some(0), "{what}: {ended:?}");
        for problem in ["connections_rejected", "connections_cut", "protocol_violations"] {
            assert_eq!(ended.count(problem), 0, "{what}: {problem} {ended:?}");
        }
    }
    let count = |name: &str| ended.iter().map(|ended| ended.count(name)).sum::<u64>();
    let accepted = count("connections_accepted");
    assert!(seen.connections >= connections as u64, "{what}: {seen:?}");
    assert_eq!(accepted, seen.connections, "{what}: each connection belongs to one server");
    assert_eq!(count("messages"), seen.echoes, "{what}: an echo is lost");
    say(&format!(
        "{what}: {accepted} connections, {RESTARTS} restarts, {} echoes, {} closed with 1001",
        seen.echoes, seen.farewells
    ));
}
