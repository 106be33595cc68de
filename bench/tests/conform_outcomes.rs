//! What `ringbench conform` prints and writes where something is in the way: servers that are gone or
//! hang, signals, files that cannot be written.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use testkit::fake::{Fake, Peer, send_back};
use testkit::{CLOSE, Ended, PING, PONG, end, reply, run_by, spawn, wait_until};

fn ringbench(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringbench"));
    command.args(arguments);
    command
}

fn conform(arguments: &[&str]) -> Ended {
    run_by(ringbench(&["conform"]).args(arguments))
}

/// A path in this test process's own directory.
fn path(name: &str) -> PathBuf {
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(std::process::id().to_string());
    std::fs::create_dir_all(&directory).expect("a directory");
    directory.join(name)
}

/// Echoes, answers pings and close frames, and fails nothing.
fn echo(peer: &mut Peer) -> std::io::Result<()> {
    peer.accept("Server: simple/1.0\r\n")?;
    let close = peer.echo_until(CLOSE, &|peer, frame| match frame.first {
        PING => peer.send(&reply(PONG, &frame.payload)),
        PONG => Ok(()),
        _ => send_back(peer, frame),
    })?;
    peer.send(&reply(CLOSE, &close.payload))
}

/// A server that is right for so many connections, and after that does something else.
fn right_for(
    connections: usize,
    after: impl Fn(&mut Peer) -> std::io::Result<()> + Send + Sync + 'static,
) -> Fake {
    Fake::start(move |peer, number| if number < connections { echo(peer) } else { after(peer) })
}

/// Opens the connection and says nothing.
fn hang(peer: &mut Peer) -> std::io::Result<()> {
    peer.accept("")?;
    peer.wait_for_end()
}

fn json(file: &Path) -> Value {
    let text = std::fs::read_to_string(file).expect("it is written");
    serde_json::from_str(&text).expect("JSON")
}

#[test]
fn a_server_that_says_nothing_is_named_before_any_case_is_run() {
    let server = right_for(0, hang);
    let ended = conform(&[&server.url(), "--case", "1.*"]);
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert!(ended.stderr.contains("check that it is an echo server"), "{ended:?}");
    assert_eq!(ended.stdout, "");
    assert_eq!(server.accepted(), 2, "one for the opening handshake and one for the echo");
}

#[test]
fn the_run_is_given_up_when_the_server_hangs() {
    let file = path("hangs.json");
    let server = right_for(7, hang);
    let output = file.to_str().expect("UTF-8");
    let cases = ["--case", "1.*,2.*,3.*,4.*,5.*", "--jobs", "25"];
    let ended = conform(&[&[&server.url()[..], "--json", output], &cases[..]].concat());
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    let reason = "CUT SHORT: 20 cases in a row found no server that answers: the server opens \
                  connections and sends nothing";
    assert!(ended.stdout.contains(reason), "{ended:?}");
    let results = json(&file);
    assert!(reason.ends_with(results["cut_short"].as_str().expect("a reason")), "{results}");
    let run = results["cases"].as_array().expect("cases").len();
    assert!((25..64).contains(&run), "{run} of 64 cases");
    assert_eq!(results["suite"]["cases"], 64);
}

#[test]
fn the_run_is_given_up_when_the_server_is_gone() {
    let server = right_for(10, |_| Ok(()));
    let ended = conform(&[&server.url(), "--case", "1.*,2.*,3.*,4.*,5.*", "--jobs", "1"]);
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    let reason = "CUT SHORT: 20 cases in a row found no server that answers: ";
    assert!(ended.stdout.contains(reason), "{ended:?}");
    // Two before the cases, and eight that are right. One more may have begun.
    assert!((30..=31).contains(&server.accepted()), "{ended:?}");
    let last = ended.stdout.lines().last().expect("a line");
    assert!(last.contains(" of 64 cases as expected"), "{last}");
}

/// Each case ends all the same, and says what was wrong.
#[test]
fn a_server_that_sends_garbage_without_end_fails() {
    let garbage = vec![0xff; 64 << 10];
    let server = right_for(2, move |peer| {
        peer.accept("")?;
        loop {
            peer.send(&garbage)?;
        }
    });
    let ended = conform(&[&server.url(), "--case", "1.1.1,2.1,9.7.2", "--quick"]);
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    let said = &ended.stdout;
    assert_eq!(said.matches("result    The peer broke the protocol: ").count(), 3, "{said}");
    assert!(!said.contains("CUT SHORT"), "{said}");
    let last = said.lines().last().expect("a line");
    assert!(last.contains(": 0 of 3 cases as expected"), "{last}");
}

#[test]
fn what_was_found_is_printed_and_written_when_the_run_is_interrupted() {
    let files = [path("cut.json"), path("cut.xml"), path("cut")];
    let [json_file, xml, report] = files.each_ref().map(|file| file.to_str().expect("UTF-8"));
    let server = right_for(5, hang);
    let url = server.url();
    let run = ["conform", &url, "--case", "1.*", "--jobs", "1"];
    let outputs = ["--json", json_file, "--junit", xml, "--report", report];
    let child = spawn(ringbench(&run).args(outputs));
    // Two before the cases, and three cases.
    wait_until("a case hangs", || server.accepted() >= 6);
    kill_process(Pid::from_child(&child), Signal::INT).expect("it runs");
    let ended = end(child);
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert!(ended.stdout.contains("\nCUT SHORT: ended by a signal\n"), "{ended:?}");
    assert!(ended.stdout.contains("3 of 16 cases as expected"), "{ended:?}");
    let results = json(&files[0]);
    assert_eq!(results["cut_short"], "ended by a signal");
    assert_eq!(results["cases"].as_array().map(Vec::len), Some(3), "{results}");
    let xml = std::fs::read_to_string(&files[1]).expect("it is written");
    assert!(xml.contains(" tests=\"3\" failures=\"0\""), "{xml}");
    let index = json(&files[2].join("index.json"));
    assert_eq!(index["simple/1.0"].as_object().map(serde_json::Map::len), Some(3), "{index}");
}

