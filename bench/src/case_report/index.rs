//! The page of all cases against all agents. It is made from the index alone, which may have entries of
//! other programs that write this format.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use maud::{Markup, html};
use serde_json::{Map, Value};

use super::page::{class, word};
use crate::conform::cases::{self, Volume, is_own, section_name};
use crate::conform::{Behavior, BehaviorClose, Case, Demand, Number, Verdict};
use crate::report;

/// What the words of the verdicts mean.
const MEANINGS: [(&str, &str, &str); 6] = [
    ("passed", "Pass", "What came back is what should."),
    ("lax", "Non-Strict", "It is allowed, but not what the RFC recommends."),
    ("open", "Info", "The RFC leaves it open. The case only shows what happens."),
    ("missing", "Unimplemented", "The peer does not support what is tested, which is optional."),
    ("failed", "Fail", "It is something else, or breaks the RFC."),
    ("missing", "Missing", "The case was not run."),
];

/// The page.
pub(super) fn page(index: &Map<String, Value>) -> String {
    let index = Index::new(index);
    let title = "WebSocket conformance";
    let body = html! {
        h1 { (title) }
        p.when {
            "By the cases and rules of the Autobahn test suite. Each verdict links to its report. The number \
             after it is the code in the peer's close frame; if the end of the connection was not right, \
             its verdict follows."
        }
        (index.summary())
        @for (section, ids) in &index.sections { (index.section(*section, ids)) }
        h2 #meanings { "Verdicts" }
        dl.meanings {
            @for (class, word, meaning) in MEANINGS {
                div { dt .verdict.(class) { (word) } dd { (meaning) } }
            }
        }
    };
    report::document(title, &body)
}

/// The section of a case whose name is no number.
const UNNUMBERED: u16 = u16::MAX;

struct Index<'a> {
    agents: Vec<(&'a String, &'a Map<String, Value>)>,
    /// The cases that are in the index, by section and in order.
    sections: BTreeMap<u16, Vec<&'a String>>,
    known: HashMap<String, Case>,
}

impl<'a> Index<'a> {
    fn new(index: &'a Map<String, Value>) -> Index<'a> {
        let mut agents: Vec<(&String, &Map<String, Value>)> = index
            .iter()
            .filter_map(|(agent, entries)| Some((agent, entries.as_object()?)))
            .collect();
        agents.sort_unstable_by_key(|&(agent, _)| agent);
        let ids: BTreeSet<(Option<Number>, &String)> = agents
            .iter()
            .flat_map(|(_, entries)| entries.keys())
            .map(|id| (id.parse().ok(), id))
            .collect();
        let mut sections: BTreeMap<u16, Vec<&String>> = BTreeMap::new();
        for (number, id) in ids {
            let section = number.map_or(UNNUMBERED, Number::section);
            sections.entry(section).or_default().push(id);
        }
        let known = cases::every(Volume::Full);
        let known = known.into_iter().map(|case| (case.number.to_string(), case)).collect();
        Index { agents, sections, known }
    }

    /// Sections against agents.
    fn summary(&self) -> Markup {
        let sections = self.sections.iter().map(|(section, ids)| (*section, ids));
        let of = |own: bool| -> Vec<&String> {
            let sections = self.sections.iter().filter(|(section, _)| is_own(**section) == own);
            sections.flat_map(|(_, ids)| ids).copied().collect()
        };
        let sums = [("All of the suite", of(false)), ("All own cases", of(true))];
        html! {
            h2 { "Sections" }
            (report::table("sections", &html! {
                thead { tr {
                    th scope="col" { "Section" }
                    @for (agent, _) in &self.agents { th.words scope="col" { (agent) } }
                } }
                tbody {
                    @for (section, ids) in sections {
                        tr {
                            th scope="row" { a href={ "#section-" (section) } { (heading(section)) } }
                            @for (_, entries) in &self.agents { (tally(ids, entries)) }
                        }
                    }
                    @for (name, ids) in sums.iter().filter(|(_, ids)| !ids.is_empty()) {
                        tr.sum {
                            th scope="row" { (name) }
                            @for (_, entries) in &self.agents { (tally(ids, entries)) }
                        }
                    }
                }
            }))
            p.note { a href="#meanings" { "What the verdicts mean" } }
        }
    }

    /// The cases of a section against agents.
    fn section(&self, section: u16, ids: &[&String]) -> Markup {
        html! {
            h2 id={ "section-" (section) } {
                (heading(section))
                @if is_own(section) && section != UNNUMBERED {
                    small { " (own section, not of the suite)" }
                }
            }
            (report::table(&heading(section), &html! {
                thead { tr {
                    th scope="col" { "Case" }
                    @for (agent, _) in &self.agents { th.words scope="col" { (agent) } }
                } }
                tbody {
                    @for id in ids {
                        @let case = self.known.get(*id);
                        tr {
                            th.case scope="row" {
                                (id)
                                @if let Some(case) = case { small { (case.description) } }
                            }
                            @for (_, entries) in &self.agents {
                                (cell(&entries.get(*id).into(), case.is_some_and(Case::is_timed)))
                            }
                        }
                    }
                }
            }))
        }
    }
}

fn heading(section: u16) -> String {
    match section {
        UNNUMBERED => "Other cases".to_owned(),
        _ => format!("{section} {}", section_name(section)),
    }
}

/// The verdicts of an agent on a case.
enum Judged<'a> {
    Missing,
    /// With words that the suite does not have.
    Unknown(String),
    Known {
        verdict: Verdict,
        code: Option<u64>,
        duration_ms: Option<u64>,
        page: &'a str,
    },
}

