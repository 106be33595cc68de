//! The pump against a simulated kernel: sockets, buffers, descriptors and completions as plain
//! data, peers of every kind, and every fault that the kernel or a peer may cause, in an order
//! that one number decides.
//!
//! A simulation is a [`Scenario`], drawn from its seed: [`peer`] says what is sent and when it is
//! read, [`oracle`] what is owed for it, [`link`] carries both and checks every byte sent, and
//! [`kernel`] injects faults and checks every call of the pump. What is checked after each turn and
//! at the end stands here. A failure names the command that repeats it.
//!
//! A receive may miss a reset that is there when it brings the bytes before it, as the kernel's
//! does. Three things are harsher than a kernel: a receive may end, or be cancelled, for no reason at
//! all; a slot's next tenant may be told of a receive of the last one; and now and then the peers
//! hold still until the pump has come to rest, so that a wake-up that is lost cannot hide behind
//! the next message.
//!
//! Not modelled: the kernel's ring itself, so neither `user_data`, the entries' flags nor the
//! memory shared with the kernel; blocking, system calls and their number; how a waiting worker
//! spins; several workers with one limit; TCP below its stream, so no packets are lost and a reset
//! takes none of the bytes that the server has already sent. Not checked: at which byte a wrong
//! frame is noticed, the texts of close reasons and of HTTP responses, and the counters of
//! messages and frames.

mod buffers;
mod kernel;
mod link;
mod offloaded_socket;
mod oracle;
mod peer;

use std::env;
use std::panic::{self, AssertUnwindSafe};
use std::time::{Duration, Instant};

use self::buffers::Place;
use self::kernel::{Kernel, Totals};
use super::pump::{Limit, Pump};
use crate::metrics::Counters;
use crate::offload;
use crate::offload::record::program;
use crate::protocol::dialogue::BACKLOG_MAX;
use crate::protocol::{Context, Policy, Protocol, Settings};

/// Connections in a usual run of the tests.
const CONNECTIONS: u64 = 100_000;
/// What a request, a header or a control frame may take beside a message.
const SMALL_CHANGE: usize = 20 << 10;

/// SplitMix64, by Sebastiano Vigna after Steele, Lea and Flood, "Fast splittable pseudorandom
/// number generators" (OOPSLA 2014); the constants are those of
/// <https://prng.di.unimi.it/splitmix64.c>.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// A number below `end`, or 0.
    fn below(&mut self, end: usize) -> usize {
        ((u128::from(self.next()) * end as u128) >> 64) as usize
    }

    /// True once in so many times; never if that is 0.
    fn one_in(&mut self, times: usize) -> bool {
        times > 0 && self.below(times) == 0
    }

    fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(count + 8);
        while bytes.len() < count {
            bytes.extend(self.next().to_ne_bytes());
        }
        bytes.truncate(count);
        bytes
    }
}

/// What a simulation is like. Of a rate, one in so many is meant, and 0 means never.
#[derive(Debug, Clone)]
struct Scenario {
    /// Connections in all, and at a time.
    connections: usize,
    concurrency: usize,
    /// The worker's limit on connections, and the process's on descriptors.
    limit: usize,
    descriptors: usize,
    /// Buffers, and the bytes received that one of them takes.
    buffers: usize,
    capacity: usize,
    /// Bytes that a socket keeps until they are received.
    window: usize,
    message_max: usize,
    /// What a peer sends, more or less, in bytes.
    bytes_max: usize,
    is_heavy: bool,
    /// What a peer sends that does nothing but fill memory: more than may be filled.
    flood: usize,
    is_sqpoll: bool,
    /// All sends wait for the peer, a pause lets the read in flight end by itself, and no receive
    /// is without a buffer: a ring whose operations cannot be cancelled and have no flags.
    is_patient: bool,
    /// Completions that one call hands over, and steps of the kernel between two calls.
    queue: usize,
    batch: usize,
    /// The rate at which sends and receives move less than they could.
    cut: usize,
    /// The rate at which operations end that might go on.
    over: usize,
    /// The rate at which sends break their connection.
    breaks: usize,
    /// How long the worker is kept from running, now and then.
    stall_max: Duration,
    /// How connections are offloaded, and how many can be.
    offload: offload::Policy,
    auto_run: u8,
    places: usize,
    /// Bytes that may be on the way to a peer when the kernel echoes.
    flight_max: i64,
    /// Bytes that the kernel passes up and that are not received, before it gives a connection up.
    unreceived_max: u64,
    /// Steps after which the pump is told to stop, if it does not come to rest before.
    stop_after: u64,
}

impl Scenario {
    fn new(random: &mut Random) -> Scenario {
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
            stall_max: Duration::from_secs(random.pick(&[0, 0, 0, 40])),
            offload: offload::Policy::Off,
            auto_run: random.pick(&[1, 5, 20]),
            places: 0,
            flight_max: random.pick(&[300, 5000, 32 << 10]),
            unreceived_max: if random.one_in(8) { 300 } else { u64::MAX },
            stop_after: if is_stopped_early { random.below(4000) as u64 } else { u64::MAX },
        };
        scenario.is_sqpoll &= !scenario.is_patient;
        if !scenario.is_patient && random.one_in(2) {
            let policies = [offload::Policy::On, offload::Policy::On, offload::Policy::Auto];
            scenario.offload = random.pick(&policies);
            scenario.places = 1 + random.below(40);
            if random.below(8) > 0 {
                // With less, no connection is offloaded.
                scenario.message_max = scenario.message_max.max(offload::PAYLOAD_BYTES_MAX);
                scenario.capacity = scenario.capacity.max(500);
            }
            if scenario.offload == offload::Policy::Auto {
                scenario.concurrency = 1 + random.below(offload::FEW + 1);
                scenario.connections = scenario.concurrency * (1 + random.below(5));
            }
        }
        if random.one_in(50) {
            scenario = Scenario {
                connections: 2,
                limit: 1000,
                descriptors: 200,
                buffers: scenario.buffers.min(2),
                capacity: 1024,
                window: 300_000,
                message_max: 1000,
                over: 0,
                breaks: 0,
                stop_after: u64::MAX,
                ..scenario
            };
            scenario.flood = 3 * scenario.heap_max(scenario.connections, scenario.buffers);
        }
        scenario
    }

    /// The heap bytes that connections may cost: for each the replies at which receiving stops, a
    /// message, and what the buffers held then, a few times, because a receive is stopped only some
    /// submissions later; and all of that again in the reply that is being sent.
    fn heap_max(&self, connections: usize, buffers: usize) -> usize {
        let buffered = 4 * buffers * self.capacity;
        let message = self.message_max + self.message_max / 8;
        2 * connections * (BACKLOG_MAX + message + SMALL_CHANGE + buffered)
    }
}

