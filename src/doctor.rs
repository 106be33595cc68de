//! The doctor: what matters for latency on this machine, and the commands that change it.
//!
//! A [`Report`] is a function of a tree of files, which is `/` but for tests, and of [`Facts`],
//! which do not stand in files. It changes nothing, and a file that is missing or makes no sense is
//! a verdict, never an error. This module does not know how a report is shown.

pub mod report;

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs;
use std::path::Path;

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit};

use crate::engine::BufferConfig;
use crate::engine::pump::REFUSED_MAX;
use crate::engine::uring::{Ability, Purpose};
use crate::linux;
use crate::memory::huge_pages;
use crate::offload;
use crate::offload::program::{OffloadError, Program};
use crate::server::{Config, allowed_cpus, cpus_in, list_of};
use report::{Check, Heading, Report, Verdict};

/// The oldest version of Linux that the server runs on.
const LINUX_MIN: (u32, u32) = (6, 1);
/// A processor that takes this long to wake, in microseconds, adds nearly half of what an echo
/// between threads that do not sleep takes in all (`docs/benchmarking.md`).
const WAKING_US_MAX: u64 = 10;
/// What locked memory is counted in, in octets, where pages are not larger.
const PAGE: usize = 4096;
/// Descriptors of a worker beside its connections: ring, listener, schedstat, and those that
/// it refuses.
const DESCRIPTORS_OF_WORKER: usize = 3 + REFUSED_MAX;
/// Descriptors of the process beside its workers': standard streams, signals, the request to stop.
const DESCRIPTORS_OF_PROCESS: usize = 16;
/// `CAP_IPC_LOCK` in a mask of capabilities (capabilities(7)).
const CAPABILITY_IPC_LOCK: u64 = 1 << 14;
/// Characters of a file's content that are shown when it makes no sense.
const NONSENSE_MAX: usize = 40;
/// Cores that are named when their siblings are shown.
const CORES_MAX: usize = 4;

/// A limit of the process; nothing where there is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// The limit that holds.
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

/// What an examination needs to know beside files.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The pinned memory of each worker.
    pub buffers: BufferConfig,
    /// Connections open at a time, over all workers.
    pub connections_max: usize,
    /// The processors that the process may use, with a worker on each.
    pub allowed: Vec<usize>,
    /// What came of using each ability of io_uring.
    pub abilities: Vec<(Ability, Result<(), Errno>)>,
    /// What came of loading the program that echoes within the kernel.
    pub offload: Result<(), OffloadError>,
    /// Octets of memory that may be locked.
    pub locked_octets: Limit,
    /// Descriptors.
    pub descriptors: Limit,
}

impl Facts {
    /// Those of this process, for a server that is configured like this.
    pub fn gather(config: &Config) -> Facts {
        let probe = |ability: Ability| {
            let error = |error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
            (ability, ability.probe().map_err(error))
        };
        Facts {
            buffers: config.buffers,
            connections_max: config.connections_max,
            allowed: allowed_cpus().unwrap_or_default(),
            abilities: Ability::ALL.map(probe).to_vec(),
            offload: Program::load().map(drop),
            locked_octets: Limit::of(Resource::Memlock),
            descriptors: Limit::of(Resource::Nofile),
        }
    }
}

/// Looks at everything. `root` is where `/proc` and `/sys` stand.
pub fn examine(root: &Path, facts: &Facts) -> Report {
    let machine = Machine { root, facts };
    let mut checks = vec![linux(machine)];
    checks.extend(facts.abilities.iter().map(|&(ability, used)| io_uring(machine, ability, used)));
    checks.extend([
        io_uring_disabled(machine),
        seccomp(machine),
        offload(machine),
        locked_memory(machine),
        descriptors(machine),
        allowed(machine),
        set_apart(machine, Apart::Isolated),
        set_apart(machine, Apart::Tickless),
        governor(machine),
        idle_state(machine),
        siblings(machine),
        nodes(machine),
        virtual_machine(machine),
        clock_source(machine),
        congestion_control(machine),
        busy_polling(machine, "net.core.busy_poll", "proc/sys/net/core/busy_poll"),
        busy_polling(machine, "net.core.busy_read", "proc/sys/net/core/busy_read"),
        free_huge_pages(machine),
        transparent_huge_pages(machine),
    ]);
    Report { checks }
}

/// A check that has no verdict yet.
struct Row {
    heading: Heading,
    name: &'static str,
    wanted: String,
}

impl Row {
    fn new(heading: Heading, name: &'static str, wanted: impl Display) -> Row {
        Row { heading, name, wanted: wanted.to_string() }
    }

    fn check(self, verdict: Verdict, found: impl Display, command: Option<String>) -> Check {
        let Row { heading, name, wanted } = self;
        Check { heading, name, found: found.to_string(), wanted, verdict, command }
    }

    fn fine(self, found: impl Display) -> Check {
        self.check(Verdict::Fine, found, None)
    }

    fn could_be_better(self, found: impl Display, command: Option<String>) -> Check {
        self.check(Verdict::CouldBeBetter, found, command)
    }

    fn unknown(self, found: impl Display) -> Check {
        self.check(Verdict::Unknown, found, None)
    }

    /// What was found makes no sense.
    fn nonsense(self, text: &str) -> Check {
        let shown: String = text.chars().take(NONSENSE_MAX).collect();
        self.unknown(format!("{shown:?}"))
    }

    fn not_here(self, found: impl Display) -> Check {
        self.check(Verdict::NotHere, found, None)
    }
}

/// What is examined.
#[derive(Clone, Copy)]
struct Machine<'a> {
    root: &'a Path,
    facts: &'a Facts,
}

