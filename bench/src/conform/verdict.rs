//! The verdicts, by the rules and in the words of the Autobahn suite: one on what came back
//! ([`Behavior`]) and one on how the connection ended ([`BehaviorClose`]).
//!
//! Three rules are stricter than the suite's. Whatever the peer sends has to be valid: a frame that
//! breaks the RFC fails the case. The content of every echo counts, where the suite looks only at its
//! length in section 9. A further message after the last echo fails the case. One is milder: a peer may
//! send a ping at any time (RFC 6455 section 5.5.2), so pings do not count as answers.

use std::fmt;
use std::iter::Peekable;

use serde::{Serialize, Serializer};

use super::case::{Case, End, Ending, Expected, Weight};
use super::deflate::Terms;
use super::transcript::{Event, Transcript};

/// What came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Behavior {
    /// What should.
    Ok,
    /// What is allowed, but not what the RFC recommends.
    NonStrict,
    /// The RFC leaves it open.
    Informational,
    /// The peer does not support what is tested, which is optional.
    Unimplemented,
    /// Something else.
    Failed,
}

/// How the connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BehaviorClose {
    /// As it should.
    Ok,
    /// The RFC leaves it open.
    Informational,
    /// The client had to end the TCP connection, which is the server's task.
    FailedByClient,
    /// The closing handshake was not complete.
    Unclean,
    /// With another code than it should.
    WrongCode,
    /// By the wrong side.
    Failed,
}

impl Behavior {
    /// All of them, the best first.
    pub const ALL: [Behavior; 5] = [
        Behavior::Ok,
        Behavior::NonStrict,
        Behavior::Informational,
        Behavior::Unimplemented,
        Behavior::Failed,
    ];
}

impl BehaviorClose {
    /// All of them, the best first.
    pub const ALL: [BehaviorClose; 6] = [
        BehaviorClose::Ok,
        BehaviorClose::Informational,
        BehaviorClose::FailedByClient,
        BehaviorClose::Unclean,
        BehaviorClose::WrongCode,
        BehaviorClose::Failed,
    ];
}

impl fmt::Display for Behavior {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Behavior::Ok => "OK",
            Behavior::NonStrict => "NON-STRICT",
            Behavior::Informational => "INFORMATIONAL",
            Behavior::Unimplemented => "UNIMPLEMENTED",
            Behavior::Failed => "FAILED",
        })
    }
}

impl fmt::Display for BehaviorClose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            BehaviorClose::Ok => "OK",
            BehaviorClose::Informational => "INFORMATIONAL",
            BehaviorClose::FailedByClient => "FAILED BY CLIENT",
            BehaviorClose::Unclean => "UNCLEAN",
            BehaviorClose::WrongCode => "WRONG CODE",
            BehaviorClose::Failed => "FAILED",
        })
    }
}

impl Serialize for Behavior {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for BehaviorClose {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// How much is asked of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Demand {
    /// What the RFC demands.
    Musts,
    /// Also what it recommends: nothing may be NON-STRICT or FAILED BY CLIENT.
    Strict,
}

/// The verdict on a case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// What came back.
    pub behavior: Behavior,
    /// Why, in a sentence.
    pub result: String,
    /// How the connection ended.
    pub behavior_close: BehaviorClose,
    /// Why, in a sentence.
    pub result_close: String,
}

impl Verdict {
    /// Whether that is good enough.
    pub fn passes(&self, demand: Demand) -> bool {
        let behavior = match self.behavior {
            Behavior::Ok | Behavior::Informational | Behavior::Unimplemented => true,
            Behavior::NonStrict => demand == Demand::Musts,
            Behavior::Failed => false,
        };
        let close = match self.behavior_close {
            BehaviorClose::Ok | BehaviorClose::Informational => true,
            BehaviorClose::FailedByClient => demand == Demand::Musts,
            BehaviorClose::Unclean | BehaviorClose::WrongCode | BehaviorClose::Failed => false,
        };
        behavior && close
    }
}

