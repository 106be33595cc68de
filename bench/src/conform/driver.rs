//! Runs one case on one connection: opens it, and moves bytes between a [`Wire`] and an [`Exchange`]
//! until that is over.

use std::io;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as BASE64;
use ringecho::protocol::extension;
use rustix::event::PollFlags;

use super::case::{self, Case};
use super::deflate::{Library, Offer, Terms};
use super::exchange::{Ended, Exchange, Opened, Role, Want};
use super::head::{self, Connection};
use super::transcript::Transcript;
use crate::opening::{Failed, HANDSHAKE_TIMEOUT, Handshake, Opening};
use crate::problem::{Problem, Step};
use crate::session::Session;
use crate::socket::{Deadline, SLICE, Sealing, Stream, is_transient};
use crate::stop::Stop;
use crate::target::Target;
use crate::tls::Failure;

/// How long a send waits while there is no room and the peer sends.
const PAUSE: Duration = Duration::from_millis(10);

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

    /// Seals otherwise from now on, if there is TLS.
    ///
    /// # Errors
    ///
    /// When there is none, or the connection is lost already.
    fn seal_otherwise(&mut self, _: Sealing) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Whether the peer has ended the stream without saying so in TLS.
    fn has_ended_unsaid(&self) -> bool {
        false
    }
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
        // TLS may have waited for room only.
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

    fn seal_otherwise(&mut self, how: Sealing) -> io::Result<()> {
        Stream::seal_otherwise(self, how)
    }

    fn has_ended_unsaid(&self) -> bool {
        Stream::has_ended_unsaid(self)
    }
}