impl Machine<'_> {
    /// The content of a file, without white space around it; nothing if it cannot be read.
    fn read(self, path: &str) -> Option<String> {
        let octets = fs::read(self.root.join(path)).ok()?;
        Some(String::from_utf8_lossy(&octets).trim().to_owned())
    }

    /// The names in a directory that begin with `prefix`, in order; none if it cannot be read.
    fn names(self, path: &str, prefix: &str) -> Vec<String> {
        let entries = fs::read_dir(self.root.join(path)).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let mut names: Vec<String> = names.filter(|name| name.starts_with(prefix)).collect();
        names.sort_unstable();
        names
    }

    fn allowed(self, cpus: &[usize]) -> Vec<usize> {
        cpus.iter().copied().filter(|cpu| self.facts.allowed.contains(cpu)).collect()
    }

    fn workers(self) -> usize {
        self.facts.allowed.len().max(1)
    }

    /// Whether anything forbids io_uring to this process: the kernel answered otherwise than that it
    /// does not know something.
    fn is_io_uring_refused(self) -> bool {
        let abilities = &self.facts.abilities;
        !abilities.is_empty() && abilities.iter().all(|&(_, used)| is_refusal(used))
    }

    fn seccomp_mode(self) -> Option<u32> {
        field(&self.read("proc/self/status")?, "Seccomp")?.parse().ok()
    }

    /// What lets this process use io_uring, where that is known.
    fn permission(self) -> Option<String> {
        let disabled = self.read("proc/sys/kernel/io_uring_disabled");
        if disabled.is_some_and(|disabled| disabled != "0") {
            return Some(sysctl("kernel.io_uring_disabled", 0));
        }
        let containers = [("docker", ".dockerenv"), ("podman", "run/.containerenv")];
        let (program, _) = containers.iter().find(|(_, file)| self.root.join(file).exists())?;
        Some(format!("{program} run --security-opt seccomp=unconfined"))
    }
}

fn is_refusal(used: Result<(), Errno>) -> bool {
    matches!(used, Err(Errno::PERM | Errno::ACCESS | Errno::NOSYS))
}

/// The value of a line like `Name:  value`, as `/proc` has them.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    lines.into_iter().find(|(key, _)| key.trim() == name).map(|(_, value)| value.trim())
}

/// The choice in brackets, as `/sys` shows one: `always [madvise] never`.
fn chosen(text: &str) -> Option<&str> {
    Some(text.split_once('[')?.1.split_once(']')?.0)
}

/// Whether it is a name as the kernel gives them.
fn is_name(text: &str) -> bool {
    let is_part = |octet: u8| octet.is_ascii_alphanumeric() || matches!(octet, b'_' | b'-');
    !text.is_empty() && text.bytes().all(is_part)
}

fn sysctl(name: &str, value: impl Display) -> String {
    format!("sudo sysctl -w {name}={value}")
}

fn linux(machine: Machine<'_>) -> Check {
    let (major, minor) = LINUX_MIN;
    let row = Row::new(Heading::Kernel, "kernel version", format!("{major}.{minor} or newer"));
    let Some(text) = machine.read("proc/sys/kernel/osrelease") else {
        return row.unknown("no /proc");
    };
    match linux::version(&text) {
        Some(version) if version >= LINUX_MIN => row.fine(text),
        Some(_) => row.could_be_better(text, None),
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
        Err(Errno::INVAL) => return row.could_be_better("this kernel lacks it", None),
        Err(errno) => errno,
    };
    let error = std::io::Error::from(errno);
    if !is_refusal(used) {
        return row.unknown(format!("cannot be tried: {error}"));
    }
    let filter = if machine.seccomp_mode() == Some(2) { " under a seccomp filter" } else { "" };
    row.could_be_better(format!("refused{filter}: {error}"), machine.permission())
}

fn offload(machine: Machine<'_>) -> Check {
    let (major, minor) = offload::LINUX_MIN;
    let wanted = format!("Linux {major}.{minor}, for --offload");
    let row = Row::new(Heading::Offload, "BPF program", wanted);
    let version = machine.read("proc/sys/kernel/osrelease").and_then(|text| linux::version(&text));
    match &machine.facts.offload {
        Ok(()) if version.is_some_and(|version| version < offload::LINUX_MIN) => {
            row.could_be_better("it loads, but this kernel may lose or repeat octets", None)
        }
        Ok(()) => row.fine("it loads"),
        Err(OffloadError::Forbidden) => row.could_be_better(
            "this process may not load it",
            Some("sudo setcap cap_bpf,cap_net_admin,cap_perfmon=ep $(command -v ringecho)".into()),
        ),
        Err(OffloadError::Typeless) => {
            row.could_be_better("the kernel does not describe its types", None)
        }
        Err(error) => row.could_be_better(error, None),
    }
}

fn io_uring_disabled(machine: Machine<'_>) -> Check {
    const NAME: &str = "kernel.io_uring_disabled";
    let row = Row::new(Heading::IoUring, NAME, "0");
    let Some(text) = machine.read("proc/sys/kernel/io_uring_disabled") else {
        return row.not_here("no such sysctl, which came with Linux 6.6");
    };
    let command = Some(sysctl(NAME, 0));
    match text.as_str() {
        "0" => row.fine(text),
        "1" => {
            let group = machine.read("proc/sys/kernel/io_uring_group");
            let group = group.filter(|group| group.parse::<u32>().is_ok());
            let group = group.map_or("no group".into(), |group| format!("group {group}"));
            if machine.is_io_uring_refused() {
                row.could_be_better(format!("1, for root and {group}, not this process"), command)
            } else {
                row.fine(format!("1, for root and {group}, this process among them"))
            }
        }
        "2" => row.could_be_better("2, for nobody", command),
        _ => row.nonsense(&text),
    }
}

fn seccomp(machine: Machine<'_>) -> Check {
    let row = Row::new(Heading::IoUring, "seccomp", "nothing that refuses io_uring");
    let Some(mode) = machine.seccomp_mode() else {
        return row.unknown("no mode in /proc/self/status");
    };
    match (mode, machine.is_io_uring_refused()) {
        (0, _) => row.fine("0, no filter"),
        (2, false) => row.fine("2, a filter that lets io_uring_setup through"),
        (2, true) => {
            let found = "2, a filter, and io_uring_setup is refused";
            row.could_be_better(found, machine.permission())
        }
        // The strict mode leaves read, write and exit: nothing in it could ask.
        (mode, _) => row.nonsense(&mode.to_string()),
    }
}

