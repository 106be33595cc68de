//! Runs one case on one connection: opens it, and moves bytes between a [`Wire`] and an [`Exchange`]
//! until that is over.

use std::io;
use std::time::{Duration, Instant, SystemTime};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as BASE64;
use rustix::event::PollFlags;

use super::case::{self, Case};
use super::deflate::{Library, Offer, Terms};
use super::exchange::{Ended, Exchange, Opened, Role, Want};
use super::head::Connection;
use super::transcript::Transcript;
use crate::opening::{Handshake, Opening};
use crate::problem::{Problem, Step};
use crate::session::Session;
use crate::socket::{Deadline, SLICE, Stream, is_transient};
use crate::stop::Stop;
use crate::target::Target;

/// A stream of bytes in both directions. A TCP connection is one; a stream within HTTP/2 may be.
pub trait Wire {
    /// Sends as much as there is room for, without waiting.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::WouldBlock`] where there is no room; others when the connection is lost.
    fn send(&mut self, bytes: &[u8]) -> io::Result<usize>;

    /// Receives what has come, or waits for something, at most `time`; 0 at the end of the stream.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::WouldBlock`] or [`io::ErrorKind::Interrupted`] where nothing has come; others
    /// when the connection is lost.
    fn receive(&mut self, room: &mut [u8], time: Duration) -> io::Result<usize>;

    /// Waits for room to send or for something to receive, at most `time`. Returns whether there is
    /// something to receive.
    ///
    /// # Errors
    ///
    /// When the kernel cannot wait.
    fn wait(&mut self, time: Duration) -> io::Result<bool>;

    /// Ends the sending direction.
    ///
    /// # Errors
    ///
    /// When the connection is lost already.
    fn end(&mut self) -> io::Result<()>;

    /// Makes the end of the connection a reset.
    ///
    /// # Errors
    ///
    /// When the connection is lost already.
    fn reset(&mut self) -> io::Result<()>;
}

impl Wire for Stream {
    fn send(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Stream::send(self, bytes)
    }

    fn receive(&mut self, room: &mut [u8], time: Duration) -> io::Result<usize> {
        if time >= SLICE {
            return self.receive_sleeping(room);
        }
        poll(self, PollFlags::IN, time)?;
        Stream::receive(self, room)
    }

    fn wait(&mut self, time: Duration) -> io::Result<bool> {
        let came = poll(self, PollFlags::IN | PollFlags::OUT, time.min(SLICE))?;
        Ok(!came.is_empty() && came != PollFlags::OUT)
    }

    fn end(&mut self) -> io::Result<()> {
        Stream::end(self)
    }

    fn reset(&mut self) -> io::Result<()> {
        self.reset_at_end()
    }
}

/// Waits for `events`, at most `time`, and returns those that came.
fn poll(stream: &Stream, events: PollFlags, time: Duration) -> io::Result<PollFlags> {
    let mut deadline = Deadline::regardless(Step::Echo, time);
    match deadline.wait(stream, events) {
        Ok(came) => Ok(came),
        Err(Problem::Lost(error)) => Err(error),
        Err(_) => Ok(PollFlags::empty()),
    }
}

/// A case that was run.
#[derive(Debug, Clone)]
pub struct Run {
    /// What happened.
    pub transcript: Transcript,
    /// The opening handshake.
    pub handshake: Handshake,
    /// When it began.
    pub started: SystemTime,
    /// How long it took.
    pub duration: Duration,
}

