//! What peers that do nothing but send cost a neighbour on the same worker, counted in the worker's system calls.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use ringecho::linux;
use testkit::{BINARY, Client, Server, TEXT, frame, pattern};

/// How many peers do nothing but send.
const ATTACKERS: usize = 16;
/// What each of them sends, in messages of 4 MiB.
const SENT_BYTES: usize = 24 << 20;
/// The fewest echoes of the neighbour while they do.
const ECHOES_MIN: usize = 100;

/// Sends one message again and again, and reads every echo without looking at it.
fn attack(client: &Client, message: &[u8], echo_bytes: usize) {
    let mut sending = client.stream().try_clone().expect("a descriptor");
    let mut receiving = client.stream().try_clone().expect("a descriptor");
    let count = SENT_BYTES / message.len();
    thread::scope(|scope| {
        scope.spawn(move || {
            for _ in 0..count {
                sending.write_all(message).expect("the server reads");
            }
        });
        let mut left = count * echo_bytes;
        let mut buffer = vec![0; 1 << 20];
        while left > 0 {
            let most = left.min(buffer.len());
            let received = receiving.read(&mut buffer[..most]).expect("the server sends");
            assert_ne!(received, 0, "the server has closed a connection");
            left -= received;
        }
    });
}

/// Between two of its system calls a worker on io_uring serves each ready connection at most once, and one on
/// another engine moves a piece or two. So the bytes per call say how much work may come between two messages of a
/// neighbour, however fast the peers are.
#[test]
fn a_worker_moves_few_bytes_between_two_looks_at_its_connections() {
    for (engine, first, most) in [
        ("uring", BINARY, 256 << 10),
        ("uring", TEXT, 256 << 10),
        ("epoll", BINARY, 136 << 10),
        ("epoll", TEXT, 136 << 10),
    ] {
        // Before Linux 6.17 the kernel decides how much a receive takes that is not single.
        if engine == "uring" && linux::running_version().is_none_or(|version| version < (6, 17)) {
            continue;
        }
        let name = format!("{engine}, {first:#x}");
        let server = Server::start(&["--workers", "1", "--wait", "block", "--engine", engine]);
        let address = server.address();
        let payload = pattern(4 << 20);
        let (message, echo_bytes) = (frame(first, &payload), payload.len() + 10);
        let clients: Vec<Client> = (0..ATTACKERS).map(|_| Client::connect(address)).collect();
        let mut neighbour = Client::connect(address);
        let attacking = AtomicUsize::new(ATTACKERS);
        let mut echoes = 0;
        thread::scope(|scope| {
            for client in &clients {
                let (message, attacking) = (&message, &attacking);
                scope.spawn(move || {
                    attack(client, message, echo_bytes);
                    attacking.fetch_sub(1, Ordering::Relaxed);
                });
            }
            while attacking.load(Ordering::Relaxed) > 0 {
                neighbour.echo(TEXT, b"still there");
                echoes += 1;
            }
        });
        assert!(echoes >= ECHOES_MIN, "{name}: the neighbour got {echoes} echoes");
        for client in &clients {
            let _ = client.stream().shutdown(Shutdown::Both);
        }
        drop(clients);
        neighbour.close();
        let statistics = server.terminate().statistics;
        let counted = |name: &str| statistics["total"][name].as_u64().expect("a counter");
        let (calls, bytes) = (counted("syscalls"), counted("bytes_in") + counted("bytes_out"));
        println!("{name}: {} bytes per call, {echoes} echoes", bytes / calls);
        assert!(bytes / calls < most, "{name}: {bytes} bytes were moved with {calls} system calls");
    }
}
