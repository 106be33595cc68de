//! The kernel's side of offloaded sockets: the program that sees each packet, one step at a time, and the
//! queue of echoes and of what was passed up after them.
//!
//! It is separate from the kernel because the program also runs while the pump does, between any two
//! accesses of the pump to a record.

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use super::scenario::Scenario;
use crate::offload::FRAME_BYTES_MAX;
use crate::offload::record::Record;
use testkit::Random;

/// Where a run of the program is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Begun,
    /// It saw the gate open, and has decided nothing.
    Open,
    /// It passes the packet up.
    Shut,
    Passed,
    /// It is to send a notice.
    Noticing,
    /// It has counted the packet.
    Echoed,
    Counted,
    /// It is over, and the kernel has yet to do what it said.
    Done,
}

/// A run of the program, for one packet.
#[derive(Debug)]
struct Run {
    stage: Stage,
    packet: Vec<u8>,
    /// The packet has become its echo.
    is_echo: bool,
    /// The packet is dropped.
    is_lost: bool,
}

#[derive(Debug)]
pub(super) enum Parcel {
    Echo(VecDeque<u8>),
    Passed(Vec<u8>),
}

/// An offloaded socket.
#[derive(Debug)]
pub(super) struct OffloadedSocket {
    /// What the peer has written and the program has not seen, and how much of it was there before
    /// the socket was offloaded: the program sees that with what comes next, or with a receive.
    unseen: VecDeque<u8>,
    stale: usize,
    /// Each packet is a frame, if it can be.
    is_orderly: bool,
    /// Bytes that the peer has acknowledged, and that were given to the socket for sending.
    pub(super) acknowledged: usize,
    pub(super) written: usize,
    run: Option<Run>,
    /// In order, what is on its way to the peer, and what was passed up after it.
    queue: VecDeque<Parcel>,
    receivable: VecDeque<u8>,
    /// Bytes of frames echoed, and frames, that the links do not know of.
    pub(super) eaten: usize,
    pub(super) frames_eaten: u64,
    /// A send has failed: what comes is dropped.
    is_dead: bool,
    /// The program drops what comes, as too much is not received.
    pub(super) is_overrun: bool,
    is_detached: bool,
}

impl OffloadedSocket {
    pub(super) fn write(&mut self, bytes: &[u8]) {
        self.unseen.extend(bytes);
        if !bytes.is_empty() {
            self.stale = 0;
        }
    }

    /// Has the program see what was there before.
    pub(super) fn poke(&mut self) {
        self.stale = 0;
    }

    pub(super) fn is_stale(&self) -> bool {
        self.stale > 0
    }

    pub(super) fn can_run(&self) -> bool {
        self.run.is_some() || !self.is_detached && self.stale == 0 && !self.unseen.is_empty()
    }

    /// Whether the program has seen all, so that the end of the stream can be received.
    pub(super) fn has_seen_all(&self) -> bool {
        self.run.is_none() && self.unseen.is_empty()
    }

    pub(super) fn receivable(&self) -> usize {
        self.receivable.len()
    }

    pub(super) fn receive(&mut self, bytes: usize) -> Vec<u8> {
        self.receivable.drain(..bytes).collect()
    }

    /// What the kernel's worker has to move next.
    pub(super) fn head(&mut self) -> Option<&mut Parcel> {
        self.queue.front_mut()
    }

    pub(super) fn peek(&self) -> Option<&Parcel> {
        self.queue.front()
    }

    /// The worker is done with the head of the queue.
    pub(super) fn pop(&mut self) {
        if let Some(Parcel::Passed(packet)) = self.queue.pop_front() {
            self.receivable.extend(packet);
        }
    }

    /// A send of the worker has failed.
    pub(super) fn die(&mut self) {
        self.is_dead = true;
        self.queue.clear();
    }

    pub(super) fn detach(&mut self) {
        self.is_detached = true;
    }

    pub(super) fn is_detached(&self) -> bool {
        self.is_detached
    }

    /// Whether an echo is on its way to the socket's queue.
    pub(super) fn is_echoing(&self) -> bool {
        self.run.as_ref().is_some_and(|run| run.is_echo)
            || self.queue.iter().any(|parcel| matches!(parcel, Parcel::Echo(_)))
    }

    /// Whether one may still be decided on.
    pub(super) fn is_deciding(&self) -> bool {
        self.run.as_ref().is_some_and(|run| run.stage == Stage::Open)
    }

    /// Cuts the next packet off.
    fn cut(&mut self, random: &mut Random) -> Vec<u8> {
        let unseen = self.unseen.make_contiguous();
        let all = unseen.len();
        let bytes = match random.below(8) {
            _ if self.is_orderly => {
                frame_bytes(unseen).filter(|&bytes| bytes <= all).unwrap_or(all)
            }
            0..5 => frame_bytes(unseen).filter(|&bytes| bytes <= all).unwrap_or(all),
            5 => 1 + random.below(all),
            _ => all,
        };
        self.unseen.drain(..bytes).collect()
    }

    /// The kernel does what the program said.
    fn settle(&mut self, run: Run) {
        if self.is_dead || run.is_lost {
            return;
        }
        if run.is_echo {
            self.queue.push_back(Parcel::Echo(run.packet.into()));
        } else if self.queue.is_empty() {
            self.receivable.extend(run.packet);
        } else {
            self.queue.push_back(Parcel::Passed(run.packet));
        }
    }
}

