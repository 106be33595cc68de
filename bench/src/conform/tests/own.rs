//! The own cases against the same peer.

use std::collections::BTreeSet;

use super::super::number::{Number, Pattern};
use super::super::verdict::Demand;
use super::*;

/// The own cases that these patterns name.
fn own(patterns: &str) -> Vec<Case> {
    let patterns: Vec<Pattern> =
        patterns.split(',').map(|pattern| pattern.parse().expect(pattern)).collect();
    let is_one = |case: &Case| patterns.iter().any(|pattern| pattern.matches(case.number));
    cases::own().into_iter().filter(is_one).collect()
}

/// The cases and their verdicts on what came back.
fn behaviors(cases: &[Case], fault: Fault) -> Vec<(Number, Behavior)> {
    cases.iter().map(|case| (case.number, verdict(case, fault).behavior)).collect()
}

/// The cases that do not have this verdict.
fn others(cases: &[Case], fault: Fault, behavior: Behavior) -> Vec<String> {
    let found = behaviors(cases, fault);
    let others = found.into_iter().filter(|it| it.1 != behavior);
    others.map(|(number, behavior)| format!("{number} {behavior}")).collect()
}

#[test]
fn own_cases_have_numbers_of_their_own_and_say_what_they_do() {
    let cases = cases::own();
    assert!(cases.is_sorted_by(|one, other| one.number < other.number), "in order, each once");
    assert!(cases.iter().all(|case| cases::is_own(case.number.section())));
    assert!(!cases::all(Volume::Full).iter().any(|case| cases::is_own(case.number.section())));
    assert_eq!(cases::every(Volume::Full).len(), 517 + cases.len());
    for Case { number, clause, description, expectation, outcomes, close, .. } in &cases {
        assert!(clause.starts_with("RFC "), "{number}");
        for sentence in [description, expectation] {
            assert!(sentence.ends_with('.') && !sentence.contains("  "), "{number}: {sentence:?}");
        }
        assert!(!outcomes.is_empty() && !close.codes.is_empty(), "{number}");
        assert!(!cases::section_name(number.section()).is_empty(), "{number}");
    }
    let tests_both = cases.iter().filter(|case| case.tests_servers() && case.tests_clients());
    assert!(tests_both.count() > 300);
    assert!(own("20").iter().all(|case| case.tests_servers() && !case.tests_clients()));
    assert!(own("21").iter().all(|case| case.tests_clients() && !case.tests_servers()));
}

/// Compression is not what the oracle judges; the real server is tested with it elsewhere.
#[test]
fn a_peer_that_does_what_it_should_passes_own_cases_strictly() {
    for case in own("20,22,23,25") {
        for fault in [Fault::None, Fault::NoCode] {
            let verdict = verdict(&case, fault);
            assert!(verdict.passes(Demand::Strict), "{} {fault:?}: {verdict:?}", case.number);
        }
    }
}

#[test]
fn who_opens_everything_and_who_opens_nothing_is_found() {
    let (forms, refused) = (own("20.1,20.2.1,20.2.2"), own("20.3,20.4,20.5,20.6"));
    assert_eq!(others(&forms, Fault::None, Behavior::Ok), Vec::<String>::new());
    assert_eq!(others(&forms, Fault::WrongAccept, Behavior::Failed), Vec::<String>::new());
    let (musts, shoulds): (Vec<Case>, Vec<Case>) =
        forms.into_iter().partition(|case| case.outcomes.len() == 1);
    let shoulds: Vec<String> = shoulds.iter().map(|case| case.number.to_string()).collect();
    assert_eq!(shoulds, ["20.1.9", "20.1.18", "20.1.19", "20.1.20"]);
    assert_eq!(others(&musts, Fault::OpensNone, Behavior::Failed), Vec::<String>::new());
    assert_eq!(others(&musts, Fault::HangsUp, Behavior::Failed), Vec::<String>::new());
    for case in &refused {
        let must = !case.goes_on_when_opened();
        // Without an empty line after it, it sees no request.
        let opens = verdict(case, Fault::OpensAll);
        if must {
            assert_eq!(opens.behavior, Behavior::Failed, "{}", case.number);
        }
        let none = verdict(case, Fault::OpensNone).behavior;
        assert_ne!(none, Behavior::Informational, "{}", case.number);
        let hung = verdict(case, Fault::HangsUp).behavior;
        assert_ne!(hung, Behavior::Ok, "{}", case.number);
        // Who waits for more of what is not HTTP is not strict.
        let mute = verdict(case, Fault::Mute);
        let may_wait = case.outcomes.iter().any(|(_, events)| events.is_empty());
        let expected = if may_wait { Behavior::NonStrict } else { Behavior::Failed };
        assert_eq!(mute.behavior, expected, "{}", case.number);
    }
    let musts = refused.iter().filter(|case| !case.goes_on_when_opened()).count();
    assert_eq!(musts, 24);
}