#[test]
fn what_cannot_be_written_is_said_after_what_was_found() {
    let server = right_for(100, hang);
    let (url, xml) = (server.url(), path("rest.xml"));
    let rest = xml.to_str().expect("UTF-8");
    let ended = conform(&[&url, "--case", "1.1.1", "--json", "/dev/full", "--junit", rest]);
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert!(ended.stdout.contains("simple/1.0: 1 of 1 cases as expected"), "{ended:?}");
    assert!(ended.stderr.contains("cannot write /dev/full: "), "{ended:?}");
    assert!(std::fs::read_to_string(&xml).expect("it is written").contains("tests=\"1\""));

    // What can be known before is said before.
    let connections = server.accepted();
    let broken = path("broken");
    std::fs::create_dir_all(&broken).expect("a directory");
    std::fs::write(broken.join("index.json"), "not JSON").expect("a file");
    let broken = broken.to_str().expect("UTF-8");
    for options in [
        ["--json", "/nowhere/at/all"],
        ["--junit", "/proc/version/x"],
        ["--report", "/dev/null/x"],
        ["--report", broken],
    ] {
        let ended = conform(&[&[&url[..]], &options[..]].concat());
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        let said = ended.stderr;
        assert!(said.contains("cannot write") && said.contains(options[1]), "{said}");
    }
    assert_eq!(server.accepted(), connections);
}

#[test]
fn an_earlier_file_stays_until_there_is_something_to_write() {
    let (old, new) = (path("old.json"), path("new.xml"));
    std::fs::write(&old, "1.1.1 OK OK").expect("a file");
    let [file, other] = [&old, &new].map(|path| path.to_str().expect("UTF-8"));
    let ended = conform(&["ws://127.0.0.1:1/", "--json", file, "--junit", other]);
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    for options in [&["--json", file, "--junit", file][..], &["--expected", file, "--json", file]] {
        let ended = conform(&[&["ws://127.0.0.1:1/"], options].concat());
        assert_eq!(ended.status.code(), Some(2), "{ended:?}");
        assert!(ended.stderr.contains(" name the same file"), "{ended:?}");
    }
    assert_eq!(std::fs::read_to_string(&old).expect("a file"), "1.1.1 OK OK");
    assert!(!new.exists());
}

#[test]
fn colours_are_for_terminals() {
    let server = right_for(100, hang);
    let url = server.url();
    let run = |name: &str| {
        let mut command = ringbench(&["conform", &url, "--case", "1.1.1"]);
        for variable in ["NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE"] {
            command.env_remove(variable);
        }
        command.env(name, "1");
        run_by(&mut command).stdout
    };
    assert!(!run("TERM").contains('\x1b'));
    assert!(run("CLICOLOR_FORCE").contains("\x1b[32m1 of 1 cases as expected\x1b[0m"));
}

/// Both commands write the same files, and their cases add up.
#[test]
fn round_trips_and_cases_share_a_directory() {
    let server = right_for(100, hang);
    let (url, directory) = (server.url(), path("shared"));
    let report = directory.to_str().expect("UTF-8");
    let ended = conform(&[&url, "--case", "1.1.1", "--report", report]);
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    let rtt = ["rtt", &url, "--case", "9.7.2", "--messages", "20", "--rounds", "2"];
    let ended = run_by(ringbench(&rtt).args(["--report", report]));
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    let sized = ["rtt", &url, "--size", "16", "--messages", "20", "--rounds", "1"];
    let ended = run_by(ringbench(&sized).args(["--report", report]));
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");

    let index = json(&directory.join("index.json"));
    let entries = index["simple/1.0"].as_object().expect("an agent");
    // Whether a map in memory keeps their order depends on the features of `serde_json`.
    let names: BTreeSet<&str> = entries.keys().map(String::as_str).collect();
    assert_eq!(names, BTreeSet::from(["1.1.1", "16 bytes", "9.7.2"]));
    let trips = &entries["9.7.2"];
    assert_eq!((&trips["behavior"], &trips["behaviorClose"]), (&"OK".into(), &"OK".into()));
    assert_eq!(trips["remoteCloseCode"], 1000);
    let case = json(&directory.join("simple_1_0_case_9_7_2.json"));
    assert_eq!(case["txFrameStats"], serde_json::json!({"1": 20, "8": 1}));
    // 16 bytes with their header and key, the close frame, and the request.
    assert_eq!((&case["txOctetStats"]["22"], &case["txOctetStats"]["8"]), (&20.into(), &1.into()));
    let log: Vec<&str> = case["wirelog"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|row| row[0].as_str())
        .collect();
    assert_eq!(log, ["WLM", "WLM", "TF", "TO", "RO", "RF"]);
    let one = json(&directory.join("simple_1_0_case_1_1_1.json"));
    let keys = |case: &Value| -> Vec<String> {
        case.as_object().expect("an object").keys().cloned().collect()
    };
    assert_eq!(keys(&one), keys(&case));
    assert!(directory.join("simple_1_0_case_16_bytes.html").exists());
}
