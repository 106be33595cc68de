//! The negotiation of permessage-deflate: any values of Sec-WebSocket-Extensions, against a plain reading of
//! the grammar (RFC 6455 section 9.1) and of RFC 7692 section 7.1.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ringecho::protocol::extension::{self, Agreement, Echo, Malformed, Negotiated};
use ringecho::protocol::pool::Budget;
use ringecho::protocol::{Admission, Policy, client, handshake};
use ringecho_fuzz::{policy, terms};
use testkit::REQUEST;

fuzz_target!(|data: &[u8]| {
    let [choice, lines @ ..] = data else { return };
    // What can be the value of a field (RFC 9110 section 5.5).
    let is_of_value = |&byte: &u8| matches!(byte, b'\t' | b'\n' | b' '..=b'~' | 0x80..);
    if !lines.iter().all(is_of_value) {
        return;
    }
    let values: Vec<&[u8]> = lines.split(|&byte| byte == b'\n').map(<[u8]>::trim_ascii).collect();
    let policy = policy(*choice);
    let negotiated = extension::negotiate(values.iter().copied(), policy, |_| true);
    let elements: Option<Vec<Vec<Element>>> = values.iter().map(|value| read(value)).collect();
    match elements {
        None => assert_eq!(negotiated, Err(Malformed)),
        Some(elements) => {
            check(&elements.concat(), policy, negotiated.expect("the grammar is kept"));
        }
    }
    check_values(&values, policy, negotiated);
    check_handshake(&values, policy, negotiated);
});

/// A name with its parameters.
type Element = (Vec<u8>, Vec<(Vec<u8>, Option<Vec<u8>>)>);

/// What a value consists of.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Symbol {
    Comma,
    Semicolon,
    Equals,
    Word(Vec<u8>),
    Quoted(Vec<u8>),
}

/// The elements of a list; nothing if it breaks the grammar.
fn read(value: &[u8]) -> Option<Vec<Element>> {
    let symbols = symbols(value)?;
    let elements = symbols.split(|symbol| *symbol == Symbol::Comma);
    elements.filter(|element| !element.is_empty()).map(element).collect()
}

fn element(symbols: &[Symbol]) -> Option<Element> {
    let mut parts = symbols.split(|symbol| *symbol == Symbol::Semicolon);
    let [Symbol::Word(name)] = parts.next()? else { return None };
    let parameters = parts.map(|part| match part {
        [Symbol::Word(name)] => Some((name.clone(), None)),
        [Symbol::Word(name), Symbol::Equals, Symbol::Word(value) | Symbol::Quoted(value)] => {
            Some((name.clone(), Some(value.clone())))
        }
        _ => None,
    });
    Some((name.clone(), parameters.collect::<Option<_>>()?))
}

fn symbols(value: &[u8]) -> Option<Vec<Symbol>> {
    let is_of_token = |byte: u8| byte.is_ascii_graphic() && !b"\"(),/:;<=>?@[\\]{}".contains(&byte);
    let mut symbols = Vec::new();
    let mut at = 0;
    while let Some(&byte) = value.get(at) {
        at += 1;
        match byte {
            b' ' | b'\t' => {}
            b',' => symbols.push(Symbol::Comma),
            b';' => symbols.push(Symbol::Semicolon),
            b'=' => symbols.push(Symbol::Equals),
            b'"' => {
                let mut text = Vec::new();
                loop {
                    let byte = *value.get(at)?;
                    at += 1;
                    match byte {
                        b'"' => break,
                        b'\\' => {
                            text.push(*value.get(at)?);
                            at += 1;
                        }
                        byte => text.push(byte),
                    }
                }
                // Section 9.1: what is quoted is a token, too.
                if text.is_empty() || !text.iter().all(|&byte| is_of_token(byte)) {
                    return None;
                }
                symbols.push(Symbol::Quoted(text));
            }
            byte if is_of_token(byte) => {
                let rest = &value[at - 1..];
                let length = rest.iter().take_while(|&&byte| is_of_token(byte)).count();
                symbols.push(Symbol::Word(rest[..length].to_vec()));
                at += length - 1;
            }
            _ => return None,
        }
    }
    Some(symbols)
}

/// An offer of permessage-deflate.
#[derive(Debug, Default)]
struct Offer {
    server_no_context_takeover: bool,
    client_no_context_takeover: bool,
    server_bits: Option<u8>,
    /// With a value or without.
    client_bits: Option<Option<u8>>,
}

/// The offer that an element makes, if it is a valid one.
fn offer((name, parameters): &Element) -> Option<Offer> {
    if name != b"permessage-deflate" {
        return None;
    }
    let mut offer = Offer::default();
    for (at, (name, value)) in parameters.iter().enumerate() {
        if parameters[..at].iter().any(|(earlier, _)| earlier == name) {
            return None;
        }
        let bits = |value: &Vec<u8>| -> Option<u8> {
            let text = str::from_utf8(value).ok()?;
            let is_plain = text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
            text.parse().ok().filter(|bits| is_plain && (8..=15).contains(bits))
        };
        match (&name[..], value) {
            (b"server_no_context_takeover", None) => offer.server_no_context_takeover = true,
            (b"client_no_context_takeover", None) => offer.client_no_context_takeover = true,
            (b"server_max_window_bits", Some(value)) => offer.server_bits = Some(bits(value)?),
            (b"client_max_window_bits", None) => offer.client_bits = Some(None),
            (b"client_max_window_bits", Some(value)) => {
                offer.client_bits = Some(Some(bits(value)?))
            }
            _ => return None,
        }
    }
    Some(offer)
}

