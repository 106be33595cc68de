//! A simulated machine: the CPU of one worker, the client that sends to it, and a neighbour.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use testkit::Random;

use super::super::clock::Clock;
use super::super::waiter::{Source, Waiter};

/// How long one look takes.
const LOOK: Duration = Duration::from_nanos(500);
/// What a message takes of the worker, its reply included.
const WORK: Duration = Duration::from_micros(5);
/// What a message takes of the client, besides what it thinks.
const CLIENT: Duration = Duration::from_micros(6);
/// A switch from one thread of a CPU to another.
const SWITCH: Duration = Duration::from_micros(2);
/// How long a thread may run while others want its CPU.
const SLICE: Duration = Duration::from_millis(3);

/// When an open loop sends its first message.
const FIRST: Duration = Duration::from_millis(1);

/// Who sends, and when.
#[derive(Debug, Clone, Copy)]
pub(super) enum Client {
    /// Sends the next message this long after it has the echo, in µs, and sleeps until it has it.
    Blocking { think_us: u64, jitter: Jitter },
    /// The same, and never sleeps.
    Spinning { think_us: u64, jitter: Jitter },
    /// Sends so many messages per second, whatever comes back.
    Open { rate: u64, jitter: Jitter },
    /// Sends so many messages one after the other as `Blocking` does, then pauses, in µs.
    Bursts { messages: u64, pause_us: u64 },
    /// Sends from the worker's CPU, as soon as it has the echo and the CPU.
    SameCpu,
}

/// How regular a client is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Jitter {
    /// To a tenth.
    Little,
    /// Any time up to twice the mean; one in fifty messages comes a millisecond late.
    Much,
    /// Independent arrivals: exponential times.
    Poisson,
}

/// Who else wants the worker's CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Neighbour {
    /// Nobody.
    None,
    /// A thread that computes without a pause.
    Busy,
}

/// What happened in a phase.
#[derive(Debug, Default)]
pub(super) struct Measured {
    /// Waits for a message that was not there yet, after the first few of the phase.
    waits: u64,
    /// Those of them that ended without a sleep.
    spun: u64,
    /// Time spent in spins that found nothing, of all waits.
    in_vain: Duration,
    length: Duration,
    /// All messages of the phase.
    messages: u64,
}

impl Measured {
    pub(super) fn spun_share(&self) -> f64 {
        self.spun as f64 / self.waits.max(1) as f64
    }

    pub(super) fn in_vain_us_per_second(&self) -> f64 {
        self.in_vain.as_secs_f64() * 1e6 / self.length.as_secs_f64()
    }
}

#[derive(Debug)]
struct World {
    now: Duration,
    wake_up: Duration,
    client: Client,
    neighbour: Neighbour,
    /// When the messages arrive that were sent and not received.
    arrivals: VecDeque<Duration>,
    /// Of a client on the worker's CPU: it has an echo and waits for the CPU.
    is_client_ready: bool,
    /// When the next message of an open loop is due.
    due: Duration,
    burst: u64,
    /// Since when the worker has had its CPU.
    running_since: Duration,
    waited_for_cpu: Duration,
    /// When the worker last went to sleep.
    asleep: Option<Duration>,
    random: Random,
}

/// A machine, which is also the clock of its worker and what it waits on.
#[derive(Debug, Clone)]
pub(super) struct Machine(Rc<RefCell<World>>);

impl Machine {
    pub(super) fn new(wake_up: Duration, random: Random) -> Machine {
        Machine(Rc::new(RefCell::new(World {
            now: Duration::from_secs(1),
            wake_up,
            client: Client::SameCpu,
            neighbour: Neighbour::None,
            arrivals: VecDeque::new(),
            is_client_ready: false,
            due: Duration::ZERO,
            burst: 0,
            running_since: Duration::ZERO,
            waited_for_cpu: Duration::ZERO,
            asleep: None,
            random,
        })))
    }

    /// Another client takes the place of the one before.
    pub(super) fn begin(&self, client: Client, neighbour: Neighbour) {
        let mut world = self.0.borrow_mut();
        (world.client, world.neighbour) = (client, neighbour);
        world.due = world.now + FIRST;
        world.arrivals.clear();
        world.is_client_ready = false;
        world.burst = 0;
        world.send_next();
    }

