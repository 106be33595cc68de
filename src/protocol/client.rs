//! The client's side of the opening handshake (RFC 6455 section 4.1).
//!
//! ringecho needs it for its own measurements: the request is one that every server understands, and
//! the response is checked as the RFC demands.

use std::fmt;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as BASE64;

use super::handshake::fields::{has_token, values};
use super::handshake::{HEADERS_MAX, accept_of};

/// The head of a response, at most, in octets.
pub const RESPONSE_BYTES_MAX: usize = 16 << 10;

/// What is asked of a server.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    /// The value of the field Host: a name or an address, and maybe a port.
    pub host: &'a str,
    /// Path and query, `/` at least.
    pub target: &'a str,
    /// Sixteen octets chosen at random.
    pub key: [u8; 16],
    /// The value of Sec-WebSocket-Extensions, if something is offered.
    pub extensions: Option<&'a str>,
}

impl Request<'_> {
    /// The octets of the request.
    pub fn octets(&self) -> Vec<u8> {
        let Request { host, target, key, extensions } = self;
        let key = BASE64.encode(key);
        let extensions = extensions
            .map(|value| format!("Sec-WebSocket-Extensions: {value}\r\n"))
            .unwrap_or_default();
        format!(
            "GET {target} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\n\
             Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n\
             Sec-WebSocket-Version: 13\r\n{extensions}\r\n"
        )
        .into_bytes()
    }

    /// Checks the response at the beginning of `received`. `None`: it is not whole.
    ///
    /// # Errors
    ///
    /// Why this is no WebSocket connection.
    pub fn check(&self, received: &[u8]) -> Result<Option<Accepted>, Refusal> {
        let mut fields = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut response = httparse::Response::new(&mut fields);
        let head_bytes = match response.parse(received) {
            Ok(httparse::Status::Complete(octets)) => octets,
            Ok(httparse::Status::Partial) if received.len() < RESPONSE_BYTES_MAX => {
                return Ok(None);
            }
            Ok(httparse::Status::Partial) | Err(_) => return Err(Refusal::NotHttp),
        };
        let status = response.code.unwrap_or_default();
        if status != 101 {
            return Err(Refusal::Status(status));
        }
        let fields = response.headers;
        if !has_token(fields, "Upgrade", "websocket") {
            return Err(Refusal::UpgradeMissing);
        }
        if !has_token(fields, "Connection", "Upgrade") {
            return Err(Refusal::ConnectionMissing);
        }
        let expected = accept_of(BASE64.encode(self.key).as_bytes());
        let mut accepts = values(fields, "Sec-WebSocket-Accept");
        if accepts.next().map(<[u8]>::trim_ascii) != Some(expected.as_bytes()) {
            return Err(Refusal::AcceptWrong);
        }
        let extensions: Vec<String> = values(fields, "Sec-WebSocket-Extensions")
            .map(|value| String::from_utf8_lossy(value).trim().to_owned())
            .collect();
        if !extensions.is_empty() && self.extensions.is_none() {
            return Err(Refusal::ExtensionUnasked);
        }
        let extensions = (!extensions.is_empty()).then(|| extensions.join(", "));
        Ok(Some(Accepted { head_bytes, extensions }))
    }
}

/// A response that opens a WebSocket connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// Its length; behind it stand frames.
    pub head_bytes: usize,
    /// The extensions that the server agreed to.
    pub extensions: Option<String>,
}

/// Why a response opens no WebSocket connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It is no response of HTTP/1.1.
    NotHttp,
    /// It has another status than 101.
    Status(u16),
    /// Upgrade does not say websocket.
    UpgradeMissing,
    /// Connection does not say Upgrade.
    ConnectionMissing,
    /// Sec-WebSocket-Accept is not the answer to this key.
    AcceptWrong,
    /// It has an extension that was not offered.
    ExtensionUnasked,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::NotHttp => f.write_str("the answer is not HTTP/1.1"),
            Refusal::Status(status) => write!(f, "the answer has status {status}, not 101"),
            Refusal::UpgradeMissing => f.write_str("the answer has no `Upgrade: websocket`"),
            Refusal::ConnectionMissing => f.write_str("the answer has no `Connection: Upgrade`"),
            Refusal::AcceptWrong => {
                f.write_str("the answer's Sec-WebSocket-Accept is not that of this request")
            }
            Refusal::ExtensionUnasked => {
                f.write_str("the answer has an extension that was not offered")
            }
        }
    }
}

impl std::error::Error for Refusal {}

#[cfg(test)]
mod tests {
    use super::super::extension::Policy;
    use super::super::handshake::{self, Admission, Subprotocol, Terms};
    use super::*;

    fn request(extensions: Option<&'static str>) -> Request<'static> {
        Request { host: "localhost:9001", target: "/?a", key: *b"the sample nonce", extensions }
    }

    fn answered(request: &Request<'_>) -> Vec<u8> {
        let answer = handshake::answer(
            &request.octets(),
            Admission::Open,
            &Terms { policy: Policy::Mirror, subprotocol: &Subprotocol::Any },
        );
        answer.expect("a right request").expect("a whole request").response
    }

    #[test]
    fn client_and_server_understand_each_other_at_the_last_octet_and_not_before() {
        for offer in [None, Some("permessage-deflate; server_max_window_bits=10")] {
            let request = request(offer);
            let mut response = answered(&request);
            let head_bytes = response.len();
            for end in 0..head_bytes {
                assert_eq!(request.check(&response[..end]), Ok(None));
            }
            response.extend(b"\x81\x00");
            // The server compresses again where the client cannot be told its window.
            let accepted = Accepted { head_bytes, extensions: offer.map(str::to_owned) };
            assert_eq!(request.check(&response), Ok(Some(accepted)));
        }
    }

    #[test]
    fn what_is_no_websocket_is_refused() {
        let request = request(None);
        let right = String::from_utf8(answered(&request)).expect("ASCII");
        for (from, to, refusal) in [
            ("HTTP/1.1", "SSH-2.0", Refusal::NotHttp),
            ("101", "200", Refusal::Status(200)),
            ("Upgrade: websocket", "Upgrade: h2c", Refusal::UpgradeMissing),
            ("Connection: Upgrade", "Connection: close", Refusal::ConnectionMissing),
            ("Accept: ", "Accept: x", Refusal::AcceptWrong),
            ("Accept: ", "Other: ", Refusal::AcceptWrong),
            (
                "\r\n\r\n",
                "\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n",
                Refusal::ExtensionUnasked,
            ),
        ] {
            let wrong = right.replacen(from, to, 1);
            assert_eq!(request.check(wrong.as_bytes()), Err(refusal), "{wrong}");
        }
        assert_eq!(request.check(&[b'a'; RESPONSE_BYTES_MAX]), Err(Refusal::NotHttp));
        let endless = [right.trim_end().as_bytes(), &[b'a'; RESPONSE_BYTES_MAX]].concat();
        assert_eq!(request.check(&endless), Err(Refusal::NotHttp));
    }
}
