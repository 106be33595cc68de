//! The request of a client that is tested: read strictly, and judged by what a client has to send
//! (RFC 6455 section 4.1, RFC 9112). This is written apart from the server's own code.

use std::fmt;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as BASE64;
use ringecho::protocol::extension::{self, Offer};

/// The longest head of a request that is read, in bytes.
pub const REQUEST_BYTES_MAX: usize = 64 << 10;

/// The head of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Its method.
    pub method: String,
    /// Its target, as it was sent.
    pub target: String,
    /// Its fields by name and value, in their order.
    pub fields: Vec<(String, String)>,
    /// Its length in bytes.
    pub bytes: usize,
    /// The digit after `HTTP/1.`.
    minor: u8,
}

/// What is wrong with a request, and the status that says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong {
    /// The status.
    pub status: u16,
    /// What is wrong, as a sentence.
    pub what: String,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

fn wrong(status: u16, what: impl Into<String>) -> Wrong {
    Wrong { status, what: what.into() }
}

impl Request {
    /// The request at the beginning of `received`; nothing while its end is missing.
    ///
    /// # Errors
    ///
    /// When it is no request of HTTP/1, or too long.
    pub fn parse(received: &[u8]) -> Result<Option<Request>, Wrong> {
        let line_end = received.windows(2).position(|bytes| bytes == b"\r\n");
        let line = &received[..line_end.unwrap_or(received.len())];
        let is_text = |byte: &u8| (0x20..0x7f).contains(byte) || *byte >= 0x80 || *byte == b'\r';
        if !line.iter().all(is_text) || !line.first().is_none_or(u8::is_ascii_uppercase) {
            return Err(wrong(400, "What came is no request of HTTP/1."));
        }
        let Some(end) = received.windows(4).position(|bytes| bytes == b"\r\n\r\n") else {
            return match received.len() < REQUEST_BYTES_MAX {
                true => Ok(None),
                false => Err(wrong(431, "The head of the request is too long.")),
            };
        };
        let text = String::from_utf8_lossy(&received[..end]);
        let mut lines = text.split("\r\n");
        let words: Vec<&str> = lines.next().unwrap_or_default().split(' ').collect();
        let [method, target, version] = words[..] else {
            return Err(wrong(400, "The request line should have three words."));
        };
        let minor = match version.strip_prefix("HTTP/1.").map(str::as_bytes) {
            Some([digit @ b'0'..=b'9']) => digit - b'0',
            _ => return Err(wrong(505, format!("The version is {version:?}, not HTTP/1.1."))),
        };
        let fields = lines
            .map(|line| {
                field(line).ok_or_else(|| wrong(400, format!("The field {line:?} is wrong.")))
            })
            .collect::<Result<Vec<_>, _>>()?;
        let (method, target) = (method.to_owned(), target.to_owned());
        Ok(Some(Request { method, target, fields, bytes: end + 4, minor }))
    }

    /// The path of its target.
    pub fn path(&self) -> &str {
        self.split().0
    }

    /// The first parameter of this name in its query, without percent-encoding.
    pub fn parameter(&self, name: &str) -> Option<String> {
        let pairs =
            self.split().1.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        pairs
            .map(|(key, value)| (decoded(key), decoded(value)))
            .find(|it| it.0 == name)
            .map(|it| it.1)
    }

    /// Path and query of its target, whether that has the authority before it or not (RFC 9112 section
    /// 3.2).
    fn split(&self) -> (&str, &str) {
        let target = match self.target.split_once("://") {
            Some((scheme, rest)) if scheme.bytes().all(|byte| byte.is_ascii_alphabetic()) => {
                rest.find('/').map_or("/", |at| &rest[at..])
            }
            _ => &self.target,
        };
        target.split_once('?').unwrap_or((target, ""))
    }

    /// The value of Sec-WebSocket-Key, if there is one.
    pub fn key(&self) -> &str {
        self.values("Sec-WebSocket-Key").next().unwrap_or_default()
    }

    /// The offers of permessage-deflate that are as RFC 7692 section 7.1 has them, in their order.
    pub fn offers(&self) -> Vec<Offer> {
        let values = self.values("Sec-WebSocket-Extensions");
        values.flat_map(|value| extension::offers(value.as_bytes()).unwrap_or_default()).collect()
    }

