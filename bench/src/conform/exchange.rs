//! One end of a connection that carries out a case: bytes in, bytes and deadlines out.
//!
//! It does no input or output and reads no clock; [`super::driver`] moves the bytes. So it runs over
//! TCP, over a stream of HTTP/2 as well, and in tests over nothing, with a clock that the test moves.
//! It begins after the opening handshake, unless that is what the case tests.
//!
//! Whatever the peer does, it comes to an end: every wait has a deadline, and so has the whole.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use ringecho::protocol::violation::Violation;

use super::case::{
    BINARY, CLOSE, CONTINUATION, Case, Chop, Content, End, Expected, Frame, Header, Limit, NORMAL,
    Needs, PING, PONG, RoundTrips, Sends, Step, TEXT, Weight,
};
use super::deflate::{Echo, Echoes, Library, Offer, Parts, StreamOf, Terms};
use super::frames::{self, Reader, Received, Rules};
use super::head::{self, Connection, Response};
use super::transcript::{Event, Rounds, Transcript, shown};
use super::verdict::are_all;
use crate::opening::Handshake;
use crate::random::Random;
use crate::session::Form;
use crate::socket::Sealing;
use crate::wire::{AtLimit, Entry, Octets, hexadecimal};

/// How long the peer may take to answer a close frame, and a server then to end the connection.
pub const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long round trips may stand still, with no byte sent or received, before the time is over.
pub const STALL_TIMEOUT: Duration = Duration::from_secs(20);
/// The close code of a connection that was failed because the peer did nothing (RFC 6455 section
/// 7.4.1).
const GOING_AWAY: u16 = 1001;
/// The bit that marks the first frame of a compressed message (RFC 7692 section 6).
const COMPRESSED: u8 = 0x40;
/// Bytes that a message may have beyond twice the longest of the case. No echo is longer.
const EXCESS_MAX: usize = 1 << 20;
/// Lines of the wire log. A peer that sends without end makes as many as it likes.
const LOG_LINES_MAX: usize = 2000;
/// Events that are kept, and bytes of messages. No case expects as many.
const EVENTS_MAX: usize = 1 << 16;
const EVENT_BYTES_MAX: usize = 64 << 20;
/// Pings that are kept. They do not count as answers.
const PINGS_MAX: usize = 1000;

/// Which end of the connection this program is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It tests a server.
    Client,
    /// It tests a client.
    Server,
}

/// What a connection is like after its opening handshake.
#[derive(Debug, Clone, Copy)]
pub struct Opened<'a> {
    /// Which end this is.
    pub role: Role,
    /// What was agreed on compression.
    pub terms: Option<Terms>,
    /// What was received behind the handshake.
    pub received: &'a [u8],
    /// The seed of masking keys.
    pub seed: u64,
}

/// What has to be done next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// Send [`Exchange::chop`] in one piece, and tell [`Exchange::sent`]. If there is no room until
    /// then, ask again.
    Send(Instant),
    /// Receive into [`Exchange::room`], and tell [`Exchange::received`]. If nothing comes until then,
    /// ask again.
    Receive(Instant),
    /// End the sending direction, and tell [`Exchange::half_closed`].
    End,
    /// End the connection; then it is over.
    Drop,
    /// Reset the connection; then it is over.
    Reset,
    /// Seal otherwise from now on.
    Seal(Sealing),
    /// It is over.
    Nothing,
}

/// How the peer ended the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// In order.
    Closed,
    /// By a reset, or it was lost otherwise.
    Reset,
    /// In order, but TLS did not say so before.
    Unsaid,
    /// By an alert of TLS.
    Alert,
}

/// How far the closing handshake is (RFC 6455 section 7.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The response to the request, which is what is tested, is to come.
    Opening,
    Open,
    /// This side has sent a close frame, the peer has not.
    CloseSent,
    /// Both have.
    Closed,
    /// The connection is to be ended by this side.
    Dropping,
    /// The same by a reset.
    Resetting,
    Over,
}

/// How far the end of the sending direction is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sending {
    On,
    /// It is to end when everything was sent.
    Ending,
    Ended,
}

/// What the deadline is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Timer {
    Pause(char),
    Limit,
    CloseReply,
    ServerDrop,
}

/// A message whose fragments are arriving.
#[derive(Debug, Default)]
struct Message {
    form: Option<Form>,
    is_compressed: bool,
    payload: Vec<u8>,
}

/// Messages that are sent one after the other.
#[derive(Debug)]
struct Trips<'a> {
    trips: &'a RoundTrips,
    supply: Supply<'a>,
    /// How many were sent.
    sent: u32,
}

/// Where messages come from.
#[derive(Debug)]
enum Supply<'a> {
    Same(Vec<u8>),
    Of(Parts<'a>, StreamOf),
}

