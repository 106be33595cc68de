//! The command line: its options, their limits and defaults, and what is printed.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;
use clap::error::ErrorKind;
use clap::{Parser, Subcommand, ValueEnum};

use crate::buffer::HEADROOM;
use crate::cpus::{self, CpuList};
use crate::engine::wait::WaitStrategy;
use crate::engine::{BufferConfig, Engine};
use crate::listen::{self, Address};
use crate::offload;
use crate::protocol::{Policy, Protocol, Settings, Subprotocol};
use crate::server::{Config, Server, Statistics};

/// The largest `--message-max`, in octets: 1 GiB.
pub const MESSAGE_MAX_MAX: u64 = 1 << 30;
/// The longest `--spin-us`: a second.
pub const SPIN_US_MAX: u32 = 1_000_000;
/// The most workers.
pub const WORKERS_MAX: u16 = 1024;

/// A WebSocket echo server for Linux on io_uring: one system call a message.
///
/// Every message comes back as it was sent, text or binary, fragment by fragment. SIGINT and
/// SIGTERM close all connections with code 1001, wait for at most 5 seconds and print a summary; a
/// second one ends the server at once. SIGUSR1 writes the statistics file.
#[derive(Debug, Parser)]
#[command(
    version,
    max_term_width = 100,
    args_conflicts_with_subcommands = true,
    disable_help_subcommand = true
)]
pub struct Cli {
    /// What to do instead of serving.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// Where to listen, ADDR:PORT or unix:/PATH; may be given several times. Port 0 means a free
    /// port.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9001", value_parser = address)]
    pub listen: Vec<Address>,

    /// The mode of Unix sockets' files, octal, such as 660 [default: what the umask leaves].
    #[arg(long, value_name = "MODE", value_parser = unix_mode)]
    pub unix_mode: Option<u32>,

    /// Worker threads [default: one for each processor in --cpus].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=i64::from(WORKERS_MAX)))]
    pub workers: Option<u16>,

    /// The processors that workers are pinned to, such as 0,2-5 [default: all that are allowed].
    #[arg(long, value_name = "LIST")]
    pub cpus: Option<CpuList>,

    /// How bytes reach the kernel.
    #[arg(long, value_enum, default_value_t = EngineChoice::Auto)]
    pub engine: EngineChoice,

    /// How a worker waits for the next message [default: adaptive; block with tokio-uring].
    #[arg(long, value_enum)]
    pub wait: Option<Wait>,

    /// How long adaptive and sqpoll spin before they sleep, in microseconds.
    #[arg(long, value_name = "N", default_value_t = 50,
          value_parser = clap::value_parser!(u32).range(1..=i64::from(SPIN_US_MAX)))]
    pub spin_us: u32,

    /// Whether the kernel echoes small messages by itself.
    #[arg(long, value_enum, default_value_t = OffloadChoice::Off)]
    pub offload: OffloadChoice,

    /// What is spoken.
    #[arg(long, value_enum, default_value_t = ProtocolChoice::Websocket)]
    pub protocol: ProtocolChoice,

    /// The largest message, inflated, at most 1GiB; a larger one is answered with close code 1009.
    #[arg(long, value_name = "SIZE", default_value = "64MiB", value_parser = message_max)]
    pub message_max: u64,

    /// How messages are echoed that the client has compressed (permessage-deflate, RFC 7692).
    #[arg(long, value_enum, default_value_t = Compression::Mirror)]
    pub compression: Compression,

    /// The level at which messages are compressed again, from 1, the fastest, to 9, the smallest.
    #[arg(long, value_name = "N", default_value_t = 6,
          value_parser = clap::value_parser!(u8).range(1..=9))]
    pub compression_level: u8,

    /// Subprotocol to accept: one by name, or any, which accepts the first one that a client offers.
    #[arg(long, value_name = "NAME|any", default_value = "any")]
    pub subprotocol: Subprotocol,

    /// Connections open at a time, over all workers; a further one is answered with status 503.
    #[arg(long, value_name = "N", default_value_t = 100_000,
          value_parser = clap::value_parser!(u32).range(1..))]
    pub connections_max: u32,

    /// Pinned buffers of each worker: a power of two, at most 32768.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = buffers)]
    pub buffers: u16,

    /// The size of a pinned buffer, from 1KiB to 1MiB, a multiple of 64 octets.
    #[arg(long, value_name = "SIZE", default_value = "16KiB", value_parser = buffer_size)]
    pub buffer_size: u32,

    /// Writes the counters to this file as JSON, at the end and at SIGUSR1.
    #[arg(long, value_name = "PATH")]
    pub stats_file: Option<PathBuf>,
}

