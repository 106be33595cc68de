//! The command line of `ringbench`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, CommandFactory, FromArgMatches as _, Parser, Subcommand, ValueEnum};
use ringecho::cpus::CpuList;

use crate::candidate::Between;
use crate::load::{CONNECTIONS_MAX, Kind, Mix, PIPELINE_MAX, Rate, SIZE_MAX};
use crate::rtt::Wait;
use crate::session::Form;
use crate::target::Target;

/// The latency lab for WebSocket echo servers.
///
/// Results are printed as tables, and with --output written as JSON, CSV, .hgrm and .hlog. Ctrl-C
/// ends a measurement early, with what there is.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Measures round trips: one message at a time, each echo compared with what was sent.
    Rtt(Rtt),
    /// Loads a server with many connections, by default in an open loop: latency counts from when a
    /// message is due, whatever comes back.
    Load(Load),
    /// Compares servers in short rounds, in shuffled order, with ratios paired by round.
    Compare(Compare),
    /// Adds up results, such as those of many machines.
    Merge(Merge),
    /// Makes one page of results, with charts, that needs nothing else to be read.
    Report(Report),
    /// Echoes bytes on one connection, for --calibrate.
    #[command(hide = true)]
    Floor(Floor),
    /// Runs a command until it ends, or until standard input does.
    #[command(hide = true)]
    Guard(Guard),
}

/// How the client waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum WaitChoice {
    /// It sleeps until the echo comes.
    Block,
    /// It asks without pause: takes its processor whole.
    Spin,
}

impl Compare {
    /// What becomes of servers between their turns.
    pub fn between(&self) -> Between {
        if self.restart { Between::Ended } else { Between::Stopped }
    }
}

impl WaitChoice {
    /// What is asked for.
    pub fn wait(self) -> Wait {
        match self {
            WaitChoice::Block => Wait::Block,
            WaitChoice::Spin => Wait::Spin,
        }
    }
}

/// What every measurement has.
#[derive(Debug, Args)]
pub struct Common {
    /// Writes PREFIX.json, and PREFIX-NAME.csv, .hgrm and .hlog for each measurement.
    #[arg(short, long, value_name = "PREFIX")]
    pub output: Option<PathBuf>,

    /// The seed of masking keys, payloads, orders and draws.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,

    /// The processor of the client [default: the last that is allowed].
    #[arg(long, value_name = "N")]
    pub client_cpu: Option<usize>,

    /// The processors of servers that are started here, such as 0 or 0,2-5 [default: the first that is
    /// allowed]; for load, those of the server, to be kept free of clients.
    #[arg(long, value_name = "LIST")]
    pub server_cpus: Option<CpuList>,
}

/// What is sent in a round trip.
#[derive(Debug, Args)]
pub struct Messages {
    /// Messages of a case, one after the other.
    #[arg(long, value_name = "N", default_value_t = 1000,
          value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    pub messages: u64,

    /// Another case than the suite's: messages of this many octets, at most 16777216.
    #[arg(long, value_name = "OCTETS", value_parser = clap::value_parser!(u32).range(0..=16_777_216))]
    pub size: Option<u32>,

    /// With --size: binary messages instead of text.
    #[arg(long, requires = "size")]
    pub binary: bool,

    /// How the client waits for an echo.
    #[arg(long, value_enum, default_value_t = WaitChoice::Block)]
    pub wait: WaitChoice,
}

impl Messages {
    /// The form of messages of --size.
    pub fn form(&self) -> Form {
        if self.binary { Form::Binary } else { Form::Text }
    }
}

/// `ringbench rtt`
#[derive(Debug, Args)]
pub struct Rtt {
    /// ws://HOST:PORT/, unix:/PATH or tcp://HOST:PORT [default: the ringecho beside this program,
    /// started on a free port].
    pub target: Option<Target>,

    #[command(flatten)]
    #[expect(missing_docs, reason = "its fields are documented")]
    pub messages: Messages,

    /// Only this case of the suite, such as 9.7.2, or 9.7 for all text; may be given several times.
    #[arg(long, value_name = "CASE", conflicts_with = "size")]
    pub case: Vec<String>,

    /// How often each case is run, in turns.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub rounds: u32,

    /// Measures the floor of this machine first, a plain TCP echo, and prints results as multiples.
    #[arg(long)]
    pub calibrate: bool,

    /// Prints the whole distribution, where there is one case.
    #[arg(long)]
    pub histogram: bool,

    /// Writes a page and JSON for each case as the Autobahn suite reports it.
    #[arg(long, value_name = "DIR")]
    pub report: Option<PathBuf>,

    #[command(flatten)]
    #[expect(missing_docs, reason = "its fields are documented")]
    pub common: Common,
}

