//! Section 22: the cases of sections 1 to 7 again, cut differently: byte by byte, and in one segment with
//! a message before and behind. What has to come back is the same.

use super::super::case::{End, TEXT, Weight};
use super::*;

/// Longer ones are left out, because they take a send for each byte.
const BYTES_MAX: usize = 4096;
const BEFORE: &str = "Hello, before";
const BEHIND: &str = "Hello, behind";

/// The cases that can be cut anew: short ones without a pause, each script once however it was cut.
fn originals() -> Vec<Case> {
    let sections = [
        section_1::cases(),
        section_2::cases(),
        section_3::cases(),
        section_4::cases(),
        section_5::cases(),
        section_6::cases(),
        section_7::cases(),
    ];
    let mut originals: Vec<Case> = Vec::new();
    for case in sections.into_iter().flatten() {
        let Some(script) = case.script.iter().map(uncut).collect::<Option<Vec<Step>>>() else {
            continue;
        };
        if bytes(&script) <= BYTES_MAX && !originals.iter().any(|it| it.script == script) {
            let case = Case { script, ..case };
            originals.push(match last_pong(&case) {
                Some(last) => case.or(Behavior::Informational, last),
                None => case,
            });
        }
    }
    originals
}

/// The same step in one piece; nothing if its pieces are what it is about.
fn uncut(step: &Step) -> Option<Step> {
    match step {
        Step::Frames(frames, _) => Some(Step::Frames(frames.clone(), Chop::Whole)),
        Step::Close(payload) => Some(Step::Close(payload.clone())),
        Step::Begin(..)
        | Step::More(_)
        | Step::End
        | Step::Reset
        | Step::Tls(_)
        | Step::Pause(..)
        | Step::RoundTrips(_) => None,
    }
}

/// The payloads of a script.
fn bytes(script: &[Step]) -> usize {
    let step = |step: &Step| match step {
        Step::Frames(frames, _) => frames.iter().map(|frame| frame.payload.len()).sum(),
        Step::Close(payload) => payload.len(),
        Step::Begin(..)
        | Step::More(_)
        | Step::End
        | Step::Reset
        | Step::Tls(_)
        | Step::Pause(..)
        | Step::RoundTrips(_) => 0,
    };
    script.iter().map(step).sum()
}

fn bytewise(case: u16, original: &Case) -> Case {
    let number = Number::triple(22, 1, case);
    Case { number, ..original.clone() }.sent(Sends::Bytes).says(
        format!(
            "Sends what case {} sends, byte by byte. {}",
            original.number, original.description
        ),
        original.expectation.clone(),
    )
}

/// Only the last of several pongs: a peer need not answer the pings before it (RFC 6455 section 5.5.3).
fn last_pong(case: &Case) -> Option<Vec<Expected>> {
    let [(Behavior::Ok, events)] = &case.outcomes[..] else { return None };
    let are_pongs = events.iter().all(|event| matches!(event, Expected::Pong(_)));
    (are_pongs && events.len() > 1).then(|| events[events.len() - 1..].to_vec())
}

/// The events with the echo of the message before them in each place where it may be: a pong may
/// overtake it (RFC 6455 section 5.5.2), another message may not.
fn after_echo(events: &[Expected]) -> Vec<Vec<Expected>> {
    let is_message = |event: &Expected| matches!(event, Expected::Message(..));
    let last = events.iter().position(is_message).unwrap_or(events.len());
    let places = 0..=last;
    places
        .map(|place| {
            let mut events = events.to_vec();
            events.insert(place, text(BEFORE));
            events
        })
        .collect()
}

fn among_neighbours(case: u16, original: &Case) -> Case {
    let number = Number::triple(22, 2, case);
    let neighbour = |text: &str| at_once([Frame::new(TEXT, text)]);
    let mut script = vec![neighbour(BEFORE)];
    script.extend(original.script.iter().cloned());
    script.push(neighbour(BEHIND));
    let closes = original.script.iter().any(|step| matches!(step, Step::Close(_)));
    let mut outcomes = Vec::new();
    for (behavior, events) in &original.outcomes {
        for mut events in after_echo(events) {
            if original.close.by == End::Ours && !closes {
                events.push(text(BEHIND));
            }
            outcomes.push((*behavior, events));
        }
        if closes {
            // Whether an echo comes before the answer to a close frame is open (RFC 6455 section
            // 5.5.1).
            outcomes.push((Behavior::Informational, events.clone()));
        } else if original.close.by == End::Theirs {
            // What came before may be lost when the connection fails.
            outcomes.push((Behavior::NonStrict, events.clone()));
        }
    }
    Case { number, script, outcomes, ..original.clone() }.sent(Sends::Joined).says(
        format!(
            "Sends what case {} sends in one segment, with a text message before and behind it. {}",
            original.number, original.description
        ),
        original.expectation.clone(),
    )
}

pub(super) fn cases() -> Vec<Case> {
    let originals = originals();
    let open = |case: &&Case| case.close.weight != Weight::Open;
    let bytes = (1..).zip(&originals).map(|(case, original)| bytewise(case, original));
    let neighbours = originals.iter().filter(open);
    let neighbours = (1..).zip(neighbours).map(|(case, it)| among_neighbours(case, it));
    bytes.chain(neighbours).collect()
}