/// Tests a server: runs a case on a new connection. Returns nothing if the stop is requested.
pub fn run(case: &Case, target: &Target, library: &Library, seed: u64, stop: &Stop) -> Option<Run> {
    let (started, begin) = (SystemTime::now(), Instant::now());
    let refused = |refused: String, handshake: Handshake| {
        let transcript = Transcript { refused: Some(refused), ..Transcript::new(case.number) };
        Run { transcript, handshake, started, duration: begin.elapsed() }
    };
    let opening = Opening::new(target, seed);
    if !case.earlier.is_empty() && !run_earlier(case, &opening, library, stop) {
        if stop.is_requested() {
            return None;
        }
        let wrong = "The earlier connection could not be opened.".to_owned();
        return Some(refused(wrong, Handshake::default()));
    }
    if let case::Opening::Request(..) = case.opening {
        let mut stream = match opening.connect(stop) {
            Ok(stream) => stream,
            Err(Problem::Stopped) => return None,
            Err(problem) => return Some(refused(sentence(&problem), Handshake::default())),
        };
        let Some((host, path)) = &target.websocket else {
            let wrong = "The target speaks no WebSocket.".to_owned();
            return Some(refused(wrong, Handshake::default()));
        };
        let key = Session::framed(seed).nonce();
        let connection = Connection { host, target: path, key: &BASE64.encode(key) };
        let mut exchange = Exchange::opening(case, library, &connection, seed, Instant::now());
        if !drive(&mut exchange, &mut stream, stop) {
            return None;
        }
        let (duration, handshake) = (begin.elapsed(), exchange.handshake().clone());
        let transcript = exchange.into_transcript();
        return Some(Run { transcript, handshake, started, duration });
    }
    let offer = Offer::field(&case.offers);
    let (opened, answer) = match opening.open_offering(offer.as_deref(), stop) {
        Ok(opened) => opened,
        Err(Problem::Stopped) => return None,
        Err(problem) => {
            let mut run = refused(sentence(&problem), Handshake::default());
            run.transcript.closing.was_open_handshake_timeout =
                matches!(problem, Problem::TimedOut(Step::Handshake, _));
            return Some(run);
        }
    };
    let terms = match Terms::agreed(&case.offers, answer.as_deref()) {
        Ok(terms) => terms,
        Err(wrong) => return Some(refused(wrong, opened.handshake)),
    };
    let mut stream = opened.stream;
    let received = opened.session.unread();
    let connection = Opened { role: Role::Client, terms, received, seed };
    let mut exchange = Exchange::new(case, library, connection, Instant::now());
    if !drive(&mut exchange, &mut stream, stop) {
        return None;
    }
    let duration = begin.elapsed();
    let mut transcript = exchange.into_transcript();
    let handshake = opened.handshake;
    let traffic = &mut transcript.traffic;
    *traffic.sent.entry(handshake.request.len()).or_default() += 1;
    *traffic.received.entry(handshake.response.len()).or_default() += 1;
    Some(Run { transcript, handshake, started, duration })
}

/// Does what a case does on an earlier connection. Returns whether that could be opened.
fn run_earlier(case: &Case, opening: &Opening<'_>, library: &Library, stop: &Stop) -> bool {
    let Ok((opened, _)) = opening.open_offering(None, stop) else { return false };
    let script = case.earlier.iter().cloned().chain([case::Step::Reset]).collect();
    let (earlier, outcomes, offers) = (Vec::new(), Vec::new(), Vec::new());
    let case = Case { earlier, script, outcomes, offers, ..case.clone() };
    let received = opened.session.unread();
    let connection = Opened { role: Role::Client, terms: None, received, seed: opening.seed };
    let mut exchange = Exchange::new(&case, library, connection, Instant::now());
    let mut stream = opened.stream;
    drive(&mut exchange, &mut stream, stop)
}

/// A problem as a sentence.
fn sentence(problem: &Problem) -> String {
    let text = problem.to_string();
    let mut letters = text.chars();
    let first = letters.next().map(char::to_uppercase).into_iter().flatten();
    format!("{}.", first.chain(letters).collect::<String>())
}

/// Moves bytes until the exchange is over. Returns whether it is; it is not if the stop is requested.
pub fn drive(exchange: &mut Exchange<'_>, wire: &mut impl Wire, stop: &Stop) -> bool {
    loop {
        if stop.is_requested() {
            return false;
        }
        let now = Instant::now();
        let outcome = match exchange.want(now) {
            Want::Nothing => return true,
            Want::Drop => {
                exchange.dropped();
                return true;
            }
            Want::Reset => {
                exchange.dropped();
                // The connection ends with its socket, and if it is lost there is nothing to reset.
                let _ = wire.reset();
                return true;
            }
            Want::End => wire.end().map(|()| exchange.half_closed()),
            Want::Receive(until) => receive(exchange, wire, until.saturating_duration_since(now)),
            Want::Send(until) => match wire.send(exchange.chop()) {
                Ok(count) => {
                    exchange.sent(count);
                    Ok(())
                }
                // A peer that waits for its echoes to be read takes nothing before.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    match wire.wait(until.saturating_duration_since(now)) {
                        Ok(true) => receive(exchange, wire, Duration::ZERO),
                        waited => waited.map(drop),
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
                // What the peer sent before it ended the connection may say why it did.
                Err(_) => receive(exchange, wire, until.saturating_duration_since(now)),
            },
        };
        if outcome.is_err() {
            exchange.ended(Ended::Reset);
        }
    }
}

/// Receives once, waiting at most `time`.
fn receive(exchange: &mut Exchange<'_>, wire: &mut impl Wire, time: Duration) -> io::Result<()> {
    match wire.receive(exchange.room(), time) {
        Ok(0) => exchange.ended(Ended::Closed),
        Ok(count) => exchange.received(count, Instant::now()),
        Err(error) if is_transient(&error) => {}
        Err(error) => return Err(error),
    }
    Ok(())
}
