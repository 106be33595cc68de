//! `ringbench conform` on the real server, and on servers that the real one is not: verdicts, what is
//! printed and written, and exit statuses.

use std::path::PathBuf;
use std::process::Command;

use ringbench::conform::deflate::Library;
use ringbench::conform::{Behavior, BehaviorClose, Case, Demand, Plan, Volume, cases, suite};
use ringbench::stop::Stop;
use ringbench::target::Target;
use ringecho::cli;
use ringecho::engine::Engine;
use ringecho::listen::Address;
use ringecho::server::{Config, Server};
use serde_json::Value;
use testkit::fake::{Fake, send_back};
use testkit::{CLOSE, Ended, PING, PONG, reply, run_by};

/// The server itself, on threads of this process, while `test` runs.
fn serving<T>(test: impl FnOnce(&str) -> T) -> T {
    let mut config: Config = cli::defaults();
    config.listen = vec!["127.0.0.1:0".parse().expect("an address")];
    config.workers = Some(1);
    config.engine = Some(Engine::Epoll);
    let server = Server::start(&config, Vec::new()).expect("a server");
    let Address::Tcp(address) = &server.endpoints()[0].address else { panic!("a TCP address") };
    let outcome = test(&format!("ws://{address}/"));
    server.control().stop();
    server.join().expect("a good end");
    outcome
}

fn conform(arguments: &[&str]) -> Ended {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringbench"));
    run_by(command.arg("conform").args(arguments))
}

/// A path in this test process's own directory.
fn path(name: &str) -> PathBuf {
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(std::process::id().to_string());
    std::fs::create_dir_all(&directory).expect("a directory");
    directory.join(name)
}

/// A server that answers no pings, and says who it is.
fn without_pongs() -> Fake {
    Fake::start(|peer, _| {
        peer.accept("Server: mute/1.0\r\n")?;
        let close = peer.echo_until(CLOSE, &|peer, frame| match frame.first {
            PING | PONG => Ok(()),
            _ => send_back(peer, frame),
        })?;
        peer.send(&reply(CLOSE, &close.payload))
    })
}

#[test]
fn the_server_passes_every_case_strictly() {
    let cases: Vec<Case> = cases::all(Volume::Quick);
    let judged = serving(|url| {
        let target: Target = url.parse().expect("a target");
        let library = Library::default();
        let plan = Plan { target: &target, cases: &cases, library: &library, jobs: 4, seed: 1 };
        let mut done = 0;
        let judged = suite::run(&plan, &Stop::new().expect("a pipe"), &mut |count, _| {
            done += 1;
            assert_eq!(count, done);
        });
        assert_eq!(done, cases.len());
        judged
    });
    assert_eq!(judged.len(), 517);
    let mut informational = 0;
    for (case, judged) in cases.iter().zip(&judged) {
        let verdict = &judged.verdict;
        assert!(verdict.passes(Demand::Strict), "{}: {verdict:?}", case.number);
        match (verdict.behavior, verdict.behavior_close) {
            (Behavior::Ok, BehaviorClose::Ok) => {}
            (Behavior::Informational, BehaviorClose::Informational) => informational += 1,
            _ => panic!("{}: {verdict:?}", case.number),
        }
    }
    assert_eq!(informational, 3);
}

