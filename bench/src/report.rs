//! An HTML page of results: tables, charts, and the machine.
//!
//! The page is one file and loads no other. maud escapes everything that is not markup in this file,
//! which includes all text of a result. Nothing here measures or reads a file.

mod charts;
#[cfg(test)]
mod samples;
mod text;

use std::collections::BTreeSet;

use charts::{Drawing, LINES_MAX, Width};
use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::latency::{Latencies, PERCENTILES};
use crate::results::{Cost, Floor, Kind, Measurement, Ratio, Results};
use crate::statistics::Verdict;
use crate::tables;

const STYLE: &str = include_str!("report/style.css");

/// The page of one or more results, as HTML.
pub fn page(results: &[Results]) -> String {
    let title = match results {
        [only] => format!("ringbench: {}", heading(only)),
        _ => format!("ringbench: {} results", results.len()),
    };
    document(
        &title,
        &html! {
            @match results {
                [only] => (section(only, 0, &html! { h1 { (heading(only)) } })),
                _ => (several(results)),
            }
        },
    )
}

/// A page of this title, with the style that all pages share.
pub(crate) fn document(title: &str, body: &Markup) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body { main { (body) } }
        }
    };
    page.into_string()
}

fn several(results: &[Results]) -> Markup {
    html! {
        h1 { (results.len()) " results" }
        @if results.is_empty() { p { "No results." } }
        @if results.windows(2).any(|pair| machine(&pair[0]) != machine(&pair[1])) {
            ul.warnings {
                li { "The results are of different machines; do not compare their figures." }
            }
        }
        ol.contents {
            @for (index, result) in results.iter().enumerate() {
                li { a href={ "#result-" (index) } { (heading(result)) } ", " (began(result)) }
            }
        }
        @for (index, result) in results.iter().enumerate() {
            (section(result, index, &html! { h2.result { (heading(result)) } }))
        }
    }
}

fn machine(result: &Results) -> (&str, &str, bool) {
    let environment = &result.environment;
    (&environment.kernel, &environment.cpu, environment.is_virtual)
}

fn heading(result: &Results) -> String {
    let number = result.measurements.len();
    let plural = if number == 1 { "" } else { "s" };
    match result.kind {
        Kind::Rtt => format!("Round trips, {number} case{plural}"),
        Kind::Load => format!("Load, {number} measurement{plural}"),
        Kind::Compare => format!("Comparison of {number} target{plural}"),
    }
}

fn began(result: &Results) -> String {
    text::moment(result.started_at_s)
}

/// One result, below its heading.
fn section(result: &Results, index: usize, heading: &Markup) -> Markup {
    html! {
        section id={ "result-" (index) } {
            header {
                (heading)
                p.when { (began(result)) ", ringbench " (known(&result.environment.ringbench)) }
                pre.command tabindex="0" aria-label="command line" {
                    code { (text::command(&result.command)) }
                }
            }
            (warnings(result))
            (summary(result))
            @if !result.measurements.is_empty() {
                (latencies(result))
                (percentiles(result))
                (rounds(result))
                @if result.kind == Kind::Load { (rates(result)) }
                (costs(result))
            }
            @if !result.ratios.is_empty() { (ratios(&result.ratios)) }
            (environment(result))
        }
    }
}

fn warnings(result: &Results) -> Markup {
    html! {
        @if result.cut_short.is_some() || !result.warnings.is_empty() {
            ul.warnings aria-label="warnings" {
                @if let Some(by) = &result.cut_short {
                    li { strong { "Cut short: " } (by) }
                }
                @for warning in &result.warnings { li { (warning) } }
            }
        }
    }
}

