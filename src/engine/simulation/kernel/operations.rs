//! The operations: from a submission to its completion.
//!
//! An operation may do less than it could, end when it might go on, or break its connection, as the
//! scenario says. What the pump knows of that is not decided here.

use rustix::io::Errno;

use super::{Connection, Flight, Kernel, Submission};
use crate::engine::ring::{Completion, Further, Patience, Received, Reply};

impl Kernel {
    pub(super) fn push(&mut self, submission: Submission) {
        self.submissions.push_back(submission);
        // A full queue is submitted immediately.
        if self.random.one_in(100) && !self.scenario.is_sqpoll {
            self.submit();
        }
    }

    pub(super) fn submit(&mut self) {
        while let Some(submission) = self.submissions.pop_front() {
            self.execute(submission);
        }
    }

    pub(super) fn execute(&mut self, submission: Submission) {
        self.trace(&submission);
        match submission {
            Submission::Accept(listener) => self.listeners[listener].accept = Flight::Armed,
            Submission::CancelAccept(listener) => {
                if self.listeners[listener].accept == Flight::Armed {
                    self.listeners[listener].accept = Flight::Over;
                    self.completed.push_back(Completion::Accepted {
                        listener: listener as u32,
                        result: Err(Errno::CANCELED),
                        further: Further::Over,
                    });
                }
            }
            Submission::Receive(number) => {
                self.connections[number].receive = Flight::Armed;
                self.connections[number].is_pausing = false;
                self.connections[number].is_deaf = false;
            }
            Submission::ReceiveOnce(number) => self.receive_some(number),
            // Between two reads there is nothing to wait for.
            Submission::PauseReceive(number) if self.random.one_in(4) => {
                self.execute(Submission::CancelReceive(number));
            }
            Submission::PauseReceive(number) => self.connections[number].is_pausing = true,
            Submission::CancelReceive(number) => {
                if self.connections[number].receive == Flight::Armed {
                    let received = Received::Failed(Errno::CANCELED);
                    self.post_received(number, received, Further::Over);
                }
            }
            Submission::Send(number) => self.start_send(number),
            Submission::CancelSend(number) => {
                if self.connections[number].send == Flight::Armed {
                    self.end_send(number, None);
                }
            }
            Submission::Watch(number) => self.connections[number].watch = Flight::Armed,
            Submission::CancelWatch(number) => {
                if self.connections[number].watch == Flight::Armed {
                    self.hang_up(number);
                }
            }
            Submission::Verify(number) => {
                let connection = &self.connections[number];
                if connection.link.is_failed() || connection.link.is_shut() {
                    let id = connection.id.expect("it has a slot");
                    self.completed.push_back(Completion::Broken { id });
                }
            }
            Submission::Close(number) => self.connections[number].close = Flight::Armed,
        }
    }

    fn start_send(&mut self, number: usize) {
        let (reply, patience) = self.connections[number].reply.as_ref().expect("it is being sent");
        let length = reply.len();
        match patience {
            Patience::Unlimited => self.connections[number].send = Flight::Armed,
            Patience::None => {
                let failure = if self.fails(number) {
                    Some(self.random.pick(&[Errno::PIPE, Errno::CONNRESET]))
                } else {
                    let is_cut = self.random.one_in(self.scenario.cut);
                    let most = if is_cut { self.random.below(length) } else { length };
                    self.transmit(number, most);
                    None
                };
                let completion = self.connections[number].end_send(failure);
                if self.scenario.is_sqpoll {
                    self.completed.push_back(completion);
                } else {
                    self.quick.push(completion);
                }
            }
        }
    }

    pub(super) fn receive_some(&mut self, number: usize) {
        let &Connection { ref link, is_pausing, is_single, piece, place, .. } =
            &self.connections[number];
        let is_reset = link.is_failed();
        let mut available = link.receivable();
        let mut has_ended = link.has_peer_ended();
        if let Some(place) = place {
            let mut program = self.program.borrow_mut();
            let socket = program.socket_mut(place);
            socket.poke();
            available = socket.receivable();
            has_ended &= socket.has_seen_all();
        }
        // The kernel takes a buffer before it looks at the socket. A ring without flags for buffers
        // makes one whenever none is ready.
        if self.buffers.ready() == 0 && self.scenario.is_patient {
            self.buffers.add();
        }
        if self.buffers.ready() == 0 {
            return self.post_received(number, Received::NoBuffer, Further::Over);
        }
        if self.random.one_in(4 * self.scenario.over) {
            let received = Received::Failed(Errno::CANCELED);
            return self.post_received(number, received, Further::Over);
        }
        if is_reset && (available == 0 || self.random.one_in(2)) {
            let received = Received::Failed(Errno::CONNRESET);
            return self.post_received(number, received, Further::Over);
        }
        if available == 0 && has_ended {
            return self.post_received(number, Received::End, Further::Over);
        }
        if available == 0 {
            // A receive that waits was woken too early, and waits on.
            if is_single {
                let received = Received::Failed(Errno::AGAIN);
                self.post_received(number, received, Further::Over);
            }
            return;
        }
        let mut bytes = available.min(self.buffers.room());
        if piece > 0 {
            bytes = bytes.min(piece);
        }
        if self.random.one_in(self.scenario.cut) {
            bytes = 1 + self.random.below(bytes);
        }
        let is_over =
            self.random.one_in(self.scenario.over) || is_pausing || is_single || piece > 0;
        let further = if is_over { Further::Over } else { Further::More };
        let received = self.fill(number, bytes);
        // The kernel looked at the socket once, for the bytes and for the reset after them.
        self.connections[number].is_deaf =
            is_reset && bytes == available && further == Further::More && self.random.one_in(2);
        self.post_received(number, received, further);
    }

