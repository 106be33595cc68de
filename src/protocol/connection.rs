//! One connection of the server, from the opening handshake to the close: received bytes become
//! the reply where they stand.
//!
//! A frame's echo is its own header without the mask bit and the masking key, and its payload
//! unmasked: the reply overwrites the request from left to right and never overtakes it. Fragments
//! stay fragments and nothing is put together. Binary payload may go out as it comes. Text and
//! control frames are held until they are whole, because what they say may be against the rules,
//! and a close frame cannot stand within another frame.
//!
//! Compressed frames are held too, and inflated as they come to be checked. Where they are mirrored
//! they are echoed like any others, by the octets of their payload. Where the message is compressed
//! again, nothing of the request is kept, and the reply is written when the frame is whole.
//!
//! This module does no input or output and reads no clock. It does not know whose memory the
//! region is, nor when its reply is sent.

use super::close;
use super::close_code::CloseCode;
use super::deflate::{self, Bounds, Compression, Scratch};
use super::extension::{Echo, Policy};
use super::frame::{self, COMPRESSED, CONTROL_PAYLOAD_MAX, FINAL, Header, KEY, MASKED, Opcode};
use super::handshake::{self, Admission};
use super::mask::{self, Mask};
use super::utf8::{self, Utf8};
use super::violation::Violation;
use crate::buffer::Region;
use crate::metrics::Counters;

/// What the caller does when the reply in the region is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Next {
    /// Receive more.
    Receive,
    /// Go on at once, in a region whose gap has at least so many octets: a message that was
    /// compressed again is longer than its request. The caller may let more of the reply be sent
    /// before that.
    Expand(usize),
    /// Shut the connection down for writing and read to its end: the close handshake is done, or
    /// the connection has failed.
    Close,
}

/// What is spoken on all connections of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// RFC 6455.
    WebSocket,
    /// Whatever comes goes back. What comes at once is counted as a message.
    Tcp,
}

/// What a server does for all its connections alike.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// What is spoken.
    pub protocol: Protocol,
    /// The largest message taken, in octets of payload, inflated; a larger one costs its sender the
    /// connection.
    pub message_max: u64,
    /// What becomes of offers to compress.
    pub policy: Policy,
    /// The level at which messages are compressed again, from 1, the fastest, to 9, the smallest.
    pub level: u8,
}

/// What all connections of a worker have in common.
#[derive(Debug)]
pub struct Context<'a> {
    settings: Settings,
    /// The most octets that a message may have to be a short one: see [`short_message`].
    short_max: u8,
    /// Where messages, frames and violations are counted.
    pub counters: &'a Counters,
    scratch: Scratch,
}

impl<'a> Context<'a> {
    /// The context of one worker.
    pub fn new(settings: Settings, counters: &'a Counters) -> Context<'a> {
        let short_max = settings.message_max.min(CONTROL_PAYLOAD_MAX) as u8;
        Context { settings, short_max, counters, scratch: Scratch::default() }
    }

    /// The largest message that is echoed, in octets.
    pub fn message_max(&self) -> u64 {
        self.settings.message_max
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Before the opening handshake.
    Handshake(Admission),
    /// Frames are echoed.
    Open,
    /// The same, but a frame that was compressed again is still to find room.
    Expanding,
    /// The server has sent a close frame and waits for the peer's.
    Closing,
    /// Octets are echoed: there are no frames.
    Plain,
    /// Nothing more is read or written.
    Closed,
}

/// The message whose fragments are arriving.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Message {
    None,
    Text,
    Binary,
    CompressedText,
    CompressedBinary,
}

/// The frame whose payload is arriving.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Frame {
    /// None: the next octet is the first of a header.
    None,
    /// A fragment of text: checked as it comes, held until it is whole.
    Text,
    /// A fragment of a binary message: sent as it comes.
    Binary,
    /// A fragment of a compressed message: inflated as it comes, held until it is whole.
    Mirrored,
    /// A fragment of a compressed message that is compressed again.
    Recompressed,
    /// Held until it is whole, then sent back as a pong.
    Ping,
    /// Held until it is whole, then answered and the end.
    Close,
    /// A pong, or anything but a close once the server has sent its own.
    Ignored,
    /// The peer's close frame once the server has sent its own: the end, whatever it says.
    CloseAnswer,
}

