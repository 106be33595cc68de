//! What a run prints: a table by section, and everything that is not as expected. Colours are written as
//! ANSI escape sequences; whoever prints the text leaves them out where nobody sees them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use textwrap::{Options, WordSplitter};

use super::case::{Case, Expected};
use super::cases::section_name;
use super::number::Number;
use super::results::{CaseResult, Results, Tally};
use super::verdict::{Behavior, BehaviorClose};

/// Cases with unexpected verdicts that are shown in full.
const SHOWN_MAX: usize = 20;
/// Events that are listed of a case.
const LISTED_MAX: usize = 12;
/// The columns that the text takes where there is no terminal.
pub const COLUMNS: usize = 80;
/// The most that it takes. Longer lines are hard to read.
const COLUMNS_MAX: usize = 110;
/// The column where the text of a failure begins.
const INDENT: usize = 12;

const GOOD: Style = AnsiColor::Green.on_default();
const DOUBTFUL: Style = AnsiColor::Yellow.on_default();
const BAD: Style = AnsiColor::Red.on_default().bold();
const STRONG: Style = Style::new().bold();

/// How far a run is.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    /// How many cases are done.
    pub done: usize,
    /// How many of those are not as expected.
    pub different: usize,
    /// How many there are.
    pub total: usize,
    /// The one that was done last.
    pub last: Number,
    /// How long it has taken.
    pub elapsed: Duration,
}

/// The line that is shown while cases run.
pub fn progress(progress: &Progress) -> String {
    let Progress { done, different, total, last, elapsed } = progress;
    let different = match different {
        0 => String::new(),
        different => format!(", {different} not as expected"),
    };
    format!("{done} of {total} cases{different}, last {last}, {:.0} s", elapsed.as_secs_f64())
}

/// How the text is to be written.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// The command that runs some of the cases, without naming them.
    pub how: &'a str,
    /// The columns of the terminal, if it goes to one. Otherwise the last line stays one line, whatever its
    /// length, for programs that look at it.
    pub columns: Option<usize>,
}

/// The whole text.
pub fn page(results: &Results, cases: &[Case], view: &View<'_>) -> String {
    let mut text = String::new();
    let is_seen = view.columns.is_some();
    let columns = view.columns.unwrap_or(COLUMNS).min(COLUMNS_MAX);
    let view = View { columns: Some(columns), ..*view };
    table(results, columns, &mut text).expect("a string takes everything");
    let different: Vec<&CaseResult> =
        results.cases.iter().filter(|case| case.difference.is_some()).collect();
    for result in different.iter().take(SHOWN_MAX) {
        let case = cases.iter().find(|case| case.number == result.case);
        failure(result, case, &view, &mut text).expect("a string takes everything");
    }
    if different.len() > SHOWN_MAX {
        let count = different.len();
        let more = format!(
            "These are {SHOWN_MAX} of the {count} that are not as expected. --report, --json and \
             --junit have all of them, and so has --case with some of these numbers:"
        );
        text += &format!("\n{}\n", filled("", &more, 0, &view));
    }
    for (what, is_own) in [("not as expected", false), ("own cases not as expected", true)] {
        let numbers = patterns(&results.cases, is_own);
        if !numbers.is_empty() {
            let indent = what.len() + 2;
            text +=
                &format!("\n{}\n", filled(&format!("{what}: "), &numbers.join(" "), indent, &view));
        }
    }
    if let Some(reason) = &results.cut_short {
        text += &format!("\n{BAD}CUT SHORT{BAD:#}: {reason}\n");
    }
    for note in &results.notes {
        text += &format!("\n{}\n", filled("note: ", note, 6, &view));
    }
    let last = verdict_line(results);
    // Escape sequences do not count there.
    let last = if is_seen { filled("", &last, 2, &view) } else { last };
    text + "\n" + &last + "\n"
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
    let style = match suite.cases + own.cases == suite.as_expected + own.as_expected {
        true => GOOD,
        false => BAD,
    };
    let counted = |tally: &Tally| format!("{} of {}", tally.as_expected, tally.cases);
    let counted = match (suite.cases, own.cases) {
        (_, 0) => format!("{} cases", counted(suite)),
        (0, _) => format!("{} own cases", counted(own)),
        _ => format!("{} cases of the suite and {} own cases", counted(suite), counted(own)),
    };
    format!("{agent}: {style}{counted} as expected{style:#}, in {duration_s:.1} s{quick}")
}

