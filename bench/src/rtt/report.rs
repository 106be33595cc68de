//! What [`case_report`](crate::case_report) has to know of round trips on one connection.

use std::time::SystemTime;

use super::{Outcome, Plan};
use crate::case_report::{CaseReport, ExpectedClose};
use crate::conform::results::server_name;
use crate::conform::{Behavior, BehaviorClose, Verdict};
use crate::verdict::Farewell;
use crate::wire::{Closing, Entry, Octets, hexadecimal};

/// The code with which this program closes a connection.
const NORMAL: u16 = 1000;

/// A case that was run.
#[derive(Debug, Clone, Copy)]
pub struct Run<'a> {
    /// Its place among those that were run, counted from 1.
    pub place: usize,
    /// The name of the server, if it does not say what it is.
    pub name: &'a str,
    /// What was planned.
    pub plan: &'a Plan<'a>,
    /// When it began.
    pub started: SystemTime,
    /// What came of it.
    pub outcome: &'a Outcome,
}

/// The report of a case.
pub fn report(run: &Run<'_>) -> CaseReport {
    let Run { place, name, plan, started, outcome } = *run;
    let Plan { case, timeouts, .. } = plan;
    let wire = &outcome.wire;
    let response = String::from_utf8_lossy(&wire.handshake.response);
    let agent = server_name(&response).unwrap_or(name).to_owned();
    CaseReport {
        place,
        id: case.name.clone(),
        clause: None,
        description: case.description(),
        expectation: format!(
            "Each message comes back as it was sent, within {} s, before the next one is sent.",
            timeouts.echo.as_secs_f64()
        ),
        agent,
        started,
        duration: outcome.duration,
        verdict: verdict(case.messages, outcome),
        expected: Vec::new(),
        expected_close: ExpectedClose {
            closed_by_me: true,
            close_code: vec![NORMAL],
            require_clean: true,
        },
        received: Vec::new(),
        is_timed: true,
        compressed: None,
        closing: closing(outcome),
        traffic: wire.traffic.clone(),
        log: log(outcome),
        handshake: wire.handshake.clone(),
    }
}

fn verdict(messages: u64, outcome: &Outcome) -> Verdict {
    let echoed = outcome.latencies.count();
    let (behavior, result) = match &outcome.problem {
        None if echoed == messages => (Behavior::Ok, "All echoes came and were right.".to_owned()),
        None => (Behavior::Failed, format!("Ended after {echoed} of {messages} messages.")),
        Some(problem) => {
            (Behavior::Failed, format!("After {echoed} of {messages} messages: {problem}."))
        }
    };
    let (behavior_close, result_close) = match (outcome.farewell, &outcome.problem) {
        (Some(farewell), _) => {
            let behavior = match farewell {
                Farewell::Clean => BehaviorClose::Ok,
                Farewell::Early => BehaviorClose::Failed,
                Farewell::LeftOpen | Farewell::StillOpen => BehaviorClose::FailedByClient,
                Farewell::ClosedUnanswered
                | Farewell::ResetAfterAnswer
                | Farewell::ResetUnanswered
                | Farewell::Silent
                | Farewell::Reset
                | Farewell::LateMessages
                | Farewell::Broken(_) => BehaviorClose::Unclean,
            };
            (behavior, format!("The server {farewell}."))
        }
        (None, Some(_)) => {
            (BehaviorClose::Failed, "The connection ended before its time.".to_owned())
        }
        (None, None) => (BehaviorClose::Ok, "The connection was closed.".to_owned()),
    };
    Verdict { behavior, result, behavior_close, result_close }
}

fn closing(outcome: &Outcome) -> Closing {
    let wire = &outcome.wire;
    let [sent, received] = [&wire.close_sent, &wire.close_received].map(|frame| Close::read(frame));
    let [is_sent, is_received] = [&sent, &received].map(Option::is_some);
    let was_clean = is_sent && is_received && wire.is_dropped_by_server;
    let reason = || match (&outcome.problem, outcome.farewell) {
        (Some(problem), _) => problem.to_string(),
        (None, Some(farewell)) => format!("the server {farewell}"),
        (None, None) => "there was no closing handshake".to_owned(),
    };
    Closing {
        is_server: false,
        closed_by_me: is_sent,
        failed_by_me: outcome.problem.is_some() && !is_sent,
        dropped_by_me: !wire.is_dropped_by_server,
        was_clean,
        was_not_clean_reason: (!was_clean).then(reason),
        was_server_connection_drop_timeout: matches!(
            outcome.farewell,
            Some(Farewell::LeftOpen | Farewell::StillOpen)
        ),
        was_open_handshake_timeout: false,
        was_close_handshake_timeout: outcome.farewell == Some(Farewell::Silent),
        local_close_code: sent.as_ref().and_then(Close::code),
        local_close_reason: sent.as_ref().and_then(Close::reason),
        remote_close_code: received.as_ref().and_then(Close::code),
        remote_close_reason: received.as_ref().and_then(Close::reason),
    }
}

