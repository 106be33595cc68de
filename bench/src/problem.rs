//! Why a connection to a server cannot be measured, or no longer can.

use std::borrow::Cow;
use std::error::Error;
use std::fmt;
use std::io;
use std::time::Duration;

use ringecho::protocol::client::Refusal;
use ringecho::protocol::violation::Violation;

use crate::tls;

/// What a connection waits for; each has a deadline of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The addresses of a host name, and a connection to one of them.
    Connect,
    /// The handshake of TLS.
    Tls,
    /// The whole answer to the opening handshake.
    Handshake,
    /// Room for a message, and its whole echo.
    Echo,
    /// The server's close frame and the end of the connection.
    Close,
}

/// Why a server cannot be measured, or no longer can.
#[derive(Debug)]
pub enum Problem {
    /// The host name has no address.
    CannotResolve(io::Error),
    /// There is no connection.
    CannotConnect(io::Error),
    /// There is a connection, but no TLS on it that can be trusted.
    NoTls(tls::Failure),
    /// What listens there accepts no WebSocket connection.
    Refused(Refusal),
    /// The connection ended before the whole answer to the opening handshake had come: by the server,
    /// or by an error.
    Unanswered(Option<io::Error>),
    /// The server declines permessage-deflate.
    NoCompression,
    /// The server agrees to something that was not offered or that RFC 7692 does not allow: the
    /// value of Sec-WebSocket-Extensions.
    WrongExtensions(String),
    /// A step was not done in its time.
    TimedOut(Step, Duration),
    /// The user asked for the end. This is no fault of the server's.
    Stopped,
    /// The server broke the protocol.
    Broken(Violation),
    /// The echo of a message differs from it: which message, and the first byte that differs, both
    /// counted from 0.
    WrongEcho(u64, usize),
    /// A message came back as text instead of binary, or the other way round.
    WrongForm(u64),
    /// The echo of this message came more than once.
    RepeatedEcho(u64),
    /// A message came while none was awaited.
    UnawaitedEcho,
    /// A message of the server has more bytes than this, and so is no echo of any.
    TooLong(usize),
    /// The server closed the connection, with this code.
    Closed(Option<u16>),
    /// The connection was lost.
    Lost(io::Error),
}

impl Problem {
    /// Whether the process, or the system, has no more descriptors.
    pub fn is_out_of_descriptors(&self) -> bool {
        use rustix::io::Errno;
        match self {
            Problem::CannotResolve(error)
            | Problem::CannotConnect(error)
            | Problem::Lost(error) => {
                matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE))
            }
            Problem::NoTls(_)
            | Problem::Refused(_)
            | Problem::NoCompression
            | Problem::WrongExtensions(_)
            | Problem::TimedOut(..)
            | Problem::Stopped
            | Problem::Broken(_)
            | Problem::WrongEcho(..)
            | Problem::WrongForm(_)
            | Problem::RepeatedEcho(_)
            | Problem::UnawaitedEcho
            | Problem::TooLong(_)
            | Problem::Unanswered(_)
            | Problem::Closed(_) => false,
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::CannotResolve(error) => {
                write!(f, "cannot resolve the host name: {}", plain(error))
            }
            Problem::CannotConnect(error) => {
                write!(f, "cannot connect: {}", plain(error))?;
                match error.kind() {
                    io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => {
                        f.write_str("; start the server, or check the address")
                    }
                    _ => Ok(()),
                }
            }
            Problem::NoTls(failure) => failure.fmt(f),
            Problem::Refused(refusal) => {
                write!(f, "not a WebSocket server: {refusal}")?;
                hint(refusal).map_or(Ok(()), |hint| write!(f, "; {hint}"))
            }
            Problem::Unanswered(lost) => {
                match lost {
                    Some(error) => write!(f, "connection lost: {}", plain(error))?,
                    None => f.write_str("the server closed the connection")?,
                }
                f.write_str(
                    " before it had answered the opening handshake; it may speak another protocol, \
                     or see its log",
                )
            }
            Problem::NoCompression => {
                f.write_str("the server declines permessage-deflate; leave out --compress")
            }
            Problem::WrongExtensions(answer) => write!(
                f,
                "the server answers permessage-deflate with {answer:?}, which the offer does not \
                 allow"
            ),
            Problem::TimedOut(step, timeout) => {
                let seconds = timeout.as_secs_f64();
                match step {
                    Step::Connect => write!(f, "cannot connect: no answer within {seconds} s"),
                    Step::Tls => write!(
                        f,
                        "no complete TLS handshake within {seconds} s; the server may not speak TLS"
                    ),
                    Step::Handshake => {
                        write!(f, "no complete answer to the opening handshake within {seconds} s")
                    }
                    Step::Echo => write!(f, "no complete echo within {seconds} s"),
                    Step::Close => write!(f, "the connection did not end within {seconds} s"),
                }
            }
            Problem::Stopped => f.write_str("ended by a signal"),
            Problem::Broken(violation) => {
                write!(f, "the server broke the protocol: {}", violation.reason())
            }
            Problem::WrongEcho(message, byte) => {
                write!(f, "message {message}: echo differs at byte {byte} (counted from 0)")
            }
            Problem::WrongForm(message) => {
                write!(f, "message {message}: echo is text instead of binary, or the reverse")
            }
            Problem::RepeatedEcho(message) => write!(f, "message {message}: echoed twice"),
            Problem::UnawaitedEcho => f.write_str("the server sent a message that is no echo"),
            Problem::TooLong(bytes) => {
                write!(f, "the server sent a message of more than {bytes} bytes, which is no echo")
            }
            Problem::Closed(Some(code)) => {
                write!(f, "the server closed with code {code}")
            }
            Problem::Closed(None) => f.write_str("the server closed the connection"),
            Problem::Lost(error) => write!(f, "connection lost: {}", plain(error)),
        }
    }
}

