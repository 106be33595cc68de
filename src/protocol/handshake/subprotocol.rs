//! The choice of a subprotocol (RFC 6455 sections 1.9 and 4.2.2, item 5.5).
//!
//! Every subprotocol is echoed alike. The choice matters to clients that offer one and fail if none is
//! chosen, as browsers do.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use httparse::Header;

use super::rejection::Rejection;
use crate::protocol::fields::{elements, is_token};

/// Which subprotocol the server accepts. Whatever a client offers, the connection is opened: without a
/// subprotocol if none of the offered ones is accepted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Subprotocol {
    /// The first one that the client offers.
    #[default]
    Any,
    /// The one of this name, a token.
    Only(Arc<str>),
}

/// A name of a subprotocol that is not a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotToken;

impl fmt::Display for NotToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("write `any` or a name of letters, digits and !#$%&'*+-.^_`|~, such as chat")
    }
}

impl std::error::Error for NotToken {}

impl FromStr for Subprotocol {
    type Err = NotToken;

    fn from_str(text: &str) -> Result<Subprotocol, NotToken> {
        match text {
            "any" => Ok(Subprotocol::Any),
            name if is_token(name.as_bytes()) => Ok(Subprotocol::Only(name.into())),
            _ => Err(NotToken),
        }
    }
}

impl Subprotocol {
    /// The subprotocol that the answer names, out of those that the request offers. Names are compared
    /// byte by byte.
    pub(super) fn choose<'b>(&self, fields: &[Header<'b>]) -> Result<Option<&'b [u8]>, Rejection> {
        let mut chosen = None;
        // RFC 6455 section 4.2.2: a violation of the grammar, anywhere in the list, stops the handshake.
        for offered in elements(fields, "Sec-WebSocket-Protocol") {
            if !is_token(offered) {
                return Err(Rejection::SubprotocolInvalid);
            }
            let is_accepted = match self {
                Subprotocol::Any => true,
                Subprotocol::Only(name) => offered == name.as_bytes(),
            };
            chosen = chosen.or(is_accepted.then_some(offered));
        }
        Ok(chosen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(
        subprotocol: &str,
        values: &[&'static str],
    ) -> Result<Option<&'static str>, Rejection> {
        let fields: Vec<Header<'static>> = values
            .iter()
            .map(|value| Header { name: "sec-websocket-protocol", value: value.as_bytes() })
            .collect();
        let subprotocol: Subprotocol = subprotocol.parse().expect("a token");
        let chosen = subprotocol.choose(&fields)?;
        Ok(chosen.map(|name| std::str::from_utf8(name).expect("a token")))
    }

    #[test]
    fn the_first_acceptable_offer_is_chosen() {
        for (subprotocol, values, expected) in [
            ("any", &[][..], None),
            ("any", &["", " , "], None),
            ("any", &["chat"], Some("chat")),
            ("any", &[" ,\tsoap ,chat", "x"], Some("soap")),
            ("chat", &["soap", "x, chat"], Some("chat")),
            ("chat", &["Chat, chat2"], None),
            ("chat", &["chat, chat"], Some("chat")),
        ] {
            assert_eq!(chosen(subprotocol, values), Ok(expected), "{subprotocol} {values:?}");
        }
        for wrong in ["a b", "a, b;c", "chat, é", "\"chat\"", "a/b", "chat, (x)"] {
            assert_eq!(chosen("any", &[wrong]), Err(Rejection::SubprotocolInvalid), "{wrong}");
        }
    }

    #[test]
    fn names_are_tokens() {
        for name in ["", "a b", "a,b", "ä", "a/b", "a\r\nX: y"] {
            assert_eq!(name.parse::<Subprotocol>(), Err(NotToken), "{name:?}");
        }
        assert_eq!("graphql-ws".parse(), Ok(Subprotocol::Only("graphql-ws".into())));
    }
}
