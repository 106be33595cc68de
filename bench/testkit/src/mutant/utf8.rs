//! What is valid text (RFC 3629), decided at the first byte that cannot be right.

use std::ops::RangeInclusive;

use super::{Behavior, Fault};

/// Text that is not UTF-8, whatever follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Invalid;

/// How many bytes of `text` are whole characters; the rest is the beginning of one.
pub(super) fn whole(text: &[u8], behavior: &Behavior) -> Result<usize, Invalid> {
    const ANY: RangeInclusive<u8> = 0x80..=0xBF;
    let is_overlong = behavior.has(Fault::Utf8Overlong);
    let takes_surrogates = behavior.has(Fault::Utf8Surrogates);
    let goes_beyond = behavior.has(Fault::Utf8Beyond);
    let mut at = 0;
    while let Some(&first) = text.get(at) {
        let length = match first {
            0..0x80 => 1,
            0xC0 | 0xC1 if is_overlong => 2,
            0xC2..0xE0 => 2,
            0xE0..0xF0 => 3,
            0xF0..0xF5 => 4,
            0xF5..0xF8 if goes_beyond => 4,
            _ => return Err(Invalid),
        };
        let second = match first {
            0xE0 if !is_overlong => 0xA0..=0xBF,
            0xED if !takes_surrogates => 0x80..=0x9F,
            0xF0 if !is_overlong => 0x90..=0xBF,
            0xF4 if !goes_beyond => 0x80..=0x8F,
            _ => ANY,
        };
        for place in 1..length {
            let allowed = if place == 1 { &second } else { &ANY };
            match text.get(at + place) {
                None => return Ok(at),
                Some(byte) if allowed.contains(byte) => {}
                Some(_) => return Err(Invalid),
            }
        }
        if behavior.has(Fault::Utf8NoncharactersRefused) && is_noncharacter(&text[at..at + length])
        {
            return Err(Invalid);
        }
        at += length;
    }
    Ok(at)
}

/// Whether text is valid as a whole.
pub(super) fn is_valid(text: &[u8], behavior: &Behavior) -> bool {
    let whole = whole(text, behavior);
    whole.is_ok_and(|whole| whole == text.len() || behavior.has(Fault::Utf8Unfinished))
}

/// Whether a valid character is U+FFFE, U+FFFF, or one of these in another plane.
fn is_noncharacter(character: &[u8]) -> bool {
    match character {
        [.., before, 0xBE | 0xBF] if before & 0x3F == 0x3F => match character {
            [0xEF, _, _] => true,
            [_, second, _, _] => second & 0x0F == 0x0F,
            _ => false,
        },
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::Behavior;
    use super::{Invalid, is_noncharacter, is_valid, whole};
    use crate::random::cases;

    #[test]
    fn text_is_judged_as_by_the_standard_library() {
        let right = Behavior::with(&[]);
        let bytes = [
            0x00, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xC1, 0xC2, 0xDF, 0xE0, 0xE1,
            0xED, 0xEF, 0xF0, 0xF1, 0xF4, 0xF5, 0xF8, 0xFE, 0xFF,
        ];
        for mut case in cases("text_is_judged_as_by_the_standard_library", 20_000) {
            let random = &mut case.random;
            let length = random.below(7);
            let text: Vec<u8> = (0..length).map(|_| random.pick(&bytes)).collect();
            let expected = match str::from_utf8(&text) {
                Ok(_) => Ok(text.len()),
                Err(error) if error.error_len().is_none() => Ok(error.valid_up_to()),
                Err(_) => Err(Invalid),
            };
            assert_eq!(whole(&text, &right), expected, "{text:x?}");
            assert_eq!(is_valid(&text, &right), str::from_utf8(&text).is_ok(), "{text:x?}");
        }
    }

    #[test]
    fn noncharacters_are_the_last_two_of_each_plane() {
        for character in '\u{80}'..=char::MAX {
            let mut bytes = [0; 4];
            let bytes = character.encode_utf8(&mut bytes).as_bytes();
            let expected = u32::from(character) & 0xFFFE == 0xFFFE;
            assert_eq!(is_noncharacter(bytes), expected, "{character:?}");
        }
    }
}
