//! The suite as a server, which tests clients. Clients ask for cases by the protocol of the Autobahn
//! suite, so programs that run a client through that suite run it through this one:
//!
//! | request | answer |
//! |---|---|
//! | `/getCaseCount` | a text message with the number of cases |
//! | `/getCaseInfo?case=N` | a text message: `{"id": "1.1.1", "description": "…"}` |
//! | `/runCase?case=N&agent=A` | case N, counted from 1, in which the client has to echo |
//! | `/getCaseStatus?case=N&agent=A` | a text message: `{"behavior": "OK", "behaviorClose": "OK"}` |
//! | `/updateReports?agent=A` | a close frame, once reports are written |
//!
//! Each is a WebSocket connection, which this side closes. Whatever else comes is refused with a status and
//! a sentence. The request of a case has to be in order, too: if it is not, the case has failed.
//!
//! Every connection has a thread, and every wait a deadline: for the request, for each step of a case, for
//! the end of the connection. There are at most [`CONNECTIONS_MAX`] connections; further ones wait.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ringecho::listen::Address;
use ringecho::protocol::Acceptor;
use rustix::event::PollFlags;
use serde_json::json;

use super::agents::Agents;
use super::api::{Report, Run as Tried, Suite, SuiteError, Tested, Time};
use super::case::{Case, Step as CaseStep};
use super::cases;
use super::deflate::Library;
use super::driver::{self, Asked};
use super::exchange::{Exchange, Opened, Role};
use super::head;
use super::request::{Request, Wrong};
use super::suite::Judged;
use super::verdict::{Verdict, judge};
use crate::opening::HANDSHAKE_TIMEOUT;
use crate::problem::{Problem, Step};
use crate::socket::{Deadline, Listener, Stream, is_transient};
use crate::stop::Stop;

/// The most connections at a time.
pub const CONNECTIONS_MAX: usize = 256;
/// The longest name of an agent, in bytes.
const NAME_BYTES_MAX: usize = 200;
/// How long a client may take to end a connection that this side has ended.
const LINGER: Duration = Duration::from_secs(1);
/// How long to wait before accepting again when there are too many connections or no descriptors.
const PAUSE: Duration = Duration::from_millis(20);
/// How long to wait for the verdict on a case that is running; no case takes longer.
const VERDICT_TIMEOUT: Duration = Duration::from_secs(600);

/// Clients are tested.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clients {}

impl Tested for Clients {
    const NAME: &'static str = "clients";
    const SECTIONS: &'static str = "sections 1 to 7, 9, 10, 12 and 13, and the own ones 21 to 26";

    fn is_tested_by(case: &Case) -> bool {
        case.tests_clients()
    }
}

/// What happens while clients are tested.
#[derive(Debug)]
pub enum News<'a> {
    /// A case was run.
    Judged {
        /// By whom.
        agent: &'a str,
        /// The case.
        case: &'a Case,
        /// What came of it.
        verdict: &'a Verdict,
        /// Of how many cases of this agent that is known now.
        done: usize,
    },
    /// A client asks for reports. These are those of all agents; it waits until they are written.
    ReportsWanted(&'a [Report]),
}

/// Who is told the news, on the thread of a connection.
pub type Listening = Box<dyn Fn(News<'_>) + Send + Sync>;

impl Suite<Clients> {
    /// The cases for clients.
    pub fn clients() -> Suite<Clients> {
        Suite::new()
    }

    /// Serves the cases at `ADDRESS:PORT`, where port 0 is a free one, or `unix:/PATH`.
    ///
    /// # Errors
    ///
    /// When that is no such address, it cannot be listened on, or no case is left.
    pub fn serve(&self, address: &str) -> Result<Serving, SuiteError> {
        let wrong = |error: &dyn fmt::Display| SuiteError::Senseless(error.to_string());
        let address: Address = address.parse().map_err(|error| wrong(&error))?;
        let stop = Stop::new().map_err(|error| SuiteError::Unreachable(error.to_string()))?;
        self.serve_until(&address, Until::Stopped, &stop, Box::new(|_| {}))
    }

    /// The same until the stop is requested, or what `until` says. Whoever listens is told the news.
    ///
    /// # Errors
    ///
    /// As [`Suite::serve`].
    pub fn serve_until(
        &self,
        address: &Address,
        until: Until,
        stop: &Stop,
        listening: Listening,
    ) -> Result<Serving, SuiteError> {
        self.serve_through(address, None, until, stop, listening)
    }

    /// The same through a layer, such as TLS, that `acceptor` makes for each connection.
    ///
    /// # Errors
    ///
    /// As [`Suite::serve`].
    pub fn serve_through(
        &self,
        address: &Address,
        acceptor: Option<Arc<dyn Acceptor>>,
        until: Until,
        stop: &Stop,
        listening: Listening,
    ) -> Result<Serving, SuiteError> {
        let suite = self.clone().over_tls(acceptor.is_some());
        let cases = suite.selected()?;
        let unreachable = |error: &dyn fmt::Display| SuiteError::Unreachable(error.to_string());
        let listener = Listener::open(address).map_err(|error| unreachable(&error))?;
        let url = match listener.address() {
            Address::Tcp(address) if acceptor.is_some() => format!("wss://{address}"),
            Address::Tcp(address) => format!("ws://{address}"),
            Address::Unix(path) => format!("unix:{}", path.display()),
        };
        let service = Arc::new(Service {
            suite,
            acceptor,
            cases,
            url,
            library: Library::default(),
            agents: Agents::default(),
            until,
            stop: stop.clone(),
            listening,
        });
        let accepting = Arc::clone(&service);
        let named = thread::Builder::new().name("accept".to_owned());
        let thread = named.spawn(move || accepting.accept(&listener));
        let thread = Some(thread.map_err(|error| unreachable(&error))?);
        Ok(Serving { service, thread })
    }
}

/// When clients are no longer served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// When the stop is requested.
    Stopped,
    /// Also when the first client has asked for reports and has its answer.
    Reported,
}

