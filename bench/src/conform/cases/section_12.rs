//! Sections 12 and 13: compressed messages. Section 12 sends five texts with one offer, section 13 one
//! text with seven offers.

use super::super::case::Content;
use super::super::corpora::Corpus;
use super::super::deflate::Offer;
use super::*;

/// Length of the messages, length of their fragments if there are some, and seconds.
const SIZES: [(usize, Option<usize>, u64); 18] = [
    (16, None, 60),
    (64, None, 60),
    (256, None, 120),
    (1024, None, 240),
    (4096, None, 480),
    (8192, None, 480),
    (16384, None, 480),
    (32768, None, 480),
    (65536, None, 480),
    (131_072, None, 480),
    (8192, Some(256), 480),
    (16384, Some(256), 480),
    (32768, Some(256), 480),
    (65536, Some(256), 480),
    (131_072, Some(256), 480),
    (131_072, Some(1024), 480),
    (131_072, Some(4096), 480),
    (131_072, Some(32768), 480),
];

fn offer(server_no_context_takeover: bool, server_max_window_bits: Option<u8>) -> Offer {
    Offer { server_no_context_takeover, server_max_window_bits }
}

/// What each group of section 13 offers.
fn offers() -> [Vec<Offer>; 7] {
    [
        vec![offer(false, None)],
        vec![offer(true, None)],
        vec![offer(false, Some(9))],
        vec![offer(false, Some(15))],
        vec![offer(true, Some(9))],
        vec![offer(true, Some(15))],
        vec![offer(true, Some(9)), offer(true, None), offer(false, None)],
    ]
}

/// An offer in words.
fn words(offer: &Offer) -> String {
    let context = if offer.server_no_context_takeover { "without" } else { "with" };
    let window = offer.server_max_window_bits.map(|bits| format!(" and a window of {bits} bits"));
    format!("{context} context takeover{} by the server", window.unwrap_or_default())
}

fn group(
    (section, group): (u16, u16),
    corpus: Corpus,
    offers: Vec<Offer>,
    volume: Volume,
) -> impl Iterator<Item = Case> {
    let count = match volume {
        Volume::Full => 1000,
        Volume::Quick => 50,
    };
    let wanted = offers.iter().map(words).collect::<Vec<_>>().join(", or ");
    (1..).zip(SIZES).map(move |(case, (bytes, fragment_bytes, seconds))| {
        let content = Content::Of(corpus, bytes);
        let (form, chop) = (corpus.form(), Chop::Whole);
        let trips = RoundTrips { count, form, content, fragment_bytes, chop };
        let number = Number::triple(section, group, case);
        let limit = Duration::from_secs(seconds);
        let fragments =
            fragment_bytes.map(|bytes| format!(", in fragments of {bytes} bytes once compressed"));
        let case = Case {
            offers: offers.clone(),
            ..round_trips(number, "RFC 7692 7", trips, limit)
        };
        case.says(
            format!(
                "Offers permessage-deflate {wanted}. Sends {count} compressed messages of {bytes} bytes \
                 each of {}{}.",
                corpus.name(),
                fragments.unwrap_or_default()
            ),
            format!(
                "All messages come back with the same content, within {seconds} s. Compression is \
                 optional: without it, the case is UNIMPLEMENTED."
            ),
        )
    })
}

pub(super) fn cases(volume: Volume) -> Vec<Case> {
    let texts = (1..)
        .zip(Corpus::ALL)
        .flat_map(move |(number, corpus)| group((12, number), corpus, vec![Offer::PLAIN], volume));
    let parameters = (1..)
        .zip(offers())
        .flat_map(move |(number, offers)| group((13, number), Corpus::Json, offers, volume));
    texts.chain(parameters).collect()
}
