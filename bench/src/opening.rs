//! From a target to an open connection: connects, goes through the handshake of TLS if there is TLS, and for
//! a WebSocket through the opening handshake (RFC 6455 section 4.1).

use std::io;
use std::time::Duration;

use ringecho::protocol::client::Request;
use rustix::event::PollFlags;

use crate::compression::OFFER;
use crate::problem::{Problem, Step};
use crate::session::{Response, Session};
use crate::socket::{CONNECT_TIMEOUT, Deadline, Stream, is_transient};
use crate::stop::Stop;
use crate::target::Target;
use crate::tls::Failure;

/// How long the opening handshake may take.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// How a connection is to be opened.
#[derive(Debug, Clone, Copy)]
pub struct Opening<'a> {
    /// The server.
    pub target: &'a Target,
    /// Whether to offer permessage-deflate, and to fail if the server declines it.
    pub compression: Compression,
    /// The seed of the nonce and of masking keys.
    pub seed: u64,
    /// How long resolving and connecting may take: [`CONNECT_TIMEOUT`].
    pub connect_timeout: Duration,
    /// How long the handshake may take: [`HANDSHAKE_TIMEOUT`].
    pub handshake_timeout: Duration,
}

/// Whether messages are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// They are not.
    Off,
    /// By permessage-deflate.
    Deflate,
}

/// The opening handshake as it went over the wire; empty where there was none.
#[derive(Debug, Clone, Default)]
pub struct Handshake {
    /// What was sent.
    pub request: Vec<u8>,
    /// The answer, without any frames after it.
    pub response: Vec<u8>,
}

/// A connection that is open.
#[expect(missing_debug_implementations, reason = "the deflater within has none")]
pub struct Opened {
    /// The socket.
    pub stream: Stream,
    /// The WebSocket session on it.
    pub session: Session,
    /// How it was opened.
    pub handshake: Handshake,
}

/// A connection that could not be opened.
#[derive(Debug)]
pub struct Failed {
    /// Why.
    pub problem: Problem,
    /// What there was of an opening handshake, with whatever came instead of a response.
    pub handshake: Handshake,
}

impl From<Problem> for Failed {
    fn from(problem: Problem) -> Failed {
        Failed { problem, handshake: Handshake::default() }
    }
}

impl<'a> Opening<'a> {
    /// An opening without compression and with the default timeouts.
    pub fn new(target: &'a Target, seed: u64) -> Opening<'a> {
        Opening {
            target,
            compression: Compression::Off,
            seed,
            connect_timeout: CONNECT_TIMEOUT,
            handshake_timeout: HANDSHAKE_TIMEOUT,
        }
    }

    /// Opens the connection.
    ///
    /// # Errors
    ///
    /// When nobody listens, the server does not answer in time or not as a WebSocket server must, or
    /// the stop is requested.
    pub fn open(&self, stop: &Stop) -> Result<Opened, Problem> {
        let offer = match self.compression {
            Compression::Off => None,
            Compression::Deflate => Some(OFFER),
        };
        let read = |session: &mut Session, request: &Request<'_>| {
            Ok(session.opened(request)?.map(|response| (response, None)))
        };
        match self.open_by(offer, stop, read) {
            Ok((opened, _)) => Ok(opened),
            Err(failed) => Err(failed.problem),
        }
    }

    /// Connects, with TLS if the target says so, but without an opening handshake.
    ///
    /// # Errors
    ///
    /// When nobody listens, there is no TLS that can be trusted, it takes too long, or the stop is
    /// requested.
    pub fn connect(&self, stop: &Stop) -> Result<Stream, Problem> {
        let mut deadline = Deadline::new(Step::Connect, self.connect_timeout, stop);
        let mut stream = Stream::connect(&self.target.endpoint, &mut deadline)?;
        if let Some(tls) = &self.target.tls {
            let mut deadline = Deadline::new(Step::Tls, self.handshake_timeout, stop);
            stream.secure(tls, &mut deadline)?;
        }
        Ok(stream)
    }

    /// Opens the connection with this value of Sec-WebSocket-Extensions, and returns that of the
    /// answer, which is for the caller to judge.
    ///
    /// # Errors
    ///
    /// As [`Opening::open`].
    pub fn open_offering(
        &self,
        offer: Option<&str>,
        stop: &Stop,
    ) -> Result<(Opened, Option<String>), Failed> {
        self.open_by(offer, stop, Session::answered)
    }

    /// Opens the connection. `read` takes the answer from the session, once all of it was received, and
    /// returns its bytes and the extensions in it.
    fn open_by(
        &self,
        offer: Option<&str>,
        stop: &Stop,
        read: impl FnMut(&mut Session, &Request<'_>) -> Result<Option<Response>, Problem>,
    ) -> Result<(Opened, Option<String>), Failed> {
        let stream = self.connect(stop)?;
        let session = match &self.target.websocket {
            Some(_) => Session::framed(self.seed),
            None => Session::plain(self.seed),
        };
        let mut opened = Opened { stream, session, handshake: Handshake::default() };
        let Some((host, target)) = &self.target.websocket else { return Ok((opened, None)) };
        let key = opened.session.nonce();
        let request = Request { host, target, key, extensions: offer };
        let deadline = Deadline::new(Step::Handshake, self.handshake_timeout, stop);
        match shake_hands(&mut opened, &request, deadline, read) {
            Ok(answer) => Ok((opened, answer)),
            Err(problem) => {
                let problem = match problem {
                    Problem::Closed(_) => Problem::Unanswered(None),
                    Problem::Lost(error) => match Failure::of(&error) {
                        Some(failure) => Problem::NoTls(failure),
                        None => Problem::Unanswered(Some(error)),
                    },
                    problem => problem,
                };
                let Opened { session, mut handshake, .. } = opened;
                handshake.response = session.unread().to_vec();
                Err(Failed { problem, handshake })
            }
        }
    }
}

/// Sends the request and waits for the answer, and returns the extensions in it.
fn shake_hands(
    opened: &mut Opened,
    request: &Request<'_>,
    mut deadline: Deadline<'_>,
    mut read: impl FnMut(&mut Session, &Request<'_>) -> Result<Option<Response>, Problem>,
) -> Result<Option<String>, Problem> {
    let Opened { stream, session, handshake } = opened;
    handshake.request = request.to_bytes();
    send_all(stream, &handshake.request, &mut deadline)?;
    loop {
        receive(stream, session, &mut deadline)?;
        if let Some((response, extensions)) = read(session, request)? {
            handshake.response = response;
            return Ok(extensions);
        }
    }
}

fn send_all(stream: &mut Stream, bytes: &[u8], deadline: &mut Deadline<'_>) -> Result<(), Problem> {
    let mut left = bytes;
    while !left.is_empty() {
        match stream.send(left) {
            Ok(count) => left = &left[count..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                stream.wait(PollFlags::OUT, deadline)?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Problem::Lost(error)),
        }
    }
    Ok(())
}

/// Waits until something comes, and puts it into the session.
fn receive(
    stream: &mut Stream,
    session: &mut Session,
    deadline: &mut Deadline<'_>,
) -> Result<(), Problem> {
    loop {
        stream.wait(PollFlags::IN, deadline)?;
        match stream.receive(session.room()) {
            Ok(0) => return Err(Problem::Closed(None)),
            Ok(count) => {
                session.filled(count);
                return Ok(());
            }
            Err(error) if is_transient(&error) => {}
            Err(error) => return Err(Problem::Lost(error)),
        }
    }
}
