//! The protocol core and the whole server, compared with a naive oracle.
//!
//! A seeded generator writes what a client may send, right or wrong. The oracle decodes it frame by
//! frame, slowly, and says which octets are the answer and how much must have been received before
//! each of them is due. Then the stream goes to [`Connection`] in the way the engine feeds it, in
//! every chunking if it is short and in random ones if it is long, and to the server over a socket.
//!
//! Invariant: what is answered depends on what was received, and not on how it was cut, nor on how
//! slowly the answer was taken.
//!
//! The oracle shares no code with the server; of its vocabulary it takes the names of the
//! violations and their texts. Every run prints its seed, and a failure the command that repeats it.

mod support;

use std::collections::HashSet;
use std::fmt;
use std::io::Write as _;
use std::net::Shutdown;
use std::ops::Range;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::{Buf as _, BytesMut};
use ringecho::buffer::{Cursors, HEADROOM, Region, Spill};
use ringecho::metrics::Counters;
use ringecho::protocol::violation::Violation;
use ringecho::protocol::{
    Admission, CloseCode, Connection, Context, Next, Policy, Protocol, Settings,
};
use support::{BINARY, CLOSE, Client, FIN, PING, PONG, Server, TEXT, reply};

/// Octets that a region has behind its headroom.
const ROOMS: [usize; 4] = [16, 64, 1024, 16384];

/// The largest message that the server takes by default.
const MESSAGE_MAX: u64 = 64 << 20;

/// All violations there are without compression, with their close codes.
const VIOLATIONS: [(Violation, u16); 13] = [
    (Violation::ReservedBit, 1002),
    (Violation::ReservedOpcode, 1002),
    (Violation::Unmasked, 1002),
    (Violation::LengthEncoding, 1002),
    (Violation::ControlFragmented, 1002),
    (Violation::ControlTooLong, 1002),
    (Violation::ContinuationUnexpected, 1002),
    (Violation::ContinuationExpected, 1002),
    (Violation::TextNotUtf8, 1007),
    (Violation::CloseTruncated, 1002),
    (Violation::CloseCodeInvalid, 1002),
    (Violation::CloseReasonNotUtf8, 1007),
    (Violation::MessageTooBig, 1009),
];

/// Octets that are no UTF-8, or no whole character.
const ILL_FORMED: [&[u8]; 6] =
    [b"\x80", b"\xc0\x80", b"\xe6\xb0", b"\xed\xa0\x80", b"\xf0\x9f\xa6", b"\xf4\x90\x80\x80"];

