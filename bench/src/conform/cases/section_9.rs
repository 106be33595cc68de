//! Section 9: long messages, many fragments, many sends, and round trips.

use super::super::case::Content;
use super::*;

const CLAUSE: &str = "RFC 6455 5.6";
const FRAGMENTS: &str = "RFC 6455 5.4";
/// What text and binary messages are made of. No part of it looks like another, so that an echo in the
/// wrong order differs.
const TEXT: &[u8] = b"The five boxing wizards jump quickly. ";
const BINARY: &[u8] = b"\x00\xfe\x23\xfa\xf0\x81\x7f";
const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
/// How long a long message may take.
const PATIENCE: Duration = Duration::from_secs(100);

fn content(form: Form, bytes: usize) -> Content {
    Content::Same(Payload::Repeated(if form == Form::Text { TEXT } else { BINARY }, bytes))
}

/// A size in words.
fn size(bytes: usize) -> String {
    match bytes {
        MIB.. => format!("{} MiB", bytes / MIB),
        KIB.. => format!("{} KiB", bytes / KIB),
        _ => format!("{bytes} bytes"),
    }
}

/// One message.
fn one(form: Form, bytes: usize) -> RoundTrips {
    let content = content(form, bytes);
    RoundTrips { count: 1, form, content, fragment_bytes: None, chop: Chop::Whole }
}

fn number(group: u16, case: u16) -> Number {
    Number::triple(9, group, case)
}

fn long(group: u16, form: Form) -> impl Iterator<Item = Case> {
    let sizes = [64 * KIB, 256 * KIB, MIB, 4 * MIB, 8 * MIB, 16 * MIB];
    (1..).zip(sizes).map(move |(case, bytes)| {
        round_trips(number(group, case), CLAUSE, one(form, bytes), PATIENCE).says(
            format!("Sends a {form} message of {}.", size(bytes)),
            "The message comes back with the same content.",
        )
    })
}

fn fragmented(group: u16, form: Form) -> impl Iterator<Item = Case> {
    let sizes = [64, 256, KIB, 4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB, MIB, 4 * MIB];
    (1..).zip(sizes).map(move |(case, bytes)| {
        let trips = RoundTrips { fragment_bytes: Some(bytes), ..one(form, 4 * MIB) };
        round_trips(number(group, case), FRAGMENTS, trips, PATIENCE).says(
            format!("Sends a {form} message of 4 MiB in fragments of {}.", size(bytes)),
            "The message comes back with the same content.",
        )
    })
}

fn chopped(group: u16, form: Form) -> impl Iterator<Item = Case> {
    let sizes = [64, 128, 256, 512, 1024, 2048];
    (1..).zip(sizes).map(move |(case, bytes)| {
        let trips = RoundTrips { chop: Chop::Bytes(bytes), ..one(form, MIB) };
        round_trips(number(group, case), CLAUSE, trips, PATIENCE).says(
            format!("Sends a {form} message of 1 MiB in one frame{}.", cut(Chop::Bytes(bytes))),
            "The message comes back with the same content.",
        )
    })
}

fn many(group: u16, form: Form, volume: Volume) -> impl Iterator<Item = Case> {
    let count = match volume {
        Volume::Full => 1000,
        Volume::Quick => 100,
    };
    let sizes = [(0, 60), (16, 60), (64, 60), (256, 120), (1024, 240), (4096, 480)];
    (1..).zip(sizes).map(move |(case, (bytes, seconds))| {
        let trips = RoundTrips { count, ..one(form, bytes) };
        round_trips(number(group, case), CLAUSE, trips, Duration::from_secs(seconds)).says(
            format!(
                "Sends {count} {form} messages of {bytes} bytes, each when the echo of the last has \
                 come."
            ),
            format!("All messages come back with the same content, within {seconds} s."),
        )
    })
}

pub(super) fn cases(volume: Volume) -> Vec<Case> {
    long(1, Form::Text)
        .chain(long(2, Form::Binary))
        .chain(fragmented(3, Form::Text))
        .chain(fragmented(4, Form::Binary))
        .chain(chopped(5, Form::Text))
        .chain(chopped(6, Form::Binary))
        .chain(many(7, Form::Text, volume))
        .chain(many(8, Form::Binary, volume))
        .collect()
}
