//! Loads on the real server, and on servers that behave in ways that the real one does not.
//!
//! Bounds on times are loose, because the tests share few CPUs.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use ringbench::load::{Counts, Event, LoadError, Outcome, Plan, Progress, Rate, run};
use ringbench::problem::Problem;
use ringbench::stop::Stop;
use ringecho::cli;
use ringecho::engine::Engine;
use ringecho::listen::Address;
use ringecho::protocol::Protocol;
use ringecho::server::{Config, Server, Statistics};
use testkit::fake::Fake;

/// The server itself, on threads of this process.
struct Echo {
    server: Option<Server>,
    target: String,
}

impl Echo {
    fn start(scheme: &str) -> Echo {
        Echo::listen(scheme, Address::Tcp("127.0.0.1:0".parse().expect("an address")))
    }

    fn listen(scheme: &str, address: Address) -> Echo {
        let mut config: Config = cli::defaults();
        config.listen = vec![address.into()];
        config.workers = Some(1);
        config.engine = Some(Engine::Epoll);
        if scheme == "tcp" {
            config.settings.protocol = Protocol::Tcp;
        }
        let server = Server::start(&config, Vec::new()).expect("a server");
        let target = match &server.endpoints()[0].address {
            Address::Tcp(address) => format!("{scheme}://{address}"),
            Address::Unix(path) => format!("unix:{}", path.display()),
        };
        Echo { server: Some(server), target }
    }

    /// A short load on it: 1,000 messages a second for half a second.
    fn plan(&self) -> Plan {
        plan(&self.target)
    }

    /// Ends it, and returns what it counted.
    fn end(mut self) -> Statistics {
        let server = self.server.take().expect("it runs");
        server.control().stop();
        server.join().expect("a good end")
    }
}

fn plan(target: &str) -> Plan {
    Plan {
        warm_up: Duration::from_millis(50),
        duration: Duration::from_millis(500),
        connections: 4,
        // Long enough for a machine that is busy with something else; nothing waits for it to pass.
        drain: Duration::from_secs(60),
        close: Duration::from_secs(60),
        ..Plan::new(target.parse().expect("a target"))
    }
}

fn unstopped() -> Stop {
    Stop::new().expect("a pipe")
}

fn load(plan: &Plan) -> Outcome {
    run(plan, &unstopped(), &mut |_| {}).expect("a load")
}

fn progress(event: Event) -> Option<Progress> {
    match event {
        Event::Progress(progress) => Some(progress),
        Event::Opened | Event::Drained => None,
    }
}

/// Checks what holds for every load without problems.
fn assert_complete(outcome: &Outcome, messages: u64) {
    assert_eq!(outcome.problems, Vec::<String>::new());
    assert_eq!(outcome.figures().connections_failed, 0);
    let counts = Counts { echoed: messages, ..Counts::default() };
    assert_eq!(outcome.counts(), counts, "{:?}", outcome.warnings);
    assert_eq!(outcome.farewells.odd(), []);
    assert_eq!(outcome.cut_short, None);
    assert_consistent(outcome);
}

fn assert_consistent(outcome: &Outcome) {
    let measurement = &outcome.measurement;
    assert_eq!(measurement.messages + measurement.lost, measurement.latencies.count());
    let rounds = &measurement.rounds;
    assert_eq!(rounds.iter().map(|round| round.messages).sum::<u64>(), measurement.messages);
    assert_eq!(outcome.parts.len(), rounds.len());
    assert_eq!(outcome.parts[0].0, Duration::ZERO);
    for pair in outcome.parts.windows(2) {
        assert_eq!(pair[0].1, pair[1].0);
    }
}

#[test]
fn messages_are_sent_and_answered_between_two_events() {
    let echo = Echo::start("ws");
    let counted = || {
        let total = echo.server.as_ref().expect("it runs").control().statistics().total;
        (total.connections_open, total.messages)
    };
    let mut events = Vec::new();
    let outcome = run(&echo.plan(), &unstopped(), &mut |event| match event {
        Event::Opened | Event::Drained => events.push((event, counted())),
        Event::Progress(_) => {}
    });
    assert_complete(&outcome.expect("a load"), 500);
    assert_eq!(events, [(Event::Opened, (4, 0)), (Event::Drained, (4, 550))]);
}

