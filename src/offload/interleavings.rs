//! Every order in which the program and user space can meet at a record, for a few packets.
//!
//! User space is the real one: [`Gate`] and [`Record`], used as the pump uses them. The program is a model of
//! `verdict.bpf.c`, which makes one step for each access that user space can notice; so is the kernel's worker,
//! which moves what the program has let through. Between any two accesses of user space, the checker lets the
//! kernel make any number of steps, and goes through all these choices one after the other. Only the number of
//! times that the kernel comes in between is bounded; while user space sleeps or waits, the kernel may do what it
//! likes.
//!
//! Here a write is seen at once. That the memory orderings in the source are enough for that is the subject of
//! `orderings.rs`.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use super::gate::Gate;
use super::record::{Record, program};

/// Bytes of a packet, and of its answer.
const REQUEST: u64 = 10;
const REPLY: u64 = 6;

/// How often the kernel may come in between two accesses of user space.
const INTERRUPTIONS: usize = 2;

/// A sequence of choices, each with its number of alternatives.
#[derive(Debug, Default)]
struct Choices {
    made: Vec<(usize, usize)>,
    at: usize,
}

impl Choices {
    /// One of `count` alternatives, the first one when a choice is made for the first time.
    fn pick(&mut self, count: usize) -> usize {
        if self.at == self.made.len() {
            self.made.push((0, count));
        }
        let (choice, alternatives) = self.made[self.at];
        assert_eq!(alternatives, count, "a run depends on nothing but its choices");
        self.at += 1;
        choice
    }

    /// Goes on to the next sequence, if there is one.
    fn advance(&mut self) -> bool {
        self.at = 0;
        while let Some((choice, count)) = self.made.pop() {
            if choice + 1 < count {
                self.made.push((choice + 1, count));
                return true;
            }
        }
        false
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Packet {
    number: usize,
    /// Whether it is a frame that the program may echo.
    is_frame: bool,
}

/// Where the program's run for a packet is.
#[derive(Debug, Clone, Copy)]
enum Step {
    Begun,
    Open,
    Shut,
    Passed,
    Noticing,
    Ending { is_echo: bool },
    Done { is_echo: bool },
}

/// What reached the socket's send queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sent {
    Answer(usize),
    Close,
}

/// The kernel's side: the program, the worker that moves what it let through, and the socket.
#[derive(Debug)]
struct Kernel {
    record: Rc<Record>,
    choices: Choices,
    interruptions: usize,
    coming: VecDeque<Packet>,
    run: Option<(Packet, Step)>,
    /// What the program let through, echoes and packets for user space, in order.
    backlog: VecDeque<(Packet, bool)>,
    readable: VecDeque<Packet>,
    notices: usize,
    /// Bytes that ever were in the send queue.
    written: u64,
    sent: Vec<Sent>,
}

impl Kernel {
    /// Between two accesses of user space.
    fn interrupt(&mut self) {
        let mut has_begun = false;
        while (has_begun || self.interruptions > 0) && self.can_step() && self.choices.pick(2) == 1
        {
            if !has_begun {
                has_begun = true;
                self.interruptions -= 1;
            }
            self.step();
        }
    }

    fn has_run(&self) -> bool {
        self.run.is_some() || !self.coming.is_empty()
    }

    fn can_step(&self) -> bool {
        self.has_run() || !self.backlog.is_empty()
    }

    /// Makes one step, and says whether there was one to make.
    fn step(&mut self) -> bool {
        match (self.has_run(), self.backlog.is_empty()) {
            (false, true) => return false,
            (true, true) => self.run_program(),
            (false, false) => self.run_worker(),
            (true, false) if self.choices.pick(2) == 0 => self.run_program(),
            (true, false) => self.run_worker(),
        }
        true
    }

