//! Round trips against servers that behave in ways that ringecho does not: what counts, what costs a
//! warning, what fails, and that every wait ends.

use std::io;
use std::process::{Child, Command};
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::Duration;

use ringbench::problem::{Problem, Step};
use ringbench::rtt::{self, Case, Outcome, Plan, Timeouts, Wait};
use ringbench::session::Form;
use ringbench::stop::Stop;
use ringbench::verdict::Farewell;
use rustix::process::{Pid, Signal, kill_process};
use testkit::fake::{Fake, Peer, response_to, send_back};
use testkit::{BINARY, CLOSE, PING, PONG, TEXT, end, reply, spawn};

/// The timeout of a step that is to time out. The others get all the time that a loaded machine may
/// need.
const SHORT: Duration = Duration::from_millis(200);
const GENEROUS: Duration = Duration::from_secs(60);
const PATIENT: Timeouts =
    Timeouts { connect: GENEROUS, handshake: GENEROUS, echo: GENEROUS, close: GENEROUS };

fn case(payload_bytes: usize, messages: u64) -> Case {
    Case { name: "test".to_owned(), payload_bytes, form: Form::Text, messages }
}

fn stop() -> Stop {
    Stop::new().expect("a pipe")
}

fn try_run(url: &str, case: &Case, timeouts: Timeouts) -> Result<Outcome, Problem> {
    let target = url.parse().expect("a target");
    rtt::run(&Plan { timeouts, ..Plan::new(&target, case) }, &stop())
}

/// Twenty messages of 16 bytes.
fn run(server: &Fake) -> Outcome {
    try_run(&server.url(), &case(16, 20), PATIENT).expect("a connection")
}

fn assert_right(outcome: &Outcome, messages: u64) {
    assert!(outcome.problem.is_none(), "{:?}", outcome.problem);
    assert_eq!(outcome.latencies.count(), messages);
    assert_eq!(outcome.farewell, Some(Farewell::Clean));
}

/// The problem of an outcome in which `messages` were counted before it.
fn problem(outcome: Outcome, messages: u64) -> Problem {
    assert_eq!(outcome.latencies.count(), messages);
    assert_eq!(outcome.duration.is_zero(), messages == 0);
    outcome.problem.expect("a problem")
}

#[test]
fn right_echoes_are_counted_however_they_come() {
    let whole = Fake::echo(send_back);
    assert_right(&run(&whole), 20);
    assert_eq!(whole.accepted(), 1);
    let in_fragments = Fake::echo(|peer, echo| {
        let (first, second) = echo.payload.split_at(7);
        peer.send(
            &[reply(echo.first & 0x7f, first), reply(PONG, b""), reply(0x80, second)].concat(),
        )
    });
    assert_right(&run(&in_fragments), 20);
    let in_drops = Fake::echo(|peer, echo| {
        reply(echo.first, &echo.payload).iter().try_for_each(|byte| peer.send(&[*byte]))
    });
    assert_right(&run(&in_drops), 20);
    let pinged = Fake::echo(|peer, echo| {
        if echo.first == PONG {
            assert_eq!(echo.payload, b"are you there");
            return Ok(());
        }
        peer.send(&reply(PING, b"are you there"))?;
        send_back(peer, echo)
    });
    assert_right(&run(&pinged), 20);
}

#[test]
fn a_client_that_spins_counts_the_same() {
    let server = Fake::echo(send_back);
    let target = server.url().parse().expect("a target");
    let case = case(16, 20);
    let plan = Plan { wait: Wait::Spin, timeouts: PATIENT, ..Plan::new(&target, &case) };
    assert_right(&rtt::run(&plan, &stop()).expect("a connection"), 20);
}

#[test]
fn a_wrong_echo_is_no_message() {
    let wrong = |number: u8| {
        Fake::echo(move |peer, echo| {
            let mut payload = echo.payload.clone();
            if payload.starts_with(format!("{number:08}").as_bytes()) {
                payload[15] ^= 1;
            }
            peer.send(&reply(echo.first, &payload))
        })
    };
    for number in [0, 7] {
        let text = problem(run(&wrong(number)), number.into()).to_string();
        let right = format!("message {number}: echo differs at byte 15 (counted from 0)");
        assert_eq!(text, right);
    }
    let binary = Fake::echo(|peer, echo| peer.send(&reply(BINARY, &echo.payload)));
    assert!(matches!(problem(run(&binary), 0), Problem::WrongForm(0)));
}

