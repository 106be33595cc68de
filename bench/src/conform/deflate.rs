//! permessage-deflate for the cases that need it (RFC 7692): what is offered, what an answer means,
//! and compressed messages.
//!
//! Messages are successive parts of a text that begins again at its end. When the same part comes again,
//! the same text comes before it, so what it was compressed to the first time stands for it again: it
//! refers to nothing but what came before it then. A [`Stream`] therefore holds each message once. It depends on nothing that differs between
//! servers but the parameters, so all cases share it through a [`Library`].
//!
//! Nor is each echo inflated. A peer that sends the same bytes as this side did, from the first message
//! on and by the same parameters, has sent the same messages.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use flate2::{Compress, Compression, FlushCompress};
use ringecho::protocol::extension;

use super::corpora::Corpus;
use super::inflate::{Broken, Inflater, TAIL};

/// How far DEFLATE refers back at most, in bytes.
const WINDOW_MAX: usize = 32 << 10;
/// The window without a parameter, in bits (RFC 7692 section 7.1.2).
const BITS_MAX: u8 = 15;
/// The smallest window of the deflater, in bits. For a smaller one, messages are stored as they are.
const BITS_MIN: u8 = 9;
/// The level of compression, that of most clients.
const LEVEL: u32 = 6;

/// What is offered. The client always lets the server limit its own window and context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer {
    /// Whether the server must not refer to earlier messages.
    pub server_no_context_takeover: bool,
    /// The largest window that the server may use, in bits.
    pub server_max_window_bits: Option<u8>,
}

impl Offer {
    /// An offer that asks nothing of the server.
    pub const PLAIN: Offer =
        Offer { server_no_context_takeover: false, server_max_window_bits: None };

    /// The value of Sec-WebSocket-Extensions with these offers; nothing without any.
    pub fn field(offers: &[Offer]) -> Option<String> {
        let offers: Vec<String> = offers.iter().map(Offer::to_string).collect();
        (!offers.is_empty()).then(|| offers.join(", "))
    }
}

impl fmt::Display for Offer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("permessage-deflate; client_no_context_takeover; client_max_window_bits")?;
        if self.server_no_context_takeover {
            f.write_str("; server_no_context_takeover")?;
        }
        match self.server_max_window_bits {
            Some(bits) => write!(f, "; server_max_window_bits={bits}"),
            None => Ok(()),
        }
    }
}

/// What one side keeps to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Side {
    /// Whether its messages may refer to earlier ones.
    pub takes_over: bool,
    /// Its largest window, in bits.
    pub window_bits: u8,
}

/// What both sides have agreed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// The client.
    pub client: Side,
    /// The server.
    pub server: Side,
}

impl Terms {
    /// What the server's answer to these offers means; nothing if it declines them all.
    ///
    /// # Errors
    ///
    /// When it answers what was not offered.
    pub fn agreed(offers: &[Offer], answer: Option<&str>) -> Result<Option<Terms>, String> {
        let Some(answer) = answer else { return Ok(None) };
        let wrong = || format!("The server answered {answer:?}, which no offer allows.");
        let agreed = extension::answered(answer.as_bytes()).ok_or_else(wrong)?;
        // RFC 7692 sections 7.1.1.1 and 7.1.2.1: a server that accepts an offer keeps to what it asks.
        let keeps_to = |offer: &Offer| {
            let window = agreed.server_max_window_bits;
            (agreed.server_no_context_takeover || !offer.server_no_context_takeover)
                && offer
                    .server_max_window_bits
                    .is_none_or(|most| window.unwrap_or(BITS_MAX) <= most)
        };
        if !offers.iter().any(keeps_to) {
            return Err(wrong());
        }
        let side = |no_context_takeover: bool, bits: Option<u8>| Side {
            takes_over: !no_context_takeover,
            window_bits: bits.unwrap_or(BITS_MAX),
        };
        Ok(Some(Terms {
            client: side(agreed.client_no_context_takeover, agreed.client_max_window_bits),
            server: side(agreed.server_no_context_takeover, agreed.server_max_window_bits),
        }))
    }
}