#[test]
fn the_server_passes_the_own_cases_strictly() {
    let mut cases = cases::own();
    cases.retain(Case::tests_servers);
    let judged = serving(|url| {
        let target: Target = url.parse().expect("a target");
        let library = Library::default();
        let plan = Plan { target: &target, cases: &cases, library: &library, jobs: 4, seed: 1 };
        suite::run(&plan, &Stop::new().expect("a pipe"), &mut |_, _| {})
    });
    assert_eq!(judged.len(), cases.len());
    let failed: Vec<String> = cases
        .iter()
        .zip(&judged)
        .filter(|(_, judged)| !judged.verdict.passes(Demand::Strict))
        .map(|(case, judged)| format!("{} {:?}", case.number, judged.verdict))
        .collect();
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
fn own_cases_are_counted_apart() {
    let server = without_pongs();
    let (json, xml) = (path("apart.json"), path("apart.xml"));
    let files = ["--json", json.to_str().expect("UTF-8"), "--junit", xml.to_str().expect("UTF-8")];
    let selected = ["--case", "1.1.2,2.2,20.1.1,20.2.5,25.2.1"];
    let ended = conform(&[&[&server.url()[..]], &selected[..], &files].concat());
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    let said = &ended.stdout;
    let lines: Vec<&str> = said.lines().collect();
    let counted = "mute/1.0: 1 of 2 cases of the suite and 2 of 3 own cases as expected, in ";
    assert!(lines.last().is_some_and(|line| line.starts_with(counted)), "{said}");
    assert!(lines.contains(&"not as expected: 2.2"), "{said}");
    assert!(lines.contains(&"own cases not as expected: 20.2.5"), "{said}");
    let rows: Vec<Vec<&str>> = lines.iter().map(|line| line.split_whitespace().collect()).collect();
    assert!(rows.contains(&vec!["suite", "2", "1", "-", "-", "-", "1", "-"]), "{said}");
    assert!(rows.contains(&vec!["own", "3", "2", "-", "-", "-", "1", "-"]), "{said}");

    let text = std::fs::read_to_string(&json).expect("it is written");
    let results: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(
        (&results["suite"]["cases"], &results["suite"]["as_expected"]),
        (&2.into(), &1.into())
    );
    assert_eq!((&results["own"]["cases"], &results["own"]["as_expected"]), (&3.into(), &2.into()));
    let own: Vec<bool> = results["cases"]
        .as_array()
        .expect("cases")
        .iter()
        .filter_map(|case| case["is_own"].as_bool())
        .collect();
    assert_eq!(own, [false, false, true, true, true]);
    let xml = std::fs::read_to_string(&xml).expect("it is written");
    assert!(xml.contains("<testsuite name=\"own 25 headers and floods\" tests=\"1\""), "{xml}");
}

#[test]
fn a_run_is_printed_and_written() {
    let file = path("written.json");
    let ended = serving(|url| {
        let json = file.to_str().expect("UTF-8");
        let options = ["--case", "1.1.1,7.*", "--exclude", "7.7.*", "--json", json];
        conform(&[&[url], &options[..], &["--agent", "the server"]].concat())
    });
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    let last = ended.stdout.lines().last().expect("a line");
    assert!(last.starts_with("the server: 25 of 25 cases as expected, in "), "{last}");
    assert!(!last.contains("quick"), "{last}");
    let rows: Vec<Vec<&str>> =
        ended.stdout.lines().map(|line| line.split_whitespace().collect()).collect();
    assert!(rows.contains(&vec!["1", "framing", "1", "1", "-", "-", "-", "-", "-"]), "{rows:?}");
    assert!(rows.contains(&vec!["7", "close", "24", "21", "-", "3", "-", "-", "-"]), "{rows:?}");
    assert!(rows.contains(&vec!["all", "25", "22", "-", "3", "-", "-", "-"]), "{rows:?}");

    let text = std::fs::read_to_string(&file).expect("it is written");
    let results: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(results["agent"], "the server");
    assert_eq!(results["cases"].as_array().map(Vec::len), Some(25));
    let first = &results["cases"][0];
    assert_eq!((&first["case"], &first["behavior"]), (&"1.1.1".into(), &"OK".into()));
    assert_eq!(first["observed"][0], "text message \"\"");
    let closing = first["closing"].as_object().expect("an object");
    assert_eq!(closing.len(), 13, "{closing:?}");
    assert_eq!((&closing["closedByMe"], &closing["wasClean"]), (&true.into(), &true.into()));
    assert_eq!(closing["remoteCloseCode"], 1000);
    let traffic = &first["traffic"];
    assert_eq!(
        (&traffic["frames_sent"]["1"], &traffic["frames_sent"]["8"]),
        (&1.into(), &1.into())
    );
    // An empty frame with its key, and a close frame with its code.
    assert_eq!((&traffic["sent"]["6"], &traffic["sent"]["8"]), (&1.into(), &1.into()));
    assert!(first["request"].as_str().is_some_and(|head| head.starts_with("GET / HTTP/1.1\r\n")));
}

/// Two agents in one directory: the index has both, by the suite's names.
#[test]
fn reports_are_those_of_the_suite() {
    let directory = path("reports");
    let report = directory.to_str().expect("UTF-8");
    let mute = without_pongs();
    let ended = conform(&[&mute.url(), "--case", "2.1", "--report", report]);
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    let ended = serving(|url| {
        conform(&[url, "--case", "2.1,6.4.1", "--report", report, "--agent", "The <Server>"])
    });
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");

    let read = |name: &str| std::fs::read_to_string(directory.join(name)).expect(name);
    let json = |name: &str| -> Value { serde_json::from_str(&read(name)).expect("JSON") };
    let index = json("index.json");
    let failed = &index["mute/1.0"]["2.1"];
    assert_eq!((&failed["behavior"], &failed["behaviorClose"]), (&"FAILED".into(), &"OK".into()));
    assert_eq!(failed["reportfile"], "mute_1_0_case_2_1.json");
    let late = &index["The <Server>"]["6.4.1"];
    assert_eq!((&late["behavior"], &late["remoteCloseCode"]), (&"OK".into(), &1007.into()));
    let file = late["reportfile"].as_str().expect("a name");
    let case = json(file);
    assert_eq!((&case["id"], &case["agent"]), (&"6.4.1".into(), &"The <Server>".into()));
    assert_eq!(case["received"], serde_json::json!([["timeout", "A"]]));
    assert_eq!(case["expectedClose"]["closeCode"], serde_json::json!([1007]));
    assert!(case["httpResponse"].as_str().is_some_and(|head| head.contains(" 101 ")));
    let kinds: Vec<&str> = case["wirelog"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|row| row[0].as_str())
        .filter(|kind| kind.starts_with(['C', 'R']))
        .collect();
    // The beginning of the text comes back or not, as the server likes.
    assert!(kinds.starts_with(&["CT"]) && kinds.contains(&"CTE"), "{kinds:?}");

    // Long keys may be broken between their words.
    let page = read(&file.replace(".json", ".html")).replace("<wbr>", "");
    for part in [
        "The &lt;Server&gt; - Case 6.4.1 : Pass - ",
        "Tests RFC 6455 8.1.",
        "wasServerConnectionDropTimeout",
        "HTTP/1.1 101 Switching Protocols",
        "DELAY TIMEOUT on TAG A",
        "TCP DROPPED BY PEER",
        "Octets transmitted by chop size",
    ] {
        assert!(page.contains(part), "{part:?} in {page}");
    }
    let all = read("index.html");
    for part in ["mute/1.0", "The &lt;Server&gt;", "mute_1_0_case_2_1.html", "Missing", "Fail"] {
        assert!(all.contains(part), "{part:?} in {all}");
    }
}

#[test]
fn a_failure_says_what_was_expected_and_how_to_run_it_again() {
    let server = without_pongs();
    let file = path("failure.xml");
    let junit = file.to_str().expect("UTF-8");
    let ended = conform(&[&server.url(), "--case", "2.1,2.2,1.1.2", "--junit", junit]);
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert_eq!(ended.stderr, "");
    let said = &ended.stdout;
    for part in [
        "2.2 (RFC 6455 5.5.2): FAILED, close OK; it should pass".to_owned(),
        "expected  pong \"a short ping\" (OK)".to_owned(),
        "observed  nothing".to_owned(),
        format!("ringbench conform {} --case 2.2", server.url()),
        "mute/1.0: 1 of 3 cases as expected".to_owned(),
    ] {
        assert!(said.contains(&part), "{part:?} in {said}");
    }
    let xml = std::fs::read_to_string(&file).expect("it is written");
    for part in [
        "<testsuites name=\"mute/1.0\" tests=\"3\" failures=\"2\" errors=\"0\"",
        "<testsuite name=\"2 pings and pongs\" tests=\"2\" failures=\"2\" errors=\"0\" skipped=\"0\"",
        "<failure type=\"FAILED, close OK\" message=\"FAILED, close OK; it should pass (RFC 6455 5.5.2)\">",
    ] {
        assert!(xml.contains(part), "{part:?} in {xml}");
    }
    assert_eq!(xml.matches("<testcase ").count(), 3, "{xml}");
}

#[test]
fn known_failures_are_expected_and_their_end_is_not() {
    let server = without_pongs();
    let file = path("expected.txt");
    let expected = file.to_str().expect("UTF-8");
    let run = |text: &str| {
        std::fs::write(&file, text).expect("a file");
        conform(&[&server.url(), "--case", "2.1,2.7", "--expected", expected])
    };
    let known = run("2.1 FAILED OK 1000\n");
    assert_eq!(known.status.code(), Some(0), "{known:?}");
    let mended = run("2.1 FAILED OK\n2.7 FAILED OK\n");
    assert_eq!(mended.status.code(), Some(1), "{mended:?}");
    let difference = "2.7 (RFC 6455 5.5.3): OK, close OK; it should be FAILED with close OK";
    assert!(mended.stdout.contains(difference), "{mended:?}");
}

#[test]
fn a_baseline_is_written_and_brought_up_to_date() {
    let server = without_pongs();
    let file = path("baseline.txt");
    let name = file.to_str().expect("UTF-8");
    let url = server.url();
    let first = conform(&[&url, "--case", "2.1,2.2,1.1.2", "--write-expected", name]);
    assert_eq!(first.status.code(), Some(1), "{first:?}");
    let text = std::fs::read_to_string(&file).expect("it is written");
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    assert!(
        matches!(lines[..], [one, two]
        if one.starts_with("2.1 FAILED OK ") && two.starts_with("2.2 FAILED OK ")),
        "{text}"
    );
    assert!(text.starts_with("# Cases that mute/1.0 does not pass"), "{text}");
    let again = conform(&[&url, "--case", "2.1,2.2,1.1.2", "--expected", name]);
    assert_eq!(again.status.code(), Some(0), "{again:?}");

    // 2.1 is not run and stays; 2.3 is new; what is longer than the new text goes.
    std::fs::write(&file, text + &"# a comment\n".repeat(100)).expect("a file");
    let both = ["--expected", name, "--write-expected", name];
    let other = conform(&[&[&url[..], "--case", "2.2,2.3,1.1.2"], &both[..]].concat());
    assert_eq!(other.status.code(), Some(1), "{other:?}");
    assert!(other.stdout.contains("not as expected: 2.3\n"), "{other:?}");
    let text = std::fs::read_to_string(&file).expect("it is written");
    let numbers = text.lines().filter_map(|line| line.split(' ').next());
    let numbers: Vec<&str> = numbers.filter(|word| *word != "#").collect();
    assert_eq!(numbers, ["2.1", "2.2", "2.3"], "{text}");

    let nowhere = conform(&[&url, "--case", "2.1", "--write-expected", "/nowhere/file"]);
    assert_eq!(nowhere.status.code(), Some(1), "{nowhere:?}");
    assert!(nowhere.stderr.contains("cannot write /nowhere/file"), "{nowhere:?}");
}

#[test]
fn without_compression_its_cases_are_unimplemented_and_pass() {
    let server = without_pongs();
    let ended = conform(&[&server.url(), "--quick", "--case", "12.1.1,13.7.1"]);
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    let rows: Vec<Vec<&str>> =
        ended.stdout.lines().map(|line| line.split_whitespace().collect()).collect();
    let row = vec!["all", "2", "-", "-", "-", "2", "-", "-"];
    assert!(rows.contains(&row), "{rows:?}");
    let last = ended.stdout.lines().last().expect("a line");
    assert!(last.ends_with("quick: sections 9, 12 and 13 with fewer messages"), "{last}");
}

#[test]
fn what_cannot_be_run_says_what_to_write() {
    let file = path("none.txt");
    std::fs::write(&file, "8.1.1 OK OK\n").expect("a file");
    let unknown = file.to_str().expect("UTF-8");
    for (options, advice) in [
        (&["ws://127.0.0.1:1/", "--case", "8.*"][..], "sections 1 to 7"),
        (&["ws://127.0.0.1:1/", "--case", "1.x"], "7.*"),
        (&["ws://127.0.0.1:1/", "--exclude", "*"], "leaves no case"),
        (&["ws://127.0.0.1:1/", "--jobs", "0"], "1 to 1024"),
        (&["tcp://127.0.0.1:1"], "ws://"),
        (&["server {tcp-port}"], "{port}"),
        (&["a server"], "ws://"),
        (&["ws://127.0.0.1:1/", "--expected", "/nowhere"], "--expected /nowhere"),
        (&["ws://127.0.0.1:1/", "--expected", unknown], "there is no case 8.1.1"),
    ] {
        let ended = conform(options);
        assert_eq!(ended.status.code(), Some(2), "{options:?} {ended:?}");
        assert!(ended.stderr.contains(advice), "{options:?} {}", ended.stderr);
    }
}

#[test]
fn a_server_that_accepts_no_connection_is_one_problem_and_not_many() {
    let ended = conform(&["ws://127.0.0.1:1/", "--case", "1.1.*"]);
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert!(ended.stderr.contains("cannot connect: connection refused"), "{ended:?}");
    assert_eq!(ended.stdout, "");
    let elsewhere = Fake::start(|peer, _| {
        peer.request()?;
        peer.send(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
    });
    let ended = conform(&[&elsewhere.url()]);
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert!(ended.stderr.contains("check the path"), "{ended:?}");
    assert_eq!(elsewhere.accepted(), 1);
}
