//! The server with `--offload on`: what it says where it cannot offload, that its counters are exact, and that
//! no echo is lost when the server or a peer ends.
//!
//! Where this process may not load programs, the tests say `SKIPPED` and pass.

use std::fs;
use std::io::Write as _;
use std::net::Shutdown;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{SendFlags, send, sockopt};
use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use testkit::{
    BINARY, CLOSE, Client, Ended, PING, PONG, REQUEST, RESPONSE, Server, TEXT, can_offload, cases,
    frame, pattern, program, reply, run, run_by, say, wait_until, without,
};

const ON: [&str; 6] = ["--engine", "uring", "--workers", "1", "--offload", "on"];

/// A server that offloads, or nothing where that is not possible.
fn offloading(test: &str) -> Option<Server> {
    can_offload(test).then(|| Server::start(&ON))
}

/// Checks that the server did not start, and returns the line that says why.
#[track_caller]
fn refusal(ended: &Ended) -> &str {
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert_eq!(ended.stdout, "", "{ended:?}");
    let line = ended.stderr.strip_suffix('\n').expect("a line");
    assert!(line.starts_with("ringecho: cannot offload echoes: "), "{line:?}");
    assert!(!line.contains('\n'), "{line:?}");
    line
}

/// Checks that a server with `--offload auto` serves, and says in one line why it does not offload.
#[track_caller]
fn serves_without(server: Server, reason: &str) {
    assert!(!server.greeting().contains("offload"), "{}", server.greeting());
    let mut client = Client::connect(server.address());
    client.echo(TEXT, b"hello");
    client.close();
    let ended = server.terminate();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    // Other things may be refused as well, each with a line of its own.
    let is_why = |line: &&str| line.contains("echoing without offload: ");
    let lines: Vec<&str> = ended.stderr.lines().filter(is_why).collect();
    assert!(lines.len() == 1 && lines[0].contains(reason), "{ended:?}");
    assert_eq!((ended.count("messages"), ended.count("messages_offloaded")), (1, 0));
}

#[test]
fn options_that_rule_offload_out_are_usage_errors() {
    for (options, told) in [
        (&["--engine", "epoll"][..], "--engine uring"),
        (&["--engine", "uring", "--protocol", "tcp"], "--protocol websocket"),
        (&["--engine", "uring", "--message-max", "16383"], "--message-max of at least 16KiB"),
        (&["--engine", "uring", "--listen", "unix:/nowhere/socket"], "TCP"),
    ] {
        for policy in ["on", "auto"] {
            let ended = run(&[options, &["--offload", policy]].concat());
            assert_eq!(ended.status.code(), Some(2), "{ended:?}");
            let told = format!("--offload {policy} needs");
            assert!(ended.stderr.contains(&told), "{ended:?}");
        }
        let ended = run(&[options, &["--offload", "on"]].concat());
        assert!(ended.stderr.contains(told), "{ended:?}");
    }
}

#[test]
fn where_programs_are_refused_the_remedy_is_told_and_auto_serves() {
    let arguments = |policy| ["--engine", "uring", "--offload", policy, "--listen", "127.0.0.1:0"];
    without(libc::SYS_bpf, Errno::PERM, || {
        let ended = run(&arguments("on"));
        assert!(refusal(&ended).contains("setcap cap_bpf,cap_net_admin,cap_perfmon=ep"));
        serves_without(Server::start(&arguments("auto")), "setcap ");
    });
    without(libc::SYS_bpf, Errno::NOSYS, || {
        refusal(&run(&arguments("on")));
        serves_without(Server::start(&arguments("auto")), "");
    });
}

#[test]
fn without_capabilities_the_remedy_is_told_and_auto_serves() {
    const TEST: &str = "without_capabilities_the_remedy_is_told_and_auto_serves";
    let command = |policy| {
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set=-all", "--inh-caps=-all"]).arg(program());
        command.args(["--engine", "uring", "--offload", policy, "--listen", "127.0.0.1:0"]);
        command
    };
    let can_drop = Command::new("setpriv")
        .args(["--bounding-set=-all", "--inh-caps=-all", "true"])
        .stderr(Stdio::null())
        .status();
    if !can_drop.is_ok_and(|status| status.success()) {
        return say(&format!("SKIPPED: {TEST}: setpriv cannot drop capabilities here"));
    }
    let ended = run_by(&mut command("on"));
    assert!(refusal(&ended).contains("setcap cap_bpf,cap_net_admin,cap_perfmon=ep"), "{ended:?}");
    serves_without(Server::start_by(command("auto")), "setcap ");
}

