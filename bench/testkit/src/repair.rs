//! A TCP connection that is continued on a new socket (`TCP_REPAIR`, tcp(7)), so that a test decides which of
//! its bytes are sent again, and in which packet. Needs `CAP_NET_ADMIN`.

use std::net::TcpStream;

use nix::libc;
use nix::sys::socket::sockopt::{ReuseAddr, TcpMaxSeg};
use nix::sys::socket::{getsockopt, setsockopt};
use nix::{getsockopt_impl, setsockopt_impl, sockopt_impl};
use rustix::net::{AddressFamily, SocketType, bind, connect, socket};

/// `TCP_REPAIR_ON` and `TCP_REPAIR_OFF_NO_WP`: ends the repair and sends nothing.
const ON: i32 = 1;
const OFF: i32 = -1;
/// `TCP_RECV_QUEUE` and `TCP_SEND_QUEUE`, whose next sequence number `TCP_QUEUE_SEQ` is.
const QUEUES: [i32; 2] = [1, 2];

sockopt_impl!(
    /// Whether the socket is being repaired.
    Repair, SetOnly, libc::IPPROTO_TCP, libc::TCP_REPAIR, i32);
sockopt_impl!(
    /// Which queue the next option is about.
    RepairQueue, SetOnly, libc::IPPROTO_TCP, libc::TCP_REPAIR_QUEUE, i32);
sockopt_impl!(
    /// That queue's next sequence number.
    QueueSequence, Both, libc::IPPROTO_TCP, libc::TCP_QUEUE_SEQ, u32);
sockopt_impl!(
    /// The windows of both directions.
    RepairWindow, Both, libc::IPPROTO_TCP, libc::TCP_REPAIR_WINDOW, Window);

sockopt_impl!(
    /// An option that the two sides agreed on in their first packets.
    RepairOptions,
    SetOnly,
    libc::IPPROTO_TCP,
    libc::TCP_REPAIR_OPTIONS,
    Agreed
);
sockopt_impl!(
    /// See tcp(7).
    Info,
    GetOnly,
    libc::IPPROTO_TCP,
    libc::TCP_INFO,
    libc::tcp_info
);

/// `struct tcp_repair_opt` of linux/tcp.h.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Agreed {
    option: u32,
    value: u32,
}

/// The kind of the window scale option (RFC 7323 section 2.2).
const WINDOW_SCALE: u32 = 3;
/// The most bytes in one packet: the largest value that Linux takes.
const SEGMENT_BYTES_MAX: u32 = 32_767;

/// `struct tcp_repair_window` of linux/tcp.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Window {
    snd_wl1: u32,
    snd_wnd: u32,
    max_window: u32,
    rcv_wnd: u32,
    rcv_wup: u32,
}

/// The same connection, on which the bytes sent next take the place of the last `repeated` ones. Everything
/// sent must have been acknowledged, and everything received read. They must fit in one packet with something
/// new, because the peer acknowledges what this socket has not sent.
pub fn rewind(stream: TcpStream, repeated: u32) -> TcpStream {
    let [local, peer] =
        [stream.local_addr(), stream.peer_addr()].map(|address| address.expect("connected"));
    setsockopt(&stream, Repair, &ON).expect("a privilege");
    let sequences = QUEUES.map(|queue| {
        setsockopt(&stream, RepairQueue, &queue).expect("an option");
        getsockopt(&stream, QueueSequence).expect("an option")
    });
    let window = getsockopt(&stream, RepairWindow).expect("an option");
    let info = getsockopt(&stream, Info).expect("an option");
    // The sender's scale in the lower half of each, the receiver's in the upper one.
    let scales = u32::from(info.tcpi_snd_rcv_wscale);
    let scale = Agreed { option: WINDOW_SCALE, value: scales & 0xF | scales >> 4 << 16 };
    // While it is being repaired, a socket is closed silently.
    drop(stream);
    let again = socket(AddressFamily::INET, SocketType::STREAM, None).expect("a socket");
    setsockopt(&again, ReuseAddr, &true).expect("an option");
    setsockopt(&again, TcpMaxSeg, &SEGMENT_BYTES_MAX).expect("an option");
    setsockopt(&again, Repair, &ON).expect("a privilege");
    bind(&again, &local).expect("the address is free");
    for (queue, sequence) in
        QUEUES.into_iter().zip([sequences[0], sequences[1].wrapping_sub(repeated)])
    {
        setsockopt(&again, RepairQueue, &queue).expect("an option");
        setsockopt(&again, QueueSequence, &sequence).expect("an option");
    }
    connect(&again, &peer).expect("nothing is sent");
    setsockopt(&again, RepairOptions, &scale).expect("an option");
    setsockopt(&again, RepairWindow, &window).expect("an option");
    setsockopt(&again, Repair, &OFF).expect("an option");
    TcpStream::from(again)
}