/// A case on a connection.
#[derive(Debug)]
pub struct Exchange<'a> {
    case: &'a Case,
    library: &'a Library,
    role: Role,
    terms: Option<Terms>,
    keys: Random,
    reader: Reader,
    /// Whether what the peer sends can still be told apart.
    is_readable: bool,
    echoes: Option<Echoes>,
    state: State,
    timer: (Instant, Timer),
    /// Bytes that were sent or received.
    moved: u64,
    /// How many there were when the last of them moved, and when that was; nothing before round trips.
    progress: Option<(u64, Instant)>,
    /// The next step of the script.
    next: usize,
    trips: Option<Trips<'a>>,
    /// What is left of a frame that was begun.
    begun: VecDeque<u8>,
    outgoing: Outgoing,
    sending: Sending,
    /// How to seal from now on, once everything before was sent.
    sealing: Option<Sealing>,
    message: Message,
    /// The longest message that the peer may send, in bytes.
    payload_max: usize,
    /// The bytes of the messages that the transcript keeps.
    kept_bytes: usize,
    transcript: Transcript,
    handshake: Handshake,
}

/// Bytes to be sent, and where they are cut.
#[derive(Debug, Default)]
struct Outgoing {
    bytes: Vec<u8>,
    sent: usize,
    /// Where each send ends.
    ends: VecDeque<usize>,
}

impl Outgoing {
    fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The end of what has been queued and not cut yet.
    fn begin(&mut self) -> usize {
        if self.ends.is_empty() {
            self.bytes.clear();
            self.sent = 0;
        }
        self.bytes.len()
    }

    /// Makes everything that is queued one send.
    fn join(&mut self) {
        self.ends.clear();
        self.ends.extend((self.sent < self.bytes.len()).then_some(self.bytes.len()));
    }

    /// Makes each byte that is queued a send.
    fn split(&mut self) {
        self.ends = (self.sent + 1..=self.bytes.len()).collect();
    }

    /// Cuts what was queued from `begin` on.
    fn cut(&mut self, begin: usize, chop: Chop) {
        let end = self.bytes.len();
        if let Chop::Bytes(bytes) = chop {
            self.ends.extend((begin + bytes..end).step_by(bytes));
        }
        if begin < end {
            self.ends.push_back(end);
        }
    }

    fn chop(&self) -> &[u8] {
        let end = self.ends.front().copied().unwrap_or(self.sent);
        &self.bytes[self.sent..end]
    }

    fn sent(&mut self, count: usize) {
        self.sent += count;
        if self.ends.front().is_some_and(|end| self.sent >= *end) {
            self.ends.pop_front();
        }
    }
}

