//! The texts that compressed messages are parts of, made up from fixed seeds: one each that compresses
//! like JSON, a photograph, prose, HTML and a PDF document, of about the sizes of those of the Autobahn
//! suite.
//!
//! Each length is a multiple of 32 KiB. So the parts that messages take repeat after a few rounds
//! through the text, and have to be compressed only once ([`super::deflate`]).

use std::fmt::Write as _;

use crate::random::Random;
use crate::session::Form;

/// A text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Corpus {
    /// Records in JSON; text.
    Json,
    /// The pixels of a photograph in shades of grey; binary.
    Photograph,
    /// German sentences in UTF-8; binary.
    Prose,
    /// A page with tables; text.
    Html,
    /// A document whose images are compressed already; binary.
    Document,
}

/// Words of the prose.
const WORDS: [&str; 48] = [
    "der",
    "die",
    "das",
    "und",
    "ein",
    "eine",
    "in",
    "zu",
    "mit",
    "auf",
    "für",
    "nicht",
    "über",
    "wenn",
    "aber",
    "noch",
    "schon",
    "Straße",
    "Brücke",
    "Fluss",
    "Mühle",
    "Garten",
    "Fenster",
    "Abend",
    "Morgen",
    "Gespräch",
    "Brief",
    "Stadt",
    "Schiff",
    "Hafen",
    "Nebel",
    "Licht",
    "Lampe",
    "wartet",
    "fährt",
    "öffnet",
    "schließt",
    "findet",
    "verliert",
    "erzählt",
    "hört",
    "grüßt",
    "langsam",
    "früh",
    "spät",
    "leise",
    "müde",
    "größer",
];

/// Words of names in JSON and HTML.
const NAMES: [&str; 24] = [
    "alder", "birch", "cedar", "dogwood", "elm", "fir", "gum", "hazel", "ivy", "juniper", "kapok",
    "larch", "maple", "nutmeg", "oak", "pine", "quince", "rowan", "spruce", "teak", "umbrella",
    "vine", "willow", "yew",
];

/// The width of the photograph, in pixels and bytes.
const WIDTH: usize = 512;

impl Corpus {
    /// All of them, in the order of the groups of section 12.
    pub const ALL: [Corpus; 5] =
        [Corpus::Json, Corpus::Photograph, Corpus::Prose, Corpus::Html, Corpus::Document];

    /// What it is, in a few words.
    pub fn name(self) -> &'static str {
        match self {
            Corpus::Json => "JSON",
            Corpus::Photograph => "a photograph's pixels",
            Corpus::Prose => "German prose",
            Corpus::Html => "HTML",
            Corpus::Document => "a PDF document",
        }
    }

    /// The form of messages with it.
    pub fn form(self) -> Form {
        match self {
            Corpus::Json | Corpus::Html => Form::Text,
            Corpus::Photograph | Corpus::Prose | Corpus::Document => Form::Binary,
        }
    }

    /// Its length in bytes.
    pub fn length(self) -> usize {
        match self {
            Corpus::Json => 6 << 15,
            Corpus::Photograph => 8 << 15,
            Corpus::Prose => 7 << 15,
            Corpus::Html => 8 << 15,
            Corpus::Document => 32 << 15,
        }
    }

    /// Its bytes. Those of [`Form::Text`] are ASCII, so that every part of them is text.
    pub fn text(self) -> Vec<u8> {
        let mut random = Random::new(0x636f_7270 + self as u64);
        let mut bytes = Vec::with_capacity(self.length() + 4096);
        while bytes.len() < self.length() {
            match self {
                Corpus::Json => bytes.extend(record(&mut random).into_bytes()),
                Corpus::Photograph => line(&mut random, &mut bytes),
                Corpus::Prose => bytes.extend(sentence(&mut random).into_bytes()),
                Corpus::Html => bytes.extend(row(&mut random).into_bytes()),
                Corpus::Document => object(&mut random, &mut bytes),
            }
        }
        bytes.truncate(self.length());
        bytes
    }
}

