//! The suite as a library: choose cases, run them, look at the [`Report`]. The command
//! `ringbench conform` does nothing else.
//!
//! ```
//! use std::net::TcpListener;
//! use std::thread;
//!
//! use ringbench::conform::Suite;
//!
//! // What is tested: an echo server of the crate `tungstenite`.
//! let listener = TcpListener::bind("127.0.0.1:0")?;
//! let url = format!("ws://{}/", listener.local_addr()?);
//! thread::spawn(move || {
//!     for stream in listener.incoming().flatten() {
//!         thread::spawn(move || {
//!             let mut socket = tungstenite::accept(stream).ok()?;
//!             while let Ok(message) = socket.read() {
//!                 if message.is_text() || message.is_binary() {
//!                     socket.send(message).ok()?;
//!                 }
//!             }
//!             socket.flush().ok()
//!         });
//!     }
//! });
//!
//! let report = Suite::servers().cases("1.*,2.*")?.run(&url)?;
//! report.assert_as_expected();
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A client is tested by cases that are served to it. It opens a connection for each, to
//! `/runCase?case=N&agent=NAME`, and echoes what comes:
//!
//! ```no_run
//! # fn echo_everything(url: &str) {}
//! use ringbench::conform::Suite;
//!
//! let serving = Suite::clients().cases("1.*,2.*")?.serve("127.0.0.1:0")?;
//! for case in 1..=serving.cases() {
//!     echo_everything(&format!("{}/runCase?case={case}&agent=mine", serving.url()));
//! }
//! for report in serving.finish() {
//!     report.assert_as_expected();
//! }
//! # Ok::<(), ringbench::conform::SuiteError>(())
//! ```
//!
//! Nothing here needs a runtime: cases run on threads, and [`Suite::run`] returns when all are done.

use std::error::Error;
use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::path::Path;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anstream::adapter::strip_str;

use super::case::{Case, SECTION_TLS};
use super::cases::{self, Volume};
use super::deflate::Library;
use super::expected::{self, Expectations};
use super::number::Pattern;
use super::results::{CaseResult, FORMAT, Results, Tally, server_name};
use super::suite::{self, Judged, Plan};
use super::text::{Progress, View};
use super::verdict::Demand;
use super::{driver, junit, report, text};
use crate::opening::Opening;
use crate::problem::Problem;
use crate::stop::Stop;
use crate::target::Target;

/// Characters of the name that a server gives itself.
const AGENT_MAX: usize = 200;
/// How many cases run at a time if nothing else is said.
pub const JOBS: usize = 4;

/// What can be tested: [`Servers`] or [`Clients`](super::Clients).
pub trait Tested: Clone + fmt::Debug {
    /// The word for it, in the plural.
    const NAME: &'static str;
    /// Which sections have cases for it.
    const SECTIONS: &'static str;

    /// Whether a case tests it.
    fn is_tested_by(case: &Case) -> bool;
}

/// Servers are tested.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Servers {}

impl Tested for Servers {
    const NAME: &'static str = "servers";
    const SECTIONS: &'static str =
        "sections 1 to 7, 9, 10, 12 and 13, and the own ones 20 and 22 to 26";

    fn is_tested_by(case: &Case) -> bool {
        case.tests_servers()
    }
}

/// Which cases are run, and what is expected of them. Without further words: all cases, as many messages
/// as the Autobahn suite sends, and each case has to pass.
#[derive(Debug, Clone)]
pub struct Suite<T> {
    included: Vec<Pattern>,
    excluded: Vec<Pattern>,
    volume: Volume,
    demand: Demand,
    expectations: Expectations,
    agent: Option<String>,
    agent_otherwise: Option<String>,
    jobs: usize,
    seed: u64,
    is_over_tls: bool,
    /// What to keep in mind of the results.
    notes: Vec<String>,
    tested: PhantomData<T>,
}

/// Why cases could not be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SuiteError {
    /// What was asked for makes no sense: what is wrong, and what to write.
    Senseless(String),
    /// There is nothing to test: no server, or one that opens no connection.
    Unreachable(String),
}

