//! Offloaded sockets within the kernel: what moves between a link, the program and the kernel's worker,
//! which sends echoes.
//!
//! `offloaded_socket` says what the program does with a packet.

use std::rc::Rc;

use super::steps::Step;
use super::{Completion, Flight, Kernel, Link};
use crate::engine::simulation::offloaded_socket::Parcel;

impl Kernel {
    pub(super) fn find_steps_of_offloaded(
        &self,
        number: usize,
        place: usize,
        steps: &mut Vec<Step>,
    ) {
        let link = &self.connections[number].link;
        let program = self.program.borrow();
        let socket = program.socket(place);
        if socket.can_run() {
            steps.push(Step::Run(number));
        }
        let is_possible = match socket.peek() {
            Some(Parcel::Echo(_)) => link.room() > 0 || link.is_failed(),
            Some(Parcel::Passed(_)) => true,
            None => false,
        };
        if is_possible {
            steps.push(Step::Work(number));
        }
    }

    /// Whether a receive on an offloaded socket has anything to say.
    pub(super) fn has_news(&self, link: &Link, place: usize) -> bool {
        let program = self.program.borrow();
        let socket = program.socket(place);
        socket.receivable() > 0
            || socket.is_stale()
            || link.is_failed()
            || link.has_peer_ended() && socket.has_seen_all()
    }

    /// Whether an echo waits for room.
    pub(super) fn is_echoing(&self, place: usize) -> bool {
        matches!(self.program.borrow().socket(place).peek(), Some(Parcel::Echo(_)))
    }

    /// Shows the program what the peer has done.
    pub(super) fn forward(&mut self, number: usize, place: usize) {
        let link = &mut self.connections[number].link;
        let mut program = self.program.borrow_mut();
        let socket = program.socket_mut(place);
        socket.write(link.arrive());
        socket.acknowledged = link.acknowledged();
        if link.has_peer_ended() {
            socket.poke();
        }
    }

    /// Completes the first notice.
    pub(super) fn notice(&mut self) {
        let place = self.program.borrow_mut().notices.pop_front().expect("there is one");
        self.records[place].take_notice();
        let mut connections = self.connections.iter();
        let tenant = connections.find(|connection| connection.place == Some(place));
        if let Some(id) = tenant.and_then(|connection| connection.id) {
            self.completed.push_back(Completion::Passed { id });
        }
    }

    /// Takes over what the program has done.
    pub(super) fn catch_up(&mut self) {
        let mut program = self.program.borrow_mut();
        // Until now it has run at the time of the last call.
        let before = std::mem::replace(&mut program.now, self.now);
        for &number in &self.active {
            let Some(place) = self.connections[number].place else { continue };
            let connection = &mut self.connections[number];
            let socket = program.socket_mut(place);
            if socket.is_overrun {
                self.totals.overrun += u64::from(connection.link.overrun());
            }
            let eaten = std::mem::take(&mut socket.eaten);
            connection.link.receive(eaten);
            connection.link.report(eaten, before);
            connection.link.go_on();
            self.totals.frames_echoed += std::mem::take(&mut socket.frames_eaten);
            assert!(
                connection.receive != Flight::Armed
                    || connection.is_single
                    || !self.records[place].is_open(),
                "a receive waits while the gate is open: {connection}"
            );
        }
    }

    /// The kernel's worker moves the head of the queue.
    pub(super) fn work(&mut self, number: usize) {
        let place = self.connections[number].place.expect("it is offloaded");
        let shared = Rc::clone(&self.program);
        let mut program = shared.borrow_mut();
        let socket = program.socket_mut(place);
        let Some(Parcel::Echo(echo)) = socket.head() else { return socket.pop() };
        if self.fails(number) {
            return socket.die();
        }
        let mut bytes = echo.len().min(self.connections[number].link.room());
        if self.random.one_in(self.scenario.cut) {
            bytes = 1 + self.random.below(bytes);
        }
        let bytes: Vec<u8> = echo.drain(..bytes).collect();
        if echo.is_empty() {
            socket.pop();
        }
        drop(program);
        self.totals.bytes_echoed += bytes.len() as u64;
        self.put(number, &bytes);
    }
}
