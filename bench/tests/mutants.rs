//! `ringbench conform` against servers that are wrong on purpose: each fault is noticed by every case that
//! must notice it, and a right server passes all of them.
//!
//! Cases of round trips have fewer messages here, and those of longer compressed messages are left out:
//! `testkit` inflates bit by bit.
//!
//! Almost all of the time is spent waiting for what a wrong server does not do. So the cases of a fault run
//! all at once, several faults do, and no case waits long for its answer. On a busy machine a case may
//! run out of time; then a fault is noticed that might not have been, but never the other way round. The
//! right server has all the time that the cases give, and is tested while nothing else is.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use ringbench::conform::case::{Content, Limit, Step};
use ringbench::conform::deflate::Library;
use ringbench::conform::{
    Behavior, BehaviorClose, Case, Demand, Judged, Number, Plan, Volume, cases, suite,
};
use ringbench::stop::Stop;
use ringbench::target::Target;
use testkit::mutant::{self, Fault, Mutant, Role};

/// Enough for a fault of every tenth message.
const MESSAGES: u32 = 12;
const COMPRESSED_BYTES_MAX: usize = 8192;
/// Cases at a time where the server is right.
const JOBS: usize = 8;
/// Faults that are tried at a time.
const AT_A_TIME: usize = 12;
/// How long a case may wait for the answer of a wrong server.
const LIMIT_MAX: Duration = Duration::from_secs(4);
/// A fault that so many cases notice need not be tried by those that take a second of a CPU each.
const MANY: usize = 100;

/// What the RFC does not forbid a server although no good one does it: the code for a message that is too
/// long is a name and no demand (RFC 6455 section 7.4.1), and it may take messages of any length.
const UNNOTICED: [Fault; 2] = [Fault::SizeCode1002, Fault::DeflateUnlimited];

/// Held by each test: they would take each other's time.
static ALONE: Mutex<()> = Mutex::new(());
/// What all runs send.
static LIBRARY: LazyLock<Library> = LazyLock::new(Library::default);

/// All cases for servers, cut to what is quick.
fn quick_cases() -> Vec<Case> {
    let mut cases = cases::every(Volume::Quick);
    cases.retain(Case::tests_servers);
    cases.retain_mut(|case| {
        let step = |step: &mut Step| match step {
            Step::RoundTrips(trips) => {
                trips.count = trips.count.min(MESSAGES);
                match trips.content {
                    Content::Of(_, bytes) => bytes <= COMPRESSED_BYTES_MAX,
                    Content::Same(_) => true,
                }
            }
            _ => true,
        };
        case.script.iter_mut().all(step)
    });
    cases
}

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The same case, which waits for less time.
fn hurried(case: &Case) -> Case {
    let limit = match case.limit {
        Limit::Fail(limit) => Limit::Fail(limit.min(LIMIT_MAX)),
        Limit::Close(limit) => Limit::Close(limit.min(LIMIT_MAX)),
    };
    Case { limit, ..case.clone() }
}

fn run(faults: &[Fault], cases: &[Case], jobs: usize) -> Vec<Judged> {
    let mutant = Mutant::start(mutant::Behavior::with(faults));
    let target: Target = mutant.url().parse().expect("a target");
    let plan = Plan { target: &target, cases, library: &LIBRARY, jobs, seed: 1 };
    suite::run(&plan, &Stop::new().expect("a pipe"), &mut |_, _| {})
}

type Verdicts = BTreeMap<Number, (Behavior, BehaviorClose)>;

fn verdicts(cases: &[Case], judged: &[Judged]) -> Verdicts {
    assert_eq!(cases.len(), judged.len());
    let verdict = |it: &Judged| (it.verdict.behavior, it.verdict.behavior_close);
    cases.iter().zip(judged).map(|(case, it)| (case.number, verdict(it))).collect()
}

