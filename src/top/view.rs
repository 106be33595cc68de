//! The picture: figures, their recent course, the workers, and the limits that were hit.
//!
//! Whatever the size of the terminal, the first lines say most; what finds no room is left out, workers before
//! figures.

use std::collections::VecDeque;
use std::io;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize as _};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Paragraph, Row, Sparkline, Table};

use super::fetch::Target;
use super::sample::{Rates, Sample};

/// How many points the courses keep: a point for each column of a wide terminal.
const POINTS_MAX: usize = 512;
/// The width of a course's name and figure.
const LABEL_WIDTH: u16 = 22;

/// The counters that say that a limit was hit or a rule broken.
const LIMITS: [&str; 17] = [
    "connections_rejected",
    "addresses_refused",
    "origins_refused",
    "paths_refused",
    "handshakes_timed_out",
    "connections_timed_out",
    "connections_expired",
    "connections_shed",
    "connections_cut",
    "connections_overrun",
    "memory_shortages",
    "messages_overfragmented",
    "control_floods",
    "compression_declined",
    "buffers_exhausted",
    "protocol_violations",
    "tls_failures",
];

/// The figures of one interval whose course is drawn.
#[derive(Debug, Clone, Copy)]
struct Point {
    messages: f64,
    /// In seconds: the median, and what 99 % and 99.9 % do not exceed.
    residence: [Option<f64>; 3],
}

/// Everything that is shown.
#[derive(Debug)]
pub struct View {
    target: Target,
    before: Option<Sample>,
    now: Option<Sample>,
    points: VecDeque<Point>,
    /// Why the last question had no answer.
    problem: Option<String>,
}

impl View {
    pub(super) fn new(target: &Target) -> View {
        let points = VecDeque::new();
        View { target: target.clone(), before: None, now: None, points, problem: None }
    }

    pub(super) fn target(&self) -> &Target {
        &self.target
    }

    /// The server has answered.
    pub(super) fn add(&mut self, sample: Sample) {
        self.problem = None;
        self.before = self.now.replace(sample);
        let Some(rates) = self.rates() else { return };
        let residence = [0.5, 0.99, 0.999].map(|share| rates.residence(share));
        let point = Point { messages: rates.total("ringecho_messages_total"), residence };
        if self.points.len() == POINTS_MAX {
            self.points.pop_front();
        }
        self.points.push_back(point);
    }

    /// The server has not answered.
    pub(super) fn miss(&mut self, error: &io::Error) {
        self.problem = Some(error.to_string());
    }

