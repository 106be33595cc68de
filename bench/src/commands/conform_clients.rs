//! `ringbench conform --serve`

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use ringecho::listen::{Address, Endpoint, Transport};
use ringecho::protocol::Acceptor;
use ringecho::tls::{self, Certificates, Source, Tls};

use super::conform::{cannot_write, check_that_files_differ, chosen, columns, how};
use super::live_line::LiveLine;
use super::output::Problems;
use super::{Failure, Outcome, command_line};
use crate::case_report;
use crate::cli::Conform;
use crate::conform::serving::{News, Until};
use crate::conform::text::View;
use crate::conform::{Report, Results, Suite, junit};
use crate::stop::Stop;

/// Tests the clients that come, until the stop is requested or what the options say.
///
/// # Errors
///
/// When a case of one of them is not as expected or was not run, or no client has run any.
pub(super) fn serve(
    options: &Conform,
    endpoint: &Endpoint,
    stop: &Stop,
    output: &mut impl Write,
) -> Outcome {
    if options.tls.is_given() {
        return Err(Failure::Usage(
            "--ca, --insecure and --tls-resume are about servers; --serve tests clients".to_owned(),
        ));
    }
    let acceptor = acceptor(options, endpoint)?;
    let suite = chosen(Suite::clients(), options)?.over_tls(acceptor.is_some());
    let files = Files::of(options);
    files.prepare()?;
    check_that_files_differ(options)?;
    let until = if options.once { Until::Reported } else { Until::Stopped };
    let cases = suite.selected()?.len();
    let (live, writing) = (Mutex::new(LiveLine::on_terminal()), Mutex::new(files.clone()));
    let listening = Box::new(move |news: News<'_>| match news {
        News::Judged { agent, case, verdict, done } => {
            let line = format!(
                "{agent}: {done} of {cases} cases, last {} {}",
                case.number, verdict.behavior
            );
            live.lock().unwrap_or_else(PoisonError::into_inner).show(&line);
        }
        // What cannot be written now cannot be written at the end, and is said then.
        News::ReportsWanted(reports) => {
            writing.lock().unwrap_or_else(PoisonError::into_inner).write(reports);
        }
    });
    let serving = suite.serve_through(&endpoint.address, acceptor, until, stop, listening)?;
    let mut problems = Problems::default();
    let greeting = format!("{cases} cases for clients on {}\n", serving.url());
    problems
        .note_standard_output(output.write_all(greeting.as_bytes()).and_then(|()| output.flush()));
    let mut reports = serving.wait();
    LiveLine::on_terminal().clear();
    let command = command_line();
    let how = how(options);
    for report in &mut reports {
        report.results.command.clone_from(&command);
        let text = report.styled(&View { how: &how, columns: columns() });
        let page = format!("\n{}\n\n{text}", report.results.agent);
        let written = output.write_all(page.as_bytes()).and_then(|()| output.flush());
        problems.note_standard_output(written);
    }
    if reports.is_empty() {
        problems.note(Err("no client has run a case".to_owned()));
    }
    for problem in files.write(&reports) {
        problems.note(Err(problem));
    }
    let outcome = problems.outcome(Ok(()));
    match reports.iter().all(Report::is_as_expected) {
        true => outcome,
        false => outcome.and(Err(Failure::Failed(Vec::new()))),
    }
}

/// The server's side of TLS, if that is spoken.
fn acceptor(options: &Conform, endpoint: &Endpoint) -> Result<Option<Arc<dyn Acceptor>>, Failure> {
    let own = options.tls_cert.clone().zip(options.tls_key.clone());
    let certificates = match (endpoint.transport, own) {
        (Transport::Plain, None) if !options.tls_self_signed => return Ok(None),
        (Transport::Plain, _) => {
            return Err(Failure::Usage(
                "--tls-cert and --tls-self-signed need --serve wss://ADDRESS:PORT".to_owned(),
            ));
        }
        (Transport::Tls, Some((certificate, key))) => {
            Certificates::Files(vec![tls::Files { certificate, key }])
        }
        (Transport::Tls, None) if options.tls_self_signed => Certificates::SelfSigned,
        (Transport::Tls, None) => {
            return Err(Failure::Usage(
                "TLS needs a certificate: add --tls-cert FILE --tls-key FILE, or --tls-self-signed"
                    .to_owned(),
            ));
        }
    };
    let addresses = match &endpoint.address {
        Address::Tcp(address) => vec![address.ip()],
        Address::Unix(_) => Vec::new(),
    };
    let source = Source { certificates, client_ca: None };
    // Whether a client likes the certificate is its own affair.
    let (tls, _) = Tls::load(&source, &addresses).map_err(|error| error.to_string())?;
    Ok(Some(Arc::new(tls)))
}

/// The files that are written whenever a client asks for reports, and at the end.
#[derive(Debug, Clone)]
struct Files {
    report: Option<PathBuf>,
    json: Option<PathBuf>,
    junit: Option<PathBuf>,
}

impl Files {
    fn of(options: &Conform) -> Files {
        let Conform { report, json, junit, .. } = options.clone();
        Files { report, json, junit }
    }

    /// Checks that they can be written, before a client comes.
    fn prepare(&self) -> Result<(), String> {
        for path in self.json.iter().chain(&self.junit) {
            let opened = File::options().write(true).create(true).truncate(false).open(path);
            opened.map_err(|error| cannot_write(path, &error))?;
        }
        match &self.report {
            Some(directory) => {
                case_report::prepare(directory).map_err(|error| cannot_write(directory, &error))
            }
            None => Ok(()),
        }
    }

    /// Writes the reports of all clients, and returns what cannot be written.
    fn write(&self, reports: &[Report]) -> Vec<String> {
        let all: Vec<&Results> = reports.iter().map(|report| &report.results).collect();
        let mut problems = Vec::new();
        let mut note = |path: &Path, written: io::Result<()>| {
            problems.extend(written.err().map(|error| cannot_write(path, &error)));
        };
        if let Some(path) = &self.json {
            note(path, write_json(path, &all));
        }
        if let Some(path) = &self.junit {
            note(path, std::fs::write(path, junit::document(&all)));
        }
        if let Some(directory) = &self.report {
            for report in reports {
                note(directory, report.write(directory));
            }
        }
        problems
    }
}

fn write_json(path: &Path, all: &[&Results]) -> io::Result<()> {
    let mut output = BufWriter::new(File::create(path)?);
    serde_json::to_writer_pretty(&mut output, all)?;
    writeln!(output)?;
    output.flush()
}
