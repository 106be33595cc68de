//! What [`case_report`] has to know of a case that was judged.

use std::io;
use std::path::Path;

use serde_json::Value;

use super::case::{Case, Content, End, Expected, Step};
use super::results::Results;
use super::suite::Judged;
use super::transcript::Event;
use crate::case_report::{self, CaseReport, ExpectedClose};
use crate::session::Form;

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
    let report = |judged: &Judged| report(&results.agent, &cases[judged.at], judged);
    let reports: Vec<CaseReport> = judged.iter().map(report).collect();
    case_report::write(directory, &results.agent, &reports)
}

fn report(agent: &str, case: &Case, judged: &Judged) -> CaseReport {
    let Judged { at, run, verdict } = judged;
    let transcript = &run.transcript;
    let is_compressed = case.script.iter().any(
        |step| matches!(step, Step::RoundTrips(trips) if matches!(trips.content, Content::Of(..))),
    );
    CaseReport {
        place: at + 1,
        id: case.number.to_string(),
        clause: Some(case.clause),
        description: case.description.clone(),
        expectation: case.expectation.clone(),
        agent: agent.to_owned(),
        started: run.started,
        duration: run.duration,
        verdict: verdict.clone(),
        expected: case
            .outcomes
            .iter()
            .map(|(behavior, events)| (*behavior, events.iter().map(expected).collect()))
            .collect(),
        expected_close: ExpectedClose {
            closed_by_me: case.close.by == End::Ours,
            close_code: case.close.codes.clone(),
            require_clean: case.close.needs_handshake,
        },
        received: transcript.events.iter().map(event).collect(),
        is_timed: case.is_timed(),
        compressed: is_compressed.then_some(transcript.messages),
        closing: transcript.closing.clone(),
        traffic: transcript.traffic.clone(),
        log: transcript.log.clone(),
        handshake: run.handshake.clone(),
    }
}

fn expected(expected: &Expected) -> Value {
    match expected {
        Expected::Message(form, payload) => {
            case_report::message(&payload.to_vec(), *form == Form::Binary)
        }
        Expected::Pong(payload) => case_report::pong(payload),
        Expected::Silence(name) => case_report::pause(*name),
        Expected::Pongs(_) | Expected::Refused(..) | Expected::HungUp | Expected::Agreed(_) => {
            case_report::other(&expected.to_string())
        }
    }
}

fn event(event: &Event) -> Value {
    match event {
        Event::Message(form, payload) => case_report::message(payload, *form == Form::Binary),
        Event::Ping(payload) => case_report::ping(payload),
        Event::Pong(payload) => case_report::pong(payload),
        Event::Silence(name) => case_report::pause(*name),
        Event::Refused(..) | Event::HungUp | Event::Opened | Event::Agreed(_) => {
            case_report::other(&event.to_string())
        }
    }
}
