//! The table: machines, clients, and what the worker has to do there.

use std::time::Duration;

use super::machine::Client::{Blocking, Bursts, Open, SameCpu, Spinning};
use super::machine::Jitter::{Little, Much, Poisson};
use super::machine::{Client, Neighbour};

/// How many messages of a phase find the worker spinning.
#[derive(Debug, Clone, Copy)]
pub(super) enum Share {
    /// At least this part.
    Nearly(f64),
    /// At most this part.
    AtMost(f64),
    /// Either is right: what spinning saves and what it costs are about the same.
    Any,
}

/// A time with one client.
#[derive(Debug, Clone, Copy)]
pub(super) struct Phase {
    pub(super) client: Client,
    pub(super) neighbour: Neighbour,
    pub(super) length_ms: u64,
    /// After so many messages the share is measured.
    pub(super) settled_after: u64,
    pub(super) spins: Share,
    /// The most time that may be spun in vain, in µs per second.
    pub(super) in_vain_us_max: u64,
}

impl Phase {
    pub(super) fn length(&self) -> Duration {
        Duration::from_millis(self.length_ms)
    }

    const fn beside_neighbour(self) -> Phase {
        Phase { neighbour: Neighbour::Busy, ..self }
    }

    const fn lasting(self, length_ms: u64) -> Phase {
        Phase { length_ms, ..self }
    }

    const fn in_vain(self, in_vain_us_max: u64) -> Phase {
        Phase { in_vain_us_max, ..self }
    }

    const fn after(self, settled_after: u64) -> Phase {
        Phase { settled_after, ..self }
    }
}

/// A machine, and what happens on it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    pub(super) name: &'static str,
    pub(super) wake_up_us: u64,
    /// What was measured at the start, if it was wrong.
    pub(super) measured_us: Option<u64>,
    /// The longest spin, if it was given.
    pub(super) spin_us: Option<u64>,
    pub(super) phases: &'static [Phase],
}

const fn row(name: &'static str, wake_up_us: u64, phases: &'static [Phase]) -> Row {
    Row { name, wake_up_us, measured_us: None, spin_us: None, phases }
}

/// What may be spun in vain where spinning pays: a twentieth of the time.
const PAID_US: u64 = 50_000;
/// Where it does not: two in a hundred of any second, and a few spins at first.
const UNPAID_US: u64 = 22_000;

const fn phase(client: Client, spins: Share, in_vain_us_max: u64) -> Phase {
    let neighbour = Neighbour::None;
    Phase { client, neighbour, length_ms: 1000, settled_after: 10, spins, in_vain_us_max }
}

/// Spinning pays: from the tenth message on nearly all are found.
const fn pays(client: Client) -> Phase {
    phase(client, Share::Nearly(0.95), PAID_US)
}

/// Spinning pays, but some messages come too late for it.
const fn mostly(client: Client) -> Phase {
    phase(client, Share::Nearly(0.85), 2 * PAID_US)
}

/// It does not: the worker sleeps.
const fn costs(client: Client) -> Phase {
    phase(client, Share::AtMost(0.03), UNPAID_US)
}

const BLOCKING: Client = Blocking { think_us: 2, jitter: Little };
const SPINNING: Client = Spinning { think_us: 2, jitter: Little };
const THINKING: Client = Blocking { think_us: 30, jitter: Little };
const JITTERY: Client = Blocking { think_us: 10, jitter: Much };

const fn every(rate: u64) -> Client {
    Open { rate, jitter: Little }
}

const fn poisson(rate: u64) -> Client {
    Open { rate, jitter: Poisson }
}

/// At 100 messages per second, 15 % of the 20 µs that a message costs at least.
const RARE_US: u64 = 300;

const PING_PONG: &[Phase] = &[pays(BLOCKING), pays(SPINNING), pays(THINKING)];
/// Open loops, where a wake-up takes so long that 10,000 messages per second are worth spinning for.
const STEADY: &[Phase] = &[
    costs(every(100)).in_vain(RARE_US),
    costs(every(1000)),
    pays(every(10_000)),
    pays(every(20_000)),
];
const BURSTS: &[Phase] =
    &[phase(Bursts { messages: 20, pause_us: 5000 }, Share::Nearly(0.8), PAID_US)];

