//! The page of a case, with everything that the suite's has.

use std::collections::BTreeMap;
use std::fmt::Display;

use maud::{Markup, html};

use super::{CaseReport, octets, parts, shown};
use crate::conform::{Behavior, BehaviorClose};
use crate::report;
use crate::wire::{AtLimit, Closing, Entry, Octets, SizeCounts, hexadecimal};

/// Characters of what was expected and observed that are shown.
const EVENTS_MAX: usize = 1000;

impl CaseReport {
    /// The page.
    pub(super) fn page(&self) -> String {
        let CaseReport { agent, id, verdict, handshake, traffic, .. } = self;
        let title = format!(
            "{agent} - Case {id} : {} - {} ms @ {}",
            word(verdict.behavior),
            self.duration_ms(),
            self.moment()
        );
        let report = self.json();
        let body = html! {
            nav { a href="index.html" { "All cases" } }
            h1 .verdict.(class(verdict.behavior, verdict.behavior_close)) { (title) }
            @if let Some(clause) = self.clause { p.note { "Tests " (clause) "." } }
            h2 { "Case description" } p { (self.description) }
            h2 { "Case expectation" } p { (self.expectation) }
            h2 { "Case outcome" }
            p { (verdict.result) }
            h3 { "Expected" } pre.command { (events(&report["expected"].to_string())) }
            h3 { "Observed" } pre.command { (events(&report["received"].to_string())) }
            h2 { "Case closing behaviour" }
            p { (verdict.result_close) " (" (verdict.behavior_close) ")" }
            h2 { "Opening handshake" }
            @for (label, head) in [("Request", &handshake.request), ("Response", &handshake.response)] {
                h3 { (label) }
                pre.command { (String::from_utf8_lossy(head).trim_end()) }
            }
            h2 { "Closing behaviour" }
            (closing_table(&self.closing))
            h2 { "Wire statistics" }
            (octets_table("Octets received by chop size", &traffic.received))
            (octets_table("Octets transmitted by chop size", &traffic.sent))
            (frames_table("Frames received by opcode", &traffic.frames_received))
            (frames_table("Frames transmitted by opcode", &traffic.frames_sent))
            h2 { "Wire log" }
            (self.wire_log())
        };
        report::document(&title, &body)
    }

    fn wire_log(&self) -> Markup {
        let (sent, received) = self.heads();
        let mut heads = [("TX", "tx", sent), ("RX", "rx", received)];
        if self.closing.is_server {
            heads.reverse();
        }
        let heads = heads
            .into_iter()
            .filter(|(.., head)| !head.is_empty())
            .map(|(way, class, head)| (class, format!("{way} OCTETS: {}", hexadecimal(head))));
        let end = if self.handshake.request.is_empty() && self.traffic.sent.is_empty() {
            "NOT CONNECTED"
        } else if self.closing.dropped_by_me {
            "TCP DROPPED BY ME"
        } else {
            "TCP DROPPED BY PEER"
        };
        let lines = heads.chain(self.log.iter().map(line)).chain([("note", end.to_owned())]);
        html! {
            pre.log {
                @for (number, (class, line)) in (0..).zip(lines) {
                    span .(class) { (format!("{number:03} {line}\n")) }
                }
            }
        }
    }
}

/// A verdict on what came back, as the suite's pages have it.
pub(super) fn word(behavior: Behavior) -> &'static str {
    match behavior {
        Behavior::Ok => "Pass",
        Behavior::NonStrict => "Non-Strict",
        Behavior::Informational => "Info",
        Behavior::Unimplemented => "Unimplemented",
        Behavior::Failed => "Fail",
    }
}

/// The class of both verdicts in the style of the pages: that of the worse one.
pub(super) fn class(behavior: Behavior, close: BehaviorClose) -> &'static str {
    match (behavior, close) {
        (Behavior::Failed, _)
        | (_, BehaviorClose::Failed | BehaviorClose::WrongCode | BehaviorClose::Unclean) => {
            "failed"
        }
        (Behavior::NonStrict, _) | (_, BehaviorClose::FailedByClient) => "lax",
        (Behavior::Unimplemented, _) => "missing",
        (Behavior::Informational, _) | (_, BehaviorClose::Informational) => "open",
        (Behavior::Ok, BehaviorClose::Ok) => "passed",
    }
}

fn events(text: &str) -> String {
    match text.char_indices().nth(EVENTS_MAX) {
        Some((end, _)) => format!("{} ...", &text[..end]),
        None => text.to_owned(),
    }
}

