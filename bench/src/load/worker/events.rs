//! What a thread does when something happens on one of its connections: it sends, takes what has come,
//! closes, opens again, or gives the connection up.
//!
//! Nothing here waits. The phases of `worker.rs` decide when to send and when to stop.

use std::io::{ErrorKind, Read as _};

use rustix::event::epoll::{self, EventData, EventFlags};

use super::super::connection::{ClosedLoop, More, State};
use super::super::judge::{Verdict, judge};
use super::super::opener::{Link, Reopening};
use super::super::schedule::now_ns;
use super::{Phase, Worker};
use crate::problem::Problem;
use crate::session::{Event, Form};
use crate::verdict::{Answer, End, Farewell};

/// Receives from a connection, at most, before the others have their turn and the time is looked at: a
/// server may send without end.
const RECEIVES_AT_ONCE: usize = 4;

impl Worker<'_> {
    /// Writes messages that are to be sent, as far as there is room.
    pub(super) fn transmit(&mut self, index: usize) {
        loop {
            let connection = &mut self.connections[index];
            let closed_loop = match self.phase {
                Phase::Exchanging => ClosedLoop::Running,
                Phase::Waiting | Phase::Draining | Phase::Closing => ClosedLoop::Over,
            };
            let more = connection.compose(self.plan, &self.pace, closed_loop, &mut self.payloads);
            self.flush(index);
            if more == More::No || self.connections[index].has_output() {
                return;
            }
        }
    }

    /// Writes what waits, and asks to be told when the socket has room if not all can be written.
    pub(super) fn flush(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        if let Err(error) = connection.flush() {
            return self.broken(index, error);
        }
        let waits = connection.has_output();
        if let Some(link) = &connection.link
            && waits != connection.wants_room
        {
            let flags = if waits { EventFlags::IN | EventFlags::OUT } else { EventFlags::IN };
            let data = EventData::new_u64(index as u64);
            connection.wants_room = waits;
            if let Err(error) = epoll::modify(&self.epoll, &link.stream, data, flags) {
                self.fail(index, &Problem::Lost(error.into()));
            }
        }
    }

    /// Takes what has come on a connection.
    pub(super) fn receive(&mut self, index: usize) {
        for _ in 0..RECEIVES_AT_ONCE {
            let Some(link) = &mut self.connections[index].link else { return };
            let room = link.session.room();
            let length = room.len();
            let count = match link.stream.read(room) {
                Ok(0) => return self.end_of_stream(index),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return self.broken(index, error),
            };
            let now = now_ns();
            link.session.filled(count);
            if let Err(problem) = self.take_events(index, now) {
                return self.fail(index, &problem);
            }
            // With less than there is room for, nothing is left. What is left nevertheless is told
            // again.
            if count < length {
                break;
            }
        }
        let connection = &self.connections[index];
        match connection.state {
            State::Leaving if connection.ledger.in_flight() == 0 => self.start_closing(index),
            // An echo makes room for the next message of a closed loop, and a pong waits to leave.
            State::Open | State::Leaving | State::Closing(_) => self.transmit(index),
            State::Reopening | State::Ended | State::Failed => {}
        }
    }

    fn take_events(&mut self, index: usize, now: u64) -> Result<(), Problem> {
        loop {
            let connection = &mut self.connections[index];
            let Some(link) = &mut connection.link else { return Ok(()) };
            let kind = self.payloads.kind(connection.number, connection.ledger.next());
            match link.session.next(kind.size)? {
                None => return Ok(()),
                Some(Event::Ping(payload)) => connection.pinged(payload),
                Some(event @ Event::Close(..)) if matches!(connection.state, State::Closing(_)) => {
                    connection.closing.note(&event);
                }
                Some(Event::Close(code, frame)) => {
                    // RFC 6455 section 5.5.1: a close frame is answered, typically with its code.
                    let payload = code.map(u16::to_be_bytes).unwrap_or_default();
                    let payload = if frame.len() > 2 { &payload[..] } else { &[] };
                    connection.close(payload);
                    self.flush(index);
                    return Err(Problem::Closed(code));
                }
                Some(Event::Echo(form)) => self.take_echo(index, form, now),
            }
        }
    }

    /// Counts what the server has sent.
    fn take_echo(&mut self, index: usize, form: Form, now: u64) {
        let connection = &mut self.connections[index];
        let Some(link) = &connection.link else { return };
        let account = (connection.number, &mut connection.ledger);
        let verdict = judge(self.plan, &mut self.payloads, account, (&link.session, form));
        let mut tally = self.tally.lock().expect("no thread panics");
        match verdict {
            // It was counted as lost when the wait for it ended.
            Verdict::Right(..) | Verdict::Wrong(..) if self.phase == Phase::Closing => {}
            Verdict::Right(message, bytes) => {
                let latency_ns = now.saturating_sub(message.from_ns);
                tally.echoed(self.window.part(message.from_ns), latency_ns, bytes);
            }
            Verdict::Wrong(message, complaint) => {
                tally.counts(self.window.part(message.from_ns)).wrong += 1;
                tally.note(connection.number, &complaint);
            }
            Verdict::Repeated(number) => {
                tally.counts(self.window.part(now)).unasked += 1;
                let problem = format_args!("message {number} was echoed more than once");
                tally.note(connection.number, &problem);
            }
            // RFC 6455 section 7.1.1: a server may still send until its own close frame.
            Verdict::Foreign if matches!(connection.state, State::Closing(_)) => {
                connection.closing.note(&Event::Echo(form));
            }
            Verdict::Foreign => {
                tally.counts(self.window.part(now)).unasked += 1;
                let bytes = link.session.echo().len();
                let problem = format_args!("the server sent {bytes} bytes that nothing asked for");
                tally.note(connection.number, &problem);
            }
        }
    }

    /// Closes a connection on which nothing more is sent.
    pub(super) fn start_closing(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        let Some(link) = &mut connection.link else { return };
        connection.state = State::Closing(now_ns());
        if self.plan.is_plain() {
            connection.closing.answer = Answer::NotExpected;
            if let Err(error) = link.stream.end() {
                return self.broken(index, error);
            }
        }
        // RFC 6455 section 7.4.1: 1000 means that the purpose of the connection is fulfilled.
        connection.close(&1000u16.to_be_bytes());
        self.flush(index);
    }

    /// Takes note that a connection was reset, or broke in another way.
    fn broken(&mut self, index: usize, error: std::io::Error) {
        if matches!(self.connections[index].state, State::Closing(_)) {
            return self.closed(index, End::Reset);
        }
        self.fail(index, &Problem::Lost(error));
    }

    /// Takes note that the server has closed its side of a connection.
    fn end_of_stream(&mut self, index: usize) {
        if matches!(self.connections[index].state, State::Closing(_)) {
            return self.closed(index, End::Closed);
        }
        self.fail(index, &Problem::Closed(None));
    }

    /// Notes how a connection was closed, and has it opened again if there is more to send.
    pub(super) fn closed(&mut self, index: usize, end: End) {
        let connection = &mut self.connections[index];
        let farewell = connection.closing.judge(end);
        self.tally.lock().expect("no thread panics").farewells.note(farewell);
        match &self.reopening {
            Some(reopening) if self.phase != Phase::Closing => {
                connection.begin_life();
                reopening.reopen(index, connection.number, connection.life);
            }
            Some(_) | None => self.end(index),
        }
    }

    pub(super) fn end(&mut self, index: usize) {
        self.connections[index].disconnect(State::Ended);
        self.left -= 1;
    }

    /// Takes connections that were opened again.
    pub(super) fn take_opened(&mut self) {
        let opened = self.reopening.as_ref().map(Reopening::opened);
        for (index, link) in opened.into_iter().flatten() {
            if self.connections[index].is_over() {
                continue;
            }
            match link {
                Ok(link) => {
                    self.connections[index].state = State::Open;
                    self.adopt(index, link);
                    self.tally.lock().expect("no thread panics").reconnects += 1;
                    self.transmit(index);
                }
                // The load was told to stop, which is no failure of the server.
                Err(Problem::Stopped) => self.end(index),
                Err(problem) => self.fail(index, &problem),
            }
        }
    }

    /// Watches a connection that is open.
    pub(super) fn adopt(&mut self, index: usize, link: Link) {
        let data = EventData::new_u64(index as u64);
        match epoll::add(&self.epoll, &link.stream, data, EventFlags::IN) {
            Ok(()) => self.connections[index].link = Some(link),
            Err(error) => self.fail(index, &Problem::Lost(error.into())),
        }
    }

    /// Gives a connection up. What is in flight on it is lost, and what is due later is not sent; if
    /// there is neither, the measurement stands and only the closing was not as it should be.
    pub(super) fn fail(&mut self, index: usize, problem: &Problem) {
        let connection = &mut self.connections[index];
        if connection.is_over() {
            return;
        }
        if matches!(connection.state, State::Closing(_)) {
            let end = if let Problem::Broken(violation) = problem {
                End::Broken(*violation)
            } else {
                End::Reset
            };
            return self.closed(index, end);
        }
        let is_last_phase = matches!(self.phase, Phase::Draining | Phase::Closing);
        if is_last_phase && connection.is_settled() {
            if connection.state != State::Reopening {
                self.tally.lock().expect("no thread panics").farewells.note(Farewell::Early);
            }
            return self.end(index);
        }
        connection.disconnect(State::Failed);
        self.left -= 1;
        let mut tally = self.tally.lock().expect("no thread panics");
        tally.failed += 1;
        tally.note(self.connections[index].number, problem);
    }

    /// Notes the farewells of connections that the server has not closed in time.
    pub(super) fn note_left_open(&self) {
        let mut tally = self.tally.lock().expect("no thread panics");
        for connection in self.connections.iter().filter(|connection| !connection.is_over()) {
            tally.farewells.note(connection.closing.judge(End::TimedOut));
        }
    }
}
