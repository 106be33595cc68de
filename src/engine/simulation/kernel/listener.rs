//! Listeners: connections that come in one by one or all at once, accepts that fail, and for how long the
//! pump must rest after that.

use std::collections::VecDeque;
use std::time::Duration;

use rustix::io::Errno;

use super::{Flight, Kernel};
use crate::engine::pump::{ACCEPT_PAUSE, FAILURES_MAX};
use crate::engine::ring::{Completion, Further, Socket};

#[derive(Debug)]
pub(super) struct Listener {
    pub(super) accept: Flight,
    /// The pump has cancelled the accept.
    pub(super) is_cancelled: bool,
    pub(super) is_open: bool,
    pub(super) backlog: VecDeque<usize>,
    /// Failures reported to the pump since the last connection or rest.
    pub(super) failures: u32,
    /// The pump must not accept before this time.
    pub(super) rests_until: Duration,
    /// The error of the next accepts, and how many of them fail with it.
    pub(super) failing: (Errno, u32),
}

impl Listener {
    pub(super) fn new() -> Listener {
        Listener {
            accept: Flight::Not,
            is_cancelled: false,
            is_open: true,
            backlog: VecDeque::new(),
            failures: 0,
            rests_until: Duration::ZERO,
            failing: (Errno::CANCELED, 0),
        }
    }

    /// The pump learns of a failure: after one for want of descriptors or memory, or after many, it rests.
    pub(super) fn fail(&mut self, errno: Errno, now: Duration) {
        self.failures += 1;
        let is_lasting =
            matches!(errno, Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM);
        if is_lasting || self.failures == FAILURES_MAX {
            self.failures = 0;
            self.rests_until = now + ACCEPT_PAUSE;
        }
    }
}

impl Kernel {
    pub(super) fn can_connect(&self) -> bool {
        self.active.len() < self.scenario.concurrency
            && self.connected < self.connections.len()
            && self.listeners.iter().any(|listener| listener.is_open)
    }

    pub(super) fn connect_one(&mut self) {
        let number = self.connected;
        self.connected += 1;
        self.active.push(number);
        let open: Vec<usize> = (0..self.listeners.len())
            .filter(|&listener| self.listeners[listener].is_open)
            .collect();
        let listener = self.random.pick(&open);
        self.listeners[listener].backlog.push_back(number);
        let link = &mut self.connections[number].link;
        let is_layered = self.scenario.is_layered(listener);
        link.connect(is_layered);
        self.totals.layered += u64::from(is_layered);
        if self.stopped.is_some() {
            link.stop();
        }
    }

    pub(super) fn can_accept(&self, listener: usize) -> bool {
        let listener = &self.listeners[listener];
        listener.accept == Flight::Armed && !listener.backlog.is_empty()
    }

    /// Gives a connection a descriptor, if one is free.
    pub(super) fn describe(&mut self, number: usize) -> Option<Socket> {
        let fd = self.descriptors.iter().position(Option::is_none)?;
        self.descriptors[fd] = Some(number);
        self.connections[number].fd = Some(fd as i32);
        self.connections[number].link.open();
        Some(Socket(fd as i32))
    }

    pub(super) fn accept_one(&mut self, listener: usize) {
        let is_over = self.random.one_in(self.scenario.over);
        let is_full = self.descriptors.iter().all(Option::is_some);
        let mut problem = is_full.then_some(Errno::MFILE);
        if self.random.one_in(self.scenario.over) {
            let errno = self.random.pick(&[
                Errno::MFILE,
                Errno::NFILE,
                Errno::NOBUFS,
                Errno::NOMEM,
                Errno::CONNABORTED,
                Errno::HOSTUNREACH,
                Errno::PERM,
                Errno::TIMEDOUT,
                Errno::CANCELED,
            ]);
            let times = if self.random.one_in(20) { self.random.below(150) as u32 } else { 1 };
            self.listeners[listener].failing = (errno, times);
        }
        let (errno, times) = &mut self.listeners[listener].failing;
        if *times > 0 {
            *times -= 1;
            problem = Some(*errno);
        }
        let result = match problem {
            Some(errno) => Err(errno),
            None => {
                let number = self.listeners[listener].backlog.pop_front().expect("one waits");
                Ok(self.describe(number).expect("else there is a problem"))
            }
        };
        let further = if is_over || result.is_err() { Further::Over } else { Further::More };
        if further == Further::Over {
            self.listeners[listener].accept = Flight::Over;
        }
        let listener = listener as u32;
        self.completed.push_back(Completion::Accepted { listener, result, further });
    }
}