impl Terms {
    /// What a server that tests a client agrees to: the value of Sec-WebSocket-Extensions in its answer,
    /// and what that means; nothing if it accepts none of these `offers`.
    ///
    /// A case says what it offers to a server. Towards a client the sides are exchanged: where it asks
    /// the server for no context takeover, or a window, it now asks the client for that. As in the Autobahn
    /// suite, it asks only what the client has offered, although RFC 7692 section 7.1.1.2 does not demand
    /// that for the context.
    pub fn accepted(wanted: &[Offer], offers: &[extension::Offer]) -> Option<(String, Terms)> {
        wanted.iter().find_map(|wanted| offers.iter().find_map(|offer| accept(wanted, offer)))
    }
}

fn accept(wanted: &Offer, offer: &extension::Offer) -> Option<(String, Terms)> {
    let (fresh, bits) = (wanted.server_no_context_takeover, wanted.server_max_window_bits);
    if fresh && !offer.client_no_context_takeover {
        return None;
    }
    // RFC 7692 section 7.1.2.2: without the parameter in the offer there must be none in the answer.
    let client_bits = match bits {
        Some(bits) => Some(bits.min(offer.client_max_window_bits?)),
        None => None,
    };
    let mut answer = "permessage-deflate".to_owned();
    if offer.server_no_context_takeover {
        answer += "; server_no_context_takeover";
    }
    if fresh {
        answer += "; client_no_context_takeover";
    }
    if let Some(bits) = offer.server_max_window_bits {
        answer += &format!("; server_max_window_bits={bits}");
    }
    if let Some(bits) = client_bits {
        answer += &format!("; client_max_window_bits={bits}");
    }
    let server = Side {
        takes_over: !offer.server_no_context_takeover,
        window_bits: offer.server_max_window_bits.unwrap_or(BITS_MAX),
    };
    // The client keeps to what it has offered even if the answer does not repeat it; nobody relies on
    // that here.
    let client = Side { takes_over: !fresh, window_bits: client_bits.unwrap_or(BITS_MAX) };
    Some((answer, Terms { client, server }))
}

/// Successive parts of a text, as messages of one length.
#[derive(Debug, Clone, Copy)]
pub struct Parts<'a> {
    text: &'a [u8],
    bytes: usize,
}

impl<'a> Parts<'a> {
    /// Parts of `bytes` bytes, at most as many as the text has.
    pub fn new(text: &'a [u8], bytes: usize) -> Parts<'a> {
        assert!(0 < bytes && bytes <= text.len(), "a part of {} bytes", text.len());
        Parts { text, bytes }
    }

    /// The bytes of a message before it is compressed.
    pub fn message_bytes(&self) -> usize {
        self.bytes
    }

    fn offset(&self, message: u32) -> usize {
        (message as usize * self.bytes) % self.text.len()
    }

    /// A message, in two pieces if the text ends within it.
    pub fn message(&self, message: u32) -> [&'a [u8]; 2] {
        let begin = self.offset(message);
        let end = begin + self.bytes;
        match end.checked_sub(self.text.len()) {
            Some(over) => [&self.text[begin..], &self.text[..over]],
            None => [&self.text[begin..end], &[]],
        }
    }

    /// What comes before a message, as far as DEFLATE may refer back to it.
    fn history(&self, message: u32) -> Vec<u8> {
        let length = (message as usize * self.bytes).min(WINDOW_MAX);
        let end = self.offset(message);
        let end = if end < length { end + self.text.len() } else { end };
        (end - length..end).map(|at| self.text[at % self.text.len()]).collect()
    }

    /// After how many messages the same ones come again.
    fn period(&self) -> usize {
        let (mut a, mut b) = (self.text.len(), self.bytes);
        while b > 0 {
            (a, b) = (b, a % b);
        }
        self.text.len() / a
    }
}

/// Compressed messages, which come again and again.
#[derive(Debug)]
pub struct Stream(Vec<Vec<u8>>);

impl Stream {
    /// Compresses the first `count` messages.
    fn new(parts: Parts<'_>, count: u32, side: Side) -> Stream {
        let distinct = parts.period().min(count as usize);
        let mut deflater = match side.window_bits {
            bits @ BITS_MIN.. => {
                Compress::new_with_window_bits(Compression::new(LEVEL), false, bits)
            }
            _ => Compress::new(Compression::none(), false),
        };
        let mut compress = |message: usize| {
            let compressed = compressed(&mut deflater, parts.message(message as u32));
            if !side.takes_over {
                deflater.reset();
            }
            compressed
        };
        Stream((0..distinct).map(&mut compress).collect())
    }

