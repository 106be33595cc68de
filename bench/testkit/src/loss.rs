//! Packets that never arrive: a peer that has become unreachable, and a path that loses some.
//!
//! A filter on a socket (`SO_ATTACH_FILTER`, socket(7)) drops packets before TCP sees them. So they are not
//! acknowledged and come again, and a peer that gets none neither answers nor resets. It needs no privilege. A
//! socket that is accepted has the filter of its listener.

use std::os::fd::AsFd;

use nix::libc::{self, sock_filter, sock_fprog};
use nix::sys::socket::setsockopt;
use nix::{setsockopt_impl, sockopt_impl};

sockopt_impl!(
    /// A program that says of each packet how many bytes of it the socket gets.
    AttachFilter,
    SetOnly,
    libc::SOL_SOCKET,
    libc::SO_ATTACH_FILTER,
    sock_fprog
);

/// `TCP_RTO_MAX_MS` and `TCP_RTO_MIN_US` (linux/tcp.h), from Linux 6.15 and 6.16 on.
const LONGEST_WAIT: i32 = 44;
const SHORTEST_WAIT: i32 = 45;

sockopt_impl!(
    /// The longest time until TCP sends again, in ms.
    LongestWait,
    SetOnly,
    libc::IPPROTO_TCP,
    LONGEST_WAIT,
    i32
);
sockopt_impl!(
    /// The shortest, in µs.
    ShortestWait,
    SetOnly,
    libc::IPPROTO_TCP,
    SHORTEST_WAIT,
    i32
);

/// Instructions of classic BPF (linux/bpf_common.h): loads a byte at a fixed place.
const LOAD_BYTE: u16 = 0x30;
/// Loads a word, which is a random number at the place [`RANDOM`] (linux/filter.h).
const LOAD_WORD: u16 = 0x20;
const RANDOM: u32 = (libc::SKF_AD_OFF + libc::SKF_AD_RANDOM) as u32;
/// Jumps if a bit is set, or if the value is at least the operand.
const JUMP_IF_SET: u16 = 0x45;
const JUMP_IF_AT_LEAST: u16 = 0x35;
/// Ends with the operand: 0 drops the packet.
const RETURN: u16 = 0x06;
const DROP: sock_filter = instruction(RETURN, 0, 0);
const KEEP: sock_filter = instruction(RETURN, u32::MAX, 0);

/// The place of the flags in a TCP header, and SYN among them (RFC 9293 section 3.1).
const FLAGS: u32 = 13;
const SYN: u32 = 2;

/// An instruction; if it jumps, it skips as many when its condition holds.
const fn instruction(code: u16, operand: u32, skipped: u8) -> sock_filter {
    sock_filter { code, jt: skipped, jf: 0, k: operand }
}

fn attach(socket: impl AsFd, program: &mut [sock_filter]) {
    let program = sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    setsockopt(&socket.as_fd(), AttachFilter, &program).expect("a filter");
}

/// The socket gets no packet any more: for its peer, its machine is gone.
pub fn deafen(socket: impl AsFd) {
    attach(socket, &mut [DROP]);
}

/// The socket loses one in `times` packets at random, but none that opens a connection.
pub fn lose(socket: impl AsFd, times: u32) {
    attach(
        socket,
        &mut [
            instruction(LOAD_BYTE, FLAGS, 0),
            instruction(JUMP_IF_SET, SYN, 3),
            instruction(LOAD_WORD, RANDOM, 0),
            instruction(JUMP_IF_AT_LEAST, u32::MAX / times, 1),
            DROP,
            KEEP,
        ],
    );
}

/// What is lost is soon sent again, however often it is lost. A connection that is accepted has this from its
/// listener.
///
/// # Errors
///
/// When the kernel is too old; then it takes 0.2 s, and twice as long each time.
pub fn hurry(socket: impl AsFd) -> nix::Result<()> {
    setsockopt(&socket.as_fd(), LongestWait, &1000)?;
    setsockopt(&socket.as_fd(), ShortestWait, &10_000)
}
