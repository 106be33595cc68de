//! Random messages, plain and compressed, in fragments, with pings between them.

use crate::MESSAGE_MAX;
use crate::agreement::Agreed;
use crate::receiver::Receiver;
use crate::sender::Sender;
use testkit::RSV1;
use testkit::frame::{masked, parse};
use testkit::{FIN, PING, PONG, Random};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Size {
    /// Few messages have more than some thousand bytes.
    Small,
    /// One has as many as the server takes.
    Large,
}

/// Everything that a client sends after its handshake, and what should come back.
pub(crate) struct Script {
    pub(crate) bytes: Vec<u8>,
    pub(crate) agreed: Option<Agreed>,
    pub(crate) frames: Vec<Expected>,
    pub(crate) messages: Vec<Vec<u8>>,
}

/// A frame that is to come back.
pub(crate) struct Expected {
    pub(crate) first: u8,
    /// What was sent.
    pub(crate) payload: Vec<u8>,
    /// Whether it belongs to a compressed message.
    pub(crate) is_compressed: bool,
}

impl std::fmt::Debug for Script {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let messages: Vec<usize> = self.messages.iter().map(Vec::len).collect();
        let Script { bytes, agreed, frames, .. } = self;
        let (bytes, frames) = (bytes.len(), frames.len());
        write!(f, "{bytes} bytes, {frames} frames, messages of {messages:?}, {agreed:?}")
    }
}

impl Script {
    pub(crate) fn write(agreed: Option<Agreed>, size: Size, random: &mut Random) -> Script {
        let mut script =
            Script { bytes: Vec::new(), agreed, frames: Vec::new(), messages: Vec::new() };
        let mut sender = agreed.map(|agreed| Sender::new(agreed, random));
        let vocabulary = Vocabulary::new(random);
        let count = 4 + random.below(8);
        let largest = if size == Size::Large { random.below(count) } else { count };
        for number in 0..count {
            let limits = [125, 126, 127, 512, 4096, 16384, 32768, 65535, 65536];
            let bytes = match random.below(32) {
                _ if number == largest => MESSAGE_MAX as usize,
                0..4 => 0,
                4..14 => random.below(20),
                14..22 => random.below(700),
                22..28 => random.below(6000),
                28..31 => random.pick(&limits) - random.below(3),
                _ => random.below(70_000),
            };
            let is_text = random.one_in(2);
            let message = vocabulary.message(bytes, is_text, random);
            let opcode = if is_text { 1 } else { 2 };
            match sender.as_mut().filter(|_| !random.one_in(5)) {
                Some(sender) => {
                    let payload = sender.compress(&message, random);
                    script.message(opcode | RSV1, &payload, random);
                }
                None => script.message(opcode, &message, random),
            }
            script.messages.push(message);
        }
        script
    }

    /// A message in fragments.
    pub(crate) fn message(&mut self, first: u8, payload: &[u8], random: &mut Random) {
        let mut cuts = vec![0, payload.len()];
        while random.one_in(2) && cuts.len() < 7 {
            // An end met twice leaves a fragment without bytes.
            let within = random.below(payload.len() + 1);
            cuts.push(random.pick(&[0, payload.len(), within]));
        }
        cuts.sort_unstable();
        for (number, ends) in cuts.windows(2).enumerate() {
            while random.one_in(4) {
                let length = random.pick(&[0, 3, 125]);
                let control = random.bytes(length);
                self.bytes.extend(masked(PING, &control, random.key()));
                self.frames.push(Expected { first: PONG, payload: control, is_compressed: false });
            }
            let fin = if number + 2 == cuts.len() { FIN } else { 0 };
            let opcode = fin | if number == 0 { first } else { 0 };
            let fragment = &payload[ends[0]..ends[1]];
            self.bytes.extend(masked(opcode, fragment, random.key()));
            let is_compressed = first & RSV1 != 0;
            self.frames.push(Expected { first: opcode, payload: fragment.to_vec(), is_compressed });
        }
    }

    pub(crate) fn compressed_messages(&self) -> u64 {
        self.frames.iter().filter(|frame| frame.first & RSV1 != 0).count() as u64
    }

    /// Compares what came back.
    pub(crate) fn check(&self, replies: &[u8], what: &str) {
        let replies = parse(replies);
        let mut receiver = self.agreed.map(Receiver::new);
        let mut messages = self.messages.iter();
        let mut payload = Vec::new();
        for (number, (reply, expected)) in replies.iter().zip(&self.frames).enumerate() {
            let place = || format!("frame {number} of {self:?} {what}");
            assert_eq!(reply.first, expected.first, "{}", place());
            let is_mirrored = self.agreed.is_some_and(|agreed| agreed.is_mirrored);
            if is_mirrored || !expected.is_compressed {
                assert!(reply.payload == expected.payload, "{} is another", place());
            }
            if expected.first == PONG {
                continue;
            }
            payload.extend(&reply.payload);
            if expected.first & FIN == 0 {
                continue;
            }
            let payload = std::mem::take(&mut payload);
            let message = messages.next().expect("no more than were sent");
            let echoed = match receiver.as_mut().filter(|_| expected.is_compressed) {
                Some(receiver) => receiver
                    .inflate(&payload)
                    .unwrap_or_else(|problem| panic!("{problem}: {}", place())),
                None => payload,
            };
            assert!(echoed == *message, "{} inflates to something else", place());
        }
        assert_eq!(replies.len(), self.frames.len(), "{self:?} {what}");
        assert_eq!(messages.next(), None, "{self:?} {what}");
    }
}

/// What messages are made of, so that they say again what others have said, near and far.
pub(crate) struct Vocabulary {
    pub(crate) words: Vec<Vec<u8>>,
    pub(crate) chunks: Vec<Vec<u8>>,
}

impl Vocabulary {
    pub(crate) fn new(random: &mut Random) -> Vocabulary {
        let letters: Vec<char> = "abcdefghij klmnop\u{0}é水🦀".chars().collect();
        let word = |random: &mut Random| {
            let length = random.pick(&[1, 4, 9, 60, 300]);
            (0..length).map(|_| random.pick(&letters)).collect::<String>().into_bytes()
        };
        let chunk = |random: &mut Random| {
            let length = random.pick(&[1, 3, 10, 100, 258, 1000]);
            random.bytes(length)
        };
        let words = (0..90).map(|_| word(random)).collect();
        let chunks = (0..60).map(|_| chunk(random)).collect();
        Vocabulary { words, chunks }
    }

    /// A message of `bytes` bytes.
    pub(crate) fn message(&self, bytes: usize, is_text: bool, random: &mut Random) -> Vec<u8> {
        let pieces = if is_text { &self.words } else { &self.chunks };
        let mut message = Vec::with_capacity(bytes + 1000);
        while message.len() < bytes {
            let piece = &pieces[random.below(pieces.len())];
            if message.len() + piece.len() > bytes {
                message.resize(bytes, b'.');
            } else if random.one_in(50) {
                message.resize((message.len() + random.below(600)).min(bytes), b' ');
            } else {
                message.extend(piece);
            }
        }
        message
    }
}
