//! Less CPU time and less memory than the machine has, by control groups (cgroups(7)).
//!
//! Works with either version of control groups, where this process may make one.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::thread;

use rustix::process::Signal;
use testkit::{BINARY, Client, TEXT, TIMEOUT, frame, pattern, program, run_by, say, wait_until};

use crate::{Bare, converse, engines};

/// Where control groups are found.
const ROOT: &str = "/sys/fs/cgroup";

/// Which files set a limit: the controller of version 1, its file and value, and the same for version 2.
struct Limit {
    controller: &'static str,
    old: [(&'static str, String); 2],
    new: (&'static str, String),
}

/// This much CPU time of every 100 ms, in percent.
fn cpu(percent: u32) -> Limit {
    let quota = percent * 1000;
    Limit {
        controller: "cpu",
        old: [("cpu.cfs_period_us", "100000".into()), ("cpu.cfs_quota_us", quota.to_string())],
        new: ("cpu.max", format!("{quota} 100000")),
    }
}

/// This much memory, in bytes.
fn memory(bytes: u64) -> Limit {
    let bytes = bytes.to_string();
    Limit {
        controller: "memory",
        old: [
            ("memory.limit_in_bytes", bytes.clone()),
            // Counts memory that is swapped out too, where the kernel does.
            ("memory.memsw.limit_in_bytes", bytes.clone()),
        ],
        new: ("memory.max", bytes),
    }
}

/// A control group of a test. It is removed when dropped.
struct Group(PathBuf);

impl Group {
    /// A new group with this limit; nothing, and the reason said, where that is not possible.
    fn new(test: &str, limit: &Limit) -> Option<Group> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Relaxed);
        let name = format!("ringecho-test-{}-{number}", std::process::id());
        let attempt = || -> std::io::Result<Group> {
            let old = Path::new(ROOT).join(limit.controller);
            if old.is_dir() {
                let place = old.join(name);
                fs::create_dir(&place)?;
                let group = Group(place);
                let [first, (file, value)] = &limit.old;
                fs::write(group.0.join(first.0), &first.1)?;
                let second = fs::write(group.0.join(file), value);
                // Not every kernel counts what is swapped out.
                if !file.contains("memsw") {
                    second?;
                }
                return Ok(group);
            }
            let place = Path::new(ROOT).join(name);
            fs::create_dir(&place)?;
            let group = Group(place);
            fs::write(group.0.join(limit.new.0), &limit.new.1)?;
            Ok(group)
        };
        attempt().map_err(|error| say(&format!("SKIPPED: {test}: no control group: {error}"))).ok()
    }

    /// A command that runs the server in the group, with `arguments`.
    fn command(&self, arguments: &[&str]) -> Command {
        let processes = self.0.join("cgroup.procs");
        let mut command = Command::new("sh");
        command.args(["-c", "echo $$ > \"$0\" && exec \"$@\""]).arg(processes);
        command.arg(program()).args(["--listen", "127.0.0.1:0"]).args(arguments);
        command
    }

    /// The number behind a word in one of its files.
    fn number(&self, file: &str, word: &str) -> Option<u64> {
        let text = fs::read_to_string(self.0.join(file)).ok()?;
        let mut lines = text.lines().filter_map(|line| line.split_once(' '));
        lines.find(|(key, _)| *key == word)?.1.trim().parse().ok()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Its last process may not have left it.
        for _ in 0..1000 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            thread::sleep(testkit::PAUSE);
        }
    }
}

#[test]
fn with_a_tenth_of_a_cpu_every_engine_echoes() {
    const TEST: &str = "with_a_tenth_of_a_cpu_every_engine_echoes";
    for engine in engines() {
        let Some(group) = Group::new(TEST, &cpu(10)) else { return };
        // One that never sleeps uses up its time at once.
        let wait = if engine == "tokio-uring" { "block" } else { "spin" };
        let options = ["--engine", engine, "--wait", wait, "--workers", "2"];
        let server = Bare::start_by(&mut group.command(&options));
        for _ in 0..3 {
            converse(server.address());
        }
        let mut clients: Vec<Client> = (0..20).map(|_| Client::connect(server.address())).collect();
        clients.iter_mut().for_each(|client| client.echo(TEXT, b"a tenth"));
        let throttled = || group.number("cpu.stat", "nr_throttled").unwrap_or(0) > 0;
        wait_until("its time was used up", || {
            clients[0].echo(BINARY, &pattern(100_000));
            throttled()
        });
        clients.into_iter().for_each(Client::close);
        assert_eq!(server.terminate().status.code(), Some(0), "{engine}");
    }
}

#[test]
fn memory_that_its_group_may_not_have_is_an_error_at_the_start() {
    const TEST: &str = "memory_that_its_group_may_not_have_is_an_error_at_the_start";
    for engine in engines() {
        let Some(group) = Group::new(TEST, &memory(32 << 20)) else { return };
        let options = ["--engine", engine, "--workers", "2", "--buffers", "32"];
        let ended = run_by(&mut group.command(&options));
        assert_eq!(ended.status.code(), Some(1), "{engine} {ended:?}");
        assert_eq!(ended.stdout, "", "{engine}");
        for word in ["64.0 MiB", "32.0 MiB", "--buffers"] {
            assert!(ended.stderr.contains(word), "{engine}: no {word} in {ended:?}");
        }
        // What fits is served.
        let server = Bare::start_by(&mut group.command(&[&options[..5], &["4"]].concat()));
        converse(server.address());
        assert_eq!(server.terminate().status.code(), Some(0), "{engine}");
    }
}

/// The kernel ends a process that needs more than its group may have, and the process has no say in it. Then all of
/// it is gone at once, and no peer has been told anything wrong.
#[test]
fn when_memory_runs_out_all_of_it_ends_at_once() {
    const TEST: &str = "when_memory_runs_out_all_of_it_ends_at_once";
    for engine in engines() {
        let Some(group) = Group::new(TEST, &memory(48 << 20)) else { return };
        let options = ["--engine", engine, "--workers", "2", "--spill-pool", "0"];
        let server = Bare::start_by(&mut group.command(&options));
        let address = server.address();
        let mut witness = Client::connect(address);
        witness.echo(TEXT, b"while it lasts");
        // Text is held until its frame is complete.
        let hold = move || {
            let client = Client::connect(address);
            let mut stream = client.stream();
            let bytes = frame(TEXT, &pattern(60 << 20));
            let _ = stream.write_all(&bytes[..bytes.len() - 1]);
            drained(stream)
        };
        let threads: Vec<_> = (0..2).map(|_| thread::spawn(hold)).collect();
        for thread in threads {
            assert_eq!(thread.join().expect("a thread"), 0, "{engine}: an unfinished frame");
        }
        assert_eq!(drained(witness.stream()), 0, "{engine}");
        let ended = server.wait();
        assert_eq!(ended.status.signal(), Some(Signal::KILL.as_raw()), "{engine} {ended:?}");
        assert!(TcpStream::connect_timeout(&address, TIMEOUT).is_err(), "{engine} still listens");
    }
}

/// How many bytes come before the end, whatever end that is.
fn drained(mut stream: &TcpStream) -> usize {
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    bytes.len()
}