impl fmt::Display for SuiteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SuiteError::Senseless(what) | SuiteError::Unreachable(what) => f.write_str(what),
        }
    }
}

impl Error for SuiteError {}

impl Suite<Servers> {
    /// The cases for servers.
    pub fn servers() -> Suite<Servers> {
        Suite::new()
    }

    /// Runs the cases against the server at `ws://HOST:PORT/PATH`, `wss://` likewise or `unix:/PATH`, which
    /// has to echo messages. Over TLS, section 26 is among them, and the system has to trust the server.
    ///
    /// # Errors
    ///
    /// When that is no such address, no case is left, or the server opens no connection. A case that
    /// fails is none: see [`Report::assert_as_expected`].
    pub fn run(&self, target: &str) -> Result<Report, SuiteError> {
        let target: Target = target.parse().map_err(SuiteError::Senseless)?;
        let stop = Stop::new().map_err(|error| SuiteError::Unreachable(error.to_string()))?;
        self.clone().over_tls(target.tls.is_some()).run_until(&target, &stop, &mut |_| {})
    }

    /// The same until the stop is requested. Calls `tell` after each case with how far the run is.
    ///
    /// # Errors
    ///
    /// As [`Suite::run`].
    pub fn run_until(
        &self,
        target: &Target,
        stop: &Stop,
        tell: &mut dyn FnMut(&Progress),
    ) -> Result<Report, SuiteError> {
        let cases = self.selected()?;
        if target.websocket.is_none() {
            let what = format!("{target} speaks no WebSocket; write ws:// or unix:/");
            return Err(SuiteError::Senseless(what));
        }
        let library = Library::default();
        self.check_that_it_answers(target, &library, stop)?;
        let plan =
            Plan { target, cases: &cases, library: &library, jobs: self.jobs, seed: self.seed };
        let (started, begin) = (SystemTime::now(), Instant::now());
        let mut different = 0;
        let judged = suite::run(&plan, stop, &mut |done, judged| {
            let number = cases[judged.at].number;
            let differs = self.expectations.difference(number, judged, self.demand).is_some();
            different += usize::from(differs);
            let (total, elapsed) = (cases.len(), begin.elapsed());
            tell(&Progress { done, different, total, last: number, elapsed });
        });
        let cut_short = match judged.len() == cases.len() {
            true => None,
            false if stop.is_requested() => Some("ended by a signal".to_owned()),
            false => suite::reason(&judged),
        };
        let results = self.results(&cases, &judged);
        // It goes to the terminal, and it may be anything.
        let shown = |name: &str| -> String {
            name.chars().filter(|c| !c.is_control()).take(AGENT_MAX).collect()
        };
        let own_name = || results.iter().find_map(|case| server_name(&case.response)).map(shown);
        let given = self.agent.clone().or_else(own_name).or_else(|| self.agent_otherwise.clone());
        let agent = given.unwrap_or_else(|| target.text.clone());
        let time = Time { started, duration_s: begin.elapsed().as_secs_f64() };
        let run = Run { agent, target: target.to_string(), time, cut_short };
        Ok(self.report(cases, judged, results, run))
    }

    /// Checks that there is a server that answers. Otherwise every case would say that there is none,
    /// some of them after minutes.
    fn check_that_it_answers(
        &self,
        target: &Target,
        library: &Library,
        stop: &Stop,
    ) -> Result<(), SuiteError> {
        match Opening::new(target, self.seed).open(stop) {
            Ok(_) => {}
            Err(Problem::Stopped) => return Ok(()),
            Err(problem) => return Err(SuiteError::Unreachable(format!("{target}: {problem}"))),
        }
        // A text message and the closing handshake.
        let mut first = cases::every(self.volume).into_iter().filter(|case| !case.is_timed());
        let Some(case) = first.next() else { return Ok(()) };
        let run = driver::run(&case, target, library, self.seed, stop);
        match run.is_some_and(|run| run.transcript.is_silent()) {
            true => Err(SuiteError::Unreachable(format!(
                "{target}: it opens connections, but sends neither an echo nor an answer to a close \
                 frame; check that it is an echo server"
            ))),
            false => Ok(()),
        }
    }
}

