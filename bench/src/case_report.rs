//! The report of a case in the format of the Autobahn suite: a JSON file and a page for each case, and
//! an index of all agents as JSON and as a page. Programs that read the suite's reports read these too.
//!
//! The suite's words stay, so that the two can be compared: octets, chop size, `closedByMe`. Nothing here
//! measures or judges.

mod directory;
mod index;
mod page;

pub use self::directory::{prepare, write};

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde_json::{Value, json};

use crate::conform::{Behavior, Verdict};
use crate::opening::Handshake;
use crate::wire::{AtLimit, Closing, Entry, Octets, Traffic, Volume, Volumes, hexadecimal};

/// Bytes of a payload that are shown.
const SHOWN_MAX: usize = 64;
/// What the suite writes after the beginning of something that is longer.
const ELLIPSIS: &str = " ...";

/// Everything about a case on one connection.
#[derive(Debug, Clone)]
pub struct CaseReport {
    /// Its place among the cases that were run, counted from 1.
    pub place: usize,
    /// Its number, or a name if it is not one of the suite's.
    pub id: String,
    /// The rule that it tests.
    pub clause: Option<&'static str>,
    /// What was sent.
    pub description: String,
    /// What had to come back.
    pub expectation: String,
    /// What was tested.
    pub agent: String,
    /// When it began.
    pub started: SystemTime,
    /// How long it took.
    pub duration: Duration,
    /// The verdicts, with their reasons.
    pub verdict: Verdict,
    /// What may come back, and what that is worth. Each event is written as [`message`] and its like do.
    pub expected: Vec<(Behavior, Vec<Value>)>,
    /// How the connection should end.
    pub expected_close: ExpectedClose,
    /// What came back.
    pub received: Vec<Value>,
    /// Whether the duration says something about the peer.
    pub is_timed: bool,
    /// What its messages took, if they were compressed.
    pub compressed: Option<Volumes>,
    /// How the connection ended.
    pub closing: Closing,
    /// What went over the wire.
    pub traffic: Traffic,
    /// The same in its order, without the opening handshake.
    pub log: Vec<Entry>,
    /// The opening handshake; empty if there was none.
    pub handshake: Handshake,
}

/// How the connection of a case should end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ExpectedClose {
    /// Whether this program begins the closing handshake.
    pub closed_by_me: bool,
    /// The codes that the peer may send.
    pub close_code: Vec<u16>,
    /// Whether the closing handshake has to be complete.
    pub require_clean: bool,
}

impl CaseReport {
    /// All of it, by the suite's names.
    fn json(&self) -> Value {
        let mut expected: BTreeMap<String, &Vec<Value>> = BTreeMap::new();
        for (behavior, events) in &self.expected {
            // The suite has one list for each verdict, and so the first one here.
            expected.entry(behavior.to_string()).or_insert(events);
        }
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let mut report = json!({
            "case": self.place,
            "id": self.id,
            "description": self.description,
            "expectation": self.expectation,
            "agent": self.agent,
            "started": self.moment(),
            "duration": self.duration_ms(),
            "reportTime": self.is_timed,
            "reportCompressionRatio": self.compressed.is_some(),
            "behavior": self.verdict.behavior,
            "behaviorClose": self.verdict.behavior_close,
            "expected": expected,
            "expectedClose": self.expected_close,
            "received": self.received,
            "result": self.verdict.result,
            "resultClose": self.verdict.result_close,
            "wirelog": self.log.iter().map(row).collect::<Vec<_>>(),
            "createWirelog": true,
            "createStats": true,
            "rxOctetStats": self.traffic.received,
            "rxFrameStats": self.traffic.frames_received,
            "txOctetStats": self.traffic.sent,
            "txFrameStats": self.traffic.frames_sent,
            "httpRequest": text(&self.handshake.request),
            "httpResponse": text(&self.handshake.response),
            "trafficStats": self.compressed.map(|volumes| traffic(&volumes, self.heads())),
        });
        if let (Value::Object(report), Ok(Value::Object(closing))) =
            (&mut report, serde_json::to_value(&self.closing))
        {
            report.extend(closing);
        }
        report
    }

    /// What was sent and what was received of the opening handshake.
    fn heads(&self) -> (&[u8], &[u8]) {
        let Handshake { request, response } = &self.handshake;
        if self.closing.is_server { (response, request) } else { (request, response) }
    }

    /// What the index says of it.
    fn entry(&self, file: &str) -> Value {
        json!({
            "behavior": self.verdict.behavior,
            "behaviorClose": self.verdict.behavior_close,
            "duration": self.duration_ms(),
            "remoteCloseCode": self.closing.remote_close_code,
            "reportfile": file,
        })
    }

    fn duration_ms(&self) -> u64 {
        self.duration.as_millis() as u64
    }

    /// The date and time at which it began, in whole seconds.
    fn moment(&self) -> String {
        let since = self.started.duration_since(UNIX_EPOCH).unwrap_or_default();
        humantime::format_rfc3339_seconds(UNIX_EPOCH + since).to_string()
    }
}

