//! The command line of `ringbench`.

use std::ffi::OsString;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, CommandFactory, FromArgMatches as _, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use ringecho::cpus::CpuList;
use ringecho::listen::Endpoint;

use crate::candidate::Between;
use crate::conform::Pattern;
use crate::load::{CONNECTIONS_MAX, Kind, Mix, PIPELINE_MAX, Rate, SIZE_MAX};
use crate::rtt::Wait;
use crate::session::Form;
use crate::target::Target;
use crate::tls::{Accepted, Sessions, Trust};

/// A latency lab for WebSocket echo servers.
///
/// Prints results as tables; --output also writes them as JSON, CSV, .hgrm and .hlog. Ctrl-C ends a
/// measurement early and prints what was measured until then.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
pub struct Cli {
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Measure round trips: one message at a time, comparing each echo with what was sent.
    Rtt(Rtt),
    /// Load a server over many connections, by default in an open loop: messages leave on schedule
    /// whatever comes back, and latency counts from when a message was due.
    Load(Load),
    /// Compare servers in short rounds of shuffled order, with ratios paired by round.
    Compare(Compare),
    /// Test whether a server or a client conforms to RFC 6455 and RFC 7692, with the cases of the
    /// Autobahn suite and own ones.
    Conform(Conform),
    /// Add up results, for example of several machines.
    Merge(Merge),
    /// Write a self-contained HTML page with tables and charts of results.
    Report(Report),
    /// Print completions for a shell.
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Print the man page, of the program or of one of its commands.
    Man {
        /// The command.
        command: Option<String>,
    },
    /// Echo bytes on one connection, for --calibrate.
    #[command(hide = true)]
    Floor(Floor),
    /// Run a command until it ends, or until standard input does.
    #[command(hide = true)]
    Guard(Guard),
}

/// How the client waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum WaitChoice {
    /// Sleep until the echo comes.
    Block,
    /// Poll without pause, which takes a whole CPU.
    Spin,
}

impl Compare {
    /// What happens to servers between their turns.
    pub fn between(&self) -> Between {
        if self.restart { Between::Ended } else { Between::Stopped }
    }
}

impl WaitChoice {
    /// How the client waits.
    pub fn wait(self) -> Wait {
        match self {
            WaitChoice::Block => Wait::Block,
            WaitChoice::Spin => Wait::Spin,
        }
    }
}

/// Options of every measurement.
#[derive(Debug, Args)]
pub struct Common {
    /// Write PREFIX.json, and PREFIX-NAME.csv, .hgrm and .hlog for each measurement.
    #[arg(short, long, value_name = "PREFIX")]
    pub output: Option<PathBuf>,

    /// Random seed, for payloads, masking keys and the order of servers.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = number::<u64>(0..=u64::MAX))]
    pub seed: u64,

    /// CPU to pin the client to [default: the last one that this process may use].
    #[arg(long, value_name = "N", value_parser = number::<usize>(0..=u64::MAX))]
    pub client_cpu: Option<usize>,

    /// CPUs for servers that are started here, such as 0 or 0,2-5 [default: the first one that this
    /// process may use]. For load: CPUs that the server uses, which clients stay away from.
    #[arg(long, value_name = "LIST")]
    pub server_cpus: Option<CpuList>,
}

/// TLS, for targets that begin with wss://.
#[derive(Debug, Clone, Default, Args)]
pub struct TlsOptions {
    /// For wss://: accept the certificates in this PEM file and those that they have signed, instead of
    /// those that this system trusts. Can be given several times.
    #[arg(long, value_name = "FILE")]
    pub ca: Vec<PathBuf>,

    /// For wss://: do not check whose certificate the server shows. The results say so.
    #[arg(long, conflicts_with = "ca")]
    pub insecure: bool,

    /// For wss://: resume the session of an earlier connection, where the server offers that. Otherwise
    /// each connection has a full TLS handshake.
    #[arg(long)]
    pub tls_resume: bool,
}

