//! The reports by themselves, without a server.

use std::fs;
use std::path::PathBuf;

use super::*;
use crate::conform::BehaviorClose;

/// A case of `agent` with this verdict.
fn case(agent: &str, id: &str, behavior: Behavior) -> CaseReport {
    let [result, result_close] = ["It is so.".to_owned(), "It was closed.".to_owned()];
    CaseReport {
        place: 1,
        id: id.to_owned(),
        clause: Some("RFC 6455 5.5.2"),
        description: "Sends something.".to_owned(),
        expectation: "Something comes back.".to_owned(),
        agent: agent.to_owned(),
        started: UNIX_EPOCH + Duration::from_secs(1_326_120_336),
        duration: Duration::from_micros(312_900),
        verdict: Verdict { behavior, result, behavior_close: BehaviorClose::Ok, result_close },
        expected: vec![(Behavior::Ok, vec![pong(b"")])],
        expected_close: ExpectedClose {
            closed_by_me: true,
            close_code: vec![1000],
            require_clean: true,
        },
        received: vec![pong(b""), message(b"\xff\0", true)],
        is_timed: false,
        compressed: None,
        closing: Closing { remote_close_code: Some(1000), ..Closing::default() },
        traffic: Traffic { received: [(18, 1000), (2, 3)].into(), ..Traffic::default() },
        log: Vec::new(),
        handshake: Handshake {
            request: b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            response: b"HTTP/1.1 101 <b>&\r\n\r\n".to_vec(),
        },
    }
}

/// An empty directory of the test process's own.
fn directory(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("ringbench-{}-{name}", std::process::id()));
    let _ = fs::remove_dir_all(&path);
    path
}

#[test]
fn payloads_are_text_or_hexadecimal_and_cut_between_characters() {
    assert_eq!(message(b"", false), json!(["message", "", false]));
    assert_eq!(ping(b"a b"), json!(["ping", "a b"]));
    assert_eq!(pong(b"\xff\0"), json!(["pong", "0xff00"]));
    // Not for the eye of a person, nor for a page.
    assert_eq!(pong(b"a\x1b"), json!(["pong", "0x611b"]));
    let long = shown("é".repeat(40).as_bytes(), 80);
    assert_eq!(long, format!("{} ...", "é".repeat(32)));
    let odd = shown(format!("a{}", "é".repeat(40)).as_bytes(), 81);
    assert_eq!(odd, format!("a{} ...", "é".repeat(31)));
    // The beginning of a character at the end of everything is no text.
    assert_eq!(shown(b"a\xc3", 2), "0x61c3");
}

/// The lines that the suite has for each kind of event, in JSON and on its pages.
#[test]
fn the_wire_log_has_the_suites_lines() {
    let second = Duration::from_secs(1);
    let frame = |payload: &[u8]| Octets::of(payload);
    let mut report = case("a", "1.1.1", Behavior::Ok);
    report.log = vec![
        Entry::FrameSent(0x89, frame(b""), Some([1, 2, 3, 4])),
        Entry::Sent(frame(b"\x89\x80\x01\x02\x03\x04")),
        Entry::Limit(AtLimit::Close, 2 * second),
        Entry::Limit(AtLimit::Fail, second),
        Entry::Received(frame(&[7; 300])),
        Entry::FrameReceived(0x41, frame(b"abc"), None),
        Entry::FrameReceived(0x81, frame(b"\x03\xe8"), Some([9, 8, 7, 6])),
        Entry::Pause(second, 'A'),
        Entry::PauseOver('A'),
        Entry::LimitOver(AtLimit::Fail),
        Entry::LimitOver(AtLimit::Close),
        Entry::Off,
        Entry::On,
    ];
    let json = report.json();
    let seven = format!("{} ...", "07".repeat(256));
    let rows = json!([
        ["TF", [0, ""], 9, true, 0, "01020304", null, null, false],
        ["TO", [6, "898001020304"], false],
        ["TI", 2.0],
        ["KL", 1.0],
        ["RO", [300, seven]],
        ["RF", [3, "abc"], 1, false, 4, false, null],
        ["RF", [2, "0x03e8"], 1, true, 0, true, "09080706"],
        ["CT", 1.0, "A"],
        ["CTE", "A"],
        ["KLE"],
        ["TIE"],
        ["WLM", false],
        ["WLM", true],
    ]);
    assert_eq!(json["wirelog"], rows);
    let page = report.page();
    for line in [
        "000 TX OCTETS: 474554",
        "001 RX OCTETS: 485454",
        "002 TX FRAME : OPCODE=9, FIN=True, RSV=0, PAYLOAD-LEN=0, MASK=01020304, \
         PAYLOAD-REPEAT-LEN=None, CHOPSIZE=None, SYNC=False\n",
        "003 TX OCTETS: 898001020304\n",
        "004 CLOSE CONNECTION AFTER 2.000000 sec\n",
        "005 FAIL CONNECTION AFTER 1.000000 sec\n",
        "007 RX FRAME : OPCODE=1, FIN=False, RSV=4, PAYLOAD-LEN=3, MASKED=False, MASK=None abc\n",
        "008 RX FRAME : OPCODE=1, FIN=True, RSV=0, PAYLOAD-LEN=2, MASKED=True, MASK=09080706 0x03e8\n",
        "009 DELAY 1.000000 sec for TAG A\n",
        "010 DELAY TIMEOUT on TAG A\n",
        "011 FAILING CONNECTION\n",
        "012 CLOSING CONNECTION\n",
        "013 WIRELOG DISABLED\n",
        "014 WIRELOG ENABLED\n",
        "015 TCP DROPPED BY PEER\n",
    ] {
        assert!(page.contains(line), "{line:?} in {page}");
    }
}