/// Runs the right server, and requires that it passes everything strictly.
fn verdicts_on_the_right_server(cases: &[Case]) -> Verdicts {
    let judged = run(&[], cases, JOBS);
    let failed: Vec<String> = cases
        .iter()
        .zip(&judged)
        .filter(|(_, judged)| !judged.verdict.passes(Demand::Strict))
        .map(|(case, judged)| format!("{} {:?}", case.number, judged.verdict))
        .collect();
    assert!(failed.is_empty(), "a right server fails: {failed:#?}");
    verdicts(cases, &judged)
}

#[test]
fn every_fault_is_noticed_by_the_cases_that_must() {
    let _alone = alone();
    let cases = quick_cases();
    let right = verdicts_on_the_right_server(&cases);
    let faults: Vec<Fault> = Fault::ALL
        .iter()
        .copied()
        .filter(|fault| fault.fits(Role::Server) && !fault.cases().is_empty())
        .collect();
    assert!(faults.len() > 100, "{} faults", faults.len());
    let (next, unnoticed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        while let Some(fault) = faults.get(next.fetch_add(1, Ordering::Relaxed)).copied() {
            let is_it = |case: &&Case| fault.is_noticed_by(&case.number.to_string());
            let mut chosen: Vec<Case> = cases.iter().filter(is_it).map(hurried).collect();
            let all = patterns_without_case(fault, &chosen);
            if chosen.len() > MANY {
                chosen.retain(|case| !is_heavy(case));
            }
            // Which connection comes after a reset must not be left to chance.
            let jobs = if fault == Fault::ResetSpoilsNext { 1 } else { chosen.len() };
            let found = verdicts(&chosen, &run(&[fault], &chosen, jobs));
            let missed = found.iter().filter(|(number, found)| right[number] == **found);
            let missed: Vec<String> = missed.map(|(number, _)| number.to_string()).collect();
            if !missed.is_empty() || !all.is_empty() {
                let line = format!("{fault}: unnoticed by {missed:?}, no case is {all:?}");
                unnoticed.lock().expect("no panic").push(line);
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(work);
        }
    });
    let unnoticed = unnoticed.into_inner().expect("no panic");
    assert!(unnoticed.is_empty(), "{unnoticed:#?}");
}

/// The patterns of a fault that name no case, as after a change of numbers.
fn patterns_without_case(fault: Fault, cases: &[Case]) -> Vec<&'static str> {
    let names = |pattern: &str| match pattern.strip_suffix('*') {
        Some(beginning) => cases.iter().any(|case| case.number.to_string().starts_with(beginning)),
        None => cases.iter().any(|case| case.number.to_string() == pattern),
    };
    let all = fault.cases().iter().copied();
    all.filter(|pattern| !names(pattern) && !is_left_out(pattern)).collect()
}

/// Whether a case has a message of more than 1 MiB, or one in tens of thousands of pieces.
fn is_heavy(case: &Case) -> bool {
    let is_it = |step: &Step| match step {
        Step::RoundTrips(trips) => match &trips.content {
            Content::Same(payload) => payload.len() > 1 << 20,
            Content::Of(..) => false,
        },
        _ => false,
    };
    case.script.iter().any(is_it)
}

/// Whether this is one of the longer compressed messages.
fn is_left_out(pattern: &str) -> bool {
    let last = pattern.rsplit('.').next().and_then(|last| last.parse::<u32>().ok());
    let is_compressed = pattern.starts_with("12.") || pattern.starts_with("13.");
    is_compressed && last.is_some_and(|case| case > 6 && case != 11)
}

#[test]
fn every_fault_that_breaks_a_rule_has_cases_that_must_notice_it() {
    let is_unnoticed = |fault: &Fault| !fault.is_legal() && fault.cases().is_empty();
    let unnoticed: Vec<Fault> = Fault::ALL.iter().copied().filter(is_unnoticed).collect();
    assert_eq!(unnoticed, UNNOTICED);
}

