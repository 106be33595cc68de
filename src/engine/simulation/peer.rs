//! The peers: what each of them sends, in which pieces, when it reads, and how it leaves.
//!
//! A peer is chosen once, from a seed; what the server does moves it along and never changes what
//! it says, but for one thing: it may answer the close frame of a server that stops.

use std::time::Duration;

use super::oracle::{Expected, Fit};
use super::{Random, Scenario};
use crate::offload;

/// An opening handshake (RFC 6455 section 1.3).
pub(super) const REQUEST: &str = "GET /chat HTTP/1.1\r\nHost: server.example.com\r\n\
    Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
    Sec-WebSocket-Version: 13\r\n\r\n";
/// What makes a request unacceptable, and the status that it costs.
const SPOILED: &[(&str, &str, u16)] = &[
    ("GET", "POST", 405),
    ("Upgrade: websocket", "Upgrade: h2c", 426),
    ("Version: 13", "Version: 12", 426),
    ("ZQ==", "ZQ=", 400),
    ("Host", "H st", 400),
    ("HTTP/1.1", "HTTP/1.0", 505),
];
/// What a frame's first bytes can have wrong, with no message under way and with one.
const WRONG: &[&[u8]] = &[
    b"\xc1\x80kkkk",
    b"\x91\x80kkkk",
    b"\x83\x80kkkk",
    b"\x8b\x80kkkk",
    b"\x09\x80kkkk",
    b"\x81\x01x",
    b"\x89\xfe\0\x7ekkkk",
    b"\x82\xfe\0\x7dkkkk",
    b"\x81\xff\0\0\0\0\0\0\xff\xffkkkk",
    b"\x82\xff\x80\0\0\0\0\0\0\0kkkk",
    b"\x82\xff\x7f\0\0\0\0\0\0\0kkkk",
];

/// When a peer reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reading {
    Promptly,
    /// With pauses.
    Slowly,
    /// Only when it has written a message whole; and it writes the next when it has the echo.
    BetweenMessages,
    Never,
}

/// What a peer does when it has said all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Finale {
    /// It closes when the server has.
    Follow,
    /// It sends the end of the stream at once, and reads on.
    HalfClose,
    /// It sends the end of the stream when it has all that it is owed.
    CloseAfterEcho,
    /// It closes at once, so that what still comes is answered with a reset.
    Vanish,
    /// It resets the connection at once.
    Reset,
    /// It stays.
    Linger,
}

/// What a peer can do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Act {
    Write,
    Read,
    AnswerClose,
    End,
    Reset,
}

/// What a peer sees of the server.
#[derive(Debug, Clone, Copy)]
pub(super) struct View {
    /// Bytes that the server's socket has room for.
    pub(super) window: usize,
    /// Bytes sent to the peer.
    pub(super) sent: usize,
    /// The end of the stream came.
    pub(super) is_shut: bool,
    /// The server has sent a close frame because it stops.
    pub(super) is_going_away: bool,
}

/// A peer.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) input: Vec<u8>,
    pub(super) expected: Expected,
    /// Positions in the input at which messages end.
    message_ends: Vec<usize>,
    /// Bytes that the server's socket keeps for it until it reads.
    pub(super) room: usize,
    pub(super) written: usize,
    pub(super) read: usize,
    pub(super) has_ended: bool,
    pub(super) is_reset: bool,
    reading: Reading,
    finale: Finale,
    answers_close: bool,
    segment_max: usize,
    /// One act in so many is a reset, if not 0.
    resets: usize,
    pub(super) wakes_at: Duration,
}

impl Peer {
    pub(super) fn new(random: &mut Random, scenario: &Scenario) -> Peer {
        let reading = match random.below(12) {
            0..6 => Reading::Promptly,
            6..8 => Reading::Slowly,
            8..11 => Reading::BetweenMessages,
            _ => Reading::Never,
        };
        let script = Script::new(random, scenario);
        let segments: &[usize] = match script.input.len() {
            _ if script.is_small => &[300, 9000],
            0..500 => &[1, 5, 40, 300, 300],
            500..4000 => &[20, 300, 9000],
            _ => &[500, 9000, 1 << 20],
        };
        let finales = [
            Finale::Follow,
            Finale::Follow,
            Finale::HalfClose,
            Finale::CloseAfterEcho,
            Finale::CloseAfterEcho,
            Finale::Vanish,
            Finale::Reset,
            Finale::Linger,
        ];
        let rooms = [3, 60, 500, 5000, 200_000, 10 << 20];
        Peer {
            expected: Expected::new(
                &script.input,
                script.head,
                script.status,
                scenario.message_max,
            ),
            input: script.input,
            message_ends: script.message_ends,
            room: random.pick(match (script.is_flood, script.is_long) {
                (true, _) => &rooms[..3],
                (false, true) => &rooms[3..],
                (false, false) => &rooms,
            }),
            written: 0,
            read: 0,
            has_ended: false,
            is_reset: false,
            reading: match (script.is_flood, script.is_ping_pong) {
                (true, _) => Reading::Never,
                (false, true) => Reading::BetweenMessages,
                (false, false) => reading,
            },
            finale: random.pick(&finales),
            answers_close: random.one_in(2),
            segment_max: random.pick(segments),
            resets: if !script.is_flood && random.one_in(12) { 1 + random.below(40) } else { 0 },
            wakes_at: Duration::ZERO,
        }
    }

