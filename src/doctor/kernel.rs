//! What the kernel can do and lets this process do: its version, io_uring, the BPF program that echoes in
//! the kernel, and what it enforces of a sandbox.

use std::fmt::Display;

use rustix::io::Errno;

use super::machine::{Machine, Row, sysctl};
use super::report::{Check, Heading};
use crate::engine::uring::{Ability, Purpose};
use crate::linux::{self, field};
use crate::offload;
use crate::offload::program::OffloadError;
use crate::sandbox::Enforced;

/// The oldest version of Linux on which the uring engine runs.
const LINUX_MIN: (u32, u32) = (6, 1);

pub(super) fn checks(machine: Machine<'_>) -> Vec<Check> {
    let abilities = machine.facts.abilities.iter();
    let mut checks = vec![version(machine)];
    checks.extend(abilities.map(|&(ability, used)| io_uring(machine, ability, used)));
    checks.extend([io_uring_disabled(machine), seccomp(machine), program(machine)]);
    checks.push(sandbox(machine));
    checks
}

fn version(machine: Machine<'_>) -> Check {
    let (major, minor) = LINUX_MIN;
    let row = Row::new(Heading::Kernel, "kernel version", format!("{major}.{minor} or newer"));
    let Some(text) = machine.read("proc/sys/kernel/osrelease") else {
        return row.unknown("no /proc");
    };
    match linux::version(&text) {
        Some(version) if version >= LINUX_MIN => row.fine(text),
        Some(_) => row.fail(text, None),
        None => row.nonsense(&text),
    }
}

fn io_uring(machine: Machine<'_>, ability: Ability, used: Result<(), Errno>) -> Check {
    let (name, version) = ability.name();
    let purpose = match ability.purpose() {
        Purpose::Serving => "",
        Purpose::Sqpoll => ", for --wait sqpoll",
        Purpose::Speed => ", optional",
    };
    let row = Row::new(Heading::IoUring, name, format!("Linux {version}{purpose}"));
    let errno = match used {
        Ok(()) => return row.fine("works"),
        Err(Errno::INVAL) => return missing(row, ability, "this kernel lacks it", None),
        Err(errno) => errno,
    };
    let error = std::io::Error::from(errno);
    if !is_refusal(used) {
        return row.unknown(format!("cannot be tried: {error}"));
    }
    let filter = if seccomp_mode(machine) == Some(2) { " under a seccomp filter" } else { "" };
    missing(row, ability, format!("refused{filter}: {error}"), permission(machine))
}

/// Without some abilities the uring engine cannot start; without others it is only slower.
fn missing(row: Row, ability: Ability, found: impl Display, command: Option<String>) -> Check {
    match ability.purpose() {
        Purpose::Serving => row.fail(found, command),
        Purpose::Sqpoll | Purpose::Speed => row.warn(found, command),
    }
}

fn io_uring_disabled(machine: Machine<'_>) -> Check {
    const NAME: &str = "kernel.io_uring_disabled";
    let row = Row::new(Heading::IoUring, NAME, "0");
    let Some(text) = machine.read("proc/sys/kernel/io_uring_disabled") else {
        return row.absent("no such sysctl, which came with Linux 6.6");
    };
    let command = Some(sysctl(NAME, 0));
    match text.as_str() {
        "0" => row.fine(text),
        "1" => {
            let group = machine.read("proc/sys/kernel/io_uring_group");
            let group = group.filter(|group| group.parse::<u32>().is_ok());
            let group = group.map_or("no group".into(), |group| format!("group {group}"));
            if is_io_uring_refused(machine) {
                row.fail(format!("1: root and {group} may use it, this process may not"), command)
            } else {
                row.fine(format!("1: root and {group} may use it, and so may this process"))
            }
        }
        "2" => row.fail("2: nobody may use it", command),
        _ => row.nonsense(&text),
    }
}

fn seccomp(machine: Machine<'_>) -> Check {
    let row = Row::new(Heading::IoUring, "seccomp", "nothing that refuses io_uring");
    let Some(mode) = seccomp_mode(machine) else {
        return row.unknown("no mode in /proc/self/status");
    };
    match (mode, is_io_uring_refused(machine)) {
        (0, _) => row.fine("0, no filter"),
        (2, false) => row.fine("2, a filter that lets io_uring_setup through"),
        (2, true) => {
            let found = "2, a filter, and io_uring_setup is refused";
            row.fail(found, permission(machine))
        }
        // Strict mode allows only read, write and exit, so this program cannot run in it.
        (mode, _) => row.nonsense(&mode.to_string()),
    }
}

/// Whether something forbids io_uring to this process: every attempt was refused, not just unknown to
/// the kernel.
fn is_io_uring_refused(machine: Machine<'_>) -> bool {
    let abilities = &machine.facts.abilities;
    !abilities.is_empty() && abilities.iter().all(|&(_, used)| is_refusal(used))
}

