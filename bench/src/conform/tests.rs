//! The cases against a peer that the oracle of the testkit plays, which shares no code with the suite: as
//! it should, or with a fault. There is no socket, and time passes as fast as it is waited for.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use ringecho::protocol::extension::Policy;
use ringecho::protocol::handshake::{self, Access, Admission, Subprotocol};
use ringecho::protocol::pool::Budget;
use testkit::client::KEY;
use testkit::frame::{Frame, parse, reply};
use testkit::oracle::{Ending, Owed, Stream};
use testkit::{CLOSE, FIN, PING, PONG, REQUEST, RESPONSE};

use super::case::{Case, Limit, Opening, Weight};
use super::cases::{self, Volume};
use super::deflate::Library;
use super::exchange::{Ended, Exchange, Opened, Role, STALL_TIMEOUT, Want};
use super::frames::{Reader, Rules};
use super::head::Connection;
use super::transcript::Transcript;
use super::verdict::{Behavior, BehaviorClose, Verdict, judge};

mod bounds;
mod own;

/// What a peer does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// Nothing.
    None,
    /// It sends nothing at all.
    Mute,
    /// It does not end the connection after the closing handshake.
    StaysOpen,
    /// It ends the connection instead of sending a close frame.
    NoClose,
    /// Its close frames have code 1001.
    WrongCode,
    /// Its close frames have no code.
    NoCode,
    /// Its close frames have a code that must not be sent.
    InvalidCode,
    /// It resets the connection instead of ending it.
    Resets,
    /// It does not answer pings.
    NoPongs,
    /// Its pongs lack the last byte.
    ShortPongs,
    /// It answers messages as binary.
    AllBinary,
    /// A bit of each echo is wrong, the last one.
    WrongByte,
    /// It sends each echo twice.
    Twice,
    /// It masks its frames.
    Masks,
    /// It sends a ping before each echo, which is allowed.
    Pings,
    /// It fails the connection only when the message is over.
    LateFailure,
    /// It opens a connection whatever the request is.
    OpensAll,
    /// It refuses every request.
    OpensNone,
    /// It ends the connection instead of answering a request.
    HangsUp,
    /// It answers a request with the wrong field.
    WrongAccept,
}

/// A server.
struct Peer {
    fault: Fault,
    /// The beginning of the request; nothing after the opening handshake.
    request: Option<Vec<u8>>,
    /// Everything that it received.
    received: Vec<u8>,
    /// How much of what it owes it has said.
    said: usize,
    has_ended: bool,
}

impl Peer {
    fn new(fault: Fault) -> Peer {
        let received = REQUEST.as_bytes().to_vec();
        Peer { fault, request: None, received, said: RESPONSE.len(), has_ended: false }
    }

    /// What it answers to further bytes.
    fn answer(&mut self, bytes: &[u8]) -> Vec<u8> {
        if self.has_ended || self.fault == Fault::Mute {
            return Vec::new();
        }
        if let Some(mut request) = self.request.take() {
            request.extend_from_slice(bytes);
            return self.open(request);
        }
        self.received.extend_from_slice(bytes);
        let came = self.received.len();
        let stream = Stream {
            bytes: &self.received,
            head: REQUEST.len(),
            status: 101,
            message_max: 1 << 30,
        };
        let owed = Owed::for_stream(&stream);
        let mut due = owed.due_after(came);
        let mut answer = Vec::new();
        let fails_late = self.fault == Fault::LateFailure;
        if owed.has_ended_by(came) && (!fails_late || self.has_whole_message()) {
            due = owed.bytes.len();
            self.has_ended = true;
        }
        // A frame is sent when it is whole, so that it can be changed.
        let whole = owed.boundaries.iter().map(|&(_, owed)| owed).filter(|owed| *owed <= due);
        let due = if self.has_ended { due } else { whole.max().unwrap_or(0).max(self.said) };
        answer.extend(self.changed(&owed.bytes[self.said..due]));
        self.said = due;
        if self.has_ended
            && let Ending::Failed(rule) = owed.ending
        {
            answer.extend(self.changed(&reply(CLOSE, &rule.close_code().to_be_bytes())));
        }
        answer
    }

