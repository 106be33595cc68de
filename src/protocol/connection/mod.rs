//! One connection of the server, from the opening handshake to the close: received bytes become
//! the reply in place.
//!
//! The echo of a frame is its own header without mask bit and masking key, followed by the unmasked
//! payload. The reply overwrites the request from left to right and never overtakes it. Fragments
//! stay fragments; nothing is reassembled. Binary payload may be sent as it arrives. Text and
//! control frames are held until they are whole, because their content may break a rule, and a
//! close frame cannot be sent in the middle of another frame.
//!
//! Compressed frames are held too, and inflated as they arrive to be checked. Mirrored messages are
//! echoed by their compressed payload, like any other frame. When a message is recompressed, nothing
//! of the request is kept, and the reply is written when the frame is whole.
//!
//! This file owns the phases and the transitions between them; `frames` turns frames into replies,
//! `short` whole short messages, `compressed` the frames of compressed ones. The module does no input or
//! output and reads no clock. It does not know whose memory the region is, nor when its reply is sent.

mod compressed;
mod frames;
mod short;
#[cfg(test)]
mod tests;

use super::allowance;
use super::close;
use super::compression::Compression;
use super::context::{Context, Protocol};
use super::dismissal::Dismissal;
use super::extension::Echo;
use super::frame::{FINAL, Opcode};
use super::handshake::{self, Admission, Rejection};
use super::mask::Mask;
use super::utf8::Utf8;
use super::violation::Violation;
use crate::buffer::Region;

/// What the caller does when the reply in the region is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Next {
    /// Receive more.
    Receive,
    /// Let other connections go on, then call [`Connection::advance`] again: the allowance is used up,
    /// and more can be done without receiving.
    Yield,
    /// Call [`Connection::advance`] again immediately, with a region whose gap has at least this many
    /// bytes: a recompressed message is longer than its request. The caller may send more of the
    /// reply first.
    Expand(usize),
    /// Call [`Connection::fail`] with a region that has room for a close frame, then do as for
    /// [`Next::Close`]: the peer broke a rule.
    Fail(Violation),
    /// Shut the connection down for writing and read until the peer ends it: the close handshake is
    /// done, or the connection has failed.
    Close,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Before the opening handshake.
    Handshake(Admission),
    /// Frames are echoed.
    Open,
    /// Frames are echoed, but a compressed frame is still being inflated.
    Inflating,
    /// Frames are echoed, but a recompressed frame waits for room in the region.
    Expanding,
    /// The server has sent a close frame and waits for the peer's.
    Closing,
    /// Bytes are echoed: there are no frames.
    Plain,
    /// Nothing more is read or written.
    Closed,
}

