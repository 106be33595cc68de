//! The directory of reports: its files, and the index that several runs share.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use serde_json::{Map, Value};

use super::{CaseReport, index};

/// The index of all agents and their cases.
const INDEX: &str = "index.json";
/// Characters of an agent's name that the names of its files begin with.
const STEM_MAX: usize = 100;

/// Creates the directory for reports, and checks that files can be created in it and that an index that
/// is there can be added to.
///
/// # Errors
///
/// When they cannot, or it cannot.
pub fn prepare(directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    let probe = directory.join(format!(".ringbench-{}", std::process::id()));
    fs::write(&probe, "")?;
    fs::remove_file(probe)?;
    read_index(directory).map(drop)
}

/// Writes the reports of a run on one agent, and adds them to the index. Reports of other agents and of
/// other cases stay. Several processes may write into the same directory.
///
/// # Errors
///
/// When something cannot be written, or the index that is there is not one.
pub fn write(directory: &Path, agent: &str, reports: &[CaseReport]) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    // Until it is closed, nobody else adds to the index.
    let lock = File::open(directory)?;
    lock.lock()?;
    let mut index = read_index(directory)?;
    let stem = free_stem(agent, &index);
    let entries = index.entry(agent).or_insert_with(|| Value::Object(Map::new()));
    let Value::Object(entries) = entries else { return Err(not_an_index()) };
    for report in reports {
        let name = format!("{stem}_case_{}", report.id.replace(['.', ' ', '/'], "_"));
        let text = serde_json::to_string_pretty(&report.json())? + "\n";
        fs::write(directory.join(format!("{name}.json")), text)?;
        fs::write(directory.join(format!("{name}.html")), report.page())?;
        entries.insert(report.id.clone(), report.entry(&format!("{name}.json")));
    }
    let text = serde_json::to_string_pretty(&index)? + "\n";
    replace(directory, INDEX, &text)?;
    replace(directory, "index.html", &index::page(&index))
}

/// The index that is there; an empty one if there is none.
fn read_index(directory: &Path) -> io::Result<Map<String, Value>> {
    match fs::read(directory.join(INDEX)) {
        Ok(text) => serde_json::from_slice(&text).map_err(|_| not_an_index()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Map::new()),
        Err(error) => Err(error),
    }
}

fn not_an_index() -> io::Error {
    io::Error::other(format!("its {INDEX} is no index of reports; choose another directory"))
}

/// Replaces a file at once, so that nobody reads a half of it.
fn replace(directory: &Path, name: &str, text: &str) -> io::Result<()> {
    let new = directory.join(format!(".{name}.new"));
    fs::write(&new, text)?;
    fs::rename(new, directory.join(name))
}

/// What the names of an agent's files begin with: the same as before if it is in the index, and what no
/// other agent has if it is not.
fn free_stem(agent: &str, index: &Map<String, Value>) -> String {
    let stem_of = |entries: &Value| {
        let entry = entries.as_object()?.values().next()?;
        let (stem, _) = entry["reportfile"].as_str()?.rsplit_once("_case_")?;
        // A file of this name is going to be written.
        (!stem.contains(['/', '\\'])).then(|| stem.to_owned())
    };
    if let Some(stem) = index.get(agent).and_then(stem_of) {
        return stem;
    }
    let taken: Vec<String> = index.values().filter_map(stem_of).collect();
    let first = stem(agent);
    let further = (2..).map(|number: usize| format!("{first}_{number}"));
    let mut stems = [first.clone()].into_iter().chain(further);
    stems.find(|stem| !taken.contains(stem)).expect("there is no end of them")
}

/// What the names of an agent's files begin with, by the suite's rule: lower-case ASCII letters and digits
/// stay.
fn stem(agent: &str) -> String {
    let kept = |c: char| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { ' ' };
    let kept: String = agent.trim().to_lowercase().chars().map(kept).take(STEM_MAX).collect();
    kept.trim().replace(' ', "_")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn files_are_named_as_the_suite_names_them() {
        assert_eq!(stem("AutobahnServer/0.4.10"), "autobahnserver_0_4_10");
        assert_eq!(stem(" ws://a/ "), "ws___a");
        assert_eq!(stem("漢字"), "");
        assert_eq!(stem(&"a".repeat(300)).len(), STEM_MAX);
    }

    #[test]
    fn two_agents_share_no_files() {
        let Value::Object(index) = json!({
            "a/1": {"1.1.1": {"reportfile": "a_1_case_1_1_1.json"}},
            "a 1": {"1.1.1": {"reportfile": "a_1_2_case_1_1_1.json"}},
            "b": {},
            "evil": {"1.1.1": {"reportfile": "../../evil_case_1_1_1.json"}},
        }) else {
            unreachable!("it is an object")
        };
        for (agent, stem) in
            [("a/1", "a_1"), ("a 1", "a_1_2"), ("a.1", "a_1_3"), ("b", "b"), ("evil", "evil")]
        {
            assert_eq!(free_stem(agent, &index), stem, "{agent}");
        }
    }
}
