//! Frames become replies: header, payload and end of each.
//!
//! This file does not know what is in a compressed payload; it hands such frames to `compressed`. Short
//! messages go a shorter way, through `short`.

use super::{Connection, Frame, Message, Pause, Phase, short};
use crate::buffer::Region;
use crate::protocol::allowance;
use crate::protocol::close;
use crate::protocol::context::Context;
use crate::protocol::frame::{COMPRESSED, FINAL, Header, KEY, MASKED, Opcode};
use crate::protocol::mask;
use crate::protocol::violation::Violation;

impl Connection {
    /// Echoes frames until the bytes, the frames or the allowance end. The first frame is not charged
    /// if nothing follows it: that is a message which came alone.
    #[inline]
    pub(super) fn frames(
        &mut self,
        region: &mut Region<'_>,
        context: &Context<'_>,
    ) -> Result<Pause, Violation> {
        while region.has_unread() {
            if self.frame == Frame::None {
                if self.message == Message::None
                    && self.phase == Phase::Open
                    && short::echo_next(region, context)?
                {
                    if region.has_unread() && context.allowance.is_spent_with(allowance::FRAME) {
                        return Ok(Pause::Spent);
                    }
                    continue;
                }
                let extension_bits = if self.compression.is_some() { COMPRESSED } else { 0 };
                let Some(header) = Header::parse(region.unread(), extension_bits)? else {
                    return Ok(Pause::Drained);
                };
                self.begin(&header, region, context)?;
            }
            self.payload(region, context)?;
            if self.phase == Phase::Inflating {
                return Ok(Pause::Spent);
            }
            if self.payload_left > 0 {
                return Ok(if region.has_unread() { Pause::Spent } else { Pause::Drained });
            }
            self.finish(region, context)?;
            if matches!(self.phase, Phase::Closed | Phase::Expanding) {
                return Ok(Pause::Drained);
            }
            if region.has_unread() && context.allowance.is_spent_with(allowance::FRAME) {
                return Ok(Pause::Spent);
            }
        }
        Ok(Pause::Drained)
    }

    /// Starts a frame: checks its header against the state, and writes the reply's header.
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
            (Opcode::Continuation, _) => self.count_fragment(header, context)?,
            (Opcode::Ping | Opcode::Pong, _) => self.count_control(context)?,
            // It is the last frame.
            (Opcode::Close, _) => {}
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

    /// Counts a frame that continues a message. The first frame of the message counts too.
    fn count_fragment(&mut self, header: &Header, context: &Context<'_>) -> Result<(), Violation> {
        // Senders that cut a message into equal parts may end it with an empty frame.
        let is_counted = !header.is_final || header.payload_length > 0;
        if is_counted && self.fragments.saturating_add(2) > context.settings.frames.message {
            return Err(Violation::MessageFramesTooMany);
        }
        self.fragments = if header.is_final { 0 } else { self.fragments.saturating_add(1) };
        Ok(())
    }

    /// Counts a ping or a pong.
    fn count_control(&mut self, context: &Context<'_>) -> Result<(), Violation> {
        let second = context.now.get().second();
        if second != self.controls_second {
            self.controls_second = second;
            self.controls = 0;
        }
        self.controls = self.controls.saturating_add(1);
        if self.controls > context.settings.frames.control {
            return Err(Violation::ControlFramesTooMany);
        }
        Ok(())
    }

    /// Writes the reply's header: the request's without mask bit and key. Its length is already in
    /// the shortest form.
    #[inline]
    pub(super) fn echo_header(&self, header: &Header, region: &mut Region<'_>) {
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

    /// Unmasks the received part of the payload to its place in the reply, or as much of it as the
    /// allowance allows.
    #[inline]
    fn payload(&mut self, region: &mut Region<'_>, context: &Context<'_>) -> Result<(), Violation> {
        let (bytes, to, from) = region.parts();
        let most = self.payload_left.min((bytes.len() - from) as u64);
        if matches!(self.frame, Frame::Ignored | Frame::CloseAnswer) {
            let count = most as usize;
            self.payload_left -= count as u64;
            region.skip(count);
            return Ok(());
        }
        let count = most.min(context.allowance.plain_bytes()) as usize;
        context.allowance.spend(count as i64 / allowance::PLAIN_BYTES);
        if matches!(self.frame, Frame::Mirrored | Frame::Recompressed) {
            return self.compressed_payload(count, region, context);
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

    /// How many of the next `received` bytes [`Connection::payload_into`] can take: those of a plain
    /// payload that has begun, up to its last byte, which ends the frame.
    pub fn direct_bytes(&self, received: usize, context: &Context<'_>) -> usize {
        let is_plain =
            self.phase == Phase::Open && matches!(self.frame, Frame::Text | Frame::Binary);
        if !is_plain || context.allowance.is_spent() {
            return 0;
        }
        self.payload_left.saturating_sub(1).min(received as u64) as usize
    }

    /// Unmasks payload into `target`, the end of what is written in the region. Appending it to the region
    /// and advancing does the same in two passes, one of which has to be made wherever the payload goes. So
    /// only checking it is charged.
    pub fn payload_into(
        &mut self,
        received: &mut [u8],
        target: &mut [u8],
        context: &Context<'_>,
    ) -> Result<(), Violation> {
        let is_ascii = mask::unmask_into(received, target, self.mask);
        if self.frame == Frame::Text && !(is_ascii && self.utf8.is_complete()) {
            context.allowance.spend(target.len() as i64 / allowance::PLAIN_BYTES);
            self.utf8.check(target).map_err(|_| Violation::TextNotUtf8)?;
        }
        self.mask = self.mask.after(target.len());
        self.payload_left -= target.len() as u64;
        Ok(())
    }

    /// Whether payload may be sent before its frame is whole.
    pub fn is_sent_early(&self) -> bool {
        self.frame == Frame::Binary
    }

    /// Ends a frame.
    #[inline]
    pub(super) fn finish(
        &mut self,
        region: &mut Region<'_>,
        context: &Context<'_>,
    ) -> Result<(), Violation> {
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
                if let Some(dismissal) = self.close_wanted.take() {
                    self.send_close(dismissal, region, context);
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
        self.end_compression();
        Ok(())
    }
}
