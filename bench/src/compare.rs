//! Compares servers in short rounds, each in a new random order, so that whatever the machine does
//! meanwhile affects all of them alike. Each ratio is between figures of the same round, and its
//! median has an interval (see [`crate::statistics`]).
//!
//! A figure that some round lacks is left out, because the rounds that have it may not be typical.

use std::io::Read as _;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::candidate::{Between, Candidate};
use crate::random::Random;
use crate::results::{Cost, Measurement, Ratio, Round};
use crate::statistics::{VALUES_MIN, estimate, median, values_needed};
use crate::stop::Stop;
use crate::usage::{Usage, split};

/// Time for strace to attach to all threads of a server.
const STRACE_ATTACHES: Duration = Duration::from_millis(500);

/// How servers are compared.
#[derive(Debug, Clone, Copy)]
pub struct Plan<'a> {
    /// Rounds that count, after one that does not.
    pub rounds: usize,
    /// The seed of the order of the servers.
    pub seed: u64,
    /// The CPUs of servers that are started here; if empty, any.
    pub cpus: &'a [usize],
    /// What happens to them between their turns.
    pub between: Between,
    /// Ends the comparison.
    pub stop: &'a Stop,
}

/// The outcome of a comparison.
#[derive(Debug, Default)]
pub struct Compared {
    /// What was measured, in the order of the candidates.
    pub measurements: Vec<Measurement>,
    /// The ratios to the first.
    pub ratios: Vec<Ratio>,
    /// Warnings about the ratios, in sentences.
    pub warnings: Vec<String>,
    /// What ended it early; rounds that were complete before that count.
    pub problem: Option<String>,
}

/// One server in one round: what was measured, and the server's usage before and after its messages.
pub type Turn = (Measurement, Option<(Usage, Usage)>);

/// Measures a candidate once, in the round of this number; nothing if it was interrupted.
pub trait Measure: FnMut(&Candidate, usize) -> Result<Option<Turn>, String> {}
impl<F: FnMut(&Candidate, usize) -> Result<Option<Turn>, String>> Measure for F {}

/// Runs rounds of `measure` on every candidate. A failure, or a signal, ends the comparison.
pub fn run(candidates: &mut [Candidate], plan: &Plan<'_>, measure: &mut impl Measure) -> Compared {
    let mut compared = Compared::default();
    let mut all: Vec<Vec<Turn>> = candidates.iter().map(|_| Vec::new()).collect();
    if plan.between == Between::Stopped {
        // A command that does not start is found before anything is measured.
        for candidate in candidates.iter_mut() {
            if let Err(problem) = candidate.begin_turn(plan.cpus, plan.stop) {
                compared.problem = Some(problem);
                return compared;
            }
            candidate.end_turn(plan.between);
        }
    }
    let mut random = Random::new(plan.seed);
    let begin = Instant::now();
    for number in 0..=plan.rounds {
        let mut order: Vec<usize> = (0..candidates.len()).collect();
        random.shuffle(&mut order);
        let mut round = Vec::new();
        for at in order {
            match turn(&mut candidates[at], number, plan, begin, measure) {
                Ok(Some(turn)) => round.push((at, turn)),
                Ok(None) => break,
                Err(problem) => {
                    compared.problem = Some(problem);
                    break;
                }
            }
        }
        // A round counts for all servers or for none, so that figures are paired.
        if round.len() < candidates.len() {
            break;
        }
        if number > 0 {
            round.into_iter().for_each(|(at, turn)| all[at].push(turn));
        }
    }
    compared.ratios = ratios(candidates, &all);
    let done = all.first().map_or(0, Vec::len);
    compared.warnings.extend(too_few(done, compared.ratios.len()));
    let named = candidates.iter().zip(all);
    compared.measurements = named.map(|(candidate, turns)| sum(&candidate.name, turns)).collect();
    compared
}

/// One turn of one candidate. Its processes run only meanwhile.
fn turn(
    candidate: &mut Candidate,
    number: usize,
    plan: &Plan<'_>,
    begin: Instant,
    measure: &mut impl Measure,
) -> Result<Option<Turn>, String> {
    if plan.stop.is_requested() {
        return Ok(None);
    }
    candidate.begin_turn(plan.cpus, plan.stop)?;
    if plan.between == Between::Ended && candidate.is_started_here() {
        // A server that has just started is measured once without counting.
        match measure(candidate, number) {
            Ok(Some(_)) => {}
            Ok(None) => return Ok(None),
            Err(problem) => return Err(candidate.blamed(&problem)),
        }
    }
    let began = begin.elapsed();
    let measured = measure(candidate, number);
    let measured = measured.map_err(|problem| candidate.blamed(&problem))?;
    candidate.end_turn(plan.between);
    Ok(measured.map(|(mut measurement, usage)| {
        for round in &mut measurement.rounds {
            round.begin_s += began.as_secs_f64();
        }
        (measurement, usage)
    }))
}

