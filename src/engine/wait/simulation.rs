//! The [`Waiter`] on simulated machines, with simulated clients and neighbours, by table.
//!
//! The simulation has one CPU for the worker and, unless a client shares it, others for the clients.
//! It knows how long a thread takes to wake up, that looking takes time, and that a thread which never
//! sleeps loses its CPU for a time slice if others want it. It has no caches, no interrupts and no host
//! that takes CPUs away.

mod machine;
mod table;

use std::time::Duration;

use testkit::{Random, cases};

use self::machine::{Machine, Measured};
use self::table::{Phase, ROWS, Row, Share};
use super::pacer::Pace;
use super::waiter::Waiter;
use super::{Pacer, WaitStrategy, Waited};
use crate::metrics::Counters;

/// Runs the phases of a row one after the other; returns those that did not go as expected.
fn run(row: &Row, random: Random) -> Vec<String> {
    let micros = |time_us: u64| Duration::from_micros(time_us);
    let measured = row.measured_us.unwrap_or(row.wake_up_us);
    let pace = Pace::new(row.spin_us.map(micros), Some(micros(measured)));
    let machine = Machine::new(micros(row.wake_up_us), random);
    let counters = Counters::default();
    let strategy = WaitStrategy::Adaptive;
    let mut waiter = Waiter::new(strategy, pace, machine.clone(), &counters);
    let phases = row.phases.iter().filter_map(|phase| {
        machine.begin(phase.client, phase.neighbour);
        let measured = machine.serve(&mut waiter, phase.length(), phase.settled_after);
        unexpected(row, phase, &measured)
    });
    phases.collect()
}

/// What did not go as expected in a phase.
fn unexpected(row: &Row, phase: &Phase, measured: &Measured) -> Option<String> {
    let share = measured.spun_share();
    let in_vain_us = measured.in_vain_us_per_second();
    let is_expected = match phase.spins {
        Share::Nearly(all) => share >= all,
        Share::AtMost(most) => share <= most,
        Share::Any => true,
    };
    let text = format!(
        "{}, {:?}: spun for {share:.3} of the messages, {in_vain_us:.0} µs per second in vain; \
         expected {:?}, at most {} µs; {measured:?}",
        row.name, phase.client, phase.spins, phase.in_vain_us_max
    );
    println!("{text}");
    let is_cheap = in_vain_us <= phase.in_vain_us_max as f64;
    (!is_expected || !is_cheap).then_some(text)
}

#[test]
fn every_row_of_the_table_holds() {
    for case in cases("every_row_of_the_table_holds", 2) {
        let mut random = case.random.clone();
        let unexpected: Vec<String> = ROWS.iter().flat_map(|row| run(row, random.fork())).collect();
        assert!(unexpected.is_empty(), "{unexpected:#?}");
    }
}

const PACE: Pace =
    Pace { spin_max: Duration::from_micros(150), wake_up: Duration::from_micros(25) };

/// A pacer that has seen a message come after 40 µs.
fn spinning() -> Pacer {
    let mut pacer = Pacer::new(PACE);
    pacer.learn(Waited::Slept(Duration::from_micros(65)));
    pacer
}

#[test]
fn the_longest_spin_follows_from_the_wake_up() {
    let spin_max = |wake_up_us| Pace::new(None, Some(Duration::from_micros(wake_up_us))).spin_max;
    for (wake_up_us, spin_us) in [(0, 50), (3, 62), (25, 150), (100, 450), (200, 500)] {
        assert_eq!(spin_max(wake_up_us), Duration::from_micros(spin_us));
    }
    let asked = Some(Duration::from_micros(7));
    assert_eq!(Pace::new(asked, None).spin_max, Duration::from_micros(7));
}

#[test]
fn it_sleeps_until_a_message_comes_soon() {
    let mut pacer = Pacer::new(PACE);
    assert_eq!(pacer.window(Duration::ZERO), None);
    pacer.learn(Waited::Slept(Duration::from_millis(3)));
    assert_eq!(pacer.window(Duration::ZERO), None);
    assert!(spinning().window(Duration::ZERO).is_some());
}

#[test]
fn no_window_is_longer_than_the_longest_spin() {
    let mut pacer = spinning();
    for after_us in [10, 150, 20, 149, 1, 60, 140] {
        pacer.learn(Waited::Spun(Duration::from_micros(after_us)));
        let window = pacer.window(Duration::ZERO).expect("it spins");
        assert!(window <= PACE.spin_max, "{window:?}");
    }
    let spin_max = Duration::from_micros(7);
    let mut pacer = Pacer::new(Pace { spin_max, ..PACE });
    pacer.learn(Waited::Slept(Duration::from_micros(30)));
    assert_eq!(pacer.window(Duration::ZERO), Some(spin_max));
}

#[test]
fn rests_double_until_spinning_goes_well_for_as_long() {
    let mut pacer = spinning();
    let mut now = Duration::from_secs(10);
    let mut rest = Duration::from_millis(5);
    for _ in 0..20 {
        assert!(pacer.window(now).is_some());
        pacer.leave_cpu(now);
        assert_eq!(pacer.window(now + rest - PACE.wake_up), None, "{rest:?}");
        now += rest;
        rest = (rest * 2).min(Duration::from_secs(1));
    }
    assert!(pacer.window(now).is_some());
    now += Duration::from_millis(1001);
    pacer.leave_cpu(now);
    now += Duration::from_millis(5);
    assert!(pacer.window(now).is_some(), "the first rest again");
}