/// What the program does when it does not serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Subcommand)]
pub enum Command {
    /// Shows what matters for latency on this machine, and changes nothing.
    Doctor {
        /// As JSON, for machines.
        #[arg(long)]
        json: bool,
    },
}

/// When the kernel echoes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OffloadChoice {
    /// For a worker's only connection, when it has sent 64 small messages one by one; where it cannot be
    /// had, a line says why not.
    Auto,
    /// For as many connections as there is room for; an error where it cannot be had.
    On,
    /// Never.
    Off,
}

/// The names of the engines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum EngineChoice {
    /// io_uring where it can be had, else epoll, with a line that says why.
    Auto,
    /// io_uring: one system call a message.
    Uring,
    /// epoll: three system calls a message.
    Epoll,
    /// io_uring by way of a runtime: six system calls a message.
    #[cfg(feature = "tokio-uring")]
    TokioUring,
}

/// What can be spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ProtocolChoice {
    /// WebSocket, RFC 6455.
    Websocket,
    /// None: whatever comes goes back, octet by octet.
    Tcp,
}

/// The names of the wait strategies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Wait {
    /// Sleeps in the kernel: least processor time, most latency.
    Block,
    /// Never sleeps: takes its processor whole.
    Spin,
    /// Spins while messages keep arriving and the processor is not needed by others, else sleeps.
    Adaptive,
    /// A thread of the kernel polls for submissions; it takes a processor while there is traffic.
    Sqpoll,
}

/// What becomes of offers to compress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Compression {
    /// By the octets that they came in, inflated only to be checked; compressed again for clients
    /// whose parameters do not allow that.
    Mirror,
    /// Always inflated and compressed again.
    Deflate,
    /// Not at all: the extension is declined.
    Off,
}

impl Cli {
    /// Whether the options go together.
    ///
    /// # Errors
    ///
    /// A usage error, for `clap` to print.
    pub fn checked(self) -> Result<Cli, clap::Error> {
        let complain = |text| {
            Err(<Cli as clap::CommandFactory>::command().error(ErrorKind::ArgumentConflict, text))
        };
        if self.protocol == ProtocolChoice::Tcp && self.subprotocol != Subprotocol::Any {
            return complain(
                "--subprotocol has no effect with --protocol tcp; leave one of them out",
            );
        }
        match (self.engine, self.wait) {
            (EngineChoice::Epoll, Some(Wait::Sqpoll)) => {
                complain("--wait sqpoll is io_uring's; use it with --engine uring")
            }
            #[cfg(feature = "tokio-uring")]
            (EngineChoice::TokioUring, Some(Wait::Spin | Wait::Adaptive | Wait::Sqpoll)) => {
                complain(
                    "tokio-uring waits in its own way, --wait block; use others with --engine uring",
                )
            }
            _ => Ok(self),
        }
    }

    /// How a worker waits, given or not.
    fn wait(&self) -> Wait {
        let default = match self.engine {
            EngineChoice::Auto | EngineChoice::Uring | EngineChoice::Epoll => Wait::Adaptive,
            #[cfg(feature = "tokio-uring")]
            EngineChoice::TokioUring => Wait::Block,
        };
        self.wait.unwrap_or(default)
    }

