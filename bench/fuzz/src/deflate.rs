//! Compressed messages, right, damaged or made up, on a connection with any agreement, against a plain
//! inflater. What is said about them depends neither on the pieces in which they come nor on the turns in
//! which they are worked off.

use arbitrary::Arbitrary;
use ringecho::metrics::Counters;
use ringecho::protocol::compression::compressed_max;
use ringecho::protocol::{Context, Decision, Limits, Policy, Settings};
use testkit::frame::{masked, parse};
use testkit::inflate::Inflater;
use testkit::{BINARY, CLOSE, FIN, Frame, PING, PONG, RSV1, Random, TEXT};

use crate::agreement::{Agreed, Offer, request, settings};
use crate::peer::{Peer, STEP};
use crate::receiver::Receiver;
use crate::sender::Sender;
use crate::{BITS_MAX, MESSAGE_MAX};

/// Bytes that a receive buffer has.
const ROOMS: [usize; 4] = [16, 64, 1024, 16384];
/// The largest messages that the server takes.
const LIMITS: [u64; 5] = [1, 16, 300, 65536, MESSAGE_MAX];
/// Messages of a connection.
const MESSAGES: usize = 12;
/// The longest message that the compressors are given, in bytes.
const CONTENT_BYTES: usize = 40_000;

#[derive(Debug, Arbitrary)]
pub(crate) struct Input<'a> {
    is_deflate: bool,
    server_forgets: bool,
    client_forgets: bool,
    server_bits: Option<u8>,
    client_bits: Option<Option<u8>>,
    limit: u8,
    seed: u64,
    messages: Vec<Message<'a>>,
}

#[derive(Debug, Arbitrary)]
enum Message<'a> {
    /// This compressed payload.
    Payload {
        is_text: bool,
        payload: &'a [u8],
    },
    /// What a compressor makes of this content, with one byte changed or without.
    Compressed {
        is_text: bool,
        content: &'a [u8],
        times: u8,
        damage: Option<(u16, u8)>,
    },
    /// Without compression.
    Plain {
        is_text: bool,
        content: &'a [u8],
    },
    Ping,
}

/// A message as it is sent, with its payload.
struct Sent {
    first: u8,
    payload: Vec<u8>,
}

/// What the server says about the messages, as far as it has to be the same each time.
#[derive(Debug, PartialEq, Eq)]
struct Said {
    /// The first byte of each whole message, or of a pong, and its payload, inflated.
    messages: Vec<(u8, Vec<u8>)>,
    code: Option<u16>,
}

/// How the stream is received and answered.
struct Way {
    room: usize,
    limits: Limits,
    chance: Option<Random>,
}

pub(crate) fn run(input: Input<'_>) {
    let policy = if input.is_deflate { Policy::Deflate } else { Policy::Mirror };
    let message_max = LIMITS[usize::from(input.limit) % LIMITS.len()];
    let settings = Settings { message_max, ..settings(policy) };
    let bits = |bits: u8| 8 + u32::from(bits) % 8;
    let offer = Offer {
        server_no_context_takeover: input.server_forgets,
        client_no_context_takeover: input.client_forgets,
        server_max_window_bits: input.server_bits.map(bits),
        client_max_window_bits: input.client_bits.map(|value| value.map(bits)),
    };
    let mut random = Random::new(input.seed);
    let Some(agreed) = agree(&offer, settings) else { return };
    let sent = messages(&input.messages, agreed, &mut random);
    let bytes = frames(&sent, &mut random);

    let whole = Way { room: 16384, limits: Limits::default(), chance: None };
    let limits = random.pick(&[Limits::default(), STEP]);
    let cut = Way { room: random.pick(&ROOMS), limits, chance: Some(random) };
    let answers = [whole, cut].map(|way| answer(&bytes, &offer, settings, way));
    if agreed.is_mirrored {
        assert_eq!(answers[0], answers[1]);
    }
    for answer in answers {
        check(&sent, said(&answer, agreed), agreed, message_max);
    }
}

fn agree(offer: &Offer, settings: Settings) -> Option<Agreed> {
    let counters = Counters::default();
    let context = Context::new(settings, &counters);
    let response = Peer::new(16384, &context).handshake(&request(&offer.field()));
    offer.answered(&response, settings.policy)
}

