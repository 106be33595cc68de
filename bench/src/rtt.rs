//! Round trips: one message at a time on one connection, each echo compared with what was sent.
//!
//! The cases are those of sections 9.7 and 9.8 of the Autobahn test suite: text and binary messages of
//! 0 to 4096 bytes, each case on a new connection. Traffic is counted as the suite counts it: by the
//! sizes of sends and receives.
//!
//! A message costs one send and one receive, with the clock read before the send and after the
//! receive. All other work is done while nothing is in flight. Only a message that does not fit into
//! the socket's buffers takes several sends and receives.

pub mod report;

use std::io;
use std::time::{Duration, Instant};

use ringecho::protocol::frame::Opcode;
use rustix::event::PollFlags;

use crate::latency::Latencies;
use crate::opening::{HANDSHAKE_TIMEOUT, Handshake, Opened, Opening};
use crate::problem::{Problem, Step};
use crate::random::Random;
use crate::session::{Event, Form};
use crate::socket::{CONNECT_TIMEOUT, Deadline, is_transient};
use crate::stop::Stop;
use crate::target::Target;
use crate::verdict::{Answer, Closing, End, Farewell, Sent};
use crate::wire::Traffic;

/// How long a message may take to leave and its echo to come back whole.
pub const ECHO_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the server may take to end the connection after the client's close frame.
pub const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// The same once the user has asked for the end.
const CLOSE_TIMEOUT_STOPPED: Duration = Duration::from_millis(200);
/// Receives, at most, in which a close frame is looked for that says why a connection is lost.
const EXPLANATION_RECEIVES: usize = 16;
/// The payload sizes of the cases, in bytes.
const SIZES: [usize; 6] = [0, 16, 64, 256, 1024, 4096];
/// Digits of a message's number in its payload, if there is room for them.
const STAMP_DIGITS: usize = 8;

/// How the client waits for an echo.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// It sleeps in the kernel.
    Block,
    /// It polls the socket without pause.
    Spin,
}

/// What is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    /// Its name in the suite, or one of our own.
    pub name: String,
    /// The length of each payload, in bytes.
    pub payload_bytes: usize,
    /// Text or binary.
    pub form: Form,
    /// How many messages.
    pub messages: u64,
}

impl Case {
    /// The cases 9.7.1 to 9.8.6, each with `messages` messages.
    pub fn autobahn(messages: u64) -> Vec<Case> {
        let section = |number, form| {
            (1..).zip(SIZES).map(move |(case, payload_bytes)| Case {
                name: format!("9.{number}.{case}"),
                payload_bytes,
                form,
                messages,
            })
        };
        section(7, Form::Text).chain(section(8, Form::Binary)).collect()
    }

    /// A sentence in the words of the suite.
    pub fn description(&self) -> String {
        let Case { payload_bytes, form, messages, .. } = self;
        format!("Send {messages} {form} messages of payload size {payload_bytes}.")
    }
}

/// How long each step may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// Resolving the host name and connecting: [`CONNECT_TIMEOUT`].
    pub connect: Duration,
    /// The opening handshake: [`HANDSHAKE_TIMEOUT`].
    pub handshake: Duration,
    /// A message and its echo: [`ECHO_TIMEOUT`].
    pub echo: Duration,
    /// The closing handshake and the end of the connection: [`CLOSE_TIMEOUT`].
    pub close: Duration,
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        Timeouts {
            connect: CONNECT_TIMEOUT,
            handshake: HANDSHAKE_TIMEOUT,
            echo: ECHO_TIMEOUT,
            close: CLOSE_TIMEOUT,
        }
    }
}

/// One case on one server.
#[derive(Debug, Clone, Copy)]
pub struct Plan<'a> {
    /// The server.
    pub target: &'a Target,
    /// What is sent.
    pub case: &'a Case,
    /// How the client waits.
    pub wait: Wait,
    /// The seed of payloads and masking keys.
    pub seed: u64,
    /// How long each step may take.
    pub timeouts: Timeouts,
}

impl<'a> Plan<'a> {
    /// A plan with a client that sleeps while it waits, and with the default timeouts.
    pub fn new(target: &'a Target, case: &'a Case) -> Plan<'a> {
        Plan { target, case, wait: Wait::Block, seed: 1, timeouts: Timeouts::default() }
    }
}