#[test]
fn an_echo_too_many_is_a_wrong_echo() {
    let twice = Fake::echo(|peer, echo| {
        let echo = reply(echo.first, &echo.payload);
        peer.send(&[&echo[..], &echo[..]].concat())
    });
    assert!(matches!(problem(run(&twice), 1), Problem::RepeatedEcho(0)));
    // The second echo of the last message comes when only the close is awaited.
    let outcome = try_run(&twice.url(), &case(16, 1), PATIENT).expect("a connection");
    assert!(matches!(problem(outcome, 1), Problem::RepeatedEcho(0)));
}

#[test]
fn a_broken_rule_is_named() {
    for (bytes, rule) in [
        (&[TEXT, 0x81, 1, 2, 3, 4, b'x' ^ 1][..], "must not mask"),
        (&[TEXT | 0x40, 1, b'x'], "reserved bit"),
        (&[0x83, 0], "reserved opcode"),
    ] {
        let server = Fake::echo(move |peer, _| peer.send(bytes));
        let text = problem(run(&server), 0).to_string();
        assert!(text.contains("broke the protocol") && text.contains(rule), "{text}");
    }
}

#[test]
fn an_odd_farewell_is_noted_and_the_results_count() {
    /// A server that echoes, and closes the connection with `leave`.
    fn leaving(leave: fn(&mut Peer) -> io::Result<()>) -> Fake {
        Fake::start(move |peer, _| {
            peer.accept("")?;
            peer.echo_until_close(&send_back)?;
            leave(peer)
        })
    }
    let answer = reply(CLOSE, &1000u16.to_be_bytes());
    assert_eq!(answer, [0x88, 2, 3, 232]);
    type Leave = fn(&mut Peer) -> io::Result<()>;
    let farewells: [(Leave, Farewell); 7] = [
        (|peer| peer.send(&[0x88, 2, 3, 232]), Farewell::Clean),
        (|peer| peer.send(&[0x88, 0]), Farewell::Clean),
        (|_| Ok(()), Farewell::ClosedUnanswered),
        (|peer| peer.reset_at_end(), Farewell::ResetUnanswered),
        (Peer::wait_for_end, Farewell::Silent),
        (
            |peer| {
                peer.send(&[0x88, 2, 3, 232])?;
                peer.wait_for_end()
            },
            Farewell::LeftOpen,
        ),
        (
            |peer| peer.send(&[&reply(TEXT, b"bye")[..], &[0x88, 2, 3, 232]].concat()),
            Farewell::LateMessages,
        ),
    ];
    for (leave, farewell) in farewells {
        let server = leaving(leave);
        let waits = matches!(farewell, Farewell::Silent | Farewell::LeftOpen);
        let close = if waits { SHORT } else { GENEROUS };
        let timeouts = Timeouts { close, ..PATIENT };
        let outcome = try_run(&server.url(), &case(16, 20), timeouts).expect("a connection");
        assert!(outcome.problem.is_none(), "{farewell:?}: {:?}", outcome.problem);
        assert_eq!(outcome.latencies.count(), 20);
        assert_eq!(outcome.farewell, Some(farewell));
    }
}

#[test]
fn an_early_end_says_why() {
    let refusing = Fake::start(|peer, _| {
        peer.accept("")?;
        // The message is larger than what both sockets hold, so the client is still sending.
        peer.take(1000)?;
        peer.send(&reply(CLOSE, &1009u16.to_be_bytes()))?;
        peer.finish()?;
        thread::sleep(SHORT);
        peer.reset_at_end()
    });
    let outcome = try_run(&refusing.url(), &case(16 << 20, 1), PATIENT).expect("a connection");
    assert!(matches!(problem(outcome, 0), Problem::Closed(Some(1009))));
    let leaving = Fake::start(|peer, _| {
        peer.accept("")?;
        for _ in 0..5 {
            let echo = peer.frame()?;
            send_back(peer, &echo)?;
        }
        peer.frame().map(drop)
    });
    assert!(matches!(problem(run(&leaving), 5), Problem::Closed(None)));
}

/// A server of plain bytes that sends each read back before it reads again, and waits for that.
fn plain_echo() -> Fake {
    Fake::start(|peer, _| peer.echo_bytes(|_, _| true))
}

#[test]
fn a_message_larger_than_all_buffers_comes_back() {
    let server = plain_echo();
    let case = Case { form: Form::Binary, ..case(16 << 20, 2) };
    let outcome = try_run(&server.plain(), &case, PATIENT).expect("a connection");
    assert!(outcome.problem.is_none(), "{:?}", outcome.problem);
    assert_eq!(outcome.latencies.count(), 2);
    let server = Fake::echo(send_back);
    let outcome = try_run(&server.url(), &case, PATIENT).expect("a connection");
    assert_right(&outcome, 2);
}