    /// What the peer can do, now or when it wakes.
    pub(super) fn acts(&self, view: View, acts: &mut Vec<Act>) {
        acts.clear();
        if self.is_reset {
            return;
        }
        let has_read_all = self.read == view.sent;
        let has_written_all = self.written == self.input.len();
        let is_between = has_written_all || self.message_ends.binary_search(&self.written).is_ok();
        let waits_for_echo = self.reading == Reading::BetweenMessages
            && is_between
            && self.read < self.expected.owed(self.written);
        if !self.has_ended
            && !has_written_all
            && !view.is_shut
            && view.window > 0
            && !waits_for_echo
        {
            acts.push(Act::Write);
        }
        let reads = match self.reading {
            Reading::Promptly | Reading::Slowly => true,
            Reading::BetweenMessages => is_between || view.is_shut,
            Reading::Never => false,
        };
        if reads && !has_read_all {
            acts.push(Act::Read);
        }
        if self.answers_close && view.is_going_away && has_read_all && !self.has_ended {
            acts.push(Act::AnswerClose);
        }
        let finishes = match self.finale {
            Finale::Follow => false,
            Finale::HalfClose | Finale::Vanish => has_written_all,
            Finale::CloseAfterEcho => has_written_all && self.read >= self.expected.bytes.len(),
            Finale::Reset if has_written_all => {
                acts.push(Act::Reset);
                false
            }
            Finale::Reset | Finale::Linger => false,
        };
        let follows = view.is_shut && has_read_all && self.finale != Finale::Linger;
        if !self.has_ended && (finishes || follows) {
            acts.push(Act::End);
        }
        // What comes to a closed socket is answered with a reset.
        if self.has_ended && self.finale == Finale::Vanish && !has_read_all {
            acts.push(Act::Reset);
        }
    }

    /// Does it.
    pub(super) fn act(&mut self, act: Act, view: View, random: &mut Random, now: Duration) {
        if self.resets > 0 && random.one_in(self.resets + 1) {
            self.is_reset = true;
            return;
        }
        match act {
            Act::Write => {
                let left = (self.input.len() - self.written).min(view.window);
                let mut most = left.min(1 + random.below(self.segment_max));
                if self.reading == Reading::BetweenMessages {
                    let next = self.message_ends.partition_point(|&end| end <= self.written);
                    if let Some(end) = self.message_ends.get(next) {
                        most = most.min(end - self.written);
                    }
                }
                self.written += most;
            }
            Act::Read => {
                let most = view.sent - self.read;
                self.read += if random.one_in(3) { 1 + random.below(most) } else { most };
                if self.reading == Reading::Slowly {
                    self.wakes_at = now + Duration::from_millis(random.below(1500) as u64);
                }
            }
            Act::AnswerClose => self.answer_close(),
            Act::End => self.has_ended = true,
            Act::Reset => self.is_reset = true,
        }
    }

    /// Ends the input with a close frame, as soon as it stands between two frames.
    fn answer_close(&mut self) {
        self.answers_close = false;
        let next = self.expected.boundaries.partition_point(|&(end, _)| end < self.written);
        if let Some(&(end, _)) = self.expected.boundaries.get(next) {
            self.input.truncate(end);
            self.input.extend_from_slice(b"\x88\x82\0\0\0\0\x03\xe9");
            self.finale = Finale::Follow;
        }
    }

    pub(super) fn never_reads(&self) -> bool {
        self.reading == Reading::Never
    }

    /// Whether all that is owed for all that the peer has written was sent, or more.
    pub(super) fn has_its_due(&self, sent: usize, fit: Fit) -> bool {
        if self.written == self.input.len() {
            fit == Fit::Whole
        } else {
            sent >= self.expected.owed(self.written)
        }
    }
}

