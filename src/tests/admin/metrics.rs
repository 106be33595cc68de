//! `/metrics` in both formats: what it says is what the statistics file says.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use testkit::{BINARY, Client, REQUEST, Server, TEXT, pattern, wait_until};

use crate::{Answer, ask, engines, get, start};

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0";

fn get_as(server: &Server, accept: &str) -> Answer {
    let request = format!("GET /metrics HTTP/1.1\r\nHost: test\r\nAccept: {accept}\r\n\r\n");
    ask(server, request.as_bytes())
}

/// The samples of an answer: a name with its labels, and the value.
fn samples(answer: &Answer) -> BTreeMap<String, f64> {
    let lines = answer.content.lines().filter(|line| !line.starts_with('#'));
    let samples = lines.map(|line| {
        let (name, value) = line.rsplit_once(' ').expect("a value");
        (name.to_owned(), value.parse().expect("a number"))
    });
    samples.collect()
}

/// The sums over the workers' series of one counter.
fn total(answer: &Answer, name: &str) -> f64 {
    let series = format!("{name}{{worker=");
    let of_name = samples(answer).into_iter().filter(|(sample, _)| sample.starts_with(&series));
    of_name.map(|(_, value)| value).sum()
}

/// The families that an answer describes: their types by their names.
fn families(answer: &Answer) -> BTreeMap<&str, &str> {
    let types = answer.content.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    types.map(|family| family.split_once(' ').expect("a type")).collect()
}

/// The counters that are not gauges have a suffix.
fn metric(counter: &str) -> String {
    match counter {
        "connections_open" | "memory_bytes" | "spill_bytes_kept" => format!("ringecho_{counter}"),
        counter => format!("ringecho_{counter}_total"),
    }
}

#[test]
fn every_counter_of_every_worker_is_that_of_the_statistics_file() {
    for engine in engines("every_counter_of_every_worker_is_that_of_the_statistics_file") {
        let server = start(&[engine, &["--workers", "2"]].concat());
        for _ in 0..8 {
            let mut client = Client::connect(server.address());
            client.echo(BINARY, &pattern(300));
            client.close();
        }
        let mut open = Client::connect(server.address());
        open.echo(TEXT, b"open");
        // What idle workers count meanwhile, such as system calls, they count rarely.
        let mut differences = Vec::new();
        wait_until("both say the same", || {
            let statistics = server.statistics();
            let answer = get(&server, "/metrics");
            differences = differing(&statistics, &answer);
            differences.is_empty() && statistics["total"]["messages"] == 9
        });
        assert_eq!(differences, [""; 0], "{engine:?}");
        let answer = get(&server, "/metrics");
        assert_eq!(total(&answer, "ringecho_connections_open"), 1.0);
        open.close();
        assert_eq!(server.terminate().status.code(), Some(0), "{engine:?}");
    }
}

/// The counters in which an answer differs from the statistics.
fn differing(statistics: &Value, answer: &Answer) -> Vec<String> {
    let samples = samples(answer);
    let mut differing = Vec::new();
    let mut expected = BTreeSet::new();
    for (number, worker) in statistics["workers"].as_array().expect("workers").iter().enumerate() {
        for (name, count) in worker.as_object().expect("counters") {
            if name == "syscalls_per_message" {
                continue;
            }
            let sample = format!("{}{{worker=\"{number}\"}}", metric(name));
            if samples.get(&sample).copied() != count.as_f64() {
                differing.push(format!("{sample} {:?} {count}", samples.get(&sample)));
            }
            expected.insert(sample);
        }
    }
    let by_worker = samples.keys().filter(|name| name.contains("worker="));
    differing.extend(by_worker.filter(|name| !expected.contains(*name)).cloned());
    differing
}

