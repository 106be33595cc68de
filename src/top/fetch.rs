//! Asks an admin listener for its metrics.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::listen::{Address, AddressError};

/// The longest time for each step of an answer.
pub const ANSWER_TIME_MAX: Duration = Duration::from_secs(2);
/// The largest answer: that of a server with as many workers as it can have is some 4 MiB.
pub const ANSWER_BYTES_MAX: u64 = 16 << 20;

/// Where an admin listener is: as `--admin` takes it, or as the URL of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// At an IP address.
    Tcp(SocketAddr),
    /// At a Unix socket.
    Unix(PathBuf),
}

/// Why a text is no [`Target`].
#[derive(Debug)]
pub struct TargetError(AddressError);

impl fmt::Display for TargetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl std::error::Error for TargetError {}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Target, TargetError> {
        let address = match text.strip_prefix("http://") {
            Some(rest) => rest.split('/').next().unwrap_or_default(),
            None => text,
        };
        match address.parse().map_err(TargetError)? {
            Address::Tcp(address) => Ok(Target::Tcp(address)),
            Address::Unix(path) => Ok(Target::Unix(path)),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Tcp(address) => address.fmt(f),
            Target::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// The metrics in the text format of Prometheus.
pub(super) fn fetch(target: &Target) -> io::Result<String> {
    let time = Some(ANSWER_TIME_MAX);
    match target {
        Target::Tcp(address) => {
            let stream = TcpStream::connect_timeout(address, ANSWER_TIME_MAX)?;
            stream.set_read_timeout(time)?;
            stream.set_write_timeout(time)?;
            ask(stream)
        }
        Target::Unix(path) => {
            let stream = UnixStream::connect(path)?;
            stream.set_read_timeout(time)?;
            stream.set_write_timeout(time)?;
            ask(stream)
        }
    }
}

fn ask(mut stream: impl Read + Write) -> io::Result<String> {
    let request = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nAccept: text/plain; version=0.0.4\r\n\
                   Connection: close\r\n\r\n";
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => io::Error::new(io::ErrorKind::TimedOut, "no answer in time"),
        _ => error,
    })?;
    content(&answer)
        .map(str::to_owned)
        .ok_or_else(|| io::Error::other("the answer is not that of an admin listener"))
}

/// The content of a whole answer with status 200.
fn content(answer: &[u8]) -> Option<&str> {
    let mut fields = [httparse::EMPTY_HEADER; 32];
    let mut head = httparse::Response::new(&mut fields);
    let httparse::Status::Complete(begin) = head.parse(answer).ok()? else { return None };
    let length = head.headers.iter().find(|it| it.name.eq_ignore_ascii_case("content-length"))?;
    let length: usize = str::from_utf8(length.value).ok()?.parse().ok()?;
    let content = answer[begin..].get(..length)?;
    (head.code == Some(200)).then_some(())?;
    str::from_utf8(content).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_an_address_or_its_url() {
        let address = Target::Tcp("127.0.0.1:9100".parse().expect("an address"));
        for text in ["127.0.0.1:9100", "http://127.0.0.1:9100", "http://127.0.0.1:9100/metrics"] {
            assert_eq!(text.parse::<Target>().expect(text), address);
        }
        assert_eq!("unix:/a".parse::<Target>().expect("a path"), Target::Unix("/a".into()));
        for text in ["9100", "https://127.0.0.1:9100", "http://", "unix:"] {
            text.parse::<Target>().expect_err(text);
        }
    }

    #[test]
    fn only_a_whole_answer_that_is_good_has_content() {
        let answer = |status: u16, length: usize| {
            format!("HTTP/1.1 {status} x\r\nContent-Length: {length}\r\n\r\nabc")
        };
        assert_eq!(content(answer(200, 3).as_bytes()), Some("abc"));
        assert_eq!(content(answer(200, 2).as_bytes()), Some("ab"));
        for bad in [answer(200, 4), answer(503, 3), "HTTP/1.1 200 x\r\n".into(), "hello".into()] {
            assert_eq!(content(bad.as_bytes()), None, "{bad}");
        }
    }
}