/// What went over the wire of one connection.
#[derive(Debug, Clone, Default)]
pub struct Wire {
    /// The opening handshake.
    pub handshake: Handshake,
    /// Sends and receives, and frames.
    pub traffic: Traffic,
    /// The close frame that was sent.
    pub close_sent: Vec<u8>,
    /// The close frame that was received.
    pub close_received: Vec<u8>,
    /// The code in it.
    pub close_code: Option<u16>,
    /// Whether the server ended the TCP connection in time.
    pub is_dropped_by_server: bool,
}

/// The outcome of one case on one connection.
#[derive(Debug, Default)]
pub struct Outcome {
    /// The round trips of all messages whose echo was right.
    pub latencies: Latencies,
    /// From the first message to the last right echo.
    pub duration: Duration,
    /// What went over the wire.
    pub wire: Wire,
    /// Why it ended early, unless the stop was requested. What was measured before is kept.
    pub problem: Option<Problem>,
    /// How the server closed the connection, if there was a closing handshake. If that was not clean,
    /// the measurement counts and deserves a warning.
    pub farewell: Option<Farewell>,
    /// What TLS has agreed on; nothing if the connection was plain.
    pub tls: Option<String>,
}

/// Runs a case on a new connection, until it is done or `stop` is requested. An early stop is no
/// problem, and leaves an outcome of fewer messages.
///
/// # Errors
///
/// When the connection cannot be opened. Later problems are in the outcome.
pub fn run(plan: &Plan<'_>, stop: &Stop) -> Result<Outcome, Problem> {
    let opening = Opening {
        connect_timeout: plan.timeouts.connect,
        handshake_timeout: plan.timeouts.handshake,
        ..Opening::new(plan.target, plan.seed)
    };
    let mut outcome = Outcome::default();
    let opened = match opening.open(stop) {
        Ok(opened) => opened,
        Err(Problem::Stopped) => return Ok(outcome),
        Err(problem) => return Err(problem),
    };
    outcome.tls = opened.stream.agreed();
    let mut connection = Connection::new(opened, *plan, stop);
    match connection.measure(&mut outcome).and_then(|()| connection.close()) {
        Ok(farewell) => outcome.farewell = farewell,
        Err(Problem::Stopped) => {}
        Err(problem) => outcome.problem = Some(connection.explain(problem)),
    }
    outcome.wire = connection.wire;
    Ok(outcome)
}

/// A connection that is being measured.
struct Connection<'a> {
    opened: Opened,
    plan: Plan<'a>,
    stop: &'a Stop,
    /// What is sent next or was sent last.
    payload: Vec<u8>,
    wire: Wire,
}

