//! The cases, a file for each section. The numbers of sections 1 to 13 are those of the Autobahn suite;
//! what they say is written from the RFCs. Sections from 20 up are own ones, of what that suite leaves
//! out.

mod section_1;
mod section_10;
mod section_12;
mod section_2;
mod section_20;
mod section_21;
mod section_22;
mod section_23;
mod section_24;
mod section_25;
mod section_26;
mod section_3;
mod section_4;
mod section_5;
mod section_6;
mod section_7;
mod section_9;

use std::time::Duration;

use super::case::{
    Case, Chop, Ending, Expected, Frame, Limit, NORMAL, Needs, Opening, Payload, RoundTrips, Sends,
    Step, TEXT,
};
use super::number::Number;
use super::verdict::Behavior;
use crate::session::Form;

/// How long a peer may take for a short answer.
const SHORT: Duration = Duration::from_secs(2);
/// How long it may take for a long one.
const LONG: Duration = Duration::from_secs(10);

/// The first section that the Autobahn suite does not have.
const OWN: u16 = 20;

/// How many messages the cases of sections 9, 12 and 13 have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Volume {
    /// As many as in the Autobahn suite.
    Full,
    /// A tenth in section 9, and a twentieth in sections 12 and 13.
    Quick,
}

/// The cases of the Autobahn suite, in the order of their numbers.
pub fn all(volume: Volume) -> Vec<Case> {
    let sections = [
        section_1::cases(),
        section_2::cases(),
        section_3::cases(),
        section_4::cases(),
        section_5::cases(),
        section_6::cases(),
        section_7::cases(),
        section_9::cases(volume),
        section_10::cases(),
        section_12::cases(volume),
    ];
    sections.into_iter().flatten().collect()
}

/// The own cases, which the Autobahn suite does not have, in the order of their numbers.
pub fn own() -> Vec<Case> {
    let sections = [
        section_20::cases(),
        section_21::cases(),
        section_22::cases(),
        section_23::cases(),
        section_24::cases(),
        section_25::cases(),
    ];
    sections.into_iter().flatten().collect()
}

/// The cases of the suite and the own ones.
pub fn every(volume: Volume) -> Vec<Case> {
    let mut cases = all(volume);
    cases.extend(own());
    cases
}

/// The same and the cases about TLS, which are of no use without.
pub fn with_tls(volume: Volume) -> Vec<Case> {
    let mut cases = every(volume);
    cases.extend(section_26::cases());
    cases
}

/// Whether a section is not one of the Autobahn suite.
pub fn is_own(section: u16) -> bool {
    section >= OWN
}

/// What a section is about, in a word or two.
pub fn section_name(section: u16) -> &'static str {
    match section {
        1 => "framing",
        2 => "pings and pongs",
        3 => "reserved bits",
        4 => "opcodes",
        5 => "fragmentation",
        6 => "UTF-8",
        7 => "close",
        9 => "limits and performance",
        10 => "automatic fragments",
        12 => "compression",
        13 => "compression parameters",
        20 => "opening: servers",
        21 => "opening: clients",
        22 => "bytes and neighbours",
        23 => "ends",
        24 => "strict compression",
        25 => "headers and floods",
        26 => "TLS",
        _ => "",
    }
}

/// A message, if there is one, and a close frame: no test, but the answer to a question.
pub fn saying(text: Option<&str>) -> Case {
    let message = text.map(|text| at_once([Frame::new(TEXT, text)]));
    let close = Step::Close(NORMAL.to_be_bytes().into());
    let script = message.into_iter().chain([close]).collect();
    answered(Number::pair(0, 1), "RFC 6455 7.1.2", script, Vec::new())
}

/// A case whose answers are all right and which this side then closes.
fn answered(
    number: Number,
    clause: &'static str,
    script: Vec<Step>,
    answers: Vec<Expected>,
) -> Case {
    Case {
        number,
        clause,
        description: String::new(),
        expectation: String::new(),
        earlier: Vec::new(),
        opening: Opening::Given,
        script,
        sends: Sends::AsWritten,
        limit: Limit::Close(SHORT),
        outcomes: vec![(Behavior::Ok, answers)],
        close: Ending::clean(),
        offers: Vec::new(),
        needs: Needs::Offered,
    }
}

/// A case in which the peer has to fail the connection with this code.
fn failing(number: Number, clause: &'static str, script: Vec<Step>, code: u16) -> Case {
    Case {
        limit: Limit::Fail(SHORT),
        close: Ending::failed_with(code),
        ..answered(number, clause, script, Vec::new())
    }
}

/// A case of messages, the next one sent when the echo of the last one has come.
fn round_trips(number: Number, clause: &'static str, trips: RoundTrips, limit: Duration) -> Case {
    Case {
        limit: Limit::Close(limit),
        outcomes: Vec::new(),
        ..answered(number, clause, vec![Step::RoundTrips(trips)], Vec::new())
    }
}

