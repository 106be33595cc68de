//! Figures from the text of the metrics: one answer is a [`Sample`], and two of them have [`Rates`] between them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// What a server answered, and when.
#[derive(Debug, Clone)]
pub(super) struct Sample {
    at: Instant,
    /// Series without labels, and those of each worker, summed.
    totals: BTreeMap<String, f64>,
    /// By counter, its value for each worker.
    workers: BTreeMap<String, Vec<f64>>,
    /// Upper bounds in seconds, and how many messages stayed no longer.
    residence: Vec<(f64, f64)>,
    /// The version and the engine.
    pub(super) build: (String, String),
}

impl Sample {
    /// Reads the text format; `None` if it is not that of a ringecho server.
    pub(super) fn parse(text: &str) -> Option<Sample> {
        Sample::parse_at(text, Instant::now())
    }

    pub(super) fn parse_at(text: &str, at: Instant) -> Option<Sample> {
        let mut sample = Sample {
            at,
            totals: BTreeMap::new(),
            workers: BTreeMap::new(),
            residence: Vec::new(),
            build: Default::default(),
        };
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (series, value) = line.rsplit_once(' ')?;
            let value: f64 = value.parse().ok()?;
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            match name {
                "ringecho_residence_seconds_bucket" => {
                    sample.residence.push((label(labels, "le")?.parse().ok()?, value));
                }
                "ringecho_build_info" => {
                    let of = |name| label(labels, name).map(str::to_owned);
                    sample.build = (of("version")?, of("engine")?);
                }
                name => {
                    *sample.totals.entry(name.to_owned()).or_default() += value;
                    if label(labels, "worker").is_some() {
                        sample.workers.entry(name.to_owned()).or_default().push(value);
                    }
                }
            }
        }
        let is_whole = !sample.build.0.is_empty() && !sample.residence.is_empty();
        (is_whole && sample.workers() > 0).then_some(sample)
    }

    /// A series summed over the workers; 0 if there is none.
    pub(super) fn total(&self, name: &str) -> f64 {
        self.totals.get(name).copied().unwrap_or_default()
    }

    pub(super) fn of_worker(&self, worker: usize, name: &str) -> f64 {
        let values = self.workers.get(name).and_then(|values| values.get(worker));
        values.copied().unwrap_or_default()
    }

    pub(super) fn workers(&self) -> usize {
        self.workers.get("ringecho_messages_total").map_or(0, Vec::len)
    }

    /// How long the server has run.
    pub(super) fn uptime(&self) -> Duration {
        Duration::try_from_secs_f64(self.total("ringecho_uptime_seconds")).unwrap_or_default()
    }
}

/// The value of a label in what follows the brace. No label of a server has a quotation mark in its value.
fn label<'a>(labels: &'a str, name: &str) -> Option<&'a str> {
    let mut pairs = labels.trim_end_matches('}').split(',').filter_map(|it| it.split_once('='));
    Some(pairs.find(|(key, _)| *key == name)?.1.trim_matches('"'))
}

/// What happened between two samples of the same process.
#[derive(Debug)]
pub(super) struct Rates<'a> {
    before: &'a Sample,
    after: &'a Sample,
}

