//! A thread that sends and receives for the connections it owns, on epoll.
//!
//! In an open loop the messages of a connection that are due are counted and not kept: which message
//! a number stands for, and when it was due, follows from the plan. So a connection that is behind
//! takes no more memory than [`OUTPUT_MAX`] and one message, however far behind it is.
//!
//! A timer of the kernel ends the wait for a message that is due, for the timeouts of epoll are of
//! milliseconds or have the thread's slack of 50 µs.

use std::collections::VecDeque;
use std::fmt::Display;
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::sync::Mutex;
use std::time::Duration;

use core_affinity::CoreId;
use ringecho::protocol::frame::Opcode;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};

use super::mix::Payloads;
use super::opener::{Link, Reopening};
use super::schedule::{Schedule, Window, now_ns, thread_cpu_ns};
use super::{LoadError, Plan, STOP_CHECK};
use crate::latency::Latencies;
use crate::session::{Event, Form, Problem};
use crate::stop::Stop;

/// How long outstanding echoes are waited for after the last message.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a server may take to close a connection after a close frame.
pub const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long before a message is due a thread that spins no longer sleeps.
pub const SPIN: Duration = Duration::from_micros(60);
/// Octets that wait for the socket to have room, at most, before a message is added.
const OUTPUT_MAX: usize = 256 << 10;
/// Messages that are sent before it is seen what has come, at most, for a generator that is behind
/// would find all echoes late.
const SENDS_AT_ONCE: usize = 64;
/// Events taken at a time.
const EVENTS: usize = 256;
/// Problems that are kept as sentences.
const PROBLEMS_MAX: usize = 8;
/// The data of events that are no connection's.
const TIMER: u64 = u64::MAX;
const BELL: u64 = u64::MAX - 1;

/// What makes messages leave.
#[derive(Debug, Clone, Copy)]
pub(super) enum Pace {
    /// Their schedule.
    Open(Schedule),
    /// Echoes, from a time on.
    Closed { begin_ns: u64 },
}

/// What a worker has counted so far, for another thread to see.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Since they were last taken.
    pub(super) latencies: Latencies,
    pub(super) payload_octets: u64,
    /// Echoes, those of the warm-up too.
    pub(super) echoes: u64,
    pub(super) lost: u64,
    pub(super) wrong: u64,
    /// Connections.
    pub(super) failed: u64,
    pub(super) reconnects: u64,
    /// When the last echo that counts came.
    pub(super) last_ns: u64,
    /// The first few, as sentences.
    pub(super) problems: Vec<String>,
}

impl Tally {
    /// Adds all but the latencies.
    pub(super) fn add(&mut self, other: Tally) {
        self.payload_octets += other.payload_octets;
        self.echoes += other.echoes;
        self.lost += other.lost;
        self.wrong += other.wrong;
        self.failed += other.failed;
        self.reconnects += other.reconnects;
        self.last_ns = self.last_ns.max(other.last_ns);
        let room = PROBLEMS_MAX - self.problems.len();
        self.problems.extend(other.problems.into_iter().take(room));
    }

    fn note(&mut self, number: usize, problem: &dyn Display) {
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(format!("connection {number}: {problem}"));
        }
    }
}

/// What a worker says at its end.
#[derive(Debug)]
pub(super) struct Ended {
    /// How late it looked at each message of an open loop that counts.
    pub(super) lag: Latencies,
    /// The part of the time that counts in which it ran.
    pub(super) utilisation: f64,
    /// Messages that it should have sent and did not come to.
    pub(super) unsent: u64,
    /// When messages no longer counted.
    pub(super) end_ns: u64,
}

/// What a connection is about to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Send and receive.
    Open,
    /// Close, as soon as all echoes have come.
    Leaving,
    /// Wait for the server to close, since this time.
    Closing(u64),
    /// Go on as soon as it is open again.
    Reopening,
    /// Nothing more.
    Ended,
    /// Nothing more, for there was a problem.
    Failed,
}

/// A connection. Of its messages, those below `echoed` are back, those below `sent` are written or in
/// `output`, and in an open loop those below `due` were to be sent by now.
struct Connection {
    /// Among those of all workers.
    number: usize,
    state: State,
    link: Option<Link>,
    /// Octets for the socket, of which those before `written` are gone.
    output: Vec<u8>,
    written: usize,
    /// Whether the event is wanted that the socket has room.
    wants_room: bool,
    due: u64,
    sent: u64,
    echoed: u64,
    /// When the messages under way were sent, in a closed loop.
    sent_ns: VecDeque<u64>,
    /// How often it was opened again, and how many messages were sent since.
    life: u64,
    life_sent: u64,
}

