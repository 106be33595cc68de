//! Connections that the kernel sees before the pump does: how they are offloaded, left to the kernel and
//! taken back, and what is waited for meanwhile.
//!
//! A connection is offloaded when no operation of it is in flight and its next octet was not received in part
//! of a packet. From then on receives are single and do not wait; what comes is told by notices, and the
//! peer's end by a watch.

use std::cmp::Reverse;
use std::time::Duration;

use super::{
    Due, OffloadProgress, Peer, Pump, Receiving, SECOND_LOOK, SECOND_LOOK_MAX, Sending, Stage,
};
use crate::engine::ring::Ring;
use crate::offload::gate::Gate;
use crate::offload::{self, FEW};
use crate::slab::ConnectionId;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Watching {
    Not,
    On,
    /// Cancelled, its completion still to come.
    Stopping,
}

/// A connection that the kernel sees before the pump does.
#[derive(Debug)]
pub(super) struct Offloaded<P> {
    /// Where the kernel keeps it.
    pub(super) place: P,
    pub(super) gate: Gate,
    pub(super) watching: Watching,
    /// Nothing was received since it was offloaded: what had come by then, the kernel shows to its
    /// program only with a receive, or with what comes next.
    pub(super) is_unread: bool,
    /// Receiving rests until the kernel has moved on.
    pub(super) is_resting: bool,
    /// How long it rests the next time.
    pub(super) rest: Duration,
    /// The peer has hung up: the kernel has nothing more to echo.
    pub(super) has_hung_up: bool,
}

