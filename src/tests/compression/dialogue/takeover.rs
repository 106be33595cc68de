//! Context takeover: how far a message may refer back, and connections that take turns at what inflates and
//! compresses their messages.

use ringecho::metrics::Counters;
use ringecho::protocol::{Context, Decision, FrameLimits, Limits, Policy, Protocol, Settings};

use crate::agreement::{Offer, request, settings};
use crate::answer::every_cut;
use crate::peer::Peer;
use crate::script::{Script, Size};
use crate::{MESSAGE_MAX, POLICIES, ROOMS};
use testkit::frame::parse;
use testkit::{BINARY, RSV1, Random, cases, frame};

/// A message of three bytes that are `distance` bytes back, one of 257 to 1,024 or 24,577 to 32,768: a block
/// with fixed codes (RFC 1951 section 3.2.6), and the beginning of the empty one after it.
fn reference(distance: u32) -> Vec<u8> {
    let (code, first, extra) = match distance {
        257..=384 => (16_u32, 257, 7),
        385..=512 => (17, 385, 7),
        513..=768 => (18, 513, 8),
        769..=1024 => (19, 769, 8),
        24_577..=32_768 => (29, 24_577, 13),
        _ => panic!("{distance}"),
    };
    let mut bits: Vec<u32> = vec![0, 1, 0];
    // A length of 3, in seven bits; the distance, its code from the highest bit, the rest from the lowest.
    bits.extend([0, 0, 0, 0, 0, 0, 1]);
    bits.extend((0..5).rev().map(|bit| code >> bit & 1));
    bits.extend((0..extra).map(|bit| (distance - first) >> bit & 1));
    // The end of the block, and the header of the next.
    bits.extend([0; 7 + 3]);
    let byte = |bits: &[u32]| bits.iter().rev().fold(0, |byte, &bit| byte << 1 | bit as u8);
    bits.chunks(8).map(byte).collect()
}

/// A block without compression; `header` is 1 if it ends its data set, else 0.
fn stored(header: u8, piece: &[u8]) -> Vec<u8> {
    let length = piece.len() as u16;
    [&[header][..], &length.to_le_bytes(), &(!length).to_le_bytes(), piece].concat()
}

/// Whether a connection takes `second` after `first`. It does so whether or not others have used the same
/// inflater in between.
fn takes(offer: &str, first: &[u8], second: &[u8]) -> bool {
    let counters = Counters::default();
    let verdicts = [0, 1, 20].map(|others| {
        let context = Context::new(settings(Policy::Mirror), &counters);
        let open = |offer: &str| {
            let mut peer = Peer::new(16384, &context);
            peer.handshake(&request(offer));
            peer.feed(&frame(BINARY | RSV1, first), &[], None);
            peer
        };
        let mut peer = open(offer);
        for _ in 0..others {
            open("permessage-deflate");
        }
        peer.feed(&frame(BINARY | RSV1, second), &[], None);
        peer.send(usize::MAX);
        match parse(&peer.sent)[1].close_code() {
            None => true,
            Some(1007) => false,
            Some(code) => panic!("{code}"),
        }
    });
    assert!(verdicts.iter().all(|&verdict| verdict == verdicts[0]), "{offer} {verdicts:?}");
    verdicts[0]
}

#[test]
fn a_message_refers_back_into_earlier_ones_as_far_as_was_agreed_and_no_further() {
    let text = Random::new(1).bytes(40_000);
    let (begin, end) = text.split_at(20_000);
    let first = [stored(0, begin), stored(0, end), vec![0]].concat();
    for (offer, distance, is_right) in [
        ("; client_max_window_bits=9", 512, true),
        ("; client_max_window_bits=9", 513, false),
        ("; client_max_window_bits=10", 1024, true),
        ("; client_max_window_bits=8", 257, false),
        ("; client_max_window_bits=15", 32_768, true),
        ("", 32_768, true),
        ("; client_no_context_takeover", 257, false),
    ] {
        let offer = format!("permessage-deflate{offer}");
        assert_eq!(takes(&offer, &first, &reference(distance)), is_right, "{offer} {distance}");
    }
    // Within one message the inflater knows all that there is, so nobody minds.
    let block = [stored(0, &text[..600]), reference(513)].concat();
    let offer = "permessage-deflate; client_max_window_bits=9";
    for answer in every_cut(settings(Policy::Mirror), offer, &frame(BINARY | RSV1, &block)) {
        assert_eq!(answer.code(), None);
    }
}

#[test]
fn a_message_refers_to_no_data_set_that_has_ended() {
    let text = Random::new(1).bytes(1000);
    let within = [stored(1, &text), stored(0, &text[..300]), vec![0]].concat();
    let at_its_end = [stored(1, &text), vec![0]].concat();
    for offer in ["permessage-deflate", "permessage-deflate; client_max_window_bits=10"] {
        assert!(takes(offer, &within, &reference(300)));
        assert!(!takes(offer, &within, &reference(301)));
        assert!(!takes(offer, &at_its_end, &reference(257)));
    }
}

#[test]
fn connections_that_take_turns_do_not_disturb_each_other() {
    let offers = Offer::all();
    for mut case in cases("connections_that_take_turns", 40) {
        let random = &mut case.random;
        let policy = random.pick(&POLICIES);
        let level = 1 + random.below(9) as u8;
        let settings = Settings {
            protocol: Protocol::WebSocket,
            message_max: MESSAGE_MAX,
            policy,
            level,
            frames: FrameLimits::NONE,
        };
        let counters = Counters::default();
        let turn = random.pick(&[1, 200, 10_000]);
        let context = Context::new(settings, &counters).with_limits(Limits { cycle: turn, turn });
        let count = random.pick(&[2, 5, 20]);
        let offer = random.pick(&offers);
        let is_one_offer = random.one_in(2);
        let mut talks: Vec<(Peer<'_>, Script, usize)> = (0..count)
            .map(|_| {
                let offer = if is_one_offer { offer } else { random.pick(&offers) };
                let mut peer = Peer::new(random.pick(&ROOMS), &context);
                let response = peer.handshake(&request(&offer.field()));
                let script = Script::write(offer.answered(&response, policy), Size::Small, random);
                (peer, script, 0)
            })
            .collect();
        while talks.iter().any(|(_, script, told)| *told < script.bytes.len()) {
            let at = random.below(count);
            let (peer, script, told) = &mut talks[at];
            let most = random.pick(&[1, 50, 3000, 20_000]);
            let end = (*told + most).min(script.bytes.len());
            peer.feed(&script.bytes[*told..end], &[], None);
            peer.send(usize::MAX);
            *told = end;
        }
        for (peer, script, _) in &talks {
            assert_eq!(peer.decision, Decision::Continue, "{script:?}");
            script.check(&peer.sent, &format!("{policy:?}"));
        }
    }
}
