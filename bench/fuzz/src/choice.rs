//! Which of a program's targets runs: the environment variable `RINGECHO_FUZZ` names it.

use std::env;
use std::sync::OnceLock;

use libfuzzer_sys::Corpus;

const VARIABLE: &str = "RINGECHO_FUZZ";

/// What is done with an input. One that cannot be used is rejected.
pub(crate) type Target = fn(&[u8]) -> Corpus;

pub(crate) struct Choice(OnceLock<Target>);

impl Choice {
    pub(crate) const fn new() -> Choice {
        Choice(OnceLock::new())
    }

    /// Chooses, once, before the first input.
    pub(crate) fn make(&self, targets: &[(&str, Target)]) {
        let name = env::var(VARIABLE).unwrap_or_default();
        let chosen = targets.iter().find(|(known, _)| *known == name);
        let (_, target) = chosen.unwrap_or_else(|| panic!("{VARIABLE}={name} is no target"));
        self.0.get_or_init(|| *target);
    }

    pub(crate) fn run(&self, data: &[u8]) -> Corpus {
        self.0.get().expect("chosen at the start")(data)
    }
}