impl<R: Ring> Pump<'_, R> {
    /// Whether a worker that offloads a few connections has more.
    pub(super) fn is_crowded(&self) -> bool {
        self.offload == offload::Policy::Auto && self.peers.len() > FEW
    }

    /// Where a new connection stands.
    pub(super) fn offload_progress(&self) -> OffloadProgress {
        // The program does not know the limit on messages.
        let is_off = self.offload == offload::Policy::Off
            || self.context.message_max() < offload::PAYLOAD_BYTES_MAX as u64;
        if is_off { OffloadProgress::Done } else { OffloadProgress::Handshake }
    }

    /// Brings a connection nearer to where it is offloaded, now that octets were received that the kernel
    /// could have echoed, or not. `is_drained`: none waited behind them.
    #[inline(never)]
    pub(super) fn advance_towards_offload(
        &mut self,
        id: ConnectionId,
        could_echo: bool,
        is_drained: bool,
    ) {
        let is_crowded = self.is_crowded();
        let Some(peer) = self.peers.get_mut(id) else { return };
        let run = match peer.offload_progress {
            OffloadProgress::Handshake if !peer.protocol.is_open() => return,
            // The program does not know of compression.
            OffloadProgress::Handshake if peer.protocol.is_compressed() => {
                return peer.offload_progress = OffloadProgress::Done;
            }
            OffloadProgress::Waiting(run) if could_echo && !is_crowded => run + 1,
            OffloadProgress::Handshake | OffloadProgress::Waiting(_) => 0,
            OffloadProgress::Attaching | OffloadProgress::Done => return,
        };
        let is_between = peer.protocol.is_between_messages();
        let is_near = run >= self.run_wanted && is_between && is_drained && !is_crowded;
        // What the multishot receive brings until it is paused, the kernel's program does not see.
        peer.offload_progress = if is_near {
            OffloadProgress::Attaching
        } else {
            OffloadProgress::Waiting(run.min(self.run_wanted))
        };
    }

    /// Offloads a connection that is to be, when no receive can take anything from it any more, and all
    /// is sent.
    pub(super) fn attach(&mut self, id: ConnectionId) {
        let is_crowded = self.is_crowded();
        let Some(peer) = self.peers.get_mut(id) else { return };
        if peer.offload_progress != OffloadProgress::Attaching {
            return;
        }
        if self.is_stopping || peer.has_ended || peer.stage != Stage::Serving {
            peer.offload_progress = OffloadProgress::Done;
        } else if is_crowded || peer.sending == Sending::Patient {
            peer.offload_progress = OffloadProgress::Waiting(0);
        } else if peer.sending == Sending::Quick {
            // It is over with the next submission.
            self.is_eager = true;
        } else if peer.receiving == Receiving::Off {
            peer.offload_progress = OffloadProgress::Done;
            let Some((place, written)) = self.ring.attach(id, &peer.socket) else { return };
            self.ring.watch(&place, id, &peer.socket);
            peer.offloaded = Some(Box::new(Offloaded {
                place,
                gate: Gate::new(written),
                watching: Watching::On,
                is_unread: true,
                is_resting: false,
                rest: SECOND_LOOK,
                has_hung_up: false,
            }));
        }
    }

    /// Leaves an offloaded connection to the kernel, if all that came is answered.
    pub(super) fn settle_offload(&mut self, id: ConnectionId) {
        let is_crowded = self.is_crowded() || self.is_stopping;
        let Some(peer) = self.peers.get_mut(id) else { return };
        let Some(offloaded) = &mut peer.offloaded else { return };
        if peer.stage != Stage::Serving || is_crowded || offloaded.has_hung_up {
            return;
        }
        let record = self.ring.record(&offloaded.place);
        if peer.spill.is_some()
            || peer.has_ended
            || matches!(peer.receiving, Receiving::On | Receiving::Pausing)
            || !offloaded.gate.is_ready()
            || offloaded.gate.has_more(record)
            || !peer.protocol.is_between_messages()
        {
            return;
        }
        offloaded.gate.open(record);
    }

    /// The kernel has passed up octets of a connection that was left to it.
    #[cold]
    pub(super) fn passed(&mut self, id: ConnectionId) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        let Some(offloaded) = &mut peer.offloaded else { return };
        let record = self.ring.record(&offloaded.place);
        offloaded.gate.wake(record);
        if record.is_overrun() && peer.stage < Stage::Leaving {
            self.context.counters.connections_overrun.add(1);
            self.mark_broken(id);
        }
        self.settle(id);
    }

    #[cold]
    pub(super) fn hung_up(&mut self, id: ConnectionId) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        let Some(offloaded) = &mut peer.offloaded else { return };
        offloaded.watching = Watching::Not;
        offloaded.has_hung_up = true;
        // Receiving then finds out what has happened.
        offloaded.gate.shut(self.ring.record(&offloaded.place));
        self.settle(id);
    }

    /// The peer sends no more, which the socket says before it gives up what the kernel still has of
    /// an offloaded connection. What it has when the connection is reset is lost.
    #[cold]
    pub(super) fn ended(&mut self, id: ConnectionId) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        if let Some(offloaded) = &mut peer.offloaded
            && offloaded.gate.has_more(self.ring.record(&offloaded.place))
            && self.ring.written(&offloaded.place, &peer.socket) != u64::MAX
        {
            return self.look_again(id);
        }
        peer.has_ended = true;
    }

    /// Nothing could be received of an offloaded connection.
    #[cold]
    pub(super) fn found_nothing(&mut self, id: ConnectionId) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        let Some(offloaded) = &mut peer.offloaded else { return };
        let record = self.ring.record(&offloaded.place);
        if offloaded.has_hung_up || offloaded.gate.has_more(record) {
            // It was passed up, and waits behind echoes that are being sent.
            self.look_again(id);
        }
    }

    pub(super) fn look_again(&mut self, id: ConnectionId) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        let Some(offloaded) = &mut peer.offloaded else { return };
        if offloaded.is_resting {
            return;
        }
        offloaded.is_resting = true;
        self.due.push(Reverse((self.ring.now() + offloaded.rest, Due::Look(id))));
        offloaded.rest = (offloaded.rest * 2).min(SECOND_LOOK_MAX);
    }

    /// Takes a connection back from the kernel, and says whether nothing of its echoes is still on the
    /// way to the socket's queue: what is sent now comes behind them, and a close loses none.
    pub(super) fn is_flushed(&mut self, id: ConnectionId) -> bool {
        let Some(peer) = self.peers.get_mut(id) else { return true };
        let Some(offloaded) = &mut peer.offloaded else { return true };
        if peer.stage > Stage::Farewell {
            return true;
        }
        let record = self.ring.record(&offloaded.place);
        offloaded.gate.shut(record);
        offloaded.gate.is_flushed(record, self.ring.written(&offloaded.place, &peer.socket))
    }

    /// Takes all connections back from the kernel.
    #[cold]
    pub(super) fn take_all_back(&mut self) {
        for id in self.peers.ids().collect::<Vec<ConnectionId>>() {
            let Some(peer) = self.peers.get_mut(id) else { continue };
            if let Some(offloaded) = &mut peer.offloaded
                && offloaded.gate.is_open()
            {
                offloaded.gate.shut(self.ring.record(&offloaded.place));
                self.settle(id);
            }
        }
    }
}

/// Counts octets that are handed over for sending, where the kernel has to know it.
#[inline]
pub(super) fn hand_over<P>(peer: &mut Peer<P>, octets: usize) {
    if let Some(offloaded) = &mut peer.offloaded {
        offloaded.gate.sent(octets as u64);
    }
}
