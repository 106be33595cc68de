//! CPUs: which of them the process may use, how fast they wake up, and their clock.

use std::collections::BTreeMap;
use std::time::Duration;

use super::machine::{Machine, Row, is_name};
use super::report::{Check, Heading};
use crate::cpus::{self, CpuList};
use crate::engine::wait::Pace;
use crate::linux::Virtualization;

/// Leaving an idle state that takes this long, in microseconds, adds nearly half of the time of a
/// whole echo between threads that spin (`docs/benchmarking.md`).
const WAKING_US_MAX: u64 = 10;
/// A thread that wakes up more slowly than this adds more to a blocked round trip than all the rest of
/// it takes.
const WAKE_UP_MAX: Duration = Duration::from_micros(50);
/// The most cores that are named when their siblings are shown.
const CORES_MAX: usize = 4;

pub(super) fn checks(machine: Machine<'_>) -> Vec<Check> {
    vec![
        allowed(machine),
        set_apart(machine, Apart::Isolated),
        set_apart(machine, Apart::Tickless),
        governor(machine),
        idle_state(machine),
        wake_up(machine),
        siblings(machine),
        nodes(machine),
        virtual_machine(machine),
        clock_source(machine),
    ]
}

/// The CPUs of a list that the kernel has written.
fn parse(list: &str) -> Option<Vec<usize>> {
    list.parse().ok().map(|CpuList(cpus)| cpus)
}

fn allowed(machine: Machine<'_>) -> Check {
    let wanted = "2 or more, one for other work";
    let row = Row::new(Heading::Cpus, "CPUs allowed", wanted);
    let allowed = &machine.facts.allowed;
    let online = machine.read("sys/devices/system/cpu/online");
    let online = online.and_then(|list| parse(&list)).unwrap_or_default();
    let mut found = cpus::list(allowed);
    if online.len() > allowed.len() {
        found = format!("{found} of {}", cpus::list(&online));
    }
    match allowed.len() {
        0 => row.unknown("cannot be listed"),
        1 => {
            let command = format!("taskset -c {} ringecho", cpus::list(&online));
            row.warn(found, Some(command).filter(|_| online.len() > 1))
        }
        _ => row.fine(found),
    }
}

/// How the kernel keeps other work off a CPU.
#[derive(Clone, Copy)]
enum Apart {
    Isolated,
    Tickless,
}

fn set_apart(machine: Machine<'_>, apart: Apart) -> Check {
    let (name, path, parameter) = match apart {
        Apart::Isolated => {
            ("CPUs isolated", "sys/devices/system/cpu/isolated", "isolcpus=domain,managed_irq,")
        }
        Apart::Tickless => ("CPUs tickless", "sys/devices/system/cpu/nohz_full", "nohz_full="),
    };
    let row = Row::new(Heading::Cpus, name, "the CPUs of --wait spin");
    let Some(text) = machine.read(path) else {
        return row.absent("not built into this kernel");
    };
    // The kernel prints the latter for a list that was never set.
    if matches!(text.as_str(), "" | "(null)") {
        // The first CPU of a machine cannot be isolated.
        let others = machine.facts.allowed.get(1..).filter(|others| !others.is_empty());
        let command = others.map(|others| format!("boot with {parameter}{}", cpus::list(others)));
        return row.warn("none", command);
    }
    let Some(cpus) = parse(&text) else {
        return row.nonsense(&text);
    };
    if machine.allowed(&cpus).is_empty() {
        let command = format!("taskset -c {text} ringecho");
        return row.warn(format!("{text}, none of them allowed"), Some(command));
    }
    row.fine(text)
}

fn governor(machine: Machine<'_>) -> Check {
    const WANTED: &str = "performance";
    let row = Row::new(Heading::Cpus, "frequency governor", WANTED);
    let mut cpus_by_governor: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for &cpu in &machine.facts.allowed {
        let path = format!("sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_governor");
        let Some(governor) = machine.read(&path) else { continue };
        if !is_name(&governor) {
            return row.nonsense(&governor);
        }
        cpus_by_governor.entry(governor).or_default().push(cpu);
    }
    if cpus_by_governor.is_empty() {
        return row.absent("no cpufreq");
    }
    let found = cpus_by_governor.iter();
    let found = found.map(|(governor, cpus)| format!("{governor} on {}", cpus::list(cpus)));
    let found = found.collect::<Vec<String>>().join(", ");
    if cpus_by_governor.keys().all(|governor| governor == WANTED) {
        return row.fine(found);
    }
    let files = "/sys/devices/system/cpu/cpu*/cpufreq/scaling_governor";
    row.warn(found, Some(format!("echo {WANTED} | sudo tee {files}")))
}