    /// Serves the client for `length`, and measures.
    pub(super) fn serve(
        &self,
        waiter: &mut Waiter<'_, Machine>,
        length: Duration,
        settled_after: u64,
    ) -> Measured {
        let mut source = self.clone();
        let begin = self.now();
        let mut measured = Measured::default();
        while self.now() < begin + length {
            let before = self.now();
            let is_ready = self.0.borrow_mut().has_message();
            self.0.borrow_mut().asleep = None;
            waiter.wait(None, &mut source).expect("the machine is not broken");
            let mut world = self.0.borrow_mut();
            if !is_ready && measured.messages >= settled_after {
                measured.waits += 1;
                measured.spun += u64::from(world.asleep.is_none());
            }
            if let Some(asleep) = world.asleep {
                measured.in_vain += asleep - before;
            }
            measured.messages += world.answer();
        }
        measured.length = self.now() - begin;
        measured
    }
}

impl World {
    fn has_message(&mut self) -> bool {
        self.fill();
        self.arrivals.front().is_some_and(|&at| at <= self.now)
    }

    /// An open loop sends what is due, and one more.
    fn fill(&mut self) {
        while let Client::Open { rate, jitter } = self.client
            && self.arrivals.back().is_none_or(|&at| at <= self.now)
        {
            let at = self.due.max(self.arrivals.back().copied().unwrap_or_default());
            self.arrivals.push_back(at);
            let interval = self.vary(1_000_000 / rate, jitter);
            self.due += interval;
        }
    }

    /// Takes all messages that are there, and replies. Returns how many.
    fn answer(&mut self) -> u64 {
        let mut messages = 0;
        while self.has_message() {
            self.arrivals.pop_front();
            self.now += WORK;
            messages += 1;
        }
        if messages > 0 {
            self.send_next();
        }
        messages
    }

    /// The client has its echo, and sends the next message.
    fn send_next(&mut self) {
        let (wake_up, think) = match self.client {
            Client::Blocking { think_us, jitter } => (self.wake_up, self.vary(think_us, jitter)),
            Client::Spinning { think_us, jitter } => (Duration::ZERO, self.vary(think_us, jitter)),
            Client::Open { .. } => return,
            Client::Bursts { messages, pause_us } => {
                self.burst += 1;
                let is_over = self.burst.is_multiple_of(messages);
                (self.wake_up, Duration::from_micros(if is_over { pause_us } else { 0 }))
            }
            Client::SameCpu => {
                self.is_client_ready = true;
                return;
            }
        };
        self.arrivals.push_back(self.now + wake_up + CLIENT + think);
    }

    fn vary(&mut self, mean_us: u64, jitter: Jitter) -> Duration {
        let unit = self.random.below(1 << 20) as f64 / f64::from(1 << 20);
        let mean = Duration::from_micros(mean_us);
        match jitter {
            Jitter::Little => mean.mul_f64(0.9 + unit / 5.0),
            Jitter::Much if self.random.one_in(50) => mean + Duration::from_millis(1),
            Jitter::Much => mean.mul_f64(unit * 2.0),
            Jitter::Poisson => mean.mul_f64(-(1.0 - unit).ln()),
        }
    }

    /// Others get the CPU if they want it and the worker has had it for a time slice.
    fn share(&mut self) {
        if self.now - self.running_since < SLICE {
            return;
        }
        let lost = match self.neighbour {
            Neighbour::Busy => SLICE,
            Neighbour::None if self.is_client_ready => SWITCH * 2 + CLIENT,
            Neighbour::None => return,
        };
        self.let_client_run();
        self.waited_for_cpu += lost;
        self.now += lost;
        self.running_since = self.now;
    }

    fn let_client_run(&mut self) {
        if std::mem::take(&mut self.is_client_ready) {
            let at = self.now + SWITCH + CLIENT;
            self.arrivals.push_back(at);
        }
    }
}

impl Clock for Machine {
    fn now(&self) -> Duration {
        self.0.borrow().now
    }

    fn waited_for_cpu(&self) -> Option<Duration> {
        Some(self.0.borrow().waited_for_cpu)
    }
}

impl Source for Machine {
    fn look(&mut self) -> io::Result<bool> {
        let mut world = self.0.borrow_mut();
        world.now += LOOK;
        world.share();
        Ok(world.has_message())
    }

    fn sleep(&mut self, until: Option<Duration>) -> io::Result<()> {
        assert_eq!(until, None, "the simulation has no deadlines");
        let mut world = self.0.borrow_mut();
        if world.has_message() {
            return Ok(());
        }
        world.asleep = Some(world.now);
        world.let_client_run();
        let arrival = *world.arrivals.front().expect("the client sends");
        let wake_up =
            if matches!(world.client, Client::SameCpu) || world.neighbour == Neighbour::Busy {
                // The CPU is not idle; the worker waits until whoever runs there has switched.
                world.waited_for_cpu += SWITCH;
                SWITCH
            } else {
                world.wake_up
            };
        world.now = arrival + wake_up;
        world.running_since = world.now;
        Ok(())
    }
}
