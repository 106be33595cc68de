//! The kernel as a ring: what the pump asks of it.
//!
//! Each rule of [`Ring`] is checked here, where the pump calls it.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use super::{Flight, Kernel, Scenario, Submission};
use crate::engine::pump::REFUSED_MAX;
use crate::engine::ring::{
    ADMISSIONS_MAX, Blocking, Completion, Lease, Patience, Reply, Ring, Socket, Wait,
};
use crate::engine::simulation::buffers::Place;
use crate::offload;
use crate::offload::record::Record;
use crate::protocol::Limits;
use crate::slab::ConnectionId;

/// The ping that the server sends of its own accord.
const PING: [u8; 2] = *b"\x89\0";

impl Ring for Kernel {
    type Place = offload::Place;

    fn now(&self) -> Duration {
        self.now
    }

    fn peer_address(&self, socket: &Socket) -> Option<IpAddr> {
        let number = self.descriptors[socket.0 as usize].expect("an open socket");
        Some(Ipv4Addr::from_bits(number as u32 % 3).into())
    }

    fn listeners(&self) -> u32 {
        self.listeners.len() as u32
    }

    fn accept(&mut self, listener: u32) {
        let number = listener as usize;
        assert!(self.listeners[number].is_open, "an accept on a closed listener");
        let listener = &mut self.listeners[number];
        assert_eq!(listener.accept, Flight::Not, "a second accept in flight");
        assert!(self.now >= listener.rests_until, "an accept while there are no descriptors");
        listener.accept = Flight::Queued;
        listener.is_cancelled = false;
        self.push(Submission::Accept(number));
    }

    fn cancel_accept(&mut self, listener: u32) {
        let accepting = &mut self.listeners[listener as usize];
        assert_ne!(accepting.accept, Flight::Not, "there is no accept to cancel");
        accepting.is_cancelled = true;
        self.push(Submission::CancelAccept(listener as usize));
    }

    fn close_listener(&mut self, listener: u32, waiting: &mut VecDeque<Socket>) {
        let listener = &mut self.listeners[listener as usize];
        assert_eq!(listener.accept, Flight::Not, "a listener is closed while it accepts");
        assert!(std::mem::take(&mut listener.is_open), "a listener is closed twice");
        for number in std::mem::take(&mut listener.backlog) {
            // Another process may accept it first.
            let is_accepted = !self.random.one_in(4);
            if let Some(socket) = is_accepted.then(|| self.describe(number)).flatten() {
                self.totals.accepted += 1;
                self.unadmitted.push_back(number);
                waiting.push_back(socket);
                continue;
            }
            self.connections[number].link.retire();
            self.active.retain(|&other| other != number);
        }
    }

    fn watch_stop(&mut self) {
        assert_eq!(self.stop, Flight::Not, "the stop is watched twice");
        self.stop = Flight::Armed;
    }

    fn receive(&mut self, id: ConnectionId, socket: &Socket) {
        let number = self.operate(id, socket);
        let connection = &mut self.connections[number];
        assert_eq!(connection.receive, Flight::Not, "a second receive in flight");
        assert_eq!(connection.place, None, "a receive waits on an offloaded socket");
        connection.receive = Flight::Queued;
        connection.is_single = false;
        connection.piece = 0;
        self.push(Submission::Receive(number));
    }

    fn receive_piece(&mut self, id: ConnectionId, socket: &Socket, bytes: usize) {
        assert!(bytes > 0, "a receive of nothing");
        self.receive(id, socket);
        let number = self.find(id).expect("a connection with a slot");
        self.connections[number].piece = bytes;
    }

    fn pause_receive(&mut self, id: ConnectionId) {
        if !self.scenario.is_patient {
            return self.cancel_receive(id);
        }
        let number = self.find(id).expect("a connection with a slot");
        self.push(Submission::PauseReceive(number));
    }

    fn cancel_receive(&mut self, id: ConnectionId) {
        // Its last completion may come right after the one that the pump is looking at.
        let number = self.cancel(id);
        self.push(Submission::CancelReceive(number));
    }

