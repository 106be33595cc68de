//! The protocol core and the whole server, compared with a naive oracle.
//!
//! A seeded generator writes what a client may send, right or wrong. The oracle decodes it frame by
//! frame, slowly, and says which bytes are the answer and how much must have been received before
//! each of them is due. Then the stream goes to a [`Dialogue`](ringecho::protocol::Dialogue) as an engine feeds it, in
//! every chunking if it is short and in random ones if it is long, and to the server over a socket.
//!
//! Invariant: what is answered depends on what was received, and not on how it was cut, nor on how
//! slowly the answer was taken.
//!
//! The oracle shares no code with the server; of its vocabulary it takes the names of the
//! violations and their texts. Every run prints its seed, and a failure the command that repeats it.

mod peer;
mod verdict;

use std::collections::HashSet;
use std::io::Write as _;
use std::net::Shutdown;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use testkit::frame::{header, masked};
use testkit::oracle::Rule;
use testkit::{
    BINARY, CLOSE, Client, FIN, PING, PONG, REQUEST, Random, Server, TEXT, cases, client, reply,
};
use verdict::{Sends, Stream, Verdict, Way, assert_same, check};

/// Bytes that a receive buffer has.
const ROOMS: [usize; 4] = [16, 64, 1024, 16384];

/// The largest message that the server takes by default.
const MESSAGE_MAX: u64 = 64 << 20;

/// Bytes that are no UTF-8, or no whole character.
const ILL_FORMED: [&[u8]; 6] =
    [b"\x80", b"\xc0\x80", b"\xe6\xb0", b"\xed\xa0\x80", b"\xf0\x9f\xa6", b"\xf4\x90\x80\x80"];

/// In this process, whatever engine carries it.
mod dialogue {
    use super::*;

    #[test]
    fn every_chunking_of_short_streams() {
        for mut case in cases("every_chunking_of_short_streams", 90) {
            let stream = Stream::short(&mut case.random, 100);
            let verdict = stream.verdict();
            let end = stream.bytes.len();
            let room = case.random.pick(&ROOMS);
            for sends in [Sends::Whole, Sends::Never] {
                for first in 0..end {
                    check(&stream, &verdict, Way { room, cuts: &[first], sends, close_at: None });
                }
                for first in stream.head..end {
                    for second in first + 1..end {
                        let cuts = &[stream.head, first, second];
                        check(&stream, &verdict, Way { room, cuts, sends, close_at: None });
                    }
                }
            }
        }
    }

    #[test]
    fn byte_by_byte_all_is_said_as_soon_as_it_is_certain() {
        let mut seen = HashSet::new();
        for mut case in cases("byte_by_byte", 2500) {
            let stream = Stream::any(&mut case.random, Size::Short);
            let verdict = stream.verdict();
            let cuts: Vec<usize> = (1..stream.bytes.len()).collect();
            let (room, sends) = (case.random.pick(&ROOMS), Sends::random(&mut case.random));
            check(&stream, &verdict, Way { room, cuts: &cuts, sends, close_at: None });
            seen.extend(verdict.owed.broken());
        }
        assert_eq!(seen.len(), Rule::ALL.len(), "the generator broke only {seen:?}");
    }

    #[test]
    fn random_chunkings_of_long_streams() {
        for mut case in cases("random_chunkings", 350) {
            let stream = Stream::any(&mut case.random, Size::Long);
            let verdict = stream.verdict();
            for room in ROOMS {
                let cuts = case.random.cuts(stream.bytes.len());
                let sends = Sends::random(&mut case.random);
                check(&stream, &verdict, Way { room, cuts: &cuts, sends, close_at: None });
            }
        }
    }

    #[test]
    fn the_server_may_close_at_any_byte() {
        for mut case in cases("the_server_may_close", 250) {
            let stream = Stream::short(&mut case.random, 400);
            for close_at in stream.head - 1..=stream.bytes.len() {
                let verdict = stream.verdict_with_close(close_at);
                let mut cuts = case.random.cuts(stream.bytes.len());
                cuts.push(close_at);
                cuts.sort_unstable();
                let (room, sends) = (case.random.pick(&ROOMS), Sends::random(&mut case.random));
                check(
                    &stream,
                    &verdict,
                    Way { room, cuts: &cuts, sends, close_at: Some(close_at) },
                );
            }
        }
    }
}