impl Connection {
    fn new(number: usize, link: Option<Link>) -> Connection {
        Connection {
            number,
            state: State::Open,
            link,
            output: Vec::new(),
            written: 0,
            wants_room: false,
            due: 0,
            sent: 0,
            echoed: 0,
            sent_ns: VecDeque::new(),
            life: 0,
            life_sent: 0,
        }
    }

    /// Whether it will not do anything any more.
    fn is_over(&self) -> bool {
        matches!(self.state, State::Ended | State::Failed)
    }

    /// Whether nothing more has to be waited for before it is closed for good.
    fn is_settled(&self) -> bool {
        match self.state {
            State::Open | State::Leaving => self.echoed >= self.sent.max(self.due),
            State::Closing(_) | State::Reopening => false,
            State::Ended | State::Failed => true,
        }
    }
}

/// What a thread starts with.
pub(super) struct Parts<'a> {
    pub(super) plan: &'a Plan,
    pub(super) pace: Pace,
    pub(super) window: Window,
    pub(super) stop: &'a Stop,
    pub(super) tally: &'a Mutex<Tally>,
    pub(super) payloads: Payloads,
    pub(super) reopening: Option<Reopening>,
    /// The numbers of its connections, and what became of opening them.
    pub(super) links: Vec<(usize, Result<Link, Problem>)>,
    /// The processor that the thread is pinned to.
    pub(super) cpu: Option<usize>,
}

/// Does a thread's work: sends, waits for what is outstanding, and closes.
pub(super) fn run(parts: Parts<'_>) -> Result<Ended, LoadError> {
    // First of all, so that its memory is near the processor.
    if let Some(id) = parts.cpu
        && !core_affinity::set_for_current(CoreId { id })
    {
        return Err(LoadError::Cpu(id));
    }
    let mut worker = Worker::new(parts)?;
    let (utilisation, unsent) = worker.exchange()?;
    worker.goes_on = false;
    worker.drain()?;
    worker.close()?;
    Ok(Ended { lag: worker.lag, utilisation, unsent, end_ns: worker.window.end_ns })
}

/// A thread's work.
struct Worker<'a> {
    plan: &'a Plan,
    pace: Pace,
    window: Window,
    stop: &'a Stop,
    tally: &'a Mutex<Tally>,
    reopening: Option<Reopening>,
    epoll: OwnedFd,
    timer: OwnedFd,
    /// What the timer was set to.
    timer_ns: u64,
    events: Vec<epoll::Event>,
    connections: Vec<Connection>,
    /// How many of them are not over.
    left: usize,
    payloads: Payloads,
    /// The next message of an open loop: its number, and which connection's.
    turn: (u64, usize),
    /// The connections of the messages that are due, once for each.
    has_due: Vec<usize>,
    /// Whether a closed loop goes on.
    goes_on: bool,
    /// Whether connections that close are not opened again, and echoes no longer count.
    is_finishing: bool,
    next_check_ns: u64,
    lag: Latencies,
}

impl<'a> Worker<'a> {
    fn new(parts: Parts<'a>) -> Result<Worker<'a>, LoadError> {
        let Parts { plan, pace, window, stop, tally, payloads, reopening, links, cpu: _ } = parts;
        let no_epoll = |error: rustix::io::Errno| LoadError::System("use epoll", error.into());
        let epoll = epoll::create(CreateFlags::CLOEXEC).map_err(no_epoll)?;
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)
            .map_err(|error| LoadError::System("make a timer", error.into()))?;
        // With edges, a timer that went off does not have to be read.
        let flags = EventFlags::IN | EventFlags::ET;
        epoll::add(&epoll, &timer, EventData::new_u64(TIMER), flags).map_err(no_epoll)?;
        if let Some(Reopening { bell, .. }) = &reopening {
            epoll::add(&epoll, bell, EventData::new_u64(BELL), EventFlags::IN).map_err(no_epoll)?;
        }
        let mut worker = Worker {
            plan,
            pace,
            window,
            stop,
            tally,
            reopening,
            epoll,
            timer,
            timer_ns: 0,
            events: Vec::with_capacity(EVENTS),
            left: links.len(),
            connections: Vec::with_capacity(links.len()),
            payloads,
            turn: (0, 0),
            has_due: Vec::with_capacity(SENDS_AT_ONCE),
            goes_on: false,
            is_finishing: false,
            next_check_ns: 0,
            lag: Latencies::default(),
        };
        for (index, (number, link)) in links.into_iter().enumerate() {
            worker.connections.push(Connection::new(number, None));
            match link {
                Ok(link) => worker.adopt(index, link),
                Err(problem) => worker.fail(index, &problem),
            }
        }
        Ok(worker)
    }

