//! How connections come in: which are accepted when, and how many.
//!
//! Accepted sockets wait in a queue until everything else in a cycle is done, and only
//! [`ADMISSIONS_MAX`] of them are admitted in one cycle. While more of them wait, nothing is accepted.
//! So however many connections come in, those that are open get their turn.
//!
//! A connection over a limit is admitted too, to be told so, unless too many of them are being told.
//!
//! After every change [`Pump::settle_accepting`] compares what the listeners should be doing with what
//! they do, as `turn` does for a connection.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::io::Errno;
use tracing::{debug, warn};

use super::Pump;
use super::deadlines::{Due, LINGER_MAX};
use super::peer::{Peer, Stage};
use crate::engine::ring::{ADMISSIONS_MAX, Further, Ring, Socket};
use crate::offload::FEW;
use crate::protocol::Admission;
use crate::slab::ConnectionId;

/// How long a listener rests when there are no descriptors or no memory for another connection.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Failures of accept(2) in a row after which a listener rests, whatever their errors.
pub const FAILURES_MAX: u32 = 64;
/// The least time between two warnings of a failure to accept.
pub const WARNING_PAUSE: Duration = Duration::from_secs(60);
/// Connections over the limit that a worker answers at a time; further ones are closed at once.
pub const REFUSED_MAX: usize = 64;

/// The limit on open connections, which all workers share.
#[derive(Debug)]
pub struct Limit {
    open: AtomicUsize,
    max: usize,
    per_address: Option<AddressLimit>,
}

/// The limit on the open connections from one address.
#[derive(Debug)]
struct AddressLimit {
    open: Mutex<HashMap<IpAddr, usize>>,
    max: usize,
}

impl Limit {
    /// A limit of `max` connections open at a time.
    pub fn new(max: usize) -> Limit {
        Limit { open: AtomicUsize::new(0), max, per_address: None }
    }

    /// The same, and at most `max` connections open at a time from one address. For IPv6 that is a network
    /// of 64 bits, all of whose addresses one host may use (RFC 7421).
    #[must_use]
    pub fn with_address_max(self, max: usize) -> Limit {
        Limit { per_address: Some(AddressLimit { open: Mutex::default(), max }), ..self }
    }

    /// Whether addresses matter.
    fn counts_addresses(&self) -> bool {
        self.per_address.is_some()
    }

    /// The most connections open at a time.
    pub(super) fn max(&self) -> usize {
        self.max
    }

    /// Takes a place, of the address first: whoever is over the limit of an address takes none from others.
    fn admit(&self, address: Option<IpAddr>) -> Admission {
        let (Some(limit), Some(address)) = (&self.per_address, address) else {
            return self.take_place();
        };
        let mut open = limit.open();
        let count = open.get(&address).copied().unwrap_or(0);
        if count >= limit.max {
            return Admission::TooMany;
        }
        let admission = self.take_place();
        if admission == Admission::Open {
            open.insert(address, count + 1);
        }
        admission
    }

    /// The count never exceeds the limit, not even for a moment, or another worker could find no place
    /// where there is one.
    fn take_place(&self) -> Admission {
        let next = |open| (open < self.max).then_some(open + 1);
        match self.open.fetch_update(Relaxed, Relaxed, next) {
            Ok(_) => Admission::Open,
            Err(_) => Admission::Full,
        }
    }

    fn release(&self, address: Option<IpAddr>) {
        self.open.fetch_sub(1, Relaxed);
        if let (Some(limit), Some(address)) = (&self.per_address, address) {
            let mut open = limit.open();
            if let Some(count) = open.get_mut(&address) {
                *count -= 1;
                if *count == 0 {
                    open.remove(&address);
                }
            }
        }
    }
}

impl AddressLimit {
    fn open(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The address that a client with this address is counted with.
fn counted(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        address @ IpAddr::V4(_) => address,
    }
}

/// What a failure to accept concerns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Failure {
    /// That connection alone: the next may well be accepted.
    Connection,
    /// Descriptors or memory, which are missing for the next one too.
    Resources,
}

