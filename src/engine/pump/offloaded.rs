//! Connections whose small messages the kernel echoes: how they are attached to its program, left to it
//! and taken back, and what the pump waits for in the meantime.
//!
//! A connection is attached while no operation of it is in flight and none of its next packet has been
//! received. From then on receives are single and do not wait: a notice says that there is something to
//! receive, and a watch says that the peer has hung up. [`Gate`] decides when the kernel may echo.

use std::time::Duration;

use super::Worker;
use super::deadlines::Due;
use super::peer::{Receiving, Sending, Stage};
use super::turn::Turn;
use crate::engine::ring::Ring;
use crate::offload::gate::Gate;
use crate::offload::record::Record;
use crate::offload::{self, FEW};

/// How long the pump waits before it looks again at a connection on which the kernel's own threads have
/// work to do. The wait doubles each time that they are not done, up to [`SECOND_LOOK_MAX`].
pub const SECOND_LOOK: Duration = Duration::from_micros(100);
/// See [`SECOND_LOOK`].
pub const SECOND_LOOK_MAX: Duration = Duration::from_millis(100);

/// How far a connection has come towards being offloaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OffloadProgress {
    /// The opening handshake is not done.
    Handshake,
    /// It waits for a run of messages that the kernel could have echoed. This many came in a row.
    Waiting(u8),
    /// It is attached as soon as nothing is in flight.
    Attaching,
    /// It is attached, or never will be.
    Done,
}

/// What the pump noticed about received bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Arrival {
    /// They were one message that the kernel could have echoed.
    pub(super) could_echo: bool,
    /// They did not fill their buffer, so the socket was empty.
    pub(super) is_drained: bool,
}

/// The watch for the end of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Watching {
    Not,
    On,
    /// Cancelled; its completion is still to come.
    Stopping,
}

/// What the pump knows of an offloaded connection, at the place `P`.
#[derive(Debug)]
pub(super) struct Offloaded<P> {
    pub(super) place: P,
    pub(super) gate: Gate,
    watching: Watching,
    /// Nothing was received since it was attached. What had arrived by then, the kernel shows to its
    /// program only with a receive, or with what arrives next.
    pub(super) is_unread: bool,
    /// Nothing is received until a deadline, as the kernel has to move on first.
    is_resting: bool,
    /// Nothing is received until all echoes of the kernel are sent, which the close frame has to follow. A peer that
    /// never pauses would always be owed another reply first.
    pub(super) is_leaving: bool,
    /// How long that is the next time.
    pub(super) rest: Duration,
    /// The peer has hung up: the kernel has nothing more to echo.
    has_hung_up: bool,
}

impl<P> Offloaded<P> {
    /// Whether a receive could bring something.
    pub(super) fn is_readable(&self, record: &Record) -> bool {
        let has_more = self.gate.has_more(record);
        !self.is_resting && !self.is_leaving && (has_more || self.has_hung_up || self.is_unread)
    }
}

impl<R: Ring> Worker<'_, R> {
    /// Whether the worker has too many connections to offload one.
    pub(super) fn is_crowded(&self) -> bool {
        self.offload == offload::Policy::Auto && self.connections > FEW
    }

    /// The progress of a new connection.
    pub(super) fn offload_progress(&self) -> OffloadProgress {
        // The program does not know the limit on messages.
        let is_off = self.offload == offload::Policy::Off
            || self.context.message_max() < offload::PAYLOAD_BYTES_MAX as u64;
        if is_off { OffloadProgress::Done } else { OffloadProgress::Handshake }
    }
}

impl<R: Ring> Turn<'_, '_, R> {
    /// Received bytes are answered.
    #[inline(never)]
    pub(super) fn arrived(&mut self, arrival: Arrival) {
        match &mut self.peer.offloaded {
            Some(offloaded) if arrival.could_echo => offloaded.gate.answered_echoable(),
            Some(offloaded) => offloaded.gate.answered_other(),
            None => self.advance_towards_offload(arrival),
        }
    }

