//! permessage-deflate, judged by a client that shares no code with the server.
//!
//! The client reads the server's answer to its offer by itself (`agreement`) and compresses as far
//! back as the answer allows (`sender`), with flate2 or by hand: zlib has no window of 256 bytes, and
//! never refers as far back as its window reaches. What comes back is inflated twice (`receiver`):
//! flate2 shares its inflater with the server, and that one accepts references of any distance. The
//! other one is plain and slow, shares nothing, and knows the greatest distance.
//!
//! Invariant: the answer depends on what was received, and not on how it was cut. A message that cannot
//! be inflated, is not valid, or is too large fails the connection at the byte that makes this certain.

mod agreement;
mod answer;
mod heap;
#[path = "../peer.rs"]
mod peer;
mod receiver;
mod script;
mod sender;

mod dialogue;
mod sockets;
mod waiting;

use ringecho::protocol::Policy;

/// The largest message accepted where the test names no other.
const MESSAGE_MAX: u64 = 1 << 20;
/// The widest window, in bits.
const BITS_MAX: u32 = 15;
/// Both ways to echo a compressed message.
const POLICIES: [Policy; 2] = [Policy::Mirror, Policy::Deflate];
/// Bytes that a region has.
const ROOMS: [usize; 4] = [16, 64, 1024, 16384];