/// Judges what happened in a case.
pub fn judge(case: &Case, transcript: &Transcript) -> Verdict {
    if let Some(refused) = &transcript.refused {
        return Verdict {
            behavior: Behavior::Failed,
            result: refused.clone(),
            behavior_close: BehaviorClose::Failed,
            result_close: "The opening handshake was not completed.".to_owned(),
        };
    }
    let (mut behavior, mut result) = judge_events(case, transcript);
    if transcript.is_unopened {
        let behavior_close = match behavior {
            Behavior::Failed => BehaviorClose::Failed,
            Behavior::Ok
            | Behavior::NonStrict
            | Behavior::Informational
            | Behavior::Unimplemented => BehaviorClose::Ok,
        };
        let result_close = "No connection was opened.".to_owned();
        return Verdict { behavior, result, behavior_close, result_close };
    }
    if transcript.lacks_compression {
        // This side has closed, because there is nothing to test.
        let (behavior_close, result_close) = judge_close(&Ending::clean(), transcript);
        return Verdict { behavior, result, behavior_close, result_close };
    }
    let (mut behavior_close, result_close) = judge_close(&case.close, transcript);
    match case.close.weight {
        Weight::Apart => {}
        Weight::CodeCounts => {
            if behavior_close == BehaviorClose::WrongCode {
                (behavior, result) = (Behavior::Failed, result_close.clone());
            }
        }
        Weight::EndCounts => {
            if is_ended_wrongly(&case.close, transcript) {
                (behavior, result) = (Behavior::Failed, result_close.clone());
            }
        }
        Weight::TlsCounts => {
            if is_ended_wrongly(&case.close, transcript) {
                (behavior, result) = (Behavior::Failed, result_close.clone());
            } else if behavior == Behavior::Ok && transcript.is_unsaid {
                let unsaid = "The peer ended the TCP connection without saying so in TLS.";
                (behavior, result) = (Behavior::NonStrict, unsaid.to_owned());
            }
        }
        Weight::FormCounts => {
            if behavior == Behavior::Ok
                && let Some(loose) = ends_loosely(&case.close, transcript)
            {
                (behavior, result) = (Behavior::NonStrict, loose);
            }
        }
        Weight::Open => {
            result = match behavior {
                Behavior::Ok => "What came before the close frame was answered.".to_owned(),
                Behavior::NonStrict => "The close frame was answered first.".to_owned(),
                Behavior::Informational | Behavior::Unimplemented | Behavior::Failed => result,
            };
            (behavior, behavior_close) = (Behavior::Informational, BehaviorClose::Informational);
        }
    }
    Verdict { behavior, result, behavior_close, result_close }
}

fn judge_events(case: &Case, transcript: &Transcript) -> (Behavior, String) {
    let failed = |result: String| (Behavior::Failed, result);
    if let Some(violation) = transcript.violation {
        let detail = transcript.not_inflated.map(|broken| format!(": {broken}"));
        return failed(format!(
            "The peer broke the protocol: {}{}.",
            violation.reason(),
            detail.unwrap_or_default()
        ));
    }
    if transcript.lacks_compression {
        let why = match transcript.closing.is_server {
            false => "The peer declined permessage-deflate.",
            true => "The peer did not offer permessage-deflate as the case needs it.",
        };
        return (Behavior::Unimplemented, why.to_owned());
    }
    if let Some(rounds) = &transcript.rounds {
        let further = transcript.events.iter().find(|event| !matches!(event, Event::Ping(_)));
        return match (&rounds.wrong, further) {
            (Some(wrong), _) => failed(wrong.clone()),
            (None, _) if rounds.right < rounds.count => failed(format!(
                "Of {} echoes, {} came before the connection ended or the time was over.",
                rounds.count, rounds.right
            )),
            (None, Some(further)) => failed(format!("More came than was sent: {further}.")),
            (None, None) => (Behavior::Ok, "All echoes came and were right.".to_owned()),
        };
    }
    for (behavior, expected) in &case.outcomes {
        if are(&transcript.events, expected) {
            return (*behavior, "What came is one of what was expected.".to_owned());
        }
    }
    failed("What came is none of what was expected.".to_owned())
}

/// Whether these events are what is expected, so that nothing more can come.
pub fn are_all(events: &[Event], expected: &[Expected]) -> bool {
    match (events.last(), expected.last()) {
        // It is asked after each pong, of which there may be thousands.
        (Some(Event::Pong(_)), Some(Expected::Message(..))) => false,
        (_, Some(Expected::Pongs(None))) => false,
        _ => are(events, expected),
    }
}

/// Whether these events are what is expected. Pings do not count.
fn are(events: &[Event], expected: &[Expected]) -> bool {
    let mut counted = events.iter().filter(|event| !matches!(event, Event::Ping(_))).peekable();
    let all = expected.iter().all(|expected| {
        if let Expected::Pongs(last) = expected {
            return are_pongs(&mut counted, *last);
        }
        is(counted.next(), expected)
    });
    all && counted.next().is_none()
}

