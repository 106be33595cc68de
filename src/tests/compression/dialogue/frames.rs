//! The frames of compressed messages: reserved bits, fragments, cuts, and a close between any two bytes.

use std::collections::HashMap;

use ringecho::metrics::Counters;
use ringecho::protocol::{Context, Decision, Policy, Settings};

use crate::agreement::{Agreed, request, settings};
use crate::answer::{Answer, answer, every_cut};
use crate::peer::Peer;
use crate::script::Vocabulary;
use crate::sender::Sender;
use crate::{POLICIES, ROOMS};
use testkit::RSV1;
use testkit::frame::parse;
use testkit::inflate::Inflater;
use testkit::{BINARY, CLOSE, FIN, PING, PONG, TEXT, cases, frame};

#[test]
fn a_payload_without_bytes_is_no_message_but_a_fragment_may_be() {
    for policy in POLICIES {
        let streams = [
            (frame(TEXT | RSV1, b""), None),
            (frame(BINARY | RSV1, b""), None),
            ([frame(TEXT & !FIN | RSV1, b""), frame(FIN, b"")].concat(), Some(1)),
            ([frame(TEXT & !FIN | RSV1, b""), frame(FIN, b"\0")].concat(), Some(2)),
            ([frame(TEXT & !FIN | RSV1, b"\0"), frame(FIN, b"")].concat(), Some(2)),
        ];
        for (bytes, echoed) in streams {
            for answer in every_cut(settings(policy), "permessage-deflate", &bytes) {
                let is_wrong = echoed.is_none_or(|frames| frames < 2);
                assert_eq!(answer.code(), is_wrong.then_some(1007), "{bytes:x?}");
                let frames = echoed.unwrap_or(0) + usize::from(is_wrong);
                assert_eq!(answer.frames.len(), frames, "{bytes:x?}");
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
            let bytes = [before, &frame(first, whole)].concat();
            let settings = settings(policy);
            for answer in every_cut(settings, offer, &bytes) {
                assert_eq!(answer.code(), Some(1002), "{offer} {first:x}");
                let echoes = usize::from(!before.is_empty());
                assert_eq!(answer.frames.len(), 1 + echoes, "{offer} {first:x}");
            }
            let cuts: Vec<usize> = (1..bytes.len()).collect();
            let certain = answer(settings, offer, &bytes, &cuts).closed_after;
            assert_eq!(certain, Some(before.len() + 1), "{offer} {first:x}");
        }
        // What was not agreed on for want of a policy.
        let settings = Settings { policy: Policy::Off, ..settings(policy) };
        let answer = answer(settings, agreed, &frame(TEXT | RSV1, whole), &[]);
        assert_eq!((answer.frames.len(), answer.code()), (1, Some(1002)));
    }
}

#[test]
fn every_cut_of_short_streams_gets_the_same_bytes() {
    let settings = |policy| Settings { message_max: 200, ..settings(policy) };
    let mut ends = HashMap::new();
    for mut case in cases("every_cut_of_short_streams", 60) {
        let random = &mut case.random;
        let vocabulary = Vocabulary::new(random);
        let mut sender = Sender::new(Agreed::default(), random);
        let mut bytes = Vec::new();
        for _ in 0..1 + random.below(3) {
            let is_text = random.one_in(2);
            let length = random.pick(&[0, 5, 40, 199, 200, 201]);
            let mut message = vocabulary.message(length, is_text, random);
            if random.one_in(6)
                && let Some(byte) = message.first_mut()
            {
                *byte = 0xff;
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
            bytes.extend(frame(opcode | RSV1, &payload[..cut]));
            if random.one_in(2) {
                bytes.extend(frame(PING, b"ping"));
            }
            bytes.extend(frame(FIN, &payload[cut..]));
            bytes.extend(frame(BINARY, b"plain"));
        }
        for policy in POLICIES {
            let answers = every_cut(settings(policy), "permessage-deflate", &bytes);
            let mut codes = answers.iter().map(Answer::code);
            *ends.entry(codes.next().expect("an answer")).or_insert(0) += 1;
        }
    }
    // All that the generator is for has been met.
    assert!([None, Some(1007), Some(1009)].iter().all(|end| ends.contains_key(end)), "{ends:?}");
}

#[test]
fn the_server_may_close_at_any_byte() {
    for mut case in cases("the_server_may_close_at_any_byte", 6) {
        let random = &mut case.random;
        let vocabulary = Vocabulary::new(random);
        let mut sender = Sender::new(Agreed::default(), random);
        let messages = [30, 400, 0, 100].map(|bytes| vocabulary.message(bytes, true, random));
        let payloads = messages.each_ref().map(|message| sender.compress(message, random));
        let frames: Vec<Vec<u8>> = payloads
            .iter()
            .flat_map(|payload| {
                let (left, right) = payload.split_at(payload.len() / 2);
                [frame(TEXT & !FIN | RSV1, left), frame(PING, b"ping"), frame(FIN, right)]
            })
            .collect();
        let bytes = frames.concat();
        for policy in POLICIES {
            for close_at in 0..=bytes.len() {
                let counters = Counters::default();
                // So little that a longer reply waits for room until some of it is sent.
                let context =
                    Context::new(settings(policy), &counters).with_backlog_max(random.below(300));
                let mut peer = Peer::new(random.pick(&ROOMS), &context);
                peer.handshake(&request("permessage-deflate"));
                peer.feed(&bytes[..close_at], &[], Some(&mut *random));
                peer.close();
                peer.feed(&bytes[close_at..], &[], Some(&mut *random));
                peer.feed(&frame(CLOSE, &1001u16.to_be_bytes()), &[], None);
                peer.send(usize::MAX);
                assert_eq!(peer.decision, Decision::Close);
                let replies = parse(&peer.sent);
                let (close, echoed) = replies.split_last().expect("a close frame");
                assert_eq!((close.close_code(), close.payload.len()), (Some(1001), 2));
                let mut taken = 0;
                let whole = frames.iter().take_while(|frame| {
                    taken += frame.len();
                    taken <= close_at
                });
                // A frame that still waits for room is not sent, nor one after it.
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