impl Failure {
    /// Judges by accept(2): errors that are pending on the new socket, from the network or a firewall,
    /// are reported by the accept, which should then be tried again. `ENOSPC` is from epoll_ctl(2).
    fn of(errno: Errno) -> Failure {
        match errno {
            Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM | Errno::NOSPC => {
                Failure::Resources
            }
            _ => Failure::Connection,
        }
    }
}

/// The accept of a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Accepting {
    /// None is in flight.
    Off,
    /// In flight.
    On,
    /// Cancelled; its last completion is still to come.
    Stopping,
    /// None is in flight until a deadline.
    Paused,
    /// The listener is closed.
    Closed,
}

#[derive(Debug)]
struct Listener {
    accepting: Accepting,
    /// Failures since the last connection.
    failures: u32,
}

/// The listeners of a worker, and the connections that have not been admitted.
#[derive(Debug)]
pub(super) struct Admissions<'a> {
    limit: &'a Limit,
    listeners: Vec<Listener>,
    /// Accepted and not admitted.
    waiting: VecDeque<(Socket, u32)>,
    /// Open connections over a limit.
    refused: usize,
    /// The addresses of open connections, if they are counted.
    addresses: HashMap<ConnectionId, IpAddr>,
    warned_at: Option<Duration>,
    /// Something has changed since the listeners were settled.
    is_unsettled: bool,
}

impl<'a> Admissions<'a> {
    pub(super) fn new(limit: &'a Limit) -> Admissions<'a> {
        Admissions {
            limit,
            listeners: Vec::new(),
            waiting: VecDeque::new(),
            refused: 0,
            addresses: HashMap::new(),
            warned_at: None,
            is_unsettled: false,
        }
    }

    /// Takes these listeners in, to accept on them.
    pub(super) fn open(&mut self, listeners: u32) {
        self.listeners
            .extend((0..listeners).map(|_| Listener { accepting: Accepting::Off, failures: 0 }));
        self.is_unsettled = true;
    }

    /// Ends the pause of a listener.
    pub(super) fn resume(&mut self, listener: u32) {
        let listener = &mut self.listeners[listener as usize];
        if listener.accepting == Accepting::Paused {
            listener.accepting = Accepting::Off;
            self.is_unsettled = true;
        }
    }

    /// Closes the listeners at the next settling: the worker is to stop.
    pub(super) fn stop(&mut self) {
        self.is_unsettled = true;
    }

    /// Whether [`Pump::settle_accepting`] has something to do.
    #[inline]
    pub(super) fn is_unsettled(&self) -> bool {
        self.is_unsettled
    }

    /// Whether all listeners are closed.
    pub(super) fn is_over(&self) -> bool {
        self.listeners.iter().all(|listener| listener.accepting == Accepting::Closed)
    }

    /// Gives back what a connection has taken.
    fn release(&mut self, id: ConnectionId, admission: Admission) {
        match admission {
            Admission::Open => self.limit.release(self.addresses.remove(&id)),
            Admission::Full | Admission::TooMany => self.refused -= 1,
        }
    }
}

impl<R: Ring> Pump<'_, R> {
    /// An accept brought a connection or failed.
    #[cold]
    pub(super) fn accepted(
        &mut self,
        number: u32,
        result: Result<Socket, Errno>,
        further: Further,
    ) {
        self.admissions.is_unsettled = true;
        let listener = &mut self.admissions.listeners[number as usize];
        let was_stopping = listener.accepting == Accepting::Stopping;
        if further == Further::Over {
            listener.accepting = Accepting::Off;
        }
        match result {
            Ok(socket) => {
                listener.failures = 0;
                self.worker.context.counters.connections_accepted.add(1);
                self.admissions.waiting.push_back((socket, number));
            }
            Err(Errno::CANCELED) if was_stopping => {}
            Err(errno) => {
                listener.failures += 1;
                let is_lasting = listener.failures >= FAILURES_MAX;
                if is_lasting || Failure::of(errno) == Failure::Resources {
                    self.pause_accepting(number, errno);
                }
            }
        }
    }