/// An idle state: how long it takes to leave, in microseconds, and its name.
type IdleState = (u64, String);

/// The deepest enabled idle state of a CPU, if it has any; an error with the content of a file that
/// makes no sense.
fn deepest_state(machine: Machine<'_>, cpu: usize) -> Result<Option<IdleState>, String> {
    let directory = format!("sys/devices/system/cpu/cpu{cpu}/cpuidle");
    let mut deepest = None;
    for state in machine.names(&directory, "state") {
        let read = |file: &str| machine.read(&format!("{directory}/{state}/{file}"));
        let number = |file: &str| {
            let text = read(file).unwrap_or_default();
            text.parse::<u64>().map_err(|_| format!("{state}/{file}: {text}"))
        };
        if number("disable")? != 0 {
            continue;
        }
        let name = read("name").filter(|name| !name.is_empty()).unwrap_or(state.clone());
        deepest = deepest.max(Some((number("latency")?, name)));
    }
    Ok(deepest)
}

fn idle_state(machine: Machine<'_>) -> Check {
    let wanted = format!("less than {WAKING_US_MAX} µs to leave it");
    let row = Row::new(Heading::Cpus, "deepest idle state", wanted);
    let mut deepest = None;
    for &cpu in &machine.facts.allowed {
        match deepest_state(machine, cpu) {
            Ok(state) => deepest = deepest.max(state),
            Err(text) => return row.nonsense(&text),
        }
    }
    let Some((latency_us, name)) = deepest else {
        return row.absent("no cpuidle");
    };
    let found = format!("{name}, {latency_us} µs to leave it");
    if latency_us < WAKING_US_MAX {
        return row.fine(found);
    }
    let command = format!("sudo cpupower idle-set --disable-by-latency {WAKING_US_MAX}");
    row.warn(found, Some(command))
}

/// How long it takes to wake a sleeping thread, and how long a worker may spin to avoid that.
fn wake_up(machine: Machine<'_>) -> Check {
    let wanted = format!("at most {} µs", WAKE_UP_MAX.as_micros());
    let row = Row::new(Heading::Cpus, "wake-up", wanted);
    let Some(wake_up) = machine.facts.wake_up else {
        return row.unknown("could not be measured");
    };
    let spin_max = Pace::new(None, Some(wake_up)).spin_max;
    let (wake_up_us, spin_us) = (wake_up.as_micros(), spin_max.as_micros());
    let found = format!("{wake_up_us} µs; adaptive spins for up to {spin_us} µs");
    if wake_up <= WAKE_UP_MAX {
        row.fine(found)
    } else {
        row.warn(found, Some("ringecho --wait spin".to_owned()))
    }
}