#[test]
fn an_open_loop_sends_all_that_is_scheduled_and_no_more() {
    let echo = Echo::start("ws");
    let outcome = load(&echo.plan());
    // 500 in half a second, and 50 in the warm-up before.
    assert_complete(&outcome, 500);
    assert_eq!(outcome.measurement.payload_bytes, 500 * 16);
    assert_eq!(outcome.figures().lags.count(), 500);
    assert_eq!(echo.end().total.messages, 550);
}

#[test]
fn a_second_is_a_round_and_progress_is_reported_meanwhile() {
    let echo = Echo::start("ws");
    let plan = Plan { duration: Duration::from_millis(2300), threads: 2, ..echo.plan() };
    let mut reported: Vec<Progress> = Vec::new();
    let outcome = run(&plan, &unstopped(), &mut |event| reported.extend(progress(event)));
    let outcome = outcome.expect("a load");
    assert_complete(&outcome, 2300);
    assert_eq!(outcome.measurement.rounds.len(), 2, "{:?}", outcome.measurement.rounds);
    assert!((5..=11).contains(&reported.len()), "{reported:?}");
    assert!(reported.is_sorted_by_key(|progress| (progress.elapsed, progress.messages)));
    assert!(reported.iter().any(|progress| progress.rate > 500.0 && progress.p99_ns > 0));
}

#[test]
fn a_closed_loop_keeps_the_pipeline_full() {
    let echo = Echo::start("ws");
    let plan = Plan { rate: Rate::Max, pipeline: 8, ..echo.plan() };
    let outcome = load(&plan);
    let messages = outcome.measurement.messages;
    assert!(messages > 1000, "{messages}");
    assert_complete(&outcome, messages);
    assert_eq!(outcome.figures().lags.count(), 0);
}

/// No coordinated omission: a stall of 300 ms must show in every message that was due meanwhile, and
/// not only in one per connection.
#[test]
fn a_stall_is_seen_in_every_message_scheduled_meanwhile() {
    let begin = Mutex::new(None);
    let stalls = Duration::from_millis(200)..Duration::from_millis(500);
    let server = Fake::start(move |peer, _| {
        peer.echo_bytes(|_, _| {
            let begin = *begin.lock().expect("no panic").get_or_insert_with(Instant::now);
            if stalls.contains(&begin.elapsed()) {
                thread::sleep(stalls.end.saturating_sub(begin.elapsed()));
            }
            true
        })
    });
    let second = Duration::from_secs(1);
    let plan = Plan { warm_up: Duration::ZERO, duration: second, ..plan(&server.plain()) };
    let outcome = load(&plan);
    assert_complete(&outcome, 1000);
    // Of the 300 messages of the stall, those of its first 200 ms wait for more than 100 ms.
    let counts = outcome.measurement.latencies.counts();
    let late: u64 = counts.iter().filter(|(ns, _)| *ns > 100_000_000).map(|(_, count)| count).sum();
    assert!((150..600).contains(&late), "{late} of 1000 were late");
    // A ramp: the later in the stall a message was due, the shorter it waited.
    let between = |from_ms: u64, to_ms: u64| {
        let range = from_ms * 1_000_000..to_ms * 1_000_000;
        counts.iter().filter(|(ns, _)| range.contains(ns)).map(|(_, count)| count).sum::<u64>()
    };
    for from_ms in [100, 150, 200] {
        assert!(between(from_ms, from_ms + 50) >= 25, "from {from_ms} ms: {counts:?}");
    }
}

#[test]
fn an_echo_of_which_one_byte_differs_is_counted_with_its_place() {
    let server = Fake::start(|peer, number| {
        peer.echo_bytes(|at, bytes| {
            if number == 2 && (at..at + bytes.len()).contains(&85) {
                bytes[85 - at] ^= 1;
            }
            true
        })
    });
    let plan = Plan { warm_up: Duration::ZERO, connections: 3, ..plan(&server.plain()) };
    let outcome = load(&plan);
    assert_eq!(
        (outcome.counts().wrong, outcome.figures().connections_failed),
        (1, 0),
        "{:?}",
        outcome.problems
    );
    // Byte 85 is byte 5 of message 5, whichever connection came third.
    let problem = &outcome.problems[0];
    assert!(problem.contains("message 5"), "{problem}");
    assert_eq!(outcome.measurement.messages, 499);
    assert!(outcome.warnings.iter().any(|warning| warning.contains("1 echoes were wrong")));
}

