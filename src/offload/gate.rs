//! User space's decisions for an offloaded connection: when the kernel may echo, and when all its echoes
//! are in the socket's queue. `record` is what the kernel's program sees of them.

use super::record::Record;

/// The longest run of frames that the kernel could have echoed, before it may echo again after it had to
/// pass something up. The run doubles each time that the kernel has echoed few frames since.
const RUN_MAX: u32 = 16;
/// Frames that the kernel must have echoed for an opening of the gate to have been worthwhile.
const WORTHWHILE: u64 = 4;

/// The gate of one connection. While it is open, the kernel echoes small frames by itself.
///
/// User space then has nothing to do for the connection: everything passed up is answered, the answers
/// are sent or about to be, and no receive is in flight.
#[derive(Debug)]
pub struct Gate {
    is_open: bool,
    /// Bytes received since the connection was attached.
    received: u64,
    /// Bytes handed over for sending, from the first one on.
    sent: u64,
    /// Frames in a row that the kernel could have echoed, and how many of them are required.
    run: u32,
    run_wanted: u32,
    /// Frames that the kernel had echoed when the gate was opened.
    echoed_before: u64,
}

impl Gate {
    /// The gate of a connection, shut. `sent` bytes were given to the kernel before.
    pub fn new(sent: u64) -> Gate {
        Gate { is_open: false, received: 0, sent, run: 0, run_wanted: 0, echoed_before: 0 }
    }

    /// Whether the connection is left to the kernel.
    pub fn is_open(&self) -> bool {
        self.is_open
    }

    /// Bytes were received.
    pub fn received(&mut self, bytes: u64, record: &Record) {
        self.received += bytes;
        record.receive(self.received);
    }

    /// A frame that the kernel could have echoed was answered.
    pub fn answered_echoable(&mut self) {
        self.run = self.run.saturating_add(1);
    }

    /// Something else was answered.
    pub fn answered_other(&mut self) {
        self.run = 0;
    }

    /// Bytes were handed over for sending.
    pub fn sent(&mut self, bytes: u64) {
        self.sent += bytes;
    }

    /// Whether the gate is shut and enough frames in a row could have been left to the kernel.
    pub fn is_ready(&self) -> bool {
        !self.is_open && self.run >= self.run_wanted
    }

    /// Whether the kernel has passed up more than was received.
    pub fn has_more(&self, record: &Record) -> bool {
        self.received != record.passed()
    }

    /// Leaves the connection to the kernel, if everything that it passed up was received. The caller has
    /// answered what was received, and handed the answers over for sending.
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

    /// For a gate that was shut: whether everything that the kernel has echoed is in the socket's queue, to
    /// which `written` bytes were given from the first one on. Before that, what user space sends could
    /// overtake echoes, and closing the socket would lose them.
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
                gate.answered_echoable();
            }
            assert!(gate.is_ready());
        }
        gate.answered_other();
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