    /// What it answers to a request, and to the frames behind it.
    fn open(&mut self, request: Vec<u8>) -> Vec<u8> {
        let end = request.windows(4).position(|bytes| bytes == b"\r\n\r\n").map(|end| end + 4);
        let (response, head_bytes) = match (self.fault, end) {
            (Fault::OpensAll | Fault::OpensNone | Fault::HangsUp | Fault::WrongAccept, None) => {
                self.request = Some(request);
                return Vec::new();
            }
            (Fault::OpensAll, Some(end)) => (RESPONSE.to_owned().into_bytes(), end),
            (Fault::WrongAccept, Some(end)) => (RESPONSE.replace("s3pP", "S3pP").into_bytes(), end),
            (Fault::HangsUp, Some(_)) => {
                self.has_ended = true;
                return Vec::new();
            }
            (Fault::OpensNone, Some(_)) => {
                self.has_ended = true;
                return b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n".to_vec();
            }
            _ => {
                let terms = handshake::Terms {
                    policy: Policy::Mirror,
                    subprotocol: &Subprotocol::Any,
                    access: &Access::default(),
                    recompression: &Budget::new(1 << 20),
                };
                match handshake::answer(&request, Admission::Open, &terms) {
                    Ok(Some(accepted)) => (accepted.response, accepted.head_bytes),
                    Ok(None) => {
                        self.request = Some(request);
                        return Vec::new();
                    }
                    Err(rejection) => {
                        self.has_ended = true;
                        return rejection.response();
                    }
                }
            }
        };
        [response, self.answer(&request[head_bytes..])].concat()
    }

    /// Frames as its fault makes them.
    fn changed(&self, bytes: &[u8]) -> Vec<u8> {
        parse(bytes).into_iter().flat_map(|frame| self.changed_frame(frame)).collect()
    }

    /// Whether the last frame of a message has come, or something that is no frame.
    fn has_whole_message(&self) -> bool {
        let rules = Rules { is_masked: true, allows_compression: false, payload_max: 1 << 30 };
        let mut reader = Reader::new(rules, &self.received[REQUEST.len()..]);
        loop {
            match reader.take() {
                Ok(Some(frame)) if !frame.is_final => {}
                Ok(Some(_)) | Err(_) => return true,
                Ok(None) => return false,
            }
        }
    }

    fn changed_frame(&self, frame: Frame) -> Vec<u8> {
        let Frame { first, payload } = frame;
        let is_data = first & 15 < 8;
        let is_first = is_data && first & 15 > 0;
        let frame = |payload: &[u8]| reply(first, payload);
        match self.fault {
            Fault::NoClose if first == CLOSE => Vec::new(),
            Fault::WrongCode if first == CLOSE => frame(b"\x03\xe9"),
            Fault::NoCode if first == CLOSE => frame(b""),
            Fault::InvalidCode if first == CLOSE => frame(b"\x03\xed"),
            Fault::NoPongs if first == PONG => Vec::new(),
            Fault::ShortPongs if first == PONG => frame(&payload[..payload.len().max(1) - 1]),
            Fault::AllBinary if is_first => reply(first & FIN | 2, &payload),
            Fault::WrongByte if is_data && !payload.is_empty() => {
                let mut payload = payload.clone();
                *payload.last_mut().expect("a byte") ^= 1;
                frame(&payload)
            }
            Fault::Twice if is_first && first & FIN != 0 => frame(&payload).repeat(2),
            Fault::Masks => testkit::frame(first, &payload),
            Fault::Pings if is_first => [reply(PING, b"?"), frame(&payload)].concat(),
            _ => frame(&payload),
        }
    }
}

/// Runs a case to its end.
fn transcript(case: &Case, fault: Fault) -> Transcript {
    let library = Library::default();
    let mut now = Instant::now();
    let begin = now;
    let (mut peer, mut answer) = (Peer::new(fault), Vec::new());
    let mut exchange = match case.opening {
        Opening::Request(..) => {
            peer.request = Some(Vec::new());
            let connection = Connection { host: "localhost", target: "/", key: KEY };
            Exchange::opening(case, &library, &connection, 1, now)
        }
        Opening::Given | Opening::Response(..) => {
            let opened = Opened { role: Role::Client, terms: None, received: &[], seed: 1 };
            Exchange::new(case, &library, opened, now)
        }
    };
    loop {
        assert!(now - begin < Duration::from_secs(1000), "{} does not end", case.number);
        match exchange.want(now) {
            Want::Nothing => return exchange.into_transcript(),
            Want::Drop | Want::Reset | Want::Seal(_) => exchange.dropped(),
            Want::End => {
                exchange.half_closed();
                peer.has_ended = fault != Fault::Mute;
            }
            Want::Send(_) => {
                let chop = exchange.chop().to_vec();
                exchange.sent(chop.len());
                answer.extend(peer.answer(&chop));
            }
            Want::Receive(until) if answer.is_empty() => match (peer.has_ended, fault) {
                (false, _) | (true, Fault::StaysOpen) => now = until,
                (true, Fault::Resets) => exchange.ended(Ended::Reset),
                (true, _) => exchange.ended(Ended::Closed),
            },
            Want::Receive(_) => {
                let room = exchange.room();
                let count = answer.len().min(room.len());
                room[..count].copy_from_slice(&answer[..count]);
                answer.drain(..count);
                exchange.received(count, now);
            }
        }
    }
}

