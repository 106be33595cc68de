//! What the running server can no longer do: each thread of it, on every engine.

use std::fs;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::Command;

use rustix::io::Errno;
use rustix::process::Signal;
use testkit::injection::{IS_SUPPORTED, Outcome, Stopped};
use testkit::{
    Client, Server, TEXT, can_offload, program, run, say, temporary_file, wait_until, without,
};

use crate::{Bare, converse, engines};

/// The number of landlock_create_ruleset(2) on all architectures.
const LANDLOCK_CREATE_RULESET: i64 = 444;
/// `CAP_CHOWN`, `CAP_DAC_OVERRIDE` and `CAP_FOWNER` in a mask of capabilities (capabilities(7)).
const FOR_FILES: u64 = 0b1011;
/// A user of these tests alone.
const SOMEBODY: u32 = 65_530;

/// Whether this kernel enforces all of a sandbox. If not, says that `test` is skipped.
fn is_enforced(test: &str) -> bool {
    let report = run(&["doctor", "--json"]).stdout;
    let report: serde_json::Value = serde_json::from_str(&report).expect("JSON");
    let checks = report["checks"].as_array().expect("an array");
    let check = checks.iter().find(|check| check["name"] == "sandbox").expect("a check");
    if check["verdict"] != "fine" {
        say(&format!("SKIPPED: {test}: {}", check["found"]));
    }
    check["verdict"] == "fine"
}

/// A thread of a process: its id, its name, and its `status` (proc(5)).
struct Thread {
    id: i32,
    name: String,
    status: String,
}

impl Thread {
    /// All threads of a process but those that the kernel has added for io_uring, which make no system calls.
    fn all(pid: rustix::process::Pid) -> Vec<Thread> {
        let tasks = fs::read_dir(format!("/proc/{}/task", pid.as_raw_pid())).expect("a process");
        let threads = tasks.map(|task| {
            let task = task.expect("a thread");
            let read = |file| fs::read_to_string(task.path().join(file)).expect("a thread");
            let id = task.file_name().to_string_lossy().parse().expect("a number");
            Thread { id, name: read("comm").trim().to_owned(), status: read("status") }
        });
        threads.filter(|thread| !thread.name.starts_with("iou-")).collect()
    }

    /// The threads of the program that serves with one worker, by what they do.
    fn named(pid: rustix::process::Pid, name: &str) -> i32 {
        let found = Thread::all(pid).into_iter().find(|thread| thread.name == name);
        found.unwrap_or_else(|| panic!("no thread {name}")).id
    }

    fn field(&self, name: &str) -> &str {
        let mut lines = self.status.lines().filter_map(|line| line.split_once(':'));
        lines.find(|(key, _)| *key == name).expect("a field").1.trim()
    }

    fn number(&self, name: &str) -> u64 {
        self.field(name).parse().expect("a number")
    }

    fn capabilities(&self, name: &str) -> u64 {
        u64::from_str_radix(self.field(name), 16).expect("a mask")
    }
}

/// This thread, of which the server inherits what it does not set itself.
fn own() -> Thread {
    let status = fs::read_to_string("/proc/thread-self/status").expect("a thread");
    Thread { id: 0, name: String::new(), status }
}

#[test]
fn every_thread_is_locked_down() {
    const TEST: &str = "every_thread_is_locked_down";
    if !is_enforced(TEST) {
        return;
    }
    let mut options: Vec<Vec<&str>> = engines().map(|engine| vec!["--engine", engine]).collect();
    options.push(vec!["--wait", "sqpoll"]);
    if can_offload(TEST) {
        options.push(vec!["--engine", "uring", "--offload", "on"]);
    }
    let filters = own().number("Seccomp_filters");
    for option in options {
        let server = Bare::start(&[&option[..], &["--workers", "2"]].concat());
        let threads = Thread::all(server.pid());
        let mut names: Vec<&str> = threads.iter().map(|thread| thread.name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["ringecho", "signals", "worker-0", "worker-1"], "{option:?}");
        for thread in &threads {
            let name = &thread.name;
            assert_eq!(thread.number("Seccomp"), 2, "{option:?} {name}");
            assert_eq!(thread.number("Seccomp_filters"), filters + 2, "{option:?} {name}");
            assert_eq!(thread.number("NoNewPrivs"), 1, "{option:?} {name}");
            for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
                assert_eq!(thread.capabilities(set), 0, "{option:?} {name} {set}");
            }
        }
        converse(server.address());
        let ended = server.terminate();
        assert_eq!(ended.status.code(), Some(0), "{option:?} {ended:?}");
        assert!(!ended.stderr.contains("sandbox"), "{option:?} {ended:?}");
    }
}