    fn run_program(&mut self) {
        let record = self.record.clone();
        let Some((packet, step)) = self.run.take() else {
            let packet = self.coming.pop_front().expect("there is something to do");
            record.begin();
            self.run = Some((packet, Step::Begun));
            return;
        };
        let next = match step {
            Step::Begun if record.is_open() => Step::Open,
            Step::Begun => Step::Shut,
            Step::Open if packet.is_frame && record.is_clear(self.written) => {
                record.echo(REPLY, Duration::ZERO);
                Step::Ending { is_echo: true }
            }
            Step::Open => Step::Shut,
            Step::Shut => {
                assert!(record.pass(REQUEST, u64::MAX));
                Step::Passed
            }
            Step::Passed if record.is_noticed() => Step::Noticing,
            Step::Passed => Step::Ending { is_echo: false },
            Step::Noticing => {
                record.notify();
                self.notices += 1;
                Step::Ending { is_echo: false }
            }
            Step::Ending { is_echo } => {
                record.finish();
                Step::Done { is_echo }
            }
            // The kernel acts on the verdict when the program has returned.
            Step::Done { is_echo } => return self.backlog.push_back((packet, is_echo)),
        };
        self.run = Some((packet, next));
    }

    fn run_worker(&mut self) {
        match self.backlog.pop_front() {
            Some((packet, true)) => self.send(Sent::Answer(packet.number)),
            Some((packet, false)) => self.readable.push_back(packet),
            None => {}
        }
    }

    fn send(&mut self, what: Sent) {
        self.written += REPLY;
        self.sent.push(what);
    }
}

/// How user space goes about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Habit {
    /// As the pump does.
    Right,
    /// It looks whether there is more before it says that it has taken the notice.
    LooksFirst,
    /// It sends its close frame without waiting for the echoes.
    ClosesAtOnce,
}

/// A worker with one connection.
struct User {
    kernel: Rc<RefCell<Kernel>>,
    record: Rc<Record>,
    gate: Gate,
    /// Answers that are handed over for sending and not yet sent.
    replies: Vec<Packet>,
    habit: Habit,
}

impl User {
    /// Serves until nothing happens any more, or until it closes.
    fn serve(&mut self, closes: bool) {
        self.read();
        loop {
            if closes && self.kernel.borrow_mut().choices.pick(2) == 1 {
                return self.close();
            }
            while self.kernel.borrow().notices == 0 {
                if !self.kernel.borrow_mut().step() {
                    return;
                }
            }
            self.kernel.borrow_mut().notices -= 1;
            let has_more = self.habit != Habit::LooksFirst || self.gate.has_more(&self.record);
            self.kernel.borrow_mut().interrupt();
            self.record.take_notice();
            self.gate.wake(&self.record);
            if has_more {
                self.read();
            }
        }
    }

    /// Receives and answers until everything that was passed up is answered.
    fn read(&mut self) {
        loop {
            let packet = self.kernel.borrow_mut().readable.pop_front();
            if let Some(packet) = packet {
                self.gate.received(REQUEST, &self.record);
                if packet.is_frame {
                    self.gate.answered_echoable();
                } else {
                    self.gate.answered_other();
                }
                self.gate.sent(REPLY);
                self.replies.push(packet);
                continue;
            }
            if self.gate.has_more(&self.record) {
                self.submit();
                let mut kernel = self.kernel.borrow_mut();
                let has_arrived = !kernel.readable.is_empty();
                assert!(has_arrived || kernel.step(), "what was passed up never arrives");
                continue;
            }
            if self.gate.is_ready() {
                self.gate.open(&self.record);
            }
            self.submit();
            if self.gate.is_open() || !self.gate.has_more(&self.record) {
                return;
            }
        }
    }

    fn submit(&mut self) {
        self.kernel.borrow_mut().interrupt();
        for packet in self.replies.drain(..) {
            self.kernel.borrow_mut().send(Sent::Answer(packet.number));
        }
    }

