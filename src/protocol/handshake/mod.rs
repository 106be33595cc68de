//! The opening handshake, server side: the head of an HTTP/1.1 request goes in, and the response that
//! opens the WebSocket connection, or refuses to, comes out (RFC 6455 section 4.2).
//!
//! Nothing is kept between two calls: the caller passes all bytes received so far each time, and the
//! answer depends on them alone. At most [`REQUEST_BYTES_MAX`] of them are parsed. So the worst that a
//! client can cause is 8192 calls that parse 32 MiB in all, and each call costs it a segment.
//! That bound makes a resumable parser unnecessary.
//!
//! `request` reads and checks the head, `access` says which requests are accepted, `rejection` is the table
//! of refusals, `page` what browsers get that open no WebSocket, and `subprotocol` chooses a subprotocol. Nothing here knows frames, sockets or time, so a
//! slow client is not noticed here. Every path is the same echo, unless only one is served.

mod access;
mod page;
mod rejection;
mod request;
mod subprotocol;
#[cfg(test)]
mod tests;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

pub use access::{Access, Origin, OriginInvalid, PathInvalid, RequestPath};
pub use page::Page;
pub use rejection::Rejection;
use request::Head;
pub use subprotocol::{NotToken, Subprotocol};

use super::extension::{self, Agreement, Negotiated, Policy};
use super::fields;
use super::pool::Budget;

/// The longest request head that is read, in bytes. RFC 9112 section 3 recommends supporting at least
/// 8000 for the request line alone.
pub const REQUEST_BYTES_MAX: usize = 8192;

/// The most header fields that a request may have.
pub const HEADERS_MAX: usize = 64;

/// How much longer than its request an accepting response can be, in bytes. To the shortest request that
/// offers compression the server adds a parameter of its own, a value and spaces.
pub const RESPONSE_GROWTH_MAX: usize = 64;

/// Appended to the key before it is hashed (RFC 6455 section 1.3).
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// What the server does with a client whose handshake is acceptable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// The connection is opened.
    Open,
    /// The server is at its connection limit: [`Rejection::Full`].
    Full,
    /// The client's address is at its connection limit: [`Rejection::TooMany`].
    TooMany,
}

/// What the server agrees to.
#[derive(Debug, Clone)]
pub struct Terms<'a> {
    /// How offers of permessage-deflate are answered.
    pub policy: Policy,
    /// Which subprotocol is accepted.
    pub subprotocol: &'a Subprotocol,
    /// Which requests are accepted.
    pub access: &'a Access,
    /// The memory for agreements that need recompression.
    pub recompression: &'a Budget,
}

/// An opening handshake that was accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// Length of the request, in bytes. What follows in the received bytes is frames.
    pub head_bytes: usize,
    /// The whole response: 129 bytes and what was negotiated, at most [`RESPONSE_GROWTH_MAX`] more than
    /// `head_bytes`.
    pub response: Vec<u8>,
    /// The parameters of permessage-deflate, if it was negotiated.
    pub agreement: Option<Agreement>,
    /// Whether it was not negotiated because there is no memory for recompression.
    pub compression_declined: bool,
}

/// Answers the opening handshake in the bytes received so far; `Ok(None)` while its end is missing.
///
/// What cannot become an HTTP/1.1 request is refused before the end. What HTTP allows and WebSocket does
/// not is refused when the head is whole, so that the client has sent it all and reads the answer.
pub fn answer(
    received: &[u8],
    admission: Admission,
    terms: &Terms<'_>,
) -> Result<Option<Accepted>, Rejection> {
    let mut fields = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let Some(head) = Head::read(received, &mut fields)? else { return Ok(None) };
    terms.access.check_path(head.target())?;
    let key = head.check()?;
    terms.access.check_origin(head.fields)?;
    let subprotocol = terms.subprotocol.choose(head.fields)?;
    let offers = fields::values(head.fields, "Sec-WebSocket-Extensions");
    let is_affordable = |agreement: &Agreement| terms.recompression.has_room_for(agreement);
    let negotiated = extension::negotiate(offers, terms.policy, is_affordable)
        .map_err(|_| Rejection::ExtensionsInvalid)?;
    let agreement = match negotiated {
        Negotiated::Agreed(agreement) => Some(agreement),
        Negotiated::Nothing | Negotiated::Unaffordable => None,
    };
    match admission {
        Admission::Open => {
            let response = response_to(key, subprotocol, agreement);
            let compression_declined = negotiated == Negotiated::Unaffordable;
            let head_bytes = head.length;
            Ok(Some(Accepted { head_bytes, response, agreement, compression_declined }))
        }
        Admission::Full => Err(Rejection::Full),
        Admission::TooMany => Err(Rejection::TooMany),
    }
}

/// The value of Sec-WebSocket-Accept that answers `key`, which shows that the server has understood the
/// request (section 4.2.2, item 5.4).
pub fn accept_of(key: &[u8]) -> String {
    let mut digest = sha1_smol::Sha1::new();
    digest.update(key);
    digest.update(GUID);
    BASE64_STANDARD.encode(digest.digest().bytes())
}

/// RFC 6455 section 4.2.2, item 5, and no field beyond it.
fn response_to(key: &[u8], subprotocol: Option<&[u8]>, agreement: Option<Agreement>) -> Vec<u8> {
    let accept = accept_of(key);
    let mut response = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\n"
    )
    .into_bytes();
    if let Some(subprotocol) = subprotocol {
        response.extend_from_slice(b"Sec-WebSocket-Protocol: ");
        response.extend_from_slice(subprotocol);
        response.extend_from_slice(b"\r\n");
    }
    if let Some(agreement) = agreement {
        response.extend_from_slice(format!("Sec-WebSocket-Extensions: {agreement}\r\n").as_bytes());
    }
    response.extend_from_slice(b"\r\n");
    response
}