/// A worker that could not read how long it waits for its CPU would spin where it should not.
#[test]
fn what_a_worker_reads_while_it_serves_was_opened_before() {
    for engine in engines().filter(|engine| *engine != "tokio-uring") {
        let server = Bare::start(&["--engine", engine, "--wait", "adaptive", "--workers", "2"]);
        let place = format!("/proc/{}/fd", server.pid().as_raw_pid());
        let links = fs::read_dir(place).expect("a process").map(|entry| {
            let link = fs::read_link(entry.expect("a descriptor").path()).unwrap_or_default();
            link.to_string_lossy().into_owned()
        });
        let read = links.filter(|link| link.ends_with("/schedstat")).count();
        assert_eq!(read, 2, "{engine}");
        converse(server.address());
    }
}

#[test]
fn without_a_sandbox_every_thread_keeps_its_rights() {
    let own = own();
    for engine in engines() {
        let server = Bare::start(&["--engine", engine, "--sandbox", "off"]);
        for thread in Thread::all(server.pid()) {
            for field in ["Seccomp_filters", "NoNewPrivs"] {
                assert_eq!(thread.number(field), own.number(field), "{engine} {}", thread.name);
            }
            let kept = thread.capabilities("CapEff");
            assert_eq!(kept, own.capabilities("CapEff"), "{engine} {}", thread.name);
        }
        converse(server.address());
        assert_eq!(server.terminate().status.code(), Some(0));
    }
}

#[test]
fn the_thread_that_waits_for_a_successor_is_locked_down_too() {
    if !is_enforced("the_thread_that_waits_for_a_successor_is_locked_down_too") {
        return;
    }
    let door = format!("unix:{}", temporary_file("door").display());
    let filters = own().number("Seccomp_filters");
    for engine in engines() {
        let arguments = ["--engine", engine, "--workers", "1", "--takeover", &door];
        let server = Bare::start(&arguments);
        wait_until("all threads are locked down", || {
            let threads = Thread::all(server.pid());
            let is_filtered = |thread: &Thread| thread.number("Seccomp_filters") == filters + 2;
            threads.len() == 4 && threads.iter().all(is_filtered)
        });
        for thread in Thread::all(server.pid()) {
            if thread.name != "ringecho" {
                assert_eq!(thread.capabilities("CapPrm"), 0, "{engine} {}", thread.name);
            }
        }
        // The next one takes over from it, with what it has left.
        let next = Bare::start(&arguments);
        assert_eq!(server.wait().status.code(), Some(0), "{engine}");
        converse(next.address());
        assert_eq!(next.terminate().status.code(), Some(0), "{engine}");
    }
}

#[test]
fn only_threads_that_write_files_keep_capabilities_for_them() {
    let files = own().capabilities("CapPrm") & FOR_FILES;
    let server = Server::start(&["--workers", "1"]);
    for thread in Thread::all(server.pid()) {
        let kept = if thread.name.starts_with("worker-") { 0 } else { files };
        for set in ["CapPrm", "CapEff"] {
            assert_eq!(thread.capabilities(set), kept, "{} {set}", thread.name);
        }
    }
    assert_eq!(server.count("connections_open"), 0);
}

/// Stops a thread, or says that `test` is skipped.
fn stop(test: &str, thread: i32) -> Option<Stopped> {
    if !IS_SUPPORTED {
        say(&format!("SKIPPED: {test}: the registers of this machine are not known"));
        return None;
    }
    let stopped = Stopped::at(thread);
    stopped.map_err(|error| say(&format!("SKIPPED: {test}: cannot trace: {error}"))).ok()
}

/// What a refused call returns.
fn refused(errno: Errno) -> Outcome {
    Outcome::Returned(-i64::from(errno.raw_os_error()))
}

/// Addresses a page of memory that the thread maps for itself.
#[track_caller]
fn map(thread: &mut Stopped, protection: i32) -> Outcome {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    thread.call(libc::SYS_mmap, [0, 4096, protection as u64, flags as u64, u64::MAX, 0])
}

/// Opens a path with the thread's memory at `page`.
fn open(thread: &mut Stopped, page: u64, path: &str, flags: i32) -> Outcome {
    thread.write(page, &[path.as_bytes(), &[0]].concat());
    let directory = libc::AT_FDCWD as u64;
    thread.call(libc::SYS_openat, [directory, page, flags as u64, 0o600, 0, 0])
}

