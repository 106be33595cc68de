//! Section 6: text and UTF-8 (RFC 3629). Groups 5 to 23 send a sequence each, valid or not, which the
//! standard library judges.

use super::super::case::{CONTINUATION, INVALID_PAYLOAD, TEXT, Weight};
use super::*;
use crate::wire::hexadecimal;

const CLAUSE: &str = "RFC 6455 8.1";
const COMES_BACK: &str = "The message comes back, and the connection is closed with code 1000.";
const FAILS: &str = "The peer fails the connection with code 1007, because the text is not UTF-8.";

/// Text with characters of one and two bytes.
const MIXED: &str = "Smörgåsbord-µ-ÅÄÖ-UTF-8!";
/// A Greek word with characters of two and three bytes: κόσμε.
const GREEK: &[u8] = b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5";
/// What follows the bytes that are invalid.
const REST: &[u8] = b"edited";
/// How long the scripts of group 4 pause.
const PAUSE: Duration = Duration::from_secs(1);

fn number(group: u16, case: u16) -> Number {
    Number::triple(6, group, case)
}

/// A text message in these fragments.
fn fragments(payloads: &[&[u8]]) -> Step {
    let last = payloads.len() - 1;
    at_once(payloads.iter().enumerate().map(|(at, payload)| Frame {
        is_final: at == last,
        ..Frame::new(if at == 0 { TEXT } else { CONTINUATION }, *payload)
    }))
}

/// A text message in fragments of a byte.
fn bytewise(payload: &[u8]) -> Step {
    fragments(&payload.chunks(1).collect::<Vec<_>>())
}

/// Text that comes back.
fn valid(group: u16, case: u16, step: Step, payload: &[u8]) -> Case {
    answered(number(group, case), CLAUSE, vec![step], vec![text(payload)])
}

/// Text that the peer refuses.
fn invalid(group: u16, case: u16, script: Vec<Step>) -> Case {
    let case = failing(number(group, case), CLAUSE, script, INVALID_PAYLOAD);
    Case { close: case.close.clone().weighing(Weight::EndCounts), ..case }
}

/// What the parts of a message are.
#[derive(Clone, Copy)]
enum Parts {
    Fragments,
    OfOneFrame,
}

/// Text that becomes invalid in the second of three parts, sent with pauses between them.
fn paused(case: u16, parts: [&[u8]; 3], are: Parts) -> Case {
    let [one, two, three] = parts;
    let pauses = ['A', 'B'].map(|name| Step::Pause(PAUSE, name));
    let (kind, steps) = match are {
        Parts::Fragments => {
            let fragments = [
                Frame::new(TEXT, one).unfinished(),
                Frame::new(CONTINUATION, two).unfinished(),
                Frame::new(CONTINUATION, three),
            ];
            ("fragments", fragments.map(|fragment| at_once([fragment])))
        }
        Parts::OfOneFrame => {
            let frame = Frame::new(TEXT, parts.concat());
            let rest = [two, three].map(|part| Step::More(part.len()));
            let [second, third] = rest;
            ("parts of one frame", [Step::Begin(frame, one.len()), second, third])
        }
    };
    let [first, second, third] = steps;
    let [pause_one, pause_two] = pauses;
    let script = vec![first, pause_one, second, pause_two, third];
    let early = vec![Expected::Silence('A')];
    let late = vec![Expected::Silence('A'), Expected::Silence('B')];
    let case = Case { outcomes: vec![(Behavior::Ok, early)], ..invalid(4, case, script) };
    let shown = parts.map(hexadecimal).join(" ");
    case.or(Behavior::NonStrict, late).says(
        format!(
            "Sends invalid text in three {kind} with a pause of a second after each: {shown}. With the \
             second, the text can no longer become valid."
        ),
        "The peer accepts the first part and fails the connection with code 1007 at the second. It may \
         also wait for the end of the message, which is not strict.",
    )
}

