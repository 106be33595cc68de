//! What the peers say: requests, messages and everything that can be wrong with them, drawn from a seed.
//!
//! A script is complete before anything is sent. It does not know when each part is sent, nor what the
//! server answers.

use testkit::deflate::{Compressor, Place};
use testkit::frame::masked;
use testkit::oracle::Compressed;
use testkit::{REQUEST, RSV1, Random};

use super::scenario::Scenario;
use crate::offload;
use crate::protocol::Policy;

/// What makes a request unacceptable, and the status that it costs.
const SPOILED: &[(&str, &str, u16)] = &[
    ("GET", "POST", 405),
    ("Upgrade: websocket", "Upgrade: h2c", 426),
    ("Version: 13", "Version: 12", 426),
    ("ZQ==", "ZQ=", 400),
    ("Host", "H st", 400),
    ("HTTP/1.1", "HTTP/1.0", 505),
];
/// Frames whose first bytes break a rule, between two messages as well as within one.
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

/// What a peer says.
#[derive(Debug, Default)]
pub(super) struct Script {
    pub(super) input: Vec<u8>,
    /// Bytes of the request, and the status of the answer.
    pub(super) head: usize,
    pub(super) status: u16,
    pub(super) message_ends: Vec<usize>,
    pub(super) is_long: bool,
    pub(super) is_flood: bool,
    /// Small messages, of which the kernel can echo most.
    pub(super) is_small: bool,
    /// Each message is sent when the echo of the last one has arrived.
    pub(super) is_ping_pong: bool,
    /// How its messages are echoed, if they are compressed.
    pub(super) compressed: Option<Compressed>,
}

impl Script {
    pub(super) fn new(random: &mut Random, scenario: &Scenario) -> Script {
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
        if script.status == 101 && !script.is_flood && random.one_in(scenario.compressed) {
            let offer = "Sec-WebSocket-Extensions: permessage-deflate\r\nHost";
            request = request.replacen("Host", offer, 1);
            script.compressed = Some(match scenario.policy {
                Policy::Mirror | Policy::Off => Compressed::Mirrored,
                Policy::Deflate => Compressed::Recompressed,
            });
            if request.len() > 8192 {
                script.status = 431;
                script.compressed = None;
            }
        }
        script.input.extend(request.as_bytes());
        script.head = script.input.len();
        if script.status == 431 {
            // It is refused as soon as it is seen to be too long.
            script.head = 8192;
        }
        script.message_ends.push(script.input.len());
        script.is_small = !script.is_flood
            && script.compressed.is_none()
            && scenario.offload != offload::Policy::Off
            && scenario.capacity > 100
            && random.one_in(2);
        if script.compressed.is_some() {
            script.compressed_messages(random, scenario);
        } else if script.is_flood {
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

    /// Compressed messages that are valid, with others and control frames between them.
    fn compressed_messages(&mut self, random: &mut Random, scenario: &Scenario) {
        let mut compressor = Compressor::new(1 << 15);
        for _ in 0..random.below(10) {
            if self.input.len() > scenario.bytes_max {
                break;
            }
            if random.one_in(4) {
                self.text(random, scenario);
            } else {
                self.compressed_message(random, scenario, &mut compressor);
            }
            self.message_ends.push(self.input.len());
        }
        if random.one_in(2) {
            self.close(random);
        }
    }

    fn compressed_message(
        &mut self,
        random: &mut Random,
        scenario: &Scenario,
        compressor: &mut Compressor,
    ) {
        let length = Script::length(random, scenario);
        let (opcode, payload) = match random.below(3) {
            0 => (1, text(random, length)),
            1 => (2, random.bytes(length)),
            _ => (1, b"abcdefgh".iter().copied().cycle().take(length).collect()),
        };
        let payload = compressor.blocks(&payload, Place::Last, random);
        self.message(random, RSV1 | opcode, &payload);
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
        self.input.extend(masked(first, payload, random.key()));
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