/// What is rare and right fails no case.
#[test]
fn what_is_legal_passes() {
    let _alone = alone();
    let mut cases = quick_cases();
    // Each of these takes a second or more, whoever answers.
    cases.retain(|case| !case.script.iter().any(|step| matches!(step, Step::Pause(..))));
    let legal: Vec<Fault> = Fault::ALL.iter().copied().filter(|it| it.is_legal()).collect();
    for pair in legal.chunks(2) {
        thread::scope(|scope| {
            for fault in pair {
                scope.spawn(|| assert_passes(*fault, &cases));
            }
        });
    }
}

fn assert_passes(fault: Fault, cases: &[Case]) {
    let judged = run(&[fault], cases, JOBS);
    assert_eq!(judged.len(), cases.len(), "{fault}");
    let failed: Vec<String> = cases
        .iter()
        .zip(&judged)
        .filter(|(_, judged)| !judged.verdict.passes(Demand::Musts))
        .map(|(case, judged)| format!("{} {:?}", case.number, judged.verdict))
        .collect();
    assert!(failed.is_empty(), "{fault}: {failed:#?}");
}

/// Runs one case.
fn one(faults: &[Fault], number: &str) -> Judged {
    let mut cases = quick_cases();
    cases.retain(|case| case.number.to_string() == number);
    run(faults, &cases, 1).remove(0)
}

/// What kosoku leaves out: the content of long echoes, who ends the TCP connection, and how many frames and
/// bytes went over the wire.
#[test]
fn what_another_tester_leaves_out_is_checked() {
    let _alone = alone();
    // The same length, but other bytes.
    for (fault, number, at) in [
        (Fault::PhaseLostAt64K, "9.2.2", "differs at byte 65536"),
        (Fault::PhaseLostByChunks, "9.2.1", "differs at byte 4093"),
        (Fault::LastByteLostAt65536, "9.2.1", "65535 bytes instead of 65536"),
    ] {
        let verdict = one(&[fault], number).verdict;
        assert_eq!(verdict.behavior, Behavior::Failed, "{fault}: {verdict:?}");
        assert!(verdict.result.contains(at), "{fault}: {verdict:?}");
    }

    let [right, left_open] = [&[][..], &[Fault::TcpNotDropped]].map(|faults| one(faults, "1.1.2"));
    let [right, left_open] = [right, left_open].map(|judged| judged.run.transcript.closing);
    assert!(right.was_clean && !right.dropped_by_me && !right.was_server_connection_drop_timeout);
    assert!(!left_open.was_clean && left_open.dropped_by_me);
    assert!(left_open.was_server_connection_drop_timeout);
    assert_eq!(left_open.remote_close_code, Some(1000), "both close frames were there");

    let traffic = |faults: &[Fault], number: &str| one(faults, number).run.transcript.traffic;
    let frames = |of: &[(u8, u64)]| BTreeMap::from_iter(of.iter().copied());
    let plain = traffic(&[], "5.3");
    assert_eq!(plain.frames_sent, frames(&[(0, 1), (1, 1), (8, 1)]));
    assert_eq!(plain.frames_received, frames(&[(1, 1), (8, 1)]));
    let parts = traffic(&[Fault::ByFragment], "5.3");
    assert_eq!(parts.frames_received, frames(&[(0, 1), (1, 1), (8, 1)]));
    let pinged = traffic(&[Fault::PingsFirst], "5.3");
    assert_eq!(pinged.frames_received, frames(&[(1, 1), (8, 1), (9, 1)]));
    assert_eq!(pinged.frames_sent, frames(&[(0, 1), (1, 1), (8, 1), (10, 1)]));
    let twice = traffic(&[Fault::CloseTwice], "23.4.1");
    assert_eq!(twice.frames_received, frames(&[(8, 2)]));
    // A header more, of two bytes.
    let bytes = |of: &BTreeMap<usize, u64>| -> u64 {
        of.iter().map(|(size, times)| *size as u64 * times).sum()
    };
    assert_eq!(bytes(&parts.received), bytes(&plain.received) + 2);
    assert_eq!(bytes(&parts.sent), bytes(&plain.sent));
}
