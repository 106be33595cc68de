//! Outputs that are closed or full.

use std::fs;
use std::os::unix::net::UnixStream;
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};
use testkit::{REQUEST, RESPONSE, end, program, say, spawn, temporary_file, wait_until};

use crate::{Bare, converse, engines};

/// The opening handshake over a Unix socket.
fn shake_hands(path: &std::path::Path) {
    use std::io::{Read as _, Write as _};
    let mut client = UnixStream::connect(path).expect("a listener");
    client.write_all(REQUEST.as_bytes()).expect("connected");
    let mut response = vec![0; RESPONSE.len()];
    client.read_exact(&mut response).expect("connected");
    assert_eq!(String::from_utf8_lossy(&response), RESPONSE);
}

#[test]
fn closed_standard_streams_are_no_reason_to_fail() {
    let path = temporary_file("closed.sock");
    let listen = format!("unix:{}", path.display());
    for engine in engines() {
        for closed in [">&-", "2>&-", "<&-", "<&- >&- 2>&-"] {
            let mut command = Command::new("sh");
            command.args(["-c", &format!("exec \"$0\" \"$@\" {closed}")]).arg(program());
            command.args(["--engine", engine, "--workers", "1", "--listen", &listen]);
            let child = spawn(&mut command);
            wait_until("it listens", || UnixStream::connect(&path).is_ok());
            shake_hands(&path);
            // Descriptors that standard streams would have had are none that a peer could write to.
            let pid = Pid::from_child(&child);
            for stream in 0..3 {
                let link = format!("/proc/{}/fd/{stream}", pid.as_raw_pid());
                let target = fs::read_link(link).expect("a descriptor");
                let target = target.to_string_lossy();
                assert!(!target.starts_with("socket:"), "{engine} {closed}: {stream} is {target}");
            }
            kill_process(pid, Signal::TERM).expect("a child");
            let ended = end(child);
            assert_eq!(ended.status.code(), Some(0), "{engine} {closed} {ended:?}");
        }
    }
}

#[test]
fn a_full_device_for_the_statistics_stops_nobody() {
    for engine in engines() {
        let server = Bare::start(&["--engine", engine, "--stats-file", "/dev/full"]);
        for _ in 0..3 {
            server.signal(Signal::USR1);
            converse(server.address());
        }
        let ended = server.terminate();
        assert_eq!(ended.status.code(), Some(1), "{engine} {ended:?}");
        assert!(ended.stdout.contains("messages"), "{engine}: the summary comes first: {ended:?}");
        let told = ended.stderr.lines().filter(|line| line.contains("--stats-file /dev/full"));
        assert!(told.count() >= 2, "{engine} {ended:?}");
    }
}

#[test]
fn a_full_disk_leaves_the_old_statistics() {
    const TEST: &str = "a_full_disk_leaves_the_old_statistics";
    let place = temporary_file("disk");
    fs::create_dir(&place).expect("a directory");
    let disk = place.to_str().expect("a path in UTF-8");
    // A file system of four pages in a name space of its own: a page for the old statistics, the rest filled.
    let script = format!(
        "mount -t tmpfs -o size=16k none {disk} && echo old > {disk}/stats.json && \
         {{ head -c 65536 /dev/zero > {disk}/filled 2> /dev/null; exec \"$0\" \"$@\"; }}"
    );
    let user = if rustix::process::geteuid().is_root() { &[][..] } else { &["-r"] };
    let unshare = |arguments: &[&str]| {
        let mut outer = Command::new("unshare");
        outer.args(user).args(["-m", "sh", "-c", &script]).args(arguments);
        outer
    };
    if !unshare(&["true"]).output().is_ok_and(|tried| tried.status.success()) {
        fs::remove_dir(&place).expect("a directory");
        return say(&format!("SKIPPED: {TEST}: no mount name spaces here"));
    }
    let path = format!("{disk}/stats.json");
    for engine in engines() {
        let program = program();
        let program = program.to_str().expect("a path in UTF-8");
        let mut command = unshare(&[program, "--listen", "127.0.0.1:0", "--engine", engine]);
        let server = Bare::start_by(command.args(["--stats-file", &path]));
        let seen = format!("/proc/{}/root{disk}", server.pid().as_raw_pid());
        let names = || {
            let entries = fs::read_dir(&seen)
                .expect("a file system")
                .map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"));
            let mut names: Vec<String> = entries.collect();
            names.sort();
            names
        };
        for _ in 0..3 {
            server.signal(Signal::USR1);
            converse(server.address());
        }
        wait_until("nothing half-written is left", || names() == ["filled", "stats.json"]);
        let old = fs::read_to_string(format!("{seen}/stats.json")).expect("a file");
        assert_eq!(old, "old\n", "{engine}");
        // With room, the next ones are written.
        fs::remove_file(format!("{seen}/filled")).expect("a file");
        server.signal(Signal::USR1);
        wait_until("the statistics are written", || {
            fs::read_to_string(format!("{seen}/stats.json")).is_ok_and(|text| text.starts_with('{'))
        });
        let ended = server.terminate();
        assert_eq!(ended.status.code(), Some(0), "{engine} {ended:?}");
        let is_told = |line: &str| line.contains("--stats-file") && line.contains("No space");
        assert!(ended.stderr.lines().any(is_told), "{engine} {ended:?}");
    }
    fs::remove_dir(&place).expect("a directory");
}