/// What a server is loaded with.
#[derive(Debug, Args)]
pub struct Traffic {
    /// Connections.
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..=CONNECTIONS_MAX as i64))]
    pub connections: u32,

    /// Messages a second over all connections, or max: as fast as echoes come, a closed loop.
    #[arg(long, value_name = "N|max", default_value = "1000", value_parser = rate)]
    pub rate: Rate,

    /// With --rate max: messages under way on each connection.
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..=PIPELINE_MAX as i64))]
    pub pipeline: u32,

    /// Which messages, see [`Mix`].
    #[arg(
        long,
        value_name = "MIX",
        default_value = "16",
        help = "Which messages, OCTETS[:text|:binary][:fragments=N][*WEIGHT], several with commas between"
    )]
    pub mix: Mix,

    /// Compresses messages by permessage-deflate.
    #[arg(long)]
    pub compress: bool,

    /// Closes and opens each connection again after so many messages.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub reconnect_every: Option<u64>,

    /// Of how many messages of a connection one is compared octet by octet; 1: all. Form and length
    /// are checked of all.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    pub verify_every: u64,

    /// The client's threads, pinned to --client-cpu and the processors behind it that are allowed.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: u16,

    /// Stays awake just before a message is due, so that it leaves in time; takes whole processors.
    #[arg(long)]
    pub spin: bool,
}

/// `ringbench load`
#[derive(Debug, Args)]
pub struct Load {
    /// ws://HOST:PORT/, unix:/PATH or tcp://HOST:PORT.
    pub target: Target,

    #[command(flatten)]
    #[expect(missing_docs, reason = "its fields are documented")]
    pub traffic: Traffic,

    /// How long messages count, such as 10s or 5m.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    pub duration: Duration,

    /// Warm-up before that; its messages do not count.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = duration_or_none)]
    pub warm_up: Duration,

    /// How long to wait for echoes after the last message; what is not back by then is lost.
    #[arg(long, value_name = "TIME", default_value = "3s", value_parser = duration_or_none)]
    pub drain: Duration,

    /// One kind of message, of this many bytes, instead of --mix.
    #[arg(long, value_name = "BYTES", conflicts_with = "mix",
          value_parser = clap::value_parser!(u32).range(0..=SIZE_MAX as i64))]
    pub size: Option<u32>,

    /// With --size: binary messages instead of text.
    #[arg(long, requires = "size")]
    pub binary: bool,

    #[command(flatten)]
    #[expect(missing_docs, reason = "its fields are documented")]
    pub common: Common,
}

impl Load {
    /// The messages asked for, by --mix or by --size.
    pub fn mix(&self) -> Mix {
        let Some(size) = self.size else { return self.traffic.mix.clone() };
        let form = if self.binary { Form::Binary } else { Form::Text };
        let kind = Kind { size: size as usize, form, fragments: 1, weight: 1 };
        Mix::new(vec![kind]).expect("the size was checked")
    }
}

/// `ringbench report`
#[derive(Debug, Args)]
pub struct Report {
    /// Results, as --output writes them.
    #[arg(required = true, num_args = 1..)]
    pub results: Vec<PathBuf>,

    /// The page.
    #[arg(short, long, value_name = "FILE", default_value = "report.html")]
    pub output: PathBuf,
}

/// `ringbench compare`
#[derive(Debug, Args)]
pub struct Compare {
    /// [NAME=]ws://HOST:PORT/, or [NAME=]COMMAND that serves on {port}, or plain octets on {tcp-port},
    /// which is started and ended. Ratios are to the first.
    #[arg(required = true, num_args = 2..)]
    pub targets: Vec<String>,

    #[command(flatten)]
    #[expect(missing_docs, reason = "its fields are documented")]
    pub messages: Messages,

    /// Loads the servers in each round for this long, such as 2s, as ringbench load does with the
    /// options of its own, instead of measuring round trips.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub load: Option<Duration>,

    #[command(flatten)]
    #[expect(missing_docs, reason = "its fields are documented")]
    pub traffic: Traffic,

    /// Number of rounds, after one that does not count. Intervals need at least 6.
    #[arg(long, value_name = "N", default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub rounds: u32,

    /// Start each command anew for each round, so that intervals include differences between one
    /// start and the next. Otherwise commands are started once and stopped (SIGSTOP) between rounds.
    #[arg(long)]
    pub restart: bool,

    #[command(flatten)]
    #[expect(missing_docs, reason = "its fields are documented")]
    pub common: Common,
}

/// `ringbench merge`
#[derive(Debug, Args)]
pub struct Merge {
    /// Results, as --output writes them.
    #[arg(required = true, num_args = 1..)]
    pub results: Vec<PathBuf>,

    /// Writes PREFIX.json, and the other formats for each measurement.
    #[arg(short, long, value_name = "PREFIX", required = true)]
    pub output: PathBuf,
}

/// `ringbench floor`
#[derive(Debug, Args)]
pub struct Floor {
    /// How it waits.
    #[arg(long, value_enum, default_value_t = WaitChoice::Block)]
    pub wait: WaitChoice,
}

/// `ringbench guard`
#[derive(Debug, Args)]
pub struct Guard {
    /// The CPUs that the command may use.
    #[arg(long, value_name = "LIST")]
    pub cpus: Option<CpuList>,

    /// The command.
    #[arg(required = true, num_args = 1.., last = true)]
    pub command: Vec<OsString>,
}