    fn send(
        &mut self,
        id: ConnectionId,
        socket: &Socket,
        reply: Reply,
        patience: Patience,
    ) -> Patience {
        let number = self.operate(id, socket);
        if let Reply::Pinned(pinned) = &reply {
            self.buffers.pass(pinned.lease(), Place::Lease, Place::Reply);
            assert_eq!(patience, Patience::None, "a pinned buffer waits for a peer");
        }
        let connection = &mut self.connections[number];
        assert_eq!(connection.send, Flight::Not, "a second send in flight");
        if let Some(place) = connection.place {
            let program = self.program.borrow();
            let socket = program.socket(place);
            assert!(!socket.is_echoing(), "a send could overtake an echo: {connection}");
        }
        assert!(!connection.link.is_shut(), "a send after the end of the stream");
        assert!(!reply.is_empty(), "a send of nothing");
        if connection.ping_left > 0 {
            assert_eq!(reply.len(), connection.ping_left, "something else than the rest of a ping");
        } else if let Reply::Heap(bytes) = &reply
            && bytes[..] == PING
            && connection.link.is_at_boundary()
        {
            assert!(connection.link.may_be_pinged(self.now), "an early ping: {connection}");
            connection.ping_left = PING.len();
            self.totals.pings += 1;
        }
        let patience = if self.scenario.is_patient { Patience::Unlimited } else { patience };
        connection.send = Flight::Queued;
        connection.reply = Some((reply, patience));
        self.push(Submission::Send(number));
        patience
    }

    fn cancel_send(&mut self, id: ConnectionId) {
        let number = self.cancel(id);
        self.push(Submission::CancelSend(number));
    }

    fn shut_down(&mut self, socket: &Socket) {
        self.catch_up();
        let number = self.descriptors[socket.0 as usize].expect("an open socket");
        let connection = &mut self.connections[number];
        assert_eq!(connection.send, Flight::Not, "a shutdown with a send in flight");
        assert!(!connection.link.is_shut(), "a second shutdown");
        assert!(
            connection.link.may_shut_down(self.now),
            "connection {number} is shut down before all is said: {connection}"
        );
        connection.link.shut_down(self.now);
    }

    fn close(&mut self, id: ConnectionId, socket: Socket) {
        self.catch_up();
        let number = self.operate(id, &socket);
        let connection = &mut self.connections[number];
        let is_given_up = connection.link.is_given_up(self.now, self.stopped);
        if let Some(place) = connection.place {
            let program = self.program.borrow();
            let socket = program.socket(place);
            assert!(socket.is_detached(), "a close of a socket that is offloaded");
            let may_echo = socket.is_echoing() || socket.is_deciding();
            assert!(is_given_up || !may_echo, "a close loses an echo");
        }
        assert_eq!(connection.watch, Flight::Not, "a close while the peer is watched");
        assert_eq!(connection.send, Flight::Not, "a close with a send in flight");
        assert_eq!(connection.receive, Flight::Not, "a close with a receive in flight");
        let is_fulfilled = connection.link.is_fulfilled();
        assert!(
            is_fulfilled || is_given_up,
            "connection {number} is closed before its time: {connection}"
        );
        self.totals.fulfilled += u64::from(is_fulfilled);
        connection.close = Flight::Queued;
        self.push(Submission::Close(number));
    }

    fn discard(&mut self, socket: Socket) {
        let number = self.descriptors[socket.0 as usize].take().expect("an open socket");
        self.admit_before(number);
        let is_unwanted = self.is_unwanted();
        self.count_admission(number);
        let connection = &mut self.connections[number];
        assert!(is_unwanted, "connection {number} is discarded: {connection}");
        assert_eq!(connection.id, None, "a connection with operations is discarded");
        connection.fd = None;
        self.retire(number);
    }

