//! The doctor's report, as a table and as JSON.
//!
//! This module lays out text and does not know what is examined.

use std::fmt::{self, Write as _};

use serde::Serialize;

/// The width of a table, in columns, when the terminal's width is not known.
pub const WIDTH: usize = 120;
/// The minimum width of the column "wanted".
const CELL_WIDTH_MIN: usize = 11;
/// The longest word for which the column "found" gets more than half of the room.
const WORD_WIDTH_MAX: usize = 20;
/// Between two columns, and before the name of a check.
const GAP: usize = 2;
/// Indentation of a command that does not fit on its row.
const INDENT: usize = 4;
/// Shown where there is no command.
const NO_COMMAND: &str = "-";
/// The titles of the columns, without that of the commands.
const TITLES: [&str; 4] = ["check", "found", "wanted", "verdict"];
/// The title of the column of commands.
const COMMAND: &str = "command";

/// What a check is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heading {
    /// The version of Linux.
    Kernel,
    /// What io_uring can do, and whether it may be used.
    IoUring,
    /// Whether the kernel can echo by itself.
    Offload,
    /// What the server can give up once it serves.
    Sandbox,
    /// Resource limits of the process.
    Limits,
    /// CPUs: which may be used, and how fast they wake up.
    Cpus,
    /// TCP and network devices.
    Network,
    /// Huge pages for the buffers.
    Memory,
}

impl fmt::Display for Heading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Heading::Kernel => "kernel",
            Heading::IoUring => "io_uring",
            Heading::Offload => "offload",
            Heading::Sandbox => "sandbox",
            Heading::Limits => "limits",
            Heading::Cpus => "CPUs",
            Heading::Network => "network",
            Heading::Memory => "memory",
        })
    }
}

/// The verdict on what was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Verdict {
    /// It is as wanted.
    #[serde(rename = "fine")]
    Fine,
    /// It costs latency, or an option cannot be used.
    #[serde(rename = "warn")]
    Warn,
    /// It keeps the uring engine from starting, which leaves epoll.
    #[serde(rename = "fail")]
    Fail,
    /// It could not be found out.
    #[serde(rename = "unknown")]
    Unknown,
    /// This machine or kernel does not have it.
    #[serde(rename = "absent")]
    Absent,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Verdict::Fine => "fine",
            Verdict::Warn => "warn",
            Verdict::Fail => "fail",
            Verdict::Unknown => "unknown",
            Verdict::Absent => "absent",
        })
    }
}

/// The result of one check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What it is about.
    #[serde(skip)]
    pub heading: Heading,
    /// The name of the check, unique in a report.
    pub name: &'static str,
    /// What was found.
    pub found: String,
    /// What is good for latency.
    pub wanted: String,
    /// The verdict.
    pub verdict: Verdict,
    /// The command that changes it; nothing if nothing needs to, or can, be done.
    pub command: Option<String>,
}

/// All checks. Displayed as a table of the formatter's width, or of [`WIDTH`]; only commands may be
/// longer, since a wrapped command cannot be copied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The checks, grouped by heading.
    pub checks: Vec<Check>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = Columns::fitting(self, f.width().unwrap_or(WIDTH));
        columns.write_titles(f)?;
        let mut heading = None;
        for check in &self.checks {
            if heading.replace(check.heading) != Some(check.heading) {
                writeln!(f, "{}", check.heading)?;
            }
            columns.write_row(f, &cells(check), check.command.as_deref().unwrap_or(NO_COMMAND))?;
        }
        Ok(())
    }
}

fn cells(check: &Check) -> [String; 4] {
    let name = format!("{:GAP$}{}", "", check.name);
    [name, check.found.clone(), check.wanted.clone(), check.verdict.to_string()]
}

/// The widths of the columns name, found, wanted and verdict, and of the whole table.
struct Columns {
    widths: [usize; 4],
    width: usize,
}

impl Columns {
    /// Each column is as wide as its longest cell, except found and wanted, which share what the
    /// others leave of `width`.
    fn fitting(report: &Report, width: usize) -> Columns {
        let mut widths = TITLES.map(str::len);
        let mut word = 0;
        for check in &report.checks {
            for (width, cell) in widths.iter_mut().zip(cells(check)) {
                *width = (*width).max(cell.chars().count());
            }
            let words = check.found.split_whitespace().map(|word| word.chars().count());
            word = words.fold(word, usize::max);
        }
        let [name, found, wanted, verdict] = widths;
        // A narrow table has no room for a title.
        let command = if width < WIDTH { NO_COMMAND } else { COMMAND };
        let left = width.saturating_sub(name + verdict + 4 * GAP + command.len());
        // A column that needs less than half leaves the rest to the other; and a kernel version should
        // not overflow its column.
        let share = (left / 2).max(left.saturating_sub(wanted)).max(word.min(WORD_WIDTH_MAX));
        let found = found.min(share);
        let wanted = wanted.min(left.saturating_sub(found)).max(CELL_WIDTH_MIN);
        Columns { widths: [name, found, wanted, verdict], width }
    }