    /// The payload of a message.
    pub fn message(&self, message: u32) -> &[u8] {
        &self.0[message as usize % self.0.len()]
    }
}

/// A message by itself, compressed.
pub fn compress(message: &[u8]) -> Vec<u8> {
    compressed(&mut Compress::new(Compression::new(LEVEL), false), [message, &[]])
}

fn compressed(deflater: &mut Compress, pieces: [&[u8]; 2]) -> Vec<u8> {
    let length: usize = pieces.iter().map(|piece| piece.len()).sum();
    let mut output = Vec::with_capacity(length + length / 8 + 64);
    for (piece, flush) in pieces.into_iter().zip([FlushCompress::None, FlushCompress::Sync]) {
        let begin = deflater.total_in();
        loop {
            let taken = (deflater.total_in() - begin) as usize;
            deflater.compress_vec(&piece[taken..], &mut output, flush).expect("it cannot fail");
            if output.len() < output.capacity() {
                break;
            }
            output.reserve(1024);
        }
    }
    assert!(output.ends_with(&TAIL), "a flush ends with an empty block");
    output.truncate(output.len() - TAIL.len());
    output
}

/// What a stream depends on: its text, the length and the number of its messages, and the side's
/// parameters.
type Key = (Corpus, usize, u32, Side);

/// Texts and compressed messages. Each is made when it is first needed.
#[derive(Debug, Default)]
pub struct Library {
    texts: [OnceLock<Vec<u8>>; Corpus::ALL.len()],
    streams: Mutex<HashMap<Key, Arc<OnceLock<Stream>>>>,
}

impl Library {
    /// Messages of `bytes` bytes of a text.
    pub fn parts(&self, corpus: Corpus, bytes: usize) -> Parts<'_> {
        Parts::new(self.texts[corpus as usize].get_or_init(|| corpus.text()), bytes)
    }

    /// The first `count` of them, compressed.
    pub fn stream(&self, corpus: Corpus, bytes: usize, count: u32, side: Side) -> StreamOf {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let stream = Arc::clone(streams.entry((corpus, bytes, count, side)).or_default());
        // Others need not wait while it is made.
        drop(streams);
        stream.get_or_init(|| Stream::new(self.parts(corpus, bytes), count, side));
        StreamOf(stream)
    }
}

/// A stream that the library has made.
#[derive(Debug, Clone)]
pub struct StreamOf(Arc<OnceLock<Stream>>);

impl StreamOf {
    /// As [`Stream::message`].
    pub fn message(&self, message: u32) -> &[u8] {
        self.0.get().expect("it is made").message(message)
    }
}

/// What came back for a message.
#[derive(Debug, Clone, Copy)]
pub struct Echo<'a> {
    /// The payload that came.
    pub payload: &'a [u8],
    /// Whether it is compressed.
    pub is_compressed: bool,
    /// What the message is a part of.
    pub parts: Parts<'a>,
    /// Which message it is.
    pub number: u32,
    /// The compressed payload that was sent.
    pub sent: &'a [u8],
}

