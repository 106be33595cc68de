//! permessage-deflate, compared with a client of the test's own.
//!
//! The client reads the server's answer to its offer by itself and compresses as far back as the
//! answer allows, with flate2 or by hand: zlib has no window of 256 octets, and never looks back as
//! far as its window goes. What comes back is inflated twice. flate2 shares its inflater with the
//! server, and that one takes references of any distance; the [`Inflater`] here is plain and slow,
//! shares nothing, and knows the greatest distance.
//!
//! Invariant: what is answered depends on what was received, and not on how it was cut. What cannot
//! be inflated, says the wrong thing or too much fails the connection with the octet that makes it
//! certain.

mod support;

use std::collections::HashMap;
use std::io::Write as _;
use std::net::Shutdown;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use flate2::{Compress, Decompress, FlushCompress, FlushDecompress, Status};
use ringecho::buffer::{Cursors, HEADROOM, Region, Spill};
use ringecho::metrics::Counters;
use ringecho::protocol::close::CloseCode;
use ringecho::protocol::deflate::compressed_max;
use ringecho::protocol::violation::Violation;
use ringecho::protocol::{Admission, Connection, Context, Next, Policy, Protocol, Settings};
use rustix::process::Signal;
use support::{
    BINARY, CLOSE, Client, FIN, PING, PONG, REQUEST, Random, Server, TEXT, cases, frame,
    limit_receiving, reply, resident_octets, say, wait_until,
};

/// RSV1: the message is compressed.
const RSV1: u8 = 0x40;
/// What section 7.2.1 of RFC 7692 takes off the end of a message.
const TAIL: [u8; 4] = [0, 0, 0xff, 0xff];
/// The largest message taken where the test names no other.
const MESSAGE_MAX: u64 = 1 << 20;
/// The widest window, in bits.
const BITS_MAX: u32 = 15;
/// Both ways to echo what is compressed.
const POLICIES: [Policy; 2] = [Policy::Mirror, Policy::Deflate];
/// Octets that a region has behind its headroom.
const ROOMS: [usize; 4] = [16, 64, 1024, 16384];

#[test]
fn every_combination_of_parameters_mirrored_where_they_allow_it() {
    every_combination("every_combination_of_parameters_mirrored", Policy::Mirror);
}

#[test]
fn every_combination_of_parameters_compressed_again() {
    every_combination("every_combination_of_parameters_compressed", Policy::Deflate);
}

fn every_combination(test: &'static str, policy: Policy) {
    let offers = Offer::all();
    let mut echoed = [0; 3];
    for mut case in cases(test, offers.len()) {
        // Seeds follow each other, so each offer has its turn.
        let offer = offers[(case.seed % offers.len() as u64) as usize];
        let size = if case.seed % 23 == 0 { Size::Large } else { Size::Small };
        let random = &mut case.random;
        let counters = Counters::default();
        let level = 1 + random.below(9) as u8;
        let settings =
            Settings { protocol: Protocol::WebSocket, message_max: MESSAGE_MAX, policy, level };
        let context = Context::new(settings, &counters);
        let mut peer = Peer::new(random.pick(&ROOMS), &context);
        let response = peer.handshake(&offer.field());
        let agreed = offer.answered(&response, policy);
        let script = Script::write(agreed, size, random);
        peer.holds = Some(Random(random.next()));
        peer.feed(&script.octets, &random.cuts(script.octets.len()));
        peer.send(usize::MAX);
        assert_eq!(peer.next, Next::Receive, "{offer:?} {script:?}");
        assert!(peer.spill.is_none(), "memory is kept of {offer:?} {script:?}");
        script.check(&peer.sent, &format!("{offer:?} {policy:?}"));
        let compressed = script.compressed_messages();
        let is_mirrored = agreed.is_some_and(|agreed| agreed.is_mirrored);
        let expected = if is_mirrored { (compressed, 0) } else { (0, compressed) };
        let counted = (counters.messages_mirrored.value(), counters.messages_recompressed.value());
        assert_eq!(counted, expected, "{offer:?} {policy:?}");
        assert_eq!(counters.messages.value(), script.messages.len() as u64);
        echoed[agreed.map_or(0, |agreed| 1 + usize::from(agreed.is_mirrored))] += 1;
    }
    // Declined are windows of 256 octets that the server would have to compress for.
    let expected = match policy {
        Policy::Mirror => [4, 24, 332],
        Policy::Deflate => [40, 320, 0],
        Policy::Off => unreachable!("nothing is compressed"),
    };
    assert_eq!(echoed, expected, "declined, compressed again, mirrored");
}

#[test]
fn over_sockets_mirrored() {
    over_sockets("over_sockets_mirrored", "mirror", &["--buffers", "2", "--buffer-size", "1KiB"]);
}

#[test]
fn over_sockets_compressed_again() {
    over_sockets("over_sockets_compressed_again", "deflate", &[]);
}

/// Random scripts on four connections at a time, each read late or at once.
fn over_sockets(test: &'static str, compression: &str, arguments: &[&str]) {
    let policy = if compression == "mirror" { Policy::Mirror } else { Policy::Deflate };
    let server = Server::start(&[&["--compression", compression], arguments].concat());
    let offers = Offer::all();
    let cases = Mutex::new(cases(test, 100));
    let next = || cases.lock().ok()?.next();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while let Some(mut case) = next() {
                    let random = &mut case.random;
                    let offer = random.pick(&offers);
                    let (mut client, agreed) = connect(&server, offer, policy);
                    let size = if random.one_in(40) { Size::Large } else { Size::Small };
                    let script = Script::write(agreed, size, random);
                    let mut socket = client.stream().try_clone().expect("a descriptor");
                    let cuts = random.cuts(script.octets.len());
                    let replies = thread::scope(|scope| {
                        scope.spawn(|| {
                            let mut from = 0;
                            for &cut in cuts.iter().chain([&script.octets.len()]) {
                                let octets = &script.octets[from..cut];
                                socket.write_all(octets).expect("the server reads to the end");
                                from = cut;
                            }
                            socket.shutdown(Shutdown::Write).expect("still connected");
                        });
                        if random.one_in(3) {
                            thread::sleep(Duration::from_millis(20));
                        }
                        client.read_to_end()
                    });
                    let replies = replies.expect("FIN and not RST");
                    script.check(&replies, &format!("{offer:?} {policy:?}"));
                }
            });
        }
    });
    let ended = server.terminate();
    assert!(ended.status.success(), "{ended:?}");
    assert_eq!(ended.count("protocol_violations"), 0);
    assert_eq!(ended.count("connections_open"), 0);
}

/// Section 7.2.3 of RFC 7692, and blocks that no compressor writes but any may.
#[test]
fn examples() {
    for (payload, message) in [
        (&b"\xf2\x48\xcd\xc9\xc9\x07\x00"[..], &b"Hello"[..]),
        (b"\x00\x05\x00\xfa\xffHello\x00", b"Hello"),
        (b"\xf3\x48\xcd\xc9\xc9\x07\x00\x00", b"Hello"),
        (b"\xf2\x48\x05\x00\x00\x00\xff\xff\xca\xc9\xc9\x07\x00", b"Hello"),
        (b"\x00", b""),
        (b"\x00\x00\x00\xff\xff\x00", b""),
        // The data set ends with the block, and so does the octet.
        (b"\x01\x00\x00\xff\xff\x00", b""),
        // What the sender took off belongs to a block that has four octets, the last or not.
        (b"\x00\x04\x00\xfb\xff", b"\x00\x00\xff\xff"),
        (b"\x01\x04\x00\xfb\xff", b"\x00\x00\xff\xff"),
    ] {
        assert_eq!(judge(&Inflater::default(), payload, true).as_deref(), Ok(message));
        for policy in POLICIES {
            check_verdicts(&frame(BINARY | RSV1, payload), &[payload], policy, "an example");
        }
    }
    // The second message is a reference to the first, and the third to both.
    let messages = [&b"\xf2\x48\xcd\xc9\xc9\x07\x00"[..], b"\xf2\x00\x11\x00\x00", b"\x02\x12\x00"];
    let octets: Vec<u8> = messages.iter().flat_map(|payload| frame(TEXT | RSV1, payload)).collect();
    for policy in POLICIES {
        check_verdicts(&octets, &messages, policy, "references");
    }
}

#[test]
fn a_message_cut_short_at_each_octet() {
    for mut case in cases("a_message_cut_short", 12) {
        for payloads in damageable(&mut case.random) {
            let (last, first) = payloads.split_last().expect("a message");
            for end in 0..=last.len() {
                check_last(first, &last[..end], "cut short");
            }
        }
    }
}

#[test]
fn a_message_with_each_bit_changed() {
    for mut case in cases("a_message_with_each_bit", 6) {
        for payloads in damageable(&mut case.random) {
            let (last, first) = payloads.split_last().expect("a message");
            for bit in 0..last.len() * 8 {
                let mut changed = last.clone();
                changed[bit / 8] ^= 1 << (bit % 8);
                check_last(first, &changed, "changed");
            }
        }
    }
}

#[test]
fn noise_is_judged_as_the_oracle_judges_it() {
    for mut case in cases("noise_is_judged", 3000) {
        let length = case.random.below(24);
        let mut noise = case.random.octets(length);
        // Blocks with codes of their own are the rarest to be right.
        if case.random.one_in(2)
            && let Some(first) = noise.first_mut()
        {
            *first = *first & !7 | 4;
        }
        check_last(&[], &noise, "noise");
    }
}

/// Messages of a connection of which the last is to be damaged.
fn damageable(random: &mut Random) -> Vec<Vec<Vec<u8>>> {
    let agreed = Agreed::default();
    let mut damageable = Vec::new();
    for is_by_hand in [false, true] {
        let mut sender = Sender::new(agreed, random);
        sender.is_by_hand = is_by_hand;
        let vocabulary = Vocabulary::new(random);
        let octets = [0, 40, 90].map(|most| most + random.below(30));
        let payloads = octets.map(|octets| {
            let message = vocabulary.message(octets, random.one_in(2), random);
            sender.compress(&message, random)
        });
        damageable.push(payloads.to_vec());
    }
    damageable
}

