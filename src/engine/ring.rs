//! What the pump asks of a ring, and what the ring reports to the pump.
//!
//! Memory has one owner at any time. A received buffer is lent to the pump as a [`Lease`]. A reply, with
//! the lease or the heap memory that holds it, belongs to the ring from [`Ring::send`] until the ring
//! reports that it was sent, or returns the rest of it in [`Sent::Cut`]. So the pump cannot touch what
//! the kernel reads or writes, and needs no unsafe code.
//!
//! Every operation ends with exactly one last completion ([`Further::Over`], where there can be more than
//! one), except those that cancel or verify.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::SocketAddrAny;

pub use super::reply::{Fill, Lease, Reply, Sent};
use crate::offload::record::Record;
use crate::slab::ConnectionId;

/// The most connections that the pump admits in one cycle. A ring that makes a system call for each accept
/// reports no more of them at a time, so that the open connections get their turn.
pub const ADMISSIONS_MAX: usize = 64;

/// The most connections that a ring accepts when it closes a listener: as many as wait in the kernel's queue
/// at most, unless further ones come meanwhile.
pub const LAST_ADMISSIONS_MAX: usize = 4096;

/// A connected socket. It is not closed when dropped: [`Ring::close`] does that.
#[derive(Debug, PartialEq, Eq)]
pub struct Socket(pub(in crate::engine) i32);

/// The address in the name of a socket, if it has one.
pub(in crate::engine) fn address_of(name: &SocketAddrAny) -> Option<IpAddr> {
    Some(SocketAddr::try_from(name.clone()).ok()?.ip())
}

/// What a send does when the socket takes no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// It returns the rest. How it ended is known when the [`Blocking::enter`] that submits it returns, or
    /// soon after if a kernel thread submits.
    None,
    /// It waits until the socket takes some of it, and returns the rest.
    Unlimited,
}

/// What a receive brought.
#[derive(Debug, PartialEq, Eq)]
pub enum Received {
    /// Bytes.
    Data {
        /// Where they are.
        lease: Lease,
        /// How many.
        bytes: u32,
    },
    /// The end of what the peer sends.
    End,
    /// No buffer was free.
    NoBuffer,
    /// It was cancelled, or the connection is broken.
    Failed(Errno),
}

/// Whether an operation goes on after a completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Further {
    /// More completions follow.
    More,
    /// This was the last.
    Over,
}

/// What has happened.
#[derive(Debug)]
pub enum Completion {
    /// The listener with this number accepted a connection, or failed to.
    Accepted {
        /// The listener's number.
        listener: u32,
        /// The connection.
        result: Result<Socket, Errno>,
        /// Whether the accept goes on.
        further: Further,
    },
    /// A receive brought something.
    Received {
        /// The connection.
        id: ConnectionId,
        /// What it brought.
        received: Received,
        /// Whether the receive goes on.
        further: Further,
    },
    /// A send ended.
    Sent {
        /// The connection.
        id: ConnectionId,
        /// How it ended.
        sent: Sent,
        /// How many of its bytes the kernel took.
        bytes: u32,
    },
    /// The kernel has passed up bytes of an offloaded connection. They may have been received already, or
    /// may arrive a little later.
    Passed {
        /// The connection.
        id: ConnectionId,
    },
    /// The watch on a connection is over: its peer has hung up, or it was cancelled.
    HungUp {
        /// The connection.
        id: ConnectionId,
    },
    /// A connection that was verified is broken, or shut down.
    Broken {
        /// The connection.
        id: ConnectionId,
    },
    /// A socket is closed.
    Closed {
        /// The connection.
        id: ConnectionId,
    },
    /// Somebody asks what is open.
    Asked,
    /// The worker is to stop.
    StopRequested,
}

/// How long [`Blocking::enter`] may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Only as long as submission takes.
    Not,
    /// Until something completes, or until this time on the ring's clock.
    Until(Option<Duration>),
}

/// A ring: how operations reach the kernel, and how it answers.
pub trait Ring {
    /// Where the kernel's program keeps an offloaded connection. A ring that does not offload names an
    /// uninhabited type, such as [`std::convert::Infallible`]: then nothing that needs a place can be
    /// called.
    type Place: std::fmt::Debug;

    /// Whether [`Ring::send`] itself sends, rather than the next submission.
    const SENDS_AT_ONCE: bool = false;

    /// The time on the ring's clock, `CLOCK_MONOTONIC`, which never goes back.
    fn now(&self) -> Duration;

    /// The same time, but maybe some milliseconds ago, where that is cheaper to know.
    fn recently(&self) -> Duration {
        self.now()
    }

    /// The address of the client, if it has one.
    fn peer_address(&self, socket: &Socket) -> Option<IpAddr>;

    /// How many listeners there are; they are numbered from 0.
    fn listeners(&self) -> u32;

    /// Accepts connections until cancelled.
    fn accept(&mut self, listener: u32);

