//! Which messages are sent: kinds with their weights, as they stand on a command line, and the
//! payloads that are made of them.
//!
//! What message `number` of a connection is follows from the seed, the connection and the number
//! alone. So nothing has to be kept of a message that is under way, however many are.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::random::Random;
use crate::records::Records;
use crate::session::Form;

/// Octets of a message, at most: what ringecho and most servers accept without being told to.
pub const SIZE_MAX: usize = 64 << 20;
/// A weight, at most.
const WEIGHT_MAX: u64 = 1_000_000;
/// Places in the pool at which a payload may begin.
const OFFSETS: usize = 4096;
/// The same where messages are compressed: so many that hardly one is found in the window of 32 KiB
/// that compression looks back on.
const OFFSETS_COMPRESSED: usize = 8 << 20;
/// Octets at the front of a payload that tell it from others, at most.
const STAMP: usize = 16;

/// A kind of message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// Octets of payload.
    pub size: usize,
    /// Text or binary.
    pub form: Form,
    /// Frames that it is sent in, at least 1.
    pub fragments: usize,
    /// How often it is sent, in relation to the others.
    pub weight: u64,
}

/// Kinds of messages, of which one is drawn for each message.
///
/// As text: `SIZE[:text|:binary][:fragments=N][*WEIGHT]`, several with commas between. Without a form
/// it is text, without a weight 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mix {
    /// At least one.
    kinds: Vec<Kind>,
    weights: u64,
}

impl Mix {
    /// A mix of these.
    ///
    /// # Errors
    ///
    /// When there is none, or one is beyond a limit.
    pub fn new(kinds: Vec<Kind>) -> Result<Mix, String> {
        if kinds.is_empty() {
            return Err("a mix has at least one kind of message; write 16:text".to_owned());
        }
        for kind in &kinds {
            if kind.size > SIZE_MAX {
                return Err(format!("{kind}: a message has at most {SIZE_MAX} octets"));
            }
            if kind.fragments == 0 || kind.fragments > kind.size.max(1) {
                return Err(format!(
                    "{kind}: the fragments are at least 1 and not more than the octets"
                ));
            }
            if kind.weight == 0 || kind.weight > WEIGHT_MAX {
                return Err(format!("{kind}: a weight is from 1 to {WEIGHT_MAX}"));
            }
        }
        let weights = kinds.iter().map(|kind| kind.weight).sum();
        Ok(Mix { kinds, weights })
    }

    /// What it consists of.
    pub fn kinds(&self) -> &[Kind] {
        &self.kinds
    }

