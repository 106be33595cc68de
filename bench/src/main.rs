//! The command `ringbench`: reads the command line, measures, prints.

use std::io::{self, Write};
use std::process::ExitCode;

use ringbench::cli::{self, Cli, Command};
use ringbench::commands::{self, Failure};
use ringbench::guard;
use ringbench::stop::Stop;
use ringecho::cli::{completions, man_page};
use ringecho::cpus::CpuList;

fn main() -> ExitCode {
    let cli = Cli::read();
    if let Command::Guard(options) = &cli.command {
        let cpus = options.cpus.as_ref().map(|CpuList(cpus)| cpus.as_slice());
        guard::run(cpus.unwrap_or_default(), &options.command);
        return ExitCode::SUCCESS;
    }
    let watched = Stop::new().and_then(|stop| stop.watch_signals().map(|()| stop));
    let stop = match watched {
        Ok(stop) => stop,
        Err(error) => {
            complain(&format!("cannot watch for signals: {error}"));
            return ExitCode::FAILURE;
        }
    };
    // It leaves out colours where nobody sees them, or the environment says so (NO_COLOR).
    let mut output = anstream::stdout().lock();
    let outcome = match &cli.command {
        Command::Rtt(options) => commands::rtt(options, &stop, &mut output),
        Command::Load(options) => commands::load(options, &stop, &mut output),
        Command::Compare(options) => commands::compare(options, &stop, &mut output),
        Command::Conform(options) => commands::conform(options, &stop, &mut output),
        Command::Merge(options) => commands::merge(options, &mut output),
        Command::Report(options) => commands::report(options),
        Command::Completions { shell } => print(&completions(*shell, cli::command()), &mut output),
        Command::Man { command } => match man_page(cli::command(), command.as_deref()) {
            Ok(page) => print(&page, &mut output),
            Err(error) => error.exit(),
        },
        Command::Floor(options) => commands::floor(options, &mut output),
        Command::Guard(_) => unreachable!("it has run already"),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Usage(message)) => cli.usage_error(&message).exit(),
        Err(Failure::Failed(lines)) => {
            for line in lines {
                complain(&line);
            }
            ExitCode::FAILURE
        }
    }
}

/// Prints to standard output. A reader that has gone away is not an error.
fn print(text: &str, output: &mut impl Write) -> Result<(), Failure> {
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(format!("cannot write to standard output: {error}").into())
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Prints to standard error. Nobody may be there to read it, which does not change the exit status.
fn complain(line: &str) {
    let _ = writeln!(io::stderr(), "ringbench: {line}");
}
