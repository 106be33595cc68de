//! What a load makes of servers that lose, repeat, reorder, delay or stop: every message is counted
//! once, the schedule holds, and the load ends.
//!
//! Counts are exact. Times are bounded loosely, because the tests share few CPUs.

use std::collections::BTreeMap;
use std::process::{Child, Command};
use std::sync::Mutex;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use ringbench::load::{Counts, Outcome, Plan, Rate, run};
use ringbench::results::Results;
use ringbench::stop::Stop;
use ringbench::verdict::Farewell;
use ringecho::protocol::violation::Violation;
use rustix::process::{Pid, Signal, kill_process};
use testkit::fake::{Fake, Peer, send_back};
use testkit::{BINARY, CLOSE, Ended, Frame, PING, PONG, TEXT, end, reply, spawn};

/// 200 messages a second on one connection for a second.
fn plan(server: &Fake) -> Plan {
    Plan {
        rate: Rate::PerSecond(200.0),
        warm_up: Duration::ZERO,
        duration: Duration::from_secs(1),
        drain: Duration::from_secs(3),
        ..Plan::new(server.url().parse().expect("a target"))
    }
}

fn load(plan: &Plan) -> Outcome {
    run(plan, &Stop::new().expect("a pipe"), &mut |_| {}).expect("a load")
}

fn has_warning(outcome: &Outcome, text: &str) -> bool {
    outcome.warnings.iter().any(|warning| warning.contains(text))
}

/// A server that counts the messages of each connection and answers them with `answer`.
fn counting(
    answer: impl Fn(&mut Peer, u64, &Frame) -> std::io::Result<()> + Send + Sync + 'static,
) -> Fake {
    Fake::start(move |peer, _| {
        peer.accept("")?;
        let number = Mutex::new(0..);
        peer.echo_until_close(&|peer: &mut Peer, echo: &Frame| {
            let number = number.lock().expect("no panic").next().expect("a number");
            answer(peer, number, echo)
        })?;
        peer.send(&reply(CLOSE, &1000u16.to_be_bytes()))
    })
}

/// A server that echoes each message this long after it came, however many come meanwhile.
fn delayed(delay: Duration) -> Fake {
    Fake::start(move |peer, _| {
        peer.accept("")?;
        let (later, due) = mpsc::channel::<(Instant, Vec<u8>)>();
        let mut back = peer.stream.try_clone()?;
        let sender = thread::spawn(move || {
            for (due, bytes) in due {
                thread::sleep(due.saturating_duration_since(Instant::now()));
                let _ = std::io::Write::write_all(&mut back, &bytes);
            }
        });
        let closed = loop {
            let echo = peer.frame()?;
            if echo.first == CLOSE {
                break echo;
            }
            let bytes = reply(echo.first, &echo.payload);
            later.send((Instant::now() + delay, bytes)).expect("it listens");
        };
        drop(later);
        sender.join().expect("no panic");
        peer.send(&reply(CLOSE, &closed.payload))
    })
}

#[test]
fn the_rate_does_not_depend_on_how_long_echoes_take() {
    for delay_ms in [1, 200] {
        let outcome = load(&plan(&delayed(Duration::from_millis(delay_ms))));
        let measurement = &outcome.measurement;
        assert_eq!(outcome.counts(), Counts { echoed: 200, ..Counts::default() });
        let seconds: f64 = measurement.rounds.iter().map(|round| round.duration_s).sum();
        assert_eq!(measurement.messages as f64 / seconds, 200.0, "{delay_ms} ms");
        assert!(!has_warning(&outcome, "rate was not reached"), "{:?}", outcome.warnings);
        assert!(measurement.latencies.min_ns() >= delay_ms * 1_000_000);
    }
}

/// Echoes that come in a later second belong to that in which their messages were due.
#[test]
fn parts_are_cut_on_the_schedule() {
    let server = delayed(Duration::from_millis(300));
    let outcome = load(&Plan { duration: Duration::from_millis(3400), ..plan(&server) });
    let rounds = &outcome.measurement.rounds;
    let shape: Vec<_> = rounds.iter().map(|it| (it.begin_s, it.duration_s, it.messages)).collect();
    assert_eq!(shape, [(0.0, 1.0, 200), (1.0, 1.0, 200), (2.0, 1.4, 280)]);
}