/// Cases that are being served, until this value is dropped.
#[derive(Debug)]
pub struct Serving {
    service: Arc<Service>,
    /// The thread that accepts connections, until it was waited for.
    thread: Option<JoinHandle<()>>,
}

impl Serving {
    /// Where clients find the cases, `ws://ADDRESS:PORT` or `unix:/PATH`. What they ask for follows it.
    pub fn url(&self) -> &str {
        &self.service.url
    }

    /// How many cases there are.
    pub fn cases(&self) -> usize {
        self.service.cases.len()
    }

    /// The reports of all clients that have finished a case, by name.
    pub fn reports(&self) -> Vec<Report> {
        self.service.reports()
    }

    /// Waits until clients are no longer served, and returns their reports.
    ///
    /// # Panics
    ///
    /// When a thread that serves has panicked.
    pub fn wait(mut self) -> Vec<Report> {
        if let Some(thread) = self.thread.take() {
            thread.join().expect("no thread that serves panics");
        }
        self.reports()
    }

    /// Ends the service, and with it the connections that are still open; returns the reports.
    pub fn finish(self) -> Vec<Report> {
        self.service.stop.request();
        self.wait()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.service.stop.request();
        }
    }
}

/// What the threads share.
struct Service {
    suite: Suite<Clients>,
    /// Makes what is between the cases and the socket, if anything is.
    acceptor: Option<Arc<dyn Acceptor>>,
    cases: Vec<Case>,
    url: String,
    library: Library,
    agents: Agents,
    until: Until,
    stop: Stop,
    listening: Listening,
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service").field("url", &self.url).finish_non_exhaustive()
    }
}

/// What a client asks for. Cases are told by their place.
#[derive(Debug, PartialEq, Eq)]
enum Question {
    Count,
    Info(usize),
    Run(String, usize),
    Status(String, usize),
    Update,
}

impl Service {
    /// Accepts connections until the stop is requested and they have all ended.
    fn accept(&self, listener: &Listener) {
        let open = AtomicUsize::new(0);
        thread::scope(|scope| {
            while !self.stop.is_requested() {
                if open.load(Ordering::Acquire) == CONNECTIONS_MAX {
                    thread::sleep(PAUSE);
                    continue;
                }
                let stream = match listener.accept(&self.stop) {
                    Ok(Some(stream)) => stream,
                    Ok(None) => continue,
                    Err(_) => {
                        thread::sleep(PAUSE);
                        continue;
                    }
                };
                open.fetch_add(1, Ordering::AcqRel);
                let open = &open;
                scope.spawn(move || {
                    self.connection(stream);
                    open.fetch_sub(1, Ordering::AcqRel);
                });
            }
        });
    }

    fn connection(&self, mut stream: Stream) {
        if let Some(acceptor) = &self.acceptor {
            let mut deadline = Deadline::new(Step::Tls, HANDSHAKE_TIMEOUT, &self.stop);
            if stream.secure_accepted(acceptor.accept(), &mut deadline).is_err() {
                return;
            }
        }
        let Some(received) = self.receive(&mut stream) else { return };
        let asked = received.and_then(|(request, bytes)| {
            let question = self.question(&request)?;
            Ok((question, request, bytes))
        });
        match asked {
            Ok((Question::Run(agent, at), request, bytes)) => {
                self.run(&mut stream, &agent, at, (&request, &bytes));
            }
            Ok((question, request, bytes)) => match in_order(&request, &bytes) {
                Ok(()) => self.answer(&mut stream, &request, &question),
                Err(wrong) => self.refuse(&mut stream, &wrong),
            },
            Err(wrong) => self.refuse(&mut stream, &wrong),
        }
    }