/// All offloaded sockets, and what the program shares with user space.
#[derive(Debug)]
pub(super) struct Program {
    random: Random,
    pub(super) records: Vec<Rc<Record>>,
    sockets: Vec<Option<OffloadedSocket>>,
    /// The places of notices that user space has not taken.
    pub(super) notices: VecDeque<usize>,
    flight_max: i64,
    unreceived_max: u64,
    /// The time by which it goes.
    pub(super) now: Duration,
}

impl Program {
    pub(super) fn new(scenario: &Scenario, random: &mut Random) -> Program {
        Program {
            random: random.fork(),
            records: (0..scenario.places).map(|_| Rc::default()).collect(),
            sockets: (0..scenario.places).map(|_| None).collect(),
            notices: VecDeque::new(),
            flight_max: scenario.flight_max,
            unreceived_max: scenario.unreceived_max,
            now: Duration::ZERO,
        }
    }

    /// Takes a socket in, of which `unseen` was not received yet.
    pub(super) fn attach(&mut self, unseen: &[u8]) -> Option<usize> {
        if self.random.one_in(8) {
            return None;
        }
        let place = self.sockets.iter().position(Option::is_none)?;
        self.records[place].reset();
        let socket = OffloadedSocket {
            unseen: unseen.iter().copied().collect(),
            stale: self.random.below(unseen.len() + 1),
            is_orderly: self.random.below(4) > 0,
            acknowledged: 0,
            written: 0,
            run: None,
            queue: VecDeque::new(),
            receivable: VecDeque::new(),
            eaten: 0,
            frames_eaten: 0,
            is_dead: false,
            is_overrun: false,
            is_detached: false,
        };
        self.sockets[place] = Some(socket);
        Some(place)
    }

    pub(super) fn socket(&self, place: usize) -> &OffloadedSocket {
        self.sockets[place].as_ref().expect("it is offloaded")
    }

    pub(super) fn socket_mut(&mut self, place: usize) -> &mut OffloadedSocket {
        self.sockets[place].as_mut().expect("it is offloaded")
    }

    /// The socket is closed, with all that is queued.
    pub(super) fn free(&mut self, place: usize) {
        self.sockets[place] = None;
    }

    /// Runs while the pump does.
    pub(super) fn interleave(&mut self) {
        let count = self.sockets.len();
        if count == 0 || !self.random.one_in(4) {
            return;
        }
        let first = self.random.below(count);
        let mut places = (first..count).chain(0..first);
        let runs =
            |place: &usize| self.sockets[*place].as_ref().is_some_and(OffloadedSocket::can_run);
        let Some(place) = places.find(runs) else { return };
        for _ in 0..1 + self.random.below(8) {
            self.step(place);
        }
    }

    /// Moves the program on by one step for the socket at `place`, if there is something to see.
    pub(super) fn step(&mut self, place: usize) {
        let Some(socket) = &mut self.sockets[place] else { return };
        if !socket.can_run() {
            return;
        }
        let record = &self.records[place];
        let Some(mut run) = socket.run.take() else {
            let packet = socket.cut(&mut self.random);
            record.begin();
            socket.run = Some(Run { stage: Stage::Begun, packet, is_echo: false, is_lost: false });
            return;
        };
        let length = run.packet.len() as u64;
        run.stage = match run.stage {
            Stage::Begun if record.is_open() => Stage::Open,
            Stage::Begun => Stage::Shut,
            Stage::Open => {
                let flight = record.flight(socket.acknowledged as u64) + length as i64 - 4;
                let is_next = flight <= self.flight_max && record.is_clear(socket.written as u64);
                match echo(&run.packet).filter(|_| is_next) {
                    Some(echo) => {
                        record.echo(echo.len() as u64, self.now);
                        socket.eaten += run.packet.len();
                        socket.frames_eaten += 1;
                        run.packet = echo;
                        run.is_echo = true;
                        Stage::Echoed
                    }
                    None => Stage::Shut,
                }
            }
            Stage::Shut => {
                run.is_lost = !record.pass(length, self.unreceived_max);
                socket.is_overrun |= run.is_lost;
                Stage::Passed
            }
            Stage::Passed if record.is_noticed() => Stage::Noticing,
            Stage::Noticing => {
                record.notify();
                self.notices.push_back(place);
                Stage::Counted
            }
            Stage::Passed | Stage::Echoed => Stage::Counted,
            Stage::Counted => {
                record.finish();
                Stage::Done
            }
            Stage::Done => return socket.settle(run),
        };
        socket.run = Some(run);
    }
}

/// The bytes of the data frame that begins here, if it looks like one and its length is there.
fn frame_bytes(bytes: &[u8]) -> Option<usize> {
    match *bytes {
        [_, second @ 0x80..0xfe, ..] => Some(6 + usize::from(second & 0x7f)),
        [_, 0xfe, high, low, ..] => Some(8 + usize::from(u16::from_be_bytes([high, low]))),
        _ => None,
    }
}

/// The echo of a packet that is one whole, small, masked data frame, a text only if it is ASCII.
fn echo(packet: &[u8]) -> Option<Vec<u8>> {
    let first = *packet.first().filter(|first| matches!(first, 0x81 | 0x82))?;
    if frame_bytes(packet)? != packet.len() || packet.len() > FRAME_BYTES_MAX {
        return None;
    }
    let header = if packet[1] == 0xfe { 4 } else { 2 };
    if header == 4 && packet.len() < 8 + 126 {
        return None;
    }
    let (key, payload) = packet[header..].split_first_chunk::<4>()?;
    let mut echo = packet[..header].to_vec();
    echo[1] &= 0x7f;
    echo.extend(payload.iter().zip(0..).map(|(byte, n)| byte ^ key[n % 4]));
    (first == 0x82 || echo[header..].is_ascii()).then_some(echo)
}