fn summary(result: &Results) -> Markup {
    let sum = |of: fn(&Measurement) -> u64| -> u64 {
        result.measurements.iter().fold(0, |sum, each| sum.saturating_add(of(each)))
    };
    let range = |percent: f64| {
        let filled = result.measurements.iter().filter(|each| each.latencies.count() > 0);
        let values = filled.map(|each| each.latencies.percentile_ns(percent));
        let (least, greatest) = (values.clone().min()?, values.max()?);
        let [least, greatest] = [least, greatest].map(|ns| text::us(ns as f64));
        Some(if least == greatest { least } else { format!("{least} to {greatest}") })
    };
    html! {
        dl.summary {
            div { dt { "messages" } dd { (text::count(sum(|each| each.messages))) } }
            div { dt { "lost" } dd { (text::count(sum(|each| each.lost))) } }
            @for (name, percent) in [("p50, µs", 50.0), ("p99, µs", 99.0)] {
                @if let Some(range) = range(percent) { div { dt { (name) } dd { (range) } } }
            }
            @if let Some(floor) = result.floor {
                div { dt { "floor asleep, µs" } dd { (text::us(floor.block_ns as f64)) } }
                div { dt { "floor spinning, µs" } dd { (text::us(floor.spin_ns as f64)) } }
            }
        }
    }
}

fn latencies(result: &Results) -> Markup {
    let has_rate = result.kind == Kind::Load;
    let has_doubt = result.measurements.iter().any(|each| {
        let latencies = &each.latencies;
        latencies.count() > 0 && PERCENTILES.iter().any(|percent| !latencies.supports(*percent))
    });
    html! {
        h2 { "Latency" }
        (table("latencies in µs", &html! {
            thead {
                tr {
                    th scope="col" { (subject(result)) }
                    th scope="col" { "messages" }
                    th scope="col" { "lost" }
                    @if has_rate { th scope="col" { "messages/s" } }
                    @for percent in PERCENTILES { th scope="col" { "p" (percent) } }
                    th scope="col" { "max" }
                    th scope="col" { "mean" }
                    @if result.floor.is_some() {
                        th scope="col" { "p50 × floor, asleep" }
                        th scope="col" { "p50 × floor, spinning" }
                    }
                }
            }
            tbody {
                @for each in &result.measurements {
                    tr {
                        (name(each))
                        td { (text::count(each.messages)) }
                        td.bad[each.lost > 0] { (text::count(each.lost)) }
                        @if has_rate { td { (rate(each)) } }
                        (latency_cells(&each.latencies))
                        @if let Some(floor) = result.floor { (floor_cells(each, floor)) }
                    }
                }
            }
        }))
        p.note {
            "Latencies are in µs; 99 % of the messages did not take longer than p99."
            @if has_doubt {
                " Fewer than ten messages are slower than a figure in brackets; another run may well \
                 give a different one."
            }
            @if result.floor.is_some() {
                " The floor is the median round trip of a plain TCP echo on this machine, with both \
                 ends sleeping until something arrives, or with both polling without pause."
            }
        }
    }
}

fn subject(result: &Results) -> &'static str {
    match result.kind {
        Kind::Rtt => "case",
        Kind::Load => "measurement",
        Kind::Compare => "target",
    }
}

fn name(measurement: &Measurement) -> Markup {
    html! {
        th scope="row" {
            (measurement.name)
            @if !measurement.description.is_empty() { small { (measurement.description) } }
        }
    }
}

fn rate(measurement: &Measurement) -> String {
    measurement.rate().map_or("–".to_owned(), |rate| text::grouped(rate, 0))
}

fn latency_cells(latencies: &Latencies) -> Markup {
    if latencies.count() == 0 {
        return html! { @for _ in 0..PERCENTILES.len() + 2 { td { "–" } } };
    }
    html! {
        @for percent in PERCENTILES {
            @let shown = text::us(latencies.percentile_ns(percent) as f64);
            @if latencies.supports(percent) { td { (shown) } } @else { td.doubt { "(" (shown) ")" } }
        }
        td { (text::us(latencies.max_ns() as f64)) }
        td { (text::us(latencies.mean_ns())) }
    }
}

fn floor_cells(measurement: &Measurement, floor: Floor) -> Markup {
    let p50_ns = measurement.latencies.percentile_ns(50.0) as f64;
    html! {
        @for floor_ns in [floor.block_ns, floor.spin_ns] {
            td {
                @if floor_ns > 0 && measurement.latencies.count() > 0 {
                    (format!("{:.2}", p50_ns / floor_ns as f64))
                } @else { "–" }
            }
        }
    }
}

