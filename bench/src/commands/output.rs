//! Results as they leave the program: tables on standard output, and files.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use super::Outcome;
use crate::latency::{Latencies, PERCENTILES, write_hlog};
use crate::results::{Measurement, Results};
use crate::tables;

/// What the warning begins with that there are not enough messages for a percentile.
pub(super) const TOO_FEW: &str = "Too few messages for";

/// Warns, prints the tables and writes the files.
pub(super) fn finish(
    results: &mut Results,
    prefix: Option<&Path>,
    output: &mut impl Write,
) -> Outcome {
    for percent in PERCENTILES {
        let few = |measurement: &&Measurement| !measurement.latencies.supports(percent);
        let names: Vec<&str> =
            results.measurements.iter().filter(few).map(|it| it.name.as_str()).collect();
        if !names.is_empty() {
            let warning =
                format!("{TOO_FEW} p{percent}, less than ten lie beyond it: {}.", names.join(", "));
            if !results.warnings.contains(&warning) {
                results.warnings.push(warning);
            }
        }
    }
    if !results.measurements.is_empty() {
        written(output.write_all(tables::page(results).as_bytes()))?;
    }
    let Some(prefix) = prefix else { return Ok(()) };
    write_files(results, prefix)
        .map_err(|error| format!("cannot write --output {}: {error}", prefix.display()))
}

/// A reader that has gone away is no reason to fail.
pub(super) fn written(outcome: io::Result<()>) -> Outcome {
    match outcome {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(format!("cannot write to standard output: {error}"))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// The file of a measurement's `ending`.
fn file_of(prefix: &Path, name: &str, ending: &str) -> io::Result<BufWriter<File>> {
    // A name becomes a part of a file's name.
    let name: String = name
        .chars()
        .map(|c| if c.is_alphanumeric() || ".-_".contains(c) { c } else { '_' })
        .collect();
    let mut path = prefix.as_os_str().to_owned();
    path.push(format!("-{name}.{ending}"));
    File::create(path).map(BufWriter::new)
}

pub(super) fn write_log(
    results: &Results,
    prefix: &Path,
    name: &str,
    intervals: &[(Duration, Duration, Latencies)],
) -> io::Result<()> {
    let begin = UNIX_EPOCH + Duration::from_secs_f64(results.started_at_s.max(0.0));
    let intervals = intervals.iter().map(|(from, to, latencies)| (*from, *to, latencies));
    write_hlog(&mut file_of(prefix, name, "hlog")?, name, begin, intervals)
}

fn write_files(results: &Results, prefix: &Path) -> io::Result<()> {
    let mut path = prefix.as_os_str().to_owned();
    path.push(".json");
    results.write(Path::new(&path))?;
    for measurement in &results.measurements {
        let name = &measurement.name;
        measurement.latencies.write_csv(&mut file_of(prefix, name, "csv")?)?;
        measurement.latencies.write_hgrm(&mut file_of(prefix, name, "hgrm")?)?;
        let end = measurement.rounds.last().map_or(0.0, |round| round.begin_s + round.duration_s);
        let first = measurement.rounds.first().map_or(0.0, |round| round.begin_s);
        let [first, end] = [first, end].map(|seconds| Duration::from_secs_f64(seconds.max(0.0)));
        let whole = [(first, end.max(first), measurement.latencies.clone())];
        write_log(results, prefix, name, &whole)?;
    }
    Ok(())
}
