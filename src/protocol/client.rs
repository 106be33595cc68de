//! The client's side of the opening handshake (RFC 6455 section 4.1), for the lab: a request that every
//! server understands, and the checks of the response that the RFC demands.
//!
//! This file knows neither sockets nor time. It does not follow redirects and does not authenticate; it
//! says what the server answered instead.

use std::borrow::Cow;
use std::fmt;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as BASE64;
use httparse::{Header, ParserConfig, Response, Status};

use super::extension;
use super::fields::{elements, has_token, sole, values};
use super::handshake::{HEADERS_MAX, accept_of};

/// The longest head of a response that is read, in bytes, with interim responses before it.
pub const RESPONSE_BYTES_MAX: usize = 16 << 10;

/// What is asked of a server.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    /// The value of the field Host: a host, and a port unless it is 80 (see
    /// [`super::uri::is_host_and_port`]).
    pub host: &'a str,
    /// Path and query, at least `/` (see [`super::uri::is_path_and_query`]).
    pub target: &'a str,
    /// Sixteen bytes chosen at random.
    pub key: [u8; 16],
    /// The value of Sec-WebSocket-Extensions, if extensions are offered.
    pub extensions: Option<&'a str>,
}

impl Request<'_> {
    /// The bytes of the request.
    ///
    /// # Panics
    ///
    /// When `host` or `target` is not what its field says: it could smuggle fields into the request.
    pub fn to_bytes(&self) -> Vec<u8> {
        let Request { host, target, key, extensions } = self;
        assert!(super::uri::is_host_and_port(host), "{host:?} is a host and a port");
        assert!(super::uri::is_path_and_query(target), "{target:?} is a path and a query");
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

    /// Checks the response at the beginning of `received`; `Ok(None)` while its end is missing.
    ///
    /// # Errors
    ///
    /// Why this opens no WebSocket connection.
    pub fn check(&self, received: &[u8]) -> Result<Option<Accepted>, Refusal> {
        // A TLS record: an alert or a handshake, of any version (RFC 8446 section 5.1).
        match received {
            [0x15 | 0x16, 0x03, ..] => return Err(Refusal::Tls),
            [0x15 | 0x16] => return Ok(None),
            _ => {}
        }
        let window = &received[..received.len().min(RESPONSE_BYTES_MAX)];
        let mut start = 0;
        loop {
            let rest = &in_a_known_version(&window[start..])[..];
            let mut fields = [httparse::EMPTY_HEADER; HEADERS_MAX];
            let mut response = Response::new(&mut fields);
            // RFC 9112 section 5.2: a user agent takes a folded line for one with a space instead.
            let parsed = ParserConfig::default()
                .allow_obsolete_multiline_headers_in_responses(true)
                .parse_response(&mut response, rest);
            let length = match parsed {
                Ok(Status::Complete(length)) => length,
                Ok(Status::Partial) if window.len() < RESPONSE_BYTES_MAX => return Ok(None),
                Ok(Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
                    return Err(Refusal::HeadTooLong);
                }
                Err(httparse::Error::Version) if rest.starts_with(b"HTTP/") => {
                    return Err(Refusal::HttpVersion);
                }
                Err(_) => return Err(Refusal::NotHttp),
            };
            start += length;
            let Some(status) = response.code else { return Err(Refusal::NotHttp) };
            match status {
                // Section 4.1: the server may switch protocols in HTTP/1.1 only.
                101 if response.version != Some(1) => return Err(Refusal::HttpVersion),
                101 => {
                    let extensions = self.check_fields(response.headers)?;
                    return Ok(Some(Accepted { head_bytes: start, extensions }));
                }
                // RFC 9110 section 15.2: any number of interim responses may come first, asked for or
                // not.
                100..=199 => {}
                _ => return Err(refused(status, response.headers)),
            }
        }
    }

    /// Checks the fields of a response with status 101 against the list in section 4.1, and returns the
    /// extensions in use.
    fn check_fields(&self, fields: &[Header<'_>]) -> Result<Option<String>, Refusal> {
        // Item 2: a value that is not "websocket" fails, also one that names more protocols.
        let mut protocols = elements(fields, "Upgrade").peekable();
        if protocols.peek().is_none() {
            return Err(Refusal::UpgradeMissing);
        }
        if !protocols.all(|protocol| protocol.eq_ignore_ascii_case(b"websocket")) {
            return Err(Refusal::UpgradeOther);
        }
        // Item 3.
        if !has_token(fields, "Connection", "Upgrade") {
            return Err(Refusal::ConnectionMissing);
        }
        // Item 4; section 11.3.3: only once.
        let accept =
            sole(fields, "Sec-WebSocket-Accept", Refusal::AcceptMissing, Refusal::AcceptRepeated)?;
        if accept.trim_ascii() != accept_of(BASE64.encode(self.key).as_bytes()).as_bytes() {
            return Err(Refusal::AcceptWrong);
        }
        // Item 6: none was asked for.
        if values(fields, "Sec-WebSocket-Protocol").next().is_some() {
            return Err(Refusal::SubprotocolUnasked);
        }
        self.check_extensions(fields)
    }

    /// Item 5: only extensions that were offered; section 9.1: written by the grammar. What their
    /// parameters mean is for the caller to judge.
    fn check_extensions(&self, fields: &[Header<'_>]) -> Result<Option<String>, Refusal> {
        let offered = extension::parse(self.extensions.unwrap_or_default().as_bytes())
            .map_err(|_| Refusal::ExtensionsMalformed)?;
        let mut values_in_use = Vec::new();
        for value in values(fields, "Sec-WebSocket-Extensions") {
            let answered = extension::parse(value).map_err(|_| Refusal::ExtensionsMalformed)?;
            for extension in &answered {
                if !offered.iter().any(|offer| offer.name == extension.name) {
                    return Err(Refusal::ExtensionUnasked);
                }
            }
            if !answered.is_empty() {
                values_in_use.push(String::from_utf8_lossy(value).trim().to_owned());
            }
        }
        Ok((!values_in_use.is_empty()).then(|| values_in_use.join(", ")))
    }
}

/// RFC 9110 section 2.5: a message of a higher minor version is processed as one of the highest that is
/// known.
fn in_a_known_version(head: &[u8]) -> Cow<'_, [u8]> {
    const DIGIT: usize = b"HTTP/1.".len();
    match head.get(DIGIT) {
        Some(b'2'..=b'9') if head.starts_with(b"HTTP/1.") => {
            let mut known = head.to_vec();
            known[DIGIT] = b'1';
            Cow::Owned(known)
        }
        Some(_) | None => Cow::Borrowed(head),
    }
}

/// Why a final status that is not 101 opens no connection.
fn refused(status: u16, fields: &[Header<'_>]) -> Refusal {
    match values(fields, "Location").next() {
        Some(location) if (300..=399).contains(&status) => {
            Refusal::Redirect(status, String::from_utf8_lossy(location).trim().to_owned())
        }
        Some(_) | None => Refusal::Status(status),
    }
}

/// A response that opens a WebSocket connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// Its length in bytes, with interim responses before it. Frames follow.
    pub head_bytes: usize,
    /// The extensions in use, with their parameters, as the server wrote them.
    pub extensions: Option<String>,
}

/// Why a response opens no WebSocket connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// It is not an HTTP response, or one that breaks the grammar (RFC 9112).
    NotHttp,
    /// The server speaks TLS.
    Tls,
    /// The version of HTTP is neither 1.1 nor a later 1.
    HttpVersion,
    /// The head is longer than [`RESPONSE_BYTES_MAX`], or has more fields than [`HEADERS_MAX`].
    HeadTooLong,
    /// The status is final, and not 101.
    Status(u16),
    /// The status redirects (RFC 9110 section 15.4), to the value of Location.
    Redirect(u16, String),
    /// There is no Upgrade field.
    UpgradeMissing,
    /// Upgrade names another protocol than websocket.
    UpgradeOther,
    /// Connection does not name Upgrade.
    ConnectionMissing,
    /// There is no Sec-WebSocket-Accept field.
    AcceptMissing,
    /// There is more than one Sec-WebSocket-Accept field.
    AcceptRepeated,
    /// Sec-WebSocket-Accept does not answer this key.
    AcceptWrong,
    /// Sec-WebSocket-Extensions breaks its grammar.
    ExtensionsMalformed,
    /// An extension is in use that was not offered.
    ExtensionUnasked,
    /// A subprotocol is in use that was not offered.
    SubprotocolUnasked,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::NotHttp => f.write_str("the answer is not HTTP/1.1"),
            Refusal::Tls => f.write_str("the server answers with TLS, which ws:// does not use"),
            Refusal::HttpVersion => f.write_str("the answer has another version than HTTP/1.1"),
            Refusal::HeadTooLong => write!(
                f,
                "the head of the answer has more than {RESPONSE_BYTES_MAX} bytes or {HEADERS_MAX} \
                 fields"
            ),
            Refusal::Status(status) | Refusal::Redirect(status, _) => match phrase(*status) {
                Some(phrase) => write!(f, "the answer is {status} {phrase}, not 101"),
                None => write!(f, "the answer has status {status}, not 101"),
            },
            Refusal::UpgradeMissing => f.write_str("the answer has no `Upgrade: websocket`"),
            Refusal::UpgradeOther => {
                f.write_str("the answer upgrades to another protocol than websocket")
            }
            Refusal::ConnectionMissing => f.write_str("the answer has no `Connection: Upgrade`"),
            Refusal::AcceptMissing => f.write_str("the answer has no Sec-WebSocket-Accept"),
            Refusal::AcceptRepeated => {
                f.write_str("the answer has more than one Sec-WebSocket-Accept")
            }
            Refusal::AcceptWrong => {
                f.write_str("the answer's Sec-WebSocket-Accept does not belong to this request")
            }
            Refusal::ExtensionsMalformed => {
                f.write_str("the answer's Sec-WebSocket-Extensions is malformed")
            }
            Refusal::ExtensionUnasked => {
                f.write_str("the answer uses an extension that was not offered")
            }
            Refusal::SubprotocolUnasked => {
                f.write_str("the answer uses a subprotocol that was not offered")
            }
        }
    }
}

