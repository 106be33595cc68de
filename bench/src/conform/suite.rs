//! Runs cases against a server, several at a time.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

use super::case::Case;
use super::deflate::Library;
use super::driver::{self, Run};
use super::verdict::{Verdict, judge};
use crate::stop::Stop;
use crate::target::Target;

/// Cases in a row, in the order in which they end, that find no server or one that says nothing. After
/// that the rest is left out, because each of them takes its whole time.
const LOST_MAX: usize = 20;

/// What is run, and how.
#[derive(Debug, Clone, Copy)]
pub struct Plan<'a> {
    /// The server.
    pub target: &'a Target,
    /// The cases.
    pub cases: &'a [Case],
    /// The texts and compressed messages that they share. A later run may share them, too.
    pub library: &'a Library,
    /// How many run at a time, at least 1.
    pub jobs: usize,
    /// The seed of masking keys.
    pub seed: u64,
}

/// A case with its verdict.
#[derive(Debug, Clone)]
pub struct Judged {
    /// Where it stands in the plan.
    pub at: usize,
    /// What happened.
    pub run: Run,
    /// The verdict.
    pub verdict: Verdict,
}

impl Judged {
    /// Why it seems that there is no server any more, or that it hangs; nothing if it has said something.
    fn loss(&self) -> Option<&str> {
        let transcript = &self.run.transcript;
        if transcript.is_unreachable {
            return Some(&self.verdict.result);
        }
        transcript.is_silent().then_some("the server opens connections and sends nothing")
    }
}

/// Why a run was given up, of which these cases were judged.
pub fn reason(judged: &[Judged]) -> Option<String> {
    let lost = judged.iter().filter_map(Judged::loss).next_back()?;
    Some(format!("{LOST_MAX} cases in a row found no server that answers: {lost}"))
}

/// Runs all cases, those that take longest first, and calls `tell` after each with how many are done.
/// Returns them in the order of the plan; fewer if the stop is requested, or if there seems to be no
/// server any more ([`reason`]).
pub fn run(plan: &Plan<'_>, stop: &Stop, tell: &mut dyn FnMut(usize, &Judged)) -> Vec<Judged> {
    let mut order: Vec<usize> = (0..plan.cases.len()).collect();
    order.sort_by(|one, other| {
        plan.cases[*other].cost().total_cmp(&plan.cases[*one].cost()).then(one.cmp(other))
    });
    let (next, is_given_up) = (AtomicUsize::new(0), AtomicBool::new(false));
    let (sender, receiver) = mpsc::channel::<Judged>();
    let work = |sender: mpsc::Sender<Judged>| {
        while let Some(at) = order.get(next.fetch_add(1, Ordering::Relaxed)).copied() {
            if is_given_up.load(Ordering::Relaxed) {
                return;
            }
            let case = &plan.cases[at];
            let seed = plan.seed.wrapping_add(at as u64);
            let Some(run) = driver::run(case, plan.target, plan.library, seed, stop) else {
                return;
            };
            let verdict = judge(case, &run.transcript);
            if sender.send(Judged { at, run, verdict }).is_err() {
                return;
            }
        }
    };
    let mut judged = Vec::with_capacity(plan.cases.len());
    thread::scope(|scope| {
        for _ in 0..plan.jobs.clamp(1, plan.cases.len().max(1)) {
            let sender = sender.clone();
            let work = &work;
            scope.spawn(move || work(sender));
        }
        drop(sender);
        // It ends when all workers have.
        let mut lost = 0;
        for done in receiver {
            lost = if done.loss().is_some() { lost + 1 } else { 0 };
            if lost == LOST_MAX {
                is_given_up.store(true, Ordering::Relaxed);
            }
            tell(judged.len() + 1, &done);
            judged.push(done);
        }
    });
    judged.sort_by_key(|judged| judged.at);
    judged
}