#[test]
fn the_counters_are_exact() {
    let Some(server) = offloading("the_counters_are_exact") else { return };
    assert!(server.greeting().ends_with(", offload on)"), "{}", server.greeting());
    let mut client = Client::connect(server.address());
    let (request, response) = (REQUEST.len() as u64, RESPONSE.len() as u64);
    client.send_frame(PING, b"");
    client.expect(PONG, b"");
    let expected = |count: &dyn Fn(&str) -> u64, messages: u64, close: u64, pending: &[u64]| {
        let control = 1;
        for (name, value) in [
            ("messages", messages),
            ("frames_in", messages + control + close),
            ("frames_out", messages + control + close),
            ("bytes_in", request + messages * 22 + control * 6 + close * 8),
            ("protocol_violations", 0),
        ] {
            assert_eq!(count(name), value, "{name}");
        }
        let bytes_out = response + messages * 18 + control * 2 + close * 4;
        let missing = bytes_out.checked_sub(count("bytes_out"));
        assert!(missing.is_some_and(|missing| pending.contains(&missing)), "{missing:?}");
    };
    for hundred in 1..=10 {
        for _ in 0..100 {
            client.echo(TEXT, b"0123456789abcdef");
        }
        let statistics = server.statistics();
        let count = |name: &str| statistics["total"][name].as_u64().expect("a count");
        // The bytes of the last answer from user space are counted when it next wakes: those of the pong, or
        // of a message that came before the gate was open.
        expected(&count, hundred * 100, 0, &[2, 18]);
    }
    client.close();
    server.wait_for_count("connections_open", 0);
    let ended = server.terminate();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    expected(&|name| ended.count(name), 1000, 1, &[0]);
    let offloaded = ended.count("messages_offloaded");
    assert!(offloaded >= 998, "{}", ended.statistics);
    assert!(ended.stdout.lines().any(|line| {
        line.split_whitespace().eq(["messages_offloaded", &offloaded.to_string()])
    }));
}

#[test]
fn an_echo_of_the_kernel_costs_no_system_call() {
    let Some(server) = offloading("an_echo_of_the_kernel_costs_no_system_call") else { return };
    let mut client = Client::connect(server.address());
    let calls = |messages: usize, client: &mut Client| {
        let before = server.count("syscalls");
        for _ in 0..messages {
            client.echo(TEXT, b"0123456789abcdef");
        }
        server.count("syscalls") - before
    };
    calls(1, &mut client);
    let calls = calls(1000, &mut client);
    client.close();
    let ended = server.terminate();
    let ratio = ended.statistics["total"]["syscalls_per_message"].as_f64().expect("a ratio");
    say(&format!("1,000 messages: {calls} system calls, with all around them {ratio:.4} each"));
    assert!(calls <= 4, "{}", ended.statistics);
    assert!(ratio < 0.05, "{}", ended.statistics);
}

/// Reads echoes of numbered frames, from the number `next` on, until the close frame 1001; returns how
/// many arrived.
fn echoes_to_the_end(client: &mut Client, mut next: u64) -> u64 {
    let start = next;
    loop {
        let received = client.read_frame();
        if received.first == CLOSE {
            assert_eq!(received.payload, 1001u16.to_be_bytes());
            client.send_frame(CLOSE, &1001u16.to_be_bytes());
            return next - start;
        }
        assert_eq!((received.first, &received.payload[..]), (BINARY, &next.to_be_bytes()[..]));
        next += 1;
    }
}

