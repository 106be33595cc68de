//! What a simulation is like: its sizes, its rates of faults and its policies, drawn from a seed.

use std::time::Duration;

use testkit::Random;

use crate::engine::pump::Timeouts;
use crate::offload;
use crate::protocol::context::BACKLOG_MAX;
use crate::protocol::{Limits, Policy};

/// The most listeners.
pub(super) const LISTENERS_MAX: usize = 3;
/// Bytes that a request, headers and control frames may take in addition to a message.
const SMALL_CHANGE: usize = 20 << 10;

/// What a simulation is like. A rate of `n` means once in `n` times, and 0 means never.
#[derive(Debug, Clone)]
pub(super) struct Scenario {
    /// Connections in all, and at a time.
    pub(super) connections: usize,
    pub(super) concurrency: usize,
    /// The worker's limit on connections, and the process's on descriptors.
    pub(super) limit: usize,
    pub(super) descriptors: usize,
    /// Buffers, and the bytes received that one of them takes.
    pub(super) buffers: usize,
    pub(super) capacity: usize,
    /// Whether a receive takes no more of a buffer than it brings.
    pub(super) is_incremental: bool,
    /// Bytes that a socket keeps until they are received.
    pub(super) window: usize,
    pub(super) message_max: usize,
    /// What a peer sends, more or less, in bytes.
    pub(super) bytes_max: usize,
    pub(super) is_heavy: bool,
    /// Bytes that a peer sends only to fill memory, more than may be filled; 0 if no peer does.
    pub(super) flood: usize,
    pub(super) is_sqpoll: bool,
    /// All sends wait for the peer, a pause lets the read in flight end by itself, and no receive
    /// is without a buffer: a ring whose operations cannot be cancelled and have no flags.
    pub(super) is_patient: bool,
    /// Completions that one call hands over, and steps of the kernel between two calls.
    pub(super) queue: usize,
    pub(super) batch: usize,
    /// The rate at which sends and receives move less than they could.
    pub(super) cut: usize,
    /// The rate at which operations end that might go on.
    pub(super) over: usize,
    /// The rate at which sends break their connection.
    pub(super) breaks: usize,
    /// How much work connections may do at a time, if not as much as they usually may.
    pub(super) limits: Option<Limits>,
    /// Bytes that heavy connections receive and send at a time.
    pub(super) piece: u32,
    /// The size of a large block of a spill, in bytes.
    pub(super) block: usize,
    /// How long the worker is kept from running, now and then.
    pub(super) stall_max: Duration,
    /// How connections are offloaded, and how many can be.
    pub(super) offload: offload::Policy,
    pub(super) auto_run: u8,
    pub(super) places: usize,
    /// Bytes that may be on the way to a peer when the kernel echoes.
    pub(super) flight_max: i64,
    /// Bytes that the kernel passes up and that are not received, before it gives a connection up.
    pub(super) unreceived_max: u64,
    /// The rate at which peers compress their messages, and how the server echoes those.
    pub(super) compressed: usize,
    pub(super) policy: Policy,
    /// How long connections may take, and how much heap memory, in bytes.
    pub(super) timeouts: Timeouts,
    pub(super) memory_max: usize,
    /// Steps after which the pump has to stop, if it does not come to rest before.
    pub(super) stop_after: u64,
    /// The first listener whose connections have a layer; so have those of all after it.
    layered_from: usize,
}

