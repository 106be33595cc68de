//! Small echoes without leaving the kernel.
//!
//! A BPF program sees each packet of an offloaded connection before user space does. While the
//! connection's gate is open, the program turns a packet that is one small data frame into its echo
//! and sends it back, without waking the worker's thread. It passes everything else up to user space.
//! `docs/offload.md` describes the design, and argues why the order of bytes is kept.

pub mod gate;
#[cfg(test)]
mod interleavings;
#[cfg(test)]
mod orderings;
pub mod program;
pub mod record;
#[cfg(test)]
mod tests;

use crate::protocol::frame::{FINAL, Opcode};

/// The first version of Linux on which `auto` offloads. Earlier kernels could send bytes twice from a
/// full send buffer and echo a packet that was passed up (fixed by 3b4f14b79428 and 7683167196bd in
/// 6.16), and use memory after it was freed (fixed by 76be5fae32fe in 6.17).
pub const LINUX_MIN: (u32, u32) = (6, 17);

/// How many connections of a worker can be offloaded at a time.
pub const PLACES: u32 = 1024;

/// The first bytes of frames that the program echoes.
const TEXT: u8 = FINAL | Opcode::Text as u8;
const BINARY: u8 = FINAL | Opcode::Binary as u8;
/// The second byte of a header in which a length of 16 bits follows (RFC 6455 section 5.2).
const LENGTH_16: u8 = 126;

/// The longest payload that the program echoes, in bytes.
pub const PAYLOAD_BYTES_MAX: usize = 16 << 10;
/// The longest frame that the program echoes, in bytes: its payload and a header with a mask.
pub const FRAME_BYTES_MAX: usize = PAYLOAD_BYTES_MAX + 8;

/// The index of an offloaded connection's socket and record in the maps of its worker.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub struct Place(pub u32);

/// Which connections are offloaded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Policy {
    /// None.
    #[default]
    Off,
    /// As many as there are places for.
    On,
    /// Those that have sent [`AUTO_RUN`] small messages one by one, while their worker has at most [`FEW`]
    /// connections.
    Auto,
}

/// How many messages that the kernel could have echoed must come one by one before `auto` offloads a
/// connection. If one message in ten is not such a message, a run of this length occurs once in about
/// 8,500 messages; if one in four is not, once in 400 million.
pub const AUTO_RUN: u8 = 64;

/// Whether the kernel could have echoed the `received` bytes that led to this reply: whether they were
/// exactly one frame of a kind that the program echoes.
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

/// The most connections of a worker for which `auto` offloads. With one connection, the kernel's echo is
/// faster than the worker's. With four, the worker finds several messages each time it wakes, and the
/// kernel, which runs the program on the sender's CPU, takes twice as long.
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