#[test]
fn one_lost_echo_is_one_lost_message() {
    for mix in ["16", "4", "2:binary", "125:binary", "16,16:binary,80"] {
        let server = counting(|peer, number, echo| match number {
            50 => Ok(()),
            _ => send_back(peer, echo),
        });
        let outcome = load(&Plan { mix: mix.parse().expect("a mix"), ..plan(&server) });
        let expected = Counts { echoed: 199, lost: 1, ..Counts::default() };
        assert_eq!(outcome.counts(), expected, "{mix}: {:?}", outcome.problems);
        assert_eq!(outcome.problems, Vec::<String>::new());
        assert!(has_warning(&outcome, "no echo of 1 came"));
        // Its latency is the time that it was waited for: the rest of the second.
        assert!(outcome.measurement.latencies.max_ns() >= 700_000_000);
    }
}

#[test]
fn lost_echoes_do_not_stop_a_closed_loop() {
    let server = counting(|peer, number, echo| match number % 10 {
        5 => Ok(()),
        _ => send_back(peer, echo),
    });
    let outcome = load(&Plan { rate: Rate::Max, pipeline: 4, ..plan(&server) });
    let counts = outcome.counts();
    assert!(counts.echoed > 100 && counts.lost >= counts.echoed / 10, "{counts:?}");
    assert_eq!((counts.wrong, counts.unasked, counts.unsent), (0, 0, 0));
}

#[test]
fn an_echo_that_comes_twice_is_a_wrong_echo_and_fails_no_connection() {
    let server = counting(|peer, _, echo| {
        send_back(peer, echo)?;
        send_back(peer, echo)
    });
    let outcome = load(&plan(&server));
    let expected = Counts { echoed: 200, unasked: 200, ..Counts::default() };
    assert_eq!(outcome.counts(), expected);
    assert_eq!((outcome.figures().connections_failed, &outcome.cut_short), (0, &None));
    assert!(outcome.problems[0].contains("echoed more than once"), "{:?}", outcome.problems);
    assert!(has_warning(&outcome, "200 echoes were wrong"));
}

#[test]
fn what_no_message_asked_for_is_a_wrong_echo() {
    let server = counting(|peer, number, echo| {
        send_back(peer, echo)?;
        if number == 7 { peer.send(&reply(TEXT, b"news")) } else { Ok(()) }
    });
    let counts = load(&plan(&server)).counts();
    // A client that was late may have had the next message in flight, and takes the news for its echo.
    assert!(counts.wrong <= 1, "{counts:?}");
    let expected = Counts { echoed: 200 - counts.wrong, unasked: 1, ..counts };
    assert_eq!((counts, counts.lost, counts.unsent), (expected, 0, 0));
}

#[test]
fn an_echo_out_of_order_is_wrong() {
    let kept = Mutex::new(None::<Vec<u8>>);
    let server = counting(move |peer, number, echo| {
        let mut kept = kept.lock().expect("no panic");
        match number {
            20 => *kept = Some(reply(echo.first, &echo.payload)),
            21 => {
                send_back(peer, echo)?;
                peer.send(&kept.take().expect("message 20"))?;
            }
            _ => send_back(peer, echo)?,
        }
        Ok(())
    });
    let outcome = load(&plan(&server));
    assert_eq!(outcome.counts(), Counts { echoed: 199, wrong: 1, ..Counts::default() });
    assert!(outcome.problems[0].contains("message 20"), "{:?}", outcome.problems);
}

#[test]
fn a_wrong_echo_is_no_message_and_has_no_latency() {
    let server = counting(|peer, _, echo| {
        let mut payload = echo.payload.clone();
        payload[0] = b'!';
        peer.send(&reply(echo.first, &payload))
    });
    let outcome = load(&plan(&server));
    assert_eq!(outcome.counts(), Counts { wrong: 200, ..Counts::default() });
    assert_eq!(outcome.measurement.latencies.count(), 0);
}

