//! `ringbench report`

use super::Outcome;
use super::output::refuse_overwriting;
use crate::cli::Report;
use crate::report;
use crate::results::Results;

/// `ringbench report`
///
/// # Errors
///
/// When a result cannot be read, or the page cannot be written, or would replace a result.
pub fn report(options: &Report) -> Outcome {
    refuse_overwriting(&options.results, &options.output)?;
    let results: Vec<Results> =
        options.results.iter().map(|path| Results::read(path)).collect::<Result<_, _>>()?;
    std::fs::write(&options.output, report::page(&results))
        .map_err(|error| format!("cannot write {}: {error}", options.output.display()).into())
}
