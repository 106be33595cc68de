//! Memory for messages: mapped at start-up, with every page allocated in advance, locked where the
//! limits allow it, and on huge pages where there are any.
//!
//! This module hands out memory and does not know what is stored there. Invariants that the
//! unsafe blocks rely on:
//!
//! 1. `start..start + length` is mapped, readable and writable from [`Mapping::new`] until the
//!    mapping is dropped, and nothing else in the process knows the addresses.
//! 2. A new mapping at an address that the kernel chooses touches no other memory.

#![expect(unsafe_code, reason = "mapping and locking memory; see the invariants above")]

use std::io;
use std::ptr::{self, NonNull};

use rustix::io::Errno;
use rustix::mm::{self, Advice, MapFlags, ProtFlags};

/// The size of a huge page in bytes, on x86-64 and on aarch64 with pages of 4 KiB.
const HUGE_PAGE: usize = 2 << 20;

/// How many huge pages a mapping of `bytes` bytes takes, where there are enough.
pub fn huge_pages(bytes: usize) -> usize {
    bytes.div_ceil(HUGE_PAGE)
}

/// An anonymous mapping.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<u8>,
    length: usize,
    is_locked: bool,
    is_huge: bool,
}

impl Mapping {
    /// Maps at least `bytes` bytes, all of them 0, and has the kernel allocate every page.
    ///
    /// # Errors
    ///
    /// When there is not that much memory. Memory that cannot be locked is no error: see
    /// [`Mapping::is_locked`].
    pub fn new(bytes: usize) -> io::Result<Mapping> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let huge_length = huge_pages(bytes) * HUGE_PAGE;
        // SAFETY: invariant 2.
        let huge = unsafe {
            let flags = MapFlags::PRIVATE | MapFlags::HUGETLB | MapFlags::POPULATE;
            mm::mmap_anonymous(ptr::null_mut(), huge_length, protection, flags)
        };
        let is_huge = huge.is_ok();
        let length = if is_huge { huge_length } else { bytes };
        let start = match huge {
            Ok(start) => start,
            // SAFETY: invariant 2.
            Err(_) => unsafe {
                mm::mmap_anonymous(ptr::null_mut(), length, protection, MapFlags::PRIVATE)?
            },
        };
        let start = NonNull::new(start.cast::<u8>()).expect("mmap returns no null");
        let mut mapping = Mapping { start, length, is_locked: false, is_huge };
        mapping.populate()?;
        Ok(mapping)
    }

    /// Allocates the pages, and locks them if that is allowed.
    fn populate(&mut self) -> io::Result<()> {
        let start = self.start.as_ptr().cast();
        if !self.is_huge {
            // Small pages work too, so a refusal does not matter.
            // SAFETY: invariant 1; this advice changes no content.
            let _ = unsafe { mm::madvise(start, self.length, Advice::LinuxHugepage) };
            // SAFETY: invariant 1; this advice changes no content.
            match unsafe { mm::madvise(start, self.length, Advice::LinuxPopulateWrite) } {
                Ok(()) => {}
                // The kernel has tried, and memory has run out or is broken (madvise(2)).
                Err(error @ (Errno::NOMEM | Errno::FAULT | Errno::HWPOISON)) => {
                    return Err(error.into());
                }
                // The kernel is older than Linux 5.14 and does not know this advice, or a seccomp
                // filter forbids it.
                Err(_) => self.touch(),
            }
        }
        // SAFETY: invariant 1; locking changes no content.
        self.is_locked = unsafe { mm::mlock(start, self.length) }.is_ok();
        Ok(())
    }

    /// Writes to every page, so that the kernel allocates it.
    fn touch(&mut self) {
        let page = rustix::param::page_size();
        self.bytes().iter_mut().step_by(page).for_each(|byte| *byte = 0);
    }

    /// The first byte, at the beginning of a page.
    pub fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// All of it.
    #[inline]
    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: invariant 1. Code that uses the address from [`Mapping::start`] is unsafe and must
        // know what else the mapping is used for.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.length) }
    }

    /// The length of the mapping in bytes.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Whether the pages are locked, so that they cannot be swapped out.
    pub fn is_locked(&self) -> bool {
        self.is_locked
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // If this fails, only addresses are lost.
        // SAFETY: invariant 1; after this nobody uses the addresses.
        let _ = unsafe { mm::munmap(self.start.as_ptr().cast(), self.length) };
    }
}

#[cfg(test)]
mod tests {
    use testkit::seccomp::{Calls, refusing};

    use super::*;

    #[test]
    fn a_mapping_is_zeroed_aligned_and_writable_to_its_end() {
        let mut mapping = Mapping::new(100_000).expect("memory");
        assert!(mapping.length() >= 100_000);
        assert_eq!(mapping.start().as_ptr() as usize % 4096, 0);
        let bytes = mapping.bytes();
        assert!(bytes.iter().all(|&byte| byte == 0));
        bytes.fill(0xa5);
    }

    /// Pages of a mapping that are in memory.
    fn resident_pages(mapping: &Mapping) -> usize {
        let start = mapping.start().as_ptr() as usize;
        let smaps = std::fs::read_to_string("/proc/self/smaps").expect("the mappings");
        let mut is_wanted = false;
        for line in smaps.lines() {
            if let Some((first, _)) = line.split_once('-').filter(|(first, _)| !first.contains(' '))
                && let Ok(first) = usize::from_str_radix(first, 16)
            {
                let end = line
                    .split([' ', '-'])
                    .nth(1)
                    .and_then(|end| usize::from_str_radix(end, 16).ok());
                is_wanted = (first..end.expect("an end")).contains(&start);
            } else if let Some(size) = line.strip_prefix("Rss:").filter(|_| is_wanted) {
                let kilobytes = size.trim().trim_end_matches(" kB").parse::<usize>();
                return kilobytes.expect("a size") * 1024 / rustix::param::page_size();
            }
        }
        panic!("the mapping is not there")
    }

    #[test]
    fn a_kernel_that_cannot_populate_memory_has_its_pages_touched() {
        const PAGES: usize = 100;
        let populate = Calls::with(libc::SYS_madvise, 2, Advice::LinuxPopulateWrite as u64);
        for errno in [Errno::INVAL, Errno::NOSYS, Errno::PERM] {
            refusing(populate, errno, || {
                let mapping = Mapping::new(PAGES * rustix::param::page_size()).expect("memory");
                assert!(resident_pages(&mapping) >= PAGES, "{errno}");
            });
        }
    }

    #[test]
    fn memory_that_the_kernel_could_not_populate_is_an_error() {
        let populate = Calls::with(libc::SYS_madvise, 2, Advice::LinuxPopulateWrite as u64);
        let error = refusing(populate, Errno::NOMEM, || Mapping::new(100_000).map(drop));
        assert_eq!(error.expect_err("no memory").kind(), io::ErrorKind::OutOfMemory);
    }

    #[test]
    fn memory_that_cannot_be_locked_is_taken_unlocked() {
        let mapping = refusing(Calls::all(libc::SYS_mlock), Errno::PERM, || {
            Mapping::new(100_000).map(|mapping| mapping.is_locked())
        });
        assert!(!mapping.expect("memory"));
    }

    #[test]
    fn more_memory_than_there_is_is_an_error() {
        assert!(Mapping::new(usize::MAX / 4).is_err());
    }
}