#[test]
fn a_stop_in_full_traffic_loses_no_echo() {
    for _ in 0..10 {
        let Some(server) = offloading("a_stop_in_full_traffic_loses_no_echo") else { return };
        let address = server.address();
        let connected = Arc::new(AtomicUsize::new(0));
        let connect = {
            let connected = Arc::clone(&connected);
            move || {
                let client = Client::connect(address);
                connected.fetch_add(1, Relaxed);
                client
            }
        };
        let connect_pipeline = connect.clone();
        let ping_pong = move || {
            let mut client = connect();
            for number in 0u64.. {
                client.send_frame(BINARY, &number.to_be_bytes());
                let received = client.read_frame();
                if received.first == CLOSE {
                    assert_eq!(received.payload, 1001u16.to_be_bytes());
                    client.send_frame(CLOSE, &1001u16.to_be_bytes());
                    client.expect_end();
                    return number;
                }
                assert_eq!(received.payload, number.to_be_bytes());
            }
            unreachable!()
        };
        let pipeline = move || {
            let mut client = connect_pipeline();
            let mut stream = client.stream().try_clone().expect("a descriptor");
            let writer = thread::spawn(move || {
                for number in 0u64.. {
                    if stream.write_all(&frame(BINARY, &number.to_be_bytes())).is_err() {
                        return;
                    }
                    if number % 20 == 0 {
                        thread::sleep(Duration::from_micros(50));
                    }
                }
            });
            let count = echoes_to_the_end(&mut client, 0);
            let _ = client.stream().shutdown(Shutdown::Both);
            writer.join().expect("a thread");
            count
        };
        let mut clients: Vec<_> = (0..6).map(|_| thread::spawn(ping_pong.clone())).collect();
        clients.extend((0..3).map(|_| thread::spawn(pipeline.clone())));
        wait_until("all are talking", || {
            connected.load(Relaxed) == clients.len() && server.count("messages") > 2_000
        });
        let ended = server.terminate();
        let echoes: u64 = clients.into_iter().map(|client| client.join().expect("echoes")).sum();
        assert_eq!(ended.status.code(), Some(0), "{ended:?}");
        assert_eq!(ended.count("messages"), echoes, "{}", ended.statistics);
        assert_ne!(ended.count("messages_offloaded"), 0);
    }
}