    fn advance_towards_offload(&mut self, arrival: Arrival) {
        let Turn { peer, worker, .. } = self;
        let connection = peer.dialogue.connection();
        let run = match peer.offload_progress {
            OffloadProgress::Handshake if !connection.is_open() => return,
            // The program does not know of compression.
            OffloadProgress::Handshake if connection.is_compressed() => {
                return peer.offload_progress = OffloadProgress::Done;
            }
            OffloadProgress::Waiting(run) if arrival.could_echo && !worker.is_crowded() => run + 1,
            OffloadProgress::Handshake | OffloadProgress::Waiting(_) => 0,
            OffloadProgress::Attaching | OffloadProgress::Done => return,
        };
        let is_near = run >= worker.run_wanted
            && connection.is_between_messages()
            && arrival.is_drained
            && peer.heavy.is_none()
            && !peer.dialogue.has_yielded()
            && !worker.is_crowded();
        // The kernel's program does not see what the multishot receive brings until it is paused.
        peer.offload_progress = if is_near {
            OffloadProgress::Attaching
        } else {
            OffloadProgress::Waiting(run.min(worker.run_wanted))
        };
    }

    /// Attaches a connection that is to be offloaded, once no receive can take anything from it and
    /// everything is sent.
    pub(super) fn attach(&mut self) {
        let Turn { id, peer, worker } = self;
        if peer.offload_progress != OffloadProgress::Attaching {
            return;
        }
        let is_ending = peer.has_ended || peer.is_dismissed || peer.stage != Stage::Serving;
        if worker.is_stopping || is_ending {
            peer.offload_progress = OffloadProgress::Done;
        } else if worker.is_crowded() || peer.sending == Sending::Patient {
            peer.offload_progress = OffloadProgress::Waiting(0);
        } else if peer.sending == Sending::Quick {
            // It ends with the next submission.
            worker.is_eager = true;
        } else if peer.receiving == Receiving::Off {
            peer.offload_progress = OffloadProgress::Done;
            let Some((place, written)) = worker.ring.attach(*id, &peer.socket) else { return };
            worker.ring.watch(&place, *id, &peer.socket);
            peer.offloaded = Some(Box::new(Offloaded {
                place,
                gate: Gate::new(written),
                watching: Watching::On,
                is_unread: true,
                is_resting: false,
                is_leaving: false,
                rest: SECOND_LOOK,
                has_hung_up: false,
            }));
        }
    }

    /// Leaves an offloaded connection to the kernel, if everything that came is answered.
    pub(super) fn settle_offload(&mut self) {
        let Turn { peer, worker, .. } = self;
        // It is not handed over for sending: echoes would overtake it.
        let has_rest = peer.has_rest();
        let Some(offloaded) = &mut peer.offloaded else { return };
        let is_wanted = peer.stage == Stage::Serving
            && !peer.has_ended
            && !peer.is_dismissed
            && !offloaded.has_hung_up
            && !worker.is_crowded()
            && !worker.is_stopping;
        let is_receiving =
            matches!(peer.receiving, Receiving::On | Receiving::Piece | Receiving::Pausing);
        let is_idle = !has_rest
            && !peer.dialogue.has_spill()
            && peer.dialogue.connection().is_between_messages();
        if is_wanted && !is_receiving && is_idle && offloaded.gate.is_ready() {
            offloaded.gate.open(worker.ring.record(&offloaded.place));
        }
    }

    /// The kernel has passed up bytes of a connection that was left to it.
    #[cold]
    pub(super) fn passed(&mut self) {
        let Turn { peer, worker, .. } = self;
        let Some(offloaded) = &mut peer.offloaded else { return };
        let record = worker.ring.record(&offloaded.place);
        offloaded.gate.wake(record);
        if record.is_overrun() && peer.stage < Stage::Leaving {
            worker.context.counters.connections_overrun.add(1);
            self.mark_broken();
        }
        self.settle();
    }

