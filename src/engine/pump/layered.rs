//! Connections with a layer between their dialogue and the wire, such as TLS: what they receive is opened, and
//! what they send is sealed, in the order in which it goes out.
//!
//! What was received together is opened together, and its reply sealed into the buffer that it came in. Everything else
//! is sealed when it is handed over for sending, a piece at a time.
//!
//! The handshake of a layer costs as much as thousands of messages. So what is received in one waits until all others
//! were served, and one connection in each cycle goes on with its handshake.

use bytes::Bytes;

use super::offloaded::OffloadProgress;
use super::peer::{Peer, Sending, Stage};
use super::turn::Turn;
use crate::engine::ring::{Lease, Reply, Ring};
use crate::protocol::{Channel, Context, Decision, Output, Progress, Texts};
use crate::slab::ConnectionId;

/// The most bytes of scratch memory that a worker keeps for each direction.
const SCRATCH_MAX: usize = 1 << 20;
/// Bytes of a layer itself that may wait before nothing more is received from its peer: a peer could ask for ever more of
/// them and read none. The same of bytes that wait to be opened.
const WAITING_MAX: usize = 64 << 10;

impl<R: Ring> Turn<'_, '_, R> {
    /// Gives a new connection its layer, if the connections to this listener have one.
    pub(super) fn enter_layer(&mut self, listener: u32) {
        if let Some(acceptor) = self.worker.context.acceptor(listener) {
            self.peer.channel = Some(Box::new(Channel::new(acceptor.accept())));
            // The kernel's program would see what is sealed.
            self.peer.offload_progress = OffloadProgress::Done;
        }
    }

    /// [`Turn::answer`] for a connection with a layer.
    // Apart, so that the path of a plain message takes fewer registers.
    #[inline(never)]
    pub(super) fn answer_layered(&mut self, mut lease: Lease) {
        let Turn { id, peer, worker } = self;
        let buffer = worker.ring.bytes(&mut lease);
        if let Some(channel) = &mut peer.channel
            && channel.postpones()
        {
            if !channel.has_postponed() {
                worker.handshakes.push_back(*id);
            }
            channel.postpone(buffer);
            worker.ring.recycle(lease);
            return;
        }
        let Answered { sealed_bytes, decision, progress } = answered(peer, buffer, &worker.context);
        if sealed_bytes > 0 {
            self.send(Reply::pinned(lease, 0..sealed_bytes));
        } else {
            worker.ring.recycle(lease);
            note_unanswered(&mut worker.unanswered, self.id);
        }
        self.follow_layer(decision, progress);
    }

    /// Opens what had to wait, and answers it.
    pub(super) fn open_postponed(&mut self) {
        let Turn { id, peer, worker } = self;
        let Some(channel) = &mut peer.channel else { return };
        let (mut received, is_end) = channel.take_postponed();
        if peer.stage == Stage::Serving {
            let answered = answered(peer, &mut received, &worker.context);
            let Answered { sealed_bytes, decision, progress } = answered;
            if sealed_bytes > 0 {
                let reply = worker.context.spill_pool.copy(&received[..sealed_bytes]);
                self.send(Reply::Heap(reply));
            } else {
                note_unanswered(&mut worker.unanswered, *id);
            }
            self.follow_layer(decision, progress);
        }
        self.peer.has_ended |= is_end;
        self.settle();
    }

    /// Notes that the peer sends no more, if that has to wait because something before it does.
    pub(super) fn postpone_end(&mut self) -> bool {
        let waits = self.peer.channel.as_mut().filter(|channel| channel.has_postponed());
        waits.map(|channel| channel.postpone_end()).is_some()
    }

    fn follow_layer(&mut self, decision: Decision, progress: Progress) {
        self.follow(decision);
        match progress {
            Progress::Continue => {}
            Progress::Ended => self.peer.has_ended = true,
            Progress::Failed => self.fail_layer(),
        }
    }