fn is_refusal(used: Result<(), Errno>) -> bool {
    matches!(used, Err(Errno::PERM | Errno::ACCESS | Errno::NOSYS))
}

fn seccomp_mode(machine: Machine<'_>) -> Option<u32> {
    field(&machine.read("proc/self/status")?, "Seccomp")?.parse().ok()
}

/// The command that lets this process use io_uring, if it is known.
fn permission(machine: Machine<'_>) -> Option<String> {
    let disabled = machine.read("proc/sys/kernel/io_uring_disabled");
    if disabled.is_some_and(|disabled| disabled != "0") {
        return Some(sysctl("kernel.io_uring_disabled", 0));
    }
    let containers = [("docker", ".dockerenv"), ("podman", "run/.containerenv")];
    let (program, _) = containers.iter().find(|(_, file)| machine.root.join(file).exists())?;
    Some(format!("{program} run --security-opt seccomp=unconfined"))
}

fn program(machine: Machine<'_>) -> Check {
    let (major, minor) = offload::LINUX_MIN;
    let wanted = format!("Linux {major}.{minor}, for --offload");
    let row = Row::new(Heading::Offload, "BPF program", wanted);
    let version = machine.read("proc/sys/kernel/osrelease").and_then(|text| linux::version(&text));
    match &machine.facts.offload {
        Ok(()) if version.is_some_and(|version| version < offload::LINUX_MIN) => {
            row.warn("it loads, but this kernel may lose or repeat bytes", None)
        }
        Ok(()) => row.fine("it loads"),
        Err(OffloadError::Forbidden) => row.warn(
            "this process may not load it",
            Some("sudo setcap cap_bpf,cap_net_admin,cap_perfmon=ep $(command -v ringecho)".into()),
        ),
        Err(OffloadError::Typeless) => {
            row.warn("the kernel has no type information (CONFIG_DEBUG_INFO_BTF)", None)
        }
        Err(error) => row.warn(error, None),
    }
}

