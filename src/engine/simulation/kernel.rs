//! The simulated kernel: descriptors, buffers, operations and completions as plain data, advanced one step
//! at a time. A seed chooses each step among all that could come next.
//!
//! What the kernel has done and what the pump knows of it are kept apart: an operation is in flight until
//! its last completion is handed over, however long ago it ended. This file holds the state. [`steps`]
//! chooses and takes the next step, [`operations`] executes submissions, [`listener`] lets connections in,
//! [`ring`] takes the pump's calls, [`reports`] hands it completions, [`offload`] is what else happens to
//! offloaded sockets, and [`checks`] what must hold at rest and at the end.

mod checks;
mod connections;
mod listener;
mod offload;
mod operations;
mod reports;
mod ring;
mod steps;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use self::connections::Connections;
use self::listener::Listener;
use self::steps::Step;
use super::buffers::Buffers;
use super::link::Link;
use super::offloaded_socket::Program;
use super::peer::{Act, Peer};
use super::scenario::{LISTENERS_MAX, Scenario};
use crate::engine::ring::{Completion, Lease, Patience, Reply};
use crate::offload::record::Record;
use crate::slab::ConnectionId;
use testkit::Random;

/// The pump has to stop after this time at the latest; it is longer than all other deadlines.
const TIME_MAX: Duration = Duration::from_secs(300);

/// Where an operation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flight {
    /// There is none, or the pump knows that it is over.
    Not,
    /// Pushed but not submitted.
    Queued,
    /// Submitted and not over.
    Armed,
    /// Over, which the pump does not know yet.
    Over,
}

/// An operation that the pump has pushed: what to do, on the connection or listener with this number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Submission {
    Accept(usize),
    CancelAccept(usize),
    Receive(usize),
    ReceiveOnce(usize),
    PauseReceive(usize),
    CancelReceive(usize),
    Send(usize),
    CancelSend(usize),
    Watch(usize),
    CancelWatch(usize),
    Verify(usize),
    Close(usize),
}

/// A connection's descriptor, and the operations on it.
#[derive(Debug)]
struct Connection {
    link: Link,
    fd: Option<i32>,
    /// The pump serves or refuses it, and with its first operation tells its id.
    is_admitted: bool,
    id: Option<ConnectionId>,
    receive: Flight,
    /// The receive ends with what it brings next.
    is_pausing: bool,
    /// It is over with the first thing that it brings, and does not wait.
    is_single: bool,
    /// If it is not 0, it waits, and is over with the first bytes that it brings, at most these.
    piece: usize,
    /// It is not woken for the reset that it has passed over.
    is_deaf: bool,
    /// The last receive may have left a part of what was there.
    is_half_received: bool,
    send: Flight,
    reply: Option<(Reply, Patience)>,
    /// Bytes of the reply that are sent.
    done: usize,
    /// The buffer of a reply that is sent; it is ready again once the pump gets the completion.
    spent: Option<Lease>,
    /// Bytes of a ping in the reply that are not sent.
    ping_left: usize,
    watch: Flight,
    close: Flight,
    /// Its place among the offloaded.
    place: Option<usize>,
}

impl Connection {
    fn new(peer: Peer, scenario: &Scenario) -> Connection {
        Connection {
            link: Link::new(peer, scenario.timeouts, scenario.memory_max < usize::MAX),
            fd: None,
            is_admitted: false,
            id: None,
            receive: Flight::Not,
            is_pausing: false,
            is_single: false,
            piece: 0,
            is_deaf: false,
            is_half_received: false,
            send: Flight::Not,
            reply: None,
            done: 0,
            spent: None,
            ping_left: 0,
            watch: Flight::Not,
            close: Flight::Not,
            place: None,
        }
    }

    /// The id that its operations complete with.
    fn id(&self) -> ConnectionId {
        self.id.expect("it has a slot")
    }
}

impl fmt::Display for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Connection { link, id, receive, send, .. } = self;
        write!(f, "{id:?} receive {receive:?} send {send:?}; {link}")
    }
}

/// What the simulated sockets moved, to compare with the counters.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) accepted: u64,
    pub(super) closed: u64,
    pub(super) bytes_in: u64,
    pub(super) bytes_out: u64,
    /// Connections that got all that was owed to them.
    pub(super) fulfilled: u64,
    /// Completions handed over to the pump.
    pub(super) completions: u64,
    pub(super) steps: u64,
    /// Whole frames of offloaded connections that left their sockets, and how many of them the program has echoed.
    pub(super) frames: u64,
    pub(super) frames_echoed: u64,
    /// Bytes that the kernel has sent by itself.
    pub(super) bytes_echoed: u64,
    pub(super) offloaded: u64,
    /// Those of them that `auto` has chosen.
    pub(super) chosen: u64,
    /// Connections of which the program has dropped something.
    pub(super) overrun: u64,
    /// Pings that the server sent of its own accord.
    pub(super) pings: u64,
    /// Connections with a layer.
    pub(super) layered: u64,
}

