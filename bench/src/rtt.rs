//! Round trips: one message at a time on one connection, each echo compared with what was sent.
//!
//! The cases are those of sections 9.7 and 9.8 of the Autobahn test suite: text and binary messages of
//! 0 to 4096 octets, each case on a connection of its own. What went over the wire is counted as the
//! suite counts it: by the sizes in which octets were handed to and taken from the socket.

use std::collections::BTreeMap;
use std::io::{self, Read as _, Write as _};
use std::time::{Duration, Instant};

use ringecho::protocol::frame::Opcode;

use crate::latency::Latencies;
use crate::random::Random;
use crate::session::{self, Event, Form, Handshake, Problem, Session};
use crate::stop::Stop;
use crate::target::{Stream, Target};

/// An echo that takes longer does not come.
pub const ECHO_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the server may take to close after the close frames.
pub const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// How often a client that waits looks whether it is to stop.
const LOOK: Duration = Duration::from_millis(200);
/// The sizes of the cases, in octets.
const SIZES: [usize; 6] = [0, 16, 64, 256, 1024, 4096];

/// How the client waits for an echo.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// It sleeps in the kernel.
    Block,
    /// It asks again and again.
    Spin,
}

/// What is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    /// Its name in the suite, or one of our own.
    pub name: String,
    /// Octets of payload.
    pub octets: usize,
    /// Text or binary.
    pub form: Form,
    /// How many messages.
    pub messages: u64,
}

impl Case {
    /// The cases 9.7.1 to 9.8.6, each of so many messages.
    pub fn autobahn(messages: u64) -> Vec<Case> {
        let section = |number, form| {
            (1..).zip(SIZES).map(move |(case, octets)| Case {
                name: format!("9.{number}.{case}"),
                octets,
                form,
                messages,
            })
        };
        section(7, Form::Text).chain(section(8, Form::Binary)).collect()
    }

    /// A sentence in the words of the suite.
    pub fn description(&self) -> String {
        let form = match self.form {
            Form::Text => "text",
            Form::Binary => "binary",
        };
        format!("Send {} {form} messages of payload size {}.", self.messages, self.octets)
    }
}

/// Counts by the size of what was handed over at a time.
pub type Chops = BTreeMap<usize, u64>;

/// What went over the wire of one connection.
#[derive(Debug, Clone, Default)]
pub struct Wire {
    /// The opening handshake.
    pub handshake: Handshake,
    /// Octets taken from the socket, by the size of each receive.
    pub received: Chops,
    /// Octets handed to the socket, by the size of each send.
    pub sent: Chops,
    /// Frames received, by opcode.
    pub frames_received: BTreeMap<u8, u64>,
    /// Frames sent, by opcode.
    pub frames_sent: BTreeMap<u8, u64>,
    /// The close frame that was sent.
    pub close_sent: Vec<u8>,
    /// The close frame that was received.
    pub close_received: Vec<u8>,
    /// The code in it.
    pub close_code: Option<u16>,
    /// Whether the server ended the TCP connection in time.
    pub is_dropped_by_server: bool,
}

/// What one case came to on one connection.
#[derive(Debug, Default)]
pub struct Outcome {
    /// The round trips.
    pub latencies: Latencies,
    /// From the first message to the last echo.
    pub duration: Duration,
    /// What went over the wire.
    pub wire: Wire,
    /// Why it ended early; what was measured until then is kept.
    pub problem: Option<Problem>,
}

/// A connection that is being measured.
struct Connection {
    stream: Stream,
    session: Session,
    wait: Wait,
    wire: Wire,
}

/// Runs one case on a new connection.
///
/// # Errors
///
/// When no connection comes about. What happens later is in the outcome.
pub fn run(
    target: &Target,
    case: &Case,
    wait: Wait,
    seed: u64,
    stop: &Stop,
) -> Result<Outcome, Problem> {
    let mut stream = Stream::connect(&target.endpoint).map_err(Problem::NoServer)?;
    let (session, handshake) = session::open(&mut stream, target, false, seed)?;
    stream
        .set_waiting(match wait {
            Wait::Block => Some(LOOK),
            Wait::Spin => None,
        })
        .map_err(Problem::Lost)?;
    let mut wire = Wire::default();
    if target.websocket.is_some() {
        *wire.sent.entry(handshake.request.len()).or_default() += 1;
        *wire.received.entry(handshake.response.len()).or_default() += 1;
    }
    wire.handshake = handshake;
    let mut connection = Connection { stream, session, wait, wire };
    let mut outcome = Outcome::default();
    if let Err(problem) = connection.measure(case, seed, stop, &mut outcome) {
        outcome.problem = Some(problem);
    } else if target.websocket.is_some() {
        outcome.problem = connection.close().err();
    }
    outcome.wire = connection.wire;
    Ok(outcome)
}

