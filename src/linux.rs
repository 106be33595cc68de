//! What Linux says of itself and of the machine: its version, whether it runs in a virtual machine, how much
//! memory the process may have, and which limit is to be raised when it refuses something.
//!
//! This module does not know what the answers are needed for. Files are read below a root, which is
//! `/` except in tests.

use std::fs;
use std::io;
use std::path::Path;

use rustix::io::Errno;

/// The first two numbers of a kernel release: 6 and 18 of `6.18.44-generic`.
pub fn version(release: &str) -> Option<(u32, u32)> {
    let (major, rest) = release.split_once('.')?;
    let minor = rest.split(|letter: char| !letter.is_ascii_digit()).next()?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// The version of the running kernel, if it can be read.
pub fn running_version() -> Option<(u32, u32)> {
    version(&fs::read_to_string("/proc/sys/kernel/osrelease").ok()?)
}

/// The value of a line such as `Name:  value`, as files in `/proc` have them.
pub fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    lines.into_iter().find(|(key, _)| key.trim() == name).map(|(_, value)| value.trim())
}

/// What to do when a limit is why the kernel refuses a descriptor or a thread; empty for other errors.
pub fn remedy(error: &io::Error) -> &'static str {
    match Errno::from_io_error(error) {
        Some(Errno::MFILE) => "raise the limit on descriptors (ulimit -n)",
        Some(Errno::NFILE) => "raise sysctl fs.file-max",
        // pthread_create(3); the kernel gives the same error for too little memory.
        Some(Errno::AGAIN) => "raise the limits on processes and memory (ulimit -u, ulimit -v)",
        _ => "",
    }
}

/// How many bytes of memory the control group of this process may have, as far as the files below `root` say: the
/// least of its own limit and those of the groups around it (cgroups(7)). The kernel ends a process whose group needs
/// more.
pub fn memory_max(root: &Path) -> Option<u64> {
    // Each line has the number of a hierarchy, its controllers, and a path in it. Version 2 has no controllers.
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    let limits = groups.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let (hierarchy, file) = match controllers {
            "" => ("sys/fs/cgroup", "memory.max"),
            list if list.split(',').any(|name| name == "memory") => {
                ("sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => return None,
        };
        let hierarchy = root.join(hierarchy);
        let group = hierarchy.join(path.trim_start_matches('/'));
        let around = group.ancestors().take_while(|group| group.starts_with(&hierarchy));
        // Without a limit, version 2 says `max`, and the outermost group has no such file.
        let limit = |group: &Path| -> Option<u64> {
            fs::read_to_string(group.join(file)).ok()?.trim().parse().ok()
        };
        around.filter_map(limit).min()
    });
    limits.min()
}

/// How many bytes of huge pages are free, as far as the files below `root` say. They do not count for a control group.
pub fn huge_bytes_free(root: &Path) -> u64 {
    let text = fs::read_to_string(root.join("proc/meminfo")).unwrap_or_default();
    let number = |name| field(&text, name)?.trim_end_matches(" kB").parse::<u64>().ok();
    let pages = number("HugePages_Free").unwrap_or(0);
    pages.saturating_mul(number("Hugepagesize").unwrap_or(0)).saturating_mul(1024)
}

/// Makers of virtual machines, as they appear in the firmware's tables.
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

/// Whether the machine is a virtual one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Virtualization {
    /// It is, and this is what hypervisor and firmware call themselves; empty if they do not say.
    Virtual(String),
    /// It is not.
    Physical,
    /// Neither CPU nor firmware say.
    Unknown,
}

