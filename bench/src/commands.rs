//! What the commands do, from options to tables.

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal as _, Read as _, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use core_affinity::CoreId;
use ringecho::server::list_of;

use crate::cli::{
    Common, Compare, CpuList, Floor, Load, Merge, Messages, Report, Rtt, Traffic, WaitChoice,
};
use crate::compare::{self, Contestant};
use crate::environment::Environment;
use crate::latency::{Latencies, PERCENTILES, write_hlog};
use crate::load::{self, Plan, Progress, Rate};
use crate::report;
use crate::results::{self, Kind, Measurement, Results, Round};
use crate::rtt::{self, Case, Wait};
use crate::server::{Server, program};
use crate::tables;
use crate::target::Target;
use crate::wire_report;

/// A line for standard error.
pub type Outcome = Result<(), String>;

/// What the warning begins with that there are not enough messages for a percentile.
const TOO_FEW: &str = "Too few messages for";

/// Messages of each kind of floor.
const FLOOR_MESSAGES: u64 = 5000;

/// The processors of client and server.
struct Cpus {
    /// The client's, and those behind it that are allowed; without the server's, where that is known
    /// and others are left.
    clients: Vec<usize>,
    /// Those of servers that are started here, at least one.
    servers: Vec<usize>,
}

/// Finds processors for client and server, before anything is pinned.
fn cpus(common: &Common) -> Result<Cpus, String> {
    let allowed: Vec<usize> =
        core_affinity::get_core_ids().unwrap_or_default().iter().map(|cpu| cpu.id).collect();
    let (Some(&first), Some(&last)) = (allowed.first(), allowed.last()) else {
        return Err("the processors that are allowed cannot be found out".to_owned());
    };
    let client = common.client_cpu.unwrap_or(last);
    let told = common.server_cpus.as_ref().map(|CpuList(cpus)| cpus.as_slice()).unwrap_or_default();
    let named = told.iter().map(|&cpu| ("--server-cpus", cpu)).chain([("--client-cpu", client)]);
    for (option, cpu) in named {
        if !allowed.contains(&cpu) {
            return Err(format!(
                "{option}: {cpu} is not among the processors that may be used: {}",
                list_of(&allowed)
            ));
        }
    }
    let at = allowed.iter().position(|&cpu| cpu == client).unwrap_or_default();
    let mut clients: Vec<usize> = allowed[at..].iter().chain(&allowed[..at]).copied().collect();
    clients.retain(|&cpu| cpu == client || !told.contains(&cpu));
    let servers = if told.is_empty() { vec![first] } else { told.to_vec() };
    Ok(Cpus { clients, servers })
}

impl Cpus {
    /// Pins this thread, which is the client.
    fn pin(&self) {
        core_affinity::set_for_current(CoreId { id: self.clients[0] });
    }

    /// Warns where a server that is started here shares the client's processor.
    fn warn(&self, warnings: &mut Vec<String>) {
        let client = self.clients[0];
        if self.servers.contains(&client) {
            warnings.push(format!(
                "Client and server share processor {client}: each waits for the other to leave it."
            ));
        }
    }
}

/// The ringecho beside this program.
fn start_sibling(cpus: &[usize]) -> Result<Server, String> {
    let program = program();
    if !program.exists() {
        return Err(format!(
            "there is no {}; build it (cargo build --release --workspace), or name a target",
            program.display()
        ));
    }
    let mut command = Command::new(program);
    command.args(["--listen", "127.0.0.1:0", "--workers", "1", "--cpus", &list_of(cpus)]);
    // It may use only the processors of the thread that starts it.
    compare::on(cpus, || Server::start(&mut command)).map_err(|error| error.to_string())
}

