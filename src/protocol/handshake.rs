//! The opening handshake, server side: a request head of HTTP/1.1 goes in, and the response that
//! opens the WebSocket connection, or refuses to, comes out (RFC 6455 section 4.2).
//!
//! Nothing is kept between two calls: the caller shows all octets received so far each time, and
//! the answer depends on them alone. At most `REQUEST_BYTES_MAX` of them are looked at, so the
//! worst a client can do is 8192 calls that parse 32 MiB in sum, for a segment of its own each.
//! That bound is why there is no resumable parser.
//!
//! This file knows neither sockets nor time, so it cannot tell that a client is slow; it knows no
//! frames; and every resource name is the same echo, and the subprotocols on offer are not looked at,
//! which declines them (section 4.2.2).

use std::fmt;

use base64::Engine;
use base64::alphabet;
use base64::engine::general_purpose::{GeneralPurpose, PAD};
use httparse::{Header, Request, Status};

use super::extension::{self, Agreement, Policy};

/// The longest request head that is read, in octets. RFC 9112 section 3 recommends 8000 for the
/// request line alone as the least to support.
pub const REQUEST_BYTES_MAX: usize = 8192;

/// The most header fields that a request may have.
pub const HEADERS_MAX: usize = 64;

/// How much longer than its request a response can be that accepts it, in octets. With the shortest
/// request that offers compression the server adds a parameter of its own, a value and spaces.
pub const RESPONSE_GROWTH_MAX: usize = 64;

/// Appended to the key before it is hashed (RFC 6455 section 1.3).
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// The grammar of the key (RFC 6455 section 4.3) demands padding, but leaves the unused bits of the
/// last character open.
const BASE64: GeneralPurpose =
    GeneralPurpose::new(&alphabet::STANDARD, PAD.with_decode_allow_trailing_bits(true));

/// What the server does with a client whose handshake is acceptable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// The connection is opened.
    Open,
    /// The server has as many connections as it takes: [`Rejection::Full`].
    Full,
}

/// An opening handshake that was accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// Octets of the request. What was received behind them belongs to frames.
    pub head_bytes: usize,
    /// The whole response: 129 octets, and what was agreed on; at most `RESPONSE_GROWTH_MAX` more
    /// than `head_bytes`.
    pub response: Vec<u8>,
    /// What was agreed on of permessage-deflate.
    pub agreement: Option<Agreement>,
}

/// Answers the opening handshake in the octets received so far; `Ok(None)` while its end is missing.
///
/// What is certain to be no HTTP/1.1 is refused before the end. What HTTP allows and WebSocket does
/// not is refused when the head is whole, so that the client has sent it all and reads the answer.
pub fn answer(
    received: &[u8],
    admission: Admission,
    policy: Policy,
) -> Result<Option<Accepted>, Rejection> {
    let window = &received[..received.len().min(REQUEST_BYTES_MAX)];
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = Request::new(&mut headers);
    match request.parse(window).map_err(|error| unparsable(error, window))? {
        Status::Complete(head_bytes) => {
            check_line_ends(&window[..head_bytes])?;
            let key = check(&request)?;
            match admission {
                Admission::Open => {
                    let offers = values(request.headers, "Sec-WebSocket-Extensions");
                    let agreement = extension::negotiate(offers, policy);
                    let response = response_to(key, agreement);
                    Ok(Some(Accepted { head_bytes, response, agreement }))
                }
                Admission::Full => Err(Rejection::Full),
            }
        }
        Status::Partial => {
            check_line_ends(window)?;
            match (request.method, request.path) {
                _ if window.len() < REQUEST_BYTES_MAX => Ok(None),
                // RFC 9112 section 3: a target longer than the server parses is a 414, whereas RFC
                // 6585 section 5 has a 431 for what is too long in the fields.
                (Some(_), None) => Err(Rejection::TargetTooLong),
                (Some(_), Some(_)) | (None, _) => Err(Rejection::HeadTooLong),
            }
        }
    }
}

