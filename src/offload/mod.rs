//! Small echoes without leaving the kernel.
//!
//! A connection whose socket is enlisted has each packet shown to a program in the kernel before user
//! space sees it. While the connection's gate is open, the program turns a packet that is one small
//! data frame into its echo and sends it back; the worker's thread is not woken. All else goes up.
//! `docs/offload.md` has the whole of it, with the argument why no octet changes its place.

pub mod gate;
pub mod program;
pub mod record;

/// Connections of a worker that are enlisted at a time, at most.
pub const PLACES: u32 = 1024;

/// Octets of the longest frame that the program echoes: its payload, and the header with the mask.
pub const FRAME_BYTES_MAX: usize = 4096 + 8;

/// Where an enlisted connection's socket and record stand in the maps of its worker.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub struct Place(pub u32);

/// Whether connections are offloaded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Policy {
    /// None is.
    #[default]
    Off,
    /// As many as there is room for.
    On,
    /// All while a worker has at most [`FEW`]; else none.
    Auto,
}

/// Connections of a worker that are few: what they send, the kernel echoes sooner than the worker
/// could. Where there are many, the worker finds several messages each time it wakes, and the kernel,
/// which wakes for each, is slower.
pub const FEW: usize = 4;