impl Connection {
    fn measure(
        &mut self,
        case: &Case,
        seed: u64,
        stop: &Stop,
        outcome: &mut Outcome,
    ) -> Result<(), Problem> {
        let mut payload = payload(case.octets, seed);
        let mut output = Vec::with_capacity(case.octets + 32);
        let opcode = match case.form {
            Form::Text => Opcode::Text,
            Form::Binary => Opcode::Binary,
        };
        let begin = Instant::now();
        for number in 0..case.messages {
            if stop.is_requested() {
                break;
            }
            // Each message says which it is, where it has room for that.
            for (octet, digit) in payload.iter_mut().zip(format!("{number:08}").bytes()) {
                *octet = digit;
            }
            output.clear();
            self.session.message(&mut output, case.form, &payload, 1);
            let sent = Instant::now();
            self.write(&output)?;
            *self.wire.frames_sent.entry(opcode as u8).or_default() += 1;
            let form = self.echo(&payload, sent)?;
            outcome.latencies.record(sent.elapsed());
            outcome.duration = begin.elapsed();
            self.session.compare(number, (case.form, form), &payload)?;
        }
        Ok(())
    }

    fn write(&mut self, octets: &[u8]) -> Result<(), Problem> {
        let mut left = octets;
        while !left.is_empty() {
            match self.stream.write(left) {
                Ok(count) => {
                    *self.wire.sent.entry(count).or_default() += 1;
                    left = &left[count..];
                }
                Err(error) if is_transient(&error) => {}
                Err(error) => return Err(Problem::Lost(error)),
            }
        }
        Ok(())
    }

    /// Waits for an echo of `payload`, and gives its form.
    #[inline]
    fn echo(&mut self, payload: &[u8], sent: Instant) -> Result<Form, Problem> {
        loop {
            match self.next(payload.len(), sent + ECHO_TIMEOUT)? {
                Some(Event::Echo(form)) => return Ok(form),
                Some(Event::Ping(ping)) => {
                    let mut pong = Vec::new();
                    self.session.control(&mut pong, Opcode::Pong, &ping);
                    self.write(&pong)?;
                    *self.wire.frames_sent.entry(Opcode::Pong as u8).or_default() += 1;
                }
                Some(Event::Close(code, frame)) => {
                    (self.wire.close_code, self.wire.close_received) = (code, frame);
                    return Err(Problem::Closed(code));
                }
                None => return Err(Problem::Closed(None)),
            }
        }
    }

    /// What comes next; nothing where the server has ended the connection.
    #[inline]
    fn next(&mut self, payload: usize, until: Instant) -> Result<Option<Event>, Problem> {
        loop {
            if let Some(event) = self.session.next(payload)? {
                let opcode = match &event {
                    Event::Echo(Form::Text) => Opcode::Text,
                    Event::Echo(Form::Binary) => Opcode::Binary,
                    Event::Close(..) => Opcode::Close,
                    Event::Ping(_) => Opcode::Ping,
                };
                *self.wire.frames_received.entry(opcode as u8).or_default() += 1;
                return Ok(Some(event));
            }
            match self.stream.read(self.session.room()) {
                Ok(0) => {
                    self.session.filled(0);
                    return Ok(None);
                }
                Ok(count) => {
                    self.session.filled(count);
                    *self.wire.received.entry(count).or_default() += 1;
                }
                Err(error) if is_transient(&error) => {
                    self.session.filled(0);
                    if Instant::now() > until {
                        return Err(Problem::Silent);
                    }
                    if self.wait == Wait::Spin {
                        std::hint::spin_loop();
                    }
                }
                Err(error) => return Err(Problem::Lost(error)),
            }
        }
    }

    /// The closing handshake, begun here, and the server's end of the connection.
    fn close(&mut self) -> Result<(), Problem> {
        let mut frame = Vec::new();
        self.session.control(&mut frame, Opcode::Close, &1000u16.to_be_bytes());
        self.write(&frame)?;
        *self.wire.frames_sent.entry(Opcode::Close as u8).or_default() += 1;
        self.wire.close_sent = frame;
        let until = Instant::now() + CLOSE_TIMEOUT;
        loop {
            match self.next(0, until) {
                Ok(Some(Event::Close(code, frame))) => {
                    (self.wire.close_code, self.wire.close_received) = (code, frame);
                }
                Ok(Some(Event::Echo(_) | Event::Ping(_))) => {}
                Ok(None) => {
                    self.wire.is_dropped_by_server = true;
                    return Ok(());
                }
                // The server may leave the end to the client; the wire says so.
                Err(Problem::Silent) if !self.wire.close_received.is_empty() => return Ok(()),
                Err(problem) => return Err(problem),
            }
        }
    }
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// ASCII, so that it can be sent as text, and different in each place.
fn payload(octets: usize, seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    (0..octets).map(|_| b'!' + random.below(94) as u8).collect()
}
