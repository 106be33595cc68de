//! The head of a request: its grammar (RFC 9112 sections 2 to 5), and what makes it an opening handshake
//! (RFC 6455 section 4.2.1).
//!
//! Nothing is kept between two calls. What no further byte could make right is refused at the first wrong
//! byte.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::general_purpose::{GeneralPurpose, PAD};
use httparse::{Header, Status};

use super::rejection::Rejection;
use super::{HEADERS_MAX, REQUEST_BYTES_MAX};
use crate::protocol::fields::{has_token, is_of_token, sole, values};
use crate::protocol::uri;

/// The grammar of the key (RFC 6455 section 4.3) demands padding, but leaves the unused bits of the
/// last character open.
const BASE64: GeneralPurpose =
    GeneralPurpose::new(&alphabet::STANDARD, PAD.with_decode_allow_trailing_bits(true));

/// How the names of the fields begin that only an opening handshake has (RFC 6455 section 11.3).
const HANDSHAKE_FIELDS: &str = "Sec-WebSocket-";

/// The head of a request that is well-formed.
#[derive(Debug)]
pub(super) struct Head<'h, 'b> {
    line: Line<'b>,
    pub(super) fields: &'h [Header<'b>],
    /// Its length, with empty lines before it and the one that ends it, in bytes.
    pub(super) length: usize,
}

/// A request line (RFC 9112 section 3).
#[derive(Debug, Clone, Copy)]
struct Line<'b> {
    method: &'b [u8],
    target: &'b [u8],
    /// The second digit of the version; the first is 1.
    minor: u8,
    /// Where the fields begin.
    end: usize,
}

/// The first part of a head that has not arrived whole.
#[derive(Debug, Clone, Copy)]
enum Missing {
    Method,
    Target,
    Version,
}

impl<'h, 'b> Head<'h, 'b> {
    /// Reads the head at the beginning of `received`; `Ok(None)` while its end is missing.
    pub(super) fn read(
        received: &'b [u8],
        fields: &'h mut [Header<'b>; HEADERS_MAX],
    ) -> Result<Option<Head<'h, 'b>>, Rejection> {
        let window = &received[..received.len().min(REQUEST_BYTES_MAX)];
        let is_full = window.len() == REQUEST_BYTES_MAX;
        let line = match Line::read(window)? {
            Ok(line) => line,
            Err(_) if !is_full => return Ok(None),
            // RFC 9112 section 3 has statuses of their own for a method and a target that are longer
            // than anything the server knows, RFC 6585 section 5 has 431 for the fields.
            Err(Missing::Method) if window.ends_with(b"\n") => return Err(Rejection::HeadTooLong),
            Err(Missing::Method) => return Err(Rejection::MethodTooLong),
            Err(Missing::Target) => return Err(Rejection::TargetTooLong),
            Err(Missing::Version) => return Err(Rejection::HeadTooLong),
        };
        let rest = &window[line.end..];
        // What follows a lone LF does not change the answer: see `check_line_ends`.
        let rest = &rest[..lone_line_feed(rest).map_or(rest.len(), |place| place + 1)];
        let parsed = httparse::parse_headers(rest, fields).map_err(|error| match error {
            httparse::Error::TooManyHeaders => Rejection::FieldsTooMany,
            httparse::Error::HeaderName
            | httparse::Error::HeaderValue
            | httparse::Error::NewLine
            | httparse::Error::Status
            | httparse::Error::Token
            | httparse::Error::Version => Rejection::Malformed,
        })?;
        match parsed {
            Status::Complete((length, fields)) => {
                check_line_ends(&rest[..length])?;
                Ok(Some(Head { line, fields, length: line.end + length }))
            }
            Status::Partial => {
                check_line_ends(rest)?;
                if is_full { Err(Rejection::HeadTooLong) } else { Ok(None) }
            }
        }
    }

    /// The request target.
    pub(super) fn target(&self) -> &'b [u8] {
        self.line.target
    }

    /// Checks the head against the list in RFC 6455 section 4.2.1, and returns the key. If several
    /// things are wrong, the first in this order is reported.
    pub(super) fn check(&self) -> Result<&'b [u8], Rejection> {
        // RFC 6455 section 4.2.1, item 1: "An HTTP/1.1 or higher GET request". Methods are
        // case-sensitive (RFC 9110 section 9.1).
        match self.line.method {
            b"GET" => {}
            b"HEAD" => return Err(Rejection::MethodHead),
            _ => return Err(Rejection::Method),
        }
        self.check_request()?;
        self.check_upgrade()
    }

    /// Whether it asks for the page at `/` and begins no handshake, not even a wrong one.
    pub(super) fn is_for_page(&self) -> bool {
        let is_of_handshake = |field: &Header<'_>| {
            let beginning = field.name.get(..HANDSHAKE_FIELDS.len());
            beginning.is_some_and(|name| name.eq_ignore_ascii_case(HANDSHAKE_FIELDS))
        };
        matches!(self.line.method, b"GET" | b"HEAD")
            && self.check_request().is_ok()
            && uri::path_of(self.line.target) == b"/"
            && !has_token(self.fields, "Upgrade", "websocket")
            && !self.fields.iter().any(is_of_handshake)
    }

    pub(super) fn is_get(&self) -> bool {
        self.line.method == b"GET"
    }

    /// Checks what holds for all requests that this server answers.
    fn check_request(&self) -> Result<(), Rejection> {
        let fields = self.fields;
        // RFC 9110 section 7.8: an Upgrade field in a request of HTTP/1.0 must be ignored. Section 2.5:
        // a higher minor version is processed as 1.1.
        if self.line.minor == 0 {
            return Err(Rejection::HttpVersion);
        }
        // RFC 9112 section 3.2: a GET has the origin form, or the absolute form, which a server must
        // accept. Section 3.2.2: its authority then counts instead of Host; either is this server's.
        let target = str::from_utf8(self.line.target).map_err(|_| Rejection::TargetInvalid)?;
        if !uri::is_origin_form(target) && !uri::is_absolute(target) {
            return Err(Rejection::TargetInvalid);
        }
        // RFC 9112 section 3.2: 400 unless there is one Host field, and it is valid. RFC 6455 section
        // 4.2.1, item 2: it holds the server's authority, so it is not empty.
        let host = sole(fields, "Host", Rejection::HostMissing, Rejection::HostRepeated)?;
        if !str::from_utf8(host).is_ok_and(uri::is_host_and_port) {
            return Err(Rejection::HostInvalid);
        }
        // RFC 9112 section 6.3: either field announces content, whose bytes would be read as frames.
        let is_zero = |length: &[u8]| !length.is_empty() && length.iter().all(|&byte| byte == b'0');
        if values(fields, "Transfer-Encoding").next().is_some()
            || !values(fields, "Content-Length").all(is_zero)
        {
            return Err(Rejection::Content);
        }
        Ok(())
    }

    /// Checks what makes a request an opening handshake, and returns the key.
    fn check_upgrade(&self) -> Result<&'b [u8], Rejection> {
        let fields = self.fields;
        // RFC 6455 section 4.2.1, item 3; 426 is for the client that has to upgrade (RFC 9110 section
        // 15.5.22). `websocket/13` is another protocol (RFC 9110 section 7.8).
        if !has_token(fields, "Upgrade", "websocket") {
            return Err(Rejection::UpgradeMissing);
        }
        // RFC 6455 section 4.2.1, item 4.
        if !has_token(fields, "Connection", "upgrade") {
            return Err(Rejection::ConnectionMissing);
        }
        // RFC 6455 section 4.2.1, item 6, before the key, which other versions may write otherwise.
        // Sections 4.2.2 and 4.4 answer an unsupported version with the supported one; drafts
        // before RFC 6455 have no such field. Section 11.3.5: only once.
        let version = sole(
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
        let key = sole(fields, "Sec-WebSocket-Key", Rejection::KeyMissing, Rejection::KeyRepeated)?;
        match BASE64.decode_slice(key, &mut [0; 18]) {
            Ok(16) => Ok(key),
            Ok(_) | Err(_) => Err(Rejection::KeyInvalid),
        }
    }
}

