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
use std::fmt::Debug;
use std::io::Write as _;
use std::net::Shutdown;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::{Buf as _, BytesMut};
use ringecho::buffer::{Cursors, HEADROOM, Region, Spill};
use ringecho::metrics::Counters;
use ringecho::protocol::close::CloseCode;
use ringecho::protocol::violation::Violation;
use ringecho::protocol::{Admission, Connection, Context, Next};
use support::{BINARY, CLOSE, Client, FIN, PING, PONG, Server, TEXT, reply};

/// Octets that a region has behind its headroom.
const ROOMS: [usize; 4] = [16, 64, 1024, 16384];
const MESSAGE_MAX: u64 = 1 << 20;
const VIOLATIONS: [Violation; 13] = [
    Violation::ReservedBit,
    Violation::ReservedOpcode,
    Violation::Unmasked,
    Violation::LengthEncoding,
    Violation::ControlFragmented,
    Violation::ControlTooLong,
    Violation::ContinuationUnexpected,
    Violation::ContinuationExpected,
    Violation::TextNotUtf8,
    Violation::CloseTruncated,
    Violation::CloseCodeInvalid,
    Violation::CloseReasonNotUtf8,
    Violation::MessageTooBig,
];

#[test]
fn every_chunking_of_short_streams() {
    let mut seen = HashSet::new();
    for mut case in cases("every_chunking_of_short_streams", 130) {
        // Each violation in turn, so that no run misses one.
        let trouble = VIOLATIONS[case.number % VIOLATIONS.len()];
        let stream = if case.number < 3 * VIOLATIONS.len() {
            Stream::random(&mut case.random, Size::Short, MESSAGE_MAX, Ending::Violation(trouble))
        } else {
            Stream::short(&mut case.random)
        };
        let verdict = judge(&stream, None);
        seen.extend(verdict.violation.map(|violation| format!("{violation:?}")));
        let end = stream.octets.len();
        let room = ROOMS[case.number % ROOMS.len()];
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
    assert_eq!(seen.len(), VIOLATIONS.len(), "of all violations the generator made {seen:?}");
}

#[test]
fn octet_by_octet_everything_is_said_as_soon_as_it_is_certain() {
    for mut case in cases("octet_by_octet", 1500) {
        let stream = Stream::any(&mut case.random, Size::Short);
        let verdict = judge(&stream, None);
        let cuts: Vec<usize> = (1..stream.octets.len()).collect();
        let sends = case.random.sends();
        for room in ROOMS {
            check(&stream, &verdict, Way { room, cuts: &cuts, sends, close_at: None });
        }
    }
}

#[test]
fn random_chunkings_of_long_streams() {
    for mut case in cases("random_chunkings", 400) {
        let stream = Stream::any(&mut case.random, Size::Long);
        let verdict = judge(&stream, None);
        for room in ROOMS {
            let cuts = case.random.cuts(stream.octets.len());
            let sends = case.random.sends();
            check(&stream, &verdict, Way { room, cuts: &cuts, sends, close_at: None });
        }
    }
}

#[test]
fn the_server_may_close_at_any_octet() {
    for mut case in cases("the_server_may_close", 300) {
        let stream = Stream::any(&mut case.random, Size::Short);
        for close_at in 0..=stream.octets.len() {
            let verdict = judge(&stream, Some(close_at));
            let mut cuts = case.random.cuts(stream.octets.len());
            cuts.push(close_at);
            cuts.sort_unstable();
            let (room, sends) = (case.random.pick(&ROOMS), case.random.sends());
            check(&stream, &verdict, Way { room, cuts: &cuts, sends, close_at: Some(close_at) });
        }
    }
}

#[test]
fn the_server_with_two_small_buffers_answers_over_sockets() {
    over_sockets("with_two_small_buffers", &["--buffers", "2", "--buffer-size", "1KiB"]);
}

#[test]
fn the_server_with_its_defaults_answers_over_sockets() {
    over_sockets("with_its_defaults", &[]);
}

/// The examples of RFC 6455 sections 1.3 and 5.7.
#[test]
fn the_oracle_knows_the_examples_of_the_standard() {
    let mut octets = support::REQUEST.as_bytes().to_vec();
    let head = octets.len();
    octets.extend(b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58");
    let stream = Stream { octets, head, message_max: 5 };
    let verdict = judge(&stream, None);
    let expected = [support::RESPONSE.as_bytes(), b"\x81\x05Hello"].concat();
    assert_eq!(verdict.answer, expected);
    assert_eq!(
        (verdict.due[expected.len() - 8], verdict.due[expected.len() - 7]),
        (head, head + 11)
    );
    assert_eq!((verdict.closed_at, verdict.messages), (None, 1));
}

/// A way to feed a stream.
#[derive(Debug, Clone, Copy)]
struct Way<'a> {
    /// Octets that a pinned buffer takes.
    room: usize,
    /// Where the stream is cut, in ascending order.
    cuts: &'a [usize],
    sends: Sends,
    /// The server begins to close after so many octets, at which there is a cut.
    close_at: Option<usize>,
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
    let context = Context { message_max: stream.message_max, counters: &counters };
    let mut peer = Peer::new(way.room, &context);
    let mut random = Random(if let Sends::Random(seed) = way.sends { seed } else { 0 });
    let end = stream.octets.len();
    let mut received = 0;
    if way.close_at == Some(0) {
        peer.close();
    }
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
                    "after {received} octets {} are answered and not {due}, {:?} follows; {way:?} \
                     of {stream:?}",
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
    assert_same(&peer.sent, &verdict.answer, || format!("{way:?} of {stream:?}"));
    assert!(
        verdict.closed_at.is_none() || peer.spill.is_none(),
        "a closed connection keeps memory"
    );
    assert_eq!(counters.messages.value(), verdict.messages, "messages");
    let violations = u64::from(verdict.violation.is_some());
    assert_eq!(counters.protocol_violations.value(), violations, "violations");
}

fn assert_same(answer: &[u8], expected: &[u8], of: impl Fn() -> String) {
    if answer == expected {
        return;
    }
    let same = answer.iter().zip(expected).take_while(|(left, right)| left == right).count();
    let shown = |octets: &[u8]| {
        octets[same..].escape_ascii().to_string().split_at_checked(300).map_or_else(
            || octets[same..].escape_ascii().to_string(),
            |(start, _)| start.to_owned(),
        )
    };
    panic!(
        "the answer of {} octets, where {} are expected, goes wrong at {same}\n  it is {}\n  not \
         {}\n{}",
        answer.len(),
        expected.len(),
        shown(answer),
        shown(expected),
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
        let waiting = self.spill.as_ref().map_or(0, Spill::reply_octets);
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
}

impl Verdict {
    fn say(&mut self, at: usize, octets: &[u8]) {
        self.answer.extend_from_slice(octets);
        self.due.resize(self.answer.len(), at);
    }

    fn say_close(&mut self, at: usize, code: u16, reason: &str) {
        self.say(at, &reply(CLOSE, &[&code.to_be_bytes(), reason.as_bytes()].concat()));
    }

    fn end(mut self, at: usize, violation: Option<Violation>) -> Verdict {
        self.closed_at = Some(at);
        self.violation = violation;
        self
    }
}

/// A frame as far as it has been received.
struct Frame {
    first: u8,
    header: usize,
    length: u64,
    payload: Vec<u8>,
}

impl Frame {
    fn is_whole(&self) -> bool {
        self.payload.len() as u64 == self.length
    }

    fn is_final(&self) -> bool {
        self.first & FIN != 0
    }

    /// What it looks like from the server, but for an end that is still missing.
    fn echo(&self, first: u8) -> Vec<u8> {
        let mut octets = reply(first, &self.payload);
        if !self.is_whole() {
            octets = reply(first, &vec![0; self.length.min(1 << 20) as usize]);
            octets.truncate(self.header - 4);
            octets.extend(&self.payload);
        }
        octets
    }
}

/// The oracle. With `close_at` the server closes by itself after so many octets.
fn judge(stream: &Stream, close_at: Option<usize>) -> Verdict {
    let mut verdict = Verdict::default();
    let mut close_at = close_at.unwrap_or(usize::MAX);
    let end = stream.octets.len();
    if close_at < stream.head {
        return verdict.end(close_at, None);
    }
    if end < stream.head {
        return verdict;
    }
    verdict.say(stream.head, &response(&stream.octets[..stream.head]));
    // Whether the message is text, and all of it so far.
    let mut message: Option<(bool, Vec<u8>)> = None;
    let mut is_closing = false;
    let mut at = stream.head;
    loop {
        let parsed = parse(&stream.octets[at..]);
        let mut violated = match &parsed {
            Ok(Some(frame)) => violation_in(frame, message.as_ref(), stream.message_max),
            Ok(None) => None,
            &Err((octets, violation)) => Some((octets, violation)),
        };
        let is_binary = match &parsed {
            Ok(Some(Frame { first, .. })) => match first & 0x0f {
                0 => matches!(message, Some((false, _))),
                opcode => opcode == 2,
            },
            Ok(None) | Err(_) => false,
        };
        // The server's close goes before the frame, until the frame has had an effect.
        let effect = match (&parsed, violated) {
            (_, Some((octets, _))) => at + octets,
            (Ok(Some(frame)), None) if is_binary => at + frame.header,
            (Ok(Some(frame)), None) if frame.is_whole() => at + frame.header + frame.payload.len(),
            (Ok(_) | Err(_), None) => usize::MAX,
        };
        if close_at < effect {
            verdict.say_close(close_at, 1001, "");
            is_closing = true;
            close_at = usize::MAX;
        }
        if is_closing {
            // Only the peer's close frame matters, or what is no frame at all.
            violated = parsed.as_ref().err().copied();
        }
        if let Some((octets, violation)) = violated {
            if !is_closing {
                verdict.say_close(at + octets, code_of(violation), violation.reason());
            }
            return verdict.end(at + octets, Some(violation));
        }
        let Ok(Some(frame)) = parsed else { return verdict };
        let payload_at = at + frame.header;
        at = payload_at + frame.payload.len();
        let opcode = frame.first & 0x0f;
        if is_binary && !is_closing {
            let echo = frame.echo(frame.first);
            let (header, payload) = echo.split_at(echo.len() - frame.payload.len());
            verdict.say(payload_at, header);
            for (place, octet) in payload.iter().enumerate() {
                verdict.say(payload_at + place + 1, &[*octet]);
            }
        }
        if !frame.is_whole() {
            return verdict;
        }
        match opcode {
            8 if is_closing => return verdict.end(at, None),
            8 => {
                // The peer's code without its reason.
                verdict.say(at, &reply(CLOSE, &frame.payload[..frame.payload.len().min(2)]));
                return verdict.end(at, None);
            }
            _ if is_closing => continue,
            9 => verdict.say(at, &reply(PONG, &frame.payload)),
            10 => {}
            _ => {
                let (_, octets) = message.get_or_insert((opcode == 1, Vec::new()));
                octets.extend(&frame.payload);
                if !is_binary {
                    verdict.say(at, &frame.echo(frame.first));
                }
                if frame.is_final() {
                    verdict.messages += 1;
                    message = None;
                }
            }
        }
        if close_at < at {
            verdict.say_close(at, 1001, "");
            is_closing = true;
            close_at = usize::MAX;
        }
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
    let header = 2 + extension + 4;
    let Some(key) = octets.get(header - 4..header) else { return Ok(None) };
    let rest = &octets[header..];
    let masked = &rest[..rest.len().min(length.try_into().unwrap_or(usize::MAX))];
    let payload = masked.iter().enumerate().map(|(place, octet)| octet ^ key[place % 4]).collect();
    Ok(Some(Frame { first, header, length, payload }))
}

/// What is wrong with a frame in its place, and after how many of its octets that is certain.
fn violation_in(
    frame: &Frame,
    message: Option<&(bool, Vec<u8>)>,
    message_max: u64,
) -> Option<(usize, Violation)> {
    let opcode = frame.first & 0x0f;
    let whole = frame.header + frame.payload.len();
    match (opcode, message) {
        (0, None) => return Some((frame.header, Violation::ContinuationUnexpected)),
        (1 | 2, Some(_)) => return Some((frame.header, Violation::ContinuationExpected)),
        (8, _) if frame.is_whole() => {
            return close_violation(&frame.payload).map(|violation| (whole, violation));
        }
        (8.., _) => return None,
        _ => {}
    }
    let before = message.map_or(&[][..], |(_, octets)| octets);
    if before.len() as u128 + u128::from(frame.length) > u128::from(message_max) {
        return Some((frame.header, Violation::MessageTooBig));
    }
    if opcode == 2 || matches!(message, Some((false, _))) {
        return None;
    }
    let text = [before, &frame.payload].concat();
    let error = std::str::from_utf8(&text).err()?;
    // The first octet with which the text has an error that no further octet can mend.
    let is_wrong = |&octets: &usize| {
        std::str::from_utf8(&text[..octets]).is_err_and(|error| error.error_len().is_some())
    };
    let from = error.valid_up_to() + 1;
    if let Some(octets) = (from..=text.len().min(from + 3)).find(is_wrong) {
        return Some((frame.header + octets - before.len(), Violation::TextNotUtf8));
    }
    (frame.is_whole() && frame.is_final()).then_some((whole, Violation::TextNotUtf8))
}

fn close_violation(payload: &[u8]) -> Option<Violation> {
    let [high, low, reason @ ..] = payload else {
        return (payload.len() == 1).then_some(Violation::CloseTruncated);
    };
    match u16::from(*high) * 256 + u16::from(*low) {
        1000..=1003 | 1007..=1014 | 3000..=4999 => {
            std::str::from_utf8(reason).err().map(|_| Violation::CloseReasonNotUtf8)
        }
        _ => Some(Violation::CloseCodeInvalid),
    }
}

fn code_of(violation: Violation) -> u16 {
    match violation {
        Violation::TextNotUtf8 | Violation::CloseReasonNotUtf8 => 1007,
        Violation::MessageTooBig => 1009,
        Violation::ReservedBit
        | Violation::ReservedOpcode
        | Violation::Unmasked
        | Violation::LengthEncoding
        | Violation::ControlFragmented
        | Violation::ControlTooLong
        | Violation::ContinuationUnexpected
        | Violation::ContinuationExpected
        | Violation::CloseTruncated
        | Violation::CloseCodeInvalid => 1002,
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

impl Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Stream { octets, head, message_max } = self;
        let frames = octets.get(*head..).unwrap_or_default();
        let shown = frames[..frames.len().min(400)].escape_ascii();
        write!(f, "{} octets, from {head} on {shown}, message_max {message_max}", octets.len())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Size {
    /// A few frames, most of them of less than twenty octets.
    Short,
    /// More frames, and lengths around all limits.
    Long,
}

/// What becomes of a stream, unless chance has it otherwise.
#[derive(Debug, Clone, Copy)]
enum Ending {
    /// The client stops between two frames.
    Frame,
    /// The client stops anywhere.
    Anywhere,
    Close,
    Violation(Violation),
    /// One octet is another.
    Damage,
}

impl Stream {
    fn any(random: &mut Random, size: Size) -> Stream {
        let message_max = match random.below(4) {
            0 => random.pick(&[1, 16, 125, 126, 300, 5000, 65535, 65536]),
            _ => MESSAGE_MAX,
        };
        let ending = random.ending();
        Stream::random(random, size, message_max, ending)
    }

    /// A stream of which all pairs of cuts can be tried.
    fn short(random: &mut Random) -> Stream {
        loop {
            let stream = Stream::any(random, Size::Short);
            if stream.octets.len() < stream.head + 90 {
                return stream;
            }
        }
    }

    fn random(random: &mut Random, size: Size, message_max: u64, ending: Ending) -> Stream {
        let mut author = Author { random, octets: Vec::new(), size, message_max, trouble: None };
        author.handshake();
        let head = author.octets.len();
        let mut messages = author.random.below(if size == Size::Short { 3 } else { 12 });
        match ending {
            Ending::Close | Ending::Violation(_) => author.trouble = Some(ending),
            Ending::Frame | Ending::Anywhere | Ending::Damage => messages += 1,
        }
        for _ in 0..messages {
            author.message();
        }
        author.between(None);
        if let Some(trouble) = author.trouble.take() {
            author.make(trouble, None);
        }
        if author.random.one_in(4) {
            author.message();
        }
        let mut octets = author.octets;
        match ending {
            Ending::Anywhere => octets.truncate(1 + random.below(octets.len())),
            Ending::Damage => {
                let place = head + random.below(octets.len() - head);
                octets[place] ^= 1 << random.below(8);
            }
            Ending::Frame | Ending::Close | Ending::Violation(_) => {}
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
    /// The close or the violation that the stream is still to have.
    trouble: Option<Ending>,
}

impl Author<'_> {
    fn handshake(&mut self) {
        let key = BASE64.encode(self.random.octets(16));
        let field = match self.random.below(8) {
            0 => format!("X: {}\r\n", "x".repeat(self.random.below(7900))),
            _ => String::new(),
        };
        let request = support::REQUEST.replace("dGhlIHNhbXBsZSBub25jZQ==", &key);
        let request = request.replace("Sec-WebSocket-Key", &format!("{field}Sec-WebSocket-Key"));
        self.octets.extend(request.as_bytes());
    }

    /// A message in one to four fragments, cut anywhere.
    fn message(&mut self) {
        let mut octets = self.length();
        if self.message_max < 100_000 && self.random.one_in(3) {
            octets = self.message_max as usize;
        }
        let opcode = self.random.pick(&[TEXT & !FIN, BINARY & !FIN]);
        let payload = match opcode | FIN {
            TEXT => self.text(octets),
            _ => self.random.octets(octets),
        };
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

    /// What may stand between two frames, or the trouble; `message` is the one that is unfinished.
    fn between(&mut self, message: Option<u8>) {
        while self.random.one_in(4) {
            let opcode = self.random.pick(&[PING, PONG]);
            let octets = self.control_length();
            let payload = self.random.octets(octets);
            self.frame(opcode, &payload);
        }
        if self.random.one_in(4)
            && let Some(trouble) = self.trouble.take()
        {
            self.make(trouble, message);
        }
    }

    fn make(&mut self, trouble: Ending, message: Option<u8>) {
        let some = self.random.octets(3);
        match trouble {
            Ending::Violation(violation) => self.violate(violation, message),
            Ending::Close | Ending::Frame | Ending::Anywhere | Ending::Damage => {
                let code = self.random.pick(&[1000u16, 1001, 1003, 1007, 1014, 3000, 4999]);
                let octets = self.control_length().min(123);
                let reason = self.text(octets);
                let payload = [&code.to_be_bytes(), &reason[..]].concat();
                let is_empty = self.random.one_in(4);
                self.frame(CLOSE, if is_empty { &[] } else { &payload });
                if self.random.one_in(4) {
                    self.octets.extend(some);
                }
            }
        }
    }

    fn violate(&mut self, violation: Violation, message: Option<u8>) {
        let payload = self.random.octets(5);
        // Data that may stand here.
        let data = if message.is_some() { FIN } else { self.random.pick(&[TEXT, BINARY]) };
        match violation {
            Violation::ReservedBit => {
                let bits = self.random.pick(&[0x10, 0x20, 0x40, 0x70]);
                self.frame(data | bits, &payload);
            }
            Violation::ReservedOpcode => {
                let opcode = self.random.pick(&[3, 4, 5, 6, 7, 11, 12, 13, 14, 15]);
                self.frame(FIN | opcode, &payload);
            }
            Violation::Unmasked => {
                let first = self.random.pick(&[data, PING, CLOSE]);
                self.octets.extend(reply(first, b"bare"));
            }
            Violation::LengthEncoding => {
                let length: &[u8] = self.random.pick(&[
                    b"\xfe\x00\x7d",
                    b"\xfe\x00\x00",
                    b"\xff\x00\x00\x00\x00\x00\x00\xff\xff",
                    b"\xff\x80\x00\x00\x00\x00\x01\x00\x00",
                ]);
                self.octets.push(data);
                self.octets.extend(length);
                self.octets.extend(payload);
            }
            Violation::ControlFragmented => {
                let opcode = self.random.pick(&[PING, PONG, CLOSE]);
                self.frame(opcode & !FIN, &payload);
            }
            Violation::ControlTooLong => {
                let opcode = self.random.pick(&[PING, PONG, CLOSE]);
                let octets = self.random.pick(&[126, 127, 65536]);
                self.header(opcode, octets, [1, 2, 3, 4]);
                self.octets.extend(payload);
            }
            Violation::ContinuationUnexpected => self.frame(FIN, &payload),
            Violation::ContinuationExpected => {
                self.frame(TEXT & !FIN, b"text");
                self.frame(self.random_data(), &payload);
            }
            Violation::TextNotUtf8 if message == Some(BINARY & !FIN) => {
                self.trouble = Some(Ending::Violation(violation));
            }
            Violation::TextNotUtf8 => {
                let octets = self.random.below(9);
                let mut text = self.text(octets);
                text.extend(self.random.pick(&ILL_FORMED));
                if self.random.one_in(2) {
                    text.extend(b"more");
                }
                let at = self.random.below(text.len() + 1);
                self.frame(if message.is_some() { 0 } else { TEXT & !FIN }, &text[..at]);
                self.frame(FIN, &text[at..]);
            }
            Violation::CloseTruncated => self.frame(CLOSE, &[3]),
            Violation::CloseCodeInvalid => {
                let codes = [0u16, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535];
                let code = self.random.pick(&codes);
                self.frame(CLOSE, &code.to_be_bytes());
            }
            Violation::CloseReasonNotUtf8 => {
                let reason = self.random.pick(&ILL_FORMED);
                self.frame(CLOSE, &[&[3, 232], reason].concat());
            }
            Violation::MessageTooBig => {
                let claimed = match self.random.below(3) {
                    0 => i64::MAX as u64,
                    _ => self.message_max + 1,
                };
                if message.is_none() && self.random.one_in(2) {
                    // Each fragment would fit.
                    self.frame(data & !FIN, b"1");
                    self.header(FIN, self.message_max.max(1), [0; 4]);
                } else {
                    self.header(data, claimed, [0; 4]);
                }
                self.octets.extend(payload);
            }
        }
    }

    fn random_data(&self) -> u8 {
        if self.octets.len().is_multiple_of(2) { TEXT } else { BINARY }
    }

    fn frame(&mut self, first: u8, payload: &[u8]) {
        let key = match self.random.below(6) {
            0 => [0; 4],
            _ => self.random.next().to_be_bytes()[..4].try_into().expect("four"),
        };
        self.header(first, payload.len() as u64, key);
        self.octets.extend(payload.iter().zip(key.iter().cycle()).map(|(octet, key)| octet ^ key));
    }

    fn header(&mut self, first: u8, octets: u64, key: [u8; 4]) {
        self.octets.push(first);
        match octets {
            0..126 => self.octets.push(0x80 | octets as u8),
            126..0x1_0000 => {
                self.octets.push(0xfe);
                self.octets.extend((octets as u16).to_be_bytes());
            }
            _ => {
                self.octets.push(0xff);
                self.octets.extend(octets.to_be_bytes());
            }
        }
        self.octets.extend(key);
    }

    fn length(&mut self) -> usize {
        let short = [0, 1, 2, 3, 4, 7, 8, 9, 12, 15, 16, 17];
        let limits = [125, 126, 127, 512, 1024, 4096, 15872, 16384, 65535, 65536];
        match self.size {
            Size::Short if self.random.one_in(16) => self.random.pick(&[125, 126, 127]),
            Size::Short => self.random.pick(&short),
            Size::Long => match self.random.below(40) {
                0..10 => self.random.pick(&short),
                10..20 => self.random.below(300),
                // With the header and what stands before it a little less fills a buffer.
                20..30 => self.random.pick(&limits) + 2 - self.random.below(20),
                30..39 => self.random.pick(&limits),
                _ => self.random.below(300_000),
            },
        }
    }

    fn control_length(&mut self) -> usize {
        match self.size {
            Size::Short => self.random.below(5),
            Size::Long => self.random.pick(&[0, 1, 4, 15, 16, 17, 64, 124, 125]),
        }
    }

    /// Text of so many octets: ASCII, or the first and last characters of each length.
    fn text(&mut self, octets: usize) -> Vec<u8> {
        let characters: &[&str] = match self.random.below(3) {
            0 => &["a", "Z", " ", "\0", "\x7f"],
            _ => &[
                "a",
                "é",
                "水",
                "🦀",
                "\u{80}",
                "\u{7ff}",
                "\u{800}",
                "\u{d7ff}",
                "\u{e000}",
                "\u{ffff}",
                "\u{10000}",
                "\u{10ffff}",
            ],
        };
        let mut text = Vec::with_capacity(octets);
        while text.len() < octets {
            let character = self.random.pick(characters).as_bytes();
            let fits = text.len() + character.len() <= octets;
            text.extend(if fits { character } else { b"a" });
        }
        text
    }
}

/// Octets that are no UTF-8, or no whole character.
const ILL_FORMED: [&[u8]; 12] = [
    b"\x80",
    b"\xbf",
    b"\xc0\x80",
    b"\xc3",
    b"\xe0\x9f\xbf",
    b"\xe6\xb0",
    b"\xed\xa0\x80",
    b"\xf0\x8f\xbf\xbf",
    b"\xf0\x9f\xa6",
    b"\xf4\x90\x80\x80",
    b"\xf5",
    b"\xff",
];

/// Starts the server with `arguments` and compares its answers on eight connections at a time.
fn over_sockets(test: &'static str, arguments: &[&str]) {
    let message_max = 300_000;
    let limit = message_max.to_string();
    let server = Server::start(&[arguments, &["--message-max", &limit]].concat());
    let cases = Mutex::new(cases(test, 200));
    let next = || cases.lock().ok()?.next();
    let violations: u64 = thread::scope(|scope| {
        let clients: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    let mut violations = 0;
                    while let Some(mut case) = next() {
                        let size = case.random.pick(&[Size::Short, Size::Long, Size::Long]);
                        let ending = case.random.ending();
                        let stream = Stream::random(&mut case.random, size, message_max, ending);
                        let verdict = judge(&stream, None);
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
    if random.one_in(3) {
        // With so little room the server cannot send a long reply in one piece.
        rustix::net::sockopt::set_socket_recv_buffer_size(client.stream(), 4096)
            .expect("an option");
    }
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
        client.read_to_end()
    });
    let answer = answer.unwrap_or_else(|error| panic!("no FIN but {error}; {stream:?}"));
    assert_same(&answer, &verdict.answer, || format!("{stream:?}"));
}

/// A test of a random stream. Its failure prints how to repeat it.
struct Case {
    test: &'static str,
    seed: u64,
    number: usize,
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
        Case { test, seed, number, random: Random(seed) }
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

    fn ending(&mut self) -> Ending {
        match self.below(8) {
            0 => Ending::Frame,
            1 => Ending::Anywhere,
            2 => Ending::Close,
            3 => Ending::Damage,
            _ => Ending::Violation(self.pick(&VIOLATIONS)),
        }
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
