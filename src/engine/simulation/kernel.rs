//! The simulated kernel: sockets, descriptors, buffers and completions as plain data, moved along
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

use super::oracle::{Fit, GOING_AWAY};
use super::peer::{Act, Peer, View};
use super::psock::{Parcel, Program};
use super::{Random, Scenario};
use crate::buffer::HEADROOM;
use crate::engine::pump::{DRAIN_MAX, FAREWELL_MAX, LINGER_MAX, REFUSED_MAX, SECOND_LOOK_MAX};
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

/// Where a buffer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Ready,
    Completion,
    Lease,
    Reply,
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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The peer has not connected.
    Waiting,
    /// The listener has it.
    Backlog,
    /// It has a descriptor.
    Open,
    /// The pump does not know that it is closed.
    Closed,
    Gone,
}

/// A connection, both ends of it.
#[derive(Debug)]
struct Link {
    peer: Peer,
    stage: Stage,
    fd: Option<i32>,
    key: Option<Key>,
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
    watch: Flight,
    close: Flight,
    reply: Option<(Reply, Patience)>,
    /// Octets of the reply that are sent.
    done: usize,
    /// The buffer of a reply that is over; it is ready again when the pump is told so.
    spent: Option<Lease>,
    /// Its place among the enlisted.
    place: Option<usize>,
    /// Octets handed to its psock.
    arrived: usize,
    /// Octets that left the socket, and that the pump knows of, or the program in its stead.
    taken: usize,
    reported: usize,
    /// All octets sent, and how many of them are those that the debt begins with.
    sent: Vec<u8>,
    matched: usize,
    /// Until then the kernel says that so many octets were given to it for sending.
    settles_at: Duration,
    settled: usize,
    is_refused: bool,
    /// The pump has to close it at once.
    is_unwanted: bool,
    is_broken: bool,
    /// An operation was cancelled when the server might have given the connection up.
    was_given_up: bool,
    /// The pump knows that the peer's stream is over.
    has_ended: bool,
    accepted_at: Duration,
    shut_at: Option<Duration>,
    /// When the pump learned what ends the connection, and last that octets were sent.
    ending_at: Option<Duration>,
    progressed_at: Option<Duration>,
    /// Octets that the pump knew of when it learned that it is to stop.
    stopped_at: Option<usize>,
    /// For how many octets the pump may have answered since, waiting for echoes.
    went_on_to: usize,
    /// The peer's stream was over by then.
    had_ended: bool,
}

impl Link {
    fn new(peer: Peer) -> Link {
        Link {
            peer,
            stage: Stage::Waiting,
            fd: None,
            key: None,
            receive: Flight::Not,
            is_pausing: false,
            is_single: false,
            is_deaf: false,
            is_half_received: false,
            send: Flight::Not,
            watch: Flight::Not,
            close: Flight::Not,
            reply: None,
            done: 0,
            spent: None,
            place: None,
            arrived: 0,
            taken: 0,
            reported: 0,
            sent: Vec::new(),
            matched: 0,
            settles_at: Duration::ZERO,
            settled: 0,
            is_refused: false,
            is_unwanted: false,
            is_broken: false,
            was_given_up: false,
            has_ended: false,
            accepted_at: Duration::ZERO,
            shut_at: None,
            ending_at: None,
            progressed_at: None,
            stopped_at: None,
            went_on_to: 0,
            had_ended: false,
        }
    }

    fn view(&self, window: usize) -> View {
        View {
            window: window - (self.peer.written - self.taken),
            sent: self.sent.len(),
            is_shut: self.shut_at.is_some() || self.stage == Stage::Closed,
            is_going_away: self.stopped_at.is_some()
                && self.sent.ends_with(GOING_AWAY)
                && self.fit() == Fit::Whole,
        }
    }

    fn room(&self) -> usize {
        self.peer.room.saturating_sub(self.sent.len() - self.peer.read)
    }

