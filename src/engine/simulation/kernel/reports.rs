//! Completions on their way to the pump.
//!
//! What a completion says becomes true for the pump when it is handed over, however long ago it happened.

use rustix::io::Errno;

use super::{Connection, Flight, Kernel};
use crate::engine::ring::{Completion, Further, Received, Reply, Sent, Socket};
use crate::engine::simulation::buffers::Place;
use crate::slab::ConnectionId;

impl Kernel {
    /// Hands completions over: all quick sends, and of the others as many as the queue holds.
    pub(super) fn report(&mut self, completions: &mut Vec<Completion>) {
        let begin = completions.len();
        completions.append(&mut self.quick);
        let most = self.scenario.queue - self.random.below(self.scenario.queue.min(2));
        let count = self.completed.len().min(most);
        completions.extend(self.completed.drain(..count));
        for completion in &completions[begin..] {
            self.trace(completion);
            self.totals.completions += 1;
            self.hand_over(completion);
        }
        // What comes with it was received before the pump stops.
        if completions[begin..].iter().any(|it| matches!(it, Completion::StopRequested)) {
            self.stopped = Some(self.now);
            for &number in &self.active {
                self.connections[number].link.stop();
            }
        }
    }

    fn hand_over(&mut self, completion: &Completion) {
        match completion {
            &Completion::Accepted { listener, ref result, further } => {
                self.hand_over_accepted(listener, result, further);
            }
            &Completion::Received { id, ref received, further } => {
                self.hand_over_received(id, received, further);
            }
            Completion::Sent { id, sent, bytes } => {
                let number = self.find(*id).expect("a send of a connection");
                let connection = &mut self.connections[number];
                connection.send = Flight::Not;
                self.totals.bytes_out += u64::from(*bytes);
                if *bytes > 0 {
                    connection.link.mark_progress(self.now, self.stopped);
                }
                if let Some(lease) = connection.spent.take() {
                    self.buffers.recycle(lease, Place::Reply);
                }
                if let Sent::Cut(Reply::Pinned(pinned)) = sent {
                    self.buffers.pass(pinned.lease(), Place::Reply, Place::Lease);
                }
            }
            &Completion::Passed { .. }
            | &Completion::Broken { .. }
            | &Completion::Asked
            | &Completion::StopRequested => {}
            &Completion::HungUp { id } => {
                let number = self.find(id).expect("a watch of a connection");
                self.connections[number].watch = Flight::Not;
            }
            &Completion::Closed { id } => {
                let number = self.find(id).expect("a close of a connection");
                self.slots[id.slot as usize] = None;
                let is_refused = self.connections[number].link.is_refused();
                *(if is_refused { &mut self.refused } else { &mut self.admitted }) -= 1;
                self.retire(number);
                self.inject_stale_completion(id);
            }
        }
    }

    fn hand_over_accepted(
        &mut self,
        listener: u32,
        result: &Result<Socket, Errno>,
        further: Further,
    ) {
        let listener = &mut self.listeners[listener as usize];
        if further == Further::Over {
            listener.accept = Flight::Not;
        }
        match result {
            Ok(Socket(fd)) => {
                listener.failures = 0;
                self.totals.accepted += 1;
                let number = self.descriptors[*fd as usize].expect("an open socket");
                self.unadmitted.push_back(number);
            }
            Err(Errno::CANCELED) if listener.is_cancelled => {}
            Err(errno) => listener.fail(*errno, self.now),
        }
    }

    fn hand_over_received(&mut self, id: ConnectionId, received: &Received, further: Further) {
        let Some(number) = self.find(id) else {
            if let Received::Data { lease, .. } = received {
                self.buffers.pass(lease, Place::Completion, Place::Lease);
            }
            return;
        };
        let Connection { link, receive, place, .. } = &mut self.connections[number];
        if further == Further::Over {
            *receive = Flight::Not;
        }
        match received {
            Received::Data { lease, bytes } => {
                self.buffers.pass(lease, Place::Completion, Place::Lease);
                link.report(*bytes as usize, self.now);
                if place.is_some() || link.was_opening() {
                    link.go_on();
                }
                self.totals.bytes_in += u64::from(*bytes);
            }
            Received::End => link.report_end(),
            Received::NoBuffer | Received::Failed(_) => {}
        }
        link.mark_ending(self.now);
    }

    /// A completion of an operation that is long over, for the slot's next tenant to ignore.
    fn inject_stale_completion(&mut self, id: ConnectionId) {
        if self.stopped.is_none() && self.random.one_in(20) {
            let received = match self.buffers.take() {
                Some(lease) => Received::Data { lease, bytes: 1 },
                None => Received::NoBuffer,
            };
            let further = Further::Over;
            self.completed.push_back(Completion::Received { id, received, further });
        }
    }
}