/// A message that came back or should, as the suite writes it.
pub fn message(payload: &[u8], is_binary: bool) -> Value {
    json!(["message", shown(payload, payload.len()), is_binary])
}

/// A ping.
pub fn ping(payload: &[u8]) -> Value {
    json!(["ping", shown(payload, payload.len())])
}

/// A pong.
pub fn pong(payload: &[u8]) -> Value {
    json!(["pong", shown(payload, payload.len())])
}

/// A pause of this name that the connection survived.
pub fn pause(name: char) -> Value {
    json!(["timeout", name])
}

/// Something that the suite does not know, in words.
pub fn other(text: &str) -> Value {
    json!(["other", text])
}

/// The beginning of `count` bytes as text, or in hexadecimal if it is not text.
fn shown(beginning: &[u8], count: usize) -> String {
    let kept = &beginning[..beginning.len().min(SHOWN_MAX)];
    let is_cut = kept.len() < count;
    let text = match str::from_utf8(kept) {
        Ok(text) => Some(text),
        // The cut may go through a character.
        Err(error) if is_cut && error.error_len().is_none() => {
            str::from_utf8(&kept[..error.valid_up_to()]).ok()
        }
        Err(_) => None,
    };
    let text = match text.filter(|text| !text.contains(char::is_control)) {
        Some(text) => text.to_owned(),
        None => format!("0x{}", hexadecimal(kept)),
    };
    if is_cut { text + ELLIPSIS } else { text }
}

/// The beginning of bytes in hexadecimal.
fn octets(octets: &Octets) -> String {
    let rest = if octets.beginning.len() < octets.count { ELLIPSIS } else { "" };
    hexadecimal(&octets.beginning) + rest
}

/// FIN, the reserved bits and the opcode in the first byte of a frame.
fn parts(first: u8) -> (bool, u8, u8) {
    (first & 0x80 != 0, first >> 4 & 7, first & 15)
}

/// A line of the wire log as the suite has it in JSON.
fn row(entry: &Entry) -> Value {
    let bytes = |bytes: &Octets| json!([bytes.count, octets(bytes)]);
    let payload = |bytes: &Octets| json!([bytes.count, shown(&bytes.beginning, bytes.count)]);
    let key = |key: &Option<[u8; 4]>| key.map(|key| hexadecimal(&key));
    match entry {
        Entry::Sent(sent) => json!(["TO", bytes(sent), false]),
        Entry::Received(received) => json!(["RO", bytes(received)]),
        Entry::FrameSent(first, sent, mask) => {
            let (is_final, reserved, opcode) = parts(*first);
            let mask = key(mask);
            json!(["TF", payload(sent), opcode, is_final, reserved, mask, null, null, false])
        }
        Entry::FrameReceived(first, received, mask) => {
            let (is_final, reserved, opcode) = parts(*first);
            let (is_masked, mask) = (mask.is_some(), key(mask));
            json!(["RF", payload(received), opcode, is_final, reserved, is_masked, mask])
        }
        Entry::Pause(duration, name) => json!(["CT", duration.as_secs_f64(), name]),
        Entry::PauseOver(name) => json!(["CTE", name]),
        Entry::Limit(AtLimit::Fail, time) => json!(["KL", time.as_secs_f64()]),
        Entry::Limit(AtLimit::Close, time) => json!(["TI", time.as_secs_f64()]),
        Entry::LimitOver(AtLimit::Fail) => json!(["KLE"]),
        Entry::LimitOver(AtLimit::Close) => json!(["TIE"]),
        Entry::Off => json!(["WLM", false]),
        Entry::On => json!(["WLM", true]),
    }
}

/// What messages took, by the suite's names. A ratio is null where there was nothing.
fn traffic(volumes: &Volumes, (head_sent, head_received): (&[u8], &[u8])) -> Value {
    let Volumes { sent, received } = volumes;
    let ratio = |part: u64, whole: u64| (whole > 0).then(|| part as f64 / whole as f64);
    let overhead = |it: &Volume| ratio(it.wire_bytes - it.payload_bytes, it.payload_bytes);
    json!({
        "outgoingOctetsWireLevel": sent.wire_bytes,
        "outgoingOctetsWebSocketLevel": sent.payload_bytes,
        "outgoingOctetsAppLevel": sent.message_bytes,
        "outgoingWebSocketFrames": sent.frames,
        "outgoingWebSocketMessages": sent.messages,
        "outgoingWebSocketOverhead": overhead(sent),
        "outgoingCompressionRatio": ratio(sent.payload_bytes, sent.message_bytes),
        "preopenOutgoingOctetsWireLevel": head_sent.len(),
        "incomingOctetsWireLevel": received.wire_bytes,
        "incomingOctetsWebSocketLevel": received.payload_bytes,
        "incomingOctetsAppLevel": received.message_bytes,
        "incomingWebSocketFrames": received.frames,
        "incomingWebSocketMessages": received.messages,
        "incomingWebSocketOverhead": overhead(received),
        "incomingCompressionRatio": ratio(received.payload_bytes, received.message_bytes),
        "preopenIncomingOctetsWireLevel": head_received.len(),
    })
}

#[cfg(test)]
mod tests;
