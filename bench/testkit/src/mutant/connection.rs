//! A connection after the opening handshake, from either side: frames come, messages and pings are answered.
//!
//! One frame is taken after the other. A connection fails at the first byte that breaks a rule.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustix::net::sockopt;

use super::extension::Codec;
use super::handshake::Opened;
use super::{Behavior, Fault, Role, utf8};
use crate::frame::{CLOSE, FIN, PING, PONG, RSV1, header};
use crate::random::Random;

const RSV2: u8 = 0x20;
const RSV3: u8 = 0x10;
const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
/// The largest payload of a control frame (RFC 6455 section 5.5).
const CONTROL_MAX: u64 = 125;
/// How long the peer may take to end the TCP connection when everything is said.
const END_TIMEOUT: Duration = Duration::from_secs(5);
/// How long [`Fault::AnswersAfterClose`] goes on.
const AFTER_CLOSE: Duration = Duration::from_millis(500);

/// How many fragments [`Fault::ManyFragmentsLost`] keeps.
const FRAGMENTS_KEPT: usize = 5000;

/// Why a connection fails (RFC 6455 section 7.1.7).
#[derive(Debug)]
pub(super) enum Broken {
    /// A rule for frames, code 1002.
    Protocol,
    /// Text that is not UTF-8, or data that does not inflate, code 1007.
    Text,
    /// A message that is too long, code 1009.
    Size,
    /// There is no connection any more.
    Lost,
}

impl From<io::Error> for Broken {
    fn from(_: io::Error) -> Broken {
        Broken::Lost
    }
}

/// Whether more frames are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Frame,
    /// A close frame has been answered.
    End,
}

/// The header of a frame (RFC 6455 section 5.2).
#[derive(Debug, Clone, Copy)]
struct Header {
    first: u8,
    length: u64,
    key: Option<[u8; 4]>,
}

impl Header {
    fn opcode(self) -> u8 {
        self.first & 0x0F
    }

    fn is_final(self) -> bool {
        self.first & FIN != 0
    }
}

/// A message whose fragments are arriving.
#[derive(Debug)]
struct Message {
    opcode: u8,
    is_compressed: bool,
    payload: Vec<u8>,
    /// Where each fragment begins.
    begins: Vec<usize>,
    /// How many bytes of text are known to be whole characters.
    checked: usize,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    role: Role,
    behavior: Arc<Behavior>,
    codec: Option<Codec>,
    keys: Random,
    received: Vec<u8>,
    message: Option<Message>,
    /// Messages so far.
    messages: u64,
    /// Messages are kept here instead of answered.
    kept: Option<Vec<Vec<u8>>>,
    has_sent_close: bool,
    /// [`Fault::FragmentedControl`]: the rest of a control frame follows.
    skips_continuation: bool,
    /// [`Fault::InterleavedDelayed`]: payloads of pings to answer after the message.
    delayed_pings: Vec<Vec<u8>>,
    /// [`Fault::CloseAfterMessage`]: the payload of the close frame.
    delayed_close: Option<Vec<u8>>,
    /// [`Fault::PipelinedSwapped`]: an answer that waits for the next one.
    held: Option<Vec<u8>>,
}

impl Connection {
    pub(super) fn new(opened: Opened, role: Role, behavior: Arc<Behavior>) -> Connection {
        let Opened { stream, received, codec } = opened;
        Connection {
            stream,
            role,
            behavior,
            codec,
            keys: Random::new(1),
            received,
            message: None,
            messages: 0,
            kept: None,
            has_sent_close: false,
            skips_continuation: false,
            delayed_pings: Vec::new(),
            delayed_close: None,
            held: None,
        }
    }

    /// Answers everything until the connection ends.
    pub(super) fn echo(mut self) -> io::Result<()> {
        self.run()
    }