impl Scenario {
    pub(super) fn new(random: &mut Random) -> Scenario {
        let is_crowded = random.one_in(60);
        let is_heavy = !is_crowded && random.one_in(40);
        let concurrency = match random.below(4) {
            _ if is_crowded => 70 + random.below(60),
            _ if is_heavy => 1 + random.below(8),
            0 => 1 + random.below(3),
            _ => 1 + random.below(40),
        };
        let capacity = if is_heavy {
            4096
        } else {
            random.pick(&[1, 16, 64, 130, 130, 500, 500, 1024, 1024, 4096])
        };
        let bytes_max = if is_heavy { 400_000 } else { 60 * capacity.min(1100) };
        let is_stopped_early = random.one_in(4);
        let mut scenario = Scenario {
            connections: if is_heavy { concurrency } else { concurrency * (1 + random.below(5)) },
            concurrency,
            limit: if is_crowded || random.one_in(8) { random.below(20) } else { 1000 },
            descriptors: if random.one_in(8) { 1 + random.below(10) } else { 200 },
            buffers: random.pick(&[1, 2, 2, 4, 8, 16, 64]),
            capacity,
            is_incremental: random.one_in(2),
            window: random.pick(&[100, 5000, 300_000]),
            message_max: random.pick(&[100, 1000, 10_000, 300_000]),
            bytes_max,
            is_heavy,
            flood: 0,
            is_sqpoll: random.one_in(6),
            is_patient: random.one_in(4),
            queue: random.pick(&[2, 5, 1000, 1000]),
            batch: random.pick(&[1, 5, 30, 200]),
            cut: random.pick(&[0, 2, 6, 30]),
            over: random.pick(&[0, 3, 20, 200]),
            breaks: random.pick(&[0, 0, 30, 500]),
            limits: None,
            piece: Limits::PIECE,
            block: random.pick(&[1024, 8 << 10, 272 << 10]),
            stall_max: Duration::from_secs(random.pick(&[0, 0, 0, 40])),
            offload: offload::Policy::Off,
            auto_run: random.pick(&[1, 5, 20]),
            places: 0,
            flight_max: random.pick(&[300, 5000, 32 << 10]),
            unreceived_max: if random.one_in(8) { 300 } else { u64::MAX },
            timeouts: Timeouts { handshake: None, ping: None, idle: None, ..Timeouts::DEFAULT },
            memory_max: usize::MAX,
            compressed: 0,
            policy: Policy::Mirror,
            stop_after: if is_stopped_early { random.below(4000) as u64 } else { u64::MAX },
            layered_from: LISTENERS_MAX,
        };
        scenario.is_sqpoll &= !scenario.is_patient;
        if !scenario.is_patient && random.one_in(2) {
            scenario.offload_some(random);
        }
        if random.one_in(2) {
            let turn = random.pick(&[1, 10, 50, 500]);
            let cycle = turn * random.pick(&[1, 3, 20]);
            scenario.piece = random.pick(&[2, 60, 500, 4096]);
            if scenario.is_heavy {
                // With smaller pieces it takes more steps than a simulation has.
                scenario.piece = scenario.piece.max(60);
            }
            scenario.limits = Some(Limits { cycle, turn });
        }
        if random.one_in(4) {
            scenario.limit_times(random);
        }
        if random.one_in(10) && !scenario.is_heavy {
            scenario.compressed = random.pick(&[1, 3]);
            scenario.policy = random.pick(&[Policy::Mirror, Policy::Mirror, Policy::Deflate]);
        }
        if random.one_in(12) {
            scenario.memory_max = random.pick(&[5000, 50_000, 500_000]);
        }
        if random.one_in(50) {
            scenario = scenario.flooded();
        }
        scenario
    }

    /// The same, but some connections have a layer. The simulated kernel does not tell sealed pings from replies, so
    /// there are none.
    pub(super) fn layered(self, random: &mut Random) -> Scenario {
        let timeouts = Timeouts { ping: None, ..self.timeouts };
        Scenario { layered_from: random.below(2), timeouts, ..self }
    }

    /// Whether connections may have a layer.
    pub(super) fn has_layers(&self) -> bool {
        self.is_layered(LISTENERS_MAX - 1)
    }

    /// Whether the connections to this listener have a layer.
    pub(super) fn is_layered(&self, listener: usize) -> bool {
        listener >= self.layered_from
    }

    /// Ends or pings connections after some time.
    fn limit_times(&mut self, random: &mut Random) {
        let mut time = |seconds: &[u64]| match random.pick(seconds) {
            0 => None,
            seconds => Some(Duration::from_secs(seconds)),
        };
        self.timeouts.handshake = time(&[0, 1, 10]);
        self.timeouts.ping = time(&[0, 1, 3, 60]);
        self.timeouts.idle = time(&[0, 2, 20, 150]);
        self.timeouts.lifetime = time(&[0, 0, 1, 30]);
        self.timeouts.drain = time(&[1, 5]);
    }

    /// Offloads connections.
    fn offload_some(&mut self, random: &mut Random) {
        let policies = [offload::Policy::On, offload::Policy::On, offload::Policy::Auto];
        self.offload = random.pick(&policies);
        self.places = 1 + random.below(40);
        if random.below(8) > 0 {
            // With less, no connection is offloaded.
            self.message_max = self.message_max.max(offload::PAYLOAD_BYTES_MAX);
            self.capacity = self.capacity.max(500);
        }
        if self.offload == offload::Policy::Auto {
            self.concurrency = 1 + random.below(offload::FEW + 1);
            self.connections = self.concurrency * (1 + random.below(5));
        }
    }

    /// The same, but with two peers that do nothing but fill memory.
    fn flooded(self) -> Scenario {
        let mut scenario = Scenario {
            connections: 2,
            limit: 1000,
            descriptors: 200,
            buffers: self.buffers.min(2),
            capacity: 1024,
            window: 300_000,
            message_max: 1000,
            over: 0,
            breaks: 0,
            // With small pieces it would take forever.
            piece: self.piece.max(4096),
            stop_after: u64::MAX,
            compressed: 0,
            memory_max: usize::MAX,
            timeouts: Timeouts { handshake: None, ping: None, idle: None, ..Timeouts::DEFAULT },
            ..self
        };
        scenario.flood = 3 * scenario.heap_max(scenario.connections, scenario.buffers);
        scenario
    }

    /// The heap bytes that connections may cost: for each the replies at which receiving stops, a
    /// message, and what the buffers held then, a few times, because a receive is stopped only some
    /// submissions later; and all of that again in the reply that is being sent.
    pub(super) fn heap_max(&self, connections: usize, buffers: usize) -> usize {
        let buffered = 4 * buffers * self.capacity;
        let message = self.message_max + self.message_max / 8;
        2 * connections * (BACKLOG_MAX + message + SMALL_CHANGE + buffered)
    }
}
