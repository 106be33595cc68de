//! Huge pages for the buffers.

use super::machine::{Machine, Row, sysctl};
use super::report::{Check, Heading};
use crate::linux::field;
use crate::memory::huge_pages;

pub(super) fn checks(machine: Machine<'_>) -> Vec<Check> {
    vec![free_huge_pages(machine), transparent_huge_pages(machine)]
}

fn free_huge_pages(machine: Machine<'_>) -> Check {
    let buffers = machine.facts.buffers;
    let of_worker = huge_pages(buffers.memory_bytes()) + huge_pages(buffers.entries_bytes());
    let needed = (of_worker * machine.workers()) as u64;
    let wanted = format!("{needed}, {of_worker} per worker");
    let row = Row::new(Heading::Memory, "huge pages free", wanted);
    let meminfo = machine.read("proc/meminfo").unwrap_or_default();
    let (Some(free), Some(total)) =
        (field(&meminfo, "HugePages_Free"), field(&meminfo, "HugePages_Total"))
    else {
        return row.absent("none in this kernel");
    };
    let (Ok(free_pages), Ok(total_pages)) = (free.parse::<u64>(), total.parse::<u64>()) else {
        return row.nonsense(&format!("{free} of {total}"));
    };
    let found = format!("{free_pages} of {total_pages}");
    if free_pages >= needed {
        return row.fine(found);
    }
    let total = total_pages.saturating_add(needed - free_pages);
    row.warn(found, Some(sysctl("vm.nr_hugepages", total)))
}

fn transparent_huge_pages(machine: Machine<'_>) -> Check {
    let row = Row::new(Heading::Memory, "transparent huge pages", "madvise or always");
    let Some(text) = machine.read("sys/kernel/mm/transparent_hugepage/enabled") else {
        return row.absent("none in this kernel");
    };
    match chosen(&text) {
        Some(choice @ ("always" | "madvise")) => row.fine(choice),
        Some(choice @ "never") => {
            let file = "/sys/kernel/mm/transparent_hugepage/enabled";
            row.warn(choice, Some(format!("echo madvise | sudo tee {file}")))
        }
        Some(_) | None => row.nonsense(&text),
    }
}

/// The choice in brackets, as `/sys` shows one: `always [madvise] never`.
fn chosen(text: &str) -> Option<&str> {
    Some(text.split_once('[')?.1.split_once(']')?.0)
}

#[cfg(test)]
mod tests {
    use crate::doctor::fixture::{check, expect, expect_each};
    use crate::doctor::report::Verdict::{Absent, Fine, Unknown, Warn};

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
                    Warn,
                    "11 of 20",
                    Some("sudo sysctl -w vm.nr_hugepages=21"),
                ),
                (
                    "MemTotal: 1 kB\nHugePages_Total: 0\nHugePages_Free: 0\n",
                    Warn,
                    "0 of 0",
                    Some("sudo sysctl -w vm.nr_hugepages=12"),
                ),
                ("HugePages_Total: 9\nHugePages_Free: few\n", Unknown, "few", None),
                ("HugePages_Total: \nHugePages_Free: 1\n", Unknown, "1 of", None),
                ("MemTotal: 1 kB\n", Absent, "none", None),
            ],
        );
        assert_eq!(check(name, &[]).wanted, "12, 3 per worker");
        expect(&check(name, &[]), Absent, "none", None);
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
                ("always madvise [never]\n", Warn, "never", Some(&command)),
                ("always madvise never\n", Unknown, "always madvise never", None),
                ("[sometimes]", Unknown, "sometimes", None),
                ("[", Unknown, "[", None),
            ],
        );
        expect(&check("transparent huge pages", &[]), Absent, "none", None);
    }
}
