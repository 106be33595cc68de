//! The program in the kernel, over loopback. Without the privileges to load it, these tests say so and pass.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketType, connect, recv, send, socket, sockopt,
};

use testkit::{BINARY, CLOSE, PING, PONG, Random, TEXT, frame as request, reply};

use super::program::Program;
use super::record::Record;
use super::{PAYLOAD_BYTES_MAX, PLACES, Place};

/// How long nothing may happen before a test fails. The kernel's worker, which sends the echoes, has normal priority,
/// so on busy CPUs they can be late by many seconds.
const PATIENCE: Duration = Duration::from_secs(120);

/// What may wait to be received beyond the receive buffers, as `verdict.bpf.c` has it, and what may be in flight.
const UNRECEIVED_BYTES_MAX: u64 = 32 << 20;
const FLIGHT_BYTES_MAX: u64 = 32 << 10;
/// TCP sends no longer packet over loopback.
const PACKET_BYTES_MAX: u64 = 64 << 10;

fn loaded() -> Option<Program> {
    match Program::load() {
        Ok(program) => Some(program),
        Err(error) => {
            eprintln!("SKIPPED: {error}");
            None
        }
    }
}

/// Mappings of BPF maps in this process.
fn bpf_mappings() -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("the mappings");
    maps.lines().filter(|line| line.contains("bpf-map")).count()
}

#[test]
fn a_program_leaves_no_mapping_behind() {
    // Other tests of this process have programs of their own.
    let Some(program) = loaded() else { return };
    assert!(bpf_mappings() > 0, "a program has mappings");
    drop(program);
    const LOADS: usize = 50;
    for _ in 0..LOADS {
        assert!(Program::load().is_ok());
    }
    assert!(bpf_mappings() < LOADS, "{} mappings", bpf_mappings());
}

#[test]
fn what_a_program_has_echoed_can_be_read_when_it_is_gone() {
    let Some(program) = loaded() else { return };
    let totals = program.totals();
    drop(program);
    assert_eq!(totals.read().frames, 0);
}

/// `count` bytes of ASCII.
fn ascii(random: &mut Random, count: usize) -> Vec<u8> {
    random.bytes(count).iter().map(|byte| byte & 0x7f).collect()
}

fn connected() -> (TcpStream, TcpStream) {
    connected_with(|_| (), |_| ())
}