/// When cases were run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Time {
    pub(super) started: SystemTime,
    pub(super) duration_s: f64,
}

/// What was tested, and when.
#[derive(Debug, Clone)]
pub(super) struct Run {
    pub(super) agent: String,
    pub(super) target: String,
    pub(super) time: Time,
    /// Why not all cases were run, if so.
    pub(super) cut_short: Option<String>,
}

impl<T: Tested> Suite<T> {
    pub(super) fn new() -> Suite<T> {
        Suite {
            included: Vec::new(),
            excluded: Vec::new(),
            volume: Volume::Full,
            demand: Demand::Musts,
            expectations: Expectations::default(),
            agent: None,
            agent_otherwise: None,
            jobs: JOBS,
            seed: 1,
            is_over_tls: false,
            notes: Vec::new(),
            tested: PhantomData,
        }
    }

    /// Only these cases, beside those that were named before: `9.7.2`, `7.*`, or several with commas.
    ///
    /// # Errors
    ///
    /// When there is no such case.
    pub fn cases(self, patterns: &str) -> Result<Suite<T>, SuiteError> {
        self.including(&parsed(patterns)?)
    }

    /// Not these cases, in the same form.
    ///
    /// # Errors
    ///
    /// When there is no such case.
    pub fn without(self, patterns: &str) -> Result<Suite<T>, SuiteError> {
        self.excluding(&parsed(patterns)?)
    }

    /// As [`Suite::cases`].
    ///
    /// # Errors
    ///
    /// When there is no such case.
    pub fn including(mut self, patterns: &[Pattern]) -> Result<Suite<T>, SuiteError> {
        self.check(patterns)?;
        self.included.extend_from_slice(patterns);
        Ok(self)
    }

    /// As [`Suite::without`].
    ///
    /// # Errors
    ///
    /// When there is no such case.
    pub fn excluding(mut self, patterns: &[Pattern]) -> Result<Suite<T>, SuiteError> {
        self.check(patterns)?;
        self.excluded.extend_from_slice(patterns);
        Ok(self)
    }

    /// Fewer messages: a tenth in section 9, a twentieth in sections 12 and 13.
    pub fn quick(self) -> Suite<T> {
        Suite { volume: Volume::Quick, ..self }
    }

    /// NON-STRICT and FAILED BY CLIENT do not pass.
    pub fn strict(self) -> Suite<T> {
        Suite { demand: Demand::Strict, ..self }
    }

    /// Known failures, in the form of the file of `--expected` (see [`super::expected`]).
    ///
    /// # Errors
    ///
    /// When a line makes no sense, or there is no such case.
    pub fn expecting(self, text: &str) -> Result<Suite<T>, SuiteError> {
        let expectations: Expectations = text.parse().map_err(SuiteError::Senseless)?;
        let all = cases::with_tls(self.volume);
        let missing = expectations.missing(|number| all.iter().any(|case| case.number == number));
        match missing.first() {
            Some(number) => Err(SuiteError::Senseless(format!("there is no case {number}"))),
            None => Ok(Suite { expectations, ..self }),
        }
    }

    /// The name of what is tested, in reports.
    pub fn agent(self, name: impl Into<String>) -> Suite<T> {
        Suite { agent: Some(name.into()), ..self }
    }

    /// Its name if it does not say itself who it is: the address.
    pub fn agent_otherwise(self, name: impl Into<String>) -> Suite<T> {
        Suite { agent_otherwise: Some(name.into()), ..self }
    }

    /// How many cases run at a time: [`JOBS`].
    pub fn jobs(self, jobs: usize) -> Suite<T> {
        Suite { jobs: jobs.max(1), ..self }
    }

    /// Whether connections are over TLS, so that section 26 is of use.
    pub fn over_tls(self, is_over_tls: bool) -> Suite<T> {
        Suite { is_over_tls, ..self }
    }

    /// A sentence that the results say.
    pub fn noting(mut self, note: impl Into<String>) -> Suite<T> {
        self.notes.push(note.into());
        self
    }

    /// The seed of masking keys: 1.
    pub fn seed(self, seed: u64) -> Suite<T> {
        Suite { seed, ..self }
    }

