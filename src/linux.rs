//! What Linux says of itself and of the machine: its version, whether it runs in a virtual machine, and
//! which limit is to be raised when it refuses something.
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
