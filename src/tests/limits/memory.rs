//! The limit on heap memory.

use std::io::Write as _;
use std::thread;

use testkit::frame::{header, parse};
use testkit::{CLOSE, Client, FIN, REQUEST, RSV1, Server, TEXT, frame, wait_until};

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

/// A message of `bytes` bytes as a client with permessage-deflate sends it, in a block that is not compressed (RFC 7692
/// section 7.2.3.3). The server then keeps up to 32 KiB of it, because the next one may refer to them.
fn stored(bytes: u16) -> Vec<u8> {
    let [low, high] = bytes.to_le_bytes();
    let mut payload = vec![0, low, high, !low, !high];
    payload.resize(payload.len() + usize::from(bytes), b'x');
    // The beginning of an empty block, which ends the message.
    payload.push(0);
    payload
}

#[test]
fn memory_for_compression_counts_and_nobody_is_read_when_it_is_exceeded_by_an_eighth() {
    const LIMIT: u64 = 4 << 20;
    const DIRE: u64 = LIMIT + LIMIT / 8;
    let request =
        REQUEST.replace("\r\n\r\n", "\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n");
    let message = stored(32 << 10);
    on_every_engine(&["--memory-max", "4MiB", "--message-max", "1MiB"], |server| {
        let connect = |_| {
            let mut client = Client::open(server.address());
            assert!(client.handshake_by(&request).contains("permessage-deflate"));
            client
        };
        let mut clients: Vec<Client> = (0..150).map(connect).collect();
        // Each has less than what is much, so all are read until the limit is exceeded by an eighth.
        let (mut served, mut most) = (0, 0);
        loop {
            clients[served].send_frame(TEXT | RSV1, &message);
            wait_until("its message is echoed, or some are closed", || {
                most = most.max(server.count("memory_bytes"));
                server.count("messages") > served as u64 || server.count("connections_shed") > 0
            });
            if server.count("connections_shed") > 0 {
                break;
            }
            served += 1;
        }
        assert!((LIMIT..DIRE + (128 << 10)).contains(&most), "{most}");
        assert_eq!(server.count("memory_shortages"), 1);
        let mut closed = 0;
        for (number, client) in clients[..=served].iter_mut().enumerate() {
            client.stream().shutdown(std::net::Shutdown::Write).expect("still connected");
            let frames = parse(&client.read_to_end().expect("FIN and not RST"));
            let (echoes, close) = frames.split_at(frames.len().min(1));
            // What was received of the last message may be more than what others have.
            let is_refused = number == served && echoes[0].first == CLOSE;
            if let Some(close) = if is_refused { echoes.first() } else { close.first() } {
                assert_eq!(close.close_code(), Some(1013), "{number}: {close:?}");
                closed += 1;
            }
            assert!(is_refused || echoes[0].first == TEXT | RSV1, "{number}: {frames:?}");
        }
        assert_eq!(closed, server.count("connections_shed"));
        wait_until("memory is there again", || server.count("memory_bytes") < LIMIT * 7 / 8);
        clients[served + 1].echo(TEXT | RSV1, &message);
    });
}
