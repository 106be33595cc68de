//! Runs the echo server, or the client, that can be made wrong on purpose; see `testkit::mutant`.

use std::net::{Ipv4Addr, TcpListener};
use std::process::ExitCode;

use testkit::mutant::{Behavior, Fault, Role, run_cases, serve};

const USAGE: &str = "\
Usage: mutant PORT [FAULT]...          serves on 127.0.0.1
       mutant --client URL [FAULT]...  runs the cases of a conformance server
       mutant --list                   lists the faults";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("mutant: {problem}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<(), String> {
    match arguments {
        [option] if option == "--list" => list(),
        [option, url, faults @ ..] if option == "--client" => {
            let behavior = Behavior::with(&parse(faults, Role::Client)?);
            let agent = if faults.is_empty() { "mutant".to_owned() } else { faults.join("+") };
            let statuses = run_cases(url, &agent, &behavior).map_err(|it| it.to_string())?;
            for status in statuses {
                println!("{} {}", status.case, status.message);
            }
        }
        [port, faults @ ..] => {
            let port: u16 = port.parse().map_err(|_| USAGE.to_owned())?;
            let behavior = Behavior::with(&parse(faults, Role::Server)?);
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port));
            serve(&listener.map_err(|error| format!("port {port}: {error}"))?, behavior);
        }
        [] => return Err(USAGE.to_owned()),
    }
    Ok(())
}

fn parse(names: &[String], role: Role) -> Result<Vec<Fault>, String> {
    let faults: Vec<Fault> = names.iter().map(|name| name.parse()).collect::<Result<_, _>>()?;
    match faults.iter().find(|fault| !fault.fits(role)) {
        Some(fault) => Err(format!("{fault} does not fit a {role:?}").to_lowercase()),
        None => Ok(faults),
    }
}

fn list() {
    for fault in Fault::ALL {
        let rule = fault.rule().unwrap_or("legal");
        println!("{fault:<28} {rule:<18} {}", fault.description());
        println!("{:<47} {}", "", fault.cases().join(" "));
    }
}
