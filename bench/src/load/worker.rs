//! A thread that sends and receives for the connections it owns, on epoll.
//!
//! It goes through three phases: it exchanges messages until the time is over, drains (waits for
//! echoes in flight), and closes. Every wait of every phase ends at a time known beforehand, and at
//! once when the stop is requested.
//!
//! A timerfd ends the wait for the next due message, because epoll's timeouts have the thread's timer
//! slack of 50 µs. `judge.rs` judges echoes, the connection's ledger knows how each message was
//! answered, and the tally has the counts.

mod events;

use std::os::fd::OwnedFd;
use std::sync::Mutex;
use std::time::Duration;

use ringecho::cpus;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};

use super::connection::{Connection, State};
use super::ledger::Pace;
use super::opener::{Link, Reopening};
use super::payloads::Payloads;
use super::schedule::{Schedule, Window, now_ns, thread_cpu_ns};
use super::tally::Tally;
use super::{LoadError, Plan};
use crate::latency::Latencies;
use crate::problem::Problem;
use crate::stop::Stop;
use crate::verdict::End;

/// How long before a message is due a thread that spins no longer sleeps.
pub const SPIN: Duration = Duration::from_micros(60);
/// How long to wait for echoes in flight, and then for closes, once the stop is requested.
const STOP_TIMEOUT: Duration = Duration::from_millis(500);
/// How often to look for connections that were not closed in time.
const CLOSE_CHECK: Duration = Duration::from_millis(20);
/// The most messages sent before the next look at what has come: a client that is behind would
/// otherwise find all echoes late.
const SENDS_AT_ONCE: usize = 64;
/// Events taken at a time.
const EVENTS: usize = 256;
/// The data of events that belong to no connection.
const TIMER: u64 = u64::MAX;
const BELL: u64 = u64::MAX - 1;
const STOP: u64 = u64::MAX - 2;

/// A worker's report at its end.
#[derive(Debug)]
pub(super) struct Ended {
    /// How late each message that counts was sent, in an open loop.
    pub(super) lag: Latencies,
    /// The share of the measured time during which it ran, from 0 to 1.
    pub(super) utilisation: f64,
    /// Until when messages were due.
    pub(super) end_ns: u64,
    /// Whether all its connections had failed by then.
    pub(super) has_failed: bool,
    /// Its connections, and how many messages each has sent.
    pub(super) sent: Vec<(usize, u64)>,
}

/// What a thread starts with.
pub(super) struct Assignment<'a> {
    pub(super) plan: &'a Plan,
    pub(super) pace: Pace,
    pub(super) window: Window,
    pub(super) stop: &'a Stop,
    pub(super) tally: &'a Mutex<Tally>,
    pub(super) payloads: Payloads,
    pub(super) reopening: Option<Reopening>,
    /// The numbers of its connections, each with the connection or why it could not be opened.
    pub(super) links: Vec<(usize, Result<Link, Problem>)>,
    /// The CPU that the thread is pinned to.
    pub(super) cpu: Option<usize>,
}

/// Does a thread's work: exchanges messages, waits for echoes in flight, calls `drained`, and closes.
pub(super) fn run(assignment: Assignment<'_>, drained: impl FnOnce()) -> Result<Ended, LoadError> {
    // First of all, so that its memory is near the CPU.
    if let Some(id) = assignment.cpu
        && cpus::pin(id).is_err()
    {
        return Err(LoadError::Cpu(id));
    }
    let mut worker = Worker::new(assignment)?;
    let (utilisation, end_ns) = worker.exchange()?;
    let has_failed = worker.left == 0;
    worker.drain()?;
    drained();
    worker.close()?;
    let sent = worker.connections.iter().map(|it| (it.number, it.ledger.sent())).collect();
    Ok(Ended { lag: worker.lag, utilisation, end_ns, has_failed, sent })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Before the first message of a closed loop.
    Waiting,
    Exchanging,
    Draining,
    Closing,
}