    /// The request and all bytes that came with it; nothing if the client has gone or the stop is
    /// requested.
    fn receive(&self, stream: &mut Stream) -> Option<Result<(Request, Vec<u8>), Wrong>> {
        let mut deadline = Deadline::new(Step::Handshake, HANDSHAKE_TIMEOUT, &self.stop);
        let (mut received, mut room) = (Vec::new(), [0; 4096]);
        loop {
            match stream.wait(PollFlags::IN, &mut deadline) {
                Ok(_) => {}
                Err(Problem::TimedOut(..)) => {
                    let what = "The request was not complete in time.".to_owned();
                    return Some(Err(Wrong { status: 408, what }));
                }
                Err(_) => return None,
            }
            match stream.receive(&mut room) {
                Ok(0) => return None,
                Ok(count) => received.extend_from_slice(&room[..count]),
                Err(error) if is_transient(&error) => continue,
                Err(_) => return None,
            }
            match Request::parse(&received) {
                Ok(Some(request)) => return Some(Ok((request, received))),
                Ok(None) => {}
                Err(wrong) => return Some(Err(wrong)),
            }
        }
    }

    fn question(&self, request: &Request) -> Result<Question, Wrong> {
        let refused = |status, what: String| Wrong { status, what };
        let case = || -> Result<usize, Wrong> {
            let (given, last) = (request.parameter("case").unwrap_or_default(), self.cases.len());
            match given.parse::<usize>() {
                Ok(number @ 1..) if number <= last => Ok(number - 1),
                Ok(_) => {
                    let what = format!("There is no case {given}; they go from 1 to {last}.");
                    Err(refused(404, what))
                }
                Err(_) => Err(refused(400, format!("Write case=N, with N from 1 to {last}."))),
            }
        };
        let agent = || -> Result<String, Wrong> {
            let name = request.parameter("agent").unwrap_or_default();
            let is_name = !name.trim().is_empty() && !name.contains(char::is_control);
            match is_name && name.len() <= NAME_BYTES_MAX {
                true => Ok(name),
                false => {
                    let what = "Write agent=NAME, the name of what is tested.".to_owned();
                    Err(refused(400, what))
                }
            }
        };
        match request.path() {
            "/getCaseCount" => Ok(Question::Count),
            "/getCaseInfo" => Ok(Question::Info(case()?)),
            "/runCase" => Ok(Question::Run(agent()?, case()?)),
            "/getCaseStatus" => Ok(Question::Status(agent()?, case()?)),
            "/updateReports" => Ok(Question::Update),
            path => Err(refused(
                404,
                format!(
                    "There is no {path}. This is ringbench conform, which tests WebSocket clients; they \
                     ask for /getCaseCount, /getCaseInfo?case=N, /runCase?case=N&agent=NAME, \
                     /getCaseStatus?case=N&agent=NAME and /updateReports?agent=NAME."
                ),
            )),
        }
    }

    /// Runs the case at this place, and notes what came of it.
    fn run(
        &self,
        stream: &mut Stream,
        agent: &str,
        at: usize,
        (request, bytes): (&Request, &[u8]),
    ) {
        if self.agents.begin(agent, at).is_err() {
            let what = "There are too many agents already.".to_owned();
            return self.refuse(stream, &Wrong { status: 503, what });
        }
        let case = &self.cases[at];
        let head = &bytes[..request.bytes];
        let run = match in_order(request, bytes) {
            Ok(()) => {
                let (key, offers) = (request.key(), &request.offers()[..]);
                let seed = self.suite.seed_of(at);
                driver::answer(
                    case,
                    &Asked { key, head, offers, seed },
                    stream,
                    &self.library,
                    &self.stop,
                )
            }
            Err(wrong) => {
                let response = refusal(&wrong);
                driver::refuse(case, head, (wrong.what, response), stream, &self.stop)
            }
        };
        let judged = run.map(|run| {
            let verdict = judge(case, &run.transcript);
            Judged { at, run, verdict }
        });
        let verdict = judged.as_ref().map(|judged| judged.verdict.clone());
        let done = self.agents.end(agent, at, judged);
        if let Some(verdict) = &verdict {
            (self.listening)(News::Judged { agent, case, verdict, done });
        }
        // A reset is none if the connection has ended before it.
        if !case.script.contains(&CaseStep::Reset) {
            self.end(stream);
        }
    }

