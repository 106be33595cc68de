//! Several servers in turns: short rounds, in an order that is drawn anew each time, so that whatever
//! the machine does in the meantime does it to all of them. Each ratio is taken between figures of
//! the same round, and its median has a bootstrap interval (see [`crate::statistics`]).

use std::io::{Error, Read as _, Result};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_setaffinity};

use crate::random::Random;
use crate::results::{Cost, Measurement, Ratio, Round};
use crate::server::{Usage, usage_of};
use crate::statistics::{Estimate, bootstrap, median};
use crate::target::Target;

/// What stands for a free port in a command: where the server speaks WebSocket, or plain octets.
const PORTS: [&str; 2] = ["{port}", "{tcp-port}"];
/// How long a server that was started may take until it accepts.
const START_TIMEOUT: Duration = Duration::from_secs(20);
/// Time for a server to fall asleep, after which the account of its processor time is complete.
const REST: Duration = Duration::from_millis(20);
/// Time for strace to look at all threads of a server.
const STRACE_ATTACHES: Duration = Duration::from_millis(500);
/// How long a server that is asked to end may take before it is killed.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// A server in a comparison.
#[derive(Debug)]
pub struct Contestant {
    /// Its name in tables.
    pub name: String,
    /// Where it is measured.
    pub target: Target,
    process: Option<Child>,
}

impl Contestant {
    /// A server from what was written on the command line: `[NAME=]TARGET`, or `[NAME=]COMMAND`
    /// with `{port}` in it, which is started on the processors `cpus` (none: any) and speaks
    /// WebSocket on 127.0.0.1, or with `{tcp-port}`, which echoes octets there.
    ///
    /// # Errors
    ///
    /// One line that says what is wrong with it, or that it does not start.
    pub fn new(text: &str, cpus: &[usize]) -> std::result::Result<Contestant, String> {
        let (name, what) = match text.split_once('=') {
            Some((name, what)) if !name.contains(['/', ' ', ':', '{']) => (name, what),
            Some(_) | None => (text, text),
        };
        let name = name.to_owned();
        if !is_command(what) {
            let target = what.parse().map_err(|error| {
                format!("{error}; or a command that starts a server, with {{port}} or {{tcp-port}} in it")
            })?;
            return Ok(Contestant { name, target, process: None });
        }
        let started = start(what, cpus).map_err(|error| format!("{name}: {error}"))?;
        let (target, process) = started;
        Ok(Contestant { name, target, process: Some(process) })
    }

    fn usage(&self) -> Option<Usage> {
        // It counts once the server is asleep.
        thread::sleep(REST);
        usage_of(self.process.as_ref()?.id()).ok()
    }
}

impl Drop for Contestant {
    fn drop(&mut self) {
        let Some(process) = &mut self.process else { return };
        let pid = rustix::process::Pid::from_child(process);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let until = Instant::now() + END_TIMEOUT;
        while Instant::now() < until {
            if !matches!(process.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(REST);
        }
        let _ = process.kill();
        let _ = process.wait();
    }
}

/// Whether this is a command that starts a server.
pub fn is_command(text: &str) -> bool {
    PORTS.iter().any(|name| text.contains(name))
}

/// Starts a command on a free port and waits until something accepts there.
fn start(command: &str, cpus: &[usize]) -> Result<(Target, Child)> {
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
    let filled_in =
        |word: String| PORTS.iter().fold(word, |word, name| word.replace(name, &port.to_string()));
    let words: Vec<String> = split(command)?.into_iter().map(filled_in).collect();
    let [program, arguments @ ..] = words.as_slice() else {
        return Err(Error::other("the command is empty"));
    };
    let mut child = on(cpus, || {
        Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .map_err(|error| Error::other(format!("cannot start {program}: {error}")))
    })?;
    let until = Instant::now() + START_TIMEOUT;
    while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
        if let Some(status) = child.try_wait()? {
            return Err(Error::other(format!("{program} ended at once, with {status}")));
        }
        if Instant::now() > until {
            let _ = child.kill();
            let _ = child.wait();
            let seconds = START_TIMEOUT.as_secs();
            return Err(Error::other(format!("{program} accepts nothing after {seconds} s")));
        }
        thread::sleep(REST);
    }
    let is_websocket = command.contains(PORTS[0]);
    let address = format!("127.0.0.1:{port}");
    let target = if is_websocket { format!("ws://{address}/") } else { format!("tcp://{address}") };
    let target = target.parse().expect("a target");
    Ok((target, child))
}