/// A thread's work.
struct Worker<'a> {
    plan: &'a Plan,
    pace: Pace,
    window: Window,
    stop: &'a Stop,
    tally: &'a Mutex<Tally>,
    reopening: Option<Reopening>,
    phase: Phase,
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
    /// The messages that are due: the connection of each, and when it was due.
    due: Vec<(usize, u64)>,
    next_check_ns: u64,
    lag: Latencies,
}

impl<'a> Worker<'a> {
    fn new(assignment: Assignment<'a>) -> Result<Worker<'a>, LoadError> {
        let Assignment { plan, pace, window, stop, tally, payloads, reopening, links, cpu: _ } =
            assignment;
        let no_epoll = |error: rustix::io::Errno| LoadError::System("use epoll", error.into());
        let epoll = epoll::create(CreateFlags::CLOEXEC).map_err(no_epoll)?;
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)
            .map_err(|error| LoadError::System("make a timer", error.into()))?;
        // With edges, neither a timer that went off nor the stop has to be read.
        let edge = EventFlags::IN | EventFlags::ET;
        epoll::add(&epoll, &timer, EventData::new_u64(TIMER), edge).map_err(no_epoll)?;
        epoll::add(&epoll, stop, EventData::new_u64(STOP), edge).map_err(no_epoll)?;
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
            phase: Phase::Waiting,
            epoll,
            timer,
            timer_ns: 0,
            events: Vec::with_capacity(EVENTS),
            left: links.len(),
            connections: Vec::with_capacity(links.len()),
            payloads,
            turn: (0, 0),
            due: Vec::with_capacity(SENDS_AT_ONCE),
            next_check_ns: 0,
            lag: Latencies::default(),
        };
        for (index, (number, link)) in links.into_iter().enumerate() {
            worker.connections.push(Connection::new(number, pace));
            match link {
                Ok(link) => worker.adopt(index, link),
                Err(problem) => worker.fail(index, &problem),
            }
        }
        Ok(worker)
    }

    /// Sends until the time is over; gives the share of the time that counts in which this thread
    /// ran, and until when messages were due.
    fn exchange(&mut self) -> Result<(f64, u64), LoadError> {
        let mut account = (now_ns(), thread_cpu_ns());
        let mut counts = false;
        // A client that is behind sends late, but not without end.
        let give_up_ns = self.window.end_ns + self.plan.drain.as_nanos() as u64;
        let end_ns = loop {
            let now = now_ns();
            if !counts && now >= self.window.begin_ns {
                account = (now, thread_cpu_ns());
                counts = true;
            }
            let wake_ns = match self.pace {
                Pace::Open(schedule) => self.send_due(&schedule),
                Pace::Closed { begin_ns } => self.begin_loop(begin_ns, now),
            };
            let is_over = wake_ns.is_none() && now >= self.window.end_ns;
            if self.stop.is_requested() || self.left == 0 || is_over || now >= give_up_ns {
                break now.min(self.window.end_ns);
            }
            self.wait(wake_ns.unwrap_or(self.window.end_ns))?;
        };
        let [ran, passed] = [thread_cpu_ns() - account.1, now_ns() - account.0];
        Ok((ran as f64 / passed.max(1) as f64, end_ns))
    }

    /// Sends what is due, and gives the time of the next message if there is one before the end.
    fn send_due(&mut self, schedule: &Schedule) -> Option<u64> {
        self.phase = Phase::Exchanging;
        let wake_ns = self.note_due(schedule);
        // All are collected first, so that a client that is behind writes several messages of a
        // connection at once.
        let mut all = std::mem::take(&mut self.due);
        for (index, due_ns) in all.drain(..) {
            if self.window.part(due_ns).is_some() && !self.connections[index].is_over() {
                self.lag.record(Duration::from_nanos(now_ns().saturating_sub(due_ns)));
            }
            self.transmit(index);
        }
        self.due = all;
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
            if due_ns > now_ns() || self.due.len() == SENDS_AT_ONCE {
                return Some(due_ns);
            }
            self.turn = match index + 1 {
                next if next < self.connections.len() => (number, next),
                _ => (number + 1, 0),
            };
            let connection = &mut self.connections[index];
            if !connection.is_over() {
                connection.due += 1;
                self.due.push((index, due_ns));
            }
        }
    }

    /// Begins a closed loop when it is time; gives when to look again.
    fn begin_loop(&mut self, begin_ns: u64, now: u64) -> Option<u64> {
        if now < begin_ns {
            return Some(begin_ns);
        }
        if self.phase == Phase::Waiting {
            self.phase = Phase::Exchanging;
            for index in 0..self.connections.len() {
                self.transmit(index);
            }
        }
        (now < self.window.end_ns).then_some(self.window.end_ns)
    }

    /// When a wait of at most `timeout` ends that begins now; once the load was told to stop, it is
    /// a short one. `begin_ns` is when the phase began.
    fn deadline_ns(&self, begin_ns: u64, timeout: Duration) -> u64 {
        let timeout = if self.stop.is_requested() { timeout.min(STOP_TIMEOUT) } else { timeout };
        begin_ns + timeout.as_nanos() as u64
    }

    /// Waits for echoes in flight, and counts those that do not come.
    fn drain(&mut self) -> Result<(), LoadError> {
        self.phase = Phase::Draining;
        let begin_ns = now_ns();
        // What is settled stays so, and is not looked at again.
        let mut settled = 0;
        loop {
            let left = &self.connections[settled..];
            settled += left.iter().take_while(|connection| connection.is_settled()).count();
            let deadline_ns = self.deadline_ns(begin_ns, self.plan.drain);
            if settled == self.connections.len() || now_ns() >= deadline_ns {
                break;
            }
            self.wait(deadline_ns)?;
        }
        let now = now_ns();
        let mut tally = self.tally.lock().expect("no thread panics");
        for connection in &mut self.connections {
            for message in connection.ledger.stop_waiting() {
                let waited_ns = now.saturating_sub(message.from_ns);
                tally.lost(self.window.part(message.from_ns), waited_ns);
            }
        }
        Ok(())
    }

    /// Closes all connections, and waits briefly for the server to do so.
    fn close(&mut self) -> Result<(), LoadError> {
        self.phase = Phase::Closing;
        for index in 0..self.connections.len() {
            match self.connections[index].state {
                State::Open | State::Leaving => self.start_closing(index),
                State::Reopening => self.end(index),
                State::Closing(_) | State::Ended | State::Failed => {}
            }
        }
        let begin_ns = now_ns();
        while self.left > 0 {
            let deadline_ns = self.deadline_ns(begin_ns, self.plan.close);
            if now_ns() >= deadline_ns {
                self.note_left_open();
                break;
            }
            self.wait(deadline_ns)?;
        }
        Ok(())
    }

    /// Waits until something comes or it is `wake_ns`, and takes what has come.
    fn wait(&mut self, wake_ns: u64) -> Result<(), LoadError> {
        let now = now_ns();
        if now >= self.next_check_ns {
            self.check_closing(now);
        }
        let wake_ns =
            if self.plan.spins { wake_ns.saturating_sub(SPIN.as_nanos() as u64) } else { wake_ns };
        let timeout = if wake_ns <= now { Duration::ZERO } else { CLOSE_CHECK };
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
                TIMER | STOP => {}
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

    /// Drops connections that the server should have closed by now, to open them again.
    fn check_closing(&mut self, now: u64) {
        self.next_check_ns = now + CLOSE_CHECK.as_nanos() as u64;
        if self.reopening.is_none() {
            return;
        }
        for index in 0..self.connections.len() {
            if let State::Closing(since) = self.connections[index].state
                && now.saturating_sub(since) > self.plan.close.as_nanos() as u64
            {
                self.closed(index, End::TimedOut);
            }
        }
    }
}
