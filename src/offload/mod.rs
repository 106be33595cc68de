//! Small echoes without leaving the kernel.
//!
//! A connection whose socket is enlisted has each packet shown to a program in the kernel before user
//! space sees it. While the connection's gate is open, the program turns a packet that is one small
//! data frame into its echo and sends it back; the worker's thread is not woken. All else goes up.
//! `docs/offload.md` has the whole of it, with the argument why no octet changes its place.

pub mod gate;
pub mod program;
pub mod record;
#[cfg(test)]
mod tests;

/// The first version of Linux on which `auto` offloads. Before it a socket with a full send buffer could
/// send octets twice, and a packet that was passed up could be echoed (fixed by 3b4f14b79428 and
/// 7683167196bd of 6.16), and memory be used after it was freed (76be5fae32fe of 6.17).
pub const LINUX_MIN: (u32, u32) = (6, 17);

/// Connections of a worker that are enlisted at a time, at most.
pub const PLACES: u32 = 1024;

/// Octets of the longest payload that the program echoes.
pub const PAYLOAD_BYTES_MAX: usize = 16 << 10;
/// Octets of the longest frame that the program echoes: its payload, and the header with the mask.
pub const FRAME_BYTES_MAX: usize = PAYLOAD_BYTES_MAX + 8;

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
    /// Those that have sent [`AUTO_RUN`] small messages one by one, while a worker has at most [`FEW`].
    Auto,
}

/// Messages that come one by one and that the kernel could have echoed, before `auto` leaves a connection
/// to it. So long a run has seldom come by chance where one message in ten is another.
pub const AUTO_RUN: u8 = 64;

/// Whether octets that were received at once, and came to a reply of so many, may have been one frame that
/// the kernel could have echoed.
#[inline]
pub fn may_echo(received: usize, reply: usize) -> bool {
    received <= FRAME_BYTES_MAX && reply + 4 == received
}

/// Connections of a worker that are few: with one, the kernel's echo comes sooner than the worker's. With
/// four, the worker finds several messages each time it wakes, and the kernel, which works on the
/// processor of whoever sends, takes twice as long.
pub const FEW: usize = 1;