/// Sends whole messages after which `payload` comes, and compares with what the oracle has to say.
fn check_last(first: &[Vec<u8>], payload: &[u8], what: &str) {
    let payloads: Vec<&[u8]> = first.iter().map(Vec::as_slice).chain([payload]).collect();
    let octets: Vec<u8> =
        payloads.iter().flat_map(|payload| frame(BINARY | RSV1, payload)).collect();
    for policy in POLICIES {
        let answer = answer(settings(policy), "permessage-deflate", &octets, &[]);
        check_answer(&answer, &payloads, policy, what);
    }
}

/// The same, cut everywhere.
fn check_verdicts(octets: &[u8], payloads: &[&[u8]], policy: Policy, what: &str) {
    for answer in every_cut(settings(policy), "permessage-deflate", octets) {
        check_answer(&answer, payloads, policy, what);
    }
}

/// The messages that are right come back, and the first that is not gets a close frame.
fn check_answer(answer: &Answer, payloads: &[&[u8]], policy: Policy, what: &str) {
    let (mut here, mut there) = (Inflater::default(), Inflater::default());
    let mut frames = answer.frames.iter();
    for payload in payloads {
        let verdict = here.message(payload);
        let frame = frames.next().unwrap_or_else(|| panic!("no answer: {what} {payload:x?}"));
        let Ok(message) = verdict else {
            assert_eq!(closing(frame), Some(1007), "{what} {payload:x?} {frame:x?}");
            break;
        };
        assert_eq!(frame.first & 0xf0, FIN | RSV1, "{what} {payload:x?} {frame:x?}");
        if policy == Policy::Mirror {
            assert_eq!(&frame.payload, payload, "{what}");
        }
        let echoed = there.message(&frame.payload);
        assert_eq!(echoed.as_ref(), Ok(&message), "{what} {payload:x?} {frame:x?}");
    }
    assert_eq!(frames.next(), None, "{what}");
}

#[test]
fn text_fails_with_the_octet_that_decodes_what_is_wrong() {
    let text = "to be, or not to be: é水🦀 or not to be é水🦀";
    for mut case in cases("text_fails_with_the_octet", 6) {
        let random = &mut case.random;
        for place in 0..=text.len() {
            let mut wrong = text.as_bytes().to_vec();
            match wrong.get_mut(place) {
                Some(octet) => *octet = 0xff,
                None => wrong.push(0x80),
            }
            let mut sender = Sender::new(Agreed::default(), random);
            let payload = sender.compress(&wrong, random);
            let certain = certain_after(&payload, true, MESSAGE_MAX).expect("it is wrong");
            check_certain(settings(Policy::Mirror), TEXT, &payload, certain, 1007);
            check_certain(settings(Policy::Deflate), TEXT, &payload, certain, 1007);
            // Nobody minds that it is binary.
            assert_eq!(certain_after(&payload, false, MESSAGE_MAX), None);
            check_last(&[], &payload, "binary");
        }
    }
}

#[test]
fn text_may_not_end_within_a_character_but_a_fragment_may() {
    let text = "aé水🦀";
    for policy in POLICIES {
        let mut random = Random(1);
        for end in 0..=text.len() {
            let mut sender = Sender::new(Agreed::default(), &mut random);
            let payload = sender.compress(&text.as_bytes()[..end], &mut random);
            let octets = [frame(TEXT | RSV1, &payload), frame(TEXT, "é".as_bytes())].concat();
            for answer in every_cut(settings(policy), "permessage-deflate", &octets) {
                let code = (!text.is_char_boundary(end)).then_some(1007);
                assert_eq!(answer.code(), code, "{end} octets of {text:?}");
                assert_eq!(answer.frames.len(), if code.is_some() { 1 } else { 2 });
            }
            // Stored, so that the fragments end where the pieces of text do.
            let (left, right) = text.as_bytes().split_at(end);
            let left = [&[0, left.len() as u8, 0, !(left.len() as u8), 0xff][..], left].concat();
            let right = [&[0, right.len() as u8, 0, !(right.len() as u8), 0xff][..], right, &[0]];
            let frames = [
                frame(TEXT & !FIN | RSV1, &left),
                frame(0, b""),
                frame(PING, b"!"),
                frame(FIN, &right.concat()),
            ];
            let answer = answer(settings(policy), "permessage-deflate", &frames.concat(), &[]);
            let firsts: Vec<u8> = answer.frames.iter().map(|frame| frame.first).collect();
            assert_eq!(firsts, [TEXT & !FIN | RSV1, 0, PONG, FIN]);
        }
    }
}

#[test]
fn a_message_may_inflate_to_the_limit_and_not_to_an_octet_more() {
    for mut case in cases("a_message_may_inflate_to_the_limit", 60) {
        let random = &mut case.random;
        let limit = random.pick(&[1, 2, 100, 258, 1000, 32767, 32768, 32769, 65536, 100_000]);
        let message_max = limit as u64;
        let vocabulary = Vocabulary::new(random);
        let is_flat = random.one_in(2);
        let mut message = |octets| match is_flat {
            true => vec![b'0'; octets],
            false => vocabulary.message(octets, true, random),
        };
        let (most, more) = (message(limit), message(limit + 1));
        let mut sender = Sender::new(Agreed::default(), random);
        let first = sender.compress(&most, random);
        let second = sender.compress(&most, random);
        let third = sender.compress(&more, random);
        if third.len() as u64 > compressed_max(message_max) {
            continue;
        }
        let cut = random.below(second.len() + 1);
        let octets = [
            frame(TEXT | RSV1, &first),
            // The limit is that of the message and not of its fragments.
            frame(TEXT & !FIN | RSV1, &second[..cut]),
            frame(FIN, &second[cut..]),
            frame(TEXT | RSV1, &third),
        ]
        .concat();
        for policy in POLICIES {
            let settings = Settings { message_max, ..settings(policy) };
            let cuts = random.cuts(octets.len());
            let answer = answer(settings, "permessage-deflate", &octets, &cuts);
            assert_eq!((answer.frames.len(), answer.code()), (4, Some(1009)), "limit {limit}");
            let mut inflater = Inflater::default();
            let halves = [&answer.frames[1].payload[..], &answer.frames[2].payload].concat();
            for payload in [&answer.frames[0].payload, &halves] {
                assert_eq!(inflater.message(payload), Ok(most.clone()));
            }
            if limit <= 1000 {
                let mut sender = Sender::new(Agreed::default(), random);
                let payload = sender.compress(&more, random);
                let certain = certain_after(&payload, true, message_max).expect("too large");
                check_certain(settings, TEXT, &payload, certain, 1009);
            }
        }
    }
}

#[test]
fn a_compressed_payload_has_a_limit_of_its_own() {
    const LIMIT: u64 = 1000;
    let most = compressed_max(LIMIT) as usize;
    for policy in POLICIES {
        let settings = Settings { message_max: LIMIT, ..settings(policy) };
        for (octets, is_taken) in [(most, true), (most + 1, false)] {
            let payload = aligned(octets);
            assert!(judge(&Inflater::default(), &payload, true).is_ok_and(|text| text.len() < 5));
            let whole = frame(TEXT | RSV1, &payload);
            let pieces = [
                frame(TEXT & !FIN | RSV1, &payload[..400]),
                frame(0, &payload[400..900]),
                frame(FIN, &payload[900..]),
            ]
            .concat();
            let last_header = pieces.len() - (octets - 900);
            for (stream, frames, header) in [(whole, 1, 8), (pieces, 3, last_header)] {
                let answer = answer(settings, "permessage-deflate", &stream, &[]);
                let code = (!is_taken).then_some(1009);
                assert_eq!((answer.frames.len(), answer.code()), (frames, code), "{octets}");
                // The header is enough to say so.
                if !is_taken {
                    check_certain_in(settings, &stream, header, 1009);
                }
            }
        }
    }
}

/// A payload of so many octets that inflates to almost nothing: blocks without content, with as
/// many octets in a stored one as are left over.
fn aligned(octets: usize) -> Vec<u8> {
    let spare = (octets - 1) % 5;
    let count = spare as u8;
    let mut payload = Vec::new();
    if spare > 0 {
        // One more block, whose header takes five.
        payload.extend([0, count, 0, !count, 0xff]);
        payload.extend(vec![b'x'; spare]);
    }
    while payload.len() + 1 < octets {
        payload.extend([0, 0, 0, 0xff, 0xff]);
    }
    payload.push(0);
    assert_eq!(payload.len(), octets);
    payload
}

#[test]
fn a_payload_without_octets_is_no_message_but_a_fragment_may_be() {
    for policy in POLICIES {
        let streams = [
            (frame(TEXT | RSV1, b""), None),
            (frame(BINARY | RSV1, b""), None),
            ([frame(TEXT & !FIN | RSV1, b""), frame(FIN, b"")].concat(), Some(1)),
            ([frame(TEXT & !FIN | RSV1, b""), frame(FIN, b"\0")].concat(), Some(2)),
            ([frame(TEXT & !FIN | RSV1, b"\0"), frame(FIN, b"")].concat(), Some(2)),
        ];
        for (octets, echoed) in streams {
            for answer in every_cut(settings(policy), "permessage-deflate", &octets) {
                let is_wrong = echoed.is_none_or(|frames| frames < 2);
                assert_eq!(answer.code(), is_wrong.then_some(1007), "{octets:x?}");
                let frames = echoed.unwrap_or(0) + usize::from(is_wrong);
                assert_eq!(answer.frames.len(), frames, "{octets:x?}");
            }
        }
    }
}