    /// What was received cannot be opened. The peer is told so, if that is possible, and nothing else.
    #[cold]
    fn fail_layer(&mut self) {
        self.worker.context.counters.tls_failures.add(1);
        self.peer.dialogue.discard();
        if self.peer.stage == Stage::Serving {
            self.peer.stage = Stage::Farewell;
        }
    }

    /// Hands over a reply on the heap for sending, sealed if the connection has a layer.
    #[inline]
    pub(super) fn send_from_heap(&mut self, reply: Bytes) {
        let reply = match &mut self.peer.channel {
            Some(channel) => channel.seal_behind(&reply, &self.worker.context.spill_pool),
            None => reply,
        };
        self.send(Reply::Heap(reply));
    }

    /// Whether the peer can be told nothing, because the handshake of the layer is not done, or the layer has ended.
    pub(super) fn is_mute(&self) -> bool {
        self.peer.channel.as_ref().is_some_and(|channel| !channel.can_seal())
    }

    /// Sends what the layer has to say itself, if no send is in flight.
    pub(super) fn send_of_layer(&mut self) {
        if self.peer.sending == Sending::Nothing
            && let Some(channel) = &mut self.peer.channel
            && let Some(waiting) = channel.take_waiting(&self.worker.context.spill_pool)
        {
            self.send(Reply::Heap(waiting));
        }
    }

    /// Has the layer say that nothing more follows. Whether that is being sent now.
    pub(super) fn close_layer(&mut self) -> bool {
        if let Some(channel) = &mut self.peer.channel {
            channel.close();
            self.send_of_layer();
        }
        self.worker.is_eager |= self.peer.sending == Sending::Quick;
        self.peer.sending != Sending::Nothing
    }

    /// Whether nothing more is to be received until what waits in the layer was opened.
    pub(super) fn is_layer_behind(&self) -> bool {
        self.peer.channel.as_ref().is_some_and(|channel| channel.is_behind(WAITING_MAX))
    }

    /// Whether so much of the layer itself waits that nothing should be received until some of it is sent.
    pub(super) fn is_layer_full(&self) -> bool {
        let waiting = self.peer.channel.as_ref().map_or(0, |channel| channel.heap_bytes());
        waiting > WAITING_MAX
    }
}

/// What follows from what a connection with a layer has received.
struct Answered {
    /// Bytes at the beginning of the receive buffer that are to be sent now.
    sealed_bytes: usize,
    decision: Decision,
    progress: Progress,
}

/// Opens what was received into `buffer`, lets the dialogue answer it, and seals the reply into the buffer again if it
/// can be sent at once.
fn answered<P>(peer: &mut Peer<P>, buffer: &mut [u8], context: &Context<'_>) -> Answered {
    let Some(channel) = &mut peer.channel else { unreachable!("it has a layer") };
    let Texts { plain, sealed } = &mut *context.texts.borrow_mut();
    let progress = channel.open(buffer, plain);
    let mut answered = Answered { sealed_bytes: 0, decision: Decision::Continue, progress };
    if !plain.is_empty() {
        let is_free = peer.sending == Sending::Nothing && !channel.has_waiting();
        let output = if is_free { Output::InPlace } else { Output::Queued };
        let answer = peer.dialogue.received(plain, output, context);
        answered.decision = answer.decision;
        if !answer.reply.is_empty() {
            let reply = &plain[answer.reply];
            answered.sealed_bytes = channel.seal_into(reply, buffer, sealed).unwrap_or(0);
        }
    }
    plain.clear();
    plain.shrink_to(SCRATCH_MAX);
    sealed.shrink_to(SCRATCH_MAX);
    answered
}

/// Notes that a connection has received bytes and not answered them.
#[inline]
pub(super) fn note_unanswered(unanswered: &mut Vec<ConnectionId>, id: ConnectionId) {
    // A long message comes in many pieces at a time.
    if unanswered.last() != Some(&id) {
        unanswered.push(id);
    }
}