    /// Sends until the time is over; gives the part of the time that this thread ran, and the number
    /// of messages that it did not come to.
    fn exchange(&mut self) -> Result<(f64, u64), LoadError> {
        let mut account = (now_ns(), thread_cpu_ns());
        let mut counts = false;
        let give_up_ns = self.window.end_ns + DRAIN_TIMEOUT.as_nanos() as u64;
        loop {
            let now = now_ns();
            if !counts && now >= self.window.begin_ns {
                account = (now, thread_cpu_ns());
                counts = true;
            }
            if self.stop.is_requested() || self.left == 0 {
                self.window.end_ns = self.window.end_ns.min(now);
            }
            let wake_ns = match self.pace {
                Pace::Open(schedule) => self.send_due(&schedule),
                Pace::Closed { begin_ns } => self.begin_loop(begin_ns, now),
            };
            match wake_ns {
                Some(wake_ns) if now < give_up_ns => self.wait(wake_ns)?,
                Some(_) | None => break,
            }
        }
        let unsent = match self.pace {
            Pace::Open(schedule) => {
                let step = self.connections.len().max(1) as u64;
                let missing = (0..).map(|ahead| self.turn.0 + ahead);
                let number = self.connections[self.turn.1].number;
                let missing = missing
                    .take_while(|&turn| schedule.due_ns(number, turn) < self.window.end_ns)
                    .count() as u64;
                if self.left == 0 { 0 } else { missing * step }
            }
            Pace::Closed { .. } => 0,
        };
        let [ran, passed] = [thread_cpu_ns() - account.1, now_ns() - account.0];
        Ok((ran as f64 / passed.max(1) as f64, unsent))
    }

    /// Sends what is due, and gives the time of the next message if there is one before the end.
    fn send_due(&mut self, schedule: &Schedule) -> Option<u64> {
        let wake_ns = self.note_due(schedule);
        // All is noted first, so that a generator that is behind writes several messages of a
        // connection at once.
        let mut indices = std::mem::take(&mut self.has_due);
        for index in indices.drain(..) {
            self.transmit(index);
        }
        self.has_due = indices;
        wake_ns
    }

    /// Notes which connections have messages that are due.
    fn note_due(&mut self, schedule: &Schedule) -> Option<u64> {
        loop {
            if self.left == 0 {
                return None;
            }
            let (number, index) = self.turn;
            let due_ns = schedule.due_ns(self.connections[index].number, number);
            if due_ns >= self.window.end_ns {
                return None;
            }
            let now = now_ns();
            if due_ns > now || self.has_due.len() == SENDS_AT_ONCE {
                return Some(due_ns);
            }
            self.turn = match index + 1 {
                next if next < self.connections.len() => (number, next),
                _ => (number + 1, 0),
            };
            let connection = &mut self.connections[index];
            if connection.is_over() {
                continue;
            }
            if self.window.holds(due_ns) {
                self.lag.record(Duration::from_nanos(now - due_ns));
            }
            connection.due += 1;
            let waiting = connection.due - connection.echoed;
            if waiting > self.plan.backlog_max {
                let limit = self.plan.backlog_max;
                self.fail(index, &format_args!("more than {limit} messages wait for their echoes"));
                continue;
            }
            self.has_due.push(index);
        }
    }

    /// Begins a closed loop when it is time; gives when to look again.
    fn begin_loop(&mut self, begin_ns: u64, now: u64) -> Option<u64> {
        if now < begin_ns {
            return Some(begin_ns);
        }
        if now >= self.window.end_ns {
            return None;
        }
        if !self.goes_on {
            self.goes_on = true;
            for index in 0..self.connections.len() {
                self.transmit(index);
            }
        }
        Some(self.window.end_ns)
    }

