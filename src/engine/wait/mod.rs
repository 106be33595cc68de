//! When a worker spins for the next message and when it sleeps.
//!
//! Waking a sleeping thread is most of the cost of a message, so spinning pays when the next message
//! comes soon. Spinning does harm when another thread needs the CPU, above all when that thread is
//! the client, which then cannot send the message that the worker is waiting for.
//!
//! The [`Pacer`] decides, and learns from every wait how it went; it reads no clock. The [`Waiter`]
//! applies its decisions to whatever an engine waits on. [`measure_wake_up`] says what a sleep costs
//! on this machine. The tests drive both on simulated machines with simulated clients.

mod alarm;
mod clock;
mod pacer;
#[cfg(test)]
mod simulation;
mod waiter;
mod wake_up;

pub use self::alarm::{Alarm, Sleep};
pub use self::clock::{Clock, ThreadClock, monotonic, monotonic_coarse};
pub use self::pacer::{Pace, Pacer, Waited};
pub use self::waiter::{Source, Waiter};
pub use self::wake_up::measure as measure_wake_up;

/// How a worker waits when it has nothing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitStrategy {
    /// Sleeps in the kernel.
    Block,
    /// Never sleeps.
    Spin,
    /// Spins where a [`Pacer`] expects that to pay, else sleeps.
    Adaptive,
    /// A kernel thread submits operations; the worker waits as in `Adaptive`.
    Sqpoll,
}

impl WaitStrategy {
    /// Whether a [`Pacer`] decides.
    pub fn is_paced(self) -> bool {
        match self {
            WaitStrategy::Adaptive | WaitStrategy::Sqpoll => true,
            WaitStrategy::Block | WaitStrategy::Spin => false,
        }
    }
}