#[test]
fn what_ends_a_data_set_ends_all_references_into_it() {
    // BFINAL on the first message; then a reference of 3 octets to what is 5 octets back.
    let last = b"\xf3\x48\xcd\xc9\xc9\x07\x00\x00";
    let not_last = b"\xf2\x48\xcd\xc9\xc9\x07\x00";
    let reference = b"\x02\x13\x00\x00";
    let mut inflater = Inflater::default();
    assert!(inflater.message(not_last).is_ok() && inflater.message(reference).is_ok());
    for policy in POLICIES {
        for (first, offer, is_wrong) in [
            (&not_last[..], "permessage-deflate", false),
            (last, "permessage-deflate", true),
            (not_last, "permessage-deflate; client_no_context_takeover", true),
        ] {
            let octets = [frame(TEXT | RSV1, first), frame(TEXT | RSV1, reference)].concat();
            for answer in every_cut(settings(policy), offer, &octets) {
                assert_eq!(answer.code(), is_wrong.then_some(1007), "{offer} {first:x?}");
                assert_eq!(answer.frames.len(), 2);
            }
        }
    }
}

#[test]
fn reserved_bits() {
    let whole = b"\xf2\x48\xcd\xc9\xc9\x07\x00";
    let agreed = "permessage-deflate";
    let begun = frame(TEXT & !FIN | RSV1, &whole[..3]);
    let plain = frame(TEXT & !FIN, b"plain");
    for policy in POLICIES {
        for (offer, before, first) in [
            // Where it says nothing.
            (agreed, &begun[..], RSV1),
            (agreed, &begun, FIN | RSV1),
            (agreed, &plain, FIN | RSV1),
            (agreed, b"", FIN | RSV1),
            (agreed, b"", PING | RSV1),
            (agreed, b"", PONG | RSV1),
            (agreed, b"", CLOSE | RSV1),
            (agreed, &begun, PING | RSV1),
            (agreed, &begun, CLOSE | RSV1),
            (agreed, b"", FIN | RSV1 | 3),
            (agreed, b"", FIN | RSV1 | 11),
            // The others have no meaning with compression either.
            (agreed, b"", TEXT | 0x20),
            (agreed, b"", TEXT | 0x10),
            (agreed, b"", TEXT | RSV1 | 0x20),
            (agreed, b"", BINARY | RSV1 | 0x10),
            (agreed, b"", TEXT | 0x70),
            (agreed, &begun, FIN | 0x20),
            (agreed, &begun, PING | 0x10),
            // Nobody has agreed.
            ("x-unknown", b"", TEXT | RSV1),
            ("x-unknown", b"", BINARY & !FIN | RSV1),
            ("x-unknown", &plain, FIN | RSV1),
            ("permessage-deflate; server_max_window_bits=8", b"", TEXT | RSV1),
        ] {
            let octets = [before, &frame(first, whole)].concat();
            let settings = settings(policy);
            for answer in every_cut(settings, offer, &octets) {
                assert_eq!(answer.code(), Some(1002), "{offer} {first:x}");
                let echoes = usize::from(!before.is_empty());
                assert_eq!(answer.frames.len(), 1 + echoes, "{offer} {first:x}");
            }
            let cuts: Vec<usize> = (1..octets.len()).collect();
            let certain = answer(settings, offer, &octets, &cuts).closed_after;
            assert_eq!(certain, Some(before.len() + 1), "{offer} {first:x}");
        }
        // What was not agreed on for want of a policy.
        let settings = Settings { policy: Policy::Off, ..settings(policy) };
        let answer = answer(settings, agreed, &frame(TEXT | RSV1, whole), &[]);
        assert_eq!((answer.frames.len(), answer.code()), (1, Some(1002)));
    }
}

#[test]
fn every_cut_of_short_streams_gets_the_same_octets() {
    let settings = |policy| Settings { message_max: 200, ..settings(policy) };
    let mut ends = HashMap::new();
    for mut case in cases("every_cut_of_short_streams", 60) {
        let random = &mut case.random;
        let vocabulary = Vocabulary::new(random);
        let mut sender = Sender::new(Agreed::default(), random);
        let mut octets = Vec::new();
        for _ in 0..1 + random.below(3) {
            let is_text = random.one_in(2);
            let length = random.pick(&[0, 5, 40, 199, 200, 201]);
            let mut message = vocabulary.message(length, is_text, random);
            if random.one_in(6)
                && let Some(octet) = message.first_mut()
            {
                *octet = 0xff;
            }
            let opcode = if is_text { 1 } else { 2 };
            let mut payload = sender.compress(&message, random);
            match random.below(12) {
                0 => payload.truncate(random.below(payload.len() + 1)),
                1 => {
                    let bit = random.below(payload.len() * 8);
                    payload[bit / 8] ^= 1 << (bit % 8);
                }
                _ => {}
            }
            let cut = random.below(payload.len() + 1);
            octets.extend(frame(opcode | RSV1, &payload[..cut]));
            if random.one_in(2) {
                octets.extend(frame(PING, b"ping"));
            }
            octets.extend(frame(FIN, &payload[cut..]));
            octets.extend(frame(BINARY, b"plain"));
        }
        for policy in POLICIES {
            let answers = every_cut(settings(policy), "permessage-deflate", &octets);
            let mut codes = answers.iter().map(Answer::code);
            *ends.entry(codes.next().expect("an answer")).or_insert(0) += 1;
        }
    }
    // All that the generator is for has been met.
    assert!([None, Some(1007), Some(1009)].iter().all(|end| ends.contains_key(end)), "{ends:?}");
}

#[test]
fn the_server_may_close_at_any_octet() {
    for mut case in cases("the_server_may_close_at_any_octet", 6) {
        let random = &mut case.random;
        let vocabulary = Vocabulary::new(random);
        let mut sender = Sender::new(Agreed::default(), random);
        let messages = [30, 400, 0, 100].map(|octets| vocabulary.message(octets, true, random));
        let payloads = messages.each_ref().map(|message| sender.compress(message, random));
        let frames: Vec<Vec<u8>> = payloads
            .iter()
            .flat_map(|payload| {
                let (left, right) = payload.split_at(payload.len() / 2);
                [frame(TEXT & !FIN | RSV1, left), frame(PING, b"ping"), frame(FIN, right)]
            })
            .collect();
        let octets = frames.concat();
        for policy in POLICIES {
            for close_at in 0..=octets.len() {
                let counters = Counters::default();
                let context = Context::new(settings(policy), &counters);
                let mut peer = Peer::new(random.pick(&ROOMS), &context);
                peer.handshake("permessage-deflate");
                // So that the frame that waits for room waits for a send.
                peer.holds = Some(Random(random.next()));
                peer.feed(&octets[..close_at], &[]);
                peer.close();
                peer.feed(&octets[close_at..], &[]);
                peer.feed(&frame(CLOSE, &1001u16.to_be_bytes()), &[]);
                peer.send(usize::MAX);
                assert_eq!(peer.next, Next::Close);
                let replies = parse(&peer.sent);
                let (close, echoed) = replies.split_last().expect("a close frame");
                assert_eq!((closing(close), close.payload.len()), (Some(1001), 2));
                let mut taken = 0;
                let whole = frames.iter().take_while(|frame| {
                    taken += frame.len();
                    taken <= close_at
                });
                // A frame that still waits for room is not sent, nor one behind it.
                let whole = whole.count();
                assert!(echoed.len() <= whole, "{} of {whole} frames", echoed.len());
                assert!(echoed.len() == whole || policy == Policy::Deflate);
                let firsts = [TEXT & !FIN | RSV1, PONG, FIN].into_iter().cycle();
                assert!(echoed.iter().map(|frame| frame.first).eq(firsts.take(echoed.len())));
                let mut inflater = Inflater::default();
                for (echo, message) in echoed.chunks_exact(3).zip(&messages) {
                    let payload = [&echo[0].payload[..], &echo[2].payload].concat();
                    assert_eq!(inflater.message(&payload).as_ref(), Ok(message));
                }
            }
        }
    }
}

#[test]
fn a_bomb_goes_off_at_the_limit_and_costs_little() {
    const LIMIT: u64 = 64 << 20;
    let chunk = {
        let mut zlib = Compress::new(flate2::Compression::new(9), false);
        deflate(&mut zlib, &vec![0; 1 << 20], FlushCompress::Sync)
    };
    let close_octets = 2 + 2 + Violation::MessageTooBig.reason().len();
    // The beginning of ten gigabytes.
    assert!(chunk.len() < 1100, "{} octets", chunk.len());
    let frames = [frame(BINARY & !FIN | RSV1, &chunk), frame(0, &chunk)];
    let one_frame = [frame(BINARY | RSV1, &vec![0; 10_000 * chunk.len()])[..14].to_vec(), {
        // The key stays in step with the pieces.
        let mut piece = frame(BINARY, &chunk.repeat(4));
        piece.drain(..8);
        piece
    }];
    let (each, together) = ([&frames[0], &frames[1]], [&one_frame[0], &one_frame[1]]);
    for (policy, [begin, piece], megabytes, octets_max) in [
        (Policy::Mirror, each, 1, 128 << 10),
        (Policy::Deflate, each, 1, 640 << 10),
        // What is compressed is held, the frame being unfinished.
        (Policy::Mirror, together, 4, 384 << 10),
        (Policy::Deflate, together, 4, 768 << 10),
    ] {
        let counters = Counters::default();
        let settings =
            Settings { protocol: Protocol::WebSocket, message_max: LIMIT, policy, level: 6 };
        let before = heap::held();
        let context = Context::new(settings, &counters);
        let mut peer = Peer::new(16384, &context);
        peer.handshake("permessage-deflate");
        heap::restart_peak();
        peer.feed(begin, &[]);
        let mut inflated = if begin.len() > 14 { 1 } else { 0 };
        while peer.next != Next::Close {
            assert!(inflated <= LIMIT >> 20, "{inflated} MiB are taken");
            peer.feed(piece, &[]);
            inflated += megabytes;
            peer.send(usize::MAX);
            let replies = std::mem::take(&mut peer.sent);
            if peer.next == Next::Close {
                let close = replies.len() - close_octets;
                assert_eq!(closing(&parse(&replies[close..])[0]), Some(1009));
            }
        }
        assert!(inflated > LIMIT >> 20, "closed after {inflated} MiB");
        let peak = heap::peak() - before;
        say(&format!("memory of a bomb: {peak} octets ({policy:?}, {megabytes} MiB at a time)"));
        assert!(peak < octets_max, "{peak} octets of memory for a bomb ({policy:?})");
        drop(peer);
        drop(context);
        assert_eq!(heap::held(), before);
    }
}