/// The compressed messages that the peer sends.
#[derive(Debug)]
pub struct Echoes {
    inflater: Inflater,
    /// Whether the peer's messages may refer to earlier ones.
    takes_over: bool,
    /// Whether the same bytes mean the same messages in both directions.
    is_mirror: bool,
    /// Whether all messages so far were the same bytes as those of this side.
    is_in_step: bool,
}

impl Echoes {
    /// Of the side `theirs`, while the other sends as `ours`.
    pub fn new(ours: Side, theirs: Side) -> Echoes {
        let takes_over = theirs.takes_over;
        // What refers to nothing before it means the same wherever it stands.
        let is_mirror =
            (theirs.takes_over || !ours.takes_over) && ours.window_bits <= theirs.window_bits;
        let inflater = Inflater::new(theirs.window_bits, takes_over);
        Echoes { inflater, takes_over, is_mirror, is_in_step: true }
    }

    /// Whether this is the echo that it should be; if not, the message that came instead.
    ///
    /// # Errors
    ///
    /// When it cannot be inflated.
    pub fn check(&mut self, echo: &Echo<'_>) -> Result<Result<(), Vec<u8>>, Broken> {
        let Echo { payload, is_compressed, parts, number, sent } = *echo;
        if is_compressed && self.is_mirror && self.is_in_step && payload == sent {
            return Ok(Ok(()));
        }
        if self.is_mirror && self.is_in_step && self.takes_over {
            self.inflater.remember(&parts.history(number));
        }
        self.is_in_step = false;
        let message = match is_compressed {
            true => self.inflate(payload, 2 * parts.bytes + 1024)?,
            false => payload,
        };
        let [first, second] = parts.message(number);
        let is_right = message.split_at_checked(first.len()) == Some((first, second));
        Ok(if is_right { Ok(()) } else { Err(message.to_vec()) })
    }