fn percentiles(result: &Results) -> Markup {
    let all = &result.measurements;
    let caption = html! {
        strong { "Latency by percentile." }
        " Further right are fewer and slower messages; the line ends at the slowest."
    };
    lines(all, "latency by percentile", &caption, charts::percentiles)
}

fn rates(result: &Results) -> Markup {
    let point = match result.kind {
        Kind::Load => " One point per second; loads of more than 300 s have longer intervals.",
        Kind::Rtt | Kind::Compare => " One point per round.",
    };
    let caption = html! { strong { "Throughput over time." } (point) };
    lines(&result.measurements, "throughput over time", &caption, charts::rates)
}

fn rounds(result: &Results) -> Markup {
    let all = &result.measurements;
    let draw = |width| charts::rounds(all, result.floor, width);
    let caption = html! {
        @match result.kind {
            Kind::Load => {
                strong { "Spread over time." }
                " Each dot is the median of a second; loads of more than 300 s have longer intervals."
            }
            Kind::Rtt | Kind::Compare => {
                strong { "Spread of the rounds." }
                " Each dot is the median of a round."
            }
        }
        " The bar is the median of the dots."
        @if result.floor.is_some() { " The vertical lines are the floor of this machine." }
    };
    let label = labelled("spread of the medians", all);
    figure(
        &caption,
        &html! { div.panel { (chart(&label, Width::Whole, &draw)) } },
        draw(Width::Whole),
    )
}

/// A figure of lines, in panels of a few each.
fn lines(
    all: &[Measurement],
    what: &str,
    caption: &Markup,
    draw: fn(&[Measurement], &[Measurement], Width) -> Option<Drawing>,
) -> Markup {
    let panels = all.len().div_ceil(LINES_MAX).max(1);
    let wide = if panels == 1 { Width::Whole } else { Width::Half };
    let body = html! {
        div.panels[panels > 1] {
            @for shown in all.chunks(all.len().div_ceil(panels).max(1)) {
                div.panel {
                    (chart(&labelled(what, shown), wide, &|width| draw(shown, all, width)))
                    (legend(shown))
                }
            }
        }
        @if panels > 1 { p.note { "All panels have the same axes." } }
    };
    figure(caption, &body, draw(all, all, wide))
}

/// A figure, unless there is nothing to draw in it.
fn figure(caption: &Markup, body: &Markup, drawing: Option<Drawing>) -> Markup {
    html! { @if drawing.is_some() { figure { figcaption { (caption) } (body) } } }
}

fn labelled(what: &str, shown: &[Measurement]) -> String {
    let names: Vec<&str> = shown.iter().map(|each| each.name.as_str()).collect();
    format!("Chart: {what} of {}; the tables have its figures", names.join(", "))
}

/// A chart, drawn for a wide page and for a narrow one, of which the style sheet shows one.
fn chart(label: &str, wide: Width, draw: &dyn Fn(Width) -> Option<Drawing>) -> Markup {
    html! {
        @for (width, class) in [(wide, "chart wide"), (Width::Narrow, "chart narrow")] {
            @if let Some(Drawing { width, height, elements }) = draw(width) {
                svg class=(class) viewBox={ "0 0 " (width) " " (height) } role="img"
                    aria-label=(label) { (PreEscaped(elements)) }
            }
        }
    }
}

fn legend(shown: &[Measurement]) -> Markup {
    html! {
        ul.legend aria-hidden="true" {
            @for (index, each) in shown.iter().enumerate() {
                li {
                    svg viewBox="0 0 36 8" {
                        polyline points="0,4 36,4" fill="none" stroke-width="2.5"
                            stroke={ "var(--series-" (index) ")" } {}
                    }
                    (each.name)
                }
            }
        }
    }
}