#[test]
fn a_sample_is_compared_whole_and_the_stamp_of_every_message() {
    let load_damaged = |place: usize| {
        let server = Fake::start(move |peer, _| {
            peer.echo_bytes(|at, bytes| {
                for (offset, byte) in bytes.iter_mut().enumerate() {
                    if (at + offset) % 32 == place {
                        *byte = b'!';
                    }
                }
                true
            })
        });
        load(&Plan {
            mix: "32".parse().expect("a mix"),
            warm_up: Duration::ZERO,
            connections: 1,
            verify_every: 100,
            ..plan(&server.plain())
        })
    };
    let outcome = load_damaged(20);
    assert_eq!((outcome.counts().wrong, outcome.measurement.messages), (5, 495));
    let outcome = load_damaged(2);
    assert_eq!((outcome.counts().wrong, outcome.measurement.messages), (500, 0));
}

#[test]
fn a_server_that_closes_midway_leaves_what_was_measured() {
    let server = Fake::start(|peer, number| peer.echo_bytes(|at, _| number == 0 || at < 50 * 16));
    let begin = Instant::now();
    let plan_of_two = Plan { warm_up: Duration::ZERO, connections: 2, ..plan(&server.plain()) };
    let outcome = load(&plan_of_two);
    assert_eq!(outcome.figures().connections_failed, 1, "{:?}", outcome.problems);
    assert!(outcome.measurement.messages >= 250 + 50 && outcome.measurement.messages < 500);
    assert_eq!(outcome.cut_short, None);
    assert!(outcome.warnings.iter().any(|warning| warning.contains("1 of 2 connections failed")));
    assert!(outcome.warnings.iter().any(|warning| warning.contains("rate was not reached")));
    assert_consistent(&outcome);

    let server = Fake::start(|peer, _| peer.echo_bytes(|at, _| at < 50 * 16));
    let minute = Duration::from_secs(60);
    let plan = Plan { duration: minute, connections: 2, ..plan(&server.plain()) };
    let outcome = load(&plan);
    assert_eq!(outcome.figures().connections_failed, 2);
    let reason = outcome.cut_short.as_deref().expect("a reason");
    assert!(reason.contains("all connections failed") && reason.contains("closed"), "{reason}");
    assert!(begin.elapsed() < Duration::from_secs(30));
    assert!((1..=100).contains(&outcome.measurement.messages));
    assert_consistent(&outcome);
}

#[test]
fn connections_are_opened_again_after_a_number_of_messages() {
    let echo = Echo::start("ws");
    let plan = Plan { reconnect_every: Some(50), threads: 2, ..echo.plan() };
    let outcome = load(&plan);
    assert_complete(&outcome, 500);
    // 550 messages over 4 connections are 137 or 138 on each.
    assert_eq!(outcome.figures().reconnects, 4 * 2);
    let counted = echo.end().total;
    assert_eq!((counted.connections_accepted, counted.messages), (4 * 3, 550));
    assert_eq!(counted.protocol_violations, 0);

    let echo = Echo::start("ws");
    let plan = Plan { reconnect_every: Some(20), rate: Rate::Max, pipeline: 4, ..echo.plan() };
    let outcome = load(&plan);
    assert_complete(&outcome, outcome.measurement.messages);
    assert!(outcome.figures().reconnects >= 4, "{}", outcome.figures().reconnects);
}

#[test]
fn compression_fragments_and_mixes_come_back_right() {
    for compresses in [false, true] {
        let echo = Echo::start("ws");
        let mix = "0,16*5,1024:binary:fragments=4,70000:fragments=3,200000:binary";
        let plan = Plan {
            mix: mix.parse().expect("a mix"),
            rate: Rate::PerSecond(400.0),
            compresses,
            ..echo.plan()
        };
        let outcome = load(&plan);
        assert_complete(&outcome, 200);
        assert!(outcome.measurement.payload_bytes > 70_000);
        assert_eq!(echo.end().total.protocol_violations, 0);
    }
}

#[test]
fn plain_bytes_and_unix_sockets_are_loaded_likewise() {
    let echo = Echo::start("tcp");
    assert_complete(&load(&echo.plan()), 500);
    let path: PathBuf = std::env::temp_dir().join(format!("load-{}.sock", std::process::id()));
    let echo = Echo::listen("unix", Address::Unix(path));
    assert_complete(&load(&echo.plan()), 500);
    echo.end();
}