    /// Keeps all messages until the connection ends, and returns them.
    pub(super) fn keep(mut self) -> io::Result<Vec<Vec<u8>>> {
        self.kept = Some(Vec::new());
        self.run()?;
        Ok(self.kept.unwrap_or_default())
    }

    fn run(&mut self) -> io::Result<()> {
        loop {
            match self.frame() {
                Ok(Next::Frame) => {}
                Ok(Next::End) | Err(Broken::Lost) => return self.end(),
                Err(broken) => {
                    self.fail(&broken)?;
                    return self.end();
                }
            }
        }
    }

    fn has(&self, fault: Fault) -> bool {
        self.behavior.has(fault)
    }

    /// Takes a frame and answers it.
    fn frame(&mut self) -> Result<Next, Broken> {
        let header = self.header()?;
        let next = match header.opcode() {
            CONTINUATION | TEXT | BINARY => self.data(header),
            8..=10 => self.control(header),
            _ => self.skip(header),
        };
        if self.has(Fault::SegmentRestLost) {
            self.received.clear();
        }
        next
    }

    /// Receives a header. Each of its bytes is judged before the next one is waited for.
    fn header(&mut self) -> Result<Header, Broken> {
        let [first] = self.take()?;
        self.check_first(first)?;
        let [second] = self.take()?;
        let is_masked = second & 0x80 != 0;
        // Section 5.1.
        if is_masked != (self.role == Role::Server) && !self.has(Fault::AnyMasking) {
            return Err(Broken::Protocol);
        }
        let is_control = first & 8 != 0;
        let short = u64::from(second & 0x7F);
        if is_control && short > CONTROL_MAX && !self.has(Fault::LongControl) {
            return Err(Broken::Protocol);
        }
        let (length, least) = match short {
            126 => (u64::from(u16::from_be_bytes(self.take()?)), 126),
            127 => (u64::from_be_bytes(self.take()?), 0x1_0000),
            _ => (short, 0),
        };
        let is_shortest = length >= least || self.has(Fault::AnyLengths);
        let fits = length >> 63 == 0 || self.has(Fault::HighBit);
        if !is_shortest || !fits {
            return Err(Broken::Protocol);
        }
        let length = length & u64::MAX >> 1;
        let before = self.message.as_ref().map_or(0, |message| message.payload.len());
        if length > (self.behavior.message_bytes_max.saturating_sub(before)) as u64 {
            return Err(Broken::Size);
        }
        let key = if is_masked { Some(self.take()?) } else { None };
        Ok(Header { first, length, key })
    }

    /// Checks the first byte of a frame (sections 5.2, 5.4 and 5.5).
    fn check_first(&self, first: u8) -> Result<(), Broken> {
        let opcode = first & 0x0F;
        let has_codec = self.codec.is_some();
        // RFC 7692 section 6: RSV1 is for the first frame of a message.
        let allows_rsv1 = match opcode {
            TEXT | BINARY => has_codec || self.has(Fault::Rsv1Ignored),
            CONTINUATION if has_codec => self.has(Fault::DeflateContinuation),
            _ if has_codec => self.has(Fault::DeflateControl),
            _ => self.has(Fault::Rsv1Ignored),
        };
        let bits = [
            (RSV1, allows_rsv1),
            (RSV2, self.has(Fault::Rsv2Ignored)),
            (RSV3, self.has(Fault::Rsv3Ignored)),
        ];
        let is_reserved = bits.iter().any(|&(bit, is_allowed)| first & bit != 0 && !is_allowed);
        let is_known = match opcode {
            CONTINUATION => {
                self.message.is_some() || self.skips_continuation || self.has(Fault::OrphansIgnored)
            }
            TEXT | BINARY => self.message.is_none() || self.has(Fault::MessageWithinMessage),
            3..=7 => self.has(Fault::DataOpcodesIgnored),
            8..=10 => first & FIN != 0 || self.has(Fault::FragmentedControl),
            _ => self.has(Fault::ControlOpcodesIgnored),
        };
        if is_reserved || !is_known { Err(Broken::Protocol) } else { Ok(()) }
    }