impl Virtualization {
    /// What the files below `root` say.
    pub fn of(root: &Path) -> Virtualization {
        let read = |path: &str| fs::read(root.join(path)).ok();
        let read = |path: &str| Some(String::from_utf8_lossy(&read(path)?).trim().to_owned());
        let cpuinfo = read("proc/cpuinfo").unwrap_or_default();
        let vendor = read("sys/class/dmi/id/sys_vendor").unwrap_or_default();
        let product = read("sys/class/dmi/id/product_name").unwrap_or_default();
        let hypervisor = read("sys/hypervisor/type");
        let firmware = format!("{vendor} {product}").trim().to_owned();
        // Only x86 has the flag.
        let is_flagged =
            field(&cpuinfo, "flags").map(|flags| flags.split(' ').any(|flag| flag == "hypervisor"));
        // Amazon rents out whole machines too.
        let is_made =
            MAKERS.iter().any(|maker| firmware.contains(maker)) && !product.ends_with(".metal");
        let is_virtual = hypervisor.is_some() || is_flagged.unwrap_or(is_made);
        let names = [hypervisor.unwrap_or_default(), firmware];
        let names = names.into_iter().filter(|name| !name.is_empty()).collect::<Vec<String>>();
        if is_virtual {
            Virtualization::Virtual(names.join(", "))
        } else if is_flagged.is_none() && names.is_empty() {
            Virtualization::Unknown
        } else {
            Virtualization::Physical
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The result of `call` for a root with these files.
    fn with<T>(files: &[(&str, &str)], call: impl FnOnce(&Path) -> T) -> T {
        let root = tempfile::tempdir().expect("a directory");
        for (file, text) in files {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
            fs::write(path, text).expect("a file");
        }
        call(root.path())
    }

    #[test]
    fn memory_of_a_control_group() {
        const GROUP: &str = "proc/self/cgroup";
        let max = |files: &[(&str, &str)]| with(files, memory_max);
        let new = (GROUP, "0::/outer/inner\n");
        let inner = ("sys/fs/cgroup/outer/inner/memory.max", "2000\n");
        let outer = ("sys/fs/cgroup/outer/memory.max", "1000\n");
        assert_eq!(max(&[new, inner]), Some(2000));
        assert_eq!(max(&[new, inner, outer]), Some(1000));
        assert_eq!(max(&[new, ("sys/fs/cgroup/outer/memory.max", "max\n")]), None);
        // What lies outside of the hierarchy is no group.
        assert_eq!(max(&[new, ("sys/fs/memory.max", "1\n"), ("memory.max", "1\n")]), None);
        let old = (GROUP, "4:memory,hugetlb:/g:1\n1:cpu:/\n0::/\n");
        let limit = ("sys/fs/cgroup/memory/g:1/memory.limit_in_bytes", "3000\n");
        assert_eq!(max(&[old, limit]), Some(3000));
        let unlimited = "9223372036854771712\n";
        let root = ("sys/fs/cgroup/memory/memory.limit_in_bytes", unlimited);
        assert_eq!(max(&[old, limit, root]), Some(3000));
        assert_eq!(max(&[old, root]), Some(9_223_372_036_854_771_712));
        assert_eq!(max(&[]), None);
        assert_eq!(max(&[(GROUP, "nonsense\n0\n")]), None);
    }

    #[test]
    fn free_huge_pages() {
        let free = |text: &str| with(&[("proc/meminfo", text)], huge_bytes_free);
        assert_eq!(free("HugePages_Free:     3\nHugepagesize:    2048 kB\n"), 6 << 20);
        assert_eq!(free("HugePages_Free:     0\nHugepagesize:    2048 kB\n"), 0);
        assert_eq!((free("HugePages_Free: many\n"), free("")), (0, 0));
    }

    #[test]
    fn versions_of_releases() {
        for (release, expected) in [
            ("6.18.44-generic\n", Some((6, 18))),
            ("6.1-rc3", Some((6, 1))),
            ("7.0", Some((7, 0))),
            ("5.15+", Some((5, 15))),
            ("6", None),
            ("6.", None),
            ("6.x", None),
            ("six", None),
            (".1", None),
            ("6.4294967296", None),
            ("", None),
        ] {
            assert_eq!(version(release), expected, "{release:?}");
        }
    }
}
