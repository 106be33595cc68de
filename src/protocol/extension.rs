//! The negotiation of permessage-deflate (RFC 7692 section 7.1): what a client offers, what the server
//! agrees to, and the grammar of the field that says both (RFC 6455 section 9.1).
//!
//! [`agree`] is the one place that decides whether compressed messages are mirrored or recompressed. The
//! proof that its rule is right is in `docs/internals/compression.md`.
//!
//! A field that breaks the grammar fails the connection, as RFC 6455 section 9.1 demands. An offer whose
//! parameters break RFC 7692 section 7.1 is declined, and the next one is considered.

use std::borrow::Cow;
use std::fmt;

use super::fields::is_token;

/// The base-two logarithm of the largest window in bytes, which is the default.
pub const WINDOW_BITS_MAX: u8 = 15;

/// The smallest window that zlib can compress with. RFC 7692 section 7.1.2 goes down to 8, but zlib has no
/// such window for streams without a header (zlib's manual, `deflateInit2`).
pub const DEFLATE_WINDOW_BITS_MIN: u8 = 9;

/// What the server does with offers of permessage-deflate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// Declines them all.
    Off,
    /// Agrees to mirroring where the offer allows it, else to recompressing.
    Mirror,
    /// Agrees to recompressing.
    Deflate,
}

/// How a compressed message is echoed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Echo {
    /// The compressed bytes are echoed as they are.
    Mirrored,
    /// The message is inflated and compressed again.
    Recompressed,
}

/// One offer of permessage-deflate, with all parameters valid. An answer has the same ones.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Offer {
    /// The server must not refer to earlier messages (section 7.1.1.1).
    pub server_no_context_takeover: bool,
    /// The client will not refer to earlier messages (section 7.1.1.2).
    pub client_no_context_takeover: bool,
    /// The largest window that the server may use, 8 to 15 bits (section 7.1.2.1).
    pub server_max_window_bits: Option<u8>,
    /// The server may limit the client's window, and the client uses none larger than this, 8 to 15 bits
    /// (section 7.1.2.2). A parameter without a value is 15. Without the parameter, the server must not
    /// limit the window.
    pub client_max_window_bits: Option<u8>,
}

/// What both sides keep to, once the server has answered with it. [`fmt::Display`] writes the value
/// of the response's field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agreement {
    /// How compressed messages are echoed. This is the server's own business and not part of the answer.
    pub echo: Echo,
    /// The server does not refer to earlier messages.
    pub server_no_context_takeover: bool,
    /// The client does not refer to earlier messages.
    pub client_no_context_takeover: bool,
    /// The largest window of the server's messages, in bits.
    pub server_max_window_bits: Option<u8>,
    /// The largest window of the client's messages, in bits.
    pub client_max_window_bits: Option<u8>,
}

/// Answers one offer; `None` declines it.
///
/// A mirrored message refers back as far as the client's compressor did, and to as many messages.
/// The client's inflater has to follow, so the client must not look further back than the server
/// may: neither beyond the server's window, nor into earlier messages unless the server may too.
/// The server can demand both of the client, the first only if the offer says so.
pub fn agree(offer: &Offer, policy: Policy) -> Option<Agreement> {
    let server_bits = offer.server_max_window_bits.unwrap_or(WINDOW_BITS_MAX);
    // Without the parameter in the offer there must be none in the answer, and the client may use
    // the largest window (section 7.1.2.2).
    let client_bits =
        offer.client_max_window_bits.map_or(WINDOW_BITS_MAX, |bits| bits.min(server_bits));
    let echo = match policy {
        Policy::Off => return None,
        Policy::Mirror if client_bits <= server_bits => Echo::Mirrored,
        Policy::Mirror | Policy::Deflate if server_bits >= DEFLATE_WINDOW_BITS_MIN => {
            Echo::Recompressed
        }
        Policy::Mirror | Policy::Deflate => return None,
    };
    Some(Agreement {
        echo,
        server_no_context_takeover: offer.server_no_context_takeover,
        // Section 7.1.1.2 lets the server demand this whether or not it was offered.
        client_no_context_takeover: offer.client_no_context_takeover
            || (echo == Echo::Mirrored && offer.server_no_context_takeover),
        server_max_window_bits: offer.server_max_window_bits,
        client_max_window_bits: match echo {
            Echo::Mirrored => (client_bits < WINDOW_BITS_MAX).then_some(client_bits),
            // The client keeps to its own offer without being asked.
            Echo::Recompressed => None,
        },
    })
}