#[test]
fn forbidden_calls_and_forbidden_opens_fail_in_the_running_program() {
    const TEST: &str = "forbidden_calls_and_forbidden_opens_fail_in_the_running_program";
    if !is_enforced(TEST) {
        return;
    }
    let outside = temporary_file("outside");
    fs::write(&outside, "secret").expect("a file");
    let outside = outside.to_str().expect("a path in UTF-8");
    let directory = temporary_file("inside");
    fs::create_dir(&directory).expect("a directory");
    let inside = directory.join("stats.json").to_str().expect("a path in UTF-8").to_owned();
    for engine in engines() {
        let options = ["--engine", engine, "--workers", "1", "--wait", "block"];
        let server = Bare::start(&[&options[..], &["--stats-file", &inside]].concat());
        for name in ["worker-0", "signals", "ringecho"] {
            let place = format!("{engine} {name}");
            let id = Thread::named(server.pid(), name);
            let Some(mut thread) = stop(TEST, id) else { return };
            // Calls that are kept are made indeed.
            let own = i64::from(server.pid().as_raw_pid());
            assert_eq!(thread.call(libc::SYS_getpid, [0; 6]), Outcome::Returned(own), "{place}");
            let Outcome::Returned(page @ 1..) = map(&mut thread, 3) else {
                panic!("{place}: no memory");
            };
            let page = page as u64;
            // No code comes into being.
            let executable = libc::PROT_READ | libc::PROT_EXEC;
            assert_eq!(map(&mut thread, executable), refused(Errno::PERM), "{place}");
            let protect = [page, 4096, executable as u64, 0, 0, 0];
            let protected = thread.call(libc::SYS_mprotect, protect);
            assert_eq!(protected, refused(Errno::PERM), "{place}");
            // No socket, no process, no program of the kernel, no signal to others.
            let socket = [libc::AF_INET as u64, libc::SOCK_STREAM as u64, 0, 0, 0, 0];
            let load = [5, page, 128, 0, 0, 0];
            let parent = u64::from(std::process::id());
            for (number, arguments) in [
                (libc::SYS_socket, socket),
                (libc::SYS_connect, [0, page, 16, 0, 0, 0]),
                (libc::SYS_clone3, [page, 64, 0, 0, 0, 0]),
                (libc::SYS_bpf, load),
                (libc::SYS_kill, [parent, 0, 0, 0, 0, 0]),
                (libc::SYS_tgkill, [parent, parent, 0, 0, 0, 0]),
                (libc::SYS_fchmodat, [libc::AT_FDCWD as u64, page, 0o777, 0, 0, 0]),
                (libc::SYS_io_uring_register, [0, 0, page, 1, 0, 0]),
            ] {
                let outcome = thread.call(number, arguments);
                assert_eq!(outcome, refused(Errno::PERM), "{place}: call {number}");
            }
            if name == "worker-0" {
                // It opens nothing at all.
                for path in [outside, &inside] {
                    let outcome = open(&mut thread, page, path, libc::O_RDONLY);
                    assert_eq!(outcome, refused(Errno::PERM), "{place}");
                }
                continue;
            }
            // It writes where the statistics go, and nowhere else.
            for (path, flags) in [
                (outside, libc::O_RDONLY),
                (outside, libc::O_WRONLY),
                (&inside, libc::O_RDONLY),
                ("/proc/self/environ", libc::O_RDONLY),
                ("/ringecho-never", libc::O_WRONLY | libc::O_CREAT),
            ] {
                let create = open(&mut thread, page, &inside, libc::O_WRONLY | libc::O_CREAT);
                let Outcome::Returned(fd @ 0..) = create else { panic!("{place}: {create:?}") };
                thread.call(libc::SYS_close, [fd as u64, 0, 0, 0, 0, 0]);
                let outcome = open(&mut thread, page, path, flags);
                assert_eq!(outcome, refused(Errno::ACCESS), "{place}: {path}");
            }
        }
        converse(server.address());
        assert_eq!(server.terminate().status.code(), Some(0), "{engine}");
        fs::remove_file(&inside).expect("the statistics");
    }
    assert_eq!(fs::read_to_string(outside).expect("a file"), "secret");
    fs::remove_file(outside).expect("a file");
    fs::remove_dir(&directory).expect("nothing else was created");
}

