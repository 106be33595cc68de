//! The program `ringecho`: starts the server and obeys signals, prints the doctor's report, or shows what a server
//! does.
//!
//! Only this file prints, reads the arguments and decides the exit status: 0 after a stop by a
//! signal, 1 when the server cannot start or go on or an output cannot be written, 2 for a usage
//! error, and 128 plus the signal's number when a second signal, or one during the start, ends the
//! server at once.

#![deny(clippy::print_stderr, clippy::print_stdout)]

use std::env;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{self, ExitCode, exit};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use listenfd::ListenFd;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyModifiers};
use ringecho::admin::{self, Admin, Facts as AdminFacts};
use ringecho::cli::{self, Cli, Command, summary};
use ringecho::doctor::{self, Facts};
use ringecho::linux;
use ringecho::listen::passed::{self, Environment, PassedError};
use ringecho::listen::{Address, Listening};
use ringecho::log::{self, Form, Levels};
use ringecho::sandbox::{self, Call, Needs};
use ringecho::server::{Config, Control, Server, Statistics};
use ringecho::statistics_file::StatisticsFile;
use ringecho::tls;
use ringecho::top::{self, Target};
use rustix::fs::fstat;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::{Handle, Signals};
use tracing::level_filters::LevelFilter;
use tracing::{error, warn};

/// How long after a signal to stop another one is taken for the same: `timeout` and other wrappers pass
/// a signal on that the process has already had as one of their group.
const SAME_SIGNAL: Duration = Duration::from_millis(100);

/// The form of the log, once it has started.
static FORM: OnceLock<Form> = OnceLock::new();

/// With what the thread that obeys signals waits for them: signal handlers wake it through a socket.
const SIGNAL_CALLS: &[Call] = &[Call::Any(libc::SYS_recvfrom)];

fn main() -> ExitCode {
    let outcome = match Cli::read(env::args_os()) {
        Ok(cli) => {
            start_log(&cli);
            match &cli.command {
                Some(Command::Doctor { json }) => examine(*json),
                Some(Command::Top { target, interval }) => watch(target, *interval),
                Some(Command::Config { .. }) => print(&cli.effective.to_string()),
                Some(Command::Completions { shell }) => {
                    print(&cli::completions(*shell, cli::command()))
                }
                Some(Command::Man { command }) => {
                    match cli::man_page(cli::command(), command.as_deref()) {
                        Ok(page) => print(&page),
                        Err(error) => error.exit(),
                    }
                }
                None => serve(&cli),
            }
        }
        // A usage error, which ends the process with status 2.
        Err(error) if error.use_stderr() => error.exit(),
        // Help, or the version.
        Err(error) => printed(error.print()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            complain(&problem);
            ExitCode::FAILURE
        }
    }
}

/// Starts the log, as the options and the environment say.
fn start_log(cli: &Cli) {
    let stream = fstat(io::stderr()).ok().map(|found| (found.st_dev, found.st_ino));
    let named = env::var("JOURNAL_STREAM").ok();
    let form = match cli.log {
        Form::Text if log::is_journal(named.as_deref(), stream) => Form::Journal,
        form => form,
    };
    let _ = FORM.set(form);
    let directives = env::var("RUST_LOG").ok().filter(|text| !text.is_empty());
    let (levels, problem) =
        match (cli.log_level, directives.as_deref().map(Levels::from_directives)) {
            (Some(level), _) => (Levels::from_level(level), None),
            (None, Some(Ok(levels))) => (levels, None),
            (None, Some(Err(problem))) => (Levels::from_level(LevelFilter::INFO), Some(problem)),
            (None, None) => (Levels::from_level(LevelFilter::INFO), None),
        };
    tracing::subscriber::set_global_default(log::subscriber(form, levels, io::stderr))
        .expect("it is started once");
    if let Some(problem) = problem {
        warn!("RUST_LOG: {problem}");
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

/// Shows what a server does until a key, or a signal, ends it. The terminal is as before then.
fn watch(target: &Target, interval: Duration) -> Result<(), String> {
    if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
        return Err(format!(
            "top needs a terminal; the figures are at the path /metrics of {target}"
        ));
    }
    // Before the terminal is touched, so that the error stands where it is looked for.
    let view = top::first(target).map_err(|error| {
        format!("no server answers at {target}: {error}; start one with --admin {target}")
    })?;
    let is_ended = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGHUP, SIGINT] {
        signal_hook::flag::register(signal, is_ended.clone())
            .map_err(|error| format!("cannot watch for signals: {error}"))?;
    }
    let shown = ratatui::try_init().and_then(|mut terminal| {
        top::show(&mut terminal, view, interval, |time| {
            Ok(is_ended.load(Ordering::Relaxed) || key_ends(time)?)
        })
    });
    let restored = ratatui::try_restore();
    shown.and(restored).map_err(|error| format!("cannot use the terminal: {error}"))
}