impl<'a> Connection<'a> {
    fn new(mut opened: Opened, plan: Plan<'a>, stop: &'a Stop) -> Connection<'a> {
        let handshake = std::mem::take(&mut opened.handshake);
        let mut wire = Wire::default();
        if plan.target.websocket.is_some() {
            *wire.traffic.sent.entry(handshake.request.len()).or_default() += 1;
            *wire.traffic.received.entry(handshake.response.len()).or_default() += 1;
        }
        wire.handshake = handshake;
        let payload = payload(plan.case.payload_bytes, plan.seed);
        Connection { opened, plan, stop, payload, wire }
    }

    fn measure(&mut self, outcome: &mut Outcome) -> Result<(), Problem> {
        let Plan { case, timeouts, .. } = self.plan;
        let mut output = Vec::with_capacity(case.payload_bytes + 32);
        let begin = Instant::now();
        for number in 0..case.messages {
            if self.stop.is_requested() {
                break;
            }
            stamp(&mut self.payload, number);
            output.clear();
            self.opened.session.message(&mut output, case.form, &self.payload, 1);
            let sent = Instant::now();
            let mut deadline = Deadline::since(sent, Step::Echo, timeouts.echo, self.stop);
            self.send(&output, &mut deadline)?;
            *self.wire.traffic.frames_sent.entry(case.form.opcode() as u8).or_default() += 1;
            let form = self.echo(&mut deadline)?;
            let came = Instant::now();
            self.judge(number, form)?;
            outcome.latencies.record(came - sent);
            outcome.duration = came - begin;
        }
        Ok(())
    }

    /// Judges the echo of message `number`.
    #[inline]
    fn judge(&mut self, number: u64, form: Form) -> Result<(), Problem> {
        let sent = Sent { number, form: self.plan.case.form, payload: &self.payload };
        let Err(wrong) = self.opened.session.judge(&sent, form) else { return Ok(()) };
        // It may be right, and one too many, for the message before.
        let Some(before) = number.checked_sub(1) else { return Err(wrong) };
        stamp(&mut self.payload, before);
        if self.opened.session.echo() == self.payload {
            return Err(Problem::RepeatedEcho(before));
        }
        Err(wrong)
    }

    /// Sends all of `bytes`. While the socket has no room, the server may wait for its echoes to be
    /// read, so this also receives.
    #[inline]
    fn send(&mut self, bytes: &[u8], deadline: &mut Deadline<'_>) -> Result<(), Problem> {
        let mut left = bytes;
        while !left.is_empty() {
            match self.opened.stream.send(left) {
                Ok(count) => {
                    *self.wire.traffic.sent.entry(count).or_default() += 1;
                    left = &left[count..];
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let events = PollFlags::IN | PollFlags::OUT;
                    if self.opened.stream.wait(events, deadline)? != PollFlags::OUT {
                        self.receive_now()?;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Problem::Lost(error)),
            }
        }
        Ok(())
    }

    /// Takes what has come, if anything has.
    fn receive_now(&mut self) -> Result<(), Problem> {
        match self.opened.stream.receive(self.opened.session.room()) {
            Ok(0) => Err(Problem::Closed(None)),
            Ok(count) => {
                self.note_received(count);
                Ok(())
            }
            Err(error) if is_transient(&error) => Ok(()),
            Err(error) => Err(Problem::Lost(error)),
        }
    }

    fn note_received(&mut self, count: usize) {
        self.opened.session.filled(count);
        *self.wire.traffic.received.entry(count).or_default() += 1;
    }

    fn note_close(&mut self, code: Option<u16>, frame: Vec<u8>) {
        (self.wire.close_code, self.wire.close_received) = (code, frame);
    }

    /// Waits for an echo, and returns its form.
    #[inline]
    fn echo(&mut self, deadline: &mut Deadline<'_>) -> Result<Form, Problem> {
        loop {
            match self.next(deadline)? {
                Some(Event::Echo(form)) => return Ok(form),
                Some(Event::Ping(ping)) => {
                    // There may be no end of them.
                    deadline.check()?;
                    self.control(Opcode::Pong, &ping, deadline).map(drop)?;
                }
                Some(Event::Close(code, frame)) => {
                    self.note_close(code, frame);
                    return Err(Problem::Closed(code));
                }
                None => return Err(Problem::Closed(None)),
            }
        }
    }

    /// Sends a control frame, and returns its bytes.
    fn control(
        &mut self,
        opcode: Opcode,
        payload: &[u8],
        deadline: &mut Deadline<'_>,
    ) -> Result<Vec<u8>, Problem> {
        let mut frame = Vec::new();
        self.opened.session.control(&mut frame, opcode, payload);
        self.send(&frame, deadline)?;
        *self.wire.traffic.frames_sent.entry(opcode as u8).or_default() += 1;
        Ok(frame)
    }

    /// Waits for the next event; nothing if the server has ended the connection.
    #[inline]
    fn next(&mut self, deadline: &mut Deadline<'_>) -> Result<Option<Event>, Problem> {
        if let Some(event) = self.take_event()? {
            return Ok(Some(event));
        }
        loop {
            let Opened { stream, session, .. } = &mut self.opened;
            let received = match self.plan.wait {
                Wait::Block => stream.receive_sleeping(session.room()),
                Wait::Spin => stream.receive(session.room()),
            };
            match received {
                Ok(0) => return Ok(None),
                Ok(count) => {
                    self.note_received(count);
                    if let Some(event) = self.take_event()? {
                        return Ok(Some(event));
                    }
                }
                Err(error) if is_transient(&error) => {
                    if self.plan.wait == Wait::Spin {
                        std::hint::spin_loop();
                    }
                }
                Err(error) => return Err(Problem::Lost(error)),
            }
            deadline.check()?;
        }
    }

    #[inline]
    fn take_event(&mut self) -> Result<Option<Event>, Problem> {
        let event = self.opened.session.next(self.plan.case.payload_bytes)?;
        if let Some(event) = &event {
            let opcode = match event {
                Event::Echo(form) => form.opcode(),
                Event::Close(..) => Opcode::Close,
                Event::Ping(_) => Opcode::Ping,
            };
            *self.wire.traffic.frames_received.entry(opcode as u8).or_default() += 1;
        }
        Ok(event)
    }

    /// Closes the connection. Returns nothing for plain bytes, which have no closing handshake.
    fn close(&mut self) -> Result<Option<Farewell>, Problem> {
        // What has come already was sent before the server knew that the client closes.
        while let Some(event) = self.take_event()? {
            match event {
                Event::Echo(_) => return Err(self.unawaited()),
                Event::Close(code, frame) => self.note_close(code, frame),
                Event::Ping(_) => {}
            }
        }
        if self.plan.target.websocket.is_none() {
            let is_whole = self.opened.session.unread().is_empty();
            return if is_whole { Ok(None) } else { Err(Problem::UnawaitedEcho) };
        }
        let stop = self.stop;
        let mut deadline = if stop.is_requested() {
            Deadline::regardless(Step::Close, CLOSE_TIMEOUT_STOPPED)
        } else {
            Deadline::new(Step::Close, self.plan.timeouts.close, stop)
        };
        let is_answered = !self.wire.close_received.is_empty();
        let answer = if is_answered { Answer::Received } else { Answer::Awaited };
        let mut closing = Closing { answer, ..Closing::default() };
        let end = match self.shake_hands(&mut closing, &mut deadline) {
            Ok(()) => End::Closed,
            Err(Problem::TimedOut(..)) => End::TimedOut,
            Err(Problem::Broken(violation)) => End::Broken(violation),
            Err(Problem::Lost(_)) => End::Reset,
            Err(problem) => return Err(problem),
        };
        self.wire.is_dropped_by_server = matches!(end, End::Closed | End::Reset);
        Ok(Some(closing.judge(end)))
    }

    /// The closing handshake, and the server's end of the connection.
    fn shake_hands(
        &mut self,
        closing: &mut Closing,
        deadline: &mut Deadline<'_>,
    ) -> Result<(), Problem> {
        // RFC 6455 section 7.4.1: 1000 means that the purpose of the connection is fulfilled.
        let close = self.control(Opcode::Close, &1000u16.to_be_bytes(), deadline)?;
        self.wire.close_sent = close;
        while let Some(event) = self.next(deadline)? {
            deadline.check()?;
            closing.note(&event);
            match event {
                Event::Close(code, frame) => self.note_close(code, frame),
                Event::Echo(_) if self.opened.session.echo() == self.payload => {
                    return Err(self.unawaited());
                }
                Event::Echo(_) | Event::Ping(_) => {}
            }
        }
        Ok(())
    }

    /// The problem with a message that came while none was awaited.
    fn unawaited(&self) -> Problem {
        match self.plan.case.messages.checked_sub(1) {
            Some(last) if self.opened.session.echo() == self.payload => Problem::RepeatedEcho(last),
            _ => Problem::UnawaitedEcho,
        }
    }

    /// Looks for a close frame that explains a problem: its code says more than that a send failed.
    fn explain(&mut self, problem: Problem) -> Problem {
        if !matches!(problem, Problem::Lost(_) | Problem::Closed(None) | Problem::TimedOut(..)) {
            return problem;
        }
        for _ in 0..EXPLANATION_RECEIVES {
            match self.opened.stream.receive(self.opened.session.room()) {
                Ok(count @ 1..) => self.note_received(count),
                Ok(0) | Err(_) => break,
            }
        }
        while let Ok(Some(event)) = self.take_event() {
            if let Event::Close(code, frame) = event {
                self.note_close(code, frame);
                return Problem::Closed(code);
            }
        }
        problem
    }
}

/// A payload of random ASCII, so that it can be sent as text.
fn payload(bytes: usize, seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    (0..bytes).map(|_| b'!' + random.below(94) as u8).collect()
}

/// Writes a message's number to the beginning of its payload, or as many of its last digits as fit.
fn stamp(payload: &mut [u8], number: u64) {
    let mut left = number;
    for byte in payload.iter_mut().take(STAMP_DIGITS).rev() {
        *byte = b'0' + (left % 10) as u8;
        left /= 10;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_cut_to_the_payload() {
        for (length, number, stamped) in
            [(0, 7, ""), (2, 123, "23"), (8, 123, "00000123"), (10, 123, "00000123..")]
        {
            let mut payload = vec![b'.'; length];
            stamp(&mut payload, number);
            assert_eq!(payload, stamped.as_bytes());
        }
    }
}