impl Case {
    /// The same case with these sentences.
    fn says(self, description: impl Into<String>, expectation: impl Into<String>) -> Case {
        Case { description: description.into(), expectation: expectation.into(), ..self }
    }

    /// The same case, in which this outcome is allowed too.
    fn or(mut self, behavior: Behavior, events: Vec<Expected>) -> Case {
        self.outcomes.push((behavior, events));
        self
    }

    /// The same case, opened like this.
    fn opened(self, opening: Opening) -> Case {
        Case { opening, ..self }
    }

    /// The same case, sent like this.
    fn sent(self, sends: Sends) -> Case {
        Case { sends, ..self }
    }

    /// The same case, which may take this long.
    fn within(self, duration: Duration) -> Case {
        let limit = match self.limit {
            Limit::Fail(_) => Limit::Fail(duration),
            Limit::Close(_) => Limit::Close(duration),
        };
        Case { limit, ..self }
    }
}

/// Frames that are sent at once.
fn at_once(frames: impl IntoIterator<Item = Frame>) -> Step {
    chopped(frames, Chop::Whole)
}

fn chopped(frames: impl IntoIterator<Item = Frame>, chop: Chop) -> Step {
    Step::Frames(frames.into_iter().collect(), chop)
}

/// The echo of a text message.
fn text(payload: impl Into<Payload>) -> Expected {
    Expected::Message(Form::Text, payload.into())
}

/// How frames are cut, as the end of a sentence; nothing if they are sent at once.
fn cut(chop: Chop) -> String {
    match chop {
        Chop::Whole => String::new(),
        Chop::Frames => ", each frame in a segment of its own".to_owned(),
        Chop::Bytes(1) => ", byte by byte".to_owned(),
        Chop::Bytes(bytes) => format!(", {bytes} bytes at a time"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn the_cases_are_those_of_the_suite() {
        let cases = all(Volume::Full);
        assert_eq!(cases.len(), 517);
        let numbers: Vec<Number> = cases.iter().map(|case| case.number).collect();
        assert!(numbers.is_sorted_by(|one, other| one < other), "in order, each once");
        let mut groups: BTreeMap<String, usize> = BTreeMap::new();
        for number in &numbers {
            let text = number.to_string();
            let group = text.rsplit_once('.').expect("two parts").0.to_owned();
            *groups.entry(group).or_default() += 1;
        }
        // Counted in the report of a run of the suite.
        let expected = "1.1:8 1.2:8 2:11 3:7 4.1:5 4.2:5 5:20 6.1:3 6.2:4 6.3:2 6.4:4 6.5:5 6.6:11 \
                        6.7:4 6.8:2 6.9:4 6.10:3 6.11:5 6.12:8 6.13:5 6.14:10 6.15:1 6.16:3 6.17:5 \
                        6.18:5 6.19:5 6.20:7 6.21:8 6.22:34 6.23:7 7.1:6 7.3:6 7.5:1 7.7:13 7.9:9 \
                        7.13:2 9.1:6 9.2:6 9.3:9 9.4:9 9.5:6 9.6:6 9.7:6 9.8:6 10.1:1 12.1:18 \
                        12.2:18 12.3:18 12.4:18 12.5:18 13.1:18 13.2:18 13.3:18 13.4:18 13.5:18 \
                        13.6:18 13.7:18";
        let expected: BTreeMap<String, usize> = expected
            .split_whitespace()
            .filter_map(|group| {
                let (name, count) = group.split_once(':')?;
                Some((name.to_owned(), count.parse().ok()?))
            })
            .collect();
        assert_eq!(groups, expected);
    }

    #[test]
    fn every_case_says_what_it_does() {
        for case in all(Volume::Full) {
            let Case { number, clause, description, expectation, outcomes, .. } = &case;
            assert!(clause.starts_with("RFC "), "{number}");
            for sentence in [description, expectation] {
                let is_sentence = sentence.ends_with('.') && !sentence.contains("  ");
                assert!(is_sentence && !sentence.contains(".."), "{number}: {sentence}");
            }
            let has_trips = matches!(case.script[..], [Step::RoundTrips(_)]);
            assert_eq!(outcomes.is_empty(), has_trips, "{number}");
            assert!(!case.close.codes.is_empty(), "{number}");
        }
    }

    #[test]
    fn a_quick_run_has_the_same_cases_with_fewer_messages() {
        let messages = |volume| -> u64 {
            let steps = all(volume).into_iter().flat_map(|case| case.script);
            let counts = steps.map(|step| match step {
                Step::RoundTrips(trips) => u64::from(trips.count),
                _ => 0,
            });
            counts.sum()
        };
        assert_eq!(all(Volume::Quick).len(), all(Volume::Full).len());
        assert_eq!(messages(Volume::Full), 43 + 12 * 1000 + 216 * 1000);
        assert_eq!(messages(Volume::Quick), 43 + 12 * 100 + 216 * 50);
    }
}