impl Agreement {
    /// The window of the server's compressor, in bits; `None` if there is no compressor.
    pub(super) fn deflater_bits(&self) -> Option<u8> {
        match self.echo {
            Echo::Mirrored => None,
            Echo::Recompressed => Some(self.server_max_window_bits.unwrap_or(WINDOW_BITS_MAX)),
        }
    }

    /// How far the client's messages may refer back into earlier ones, in bytes.
    pub(super) fn client_reach(&self) -> Option<usize> {
        let bits = self.client_max_window_bits.unwrap_or(WINDOW_BITS_MAX);
        (!self.client_no_context_takeover).then_some(1 << bits)
    }

    /// Whether the server's compressor refers to earlier messages, and so goes on with the next one.
    pub(super) fn keeps_deflater(&self) -> bool {
        self.echo == Echo::Recompressed && !self.server_no_context_takeover
    }

    /// How much of its messages a connection has to keep for the next one, in bytes. Where the compressor
    /// is kept, so is the inflater beside it, and there is nothing else to keep.
    pub(super) fn window_bytes(&self) -> Option<usize> {
        self.client_reach().filter(|_| !self.keeps_deflater())
    }
}

impl fmt::Display for Agreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(NAME)?;
        if self.server_no_context_takeover {
            f.write_str("; server_no_context_takeover")?;
        }
        if self.client_no_context_takeover {
            f.write_str("; client_no_context_takeover")?;
        }
        if let Some(bits) = self.server_max_window_bits {
            write!(f, "; server_max_window_bits={bits}")?;
        }
        if let Some(bits) = self.client_max_window_bits {
            write!(f, "; client_max_window_bits={bits}")?;
        }
        Ok(())
    }
}

/// The name in the registry (section 8.1).
const NAME: &str = "permessage-deflate";

/// A value of Sec-WebSocket-Extensions breaks its grammar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

/// What came of the offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Negotiated {
    /// There was none, or none that could be agreed to.
    Nothing,
    /// One is agreed to.
    Agreed(Agreement),
    /// One would have been, if there were the memory for it.
    Unaffordable,
}

/// Agrees to the first acceptable offer in `values`, which are those of all Sec-WebSocket-Extensions
/// fields in their order (RFC 6455 section 9.1). One for which there is no memory is not acceptable.
///
/// # Errors
///
/// When one of the values breaks the grammar, acceptable offers or not.
pub fn negotiate<'b>(
    values: impl Iterator<Item = &'b [u8]>,
    policy: Policy,
    is_affordable: impl Fn(&Agreement) -> bool,
) -> Result<Negotiated, Malformed> {
    let mut negotiated = Negotiated::Nothing;
    for value in values {
        for extension in parse(value)? {
            let offered = || offer(&extension).and_then(|offer| agree(&offer, policy));
            negotiated = match negotiated {
                Negotiated::Agreed(_) => negotiated,
                Negotiated::Nothing | Negotiated::Unaffordable => match offered() {
                    Some(agreement) if is_affordable(&agreement) => Negotiated::Agreed(agreement),
                    Some(_) => Negotiated::Unaffordable,
                    None => negotiated,
                },
            };
        }
    }
    Ok(negotiated)
}

/// What a server agreed to, as the client of the same connection reads it: `value` is that of
/// Sec-WebSocket-Extensions in the response, and nothing if that is not permessage-deflate once, with
/// parameters as section 7.1 defines them. Whether they answer the offer is for the caller to judge.
pub fn answered(value: &[u8]) -> Option<Offer> {
    match parse(value).ok()?.as_slice() {
        [extension] => offer(extension),
        _ => None,
    }
}

/// What a client offered, as a server of the same connection reads it: the offers of permessage-deflate in
/// one value of Sec-WebSocket-Extensions that are as section 7.1 defines them, in their order. Others are
/// left out, as a server has to decline them.
///
/// # Errors
///
/// When the value breaks the grammar (RFC 6455 section 9.1).
pub fn offers(value: &[u8]) -> Result<Vec<Offer>, Malformed> {
    Ok(parse(value)?.iter().filter_map(offer).collect())
}