#[test]
fn a_page_sums_up_and_escapes_what_the_peer_sent() {
    let page = case("<agent>", "9.7.2", Behavior::NonStrict).page();
    for part in [
        "&lt;agent&gt; - Case 9.7.2 : Non-Strict - 312 ms @ 2012-01-09T14:45:36Z",
        "<td>1003</td><td>18006</td>",
        "101 &lt;b&gt;&amp;</pre>",
        "Tests RFC 6455 5.5.2.",
    ] {
        assert!(page.contains(part), "{part:?} in {page}");
    }
}

#[test]
fn ratios_are_those_of_the_suite() {
    let side = |payload_bytes| Volume {
        messages: 2,
        frames: 4,
        wire_bytes: payload_bytes + 20,
        payload_bytes,
        message_bytes: 400,
    };
    let mut report = case("a", "12.1.1", Behavior::Ok);
    assert!(report.json()["trafficStats"].is_null());
    report.compressed = Some(Volumes { sent: side(100), received: side(200) });
    let stats = &report.json()["trafficStats"];
    for (key, value) in [
        ("outgoingCompressionRatio", json!(0.25)),
        ("incomingCompressionRatio", json!(0.5)),
        ("outgoingWebSocketOverhead", json!(0.2)),
        ("incomingWebSocketOverhead", json!(0.1)),
        ("incomingOctetsWireLevel", json!(220)),
        ("preopenOutgoingOctetsWireLevel", json!(18)),
    ] {
        assert_eq!(stats[key], value, "{key}");
    }
    // Of nothing there is no ratio.
    report.compressed = Some(Volumes::default());
    assert!(report.json()["trafficStats"]["incomingCompressionRatio"].is_null());
}

#[test]
fn runs_into_the_same_directory_add_up() {
    let path = directory("adds-up");
    prepare(&path).expect("a directory");
    let written = |agent: &str, reports: &[CaseReport]| write(&path, agent, reports);
    let one = [case("a/1", "2.1", Behavior::Failed), case("a/1", "10.1.1", Behavior::Ok)];
    written("a/1", &one).expect("written");
    written("a 1", &[case("a 1", "2.1", Behavior::Ok)]).expect("written");
    written("a/1", &[case("a/1", "2.1", Behavior::Informational)]).expect("written");
    let read = |name: &str| fs::read_to_string(path.join(name)).expect(name);
    let index: Value = serde_json::from_str(&read("index.json")).expect("JSON");
    assert_eq!(index["a/1"]["2.1"]["behavior"], "INFORMATIONAL");
    assert_eq!(index["a/1"]["10.1.1"]["behavior"], "OK");
    assert_eq!(index["a 1"]["2.1"]["behavior"], "OK");
    assert_eq!(index["a/1"]["2.1"]["reportfile"], "a_1_case_2_1.json");
    assert_eq!(index["a 1"]["2.1"]["reportfile"], "a_1_2_case_2_1.json");
    let page = read("index.html");
    for part in ["a_1_case_2_1.html", "a_1_2_case_2_1.html", "Missing", "2 pings and pongs"] {
        assert!(page.contains(part), "{part:?} in {page}");
    }
    let at = |text: &str| page.find(text).expect(text);
    assert!(at("2 pings and pongs") < at("10 automatic fragments"), "by number");
    // What is there and is no index is neither used nor replaced.
    fs::write(path.join("index.json"), "[]").expect("a file");
    for refused in [prepare(&path), written("b", &one)] {
        let error = refused.expect_err("it is no index").to_string();
        assert!(error.contains("index.json"), "{error}");
    }
    assert_eq!(read("index.json"), "[]");
    fs::remove_dir_all(&path).expect("removed");
}