    fn skip(&mut self, header: Header) -> Result<Next, Broken> {
        self.payload(header)?;
        Ok(Next::Frame)
    }

    /// Receives the whole payload of a frame.
    fn payload(&mut self, header: Header) -> Result<Vec<u8>, Broken> {
        let mut payload = Vec::new();
        while (payload.len() as u64) < header.length {
            self.receive_payload(header, 0, &mut payload)?;
        }
        Ok(payload)
    }

    /// Receives as much of a payload as there is, at least a byte; `payload` has the beginning of it from
    /// `begin` on.
    fn receive_payload(
        &mut self,
        header: Header,
        begin: usize,
        payload: &mut Vec<u8>,
    ) -> Result<(), Broken> {
        if self.received.is_empty() {
            self.receive()?;
        }
        let place = payload.len() - begin;
        let count = self.received.len().min(header.length as usize - place);
        payload.extend(self.received.drain(..count));
        let Some(key) = header.key else { return Ok(()) };
        for (place, byte) in (place..).zip(&mut payload[begin + place..]) {
            // Section 5.3: the key begins again with each frame.
            let phase = match place {
                _ if self.behavior.has(Fault::PhaseCarried) => begin + place,
                65_536.. if self.behavior.has(Fault::PhaseLostAt64K) => place + 1,
                _ if self.behavior.has(Fault::PhaseLostByChunks) => place % 4093,
                _ => place,
            };
            *byte ^= key[phase % 4];
        }
        Ok(())
    }

    fn data(&mut self, header: Header) -> Result<Next, Broken> {
        let is_first = header.opcode() != CONTINUATION;
        if self.message.is_none() && !is_first {
            self.skips_continuation = false;
            return self.skip(header);
        }
        let mut message = self.message.take().unwrap_or_else(|| Message {
            opcode: header.opcode(),
            is_compressed: self.codec.is_some() && header.first & RSV1 != 0,
            payload: Vec::new(),
            begins: Vec::new(),
            checked: 0,
        });
        let begin = message.payload.len();
        message.begins.push(begin);
        if header.length == 0 && self.has(Fault::EmptyFragmentsRefused) {
            let is_whole = is_first && header.is_final();
            if !is_whole {
                return Err(Broken::Protocol);
            }
        }
        while ((message.payload.len() - begin) as u64) < header.length {
            self.receive_payload(header, begin, &mut message.payload)?;
            if !self.has(Fault::Utf8ByFrame) {
                self.check_text(&mut message)?;
            }
        }
        self.check_text(&mut message)?;
        if message.begins.len() > FRAGMENTS_KEPT && self.has(Fault::ManyFragmentsLost) {
            message.payload.truncate(begin);
            message.checked = message.checked.min(begin);
        }
        let is_split = message.checked < message.payload.len();
        if is_split && is_plain_text(&message) && self.has(Fault::Utf8SplitRefused) {
            return Err(Broken::Text);
        }
        if header.is_final() {
            return self.complete(message, begin);
        }
        if self.answers_by_fragment(&message) {
            let opcode = if begin == 0 && is_first { message.opcode } else { CONTINUATION };
            self.send(opcode, &message.payload[begin..])?;
        }
        self.message = Some(message);
        Ok(Next::Frame)
    }

    /// Whether text may still become valid (section 8.1).
    fn check_text(&self, message: &mut Message) -> Result<(), Broken> {
        let is_late = self.has(Fault::Utf8Late) || self.has(Fault::Utf8Unchecked);
        if is_late || !is_plain_text(message) {
            return Ok(());
        }
        let rest = &message.payload[message.checked..];
        message.checked += utf8::whole(rest, &self.behavior).map_err(|_| Broken::Text)?;
        Ok(())
    }

    fn answers_by_fragment(&self, message: &Message) -> bool {
        self.has(Fault::ByFragment) && !message.is_compressed && self.kept.is_none()
    }