    /// What the options ask for.
    ///
    /// # Errors
    ///
    /// One line that says what is wrong with them.
    pub fn config(&self) -> Result<Config, String> {
        let spin = Duration::from_micros(u64::from(self.spin_us));
        Ok(Config {
            listen: self.listen.clone(),
            workers: self.workers.map(usize::from),
            cpus: self.cpus.clone().map(|CpuList(cpus)| cpus),
            unix_mode: self.unix_mode,
            engine: match self.engine {
                EngineChoice::Auto => None,
                EngineChoice::Uring => Some(Engine::Uring),
                EngineChoice::Epoll => Some(Engine::Epoll),
                #[cfg(feature = "tokio-uring")]
                EngineChoice::TokioUring => Some(Engine::TokioUring),
            },
            wait: match self.wait() {
                Wait::Block => WaitStrategy::Block,
                Wait::Spin => WaitStrategy::Spin,
                Wait::Adaptive => WaitStrategy::Adaptive(spin),
                Wait::Sqpoll => WaitStrategy::Sqpoll(spin),
            },
            settings: Settings {
                protocol: match self.protocol {
                    ProtocolChoice::Websocket => Protocol::WebSocket,
                    ProtocolChoice::Tcp => Protocol::Tcp,
                },
                message_max: self.message_max,
                policy: match self.compression {
                    Compression::Mirror => Policy::Mirror,
                    Compression::Deflate => Policy::Deflate,
                    Compression::Off => Policy::Off,
                },
                level: self.compression_level,
            },
            subprotocol: self.subprotocol.clone(),
            connections_max: self.connections_max as usize,
            buffers: BufferConfig { count: self.buffers, bytes: self.buffer_size },
            offload: match self.offload {
                OffloadChoice::Auto => offload::Policy::Auto,
                OffloadChoice::On => offload::Policy::On,
                OffloadChoice::Off => offload::Policy::Off,
            },
        })
    }

    /// The line that says that the server is there.
    pub fn greeting(&self, server: &Server) -> String {
        let scheme = match self.protocol {
            ProtocolChoice::Websocket => "ws",
            ProtocolChoice::Tcp => "tcp",
        };
        let addresses = server.addresses().iter().map(|address| match address {
            Address::Tcp(address) => format!("{scheme}://{address}"),
            Address::Unix(_) => address.to_string(),
        });
        let workers = server.cpus().len();
        let plural = if workers == 1 { "" } else { "s" };
        let mut text = format!(
            "ringecho listening on {} (engine {}, {workers} worker{plural} on CPU{plural} {}, \
             wait {}",
            addresses.collect::<Vec<String>>().join(" "),
            server.engine().name(),
            cpus::list(server.cpus()),
            name(self.wait()),
        );
        if self.protocol == ProtocolChoice::Websocket {
            let _ = write!(text, ", compression {}", name(self.compression));
        }
        match server.offload() {
            offload::Policy::Off => {}
            offload::Policy::On => text.push_str(", offload on"),
            offload::Policy::Auto => text.push_str(", offload auto"),
        }
        text + ")"
    }
}

/// What a server without options is started with.
///
/// # Errors
///
/// None, unless the options contradict their defaults.
pub fn defaults() -> Result<Config, String> {
    Cli::parse_from(["ringecho"]).config()
}

/// A value's name on the command line.
fn name(value: impl ValueEnum) -> String {
    value.to_possible_value().expect("no value is hidden").get_name().to_owned()
}

/// The summary at the end: a counter a line, summed, then each worker's where there are several.
pub fn summary(statistics: &Statistics) -> String {
    let mut text = String::new();
    let columns: Vec<serde_json::Value> = std::iter::once(&statistics.total)
        .chain(statistics.workers.iter().filter(|_| statistics.workers.len() > 1))
        .map(|snapshot| serde_json::to_value(snapshot).expect("numbers"))
        .collect();
    let mut line = |name: &str, cells: Vec<String>| {
        let _ = write!(text, "{name:<22}");
        for cell in cells {
            let _ = write!(text, " {cell:>14}");
        }
        text.push('\n');
    };
    if columns.len() > 1 {
        let workers = (0..statistics.workers.len()).map(|number| format!("worker-{number}"));
        line("", std::iter::once("total".into()).chain(workers).collect());
    }
    for name in columns[0].as_object().expect("a struct").keys() {
        let cells = columns.iter().map(|column| match &column[name] {
            serde_json::Value::Number(number) if number.is_f64() => {
                format!("{:.3}", number.as_f64().expect("a float"))
            }
            number => number.to_string(),
        });
        line(name, cells.collect());
    }
    text
}