    /// The kind whose share of all weights has `drawn`, any number.
    #[inline]
    fn kind(&self, drawn: u64) -> &Kind {
        let mut left = drawn % self.weights;
        for kind in &self.kinds {
            match left.checked_sub(kind.weight) {
                Some(rest) => left = rest,
                None => return kind,
            }
        }
        unreachable!("what is left is less than the sum of the weights")
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Kind { size, form, fragments, weight } = self;
        let form = match form {
            Form::Text => "text",
            Form::Binary => "binary",
        };
        write!(f, "{size}:{form}")?;
        if *fragments != 1 {
            write!(f, ":fragments={fragments}")?;
        }
        if *weight != 1 {
            write!(f, "*{weight}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Mix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, kind) in self.kinds.iter().enumerate() {
            write!(f, "{}{kind}", if at == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl FromStr for Mix {
    type Err = String;

    fn from_str(text: &str) -> Result<Mix, String> {
        Mix::new(text.split(',').map(str::parse).collect::<Result<_, _>>()?)
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Kind, String> {
        let wrong = |what: &str| {
            format!(
                "{text:?}: {what}; write a size in octets and what else it needs, like 16, 16:text, \
                 1024:binary:fragments=4, or 16*90,4096:binary*10 for nine small ones of ten"
            )
        };
        let (message, weight) = match text.split_once('*') {
            Some((message, weight)) => {
                (message, weight.parse().map_err(|_| wrong("the weight is no number"))?)
            }
            None => (text, 1),
        };
        let mut parts = message.split(':');
        let size = parts.next().unwrap_or_default();
        let size = size.trim().parse().map_err(|_| wrong("the size is no number"))?;
        let mut kind = Kind { size, form: Form::Text, fragments: 1, weight };
        for part in parts {
            match part.split_once('=') {
                None if part == "text" => kind.form = Form::Text,
                None if part == "binary" => kind.form = Form::Binary,
                Some(("fragments", count)) => {
                    let count = count.parse();
                    kind.fragments = count.map_err(|_| wrong("the fragments are no number"))?;
                }
                None | Some(_) => return Err(wrong(&format!("{part:?} is unknown"))),
            }
        }
        Ok(kind)
    }
}

/// Makes payloads from octets drawn beforehand, so that one costs no more than a copy. Copies of this
/// share them.
#[derive(Debug, Clone)]
pub(super) struct Payloads {
    mix: Mix,
    seed: u64,
    offsets: usize,
    text: Arc<[u8]>,
    binary: Arc<[u8]>,
    /// The last payload.
    payload: Vec<u8>,
}

impl Payloads {
    /// Text is of 64 letters, digits and marks, all equally often; or, if it `is_compressed`, JSON.
    pub(super) fn new(mix: &Mix, seed: u64, is_compressed: bool) -> Payloads {
        let mut random = Random::new(seed);
        let offsets = if is_compressed { OFFSETS_COMPRESSED } else { OFFSETS };
        let length = |form| {
            let sizes = mix.kinds.iter().filter(|kind| kind.form == form).map(|kind| kind.size);
            sizes.max().map_or(0, |size| size + offsets)
        };
        let text = match length(Form::Text) {
            0 => Arc::default(),
            length if is_compressed => Records::new(seed).message(length).into_bytes().into(),
            length => (0..length).map(|_| b'0' + random.below(64) as u8).collect(),
        };
        let binary = (0..length(Form::Binary)).map(|_| random.number() as u8).collect();
        Payloads { mix: mix.clone(), seed, offsets, text, binary, payload: Vec::new() }
    }

    /// What kind message `number` of a connection is.
    #[inline]
    pub(super) fn kind(&self, connection: usize, number: u64) -> Kind {
        match &self.mix.kinds[..] {
            [only] => *only,
            _ => *self.mix.kind(self.draw(connection, number)),
        }
    }

    #[inline]
    fn draw(&self, connection: usize, number: u64) -> u64 {
        Random::new(self.seed ^ (connection as u64).rotate_left(40) ^ number).number()
    }

    /// The payload of message `number` of a connection, which is of this kind.
    #[inline]
    pub(super) fn payload(&mut self, kind: &Kind, connection: usize, number: u64) -> &[u8] {
        let drawn = self.draw(connection, number);
        let pool = match kind.form {
            Form::Text => &self.text,
            Form::Binary => &self.binary,
        };
        // The choice of the kind took the low bits.
        let offset = (drawn >> 32) as usize % self.offsets;
        self.payload.clear();
        self.payload.extend_from_slice(&pool[offset..offset + kind.size]);
        // What changes from one message to the next comes first, for it has to fit in short ones.
        let mut stamp = number.wrapping_add((connection as u64).rotate_left(40));
        for octet in self.payload.iter_mut().take(STAMP) {
            *octet = match kind.form {
                Form::Text => b"0123456789abcdef"[(stamp & 15) as usize],
                Form::Binary => stamp as u8,
            };
            stamp >>= if kind.form == Form::Text { 4 } else { 8 };
        }
        &self.payload
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_forms_of_a_mix() {
        let kind = |size, form, fragments, weight| Kind { size, form, fragments, weight };
        for (text, kinds, canonical) in [
            ("16", vec![kind(16, Form::Text, 1, 1)], "16:text"),
            ("0:binary", vec![kind(0, Form::Binary, 1, 1)], "0:binary"),
            (
                "1024:binary:fragments=4",
                vec![kind(1024, Form::Binary, 4, 1)],
                "1024:binary:fragments=4",
            ),
            (
                "16*90,4096:binary*10",
                vec![kind(16, Form::Text, 1, 90), kind(4096, Form::Binary, 1, 10)],
                "16:text*90,4096:binary*10",
            ),
        ] {
            let mix: Mix = text.parse().expect(text);
            assert_eq!(mix.kinds(), kinds, "{text}");
            assert_eq!(mix.to_string(), canonical);
            assert_eq!(canonical.parse::<Mix>().expect("the same"), mix);
        }
    }

    #[test]
    fn what_is_no_mix_is_told_what_to_write() {
        for (text, complaint) in [
            ("", "the size is no number"),
            ("16,", "the size is no number"),
            ("text", "the size is no number"),
            ("16:words", "\"words\" is unknown"),
            ("16:fragments=x", "the fragments are no number"),
            ("16*many", "the weight is no number"),
        ] {
            let error = text.parse::<Mix>().expect_err(text);
            assert!(error.contains(complaint) && error.contains("like 16, 16:text"), "{error}");
        }
        for (text, complaint) in [
            ("16:fragments=0", "at least 1"),
            ("16:fragments=17", "not more than the octets"),
            ("16*0", "from 1 to"),
            ("67108865", "at most 67108864 octets"),
        ] {
            let error = text.parse::<Mix>().expect_err(text);
            assert!(error.contains(complaint), "{error}");
        }
    }

    #[test]
    fn kinds_are_drawn_by_their_weights() {
        let mix: Mix = "16*90,4096:binary*10".parse().expect("a mix");
        let payloads = Payloads::new(&mix, 1, false);
        let large = (0..10_000).filter(|&number| payloads.kind(3, number).size == 4096).count();
        assert!((850..1150).contains(&large), "{large} of 10000");
    }

    #[test]
    fn payloads_are_text_where_they_have_to_be_and_differ_from_message_to_message() {
        let mix: Mix = "16,40:binary".parse().expect("a mix");
        let mut payloads = Payloads::new(&mix, 1, false);
        let [text, binary] = [mix.kinds()[0], mix.kinds()[1]];
        let mut seen = std::collections::HashSet::new();
        for connection in 0..10 {
            for number in 0..100 {
                let payload = payloads.payload(&text, connection, number).to_vec();
                assert!(payload.len() == 16 && payload.is_ascii());
                assert_eq!(payloads.payload(&text, connection, number), payload);
                assert!(seen.insert(payload));
                assert!(seen.insert(payloads.payload(&binary, connection, number).to_vec()));
            }
        }
    }
}
