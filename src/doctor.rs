//! The doctor: what affects latency on this machine, and the commands that change it.
//!
//! A [`Report`] is a function of a tree of files, which is `/` except in tests, and of [`Facts`] that
//! are not in files. The doctor changes nothing, and a file that is missing or makes no sense is a
//! verdict, never an error. Each theme has a module of its own, and none of them knows how a report is
//! shown.

mod cpus;
#[cfg(test)]
mod fixture;
mod kernel;
mod limits;
mod machine;
mod memory;
mod network;
pub mod report;

use std::path::Path;
use std::thread;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit};

use self::machine::Machine;
use self::report::Report;
use crate::engine::BufferConfig;
use crate::engine::uring::Ability;
use crate::engine::wait;
use crate::offload::program::{OffloadError, Program};
use crate::sandbox::{self, Enforced, Needs};
use crate::server::Config;

/// A resource limit of the process; `None` is unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// The limit in force.
    pub soft: Option<u64>,
    /// What the process may raise it to.
    pub hard: Option<u64>,
}

impl Limit {
    fn of(resource: Resource) -> Limit {
        let Rlimit { current, maximum } = getrlimit(resource);
        Limit { soft: current, hard: maximum }
    }
}

/// What an examination needs to know besides files.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The pinned memory of each worker.
    pub buffers: BufferConfig,
    /// Connections open at a time, over all workers.
    pub connections_max: usize,
    /// The CPUs that the process may use, with a worker on each.
    pub allowed: Vec<usize>,
    /// The result of trying each ability of io_uring.
    pub abilities: Vec<(Ability, Result<(), Errno>)>,
    /// The result of loading the program that echoes in the kernel.
    pub offload: Result<(), OffloadError>,
    /// What the kernel enforces of a sandbox.
    pub sandbox: Enforced,
    /// Bytes of memory that may be locked.
    pub locked_bytes: Limit,
    /// Descriptors.
    pub descriptors: Limit,
    /// How long it takes to wake a sleeping thread, if that could be measured.
    pub wake_up: Option<Duration>,
}

impl Facts {
    /// Gathers the facts of this process, for a server with this configuration.
    pub fn gather(config: &Config) -> Facts {
        let probe = |ability: Ability| {
            let error = |error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
            (ability, ability.probe().map_err(error))
        };
        let allowed = crate::cpus::allowed().unwrap_or_default();
        let wake_up = allowed.first().and_then(|&cpu| wait::measure_wake_up(cpu));
        Facts {
            buffers: config.buffers,
            connections_max: config.connections_max,
            allowed,
            abilities: Ability::ALL.map(probe).to_vec(),
            offload: Program::load().map(drop),
            // It holds for the thread that enters it.
            sandbox: thread::spawn(|| sandbox::enter(&Needs::default()))
                .join()
                .expect("a panic ends the process"),
            locked_bytes: Limit::of(Resource::Memlock),
            descriptors: Limit::of(Resource::Nofile),
            wake_up,
        }
    }
}

/// Runs all checks. `root` is the directory that contains `proc` and `sys`.
pub fn examine(root: &Path, facts: &Facts) -> Report {
    let machine = Machine { root, facts };
    let themes = [kernel::checks, limits::checks, cpus::checks, network::checks, memory::checks];
    let checks = themes.into_iter().flat_map(|checks| checks(machine)).collect();
    Report { checks }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::fixture::{Tree, check, facts};
    use super::machine::NONSENSE_MAX;
    use super::report::Heading;
    use super::report::Verdict::{Absent, Fine, Unknown};
    use super::*;

    #[test]
    fn nothing_at_all_is_no_error() {
        let tree = Tree::new(&[]);
        let nothing =
            Facts { allowed: Vec::new(), abilities: Vec::new(), wake_up: None, ..facts() };
        for (facts, allowed) in [(nothing, Unknown), (facts(), Fine)] {
            for check in examine(tree.root(), &facts).checks {
                let verdict = match check.heading {
                    Heading::Limits | Heading::Offload | Heading::Sandbox => Fine,
                    Heading::IoUring if check.found == "works" => Fine,
                    Heading::Cpus if matches!(check.name, "CPUs allowed" | "wake-up") => allowed,
                    Heading::Kernel
                    | Heading::IoUring
                    | Heading::Cpus
                    | Heading::Network
                    | Heading::Memory => {
                        assert!(matches!(check.verdict, Unknown | Absent), "{check:?}");
                        check.verdict
                    }
                };
                assert_eq!(check.verdict, verdict, "{check:?}");
                assert_eq!(check.command, None, "{check:?}");
                assert!(!check.found.is_empty() && !check.wanted.is_empty(), "{check:?}");
            }
        }
    }

    #[test]
    fn nonsense_is_shown_cut_short() {
        let long = "x".repeat(100_000);
        let row = check("kernel version", &[("proc/sys/kernel/osrelease", &long)]);
        assert_eq!((row.verdict, row.found.len()), (Unknown, NONSENSE_MAX + 2));
        let tree = Tree::new(&[("proc/sys/kernel/osrelease/directory", "")]);
        assert_eq!(examine(tree.root(), &facts()).checks[0].verdict, Unknown);
        fs::write(tree.root().join("proc/meminfo"), [0xFF, 0xFE, 0x00]).expect("a file");
        assert_eq!(examine(tree.root(), &facts()).checks.len(), Ability::ALL.len() + 23);
    }

    #[test]
    fn this_machine_is_examined_whatever_it_is() {
        let config = crate::cli::defaults();
        let report = examine(Path::new("/"), &Facts::gather(&config));
        let mut names: Vec<&str> = report.checks.iter().map(|check| check.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), report.checks.len(), "no two have the same name");
        let headings: Vec<Heading> = report.checks.iter().map(|check| check.heading).collect();
        let changes = headings.windows(2).filter(|pair| pair[0] != pair[1]).count();
        assert_eq!(changes, 7, "the checks of a heading are adjacent");
    }
}
