//! Results as they leave the program: tables on standard output, and files.
//!
//! Files are opened before anything is measured, so that a wrong path does not cost a measurement. If
//! writing one fails later, the others are still written: problems are collected and reported at the
//! end.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use flate2::Crc;

use super::{ENDED_BY_SIGNAL, Failure};
use crate::latency::{Latencies, PERCENTILES, write_hlog};
use crate::results::{Measurement, Results};
use crate::tables;

/// The beginning of the warning that there are too few messages for a percentile.
pub(super) const TOO_FEW: &str = "Too few messages for";
/// Bytes of a file's name on any file system of Linux (`NAME_MAX`, limits.h(0p)).
const FILE_NAME_BYTES_MAX: usize = 255;
/// Bytes of a measurement's name within a file's name.
const NAME_BYTES_MAX: usize = 120;
/// The files of each measurement.
const ENDINGS: [&str; 3] = ["csv", "hgrm", "hlog"];

/// A part of a measurement in the interval log: when it began and ended, counted from the start of the
/// measurement, and its latencies.
pub(super) type Interval = (Duration, Duration, Latencies);

/// What could not be written, a line for each.
#[derive(Debug, Default)]
pub(super) struct Problems(Vec<String>);

impl Problems {
    /// Notes a problem, if there is one.
    pub(super) fn note(&mut self, written: Result<(), String>) {
        self.0.extend(written.err());
    }

    /// Notes a problem with standard output, except a reader that went away, as `head` does.
    pub(super) fn note_standard_output(&mut self, written: io::Result<()>) {
        match written {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                let problem = format!("cannot write to standard output: {error}");
                if !self.0.contains(&problem) {
                    self.0.push(problem);
                }
            }
            Ok(()) | Err(_) => {}
        }
    }

    /// How a command ends that came to `verdict` and had these problems.
    pub(super) fn outcome(self, verdict: Result<(), String>) -> super::Outcome {
        let lines: Vec<String> = verdict.err().into_iter().chain(self.0).collect();
        if lines.is_empty() { Ok(()) } else { Err(Failure::Failed(lines)) }
    }
}

/// The files of `--output`, opened; empty where there is none.
#[derive(Debug, Default)]
pub(super) struct Files {
    json: Option<Opened>,
    /// For each measurement its name and its files, in the order of [`ENDINGS`].
    of_measurements: Vec<(String, [Opened; 3])>,
}

impl Files {
    /// Opens the files for measurements of these names. Existing content stays until something is
    /// written; new files that nothing is written to are removed.
    ///
    /// # Errors
    ///
    /// Which file cannot be written, and why; that the prefix is no name.
    pub(super) fn open<'a>(
        prefix: Option<&Path>,
        names: impl IntoIterator<Item = &'a str>,
    ) -> Result<Files, Failure> {
        let Some(prefix) = prefix else { return Ok(Files::default()) };
        let text = prefix.as_os_str().as_encoded_bytes();
        if prefix.file_name().is_none() || text.ends_with(b"/") || text.ends_with(b"/.") {
            return Err(Failure::Usage(format!(
                "--output {} has no name that files could begin with; write DIRECTORY/NAME",
                prefix.display()
            )));
        }
        let mut files =
            Files { json: Some(Opened::open(file_of(prefix, ".json"))?), ..Files::default() };
        let mut taken = HashSet::new();
        for name in names {
            let part = name_in_files(prefix, name, &mut taken);
            let open = |ending| Opened::open(file_of(prefix, &format!("-{part}.{ending}")));
            let [csv, hgrm, hlog] = ENDINGS.map(open);
            files.of_measurements.push((name.to_owned(), [csv?, hgrm?, hlog?]));
        }
        Ok(files)
    }

    /// Writes what was measured. `intervals` are for the interval log of a single measurement; if
    /// empty, each log has one interval.
    fn write(&mut self, results: &Results, intervals: &[Interval], problems: &mut Problems) {
        let Some(json) = &mut self.json else { return };
        problems.note(json.write(|output| results.write(output)));
        for (name, [csv, hgrm, hlog]) in &mut self.of_measurements {
            let found = results.measurements.iter().find(|measurement| measurement.name == *name);
            let Some(measurement) = found else { continue };
            problems.note(csv.write(|output| measurement.latencies.write_csv(output)));
            problems.note(hgrm.write(|output| measurement.latencies.write_hgrm(output)));
            let all = [as_one_interval(measurement)];
            let intervals = if intervals.is_empty() { &all } else { intervals };
            problems.note(hlog.write(|output| write_log(output, results, name, intervals)));
        }
    }
}

/// An open file, to which nothing may be written in the end.
#[derive(Debug)]
pub(super) struct Opened {
    path: PathBuf,
    file: File,
    is_new: bool,
    is_written: bool,
}

impl Opened {
    /// Opens it. What is in it stays until something is written.
    ///
    /// # Errors
    ///
    /// That it cannot be written, and why.
    pub(super) fn open(path: PathBuf) -> Result<Opened, String> {
        let failed = |error| format!("cannot write {}: {error}", path.display());
        let is_new = fs::symlink_metadata(&path).is_err();
        let file = File::options().write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(failed)?;
        Ok(Opened { path, file, is_new, is_written: false })
    }