fn unparsable(error: httparse::Error, window: &[u8]) -> Rejection {
    match error {
        httparse::Error::TooManyHeaders => Rejection::FieldsTooMany,
        httparse::Error::Version => {
            // Method and target hold no space, so the version stands behind the second one. Else
            // there is a space in the target, or this is no HTTP (RFC 9112 section 3: 400).
            match window.split(|&octet| octet == b' ').nth(2) {
                Some(version) if version.starts_with(b"HTTP/") => Rejection::HttpVersion,
                Some(_) | None => Rejection::Malformed,
            }
        }
        httparse::Error::HeaderName
        | httparse::Error::HeaderValue
        | httparse::Error::NewLine
        | httparse::Error::Status
        | httparse::Error::Token => Rejection::Malformed,
    }
}

/// RFC 9112 section 2.2 allows to take a lone LF for the end of a line, and this server does not:
/// parsers that disagree about it can be played off against each other, and only with CR LF is
/// every acceptable request as long as its response.
fn check_line_ends(head: &[u8]) -> Result<(), Rejection> {
    let lone =
        head.starts_with(b"\n") || head.windows(2).any(|pair| pair[1] == b'\n' && pair[0] != b'\r');
    if lone { Err(Rejection::Malformed) } else { Ok(()) }
}

/// Checks a whole head against the list in RFC 6455 section 4.2.1, and gives back the key. Where
/// several things are wrong, the first in this order is told.
fn check<'b>(request: &Request<'_, 'b>) -> Result<&'b [u8], Rejection> {
    let fields = &*request.headers;
    // RFC 6455 section 4.2.1, item 1: "An HTTP/1.1 or higher GET request".
    match request.method {
        Some("GET") => {}
        Some("HEAD") => return Err(Rejection::MethodHead),
        Some(_) | None => return Err(Rejection::Method),
    }
    // RFC 9110 section 7.8: an Upgrade field in a request of HTTP/1.0 must be ignored.
    if request.version != Some(1) {
        return Err(Rejection::HttpVersion);
    }
    // RFC 9112 section 3.2: 400 unless there is one Host field, and it is valid. RFC 6455 section
    // 4.2.1, item 2.
    let host = once(fields, "Host", Rejection::HostMissing, Rejection::HostRepeated)?;
    if !host.iter().all(|&octet| is_of_authority(octet)) {
        return Err(Rejection::HostInvalid);
    }
    // RFC 9112 section 6.3: either field announces content, whose octets would be read as frames.
    let empty = |length: &[u8]| !length.is_empty() && length.iter().all(|&digit| digit == b'0');
    if values(fields, "Transfer-Encoding").next().is_some()
        || !values(fields, "Content-Length").all(empty)
    {
        return Err(Rejection::Content);
    }
    // RFC 6455 section 4.2.1, item 3; 426 is for the client that has to upgrade (RFC 9110 section
    // 15.5.22). `websocket/13` is another protocol (RFC 9110 section 7.8).
    if !has_token(fields, "Upgrade", "websocket") {
        return Err(Rejection::UpgradeMissing);
    }
    // RFC 6455 section 4.2.1, item 4.
    if !has_token(fields, "Connection", "upgrade") {
        return Err(Rejection::ConnectionMissing);
    }
    // RFC 6455 section 4.2.1, item 6, and ahead of the key, which another version may write in
    // another way. Without the field the handshake does not match that section, which names 400;
    // another version is what sections 4.2.2 and 4.4 have 426 for. Section 11.3.5: only once.
    let version = once(
        fields,
        "Sec-WebSocket-Version",
        Rejection::VersionMissing,
        Rejection::VersionRepeated,
    )?;
    if version != b"13" {
        return Err(Rejection::VersionUnsupported);
    }
    // RFC 6455 section 4.2.1, item 5: base64 that "when decoded, is 16 bytes in length". Section
    // 11.3.1: only once.
    let key = once(fields, "Sec-WebSocket-Key", Rejection::KeyMissing, Rejection::KeyRepeated)?;
    match BASE64.decode_slice(key, &mut [0; 18]) {
        Ok(16) => Ok(key),
        Ok(_) | Err(_) => Err(Rejection::KeyInvalid),
    }
}

/// Values of all fields called `name`, in their order; names ignore case (RFC 9110 section 5.1).
pub(super) fn values<'h, 'b>(
    fields: &'h [Header<'b>],
    name: &'static str,
) -> impl Iterator<Item = &'b [u8]> + use<'h, 'b> {
    fields
        .iter()
        .filter(move |field| field.name.eq_ignore_ascii_case(name))
        .map(|field| field.value)
}