    /// Answers a message whose last fragment, which begins at `begin`, has come.
    fn complete(&mut self, mut message: Message, begin: usize) -> Result<Next, Broken> {
        let by_fragment = self.answers_by_fragment(&message);
        let was_compressed = message.is_compressed;
        if self.codec.is_some() && !was_compressed && self.has(Fault::DeflatePlainRefused) {
            return Err(Broken::Protocol);
        }
        if message.is_compressed
            && let Some(codec) = &mut self.codec
        {
            message.payload = codec.inflate(&message.payload, &self.behavior)?;
            message.begins.truncate(1);
        }
        let is_unchecked = self.has(Fault::Utf8Unchecked)
            || was_compressed && self.has(Fault::DeflateTextUnchecked);
        let is_checked = message.opcode == TEXT && !is_unchecked;
        if is_checked && !utf8::is_valid(&message.payload, &self.behavior) {
            return Err(Broken::Text);
        }
        self.messages += 1;
        match &mut self.kept {
            Some(kept) => kept.push(message.payload),
            None if by_fragment => {
                let opcode = if message.begins.len() == 1 { message.opcode } else { CONTINUATION };
                self.send(FIN | opcode, &message.payload[begin..])?;
            }
            None => self.answer(message)?,
        }
        for ping in std::mem::take(&mut self.delayed_pings) {
            self.pong(ping)?;
        }
        match self.delayed_close.take() {
            Some(payload) => self.close(&payload),
            None => Ok(Next::Frame),
        }
    }

    /// Sends a message back.
    fn answer(&mut self, message: Message) -> io::Result<()> {
        let is_tenth = self.messages.is_multiple_of(10);
        if is_tenth && self.has(Fault::EveryTenthLost)
            || message.payload.is_empty() && self.has(Fault::EmptySwallowed)
        {
            return Ok(());
        }
        let is_compressed = message.is_compressed;
        let opcode = if self.has(Fault::TextAsBinary) { BINARY } else { message.opcode };
        let payload = self.changed(message);
        if self.has(Fault::PingsFirst) {
            self.send(PING, b"first")?;
        }
        let times = if is_tenth && self.has(Fault::EveryTenthDoubled) { 2 } else { 1 };
        for _ in 0..times {
            match self.codec.as_mut().filter(|_| is_compressed) {
                None => self.send_message(FIN | opcode, &payload)?,
                Some(codec) => {
                    let compressed = codec.compress(&payload, &self.behavior);
                    self.send_compressed(opcode, &compressed)?;
                }
            }
        }
        Ok(())
    }

    fn send_compressed(&mut self, opcode: u8, compressed: &[u8]) -> io::Result<()> {
        if self.has(Fault::DeflateMarkedContinuation) {
            let (left, right) = compressed.split_at(compressed.len() / 2);
            self.send(RSV1 | opcode, left)?;
            return self.send(FIN | RSV1 | CONTINUATION, right);
        }
        let mark = if self.has(Fault::DeflateUnmarked) { 0 } else { RSV1 };
        self.send_message(FIN | mark | opcode, compressed)
    }

    /// The payload of the answer to a message: the same, or what faults make of it.
    fn changed(&self, message: Message) -> Vec<u8> {
        let Message { mut payload, begins, .. } = message;
        if let [_, second, ..] = begins[..]
            && self.has(Fault::FragmentsSwapped)
        {
            let third = begins.get(2).copied().unwrap_or(payload.len());
            payload[..third].rotate_left(second);
        }
        if begins.len() > 1 && self.has(Fault::LastFragmentOnly) {
            payload.drain(..begins[begins.len() - 1]);
        }
        let is_cut = match payload.len() {
            125 => self.has(Fault::LastByteLostAt125),
            126 => self.has(Fault::LastByteLostAt126),
            65_535 => self.has(Fault::LastByteLostAt65535),
            65_536 => self.has(Fault::LastByteLostAt65536),
            _ => false,
        };
        if is_cut {
            payload.pop();
        }
        if self.has(Fault::CutAt1M) {
            payload.truncate(1 << 20);
        }
        payload
    }

