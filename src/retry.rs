//! Trying again for a moment.
//!
//! The kernel gives back what a killed io_uring server held, its addresses and its locked memory, only
//! 20 to 30 ms after the process has ended. A server that starts at once must not fail for that. This
//! module does not know what is tried.

use std::thread;
use std::time::{Duration, Instant};

/// The pause before the second attempt; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(5);

/// Attempts something, again and again for `wait_max` while it fails for a reason that `may_pass`.
///
/// # Errors
///
/// That of the last attempt.
pub fn retry<T, E>(
    wait_max: Duration,
    may_pass: impl Fn(&E) -> bool,
    mut attempt: impl FnMut() -> Result<T, E>,
) -> Result<T, E> {
    let end = Instant::now() + wait_max;
    let mut pause = FIRST_PAUSE;
    loop {
        let outcome = attempt();
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() || !outcome.as_ref().is_err_and(&may_pass) {
            return outcome;
        }
        thread::sleep(pause.min(left));
        pause *= 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An attempt that fails with each of `errors` and then succeeds, and how often it was made.
    fn attempts(wait_max: Duration, errors: &[&'static str]) -> (Result<(), &'static str>, usize) {
        let mut made = 0;
        let outcome = retry(
            wait_max,
            |&error: &&str| error == "busy",
            || {
                made += 1;
                errors.get(made - 1).map_or(Ok(()), |&error| Err(error))
            },
        );
        (outcome, made)
    }

    #[test]
    fn only_what_may_pass_is_tried_again() {
        let long = Duration::from_secs(60);
        assert_eq!(attempts(long, &[]), (Ok(()), 1));
        assert_eq!(attempts(long, &["busy", "busy"]), (Ok(()), 3));
        assert_eq!(attempts(long, &["busy", "broken"]), (Err("broken"), 2));
        assert_eq!(attempts(Duration::ZERO, &["busy"]), (Err("busy"), 1));
    }
}