impl Error for Problem {}

/// What to do about an answer that is no right 101.
fn hint(refusal: &Refusal) -> Option<Cow<'static, str>> {
    let hint = match refusal {
        Refusal::NotHttp => "to measure a plain TCP echo, write tcp://",
        Refusal::Tls => "the server speaks TLS there; write wss:// instead of ws://",
        Refusal::HttpVersion => {
            "a WebSocket needs HTTP/1.1; give the server's own address if this is a proxy's"
        }
        Refusal::HeadTooLong => "have the server send fewer or shorter fields",
        Refusal::Redirect(_, location) => {
            // It is the server's text, which must not control a terminal.
            let location = location.escape_debug();
            return Some(format!("it redirects to {location}; give that address").into());
        }
        Refusal::Status(status) => return status_hint(*status).map(Cow::from),
        Refusal::UpgradeMissing | Refusal::ConnectionMissing => {
            "a proxy may have taken it out; give the server's own address"
        }
        Refusal::UpgradeOther
        | Refusal::AcceptMissing
        | Refusal::AcceptRepeated
        | Refusal::AcceptWrong
        | Refusal::ExtensionsMalformed
        | Refusal::ExtensionUnasked
        | Refusal::SubprotocolUnasked => return None,
    };
    Some(hint.into())
}

fn status_hint(status: u16) -> Option<&'static str> {
    match status {
        300..=399 => Some("it redirects; give the address that it redirects to"),
        401 | 403 | 407 => Some("it wants credentials, which ringbench cannot send"),
        404 | 405 | 410 => Some("check the path of the URL"),
        426 => Some("it may speak another version of the WebSocket protocol than 13"),
        200..=299 => Some("a web server answers there; check the port and the path of the URL"),
        429 | 503 => Some("it is at its limit of connections, or overloaded"),
        500..=599 => Some("see the server's log"),
        _ => None,
    }
}

/// The text of an error to use within a sentence: without a capital letter and without its number.
pub fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error ").next().unwrap_or_default();
    // The message says already that a name could not be resolved.
    let text = text.trim_start_matches("failed to lookup address information: ");
    let mut characters = text.chars();
    characters
        .next()
        .map(|first| first.to_lowercase().chain(characters).collect())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_errors_read_as_a_part_of_a_sentence() {
        let refused = io::Error::from(rustix::io::Errno::CONNREFUSED);
        assert_eq!(
            Problem::CannotConnect(refused).to_string(),
            "cannot connect: connection refused; start the server, or check the address"
        );
        let reset = io::Error::from(rustix::io::Errno::CONNRESET);
        assert_eq!(Problem::Lost(reset).to_string(), "connection lost: connection reset by peer");
    }

    #[test]
    fn a_hint_fits_what_was_answered() {
        for (refusal, hint) in [
            (Refusal::NotHttp, "tcp://"),
            (Refusal::Status(302), "redirects"),
            (Refusal::Status(404), "path"),
            (Refusal::Status(503), "limit"),
            (Refusal::Redirect(301, "wss://a\u{9b}2J/".to_owned()), r"to wss://a\u{9b}2J/;"),
            (Refusal::Tls, "wss://"),
            (Refusal::HttpVersion, "HTTP/1.1"),
            (Refusal::HeadTooLong, "fewer"),
            (Refusal::UpgradeMissing, "proxy"),
        ] {
            let text = Problem::Refused(refusal).to_string();
            assert!(text.contains(hint), "{text}");
        }
        let wrong = Problem::Refused(Refusal::AcceptWrong).to_string();
        assert!(!wrong.contains(';'), "{wrong}");
    }
}