#[test]
fn a_connection_takes_memory_with_its_first_compressed_message_and_gives_it_back() {
    const OCTETS_MAX: isize = 48 << 10;
    let plain = [frame(TEXT, b"plain"), frame(BINARY, &[7; 300]), frame(PING, b"")].concat();
    let compressed = [
        frame(TEXT | RSV1, b"\xf2\x48\xcd\xc9\xc9\x07\x00"),
        frame(TEXT & !FIN | RSV1, b"\xf2\x00\x11"),
        frame(FIN, b"\x00\x00"),
    ]
    .concat();
    for policy in POLICIES {
        let counters = Counters::default();
        let context = Context::new(settings(policy), &counters);
        let mut pinned = vec![0; HEADROOM + 4096];
        let request = request("permessage-deflate");
        let mut tell = |connection: &mut Connection, octets: &[u8]| {
            let mut cursors = Cursors::received(octets.len());
            pinned[HEADROOM..HEADROOM + octets.len()].copy_from_slice(octets);
            let next = connection.advance(&mut Region::new(&mut pinned, &mut cursors), &context);
            (next, cursors.reply().len())
        };
        // What a worker takes once.
        let mut first = Connection::new(Admission::Open);
        let _ = tell(&mut first, request.as_bytes());
        let _ = tell(&mut first, &compressed);
        drop(first);

        let before = heap::held();
        let mut connection = Connection::new(Admission::Open);
        let (_, response) = tell(&mut connection, request.as_bytes());
        assert!(response > 150, "compression is agreed on");
        assert_eq!(heap::held(), before, "after the handshake");
        let allocations = heap::allocations();
        assert!(tell(&mut connection, &plain).1 > 300);
        assert_eq!(heap::allocations(), allocations, "for messages that are not compressed");
        if policy == Policy::Deflate {
            // How much is up to the compressor. Room for a longer reply is asked for.
            let _ = tell(&mut connection, &compressed);
            assert!(heap::held() > before);
        } else {
            assert_eq!(tell(&mut connection, &compressed).0, Next::Receive);
            let taken = heap::held() - before;
            say(&format!("memory of a connection that compresses: {taken} octets"));
            assert!((32 << 10..=OCTETS_MAX).contains(&taken), "{taken} octets");
            for _ in 0..3 {
                let (_, replied) = tell(&mut connection, &[&compressed[..], &plain].concat());
                assert!(replied > 300);
            }
            assert_eq!(heap::held() - before, taken, "after more messages");
        }
        drop(connection);
        assert_eq!(heap::held(), before, "after the end");
    }
}

/// Messages that come back seventy times as long: each repeats what stands further back than the
/// server may refer to.
struct Amplified {
    requests: Vec<u8>,
    messages: Vec<Vec<u8>>,
    receiver: Receiver,
}

impl Amplified {
    const OFFER: Offer = Offer { server_max_window_bits: Some(9), ..Offer::NONE };

    fn new(agreed: Agreed, messages: u32) -> Amplified {
        let noise = Random(1).octets(16_000);
        let mut zlib = Compress::new(flate2::Compression::new(6), false);
        let messages: Vec<Vec<u8>> =
            (0..messages).map(|number| [&number.to_be_bytes(), &noise[..]].concat()).collect();
        let mut requests = Vec::new();
        for message in &messages {
            let mut payload = deflate(&mut zlib, message, FlushCompress::Sync);
            payload.truncate(payload.len() - TAIL.len());
            requests.extend(frame(BINARY | RSV1, &payload));
        }
        assert!(requests.len() < messages.len() * 300 + 20_000, "{} octets", requests.len());
        Amplified { requests, messages, receiver: Receiver::new(agreed) }
    }

    /// Reads the echoes that come before a close frame or, with `count`, so many of them.
    fn read(mut self, client: &mut Client, count: usize) -> usize {
        for (number, message) in self.messages.iter().enumerate().take(count) {
            let frame = client.read_frame();
            if frame.first == CLOSE {
                assert_eq!(frame.payload, 1001u16.to_be_bytes());
                return number;
            }
            assert_eq!(frame.first, BINARY | RSV1, "message {number}");
            assert!(frame.payload.len() > 15_000, "message {number} is no longer than it came");
            let echoed = self.receiver.inflate(&frame.payload).expect("it can be inflated");
            assert!(echoed == *message, "message {number} is not what was sent");
        }
        count
    }
}

/// Waits until the server echoes no more, and gives the number of messages that it has echoed.
fn stalled(server: &Server) -> u64 {
    let mut messages = 0;
    wait_until("the server stops echoing", || {
        let last = std::mem::replace(&mut messages, server.count("messages"));
        thread::sleep(Duration::from_millis(150));
        last == messages && last > 0 && last == server.count("messages")
    });
    messages
}

#[test]
fn replies_far_longer_than_their_requests_wait_until_they_are_read() {
    const MESSAGES: u32 = 2500;
    const GROWTH_MAX: u64 = 10 << 20;
    let server = Server::start(&["--compression", "deflate", "--workers", "1"]);
    let (mut other, agreed) = connect(&server, Offer::NONE, Policy::Deflate);
    let mut sender = Sender::new(agreed.expect("an agreement"), &mut Random(1));
    sender.is_by_hand = false;
    for _ in 0..600 {
        other.echo(BINARY, &[7; 16_000]);
    }
    other.send_frame(BINARY | RSV1, &sender.compress(b"warm", &mut Random(1)));
    other.read_frame();
    let before = resident_octets(server.pid());
    let (mut client, agreed) = connect(&server, Amplified::OFFER, Policy::Deflate);
    limit_receiving(&client);
    let amplified = Amplified::new(agreed.expect("an agreement"), MESSAGES);
    let mut stream = client.stream().try_clone().expect("a descriptor");
    let requests = amplified.requests.clone();
    let writer = thread::spawn(move || {
        stream.write_all(&requests).expect("the server takes octets");
        stream.shutdown(Shutdown::Write).expect("a connection");
    });
    let echoed = stalled(&server);
    let grown = resident_octets(server.pid()).saturating_sub(before);
    say(&format!("memory of replies that wait: {grown} octets after {echoed} messages"));
    assert!(echoed < u64::from(MESSAGES) * 3 / 4, "{echoed} messages are echoed to nobody");
    assert!(grown < GROWTH_MAX, "{grown} octets of memory for one peer");
    other.echo(TEXT, b"served");
    let read = amplified.read(&mut client, MESSAGES as usize);
    assert_eq!(read, MESSAGES as usize);
    client.expect_end();
    writer.join().expect("all is written");
    other.close();
    let ended = server.terminate();
    assert_eq!(ended.count("messages_recompressed"), u64::from(MESSAGES) + 1);
    assert_eq!(ended.count("protocol_violations"), 0);
}

#[test]
fn after_a_half_close_replies_longer_than_their_requests_arrive() {
    let server = Server::start(&["--compression", "deflate", "--workers", "1"]);
    for messages in [1, 2, 5, 40, 300] {
        let (mut client, agreed) = connect(&server, Amplified::OFFER, Policy::Deflate);
        limit_receiving(&client);
        let amplified = Amplified::new(agreed.expect("an agreement"), messages);
        client.write(&amplified.requests);
        client.stream().shutdown(Shutdown::Write).expect("a connection");
        if messages > 2 {
            thread::sleep(Duration::from_millis(50));
        }
        assert_eq!(amplified.read(&mut client, messages as usize), messages as usize);
        client.expect_end();
    }
    server.wait_for_count("connections_open", 0);
    assert_eq!(server.terminate().count("messages"), 1 + 2 + 5 + 40 + 300);
}

#[test]
fn a_server_that_stops_sends_what_it_owes_and_then_its_close_frame() {
    const MESSAGES: u32 = 1000;
    let server = Server::start(&["--compression", "deflate", "--workers", "1"]);
    let (mut client, agreed) = connect(&server, Amplified::OFFER, Policy::Deflate);
    limit_receiving(&client);
    let amplified = Amplified::new(agreed.expect("an agreement"), MESSAGES);
    let mut stream = client.stream().try_clone().expect("a descriptor");
    let requests = amplified.requests.clone();
    let writer =
        thread::spawn(move || stream.write_all(&requests).expect("the server takes octets"));
    let echoed = stalled(&server);
    assert!(echoed < u64::from(MESSAGES), "{echoed} messages are echoed to nobody");
    server.signal(Signal::TERM);
    let read = amplified.read(&mut client, MESSAGES as usize);
    assert_eq!(read as u64, echoed, "all that was echoed comes, and then the close frame");
    writer.join().expect("all is written");
    client.send_frame(CLOSE, &1001u16.to_be_bytes());
    client.expect_end();
    let ended = server.wait();
    assert!(ended.status.success(), "{ended:?}");
    assert_eq!(ended.count("protocol_violations"), 0);
}

fn settings(policy: Policy) -> Settings {
    Settings { protocol: Protocol::WebSocket, message_max: MESSAGE_MAX, policy, level: 6 }
}

fn request(offer: &str) -> String {
    REQUEST.replacen("Upgrade:", &format!("Sec-WebSocket-Extensions: {offer}\r\nUpgrade:"), 1)
}

/// A connection to `server` with what the two have agreed on.
fn connect(server: &Server, offer: Offer, policy: Policy) -> (Client, Option<Agreed>) {
    let mut client = Client::open(server.address());
    let response = client.handshake_by(&request(&offer.field()));
    let agreed = offer.answered(&response, policy);
    (client, agreed)
}

/// What a client offers.
#[derive(Debug, Clone, Copy)]
struct Offer {
    server_no_context_takeover: bool,
    client_no_context_takeover: bool,
    server_max_window_bits: Option<u32>,
    /// With a value or without.
    client_max_window_bits: Option<Option<u32>>,
}

