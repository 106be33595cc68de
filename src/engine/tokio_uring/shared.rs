//! What the pump and the tasks of a worker share, all on one thread.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::{IpAddr, TcpStream as StdStream};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::rc::Rc;
use std::task::{Context as TaskContext, Poll, Waker};

use rustix::io::Errno;
use tokio_uring::buf::fixed::FixedBuf;
use tokio_uring::net::TcpStream;

use super::buffers::{Buffer, HEAP_BYTES, Outgoing};
use super::connection::{Receiving, TaskConnection};
use crate::engine::ring::{Completion, Further, Socket};
use crate::metrics::Counters;
use crate::slab::ConnectionId;

/// What the tasks tell the pump.
#[derive(Debug)]
pub(super) enum Event {
    /// A read ended.
    Received { id: ConnectionId, buffer: Buffer, result: Result<u32, Errno>, further: Further },
    /// A write ended.
    Sent { id: ConnectionId, outgoing: Outgoing, result: Result<u32, Errno> },
    /// What needs no memory.
    Plain(Completion),
}

/// The result of an operation, as the kernel gave it.
pub(super) fn outcome(result: io::Result<usize>) -> Result<u32, Errno> {
    match result {
        Ok(bytes) => Ok(bytes as u32),
        Err(error) => Err(Errno::from_io_error(&error).unwrap_or(Errno::IO)),
    }
}

/// What the pump's ring and the tasks share.
pub(super) struct Shared {
    /// Events that the pump has not taken yet.
    pub(super) events: RefCell<Vec<Event>>,
    /// The pump's waker, while it waits for events.
    pub(super) waker: Cell<Option<Waker>>,
    /// Free registered buffers.
    pub(super) ready: RefCell<Vec<FixedBuf>>,
    /// Connections by their descriptor.
    pub(super) connections: RefCell<Vec<Option<Rc<TaskConnection>>>>,
    /// Connections with received bytes that the pump has not looked at.
    pub(super) unseen: RefCell<Vec<Rc<TaskConnection>>>,
    pub(super) counters: &'static Counters,
}

impl Shared {
    pub(super) fn tell(&self, event: Event) {
        self.events.borrow_mut().push(event);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    pub(super) fn poll_events(&self, cx: &TaskContext<'_>) -> Poll<()> {
        if self.events.borrow().is_empty() {
            self.waker.set(Some(cx.waker().clone()));
            Poll::Pending
        } else {
            Poll::Ready(())
        }
    }

    /// Lets connections receive again once the pump has looked at their bytes.
    pub(super) fn go_on(&self) {
        for connection in self.unseen.borrow_mut().drain(..) {
            if connection.receiving.get() == Receiving::Unseen {
                connection.receiving.set(Receiving::Wanted);
                connection.wake();
            }
        }
    }

    pub(super) fn take_buffer(&self) -> Buffer {
        match self.ready.borrow_mut().pop() {
            Some(buffer) => Buffer::Fixed(buffer),
            None => {
                self.counters.buffers_exhausted.add(1);
                Buffer::Heap(vec![0; HEAP_BYTES])
            }
        }
    }

    pub(super) fn give_back(&self, buffer: Buffer) {
        match buffer {
            Buffer::Fixed(buffer) => self.ready.borrow_mut().push(buffer),
            Buffer::Heap(_) => {}
        }
    }

    pub(super) fn admit(&self, socket: OwnedFd, address: Option<IpAddr>) -> Socket {
        let stream = TcpStream::from_std(StdStream::from(socket));
        let number = stream.as_raw_fd();
        let mut connections = self.connections.borrow_mut();
        let length = connections.len().max(number as usize + 1);
        connections.resize(length, None);
        connections[number as usize] = Some(Rc::new(TaskConnection::new(stream, address)));
        Socket(number)
    }

    pub(super) fn connection(&self, number: i32) -> Rc<TaskConnection> {
        self.connections.borrow()[number as usize].clone().expect("an open socket")
    }
}