#[test]
fn the_warm_up_is_counted_apart() {
    let server = counting(|peer, number, echo| match number {
        0..10 => Ok(()),
        10..20 => peer.send(&reply(TEXT, b"!")),
        _ => send_back(peer, echo),
    });
    let outcome = load(&Plan { warm_up: Duration::from_millis(500), ..plan(&server) });
    assert_eq!(outcome.counts(), Counts { echoed: 200, ..Counts::default() });
    let warm_up = outcome.warm_up;
    assert_eq!(warm_up.due(), 100);
    assert_eq!((warm_up.echoed, warm_up.wrong, warm_up.lost), (80, 10, 10), "{warm_up:?}");
    assert!(has_warning(&outcome, "The warm-up had problems too"));
}

/// Also on connections that failed: what they did not send counts as unsent.
#[test]
fn every_message_due_is_counted_once() {
    let server = Fake::start(|peer, connection| {
        peer.accept("")?;
        for number in 0.. {
            let echo = peer.frame()?;
            if echo.first == CLOSE {
                return peer.send(&reply(CLOSE, &echo.payload));
            }
            match (connection, number) {
                // This one dies, and this one loses a message.
                (0, 20) => return Ok(()),
                (1, 20) => {}
                _ => send_back(peer, &echo)?,
            }
        }
        Ok(())
    });
    let outcome = load(&Plan { connections: 4, threads: 2, ..plan(&server) });
    let counts = outcome.counts();
    assert_eq!(counts.due(), 200, "{counts:?}");
    // At least one in flight on the dead connection, and the one that the other loses.
    assert!(counts.lost >= 2 && counts.echoed >= 50 * 2 + 49 + 20, "{counts:?}");
    assert_eq!(outcome.figures().connections_failed, 1);
    assert!(has_warning(&outcome, "rate was not reached"), "{:?}", outcome.warnings);
    assert_eq!(outcome.cut_short, None);
}

/// All echoes were right, so however the server closes the connection, nothing fails.
#[test]
fn a_rude_close_costs_a_warning_only() {
    type Close = fn(&mut Peer) -> std::io::Result<()>;
    let cases: [(Close, Farewell); 6] = [
        (|peer| peer.reset_at_end(), Farewell::ResetUnanswered),
        (|peer| peer.wait_for_end(), Farewell::Silent),
        (
            |peer| {
                peer.send(&reply(CLOSE, &1000u16.to_be_bytes()))?;
                peer.wait_for_end()
            },
            Farewell::LeftOpen,
        ),
        (|_| Ok(()), Farewell::ClosedUnanswered),
        (
            |peer| {
                peer.send(&reply(TEXT, b"bye"))?;
                peer.send(&reply(CLOSE, &1000u16.to_be_bytes()))
            },
            Farewell::LateMessages,
        ),
        (|peer| peer.send(&[0xff; 9]), Farewell::Broken(Violation::ReservedBit)),
    ];
    for (close, farewell) in cases {
        let server = Fake::start(move |peer, _| {
            peer.accept("")?;
            peer.echo_until_close(&send_back)?;
            close(peer)
        });
        let outcome = load(&Plan { duration: Duration::from_millis(300), ..plan(&server) });
        assert_eq!(outcome.counts(), Counts { echoed: 60, ..Counts::default() });
        assert_eq!(outcome.farewells.odd(), [(farewell, 1)]);
        let warning = format!("on 1 of 1 connection, the server {farewell}");
        assert!(has_warning(&outcome, &warning), "{:?}", outcome.warnings);
        assert_eq!(outcome.figures().connections_failed, 0);
    }
}