impl Offer {
    const NONE: Offer = Offer {
        server_no_context_takeover: false,
        client_no_context_takeover: false,
        server_max_window_bits: None,
        client_max_window_bits: None,
    };

    /// Every combination there is.
    fn all() -> Vec<Offer> {
        let mut all = Vec::new();
        let values = || (8..=BITS_MAX).map(Some).chain([None]);
        for server_max_window_bits in values() {
            for client_max_window_bits in values().map(Some).chain([None]) {
                for flags in 0..4 {
                    all.push(Offer {
                        server_no_context_takeover: flags & 1 != 0,
                        client_no_context_takeover: flags & 2 != 0,
                        server_max_window_bits,
                        client_max_window_bits,
                    });
                }
            }
        }
        all
    }

    /// The value of the field that makes it.
    fn field(&self) -> String {
        let mut field = "permessage-deflate".to_owned();
        if let Some(value) = self.client_max_window_bits {
            field += "; client_max_window_bits";
            field += &value.map_or(String::new(), |bits| format!("={bits}"));
        }
        if self.client_no_context_takeover {
            field += "; client_no_context_takeover";
        }
        if let Some(bits) = self.server_max_window_bits {
            field += &format!("; server_max_window_bits={bits}");
        }
        if self.server_no_context_takeover {
            field += "; server_no_context_takeover";
        }
        field
    }

    /// Reads what a server with `policy` answered, and holds it against what RFC 7692 section 7.1
    /// allows it to answer. `None`: it declined.
    fn answered(&self, response: &str, policy: Policy) -> Option<Agreed> {
        assert!(response.starts_with("HTTP/1.1 101 "), "{response}");
        let mut values =
            response.lines().filter_map(|line| line.strip_prefix("Sec-WebSocket-Extensions: "));
        let value = values.next()?;
        assert_eq!(values.next(), None, "one field");
        let mut parameters = value.split("; ");
        assert_eq!(parameters.next(), Some("permessage-deflate"));
        let mut found: HashMap<&str, Option<u32>> = HashMap::new();
        for parameter in parameters {
            let (name, value) = match parameter.split_once('=') {
                Some((name, bits)) => (name, Some(bits.parse().expect("a number"))),
                None => (parameter, None),
            };
            assert_eq!(found.insert(name, value), None, "{parameter} twice in {value:?}");
        }
        let server_no_context_takeover = found.remove("server_no_context_takeover").is_some();
        let client_no_context_takeover = found.remove("client_no_context_takeover").is_some();
        let server_bits = found.remove("server_max_window_bits").map(|bits| bits.expect("a value"));
        let client_bits = found.remove("client_max_window_bits").map(|bits| bits.expect("a value"));
        assert_eq!(found.len(), 0, "{found:?} in {value:?}");
        // What is asked for is granted.
        assert!(server_no_context_takeover || !self.server_no_context_takeover, "{value}");
        if let Some(offered) = self.server_max_window_bits {
            assert!(server_bits.is_some_and(|bits| bits <= offered), "{value}");
        }
        // Nothing is demanded that the client has not said it understands.
        let hint = self.client_max_window_bits;
        let hinted = hint.flatten().unwrap_or(BITS_MAX);
        assert!(client_bits.is_none_or(|bits| hint.is_some() && bits <= hinted), "{value}");
        for bits in [server_bits, client_bits].into_iter().flatten() {
            assert!((8..=BITS_MAX).contains(&bits), "{value}");
        }
        // Told how far it may look back, or alike without being told.
        let is_mirrored = policy == Policy::Mirror
            && (hint.is_some() || self.server_max_window_bits.is_none_or(|bits| bits == BITS_MAX));
        let agreed = Agreed {
            server_no_context_takeover,
            client_no_context_takeover: client_no_context_takeover
                || self.client_no_context_takeover,
            server_bits: server_bits.unwrap_or(BITS_MAX),
            client_bits: client_bits.unwrap_or(BITS_MAX).min(hinted),
            is_mirrored,
        };
        Some(agreed)
    }
}

/// What the two sides keep to.
#[derive(Debug, Clone, Copy)]
struct Agreed {
    server_no_context_takeover: bool,
    client_no_context_takeover: bool,
    server_bits: u32,
    client_bits: u32,
    /// What the server makes of it by itself.
    is_mirrored: bool,
}

