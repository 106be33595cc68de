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

use crate::protocol::frame::{FINAL, Opcode};

/// The first version of Linux on which `auto` offloads. Before it a socket with a full send buffer could
/// send octets twice, and a packet that was passed up could be echoed (fixed by 3b4f14b79428 and
/// 7683167196bd of 6.16), and memory be used after it was freed (76be5fae32fe of 6.17).
pub const LINUX_MIN: (u32, u32) = (6, 17);

/// Connections of a worker that are enlisted at a time, at most.
pub const PLACES: u32 = 1024;

/// The first octets of frames that the program echoes.
const TEXT: u8 = FINAL | Opcode::Text as u8;
const BINARY: u8 = FINAL | Opcode::Binary as u8;
/// A length of 16 bits follows.
const LENGTH_16: u8 = 126;

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
/// to it. Where one message in ten is another, such a run comes once in some 8,500 messages; where one in four
/// is, in 400 million.
pub const AUTO_RUN: u8 = 64;

/// Whether the kernel could have echoed what came to this reply: whether the octets received were one frame
/// of a kind that the program echoes.
#[inline]
pub fn could_echo(received: usize, reply: &[u8]) -> bool {
    if received > FRAME_BYTES_MAX || reply.len() + 4 != received {
        return false;
    }
    match reply {
        [BINARY, ..] => true,
        [TEXT, LENGTH_16, _, _, payload @ ..] | [TEXT, _, payload @ ..] => payload.is_ascii(),
        _ => false,
    }
}

/// Connections of a worker that are few: with one, the kernel's echo comes sooner than the worker's. With
/// four, the worker finds several messages each time it wakes, and the kernel, which works on the
/// processor of whoever sends, takes twice as long.
pub const FEW: usize = 1;

#[cfg(test)]
mod frames {
    use super::*;

    #[test]
    fn what_the_program_echoes_could_have_been_echoed() {
        let reply = |first: u8, payload: &[u8]| {
            let mut reply = vec![first];
            match payload.len() {
                length @ 0..126 => reply.push(length as u8),
                length => reply.extend([&[126][..], &(length as u16).to_be_bytes()].concat()),
            }
            reply.extend(payload);
            reply
        };
        let could = |reply: &[u8]| could_echo(reply.len() + 4, reply);
        for length in [0, 1, 125, 126, 200, 255, 256, 16 << 10] {
            assert!(could(&reply(0x81, &vec![b'x'; length])), "{length}");
            assert!(could(&reply(0x82, &vec![0xff; length])), "{length}");
        }
        assert!(!could(&reply(0x82, &vec![0; (16 << 10) + 1])), "too long");
        assert!(!could(&reply(0x81, "grüße".as_bytes())), "not ASCII");
        assert!(!could(&reply(0x8a, b"pong")));
        assert!(!could(&reply(0x01, b"a fragment")));
        assert!(!could(&reply(0x80, b"the last one")));
        assert!(!could_echo(30, &reply(0x82, b"only a part of it")));
    }
}
