//! Frames of compressed messages: inflated to be checked, then mirrored or recompressed.
//!
//! `compression` inflates and compresses; this file knows where the bytes are in the region.

use super::{Connection, Frame, Message, Phase};
use crate::buffer::Region;
use crate::protocol::compression::{self, Bounds, Compression};
use crate::protocol::context::Context;
use crate::protocol::extension::Echo;
use crate::protocol::frame::{self, Header};
use crate::protocol::mask;
use crate::protocol::violation::Violation;

impl Connection {
    /// Starts a frame of a compressed message.
    #[inline(never)]
    pub(super) fn begin_compressed(
        &mut self,
        header: &Header,
        region: &mut Region<'_>,
        context: &Context<'_>,
    ) -> Result<(), Violation> {
        let compression = self.compression.as_mut().expect("the header was allowed the bit");
        if header.is_compressed {
            compression.begin(context.settings.level, &context.pool, &context.allowance);
        }
        self.message_bytes = self.message_bytes.saturating_add(header.payload_length);
        if self.message_bytes > compression::compressed_max(context.settings.message_max) {
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

    /// Unmasks the next `count` bytes of a compressed payload, and inflates them as far as the allowance
    /// allows.
    #[inline(never)]
    pub(super) fn compressed_payload(
        &mut self,
        count: usize,
        region: &mut Region<'_>,
        context: &Context<'_>,
    ) -> Result<(), Violation> {
        let (bytes, to, from) = region.parts();
        mask::unmask(&mut bytes[to..from + count], from - to, self.mask);
        self.mask = self.mask.after(count);
        self.payload_left -= count as u64;
        region.moved(count);
        self.uninflated = count as u32;
        self.inflate_held(region, context)
    }

    /// Goes on inflating a frame that was interrupted.
    pub(super) fn inflate(
        &mut self,
        region: &mut Region<'_>,
        context: &Context<'_>,
    ) -> Result<(), Violation> {
        self.inflate_held(region, context)?;
        if self.phase == Phase::Open && self.payload_left == 0 {
            self.finish(region, context)?;
        }
        Ok(())
    }

    /// Inflates what is unmasked. The phase says whether anything of it is left.
    fn inflate_held(
        &mut self,
        region: &mut Region<'_>,
        context: &Context<'_>,
    ) -> Result<(), Violation> {
        let held = region.held();
        let piece = &held[held.len() - self.uninflated as usize..];
        let (compression, mut bounds) = self.inflating(context);
        let taken = compression.take(piece, &mut bounds)?;
        self.uninflated -= taken.bytes as u32;
        self.phase = if taken.is_done { Phase::Open } else { Phase::Inflating };
        if self.frame == Frame::Recompressed && self.uninflated == 0 {
            region.retract();
        }
        Ok(())
    }

    /// Ends a frame of a compressed message; `self.frame` is already reset.
    #[inline(never)]
    pub(super) fn finish_compressed(
        &mut self,
        region: &mut Region<'_>,
        context: &Context<'_>,
    ) -> Result<(), Violation> {
        let is_final = self.is_final;
        let (compression, _) = self.inflating(context);
        let echo = compression.echo();
        if is_final {
            compression.finish(&context.pool, &context.allowance)?;
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

    /// Writes the recompressed frame, if the region has room for it.
    pub(super) fn expand(&mut self, region: &mut Region<'_>, context: &Context<'_>) {
        if region.gap() < self.expanded_bytes() {
            return;
        }
        let take = |compression: &mut Compression| compression.take_output(&context.pool);
        let output = self.compression.as_mut().map(take).unwrap_or_default();
        let (header, length) = frame::reply_header(self.first, output.len());
        region.write(&header[..length]);
        region.write(&output);
        region.release();
        self.phase = Phase::Open;
        context.counters.frames_out.add(1);
        if self.is_final {
            context.counters.messages.add(1);
            context.counters.messages_recompressed.add(1);
        }
        if let Some(dismissal) = self.close_wanted.take() {
            self.send_close(dismissal, region, context);
        }
    }

    /// The length of the recompressed frame that waits to be written, in bytes.
    pub(super) fn expanded_bytes(&self) -> usize {
        let payload = self.compression.as_ref().map_or(0, Compression::output_bytes);
        frame::reply_header(self.first, payload).1 + payload
    }

    fn inflating<'c>(&'c mut self, context: &'c Context<'_>) -> (&'c mut Compression, Bounds<'c>) {
        let compression = self.compression.as_mut().expect("a compressed message was begun");
        let bounds = Bounds {
            message_max: context.settings.message_max,
            scratch: &context.scratch,
            allowance: &context.allowance,
            level: context.settings.level,
            text: (self.message == Message::CompressedText).then_some(&mut self.utf8),
        };
        (compression, bounds)
    }
}