/// Messages wait in the client while the server does not read. Their latency counts from when they
/// were due, not from when there was room for them.
#[test]
fn more_than_the_sockets_hold_waits_and_counts_from_its_schedule() {
    let server = Fake::start(|peer, _| {
        let mut has_stalled = false;
        peer.echo_bytes(|_, _| {
            if !std::mem::replace(&mut has_stalled, true) {
                thread::sleep(Duration::from_millis(400));
            }
            true
        })
    });
    let outcome = load(&Plan {
        mix: "4000000:binary".parse().expect("a mix"),
        rate: Rate::PerSecond(20.0),
        connections: 1,
        warm_up: Duration::ZERO,
        ..plan(&server.plain())
    });
    assert_complete(&outcome, 10);
    assert_eq!(outcome.measurement.payload_bytes, 10 * 4_000_000);
    // Those of the first 200 ms wait for the rest of the stall, whether there was room for them or
    // not.
    let counts = outcome.measurement.latencies.counts();
    let late: u64 = counts.iter().filter(|(ns, _)| *ns > 190_000_000).map(|(_, count)| count).sum();
    assert!(late >= 4, "{counts:?}");
}

#[test]
fn a_stop_keeps_what_was_measured() {
    let echo = Echo::start("ws");
    let plan = Plan { duration: Duration::from_secs(60), ..echo.plan() };
    let stop = unstopped();
    let begin = Instant::now();
    let outcome = run(&plan, &stop, &mut |event| {
        if progress(event).is_some_and(|progress| progress.messages > 100) {
            stop.request();
        }
    });
    let outcome = outcome.expect("a load");
    assert!(begin.elapsed() < Duration::from_secs(20));
    assert!(outcome.cut_short.as_deref().expect("a reason").contains("stopped after"));
    assert!(outcome.measurement.messages > 100 && outcome.measurement.lost == 0);
    assert!(!outcome.warnings.iter().any(|warning| warning.contains("not reached")));
    assert_consistent(&outcome);
}

#[test]
fn echoes_that_do_not_come_are_lost() {
    let server = Fake::start(|peer, _| {
        // Each connection has 125 messages, and the last is not echoed.
        for _ in 0..124 {
            let message = peer.take(16)?;
            peer.send(&message)?;
        }
        peer.wait_for_end()
    });
    let drain = Duration::from_millis(300);
    let outcome = load(&Plan { warm_up: Duration::ZERO, drain, ..plan(&server.plain()) });
    assert_eq!((outcome.measurement.messages, outcome.measurement.lost), (496, 4));
    assert!(outcome.warnings.iter().any(|warning| warning.contains("no echo of 4 came within")));
    // They count with the time that they were waited for.
    let counts = outcome.measurement.latencies.counts();
    let waited: u64 = counts.iter().filter(|(ns, _)| *ns >= 299_000_000).map(|it| it.1).sum();
    assert!(waited >= 4, "{counts:?}");
    assert_consistent(&outcome);
}

/// The target of a server that relays between its clients and `echo`, and inserts `insertion` once,
/// after the 20th read from `echo`. What the client sent is collected in `from_client`.
fn relay(echo: &Echo, insertion: &'static [u8], from_client: Arc<Mutex<Vec<u8>>>) -> String {
    let address = echo.target.strip_prefix("ws://").expect("TCP").to_owned();
    let relay = Fake::start(move |peer, _| {
        let client = &mut peer.stream;
        let mut server = TcpStream::connect(&address)?;
        let mut back = (server.try_clone()?, client.try_clone()?);
        thread::spawn(move || {
            let mut bytes = [0; 65536];
            let mut messages = 0;
            while let Ok(count @ 1..) = back.0.read(&mut bytes) {
                if back.1.write_all(&bytes[..count]).is_err() {
                    break;
                }
                messages += 1;
                if messages == 20 && back.1.write_all(insertion).is_err() {
                    break;
                }
            }
            let _ = back.1.shutdown(std::net::Shutdown::Both);
        });
        let mut bytes = [0; 65536];
        while let Ok(count @ 1..) = client.read(&mut bytes) {
            from_client.lock().expect("no panic").extend_from_slice(&bytes[..count]);
            if server.write_all(&bytes[..count]).is_err() {
                break;
            }
        }
        server.shutdown(std::net::Shutdown::Both)
    });
    relay.url()
}