#[test]
fn killed_it_leaves_no_program_behind() {
    const TEST: &str = "killed_it_leaves_no_program_behind";
    let Some(server) = offloading(TEST) else { return };
    let mut client = Client::connect(server.address());
    client.echo(TEXT, b"hello");
    let ids: Vec<String> = fs::read_dir(format!("/proc/{}/fdinfo", server.pid().as_raw_pid()))
        .expect("a process")
        .filter_map(|entry| fs::read_to_string(entry.expect("an entry").path()).ok())
        .filter_map(|text| {
            text.lines().find_map(|line| Some(line.strip_prefix("prog_id:")?.trim().to_owned()))
        })
        .collect();
    assert!(!ids.is_empty(), "it holds a program");
    let is_there = |id: &str| {
        let mut command = Command::new("bpftool");
        command.args(["prog", "show", "id", id]).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    if !is_there(&ids[0]) {
        return say(&format!("SKIPPED: {TEST}: there is no bpftool here"));
    }
    server.signal(Signal::KILL);
    let ended = server.wait();
    assert_eq!(ended.status.code(), None, "{ended:?}");
    wait_until("its programs are gone", || !ids.iter().any(|id| is_there(id)));
}

fn reset(client: &Client) {
    sockopt::set_socket_linger(client.stream(), Some(Duration::ZERO)).expect("an option");
}

#[test]
fn peers_reset_at_every_moment() {
    let Some(server) = offloading("peers_reset_at_every_moment") else { return };
    let mut other = Client::connect(server.address());
    for mut case in cases("peers_reset_at_every_moment", 1500) {
        let mut pick = |count: usize| case.random.below(count);
        let mut client = Client::open(server.address());
        reset(&client);
        match pick(8) {
            0 => continue,
            1 | 2 => client.write(REQUEST.as_bytes()),
            3 => client.write(&[REQUEST.as_bytes(), &frame(TEXT, b"hello")].concat()),
            _ => {
                client.handshake();
                for _ in 0..pick(4) {
                    client.echo(TEXT, b"hello");
                }
                // At that time, echoes and packets for user space are in flight.
                for _ in 0..pick(6) {
                    client.send_frame(TEXT, b"hello");
                    if pick(3) == 0 {
                        client.send_frame(PING, b"");
                    }
                }
                if pick(3) == 0 {
                    let _ = client.stream().shutdown(Shutdown::Write);
                }
                if pick(4) == 0 {
                    thread::sleep(Duration::from_micros(pick(200) as u64));
                }
            }
        }
        drop(client);
        if case.seed % 50 == 0 {
            other.echo(TEXT, b"still there");
        }
    }
    server.wait_for_count("connections_open", 1);
    other.close();
    let ended = server.terminate();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert_eq!(ended.count("connections_accepted"), 1501);
    assert_eq!(ended.count("protocol_violations"), 0);
}

#[test]
fn auto_offloads_the_only_connection_after_a_run_of_small_messages() {
    const TEST: &str = "auto_offloads_the_only_connection_after_a_run_of_small_messages";
    if !can_offload(TEST) {
        return;
    }
    let server = Server::start(&["--engine", "uring", "--workers", "1", "--offload", "auto"]);
    if !server.greeting().contains("offload auto") {
        return say(&format!("SKIPPED {TEST}: the kernel is too old"));
    }
    // If a message crosses the answer to the one before, the kernel may pass it up.
    let offloads = |most: u64, talk: &mut dyn FnMut()| {
        let before = server.count("messages_offloaded");
        talk();
        let offloaded = server.count("messages_offloaded") - before;
        assert!(offloaded <= most && 2 * offloaded >= most, "{offloaded} offloaded of {most}");
    };
    let mut one = Client::connect(server.address());
    offloads(0, &mut || {
        for _ in 0..63 {
            one.echo(TEXT, b"alone");
        }
        // Fragments, so that the run is over.
        one.write(&[frame(0x01, b"al"), frame(0x80, b"one")].concat());
        one.expect(0x01, b"al");
        one.expect(0x80, b"one");
    });
    offloads(36, &mut || (0..100).for_each(|_| one.echo(TEXT, b"alone")));
    let mut two = Client::connect(server.address());
    server.wait_for_count("connections_open", 2);
    offloads(0, &mut || {
        for _ in 0..100 {
            one.echo(TEXT, b"beside another");
            two.echo(BINARY, b"the other");
        }
    });
    one.close();
    server.wait_for_count("connections_open", 1);
    offloads(36, &mut || (0..100).for_each(|_| two.echo(BINARY, b"alone now")));
    // Messages that the kernel cannot echo make no run, even one by one.
    let mut three = {
        two.close();
        server.wait_for_count("connections_open", 0);
        Client::connect(server.address())
    };
    offloads(0, &mut || (0..100).for_each(|_| three.echo(TEXT, "grüße".as_bytes())));
    let two = three;
    two.close();
    let ended = server.terminate();
    assert_eq!((ended.status.code(), ended.count("messages")), (Some(0), 564), "{ended:?}");
}

/// Held by the one test at a time that fills the kernel's memory and measures how much it takes.
static MEMORY: Mutex<()> = Mutex::new(());

/// Bytes in the buffers of all TCP sockets.
fn tcp_bytes() -> u64 {
    let text = fs::read_to_string("/proc/net/sockstat").expect("a file of the kernel");
    let line = text.lines().find(|line| line.starts_with("TCP:")).expect("a line");
    let pages = line.split_whitespace().last().expect("a count").parse::<u64>();
    pages.expect("a number") * rustix::param::page_size() as u64
}

/// Bytes of unused memory.
fn free_bytes() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").expect("a file of the kernel");
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).expect("a line");
    let kilobytes = line.trim().strip_suffix(" kB").expect("kilobytes");
    kilobytes.parse::<u64>().expect("a number") * 1024
}