impl Default for Agreed {
    fn default() -> Agreed {
        Agreed {
            server_no_context_takeover: false,
            client_no_context_takeover: false,
            server_bits: BITS_MAX,
            client_bits: BITS_MAX,
            is_mirrored: true,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Size {
    /// Few messages have more than some thousand octets.
    Small,
    /// One has as many as the server takes.
    Large,
}

/// All that a client sends behind its handshake, and what is to come back.
struct Script {
    octets: Vec<u8>,
    agreed: Option<Agreed>,
    frames: Vec<Expected>,
    messages: Vec<Vec<u8>>,
}

/// A frame that is to come back.
struct Expected {
    first: u8,
    /// What was sent.
    payload: Vec<u8>,
    /// Whether it belongs to a compressed message.
    is_compressed: bool,
}

impl std::fmt::Debug for Script {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let messages: Vec<usize> = self.messages.iter().map(Vec::len).collect();
        let Script { octets, agreed, frames, .. } = self;
        let (octets, frames) = (octets.len(), frames.len());
        write!(f, "{octets} octets, {frames} frames, messages of {messages:?}, {agreed:?}")
    }
}

impl Script {
    fn write(agreed: Option<Agreed>, size: Size, random: &mut Random) -> Script {
        let mut script =
            Script { octets: Vec::new(), agreed, frames: Vec::new(), messages: Vec::new() };
        let mut sender = agreed.map(|agreed| Sender::new(agreed, random));
        let vocabulary = Vocabulary::new(random);
        let count = 4 + random.below(8);
        let largest = if size == Size::Large { random.below(count) } else { count };
        for number in 0..count {
            let limits = [125, 126, 127, 512, 4096, 16384, 32768, 65535, 65536];
            let octets = match random.below(32) {
                _ if number == largest => MESSAGE_MAX as usize,
                0..4 => 0,
                4..14 => random.below(20),
                14..22 => random.below(700),
                22..28 => random.below(6000),
                28..31 => random.pick(&limits) - random.below(3),
                _ => random.below(70_000),
            };
            let is_text = random.one_in(2);
            let message = vocabulary.message(octets, is_text, random);
            let opcode = if is_text { 1 } else { 2 };
            match sender.as_mut().filter(|_| !random.one_in(5)) {
                Some(sender) => {
                    let payload = sender.compress(&message, random);
                    script.message(opcode | RSV1, &payload, random);
                }
                None => script.message(opcode, &message, random),
            }
            script.messages.push(message);
        }
        script
    }

    /// A message in fragments.
    fn message(&mut self, first: u8, payload: &[u8], random: &mut Random) {
        let mut cuts = vec![0, payload.len()];
        while random.one_in(2) && cuts.len() < 7 {
            // An end met twice leaves a fragment without octets.
            let within = random.below(payload.len() + 1);
            cuts.push(random.pick(&[0, payload.len(), within]));
        }
        cuts.sort_unstable();
        for (number, ends) in cuts.windows(2).enumerate() {
            while random.one_in(4) {
                let length = random.pick(&[0, 3, 125]);
                let control = random.octets(length);
                self.octets.extend(masked(PING, &control, random));
                self.frames.push(Expected { first: PONG, payload: control, is_compressed: false });
            }
            let fin = if number + 2 == cuts.len() { FIN } else { 0 };
            let opcode = fin | if number == 0 { first } else { 0 };
            let fragment = &payload[ends[0]..ends[1]];
            self.octets.extend(masked(opcode, fragment, random));
            let is_compressed = first & RSV1 != 0;
            self.frames.push(Expected { first: opcode, payload: fragment.to_vec(), is_compressed });
        }
    }

    fn compressed_messages(&self) -> u64 {
        self.frames.iter().filter(|frame| frame.first & RSV1 != 0).count() as u64
    }

    /// Compares what came back.
    fn check(&self, replies: &[u8], what: &str) {
        let replies = parse(replies);
        let mut receiver = self.agreed.map(Receiver::new);
        let mut messages = self.messages.iter();
        let mut payload = Vec::new();
        for (number, (reply, expected)) in replies.iter().zip(&self.frames).enumerate() {
            let place = || format!("frame {number} of {self:?} {what}");
            assert_eq!(reply.first, expected.first, "{}", place());
            let is_mirrored = self.agreed.is_some_and(|agreed| agreed.is_mirrored);
            if is_mirrored || !expected.is_compressed {
                assert!(reply.payload == expected.payload, "{} is another", place());
            }
            if expected.first == PONG {
                continue;
            }
            payload.extend(&reply.payload);
            if expected.first & FIN == 0 {
                continue;
            }
            let payload = std::mem::take(&mut payload);
            let message = messages.next().expect("no more than were sent");
            let echoed = match receiver.as_mut().filter(|_| expected.is_compressed) {
                Some(receiver) => receiver
                    .inflate(&payload)
                    .unwrap_or_else(|problem| panic!("{problem}: {}", place())),
                None => payload,
            };
            assert!(echoed == *message, "{} inflates to something else", place());
        }
        assert_eq!(replies.len(), self.frames.len(), "{self:?} {what}");
        assert_eq!(messages.next(), None, "{self:?} {what}");
    }
}

/// The masked frame that a client sends, with a key of its own.
fn masked(first: u8, payload: &[u8], random: &mut Random) -> Vec<u8> {
    let mut frame = reply(first, payload);
    frame[1] |= 0x80;
    let header = frame.len() - payload.len();
    let key = (random.next() as u32).to_be_bytes();
    for (octet, key) in frame[header..].iter_mut().zip(key.iter().cycle()) {
        *octet ^= key;
    }
    frame.splice(header..header, key);
    frame
}

/// Takes replies apart, all of which are whole.
fn parse(mut octets: &[u8]) -> Vec<support::Frame> {
    let mut frames = Vec::new();
    while let [first, second, rest @ ..] = octets {
        let extension = match second {
            0..126 => 0,
            126 => 2,
            127 => 8,
            _ => panic!("a server does not mask"),
        };
        let (extension, rest) = rest.split_at(extension);
        let length = match extension {
            [] => usize::from(*second),
            _ => extension.iter().fold(0, |length, &octet| length << 8 | usize::from(octet)),
        };
        let (payload, rest) = rest.split_at(length);
        frames.push(support::Frame { first: *first, payload: payload.to_vec() });
        octets = rest;
    }
    assert_eq!(octets, b"", "the last frame is whole");
    frames
}

/// The code in a close frame.
fn closing(frame: &support::Frame) -> Option<u16> {
    let code = frame.payload.first_chunk().map(|code| u16::from_be_bytes(*code));
    code.filter(|_| frame.first == CLOSE)
}

/// What messages are made of, so that they say again what others have said, near and far.
struct Vocabulary {
    words: Vec<Vec<u8>>,
    chunks: Vec<Vec<u8>>,
}

impl Vocabulary {
    fn new(random: &mut Random) -> Vocabulary {
        let letters: Vec<char> = "abcdefghij klmnop\u{0}é水🦀".chars().collect();
        let word = |random: &mut Random| {
            let length = random.pick(&[1, 4, 9, 60, 300]);
            (0..length).map(|_| random.pick(&letters)).collect::<String>().into_bytes()
        };
        let chunk = |random: &mut Random| {
            let length = random.pick(&[1, 3, 10, 100, 258, 1000]);
            random.octets(length)
        };
        let words = (0..90).map(|_| word(random)).collect();
        let chunks = (0..60).map(|_| chunk(random)).collect();
        Vocabulary { words, chunks }
    }

    /// A message of so many octets.
    fn message(&self, octets: usize, is_text: bool, random: &mut Random) -> Vec<u8> {
        let pieces = if is_text { &self.words } else { &self.chunks };
        let mut message = Vec::with_capacity(octets + 1000);
        while message.len() < octets {
            let piece = &pieces[random.below(pieces.len())];
            if message.len() + piece.len() > octets {
                message.resize(octets, b'.');
            } else if random.one_in(50) {
                message.resize((message.len() + random.below(600)).min(octets), b' ');
            } else {
                message.extend(piece);
            }
        }
        message
    }
}

/// The client's compressor.
struct Sender {
    agreed: Agreed,
    zlib: Compress,
    by_hand: ByHand,
    /// One connection has one compressor: the two would not know each other's history.
    is_by_hand: bool,
}

impl Sender {
    fn new(agreed: Agreed, random: &mut Random) -> Sender {
        let level = flate2::Compression::new(random.below(10) as u32);
        let bits = agreed.client_bits as u8;
        Sender {
            agreed,
            zlib: Compress::new_with_window_bits(level, false, bits.max(9)),
            by_hand: ByHand::new(1 << bits),
            is_by_hand: bits < 9 || random.one_in(3),
        }
    }

    /// The payload of a message, in the ways of section 7.2.3.
    fn compress(&mut self, message: &[u8], random: &mut Random) -> Vec<u8> {
        if self.agreed.client_no_context_takeover {
            self.zlib.reset();
            self.by_hand.forget();
        }
        let mut rest = message;
        let mut payload = Vec::new();
        loop {
            let most = if random.one_in(3) { random.below(rest.len() + 1) } else { rest.len() };
            let (piece, others) = rest.split_at(most);
            let is_last = others.is_empty();
            rest = others;
            if self.is_by_hand {
                payload.extend(self.by_hand.blocks(piece, is_last, random));
                if is_last {
                    return payload;
                }
                continue;
            }
            let flushes = [FlushCompress::Partial, FlushCompress::Sync, FlushCompress::Full];
            let flush = match random.below(8) {
                0 => FlushCompress::Finish,
                1..4 => random.pick(&flushes),
                _ => FlushCompress::None,
            };
            payload.extend(deflate(&mut self.zlib, piece, flush));
            let has_finished = matches!(flush, FlushCompress::Finish);
            if has_finished {
                self.zlib.reset();
            }
            if !is_last {
                continue;
            }
            // Section 7.2.3.4: behind a block with BFINAL set stands an octet of zero.
            if has_finished {
                payload.push(0);
                return payload;
            }
            payload.extend(deflate(&mut self.zlib, &[], FlushCompress::Sync));
            match payload.strip_suffix(&TAIL) {
                Some(kept) => payload.truncate(kept.len()),
                // Section 7.2.3.6: nothing to be flushed.
                None => payload.push(0),
            }
            return payload;
        }
    }
}

/// All that zlib makes of `input`.
fn deflate(zlib: &mut Compress, mut input: &[u8], flush: FlushCompress) -> Vec<u8> {
    let mut output = Vec::with_capacity(input.len() / 2 + 64);
    loop {
        output.reserve(64);
        let before = zlib.total_in();
        zlib.compress_vec(input, &mut output, flush).expect("a state of zlib");
        input = &input[(zlib.total_in() - before) as usize..];
        if input.is_empty() && output.len() < output.capacity() {
            return output;
        }
    }
}

/// A compressor that writes stored blocks and ones with fixed codes, and refers as far back as the
/// window goes.
struct ByHand {
    window: usize,
    history: Vec<u8>,
    /// Where three octets were last seen.
    seen: HashMap<[u8; 3], usize>,
    octets: Vec<u8>,
    /// Bits that are no octet yet, and how many.
    bits: u32,
    count: u32,
}

impl ByHand {
    fn new(window: usize) -> ByHand {
        let (history, octets) = (Vec::new(), Vec::new());
        ByHand { window, history, seen: HashMap::new(), octets, bits: 0, count: 0 }
    }

    fn forget(&mut self) {
        self.history.clear();
        self.seen.clear();
    }

    /// One block for `piece`, and others without content. With the `last` piece of a message comes
    /// the beginning of the block whose rest is taken off.
    fn blocks(&mut self, piece: &[u8], is_last: bool, random: &mut Random) -> Vec<u8> {
        let is_final = random.one_in(6);
        if piece.len() < 60_000 && random.one_in(4) {
            self.stored(piece, is_final);
        } else {
            self.fixed(piece, is_final);
        }
        if is_final {
            self.align();
            self.forget();
        }
        match random.below(6) {
            0 => self.stored(b"", false),
            1 => self.fixed(b"", false),
            _ => {}
        }
        if is_last {
            self.put(0, 3);
            self.align();
        }
        std::mem::take(&mut self.octets)
    }

    fn stored(&mut self, piece: &[u8], is_final: bool) {
        self.put(u32::from(is_final), 3);
        self.align();
        let length = piece.len() as u16;
        self.octets.extend(length.to_le_bytes());
        self.octets.extend((!length).to_le_bytes());
        self.octets.extend(piece);
        for &octet in piece {
            self.remember(octet);
        }
    }

    fn fixed(&mut self, piece: &[u8], is_final: bool) {
        self.put(u32::from(is_final) | 1 << 1, 3);
        let mut at = 0;
        while at < piece.len() {
            let (length, distance) = self.longest(&piece[at..]);
            if length < 3 {
                self.symbol(u32::from(piece[at]));
                self.remember(piece[at]);
                at += 1;
                continue;
            }
            // Length 258 has a code of its own beside the last of the others.
            let code = LENGTHS.iter().rposition(|&(base, _)| base <= length).expect("three");
            let (base, extra) = LENGTHS[code];
            self.symbol(257 + code as u32);
            self.put((length - base) as u32, extra);
            let code = DISTANCES.iter().rposition(|&(base, _)| base <= distance).expect("one");
            let (base, extra) = DISTANCES[code];
            self.code(code as u32, 5);
            self.put((distance - base) as u32, extra);
            for &octet in &piece[at..at + length] {
                self.remember(octet);
            }
            at += length;
        }
        self.symbol(256);
    }

    /// The longest of two references: to the edge of the window, and to where the next three octets
    /// were last seen.
    fn longest(&self, rest: &[u8]) -> (usize, usize) {
        let end = self.history.len();
        let last = rest.first_chunk().and_then(|octets| self.seen.get(octets));
        let distances = [self.window, last.map_or(0, |place| end - place)];
        let reaches = |&distance: &usize| (1..=self.window.min(end)).contains(&distance);
        let lengths = distances.into_iter().filter(reaches).map(|distance| {
            let from = end - distance;
            let octet = |place: usize| {
                self.history.get(from + place).copied().unwrap_or_else(|| rest[place - distance])
            };
            let same = rest.iter().take(258).enumerate();
            (same.take_while(|&(place, &next)| octet(place) == next).count(), distance)
        });
        lengths.max().unwrap_or_default()
    }

    fn remember(&mut self, octet: u8) {
        self.history.push(octet);
        if let Some(last) = self.history.last_chunk() {
            self.seen.insert(*last, self.history.len() - 3);
        }
    }

    /// A literal or a length, by the fixed code (RFC 1951 section 3.2.6).
    fn symbol(&mut self, symbol: u32) {
        match symbol {
            0..144 => self.code(0x30 + symbol, 8),
            144..256 => self.code(0x190 + symbol - 144, 9),
            256..280 => self.code(symbol - 256, 7),
            _ => self.code(0xc0 + symbol - 280, 8),
        }
    }

    /// A Huffman code, whose first bit is its highest.
    fn code(&mut self, code: u32, count: u32) {
        self.put(code.reverse_bits() >> (32 - count), count);
    }

    fn put(&mut self, bits: u32, count: u32) {
        self.bits |= bits << self.count;
        self.count += count;
        while self.count >= 8 {
            self.octets.push(self.bits as u8);
            self.bits >>= 8;
            self.count -= 8;
        }
    }

    fn align(&mut self) {
        self.put(0, (8 - self.count % 8) % 8);
    }
}

/// The client's inflater: two that have to agree, and keep to the window.
struct Receiver {
    agreed: Agreed,
    zlib: Decompress,
    plain: Inflater,
}

impl Receiver {
    fn new(agreed: Agreed) -> Receiver {
        // zlib's least window is wider than the least there is. The other one knows.
        let zlib = Decompress::new_with_window_bits(false, agreed.server_bits.max(9) as u8);
        Receiver { agreed, zlib, plain: Inflater::default() }
    }

    fn inflate(&mut self, payload: &[u8]) -> Result<Vec<u8>, String> {
        if self.agreed.server_no_context_takeover {
            self.zlib.reset(false);
            self.plain = Inflater::default();
        }
        let message = self.plain.message(payload).map_err(|end| format!("{end:?}"))?;
        let (greatest, bits) = (self.plain.greatest, self.agreed.server_bits);
        if greatest > 1 << bits {
            return Err(format!("a distance of {greatest} in a window of {bits} bits"));
        }
        let input = [payload, &TAIL].concat();
        let (mut rest, mut output) = (&input[..], Vec::with_capacity(message.len() + 1));
        while !rest.is_empty() {
            let before = self.zlib.total_in();
            let status = self.zlib.decompress_vec(rest, &mut output, FlushDecompress::Sync);
            let status = status.map_err(|error| error.to_string())?;
            let read = (self.zlib.total_in() - before) as usize;
            rest = &rest[read..];
            if status == Status::StreamEnd {
                self.zlib.reset(false);
            } else if read == 0 {
                return Err("zlib inflates to more".to_owned());
            }
        }
        if output != message {
            return Err("zlib inflates to something else".to_owned());
        }
        Ok(message)
    }
}

/// A plain, slow inflater (RFC 1951), which can be asked after any octet.
#[derive(Clone, Default)]
struct Inflater {
    /// All of the data set.
    history: Vec<u8>,
    /// The greatest distance so far.
    greatest: usize,
}

/// Why there are no more octets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// There is no block to go on with.
    Between,
    /// More must follow.
    Within,
    /// Nothing that follows could make it right.
    Invalid,
}

/// The bits of a stream, the lowest of each octet first.
struct Bits<'a> {
    octets: &'a [u8],
    at: usize,
}

