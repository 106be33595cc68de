//! The limits of a message: as it was sent, and inflated.

use ringecho::protocol::Settings;
use ringecho::protocol::compression::compressed_max;

use crate::POLICIES;
use crate::agreement::{Agreed, settings};
use crate::answer::{answer, certain_after, check_certain, check_certain_in};
use crate::script::Vocabulary;
use crate::sender::Sender;
use testkit::RSV1;
use testkit::inflate::Inflater;
use testkit::{FIN, TEXT, cases, frame};

#[test]
fn a_message_may_inflate_to_the_limit_and_not_to_an_byte_more() {
    for mut case in cases("a_message_may_inflate_to_the_limit", 60) {
        let random = &mut case.random;
        let limit = random.pick(&[1, 2, 100, 258, 1000, 32767, 32768, 32769, 65536, 100_000]);
        let message_max = limit as u64;
        let vocabulary = Vocabulary::new(random);
        let is_flat = random.one_in(2);
        let mut message = |bytes| match is_flat {
            true => vec![b'0'; bytes],
            false => vocabulary.message(bytes, true, random),
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
        let bytes = [
            frame(TEXT | RSV1, &first),
            // The limit is that of the message and not of its fragments.
            frame(TEXT & !FIN | RSV1, &second[..cut]),
            frame(FIN, &second[cut..]),
            frame(TEXT | RSV1, &third),
        ]
        .concat();
        for policy in POLICIES {
            let settings = Settings { message_max, ..settings(policy) };
            let cuts = random.cuts(bytes.len());
            let answer = answer(settings, "permessage-deflate", &bytes, &cuts);
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
        for (bytes, is_taken) in [(most, true), (most + 1, false)] {
            let payload = aligned(bytes);
            assert!(Inflater::default().message(&payload).is_ok_and(|text| text.len() < 5));
            let whole = frame(TEXT | RSV1, &payload);
            let pieces = [
                frame(TEXT & !FIN | RSV1, &payload[..400]),
                frame(0, &payload[400..900]),
                frame(FIN, &payload[900..]),
            ]
            .concat();
            let last_header = pieces.len() - (bytes - 900);
            for (stream, frames, header) in [(whole, 1, 8), (pieces, 3, last_header)] {
                let answer = answer(settings, "permessage-deflate", &stream, &[]);
                let code = (!is_taken).then_some(1009);
                assert_eq!((answer.frames.len(), answer.code()), (frames, code), "{bytes}");
                // The header is enough to say so.
                if !is_taken {
                    check_certain_in(settings, &stream, header, 1009);
                }
            }
        }
    }
}

/// A payload of `bytes` bytes that inflates to almost nothing: blocks without content, with as
/// many bytes in a stored one as are left over.
fn aligned(bytes: usize) -> Vec<u8> {
    let spare = (bytes - 1) % 5;
    let count = spare as u8;
    let mut payload = Vec::new();
    if spare > 0 {
        // One more block, whose header takes five.
        payload.extend([0, count, 0, !count, 0xff]);
        payload.extend(vec![b'x'; spare]);
    }
    while payload.len() + 1 < bytes {
        payload.extend([0, 0, 0, 0xff, 0xff]);
    }
    payload.push(0);
    assert_eq!(payload.len(), bytes);
    payload
}