/// The offer in one element of the list, if it is one of permessage-deflate, has no parameter twice
/// and each as section 7.1 defines it.
fn offer(extension: &Extension<'_>) -> Option<Offer> {
    if extension.name != NAME.as_bytes() {
        return None;
    }
    let mut offer = Offer::default();
    for (name, value) in &extension.parameters {
        let is_first = match (*name, value.as_deref()) {
            (b"server_no_context_takeover", None) => {
                !std::mem::replace(&mut offer.server_no_context_takeover, true)
            }
            (b"client_no_context_takeover", None) => {
                !std::mem::replace(&mut offer.client_no_context_takeover, true)
            }
            (b"server_max_window_bits", Some(value)) => {
                offer.server_max_window_bits.replace(window_bits(value)?).is_none()
            }
            (b"client_max_window_bits", value) => {
                let bits = value.map_or(Some(WINDOW_BITS_MAX), window_bits)?;
                offer.client_max_window_bits.replace(bits).is_none()
            }
            _ => return None,
        };
        if !is_first {
            return None;
        }
    }
    Some(offer)
}

/// An element of a list of extensions, all tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Extension<'b> {
    pub(super) name: &'b [u8],
    pub(super) parameters: Vec<Parameter<'b>>,
}

/// A name, and maybe a value without its quotes.
type Parameter<'b> = (&'b [u8], Option<Cow<'b, [u8]>>);

/// Parses one value of Sec-WebSocket-Extensions: `1#( token *( ";" token [ "=" ( token / quoted-string ) ]
/// ) )`, where what is quoted is a token too (RFC 6455 section 9.1). Empty elements are ignored (RFC
/// 9110 section 5.6.1.2).
pub(super) fn parse(value: &[u8]) -> Result<Vec<Extension<'_>>, Malformed> {
    split(value, b',')
        .map(<[u8]>::trim_ascii)
        .filter(|element| !element.is_empty())
        .map(|element| {
            let mut parts = split(element, b';');
            let name = token(parts.next().unwrap_or_default())?;
            let parameters = parts.map(parameter).collect::<Result<_, Malformed>>()?;
            Ok(Extension { name, parameters })
        })
        .collect()
}

fn parameter(part: &[u8]) -> Result<Parameter<'_>, Malformed> {
    let Some(equals) = part.iter().position(|&byte| byte == b'=') else {
        return Ok((token(part)?, None));
    };
    let (name, value) = (token(&part[..equals])?, part[equals + 1..].trim_ascii());
    let Some(quoted) = value.strip_prefix(b"\"") else {
        return Ok((name, Some(Cow::Borrowed(token(value)?))));
    };
    let mut unquoted = Vec::new();
    let mut bytes = quoted.iter();
    loop {
        match bytes.next().ok_or(Malformed)? {
            b'"' => break,
            b'\\' => unquoted.push(*bytes.next().ok_or(Malformed)?),
            &byte => unquoted.push(byte),
        }
    }
    if !bytes.as_slice().is_empty() || !is_token(&unquoted) {
        return Err(Malformed);
    }
    Ok((name, Some(Cow::Owned(unquoted))))
}

fn token(text: &[u8]) -> Result<&[u8], Malformed> {
    let text = text.trim_ascii();
    if is_token(text) { Ok(text) } else { Err(Malformed) }
}

/// A decimal number from 8 to 15 without leading zeros (section 7.1.2).
fn window_bits(value: &[u8]) -> Option<u8> {
    match value {
        [digit @ b'8'..=b'9'] => Some(digit - b'0'),
        [b'1', digit @ b'0'..=b'5'] => Some(10 + digit - b'0'),
        _ => None,
    }
}

