//! Peers that send without end, and what is kept of it.

use super::*;

/// An exchange of a case on a connection that has just been opened.
fn exchange<'a>(case: &'a Case, library: &'a Library, now: Instant) -> Exchange<'a> {
    let opened = Opened { role: Role::Client, terms: None, received: &[], seed: 1 };
    Exchange::new(case, library, opened, now)
}

fn case(number: &str) -> Case {
    let mut all = cases::all(Volume::Quick).into_iter();
    all.find(|case| case.number.to_string() == number).expect("a case")
}

/// Receives `bytes` so many times.
fn flood(exchange: &mut Exchange<'_>, bytes: &[u8], times: usize, now: Instant) {
    for _ in 0..times {
        exchange.want(now);
        exchange.room()[..bytes.len()].copy_from_slice(bytes);
        exchange.received(bytes.len(), now);
    }
}

#[test]
fn what_follows_a_broken_rule_is_not_kept() {
    let (library, case, now) = (Library::default(), case("1.1.2"), Instant::now());
    let mut exchange = exchange(&case, &library, now);
    flood(&mut exchange, &[0xff; 64 << 10], 5000, now);
    assert!(exchange.room().len() < 2 << 20, "{} bytes", exchange.room().len());
    let transcript = exchange.into_transcript();
    assert!(transcript.violation.is_some());
    assert!(transcript.log.len() < 3000, "{} lines", transcript.log.len());
    assert_eq!(transcript.traffic.received[&(64 << 10)], 5000);
}

#[test]
fn messages_without_end_are_counted_and_not_kept() {
    let (library, case, now) = (Library::default(), case("5.1"), Instant::now());
    let mut exchange = exchange(&case, &library, now);
    let message = reply(testkit::BINARY, &[7; 60_000]);
    flood(&mut exchange, &message, 2000, now);
    let transcript = exchange.into_transcript();
    assert_eq!(transcript.messages.received.messages, 2000);
    // 64 MiB and a message.
    assert!(transcript.events.len() < 1200, "{} messages", transcript.events.len());
    assert_eq!(judge(&case, &transcript).behavior, Behavior::Failed);
}

/// Pings are no answers, however many come: the echo behind them counts.
#[test]
fn an_echo_behind_thousands_of_pings_is_one() {
    let (library, case, now) = (Library::default(), case("1.1.2"), Instant::now());
    let mut exchange = exchange(&case, &library, now);
    let pings = reply(PING, b"").repeat(100);
    flood(&mut exchange, &pings, 100, now);
    flood(&mut exchange, &reply(testkit::TEXT, &[b'*'; 125]), 1, now);
    flood(&mut exchange, &reply(CLOSE, &1000_u16.to_be_bytes()), 1, now);
    exchange.ended(Ended::Closed);
    let transcript = exchange.into_transcript();
    assert!(transcript.events.len() < 1100, "{} events", transcript.events.len());
    let verdict = judge(&case, &transcript);
    assert_eq!((verdict.behavior, verdict.behavior_close), (Behavior::Ok, BehaviorClose::Ok));
}