    /// Moves bytes from the socket to a buffer.
    fn fill(&mut self, number: usize, bytes: usize) -> Received {
        let is_full = bytes == self.buffers.room();
        let connection = &mut self.connections[number];
        let taken = connection.link.receive(bytes);
        let filled = match connection.place {
            None => self.buffers.fill(&taken),
            // What the program has echoed does not count, and the link may not know of it.
            Some(place) => {
                let mut program = self.program.borrow_mut();
                self.buffers.fill(&program.socket_mut(place).receive(bytes))
            }
        };
        connection.is_half_received = is_full || bytes == connection.piece;
        Received::Data { lease: filled.expect("one is ready"), bytes: bytes as u32 }
    }

    fn post_received(&mut self, number: usize, received: Received, further: Further) {
        let connection = &mut self.connections[number];
        if further == Further::Over {
            connection.receive = Flight::Over;
        }
        let id = connection.id();
        self.completed.push_back(Completion::Received { id, received, further });
    }

    pub(super) fn send_some(&mut self, number: usize) {
        if self.fails(number) {
            let failure = self.random.pick(&[Errno::PIPE, Errno::CONNRESET]);
            return self.end_send(number, Some(failure));
        }
        let most = if self.random.one_in(self.scenario.cut) {
            self.random.below(1000)
        } else {
            usize::MAX
        };
        self.transmit(number, most);
        self.end_send(number, None);
    }

    /// Moves at most `most` bytes of the reply to the socket.
    fn transmit(&mut self, number: usize, most: usize) {
        let connection = &mut self.connections[number];
        let (reply, _) = connection.reply.as_ref().expect("it is being sent");
        let count = (reply.len() - connection.done).min(connection.link.room()).min(most);
        let all = match reply {
            Reply::Pinned(pinned) => {
                let start = pinned.range().start - pinned.lease().range().start;
                &self.buffers.bytes(pinned.lease())[start..start + reply.len()]
            }
            Reply::Heap(bytes) => &bytes[..],
        };
        let bytes = all[connection.done..connection.done + count].to_vec();
        connection.done += count;
        if connection.ping_left > 0 {
            connection.ping_left -= count;
            connection.link.ping(count);
            self.note_written(number);
        } else {
            self.put(number, &bytes);
        }
    }

    /// The socket takes these bytes, for which it has room.
    pub(super) fn put(&mut self, number: usize, bytes: &[u8]) {
        self.catch_up();
        let connection = &mut self.connections[number];
        let outcome = connection.link.send(bytes, self.now, &mut self.random);
        if let Err(wrong) = outcome {
            panic!("connection {number} got {wrong}: {connection}");
        }
        self.note_written(number);
    }

    /// Shows the program what was given to the socket.
    fn note_written(&self, number: usize) {
        let Connection { link, place, .. } = &self.connections[number];
        if let &Some(place) = place {
            let mut program = self.program.borrow_mut();
            let socket = program.socket_mut(place);
            socket.written = link.taken_to_send();
            socket.acknowledged = link.acknowledged();
        }
    }

    /// Whether the connection is broken; sometimes it breaks just now.
    pub(super) fn fails(&mut self, number: usize) -> bool {
        let breaks = self.random.one_in(self.scenario.breaks);
        let link = &mut self.connections[number].link;
        if breaks {
            link.break_off();
        }
        link.is_failed()
    }

    fn end_send(&mut self, number: usize, failure: Option<Errno>) {
        let completion = self.connections[number].end_send(failure);
        self.completed.push_back(completion);
    }

    pub(super) fn hang_up(&mut self, number: usize) {
        let connection = &mut self.connections[number];
        connection.watch = Flight::Over;
        let id = connection.id();
        self.completed.push_back(Completion::HungUp { id });
    }
}

impl Connection {
    /// Ends the send, which has failed if it has sent nothing.
    fn end_send(&mut self, failure: Option<Errno>) -> Completion {
        self.send = Flight::Over;
        let (reply, _) = self.reply.take().expect("it is being sent");
        let bytes = std::mem::take(&mut self.done) as u32;
        let result = failure.filter(|_| bytes == 0).map_or(Ok(bytes), Err);
        let (sent, bytes) = reply.ended(result, |lease| self.spent = Some(lease));
        Completion::Sent { id: self.id(), sent, bytes }
    }
}
