//! Short messages: whole, in one frame of at most 125 bytes of payload, between two messages.
//!
//! They are what latency is measured with, so they go a shorter way to the same reply that `frames` makes.
//! What is not such a message is left as it is, for `frames` to judge.

use super::{Connection, Frame, Message, Phase};
use crate::buffer::Region;
use crate::protocol::context::Context;
use crate::protocol::frame::{CONTROL_PAYLOAD_MAX, FINAL, KEY, MASKED, Opcode};
use crate::protocol::mask::{self, Mask};
use crate::protocol::utf8;
use crate::protocol::violation::Violation;

const TEXT: u8 = FINAL | Opcode::Text as u8;
const BINARY: u8 = FINAL | Opcode::Binary as u8;
/// The length of the reply's header, in bytes. The request's has the key as well.
const HEADER: usize = 2;
/// The longest frame of a short message, in bytes.
const FRAME_MAX: usize = HEADER + KEY + CONTROL_PAYLOAD_MAX as usize;

/// The header of a short message.
struct Short {
    first: u8,
    payload: u8,
    key: [u8; KEY],
}

impl Short {
    /// Reads the header at the beginning of `bytes`, if it is that of a short message.
    #[inline(always)]
    fn read(bytes: &[u8], context: &Context<'_>) -> Option<Short> {
        let &[first @ (TEXT | BINARY), second, ref key @ ..] =
            bytes.first_chunk::<{ HEADER + KEY }>()?
        else {
            return None;
        };
        // If the mask bit was missing, this is larger than any `short_max`.
        let payload = second ^ MASKED;
        (payload <= context.short_max).then_some(Short { first, payload, key: *key })
    }

    /// The length of its frame, in bytes.
    #[inline(always)]
    fn frame_bytes(&self) -> usize {
        HEADER + KEY + usize::from(self.payload)
    }

    /// The length of the reply, in bytes.
    #[inline(always)]
    fn reply_bytes(&self) -> usize {
        HEADER + usize::from(self.payload)
    }

    /// Writes the reply to the beginning of `window`, whose last bytes are the whole frame.
    #[inline(always)]
    fn echo(self, window: &mut [u8], context: &Context<'_>) -> Result<(), Violation> {
        let reply_bytes = self.reply_bytes();
        let distance = window.len() - reply_bytes;
        let is_ascii = mask::unmask(&mut window[HEADER..], distance, Mask::new(self.key));
        if !is_ascii && self.first == TEXT && !utf8::is_valid(&window[HEADER..reply_bytes]) {
            return Err(Violation::TextNotUtf8);
        }
        window[0] = self.first;
        window[1] = self.payload;
        let counters = context.counters;
        counters.messages.add(1);
        counters.frames_in.add(1);
        counters.frames_out.add(1);
        Ok(())
    }
}

impl Connection {
    /// Echoes what was received if it is one short message and nothing else: returns the length of the
    /// reply, which begins where the message did. Otherwise nothing has changed.
    ///
    /// # Errors
    ///
    /// When the message breaks a rule, which ends the connection: see [`Connection::violated`].
    #[inline(always)]
    pub fn echo_alone(
        &mut self,
        received: &mut [u8],
        context: &Context<'_>,
    ) -> Result<Option<usize>, Violation> {
        let is_at_rest =
            self.phase == Phase::Open && self.frame == Frame::None && self.message == Message::None;
        // Checked first, because it costs a longer message nothing more.
        if received.len() > FRAME_MAX || !is_at_rest {
            return Ok(None);
        }
        match Short::read(received, context) {
            Some(short) if short.frame_bytes() == received.len() => {
                let reply_bytes = short.reply_bytes();
                short.echo(received, context)?;
                Ok(Some(reply_bytes))
            }
            Some(_) | None => Ok(None),
        }
    }
}

/// Echoes the message at the beginning of the unread bytes if it is a short one. Returns whether it was; if
/// not, nothing has changed.
#[inline]
pub(super) fn echo_next(region: &mut Region<'_>, context: &Context<'_>) -> Result<bool, Violation> {
    let (bytes, to, from) = region.parts();
    let Some(short) = Short::read(&bytes[from..], context) else { return Ok(false) };
    let (written, unread) = (to + short.reply_bytes(), from + short.frame_bytes());
    if unread > bytes.len() {
        return Ok(false);
    }
    short.echo(&mut bytes[to..unread], context)?;
    region.replied(written, unread);
    Ok(true)
}