#[test]
fn a_peer_that_never_reads_costs_bounded_memory_and_then_gets_every_byte() {
    const TEST: &str = "a_peer_that_never_reads_costs_bounded_memory_and_then_gets_every_byte";
    const OFFERED: u64 = 256 << 20;
    let _memory = MEMORY.lock();
    let mut given_up = 0;
    for payload in [0, 16, 1000, 4096, 16 << 10] {
        let Some(server) = offloading(TEST) else { return };
        let mut client = Client::connect(server.address());
        client.limit_receiving();
        let payload = pattern(payload);
        let (sent, expected) = (frame(BINARY, &payload), reply(BINARY, &payload));
        let (resident, tcp, free) = (server.resident_bytes(), tcp_bytes(), free_bytes());
        let (mut taken, mut last) = (0, Instant::now());
        while taken < OFFERED && last.elapsed() < Duration::from_millis(500) {
            let rest = &sent[(taken % sent.len() as u64) as usize..];
            match send(client.stream(), rest, SendFlags::DONTWAIT) {
                Ok(count) => {
                    taken += count as u64;
                    last = Instant::now();
                }
                Err(_) => thread::sleep(Duration::from_millis(1)),
            }
        }
        let resident = server.resident_bytes().saturating_sub(resident);
        let tcp = tcp_bytes().saturating_sub(tcp);
        let free = free.saturating_sub(free_bytes());
        let offloaded = server.count("messages_offloaded");
        say(&format!(
            "{} bytes, never read: stuck after {taken}, {offloaded} offloaded; server {resident}, \
             sockets {tcp}, machine {free} bytes more",
            payload.len()
        ));
        // The size that the buffers grow to; another test checks the bound itself.
        assert!(taken < OFFERED / 2, "{taken}");
        assert!(resident < 16 << 20 && tcp < OFFERED / 2, "{resident} {tcp}");
        // The CPUs may be so busy that the kernel's thread does not run.
        if server.count("connections_overrun") > 0 {
            given_up += 1;
            assert!(given_up == 1, "peers that do not read are disconnected again and again");
            continue;
        }
        let messages = taken.div_ceil(sent.len() as u64);
        let mut stream = client.stream().try_clone().expect("a descriptor");
        thread::scope(|scope| {
            scope.spawn(|| {
                let rest = &sent[(taken % sent.len() as u64) as usize..];
                if rest.len() < sent.len() {
                    stream.write_all(rest).expect("the server reads again");
                }
            });
            for number in 0..messages {
                let got = client.read(expected.len());
                assert!(got == expected, "reply {number} of {messages}");
            }
        });
        client.close();
        let ended = server.terminate();
        assert_eq!(ended.count("messages"), messages);
    }
}

/// Starts a server, and calls `hold` and then `go_on` with a client of it. During the first, the kernel's
/// threads do not run on the client's CPU, so that no echo of the kernel leaves.
fn held_up(
    test: &str,
    hold: impl FnOnce(&Server, &Client) + Send,
    go_on: impl FnOnce(Server, Client),
) {
    let processors = core_affinity::get_core_ids().expect("a list");
    let [ours, theirs, ..] = processors[..] else {
        return say(&format!("SKIPPED {test}: it needs two CPUs"));
    };
    if !can_offload(test) {
        return;
    }
    let server = Server::start(&[&ON[..], &["--cpus", &theirs.id.to_string()]].concat());
    let client = Client::connect(server.address());
    let has_held = thread::scope(|scope| {
        let holding = scope.spawn(|| {
            assert!(core_affinity::set_for_current(ours));
            // Other threads on this CPU wait until a thread of this kind sleeps.
            let id = rustix::thread::gettid().to_string();
            let status = Command::new("chrt").args(["--fifo", "--pid", "1", &id]).status();
            let may = status.is_ok_and(|status| status.success());
            if may {
                hold(&server, &client);
            }
            may
        });
        holding.join().expect("it has held")
    });
    if has_held {
        go_on(server, client);
    } else {
        say(&format!("SKIPPED {test}: chrt may not set a real-time priority"));
    }
}

/// Spends time without sleeping.
fn spin(time: Duration) {
    let begin = Instant::now();
    while begin.elapsed() < time {
        std::hint::spin_loop();
    }
}