/// The server's side of one connection.
#[derive(Debug)]
pub struct Connection {
    phase: Phase,
    message: Message,
    frame: Frame,
    /// Whether the frame ends its message.
    is_final: bool,
    /// The first octet of the frame, where it is compressed again.
    first: u8,
    /// The server wants to close, but stands within a frame of which a part is sent.
    close_wanted: Option<CloseCode>,
    mask: Mask,
    utf8: Utf8,
    /// Octets of the frame's payload still to come.
    payload_left: u64,
    /// Octets of the message in the fragments so far.
    message_bytes: u64,
    /// Where permessage-deflate was agreed on.
    compression: Option<Compression>,
}

impl Connection {
    /// A connection before its opening handshake.
    pub fn new(admission: Admission) -> Connection {
        Connection {
            phase: Phase::Handshake(admission),
            message: Message::None,
            frame: Frame::None,
            is_final: false,
            first: 0,
            close_wanted: None,
            mask: Mask::default(),
            utf8: Utf8::default(),
            payload_left: 0,
            message_bytes: 0,
            compression: None,
        }
    }

    /// Octets of payload received so far of the message that is unfinished; inflated, where it is
    /// compressed again.
    pub fn message_bytes(&self) -> u64 {
        let received = match self.frame {
            Frame::Text | Frame::Binary | Frame::Mirrored | Frame::Recompressed => {
                self.message_bytes - self.payload_left
            }
            Frame::None | Frame::Ping | Frame::Close | Frame::Ignored | Frame::CloseAnswer => {
                self.message_bytes
            }
        };
        match &self.compression {
            Some(compression) if compression.echo() == Echo::Recompressed => {
                received.max(compression.octets())
            }
            Some(_) | None => received,
        }
    }

    /// Whether the opening handshake is done.
    #[inline]
    pub fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// Whether compression is agreed on.
    pub fn is_compressed(&self) -> bool {
        self.compression.is_some()
    }

    /// Whether it stands between two messages, open and without compression: what comes next can be
    /// echoed by whoever sees it, knowing nothing of what came before.
    pub fn is_between_messages(&self) -> bool {
        self.phase == Phase::Open
            && self.frame == Frame::None
            && self.message == Message::None
            && self.close_wanted.is_none()
            && self.compression.is_none()
    }

    /// Turns all that is unread in `region` into reply, as far as it goes. What stays unread is
    /// the beginning of a request or of a header, or waits for [`Next::Expand`]; what stays held
    /// is the beginning of a frame. Both must stand in front of the next octets received.
    #[inline]
    pub fn advance(&mut self, region: &mut Region<'_>, context: &Context<'_>) -> Next {
        if self.phase != Phase::Open {
            return self.advance_slowly(region, context);
        }
        match self.frames(region, context) {
            Ok(()) if self.phase == Phase::Open => Next::Receive,
            Ok(()) => self.next(),
            Err(violation) => self.fail(violation, region, context),
        }
    }

    /// Begins the closing handshake from the server's side, with `code` and `reason`. Within a
    /// frame of which a part is already sent, the close frame follows that frame.
    pub fn close(
        &mut self,
        code: CloseCode,
        region: &mut Region<'_>,
        context: &Context<'_>,
    ) -> Next {
        match (self.phase, self.frame) {
            (Phase::Handshake(_) | Phase::Plain, _) => {
                region.skip_all();
                self.phase = Phase::Closed;
            }
            (Phase::Open, Frame::Binary) => self.close_wanted = Some(code),
            (Phase::Open, frame) => {
                region.retract();
                self.frame = match frame {
                    Frame::None => Frame::None,
                    Frame::Close | Frame::CloseAnswer => Frame::CloseAnswer,
                    Frame::Text
                    | Frame::Binary
                    | Frame::Mirrored
                    | Frame::Recompressed
                    | Frame::Ping
                    | Frame::Ignored => Frame::Ignored,
                };
                self.send_close(code, region, context);
            }
            // Nothing of that frame is written, so nothing of it needs to be sent.
            (Phase::Expanding, _) => self.send_close(code, region, context),
            (Phase::Closing | Phase::Closed, _) => {}
        }
        self.next()
    }

