//! What the commands do, from options to tables: a file for each.

mod compare;
mod cpus;
mod floor;
mod load;
mod merge;
mod output;
mod report;
mod rtt;

pub use self::compare::compare;
pub use self::floor::floor;
pub use self::load::load;
pub use self::merge::merge;
pub use self::report::report;
pub use self::rtt::rtt;

/// A line for standard error.
pub type Outcome = Result<(), String>;

/// The command line as it was given.
fn command_line() -> Vec<String> {
    std::env::args().collect()
}
