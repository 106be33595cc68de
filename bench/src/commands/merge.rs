//! `ringbench merge`

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::Outcome;
use super::output::{TOO_FEW, finish};
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
    check_files(&options.results, &options.output)?;
    let sources = options.results.iter().map(|path| {
        let results = Results::read(path)?;
        Ok(Source { file: path.display().to_string(), results })
    });
    let mut sum = merge::merge(sources.collect::<Result<_, String>>()?)?;
    // What was too little for a part may be enough for the sum.
    sum.warnings.retain(|warning| !warning.starts_with(TOO_FEW));
    finish(&mut sum, Some(&options.output), output)
}

/// Sees that no file is read twice, also by another path or a link, and that none is written over.
fn check_files(files: &[PathBuf], prefix: &Path) -> Outcome {
    // A file that cannot be found is an error when it is read.
    let identity = |path: &Path| fs::metadata(path).ok().map(|file| (file.dev(), file.ino()));
    let known: Vec<_> = files.iter().map(|path| identity(path)).collect();
    for (at, file) in files.iter().enumerate() {
        let earlier = known[..at].iter().position(|it| it.is_some() && *it == known[at]);
        if let Some(earlier) = earlier {
            return Err(format!(
                "{} and {} are the same file, which would count twice",
                files[earlier].display(),
                file.display()
            ));
        }
    }
    let mut written = prefix.as_os_str().to_owned();
    written.push(".json");
    let over = identity(Path::new(&written));
    match known.iter().position(|it| it.is_some() && *it == over) {
        Some(at) => Err(format!(
            "--output {} would write over {}; choose another prefix",
            prefix.display(),
            files[at].display()
        )),
        None => Ok(()),
    }
}
