//! The command line: options, their limits and defaults, and what the server prints.
//!
//! [`Cli::read`] is the only way in, so that options which do not go together are refused before
//! anything starts. This module prints nothing itself and does not end the process.

mod choices;
mod documents;
mod effective;
mod file;
mod limits;
mod output;
mod rules;

use std::ffi::OsString;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use clap_complete::Shell;
use tracing::level_filters::LevelFilter;

use self::choices::{
    COMPRESSIONS, ENGINES, LEVELS, LOGS, OFFLOADS, PROTOCOLS, SANDBOXES, WAITS, parser,
};
use self::effective::Effective;
use self::limits::{connections_per_address, control_frames, memory_max, message_frames, timeout};
use crate::cpus::CpuList;
use crate::engine::pump::{MEMORY_MAX_DEFAULT, Timeouts, Timing};
use crate::engine::wait::WaitStrategy;
use crate::engine::{BufferConfig, Engine};
use crate::listen::{Address, DualStack, Endpoint, Transport};
use crate::log::Form;
use crate::offload;
use crate::page::page;
use crate::protocol::{
    Access, FrameLimits, Origin, Policy, Protocol, RequestPath, Settings, Subprotocol,
};
use crate::sandbox;
use crate::server::Config;
use crate::tls::{self, Certificates, Files};
use crate::top::Target;

pub use self::choices::EngineChoice;
pub use self::documents::{completions, man_page};
pub use self::limits::Limit;
pub use self::output::summary;

/// The largest `--message-max`, in bytes: 1 GiB.
pub const MESSAGE_MAX_MAX: u64 = 1 << 30;
/// The longest `--spin-us`: one second.
pub const SPIN_US_MAX: u32 = 1_000_000;
/// The shortest and the longest `--interval` of `top`.
const INTERVAL_MIN: Duration = Duration::from_millis(100);
const INTERVAL_MAX: Duration = Duration::from_secs(3600);
/// The most workers.
pub const WORKERS_MAX: u16 = 1024;

