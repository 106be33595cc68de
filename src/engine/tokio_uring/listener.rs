//! A listener and its task, which accepts with a call each, because tokio-uring could not cancel an
//! accept.
//!
//! Invariant that the unsafe block relies on:
//!
//! 1. [`AsyncFd`] owns the descriptor that it watches, or a share of it. Nobody else closes or
//!    replaces the descriptor before the `AsyncFd` is dropped.

#![expect(unsafe_code, reason = "the reactor watches descriptors; see the invariant above")]

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;
use std::task::{Poll, Waker};

use rustix::io::Errno;
use rustix::net::{SocketAddrAny, SocketFlags};
use tokio::io::unix::AsyncFd;

use super::shared::{Event, Shared};
use crate::engine::EngineError;
use crate::engine::ring::{
    ADMISSIONS_MAX, Completion, Further, LAST_ADMISSIONS_MAX, Socket, address_of,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Accepting {
    Off,
    On,
    Closed,
}

/// A listener, shared by the ring and the listener's task.
pub(super) struct Listener {
    pub(super) number: u32,
    pub(super) accepting: Cell<Accepting>,
    /// Until it is closed; its task has a share as well.
    pub(super) fd: Cell<Option<Rc<AsyncFd<OwnedFd>>>>,
    pub(super) waker: RefCell<Option<Waker>>,
}

impl Listener {
    pub(super) fn turn(&self, accepting: Accepting) {
        self.accepting.set(accepting);
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }

    /// Accepts the connections that wait, and lets the task close the listener.
    pub(super) fn close(&self, shared: &Shared, waiting: &mut VecDeque<Socket>) {
        let Some(fd) = self.fd.take() else { return };
        for _ in 0..LAST_ADMISSIONS_MAX {
            shared.counters.syscalls.add(1);
            let accepted = rustix::net::acceptfrom_with(fd.get_ref(), SocketFlags::CLOEXEC);
            let Ok((socket, name)) = accepted else { break };
            waiting.push_back(shared.admit(socket, name.as_ref().and_then(address_of)));
        }
        self.turn(Accepting::Closed);
    }

    /// The listener's task, until it is closed.
    pub(super) async fn run(self: Rc<Listener>, fd: Rc<AsyncFd<OwnedFd>>, shared: Rc<Shared>) {
        loop {
            let readable = poll_fn(|cx| {
                self.waker.borrow_mut().get_or_insert_with(|| cx.waker().clone());
                match self.accepting.get() {
                    Accepting::Off => Poll::Pending,
                    Accepting::On => fd.poll_read_ready(cx).map(Some),
                    Accepting::Closed => Poll::Ready(None),
                }
            });
            let Some(readable) = readable.await else { break };
            let mut guard = readable.expect("the reactor outlives its tasks");
            for _ in 0..ADMISSIONS_MAX {
                if self.accepting.get() != Accepting::On {
                    break;
                }
                shared.counters.syscalls.add(1);
                let result = rustix::net::acceptfrom_with(fd.get_ref(), SocketFlags::CLOEXEC);
                if result.as_ref().err() == Some(&Errno::AGAIN) {
                    guard.clear_ready();
                    break;
                }
                let further = if result.is_ok() { Further::More } else { Further::Over };
                let admit = |(socket, name): (OwnedFd, Option<SocketAddrAny>)| {
                    shared.admit(socket, name.as_ref().and_then(address_of))
                };
                self.tell(result.map(admit), further, &shared);
            }
            // Lets the pump and the open connections have their turn before more are accepted.
            tokio::task::yield_now().await;
        }
        // The reactor removes it, and it is closed.
        shared.counters.syscalls.add(2);
    }

    pub(super) fn tell(&self, result: Result<Socket, Errno>, further: Further, shared: &Shared) {
        if further == Further::Over {
            self.accepting.set(Accepting::Off);
        }
        shared.tell(Event::Plain(Completion::Accepted { listener: self.number, result, further }));
    }
}

/// Lets tokio's reactor watch a descriptor.
pub(super) fn watch<T: AsRawFd>(fd: T) -> Result<AsyncFd<T>, EngineError> {
    // SAFETY: invariant 1.
    unsafe { AsyncFd::register(fd) }.map_err(|error| EngineError::new("watch a descriptor", error))
}