/// Client and server. Their buffers are set up before they connect, because a window that was offered is not taken
/// back; the server has those of the listener.
fn connected_with(
    set_up_listener: impl Fn(BorrowedFd<'_>),
    set_up_client: impl Fn(BorrowedFd<'_>),
) -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    set_up_listener(listener.as_fd());
    let client = socket(AddressFamily::INET, SocketType::STREAM, None).expect("a socket");
    set_up_client(client.as_fd());
    connect(&client, &listener.local_addr().expect("an address")).expect("a peer");
    let client = TcpStream::from(client);
    let (server, _) = listener.accept().expect("a connection");
    for stream in [&client, &server] {
        set_options(stream);
    }
    (client, server)
}

fn set_options(stream: &TcpStream) {
    stream.set_nodelay(true).expect("TCP");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
}

/// An offloaded connection with its gate open.
struct Pair {
    program: Program,
    client: TcpStream,
    server: TcpStream,
    place: Place,
}

impl Pair {
    fn new() -> Option<Pair> {
        Pair::of(connected)
    }

    fn of(connected: impl Fn() -> (TcpStream, TcpStream)) -> Option<Pair> {
        let mut program = loaded()?;
        let (client, server) = connected();
        let place = program.attach(server.as_fd()).expect("a socket").expect("room");
        assert!(program.record(&place).open(0, 0));
        Some(Pair { program, client, server, place })
    }

    fn passed(&self) -> u64 {
        self.program.record(&self.place).passed()
    }

    fn frames(&self) -> u64 {
        self.program.record(&self.place).echoed_frames()
    }

    fn echoes(&mut self, first: u8, payload: &[u8]) {
        let expected = reply(first, payload);
        self.client.write_all(&request(first, payload)).expect("the kernel takes it");
        assert_eq!(taken(&self.client, expected.len()), expected, "{} bytes", payload.len());
    }

    /// Sends `bytes`, which must reach user space unchanged; then answers them, which opens the gate.
    fn passes(&mut self, what: &str, bytes: &[u8]) {
        let (passed, frames) = (self.passed(), self.frames());
        self.client.write_all(bytes).expect("the kernel takes it");
        assert_eq!(taken(&self.server, bytes.len()), bytes, "{what}");
        assert_eq!(self.passed(), passed + bytes.len() as u64, "{what}");
        assert_eq!(self.frames(), frames, "{what}");
        assert!(self.program.record(&self.place).open(self.passed(), 0), "{what}");
    }

    fn notices(&mut self) -> usize {
        let mut count = 0;
        let index = self.place.0;
        self.program.take_notices(|place| {
            assert_eq!(place, index);
            count += 1;
        });
        count
    }
}

/// The next `count` bytes. A socket under the program may look readable when it is not.
fn taken(mut stream: &TcpStream, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    let (mut filled, mut last) = (0, Instant::now());
    while filled < count {
        match stream.read(&mut bytes[filled..]) {
            Ok(0) => panic!("the peer ended"),
            Ok(more) => {
                filled += more;
                last = Instant::now();
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                assert!(last.elapsed() < PATIENCE, "only {filled} of {count} bytes arrived");
            }
            Err(error) => panic!("{error}"),
        }
    }
    bytes
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "{what}");
        thread::sleep(Duration::from_micros(100));
    }
}

#[test]
fn every_length_comes_back_as_it_was() {
    let Some(mut pair) = Pair::new() else { return };
    let mut random = Random::new(1);
    let mut bytes_in = 0;
    for length in 0..=PAYLOAD_BYTES_MAX {
        for (first, payload) in [(TEXT, ascii(&mut random, length)), (BINARY, random.bytes(length))]
        {
            bytes_in += request(first, &payload).len() as u64;
            pair.echoes(first, &payload);
        }
    }
    assert_eq!(pair.passed(), 0);
    let echoes = pair.program.totals().read();
    assert_eq!(echoes.frames, 2 * (PAYLOAD_BYTES_MAX as u64 + 1));
    assert_eq!(echoes.bytes_in, bytes_in);
    assert_eq!(echoes.bytes_out, bytes_in - 4 * echoes.frames);
    let record = pair.program.record(&pair.place);
    assert_eq!(record.echoed_frames(), echoes.frames);
    assert_eq!(record.echoed_out(), echoes.bytes_out);
    assert_eq!(pair.notices(), 0);
}