fn once<'b>(
    fields: &[Header<'b>],
    name: &'static str,
    missing: Rejection,
    repeated: Rejection,
) -> Result<&'b [u8], Rejection> {
    let mut values = values(fields, name);
    let value = values.next().ok_or(missing)?;
    if values.next().is_some() { Err(repeated) } else { Ok(value) }
}

/// Whether the list that all fields called `name` make up together (RFC 9110 section 5.3) has
/// `token` as an element; tokens of Upgrade and Connection ignore case (sections 7.6.1 and 7.8).
pub(super) fn has_token(fields: &[Header<'_>], name: &'static str, token: &str) -> bool {
    values(fields, name)
        .flat_map(|value| value.split(|&octet| octet == b','))
        .any(|element| element.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
}

/// Whether `uri-host [ ":" port ]` can hold the octet (RFC 3986 sections 3.2.2 and 3.2.3).
fn is_of_authority(octet: u8) -> bool {
    octet.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:%[]".contains(&octet)
}

/// What a server answers to `key`, to show that it has understood the request (section 4.2.2,
/// item 5.4).
pub(super) fn accept_of(key: &[u8]) -> String {
    let mut digest = sha1_smol::Sha1::new();
    digest.update(key);
    digest.update(GUID);
    BASE64.encode(digest.digest().bytes())
}

/// RFC 6455 section 4.2.2, item 5, and no field beyond it.
fn response_to(key: &[u8], agreement: Option<Agreement>) -> Vec<u8> {
    let accept = accept_of(key);
    let extensions = agreement
        .map(|agreement| format!("Sec-WebSocket-Extensions: {agreement}\r\n"))
        .unwrap_or_default();
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\n{extensions}\r\n"
    )
    .into_bytes()
}

/// Why an opening handshake was refused. The client is told by [`Rejection::response`], and the
/// connection is closed behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rejection {
    /// What was received is not the head of an HTTP/1.1 request (RFC 9112 sections 2.2 to 5).
    Malformed,
    /// The request target alone is longer than [`REQUEST_BYTES_MAX`] leaves room for.
    TargetTooLong,
    /// The head is longer than [`REQUEST_BYTES_MAX`].
    HeadTooLong,
    /// The head has more than [`HEADERS_MAX`] fields.
    FieldsTooMany,
    /// Another version of HTTP than 1.1, the preface of HTTP/2 among them.
    HttpVersion,
    /// A method other than GET.
    Method,
    /// The method HEAD, which is a [`Rejection::Method`] whose response has no content.
    MethodHead,
    /// No Host field.
    HostMissing,
    /// More than one Host field.
    HostRepeated,
    /// The Host field holds what no host or port can.
    HostInvalid,
    /// The request announces content.
    Content,
    /// The Upgrade fields do not offer `websocket`: a browser or curl that fetches a page.
    UpgradeMissing,
    /// The Connection fields do not name `upgrade`.
    ConnectionMissing,
    /// No Sec-WebSocket-Version field.
    VersionMissing,
    /// More than one Sec-WebSocket-Version field.
    VersionRepeated,
    /// The version of the WebSocket protocol is not 13.
    VersionUnsupported,
    /// No Sec-WebSocket-Key field.
    KeyMissing,
    /// More than one Sec-WebSocket-Key field.
    KeyRepeated,
    /// The key is not the base64 of 16 octets.
    KeyInvalid,
    /// The handshake is acceptable, but the server takes no more connections ([`Admission::Full`]).
    Full,
}

impl Rejection {
    /// The status code of the response.
    pub fn status(self) -> u16 {
        self.status_and_phrase().0
    }

    fn status_and_phrase(self) -> (u16, &'static str) {
        match self {
            Rejection::Malformed
            | Rejection::HostMissing
            | Rejection::HostRepeated
            | Rejection::HostInvalid
            | Rejection::Content
            | Rejection::ConnectionMissing
            | Rejection::VersionMissing
            | Rejection::VersionRepeated
            | Rejection::KeyMissing
            | Rejection::KeyRepeated
            | Rejection::KeyInvalid => (400, "Bad Request"),
            Rejection::Method | Rejection::MethodHead => (405, "Method Not Allowed"),
            Rejection::TargetTooLong => (414, "URI Too Long"),
            Rejection::UpgradeMissing | Rejection::VersionUnsupported => (426, "Upgrade Required"),
            Rejection::HeadTooLong | Rejection::FieldsTooMany => {
                (431, "Request Header Fields Too Large")
            }
            Rejection::Full => (503, "Service Unavailable"),
            Rejection::HttpVersion => (505, "HTTP Version Not Supported"),
        }
    }