    /// Replaces what is in it.
    pub(super) fn write(
        &mut self,
        fill: impl FnOnce(&mut BufWriter<&File>) -> io::Result<()>,
    ) -> Result<(), String> {
        self.is_written = true;
        let write = || {
            if self.file.metadata()?.is_file() {
                self.file.set_len(0)?;
            }
            let mut output = BufWriter::new(&self.file);
            fill(&mut output)?;
            output.flush()
        };
        write().map_err(|error| format!("cannot write {}: {error}", self.path.display()))
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        if self.is_new && !self.is_written {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn file_of(prefix: &Path, rest: &str) -> PathBuf {
    let mut path = prefix.as_os_str().to_owned();
    path.push(rest);
    path.into()
}

/// The part of file names that names a measurement: its name, with characters replaced that are awkward
/// in file names. If that is too long, or taken by another measurement, it ends with a checksum of the
/// whole name.
fn name_in_files(prefix: &Path, name: &str, taken: &mut HashSet<String>) -> String {
    let plain: String = name
        .chars()
        .map(|c| if c.is_alphanumeric() || ".-_".contains(c) { c } else { '_' })
        .collect();
    let around = prefix.file_name().map_or(0, OsStr::len) + "-.hgrm".len();
    let room = FILE_NAME_BYTES_MAX.saturating_sub(around).min(NAME_BYTES_MAX);
    if plain.len() <= room && taken.insert(plain.clone()) {
        return plain;
    }
    let mut checksum = Crc::new();
    checksum.update(name.as_bytes());
    let end = format!("-{:08x}", checksum.sum());
    let kept = plain.floor_char_boundary(room.saturating_sub(end.len()).min(plain.len()));
    let short = format!("{}{end}", &plain[..kept]);
    taken.insert(short.clone());
    short
}

/// Adds warnings about too few messages, prints the tables and writes the files.
pub(super) fn finish(
    results: &mut Results,
    intervals: &[Interval],
    mut files: Files,
    output: &mut impl Write,
) -> Problems {
    let mut problems = Problems::default();
    for percent in PERCENTILES {
        let few = |measurement: &&Measurement| {
            measurement.messages > 0 && !measurement.latencies.supports(percent)
        };
        let names: Vec<&str> =
            results.measurements.iter().filter(few).map(|it| it.name.as_str()).collect();
        if !names.is_empty() {
            let warning =
                format!("{TOO_FEW} p{percent}, fewer than ten are slower: {}.", names.join(", "));
            if !results.warnings.contains(&warning) {
                results.warnings.push(warning);
            }
        }
    }
    let is_stopped = results.cut_short.as_ref().is_some_and(|it| it.starts_with(ENDED_BY_SIGNAL));
    // If the server could not be measured at all, standard error says why.
    if is_stopped || !results.measurements.is_empty() {
        let page = tables::page(results);
        problems
            .note_standard_output(output.write_all(page.as_bytes()).and_then(|()| output.flush()));
    }
    files.write(results, intervals, &mut problems);
    problems
}

fn as_one_interval(measurement: &Measurement) -> Interval {
    let end = measurement.rounds.last().map_or(0.0, |round| round.begin_s + round.duration_s);
    let begin = measurement.rounds.first().map_or(0.0, |round| round.begin_s);
    let [begin, end] = [begin, end].map(|seconds| Duration::from_secs_f64(seconds.max(0.0)));
    (begin, end.max(begin), measurement.latencies.clone())
}

fn write_log(
    output: &mut impl Write,
    results: &Results,
    name: &str,
    intervals: &[Interval],
) -> io::Result<()> {
    let begin = UNIX_EPOCH + Duration::from_secs_f64(results.started_at_s.max(0.0));
    let intervals = intervals.iter().map(|(from, to, latencies)| (*from, *to, latencies));
    write_hlog(output, name, begin, intervals)
}

/// The device and the inode of a file: the same for the same file, by whatever path or link.
pub(super) type Identity = (u64, u64);

/// Which file this is; nothing if it cannot be found.
pub(super) fn identity(path: &Path) -> Option<Identity> {
    fs::metadata(path).ok().map(|file| (file.dev(), file.ino()))
}

/// Refuses an `output` that is one of the input files, by whatever path.
pub(super) fn refuse_overwriting(inputs: &[PathBuf], output: &Path) -> Result<(), Failure> {
    let Some(written) = identity(output) else { return Ok(()) };
    match inputs.iter().find(|input| identity(input) == Some(written)) {
        Some(input) => Err(Failure::Usage(format!(
            "--output would replace the input file {}; choose another name",
            input.display()
        ))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_files_are_short_and_differ() {
        let mut taken = HashSet::new();
        let mut of = |name: &str| name_in_files(Path::new("a/prefix"), name, &mut taken);
        assert_eq!(of("ws://127.0.0.1:9001/"), "ws___127.0.0.1_9001_");
        let other = of("ws://127.0.0.1:9001?");
        assert!(other.starts_with("ws___127.0.0.1_9001_-"), "{other}");
        let [long, longer] = ["ö".repeat(200), "ö".repeat(201)].map(|name| of(&name));
        assert!(long.len() <= NAME_BYTES_MAX && long != longer, "{long}");
        let prefix = "p".repeat(240);
        let tight = name_in_files(Path::new(&prefix), "a name", &mut HashSet::new());
        assert_eq!(tight, "a_name");
        let cut = name_in_files(Path::new(&prefix), "a longer name", &mut HashSet::new());
        assert!(prefix.len() + 1 + cut.len() + ".hgrm".len() <= FILE_NAME_BYTES_MAX, "{cut}");
    }
}