#[test]
fn whatever_is_not_one_small_message_comes_up_untouched() {
    let Some(mut pair) = Pair::new() else { return };
    let mut random = Random::new(2);
    let hello = request(TEXT, b"hello");
    pair.passes("text that is not ASCII", &request(TEXT, "grüße".as_bytes()));
    for place in 0..200 {
        let mut payload = ascii(&mut random, 200);
        payload[place] |= 0x80;
        pair.passes("text with one byte that is not ASCII", &request(TEXT, &payload));
    }
    let most = request(BINARY, &vec![b'x'; PAYLOAD_BYTES_MAX]);
    assert_eq!(most.len(), PAYLOAD_BYTES_MAX + 8);
    pair.passes("too large", &request(BINARY, &vec![b'x'; PAYLOAD_BYTES_MAX + 1]));
    pair.passes("a 64-bit length", &request(BINARY, &vec![b'x'; 65536]));
    pair.passes("ping", &request(PING, b"hello"));
    pair.passes("pong", &request(PONG, b"hello"));
    pair.passes("close", &request(CLOSE, &1000_u16.to_be_bytes()));
    pair.passes("first fragment", &request(0x01, b"hello"));
    pair.passes("continuation", &request(0x80, b"hello"));
    pair.passes("reserved opcode", &request(0x83, b"hello"));
    for rsv in [0x40, 0x20, 0x10] {
        pair.passes("RSV bit", &request(TEXT | rsv, b"hello"));
    }
    pair.passes("no mask", &reply(TEXT, b"hello!!"));
    pair.passes("two frames", &[hello.clone(), hello.clone()].concat());
    pair.passes("a frame and a half", &[&hello[..], &hello[..4]].concat());
    pair.passes("the first bytes", &hello[..4]);
    pair.passes("the last bytes", &hello[4..]);
    pair.passes("one byte", &hello[..1]);
    pair.passes("a header alone", &hello[..6]);
    pair.passes("half of a longer frame", &request(BINARY, &[7; 300])[..200]);
    let key_and_payload = &hello[2..];
    let wordy = [&[TEXT, 126 | 0x80, 0, 5][..], key_and_payload].concat();
    pair.passes("16 bits for a length of 7", &wordy);
    let wordy = [&[TEXT, 127 | 0x80][..], &5_u64.to_be_bytes(), key_and_payload].concat();
    pair.passes("64 bits for a length of 7", &wordy);
    pair.passes("7 bits with bytes after", &[&hello[..], b"x"].concat());
    pair.echoes(TEXT, b"hello");
}

#[test]
fn a_shut_gate_passes_all() {
    let Some(mut pair) = Pair::new() else { return };
    pair.program.record(&pair.place).shut();
    assert!(pair.program.record(&pair.place).is_quiet());
    pair.client.write_all(&request(TEXT, b"hello")).expect("the kernel takes it");
    let expected = request(TEXT, b"hello");
    assert_eq!(taken(&pair.server, expected.len()), expected);
    assert_eq!(pair.frames(), 0);
    assert_eq!(pair.notices(), 1);
    assert!(!pair.program.record(&pair.place).open(0, 0));
    assert!(pair.program.record(&pair.place).open(11, 0));
    pair.echoes(TEXT, b"hello");
}

#[test]
fn a_notice_comes_once() {
    let Some(mut pair) = Pair::new() else { return };
    let ping = request(PING, b"");
    for round in 1..=50_u64 {
        for _ in 0..3 {
            pair.client.write_all(&ping).expect("the kernel takes it");
        }
        let expected = round * 3 * ping.len() as u64;
        eventually("pings come up", || pair.passed() == expected);
        let fd = pair.program.notices();
        let second = Timespec { tv_sec: 1, tv_nsec: 0 };
        let ready = poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], Some(&second));
        assert_eq!(ready, Ok(1));
        assert_eq!(pair.notices(), 1);
        taken(&pair.server, 3 * ping.len());
        assert!(pair.program.record(&pair.place).open(expected, 0));
        assert_eq!(pair.notices(), 0);
    }
    // While a notice waits to be taken, no other is sent, so the ring cannot overflow.
    for _ in 0..10_000 {
        let expected = pair.passed() + ping.len() as u64;
        pair.client.write_all(&ping).expect("the kernel takes it");
        taken(&pair.server, ping.len());
        assert!(pair.program.record(&pair.place).open(expected, 0));
    }
    assert_eq!(pair.notices(), 1);
}

/// User space: reads, answers and opens the gate as the record demands.
struct Server {
    unread: VecDeque<u8>,
    /// Bytes received, how many of them have been answered, and the bytes of the answers.
    read: u64,
    answered: u64,
    sent: u64,
    answers: u64,
    opening: Opening,
}

/// When the server opens the gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Opening {
    /// Just before it sends the last answer.
    Early,
    /// After it has sent the last answer.
    Late,
}

