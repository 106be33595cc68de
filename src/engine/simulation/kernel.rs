//! The simulated kernel: descriptors, buffers, operations and completions as plain data, moved along
//! one step at a time, each chosen from a seed among all that could come next.
//!
//! Each rule of [`Ring`] is checked where the pump calls it. What the pump has been told and what
//! the kernel has done are kept apart: an operation is in flight until its last completion was
//! handed over, however long ago it ended.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use bytes::Buf;
use rustix::io::Errno;

use super::buffers::{Buffers, Place};
use super::link::Link;
use super::peer::{Act, Peer};
use super::psock::{Parcel, Program};
use super::{Random, Scenario};
use crate::engine::pump::{DRAIN_MAX, REFUSED_MAX, SECOND_LOOK_MAX};
use crate::engine::ring::{
    Blocking, Completion, Further, Lease, Patience, Received, Reply, Ring, Sent, Socket, Wait,
};
use crate::offload;
use crate::offload::record::Record;
use crate::slab::Key;

/// Steps after which a simulation has failed to end.
const STEPS_MAX: u64 = 20_000_000;
/// When the pump is told to stop at the latest: longer than any deadline but that.
const TIME_MAX: Duration = Duration::from_secs(300);

/// Where an operation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flight {
    /// Nowhere: there is none, or the pump knows that it is over.
    Not,
    /// Pushed and not submitted.
    Queued,
    Armed,
    /// Over, and the pump does not know it.
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
    key: Option<Key>,
    /// The pump has to close it at once.
    is_unwanted: bool,
    receive: Flight,
    /// The receive ends with what it brings next.
    is_pausing: bool,
    /// It is over with the first thing that it brings, and does not wait.
    is_single: bool,
    /// The last receive may have left a part of what was there.
    is_half_received: bool,
    send: Flight,
    reply: Option<(Reply, Patience)>,
    /// Octets of the reply that are sent.
    done: usize,
    /// The buffer of a reply that is over; it is ready again when the pump is told so.
    spent: Option<Lease>,
    watch: Flight,
    close: Flight,
    /// Its place among the enlisted.
    place: Option<usize>,
}

impl Connection {
    fn new(peer: Peer) -> Connection {
        Connection {
            link: Link::new(peer),
            fd: None,
            key: None,
            is_unwanted: false,
            receive: Flight::Not,
            is_pausing: false,
            is_single: false,
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

    /// The key that its operations complete with.
    fn key(&self) -> Key {
        self.key.expect("it has a slot")
    }

    /// Ends the send, which has failed if it has sent nothing.
    fn end_send(&mut self, failure: Option<Errno>) -> Completion {
        self.send = Flight::Over;
        let (mut reply, _) = self.reply.take().expect("it is being sent");
        let octets = std::mem::take(&mut self.done);
        let key = self.key();
        let failure = failure.filter(|_| octets == 0);
        if octets == reply.len() || failure.is_some() {
            if let Reply::Pinned { lease, .. } = reply {
                self.spent = Some(lease);
            }
            let sent = failure.map_or(Sent::Whole, Sent::Failed);
            return Completion::Sent { key, sent, octets: octets as u32 };
        }
        match &mut reply {
            Reply::Pinned { octets: range, .. } => range.start += octets as u32,
            Reply::Heap(bytes) => bytes.advance(octets),
        }
        Completion::Sent { key, sent: Sent::Cut(reply), octets: octets as u32 }
    }
}

impl fmt::Display for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Connection { link, key, receive, send, .. } = self;
        write!(f, "{key:?} receive {receive:?} send {send:?}; {link}")
    }
}

#[derive(Debug)]
struct Listener {
    accept: Flight,
    is_open: bool,
    backlog: VecDeque<usize>,
}