/// The simulated kernel.
#[derive(Debug)]
pub(super) struct Kernel {
    scenario: Scenario,
    random: Random,
    now: Duration,
    stops_by: Duration,
    connections: Connections,
    /// Connections that are connected and not gone.
    active: Vec<usize>,
    connected: usize,
    /// The connection of each descriptor; the lowest free one is the next.
    descriptors: Vec<Option<usize>>,
    slots: Vec<Option<usize>>,
    buffers: Buffers,
    listeners: Vec<Listener>,
    submissions: VecDeque<Submission>,
    /// Quick sends, reported when the kernel is entered next.
    quick: Vec<Completion>,
    completed: VecDeque<Completion>,
    stop: Flight,
    stopped: Option<Duration>,
    /// Accepted connections that the pump knows of and has not decided on, in that order, and how many it
    /// decided on in this cycle.
    unadmitted: VecDeque<usize>,
    admissions: usize,
    /// Connections within the limit, and over it.
    admitted: usize,
    refused: usize,
    pub(super) totals: Totals,
    program: Rc<RefCell<Program>>,
    records: Vec<Rc<Record>>,
    steps: Vec<Step>,
    acts: Vec<Act>,
    /// The peers hold still until the pump has come to rest.
    is_still: bool,
    is_traced: bool,
}

impl Kernel {
    pub(super) fn new(scenario: Scenario, mut random: Random) -> Kernel {
        let connections = (0..scenario.connections)
            .map(|_| Connection::new(Peer::new(&mut random, &scenario), &scenario))
            .collect();
        let listeners = 1 + random.below(LISTENERS_MAX);
        let now = Duration::from_secs(random.below(1000) as u64);
        let program = Program::new(&scenario, &mut random);
        let records = program.records.clone();
        Kernel {
            program: Rc::new(RefCell::new(program)),
            records,
            connections: Connections::new(connections),
            active: Vec::new(),
            connected: 0,
            descriptors: vec![None; scenario.descriptors],
            slots: Vec::new(),
            buffers: Buffers::new(scenario.buffers, scenario.capacity, scenario.is_incremental),
            listeners: (0..listeners).map(|_| Listener::new()).collect(),
            submissions: VecDeque::new(),
            quick: Vec::new(),
            completed: VecDeque::new(),
            stop: Flight::Not,
            stopped: None,
            unadmitted: VecDeque::new(),
            admissions: 0,
            admitted: 0,
            refused: 0,
            totals: Totals::default(),
            steps: Vec::new(),
            acts: Vec::new(),
            is_still: false,
            is_traced: std::env::var_os("RINGECHO_SIMULATION_TRACE").is_some(),
            now,
            stops_by: now + TIME_MAX,
            scenario,
            random,
        }
    }

    /// The program, which runs while the pump does.
    pub(super) fn program(&self) -> Rc<RefCell<Program>> {
        Rc::clone(&self.program)
    }

    pub(super) fn buffers(&self) -> &Buffers {
        &self.buffers
    }

    /// Connections that the pump must have a slot for.
    pub(super) fn slots_taken(&self) -> usize {
        let waits = |number: &&usize| {
            let Connection { is_admitted, id, .. } = self.connections[**number];
            is_admitted && id.is_none()
        };
        self.slots.iter().flatten().count() + self.active.iter().filter(waits).count()
    }

    /// The pump has this many connections, some of them without an operation while memory is short.
    pub(super) fn expect_connections(&mut self, count: usize) {
        while self.scenario.memory_max < usize::MAX && self.slots_taken() < count {
            let &number = self.unadmitted.front().expect("one was accepted");
            self.admit(number);
        }
        assert_eq!(count, self.slots_taken(), "slots of connections that are gone");
    }

    /// Bytes of heap memory in replies that are being sent.
    pub(super) fn reply_bytes(&self) -> usize {
        let connections = self.active.iter().map(|&number| &self.connections[number]);
        let replies = connections.filter_map(|connection| connection.reply.as_ref());
        replies.map(|(reply, _)| if let Reply::Heap(bytes) = reply { bytes.len() } else { 0 }).sum()
    }

    fn trace(&self, event: &dyn fmt::Debug) {
        if self.is_traced {
            println!("{:?} {event:?}", self.now);
        }
    }

    fn retire(&mut self, number: usize) {
        let link = &mut self.connections[number].link;
        link.retire();
        self.totals.frames += link.frames_taken() as u64;
        self.active.retain(|&other| other != number);
        self.totals.closed += 1;
    }
}
