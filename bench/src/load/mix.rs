//! Which messages a load sends: kinds with their weights, and how the command line writes them.
//!
//! What a message contains is not decided here but in `payloads.rs`.

use std::fmt;
use std::str::FromStr;

use crate::session::Form;

/// The largest message in bytes, which ringecho and most servers accept by default.
pub const SIZE_MAX: usize = 64 << 20;
/// The largest weight.
const WEIGHT_MAX: u64 = 1_000_000;

/// A kind of message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// Bytes of payload.
    pub size: usize,
    /// Text or binary.
    pub form: Form,
    /// How many frames carry it, at least 1.
    pub fragments: usize,
    /// How often it is sent, relative to the others.
    pub weight: u64,
}

/// Kinds of messages, one of which is drawn for each message.
///
/// Written as `SIZE[:text|:binary][:fragments=N][*WEIGHT]`, several separated by commas. The form
/// defaults to text, the weight to 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mix {
    /// At least one.
    kinds: Vec<Kind>,
    weights: u64,
}

impl Mix {
    /// A mix of these kinds.
    ///
    /// # Errors
    ///
    /// A sentence, when there is none or one exceeds a limit.
    pub fn new(kinds: Vec<Kind>) -> Result<Mix, String> {
        if kinds.is_empty() {
            return Err("a mix has at least one kind of message; write 16:text".to_owned());
        }
        for kind in &kinds {
            if kind.size > SIZE_MAX {
                return Err(format!("{kind}: a message has at most {SIZE_MAX} bytes"));
            }
            if kind.fragments == 0 || kind.fragments > kind.size.max(1) {
                return Err(format!(
                    "{kind}: a message has at least 1 fragment and no more than it has bytes"
                ));
            }
            if kind.weight == 0 || kind.weight > WEIGHT_MAX {
                return Err(format!("{kind}: a weight is from 1 to {WEIGHT_MAX}"));
            }
        }
        let weights = kinds.iter().map(|kind| kind.weight).sum();
        Ok(Mix { kinds, weights })
    }

    /// The kinds it consists of.
    pub fn kinds(&self) -> &[Kind] {
        &self.kinds
    }

    /// The kind that any number `drawn` stands for: each kind for a share of them by its weight.
    #[inline]
    pub(super) fn kind(&self, drawn: u64) -> &Kind {
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
                "{text:?}: {what}; write a size in bytes and what else it needs, like 16, 16:text, \
                 1024:binary:fragments=4, or 16*90,4096:binary*10 for nine small messages in ten"
            )
        };
        let (message, weight) = match text.split_once('*') {
            Some((message, weight)) => {
                (message, weight.parse().map_err(|_| wrong("the weight is not a number"))?)
            }
            None => (text, 1),
        };
        let mut parts = message.split(':');
        let size = parts.next().unwrap_or_default();
        let size = size.trim().parse().map_err(|_| wrong("the size is not a number"))?;
        let mut kind = Kind { size, form: Form::Text, fragments: 1, weight };
        for part in parts {
            match part.split_once('=') {
                None if part == "text" => kind.form = Form::Text,
                None if part == "binary" => kind.form = Form::Binary,
                Some(("fragments", count)) => {
                    let count = count.parse();
                    kind.fragments =
                        count.map_err(|_| wrong("the number of fragments is not a number"))?;
                }
                None | Some(_) => return Err(wrong(&format!("{part:?} is not known"))),
            }
        }
        Ok(kind)
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
    fn a_mix_that_cannot_be_read_is_refused_with_examples() {
        for (text, complaint) in [
            ("", "the size is not a number"),
            ("16,", "the size is not a number"),
            ("text", "the size is not a number"),
            ("16:words", "\"words\" is not known"),
            ("16:fragments=x", "the number of fragments is not a number"),
            ("16*many", "the weight is not a number"),
        ] {
            let error = text.parse::<Mix>().expect_err(text);
            assert!(error.contains(complaint) && error.contains("like 16, 16:text"), "{error}");
        }
        for (text, complaint) in [
            ("16:fragments=0", "at least 1 fragment"),
            ("16:fragments=17", "no more than it has bytes"),
            ("16*0", "from 1 to"),
            ("67108865", "at most 67108864 bytes"),
        ] {
            let error = text.parse::<Mix>().expect_err(text);
            assert!(error.contains(complaint), "{error}");
        }
    }
}