/// Whether the limit on locked memory does not hold: for `CAP_IPC_LOCK`, if it is not one of a
/// container's own users.
fn may_lock_everything(machine: Machine<'_>) -> bool {
    let status = machine.read("proc/self/status").unwrap_or_default();
    let capabilities = field(&status, "CapEff").and_then(|mask| u64::from_str_radix(mask, 16).ok());
    let users = machine.read("proc/self/uid_map").unwrap_or_default();
    // All users, each mapped to itself, is the map of the machine's own (user_namespaces(7)).
    let is_machine = users.split_whitespace().eq(["0", "0", "4294967295"]);
    is_machine && capabilities.is_some_and(|mask| mask & CAPABILITY_IPC_LOCK != 0)
}

fn locked_memory(machine: Machine<'_>) -> Check {
    let buffers = machine.facts.buffers;
    let of_worker = [buffers.memory_octets(), buffers.entries_octets()];
    let of_worker: usize = of_worker.iter().map(|octets| octets.next_multiple_of(PAGE)).sum();
    let needed = (of_worker * machine.workers()) as u64;
    let kibibytes = |octets: u64| octets.div_ceil(1024);
    let wanted = format!("{} KiB, {} KiB a worker", kibibytes(needed), of_worker / 1024);
    let row = Row::new(Heading::Limits, "locked memory", wanted);
    let Limit { soft, hard } = machine.facts.locked_octets;
    let Some(soft) = soft else {
        return row.fine("unlimited");
    };
    // Less than a kibibyte short is short.
    let found = format!("{} KiB", soft / 1024);
    if soft >= needed {
        row.fine(found)
    } else if may_lock_everything(machine) {
        row.fine(format!("{found}, which CAP_IPC_LOCK lifts"))
    } else if hard.is_none_or(|hard| hard >= needed) {
        row.could_be_better(found, Some(format!("ulimit -S -l {}", kibibytes(needed))))
    } else {
        let command = format!("sudo prlimit --pid $$ --memlock={needed}");
        row.could_be_better(found, Some(command))
    }
}

fn descriptors(machine: Machine<'_>) -> Check {
    let beside = DESCRIPTORS_OF_PROCESS + machine.workers() * DESCRIPTORS_OF_WORKER;
    let connections_max = machine.facts.connections_max;
    let needed = (connections_max + beside) as u64;
    let wanted = format!("hard {needed}, for {connections_max} connections");
    let row = Row::new(Heading::Limits, "descriptors", wanted);
    let shown = |limit: Option<u64>| limit.map_or("unlimited".into(), |limit| limit.to_string());
    let Limit { soft, hard } = machine.facts.descriptors;
    let found = format!("soft {}, hard {}", shown(soft), shown(hard));
    // The server raises the soft limit itself.
    if hard.is_none_or(|hard| hard >= needed) {
        return row.fine(found);
    }
    row.could_be_better(found, Some(format!("sudo prlimit --pid $$ --nofile={needed}")))
}

fn allowed(machine: Machine<'_>) -> Check {
    let wanted = "2 or more, one for all else";
    let row = Row::new(Heading::Processors, "processors allowed", wanted);
    let allowed = &machine.facts.allowed;
    let online = machine.read("sys/devices/system/cpu/online");
    let online = online.and_then(|list| cpus_in(&list)).unwrap_or_default();
    let mut found = list_of(allowed);
    if online.len() > allowed.len() {
        found = format!("{found} of {}", list_of(&online));
    }
    match allowed.len() {
        0 => row.unknown("cannot be listed"),
        1 => {
            let command = format!("taskset -c {} ringecho", list_of(&online));
            row.could_be_better(found, Some(command).filter(|_| online.len() > 1))
        }
        _ => row.fine(found),
    }
}

/// How the kernel keeps other work from a processor.
#[derive(Clone, Copy)]
enum Apart {
    Isolated,
    Tickless,
}

fn set_apart(machine: Machine<'_>, apart: Apart) -> Check {
    let (name, path, parameter) = match apart {
        Apart::Isolated => (
            "processors isolated",
            "sys/devices/system/cpu/isolated",
            "isolcpus=domain,managed_irq,",
        ),
        Apart::Tickless => {
            ("processors tickless", "sys/devices/system/cpu/nohz_full", "nohz_full=")
        }
    };
    let row = Row::new(Heading::Processors, name, "those of --wait spin");
    let Some(text) = machine.read(path) else {
        return row.not_here("not built into this kernel");
    };
    // The kernel prints the latter for a list that was never made.
    if matches!(text.as_str(), "" | "(null)") {
        // The first processor of a machine is the one that cannot be set apart.
        let others = machine.facts.allowed.get(1..).filter(|others| !others.is_empty());
        let command = others.map(|others| format!("boot with {parameter}{}", list_of(others)));
        return row.could_be_better("none", command);
    }
    let Some(cpus) = cpus_in(&text) else {
        return row.nonsense(&text);
    };
    if machine.allowed(&cpus).is_empty() {
        let command = format!("taskset -c {text} ringecho");
        return row.could_be_better(format!("{text}, none of them allowed"), Some(command));
    }
    row.fine(text)
}

fn governor(machine: Machine<'_>) -> Check {
    const WANTED: &str = "performance";
    let row = Row::new(Heading::Processors, "frequency governor", WANTED);
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
        return row.not_here("no cpufreq");
    }
    let found = cpus_by_governor.iter();
    let found = found.map(|(governor, cpus)| format!("{governor} on {}", list_of(cpus)));
    let found = found.collect::<Vec<String>>().join(", ");
    if cpus_by_governor.keys().all(|governor| governor == WANTED) {
        return row.fine(found);
    }
    let files = "/sys/devices/system/cpu/cpu*/cpufreq/scaling_governor";
    row.could_be_better(found, Some(format!("echo {WANTED} | sudo tee {files}")))
}

