//! UTF-8 that arrives in pieces, checked up to the last byte received.
//!
//! At most three bytes are carried from one piece to the next: the valid beginning of a character. A byte
//! that no continuation could make valid is found at once, before its message or even its frame is whole.

use simdutf8::compat;

/// Text is not UTF-8 (RFC 6455 section 8.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotUtf8;

/// The beginning of a character, carried from one piece of a message to the next.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Utf8 {
    carried: [u8; 3],
    length: u8,
}

impl Utf8 {
    /// Whether the text so far ends with a whole character.
    #[inline]
    pub fn is_complete(&self) -> bool {
        self.length == 0
    }

    /// Checks the next piece of the text.
    pub fn check(&mut self, mut piece: &[u8]) -> Result<(), NotUtf8> {
        while !self.is_complete() {
            let Some((&next, rest)) = piece.split_first() else { return Ok(()) };
            piece = rest;
            self.push(next)?;
        }
        match compat::from_utf8(piece) {
            Ok(_) => Ok(()),
            Err(error) if error.error_len().is_some() => Err(NotUtf8),
            Err(error) => {
                self.carry(&piece[error.valid_up_to()..]);
                Ok(())
            }
        }
    }

    /// Adds one byte to the carried ones.
    fn push(&mut self, byte: u8) -> Result<(), NotUtf8> {
        let mut character = [0; 4];
        let length = usize::from(self.length);
        character[..length].copy_from_slice(&self.carried[..length]);
        character[length] = byte;
        match std::str::from_utf8(&character[..=length]) {
            Ok(_) => {
                self.length = 0;
                Ok(())
            }
            Err(error) if error.error_len().is_some() => Err(NotUtf8),
            Err(_) => {
                self.carry(&character[..=length]);
                Ok(())
            }
        }
    }

    fn carry(&mut self, beginning: &[u8]) {
        self.carried[..beginning.len()].copy_from_slice(beginning);
        self.length = beginning.len() as u8;
    }
}

/// Whether `text` is valid UTF-8 and ends with a whole character.
pub fn is_valid(text: &[u8]) -> bool {
    simdutf8::basic::from_utf8(text).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The position of the byte at which a check byte by byte fails.
    fn fails_at(text: &[u8]) -> Option<usize> {
        let mut utf8 = Utf8::default();
        text.iter().position(|byte| utf8.check(std::slice::from_ref(byte)).is_err())
    }

    #[test]
    fn fails_at_the_first_byte_that_nothing_could_make_valid() {
        assert_eq!(fails_at("κόσμε".as_bytes()), None);
        assert_eq!(fails_at(b"ab\x80"), Some(2));
        assert_eq!(fails_at(b"\xc0"), Some(0));
        assert_eq!(fails_at(b"\xe0\x80\x80"), Some(1));
        assert_eq!(fails_at(b"\xed\xa0\x80"), Some(1));
        assert_eq!(fails_at(b"\xf4\x8f\xbf\xbf"), None);
        assert_eq!(fails_at(b"\xf4\x90\x80\x80"), Some(1));
        assert_eq!(fails_at(b"\xf5"), Some(0));
        assert_eq!(fails_at(b"\xe2\x82a"), Some(2));
    }

    #[test]
    fn every_split_of_every_length_of_character() {
        let text = "aß水🦀-é𝄞z".as_bytes();
        for first in 0..=text.len() {
            for second in first..=text.len() {
                let mut utf8 = Utf8::default();
                for piece in [&text[..first], &text[first..second], &text[second..]] {
                    utf8.check(piece).expect("valid");
                }
                assert!(utf8.is_complete());
            }
        }
    }

    #[test]
    fn a_text_that_stops_within_a_character_is_not_complete() {
        let mut utf8 = Utf8::default();
        utf8.check(b"ok \xf0\x9f\xa6").expect("valid so far");
        assert!(!utf8.is_complete());
        assert_eq!(utf8.check(b"x"), Err(NotUtf8));
    }
}