impl Cli {
    /// Reads the command line, or ends the program with a usage error or the help.
    pub fn read() -> Cli {
        Cli::of(std::env::args_os()).unwrap_or_else(|error| error.exit())
    }

    /// A usage error that is found after the command line was read: it says `message`, and how the
    /// command is used.
    pub fn usage_error(&self, message: &str) -> clap::Error {
        let name = match self.command {
            Command::Rtt(_) => "rtt",
            Command::Load(_) => "load",
            Command::Compare(_) => "compare",
            Command::Merge(_) => "merge",
            Command::Report(_) => "report",
            Command::Floor(_) => "floor",
            Command::Guard(_) => "guard",
        };
        complaint(&mut Cli::command(), name, ErrorKind::ValueValidation, message)
    }

    /// # Errors
    ///
    /// For what makes no sense, among it options of `compare` that have no effect.
    fn of(
        words: impl IntoIterator<Item = impl Into<OsString> + Clone>,
    ) -> Result<Cli, clap::Error> {
        let words: Vec<OsString> = words.into_iter().map(Into::into).collect();
        let mut command = Cli::command();
        Cli::parsed(&mut command, &words).map_err(|error| {
            let first = words.get(1).and_then(|word| word.to_str());
            with_usage(error, &mut command, first)
        })
    }

    fn parsed(command: &mut clap::Command, words: &[OsString]) -> Result<Cli, clap::Error> {
        let matches = command.try_get_matches_from_mut(words)?;
        if let Some(("compare", compare)) = matches.subcommand()
            && let Some(idle) = idle_option(compare)
        {
            let explanation = match compare.contains_id("load") {
                true => "is of round trips, which --load replaces",
                false => "is of loads, and needs --load TIME",
            };
            let message = format!("--{} {explanation}", idle.replace('_', "-"));
            return Err(complaint(command, "compare", ErrorKind::ArgumentConflict, &message));
        }
        Cli::from_arg_matches(&matches)
    }
}

/// An error of the subcommand `name`, with its usage.
fn complaint(
    command: &mut clap::Command,
    name: &str,
    kind: ErrorKind,
    message: &str,
) -> clap::Error {
    command.build();
    match command.find_subcommand_mut(name) {
        Some(subcommand) => subcommand.error(kind, message),
        None => command.error(kind, message),
    }
}

/// Has an error say how the subcommand `name` is used, or the program if there is none of that name.
fn with_usage(
    mut error: clap::Error,
    command: &mut clap::Command,
    name: Option<&str>,
) -> clap::Error {
    if !error.use_stderr() {
        return error;
    }
    command.build();
    let subcommand = name.filter(|name| command.find_subcommand(name).is_some());
    let usage = match subcommand.and_then(|name| command.find_subcommand_mut(name)) {
        Some(subcommand) => subcommand.render_usage(),
        None => command.render_usage(),
    };
    error.insert(ContextKind::Usage, ContextValue::StyledStr(usage));
    error
}

/// An option that was given to `compare` and is not of what it does, round trips or loads.
fn idle_option(compare: &ArgMatches) -> Option<String> {
    let idle = match compare.contains_id("load") {
        true => Messages::augment_args(clap::Command::new("")),
        false => Traffic::augment_args(clap::Command::new("")),
    };
    let mut options = idle.get_arguments().map(|option| option.get_id().to_string());
    options.find(|id| compare.value_source(id) == Some(ValueSource::CommandLine))
}

fn rate(text: &str) -> Result<Rate, String> {
    match (text, text.parse::<f64>()) {
        ("max", _) => Ok(Rate::Max),
        (_, Ok(rate)) if rate.is_finite() && rate > 0.0 => Ok(Rate::PerSecond(rate)),
        (_, Ok(_) | Err(_)) => Err("write messages a second, more than 0, or max".to_owned()),
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let time = duration_or_none(text)?;
    if time.is_zero() { Err("write more than 0".to_owned()) } else { Ok(time) }
}

fn duration_or_none(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|_| "write a time such as 10s or 5m")?;
    if time > Duration::from_secs(7 * 24 * 3600) {
        return Err("a week is the most".to_owned());
    }
    Ok(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_of_compare_without_effect_is_an_error() {
        let read = |options: &str| {
            let words = "ringbench compare ws://127.0.0.1:1/ ws://127.0.0.1:2/";
            Cli::of(words.split(' ').chain(options.split_whitespace()))
        };
        for options in ["", "--size 5 --binary", "--load 2s --rate max", "--rounds 5 --seed 3"] {
            read(options).expect(options);
        }
        for (options, complaint) in [
            ("--load 2s --wait spin", "--wait is of round trips, which --load replaces"),
            ("--load 2s --messages 5", "--messages is of round trips"),
            ("--connections 4", "--connections is of loads, and needs --load TIME"),
            ("--reconnect-every 4", "--reconnect-every is of loads"),
            ("--compress", "--compress is of loads"),
        ] {
            let error = read(options).expect_err(options).to_string();
            assert!(error.contains(complaint), "{error}");
        }
    }
}