/// A case that is cut anew has the verdict of the one that it is made of, whatever the peer does.
#[test]
fn cut_differently_a_case_finds_the_same_faults() {
    let originals = short_cases();
    let original = |case: &Case| {
        let rest = case.description.strip_prefix("Sends what case ").expect("its original");
        let number: String = rest.chars().take_while(|c| !matches!(c, ' ' | ',')).collect();
        let found = originals.iter().find(|it| it.number.to_string() == number);
        found.expect("a case of the suite").clone()
    };
    let cases = own("22.1");
    assert!(cases.len() > 150, "{}", cases.len());
    let faults = [Fault::NoPongs, Fault::AllBinary, Fault::WrongByte, Fault::Masks, Fault::NoClose];
    for fault in faults {
        let mut found = BTreeSet::new();
        for case in &cases {
            let [own, suite] = [case, &original(case)].map(|case| verdict(case, fault));
            assert_eq!(own.behavior, suite.behavior, "{} {fault:?}: {own:?}", case.number);
            assert_eq!(own.behavior_close, suite.behavior_close, "{} {fault:?}", case.number);
            found.insert(own.behavior);
        }
        assert!(fault == Fault::NoClose || found.len() > 1, "{fault:?} {found:?}");
    }
    // The messages before and behind are noticed, too.
    let neighbours = own("22.2");
    let failed = |fault| {
        let found = behaviors(&neighbours, fault);
        found.iter().filter(|it| it.1 == Behavior::Failed).count()
    };
    assert!(failed(Fault::AllBinary) > neighbours.len() / 2);
    assert!(failed(Fault::WrongByte) > neighbours.len() / 2);
}

#[test]
fn ends_and_floods_find_their_faults() {
    let failed = |patterns: &str, fault| -> Vec<String> {
        let cases = own(patterns);
        let is_bad = |case: &&Case| !verdict(case, fault).passes(Demand::Musts);
        cases.iter().filter(is_bad).map(|case| case.number.to_string()).collect()
    };
    let all = |patterns: &str| -> Vec<String> {
        own(patterns).iter().map(|case| case.number.to_string()).collect()
    };
    assert_eq!(failed("23.1", Fault::NoClose), all("23.1"));
    assert_eq!(failed("23.1", Fault::WrongCode), all("23.1"));
    assert_eq!(failed("23", Fault::Mute), all("23"));
    assert_eq!(failed("25", Fault::Mute), all("25"));
    assert_eq!(failed("25.2", Fault::NoPongs), ["25.2.2", "25.2.3", "25.2.6"]);
    assert_eq!(failed("25.2", Fault::AllBinary), all("25.2"));
    // A peer that does not notice the end.
    assert_eq!(failed("23.2", Fault::StaysOpen), all("23.2"));
}

