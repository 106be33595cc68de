//! The server's command line: its own words and any others. Reading it ends in a configuration, in help, or in a
//! usage error with something to read.

use std::ffi::OsString;
use std::hint::black_box;
use std::os::unix::ffi::OsStringExt as _;
use std::sync::OnceLock;

use arbitrary::Arbitrary;
use clap::{Command, CommandFactory as _};
use ringecho::cli::Cli;

/// The most words.
const WORDS: usize = 64;

#[derive(Debug, Arbitrary)]
pub(crate) struct Input<'a> {
    words: Vec<Word<'a>>,
}

#[derive(Debug, Arbitrary)]
enum Word<'a> {
    /// An option or a subcommand.
    Known(u8),
    /// An option and its value in one word.
    Assigned(u8, Value<'a>),
    Value(Value<'a>),
}

#[derive(Debug, Arbitrary)]
enum Value<'a> {
    /// One that help names.
    Known(u8),
    Number(i64),
    Size(u16, u8),
    Time(u16, u8),
    Range(u8, u8),
    Address([u8; 4], u16),
    Path(&'a str),
    Text(&'a str),
    Bytes(&'a [u8]),
}

/// The words that the program knows.
struct Vocabulary {
    names: Vec<String>,
    values: Vec<String>,
}

impl Vocabulary {
    fn of(command: &Command) -> Vocabulary {
        let names = ["--help", "--version", "-h", "-V", "help", "--"].map(str::to_owned).to_vec();
        let mut vocabulary = Vocabulary { names, values: vec![String::new()] };
        vocabulary.read(command);
        vocabulary
    }

    fn read(&mut self, command: &Command) {
        for argument in command.get_arguments() {
            self.names.extend(argument.get_long().map(|name| format!("--{name}")));
            self.names.extend(argument.get_short().map(|name| format!("-{name}")));
            let values = argument.get_possible_values();
            self.values.extend(values.iter().map(|value| value.get_name().to_owned()));
            let defaults = argument.get_default_values().iter();
            self.values.extend(defaults.map(|value| value.to_string_lossy().into_owned()));
        }
        for subcommand in command.get_subcommands() {
            self.names.push(subcommand.get_name().to_owned());
            self.read(subcommand);
        }
    }

    fn name(&self, choice: u8) -> String {
        self.names[usize::from(choice) % self.names.len()].clone()
    }

    fn word(&self, word: &Word<'_>) -> OsString {
        match word {
            Word::Known(choice) => self.name(*choice).into(),
            Word::Assigned(choice, value) => {
                let mut word = OsString::from(self.name(*choice) + "=");
                word.push(self.value(value));
                word
            }
            Word::Value(value) => self.value(value),
        }
    }

    fn value(&self, value: &Value<'_>) -> OsString {
        let unit = |units: &[&'static str], choice: u8| units[usize::from(choice) % units.len()];
        match *value {
            Value::Known(choice) => {
                self.values[usize::from(choice) % self.values.len()].clone().into()
            }
            Value::Number(number) => number.to_string().into(),
            Value::Size(size, choice) => {
                let unit = unit(&["", "B", "KiB", "MiB", "GiB", "kB", "M", "PiB"], choice);
                format!("{size}{unit}").into()
            }
            Value::Time(time, choice) => {
                let unit = unit(&["", "s", "ms", "us", "m", "h", "d"], choice);
                format!("{time}{unit}").into()
            }
            Value::Range(first, last) => format!("{first}-{last},{last}").into(),
            Value::Address([a, b, c, d], port) => format!("{a}.{b}.{c}.{d}:{port}").into(),
            Value::Path(path) => format!("unix:/{path}").into(),
            Value::Text(text) => text.into(),
            Value::Bytes(bytes) => OsString::from_vec(bytes.to_vec()),
        }
    }
}

pub(crate) fn run(input: Input<'_>) {
    static VOCABULARY: OnceLock<Vocabulary> = OnceLock::new();
    let known = VOCABULARY.get_or_init(|| Vocabulary::of(&Cli::command()));
    let words = input.words.iter().take(WORDS).map(|word| known.word(word));
    match Cli::read([OsString::from("ringecho")].into_iter().chain(words)) {
        Ok(cli) => drop(black_box(cli.config())),
        Err(error) => check(&error),
    }
}

fn check(error: &clap::Error) {
    let expected = if error.use_stderr() { 2 } else { 0 };
    assert_eq!(error.exit_code(), expected);
    let text = error.render();
    assert!(!text.to_string().trim().is_empty());
    assert!(!text.ansi().to_string().trim().is_empty());
}
