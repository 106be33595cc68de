//! The counters as text for Prometheus and OpenMetrics.
//!
//! The names are those of the statistics file with `ringecho_` before them, and with `_total` after them if they
//! only grow; each worker has a series of its own. How long messages stay is summed over the workers, because it has
//! nearly two hundred series. This file reads no counter by itself and knows of no request.
//!
//! Both formats are text, which has no native histograms; `docs/operations.md` says how Prometheus makes them.

use std::fmt;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet, prometheus_text, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};
use rustix::fs::{Mode, OFlags};

use super::Facts;
use crate::metrics::{Description, Kind, RESIDENCE_BOUNDS_NS, ResidenceSnapshot, Snapshot};
use crate::sandbox::Call;
use crate::server::Control;

/// The formats that can be asked for: the media type, its version, and both as a `Content-Type`.
pub(super) const FORMATS: [(&str, &str, &str); 2] = [
    ("text/plain", "0.0.4", "text/plain; version=0.0.4; charset=utf-8"),
    (
        "application/openmetrics-text",
        "1.0.0",
        "application/openmetrics-text; version=1.0.0; charset=utf-8",
    ),
];

/// What a thread calls that reads [`Process`].
pub(super) const CALLS: &[Call] = &[Call::Any(libc::SYS_pread64)];

/// The metrics of a server.
#[derive(Debug)]
pub(super) struct Exposition {
    registry: Registry,
}

impl Exposition {
    /// Reads what `control` is on at each [`Exposition::encode`].
    pub(super) fn new(control: Control, facts: Facts, process: Process) -> Exposition {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Metrics { control, facts, process }));
        Exposition { registry }
    }

    /// Everything as text of this media type, one of [`FORMATS`].
    pub(super) fn encode(&self, media_type: &str) -> String {
        let mut written = String::new();
        let outcome = if media_type == FORMATS[0].0 {
            prometheus_text::encode(&mut written, &self.registry)
        } else {
            text::encode(&mut written, &self.registry)
        };
        outcome.expect("a string takes everything");
        written
    }
}

/// What the kernel says of this process.
#[derive(Debug)]
pub(super) struct Process {
    /// `/proc/self/statm`, if it could be opened.
    memory: Option<OwnedFd>,
    /// The C library asks the kernel for it when it is wanted first.
    page_bytes: u64,
    started: Instant,
}

impl Process {
    /// Opens what a thread in a sandbox can no longer open.
    pub(super) fn open() -> Process {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        Process {
            memory: rustix::fs::open("/proc/self/statm", flags, Mode::empty()).ok(),
            page_bytes: rustix::param::page_size() as u64,
            started: Instant::now(),
        }
    }

    /// Resident memory in bytes: the second number of statm, in pages (proc_pid_statm(5)).
    fn resident_bytes(&self) -> Option<u64> {
        let mut line = [0; 128];
        let length = rustix::io::pread(self.memory.as_ref()?, &mut line, 0).ok()?;
        let pages = str::from_utf8(&line[..length]).ok()?.split(' ').nth(1)?;
        Some(pages.parse::<u64>().ok()? * self.page_bytes)
    }

    fn cpu_time() -> Duration {
        Duration::from(
            clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).expect("every Linux has it"),
        )
    }
}

#[derive(Debug)]
struct Metrics {
    control: Control,
    facts: Facts,
    process: Process,
}

impl Collector for Metrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let workers = self.control.statistics().workers;
        for (place, Description { name, help, kind }) in Snapshot::DESCRIPTIONS.iter().enumerate() {
            let kind = match kind {
                Kind::Counter => MetricType::Counter,
                Kind::Gauge => MetricType::Gauge,
            };
            let name = format!("ringecho_{name}");
            let mut family = encoder.encode_descriptor(&name, help.trim(), None, kind)?;
            for (number, worker) in workers.iter().enumerate() {
                let labels = [("worker", number)];
                let mut series = family.encode_family(&labels)?;
                let count = worker.counts()[place];
                match kind {
                    MetricType::Counter => {
                        series.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
                    }
                    _ => series.encode_gauge(&count)?,
                }
            }
        }
        self.encode_residence(&mut encoder)?;
        self.encode_limits(&mut encoder)?;
        let help = "The version of the program and the engine that it uses.";
        let labels = [("version", env!("CARGO_PKG_VERSION")), ("engine", self.facts.engine)];
        encoder
            .encode_descriptor("ringecho_build", help, None, MetricType::Info)?
            .encode_info(&labels)?;
        self.encode_process(&mut encoder)
    }
}

impl Metrics {
    fn encode_residence(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let ResidenceSnapshot { counts, sum_ns } = self.control.residence();
        let bounds = RESIDENCE_BOUNDS_NS.iter().map(|&bound| bound as f64 / 1e9);
        let bounds = bounds.chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip(counts).collect();
        let help = "Time from the moment at which a worker sees the last bytes of a message to the one at which \
                    it gives the echo to the kernel, over all workers.";
        let kind = MetricType::Histogram;
        let mut series =
            encoder.encode_descriptor("ringecho_residence", help, Some(&Unit::Seconds), kind)?;
        let (sum, count) = (sum_ns as f64 / 1e9, counts.iter().sum());
        series.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }

    fn encode_limits(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let Facts { connections_max, memory_max, pinned_bytes, .. } = self.facts;
        let memory_max = memory_max.map_or(f64::INFINITY, |bytes| bytes as f64);
        for (name, help, value) in [
            (
                "ringecho_connections_max",
                "The most connections open at a time, over all workers.",
                connections_max as f64,
            ),
            (
                "ringecho_memory_max_bytes",
                "The most heap memory for messages and compression, over all workers.",
                memory_max,
            ),
            (
                "ringecho_pinned_bytes",
                "Memory into which messages are received, over all workers.",
                pinned_bytes as f64,
            ),
        ] {
            encoder.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)?;
        }
        Ok(())
    }

    /// What the kernel knows of the process, by the names that Prometheus gives that.
    fn encode_process(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let seconds = Some(&Unit::Seconds);
        let used = Process::cpu_time().as_secs_f64();
        encoder
            .encode_descriptor("process_cpu", "CPU time used.", seconds, MetricType::Counter)?
            .encode_counter::<NoLabelSet, _, u64>(&used, None)?;
        let help = "How long the server has run.";
        let uptime = self.process.started.elapsed().as_secs_f64();
        encoder
            .encode_descriptor("ringecho_uptime", help, seconds, MetricType::Gauge)?
            .encode_gauge(&uptime)?;
        let Some(resident) = self.process.resident_bytes() else { return Ok(()) };
        let (name, help) = ("process_resident_memory", "Memory that is resident.");
        encoder
            .encode_descriptor(name, help, Some(&Unit::Bytes), MetricType::Gauge)?
            .encode_gauge(&resident)
    }
}
