//! Benchmarks of ringecho: what is measured, and how, stands in `docs/benchmarking.md`.

use ringecho::buffer::{Cursors, HEADROOM, Region};
use ringecho::metrics::Counters;
use ringecho::protocol::{Admission, Connection, Context, Next};

/// The largest message that the benchmarks send, in octets.
const MESSAGE_MAX: u64 = 64 << 20;

const REQUEST: &[u8] =
    b"GET / HTTP/1.1\r\nHost: bench\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
      Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";

/// A connection of the protocol core and the region that an engine would receive into.
#[derive(Debug)]
pub struct Core {
    connection: Connection,
    counters: Counters,
    memory: Vec<u8>,
}

impl Core {
    /// A connection behind its opening handshake, with room for `octets` received at a time.
    pub fn open(octets: usize) -> Core {
        let mut core = Core {
            connection: Connection::new(Admission::Open),
            counters: Counters::default(),
            memory: vec![0; HEADROOM + octets.max(REQUEST.len())],
        };
        let answer = core.echo(REQUEST);
        assert!(answer.starts_with(b"HTTP/1.1 101 "), "the handshake is accepted");
        core
    }

    /// Receives `octets`, which must be whole frames, and gives the reply.
    #[inline]
    pub fn echo(&mut self, octets: &[u8]) -> &[u8] {
        self.receive(octets);
        self.advance(octets.len())
    }

    /// Puts `octets` where an engine receives them, and no more.
    #[inline]
    pub fn receive(&mut self, octets: &[u8]) {
        self.memory[HEADROOM..HEADROOM + octets.len()].copy_from_slice(octets);
    }

    /// Gives the reply to `octets` octets that already stand in the region, whatever they are
    /// after earlier replies were written over them.
    #[inline]
    pub fn advance(&mut self, octets: usize) -> &[u8] {
        let context = Context { message_max: MESSAGE_MAX, counters: &self.counters };
        let mut cursors = Cursors::received(octets);
        let region = &mut Region::new(&mut self.memory, &mut cursors);
        let next = self.connection.advance(region, &context);
        assert_eq!(next, Next::Receive, "the frames are whole and right");
        &self.memory[cursors.reply()]
    }
}

/// A masked text frame of `payload` octets of ASCII.
pub fn text_frame(payload: usize) -> Vec<u8> {
    const KEY: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
    let mut frame = vec![0x81];
    match payload {
        0..=125 => frame.push(0x80 | payload as u8),
        126..=0xffff => {
            frame.push(0x80 | 126);
            frame.extend((payload as u16).to_be_bytes());
        }
        _ => {
            frame.push(0x80 | 127);
            frame.extend((payload as u64).to_be_bytes());
        }
    }
    frame.extend(KEY);
    frame.extend((0..payload).map(|at| (b'a' + (at % 26) as u8) ^ KEY[at % 4]));
    frame
}