fn log(outcome: &Outcome) -> Vec<Entry> {
    let wire = &outcome.wire;
    let mut log = vec![Entry::Off, Entry::On];
    if let Some(Close { first, key, payload }) = Close::read(&wire.close_sent) {
        log.push(Entry::FrameSent(first, Octets::of(&payload), key));
        log.push(Entry::Sent(Octets::of(&wire.close_sent)));
    }
    if let Some(Close { first, key, payload }) = Close::read(&wire.close_received) {
        log.push(Entry::Received(Octets::of(&wire.close_received)));
        log.push(Entry::FrameReceived(first, Octets::of(&payload), key));
    }
    log
}

/// A close frame.
struct Close {
    first: u8,
    key: Option<[u8; 4]>,
    payload: Vec<u8>,
}

impl Close {
    /// Reads a whole one; nothing if there is none. A control frame is short (RFC 6455 section 5.5).
    fn read(frame: &[u8]) -> Option<Close> {
        let [first, second, rest @ ..] = frame else { return None };
        if second & 0x80 == 0 {
            return Some(Close { first: *first, key: None, payload: rest.to_vec() });
        }
        let (key, masked) = rest.split_first_chunk::<4>()?;
        let payload = masked.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key).collect();
        Some(Close { first: *first, key: Some(*key), payload })
    }

    fn code(&self) -> Option<u16> {
        self.payload.first_chunk().map(|code| u16::from_be_bytes(*code))
    }

    fn reason(&self) -> Option<String> {
        let reason = self.payload.get(2..).filter(|reason| !reason.is_empty())?;
        Some(str::from_utf8(reason).map_or_else(|_| hexadecimal(reason), str::to_owned))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::Problem;
    use crate::rtt::{Case, Wire};
    use crate::session::Form;

    fn reported(outcome: &Outcome) -> CaseReport {
        let target = "ws://127.0.0.1:9001/".parse().expect("a target");
        let form = Form::Text;
        let case = Case { name: "9.7.2".to_owned(), payload_bytes: 16, form, messages: 1000 };
        let plan = Plan::new(&target, &case);
        report(&Run {
            place: 1,
            name: "a server",
            plan: &plan,
            started: SystemTime::now(),
            outcome,
        })
    }

    #[test]
    fn both_close_frames_are_read() {
        let wire = Wire {
            // Masked, and with a reason.
            close_sent: b"\x88\x82\x01\x02\x03\x04\x02\xea".to_vec(),
            close_received: b"\x88\x05\x03\xe9bye".to_vec(),
            is_dropped_by_server: true,
            ..Wire::default()
        };
        let farewell = Some(Farewell::Clean);
        let report = reported(&Outcome { wire, farewell, ..Outcome::default() });
        let Closing { local_close_code, remote_close_code, remote_close_reason, .. } =
            &report.closing;
        assert_eq!((*local_close_code, *remote_close_code), (Some(1000), Some(1001)));
        assert_eq!(remote_close_reason.as_deref(), Some("bye"));
        assert!(report.closing.was_clean && report.closing.was_not_clean_reason.is_none());
        let [Entry::Off, Entry::On, sent, Entry::Sent(_), Entry::Received(_), received] =
            &report.log[..]
        else {
            panic!("{:?}", report.log)
        };
        let key = Some([1, 2, 3, 4]);
        assert_eq!(*sent, Entry::FrameSent(0x88, Octets::of(b"\x03\xe8"), key));
        assert_eq!(*received, Entry::FrameReceived(0x88, Octets::of(b"\x03\xe9bye"), None));
    }

    #[test]
    fn a_report_says_why_it_is_no_pass() {
        let silent = reported(&Outcome { farewell: Some(Farewell::Silent), ..Outcome::default() });
        assert_eq!(silent.verdict.result, "Ended after 0 of 1000 messages.");
        assert_eq!(silent.verdict.behavior_close, BehaviorClose::Unclean);
        assert!(silent.closing.was_close_handshake_timeout && silent.closing.dropped_by_me);
        assert_eq!(silent.agent, "a server");
        let problem = Some(Problem::Closed(None));
        let closed = reported(&Outcome { problem, ..Outcome::default() });
        assert_eq!(closed.verdict.behavior, Behavior::Failed);
        assert!(closed.closing.failed_by_me && !closed.closing.was_clean, "{closed:?}");
    }
}