impl Server {
    /// Serves until `is_over`; returns how many frames user space answered.
    fn serve(
        program: &mut Program,
        socket: &TcpStream,
        place: &Place,
        is_over: &AtomicBool,
        opening: Opening,
    ) -> u64 {
        let unread = VecDeque::new();
        let mut server = Server { unread, read: 0, answered: 0, sent: 0, answers: 0, opening };
        while !is_over.load(Ordering::Relaxed) {
            let tick = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
            let mut waiting = [PollFd::from_borrowed_fd(program.notices(), PollFlags::IN)];
            let _ = poll(&mut waiting, Some(&tick)).expect("poll");
            let mut noticed = false;
            program.take_notices(|_| noticed = true);
            if noticed {
                server.catch_up(program.record(place), socket, is_over);
            }
        }
        server.answers
    }

    fn catch_up(&mut self, record: &Record, socket: &TcpStream, is_over: &AtomicBool) {
        let mut buffer = vec![0; 16 << 10];
        // The rest of the frame is still to come.
        while !record.open(self.answered, self.sent) && !is_over.load(Ordering::Relaxed) {
            let count = match recv(socket, &mut buffer[..], RecvFlags::DONTWAIT) {
                Ok((_, 0)) => return,
                Ok((_, count)) => count,
                Err(_) => {
                    thread::yield_now();
                    continue;
                }
            };
            self.read += count as u64;
            self.unread.extend(&buffer[..count]);
            while self.answer(record, socket) {}
            assert_eq!(self.read, self.answered + self.unread.len() as u64);
            assert!(self.read <= record.passed());
        }
    }

    /// Answers one frame, if there is a whole one.
    fn answer(&mut self, record: &Record, mut socket: &TcpStream) -> bool {
        let bytes = self.unread.make_contiguous();
        if bytes.len() < 6 {
            return false;
        }
        let (start, length) = match usize::from(bytes[1] & 127) {
            126 if bytes.len() < 8 => return false,
            126 => (8, usize::from(bytes[2]) << 8 | usize::from(bytes[3])),
            length => (6, length),
        };
        if bytes.len() < start + length {
            return false;
        }
        let (key, payload) = bytes[start - 4..start + length].split_at(4);
        let payload: Vec<u8> =
            payload.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key).collect();
        let first = if bytes[0] == PING { PONG } else { bytes[0] };
        self.unread.drain(..start + length);
        let reply = reply(first, &payload);
        self.answered += (start + length) as u64;
        self.answers += 1;
        self.sent += reply.len() as u64;
        if self.opening == Opening::Early && self.unread.is_empty() {
            // More may come, but the kernel echoes it only after what is written next.
            record.open(self.answered, self.sent);
            if self.answers.is_multiple_of(4) {
                thread::sleep(Duration::from_micros(100));
            }
        }
        // When this returns, the kernel has all of it.
        socket.write_all(&reply).expect("the peer reads");
        true
    }
}

/// What a client sends at once, and what it must receive.
fn burst(random: &mut Random) -> (Vec<Vec<u8>>, Vec<u8>) {
    let length = match random.below(200) {
        0 => random.below(PAYLOAD_BYTES_MAX + 100),
        1..10 => random.below(5000),
        10..20 => random.below(400),
        _ => random.below(60),
    };
    let (first, payload) = match random.below(24) {
        0 => (PING, random.bytes(length.min(125))),
        1 => (TEXT, "grüße ".repeat(random.below(12) + 1).into_bytes()),
        2..10 => (BINARY, random.bytes(length)),
        _ => (TEXT, ascii(random, length)),
    };
    let sent = request(first, &payload);
    let expected = reply(if first == PING { PONG } else { first }, &payload);
    if random.below(40) > 0 {
        return (vec![sent], expected);
    }
    let (left, right) = sent.split_at(random.below(sent.len()));
    (vec![left.to_vec(), right.to_vec()], expected)
}

/// Ends the serving and the writing thread when the comparing one fails.
struct Over<'a> {
    is_over: &'a AtomicBool,
    client: &'a TcpStream,
}

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        let _ = self.client.shutdown(Shutdown::Both);
    }
}

