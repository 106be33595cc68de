//! Reports in the format of the Autobahn suite: `index.json`, and a JSON file and a page for each case.
//! Programs that read the suite's reports read these too.
//!
//! A directory may hold the reports of several agents. Those of other agents stay, and the index has
//! them all. The pages have what the suite's have, by its names: octets, chop size, `closedByMe`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use maud::{Markup, html};
use serde_json::{Map, Value, json};

use super::case::{Case, Content, Expected, Limit, Step};
use super::cases::{self, Volume, is_own, section_name};
use super::number::Number;
use super::results::Results;
use super::suite::Judged;
use super::transcript::{Entry, Event, Octets, hexadecimal, shown};
use super::verdict::Behavior;
use crate::report;
use crate::rtt::SizeCounts;

/// The keys of the closing behaviour and what they mean, in the suite's order.
const CLOSING: [(&str, &str); 13] = [
    ("isServer", "this program is the server"),
    ("closedByMe", "this program sent the first close frame"),
    ("failedByMe", "this program failed the connection"),
    ("droppedByMe", "this program ended the TCP connection"),
    ("wasClean", "close frames went both ways, and the server ended the TCP connection"),
    ("wasNotCleanReason", "why it was not clean"),
    ("wasServerConnectionDropTimeout", "the server did not end the TCP connection in time"),
    ("wasOpenHandshakeTimeout", "the opening handshake took too long"),
    ("wasCloseHandshakeTimeout", "the peer did not answer the close frame in time"),
    ("localCloseCode", "the code in the close frame that this program sent"),
    ("localCloseReason", "the reason in it"),
    ("remoteCloseCode", "the code in the peer's close frame"),
    ("remoteCloseReason", "the reason in it"),
];

/// Writes the reports of a run into a directory, which is created if it is not there.
///
/// # Errors
///
/// When something cannot be written, or the index that is there is not one.
pub fn write(
    directory: &Path,
    results: &Results,
    cases: &[Case],
    judged: &[Judged],
) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    let index_file = directory.join("index.json");
    let mut index = match fs::read(&index_file) {
        Ok(text) => serde_json::from_slice::<Map<String, Value>>(&text)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Map::new(),
        Err(error) => return Err(error),
    };
    let mut entries = Map::new();
    for judged in judged {
        let case = &cases[judged.at];
        let name = file_name(&results.agent, case.number);
        let report = case_report(&results.agent, case, judged);
        let text = serde_json::to_string_pretty(&report)? + "\n";
        fs::write(directory.join(format!("{name}.json")), text)?;
        fs::write(directory.join(format!("{name}.html")), page(case, judged, &report))?;
        let entry = json!({
            "behavior": report["behavior"],
            "behaviorClose": report["behaviorClose"],
            "duration": report["duration"],
            "remoteCloseCode": report["remoteCloseCode"],
            "reportfile": format!("{name}.json"),
        });
        entries.insert(case.number.to_string(), entry);
    }
    index.insert(results.agent.clone(), Value::Object(entries));
    fs::write(index_file, serde_json::to_string_pretty(&index)? + "\n")?;
    fs::write(directory.join("index.html"), index_page(&index))
}

/// The name of a case's files without their endings, by the suite's rule: of the agent, lower-case
/// ASCII letters and digits stay.
fn file_name(agent: &str, number: Number) -> String {
    let kept = |c: char| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { ' ' };
    let agent: String = agent.trim().to_lowercase().chars().map(kept).collect();
    let number = number.to_string().replace('.', "_");
    format!("{}_case_{number}", agent.trim().replace(' ', "_"))
}