/// What the RFC only recommends of an end is NON-STRICT, and nothing else is.
#[test]
fn an_end_in_bad_form_is_not_strict() {
    let cases = own("23.4");
    let found = |fault, behavior| -> Vec<String> {
        let found = behaviors(&cases, fault).into_iter().filter(|it| it.1 == behavior);
        found.map(|(number, _)| number.to_string()).collect()
    };
    let [answered, failing] = [own("23.4.1,23.4.2"), own("23.4")].map(|cases| {
        let numbers = cases.iter().map(|case| case.number.to_string());
        numbers.collect::<Vec<String>>()
    });
    // Without a close frame a closing handshake is also unclean; a failed connection only ends in bad form.
    assert_eq!(found(Fault::NoClose, Behavior::NonStrict), failing);
    assert_eq!(found(Fault::Resets, Behavior::NonStrict), answered);
    assert_eq!(found(Fault::WrongCode, Behavior::NonStrict), Vec::<String>::new());
    for case in &cases {
        let is_answered = answered.contains(&case.number.to_string());
        let verdict = verdict(case, Fault::NoClose);
        assert_eq!(verdict.passes(Demand::Musts), !is_answered, "{}: {verdict:?}", case.number);
        assert!(!verdict.passes(Demand::Strict), "{}", case.number);
    }
}

/// A client that answers every message whatever the response was, or that ends the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Client {
    OpensAll,
    OpensNone,
    /// It sends a close frame first.
    Closes,
}

fn verdict_on(client: Client, case: &Case) -> Verdict {
    let (library, mut now) = (Library::default(), Instant::now());
    let mut exchange = Exchange::answering(case, &library, KEY, 1, now);
    let (mut received, mut answer) = (Vec::new(), Vec::new());
    let (mut is_open, mut has_closed) = (false, false);
    loop {
        match exchange.want(now) {
            Want::Nothing => break,
            Want::Drop | Want::Reset | Want::Seal(_) | Want::End => exchange.dropped(),
            Want::Send(_) => {
                received.extend_from_slice(exchange.chop());
                exchange.sent(exchange.chop().len());
                let head = exchange.handshake().response.len();
                if !is_open && received.len() >= head {
                    received.drain(..head);
                    is_open = true;
                }
                if is_open && client == Client::OpensAll {
                    for frame in parse(&std::mem::take(&mut received)) {
                        answer.extend(testkit::frame(frame.first, &frame.payload));
                    }
                } else if is_open && client == Client::Closes && !has_closed {
                    has_closed = true;
                    answer = testkit::frame(CLOSE, b"\x03\xea");
                }
            }
            Want::Receive(_) if !answer.is_empty() => {
                exchange.room()[..answer.len()].copy_from_slice(&answer);
                exchange.received(answer.len(), now);
                answer.clear();
            }
            Want::Receive(_) if is_open && client != Client::OpensAll => {
                exchange.ended(Ended::Reset);
            }
            Want::Receive(until) => now = until,
        }
    }
    judge(case, &exchange.into_transcript())
}

#[test]
fn what_a_client_has_to_refuse_it_must_not_answer() {
    for case in own("21") {
        let is_right = own("21.1").iter().any(|it| it.number == case.number);
        for client in [Client::OpensAll, Client::OpensNone, Client::Closes] {
            let verdict = verdict_on(client, &case);
            let passes = verdict.passes(Demand::Strict);
            let should = is_right == (client == Client::OpensAll);
            assert_eq!(passes, should, "{} {client:?}: {verdict:?}", case.number);
        }
    }
}

#[test]
fn an_agreement_must_keep_to_the_offer() {
    let cases = own("24.1,24.2");
    // Mirrored by the oracle, which sees no compressed message here.
    for case in &cases {
        let verdict = verdict(case, Fault::None);
        assert!(verdict.passes(Demand::Strict), "{}: {verdict:?}", case.number);
    }
    let all: Vec<String> = others(&own("24.1"), Fault::OpensNone, Behavior::Failed);
    assert_eq!(all.len(), own("24.1").len());
}
