//! The commands, from options to tables: a file for each.

mod compare;
mod conform;
mod conform_clients;
mod cpus;
mod floor;
mod live_line;
mod load;
mod merge;
mod output;
mod report;
mod rtt;
mod tls;

pub use self::compare::compare;
pub use self::conform::conform;
pub use self::floor::floor;
pub use self::load::load;
pub use self::merge::merge;
pub use self::report::report;
pub use self::rtt::rtt;

/// Why a measurement was cut short that a signal has ended.
const ENDED_BY_SIGNAL: &str = "ended by a signal";

/// How a command ends: well if it measured everything or a signal ended it, else with a failure.
pub type Outcome = Result<(), Failure>;

/// Why a command has failed.
#[derive(Debug)]
pub enum Failure {
    /// The command line makes no sense: what is wrong, and what to write.
    Usage(String),
    /// Something could not be measured or written, or an echo was wrong: lines for standard error.
    Failed(Vec<String>),
}

impl From<String> for Failure {
    fn from(line: String) -> Failure {
        Failure::Failed(vec![line])
    }
}

/// The command line as it was given.
fn command_line() -> Vec<String> {
    std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect()
}
