//! The command `ringbench`: reads the command line, measures, prints.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use ringbench::cli::{Cli, Command};
use ringbench::commands;
use signal_hook::consts::{SIGINT, SIGTERM};

fn main() -> ExitCode {
    let cli = Cli::read();
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // The first ends the measurement, the second the program.
        let registered = signal_hook::flag::register_conditional_shutdown(
            signal,
            128 + signal,
            Arc::clone(&stop),
        )
        .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&stop)));
        if let Err(error) = registered {
            eprintln!("ringbench: cannot watch for signals: {error}");
            return ExitCode::FAILURE;
        }
    }
    let mut output = std::io::stdout().lock();
    let outcome = match &cli.command {
        Command::Rtt(options) => commands::rtt(options, &stop, &mut output),
        Command::Load(options) => commands::load(options, &stop, &mut output),
        Command::Compare(options) => commands::compare(options, &stop, &mut output),
        Command::Merge(options) => commands::merge(options, &mut output),
        Command::Report(options) => commands::report(options),
        Command::Floor(options) => commands::floor(options, &mut output),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("ringbench: {problem}");
            ExitCode::FAILURE
        }
    }
}