    #[cold]
    fn next(&self) -> Next {
        match self.phase {
            Phase::Closed => Next::Close,
            Phase::Expanding => Next::Expand(self.expanded_octets()),
            Phase::Handshake(_) | Phase::Open | Phase::Closing | Phase::Plain => Next::Receive,
        }
    }

    /// All phases but the usual one.
    #[cold]
    fn advance_slowly(&mut self, region: &mut Region<'_>, context: &Context<'_>) -> Next {
        if let Phase::Handshake(admission) = self.phase {
            match (context.settings.protocol, admission) {
                (Protocol::WebSocket, _) => self.handshake(admission, region, context),
                (Protocol::Tcp, Admission::Open) => self.phase = Phase::Plain,
                (Protocol::Tcp, Admission::Full) => self.phase = Phase::Closed,
            }
        }
        if self.phase == Phase::Plain {
            echo_plain(region, context);
        }
        if self.phase == Phase::Expanding {
            self.expand(region, context);
        }
        if matches!(self.phase, Phase::Open | Phase::Closing)
            && let Err(violation) = self.frames(region, context)
        {
            return self.fail(violation, region, context);
        }
        if self.phase == Phase::Closed {
            // Section 1.4: after its close frame the peer's further data is discarded.
            region.skip_all();
        }
        self.next()
    }

    fn handshake(&mut self, admission: Admission, region: &mut Region<'_>, context: &Context<'_>) {
        match handshake::answer(region.unread(), admission, context.settings.policy) {
            Ok(None) => {}
            Ok(Some(accepted)) => {
                region.skip(accepted.head_bytes);
                region.write(&accepted.response);
                region.release();
                self.compression = accepted.agreement.map(Compression::new);
                self.phase = Phase::Open;
            }
            Err(rejection) => {
                region.skip_all();
                region.write(&rejection.response());
                region.release();
                self.phase = Phase::Closed;
                // Who is over the limit was counted as he came.
                if admission == Admission::Open {
                    context.counters.connections_rejected.add(1);
                }
            }
        }
    }

    /// Fails the connection (section 7.1.7): what is owed, then a close frame with the code that
    /// the violation costs, then nothing.
    #[cold]
    fn fail(
        &mut self,
        violation: Violation,
        region: &mut Region<'_>,
        context: &Context<'_>,
    ) -> Next {
        context.counters.protocol_violations.add(1);
        region.retract();
        region.skip_all();
        if self.phase == Phase::Open {
            region.write(&close::frame(violation.close_code(), violation.reason()));
            context.counters.frames_out.add(1);
        }
        region.release();
        self.phase = Phase::Closed;
        Next::Close
    }

    fn send_close(&mut self, code: CloseCode, region: &mut Region<'_>, context: &Context<'_>) {
        region.write(&close::frame(code, ""));
        context.counters.frames_out.add(1);
        region.release();
        self.phase = Phase::Closing;
    }

