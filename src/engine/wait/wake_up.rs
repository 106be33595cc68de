//! What a sleep costs on this machine.
//!
//! A message that comes for a sleeping thread interrupts an idle CPU, which leaves its idle state and
//! switches to the thread. A timer that ends does the same, and needs no second thread and no second
//! CPU, so how late a thread wakes from a short sleep is the measure.

use std::num::NonZeroU64;
use std::thread;
use std::time::{Duration, Instant};

use crate::cpus;

/// How often the thread sleeps. The median of eight is steady to within some 10 %.
const SLEEPS: usize = 8;
/// How long it means to sleep each time: long enough for its CPU to become idle.
const SLEEP: Duration = Duration::from_micros(50);
/// No new sleep starts after this. Only a busy CPU takes so long; without other work the measurement
/// takes about 0.6 ms.
const TIME_MAX: Duration = Duration::from_millis(5);

/// How long it takes to wake a thread that sleeps on `cpu`: the median of a few attempts.
///
/// Takes about 0.6 ms. `None` if no thread can be started, or not on this CPU.
pub fn measure(cpu: usize) -> Option<Duration> {
    let sleeper = || {
        cpus::pin(cpu).ok()?;
        // Else the kernel may add 50 µs to a sleep, to join timers (PR_SET_TIMERSLACK(2const)). The
        // thread ends soon, so nothing else is affected.
        let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
        Some(median(lateness()))
    };
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("wake-up".into()).spawn_scoped(scope, sleeper);
        thread.ok()?.join().ok()?
    })
}

/// How late each sleep ended; at least one.
fn lateness() -> Vec<Duration> {
    let begin = Instant::now();
    let mut late = Vec::with_capacity(SLEEPS);
    while late.is_empty() || (late.len() < SLEEPS && begin.elapsed() < TIME_MAX) {
        let asleep = Instant::now();
        thread::sleep(SLEEP);
        late.push(asleep.elapsed().saturating_sub(SLEEP));
    }
    late
}

fn median(mut times: Vec<Duration>) -> Duration {
    let middle = times.len() / 2;
    *times.select_nth_unstable(middle).1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wake_up_takes_time_on_every_cpu() {
        for cpu in cpus::allowed().expect("a mask") {
            let time = measure(cpu).expect("an allowed CPU");
            assert!(time > Duration::ZERO, "CPU {cpu}");
        }
    }

    #[test]
    fn a_cpu_that_does_not_exist_has_none() {
        assert_eq!(measure(usize::MAX), None);
    }

    #[test]
    fn one_late_sleep_does_not_matter() {
        let times = [21, 19, 20, 5000, 20].map(Duration::from_micros);
        assert_eq!(median(times.to_vec()), Duration::from_micros(20));
    }
}