impl TlsOptions {
    /// Whether there is any.
    pub fn is_given(&self) -> bool {
        self.insecure || self.tls_resume || !self.ca.is_empty()
    }

    /// What they say.
    ///
    /// # Errors
    ///
    /// When a file cannot be used, or this system trusts nobody.
    pub fn trust(&self) -> Result<Trust, String> {
        let accepted = match &self.ca[..] {
            _ if self.insecure => Accepted::Any,
            [] => Accepted::System,
            files => Accepted::Files(files.to_vec()),
        };
        let sessions = if self.tls_resume { Sessions::Resumed } else { Sessions::New };
        Trust::new(&accepted, sessions)
    }
}

/// Messages of round trips.
#[derive(Debug, Args)]
pub struct Messages {
    /// Number of messages per case and round, sent one after the other.
    #[arg(long, value_name = "N", default_value_t = 1000,
          value_parser = number::<u64>(1..=100_000_000))]
    pub messages: u64,

    /// Messages of this many bytes, at most 16777216, instead of a case of the Autobahn suite.
    #[arg(long, value_name = "BYTES", value_parser = number::<u32>(0..=16_777_216))]
    pub size: Option<u32>,

    /// With --size: send binary messages instead of text.
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
    /// ws://HOST:PORT/, wss://HOST:PORT/, unix:/PATH or tcp://HOST:PORT [default: start the ringecho in the directory
    /// of this program on a free port].
    pub target: Option<Target>,

    #[command(flatten)]
    #[expect(missing_docs, reason = "its fields are documented")]
    pub messages: Messages,

    /// Run only this case of the Autobahn suite, such as 9.7.2, or 9.7 for all text cases. Can be
    /// given several times.
    #[arg(long, value_name = "CASE", conflicts_with = "size")]
    pub case: Vec<String>,

    /// Number of rounds. Each runs every case once.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = number::<u32>(1..=10_000))]
    pub rounds: u32,

    /// First measure the floor of this machine, a plain TCP echo, and print results as multiples of it.
    #[arg(long)]
    pub calibrate: bool,

    /// Print the whole latency distribution. Requires a single case.
    #[arg(long)]
    pub histogram: bool,

    /// Write a page and a JSON file per case and an index into this directory, in the format of the
    /// Autobahn suite.
    #[arg(long, value_name = "DIR")]
    pub report: Option<PathBuf>,

    #[command(flatten)]
    #[expect(missing_docs, reason = "its fields are documented")]
    pub tls: TlsOptions,

    #[command(flatten)]
    #[expect(missing_docs, reason = "its fields are documented")]
    pub common: Common,
}

/// Messages and connections of a load.
#[derive(Debug, Args)]
pub struct Traffic {
    /// Number of connections.
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = number::<u32>(1..=CONNECTIONS_MAX as u64))]
    pub connections: u32,

    /// Messages per second over all connections; or max, a closed loop: as fast as echoes come.
    #[arg(long, value_name = "N|max", default_value = "1000", value_parser = rate)]
    pub rate: Rate,

    /// With --rate max: number of messages in flight on each connection.
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = number::<u32>(1..=PIPELINE_MAX as u64))]
    pub pipeline: u32,

    /// Messages to send, see [`Mix`].
    #[arg(
        long,
        value_name = "MIX",
        default_value = "16",
        help = "Messages to send: BYTES[:text|:binary][:fragments=N][*WEIGHT], several separated by \
                commas"
    )]
    pub mix: Mix,

    /// Compress messages with permessage-deflate.
    #[arg(long)]
    pub compress: bool,

    /// Close and reopen each connection after this many messages.
    #[arg(long, value_name = "N", value_parser = number::<u64>(1..=u64::MAX))]
    pub reconnect_every: Option<u64>,

    /// Compare every N-th echo of a connection byte by byte. Type, length and sequence number of every
    /// echo are checked.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = number::<u64>(1..=u64::MAX))]
    pub verify_every: u64,

    /// Number of client threads, pinned to --client-cpu and the CPUs after it.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = number::<u16>(1..=1024))]
    pub threads: u16,

    /// Busy-wait just before a message is due, so that it leaves on time. Takes whole CPUs.
    #[arg(long)]
    pub spin: bool,
}