/// A warning if there are too few rounds for an interval, or for several to hold at once.
fn too_few(rounds: usize, ratios: usize) -> Option<String> {
    let needed = values_needed(ratios);
    match rounds {
        0 => None,
        _ if rounds < VALUES_MIN => Some(format!(
            "Too few rounds for intervals: {rounds}, at least {VALUES_MIN} are needed."
        )),
        _ if rounds < needed => Some(format!(
            "Too few rounds to show a difference in any of {ratios} ratios: {rounds}, at least \
             {needed} are needed."
        )),
        _ => None,
    }
}

/// Counts the system calls per message of each candidate that was started here, including those for
/// opening and closing connections. Each gets one more turn for that, with strace(1) attached, so that
/// strace does not slow down what is timed. Counts nothing without strace or the right to trace.
pub fn count_syscalls(
    candidates: &mut [Candidate],
    measurements: &mut [Measurement],
    plan: &Plan<'_>,
    measure: &mut impl Measure,
) {
    for (candidate, measurement) in candidates.iter_mut().zip(measurements) {
        let Some(cost) = &mut measurement.cost else { continue };
        if plan.stop.is_requested() || candidate.begin_turn(plan.cpus, plan.stop).is_err() {
            continue;
        }
        cost.syscalls = syscalls(candidate, measure);
        candidate.end_turn(plan.between);
    }
}

fn syscalls(candidate: &Candidate, measure: &mut impl Measure) -> Option<f64> {
    let mut command = Command::new("strace");
    command.args(["-f", "-c", "-U", "calls,name"]);
    for process in candidate.processes() {
        command.args(["-p", &process.to_string()]);
    }
    let piped = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut strace = piped.spawn().ok()?;
    thread::sleep(STRACE_ATTACHES);
    let measured = measure(candidate, 0);
    let pid = rustix::process::Pid::from_child(&strace);
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
    let mut table = String::new();
    if let Some(errors) = &mut strace.stderr {
        let _ = errors.read_to_string(&mut table);
    }
    let _ = strace.wait();
    let messages = measured.ok()??.0.messages;
    (messages > 0).then_some(total_calls(&table)? as f64 / messages as f64)
}

/// The sum in the last line of what `strace -c -U calls,name` prints.
fn total_calls(table: &str) -> Option<u64> {
    let last = table.lines().rfind(|line| line.trim_end().ends_with("total"))?;
    last.split_whitespace().next()?.parse().ok()
}

/// The cost of a turn to the server.
fn cost_of((measurement, usage): &Turn) -> Option<Cost> {
    usage.as_ref().map(|(before, after)| after.since(before, measurement.messages))
}

/// One measurement of many rounds. Each cost is the median over the rounds. The split of CPU time
/// between user mode and kernel is that of all rounds together, because one round has too few clock
/// ticks for it.
fn sum(name: &str, turns: Vec<Turn>) -> Measurement {
    let costs: Option<Vec<Cost>> = turns.iter().map(cost_of).collect();
    let costs = costs.unwrap_or_default();
    let of = |figure: fn(&Cost) -> Option<f64>| {
        let all: Option<Vec<f64>> = costs.iter().map(figure).collect();
        all.map(|all| median(&all))
    };
    let usages = turns.iter().filter_map(|(_, usage)| usage.as_ref());
    let ticks = usages.map(|(before, after)| after.ticks_since(before));
    let ticks = ticks.fold([0, 0], |sum, [user, system]| [sum[0] + user, sum[1] + system]);
    let cpu_us = of(|cost| cost.cpu_us);
    let [user_us, system_us] = split(cpu_us, ticks);
    let cost = costs.last().map(|last| Cost {
        cpu_us,
        user_us,
        system_us,
        machine_us: of(|cost| cost.machine_us),
        context_switches: of(|cost| cost.context_switches),
        syscalls: None,
        resident_bytes: last.resident_bytes,
    });
    let mut turns = turns.into_iter().map(|(measurement, _)| measurement);
    let mut total = turns.next().unwrap_or_default();
    for turn in turns {
        total.add(turn);
    }
    Measurement { name: name.to_owned(), cost, ..total }
}