/// Calls `start` on a thread that is pinned to `cpus` (none: as this one is), from which what it
/// starts inherits that.
pub fn on<T: Send>(cpus: &[usize], start: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let started = scope.spawn(|| {
            pin(cpus);
            start()
        });
        started.join().expect("it does not panic")
    })
}

fn pin(cpus: &[usize]) {
    let mut set = CpuSet::new();
    for &cpu in cpus.iter().filter(|&&cpu| cpu < CpuSet::MAX_CPU) {
        set.set(cpu);
    }
    if set.count() > 0 {
        // It was found among those that are allowed; if it is not any more, the figures show it.
        let _ = sched_setaffinity(None, &set);
    }
}

/// The words of a command: parted at white space outside of quotes.
fn split(command: &str) -> Result<Vec<String>> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for character in command.chars() {
        match (quote, character) {
            (Some(open), close) if open == close => quote = None,
            (None, '"' | '\'') => {
                quote = Some(character);
                word.get_or_insert_default();
            }
            (None, space) if space.is_whitespace() => words.extend(word.take()),
            (_, other) => word.get_or_insert_default().push(other),
        }
    }
    if quote.is_some() {
        return Err(Error::other("a quote in the command is not closed"));
    }
    words.extend(word.take());
    Ok(words)
}

/// Rounds below which a median says too little for a ratio.
pub const ROUNDS_MIN: usize = 5;

/// What a comparison came to.
#[derive(Debug, Default)]
pub struct Compared {
    /// What was measured, in the order of the contestants.
    pub measurements: Vec<Measurement>,
    /// The ratios to the first.
    pub ratios: Vec<Ratio>,
    /// Why there are none, if there should be.
    pub warning: Option<String>,
    /// What ended it early; rounds that were whole before that count.
    pub problem: Option<String>,
}

/// What one server did in one round, and what it took.
type Turn = (Measurement, Option<(Usage, Usage)>);

/// Runs `rounds` rounds of `turn` on every contestant, after one that does not count. `turn` gets
/// the number of the round; one that gives nothing ends the comparison, as one that fails does.
pub fn run(
    contestants: &[Contestant],
    rounds: usize,
    seed: u64,
    mut turn: impl FnMut(&Contestant, usize) -> std::result::Result<Option<Measurement>, String>,
) -> Compared {
    let mut random = Random::new(seed);
    let mut compared = Compared::default();
    let mut all: Vec<Vec<Turn>> = contestants.iter().map(|_| Vec::new()).collect();
    let begin = Instant::now();
    'rounds: for round in 0..=rounds {
        let mut order: Vec<usize> = (0..contestants.len()).collect();
        random.shuffle(&mut order);
        let mut row = Vec::new();
        for at in order {
            let contestant = &contestants[at];
            let began = begin.elapsed();
            let before = contestant.usage();
            let mut measurement = match turn(contestant, round) {
                Ok(Some(measurement)) => measurement,
                Ok(None) => break 'rounds,
                Err(problem) => {
                    compared.problem = Some(problem);
                    break 'rounds;
                }
            };
            let after = contestant.usage();
            for round in &mut measurement.rounds {
                round.begin_s += began.as_secs_f64();
            }
            row.push((at, measurement, before.zip(after)));
        }
        // A round counts for all or for none, so that figures are paired.
        if round > 0 {
            for (at, measurement, usage) in row {
                all[at].push((measurement, usage));
            }
        }
    }
    let done = all.first().map_or(0, Vec::len);
    if done < ROUNDS_MIN {
        compared.warning = Some(format!(
            "{done} rounds are too few for ratios; {ROUNDS_MIN} at least are needed."
        ));
    } else {
        compared.ratios = ratios(contestants, &all, seed);
    }
    let named = contestants.iter().zip(all);
    compared.measurements = named.map(|(contestant, turns)| sum(&contestant.name, turns)).collect();
    compared
}

