//! Options with named values: for each value its name, what the library calls it, and its help.
//!
//! A table is all there is to such an option: it is parsed by [`parser`] and printed by [`name`].

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};

use tracing::level_filters::LevelFilter;

use crate::engine::Engine;
use crate::engine::wait::WaitStrategy;
use crate::log::Form;
use crate::offload;
use crate::protocol::{Policy, Protocol};
use crate::sandbox;

/// A value of an option.
pub(super) struct Choice<T> {
    name: &'static str,
    value: T,
    help: &'static str,
}

const fn choice<T>(name: &'static str, value: T, help: &'static str) -> Choice<T> {
    Choice { name, value, help }
}

const fn engine(engine: Engine, help: &'static str) -> Choice<EngineChoice> {
    choice(engine.name(), EngineChoice(Some(engine)), help)
}

/// The engine asked for; none stands for `auto`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineChoice(pub Option<Engine>);

pub(super) const ENGINES: &[Choice<EngineChoice>] = &[
    choice(
        "auto",
        EngineChoice(None),
        "io_uring where the kernel allows it, else epoll, with a warning that says why",
    ),
    engine(Engine::Uring, "io_uring: one system call per message"),
    engine(Engine::Epoll, "epoll: three system calls per message"),
    #[cfg(feature = "tokio-uring")]
    engine(
        Engine::TokioUring,
        "io_uring through the tokio-uring runtime: six system calls per message",
    ),
];

pub(super) const WAITS: &[Choice<WaitStrategy>] = &[
    choice("block", WaitStrategy::Block, "Sleep in the kernel: least CPU time, most latency"),
    choice("spin", WaitStrategy::Spin, "Never sleep: occupies its CPU completely"),
    choice(
        "adaptive",
        WaitStrategy::Adaptive,
        "Spin where the next message is expected soon and nothing else needs the CPU, else sleep",
    ),
    choice(
        "sqpoll",
        WaitStrategy::Sqpoll,
        "A kernel thread polls for submissions; it occupies a CPU while there is traffic",
    ),
];

pub(super) const OFFLOADS: &[Choice<offload::Policy>] = &[
    choice(
        "auto",
        offload::Policy::Auto,
        "A worker's only connection, once it has sent 64 small messages one by one; serves without \
         offload, with a warning, where the kernel does not allow it",
    ),
    choice(
        "on",
        offload::Policy::On,
        "As many connections as there is room for; an error where the kernel does not allow it",
    ),
    choice("off", offload::Policy::Off, "No connection"),
];

pub(super) const SANDBOXES: &[Choice<sandbox::Policy>] = &[
    choice(
        "on",
        sandbox::Policy::On,
        "seccomp, Landlock, no capabilities, restricted rings: as far as the kernel can enforce \
         it, with a warning that says what is missing",
    ),
    choice("off", sandbox::Policy::Off, "It keeps all its rights"),
];

pub(super) const LOGS: &[Choice<Form>] = &[
    choice("text", Form::Text, "A line for people; in the journal, with its priority"),
    choice("json", Form::Json, "An object in a line, with a time"),
];

pub(super) const LEVELS: &[Choice<LevelFilter>] = &[
    choice("off", LevelFilter::OFF, "Nothing but why the program ends"),
    choice("warn", LevelFilter::WARN, "What somebody should look at"),
    choice("info", LevelFilter::INFO, "Also what signals and takeovers did"),
    choice(
        "debug",
        LevelFilter::DEBUG,
        "Also a line for each connection that ends, with the reason",
    ),
];

pub(super) const PROTOCOLS: &[Choice<Protocol>] = &[
    choice("websocket", Protocol::WebSocket, "WebSocket (RFC 6455)"),
    choice("tcp", Protocol::Tcp, "Plain TCP: every byte is echoed as it arrives"),
];

pub(super) const COMPRESSIONS: &[Choice<Policy>] = &[
    choice(
        "mirror",
        Policy::Mirror,
        "Echo the compressed bytes as they are; recompress only for clients whose parameters rule \
         that out",
    ),
    choice("deflate", Policy::Deflate, "Always inflate and recompress"),
    choice("off", Policy::Off, "Decline permessage-deflate"),
];

/// Parses the name of a value.
pub(super) fn parser<T: Copy + Send + Sync + 'static>(
    choices: &'static [Choice<T>],
) -> impl TypedValueParser<Value = T> {
    let names = choices.iter().map(|choice| PossibleValue::new(choice.name).help(choice.help));
    PossibleValuesParser::new(names).map(|name| {
        let mut named = choices.iter().filter(|choice| choice.name == name);
        named.next().expect("one of the possible values").value
    })
}

/// The name of a value on the command line.
pub(super) fn name<T: PartialEq>(choices: &'static [Choice<T>], value: T) -> &'static str {
    let mut named = choices.iter().filter(|choice| choice.value == value);
    named.next().expect("every value has a name").name
}