    /// The message of a compressed payload, which stays until the next one.
    ///
    /// # Errors
    ///
    /// When it cannot be inflated, or has more than `bytes_max` bytes.
    pub fn inflate(&mut self, payload: &[u8], bytes_max: usize) -> Result<&[u8], Broken> {
        self.inflater.message(payload, bytes_max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: Side = Side { takes_over: true, window_bits: 15 };

    fn terms(offers: &[Offer], answer: &str) -> Result<Option<Terms>, String> {
        Terms::agreed(offers, Some(answer))
    }

    #[test]
    fn an_answer_must_keep_to_an_offer() {
        let strict = Offer { server_no_context_takeover: true, server_max_window_bits: Some(9) };
        let plain = "permessage-deflate";
        assert_eq!(Terms::agreed(&[strict], None), Ok(None));
        terms(&[strict], plain).expect_err("it promises nothing");
        terms(&[strict], "permessage-deflate; server_no_context_takeover").expect_err("no window");
        let kept = "permessage-deflate; server_no_context_takeover; server_max_window_bits=9";
        let agreed = terms(&[strict], kept).expect("kept").expect("agreed");
        let server = Side { takes_over: false, window_bits: 9 };
        assert_eq!(agreed, Terms { client: FULL, server });
        terms(&[strict], &kept.replace('9', "10")).expect_err("too large a window");
        // Without the parameter, the window is 15 bits.
        let largest = Offer { server_max_window_bits: Some(15), ..Offer::PLAIN };
        terms(&[largest], plain).expect("it means the same").expect("agreed");
        // Another offer may allow what the first does not.
        terms(&[strict, Offer::PLAIN], plain).expect("the second offer").expect("agreed");
        terms(&[Offer::PLAIN], "permessage-deflate; unknown").expect_err("no such parameter");
        let limited = "permessage-deflate; client_no_context_takeover; client_max_window_bits=10";
        let agreed = terms(&[Offer::PLAIN], limited).expect("allowed").expect("agreed");
        assert_eq!(agreed.client, Side { takes_over: false, window_bits: 10 });
    }

    /// Towards a client the sides are exchanged, and it is asked only for what it has offered.
    #[test]
    fn an_offer_of_a_client_is_accepted_as_the_case_asks() {
        let offers =
            |value: &str| extension::offers(value.as_bytes()).expect("the grammar is kept");
        let accepted = |wanted: &[Offer], value| {
            let (answer, terms) = Terms::accepted(wanted, &offers(value))?;
            // Both sides read the answer in the same way.
            assert_eq!(Terms::agreed(&[Offer::PLAIN], Some(&answer)), Ok(Some(terms)), "{answer}");
            Some(answer)
        };
        let strict = Offer { server_no_context_takeover: true, server_max_window_bits: Some(9) };
        let fresh = Offer { server_no_context_takeover: true, ..Offer::PLAIN };
        let plain = "permessage-deflate";
        let able = "permessage-deflate; client_no_context_takeover; client_max_window_bits";
        let asks = "permessage-deflate; server_no_context_takeover; server_max_window_bits=10";
        assert_eq!(accepted(&[Offer::PLAIN], plain).as_deref(), Some(plain));
        assert_eq!(accepted(&[Offer::PLAIN], able).as_deref(), Some(plain));
        assert_eq!(accepted(&[Offer::PLAIN], asks).as_deref(), Some(asks));
        assert_eq!(accepted(&[Offer::PLAIN], "permessage-deflate; x=1"), None);
        for value in [plain, asks, "permessage-deflate; client_no_context_takeover"] {
            assert_eq!(accepted(&[strict], value), None, "{value}");
        }
        assert_eq!(accepted(&[strict], able), Some(able.to_owned() + "=9"));
        // The first that the offers allow, and of the offers the first that allows it.
        let wanted = [strict, fresh, Offer::PLAIN];
        assert_eq!(accepted(&wanted, plain).as_deref(), Some(plain));
        let second = format!("{plain}, {able}=8");
        assert_eq!(accepted(&wanted, &second), Some(able.to_owned() + "=8"));
        let only_fresh = format!("{plain}; client_no_context_takeover");
        assert_eq!(accepted(&wanted, &only_fresh), Some(only_fresh));
    }

    #[test]
    fn offers_are_written_as_the_grammar_says() {
        let strict = Offer { server_no_context_takeover: true, server_max_window_bits: Some(9) };
        let field = Offer::field(&[strict, Offer::PLAIN]).expect("two offers");
        for offer in field.split(", ") {
            extension::answered(offer.as_bytes()).expect(offer);
        }
        assert!(field.contains("server_max_window_bits=9, "), "{field}");
        assert_eq!(Offer::field(&[]), None);
    }

    #[test]
    fn messages_are_the_text_over_and_over() {
        let text: Vec<u8> = (0..96).collect();
        for bytes in [1, 7, 32, 64, 95, 96] {
            let parts = Parts::new(&text, bytes);
            let count = 2 * parts.period() as u32;
            let all: Vec<u8> = (0..count).flat_map(|at| parts.message(at).concat()).collect();
            assert_eq!(all, text.repeat(all.len() / 96), "{bytes}");
            assert_eq!(parts.message(0), parts.message(count / 2), "{bytes}");
        }
    }

    /// Every message, also where it is the same bytes as an earlier one, inflates to its part of the
    /// text.
    #[test]
    fn streams_that_repeat_inflate_to_the_whole_text() {
        let library = Library::default();
        let sides = [true, false]
            .into_iter()
            .flat_map(|takes_over| [8, 9, 15].map(|window_bits| Side { takes_over, window_bits }));
        for side in sides {
            for (corpus, bytes, count) in [
                (Corpus::Json, 16, 100),
                (Corpus::Json, 8192, 60),
                (Corpus::Prose, 65536, 20),
                (Corpus::Json, 131_072, 9),
            ] {
                let (parts, stream) =
                    (library.parts(corpus, bytes), library.stream(corpus, bytes, count, side));
                let mut echoes = Echoes::new(side, side);
                for number in 0..count {
                    let payload = stream.message(number);
                    let message = echoes.inflate(payload, bytes).expect("valid");
                    assert_eq!(message, parts.message(number).concat(), "{corpus:?} {number}");
                }
            }
        }
    }

    #[test]
    fn an_echo_is_right_as_the_same_bytes_or_as_the_same_message() {
        let library = Library::default();
        let (bytes, count) = (1024, 50);
        let parts = library.parts(Corpus::Json, bytes);
        // A server that first mirrors and then compresses for itself, with the same history.
        for takes_over in [true, false] {
            let side = Side { takes_over, ..FULL };
            let ours = library.stream(Corpus::Json, bytes, count, side);
            let mut echoes = Echoes::new(side, FULL);
            let mut deflater = Compress::new(Compression::new(1), false);
            for number in 0..count {
                let sent = ours.message(number);
                let theirs = compressed(&mut deflater, parts.message(number));
                let payload = if number < 40 { sent } else { &theirs };
                let echo = Echo { payload, is_compressed: true, parts, number, sent };
                assert_eq!(echoes.check(&echo), Ok(Ok(())), "{number}");
                // The same bytes are not inflated.
                assert_eq!(echoes.is_in_step, number < 40, "{number} {takes_over}");
            }
        }
        let ours = library.stream(Corpus::Json, bytes, count, FULL);
        // What is not the message, compressed or not.
        let mut echoes = Echoes::new(FULL, FULL);
        let [other, sent] = [ours.message(1), ours.message(0)];
        let first = Echo { payload: sent, is_compressed: true, parts, number: 0, sent };
        assert_eq!(echoes.check(&first), Ok(Ok(())));
        let plain = parts.message(1).concat();
        let next = Echo { payload: &plain, is_compressed: false, number: 1, sent: other, ..first };
        assert_eq!(echoes.check(&next), Ok(Ok(())));
        let wrong = Echo { payload: b"else", number: 2, ..next };
        assert_eq!(echoes.check(&wrong), Ok(Err(b"else".to_vec())));
        let broken = Echo { payload: b"\xff\xff", is_compressed: true, number: 3, ..next };
        assert_eq!(echoes.check(&broken), Err(Broken::Invalid));
    }

    /// The same bytes mean something else if the peer may not refer to earlier messages.
    #[test]
    fn a_mirror_that_breaks_the_terms_is_no_echo() {
        let library = Library::default();
        let parts = library.parts(Corpus::Json, 1024);
        let ours = library.stream(Corpus::Json, 1024, 10, FULL);
        let theirs = Side { takes_over: false, ..FULL };
        let mut echoes = Echoes::new(FULL, theirs);
        let echoes: Vec<bool> = (0..10)
            .map(|number| {
                let sent = ours.message(number);
                let echo = Echo { payload: sent, is_compressed: true, parts, number, sent };
                echoes.check(&echo) == Ok(Ok(()))
            })
            .collect();
        assert!(echoes[0] && !echoes[1], "{echoes:?}");
    }

    #[test]
    fn a_final_block_and_a_bomb_are_handled() {
        let mut echoes = Echoes::new(FULL, FULL);
        // RFC 7692 section 7.2.3.4: "Hello" in a block with BFINAL, and the byte after it.
        let last = b"\xf3\x48\xcd\xc9\xc9\x07\x00\x00";
        assert_eq!(echoes.inflate(last, 100).expect("valid"), b"Hello");
        let mut deflater = Compress::new(Compression::new(6), false);
        let zeros = vec![0; 100_000];
        let bomb = compressed(&mut deflater, [&zeros, &[]]);
        assert_eq!(echoes.inflate(&bomb, 1000), Err(Broken::TooLong));
    }
}