    fn rates(&self) -> Option<Rates<'_>> {
        Rates::between(self.before.as_ref()?, self.now.as_ref()?)
    }

    /// Draws all of it.
    pub fn draw(&self, frame: &mut Frame<'_>) {
        let Some(sample) = &self.now else { return };
        let area = frame.area();
        // Courses are two lines high where there is room.
        let course = if area.height >= 22 { 2 } else { 1 };
        let limits = self.limits(sample);
        let limit_lines = (limits.len() as u16 + 1).min(area.height / 4);
        let [title, figures, courses, workers, hit, keys] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Length(2),
            Constraint::Length(4 * course),
            Constraint::Min(0),
            Constraint::Length(limit_lines),
            Constraint::Length(1),
        ])
        .areas(area);
        frame.render_widget(self.title(sample, title.width), title);
        frame.render_widget(self.figures(sample), figures);
        self.draw_courses(frame, courses);
        frame.render_widget(self.workers(sample, workers), workers);
        frame.render_widget(limits_list(&limits, hit.height), hit);
        let keys_text = match &self.problem {
            Some(problem) => Line::from(format!("no answer: {problem}")).fg(Color::Red).bold(),
            None => Line::from("q quits").dim(),
        };
        frame.render_widget(keys_text, keys);
    }

    fn title(&self, sample: &Sample, width: u16) -> Line<'static> {
        let (version, engine) = &sample.build;
        let seconds = sample.uptime().as_secs();
        let uptime = humantime::format_duration(std::time::Duration::from_secs(seconds));
        let uptime = uptime.to_string().split(' ').take(2).collect::<Vec<_>>().join(" ");
        let name = format!("ringecho {version}");
        let rest = format!(" {engine} at {}, up {uptime}", self.target);
        // On a narrow terminal the address is what matters.
        if usize::from(width) < name.len() + rest.len() {
            return Line::from(vec![
                Span::from("ringecho").bold(),
                format!(" {}", self.target).into(),
            ]);
        }
        Line::from(vec![Span::from(name).bold(), rest.into()])
    }

    fn figures(&self, sample: &Sample) -> Paragraph<'static> {
        let rates = self.rates();
        let rate = |name: &str| rates.as_ref().map(|rates| rates.total(name));
        let shown = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), scaled);
        let open = sample.total("ringecho_connections_open");
        let most = sample.total("ringecho_connections_max");
        let memory = sample.total("ringecho_memory_bytes");
        let cpu = rate("process_cpu_seconds_total").map(|share| share * 100.0);
        let cpu = cpu.map_or_else(|| "-".to_owned(), |share| format!("{share:.0}%"));
        Paragraph::new(vec![
            Line::from(format!(
                "{}/s  in {}B/s  out {}B/s",
                shown(rate("ringecho_messages_total")),
                shown(rate("ringecho_bytes_in_total")),
                shown(rate("ringecho_bytes_out_total")),
            )),
            Line::from(format!(
                "open {open:.0} of {}  mem {}B  cpu {cpu}",
                scaled(most),
                scaled(memory),
            )),
        ])
    }

    fn draw_courses(&self, frame: &mut Frame<'_>, area: Rect) {
        let times = |place: usize| {
            let times = self.points.iter().map(move |point| point.residence[place]);
            times.collect::<Vec<Option<f64>>>()
        };
        let messages: Vec<Option<f64>> =
            self.points.iter().map(|point| Some(point.messages)).collect();
        let courses = [
            ("messages/s", messages, scaled as fn(f64) -> String, Color::Green),
            ("p50 stay", times(0), time, Color::Cyan),
            ("p99 stay", times(1), time, Color::Yellow),
            ("p99.9 stay", times(2), time, Color::Magenta),
        ];
        let areas = Layout::vertical([Constraint::Ratio(1, 4); 4]).split(area);
        for ((name, values, written, color), area) in courses.into_iter().zip(areas.iter()) {
            let [label, course] =
                Layout::horizontal([Constraint::Length(LABEL_WIDTH), Constraint::Min(0)])
                    .areas(*area);
            let last = values.last().copied().flatten().map_or_else(|| "-".to_owned(), written);
            frame.render_widget(Line::from(format!("{name:<11}{last:>9}")), label);
            let seen = &values[values.len().saturating_sub(course.width.into())..];
            // Times beyond all bounds are drawn as the longest bound.
            let data = seen.iter().map(|value| value.map(|value| (value.min(2.0) * 1e9) as u64));
            let sparkline = Sparkline::default()
                .data(data.collect::<Vec<Option<u64>>>())
                .absent_value_symbol(" ")
                .style(Style::new().fg(color));
            frame.render_widget(sparkline, course);
        }
    }

    fn workers(&self, sample: &Sample, area: Rect) -> Table<'static> {
        let rates = self.rates();
        let columns: &[&str] = match area.width {
            ..60 => &["worker", "open", "msg/s"],
            _ => {
                &["worker", "open", "msg/s", "in B/s", "out B/s", "calls/msg", "spins/s", "memory"]
            }
        };
        let rows = (0..sample.workers()).map(|worker| {
            let rate = |name: &str| rates.as_ref().map(|rates| rates.of_worker(worker, name));
            let calls = rate("ringecho_syscalls_total").zip(rate("ringecho_messages_total"));
            let calls = calls.filter(|(_, messages)| *messages > 0.0);
            let shown = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), scaled);
            let cells = [
                worker.to_string(),
                format!("{:.0}", sample.of_worker(worker, "ringecho_connections_open")),
                shown(rate("ringecho_messages_total")),
                shown(rate("ringecho_bytes_in_total")),
                shown(rate("ringecho_bytes_out_total")),
                calls.map_or_else(|| "-".to_owned(), |(calls, all)| format!("{:.2}", calls / all)),
                shown(rate("ringecho_spins_total")),
                scaled(sample.of_worker(worker, "ringecho_memory_bytes")),
            ];
            Row::new(cells.into_iter().take(columns.len()).collect::<Vec<String>>())
        });
        let widths = columns.iter().map(|_| Constraint::Length(9));
        let header = Row::new(columns.iter().copied().map(str::to_owned).collect::<Vec<String>>());
        Table::new(rows, widths).header(header.bold())
    }

    /// What was hit since the start: its name, how often, and how often in a second now.
    fn limits(&self, sample: &Sample) -> Vec<(&'static str, f64, Option<f64>)> {
        let rates = self.rates();
        let mut hit: Vec<_> = LIMITS
            .into_iter()
            .map(|name| {
                let metric = format!("ringecho_{name}_total");
                let rate = rates.as_ref().map(|rates| rates.total(&metric));
                (name, sample.total(&metric), rate)
            })
            .filter(|(_, total, _)| *total > 0.0)
            .collect();
        // Those that are hit now come first.
        hit.sort_by(|one, other| other.2.unwrap_or(0.0).total_cmp(&one.2.unwrap_or(0.0)));
        hit
    }
}

