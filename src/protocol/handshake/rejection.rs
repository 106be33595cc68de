//! Why an opening handshake is refused, and the response that says so.

use std::fmt;

/// Why an opening handshake was refused. [`Rejection::response`] tells the client, after which the
/// connection is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rejection {
    /// The received bytes are not the head of an HTTP/1.1 request (RFC 9112 sections 2.2 to 5).
    Malformed,
    /// The request target is neither a path nor the URL of a WebSocket or a page (RFC 9112 section 3.2).
    TargetInvalid,
    /// The request target alone is longer than [`super::REQUEST_BYTES_MAX`] leaves room for.
    TargetTooLong,
    /// The head is longer than [`super::REQUEST_BYTES_MAX`].
    HeadTooLong,
    /// The head has more than [`super::HEADERS_MAX`] fields.
    FieldsTooMany,
    /// A version of HTTP other than 1.1 and those that follow it as 1.x, such as HTTP/2.
    HttpVersion,
    /// A method other than GET.
    Method,
    /// The method HEAD: a [`Rejection::Method`] whose response has no content.
    MethodHead,
    /// A method that is longer than a whole head may be.
    MethodTooLong,
    /// No Host field.
    HostMissing,
    /// More than one Host field.
    HostRepeated,
    /// The Host field is not a host with an optional port.
    HostInvalid,
    /// The request announces content.
    Content,
    /// The Upgrade fields do not offer `websocket`: perhaps a browser or curl that fetches a page.
    UpgradeMissing,
    /// The Connection fields do not name `upgrade`.
    ConnectionMissing,
    /// No Sec-WebSocket-Version field, as in drafts of the protocol before RFC 6455.
    VersionMissing,
    /// More than one Sec-WebSocket-Version field.
    VersionRepeated,
    /// The version of the WebSocket protocol is not 13.
    VersionUnsupported,
    /// No Sec-WebSocket-Key field.
    KeyMissing,
    /// More than one Sec-WebSocket-Key field.
    KeyRepeated,
    /// The key is not the base64 encoding of 16 bytes.
    KeyInvalid,
    /// A Sec-WebSocket-Protocol field breaks its grammar (RFC 6455 section 4.3).
    SubprotocolInvalid,
    /// A Sec-WebSocket-Extensions field breaks its grammar (RFC 6455 section 9.1).
    ExtensionsInvalid,
    /// The request target has another path than the one that is served ([`super::Access::path`]).
    PathUnknown,
    /// The page that opens the connection is from an origin that is not allowed
    /// ([`super::Access::origins`]).
    OriginForbidden,
    /// The handshake was not finished in time.
    TooSlow,
    /// The handshake is acceptable, but the server is at its connection limit
    /// ([`super::Admission::Full`]).
    Full,
    /// The handshake is acceptable, but its address is at its connection limit
    /// ([`super::Admission::TooMany`]).
    TooMany,
}

/// When a client that is refused because of a limit may try again, in seconds.
const RETRY_AFTER: u32 = 10;

impl Rejection {
    /// The status code of the response.
    pub fn status(self) -> u16 {
        self.status_and_phrase().0
    }

    fn status_and_phrase(self) -> (u16, &'static str) {
        match self {
            Rejection::Malformed
            | Rejection::TargetInvalid
            | Rejection::HostMissing
            | Rejection::HostRepeated
            | Rejection::HostInvalid
            | Rejection::Content
            | Rejection::ConnectionMissing
            | Rejection::KeyMissing
            | Rejection::KeyRepeated
            | Rejection::KeyInvalid
            | Rejection::SubprotocolInvalid
            | Rejection::ExtensionsInvalid => (400, "Bad Request"),
            Rejection::OriginForbidden => (403, "Forbidden"),
            Rejection::PathUnknown => (404, "Not Found"),
            Rejection::Method | Rejection::MethodHead => (405, "Method Not Allowed"),
            Rejection::TooSlow => (408, "Request Timeout"),
            Rejection::TargetTooLong => (414, "URI Too Long"),
            Rejection::UpgradeMissing
            | Rejection::VersionMissing
            | Rejection::VersionRepeated
            | Rejection::VersionUnsupported => (426, "Upgrade Required"),
            Rejection::TooMany => (429, "Too Many Requests"),
            Rejection::HeadTooLong | Rejection::FieldsTooMany => {
                (431, "Request Header Fields Too Large")
            }
            Rejection::MethodTooLong => (501, "Not Implemented"),
            Rejection::Full => (503, "Service Unavailable"),
            Rejection::HttpVersion => (505, "HTTP Version Not Supported"),
        }
    }