/// A figure that is compared: its name, and its value in a round.
type Metric = (&'static str, fn(&Round, Option<&Cost>) -> Option<f64>);
/// Latencies are in nanoseconds, the rate in messages per second, CPU times in µs per message.
const METRICS: [Metric; 5] = [
    ("p50", |round, _| Some(round.p50_ns as f64)),
    ("p99", |round, _| Some(round.p99_ns as f64)),
    ("rate", |round, _| Some(round.rate())),
    ("CPU time", |_, cost| cost?.cpu_us),
    ("machine CPU", |_, cost| cost?.machine_us),
];

fn ratios(candidates: &[Candidate], all: &[Vec<Turn>]) -> Vec<Ratio> {
    let [first, others @ ..] = all else { return Vec::new() };
    let mut compared = Vec::new();
    for (candidate, turns) in candidates[1..].iter().zip(others) {
        for (figure, value) in METRICS {
            let of = |turn: &Turn| value(turn.0.rounds.first()?, cost_of(turn).as_ref());
            let pairs = turns.iter().zip(first);
            let ratios = pairs.map(|(turn, first)| Some(of(turn)? / of(first)?));
            let ratios: Option<Vec<f64>> =
                ratios.map(|ratio| ratio.filter(|ratio| ratio.is_finite())).collect();
            compared.extend(
                ratios
                    .filter(|ratios| !ratios.is_empty())
                    .map(|ratios| (figure, &candidate.name, ratios)),
            );
        }
    }
    let number = compared.len();
    let ratio = |(figure, of, ratios): (&str, &String, Vec<f64>)| Ratio {
        figure: figure.to_owned(),
        of: of.clone(),
        to: candidates[0].name.clone(),
        estimate: estimate(&ratios, number),
    };
    compared.into_iter().map(ratio).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::latency::Latencies;
    use crate::statistics::Verdict;

    fn candidates(names: &str) -> Vec<Candidate> {
        let of = |name| Candidate::parse(&format!("{name}=ws://127.0.0.1:1/"));
        names.split(' ').map(of).collect::<Result<_, _>>().expect("targets")
    }

    fn plan(rounds: usize, stop: &Stop) -> Plan<'_> {
        Plan { rounds, seed: 1, cpus: &[], between: Between::Stopped, stop }
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
        // The machine halves its speed in every other round; b always takes 1.5 times a, c as long.
        let stop = Stop::new().expect("a pipe");
        let plan = plan(9, &stop);
        let run = run(&mut candidates("a b c"), &plan, &mut |candidate: &Candidate, round| {
            let us = if round % 2 == 0 { 100 } else { 200 };
            let us = if candidate.name == "b" { us * 3 / 2 } else { us };
            Ok(Some((measured(us), None)))
        });
        let Compared { measurements, ratios, warnings, .. } = run;
        assert_eq!(measurements.iter().map(|it| it.messages).collect::<Vec<u64>>(), [90; 3]);
        assert_eq!(measurements[1].rounds.len(), 9);
        assert_eq!(warnings, Vec::<String>::new());
        let of = |name: &str, figure: &str| {
            let found = ratios.iter().find(|ratio| ratio.of == name && ratio.figure == figure);
            found.expect("a ratio").estimate
        };
        let slower = of("b", "p50");
        let interval = slower.interval.expect("an interval");
        assert!(interval.low > 1.49 && interval.high < 1.51, "{slower:?}");
        assert_eq!(slower.verdict(), Verdict::Different);
        assert_eq!(of("c", "p50").verdict(), Verdict::NotShown);
        // Nothing is known of what they cost.
        assert_eq!(ratios.len(), 6);
    }

    #[test]
    fn an_incomplete_round_is_discarded_for_all_servers() {
        let mut turns = 0;
        let stop = Stop::new().expect("a pipe");
        let run = run(&mut candidates("a b"), &plan(9, &stop), &mut |_: &Candidate, _| {
            turns += 1;
            if turns < 8 { Ok(Some((measured(100), None))) } else { Err("broken".to_owned()) }
        });
        assert_eq!(run.measurements[0].rounds.len(), 2);
        assert_eq!(run.measurements[1].rounds.len(), 2);
        let problem = run.problem.expect("a problem");
        assert!(problem.ends_with(": broken"), "{problem}");
        // Of two rounds there are medians, and no interval is claimed.
        assert!(run.ratios.iter().all(|ratio| ratio.estimate.interval.is_none()));
        assert!(run.warnings[0].contains("at least 6"), "{:?}", run.warnings);
    }

    #[test]
    fn a_figure_that_a_round_does_not_have_is_left_out() {
        let taken = |ms, ticks| Usage {
            cpu_time: Duration::from_millis(ms),
            thread_time: Duration::from_millis(ms),
            machine_ticks: ticks,
            ..Usage::default()
        };
        let turn = |ticks| (measured(100), Some((taken(0, 0), taken(10, ticks))));
        // One round of nine has too few ticks for the machine's CPU time.
        let turns = || [19, 20, 20, 20, 20, 20, 20, 20, 20].map(turn).to_vec();
        let ratios = ratios(&candidates("a b"), &[turns(), turns()]);
        let figures: Vec<&str> = ratios.iter().map(|ratio| ratio.figure.as_str()).collect();
        assert_eq!(figures, ["p50", "p99", "rate", "CPU time"]);
        let sum = sum("a", turns());
        let cost = sum.cost.expect("a cost");
        assert_eq!(cost.machine_us, None);
        assert_eq!(cost.cpu_us.map(f64::round), Some(1000.0));
    }

    #[test]
    fn the_sum_of_calls_is_found() {
        let table = "strace: Process 1 attached\n    calls syscall\n------\n     1000 sendto\n     \
                     1001 recvfrom\n------\n     2001 total\n";
        assert_eq!(total_calls(table), Some(2001));
        assert_eq!(total_calls("strace: attach: ptrace(PTRACE_SEIZE, 1): not permitted"), None);
    }
}