/// What a peer says.
#[derive(Debug, Default)]
struct Script {
    input: Vec<u8>,
    /// Bytes of the request, and the status of the answer.
    head: usize,
    status: u16,
    message_ends: Vec<usize>,
    is_long: bool,
    is_flood: bool,
    /// Small messages, of which the kernel can echo most.
    is_small: bool,
    /// Each is sent when the last has come back.
    is_ping_pong: bool,
}

impl Script {
    fn new(random: &mut Random, scenario: &Scenario) -> Script {
        let mut script = Script { status: 101, ..Script::default() };
        let mut request = String::from(REQUEST);
        script.is_flood = scenario.flood > 0;
        if !script.is_flood && random.one_in(8) {
            let &(from, to, status) = &SPOILED[random.below(SPOILED.len())];
            request = request.replacen(from, to, 1);
            script.status = status;
        } else if !script.is_flood && random.one_in(10) && scenario.bytes_max > 9000 {
            let room = 8192 - REQUEST.len() - "X: \r\n".len() + random.below(2);
            request = request.replacen("Host", &format!("X: {}\r\nHost", "x".repeat(room)), 1);
            script.status = if request.len() > 8192 { 431 } else { 101 };
        }
        script.input.extend(request.as_bytes());
        script.head = script.input.len();
        if script.status == 431 {
            // It is refused as soon as it is seen to be too long.
            script.head = 8192;
        }
        script.message_ends.push(script.input.len());
        script.is_small = !script.is_flood
            && scenario.offload != offload::Policy::Off
            && scenario.capacity > 100
            && random.one_in(2);
        if script.is_flood {
            script.flood(random, scenario.flood);
        } else if script.is_small {
            script.is_ping_pong = random.below(3) > 0;
            script.small_messages(random, scenario);
        } else {
            script.messages(random, scenario);
        }
        if !script.is_flood && random.one_in(8) {
            let least = if script.status == 101 { 0 } else { script.head };
            let least = if random.one_in(4) { least } else { script.head };
            let end = least + random.below(script.input.len() - least + 1);
            script.input.truncate(end);
            script.message_ends.retain(|&message_end| message_end <= end);
        }
        script.is_long = script.input.len() > 5000;
        script
    }

    fn messages(&mut self, random: &mut Random, scenario: &Scenario) {
        let count = random.below(if scenario.is_heavy { 120 } else { 10 });
        for _ in 0..count {
            if self.input.len() > scenario.bytes_max {
                break;
            }
            match random.below(8) {
                0 => self.control(random),
                1..5 => self.text(random, scenario),
                _ => self.binary(random, scenario),
            }
            self.message_ends.push(self.input.len());
        }
        match random.below(8) {
            0..3 => self.close(random),
            3 | 4 => self.violate(random, scenario),
            _ => return,
        }
        if random.one_in(3) {
            let garbage = random.bytes(50);
            self.input.extend(garbage);
        }
    }

    /// Small messages, most of which the kernel can echo, and something else at the end.
    fn small_messages(&mut self, random: &mut Random, scenario: &Scenario) {
        let other = random.pick(&[0, 0, 0, 20]);
        let length_max = random.pick(&[1, 20, 150]).min(scenario.message_max);
        for _ in 0..1 + random.below(150) {
            let length = random.below(length_max + 1);
            let payload = random.bytes(length);
            match random.below(2) {
                _ if random.one_in(other) => self.text(random, scenario),
                0 => self.frame(random, 0x82, &payload),
                _ => self.frame(random, 0x81, &vec![b'x'; length]),
            }
            self.message_ends.push(self.input.len());
        }
        if random.one_in(2) {
            self.messages(random, scenario);
        }
    }

    /// A frame of `first` and a masked payload.
    fn frame(&mut self, random: &mut Random, first: u8, payload: &[u8]) {
        self.input.push(first);
        match payload.len() {
            length @ 0..=125 => self.input.push(0x80 | length as u8),
            length @ 126..=0xffff => {
                self.input.push(0xfe);
                self.input.extend((length as u16).to_be_bytes());
            }
            length => {
                self.input.push(0xff);
                self.input.extend((length as u64).to_be_bytes());
            }
        }
        let key = (random.next() as u32).to_ne_bytes();
        self.input.extend(key);
        self.input.extend(payload.iter().zip(0..).map(|(byte, n)| byte ^ key[n % 4]));
    }