    /// Checks what RFC 6455 section 4.1 asks of the request of a client.
    ///
    /// # Errors
    ///
    /// The first rule that it breaks.
    pub fn check(&self) -> Result<(), Wrong> {
        if self.method != "GET" {
            return Err(wrong(405, format!("The method is {:?}, not GET.", self.method)));
        }
        if self.minor == 0 {
            return Err(wrong(505, "The version is HTTP/1.0, which has no Upgrade."));
        }
        // RFC 9112 section 3.2.
        match &self.values("Host").collect::<Vec<_>>()[..] {
            [host] if !host.is_empty() => {}
            hosts => return Err(wrong(400, format!("There should be one Host, not {hosts:?}."))),
        }
        if !self.has("Upgrade", "websocket") {
            return Err(wrong(426, "Upgrade does not name websocket."));
        }
        if !self.has("Connection", "upgrade") {
            return Err(wrong(400, "Connection does not name Upgrade."));
        }
        match &self.values("Sec-WebSocket-Version").collect::<Vec<_>>()[..] {
            ["13"] => {}
            versions => {
                let what = format!("Sec-WebSocket-Version should be 13, but is {versions:?}.");
                return Err(wrong(426, what));
            }
        }
        let keys: Vec<&str> = self.values("Sec-WebSocket-Key").collect();
        let is_key = |key: &str| BASE64.decode(key).is_ok_and(|nonce| nonce.len() == 16);
        if !matches!(keys[..], [key] if is_key(key)) {
            let what = "Sec-WebSocket-Key should be 16 bytes in base64, but is";
            return Err(wrong(400, format!("{what} {keys:?}.")));
        }
        self.check_protocols()?;
        let is_grammar = |value: &str| extension::offers(value.as_bytes()).is_ok();
        match self.values("Sec-WebSocket-Extensions").find(|value| !is_grammar(value)) {
            // RFC 6455 section 9.1.
            Some(value) => {
                Err(wrong(400, format!("Sec-WebSocket-Extensions is {value:?}: not its grammar.")))
            }
            None => Ok(()),
        }
    }

    /// Section 4.1, item 10: tokens, each once.
    fn check_protocols(&self) -> Result<(), Wrong> {
        let values = self.values("Sec-WebSocket-Protocol").flat_map(|value| value.split(','));
        let protocols: Vec<&str> = values.map(str::trim).collect();
        let is_repeated = |at: usize| protocols[..at].contains(&protocols[at]);
        match (0..protocols.len()).find(|at| !is_token(protocols[*at]) || is_repeated(*at)) {
            Some(_) => {
                let what = format!("Sec-WebSocket-Protocol is {protocols:?}: tokens, each once.");
                Err(wrong(400, what))
            }
            None => Ok(()),
        }
    }

    /// The values of a field.
    fn values<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a str> {
        let is_it = move |field: &&(String, String)| field.0.eq_ignore_ascii_case(name);
        self.fields.iter().filter(is_it).map(|field| &field.1[..])
    }

    /// Whether a field that is a list has this element, in any case.
    fn has(&self, name: &str, element: &str) -> bool {
        let elements = self.values(name).flat_map(|value| value.split(','));
        elements.map(str::trim).any(|it| it.eq_ignore_ascii_case(element))
    }
}

/// Name and value in a field line (RFC 9112 section 5).
fn field(line: &str) -> Option<(String, String)> {
    let (name, value) = line.split_once(':')?;
    let is_valid = is_token(name) && !value.contains(['\r', '\n', '\0']);
    is_valid.then(|| (name.to_owned(), value.trim_matches([' ', '\t']).to_owned()))
}

/// Whether a text is a token (RFC 9110 section 5.6.2).
fn is_token(text: &str) -> bool {
    let is_one = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(is_one)
}

