//! A line on standard error that is written again and again while something runs, if that is a terminal.

use std::io::{self, IsTerminal as _, Write as _};

/// The line.
#[derive(Debug)]
pub(super) struct LiveLine {
    is_shown: bool,
}

impl LiveLine {
    pub(super) fn on_terminal() -> LiveLine {
        LiveLine { is_shown: io::stderr().is_terminal() }
    }

    pub(super) fn show(&self, line: &str) {
        if self.is_shown {
            // Read each time, because the window may be resized.
            let columns = rustix::termios::tcgetwinsize(io::stderr()).map_or(0, |size| size.ws_col);
            self.write(&fitted(line, columns));
        }
    }

    pub(super) fn clear(&self) {
        if self.is_shown {
            self.write("");
        }
    }

    /// Replaces the line. A terminal that is gone does not end what runs.
    fn write(&self, line: &str) {
        let _ = write!(io::stderr(), "\r\x1b[K{line}");
    }
}

/// A line cut to a terminal of this width, or whole if the width is 0, which means unknown. The last
/// column stays free, because writing there may begin a new line.
fn fitted(line: &str, columns: u16) -> String {
    let columns = usize::from(columns).checked_sub(1).unwrap_or(usize::MAX);
    line.chars().take(columns).collect()
}

#[cfg(test)]
mod tests {
    use super::fitted;

    #[test]
    fn the_live_line_never_fills_the_last_column() {
        for (columns, line) in
            [(0, "p50 20 µs"), (1, ""), (8, "p50 20 "), (9, "p50 20 µ"), (80, "p50 20 µs")]
        {
            assert_eq!(fitted("p50 20 µs", columns), line, "{columns}");
        }
    }
}