/// `ringbench load`
#[derive(Debug, Args)]
pub struct Load {
    /// ws://HOST:PORT/, wss://HOST:PORT/, unix:/PATH or tcp://HOST:PORT.
    pub target: Target,

    #[command(flatten)]
    #[expect(missing_docs, reason = "its fields are documented")]
    pub traffic: Traffic,

    /// How long to measure, such as 10s or 5m.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    pub duration: Duration,

    /// Warm-up time before that. Its messages do not count.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = duration_or_none)]
    pub warm_up: Duration,

    /// How long to wait for echoes after the last message; what is not back by then is lost.
    #[arg(long, value_name = "TIME", default_value = "3s", value_parser = duration_or_none)]
    pub drain: Duration,

    /// One kind of message, of this many bytes, instead of --mix.
    #[arg(long, value_name = "BYTES", conflicts_with = "mix",
          value_parser = number::<u32>(0..=SIZE_MAX as u64))]
    pub size: Option<u32>,

    /// With --size: binary messages instead of text.
    #[arg(long, requires = "size")]
    pub binary: bool,

    #[command(flatten)]
    #[expect(missing_docs, reason = "its fields are documented")]
    pub tls: TlsOptions,

    #[command(flatten)]
    #[expect(missing_docs, reason = "its fields are documented")]
    pub common: Common,
}

impl Load {
    /// The messages of --mix or --size.
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
    /// JSON files that --output has written.
    #[arg(required = true, num_args = 1..)]
    pub results: Vec<PathBuf>,

    /// File to write the page to.
    #[arg(short, long, value_name = "FILE", default_value = "report.html")]
    pub output: PathBuf,
}

/// `ringbench compare`
#[derive(Debug, Args)]
pub struct Compare {
    /// [NAME=]ws://HOST:PORT/, or wss://, or [NAME=]COMMAND, which is started and ended. {port} in it is
    /// replaced by the port to serve WebSocket on, {tls-port} by one to serve it on over TLS (so is {port}
    /// after wss://), {tcp-port} by one to echo plain bytes on. Ratios are to the first.
    #[arg(required = true, num_args = 2..)]
    pub targets: Vec<String>,

    #[command(flatten)]
    #[expect(missing_docs, reason = "its fields are documented")]
    pub messages: Messages,

    /// Load each server for this long per round, such as 2s, instead of measuring round trips. Options
    /// of ringbench load apply.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub load: Option<Duration>,

    #[command(flatten)]
    #[expect(missing_docs, reason = "its fields are documented")]
    pub traffic: Traffic,

    /// Number of rounds, after one that does not count. At least 6 are needed for intervals.
    #[arg(long, value_name = "N", default_value_t = 15, value_parser = number::<u32>(1..=10_000))]
    pub rounds: u32,

    /// Restart each command for each round, so that intervals also cover differences between starts.
    /// Otherwise each is started once and suspended (SIGSTOP) while others are measured.
    #[arg(long)]
    pub restart: bool,

    #[command(flatten)]
    #[expect(missing_docs, reason = "its fields are documented")]
    pub tls: TlsOptions,

    #[command(flatten)]
    #[expect(missing_docs, reason = "its fields are documented")]
    pub common: Common,
}

/// `ringbench conform`
#[derive(Debug, Clone, Args)]
pub struct Conform {
    /// ws://HOST:PORT/, wss://HOST:PORT/ or unix:/PATH; or COMMAND, which is started and ended, with {port}
    /// where the port to serve on belongs, or {tls-port} if it speaks TLS there; {port} after wss:// is
    /// that, too [default: start the ringecho in the directory of this program on a
    /// free port].
    pub target: Option<String>,