    /// Stops accepting. The accept ends with a completion of its own.
    fn cancel_accept(&mut self, listener: u32);

    /// Closes a listener whose accept is over, and appends the connections to `waiting` that were in its queue.
    ///
    /// They have to be accepted. Nobody would serve them if this is the last descriptor of the socket, and
    /// otherwise nobody might learn of them: the kernel wakes one of the processes that share a socket, and that
    /// was perhaps this one.
    fn close_listener(&mut self, listener: u32, waiting: &mut VecDeque<Socket>);

    /// Asks for one [`Completion::StopRequested`] when the worker is to stop.
    fn watch_stop(&mut self);

    /// Asks for one [`Completion::Asked`] at each question to the worker, if there can be any.
    fn watch_questions(&mut self) {}

    /// Receives until paused or cancelled.
    fn receive(&mut self, id: ConnectionId, socket: &Socket);

    /// Receives once, at most `bytes` bytes, when there are any. A ring may receive fewer at a time.
    fn receive_piece(&mut self, id: ConnectionId, socket: &Socket, bytes: usize);

    /// Stops receiving for now. The receive ends with a completion of its own, at the latest when the next
    /// bytes arrive.
    fn pause_receive(&mut self, id: ConnectionId) {
        self.cancel_receive(id);
    }

    /// Stops receiving on a connection that is over, paused or not. The receive ends soon, with a
    /// completion of its own.
    fn cancel_receive(&mut self, id: ConnectionId);

    /// Sends `reply`. A connection has at most one send in flight, as two could overtake each other. Returns
    /// the patience that the send really has: some rings have only sends that wait.
    fn send(
        &mut self,
        id: ConnectionId,
        socket: &Socket,
        reply: Reply,
        patience: Patience,
    ) -> Patience;

    /// Cancels a send that waits, on a connection that is over. It ends soon, with a completion of its own.
    fn cancel_send(&mut self, id: ConnectionId);

    /// Finds out whether a connection is broken, which a receive that brought bytes may not say. Ends with
    /// [`Completion::Broken`] if so, and otherwise without a completion. A send finds it out too.
    fn verify(&mut self, _id: ConnectionId, _socket: &Socket) {}

    /// Shuts the socket down for writing, immediately.
    fn shut_down(&mut self, socket: &Socket);

    /// Closes a socket on which nothing is in flight. Ends with [`Completion::Closed`].
    fn close(&mut self, id: ConnectionId, socket: Socket);

    /// Closes a socket that never had an operation, immediately and without a completion.
    fn discard(&mut self, socket: Socket);

    /// Attaches a connection to the kernel's program, which then sees its bytes before they can be
    /// received, with its gate shut. Returns the place, and how many bytes the kernel was given so far
    /// for sending on this socket, none of which is in flight; or `None` if this ring does not offload
    /// or has no room. Nothing of the connection's next packet has been received yet.
    fn attach(&mut self, id: ConnectionId, socket: &Socket) -> Option<(Self::Place, u64)>;

    /// Frees the place of a connection whose socket is closed next.
    fn detach(&mut self, place: Self::Place, socket: &Socket);

    /// Receives once what an offloaded connection has now, and fails with `EAGAIN` if that is nothing.
    /// Waiting does not work: a socket on which the kernel has echoed stays readable.
    /// [`Completion::Passed`] says when there is something.
    fn receive_once(&mut self, place: &Self::Place, id: ConnectionId, socket: &Socket);

    /// The record of an offloaded connection.
    fn record(&self, place: &Self::Place) -> &Record;

    /// How many bytes the kernel was given for sending on this socket, from the first one on. The
    /// figure may lag for a moment but is never too high; it is `u64::MAX` when the connection is gone
    /// and nothing more comes or leaves.
    fn written(&self, place: &Self::Place, socket: &Socket) -> u64;

    /// Waits for the peer of an offloaded connection to hang up. Ends with [`Completion::HungUp`].
    fn watch(&mut self, place: &Self::Place, id: ConnectionId, socket: &Socket);

    /// Ends the watch, with a completion of its own.
    fn cancel_watch(&mut self, place: &Self::Place, id: ConnectionId);

    /// The received bytes of a lease.
    fn bytes<'a>(&'a mut self, lease: &'a mut Lease) -> &'a mut [u8];

    /// Returns a buffer, to receive into.
    fn recycle(&mut self, lease: Lease);

    /// How many buffers are free to receive into.
    fn buffers_ready(&self) -> usize;
}

/// A ring that the thread itself waits on.
pub trait Blocking: Ring {
    /// Submits all operations, waits as `wait` says, and appends what has completed. First among that are
    /// all sends without patience that were made before, unless a kernel thread submits.
    ///
    /// # Errors
    ///
    /// When the ring itself is broken; no connection causes that.
    fn enter(&mut self, wait: Wait, completions: &mut Vec<Completion>) -> io::Result<()>;
}