fn cases(messages: &Messages, names: &[String]) -> Result<Vec<Case>, String> {
    if let Some(octets) = messages.size {
        return Ok(vec![Case {
            name: format!("{octets} octets"),
            octets: octets as usize,
            form: messages.form(),
            messages: messages.messages,
        }]);
    }
    let all = Case::autobahn(messages.messages);
    let is_of = |case: &Case, name: &String| {
        case.name == *name || case.name.starts_with(&format!("{name}."))
    };
    if let Some(name) = names.iter().find(|name| !all.iter().any(|case| is_of(case, name))) {
        return Err(format!(
            "there is no case {name:?}; they are 9.7.1 to 9.7.6 and 9.8.1 to 9.8.6"
        ));
    }
    let chosen = |case: &Case| names.is_empty() || names.iter().any(|name| is_of(case, name));
    Ok(all.into_iter().filter(chosen).collect())
}

/// `ringbench rtt`
///
/// # Errors
///
/// What went wrong, after what was measured until then is printed.
pub fn rtt(options: &Rtt, stop: &AtomicBool, output: &mut impl Write) -> Outcome {
    let mut cases = cases(&options.messages, &options.case)?;
    if options.histogram && cases.len() != 1 {
        return Err("--histogram is of one case; name it with --case or --size".to_owned());
    }
    let cpus = cpus(&options.common)?;
    let mut results = Results::new(Kind::Rtt, command_line(), Environment::here());
    cpus.pin();
    if options.target.is_none() {
        cpus.warn(&mut results.warnings);
    }
    if options.target.as_ref().is_some_and(|target| target.websocket.is_none()) {
        // What has no octets cannot be told from nothing.
        cases.retain(|case| case.octets > 0);
        if cases.is_empty() {
            return Err("plain octets have no empty messages; give a --size above 0".to_owned());
        }
    }
    if options.calibrate {
        results.floor = Some(calibrate(&cpus.servers, options.common.seed, stop)?);
    }
    let (target, _sibling) = target_of(options, &cpus)?;
    results.measurements = cases
        .iter()
        .map(|case| Measurement {
            name: case.name.clone(),
            description: case.description(),
            ..Measurement::default()
        })
        .collect();
    let rounds = Rounds { options, target: &target, stop, begin: Instant::now() };
    let ending = rounds.run(&cases, &mut results.measurements)?;
    results.cut_short = match &ending {
        Ending::Whole => None,
        Ending::Stopped => Some("ended by a signal".to_owned()),
        Ending::Failed(problem) => Some(problem.clone()),
    };
    results.measurements.retain(|measurement| measurement.messages > 0);
    finish(&mut results, options.common.output.as_deref(), output)?;
    if options.histogram
        && let [measurement] = results.measurements.as_slice()
    {
        written(writeln!(output).and_then(|()| measurement.latencies.write_hgrm(output)))?;
    }
    match ending {
        Ending::Failed(problem) => Err(problem),
        Ending::Whole | Ending::Stopped => Ok(()),
    }
}

/// The target, and the server behind it if it is started here.
fn target_of(options: &Rtt, cpus: &Cpus) -> Result<(Target, Option<Server>), String> {
    if let Some(target) = &options.target {
        return Ok((target.clone(), None));
    }
    let sibling = start_sibling(&cpus.servers)?;
    let target = format!("ws://{}/", sibling.address()).parse()?;
    Ok((target, Some(sibling)))
}

/// How rounds of measurements end.
enum Ending {
    Whole,
    /// By a signal.
    Stopped,
    /// With a line for standard error.
    Failed(String),
}

/// Rounds, in each of which every case is measured once.
struct Rounds<'a> {
    options: &'a Rtt,
    target: &'a Target,
    stop: &'a AtomicBool,
    begin: Instant,
}

