//! The clients that are tested: which cases each of them runs, and what came of those it has run.
//!
//! A client names itself as an *agent* with every case. The latest run of a case counts.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use super::suite::Judged;
use super::verdict::Verdict;

/// The most agents. More would fill the memory with what is known of their cases.
pub const AGENTS_MAX: usize = 64;
/// How often a wait for a verdict looks whether it should end.
const SLICE: Duration = Duration::from_millis(100);

/// All agents, by name.
#[derive(Debug, Default)]
pub struct Agents {
    all: Mutex<BTreeMap<String, Agent>>,
    /// A case was finished.
    changed: Condvar,
}

/// What is known of an agent.
#[derive(Debug, Clone)]
pub struct Agent {
    /// When its first case began.
    pub started: SystemTime,
    /// How long it took from there to the end of the latest.
    pub duration: Duration,
    begin: Instant,
    judged: BTreeMap<usize, Judged>,
    /// How many connections run a case, by its place.
    running: BTreeMap<usize, usize>,
}

impl Agent {
    /// What came of its cases, in their order.
    pub fn judged(&self) -> Vec<Judged> {
        self.judged.values().cloned().collect()
    }
}

/// There are too many agents already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooMany;

impl Agents {
    /// Notes that an agent runs the case at this place.
    ///
    /// # Errors
    ///
    /// When it is a new agent, and there are [`AGENTS_MAX`].
    pub fn begin(&self, name: &str, at: usize) -> Result<(), TooMany> {
        let mut all = self.lock();
        if !all.contains_key(name) && all.len() == AGENTS_MAX {
            return Err(TooMany);
        }
        let agent = all.entry(name.to_owned()).or_insert_with(|| Agent {
            started: SystemTime::now(),
            duration: Duration::ZERO,
            begin: Instant::now(),
            judged: BTreeMap::new(),
            running: BTreeMap::new(),
        });
        *agent.running.entry(at).or_default() += 1;
        Ok(())
    }

    /// Notes that it runs that case no longer, and what came of it, if it ran to its end. Returns of how
    /// many cases that is known now.
    pub fn end(&self, name: &str, at: usize, judged: Option<Judged>) -> usize {
        let mut all = self.lock();
        let Some(agent) = all.get_mut(name) else { return 0 };
        if let Some(count) = agent.running.get_mut(&at) {
            *count -= 1;
            if *count == 0 {
                agent.running.remove(&at);
            }
        }
        if let Some(judged) = judged {
            agent.judged.insert(at, judged);
            agent.duration = agent.begin.elapsed();
        }
        self.changed.notify_all();
        agent.judged.len()
    }

    /// The verdict on a case of an agent; nothing if it has not begun it. While it runs, waits for its
    /// end as long as `goes_on`.
    pub fn verdict(&self, name: &str, at: usize, goes_on: impl Fn() -> bool) -> Option<Verdict> {
        let mut all = self.lock();
        while all.get(name)?.running.contains_key(&at) && goes_on() {
            let waited = self.changed.wait_timeout(all, SLICE);
            all = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Some(all.get(name)?.judged.get(&at)?.verdict.clone())
    }

    /// All of them that have finished a case.
    pub fn all(&self) -> BTreeMap<String, Agent> {
        let all = self.lock();
        let has_finished = |agent: &&Agent| !agent.judged.is_empty();
        let finished = all.iter().map(|(name, agent)| (name.clone(), agent));
        finished
            .filter(|it| has_finished(&it.1))
            .map(|(name, agent)| (name, agent.clone()))
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Agent>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::super::driver::Run;
    use super::super::number::Number;
    use super::super::transcript::Transcript;
    use super::super::verdict::{Behavior, BehaviorClose};
    use super::*;
    use crate::opening::Handshake;

    fn judged(at: usize, behavior: Behavior) -> Judged {
        let transcript = Transcript::new(Number::pair(2, at as u16 + 1));
        let (handshake, started) = (Handshake::default(), SystemTime::now());
        let run = Run { transcript, handshake, started, duration: Duration::ZERO };
        let (result, result_close) = (String::new(), String::new());
        let behavior_close = BehaviorClose::Ok;
        Judged { at, run, verdict: Verdict { behavior, result, behavior_close, result_close } }
    }

    #[test]
    fn the_latest_run_of_a_case_counts() {
        let agents = Agents::default();
        let behavior = |at| agents.verdict("a", at, || true).map(|it| it.behavior);
        for (at, behavior) in [(1, Behavior::Failed), (0, Behavior::Ok), (1, Behavior::NonStrict)] {
            agents.begin("a", at).expect("room");
            agents.end("a", at, Some(judged(at, behavior)));
        }
        assert_eq!([behavior(0), behavior(1)], [Some(Behavior::Ok), Some(Behavior::NonStrict)]);
        assert_eq!((behavior(2), agents.verdict("b", 0, || true)), (None, None));
        let order: Vec<usize> = agents.all()["a"].judged().iter().map(|it| it.at).collect();
        assert_eq!(order, [0, 1]);
        // One that was not finished changes nothing.
        agents.begin("a", 1).expect("room");
        assert_eq!(agents.end("a", 1, None), 2);
        assert_eq!(behavior(1), Some(Behavior::NonStrict));
        agents.begin("b", 1).expect("room");
        assert_eq!(agents.all().len(), 1);
    }

    #[test]
    fn a_verdict_is_waited_for_while_the_case_runs() {
        let agents = Agents::default();
        agents.begin("a", 3).expect("room");
        assert_eq!(agents.verdict("a", 3, || false), None);
        thread::scope(|scope| {
            let waits = scope.spawn(|| agents.verdict("a", 3, || true));
            agents.end("a", 3, Some(judged(3, Behavior::Ok)));
            let verdict = waits.join().expect("no panic").expect("a verdict");
            assert_eq!(verdict.behavior, Behavior::Ok);
        });
    }

    #[test]
    fn agents_are_limited() {
        let agents = Agents::default();
        for number in 0..AGENTS_MAX {
            agents.begin(&number.to_string(), 0).expect("room");
        }
        assert_eq!(agents.begin("one more", 0), Err(TooMany));
        assert_eq!(agents.begin("5", 1), Ok(()));
    }
}
