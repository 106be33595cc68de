//! Processes of the tests: started without input, waited for with a timeout, killed if they do not end.

use std::io::{self, Read, Write as _};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Longer than anything that works takes.
pub const TIMEOUT: Duration = Duration::from_secs(60);
/// How often to check for something that cannot be waited for.
pub const PAUSE: Duration = Duration::from_millis(5);

/// A process that has ended.
#[derive(Debug)]
pub struct Ended {
    /// How it ended.
    pub status: ExitStatus,
    /// Everything it printed to standard output.
    pub stdout: String,
    /// Everything it printed to standard error.
    pub stderr: String,
    /// The content of the server's statistics file; null if there is none.
    pub statistics: Value,
}

impl Ended {
    /// A counter of the server, summed over all workers.
    pub fn count(&self, name: &str) -> u64 {
        count(&self.statistics, name)
    }
}

/// A counter in the `total` of `statistics`.
pub(crate) fn count(statistics: &Value, name: &str) -> u64 {
    statistics["total"][name].as_u64().unwrap_or_else(|| panic!("no {name} in {statistics}"))
}

/// Prints something to be seen even if the test passes: what was measured or skipped.
pub fn say(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Waits until `condition` holds.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + TIMEOUT;
    while !condition() {
        assert!(Instant::now() < end, "waited too long until {what}");
        thread::sleep(PAUSE);
    }
}

/// An unused path in the directory for temporary files; the file is not created.
pub fn temporary_file(name: &str) -> PathBuf {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Relaxed);
    std::env::temp_dir().join(format!("ringecho-{}-{number}-{name}", std::process::id()))
}

/// Runs a command to its end.
pub fn run_by(command: &mut Command) -> Ended {
    end(spawn(command))
}

/// Starts a command without input, its output in pipes.
pub fn spawn(command: &mut Command) -> Child {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program runs")
}

/// Waits for the end of a child, and reads its remaining pipes to their ends.
pub fn end(mut child: Child) -> Ended {
    let stdout = child.stdout.take().map(collect);
    let stderr = child.stderr.take().map(collect);
    let status = wait_for_end(&mut child);
    let text = |reader: Option<JoinHandle<String>>| {
        reader.map_or_else(String::new, |reader| reader.join().expect("a reader"))
    };
    Ended { status, stdout: text(stdout), stderr: text(stderr), statistics: Value::Null }
}

/// Reads a pipe to its end on another thread.
pub(crate) fn collect(mut pipe: impl Read + Send + 'static) -> JoinHandle<String> {
    thread::spawn(move || {
        let mut text = String::new();
        let _ = pipe.read_to_string(&mut text);
        text
    })
}

/// Waits for the end of a child; one that does not end is killed.
pub fn wait_for_end(child: &mut Child) -> ExitStatus {
    let end = Instant::now() + TIMEOUT;
    loop {
        if let Some(status) = child.try_wait().expect("a child") {
            return status;
        }
        if Instant::now() > end {
            let _ = child.kill();
            panic!("the process did not end");
        }
        thread::sleep(PAUSE);
    }
}
