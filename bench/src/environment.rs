//! The machine that measured: what readers need to know to compare its figures with others.

use std::fs;
use std::path::Path;

use ringecho::cpus;
use ringecho::linux::{Virtualization, field};
use serde::{Deserialize, Serialize};

/// A machine, and the program that measured on it. Unknown values are empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Environment {
    /// The version of ringbench.
    pub ringbench: String,
    /// The kernel's version.
    pub kernel: String,
    /// The CPU's model.
    pub cpu: String,
    /// The CPUs that the program may use.
    pub cpus: Vec<usize>,
    /// The frequency governor of CPU 0.
    pub governor: String,
    /// Whether this is a virtual machine.
    pub is_virtual: bool,
    /// The clock that the kernel uses.
    pub clocksource: String,
    /// The congestion control of new TCP connections.
    pub congestion_control: String,
}

impl Environment {
    /// This machine, and this program.
    pub fn here() -> Environment {
        Environment::below(Path::new("/"))
    }

    /// The machine whose `/proc` and `/sys` are below `root`.
    fn below(root: &Path) -> Environment {
        let read = |path: &str| {
            fs::read_to_string(root.join(path))
                .map(|text| text.trim().to_owned())
                .unwrap_or_default()
        };
        let cpuinfo = read("proc/cpuinfo");
        Environment {
            ringbench: env!("CARGO_PKG_VERSION").to_owned(),
            kernel: read("proc/sys/kernel/osrelease"),
            cpu: field(&cpuinfo, "model name").unwrap_or_default().to_owned(),
            cpus: cpus::allowed().unwrap_or_default(),
            governor: read("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
            is_virtual: matches!(Virtualization::of(root), Virtualization::Virtual(_)),
            clocksource: read("sys/devices/system/clocksource/clocksource0/current_clocksource"),
            congestion_control: read("proc/sys/net/ipv4/tcp_congestion_control"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_read_from_its_files() {
        let root = std::env::temp_dir().join(format!("ringbench-{}", std::process::id()));
        for (path, text) in [
            ("proc/cpuinfo", "processor\t: 0\nmodel name\t: A CPU\nflags\t\t: fpu hypervisor\n"),
            ("proc/sys/kernel/osrelease", "6.18.0\n"),
            ("proc/sys/net/ipv4/tcp_congestion_control", "cubic\n"),
        ] {
            let path = root.join(path);
            fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
            fs::write(path, text).expect("a file");
        }
        let found = Environment::below(&root);
        fs::remove_dir_all(&root).expect("a directory");
        assert_eq!((found.cpu.as_str(), found.kernel.as_str()), ("A CPU", "6.18.0"));
        assert!(found.is_virtual);
        assert_eq!((found.governor.as_str(), found.congestion_control.as_str()), ("", "cubic"));
    }
}