/// Everything about a case, by the suite's names.
fn case_report(agent: &str, case: &Case, judged: &Judged) -> Value {
    let Judged { at, run, verdict } = judged;
    let transcript = &run.transcript;
    let outcomes: BTreeMap<String, Vec<Value>> = case
        .outcomes
        .iter()
        .map(|(behavior, events)| (behavior.to_string(), events.iter().map(expected).collect()))
        .collect();
    let trips = case.script.iter().find_map(|step| match step {
        Step::RoundTrips(trips) => Some(trips),
        _ => None,
    });
    let is_compressed = trips.is_some_and(|trips| matches!(trips.content, Content::Of(..)));
    let log: Vec<Value> = transcript.log.iter().filter_map(|entry| row(entry, case)).collect();
    let head = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let started = run.started.duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut report = json!({
        "case": at + 1,
        "id": case.number.to_string(),
        "description": case.description,
        "expectation": case.expectation,
        "agent": agent,
        "started": moment(started),
        "duration": run.duration.as_millis() as u64,
        "reportTime": trips.is_some(),
        "reportCompressionRatio": is_compressed,
        "behavior": verdict.behavior,
        "behaviorClose": verdict.behavior_close,
        "expected": outcomes,
        "expectedClose": {
            "closedByMe": case.close.by == super::case::End::Ours,
            "closeCode": case.close.codes,
            "requireClean": case.close.needs_handshake,
        },
        "received": transcript.events.iter().map(event).collect::<Vec<_>>(),
        "result": verdict.result,
        "resultClose": verdict.result_close,
        "wirelog": log,
        "createWirelog": true,
        "createStats": true,
        "rxOctetStats": transcript.traffic.received,
        "rxFrameStats": transcript.traffic.frames_received,
        "txOctetStats": transcript.traffic.sent,
        "txFrameStats": transcript.traffic.frames_sent,
        "httpRequest": head(&run.handshake.request),
        "httpResponse": head(&run.handshake.response),
        "trafficStats": null,
    });
    if let (Value::Object(report), Ok(Value::Object(closing))) =
        (&mut report, serde_json::to_value(&transcript.closing))
    {
        report.extend(closing);
    }
    report
}

/// The date and time of a moment since 1970, in whole seconds.
fn moment(since: Duration) -> String {
    humantime::format_rfc3339_seconds(UNIX_EPOCH + since).to_string()
}

fn expected(expected: &Expected) -> Value {
    event(&match expected {
        Expected::Message(form, payload) => Event::Message(*form, payload.to_vec()),
        Expected::Pong(payload) => Event::Pong(payload.clone()),
        Expected::Silence(name) => Event::Silence(*name),
        Expected::Pongs(_) | Expected::Refused(..) | Expected::HungUp | Expected::Agreed(_) => {
            return json!(["other", expected.to_string()]);
        }
    })
}

fn event(event: &Event) -> Value {
    match event {
        Event::Message(form, payload) => {
            json!(["message", shown(payload), *form == crate::session::Form::Binary])
        }
        Event::Ping(payload) => json!(["ping", shown(payload)]),
        Event::Pong(payload) => json!(["pong", shown(payload)]),
        Event::Silence(name) => json!(["timeout", name.to_string()]),
        Event::Refused(..) | Event::HungUp | Event::Opened | Event::Agreed(_) => {
            json!(["other", event.to_string()])
        }
    }
}

/// A line of the wire log as the suite has it; nothing where it has none.
fn row(entry: &Entry, case: &Case) -> Option<Value> {
    let octets = |octets: &Octets| json!([octets.count, hexadecimal(&octets.beginning)]);
    let parts = |first: u8| (first & 15, first & 0x80 != 0, first >> 4 & 7);
    let seconds = match case.limit {
        Limit::Fail(_) => "KLE",
        Limit::Close(_) => "TIE",
    };
    Some(match entry {
        Entry::Sent(sent) => json!(["TO", octets(sent), false]),
        Entry::Received(received) => json!(["RO", octets(received)]),
        Entry::FrameSent(first, payload, key) => {
            let (opcode, is_final, reserved) = parts(*first);
            let key = key.map(|key| hexadecimal(&key));
            json!(["TF", octets(payload), opcode, is_final, reserved, key, null, null, false])
        }
        Entry::FrameReceived(first, payload) => {
            let (opcode, is_final, reserved) = parts(*first);
            json!(["RF", octets(payload), opcode, is_final, reserved, false, null])
        }
        Entry::Pause(duration, name) => json!(["CT", duration.as_secs_f64(), name.to_string()]),
        Entry::PauseOver(name) => json!(["CTE", name.to_string()]),
        Entry::LimitOver => json!([seconds]),
        Entry::Off => json!(["WLM", false]),
        Entry::On => json!(["WLM", true]),
    })
}

