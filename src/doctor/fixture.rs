//! Test support: a machine made of a few files, and what is expected of a row.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use super::report::{Check, Verdict};
use super::{Facts, Limit, examine};
use crate::engine::BufferConfig;
use crate::engine::uring::Ability;
use crate::sandbox::Enforced;

/// A directory with a few files that stands for `/`. It is gone when dropped.
pub(super) struct Tree(PathBuf);

impl Tree {
    pub(super) fn new(files: &[(&str, &str)]) -> Tree {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Relaxed);
        let name = format!("ringecho-doctor-{}-{number}", std::process::id());
        let tree = Tree(std::env::temp_dir().join(name));
        fs::create_dir(&tree.0).expect("a directory");
        for (path, content) in files {
            let path = tree.0.join(path);
            fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
            fs::write(path, content).expect("a file");
        }
        tree
    }

    pub(super) fn root(&self) -> &Path {
        &self.0
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub(super) const STATUS: &str = "proc/self/status";

pub(super) const UNLIMITED: Limit = Limit { soft: None, hard: None };

/// A process that may do everything, on four CPUs.
pub(super) fn facts() -> Facts {
    Facts {
        buffers: BufferConfig { count: 256, bytes: 16 << 10 },
        connections_max: 1000,
        allowed: vec![0, 1, 2, 3],
        abilities: Ability::ALL.map(|ability| (ability, Ok(()))).to_vec(),
        offload: Ok(()),
        sandbox: Enforced { landlock: Some("V7".into()), missing: Vec::new() },
        locked_bytes: UNLIMITED,
        descriptors: UNLIMITED,
        wake_up: Some(Duration::from_micros(20)),
    }
}

#[track_caller]
pub(super) fn check_with(facts: &Facts, name: &str, files: &[(&str, &str)]) -> Check {
    let tree = Tree::new(files);
    let report = examine(tree.root(), facts);
    let mut found = report.checks.into_iter().filter(|check| check.name == name);
    let check = found.next().unwrap_or_else(|| panic!("no {name}"));
    assert_eq!(found.next(), None);
    assert!(!check.found.is_empty() && !check.wanted.is_empty(), "{check:?}");
    check
}

#[track_caller]
pub(super) fn check(name: &str, files: &[(&str, &str)]) -> Check {
    check_with(&facts(), name, files)
}

#[track_caller]
pub(super) fn expect(check: &Check, verdict: Verdict, found: &str, command: Option<&str>) {
    assert_eq!(check.verdict, verdict, "{check:?}");
    assert!(check.found.contains(found), "{check:?}");
    assert_eq!(check.command.as_deref(), command, "{check:?}");
}

/// Checks a row that depends on one file: content, verdict, what is shown, command.
#[track_caller]
pub(super) fn expect_each(name: &str, path: &str, cases: &[(&str, Verdict, &str, Option<&str>)]) {
    for &(content, verdict, found, command) in cases {
        expect(&check(name, &[(path, content)]), verdict, found, command);
    }
}
