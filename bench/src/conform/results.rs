//! The outcome of a run as it is written to JSON, with everything that is known of each case.

use std::time::UNIX_EPOCH;

use serde::Serialize;

use super::case::Case;
use super::cases::is_own;
use super::number::Number;
use super::suite::Judged;
use super::verdict::{Behavior, BehaviorClose};
use crate::wire::{Closing, Traffic, Volumes};

/// The version of this format.
pub const FORMAT: u32 = 1;

/// A run.
#[derive(Debug, Serialize)]
pub struct Results {
    /// [`FORMAT`].
    pub format: u32,
    /// The command line.
    pub command: Vec<String>,
    /// What was tested.
    pub agent: String,
    /// Where it was tested.
    pub target: String,
    /// Whether sections 9, 12 and 13 had fewer messages.
    pub is_quick: bool,
    /// Why not all cases were run, if so.
    pub cut_short: Option<String>,
    /// What to keep in mind, in sentences.
    pub notes: Vec<String>,
    /// When it began, in seconds since 1970.
    pub started_at_s: f64,
    /// How long it took.
    pub duration_s: f64,
    /// The cases of the Autobahn suite.
    pub suite: Tally,
    /// The own cases.
    pub own: Tally,
    /// The cases in order.
    pub cases: Vec<CaseResult>,
}

/// Cases, and how many of them are as expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// How many were to be run.
    pub cases: usize,
    /// How many are as expected.
    pub as_expected: usize,
}

impl Tally {
    /// Of the own cases that were to be run and of what came of them, or of those of the Autobahn suite.
    pub fn of(cases: &[Case], results: &[CaseResult], own: bool) -> Tally {
        let results = results.iter().filter(|case| case.is_own == own);
        Tally {
            cases: cases.iter().filter(|case| is_own(case.number.section()) == own).count(),
            as_expected: results.filter(|case| case.difference.is_none()).count(),
        }
    }
}

/// A case.
#[derive(Debug, Serialize)]
pub struct CaseResult {
    /// Its number.
    pub case: Number,
    /// Whether it is an own case, which the Autobahn suite does not have.
    pub is_own: bool,
    /// The rule that it tests.
    pub clause: &'static str,
    /// What was sent.
    pub description: String,
    /// What had to come back.
    pub expectation: String,
    /// The verdict on what came back.
    pub behavior: Behavior,
    /// Why.
    pub result: String,
    /// The verdict on how the connection ended.
    pub behavior_close: BehaviorClose,
    /// Why.
    pub result_close: String,
    /// In what it is not as expected.
    pub difference: Option<String>,
    /// What came back, in order.
    pub observed: Vec<String>,
    /// How the connection ended.
    pub closing: Closing,
    /// What went over the wire.
    pub traffic: Traffic,
    /// The messages among that.
    pub messages: Volumes,
    /// The request of the opening handshake.
    pub request: String,
    /// The response to it.
    pub response: String,
    /// When the case began, in seconds since 1970.
    pub started_at_s: f64,
    /// How long it took.
    pub duration_s: f64,
}

impl CaseResult {
    /// A case that was judged.
    pub fn new(case: &Case, judged: &Judged, difference: Option<String>) -> CaseResult {
        let Judged { run, verdict, .. } = judged;
        let head = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let started = run.started.duration_since(UNIX_EPOCH).unwrap_or_default();
        CaseResult {
            case: case.number,
            is_own: is_own(case.number.section()),
            clause: case.clause,
            description: case.description.clone(),
            expectation: case.expectation.clone(),
            behavior: verdict.behavior,
            result: verdict.result.clone(),
            behavior_close: verdict.behavior_close,
            result_close: verdict.result_close.clone(),
            difference,
            observed: run.transcript.events.iter().map(ToString::to_string).collect(),
            closing: run.transcript.closing.clone(),
            traffic: run.transcript.traffic.clone(),
            messages: run.transcript.messages,
            request: head(&run.handshake.request),
            response: head(&run.handshake.response),
            started_at_s: started.as_secs_f64(),
            duration_s: run.duration.as_secs_f64(),
        }
    }
}

/// The value of the field Server in a response, which says what was tested.
pub fn server_name(response: &str) -> Option<&str> {
    response.lines().skip(1).find_map(|line| {
        let (name, value) = line.split_once(':')?;
        let value = value.trim();
        (name.eq_ignore_ascii_case("server") && !value.is_empty()).then_some(value)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_named_by_its_own_field() {
        let response = "HTTP/1.1 101 Server: no\r\nUpgrade: websocket\r\nSERVER: a/1.0 \r\n\r\n";
        assert_eq!(server_name(response), Some("a/1.0"));
        assert_eq!(server_name("HTTP/1.1 101\r\nX-Server: b\r\nServer:\r\n\r\n"), None);
    }
}