/// The sequences of each group from 5 on, and what they are.
fn sequences() -> Vec<(&'static str, Vec<Vec<u8>>)> {
    let list = |sequences: &[&[u8]]| sequences.iter().map(|it| it.to_vec()).collect::<Vec<_>>();
    let prefixes = (1..=GREEK.len()).map(|length| GREEK[..length].to_vec()).collect();
    let mut unexpected: Vec<Vec<u8>> = vec![vec![0x80], vec![0xbf]];
    unexpected.extend((2..=6).map(|length| [0x80, 0xbf].repeat(3)[..length].to_vec()));
    unexpected.push((0x80..0xbf).collect());
    let lonely = [0xc0..0xdf, 0xe0..0xef, 0xf0..0xf7, 0xf8..0xfb, 0xfc..0xfd].map(
        |starts: std::ops::Range<u8>| starts.flat_map(|start| [start, b' ']).collect::<Vec<u8>>(),
    );
    let truncated = list(&[
        b"\xc0",
        b"\xe0\x80",
        b"\xf0\x80\x80",
        b"\xf8\x80\x80\x80",
        b"\xfc\x80\x80\x80\x80",
        b"\xdf",
        b"\xef\xbf",
        b"\xf7\xbf\xbf",
        b"\xfb\xbf\xbf\xbf",
        b"\xfd\xbf\xbf\xbf\xbf",
    ]);
    let concatenated = vec![truncated.concat()];
    let surrogates: [[u8; 3]; 7] = [
        [0xed, 0xa0, 0x80],
        [0xed, 0xad, 0xbf],
        [0xed, 0xae, 0x80],
        [0xed, 0xaf, 0xbf],
        [0xed, 0xb0, 0x80],
        [0xed, 0xbe, 0x80],
        [0xed, 0xbf, 0xbf],
    ];
    let pairs = surrogates[..4]
        .iter()
        .flat_map(|high| [surrogates[4], surrogates[6]].map(|low| [&high[..], &low[..]].concat()));
    // The last two code points of each plane (Unicode 23.7).
    let noncharacters = (0..=0x10).flat_map(|plane| [0xfffe, 0xffff].map(|low| plane << 16 | low));
    let character = |code: u32| {
        let character = char::from_u32(code).expect("no surrogate");
        character.encode_utf8(&mut [0; 4]).as_bytes().to_vec()
    };
    vec![
        (
            "characters of one to four bytes",
            list(&[
                b"hello\x24world",
                b"hello\xc2\xa2world",
                b"hello\xe2\x82\xacworld",
                b"hello\xf0\xa4\xad\xa2world",
                GREEK,
            ]),
        ),
        ("the beginning of a Greek word", prefixes),
        (
            "the first character of its length",
            list(&[b"\x00", b"\xc2\x80", b"\xe0\xa0\x80", b"\xf0\x90\x80\x80"]),
        ),
        (
            "the first sequence of five or six bytes",
            list(&[b"\xf8\x88\x80\x80\x80", b"\xfc\x84\x80\x80\x80\x80"]),
        ),
        (
            "the last character of its length",
            list(&[b"\x7f", b"\xdf\xbf", b"\xef\xbf\xbf", b"\xf4\x8f\xbf\xbf"]),
        ),
        (
            "the last sequence of four, five or six bytes",
            list(&[b"\xf7\xbf\xbf\xbf", b"\xfb\xbf\xbf\xbf\xbf", b"\xfd\xbf\xbf\xbf\xbf\xbf"]),
        ),
        (
            "a character at a boundary",
            list(&[
                b"\xed\x9f\xbf",
                b"\xee\x80\x80",
                b"\xef\xbf\xbd",
                b"\xf4\x8f\xbf\xbf",
                b"\xf4\x90\x80\x80",
            ]),
        ),
        ("continuation bytes without a start", unexpected),
        ("start bytes without continuation", lonely.to_vec()),
        ("a sequence without its last byte", truncated),
        ("sequences without their last bytes", concatenated),
        ("bytes that never occur", list(&[b"\xfe", b"\xff", b"\xfe\xfe\xff\xff"])),
        (
            "a slash that is longer than needed",
            list(&[
                b"\xc0\xaf",
                b"\xe0\x80\xaf",
                b"\xf0\x80\x80\xaf",
                b"\xf8\x80\x80\x80\xaf",
                b"\xfc\x80\x80\x80\x80\xaf",
            ]),
        ),
        (
            "the last character that is longer than needed",
            list(&[
                b"\xc1\xbf",
                b"\xe0\x9f\xbf",
                b"\xf0\x8f\xbf\xbf",
                b"\xf8\x87\xbf\xbf\xbf",
                b"\xfc\x83\xbf\xbf\xbf\xbf",
            ]),
        ),
        (
            "a NUL that is longer than needed",
            list(&[
                b"\xc0\x80",
                b"\xe0\x80\x80",
                b"\xf0\x80\x80\x80",
                b"\xf8\x80\x80\x80\x80",
                b"\xfc\x80\x80\x80\x80\x80",
            ]),
        ),
        ("a surrogate", surrogates.map(|it| it.to_vec()).to_vec()),
        ("a pair of surrogates", pairs.collect()),
        ("a noncharacter, which is valid UTF-8", noncharacters.map(character).collect()),
        ("a special character", (0xfff9..=0xffff).map(character).collect()),
    ]
}