    /// One sentence that says what to do, in ASCII.
    pub fn reason(self) -> &'static str {
        match self {
            Rejection::Malformed => {
                "Send a well-formed HTTP/1.1 request head (RFC 9112): lines end with CR LF, and no \
                 space precedes a colon."
            }
            Rejection::TargetInvalid => {
                "Send a path such as /echo?a=b as the request target, with all bytes \
                 percent-encoded that a URL cannot hold, and without a fragment."
            }
            Rejection::TargetTooLong => "Shorten the URL: a request head has at most 8192 bytes.",
            Rejection::HeadTooLong => {
                "Shorten the header fields: a request head has at most 8192 bytes."
            }
            Rejection::FieldsTooMany => "Send at most 64 header fields.",
            Rejection::HttpVersion => {
                "Open the WebSocket with HTTP/1.1. For a proxy in between, set that version there."
            }
            Rejection::Method | Rejection::MethodHead | Rejection::MethodTooLong => {
                "Open the WebSocket with the method GET, in capital letters."
            }
            Rejection::HostMissing => "Send a Host field.",
            Rejection::HostRepeated => "Send the Host field once.",
            Rejection::HostInvalid => "Send a Host field with a host and an optional port.",
            Rejection::Content => "Send no content with the request that opens a WebSocket.",
            Rejection::UpgradeMissing => {
                "This is a WebSocket echo server: connect to it with a WebSocket client, at this \
                 address but with ws:// instead of http://. A proxy in between must pass the Upgrade \
                 field on."
            }
            Rejection::ConnectionMissing => "Send \"Connection: Upgrade\" with the Upgrade field.",
            Rejection::VersionMissing => "Send \"Sec-WebSocket-Version: 13\".",
            Rejection::VersionRepeated => "Send the Sec-WebSocket-Version field once.",
            Rejection::VersionUnsupported => "Use version 13 of the WebSocket protocol (RFC 6455).",
            Rejection::KeyMissing => "Send a Sec-WebSocket-Key field.",
            Rejection::KeyRepeated => "Send the Sec-WebSocket-Key field once.",
            Rejection::KeyInvalid => "Send 16 random bytes in base64 as the Sec-WebSocket-Key.",
            Rejection::SubprotocolInvalid => {
                "Send names of subprotocols in Sec-WebSocket-Protocol, separated by commas, without \
                 spaces or any of ()<>@,;:\\\"/[]?={}."
            }
            Rejection::ExtensionsInvalid => {
                "Send Sec-WebSocket-Extensions as RFC 6455 section 9.1 has it, such as \
                 permessage-deflate; client_max_window_bits=15."
            }
            Rejection::PathUnknown => "Nothing is served at this path.",
            Rejection::OriginForbidden => "Pages of this origin may not connect to this server.",
            Rejection::TooSlow => "The opening handshake was not finished in time: try again.",
            Rejection::Full => "The server is at its connection limit: try again later.",
            Rejection::TooMany => "Too many connections from your address: close some of them.",
        }
    }

    /// The whole response.
    pub fn response(self) -> Vec<u8> {
        let (status, phrase) = self.status_and_phrase();
        let retry: String;
        let demanded = match status {
            // RFC 9110 section 15.5.6.
            405 => "Connection: close\r\nAllow: GET\r\n",
            // RFC 9110 section 15.5.22 demands Upgrade, section 7.8 that Connection names it, and
            // RFC 6455 section 4.4 the supported versions.
            426 => {
                "Connection: close, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            }
            // RFC 9110 section 10.2.3, RFC 6585 section 4. The server cannot know when a client will leave.
            429 | 503 => {
                retry = format!("Connection: close\r\nRetry-After: {RETRY_AFTER}\r\n");
                retry.as_str()
            }
            _ => "Connection: close\r\n",
        };
        let reason = self.reason();
        let length = reason.len() + 1;
        // No Date: RFC 9110 section 6.6.1 asks for it only of a server with a clock, and none is read
        // here.
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
    use super::Rejection::*;
    use super::*;
    use crate::buffer::{HEADROOM, Spill, SpillPool};

    /// The one after `rejection`, so that no variant can be left out of [`all`].
    fn next(rejection: Rejection) -> Option<Rejection> {
        Some(match rejection {
            Malformed => TargetInvalid,
            TargetInvalid => TargetTooLong,
            TargetTooLong => HeadTooLong,
            HeadTooLong => FieldsTooMany,
            FieldsTooMany => HttpVersion,
            HttpVersion => Method,
            Method => MethodHead,
            MethodHead => MethodTooLong,
            MethodTooLong => HostMissing,
            HostMissing => HostRepeated,
            HostRepeated => HostInvalid,
            HostInvalid => Content,
            Content => UpgradeMissing,
            UpgradeMissing => ConnectionMissing,
            ConnectionMissing => VersionMissing,
            VersionMissing => VersionRepeated,
            VersionRepeated => VersionUnsupported,
            VersionUnsupported => KeyMissing,
            KeyMissing => KeyRepeated,
            KeyRepeated => KeyInvalid,
            KeyInvalid => SubprotocolInvalid,
            SubprotocolInvalid => ExtensionsInvalid,
            ExtensionsInvalid => PathUnknown,
            PathUnknown => OriginForbidden,
            OriginForbidden => TooSlow,
            TooSlow => Full,
            Full => TooMany,
            TooMany => return None,
        })
    }

    fn all() -> impl Iterator<Item = Rejection> {
        std::iter::successors(Some(Malformed), |&rejection| next(rejection))
    }

    #[test]
    fn every_refusal_fits_the_headroom_however_little_was_received() {
        assert_eq!(all().count(), 28);
        for rejection in all() {
            let response = rejection.response();
            assert!(response.is_ascii() && response.len() <= HEADROOM, "{rejection:?}");
            let mut spill = Spill::new(&SpillPool::new(0, Default::default()));
            spill.region().write(&response);
            spill.region().release();
            assert_eq!(spill.split_reply(0).0.take_part(usize::MAX), response, "{rejection:?}");
        }
    }

    #[test]
    fn responses_have_what_their_status_demands() {
        let close = "Connection: close";
        let retry = "Connection: close\r\nRetry-After: 10";
        let upgrade =
            "Connection: close, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13";
        for rejection in all() {
            let (status_line, demanded) = match rejection.status() {
                400 => ("400 Bad Request", close),
                403 => ("403 Forbidden", close),
                404 => ("404 Not Found", close),
                405 => ("405 Method Not Allowed", "Connection: close\r\nAllow: GET"),
                408 => ("408 Request Timeout", close),
                414 => ("414 URI Too Long", close),
                426 => ("426 Upgrade Required", upgrade),
                429 => ("429 Too Many Requests", retry),
                431 => ("431 Request Header Fields Too Large", close),
                501 => ("501 Not Implemented", close),
                503 => ("503 Service Unavailable", retry),
                505 => ("505 HTTP Version Not Supported", close),
                status => panic!("{status} of {rejection:?}"),
            };
            let length = rejection.to_string().len() + 1;
            let mut expected = format!(
                "HTTP/1.1 {status_line}\r\nContent-Type: text/plain; charset=utf-8\r\n\
                 Content-Length: {length}\r\n{demanded}\r\n\r\n"
            );
            if rejection != MethodHead {
                expected += &format!("{rejection}\n");
            }
            assert_eq!(String::from_utf8(rejection.response()).expect("ASCII"), expected);
        }
        let page = UpgradeMissing.reason();
        assert!(page.contains("WebSocket echo server") && page.contains("ws://"), "{page}");
    }

    #[test]
    fn limits_are_named_as_they_are() {
        let bytes = super::super::REQUEST_BYTES_MAX.to_string();
        assert!(HeadTooLong.reason().contains(&bytes) && TargetTooLong.reason().contains(&bytes));
        assert!(FieldsTooMany.reason().contains(&super::super::HEADERS_MAX.to_string()));
    }
}
