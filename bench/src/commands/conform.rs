//! `ringbench conform`

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::time::Instant;

use super::conform_clients;
use super::live_line::LiveLine;
use super::output::Problems;
use super::rtt::start_sibling;
use super::{Failure, Outcome, command_line};
use crate::candidate::Candidate;
use crate::cli::Conform;
use crate::conform::{self, Results, Suite, SuiteError, text};
use crate::server::Server;
use crate::stop::Stop;
use crate::target::Target;
use crate::wire_report;

/// `ringbench conform`
///
/// # Errors
///
/// When a case is not as expected, or cannot be run. What was found out before is printed first.
pub fn conform(options: &Conform, stop: &Stop, output: &mut impl Write) -> Outcome {
    if let Some(address) = &options.serve {
        return conform_clients::serve(options, address, stop, output);
    }
    let mut tested = Tested::parse(options.target.as_deref())?;
    let mut suite = chosen(Suite::servers(), options)?.agent_otherwise(tested.name());
    if let Some(agent) = &options.agent {
        suite = suite.agent(agent);
    }
    let cases = suite.selected()?.len();
    let json = options.json.as_deref().map(create).transpose()?;
    let xml = options.junit.as_deref().map(create).transpose()?;
    let baseline = options.write_expected.as_deref().map(open_to_replace).transpose()?;
    if let Some(directory) = &options.report {
        wire_report::prepare(directory).map_err(|error| cannot_write(directory, &error))?;
    }
    let target = tested.start(stop)?;
    let (begin, live) = (Instant::now(), LiveLine::on_terminal());
    let mut report = suite.run_until(&target, stop, &mut |done, case| {
        live.show(&text::progress(done, cases, case.number, begin.elapsed()));
    })?;
    live.clear();
    report.results.command = command_line();
    let mut problems = Problems::default();
    let page = report.text(&how(options));
    problems.note_standard_output(output.write_all(page.as_bytes()).and_then(|()| output.flush()));
    if let (Some(file), Some(path)) = (json, &options.json) {
        problems.note(write(&file, &report.results).map_err(|error| cannot_write(path, &error)));
    }
    if let (Some(mut file), Some(path)) = (xml, &options.junit) {
        let written = file.write_all(report.junit().as_bytes());
        problems.note(written.map_err(|error| cannot_write(path, &error)));
    }
    if let (Some(file), Some(path)) = (baseline, &options.write_expected) {
        let written = replace(file, &suite.baseline(&report));
        problems.note(written.map_err(|error| cannot_write(path, &error)));
    }
    if let Some(directory) = &options.report {
        let written = report.write(directory);
        problems.note(written.map_err(|error| cannot_write(directory, &error)));
    }
    problems.note(tested.survived());
    let outcome = problems.outcome(Ok(()));
    if report.is_as_expected() { outcome } else { outcome.and(Err(Failure::Failed(Vec::new()))) }
}

/// The suite with what the options choose.
pub(super) fn chosen<T: conform::Tested>(
    suite: Suite<T>,
    options: &Conform,
) -> Result<Suite<T>, Failure> {
    let mut suite = suite.including(&options.case)?.excluding(&options.exclude)?;
    suite = suite.jobs(options.jobs.into()).seed(options.seed);
    if options.quick {
        suite = suite.quick();
    }
    if options.strict {
        suite = suite.strict();
    }
    let Some(path) = &options.expected else { return Ok(suite) };
    let wrong = |error: &dyn std::fmt::Display| {
        Failure::Usage(format!("--expected {}: {error}", path.display()))
    };
    let text = fs::read_to_string(path).map_err(|error| wrong(&error))?;
    suite.expecting(&text).map_err(|error| wrong(&error))
}

impl From<SuiteError> for Failure {
    fn from(error: SuiteError) -> Failure {
        match error {
            SuiteError::Senseless(what) => Failure::Usage(what),
            SuiteError::Unreachable(what) => what.into(),
        }
    }
}

/// What is tested.
enum Tested {
    /// The ringecho beside this program, once it is started.
    Sibling(Option<Server>),
    /// A server that runs, or a command that starts one.
    Named(Candidate),
}

impl Tested {
    fn parse(target: Option<&str>) -> Result<Tested, Failure> {
        let Some(text) = target else { return Ok(Tested::Sibling(None)) };
        let candidate = Candidate::parse(text).map_err(Failure::Usage)?;
        let is_plain = candidate.target().is_ok_and(|target| target.websocket.is_none());
        if is_plain || text.contains("{tcp-port}") {
            return Err(Failure::Usage(format!(
                "{text:?} speaks no WebSocket; write ws:// or unix:/, or a command with {{port}}"
            )));
        }
        Ok(Tested::Named(candidate))
    }

    /// Starts it, if it does not run, and returns its address.
    fn start(&mut self, stop: &Stop) -> Result<Target, String> {
        match self {
            Tested::Sibling(server) => {
                let sibling = server.insert(start_sibling(&[], stop)?);
                format!("ws://{}/", sibling.address()).parse()
            }
            Tested::Named(candidate) => {
                candidate.begin_turn(&[], stop)?;
                candidate.target().cloned()
            }
        }
    }

    fn name(&self) -> &str {
        match self {
            Tested::Sibling(_) => "ringecho",
            Tested::Named(candidate) => &candidate.name,
        }
    }

    /// That it still runs, if it was started here.
    fn survived(&mut self) -> Result<(), String> {
        let ended = match self {
            Tested::Sibling(server) => server.as_mut().and_then(Server::ended),
            Tested::Named(candidate) => candidate.ended(),
        };
        match ended {
            Some(how) => Err(format!("{} {how}", self.name())),
            None => Ok(()),
        }
    }
}

/// The command that tests the same server, or clients, in the same way.
pub(super) fn how(options: &Conform) -> String {
    let mut words = vec!["ringbench".to_owned(), "conform".to_owned()];
    if let Some(address) = &options.serve {
        words.extend(["--serve".to_owned(), address.to_string()]);
    }
    words.extend(options.target.clone());
    if options.quick {
        words.push("--quick".to_owned());
    }
    if options.strict {
        words.push("--strict".to_owned());
    }
    if let Some(path) = &options.expected {
        words.extend(["--expected".to_owned(), path.display().to_string()]);
    }
    shell_words::join(words)
}

fn create(path: &Path) -> Result<File, String> {
    File::create(path).map_err(|error| cannot_write(path, &error))
}

/// Opens a file to replace what is in it by [`replace`], until when it stays as it is.
fn open_to_replace(path: &Path) -> Result<File, String> {
    let mut options = OpenOptions::new();
    let opened = options.write(true).create(true).truncate(false).open(path);
    opened.map_err(|error| cannot_write(path, &error))
}

/// Makes `text` all that is in a file.
fn replace(mut file: File, text: &str) -> io::Result<()> {
    file.write_all(text.as_bytes())?;
    // A device, such as /dev/stdout, has no length.
    match file.metadata()?.is_file() {
        true => file.set_len(text.len() as u64),
        false => Ok(()),
    }
}

fn write(file: &File, results: &Results) -> io::Result<()> {
    let mut output = BufWriter::new(file);
    serde_json::to_writer_pretty(&mut output, results)?;
    writeln!(output)?;
    output.flush()
}

pub(super) fn cannot_write(path: &Path, error: &io::Error) -> String {
    format!("cannot write {}: {error}", path.display())
}
