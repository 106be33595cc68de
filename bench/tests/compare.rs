//! `ringbench compare` with servers that it starts: how they start, run and end, and what they cost.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use ringbench::results::{Cost, Results};
use ringbench::statistics::Verdict;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use testkit::{Ended, end, run_by, spawn, wait_until};

/// An echo server: `MODE PORT LOG`. It logs that it started, and for each connection whether anything
/// came on it. In the modes `threads` and `processes`, a new thread or process serves each connection
/// and spends 1 ms of CPU time on each message. In the mode `slow`, it sleeps for 30 ms before each echo.
/// In the mode `opening`, it spends 50 ms of CPU time on each connection when that begins, and again when
/// it ends.
const SERVER: &str = r#"
import os, socket, sys, threading, time
mode, port, log = sys.argv[1], int(sys.argv[2]), sys.argv[3]
def note(what):
    with open(log, "a") as file: file.write(what + "\n")
def work(seconds):
    end = time.thread_time() + seconds
    while time.thread_time() < end: pass
def echo(connection):
    count = 0
    if mode == "opening": work(0.05)
    while data := connection.recv(65536):
        if mode in ("threads", "processes"): work(0.001)
        if mode == "slow": time.sleep(0.03)
        connection.sendall(data)
        count += 1
    if mode == "opening": work(0.05)
    connection.close()
    note("served" if count else "empty")
address = "::1" if mode == "v6" else "127.0.0.1"
family = socket.AF_INET6 if mode == "v6" else socket.AF_INET
listener = socket.create_server((address, port), family=family, backlog=64)
note("started")
if mode == "spins": listener.setblocking(False)
while True:
    try: connection, _ = listener.accept()
    except BlockingIOError: continue
    connection.setblocking(True)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if mode == "threads": threading.Thread(target=echo, args=[connection]).start()
    elif mode == "processes":
        if (child := os.fork()) == 0:
            echo(connection)
            os._exit(0)
        connection.close()
        os.waitpid(child, 0)
    else: echo(connection)
"#;

/// A test's own directory, with the server in it; its path is in the command lines of all servers
/// that the test starts.
struct Place(PathBuf);

impl Place {
    fn new(test: &str) -> Place {
        let name = format!("{test}-{}", std::process::id());
        let place = Place(PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name));
        fs::create_dir_all(&place.0).expect("a directory");
        fs::write(place.path("server.py"), SERVER).expect("a file");
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// A target that is started in this mode, with a name that is also its log's.
    fn target(&self, name: &str, mode: &str) -> String {
        format!("{name}={}", self.command(name, mode))
    }

    fn command(&self, name: &str, mode: &str) -> String {
        let [server, log] = [self.path("server.py"), self.path(name)];
        format!("python3 {} {mode} {{tcp-port}} {}", server.display(), log.display())
    }

    fn log(&self, name: &str) -> Vec<String> {
        let text = fs::read_to_string(self.path(name)).unwrap_or_default();
        text.lines().map(ToOwned::to_owned).collect()
    }

