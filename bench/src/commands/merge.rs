//! `ringbench merge`

use std::io::Write;
use std::path::{Path, PathBuf};

use super::output::{Files, Identity, TOO_FEW, finish, identity, refuse_overwriting};
use super::{Failure, Outcome};
use crate::cli::Merge;
use crate::merge::{self, Source};
use crate::results::Results;

/// `ringbench merge`
///
/// # Errors
///
/// When a result cannot be read, is given twice, cannot be added, or would be written over; and when
/// the sum cannot be written.
pub fn merge(options: &Merge, output: &mut impl Write) -> Outcome {
    refuse_twice(&options.results)?;
    let mut json = options.output.as_os_str().to_owned();
    json.push(".json");
    refuse_overwriting(&options.results, Path::new(&json))?;
    let sources = options.results.iter().map(|path| {
        let results = Results::read(path)?;
        Ok(Source { file: path.display().to_string(), results })
    });
    let mut sum = merge::merge(sources.collect::<Result<_, String>>()?)?;
    // Too few messages for a part may be enough for the sum.
    sum.warnings.retain(|warning| !warning.starts_with(TOO_FEW));
    let names: Vec<String> = sum.measurements.iter().map(|it| it.name.clone()).collect();
    let files = Files::open(Some(&options.output), names.iter().map(String::as_str))?;
    finish(&mut sum, &[], files, output).outcome(Ok(()))
}

/// Refuses a file that is given twice, by whatever path.
fn refuse_twice(files: &[PathBuf]) -> Result<(), Failure> {
    let known: Vec<Option<Identity>> = files.iter().map(|path| identity(path)).collect();
    for (at, file) in files.iter().enumerate() {
        let earlier = known[..at].iter().position(|it| it.is_some() && *it == known[at]);
        if let Some(earlier) = earlier {
            return Err(Failure::Usage(format!(
                "{} and {} are the same file, which would count twice",
                files[earlier].display(),
                file.display()
            )));
        }
    }
    Ok(())
}
