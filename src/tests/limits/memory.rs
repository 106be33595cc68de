//! The limit on heap memory.

use std::io::Write as _;
use std::thread;

use testkit::frame::header;
use testkit::{Client, FIN, Server, TEXT, frame, wait_until};

use crate::on_every_engine;

const MIB: usize = 1 << 20;

/// A client that has sent most of a text of so many bytes, or as much as the server takes.
fn hoard<'scope>(
    server: &Server,
    bytes: usize,
    scope: &'scope thread::Scope<'scope, '_>,
) -> Client {
    let client = Client::connect(server.address());
    let mut stream = client.stream().try_clone().expect("a descriptor");
    scope.spawn(move || {
        let header = header(TEXT, bytes as u64, Some([0; 4]));
        // It fails when the server gives up on it.
        let _ = stream.write_all(&header).and_then(|()| stream.write_all(&vec![b'x'; bytes - 1]));
    });
    client
}

#[test]
fn whoever_takes_too_much_memory_is_closed_and_others_are_served() {
    let options = ["--memory-max", "32MiB", "--message-max", "32MiB", "--spill-pool", "16MiB"];
    on_every_engine(&options, |server| {
        thread::scope(|scope| {
            let mut neighbour = Client::connect(server.address());
            let hoarders = [24, 20, 18].map(|size| hoard(&server, size * MIB, scope));
            wait_until("memory is short", || server.count("memory_shortages") > 0);
            let mut most = 0;
            wait_until("a hoarder is closed", || {
                // Short messages need no memory.
                neighbour.echo(TEXT, b"still served");
                most = most.max(server.count("memory_bytes"));
                server.count("connections_shed") > 0
            });
            assert!(most > 30 << 20, "{most}");
            // The limit and an eighth, and what one cycle may receive.
            assert!(most < 44 << 20, "{most}");
            wait_until("memory is there again", || {
                neighbour.echo(TEXT, b"still served");
                server.count("memory_bytes") < 32 << 20
            });
            for hoarder in &hoarders {
                let _ = hoarder.stream().shutdown(std::net::Shutdown::Both);
            }
            wait_until("only one is left", || server.count("connections_open") == 1);
            // A message that has room is taken as ever.
            neighbour.write(&frame(TEXT & !FIN, &vec![b'y'; 20 * MIB]));
            assert_eq!(neighbour.read_frame().payload.len(), 20 * MIB);
        });
    });
}

#[test]
fn what_an_idle_worker_keeps_takes_nothing_from_the_others() {
    let options = ["--memory-max", "48MiB", "--message-max", "32MiB", "--workers", "2"];
    on_every_engine(&options, |server| {
        let text = vec![b'z'; 28 * MIB];
        // They come to either worker by chance.
        let mut clients: Vec<Client> = (0..8).map(|_| Client::connect(server.address())).collect();
        for client in &mut clients {
            client.echo(TEXT, &text);
        }
        assert!(server.count("spill_bytes_kept") <= 12 << 20);
        assert_eq!(server.count("connections_shed"), 0);
        assert_eq!(server.count("memory_shortages"), 0);
    });
}