    /// The cases that are run, in the order of their numbers.
    ///
    /// # Errors
    ///
    /// When none is left.
    pub fn selected(&self) -> Result<Vec<Case>, SuiteError> {
        let is_one = |patterns: &[Pattern], case: &Case| {
            patterns.iter().any(|pattern| pattern.matches(case.number))
        };
        let is_selected = |case: &Case| {
            T::is_tested_by(case)
                && (self.is_over_tls || !case.needs_tls())
                && (self.included.is_empty() || is_one(&self.included, case))
                && !is_one(&self.excluded, case)
        };
        let all = cases::with_tls(self.volume).into_iter();
        let cases: Vec<Case> = all.filter(is_selected).collect();
        match cases.is_empty() {
            true if !self.is_over_tls => Err(SuiteError::Senseless(format!(
                "what is excluded leaves no case; those of section {SECTION_TLS} are about TLS, and need \
                 wss://"
            ))),
            true => Err(SuiteError::Senseless("what is excluded leaves no case".to_owned())),
            false => Ok(cases),
        }
    }

    /// The text of a file of known failures, as [`Suite::expecting`] reads it: what does not pass in this
    /// report, and what was expected before of cases that it does not have.
    pub fn baseline(&self, report: &Report) -> String {
        let Report { results, cases, judged } = report;
        let run: Vec<_> = judged.iter().map(|judged| (&cases[judged.at], judged)).collect();
        let lines = expected::baseline(&self.expectations, &run, self.demand);
        text::baseline_header(results) + &lines
    }

    /// The seed for the case at this place.
    pub(super) fn seed_of(&self, at: usize) -> u64 {
        self.seed.wrapping_add(at as u64)
    }

    fn check(&self, patterns: &[Pattern]) -> Result<(), SuiteError> {
        let all: Vec<Case> =
            cases::with_tls(self.volume).into_iter().filter(T::is_tested_by).collect();
        let is_none = |pattern: &&Pattern| !all.iter().any(|case| pattern.matches(case.number));
        match patterns.iter().find(is_none) {
            Some(pattern) => Err(SuiteError::Senseless(format!(
                "no case for {} is {pattern}; there are {}",
                T::NAME,
                T::SECTIONS
            ))),
            None => Ok(()),
        }
    }

    pub(super) fn results(&self, cases: &[Case], judged: &[Judged]) -> Vec<CaseResult> {
        let result = |judged: &Judged| {
            let case = &cases[judged.at];
            let difference = self.expectations.difference(case.number, judged, self.demand);
            CaseResult::new(case, judged, difference)
        };
        judged.iter().map(result).collect()
    }

    pub(super) fn report(
        &self,
        cases: Vec<Case>,
        judged: Vec<Judged>,
        results: Vec<CaseResult>,
        run: Run,
    ) -> Report {
        let Run { agent, target, time, cut_short } = run;
        let results = Results {
            format: FORMAT,
            command: Vec::new(),
            agent,
            target,
            is_quick: self.volume == Volume::Quick,
            cut_short,
            notes: self.notes.clone(),
            started_at_s: time.started.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64(),
            duration_s: time.duration_s,
            suite: Tally::of(&cases, &results, false),
            own: Tally::of(&cases, &results, true),
            cases: results,
        };
        Report { results, cases, judged }
    }
}

fn parsed(patterns: &str) -> Result<Vec<Pattern>, SuiteError> {
    patterns
        .split(',')
        .map(|pattern| pattern.trim().parse())
        .collect::<Result<_, String>>()
        .map_err(SuiteError::Senseless)
}

/// What came of the cases. Its text is what `ringbench conform` prints.
#[derive(Debug)]
pub struct Report {
    /// Everything that is known, as it is written to JSON.
    pub results: Results,
    /// The cases that were to be run.
    pub cases: Vec<Case>,
    /// Those that were run, in the same order.
    pub judged: Vec<Judged>,
}

impl Report {
    /// Whether all cases were run and each came out as expected.
    pub fn is_as_expected(&self) -> bool {
        let Results { suite, own, .. } = &self.results;
        [suite, own].iter().all(|tally| tally.as_expected == tally.cases)
    }

