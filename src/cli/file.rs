//! The configuration file: options by their long names, in TOML.
//!
//! What it says is handed to the parser of the command line as if it had been typed before the rest, so that it
//! takes the same values, with the same errors, and an option that is typed wins.

use std::ffi::OsString;
use std::fs;
use std::path::Path;

use clap::{Arg, ArgAction, Command};
use toml::{Table, Value};

use super::effective::{id_of, options};

/// How alike a key and an option must be for the one to be meant by the other, from 0 to 1.
const ALIKE: f64 = 0.8;

/// The words of the file's options, without those that are typed. What is wrong in it is said of the file.
pub(super) fn words(
    path: &Path,
    command: &Command,
    is_typed: impl Fn(&str) -> bool,
) -> Result<Vec<OsString>, String> {
    let name = path.display();
    let text = fs::read_to_string(path).map_err(|error| format!("cannot read {name}: {error}"))?;
    let words =
        words_of(&text, command, is_typed).map_err(|problem| format!("{name}: {problem}"))?;
    // Alone, so that an error is one of the file.
    let program = OsString::from(command.get_name());
    let mut alone = command.clone();
    let parsed = alone.try_get_matches_from_mut([&program].into_iter().chain(&words));
    parsed.map_err(|error| {
        let problem = error.to_string();
        let problem = problem.split("\n\n").next().unwrap_or_default();
        format!("{name}: {}", problem.trim_start_matches("error: "))
    })?;
    Ok(words)
}

fn words_of(
    text: &str,
    command: &Command,
    is_typed: impl Fn(&str) -> bool,
) -> Result<Vec<OsString>, String> {
    let table: Table = text.parse().map_err(|error: toml::de::Error| error.to_string())?;
    let mut words = Vec::new();
    for (key, value) in &table {
        let Some(option) = options(command).find(|option| option.get_long() == Some(key)) else {
            return Err(unknown(key, command));
        };
        let own = words_of_one(option, value).map_err(|problem| format!("'{key}': {problem}"))?;
        if !is_typed(id_of(option)) {
            words.extend(own);
        }
    }
    Ok(words)
}

fn unknown(key: &str, command: &Command) -> String {
    let likeness = |name: &str| strsim::jaro_winkler(&key.replace('_', "-"), name);
    let names = options(command).filter_map(Arg::get_long);
    let nearest = names.max_by(|one, other| likeness(one).total_cmp(&likeness(other)));
    let tip =
        nearest.filter(|name| likeness(name) >= ALIKE).map(|name| format!("; write '{name}'"));
    format!(
        "unknown key '{key}'{}",
        tip.unwrap_or_else(|| "; 'ringecho --help' lists the options".into())
    )
}

/// What would have to be typed for this value.
fn words_of_one(option: &Arg, value: &Value) -> Result<Vec<OsString>, String> {
    let name = option.get_long().expect("it is called so");
    if !option.get_action().takes_values() {
        return match value {
            Value::Boolean(true) => Ok(vec![format!("--{name}").into()]),
            Value::Boolean(false) => Ok(Vec::new()),
            _ => Err("write true or false".into()),
        };
    }
    let values = match value {
        Value::Array(values) if matches!(option.get_action(), ArgAction::Append) => {
            values.as_slice()
        }
        Value::Array(_) => return Err("write one value, not a list".into()),
        one => std::slice::from_ref(one),
    };
    let word = |value: &Value| match value {
        Value::String(text) => Ok(format!("--{name}={text}").into()),
        Value::Integer(number) => Ok(format!("--{name}={number}").into()),
        _ => Err("write a whole number, or text in quotes".to_owned()),
    };
    values.iter().map(word).collect()
}

#[cfg(test)]
mod tests {
    use super::super::command;
    use super::*;

    fn read(text: &str) -> Result<Vec<OsString>, String> {
        words_of(text, &command(), |id| id == "workers")
    }

    #[test]
    fn values_become_the_words_that_would_be_typed() {
        let text = "listen = ['[::1]:9001', 'unix:/a']\nidle-timeout = '2min'\nbuffers = 8\nworkers = 3\n\
                    ipv6-only = false\nno-page = true\ntls-cert = 'a'";
        let expected = [
            "--listen=[::1]:9001",
            "--listen=unix:/a",
            "--idle-timeout=2min",
            "--buffers=8",
            "--no-page",
            "--tls-cert=a",
        ];
        let mut found = read(text).expect("options");
        found.sort();
        let mut expected = expected.map(OsString::from);
        expected.sort();
        assert_eq!(found, expected);
        assert_eq!(read(""), Ok(Vec::new()));
    }

    #[test]
    fn what_is_wrong_is_named_with_what_to_write() {
        for (text, problem) in [
            ("idle_timeout = '1s'", "unknown key 'idle_timeout'; write 'idle-timeout'"),
            ("worker = 1", "unknown key 'worker'; write 'workers'"),
            ("zzz = 1", "unknown key 'zzz'; 'ringecho --help' lists the options"),
            ("help = true", "unknown key 'help'; 'ringecho --help' lists the options"),
            ("config = 'a'", "unknown key 'config'; 'ringecho --help' lists the options"),
            ("no-page = 1", "'no-page': write true or false"),
            ("buffers = [1]", "'buffers': write one value, not a list"),
            ("buffers = true", "'buffers': write a whole number, or text in quotes"),
            ("buffers = 1.5", "'buffers': write a whole number, or text in quotes"),
            ("listen = [['a']]", "'listen': write a whole number, or text in quotes"),
            ("[listen]\na = 1", "'listen': write a whole number, or text in quotes"),
        ] {
            assert_eq!(read(text), Err(problem.into()), "{text}");
        }
        for (text, place) in [("workers = ", "line 1"), ("a = 1\na = 2", "line 2")] {
            let problem = read(text).expect_err("no TOML");
            assert!(problem.contains(place), "{problem}");
        }
    }
}
