//! `ringbench report`

use super::Outcome;
use crate::cli::Report;
use crate::report;
use crate::results::Results;

/// `ringbench report`
///
/// # Errors
///
/// When a result cannot be read, or the page cannot be written.
pub fn report(options: &Report) -> Outcome {
    let results: Vec<Results> =
        options.results.iter().map(|path| Results::read(path)).collect::<Result<_, _>>()?;
    std::fs::write(&options.output, report::page(&results))
        .map_err(|error| format!("cannot write {}: {error}", options.output.display()))
}