fn costs(result: &Results) -> Markup {
    let costs: Vec<(&Measurement, Cost)> =
        result.measurements.iter().filter_map(|each| Some((each, each.cost?))).collect();
    if costs.is_empty() {
        return html! {};
    }
    html! {
        h2 { "Cost of the server" }
        (table("cost to the server", &html! {
            thead {
                tr {
                    th scope="col" { (subject(result)) }
                    th scope="col" { "CPU, µs" }
                    th scope="col" { "user, µs" }
                    th scope="col" { "system, µs" }
                    th scope="col" { "machine, µs" }
                    th scope="col" { "context switches" }
                    th scope="col" { "system calls" }
                    th scope="col" { "resident, MiB" }
                }
            }
            tbody {
                @for (measurement, cost) in costs {
                    tr {
                        th scope="row" { (measurement.name) }
                        @for (figure, decimals) in [
                            (cost.cpu_us, 2),
                            (cost.user_us, 2),
                            (cost.system_us, 2),
                            (cost.machine_us, 2),
                            (cost.context_switches, 3),
                            (cost.syscalls, 3),
                        ] {
                            td { (figure.map_or("–".into(), |it| text::grouped(it, decimals))) }
                        }
                        td { (text::grouped(cost.resident_bytes as f64 / f64::from(1 << 20), 1)) }
                    }
                }
            }
        }))
        p.note {
            "Per message: CPU time of the server in user mode and in the kernel, CPU time of the whole \
             machine including the client, context switches, and system calls. Resident memory is \
             measured at the end."
        }
    }
}

fn ratios(ratios: &[Ratio]) -> Markup {
    let firsts: BTreeSet<&str> = ratios.iter().map(|ratio| ratio.to.as_str()).collect();
    let firsts = Vec::from_iter(firsts).join(", ");
    let draw = |width| charts::ratios(ratios, width);
    let caption = html! {
        strong { "Ratios to " (firsts) "." }
        " The bar goes from 1 to the ratio, the line across its end is the interval. Grey and without \
         a dot: no difference is shown."
    };
    let interval = ratios.iter().find_map(|ratio| ratio.estimate.interval);
    let label = format!("Chart: ratios to {firsts}; the table has its figures");
    html! {
        h2 { "Comparison" }
        (table("ratios", &html! {
            thead {
                tr {
                    th scope="col" { "target" }
                    th scope="col" { "figure" }
                    th scope="col" { "ratio" }
                    th scope="col" { "interval" }
                    th.words scope="col" { "difference" }
                }
            }
            tbody {
                @for Ratio { figure, of, to, estimate } in ratios {
                    tr {
                        th scope="row" { (of) small { "to " (to) } }
                        td { (figure) }
                        td { (format!("{:.3}", estimate.median)) }
                        td { (text::interval(estimate)) }
                        td.words.doubt[estimate.verdict() != Verdict::Different] {
                            (text::difference(estimate))
                        }
                    }
                }
            }
        }))
        @if let Some(interval) = interval {
            p.note {
                "Each ratio is the median of ratios between figures of the same round. Confidence of \
                 the intervals: " (tables::confidence(&interval, ratios.len())) "."
            }
        }
        (figure(&caption, &html! { div.panel { (chart(&label, Width::Whole, &draw)) } },
            draw(Width::Whole)))
    }
}

fn environment(result: &Results) -> Markup {
    let environment = &result.environment;
    let cpus = ringecho::cpus::list(&environment.cpus);
    let machine = if environment.is_virtual { "virtual" } else { "not known to be virtual" };
    let began = began(result);
    html! {
        h2 { "Environment" }
        dl.environment {
            @for (name, value) in [
                ("began", began.as_str()),
                ("ringbench", &environment.ringbench),
                ("kernel", &environment.kernel),
                ("CPU", &environment.cpu),
                ("CPUs allowed", &cpus),
                ("frequency governor", &environment.governor),
                ("machine", machine),
                ("clock source", &environment.clocksource),
                ("congestion control", &environment.congestion_control),
            ] {
                div { dt { (name) } dd { (known(value)) } }
            }
        }
    }
}

fn known(value: &str) -> &str {
    if value.is_empty() { "not known" } else { value }
}

