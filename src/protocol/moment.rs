//! Times of a worker, as what it knows of a connection holds them.

use std::time::Duration;

/// A time on a worker's clock in milliseconds. It wraps around after 49.7 days, so only times less than that apart
/// can be told in order.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Moment(u32);

impl Moment {
    /// The moment at `time` on the worker's clock.
    #[inline]
    pub fn at(time: Duration) -> Moment {
        Moment(time.as_millis() as u32)
    }

    /// How long before this moment `earlier` was; nothing if it was later, by up to 2 seconds.
    pub fn since(self, earlier: Moment) -> Duration {
        // Two clocks of the kernel are read, one of which lags behind.
        let millis = self.0.wrapping_sub(earlier.0);
        let is_later = millis > u32::MAX - 2000;
        Duration::from_millis(if is_later { 0 } else { millis.into() })
    }

    /// The second that it is in, modulo 2¹⁶.
    #[inline]
    pub(super) fn second(self) -> u16 {
        (self.0 / 1000) as u16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_told_apart_across_the_wrap() {
        let at = |millis| Moment::at(Duration::from_millis(millis));
        let wrap = 1 << 32;
        assert_eq!(at(5000).since(at(2000)), Duration::from_secs(3));
        assert_eq!(at(wrap + 500).since(at(wrap - 500)), Duration::from_secs(1));
        assert_eq!(at(2000).since(at(2001)), Duration::ZERO);
        assert_eq!(at(wrap - 10).since(at(wrap + 10)), Duration::ZERO);
    }

    #[test]
    fn a_second_ends_where_the_next_begins() {
        let at = |millis| Moment::at(Duration::from_millis(millis)).second();
        assert_eq!([at(999), at(1000), at(1999), at(65_536_000)], [0, 1, 1, 0]);
    }
}