/// Waits for a key for at most so long: whether it is one that ends the view.
fn key_ends(time: Duration) -> io::Result<bool> {
    if !event::poll(time)? {
        return Ok(false);
    }
    // Raw mode makes a key of Ctrl-C.
    Ok(match event::read()? {
        Event::Key(KeyEvent { code: KeyCode::Char('c'), modifiers, .. }) => {
            modifiers.contains(KeyModifiers::CONTROL)
        }
        Event::Key(KeyEvent { code, .. }) => matches!(code, KeyCode::Char('q') | KeyCode::Esc),
        _ => false,
    })
}

fn serve(cli: &Cli) -> Result<(), String> {
    let passed = passed_sockets().map_err(|error| error.to_string())?;
    let mut config = cli.config();
    if !passed.is_empty() && cli.listens_by_default {
        config.listen.clear();
    }
    let output = cli.stats_file.as_deref().map(Output::open).transpose()?;
    raise_descriptor_limit();
    let is_sandboxed = cli.sandbox == sandbox::Policy::On;
    let of_output = output.as_ref().map(|output| output.file.needs()).unwrap_or_default();
    let of_reload = config.tls.as_ref().map(tls::Source::needs).unwrap_or_default();
    let of_watcher = is_sandboxed.then(|| of_output.clone().and(of_reload));
    let watcher = Watcher::start(output, of_watcher)?;
    let opened = match (&cli.admin, &cli.takeover) {
        (Some(address), None) => Some(open_admin(address, cli)?),
        (Some(_) | None, _) => None,
    };
    let server = Server::start(&config, passed).map_err(|error| error.to_string())?;
    watcher.control.get_or_init(|| server.control());
    let admin = match (&cli.admin, opened) {
        // The older server has let go of the address by now. To end would leave nobody to serve.
        (Some(address), None) => open_admin(address, cli).map_err(|error| warn!("{error}")).ok(),
        (Some(_), opened) => opened,
        (None, _) => None,
    };
    let admin = admin.map(|listening| start_admin(listening, cli, &config, &server)).transpose()?;
    if is_sandboxed {
        for missing in sandbox::enter(&of_output.and(server.needs())).missing {
            warn!("the sandbox is incomplete: {missing}");
        }
    }
    print(&format!("{}\n", cli.greeting(&server, admin.as_ref().map(Admin::address))))?;
    let statistics = server.join().map_err(|error| error.to_string())?;
    if let Some(admin) = admin {
        admin.end();
    }
    let output = watcher.end();
    print(&summary(&statistics))?;
    output.map_or(Ok(()), |mut output| output.write(&statistics))
}

fn open_admin(address: &Address, cli: &Cli) -> Result<Listening, String> {
    admin::open(address, cli.unix_mode).map_err(|error| format!("--admin: {error}"))
}

fn start_admin(
    listening: Listening,
    cli: &Cli,
    config: &Config,
    server: &Server,
) -> Result<Admin, String> {
    let facts = AdminFacts {
        engine: server.engine().name(),
        cpus: server.cpus().to_vec(),
        connections_max: config.connections_max,
        memory_max: Some(config.memory_max).filter(|&bytes| bytes < usize::MAX),
        pinned_bytes: server.cpus().len() * config.buffers.memory_bytes(),
    };
    Admin::start(listening, server.control(), facts, cli.sandbox)
        .map_err(|error| format!("--admin: cannot start: {error}"))
}

