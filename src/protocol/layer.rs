//! What lies between a dialogue and the wire on connections that are encrypted: a layer, such as TLS.
//!
//! A layer is of the same shape as a dialogue. Received bytes go in; bytes for the dialogue and bytes to send come
//! out. It does no input or output, and does not know what the dialogue is about. So the protocol stands once, and no
//! engine knows whether a connection is encrypted.
//!
//! A [`Channel`] is the layer of one connection, with what it has to send of its own: its part of a handshake, alerts,
//! and its farewell.

use std::error::Error;
use std::fmt;

use bytes::Bytes;

use crate::buffer::SpillPool;

/// How a connection goes on after a layer has read something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Progress {
    /// More may come.
    Continue,
    /// The peer has said that nothing more follows.
    Ended,
    /// What came is not what the layer speaks, or was changed on its way. Nothing more can be read. What is to be
    /// sent tells the peer why.
    Failed,
}

/// One side of a layer, for one connection.
pub trait Layer: fmt::Debug + Send {
    /// Reads bytes that have come from the peer, which it may overwrite. It appends what they carry for the dialogue to
    /// `plain`, and what has to be sent to the peer to `sealed`.
    fn open(&mut self, received: &mut [u8], plain: &mut Vec<u8>, sealed: &mut Vec<u8>) -> Progress;

    /// Whether its handshake is done, so that [`Layer::seal`] may be called.
    fn is_open(&self) -> bool;

    /// Whether reading what comes next costs as much as many messages, as that of a handshake does.
    fn is_laborious(&self) -> bool {
        !self.is_open()
    }

    /// Appends `plain` to `sealed`, as it is to be sent.
    fn seal(&mut self, plain: &[u8], sealed: &mut Vec<u8>);

    /// Says to the peer that nothing more follows, if there is a way to.
    fn close(&mut self, sealed: &mut Vec<u8>);

    /// Heap bytes of what it has received and not yet read.
    fn held_bytes(&self) -> usize;

    /// Why it cannot go on, after [`Progress::Failed`], if it knows.
    fn failure(&self) -> Option<&(dyn Error + 'static)> {
        None
    }

    /// What both sides have agreed on, in the words of its standard, once its handshake is done.
    fn agreed(&self) -> Option<String> {
        None
    }
}

/// Makes the layer of each connection that is accepted at an address.
pub trait Acceptor: fmt::Debug + Send + Sync {
    /// The layer of a new connection.
    fn accept(&self) -> Box<dyn Layer>;
}

/// What a worker's layers decrypt and encrypt into. Empty between two uses.
#[derive(Debug, Default)]
pub struct Texts {
    /// What has come for the dialogue.
    pub plain: Vec<u8>,
    /// What is to be sent to the peer.
    pub sealed: Vec<u8>,
}

/// The layer of one connection.
#[derive(Debug)]
pub struct Channel {
    layer: Box<dyn Layer>,
    /// Sealed, and to be sent before anything else.
    waiting: Vec<u8>,
    /// The layer has said that nothing more follows, or cannot go on.
    is_closed: bool,
    /// Received, and to be opened when it is the connection's turn.
    postponed: Vec<u8>,
    /// Nothing follows that.
    is_end_postponed: bool,
}

impl Channel {
    /// The channel of a new connection.
    pub fn new(layer: Box<dyn Layer>) -> Channel {
        Channel {
            layer,
            waiting: Vec::new(),
            is_closed: false,
            postponed: Vec::new(),
            is_end_postponed: false,
        }
    }

    /// Whether what is received now has to wait: opening it would cost much, or something waits already.
    pub fn postpones(&self) -> bool {
        self.has_postponed() || !self.is_closed && self.layer.is_laborious()
    }

    /// Keeps what was received for [`Channel::take_postponed`].
    pub fn postpone(&mut self, received: &[u8]) {
        self.postponed.extend_from_slice(received);
    }