#[test]
fn both_formats_say_the_same_by_their_own_rules() {
    let server = start(&["--workers", "2", "--engine", "epoll"]);
    let mut client = Client::connect(server.address());
    client.echo(TEXT, b"once");
    client.close();
    server.wait_for_count("connections_open", 0);
    let (plain, open) = (get(&server, "/metrics"), get_as(&server, OPENMETRICS));
    assert_eq!(plain.field("Content-Type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let open_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert_eq!(open.field("Content-Type"), Some(open_type));
    assert!(open.content.ends_with("\n# EOF\n") && !plain.content.contains("EOF"));
    // They write the bounds of buckets in different ways.
    let names = |answer: &Answer| {
        let names = samples(answer).into_keys();
        names
            .map(|name| name.split("{le=").next().unwrap_or_default().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(names(&plain), names(&open));
    let (plain_types, open_types) = (families(&plain), families(&open));
    assert_eq!(plain_types["ringecho_messages_total"], "counter");
    assert_eq!(open_types["ringecho_messages"], "counter");
    assert_eq!(plain_types["ringecho_residence_seconds"], "histogram");
    assert_eq!(open_types["ringecho_residence_seconds"], "histogram");
    assert_eq!(plain_types["ringecho_build_info"], "gauge");
    assert_eq!(open_types["ringecho_build"], "info");
    assert_eq!(plain_types.len(), open_types.len());
    let build = format!(
        "ringecho_build_info{{version=\"{}\",engine=\"epoll\"}}",
        env!("CARGO_PKG_VERSION")
    );
    let values = samples(&plain);
    assert_eq!(values[&build], 1.0);
    assert_eq!(values["ringecho_connections_max"], 100_000.0);
    assert_eq!(values["ringecho_memory_max_bytes"], f64::from(1 << 30));
    assert_eq!(values["ringecho_pinned_bytes"], f64::from(2 * (4 << 20)));
    assert!(values["process_resident_memory_bytes"] > 1e6);
    assert!(values["process_cpu_seconds_total"] > 0.0);
    assert!(values["ringecho_uptime_seconds"] > 0.0);
    assert_eq!(server.terminate().status.code(), Some(0));
}

#[test]
fn each_message_has_a_residence_time() {
    for engine in engines("each_message_has_a_residence_time") {
        let server = start(&[engine, &["--workers", "1"]].concat());
        let mut client = Client::connect(server.address());
        // One by one, many at once, large, and in fragments.
        for _ in 0..100 {
            client.echo(TEXT, b"one by one");
        }
        let many = testkit::frame(TEXT, b"many").repeat(100);
        client.write(&many);
        for _ in 0..100 {
            client.expect(TEXT, b"many");
        }
        client.echo(BINARY, &pattern(3 << 20));
        client.send_frame(TEXT & 0xF, b"two ");
        client.send_frame(0x80, b"parts");
        client.expect(TEXT & 0xF, b"two ");
        client.expect(0x80, b"parts");
        client.close();
        server.wait_for_count("connections_open", 0);
        // What the kernel echoes by itself stays nowhere.
        let answered = server.count("messages") - server.count("messages_offloaded");
        assert_eq!(server.count("messages"), 202);
        let answer = get(&server, "/metrics");
        let values = samples(&answer);
        assert_eq!(values["ringecho_residence_seconds_count"], answered as f64, "{engine:?}");
        let buckets: Vec<f64> = answer
            .content
            .lines()
            .filter_map(|line| line.strip_prefix("ringecho_residence_seconds_bucket"))
            .map(|line| line.rsplit_once(' ').expect("a value").1.parse().expect("a number"))
            .collect();
        assert!(buckets.is_sorted() && buckets.last() == Some(&(answered as f64)), "{buckets:?}");
        let sum = values["ringecho_residence_seconds_sum"];
        // At least a nanosecond each, and not the time in which nothing was to be done.
        assert!(sum > answered as f64 * 1e-9 && sum < 60.0, "{engine:?} {sum}");
        assert_eq!(server.terminate().status.code(), Some(0), "{engine:?}");
    }
}

#[test]
fn limits_that_are_hit_are_counted() {
    let server = start(&["--workers", "1", "--connections-max", "1"]);
    let client = Client::connect(server.address());
    let mut refused = Client::open(server.address());
    refused.write(REQUEST.as_bytes());
    assert!(String::from_utf8_lossy(&refused.read_to_end().expect("an answer")).contains(" 503 "));
    wait_until("it is counted", || {
        total(&get(&server, "/metrics"), "ringecho_connections_rejected_total") == 1.0
    });
    assert_eq!(samples(&get(&server, "/metrics"))["ringecho_connections_max"], 1.0);
    client.close();
    assert_eq!(server.terminate().status.code(), Some(0));
}