    fn pause_accepting(&mut self, number: u32, errno: Errno) {
        let listener = &mut self.admissions.listeners[number as usize];
        listener.failures = 0;
        if listener.accepting != Accepting::Off {
            return;
        }
        listener.accepting = Accepting::Paused;
        let now = self.worker.ring.now();
        self.worker.deadlines.set(now + ACCEPT_PAUSE, Due::Accept(number));
        if self.admissions.warned_at.is_none_or(|at| now >= at + WARNING_PAUSE) {
            self.admissions.warned_at = Some(now);
            let advice = match Failure::of(errno) {
                Failure::Resources => {
                    ". If file descriptors have run out, raise the limit (ulimit -n) or lower \
                     --connections-max"
                }
                Failure::Connection => "",
            };
            let pause = ACCEPT_PAUSE.as_millis();
            warn!("cannot accept connections: {errno}; retrying every {pause} ms{advice}");
        }
    }

    /// Admits some of the connections that wait, then starts, cancels and closes until the listeners do
    /// what they should: accept while no connection waits, and nothing once the worker is to stop.
    #[cold]
    pub(super) fn settle_accepting(&mut self) {
        let is_stopping = self.worker.is_stopping;
        if is_stopping {
            self.close_listeners();
        }
        let most = if is_stopping { usize::MAX } else { ADMISSIONS_MAX };
        for _ in 0..most {
            let Some((socket, listener)) = self.admissions.waiting.pop_front() else { break };
            self.admit(socket, listener);
        }
        let is_behind = !self.admissions.waiting.is_empty();
        let ring = &mut self.worker.ring;
        for (listener, number) in self.admissions.listeners.iter_mut().zip(0..) {
            match listener.accepting {
                Accepting::On if is_behind => {
                    ring.cancel_accept(number);
                    listener.accepting = Accepting::Stopping;
                }
                Accepting::Off if !is_behind && !is_stopping => {
                    ring.accept(number);
                    listener.accepting = Accepting::On;
                }
                Accepting::Off
                | Accepting::On
                | Accepting::Stopping
                | Accepting::Paused
                | Accepting::Closed => {}
            }
        }
        self.admissions.is_unsettled = is_behind;
        self.worker.is_eager |= is_behind;
    }

    /// Ends all accepts, then closes their listeners. Connections that still wait on one are accepted.
    fn close_listeners(&mut self) {
        let Pump { admissions: Admissions { listeners, waiting, .. }, worker, .. } = self;
        let before = waiting.len();
        let mut queue = VecDeque::new();
        for (listener, number) in listeners.iter_mut().zip(0..) {
            match listener.accepting {
                Accepting::On => {
                    worker.ring.cancel_accept(number);
                    listener.accepting = Accepting::Stopping;
                }
                Accepting::Off | Accepting::Paused => {
                    worker.ring.close_listener(number, &mut queue);
                    waiting.extend(queue.drain(..).map(|socket| (socket, number)));
                    listener.accepting = Accepting::Closed;
                }
                Accepting::Stopping | Accepting::Closed => {}
            }
        }
        let accepted = waiting.len() - before;
        worker.context.counters.connections_accepted.add(accepted as u64);
    }

    fn admit(&mut self, socket: Socket, listener: u32) {
        let Pump { admissions, worker, peers, .. } = self;
        let address = if admissions.limit.counts_addresses() {
            worker.ring.peer_address(&socket).map(counted)
        } else {
            None
        };
        let admission = admissions.limit.admit(address);
        let is_refused = admission != Admission::Open;
        if is_refused {
            worker.context.counters.connections_rejected.add(1);
            if admission == Admission::TooMany {
                worker.context.counters.addresses_refused.add(1);
            }
            if admissions.refused == REFUSED_MAX {
                return worker.ring.discard(socket);
            }
            admissions.refused += 1;
        }
        worker.context.counters.connections_open.add(1);
        let now = worker.context.now.get();
        let id = peers.insert(Peer::new(socket, admission, worker.offload_progress(), now));
        if let Some(ledgers) = &mut worker.ledgers {
            ledgers.accepted(id, worker.ring.recently());
        }
        if is_refused {
            let at = worker.ring.now() + LINGER_MAX;
            worker.deadlines.set(at, Due::End(id, Stage::Serving));
        } else if let Some(address) = address {
            admissions.addresses.insert(id, address);
        }
        let connections = peers.len();
        worker.connections = connections;
        if worker.is_crowded() && connections == FEW + 1 {
            self.at_each(|mut turn| turn.take_back());
        }
        if !is_refused {
            self.start_timers(id);
        }
        let is_stopping = self.worker.is_stopping;
        self.at(id, |mut turn| {
            turn.enter_layer(listener);
            turn.settle();
            if is_stopping {
                turn.stop();
            }
        });
    }