/// A client that writes without waiting; returns how many frames user space and the kernel answered.
fn under_fire(seed: u64, bursts: usize, buffer_bytes: Option<usize>) -> Option<(u64, u64)> {
    let mut program = loaded()?;
    let set_up_listener = |listener: BorrowedFd<'_>| {
        if let Some(bytes) = buffer_bytes {
            sockopt::set_socket_send_buffer_size(listener, bytes).expect("a size");
            // A smaller one is soon full of unread packets, which the kernel cannot join once the
            // program has passed them up; it drops those that follow.
            sockopt::set_socket_recv_buffer_size(listener, 64 << 10).expect("a size");
        }
    };
    let (client, server) = connected_with(set_up_listener, |_| ());
    if let Some(bytes) = buffer_bytes {
        sockopt::set_socket_recv_buffer_size(&client, bytes).expect("a size");
    }
    let place = program.attach(server.as_fd()).expect("a socket").expect("room");
    assert!(program.record(&place).open(0, 0));
    let (is_over, replies) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        let program = &mut program;
        let (place, client, server) = (&place, &client, &server);
        let (is_over, replies) = (&is_over, &replies);
        let writing = scope.spawn(move || {
            let (mut random, mut client) = (Random::new(seed), client);
            for number in 1..=bursts {
                for bytes in burst(&mut random).0 {
                    if client.write_all(&bytes).is_err() {
                        // The reader says why.
                        return;
                    }
                }
                // The gate opens when all is answered, so the client waits for that now and then.
                match random.below(12) {
                    0 => {
                        // The reader knows when it has waited too long.
                        while replies.load(Ordering::Relaxed) < number {
                            if is_over.load(Ordering::Relaxed) {
                                return;
                            }
                            thread::sleep(Duration::from_micros(100));
                        }
                    }
                    1..4 => thread::sleep(Duration::from_micros(20)),
                    _ => (),
                }
            }
        });
        let reading = scope.spawn(move || {
            let _over = Over { is_over, client };
            let mut random = Random::new(seed);
            for number in 0..bursts {
                let expected = burst(&mut random).1;
                let got = taken(client, expected.len());
                assert!(got == expected, "seed {seed}: reply {number} of {bursts} differs");
                replies.store(number + 1, Ordering::Relaxed);
                random.below(12);
            }
        });
        let opening = if seed % 2 == 1 { Opening::Early } else { Opening::Late };
        let answers = Server::serve(program, server, place, is_over, opening);
        if reading.join().is_err() {
            let written = Program::written(server.as_fd());
            panic!("seed {seed}: {:?}, {written:?} bytes written", program.record(place));
        }
        writing.join().expect("has written all");
        Some((answers, program.record(place).echoed_frames()))
    })
}

#[test]
fn replies_come_in_order_under_fire() {
    let (mut by_user, mut by_kernel) = (0, 0);
    for seed in 0..60 {
        let buffer = [None, Some(4096), Some(16 << 10)][seed as usize % 3];
        let Some((user, kernel)) = under_fire(seed, 1000, buffer) else { return };
        by_user += user;
        by_kernel += kernel;
    }
    eprintln!("{by_user} frames answered by user space, {by_kernel} by the kernel");
    assert!(by_user > 5000 && by_kernel > 5000, "{by_user} {by_kernel}");
}

/// Sends frames until the kernel has refused many times in a row, or gives the connection up; returns how many
/// bytes it took.
fn stuck_after(pair: &Pair, frame: &[u8], bytes_max: u64) -> u64 {
    let record = pair.program.record(&pair.place);
    let chunk = frame.repeat((8192 / frame.len()).max(1));
    let (mut taken, mut refusals) = (0, 0);
    let mut rest = frame;
    while taken < bytes_max && refusals < 500 && !record.is_overrun() {
        match send(&pair.client, rest, SendFlags::DONTWAIT) {
            Ok(count) => {
                taken += count as u64;
                rest = &rest[count..];
                if rest.is_empty() {
                    // One by one, so that they can be echoed, and then together, when they cannot.
                    rest = if taken.is_multiple_of(2) { frame } else { &chunk };
                }
                refusals = 0;
            }
            Err(_) => {
                refusals += 1;
                thread::sleep(Duration::from_millis(1));
            }
        }
    }
    taken
}

