//! A dialogue after its opening handshake: frames, right or wrong, received in any pieces and answered as
//! slowly as the peer reads, against the oracle for RFC 6455.

use arbitrary::Arbitrary;
use ringecho::buffer::{SPILL_POOL_DEFAULT, SpillPool};
use ringecho::protocol::Limits;
use testkit::frame::{header, masked};
use testkit::{REQUEST, Random};

use crate::owed::{BLOCK, Sends, Stream, Way, check_within};
use crate::peer::STEP;

/// Bytes that a receive buffer has.
const ROOMS: [usize; 4] = [16, 64, 1024, 16384];
/// The largest messages that the server takes.
const LIMITS: [u64; 6] = [1, 16, 125, 300, 65535, 1 << 20];
/// A stream ends when it has this many bytes.
const STREAM_BYTES: usize = 200_000;
/// About the most pieces of one length that a stream is cut into.
const CUTS: usize = 4000;

#[derive(Debug, Arbitrary)]
pub(crate) struct Input<'a> {
    /// The largest message, the work that is done at a time, and the blocks of memory.
    choice: u8,
    room: u8,
    pieces: Pieces,
    sends: Pace,
    /// Where the server begins to close.
    close_at: Option<u16>,
    parts: Vec<Part<'a>>,
}

/// How the stream is cut.
#[derive(Debug, Arbitrary)]
enum Pieces {
    Whole,
    Every(u8),
    At(Vec<u16>),
    Random(u64),
}

#[derive(Debug, Arbitrary)]
enum Pace {
    Whole,
    Never,
    Random(u64),
}

/// What a stream is made of.
#[derive(Debug, Arbitrary)]
enum Part<'a> {
    /// A whole frame.
    Frame { first: u8, key: Key, payload: &'a [u8] },
    /// A frame of text.
    Text { first: u8, key: Key, payload: &'a str },
    /// A long frame: the payload again and again, up to 4 KiB, or up to 256 KiB if `times` is 255.
    Long { first: u8, key: Key, payload: &'a [u8], bytes: u16, times: u8 },
    /// Only the header of a frame, of which the length need not be right.
    Header { first: u8, key: Key, length: u64 },
    /// Bytes as they are.
    Bytes(&'a [u8]),
}

#[derive(Debug, Clone, Copy, Arbitrary)]
enum Key {
    /// The payload stands as it is in the stream.
    Zero,
    Any([u8; 4]),
}

impl Key {
    fn bytes(self) -> [u8; 4] {
        match self {
            Key::Zero => [0; 4],
            Key::Any(bytes) => bytes,
        }
    }
}

impl Part<'_> {
    fn append_to(&self, stream: &mut Vec<u8>) {
        match *self {
            Part::Frame { first, key, payload } => {
                stream.extend(masked(first, payload, key.bytes()));
            }
            Part::Text { first, key, payload } => {
                stream.extend(masked(first, payload.as_bytes(), key.bytes()));
            }
            Part::Long { first, key, payload, bytes, times } => {
                let bytes = usize::from(bytes);
                let length = if times == u8::MAX { 4 * bytes } else { bytes / 16 };
                let payload = payload.iter().copied().cycle().take(length).collect::<Vec<u8>>();
                stream.extend(masked(first, &payload, key.bytes()));
            }
            Part::Header { first, key, length } => {
                stream.extend(header(first, length, Some(key.bytes())));
            }
            Part::Bytes(bytes) => stream.extend_from_slice(bytes),
        }
    }
}

impl Input<'_> {
    fn stream(&self) -> Stream {
        let mut bytes = REQUEST.as_bytes().to_vec();
        let head = bytes.len();
        for part in &self.parts {
            if bytes.len() > STREAM_BYTES {
                break;
            }
            part.append_to(&mut bytes);
        }
        Stream { bytes, head, message_max: LIMITS[usize::from(self.choice) % LIMITS.len()] }
    }

    /// Ascending, each within the stream of `length` bytes.
    fn cuts(&self, length: usize) -> Vec<usize> {
        match &self.pieces {
            Pieces::Whole => Vec::new(),
            Pieces::Every(bytes) => {
                let step = (usize::from(*bytes) + 1).max(length / CUTS);
                (step..length).step_by(step).collect()
            }
            Pieces::At(places) => {
                let mut cuts: Vec<usize> =
                    places.iter().map(|&place| usize::from(place) % length).collect();
                cuts.sort_unstable();
                cuts
            }
            Pieces::Random(seed) => Random::new(*seed).cuts(length),
        }
    }
}

pub(crate) fn run(input: Input<'_>) {
    let stream = input.stream();
    let length = stream.bytes.len();
    let mut cuts = input.cuts(length);
    // From the last byte of the request on, to after the last of the stream.
    let from = stream.head - 1;
    let close_at = input.close_at.map(|place| from + usize::from(place) % (length - from + 1));
    let verdict = match close_at {
        Some(place) => {
            cuts.push(place);
            cuts.sort_unstable();
            stream.verdict_with_close(place)
        }
        None => stream.verdict(),
    };
    let sends = match input.sends {
        Pace::Whole => Sends::Whole,
        Pace::Never => Sends::Never,
        Pace::Random(seed) => Sends::Random(seed),
    };
    let room = ROOMS[usize::from(input.room) % ROOMS.len()];
    let choice = usize::from(input.choice) / LIMITS.len();
    let limits = if choice.is_multiple_of(2) { Limits::default() } else { STEP };
    let pool = match choice % 4 {
        0 | 1 => SpillPool::new(SPILL_POOL_DEFAULT, Default::default()),
        _ => SpillPool::with_block(SPILL_POOL_DEFAULT, BLOCK, Default::default()),
    };
    check_within(limits, pool, &stream, &verdict, Way { room, cuts: &cuts, sends, close_at });
}