/// A WebSocket echo server for Linux on io_uring: one system call per message.
///
/// Echoes every message as it was sent, text or binary, fragment by fragment. SIGINT or SIGTERM
/// closes all connections with code 1001, waits --drain-timeout for the peers and prints a summary;
/// another one, more than 100 ms later, ends the server at once. SIGUSR1 writes the statistics
/// file. SIGHUP reads certificates again. Sockets that systemd passes are listened on instead of the default address.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// What to do instead of serving.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// Address to listen on, IP:PORT, ws://IP:PORT, wss://IP:PORT or unix:/PATH; repeat the option for several.
    ///
    /// wss:// speaks TLS and needs a certificate; the others are plain. Port 0 stands for a free port. The address :: takes IPv4 connections too, unless --ipv6-only is given.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9001")]
    pub listen: Vec<Endpoint>,

    /// Whether `listen` is the default.
    #[arg(skip)]
    pub listens_by_default: bool,

    /// The options as they were given, and where; for `ringecho config`.
    #[arg(skip)]
    pub effective: Effective,

    /// Read options from this file, in TOML: `workers = 2`. Those of the command line win; see docs/server.md.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Certificate for wss://, a file in PEM with those that lead to its authority after it. Repeat the option for
    /// several: a client gets the first that is valid for the name it asks for, or else the first.
    ///
    /// SIGHUP reads the files again; open connections are kept.
    #[arg(long, value_name = "FILE")]
    pub tls_cert: Vec<PathBuf>,

    /// Key of the certificate, a file in PEM; one for each --tls-cert, in the same order.
    #[arg(long, value_name = "FILE")]
    pub tls_key: Vec<PathBuf>,

    /// Demand certificates of clients that an authority in this file, in PEM, has signed.
    #[arg(long, value_name = "FILE")]
    pub tls_client_ca: Option<PathBuf>,

    /// Make a certificate at the start, to try out wss://; a warning shows its fingerprint.
    #[arg(long)]
    pub tls_self_signed: bool,

    /// Take over from the server that was started with the same option and path, without refusing a client.
    ///
    /// This server takes the listening sockets of the other one over a Unix socket, accepts connections,
    /// and lets the other one stop as after SIGTERM. Then it waits there for the server that takes over from
    /// it. If no server is there, it starts as usual.
    #[arg(long, value_name = "unix:/PATH", value_parser = unix_path)]
    pub takeover: Option<PathBuf>,

    /// Take only IPv6 connections on the address ::.
    #[arg(long)]
    pub ipv6_only: bool,

    /// File mode of Unix sockets, in octal, such as 660 [default: set by the umask].
    #[arg(long, value_name = "MODE", value_parser = unix_mode)]
    pub unix_mode: Option<u32>,

    /// Number of worker threads [default: one per CPU in --cpus].
    #[arg(long, value_name = "N", value_parser = |text: &str| number(text, 1..=WORKERS_MAX))]
    pub workers: Option<u16>,

    /// CPUs to pin workers to, such as 0,2-5 [default: all in the affinity mask].
    #[arg(long, value_name = "LIST")]
    pub cpus: Option<CpuList>,

    /// Interface to the kernel.
    #[arg(long, default_value = "auto", value_parser = parser(ENGINES))]
    pub engine: EngineChoice,

    /// How a worker waits for the next message [default: adaptive; block with tokio-uring].
    #[arg(long, value_parser = parser(WAITS))]
    pub wait: Option<WaitStrategy>,

    /// Longest spin of adaptive and sqpoll before they sleep, in microseconds [default: 50 plus 4
    /// times what doctor shows as the wake-up, at most 500].
    #[arg(long, value_name = "N", value_parser = |text: &str| number(text, 1..=SPIN_US_MAX))]
    pub spin_us: Option<u32>,

    /// Which connections the kernel echoes by itself, for messages of up to 16 KiB.
    #[arg(long, default_value = "off", value_parser = parser(OFFLOADS))]
    pub offload: offload::Policy,

    /// Wire protocol.
    #[arg(long, default_value = "websocket", value_parser = parser(PROTOCOLS))]
    pub protocol: Protocol,

    /// Largest message, after inflating, at most 1GiB; a larger one is refused with close code 1009.
    #[arg(long, value_name = "SIZE", default_value = "64MiB", value_parser = message_max)]
    pub message_max: u64,

    /// How to echo compressed messages (permessage-deflate, RFC 7692).
    #[arg(long, default_value = "mirror", value_parser = parser(COMPRESSIONS))]
    pub compression: Policy,

    /// Compression level for recompressed messages, from 1 (fastest) to 9 (smallest).
    #[arg(long, value_name = "N", default_value_t = 6,
          value_parser = |text: &str| number(text, 1..=9_u8))]
    pub compression_level: u8,

    /// Memory for recompression over all workers; beyond it, compression is declined.
    #[arg(long, value_name = "SIZE", default_value = "64MiB", value_parser = pool_size)]
    pub recompression_memory: u64,

    /// Subprotocol to accept: one by name, or any, which accepts the first one that a client offers.
    #[arg(long, value_name = "NAME|any", default_value = "any")]
    pub subprotocol: Subprotocol,

    /// Most connections open at a time, over all workers; further ones get status 503.
    #[arg(long, value_name = "N", default_value_t = 100_000,
          value_parser = |text: &str| number(text, 1..=u32::MAX))]
    pub connections_max: u32,

    /// Most connections open at a time from one IP address, or from one /64 of IPv6; further ones get
    /// status 429. 0: any number.
    #[arg(long, value_name = "N", default_value = "0", value_parser = connections_per_address)]
    pub connections_per_address: Limit<usize>,

    /// Serve only this path; others get status 404 [default: any].
    #[arg(long, value_name = "PATH")]
    pub path: Option<RequestPath>,

    /// Accept web pages of this origin only, such as `https://example.com`; others get status 403. Repeat
    /// the option for several [default: any].
    #[arg(long, value_name = "ORIGIN")]
    pub origin: Vec<Origin>,

    /// Do not serve the page that measures round trips from a browser, at `/`.
    #[arg(long)]
    pub no_page: bool,

    /// Longest opening handshake, from the connection on; then the client gets status 408. 0: any time.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = timeout)]
    pub handshake_timeout: Limit<Duration>,

    /// Longest silence of a client before the server sends it a ping. 0: no pings.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = timeout)]
    pub ping_after: Limit<Duration>,

    /// Longest silence of a client; then the connection is closed with code 1001. 0: any time.
    #[arg(long, value_name = "TIME", default_value = "150s", value_parser = timeout)]
    pub idle_timeout: Limit<Duration>,

    /// Longest time that a connection is open; then it is closed with code 1001. 0: any time.
    #[arg(long, value_name = "TIME", default_value = "0", value_parser = timeout)]
    pub lifetime: Limit<Duration>,

    /// Most frames of a message; one more is refused with close code 1008. 0: any number.
    #[arg(long, value_name = "N", default_value = "65536", value_parser = message_frames)]
    pub message_frames_max: Limit<u32>,

    /// Most pings and pongs from a client in a second; one more is refused with close code 1008. 0: any
    /// number.
    #[arg(long, value_name = "N", default_value = "100", value_parser = control_frames)]
    pub control_frames_max: Limit<u16>,

    /// Most heap memory for messages and compression, over all workers; see docs/server.md. 0: any
    /// amount [default: 1GiB, or twice --message-max if that is more].
    #[arg(long, value_name = "SIZE", value_parser = memory_max)]
    pub memory_max: Option<Limit<u64>>,

    /// Longest wait for connections to end after SIGINT or SIGTERM; then they are dropped. 0: any time.
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = timeout)]
    pub drain_timeout: Limit<Duration>,

    /// Pinned buffers per worker: a power of two, at most 32768.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = buffers)]
    pub buffers: u16,

    /// Size of a pinned buffer, from 1KiB to 1MiB, a multiple of 64 bytes.
    #[arg(long, value_name = "SIZE", default_value = "1MiB", value_parser = buffer_size)]
    pub buffer_size: u32,

    /// Memory that each worker keeps for large messages, when they are over, at most 1TiB.
    #[arg(long, value_name = "SIZE", default_value = "128MiB", value_parser = pool_size)]
    pub spill_pool: u64,

    /// Address of the admin listener, IP:PORT or unix:/PATH [default: none].
    ///
    /// It answers HTTP requests for /metrics (Prometheus, OpenMetrics), /healthz, /readyz and /debug/connections, without asking who wants to know: choose an address that only those reach who may. Port 0 stands for a free port. With it, the time that messages stay in the server is measured.
    #[arg(long, value_name = "ADDRESS")]
    pub admin: Option<Address>,

    /// Whether the process gives up the rights that it no longer needs once it serves.
    #[arg(long, default_value = "on", value_parser = parser(SANDBOXES))]
    pub sandbox: sandbox::Policy,

    /// Form of the log, on standard error.
    #[arg(long, value_name = "FORM", default_value = "text", value_parser = parser(LOGS))]
    pub log: Form,

    /// Which lines are logged [default: what the variable RUST_LOG says, or else info].
    #[arg(long, value_name = "LEVEL", value_parser = parser(LEVELS))]
    pub log_level: Option<LevelFilter>,

    /// Write the counters to this file as JSON, at the end and on SIGUSR1.
    #[arg(long, value_name = "PATH")]
    pub stats_file: Option<PathBuf>,
}