    /// Answers a question, except for a case.
    fn answer(&self, stream: &mut Stream, request: &Request, question: &Question) {
        let text = match question {
            Question::Count => Some(self.cases.len().to_string()),
            Question::Info(at) => {
                let Case { number, description, .. } = &self.cases[*at];
                Some(json!({"id": number, "description": description}).to_string())
            }
            Question::Status(agent, at) => {
                let begin = Instant::now();
                let goes_on = || !self.stop.is_requested() && begin.elapsed() < VERDICT_TIMEOUT;
                let Some(verdict) = self.agents.verdict(agent, *at, goes_on) else {
                    let what = format!("{agent} has not run case {}.", at + 1);
                    return self.refuse(stream, &Wrong { status: 404, what });
                };
                let Verdict { behavior, behavior_close, .. } = verdict;
                let status = json!({"behavior": behavior, "behaviorClose": behavior_close});
                Some(status.to_string())
            }
            Question::Update => {
                (self.listening)(News::ReportsWanted(&self.reports()));
                None
            }
            Question::Run(..) => unreachable!("it is no question of this kind"),
        };
        self.say(stream, request, text.as_deref());
        if *question == Question::Update && self.until == Until::Reported {
            self.stop.request();
        }
    }

    /// Opens a connection, sends a message if there is one, and closes it.
    fn say(&self, stream: &mut Stream, request: &Request, text: Option<&str>) {
        let now = Instant::now();
        let response = head::accepting(request.key(), None);
        if driver::send_all(stream, &response, now + HANDSHAKE_TIMEOUT, &self.stop) {
            let case = cases::saying(text);
            let opened = Opened { role: Role::Server, terms: None, received: &[], seed: 0 };
            let mut exchange = Exchange::new(&case, &self.library, opened, Instant::now());
            driver::drive(&mut exchange, stream, &self.stop);
            self.end(stream);
        }
    }

    /// Answers a request that is not accepted.
    fn refuse(&self, stream: &mut Stream, wrong: &Wrong) {
        let until = Instant::now() + HANDSHAKE_TIMEOUT;
        if driver::send_all(stream, &refusal(wrong), until, &self.stop) {
            self.end(stream);
        }
    }

    /// Ends a connection, and waits a moment for the client to do so. Otherwise a reset would answer
    /// what it is still sending, and could overtake the last frames.
    fn end(&self, stream: &mut Stream) {
        let mut deadline = Deadline::new(Step::Close, LINGER, &self.stop);
        let mut room = [0; 4096];
        if stream.end().is_err() {
            return;
        }
        while stream.wait(PollFlags::IN, &mut deadline).is_ok() {
            match stream.receive(&mut room) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if is_transient(&error) => {}
                Err(_) => return,
            }
        }
    }

    fn reports(&self) -> Vec<Report> {
        let all = self.agents.all();
        all.into_iter()
            .map(|(agent, known)| {
                let (cases, judged) = (self.cases.clone(), known.judged());
                let results = self.suite.results(&cases, &judged);
                let is_whole = judged.len() == cases.len();
                let cut_short = "the client has not run all cases".to_owned();
                let time =
                    Time { started: known.started, duration_s: known.duration.as_secs_f64() };
                let target = self.url.clone();
                let tried =
                    Tried { agent, target, time, cut_short: (!is_whole).then_some(cut_short) };
                self.suite.report(cases, judged, results, tried)
            })
            .collect()
    }
}

/// Checks a request by what a client has to send, and that nothing came behind it.
fn in_order(request: &Request, bytes: &[u8]) -> Result<(), Wrong> {
    request.check()?;
    // RFC 6455 section 4.1: the client waits for the response before it sends anything else.
    match bytes.len() - request.bytes {
        0 => Ok(()),
        behind => {
            let what = format!("{behind} bytes came before the response was sent.");
            Err(Wrong { status: 400, what })
        }
    }
}

/// The response that refuses a request.
fn refusal(wrong: &Wrong) -> Vec<u8> {
    let Wrong { status, what } = wrong;
    let (reason, fields) = match status {
        400 => ("Bad Request", ""),
        404 => ("Not Found", ""),
        405 => ("Method Not Allowed", "Allow: GET\r\n"),
        408 => ("Request Timeout", ""),
        // RFC 9110 section 15.5.22, RFC 6455 section 4.4.
        426 => ("Upgrade Required", "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"),
        431 => ("Request Header Fields Too Large", ""),
        503 => ("Service Unavailable", ""),
        505 => ("HTTP Version Not Supported", ""),
        _ => ("Refused", ""),
    };
    let connection = if *status == 426 { "Upgrade, close" } else { "close" };
    format!(
        "HTTP/1.1 {status} {reason}\r\n{fields}Connection: {connection}\r\n\
         Content-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n\r\n{what}\n",
        what.len() + 1
    )
    .into_bytes()
}
