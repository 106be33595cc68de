//! The conformance suite as a server, for clients: a client that is right, one with each fault, and
//! others that ask for what is not there.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use ringbench::conform::case::Limit;
use ringbench::conform::serving::CONNECTIONS_MAX;
use ringbench::conform::{
    Behavior, BehaviorClose, Case, Clients, Demand, Number, Report, Serving, Suite,
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use testkit::mutant::{self, Fault, Role, run_cases};
use testkit::{Ended, TIMEOUT, end, spawn};

/// How many of the cases that must notice a fault are run.
const CASES_MAX: usize = 6;
/// The longest time that one of them may wait for what does not come, if there are others.
const LIMIT_MAX: Duration = Duration::from_secs(10);

fn serving(suite: &Suite<Clients>) -> Serving {
    suite.serve("127.0.0.1:0").expect("a free port")
}

/// The report of the only client.
fn only(mut reports: Vec<Report>) -> Report {
    assert_eq!(reports.len(), 1);
    reports.remove(0)
}

/// The verdicts on a client with these faults, by case.
fn verdicts(
    suite: &Suite<Clients>,
    faults: &[Fault],
) -> BTreeMap<Number, (Behavior, BehaviorClose)> {
    let serving = serving(suite);
    run_cases(serving.url(), "mutant", &mutant::Behavior::with(faults)).expect("it runs");
    let report = only(serving.finish());
    report.results.cases.iter().map(|it| (it.case, (it.behavior, it.behavior_close))).collect()
}

/// Cases of sections 12 and 13 of each kind, and what else is short.
fn short() -> Suite<Clients> {
    let suite = Suite::clients().quick().without("12,13").expect("sections");
    suite.without("9.1.6,9.2.6,9.3.*,9.4.*,9.5.1,9.6.1").expect("long cases")
}

#[test]
fn a_client_that_is_right_passes_every_case_strictly() {
    let compressed =
        "12.1.1,12.2.4,12.3.11,12.4.6,12.5.10,13.1.1,13.2.5,13.3.4,13.4.16,13.5.6,13.6.1,13.7.7";
    let compressed = Suite::clients().quick().cases(compressed).expect("cases");
    for suite in [short().strict(), compressed.strict()] {
        let serving = serving(&suite);
        let right = mutant::Behavior::with(&[]);
        let statuses = run_cases(serving.url(), "a%20client", &right).expect("it runs");
        assert_eq!(statuses.len(), serving.cases());
        let report = only(serving.finish());
        report.assert_as_expected();
        assert_eq!(report.results.agent, "a client");
        let said =
            |at: usize| -> Value { serde_json::from_str(&statuses[at].message).expect("JSON") };
        for (at, case) in report.results.cases.iter().enumerate() {
            assert_eq!(statuses[at].case as usize, at + 1);
            assert_eq!(said(at)["behavior"], case.behavior.to_string(), "{}", case.case);
            assert_eq!(said(at)["behaviorClose"], case.behavior_close.to_string(), "{}", case.case);
            assert!(case.closing.is_server, "{}", case.case);
            let is_open = matches!(case.behavior, Behavior::Ok | Behavior::Informational);
            assert!(is_open, "{}: {} {}", case.case, case.behavior, case.result);
            assert!(case.request.starts_with("GET /runCase?case="), "{}", case.request);
        }
    }
}

/// The cases that must notice a fault: a few of them, evenly chosen, without those that may wait long for
/// what does not come. If there are no others, the one that waits the shortest.
fn noticing(fault: Fault, cases: &[Case]) -> Vec<String> {
    let limit = |case: &Case| {
        let (Limit::Fail(limit) | Limit::Close(limit)) = case.limit;
        limit
    };
    let mut all: Vec<&Case> =
        cases.iter().filter(|case| fault.is_noticed_by(&case.number.to_string())).collect();
    all.sort_by_key(|case| limit(case));
    let short = all.iter().filter(|case| limit(case) <= LIMIT_MAX).count();
    all.truncate(short.max(1));
    all.sort_by_key(|case| case.number);
    let step = all.len().div_ceil(CASES_MAX).max(1);
    all.into_iter().step_by(step).map(|case| case.number.to_string()).collect()
}

#[test]
fn every_fault_of_a_client_is_noticed() {
    let every = Suite::clients().quick().selected().expect("cases");
    let faults = Fault::ALL.iter().filter(|it| it.fits(Role::Client) && !it.is_legal());
    let trials: Vec<(Fault, Vec<String>)> = faults
        .map(|fault| (*fault, noticing(*fault, &every)))
        .filter(|(_, cases)| !cases.is_empty())
        .collect();
    assert!(trials.len() > 40, "{}", trials.len());
    let suite = |cases: &[String]| {
        Suite::clients().quick().cases(&cases.join(",")).expect("there are such cases")
    };
    let all: BTreeSet<String> = trials.iter().flat_map(|(_, cases)| cases).cloned().collect();
    let right = verdicts(&suite(&all.into_iter().collect::<Vec<_>>()), &[]);
    let unnoticed = |(fault, cases): &(Fault, Vec<String>)| -> Vec<String> {
        let wrong = verdicts(&suite(cases), &[*fault]);
        assert_eq!(wrong.len(), cases.len(), "{fault}");
        let same = wrong.into_iter().filter(|(number, verdict)| right.get(number) == Some(verdict));
        same.map(|(number, verdict)| format!("{fault}: {number} {verdict:?}")).collect()
    };
    // Most of the time is spent waiting for what does not come.
    let next = AtomicUsize::new(0);
    let found: Vec<String> = thread::scope(|scope| {
        let work = || {
            let trials = std::iter::from_fn(|| trials.get(next.fetch_add(1, Ordering::Relaxed)));
            trials.flat_map(unnoticed).collect::<Vec<String>>()
        };
        let workers: Vec<_> = (0..16).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("no panic")).collect()
    });
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn what_is_rare_and_right_is_not_held_against_a_client() {
    let rare = Fault::ALL.iter().filter(|it| it.fits(Role::Client) && it.is_legal());
    let suite = Suite::clients().quick().cases("1,2,5,6.2,7.1,12.1.1,13.1.1,21").expect("cases");
    for fault in rare {
        let serving = serving(&suite);
        let behavior = mutant::Behavior::with(&[*fault]);
        run_cases(serving.url(), fault.name(), &behavior).expect("it runs");
        let report = only(serving.finish());
        report.assert_as_expected();
        for case in &report.results.cases {
            let is_compressed = matches!(case.case.section(), 12 | 13);
            let is_declined = case.behavior == Behavior::Unimplemented;
            assert_eq!(is_declined, is_compressed && *fault == Fault::NoDeflate, "{}", case.case);
        }
    }
}

/// What the server answers to these bytes, until it ends the connection.
fn answer(address: &str, request: &str) -> String {
    let address: SocketAddr = address.parse().expect("an address");
    let mut stream = TcpStream::connect(address).expect("a listener");
    stream.set_read_timeout(Some(TIMEOUT)).expect("an option");
    stream.write_all(request.as_bytes()).expect("it is read");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("an end and not a reset");
    String::from_utf8_lossy(&answer).into_owned()
}

fn asking(target: &str) -> String {
    format!(
        "GET {target} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
}

#[test]
fn whatever_else_comes_is_answered_clearly() {
    let serving = serving(&Suite::clients().cases("1.1.1,2.1").expect("cases"));
    let address = serving.url().strip_prefix("ws://").expect("TCP");
    let plain = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_owned();
    let count = "GET /getCaseCount HTTP/1.1\r\nHost: localhost\r\n\r\n".to_owned();
    for (request, line, said) in [
        (plain, "HTTP/1.1 404 ", "ringbench conform"),
        (count, "HTTP/1.1 426 ", "Upgrade does not name websocket."),
        (asking("/nothing?case=1&agent=a"), "HTTP/1.1 404 ", "There is no /nothing."),
        (asking("/runCase?case=3&agent=a"), "HTTP/1.1 404 ", "they go from 1 to 2"),
        (asking("/runCase?case=0&agent=a"), "HTTP/1.1 404 ", "no case 0"),
        (asking("/runCase?case=1.1.1&agent=a"), "HTTP/1.1 400 ", "case=N"),
        (asking("/runCase?agent=a"), "HTTP/1.1 400 ", "case=N"),
        (asking("/runCase?case=1"), "HTTP/1.1 400 ", "agent=NAME"),
        (asking("/runCase?case=1&agent=%00"), "HTTP/1.1 400 ", "agent=NAME"),
        (asking(&format!("/runCase?case=1&agent={}", "a".repeat(201))), "HTTP/1.1 400 ", "agent"),
        (asking("/getCaseInfo?case=9"), "HTTP/1.1 404 ", "no case 9"),
        (asking("/getCaseStatus?case=1&agent=a"), "HTTP/1.1 404 ", "a has not run case 1."),
        (asking("/getCaseCount") + "\u{1}", "HTTP/1.1 400 ", "1 bytes came before"),
        ("\u{16}\u{3}\u{1}".to_owned(), "HTTP/1.1 400 ", "no request of HTTP/1."),
        ("SSH-2.0-x\r\n\r\n".to_owned(), "HTTP/1.1 400 ", "three words"),
    ] {
        let answered = answer(address, &request);
        assert!(answered.starts_with(line) && answered.contains(said), "{request}\n{answered}");
        let (head, content) = answered.split_once("\r\n\r\n").expect("a head");
        assert!(head.contains(&format!("Content-Length: {}", content.len())), "{answered}");
    }
    assert!(answer(address, "").is_empty() || serving.reports().is_empty());
    // Clients that vanish: at once, within the request, and within a case.
    for part in ["", "GET /runCa", &asking("/runCase?case=2&agent=gone")] {
        let mut stream = TcpStream::connect(address).expect("a listener");
        stream.write_all(part.as_bytes()).expect("there is room");
    }
    let status = answer(address, &asking("/getCaseStatus?case=2&agent=gone"));
    assert!(status.contains("{\"behavior\":\"FAILED\",\"behaviorClose\":"), "{status}");
    let info = answer(address, &asking("/getCaseInfo?case=2"));
    assert!(info.starts_with("HTTP/1.1 101 ") && info.contains("\"description\":"), "{info}");
    assert!(info.contains("\"id\":\"2.1\""), "{info}");
    let report = only(serving.finish());
    assert_eq!(report.results.cut_short.as_deref(), Some("the client has not run all cases"));
    assert!(!report.is_as_expected());
}

#[test]
fn a_wrong_request_fails_its_case_and_says_why() {
    let serving = serving(&Suite::clients().cases("1.1.1").expect("a case"));
    let address = serving.url().strip_prefix("ws://").expect("TCP");
    let wrong = asking("/runCase?case=1&agent=a").replace("Version: 13", "Version: 8");
    assert!(answer(address, &wrong).starts_with("HTTP/1.1 426 "));
    let early = asking("/runCase?case=1&agent=b") + "early";
    assert!(answer(address, &early).starts_with("HTTP/1.1 400 "));
    let reports = serving.finish();
    let said: Vec<&str> = reports.iter().map(|it| &it.results.cases[0].result[..]).collect();
    let version = "Sec-WebSocket-Version should be 13, but is [\"8\"].";
    assert_eq!(said, [version, "5 bytes came before the response was sent."]);
    for report in &reports {
        let case = &report.results.cases[0];
        assert_eq!((case.behavior, case.behavior_close), (Behavior::Failed, BehaviorClose::Failed));
        assert!(case.response.starts_with("HTTP/1.1 4"), "{}", case.response);
    }
    assert!(!reports[0].judged[0].verdict.passes(Demand::Musts));
}

/// No more connections are served than the limit says; the next one is when one of them has ended.
#[test]
fn a_connection_too_many_waits_for_another_to_end() {
    let serving = serving(&Suite::clients().cases("9.7.1").expect("a case"));
    let address: SocketAddr =
        serving.url().strip_prefix("ws://").expect("TCP").parse().expect("an address");
    let ask = |question: &str| {
        let mut stream = TcpStream::connect(address).expect("a listener");
        stream.set_read_timeout(Some(TIMEOUT)).expect("an option");
        stream.write_all(asking(question).as_bytes()).expect("there is room");
        stream
    };
    // The answer shows that the connection is served. The case then waits 20 s for its first echo.
    let serve = || {
        let mut stream = ask("/runCase?case=1&agent=slow");
        stream.read_exact(&mut [0; 12]).expect("an answer");
        stream
    };
    let mut served: Vec<TcpStream> = (0..CONNECTIONS_MAX).map(|_| serve()).collect();
    let mut next = ask("/getCaseCount");
    next.set_read_timeout(Some(Duration::from_millis(300))).expect("an option");
    let early = next.read(&mut [0; 12]).expect_err("it is not served yet");
    assert_eq!(early.kind(), std::io::ErrorKind::WouldBlock);
    served.pop();
    next.set_read_timeout(Some(TIMEOUT)).expect("an option");
    let mut answer = [0; 12];
    next.read_exact(&mut answer).expect("an answer");
    assert_eq!(&answer, b"HTTP/1.1 101");
}

/// `ringbench conform --serve`, which is killed if the test ends before it.
struct Started {
    child: Option<Child>,
    /// Where it listens.
    url: String,
}

impl Started {
    fn with(options: &[&str]) -> Started {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringbench"));
        let mut child = spawn(command.arg("conform").args(options));
        let mut lines = BufReader::new(child.stdout.as_mut().expect("a pipe"));
        let mut line = String::new();
        lines.read_line(&mut line).expect("a line");
        // What was read beyond the line would be lost.
        assert!(lines.buffer().is_empty(), "{line}");
        let url = line.trim().rsplit(' ').next().expect("a word").to_owned();
        Started { child: Some(child), url }
    }

    fn interrupt(&self) {
        let pid = Pid::from_child(self.child.as_ref().expect("it runs"));
        kill_process(pid, Signal::INT).expect("it runs");
    }

    fn end(mut self) -> Ended {
        end(self.child.take().expect("it runs"))
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A path in this test process's own directory.
fn path(name: &str) -> PathBuf {
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(std::process::id().to_string());
    std::fs::create_dir_all(&directory).expect("a directory");
    directory.join(name)
}

#[test]
fn once_it_ends_with_the_first_report_and_says_how_it_went() {
    let (directory, json, xml) = (path("clients"), path("clients.json"), path("clients.xml"));
    let text = |path: &PathBuf| path.to_str().expect("UTF-8").to_owned();
    let files = ["--report", &text(&directory), "--json", &text(&json), "--junit", &text(&xml)];
    let options = ["--serve", "127.0.0.1:0", "--once", "--case", "1.1.1,2.2,7.1.1"];
    let started = Started::with(&[&options[..], &files].concat());
    let right = mutant::Behavior::with(&[]);
    run_cases(&started.url, "the+client", &right).expect("it runs");
    // Reports are there when the client has its answer, and stay.
    let read = |path: &PathBuf| std::fs::read_to_string(path).expect("it is written");
    let index: Value = serde_json::from_str(&read(&directory.join("index.json"))).expect("JSON");
    assert_eq!(index["the client"]["2.2"]["behavior"], "OK");
    let ended = started.end();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    let last = ended.stdout.lines().last().expect("a line");
    assert!(last.starts_with("the client: 3 of 3 cases as expected, in "), "{}", ended.stdout);
    let all: Value = serde_json::from_str(&read(&json)).expect("JSON");
    let first = &all[0];
    assert_eq!(
        (&first["agent"], &first["suite"]["as_expected"]),
        (&"the client".into(), &3.into())
    );
    assert_eq!(first["cases"][0]["closing"]["isServer"], true);
    assert!(read(&xml).contains("<testsuites name=\"the client\" tests=\"3\" failures=\"0\""));
}

#[test]
fn several_agents_are_reported_and_a_failure_is_one() {
    let xml = path("agents.xml");
    let junit = xml.to_str().expect("UTF-8");
    let options = ["--serve", "127.0.0.1:0", "--case", "2.2,1.1.2", "--junit", junit];
    let started = Started::with(&options);
    thread::scope(|scope| {
        for (agent, faults) in [("good", &[][..]), ("mute", &[Fault::PingsUnanswered])] {
            let (url, behavior) = (&started.url, mutant::Behavior::with(faults));
            scope.spawn(move || run_cases(url, agent, &behavior).expect("it runs"));
        }
    });
    started.interrupt();
    let ended = started.end();
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    for part in [
        "good: 2 of 2 cases as expected, in ",
        "mute: 1 of 2 cases as expected, in ",
        "2.2 (RFC 6455 5.5.2): FAILED, close OK; it should pass",
        "run it    ringbench conform --serve 127.0.0.1:0 --case 2.2",
    ] {
        assert!(ended.stdout.contains(part), "{part:?} in {}", ended.stdout);
    }
    let xml = std::fs::read_to_string(&xml).expect("it is written");
    for part in [
        "<testsuites name=\"good, mute\" tests=\"4\" failures=\"1\" errors=\"0\"",
        "<testsuite name=\"good: 2 pings and pongs\" tests=\"1\" failures=\"0\"",
        "<testsuite name=\"mute: 2 pings and pongs\" tests=\"1\" failures=\"1\"",
    ] {
        assert!(xml.contains(part), "{part:?} in {xml}");
    }
}

#[test]
fn a_unix_socket_is_served_and_nobody_comes() {
    let socket = path("conform.sock");
    let address = format!("unix:{}", socket.display());
    let started = Started::with(&["--serve", &address, "--case", "1.1.*"]);
    assert_eq!(started.url, address);
    let mut stream = UnixStream::connect(&socket).expect("a listener");
    stream.set_read_timeout(Some(TIMEOUT)).expect("an option");
    stream.write_all(asking("/getCaseCount").as_bytes()).expect("it is read");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("an end");
    assert!(answer.ends_with(b"\r\n\r\n\x81\x018\x88\x02\x03\xe8"), "{answer:?}");
    started.interrupt();
    let ended = started.end();
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert!(ended.stderr.contains("no client has run a case"), "{ended:?}");
    assert!(!socket.exists());
}

#[test]
fn options_that_make_no_sense_for_clients_are_refused() {
    for (options, said) in [
        (&["--serve", "9001"][..], "9001"),
        (&["--serve", "127.0.0.1:0", "--jobs", "2"], "--jobs"),
        (&["--serve", "127.0.0.1:0", "--agent", "a"], "--agent"),
        (&["--serve", "127.0.0.1:0", "ws://127.0.0.1:1/"], "TARGET"),
        (&["--once"], "--serve"),
        (&["--serve", "127.0.0.1:0", "--case", "20.*"], "no case for clients is 20"),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringbench"));
        let ended = testkit::run_by(command.arg("conform").args(options));
        assert_eq!(ended.status.code(), Some(2), "{options:?} {ended:?}");
        assert!(ended.stderr.contains(said), "{options:?} {}", ended.stderr);
    }
    let both = path("both.json");
    std::fs::write(&both, "earlier").expect("a file");
    let name = both.to_str().expect("UTF-8");
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringbench"));
    let files = ["--serve", "127.0.0.1:0", "--json", name, "--junit", name];
    let ended = testkit::run_by(command.arg("conform").args(files));
    assert_eq!(ended.status.code(), Some(2), "{ended:?}");
    assert!(ended.stderr.contains("--json and --junit name the same file"), "{ended:?}");
    assert_eq!(std::fs::read_to_string(&both).expect("a file"), "earlier");
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringbench"));
    let file = ["--serve", "127.0.0.1:0", "--json", "/nowhere/file"];
    let ended = testkit::run_by(command.arg("conform").args(file));
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert!(ended.stderr.contains("cannot write /nowhere/file"), "{ended:?}");
}