    /// Test clients instead: serve the cases at ADDRESS:PORT, wss://ADDRESS:PORT or unix:/PATH, by the protocol of the
    /// Autobahn suite (/getCaseCount, /runCase?case=N&agent=NAME and so on), until Ctrl-C.
    #[arg(long, value_name = "ADDRESS", conflicts_with_all = ["target", "agent", "jobs", "write_expected"])]
    pub serve: Option<Endpoint>,

    /// With --serve wss://: the certificate and those that lead to an authority, in PEM.
    #[arg(long, value_name = "FILE", requires = "serve", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,

    /// With --tls-cert: its key, in PEM.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,

    /// With --serve wss://: a certificate that no authority has signed, made for this run.
    #[arg(long, requires = "serve", conflicts_with = "tls_cert")]
    pub tls_self_signed: bool,

    /// With --serve: end after the first client has asked for its report (/updateReports).
    #[arg(long, requires = "serve")]
    pub once: bool,

    /// Run only these cases, such as 9.7.2, 7.* or several: 7.*,9.1.3. Can be given several times.
    #[arg(long, value_name = "CASES", value_delimiter = ',')]
    pub case: Vec<Pattern>,

    /// Leave out these cases. Can be given several times.
    #[arg(long, value_name = "CASES", value_delimiter = ',')]
    pub exclude: Vec<Pattern>,

    /// File with the verdicts of cases that are known not to pass. Any difference fails, also if one
    /// passes.
    #[arg(long, value_name = "FILE")]
    pub expected: Option<PathBuf>,

    /// Write the cases that do not pass into this file, for --expected. What --expected says of cases
    /// that are not run stays, so it may be the same file.
    #[arg(long, value_name = "FILE")]
    pub write_expected: Option<PathBuf>,

    /// Name of what is tested [default: what the server calls itself, or the target].
    #[arg(long, value_name = "NAME")]
    pub agent: Option<String>,

    /// Number of cases that run at a time.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = number::<u16>(1..=1024))]
    pub jobs: u16,

    /// Send fewer messages: a tenth in section 9, a twentieth in sections 12 and 13.
    #[arg(long)]
    pub quick: bool,

    /// Fail cases that are NON-STRICT or FAILED BY CLIENT, which the RFC allows.
    #[arg(long)]
    pub strict: bool,

    /// Write a page and a JSON file per case and an index into this directory, in the format of the
    /// Autobahn suite. Reports of other agents and other cases in it stay.
    #[arg(long, value_name = "DIR")]
    pub report: Option<PathBuf>,

    /// Write everything that is known of each case as JSON; with --serve, a list of such results.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,

    /// Write a JUnit report, as CI systems show it.
    #[arg(long, value_name = "FILE")]
    pub junit: Option<PathBuf>,

    /// Random seed of masking keys.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = number::<u64>(0..=u64::MAX))]
    pub seed: u64,

    #[command(flatten)]
    #[expect(missing_docs, reason = "its fields are documented")]
    pub tls: TlsOptions,
}

/// `ringbench merge`
#[derive(Debug, Args)]
pub struct Merge {
    /// JSON files that --output has written, all by the same command.
    #[arg(required = true, num_args = 1..)]
    pub results: Vec<PathBuf>,

    /// Write PREFIX.json, and PREFIX-NAME.csv, .hgrm and .hlog for each measurement.
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

    /// A usage error that is found after the command line was read: `message`, and the usage of the
    /// command.
    pub fn usage_error(&self, message: &str) -> clap::Error {
        let name = match self.command {
            Command::Rtt(_) => "rtt",
            Command::Load(_) => "load",
            Command::Compare(_) => "compare",
            Command::Conform(_) => "conform",
            Command::Merge(_) => "merge",
            Command::Report(_) => "report",
            Command::Completions { .. } => "completions",
            Command::Man { .. } => "man",
            Command::Floor(_) => "floor",
            Command::Guard(_) => "guard",
        };
        complaint(&mut command(), name, ErrorKind::ValueValidation, message)
    }