#[test]
fn a_peer_that_never_reads_is_stopped() {
    const OFFERED: u64 = 64 << 20;
    // Left alone, the kernel lets buffers grow to what the machine allows (`tcp_rmem` and `tcp_wmem`).
    let receiving = |socket: BorrowedFd<'_>| {
        sockopt::set_socket_recv_buffer_size(socket, 64 << 10).expect("a size");
    };
    let both = |socket: BorrowedFd<'_>| {
        receiving(socket);
        sockopt::set_socket_send_buffer_size(socket, 64 << 10).expect("a size");
    };
    for payload in [16, 1000, PAYLOAD_BYTES_MAX, 2 * PAYLOAD_BYTES_MAX] {
        let Some(pair) = Pair::of(|| connected_with(receiving, both)) else { return };
        // What the kernel made of the sizes. Each buffer takes packets until it is full, so one beyond that.
        let size = |bytes: rustix::io::Result<usize>| bytes.expect("a size") as u64;
        let server_receive = size(sockopt::socket_recv_buffer_size(&pair.server));
        let client_receive =
            size(sockopt::socket_recv_buffer_size(&pair.client)) + PACKET_BYTES_MAX;
        let client_send = size(sockopt::socket_send_buffer_size(&pair.client)) + PACKET_BYTES_MAX;
        let taken = stuck_after(&pair, &request(BINARY, &vec![7; payload]), OFFERED);
        let echoes = pair.program.totals().read();
        let (kept, passed) = (taken - echoes.bytes_in, pair.passed());
        eprintln!("{payload} bytes: stuck after {taken}, {passed} passed up, {echoes:?}");
        assert!(echoes.bytes_out <= client_receive + FLIGHT_BYTES_MAX, "{echoes:?}");
        // The receive buffer holds what is passed up, except behind echoes that the kernel's worker has not sent. On
        // busy CPUs it may not run for so long that the program gives the connection up.
        let unreceived = UNRECEIVED_BYTES_MAX + 2 * server_receive + PACKET_BYTES_MAX;
        assert!(kept <= client_send + unreceived, "{kept} {passed}");
        let owed = Program::written(pair.server.as_fd()).expect("TCP");
        assert!(owed <= echoes.bytes_out, "{owed} {echoes:?}");
    }
}

#[test]
fn what_is_not_received_is_bounded() {
    const OFFERED: u64 = 256 << 20;
    let frame = request(BINARY, &vec![7; 2 * PAYLOAD_BYTES_MAX]);
    // User space receives everything in both cases, but counts it in the record only in the first.
    for says_so in [true, false] {
        let Some(pair) = Pair::new() else { return };
        let record = pair.program.record(&pair.place);
        let (mut offered, mut received) = (0, 0);
        while offered < OFFERED && !record.is_overrun() {
            (&pair.client).write_all(&frame).expect("the kernel takes it");
            offered += frame.len() as u64;
            if !record.is_overrun() {
                received += taken(&pair.server, frame.len()).len() as u64;
                if says_so {
                    record.receive(received);
                }
            }
        }
        eprintln!("{says_so}: {received} received of {offered}");
        assert_eq!(record.is_overrun(), !says_so);
        assert!(received >= 32 << 20 && record.passed() == offered, "{received}");
        if !says_so {
            assert!(received < 128 << 20, "{received}");
            // From now on packets are dropped and not echoed, even if user space opens the gate.
            assert!(!record.open(received, 0));
            (&pair.client).write_all(&request(BINARY, b"late")).expect("the kernel takes it");
            eventually("it is dropped", || record.passed() > offered);
            assert_eq!(record.echoed_frames(), 0);
        }
    }
}

