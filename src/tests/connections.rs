//! Many connections, and peers that behave badly, on the kernel's own ring.

use std::io::{ErrorKind, Write};
use std::net::Shutdown;
use std::process::Command;
use std::thread;
use std::time::Duration;

use rustix::net::sockopt;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use testkit::{
    BINARY, CLOSE, Client, FIN, PING, PONG, REQUEST, RESPONSE, Random, Server, TEXT, frame,
    pattern, program, reply, say, wait_until,
};

/// Whether this process may have this many descriptors; raises the soft limit if it must.
fn may_have_descriptors(count: u64) -> bool {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    // `None` means that there is no limit.
    if current.is_some_and(|current| current < count) {
        let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    }
    getrlimit(Resource::Nofile).current.is_none_or(|current| current >= count)
}

/// Closes the connection with a reset instead of FIN.
fn reset(client: Client) {
    sockopt::set_socket_linger(client.stream(), Some(Duration::ZERO)).expect("an option");
}

#[test]
fn ten_thousand_connections_come_and_go_and_leave_nothing_behind() {
    const THREADS: u64 = 4;
    const CONNECTIONS: u64 = 10_000;
    let server = Server::start(&[]);
    let address = server.address();
    let before = server.descriptors();
    let visit = move |number: u64| {
        let mut client = Client::open(address);
        match number % 10 {
            // Gone before it has said anything, and within its request.
            0 => return,
            1 => return client.write(&REQUEST.as_bytes()[..50]),
            _ => client.handshake(),
        }
        client.echo(TEXT, b"hello");
        match number % 10 {
            2 => drop(client),
            3 => reset(client),
            4 => {
                client.write(&frame(BINARY, b"half of this")[..10]);
                reset(client);
            }
            // An echo that nobody reads makes the close a reset.
            5 => client.send_frame(TEXT, b"unread"),
            _ => client.close(),
        }
    };
    let threads: Vec<_> = (0..THREADS)
        .map(|_| thread::spawn(move || (0..CONNECTIONS / THREADS).for_each(visit)))
        .collect();
    for thread in threads {
        thread.join().expect("all are served");
    }
    server.wait_for_count("connections_accepted", CONNECTIONS);
    server.wait_for_count("connections_open", 0);
    let mut client = Client::connect(server.address());
    client.echo(TEXT, b"still here");
    client.close();
    server.wait_for_count("connections_open", 0);
    assert_eq!(server.descriptors(), before);
    let ended = server.terminate();
    assert_eq!(ended.count("connections_rejected"), 0);
    assert_eq!(ended.count("protocol_violations"), 0);
    // One echo on eight of ten; the unread ones are echoed unless the reset comes first.
    let messages = ended.count("messages");
    let least = CONNECTIONS / 10 * 8 + 1;
    assert!((least..=least + CONNECTIONS / 10).contains(&messages), "{messages}");
}

#[test]
fn peers_that_reset_within_their_requests_are_forgotten() {
    const ROUNDS: usize = 40;
    const THREADS: usize = 4;
    const CONNECTIONS: usize = 250;
    let server = Server::start(&[]);
    let address = server.address();
    let before = server.descriptors();
    let visit = move |number| {
        let client = if number % 16 == 0 {
            let mut client = Client::connect(address);
            client.write(&frame(BINARY, &[7; 100])[..50]);
            client
        } else {
            let mut client = Client::open(address);
            client.write(&REQUEST.as_bytes()[..50]);
            client
        };
        reset(client);
    };
    for round in 1..=ROUNDS {
        thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| (0..CONNECTIONS).for_each(visit));
            }
        });
        // The queue of those that wait to be accepted is bounded.
        server.wait_for_count("connections_accepted", (round * THREADS * CONNECTIONS) as u64);
    }
    server.wait_for_count("connections_open", 0);
    assert_eq!(server.descriptors(), before);
}