    /// The processes of this test's servers.
    fn servers(&self) -> Vec<u32> {
        let entries = fs::read_dir("/proc").expect("/proc").flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let server = self.path("server.py");
        let server = server.to_str().expect("UTF-8");
        let is_server = |pid: &u32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let mut words = line.split(|byte| *byte == 0);
            // Neither the program that starts it nor its guard.
            words.next().is_some_and(|word| word.ends_with(b"python3"))
                && words.any(|word| word == server.as_bytes())
        };
        pids.filter(is_server).collect()
    }

    fn wait_until_no_server_is_left(&self) {
        wait_until("no server is left", || self.servers().is_empty());
    }

    fn result(&self, prefix: &str) -> Results {
        Results::read(&self.path(&format!("{prefix}.json"))).expect("a result")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn ringbench(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringbench"));
    command.arg("compare").args(arguments);
    command
}

fn compare(targets: &[&str], rounds: &str, messages: &str, options: &[&str]) -> Ended {
    let numbers = ["--size", "16", "--rounds", rounds, "--messages", messages];
    run_by(&mut ringbench(&[targets, &numbers, options].concat()))
}

#[track_caller]
fn assert_ended(ended: &Ended, status: i32, words: &[&str]) {
    let said = &ended.stderr;
    assert_eq!(ended.status.code(), Some(status), "{said}");
    for word in words {
        assert!(said.contains(word), "{word:?} is not in: {said}");
    }
}

/// A comparison of two servers that goes on until it is ended, in a process group of its own.
fn endless(place: &Place) -> Child {
    use std::os::unix::process::CommandExt as _;
    let [a, b] = ["a", "b"].map(|name| place.target(name, "plain"));
    let numbers = ["--size", "16", "--rounds", "10000", "--messages", "50"];
    let mut command = ringbench(&[&[a.as_str(), &b][..], &numbers].concat());
    let child = spawn(command.process_group(0));
    wait_until("both servers have been measured", || {
        ["a", "b"].iter().all(|name| place.log(name).contains(&"served".to_owned()))
    });
    child
}

#[test]
fn no_process_of_a_wrapper_is_left() {
    let place = Place::new("wrapper");
    let wrapped = format!("a=sh -c '{}; true'", place.command("a", "plain"));
    // It leaves its group, its session and its parent.
    let daemon = format!("b=sh -c 'setsid {} & sleep 1000'", place.command("b", "plain"));
    let ended = compare(&[&wrapped, &daemon], "1", "20", &[]);
    assert_ended(&ended, 0, &[]);
    assert_eq!(place.servers(), Vec::<u32>::new());
}

#[test]
fn servers_end_with_the_program_however_it_ends() {
    let place = Place::new("killed");
    let child = endless(&place);
    kill_process(Pid::from_child(&child), Signal::KILL).expect("it runs");
    end(child);
    place.wait_until_no_server_is_left();
}

#[test]
fn an_interrupt_of_the_whole_foreground_group_is_one_event() {
    let place = Place::new("interrupted");
    let child = endless(&place);
    kill_process_group(Pid::from_child(&child), Signal::INT).expect("it runs");
    let ended = end(child);
    assert_ended(&ended, 0, &[]);
    let printed = ended.stdout;
    assert!(printed.starts_with("CUT SHORT: ended by a signal"), "{printed}");
    assert_eq!(place.servers(), Vec::<u32>::new());
}

#[test]
fn only_the_server_whose_turn_it_is_runs() {
    let place = Place::new("stopped");
    let [a, b] = ["a", "b"].map(|name| place.target(name, "spins"));
    let numbers = ["--size", "16", "--rounds", "10000", "--messages", "50"];
    let child = spawn(&mut ringbench(&[&[a.as_str(), &b][..], &numbers].concat()));
    wait_until("both servers are there", || place.servers().len() == 2);
    // Each is found stopped, and each is found running.
    let is_stopped = |pid: u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
    };
    let servers = place.servers();
    for &server in &servers {
        wait_until("it is stopped", || is_stopped(server));
        wait_until("it runs", || !is_stopped(server));
    }
    kill_process(Pid::from_child(&child), Signal::TERM).expect("it runs");
    assert_ended(&end(child), 0, &[]);
    assert_eq!(place.servers(), Vec::<u32>::new());
}

#[test]
fn servers_are_started_once_or_for_each_round() {
    let place = Place::new("restarted");
    let started = |name| place.log(name).iter().filter(|line| *line == "started").count();
    let [a, b] = ["a", "b"].map(|name| place.target(name, "plain"));
    assert_ended(&compare(&[&a, &b], "2", "20", &[]), 0, &[]);
    assert_eq!(started("a"), 1);
    let [c, d] = ["c", "d"].map(|name| place.target(name, "plain"));
    assert_ended(&compare(&[&c, &d], "2", "20", &["--restart"]), 0, &[]);
    // The round that does not count, two that do, and perhaps one to count system calls.
    assert!(matches!(started("c"), 3 | 4), "{}", started("c"));
}

#[test]
fn a_server_is_found_to_listen_without_a_connection() {
    let place = Place::new("unprobed");
    let [a, b] = ["a", "b"].map(|name| place.target(name, "plain"));
    assert_ended(&compare(&[&a, &b], "2", "20", &[]), 0, &[]);
    let log = place.log("a");
    assert!(log.iter().any(|line| line == "served"), "{log:?}");
    assert!(log.iter().all(|line| line != "empty"), "{log:?}");
}

#[test]
fn a_server_may_listen_on_ipv6_alone() {
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        return;
    }
    let place = Place::new("v6");
    let [a, b] = [place.target("a", "v6"), place.target("b", "plain")];
    assert_ended(&compare(&[&a, &b], "1", "20", &[]), 0, &[]);
}

/// What this many messages cost a server in this mode.
fn cost(test: &str, mode: &str, messages: &str) -> Cost {
    let place = Place::new(test);
    let [a, b] = [place.target("a", mode), place.target("b", "plain")];
    let output = place.path("out");
    let output = output.to_str().expect("UTF-8");
    assert_ended(&compare(&[&a, &b], "1", messages, &["-o", output]), 0, &[]);
    place.result("out").measurements[0].cost.expect("a cost")
}