    /// Echoes frames until there are no more octets or no more frames.
    #[inline]
    fn frames(&mut self, region: &mut Region<'_>, context: &Context<'_>) -> Result<(), Violation> {
        while !region.unread().is_empty() {
            if self.frame == Frame::None {
                if self.message == Message::None
                    && self.phase == Phase::Open
                    && short_message(region, context)?
                {
                    continue;
                }
                let extension_bits = if self.compression.is_some() { COMPRESSED } else { 0 };
                let Some(header) = Header::parse(region.unread(), extension_bits)? else {
                    return Ok(());
                };
                self.begin(&header, region, context)?;
            }
            self.payload(region, context)?;
            if self.payload_left > 0 {
                return Ok(());
            }
            self.finish(region, context)?;
            if matches!(self.phase, Phase::Closed | Phase::Expanding) {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Takes a header: checks it against the state, and writes the reply's header.
    #[inline]
    fn begin(
        &mut self,
        header: &Header,
        region: &mut Region<'_>,
        context: &Context<'_>,
    ) -> Result<(), Violation> {
        self.is_final = header.is_final;
        self.payload_left = header.payload_length;
        self.mask = header.mask;
        if self.phase == Phase::Closing {
            // Section 5.5.1: no frame may follow the server's own close frame.
            let is_close = header.opcode == Opcode::Close;
            self.frame = if is_close { Frame::CloseAnswer } else { Frame::Ignored };
            region.skip(header.header_length);
            return Ok(());
        }
        match (header.opcode, self.message) {
            (Opcode::Text, Message::None) if header.is_compressed => {
                self.message = Message::CompressedText;
            }
            (Opcode::Text, Message::None) => self.message = Message::Text,
            (Opcode::Binary, Message::None) if header.is_compressed => {
                self.message = Message::CompressedBinary;
            }
            (Opcode::Binary, Message::None) => self.message = Message::Binary,
            // Section 5.4: the fragments of one message must not be interleaved with another.
            (Opcode::Text | Opcode::Binary, _) => return Err(Violation::ContinuationExpected),
            (Opcode::Continuation, Message::None) => {
                return Err(Violation::ContinuationUnexpected);
            }
            (Opcode::Continuation | Opcode::Ping | Opcode::Pong | Opcode::Close, _) => {}
        }
        self.frame = match (header.opcode, self.message) {
            (Opcode::Ping, _) => Frame::Ping,
            (Opcode::Pong, _) => Frame::Ignored,
            (Opcode::Close, _) => Frame::Close,
            (_, Message::None | Message::Text) => Frame::Text,
            (_, Message::Binary) => Frame::Binary,
            (_, Message::CompressedText | Message::CompressedBinary) => {
                return self.begin_compressed(header, region, context);
            }
        };
        if matches!(self.frame, Frame::Text | Frame::Binary) {
            self.message_bytes = self.message_bytes.saturating_add(header.payload_length);
            if self.message_bytes > context.settings.message_max {
                return Err(Violation::MessageTooBig);
            }
        }
        if self.frame == Frame::Ignored {
            region.skip(header.header_length);
            return Ok(());
        }
        self.echo_header(header, region);
        Ok(())
    }

    /// Writes the reply's header, which is the request's without the mask bit and the key: the
    /// length is in its shortest form.
    #[inline]
    fn echo_header(&self, header: &Header, region: &mut Region<'_>) {
        let (bytes, to, from) = region.parts();
        let echoed = header.header_length - KEY;
        if echoed == 2 {
            bytes.copy_within(from..from + 2, to);
        } else {
            bytes.copy_within(from..from + echoed, to);
        }
        bytes[to + 1] &= !MASKED;
        if self.frame == Frame::Ping {
            bytes[to] = FINAL | Opcode::Pong as u8;
        }
        region.moved(echoed);
        region.skip(KEY);
    }

    /// Unmasks what is there of the payload to its place in the reply.
    #[inline]
    fn payload(&mut self, region: &mut Region<'_>, context: &Context<'_>) -> Result<(), Violation> {
        let (bytes, to, from) = region.parts();
        let count = self.payload_left.min((bytes.len() - from) as u64) as usize;
        if matches!(self.frame, Frame::Mirrored | Frame::Recompressed) {
            return self.compressed_payload(count, region, context);
        }
        if matches!(self.frame, Frame::Ignored | Frame::CloseAnswer) {
            self.payload_left -= count as u64;
            region.skip(count);
            return Ok(());
        }
        let is_ascii = mask::unmask(&mut bytes[to..from + count], from - to, self.mask);
        if self.frame == Frame::Text && !(is_ascii && self.utf8.is_complete()) {
            self.utf8.check(&bytes[to..to + count]).map_err(|_| Violation::TextNotUtf8)?;
        }
        self.payload_left -= count as u64;
        region.moved(count);
        if self.payload_left > 0 {
            self.mask = self.mask.after(count);
            if self.frame == Frame::Binary {
                region.release();
            }
        }
        Ok(())
    }

    /// Takes the end of a frame.
    #[inline]
    fn finish(&mut self, region: &mut Region<'_>, context: &Context<'_>) -> Result<(), Violation> {
        let frame = std::mem::replace(&mut self.frame, Frame::None);
        context.counters.frames_in.add(1);
        match frame {
            Frame::Text | Frame::Binary => {
                if self.is_final {
                    // Section 8.1: a text may not end within a character.
                    if !self.utf8.is_complete() {
                        return Err(Violation::TextNotUtf8);
                    }
                    self.message = Message::None;
                    self.message_bytes = 0;
                    context.counters.messages.add(1);
                }
                region.release();
                context.counters.frames_out.add(1);
                if let Some(code) = self.close_wanted.take() {
                    self.send_close(code, region, context);
                }
            }
            Frame::Mirrored | Frame::Recompressed => self.finish_compressed(region, context)?,
            Frame::Ping => {
                region.release();
                context.counters.frames_out.add(1);
            }
            Frame::Close => self.answer_close(region, context)?,
            Frame::CloseAnswer => {
                region.skip_all();
                self.phase = Phase::Closed;
            }
            Frame::Ignored | Frame::None => {}
        }
        Ok(())
    }

    /// Takes the header of a frame of a compressed message.
    #[inline(never)]
    fn begin_compressed(
        &mut self,
        header: &Header,
        region: &mut Region<'_>,
        context: &Context<'_>,
    ) -> Result<(), Violation> {
        let compression = self.compression.as_mut().expect("the header was allowed the bit");
        if header.is_compressed {
            compression.begin(context.settings.level);
        }
        self.message_bytes = self.message_bytes.saturating_add(header.payload_length);
        if self.message_bytes > deflate::compressed_max(context.settings.message_max) {
            return Err(Violation::MessageTooBig);
        }
        match compression.echo() {
            Echo::Mirrored => {
                self.frame = Frame::Mirrored;
                self.echo_header(header, region);
            }
            Echo::Recompressed => {
                self.frame = Frame::Recompressed;
                self.first = region.unread()[0];
                region.skip(header.header_length);
            }
        }
        Ok(())
    }

    /// Unmasks what is there of a compressed payload, and inflates it.
    #[inline(never)]
    fn compressed_payload(
        &mut self,
        count: usize,
        region: &mut Region<'_>,
        context: &Context<'_>,
    ) -> Result<(), Violation> {
        let (bytes, to, from) = region.parts();
        mask::unmask(&mut bytes[to..from + count], from - to, self.mask);
        self.mask = self.mask.after(count);
        self.payload_left -= count as u64;
        let (compression, mut bounds) = self.inflating(context);
        compression.take(&bytes[to..to + count], &mut bounds)?;
        if self.frame == Frame::Mirrored {
            region.moved(count);
        } else {
            region.skip(count);
        }
        Ok(())
    }

    /// Takes the end of a frame of a compressed message, of which `frame` is gone already.
    #[inline(never)]
    fn finish_compressed(
        &mut self,
        region: &mut Region<'_>,
        context: &Context<'_>,
    ) -> Result<(), Violation> {
        let is_final = self.is_final;
        let (compression, mut bounds) = self.inflating(context);
        let echo = compression.echo();
        if is_final {
            compression.finish(&mut bounds)?;
            // Section 8.1: a text may not end within a character.
            if !self.utf8.is_complete() {
                return Err(Violation::TextNotUtf8);
            }
            self.message = Message::None;
            self.message_bytes = 0;
        }
        match echo {
            Echo::Mirrored => {
                region.release();
                context.counters.frames_out.add(1);
                if self.is_final {
                    context.counters.messages.add(1);
                    context.counters.messages_mirrored.add(1);
                }
            }
            Echo::Recompressed => {
                self.phase = Phase::Expanding;
                self.expand(region, context);
            }
        }
        Ok(())
    }

    /// Writes the frame that was compressed again, where the region has room for it.
    fn expand(&mut self, region: &mut Region<'_>, context: &Context<'_>) {
        if region.gap() < self.expanded_octets() {
            return;
        }
        let output = self.compression.as_mut().map(Compression::take_output).unwrap_or_default();
        let (header, octets) = frame::reply_header(self.first, output.len());
        region.write(&header[..octets]);
        region.write(&output);
        region.release();
        self.phase = Phase::Open;
        context.counters.frames_out.add(1);
        if self.is_final {
            context.counters.messages.add(1);
            context.counters.messages_recompressed.add(1);
        }
    }

    /// The length of the frame that waits to be written.
    fn expanded_octets(&self) -> usize {
        let payload = self.compression.as_ref().map_or(0, Compression::output_octets);
        frame::reply_header(self.first, payload).1 + payload
    }

    fn inflating<'c>(&'c mut self, context: &'c Context<'_>) -> (&'c mut Compression, Bounds<'c>) {
        let compression = self.compression.as_mut().expect("a compressed message was begun");
        let bounds = Bounds {
            message_max: context.settings.message_max,
            scratch: &context.scratch,
            text: (self.message == Message::CompressedText).then_some(&mut self.utf8),
        };
        (compression, bounds)
    }

    /// Answers a close frame with its own code (section 5.5.1).
    #[cold]
    fn answer_close(
        &mut self,
        region: &mut Region<'_>,
        context: &Context<'_>,
    ) -> Result<(), Violation> {
        let code = close::check(&region.held()[2..])?;
        region.retract();
        match code {
            Some(code) => region.write(&close::frame(code, "")),
            None => region.write(&[FINAL | Opcode::Close as u8, 0]),
        }
        context.counters.frames_out.add(1);
        region.release();
        region.skip_all();
        self.phase = Phase::Closed;
        Ok(())
    }
}

/// Echoes all that is unread, as it is.
fn echo_plain(region: &mut Region<'_>, context: &Context<'_>) {
    let (bytes, to, from) = region.parts();
    let count = bytes.len() - from;
    if count > 0 {
        bytes.copy_within(from.., to);
        region.moved(count);
        region.release();
        context.counters.messages.add(1);
    }
}

/// Echoes the message at the beginning of what is unread, if it is one whole frame of at most 125
/// octets: a shorter way to what [`Connection::frames`] does, for the messages that latency is
/// measured with. Says whether it was such a message; if not, nothing has changed.
#[inline]
fn short_message(region: &mut Region<'_>, context: &Context<'_>) -> Result<bool, Violation> {
    const TEXT: u8 = FINAL | Opcode::Text as u8;
    const BINARY: u8 = FINAL | Opcode::Binary as u8;
    let (bytes, to, from) = region.parts();
    let Some(&[first @ (TEXT | BINARY), second, ref key @ ..]) = bytes[from..].first_chunk::<6>()
    else {
        return Ok(false);
    };
    // Without the mask bit this is more than any payload.
    let payload = second ^ MASKED;
    let count = usize::from(payload);
    let end = from + 2 + KEY + count;
    if payload > context.short_max || end > bytes.len() {
        return Ok(false);
    }
    let mask = Mask::new(*key);
    let [reply_first, reply_second, window @ ..] = &mut bytes[to..end] else {
        unreachable!("the request is longer than its reply");
    };
    let is_ascii = mask::unmask(window, from + KEY - to, mask);
    if first == TEXT && !is_ascii && !utf8::is_valid(&window[..count]) {
        return Err(Violation::TextNotUtf8);
    }
    *reply_first = first;
    *reply_second = payload;
    region.replied(to + 2 + count, end);
    context.counters.messages.add(1);
    context.counters.frames_in.add(1);
    context.counters.frames_out.add(1);
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::{Cursors, HEADROOM, Spill};

    const SETTINGS: Settings = Settings {
        protocol: Protocol::WebSocket,
        message_max: 1000,
        policy: Policy::Mirror,
        level: 6,
    };
    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: test\r\nUpgrade: websocket\r\n\
        Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
        Sec-WebSocket-Version: 13\r\n\r\n";

    /// A connection behind its handshake, in a region of its own.
    struct Talk {
        connection: Connection,
        spill: Spill,
        counters: Counters,
    }

    impl Talk {
        fn open() -> Talk {
            let mut talk = Talk {
                connection: Connection::new(Admission::Open),
                spill: Spill::default(),
                counters: Counters::default(),
            };
            let (answer, next) = talk.hear(REQUEST);
            assert!(answer.starts_with(b"HTTP/1.1 101 "));
            assert_eq!(next, Next::Receive);
            talk
        }

        /// What is answered to `octets`, and what follows.
        fn hear(&mut self, octets: &[u8]) -> (Vec<u8>, Next) {
            self.spill.append(octets);
            let context = Context::new(SETTINGS, &self.counters);
            let next = self.connection.advance(&mut self.spill.region(), &context);
            (self.reply(), next)
        }

        fn close(&mut self) -> (Vec<u8>, Next) {
            let context = Context::new(SETTINGS, &self.counters);
            let region = &mut self.spill.region();
            let next = self.connection.close(CloseCode::GOING_AWAY, region, &context);
            (self.reply(), next)
        }

        fn reply(&mut self) -> Vec<u8> {
            if !self.spill.has_reply() {
                return Vec::new();
            }
            let (reply, rest) = std::mem::take(&mut self.spill).split_reply();
            self.spill = rest.unwrap_or_default();
            reply.to_vec()
        }
    }

    /// A client's frame with the masking key 1, 2, 3, 4.
    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![first];
        match payload.len() {
            short @ 0..=125 => frame.push(MASKED | short as u8),
            long => {
                frame.push(MASKED | 126);
                frame.extend((long as u16).to_be_bytes());
            }
        }
        frame.extend([1, 2, 3, 4]);
        frame.extend(payload.iter().enumerate().map(|(at, octet)| octet ^ (at % 4 + 1) as u8));
        frame
    }

    fn close_of(violation: Violation) -> Vec<u8> {
        close::frame(violation.close_code(), violation.reason())
    }

    #[test]
    fn a_ping_between_two_fragments_is_answered_between_them() {
        let mut talk = Talk::open();
        assert_eq!(talk.hear(&frame(0x01, b"one ")).0, b"\x01\x04one ");
        assert_eq!(talk.hear(&frame(0x89, b"ping")).0, b"\x8a\x04ping");
        assert_eq!(talk.hear(&frame(0x80, b"two")).0, b"\x80\x03two");
        assert_eq!(talk.counters.messages.value(), 1);
        assert_eq!(talk.counters.frames_in.value(), 3);
    }

    #[test]
    fn binary_payload_goes_out_as_it_comes_and_text_when_it_is_whole() {
        for (first, expected) in
            [(0x82, [&b"\x82\x7e\x00\xc8"[..], &[7; 100]].concat()), (0x81, vec![])]
        {
            let whole = frame(first, &[7; 200]);
            let mut talk = Talk::open();
            let (half, rest) = whole.split_at(108);
            let (early, _) = talk.hear(half);
            assert_eq!(early, expected, "first octet {first:x}");
            let (late, _) = talk.hear(rest);
            assert_eq!([early, late].concat(), [&[first, 126, 0, 200][..], &[7; 200]].concat());
        }
    }

    #[test]
    fn wrong_text_fails_at_its_first_wrong_octet_and_takes_nothing_owed_with_it() {
        let mut talk = Talk::open();
        let mut octets = frame(0x81, b"right");
        octets.extend(&frame(0x81, b"ab\xff and more that never comes")[..6 + 3]);
        let (reply, next) = talk.hear(&octets);
        assert_eq!(reply, [&b"\x81\x05right"[..], &close_of(Violation::TextNotUtf8)].concat());
        assert_eq!(next, Next::Close);
    }

    #[test]
    fn a_text_may_not_end_within_a_character_though_a_fragment_may() {
        let mut talk = Talk::open();
        assert_eq!(talk.hear(&frame(0x01, b"\xe2\x82")).0, b"\x01\x02\xe2\x82");
        assert_eq!(talk.hear(&frame(0x00, b"\xac\xe2")).0, b"\x00\x02\xac\xe2");
        let (reply, _) = talk.hear(&frame(0x80, b""));
        assert_eq!(reply, close_of(Violation::TextNotUtf8));
    }

    #[test]
    fn the_message_counts_against_the_limit_and_not_the_fragment() {
        let mut talk = Talk::open();
        assert_eq!(talk.hear(&frame(0x02, &[0; 600])).0.len(), 604);
        let (reply, next) = talk.hear(&frame(0x80, &[0; 401]));
        assert_eq!(reply, close_of(Violation::MessageTooBig));
        assert_eq!(next, Next::Close);
        assert_eq!(talk.counters.protocol_violations.value(), 1);
    }

    #[test]
    fn a_close_is_answered_with_its_code_and_nothing_behind_it_is_heard() {
        let mut talk = Talk::open();
        let mut octets = frame(0x88, b"\x03\xe8bye");
        octets.extend(frame(0x81, b"too late"));
        assert_eq!(talk.hear(&octets), (b"\x88\x02\x03\xe8".to_vec(), Next::Close));
        assert_eq!(talk.hear(&frame(0x81, b"later")), (vec![], Next::Close));
        let mut talk = Talk::open();
        assert_eq!(talk.hear(&frame(0x88, b"")).0, b"\x88\x00");
    }

    #[test]
    fn the_servers_close_waits_for_the_end_of_a_binary_frame_and_takes_back_text() {
        let mut talk = Talk::open();
        let binary = frame(0x82, b"binary");
        assert_eq!(talk.hear(&binary[..8]).0, b"\x82\x06bi");
        assert_eq!(talk.close(), (vec![], Next::Receive));
        assert_eq!(talk.hear(&binary[8..]).0, b"nary\x88\x02\x03\xe9");

        let mut talk = Talk::open();
        let text = frame(0x81, b"text");
        assert_eq!(talk.hear(&text[..8]).0, b"");
        assert_eq!(talk.close(), (b"\x88\x02\x03\xe9".to_vec(), Next::Receive));
        assert_eq!(talk.hear(&text[8..]), (vec![], Next::Receive));
        assert_eq!(talk.hear(&frame(0x82, b"ignored")), (vec![], Next::Receive));
        assert_eq!(talk.hear(&frame(0x88, b"\x03\xe9")), (vec![], Next::Close));
    }

    #[test]
    fn the_servers_close_crosses_the_peers() {
        let mut talk = Talk::open();
        let close = frame(0x88, b"\x03\xe8");
        assert_eq!(talk.hear(&close[..7]).0, b"");
        assert_eq!(talk.close().0, b"\x88\x02\x03\xe9");
        assert_eq!(talk.hear(&close[7..]), (vec![], Next::Close));
    }

    #[test]
    fn a_whole_pipeline_is_one_reply_in_the_buffer_of_the_request() {
        let mut talk = Talk::open();
        let mut octets = frame(0x81, b"first");
        octets.extend(frame(0x82, &[9; 200]));
        octets.extend(frame(0x8a, b"unasked pong"));
        octets.extend(frame(0x81, "größer".as_bytes()));
        let mut bytes = [&[0; HEADROOM][..], &octets].concat();
        let mut cursors = Cursors::received(octets.len());
        let context = Context::new(SETTINGS, &talk.counters);
        let next = talk.connection.advance(&mut Region::new(&mut bytes, &mut cursors), &context);
        assert_eq!(next, Next::Receive);
        assert!(!cursors.has_leftover());
        let expected =
            [&b"\x81\x05first\x82\x7e\x00\xc8"[..], &[9; 200], b"\x81\x08", "größer".as_bytes()];
        assert_eq!(bytes[cursors.reply()], expected.concat());
    }
}