#[test]
fn a_reset_ends_it() {
    let Some(mut program) = loaded() else { return };
    for round in 0..200 {
        let (mut client, server) = connected();
        let place = program.attach(server.as_fd()).expect("a socket").expect("room");
        assert!(program.record(&place).open(0, 0));
        for _ in 0..round % 7 {
            client.write_all(&request(TEXT, b"hello")).expect("the kernel takes it");
        }
        if round % 3 == 0 {
            client.write_all(&request(PING, b"hello")).expect("the kernel takes it");
        }
        // With a linger of 0, or with replies unread, closing is a reset.
        sockopt::set_socket_linger(&client, Some(Duration::ZERO)).expect("TCP");
        drop(client);
        eventually("the reset arrives", || {
            let mut waiting = [PollFd::new(&server, PollFlags::RDHUP)];
            let _ = poll(&mut waiting, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).expect("poll");
            waiting[0].revents().contains(PollFlags::HUP)
        });
        program.detach(place, server.as_fd());
    }
}

#[test]
fn a_peer_that_has_ended_is_refused() {
    let Some(mut program) = loaded() else { return };
    let (client, server) = connected();
    drop(client);
    eventually("the end is refused", || program.attach(server.as_fd()).is_err());
    let (unix, _other) = std::os::unix::net::UnixStream::pair().expect("sockets");
    assert!(program.attach(unix.as_fd()).is_err());
    let (_client, server) = connected();
    assert!(program.attach(server.as_fd()).expect("a socket").is_some());
}

#[test]
fn what_was_queued_before_comes_up_first() {
    let Some(mut program) = loaded() else { return };
    let (mut client, server) = connected();
    client.write_all(&request(TEXT, b"before")).expect("the kernel takes it");
    thread::sleep(Duration::from_millis(20));
    let place = program.attach(server.as_fd()).expect("a socket").expect("room");
    client.write_all(&request(TEXT, b"after")).expect("the kernel takes it");
    let expected = [request(TEXT, b"before"), request(TEXT, b"after")].concat();
    assert_eq!(taken(&server, expected.len()), expected);
    let record = program.record(&place);
    assert_eq!(record.passed(), expected.len() as u64);
    assert!(record.open(expected.len() as u64, 0));
    client.write_all(&request(TEXT, b"hello")).expect("the kernel takes it");
    assert_eq!(taken(&client, 7), reply(TEXT, b"hello"));
}

#[test]
fn an_echo_is_sent_before_the_socket_closes_when_it_is_waited_for() {
    let Some(mut program) = loaded() else { return };
    for _ in 0..200 {
        let (mut client, server) = connected();
        let place = program.attach(server.as_fd()).expect("a socket").expect("room");
        let record = program.record(&place);
        assert!(record.open(0, 0));
        client.write_all(&request(TEXT, b"hello")).expect("the kernel takes it");
        client.shutdown(Shutdown::Write).expect("connected");
        eventually("the echo is made", || record.echoed_frames() == 1);
        record.shut();
        eventually("no run is in progress", || record.is_quiet());
        let all = record.echoed_out();
        eventually("all is written", || Program::written(server.as_fd()).expect("TCP") >= all);
        program.detach(place, server.as_fd());
        drop(server);
        let mut got = Vec::new();
        client.read_to_end(&mut got).expect("an orderly end");
        assert_eq!(got, reply(TEXT, b"hello"));
    }
}

