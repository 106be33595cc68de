//! A latency lab: round trips, loads and comparisons of WebSocket echo servers, and benchmarks of
//! ringecho's protocol core.

use ringecho::metrics::Counters;
use ringecho::protocol::frame::{self, FINAL, Opcode};
use ringecho::protocol::{
    Admission, Context, Decision, Dialogue, FrameLimits, Output, Policy, Protocol, Settings,
};

pub mod candidate;
pub mod case_report;
pub mod cli;
pub mod commands;
pub mod compare;
pub mod compression;
pub mod conform;
pub mod environment;
pub mod guard;
pub mod latency;
pub mod listening;
pub mod load;
pub mod merge;
pub mod opening;
pub mod problem;
pub mod process;
pub mod random;
pub mod records;
pub mod report;
pub mod results;
pub mod rtt;
mod secured;
pub mod server;
pub mod session;
pub mod socket;
pub mod statistics;
pub mod stop;
pub mod summary;
pub mod tables;
pub mod target;
pub mod tls;
pub mod usage;
pub mod verdict;
pub mod wire;

/// The settings of a server that is started without options.
const SETTINGS: Settings = Settings {
    protocol: Protocol::WebSocket,
    message_max: 64 << 20,
    policy: Policy::Mirror,
    level: 6,
    frames: FrameLimits::DEFAULT,
};

/// The request of an opening handshake.
const REQUEST: &[u8] =
    b"GET / HTTP/1.1\r\nHost: bench\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
      Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";

/// A dialogue of the protocol core, as the pump drives it, and the buffer that an engine would receive
/// into.
#[derive(Debug)]
pub struct Core {
    dialogue: Dialogue,
    context: Context<'static>,
    memory: Vec<u8>,
}

impl Core {
    /// A dialogue after its opening handshake, with room to receive `bytes` bytes at a time.
    pub fn open(bytes: usize) -> Core {
        // Leaked, so that the context can live as long as the core; a process opens only a few.
        let counters = Box::leak(Box::<Counters>::default());
        let mut core = Core {
            dialogue: Dialogue::new(Admission::Open),
            context: Context::new(SETTINGS, counters),
            memory: vec![0; bytes.max(REQUEST.len())],
        };
        core.echo(REQUEST);
        let response = core.dialogue.take_reply().unwrap_or_default().take_part(usize::MAX);
        assert!(response.starts_with(b"HTTP/1.1 101 "), "the handshake is accepted");
        core
    }

    /// Receives `bytes`, which must be complete frames, and returns the reply.
    #[inline]
    pub fn echo(&mut self, bytes: &[u8]) -> &[u8] {
        let Core { dialogue, context, memory } = self;
        let buffer = &mut memory[..bytes.len()];
        buffer.copy_from_slice(bytes);
        let answer = dialogue.received(buffer, Output::InPlace, context);
        assert_eq!(answer.decision, Decision::Continue, "the frames are complete and valid");
        &memory[answer.reply]
    }
}

/// A masked text frame with a payload of `bytes` bytes of ASCII.
pub fn text_frame(bytes: usize) -> Vec<u8> {
    const KEY: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
    let payload: Vec<u8> = (0..bytes).map(|at| b'a' + (at % 26) as u8).collect();
    let mut text = Vec::new();
    frame::append(&mut text, FINAL | Opcode::Text as u8, &payload, KEY);
    text
}

/// The median of `values`, with the least and the greatest in parentheses.
pub fn spread(values: impl Iterator<Item = f64>, decimals: usize) -> String {
    let values: Vec<f64> = values.collect();
    let median = statistics::median(&values);
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let greatest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    format!("{median:7.decimals$} ({least:.decimals$} to {greatest:.decimals$})")
}