/// What the program can do instead of serving.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum Command {
    /// Show what affects latency on this machine, and how to change it; changes nothing itself.
    Doctor {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show what a running server does, live, in this terminal; q ends it.
    Top {
        /// Where its --admin is: IP:PORT, http://IP:PORT or unix:/PATH.
        #[arg(value_name = "ADDRESS", default_value = "127.0.0.1:9100")]
        target: Target,

        /// Time from one question to the next, from 100ms.
        #[arg(long, value_name = "TIME", default_value = "1s", value_parser = interval)]
        interval: Duration,
    },
    /// Show the options that a server would start with, and where each comes from; the output is a file for
    /// --config.
    Config {
        /// Options of the server.
        #[arg(value_name = "OPTIONS", trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<OsString>,
    },
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
}

/// The command line. A negative number is a value of its option, which says what to write instead.
pub fn command() -> clap::Command {
    Cli::command().mut_args(|argument| {
        let takes_value = argument.get_action().takes_values();
        argument.allow_negative_numbers(takes_value)
    })
}

impl Cli {
    /// Reads the arguments, the program's name first.
    ///
    /// # Errors
    ///
    /// A usage error, or the help or version that was asked for; `clap` prints each as it should be.
    pub fn read<T: Into<OsString> + Clone>(
        arguments: impl IntoIterator<Item = T>,
    ) -> Result<Cli, clap::Error> {
        let arguments: Vec<OsString> = arguments.into_iter().map(Into::into).collect();
        let mut command = command();
        let mut matches = command.try_get_matches_from_mut(&arguments).map_err(with_tip)?;
        let given = matches.clone();
        let is_typed = |id: &str| given.value_source(id) == Some(ValueSource::CommandLine);
        let file = matches.get_one::<PathBuf>("config").cloned();
        if let Some(path) = &file {
            let words = file::words(path, &command, is_typed)
                .map_err(|text| command.error(ErrorKind::InvalidValue, text))?;
            let (program, typed) = arguments.split_at(arguments.len().min(1));
            let all = program.iter().cloned().chain(words).chain(typed.iter().cloned());
            matches = command.try_get_matches_from_mut(all).map_err(with_tip)?;
        }
        let mut cli =
            Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut command))?;
        if let Some(Command::Config { options }) = &cli.command {
            let program = arguments.first().cloned();
            return Cli::read_for_config(
                program.into_iter().chain(options.iter().cloned()),
                &mut command,
            );
        }
        cli.effective = Effective::new(&command, &matches, is_typed, file.as_deref());
        let is_given = |id: &str| matches.value_source(id) == Some(ValueSource::CommandLine);
        cli.listens_by_default = !is_given("listen");
        match cli.broken_rule(is_given) {
            Some(text) => Err(command.error(ErrorKind::ArgumentConflict, text)),
            None => Ok(cli),
        }
    }

    /// Reads the options of the server that are to be shown.
    fn read_for_config(
        arguments: impl Iterator<Item = OsString>,
        command: &mut clap::Command,
    ) -> Result<Cli, clap::Error> {
        let mut cli = Cli::read(arguments)?;
        if cli.command.is_some() {
            let text =
                "'ringecho config' shows the options of the server; leave the other command out";
            return Err(command.error(ErrorKind::ArgumentConflict, text));
        }
        cli.command = Some(Command::Config { options: Vec::new() });
        Ok(cli)
    }

    /// The wait strategy as its option names it, given or not.
    fn named_wait(&self) -> WaitStrategy {
        let default = match self.engine {
            #[cfg(feature = "tokio-uring")]
            EngineChoice(Some(Engine::TokioUring)) => WaitStrategy::Block,
            EngineChoice(None | Some(Engine::Uring | Engine::Epoll)) => WaitStrategy::Adaptive,
        };
        self.wait.unwrap_or(default)
    }

    /// The limit on memory, given or not.
    fn named_memory_max(&self) -> Limit<u64> {
        let default = (2 * self.message_max).max(MEMORY_MAX_DEFAULT as u64);
        self.memory_max.unwrap_or(Limit(Some(default)))
    }

    fn dual_stack(&self) -> DualStack {
        if self.ipv6_only { DualStack::Off } else { DualStack::On }
    }

    /// What TLS is made from, where it is spoken.
    fn tls(&self) -> Option<tls::Source> {
        if self.listen.iter().all(|endpoint| endpoint.transport == Transport::Plain) {
            return None;
        }
        let certificates = if self.tls_self_signed {
            Certificates::SelfSigned
        } else {
            let pairs = self.tls_cert.iter().cloned().zip(self.tls_key.iter().cloned());
            Certificates::Files(
                pairs.map(|(certificate, key)| Files { certificate, key }).collect(),
            )
        };
        Some(tls::Source { certificates, client_ca: self.tls_client_ca.clone() })
    }

    /// What the options ask for.
    pub fn config(&self) -> Config {
        // Plain TCP has no handshake, and no pings.
        let is_websocket = self.protocol == Protocol::WebSocket;
        Config {
            listen: self.listen.clone(),
            tls: self.tls(),
            dual_stack: self.dual_stack(),
            workers: self.workers.map(usize::from),
            cpus: self.cpus.clone().map(|CpuList(cpus)| cpus),
            takeover: self.takeover.clone(),
            unix_mode: self.unix_mode,
            engine: self.engine.0,
            wait: self.named_wait(),
            spin_max: self.spin_us.map(|time| Duration::from_micros(time.into())),
            settings: Settings {
                protocol: self.protocol,
                message_max: self.message_max,
                policy: self.compression,
                level: self.compression_level,
                frames: FrameLimits {
                    message: self.message_frames_max.0.unwrap_or(FrameLimits::NONE.message),
                    control: self.control_frames_max.0.unwrap_or(FrameLimits::NONE.control),
                },
            },
            subprotocol: self.subprotocol.clone(),
            access: Access {
                origins: self.origin.clone(),
                path: self.path.clone(),
                page: (!self.no_page).then(|| Arc::new(page(self.path.as_ref()))),
            },
            connections_max: self.connections_max as usize,
            connections_per_address: self.connections_per_address.0,
            memory_max: self.named_memory_max().0.map_or(usize::MAX, |bytes| bytes as usize),
            timeouts: Timeouts {
                handshake: self.handshake_timeout.0.filter(|_| is_websocket),
                ping: self.ping_after.0.filter(|_| is_websocket),
                idle: self.idle_timeout.0,
                lifetime: self.lifetime.0,
                drain: self.drain_timeout.0,
            },
            timing: if self.admin.is_some() { Timing::On } else { Timing::Off },
            buffers: BufferConfig { count: self.buffers, bytes: self.buffer_size },
            spill_pool: self.spill_pool as usize,
            recompression_memory: self.recompression_memory as usize,
            offload: self.offload,
            sandbox: self.sandbox,
        }
    }
}