/// What waits behind an echo for the kernel's thread is charged to no socket.
#[test]
fn a_peer_that_fills_the_kernels_memory_is_given_up() {
    const TEST: &str = "a_peer_that_fills_the_kernels_memory_is_given_up";
    const OFFERED: usize = 256 << 20;
    let _memory = MEMORY.lock();
    let (mut taken, mut overrun) = (0, 0);
    let hold = |_: &Server, client: &Client| {
        let (small, large) = (frame(BINARY, &[7; 16]), frame(BINARY, &[7; 20 << 10]));
        let mut rest = &small[..];
        let mut last = Instant::now();
        while taken < OFFERED && last.elapsed() < Duration::from_millis(500) {
            match send(client.stream(), rest, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(count) => {
                    taken += count;
                    rest = &rest[count..];
                    if rest.is_empty() {
                        rest = &large;
                    }
                    last = Instant::now();
                }
                Err(Errno::AGAIN) => {}
                Err(_) => break,
            }
        }
    };
    held_up(TEST, hold, |server, _client| {
        let mut other = Client::connect(server.address());
        other.echo(TEXT, b"hello");
        other.close();
        let ended = server.terminate();
        assert_eq!(ended.count("connections_open"), 0, "{ended:?}");
        overrun = ended.count("connections_overrun");
        if overrun == 0 {
            say(&format!("SKIPPED {TEST}: the kernel's thread ran"));
        }
    });
    say(&format!("{taken} bytes were taken"));
    // Once it is overrun, the kernel drops what comes until the server has had time to close.
    assert!(taken < OFFERED || overrun > 0, "all of it was taken");
}

#[test]
fn a_peer_that_ends_gets_the_echoes_that_the_kernel_still_has() {
    const TEST: &str = "a_peer_that_ends_gets_the_echoes_that_the_kernel_still_has";
    let hold = |_: &Server, client: &Client| {
        client.stream().write_all(&frame(BINARY, &[7; 16])).expect("the kernel takes it");
        client.stream().shutdown(Shutdown::Write).expect("connected");
        // The server learns of the end, and wants to close.
        spin(Duration::from_millis(50));
    };
    held_up(TEST, hold, |server, mut client| {
        client.expect(BINARY, &[7; 16]);
        client.expect_end();
        assert_eq!(server.terminate().count("messages_offloaded"), 1);
    });
}

#[test]
fn a_server_that_stops_sends_the_close_frame_behind_what_the_kernel_still_has() {
    const TEST: &str = "a_server_that_stops_sends_the_close_frame_behind_what_the_kernel_still_has";
    let hold = |server: &Server, client: &Client| {
        client.stream().write_all(&frame(BINARY, &[7; 16])).expect("the kernel takes it");
        server.signal(Signal::TERM);
        spin(Duration::from_millis(50));
    };
    held_up(TEST, hold, |server, mut client| {
        client.expect(BINARY, &[7; 16]);
        client.expect(CLOSE, &1001_u16.to_be_bytes());
        client.send_frame(CLOSE, &1001_u16.to_be_bytes());
        client.expect_end();
        drop(client);
        assert_eq!(server.wait().count("messages_offloaded"), 1);
    });
}

#[test]
fn connections_come_and_go_and_the_counters_agree() {
    const TEST: &str = "connections_come_and_go_and_the_counters_agree";
    let Some(server) = offloading(TEST) else { return };
    let address = server.address();
    let end = Instant::now() + Duration::from_secs(4);
    let threads: Vec<_> = cases(TEST, 8)
        .map(|mut case| {
            thread::spawn(move || {
                let random = &mut case.random;
                let (mut connections, mut messages) = (0, 0);
                while Instant::now() < end {
                    let mut client = Client::connect(address);
                    connections += 1;
                    for _ in 0..random.below(60) {
                        let payload =
                            pattern(random.pick(&[0, 5, 16, 125, 126, 1000, 4096, 16_384, 16_385]));
                        let first = random.pick(&[TEXT, BINARY]);
                        let is_pinging = random.one_in(30);
                        if is_pinging {
                            client.send_frame(PING, b"!");
                        }
                        let count = 1 + random.below(3);
                        for _ in 0..count {
                            client.send_frame(first, &payload);
                        }
                        if is_pinging {
                            client.expect(PONG, b"!");
                        }
                        for _ in 0..count {
                            client.expect(first, &payload);
                        }
                        messages += count as u64;
                    }
                    match random.below(4) {
                        0 => client.close(),
                        1 => {
                            client.stream().shutdown(Shutdown::Write).expect("connected");
                            client.expect_end();
                        }
                        2 => reset(&client),
                        _ => drop(client),
                    }
                }
                (connections, messages)
            })
        })
        .collect();
    let counts = threads.into_iter().map(|thread| thread.join().expect("every echo"));
    let (connections, messages) =
        counts.fold((0, 0), |sum, count| (sum.0 + count.0, sum.1 + count.1));
    server.wait_for_count("connections_open", 0);
    let ended = server.terminate();
    let offloaded = ended.count("messages_offloaded");
    say(&format!("{connections} connections, {messages} messages, {offloaded} of them offloaded"));
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert_eq!(ended.count("connections_accepted"), connections, "{}", ended.statistics);
    assert_eq!(ended.count("messages"), messages, "{}", ended.statistics);
    assert_eq!(ended.count("protocol_violations"), 0);
    assert_eq!(ended.count("connections_overrun"), 0);
    assert!(offloaded > messages / 20, "{}", ended.statistics);
}