#[test]
fn every_chunking_of_short_streams() {
    for mut case in cases("every_chunking_of_short_streams", 90) {
        let stream = Stream::short(&mut case.random, 100);
        let verdict = judge(&stream);
        let end = stream.octets.len();
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
fn octet_by_octet_all_is_said_as_soon_as_it_is_certain() {
    let mut seen = HashSet::new();
    for mut case in cases("octet_by_octet", 2500) {
        let stream = Stream::any(&mut case.random, Size::Short);
        let verdict = judge(&stream);
        let cuts: Vec<usize> = (1..stream.octets.len()).collect();
        let (room, sends) = (case.random.pick(&ROOMS), case.random.sends());
        check(&stream, &verdict, Way { room, cuts: &cuts, sends, close_at: None });
        seen.extend(verdict.violation.map(Violation::reason));
    }
    assert_eq!(seen.len(), VIOLATIONS.len(), "of all violations the generator made {seen:?}");
}

#[test]
fn random_chunkings_of_long_streams() {
    for mut case in cases("random_chunkings", 350) {
        let stream = Stream::any(&mut case.random, Size::Long);
        let verdict = judge(&stream);
        for room in ROOMS {
            let cuts = case.random.cuts(stream.octets.len());
            let sends = case.random.sends();
            check(&stream, &verdict, Way { room, cuts: &cuts, sends, close_at: None });
        }
    }
}

#[test]
fn the_server_may_close_at_any_octet() {
    for mut case in cases("the_server_may_close", 250) {
        let stream = Stream::short(&mut case.random, 400);
        for close_at in stream.head - 1..=stream.octets.len() {
            let verdict = judge(&stream).with_close(&stream, close_at);
            let mut cuts = case.random.cuts(stream.octets.len());
            cuts.push(close_at);
            cuts.sort_unstable();
            let (room, sends) = (case.random.pick(&ROOMS), case.random.sends());
            check(&stream, &verdict, Way { room, cuts: &cuts, sends, close_at: Some(close_at) });
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

/// RFC 6455 sections 1.3 and 5.7.
#[test]
fn the_oracle_knows_the_examples_of_the_standard() {
    let request = support::REQUEST.as_bytes();
    let octets = [request, b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58"].concat();
    let head = request.len();
    let verdict = judge(&Stream { octets, head, message_max: 5 });
    let expected = [support::RESPONSE.as_bytes(), b"\x81\x05Hello"].concat();
    assert_eq!(verdict.answer, expected);
    assert_eq!(verdict.due[support::RESPONSE.len() - 1..][..2], [head, head + 11]);
    assert_eq!((verdict.closed_at, verdict.messages), (None, 1));
}

/// A way to feed a stream.
#[derive(Clone, Copy)]
struct Way<'a> {
    /// Octets that a pinned buffer takes.
    room: usize,
    /// Where the stream is cut, in ascending order.
    cuts: &'a [usize],
    sends: Sends,
    /// The server begins to close after so many octets, at which there is a cut.
    close_at: Option<usize>,
}

impl fmt::Debug for Way<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Way { room, cuts, sends, close_at } = self;
        let shown = &cuts[..cuts.len().min(8)];
        let count = cuts.len();
        write!(f, "room {room}, {count} cuts {shown:?}, {sends:?}, close_at {close_at:?}")
    }
}

/// How much of the reply is sent after each receive.
#[derive(Debug, Clone, Copy)]
enum Sends {
    /// All of it.
    Whole,
    /// Nothing before the end of the stream.
    Never,
    /// Whatever this seed comes to.
    Random(u64),
}

/// Feeds `stream` in this `way` and compares what is answered at each point with `verdict`.
fn check(stream: &Stream, verdict: &Verdict, way: Way<'_>) {
    let counters = Counters::default();
    let settings = Settings {
        protocol: Protocol::WebSocket,
        message_max: stream.message_max,
        policy: Policy::Mirror,
        level: 6,
    };
    let context = Context::new(settings, &counters);
    let mut peer = Peer::new(way.room, &context);
    let mut random = Random(if let Sends::Random(seed) = way.sends { seed } else { 0 });
    let end = stream.octets.len();
    let mut received = 0;
    for &cut in way.cuts.iter().chain([&end]) {
        for chunk in stream.octets[received..cut].chunks(way.room) {
            peer.receive(chunk);
            received += chunk.len();
            if way.close_at == Some(received) {
                peer.close();
            }
            let due = verdict.due.partition_point(|&due| due <= received);
            let is_over = verdict.closed_at.is_some_and(|closed_at| closed_at <= received);
            if peer.answered() != due || (peer.next == Next::Close) != is_over {
                panic!(
                    "after {received} octets {} are answered and not {due}, then {:?}\n\
                     {way:?}\n{stream:?}",
                    peer.answered(),
                    peer.next
                );
            }
            match way.sends {
                Sends::Whole => peer.send(usize::MAX),
                Sends::Never => {}
                Sends::Random(_) if random.one_in(2) => {}
                Sends::Random(_) => peer.send(random.below(2 * way.room)),
            }
        }
    }
    peer.send(usize::MAX);
    assert_same(&peer.sent, &verdict.answer, || format!("{way:?}\n{stream:?}"));
    assert!(verdict.closed_at.is_none() || peer.spill.is_none(), "memory kept after the close");
    let violations = u64::from(verdict.violation.is_some());
    assert_eq!(counters.protocol_violations.value(), violations, "violations");
    if way.close_at.is_none() {
        assert_eq!(counters.messages.value(), verdict.messages, "messages");
    }
}

fn assert_same(answer: &[u8], expected: &[u8], of: impl Fn() -> String) {
    if answer == expected {
        return;
    }
    let same = answer.iter().zip(expected).take_while(|(left, right)| left == right).count();
    let rest = |octets: &[u8]| octets[same..octets.len().min(same + 40)].escape_ascii().to_string();
    panic!(
        "after {same} octets the answer of {} goes on with {}\nand not, to {}, with {}\n{}",
        answer.len(),
        rest(answer),
        expected.len(),
        rest(expected),
        of()
    );
}

/// A connection fed as the engine feeds it: in place while nothing waits, else by a spill.
struct Peer<'a> {
    connection: Connection,
    context: &'a Context<'a>,
    pinned: Vec<u8>,
    spill: Option<Spill>,
    sending: BytesMut,
    sent: Vec<u8>,
    next: Next,
}

impl<'a> Peer<'a> {
    fn new(room: usize, context: &'a Context<'a>) -> Peer<'a> {
        Peer {
            connection: Connection::new(Admission::Open),
            context,
            pinned: vec![0xee; HEADROOM + room],
            spill: None,
            sending: BytesMut::new(),
            sent: Vec::new(),
            next: Next::Receive,
        }
    }

    fn receive(&mut self, chunk: &[u8]) {
        if self.sending.is_empty() && self.spill.is_none() {
            let mut cursors = Cursors::received(chunk.len());
            self.pinned[HEADROOM..HEADROOM + chunk.len()].copy_from_slice(chunk);
            let region = &mut Region::new(&mut self.pinned, &mut cursors);
            self.next = self.connection.advance(region, self.context);
            if cursors.has_leftover() {
                self.spill = Some(Spill::leftover(&self.pinned, &mut cursors));
            }
            self.sending = BytesMut::from(&self.pinned[cursors.reply()]);
        } else {
            let spill = self.spill.get_or_insert_default();
            spill.append(chunk);
            self.next = self.connection.advance(&mut spill.region(), self.context);
            self.spill.take_if(|spill| spill.is_empty());
        }
        self.settle();
    }

    fn close(&mut self) {
        let spill = self.spill.get_or_insert_default();
        self.next = self.connection.close(CloseCode::GOING_AWAY, &mut spill.region(), self.context);
        self.spill.take_if(|spill| spill.is_empty());
        self.settle();
    }

    /// A send that is cut short after `octets`, with those that follow it.
    fn send(&mut self, mut octets: usize) {
        while octets > 0 && !self.sending.is_empty() {
            let count = octets.min(self.sending.len());
            self.sent.extend_from_slice(&self.sending[..count]);
            self.sending.advance(count);
            octets -= count;
            self.settle();
        }
    }

    fn settle(&mut self) {
        if self.sending.is_empty()
            && let Some(spill) = self.spill.take_if(|spill| spill.has_reply())
        {
            (self.sending, self.spill) = spill.split_reply();
        }
    }

    /// Octets of the answer so far, sent or not.
    fn answered(&self) -> usize {
        let waiting = self.spill.as_ref().map_or(0, Spill::reply_bytes);
        self.sent.len() + self.sending.len() + waiting
    }
}

/// What the server must do with a stream.
#[derive(Debug, Default)]
struct Verdict {
    answer: Vec<u8>,
    /// For each octet of the answer, how many octets must have been received before it is due.
    due: Vec<usize>,
    /// After how many octets the server has no more to say and closes.
    closed_at: Option<usize>,
    violation: Option<Violation>,
    messages: u64,
    /// Where the payloads of the binary frames stand in the stream.
    binary: Vec<Range<usize>>,
}

impl Verdict {
    fn say(&mut self, at: usize, octets: &[u8]) {
        self.answer.extend_from_slice(octets);
        self.due.resize(self.answer.len(), at);
    }

    fn end(self, at: usize, violation: Option<Violation>) -> Verdict {
        Verdict { closed_at: Some(at), violation, ..self }
    }

    fn fail(mut self, at: usize, violation: Violation) -> Verdict {
        let (_, code) = VIOLATIONS.into_iter().find(|entry| entry.0 == violation).expect("all");
        let payload = [&code.to_be_bytes(), violation.reason().as_bytes()].concat();
        self.say(at, &reply(CLOSE, &payload));
        self.end(at, Some(violation))
    }

    /// The verdict if the server begins to close after `close_at` octets.
    fn with_close(mut self, stream: &Stream, close_at: usize) -> Verdict {
        if close_at < stream.head {
            return Verdict::default().end(close_at, None);
        }
        if self.closed_at.is_some_and(|closed_at| closed_at <= close_at) {
            return self;
        }
        // The close frame cannot stand in a frame of which a part is sent.
        let inside = self.binary.iter().find(|payload| payload.contains(&close_at));
        let from = inside.map_or(close_at, |payload| payload.end);
        if from > stream.octets.len() {
            return self;
        }
        self.due.retain(|&due| due <= from);
        self.answer.truncate(self.due.len());
        self.say(from, &reply(CLOSE, &1001u16.to_be_bytes()));
        (self.closed_at, self.violation) = (None, None);
        // From here on only the peer's close frame matters, or what is no frame at all.
        let mut at = stream.head;
        loop {
            let frame = match parse(&stream.octets[at..]) {
                Ok(Some(frame)) if frame.is_whole() => frame,
                Ok(_) => return self,
                Err((octets, violation)) => return self.end(at + octets, Some(violation)),
            };
            at += frame.octets();
            if at > from && frame.opcode() == 8 {
                return self.end(at, None);
            }
        }
    }
}

/// The oracle.
fn judge(stream: &Stream) -> Verdict {
    let mut verdict = Verdict::default();
    let mut at = stream.head;
    if stream.octets.len() < at {
        return verdict;
    }
    verdict.say(at, &response(&stream.octets[..at]));
    // Whether the message is text, and all of it so far.
    let mut message: Option<(bool, Vec<u8>)> = None;
    loop {
        let frame = match parse(&stream.octets[at..]) {
            Ok(Some(frame)) => frame,
            Ok(None) => return verdict,
            Err((octets, violation)) => return verdict.fail(at + octets, violation),
        };
        if let Some((octets, violation)) = violation_in(&frame, &message, stream.message_max) {
            return verdict.fail(at + octets, violation);
        }
        let payload_at = at + frame.echo.len() + 4;
        let opcode = frame.opcode();
        let is_binary = opcode == 2 || opcode == 0 && matches!(message, Some((false, _)));
        if is_binary {
            verdict.say(payload_at, &frame.echo);
            for (place, octet) in frame.payload.iter().enumerate() {
                verdict.say(payload_at + place + 1, &[*octet]);
            }
            verdict.binary.push(payload_at..payload_at.saturating_add(frame.length as usize));
        }
        if !frame.is_whole() {
            return verdict;
        }
        at += frame.octets();
        match opcode {
            8 => {
                // The peer's code without its reason.
                verdict.say(at, &reply(CLOSE, &frame.payload[..frame.payload.len().min(2)]));
                return verdict.end(at, None);
            }
            9 => verdict.say(at, &reply(PONG, &frame.payload)),
            10 => {}
            _ => {
                if !is_binary {
                    verdict.say(at, &[&frame.echo[..], &frame.payload].concat());
                }
                message.get_or_insert((!is_binary, Vec::new())).1.extend(&frame.payload);
                if frame.is_final() {
                    verdict.messages += 1;
                    message = None;
                }
            }
        }
    }
}

/// A frame as far as it has been received.
struct Frame {
    /// The header that its echo has: without mask bit and key.
    echo: Vec<u8>,
    length: u64,
    payload: Vec<u8>,
}

impl Frame {
    fn opcode(&self) -> u8 {
        self.echo[0] & 0x0f
    }

    fn is_final(&self) -> bool {
        self.echo[0] & FIN != 0
    }

    fn is_whole(&self) -> bool {
        self.payload.len() as u64 == self.length
    }

    fn octets(&self) -> usize {
        self.echo.len() + 4 + self.payload.len()
    }
}

/// Takes a frame apart; or says after how many octets it is certain to be none.
fn parse(octets: &[u8]) -> Result<Option<Frame>, (usize, Violation)> {
    let Some(&first) = octets.first() else { return Ok(None) };
    let opcode = first & 0x0f;
    if first & 0x70 != 0 {
        return Err((1, Violation::ReservedBit));
    }
    if ![0, 1, 2, 8, 9, 10].contains(&opcode) {
        return Err((1, Violation::ReservedOpcode));
    }
    if opcode >= 8 && first < 0x80 {
        return Err((1, Violation::ControlFragmented));
    }
    let Some(&second) = octets.get(1) else { return Ok(None) };
    let Some(short) = second.checked_sub(128) else { return Err((2, Violation::Unmasked)) };
    if opcode >= 8 && short > 125 {
        return Err((2, Violation::ControlTooLong));
    }
    let extension = match short {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    let Some(extended) = octets.get(2..2 + extension) else { return Ok(None) };
    let length = match short {
        126 | 127 => extended.iter().fold(0, |length, &octet| length << 8 | u64::from(octet)),
        _ => u64::from(short),
    };
    let shortest = match length {
        0..=125 => 0,
        126..=65535 => 2,
        _ => 8,
    };
    if extension != shortest || length >= 1 << 63 {
        return Err((2 + extension, Violation::LengthEncoding));
    }
    let mut echo = octets[..2 + extension].to_vec();
    echo[1] = short;
    let Some((key, rest)) = octets[echo.len()..].split_at_checked(4) else { return Ok(None) };
    let masked = rest.iter().take(usize::try_from(length).expect("64 bits")).enumerate();
    let payload = masked.map(|(place, octet)| octet ^ key[place % 4]).collect();
    Ok(Some(Frame { echo, length, payload }))
}

/// What is wrong with a frame in its place, and after how many of its octets that is certain.
fn violation_in(
    frame: &Frame,
    message: &Option<(bool, Vec<u8>)>,
    message_max: u64,
) -> Option<(usize, Violation)> {
    let header = frame.echo.len() + 4;
    let (is_text, before) = match (frame.opcode(), message) {
        (0, None) => return Some((header, Violation::ContinuationUnexpected)),
        (1 | 2, Some(_)) => return Some((header, Violation::ContinuationExpected)),
        (8, _) if frame.is_whole() => return Some((frame.octets(), close_violation(frame)?)),
        (8.., _) => return None,
        (opcode, None) => (opcode == 1, &[][..]),
        (_, Some((is_text, before))) => (*is_text, &before[..]),
    };
    if before.len() as u64 + frame.length > message_max {
        return Some((header, Violation::MessageTooBig));
    }
    let text = [before, &frame.payload].concat();
    let error = std::str::from_utf8(&text).err().filter(|_| is_text)?;
    // The first octet with which the text has an error that no further octet can mend.
    let is_wrong = |&octets: &usize| {
        std::str::from_utf8(&text[..octets]).is_err_and(|error| error.error_len().is_some())
    };
    let place = (error.valid_up_to()..=text.len()).find(is_wrong);
    let end = (frame.is_whole() && frame.is_final()).then_some(text.len());
    Some((header + place.or(end)? - before.len(), Violation::TextNotUtf8))
}

fn close_violation(frame: &Frame) -> Option<Violation> {
    match frame.payload[..] {
        [] => None,
        [_] => Some(Violation::CloseTruncated),
        [high, low, ref reason @ ..] => match u16::from(high) * 256 + u16::from(low) {
            1000..=1003 | 1007..=1014 | 3000..=4999 => {
                std::str::from_utf8(reason).err().map(|_| Violation::CloseReasonNotUtf8)
            }
            _ => Some(Violation::CloseCodeInvalid),
        },
    }
}

fn response(request: &[u8]) -> Vec<u8> {
    let request = std::str::from_utf8(request).expect("the generator writes ASCII");
    let (_, key) = request.split_once("Sec-WebSocket-Key: ").expect("the generator writes a key");
    let key = key.split("\r\n").next().expect("a line");
    let mut digest = sha1_smol::Sha1::new();
    digest.update(format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11").as_bytes());
    let accept = BASE64.encode(digest.digest().bytes());
    support::RESPONSE.replace("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", &accept).into_bytes()
}

/// All that a client sends on a connection.
struct Stream {
    octets: Vec<u8>,
    /// Octets of the opening handshake.
    head: usize,
    message_max: u64,
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Stream { octets, head, message_max } = self;
        let frames = octets.get(*head..).unwrap_or_default();
        let shown = frames[..frames.len().min(120)].escape_ascii();
        write!(f, "{} octets, from {head} on {shown}, message_max {message_max}", octets.len())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Size {
    /// A few frames, most of them of less than twenty octets.
    Short,
    /// More frames, and lengths around all limits.
    Long,
    /// Few messages, each of more than the kernel keeps for a peer that does not read.
    Huge,
}

/// What a stream has somewhere, and what follows it counts for nothing.
#[derive(Debug, Clone, Copy)]
enum Ending {
    Close,
    Violation(Violation),
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

    /// A short stream of which so many octets are not the handshake.
    fn short(random: &mut Random, octets_max: usize) -> Stream {
        loop {
            let stream = Stream::any(random, Size::Short);
            if (stream.head..stream.head + octets_max).contains(&stream.octets.len()) {
                return stream;
            }
        }
    }

    fn random(random: &mut Random, size: Size, message_max: u64) -> Stream {
        let ending = match random.below(6) {
            0 => None,
            1 => Some(Ending::Close),
            _ => Some(Ending::Violation(random.pick(&VIOLATIONS).0)),
        };
        let mut author = Author { random, octets: Vec::new(), size, message_max, ending };
        author.handshake();
        let head = author.octets.len();
        for _ in 0..author.random.below(if size == Size::Long { 12 } else { 4 }) {
            author.message();
        }
        author.between(None);
        if let Some(ending) = author.ending.take() {
            author.end(ending, None);
            author.message();
        }
        let mut octets = author.octets;
        if random.one_in(8) {
            octets.truncate(random.below(octets.len()));
        } else if random.one_in(8) && octets.len() > head {
            let place = head + random.below(octets.len() - head);
            octets[place] ^= 1 << random.below(8);
        }
        Stream { octets, head, message_max }
    }
}

/// Writes a stream.
struct Author<'a> {
    random: &'a mut Random,
    octets: Vec<u8>,
    size: Size,
    message_max: u64,
    /// The ending, until it is written.
    ending: Option<Ending>,
}

impl Author<'_> {
    fn handshake(&mut self) {
        let key = BASE64.encode(self.random.octets(16));
        let request = support::REQUEST.replace("dGhlIHNhbXBsZSBub25jZQ==", &key);
        self.octets.extend(request.strip_suffix("\r\n").expect("a head").as_bytes());
        if self.size == Size::Long && self.random.one_in(2) {
            let filler = "x".repeat(self.random.below(7900));
            self.octets.extend(format!("Filler: {filler}\r\n").as_bytes());
        }
        self.octets.extend(b"\r\n");
    }

    /// A message in one to four fragments, cut anywhere.
    fn message(&mut self) {
        let limit = self.message_max as usize;
        let is_largest = limit < 100_000 && self.random.one_in(8);
        let octets = if is_largest { limit } else { self.length().min(limit) };
        let opcode = self.random.pick(&[TEXT, BINARY]) & !FIN;
        let is_text = opcode == TEXT & !FIN;
        let payload = if is_text { self.text(octets) } else { self.random.octets(octets) };
        let mut cuts = vec![0, octets];
        while self.random.one_in(2) && cuts.len() < 5 {
            cuts.push(self.random.below(octets + 1));
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

    fn end(&mut self, ending: Ending, message: Option<u8>) {
        match ending {
            Ending::Close => {
                let code = self.random.pick(&[1000u16, 1001, 1003, 1007, 1014, 3000, 4999]);
                let reason = self.control_payload().len().min(123);
                let reason = self.text(reason);
                let payload = [&code.to_be_bytes(), &reason[..]].concat();
                let payload = self.random.pick(&[&payload[..], &payload, &payload[..2], &[]]);
                self.frame(CLOSE, payload);
            }
            Ending::Violation(violation) => self.violate(violation, message),
        }
    }

    fn violate(&mut self, violation: Violation, message: Option<u8>) {
        use Violation::*;
        let octets = self.random.octets(5);
        let data = if message.is_some() { 0 } else { self.random.pick(&[TEXT, BINARY]) & !FIN };
        let control = self.random.pick(&[PING, PONG, CLOSE]);
        let (first, payload) = match violation {
            ReservedBit => (FIN | data | self.random.pick(&[0x10, 0x20, 0x40, 0x70]), octets),
            ReservedOpcode => {
                (FIN | self.random.pick(&[3, 4, 5, 6, 7, 11, 12, 13, 14, 15]), octets)
            }
            Unmasked => {
                let first = self.random.pick(&[FIN | data, control]);
                return self.octets.extend(reply(first, &octets));
            }
            LengthEncoding => {
                let length = match self.random.pick(&[0u64, 1, 125, 126, 65535, 1 << 63 | 70_000]) {
                    length @ 0..126 => [&[0xfe][..], &(length as u16).to_be_bytes()].concat(),
                    length => [&[0xff][..], &length.to_be_bytes()].concat(),
                };
                return self.octets.extend([&[FIN | data], &length[..], &octets].concat());
            }
            ControlFragmented => (control & !FIN, octets),
            ControlTooLong => (control, vec![7; self.random.pick(&[126, 127, 70_000])]),
            ContinuationUnexpected => (FIN, octets),
            ContinuationExpected => {
                self.frame(data, b"0");
                (self.random.pick(&[TEXT, BINARY]), octets)
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
            CompressedBitMisplaced | CompressionInvalid | Masked => {
                unreachable!("no stream here has agreed on compression, nor is it a server's")
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
                    self.header(FIN | data, limit + 1, [0; 4]);
                } else {
                    // This leaves one octet less than the next fragment says it has.
                    self.frame(data, b"0");
                    let length = self.random.pick(&[limit, i64::MAX as u64]);
                    self.header(0, length, [0; 4]);
                }
                return self.octets.extend(vec![b'0'; limit.min(300) as usize + 1]);
            }
        };
        self.frame(first, &payload);
    }

    fn frame(&mut self, first: u8, payload: &[u8]) {
        let key = if self.random.one_in(6) { 0 } else { self.random.next() as u32 };
        let key = key.to_be_bytes();
        self.header(first, payload.len() as u64, key);
        self.octets.extend(payload.iter().zip(key.iter().cycle()).map(|(octet, key)| octet ^ key));
    }

    fn header(&mut self, first: u8, length: u64, key: [u8; 4]) {
        self.octets.push(first);
        match length {
            0..126 => self.octets.push(0x80 | length as u8),
            126..0x1_0000 => {
                self.octets.push(0xfe);
                self.octets.extend((length as u16).to_be_bytes());
            }
            _ => {
                self.octets.push(0xff);
                self.octets.extend(length.to_be_bytes());
            }
        }
        self.octets.extend(key);
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
        self.random.octets(length)
    }

    /// Text of so many octets: ASCII, or the first and last characters of each length.
    fn text(&mut self, octets: usize) -> Vec<u8> {
        let characters = match self.random.below(3) {
            0 => "aZ \0\u{7f}",
            _ => "a\u{80}\u{7ff}\u{800}\u{d7ff}\u{e000}\u{ffff}\u{10000}\u{10ffff}é水🦀",
        };
        let characters: Vec<char> = characters.chars().collect();
        let mut text = String::new();
        while text.len() < octets {
            let character = self.random.pick(&characters);
            let fits = text.len() + character.len_utf8() <= octets;
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
                        let verdict = judge(&stream);
                        converse(&server, &stream, &verdict, &mut case.random);
                        violations += u64::from(verdict.violation.is_some());
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
    // Whoever reads late, and much, makes the server's sends fall short.
    let is_slow = stream.octets.len() > 4 << 20 || random.one_in(3);
    let mut socket = client.stream().try_clone().expect("a descriptor");
    let cuts = random.cuts(stream.octets.len());
    let mut pauses = Random(random.next());
    let ends = verdict.closed_at.is_none() || random.one_in(2);
    let answer = thread::scope(|scope| {
        scope.spawn(move || {
            let mut from = 0;
            for &cut in cuts.iter().chain([&stream.octets.len()]) {
                socket.write_all(&stream.octets[from..cut]).expect("the server reads to the end");
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
            thread::sleep(Duration::from_nanos(50 * stream.octets.len() as u64));
        }
        client.read_to_end()
    });
    let answer = answer.unwrap_or_else(|error| panic!("no FIN but {error}; {stream:?}"));
    assert_same(&answer, &verdict.answer, || format!("{stream:?}"));
}

/// A test of a random stream. Its failure prints how to repeat it.
struct Case {
    test: &'static str,
    seed: u64,
    random: Random,
}

impl Drop for Case {
    fn drop(&mut self) {
        if thread::panicking() {
            let Case { test, seed, .. } = self;
            eprintln!("repeat: RINGECHO_SEED={seed} cargo test --test properties {test}");
        }
    }
}

/// So many cases of `test`. The seed of the first is that of the run, so that any of them can be
/// made the first.
fn cases(test: &'static str, count: usize) -> impl Iterator<Item = Case> + Send {
    let run = match std::env::var("RINGECHO_SEED") {
        Ok(seed) => seed.parse().expect("RINGECHO_SEED is a number"),
        Err(_) => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970");
            now.as_nanos() as u64 % 1_000_000_000_000
        }
    };
    println!("{test}: RINGECHO_SEED={run}");
    (0..count).map(move |number| {
        let seed = run.wrapping_add(number as u64);
        Case { test, seed, random: Random(seed) }
    })
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    fn octets(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next() as u8).collect()
    }

    fn sends(&mut self) -> Sends {
        match self.below(4) {
            0 => Sends::Whole,
            1 => Sends::Never,
            _ => Sends::Random(self.next()),
        }
    }

    /// Where to cut a stream of `octets`: into a few pieces, or into many small ones.
    fn cuts(&mut self, octets: usize) -> Vec<usize> {
        let most = self.pick(&[3, 40, 700, 5000, 100_000]).max(octets / 2000);
        let mut cuts = Vec::new();
        let mut at = 0;
        loop {
            at += 1 + self.below(most);
            if at >= octets {
                return cuts;
            }
            cuts.push(at);
        }
    }
}
