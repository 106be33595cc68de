//! Compressed streams that are right, damaged or made up, against the plain inflater.

use ringecho::protocol::{Policy, Settings};

use crate::agreement::{Agreed, settings};
use crate::answer::{Answer, answer, certain_after, check_certain, every_cut};
use crate::script::Vocabulary;
use crate::sender::Sender;
use crate::{MESSAGE_MAX, POLICIES};
use testkit::RSV1;
use testkit::inflate::Inflater;
use testkit::{BINARY, FIN, PING, PONG, Random, TEXT, cases, frame};

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
        // The data set ends with the block, and so does the byte.
        (b"\x01\x00\x00\xff\xff\x00", b""),
    ] {
        assert_eq!(Inflater::default().message(payload).as_deref(), Ok(message));
        for policy in POLICIES {
            check_verdicts(&frame(BINARY | RSV1, payload), &[payload], policy, "an example");
        }
    }
    // The second message is a reference to the first, and the third to both.
    let messages = [&b"\xf2\x48\xcd\xc9\xc9\x07\x00"[..], b"\xf2\x00\x11\x00\x00", b"\x02\x12\x00"];
    let bytes: Vec<u8> = messages.iter().flat_map(|payload| frame(TEXT | RSV1, payload)).collect();
    for policy in POLICIES {
        check_verdicts(&bytes, &messages, policy, "references");
    }
}

#[test]
fn a_message_cut_short_at_each_byte() {
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
        let mut noise = case.random.bytes(length);
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
        let bytes = [0, 40, 90].map(|most| most + random.below(30));
        let payloads = bytes.map(|bytes| {
            let message = vocabulary.message(bytes, random.one_in(2), random);
            sender.compress(&message, random)
        });
        damageable.push(payloads.to_vec());
    }
    damageable
}

/// Sends whole messages after which `payload` comes, and compares with what the oracle has to say.
fn check_last(first: &[Vec<u8>], payload: &[u8], what: &str) {
    let payloads: Vec<&[u8]> = first.iter().map(Vec::as_slice).chain([payload]).collect();
    let bytes: Vec<u8> =
        payloads.iter().flat_map(|payload| frame(BINARY | RSV1, payload)).collect();
    for policy in POLICIES {
        let answer = answer(settings(policy), "permessage-deflate", &bytes, &[]);
        check_answer(&answer, &payloads, policy, what);
    }
}

/// The same, cut everywhere.
fn check_verdicts(bytes: &[u8], payloads: &[&[u8]], policy: Policy, what: &str) {
    for answer in every_cut(settings(policy), "permessage-deflate", bytes) {
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
            assert_eq!(frame.close_code(), Some(1007), "{what} {payload:x?} {frame:x?}");
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
fn text_fails_with_the_byte_that_decodes_what_is_wrong() {
    let text = "to be, or not to be: é水🦀 or not to be é水🦀";
    for mut case in cases("text_fails_with_the_byte", 6) {
        let random = &mut case.random;
        for place in 0..=text.len() {
            let mut wrong = text.as_bytes().to_vec();
            match wrong.get_mut(place) {
                Some(byte) => *byte = 0xff,
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
        let mut random = Random::new(1);
        for end in 0..=text.len() {
            let mut sender = Sender::new(Agreed::default(), &mut random);
            let payload = sender.compress(&text.as_bytes()[..end], &mut random);
            let bytes = [frame(TEXT | RSV1, &payload), frame(TEXT, "é".as_bytes())].concat();
            for answer in every_cut(settings(policy), "permessage-deflate", &bytes) {
                let code = (!text.is_char_boundary(end)).then_some(1007);
                assert_eq!(answer.code(), code, "{end} bytes of {text:?}");
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
fn what_ends_a_data_set_ends_all_references_into_it() {
    // BFINAL on the first message; then a reference of 3 bytes to what is 5 bytes back.
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
            let bytes = [frame(TEXT | RSV1, first), frame(TEXT | RSV1, reference)].concat();
            for answer in every_cut(settings(policy), offer, &bytes) {
                assert_eq!(answer.code(), is_wrong.then_some(1007), "{offer} {first:x?}");
                assert_eq!(answer.frames.len(), 2);
            }
        }
    }
}

/// The receiver adds a tail to each payload (RFC 7692 section 7.2.2). Where the payload ends in the wrong
/// place, whatever that inflates to is not the peer's data: not text, and not part of its length.
#[test]
fn what_the_tail_inflates_to_is_not_the_peers_data() {
    let mut payloads: Vec<Vec<u8>> = (0..=u8::MAX).map(|byte| vec![byte]).collect();
    payloads.push(Vec::new());
    // Blocks without compression, for whose last bytes the tail could stand in. What a sender takes off is
    // the end of an empty block (section 7.2.1).
    payloads.push(b"\x00\x04\x00\xfb\xff".to_vec());
    payloads.push(b"\x01\x04\x00\xfb\xff".to_vec());
    payloads.push(b"\x00\x09\x00\xf6\xffHello".to_vec());
    for mut case in cases("what_the_tail_inflates_to", 400) {
        let length = 2 + case.random.below(8);
        payloads.push(case.random.bytes(length));
        let whole = b"\x00\x05\x00\xfa\xffHello\xf2\x48\xcd\xc9\xc9\x07\x00";
        payloads.push(whole[..case.random.below(whole.len())].to_vec());
    }
    for payload in &payloads {
        for (opcode, message_max) in
            [(TEXT, 3), (BINARY, 3), (TEXT, MESSAGE_MAX), (BINARY, MESSAGE_MAX)]
        {
            for policy in POLICIES {
                check_tail(opcode, payload, Settings { message_max, ..settings(policy) });
            }
        }
    }
}

/// A message of one frame and of two, the first of them empty, is judged as the plain inflater has it.
fn check_tail(opcode: u8, payload: &[u8], settings: Settings) {
    let is_text = opcode == TEXT;
    let is_wrong_before_its_end = certain_after(payload, is_text, settings.message_max).is_some();
    let verdict = Inflater::default().message(payload);
    let is_too_big = |message: &Vec<u8>| message.len() as u64 > settings.message_max;
    let is_accepted = verdict.as_ref().is_ok_and(|message| {
        !is_too_big(message) && (!is_text || std::str::from_utf8(message).is_ok())
    });
    let opening = frame(opcode & !FIN | RSV1, b"");
    for bytes in [frame(opcode | RSV1, payload), [opening, frame(FIN, payload)].concat()] {
        let answer = answer(settings, "permessage-deflate", &bytes, &[]);
        let last = answer.frames.last().expect("an answer");
        let reason = last.payload.get(2..).map(String::from_utf8_lossy);
        let what = format!("{reason:?} {bytes:x?} {settings:?}");
        assert_eq!(answer.code().is_none(), is_accepted, "{what}");
        if verdict.is_err() && !is_wrong_before_its_end {
            assert_eq!(answer.code(), Some(1007), "{what}");
            assert_eq!(reason.as_deref(), Some("compressed message cannot be inflated"), "{what}");
        }
    }
}