impl Rounds<'_> {
    /// Adds to the measurement of each case. An error is that a report cannot be written.
    fn run(&self, cases: &[Case], measurements: &mut [Measurement]) -> Result<Ending, String> {
        for round in 0..self.options.rounds {
            for (case, measurement) in cases.iter().zip(&mut *measurements) {
                match self.measure(round, case, measurement)? {
                    Ending::Whole => {}
                    early @ (Ending::Stopped | Ending::Failed(_)) => return Ok(early),
                }
            }
        }
        Ok(Ending::Whole)
    }

    fn measure(
        &self,
        round: u32,
        case: &Case,
        measurement: &mut Measurement,
    ) -> Result<Ending, String> {
        let Rounds { options, target, stop, begin } = self;
        let began = begin.elapsed();
        let seed = options.common.seed.wrapping_add(u64::from(round));
        let outcome = match rtt::run(target, case, options.messages.wait.wait(), seed, stop) {
            Ok(outcome) => outcome,
            Err(failed) => return Ok(Ending::Failed(format!("{target}: {failed}"))),
        };
        if outcome.latencies.count() > 0 {
            add(measurement, case, &outcome, began);
        }
        if round == 0
            && let Some(directory) = &options.report
        {
            wire_report::write(directory, target, case, &outcome)
                .map_err(|error| format!("cannot write to {}: {error}", directory.display()))?;
        }
        Ok(match outcome.problem {
            Some(failed) => Ending::Failed(format!("{target}, case {}: {failed}", case.name)),
            None if stop.load(Relaxed) => Ending::Stopped,
            None => Ending::Whole,
        })
    }
}

fn add(measurement: &mut Measurement, case: &Case, outcome: &rtt::Outcome, began: Duration) {
    let latencies = &outcome.latencies;
    let duration_s = outcome.duration.as_secs_f64();
    measurement.messages += latencies.count();
    measurement.payload_octets += latencies.count() * case.octets as u64;
    measurement.latencies.add(latencies);
    measurement.rounds.push(Round::new(began.as_secs_f64(), duration_s, latencies));
}

fn plan(target: &Target, traffic: &Traffic, cpus: &Cpus, common: &Common) -> Plan {
    Plan {
        connections: traffic.connections as usize,
        rate: traffic.rate,
        pipeline: traffic.pipeline as usize,
        mix: traffic.mix.clone(),
        compresses: traffic.compress,
        reconnect_every: traffic.reconnect_every,
        verify_every: traffic.verify_every,
        threads: traffic.threads.into(),
        cpus: cpus.clients.clone(),
        spins: traffic.spin,
        seed: common.seed,
        ..Plan::new(target.clone())
    }
}

/// `ringbench load`
///
/// # Errors
///
/// What went wrong; what some connections suffered is printed and is none of that.
pub fn load(options: &Load, stop: &AtomicBool, output: &mut impl Write) -> Outcome {
    if options.traffic.pipeline > 1 && options.traffic.rate != Rate::Max {
        return Err("--pipeline goes with --rate max".to_owned());
    }
    let cpus = cpus(&options.common)?;
    let mut plan = plan(&options.target, &options.traffic, &cpus, &options.common);
    (plan.duration, plan.warm_up) = (options.duration, options.warm_up);
    // A server that somebody else has started runs where that one has put it.
    plan.server_cpus = options.common.server_cpus.clone().map(|CpuList(cpus)| cpus);
    let mut results = Results::new(Kind::Load, command_line(), Environment::here());
    let is_terminal = io::stderr().is_terminal();
    let mut begin = None;
    let mut live = |progress: &Progress| {
        if begin.is_none() && !progress.elapsed.is_zero() {
            begin = Some(SystemTime::now() - progress.elapsed);
        }
        if is_terminal {
            eprint!("\r\x1b[K{}", tables::progress(progress, plan.duration));
        }
    };
    let outcome = load::run(&plan, stop, &mut live);
    if is_terminal {
        eprint!("\r\x1b[K");
    }
    let outcome = outcome.map_err(|error| format!("{}: {error}", options.target))?;
    if let Some(begin) = begin.and_then(|begin| begin.duration_since(UNIX_EPOCH).ok()) {
        results.started_at_s = begin.as_secs_f64();
    }
    results.cut_short.clone_from(&outcome.cut_short);
    results.warnings.extend(outcome.warnings);
    for problem in outcome.problems {
        if !results.warnings.iter().any(|warning| warning.contains(&problem)) {
            results.warnings.push(problem);
        }
    }
    let echoed = outcome.measurement.messages;
    let name = outcome.measurement.name.clone();
    results.measurements.push(outcome.measurement);
    finish(&mut results, options.common.output.as_deref(), output)?;
    written(writeln!(
        output,
        "wrong echoes {}, connections failed {}, opened again {}",
        outcome.wrong, outcome.connections_failed, outcome.reconnects
    ))?;
    if let Some(prefix) = &options.common.output {
        // The log has an interval for each second, not one for all.
        let log = write_log(&results, prefix, &name, &outcome.seconds);
        log.map_err(|error| format!("cannot write --output {}: {error}", prefix.display()))?;
    }
    if outcome.wrong > 0 {
        return Err(format!("{} echoes were wrong", outcome.wrong));
    }
    if echoed == 0 {
        return Err("no echo came back".to_owned());
    }
    Ok(())
}