/// Runs the simulation of this seed.
fn simulate(seed: u64) -> Totals {
    let mut random = Random(seed);
    let scenario = Scenario::new(&mut random);
    let counters = Counters::default();
    let limit = Limit::new(scenario.limit);
    let settings = Settings {
        protocol: Protocol::WebSocket,
        message_max: scenario.message_max as u64,
        policy: Policy::Mirror,
        level: 6,
    };
    let context = Context::new(settings, &counters);
    let kernel = Kernel::new(scenario.clone(), random);
    let program = kernel.program();
    program::set_hook(Box::new(move || {
        // Not while the kernel itself looks at a record.
        if let Ok(mut program) = program.try_borrow_mut() {
            program.interleave();
        }
    }));
    let mut pump =
        Pump::new(kernel, context, &limit).with_offload(scenario.offload, scenario.auto_run);
    let mut completions = Vec::new();
    pump.start();
    while !pump.is_over() {
        pump.cycle(&mut completions).expect("the simulated ring does not break");
        let connections = pump.connections();
        let heap_bytes = pump.heap_bytes() + pump.ring().reply_bytes();
        let heap_max = scenario.heap_max(connections, pump.ring().buffers().len());
        assert!(heap_bytes <= heap_max, "{heap_bytes} bytes on the heap, over {heap_max}");
        let kernel = pump.ring();
        assert_eq!(kernel.buffers().count(Place::Lease), 0, "a buffer is kept between two turns");
        assert_eq!(connections, kernel.slots_taken(), "slots of connections that are gone");
    }
    pump.ring().check_end();
    let totals = pump.ring().totals;
    assert_eq!(pump.heap_bytes(), 0);
    assert_eq!(counters.connections_open.value(), 0);
    assert_eq!(counters.connections_accepted.value(), totals.accepted);
    assert_eq!(counters.bytes_in.value(), totals.bytes_in);
    assert_eq!(counters.bytes_out.value(), totals.bytes_out);
    assert_eq!(format!("{limit:?}"), format!("{:?}", Limit::new(scenario.limit)));
    totals
}

fn number(variable: &str) -> Option<u64> {
    let value = env::var(variable).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{variable} is not a number: {value}")))
}

/// As many connections as `RINGECHO_SIMULATION_CONNECTIONS` says. Their seeds count up from
/// `RINGECHO_SEED`, which is always the same if it is not given, so that a change that passes
/// once does not fail the next time.
#[test]
fn the_pump_keeps_every_promise_to_every_peer() {
    let connections = number("RINGECHO_SIMULATION_CONNECTIONS").unwrap_or(CONNECTIONS);
    let first = number("RINGECHO_SEED").unwrap_or(1);
    println!("simulations from seed {first}, {connections} connections");
    let begin = Instant::now();
    let mut sum = Totals::default();
    let mut seed = first;
    while sum.accepted < connections {
        let outcome = panic::catch_unwind(AssertUnwindSafe(|| simulate(seed)));
        let Ok(totals) = outcome else {
            panic!(
                "the simulation of seed {seed} failed, after {} connections; repeat it with\n\
                 RINGECHO_SEED={seed} RINGECHO_SIMULATION_CONNECTIONS=1 \
                 cargo test --lib simulation\n\
                 and, to see each step, RINGECHO_SIMULATION_TRACE=1. It is {:?}",
                sum.accepted,
                Scenario::new(&mut Random(seed))
            );
        };
        sum.accepted += totals.accepted;
        sum.fulfilled += totals.fulfilled;
        sum.bytes_in += totals.bytes_in;
        sum.steps += totals.steps;
        sum.offloaded += totals.offloaded;
        sum.chosen += totals.chosen;
        sum.frames += totals.frames;
        sum.frames_echoed += totals.frames_echoed;
        sum.overrun += totals.overrun;
        seed = seed.wrapping_add(1);
    }
    // Few connections tell nothing of the shares.
    assert!(connections < 50_000 || sum.chosen > 0 && sum.overrun > 0, "{sum:?}");
    assert!(
        connections < 5000 || sum.frames_echoed * 5 > sum.frames,
        "the kernel has echoed only {} of {} frames",
        sum.frames_echoed,
        sum.frames
    );
    let seconds = begin.elapsed().as_secs_f64();
    println!(
        "{} simulations, {} connections, {} of them to their end, {} offloaded, {} of \
         these by auto and {} overrun, {} bytes, {} of {} frames echoed by the kernel, {} steps in {seconds:.1} s",
        seed.wrapping_sub(first),
        sum.accepted,
        sum.fulfilled,
        sum.offloaded,
        sum.chosen,
        sum.overrun,
        sum.bytes_in,
        sum.frames_echoed,
        sum.frames,
        sum.steps
    );
}