pub(super) fn cases() -> Vec<Case> {
    let empty: &[u8] = b"";
    let (mixed, middle) = (MIXED.as_bytes(), "the middle".as_bytes());
    // Within "Smörgåsbord", at the boundary of a character.
    let (front, back) = mixed.split_at(8);
    let surrogate: &[u8] = b"\xed\xa0\x80";
    let broken = [GREEK, surrogate, REST].concat();
    let beyond: &[u8] = b"\xf4\x90\x80\x80";
    let parts = [GREEK, beyond, REST];
    let whole = parts.concat();
    // Up to the byte that makes it invalid, that byte, and the rest.
    let bytes = [&whole[..12], &whole[12..13], &whole[13..]];
    let mut cases = vec![
        valid(1, 1, fragments(&[empty]), empty).says("Sends an empty text message.", COMES_BACK),
        valid(1, 2, fragments(&[empty, empty, empty]), empty)
            .says("Sends an empty text message in three fragments.", COMES_BACK),
        valid(1, 3, fragments(&[empty, middle, empty]), middle).says(
            "Sends a text message in three fragments, of which the first and the last are empty.",
            COMES_BACK,
        ),
        valid(2, 1, fragments(&[mixed]), mixed)
            .says("Sends text with characters of two bytes in one frame.", COMES_BACK),
        valid(2, 2, fragments(&[front, back]), mixed).says(
            "Sends text with characters of two bytes in two fragments, cut between two characters.",
            COMES_BACK,
        ),
        valid(2, 3, bytewise(mixed), mixed).says(
            "Sends text with characters of two bytes in fragments of a byte, so that characters are cut.",
            COMES_BACK,
        ),
        valid(2, 4, bytewise(GREEK), GREEK).says(
            "Sends text with characters of two and three bytes in fragments of a byte.",
            COMES_BACK,
        ),
        invalid(3, 1, vec![fragments(&[&broken])])
            .says("Sends text with a surrogate in one frame.", FAILS),
        invalid(3, 2, vec![bytewise(&broken)])
            .says("Sends text with a surrogate in fragments of a byte.", FAILS),
        paused(1, parts, Parts::Fragments),
        paused(2, bytes, Parts::Fragments),
        paused(3, parts, Parts::OfOneFrame),
        paused(4, bytes, Parts::OfOneFrame),
    ];
    for (group, (what, sequences)) in (5..).zip(sequences()) {
        for (case, sequence) in (1..).zip(sequences) {
            let step = fragments(&[&sequence]);
            let description = format!("Sends as text {what}: {}.", hexadecimal(&sequence));
            cases.push(match str::from_utf8(&sequence) {
                Ok(_) => valid(group, case, step, &sequence).says(description, COMES_BACK),
                Err(_) => invalid(group, case, vec![step]).says(description, FAILS),
            });
        }
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::super::super::case::End;
    use super::*;

    /// How many cases of a group are valid: what the suite says of its sequences.
    #[test]
    fn as_many_sequences_are_valid_as_should_be() {
        let valid = |group: u16| {
            let is_valid = |case: &&Case| case.close.by == End::Ours;
            let cases = cases();
            let of_group =
                |case: &&Case| case.number.to_string().starts_with(&format!("6.{group}."));
            cases.iter().filter(of_group).filter(is_valid).count()
        };
        let counts: Vec<usize> = (5..=23).map(valid).collect();
        assert_eq!(counts, [5, 5, 4, 0, 4, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 34, 7]);
    }

    #[test]
    fn the_second_part_of_a_paused_case_makes_it_invalid() {
        let whole = [GREEK, b"\xf4\x90\x80\x80", REST].concat();
        let invalid = str::from_utf8(&whole).expect_err("beyond the last code point");
        assert_eq!((invalid.valid_up_to(), GREEK.len()), (11, 11));
        let beginning = str::from_utf8(&whole[..12]).expect_err("unfinished");
        assert_eq!(beginning.error_len(), None, "it could still become valid");
        assert!(str::from_utf8(&whole[..13]).expect_err("invalid").error_len().is_some());
    }
}