#[test]
fn a_server_that_sends_without_end_does_not_delay_the_end() {
    let open = Rate::PerSecond(200.0);
    for (begins_with, frame, rate) in [
        (TEXT, reply(PING, b"?"), open),
        (TEXT, reply(PING, b"?"), Rate::Max),
        (TEXT, reply(BINARY, b"news"), open),
        (CLOSE, reply(PONG, b""), open),
        (CLOSE, reply(BINARY, b"news"), Rate::Max),
    ] {
        let bytes = frame.repeat(10_000);
        let server = Fake::start(move |peer, _| {
            peer.accept("")?;
            peer.echo_until(begins_with, &send_back)?;
            loop {
                peer.send(&bytes)?;
            }
        });
        let short = Duration::from_millis(200);
        let plan = Plan { rate, duration: short, drain: short, ..plan(&server) };
        let (outcome, ended) = mpsc::channel();
        thread::spawn(move || outcome.send(load(&plan)).expect("the test waits"));
        let outcome = ended.recv_timeout(Duration::from_secs(60)).expect("it ends");
        assert_eq!(outcome.counts().echoed > 0, begins_with == CLOSE);
    }
}

#[test]
fn any_rate_ends_in_time_with_every_message_counted() {
    let server = Fake::echo(send_back);
    let begin = Instant::now();
    let outcome = load(&Plan { rate: Rate::PerSecond(1e-11), ..plan(&server) });
    assert_eq!(outcome.counts(), Counts::default());
    assert!(has_warning(&outcome, "No message was due"), "{:?}", outcome.warnings);
    assert!(begin.elapsed() >= Duration::from_secs(1));
    let outcome = load(&Plan {
        rate: Rate::PerSecond(1e12),
        duration: Duration::from_millis(100),
        connections: 16,
        ..plan(&server)
    });
    let counts = outcome.counts();
    assert!(counts.due().abs_diff(100_000_000_000) < 1000, "{counts:?}");
    assert!(counts.echoed > 0 && counts.unsent > 0 && counts.wrong == 0, "{counts:?}");
    assert!(has_warning(&outcome, "were due, but"), "{:?}", outcome.warnings);
    assert_eq!(outcome.figures().connections_failed, 0, "{:?}", outcome.problems);
    assert!(begin.elapsed() < Duration::from_secs(60));
}

/// Requests the stop of a load after a while, and checks that it ends soon.
fn stopped(plan: &Plan, after: Duration) -> Outcome {
    let stop = Stop::new().expect("a pipe");
    thread::scope(|scope| {
        let load = scope.spawn(|| (run(plan, &stop, &mut |_| {}), Instant::now()));
        thread::sleep(after);
        let requested = Instant::now();
        stop.request();
        let (outcome, ended) = load.join().expect("no panic");
        let took = ended.duration_since(requested);
        assert!(took < Duration::from_secs(5), "it took {took:?} to stop");
        outcome.expect("a load")
    })
}

/// In each phase the server never answers, and every timeout is long.
#[test]
fn a_stop_is_seen_at_once_in_every_phase() {
    let minute = Duration::from_secs(60);
    let soon = Duration::from_millis(500);
    let deaf = Fake::start(|peer, _| peer.wait_for_end());
    let outcome = stopped(&Plan { duration: minute, ..plan(&deaf) }, soon);
    let reason = outcome.cut_short.expect("a reason");
    assert!(reason.contains("while connections were being opened"), "{reason}");

    let half_deaf = Fake::start(|peer, connection| match connection {
        0 => {
            peer.accept("")?;
            peer.wait_for_end()
        }
        _ => peer.wait_for_end(),
    });
    let outcome = stopped(&Plan { connections: 40, ..plan(&half_deaf) }, soon);
    assert!(outcome.cut_short.is_some());

    let silent = Fake::start(|peer, _| {
        peer.accept("")?;
        peer.wait_for_end()
    });
    let long = Plan { duration: minute, warm_up: minute, drain: minute, ..plan(&silent) };
    // In the warm-up, in the measurement, and while it waits for echoes.
    let outcome = stopped(&long, soon);
    assert_eq!(outcome.counts().due(), 0);
    assert!(outcome.warm_up.lost > 0);
    let outcome = stopped(&Plan { warm_up: Duration::ZERO, ..long.clone() }, soon);
    assert!(outcome.cut_short.is_some() && outcome.counts().lost > 0);
    let short = Plan { warm_up: Duration::ZERO, duration: Duration::from_millis(100), ..long };
    let outcome = stopped(&short, soon);
    assert_eq!(outcome.counts(), Counts { lost: 20, ..Counts::default() });
}