    fn close(&mut self) {
        self.gate.shut(&self.record);
        if self.habit != Habit::ClosesAtOnce {
            self.wait_for_echoes();
        }
        self.kernel.borrow_mut().send(Sent::Close);
        while self.kernel.borrow_mut().step() {}
    }

    fn wait_for_echoes(&self) {
        // Whether the kernel had nothing left to do before the last look.
        let mut is_over = false;
        loop {
            let written = self.kernel.borrow().written;
            if self.gate.is_flushed(&self.record, written) {
                return;
            }
            assert!(!is_over, "the echoes are never sent");
            is_over = !self.kernel.borrow_mut().step();
        }
    }
}

/// Goes through every order for packets of which these are frames to be echoed. Returns how many there are, or
/// what was sent in the first that is wrong.
fn explore(frames: &[bool], habit: Habit, closes: bool) -> Result<usize, Vec<Sent>> {
    let mut choices = Choices::default();
    let mut runs = 0;
    loop {
        let record = Rc::new(Record::default());
        record.reset();
        let coming = frames.iter().enumerate();
        let coming = coming.map(|(number, &is_frame)| Packet { number, is_frame }).collect();
        let kernel = Rc::new(RefCell::new(Kernel {
            record: record.clone(),
            choices,
            interruptions: INTERRUPTIONS,
            coming,
            run: None,
            backlog: VecDeque::new(),
            readable: VecDeque::new(),
            notices: 0,
            written: 0,
            sent: Vec::new(),
        }));
        let interrupted = kernel.clone();
        program::set_hook(Box::new(move || {
            // Not while the kernel itself looks at the record.
            if let Ok(mut kernel) = interrupted.try_borrow_mut() {
                kernel.interrupt();
            }
        }));
        let (gate, replies) = (Gate::new(0), Vec::new());
        User { kernel: kernel.clone(), record, gate, replies, habit }.serve(closes);
        runs += 1;
        let mut kernel = kernel.borrow_mut();
        let answers = (0..frames.len()).map(Sent::Answer);
        let is_right = match kernel.sent.split_last() {
            // Echoes that the program counted come first; what it passed up is for somebody else.
            Some((Sent::Close, before)) => before.iter().copied().eq(answers.take(before.len())),
            Some(_) | None => kernel.sent.iter().copied().eq(answers),
        };
        if !is_right {
            return Err(std::mem::take(&mut kernel.sent));
        }
        choices = std::mem::take(&mut kernel.choices);
        if !choices.advance() {
            return Ok(runs);
        }
    }
}

/// All ways in which each of `count` packets may be a frame to be echoed.
fn packets(count: usize) -> impl Iterator<Item = Vec<bool>> {
    (0..1_usize << count).map(move |bits| (0..count).map(|place| bits >> place & 1 == 1).collect())
}

#[test]
fn in_every_order_each_packet_is_answered_once_and_in_its_turn() {
    for frames in packets(2).chain([vec![true, false, true]]) {
        let runs = explore(&frames, Habit::Right, false).unwrap_or_else(|sent| panic!("{sent:?}"));
        assert!(runs > 1000, "{runs} orders of {frames:?}");
    }
}

#[test]
fn in_every_order_the_close_frame_comes_after_every_echo() {
    for frames in packets(2) {
        let runs = explore(&frames, Habit::Right, true).unwrap_or_else(|sent| panic!("{sent:?}"));
        assert!(runs > 1000, "{runs} orders of {frames:?}");
    }
}

#[test]
fn a_notice_that_is_taken_too_late_loses_a_packet() {
    let lost = packets(2).filter_map(|frames| explore(&frames, Habit::LooksFirst, false).err());
    assert!(lost.count() > 0, "the order in which a packet is forgotten was not found");
}

#[test]
fn a_close_frame_that_does_not_wait_overtakes_an_echo() {
    let sent = explore(&[true, true], Habit::ClosesAtOnce, true).expect_err("it overtakes one");
    assert_ne!(sent.last(), Some(&Sent::Close), "{sent:?}");
}
