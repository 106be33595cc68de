//! Memory that a task owns while tokio-uring reads into it or writes from it.

use std::io;
use std::ops::Range;

use bytes::Bytes;
use tokio_uring::buf::BoundedBuf;
use tokio_uring::buf::fixed::FixedBuf;
use tokio_uring::net::TcpStream;

use crate::engine::reply::Pinned;

/// How many bytes a receive can take when no registered buffer is free.
pub(super) const HEAP_BYTES: usize = 1 << 10;

/// Memory for received bytes, and for the reply that they become.
#[derive(Debug)]
pub(super) enum Buffer {
    /// Registered with the kernel.
    Fixed(FixedBuf),
    /// Taken when no registered buffer was free.
    Heap(Vec<u8>),
}

impl Buffer {
    pub(super) fn bytes(&mut self) -> &mut [u8] {
        match self {
            Buffer::Fixed(buffer) => buffer,
            Buffer::Heap(buffer) => buffer,
        }
    }

    /// Receives into the buffer.
    pub(super) async fn receive(self, stream: &TcpStream) -> (io::Result<usize>, Buffer) {
        match self {
            Buffer::Fixed(buffer) => {
                let (result, buffer) = stream.read_fixed(buffer).await;
                (result, Buffer::Fixed(buffer))
            }
            Buffer::Heap(buffer) => {
                let end = buffer.len();
                let (result, buffer) = stream.read(buffer.slice(..end)).await;
                (result, Buffer::Heap(buffer.into_inner()))
            }
        }
    }

    pub(super) async fn send(
        self,
        stream: &TcpStream,
        range: Range<usize>,
    ) -> (io::Result<usize>, Buffer) {
        match self {
            Buffer::Fixed(buffer) => {
                let (result, buffer) = stream.write_fixed(buffer.slice(range)).await;
                (result, Buffer::Fixed(buffer.into_inner()))
            }
            Buffer::Heap(buffer) => {
                let (result, buffer) = stream.write(buffer.slice(range)).submit().await;
                (result, Buffer::Heap(buffer.into_inner()))
            }
        }
    }
}

/// A reply with the memory of its lease.
#[derive(Debug)]
pub(super) enum Outgoing {
    Buffer { pinned: Pinned, buffer: Buffer },
    Heap(Bytes),
}

impl Outgoing {
    pub(super) async fn send(self, stream: &TcpStream) -> (io::Result<usize>, Outgoing) {
        match self {
            Outgoing::Buffer { pinned, buffer } => {
                let (result, buffer) = buffer.send(stream, pinned.range()).await;
                (result, Outgoing::Buffer { pinned, buffer })
            }
            Outgoing::Heap(bytes) => {
                let (result, bytes) = stream.write(bytes).submit().await;
                (result, Outgoing::Heap(bytes))
            }
        }
    }
}