/// A table that scrolls within itself where the page is too narrow for it.
pub(crate) fn table(label: &str, rows: &Markup) -> Markup {
    html! { div.table role="region" tabindex="0" aria-label=(label) { table { (rows) } } }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;
    use std::time::Duration;

    use super::*;
    use crate::environment::Environment;
    use crate::results::Round;

    fn empty(kind: Kind) -> Results {
        Results::new(kind, vec!["ringbench".to_owned()], Environment::default())
    }

    fn measured(latencies: Latencies) -> Measurement {
        let round = Round::new(0.0, 1.0, &latencies);
        Measurement {
            name: "a case".to_owned(),
            messages: latencies.count(),
            payload_bytes: 16,
            latencies,
            rounds: vec![round],
            ..Measurement::default()
        }
    }

    fn of(latencies: impl IntoIterator<Item = Duration>) -> Results {
        let mut all = Latencies::default();
        for latency in latencies {
            all.record(latency);
        }
        Results { measurements: vec![measured(all)], ..empty(Kind::Load) }
    }

    #[track_caller]
    fn assert_holds(page: &str, part: &str) {
        assert!(page.contains(part), "{part:?} is not on the page");
    }

    #[test]
    fn a_page_holds_each_figure() {
        for result in samples::all() {
            let page = page(std::slice::from_ref(&result));
            for warning in result.warnings.iter().chain(&result.cut_short) {
                assert_holds(&page, warning);
            }
            for word in result.command.iter().chain([
                &result.environment.kernel,
                &result.environment.cpu,
                &result.environment.ringbench,
                &result.environment.clocksource,
                &result.environment.congestion_control,
            ]) {
                assert_holds(&page, word);
            }
            for each in &result.measurements {
                assert_holds(&page, &format!("{}<small>{}", each.name, each.description));
                assert_holds(&page, &format!("<td>{}</td>", text::count(each.messages)));
                assert_holds(&page, &format!(">{}</td>", text::count(each.lost)));
                let latencies = &each.latencies;
                let percentiles =
                    PERCENTILES.map(|percent| latencies.percentile_ns(percent) as f64);
                for ns in percentiles.into_iter().chain([latencies.mean_ns()]) {
                    assert_holds(&page, &text::us(ns));
                }
                assert_holds(&page, &format!("<td>{}</td>", text::us(latencies.max_ns() as f64)));
                if let Some(floor) = result.floor {
                    let times = latencies.percentile_ns(50.0) as f64 / floor.block_ns as f64;
                    assert_holds(&page, &format!("<td>{times:.2}</td>"));
                }
                if let Some(cost) = each.cost {
                    for us in [cost.cpu_us, cost.user_us, cost.system_us] {
                        assert_holds(&page, &format!("<td>{:.2}</td>", us.expect("a figure")));
                    }
                    let switches = cost.context_switches.expect("a figure");
                    assert_holds(&page, &format!("<td>{switches:.3}</td>"));
                }
            }
            for ratio in &result.ratios {
                let (median, interval) = (ratio.estimate.median, text::interval(&ratio.estimate));
                assert_holds(&page, &format!("<td>{median:.3}</td><td>{interval}</td>"));
            }
        }
    }

    #[test]
    fn a_page_asks_for_nothing_and_runs_nothing() {
        let page = page(&samples::all());
        for part in ["http:", "https:", "=\"//", "url(", "@import", "src=", "<script", "<link"] {
            assert!(!page.contains(part), "{part}");
        }
    }

    #[test]
    fn what_comes_from_a_result_is_escaped() {
        let mut result = samples::comparison();
        let hostile = "<script>alert('\"&')</script>".to_owned();
        result.command.push(hostile.clone());
        result.warnings.push(hostile.clone());
        result.cut_short = Some(hostile.clone());
        result.environment.cpu = hostile.clone();
        for each in &mut result.measurements {
            each.name = hostile.clone();
            each.description = hostile.clone();
        }
        for each in &mut result.ratios {
            each.of = hostile.clone();
            each.to = hostile.clone();
            each.figure = hostile.clone();
        }
        let page = page(&[result]);
        assert!(!page.contains("<script") && !page.contains("alert('\""));
        assert_holds(&page, "&lt;script&gt;");
    }

    #[test]
    fn colours_are_those_of_the_style_sheet() {
        let page = page(&samples::all());
        let (_, body) = page.split_once("</style>").expect("a style sheet");
        assert!(!body.contains("=\"#D0") && !body.contains("=\"#D1"));
        for variable in body.split("var(--").skip(1) {
            let name = variable.split(')').next().expect("a name");
            assert!(STYLE.contains(&format!("--{name}: ")), "{name}");
        }
    }

    #[test]
    fn a_page_has_a_section_for_each_result() {
        let all = samples::all();
        let page = page(&all);
        for (index, result) in all.iter().enumerate() {
            assert_holds(&page, &format!("<section id=\"result-{index}\">"));
            assert_holds(&page, &heading(result));
        }
    }

    #[test]
    fn results_of_different_machines_are_not_compared_silently() {
        let mut all = vec![samples::round_trips(), samples::round_trips()];
        assert!(!page(&all).contains("different machines"));
        all[1].environment.cpu = "another".to_owned();
        assert_holds(&page(&all), "different machines");
    }

    #[test]
    fn a_page_needs_no_messages() {
        for kind in [Kind::Rtt, Kind::Load, Kind::Compare] {
            assert!(!page(&[empty(kind)]).contains("<svg"));
        }
        let none = of([]);
        assert!(!page(&[none]).contains("latency by percentile"));
        let one = of([Duration::from_micros(20)]);
        let page = page(&[one]);
        assert_holds(&page, "(20.0)");
        assert_holds(&page, "latency by percentile");
        assert_holds(&super::page(&[]), "No results");
    }

    #[test]
    fn latencies_of_every_size_fit_one_chart() {
        let all = of((0..=7).map(|power| Duration::from_micros(10u64.pow(power))));
        let max_ns = all.measurements[0].latencies.max_ns();
        let page = page(&[all]);
        assert_holds(&page, "latency, µs (logarithmic)");
        assert_holds(&page, &format!("<td>{}</td>", text::us(max_ns as f64)));
        let extreme = of([Duration::ZERO, Duration::from_secs(1_000_000)]);
        assert_holds(&super::page(&[extreme]), "latency by percentile");
    }

    #[test]
    fn rounds_that_took_no_time_do_not_stop_a_page() {
        let mut result = of([Duration::from_micros(20)]);
        result.measurements[0].rounds[0].duration_s = 0.0;
        result.measurements[0].rounds[0].begin_s = f64::NAN;
        assert_holds(&page(&[result]), "The bar is the median of the dots.");
    }

    #[test]
    fn an_interval_that_holds_one_shows_no_difference() {
        let ratio = |low, median, high| Ratio {
            figure: "p50".to_owned(),
            of: "b".to_owned(),
            to: "a".to_owned(),
            estimate: text::tests::certain(low, median, high),
        };
        let page = |ratio| page(&[Results { ratios: vec![ratio], ..empty(Kind::Compare) }]);
        assert_holds(&page(ratio(0.98, 1.01, 1.03)), ">no difference shown</td>");
        assert_holds(&page(ratio(1.01, 1.02, 1.03)), ">2.0 % more</td>");
        assert!(!page(ratio(1.01, 1.02, 1.03)).contains(">no difference shown</td>"));
        // What no division gives is still a page.
        for wrong in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            page(ratio(wrong, wrong, wrong));
        }
    }

    /// `scripts/report-page` runs this for something to look at.
    #[test]
    #[ignore = "writes the samples into the directory RINGBENCH_SAMPLES"]
    fn samples_are_written() {
        let directory = std::env::var_os("RINGBENCH_SAMPLES").expect("a directory");
        let write = |name: &str, results: &[Results]| {
            let path = |end: &str| PathBuf::from(&directory).join(format!("{name}{end}"));
            fs::write(path(".html"), page(results)).expect("a page");
            for (number, result) in results.iter().enumerate() {
                let mut file = fs::File::create(path(&format!(".{number}.json"))).expect("a file");
                result.write(&mut file).expect("a result");
            }
        };
        write("round-trips", &[samples::round_trips()]);
        write("load", &[samples::load()]);
        write("comparison", &[samples::comparison()]);
        write("several", &samples::all());
        write("nothing", &[empty(Kind::Rtt)]);
        write("one-message", &[of([Duration::from_micros(20)])]);
        write("every-size", &[of((0..=7).map(|power| Duration::from_micros(10u64.pow(power))))]);
    }
}
