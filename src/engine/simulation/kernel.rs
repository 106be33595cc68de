//! The simulated kernel: descriptors, buffers, operations and completions as plain data, advanced one step
//! at a time. A seed chooses each step among all that could come next.
//!
//! What the kernel has done and what the pump knows of it are kept apart: an operation is in flight until
//! its last completion is handed over, however long ago it ended. [`operations`] is what the kernel does
//! with a submission, [`listener`] how connections come in, [`ring`] the pump's side, and [`offload`] what
//! else happens to offloaded sockets.

mod listener;
mod offload;
mod operations;
mod ring;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use self::listener::Listener;
use super::buffers::{Buffers, Place};
use super::link::Link;
use super::offloaded_socket::Program;
use super::peer::{Act, Peer};
use super::scenario::Scenario;
use crate::engine::pump::{DRAIN_MAX, SECOND_LOOK_MAX};
use crate::engine::ring::{Completion, Lease, Patience, Reply, Sent};
use crate::offload::record::Record;
use crate::slab::ConnectionId;
use testkit::Random;

/// Steps after which a simulation has failed to end.
const STEPS_MAX: u64 = 20_000_000;
/// The pump has to stop after this time at the latest; it is longer than all other deadlines.
const TIME_MAX: Duration = Duration::from_secs(300);

/// Where an operation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flight {
    /// There is none, or the pump knows that it is over.
    Not,
    /// Pushed but not submitted.
    Queued,
    Armed,
    /// Over, which the pump does not know yet.
    Over,
}

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

/// What can happen next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Under `sqpoll`: the kernel's thread takes the next submission.
    Submit,
    Connect,
    Accept(usize),
    Stop,
    Receive(usize),
    Send(usize),
    Close(usize),
    Peer(usize, Act),
    /// The program moves on, or the worker that sends what it has echoed.
    Run(usize),
    Work(usize),
    Notice,
    HangUp(usize),
}

/// A connection's descriptor, and the operations on it.
#[derive(Debug)]
struct Connection {
    link: Link,
    fd: Option<i32>,
    id: Option<ConnectionId>,
    receive: Flight,
    /// The receive ends with what it brings next.
    is_pausing: bool,
    /// It is over with the first thing that it brings, and does not wait.
    is_single: bool,
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
    watch: Flight,
    close: Flight,
    /// Its place among the offloaded.
    place: Option<usize>,
}