    fn fit(&self) -> Fit {
        let debt = &self.peer.debt;
        let mut fit = debt.fit(&self.sent, self.matched, self.stopped_at);
        if let Some(from) = self.stopped_at
            && from < self.went_on_to
        {
            let ends = debt.boundaries.iter().map(|&(end, _)| end);
            let ends = ends.filter(|&end| end > from && end < self.went_on_to);
            let fits = ends
                .chain([self.went_on_to])
                .map(|end| debt.fit(&self.sent, self.matched, Some(end)));
            fit = fits.fold(fit, Fit::max);
        }
        // A peer that is told late, behind its echoes, may end before.
        let had_ended = self.had_ended || self.has_ended && self.arrived > 0;
        if had_ended { fit.max(debt.fit(&self.sent, self.matched, None)) } else { fit }
    }

    /// Whether the server may give the connection up without having said all.
    fn is_given_up(&self, now: Duration, stopped: Option<Duration>) -> bool {
        let is_past = |since: Option<Duration>, most| since.is_some_and(|at| now >= at + most);
        self.was_given_up
            || self.is_broken
            || self.peer.is_reset
            || is_past(stopped, DRAIN_MAX)
            || is_past(self.shut_at, LINGER_MAX)
            || self.shut_at.is_none()
                && is_past(self.ending_at.max(self.progressed_at), FAREWELL_MAX)
                && self.ending_at.is_some()
            || self.is_refused && now >= self.accepted_at + LINGER_MAX
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} {:?} receive {:?} send {:?}; {} octets written of {}, {} taken, {} known; {} \
             octets sent, {} as owed of {}, {} read; ended {}, reset {}, broken {}, refused {}, \
             shut {:?}, ending {:?}, stopped {:?}",
            self.stage,
            self.key,
            self.receive,
            self.send,
            self.peer.written,
            self.peer.input.len(),
            self.taken,
            self.reported,
            self.sent.len(),
            self.matched,
            self.peer.debt.octets.len(),
            self.peer.read,
            self.peer.has_ended,
            self.peer.is_reset,
            self.is_broken,
            self.is_refused,
            self.shut_at,
            self.ending_at,
            self.stopped_at
        )
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
    links: Vec<Link>,
    /// Links that are connected and not gone.
    active: Vec<usize>,
    connected: usize,
    /// The link of each descriptor; the lowest free one is the next.
    descriptors: Vec<Option<usize>>,
    slots: Vec<Option<usize>>,
    memory: Vec<Vec<u8>>,
    places: Vec<Place>,
    ready: VecDeque<u16>,
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
        let links = (0..scenario.connections)
            .map(|_| Link::new(Peer::new(&mut random, &scenario)))
            .collect();
        let listeners = 1 + random.below(3);
        let now = Duration::from_secs(random.below(1000) as u64);
        let program = Program::new(&scenario, &mut random);
        let records = program.records.clone();
        Kernel {
            program: Rc::new(RefCell::new(program)),
            records,
            links,
            active: Vec::new(),
            connected: 0,
            descriptors: vec![None; scenario.descriptors],
            slots: Vec::new(),
            memory: vec![vec![0xa5; HEADROOM + scenario.capacity]; scenario.buffers],
            places: vec![Place::Ready; scenario.buffers],
            ready: (0..scenario.buffers as u16).collect(),
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

    /// Buffers there are: a ring without flags for them makes one whenever none is ready.
    pub(super) fn buffers(&self) -> usize {
        self.memory.len()
    }

    /// Buffers that are in this place.
    pub(super) fn count(&self, place: Place) -> usize {
        self.places.iter().filter(|&&other| other == place).count()
    }

    /// Connections that the pump must have a slot for.
    pub(super) fn slots_taken(&self) -> usize {
        self.slots.iter().flatten().count()
    }

    /// Octets of heap memory in replies that are being sent.
    pub(super) fn reply_octets(&self) -> usize {
        let replies = self.active.iter().filter_map(|&number| self.links[number].reply.as_ref());
        replies.map(|(reply, _)| if let Reply::Heap(bytes) = reply { bytes.len() } else { 0 }).sum()
    }

    /// What must hold when the pump is over.
    pub(super) fn check_end(&self) {
        assert_eq!(self.count(Place::Ready), self.places.len(), "buffers are lost");
        assert_eq!(self.totals.accepted, self.totals.closed, "sockets are left open");
        assert!(self.listeners.iter().all(|listener| !listener.is_open), "a listener is open");
        assert!(self.completed.is_empty() && self.active.is_empty(), "operations are left");
        let sent: usize = self.links.iter().map(|link| link.sent.len()).sum();
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
            && self.connected < self.links.len()
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
        let link = &self.links[number];
        let is_over = link.peer.has_ended || link.peer.is_reset || link.is_broken;
        let has_news = match link.place {
            None => link.taken < link.peer.written || is_over,
            Some(place) => {
                let program = self.program.borrow();
                let psock = program.psock(place);
                if psock.can_run() {
                    steps.push(Step::Run(number));
                }
                let is_possible = match psock.peek() {
                    Some(Parcel::Echo(_)) => {
                        link.room() > 0 || link.peer.is_reset || link.is_broken
                    }
                    Some(Parcel::Passed(_)) => true,
                    None => false,
                };
                if is_possible {
                    steps.push(Step::Work(number));
                }
                psock.receivable() > 0
                    || psock.is_stale()
                    || link.peer.is_reset
                    || link.is_broken
                    || link.peer.has_ended && psock.has_seen_all()
            }
        };
        if link.receive == Flight::Armed && has_news && !link.is_deaf {
            steps.push(Step::Receive(number));
        }
        if link.watch == Flight::Armed && is_over {
            steps.push(Step::HangUp(number));
        }
        if link.send == Flight::Armed && (link.room() > 0 || link.peer.is_reset || link.is_broken) {
            steps.push(Step::Send(number));
        }
        if link.close == Flight::Armed {
            steps.push(Step::Close(number));
        }
        if link.peer.wakes_at <= self.now && !self.is_still {
            link.peer.acts(link.view(self.scenario.window), &mut self.acts);
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
                self.links[number].stage = Stage::Backlog;
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
                let link = &mut self.links[number];
                link.close = Flight::Over;
                link.stage = Stage::Closed;
                let fd = link.fd.take().expect("it was open");
                let key = link.key.expect("it has a slot");
                self.descriptors[fd as usize] = None;
                if let Some(place) = link.place.take() {
                    self.program.borrow_mut().free(place);
                }
                self.completed.push_back(Completion::Closed { key });
            }
            Step::Peer(number, act) => {
                let link = &mut self.links[number];
                let view = link.view(self.scenario.window);
                link.peer.act(act, view, &mut self.random, self.now);
                if let Some(place) = link.place {
                    let mut program = self.program.borrow_mut();
                    let psock = program.psock_mut(place);
                    psock.write(&link.peer.input[link.arrived..link.peer.written]);
                    link.arrived = link.peer.written;
                    psock.acknowledged = link.peer.read;
                    if link.peer.has_ended {
                        psock.poke();
                    }
                }
            }
            Step::Run(number) => {
                let place = self.links[number].place.expect("it is enlisted");
                self.program.borrow_mut().step(place);
                self.catch_up();
            }
            Step::Work(number) => self.work(number),
            Step::Notice => {
                let place = self.program.borrow_mut().notices.pop_front().expect("there is one");
                self.records[place].take_notice();
                let tenant = self.links.iter().find(|link| link.place == Some(place));
                if let Some(key) = tenant.and_then(|link| link.key) {
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
            let link = &mut self.links[number];
            let Some(place) = link.place else { continue };
            let psock = program.psock_mut(place);
            let eaten = std::mem::take(&mut psock.eaten);
            link.taken += eaten;
            link.reported += eaten;
            if link.stopped_at.is_some() {
                link.went_on_to = link.reported;
            }
            self.totals.frames_echoed += std::mem::take(&mut psock.frames_eaten);
            assert!(
                link.receive != Flight::Armed || link.is_single || !self.records[place].is_open(),
                "a receive waits while the gate is open: {link}"
            );
        }
    }

    /// The kernel's worker moves the head of the queue.
    fn work(&mut self, number: usize) {
        let place = self.links[number].place.expect("it is enlisted");
        let shared = Rc::clone(&self.program);
        let mut program = shared.borrow_mut();
        let psock = program.psock_mut(place);
        let Some(Parcel::Echo(echo)) = psock.head() else { return psock.pop() };
        if self.fails(number) {
            return psock.die();
        }
        let mut octets = echo.len().min(self.links[number].room());
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
        let link = &mut self.links[number];
        link.watch = Flight::Over;
        let key = link.key.expect("it has a slot");
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
                self.links[number].fd = Some(fd as i32);
                self.links[number].stage = Stage::Open;
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
        let link = &mut self.links[number];
        if further == Further::Over {
            link.receive = Flight::Over;
        }
        let key = link.key.expect("it has a slot");
        self.completed.push_back(Completion::Received { key, received, further });
    }

    fn receive_some(&mut self, number: usize) {
        let link = &self.links[number];
        let is_reset = link.peer.is_reset || link.is_broken;
        let is_single = link.is_single;
        let mut available = link.peer.written - link.taken;
        let mut has_ended = link.peer.has_ended;
        if let Some(place) = link.place {
            let mut program = self.program.borrow_mut();
            let psock = program.psock_mut(place);
            psock.poke();
            available = psock.receivable();
            has_ended &= psock.has_seen_all();
        }
        // The kernel takes a buffer before it looks at the socket.
        if self.ready.is_empty() && self.scenario.is_patient {
            self.places.push(Place::Ready);
            self.ready.push_back(self.memory.len() as u16);
            self.memory.push(vec![0xa5; HEADROOM + self.scenario.capacity]);
        }
        if self.ready.is_empty() {
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
        let is_over =
            self.random.one_in(self.scenario.over) || self.links[number].is_pausing || is_single;
        let further = if is_over { Further::Over } else { Further::More };
        let received = self.fill(number, octets);
        // The kernel took one look at the socket for the octets and for the reset behind them.
        self.links[number].is_deaf =
            is_reset && octets == available && further == Further::More && self.random.one_in(2);
        self.post_received(number, received, further);
    }

    /// Moves octets from the socket to a buffer.
    fn fill(&mut self, number: usize, octets: usize) -> Received {
        let id = self.ready.pop_front().expect("one is ready");
        self.places[usize::from(id)] = Place::Completion;
        let link = &mut self.links[number];
        let target = &mut self.memory[usize::from(id)][HEADROOM..HEADROOM + octets];
        match link.place {
            None => target.copy_from_slice(&link.peer.input[link.taken..link.taken + octets]),
            Some(place) => {
                let mut program = self.program.borrow_mut();
                target.copy_from_slice(&program.psock_mut(place).receive(octets));
            }
        }
        link.taken += octets;
        link.is_half_received = octets == self.scenario.capacity;
        Received::Data { lease: Lease(id.into()), octets: octets as u32 }
    }

    /// Moves octets of the reply to the socket, at most so many.
    fn transmit(&mut self, number: usize, most: usize) {
        let link = &mut self.links[number];
        let (reply, _) = link.reply.as_ref().expect("it is being sent");
        let count = (reply.len() - link.done).min(link.room()).min(most);
        let all = match reply {
            Reply::Pinned { lease, octets } => {
                &self.memory[lease.0 as usize][octets.start as usize..octets.end as usize]
            }
            Reply::Heap(bytes) => &bytes[..],
        };
        let octets = all[link.done..link.done + count].to_vec();
        link.done += count;
        self.put(number, &octets);
    }

    /// The socket takes these octets, for which it has room.
    fn put(&mut self, number: usize, octets: &[u8]) {
        self.catch_up();
        let link = &mut self.links[number];
        let begin = link.sent.len();
        if self.now >= link.settles_at && self.random.one_in(4) {
            link.settled = begin;
            link.settles_at = self.now + Duration::from_micros(self.random.below(300) as u64);
        }
        link.sent.extend_from_slice(octets);
        if let Some(place) = link.place {
            self.program.borrow_mut().psock_mut(place).written = link.sent.len();
        }
        if link.matched == begin {
            let owed = link.peer.debt.octets[begin..].iter();
            link.matched += link.sent[begin..].iter().zip(owed).take_while(|(a, b)| a == b).count();
        }
        if link.fit() == Fit::Not {
            let from = link.matched.min(begin);
            panic!(
                "connection {number} got {:02x?} at octet {from}, {} of them as owed: {link}",
                &link.sent[from..],
                link.matched - from
            );
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
        let link = &mut self.links[number];
        link.is_broken |= breaks;
        link.is_broken || link.peer.is_reset
    }

    fn end_send(&mut self, number: usize, failure: Option<Errno>) {
        let completion = self.finish_send(number, failure);
        self.completed.push_back(completion);
    }

    fn finish_send(&mut self, number: usize, failure: Option<Errno>) -> Completion {
        let link = &mut self.links[number];
        link.send = Flight::Over;
        let (mut reply, _) = link.reply.take().expect("it is being sent");
        let octets = std::mem::take(&mut link.done);
        let key = link.key.expect("it has a slot");
        let failure = failure.filter(|_| octets == 0);
        if octets == reply.len() || failure.is_some() {
            if let Reply::Pinned { lease, .. } = reply {
                link.spent = Some(lease);
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

    fn make_ready(&mut self, lease: Lease, from: Place) {
        let place = &mut self.places[lease.0 as usize];
        assert_eq!(*place, from, "buffer {} is given back from elsewhere", lease.0);
        *place = Place::Ready;
        self.ready.push_back(lease.0 as u16);
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
                self.links[number].receive = Flight::Armed;
                self.links[number].is_pausing = false;
                self.links[number].is_deaf = false;
            }
            Submission::ReceiveOnce(number) => self.receive_some(number),
            // Between two reads there is nothing to wait for.
            Submission::PauseReceive(number) if self.random.one_in(4) => {
                self.execute(Submission::CancelReceive(number));
            }
            Submission::PauseReceive(number) => self.links[number].is_pausing = true,
            Submission::CancelReceive(number) => {
                if self.links[number].receive == Flight::Armed {
                    let received = Received::Failed(Errno::CANCELED);
                    self.post_received(number, received, Further::Over);
                }
            }
            Submission::Send(number) => self.start_send(number),
            Submission::CancelSend(number) => {
                if self.links[number].send == Flight::Armed {
                    self.end_send(number, None);
                }
            }
            Submission::Watch(number) => self.links[number].watch = Flight::Armed,
            Submission::CancelWatch(number) => {
                if self.links[number].watch == Flight::Armed {
                    self.hang_up(number);
                }
            }
            Submission::Verify(number) => {
                let link = &self.links[number];
                if link.is_broken || link.peer.is_reset || link.shut_at.is_some() {
                    let key = link.key.expect("it has a slot");
                    self.completed.push_back(Completion::Broken { key });
                }
            }
            Submission::Close(number) => self.links[number].close = Flight::Armed,
        }
    }

    fn start_send(&mut self, number: usize) {
        let (reply, patience) = self.links[number].reply.as_ref().expect("it is being sent");
        let length = reply.len();
        match patience {
            Patience::Unlimited => self.links[number].send = Flight::Armed,
            Patience::None => {
                let failure = if self.fails(number) {
                    Some(self.random.pick(&[Errno::PIPE, Errno::CONNRESET]))
                } else {
                    let is_cut = self.random.one_in(self.scenario.cut);
                    let most = if is_cut { self.random.below(length) } else { length };
                    self.transmit(number, most);
                    None
                };
                let completion = self.finish_send(number, failure);
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
            let wakings = self.active.iter().map(|&number| self.links[number].peer.wakes_at);
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
            let link = &self.links[number];
            let peer = &link.peer;
            if link.stage == Stage::Backlog && until.is_some() {
                continue;
            }
            // The pump is about to look again.
            if link.place.is_some()
                && until.is_some_and(|until| until <= self.now + SECOND_LOOK_MAX)
            {
                continue;
            }
            assert!(link.stage == Stage::Open, "connection {number} is not served: {link}");
            // The pump goes by its deadline then.
            if link.is_deaf && link.shut_at.is_some() && until.is_some() {
                continue;
            }
            assert!(!peer.is_reset && !link.is_broken, "a broken {number} is open: {link}");
            let ends = peer.debt.has_ended_by(link.reported);
            let is_echoing = link.place.is_some_and(|place| {
                matches!(self.program.borrow().psock(place).peek(), Some(Parcel::Echo(_)))
            });
            if (link.send == Flight::Armed || is_echoing) && link.room() == 0 {
                let may_wait = !is_final || peer.never_reads() && !ends && !link.has_ended;
                assert!(may_wait, "connection {number} can never go on: {link}");
                continue;
            }
            let is_shut = link.shut_at.is_some();
            assert!(
                link.taken == peer.written
                    && peer.has_its_due(link.sent.len(), link.fit())
                    && !peer.has_ended
                    && (!ends || is_shut && !is_final),
                "connection {number} waits in vain: {link}"
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
                        self.places[lease.0 as usize] = Place::Lease;
                    }
                    return;
                };
                let link = &mut self.links[number];
                if further == Further::Over {
                    link.receive = Flight::Not;
                }
                match received {
                    Received::Data { lease, octets } => {
                        self.places[lease.0 as usize] = Place::Lease;
                        link.reported += *octets as usize;
                        if link.place.is_some() && link.stopped_at.is_some() {
                            link.went_on_to = link.reported;
                        }
                        self.totals.octets_in += u64::from(*octets);
                    }
                    // An enlisted socket says so before it gives up what is queued.
                    Received::End => link.has_ended = link.reported == link.peer.written,
                    Received::NoBuffer | Received::Failed(_) => {}
                }
                if link.has_ended || link.peer.debt.ends_by(link.reported) {
                    link.ending_at.get_or_insert(self.now);
                }
            }
            Completion::Sent { key, sent, octets } => {
                let number = self.find(*key).expect("a send of a connection");
                self.links[number].send = Flight::Not;
                self.totals.octets_out += u64::from(*octets);
                if *octets > 0 {
                    self.links[number].progressed_at = Some(self.now);
                }
                if let Some(lease) = self.links[number].spent.take() {
                    self.make_ready(lease, Place::Reply);
                }
                if let Sent::Cut(Reply::Pinned { lease, .. }) = sent {
                    self.places[lease.0 as usize] = Place::Lease;
                }
            }
            &Completion::Passed { .. } | &Completion::Broken { .. } => {}
            &Completion::HungUp { key } => {
                let number = self.find(key).expect("a watch of a connection");
                self.links[number].watch = Flight::Not;
            }
            &Completion::Closed { key } => {
                let number = self.find(key).expect("a close of a connection");
                self.slots[key.slot as usize] = None;
                let is_refused = self.links[number].is_refused;
                *(if is_refused { &mut self.refused } else { &mut self.admitted }) -= 1;
                self.retire(number);
                self.haunt(key);
            }
            Completion::StopRequested => {
                self.stopped = Some(self.now);
                for &number in &self.active {
                    let link = &mut self.links[number];
                    link.stopped_at = Some(link.reported);
                    link.had_ended = link.has_ended;
                }
            }
        }
    }

    fn hand_over_socket(&mut self, fd: i32) {
        self.totals.accepted += 1;
        let number = self.descriptors[fd as usize].expect("it is open");
        let link = &mut self.links[number];
        link.accepted_at = self.now;
        link.is_refused = self.admitted >= self.scenario.limit;
        if self.stopped.is_some() || link.is_refused && self.refused == REFUSED_MAX {
            link.is_unwanted = true;
            return;
        }
        if link.is_refused {
            link.peer.debt.refuse();
        }
        *(if link.is_refused { &mut self.refused } else { &mut self.admitted }) += 1;
    }

    /// A completion of an operation that is long over, for the slot's next tenant to ignore.
    fn haunt(&mut self, key: Key) {
        if self.stopped.is_none() && self.random.one_in(20) {
            let received = match self.ready.pop_front() {
                Some(id) => {
                    self.places[usize::from(id)] = Place::Completion;
                    Received::Data { lease: Lease(id.into()), octets: 1 }
                }
                None => Received::NoBuffer,
            };
            let further = Further::Over;
            self.completed.push_back(Completion::Received { key, received, further });
        }
    }

    fn retire(&mut self, number: usize) {
        let link = &mut self.links[number];
        link.stage = Stage::Gone;
        // Of those that were enlisted.
        if link.arrived > 0 {
            let ends = &link.peer.debt.boundaries;
            let frames = ends.partition_point(|&(end, _)| end <= link.taken).saturating_sub(1);
            self.totals.frames += frames as u64;
        }
        self.active.retain(|&other| other != number);
        self.totals.closed += 1;
    }

    /// The connection that this key names now.
    fn find(&self, key: Key) -> Option<usize> {
        let number = self.slots.get(key.slot as usize).copied().flatten()?;
        (self.links[number].key == Some(key)).then_some(number)
    }

    /// The connection of an operation that is cancelled.
    fn cancel(&mut self, key: Key) -> usize {
        let number = self.find(key).expect("a connection with a slot");
        let is_given_up = self.links[number].is_given_up(self.now, self.stopped);
        self.links[number].was_given_up = is_given_up;
        number
    }

    /// The connection of an operation, which must be open and the key's own.
    fn operate(&mut self, key: Key, socket: &Socket) -> usize {
        let number = self.descriptors.get(socket.0 as usize).copied().flatten();
        let number = number.unwrap_or_else(|| panic!("an operation on closed {socket:?}"));
        let slot = key.slot as usize;
        self.slots.resize(self.slots.len().max(slot + 1), None);
        let link = &mut self.links[number];
        if link.key.is_none() {
            assert!(self.slots[slot].is_none(), "a slot for two connections: {key:?}");
            link.key = Some(key);
            self.slots[slot] = Some(number);
        }
        assert!(!link.is_unwanted, "a connection is served that must not be: {link}");
        assert_eq!(link.key, Some(key), "an operation on another's {socket:?}");
        assert_eq!(link.close, Flight::Not, "an operation while {socket:?} is closed");
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
            self.links[number].stage = Stage::Gone;
            self.active.retain(|&other| other != number);
        }
    }

    fn watch_stop(&mut self) {
        assert_eq!(self.stop, Flight::Not, "the stop is watched twice");
        self.stop = Flight::Armed;
    }

    fn receive(&mut self, key: Key, socket: &Socket) {
        let number = self.operate(key, socket);
        assert_eq!(self.links[number].receive, Flight::Not, "a second receive in flight");
        assert_eq!(self.links[number].place, None, "a receive waits on an enlisted socket");
        self.links[number].receive = Flight::Queued;
        self.links[number].is_single = false;
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
            let place = &mut self.places[lease.0 as usize];
            assert_eq!(*place, Place::Lease, "a reply in a buffer that is not on loan");
            *place = Place::Reply;
            assert_eq!(patience, Patience::None, "a pinned buffer waits for a peer");
        }
        let link = &mut self.links[number];
        assert_eq!(link.send, Flight::Not, "a second send in flight");
        if let Some(place) = link.place {
            let program = self.program.borrow();
            let psock = program.psock(place);
            assert!(!psock.is_echoing(), "a send could overtake an echo: {link}");
        }
        assert!(link.shut_at.is_none(), "a send after the end of the stream");
        assert!(!reply.is_empty(), "a send of nothing");
        let patience = if self.scenario.is_patient { Patience::Unlimited } else { patience };
        link.send = Flight::Queued;
        link.reply = Some((reply, patience));
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
        let link = &mut self.links[number];
        assert_eq!(link.send, Flight::Not, "a shutdown with a send in flight");
        assert!(link.shut_at.is_none(), "a second shutdown");
        let ends = link.peer.debt.ends_by(link.reported) || link.stopped_at.is_some();
        assert!(
            ends && link.fit() == Fit::Whole || link.is_broken || link.peer.is_reset,
            "connection {number} is shut down before all is said: {link}"
        );
        link.shut_at = Some(self.now);
    }

    fn close(&mut self, key: Key, socket: Socket) {
        self.catch_up();
        let number = self.operate(key, &socket);
        let is_given_up = self.links[number].is_given_up(self.now, self.stopped);
        if let Some(place) = self.links[number].place {
            let program = self.program.borrow();
            let psock = program.psock(place);
            assert!(psock.is_delisted(), "a close of a socket that is enlisted");
            let may_echo = psock.is_echoing() || psock.is_deciding();
            assert!(is_given_up || !may_echo, "a close loses an echo");
        }
        let link = &mut self.links[number];
        assert_eq!(link.watch, Flight::Not, "a close while the peer is watched");
        assert_eq!(link.send, Flight::Not, "a close with a send in flight");
        assert_eq!(link.receive, Flight::Not, "a close with a receive in flight");
        let is_fulfilled = link.has_ended && link.fit() == Fit::Whole;
        assert!(
            is_fulfilled || is_given_up,
            "connection {number} is closed before its time: {link}"
        );
        self.totals.fulfilled += u64::from(is_fulfilled);
        link.close = Flight::Queued;
        self.push(Submission::Close(number));
    }

    fn discard(&mut self, socket: Socket) {
        let number = self.descriptors[socket.0 as usize].take().expect("an open socket");
        let link = &mut self.links[number];
        assert!(link.is_unwanted, "a connection is discarded: {link}");
        assert_eq!(link.key, None, "a connection with operations is discarded");
        link.fd = None;
        self.retire(number);
    }

    fn enlist(&mut self, key: Key, socket: &Socket) -> Option<offload::Place> {
        let number = self.operate(key, socket);
        let link = &mut self.links[number];
        assert_eq!(link.place, None, "a socket is enlisted twice");
        assert!(
            !link.is_half_received && link.taken == link.reported,
            "connection {number} is enlisted with octets half received: {link}"
        );
        assert!(link.shut_at.is_none(), "a socket is enlisted after the end of the stream");
        let unseen = &link.peer.input[link.taken..link.peer.written];
        link.place = self.program.borrow_mut().enlist(unseen);
        link.arrived = link.peer.written;
        let place = link.place?;
        self.totals.enlisted += 1;
        let mut program = self.program.borrow_mut();
        let psock = program.psock_mut(place);
        psock.acknowledged = link.peer.read;
        psock.written = link.sent.len();
        Some(offload::Place(place as u32))
    }

    fn delist(&mut self, place: offload::Place, socket: &Socket) {
        let number = self.descriptors[socket.0 as usize].expect("an open socket");
        assert_eq!(self.links[number].place, Some(place.0 as usize), "another's place");
        let mut program = self.program.borrow_mut();
        program.psock_mut(place.0 as usize).delist();
    }

    fn receive_once(&mut self, key: Key, socket: &Socket) {
        let number = self.operate(key, socket);
        let link = &mut self.links[number];
        assert_eq!(link.receive, Flight::Not, "a second receive in flight");
        assert!(link.place.is_some(), "a single receive on a socket that is not enlisted");
        link.receive = Flight::Queued;
        link.is_single = true;
        link.is_pausing = false;
        self.push(Submission::ReceiveOnce(number));
    }

    fn record(&self, place: &offload::Place) -> &Record {
        &self.records[place.0 as usize]
    }

    fn written(&self, socket: &Socket) -> u64 {
        let number = self.descriptors[socket.0 as usize].expect("an open socket");
        let link = &self.links[number];
        let octets = if self.now < link.settles_at { link.settled } else { link.sent.len() };
        octets as u64
    }

    fn watch(&mut self, key: Key, socket: &Socket) {
        let number = self.operate(key, socket);
        assert_eq!(self.links[number].watch, Flight::Not, "a second watch");
        self.links[number].watch = Flight::Queued;
        self.push(Submission::Watch(number));
    }

    fn cancel_watch(&mut self, key: Key) {
        let number = self.cancel(key);
        self.push(Submission::CancelWatch(number));
    }

    fn verify(&mut self, key: Key, socket: &Socket) {
        let number = self.operate(key, socket);
        assert!(self.links[number].shut_at.is_none(), "what is shut down cannot be verified");
        self.push(Submission::Verify(number));
    }

    fn bytes<'a>(&'a mut self, lease: &'a mut Lease) -> &'a mut [u8] {
        assert_eq!(self.places[lease.0 as usize], Place::Lease, "a look at another's buffer");
        &mut self.memory[lease.0 as usize]
    }

    fn recycle(&mut self, lease: Lease) {
        self.make_ready(lease, Place::Lease);
    }

    fn buffers_ready(&self) -> usize {
        self.ready.len() + self.count(Place::Completion)
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