#[test]
fn over_sockets_with_two_small_buffers() {
    over_sockets("over_sockets_with_two", &["--buffers", "2", "--buffer-size", "1KiB"]);
}

#[test]
fn over_sockets_with_the_defaults() {
    over_sockets("over_sockets_with_the_defaults", &[]);
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Size {
    /// A few frames, most of them of less than twenty bytes.
    Short,
    /// More frames, and lengths around all limits.
    Long,
    /// Few messages, each of more than the kernel keeps for a peer that does not read.
    Huge,
}

/// What a stream has somewhere, and what follows it counts for nothing.
#[derive(Debug, Clone, Copy)]
enum Final {
    Close,
    Break(Rule),
}

impl Stream {
    fn any(random: &mut Random, size: Size) -> Stream {
        let message_max = match size {
            Size::Short => random.pick(&[1, 9, 16, 300, 300, 300]),
            Size::Long | Size::Huge => {
                random.pick(&[126, 5000, 65535, 65536, MESSAGE_MAX, MESSAGE_MAX])
            }
        };
        Stream::random(random, size, message_max)
    }

    /// A short stream, with at most `bytes_max` bytes after the handshake.
    fn short(random: &mut Random, bytes_max: usize) -> Stream {
        loop {
            let stream = Stream::any(random, Size::Short);
            if (stream.head..stream.head + bytes_max).contains(&stream.bytes.len()) {
                return stream;
            }
        }
    }

    fn random(random: &mut Random, size: Size, message_max: u64) -> Stream {
        let ending = match random.below(6) {
            0 => None,
            1 => Some(Final::Close),
            _ => Some(Final::Break(random.pick(&Rule::ALL))),
        };
        let mut author = Author { random, bytes: Vec::new(), size, message_max, ending };
        author.handshake();
        let head = author.bytes.len();
        for _ in 0..author.random.below(if size == Size::Long { 12 } else { 4 }) {
            author.message();
        }
        author.between(None);
        if let Some(ending) = author.ending.take() {
            author.end(ending, None);
            author.message();
        }
        let mut bytes = author.bytes;
        if random.one_in(8) {
            bytes.truncate(random.below(bytes.len()));
        } else if random.one_in(8) && bytes.len() > head {
            let place = head + random.below(bytes.len() - head);
            bytes[place] ^= 1 << random.below(8);
        }
        Stream { bytes, head, message_max }
    }
}

/// Writes a stream.
struct Author<'a> {
    random: &'a mut Random,
    bytes: Vec<u8>,
    size: Size,
    message_max: u64,
    /// The ending, until it is written.
    ending: Option<Final>,
}

