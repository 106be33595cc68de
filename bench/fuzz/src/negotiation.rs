//! The negotiation of permessage-deflate: any values of Sec-WebSocket-Extensions, against a plain reading of
//! the grammar (RFC 6455 section 9.1) and of RFC 7692 section 7.1. That allocates nothing, so that as many values as
//! possible are tried.

use libfuzzer_sys::Corpus;
use ringecho::protocol::extension::{self, Agreement, Echo, Malformed, Negotiated};
use ringecho::protocol::pool::Budget;
use ringecho::protocol::{Admission, Policy, client, handshake};
use testkit::REQUEST;

use crate::setup::{policy, terms};

/// The longest input in bytes.
const BYTES_MAX: usize = 512;
/// The most fields.
const VALUES_MAX: usize = 16;

pub(crate) fn run(data: &[u8]) -> Corpus {
    let [choice, lines @ ..] = data else { return Corpus::Reject };
    let (policy, choice) = policy(*choice);
    let mut buffer = [0; BYTES_MAX];
    let lines = printable(lines, &mut buffer);
    let mut values: [&[u8]; VALUES_MAX] = [b""; VALUES_MAX];
    let mut count = 0;
    for (line, value) in lines.split(|&byte| byte == b'\n').zip(&mut values) {
        *value = line.trim_ascii();
        count += 1;
    }
    let values = &values[..count];
    let negotiated = extension::negotiate(values.iter().copied(), policy, |_| true);
    match first_acceptable(values, policy) {
        Err(Wrong) => assert_eq!(negotiated, Err(Malformed)),
        Ok(first) => check(first, negotiated.expect("the grammar is kept")),
    }
    match choice % 32 {
        0 => check_handshake(values, policy, negotiated),
        1 => check_values(values, policy, negotiated),
        _ => {}
    }
    Corpus::Keep
}

/// Copies `lines`, with spaces for what cannot be in the value of a field (RFC 9110 section 5.5).
fn printable<'b>(lines: &[u8], buffer: &'b mut [u8; BYTES_MAX]) -> &'b [u8] {
    let count = lines.len().min(BYTES_MAX);
    for (copy, &byte) in buffer.iter_mut().zip(lines) {
        let is_of_value = matches!(byte, b'\t' | b'\n' | b' '..=b'~' | 0x80..);
        *copy = if is_of_value { byte } else { b' ' };
    }
    &buffer[..count]
}

/// A value that breaks the grammar.
struct Wrong;

/// What a value consists of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Symbol<'b> {
    Comma,
    Semicolon,
    Equals,
    Word(&'b [u8]),
    /// What is between the quotes, as it is.
    Quoted(&'b [u8]),
    End,
}

/// A value, of which the first symbol that is not taken is known.
struct Reader<'b> {
    rest: &'b [u8],
    next: Symbol<'b>,
}

impl<'b> Reader<'b> {
    fn new(value: &'b [u8]) -> Result<Reader<'b>, Wrong> {
        let mut reader = Reader { rest: value, next: Symbol::End };
        reader.take()?;
        Ok(reader)
    }

    fn take(&mut self) -> Result<Symbol<'b>, Wrong> {
        let blanks = self.rest.iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
        let rest = &self.rest[blanks..];
        let (symbol, length) = match rest {
            [] => (Symbol::End, 0),
            [b',', ..] => (Symbol::Comma, 1),
            [b';', ..] => (Symbol::Semicolon, 1),
            [b'=', ..] => (Symbol::Equals, 1),
            [b'"', quoted @ ..] => {
                let length = end_of_quoted(quoted).ok_or(Wrong)?;
                // Section 9.1: what is quoted is a token, too.
                if length == 0 || !unquoted(&quoted[..length]).all(is_of_token) {
                    return Err(Wrong);
                }
                (Symbol::Quoted(&quoted[..length]), length + 2)
            }
            _ => {
                let length = rest.iter().take_while(|&&byte| is_of_token(byte)).count();
                if length == 0 {
                    return Err(Wrong);
                }
                (Symbol::Word(&rest[..length]), length)
            }
        };
        self.rest = &rest[length..];
        Ok(std::mem::replace(&mut self.next, symbol))
    }