/// `ringbench report`
///
/// # Errors
///
/// When a result cannot be read, or the page cannot be written.
pub fn report(options: &Report) -> Outcome {
    let results: Vec<Results> =
        options.results.iter().map(|path| Results::read(path)).collect::<Result<_, _>>()?;
    std::fs::write(&options.output, report::page(&results))
        .map_err(|error| format!("cannot write {}: {error}", options.output.display()))
}

/// `ringbench compare`
///
/// # Errors
///
/// What went wrong.
pub fn compare(options: &Compare, stop: &AtomicBool, output: &mut impl Write) -> Outcome {
    let names = if options.messages.size.is_none() { vec!["9.7.2".to_owned()] } else { vec![] };
    let [case] = &cases(&options.messages, &names)?[..] else {
        unreachable!("one case was asked for")
    };
    let cpus = cpus(&options.common)?;
    let mut results = Results::new(Kind::Compare, command_line(), Environment::here());
    if options.load.is_none() {
        cpus.pin();
    }
    if options.targets.iter().any(|target| compare::is_command(target)) {
        cpus.warn(&mut results.warnings);
    }
    let mut said: Vec<String> = Vec::new();
    let contestants: Vec<Contestant> = options
        .targets
        .iter()
        .map(|text| Contestant::new(text, &cpus.servers))
        .collect::<Result<_, _>>()?;
    let mut turn = |contestant: &Contestant, round: usize| {
        if stop.load(Relaxed) {
            return Ok(None);
        }
        let failed = |problem: &dyn std::fmt::Display| format!("{}: {problem}", contestant.name);
        let seed = options.common.seed.wrapping_add(round as u64);
        if let Some(duration) = options.load {
            let mut plan = plan(&contestant.target, &options.traffic, &cpus, &options.common);
            // The first round does not count, which warms up enough.
            (plan.duration, plan.warm_up, plan.seed) = (duration, Duration::ZERO, seed);
            let outcome = load::run(&plan, stop, &mut |_| {}).map_err(|error| failed(&error))?;
            if let Some(problem) = outcome.problems.first() {
                return Err(failed(problem));
            }
            for warning in outcome.warnings {
                // The figures in it change from round to round.
                let begins = |known: &String| known.split(':').next() == warning.split(':').next();
                if round > 0 && !said.iter().any(begins) {
                    said.push(warning);
                }
            }
            return Ok(outcome.cut_short.is_none().then(|| whole(outcome.measurement)));
        }
        let began = Instant::now();
        let wait = options.messages.wait.wait();
        let outcome = rtt::run(&contestant.target, case, wait, seed, stop)
            .map_err(|problem| failed(&problem))?;
        if let Some(problem) = outcome.problem {
            return Err(failed(&problem));
        }
        let mut measurement =
            Measurement { description: case.description(), ..Measurement::default() };
        add(&mut measurement, case, &outcome, began.elapsed() - outcome.duration);
        Ok((outcome.latencies.count() == case.messages).then_some(measurement))
    };
    let rounds = options.rounds as usize;
    let mut compared = compare::run(&contestants, rounds, options.common.seed, &mut turn);
    if compared.problem.is_none() && !stop.load(Relaxed) {
        compare::count_syscalls(&contestants, &mut compared.measurements, |contestant| {
            turn(contestant, 0)
        });
    }
    (results.measurements, results.ratios) = (compared.measurements, compared.ratios);
    results.warnings.extend(said);
    results.warnings.extend(compared.warning);
    results.cut_short.clone_from(&compared.problem);
    if stop.load(Relaxed) {
        results.cut_short = Some("ended by a signal".to_owned());
    }
    results.measurements.retain(|measurement| measurement.messages > 0);
    finish(&mut results, options.common.output.as_deref(), output)?;
    match compared.problem {
        Some(problem) => Err(problem),
        None => Ok(()),
    }
}

