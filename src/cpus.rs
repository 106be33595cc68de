//! CPUs: lists of them as people and the kernel write them, those this process may use, and pinning.
//!
//! A [`CpuList`] is what `--cpus` takes and what the kernel's `cpulist` files hold. This module does
//! not know what runs on a CPU.

use std::fmt;
use std::fs;
use std::io;
use std::str::FromStr;
use std::thread;

use core_affinity::CoreId;
use rustix::thread::{CpuSet, sched_setaffinity};

/// One more than the largest CPU number: the size of a `cpu_set_t` (CPU_SET(3)).
const CPU_COUNT_MAX: usize = 1024;

/// A list of CPU numbers in the order in which they were written, such as `0,2-5`.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct CpuList(pub Vec<usize>);

impl fmt::Display for CpuList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        list(&self.0).fmt(f)
    }
}

/// The list as text, with ranges for consecutive numbers.
pub fn list(cpus: &[usize]) -> String {
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    for &cpu in cpus {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == cpu => *last = cpu,
            _ => ranges.push((cpu, cpu)),
        }
    }
    let ranges = ranges.iter().map(|&(first, last)| {
        if first == last { first.to_string() } else { format!("{first}-{last}") }
    });
    ranges.collect::<Vec<String>>().join(",")
}

/// Why a text is not a list of CPUs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CpuListError {
    /// One of its items is neither a number nor a range of numbers.
    NotANumber(String),
    /// A range ends before it begins.
    Backwards(String),
    /// A number is larger than that of any CPU.
    TooLarge(String),
}

impl fmt::Display for CpuListError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CpuListError::NotANumber(item) if item.is_empty() => f.write_str("a number is missing"),
            CpuListError::NotANumber(item) => write!(f, "\"{item}\" is not a CPU number or range"),
            CpuListError::Backwards(item) => write!(f, "the range {item} ends before it begins"),
            CpuListError::TooLarge(item) => {
                write!(f, "{item} is too large: the largest CPU number is {}", CPU_COUNT_MAX - 1)
            }
        }?;
        f.write_str("; write numbers and ranges separated by commas, such as 0,2-5")
    }
}

impl std::error::Error for CpuListError {}

impl FromStr for CpuList {
    type Err = CpuListError;

    fn from_str(text: &str) -> Result<CpuList, CpuListError> {
        let mut cpus = Vec::new();
        for item in text.split(',').map(str::trim) {
            let (first, last) = item.split_once('-').unwrap_or((item, item));
            let (Some(first), Some(last)) = (number(first), number(last)) else {
                return Err(CpuListError::NotANumber(item.to_owned()));
            };
            if last >= CPU_COUNT_MAX || first >= CPU_COUNT_MAX {
                return Err(CpuListError::TooLarge(item.to_owned()));
            }
            if first > last {
                return Err(CpuListError::Backwards(item.to_owned()));
            }
            cpus.extend(first..=last);
        }
        Ok(CpuList(cpus))
    }
}

/// A number in decimal digits alone; one that does not fit is [`usize::MAX`].
fn number(text: &str) -> Option<usize> {
    let text = text.trim();
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().unwrap_or(usize::MAX))
}

/// The CPUs in the affinity mask of the calling thread, in ascending order.
///
/// # Errors
///
/// When the kernel does not say (sched_getaffinity(2)).
pub fn allowed() -> io::Result<Vec<usize>> {
    let cores = core_affinity::get_core_ids().filter(|cores| !cores.is_empty());
    let cores = cores.ok_or_else(io::Error::last_os_error)?;
    Ok(cores.into_iter().map(|core| core.id).collect())
}

/// Keeps the calling thread off these CPUs, if any other is left for it.
///
/// # Errors
///
/// When the kernel refuses (sched_setaffinity(2)).
pub fn avoid(cpus: &[usize]) -> io::Result<()> {
    let mut others = CpuSet::new();
    for cpu in allowed()?.into_iter().filter(|cpu| *cpu < CPU_COUNT_MAX && !cpus.contains(cpu)) {
        others.set(cpu);
    }
    match others.count() {
        0 => Ok(()),
        _ => Ok(sched_setaffinity(None, &others)?),
    }
}

/// Pins the calling thread to one CPU, which need not be in its affinity mask: the kernel decides.
///
/// # Errors
///
/// When the kernel refuses: the CPU does not exist, is offline, or is outside the cpuset of this
/// process (sched_setaffinity(2)).
pub fn pin(cpu: usize) -> io::Result<()> {
    if cpu >= CPU_COUNT_MAX {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    if core_affinity::set_for_current(CoreId { id: cpu }) {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Pins a thread, which then ends, to each of `cpus`.
///
/// # Errors
///
/// The first CPU that the kernel refuses, and its error: see [`pin`].
pub fn try_all(cpus: &[usize]) -> Result<(), (usize, io::Error)> {
    let attempt = || cpus.iter().try_for_each(|&cpu| pin(cpu).map_err(|error| (cpu, error)));
    thread::scope(|scope| scope.spawn(attempt).join().expect("it does not panic"))
}

/// The CPUs that are online, if the kernel says so.
pub fn online() -> Option<CpuList> {
    fs::read_to_string("/sys/devices/system/cpu/online").ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Vec<usize>, CpuListError> {
        text.parse().map(|CpuList(cpus)| cpus)
    }

    #[test]
    fn lists_are_written_with_ranges() {
        assert_eq!(list(&[]), "");
        assert_eq!(list(&[3]), "3");
        assert_eq!(CpuList(vec![0, 1, 2, 5, 7, 8]).to_string(), "0-2,5,7-8");
        assert_eq!(list(&[1, 0]), "1,0");
    }

    #[test]
    fn lists_are_read_in_their_order() {
        assert_eq!(parse("0"), Ok(vec![0]));
        assert_eq!(parse("0,2-4, 7"), Ok(vec![0, 2, 3, 4, 7]));
        assert_eq!(parse("3,1"), Ok(vec![3, 1]));
        assert_eq!(parse("0 - 1\n"), Ok(vec![0, 1]));
        assert_eq!(parse("1023"), Ok(vec![1023]));
    }

    #[test]
    fn errors_name_the_item_and_say_what_to_write() {
        for (text, named) in [
            ("", "a number is missing"),
            ("0,,1", "a number is missing"),
            ("0,", "a number is missing"),
            ("a", "\"a\""),
            ("0,1x,2", "\"1x\""),
            ("1-", "\"1-\""),
            ("-1", "\"-1\""),
            ("+1", "\"+1\""),
            ("1-2-3", "\"1-2-3\""),
            ("0,3-2", "the range 3-2"),
            ("1024", "1024 is too large"),
            ("0-9999999", "0-9999999 is too large"),
            ("99999999999999999999", "is too large"),
        ] {
            let error = parse(text).expect_err(text).to_string();
            assert!(error.contains(named) && error.contains("such as 0,2-5"), "{text}: {error}");
        }
    }

    #[test]
    fn a_thread_is_pinned_where_the_kernel_allows_it() {
        thread::scope(|scope| {
            scope.spawn(|| {
                let cpus = allowed().expect("a mask");
                let (first, last) = (cpus[0], cpus[cpus.len() - 1]);
                pin(first).expect("an allowed CPU");
                assert_eq!(allowed().expect("a mask"), [first]);
                // Outside the mask, which is not what decides.
                pin(last).expect("an allowed CPU");
                assert_eq!(allowed().expect("a mask"), [last]);
                pin(CPU_COUNT_MAX - 1).expect_err("no machine of the tests has it");
                pin(CPU_COUNT_MAX).expect_err("no CPU can have this number");
            });
        });
    }
}