impl<'a> Exchange<'a> {
    /// Begins a case on a connection that was just opened.
    pub fn new(
        case: &'a Case,
        library: &'a Library,
        opened: Opened<'_>,
        now: Instant,
    ) -> Exchange<'a> {
        let Opened { role, terms, received, seed } = opened;
        let payload_max = 2 * longest(case) + EXCESS_MAX;
        let rules = Rules {
            is_masked: role == Role::Server,
            allows_compression: terms.is_some(),
            payload_max: payload_max as u64,
        };
        let echoes = terms.map(|Terms { client, server }| match role {
            Role::Client => Echoes::new(client, server),
            Role::Server => Echoes::new(server, client),
        });
        let mut transcript = Transcript::new(case.number);
        transcript.closing.is_server = role == Role::Server;
        let has_what_it_needs = match (case.needs, terms) {
            (_, None) => case.offers.is_empty(),
            (Needs::Offered, Some(_)) => true,
            (Needs::Takeover, Some(Terms { client, server })) => match role {
                Role::Client => client.takes_over,
                Role::Server => server.takes_over,
            },
        };
        transcript.lacks_compression = !has_what_it_needs;
        let mut exchange = Exchange {
            case,
            library,
            role,
            terms,
            keys: Random::new(seed),
            reader: Reader::new(rules, received),
            is_readable: true,
            echoes,
            state: State::Open,
            timer: (now, Timer::Limit),
            moved: 0,
            progress: None,
            next: 0,
            trips: None,
            begun: VecDeque::new(),
            outgoing: Outgoing::default(),
            sending: Sending::On,
            sealing: None,
            message: Message::default(),
            payload_max,
            kept_bytes: 0,
            transcript,
            handshake: Handshake::default(),
        };
        exchange.arm(Timer::Limit, now);
        if exchange.transcript.lacks_compression {
            exchange.close(NORMAL, now);
        }
        exchange.read(now);
        exchange
    }

    /// Begins a case that tests the opening handshake of a server. The case has a request.
    pub fn opening(
        case: &'a Case,
        library: &'a Library,
        connection: &Connection<'_>,
        seed: u64,
        now: Instant,
    ) -> Exchange<'a> {
        let mut exchange = Exchange::on(case, library, Role::Client, seed, now);
        let (template, chop) = case.opening.head().unwrap_or((&[], Chop::Whole));
        let request = connection.request(template);
        exchange.state = State::Opening;
        exchange.queue_head(&request, chop, now);
        exchange.handshake.request = request;
        exchange
    }

    /// Begins a case that tests the opening handshake of a client, whose request has this key. The
    /// case has a response, which cannot be answered but by frames or the end.
    pub fn answering(
        case: &'a Case,
        library: &'a Library,
        key: &str,
        seed: u64,
        now: Instant,
    ) -> Exchange<'a> {
        let mut exchange = Exchange::on(case, library, Role::Server, seed, now);
        let (template, chop) = case.opening.head().unwrap_or((&[], Chop::Whole));
        let response = head::response(template, key);
        exchange.queue_head(&response, chop, now);
        exchange.handshake.response = response;
        exchange
    }

    /// On a connection where nothing was sent yet.
    fn on(
        case: &'a Case,
        library: &'a Library,
        role: Role,
        seed: u64,
        now: Instant,
    ) -> Exchange<'a> {
        Exchange::new(case, library, Opened { role, terms: None, received: &[], seed }, now)
    }

    fn queue_head(&mut self, head: &[u8], chop: Chop, now: Instant) {
        let begin = self.outgoing.begin();
        self.outgoing.bytes.extend(head);
        self.outgoing.cut(begin, chop);
        if self.case.sends == Sends::Joined {
            self.take_steps(now);
        }
    }

    /// What has to be done at `now`.
    pub fn want(&mut self, now: Instant) -> Want {
        loop {
            match self.state {
                State::Over => return Want::Nothing,
                State::Dropping if self.outgoing.is_empty() => return Want::Drop,
                State::Resetting if self.outgoing.is_empty() => return Want::Reset,
                State::Dropping
                | State::Resetting
                | State::Opening
                | State::Open
                | State::CloseSent
                | State::Closed => {}
            }
            let (until, timer) = self.deadline(now);
            if now >= until {
                self.expired(timer, now);
            } else if !self.outgoing.is_empty() {
                return Want::Send(until);
            } else if let Some(sealing) = self.sealing.take() {
                return Want::Seal(sealing);
            } else if self.sending == Sending::Ending {
                return Want::End;
            } else if !self.goes_on(now) {
                return Want::Receive(until);
            }
        }
    }

    /// Whether the next deadline has passed.
    pub fn is_late(&mut self, now: Instant) -> bool {
        self.state != State::Over && self.deadline(now).0 <= now
    }

    /// The next deadline. Round trips that stand still need not last until their limit.
    fn deadline(&mut self, now: Instant) -> (Instant, Timer) {
        let (until, timer) = self.timer;
        if self.trips.is_none() || timer != Timer::Limit {
            return (until, timer);
        }
        let progress = self.progress.get_or_insert((self.moved, now));
        if progress.0 != self.moved {
            *progress = (self.moved, now);
        }
        (until.min(progress.1 + STALL_TIMEOUT), timer)
    }

    /// What is to be sent in one piece.
    pub fn chop(&self) -> &[u8] {
        self.outgoing.chop()
    }

    /// Notes that the first `count` bytes of it were sent.
    pub fn sent(&mut self, count: usize) {
        if self.is_logged() {
            let sent = Octets::of(&self.outgoing.chop()[..count]);
            self.log(Entry::Sent(sent));
        }
        *self.transcript.traffic.sent.entry(count).or_default() += 1;
        self.moved += count as u64;
        self.outgoing.sent(count);
    }

    /// The buffer to receive into.
    pub fn room(&mut self) -> &mut [u8] {
        self.reader.room()
    }

    /// Notes that `count` bytes were received into [`Exchange::room`] at `now`.
    pub fn received(&mut self, count: usize, now: Instant) {
        if self.is_logged() {
            let received = Octets::of(self.reader.newest(count));
            self.log(Entry::Received(received));
        }
        *self.transcript.traffic.received.entry(count).or_default() += 1;
        self.moved += count as u64;
        self.reader.filled(count);
        if !self.is_readable {
            // A peer may go on without end.
            self.reader.skip(self.reader.unread().len());
        }
        self.read(now);
    }

    /// Notes that the peer ended the connection.
    pub fn ended(&mut self, how: Ended) {
        if self.state == State::Over {
            return;
        }
        if self.state == State::Opening {
            self.transcript.events.push(Event::HungUp);
            self.transcript.is_unopened = true;
        }
        self.transcript.is_reset = how == Ended::Reset;
        self.transcript.is_unsaid = matches!(how, Ended::Reset | Ended::Unsaid);
        if self.state != State::Closed {
            let how = match how {
                Ended::Closed | Ended::Unsaid => "the peer ended the TCP connection",
                Ended::Alert => "the peer ended TLS with an alert",
                Ended::Reset => "the peer reset the TCP connection",
            };
            self.unclean(&format!("{how} before the closing handshake was complete"));
        }
        self.state = State::Over;
    }

    /// Notes that this side ended the connection.
    pub fn dropped(&mut self) {
        self.transcript.closing.dropped_by_me = true;
        self.state = State::Over;
    }

    /// Notes that the sending direction has ended.
    pub fn half_closed(&mut self) {
        self.sending = Sending::Ended;
    }

    /// Whether the wire log holds what is sent and received: not round trips, and not the opening
    /// handshake, which is kept elsewhere.
    fn is_logged(&self) -> bool {
        self.trips.is_none() && self.state != State::Opening
    }

    /// Adds a line to the wire log, unless it is full.
    fn log(&mut self, entry: Entry) {
        let log = &mut self.transcript.log;
        match log.len() {
            ..LOG_LINES_MAX => log.push(entry),
            LOG_LINES_MAX => log.push(Entry::Off),
            _ => {}
        }
    }

    /// The opening handshake, if it is what is tested.
    pub fn handshake(&self) -> &Handshake {
        &self.handshake
    }

    /// What happened.
    pub fn into_transcript(self) -> Transcript {
        self.transcript
    }

    /// Takes the next step, if it is time for it. Returns whether anything was done.
    fn goes_on(&mut self, now: Instant) -> bool {
        let waits = matches!(self.timer.1, Timer::Pause(_));
        if waits || !matches!(self.state, State::Open | State::CloseSent) {
            return false;
        }
        if let Some(trips) = &self.trips {
            let is_back = self.transcript.rounds.as_ref().is_some_and(|it| it.right == trips.sent);
            let goes_on = self.state == State::Open && is_back && trips.sent < trips.trips.count;
            if goes_on {
                self.send_message();
            }
            return goes_on;
        }
        match self.case.sends {
            Sends::AsWritten => self.take_step(now),
            Sends::Joined => self.take_steps(now),
            Sends::Bytes => {
                let is_taken = self.take_step(now);
                self.outgoing.split();
                is_taken
            }
        }
    }

    /// Takes the steps to the next pause, and joins what they send. Returns whether there were any.
    fn take_steps(&mut self, now: Instant) -> bool {
        let next = self.next;
        while !matches!(self.timer.1, Timer::Pause(_)) && self.take_step(now) {}
        self.outgoing.join();
        self.next > next
    }

    /// Takes the next step. Returns whether there was one.
    fn take_step(&mut self, now: Instant) -> bool {
        let case = self.case;
        let Some(step) = case.script.get(self.next) else { return false };
        self.next += 1;
        match step {
            Step::Frames(frames, chop) => self.send_frames(frames, *chop),
            Step::Begin(frame, bytes) => {
                let begin = self.outgoing.begin();
                self.append_frame(frame);
                let header = self.outgoing.bytes.len() - begin - frame.payload.len();
                self.begun = self.outgoing.bytes.drain(begin..).collect();
                self.more(header + bytes);
            }
            Step::More(bytes) => self.more(*bytes),
            Step::End => self.sending = Sending::Ending,
            Step::Tls(sealing) => self.sealing = Some(*sealing),
            Step::Reset => {
                self.state = State::Resetting;
                return true;
            }
            Step::Pause(duration, name) => {
                self.timer = (now + *duration, Timer::Pause(*name));
                self.log(Entry::Pause(*duration, *name));
                return true;
            }
            Step::Close(payload) => self.send_close(payload),
            Step::RoundTrips(trips) => self.begin(trips),
        }
        // The time counts from the last step on.
        let timer = match self.state {
            State::Opening | State::Open => Timer::Limit,
            State::CloseSent | State::Closed | State::Dropping | State::Resetting | State::Over => {
                Timer::CloseReply
            }
        };
        self.arm(timer, now);
        if timer == Timer::Limit && self.next == case.script.len() {
            self.log(match case.limit {
                Limit::Fail(time) => Entry::Limit(AtLimit::Fail, time),
                Limit::Close(time) => Entry::Limit(AtLimit::Close, time),
            });
        }
        true
    }

    fn arm(&mut self, timer: Timer, now: Instant) {
        let duration = match (timer, self.case.limit) {
            (Timer::Limit, Limit::Fail(duration) | Limit::Close(duration)) => duration,
            (Timer::CloseReply | Timer::ServerDrop | Timer::Pause(_), _) => CLOSE_TIMEOUT,
        };
        self.timer = (now + duration, timer);
    }

    fn key(&mut self) -> Option<[u8; 4]> {
        match self.role {
            Role::Client => Some((self.keys.number() as u32).to_ne_bytes()),
            Role::Server => None,
        }
    }

    /// Queues a frame without cutting it off.
    fn append(&mut self, first: u8, payload: &[u8], header: Header) {
        let key = match (header, self.key()) {
            (Header::MaskedWrongly, Some(_)) => None,
            (Header::MaskedWrongly, None) => Some((self.keys.number() as u32).to_ne_bytes()),
            (Header::Right | Header::Length16 | Header::Length64(_), key) => key,
        };
        let begin = self.outgoing.bytes.len();
        frames::append_with(&mut self.outgoing.bytes, first, payload, key, header);
        self.log(Entry::FrameSent(first, Octets::of(payload), key));
        let opcode = first & 15;
        *self.transcript.traffic.frames_sent.entry(opcode).or_default() += 1;
        if opcode < CLOSE {
            let sent = &mut self.transcript.messages.sent;
            sent.add_frame(payload.len(), self.outgoing.bytes.len() - begin);
            if first & 0x80 != 0 {
                sent.messages += 1;
            }
            // What the cases compress by hand is not inflated here.
            sent.message_bytes += payload.len() as u64;
        }
    }

    fn append_frame(&mut self, frame: &Frame) {
        self.append(frame.first_byte(), &frame.payload.to_vec(), frame.header);
    }

    /// Queues a frame as a send of its own, unless the sending direction has ended.
    fn send_frame(&mut self, first: u8, payload: &[u8]) {
        if self.sending != Sending::On {
            return;
        }
        let begin = self.outgoing.begin();
        self.append(first, payload, Header::Right);
        self.outgoing.cut(begin, Chop::Whole);
    }

    fn send_frames(&mut self, frames: &[Frame], chop: Chop) {
        let begin = self.outgoing.begin();
        for frame in frames {
            let begin = self.outgoing.bytes.len();
            self.append_frame(frame);
            if chop == Chop::Frames {
                self.outgoing.cut(begin, Chop::Whole);
            }
        }
        match chop {
            Chop::Frames => {}
            Chop::Whole | Chop::Bytes(_) => self.outgoing.cut(begin, chop),
        }
    }

    /// Queues further bytes of the frame that was begun.
    fn more(&mut self, bytes: usize) {
        let begin = self.outgoing.begin();
        let bytes = bytes.min(self.begun.len());
        self.outgoing.bytes.extend(self.begun.drain(..bytes));
        self.outgoing.cut(begin, Chop::Whole);
    }

    fn send_close(&mut self, payload: &[u8]) {
        self.send_frame(0x80 | CLOSE, payload);
        if self.state != State::Open {
            return;
        }
        let closing = &mut self.transcript.closing;
        closing.closed_by_me = true;
        if let Some((code, reason)) = payload.split_first_chunk() {
            closing.local_close_code = Some(u16::from_be_bytes(*code));
            closing.local_close_reason = text(reason);
        }
        self.state = State::CloseSent;
    }

    /// Begins the closing handshake, unless that has begun.
    fn close(&mut self, code: u16, now: Instant) {
        if self.state == State::Open {
            self.skip_rest();
            self.send_close(&code.to_be_bytes());
            self.arm(Timer::CloseReply, now);
        }
    }

    /// Leaves out the rest of the script.
    fn skip_rest(&mut self) {
        self.next = self.case.script.len();
        if self.trips.take().is_some() {
            self.log(Entry::On);
        }
    }

    fn begin(&mut self, trips: &'a RoundTrips) {
        let supply = match (&trips.content, self.terms) {
            (Content::Of(corpus, bytes), Some(Terms { client, server })) => {
                let side = if self.role == Role::Client { client } else { server };
                let stream = self.library.stream(*corpus, *bytes, trips.count, side);
                Supply::Of(self.library.parts(*corpus, *bytes), stream)
            }
            (Content::Of(corpus, bytes), None) => {
                Supply::Same(self.library.parts(*corpus, *bytes).message(0).concat())
            }
            (Content::Same(payload), _) => Supply::Same(payload.to_vec()),
        };
        self.transcript.rounds = Some(Rounds { count: trips.count, right: 0, wrong: None });
        self.trips = Some(Trips { trips, supply, sent: 0 });
        self.log(Entry::Off);
    }

    fn send_message(&mut self) {
        let Some(Trips { trips, supply, sent }) = &mut self.trips else { return };
        let (first, payload, message_bytes) = match supply {
            Supply::Same(payload) => (trips.form.opcode() as u8, &payload[..], payload.len()),
            Supply::Of(parts, stream) => (
                trips.form.opcode() as u8 | COMPRESSED,
                stream.message(*sent),
                parts.message_bytes(),
            ),
        };
        *sent += 1;
        let volume = &mut self.transcript.messages.sent;
        volume.add_message(message_bytes);
        let fragment = trips.fragment_bytes.unwrap_or(payload.len()).max(1);
        let begin = self.outgoing.begin();
        let frames = payload.len().div_ceil(fragment).max(1);
        for at in 0..frames {
            let piece = &payload[at * fragment..payload.len().min((at + 1) * fragment)];
            let last = if at + 1 == frames { 0x80 } else { 0 };
            let first = if at == 0 { first } else { CONTINUATION };
            let key = match self.role {
                Role::Client => Some((self.keys.number() as u32).to_ne_bytes()),
                Role::Server => None,
            };
            let begin = self.outgoing.bytes.len();
            frames::append(&mut self.outgoing.bytes, last | first, piece, key);
            volume.add_frame(piece.len(), self.outgoing.bytes.len() - begin);
        }
        let sent = &mut self.transcript.traffic.frames_sent;
        *sent.entry(first & 15).or_default() += 1;
        if frames > 1 {
            *sent.entry(CONTINUATION).or_default() += frames as u64 - 1;
        }
        self.outgoing.cut(begin, trips.chop);
    }

    /// What a deadline means that has passed.
    fn expired(&mut self, timer: Timer, now: Instant) {
        let is_unread = !self.outgoing.is_empty() && !matches!(timer, Timer::Pause(_));
        if is_unread && self.state != State::Opening {
            // The peer does not read, so it would not see a close frame.
            self.transcript.closing.failed_by_me = true;
            return self.give_up("the peer did not read what it was sent");
        }
        if self.state == State::Opening {
            self.transcript.is_unopened = true;
            self.transcript.closing.failed_by_me = true;
            self.transcript.closing.was_open_handshake_timeout = true;
            return self.give_up("the peer did not answer the request in time");
        }
        match timer {
            Timer::Pause(name) if self.state == State::Open => {
                self.log(Entry::PauseOver(name));
                self.transcript.events.push(Event::Silence(name));
                self.arm(Timer::Limit, now);
            }
            Timer::Pause(_) => {
                self.next = self.case.script.len();
                self.arm(Timer::CloseReply, now);
            }
            Timer::Limit => match self.case.limit {
                Limit::Fail(_) => {
                    self.log(Entry::LimitOver(AtLimit::Fail));
                    self.transcript.closing.failed_by_me = true;
                    self.close(GOING_AWAY, now);
                }
                Limit::Close(_) => {
                    self.log(Entry::LimitOver(AtLimit::Close));
                    self.close(NORMAL, now);
                }
            },
            Timer::CloseReply => {
                self.transcript.closing.was_close_handshake_timeout = true;
                self.give_up("the peer did not answer the close frame in time");
            }
            // The RFC does not say when the client has to end it.
            Timer::ServerDrop if self.role == Role::Server => self.state = State::Dropping,
            Timer::ServerDrop => {
                self.transcript.closing.was_server_connection_drop_timeout = true;
                self.give_up("the server did not end the TCP connection in time");
            }
        }
    }

    fn unclean(&mut self, reason: &str) {
        self.transcript.closing.was_clean = false;
        self.transcript.closing.was_not_clean_reason = Some(reason.to_owned());
    }

    fn give_up(&mut self, reason: &str) {
        self.unclean(reason);
        self.outgoing = Outgoing::default();
        self.state = State::Dropping;
    }

    /// Takes all frames that are there.
    fn read(&mut self, now: Instant) {
        if self.state == State::Opening && !self.opens(now) {
            return;
        }
        let is_over = |state| matches!(state, State::Dropping | State::Resetting | State::Over);
        while self.is_readable && !is_over(self.state) {
            let taken = match self.reader.take() {
                Ok(None) => return,
                Ok(Some(frame)) => self.frame(frame, now),
                Err(violation) => {
                    let first = self.reader.unread().first();
                    if first.is_some_and(|first| first & 15 == CLOSE) {
                        self.answer_broken_close(violation, now);
                    }
                    Err(violation)
                }
            };
            if let Err(violation) = taken {
                self.broken(violation, now);
            }
        }
    }

    /// Reads the response to the request that is tested, if it is there whole. Returns whether it
    /// opens the connection and the case goes on.
    fn opens(&mut self, now: Instant) -> bool {
        let response = match Response::parse(self.reader.unread()) {
            Ok(None) => return false,
            Ok(Some(response)) => response,
            Err(wrong) => return self.refuses(wrong),
        };
        self.handshake.response = self.reader.unread()[..response.bytes].to_vec();
        if response.status != 101 {
            self.transcript.is_unopened = true;
            self.transcript.events.push(Event::Refused(response.status, response.fields));
            self.give_up("no connection was opened");
            return false;
        }
        if !self.case.goes_on_when_opened() {
            self.transcript.is_unopened = true;
            self.transcript.events.push(Event::Opened);
            self.give_up("the connection should not have been opened");
            return false;
        }
        let agreed = match response.check(&self.handshake.request) {
            Ok(agreed) => agreed,
            Err(wrong) => return self.refuses(wrong),
        };
        if let Some(agreed) = agreed {
            self.agree(&agreed);
            self.transcript.events.push(Event::Agreed(agreed));
        }
        self.reader.skip(response.bytes);
        self.state = State::Open;
        self.arm(Timer::Limit, now);
        true
    }

    /// Notes why the peer's response is wrong.
    fn refuses(&mut self, wrong: String) -> bool {
        if self.handshake.response.is_empty() {
            self.handshake.response = self.reader.unread().to_vec();
        }
        self.transcript.is_unopened = true;
        self.transcript.refused = Some(wrong);
        self.give_up("the response is wrong");
        false
    }

    /// Keeps to what the server agreed to. The verdict says whether it may.
    fn agree(&mut self, answer: &str) {
        let expected = self.case.outcomes.iter().flat_map(|(_, events)| events);
        let offers: Vec<Offer> =
            expected
                .filter_map(|expected| {
                    if let Expected::Agreed(offer) = expected { Some(*offer) } else { None }
                })
                .chain([Offer::PLAIN])
                .collect();
        if let Ok(Some(terms)) = Terms::agreed(&offers, Some(answer)) {
            self.reader.allow_compression();
            self.terms = Some(terms);
            self.echoes = Some(Echoes::new(terms.client, terms.server));
        }
    }

    /// Fails the connection for a rule that the peer broke (RFC 6455 section 7.1.7).
    fn broken(&mut self, violation: Violation, now: Instant) {
        self.is_readable = false;
        self.transcript.violation.get_or_insert(violation);
        self.transcript.closing.failed_by_me = true;
        if self.state == State::Open {
            self.close(violation.close_code().value(), now);
        }
        self.unclean("the peer broke the protocol");
    }

    fn frame(&mut self, frame: Received, now: Instant) -> Result<(), Violation> {
        *self.transcript.traffic.frames_received.entry(frame.opcode).or_default() += 1;
        let Received { is_final, is_compressed, opcode, key, wire_bytes, payload } = frame;
        if self.trips.is_none() {
            let first = u8::from(is_final) << 7 | u8::from(is_compressed) << 6 | opcode;
            let payload = Octets::of(self.reader.bytes(payload.clone()));
            self.log(Entry::FrameReceived(first, payload, key));
        }
        if opcode < CLOSE {
            self.transcript.messages.received.add_frame(payload.len(), wire_bytes);
        }
        match opcode {
            CLOSE => {
                let payload = self.reader.bytes(payload).to_vec();
                return self.close_frame(&payload, now);
            }
            PING => {
                let payload = self.reader.bytes(payload).to_vec();
                // A pong cannot stand within a frame.
                if self.state == State::Open && self.begun.is_empty() {
                    self.send_frame(0x80 | PONG, &payload);
                }
                self.note(Event::Ping(payload), now);
            }
            PONG => self.note(Event::Pong(self.reader.bytes(payload).to_vec()), now),
            _ => {
                let message = &mut self.message;
                match (opcode, message.form) {
                    (TEXT, None) => message.form = Some(Form::Text),
                    (BINARY, None) => message.form = Some(Form::Binary),
                    (CONTINUATION, Some(_)) => {}
                    (CONTINUATION, None) => return Err(Violation::ContinuationUnexpected),
                    _ => return Err(Violation::ContinuationExpected),
                }
                if opcode != CONTINUATION {
                    message.payload.clear();
                    message.is_compressed = is_compressed;
                }
                message.payload.extend_from_slice(self.reader.bytes(payload));
                if message.payload.len() > self.payload_max {
                    return Err(Violation::MessageTooBig);
                }
                if is_final {
                    return self.message(now);
                }
            }
        }
        Ok(())
    }

    /// Takes a message that is complete.
    fn message(&mut self, now: Instant) -> Result<(), Violation> {
        let Message { form, is_compressed, payload } = &mut self.message;
        let form = form.take().expect("it was begun");
        if self.trips.is_some() {
            return self.echo(form, now);
        }
        let payload = std::mem::take(payload);
        let payload = match &mut self.echoes {
            Some(echoes) if *is_compressed => {
                let inflated = echoes.inflate(&payload, self.payload_max).map(<[u8]>::to_vec);
                inflated.map_err(|broken| self.transcript.not_inflated(broken))?
            }
            Some(_) | None => payload,
        };
        if form == Form::Text && str::from_utf8(&payload).is_err() {
            return Err(Violation::TextNotUtf8);
        }
        self.transcript.messages.received.add_message(payload.len());
        self.note(Event::Message(form, payload), now);
        Ok(())
    }

    /// Compares an echo with what was sent.
    fn echo(&mut self, form: Form, now: Instant) -> Result<(), Violation> {
        let (Some(trips), Some(rounds)) = (&self.trips, &self.transcript.rounds) else {
            unreachable!("they begin together")
        };
        let Message { payload, is_compressed, .. } = &self.message;
        let (number, count) = (rounds.right, rounds.count);
        let compared = match (&trips.supply, &mut self.echoes) {
            (Supply::Of(parts, stream), Some(echoes)) => {
                let (parts, is_compressed) = (*parts, *is_compressed);
                let sent = stream.message(number);
                echoes
                    .check(&Echo { payload, is_compressed, parts, number, sent })
                    .map_err(|broken| self.transcript.not_inflated(broken))?
                    .map_err(|came| {
                        (difference(&parts.message(number).concat(), &came), came.len())
                    })
            }
            (Supply::Of(..), None) => unreachable!("it needs terms"),
            (Supply::Same(sent), _) if sent == payload => Ok(()),
            (Supply::Same(sent), _) => Err((difference(sent, payload), payload.len())),
        };
        let message_bytes = match (&trips.supply, &compared) {
            (_, Err((_, bytes))) => *bytes,
            (Supply::Of(parts, _), Ok(())) => parts.message_bytes(),
            (Supply::Same(sent), Ok(())) => sent.len(),
        };
        self.transcript.messages.received.add_message(message_bytes);
        let Some(rounds) = &mut self.transcript.rounds else { return Ok(()) };
        let wrong = match compared {
            _ if number == trips.sent => "it came before its message was sent".to_owned(),
            Ok(()) if form == trips.trips.form => {
                rounds.right += 1;
                if rounds.right == count {
                    self.close(self.case.close.codes[0], now);
                }
                return Ok(());
            }
            Ok(()) => format!("it is {form} instead of {}", trips.trips.form),
            Err((difference, _)) => difference,
        };
        rounds.wrong = Some(match count {
            1 => format!("The echo is wrong: {wrong}."),
            _ => format!("The echo of message {} of {count} is wrong: {wrong}.", number + 1),
        });
        self.close(self.case.close.codes[0], now);
        Ok(())
    }

    /// Notes an event. If everything has come, this side may close.
    fn note(&mut self, event: Event, now: Instant) {
        if !self.keeps(&event) {
            return;
        }
        self.transcript.events.push(event);
        let Case { outcomes, close, .. } = self.case;
        let is_complete =
            outcomes.iter().any(|(_, expected)| are_all(&self.transcript.events, expected));
        let is_sent = self.next == self.case.script.len();
        if close.by != End::Theirs && is_sent && is_complete {
            self.close(close.codes[0], now);
        }
    }

    /// Whether an event is kept. What is dropped cannot change the verdict: it is a ping, or comes after
    /// more than any case expects.
    fn keeps(&mut self, event: &Event) -> bool {
        let events = self.transcript.events.len();
        match event {
            Event::Ping(_) => events < PINGS_MAX,
            Event::Message(_, payload) if events < EVENTS_MAX => {
                let is_kept = self.kept_bytes < EVENT_BYTES_MAX;
                self.kept_bytes += if is_kept { payload.len() } else { 0 };
                is_kept
            }
            Event::Message(..)
            | Event::Pong(_)
            | Event::Silence(_)
            | Event::Refused(..)
            | Event::HungUp
            | Event::Opened
            | Event::Agreed(_) => events < EVENTS_MAX,
        }
    }

    fn close_frame(&mut self, payload: &[u8], now: Instant) -> Result<(), Violation> {
        if self.state == State::Closed {
            return Ok(());
        }
        let closing = &mut self.transcript.closing;
        if let Some((code, reason)) = payload.split_first_chunk() {
            closing.remote_close_code = Some(u16::from_be_bytes(*code));
            closing.remote_close_reason = text(reason);
        }
        if let Err(violation) = frames::check_close(payload) {
            self.answer_broken_close(violation, now);
            return Err(violation);
        }
        closing.was_clean = true;
        // RFC 6455 section 5.5.1: the answer typically repeats the code.
        let code = closing.remote_close_code;
        self.answer_close(code, now);
        Ok(())
    }

    /// Answers a close frame that breaks a rule (RFC 6455 section 7.1.7). The peer has closed all the
    /// same.
    fn answer_broken_close(&mut self, violation: Violation, now: Instant) {
        self.transcript.is_close_broken = true;
        self.answer_close(Some(violation.close_code().value()), now);
    }

    /// Ends the closing handshake that the peer has begun or ended by its close frame.
    fn answer_close(&mut self, code: Option<u16>, now: Instant) {
        if self.state == State::Open {
            self.transcript.closing.local_close_code = code;
            self.skip_rest();
            if self.begun.is_empty() {
                let payload = code.map(u16::to_be_bytes);
                self.send_frame(0x80 | CLOSE, payload.as_ref().map_or(&[], |code| &code[..]));
            }
        }
        self.state = State::Closed;
        self.arm(Timer::ServerDrop, now);
        if self.role == Role::Server {
            // RFC 6455 section 7.1.1: the server ends the TCP connection. Where the form of the end counts,
            // the client may show what else it has to say, and how it ends.
            match self.case.close.weight {
                Weight::FormCounts => {
                    self.transcript.closing.dropped_by_me = true;
                    if self.sending == Sending::On {
                        self.sending = Sending::Ending;
                    }
                }
                Weight::Apart
                | Weight::CodeCounts
                | Weight::EndCounts
                | Weight::TlsCounts
                | Weight::Open => self.state = State::Dropping,
            }
        }
    }
}