    /// One sentence that says what to do, in ASCII.
    pub fn reason(self) -> &'static str {
        match self {
            Rejection::Malformed => "Send a request head that is well-formed by RFC 9112.",
            Rejection::TargetTooLong => "Shorten the URL to fit a request head of 8192 octets.",
            Rejection::HeadTooLong => "Shorten the header fields to fit a head of 8192 octets.",
            Rejection::FieldsTooMany => "Send at most 64 header fields.",
            Rejection::HttpVersion => "Open the WebSocket with a request of HTTP/1.1.",
            Rejection::Method | Rejection::MethodHead => "Open the WebSocket with the method GET.",
            Rejection::HostMissing => "Send a Host field.",
            Rejection::HostRepeated => "Send the Host field once.",
            Rejection::HostInvalid => "Send a Host field of a host and an optional port.",
            Rejection::Content => "Send no content with the request that opens a WebSocket.",
            Rejection::UpgradeMissing => {
                "This is a WebSocket echo server: connect to it with a WebSocket client, at this \
                 address but with ws:// instead of http://."
            }
            Rejection::ConnectionMissing => {
                "Send \"Connection: Upgrade\" beside the Upgrade field."
            }
            Rejection::VersionMissing => "Send \"Sec-WebSocket-Version: 13\".",
            Rejection::VersionRepeated => "Send the Sec-WebSocket-Version field once.",
            Rejection::VersionUnsupported => "Use version 13 of the WebSocket protocol (RFC 6455).",
            Rejection::KeyMissing => "Send a Sec-WebSocket-Key field.",
            Rejection::KeyRepeated => "Send the Sec-WebSocket-Key field once.",
            Rejection::KeyInvalid => "Send 16 octets in base64 as the Sec-WebSocket-Key.",
            Rejection::Full => "The server has as many connections as it takes: try again later.",
        }
    }

    /// The whole response.
    pub fn response(self) -> Vec<u8> {
        let (status, phrase) = self.status_and_phrase();
        let demanded = match status {
            // RFC 9110 section 15.5.6.
            405 => "Connection: close\r\nAllow: GET\r\n",
            // RFC 9110 section 15.5.22 demands Upgrade, section 7.8 that Connection names it, and
            // RFC 6455 section 4.4 the versions understood.
            426 => {
                "Connection: close, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            }
            // No Retry-After with a 503 (RFC 9110 section 15.6.4 leaves the choice): nobody here
            // knows when a client will leave.
            _ => "Connection: close\r\n",
        };
        let reason = self.reason();
        let length = reason.len() + 1;
        let mut response = format!(
            "HTTP/1.1 {status} {phrase}\r\nContent-Type: text/plain; charset=utf-8\r\n\
             Content-Length: {length}\r\n{demanded}\r\n"
        );
        // RFC 9110 section 9.3.2: the response to HEAD has the fields, but no content.
        if self != Rejection::MethodHead {
            response.push_str(reason);
            response.push('\n');
        }
        response.into_bytes()
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reason())
    }
}