impl Bits<'_> {
    fn take(&mut self, count: u32) -> Result<usize, End> {
        let mut bits = 0;
        for place in 0..count {
            let octet = self.octets.get(self.at / 8).ok_or(End::Within)?;
            bits |= usize::from(octet >> (self.at % 8) & 1) << place;
            self.at += 1;
        }
        Ok(bits)
    }

    fn align(&mut self) {
        self.at = self.at.next_multiple_of(8);
    }
}

/// A Huffman code: how many symbols each length has, and the symbols in the order of their codes.
struct Code {
    counts: [usize; 16],
    symbols: Vec<usize>,
    /// Codes of the greatest length that stand for nothing; less than none is too many.
    left: isize,
}

impl Code {
    fn new(lengths: &[usize]) -> Code {
        let mut counts = [0; 16];
        lengths.iter().for_each(|&length| counts[length] += 1);
        let mut left = 1;
        for &count in &counts[1..] {
            left = left * 2 - count as isize;
            if left < 0 {
                break;
            }
        }
        let mut symbols: Vec<usize> = (0..lengths.len()).filter(|&at| lengths[at] > 0).collect();
        symbols.sort_by_key(|&symbol| lengths[symbol]);
        Code { counts, symbols, left }
    }

    /// Whether it can be used: complete, or of one symbol with one bit, or empty.
    fn is_usable(&self) -> bool {
        self.left == 0 || self.left > 0 && self.counts[1..].iter().sum::<usize>() == self.counts[1]
    }

    fn read(&self, bits: &mut Bits<'_>) -> Result<usize, End> {
        let (mut code, mut first, mut index) = (0, 0, 0);
        for &count in &self.counts[1..] {
            code |= bits.take(1)?;
            if code < first + count {
                return Ok(self.symbols[index + code - first]);
            }
            index += count;
            first = (first + count) << 1;
            code <<= 1;
        }
        Err(End::Invalid)
    }
}

/// The lengths of symbols from 257 on, and how many bits are added (RFC 1951 section 3.2.5).
const LENGTHS: [(usize, u32); 29] = {
    let mut lengths = [(0, 0); 29];
    let (mut code, mut length) = (0, 3);
    while code < 28 {
        let extra = if code < 8 { 0 } else { code as u32 / 4 - 1 };
        lengths[code] = (length, extra);
        length += 1 << extra;
        code += 1;
    }
    lengths[28] = (258, 0);
    lengths
};

/// The same of distances.
const DISTANCES: [(usize, u32); 30] = {
    let mut distances = [(0, 0); 30];
    let (mut code, mut distance) = (0, 1);
    while code < 30 {
        let extra = if code < 4 { 0 } else { code as u32 / 2 - 1 };
        distances[code] = (distance, extra);
        distance += 1 << extra;
        code += 1;
    }
    distances
};

impl Inflater {
    /// A whole message, or what is wrong with it: it must end between two blocks, at the end of an
    /// octet.
    fn message(&mut self, payload: &[u8]) -> Result<Vec<u8>, End> {
        let mut output = Vec::new();
        match self.inflate(&[payload, &TAIL].concat(), &mut output) {
            End::Between => Ok(output),
            end @ (End::Within | End::Invalid) => Err(end),
        }
    }

    /// Inflates all that can be known of `octets`.
    fn inflate(&mut self, octets: &[u8], output: &mut Vec<u8>) -> End {
        let mut bits = Bits { octets, at: 0 };
        while bits.at < octets.len() * 8 {
            if let Err(end) = self.block(&mut bits, output) {
                return end;
            }
        }
        End::Between
    }

    fn block(&mut self, bits: &mut Bits<'_>, output: &mut Vec<u8>) -> Result<(), End> {
        let is_final = bits.take(1)? == 1;
        match bits.take(2)? {
            0 => {
                bits.align();
                let (length, complement) = (bits.take(16)?, bits.take(16)?);
                if length != !complement & 0xffff {
                    return Err(End::Invalid);
                }
                for _ in 0..length {
                    self.say(bits.take(8)? as u8, output);
                }
            }
            1 => {
                let mut lengths = [8; 288];
                lengths[144..256].fill(9);
                lengths[256..280].fill(7);
                self.symbols(&Code::new(&lengths), &Code::new(&[5; 30]), bits, output)?;
            }
            2 => {
                let (literals, distances) = codes(bits)?;
                self.symbols(&literals, &distances, bits, output)?;
            }
            _ => return Err(End::Invalid),
        }
        if is_final {
            bits.align();
            self.history.clear();
        }
        Ok(())
    }

    fn symbols(
        &mut self,
        literals: &Code,
        distances: &Code,
        bits: &mut Bits<'_>,
        output: &mut Vec<u8>,
    ) -> Result<(), End> {
        loop {
            let symbol = literals.read(bits)?;
            if symbol < 256 {
                self.say(symbol as u8, output);
                continue;
            }
            let Some(code) = symbol.checked_sub(257) else { return Ok(()) };
            let &(base, extra) = LENGTHS.get(code).ok_or(End::Invalid)?;
            let length = base + bits.take(extra)?;
            let (base, extra) = DISTANCES[distances.read(bits)?];
            let distance = base + bits.take(extra)?;
            if distance > self.history.len() {
                return Err(End::Invalid);
            }
            self.greatest = self.greatest.max(distance);
            for _ in 0..length {
                self.say(self.history[self.history.len() - distance], output);
            }
        }
    }

    fn say(&mut self, octet: u8, output: &mut Vec<u8>) {
        self.history.push(octet);
        output.push(octet);
    }
}

/// The codes that a block brings with it (RFC 1951 section 3.2.7).
fn codes(bits: &mut Bits<'_>) -> Result<(Code, Code), End> {
    let (literals, distances) = (bits.take(5)? + 257, bits.take(5)? + 1);
    let count = bits.take(4)? + 4;
    if literals > 286 || distances > 30 {
        return Err(End::Invalid);
    }
    let mut lengths = [0; 19];
    for place in [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15][..count].iter()
    {
        lengths[*place] = bits.take(3)?;
    }
    let code = Code::new(&lengths);
    if code.left != 0 {
        return Err(End::Invalid);
    }
    let mut lengths = Vec::new();
    while lengths.len() < literals + distances {
        let (length, times) = match code.read(bits)? {
            16 => (*lengths.last().ok_or(End::Invalid)?, 3 + bits.take(2)?),
            17 => (0, 3 + bits.take(3)?),
            18 => (0, 11 + bits.take(7)?),
            length => (length, 1),
        };
        lengths.extend(vec![length; times]);
    }
    if lengths.len() > literals + distances || lengths[256] == 0 {
        return Err(End::Invalid);
    }
    let (literals, distances) = (Code::new(&lengths[..literals]), Code::new(&lengths[literals..]));
    if !literals.is_usable() || !distances.is_usable() {
        return Err(End::Invalid);
    }
    Ok((literals, distances))
}

/// What a message inflates to behind those that `inflater` has seen, with `is_whole` or so far.
fn judge(inflater: &Inflater, payload: &[u8], is_whole: bool) -> Result<Vec<u8>, End> {
    let mut inflater = inflater.clone();
    if is_whole {
        return inflater.message(payload);
    }
    let mut output = Vec::new();
    inflater.inflate(payload, &mut output);
    Ok(output)
}

/// After how many octets of its payload it is certain that a message is no text, or too large.
fn certain_after(payload: &[u8], is_text: bool, message_max: u64) -> Option<usize> {
    (0..=payload.len()).find(|&end| {
        let output = judge(&Inflater::default(), &payload[..end], false).expect("it is not whole");
        let is_wrong = std::str::from_utf8(&output).is_err_and(|error| error.error_len().is_some());
        is_text && is_wrong || output.len() as u64 > message_max
    })
}

/// Sends a message octet by octet, to be failed after `certain` octets of its payload.
fn check_certain(settings: Settings, first: u8, payload: &[u8], certain: usize, code: u16) {
    let octets = frame(first | RSV1, payload);
    let header = octets.len() - payload.len();
    check_certain_in(settings, &octets, header + certain, code);
}

