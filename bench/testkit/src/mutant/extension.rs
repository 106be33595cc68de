//! permessage-deflate (RFC 7692): what is offered and answered, and how messages are compressed by it.

use super::connection::Broken;
use super::{Behavior, Fault, Role};
use crate::deflate::{Compressor, Reference};
use crate::inflate::{Inflater, TAIL};

const NAME: &str = "permessage-deflate";
/// The window without a parameter, in bits (section 7.1.2).
const BITS_MAX: u32 = 15;
/// The same in bytes: no message refers further back.
const WINDOW_MAX: usize = 1 << BITS_MAX;
/// What the client offers: the server may limit everything.
pub(super) const OFFER: &str =
    "permessage-deflate; client_no_context_takeover; client_max_window_bits";
/// The reach of [`Fault::DeflateShortWindow`], in bytes.
const SHORT_WINDOW: usize = 256;
/// A compressor may forget at any time; it does when it remembers so many bytes.
const MEMORY_MAX: usize = 16 << 20;

/// The parameters of an offer or of an answer (section 7.1).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Parameters {
    server_no_context_takeover: bool,
    client_no_context_takeover: bool,
    server_max_window_bits: Option<u32>,
    /// Given without a value: `Some(None)`.
    client_max_window_bits: Option<Option<u32>>,
}

impl Parameters {
    /// Reads one element of Sec-WebSocket-Extensions; nothing if it is another extension, or invalid.
    fn read(element: &str, is_lenient: bool) -> Option<Parameters> {
        let mut parts = element.split(';').map(str::trim);
        if parts.next() != Some(NAME) {
            return None;
        }
        let mut parameters = Parameters::default();
        for part in parts {
            if parameters.add(part).is_none() && !is_lenient {
                return None;
            }
        }
        Some(parameters)
    }

    /// Adds a parameter; nothing if it is unknown, invalid, or there already.
    fn add(&mut self, part: &str) -> Option<()> {
        let (name, value) = match part.split_once('=') {
            Some((name, value)) => (name.trim_end(), Some(bits(value.trim_start())?)),
            None => (part, None),
        };
        match (name, value) {
            ("server_no_context_takeover", None) if !self.server_no_context_takeover => {
                self.server_no_context_takeover = true;
            }
            ("client_no_context_takeover", None) if !self.client_no_context_takeover => {
                self.client_no_context_takeover = true;
            }
            ("server_max_window_bits", Some(_)) if self.server_max_window_bits.is_none() => {
                self.server_max_window_bits = value;
            }
            ("client_max_window_bits", _) if self.client_max_window_bits.is_none() => {
                self.client_max_window_bits = Some(value);
            }
            _ => return None,
        }
        Some(())
    }

    /// The answer to an offer: everything that it asks of the server, and the window of the client that
    /// it names. The server does not need the client to forget its context.
    fn answer(&self, behavior: &Behavior) -> String {
        let mut answer = NAME.to_owned();
        if self.server_no_context_takeover {
            answer += "; server_no_context_takeover";
        }
        match self.server_max_window_bits {
            Some(bits) if !behavior.has(Fault::DeflateWindowUnanswered) => {
                answer += &format!("; server_max_window_bits={bits}");
            }
            Some(_) | None => {}
        }
        if let Some(Some(bits)) = self.client_max_window_bits {
            answer += &format!("; client_max_window_bits={bits}");
        }
        answer
    }
}

/// The number of bits of a window (section 7.1.2), which may be quoted (section 5.2).
fn bits(value: &str) -> Option<u32> {
    let value = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(value);
    let bits = value.parse().ok()?;
    ((8..=BITS_MAX).contains(&bits) && bits.to_string() == value).then_some(bits)
}

/// Whether this is a token (RFC 9110 section 5.6.2).
pub(super) fn is_token(text: &str) -> bool {
    let is_known = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(is_known)
}

/// Whether this is a list of extensions with their parameters (RFC 6455 section 9.1). What is quoted has
/// to be a token, too.
pub(super) fn is_list(text: &str) -> bool {
    let is_value = |value: &str| {
        let quoted = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
        is_token(quoted.unwrap_or(value))
    };
    let is_parameter = |part: &str| match part.split_once('=') {
        Some((name, value)) => is_token(name.trim_end()) && is_value(value.trim_start()),
        None => is_token(part),
    };
    let is_extension = |element: &str| {
        let mut parts = element.split(';').map(str::trim);
        parts.next().is_some_and(is_token) && parts.all(is_parameter)
    };
    text.split(',').map(str::trim).filter(|element| !element.is_empty()).all(is_extension)
}

/// A server accepts the first offer that is valid. Returns what it answers and what both keep to.
pub(super) fn accept(offers: &str, behavior: &Behavior) -> Option<(String, Parameters)> {
    if behavior.has(Fault::NoDeflate) {
        return None;
    }
    let is_lenient = behavior.has(Fault::DeflateAnyOffer);
    let considered = if behavior.has(Fault::DeflateFirstOffer) { 1 } else { usize::MAX };
    let offers = offers.split(',').map(str::trim).filter(|offer| !offer.is_empty());
    let parameters =
        offers.take(considered).find_map(|offer| Parameters::read(offer, is_lenient))?;
    Some((parameters.answer(behavior), parameters))
}