    /// Waits for outstanding echoes, and counts those that do not come.
    fn drain(&mut self) -> Result<(), LoadError> {
        let end_ns = now_ns() + DRAIN_TIMEOUT.as_nanos() as u64;
        while now_ns() < end_ns && !self.connections.iter().all(Connection::is_settled) {
            self.wait(end_ns)?;
        }
        for index in 0..self.connections.len() {
            if !self.connections[index].is_over() {
                self.lose(index);
            }
        }
        Ok(())
    }

    /// Closes all connections, and waits briefly for the server to do so.
    fn close(&mut self) -> Result<(), LoadError> {
        self.is_finishing = true;
        for index in 0..self.connections.len() {
            match self.connections[index].state {
                State::Open | State::Leaving => self.start_closing(index),
                State::Reopening => self.end(index),
                State::Closing(_) | State::Ended | State::Failed => {}
            }
        }
        let end_ns = now_ns() + CLOSE_TIMEOUT.as_nanos() as u64;
        while self.left > 0 && now_ns() < end_ns {
            self.wait(end_ns)?;
        }
        Ok(())
    }

    /// Waits until something comes or it is `wake_ns`, but not long, and takes what has come.
    fn wait(&mut self, wake_ns: u64) -> Result<(), LoadError> {
        let now = now_ns();
        if now >= self.next_check_ns {
            self.check_closing(now);
        }
        let wake_ns =
            if self.plan.spins { wake_ns.saturating_sub(SPIN.as_nanos() as u64) } else { wake_ns };
        let timeout = if wake_ns <= now { Duration::ZERO } else { STOP_CHECK };
        if wake_ns > now && wake_ns != self.timer_ns {
            self.set_timer(wake_ns)?;
        }
        let timeout = Timespec { tv_sec: 0, tv_nsec: timeout.as_nanos() as i64 };
        let mut events = std::mem::take(&mut self.events);
        events.clear();
        let room = rustix::buffer::spare_capacity(&mut events);
        match epoll::wait(&self.epoll, room, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(LoadError::System("wait for events", error.into())),
        }
        for event in &events {
            // The structure is packed.
            let (data, flags) = (event.data.u64(), event.flags);
            match data {
                TIMER => {}
                BELL => self.take_opened(),
                index => {
                    let index = index as usize;
                    if flags.contains(EventFlags::OUT) {
                        self.flush(index);
                        self.transmit(index);
                    }
                    if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
                        self.receive(index);
                    }
                }
            }
        }
        self.events = events;
        Ok(())
    }

    fn set_timer(&mut self, time_ns: u64) -> Result<(), LoadError> {
        let time = Timespec {
            tv_sec: (time_ns / 1_000_000_000) as i64,
            tv_nsec: (time_ns % 1_000_000_000) as i64,
        };
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: time };
        timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &once)
            .map_err(|error| LoadError::System("set a timer", error.into()))?;
        self.timer_ns = time_ns;
        Ok(())
    }

    /// Drops connections that the server should have closed by now.
    fn check_closing(&mut self, now: u64) {
        self.next_check_ns = now + STOP_CHECK.as_nanos() as u64;
        if self.reopening.is_none() {
            return;
        }
        for index in 0..self.connections.len() {
            if let State::Closing(since) = self.connections[index].state
                && now.saturating_sub(since) > CLOSE_TIMEOUT.as_nanos() as u64
            {
                self.closed(index);
            }
        }
    }

    /// Writes messages that are to be sent, as far as there is room.
    fn transmit(&mut self, index: usize) {
        loop {
            let has_more = self.compose(index);
            self.flush(index);
            let connection = &self.connections[index];
            if !has_more || connection.written < connection.output.len() {
                return;
            }
        }
    }

    /// Makes octets of messages until there are enough of them; says whether there are more
    /// messages.
    fn compose(&mut self, index: usize) -> bool {
        let connection = &mut self.connections[index];
        while connection.state == State::Open {
            let is_closed_loop = match self.pace {
                Pace::Open(_) if connection.sent >= connection.due => return false,
                Pace::Open(_) => false,
                Pace::Closed { .. } => {
                    let under_way = connection.sent - connection.echoed;
                    if !self.goes_on || under_way >= self.plan.pipeline as u64 {
                        return false;
                    }
                    true
                }
            };
            if connection.output.len() - connection.written >= OUTPUT_MAX {
                return true;
            }
            let Some(link) = &mut connection.link else { return false };
            let kind = self.payloads.kind(connection.number, connection.sent);
            let payload = self.payloads.payload(&kind, connection.number, connection.sent);
            link.session.message(&mut connection.output, kind.form, payload, kind.fragments);
            if is_closed_loop {
                connection.sent_ns.push_back(now_ns());
            }
            connection.sent += 1;
            connection.life_sent += 1;
            if self.plan.reconnect_every == Some(connection.life_sent) {
                connection.state = State::Leaving;
            }
        }
        false
    }

    /// Writes what waits, and has the socket tell when it has room if not all can be.
    fn flush(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        let Some(link) = &mut connection.link else { return };
        while connection.written < connection.output.len() {
            match link.stream.write(&connection.output[connection.written..]) {
                Ok(count) => connection.written += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return self.broken(index, error),
            }
        }
        let waits = connection.written < connection.output.len();
        if !waits {
            connection.output.clear();
            connection.written = 0;
        } else if connection.written >= OUTPUT_MAX {
            connection.output.drain(..connection.written);
            connection.written = 0;
        }
        if waits != connection.wants_room {
            let flags = if waits { EventFlags::IN | EventFlags::OUT } else { EventFlags::IN };
            let data = EventData::new_u64(index as u64);
            connection.wants_room = waits;
            if let Err(error) = epoll::modify(&self.epoll, &link.stream, data, flags) {
                self.fail(index, &Problem::Lost(error.into()));
            }
        }
    }

    /// Takes what has come on a connection.
    fn receive(&mut self, index: usize) {
        loop {
            let Some(link) = &mut self.connections[index].link else { return };
            let room = link.session.room();
            let length = room.len();
            let count = match link.stream.read(room) {
                Ok(0) => return self.closed(index),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return self.broken(index, error),
            };
            let now = now_ns();
            link.session.filled(count);
            if let Err(problem) = self.take_events(index, now) {
                return self.fail(index, &problem);
            }
            // With less than there is room for, nothing is left; and if something has come since, it
            // is told again.
            if count < length {
                break;
            }
        }
        let connection = &self.connections[index];
        match connection.state {
            State::Leaving if connection.echoed == connection.sent => self.start_closing(index),
            // An echo makes room for the next message of a closed loop, and a pong waits to leave.
            State::Open | State::Leaving | State::Closing(_) => self.transmit(index),
            State::Reopening | State::Ended | State::Failed => {}
        }
    }

    fn take_events(&mut self, index: usize, now: u64) -> Result<(), Problem> {
        loop {
            let connection = &mut self.connections[index];
            let Some(link) = &mut connection.link else { return Ok(()) };
            let number = connection.echoed;
            let is_awaited = connection.sent > number;
            if self.plan.is_plain() && !is_awaited {
                return Ok(());
            }
            let kind = self.payloads.kind(connection.number, number);
            let form = match link.session.next(kind.size)? {
                None => return Ok(()),
                Some(Event::Ping(payload)) => {
                    link.session.control(&mut connection.output, Opcode::Pong, &payload);
                    continue;
                }
                Some(Event::Close(code, frame)) => {
                    if matches!(connection.state, State::Closing(_)) {
                        continue;
                    }
                    // RFC 6455 section 5.5.1: a close frame is answered, typically with its code.
                    let payload = code.map(u16::to_be_bytes).unwrap_or_default();
                    let payload = if frame.len() > 2 { &payload[..] } else { &[] };
                    link.session.control(&mut connection.output, Opcode::Close, payload);
                    self.flush(index);
                    return Err(Problem::Closed(code));
                }
                Some(Event::Echo(_)) if !is_awaited => return Err(Problem::WrongEcho(number, 0)),
                Some(Event::Echo(form)) => form,
            };
            connection.echoed += 1;
            let from_ns = match self.pace {
                Pace::Open(schedule) => schedule.due_ns(connection.number, number),
                Pace::Closed { .. } => connection.sent_ns.pop_front().expect("one a message"),
            };
            let is_right = self.verify(index, number, form);
            let mut tally = self.tally.lock().expect("no thread panics");
            tally.echoes += 1;
            match is_right {
                Err(problem) => {
                    tally.wrong += 1;
                    tally.note(self.connections[index].number, &problem);
                }
                Ok(()) if self.window.holds(from_ns) && !self.is_finishing => {
                    tally.latencies.record(Duration::from_nanos(now.saturating_sub(from_ns)));
                    tally.payload_octets += kind.size as u64;
                    tally.last_ns = now;
                }
                Ok(()) => {}
            }
        }
    }

    /// Checks the last echo: all of it in samples, and its form and length always.
    fn verify(&mut self, index: usize, number: u64, form: Form) -> Result<(), Problem> {
        let connection = &self.connections[index];
        let Some(link) = &connection.link else { return Ok(()) };
        let kind = self.payloads.kind(connection.number, number);
        let has_form = form == kind.form || self.plan.is_plain();
        let is_alike = link.session.echo().len() == kind.size && has_form;
        if is_alike && !number.is_multiple_of(self.plan.verify_every) {
            return Ok(());
        }
        let payload = self.payloads.payload(&kind, connection.number, number);
        link.session.compare(number, (kind.form, form), payload)
    }

    /// Closes a connection on which nothing is outstanding.
    fn start_closing(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        let Some(link) = &mut connection.link else { return };
        connection.state = State::Closing(now_ns());
        // RFC 6455 section 7.4.1: 1000 is what a connection is for has been done.
        link.session.control(&mut connection.output, Opcode::Close, &1000u16.to_be_bytes());
        if self.plan.is_plain()
            && let Err(error) = link.stream.end()
        {
            return self.broken(index, error);
        }
        self.flush(index);
    }

    /// Takes note that a connection is gone, by its end or by a reset or another error.
    fn broken(&mut self, index: usize, error: std::io::Error) {
        if matches!(self.connections[index].state, State::Closing(_)) {
            return self.closed(index);
        }
        self.fail(index, &Problem::Lost(error));
    }

    /// Takes note that the server has closed a connection.
    fn closed(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        if !matches!(connection.state, State::Closing(_)) {
            return self.fail(index, &Problem::Closed(None));
        }
        match &self.reopening {
            Some(reopening) if !self.is_finishing => {
                connection.link = None;
                connection.output.clear();
                connection.written = 0;
                connection.wants_room = false;
                connection.state = State::Reopening;
                connection.life += 1;
                connection.life_sent = 0;
                reopening.reopen(index, connection.number, connection.life);
            }
            Some(_) | None => self.end(index),
        }
    }

    fn end(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        connection.link = None;
        connection.state = State::Ended;
        self.left -= 1;
    }

    /// Takes connections that were opened again.
    fn take_opened(&mut self) {
        let opened = self.reopening.as_ref().map(Reopening::opened);
        for (index, link) in opened.into_iter().flatten() {
            if self.connections[index].is_over() {
                continue;
            }
            match link {
                Ok(link) => {
                    self.connections[index].state = State::Open;
                    self.adopt(index, link);
                    self.tally.lock().expect("no thread panics").reconnects += 1;
                    self.transmit(index);
                }
                Err(problem) => self.fail(index, &problem),
            }
        }
    }

    /// Watches a connection that is open.
    fn adopt(&mut self, index: usize, link: Link) {
        let data = EventData::new_u64(index as u64);
        match epoll::add(&self.epoll, &link.stream, data, EventFlags::IN) {
            Ok(()) => self.connections[index].link = Some(link),
            Err(error) => self.fail(index, &Problem::Lost(error.into())),
        }
    }

    /// Gives a connection up, with all that is outstanding on it.
    fn fail(&mut self, index: usize, problem: &dyn Display) {
        if self.connections[index].is_over() {
            return;
        }
        if !self.is_finishing {
            self.lose(index);
        }
        let connection = &mut self.connections[index];
        connection.link = None;
        connection.output = Vec::new();
        connection.written = 0;
        connection.state = State::Failed;
        self.left -= 1;
        let mut tally = self.tally.lock().expect("no thread panics");
        tally.failed += 1;
        tally.note(self.connections[index].number, problem);
    }

    /// Counts what is outstanding on a connection as lost.
    fn lose(&mut self, index: usize) {
        let Connection { number, echoed, due, sent_ns, .. } = &self.connections[index];
        let lost = match self.pace {
            Pace::Open(schedule) => (*echoed..*due)
                .filter(|&message| self.window.holds(schedule.due_ns(*number, message)))
                .count(),
            Pace::Closed { .. } => {
                sent_ns.iter().filter(|&&sent_ns| self.window.holds(sent_ns)).count()
            }
        };
        self.tally.lock().expect("no thread panics").lost += lost as u64;
    }
}