    fn attach(&mut self, id: ConnectionId, socket: &Socket) -> Option<(offload::Place, u64)> {
        let number = self.operate(id, socket);
        let connection = &mut self.connections[number];
        let link = &mut connection.link;
        assert_eq!(connection.place, None, "a socket is offloaded twice");
        assert_eq!(connection.send, Flight::Not, "a socket is offloaded with a send in flight");
        assert!(
            !connection.is_half_received && link.is_all_reported(),
            "connection {number} is offloaded with bytes half received: {connection}"
        );
        assert!(!link.is_shut(), "a socket is offloaded after the end of the stream");
        connection.place = self.program.borrow_mut().attach(link.unseen());
        link.arrive();
        let place = connection.place?;
        self.totals.offloaded += 1;
        self.totals.chosen += u64::from(self.scenario.offload == offload::Policy::Auto);
        let mut program = self.program.borrow_mut();
        let socket = program.socket_mut(place);
        socket.acknowledged = link.acknowledged();
        socket.written = link.taken_to_send();
        Some((offload::Place(place as u32), link.taken_to_send() as u64))
    }

    fn detach(&mut self, place: offload::Place, socket: &Socket) {
        let number = self.descriptors[socket.0 as usize].expect("an open socket");
        assert_eq!(self.connections[number].place, Some(place.0 as usize), "another's place");
        let mut program = self.program.borrow_mut();
        program.socket_mut(place.0 as usize).detach();
    }

    fn receive_once(&mut self, _place: &offload::Place, id: ConnectionId, socket: &Socket) {
        let number = self.operate(id, socket);
        let connection = &mut self.connections[number];
        assert_eq!(connection.receive, Flight::Not, "a second receive in flight");
        assert!(connection.place.is_some(), "a single receive on a socket that is not offloaded");
        connection.receive = Flight::Queued;
        connection.is_single = true;
        connection.piece = 0;
        connection.is_pausing = false;
        self.push(Submission::ReceiveOnce(number));
    }

    fn record(&self, place: &offload::Place) -> &Record {
        &self.records[place.0 as usize]
    }

    fn written(&self, _place: &offload::Place, socket: &Socket) -> u64 {
        let number = self.descriptors[socket.0 as usize].expect("an open socket");
        self.connections[number].link.written(self.now) as u64
    }

    fn watch(&mut self, _place: &offload::Place, id: ConnectionId, socket: &Socket) {
        let number = self.operate(id, socket);
        assert_eq!(self.connections[number].watch, Flight::Not, "a second watch");
        self.connections[number].watch = Flight::Queued;
        self.push(Submission::Watch(number));
    }

    fn cancel_watch(&mut self, _place: &offload::Place, id: ConnectionId) {
        let number = self.cancel(id);
        self.push(Submission::CancelWatch(number));
    }

    fn verify(&mut self, id: ConnectionId, socket: &Socket) {
        let number = self.operate(id, socket);
        assert!(!self.connections[number].link.is_shut(), "what is shut down cannot be verified");
        self.push(Submission::Verify(number));
    }

    fn bytes<'a>(&'a mut self, lease: &'a mut Lease) -> &'a mut [u8] {
        self.buffers.bytes_mut(lease)
    }

    fn recycle(&mut self, lease: Lease) {
        self.buffers.recycle(lease, Place::Lease);
    }

    fn buffers_ready(&self) -> usize {
        self.buffers.seem_ready()
    }
}

impl Blocking for Kernel {
    fn enter(&mut self, wait: Wait, completions: &mut Vec<Completion>) -> io::Result<()> {
        assert!(completions.is_empty(), "the pump has not looked at all completions");
        self.check_accepting();
        let is_behind = !self.unadmitted.is_empty();
        assert!(!is_behind || wait == Wait::Not, "the pump waits, and connections wait for it");
        let Scenario { limits, is_heavy, block, compressed, bytes_max, .. } = &self.scenario;
        // A reply in several blocks goes out in several turns, as a long one does.
        let piece = Limits::PIECE as usize;
        let may_yield = limits.is_some()
            || *is_heavy
            || *compressed > 0
            || *block < piece
            || *bytes_max > piece / 2;
        // The handshakes of several connections go on in several cycles.
        let has_layers = self.scenario.has_layers();
        let may_hurry = is_behind || may_yield || has_layers || !self.scenario.is_patient;
        assert!(wait != Wait::Not || may_hurry, "no send is over at once");
        self.admissions = 0;
        let late = self.random.below(3);
        for _ in 0..late {
            self.step();
        }
        if !self.scenario.is_sqpoll {
            self.submit();
        }
        match wait {
            Wait::Not => {
                for _ in 0..self.random.below(3) {
                    self.step();
                }
            }
            Wait::Until(until) => self.wait(until),
        }
        self.catch_up();
        self.report(completions);
        Ok(())
    }
}