impl Author<'_> {
    fn handshake(&mut self) {
        let key = BASE64.encode(self.random.bytes(16));
        let request = REQUEST.replace(client::KEY, &key);
        self.bytes.extend(request.strip_suffix("\r\n").expect("a head").as_bytes());
        if self.size == Size::Long && self.random.one_in(2) {
            let filler = "x".repeat(self.random.below(7900));
            self.bytes.extend(format!("Filler: {filler}\r\n").as_bytes());
        }
        self.bytes.extend(b"\r\n");
    }

    /// A message in one to four fragments, cut anywhere.
    fn message(&mut self) {
        let limit = self.message_max as usize;
        let is_largest = limit < 100_000 && self.random.one_in(8);
        let bytes = if is_largest { limit } else { self.length().min(limit) };
        let opcode = self.random.pick(&[TEXT, BINARY]) & !FIN;
        let is_text = opcode == TEXT & !FIN;
        let payload = if is_text { self.text(bytes) } else { self.random.bytes(bytes) };
        let mut cuts = vec![0, bytes];
        while self.random.one_in(2) && cuts.len() < 5 {
            cuts.push(self.random.below(bytes + 1));
        }
        cuts.sort_unstable();
        for (number, ends) in cuts.windows(2).enumerate() {
            self.between((number > 0).then_some(opcode));
            let first = if number == 0 { opcode } else { 0 };
            let fin = if number + 2 == cuts.len() { FIN } else { 0 };
            self.frame(first | fin, &payload[ends[0]..ends[1]]);
        }
    }

    /// What may stand between two frames, of the unfinished `message` if there is one.
    fn between(&mut self, message: Option<u8>) {
        while self.random.one_in(4) {
            let opcode = self.random.pick(&[PING, PONG]);
            let payload = self.control_payload();
            self.frame(opcode, &payload);
        }
        if let Some(ending) = self.ending.take_if(|_| self.random.one_in(4)) {
            self.end(ending, message);
        }
    }

    fn end(&mut self, ending: Final, message: Option<u8>) {
        match ending {
            Final::Close => {
                let code = self.random.pick(&[1000u16, 1001, 1003, 1007, 1014, 3000, 4999]);
                let reason = self.control_payload().len().min(123);
                let reason = self.text(reason);
                let payload = [&code.to_be_bytes(), &reason[..]].concat();
                let payload = self.random.pick(&[&payload[..], &payload, &payload[..2], &[]]);
                self.frame(CLOSE, payload);
            }
            Final::Break(rule) => self.break_rule(rule, message),
        }
    }

    fn break_rule(&mut self, rule: Rule, message: Option<u8>) {
        use Rule::*;
        let bytes = self.random.bytes(5);
        let data = if message.is_some() { 0 } else { self.random.pick(&[TEXT, BINARY]) & !FIN };
        let control = self.random.pick(&[PING, PONG, CLOSE]);
        let (first, payload) = match rule {
            ReservedBit => (FIN | data | self.random.pick(&[0x10, 0x20, 0x40, 0x70]), bytes),
            ReservedOpcode => (FIN | self.random.pick(&[3, 4, 5, 6, 7, 11, 12, 13, 14, 15]), bytes),
            Unmasked => {
                let first = self.random.pick(&[FIN | data, control]);
                return self.bytes.extend(reply(first, &bytes));
            }
            LengthEncoding => {
                let length = match self.random.pick(&[0u64, 1, 125, 126, 65535, 1 << 63 | 70_000]) {
                    length @ 0..126 => [&[0xfe][..], &(length as u16).to_be_bytes()].concat(),
                    length => [&[0xff][..], &length.to_be_bytes()].concat(),
                };
                return self.bytes.extend([&[FIN | data], &length[..], &bytes].concat());
            }
            ControlFragmented => (control & !FIN, bytes),
            ControlTooLong => (control, vec![7; self.random.pick(&[126, 127, 70_000])]),
            ContinuationUnexpected => (FIN, bytes),
            ContinuationExpected => {
                self.frame(data, b"0");
                (self.random.pick(&[TEXT, BINARY]), bytes)
            }
            TextNotUtf8 => {
                let whole = self.random.below(9);
                let text = [&self.text(whole)[..], self.random.pick(&ILL_FORMED)].concat();
                let more: &[u8] = self.random.pick(&[b"", b"more"]);
                let cut = self.random.below(text.len() + 1);
                if self.random.one_in(2) {
                    self.frame(if message.is_some() { 0 } else { TEXT & !FIN }, &text[..cut]);
                    (FIN, [&text[cut..], more].concat())
                } else {
                    (if message.is_some() { FIN } else { TEXT }, [&text, more].concat())
                }
            }
            CloseTruncated => (CLOSE, vec![3]),
            CloseCodeInvalid => {
                let codes = [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, u16::MAX];
                (CLOSE, self.random.pick(&codes).to_be_bytes().to_vec())
            }
            CloseReasonNotUtf8 => (CLOSE, [&[3, 232][..], self.random.pick(&ILL_FORMED)].concat()),
            MessageTooBig => {
                let limit = self.message_max;
                if message.is_none() && self.random.one_in(2) {
                    self.bytes.extend(header(FIN | data, limit + 1, Some([0; 4])));
                } else {
                    // This leaves one byte less than the next fragment says it has.
                    self.frame(data, b"0");
                    let length = self.random.pick(&[limit, i64::MAX as u64]);
                    self.bytes.extend(header(0, length, Some([0; 4])));
                }
                return self.bytes.extend(vec![b'0'; limit.min(300) as usize + 1]);
            }
        };
        self.frame(first, &payload);
    }

    fn frame(&mut self, first: u8, payload: &[u8]) {
        let key = if self.random.one_in(6) { [0; 4] } else { self.random.key() };
        self.bytes.extend(masked(first, payload, key));
    }

    fn length(&mut self) -> usize {
        let short = [0, 1, 2, 3, 4, 7, 8, 9, 12, 15, 16, 17];
        let limits = [125, 126, 127, 512, 1024, 4096, 15872, 16384, 65535, 65536];
        match (self.size, self.random.below(40)) {
            (Size::Short, 0) => self.random.pick(&[125, 126, 127]),
            (Size::Short, _) | (Size::Long, 0..10) => self.random.pick(&short),
            (Size::Long, 10..20) => self.random.below(300),
            (Size::Long, 20..30) => self.random.pick(&limits),
            // With the header and what stands before it a little less fills a buffer.
            (Size::Long, 30..39) => self.random.pick(&limits) - self.random.below(20),
            (Size::Long, _) => self.random.below(300_000),
            (Size::Huge, _) => (9 << 19) + self.random.below(1 << 20),
        }
    }

    fn control_payload(&mut self) -> Vec<u8> {
        let length = match self.size {
            Size::Short => self.random.below(5),
            Size::Long | Size::Huge => self.random.pick(&[0, 1, 4, 15, 16, 17, 64, 124, 125]),
        };
        self.random.bytes(length)
    }

    /// Text of `bytes` bytes: ASCII, or the first and last characters of each length.
    fn text(&mut self, bytes: usize) -> Vec<u8> {
        let characters = match self.random.below(3) {
            0 => "aZ \0\u{7f}",
            _ => "a\u{80}\u{7ff}\u{800}\u{d7ff}\u{e000}\u{ffff}\u{10000}\u{10ffff}é水🦀",
        };
        let characters: Vec<char> = characters.chars().collect();
        let mut text = String::new();
        while text.len() < bytes {
            let character = self.random.pick(&characters);
            let fits = text.len() + character.len_utf8() <= bytes;
            text.push(if fits { character } else { 'a' });
        }
        text.into_bytes()
    }
}