    fn control(&mut self, header: Header) -> Result<Next, Broken> {
        let payload = self.payload(header)?;
        self.skips_continuation |= !header.is_final();
        match FIN | header.opcode() {
            CLOSE if self.has(Fault::CloseUnanswered) => Ok(Next::Frame),
            CLOSE if self.message.is_some() && self.has(Fault::CloseAfterMessage) => {
                self.delayed_close = Some(payload);
                Ok(Next::Frame)
            }
            CLOSE => self.close(&payload),
            PING => {
                match self.message.is_some() {
                    true if self.has(Fault::InterleavedSwallowed) => {}
                    true if self.has(Fault::InterleavedDelayed) => self.delayed_pings.push(payload),
                    _ => self.pong(payload)?,
                }
                Ok(Next::Frame)
            }
            _ => {
                if self.has(Fault::PongAnswered) {
                    self.send(PONG, &payload)?;
                }
                Ok(Next::Frame)
            }
        }
    }

    /// Answers a ping (section 5.5.3).
    fn pong(&mut self, mut payload: Vec<u8>) -> io::Result<()> {
        if self.has(Fault::PongEmpty) {
            payload.clear();
        }
        if self.has(Fault::PongCutAt124) {
            payload.truncate(124);
        }
        if self.has(Fault::PingsUnanswered) { Ok(()) } else { self.send(PONG, &payload) }
    }

    /// Answers a close frame (section 5.5.1).
    fn close(&mut self, payload: &[u8]) -> Result<Next, Broken> {
        self.check_close(payload)?;
        if self.has_sent_close || self.has(Fault::CloseDropped) {
            return Ok(Next::End);
        }
        let mut answer = payload.get(..2).unwrap_or_default().to_vec();
        if payload.len() == 1 {
            // Only with a fault is it not refused.
            answer = 1000u16.to_be_bytes().to_vec();
        }
        if self.has(Fault::ClosesWith1001) {
            answer = 1001u16.to_be_bytes().to_vec();
        }
        if answer.len() < 2 && self.has(Fault::CloseSends1005) {
            answer = 1005u16.to_be_bytes().to_vec();
        }
        if self.has(Fault::CloseReasonBroken) {
            answer = [&1000u16.to_be_bytes()[..], b"\xff"].concat();
        }
        self.send_close(&answer)?;
        if self.has(Fault::CloseTwice) {
            self.send_close(&answer)?;
        }
        if self.has(Fault::AnswersAfterClose) {
            self.stream.set_read_timeout(Some(AFTER_CLOSE))?;
            return Ok(Next::Frame);
        }
        Ok(Next::End)
    }

    /// Checks the payload of a close frame (sections 5.5.1 and 7.4).
    fn check_close(&self, payload: &[u8]) -> Result<(), Broken> {
        let Some((code, reason)) = payload.split_first_chunk() else {
            let is_right = payload.is_empty() || self.has(Fault::CloseHalfCode);
            return if is_right { Ok(()) } else { Err(Broken::Protocol) };
        };
        let is_valid = match u16::from_be_bytes(*code) {
            1000..=1003 | 1007..=1014 => true,
            3000..=4999 => !self.has(Fault::CloseCodesPrivateRefused),
            _ => false,
        };
        if !is_valid && !self.has(Fault::CloseCodesUnchecked) {
            return Err(Broken::Protocol);
        }
        let is_text = str::from_utf8(reason).is_ok() || self.has(Fault::CloseReasonUnchecked);
        if is_text { Ok(()) } else { Err(Broken::Text) }
    }