#[test]
fn a_server_that_answers_no_more_handshakes_ends_the_load() {
    const ANSWERED: usize = 5;
    let full = Fake::start(|peer, number| {
        if number < ANSWERED {
            peer.accept("")?;
        }
        peer.wait_for_end()
    });
    let stop = Stop::new().expect("a pipe");
    let error = run(&Plan { connections: 1000, ..plan(&full) }, &stop, &mut |_| {});
    let words = error.expect_err("most connections are not opened").to_string();
    assert!(words.starts_with("the server opened 5 connections and no more: "), "{words}");
    // Those that were being opened at the end, at most, besides those that were waited for.
    assert!(full.accepted() < ANSWERED + 3 * 16, "{} were opened", full.accepted());
}

/// Starts `ringbench`.
fn start(arguments: &[&str]) -> Child {
    spawn(Command::new(env!("CARGO_BIN_EXE_ringbench")).args(arguments))
}

/// Runs `ringbench` to its end.
fn ringbench(arguments: &[&str]) -> Ended {
    end(start(arguments))
}

#[test]
fn a_rate_that_is_none_is_a_usage_error() {
    for rate in ["0", "-1", "NaN", "inf", "-inf", "1e400", "fast", ""] {
        let ended = ringbench(&["load", "ws://127.0.0.1:1/", "--rate", rate]);
        assert_eq!(ended.status.code(), Some(2), "{rate}: {ended:?}");
    }
}

/// A prefix for results of this test process.
fn prefix(name: &str) -> String {
    let directory = format!("{}/{}", env!("CARGO_TARGET_TMPDIR"), std::process::id());
    std::fs::create_dir_all(&directory).expect("a directory");
    format!("{directory}/{name}")
}

const SHORT: [&str; 4] = ["--duration", "500ms", "--warm-up", "100ms"];

#[test]
fn the_json_needs_no_decoder() {
    let server = delayed(Duration::from_millis(20));
    let prefix = prefix("plain");
    let url = server.url();
    let rest = ["--rate", "400", "--connections", "2", "--size", "33", "--binary", "-o", &prefix];
    let ended = ringbench(&[&["load", &url][..], &SHORT, &rest].concat());
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    let printed = ended.stdout;
    let line = "wrong echoes 0, failed connections 0, reconnects 0, unsent messages 0";
    assert!(printed.contains(line) && printed.contains("lag "), "{printed}");
    let text = std::fs::read_to_string(format!("{prefix}.json")).expect("a file");
    let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let measurement = &json["measurements"][0];
    for (field, value) in [
        ("messages", 200),
        ("wrong", 0),
        ("lost", 0),
        ("unsent", 0),
        ("unasked", 0),
        ("rate_achieved", 400),
    ] {
        assert_eq!(measurement[field].as_f64(), Some(f64::from(value)), "{field}");
    }
    for (field, value) in
        [("rate_asked", 400), ("connections", 2), ("connections_failed", 0), ("reconnects", 0)]
    {
        assert_eq!(measurement["load"][field].as_f64(), Some(f64::from(value)), "{field}");
    }
    let latency = |figure: &str| measurement["latency"][figure].as_f64().expect("a number");
    let lag = |figure: &str| measurement["lag"][figure].as_f64().expect("a number");
    let figures = ["min_ns", "p50_ns", "p90_ns", "p99_ns", "p99_9_ns", "max_ns"];
    for pair in figures.windows(2) {
        assert!(latency(pair[0]) <= latency(pair[1]) && lag(pair[0]) <= lag(pair[1]));
    }
    assert!(latency("min_ns") >= 20e6 && latency("mean_ns") >= 20e6);
    assert!(measurement["description"].as_str().expect("text").contains("33:binary"));
}