    /// Keeps that nothing follows what waits.
    pub fn postpone_end(&mut self) {
        self.is_end_postponed = true;
    }

    /// Takes what has waited to be opened, and whether nothing follows it.
    pub fn take_postponed(&mut self) -> (Vec<u8>, bool) {
        (std::mem::take(&mut self.postponed), std::mem::take(&mut self.is_end_postponed))
    }

    /// Whether something waits to be opened.
    pub fn has_postponed(&self) -> bool {
        !self.postponed.is_empty()
    }

    /// Whether nothing more is to be received until what waits was opened, of which there may be `max` bytes.
    pub fn is_behind(&self, max: usize) -> bool {
        self.is_end_postponed || self.postponed.len() > max
    }

    /// Appends what `received` carries for the dialogue to `plain`.
    pub fn open(&mut self, received: &mut [u8], plain: &mut Vec<u8>) -> Progress {
        let progress = self.layer.open(received, plain, &mut self.waiting);
        self.is_closed |= progress == Progress::Failed;
        progress
    }

    /// Seals `reply` into `buffer` and returns how many bytes it takes there. If something else has to be sent first,
    /// or it does not fit, it waits to be taken instead. `scratch` is empty before and after.
    pub fn seal_into(
        &mut self,
        reply: &[u8],
        buffer: &mut [u8],
        scratch: &mut Vec<u8>,
    ) -> Option<usize> {
        self.seal(reply, scratch);
        let place = buffer.get_mut(..scratch.len()).filter(|_| self.waiting.is_empty());
        let sealed_bytes = match place {
            Some(place) => {
                place.copy_from_slice(scratch);
                Some(place.len())
            }
            None => {
                self.waiting.extend_from_slice(scratch);
                None
            }
        };
        scratch.clear();
        sealed_bytes
    }

    /// Whether replies can be sealed: the layer's handshake is done, and the layer has not ended.
    pub fn can_seal(&self) -> bool {
        self.layer.is_open() && !self.is_closed
    }

    /// Seals `reply`, behind what waits. If it cannot be sealed, it is lost.
    pub fn seal_behind(&mut self, reply: &[u8], pool: &SpillPool) -> Bytes {
        let mut waiting = std::mem::take(&mut self.waiting);
        self.seal(reply, &mut waiting);
        pool.copy(&waiting)
    }

    fn seal(&mut self, reply: &[u8], sealed: &mut Vec<u8>) {
        if self.can_seal() {
            self.layer.seal(reply, sealed);
        }
    }

    /// Takes what waits, if anything.
    pub fn take_waiting(&mut self, pool: &SpillPool) -> Option<Bytes> {
        let waiting = std::mem::take(&mut self.waiting);
        (!waiting.is_empty()).then(|| pool.copy(&waiting))
    }

    /// Says to the peer, once, that nothing more follows.
    pub fn close(&mut self) {
        if !std::mem::replace(&mut self.is_closed, true) {
            self.layer.close(&mut self.waiting);
        }
    }

