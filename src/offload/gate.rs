//! When the kernel may echo on a connection, and when all that it has echoed has left: the side of
//! user space.

use super::record::Record;

/// Frames in a row that the kernel could have echoed, before it may again after it had to pass
/// something up; doubled each time that it has echoed few since.
const RUN_MAX: u32 = 16;
/// Echoed so many frames since the gate was opened, it was worth the while.
const WORTHWHILE: u64 = 4;

/// A connection of which the kernel echoes small frames by itself, while its gate is open.
///
/// User space then has nothing to do for it: all that was passed up is answered, the answers are
/// sent or about to be, and no receive is armed.
#[derive(Debug)]
pub struct Gate {
    is_open: bool,
    /// Bytes received since it was offloaded.
    received: u64,
    /// Bytes that were handed over for sending, from the first.
    sent: u64,
    /// Frames in a row that the kernel could have echoed, and how many of them are asked for.
    run: u32,
    run_wanted: u32,
    /// Frames echoed when the gate was opened.
    echoed_before: u64,
}

impl Gate {
    /// The gate of a connection , shut. `sent` bytes were given to the kernel before.
    pub fn new(sent: u64) -> Gate {
        Gate { is_open: false, received: 0, sent, run: 0, run_wanted: 0, echoed_before: 0 }
    }

    /// Whether user space leaves the connection to the kernel.
    pub fn is_open(&self) -> bool {
        self.is_open
    }

    /// Bytes were received.
    pub fn received(&mut self, bytes: u64, record: &Record) {
        self.received += bytes;
        record.receive(self.received);
    }

    /// They are answered, and the kernel could have echoed them, or not.
    pub fn answered(&mut self, could_echo: bool) {
        self.run = if could_echo { self.run.saturating_add(1) } else { 0 };
    }

    /// Bytes were handed over for sending.
    pub fn sent(&mut self, bytes: u64) {
        self.sent += bytes;
    }

    /// Whether enough of what came could have been left to the kernel.
    pub fn is_ready(&self) -> bool {
        !self.is_open && self.run >= self.run_wanted
    }

    /// Whether the kernel has passed up more than was received.
    pub fn has_more(&self, record: &Record) -> bool {
        self.received != record.passed()
    }

    /// Leaves the connection to the kernel, if all that it passed up is answered. The caller has
    /// answered all that was received, and handed the answers over for sending.
    pub fn open(&mut self, record: &Record) {
        self.echoed_before = record.echoed_frames();
        self.is_open = !self.has_more(record) && record.open(self.received, self.sent);
    }

    /// The kernel has passed something up, which shut the gate, or the peer has hung up.
    pub fn wake(&mut self, record: &Record) {
        if !self.is_open {
            return;
        }
        self.is_open = false;
        self.run = 0;
        let is_worthwhile = record.echoed_frames() - self.echoed_before >= WORTHWHILE;
        self.run_wanted = if is_worthwhile { 0 } else { (self.run_wanted * 2).clamp(1, RUN_MAX) };
    }

    /// Takes the connection back from the kernel.
    pub fn shut(&mut self, record: &Record) {
        record.shut();
        self.wake(record);
    }

    /// Of a gate that was shut: whether all that the kernel has echoed stands in the socket's queue,
    /// of which `written` bytes were given to it from the first. Before that, what user space sends
    /// could overtake echoes, and closing the socket would lose them.
    pub fn is_flushed(&self, record: &Record, written: u64) -> bool {
        record.is_quiet() && written >= self.sent + record.echoed_out()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate() -> (Gate, Record) {
        let record = Record::default();
        record.reset();
        (Gate::new(0), record)
    }

    #[test]
    fn it_opens_at_once_and_after_useless_openings_later_and_later() {
        let (mut gate, record) = gate();
        assert!(gate.is_ready());
        for wanted in [1, 2, 4, 8, 16, 16] {
            gate.open(&record);
            assert!(gate.is_open());
            gate.wake(&record);
            for _ in 0..wanted {
                assert!(!gate.is_ready());
                gate.answered(true);
            }
            assert!(gate.is_ready());
        }
        gate.answered(false);
        assert!(!gate.is_ready(), "the run is over");
    }

    #[test]
    fn it_is_flushed_when_the_echoes_are_in_the_queue_too() {
        let (mut gate, record) = gate();
        gate.sent(129);
        gate.shut(&record);
        assert!(!gate.is_flushed(&record, 128));
        assert!(gate.is_flushed(&record, 129));
    }
}