/// The sockets that a service manager has passed. No other thread runs yet, because the variables that
/// announce them are taken away.
fn passed_sockets() -> Result<Vec<Listening>, PassedError> {
    let environment = Environment {
        pid: env::var_os("LISTEN_PID"),
        fds: env::var_os("LISTEN_FDS"),
        names: env::var_os("LISTEN_FDNAMES"),
    };
    match environment.count(process::id())? {
        0 => Ok(Vec::new()),
        _ => passed::take(ListenFd::from_env(), &environment),
    }
}

/// Prints to standard output. A reader that has gone away is not an error.
fn print(text: &str) -> Result<(), String> {
    let mut output = io::stdout().lock();
    printed(output.write_all(text.as_bytes()).and_then(|()| output.flush()))
}

fn printed(outcome: io::Result<()>) -> Result<(), String> {
    match outcome {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(format!("cannot write to standard output: {error}"))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Says on standard error what went wrong. Nobody may be there to read it, which is no reason to end.
fn complain(problem: &str) {
    match FORM.get() {
        Some(Form::Json) => error!("{problem}"),
        Some(Form::Journal) => drop(writeln!(io::stderr(), "<3>ringecho: {problem}")),
        Some(Form::Text) | None => drop(writeln!(io::stderr(), "ringecho: {problem}")),
    }
}

/// The thread that obeys signals. It has the statistics file while the server runs, so that there is one
/// writer at a time.
struct Watcher {
    /// Of the server, once it has started.
    control: Arc<OnceLock<Control>>,
    signals: Handle,
    thread: JoinHandle<Option<Output>>,
}

impl Watcher {
    /// Starts it, in a sandbox if it is said what it needs.
    fn start(output: Option<Output>, needs: Option<Needs>) -> Result<Watcher, String> {
        let refused = |step: &str, error: io::Error| match linux::remedy(&error) {
            "" => format!("cannot {step}: {error}"),
            remedy => format!("cannot {step}: {error}; {remedy}"),
        };
        let signals = Signals::new([SIGHUP, SIGINT, SIGTERM, SIGUSR1])
            .map_err(|error| refused("watch for signals", error))?;
        let handle = signals.handle();
        let control = Arc::new(OnceLock::new());
        let started = control.clone();
        let (is_entering, has_entered) = mpsc::channel::<()>();
        let thread = thread::Builder::new()
            .name("signals".into())
            .spawn(move || {
                if let Some(needs) = needs.map(|needs| needs.calling(SIGNAL_CALLS)) {
                    // The main thread says what this kernel cannot enforce.
                    sandbox::enter(&needs);
                }
                drop(is_entering);
                obey(signals, &started, output)
            })
            .map_err(|error| refused("start a thread", error))?;
        // It ends when the sender is dropped.
        let _ = has_entered.recv();
        Ok(Watcher { control, signals: handle, thread })
    }

    /// Ends it, and gives the statistics file back.
    fn end(self) -> Option<Output> {
        self.signals.close();
        self.thread.join().expect("a panic ends the process")
    }
}

/// Obeys signals until the server has ended, and gives the statistics file back.
fn obey(
    mut signals: Signals,
    control: &OnceLock<Control>,
    mut output: Option<Output>,
) -> Option<Output> {
    let mut stopped_at: Option<Instant> = None;
    for signal in signals.forever() {
        match (control.get(), signal) {
            // The terminal may be gone, which is no reason to end.
            (Some(control), SIGHUP) => control.reload(),
            // The files are being read anyway.
            (None, SIGHUP) => {}
            (Some(control), SIGUSR1) => {
                let outcome = output.as_mut().map(|output| output.write(&control.statistics()));
                if let Some(Err(problem)) = outcome {
                    complain(&problem);
                }
            }
            // There is nothing to count yet.
            (None, SIGUSR1) => {}
            (Some(control), _) if stopped_at.is_none() => {
                stopped_at = Some(Instant::now());
                control.stop();
            }
            (Some(_), _) if stopped_at.is_some_and(|at| at.elapsed() < SAME_SIGNAL) => {}
            // The status that a shell reports for a process that the signal has killed.
            (Some(_) | None, _) => exit(128 + signal),
        }
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