/// The reason of a close frame.
fn text(reason: &[u8]) -> Option<String> {
    let text = || str::from_utf8(reason).map_or_else(|_| hexadecimal(reason), str::to_owned);
    (!reason.is_empty()).then(text)
}

/// The longest message of a case, in bytes.
fn longest(case: &Case) -> usize {
    let step = |step: &Step| match step {
        Step::Frames(frames, _) => frames.iter().map(|frame| frame.payload.len()).sum(),
        Step::Begin(frame, _) => frame.payload.len(),
        Step::RoundTrips(trips) => match &trips.content {
            Content::Same(payload) => payload.len(),
            Content::Of(_, bytes) => *bytes,
        },
        Step::More(_)
        | Step::Pause(..)
        | Step::End
        | Step::Reset
        | Step::Tls(_)
        | Step::Close(_) => 0,
    };
    let expected = |expected: &Expected| match expected {
        Expected::Message(_, payload) => payload.len(),
        Expected::Pong(_)
        | Expected::Silence(_)
        | Expected::Pongs(_)
        | Expected::Refused(..)
        | Expected::HungUp
        | Expected::Agreed(_) => 0,
    };
    let expected = case.outcomes.iter().flat_map(|(_, events)| events).map(expected);
    case.script.iter().map(step).chain(expected).max().unwrap_or(0)
}

/// How an echo differs from what was sent.
fn difference(sent: &[u8], came: &[u8]) -> String {
    let same = sent.iter().zip(came).take_while(|(sent, came)| sent == came).count();
    match (sent.len(), came.len()) {
        (sent, came) if sent != came && same == sent.min(came) => {
            format!("it has {came} bytes instead of {sent}")
        }
        _ => format!("it differs at byte {same} (counted from 0): {}", shown(&came[same..])),
    }
}