/// TCP joins what it sends again with new data, and its receiver skips what it has had.
#[test]
fn what_a_peer_sends_again_is_answered_once() {
    let Some(server) = offloading("what_a_peer_sends_again_is_answered_once") else { return };
    let hello = frame(TEXT, b"hello");
    let (payload, large) = (pattern(5000), pattern(12_000));
    let mut bytes = 0;
    for (repeated, next, first) in [
        // Frames come again, with part of the next one and with all of it.
        (hello.len(), &payload, 1),
        (hello.len(), &payload, 4990),
        (2 * hello.len(), &payload, 5008),
        // So does part of a frame.
        (1, &payload, 1),
        (3, &payload, 5008),
        // More comes again than the kernel takes off at a time.
        (large.len(), &payload, 1),
        (large.len() + 14, &payload, 5008),
    ] {
        let mut client = Client::connect(server.address());
        client.echo(BINARY, &large);
        for _ in 0..2 {
            client.echo(TEXT, b"hello");
        }
        let sent = [frame(BINARY, &large), hello.clone(), hello.clone()].concat();
        let next_frame = frame(BINARY, next);
        let mut client = client.rewound(repeated as u32);
        client.write(&[&sent[sent.len() - repeated..], &next_frame[..first]].concat());
        client.write(&next_frame[first..]);
        client.expect(BINARY, next);
        client.echo(TEXT, b"hello");
        client.close();
        bytes += (REQUEST.len() + sent.len() + next_frame.len() + hello.len() + 8) as u64;
    }
    server.wait_for_count("connections_open", 0);
    let ended = server.terminate();
    // Each connection has sent five messages and a close frame, some of them twice.
    for (name, expected) in
        [("protocol_violations", 0), ("messages", 7 * 5), ("frames_in", 7 * 6), ("bytes_in", bytes)]
    {
        assert_eq!(ended.count(name), expected, "{name}: {ended:?}");
    }
}

#[test]
fn connections_beyond_the_places_are_served_too() {
    const TEST: &str = "connections_beyond_the_places_are_served_too";
    const PLACES: usize = 1024;
    const CLIENTS: usize = PLACES + 100;
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    // `None` means unlimited.
    let is_few = |limit: Option<u64>| limit.is_some_and(|limit| limit < 4 * CLIENTS as u64);
    if is_few(current) {
        let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    }
    if is_few(getrlimit(Resource::Nofile).current) {
        return say(&format!("SKIPPED: {TEST}: too few descriptors"));
    }
    let Some(server) = offloading(TEST) else { return };
    let mut clients: Vec<Client> =
        (0..CLIENTS).map(|_| Client::connect(server.address())).collect();
    let mut round = || {
        let before = server.count("messages_offloaded");
        for client in &mut clients {
            client.send_frame(TEXT, b"hello");
        }
        for client in &mut clients {
            client.expect(TEXT, b"hello");
        }
        (server.count("messages_offloaded") - before) as usize
    };
    for _ in 0..3 {
        assert_eq!(round(), PLACES);
    }
    // The next connection gets the place that becomes free.
    clients.drain(..200).for_each(Client::close);
    server.wait_for_count("connections_open", CLIENTS as u64 - 200);
    clients.extend((0..50).map(|_| Client::connect(server.address())));
    let mut offloaded = server.count("messages_offloaded");
    for client in &mut clients {
        client.echo(TEXT, b"hello");
    }
    offloaded = server.count("messages_offloaded") - offloaded;
    assert_eq!(offloaded as usize, PLACES - 200 + 50);
    clients.into_iter().for_each(Client::close);
    let ended = server.terminate();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
}
