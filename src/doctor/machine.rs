//! What a check reads, and what it produces: the machine's files, and a row that has no verdict yet.
//!
//! Nothing here knows which checks there are.

use std::fmt::Display;
use std::fs;
use std::path::Path;

use super::Facts;
use super::report::{Check, Heading, Verdict};

/// The most characters shown of a file whose content makes no sense.
pub(super) const NONSENSE_MAX: usize = 40;

/// What is examined.
#[derive(Clone, Copy)]
pub(super) struct Machine<'a> {
    pub(super) root: &'a Path,
    pub(super) facts: &'a Facts,
}

impl Machine<'_> {
    /// The content of a file without surrounding white space, if it can be read.
    pub(super) fn read(self, path: &str) -> Option<String> {
        let bytes = fs::read(self.root.join(path)).ok()?;
        Some(String::from_utf8_lossy(&bytes).trim().to_owned())
    }

    /// The sorted names in a directory that begin with `prefix`; none if it cannot be read.
    pub(super) fn names(self, path: &str, prefix: &str) -> Vec<String> {
        let entries = fs::read_dir(self.root.join(path)).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let mut names: Vec<String> = names.filter(|name| name.starts_with(prefix)).collect();
        names.sort_unstable();
        names
    }

    pub(super) fn allowed(self, cpus: &[usize]) -> Vec<usize> {
        cpus.iter().copied().filter(|cpu| self.facts.allowed.contains(cpu)).collect()
    }

    pub(super) fn workers(self) -> usize {
        self.facts.allowed.len().max(1)
    }
}

/// A check that has no verdict yet.
pub(super) struct Row {
    heading: Heading,
    name: &'static str,
    wanted: String,
}

impl Row {
    pub(super) fn new(heading: Heading, name: &'static str, wanted: impl Display) -> Row {
        Row { heading, name, wanted: wanted.to_string() }
    }

    fn check(self, verdict: Verdict, found: impl Display, command: Option<String>) -> Check {
        let Row { heading, name, wanted } = self;
        Check { heading, name, found: found.to_string(), wanted, verdict, command }
    }

    pub(super) fn fine(self, found: impl Display) -> Check {
        self.check(Verdict::Fine, found, None)
    }

    pub(super) fn warn(self, found: impl Display, command: Option<String>) -> Check {
        self.check(Verdict::Warn, found, command)
    }

    pub(super) fn fail(self, found: impl Display, command: Option<String>) -> Check {
        self.check(Verdict::Fail, found, command)
    }

    pub(super) fn unknown(self, found: impl Display) -> Check {
        self.check(Verdict::Unknown, found, None)
    }

    /// What was found makes no sense.
    pub(super) fn nonsense(self, text: &str) -> Check {
        let shown: String = text.chars().take(NONSENSE_MAX).collect();
        self.unknown(format!("{shown:?}"))
    }

    pub(super) fn absent(self, found: impl Display) -> Check {
        self.check(Verdict::Absent, found, None)
    }
}

/// Whether the text looks like a name that the kernel gives to something.
pub(super) fn is_name(text: &str) -> bool {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    !text.is_empty() && text.bytes().all(is_part)
}

pub(super) fn sysctl(name: &str, value: impl Display) -> String {
    format!("sudo sysctl -w {name}={value}")
}