    /// The watch is over.
    #[cold]
    pub(super) fn hung_up(&mut self) {
        let Turn { peer, worker, .. } = self;
        let Some(offloaded) = &mut peer.offloaded else { return };
        offloaded.watching = Watching::Not;
        offloaded.has_hung_up = true;
        // A receive then finds out what has happened.
        offloaded.gate.shut(worker.ring.record(&offloaded.place));
        self.settle();
    }

    /// Ends the watch, and says whether it is over.
    pub(super) fn end_watch(&mut self) -> bool {
        let Turn { id, peer, worker } = self;
        let Some(offloaded) = &mut peer.offloaded else { return true };
        if offloaded.watching == Watching::On {
            worker.ring.cancel_watch(&offloaded.place, *id);
            offloaded.watching = Watching::Stopping;
        }
        offloaded.watching == Watching::Not
    }

    /// A receive found the end of the stream. The socket of an offloaded connection says so before it
    /// gives up what the kernel still holds; what it holds when the connection is reset is lost.
    #[cold]
    pub(super) fn ended(&mut self) {
        let Turn { peer, worker, .. } = self;
        if let Some(offloaded) = &mut peer.offloaded
            && offloaded.gate.has_more(worker.ring.record(&offloaded.place))
            && worker.ring.written(&offloaded.place, &peer.socket) != u64::MAX
        {
            return self.look_again();
        }
        peer.has_ended = true;
    }

    /// A receive on an offloaded connection found nothing.
    #[cold]
    pub(super) fn found_nothing(&mut self) {
        let Turn { peer, worker, .. } = self;
        let Some(offloaded) = &mut peer.offloaded else { return };
        let record = worker.ring.record(&offloaded.place);
        if offloaded.has_hung_up || offloaded.gate.has_more(record) {
            // It was passed up, and waits until the echoes before it are sent.
            self.look_again();
        }
    }

    /// Looks at an offloaded connection again after a while.
    pub(super) fn look_again(&mut self) {
        let Some(offloaded) = &mut self.peer.offloaded else { return };
        if std::mem::replace(&mut offloaded.is_resting, true) {
            return;
        }
        let at = self.worker.ring.now() + self.rest();
        self.worker.deadlines.set(at, Due::Look(self.id));
    }

    /// How long to leave the kernel alone until it may have moved on: twice as long each time.
    pub(super) fn rest(&mut self) -> Duration {
        let Some(offloaded) = &mut self.peer.offloaded else { return SECOND_LOOK };
        let rest = offloaded.rest;
        offloaded.rest = (rest * 2).min(SECOND_LOOK_MAX);
        rest
    }

    /// The wait of [`Turn::look_again`] is over.
    pub(super) fn look(&mut self) {
        if let Some(offloaded) = &mut self.peer.offloaded {
            offloaded.is_resting = false;
        }
        self.settle();
    }

    /// Takes a connection back from the kernel, and says whether all of its echoes are in the socket's
    /// queue: then what is sent next follows them, and a close loses none.
    pub(super) fn is_flushed(&mut self) -> bool {
        let Turn { peer, worker, .. } = self;
        let Some(offloaded) = &mut peer.offloaded else { return true };
        if peer.stage > Stage::Farewell {
            return true;
        }
        let record = worker.ring.record(&offloaded.place);
        offloaded.gate.shut(record);
        let written = worker.ring.written(&offloaded.place, &peer.socket);
        offloaded.gate.is_flushed(record, written)
    }

    /// Takes a connection back that was left to the kernel.
    pub(super) fn take_back(&mut self) {
        let Turn { peer, worker, .. } = self;
        if let Some(offloaded) = &mut peer.offloaded
            && offloaded.gate.is_open()
        {
            offloaded.gate.shut(worker.ring.record(&offloaded.place));
            self.settle();
        }
    }
}