impl<'a> From<Option<&'a Value>> for Judged<'a> {
    fn from(entry: Option<&'a Value>) -> Judged<'a> {
        let Some(entry) = entry else { return Judged::Missing };
        let [behavior, close] = ["behavior", "behaviorClose"].map(|key| entry[key].as_str());
        let known = Behavior::ALL.into_iter().find(|it| Some(&it.to_string()[..]) == behavior);
        let closed = BehaviorClose::ALL.into_iter().find(|it| Some(&it.to_string()[..]) == close);
        let (Some(behavior), Some(behavior_close)) = (known, closed) else {
            let [behavior, close] = [behavior, close].map(|word| word.unwrap_or("?"));
            return Judged::Unknown(format!("{behavior} {close}"));
        };
        let [result, result_close] = [String::new(), String::new()];
        Judged::Known {
            verdict: Verdict { behavior, result, behavior_close, result_close },
            code: entry["remoteCloseCode"].as_u64(),
            duration_ms: entry["duration"].as_u64(),
            page: entry["reportfile"]
                .as_str()
                .and_then(|file| file.strip_suffix(".json"))
                .unwrap_or(""),
        }
    }
}

/// How many of these cases pass.
fn tally(ids: &[&String], entries: &Map<String, Value>) -> Markup {
    let judged: Vec<Judged<'_>> = ids.iter().map(|id| entries.get(*id).into()).collect();
    let verdicts: Vec<&Verdict> = judged
        .iter()
        .filter_map(|judged| match judged {
            Judged::Known { verdict, .. } => Some(verdict),
            Judged::Missing | Judged::Unknown(_) => None,
        })
        .collect();
    let run = judged.iter().filter(|judged| !matches!(judged, Judged::Missing)).count();
    if run == 0 {
        return html! { td.words.missing { "Missing" } };
    }
    let passed = verdicts.iter().filter(|verdict| verdict.passes(Demand::Musts)).count();
    let count = |class_: &str| {
        verdicts.iter().filter(|it| class(it.behavior, it.behavior_close) == class_).count()
    };
    let others = [("lax", "non-strict"), ("open", "info"), ("missing", "unimplemented")]
        .map(|(class, word)| (count(class), word));
    let others: Vec<String> = others
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, word)| format!("{count} {word}"))
        .collect();
    let class = if passed < run { "failed" } else { "passed" };
    html! {
        td .words.(class) {
            (passed) " of " (run)
            @if !others.is_empty() { small { (others.join(", ")) } }
        }
    }
}

/// The verdicts of an agent on a case.
fn cell(judged: &Judged<'_>, is_timed: bool) -> Markup {
    let (verdict, code, duration_ms, page) = match judged {
        Judged::Missing => return html! { td.words.missing { "Missing" } },
        Judged::Unknown(words) => return html! { td.words.failed { (words) } },
        Judged::Known { verdict, code, duration_ms, page } => (verdict, code, duration_ms, page),
    };
    let Verdict { behavior, behavior_close, .. } = verdict;
    let code = code.map_or("no code".to_owned(), |code| code.to_string());
    let is_right = matches!(behavior_close, BehaviorClose::Ok | BehaviorClose::Informational);
    html! {
        td .words.(class(*behavior, *behavior_close)) {
            a href={ (page) ".html" } { (word(*behavior)) } " " (code)
            @if !is_right { " " (behavior_close) }
            @if let (true, Some(duration)) = (is_timed, duration_ms) { small { (duration) " ms" } }
        }
    }
}
