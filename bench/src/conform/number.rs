//! Numbers of cases, and the patterns that select them.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

/// The number of a case: section, group and case, such as 9.7.2, or section and case, such as 2.10.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Number([u16; 3]);

impl Number {
    /// The number `section.case`.
    pub const fn pair(section: u16, case: u16) -> Number {
        Number([section, case, 0])
    }

    /// The number `section.group.case`.
    pub const fn triple(section: u16, group: u16, case: u16) -> Number {
        Number([section, group, case])
    }

    /// The section.
    pub fn section(self) -> u16 {
        self.0[0]
    }

    /// The parts that it is written with. No part is 0.
    fn parts(&self) -> &[u16] {
        let length = self.0.iter().take_while(|part| **part > 0).count();
        &self.0[..length]
    }
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<String> = self.parts().iter().map(u16::to_string).collect();
        f.pad(&parts.join("."))
    }
}

impl FromStr for Number {
    type Err = String;

    fn from_str(text: &str) -> Result<Number, String> {
        let wrong = || format!("{text:?} is no number of a case; write one such as 9.7.2");
        let mut number = [0; 3];
        for (at, part) in text.split('.').enumerate() {
            let value = part.parse().ok().filter(|value| *value > 0).ok_or_else(wrong)?;
            *number.get_mut(at).ok_or_else(wrong)? = value;
        }
        if number[1] == 0 { Err(wrong()) } else { Ok(Number(number)) }
    }
}

impl Serialize for Number {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Cases by number, where `*` stands for any part: `7.*`, `12.*.3`, `9.7.2`. What is left out at the
/// end may be anything too: `7` and `7.*` are the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(Vec<Option<u16>>);

impl Pattern {
    /// Whether the case of this number is one of them.
    pub fn matches(&self, number: Number) -> bool {
        let parts = number.parts();
        let given = self.0.iter().enumerate();
        self.0.len() <= parts.len()
            && given.into_iter().all(|(at, part)| part.is_none_or(|part| part == parts[at]))
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = |part: &Option<u16>| part.map_or("*".to_owned(), |part| part.to_string());
        let parts: Vec<String> = self.0.iter().map(part).collect();
        f.write_str(if parts.is_empty() { "*" } else { "" })?;
        f.write_str(&parts.join("."))
    }
}

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Pattern, String> {
        let wrong =
            || format!("{text:?} names no cases; write 9.7.2, 7.* or several, as in 7.*,9.1.3");
        let part = |part: &str| match part {
            "*" => Ok(None),
            _ => part.parse().map(Some).map_err(|_| wrong()),
        };
        let mut parts = text.split('.').map(part).collect::<Result<Vec<_>, _>>()?;
        if parts.len() > 3 {
            return Err(wrong());
        }
        // A star at the end may also stand for nothing, so that 2.10 is one of 2.10.*.
        while parts.last() == Some(&None) {
            parts.pop();
        }
        Ok(Pattern(parts))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_they_are_read_and_sorted_by_value() {
        let texts = ["1.1.1", "2.2", "2.10", "9.7.2", "10.1.1"];
        let numbers: Vec<Number> = texts.iter().map(|text| text.parse().expect(text)).collect();
        assert!(numbers.is_sorted());
        let written: Vec<String> = numbers.iter().map(Number::to_string).collect();
        assert_eq!(written, texts);
        for text in ["", "1", "1.", "1.0", "0.1", "1.1.1.1", "a.b", "1.*", "1.-1", "1.65536"] {
            text.parse::<Number>().expect_err(text);
        }
    }

    #[test]
    fn patterns_match_whole_parts() {
        for (pattern, number, is_one) in [
            ("9.7.2", "9.7.2", true),
            ("9.7.2", "9.7.20", false),
            ("9.7", "9.7.2", true),
            ("9.7.*", "9.7.2", true),
            ("9.*", "9.7.2", true),
            ("9.*.2", "9.7.2", true),
            ("9.*.2", "9.7.3", false),
            ("1", "10.1.1", false),
            ("1.*", "10.1.1", false),
            ("2.1", "2.10", false),
            ("2.10.*", "2.10", true),
            ("*.10", "2.10", true),
            ("*", "2.10", true),
            ("2.10.1", "2.10", false),
        ] {
            let parsed: Pattern = pattern.parse().expect(pattern);
            assert_eq!(parsed.matches(number.parse().expect(number)), is_one, "{pattern} {number}");
        }
        for pattern in ["", ".", "1.", "1.2.3.4", "a", "7.*,9.1"] {
            pattern.parse::<Pattern>().expect_err(pattern);
        }
    }
}