/// A load as one round, as which it is compared.
fn whole(mut measurement: Measurement) -> Measurement {
    let seconds = measurement.rounds.iter().map(|round| round.duration_s).sum();
    measurement.rounds = vec![Round::new(0.0, seconds, &measurement.latencies)];
    measurement
}

/// `ringbench merge`
///
/// # Errors
///
/// When a result cannot be read, or the sum cannot be written.
pub fn merge(options: &Merge, output: &mut impl Write) -> Outcome {
    let mut all = options.results.iter().map(|path| Results::read(path));
    let mut sum = all.next().expect("one at least is asked for")?;
    for other in all {
        let other = other?;
        if other.kind != sum.kind {
            return Err("results of different commands cannot be added up".to_owned());
        }
        if other.environment != sum.environment {
            let warning = "The parts were measured on different machines.".to_owned();
            if !sum.warnings.contains(&warning) {
                sum.warnings.push(warning);
            }
        }
        for warning in other.warnings {
            if !sum.warnings.contains(&warning) {
                sum.warnings.push(warning);
            }
        }
        sum.cut_short = sum.cut_short.or(other.cut_short);
        // Ratios, floors and costs are one machine's and do not add up.
        sum.ratios.clear();
        sum.floor = None;
        sum.measurements.iter_mut().for_each(|measurement| measurement.cost = None);
        for mut measurement in other.measurements {
            measurement.cost = None;
            match sum.measurements.iter_mut().find(|known| known.name == measurement.name) {
                // The seconds of a load run at the same time, rounds one after the other.
                Some(known) if sum.kind == Kind::Load => known.add_beside(measurement),
                Some(known) => known.add(measurement),
                None => sum.measurements.push(measurement),
            }
        }
    }
    // What was too little for a part may be enough for the sum.
    sum.warnings.retain(|warning| !warning.starts_with(TOO_FEW));
    finish(&mut sum, Some(&options.output), output)
}

/// The command line as it was given.
fn command_line() -> Vec<String> {
    std::env::args().collect()
}

/// Warns, prints the tables and writes the files.
fn finish(results: &mut Results, prefix: Option<&Path>, output: &mut impl Write) -> Outcome {
    for percent in PERCENTILES {
        let few = |measurement: &&Measurement| !measurement.latencies.supports(percent);
        let names: Vec<&str> =
            results.measurements.iter().filter(few).map(|it| it.name.as_str()).collect();
        if !names.is_empty() {
            let warning =
                format!("{TOO_FEW} p{percent}, less than ten lie beyond it: {}.", names.join(", "));
            if !results.warnings.contains(&warning) {
                results.warnings.push(warning);
            }
        }
    }
    if !results.measurements.is_empty() {
        written(output.write_all(tables::page(results).as_bytes()))?;
    }
    let Some(prefix) = prefix else { return Ok(()) };
    write_files(results, prefix)
        .map_err(|error| format!("cannot write --output {}: {error}", prefix.display()))
}