    /// Fails the connection (section 7.1.7).
    fn fail(&mut self, broken: &Broken) -> io::Result<()> {
        let code: u16 = match broken {
            Broken::Protocol if self.has(Fault::ErrorCode1003) => 1003,
            Broken::Text if self.has(Fault::TextCode1002) => 1002,
            Broken::Size if self.has(Fault::SizeCode1002) => 1002,
            Broken::Protocol | Broken::Lost => 1002,
            Broken::Text => 1007,
            Broken::Size => 1009,
        };
        if self.has(Fault::FailsSilently) || self.has_sent_close {
            return Ok(());
        }
        self.send_close(&code.to_be_bytes())
    }

    fn send_close(&mut self, payload: &[u8]) -> io::Result<()> {
        if let Some(held) = self.held.take() {
            self.stream.write_all(&held)?;
        }
        self.has_sent_close = true;
        self.send(CLOSE, payload)
    }

    /// Ends the TCP connection. A server does so first, a client when the server has (section 7.1.1), but
    /// neither waits for a peer that was told nothing.
    fn end(&mut self) -> io::Result<()> {
        if self.has(Fault::ResetAtEnd) {
            sockopt::set_socket_linger(&self.stream, Some(Duration::ZERO))?;
            return Ok(());
        }
        let is_first = match self.role {
            Role::Server => !self.has(Fault::TcpNotDropped),
            Role::Client => !self.has_sent_close,
        };
        if is_first {
            self.stream.shutdown(Shutdown::Write)?;
        }
        // What the peer still sends is read, because the kernel would reset the connection otherwise.
        self.stream.set_read_timeout(Some(END_TIMEOUT))?;
        while self.stream.read(&mut [0; 4096])? > 0 {}
        Ok(())
    }

    /// Sends a message, or keeps it back.
    fn send_message(&mut self, first: u8, payload: &[u8]) -> io::Result<()> {
        let mut bytes = self.built(first, payload);
        let is_first = self.held.is_none();
        if is_first && !self.received.is_empty() && self.has(Fault::PipelinedSwapped) {
            self.held = Some(bytes);
            return Ok(());
        }
        bytes.extend(self.held.take().into_iter().flatten());
        self.stream.write_all(&bytes)
    }

    fn send(&mut self, first: u8, payload: &[u8]) -> io::Result<()> {
        let bytes = self.built(first, payload);
        self.stream.write_all(&bytes)
    }

    /// A frame of this side.
    fn built(&mut self, first: u8, payload: &[u8]) -> Vec<u8> {
        let is_masked = (self.role == Role::Client) != self.has(Fault::WrongMasking);
        let key = is_masked.then(|| self.keys.key());
        let length = payload.len();
        let mut frame = header(first, length as u64, key);
        if length < 126 && self.has(Fault::LongLengths) {
            frame[1] = frame[1] & 0x80 | 126;
            frame.splice(2..2, (length as u16).to_be_bytes());
        }
        let begin = frame.len();
        frame.extend_from_slice(payload);
        if let Some(key) = key {
            let bytes = frame[begin..].iter_mut().zip(key.iter().cycle());
            bytes.for_each(|(byte, key)| *byte ^= key);
        }
        frame
    }

    /// Takes so many bytes; receives until they are there.
    fn take<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        while self.received.len() < N {
            self.receive()?;
        }
        let mut bytes = [0; N];
        bytes.iter_mut().zip(self.received.drain(..N)).for_each(|(to, from)| *to = from);
        Ok(bytes)
    }

    fn receive(&mut self) -> io::Result<()> {
        let mut room = [0; 64 << 10];
        match self.stream.read(&mut room)? {
            0 => {
                if self.has(Fault::EndUnnoticed) {
                    thread::sleep(END_TIMEOUT);
                }
                Err(io::ErrorKind::UnexpectedEof.into())
            }
            count => {
                self.received.extend_from_slice(&room[..count]);
                Ok(())
            }
        }
    }
}

/// Text that can be checked as it arrives.
fn is_plain_text(message: &Message) -> bool {
    message.opcode == TEXT && !message.is_compressed
}