impl std::error::Error for Rejection {}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUEST: &str = "GET /echo?a=b HTTP/1.1\r\nHost: example.com:9001\r\n\
        Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    const RESPONSE: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\
        Connection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
    const SHORTEST: &str = "GET / HTTP/1.1\r\nHost:\r\nUpgrade:websocket\r\n\
        Connection:Upgrade\r\nSec-WebSocket-Version:13\r\n\
        Sec-WebSocket-Key:dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

    fn open(received: impl AsRef<[u8]>) -> Result<Option<Accepted>, Rejection> {
        answer(received.as_ref(), Admission::Open, Policy::Mirror)
    }

    /// The answer to [`REQUEST`] with a part of it replaced.
    fn changed(from: &str, to: &str) -> Result<Option<Accepted>, Rejection> {
        assert!(REQUEST.contains(from), "{from}");
        open(REQUEST.replacen(from, to, 1))
    }

    #[test]
    fn any_split_gives_the_same_answer() {
        let accepted =
            Accepted { head_bytes: REQUEST.len(), response: RESPONSE.into(), agreement: None };
        let received = [REQUEST.as_bytes(), b"\x81\x85\n\n\r\n\0\0\0\0\0"].concat();
        for length in 0..=received.len() {
            let expected = (length >= REQUEST.len()).then(|| accepted.clone());
            assert_eq!(open(&received[..length]), Ok(expected), "{length} octets");
        }
    }

    #[test]
    fn no_acceptable_request_is_shorter_than_its_response() {
        let accepted = open(SHORTEST).unwrap().unwrap();
        assert_eq!((accepted.head_bytes, accepted.response.len()), (134, 129));
        // Nothing is left to take away, and each part is the shortest of its kind.
        for removed in 0..SHORTEST.len() {
            let mut shorter = SHORTEST.to_owned();
            shorter.remove(removed);
            assert!(!matches!(open(&shorter), Ok(Some(_))), "{shorter:?}");
        }
        for (long, short) in [("\r\n", "\n"), ("==", ""), (":13", ":"), ("Host:\r\n", "")] {
            assert!(!matches!(open(SHORTEST.replace(long, short)), Ok(Some(_))), "{long:?}");
        }
    }

    #[test]
    fn an_offer_is_answered_and_its_answer_not_much_longer() {
        let offered = |offers: &str, policy| {
            let request = SHORTEST.replacen("Host", &format!("{offers}Host"), 1);
            answer(request.as_bytes(), Admission::Open, policy).unwrap().unwrap()
        };
        let offers = "sec-websocket-extensions: foo\r\nSEC-WebSocket-Extensions: \
            permessage-deflate; unknown, permessage-deflate; client_max_window_bits\r\n";
        let accepted = offered(offers, Policy::Mirror);
        let response = String::from_utf8(accepted.response).unwrap();
        assert!(response.ends_with("=\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n"));
        assert_eq!(accepted.agreement, extension::agree(&Default::default(), Policy::Mirror));
        let declined = offered(offers, Policy::Off);
        assert_eq!((declined.response.len(), declined.agreement), (129, None));
        // The offer whose answer says most beyond it.
        let accepted = offered(
            "Sec-WebSocket-Extensions:permessage-deflate;server_no_context_takeover;\
             server_max_window_bits=10;client_max_window_bits\r\n",
            Policy::Mirror,
        );
        let growth = accepted.response.len() - accepted.head_bytes;
        assert!(growth <= RESPONSE_GROWTH_MAX, "{growth} octets");
    }

    #[test]
    fn what_is_accepted_beyond_the_plain_form() {
        for (from, to) in [
            ("GET", "\r\nGET"),
            ("/echo?a=b", "http://example.com/"),
            ("Host: ", "hOST:\t "),
            ("Host: example.com:9001", "Host: [::1]:9001 \t"),
            ("Upgrade: websocket", "upgrade: h2c,WebSocket"),
            ("Upgrade: websocket", "Upgrade: h2c\r\nUpgrade: , websocket ,"),
            ("Connection: Upgrade", "CONNECTION: keep-alive,\tuPGRADE\t, x"),
            ("Connection: Upgrade", "Connection: close\r\nConnection:upgrade"),
            ("Version: 13", "Version:\t 13 \t"),
            ("ZQ==", "ZR=="),
            ("\r\n\r\n", "\r\nContent-Length: 0\r\nContent-Length: 00\r\n\r\n"),
            ("\r\n\r\n", "\r\nSec-WebSocket-Extensions: permessage-inflate\r\n\r\n"),
            ("\r\n\r\n", "\r\nSec-WebSocket-Protocol: chat\r\nOrigin: null\r\n\r\n"),
        ] {
            let accepted = changed(from, to).unwrap().unwrap();
            assert_eq!(accepted.head_bytes, REQUEST.len() - from.len() + to.len(), "{to:?}");
            assert_eq!(accepted.response.len(), 129);
        }
    }

    #[test]
    fn what_is_refused() {
        use Rejection::*;
        for (from, to, rejection, status) in [
            ("GET", "POST", Method, 405),
            ("GET", "get", Method, 405),
            ("GET", "HEAD", MethodHead, 405),
            ("HTTP/1.1", "HTTP/1.0", HttpVersion, 505),
            ("HTTP/1.1", "HTTP/2.0", HttpVersion, 505),
            ("GET /echo?a=b HTTP/1.1", "PRI * HTTP/2.0", HttpVersion, 505),
            ("/echo?a=b", "/a b", Malformed, 400),
            (" HTTP/1.1", "", Malformed, 400),
            ("HTTP/1.1", "HTTP/1.1 ", Malformed, 400),
            ("Host: example.com:9001\r\n", "", HostMissing, 400),
            ("Host: e", "Host: e\r\nHost: e", HostRepeated, 400),
            ("Host: e", "Host: e e", HostInvalid, 400),
            ("Host: e", "Host: user@e", HostInvalid, 400),
            ("Host:", "Host :", Malformed, 400),
            ("Host: e", "Host: e\r\n folded", Malformed, 400),
            ("Host: e", "Host: e\r\n\tfolded", Malformed, 400),
            ("Host: e", "Host: e\0", Malformed, 400),
            ("Host: e", "Host: e\r", Malformed, 400),
            ("9001\r\n", "9001\n", Malformed, 400),
            ("Host", "Transfer-Encoding: chunked\r\nHost", Content, 400),
            ("Host", "Content-Length: 1\r\nHost", Content, 400),
            ("Host", "Content-Length: 0\r\nContent-Length: 10\r\nHost", Content, 400),
            ("Host", "Content-Length:\r\nHost", Content, 400),
            ("Upgrade: websocket\r\n", "", UpgradeMissing, 426),
            ("Upgrade: websocket", "Upgrade: websocket/13", UpgradeMissing, 426),
            ("Upgrade: websocket", "Upgrade: web socket, websockets", UpgradeMissing, 426),
            ("Connection: Upgrade\r\n", "", ConnectionMissing, 400),
            ("Connection: Upgrade", "Connection: keep-alive, upgraded", ConnectionMissing, 400),
            ("Sec-WebSocket-Version: 13\r\n", "", VersionMissing, 400),
            ("Host", "Sec-WebSocket-Version: 13\r\nHost", VersionRepeated, 400),
            ("13", "8", VersionUnsupported, 426),
            ("13", "13, 8", VersionUnsupported, 426),
            ("13\r\nSec-WebSocket-Key:", "25\r\nX:", VersionUnsupported, 426),
            ("Sec-WebSocket-Key: ", "X: ", KeyMissing, 400),
            ("Host", "Sec-WebSocket-Key: x\r\nHost", KeyRepeated, 400),
            ("dGhlIHNhbXBsZSBub25jZQ==", "", KeyInvalid, 400),
            ("ZQ==", "ZQ", KeyInvalid, 400),
            ("ZQ==", "ZWU=", KeyInvalid, 400),
            ("ZQ==", "ZQ==ZQ==", KeyInvalid, 400),
            ("ZQ==", "ZWVlZWVl", KeyInvalid, 400),
            ("dGhl", "", KeyInvalid, 400),
            ("dGhl", "dG-l", KeyInvalid, 400),
        ] {
            assert_eq!(changed(from, to), Err(rejection), "{to:?} for {from:?}");
            assert_eq!(rejection.status(), status, "{rejection:?}");
        }
        assert_eq!(answer(REQUEST.as_bytes(), Admission::Full, Policy::Mirror), Err(Full));
        assert_eq!(Full.status(), 503);
        let page = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        assert_eq!(answer(page, Admission::Full, Policy::Mirror), Err(UpgradeMissing));
    }

    #[test]
    fn nonsense_is_refused_at_the_octet_that_makes_it_certain() {
        use Rejection::{HttpVersion, Malformed};
        for (nonsense, sound, rejection) in [
            (&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..], 0, Malformed), // TLS
            (b"\0\0\0\0", 0, Malformed),
            (b"\xff\xfe", 0, Malformed),
            (b" GET / HTTP/1.1\r\n", 0, Malformed),
            (b"\nGET / HTTP/1.1\r\n", 0, Malformed),
            (b"\r\n\r\n\r\r", 5, Malformed),
            (b"SSH-2.0-OpenSSH_9.9\r\n", 19, Malformed),
            (b"GET / XTTP/1.1\r\n", 6, Malformed),
            (b"GET / HTTP/1.1\nHost: a\n", 14, Malformed),
            (b"GET / HTTP/1.1\r\nHost\r\n", 20, Malformed),
            (b"GET / HTTP/1.1\r\nHost: a\r\n b\r\n", 25, Malformed),
            (b"GET / HTTP/1.1\r\nHost: a\0", 23, Malformed),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 11, HttpVersion),
        ] {
            for length in 0..=nonsense.len() {
                let expected = if length <= sound { Ok(None) } else { Err(rejection) };
                assert_eq!(open(&nonsense[..length]), expected, "{length} of {nonsense:?}");
            }
        }
    }

    #[test]
    fn limits_are_exact() {
        let padded = |target: usize, field: usize| {
            let (target, field) = ("a".repeat(target), "b".repeat(field));
            REQUEST.replacen("/echo", &format!("/{target}"), 1).replacen(
                "Host",
                &format!("X:{field}\r\nHost"),
                1,
            )
        };
        let room = REQUEST_BYTES_MAX - padded(0, 0).len();
        for (target, field) in [(0, room), (room, 0)] {
            let whole = padded(target, field);
            assert_eq!(open(&whole).unwrap().unwrap().head_bytes, REQUEST_BYTES_MAX);
            assert_eq!(open(&whole[..REQUEST_BYTES_MAX - 1]), Ok(None));
        }
        for (target, field) in [(0, room + 1), (room + 1, 0), (0, 3 * room)] {
            let long = padded(target, field);
            assert_eq!(open(&long[..REQUEST_BYTES_MAX - 1]), Ok(None));
            assert_eq!(open(&long[..REQUEST_BYTES_MAX]), Err(Rejection::HeadTooLong));
            assert_eq!(open(&long), Err(Rejection::HeadTooLong));
        }
        assert_eq!(open(padded(REQUEST_BYTES_MAX, 0)), Err(Rejection::TargetTooLong));
        assert_eq!(open("\r\n".repeat(REQUEST_BYTES_MAX)), Err(Rejection::HeadTooLong));

        let fields = |more: usize| changed("Host", &format!("{}Host", "X: y\r\n".repeat(more)));
        assert!(matches!(fields(HEADERS_MAX - 5), Ok(Some(_))));
        assert_eq!(fields(HEADERS_MAX - 4), Err(Rejection::FieldsTooMany));
        assert!(Rejection::HeadTooLong.reason().contains(&REQUEST_BYTES_MAX.to_string()));
        assert!(Rejection::TargetTooLong.reason().contains(&REQUEST_BYTES_MAX.to_string()));
        assert!(Rejection::FieldsTooMany.reason().contains(&HEADERS_MAX.to_string()));
    }

    #[test]
    fn responses_to_the_refused() {
        use Rejection::*;
        let close = "Connection: close";
        let upgrade =
            "Connection: close, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13";
        for (rejection, status_line, demanded) in [
            (KeyInvalid, "400 Bad Request", close),
            (Method, "405 Method Not Allowed", "Connection: close\r\nAllow: GET"),
            (TargetTooLong, "414 URI Too Long", close),
            (UpgradeMissing, "426 Upgrade Required", upgrade),
            (VersionUnsupported, "426 Upgrade Required", upgrade),
            (HeadTooLong, "431 Request Header Fields Too Large", close),
            (Full, "503 Service Unavailable", close),
            (HttpVersion, "505 HTTP Version Not Supported", close),
        ] {
            let length = rejection.to_string().len() + 1;
            let expected = format!(
                "HTTP/1.1 {status_line}\r\nContent-Type: text/plain; charset=utf-8\r\n\
                 Content-Length: {length}\r\n{demanded}\r\n\r\n{rejection}\n"
            );
            assert_eq!(String::from_utf8(rejection.response()).unwrap(), expected);
        }
        let page = UpgradeMissing.reason();
        assert!(page.contains("WebSocket echo server") && page.contains("ws://"), "{page}");
        let (head, method) = (MethodHead.response(), Method.response());
        assert!(head.ends_with(b"\r\n\r\n") && method.starts_with(&head));
    }
}