#[test]
fn a_ping_is_answered_and_a_close_is_a_problem() {
    let echo = Echo::start("ws");
    let sent = Arc::new(Mutex::new(Vec::new()));
    let target = relay(&echo, b"\x89\x02hi", sent.clone());
    assert_complete(&load(&Plan { connections: 1, ..plan(&target) }), 500);
    let sent = sent.lock().expect("no panic");
    // A pong of two bytes, masked.
    assert!(sent.windows(2).any(|bytes| bytes == [0x8a, 0x82]));

    let target = relay(&echo, b"\x88\x02\x03\xe9", Arc::default());
    let outcome = load(&Plan { connections: 1, ..plan(&target) });
    assert_eq!(outcome.figures().connections_failed, 1);
    assert!(outcome.problems[0].contains("closed with code 1001"), "{:?}", outcome.problems);
    assert!(outcome.cut_short.is_some());
}

#[test]
fn a_thousand_connections_are_opened_at_once_and_closed_properly() {
    let echo = Echo::start("ws");
    let plan = Plan { connections: 1000, rate: Rate::PerSecond(4000.0), threads: 2, ..echo.plan() };
    let outcome = load(&plan);
    assert_complete(&outcome, 2000);
    let counted = echo.end().total;
    assert_eq!((counted.connections_accepted, counted.protocol_violations), (1000, 0));
}

#[test]
fn an_impossible_plan_is_refused_before_anything_is_sent() {
    let server = Fake::start(|_, _| Ok(()));
    let target = server.plain();
    let refused = |plan: Plan| {
        let refused = run(&plan, &unstopped(), &mut |_| {});
        refused.expect_err("it cannot be").to_string()
    };
    for (plan, complaint) in [
        (Plan { connections: 0, ..plan(&target) }, "from 1 to 1000000"),
        (Plan { threads: 0, ..plan(&target) }, "at least one thread"),
        (Plan { rate: Rate::PerSecond(0.0), ..plan(&target) }, "more than 0 messages a second"),
        (Plan { pipeline: 0, ..plan(&target) }, "from 1 to 65536"),
        (Plan { duration: Duration::ZERO, ..plan(&target) }, "more than 0"),
        (Plan { verify_every: 0, ..plan(&target) }, "counts of messages"),
        (Plan { cpus: vec![99_999], ..plan(&target) }, "may not use CPU 99999"),
        (Plan { compresses: true, ..plan(&target) }, "no compression"),
        (Plan { mix: "0".parse().expect("a mix"), ..plan(&target) }, "no empty messages"),
        (Plan { connections: 1_000_000, ..plan(&target) }, "raise the hard limit"),
    ] {
        let error = refused(plan);
        assert!(error.contains(complaint), "{error}");
    }
    assert_eq!(server.accepted(), 0);
    // Nobody listens on a port that was given back.
    let free = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("one");
    let nobody = run(&plan(&format!("ws://{free}")), &unstopped(), &mut |_| {});
    assert!(matches!(nobody, Err(LoadError::Server(Problem::CannotConnect(_)))), "{nobody:?}");
}

#[test]
fn a_client_on_the_servers_cpu_costs_a_warning() {
    let echo = Echo::start("ws");
    let cpu = ringecho::cpus::allowed().expect("CPUs")[0];
    let plan = Plan { cpus: vec![cpu], server_cpus: Some(vec![cpu]), ..echo.plan() };
    let outcome = load(&plan);
    assert_complete(&outcome, 500);
    let is_warned = outcome.warnings.iter().any(|warning| warning.contains("share a CPU"));
    assert!(is_warned, "{:?}", outcome.warnings);
    let plan = Plan { spins: true, server_cpus: Some(vec![99_999]), ..echo.plan() };
    let outcome = load(&plan);
    assert_complete(&outcome, 500);
    assert!(!outcome.warnings.iter().any(|warning| warning.contains("out of CPU time")));
}

/// The calling thread collects the sums, which must not disturb the server either.
#[test]
fn the_calling_thread_keeps_to_the_cpus_of_the_plan_meanwhile() {
    let echo = Echo::start("ws");
    let allowed = || rustix::thread::sched_getaffinity(None).expect("the CPUs of this thread");
    let before = allowed();
    let cpu = ringecho::cpus::allowed().expect("CPUs").pop().expect("a CPU");
    let plan = Plan { cpus: vec![cpu], ..echo.plan() };
    let mut meanwhile = Vec::new();
    let outcome = run(&plan, &Stop::new().expect("a pipe"), &mut |_| meanwhile.push(allowed()));
    assert_complete(&outcome.expect("a load"), 500);
    assert!(meanwhile.iter().all(|set| set.count() == 1 && set.is_set(cpu)));
    assert!(!meanwhile.is_empty());
    assert_eq!(allowed(), before);
}