fn sandbox(machine: Machine<'_>) -> Check {
    let row = Row::new(Heading::Sandbox, "sandbox", "seccomp and Landlock");
    let Enforced { landlock, missing } = &machine.facts.sandbox;
    match landlock {
        Some(version) if missing.is_empty() => row.fine(format!("seccomp, Landlock {version}")),
        Some(_) | None => row.warn(missing.join("; "), None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Facts;
    use crate::doctor::fixture::{STATUS, check, check_with, expect, expect_each, facts};
    use crate::doctor::report::Verdict::{Absent, Fail, Fine, Unknown, Warn};

    #[test]
    fn the_version_of_linux() {
        expect_each(
            "kernel version",
            "proc/sys/kernel/osrelease",
            &[
                ("6.18.44-generic\n", Fine, "6.18.44-generic", None),
                ("6.1-rc3", Fine, "6.1-rc3", None),
                ("7.0.0", Fine, "7.0.0", None),
                ("6.0.19", Fail, "6.0.19", None),
                ("5.15.0-91", Fail, "5.15.0", None),
                ("six", Unknown, "six", None),
                ("6.x", Unknown, "6.x", None),
                ("", Unknown, "\"\"", None),
            ],
        );
        expect(&check("kernel version", &[]), Unknown, "no /proc", None);
    }

    #[test]
    fn each_ability_of_io_uring_has_its_own_row() {
        for ability in Ability::ALL {
            let (name, version) = ability.name();
            let with = |used| {
                let abilities = Ability::ALL
                    .map(|other| if other == ability { (other, used) } else { (other, Ok(())) });
                check_with(&Facts { abilities: abilities.to_vec(), ..facts() }, name, &[])
            };
            let row = with(Ok(()));
            expect(&row, Fine, "works", None);
            assert!(row.wanted.starts_with(&format!("Linux {version}")), "{row:?}");
            let verdict = match ability.purpose() {
                Purpose::Serving => Fail,
                Purpose::Sqpoll | Purpose::Speed => Warn,
            };
            expect(&with(Err(Errno::INVAL)), verdict, "lacks it", None);
            expect(&with(Err(Errno::PERM)), verdict, "refused: Operation not", None);
            expect(&with(Err(Errno::NOMEM)), Unknown, "cannot be tried: ", None);
        }
        assert!(check("IORING_SETUP_SQPOLL", &[]).wanted.contains("for --wait sqpoll"));
        assert!(check("IORING_SETUP_NO_SQARRAY", &[]).wanted.contains("optional"));
        assert_eq!(check("multishot receive", &[]).wanted, "Linux 6.0");
    }

    /// A process to which nothing of io_uring works.
    fn without_io_uring(errno: Errno) -> Facts {
        let abilities = Ability::ALL.map(|ability| (ability, Err(errno))).to_vec();
        Facts { abilities, ..facts() }
    }

    #[test]
    fn the_report_says_who_refuses_io_uring() {
        let facts = without_io_uring(Errno::PERM);
        let name = "buffer ring";
        let filtered = [(STATUS, "Seccomp:\t2\n")];
        let row = check_with(&facts, name, &filtered);
        expect(&row, Fail, "refused under a seccomp filter: Operation not", None);
        for (file, command) in [
            (".dockerenv", "docker run --security-opt seccomp=unconfined"),
            ("run/.containerenv", "podman run --security-opt seccomp=unconfined"),
        ] {
            let row = check_with(&facts, name, &[filtered[0], (file, "")]);
            expect(&row, Fail, "seccomp", Some(command));
        }
        let disabled = [(".dockerenv", ""), ("proc/sys/kernel/io_uring_disabled", "2")];
        let command = Some("sudo sysctl -w kernel.io_uring_disabled=0");
        expect(&check_with(&facts, name, &disabled), Fail, "refused: ", command);
    }

    #[test]
    fn io_uring_may_be_disabled() {
        let name = "kernel.io_uring_disabled";
        let path = "proc/sys/kernel/io_uring_disabled";
        let command = Some("sudo sysctl -w kernel.io_uring_disabled=0");
        expect_each(
            name,
            path,
            &[
                ("0\n", Fine, "0", None),
                ("1\n", Fine, "1: root and no group may use it, and so may this process", None),
                ("2\n", Fail, "2: nobody may use it", command),
                ("3\n", Unknown, "3", None),
                ("no", Unknown, "no", None),
            ],
        );
        let grouped = [(path, "1"), ("proc/sys/kernel/io_uring_group", "998\n")];
        expect(&check(name, &grouped), Fine, "group 998 may use it, and so may this process", None);
        let row = check_with(&without_io_uring(Errno::PERM), name, &grouped);
        expect(&row, Fail, "group 998 may use it, this process may not", command);
        let nobody = [(path, "1"), ("proc/sys/kernel/io_uring_group", "-1\n")];
        expect(&check(name, &nobody), Fine, "no group", None);
        expect(&check(name, &[]), Absent, "Linux 6.6", None);
    }

    #[test]
    fn seccomp_filters() {
        expect_each(
            "seccomp",
            STATUS,
            &[
                ("Name:\tringecho\nSeccomp:\t0\nSeccomp_filters:\t0\n", Fine, "no filter", None),
                ("Seccomp:\t2\nSeccomp_filters:\t1\n", Fine, "lets io_uring_setup through", None),
                ("Seccomp:\t1\n", Unknown, "1", None),
                ("Seccomp:\tmany\n", Unknown, "no mode", None),
                ("Seccomp", Unknown, "no mode", None),
                ("Seccomp_filters:\t1\n", Unknown, "no mode", None),
            ],
        );
        for errno in [Errno::PERM, Errno::NOSYS, Errno::ACCESS] {
            let facts = without_io_uring(errno);
            let row = check_with(&facts, "seccomp", &[(STATUS, "Seccomp:\t2\n")]);
            expect(&row, Fail, "io_uring_setup is refused", None);
            let row = check_with(&facts, "seccomp", &[(STATUS, "Seccomp:\t0\n")]);
            expect(&row, Fine, "no filter", None);
        }
        // An old kernel lacks every feature, but lets the call through.
        let facts = without_io_uring(Errno::INVAL);
        let row = check_with(&facts, "seccomp", &[(STATUS, "Seccomp:\t2\n")]);
        expect(&row, Fine, "through", None);
        expect(&check("seccomp", &[]), Unknown, "no mode", None);
    }

    #[test]
    fn what_is_missing_of_a_sandbox() {
        let row = |landlock: Option<&str>, missing: &[&str]| {
            let landlock = landlock.map(str::to_owned);
            let missing = missing.iter().map(|&reason| reason.to_owned()).collect();
            let sandbox = Enforced { landlock, missing };
            check_with(&Facts { sandbox, ..facts() }, "sandbox", &[])
        };
        expect(&row(Some("V7"), &[]), Fine, "seccomp, Landlock V7", None);
        expect(&row(Some("V7"), &["no filter"]), Warn, "no filter", None);
        expect(&row(None, &["no Landlock", "no filter"]), Warn, "no Landlock; no filter", None);
    }

    #[test]
    fn whether_echoes_can_be_offloaded() {
        let row = |offload, release| {
            let files = [("proc/sys/kernel/osrelease", release)];
            check_with(&Facts { offload, ..facts() }, "BPF program", &files)
        };
        assert_eq!(row(Ok(()), "6.18.1").verdict, Fine);
        assert_eq!(row(Ok(()), "6.12.3").verdict, Warn);
        let forbidden = row(Err(OffloadError::Forbidden), "6.18.1");
        assert!(forbidden.command.is_some_and(|command| command.contains("cap_bpf")));
        let refused = row(Err(OffloadError::Refused("R1 is not what it was".into())), "6.18.1");
        assert!(refused.found.contains("R1 is not"), "{}", refused.found);
    }
}