impl std::error::Error for Refusal {}

/// The names of the statuses that servers and proxies answer a handshake with (RFC 9110 section 15).
fn phrase(status: u16) -> Option<&'static str> {
    Some(match status {
        200 => "OK",
        204 => "No Content",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        407 => "Proxy Authentication Required",
        408 => "Request Timeout",
        410 => "Gone",
        421 => "Misdirected Request",
        426 => "Upgrade Required",
        429 => "Too Many Requests",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::super::extension::Policy;
    use super::super::handshake::{self, Access, Admission, Subprotocol, Terms};
    use super::super::pool::Budget;
    use super::*;

    fn request(extensions: Option<&'static str>) -> Request<'static> {
        Request { host: "localhost:9001", target: "/?a", key: *b"the sample nonce", extensions }
    }

    fn answered(request: &Request<'_>) -> Vec<u8> {
        let answer = handshake::answer(
            &request.to_bytes(),
            Admission::Open,
            &Terms {
                policy: Policy::Mirror,
                subprotocol: &Subprotocol::Any,
                access: &Access::default(),
                recompression: &Budget::new(1 << 20),
            },
        );
        answer.expect("a right request").expect("a whole request").response
    }

    #[test]
    fn client_and_server_understand_each_other_at_the_last_byte_and_not_before() {
        for offer in [None, Some("permessage-deflate; server_max_window_bits=10")] {
            let request = request(offer);
            let mut response = answered(&request);
            let head_bytes = response.len();
            for end in 0..head_bytes {
                assert_eq!(request.check(&response[..end]), Ok(None));
            }
            response.extend(b"\x81\x00");
            // The server recompresses if it must not limit the client's window.
            let accepted = Accepted { head_bytes, extensions: offer.map(str::to_owned) };
            assert_eq!(request.check(&response), Ok(Some(accepted)));
        }
    }

    /// The right answer to a request without extensions.
    fn right() -> String {
        String::from_utf8(answered(&request(None))).expect("ASCII")
    }

    fn check(response: impl AsRef<[u8]>) -> Result<Option<Accepted>, Refusal> {
        request(None).check(response.as_ref())
    }

    #[test]
    fn what_opens_a_connection_beyond_the_plain_form() {
        let right = right();
        for (from, to) in [
            ("Upgrade: websocket", "upgrade:WebSocket"),
            ("Upgrade: websocket", "Upgrade: ,websocket, "),
            ("Connection: Upgrade", "Connection: keep-alive\r\nConnection: x,\tupgrade"),
            ("Accept: ", "Accept:  \t"),
            // RFC 9112 section 5.2.
            ("Accept: ", "Accept:\r\n "),
            ("Switching Protocols", ""),
            ("HTTP/1.1", "HTTP/1.2"),
            ("HTTP/1.1", "HTTP/1.9"),
            // RFC 9112 section 6.3: a 1xx response ends with its head, whatever its fields say.
            ("Upgrade: w", "Content-Length: 5\r\nUpgrade: w"),
            ("Upgrade: w", "Sec-WebSocket-Extensions: ,\r\nUpgrade: w"),
        ] {
            let response = right.replacen(from, to, 1);
            let accepted = Accepted { head_bytes: response.len(), extensions: None };
            assert_eq!(check(response), Ok(Some(accepted)), "{to:?}");
        }
    }

    #[test]
    fn interim_responses_may_come_first() {
        let interim = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
        let whole = format!("{interim}{}", right());
        for end in 0..whole.len() {
            assert_eq!(check(&whole[..end]), Ok(None), "{end}");
        }
        let accepted = Accepted { head_bytes: whole.len(), extensions: None };
        assert_eq!(check(format!("{whole}\u{0}")), Ok(Some(accepted)));
        let refused = format!("{interim}HTTP/1.1 403 Forbidden\r\n\r\n");
        assert_eq!(check(refused), Err(Refusal::Status(403)));
        assert_eq!(check(interim.repeat(300) + &right()), Err(Refusal::HeadTooLong));
    }

    #[test]
    fn what_opens_no_connection() {
        use Refusal::*;
        let right = right();
        for (from, to, refusal) in [
            ("HTTP/1.1", "SSH-2.0", NotHttp),
            ("HTTP/1.1", "HTTP/1.0", HttpVersion),
            ("HTTP/1.1", "HTTP/2.0", HttpVersion),
            ("HTTP/1.1", "HTTP/2.1", HttpVersion),
            ("HTTP/1.1 101", "HTTP/1.3 404", Status(404)),
            ("HTTP/1.1", "HTTP/1.10", HttpVersion),
            ("101", "200", Status(200)),
            ("101", "302", Status(302)),
            (
                "101 ",
                "302 x\r\nLocation: wss://a/b?c \r\nX: ",
                Redirect(302, "wss://a/b?c".to_owned()),
            ),
            ("101 ", "200 x\r\nLocation: /\r\nX: ", Status(200)),
            ("HTTP/1.1 101", "HTTP/1.0 401", Status(401)),
            ("101", "1010", NotHttp),
            ("Upgrade: websocket\r\n", "", UpgradeMissing),
            ("Upgrade: websocket", "Upgrade:", UpgradeMissing),
            ("Upgrade: websocket", "Upgrade: h2c", UpgradeOther),
            ("Upgrade: websocket", "Upgrade: h2c, websocket", UpgradeOther),
            ("Upgrade: websocket", "Upgrade: websocket/13", UpgradeOther),
            ("Connection: Upgrade\r\n", "", ConnectionMissing),
            ("Connection: Upgrade", "Connection: close", ConnectionMissing),
            ("Sec-WebSocket-Accept: ", "Other: ", AcceptMissing),
            ("Accept: ", "Accept: x", AcceptWrong),
            ("Accept: ", "Accept:\r\nX: ", AcceptWrong),
            (
                "Sec-WebSocket-Accept",
                "Sec-WebSocket-Accept: x\r\nSec-WebSocket-Accept",
                AcceptRepeated,
            ),
            ("Connection", "Sec-WebSocket-Protocol: chat\r\nConnection", SubprotocolUnasked),
            ("Connection", "Sec-WebSocket-Extensions: a\r\nConnection", ExtensionUnasked),
            ("Connection", "Sec-WebSocket-Extensions: a;\r\nConnection", ExtensionsMalformed),
            ("Connection:", "Connection :", NotHttp),
            ("Connection", "X: a\0\r\nConnection", NotHttp),
            ("Connection", "X: a\rb\r\nConnection", NotHttp),
        ] {
            assert!(right.contains(from), "{from}");
            let wrong = right.replacen(from, to, 1);
            assert_eq!(check(&wrong), Err(refusal), "{wrong}");
        }
        // What echoes plain bytes sends the request back.
        assert_eq!(check(request(None).to_bytes()), Err(NotHttp));
        assert_eq!(check(b"\x15\x03\x01\0\x02"), Err(Tls));
        // Whether it is TLS, the second byte tells.
        assert_eq!((check(b"\x16"), check(b"\x16\x01")), (Ok(None), Err(NotHttp)));
        assert_eq!(check([b'a'; RESPONSE_BYTES_MAX]), Err(NotHttp));
        let endless = [right.trim_end().as_bytes(), &[b'a'; RESPONSE_BYTES_MAX]].concat();
        assert_eq!(check(&endless), Err(HeadTooLong));
        let many = right.replacen("Connection", &format!("{}Connection", "X: y\r\n".repeat(64)), 1);
        assert_eq!(check(many), Err(HeadTooLong));
    }

    #[test]
    fn extensions_are_those_that_were_offered() {
        let request = request(Some("permessage-deflate"));
        let right = right();
        let check = |value: &str| {
            let field = format!("Sec-WebSocket-Extensions: {value}\r\nConnection");
            request.check(right.replacen("Connection", &field, 1).as_bytes())
        };
        let accepted = check("permessage-deflate; client_no_context_takeover").expect("offered");
        let extensions = accepted.expect("whole").extensions;
        assert_eq!(extensions.as_deref(), Some("permessage-deflate; client_no_context_takeover"));
        for (value, refusal) in [
            ("permessage-bzip2", Refusal::ExtensionUnasked),
            ("permessage-deflate, permessage-bzip2", Refusal::ExtensionUnasked),
            ("permessage-deflate; =", Refusal::ExtensionsMalformed),
        ] {
            assert_eq!(check(value), Err(refusal), "{value}");
        }
    }

    #[test]
    #[should_panic(expected = "is a path and a query")]
    fn a_target_cannot_smuggle_fields_into_the_request() {
        let _ = Request { target: "/\r\nX: y", ..request(None) }.to_bytes();
    }

    #[test]
    fn statuses_are_named() {
        assert_eq!(Refusal::Status(401).to_string(), "the answer is 401 Unauthorized, not 101");
        assert_eq!(Refusal::Status(299).to_string(), "the answer has status 299, not 101");
    }
}