    /// Leaves out the title of the commands where no command fits on its row.
    fn write_titles(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let command = if self.has_room_for(COMMAND) { COMMAND } else { "" };
        self.write_line(f, &TITLES, command)
    }

    fn has_room_for(&self, command: &str) -> bool {
        let place = self.widths.iter().sum::<usize>() + 4 * GAP;
        place + command.chars().count() <= self.width
    }

    /// Writes a row, wrapping its cells between words. The command follows on the same line if it
    /// fits, else on a line of its own.
    fn write_row(
        &self,
        f: &mut fmt::Formatter<'_>,
        cells: &[String; 4],
        command: &str,
    ) -> fmt::Result {
        let [name, found, wanted, verdict] =
            std::array::from_fn(|column| wrap(&cells[column], self.widths[column]));
        let is_beside = command == NO_COMMAND || self.has_room_for(command);
        let height = [&name, &found, &wanted, &verdict].map(Vec::len).into_iter().max();
        for number in 0..height.unwrap_or_default() {
            let parts = [&name, &found, &wanted, &verdict]
                .map(|lines| lines.get(number).map_or("", String::as_str));
            self.write_line(f, &parts, if is_beside && number == 0 { command } else { "" })?;
        }
        if is_beside { Ok(()) } else { writeln!(f, "{:INDENT$}{command}", "") }
    }

    fn write_line(
        &self,
        f: &mut fmt::Formatter<'_>,
        parts: &[&str; 4],
        command: &str,
    ) -> fmt::Result {
        let mut line = String::new();
        for (part, width) in parts.iter().zip(self.widths) {
            write!(line, "{part:width$}{:GAP$}", "")?;
        }
        writeln!(f, "{}", (line + command).trim_end())
    }
}

/// Splits `text` into lines of at most `width` columns; a longer word gets a line of its own.
fn wrap(text: &str, width: usize) -> Vec<String> {
    if text.chars().count() <= width {
        return vec![text.to_owned()];
    }
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            Some(_) | None => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(heading: Heading, name: &'static str, command: Option<&str>) -> Check {
        Check {
            heading,
            name,
            found: "some number of words that say what was found here".into(),
            wanted: "and some more of them that say what would be better".into(),
            verdict: Verdict::Warn,
            command: command.map(str::to_owned),
        }
    }

    fn report() -> Report {
        let checks = vec![
            check(Heading::Kernel, "first", None),
            check(Heading::Kernel, "second of them", Some("sudo change it")),
            check(Heading::Memory, "third", Some("a command that is longer than a narrow table")),
        ];
        Report { checks }
    }

    #[test]
    fn words_are_wrapped_and_never_lost() {
        assert_eq!(wrap("", 5), [""]);
        assert_eq!(wrap("one two", 7), ["one two"]);
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap("unbreakable is", 4), ["unbreakable", "is"]);
        assert_eq!(wrap("µµ µµ µµ", 5), ["µµ µµ", "µµ"]);
    }

    #[test]
    fn a_wide_table_has_a_line_a_row() {
        let text = format!("{:200}", report());
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 1 + 2 + 3, "{text}");
        assert_eq!((lines[1], lines[4]), ("kernel", "memory"));
        let place = lines[0].find("command").expect("a title");
        for (line, command) in [(2, "-"), (3, "sudo change it"), (5, "a command that is")] {
            assert!(lines[line][place..].starts_with(command), "{text}");
        }
        let place = lines[0].find("verdict").expect("a title");
        for line in [2, 3, 5] {
            assert!(lines[line][place..].starts_with("warn"), "{text}");
        }
    }

    #[test]
    fn a_table_keeps_to_its_width_and_its_commands_stay_whole() {
        for width in [70, 80, 100, 120, 150] {
            let text = format!("{:width$}", report());
            for line in text.lines() {
                assert!(line.chars().count() <= width, "{width}\n{text}");
                assert_eq!(line, line.trim_end());
            }
            for command in ["sudo change it", "a command that is longer than a narrow table"] {
                assert!(text.contains(command), "{width}\n{text}");
            }
        }
    }

    #[test]
    fn no_width_is_too_small() {
        for width in 0..70 {
            let text = format!("{:width$}", report());
            assert!(text.contains("second of them"), "{text}");
        }
        assert_eq!(report().to_string(), format!("{:WIDTH$}", report()));
    }

    #[test]
    fn json_has_the_fields_of_the_table() {
        let value = serde_json::to_value(report()).expect("text");
        let first = value["checks"][0].as_object().expect("an object");
        let names: Vec<&str> = first.keys().map(String::as_str).collect();
        assert_eq!(names, ["name", "found", "wanted", "verdict", "command"]);
        assert!(first["command"].is_null());
        for (verdict, text) in [
            (Verdict::Fine, "fine"),
            (Verdict::Warn, "warn"),
            (Verdict::Fail, "fail"),
            (Verdict::Unknown, "unknown"),
            (Verdict::Absent, "absent"),
        ] {
            assert_eq!(serde_json::to_value(verdict).expect("text"), text);
            assert_eq!(verdict.to_string(), text);
        }
    }
}