/// A part of a query without percent-encoding, where a plus stands for a space as in forms.
fn decoded(text: &str) -> String {
    let mut output = Vec::with_capacity(text.len());
    let mut left = text.as_bytes();
    while let Some((byte, rest)) = left.split_first() {
        let digits = rest.get(..2).and_then(|digits| str::from_utf8(digits).ok());
        let code = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        left = rest;
        match (byte, code) {
            (b'%', Some(code)) => {
                output.push(code);
                left = &rest[2..];
            }
            (b'+', _) => output.push(b' '),
            _ => output.push(*byte),
        }
    }
    String::from_utf8_lossy(&output).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUEST: &str = "GET /runCase?case=3&agent=a%20b%2fc+d%zz HTTP/1.1\r\nHost: localhost\r\n\
        Upgrade: WebSocket\r\nConnection: keep-alive, Upgrade\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Extensions: x, permessage-deflate; server_max_window_bits=10\r\n\r\n";

    fn parsed(text: &str) -> Request {
        Request::parse(text.as_bytes()).expect(text).expect("it is whole")
    }

    #[test]
    fn a_request_is_read_when_it_is_whole() {
        for end in 0..REQUEST.len() {
            assert_eq!(Request::parse(&REQUEST.as_bytes()[..end]), Ok(None), "{end}");
        }
        let request = parsed(&(REQUEST.to_owned() + "frames"));
        assert_eq!((request.bytes, request.path()), (REQUEST.len(), "/runCase"));
        assert_eq!(request.parameter("case").as_deref(), Some("3"));
        assert_eq!(request.parameter("agent").as_deref(), Some("a b/c d%zz"));
        assert_eq!(request.parameter("b"), None);
        assert_eq!(request.key(), "dGhlIHNhbXBsZSBub25jZQ==");
        let bits: Vec<_> = request.offers().iter().map(|it| it.server_max_window_bits).collect();
        assert_eq!(bits, [Some(10)]);
        assert_eq!(request.check(), Ok(()));
        let absolute = REQUEST.replace("/runCase", "ws://localhost:9001/runCase");
        assert_eq!(parsed(&absolute).path(), "/runCase");
        assert_eq!(parsed(&absolute).parameter("case").as_deref(), Some("3"));
    }

    #[test]
    fn what_is_no_request_is_noticed_at_once() {
        for (text, status) in [
            ("\x16\x03\x01", 400),
            ("get / HTTP/1.1\r\n\r\n", 400),
            ("GET /\r\n\r\n", 400),
            ("GET  / HTTP/1.1\r\n\r\n", 400),
            ("GET / HTTP/2.0\r\n\r\n", 505),
            ("GET / HTTP/1.1\r\nno field\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\na : b\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\na: b\n c\r\n\r\n", 400),
        ] {
            let wrong = Request::parse(text.as_bytes()).expect_err(text);
            assert_eq!(wrong.status, status, "{text:?} {wrong}");
        }
        let endless = format!("GET /{} HTTP/1.1\r\n", "a".repeat(REQUEST_BYTES_MAX));
        assert_eq!(Request::parse(endless.as_bytes()).expect_err("too long").status, 431);
    }

    #[test]
    fn every_rule_for_a_client_is_checked() {
        for (from, to, status) in [
            ("GET", "POST", 405),
            ("HTTP/1.1", "HTTP/1.0", 505),
            ("Host: localhost", "X: localhost", 400),
            ("Host: localhost", "Host:", 400),
            ("Host: localhost", "Host: a\r\nHost: a", 400),
            ("Upgrade: WebSocket", "Upgrade: h2c", 426),
            ("keep-alive, Upgrade", "keep-alive", 400),
            ("Version: 13", "Version: 12", 426),
            ("Version: 13", "Version: 13\r\nSec-WebSocket-Version: 13", 426),
            ("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25j", 400),
            ("dGhlIHNhbXBsZSBub25jZQ==", "no base64", 400),
            ("Sec-WebSocket-Key", "X-Key", 400),
            ("x, permessage", "x;;, permessage", 400),
            ("Host:", "Sec-WebSocket-Protocol: a, a\r\nHost:", 400),
            ("Host:", "Sec-WebSocket-Protocol: a b\r\nHost:", 400),
        ] {
            assert!(REQUEST.contains(from), "{from}");
            let request = parsed(&REQUEST.replacen(from, to, 1));
            assert_eq!(request.check().map_err(|it| it.status), Err(status), "{from} {to}");
        }
        let protocols = REQUEST.replace("Host:", "Sec-WebSocket-Protocol: a, b\r\nHost:");
        assert_eq!(parsed(&protocols).check(), Ok(()));
    }
}
