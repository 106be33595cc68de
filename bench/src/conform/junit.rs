//! The outcome of a run as JUnit XML, which CI systems show: a test suite for each section, a test for
//! each case. It has failed if it is not as expected, and is skipped if what is tested does not support
//! what it is about. The results of several clients are one document, whose test suites name them.
//!
//! There is no standard. Elements and attributes are those that the schema of Jenkins' xUnit plugin and
//! that of Ant have in common with what other readers know.

use std::collections::BTreeMap;
use std::time::{Duration, UNIX_EPOCH};

use maud::{PreEscaped, html};

use super::cases::{is_own, section_name};
use super::results::{CaseResult, Results};
use super::text::listed;
use super::verdict::Behavior;

/// The XML document of these results, one or several.
pub fn document(all: &[&Results]) -> String {
    let cases: Vec<&CaseResult> = all.iter().flat_map(|results| &results.cases).collect();
    let agents: Vec<&str> = all.iter().map(|results| &results.agent[..]).collect();
    let duration_s: f64 = all.iter().map(|results| results.duration_s).sum();
    let markup = html! {
        (PreEscaped("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"))
        testsuites name=(legal(&agents.join(", "))) tests=(cases.len()) failures=(failures(&cases))
            errors="0" time=(seconds(duration_s)) {
            @for results in all {
                @let agent = if all.len() == 1 { String::new() } else { format!("{}: ", results.agent) };
                @for (section, cases) in &sections(results) {
                    testsuite name=(legal(&(agent.clone() + &name(*section)))) tests=(cases.len())
                        failures=(failures(cases)) errors="0" skipped=(skipped(cases))
                        timestamp=(moment(cases)) time=(time(cases)) {
                        @for case in cases { (testcase(case)) }
                    }
                }
            }
        }
    };
    markup.into_string() + "\n"
}

fn sections(results: &Results) -> BTreeMap<u16, Vec<&CaseResult>> {
    let mut sections: BTreeMap<u16, Vec<&CaseResult>> = BTreeMap::new();
    for case in &results.cases {
        sections.entry(case.case.section()).or_default().push(case);
    }
    sections
}

fn failures(cases: &[&CaseResult]) -> usize {
    cases.iter().filter(|case| case.difference.is_some()).count()
}

fn skipped(cases: &[&CaseResult]) -> usize {
    cases.iter().filter(|case| is_skipped(case)).count()
}

fn time(cases: &[&CaseResult]) -> String {
    seconds(cases.iter().map(|case| case.duration_s).sum())
}

fn seconds(seconds: f64) -> String {
    format!("{seconds:.3}")
}

/// The name of a section, which says whether it is an own one.
fn name(section: u16) -> String {
    let own = if is_own(section) { "own " } else { "" };
    format!("{own}{section} {}", section_name(section))
}

/// When the first of these cases began (UTC), without a zone, which readers do not expect.
fn moment(cases: &[&CaseResult]) -> String {
    let first = cases.iter().map(|case| case.started_at_s).reduce(f64::min).unwrap_or(0.0);
    let moment = UNIX_EPOCH + Duration::try_from_secs_f64(first).unwrap_or_default();
    humantime::format_rfc3339_seconds(moment).to_string().replace('Z', "")
}

fn is_skipped(case: &CaseResult) -> bool {
    case.difference.is_none() && case.behavior == Behavior::Unimplemented
}

fn testcase(case: &CaseResult) -> PreEscaped<String> {
    let name = format!("{} {}", case.case, case.description);
    let class = format!("conform.{}", case.case.section());
    let verdict = format!("{}, close {}", case.behavior, case.behavior_close);
    html! {
        testcase classname=(class) name=(legal(&name)) time=(format!("{:.3}", case.duration_s)) {
            @if let Some(difference) = &case.difference {
                failure type=(verdict) message=(format!("{verdict}; {difference} ({})", case.clause)) {
                    (legal(&format!(
                        "{} {} {} Observed: {}.",
                        case.expectation,
                        case.result,
                        case.result_close,
                        listed(&case.observed)
                    )))
                }
            } @else if is_skipped(case) {
                skipped message=(legal(&case.result)) {}
            }
        }
    }
}

/// A text without the characters that XML does not allow (XML 1.0 section 2.2), some of which a server
/// could send.
fn legal(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() && !matches!(c, '\u{fffe}' | '\u{ffff}')).collect()
}