fn record(random: &mut Random) -> String {
    let mut text = String::new();
    let id = random.number();
    let [name, other] = [random.choose(&NAMES), random.choose(&NAMES)];
    let (age, balance) = (random.between(18, 90), random.below(10_000_000) as f64 / 100.0);
    let [north, east] = [90, 180].map(|degrees| {
        let micro = random.below(2_000_000 * degrees) as f64;
        micro / 1e6 - degrees as f64
    });
    let active = random.below(3) > 0;
    writeln!(
        text,
        "  {{\"id\": \"{id:016x}\", \"name\": \"{name} {other}\", \"age\": {age}, \"active\": \
         {active}, \"balance\": {balance:.2}, \"position\": [{north:.6}, {east:.6}], \"tags\": \
         [\"{other}\", \"{name}\"]}},"
    )
    .expect("a string takes everything");
    text
}

/// A line of pixels: much like the one above it, with noise in the lowest bits.
fn line(random: &mut Random, bytes: &mut Vec<u8>) {
    let above = bytes.len().checked_sub(WIDTH);
    let mut left = 128;
    for column in 0..WIDTH {
        let near = match above {
            Some(above) => (i32::from(bytes[above + column]) * 3 + left) / 4,
            None => left,
        };
        let step = random.between(0, 12) as i32 - 6;
        left = (near + step).clamp(16, 240);
        bytes.push(left as u8);
    }
}

fn sentence(random: &mut Random) -> String {
    let words: Vec<&str> = (0..random.between(5, 18)).map(|_| random.choose(&WORDS)).collect();
    let end = if random.below(4) == 0 { ".\r\n" } else { ". " };
    format!("{}{end}", words.join(" "))
}

fn row(random: &mut Random) -> String {
    let class = if random.below(2) == 0 { "even" } else { "odd" };
    let cells: Vec<String> = (0..4)
        .map(|_| {
            let name = random.choose(&NAMES);
            let number = random.below(100_000);
            format!(
                "<td class=\"cell\"><a href=\"/catalogue/{name}/{number}.html\">{name}</a></td>\n"
            )
        })
        .collect();
    format!("<tr class=\"{class}\">\n{}</tr>\n", cells.concat())
}

/// An object with a stream of bytes that no longer compress.
fn object(random: &mut Random, bytes: &mut Vec<u8>) {
    let (number, length) = (bytes.len() / 997, random.between(500, 4000) as usize & !7);
    let head = format!(
        "{number} 0 obj\n<< /Type /XObject /Subtype /Image /Filter /FlateDecode /Length {length} \
         >>\nstream\n"
    );
    bytes.extend(head.into_bytes());
    for _ in 0..length / 8 {
        bytes.extend(random.number().to_le_bytes());
    }
    bytes.extend(b"\nendstream\nendobj\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_have_their_length_and_are_text_where_they_are_sent_as_text() {
        for corpus in Corpus::ALL {
            let text = corpus.text();
            assert_eq!(text.len(), corpus.length(), "{corpus:?}");
            assert!(text.len().is_multiple_of(32 << 10), "{corpus:?}");
            assert_eq!(text.is_ascii(), corpus.form() == Form::Text, "{corpus:?}");
            assert_eq!(text, corpus.text(), "{corpus:?} is made anew");
        }
    }

    /// Otherwise they would not test what their names say.
    #[test]
    fn texts_compress_as_differently_as_their_originals() {
        let ratios: Vec<f64> = Corpus::ALL
            .iter()
            .map(|corpus| {
                let text = corpus.text();
                let mut output = Vec::with_capacity(2 * text.len());
                let mut deflater = flate2::Compress::new(flate2::Compression::new(6), false);
                let finish = flate2::FlushCompress::Finish;
                deflater.compress_vec(&text, &mut output, finish).expect("room for all");
                output.len() as f64 / text.len() as f64
            })
            .collect();
        let [json, photograph, prose, html, document] = ratios[..] else { panic!("five texts") };
        assert!(html < json && json < 0.5 && prose < 0.5, "{ratios:?}");
        assert!((0.5..0.9).contains(&photograph) && document > 0.9, "{ratios:?}");
    }
}