/// The same error, with what to write instead where an address stands without its option.
fn with_tip(mut error: clap::Error) -> clap::Error {
    let is_word = error.kind() == ErrorKind::InvalidSubcommand
        || error.get(ContextKind::InvalidSubcommand).is_some();
    if is_word && error.get(ContextKind::SuggestedSubcommand).is_none() {
        let tip = "to listen on an address, write '--listen <ADDRESS>'".into();
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip]));
    }
    error
}

/// The configuration of a server without options.
pub fn defaults() -> Config {
    Cli::read(["ringecho"]).expect("the defaults go together").config()
}

fn number<T: Copy + Display + FromStr + PartialOrd>(
    text: &str,
    range: RangeInclusive<T>,
) -> Result<T, String> {
    let number = text.parse().ok().filter(|number| range.contains(number));
    number.ok_or_else(|| format!("write a whole number from {} to {}", range.start(), range.end()))
}

fn interval(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).ok();
    let time = time.filter(|time| (INTERVAL_MIN..=INTERVAL_MAX).contains(time));
    time.ok_or_else(|| "write a time from 100ms to 1h, such as 1s".into())
}

fn unix_path(text: &str) -> Result<PathBuf, String> {
    match Address::from_str(text) {
        Ok(Address::Unix(path)) => Ok(path),
        Err(error) if text.starts_with("unix:") => Err(error.to_string()),
        Ok(Address::Tcp(_)) | Err(_) => {
            Err("write unix: and a path, such as unix:/run/ringecho.takeover".into())
        }
    }
}

