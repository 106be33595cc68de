//! What the two sides agree on: every offer there is, and the answer that RFC 7692 allows to it.

use std::collections::HashMap;

use ringecho::protocol::{FrameLimits, Policy, Protocol, Settings};

use crate::{BITS_MAX, MESSAGE_MAX};
use testkit::{Client, REQUEST, Server};

pub(crate) fn settings(policy: Policy) -> Settings {
    Settings {
        protocol: Protocol::WebSocket,
        message_max: MESSAGE_MAX,
        policy,
        level: 6,
        frames: FrameLimits::NONE,
    }
}

pub(crate) fn request(offer: &str) -> String {
    REQUEST.replacen("Upgrade:", &format!("Sec-WebSocket-Extensions: {offer}\r\nUpgrade:"), 1)
}

/// A connection to `server` with what the two have agreed on.
pub(crate) fn connect(server: &Server, offer: Offer, policy: Policy) -> (Client, Option<Agreed>) {
    let mut client = Client::open(server.address());
    let response = client.handshake_by(&request(&offer.field()));
    let agreed = offer.answered(&response, policy);
    (client, agreed)
}

/// What a client offers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Offer {
    pub(crate) server_no_context_takeover: bool,
    pub(crate) client_no_context_takeover: bool,
    pub(crate) server_max_window_bits: Option<u32>,
    /// With a value or without.
    pub(crate) client_max_window_bits: Option<Option<u32>>,
}

impl Offer {
    pub(crate) const NONE: Offer = Offer {
        server_no_context_takeover: false,
        client_no_context_takeover: false,
        server_max_window_bits: None,
        client_max_window_bits: None,
    };

    /// Every combination there is.
    pub(crate) fn all() -> Vec<Offer> {
        let mut all = Vec::new();
        let values = || (8..=BITS_MAX).map(Some).chain([None]);
        for server_max_window_bits in values() {
            for client_max_window_bits in values().map(Some).chain([None]) {
                for flags in 0..4 {
                    all.push(Offer {
                        server_no_context_takeover: flags & 1 != 0,
                        client_no_context_takeover: flags & 2 != 0,
                        server_max_window_bits,
                        client_max_window_bits,
                    });
                }
            }
        }
        all
    }

    /// The value of the field that makes it.
    pub(crate) fn field(&self) -> String {
        let mut field = "permessage-deflate".to_owned();
        if let Some(value) = self.client_max_window_bits {
            field += "; client_max_window_bits";
            field += &value.map_or(String::new(), |bits| format!("={bits}"));
        }
        if self.client_no_context_takeover {
            field += "; client_no_context_takeover";
        }
        if let Some(bits) = self.server_max_window_bits {
            field += &format!("; server_max_window_bits={bits}");
        }
        if self.server_no_context_takeover {
            field += "; server_no_context_takeover";
        }
        field
    }

    /// Reads what a server with `policy` answered, and holds it against what RFC 7692 section 7.1
    /// allows it to answer. `None`: it declined.
    pub(crate) fn answered(&self, response: &str, policy: Policy) -> Option<Agreed> {
        assert!(response.starts_with("HTTP/1.1 101 "), "{response}");
        let mut values =
            response.lines().filter_map(|line| line.strip_prefix("Sec-WebSocket-Extensions: "));
        let value = values.next()?;
        assert_eq!(values.next(), None, "one field");
        let mut parameters = value.split("; ");
        assert_eq!(parameters.next(), Some("permessage-deflate"));
        let mut found: HashMap<&str, Option<u32>> = HashMap::new();
        for parameter in parameters {
            let (name, value) = match parameter.split_once('=') {
                Some((name, bits)) => (name, Some(bits.parse().expect("a number"))),
                None => (parameter, None),
            };
            assert_eq!(found.insert(name, value), None, "{parameter} twice in {value:?}");
        }
        let server_no_context_takeover = found.remove("server_no_context_takeover").is_some();
        let client_no_context_takeover = found.remove("client_no_context_takeover").is_some();
        let server_bits = found.remove("server_max_window_bits").map(|bits| bits.expect("a value"));
        let client_bits = found.remove("client_max_window_bits").map(|bits| bits.expect("a value"));
        assert_eq!(found.len(), 0, "{found:?} in {value:?}");
        // What is asked for is granted.
        assert!(server_no_context_takeover || !self.server_no_context_takeover, "{value}");
        if let Some(offered) = self.server_max_window_bits {
            assert!(server_bits.is_some_and(|bits| bits <= offered), "{value}");
        }
        // Nothing is demanded that the client has not said it understands.
        let hint = self.client_max_window_bits;
        let hinted = hint.flatten().unwrap_or(BITS_MAX);
        assert!(client_bits.is_none_or(|bits| hint.is_some() && bits <= hinted), "{value}");
        for bits in [server_bits, client_bits].into_iter().flatten() {
            assert!((8..=BITS_MAX).contains(&bits), "{value}");
        }
        // Told how far it may look back, or alike without being told.
        let is_mirrored = policy == Policy::Mirror
            && (hint.is_some() || self.server_max_window_bits.is_none_or(|bits| bits == BITS_MAX));
        let agreed = Agreed {
            server_no_context_takeover,
            client_no_context_takeover: client_no_context_takeover
                || self.client_no_context_takeover,
            server_bits: server_bits.unwrap_or(BITS_MAX),
            client_bits: client_bits.unwrap_or(BITS_MAX).min(hinted),
            is_mirrored,
        };
        Some(agreed)
    }
}

/// What the two sides keep to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Agreed {
    pub(crate) server_no_context_takeover: bool,
    pub(crate) client_no_context_takeover: bool,
    pub(crate) server_bits: u32,
    pub(crate) client_bits: u32,
    /// What the server makes of it by itself.
    pub(crate) is_mirrored: bool,
}

impl Default for Agreed {
    fn default() -> Agreed {
        Agreed {
            server_no_context_takeover: false,
            client_no_context_takeover: false,
            server_bits: BITS_MAX,
            client_bits: BITS_MAX,
            is_mirrored: true,
        }
    }
}