pub(super) const ROWS: &[Row] = &[
    row("ping-pong, wake-up 3", 3, PING_PONG),
    row("ping-pong, wake-up 10", 10, PING_PONG),
    row("ping-pong, wake-up 20", 20, PING_PONG),
    row("ping-pong, wake-up 50", 50, PING_PONG),
    row("ping-pong, wake-up 100", 100, PING_PONG),
    row("ping-pong, wake-up 200", 200, PING_PONG),
    row("jitter, wake-up 20", 20, &[mostly(JITTERY)]),
    row("jitter, wake-up 50", 50, &[mostly(JITTERY)]),
    row("jitter, wake-up 100", 100, &[mostly(JITTERY)]),
    row(
        "open, wake-up 3",
        3,
        &[
            costs(every(10)).in_vain(30),
            costs(every(100)).in_vain(RARE_US),
            costs(every(1000)),
            costs(every(10_000)),
        ],
    ),
    row(
        "open, wake-up 20",
        20,
        &[
            costs(every(10)),
            costs(every(100)).in_vain(RARE_US),
            costs(every(500)),
            costs(every(1000)),
            pays(every(10_000)),
            pays(every(20_000)),
        ],
    ),
    row("open, wake-up 50", 50, STEADY),
    row("open, wake-up 100", 100, STEADY),
    row(
        "open, wake-up 200",
        200,
        &[
            costs(every(100)).in_vain(RARE_US),
            costs(every(500)),
            costs(every(1000)),
            pays(every(10_000)),
            pays(every(20_000)),
        ],
    ),
    row(
        "poisson, wake-up 20",
        20,
        &[
            costs(poisson(100)).in_vain(RARE_US).lasting(20_000),
            costs(poisson(1000)).lasting(5000),
            phase(poisson(10_000), Share::Any, 3 * PAID_US),
            phase(poisson(20_000), Share::Any, 3 * PAID_US),
        ],
    ),
    row(
        "poisson, wake-up 100",
        100,
        &[mostly(poisson(10_000)), mostly(poisson(20_000)), costs(poisson(1000)).lasting(5000)],
    ),
    row("rare poisson, wake-up 100", 100, &[costs(poisson(100)).in_vain(RARE_US).lasting(20_000)]),
    // In debt when the messages begin to come fast, it needs some seconds at worst.
    row(
        "poisson after poisson, wake-up 100",
        100,
        &[
            costs(poisson(1000)).lasting(5000),
            phase(poisson(10_000), Share::Nearly(0.5), 2 * PAID_US).lasting(4000).after(10_000),
        ],
    ),
    row("bursts, wake-up 20", 20, BURSTS),
    row("bursts, wake-up 100", 100, BURSTS),
    row("pairs, wake-up 20", 20, &[costs(Bursts { messages: 2, pause_us: 3000 })]),
    row("pairs, wake-up 100", 100, &[costs(Bursts { messages: 2, pause_us: 3000 })]),
    row(
        "same CPU",
        20,
        &[costs(SameCpu).in_vain(4000), pays(BLOCKING).after(20_000), costs(SameCpu)],
    ),
    row(
        "neighbour",
        20,
        &[
            phase(BLOCKING, Share::AtMost(0.6), 5000).beside_neighbour().lasting(5000),
            pays(BLOCKING).after(20_000),
        ],
    ),
    row(
        "change",
        50,
        &[
            costs(every(1000)),
            pays(BLOCKING),
            costs(every(100)).in_vain(1000),
            pays(SPINNING).after(100),
            pays(every(10_000)).after(100),
        ],
    ),
    Row {
        measured_us: Some(5),
        ..row("measured a quarter", 20, &[pays(BLOCKING), pays(SPINNING)])
    },
    Row {
        measured_us: Some(80),
        ..row(
            "measured four times",
            20,
            &[pays(BLOCKING), costs(every(1000)), costs(every(100)).in_vain(RARE_US)],
        )
    },
    Row {
        spin_us: Some(300),
        ..row("a remote client", 20, &[pays(Blocking { think_us: 200, jitter: Little })])
    },
    Row { spin_us: Some(20), ..row("too short", 50, &[costs(BLOCKING)]) },
];