#[test]
fn plain_bytes_that_nobody_awaits_are_wrong() {
    let server = Fake::start(|peer, _| {
        let bytes = peer.take(16)?;
        peer.send(&[&bytes[..], b"x"].concat())?;
        peer.wait_for_end()
    });
    let outcome = try_run(&server.plain(), &case(16, 1), PATIENT).expect("a connection");
    assert!(matches!(problem(outcome, 1), Problem::UnawaitedEcho));
}

#[test]
fn every_step_ends_in_its_time_whatever_trickles_in() {
    fn trickle(peer: &mut Peer) -> io::Result<()> {
        loop {
            peer.send(b"a")?;
            thread::sleep(Duration::from_millis(5));
        }
    }
    // A handshake, then an echo, that trickles in byte by byte and never ends.
    let handshake = Fake::start(|peer, _| {
        let request = peer.request()?;
        let response = response_to(&request, "X-Long: a\r\n");
        let (begin, _) = response.split_once("a\r\n\r\n").expect("the last field");
        peer.send(begin.as_bytes())?;
        trickle(peer)
    });
    let timeouts = Timeouts { handshake: SHORT, ..PATIENT };
    let ended = try_run(&handshake.url(), &case(16, 1), timeouts).expect_err("no handshake");
    assert!(matches!(ended, Problem::TimedOut(Step::Handshake, SHORT)), "{ended}");
    let echo = Fake::echo(|peer, _| {
        peer.send(&[TEXT, 126, 0xff, 0xff])?;
        trickle(peer)
    });
    let timeouts = Timeouts { echo: SHORT, ..PATIENT };
    for wait in [Wait::Block, Wait::Spin] {
        let (target, case) = (echo.url().parse().expect("a target"), case(16, 1));
        let plan = Plan { timeouts, wait, ..Plan::new(&target, &case) };
        let ended = rtt::run(&plan, &stop()).expect("a connection");
        let ended = problem(ended, 0);
        assert!(matches!(ended, Problem::TimedOut(Step::Echo, SHORT)), "{ended}");
    }
    // A server that does not read, and a message larger than all buffers.
    let deaf = Fake::start(|peer, _| {
        peer.accept("")?;
        thread::sleep(GENEROUS);
        Ok(())
    });
    let outcome = try_run(&deaf.url(), &case(64 << 20, 1), timeouts).expect("a connection");
    let ended = problem(outcome, 0);
    assert!(matches!(ended, Problem::TimedOut(Step::Echo, SHORT)), "{ended}");
}

#[test]
fn a_request_to_stop_ends_every_wait() {
    /// Where the server no longer answers.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Silence {
        Handshake,
        Echo,
        Message,
        Close,
    }
    for (silence, wait) in [
        (Silence::Handshake, Wait::Block),
        (Silence::Echo, Wait::Block),
        (Silence::Echo, Wait::Spin),
        (Silence::Message, Wait::Block),
        (Silence::Close, Wait::Block),
    ] {
        let (reached, is_reached) = mpsc::channel();
        let server = Fake::start(move |peer, _| {
            let reached = |_| reached.send(()).expect("the test waits");
            match silence {
                Silence::Handshake => peer.request().map(drop).map(reached)?,
                Silence::Echo => {
                    peer.accept("")?;
                    let echo = peer.frame()?;
                    send_back(peer, &echo)?;
                    peer.frame().map(drop).map(reached)?;
                }
                Silence::Message => peer.accept("").map(reached)?,
                Silence::Close => {
                    peer.accept("")?;
                    peer.echo_until_close(&send_back).map(drop).map(reached)?;
                }
            }
            thread::sleep(GENEROUS);
            Ok(())
        });
        let payload_bytes = if silence == Silence::Message { 64 << 20 } else { 16 };
        let case = case(payload_bytes, 2);
        let (target, stop) = (server.url().parse().expect("a target"), stop());
        // Were the stop not seen, this would end with a problem.
        let plan = Plan { wait, timeouts: PATIENT, ..Plan::new(&target, &case) };
        let outcome = thread::scope(|scope| {
            let runs = scope.spawn(|| rtt::run(&plan, &stop));
            is_reached.recv().expect("the server comes that far");
            stop.request();
            runs.join().expect("no panic").expect("a stop is no error")
        });
        assert!(outcome.problem.is_none(), "{silence:?}: {:?}", outcome.problem);
        let messages = match silence {
            Silence::Handshake | Silence::Message => 0,
            Silence::Echo => 1,
            Silence::Close => 2,
        };
        assert_eq!(outcome.latencies.count(), messages, "{silence:?}");
    }
}

