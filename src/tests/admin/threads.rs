//! The thread that answers: what it may do, and where it runs.

use std::fs;

use testkit::{Server, run, say};

use crate::{get, start};

/// A line of the status of the thread that answers (proc_pid_status(5)).
fn status_of(server: &Server, name: &str) -> String {
    let tasks = fs::read_dir(format!("/proc/{}/task", server.pid().as_raw_pid()));
    for task in tasks.expect("a process") {
        let path = task.expect("a thread").path();
        if fs::read_to_string(path.join("comm")).expect("a thread").trim() == "ringecho-admin" {
            let status = fs::read_to_string(path.join("status")).expect("a thread");
            let mut lines = status.lines().filter_map(|line| line.split_once(':'));
            return lines.find(|(key, _)| *key == name).expect("a field").1.trim().to_owned();
        }
    }
    panic!("no thread answers");
}

#[test]
fn it_is_locked_down_as_all_others() {
    let report: serde_json::Value =
        serde_json::from_str(&run(&["doctor", "--json"]).stdout).expect("JSON");
    let checks = report["checks"].as_array().expect("an array");
    let check = checks.iter().find(|check| check["name"] == "sandbox").expect("a check");
    if check["verdict"] != "fine" {
        return say(&format!("SKIPPED: it_is_locked_down_as_all_others: {}", check["found"]));
    }
    let server = start(&["--workers", "1"]);
    assert_eq!(get(&server, "/metrics").status, 200);
    assert_eq!(status_of(&server, "Seccomp"), "2");
    assert_eq!(status_of(&server, "NoNewPrivs"), "1");
    assert_eq!(status_of(&server, "CapEff"), "0000000000000000");
    assert_eq!(server.terminate().stderr, "");
    let server = start(&["--workers", "1", "--sandbox", "off"]);
    assert_eq!(get(&server, "/metrics").status, 200);
    assert_eq!(status_of(&server, "Seccomp"), "0");
}

#[test]
fn it_keeps_off_the_cpus_of_the_workers_while_another_is_left() {
    let cpus: Vec<usize> =
        core_affinity::get_core_ids().expect("CPUs").iter().map(|core| core.id).collect();
    let [first, others @ ..] = &cpus[..] else { panic!("a CPU") };
    let server = start(&["--cpus", &first.to_string()]);
    assert_eq!(get(&server, "/healthz").status, 200);
    let allowed = ringecho::cpus::list(if others.is_empty() { &cpus } else { others });
    assert_eq!(status_of(&server, "Cpus_allowed_list"), allowed);
    drop(server);
    // Workers on all of them leave it none, so it may use each.
    let server = start(&[]);
    assert_eq!(get(&server, "/healthz").status, 200);
    assert_eq!(status_of(&server, "Cpus_allowed_list"), ringecho::cpus::list(&cpus));
}