/// Takes the pongs, and returns whether their numbers ascend, to the last one.
fn are_pongs<'a>(
    events: &mut Peekable<impl Iterator<Item = &'a Event>>,
    last: Option<u32>,
) -> bool {
    let mut greatest = None;
    while let Some(Event::Pong(payload)) = events.next_if(|it| matches!(it, Event::Pong(_))) {
        let number = payload.first_chunk().map(|bytes| u32::from_be_bytes(*bytes));
        if number.is_none() || number <= greatest {
            return false;
        }
        greatest = number;
    }
    last.is_none() || greatest == last
}

/// Whether this event is the one that is expected.
fn is(event: Option<&Event>, expected: &Expected) -> bool {
    match (expected, event) {
        (Expected::Message(form, payload), Some(Event::Message(came, bytes))) => {
            form == came && payload.len() == bytes.len() && payload.to_vec() == *bytes
        }
        (Expected::Pong(payload), Some(Event::Pong(bytes))) => payload == bytes,
        (Expected::Silence(name), Some(Event::Silence(noted))) => name == noted,
        (Expected::Refused(from, to, field), Some(Event::Refused(status, fields))) => {
            let has = |name: &&str| fields.iter().any(|it| it.0.eq_ignore_ascii_case(name));
            (from..=to).contains(&status) && field.as_ref().is_none_or(has)
        }
        (Expected::HungUp, Some(Event::HungUp)) => true,
        (Expected::Agreed(offer), Some(Event::Agreed(answer))) => {
            Terms::agreed(&[*offer], Some(answer)).is_ok()
        }
        _ => false,
    }
}

/// Whether the wrong side has ended the connection.
fn is_ended_wrongly(wanted: &Ending, transcript: &Transcript) -> bool {
    let is_ours = transcript.closing.closed_by_me;
    match wanted.by {
        End::Ours => !is_ours,
        End::Theirs => is_ours,
        // It has to do something.
        End::Either => is_ours && transcript.events.is_empty(),
    }
}

/// What the end of the connection lacks that the RFC only recommends: a close frame (RFC 6455 section
/// 7.1.7), and one only; and an end of the TCP connection that is no reset (section 7.1.1), unless this
/// side may have sent what the peer did not wait for.
fn ends_loosely(wanted: &Ending, transcript: &Transcript) -> Option<String> {
    match transcript.close_frames() {
        0 => Some("The peer ended the connection without a close frame.".to_owned()),
        1 if transcript.is_reset && wanted.by == End::Ours => {
            Some("The peer reset the TCP connection instead of ending it.".to_owned())
        }
        1 => None,
        count => Some(format!("The peer sent {count} close frames.")),
    }
}

fn judge_close(wanted: &Ending, transcript: &Transcript) -> (BehaviorClose, String) {
    let closing = &transcript.closing;
    let (verdict, reason) = if is_ended_wrongly(wanted, transcript) {
        let side = match wanted.by {
            End::Ours => "The peer ended the connection, which was not its turn.",
            End::Theirs => "The peer should have failed the connection and did not.",
            End::Either => "The peer neither answered nor failed the connection.",
        };
        (BehaviorClose::Failed, side.to_owned())
    } else if let Some(code) = closing.remote_close_code.filter(|it| !wanted.codes.contains(it)) {
        let codes: Vec<String> = wanted.codes.iter().map(u16::to_string).collect();
        let codes = codes.join(" or ");
        (BehaviorClose::WrongCode, format!("The close code is {code}, but should be {codes}."))
    } else if transcript.is_close_broken {
        let reason = "The peer's close frame breaks the RFC.";
        (BehaviorClose::Unclean, reason.to_owned())
    } else if wanted.needs_handshake && !closing.was_clean {
        let reason = closing.was_not_clean_reason.as_deref().unwrap_or("it was not complete");
        (BehaviorClose::Unclean, format!("A complete closing handshake is needed here: {reason}."))
    } else if !closing.is_server && closing.dropped_by_me {
        let reason = "The server should end the TCP connection (RFC 6455 section 7.1.1).";
        (BehaviorClose::FailedByClient, reason.to_owned())
    } else {
        (BehaviorClose::Ok, "The connection was closed as it should.".to_owned())
    };
    (verdict, reason)
}