impl Offer {
    /// Whether the server can keep to it. zlib has no window of 8 bits, so it can only be mirrored.
    fn is_acceptable(&self, policy: Policy) -> bool {
        let server_bits = self.server_bits.unwrap_or(15);
        match policy {
            Policy::Off => false,
            Policy::Mirror => server_bits >= 9 || self.client_bits.is_some(),
            Policy::Deflate => server_bits >= 9,
        }
    }

    /// What a server may answer to it (RFC 7692 section 7.1).
    fn check(&self, agreement: &Agreement) {
        let Agreement { server_max_window_bits, client_max_window_bits, .. } = *agreement;
        // What is asked for is granted.
        assert!(agreement.server_no_context_takeover || !self.server_no_context_takeover);
        if let Some(offered) = self.server_bits {
            assert!(server_max_window_bits.is_some_and(|bits| bits <= offered));
        }
        // Nothing is demanded that the client has not said it understands.
        if let Some(bits) = client_max_window_bits {
            let hint = self.client_bits.expect("the client understands it");
            assert!(bits <= hint.unwrap_or(15));
        }
        for bits in [server_max_window_bits, client_max_window_bits].into_iter().flatten() {
            assert!((8..=15).contains(&bits));
        }
        // What is mirrored looks no further back than the server may.
        if agreement.echo == Echo::Mirrored {
            let hint = self.client_bits.flatten().unwrap_or(15);
            let client_bits = client_max_window_bits.unwrap_or(15).min(hint);
            assert!(client_bits <= server_max_window_bits.unwrap_or(15));
            let client_forgets =
                agreement.client_no_context_takeover || self.client_no_context_takeover;
            assert!(client_forgets || !agreement.server_no_context_takeover);
        }
    }
}

/// The first acceptable offer is agreed to.
fn check(elements: &[Element], policy: Policy, negotiated: Negotiated) {
    let mut offers = elements.iter().filter_map(offer);
    let first = offers.find(|offer| offer.is_acceptable(policy));
    match (first, negotiated) {
        (None, Negotiated::Nothing) => {}
        (Some(offer), Negotiated::Agreed(agreement)) => offer.check(&agreement),
        (first, negotiated) => panic!("{negotiated:?} for {first:?}"),
    }
}

/// Several fields are one list (RFC 9110 section 5.3).
fn check_values(values: &[&[u8]], policy: Policy, negotiated: Result<Negotiated, Malformed>) {
    if negotiated.is_ok() {
        let joined = values.join(&b", "[..]);
        assert_eq!(extension::negotiate([&joined[..]].into_iter(), policy, |_| true), negotiated);
        let unaffordable = extension::negotiate(values.iter().copied(), policy, |_| false);
        let is_agreed = matches!(negotiated, Ok(Negotiated::Agreed(_)));
        let expected = if is_agreed { Negotiated::Unaffordable } else { Negotiated::Nothing };
        assert_eq!(unaffordable, Ok(expected));
    }
}

/// The same within a request, of which the answer is read by a client.
fn check_handshake(values: &[&[u8]], policy: Policy, negotiated: Result<Negotiated, Malformed>) {
    let field = |value: &&[u8]| [&b"Sec-WebSocket-Extensions: "[..], value, b"\r\n"].concat();
    let fields: Vec<u8> = values.iter().flat_map(field).collect();
    let head = REQUEST.strip_suffix("\r\n").expect("a head").as_bytes();
    let request = [head, &fields, b"\r\n"].concat();
    // More of either is refused.
    if request.len() > handshake::REQUEST_BYTES_MAX || values.len() > handshake::HEADERS_MAX / 2 {
        return;
    }
    let recompression = Budget::new(64 << 20);
    let answer = handshake::answer(&request, Admission::Open, &terms(policy, &recompression));
    let agreement = match negotiated {
        Err(Malformed) => {
            return assert_eq!(answer, Err(handshake::Rejection::ExtensionsInvalid));
        }
        Ok(Negotiated::Agreed(agreement)) => Some(agreement),
        Ok(Negotiated::Nothing | Negotiated::Unaffordable) => None,
    };
    let accepted = answer.expect("a right request").expect("a whole request");
    assert_eq!(accepted.agreement, agreement);
    // The key of the request, decoded.
    let key = *b"the sample nonce";
    let extensions = Some("permessage-deflate");
    let request = client::Request { host: "fuzz", target: "/", key, extensions };
    let opened = request.check(&accepted.response).expect("an offered extension");
    let answered = opened.expect("a whole response").extensions;
    assert_eq!(answered, agreement.map(|agreement| agreement.to_string()));
    if let (Some(text), Some(agreement)) = (answered, agreement) {
        let read = extension::answered(text.as_bytes()).expect("an answer as section 7.1 has it");
        assert_eq!(read.server_no_context_takeover, agreement.server_no_context_takeover);
        assert_eq!(read.client_no_context_takeover, agreement.client_no_context_takeover);
        assert_eq!(read.server_max_window_bits, agreement.server_max_window_bits);
        assert_eq!(read.client_max_window_bits, agreement.client_max_window_bits);
    }
}