fn messages(messages: &[Message<'_>], agreed: Agreed, random: &mut Random) -> Vec<Sent> {
    let mut sender = Sender::new(agreed, random);
    let opcode = |is_text| if is_text { TEXT } else { BINARY };
    let sent = messages.iter().take(MESSAGES).map(|message| match *message {
        Message::Payload { is_text, payload } => {
            Sent { first: opcode(is_text) | RSV1, payload: payload.to_vec() }
        }
        Message::Compressed { is_text, content, times, damage } => {
            let length = (content.len() * (usize::from(times) + 1)).min(CONTENT_BYTES);
            let content: Vec<u8> = content.iter().copied().cycle().take(length).collect();
            let mut payload = sender.compress(&content, random);
            if let Some((place, change)) = damage
                && let Some(last) = payload.len().checked_sub(1)
            {
                payload[usize::from(place).min(last)] ^= change;
            }
            Sent { first: opcode(is_text) | RSV1, payload }
        }
        Message::Plain { is_text, content } => {
            Sent { first: opcode(is_text), payload: content.to_vec() }
        }
        Message::Ping => Sent { first: PING, payload: Vec::new() },
    });
    sent.collect()
}

/// The messages in fragments.
fn frames(sent: &[Sent], random: &mut Random) -> Vec<u8> {
    let mut bytes = Vec::new();
    for Sent { first, payload } in sent {
        let mut cuts = vec![0, payload.len()];
        while *first != PING && random.one_in(3) && cuts.len() < 5 {
            cuts.push(random.below(payload.len() + 1));
        }
        cuts.sort_unstable();
        for (number, ends) in cuts.windows(2).enumerate() {
            let opcode = if number == 0 { first & !FIN } else { 0 };
            let fin = if number + 2 == cuts.len() { FIN } else { 0 };
            bytes.extend(masked(opcode | fin, &payload[ends[0]..ends[1]], random.key()));
        }
    }
    bytes
}

fn answer(bytes: &[u8], offer: &Offer, settings: Settings, way: Way) -> Vec<Frame> {
    let counters = Counters::default();
    let context = Context::new(settings, &counters).with_limits(way.limits);
    let mut peer = Peer::new(way.room, &context);
    peer.handshake(&request(&offer.field()));
    let mut chance = way.chance;
    let cuts = chance.as_mut().map_or(Vec::new(), |random| random.cuts(bytes.len().max(1)));
    peer.feed(bytes, &cuts, chance.as_mut());
    peer.send(usize::MAX);
    let frames = parse(&peer.sent);
    let is_failed = frames.last().is_some_and(|frame| frame.first == CLOSE);
    assert_eq!(is_failed, peer.decision == Decision::Close);
    frames
}

/// The whole messages of an answer.
fn said(frames: &[Frame], agreed: Agreed) -> Said {
    let mut receiver = Receiver::new(agreed);
    let mut said = Said { messages: Vec::new(), code: None };
    let (mut first, mut payload) = (0, Vec::new());
    for frame in frames {
        match frame.first {
            CLOSE => said.code = Some(frame.close_code().expect("the server always has one")),
            PONG => said.messages.push((PONG, frame.payload.clone())),
            _ => {
                if frame.first & 0x0f != 0 {
                    first = frame.first | FIN;
                }
                payload.extend(&frame.payload);
                if frame.first & FIN == 0 {
                    continue;
                }
                let mut message = std::mem::take(&mut payload);
                if first & RSV1 != 0 && !agreed.is_mirrored {
                    message = receiver.inflate(&message).expect("what the server compressed");
                }
                said.messages.push((first, message));
            }
        }
    }
    said
}

/// The messages that are right come back, and the first that is not gets a close frame.
fn check(sent: &[Sent], said: Said, agreed: Agreed, message_max: u64) {
    // What the server lets a message refer to: a compressor that goes on is beside an inflater that does.
    let reach = match (agreed.client_no_context_takeover, agreed.is_mirrored) {
        (true, _) => 0,
        (false, true) => 1 << agreed.client_bits,
        (false, false) => 1 << BITS_MAX,
    };
    let mut inflater = Inflater::default();
    let mut answers = said.messages.into_iter();
    for Sent { first, payload } in sent {
        let is_compressed = first & RSV1 != 0;
        let mut codes = Vec::new();
        let mut content = payload.clone();
        if is_compressed {
            inflater.keep_last(reach);
            let begun = inflater.beginning(payload);
            match inflater.message(payload) {
                Ok(message) => content = message,
                Err(_) => {
                    codes.push(1007);
                    content = begun;
                }
            }
            if payload.len() as u64 > compressed_max(message_max) {
                codes.push(1009);
            }
        }
        if first & 8 == 0 && content.len() as u64 > message_max {
            codes.push(1009);
        }
        if first & 0x0f == 1 && str::from_utf8(&content).is_err() {
            codes.push(1007);
        }
        if !codes.is_empty() {
            let code = said.code.expect("a message that is refused");
            assert!(codes.contains(&code), "{code} and not of {codes:?}");
            assert_eq!(answers.next(), None);
            return;
        }
        let (answered, message) = answers.next().expect("a message that is echoed");
        assert_eq!(answered, if *first == PING { PONG } else { *first });
        let expected = if is_compressed && agreed.is_mirrored { payload } else { &content };
        assert!(message == *expected, "{message:x?} is not {expected:x?}");
    }
    assert_eq!((answers.next(), said.code), (None, None));
}
