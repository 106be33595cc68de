//! A connection and its task: one read and one write in flight at most.

use std::cell::{Cell, RefCell};
use std::future::{Future as _, poll_fn};
use std::net::{IpAddr, Shutdown};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Poll, Waker};

use tokio_uring::net::TcpStream;

use super::buffers::Outgoing;
use super::shared::{Event, Shared, outcome};
use crate::engine::ring::{Completion, Further};
use crate::metrics::Counters;
use crate::slab::ConnectionId;

/// The state of a connection's receive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Receiving {
    /// There is none: its last completion has been reported.
    Off,
    /// A read is to be submitted.
    Wanted,
    /// A read is in flight.
    On,
    /// A read is in flight, and no further one will follow.
    Last,
    /// A read has ended, and the next one follows when the pump has looked at its bytes.
    Unseen,
}

/// A connection, shared by the ring and the connection's task.
pub(super) struct TaskConnection {
    pub(super) stream: TcpStream,
    /// The client's, if it has one.
    pub(super) address: Option<IpAddr>,
    pub(super) receiving: Cell<Receiving>,
    /// The receive is over when it has brought something.
    pub(super) is_single: Cell<bool>,
    /// What is to be sent and not yet submitted.
    pub(super) outgoing: Cell<Option<Outgoing>>,
    pub(super) has_task: Cell<bool>,
    pub(super) is_closing: Cell<bool>,
    pub(super) waker: RefCell<Option<Waker>>,
}

impl TaskConnection {
    pub(super) fn new(stream: TcpStream, address: Option<IpAddr>) -> TaskConnection {
        TaskConnection {
            stream,
            address,
            receiving: Cell::new(Receiving::Off),
            is_single: Cell::new(false),
            outgoing: Cell::new(None),
            has_task: Cell::new(false),
            is_closing: Cell::new(false),
            waker: RefCell::new(None),
        }
    }

    pub(super) fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }

    /// Ends the operations in flight, in the only way that tokio-uring allows.
    pub(super) fn end_operations(&self, counters: &Counters) {
        counters.syscalls.add(1);
        // It fails if the peer has reset the connection, but that ends them too.
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    /// The connection's task, from its first receive to its close.
    pub(super) async fn run(self: Rc<TaskConnection>, id: ConnectionId, shared: Rc<Shared>) {
        {
            let mut sending = pin!(self.send_replies(id, &shared));
            let mut receiving = pin!(self.receive(id, &shared));
            let (mut has_sent, mut has_received) = (false, false);
            poll_fn(|cx| {
                self.waker.borrow_mut().get_or_insert_with(|| cx.waker().clone());
                // Submits the reply before the next read, which would only delay it.
                has_sent = has_sent || sending.as_mut().poll(cx).is_ready();
                has_received = has_received || receiving.as_mut().poll(cx).is_ready();
                if has_sent && has_received { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
        }
        debug_assert_eq!(Rc::strong_count(&self), 1, "the socket is closed here");
        shared.counters.syscalls.add(1);
        drop(self);
        shared.tell(Event::Plain(Completion::Closed { id }));
    }

    pub(super) async fn send_replies(&self, id: ConnectionId, shared: &Shared) {
        let next = || {
            poll_fn(|_| match self.outgoing.take() {
                None if !self.is_closing.get() => Poll::Pending,
                next => Poll::Ready(next),
            })
        };
        while let Some(outgoing) = next().await {
            let (result, outgoing) = outgoing.send(&self.stream).await;
            shared.tell(Event::Sent { id, outgoing, result: outcome(result) });
        }
    }

    pub(super) async fn receive(self: &Rc<TaskConnection>, id: ConnectionId, shared: &Shared) {
        let is_wanted = || {
            poll_fn(|_| match self.receiving.get() {
                Receiving::Wanted => Poll::Ready(true),
                Receiving::Off if self.is_closing.get() => Poll::Ready(false),
                Receiving::Off | Receiving::On | Receiving::Last | Receiving::Unseen => {
                    Poll::Pending
                }
            })
        };
        while is_wanted().await {
            self.receiving.set(Receiving::On);
            let (result, buffer) = shared.take_buffer().receive(&self.stream).await;
            let result = outcome(result);
            let goes_on = self.receiving.get() == Receiving::On
                && !self.is_single.get()
                && matches!(result, Ok(1..));
            let further = if goes_on {
                self.receiving.set(Receiving::Unseen);
                shared.unseen.borrow_mut().push(self.clone());
                Further::More
            } else {
                self.receiving.set(Receiving::Off);
                Further::Over
            };
            shared.tell(Event::Received { id, buffer, result, further });
        }
    }
}