/// Why no more frames are echoed now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pause {
    /// More must be received first, or the phase has changed.
    Drained,
    /// The allowance is used up.
    Spent,
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
    /// None: the next byte is the first of a header.
    None,
    /// A fragment of text: checked as it arrives, held until it is whole.
    Text,
    /// A fragment of a binary message: sent as it arrives.
    Binary,
    /// A fragment of a mirrored message: inflated as it arrives, held until it is whole.
    Mirrored,
    /// A fragment of a message that is recompressed.
    Recompressed,
    /// Held until it is whole, then sent back as a pong.
    Ping,
    /// Held until it is whole, then answered, which ends the connection.
    Close,
    /// A pong, or any frame but a close after the server has sent its own close.
    Ignored,
    /// The peer's close frame after the server has sent its own: ends the connection, whatever its
    /// payload.
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
    /// The first byte of the frame, if it is recompressed.
    first: u8,
    /// Bytes at the end of what the region holds that are unmasked but not inflated yet. More than none
    /// only in [`Phase::Inflating`].
    uninflated: u32,
    /// Why a close frame follows the current frame, of which a part is already sent.
    close_wanted: Option<Dismissal>,
    /// Pings and pongs in the second `controls_second`.
    controls: u16,
    controls_second: u16,
    /// Frames that have continued the unfinished message.
    fragments: u32,
    mask: Mask,
    utf8: Utf8,
    /// Bytes of the frame's payload still to arrive.
    payload_left: u64,
    /// Payload bytes of the message, in its fragments so far.
    message_bytes: u64,
    /// Present if permessage-deflate was negotiated.
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
            uninflated: 0,
            close_wanted: None,
            controls: 0,
            controls_second: 0,
            fragments: 0,
            mask: Mask::default(),
            utf8: Utf8::default(),
            payload_left: 0,
            message_bytes: 0,
            compression: None,
        }
    }

    /// Payload bytes received so far of the unfinished message; inflated bytes, if it is recompressed
    /// and those are more.
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
                received.max(compression.inflated_bytes())
            }
            Some(_) | None => received,
        }
    }

    /// Bytes still to arrive of a frame that is held until it is whole; 0 if there is none.
    pub fn held_left(&self) -> usize {
        // A frame that was refused counts for nothing, however long it was to be.
        if self.phase != Phase::Open {
            return 0;
        }
        match self.frame {
            // At most the largest message, which fits.
            Frame::Text | Frame::Mirrored => self.payload_left as usize,
            Frame::None
            | Frame::Binary
            | Frame::Recompressed
            | Frame::Ping
            | Frame::Close
            | Frame::Ignored
            | Frame::CloseAnswer => 0,
        }
    }

    /// Whether the opening handshake is done.
    #[inline]
    pub fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// Whether what is received next is part of the opening handshake, whose answer may be longer.
    #[inline]
    pub fn is_in_handshake(&self) -> bool {
        matches!(self.phase, Phase::Handshake(_))
    }

    /// Whether a close frame follows the current frame, which makes the reply longer than the request.
    pub fn owes_close(&self) -> bool {
        self.close_wanted.is_some()
    }

    /// Whether the server has sent its close frame, so that it drops what comes until the peer's.
    pub fn is_closing(&self) -> bool {
        self.phase == Phase::Closing
    }

    /// Heap memory for compression, in bytes.
    pub fn compression_bytes(&self) -> usize {
        self.compression.as_ref().map_or(0, Compression::memory_bytes)
    }

    /// Whether a recompressed frame waits for room in the region: see [`Next::Expand`].
    #[inline]
    pub fn is_expanding(&self) -> bool {
        self.phase == Phase::Expanding
    }

    /// Whether permessage-deflate was negotiated.
    pub fn is_compressed(&self) -> bool {
        self.compression.is_some()
    }

    /// Whether the connection is open, between two messages and without compression. Whoever sees the
    /// next message can then echo it without knowing anything of the earlier ones.
    pub fn is_between_messages(&self) -> bool {
        self.phase == Phase::Open
            && self.frame == Frame::None
            && self.message == Message::None
            && self.close_wanted.is_none()
            && self.compression.is_none()
    }

    /// Turns as much of the unread bytes in `region` into reply as possible. What stays unread is the
    /// beginning of a request or of a header, or waits for [`Next::Expand`]; what stays held is the
    /// beginning of a frame. The next received bytes must follow both directly.
    #[inline]
    pub fn advance(&mut self, region: &mut Region<'_>, context: &Context<'_>) -> Next {
        if self.phase != Phase::Open {
            return self.advance_slowly(region, context);
        }
        match self.frames(region, context) {
            Ok(Pause::Drained) if self.phase == Phase::Open => Next::Receive,
            Ok(pause) => self.next(pause),
            Err(violation) => self.violated(violation, region, context),
        }
    }

    /// Starts the closing handshake. If a part of a frame is already sent, the close frame follows that
    /// frame. A peer that has not finished its opening handshake is told nothing.
    pub fn dismiss(
        &mut self,
        dismissal: Dismissal,
        region: &mut Region<'_>,
        context: &Context<'_>,
    ) -> Next {
        match (self.phase, self.frame) {
            (Phase::Handshake(_) | Phase::Plain, _) => {
                region.skip_all();
                self.phase = Phase::Closed;
            }
            (Phase::Open, Frame::Binary) => {
                self.close_wanted.get_or_insert(dismissal);
            }
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
                self.send_close(dismissal, region, context);
            }
            // Nothing of the frame is released yet, so it is left out.
            (Phase::Inflating, _) => {
                region.retract();
                self.uninflated = 0;
                let is_whole = self.payload_left == 0;
                self.frame = if is_whole { Frame::None } else { Frame::Ignored };
                self.send_close(dismissal, region, context);
            }
            // The message was received whole, so it is echoed first, unless there is no memory for that.
            (Phase::Expanding, _) if dismissal != Dismissal::Memory => {
                self.close_wanted.get_or_insert(dismissal);
            }
            (Phase::Expanding, _) => self.send_close(dismissal, region, context),
            (Phase::Closing | Phase::Closed, _) => {}
        }
        self.next(Pause::Drained)
    }

    /// Writes a ping, unless that would stand within another frame. Returns whether it is written.
    pub fn ping(&mut self, region: &mut Region<'_>, context: &Context<'_>) -> bool {
        if self.phase != Phase::Open || self.frame != Frame::None {
            return false;
        }
        region.write(&[FINAL | Opcode::Ping as u8, 0]);
        region.release();
        context.counters.frames_out.add(1);
        context.counters.pings_sent.add(1);
        true
    }

    /// Refuses a peer that takes too long for its opening handshake. Returns whether it was still in it.
    pub fn refuse_late(&mut self, region: &mut Region<'_>, context: &Context<'_>) -> bool {
        let Phase::Handshake(admission) = self.phase else { return false };
        if context.settings.protocol == Protocol::WebSocket {
            self.reject(Rejection::TooSlow, admission, region, context);
        } else {
            self.phase = Phase::Closed;
        }
        true
    }

    #[cold]
    fn next(&self, pause: Pause) -> Next {
        match self.phase {
            Phase::Closed => Next::Close,
            Phase::Inflating => Next::Yield,
            Phase::Expanding => Next::Expand(self.expanded_bytes()),
            _ if pause == Pause::Spent => Next::Yield,
            Phase::Handshake(_) | Phase::Open | Phase::Closing | Phase::Plain => Next::Receive,
        }
    }

    /// [`Connection::advance`] in all phases but [`Phase::Open`].
    #[cold]
    fn advance_slowly(&mut self, region: &mut Region<'_>, context: &Context<'_>) -> Next {
        if let Phase::Handshake(admission) = self.phase {
            match (context.settings.protocol, admission) {
                (Protocol::WebSocket, _) => {
                    if let Some(room) = self.handshake(admission, region, context) {
                        return Next::Expand(room);
                    }
                }
                (Protocol::Tcp, Admission::Open) => self.phase = Phase::Plain,
                (Protocol::Tcp, Admission::Full | Admission::TooMany) => self.phase = Phase::Closed,
            }
        }
        if self.phase == Phase::Plain {
            echo_plain(region, context);
        }
        let pause = match self.resume(region, context) {
            Ok(pause) => pause,
            Err(violation) => return self.violated(violation, region, context),
        };
        if self.phase == Phase::Closed {
            // Section 1.4: whatever the peer sends after its close frame is discarded.
            region.skip_all();
        }
        self.next(pause)
    }

    /// Finishes the frame that was interrupted, then goes on with the next ones.
    fn resume(
        &mut self,
        region: &mut Region<'_>,
        context: &Context<'_>,
    ) -> Result<Pause, Violation> {
        if self.phase == Phase::Inflating {
            self.inflate(region, context)?;
        }
        if self.phase == Phase::Expanding {
            self.expand(region, context);
        }
        match self.phase {
            Phase::Open | Phase::Closing => self.frames(region, context),
            Phase::Handshake(_)
            | Phase::Inflating
            | Phase::Expanding
            | Phase::Plain
            | Phase::Closed => Ok(Pause::Drained),
        }
    }

    /// Answers the opening handshake, if it is whole. If the answer needs more room in the region than there is,
    /// returns how much, in bytes.
    fn handshake(
        &mut self,
        admission: Admission,
        region: &mut Region<'_>,
        context: &Context<'_>,
    ) -> Option<usize> {
        match handshake::answer(region.unread(), admission, &context.terms()) {
            Ok(None) => {}
            Ok(Some(accepted)) => {
                region.skip(accepted.head_bytes);
                region.write(&accepted.response);
                region.release();
                context.allowance.spend(allowance::HANDSHAKE);
                if accepted.compression_declined {
                    context.counters.compression_declined.add(1);
                }
                self.compression = accepted.agreement.map(|agreement| {
                    Compression::new(agreement, context.recompression.reserve(&agreement))
                });
                self.phase = Phase::Open;
            }
            Err(rejection) if admission == Admission::Open => {
                let page = context.page_for(region.unread(), rejection);
                let Some(parts) = page else {
                    self.reject(rejection, admission, region, context);
                    return None;
                };
                let room = parts.iter().map(|part| part.len()).sum();
                if region.gap() < room {
                    return Some(room);
                }
                region.skip_all();
                parts.iter().for_each(|part| region.write(part));
                region.release();
                self.phase = Phase::Closed;
                context.counters.pages_served.add(1);
            }
            Err(rejection) => self.reject(rejection, admission, region, context),
        }
        None
    }

    #[cold]
    fn reject(
        &mut self,
        rejection: Rejection,
        admission: Admission,
        region: &mut Region<'_>,
        context: &Context<'_>,
    ) {
        region.skip_all();
        region.write(&rejection.response());
        region.release();
        self.phase = Phase::Closed;
        let counters = context.counters;
        // A connection over a limit was counted when it was accepted.
        if admission == Admission::Open {
            counters.connections_rejected.add(1);
        }
        for (other, counter) in [
            (Rejection::TooSlow, &counters.handshakes_timed_out),
            (Rejection::OriginForbidden, &counters.origins_refused),
            (Rejection::PathUnknown, &counters.paths_refused),
        ] {
            counter.add(u64::from(rejection == other));
        }
    }

    /// Ends the connection because of a violation. Leaves nothing in the region but the replies still due.
    #[cold]
    pub fn violated(
        &mut self,
        violation: Violation,
        region: &mut Region<'_>,
        context: &Context<'_>,
    ) -> Next {
        let counters = context.counters;
        counters.protocol_violations.add(1);
        for (other, counter) in [
            (Violation::MessageFramesTooMany, &counters.messages_overfragmented),
            (Violation::ControlFramesTooMany, &counters.control_floods),
        ] {
            counter.add(u64::from(violation == other));
        }
        self.end_compression();
        region.retract();
        region.skip_all();
        match std::mem::replace(&mut self.phase, Phase::Closed) {
            Phase::Open | Phase::Inflating => Next::Fail(violation),
            // The server's close frame is already sent.
            Phase::Handshake(_)
            | Phase::Expanding
            | Phase::Closing
            | Phase::Plain
            | Phase::Closed => Next::Close,
        }
    }

    /// Fails the connection (section 7.1.7) as [`Next::Fail`] asks for: after the replies still due, a
    /// close frame with the code of the violation, then nothing.
    #[cold]
    pub fn fail(&self, violation: Violation, region: &mut Region<'_>, context: &Context<'_>) {
        region.write(&close::frame(violation.close_code(), violation.reason()));
        region.release();
        context.counters.frames_out.add(1);
    }

    fn send_close(&mut self, dismissal: Dismissal, region: &mut Region<'_>, context: &Context<'_>) {
        region.write(&close::frame(dismissal.close_code(), dismissal.reason()));
        context.counters.frames_out.add(1);
        region.release();
        self.phase = Phase::Closing;
        self.end_compression();
    }

    /// Gives up the memory of compression: no message is read any more.
    #[cold]
    fn end_compression(&mut self) {
        if let Some(compression) = &mut self.compression {
            compression.end();
        }
    }
}

/// Echoes all unread bytes as they are.
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