#[test]
fn an_intruders_call_ends_the_server() {
    const TEST: &str = "an_intruders_call_ends_the_server";
    if !is_enforced(TEST) {
        return;
    }
    for engine in engines() {
        for number in [libc::SYS_execve, libc::SYS_ptrace, libc::SYS_io_uring_setup] {
            let options = ["--engine", engine, "--workers", "1", "--wait", "block"];
            let server = Bare::start(&options);
            let mut client = Client::connect(server.address());
            let id = Thread::named(server.pid(), "worker-0");
            let Some(mut thread) = stop(TEST, id) else { return };
            let outcome = thread.call(number, [0; 6]);
            assert_eq!(outcome, Outcome::Ended(Some(libc::SIGSYS)), "{engine} {number}");
            drop(thread);
            let status = server.wait().status;
            assert_eq!(status.signal(), Some(libc::SIGSYS), "{engine} {number}");
            assert_eq!(client.read_to_end().unwrap_or_default(), b"", "{engine} {number}");
        }
    }
}

#[test]
fn where_the_statistics_file_leads_elsewhere_nothing_is_written() {
    if !is_enforced("where_the_statistics_file_leads_elsewhere_nothing_is_written") {
        return;
    }
    let (inside, outside) = (temporary_file("inside"), temporary_file("outside"));
    for engine in engines() {
        fs::create_dir(&inside).expect("a directory");
        fs::create_dir(&outside).expect("a directory");
        fs::write(outside.join("victim"), "old").expect("a file");
        let path = inside.join("stats.json");
        let option = path.to_str().expect("a path in UTF-8");
        let server = Bare::start(&["--engine", engine, "--stats-file", option]);
        server.signal(Signal::USR1);
        wait_until("the statistics are written", || path.exists());
        for target in ["victim", "new"] {
            fs::remove_file(&path).expect("a file");
            std::os::unix::fs::symlink(outside.join(target), &path).expect("a link");
            server.signal(Signal::USR1);
            converse(server.address());
        }
        let ended = server.terminate();
        assert_eq!(ended.status.code(), Some(1), "{engine} {ended:?}");
        assert!(ended.stderr.contains("cannot write --stats-file"), "{engine} {ended:?}");
        assert_eq!(fs::read_to_string(outside.join("victim")).expect("a file"), "old", "{engine}");
        assert_eq!(fs::read_dir(&outside).expect("a directory").count(), 1, "{engine}");
        fs::remove_dir_all(&inside).expect("a directory");
        fs::remove_dir_all(&outside).expect("a directory");
    }
}

#[test]
fn it_serves_any_user_without_capabilities() {
    let start = |arguments: &[&str]| {
        let mut command = Command::new(program());
        command.args(["--listen", "127.0.0.1:0", "--workers", "1"]).args(arguments);
        command.args(["--buffers", "16", "--buffer-size", "16KiB"]);
        if rustix::process::geteuid().is_root() {
            command.uid(SOMEBODY).gid(SOMEBODY);
        }
        Server::start_by(command)
    };
    for arguments in engines().map(|engine| ["--engine", engine]).chain([["--offload", "auto"]]) {
        let server = start(&arguments);
        for thread in Thread::all(server.pid()) {
            assert_eq!(thread.capabilities("CapEff"), 0, "{arguments:?} {}", thread.name);
        }
        converse(server.address());
        server.wait_for_count("connections_open", 0);
        let ended = server.terminate();
        assert_eq!(ended.status.code(), Some(0), "{arguments:?} {ended:?}");
        assert_eq!(ended.count("messages"), 14, "{arguments:?}");
    }
}

#[test]
fn what_the_kernel_cannot_enforce_is_said_once_and_it_serves() {
    for (call, errno, told) in [
        (LANDLOCK_CREATE_RULESET, Errno::NOSYS, "no Landlock"),
        (LANDLOCK_CREATE_RULESET, Errno::OPNOTSUPP, "Landlock is switched off"),
        (libc::SYS_seccomp, Errno::INVAL, "no filter of system calls"),
        (libc::SYS_capset, Errno::PERM, "capabilities cannot be dropped"),
    ] {
        for engine in engines() {
            let server = without(call, errno, || Server::start(&["--engine", engine]));
            let mut client = Client::connect(server.address());
            client.echo(TEXT, b"hello");
            client.close();
            let ended = server.terminate();
            assert_eq!(ended.status.code(), Some(0), "{engine} {ended:?}");
            let lines: Vec<&str> =
                ended.stderr.lines().filter(|line| line.contains("sandbox")).collect();
            assert!(lines.len() == 1 && lines[0].contains(told), "{engine} {ended:?}");
            let off = ["--engine", engine, "--sandbox", "off"];
            let ended = without(call, errno, || Server::start(&off)).terminate();
            assert!(!ended.stderr.contains("sandbox"), "{engine} {ended:?}");
        }
    }
}