fn siblings(machine: Machine<'_>) -> Check {
    let row = Row::new(Heading::Cpus, "SMT siblings", "a core for each worker");
    let mut cores: Vec<Vec<usize>> = Vec::new();
    for &cpu in &machine.facts.allowed {
        let path = format!("sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
        let Some(text) = machine.read(&path) else {
            return row.unknown(format!("no topology of CPU {cpu}"));
        };
        let Some(siblings) = parse(&text) else {
            return row.nonsense(&text);
        };
        let core = machine.allowed(&siblings);
        if !cores.contains(&core) {
            cores.push(core);
        }
    }
    let shared: Vec<String> =
        cores.iter().filter(|core| core.len() > 1).map(|core| cpus::list(core)).collect();
    match shared.len() {
        0 if cores.is_empty() => row.unknown("no CPUs"),
        0 => row.fine("none share a core"),
        count => {
            let named = shared[..count.min(CORES_MAX)].join(" and ");
            let more = count.saturating_sub(CORES_MAX);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            let firsts: Vec<usize> =
                cores.iter().filter_map(|core| core.first().copied()).collect();
            let command = format!("ringecho --cpus {}", cpus::list(&firsts));
            row.warn(format!("{named}{more} share a core"), Some(command))
        }
    }
}

fn nodes(machine: Machine<'_>) -> Check {
    let row = Row::new(Heading::Cpus, "NUMA nodes", "one");
    let mut nodes: Vec<(String, Vec<usize>)> = Vec::new();
    for name in machine.names("sys/devices/system/node", "node") {
        let text = machine.read(&format!("sys/devices/system/node/{name}/cpulist"));
        let text = text.unwrap_or_default();
        // A node may be memory alone.
        let cpus = if text.is_empty() { Some(Vec::new()) } else { parse(&text) };
        let Some(cpus) = cpus else {
            return row.nonsense(&text);
        };
        let cpus = machine.allowed(&cpus);
        if !cpus.is_empty() {
            nodes.push((name, cpus));
        }
    }
    let found = nodes.iter().map(|(name, cpus)| format!("{name} with {}", cpus::list(cpus)));
    let found = found.collect::<Vec<String>>().join(", ");
    match nodes.as_slice() {
        [] => row.absent("no NUMA"),
        [_] => row.fine(found),
        [(_, cpus), ..] => row.warn(found, Some(format!("ringecho --cpus {}", cpus::list(cpus)))),
    }
}

fn virtual_machine(machine: Machine<'_>) -> Check {
    let row = Row::new(Heading::Cpus, "virtual machine", "no");
    match Virtualization::of(machine.root) {
        Virtualization::Virtual(names) if names.is_empty() => row.warn("yes", None),
        Virtualization::Virtual(names) => row.warn(format!("yes: {names}"), None),
        Virtualization::Physical => row.fine("no"),
        Virtualization::Unknown => row.unknown("neither CPU nor firmware say"),
    }
}

fn clock_source(machine: Machine<'_>) -> Check {
    const DIRECTORY: &str = "sys/devices/system/clocksource/clocksource0";
    // Those that are read without a system call, on x86 and ARM.
    const WANTED: [&str; 2] = ["tsc", "arch_sys_counter"];
    let available = machine.read(&format!("{DIRECTORY}/available_clocksource")).unwrap_or_default();
    let available = WANTED.iter().find(|source| available.split(' ').any(|name| name == **source));
    let row = Row::new(Heading::Cpus, "clock source", available.copied().unwrap_or(WANTED[0]));
    let Some(source) = machine.read(&format!("{DIRECTORY}/current_clocksource")) else {
        return row.unknown("no /sys");
    };
    if WANTED.contains(&source.as_str()) {
        return row.fine(source);
    }
    if !is_name(&source) {
        return row.nonsense(&source);
    }
    let command = available
        .map(|wanted| format!("echo {wanted} | sudo tee /{DIRECTORY}/current_clocksource"));
    row.warn(source, command)
}

#[cfg(test)]
mod tests {
    use crate::doctor::Facts;
    use crate::doctor::fixture::{check, check_with, expect, expect_each, facts};
    use crate::doctor::report::Verdict::{Absent, Fine, Unknown, Warn};

    #[test]
    fn wake_ups() {
        let with = |wake_up_us: Option<u64>| {
            let wake_up = wake_up_us.map(std::time::Duration::from_micros);
            check_with(&Facts { wake_up, ..facts() }, "wake-up", &[])
        };
        expect(&with(Some(3)), Fine, "3 µs; adaptive spins for up to 62 µs", None);
        expect(&with(Some(50)), Fine, "50 µs; adaptive spins for up to 250 µs", None);
        let command = Some("ringecho --wait spin");
        expect(&with(Some(150)), Warn, "150 µs; adaptive spins for up to 500 µs", command);
        expect(&with(None), Unknown, "could not be measured", None);
    }

    #[test]
    fn the_cpus_allowed() {
        let name = "CPUs allowed";
        let path = "sys/devices/system/cpu/online";
        expect_each(
            name,
            path,
            &[
                ("0-3\n", Fine, "0-3", None),
                ("0-7\n", Fine, "0-3 of 0-7", None),
                ("nonsense", Fine, "0-3", None),
            ],
        );
        let one = Facts { allowed: vec![2], ..facts() };
        let command = Some("taskset -c 0-3 ringecho");
        expect(&check_with(&one, name, &[(path, "0-3")]), Warn, "2 of 0-3", command);
        expect(&check_with(&one, name, &[(path, "2")]), Warn, "2", None);
        expect(&check_with(&one, name, &[]), Warn, "2", None);
        let none = Facts { allowed: Vec::new(), ..facts() };
        expect(&check_with(&none, name, &[]), Unknown, "cannot be listed", None);
    }

    #[test]
    fn cpus_set_apart() {
        for (name, path, command) in [
            (
                "CPUs isolated",
                "sys/devices/system/cpu/isolated",
                "boot with isolcpus=domain,managed_irq,1-3",
            ),
            ("CPUs tickless", "sys/devices/system/cpu/nohz_full", "boot with nohz_full=1-3"),
        ] {
            let taskset = Some("taskset -c 4-7 ringecho");
            expect_each(
                name,
                path,
                &[
                    ("2-3\n", Fine, "2-3", None),
                    ("3-5\n", Fine, "3-5", None),
                    ("4-7\n", Warn, "4-7, none of them allowed", taskset),
                    ("\n", Warn, "none", Some(command)),
                    ("(null)\n", Warn, "none", Some(command)),
                    ("some", Unknown, "some", None),
                ],
            );
            expect(&check(name, &[]), Absent, "not built", None);
            let one = Facts { allowed: vec![0], ..facts() };
            expect(&check_with(&one, name, &[(path, "")]), Warn, "none", None);
        }
    }

    #[test]
    fn frequency_governors() {
        let name = "frequency governor";
        let path = |cpu| format!("sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_governor");
        let with = |governors: [&str; 5]| {
            let paths: Vec<String> = (0..5).map(path).collect();
            let files: Vec<(&str, &str)> =
                paths.iter().map(String::as_str).zip(governors).collect();
            check(name, &files)
        };
        // The fifth CPU is not allowed.
        let fast = "performance\n";
        expect(&with([fast, fast, fast, fast, "x y"]), Fine, "performance on 0-3", None);
        let command = Some(
            "echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor",
        );
        let mixed = with([fast, "powersave", "powersave", fast, fast]);
        expect(&mixed, Warn, "performance on 0,3, powersave on 1-2", command);
        expect(&with([fast, fast, "two words", fast, fast]), Unknown, "two words", None);
        expect(&with([fast, "", fast, fast, fast]), Unknown, "\"\"", None);
        expect(&check(name, &[]), Absent, "no cpufreq", None);
    }

    /// The files of an idle state: name, latency, disable.
    fn state<'a>(
        paths: &'a [String; 3],
        [name, latency, disable]: [&'a str; 3],
    ) -> [(&'a str, &'a str); 3] {
        [(&paths[0], name), (&paths[1], latency), (&paths[2], disable)]
    }

    #[test]
    fn idle_states() {
        let name = "deepest idle state";
        let paths = |cpu: u32, number: u32| {
            ["name", "latency", "disable"]
                .map(|file| format!("sys/devices/system/cpu/cpu{cpu}/cpuidle/state{number}/{file}"))
        };
        let (first, second, other) = (paths(0, 0), paths(0, 1), paths(3, 2));
        let with = |deep: [&str; 3], others: [&str; 3]| {
            let files = [
                state(&first, ["POLL\n", "0\n", "0\n"]),
                state(&second, deep),
                state(&other, others),
            ];
            check(name, &files.concat())
        };
        let shallow = ["C1", "2", "0"];
        let command = Some("sudo cpupower idle-set --disable-by-latency 10");
        expect(&with(shallow, shallow), Fine, "C1, 2 µs", None);
        expect(&with(["C1E", "9", "0"], shallow), Fine, "C1E, 9 µs", None);
        expect(&with(["C1E", "10", "0"], shallow), Warn, "C1E, 10 µs", command);
        expect(&with(shallow, ["C6", "133", "0"]), Warn, "C6, 133 µs", command);
        expect(&with(["C6", "133", "1"], shallow), Fine, "C1, 2 µs", None);
        expect(&with(["", "133", "0"], shallow), Warn, "state1, 133 µs", command);
        for nonsense in [["C6", "long", "0"], ["C6", "", "0"], ["C6", "133", "perhaps"]] {
            expect(&with(nonsense, shallow), Unknown, "state1/", None);
        }
        expect(&check(name, &[]), Absent, "no cpuidle", None);
    }

    #[test]
    fn siblings_that_share_a_core() {
        let name = "SMT siblings";
        let path = |cpu| format!("sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
        let with = |allowed: usize, lists: &[&str]| {
            let paths: Vec<String> = (0..lists.len()).map(path).collect();
            let files: Vec<(&str, &str)> =
                paths.iter().map(String::as_str).zip(lists.iter().copied()).collect();
            check_with(&Facts { allowed: (0..allowed).collect(), ..facts() }, name, &files)
        };
        expect(&with(4, &["0", "1", "2", "3\n"]), Fine, "none share a core", None);
        // Siblings that the process may not use.
        expect(&with(4, &["0,4", "1,5", "2,6", "3,7"]), Fine, "none share a core", None);
        let row = with(4, &["0-1", "0-1", "2-3", "2-3"]);
        expect(&row, Warn, "0-1 and 2-3 share a core", Some("ringecho --cpus 0,2"));
        let row = with(4, &["0,2", "1", "0,2", "3"]);
        expect(&row, Warn, "0,2 share a core", Some("ringecho --cpus 0-1,3"));
        let pairs = ["0-1", "0-1", "2-3", "2-3", "4-5", "4-5", "6-7", "6-7", "8-9", "8-9"];
        let row = with(10, &pairs);
        let command = Some("ringecho --cpus 0,2,4,6,8");
        expect(&row, Warn, "6-7 and 1 more share a core", command);
        expect(&with(4, &["0", "1", "2"]), Unknown, "CPU 3", None);
        expect(&with(4, &["0", "1", "2", "none"]), Unknown, "none", None);
        expect(&with(0, &[]), Unknown, "no CPUs", None);
    }

    #[test]
    fn numa_nodes() {
        let name = "NUMA nodes";
        let with = |lists: [&str; 3]| {
            let paths = [0, 1, 2].map(|node| format!("sys/devices/system/node/node{node}/cpulist"));
            let files: Vec<(&str, &str)> = paths.iter().map(String::as_str).zip(lists).collect();
            check(name, &files)
        };
        expect(&with(["0-3\n", "4-7\n", "\n"]), Fine, "node0 with 0-3", None);
        let row = with(["0-1,8", "2-3", ""]);
        let command = Some("ringecho --cpus 0-1");
        expect(&row, Warn, "node0 with 0-1, node1 with 2-3", command);
        expect(&with(["0-1", "two", "2"]), Unknown, "two", None);
        expect(&with(["4", "5", "6"]), Absent, "no NUMA", None);
        expect(&check(name, &[("sys/devices/system/node/possible", "0")]), Absent, "no NUMA", None);
    }

    #[test]
    fn virtual_machines() {
        let name = "virtual machine";
        let cpuinfo = "proc/cpuinfo";
        let vendor = "sys/class/dmi/id/sys_vendor";
        let product = "sys/class/dmi/id/product_name";
        let bare = (cpuinfo, "processor\t: 0\nflags\t\t: fpu sse2 tsc\n");
        let flagged = (cpuinfo, "processor\t: 0\nflags\t\t: fpu hypervisor tsc\n");
        let arm = (cpuinfo, "processor\t: 0\nFeatures\t: fp asimd\n");
        let dell = [(vendor, "Dell Inc.\n"), (product, "PowerEdge\n")];
        expect(&check(name, &[bare]), Fine, "no", None);
        expect(&check(name, &[bare, dell[0], dell[1]]), Fine, "no", None);
        expect(&check(name, &[flagged]), Warn, "yes", None);
        let row = check(name, &[flagged, (vendor, "QEMU\n"), (product, "Standard PC\n")]);
        expect(&row, Warn, "yes: QEMU Standard PC", None);
        let row = check(name, &[bare, ("sys/hypervisor/type", "xen\n")]);
        expect(&row, Warn, "yes: xen", None);
        // Only x86 has the flag, so elsewhere the firmware is believed.
        expect(&check(name, &[arm, dell[0], dell[1]]), Fine, "no", None);
        let amazon = (vendor, "Amazon EC2\n");
        let row = check(name, &[arm, amazon, (product, "m7g.large\n")]);
        expect(&row, Warn, "yes: Amazon EC2 m7g.large", None);
        expect(&check(name, &[arm, amazon, (product, "m7g.metal\n")]), Fine, "no", None);
        expect(&check(name, &[arm]), Unknown, "neither", None);
        expect(&check(name, &[(cpuinfo, "nonsense")]), Unknown, "neither", None);
        expect(&check(name, &[]), Unknown, "neither", None);
    }

    #[test]
    fn clock_sources() {
        let name = "clock source";
        let current = "sys/devices/system/clocksource/clocksource0/current_clocksource";
        let available = "sys/devices/system/clocksource/clocksource0/available_clocksource";
        expect_each(
            name,
            current,
            &[
                ("tsc\n", Fine, "tsc", None),
                ("arch_sys_counter\n", Fine, "arch_sys_counter", None),
                ("hpet\n", Warn, "hpet", None),
                ("", Unknown, "\"\"", None),
                ("a clock", Unknown, "a clock", None),
            ],
        );
        let command = "echo tsc | sudo tee \
                       /sys/devices/system/clocksource/clocksource0/current_clocksource";
        let files = [(current, "kvm-clock\n"), (available, "kvm-clock tsc acpi_pm \n")];
        expect(&check(name, &files), Warn, "kvm-clock", Some(command));
        assert_eq!(check(name, &[(available, "arch_sys_counter")]).wanted, "arch_sys_counter");
        expect(&check(name, &[]), Unknown, "no /sys", None);
    }
}