fn unix_mode(text: &str) -> Result<u32, &'static str> {
    let is_octal = text.bytes().all(|byte| matches!(byte, b'0'..=b'7'));
    let mode = u32::from_str_radix(text, 8).ok().filter(|&mode| is_octal && mode <= 0o777);
    mode.ok_or("write an octal number from 0 to 777, such as 660")
}

fn size(text: &str, range: RangeInclusive<u64>) -> Result<u64, String> {
    let limits = || {
        let (first, last) = (ByteSize(*range.start()), ByteSize(*range.end()));
        format!("write a size from {first} to {last}, with an optional unit, such as 64KiB")
    };
    let size = ByteSize::from_str(text).map_err(|_| limits())?.as_u64();
    if range.contains(&size) { Ok(size) } else { Err(limits()) }
}

fn message_max(text: &str) -> Result<u64, String> {
    size(text, 1..=MESSAGE_MAX_MAX)
}

fn pool_size(text: &str) -> Result<u64, String> {
    size(text, 0..=1 << 40)
}

fn buffer_size(text: &str) -> Result<u32, String> {
    let size = size(text, 1 << 10..=1 << 20)?;
    if size % 64 == 0 { Ok(size as u32) } else { Err("write a multiple of 64 bytes".into()) }
}

fn buffers(text: &str) -> Result<u16, String> {
    match u16::from_str(text) {
        Ok(count) if count.is_power_of_two() => Ok(count),
        _ => Err("write a power of two from 1 to 32768".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::SPILL_POOL_DEFAULT;
    use crate::protocol::pool::RECOMPRESSION_MEMORY_DEFAULT;

    fn parse(arguments: &[&str]) -> Result<Cli, clap::Error> {
        Cli::read([&["ringecho"], arguments].concat())
    }

    #[test]
    fn a_negative_number_is_refused_in_the_words_of_its_option() {
        for option in command().get_arguments().filter(|it| it.get_action().takes_values()) {
            let option = format!("--{}", option.get_long().expect("a long name"));
            // Some take any text.
            if let Err(error) = parse(&[&option, "-1"]) {
                assert_ne!(error.kind(), ErrorKind::UnknownArgument, "{option}");
            }
        }
        let error = parse(&["--workers", "-1"]).expect_err("no number").to_string();
        assert!(error.contains("write a whole number from 1 to 1024"), "{error}");
    }

    #[test]
    fn the_defaults_are_those_of_the_documents() {
        let config = parse(&[]).expect("no options").config();
        let address = Address::Tcp("127.0.0.1:9001".parse().expect("an address"));
        assert_eq!((config.listen, config.tls), (vec![address.into()], None));
        assert_eq!((config.engine, config.unix_mode), (None, None));
        assert_eq!(config.dual_stack, DualStack::On);
        assert_eq!((config.wait, config.spin_max), (WaitStrategy::Adaptive, None));
        assert_eq!(config.settings.message_max, 64 << 20);
        assert_eq!((config.settings.policy, config.settings.level), (Policy::Mirror, 6));
        assert_eq!((config.workers, config.cpus), (None, None));
        assert_eq!(config.buffers, BufferConfig { count: 4, bytes: 1 << 20 });
        assert_eq!(config.sandbox, sandbox::Policy::On);
        assert_eq!(config.spill_pool, SPILL_POOL_DEFAULT);
        assert_eq!(config.recompression_memory, RECOMPRESSION_MEMORY_DEFAULT);
        assert_eq!(config.timeouts, Timeouts::DEFAULT);
        assert_eq!(config.settings.frames, FrameLimits::DEFAULT);
        assert_eq!((config.connections_per_address, config.memory_max), (None, 1 << 30));
        let page = Some(Arc::new(page(None)));
        assert_eq!(config.access, Access { page, ..Access::default() });
    }

    #[test]
    fn certificates_and_keys_belong_together_by_their_order() {
        let listen = ["--listen", "wss://127.0.0.1:1", "--listen", "127.0.0.1:2"];
        let tls =
            |arguments: &[&str]| parse(&[&listen, arguments].concat()).expect("TLS").config().tls;
        let files = |certificate: &str, key: &str| Files {
            certificate: certificate.into(),
            key: key.into(),
        };
        let given = ["--tls-cert", "a", "--tls-cert", "b", "--tls-key", "c", "--tls-key", "d"];
        let certificates = Certificates::Files(vec![files("a", "c"), files("b", "d")]);
        assert_eq!(tls(&given), Some(tls::Source { certificates, client_ca: None }));
        let given = ["--tls-self-signed", "--tls-client-ca", "e"];
        let own = Certificates::SelfSigned;
        assert_eq!(
            tls(&given),
            Some(tls::Source { certificates: own, client_ca: Some("e".into()) })
        );
    }

    #[test]
    fn zero_switches_a_limit_off() {
        let options = [
            "--handshake-timeout",
            "--ping-after",
            "--idle-timeout",
            "--lifetime",
            "--drain-timeout",
            "--message-frames-max",
            "--control-frames-max",
            "--connections-per-address",
            "--memory-max",
        ];
        let arguments: Vec<&str> = options.iter().flat_map(|option| [*option, "0"]).collect();
        let config = parse(&arguments).expect("no limits").config();
        let Timeouts { handshake, ping, idle, lifetime, drain } = config.timeouts;
        assert_eq!([handshake, ping, idle, lifetime, drain], [None; 5]);
        assert_eq!(config.settings.frames, FrameLimits::NONE);
        assert_eq!((config.connections_per_address, config.memory_max), (None, usize::MAX));
    }

    #[test]
    fn memory_has_room_for_two_of_the_largest_messages() {
        let memory = |arguments: &[&str]| parse(arguments).expect("a limit").config().memory_max;
        assert_eq!(memory(&["--message-max", "1GiB"]), 2 << 30);
        assert_eq!(memory(&["--message-max", "1GiB", "--memory-max", "3GiB"]), 3 << 30);
    }

    #[test]
    fn the_doctor_takes_no_option_of_the_server() {
        let command = |arguments: &[&str]| parse(arguments).expect("a command").command;
        assert_eq!(command(&[]), None);
        assert_eq!(command(&["doctor"]), Some(Command::Doctor { json: false }));
        assert_eq!(command(&["doctor", "--json"]), Some(Command::Doctor { json: true }));
        let top = |target: &str, interval| {
            Some(Command::Top { target: target.parse().expect("an address"), interval })
        };
        let second = Duration::from_secs(1);
        assert_eq!(command(&["top"]), top("127.0.0.1:9100", second));
        let given = ["top", "unix:/a", "--interval", "2s"];
        assert_eq!(command(&given), top("unix:/a", 2 * second));
        for arguments in [
            &["top", "--workers", "2"][..],
            &["top", "9100"],
            &["top", "--interval", "99ms"],
            &["doctor", "--workers", "2"],
            &["--workers", "2", "doctor"],
            &["--json"],
            &["doctor", "doctor"],
        ] {
            assert_eq!(parse(arguments).expect_err("wrong").exit_code(), 2, "{arguments:?}");
        }
    }

    #[test]
    fn spin_us_is_the_longest_spin() {
        let config = |arguments: &[&str]| parse(arguments).expect("they go together").config();
        let time = Some(Duration::from_micros(7));
        for (arguments, wait) in [
            (&["--spin-us", "7"][..], WaitStrategy::Adaptive),
            (&["--wait", "sqpoll", "--spin-us", "7"], WaitStrategy::Sqpoll),
        ] {
            let config = config(arguments);
            assert_eq!((config.wait, config.spin_max), (wait, time), "{arguments:?}");
        }
        assert_eq!(config(&["--wait", "spin"]).wait, WaitStrategy::Spin);
    }

    #[test]
    fn help_is_a_command_too() {
        for arguments in [&["help"][..], &["help", "doctor"], &["help", "help"], &["--help"]] {
            let help = parse(arguments).expect_err("help");
            assert_eq!((help.kind(), help.exit_code()), (ErrorKind::DisplayHelp, 0));
        }
    }

    #[test]
    fn an_address_without_its_option_is_an_error_that_names_the_option() {
        for arguments in [&["9001"][..], &["127.0.0.1:9001"], &["--workers", "1", "127.0.0.1:9001"]]
        {
            let error = parse(arguments).expect_err("no command").to_string();
            assert!(error.contains("--listen <ADDRESS>"), "{error}");
        }
        let error = parse(&["docter"]).expect_err("no command").to_string();
        assert!(error.contains("'doctor'") && !error.contains("--listen"), "{error}");
    }

    #[test]
    fn sizes_take_units() {
        for (text, bytes) in [("1", 1), ("64KiB", 65_536), ("2M", 2_000_000), ("1GiB", 1 << 30)] {
            assert_eq!(parse(&["--message-max", text]).expect(text).message_max, bytes);
        }
        for text in ["0", "2GiB", "-1", "many", ""] {
            let arguments = ["--message-max", text];
            let error = parse(&arguments).expect_err(text);
            assert_eq!(error.exit_code(), 2, "{text}");
        }
    }

    #[test]
    fn numbers_out_of_range_are_usage_errors() {
        for arguments in [
            ["--workers", "0"],
            ["--spin-us", "0"],
            ["--connections-max", "0"],
            ["--buffers", "3"],
            ["--buffers", "65536"],
            ["--buffer-size", "1000"],
            ["--buffer-size", "1025"],
            ["--wait", "never"],
            ["--unix-mode", "8"],
            ["--unix-mode", "+7"],
            ["--unix-mode", "1000"],
            ["--compression", "gzip"],
            ["--compression-level", "0"],
            ["--compression-level", "10"],
            ["--listen", "9001"],
            ["--takeover", "/run/door"],
            ["--takeover", "127.0.0.1:9001"],
            ["--takeover", "unix:"],
            ["--cpus", "1-"],
            ["--cpus", ""],
        ] {
            assert_eq!(parse(&arguments).expect_err("wrong").exit_code(), 2, "{arguments:?}");
        }
    }
}