#[test]
fn many_connections_come_and_go() {
    let Some(mut program) = loaded() else { return };
    let mut random = Random::new(3);
    let mut open: Vec<(TcpStream, TcpStream, Place)> = Vec::new();
    for _ in 0..3000 {
        if open.len() < 100 && random.below(2) == 0 {
            let (client, server) = connected();
            let place = program.attach(server.as_fd()).expect("a socket").expect("room");
            assert!(program.record(&place).open(0, 0));
            open.push((client, server, place));
        } else if !open.is_empty() && random.below(4) == 0 {
            let (mut client, server, place) = open.swap_remove(random.below(open.len()));
            // Its last message may arrive while the program is being removed.
            client.write_all(&request(TEXT, b"hello")).expect("the kernel takes it");
            program.detach(place, server.as_fd());
        }
        for _ in 0..3 {
            if open.is_empty() {
                continue;
            }
            let one = random.below(open.len());
            let (client, _, place) = &mut open[one];
            let length = random.below(300);
            let payload = random.bytes(length);
            client.write_all(&request(BINARY, &payload)).expect("the kernel takes it");
            let expected = reply(BINARY, &payload);
            assert_eq!(taken(client, expected.len()), expected);
            assert_eq!(program.record(place).passed(), 0);
        }
    }
    assert!(open.len() > 10);
}

#[test]
fn slots_run_out_and_come_back() {
    let Some(mut program) = loaded() else { return };
    let mut open = Vec::new();
    let full = loop {
        let (client, server) = connected();
        match program.attach(server.as_fd()).expect("a socket") {
            Some(place) => open.push((client, server, place)),
            None => break (client, server),
        }
    };
    assert_eq!(open.len(), PLACES as usize);
    let (_client, server, place) = open.pop().expect("many");
    let index = place.0;
    program.detach(place, server.as_fd());
    let place = program.attach(full.1.as_fd()).expect("a socket").expect("room");
    assert_eq!(place.0, index);
}

/// A connection whose server has a small send buffer, on which the client has sent frames and read no
/// echo; and the echoes that it must get.
fn held_up(frames: u8) -> Option<(Pair, Vec<u8>)> {
    let mut pair = Pair::of(|| {
        connected_with(
            |listener| sockopt::set_socket_send_buffer_size(listener, 4096).expect("a size"),
            |client| sockopt::set_socket_recv_buffer_size(client, 8192).expect("a size"),
        )
    })?;
    let mut expected = Vec::new();
    for number in 0..frames {
        let payload: Vec<u8> = (0..4000).map(|byte| (byte % 251) as u8 ^ number).collect();
        pair.client.write_all(&request(BINARY, &payload)).expect("the kernel takes it");
        expected.extend(reply(BINARY, &payload));
        eventually("it is echoed", || pair.frames() == u64::from(number) + 1);
    }
    let written = Program::written(pair.server.as_fd()).expect("TCP");
    assert!(written < expected.len() as u64, "the kernel's worker was not delayed: {written}");
    Some((pair, expected))
}

#[test]
fn a_reader_that_pauses_within_a_frame_gets_each_byte_once() {
    for pause in [1, 100, 1000, 4003, 4004, 4005, 10_000] {
        let Some((pair, expected)) = held_up(7) else { return };
        let mut got = taken(&pair.client, pause);
        thread::sleep(Duration::from_millis(30));
        while got.len() < expected.len() {
            let count = (expected.len() - got.len()).min(pause.max(700));
            got.extend(taken(&pair.client, count));
            thread::sleep(Duration::from_millis(2));
        }
        assert!(got == expected, "pauses after {pause}");
        assert_eq!(pair.passed(), 0);
        eventually("all is written", || {
            Program::written(pair.server.as_fd()).expect("TCP") == expected.len() as u64
        });
    }
}

#[test]
fn a_fin_after_queued_echoes_breaks_nothing() {
    for _ in 0..5 {
        let Some((mut pair, mut expected)) = held_up(7) else { return };
        pair.client.shutdown(Shutdown::Write).expect("connected");
        thread::sleep(Duration::from_millis(20));
        let got = taken(&pair.client, expected.len());
        assert!(got == expected, "the echoes before the end");
        let mut rest = [0];
        assert_eq!(pair.server.read(&mut rest).expect("an orderly end"), 0);
        pair.server.write_all(b"farewell").expect("the server can still send");
        drop(pair.server);
        expected = taken(&pair.client, 8);
        assert_eq!(expected, b"farewell");
        assert_eq!(pair.client.read(&mut rest).expect("an orderly end"), 0);
    }
}
