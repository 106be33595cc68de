//! What a run prints: a table by section, and everything that is not as expected.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use super::case::{Case, Expected};
use super::cases::section_name;
use super::number::Number;
use super::results::{CaseResult, Results, Tally};
use super::verdict::{Behavior, BehaviorClose};

/// Cases with unexpected verdicts that are shown in full.
const SHOWN_MAX: usize = 20;

/// The line that is shown while cases run.
pub fn progress(done: usize, total: usize, last: Number, elapsed: Duration) -> String {
    format!("{done} of {total} cases, last {last}, {:.0} s", elapsed.as_secs_f64())
}

/// The whole text. `how` is the command that runs some of the cases, without naming them.
pub fn page(results: &Results, cases: &[Case], how: &str) -> String {
    let mut text = String::new();
    table(results, &mut text).expect("a string takes everything");
    let different: Vec<&CaseResult> =
        results.cases.iter().filter(|case| case.difference.is_some()).collect();
    for result in different.iter().take(SHOWN_MAX) {
        let case = cases.iter().find(|case| case.number == result.case);
        failure(result, case, how, &mut text).expect("a string takes everything");
    }
    for (what, is_own) in [("not as expected", false), ("own cases not as expected", true)] {
        let numbers = different.iter().filter(|case| case.is_own == is_own);
        let numbers: Vec<String> = numbers.map(|case| case.case.to_string()).collect();
        if !numbers.is_empty() {
            text += &format!("\n{what}: {}\n", numbers.join(" "));
        }
    }
    if let Some(reason) = &results.cut_short {
        text += &format!("\nCUT SHORT: {reason}\n");
    }
    text + "\n" + &verdict_line(results) + "\n"
}

/// The first lines of a file of known failures: what was tested, and how much of it.
pub fn baseline_header(results: &Results) -> String {
    let agent = results.agent.replace(char::is_control, " ");
    let quick = if results.is_quick { " --quick" } else { "" };
    let cut_short = match &results.cut_short {
        Some(reason) => format!("# CUT SHORT: {reason}. Cases are missing.\n"),
        None => String::new(),
    };
    format!(
        "# Cases that {agent} does not pass (ringbench conform{quick}): the case, the verdict on what\n\
         # came back, and the verdict on the close.\n{cut_short}"
    )
}

/// The last line, which says how it went.
fn verdict_line(results: &Results) -> String {
    let Results { agent, suite, own, duration_s, .. } = results;
    let quick = match results.is_quick {
        true => "; quick: sections 9, 12 and 13 with fewer messages",
        false => "",
    };
    let counted = |tally: &Tally| format!("{} of {}", tally.as_expected, tally.cases);
    let counted = match (suite.cases, own.cases) {
        (_, 0) => format!("{} cases", counted(suite)),
        (0, _) => format!("{} own cases", counted(own)),
        _ => format!("{} cases of the suite and {} own cases", counted(suite), counted(own)),
    };
    format!("{agent}: {counted} as expected, in {duration_s:.1} s{quick}")
}

/// The number of cases of each verdict, by section.
fn table(results: &Results, text: &mut String) -> std::fmt::Result {
    let mut sections: BTreeMap<u16, Vec<&CaseResult>> = BTreeMap::new();
    for case in &results.cases {
        sections.entry(case.case.section()).or_default().push(case);
    }
    write!(text, "{:<26}{:>6}", "section", "cases")?;
    for behavior in Behavior::ALL {
        let name = behavior.to_string();
        write!(text, "{name:>width$}", width = name.len() + 2)?;
    }
    writeln!(text, "  close not OK")?;
    let rows = sections
        .iter()
        .map(|(section, cases)| (format!("{section:>2} {}", section_name(*section)), &cases[..]));
    let (own, suite): (Vec<&CaseResult>, Vec<&CaseResult>) =
        results.cases.iter().partition(|case| case.is_own);
    let sums = match (suite.is_empty(), own.is_empty()) {
        (false, false) => vec![("suite", &suite), ("own", &own)],
        (_, true) => vec![("all", &suite)],
        (true, false) => vec![("own", &own)],
    };
    let sums = sums.into_iter().map(|(name, cases)| (name.to_owned(), &cases[..]));
    for (name, cases) in rows.chain(sums) {
        write!(text, "{name:<26}{:>6}", cases.len())?;
        for behavior in Behavior::ALL {
            let count = cases.iter().filter(|case| case.behavior == behavior).count();
            write!(text, "{:>width$}", dash(count), width = behavior.to_string().len() + 2)?;
        }
        let is_bad = |case: &&&CaseResult| {
            !matches!(case.behavior_close, BehaviorClose::Ok | BehaviorClose::Informational)
        };
        writeln!(text, "{:>14}", dash(cases.iter().filter(is_bad).count()))?;
    }
    Ok(())
}

/// A number, or a dash for 0, so that the others stand out.
fn dash(count: usize) -> String {
    if count == 0 { "-".to_owned() } else { count.to_string() }
}

/// A case that is not as expected.
fn failure(
    result: &CaseResult,
    case: Option<&Case>,
    how: &str,
    text: &mut String,
) -> std::fmt::Result {
    let CaseResult { case: number, clause, behavior, behavior_close, .. } = result;
    let difference = result.difference.as_deref().unwrap_or_default();
    writeln!(text, "\n{number} ({clause}): {behavior}, close {behavior_close}; {difference}")?;
    writeln!(text, "  {} {}", result.description, result.expectation)?;
    let expected: Vec<String> = case
        .into_iter()
        .flat_map(|case| &case.outcomes)
        .map(|(behavior, events)| {
            format!("{} ({behavior})", listed(events.iter().map(Expected::to_string)))
        })
        .collect();
    if !expected.is_empty() {
        writeln!(text, "  expected  {}", expected.join(", or "))?;
    }
    writeln!(text, "  observed  {}", listed(result.observed.iter().cloned()))?;
    writeln!(text, "  result    {}", result.result)?;
    writeln!(text, "  close     {} {}", result.result_close, closed(result))?;
    writeln!(text, "  run it    {how} --case {number}")
}

/// How the connection was closed.
fn closed(result: &CaseResult) -> String {
    let closing = &result.closing;
    let code = |code: Option<u16>| code.map_or("none".to_owned(), |code| code.to_string());
    format!(
        "Codes: sent {}, received {}.",
        code(closing.local_close_code),
        code(closing.remote_close_code)
    )
}

fn listed(events: impl Iterator<Item = String>) -> String {
    let events: Vec<String> = events.collect();
    if events.is_empty() { "nothing".to_owned() } else { events.join(", ") }
}