    /// The cases that came out otherwise.
    pub fn unexpected(&self) -> impl Iterator<Item = &CaseResult> {
        self.results.cases.iter().filter(|case| case.difference.is_some())
    }

    /// # Panics
    ///
    /// Unless all cases were run and each came out as expected; with the text of the report.
    #[track_caller]
    pub fn assert_as_expected(&self) {
        assert!(self.is_as_expected(), "not every case is as expected\n{self}");
    }

    /// The table by section, and everything that is not as expected. `how` is the command that runs some
    /// of the cases, without naming them.
    pub fn text(&self, how: &str) -> String {
        let text = self.styled(&View { how, columns: None });
        strip_str(&text).to_string()
    }

    /// The same with colours, as ANSI escape sequences.
    pub fn styled(&self, view: &View<'_>) -> String {
        text::page(&self.results, &self.cases, view)
    }

    /// The report as JUnit XML, which CI systems show.
    pub fn junit(&self) -> String {
        junit::document(&[&self.results])
    }

    /// Writes the pages and JSON files of the Autobahn suite into a directory. Those of other agents in
    /// it stay.
    ///
    /// # Errors
    ///
    /// When something cannot be written, or the index that is there is not one.
    pub fn write(&self, directory: &Path) -> io::Result<()> {
        report::write(directory, &self.results, &self.cases, &self.judged)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text(&format!("ringbench conform {}", self.results.target)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(suite: &Suite<Servers>) -> Vec<String> {
        let cases = suite.selected().expect("cases");
        cases.iter().map(|case| case.number.to_string()).collect()
    }

    #[test]
    fn cases_are_chosen_and_left_out() {
        let suite = Suite::servers().cases("7.3.*, 1.1.1").expect("cases");
        let suite = suite.without("7.3.2,7.3.4").expect("cases").cases("2.2").expect("a case");
        assert_eq!(numbers(&suite), ["1.1.1", "2.2", "7.3.1", "7.3.3", "7.3.5", "7.3.6"]);
        assert_eq!(
            Suite::servers().without("20,22,23,24,25").map(|it| numbers(&it).len()),
            Ok(517)
        );
    }

    #[test]
    fn cases_about_tls_are_run_over_tls_only() {
        let count = |suite: Suite<Servers>| numbers(&suite).len();
        let plain = count(Suite::servers());
        let tls = count(Suite::servers().over_tls(true)) - plain;
        assert!(tls > 10, "{tls}");
        let excluded = Suite::servers().without("26").expect("a section");
        assert_eq!(count(excluded.clone().over_tls(true)), count(excluded));
        match Suite::servers().cases("26").expect("a section").selected() {
            Err(SuiteError::Senseless(said)) => assert!(said.contains("wss://"), "{said}"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let senseless = |suite: Result<Suite<Servers>, SuiteError>, what: &str| match suite {
            Err(SuiteError::Senseless(said)) => assert!(said.contains(what), "{said}"),
            other => panic!("{other:?}"),
        };
        senseless(Suite::servers().cases("8.*"), "no case for servers is 8");
        senseless(Suite::servers().cases("21.1.1"), "no case for servers is 21.1.1");
        senseless(Suite::servers().without("1.x"), "7.*");
        senseless(Suite::servers().expecting("8.1 OK OK"), "there is no case 8.1");
        senseless(Suite::servers().expecting("1.1.1 OK"), "line 1");
        let nothing = Suite::servers().without("*").expect("all cases").selected();
        assert!(matches!(nothing, Err(SuiteError::Senseless(_))), "{nothing:?}");
        let unreachable = Suite::servers().run("ws://127.0.0.1:1");
        assert!(matches!(unreachable, Err(SuiteError::Unreachable(_))), "{unreachable:?}");
        for target in ["127.0.0.1:1", "tcp://127.0.0.1:1"] {
            let no_address = Suite::servers().run(target).expect_err(target);
            assert!(matches!(no_address, SuiteError::Senseless(_)), "{no_address:?}");
        }
    }
}