/// The page of a case. All of it is taken from its report, which has passed through JSON.
fn page(case: &Case, judged: &Judged, report: &Value) -> String {
    let text = |key: &str| plain(&report[key]);
    let title = format!(
        "{} - Case {} : {} - {} ms @ {}",
        text("agent"),
        text("id"),
        word(judged.verdict.behavior),
        text("duration"),
        text("started")
    );
    let traffic = &judged.run.transcript.traffic;
    let body = html! {
        h1 { (title) }
        p.note { "Tests " (case.clause) "." }
        h2 { "Case description" } p { (text("description")) }
        h2 { "Case expectation" } p { (text("expectation")) }
        h2 { "Case outcome" }
        p { (text("result")) }
        p { "Expected:" } pre.command { (report["expected"].to_string()) }
        p { "Observed:" } pre.command { (report["received"].to_string()) }
        h2 { "Case closing behaviour" }
        p { (text("resultClose")) " (" (text("behaviorClose")) ")" }
        h2 { "Opening handshake" }
        @for key in ["httpRequest", "httpResponse"] { pre.command { (text(key).trim_end()) } }
        h2 { "Closing behaviour" }
        (report::table("closing behaviour", &html! {
            thead { tr { th scope="col" { "Key" } th.words scope="col" { "Value" }
                th.words scope="col" { "Description" } } }
            @for (key, meaning) in CLOSING {
                tr { th scope="row" { (key) } td.words { (text(key)) } td.words { (meaning) } }
            }
        }))
        h2 { "Wire statistics" }
        (octets_table("Octets received by chop size", &traffic.received))
        (octets_table("Octets transmitted by chop size", &traffic.sent))
        (frames_table("Frames received by opcode", &traffic.frames_received))
        (frames_table("Frames transmitted by opcode", &traffic.frames_sent))
        h2 { "Wire log" }
        pre.command { (wire_log(judged)) }
    };
    report::document(&title, &body)
}

/// A value as text: without the quotes of a string, and `None` as the suite writes it.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "None".to_owned(),
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        Value::Number(_) | Value::Array(_) | Value::Object(_) => value.to_string(),
    }
}

/// A verdict as the suite's pages have it.
fn word(behavior: Behavior) -> &'static str {
    match behavior {
        Behavior::Ok => "Pass",
        Behavior::NonStrict => "Non-Strict",
        Behavior::Informational => "Info",
        Behavior::Unimplemented => "Unimplemented",
        Behavior::Failed => "Fail",
    }
}

fn octets_table(heading: &str, sizes: &SizeCounts) -> Markup {
    let count: u64 = sizes.values().sum();
    let octets: u64 = sizes.iter().map(|(size, count)| *size as u64 * count).sum();
    html! {
        h3 { (heading) }
        (report::table(heading, &html! {
            thead { tr { th scope="col" { "Chop size" } th scope="col" { "Count" }
                th scope="col" { "Octets" } } }
            @for (size, count) in sizes {
                tr { th scope="row" { (size) } td { (count) } td { (*size as u64 * count) } }
            }
            tr { th scope="row" { "Total" } td { (count) } td { (octets) } }
        }))
    }
}

fn frames_table(heading: &str, frames: &BTreeMap<u8, u64>) -> Markup {
    html! {
        h3 { (heading) }
        (report::table(heading, &html! {
            thead { tr { th scope="col" { "Opcode" } th scope="col" { "Count" } } }
            @for (opcode, count) in frames { tr { th scope="row" { (opcode) } td { (count) } } }
            tr { th scope="row" { "Total" } td { (frames.values().sum::<u64>()) } }
        }))
    }
}

fn wire_log(judged: &Judged) -> String {
    let run = &judged.run;
    let handshake = [("TX", &run.handshake.request), ("RX", &run.handshake.response)];
    let heads = handshake
        .into_iter()
        .filter(|(_, head)| !head.is_empty())
        .map(|(way, head)| format!("{way} OCTETS: {}", hexadecimal(head)));
    let transcript = &run.transcript;
    let end = match (transcript.refused.is_some(), transcript.closing.dropped_by_me) {
        (true, _) => "NOT CONNECTED",
        (false, true) => "TCP DROPPED BY ME",
        (false, false) => "TCP DROPPED BY PEER",
    };
    let lines = heads.chain(transcript.log.iter().map(line)).chain([end.to_owned()]);
    let numbered: Vec<String> =
        (0..).zip(lines).map(|(number, line)| format!("{number:03} {line}")).collect();
    numbered.join("\n")
}