/// Counts the system calls a message of each contestant that was started here, in one more turn each
/// with strace(1) beside it; what strace does to times does not matter there. Opening and closing
/// are among the calls. Where there is no strace, or it may not look, nothing is counted.
pub fn count_syscalls(
    contestants: &[Contestant],
    measurements: &mut [Measurement],
    mut turn: impl FnMut(&Contestant) -> std::result::Result<Option<Measurement>, String>,
) {
    for (contestant, measurement) in contestants.iter().zip(measurements) {
        let (Some(process), Some(cost)) = (&contestant.process, &mut measurement.cost) else {
            continue;
        };
        let Ok(mut strace) = Command::new("strace")
            .args(["-f", "-c", "-U", "calls,name", "-p", &process.id().to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
        else {
            continue;
        };
        thread::sleep(STRACE_ATTACHES);
        let done = turn(contestant);
        let _ = rustix::process::kill_process(
            rustix::process::Pid::from_child(&strace),
            rustix::process::Signal::INT,
        );
        let mut table = String::new();
        if let Some(errors) = &mut strace.stderr {
            let _ = errors.read_to_string(&mut table);
        }
        let _ = strace.wait();
        if let (Ok(Some(turn)), Some(calls)) = (done, total_calls(&table))
            && turn.messages > 0
        {
            cost.syscalls = Some(calls as f64 / turn.messages as f64);
        }
    }
}

/// The sum in the last line of what `strace -c -U calls,name` prints.
fn total_calls(table: &str) -> Option<u64> {
    let last = table.lines().rfind(|line| line.trim_end().ends_with("total"))?;
    last.split_whitespace().next()?.parse().ok()
}

/// What a turn cost the server.
fn cost_of((measurement, usage): &Turn) -> Option<Cost> {
    usage.map(|(before, after)| after.since(&before, measurement.messages))
}

/// One measurement of many rounds; the cost is the median of theirs. Processor time is parted into
/// user's and system's as all of it is: a round has only a few of the ticks that tell.
fn sum(name: &str, turns: Vec<Turn>) -> Measurement {
    let costs: Vec<Cost> = turns.iter().filter_map(cost_of).collect();
    let of = |field: fn(&Cost) -> f64| median(&costs.iter().map(field).collect::<Vec<f64>>());
    let [mut user, mut system] = [0.0, 0.0];
    for (before, after) in turns.iter().filter_map(|(_, usage)| *usage) {
        user += after.user_ticks.saturating_sub(before.user_ticks) as f64;
        system += after.system_ticks.saturating_sub(before.system_ticks) as f64;
    }
    let user_part = if user + system > 0.0 { user / (user + system) } else { 0.0 };
    let total_us = of(|cost| cost.user_us + cost.system_us);
    let cost = costs.last().map(|last| Cost {
        user_us: total_us * user_part,
        system_us: total_us * (1.0 - user_part),
        machine_us: (costs.iter().all(|cost| cost.machine_us.is_some()))
            .then(|| of(|cost| cost.machine_us.unwrap_or_default())),
        context_switches: of(|cost| cost.context_switches),
        syscalls: None,
        resident_octets: last.resident_octets,
    });
    let mut turns = turns.into_iter().map(|(measurement, _)| measurement);
    let mut total = turns.next().unwrap_or_default();
    for turn in turns {
        total.add(turn);
    }
    Measurement { name: name.to_owned(), cost, ..total }
}

/// The figures of a round that are compared: name, and value from measurement and cost. The rate is
/// that of messages, and the CPU time that of the server for each of them.
type Figure = (&'static str, fn(&Round, Option<&Cost>) -> Option<f64>);
const FIGURES: [Figure; 5] = [
    ("p50", |round, _| Some(round.p50_ns as f64)),
    ("p99", |round, _| Some(round.p99_ns as f64)),
    ("rate", |round, _| Some(round.rate())),
    ("CPU time", |_, cost| cost.map(|cost| cost.user_us + cost.system_us)),
    ("machine CPU", |_, cost| cost.and_then(|cost| cost.machine_us)),
];

fn ratios(contestants: &[Contestant], all: &[Vec<Turn>], seed: u64) -> Vec<Ratio> {
    let [first, others @ ..] = all else { return Vec::new() };
    let mut ratios = Vec::new();
    for (contestant, turns) in contestants[1..].iter().zip(others) {
        for (figure, value) in FIGURES {
            let of = |turn: &Turn| value(turn.0.rounds.first()?, cost_of(turn).as_ref());
            let pairs: Vec<f64> = turns
                .iter()
                .zip(first)
                .filter_map(|(turn, first)| Some(of(turn)? / of(first)?))
                .filter(|ratio| ratio.is_finite())
                .collect();
            if !pairs.is_empty() {
                ratios.push(Ratio {
                    figure: figure.to_owned(),
                    of: contestant.name.clone(),
                    to: contestants[0].name.clone(),
                    estimate: bootstrap(&pairs, seed),
                });
            }
        }
    }
    ratios
}

/// What an estimate of a ratio says, in words.
pub fn verdict(estimate: &Estimate) -> &'static str {
    if estimate.holds(1.0) { "no difference shown" } else { "" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::latency::Latencies;

    fn contestant(name: &str) -> Contestant {
        let target = "ws://127.0.0.1:1/".parse().expect("a target");
        Contestant { name: name.to_owned(), target, process: None }
    }

    fn measured(us: u64) -> Measurement {
        let mut latencies = Latencies::default();
        for _ in 0..10 {
            latencies.record(Duration::from_micros(us));
        }
        let rounds = vec![Round::new(0.0, 1.0, &latencies)];
        Measurement { messages: 10, latencies, rounds, ..Measurement::default() }
    }

    #[test]
    fn ratios_are_paired_by_round_whatever_the_machine_does() {
        let contestants = [contestant("a"), contestant("b"), contestant("c")];
        // The machine halves its speed in every other round; b always takes 1.5 times a, c as long.
        let run = run(&contestants, 9, 1, |contestant, round| {
            let us = if round % 2 == 0 { 100 } else { 200 };
            let us = if contestant.name == "b" { us * 3 / 2 } else { us };
            Ok(Some(measured(us)))
        });
        let Compared { measurements, ratios, .. } = run;
        assert_eq!(measurements.iter().map(|it| it.messages).collect::<Vec<u64>>(), [90; 3]);
        assert_eq!(measurements[1].rounds.len(), 9);
        let of = |name: &str, figure: &str| {
            let found = ratios.iter().find(|ratio| ratio.of == name && ratio.figure == figure);
            found.expect("a ratio").estimate
        };
        let slower = of("b", "p50");
        assert!(slower.low > 1.49 && slower.high < 1.51, "{slower:?}");
        assert_eq!(verdict(&slower), "");
        assert_eq!(verdict(&of("c", "p50")), "no difference shown");
    }

    #[test]
    fn a_round_that_is_not_whole_counts_for_nobody() {
        let contestants = [contestant("a"), contestant("b")];
        let mut turns = 0;
        let run = run(&contestants, 9, 1, |_, _| {
            turns += 1;
            if turns < 8 { Ok(Some(measured(100))) } else { Err("broken".to_owned()) }
        });
        assert_eq!(run.measurements[0].rounds.len(), 2);
        assert_eq!(run.measurements[1].rounds.len(), 2);
        assert_eq!(run.problem.as_deref(), Some("broken"));
        // Two rounds show no difference, and none is claimed.
        assert!(run.ratios.is_empty() && run.warning.is_some());
    }

    #[test]
    fn the_sum_of_calls_is_found() {
        let table = "strace: Process 1 attached\n    calls syscall\n------\n     1000 sendto\n     \
                     1001 recvfrom\n------\n     2001 total\n";
        assert_eq!(total_calls(table), Some(2001));
        assert_eq!(total_calls("strace: attach: ptrace(PTRACE_SEIZE, 1): not permitted"), None);
    }

    #[test]
    fn commands_are_parted_as_a_shell_would() {
        assert_eq!(split("a  'b c' d\"e f\" ''").expect("words"), ["a", "b c", "de f", ""]);
        assert!(split("a 'b").is_err());
    }

    #[test]
    fn names_and_targets() {
        let plain = Contestant::new("ws://127.0.0.1:9001/?a=b", &[]).expect("a target");
        assert_eq!(plain.name, "ws://127.0.0.1:9001/?a=b");
        let named = Contestant::new("peer=ws://127.0.0.1:9001/", &[]).expect("a target");
        assert_eq!(
            (named.name.as_str(), named.target.to_string().as_str()),
            ("peer", "ws://127.0.0.1:9001/")
        );
        // Whatever listens is enough to be started.
        let listens = "python3 -c 'import socket, time; listener = socket.create_server(\
                       (\"127.0.0.1\", {tcp-port})); time.sleep(9)'";
        let plain = Contestant::new(listens, &[]).expect("a server");
        assert!(plain.target.websocket.is_none(), "{}", plain.target);
        let wrong = Contestant::new("sleep 10", &[]).expect_err("no port");
        assert!(wrong.contains("{port}"), "{wrong}");
        let ended = Contestant::new("false {port}", &[]).expect_err("it ends");
        assert!(ended.contains("ended at once"), "{ended}");
        let missing = Contestant::new("/nowhere/at/all {port}", &[]).expect_err("it is not there");
        assert!(missing.contains("cannot start"), "{missing}");
    }
}