fn closing_table(closing: &Closing) -> Markup {
    /// As the suite writes it.
    fn optional(value: Option<&dyn Display>) -> String {
        value.map_or("None".to_owned(), ToString::to_string)
    }
    fn code(code: &Option<u16>) -> String {
        optional(code.as_ref().map(|code| code as &dyn Display))
    }
    fn text(text: &Option<String>) -> String {
        optional(text.as_ref().map(|text| text as &dyn Display))
    }
    fn truth(truth: bool) -> String {
        if truth { "True" } else { "False" }.to_owned()
    }
    let rows = [
        ("isServer", truth(closing.is_server), "This program is the server."),
        ("closedByMe", truth(closing.closed_by_me), "This program sent the first close frame."),
        (
            "failedByMe",
            truth(closing.failed_by_me),
            "This program failed the connection, by a close frame or by ending the TCP connection.",
        ),
        ("droppedByMe", truth(closing.dropped_by_me), "This program ended the TCP connection."),
        (
            "wasClean",
            truth(closing.was_clean),
            "Close frames went both ways, and the server ended the TCP connection, as it should.",
        ),
        ("wasNotCleanReason", text(&closing.was_not_clean_reason), "If it was not clean: why."),
        (
            "wasServerConnectionDropTimeout",
            truth(closing.was_server_connection_drop_timeout),
            "The server did not end the TCP connection in time.",
        ),
        (
            "wasOpenHandshakeTimeout",
            truth(closing.was_open_handshake_timeout),
            "The peer did not finish the opening handshake in time.",
        ),
        (
            "wasCloseHandshakeTimeout",
            truth(closing.was_close_handshake_timeout),
            "The peer did not answer this program's close frame in time.",
        ),
        (
            "localCloseCode",
            code(&closing.local_close_code),
            "The code in the close frame that this program sent, if it sent one.",
        ),
        ("localCloseReason", text(&closing.local_close_reason), "The reason in that frame."),
        (
            "remoteCloseCode",
            code(&closing.remote_close_code),
            "The code in the peer's close frame, if it sent one.",
        ),
        ("remoteCloseReason", text(&closing.remote_close_reason), "The reason in that frame."),
    ];
    report::table(
        "closing behaviour",
        &html! {
            thead { tr {
                th scope="col" { "Key" }
                th.words scope="col" { "Value" }
                th.words scope="col" { "Description" }
            } }
            tbody {
                @for (key, value, meaning) in rows {
                    tr {
                        th.key scope="row" { @for word in words(key) { wbr; (word) } }
                        td.words { (value) }
                        td.words.long { (meaning) }
                    }
                }
            }
        },
    )
}

/// A key in the words of which it consists, between which a narrow page may break it.
fn words(key: &str) -> Vec<&str> {
    let capitals = key.match_indices(char::is_uppercase).map(|(at, _)| at);
    let begins: Vec<usize> = [0].into_iter().chain(capitals).collect();
    let ends = begins[1..].iter().copied().chain([key.len()]);
    begins.iter().zip(ends).map(|(begin, end)| &key[*begin..end]).collect()
}

fn octets_table(heading: &str, sizes: &SizeCounts) -> Markup {
    let count: u64 = sizes.values().sum();
    let octets: u64 = sizes.iter().map(|(size, count)| *size as u64 * count).sum();
    html! {
        h3 { (heading) }
        (report::table(heading, &html! {
            thead { tr {
                th scope="col" { "Chop size" } th scope="col" { "Count" } th scope="col" { "Octets" }
            } }
            tbody {
                @for (size, count) in sizes {
                    tr { th scope="row" { (size) } td { (count) } td { (*size as u64 * count) } }
                }
                tr.sum { th scope="row" { "Total" } td { (count) } td { (octets) } }
            }
        }))
    }
}

fn frames_table(heading: &str, frames: &BTreeMap<u8, u64>) -> Markup {
    html! {
        h3 { (heading) }
        (report::table(heading, &html! {
            thead { tr { th scope="col" { "Opcode" } th scope="col" { "Count" } } }
            tbody {
                @for (opcode, count) in frames { tr { th scope="row" { (opcode) } td { (count) } } }
                tr.sum { th scope="row" { "Total" } td { (frames.values().sum::<u64>()) } }
            }
        }))
    }
}

/// A line of the wire log: its class in the style of the page, and its text, by the suite's words.
fn line(entry: &Entry) -> (&'static str, String) {
    let truth = |truth| if truth { "True" } else { "False" };
    let mask = |key: &Option<[u8; 4]>| key.map_or("None".to_owned(), |key| hexadecimal(&key));
    let payload = |payload: &Octets| match payload.count {
        0 => String::new(),
        count => format!(" {}", shown(&payload.beginning, count)),
    };
    let header = |first: u8| {
        let (is_final, reserved, opcode) = parts(first);
        format!("OPCODE={opcode}, FIN={}, RSV={reserved}", truth(is_final))
    };
    match entry {
        Entry::Sent(sent) => ("tx", format!("TX OCTETS: {}", octets(sent))),
        Entry::Received(received) => ("rx", format!("RX OCTETS: {}", octets(received))),
        // The suite names how a payload is repeated and how a frame is cut. Here, what is logged is what
        // was sent, and the sends follow.
        Entry::FrameSent(first, sent, key) => {
            let text = format!(
                "TX FRAME : {}, PAYLOAD-LEN={}, MASK={}, PAYLOAD-REPEAT-LEN=None, CHOPSIZE=None, \
                 SYNC=False{}",
                header(*first),
                sent.count,
                mask(key),
                payload(sent)
            );
            ("tx", text)
        }
        Entry::FrameReceived(first, received, key) => {
            let text = format!(
                "RX FRAME : {}, PAYLOAD-LEN={}, MASKED={}, MASK={}{}",
                header(*first),
                received.count,
                truth(key.is_some()),
                mask(key),
                payload(received)
            );
            ("rx", text)
        }
        Entry::Pause(duration, name) => {
            ("note", format!("DELAY {:.6} sec for TAG {name}", duration.as_secs_f64()))
        }
        Entry::PauseOver(name) => ("note", format!("DELAY TIMEOUT on TAG {name}")),
        Entry::Limit(AtLimit::Fail, time) => {
            ("note", format!("FAIL CONNECTION AFTER {:.6} sec", time.as_secs_f64()))
        }
        Entry::Limit(AtLimit::Close, time) => {
            ("note", format!("CLOSE CONNECTION AFTER {:.6} sec", time.as_secs_f64()))
        }
        Entry::LimitOver(AtLimit::Fail) => ("note", "FAILING CONNECTION".to_owned()),
        Entry::LimitOver(AtLimit::Close) => ("note", "CLOSING CONNECTION".to_owned()),
        Entry::Off => ("note", "WIRELOG DISABLED".to_owned()),
        Entry::On => ("note", "WIRELOG ENABLED".to_owned()),
    }
}