fn verdict(case: &Case, fault: Fault) -> Verdict {
    judge(case, &transcript(case, fault))
}

/// The cases of sections 1 to 7 and 10.
fn short_cases() -> Vec<Case> {
    let cases = cases::all(Volume::Full).into_iter();
    cases.filter(|case| !matches!(case.number.section(), 9 | 12 | 13)).collect()
}

/// The numbers of the cases that have a verdict.
fn with(fault: Fault, is_so: impl Fn(&Verdict) -> bool) -> Vec<String> {
    let cases = short_cases();
    let found = cases.iter().filter(|case| is_so(&verdict(case, fault)));
    found.map(|case| case.number.to_string()).collect()
}

/// The numbers of the cases on which the end weighs so.
fn weighing(weight: Weight) -> Vec<String> {
    let cases = short_cases();
    let found = cases.iter().filter(|case| case.close.weight == weight);
    found.map(|case| case.number.to_string()).collect()
}

#[test]
fn a_peer_that_does_what_it_should_passes_strictly() {
    for case in short_cases() {
        for fault in [Fault::None, Fault::Pings] {
            let verdict = verdict(&case, fault);
            let wanted = match case.number.to_string().as_str() {
                "7.1.6" | "7.13.1" | "7.13.2" => {
                    (Behavior::Informational, BehaviorClose::Informational)
                }
                _ => (Behavior::Ok, BehaviorClose::Ok),
            };
            let found = (verdict.behavior, verdict.behavior_close);
            assert_eq!(found, wanted, "{} {fault:?}: {verdict:?}", case.number);
        }
    }
}

/// Every fault changes the verdict of the cases that are about it, and of those only.
#[test]
fn faults_are_found_where_they_are() {
    let failed = |fault| with(fault, |verdict| verdict.behavior == Behavior::Failed);
    let closed = |fault, close| with(fault, move |verdict| verdict.behavior_close == close);
    let all = short_cases().len();
    // What need not be answered with anything but the end.
    let informational = 3;

    assert_eq!(
        failed(Fault::NoPongs),
        [
            "2.1", "2.2", "2.3", "2.4", "2.6", "2.9", "2.10", "2.11", "5.6", "5.7", "5.8", "5.19",
            "5.20",
        ]
    );
    assert_eq!(
        failed(Fault::ShortPongs),
        ["2.2", "2.3", "2.4", "2.6", "2.9", "2.10", "2.11", "5.6", "5.7", "5.8", "5.19", "5.20",]
    );
    assert_eq!(closed(Fault::StaysOpen, BehaviorClose::FailedByClient).len(), {
        // Where a complete handshake is needed, it is not complete.
        all - informational - closed(Fault::StaysOpen, BehaviorClose::Unclean).len()
    });
    let needed = short_cases().iter().filter(|case| case.close.needs_handshake).count();
    // 7.1.6 is one of them.
    assert_eq!(closed(Fault::NoClose, BehaviorClose::Unclean).len(), needed - 1);
    assert_eq!(failed(Fault::NoClose), Vec::<String>::new());
    // Only 7.7.2 allows this code.
    assert_eq!(closed(Fault::WrongCode, BehaviorClose::WrongCode).len(), all - informational - 1);
    let mut counts = weighing(Weight::CodeCounts);
    counts.retain(|number| number != "7.7.2");
    assert_eq!(failed(Fault::WrongCode), counts);
    assert_eq!(closed(Fault::NoCode, BehaviorClose::Ok).len(), all - informational);
    assert_eq!(failed(Fault::InvalidCode).len(), all - informational);
    // The peer has closed all the same, and it is its code that is wrong.
    let invalid = closed(Fault::InvalidCode, BehaviorClose::WrongCode);
    assert_eq!(invalid.len(), all - informational);
    assert_eq!(closed(Fault::Resets, BehaviorClose::Ok).len(), all - informational);
    assert_eq!(failed(Fault::Masks).len(), all - informational);
    assert_eq!(closed(Fault::Mute, BehaviorClose::Ok), Vec::<String>::new());
    // Where nothing is expected to come back, nothing is missing. But text that is not UTF-8 was not
    // noticed.
    let mute = failed(Fault::Mute);
    let unnoticed = weighing(Weight::EndCounts);
    assert!(unnoticed.len() > 50 && unnoticed.iter().all(|number| mute.contains(number)));
    assert!(["2.5", "3.1", "7.3.3"].iter().all(|number| !mute.contains(&(*number).to_owned())));

    let echoes = |form: &str| {
        let cases = short_cases();
        let expects = |case: &&Case| {
            let [(_, events), ..] = &case.outcomes[..] else { return true };
            events.iter().any(|event| format!("{event:?}").contains(form))
        };
        let found = cases.iter().filter(expects).map(|case| case.number.to_string());
        found.filter(|number| number != "7.1.6").collect::<Vec<_>>()
    };
    assert_eq!(failed(Fault::AllBinary), echoes("Message(Text"));
    let empty = ["1.1.1", "1.2.1", "6.1.1", "6.1.2"];
    let mut filled = echoes("Message(");
    filled.retain(|number| !empty.contains(&number.as_str()));
    assert_eq!(failed(Fault::WrongByte), filled);
}