    /// Whether anything waits to be sent.
    pub fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Heap bytes that wait: to be sent, to be opened, or for the rest of their record.
    pub fn heap_bytes(&self) -> usize {
        self.waiting.len() + self.postponed.capacity() + self.layer.held_bytes()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// Adds a byte before what it seals, and removes the first byte of what it opens. A zero is not its language, and is
    /// answered with "no"; the handshake is a one, answered with "hi".
    #[derive(Debug, Default)]
    struct Prefix {
        is_open: bool,
    }

    impl Layer for Prefix {
        fn open(
            &mut self,
            received: &mut [u8],
            plain: &mut Vec<u8>,
            sealed: &mut Vec<u8>,
        ) -> Progress {
            match received {
                [0, ..] => {
                    sealed.extend_from_slice(b"no");
                    return Progress::Failed;
                }
                [1] => {
                    self.is_open = true;
                    sealed.extend_from_slice(b"hi");
                }
                received => plain.extend_from_slice(&received[1..]),
            }
            Progress::Continue
        }

        fn is_open(&self) -> bool {
            self.is_open
        }

        fn seal(&mut self, plain: &[u8], sealed: &mut Vec<u8>) {
            sealed.push(b'|');
            sealed.extend_from_slice(plain);
        }

        fn close(&mut self, sealed: &mut Vec<u8>) {
            sealed.extend_from_slice(b"bye");
        }

        fn held_bytes(&self) -> usize {
            0
        }
    }

    fn pool() -> SpillPool {
        SpillPool::new(1 << 20, Arc::default())
    }

    fn open_channel() -> Channel {
        let mut channel = Channel::new(Box::<Prefix>::default());
        assert_eq!(channel.open(&mut [1], &mut Vec::new()), Progress::Continue);
        assert_eq!(channel.take_waiting(&pool()).as_deref(), Some(&b"hi"[..]));
        channel
    }

    #[test]
    fn a_reply_is_sealed_into_the_buffer_if_it_fits_and_nothing_waits() {
        let mut channel = open_channel();
        let (mut buffer, mut scratch) = ([0; 4], Vec::new());
        assert_eq!(channel.seal_into(b"abc", &mut buffer, &mut scratch), Some(4));
        assert_eq!(&buffer, b"|abc");
        assert_eq!(channel.seal_into(b"abcd", &mut buffer, &mut scratch), None);
        assert!(channel.has_waiting() && channel.heap_bytes() == 5);
        // It would overtake.
        assert_eq!(channel.seal_into(b"e", &mut buffer, &mut scratch), None);
        assert!(scratch.is_empty());
        assert_eq!(channel.seal_behind(b"f", &pool()), "|abcd|e|f");
        assert_eq!(channel.take_waiting(&pool()), None);
    }

    #[test]
    fn what_a_handshake_has_received_waits_to_be_opened_with_what_follows() {
        let mut channel = Channel::new(Box::<Prefix>::default());
        assert!(channel.postpones() && !channel.has_postponed());
        channel.postpone(&[1]);
        assert!(channel.heap_bytes() > 0 && !channel.is_behind(1) && channel.is_behind(0));
        channel.postpone_end();
        assert!(channel.is_behind(1));
        let (mut received, is_end) = channel.take_postponed();
        assert_eq!(channel.open(&mut received, &mut Vec::new()), Progress::Continue);
        assert!(
            is_end && !channel.has_postponed() && !channel.postpones() && !channel.is_behind(0)
        );
        // What follows something that waits is behind it.
        channel.postpone(b"xa");
        assert!(channel.postpones());
        channel.take_postponed();
        let mut failed = Channel::new(Box::<Prefix>::default());
        assert_eq!(failed.open(&mut [0], &mut Vec::new()), Progress::Failed);
        assert!(!failed.postpones());
    }

    #[test]
    fn nothing_is_sealed_before_the_handshake() {
        let mut channel = Channel::new(Box::<Prefix>::default());
        assert!(!channel.can_seal());
        let mut buffer = [0; 9];
        assert_eq!(channel.seal_into(b"abc", &mut buffer, &mut Vec::new()), Some(0));
        assert_eq!(channel.seal_behind(b"abc", &pool()), "");
        assert!(!channel.has_waiting());
    }

    #[test]
    fn farewell_is_said_once_and_nothing_is_sealed_after_it() {
        let mut channel = open_channel();
        channel.close();
        channel.close();
        assert_eq!(channel.seal_behind(b"late", &pool()), "bye");
        assert!(!channel.can_seal());
    }

    #[test]
    fn a_peer_that_does_not_speak_it_is_told_so_and_nothing_else() {
        let mut channel = open_channel();
        assert_eq!(channel.open(&mut [0, 7], &mut Vec::new()), Progress::Failed);
        channel.close();
        assert_eq!(channel.seal_behind(b"late", &pool()), "no");
    }
}
