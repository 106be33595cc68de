//! permessage-deflate in the client's role (RFC 7692): the offer, the answers that are accepted, and
//! deflating and inflating messages.

use flate2::{Compress, Compression, FlushCompress};
use ringecho::protocol::extension;
use ringecho::protocol::inflate::{Inflater, TAIL};
use ringecho::protocol::violation::Violation;

use crate::problem::Problem;

/// What the client offers: the extension without parameters.
pub const OFFER: &str = "permessage-deflate";

/// The two directions of a connection on which messages are compressed.
pub(crate) struct Codec {
    deflater: Compress,
    inflater: Inflater,
    /// Whether no message may refer to an earlier one (RFC 7692 section 7.1.1.2).
    is_reset_after_each: bool,
}

impl Codec {
    /// The codec for the server's answer to [`OFFER`], the value of Sec-WebSocket-Extensions.
    ///
    /// # Errors
    ///
    /// When the server declines, or answers what it must not.
    pub(crate) fn agreed(answer: Option<&str>) -> Result<Codec, Problem> {
        let answer = answer.ok_or(Problem::NoCompression)?;
        // Section 7.1.1.1 and 7.1.2.1: what the server promises for its own messages asks nothing of this
        // side, whose inflater keeps the largest window whether or not it is used. Section 7.1.2.2:
        // client_max_window_bits must not be answered without an offer.
        let agreed = extension::answered(answer.as_bytes())
            .filter(|agreed| agreed.client_max_window_bits.is_none())
            .ok_or_else(|| Problem::WrongExtensions(answer.to_owned()))?;
        Ok(Codec {
            deflater: Compress::new(Compression::default(), false),
            inflater: Inflater::default(),
            is_reset_after_each: agreed.client_no_context_takeover,
        })
    }

    /// The payload of a compressed message.
    pub(crate) fn deflate(&mut self, payload: &[u8]) -> Vec<u8> {
        let mut output = Vec::with_capacity(payload.len() + payload.len() / 8 + 64);
        let begin = self.deflater.total_in();
        loop {
            let taken = (self.deflater.total_in() - begin) as usize;
            self.deflater
                .compress_vec(&payload[taken..], &mut output, FlushCompress::Sync)
                .expect("deflating cannot fail");
            if output.len() < output.capacity() {
                break;
            }
            output.reserve(output.capacity());
        }
        // RFC 7692 section 7.2.3.6: an empty block is a byte of zero. The deflater makes none when
        // there is nothing since the last flush.
        match output.len().checked_sub(TAIL.len()) {
            Some(length) => output.truncate(length),
            None => output.push(0),
        }
        if self.is_reset_after_each {
            self.deflater.reset();
        }
        output
    }

    /// The message that a compressed payload stands for, of at most `bytes_max`.
    ///
    /// # Errors
    ///
    /// When it cannot be inflated, or is longer.
    pub(crate) fn inflate(&mut self, payload: &[u8], bytes_max: usize) -> Result<Vec<u8>, Problem> {
        self.inflater.message(payload, bytes_max).map_err(|violation| match violation {
            Violation::MessageTooBig => Problem::TooLong(bytes_max),
            broken => Problem::Broken(broken),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// More than any message here has.
    const BYTES_MAX: usize = 1 << 10;

    fn codec() -> Codec {
        Codec::agreed(Some(OFFER)).expect("the offer itself")
    }

    #[test]
    fn an_empty_message_is_compressed_wherever_it_comes() {
        let mut codec = codec();
        for payload in [&b""[..], b"", b"one", b"", b"", b"one two"] {
            let deflated = codec.deflate(payload);
            assert!(!deflated.is_empty());
            assert_eq!(codec.inflate(&deflated, BYTES_MAX).expect("right"), payload);
        }
    }

    #[test]
    fn an_answer_is_understood_unless_it_is_not_allowed() {
        for parameters in [
            "",
            "; server_no_context_takeover",
            "; server_max_window_bits=15",
            ";server_max_window_bits = \"8\" ; client_no_context_takeover",
        ] {
            Codec::agreed(Some(&format!("{OFFER}{parameters}"))).expect(parameters);
        }
        for answer in [
            "permessage-bzip2",
            "permessage-deflate; client_max_window_bits=15",
            "permessage-deflate; server_max_window_bits",
            "permessage-deflate; server_max_window_bits=16",
            "permessage-deflate; server_max_window_bits=08",
            "permessage-deflate; server_no_context_takeover=1",
            "permessage-deflate; server_no_context_takeover; server_no_context_takeover",
            "permessage-deflate; unknown",
            "permessage-deflate, permessage-deflate",
        ] {
            let refused = Codec::agreed(Some(answer)).err().expect(answer);
            assert!(matches!(refused, Problem::WrongExtensions(_)), "{refused}");
        }
        assert!(matches!(Codec::agreed(None), Err(Problem::NoCompression)));
    }

    #[test]
    fn without_context_takeover_each_message_stands_alone() {
        let mut ours = Codec::agreed(Some("permessage-deflate; client_no_context_takeover"))
            .expect("an allowed answer");
        let payload = b"the same words, the same words";
        for _ in 0..2 {
            let deflated = ours.deflate(payload);
            // A new inflater knows nothing of earlier messages.
            assert_eq!(codec().inflate(&deflated, BYTES_MAX).expect("right"), payload);
        }
    }

    #[test]
    fn a_message_that_inflates_to_too_much_is_refused() {
        let long = codec().deflate(&[0; BYTES_MAX + 1]);
        let refused = codec().inflate(&long, BYTES_MAX).expect_err("a byte too many");
        assert!(matches!(refused, Problem::TooLong(BYTES_MAX)), "{refused}");
    }

    #[test]
    fn a_data_set_may_end_within_or_at_the_end_of_a_message() {
        let last = |payload: &[u8]| {
            let mut output = Vec::with_capacity(1024);
            let mut deflater = Compress::new(Compression::default(), false);
            let finish = FlushCompress::Finish;
            deflater.compress_vec(payload, &mut output, finish).expect("room for all");
            output
        };
        let mut theirs = codec();
        for _ in 0..2 {
            // RFC 7692 section 7.2.3.4 appends a zero byte to the block.
            let payload = [last(b"one"), last(b" two"), vec![0]].concat();
            assert_eq!(theirs.inflate(&payload, BYTES_MAX).expect("right"), b"one two");
            let after = codec().deflate(b"three");
            assert_eq!(theirs.inflate(&after, BYTES_MAX).expect("right"), b"three");
        }
        assert!(theirs.inflate(&[0xff; 16], BYTES_MAX).is_err());
    }
}