#[test]
fn what_ends_with_status_1() {
    let dies = Fake::start(|peer, _| {
        peer.accept("")?;
        for _ in 0..20 {
            let echo = peer.frame()?;
            send_back(peer, &echo)?;
        }
        Ok(())
    });
    let twice = counting(|peer, _, echo| {
        send_back(peer, echo)?;
        send_back(peer, echo)
    });
    let silent = counting(|_, _, _| Ok(()));
    for (server, complaint) in
        [(&dies, "all connections failed"), (&twice, "echoes were wrong"), (&silent, "no echo")]
    {
        let url = server.url();
        let ended = ringbench(&[&["load", &url][..], &SHORT, &["--drain", "200ms"]].concat());
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        assert!(ended.stderr.contains(complaint), "{ended:?}");
        // What was measured is printed all the same.
        assert!(ended.stdout.contains(&url), "{ended:?}");
    }
}

#[test]
fn time_lost_while_suspended_costs_a_warning() {
    let (echoing, begun) = mpsc::channel();
    let server = Fake::echo(move |peer, echo| {
        // Only the first is waited for.
        let _ = echoing.send(());
        send_back(peer, echo)
    });
    let url = server.url();
    let child = start(&["load", &url, "--rate", "100", "--duration", "3s", "--warm-up", "0s"]);
    let pid = Pid::from_child(&child);
    begun.recv().expect("a message");
    kill_process(pid, Signal::STOP).expect("it runs");
    thread::sleep(Duration::from_millis(1000));
    kill_process(pid, Signal::CONT).expect("it is there");
    let ended = end(child);
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    let printed = ended.stdout;
    assert!(printed.contains("Time was lost: the client was suspended"), "{printed}");
    assert!(printed.contains("  300 ") && !printed.contains("CUT SHORT"), "{printed}");
}

#[test]
fn a_load_is_merged_once_by_whatever_name() {
    let server = Fake::echo(send_back);
    let url = server.url();
    let [one, other, sum] = ["one", "other", "sum"].map(prefix);
    let mut started = BTreeMap::new();
    for (prefix, rate) in [(&one, "100"), (&other, "200")] {
        let ended =
            ringbench(&[&["load", &url, "--rate", rate, "-o", prefix][..], &SHORT].concat());
        assert_eq!(ended.status.code(), Some(0), "{ended:?}");
        let results = Results::read(format!("{prefix}.json").as_ref()).expect("a result");
        started.insert(prefix, results.started_at_s);
    }
    let [one_file, other_file, link] = [&one, &other, &one].map(|prefix| format!("{prefix}.json"));
    let link = link.replace("one.json", "link.json");
    let _ = std::fs::remove_file(&link);
    std::os::unix::fs::symlink(&one_file, &link).expect("a link");
    let here = one_file.replace("/one.json", "/./one.json");
    for (files, output, complaint) in [
        ([&one_file, &one_file], &sum, "the same file"),
        ([&one_file, &here], &sum, "the same file"),
        ([&one_file, &link], &sum, "the same file"),
        ([&other_file, &one_file], &one, "would replace"),
    ] {
        let ended = ringbench(&["merge", files[0], files[1], "-o", output]);
        assert_eq!(ended.status.code(), Some(2), "{ended:?}");
        assert!(ended.stderr.contains(complaint), "{ended:?}");
    }
    let ended = ringbench(&["merge", &one_file, &other_file, "-o", &sum]);
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    let merged = Results::read(format!("{sum}.json").as_ref()).expect("a result");
    assert_eq!(merged.measurements[0].messages, 150);
    assert_eq!(merged.started_at_s, started[&one]);
    let last = merged.measurements[0].rounds.last().expect("rounds");
    assert!((last.begin_s - (started[&other] - started[&one])).abs() <= 0.5, "{last:?}");
    assert!(merged.warnings.iter().any(|it| it.contains("100 a second, 200 a second")));
    assert!(merged.warnings.iter().any(|it| it.contains("did not all run at the same time")));
    let files: Vec<&str> = merged.parts.iter().map(|part| part.file.as_str()).collect();
    assert_eq!(files, [one_file.as_str(), &other_file]);
}
