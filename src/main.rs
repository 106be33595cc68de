//! The program `ringecho`: starts the server and obeys signals, or prints the doctor's report.
//!
//! Only this file prints, reads the arguments and decides the exit status: 0 after a stop by a
//! signal, 1 when the server cannot start or go on or an output cannot be written, 2 for a usage
//! error, and 128 plus the signal's number when a second signal ends the server at once.

use std::env;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{ExitCode, exit};
use std::thread;

use ringecho::cli::{self, Cli, Command, summary};
use ringecho::doctor::{self, Facts};
use ringecho::server::{Control, Server, Statistics};
use ringecho::statistics_file::StatisticsFile;
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

fn main() -> ExitCode {
    tracing_subscriber::fmt().with_writer(io::stderr).with_target(false).without_time().init();
    // A usage error ends the process with status 2.
    let cli = Cli::read(env::args_os()).unwrap_or_else(|error| error.exit());
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

/// Prints what affects latency on this machine, for a server with default options.
fn examine(as_json: bool) -> Result<(), String> {
    let report = doctor::examine(Path::new("/"), &Facts::gather(&cli::defaults()));
    if as_json {
        return print(&(serde_json::to_string_pretty(&report).expect("text") + "\n"));
    }
    let size = rustix::termios::tcgetwinsize(io::stdout());
    let width = size.map_or(0, |size| usize::from(size.ws_col));
    // A terminal that does not know its width reports 0.
    print(&if width == 0 { report.to_string() } else { format!("{report:width$}") })
}

fn serve(cli: &Cli) -> Result<(), String> {
    let output = cli.stats_file.as_deref().map(Output::open).transpose()?;
    raise_descriptor_limit();
    let signals = Signals::new([SIGINT, SIGTERM, SIGUSR1])
        .map_err(|error| format!("cannot watch for signals: {error}"))?;
    let server = Server::start(&cli.config()).map_err(|error| error.to_string())?;
    print(&format!("{}\n", cli.greeting(&server)))?;
    let control = server.control();
    let watch = signals.handle();
    let watcher = thread::Builder::new()
        .name("signals".into())
        .spawn(move || obey(signals, &control, output))
        .map_err(|error| format!("cannot start a thread: {error}"))?;
    let statistics = server.join().map_err(|error| error.to_string())?;
    // The watcher gives the statistics file back, so that there is one writer at a time.
    watch.close();
    let output = watcher.join().expect("a panic ends the process");
    print(&summary(&statistics))?;
    output.map_or(Ok(()), |mut output| output.write(&statistics))
}

/// Prints to standard output. A reader that has gone away is not an error.
fn print(text: &str) -> Result<(), String> {
    let mut output = io::stdout().lock();
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(format!("cannot write to standard output: {error}"))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Obeys signals until the server has ended, and gives the statistics file back.
fn obey(mut signals: Signals, control: &Control, mut output: Option<Output>) -> Option<Output> {
    let mut is_stopping = false;
    for signal in signals.forever() {
        if signal == SIGUSR1 {
            if let Some(Err(problem)) =
                output.as_mut().map(|output| output.write(&control.statistics()))
            {
                eprintln!("ringecho: {problem}");
            }
            continue;
        }
        if is_stopping {
            // The status that a shell reports for a process that the signal has killed.
            exit(128 + signal);
        }
        is_stopping = true;
        control.stop();
    }
    output
}

/// Where `--stats-file` writes.
struct Output {
    path: PathBuf,
    file: StatisticsFile,
}

impl Output {
    fn open(path: &Path) -> Result<Output, String> {
        let file = StatisticsFile::open(path).map_err(|error| refused(path, &error))?;
        Ok(Output { path: path.to_owned(), file })
    }

    fn write(&mut self, statistics: &Statistics) -> Result<(), String> {
        let text = serde_json::to_string_pretty(statistics).expect("numbers") + "\n";
        self.file.write(text.as_bytes()).map_err(|error| refused(&self.path, &error))
    }
}

fn refused(path: &Path, error: &io::Error) -> String {
    format!("cannot write --stats-file {}: {error}", path.display())
}

/// Raises the soft limit on descriptors to the hard one: each connection needs a descriptor.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    // If it is refused, the engine says so once descriptors run out.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}
