//! The log: lines on standard error, as text or as JSON.
//!
//! Which lines there are follows from `--log-level`, or else from `RUST_LOG`. A warning that repeats is left out after
//! [`REPEATS_MAX`] times in [`REPEATS_TIME`], so that nobody fills a disk by causing it. This module opens nothing: the
//! caller says where lines go.

use std::collections::HashMap;
use std::fmt;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::{Targets, dynamic_filter_fn};
use tracing_subscriber::fmt::format::{Format, Full, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;

/// How often one warning, whatever its figures, is written in [`REPEATS_TIME`].
pub const REPEATS_MAX: u32 = 20;
/// See [`REPEATS_MAX`].
pub const REPEATS_TIME: Duration = Duration::from_secs(60);

/// What a line looks like.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// For people: the level and the message.
    #[default]
    Text,
    /// The same with the priority in front by which the journal sorts it (sd-daemon(3)).
    Journal,
    /// An object, with a time.
    Json,
}

/// Which lines there are.
#[derive(Debug, Clone)]
pub struct Levels(Targets);

impl Levels {
    /// Those of this level and above.
    pub fn from_level(level: LevelFilter) -> Levels {
        Levels(Targets::new().with_default(level))
    }

    /// As `RUST_LOG` says: a level, or modules with their levels, such as `warn,ringecho::engine=debug`.
    ///
    /// # Errors
    ///
    /// When that is not understood: what to write.
    pub fn from_directives(text: &str) -> Result<Levels, String> {
        let targets = text.parse().map(Levels);
        targets.map_err(|error| {
            format!("{error}; write a level, or MODULE=LEVEL, with commas between")
        })
    }
}

/// Writes lines of this form to `writer`.
pub fn subscriber<W>(form: Form, levels: Levels, writer: W) -> Box<dyn Subscriber + Send + Sync>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    // It would say that it cannot write where it cannot write, and panic.
    let layer = tracing_subscriber::fmt::layer().with_writer(writer).log_internal_errors(false);
    let repeats = Repeats::default();
    let limit = dynamic_filter_fn(move |metadata, _| repeats.admit(metadata, Instant::now()));
    let Levels(targets) = levels;
    let registry = tracing_subscriber::registry();
    let plain = || Format::default().with_target(false).without_time().with_ansi(false);
    match form {
        Form::Text => {
            let layer = layer.with_target(false).without_time();
            Box::new(registry.with(layer.with_filter(limit).with_filter(targets)))
        }
        Form::Journal => {
            let layer = layer.with_ansi(false).event_format(Prioritized(plain()));
            Box::new(registry.with(layer.with_filter(limit).with_filter(targets)))
        }
        Form::Json => {
            let layer = layer.json().with_current_span(false).with_span_list(false);
            Box::new(registry.with(layer.with_filter(limit).with_filter(targets)))
        }
    }
}

/// Whether standard error is the stream that the journal has named in `JOURNAL_STREAM`, by its device and inode
/// (systemd.exec(5)).
pub fn is_journal(named: Option<&str>, stream: Option<(u64, u64)>) -> bool {
    let named = named.and_then(|named| named.split_once(':'));
    let named = named.and_then(|(device, inode)| Some((device.parse().ok()?, inode.parse().ok()?)));
    named.is_some() && named == stream
}

/// The priority of a line as syslog(3) counts them.
fn priority(level: &Level) -> u8 {
    match *level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}

/// Lines with their priority in front.
struct Prioritized(Format<Full, ()>);

impl<S, N> FormatEvent<S, N> for Prioritized
where
    S: Subscriber + for<'s> LookupSpan<'s>,
    N: for<'w> FormatFields<'w> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        write!(writer, "<{}>", priority(event.metadata().level()))?;
        self.0.format_event(context, writer, event)
    }
}

/// How often each warning was written lately.
#[derive(Debug, Default)]
struct Repeats(Mutex<HashMap<Identifier, (Instant, u32)>>);

impl Repeats {
    /// Whether an event is to be written. Only warnings are counted: errors end the process, and whoever wants
    /// more than warnings has asked for it.
    fn admit(&self, metadata: &Metadata<'_>, now: Instant) -> bool {
        if *metadata.level() != Level::WARN {
            return true;
        }
        self.count(metadata.callsite(), now) <= REPEATS_MAX
    }

    fn count(&self, callsite: Identifier, now: Instant) -> u32 {
        let mut repeats = self.0.lock().expect("a panic ends the process");
        let (since, count) = repeats.entry(callsite).or_insert((now, 0));
        if now.duration_since(*since) >= REPEATS_TIME {
            (*since, *count) = (now, 0);
        }
        *count = count.saturating_add(1);
        *count
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};
    use std::sync::Arc;

    use tracing::{debug, info, warn};

    use super::*;

    #[derive(Debug, Default, Clone)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no panic").write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn written(form: Form, levels: Levels, log: impl FnOnce()) -> String {
        let lines = Lines::default();
        let writer = lines.clone();
        tracing::subscriber::with_default(subscriber(form, levels, move || writer.clone()), log);
        let bytes = lines.0.lock().expect("no panic").clone();
        String::from_utf8(bytes).expect("text")
    }

    fn three() {
        debug!("one");
        info!("two {}", 2);
        warn!(code = 7, "three");
    }

    #[test]
    fn levels_and_directives_choose_the_lines() {
        let count = |levels: Levels| written(Form::Journal, levels, three).lines().count();
        for (level, lines) in [
            (LevelFilter::OFF, 0),
            (LevelFilter::WARN, 1),
            (LevelFilter::INFO, 2),
            (LevelFilter::DEBUG, 3),
        ] {
            assert_eq!(count(Levels::from_level(level)), lines, "{level}");
        }
        for (text, lines) in
            [("warn", 1), ("off,ringecho=debug", 3), ("debug,ringecho::log=off", 0)]
        {
            assert_eq!(count(Levels::from_directives(text).expect(text)), lines, "{text}");
        }
        Levels::from_directives("ringecho=much").expect_err("no level");
    }

    #[test]
    fn each_form_has_its_lines() {
        let lines = |form| written(form, Levels::from_level(LevelFilter::INFO), three);
        assert_eq!(lines(Form::Journal), "<6> INFO two 2\n<4> WARN three code=7\n");
        assert!(lines(Form::Text).contains("three") && !lines(Form::Text).contains('<'));
        for line in lines(Form::Json).lines() {
            let value: serde_json::Value = serde_json::from_str(line).expect("JSON");
            assert!(value["timestamp"].is_string() && value["level"].is_string(), "{line}");
            assert!(value["fields"]["message"].is_string(), "{line}");
        }
    }

    #[test]
    fn a_warning_that_repeats_is_left_out_for_a_while() {
        let levels = Levels::from_level(LevelFilter::INFO);
        let text = written(Form::Journal, levels, || {
            for _ in 0..100 {
                warn!("again");
                info!("asked for");
            }
            warn!("another");
        });
        assert_eq!(text.matches("again").count(), REPEATS_MAX as usize);
        assert_eq!(text.matches("asked for").count(), 100);
        assert_eq!(text.matches("another").count(), 1);
    }

    #[test]
    fn the_journal_is_known_by_its_device_and_inode() {
        assert!(is_journal(Some("8:123"), Some((8, 123))));
        for (named, stream) in [
            (None, Some((8, 123))),
            (Some("8:123"), None),
            (Some("8:124"), Some((8, 123))),
            (Some("8"), None),
        ] {
            assert!(!is_journal(named, stream), "{named:?}");
        }
    }
}
