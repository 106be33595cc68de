//! `ringbench conform`

use std::fs;
use std::io::{self, IsTerminal as _, Write};
use std::path::{Path, PathBuf};

use ringecho::listen::{Endpoint, Transport};

use super::conform_clients;
use super::live_line::LiveLine;
use super::output::{Opened, Problems, identity};
use super::rtt::start_sibling;
use super::{Failure, Outcome, command_line, tls};
use crate::candidate::Candidate;
use crate::case_report;
use crate::cli::Conform;
use crate::conform::{self, Report, Suite, SuiteError, text};
use crate::server::Server;
use crate::stop::Stop;
use crate::target::Target;
use crate::tls::Trust;

/// `ringbench conform`
///
/// # Errors
///
/// When a case is not as expected, or cannot be run. What was found out before is printed first.
pub fn conform(options: &Conform, stop: &Stop, output: &mut impl Write) -> Outcome {
    if let Some(endpoint) = &options.serve {
        return conform_clients::serve(options, endpoint, stop, output);
    }
    let mut tested = Tested::parse(options.target.as_deref())?;
    if let Some(trust) = tls::trust(&options.tls, tested.is_over_tls())? {
        tested.trust(&trust);
    }
    let mut suite = chosen(Suite::servers(), options)?.agent_otherwise(tested.name());
    suite = suite.over_tls(tested.is_over_tls());
    if let Some(note) = tls::warning(&options.tls) {
        suite = suite.noting(note);
    }
    if let Some(agent) = &options.agent {
        suite = suite.agent(agent);
    }
    suite.selected()?;
    let mut files = Files::open(options)?;
    let target = tested.start(stop)?;
    let live = LiveLine::on_terminal();
    let mut report = suite.run_until(&target, stop, &mut |progress| {
        live.show(&text::progress(progress));
    })?;
    live.clear();
    report.results.command = command_line();
    let mut problems = Problems::default();
    let page = report.styled(&text::View { how: &how(options), columns: columns() });
    problems.note_standard_output(output.write_all(page.as_bytes()).and_then(|()| output.flush()));
    files.write(&report, || suite.baseline(&report), &mut problems);
    if let Some(directory) = &options.report {
        let written = report.write(directory);
        problems.note(written.map_err(|error| cannot_write(directory, &error)));
    }
    problems.note(tested.survived());
    let outcome = problems.outcome(Ok(()));
    if report.is_as_expected() { outcome } else { outcome.and(Err(Failure::Failed(Vec::new()))) }
}

/// The columns of the terminal that is standard output, if it is one.
pub(super) fn columns() -> Option<usize> {
    if !io::stdout().is_terminal() {
        return None;
    }
    let size = rustix::termios::tcgetwinsize(io::stdout());
    Some(size.map_or(0, |size| size.ws_col.into()).max(text::COLUMNS / 2))
}

/// The files that are written when the cases are done, opened before.
struct Files {
    json: Option<Opened>,
    junit: Option<Opened>,
    baseline: Option<Opened>,
}

impl Files {
    fn open(options: &Conform) -> Result<Files, Failure> {
        let Conform { json, junit, write_expected, report, .. } = options;
        let open = |path: &Option<PathBuf>| path.clone().map(Opened::open).transpose();
        let baseline = open(write_expected)?;
        let files = Files { json: open(json)?, junit: open(junit)?, baseline };
        check_that_files_differ(options)?;
        if let Some(directory) = report {
            case_report::prepare(directory).map_err(|error| cannot_write(directory, &error))?;
        }
        Ok(files)
    }

    /// Writes them; `baseline` is the text of the file of known failures.
    fn write(
        &mut self,
        report: &Report,
        baseline: impl FnOnce() -> String,
        problems: &mut Problems,
    ) {
        if let Some(file) = &mut self.json {
            problems.note(file.write(|output| {
                serde_json::to_writer_pretty(&mut *output, &report.results)?;
                writeln!(output)
            }));
        }
        if let Some(file) = &mut self.junit {
            problems.note(file.write(|output| output.write_all(report.junit().as_bytes())));
        }
        if let Some(file) = &mut self.baseline {
            problems.note(file.write(|output| output.write_all(baseline().as_bytes())));
        }
    }
}

/// Checks that no two options name the same file. Those that are written are there already.
pub(super) fn check_that_files_differ(options: &Conform) -> Result<(), Failure> {
    let Conform { json, junit, expected, write_expected, .. } = options;
    let taken = [
        ("--expected", expected),
        ("--write-expected", write_expected),
        ("--json", json),
        ("--junit", junit),
    ];
    for (at, (later, path)) in taken.iter().enumerate() {
        let same = |other: &Path| path.as_deref().is_some_and(|path| is_same_file(path, other));
        // A file of known failures may be replaced by its successor.
        let mut others = taken[..at]
            .iter()
            .filter(|(other, _)| (*other, *later) != ("--expected", "--write-expected"));
        let earlier = others.find(|(_, other)| other.as_deref().is_some_and(same));
        if let Some((earlier, _)) = earlier {
            return Err(Failure::Usage(format!(
                "{earlier} and {later} name the same file; choose another name for one of them"
            )));
        }
    }
    Ok(())
}

/// Whether two paths are one regular file, in which one output would overwrite the other.
fn is_same_file(one: &Path, other: &Path) -> bool {
    one.is_file() && identity(one).is_some_and(|it| identity(other) == Some(it))
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
                "{text:?} speaks no WebSocket; write ws://, wss:// or unix:/, or a command with {{port}}"
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

    fn is_over_tls(&self) -> bool {
        match self {
            Tested::Sibling(_) => false,
            Tested::Named(candidate) => candidate.is_over_tls(),
        }
    }

    /// Says whom to trust if it speaks TLS.
    fn trust(&mut self, trust: &Trust) {
        if let Tested::Named(candidate) = self {
            candidate.trust(trust);
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
    if let Some(Endpoint { address, transport }) = &options.serve {
        let scheme = match transport {
            Transport::Plain => "",
            Transport::Tls => "wss://",
        };
        words.extend(["--serve".to_owned(), format!("{scheme}{address}")]);
    }
    words.extend(options.target.clone());
    for path in &options.tls.ca {
        words.extend(["--ca".to_owned(), path.display().to_string()]);
    }
    if options.tls.insecure {
        words.push("--insecure".to_owned());
    }
    for (option, path) in [("--tls-cert", &options.tls_cert), ("--tls-key", &options.tls_key)] {
        words.extend(path.iter().flat_map(|path| [option.to_owned(), path.display().to_string()]));
    }
    if options.tls_self_signed {
        words.push("--tls-self-signed".to_owned());
    }
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

pub(super) fn cannot_write(path: &Path, error: &io::Error) -> String {
    format!("cannot write {}: {error}", path.display())
}