/// Waits for `events`, at most `time`, and returns those that came.
fn poll(stream: &Stream, events: PollFlags, time: Duration) -> io::Result<PollFlags> {
    let mut deadline = Deadline::regardless(Step::Echo, time);
    match stream.wait(events, &mut deadline) {
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

impl Run {
    /// The same with this opening handshake, or what there was of it.
    fn with(mut self, handshake: Handshake) -> Run {
        let Handshake { request, response } = &handshake;
        let traffic = &mut self.transcript.traffic;
        let (sent, received) = (&mut traffic.sent, &mut traffic.received);
        let ways = match self.transcript.closing.is_server {
            true => [(response, sent), (request, received)],
            false => [(request, sent), (response, received)],
        };
        for (head, sizes) in ways.into_iter().filter(|(head, _)| !head.is_empty()) {
            *sizes.entry(head.len()).or_default() += 1;
        }
        self.handshake = handshake;
        self
    }
}

/// When a case began.
#[derive(Debug, Clone, Copy)]
struct Begun {
    started: SystemTime,
    begin: Instant,
}

impl Begun {
    fn now() -> Begun {
        Begun { started: SystemTime::now(), begin: Instant::now() }
    }

    /// The case that ends now.
    fn run(self, transcript: Transcript, handshake: Handshake) -> Run {
        let Begun { started, begin } = self;
        Run { transcript, handshake, started, duration: begin.elapsed() }
    }

    /// The same where no connection was opened, for this reason.
    fn refused(self, case: &Case, refused: String) -> Run {
        let transcript = Transcript { refused: Some(refused), ..Transcript::new(case.number) };
        self.run(transcript, Handshake::default())
    }
}

/// Tests a server: runs a case on a new connection. Returns nothing if the stop is requested.
pub fn run(case: &Case, target: &Target, library: &Library, seed: u64, stop: &Stop) -> Option<Run> {
    let begun = Begun::now();
    let opening = Opening::new(target, seed);
    if !case.earlier.is_empty() && !run_earlier(case, &opening, library, stop) {
        if stop.is_requested() {
            return None;
        }
        return Some(begun.refused(case, "The earlier connection could not be opened.".to_owned()));
    }
    if let case::Opening::Request(..) = case.opening {
        let mut stream = match opening.connect(stop) {
            Ok(stream) => stream,
            Err(Problem::Stopped) => return None,
            Err(problem) => {
                let mut run = begun.refused(case, sentence(&problem));
                run.transcript.is_unreachable = true;
                return Some(run);
            }
        };
        let Some((host, path)) = &target.websocket else {
            return Some(begun.refused(case, "The target speaks no WebSocket.".to_owned()));
        };
        let key = Session::framed(seed).nonce();
        let connection = Connection { host, target: path, key: &BASE64.encode(key) };
        let mut exchange = Exchange::opening(case, library, &connection, seed, Instant::now());
        if !drive(&mut exchange, &mut stream, stop) {
            return None;
        }
        let handshake = exchange.handshake().clone();
        return Some(begun.run(exchange.into_transcript(), handshake));
    }
    let offer = Offer::field(&case.offers);
    let (opened, answer) = match opening.open_offering(offer.as_deref(), stop) {
        Ok(opened) => opened,
        Err(Failed { problem: Problem::Stopped, .. }) => return None,
        Err(Failed { problem, handshake }) => {
            let mut run = begun.refused(case, sentence(&problem)).with(handshake);
            run.transcript.closing.was_open_handshake_timeout =
                matches!(problem, Problem::TimedOut(Step::Handshake, _));
            run.transcript.is_unreachable = matches!(
                problem,
                Problem::CannotResolve(_)
                    | Problem::CannotConnect(_)
                    | Problem::TimedOut(..)
                    | Problem::Unanswered(_)
            );
            return Some(run);
        }
    };
    let handshake = opened.handshake;
    let terms = match Terms::agreed(&case.offers, answer.as_deref()) {
        Ok(terms) => terms,
        Err(wrong) => return Some(begun.refused(case, wrong).with(handshake)),
    };
    let received = opened.session.unread();
    let connection = Opened { role: Role::Client, terms, received, seed };
    let exchange = Exchange::new(case, library, connection, Instant::now());
    let transcript = driven(exchange, &mut { opened.stream }, stop)?;
    Some(begun.run(transcript, Handshake::default()).with(handshake))
}

/// The request of a client that is tested, and what it means.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// The value of Sec-WebSocket-Key.
    pub key: &'a str,
    /// Its bytes.
    pub head: &'a [u8],
    /// What it offers.
    pub offers: &'a [extension::Offer],
    /// The seed of masking keys, where a case has a frame that is masked wrongly.
    pub seed: u64,
}

/// Tests a client: runs a case on a connection on which a request has come that is in order. Returns
/// nothing if the stop is requested.
pub fn answer(
    case: &Case,
    asked: &Asked<'_>,
    wire: &mut impl Wire,
    library: &Library,
    stop: &Stop,
) -> Option<Run> {
    let begun = Begun::now();
    let Asked { key, head, offers, seed } = *asked;
    let request = head.to_vec();
    let (mut transcript, response) = if let case::Opening::Response(..) = case.opening {
        let exchange = Exchange::answering(case, library, key, seed, Instant::now());
        let response = exchange.handshake().response.clone();
        (driven(exchange, wire, stop)?, response)
    } else {
        let (extensions, terms) = Terms::accepted(&case.offers, offers).unzip();
        let response = head::accepting(key, extensions.as_deref());
        if !send_all(wire, &response, Instant::now() + HANDSHAKE_TIMEOUT, stop) {
            let run = begun.refused(case, "The client did not take the response.".to_owned());
            return (!stop.is_requested()).then_some(run);
        }
        let opened = Opened { role: Role::Server, terms, received: &[], seed };
        let exchange = Exchange::new(case, library, opened, Instant::now());
        let mut transcript = driven(exchange, wire, stop)?;
        *transcript.traffic.sent.entry(response.len()).or_default() += 1;
        (transcript, response)
    };
    *transcript.traffic.received.entry(request.len()).or_default() += 1;
    Some(begun.run(transcript, Handshake { request, response }))
}

/// Refuses the request of a client that is tested, for this reason: the case has failed. Returns nothing
/// if the stop is requested.
pub fn refuse(
    case: &Case,
    head: &[u8],
    (why, response): (String, Vec<u8>),
    wire: &mut impl Wire,
    stop: &Stop,
) -> Option<Run> {
    let begun = Begun::now();
    let is_sent = send_all(wire, &response, Instant::now() + HANDSHAKE_TIMEOUT, stop);
    let mut run = begun.refused(case, why);
    run.transcript.closing.is_server = true;
    let run = run.with(Handshake { request: head.to_vec(), response });
    (is_sent || !stop.is_requested()).then_some(run)
}

/// What happened on a connection, once it is over; nothing if the stop is requested. The connection may be
/// carried by anything.
fn driven(mut exchange: Exchange<'_>, wire: &mut impl Wire, stop: &Stop) -> Option<Transcript> {
    drive(&mut exchange, wire, stop).then(|| exchange.into_transcript())
}

/// Sends all of these bytes. Returns whether that has worked before `until` and before the stop.
pub fn send_all(wire: &mut impl Wire, bytes: &[u8], until: Instant, stop: &Stop) -> bool {
    let mut left = bytes;
    while !left.is_empty() {
        let time = until.saturating_duration_since(Instant::now());
        if stop.is_requested() || time.is_zero() {
            return false;
        }
        match wire.send(left) {
            Ok(count) => left = &left[count..],
            Err(error) if is_transient(&error) => {
                // What the peer sends meanwhile is for later, so it must not end each wait at once.
                match wire.wait(time.min(PAUSE)) {
                    Ok(true) => thread::sleep(PAUSE),
                    Ok(false) => {}
                    Err(_) => return false,
                }
            }
            Err(_) => return false,
        }
    }
    true
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
    let mut was_late = false;
    loop {
        if stop.is_requested() {
            return false;
        }
        let now = Instant::now();
        // What has come by now came in time, even if this side was too busy to see it.
        let is_late = exchange.is_late(now);
        if is_late && !was_late && receive(exchange, wire, Duration::ZERO).is_err() {
            exchange.ended(Ended::Reset);
        }
        was_late = is_late;
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
            Want::Seal(sealing) => wire.seal_otherwise(sealing),
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
        if let Err(error) = outcome {
            exchange.ended(match Failure::of(&error) {
                Some(Failure::Alert(_)) => Ended::Alert,
                Some(_) | None => Ended::Reset,
            });
        }
    }
}

/// Receives once, waiting at most `time`.
fn receive(exchange: &mut Exchange<'_>, wire: &mut impl Wire, time: Duration) -> io::Result<()> {
    match wire.receive(exchange.room(), time) {
        Ok(0) if wire.has_ended_unsaid() => exchange.ended(Ended::Unsaid),
        Ok(0) => exchange.ended(Ended::Closed),
        Ok(count) => exchange.received(count, Instant::now()),
        Err(error) if is_transient(&error) => {}
        Err(error) => return Err(error),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};

    use testkit::frame::{CLOSE, parse};

    use super::super::cases::{self, Volume};
    use super::super::verdict::{Behavior, BehaviorClose, judge};
    use super::*;

    /// A connection within this process: no socket, and no HTTP.
    struct Memory {
        peer: Option<Sender<Vec<u8>>>,
        own: Receiver<Vec<u8>>,
        left: Vec<u8>,
    }

    impl Wire for Memory {
        fn send(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let peer = self.peer.as_ref().ok_or(io::ErrorKind::BrokenPipe)?;
            peer.send(bytes.to_vec()).map_err(|_| io::ErrorKind::BrokenPipe)?;
            Ok(bytes.len())
        }

        fn receive(&mut self, room: &mut [u8], time: Duration) -> io::Result<usize> {
            if self.left.is_empty() {
                match self.own.recv_timeout(time) {
                    Ok(bytes) => self.left = bytes,
                    Err(RecvTimeoutError::Timeout) => return Err(io::ErrorKind::WouldBlock.into()),
                    Err(RecvTimeoutError::Disconnected) => return Ok(0),
                }
            }
            let count = self.left.len().min(room.len());
            room[..count].copy_from_slice(&self.left[..count]);
            self.left.drain(..count);
            Ok(count)
        }

        fn wait(&mut self, _: Duration) -> io::Result<bool> {
            Ok(true)
        }

        fn end(&mut self) -> io::Result<()> {
            self.peer = None;
            Ok(())
        }

        fn reset(&mut self) -> io::Result<()> {
            self.end()
        }
    }

    /// A connection that ends while this side is too busy to see it in time.
    struct Late {
        answer: Option<Vec<u8>>,
    }

    impl Wire for Late {
        fn send(&mut self, bytes: &[u8]) -> io::Result<usize> {
            Ok(bytes.len())
        }

        fn receive(&mut self, room: &mut [u8], time: Duration) -> io::Result<usize> {
            match self.answer.take() {
                Some(answer) => {
                    room[..answer.len()].copy_from_slice(&answer);
                    Ok(answer.len())
                }
                None if time.is_zero() => Ok(0),
                None => {
                    thread::sleep(time);
                    Err(io::ErrorKind::WouldBlock.into())
                }
            }
        }

        fn wait(&mut self, _: Duration) -> io::Result<bool> {
            Ok(true)
        }

        fn end(&mut self) -> io::Result<()> {
            Ok(())
        }

        fn reset(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_has_come_when_the_time_is_over_came_in_time() {
        let (cases, library) = (cases::own(), Library::default());
        let case = cases.iter().find(|case| case.number.to_string() == "23.4.1").expect("a case");
        let mut wire = Late { answer: Some(testkit::reply(CLOSE, &1000u16.to_be_bytes())) };
        let opened = Opened { role: Role::Client, terms: None, received: &[], seed: 1 };
        let exchange = Exchange::new(case, &library, opened, Instant::now());
        let stop = Stop::new().expect("a pipe");
        let transcript = driven(exchange, &mut wire, &stop).expect("it is not stopped");
        let verdict = judge(case, &transcript);
        let found = (verdict.behavior, verdict.behavior_close);
        assert_eq!(found, (Behavior::Ok, BehaviorClose::Ok), "{verdict:?}");
    }

    /// Whether the last of these unmasked frames is whole.
    fn ends_with_a_frame(mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            let (header, length) = match *bytes {
                [_, length @ 0..126, ..] => (2, u64::from(length)),
                [_, 126, a, b, ..] => (4, u64::from(u16::from_be_bytes([a, b]))),
                [_, 127, a, b, c, d, e, f, g, h, ..] => {
                    (10, u64::from_be_bytes([a, b, c, d, e, f, g, h]))
                }
                _ => return false,
            };
            match bytes.get(header + length as usize..) {
                Some(rest) => bytes = rest,
                None => return false,
            }
        }
        true
    }

    /// What a stream within HTTP/2 needs, too: no case depends on a socket or on how it was opened.
    #[test]
    fn a_connection_need_not_be_a_socket() {
        let (cases, library) = (cases::all(Volume::Quick), Library::default());
        let stop = Stop::new().expect("a pipe");
        for number in ["1.1.1", "1.2.8", "2.2", "7.1.1", "10.1.1"] {
            let case = cases.iter().find(|case| case.number.to_string() == number).expect(number);
            let (peer, theirs) = mpsc::channel();
            let (sender, own) = mpsc::channel();
            let echo = thread::spawn(move || {
                let mut received = Vec::new();
                for bytes in theirs {
                    received.extend(bytes);
                    // Some cases cut their frames.
                    if !ends_with_a_frame(&received) {
                        continue;
                    }
                    let frames = parse(&received);
                    received.clear();
                    for frame in frames {
                        let first = if frame.first & 0x0f == 9 { 0x8a } else { frame.first };
                        let answer = testkit::frame(first, &frame.payload);
                        if sender.send(answer).is_err() || first == CLOSE {
                            return;
                        }
                    }
                }
            });
            let mut wire = Memory { peer: Some(peer), own, left: Vec::new() };
            let opened = Opened { role: Role::Server, terms: None, received: &[], seed: 1 };
            let exchange = Exchange::new(case, &library, opened, Instant::now());
            let transcript = driven(exchange, &mut wire, &stop).expect("it is not stopped");
            echo.join().expect("no panic");
            let verdict = judge(case, &transcript);
            let found = (verdict.behavior, verdict.behavior_close);
            assert_eq!(found, (Behavior::Ok, BehaviorClose::Ok), "{number}: {verdict:?}");
        }
    }
}
