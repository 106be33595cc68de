//! The report of one case in the form of the Autobahn test suite, as a page and as JSON: expectation
//! and outcome, the opening handshake, who closed the connection and how, and what went over the
//! wire. It uses the suite's words, so that the two reports can be compared: octets, chop size,
//! `closedByMe`. This file measures nothing.

use std::fs;
use std::io;
use std::path::Path;

use maud::{Markup, html};
use serde::Serialize;

use crate::report;
use crate::rtt::{Case, Outcome, SizeCounts};
use crate::target::Target;

/// The report of one case.
#[derive(Debug, Serialize)]
struct Report {
    case: String,
    description: String,
    expectation: &'static str,
    outcome: String,
    passed: bool,
    duration_ms: f64,
    target: String,
    request: String,
    response: String,
    closing: Closing,
    octets_received_by_chop_size: Vec<Chop>,
    octets_transmitted_by_chop_size: Vec<Chop>,
    frames_received_by_opcode: Vec<Frames>,
    frames_transmitted_by_opcode: Vec<Frames>,
    wire_log: Vec<String>,
}

/// How the connection ended, in the suite's words.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Closing {
    /// The client sent its close frame first.
    closed_by_me: bool,
    /// The client failed the connection.
    failed_by_me: bool,
    /// The client ended the TCP connection.
    dropped_by_me: bool,
    /// Close frames went both ways and the server ended the TCP connection.
    was_clean: bool,
    local_close_code: Option<u16>,
    remote_close_code: Option<u16>,
}

#[derive(Debug, Serialize)]
struct Chop {
    chop_size: usize,
    count: u64,
    octets: u64,
}

#[derive(Debug, Serialize)]
struct Frames {
    opcode: u8,
    count: u64,
}

/// Creates the directory for reports, and checks that files can be created in it.
///
/// # Errors
///
/// When they cannot.
pub fn prepare(directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    let probe = directory.join(format!(".ringbench-{}", std::process::id()));
    fs::write(&probe, "")?;
    fs::remove_file(probe)
}

/// Writes `DIRECTORY/CASE.json` and `DIRECTORY/CASE.html`.
///
/// # Errors
///
/// When they cannot be written.
pub fn write(directory: &Path, target: &Target, case: &Case, outcome: &Outcome) -> io::Result<()> {
    let report = Report::new(target, case, outcome);
    fs::create_dir_all(directory)?;
    let name = case.name.replace([' ', '/'], "_");
    let json = serde_json::to_string_pretty(&report)? + "\n";
    fs::write(directory.join(format!("{name}.json")), json)?;
    fs::write(directory.join(format!("{name}.html")), report.page())
}

impl Report {
    fn new(target: &Target, case: &Case, outcome: &Outcome) -> Report {
        let wire = &outcome.wire;
        let echoed = outcome.latencies.count();
        let passed = outcome.problem.is_none() && echoed == case.messages;
        let verdict = match &outcome.problem {
            None if passed => "Ok, received all echo'ed messages in time.".to_owned(),
            None => format!("Ended after {echoed} of {} messages.", case.messages),
            Some(problem) => format!("After {echoed} of {} messages: {problem}.", case.messages),
        };
        let close_sent = unmasked(&wire.close_sent);
        let is_closed = !wire.close_received.is_empty();
        let mut log = Vec::new();
        if target.websocket.is_some() {
            log.push(format!("TX OCTETS: {}", hexadecimal(&wire.handshake.request)));
            log.push(format!("RX OCTETS: {}", hexadecimal(&wire.handshake.response)));
            log.push(format!("{echoed} messages, not logged"));
        }
        if !wire.close_sent.is_empty() {
            log.push("TX FRAME: OPCODE=8, FIN=True, RSV=0, MASKED=True".to_owned());
            log.push(format!("TX OCTETS: {}", hexadecimal(&wire.close_sent)));
        }
        if is_closed {
            log.push(format!("RX OCTETS: {}", hexadecimal(&wire.close_received)));
            log.push("RX FRAME: OPCODE=8, FIN=True, RSV=0, MASKED=False".to_owned());
        }
        let dropped = if wire.is_dropped_by_server { "PEER" } else { "ME" };
        log.push(format!("TCP DROPPED BY {dropped}"));
        Report {
            case: case.name.clone(),
            description: case.description(),
            expectation: "Receive echo'ed messages (with payload as sent), each within 10 s.",
            outcome: verdict,
            passed,
            duration_ms: outcome.duration.as_secs_f64() * 1000.0,
            target: target.to_string(),
            request: String::from_utf8_lossy(&wire.handshake.request).into_owned(),
            response: String::from_utf8_lossy(&wire.handshake.response).into_owned(),
            closing: Closing {
                closed_by_me: !wire.close_sent.is_empty(),
                failed_by_me: outcome.problem.is_some() && wire.close_sent.is_empty(),
                dropped_by_me: !wire.is_dropped_by_server,
                was_clean: is_closed && !wire.close_sent.is_empty() && wire.is_dropped_by_server,
                local_close_code: close_sent.first_chunk().map(|code| u16::from_be_bytes(*code)),
                remote_close_code: wire.close_code,
            },
            octets_received_by_chop_size: chops(&wire.received),
            octets_transmitted_by_chop_size: chops(&wire.sent),
            frames_received_by_opcode: frames(&wire.frames_received),
            frames_transmitted_by_opcode: frames(&wire.frames_sent),
            wire_log: (0..).zip(log).map(|(number, line)| format!("{number:03} {line}")).collect(),
        }
    }