/// A case with everything that a page may have to make room for.
fn full(agent: &str, id: &str, behavior: Behavior) -> CaseReport {
    let sizes = |most: usize| (1..=most).map(|size| (size * 97, size as u64 * 1013)).collect();
    let bytes: Vec<u8> = (0..=255).cycle().take(4000).collect();
    let key = Some([0x69, 0xca, 0x82, 0xba]);
    CaseReport {
        description: "Sends a text message of 4000 bytes in fragments, one behind the other."
            .into(),
        is_timed: true,
        expected: vec![(Behavior::Ok, vec![message(&bytes, true), pong(b"a short ping")])],
        received: vec![message(&[b'a'; 4000], false); 40],
        closing: Closing {
            closed_by_me: true,
            was_not_clean_reason: Some("the peer reset the TCP connection".to_owned()),
            local_close_code: Some(1002),
            local_close_reason: Some("a-reason-without-a-place-to-break-it".repeat(3)),
            remote_close_code: Some(1000),
            remote_close_reason: Some("<b>bye</b>".to_owned()),
            ..Closing::default()
        },
        traffic: Traffic {
            received: sizes(30),
            sent: sizes(3),
            frames_received: [(1, 1_000_000_000), (8, 1)].into(),
            frames_sent: [(0, 12), (1, 1000), (9, 1)].into(),
        },
        log: vec![
            Entry::FrameSent(0x81, Octets::of(&bytes), key),
            Entry::Sent(Octets::of(&bytes)),
            Entry::Pause(Duration::from_secs(1), 'A'),
            Entry::PauseOver('A'),
            Entry::Limit(AtLimit::Close, Duration::from_secs(60)),
            Entry::Off,
            Entry::On,
            Entry::Received(Octets::of(&bytes)),
            Entry::FrameReceived(0x81, Octets::of(&[b'a'; 4000]), None),
        ],
        ..case(agent, id, behavior)
    }
}

/// `scripts/report-page` runs this for something to look at.
#[test]
#[ignore = "writes the samples into the directory RINGBENCH_SAMPLES"]
fn samples_are_written() {
    use crate::conform::cases::{self, Volume};
    let path = PathBuf::from(std::env::var_os("RINGBENCH_SAMPLES").expect("a directory"));
    let closings = BehaviorClose::ALL.into_iter().cycle();
    let verdicts = Behavior::ALL.into_iter().cycle().zip(closings);
    let agents = ["ringecho", "A <Server> of a long name/2.0.1-rc.3 (Linux; x86_64)", "third"];
    for (at, agent) in agents.into_iter().enumerate() {
        let cases = cases::every(Volume::Quick).into_iter().step_by(1 + 6 * at);
        let reports: Vec<CaseReport> = cases
            .zip(verdicts.clone().step_by(1 + at))
            .map(|(case, (behavior, behavior_close))| {
                let id = case.number.to_string();
                let (behavior, behavior_close) = match at {
                    0 => (Behavior::Ok, BehaviorClose::Ok),
                    _ => (behavior, behavior_close),
                };
                let report = if id == "9.7.2" { full } else { self::case };
                let mut report = report(agent, &id, behavior);
                (report.description, report.clause) = (case.description, Some(case.clause));
                report.verdict.behavior_close = behavior_close;
                report
            })
            .collect();
        write(&path, agent, &reports).expect("written");
    }
    write(&path, "third", &[full("third", "16 bytes", Behavior::Failed)]).expect("written");
    let mut refused = case("third", "1.1.1", Behavior::Failed);
    (refused.handshake, refused.traffic) = (Handshake::default(), Traffic::default());
    (refused.expected, refused.received) = (Vec::new(), Vec::new());
    write(&path, "third", &[refused]).expect("written");
}