    /// A socket is closed: its slot is free.
    #[cold]
    pub(super) fn closed(&mut self, id: ConnectionId) {
        let Some(peer) = self.peers.remove(id) else { return };
        debug!(
            worker = std::thread::current().name(),
            slot = id.slot,
            "a connection has ended: {}",
            peer.end.reason(),
        );
        let Pump { admissions, worker, peers, .. } = self;
        worker.context.counters.connections_open.subtract(1);
        admissions.release(id, peer.admission);
        worker.connections = peers.len();
        if worker.deadlines.is_littered(peers.len()) {
            worker.deadlines.sweep(|id| peers.get_mut(id).is_some());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn a_connection_that_is_refused_is_not_counted_even_for_a_moment() {
        let limit = Limit::new(0);
        let attempts = || {
            for _ in 0..1_000_000 {
                assert_eq!(limit.admit(None), Admission::Full);
            }
        };
        thread::scope(|scope| {
            let threads = [scope.spawn(attempts), scope.spawn(attempts)];
            while !threads.iter().all(thread::ScopedJoinHandle::is_finished) {
                assert_eq!(limit.open.load(Relaxed), 0);
            }
        });
    }

    #[test]
    fn a_place_that_is_given_back_is_there_for_the_next() {
        let limit = Limit::new(2);
        let admissions = [limit.admit(None), limit.admit(None), limit.admit(None)];
        assert_eq!(admissions, [Admission::Open, Admission::Open, Admission::Full]);
        limit.release(None);
        assert_eq!([limit.admit(None), limit.admit(None)], [Admission::Open, Admission::Full]);
    }

    #[test]
    fn an_address_has_a_limit_of_its_own() {
        let limit = Limit::new(3).with_address_max(2);
        let address = |text: &str| Some(counted(text.parse().expect("an address")));
        let (one, other) = (address("192.0.2.1"), address("192.0.2.2"));
        let admissions = [one, one, address("::ffff:192.0.2.1"), None, other];
        use Admission::{Full, Open, TooMany};
        assert_eq!(admissions.map(|it| limit.admit(it)), [Open, Open, TooMany, Open, Full]);
        limit.release(one);
        assert_eq!([other, one].map(|it| limit.admit(it)), [Open, Full]);
        limit.release(None);
        assert_eq!([one, one].map(|it| limit.admit(it)), [Open, TooMany]);
        for address in [one, one, other] {
            limit.release(address);
        }
        assert_eq!(format!("{limit:?}"), format!("{:?}", Limit::new(3).with_address_max(2)));
    }

    #[test]
    fn addresses_of_ipv6_count_by_their_network() {
        let counted = |text: &str| counted(text.parse().expect("an address"));
        assert_eq!(counted("2001:db8:1:2:3:4:5:6"), counted("2001:db8:1:2::9"));
        assert_ne!(counted("2001:db8:1:2::9"), counted("2001:db8:1:3::9"));
        assert_ne!(counted("::ffff:192.0.2.1"), counted("::ffff:192.0.2.2"));
    }

    #[test]
    fn only_missing_descriptors_or_memory_concern_the_next_connection_too() {
        for errno in [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM] {
            assert_eq!(Failure::of(errno), Failure::Resources, "{errno}");
        }
        // The list of accept(2), "Error handling", and the other errors that it names.
        for errno in [
            Errno::NETDOWN,
            Errno::PROTO,
            Errno::NOPROTOOPT,
            Errno::HOSTDOWN,
            Errno::NONET,
            Errno::HOSTUNREACH,
            Errno::OPNOTSUPP,
            Errno::NETUNREACH,
            Errno::PERM,
            Errno::CONNABORTED,
            Errno::INTR,
            Errno::AGAIN,
            Errno::TIMEDOUT,
            Errno::SOCKTNOSUPPORT,
            Errno::PROTONOSUPPORT,
        ] {
            assert_eq!(Failure::of(errno), Failure::Connection, "{errno}");
        }
    }
}