    /// # Errors
    ///
    /// A usage error, also for options of `compare` that have no effect.
    fn of(
        words: impl IntoIterator<Item = impl Into<OsString> + Clone>,
    ) -> Result<Cli, clap::Error> {
        let words: Vec<OsString> = words.into_iter().map(Into::into).collect();
        let mut command = command();
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
                true => "has no effect with --load; leave one of them out",
                false => "has no effect without --load TIME; add that",
            };
            let message = format!("--{} {explanation}", idle.replace('_', "-"));
            return Err(complaint(command, "compare", ErrorKind::ArgumentConflict, &message));
        }
        Cli::from_arg_matches(&matches)
    }
}

/// The command line. A negative number is a value of its option, which says what to write instead.
pub fn command() -> clap::Command {
    Cli::command().mut_subcommands(|subcommand| {
        subcommand.mut_args(|argument| {
            let takes_value = !argument.is_positional() && argument.get_action().takes_values();
            argument.allow_negative_numbers(takes_value)
        })
    })
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

/// Adds the usage of the subcommand `name` to an error, or that of the program if there is no such
/// subcommand.
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

/// An option that was given to `compare` and has no effect on what it measures.
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
        (_, Ok(_) | Err(_)) => Err("write messages per second, more than 0, or max".to_owned()),
    }
}

/// Reads whole numbers within `range`, and says of other words what to write.
fn number<T: TryFrom<u64>>(
    range: RangeInclusive<u64>,
) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync {
    move |text| {
        let number = text.parse().ok().filter(|number| range.contains(number));
        number.and_then(|number| T::try_from(number).ok()).ok_or_else(|| match range.end() {
            &u64::MAX => format!("write a whole number, at least {}", range.start()),
            end => format!("write a whole number from {} to {end}", range.start()),
        })
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let time = duration_or_none(text)?;
    if time.is_zero() { Err("write more than 0".to_owned()) } else { Ok(time) }
}

fn duration_or_none(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|_| "write a time such as 10s or 5m")?;
    if time > Duration::from_secs(7 * 24 * 3600) {
        return Err("write at most a week, 7d".to_owned());
    }
    Ok(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_is_none_says_what_to_write() {
        for (text, range) in
            [("0", 1..=5), ("6", 1..=5), ("1e3", 1..=5), ("-1", 1..=5), ("", 1..=5)]
        {
            let refused = number::<u16>(range)(text).expect_err(text);
            assert_eq!(refused, "write a whole number from 1 to 5");
        }
        assert_eq!(number::<u16>(1..=5)("5"), Ok(5));
        let refused = number::<u64>(1..=u64::MAX)("0").expect_err("too small");
        assert_eq!(refused, "write a whole number, at least 1");
    }

    #[test]
    fn a_negative_number_is_refused_in_the_words_of_its_option() {
        for subcommand in command().get_subcommands() {
            let name = subcommand.get_name();
            let options = subcommand.get_arguments().filter(|option| !option.is_positional());
            for option in options.filter(|option| option.get_action().takes_values()) {
                let option = format!("--{}", option.get_long().expect("a long name"));
                // Some take any text. Then something else is missing, or nothing.
                if let Err(error) = Cli::of(["ringbench", name, &option, "-1"]) {
                    assert_ne!(error.kind(), ErrorKind::UnknownArgument, "{name} {option}");
                }
            }
        }
        let error = Cli::of(["ringbench", "load", "ws://127.0.0.1:1/", "--rate", "-1"]);
        let said = error.expect_err("no rate").to_string();
        assert!(said.contains("write messages per second, more than 0, or max"), "{said}");
    }

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
            ("--load 2s --wait spin", "--wait has no effect with --load"),
            ("--load 2s --messages 5", "--messages has no effect with --load"),
            ("--connections 4", "--connections has no effect without --load TIME"),
            ("--reconnect-every 4", "--reconnect-every has no effect without"),
            ("--compress", "--compress has no effect without"),
        ] {
            let error = read(options).expect_err(options).to_string();
            assert!(error.contains(complaint), "{error}");
        }
    }
}