#[test]
fn an_answer_that_opens_no_websocket_is_named() {
    for (answer, name) in [
        ("HTTP/1.1 404 Not Found\r\n\r\n", "404"),
        ("HTTP/1.1 302 Found\r\nLocation: /x\r\n\r\n", "redirects to /x"),
        ("\x15\x03\x01\0\x02\x02\x46", "wss://"),
        ("SSH-2.0-OpenSSH_9.9\r\n", "tcp://"),
        ("HTTP/1.1 101 Switching Protocols\r\n\r\n", "Upgrade"),
    ] {
        let server = Fake::start(move |peer, _| {
            peer.request()?;
            peer.send(answer.as_bytes())
        });
        let refused = try_run(&server.url(), &case(16, 1), PATIENT).expect_err("no WebSocket");
        let text = refused.to_string();
        assert!(text.contains("not a WebSocket server") && text.contains(name), "{text}");
    }
}

#[test]
fn an_end_before_the_answer_is_named_as_that() {
    for answer in ["", "HTTP/1.1 101 Switching Protocols\r\nUpgr"] {
        for is_reset in [false, true] {
            let server = Fake::start(move |peer, _| {
                peer.request()?;
                peer.send(answer.as_bytes())?;
                if is_reset { peer.reset_at_end() } else { Ok(()) }
            });
            let ended = try_run(&server.url(), &case(16, 1), PATIENT).expect_err("no answer");
            let right = matches!(&ended, Problem::Unanswered(lost) if lost.is_some() == is_reset);
            assert!(right && ended.to_string().contains("opening handshake"), "{ended}");
        }
    }
}

/// Starts `ringbench rtt` on `url`, with four messages per round.
fn start(url: &str, rounds: &str) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringbench"));
    command.args(["rtt", url, "--case", "9.7.2", "--messages", "4", "--rounds", rounds]);
    spawn(&mut command)
}

/// A server that reads all there is, and from its first message or its close frame on sends the same
/// bytes without end.
fn flooding(begins_with: u8, bytes: Vec<u8>) -> Fake {
    Fake::start(move |peer, _| {
        peer.accept("")?;
        peer.echo_until(begins_with, &send_back)?;
        let mut stream = peer.stream.try_clone()?;
        thread::spawn(move || io::copy(&mut stream, &mut io::sink()));
        loop {
            peer.send(&bytes)?;
        }
    })
}

/// The outcome of two messages against a server that never pauses. Did it not end, the test would fail.
fn flooded(server: Fake) -> Outcome {
    let (outcome, ended) = mpsc::channel();
    thread::spawn(move || {
        let timeouts = Timeouts { echo: SHORT, close: SHORT, ..PATIENT };
        let ran = try_run(&server.url(), &case(16, 2), timeouts).expect("a connection");
        outcome.send(ran).expect("the test waits");
    });
    ended.recv_timeout(GENEROUS).expect("it ends")
}

#[test]
fn a_server_that_sends_without_end_does_not_delay_the_end() {
    let endless = |first, payload: &[u8]| reply(first, payload).repeat(1000);
    for bytes in [endless(PING, b"?"), endless(PONG, b""), endless(0, b"")] {
        let first = if bytes[0] == 0 { reply(TEXT & 0x7f, b"") } else { Vec::new() };
        let server = flooding(TEXT, [first, bytes].concat());
        let problem = problem(flooded(server), 0);
        let broken = matches!(problem, Problem::Broken(_));
        assert!(broken || matches!(problem, Problem::TimedOut(Step::Echo, _)), "{problem}");
    }
    for (bytes, farewell) in [
        (endless(PING, b"?"), Farewell::Silent),
        (endless(BINARY, b"news"), Farewell::LateMessages),
    ] {
        let outcome = flooded(flooding(CLOSE, bytes));
        assert!(outcome.problem.is_none(), "{:?}", outcome.problem);
        assert_eq!((outcome.latencies.count(), outcome.farewell), (2, Some(farewell)));
    }
}

#[test]
fn a_message_without_end_is_no_echo() {
    let long = vec![b'x'; 4 << 20];
    let in_one_frame = testkit::frame::header(BINARY, 1 << 40, None);
    let in_fragments = [reply(BINARY & 0x7f, b""), reply(0, &long)].concat();
    for bytes in [[in_one_frame, long.clone()].concat(), in_fragments] {
        let problem = problem(flooded(flooding(TEXT, bytes)), 0);
        assert!(matches!(problem, Problem::TooLong(_)), "{problem}");
    }
}