/// A reader that has gone away is no reason to fail.
fn written(outcome: io::Result<()>) -> Outcome {
    match outcome {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(format!("cannot write to standard output: {error}"))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// The file of a measurement's `ending`.
fn file_of(prefix: &Path, name: &str, ending: &str) -> io::Result<BufWriter<File>> {
    // A name becomes a part of a file's name.
    let name: String = name
        .chars()
        .map(|c| if c.is_alphanumeric() || ".-_".contains(c) { c } else { '_' })
        .collect();
    let mut path = prefix.as_os_str().to_owned();
    path.push(format!("-{name}.{ending}"));
    File::create(path).map(BufWriter::new)
}

fn write_log(
    results: &Results,
    prefix: &Path,
    name: &str,
    intervals: &[(Duration, Duration, Latencies)],
) -> io::Result<()> {
    let begin = UNIX_EPOCH + Duration::from_secs_f64(results.started_at_s.max(0.0));
    let intervals = intervals.iter().map(|(from, to, latencies)| (*from, *to, latencies));
    write_hlog(&mut file_of(prefix, name, "hlog")?, name, begin, intervals)
}

fn write_files(results: &Results, prefix: &Path) -> io::Result<()> {
    let mut path = prefix.as_os_str().to_owned();
    path.push(".json");
    results.write(Path::new(&path))?;
    for measurement in &results.measurements {
        let name = &measurement.name;
        measurement.latencies.write_csv(&mut file_of(prefix, name, "csv")?)?;
        measurement.latencies.write_hgrm(&mut file_of(prefix, name, "hgrm")?)?;
        let end = measurement.rounds.last().map_or(0.0, |round| round.begin_s + round.duration_s);
        let first = measurement.rounds.first().map_or(0.0, |round| round.begin_s);
        let [first, end] = [first, end].map(|seconds| Duration::from_secs_f64(seconds.max(0.0)));
        let whole = [(first, end.max(first), measurement.latencies.clone())];
        write_log(results, prefix, name, &whole)?;
    }
    Ok(())
}

/// Measures a plain TCP echo between two processes, once with both asleep while they wait and once
/// with both asking without pause.
fn calibrate(cpus: &[usize], seed: u64, stop: &AtomicBool) -> Result<results::Floor, String> {
    let measure = |choice: WaitChoice| -> Result<u64, String> {
        let failed = |problem: &dyn std::fmt::Display| format!("--calibrate: {problem}");
        let name = match choice {
            WaitChoice::Block => "block",
            WaitChoice::Spin => "spin",
        };
        let program = std::env::current_exe().map_err(|error| failed(&error))?;
        let mut command = Command::new(program);
        let server = compare::on(cpus, || Server::start(command.args(["floor", "--wait", name])))
            .map_err(|error| failed(&error))?;
        let target: Target = format!("tcp://{}", server.address()).parse()?;
        let case = Case {
            name: "floor".to_owned(),
            octets: 16,
            form: crate::session::Form::Binary,
            messages: FLOOR_MESSAGES,
        };
        let outcome = rtt::run(&target, &case, choice.wait(), seed, stop)
            .map_err(|problem| failed(&problem))?;
        match outcome.problem {
            Some(problem) => Err(failed(&problem)),
            None => Ok(outcome.latencies.percentile_ns(50.0)),
        }
    };
    Ok(results::Floor {
        block_ns: measure(WaitChoice::Block)?,
        spin_ns: measure(WaitChoice::Spin)?,
    })
}

/// `ringbench floor`: echoes octets on one connection, until its end.
///
/// # Errors
///
/// When it cannot listen, or the connection breaks.
pub fn floor(options: &Floor, output: &mut impl Write) -> Outcome {
    let mut serve = || -> io::Result<()> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        writeln!(output, "floor listening on tcp://{}", listener.local_addr()?)?;
        output.flush()?;
        let (mut stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(options.wait.wait() == Wait::Spin)?;
        let mut octets = [0; 4096];
        loop {
            match stream.read(&mut octets) {
                Ok(0) => return Ok(()),
                Ok(count) => stream.write_all(&octets[..count])?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::hint::spin_loop(),
                Err(error) => return Err(error),
            }
        }
    };
    serve().map_err(|error| format!("floor: {error}"))
}