/// An idle state: how long it takes to leave, in microseconds, and its name.
type IdleState = (u64, String);

/// The deepest state of a processor that is not disabled, if it has any; an error for nonsense, with
/// the content.
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
    let row = Row::new(Heading::Processors, "deepest idle state", wanted);
    let mut deepest = None;
    for &cpu in &machine.facts.allowed {
        match deepest_state(machine, cpu) {
            Ok(state) => deepest = deepest.max(state),
            Err(text) => return row.nonsense(&text),
        }
    }
    let Some((latency_us, name)) = deepest else {
        return row.not_here("no cpuidle");
    };
    let found = format!("{name}, {latency_us} µs to leave it");
    if latency_us < WAKING_US_MAX {
        return row.fine(found);
    }
    let command = format!("sudo cpupower idle-set --disable-by-latency {WAKING_US_MAX}");
    row.could_be_better(found, Some(command))
}

fn siblings(machine: Machine<'_>) -> Check {
    let row = Row::new(Heading::Processors, "SMT siblings", "a core for each worker");
    let mut cores: Vec<Vec<usize>> = Vec::new();
    for &cpu in &machine.facts.allowed {
        let path = format!("sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
        let Some(text) = machine.read(&path) else {
            return row.unknown(format!("no topology of processor {cpu}"));
        };
        let Some(siblings) = cpus_in(&text) else {
            return row.nonsense(&text);
        };
        let core = machine.allowed(&siblings);
        if !cores.contains(&core) {
            cores.push(core);
        }
    }
    let shared: Vec<String> =
        cores.iter().filter(|core| core.len() > 1).map(|core| list_of(core)).collect();
    match shared.len() {
        0 if cores.is_empty() => row.unknown("no processors"),
        0 => row.fine("none share a core"),
        count => {
            let named = shared[..count.min(CORES_MAX)].join(" and ");
            let more = count.saturating_sub(CORES_MAX);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            let firsts: Vec<usize> =
                cores.iter().filter_map(|core| core.first().copied()).collect();
            let command = format!("ringecho --cpus {}", list_of(&firsts));
            row.could_be_better(format!("{named}{more} share a core"), Some(command))
        }
    }
}

fn nodes(machine: Machine<'_>) -> Check {
    let row = Row::new(Heading::Processors, "NUMA nodes", "one");
    let mut nodes: Vec<(String, Vec<usize>)> = Vec::new();
    for name in machine.names("sys/devices/system/node", "node") {
        let text = machine.read(&format!("sys/devices/system/node/{name}/cpulist"));
        let text = text.unwrap_or_default();
        // A node may be memory alone.
        let cpus = if text.is_empty() { Some(Vec::new()) } else { cpus_in(&text) };
        let Some(cpus) = cpus else {
            return row.nonsense(&text);
        };
        let cpus = machine.allowed(&cpus);
        if !cpus.is_empty() {
            nodes.push((name, cpus));
        }
    }
    let found = nodes.iter().map(|(name, cpus)| format!("{name} with {}", list_of(cpus)));
    let found = found.collect::<Vec<String>>().join(", ");
    match nodes.as_slice() {
        [] => row.not_here("no NUMA"),
        [_] => row.fine(found),
        [(_, cpus), ..] => {
            row.could_be_better(found, Some(format!("ringecho --cpus {}", list_of(cpus))))
        }
    }
}

/// Makers of virtual machines, as they name themselves in the firmware's tables.
const MAKERS: [&str; 13] = [
    "QEMU",
    "KVM",
    "Amazon EC2",
    "Google Compute Engine",
    "OpenStack",
    "VMware",
    "innotek",
    "VirtualBox",
    "Xen",
    "Bochs",
    "Parallels",
    "BHYVE",
    "Virtual Machine",
];

fn virtual_machine(machine: Machine<'_>) -> Check {
    let row = Row::new(Heading::Processors, "virtual machine", "no");
    let cpuinfo = machine.read("proc/cpuinfo").unwrap_or_default();
    let vendor = machine.read("sys/class/dmi/id/sys_vendor").unwrap_or_default();
    let product = machine.read("sys/class/dmi/id/product_name").unwrap_or_default();
    let hypervisor = machine.read("sys/hypervisor/type");
    let firmware = format!("{vendor} {product}").trim().to_owned();
    let flags = field(&cpuinfo, "flags");
    let is_flagged = flags.map(|flags| flags.split(' ').any(|flag| flag == "hypervisor"));
    let is_made = MAKERS.iter().any(|maker| firmware.contains(maker))
        // Amazon lets whole machines too.
        && !product.ends_with(".metal");
    let is_virtual = match is_flagged {
        Some(is_flagged) => is_flagged || hypervisor.is_some(),
        // Only x86 has the flag.
        None => is_made || hypervisor.is_some(),
    };
    let names = [hypervisor.unwrap_or_default(), firmware];
    let names = names.into_iter().filter(|name| !name.is_empty()).collect::<Vec<String>>();
    if is_virtual {
        let names = names.join(", ");
        let found = if names.is_empty() { "yes".into() } else { format!("yes: {names}") };
        return row.could_be_better(found, None);
    }
    if is_flagged.is_none() && names.is_empty() {
        return row.unknown("neither processor nor firmware say");
    }
    row.fine("no")
}

fn clock_source(machine: Machine<'_>) -> Check {
    const DIRECTORY: &str = "sys/devices/system/clocksource/clocksource0";
    // Those that are read without a system call, by processor.
    const WANTED: [&str; 2] = ["tsc", "arch_sys_counter"];
    let available = machine.read(&format!("{DIRECTORY}/available_clocksource")).unwrap_or_default();
    let available = WANTED.iter().find(|source| available.split(' ').any(|name| name == **source));
    let row =
        Row::new(Heading::Processors, "clock source", available.copied().unwrap_or(WANTED[0]));
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
    row.could_be_better(source, command)
}

fn congestion_control(machine: Machine<'_>) -> Check {
    const NAME: &str = "net.ipv4.tcp_congestion_control";
    let row = Row::new(Heading::Network, "congestion control", "cubic or reno, which do not pace");
    let Some(text) = machine.read("proc/sys/net/ipv4/tcp_congestion_control") else {
        return row.not_here("no TCP over IPv4");
    };
    match text.as_str() {
        "cubic" | "reno" | "dctcp" => row.fine(text),
        // BBR spaces segments by timers, which even the loopback waits for.
        name if name.starts_with("bbr") => {
            row.could_be_better(format!("{name}, which paces"), Some(sysctl(NAME, "cubic")))
        }
        name if is_name(name) => row.unknown(format!("{name}, which may pace")),
        _ => row.nonsense(&text),
    }
}

fn busy_polling(machine: Machine<'_>, name: &'static str, path: &str) -> Check {
    // The loopback has no queue that could be polled (socket(7), SO_BUSY_POLL).
    let row = Row::new(Heading::Network, name, "any; only network cards heed it");
    let Some(text) = machine.read(path) else {
        return row.not_here("not built into this kernel");
    };
    match text.parse::<u32>() {
        Ok(0) => row.fine("0, off"),
        Ok(time_us) => row.fine(format!("{time_us} µs")),
        Err(_) => row.nonsense(&text),
    }
}

fn free_huge_pages(machine: Machine<'_>) -> Check {
    let buffers = machine.facts.buffers;
    let of_worker = huge_pages(buffers.memory_octets()) + huge_pages(buffers.entries_octets());
    let needed = (of_worker * machine.workers()) as u64;
    let wanted = format!("{needed}, {of_worker} a worker");
    let row = Row::new(Heading::Memory, "huge pages free", wanted);
    let meminfo = machine.read("proc/meminfo").unwrap_or_default();
    let (Some(free), Some(total)) =
        (field(&meminfo, "HugePages_Free"), field(&meminfo, "HugePages_Total"))
    else {
        return row.not_here("none in this kernel");
    };
    let (Ok(free_pages), Ok(total_pages)) = (free.parse::<u64>(), total.parse::<u64>()) else {
        return row.nonsense(&format!("{free} of {total}"));
    };
    let found = format!("{free_pages} of {total_pages}");
    if free_pages >= needed {
        return row.fine(found);
    }
    let total = total_pages.saturating_add(needed - free_pages);
    row.could_be_better(found, Some(sysctl("vm.nr_hugepages", total)))
}

fn transparent_huge_pages(machine: Machine<'_>) -> Check {
    let row = Row::new(Heading::Memory, "transparent huge pages", "madvise or always");
    let Some(text) = machine.read("sys/kernel/mm/transparent_hugepage/enabled") else {
        return row.not_here("none in this kernel");
    };
    match chosen(&text) {
        Some(choice @ ("always" | "madvise")) => row.fine(choice),
        Some(choice @ "never") => {
            let file = "/sys/kernel/mm/transparent_hugepage/enabled";
            row.could_be_better(choice, Some(format!("echo madvise | sudo tee {file}")))
        }
        Some(_) | None => row.nonsense(&text),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

    use super::*;

    /// A directory with a few files that stands for `/`. It is gone when dropped.
    struct Tree(PathBuf);

    impl Tree {
        fn new(files: &[(&str, &str)]) -> Tree {
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
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    const UNLIMITED: Limit = Limit { soft: None, hard: None };

    fn limit(soft: u64, hard: u64) -> Limit {
        Limit { soft: Some(soft), hard: Some(hard) }
    }

    /// A process that may do everything, on four processors.
    fn facts() -> Facts {
        Facts {
            buffers: BufferConfig { count: 256, octets: 16 << 10 },
            connections_max: 1000,
            allowed: vec![0, 1, 2, 3],
            abilities: Ability::ALL.map(|ability| (ability, Ok(()))).to_vec(),
            offload: Ok(()),
            locked_octets: UNLIMITED,
            descriptors: UNLIMITED,
        }
    }

    #[test]
    fn whether_echoes_can_be_offloaded() {
        let row = |offload, release| {
            let files = [("proc/sys/kernel/osrelease", release)];
            check_with(&Facts { offload, ..facts() }, "BPF program", &files)
        };
        assert_eq!(row(Ok(()), "6.18.1").verdict, Fine);
        assert_eq!(row(Ok(()), "6.12.3").verdict, CouldBeBetter);
        let forbidden = row(Err(OffloadError::Forbidden), "6.18.1");
        assert!(forbidden.command.is_some_and(|command| command.contains("cap_bpf")));
        let refused = row(Err(OffloadError::Refused("R1 is not what it was".into())), "6.18.1");
        assert!(refused.found.contains("R1 is not"), "{}", refused.found);
    }

    /// A process to which nothing of io_uring works.
    fn without_io_uring(errno: Errno) -> Facts {
        let abilities = Ability::ALL.map(|ability| (ability, Err(errno))).to_vec();
        Facts { abilities, ..facts() }
    }

    #[track_caller]
    fn check_with(facts: &Facts, name: &str, files: &[(&str, &str)]) -> Check {
        let tree = Tree::new(files);
        let report = examine(&tree.0, facts);
        let mut found = report.checks.into_iter().filter(|check| check.name == name);
        let check = found.next().unwrap_or_else(|| panic!("no {name}"));
        assert_eq!(found.next(), None);
        assert!(!check.found.is_empty() && !check.wanted.is_empty(), "{check:?}");
        check
    }

    #[track_caller]
    fn check(name: &str, files: &[(&str, &str)]) -> Check {
        check_with(&facts(), name, files)
    }

    #[track_caller]
    fn expect(check: &Check, verdict: Verdict, found: &str, command: Option<&str>) {
        assert_eq!(check.verdict, verdict, "{check:?}");
        assert!(check.found.contains(found), "{check:?}");
        assert_eq!(check.command.as_deref(), command, "{check:?}");
    }

    /// Checks a row that depends on one file: content, verdict, what is shown, command.
    #[track_caller]
    fn expect_each(name: &str, path: &str, cases: &[(&str, Verdict, &str, Option<&str>)]) {
        for &(content, verdict, found, command) in cases {
            expect(&check(name, &[(path, content)]), verdict, found, command);
        }
    }

    use Verdict::{CouldBeBetter, Fine, NotHere, Unknown};

    const STATUS: &str = "proc/self/status";

    #[test]
    fn nothing_at_all_is_no_error() {
        let tree = Tree::new(&[]);
        let nothing = Facts { allowed: Vec::new(), abilities: Vec::new(), ..facts() };
        for (facts, allowed) in [(nothing, Unknown), (facts(), Fine)] {
            for check in examine(&tree.0, &facts).checks {
                let verdict = match check.heading {
                    Heading::Limits | Heading::Offload => Fine,
                    Heading::IoUring if check.found == "works" => Fine,
                    Heading::Processors if check.name == "processors allowed" => allowed,
                    Heading::Kernel
                    | Heading::IoUring
                    | Heading::Processors
                    | Heading::Network
                    | Heading::Memory => {
                        assert!(matches!(check.verdict, Unknown | NotHere), "{check:?}");
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
    fn the_version_of_linux() {
        expect_each(
            "kernel version",
            "proc/sys/kernel/osrelease",
            &[
                ("6.18.44-generic\n", Fine, "6.18.44-generic", None),
                ("6.1-rc3", Fine, "6.1-rc3", None),
                ("7.0.0", Fine, "7.0.0", None),
                ("6.0.19", CouldBeBetter, "6.0.19", None),
                ("5.15.0-91", CouldBeBetter, "5.15.0", None),
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
            expect(&with(Err(Errno::INVAL)), CouldBeBetter, "lacks it", None);
            expect(&with(Err(Errno::PERM)), CouldBeBetter, "refused: Operation not", None);
            expect(&with(Err(Errno::NOMEM)), Unknown, "cannot be tried: ", None);
        }
        assert!(check("IORING_SETUP_SQPOLL", &[]).wanted.contains("for --wait sqpoll"));
        assert!(check("IORING_SETUP_NO_SQARRAY", &[]).wanted.contains("optional"));
        assert_eq!(check("multishot receive", &[]).wanted, "Linux 6.0");
    }

    #[test]
    fn who_refuses_io_uring_is_said() {
        let facts = without_io_uring(Errno::PERM);
        let name = "buffer ring";
        let filtered = [(STATUS, "Seccomp:\t2\n")];
        let row = check_with(&facts, name, &filtered);
        expect(&row, CouldBeBetter, "refused under a seccomp filter: Operation not", None);
        for (file, command) in [
            (".dockerenv", "docker run --security-opt seccomp=unconfined"),
            ("run/.containerenv", "podman run --security-opt seccomp=unconfined"),
        ] {
            let row = check_with(&facts, name, &[filtered[0], (file, "")]);
            expect(&row, CouldBeBetter, "seccomp", Some(command));
        }
        let disabled = [(".dockerenv", ""), ("proc/sys/kernel/io_uring_disabled", "2")];
        let command = Some("sudo sysctl -w kernel.io_uring_disabled=0");
        expect(&check_with(&facts, name, &disabled), CouldBeBetter, "refused: ", command);
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
                ("1\n", Fine, "1, for root and no group, this process among them", None),
                ("2\n", CouldBeBetter, "2, for nobody", command),
                ("3\n", Unknown, "3", None),
                ("no", Unknown, "no", None),
            ],
        );
        let grouped = [(path, "1"), ("proc/sys/kernel/io_uring_group", "998\n")];
        expect(&check(name, &grouped), Fine, "group 998, this process among them", None);
        let row = check_with(&without_io_uring(Errno::PERM), name, &grouped);
        expect(&row, CouldBeBetter, "group 998, not this process", command);
        let nobody = [(path, "1"), ("proc/sys/kernel/io_uring_group", "-1\n")];
        expect(&check(name, &nobody), Fine, "no group", None);
        expect(&check(name, &[]), NotHere, "Linux 6.6", None);
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
            expect(&row, CouldBeBetter, "io_uring_setup is refused", None);
            let row = check_with(&facts, "seccomp", &[(STATUS, "Seccomp:\t0\n")]);
            expect(&row, Fine, "no filter", None);
        }
        // An old kernel knows of nothing, but lets the call through.
        let facts = without_io_uring(Errno::INVAL);
        let row = check_with(&facts, "seccomp", &[(STATUS, "Seccomp:\t2\n")]);
        expect(&row, Fine, "through", None);
        expect(&check("seccomp", &[]), Unknown, "no mode", None);
    }

    #[test]
    fn locked_memory_is_measured_against_the_buffers() {
        // Four workers: 4 MiB of buffers and a page of their ring each.
        let needed = 4 * ((4 << 20) + 4096);
        let with = |locked_octets, files: &[(&str, &str)]| {
            check_with(&Facts { locked_octets, ..facts() }, "locked memory", files)
        };
        let row = with(UNLIMITED, &[]);
        expect(&row, Fine, "unlimited", None);
        assert_eq!(row.wanted, "16400 KiB, 4100 KiB a worker");
        expect(&with(limit(needed, needed), &[]), Fine, "16400 KiB", None);
        let raise = "sudo prlimit --pid $$ --memlock=16793600";
        expect(&with(limit(needed - 1, needed - 1), &[]), CouldBeBetter, "16399 KiB", Some(raise));
        let own = Some("ulimit -S -l 16400");
        expect(&with(limit(0, needed), &[]), CouldBeBetter, "0 KiB", own);
        expect(&with(Limit { soft: Some(65536), hard: None }, &[]), CouldBeBetter, "64 KiB", own);

        let users = ("proc/self/uid_map", "         0          0 4294967295\n");
        let capable = (STATUS, "CapEff:\t0000000000004000\n");
        expect(&with(limit(0, 0), &[users, capable]), Fine, "CAP_IPC_LOCK", None);
        for files in [
            [users, (STATUS, "CapEff:\tffffffffffffbfff\n")],
            [users, (STATUS, "CapEff:\tall\n")],
            // A capability over a container's own users does not count.
            [("proc/self/uid_map", "0 1000 1\n"), capable],
            [("proc/self/uid_map", ""), capable],
        ] {
            expect(&with(limit(0, 0), &files), CouldBeBetter, "0 KiB", Some(raise));
        }
    }

    #[test]
    fn descriptors_are_measured_against_the_connections() {
        let needed = 1000 + 16 + 4 * 67;
        let with = |descriptors| {
            let name = "descriptors";
            check_with(&Facts { descriptors, ..facts() }, name, &[])
        };
        expect(&with(UNLIMITED), Fine, "soft unlimited, hard unlimited", None);
        // The server raises the soft limit.
        expect(&with(limit(100, needed)), Fine, "soft 100, hard 1284", None);
        let command = Some("sudo prlimit --pid $$ --nofile=1284");
        expect(&with(limit(100, needed - 1)), CouldBeBetter, "hard 1283", command);
        assert!(with(UNLIMITED).wanted.contains("1000 connections"));
    }

    #[test]
    fn the_processors_allowed() {
        let name = "processors allowed";
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
        expect(&check_with(&one, name, &[(path, "0-3")]), CouldBeBetter, "2 of 0-3", command);
        expect(&check_with(&one, name, &[(path, "2")]), CouldBeBetter, "2", None);
        expect(&check_with(&one, name, &[]), CouldBeBetter, "2", None);
        let none = Facts { allowed: Vec::new(), ..facts() };
        expect(&check_with(&none, name, &[]), Unknown, "cannot be listed", None);
    }

    #[test]
    fn processors_set_apart() {
        for (name, path, command) in [
            (
                "processors isolated",
                "sys/devices/system/cpu/isolated",
                "boot with isolcpus=domain,managed_irq,1-3",
            ),
            ("processors tickless", "sys/devices/system/cpu/nohz_full", "boot with nohz_full=1-3"),
        ] {
            let taskset = Some("taskset -c 4-7 ringecho");
            expect_each(
                name,
                path,
                &[
                    ("2-3\n", Fine, "2-3", None),
                    ("3-5\n", Fine, "3-5", None),
                    ("4-7\n", CouldBeBetter, "4-7, none of them allowed", taskset),
                    ("\n", CouldBeBetter, "none", Some(command)),
                    ("(null)\n", CouldBeBetter, "none", Some(command)),
                    ("some", Unknown, "some", None),
                ],
            );
            expect(&check(name, &[]), NotHere, "not built", None);
            let one = Facts { allowed: vec![0], ..facts() };
            expect(&check_with(&one, name, &[(path, "")]), CouldBeBetter, "none", None);
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
        // The fifth processor is not allowed.
        let fast = "performance\n";
        expect(&with([fast, fast, fast, fast, "x y"]), Fine, "performance on 0-3", None);
        let command = Some(
            "echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor",
        );
        let mixed = with([fast, "powersave", "powersave", fast, fast]);
        expect(&mixed, CouldBeBetter, "performance on 0,3, powersave on 1-2", command);
        expect(&with([fast, fast, "two words", fast, fast]), Unknown, "two words", None);
        expect(&with([fast, "", fast, fast, fast]), Unknown, "\"\"", None);
        expect(&check(name, &[]), NotHere, "no cpufreq", None);
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
        expect(&with(["C1E", "10", "0"], shallow), CouldBeBetter, "C1E, 10 µs", command);
        expect(&with(shallow, ["C6", "133", "0"]), CouldBeBetter, "C6, 133 µs", command);
        expect(&with(["C6", "133", "1"], shallow), Fine, "C1, 2 µs", None);
        expect(&with(["", "133", "0"], shallow), CouldBeBetter, "state1, 133 µs", command);
        for nonsense in [["C6", "long", "0"], ["C6", "", "0"], ["C6", "133", "perhaps"]] {
            expect(&with(nonsense, shallow), Unknown, "state1/", None);
        }
        expect(&check(name, &[]), NotHere, "no cpuidle", None);
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
        expect(&row, CouldBeBetter, "0-1 and 2-3 share a core", Some("ringecho --cpus 0,2"));
        let row = with(4, &["0,2", "1", "0,2", "3"]);
        expect(&row, CouldBeBetter, "0,2 share a core", Some("ringecho --cpus 0-1,3"));
        let pairs = ["0-1", "0-1", "2-3", "2-3", "4-5", "4-5", "6-7", "6-7", "8-9", "8-9"];
        let row = with(10, &pairs);
        let command = Some("ringecho --cpus 0,2,4,6,8");
        expect(&row, CouldBeBetter, "6-7 and 1 more share a core", command);
        expect(&with(4, &["0", "1", "2"]), Unknown, "processor 3", None);
        expect(&with(4, &["0", "1", "2", "none"]), Unknown, "none", None);
        expect(&with(0, &[]), Unknown, "no processors", None);
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
        expect(&row, CouldBeBetter, "node0 with 0-1, node1 with 2-3", command);
        expect(&with(["0-1", "two", "2"]), Unknown, "two", None);
        expect(&with(["4", "5", "6"]), NotHere, "no NUMA", None);
        expect(
            &check(name, &[("sys/devices/system/node/possible", "0")]),
            NotHere,
            "no NUMA",
            None,
        );
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
        expect(&check(name, &[flagged]), CouldBeBetter, "yes", None);
        let row = check(name, &[flagged, (vendor, "QEMU\n"), (product, "Standard PC\n")]);
        expect(&row, CouldBeBetter, "yes: QEMU Standard PC", None);
        let row = check(name, &[bare, ("sys/hypervisor/type", "xen\n")]);
        expect(&row, CouldBeBetter, "yes: xen", None);
        // Only x86 has the flag, so elsewhere the firmware is believed.
        expect(&check(name, &[arm, dell[0], dell[1]]), Fine, "no", None);
        let amazon = (vendor, "Amazon EC2\n");
        let row = check(name, &[arm, amazon, (product, "m7g.large\n")]);
        expect(&row, CouldBeBetter, "yes: Amazon EC2 m7g.large", None);
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
                ("hpet\n", CouldBeBetter, "hpet", None),
                ("", Unknown, "\"\"", None),
                ("a clock", Unknown, "a clock", None),
            ],
        );
        let command = "echo tsc | sudo tee \
                       /sys/devices/system/clocksource/clocksource0/current_clocksource";
        let files = [(current, "kvm-clock\n"), (available, "kvm-clock tsc acpi_pm \n")];
        expect(&check(name, &files), CouldBeBetter, "kvm-clock", Some(command));
        assert_eq!(check(name, &[(available, "arch_sys_counter")]).wanted, "arch_sys_counter");
        expect(&check(name, &[]), Unknown, "no /sys", None);
    }

    #[test]
    fn congestion_controls() {
        let command = Some("sudo sysctl -w net.ipv4.tcp_congestion_control=cubic");
        expect_each(
            "congestion control",
            "proc/sys/net/ipv4/tcp_congestion_control",
            &[
                ("cubic\n", Fine, "cubic", None),
                ("reno\n", Fine, "reno", None),
                ("bbr\n", CouldBeBetter, "bbr, which paces", command),
                ("bbr3\n", CouldBeBetter, "bbr3, which paces", command),
                ("vegas\n", Unknown, "vegas", None),
                ("two words", Unknown, "two words", None),
                ("", Unknown, "\"\"", None),
            ],
        );
        expect(&check("congestion control", &[]), NotHere, "no TCP", None);
    }

    #[test]
    fn busy_polls() {
        for (name, path) in [
            ("net.core.busy_poll", "proc/sys/net/core/busy_poll"),
            ("net.core.busy_read", "proc/sys/net/core/busy_read"),
        ] {
            expect_each(
                name,
                path,
                &[
                    ("0\n", Fine, "0, off", None),
                    ("50\n", Fine, "50 µs", None),
                    ("-1\n", Unknown, "-1", None),
                    ("often", Unknown, "often", None),
                ],
            );
            expect(&check(name, &[]), NotHere, "not built", None);
        }
    }

    #[test]
    fn huge_pages_are_measured_against_the_buffers() {
        let name = "huge pages free";
        let path = "proc/meminfo";
        // Four workers, each with 4 MiB of buffers and a page for their ring.
        expect_each(
            name,
            path,
            &[
                ("HugePages_Total:      12\nHugePages_Free:       12\n", Fine, "12 of 12", None),
                (
                    "HugePages_Total:      20\nHugePages_Free:       11\n",
                    CouldBeBetter,
                    "11 of 20",
                    Some("sudo sysctl -w vm.nr_hugepages=21"),
                ),
                (
                    "MemTotal: 1 kB\nHugePages_Total: 0\nHugePages_Free: 0\n",
                    CouldBeBetter,
                    "0 of 0",
                    Some("sudo sysctl -w vm.nr_hugepages=12"),
                ),
                ("HugePages_Total: 9\nHugePages_Free: few\n", Unknown, "few", None),
                ("HugePages_Total: \nHugePages_Free: 1\n", Unknown, "1 of", None),
                ("MemTotal: 1 kB\n", NotHere, "none", None),
            ],
        );
        assert_eq!(check(name, &[]).wanted, "12, 3 a worker");
        expect(&check(name, &[]), NotHere, "none", None);
    }

    #[test]
    fn transparent_huge_page_choices() {
        let file = "/sys/kernel/mm/transparent_hugepage/enabled";
        let command = format!("echo madvise | sudo tee {file}");
        expect_each(
            "transparent huge pages",
            &file[1..],
            &[
                ("always [madvise] never\n", Fine, "madvise", None),
                ("[always] madvise never\n", Fine, "always", None),
                ("always madvise [never]\n", CouldBeBetter, "never", Some(&command)),
                ("always madvise never\n", Unknown, "always madvise never", None),
                ("[sometimes]", Unknown, "sometimes", None),
                ("[", Unknown, "[", None),
            ],
        );
        expect(&check("transparent huge pages", &[]), NotHere, "none", None);
    }

    #[test]
    fn nonsense_is_shown_in_short() {
        let long = "x".repeat(100_000);
        let row = check("kernel version", &[("proc/sys/kernel/osrelease", &long)]);
        assert_eq!((row.verdict, row.found.len()), (Unknown, NONSENSE_MAX + 2));
        let tree = Tree::new(&[("proc/sys/kernel/osrelease/directory", "")]);
        assert_eq!(examine(&tree.0, &facts()).checks[0].verdict, Unknown);
        fs::write(tree.0.join("proc/meminfo"), [0xFF, 0xFE, 0x00]).expect("a file");
        assert_eq!(examine(&tree.0, &facts()).checks.len(), Ability::ALL.len() + 20);
    }

    #[test]
    fn this_machine_is_examined_whatever_it_is() {
        let config = crate::cli::defaults().expect("a configuration");
        let report = examine(Path::new("/"), &Facts::gather(&config));
        let mut names: Vec<&str> = report.checks.iter().map(|check| check.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), report.checks.len(), "no two have the same name");
        let headings: Vec<Heading> = report.checks.iter().map(|check| check.heading).collect();
        let changes = headings.windows(2).filter(|pair| pair[0] != pair[1]).count();
        assert_eq!(changes, 6, "the checks of a heading stand beside each other");
    }
}