/// A client reads the answer to [`OFFER`]; nothing if it is invalid.
pub(super) fn accepted(answer: &str) -> Option<Parameters> {
    // A value is required in an answer (section 7.1.2.2).
    Parameters::read(answer.trim(), false).filter(|it| it.client_max_window_bits != Some(None))
}

/// Compresses and inflates the messages of a connection.
#[derive(Debug)]
pub(super) struct Codec {
    compressor: Compressor,
    /// How much the compressor remembers, in bytes.
    remembered: usize,
    forgets: bool,
    inflater: Inflater,
}

impl Codec {
    /// What was agreed, seen from this end.
    pub(super) fn new(parameters: &Parameters, role: Role, behavior: &Behavior) -> Codec {
        let (bits, no_takeover) = match role {
            Role::Server => {
                (parameters.server_max_window_bits, parameters.server_no_context_takeover)
            }
            Role::Client => {
                (parameters.client_max_window_bits.flatten(), parameters.client_no_context_takeover)
            }
        };
        let compressor = if behavior.has(Fault::DeflateWindowExceeded) {
            Compressor::referring(Reference::Farthest, WINDOW_MAX)
        } else {
            Compressor::new(1 << bits.unwrap_or(BITS_MAX))
        };
        Codec {
            compressor,
            remembered: 0,
            forgets: no_takeover && !behavior.has(Fault::DeflateContextKept),
            inflater: Inflater::default(),
        }
    }

    /// The payload of a message, compressed (section 7.2.1).
    pub(super) fn compress(&mut self, message: &[u8], behavior: &Behavior) -> Vec<u8> {
        let mut payload = self.compressor.message(message);
        self.remembered += message.len();
        if self.forgets || self.remembered > MEMORY_MAX {
            self.compressor.forget();
            self.remembered = 0;
        }
        if behavior.has(Fault::DeflateTailKept) {
            payload.extend(TAIL);
        }
        if behavior.has(Fault::DeflateTailCut) {
            payload.pop();
        }
        if message.is_empty() && behavior.has(Fault::DeflateEmptyMissing) {
            payload.clear();
        }
        payload
    }

    /// The message of a compressed payload (section 7.2.2).
    pub(super) fn inflate(
        &mut self,
        payload: &[u8],
        behavior: &Behavior,
    ) -> Result<Vec<u8>, Broken> {
        let has = |fault| behavior.has(fault);
        // RFC 1951 section 3.2.3: BFINAL, and then the type of the block.
        let first = payload.first().copied().unwrap_or_default();
        if first & 1 == 1 && has(Fault::DeflateFinalRefused)
            || first & 6 == 0 && payload.len() > 1 && has(Fault::DeflateStoredRefused)
        {
            return Err(Broken::Text);
        }
        let beginning = || self.inflater.beginning(payload);
        let beginning = has(Fault::DeflateErrorsIgnored).then(beginning);
        let message = match (self.inflater.message(payload), beginning) {
            (Ok(message), _) => message,
            (Err(_), Some(beginning)) => beginning,
            (Err(_), None) => return Err(Broken::Text),
        };
        if message.is_empty() && has(Fault::DeflateEmptyRefused) {
            return Err(Broken::Text);
        }
        self.inflater.keep_last(WINDOW_MAX);
        if message.len() > behavior.message_bytes_max && !behavior.has(Fault::DeflateUnlimited) {
            return Err(Broken::Size);
        }
        let is_short = behavior.has(Fault::DeflateShortWindow);
        if is_short && self.inflater.greatest_distance() > SHORT_WINDOW {
            return Err(Broken::Text);
        }
        if behavior.has(Fault::DeflateContextLost) {
            self.inflater = Inflater::default();
        }
        Ok(message)
    }
}

#[cfg(test)]
mod tests {
    use super::{OFFER, accept, accepted};
    use crate::mutant::{Behavior, Fault};

    #[test]
    fn the_first_valid_offer_is_answered() {
        let right = Behavior::with(&[]);
        let answer = |offer: &str| accept(offer, &right).map(|(answer, _)| answer);
        for (offer, expected) in [
            ("permessage-deflate", Some("permessage-deflate")),
            (OFFER, Some("permessage-deflate")),
            (
                "x, permessage-deflate;server_no_context_takeover; server_max_window_bits=\"9\"",
                Some("permessage-deflate; server_no_context_takeover; server_max_window_bits=9"),
            ),
            (
                "permessage-deflate; server_max_window_bits=7, \
                 permessage-deflate; client_max_window_bits=8",
                Some("permessage-deflate; client_max_window_bits=8"),
            ),
            ("permessage-deflate; server_max_window_bits", None),
            ("permessage-deflate; server_max_window_bits=16", None),
            ("permessage-deflate; server_max_window_bits=09", None),
            ("permessage-deflate; server_no_context_takeover=1", None),
            ("permessage-deflate; server_max_window_bits=9; server_max_window_bits=9", None),
            ("permessage-deflate; level=9", None),
            ("permessage-bzip2", None),
        ] {
            assert_eq!(answer(offer).as_deref(), expected, "{offer}");
        }
        let lenient = Behavior::with(&[Fault::DeflateAnyOffer]);
        assert!(accept("permessage-deflate; level=9", &lenient).is_some());
        assert!(accepted("permessage-deflate; client_max_window_bits=9").is_some());
        assert!(accepted("permessage-deflate; client_max_window_bits").is_none());
    }
}