fn line(entry: &Entry) -> String {
    let octets = |octets: &Octets| {
        let rest = if octets.beginning.len() < octets.count { "..." } else { "" };
        format!("{}{rest}", hexadecimal(&octets.beginning))
    };
    let frame = |first: u8, payload: &Octets| {
        let (opcode, reserved) = (first & 15, first >> 4 & 7);
        let is_final = if first & 0x80 == 0 { "False" } else { "True" };
        format!("OPCODE={opcode}, FIN={is_final}, RSV={reserved}, PAYLOAD-LEN={}", payload.count)
    };
    match entry {
        Entry::Sent(sent) => format!("TX OCTETS: {}", octets(sent)),
        Entry::Received(received) => format!("RX OCTETS: {}", octets(received)),
        Entry::FrameSent(first, payload, key) => {
            let key = key.map_or("None".to_owned(), |key| hexadecimal(&key));
            format!("TX FRAME : {}, MASK={key} {}", frame(*first, payload), octets(payload))
        }
        Entry::FrameReceived(first, payload) => {
            format!("RX FRAME : {} {}", frame(*first, payload), octets(payload))
        }
        Entry::Pause(duration, name) => {
            format!("DELAY {:.3} sec for TAG {name}", duration.as_secs_f64())
        }
        Entry::PauseOver(name) => format!("DELAY TIMEOUT on TAG {name}"),
        Entry::LimitOver => "TIME IS OVER".to_owned(),
        Entry::Off => "WIRELOG DISABLED".to_owned(),
        Entry::On => "WIRELOG ENABLED".to_owned(),
    }
}

/// The page of all cases against all agents.
fn index_page(index: &Map<String, Value>) -> String {
    let agents: Vec<&String> = index.keys().collect();
    let run: BTreeSet<&String> =
        index.values().filter_map(Value::as_object).flat_map(Map::keys).collect();
    let mut sections: BTreeMap<u16, Vec<Case>> = BTreeMap::new();
    for case in cases::every(Volume::Full) {
        if run.contains(&case.number.to_string()) {
            sections.entry(case.number.section()).or_default().push(case);
        }
    }
    let title = "WebSocket conformance";
    let body = html! {
        h1 { (title) }
        p.when { "By the cases and rules of the Autobahn test suite. Each verdict links to its report; the
            number after it is the code in the peer's close frame." }
        @for (section, cases) in &sections {
            h2 {
                (section) " " (section_name(*section))
                @if is_own(*section) { small { " (own section, not of the suite)" } }
            }
            (report::table(section_name(*section), &html! {
                thead { tr {
                    th scope="col" { "Case" }
                    @for agent in &agents { th.words scope="col" { (agent) } }
                } }
                @for case in cases {
                    tr {
                        th scope="row" { (case.number) small { (case.description) } }
                        @for agent in &agents { (cell(&index[*agent][case.number.to_string()])) }
                    }
                }
            }))
        }
    };
    report::document(title, &body)
}

/// The verdicts of an agent on a case.
fn cell(entry: &Value) -> Markup {
    let Some(behavior) = entry["behavior"].as_str() else {
        return html! { td.words.doubt { "Missing" } };
    };
    let close = entry["behaviorClose"].as_str().unwrap_or_default();
    let is_bad = behavior == "FAILED" || !matches!(close, "OK" | "INFORMATIONAL");
    let page = entry["reportfile"].as_str().unwrap_or_default().replace(".json", ".html");
    let shown = Behavior::ALL.into_iter().find(|it| it.to_string() == behavior).map_or("", word);
    let close = if matches!(close, "OK" | "INFORMATIONAL") { "" } else { close };
    html! {
        td.words.bad[is_bad] {
            a href=(page) { (shown) } " " (plain(&entry["remoteCloseCode"])) " " (close)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_named_as_the_suite_names_them() {
        let number = Number::triple(9, 7, 2);
        assert_eq!(file_name("AutobahnServer/0.4.10", number), "autobahnserver_0_4_10_case_9_7_2");
        assert_eq!(file_name(" ws://a/ ", number), "ws___a_case_9_7_2");
        assert_eq!(file_name("a", Number::pair(2, 10)), "a_case_2_10");
    }

    #[test]
    fn a_moment_is_written_as_the_suite_writes_it() {
        let since = Duration::from_secs(1_326_120_336);
        assert_eq!(moment(since), "2012-01-09T14:45:36Z");
    }
}