/// A correct server. From connection `silent_from` on, it reports each request to the receiver and
/// waits for the sender before it answers.
fn hesitating(silent_from: usize) -> (Fake, mpsc::Receiver<()>, mpsc::Sender<()>) {
    let (reached, is_reached) = mpsc::channel();
    let (go, goes) = mpsc::channel::<()>();
    let goes = Mutex::new(goes);
    let server = Fake::start(move |peer, number| {
        let request = peer.request()?;
        if number >= silent_from {
            reached.send(()).expect("the test waits");
            // An error is that the test is over.
            let _ = goes.lock().expect("no panic").recv();
        }
        peer.send(response_to(&request, "").as_bytes())?;
        peer.echo_until_close(&send_back)?;
        peer.send(&reply(CLOSE, &1000u16.to_be_bytes()))
    });
    (server, is_reached, go)
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).expect("it runs");
}

#[test]
fn stop_and_continue_cost_a_warning() {
    let (server, is_reached, go) = hesitating(0);
    let child = start(&server.url(), "1");
    is_reached.recv().expect("a request");
    signal(&child, Signal::STOP);
    signal(&child, Signal::CONT);
    go.send(()).expect("the server waits");
    let ended = end(child);
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    let said = ended.stdout;
    assert!(said.contains("warning: ringbench was suspended"), "{said}");
    assert!(!said.contains("CUT SHORT"), "{said}");
}

#[test]
fn an_interrupt_in_a_handshake_keeps_the_rounds_before_it() {
    for (rounds_before, said) in [
        (0, "CUT SHORT: ended by a signal before the first echo\n"),
        (1, "CUT SHORT: ended by a signal\n"),
    ] {
        // The sender is held, so the server does not answer.
        let (server, is_reached, _go) = hesitating(rounds_before);
        let child = start(&server.url(), "3");
        is_reached.recv().expect("a request");
        signal(&child, Signal::INT);
        let ended = end(child);
        assert_eq!(ended.status.code(), Some(0), "{ended:?}");
        let output = ended.stdout;
        assert!(output.starts_with(said), "{output}");
        assert_eq!(output.contains("9.7.2"), rounds_before > 0, "{output}");
    }
}

/// A terminal that is closed, or a connection to a machine that breaks, sends SIGHUP.
#[test]
fn a_hangup_keeps_what_was_measured_unless_it_is_ignored() {
    let (server, is_reached, _go) = hesitating(1);
    let child = start(&server.url(), "3");
    is_reached.recv().expect("a request");
    signal(&child, Signal::HUP);
    let ended = end(child);
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert!(ended.stdout.starts_with("CUT SHORT: ended by a signal\n"), "{ended:?}");
    let (server, is_reached, go) = hesitating(0);
    let mut command = Command::new("nohup");
    command.arg(env!("CARGO_BIN_EXE_ringbench"));
    command.args(["rtt", &server.url(), "--case", "9.7.2", "--messages", "4", "--rounds", "1"]);
    let child = spawn(&mut command);
    is_reached.recv().expect("a request");
    signal(&child, Signal::HUP);
    go.send(()).expect("the server waits");
    let ended = end(child);
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert!(!ended.stdout.contains("CUT SHORT"), "{ended:?}");
}

#[test]
fn an_odd_farewell_is_counted_over_the_rounds() {
    let server = Fake::start(|peer, _| {
        peer.accept("")?;
        peer.echo_until_close(&send_back)?;
        peer.reset_at_end()
    });
    let ended = end(start(&server.url(), "3"));
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    let said = ended.stdout;
    let warning = "on 3 of 3 connections, the server reset the connection instead of answering";
    assert!(said.contains(warning), "{said}");

    // In a comparison, for each candidate.
    let polite = Fake::echo(send_back);
    let targets = [format!("rude={}", server.url()), format!("polite={}", polite.url())];
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringbench"));
    command.arg("compare").args(targets).args(["--messages", "4", "--rounds", "2"]);
    let ended = end(spawn(&mut command));
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    let said = ended.stdout;
    let warning =
        "rude: Connections were not closed properly: on 3 of 3 connections, the server reset";
    assert!(said.split_whitespace().collect::<Vec<_>>().join(" ").contains(warning), "{said}");
    assert!(!said.contains("polite: "), "{said}");
}