/// The pieces of `text` between separators that are outside of quoted strings.
fn split(text: &[u8], separator: u8) -> impl Iterator<Item = &[u8]> {
    let (mut is_quoted, mut is_escaped) = (false, false);
    text.split(move |&byte| {
        if is_escaped {
            is_escaped = false;
        } else if byte == b'"' {
            is_quoted = !is_quoted;
        } else if byte == b'\\' {
            is_escaped = is_quoted;
        } else {
            return byte == separator && !is_quoted;
        }
        false
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(values: &[&str], policy: Policy) -> Option<String> {
        let values = values.iter().map(|value| value.as_bytes());
        match negotiate(values, policy, |_| true).expect("the grammar is kept") {
            Negotiated::Agreed(agreement) => Some(agreement.to_string()),
            Negotiated::Nothing => None,
            Negotiated::Unaffordable => unreachable!("all are"),
        }
    }

    fn answer_to(offer: &str) -> Option<String> {
        answer(&[&format!("permessage-deflate{offer}")], Policy::Mirror)
            .map(|answer| answer.strip_prefix(NAME).expect("the extension's name").to_owned())
    }

    /// Every offer there is, with what is agreed on, against the rule as it is proven.
    #[test]
    fn offers_that_break_a_rule_are_left_out() {
        let value = "x, permessage-deflate; server_max_window_bits=7, \
                     permessage-deflate; client_max_window_bits, permessage-deflate";
        let able = Offer { client_max_window_bits: Some(15), ..Offer::default() };
        assert_eq!(offers(value.as_bytes()), Ok(vec![able, Offer::default()]));
        assert_eq!(offers(b""), Ok(Vec::new()));
        assert_eq!(offers(b"permessage-deflate;;"), Err(Malformed));
    }

    #[test]
    fn a_message_is_mirrored_where_the_client_looks_no_further_back_than_the_server_may() {
        let window = || (8..=15).map(Some).chain([None]);
        let mut counts = [0; 3];
        for server_max_window_bits in window() {
            for client_max_window_bits in window() {
                for flags in 0..4 {
                    let offer = Offer {
                        server_no_context_takeover: flags & 1 != 0,
                        client_no_context_takeover: flags & 2 != 0,
                        server_max_window_bits,
                        client_max_window_bits,
                    };
                    let (mirror, deflate) =
                        (agree(&offer, Policy::Mirror), agree(&offer, Policy::Deflate));
                    assert_eq!(agree(&offer, Policy::Off), None);
                    for agreement in [mirror, deflate].into_iter().flatten() {
                        // Section 7.1: what the client demands is granted, and no more than its
                        // offer lets the server demand.
                        assert_eq!(agreement.server_max_window_bits, server_max_window_bits);
                        assert_eq!(agreement.server_no_context_takeover, flags & 1 != 0);
                        assert!(agreement.client_no_context_takeover || flags & 2 == 0);
                        assert!(
                            agreement.client_max_window_bits.is_none()
                                || agreement.client_max_window_bits <= client_max_window_bits
                        );
                        let server_bits = server_max_window_bits.unwrap_or(15);
                        match agreement.echo {
                            Echo::Mirrored => {
                                let client_bits = agreement.client_max_window_bits.unwrap_or(15);
                                assert!(client_bits <= server_bits, "{offer:?}");
                                assert!(
                                    agreement.client_no_context_takeover
                                        || !agreement.server_no_context_takeover
                                );
                            }
                            Echo::Recompressed => assert!(server_bits >= 9, "{offer:?}"),
                        }
                    }
                    assert!(deflate.is_none_or(|agreement| agreement.echo == Echo::Recompressed));
                    assert_eq!(deflate.is_none(), server_max_window_bits == Some(8));
                    // Mirroring is impossible only where the client cannot be held to the window.
                    let is_held = client_max_window_bits.is_some();
                    let (at, expected) = match server_max_window_bits {
                        None | Some(15) => (0, Some(Echo::Mirrored)),
                        Some(_) if is_held => (0, Some(Echo::Mirrored)),
                        Some(8) => (1, None),
                        Some(_) => (2, Some(Echo::Recompressed)),
                    };
                    assert_eq!(mirror.map(|agreement| agreement.echo), expected, "{offer:?}");
                    counts[at] += 1;
                }
            }
        }
        assert_eq!(counts, [296, 4, 24]);
    }

    #[test]
    fn answers_to_single_offers() {
        for (offer, expected) in [
            ("", ""),
            ("; client_max_window_bits", ""),
            ("; client_max_window_bits=15", ""),
            ("; client_max_window_bits=10", "; client_max_window_bits=10"),
            ("; server_max_window_bits=15", "; server_max_window_bits=15"),
            ("; server_max_window_bits=10", "; server_max_window_bits=10"),
            (
                "; server_max_window_bits=10; client_max_window_bits",
                "; server_max_window_bits=10; client_max_window_bits=10",
            ),
            (
                "; server_max_window_bits=8; client_max_window_bits=9",
                "; server_max_window_bits=8; client_max_window_bits=8",
            ),
            (
                "; server_max_window_bits=12; client_max_window_bits=9",
                "; server_max_window_bits=12; client_max_window_bits=9",
            ),
            ("; client_no_context_takeover", "; client_no_context_takeover"),
            (
                "; server_no_context_takeover",
                "; server_no_context_takeover; client_no_context_takeover",
            ),
            (
                "; server_max_window_bits=10; server_no_context_takeover",
                "; server_no_context_takeover; server_max_window_bits=10",
            ),
        ] {
            assert_eq!(answer_to(offer).as_deref(), Some(expected), "{offer:?}");
        }
        assert_eq!(answer_to("; server_max_window_bits=8"), None);
    }

    #[test]
    fn quotes_and_white_space() {
        for offer in [
            ";server_max_window_bits=\"10\"",
            " ;\tserver_max_window_bits = \"10\" ",
            "; server_max_window_bits=\"\\10\"",
            "; server_max_window_bits=\"1\\0\"",
        ] {
            let expected = Some("; server_max_window_bits=10");
            assert_eq!(answer_to(offer).as_deref(), expected, "{offer:?}");
        }
    }

    #[test]
    fn what_declines_an_offer() {
        for offer in [
            "; unknown",
            "; unknown=1",
            "; Server_no_context_takeover",
            "; server_no_context_takeover=1",
            "; client_no_context_takeover=true",
            "; server_no_context_takeover; server_no_context_takeover",
            "; client_no_context_takeover; client_no_context_takeover",
            "; server_max_window_bits",
            "; server_max_window_bits=7",
            "; server_max_window_bits=16",
            "; server_max_window_bits=08",
            "; server_max_window_bits=010",
            "; server_max_window_bits=+9",
            "; server_max_window_bits=10; server_max_window_bits=10",
            "; client_max_window_bits=-8",
            "; client_max_window_bits=8.0",
            "; client_max_window_bits; client_max_window_bits=9",
            "s",
        ] {
            assert_eq!(answer_to(offer), None, "{offer:?}");
        }
    }

    #[test]
    fn the_first_acceptable_offer_wins_over_all_fields() {
        let plain = Some(NAME.to_owned());
        for values in [
            &["permessage-deflate; unknown, permessage-deflate"][..],
            &["permessage-deflate; server_max_window_bits=8", "permessage-deflate"],
            &["x-webkit-deflate-frame, , permessage-deflate,permessage-deflate; unknown"],
            &["", "foo; a=\"x\\y\"", " permessage-deflate"],
        ] {
            assert_eq!(answer(values, Policy::Mirror), plain, "{values:?}");
            assert_eq!(answer(values, Policy::Deflate), plain, "{values:?}");
            assert_eq!(answer(values, Policy::Off), None, "{values:?}");
        }
        let first = answer(
            &["permessage-deflate; client_max_window_bits=9, permessage-deflate"],
            Policy::Mirror,
        );
        assert_eq!(first.as_deref(), Some("permessage-deflate; client_max_window_bits=9"));
        for values in [&[][..], &["permessage-bzip2"], &["", " ,\t, "]] {
            assert_eq!(answer(values, Policy::Mirror), None, "{values:?}");
        }
    }

    #[test]
    fn an_offer_for_which_there_is_no_memory_gives_way_to_the_next() {
        let recompressed = "permessage-deflate; server_max_window_bits=9";
        let mirrored = "permessage-deflate; client_no_context_takeover";
        let agree = |values: &[&'static str]| {
            let is_affordable = |agreement: &Agreement| agreement.echo == Echo::Mirrored;
            let values = values.iter().map(|value| value.as_bytes());
            negotiate(values, Policy::Mirror, is_affordable).expect("the grammar is kept")
        };
        assert_eq!(agree(&[recompressed]), Negotiated::Unaffordable);
        assert_eq!(agree(&[recompressed, "permessage-bzip2"]), Negotiated::Unaffordable);
        assert_eq!(agree(&["permessage-bzip2"]), Negotiated::Nothing);
        for values in [&[recompressed, mirrored][..], &[mirrored, recompressed], &[mirrored]] {
            let Negotiated::Agreed(agreement) = agree(values) else { panic!("{values:?}") };
            assert!(agreement.client_no_context_takeover);
        }
    }

    #[test]
    fn what_breaks_the_grammar_is_refused_with_or_without_valid_offers_beside_it() {
        for broken in [
            ";",
            "permessage-deflate;",
            "permessage-deflate; ;server_no_context_takeover",
            "permessage-deflate client_max_window_bits",
            "permessage-deflate; a=",
            "permessage-deflate; =a",
            "permessage-deflate; a=\"\"",
            "permessage-deflate; a=9 9",
            "permessage-deflate; a=10=10",
            "permessage-deflate; a=\"10",
            "permessage-deflate; a=10\"",
            "permessage-deflate; a=\"10\"x",
            "permessage-deflate; a=\"10\\",
            "permessage-deflate; a=\" 10\"",
            "permessage-deflate; a=\"b, c\"",
            "permessage/deflate",
            "permessage-deflate; a\u{e9}",
        ] {
            let plain = "permessage-deflate";
            for values in [&[broken][..], &[plain, broken], &[broken, plain]] {
                for policy in [Policy::Off, Policy::Mirror, Policy::Deflate] {
                    let values = values.iter().map(|value| value.as_bytes());
                    let negotiated = negotiate(values, policy, |_| true);
                    assert_eq!(negotiated, Err(Malformed), "{broken}");
                }
            }
        }
    }
}