fn limits_list(limits: &[(&'static str, f64, Option<f64>)], height: u16) -> Paragraph<'static> {
    let room = usize::from(height).saturating_sub(1);
    let mut lines = vec![match limits.len() {
        0 => Line::from("no limit was hit").dim(),
        count if count > room => Line::from(format!("limits hit: {room} of {count}")).bold(),
        _ => Line::from("limits hit").bold(),
    }];
    lines.extend(limits.iter().take(room).map(|(name, total, rate)| {
        let line = Line::from(format!("{name:<24}{total:>9.0}  {}/s", scaled(rate.unwrap_or(0.0))));
        if rate.is_some_and(|rate| rate > 0.0) { line.fg(Color::Red) } else { line }
    }));
    Paragraph::new(lines)
}

/// At most three digits and a decimal prefix.
fn scaled(value: f64) -> String {
    if !value.is_finite() {
        return "any".to_owned();
    }
    let mut value = value;
    for prefix in ["", "k", "M", "G", "T"] {
        // What would be rounded to four digits has the next prefix.
        if value < 999.5 {
            let decimals = match value {
                _ if prefix.is_empty() && value.fract() == 0.0 => 0,
                ..9.995 => 2,
                ..99.95 => 1,
                _ => 0,
            };
            return format!("{value:.decimals$}{prefix}");
        }
        value /= 1000.0;
    }
    format!("{value:.0}P")
}

/// A time in seconds, with its unit.
fn time(seconds: f64) -> String {
    if !seconds.is_finite() {
        return "> 1 s".to_owned();
    }
    let (value, unit) = match seconds {
        ..999.5e-9 => (seconds * 1e9, "ns"),
        ..999.5e-6 => (seconds * 1e6, "µs"),
        ..0.9995 => (seconds * 1e3, "ms"),
        _ => (seconds, "s"),
    };
    format!("{} {unit}", scaled(value))
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::super::sample::tests::pair;
    use super::*;

    fn view(workers: usize) -> View {
        let target = "127.0.0.1:9100".parse().expect("an address");
        let mut view = View::new(&target);
        pair(workers).into_iter().for_each(|sample| view.add(sample));
        view
    }

    /// The lines of the picture on a terminal of this size.
    fn drawn(view: &View, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
        terminal.draw(|frame| view.draw(frame)).expect("a picture");
        let buffer = terminal.backend().buffer();
        let line = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>();
        (0..height).map(|y| line(y).trim_end().to_owned()).collect()
    }

    #[test]
    fn every_size_shows_the_rate_and_how_long_messages_stay() {
        let view = view(2);
        for (width, height) in [(40, 12), (80, 24), (200, 60)] {
            let text = drawn(&view, width, height).join("\n");
            let size = format!("{width}x{height}:\n{text}");
            for wanted in [
                "127.0.0.1:9100",
                "10.0k/s  in 220kB/s  out 180kB/s",
                "open 6 of 100",
                "messages/s     10.0k",
                "p50 stay        1 µs",
                "p99 stay       50 µs",
                "p99.9 stay     50 µs",
                "limits hit",
                "connections_rejected",
                "q quits",
                "█",
            ] {
                assert!(text.contains(wanted), "{wanted:?} in {size}");
            }
        }
        let wide = drawn(&view, 80, 24);
        let at = wide.iter().position(|line| line.starts_with("worker")).expect("a table");
        let cells: Vec<&str> = wide[at + 2].split_whitespace().collect();
        assert_eq!(cells, ["1", "3", "5.00k", "110k", "90.0k", "1.00", "0", "1.05M"]);
    }

    #[test]
    fn no_size_and_no_number_of_workers_is_too_much() {
        for workers in [1, 100] {
            let view = view(workers);
            for (width, height) in [(1, 1), (3, 2), (10, 5), (20, 8), (400, 3), (5, 200)] {
                drawn(&view, width, height);
            }
        }
    }

    #[test]
    fn a_server_that_does_not_answer_is_said_and_its_last_figures_stay() {
        let mut view = view(1);
        view.miss(&io::Error::other("connection refused"));
        let lines = drawn(&view, 80, 24);
        assert_eq!(lines.last().expect("a line"), "no answer: connection refused");
        assert!(lines.join("\n").contains("5.00k/s"));
        let [sample, _] = pair(1);
        view.add(sample);
        // It was started again: no rate yet.
        let lines = drawn(&view, 80, 24);
        assert_eq!(lines.last().expect("a line"), "q quits");
        assert!(lines[1].starts_with("-/s"), "{}", lines[1]);
    }

    #[test]
    fn figures_have_at_most_three_digits() {
        for (value, text) in [
            (0.0, "0"),
            (0.125, "0.12"),
            (999.0, "999"),
            (999.5, "1.00k"),
            (12_345.0, "12.3k"),
            (123_456.0, "123k"),
            (f64::INFINITY, "any"),
        ] {
            assert_eq!(scaled(value), text);
        }
        assert_eq!([1.4e-7, 1.5e-5, 0.02, 1.07].map(time), ["140 ns", "15 µs", "20 ms", "1.07 s"]);
    }
}
