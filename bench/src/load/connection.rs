//! One connection of a load: its state, its unsent output and its ledger.
//!
//! However far a connection is behind its schedule, it takes no more memory than [`OUTPUT_MAX`] and
//! one message: due messages are only counted, and composed when there is room for them. The
//! connection does not know epoll, and it decides neither when to send nor when to end.

use std::io::{self, ErrorKind, Write as _};

use ringecho::protocol::frame::Opcode;

use super::Plan;
use super::ledger::{Ledger, Pace};
use super::opener::Link;
use super::payloads::Payloads;
use super::schedule::now_ns;
use crate::verdict::Closing;

/// No message is composed while this many bytes or more wait for room in the socket.
const OUTPUT_MAX: usize = 256 << 10;

/// What a connection is about to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Send and receive.
    Open,
    /// Close, as soon as all echoes have come.
    Leaving,
    /// Wait for the server to close, since this time.
    Closing(u64),
    /// Go on once it is open again.
    Reopening,
    /// Nothing more.
    Ended,
    /// Nothing more, after a problem.
    Failed,
}

/// Whether a closed loop still answers echoes with new messages. An open loop has its schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ClosedLoop {
    Running,
    Over,
}

/// Whether more messages could be composed once the output is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum More {
    Yes,
    No,
}

/// A connection, with the messages that it still has to send and receive.
pub(super) struct Connection {
    /// Its number among the connections of all workers.
    pub(super) number: usize,
    pub(super) state: State,
    pub(super) link: Option<Link>,
    pub(super) ledger: Ledger,
    /// In an open loop, how many messages have fallen due; they are sent or wait for room.
    pub(super) due: u64,
    /// What the server did since this side began to close.
    pub(super) closing: Closing,
    /// Whether epoll watches for room in the socket.
    pub(super) wants_room: bool,
    /// How often it was opened again, and how many messages were sent since.
    pub(super) life: u64,
    life_sent: u64,
    /// Bytes for the socket; those before `written` are sent.
    output: Vec<u8>,
    written: usize,
    /// What the pong repeats that is to be sent.
    ping: Option<Vec<u8>>,
}

impl Connection {
    pub(super) fn new(number: usize, pace: Pace) -> Connection {
        Connection {
            number,
            state: State::Open,
            link: None,
            ledger: Ledger::new(number, pace),
            due: 0,
            closing: Closing::default(),
            wants_room: false,
            life: 0,
            life_sent: 0,
            output: Vec::new(),
            written: 0,
            ping: None,
        }
    }

    /// Whether it has ended or failed.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.state, State::Ended | State::Failed)
    }

    /// Whether all due messages are sent and answered, or it is over.
    pub(super) fn is_settled(&self) -> bool {
        self.is_over() || (self.ledger.in_flight() == 0 && self.ledger.sent() >= self.due)
    }

    /// Whether bytes wait for the socket to have room.
    pub(super) fn has_output(&self) -> bool {
        self.written < self.output.len()
            || self.link.as_ref().is_some_and(|link| link.stream.has_pending())
    }

    /// Writes messages to the output until it is long enough or no more may be sent.
    pub(super) fn compose(
        &mut self,
        plan: &Plan,
        pace: &Pace,
        closed_loop: ClosedLoop,
        payloads: &mut Payloads,
    ) -> More {
        self.answer_ping();
        while self.state == State::Open {
            let may_send = match pace {
                Pace::Open(_) => self.ledger.sent() < self.due,
                Pace::Closed { .. } => {
                    closed_loop == ClosedLoop::Running
                        && self.ledger.in_flight() < plan.pipeline as u64
                }
            };
            if !may_send {
                return More::No;
            }
            if self.output.len() - self.written >= OUTPUT_MAX {
                return More::Yes;
            }
            let Some(link) = &mut self.link else { return More::No };
            let number = self.ledger.sent();
            let kind = payloads.kind(self.number, number);
            let payload = payloads.payload(&kind, self.number, number);
            link.session.message(&mut self.output, kind.form, payload, kind.fragments);
            self.ledger.send(now_ns);
            self.life_sent += 1;
            if plan.reconnect_every == Some(self.life_sent) {
                self.state = State::Leaving;
            }
        }
        More::No
    }

    /// Notes that a ping is to be answered. Of several that wait, the last is (RFC 6455 section 5.5.3),
    /// so that a server that reads nothing cannot make pongs pile up.
    pub(super) fn pinged(&mut self, payload: Vec<u8>) {
        self.ping = Some(payload);
    }

    /// Appends the pong that is to be sent, if there is room for it.
    fn answer_ping(&mut self) {
        if self.output.len() - self.written < OUTPUT_MAX
            && let Some(payload) = self.ping.take()
        {
            self.control(Opcode::Pong, &payload);
        }
    }

    /// Appends a close frame, after the pong that is to be sent.
    pub(super) fn close(&mut self, payload: &[u8]) {
        self.answer_ping();
        self.control(Opcode::Close, payload);
    }

    /// Appends a control frame to what is to be written.
    fn control(&mut self, opcode: Opcode, payload: &[u8]) {
        if let Some(link) = &mut self.link {
            link.session.control(&mut self.output, opcode, payload);
        }
    }

    /// Writes as much of the output as the socket has room for.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        let Some(link) = &mut self.link else { return Ok(()) };
        link.stream.flush()?;
        while self.written < self.output.len() {
            match link.stream.write(&self.output[self.written..]) {
                Ok(count) => self.written += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        if self.written == self.output.len() {
            self.output.clear();
            self.written = 0;
        } else if self.written >= OUTPUT_MAX {
            self.output.drain(..self.written);
            self.written = 0;
        }
        Ok(())
    }

    /// Drops the socket and the unsent output, and enters `state`.
    pub(super) fn disconnect(&mut self, state: State) {
        self.state = state;
        self.link = None;
        self.output = Vec::new();
        self.written = 0;
        self.ping = None;
        self.wants_room = false;
        self.closing = Closing::default();
    }

    /// Drops the socket, to be opened once more.
    pub(super) fn begin_life(&mut self) {
        self.disconnect(State::Reopening);
        self.life += 1;
        self.life_sent = 0;
    }
}