#[test]
fn a_peer_that_fails_late_is_not_strict() {
    let late = with(Fault::LateFailure, |verdict| verdict.behavior == Behavior::NonStrict);
    assert_eq!(late, ["6.4.1", "6.4.2", "6.4.3", "6.4.4"]);
}

/// A peer that says nothing costs the time of a limit and of a closing handshake, not more.
#[test]
fn every_case_ends_whatever_the_peer_does() {
    for case in short_cases() {
        let closing = transcript(&case, Fault::Mute).closing;
        let (Limit::Fail(limit) | Limit::Close(limit)) = case.limit;
        assert!(limit <= Duration::from_secs(10), "{}", case.number);
        assert!(closing.was_close_handshake_timeout && closing.dropped_by_me, "{}", case.number);
    }
}

/// What takes minutes need not, if nothing moves.
#[test]
fn round_trips_that_stand_still_end_before_their_limit() {
    let cases = cases::all(Volume::Full);
    let case = cases.iter().find(|case| case.number.to_string() == "9.8.6").expect("it is there");
    assert!(matches!(case.limit, Limit::Close(limit) if limit > 10 * STALL_TIMEOUT));
    let (library, begin) = (Library::default(), Instant::now());
    let opened = Opened { role: Role::Client, terms: None, received: &[], seed: 1 };
    let mut exchange = Exchange::new(case, &library, opened, begin);
    let send = |exchange: &mut Exchange<'_>, now| {
        while let Want::Send(_) = exchange.want(now) {
            exchange.sent(exchange.chop().len());
        }
        exchange.want(now)
    };
    assert_eq!(send(&mut exchange, begin), Want::Receive(begin + STALL_TIMEOUT));
    // Every byte counts.
    let later = begin + STALL_TIMEOUT / 2;
    exchange.room()[0] = 0x82;
    exchange.received(1, later);
    assert_eq!(exchange.want(later), Want::Receive(later + STALL_TIMEOUT));
    let end = later + STALL_TIMEOUT;
    assert!(matches!(exchange.want(end), Want::Send(_)), "a close frame");
    send(&mut exchange, end);
    let transcript = exchange.into_transcript();
    assert!(transcript.closing.closed_by_me);
    assert_eq!(judge(case, &transcript).behavior, Behavior::Failed);
}

#[test]
fn a_message_that_comes_twice_is_noticed() {
    let twice = with(Fault::Twice, |verdict| verdict.behavior == Behavior::Failed);
    let once: BTreeMap<String, Behavior> = short_cases()
        .iter()
        .map(|case| (case.number.to_string(), verdict(case, Fault::None).behavior))
        .collect();
    assert!(twice.iter().all(|number| once[number] == Behavior::Ok), "{twice:?}");
    for number in ["1.1.1", "1.2.8", "2.9", "3.2", "6.5.1", "7.1.1"] {
        let is_data = number != "2.9";
        assert_eq!(twice.iter().any(|found| found == number), is_data, "{number}");
    }
}

/// The same case tests a client: this side does not mask, and ends the TCP connection.
#[test]
fn a_case_runs_in_the_other_role() {
    let cases = short_cases();
    let case = cases.iter().find(|case| case.number.to_string() == "1.1.2").expect("it is there");
    let (library, now) = (Library::default(), Instant::now());
    let opened = Opened { role: Role::Server, terms: None, received: &[], seed: 1 };
    let mut exchange = Exchange::new(case, &library, opened, now);
    let mut answers = Vec::new();
    loop {
        match exchange.want(now) {
            Want::Nothing => break,
            Want::Drop | Want::Reset | Want::Seal(_) | Want::End => exchange.dropped(),
            Want::Send(_) => {
                for frame in parse(exchange.chop()) {
                    answers.push(testkit::frame(frame.first, &frame.payload));
                }
                exchange.sent(exchange.chop().len());
            }
            Want::Receive(_) => {
                let answer = answers.remove(0);
                exchange.room()[..answer.len()].copy_from_slice(&answer);
                exchange.received(answer.len(), now);
            }
        }
    }
    let transcript = exchange.into_transcript();
    assert!(transcript.closing.is_server && transcript.closing.dropped_by_me);
    let verdict = judge(case, &transcript);
    let found = (verdict.behavior, verdict.behavior_close);
    assert_eq!(found, (Behavior::Ok, BehaviorClose::Ok), "{verdict:?}");
}