/// The number of cases of each verdict, by section. If it would be wider than `columns`, columns without a
/// count are left out, and then the names of the sections.
fn table(results: &Results, columns: usize, text: &mut String) -> std::fmt::Result {
    /// The columns after the name of the section: their heads in two lines, and their widths.
    const COLUMNS: [(&str, &str, usize); 7] = [
        ("", "cases", 6),
        ("", "OK", 5),
        ("NON-", "STRICT", 7),
        ("INFORMA-", "TIONAL", 9),
        ("UNIMPLE-", "MENTED", 9),
        ("", "FAILED", 7),
        ("close", "not OK", 7),
    ];
    let mut sections: BTreeMap<u16, Vec<&CaseResult>> = BTreeMap::new();
    for case in &results.cases {
        sections.entry(case.case.section()).or_default().push(case);
    }
    let (own, suite): (Vec<&CaseResult>, Vec<&CaseResult>) =
        results.cases.iter().partition(|case| case.is_own);
    let sums = match (suite.is_empty(), own.is_empty()) {
        (false, false) => vec![("suite", &suite), ("own", &own)],
        (_, true) => vec![("all", &suite)],
        (true, false) => vec![("own", &own)],
    };
    let counted = |cases: &[&CaseResult]| {
        let of = |behavior| cases.iter().filter(|case| case.behavior == behavior).count();
        let is_bad = |case: &&&CaseResult| {
            !matches!(case.behavior_close, BehaviorClose::Ok | BehaviorClose::Informational)
        };
        [
            (cases.len(), Style::new()),
            (of(Behavior::Ok), Style::new()),
            (of(Behavior::NonStrict), DOUBTFUL),
            (of(Behavior::Informational), Style::new()),
            (of(Behavior::Unimplemented), DOUBTFUL),
            (of(Behavior::Failed), BAD),
            (cases.iter().filter(is_bad).count(), BAD),
        ]
    };
    let name = |section: u16| match section_name(section) {
        "" => format!("{section:>2}"),
        name => format!("{section:>2} {name}"),
    };
    let all: Vec<&CaseResult> = results.cases.iter().collect();
    let totals = counted(&all).map(|(count, _)| count);
    let names = sections.keys().map(|section| name(*section).len());
    let longest = names.max().unwrap_or(0).max("section".len());
    let wide: usize = COLUMNS.iter().map(|(.., width)| width).sum();
    let is_narrow = longest + wide >= columns;
    let shown: Vec<usize> =
        (0..COLUMNS.len()).filter(|at| !is_narrow || *at == 0 || totals[*at] > 0).collect();
    let shown_width: usize = shown.iter().map(|at| COLUMNS[*at].2).sum();
    let has_names = longest + shown_width < columns;
    let width = if has_names { longest } else { "section".len() };
    for (name, heads) in [("", COLUMNS.map(|it| it.0)), ("section", COLUMNS.map(|it| it.1))] {
        write!(text, "{STRONG}{name:<width$}")?;
        for at in &shown {
            write!(text, "{:>width$}", heads[*at], width = COLUMNS[*at].2)?;
        }
        writeln!(text, "{STRONG:#}")?;
    }
    let rows = sections.iter().map(|(section, cases)| {
        let name = if has_names { name(*section) } else { format!("{section:>2}") };
        (name, &cases[..])
    });
    let sums = sums.into_iter().map(|(name, cases)| (name.to_owned(), &cases[..]));
    for (name, cases) in rows.chain(sums) {
        write!(text, "{name:<width$}")?;
        let counts = counted(cases);
        for at in &shown {
            let ((count, style), width) = (counts[*at], COLUMNS[*at].2);
            let style = if count == 0 { Style::new() } else { style };
            write!(text, "{style}{:>width$}{style:#}", dash(count))?;
        }
        writeln!(text)?;
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
    view: &View<'_>,
    text: &mut String,
) -> std::fmt::Result {
    let CaseResult { case: number, clause, behavior, behavior_close, .. } = result;
    let difference = result.difference.as_deref().unwrap_or_default();
    let number = number.to_string();
    let headline = format!("{number} ({clause}): {behavior}, close {behavior_close}; {difference}");
    let headline = filled("", &headline, 2, view);
    let (_, rest) = headline.split_at(number.len());
    writeln!(text, "\n{BAD}{number}{BAD:#}{rest}")?;
    let what = format!("{} {}", result.description, result.expectation);
    writeln!(text, "{}", filled("  ", &what, 2, view))?;
    let mut line = |label: &str, what: &str| {
        writeln!(text, "{}", filled(&format!("  {label:<10}"), what, INDENT, view))
    };
    let expected: Vec<String> = case
        .into_iter()
        .flat_map(|case| &case.outcomes)
        .map(|(behavior, events)| {
            let events: Vec<String> = events.iter().map(Expected::to_string).collect();
            format!("{} ({behavior})", listed(&events))
        })
        .collect();
    if !expected.is_empty() {
        line("expected", &expected.join(", or "))?;
    }
    line("observed", &listed(&result.observed))?;
    line("result", &result.result)?;
    line("close", &format!("{} {}", result.result_close, closed(result)))?;
    // It stays one line, so that it can be copied.
    writeln!(text, "  run it    {} --case {number}", view.how)
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

/// Events in a row, or some of them if there are many.
pub fn listed(events: &[String]) -> String {
    match events.len() {
        0 => "nothing".to_owned(),
        1..=LISTED_MAX => events.join(", "),
        count => {
            let shown = events[..LISTED_MAX].join(", ");
            format!("{shown}, and {} more", count - LISTED_MAX)
        }
    }
}

/// Text behind a label, in lines that fit; those after the first are indented.
fn filled(label: &str, text: &str, indent: usize, view: &View<'_>) -> String {
    let rest = " ".repeat(indent);
    let options = Options::new(view.columns.unwrap_or(COLUMNS).saturating_sub(1).max(indent + 20))
        .initial_indent(label)
        .subsequent_indent(&rest)
        .word_splitter(WordSplitter::NoHyphenation);
    textwrap::fill(text, options)
}

/// The cases that are not as expected as `--case` takes them: as whole sections or groups where all of
/// their cases that were run are not.
fn patterns(cases: &[CaseResult], is_own: bool) -> Vec<String> {
    let groups = |number: Number| {
        let number = number.to_string();
        let parts: Vec<&str> = number.split('.').collect();
        (1..parts.len()).map(|length| parts[..length].join(".")).collect::<Vec<String>>()
    };
    let cases = || cases.iter().filter(|case| case.is_own == is_own);
    let right = cases().filter(|case| case.difference.is_none());
    let mixed: BTreeSet<String> = right.flat_map(|case| groups(case.case)).collect();
    let mut sizes: BTreeMap<String, usize> = BTreeMap::new();
    for group in cases().flat_map(|case| groups(case.case)) {
        *sizes.entry(group).or_default() += 1;
    }
    let mut patterns: Vec<String> = Vec::new();
    for case in cases().filter(|case| case.difference.is_some()) {
        let whole = groups(case.case).into_iter().find(|group| !mixed.contains(group));
        let pattern = match whole {
            Some(group) if sizes[&group] > 1 => format!("{group}.*"),
            Some(_) | None => case.case.to_string(),
        };
        if patterns.last() != Some(&pattern) {
            patterns.push(pattern);
        }
    }
    patterns
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Closing, Traffic, Volumes};

    fn result(number: &str, difference: Option<&str>) -> CaseResult {
        let number: Number = number.parse().expect("a number");
        let (behavior, behavior_close) = match difference {
            Some(_) => (Behavior::Failed, BehaviorClose::Unclean),
            None => (Behavior::Ok, BehaviorClose::Ok),
        };
        CaseResult {
            case: number,
            is_own: number.section() >= 20,
            clause: "RFC 6455 5.5.2",
            description: "Sends a ping with as many bytes as a control frame may have.".to_owned(),
            expectation: "A pong with the same bytes comes back, and nothing else.".to_owned(),
            behavior,
            result: "What came is none of what was expected.".to_owned(),
            behavior_close,
            result_close: "A complete closing handshake is needed here: the peer reset.".to_owned(),
            difference: difference.map(str::to_owned),
            observed: vec!["pong 0xfefefefefefefefefefefefefefefefe".to_owned(); 30],
            closing: Closing::default(),
            traffic: Traffic::default(),
            messages: Volumes::default(),
            request: String::new(),
            response: String::new(),
            started_at_s: 0.0,
            duration_s: 0.1,
        }
    }

    fn results(cases: Vec<CaseResult>) -> Results {
        let tally = |own: bool| {
            let cases = cases.iter().filter(|case| case.is_own == own);
            let right = cases.clone().filter(|case| case.difference.is_none()).count();
            Tally { cases: cases.count(), as_expected: right }
        };
        Results {
            format: 1,
            command: Vec::new(),
            agent: "a server".to_owned(),
            target: "ws://127.0.0.1:9001/".to_owned(),
            is_quick: false,
            cut_short: None,
            notes: Vec::new(),
            started_at_s: 0.0,
            duration_s: 1.0,
            suite: tally(false),
            own: tally(true),
            cases,
        }
    }

    /// The text without its escape sequences.
    fn plain(text: &str) -> String {
        anstream::adapter::strip_str(text).to_string()
    }

    const HOW: &str = "ringbench conform ws://127.0.0.1:9001/ --quick";

    #[test]
    fn every_line_but_the_commands_fits_the_terminal() {
        let cases = (1..=10).flat_map(|case| {
            [(1, case % 2), (9, 1), (13, 0), (24, case % 3)].map(|(section, wrong)| {
                let wrong = (wrong == 1).then_some("it should pass");
                result(&format!("{section}.{case}"), wrong)
            })
        });
        let results = results(cases.collect());
        let whole = plain(&page(&results, &[], &View { how: HOW, columns: None }));
        let last =
            "a server: 15 of 30 cases of the suite and 6 of 10 own cases as expected, in 1.0 s";
        assert_eq!(whole.lines().last(), Some(last));
        for columns in [40, 80, 120] {
            let text = plain(&page(&results, &[], &View { how: HOW, columns: Some(columns) }));
            for line in text.lines().skip_while(|line| !line.is_empty()) {
                let is_command = line.starts_with("  run it");
                let fits = line.chars().count() < columns.max(60);
                assert!(fits || is_command, "{columns}: {line}");
            }
            let mut table = text.lines().take_while(|line| !line.is_empty());
            assert!(table.all(|line| line.chars().count() < columns), "{columns}: {text}");
            // What has no room is left out, the least important first.
            assert_eq!(text.contains(" 9 limits and performance"), columns > 40, "{text}");
            assert_eq!(text.contains("UNIMPLE-"), columns > 40, "{text}");
        }
    }

    #[test]
    fn where_much_is_wrong_it_is_summed_up() {
        let mut cases: Vec<CaseResult> = Vec::new();
        for case in 1..=30 {
            cases.push(result(&format!("12.1.{case}"), Some("it should pass")));
            cases.push(result(&format!("12.2.{case}"), (case > 28).then_some("it should pass")));
        }
        cases.push(result("7.1", None));
        cases.push(result("7.2", Some("it should pass")));
        cases.push(result("6.1.1", Some("it should pass")));
        cases.push(result("20.1.1", Some("it should pass")));
        cases.push(result("20.1.2", Some("it should pass")));
        cases.sort_by_key(|case| case.case);
        let text = plain(&page(&results(cases), &[], &View { how: HOW, columns: None }));
        assert_eq!(text.matches("  run it").count(), SHOWN_MAX, "{text}");
        for part in [
            "These are 20 of the 36 that are not as expected.",
            "\nnot as expected: 6.1.1 7.2 12.1.* 12.2.29 12.2.30\n",
            "\nown cases not as expected: 20.*\n",
            "fefe, and 18 more\n",
        ] {
            assert!(text.replace("\n            ", " ").contains(part), "{part:?} in {text}");
        }
    }

    #[test]
    fn a_failure_is_red_and_what_is_right_is_green() {
        let right =
            page(&results(vec![result("1.1.1", None)]), &[], &View { how: HOW, columns: None });
        assert!(right.contains("\u{1b}[32m1 of 1 cases as expected\u{1b}[0m"), "{right:?}");
        assert!(!right.contains("\u{1b}[31m"), "{right:?}");
        let wrong = results(vec![result("2.2", Some("it should pass"))]);
        let wrong = page(&wrong, &[], &View { how: HOW, columns: None });
        assert!(wrong.contains("\u{1b}[1m\u{1b}[31m2.2\u{1b}[0m (RFC"), "{wrong:?}");
    }

    #[test]
    fn progress_says_what_has_failed() {
        let mut now = Progress {
            done: 3,
            different: 0,
            total: 9,
            last: Number::pair(2, 10),
            elapsed: Duration::from_millis(1600),
        };
        assert_eq!(progress(&now), "3 of 9 cases, last 2.10, 2 s");
        now.different = 1;
        assert_eq!(progress(&now), "3 of 9 cases, 1 not as expected, last 2.10, 2 s");
    }
}