impl<'b> Line<'b> {
    /// Reads the request line, after any empty lines (RFC 9112 section 2.2). The inner error is the part
    /// that has not arrived whole.
    fn read(window: &'b [u8]) -> Result<Result<Line<'b>, Missing>, Rejection> {
        let mut start = 0;
        while window[start..].starts_with(b"\r\n") {
            start += 2;
        }
        if &window[start..] == b"\r" {
            return Ok(Err(Missing::Method));
        }
        let Some(method) = up_to_space(&window[start..], is_of_token, Rejection::Malformed)? else {
            return Ok(Err(Missing::Method));
        };
        start += method.len() + 1;
        let rest = &window[start..];
        let Some(target) = up_to_space(rest, uri::is_of_target, Rejection::TargetInvalid)? else {
            return Ok(Err(Missing::Target));
        };
        start += target.len() + 1;
        let version = &window[start..];
        for (place, &byte) in version.iter().take(10).enumerate() {
            match (place, byte) {
                (0..5, _) if byte == b"HTTP/"[place] => {}
                (5, b'1') | (6, b'.') | (7, b'0'..=b'9') | (8, b'\r') | (9, b'\n') => {}
                // RFC 9110 section 15.6.6.
                (5, b'0'..=b'9') => return Err(Rejection::HttpVersion),
                _ => return Err(Rejection::Malformed),
            }
        }
        if version.len() < 10 {
            return Ok(Err(Missing::Version));
        }
        Ok(Ok(Line { method, target, minor: version[7] - b'0', end: start + 10 }))
    }
}

/// The bytes before the first space, at least one, of which all must be `allowed`. `None`: there is no
/// space yet.
fn up_to_space(
    rest: &[u8],
    allowed: fn(u8) -> bool,
    rejection: Rejection,
) -> Result<Option<&[u8]>, Rejection> {
    match rest.iter().position(|&byte| !allowed(byte)) {
        None => Ok(None),
        Some(0) if rest[0] == b' ' => Err(Rejection::Malformed),
        Some(end) if rest[end] == b' ' => Ok(Some(&rest[..end])),
        // A line that ends here lacks a part.
        Some(end) if matches!(rest[end], b'\r' | b'\n') => Err(Rejection::Malformed),
        Some(_) => Err(rejection),
    }
}

/// RFC 9112 section 2.2 allows a recipient to take a lone LF for the end of a line. This server does not:
/// parsers that disagree about it can be played off against each other, and only with CR LF is every
/// acceptable request as long as its response.
fn check_line_ends(fields: &[u8]) -> Result<(), Rejection> {
    if lone_line_feed(fields).is_some() { Err(Rejection::Malformed) } else { Ok(()) }
}

/// Where the first LF is that follows no CR.
fn lone_line_feed(fields: &[u8]) -> Option<usize> {
    if fields.starts_with(b"\n") {
        return Some(0);
    }
    let pair = fields.windows(2).position(|pair| pair[1] == b'\n' && pair[0] != b'\r');
    pair.map(|place| place + 1)
}