impl<'a> Rates<'a> {
    /// `None` if the server was started again in between, or no time has passed.
    pub(super) fn between(before: &'a Sample, after: &'a Sample) -> Option<Rates<'a>> {
        let is_same = before.uptime() <= after.uptime() && before.workers() == after.workers();
        (is_same && after.at > before.at).then_some(Rates { before, after })
    }

    fn per_second(&self, before: f64, after: f64) -> f64 {
        (after - before).max(0.0) / (self.after.at - self.before.at).as_secs_f64()
    }

    /// Of a counter summed over the workers, per second.
    pub(super) fn total(&self, name: &str) -> f64 {
        self.per_second(self.before.total(name), self.after.total(name))
    }

    /// Of a counter of one worker, per second.
    pub(super) fn of_worker(&self, worker: usize, name: &str) -> f64 {
        let [before, after] =
            [self.before, self.after].map(|sample| sample.of_worker(worker, name));
        self.per_second(before, after)
    }

    /// A time that this share of the messages did not exceed: the upper bound of its bucket, which is at most a
    /// tenth too high. `None` if there was no message; infinite beyond all bounds.
    pub(super) fn residence(&self, share: f64) -> Option<f64> {
        let counted = self.before.residence.iter().zip(&self.after.residence);
        let grown: Vec<(f64, f64)> =
            counted.map(|(before, after)| (after.0, after.1 - before.1)).collect();
        let all = grown.last().map(|last| last.1).filter(|&all| all > 0.0)?;
        grown.into_iter().find(|(_, count)| *count >= share * all).map(|(bound, _)| bound)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The metrics of a server with so many workers, each of which has answered `messages` so far, all of them within
    /// two bounds.
    pub(in crate::top) fn text(workers: usize, messages: u64) -> String {
        let uptime = 3600 + messages;
        let mut text = String::from("# HELP ringecho_messages_total Messages.\n");
        for worker in 0..workers {
            for (name, value) in [
                ("messages_total", messages),
                ("bytes_in_total", 22 * messages),
                ("bytes_out_total", 18 * messages),
                ("syscalls_total", messages),
                ("connections_open", 3),
                ("connections_rejected_total", messages / 1000),
                ("memory_bytes", 1 << 20),
            ] {
                text += &format!("ringecho_{name}{{worker=\"{worker}\"}} {value}\n");
            }
        }
        let all = messages * workers as u64;
        for (bound, count) in [("1e-6", all / 2), ("5e-5", all), ("+Inf", all)] {
            text += &format!("ringecho_residence_seconds_bucket{{le=\"{bound}\"}} {count}\n");
        }
        text += "ringecho_build_info{version=\"1.2.3\",engine=\"uring\"} 1\n";
        text += "ringecho_connections_max 100\nringecho_memory_max_bytes +Inf\n";
        text + &format!("ringecho_uptime_seconds {uptime}\nprocess_cpu_seconds_total 0.5\n")
    }

    pub(in crate::top) fn pair(workers: usize) -> [Sample; 2] {
        let now = Instant::now();
        [(0, now), (10_000, now + Duration::from_secs(2))].map(|(messages, at)| {
            Sample::parse_at(&text(workers, messages), at).expect("the metrics of a server")
        })
    }

    #[test]
    fn a_sample_has_totals_and_those_of_each_worker() {
        let [_, sample] = pair(2);
        assert_eq!(sample.build, ("1.2.3".to_owned(), "uring".to_owned()));
        assert_eq!(sample.workers(), 2);
        assert_eq!(sample.total("ringecho_messages_total"), 20_000.0);
        assert_eq!(sample.of_worker(1, "ringecho_messages_total"), 10_000.0);
        assert_eq!(sample.total("ringecho_memory_max_bytes"), f64::INFINITY);
        for other in ["", "hello", "up 1\n", "go_info{version=\"1\"} 1\n"] {
            assert!(Sample::parse(other).is_none(), "{other}");
        }
    }

    #[test]
    fn rates_are_those_of_the_time_between() {
        let [before, after] = pair(2);
        let rates = Rates::between(&before, &after).expect("the same server");
        assert_eq!(rates.total("ringecho_messages_total"), 10_000.0);
        assert_eq!(rates.of_worker(0, "ringecho_messages_total"), 5_000.0);
        assert_eq!(rates.residence(0.5), Some(1e-6));
        assert_eq!(rates.residence(0.51), Some(5e-5));
        assert_eq!(rates.residence(1.0), Some(5e-5));
        assert!(Rates::between(&after, &before).is_none());
        let idle = Sample { at: after.at + Duration::from_secs(1), ..after.clone() };
        let rates = Rates::between(&after, &idle).expect("the same server");
        assert_eq!((rates.residence(0.5), rates.total("ringecho_messages_total")), (None, 0.0));
    }
}
