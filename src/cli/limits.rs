//! Options that set a limit, which 0 switches off.

use std::fmt::Display;
use std::str::FromStr;
use std::time::Duration;

use super::size;

/// The longest time, in seconds: a week.
const SECONDS_MAX: u64 = 7 * 24 * 60 * 60;

/// A limit; `None` if it is switched off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit<T>(pub Option<T>);

/// A number from 1 to `most`, or 0.
fn number<T: FromStr + Display + PartialOrd + From<u8>>(
    text: &str,
    most: T,
) -> Result<Limit<T>, String> {
    match text.parse::<T>() {
        Ok(number) if number == T::from(0u8) => Ok(Limit(None)),
        Ok(number) if number > T::from(0u8) && number <= most => Ok(Limit(Some(number))),
        Ok(_) | Err(_) => Err(format!("write a whole number up to {most}, or 0 for no limit")),
    }
}

pub(super) fn connections_per_address(text: &str) -> Result<Limit<usize>, String> {
    number(text, u32::MAX as usize)
}

pub(super) fn message_frames(text: &str) -> Result<Limit<u32>, String> {
    number(text, u32::MAX - 1)
}

pub(super) fn control_frames(text: &str) -> Result<Limit<u16>, String> {
    number(text, u16::MAX - 1)
}

pub(super) fn memory_max(text: &str) -> Result<Limit<u64>, String> {
    if text == "0" {
        return Ok(Limit(None));
    }
    size(text, 1 << 20..=1 << 40).map(|bytes| Limit(Some(bytes)))
}

pub(super) fn timeout(text: &str) -> Result<Limit<Duration>, &'static str> {
    if text == "0" {
        return Ok(Limit(None));
    }
    let range = Duration::from_millis(1)..=Duration::from_secs(SECONDS_MAX);
    let time = humantime::parse_duration(text).ok().filter(|time| range.contains(time));
    let time = time.ok_or("write a time from 1ms to 7d, such as 10s or 5m, or 0")?;
    Ok(Limit(Some(time)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_limits_and_zero_is_none() {
        assert_eq!(control_frames("0"), Ok(Limit(None)));
        assert_eq!(control_frames("1"), Ok(Limit(Some(1))));
        assert_eq!(control_frames("65534"), Ok(Limit(Some(65_534))));
        for text in ["65535", "-1", "", "1.5", "many"] {
            let error = control_frames(text).expect_err(text);
            assert_eq!(error, "write a whole number up to 65534, or 0 for no limit");
        }
        assert_eq!(message_frames("4294967294"), Ok(Limit(Some(u32::MAX - 1))));
        assert_eq!(connections_per_address("8"), Ok(Limit(Some(8))));
    }

    #[test]
    fn times_have_units() {
        let times = [("1ms", 1), ("10s", 10_000), ("2m 30s", 150_000), ("7d", 604_800_000)];
        for (text, millis) in times {
            assert_eq!(timeout(text), Ok(Limit(Some(Duration::from_millis(millis)))), "{text}");
        }
        assert_eq!(timeout("0"), Ok(Limit(None)));
        for text in ["10", "1us", "8d", "-1s", "soon", ""] {
            assert!(timeout(text).is_err(), "{text}");
        }
    }

    #[test]
    fn memory_has_a_least_size() {
        assert_eq!(memory_max("0"), Ok(Limit(None)));
        assert_eq!(memory_max("1MiB"), Ok(Limit(Some(1 << 20))));
        assert!(memory_max("1000").expect_err("too little").contains("1.0 MiB"));
    }
}