/// What the simulated sockets moved, to compare with the counters.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) accepted: u64,
    pub(super) closed: u64,
    pub(super) octets_in: u64,
    pub(super) octets_out: u64,
    /// Connections that got all that was owed to them.
    pub(super) fulfilled: u64,
    pub(super) steps: u64,
    /// Whole frames of enlisted connections that left their sockets, and how many of them the program has echoed.
    pub(super) frames: u64,
    pub(super) frames_echoed: u64,
    /// Octets that the kernel has sent by itself.
    pub(super) octets_echoed: u64,
    pub(super) enlisted: u64,
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
    /// Quick sends that the next [`Ring::enter`] reports.
    quick: Vec<Completion>,
    completed: VecDeque<Completion>,
    stop: Flight,
    stopped: Option<Duration>,
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
            listeners: (0..listeners)
                .map(|_| Listener { accept: Flight::Not, is_open: true, backlog: VecDeque::new() })
                .collect(),
            submissions: VecDeque::new(),
            quick: Vec::new(),
            completed: VecDeque::new(),
            stop: Flight::Not,
            stopped: None,
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

    /// Octets of heap memory in replies that are being sent.
    pub(super) fn reply_octets(&self) -> usize {
        let connections = self.active.iter().map(|&number| &self.connections[number]);
        let replies = connections.filter_map(|connection| connection.reply.as_ref());
        replies.map(|(reply, _)| if let Reply::Heap(bytes) = reply { bytes.len() } else { 0 }).sum()
    }

    /// What must hold when the pump is over.
    pub(super) fn check_end(&self) {
        let buffers = &self.buffers;
        assert_eq!(buffers.count(Place::Ready), buffers.len(), "buffers are lost");
        assert_eq!(self.totals.accepted, self.totals.closed, "sockets are left open");
        assert!(self.listeners.iter().all(|listener| !listener.is_open), "a listener is open");
        assert!(self.completed.is_empty() && self.active.is_empty(), "operations are left");
        let sent: usize = self.connections.iter().map(|connection| connection.link.sent()).sum();
        assert_eq!(sent as u64, self.totals.octets_out + self.totals.octets_echoed);
        let stopped = self.stopped.expect("the pump was told to stop");
        let slack = Duration::from_millis(100);
        let is_late = self.now > stopped + DRAIN_MAX + slack;
        assert!(!is_late || self.scenario.stall_max > Duration::ZERO, "stopping took too long");
    }

    fn trace(&self, event: &dyn fmt::Debug) {
        if self.is_traced {
            println!("{:?} {event:?}", self.now);
        }
    }

    /// Lets one thing happen; false if nothing can.
    fn step(&mut self) -> bool {
        self.totals.steps += 1;
        self.now += Duration::from_micros(1);
        assert!(self.totals.steps < STEPS_MAX, "there is no end to it");
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

    /// Finds what can happen: around the connections, or to the first one that can move, from a
    /// random one on.
    fn find_steps(&mut self, steps: &mut Vec<Step>) {
        steps.clear();
        let count = self.active.len();
        if !self.submissions.is_empty() && self.scenario.is_sqpoll {
            steps.push(Step::Submit);
        }
        if !self.is_still
            && count < self.scenario.concurrency
            && self.connected < self.connections.len()
            && self.listeners.iter().any(|listener| listener.is_open)
        {
            steps.push(Step::Connect);
        }
        if !self.program.borrow().notices.is_empty() {
            steps.push(Step::Notice);
        }
        for (listener, number) in self.listeners.iter().zip(0..) {
            if listener.accept == Flight::Armed && !listener.backlog.is_empty() {
                steps.push(Step::Accept(number));
            }
        }
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
                let program = self.program.borrow();
                let psock = program.psock(place);
                if psock.can_run() {
                    steps.push(Step::Run(number));
                }
                let is_possible = match psock.peek() {
                    Some(Parcel::Echo(_)) => link.room() > 0 || link.is_failed(),
                    Some(Parcel::Passed(_)) => true,
                    None => false,
                };
                if is_possible {
                    steps.push(Step::Work(number));
                }
                psock.receivable() > 0
                    || psock.is_stale()
                    || link.is_failed()
                    || link.has_peer_ended() && psock.has_seen_all()
            }
        };
        if connection.receive == Flight::Armed && has_news {
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
                let number = self.connected;
                self.connected += 1;
                self.active.push(number);
                self.connections[number].link.connect();
                let open: Vec<usize> = (0..self.listeners.len())
                    .filter(|&listener| self.listeners[listener].is_open)
                    .collect();
                let listener = self.random.pick(&open);
                self.listeners[listener].backlog.push_back(number);
            }
            Step::Accept(listener) => self.accept_one(listener),
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
                let key = connection.key();
                self.descriptors[fd as usize] = None;
                if let Some(place) = connection.place.take() {
                    self.program.borrow_mut().free(place);
                }
                self.completed.push_back(Completion::Closed { key });
            }
            Step::Peer(number, act) => {
                let Connection { link, place, .. } = &mut self.connections[number];
                link.act(act, self.scenario.window, &mut self.random, self.now);
                if let Some(place) = *place {
                    let mut program = self.program.borrow_mut();
                    let psock = program.psock_mut(place);
                    psock.write(link.arrive());
                    psock.acknowledged = link.acknowledged();
                    if link.has_peer_ended() {
                        psock.poke();
                    }
                }
            }
            Step::Run(number) => {
                let place = self.connections[number].place.expect("it is enlisted");
                self.program.borrow_mut().step(place);
                self.catch_up();
            }
            Step::Work(number) => self.work(number),
            Step::Notice => {
                let place = self.program.borrow_mut().notices.pop_front().expect("there is one");
                self.records[place].take_notice();
                let mut connections = self.connections.iter();
                let tenant = connections.find(|connection| connection.place == Some(place));
                if let Some(key) = tenant.and_then(|connection| connection.key) {
                    self.completed.push_back(Completion::Passed { key });
                }
            }
            Step::HangUp(number) => self.hang_up(number),
        }
    }

    /// Takes over what the program has done.
    fn catch_up(&mut self) {
        let mut program = self.program.borrow_mut();
        for &number in &self.active {
            let connection = &mut self.connections[number];
            let Some(place) = connection.place else { continue };
            let psock = program.psock_mut(place);
            let eaten = std::mem::take(&mut psock.eaten);
            connection.link.receive(eaten);
            connection.link.report(eaten);
            connection.link.go_on();
            self.totals.frames_echoed += std::mem::take(&mut psock.frames_eaten);
            assert!(
                connection.receive != Flight::Armed
                    || connection.is_single
                    || !self.records[place].is_open(),
                "a receive waits while the gate is open: {connection}"
            );
        }
    }

    /// The kernel's worker moves the head of the queue.
    fn work(&mut self, number: usize) {
        let place = self.connections[number].place.expect("it is enlisted");
        let shared = Rc::clone(&self.program);
        let mut program = shared.borrow_mut();
        let psock = program.psock_mut(place);
        let Some(Parcel::Echo(echo)) = psock.head() else { return psock.pop() };
        if self.fails(number) {
            return psock.die();
        }
        let mut octets = echo.len().min(self.connections[number].link.room());
        if self.random.one_in(self.scenario.cut) {
            octets = 1 + self.random.below(octets);
        }
        let octets: Vec<u8> = echo.drain(..octets).collect();
        if echo.is_empty() {
            psock.pop();
        }
        drop(program);
        self.totals.octets_echoed += octets.len() as u64;
        self.put(number, &octets);
    }

    fn hang_up(&mut self, number: usize) {
        let connection = &mut self.connections[number];
        connection.watch = Flight::Over;
        let key = connection.key();
        self.completed.push_back(Completion::HungUp { key });
    }

    fn accept_one(&mut self, listener: usize) {
        let free = self.descriptors.iter().position(Option::is_none);
        let is_over = self.random.one_in(self.scenario.over);
        let mut problem = free.is_none().then_some(Errno::MFILE);
        if self.random.one_in(self.scenario.over) {
            problem = Some(self.random.pick(&[
                Errno::MFILE,
                Errno::NFILE,
                Errno::CONNABORTED,
                Errno::NOBUFS,
                Errno::CANCELED,
            ]));
        }
        let result = match problem {
            Some(errno) => Err(errno),
            None => {
                let fd = free.expect("else there is a problem");
                let number = self.listeners[listener].backlog.pop_front().expect("one waits");
                self.descriptors[fd] = Some(number);
                self.connections[number].fd = Some(fd as i32);
                self.connections[number].link.open();
                Ok(Socket(fd as i32))
            }
        };
        let further = if is_over || result.is_err() { Further::Over } else { Further::More };
        if further == Further::Over {
            self.listeners[listener].accept = Flight::Over;
        }
        let listener = listener as u32;
        self.completed.push_back(Completion::Accepted { listener, result, further });
    }

    fn post_received(&mut self, number: usize, received: Received, further: Further) {
        let connection = &mut self.connections[number];
        if further == Further::Over {
            connection.receive = Flight::Over;
        }
        let key = connection.key();
        self.completed.push_back(Completion::Received { key, received, further });
    }

    fn receive_some(&mut self, number: usize) {
        let &Connection { ref link, is_pausing, is_single, place, .. } = &self.connections[number];
        let is_reset = link.is_failed();
        let mut available = link.receivable();
        let mut has_ended = link.has_peer_ended();
        if let Some(place) = place {
            let mut program = self.program.borrow_mut();
            let psock = program.psock_mut(place);
            psock.poke();
            available = psock.receivable();
            has_ended &= psock.has_seen_all();
        }
        // The kernel takes a buffer before it looks at the socket. A ring without flags for buffers
        // makes one whenever none is ready.
        if !self.buffers.is_one_ready() && self.scenario.is_patient {
            self.buffers.add();
        }
        if !self.buffers.is_one_ready() {
            return self.post_received(number, Received::NoBuffer, Further::Over);
        }
        if self.random.one_in(4 * self.scenario.over) {
            let received = Received::Failed(Errno::CANCELED);
            return self.post_received(number, received, Further::Over);
        }
        if is_reset && (available == 0 || self.random.one_in(2)) {
            let received = Received::Failed(Errno::CONNRESET);
            return self.post_received(number, received, Further::Over);
        }
        if available == 0 && has_ended {
            return self.post_received(number, Received::End, Further::Over);
        }
        if available == 0 {
            // A receive that waits was woken too early, and waits on.
            if is_single {
                let received = Received::Failed(Errno::AGAIN);
                self.post_received(number, received, Further::Over);
            }
            return;
        }
        let mut octets = available.min(self.scenario.capacity);
        if self.random.one_in(self.scenario.cut) {
            octets = 1 + self.random.below(octets);
        }
        let is_over = self.random.one_in(self.scenario.over) || is_pausing || is_single;
        let further = if is_over { Further::Over } else { Further::More };
        let received = self.fill(number, octets);
        self.post_received(number, received, further);
    }

    /// Moves octets from the socket to a buffer.
    fn fill(&mut self, number: usize, octets: usize) -> Received {
        let connection = &mut self.connections[number];
        let taken = connection.link.receive(octets);
        let filled = match connection.place {
            None => self.buffers.fill(taken),
            // What the program has echoed does not count, and the link may not know of it.
            Some(place) => {
                let mut program = self.program.borrow_mut();
                self.buffers.fill(&program.psock_mut(place).receive(octets))
            }
        };
        connection.is_half_received = octets == self.scenario.capacity;
        Received::Data { lease: filled.expect("one is ready"), octets: octets as u32 }
    }

    /// Moves octets of the reply to the socket, at most so many.
    fn transmit(&mut self, number: usize, most: usize) {
        let connection = &mut self.connections[number];
        let (reply, _) = connection.reply.as_ref().expect("it is being sent");
        let count = (reply.len() - connection.done).min(connection.link.room()).min(most);
        let all = match reply {
            Reply::Pinned { lease, octets } => {
                &self.buffers.bytes(lease)[octets.start as usize..octets.end as usize]
            }
            Reply::Heap(bytes) => &bytes[..],
        };
        let octets = all[connection.done..connection.done + count].to_vec();
        connection.done += count;
        self.put(number, &octets);
    }

    /// The socket takes these octets, for which it has room.
    fn put(&mut self, number: usize, octets: &[u8]) {
        self.catch_up();
        let connection = &mut self.connections[number];
        let outcome = connection.link.send(octets, self.now, &mut self.random);
        if let Err(wrong) = outcome {
            panic!("connection {number} got {wrong}: {connection}");
        }
        if let Some(place) = connection.place {
            self.program.borrow_mut().psock_mut(place).written = connection.link.sent();
        }
    }

    fn send_some(&mut self, number: usize) {
        if self.fails(number) {
            let failure = self.random.pick(&[Errno::PIPE, Errno::CONNRESET]);
            return self.end_send(number, Some(failure));
        }
        let most = if self.random.one_in(self.scenario.cut) {
            self.random.below(1000)
        } else {
            usize::MAX
        };
        self.transmit(number, most);
        self.end_send(number, None);
    }

    /// Whether the connection is broken; sometimes it breaks just now.
    fn fails(&mut self, number: usize) -> bool {
        let breaks = self.random.one_in(self.scenario.breaks);
        let link = &mut self.connections[number].link;
        if breaks {
            link.break_off();
        }
        link.is_failed()
    }

    fn end_send(&mut self, number: usize, failure: Option<Errno>) {
        let completion = self.connections[number].end_send(failure);
        self.completed.push_back(completion);
    }

    fn push(&mut self, submission: Submission) {
        self.submissions.push_back(submission);
        // A full queue is submitted at once.
        if self.random.one_in(100) && !self.scenario.is_sqpoll {
            self.submit();
        }
    }

    fn submit(&mut self) {
        while let Some(submission) = self.submissions.pop_front() {
            self.execute(submission);
        }
    }

    fn execute(&mut self, submission: Submission) {
        self.trace(&submission);
        match submission {
            Submission::Accept(listener) => self.listeners[listener].accept = Flight::Armed,
            Submission::CancelAccept(listener) => {
                if self.listeners[listener].accept == Flight::Armed {
                    self.listeners[listener].accept = Flight::Over;
                    self.completed.push_back(Completion::Accepted {
                        listener: listener as u32,
                        result: Err(Errno::CANCELED),
                        further: Further::Over,
                    });
                }
            }
            Submission::Receive(number) => {
                self.connections[number].receive = Flight::Armed;
                self.connections[number].is_pausing = false;
            }
            Submission::ReceiveOnce(number) => self.receive_some(number),
            // Between two reads there is nothing to wait for.
            Submission::PauseReceive(number) if self.random.one_in(4) => {
                self.execute(Submission::CancelReceive(number));
            }
            Submission::PauseReceive(number) => self.connections[number].is_pausing = true,
            Submission::CancelReceive(number) => {
                if self.connections[number].receive == Flight::Armed {
                    let received = Received::Failed(Errno::CANCELED);
                    self.post_received(number, received, Further::Over);
                }
            }
            Submission::Send(number) => self.start_send(number),
            Submission::CancelSend(number) => {
                if self.connections[number].send == Flight::Armed {
                    self.end_send(number, None);
                }
            }
            Submission::Watch(number) => self.connections[number].watch = Flight::Armed,
            Submission::CancelWatch(number) => {
                if self.connections[number].watch == Flight::Armed {
                    self.hang_up(number);
                }
            }
            Submission::Close(number) => self.connections[number].close = Flight::Armed,
        }
    }

    fn start_send(&mut self, number: usize) {
        let (reply, patience) = self.connections[number].reply.as_ref().expect("it is being sent");
        let length = reply.len();
        match patience {
            Patience::Unlimited => self.connections[number].send = Flight::Armed,
            Patience::None => {
                let failure = if self.fails(number) {
                    Some(self.random.pick(&[Errno::PIPE, Errno::CONNRESET]))
                } else {
                    let is_cut = self.random.one_in(self.scenario.cut);
                    let most = if is_cut { self.random.below(length) } else { length };
                    self.transmit(number, most);
                    None
                };
                let completion = self.connections[number].end_send(failure);
                if self.scenario.is_sqpoll {
                    self.completed.push_back(completion);
                } else {
                    self.quick.push(completion);
                }
            }
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
            assert!(!link.is_failed(), "a broken {number} is open: {connection}");
            let is_echoing = place.is_some_and(|place| {
                matches!(self.program.borrow().psock(place).peek(), Some(Parcel::Echo(_)))
            });
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

    /// Hands completions over: all quick sends, and of the others as many as the queue holds.
    fn report(&mut self, completions: &mut Vec<Completion>) {
        let begin = completions.len();
        completions.append(&mut self.quick);
        let most = self.scenario.queue - self.random.below(self.scenario.queue.min(2));
        let count = self.completed.len().min(most);
        completions.extend(self.completed.drain(..count));
        for completion in &completions[begin..] {
            self.trace(completion);
            self.hand_over(completion);
        }
    }

    fn hand_over(&mut self, completion: &Completion) {
        match completion {
            &Completion::Accepted { listener, ref result, further } => {
                if further == Further::Over {
                    self.listeners[listener as usize].accept = Flight::Not;
                }
                if let Ok(socket) = result {
                    self.hand_over_socket(socket.0);
                }
            }
            &Completion::Received { key, ref received, further } => {
                let Some(number) = self.find(key) else {
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
                    Received::Data { lease, octets } => {
                        self.buffers.pass(lease, Place::Completion, Place::Lease);
                        link.report(*octets as usize);
                        if place.is_some() {
                            link.go_on();
                        }
                        self.totals.octets_in += u64::from(*octets);
                    }
                    Received::End => link.report_end(),
                    Received::NoBuffer | Received::Failed(_) => {}
                }
                link.mark_ending(self.now);
            }
            Completion::Sent { key, sent, octets } => {
                let number = self.find(*key).expect("a send of a connection");
                let connection = &mut self.connections[number];
                connection.send = Flight::Not;
                self.totals.octets_out += u64::from(*octets);
                if *octets > 0 {
                    connection.link.mark_progress(self.now);
                }
                if let Some(lease) = connection.spent.take() {
                    self.buffers.recycle(lease, Place::Reply);
                }
                if let Sent::Cut(Reply::Pinned { lease, .. }) = sent {
                    self.buffers.pass(lease, Place::Reply, Place::Lease);
                }
            }
            &Completion::Passed { .. } => {}
            &Completion::HungUp { key } => {
                let number = self.find(key).expect("a watch of a connection");
                self.connections[number].watch = Flight::Not;
            }
            &Completion::Closed { key } => {
                let number = self.find(key).expect("a close of a connection");
                self.slots[key.slot as usize] = None;
                let is_refused = self.connections[number].link.is_refused();
                *(if is_refused { &mut self.refused } else { &mut self.admitted }) -= 1;
                self.retire(number);
                self.haunt(key);
            }
            Completion::StopRequested => {
                self.stopped = Some(self.now);
                for &number in &self.active {
                    self.connections[number].link.stop();
                }
            }
        }
    }

    fn hand_over_socket(&mut self, fd: i32) {
        self.totals.accepted += 1;
        let number = self.descriptors[fd as usize].expect("it is open");
        let connection = &mut self.connections[number];
        let is_refused = self.admitted >= self.scenario.limit;
        if self.stopped.is_some() || is_refused && self.refused == REFUSED_MAX {
            connection.is_unwanted = true;
        } else if is_refused {
            connection.link.refuse(self.now);
            self.refused += 1;
        } else {
            connection.link.admit(self.now);
            self.admitted += 1;
        }
    }

    /// A completion of an operation that is long over, for the slot's next tenant to ignore.
    fn haunt(&mut self, key: Key) {
        if self.stopped.is_none() && self.random.one_in(20) {
            let received = match self.buffers.take() {
                Some(lease) => Received::Data { lease, octets: 1 },
                None => Received::NoBuffer,
            };
            let further = Further::Over;
            self.completed.push_back(Completion::Received { key, received, further });
        }
    }

    fn retire(&mut self, number: usize) {
        let link = &mut self.connections[number].link;
        link.retire();
        self.totals.frames += link.frames_taken() as u64;
        self.active.retain(|&other| other != number);
        self.totals.closed += 1;
    }

    /// The connection that this key names now.
    fn find(&self, key: Key) -> Option<usize> {
        let number = self.slots.get(key.slot as usize).copied().flatten()?;
        (self.connections[number].key == Some(key)).then_some(number)
    }

    /// The connection of an operation that is cancelled.
    fn cancel(&mut self, key: Key) -> usize {
        let number = self.find(key).expect("a connection with a slot");
        self.connections[number].link.mark_cancelled(self.now, self.stopped);
        number
    }

    /// The connection of an operation, which must be open and the key's own.
    fn operate(&mut self, key: Key, socket: &Socket) -> usize {
        let number = self.descriptors.get(socket.0 as usize).copied().flatten();
        let number = number.unwrap_or_else(|| panic!("an operation on closed {socket:?}"));
        let slot = key.slot as usize;
        self.slots.resize(self.slots.len().max(slot + 1), None);
        let connection = &mut self.connections[number];
        if connection.key.is_none() {
            assert!(self.slots[slot].is_none(), "a slot for two connections: {key:?}");
            connection.key = Some(key);
            self.slots[slot] = Some(number);
        }
        assert!(!connection.is_unwanted, "it is served, and must not be: {connection}");
        assert_eq!(connection.key, Some(key), "an operation on another's {socket:?}");
        assert_eq!(connection.close, Flight::Not, "an operation while {socket:?} is closed");
        number
    }
}

impl Ring for Kernel {
    fn now(&self) -> Duration {
        self.now
    }

    fn listeners(&self) -> u32 {
        self.listeners.len() as u32
    }

    fn accept(&mut self, listener: u32) {
        let number = listener as usize;
        assert!(self.listeners[number].is_open, "an accept on a closed listener");
        assert_eq!(self.listeners[number].accept, Flight::Not, "a second accept in flight");
        self.listeners[number].accept = Flight::Queued;
        self.push(Submission::Accept(number));
    }

    fn cancel_accept(&mut self, listener: u32) {
        self.push(Submission::CancelAccept(listener as usize));
    }

    fn close_listener(&mut self, listener: u32) {
        let listener = &mut self.listeners[listener as usize];
        assert_eq!(listener.accept, Flight::Not, "a listener is closed while it accepts");
        assert!(std::mem::take(&mut listener.is_open), "a listener is closed twice");
        for number in std::mem::take(&mut listener.backlog) {
            self.connections[number].link.retire();
            self.active.retain(|&other| other != number);
        }
    }

    fn watch_stop(&mut self) {
        assert_eq!(self.stop, Flight::Not, "the stop is watched twice");
        self.stop = Flight::Armed;
    }

    fn receive(&mut self, key: Key, socket: &Socket) {
        let number = self.operate(key, socket);
        let connection = &mut self.connections[number];
        assert_eq!(connection.receive, Flight::Not, "a second receive in flight");
        assert_eq!(connection.place, None, "a receive waits on an enlisted socket");
        connection.receive = Flight::Queued;
        connection.is_single = false;
        self.push(Submission::Receive(number));
    }

    fn pause_receive(&mut self, key: Key) {
        if !self.scenario.is_patient {
            return self.cancel_receive(key);
        }
        let number = self.find(key).expect("a connection with a slot");
        self.push(Submission::PauseReceive(number));
    }

    fn cancel_receive(&mut self, key: Key) {
        // Its last completion may stand behind the one that the pump is looking at.
        let number = self.cancel(key);
        self.push(Submission::CancelReceive(number));
    }

    fn send(&mut self, key: Key, socket: &Socket, reply: Reply, patience: Patience) -> Patience {
        let number = self.operate(key, socket);
        if let Reply::Pinned { lease, .. } = &reply {
            self.buffers.pass(lease, Place::Lease, Place::Reply);
            assert_eq!(patience, Patience::None, "a pinned buffer waits for a peer");
        }
        let connection = &mut self.connections[number];
        assert_eq!(connection.send, Flight::Not, "a second send in flight");
        if let Some(place) = connection.place {
            let program = self.program.borrow();
            let psock = program.psock(place);
            assert!(!psock.is_echoing(), "a send could overtake an echo: {connection}");
        }
        assert!(!connection.link.is_shut(), "a send after the end of the stream");
        assert!(!reply.is_empty(), "a send of nothing");
        let patience = if self.scenario.is_patient { Patience::Unlimited } else { patience };
        connection.send = Flight::Queued;
        connection.reply = Some((reply, patience));
        self.push(Submission::Send(number));
        patience
    }

    fn cancel_send(&mut self, key: Key) {
        let number = self.cancel(key);
        self.push(Submission::CancelSend(number));
    }

    fn shut_down(&mut self, socket: &Socket) {
        self.catch_up();
        let number = self.descriptors[socket.0 as usize].expect("an open socket");
        let connection = &mut self.connections[number];
        assert_eq!(connection.send, Flight::Not, "a shutdown with a send in flight");
        assert!(!connection.link.is_shut(), "a second shutdown");
        assert!(
            connection.link.may_shut_down(),
            "connection {number} is shut down before all is said: {connection}"
        );
        connection.link.shut_down(self.now);
    }

    fn close(&mut self, key: Key, socket: Socket) {
        self.catch_up();
        let number = self.operate(key, &socket);
        let connection = &mut self.connections[number];
        let is_given_up = connection.link.is_given_up(self.now, self.stopped);
        if let Some(place) = connection.place {
            let program = self.program.borrow();
            let psock = program.psock(place);
            assert!(psock.is_delisted(), "a close of a socket that is enlisted");
            let may_echo = psock.is_echoing() || psock.is_deciding();
            assert!(is_given_up || !may_echo, "a close loses an echo");
        }
        assert_eq!(connection.watch, Flight::Not, "a close while the peer is watched");
        assert_eq!(connection.send, Flight::Not, "a close with a send in flight");
        assert_eq!(connection.receive, Flight::Not, "a close with a receive in flight");
        let is_fulfilled = connection.link.is_fulfilled();
        assert!(
            is_fulfilled || is_given_up,
            "connection {number} is closed before its time: {connection}"
        );
        self.totals.fulfilled += u64::from(is_fulfilled);
        connection.close = Flight::Queued;
        self.push(Submission::Close(number));
    }

    fn discard(&mut self, socket: Socket) {
        let number = self.descriptors[socket.0 as usize].take().expect("an open socket");
        let connection = &mut self.connections[number];
        assert!(connection.is_unwanted, "connection {number} is discarded: {connection}");
        assert_eq!(connection.key, None, "a connection with operations is discarded");
        connection.fd = None;
        self.retire(number);
    }

    fn enlist(&mut self, key: Key, socket: &Socket) -> Option<offload::Place> {
        let number = self.operate(key, socket);
        let connection = &mut self.connections[number];
        let link = &mut connection.link;
        assert_eq!(connection.place, None, "a socket is enlisted twice");
        assert!(
            !connection.is_half_received && link.is_all_reported(),
            "connection {number} is enlisted with octets half received: {connection}"
        );
        assert!(!link.is_shut(), "a socket is enlisted after the end of the stream");
        connection.place = self.program.borrow_mut().enlist(link.unseen());
        link.arrive();
        let place = connection.place?;
        self.totals.enlisted += 1;
        let mut program = self.program.borrow_mut();
        let psock = program.psock_mut(place);
        psock.acknowledged = link.acknowledged();
        psock.written = link.sent();
        Some(offload::Place(place as u32))
    }

    fn delist(&mut self, place: offload::Place, socket: &Socket) {
        let number = self.descriptors[socket.0 as usize].expect("an open socket");
        assert_eq!(self.connections[number].place, Some(place.0 as usize), "another's place");
        let mut program = self.program.borrow_mut();
        program.psock_mut(place.0 as usize).delist();
    }

    fn receive_once(&mut self, key: Key, socket: &Socket) {
        let number = self.operate(key, socket);
        let connection = &mut self.connections[number];
        assert_eq!(connection.receive, Flight::Not, "a second receive in flight");
        assert!(connection.place.is_some(), "a single receive on a socket that is not enlisted");
        connection.receive = Flight::Queued;
        connection.is_single = true;
        connection.is_pausing = false;
        self.push(Submission::ReceiveOnce(number));
    }

    fn record(&self, place: &offload::Place) -> &Record {
        &self.records[place.0 as usize]
    }

    fn written(&self, socket: &Socket) -> u64 {
        let number = self.descriptors[socket.0 as usize].expect("an open socket");
        self.connections[number].link.written(self.now) as u64
    }

    fn watch(&mut self, key: Key, socket: &Socket) {
        let number = self.operate(key, socket);
        assert_eq!(self.connections[number].watch, Flight::Not, "a second watch");
        self.connections[number].watch = Flight::Queued;
        self.push(Submission::Watch(number));
    }

    fn cancel_watch(&mut self, key: Key) {
        let number = self.cancel(key);
        self.push(Submission::CancelWatch(number));
    }

    fn bytes<'a>(&'a mut self, lease: &'a mut Lease) -> &'a mut [u8] {
        self.buffers.bytes_mut(lease)
    }

    fn recycle(&mut self, lease: Lease) {
        self.buffers.recycle(lease, Place::Lease);
    }

    fn buffers_ready(&self) -> usize {
        self.buffers.count(Place::Ready) + self.buffers.count(Place::Completion)
    }
}

impl Blocking for Kernel {
    fn enter(&mut self, wait: Wait, completions: &mut Vec<Completion>) -> io::Result<()> {
        assert!(completions.is_empty(), "the pump has not looked at all completions");
        assert!(wait != Wait::Not || !self.scenario.is_patient, "no send is over at once");
        let late = self.random.below(3);
        for _ in 0..late {
            self.step();
        }
        if !self.scenario.is_sqpoll {
            self.submit();
        }
        match wait {
            Wait::Not => {
                for _ in 0..self.random.below(3) {
                    self.step();
                }
            }
            Wait::Until(until) => self.wait(until),
        }
        self.catch_up();
        self.report(completions);
        Ok(())
    }
}
