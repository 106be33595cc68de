//! The steps of the simulation: which are possible, which of them is taken, and for how long the pump waits.

use std::time::Duration;

use super::checks::Rest;
use super::{Connection, Flight, Kernel};
use crate::engine::ring::{Completion, Sent};
use crate::engine::simulation::peer::Act;

/// Steps after which a simulation has failed to end.
const STEPS_MAX: u64 = 200_000_000;

/// What can happen next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
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

impl Kernel {
    /// Takes one possible step; returns false if there is none.
    pub(super) fn step(&mut self) -> bool {
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
            let number = self.active[at];
            if self.connections.is_idle(number, self.now) {
                continue;
            }
            self.find_steps_of(number, steps);
            if steps.len() > around {
                return;
            }
            let Connection { link, place, .. } = &self.connections[number];
            // What the program does changes no connection.
            if place.is_none() && !self.is_still {
                let wakes_at = link.wakes_at();
                let until = if wakes_at > self.now { wakes_at } else { Duration::MAX };
                self.connections.note_idle(number, until);
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
    pub(super) fn wait(&mut self, until: Option<Duration>) {
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
                let is_final = next.is_none() && !self.is_still;
                self.check_rest(if is_final { Rest::Final } else { Rest::Passing }, until);
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
}