fn address(text: &str) -> Result<Address, &'static str> {
    if let Some(path) = text.strip_prefix(listen::UNIX) {
        // What connect(2) takes, with the octet that ends it.
        return match path.len() {
            1..=107 => Ok(Address::Unix(path.into())),
            0 => Err("write the path of the socket behind unix:, such as unix:/run/ringecho.sock"),
            _ => Err("the path of a Unix socket has at most 107 octets"),
        };
    }
    text.parse().map(Address::Tcp).map_err(
        |_| "write an IP address and a port, such as 127.0.0.1:9001, 0.0.0.0:9001 or [::1]:9001, or unix:/PATH",
    )
}

fn unix_mode(text: &str) -> Result<u32, &'static str> {
    u32::from_str_radix(text, 8)
        .ok()
        .filter(|&mode| mode <= 0o777)
        .ok_or("an octal number from 0 to 777, such as 660")
}

fn size(text: &str, range: std::ops::RangeInclusive<u64>) -> Result<u64, String> {
    let limits =
        || format!("a size from {} to {}", ByteSize(*range.start()), ByteSize(*range.end()));
    let size = ByteSize::from_str(text)
        .map_err(|_| format!("write {} as a number with an optional unit, like 64MiB", limits()))?
        .as_u64();
    if range.contains(&size) { Ok(size) } else { Err(limits()) }
}

fn message_max(text: &str) -> Result<u64, String> {
    size(text, 1..=MESSAGE_MAX_MAX)
}

fn buffer_size(text: &str) -> Result<u32, String> {
    let size = size(text, 2 * HEADROOM as u64..=1 << 20)?;
    if size % 64 == 0 { Ok(size as u32) } else { Err("a multiple of 64".into()) }
}

fn buffers(text: &str) -> Result<u16, String> {
    match u16::from_str(text) {
        Ok(count) if count.is_power_of_two() => Ok(count),
        _ => Err("a power of two from 1 to 32768".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Cli, clap::Error> {
        Cli::try_parse_from([&["ringecho"], arguments].concat()).and_then(Cli::checked)
    }

    #[test]
    fn the_defaults_are_those_of_the_documents() {
        let config = parse(&[]).expect("no options").config().expect("defaults");
        assert_eq!(config.listen, [Address::Tcp("127.0.0.1:9001".parse().expect("an address"))]);
        assert_eq!((config.engine, config.unix_mode), (None, None));
        assert_eq!(config.wait, WaitStrategy::Adaptive(Duration::from_micros(50)));
        assert_eq!(config.settings.message_max, 64 << 20);
        assert_eq!((config.settings.policy, config.settings.level), (Policy::Mirror, 6));
        assert_eq!((config.workers, config.cpus), (None, None));
        assert_eq!(config.buffers, BufferConfig { count: 256, bytes: 16 << 10 });
    }

    #[test]
    fn the_doctor_takes_no_option_of_the_server() {
        let command = |arguments: &[&str]| parse(arguments).expect("a command").command;
        assert_eq!(command(&[]), None);
        assert_eq!(command(&["doctor"]), Some(Command::Doctor { json: false }));
        assert_eq!(command(&["doctor", "--json"]), Some(Command::Doctor { json: true }));
        for arguments in [
            &["doctor", "--workers", "2"][..],
            &["--workers", "2", "doctor"],
            &["--json"],
            &["doctor", "doctor"],
        ] {
            assert_eq!(parse(arguments).expect_err("wrong").exit_code(), 2, "{arguments:?}");
        }
    }

    #[test]
    fn sizes_take_units() {
        for (text, octets) in [("1", 1), ("64KiB", 65_536), ("2M", 2_000_000), ("1GiB", 1 << 30)] {
            assert_eq!(parse(&["--message-max", text]).expect(text).message_max, octets);
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
            ["--compression", "gzip"],
            ["--compression-level", "0"],
            ["--compression-level", "10"],
            ["--listen", "9001"],
            ["--cpus", "1-"],
            ["--cpus", ""],
        ] {
            assert_eq!(parse(&arguments).expect_err("wrong").exit_code(), 2, "{arguments:?}");
        }
    }
}