impl Connection {
    fn new(peer: Peer) -> Connection {
        Connection {
            link: Link::new(peer),
            fd: None,
            id: None,
            receive: Flight::Not,
            is_pausing: false,
            is_single: false,
            is_deaf: false,
            is_half_received: false,
            send: Flight::Not,
            reply: None,
            done: 0,
            spent: None,
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
}

/// The simulated kernel.
#[derive(Debug)]
pub(super) struct Kernel {
    scenario: Scenario,
    random: Random,
    now: Duration,
    stops_by: Duration,
    connections: Vec<Connection>,
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
    /// Accepted connections that the pump knows of and has not decided on, and those that it decided on
    /// in this cycle.
    unadmitted: usize,
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
            .map(|_| Connection::new(Peer::new(&mut random, &scenario)))
            .collect();
        let listeners = 1 + random.below(3);
        let now = Duration::from_secs(random.below(1000) as u64);
        let program = Program::new(&scenario, &mut random);
        let records = program.records.clone();
        Kernel {
            program: Rc::new(RefCell::new(program)),
            records,
            connections,
            active: Vec::new(),
            connected: 0,
            descriptors: vec![None; scenario.descriptors],
            slots: Vec::new(),
            buffers: Buffers::new(scenario.buffers, scenario.capacity),
            listeners: (0..listeners).map(|_| Listener::new()).collect(),
            submissions: VecDeque::new(),
            quick: Vec::new(),
            completed: VecDeque::new(),
            stop: Flight::Not,
            stopped: None,
            unadmitted: 0,
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
        self.slots.iter().flatten().count()
    }

    /// Bytes of heap memory in replies that are being sent.
    pub(super) fn reply_bytes(&self) -> usize {
        let connections = self.active.iter().map(|&number| &self.connections[number]);
        let replies = connections.filter_map(|connection| connection.reply.as_ref());
        replies.map(|(reply, _)| if let Reply::Heap(bytes) = reply { bytes.len() } else { 0 }).sum()
    }

    /// Checks what must hold when the pump is over.
    pub(super) fn check_end(&self) {
        let buffers = &self.buffers;
        assert_eq!(buffers.count(Place::Ready), buffers.len(), "buffers are lost");
        assert_eq!(self.totals.accepted, self.totals.closed, "sockets are left open");
        assert!(self.listeners.iter().all(|listener| !listener.is_open), "a listener is open");
        assert!(self.completed.is_empty() && self.active.is_empty(), "operations are left");
        let sent: usize = self.connections.iter().map(|connection| connection.link.sent()).sum();
        assert_eq!(sent as u64, self.totals.bytes_out + self.totals.bytes_echoed);
        let stopped = self.stopped.expect("the pump had to stop");
        let slack = Duration::from_millis(100);
        let is_late = self.now > stopped + DRAIN_MAX + slack;
        assert!(!is_late || self.scenario.stall_max > Duration::ZERO, "stopping took too long");
    }

    fn trace(&self, event: &dyn fmt::Debug) {
        if self.is_traced {
            println!("{:?} {event:?}", self.now);
        }
    }

    /// Takes one possible step; returns false if there is none.
    fn step(&mut self) -> bool {
        self.totals.steps += 1;
        self.now += Duration::from_micros(1);
        assert!(self.totals.steps < STEPS_MAX, "the simulation does not end");
        if self.scenario.stall_max > Duration::ZERO && self.random.one_in(2000) {
            let most = self.scenario.stall_max.as_millis() as usize;
            self.now += Duration::from_millis(self.random.below(most) as u64);
        }
        self.is_still |= self.stopped.is_none() && self.random.one_in(300);
        self.catch_up();
        let mut steps = std::mem::take(&mut self.steps);
        self.find_steps(&mut steps);
        let step = (!steps.is_empty()).then(|| steps[self.random.below(steps.len())]);
        self.steps = steps;
        if let Some(step) = step {
            self.trace(&step);
            self.take(step);
        }
        step.is_some()
    }

    /// Finds the possible steps: those of no connection, and those of the first connection that can
    /// move, searching from a random one.
    fn find_steps(&mut self, steps: &mut Vec<Step>) {
        steps.clear();
        let count = self.active.len();
        if !self.submissions.is_empty() && self.scenario.is_sqpoll {
            steps.push(Step::Submit);
        }
        if !self.is_still && self.can_connect() {
            steps.push(Step::Connect);
        }
        if !self.program.borrow().notices.is_empty() {
            steps.push(Step::Notice);
        }
        steps.extend(
            (0..self.listeners.len()).filter(|&number| self.can_accept(number)).map(Step::Accept),
        );
        let is_time = self.totals.steps >= self.scenario.stop_after || self.now >= self.stops_by;
        if self.stop == Flight::Armed && is_time {
            steps.push(Step::Stop);
        }
        if !steps.is_empty() && self.random.one_in(3) {
            return;
        }
        let around = steps.len();
        let first = self.random.below(count);
        for at in (first..count).chain(0..first) {
            self.find_steps_of(self.active[at], steps);
            if steps.len() > around {
                return;
            }
        }
    }

    fn find_steps_of(&mut self, number: usize, steps: &mut Vec<Step>) {
        let connection = &self.connections[number];
        let link = &connection.link;
        let has_news = match connection.place {
            None => link.receivable() > 0 || link.is_over(),
            Some(place) => {
                self.find_steps_of_offloaded(number, place, steps);
                self.has_news(link, place)
            }
        };
        if connection.receive == Flight::Armed && has_news && !connection.is_deaf {
            steps.push(Step::Receive(number));
        }
        if connection.watch == Flight::Armed && link.is_over() {
            steps.push(Step::HangUp(number));
        }
        if connection.send == Flight::Armed && (link.room() > 0 || link.is_failed()) {
            steps.push(Step::Send(number));
        }
        if connection.close == Flight::Armed {
            steps.push(Step::Close(number));
        }
        if link.wakes_at() <= self.now && !self.is_still {
            link.acts(self.scenario.window, &mut self.acts);
            steps.extend(self.acts.iter().map(|&act| Step::Peer(number, act)));
        }
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Submit => {
                let submission = self.submissions.pop_front().expect("there is one");
                self.execute(submission);
            }
            Step::Connect => {
                self.connect_one();
                // Now and then, all connect together.
                let is_flood = self.random.one_in(20);
                while is_flood && self.can_connect() {
                    self.connect_one();
                }
            }
            Step::Accept(listener) => {
                self.accept_one(listener);
                let is_flood = self.random.one_in(4);
                while is_flood && self.can_accept(listener) {
                    self.accept_one(listener);
                }
            }
            Step::Stop => {
                self.stop = Flight::Over;
                self.completed.push_back(Completion::StopRequested);
            }
            Step::Receive(number) => self.receive_some(number),
            Step::Send(number) => self.send_some(number),
            Step::Close(number) => {
                let connection = &mut self.connections[number];
                connection.close = Flight::Over;
                connection.link.close();
                let fd = connection.fd.take().expect("it was open");
                let id = connection.id();
                self.descriptors[fd as usize] = None;
                if let Some(place) = connection.place.take() {
                    self.program.borrow_mut().free(place);
                }
                self.completed.push_back(Completion::Closed { id });
            }
            Step::Peer(number, act) => {
                let connection = &mut self.connections[number];
                connection.link.act(act, self.scenario.window, &mut self.random, self.now);
                if let Some(place) = connection.place {
                    self.forward(number, place);
                }
            }
            Step::Run(number) => {
                let place = self.connections[number].place.expect("it is offloaded");
                self.program.borrow_mut().step(place);
                self.catch_up();
            }
            Step::Work(number) => self.work(number),
            Step::Notice => self.notice(),
            Step::HangUp(number) => self.hang_up(number),
        }
    }

    /// Waits until something completes or `until` comes. As in the kernel, a quick send that went
    /// out whole wakes nobody.
    fn wait(&mut self, until: Option<Duration>) {
        if self.random.one_in(200) {
            return;
        }
        let is_whole = |completion: &Completion| {
            matches!(completion, Completion::Sent { sent: Sent::Whole, .. })
        };
        while self.completed.is_empty() && self.quick.iter().all(is_whole) {
            if until.is_some_and(|until| self.now >= until) {
                return;
            }
            if self.step() {
                continue;
            }
            let wakings =
                self.active.iter().map(|&number| self.connections[number].link.wakes_at());
            let waking = wakings.filter(|&at| at > self.now).min();
            let next = waking.into_iter().chain(until).min();
            if self.stopped.is_none() {
                self.check_rest(next.is_none() && !self.is_still, until);
            }
            if std::mem::take(&mut self.is_still) {
                continue;
            }
            match next {
                Some(next) => self.now = next,
                None if self.stop == Flight::Armed => self.scenario.stop_after = 0,
                None => panic!("deadlock: the pump waits for what can never come"),
            }
        }
        for _ in 0..self.random.below(self.scenario.batch) {
            self.step();
        }
        // The worker wakes so late that a deadline comes together with completions.
        if let Some(until) = until
            && self.scenario.stall_max > Duration::ZERO
            && self.random.one_in(50)
        {
            self.now = self.now.max(until);
        }
    }

    /// What must hold when nothing can happen before a peer moves or a deadline comes; or, at the
    /// end, nothing at all but a stop.
    fn check_rest(&self, is_final: bool, until: Option<Duration>) {
        for &number in &self.active {
            let connection = &self.connections[number];
            let &Connection { ref link, place, send, .. } = connection;
            if link.is_waiting_for_accept() && until.is_some() {
                continue;
            }
            // The pump is about to look again.
            if place.is_some() && until.is_some_and(|until| until <= self.now + SECOND_LOOK_MAX) {
                continue;
            }
            assert!(link.is_open(), "connection {number} is not served: {connection}");
            // The pump goes by its deadline then.
            if connection.is_deaf && link.is_shut() && until.is_some() {
                continue;
            }
            assert!(!link.is_lost(), "a broken {number} is open: {connection}");
            let is_echoing = place.is_some_and(|place| self.is_echoing(place));
            if (send == Flight::Armed || is_echoing) && link.room() == 0 {
                let may_wait = !is_final || link.may_stall();
                assert!(may_wait, "connection {number} can never go on: {connection}");
                continue;
            }
            assert!(
                link.is_idle() && (!link.is_ending() || link.is_shut() && !is_final),
                "connection {number} waits in vain: {connection}"
            );
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