impl Kernel {
    /// The pump serves, refuses or discards the connection that has waited for longest.
    fn count_admission(&mut self, number: usize) {
        assert_eq!(self.unadmitted.pop_front(), Some(number), "a connection is served out of turn");
        self.admissions += 1;
        let is_bounded = self.admissions <= ADMISSIONS_MAX || self.stopped.is_some();
        assert!(is_bounded, "connections that come in keep the others waiting");
    }

    /// Whether the pump has to close the next connection immediately.
    fn is_unwanted(&self) -> bool {
        self.admitted >= self.scenario.limit && self.refused == REFUSED_MAX
    }

    /// While memory is short, the pump serves connections without an operation. It did so with those that came
    /// before this one.
    fn admit_before(&mut self, number: usize) {
        while self.scenario.memory_max < usize::MAX
            && let Some(&first) = self.unadmitted.front()
            && first != number
        {
            self.admit(first);
        }
    }

    /// The pump serves a connection, or refuses it.
    pub(super) fn admit(&mut self, number: usize) {
        assert!(!self.is_unwanted(), "connection {number} is served, and must not be");
        self.count_admission(number);
        self.connections[number].is_admitted = true;
        let link = &mut self.connections[number].link;
        if self.admitted < self.scenario.limit {
            link.admit(self.now);
            self.admitted += 1;
        } else {
            link.refuse(self.now);
            self.refused += 1;
        }
    }

    /// Checks that each listener accepts, unless it may rest. Under `sqpoll`, an accept that was cancelled
    /// may take a while to end, also when no connection waits any more.
    fn check_accepting(&self) {
        if self.stopped.is_some() || !self.unadmitted.is_empty() {
            return;
        }
        for listener in &self.listeners {
            let is_ending = listener.is_cancelled && !self.scenario.is_sqpoll;
            let is_accepting =
                listener.accept != Flight::Not && !is_ending || self.now < listener.rests_until;
            assert!(is_accepting, "connections wait, and the pump does not accept");
        }
    }

    /// The connection that this id names now.
    pub(super) fn find(&self, id: ConnectionId) -> Option<usize> {
        let number = self.slots.get(id.slot as usize).copied().flatten()?;
        (self.connections[number].id == Some(id)).then_some(number)
    }

    /// The connection of an operation that is cancelled.
    fn cancel(&mut self, id: ConnectionId) -> usize {
        let number = self.find(id).expect("a connection with a slot");
        self.connections[number].link.mark_cancelled(self.now, self.stopped);
        number
    }

    /// The connection of an operation, which must be open and the id's own.
    fn operate(&mut self, id: ConnectionId, socket: &Socket) -> usize {
        let number = self.descriptors.get(socket.0 as usize).copied().flatten();
        let number = number.unwrap_or_else(|| panic!("an operation on closed {socket:?}"));
        let slot = id.slot as usize;
        self.slots.resize(self.slots.len().max(slot + 1), None);
        if self.connections[number].id.is_none() {
            assert!(self.slots[slot].is_none(), "a slot for two connections: {id:?}");
            if !self.connections[number].is_admitted {
                self.admit_before(number);
                self.admit(number);
            }
            self.connections[number].id = Some(id);
            self.slots[slot] = Some(number);
        }
        let connection = &self.connections[number];
        assert_eq!(connection.id, Some(id), "an operation on another's {socket:?}");
        assert_eq!(connection.close, Flight::Not, "an operation while {socket:?} is closed");
        number
    }
}