fn check_certain_in(settings: Settings, octets: &[u8], certain: usize, code: u16) {
    let cuts: Vec<usize> = (1..octets.len()).collect();
    let answer = answer(settings, "permessage-deflate", octets, &cuts);
    assert_eq!(answer.code(), Some(code), "{octets:x?}");
    assert_eq!(answer.closed_after, Some(certain), "{settings:?} {octets:x?}");
}

/// What a server answers to a stream behind its handshake.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    frames: Vec<support::Frame>,
    /// After how many octets it had no more to say.
    closed_after: Option<usize>,
}

impl Answer {
    /// The code with which it failed.
    fn code(&self) -> Option<u16> {
        let code = self.frames.last().and_then(closing);
        assert_eq!(code.is_some(), self.closed_after.is_some(), "{self:x?}");
        code
    }

    /// Its frames. Those that were compressed again say only what their message inflates to: where
    /// the output of zlib ends with the memory that it was given, it flushes once more.
    fn said(&self, policy: Policy) -> Vec<(u8, Vec<u8>)> {
        let mut inflater = Inflater::default();
        let (mut is_compressed, mut payload) = (false, Vec::new());
        let said = self.frames.iter().map(|frame| {
            let is_control = frame.first & 0x08 != 0;
            if !is_control && frame.first & 0x0f != 0 {
                is_compressed = frame.first & RSV1 != 0;
            }
            if is_control || !is_compressed || policy == Policy::Mirror {
                return (frame.first, frame.payload.clone());
            }
            payload.extend(&frame.payload);
            if frame.first & FIN == 0 {
                return (frame.first, Vec::new());
            }
            let payload = std::mem::take(&mut payload);
            (frame.first, inflater.message(&payload).expect("the server's can be inflated"))
        });
        said.collect()
    }
}

fn answer(settings: Settings, offer: &str, octets: &[u8], cuts: &[usize]) -> Answer {
    answer_in(16384, settings, offer, octets, cuts)
}

fn answer_in(
    room: usize,
    settings: Settings,
    offer: &str,
    octets: &[u8],
    cuts: &[usize],
) -> Answer {
    let counters = Counters::default();
    let context = Context::new(settings, &counters);
    let mut peer = Peer::new(room, &context);
    peer.handshake(offer);
    peer.feed(octets, cuts);
    peer.send(usize::MAX);
    Answer { frames: parse(&peer.sent), closed_after: peer.closed_after }
}

/// The answers to a stream cut once at each octet, at all of them, and not at all. They say the
/// same.
fn every_cut(settings: Settings, offer: &str, octets: &[u8]) -> Vec<Answer> {
    let whole = answer(settings, offer, octets, &[]);
    let all: Vec<usize> = (1..octets.len()).collect();
    let ways = all.chunks(1).map(|cut| (16384, cut)).chain([(16384, &all[..]), (16, &[])]);
    let mut answers: Vec<Answer> =
        ways.map(|(room, cuts)| answer_in(room, settings, offer, octets, cuts)).collect();
    let said = whole.said(settings.policy);
    for answer in &answers {
        assert_eq!(answer.said(settings.policy), said, "{settings:?} {octets:x?}");
    }
    answers.push(whole);
    answers
}

/// A connection fed as the engine feeds it: in place while nothing waits, else by a spill, which is
/// widened when it is asked for.
struct Peer<'a> {
    connection: Connection,
    context: &'a Context<'a>,
    pinned: Vec<u8>,
    spill: Option<Spill>,
    sending: BytesMut,
    sent: Vec<u8>,
    next: Next,
    /// The protocol waits for room until more is sent.
    is_held: bool,
    /// What decides whether it waits and how much is sent at a time; without it all goes at once.
    holds: Option<Random>,
    received: usize,
    closed_after: Option<usize>,
}

impl<'a> Peer<'a> {
    fn new(room: usize, context: &'a Context<'a>) -> Peer<'a> {
        Peer {
            connection: Connection::new(Admission::Open),
            context,
            pinned: vec![0xee; HEADROOM + room],
            spill: None,
            sending: BytesMut::new(),
            sent: Vec::new(),
            next: Next::Receive,
            is_held: false,
            holds: None,
            received: 0,
            closed_after: None,
        }
    }

    /// The opening handshake; returns the response.
    fn handshake(&mut self, offer: &str) -> String {
        self.feed(request(offer).as_bytes(), &[]);
        self.send(usize::MAX);
        self.received = 0;
        let response = String::from_utf8(std::mem::take(&mut self.sent)).expect("ASCII");
        assert!(response.ends_with("\r\n\r\n"), "{response}");
        response
    }

    /// Receives `octets`, cut at these places and where a buffer is full.
    fn feed(&mut self, octets: &[u8], cuts: &[usize]) {
        let room = self.pinned.len() - HEADROOM;
        let mut from = 0;
        for &cut in cuts.iter().chain([&octets.len()]) {
            for chunk in octets[from..cut].chunks(room) {
                self.receive(chunk);
                self.received += chunk.len();
                if self.next == Next::Close && self.closed_after.is_none() {
                    self.closed_after = Some(self.received);
                }
                let most = |random: &mut Random| random.below(2) * random.below(4 * room);
                let count = self.holds.as_mut().map_or(usize::MAX, most);
                self.send(count);
            }
            from = cut;
        }
    }

    fn receive(&mut self, chunk: &[u8]) {
        if self.sending.is_empty() && self.spill.is_none() {
            let mut cursors = Cursors::received(chunk.len());
            self.pinned[HEADROOM..HEADROOM + chunk.len()].copy_from_slice(chunk);
            let region = &mut Region::new(&mut self.pinned, &mut cursors);
            self.next = self.connection.advance(region, self.context);
            if cursors.has_leftover() {
                self.spill = Some(Spill::leftover(&self.pinned, &mut cursors));
            }
            self.sending = BytesMut::from(&self.pinned[cursors.reply()]);
        } else {
            let spill = self.spill.get_or_insert_default();
            spill.append(chunk);
            self.next = self.connection.advance(&mut spill.region(), self.context);
            self.spill.take_if(|spill| spill.is_empty());
        }
        self.expand();
        self.settle();
    }

    fn expand(&mut self) {
        let mut answered = None;
        while let Next::Expand(octets) = self.next {
            let waiting = self.sending.len() + self.spill.as_ref().map_or(0, Spill::reply_octets);
            self.is_held =
                waiting > 0 && self.holds.as_mut().is_some_and(|random| random.one_in(2));
            if self.is_held {
                break;
            }
            if octets > 0 {
                assert_ne!(answered.replace(self.answered()), Some(self.answered()), "no progress");
            }
            let spill = self.spill.get_or_insert_default();
            spill.widen(octets);
            self.next = self.connection.advance(&mut spill.region(), self.context);
        }
        self.spill.take_if(|spill| spill.is_empty());
    }

    fn close(&mut self) {
        let spill = self.spill.get_or_insert_default();
        self.next = self.connection.close(CloseCode::GOING_AWAY, &mut spill.region(), self.context);
        self.is_held = false;
        self.spill.take_if(|spill| spill.is_empty());
        self.settle();
    }

    /// A send that is cut short after `octets`, with those that follow it.
    fn send(&mut self, mut octets: usize) {
        while octets > 0 && !self.sending.is_empty() {
            let count = octets.min(self.sending.len());
            self.sent.extend_from_slice(&self.sending[..count]);
            self.sending.advance(count);
            octets -= count;
            self.settle();
        }
    }

    fn settle(&mut self) {
        loop {
            if self.sending.is_empty()
                && let Some(spill) = self.spill.take_if(|spill| spill.has_reply())
            {
                (self.sending, self.spill) = spill.split_reply();
            }
            // What waits for room must not wait for nothing.
            if !self.is_held || !self.sending.is_empty() {
                return;
            }
            self.next = Next::Expand(0);
            self.expand();
        }
    }

    /// Octets of the answer so far, sent or not.
    fn answered(&self) -> usize {
        let waiting = self.spill.as_ref().map_or(0, Spill::reply_octets);
        self.sent.len() + self.sending.len() + waiting
    }
}

/// Counts what this thread has on the heap.
mod heap {
    #![expect(unsafe_code, reason = "an allocator has to say so; it hands all on as it comes")]

    use std::alloc::{GlobalAlloc, Layout, System};
    use std::cell::Cell;

    struct Counting;

    #[global_allocator]
    static COUNTING: Counting = Counting;

    thread_local! {
        static HELD: Cell<isize> = const { Cell::new(0) };
        static PEAK: Cell<isize> = const { Cell::new(0) };
        static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
    }

    /// Octets on the heap; less than none where this thread has freed those of others.
    pub(crate) fn held() -> isize {
        HELD.get()
    }

    /// The most of them since [`restart_peak`].
    pub(crate) fn peak() -> isize {
        PEAK.get()
    }

    pub(crate) fn restart_peak() {
        PEAK.set(HELD.get());
    }

    /// How often something was allocated.
    pub(crate) fn allocations() -> u64 {
        ALLOCATIONS.get()
    }

    fn taken(octets: usize) {
        HELD.set(HELD.get() + octets as isize);
        PEAK.set(PEAK.get().max(HELD.get()));
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
    }

    fn freed(octets: usize) {
        HELD.set(HELD.get() - octets as isize);
    }

    // SAFETY: `System` does it all; the counts are of this thread and allocate nothing.
    unsafe impl GlobalAlloc for Counting {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            taken(layout.size());
            // SAFETY: the caller keeps to what `System` demands, which is what this demands.
            unsafe { System.alloc(layout) }
        }

        unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
            taken(layout.size());
            // SAFETY: as above.
            unsafe { System.alloc_zeroed(layout) }
        }

        unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
            freed(layout.size());
            // SAFETY: as above.
            unsafe { System.dealloc(place, layout) }
        }

        unsafe fn realloc(&self, place: *mut u8, layout: Layout, octets: usize) -> *mut u8 {
            // Both are there while one is copied to the other.
            taken(octets);
            freed(layout.size());
            // SAFETY: as above.
            unsafe { System.realloc(place, layout, octets) }
        }
    }
}