#[test]
fn cpu_time_of_threads_that_have_ended_counts() {
    let cost = cost("threads", "threads", "50");
    assert!(cost.cpu_us.expect("a figure") >= 1000.0, "{cost:?}");
    assert_eq!(cost.context_switches, None);
}

#[test]
fn cpu_time_of_processes_that_have_ended_counts_or_is_left_out() {
    let known = cost("processes", "processes", "400");
    assert!(known.cpu_us.expect("a figure") >= 900.0, "{known:?}");
    let unknown = cost("few", "processes", "20");
    assert_eq!(unknown.cpu_us, None);
}

#[test]
fn opening_and_closing_the_connections_of_a_load_costs_its_messages_nothing() {
    let place = Place::new("opening");
    let [a, b] = [place.target("a", "opening"), place.target("b", "plain")];
    let output = place.path("out");
    let load = ["--rounds", "1", "--load", "200ms", "--rate", "50", "--connections", "1", "-o"];
    let output = output.to_str().expect("UTF-8");
    assert_ended(&run_by(&mut ringbench(&[&[&*a, &b][..], &load, &[output]].concat())), 0, &[]);
    let measured = &place.result("out").measurements[0];
    // Ten messages a round, which would cost 10 ms each.
    let cpu_us = measured.cost.expect("a cost").cpu_us.expect("a figure");
    assert!(cpu_us < 5000.0, "{measured:?}");
}

#[test]
fn a_server_that_does_not_start_says_why() {
    let place = Place::new("failing");
    let good = place.target("good", "plain");
    let failing = "bad=sh -c 'echo no room here >&2; exit 3' {port}";
    let ended = compare(&[failing, &good], "1", "20", &[]);
    assert_ended(&ended, 1, &["bad: sh has ended, with exit status: 3", "no room here"]);
    let missing = compare(&["bad=/nowhere/at/all {port}", &good], "1", "20", &[]);
    assert_ended(&missing, 1, &["bad: /nowhere/at/all cannot be started: No such file"]);
    let variable = compare(&["HOST=::1 server {port}", &good], "1", "20", &[]);
    assert_ended(&variable, 1, &["HOST", "env"]);
    assert_eq!(place.servers(), Vec::<u32>::new());
}

#[test]
fn a_server_that_ends_midway_says_how() {
    let place = Place::new("midway");
    let good = place.target("good", "plain");
    let mortal = "import socket, sys; l = socket.create_server((\"127.0.0.1\", int(sys.argv[1]))); \
                  l.accept()[0].recv(1); sys.exit(\"out of luck\")";
    let mortal = format!("bad=python3 -c '{mortal}' {{tcp-port}}");
    let ended = compare(&[&mortal, &good], "1", "20", &[]);
    assert_ended(&ended, 1, &["bad: ", "it has ended, with exit status: 1", "out of luck"]);
}

#[test]
fn an_interrupt_before_the_first_round_is_said() {
    let place = Place::new("early");
    let [a, b] = ["a", "b"].map(|name| place.target(name, "plain"));
    let numbers = ["--size", "16", "--messages", "100000000"];
    let child = spawn(&mut ringbench(&[&[a.as_str(), &b][..], &numbers].concat()));
    wait_until("a server has started", || !place.log("a").is_empty());
    kill_process(Pid::from_child(&child), Signal::INT).expect("it runs");
    let ended = end(child);
    assert_ended(&ended, 0, &[]);
    let printed = ended.stdout;
    assert!(printed.contains("ended by a signal before the first round"), "{printed}");
    assert_eq!(place.servers(), Vec::<u32>::new());
}

#[test]
fn ratios_are_written_with_their_confidence() {
    let place = Place::new("ratios");
    let [a, b] = [place.target("a", "plain"), place.target("b", "slow")];
    let output = place.path("out");
    let ended = compare(&[&a, &b], "8", "10", &["-o", output.to_str().expect("UTF-8")]);
    assert_ended(&ended, 0, &[]);
    let results = place.result("out");
    let p50 = results.ratios.iter().find(|ratio| ratio.figure == "p50").expect("a ratio");
    let interval = p50.estimate.interval.expect("an interval");
    // 1 - 2/2^8: from the least to the greatest of eight.
    assert_eq!((p50.estimate.rounds, interval.confidence), (8, 0.9921875));
    // 30 ms more for each message, which no load on the machine hides.
    assert_eq!(p50.estimate.verdict(), Verdict::Different);
    assert!(p50.estimate.median > 1.0, "{p50:?}");
    assert!(Path::new(&place.path("out-b.hgrm")).exists());
}
