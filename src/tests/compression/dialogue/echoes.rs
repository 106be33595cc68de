//! Everything that may be agreed on, and random messages under it.

use ringecho::buffer::{SPILL_POOL_DEFAULT, SpillPool};
use ringecho::metrics::Counters;
use ringecho::protocol::{Context, Decision, FrameLimits, Limits, Policy, Protocol, Settings};

use crate::agreement::{Offer, request};
use crate::peer::Peer;
use crate::script::{Script, Size};
use crate::{MESSAGE_MAX, ROOMS};
use testkit::cases;

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
        let settings = Settings {
            protocol: Protocol::WebSocket,
            message_max: MESSAGE_MAX,
            policy,
            level,
            frames: FrameLimits::NONE,
        };
        let backlog_max = random.pick(&[0, 100, 5000, 64 << 10]);
        let turn = random.pick(&[1, 200, 10_000]);
        let block = random.pick(&[1024, 272 << 10]);
        let context = Context::new(settings, &counters)
            .with_spill_pool(SpillPool::with_block(SPILL_POOL_DEFAULT, block, Default::default()))
            .with_backlog_max(backlog_max)
            .with_limits(Limits { cycle: 2 * turn, turn });
        let mut peer = Peer::new(random.pick(&ROOMS), &context);
        let response = peer.handshake(&request(&offer.field()));
        let agreed = offer.answered(&response, policy);
        let script = Script::write(agreed, size, random);
        let cuts = random.cuts(script.bytes.len());
        peer.feed(&script.bytes, &cuts, Some(&mut *random));
        peer.send(usize::MAX);
        assert_eq!(peer.decision, Decision::Continue, "{offer:?} {script:?}");
        assert!(!peer.has_spill(), "memory is kept of {offer:?} {script:?}");
        script.check(&peer.sent, &format!("{offer:?} {policy:?}"));
        let compressed = script.compressed_messages();
        let is_mirrored = agreed.is_some_and(|agreed| agreed.is_mirrored);
        let expected = if is_mirrored { (compressed, 0) } else { (0, compressed) };
        let counted = (counters.messages_mirrored.value(), counters.messages_recompressed.value());
        assert_eq!(counted, expected, "{offer:?} {policy:?}");
        assert_eq!(counters.messages.value(), script.messages.len() as u64);
        echoed[agreed.map_or(0, |agreed| 1 + usize::from(agreed.is_mirrored))] += 1;
    }
    // Declined are windows of 256 bytes that the server would have to compress for.
    let expected = match policy {
        Policy::Mirror => [4, 24, 332],
        Policy::Deflate => [40, 320, 0],
        Policy::Off => unreachable!("nothing is compressed"),
    };
    assert_eq!(echoed, expected, "declined, compressed again, mirrored");
}
