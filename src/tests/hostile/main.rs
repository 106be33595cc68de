//! Peers that a server on a public address must expect: those that vanish, stall, dawdle or reset. Each test
//! runs the real program and holds for every engine; bounds are on its memory, its counters and its
//! descriptors, never on time. One file per theme.

mod loss;
mod pieces;
mod resets;
mod silence;
mod unread;

use std::thread;

use rustix::net::sockopt;
use testkit::{Client, Ended, PAUSE, Server, TEXT, wait_until};

/// Has the allocator of glibc give back at once what is freed (mallopt(3)), so that what stays resident is in use.
const ALLOCATOR: &[(&str, &str)] =
    &[("MALLOC_MMAP_THRESHOLD_", "16384"), ("MALLOC_TRIM_THRESHOLD_", "65536")];

/// A server with one worker, and an ordinary client of it that must not suffer.
struct Place {
    server: Server,
    neighbour: Client,
    /// The messages that it has sent.
    neighbour_messages: u64,
    /// Descriptors of the server before anybody else came.
    descriptors: usize,
    /// Its resident memory then.
    resident_bytes: u64,
}

impl Place {
    /// With further options of the server.
    fn with(options: &[&str]) -> Place {
        let server = Server::start_with(&[&["--workers", "1"][..], options].concat(), ALLOCATOR);
        let mut neighbour = Client::connect(server.address());
        // Once around the ring of buffers, so that all memory that is taken once is in use.
        let neighbour_messages = 600;
        for _ in 0..neighbour_messages {
            neighbour.echo(TEXT, &[b'x'; 16_000]);
        }
        let (descriptors, resident_bytes) = (server.descriptors(), server.resident_bytes());
        Place { server, neighbour, neighbour_messages, descriptors, resident_bytes }
    }

    /// Talks to the neighbour, which is served whatever others do.
    fn serve_neighbour(&mut self) {
        for _ in 0..100 {
            self.neighbour.echo(TEXT, b"still served");
        }
        self.neighbour_messages += 100;
    }

    /// Waits until the server receives nothing more, but what the neighbour sends.
    fn wait_until_stuck(&mut self) {
        const FRAME_BYTES: u64 = 6 + 12;
        let mut quiet = 0;
        wait_until("the server receives nothing more", || {
            let last = self.server.count("bytes_in");
            self.serve_neighbour();
            thread::sleep(20 * PAUSE);
            let is_quiet = self.server.count("bytes_in") == last + 100 * FRAME_BYTES;
            quiet = if is_quiet { quiet + 1 } else { 0 };
            quiet == 3
        });
    }

    /// Limits the socket buffers of connections that come from now on, where this process may. Left alone, the
    /// kernel would take some 15 MB for each peer that does not read, more than it has for a hundred.
    fn limit_sockets(&self) {
        for listener in self.server.listeners().into_iter().flatten() {
            sockopt::set_socket_recv_buffer_size(&listener, 256 << 10).expect("an option");
            sockopt::set_socket_send_buffer_size(&listener, 256 << 10).expect("an option");
        }
    }

    /// Waits until all that `send` sends is stuck; it returns whether it could send anything.
    fn wait_until_clogged(&mut self, mut send: impl FnMut() -> bool) {
        loop {
            let is_moving = send();
            self.serve_neighbour();
            if is_moving {
                continue;
            }
            self.wait_until_stuck();
            if !send() {
                return;
            }
        }
    }

    /// How much memory it has taken since the beginning.
    fn grown_bytes(&self) -> u64 {
        self.server.resident_bytes().saturating_sub(self.resident_bytes)
    }

    /// Waits until all but the neighbour are forgotten and have left nothing open.
    fn wait_until_alone(&self) {
        self.server.wait_for_count("connections_open", 1);
        let descriptors = self.server.descriptors();
        assert_eq!(descriptors, self.descriptors, "descriptors are left behind");
    }
    /// Ends the neighbour and then the server, in good order.
    fn end(self) -> Ended {
        self.neighbour.close();
        let ended = self.server.terminate();
        assert_eq!(ended.status.code(), Some(0), "{ended:?}");
        assert_eq!(ended.count("connections_open"), 0);
        ended
    }
}

/// Whether the test runs with offload, as `RINGECHO_TEST_ENGINE` says.
fn is_offloading() -> bool {
    std::env::var("RINGECHO_TEST_ENGINE").is_ok_and(|engine| engine == "offload")
}