    /// The offer in the element that begins with `name`, if it makes one.
    fn element(&mut self, name: &[u8]) -> Result<Option<Offer>, Wrong> {
        let mut offer = (name == b"permessage-deflate").then(Offer::default);
        while self.next == Symbol::Semicolon {
            self.take()?;
            let Symbol::Word(name) = self.take()? else { return Err(Wrong) };
            let mut value = None;
            if self.next == Symbol::Equals {
                self.take()?;
                let (Symbol::Word(text) | Symbol::Quoted(text)) = self.take()? else {
                    return Err(Wrong);
                };
                value = Some(text);
            }
            offer = offer.and_then(|offer| offer.with(name, value));
        }
        match self.next {
            Symbol::Comma | Symbol::End => Ok(offer),
            Symbol::Semicolon | Symbol::Equals | Symbol::Word(_) | Symbol::Quoted(_) => Err(Wrong),
        }
    }
}

fn is_of_token(byte: u8) -> bool {
    byte.is_ascii_graphic() && !b"\"(),/:;<=>?@[\\]{}".contains(&byte)
}

/// Bytes before the quote that ends `text`.
fn end_of_quoted(text: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        match *text.get(at)? {
            b'"' => return Some(at),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

/// What `text` stands for: a backslash lets the next byte stand for itself.
fn unquoted(text: &[u8]) -> impl Iterator<Item = u8> {
    let mut bytes = text.iter().copied();
    std::iter::from_fn(move || match bytes.next()? {
        b'\\' => bytes.next(),
        byte => Some(byte),
    })
}

/// The first offer in all `values` that the server can keep to.
fn first_acceptable(values: &[&[u8]], policy: Policy) -> Result<Option<Offer>, Wrong> {
    let mut first = None;
    for value in values {
        let mut reader = Reader::new(value)?;
        loop {
            match reader.take()? {
                Symbol::End => break,
                Symbol::Comma => {}
                Symbol::Word(name) => {
                    let offer = reader.element(name)?;
                    first = first.or(offer.filter(|offer| offer.is_acceptable(policy)));
                }
                Symbol::Semicolon | Symbol::Equals | Symbol::Quoted(_) => return Err(Wrong),
            }
        }
    }
    Ok(first)
}

/// An offer of permessage-deflate.
#[derive(Debug, Clone, Copy, Default)]
struct Offer {
    server_no_context_takeover: bool,
    client_no_context_takeover: bool,
    server_bits: Option<u8>,
    /// With a value or without.
    client_bits: Option<Option<u8>>,
}

impl Offer {
    /// With one more parameter, if that is valid and new.
    fn with(mut self, name: &[u8], value: Option<&[u8]>) -> Option<Offer> {
        let is_new = match (name, value) {
            (b"server_no_context_takeover", None) => {
                !std::mem::replace(&mut self.server_no_context_takeover, true)
            }
            (b"client_no_context_takeover", None) => {
                !std::mem::replace(&mut self.client_no_context_takeover, true)
            }
            (b"server_max_window_bits", Some(value)) => {
                self.server_bits.replace(bits(value)?).is_none()
            }
            (b"client_max_window_bits", None) => self.client_bits.replace(None).is_none(),
            (b"client_max_window_bits", Some(value)) => {
                self.client_bits.replace(Some(bits(value)?)).is_none()
            }
            _ => return None,
        };
        is_new.then_some(self)
    }

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

/// A decimal number from 8 to 15 without leading zeros.
fn bits(text: &[u8]) -> Option<u8> {
    let mut number = 0;
    for byte in unquoted(text) {
        let digit = (byte as char).to_digit(10)?;
        // None that begins so is in the range.
        if number == 0 && digit == 0 || number > 15 {
            return None;
        }
        number = 10 * number + digit;
    }
    u8::try_from(number).ok().filter(|bits| (8..=15).contains(bits))
}

/// The first acceptable offer is agreed to.
fn check(first: Option<Offer>, negotiated: Negotiated) {
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
