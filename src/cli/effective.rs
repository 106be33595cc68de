//! The options as they were given, and where each came from.

use std::fmt;
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command};
use toml::Value;

/// The options that a configuration file can have.
pub(super) fn options(command: &Command) -> impl Iterator<Item = &Arg> {
    command.get_arguments().filter(|option| {
        option.get_long().is_some() && !["help", "version", "config"].contains(&id_of(option))
    })
}

pub(super) fn id_of(option: &Arg) -> &str {
    option.get_id().as_str()
}

/// Where a setting comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Source {
    CommandLine,
    File(PathBuf),
    Default,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::CommandLine => f.write_str("command line"),
            Source::File(path) => write!(f, "{}", path.display()),
            Source::Default => f.write_str("default"),
        }
    }
}

/// One option of the server.
#[derive(Debug, Clone, PartialEq)]
struct Setting {
    name: String,
    /// As TOML has it; none if the default is no value of the option.
    value: Option<Value>,
    /// What the help says of such a default.
    default: String,
    source: Source,
}

/// The options of the server, in the order of its help. Displayed as a configuration file that says the same, with
/// where each comes from.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Effective(Vec<Setting>);

impl Effective {
    pub(super) fn new(
        command: &Command,
        matches: &ArgMatches,
        is_typed: impl Fn(&str) -> bool,
        file: Option<&Path>,
    ) -> Effective {
        let setting = |option: &Arg| {
            let id = id_of(option);
            let source = match (matches.value_source(id), file) {
                (Some(ValueSource::CommandLine), Some(path)) if !is_typed(id) => {
                    Source::File(path.to_owned())
                }
                (Some(ValueSource::CommandLine), _) => Source::CommandLine,
                (_, _) => Source::Default,
            };
            Setting {
                name: option.get_long().expect("only those with a name").to_owned(),
                value: value(option, matches),
                default: default_in_words(option),
                source,
            }
        };
        Effective(options(command).map(setting).collect())
    }
}

fn value(option: &Arg, matches: &ArgMatches) -> Option<Value> {
    let id = id_of(option);
    if !option.get_action().takes_values() {
        return Some(Value::Boolean(matches.get_flag(id)));
    }
    let one = |text: &std::ffi::OsStr| {
        let text = text.to_string_lossy();
        match text.parse::<i64>() {
            // A mode such as 0660 is no number.
            Ok(number) if number.to_string() == text => Value::Integer(number),
            Ok(_) | Err(_) => Value::String(text.into_owned()),
        }
    };
    let mut values: Vec<Value> = matches.get_raw(id)?.map(one).collect();
    let is_list = matches!(option.get_action(), clap::ArgAction::Append);
    if is_list { Some(Value::Array(values)) } else { values.pop() }
}

/// `any`, of a help that ends with `[default: any].`
fn default_in_words(option: &Arg) -> String {
    let help = option.get_help().map(ToString::to_string).unwrap_or_default();
    let words = help.split_once("[default: ").and_then(|(_, rest)| rest.split_once(']'));
    words.map_or_else(String::new, |(words, _)| format!(": {words}"))
}

impl fmt::Display for Effective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = |setting: &Setting| match &setting.value {
            Some(value) => (format!("{} = {value}", setting.name), setting.source.to_string()),
            None => (format!("# {}", setting.name), format!("default{}", setting.default)),
        };
        let lines: Vec<(String, String)> = self.0.iter().map(line).collect();
        let width = lines.iter().map(|(text, _)| text.chars().count()).max().unwrap_or(0);
        lines.iter().try_for_each(|(text, source)| writeln!(f, "{text:width$}  # {source}"))
    }
}
