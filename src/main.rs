//! The command `ringecho`: starts the server and waits for signals, or shows what the doctor finds.

use std::fs;
use std::io::{self, Write as _};
use std::path::Path;
use std::process::{ExitCode, exit};
use std::thread;

use clap::Parser;
use ringecho::cli::{self, Cli, Command, summary};
use ringecho::doctor::{self, Facts};
use ringecho::server::{Control, Server, Statistics};
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

fn main() -> ExitCode {
    tracing_subscriber::fmt().with_writer(io::stderr).with_target(false).without_time().init();
    let cli = Cli::try_parse().and_then(Cli::checked).unwrap_or_else(|error| error.exit());
    let outcome = match cli.command {
        Some(Command::Doctor { json }) => examine(json),
        None => serve(&cli),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("ringecho: {problem}");
            ExitCode::FAILURE
        }
    }
}

/// Prints what matters for latency here, for a server without options.
fn examine(as_json: bool) -> Result<(), String> {
    let report = doctor::examine(Path::new("/"), &Facts::gather(&cli::defaults()?));
    if as_json {
        return print(&(serde_json::to_string_pretty(&report).expect("text") + "\n"));
    }
    let size = rustix::termios::tcgetwinsize(io::stdout());
    let width = size.map_or(0, |size| usize::from(size.ws_col));
    // A terminal that does not know its width has none.
    print(&if width == 0 { report.to_string() } else { format!("{report:width$}") })
}

fn serve(cli: &Cli) -> Result<(), String> {
    let config = cli.config()?;
    raise_descriptor_limit();
    let signals = Signals::new([SIGINT, SIGTERM, SIGUSR1])
        .map_err(|error| format!("cannot watch for signals: {error}"))?;
    let server = Server::start(&config).map_err(|error| error.to_string())?;
    print(&format!("{}\n", cli.greeting(&server)))?;
    let control = server.control();
    let stats_file = cli.stats_file.clone();
    let watch = signals.handle();
    let watcher = thread::Builder::new()
        .name("signals".into())
        .spawn(move || obey(signals, &control, stats_file.as_deref()))
        .map_err(|error| format!("cannot start a thread: {error}"))?;
    let statistics = server.join().map_err(|error| error.to_string())?;
    // From here on there is one writer of the statistics file.
    watch.close();
    watcher.join().expect("a panic ends the process");
    print(&summary(&statistics))?;
    match &cli.stats_file {
        Some(path) => write_statistics(path, &statistics),
        None => Ok(()),
    }
}

/// A reader that has gone away is no reason to end.
fn print(text: &str) -> Result<(), String> {
    let mut output = io::stdout().lock();
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(format!("cannot write to standard output: {error}"))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn obey(mut signals: Signals, control: &Control, stats_file: Option<&Path>) {
    let mut is_stopping = false;
    for signal in signals.forever() {
        if signal == SIGUSR1 {
            if let Some(path) = stats_file
                && let Err(problem) = write_statistics(path, &control.statistics())
            {
                eprintln!("ringecho: {problem}");
            }
            continue;
        }
        if is_stopping {
            // As if the signal had not been caught, to a shell.
            exit(128 + signal);
        }
        is_stopping = true;
        control.stop();
    }
}

/// Writes a file beside `path` and renames it, so that a reader finds the old one or the new one.
fn write_statistics(path: &Path, statistics: &Statistics) -> Result<(), String> {
    let text = serde_json::to_string_pretty(statistics).expect("numbers") + "\n";
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    fs::write(&beside, text)
        .and_then(|()| fs::rename(&beside, path))
        .map_err(|error| format!("cannot write --stats-file {}: {error}", path.display()))
}

/// Each connection takes a descriptor, so the soft limit goes up to the hard one.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    // Where it is refused, running out is noticed and said.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}