#[test]
fn however_a_client_leaves_the_others_get_their_echoes() {
    for wait in ["block", "adaptive", "sqpoll"] {
        let server = Server::start(&["--buffers", "4", "--buffer-size", "16KiB", "--wait", wait]);
        let address = server.address();
        let before = server.descriptors();
        let threads: Vec<_> = (0..16)
            .map(|number| {
                thread::spawn(move || {
                    let choices = Random::new(number).bytes(1_000);
                    for choice in choices.chunks_exact(10) {
                        let mut client = Client::connect(address);
                        for &length in &choice[..usize::from(choice[8] % 8)] {
                            let mut payload = pattern(usize::from(length).pow(2));
                            payload.extend(choice);
                            client.echo(BINARY, &payload);
                        }
                        let large = frame(BINARY, &pattern(usize::from(choice[7]) << 12));
                        match choice[9] % 5 {
                            0 => client.close(),
                            // With more on the way than the sockets hold, or not.
                            1 => client.write(&large),
                            2 => {
                                client.write(&large);
                                reset(client);
                            }
                            3 => {
                                client.write(&large[..large.len() / 2]);
                                reset(client);
                            }
                            _ => drop(client),
                        }
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().expect("all echoes are right");
        }
        server.wait_for_count("connections_accepted", 1_600);
        server.wait_for_count("connections_open", 0);
        assert_eq!(server.descriptors(), before);
        let ended = server.terminate();
        assert_eq!(ended.status.code(), Some(0), "{wait} {ended:?}");
        assert_eq!(ended.count("protocol_violations"), 0);
    }
}

#[test]
fn five_thousand_connections_echo_at_once_and_cost_little_when_idle() {
    const CONNECTIONS: usize = 5_000;
    // A runtime has a task and memory for the read of each of them.
    let is_by_runtime = std::env::var("RINGECHO_TEST_ENGINE").is_ok_and(|it| it == "tokio-uring");
    let bytes_max = if is_by_runtime { 6000 } else { 256 };
    if !may_have_descriptors(CONNECTIONS as u64 + 500) {
        return say("SKIPPED five_thousand_connections: the hard limit on descriptors is too low");
    }
    let server = Server::start(&["--workers", "1"]);
    // Once around the ring of buffers, so that all memory that is taken once is in use.
    let mut first = Client::connect(server.address());
    for _ in 0..600 {
        first.echo(BINARY, &pattern(16_000));
    }
    let before = server.resident_bytes();
    let mut clients: Vec<Client> =
        (0..CONNECTIONS).map(|_| Client::connect(server.address())).collect();
    for round in 0..3 {
        let message = |number: usize| format!("message {round} of connection {number}");
        for (number, client) in clients.iter_mut().enumerate() {
            client.send_frame(TEXT, message(number).as_bytes());
        }
        for (number, client) in clients.iter_mut().enumerate() {
            client.expect(TEXT, message(number).as_bytes());
        }
        if round == 0 {
            let grown = server.resident_bytes().saturating_sub(before);
            let each = grown / CONNECTIONS as u64;
            say(&format!("memory of an idle connection: {each} bytes"));
            assert!(each <= bytes_max, "{grown} bytes for {CONNECTIONS} connections");
        }
    }
    assert_eq!(server.count("connections_open"), CONNECTIONS as u64 + 1);
    clients.into_iter().for_each(Client::close);
    first.close();
    server.wait_for_count("connections_open", 0);
    let ended = server.terminate();
    assert_eq!(ended.count("messages"), 600 + 3 * CONNECTIONS as u64);
}

/// What a peer sends that does not read: frames without end.
#[derive(Debug, Clone, Copy)]
struct Flood {
    /// A frame before all others.
    opening: Option<u8>,
    /// The first byte of the frames, and of their echoes.
    first: u8,
    echoed: u8,
    /// The length of their payload.
    bytes: usize,
    /// How many frames: far more than the sockets hold.
    frames: u32,
}

impl Flood {
    fn payload(self, number: u32) -> Vec<u8> {
        let mut payload = pattern(self.bytes);
        if let Some(place) = payload.first_chunk_mut() {
            *place = number.to_be_bytes();
        }
        payload
    }

    /// Sends the flood on a new connection of `server`; checks that `other` is served meanwhile,
    /// that the memory stays within bounds, and that every byte comes back once it is read.
    fn overwhelm(self, server: &Server, other: &mut Client, growth_max: u64) {
        let before = server.resident_bytes();
        let received_before = server.count("bytes_in");
        let mut greedy = Client::connect(server.address());
        greedy.limit_receiving();
        if let Some(opening) = self.opening {
            greedy.echo(opening, b"");
        }
        let mut stream = greedy.stream().try_clone().expect("a descriptor");
        let flood: Vec<u8> =
            (0..self.frames).flat_map(|number| frame(self.first, &self.payload(number))).collect();
        let sent = flood.len() as u64;
        // In one write, so that what is received ends anywhere within a frame.
        let writer =
            thread::spawn(move || stream.write_all(&flood).expect("the server takes bytes"));
        // Nothing else moves any more when the count grows by the work for the other alone.
        let mut received = 0;
        wait_until("the server stops receiving", || {
            let last = server.count("bytes_in");
            for _ in 0..100 {
                other.echo(TEXT, b"served");
            }
            thread::sleep(Duration::from_millis(100));
            received = server.count("bytes_in");
            received == last + 100 * 12
        });
        let grown = server.resident_bytes().saturating_sub(before);
        let received = received - received_before;
        say(&format!("memory of a peer that does not read: {grown} bytes ({self:?})"));
        assert!(received < sent * 3 / 4, "{received} bytes taken of {sent}: {self:?}");
        assert!(grown <= growth_max, "{grown} bytes of memory for one peer: {self:?}");

        for number in 0..self.frames {
            let expected = reply(self.echoed, &self.payload(number));
            assert!(greedy.read(expected.len()) == expected, "frame {number} of {self:?}");
        }
        writer.join().expect("all is written");
        reset(greedy);
    }
}

#[test]
fn a_peer_that_does_not_read_costs_little_and_nobody_else() {
    const GROWTH_MAX: u64 = 10 << 20;
    let data =
        |bytes, frames| Flood { opening: None, first: BINARY, echoed: BINARY, bytes, frames };
    let within = |first, echoed, bytes, frames| Flood {
        opening: Some(BINARY & !FIN),
        first,
        echoed,
        bytes,
        frames,
    };
    for flood in [
        data(32 << 10, 1_500),
        // No receive ends where a message ends.
        data(1_000, 50_000),
        data(200_000, 250),
        // The message never ends, and these do not count against its length.
        within(PING, PONG, 125, 400_000),
        within(0, 0, 0, 6_000_000),
    ] {
        // What one flood has cost must not hide what the next one does. Such floods are refused by default.
        let unlimited = ["--control-frames-max", "0", "--message-frames-max", "0"];
        let server = Server::start(&[&["--workers", "1"][..], &unlimited].concat());
        let mut other = Client::connect(server.address());
        for _ in 0..600 {
            other.echo(BINARY, &pattern(16_000));
        }
        flood.overwhelm(&server, &mut other, GROWTH_MAX);
        other.close();
        let ended = server.terminate();
        assert_eq!(ended.count("protocol_violations"), 0);
    }
}

#[test]
fn a_message_is_taken_whole_from_a_client_that_reads_only_afterwards() {
    let server = Server::start(&["--workers", "1"]);
    let payload = pattern(16 << 20);
    for first in [BINARY, TEXT] {
        let mut client = Client::connect(server.address());
        client.send_frame(first, &payload);
        client.expect(first, &payload);
        // In fragments it is one message all the same.
        let (last, fragments) = (first & FIN, payload.chunks(payload.len() / 4));
        for (number, fragment) in fragments.clone().enumerate() {
            let opcode = if number == 0 { first & !FIN } else { 0 };
            client.send_frame(if number == 3 { last } else { opcode }, fragment);
        }
        for (number, fragment) in fragments.enumerate() {
            let opcode = if number == 0 { first & !FIN } else { 0 };
            client.expect(if number == 3 { last } else { opcode }, fragment);
        }
        client.close();
    }
    assert_eq!(server.terminate().count("messages"), 4);
}

#[test]
fn too_few_buffers_make_it_slower_and_not_wrong() {
    for buffers in ["1", "2"] {
        let options = ["--engine", "uring", "--workers", "1", "--buffer-size", "16KiB"];
        let server = Server::start(&[&options[..], &["--buffers", buffers]].concat());
        let address = server.address();
        let clients: Vec<_> = (0..50)
            .map(|number| {
                thread::spawn(move || {
                    let mut client = Client::connect(address);
                    for round in 0..20 {
                        let length = [10, 1_000, 15_000, 16_384, 40_000, 150_000];
                        let first = if round % 2 == 0 { TEXT } else { BINARY };
                        let mut payload = pattern(length[(number + round) % length.len()]);
                        payload[0] = number as u8;
                        client.echo(first, &payload);
                    }
                    client.close();
                })
            })
            .collect();
        for client in clients {
            client.join().expect("all echoes are right");
        }
        server.wait_for_count("connections_open", 0);
        let ended = server.terminate();
        assert_eq!(ended.count("messages"), 50 * 20);
        assert!(ended.count("buffers_exhausted") > 0, "{}", ended.statistics);
    }
}

#[test]
fn the_memory_of_large_messages_is_taken_once_and_kept_up_to_the_limit() {
    for (limit, kept_max) in [("0", 0), ("3MiB", 3 << 20), ("128MiB", 128 << 20)] {
        let server = Server::start(&["--workers", "1", "--spill-pool", limit]);
        let mut clients: Vec<Client> = (0..3).map(|_| Client::connect(server.address())).collect();
        // Larger than a buffer, so that it is always held.
        let payload = pattern((1 << 20) + 5);
        let mut echo = |messages| {
            for _ in 0..messages {
                clients.iter_mut().for_each(|client| client.send_frame(TEXT, &payload));
                clients.iter_mut().for_each(|client| client.expect(TEXT, &payload));
            }
        };
        echo(4);
        let taken = server.count("spill_allocations");
        echo(12);
        let taken_later = server.count("spill_allocations") - taken;
        match kept_max {
            0 => assert!(taken_later >= 36, "nothing is kept, and {taken_later} blocks are taken"),
            // At most a few blocks of sizes that happened not to be needed before.
            _ if kept_max > 16 << 20 => assert!(taken_later < 12, "{taken_later} blocks"),
            _ => {}
        }
        clients.into_iter().for_each(Client::close);
        server.wait_for_count("connections_open", 0);
        let kept = server.count("spill_bytes_kept");
        assert!(kept <= kept_max, "{kept} bytes are kept");
        assert!(kept_max == 0 || kept > 1 << 20, "{kept} bytes are kept");
        server.terminate();
    }
}

#[test]
fn slow_readers_get_every_byte_from_few_buffers() {
    const MESSAGES: usize = 2_000;
    let server = Server::start(&["--workers", "1", "--buffers", "4", "--buffer-size", "16KiB"]);
    let address = server.address();
    let clients: Vec<_> = (0..4)
        .map(|number| {
            thread::spawn(move || {
                let mut client = Client::connect(address);
                // So the server's sends are cut short over and over.
                client.limit_receiving();
                let payload = pattern(5_000 + number);
                let expected = reply(BINARY, &payload);
                let mut stream = client.stream().try_clone().expect("a descriptor");
                let writer = thread::spawn(move || {
                    let all = frame(BINARY, &payload).repeat(MESSAGES);
                    stream.write_all(&all).expect("the server takes bytes");
                });
                for message in 0..MESSAGES {
                    let bytes = client.read(expected.len());
                    assert!(bytes == expected, "message {message} is not what was sent");
                }
                writer.join().expect("all is written");
                client.close();
            })
        })
        .collect();
    for client in clients {
        client.join().expect("all echoes are right");
    }
    server.wait_for_count("connections_open", 0);
    assert_eq!(server.terminate().count("messages"), 4 * MESSAGES as u64);
}

#[test]
fn an_echo_that_is_cut_short_gives_its_buffer_back() {
    // More than the server's send buffer takes, and not more than all buffers on the way, or the client,
    // which reads nothing meanwhile, would never go on.
    const MESSAGES: u32 = 220;
    let server = Server::start(&["--workers", "1", "--buffers", "4", "--buffer-size", "16KiB"]);
    let mut other = Client::connect(server.address());
    let mut client = Client::connect(server.address());
    client.limit_receiving();
    // Each fits a buffer, and is echoed from there because nothing waits in front of it.
    let payload = |number: u32| {
        let mut payload = pattern(15_900);
        payload[..4].copy_from_slice(&number.to_be_bytes());
        payload
    };
    for _ in 0..6 {
        for number in 0..MESSAGES {
            client.send_frame(BINARY, &payload(number));
            other.echo(TEXT, b"now the message before has been received");
        }
        for number in 0..MESSAGES {
            client.expect(BINARY, &payload(number));
        }
    }
    client.close();
    other.close();
    assert_eq!(server.terminate().count("messages"), 6 * 2 * u64::from(MESSAGES));
}

#[test]
fn connections_beyond_the_descriptors_wait_and_are_served() {
    const LIMIT: usize = 40;
    let mut command = Command::new("sh");
    // Both the soft limit and the hard one.
    command.args(["-c", &format!("ulimit -n {LIMIT} && exec \"$@\""), "sh"]).arg(program());
    command.args(["--listen", "127.0.0.1:0", "--workers", "1"]);
    let server = Server::start_by(command);
    let mut clients: Vec<Client> = (0..60).map(|_| Client::open(server.address())).collect();
    for client in &mut clients {
        client.write(REQUEST.as_bytes());
    }
    wait_until("it has no descriptors left", || server.descriptors() >= LIMIT);
    // Long enough that it tries again many times.
    thread::sleep(Duration::from_secs(1));
    for mut client in clients {
        assert_eq!(client.read(RESPONSE.len()), RESPONSE.as_bytes());
        client.echo(TEXT, b"at last");
        client.close();
    }
    server.wait_for_count("connections_open", 0);
    let ended = server.terminate();
    assert_eq!(ended.status.code(), Some(0));
    assert_eq!(ended.count("messages"), 60);
    assert_eq!(ended.count("connections_accepted"), 60);
    assert_eq!(ended.count("connections_rejected"), 0);
    let told = ended.stderr.lines().filter(|line| line.contains("ulimit -n")).count();
    assert!(told >= 1, "it says nothing: {:?}", ended.stderr);
    assert!(told <= 5, "it says the same {told} times");
}

#[test]
fn connections_over_the_maximum_are_refused_until_one_leaves() {
    const MAX: usize = 5;
    let server = Server::start(&["--connections-max", "5", "--workers", "2"]);
    let mut clients: Vec<Client> = (0..MAX).map(|_| Client::connect(server.address())).collect();
    let refuse = || {
        let mut refused = Client::open(server.address());
        refused.write(REQUEST.as_bytes());
        let response = refused.read_to_end().expect("FIN and not RST");
        let response = String::from_utf8_lossy(&response).into_owned();
        assert!(response.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{response}");
        assert!(response.contains("\r\nConnection: close\r\n"), "{response}");
    };
    for _ in 0..20 {
        refuse();
    }
    for client in &mut clients {
        client.echo(TEXT, b"not disturbed");
    }
    clients.pop().expect("a client").close();
    server.wait_for_count("connections_open", MAX as u64 - 1);
    clients.push(Client::connect(server.address()));
    refuse();
    clients.into_iter().for_each(Client::close);
    server.wait_for_count("connections_open", 0);
    let ended = server.terminate();
    assert_eq!(ended.count("connections_rejected"), 21);
    assert_eq!(ended.count("connections_accepted"), MAX as u64 + 1 + 21);
}

#[test]
fn clients_that_die_within_a_frame_are_forgotten() {
    let server = Server::start(&["--workers", "2"]);
    let before = server.descriptors();
    let message = frame(BINARY, &pattern(200_000));
    let held = frame(TEXT, &pattern(200_000));
    for die in [drop, reset] {
        let mut clients: Vec<Client> =
            (0..300).map(|_| Client::connect(server.address())).collect();
        for (number, client) in clients.iter_mut().enumerate() {
            match number % 4 {
                0 => client.write(&message[..100_000]),
                1 => client.write(&held[..50_000]),
                2 => client.write(&message[..3]),
                _ => client.write(&[&message[..], &message[..9]].concat()),
            }
        }
        clients.into_iter().for_each(die);
        server.wait_for_count("connections_open", 0);
        assert_eq!(server.descriptors(), before);
    }
    // All buffers have come back: 256 messages in flight need not wait for any.
    let exhausted = server.count("buffers_exhausted");
    let mut client = Client::connect(server.address());
    for _ in 0..600 {
        client.echo(BINARY, &pattern(1000));
    }
    client.close();
    let ended = server.terminate();
    assert_eq!(ended.count("buffers_exhausted"), exhausted);
    assert_eq!(ended.count("protocol_violations"), 0);
    assert_eq!(ended.stdout.lines().count(), 1 + 36);
}

#[test]
fn the_end_is_fin_and_not_rst_whatever_the_client_still_sends() {
    let server = Server::start(&["--workers", "1"]);
    let close = frame(CLOSE, &1000u16.to_be_bytes());
    let more = frame(BINARY, &pattern(100_000));
    // All in one, and read afterwards.
    let mut client = Client::connect(server.address());
    client.write(&[&close[..], &more[..]].concat());
    client.write(&more);
    client.expect_close(1000);

    // After the server's FIN; a reset would break the second write.
    let mut client = Client::connect(server.address());
    client.write(&close);
    client.expect_close(1000);
    for _ in 0..20 {
        client.write(&more);
    }
    client.stream().shutdown(Shutdown::Write).expect("no reset");
    server.wait_for_count("connections_open", 1);
    assert!(client.stream().take_error().expect("an option").is_none());

    // The same after a violation.
    let mut client = Client::connect(server.address());
    client.write(&[&reply(TEXT, b"not masked")[..], &more[..]].concat());
    client.write(&more);
    let answer = client.read_frame();
    assert_eq!((answer.first, &answer.payload[..2]), (CLOSE, &1002u16.to_be_bytes()[..]));
    client.expect_end();
}

#[test]
fn a_peer_that_neither_reads_nor_closes_after_the_end_is_let_go() {
    let server = Server::start(&["--workers", "1"]);
    let mut client = Client::connect(server.address());
    client.send_frame(CLOSE, &1000u16.to_be_bytes());
    server.wait_for_count("connections_open", 0);
    client.expect(CLOSE, &1000u16.to_be_bytes());
}

#[test]
fn after_a_half_close_all_echoes_arrive() {
    let server = Server::start(&["--workers", "1"]);
    for (messages, length) in [(1, 0), (500, 16), (40, 100_000), (1, 8 << 20)] {
        let payload = pattern(length);
        let mut client = Client::connect(server.address());
        let mut stream = client.stream().try_clone().expect("a descriptor");
        let all = frame(BINARY, &payload).repeat(messages);
        let writer = thread::spawn(move || {
            stream.write_all(&all).expect("the server takes bytes");
            stream.shutdown(Shutdown::Write).expect("a connection");
        });
        if messages * length < 1 << 20 {
            // All is written before anything is read.
            writer.join().expect("all is written");
            for _ in 0..messages {
                client.expect(BINARY, &payload);
            }
        } else {
            for _ in 0..messages {
                client.expect(BINARY, &payload);
            }
            writer.join().expect("all is written");
        }
        client.expect_end();
    }
    // With the end within a frame there is nothing to say to it.
    let mut client = Client::connect(server.address());
    client.write(&frame(TEXT, b"cut off")[..9]);
    client.stream().shutdown(Shutdown::Write).expect("a connection");
    client.expect_end();
}

#[test]
fn byte_by_byte() {
    let server = Server::start(&["--workers", "1"]);
    let mut client = Client::open(server.address());
    for byte in REQUEST.as_bytes() {
        client.write(&[*byte]);
    }
    assert_eq!(client.read(RESPONSE.len()), RESPONSE.as_bytes());
    for (first, length) in [(TEXT, 5), (BINARY, 300), (PING, 125)] {
        let payload = pattern(length);
        for byte in frame(first, &payload) {
            client.write(&[byte]);
        }
        client.expect(if first == PING { PONG } else { first }, &payload);
    }
    for byte in frame(CLOSE, &4999u16.to_be_bytes()) {
        client.write(&[byte]);
    }
    client.expect_close(4999);
}

#[test]
fn frames_may_come_in_the_segment_of_the_request() {
    let server = Server::start(&["--workers", "1"]);
    let mut client = Client::open(server.address());
    let cut = frame(TEXT, b"the last one");
    let (begin, rest) = cut.split_at(8);
    client.write(
        &[
            REQUEST.as_bytes(),
            &frame(TEXT, b"one"),
            &frame(PING, b"two"),
            &frame(BINARY, &pattern(10_000)),
            begin,
        ]
        .concat(),
    );
    assert_eq!(client.read(RESPONSE.len()), RESPONSE.as_bytes());
    client.expect(TEXT, b"one");
    client.expect(PONG, b"two");
    client.expect(BINARY, &pattern(10_000));
    client.write(rest);
    client.expect(TEXT, b"the last one");
    client.close();
}

#[test]
fn text_that_comes_in_pieces_is_held_and_comes_back_whole() {
    let server = Server::start(&["--workers", "1"]);
    let mut client = Client::connect(server.address());
    let text = "a\u{e9}\u{20ac}\u{1f30d}z".repeat(2_000);
    let sent = frame(TEXT, text.as_bytes());
    let mut rest = &sent[..];
    for length in (1..=97).cycle() {
        let (piece, further) = rest.split_at(length.min(rest.len()));
        client.write(piece);
        rest = further;
        if rest.is_empty() {
            break;
        }
    }
    client.expect(TEXT, text.as_bytes());

    // A bad byte in the third piece costs the connection at once, without the rest of the frame,
    // and nothing of the text comes back.
    let mut bad = frame(TEXT, text.as_bytes());
    bad[10_000] = bad[10_000] ^ text.as_bytes()[10_000 - 8] ^ 0xFF;
    client.write(&bad[..4_000]);
    client.write(&bad[4_000..8_000]);
    client.write(&bad[8_000..12_000]);
    let answer = client.read_frame();
    assert_eq!((answer.first, &answer.payload[..2]), (CLOSE, &1007u16.to_be_bytes()[..]));
    client.expect_end();
    drop(client);
    server.wait_for_count("connections_open", 0);
    assert_eq!(server.count("protocol_violations"), 1);
}

#[test]
fn behind_a_long_reply_that_waits_little_may_come_many_times() {
    let server = Server::start(&["--workers", "1", "--control-frames-max", "0"]);
    let mut client = Client::connect(server.address());
    client.limit_receiving();
    let payload = pattern(4 << 20);
    client.send_frame(TEXT, &payload);
    server.wait_for_count("messages", 1);
    let before = server.count("frames_in");
    for number in 0..300 {
        client.send_frame(PING, b"little");
        server.wait_for_count("frames_in", before + number + 1);
    }
    client.expect(TEXT, &payload);
    (0..300).for_each(|_| client.expect(PONG, b"little"));
    client.close();
}

#[test]
fn garbage_is_answered_with_400() {
    let server = Server::start(&[]);
    let mut garbage: Vec<Vec<u8>> = (1..=50).map(|seed| Random::new(seed).bytes(4_096)).collect();
    garbage.push(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec());
    garbage.push(b"\0".to_vec());
    garbage.push(b"SSH-2.0-OpenSSH_9.9\r\n".to_vec());
    garbage.push(frame(TEXT, b"a frame before the handshake"));
    garbage.push(Random::new(51).bytes(100_000));
    let rejected = garbage.len() as u64;
    for bytes in garbage {
        let mut client = Client::open(server.address());
        client.write(&bytes);
        let response = client.read_to_end().expect("FIN and not RST");
        let response = String::from_utf8_lossy(&response).into_owned();
        let shown = &bytes[..bytes.len().min(16)];
        assert!(response.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{shown:x?}: {response}");
        assert!(response.contains("\r\nConnection: close\r\n"), "{response}");
    }
    server.wait_for_count("connections_open", 0);
    assert_eq!(server.count("connections_rejected"), rejected);
    Client::connect(server.address()).close();
}

#[test]
fn a_client_that_is_too_slow_to_read_gets_the_end_of_the_stream_too() {
    let server = Server::start(&["--workers", "1"]);
    let payload = pattern(8 << 20);
    let mut client = Client::connect(server.address());
    client.send_frame(BINARY, &payload);
    client.send_frame(CLOSE, &1000u16.to_be_bytes());
    // The message is taken whole while most of its echo still waits for this client. Whether the close
    // frame came with its end or is received only when the client reads, it is answered.
    server.wait_for_count("messages", 1);
    client.expect(BINARY, &payload);
    client.expect_close(1000);
}

#[test]
fn nothing_is_sent_to_those_who_only_connect() {
    let server = Server::start(&["--workers", "1"]);
    let mut silent = Client::open(server.address());
    server.wait_for_count("connections_open", 1);
    silent.stream().set_nonblocking(true).expect("an option");
    let error = silent.read_to_end().expect_err("nothing to read");
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
}