/// Starts the server with `arguments` and compares its answers on eight connections at a time.
fn over_sockets(test: &'static str, arguments: &[&str]) {
    let server = Server::start(arguments);
    let cases = Mutex::new(cases(test, 200));
    let next = || cases.lock().ok()?.next();
    let violations: u64 = thread::scope(|scope| {
        let clients: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    let mut violations = 0;
                    while let Some(mut case) = next() {
                        let size = match case.random.below(16) {
                            0 => Size::Huge,
                            1..12 => Size::Long,
                            _ => Size::Short,
                        };
                        let stream = Stream::random(&mut case.random, size, MESSAGE_MAX);
                        let verdict = stream.verdict();
                        converse(&server, &stream, &verdict, &mut case.random);
                        violations += u64::from(verdict.owed.broken().is_some());
                    }
                    violations
                })
            })
            .collect();
        clients.into_iter().map(|client| client.join().expect("no failure")).sum()
    });
    let ended = server.terminate();
    assert!(ended.status.success(), "{ended:?}");
    assert_eq!(ended.count("protocol_violations"), violations);
    assert_eq!(ended.count("connections_open"), 0);
}

/// Sends `stream` in random pieces and reads at the same time, up to the FIN of the server.
fn converse(server: &Server, stream: &Stream, verdict: &Verdict, random: &mut Random) {
    let mut client = Client::open(server.address());
    // A client that reads late and much makes the server's sends fall short.
    let is_slow = stream.bytes.len() > 4 << 20 || random.one_in(3);
    let mut socket = client.stream().try_clone().expect("a descriptor");
    let cuts = random.cuts(stream.bytes.len());
    let mut pauses = random.fork();
    let ends = verdict.owed.ended_at().is_none() || random.one_in(2);
    let answer = thread::scope(|scope| {
        scope.spawn(move || {
            let mut from = 0;
            for &cut in cuts.iter().chain([&stream.bytes.len()]) {
                socket.write_all(&stream.bytes[from..cut]).expect("the server reads to the end");
                from = cut;
                if pauses.one_in(8) {
                    thread::sleep(Duration::from_micros(100));
                }
            }
            if ends {
                socket.shutdown(Shutdown::Write).expect("still connected");
            }
        });
        if is_slow {
            thread::sleep(Duration::from_nanos(50 * stream.bytes.len() as u64));
        }
        client.read_to_end()
    });
    let answer = answer.unwrap_or_else(|error| panic!("no FIN but {error}; {stream:?}"));
    assert_same(&answer, &verdict.answer(), || format!("{stream:?}"));
}
