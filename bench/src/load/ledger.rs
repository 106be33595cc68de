//! The messages of one connection and how each was answered, so that every message is counted
//! exactly once.
//!
//! Messages are answered in the order in which they were sent. Those below `next` are settled: an
//! echo came, right or wrong, or the echo of a later message came first and they are `missing`.
//! Those from `next` to `sent` are in flight, and later ones are not sent yet. The ledger knows no
//! payloads, no sockets and no clock; [`Pace`] says when a message was due.

use std::collections::VecDeque;

use super::schedule::Schedule;

/// What decides when messages are sent.
#[derive(Debug, Clone, Copy)]
pub(super) enum Pace {
    /// A schedule.
    Open(Schedule),
    /// Echoes: each lets the next message leave, from this time on.
    Closed { begin_ns: u64 },
}

/// A message by its number, and the time from which its latency counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) number: u64,
    pub(super) from_ns: u64,
}

/// What an echo answers.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answered {
    /// A message in flight.
    InOrder(Message),
    /// A message whose echo was missing when that of a later one came.
    OutOfOrder(Message),
    /// No message: its number was answered already, or nothing is awaited.
    Nothing,
}

/// The ledger of one connection.
#[derive(Debug)]
pub(super) struct Ledger {
    connection: usize,
    pace: Pace,
    sent: u64,
    next: u64,
    /// When the messages in flight were sent, in a closed loop.
    sent_ns: VecDeque<u64>,
    /// In ascending order of their numbers.
    missing: Vec<Message>,
}

impl Ledger {
    pub(super) fn new(connection: usize, pace: Pace) -> Ledger {
        let (sent_ns, missing) = (VecDeque::new(), Vec::new());
        Ledger { connection, pace, sent: 0, next: 0, sent_ns, missing }
    }

    /// Messages sent.
    pub(super) fn sent(&self) -> u64 {
        self.sent
    }

    /// The number of the message that is answered next.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// Messages whose echoes are still waited for.
    pub(super) fn in_flight(&self) -> u64 {
        self.sent - self.next
    }

    /// Notes that the next message is sent. Only a closed loop asks for the time.
    #[inline]
    pub(super) fn send(&mut self, now_ns: impl FnOnce() -> u64) {
        if let Pace::Closed { .. } = self.pace {
            self.sent_ns.push_back(now_ns());
        }
        self.sent += 1;
    }

    /// Settles the message that is answered next.
    #[inline]
    fn settle(&mut self) -> Message {
        let number = self.next;
        self.next += 1;
        let from_ns = match self.pace {
            Pace::Open(schedule) => schedule.due_ns(self.connection, number),
            Pace::Closed { .. } => {
                self.sent_ns.pop_front().expect("each message in flight has its time")
            }
        };
        Message { number, from_ns }
    }

    /// Notes that an echo of message `number` has come.
    #[inline]
    pub(super) fn answer(&mut self, number: u64) -> Answered {
        if number < self.next {
            let at = self.missing.binary_search_by_key(&number, |message| message.number);
            return match at {
                Ok(at) => Answered::OutOfOrder(self.missing.remove(at)),
                Err(_) => Answered::Nothing,
            };
        }
        if number >= self.sent {
            return Answered::Nothing;
        }
        while self.next < number {
            let skipped = self.settle();
            self.missing.push(skipped);
        }
        Answered::InOrder(self.settle())
    }

    /// Stops waiting: all messages in flight become missing. Returns all missing messages.
    pub(super) fn stop_waiting(&mut self) -> &[Message] {
        while self.next < self.sent {
            let message = self.settle();
            self.missing.push(message);
        }
        &self.missing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger(sent: u64) -> Ledger {
        let mut ledger = Ledger::new(0, Pace::Closed { begin_ns: 0 });
        for number in 0..sent {
            ledger.send(|| 1000 + number);
        }
        ledger
    }

    fn message(number: u64) -> Message {
        Message { number, from_ns: 1000 + number }
    }

    #[test]
    fn a_message_that_is_skipped_is_lost_and_the_later_ones_are_not() {
        let mut ledger = ledger(5);
        assert_eq!(ledger.answer(0), Answered::InOrder(message(0)));
        assert_eq!(ledger.answer(3), Answered::InOrder(message(3)));
        assert_eq!((ledger.next(), ledger.in_flight()), (4, 1));
        assert_eq!(ledger.answer(4), Answered::InOrder(message(4)));
        assert_eq!(ledger.stop_waiting(), [message(1), message(2)]);
    }

    #[test]
    fn an_echo_out_of_order_settles_its_message() {
        let mut ledger = ledger(3);
        assert_eq!(ledger.answer(1), Answered::InOrder(message(1)));
        assert_eq!(ledger.answer(0), Answered::OutOfOrder(message(0)));
        assert_eq!(ledger.answer(0), Answered::Nothing);
        assert_eq!(ledger.stop_waiting(), [message(2)]);
        // It comes after all, too late.
        assert_eq!(ledger.answer(2), Answered::OutOfOrder(message(2)));
    }

    #[test]
    fn an_echo_that_nothing_awaits_answers_nothing() {
        let mut ledger = ledger(1);
        assert_eq!(ledger.answer(1), Answered::Nothing);
        assert_eq!(ledger.answer(0), Answered::InOrder(message(0)));
        assert_eq!(ledger.answer(0), Answered::Nothing);
    }

    #[test]
    fn the_time_of_a_message_is_its_schedules_in_an_open_loop() {
        let schedule = Schedule::new(50, 2, 1000.0);
        let mut ledger = Ledger::new(1, Pace::Open(schedule));
        ledger.send(|| unreachable!("the schedule has the time"));
        let due = Message { number: 0, from_ns: schedule.due_ns(1, 0) };
        assert_eq!(ledger.answer(0), Answered::InOrder(due));
    }
}