    fn page(&self) -> String {
        let verdict = if self.passed { "Pass" } else { "Fail" };
        let title = format!("Case {}: {verdict}, {:.0} ms", self.case, self.duration_ms);
        let body = html! {
            h1 { (title) }
            @for (heading, text) in [
                ("Target", self.target.as_str()),
                ("Description", &self.description),
                ("Expectation", self.expectation),
                ("Outcome", &self.outcome),
            ] {
                h2 { (heading) }
                p { (text) }
            }
            h2 { "Opening handshake" }
            @for text in [&self.request, &self.response] { pre { (text.trim_end()) } }
            h2 { "Closing behaviour" }
            (self.closing.table())
            @for (heading, chops) in [
                ("Octets received by chop size", &self.octets_received_by_chop_size),
                ("Octets transmitted by chop size", &self.octets_transmitted_by_chop_size),
            ] {
                h2 { (heading) }
                (chop_table(heading, chops))
            }
            @for (heading, frames) in [
                ("Frames received by opcode", &self.frames_received_by_opcode),
                ("Frames transmitted by opcode", &self.frames_transmitted_by_opcode),
            ] {
                h2 { (heading) }
                (frame_table(heading, frames))
            }
            h2 { "Wire log" }
            pre { (self.wire_log.join("\n")) }
        };
        report::document(&title, &body)
    }
}

impl Closing {
    fn table(&self) -> Markup {
        let code = |code: Option<u16>| code.map_or("none".to_owned(), |code| code.to_string());
        let rows = [
            ("closedByMe", self.closed_by_me.to_string(), "the client sent its close frame first"),
            ("failedByMe", self.failed_by_me.to_string(), "the client failed the connection"),
            ("droppedByMe", self.dropped_by_me.to_string(), "the client ended the TCP connection"),
            (
                "wasClean",
                self.was_clean.to_string(),
                "close frames went both ways and the server ended the TCP connection",
            ),
            ("localCloseCode", code(self.local_close_code), "in the client's close frame"),
            ("remoteCloseCode", code(self.remote_close_code), "in the server's close frame"),
        ];
        report::table(
            "closing behaviour",
            &html! {
                @for (name, value, meaning) in rows {
                    tr { th scope="row" { (name) } td { (value) } td.words { (meaning) } }
                }
            },
        )
    }
}

fn chop_table(label: &str, chops: &[Chop]) -> Markup {
    let count: u64 = chops.iter().map(|chop| chop.count).sum();
    let octets: u64 = chops.iter().map(|chop| chop.octets).sum();
    report::table(
        label,
        &html! {
            tr { th scope="col" { "chop size" } th scope="col" { "count" } th scope="col" { "octets" } }
            @for chop in chops {
                tr { th scope="row" { (chop.chop_size) } td { (chop.count) } td { (chop.octets) } }
            }
            tr { th scope="row" { "total" } td { (count) } td { (octets) } }
        },
    )
}

fn frame_table(label: &str, frames: &[Frames]) -> Markup {
    let count: u64 = frames.iter().map(|frames| frames.count).sum();
    report::table(
        label,
        &html! {
            tr { th scope="col" { "opcode" } th scope="col" { "count" } }
            @for frames in frames {
                tr { th scope="row" { (frames.opcode) } td { (frames.count) } }
            }
            tr { th scope="row" { "total" } td { (count) } }
        },
    )
}

fn chops(chops: &SizeCounts) -> Vec<Chop> {
    let chop = |(&chop_size, &count): (&usize, &u64)| Chop {
        chop_size,
        count,
        octets: chop_size as u64 * count,
    };
    chops.iter().map(chop).collect()
}

fn frames(frames: &std::collections::BTreeMap<u8, u64>) -> Vec<Frames> {
    frames.iter().map(|(&opcode, &count)| Frames { opcode, count }).collect()
}

/// The payload of a short masked frame.
fn unmasked(frame: &[u8]) -> Vec<u8> {
    let Some((key, payload)) = frame.get(2..).and_then(|rest| rest.split_first_chunk::<4>()) else {
        return Vec::new();
    };
    payload.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key).collect()
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rtt::Wire;
    use crate::session::Form;

    #[test]
    fn a_page_sums_up_and_escapes_what_the_server_sent() {
        let target = "ws://127.0.0.1:9001/".parse().expect("a target");
        let form = Form::Text;
        let case = Case { name: "9.7.2".to_owned(), payload_bytes: 16, form, messages: 1000 };
        let mut wire = Wire { received: [(18, 1000), (2, 3)].into(), ..Wire::default() };
        wire.handshake.response = b"HTTP/1.1 101 <b>&\r\n\r\n".to_vec();
        let outcome = Outcome { wire, ..Outcome::default() };
        let page = Report::new(&target, &case, &outcome).page();
        assert!(page.contains("1003") && page.contains("18006"), "{page}");
        assert!(page.contains("101 &lt;b&gt;&amp;</pre>"), "{page}");
        assert!(page.contains("Ended after 0 of 1000 messages."), "{page}");
    }
}
