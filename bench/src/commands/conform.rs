//! `ringbench conform`

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use super::live_line::LiveLine;
use super::output::Problems;
use super::rtt::start_sibling;
use super::{ENDED_BY_SIGNAL, Failure, Outcome, command_line};
use crate::candidate::Candidate;
use crate::cli::Conform;
use crate::conform::results::{CaseResult, FORMAT, Tally, server_name};
use crate::conform::{Case, Expectations, Pattern, Plan, Results};
use crate::conform::{cases, expected, junit, report, suite, text};
use crate::opening::Opening;
use crate::problem::Problem;
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
    let cases = selected(options)?;
    let expectations = expectations(options)?;
    let mut tested = Tested::parse(options.target.as_deref())?;
    let json = options.json.as_deref().map(create).transpose()?;
    let xml = options.junit.as_deref().map(create).transpose()?;
    let baseline = options.write_expected.as_deref().map(open_to_replace).transpose()?;
    if let Some(directory) = &options.report {
        wire_report::prepare(directory).map_err(|error| cannot_write(directory, &error))?;
    }
    let target = tested.start(stop)?;
    match Opening::new(&target, options.seed).open(stop) {
        Ok(_) | Err(Problem::Stopped) => {}
        // Otherwise every case would say so.
        Err(problem) => return Err(format!("{target}: {problem}").into()),
    }
    let plan =
        Plan { target: &target, cases: &cases, jobs: options.jobs.into(), seed: options.seed };
    let (started, begin, live) = (SystemTime::now(), Instant::now(), LiveLine::on_terminal());
    let judged = suite::run(&plan, stop, &mut |done, case| {
        live.show(&text::progress(done, cases.len(), case.number, begin.elapsed()));
    });
    live.clear();
    let duration_s = begin.elapsed().as_secs_f64();
    let demand = options.demand();
    let results: Vec<CaseResult> = judged
        .iter()
        .map(|judged| {
            let case = &cases[judged.at];
            let difference = expectations.difference(case.number, judged, demand);
            CaseResult::new(case, judged, difference)
        })
        .collect();
    let as_expected = results.iter().filter(|case| case.difference.is_none()).count();
    let is_whole = results.len() == cases.len();
    let results = Results {
        format: FORMAT,
        command: command_line(),
        agent: agent(options, &results, &tested),
        target: target.to_string(),
        is_quick: options.quick,
        cut_short: (!is_whole).then(|| ENDED_BY_SIGNAL.to_owned()),
        started_at_s: started.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64(),
        duration_s,
        suite: Tally::of(&cases, &results, false),
        own: Tally::of(&cases, &results, true),
        cases: results,
    };
    let mut problems = Problems::default();
    let page = text::page(&results, &cases, &how(options));
    problems.note_standard_output(output.write_all(page.as_bytes()).and_then(|()| output.flush()));
    if let (Some(file), Some(path)) = (json, &options.json) {
        problems.note(write(&file, &results).map_err(|error| cannot_write(path, &error)));
    }
    if let (Some(mut file), Some(path)) = (xml, &options.junit) {
        let written = file.write_all(junit::document(&results).as_bytes());
        problems.note(written.map_err(|error| cannot_write(path, &error)));
    }
    if let (Some(file), Some(path)) = (baseline, &options.write_expected) {
        let run: Vec<_> = judged.iter().map(|judged| (&cases[judged.at], judged)).collect();
        let lines = expected::baseline(&expectations, &run, demand);
        let text = text::baseline_header(&results) + &lines;
        problems.note(replace(file, &text).map_err(|error| cannot_write(path, &error)));
    }
    if let Some(directory) = &options.report {
        let written = report::write(directory, &results, &cases, &judged);
        problems.note(written.map_err(|error| cannot_write(directory, &error)));
    }
    problems.note(tested.survived());
    let outcome = problems.outcome(Ok(()));
    if as_expected < cases.len() { outcome.and(Err(Failure::Failed(Vec::new()))) } else { outcome }
}

/// The cases that the options choose.
fn selected(options: &Conform) -> Result<Vec<Case>, Failure> {
    let all: Vec<Case> =
        cases::every(options.volume()).into_iter().filter(Case::tests_servers).collect();
    for pattern in options.case.iter().chain(&options.exclude) {
        if !all.iter().any(|case| pattern.matches(case.number)) {
            return Err(Failure::Usage(format!(
                "no case for servers is {pattern}; there are sections 1 to 7, 9, 10, 12 and 13, and \
                 the own ones 20 and 22 to 25"
            )));
        }
    }
    let is_one = |patterns: &[Pattern], case: &Case| {
        patterns.iter().any(|pattern| pattern.matches(case.number))
    };
    let chosen = |case: &Case| {
        (options.case.is_empty() || is_one(&options.case, case)) && !is_one(&options.exclude, case)
    };
    let cases: Vec<Case> = all.into_iter().filter(chosen).collect();
    if cases.is_empty() {
        return Err(Failure::Usage("--exclude leaves no case".to_owned()));
    }
    Ok(cases)
}

fn expectations(options: &Conform) -> Result<Expectations, Failure> {
    let Some(path) = &options.expected else { return Ok(Expectations::default()) };
    let wrong = |error: &dyn std::fmt::Display| {
        Failure::Usage(format!("--expected {}: {error}", path.display()))
    };
    let text = fs::read_to_string(path).map_err(|error| wrong(&error))?;
    let expectations: Expectations = text.parse().map_err(|error: String| wrong(&error))?;
    let all = cases::every(options.volume());
    let missing = expectations.missing(|number| all.iter().any(|case| case.number == number));
    match missing.first() {
        Some(number) => Err(wrong(&format!("there is no case {number}"))),
        None => Ok(expectations),
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

/// The name of what was tested.
fn agent(options: &Conform, results: &[CaseResult], tested: &Tested) -> String {
    let given = options.agent.clone();
    let own = || results.iter().find_map(|case| server_name(&case.response)).map(str::to_owned);
    given.or_else(own).unwrap_or_else(|| tested.name().to_owned())
}

/// The command that tests the same server in the same way.
fn how(options: &Conform) -> String {
    let mut words = vec!["ringbench".to_owned(), "conform".to_owned()];
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

fn cannot_write(path: &Path, error: &io::Error) -> String {
    format!("cannot write {}: {error}", path.display())
}