    fn length(random: &mut Random, scenario: &Scenario) -> usize {
        let capacity = scenario.capacity;
        let length = match random.below(12) {
            0..5 => random.below(20),
            5 | 6 => 123 + random.below(6),
            7 | 8 => (capacity + random.below(20)).saturating_sub(random.below(30)),
            9 => 2 * capacity + random.below(10),
            10 if random.one_in(20) => 65_525 + random.below(20),
            10 if random.one_in(4) => scenario.message_max - random.below(2),
            _ => random.below(400),
        };
        length.min(scenario.message_max).min(scenario.bytes_max)
    }

    /// A message in fragments, with control frames between them.
    fn message(&mut self, random: &mut Random, opcode: u8, payload: &[u8]) {
        let mut first = opcode;
        let mut rest = payload;
        for _ in 0..random.below(4) {
            let (fragment, more) = rest.split_at(random.below(rest.len() + 1));
            self.frame(random, first, fragment);
            (first, rest) = (0, more);
            if random.one_in(3) {
                self.control(random);
            }
        }
        self.frame(random, 0x80 | first, rest);
    }

    fn text(&mut self, random: &mut Random, scenario: &Scenario) {
        let length = Script::length(random, scenario);
        let text = text(random, length);
        self.message(random, 1, &text);
    }

    fn binary(&mut self, random: &mut Random, scenario: &Scenario) {
        let length = Script::length(random, scenario);
        let payload = random.bytes(length);
        self.message(random, 2, &payload);
    }

    /// A ping or a pong.
    fn control(&mut self, random: &mut Random) {
        let length = random.pick(&[0, 1, 4, 20, 125]);
        let payload = random.bytes(length);
        let first = random.pick(&[0x89, 0x89, 0x8a]);
        self.frame(random, first, &payload);
    }

    fn close(&mut self, random: &mut Random) {
        let code: u16 = random.pick(&[1000, 1001, 1003, 1007, 1014, 3000, 4999]);
        let mut payload = code.to_be_bytes().to_vec();
        let reason = random.pick(&[0, 5, 123]);
        payload.extend(text(random, reason));
        if random.one_in(5) {
            payload.clear();
        }
        self.frame(random, 0x88, &payload);
    }

    fn violate(&mut self, random: &mut Random, scenario: &Scenario) {
        let is_within = random.one_in(2);
        let opcode = random.pick(&[1, 2]);
        if is_within {
            self.frame(random, opcode, b"begun");
        }
        match random.below(9) {
            0..3 => self.input.extend(random.pick(WRONG)),
            3 => self.frame(random, if is_within { 0x80 | opcode } else { 0x80 }, b"fragment"),
            4 => {
                let wrong: &[u8] = random.pick(&[&b"\x03"[..], b"\x03\xec", b"\0\0", b"\x03\xf7"]);
                self.frame(random, 0x88, wrong);
            }
            5 => self.frame(random, 0x88, b"\x03\xe8\xff"),
            6 => {
                let most = scenario.message_max.min(scenario.bytes_max);
                let first = if is_within { 0x80 } else { 0x82 };
                let payload = random.bytes(most + 1);
                self.frame(random, first, &payload);
            }
            _ => {
                let length = Script::length(random, scenario).max(1);
                let mut spoiled = text(random, length);
                let at = random.below(length);
                spoiled[at] = random.pick(&[0xff, 0xc0, 0x80, 0xed, 0xf4, 0xe6]);
                let first = if is_within && opcode == 1 { 0 } else { 1 };
                self.message(random, first, &spoiled);
            }
        }
    }

    /// A message that never ends, of which the peer reads no echo, in frames that cost it little.
    fn flood(&mut self, random: &mut Random, bytes: usize) {
        self.frame(random, 1, b"");
        let floods = [(0, &b""[..]), (0x89, &[b'x'; 125]), (0x8a, b""), (0x8a, &[b'x'; 125])];
        let (first, payload) = random.pick(&floods);
        while self.input.len() < bytes {
            self.frame(random, first, payload);
        }
    }
}

/// UTF-8 of exactly this many bytes.
fn text(random: &mut Random, length: usize) -> Vec<u8> {
    const CHARACTERS: &str = "aßz水é🦀-𝄞 ";
    let mut text = String::with_capacity(length);
    let is_ascii = random.one_in(3);
    while text.len() < length {
        let character = CHARACTERS.chars().nth(random.below(9)).expect("nine characters");
        let fits = !is_ascii && text.len() + character.len_utf8() <= length;
        text.push(if fits { character } else { 'x' });
    }
    text.into_bytes()
}
