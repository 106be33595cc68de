//! The version of Linux.
//!
//! This module tells which one runs, and does not know what needs it.

use std::fs;

/// The first two numbers of a release: 6 and 18 of `6.18.44-generic`.
pub fn version(release: &str) -> Option<(u32, u32)> {
    let (major, rest) = release.split_once('.')?;
    let minor = rest.split(|letter: char| !letter.is_ascii_digit()).next()?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Those of the running kernel, where they can be read.
pub fn running_version() -> Option<(u32, u32)> {
    version(&fs::read_to_string("/proc/sys/kernel/osrelease").ok()?)
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
