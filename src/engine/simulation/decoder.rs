//! What a server sends, with compressed messages inflated: how they were compressed is its own choice.
//!
//! A compressed message comes out whole, in one frame that is not compressed. All else comes out as it goes in, byte by
//! byte, but for the headers of frames, which come out whole.

use testkit::frame::reply;
use testkit::inflate::Inflater;
use testkit::{FIN, RSV1};

/// The part of the stream that the next byte belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// The head of the response.
    Head,
    /// The header of a frame, or the content of a response that refuses.
    Header,
    /// This many bytes of a payload that is not compressed.
    Plain(usize),
    /// This many bytes of a compressed payload, and whether they end their message.
    Compressed(usize, bool),
}

#[derive(Debug)]
pub(super) struct Decoder {
    part: Part,
    /// The head or the header so far.
    begun: Vec<u8>,
    /// The opcode and the payload of the compressed message that is arriving.
    message: Option<(u8, Vec<u8>)>,
    inflater: Inflater,
}

impl Default for Decoder {
    fn default() -> Decoder {
        let inflater = Inflater::default();
        Decoder { part: Part::Head, begun: Vec::new(), message: None, inflater }
    }
}

impl Decoder {
    /// Appends what `bytes` are to `output`. An error says what is wrong with them.
    pub(super) fn push(&mut self, bytes: &[u8], output: &mut Vec<u8>) -> Result<(), String> {
        for &byte in bytes {
            match &mut self.part {
                Part::Head => {
                    output.push(byte);
                    self.begun.push(byte);
                    if self.begun.ends_with(b"\r\n\r\n") {
                        let is_open = self.begun.starts_with(b"HTTP/1.1 101 ");
                        self.part = if is_open { Part::Header } else { Part::Plain(usize::MAX) };
                        self.begun.clear();
                    }
                }
                Part::Header => {
                    self.begun.push(byte);
                    self.begin(output);
                }
                Part::Plain(left) => {
                    output.push(byte);
                    *left -= 1;
                    if *left == 0 {
                        self.part = Part::Header;
                    }
                }
                Part::Compressed(left, _) => {
                    *left -= 1;
                    if let Some((_, payload)) = &mut self.message {
                        payload.push(byte);
                    }
                }
            }
            if let Part::Compressed(0, is_final) = self.part {
                self.part = Part::Header;
                if is_final {
                    self.finish(output)?;
                }
            }
        }
        Ok(())
    }

    /// Whether all frames that have begun are whole.
    pub(super) fn is_between_frames(&self) -> bool {
        self.part == Part::Header && self.begun.is_empty()
    }

    /// Begins a frame, if its header is whole.
    fn begin(&mut self, output: &mut Vec<u8>) {
        let [first, second, extended @ ..] = &self.begun[..] else { return };
        let missing = match second {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        if extended.len() < missing {
            return;
        }
        let long = extended.iter().fold(0, |length, &byte| length << 8 | usize::from(byte));
        let length = if missing > 0 { long } else { usize::from(*second) };
        let (opcode, is_final) = (first & 0x0f, first & FIN != 0);
        if first & RSV1 != 0 {
            self.message = Some((opcode, Vec::new()));
        }
        if self.message.is_some() && opcode < 8 {
            self.part = Part::Compressed(length, is_final);
        } else {
            output.extend_from_slice(&self.begun);
            self.part = if length > 0 { Part::Plain(length) } else { Part::Header };
        }
        self.begun.clear();
    }

    /// Ends a compressed message.
    fn finish(&mut self, output: &mut Vec<u8>) -> Result<(), String> {
        let (opcode, payload) = self.message.take().expect("one was begun");
        let wrong = |end| format!("{payload:02x?}, which cannot be inflated: {end:?}");
        let plain = self.inflater.message(&payload).map_err(wrong)?;
        output.extend(reply(FIN | opcode, &plain));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compressed_messages_come_out_inflated_and_all_else_as_it_is() {
        let head = b"HTTP/1.1 101 Switching Protocols\r\n\r\n";
        // "Hello" (RFC 7692 section 7.2.3.1), in two fragments with a ping between them.
        let hello =
            [&b"\x41\x03\xf2\x48\xcd"[..], b"\x89\x00", b"\x80\x04\xc9\xc9\x07\x00"].concat();
        let plain = b"\x82\x02ab\x88\x02\x03\xe8";
        let sent = [&head[..], &hello, plain].concat();
        let owed = [&head[..], b"\x89\x00", b"\x81\x05Hello", plain].concat();
        for cut in 0..sent.len() {
            let (mut decoder, mut output) = (Decoder::default(), Vec::new());
            decoder.push(&sent[..cut], &mut output).expect("valid");
            decoder.push(&sent[cut..], &mut output).expect("valid");
            assert_eq!(output, owed, "{cut}");
        }
        let refused = b"HTTP/1.1 400 Bad Request\r\n\r\n\xc1\x00";
        let (mut decoder, mut output) = (Decoder::default(), Vec::new());
        decoder.push(refused, &mut output).expect("nothing is inflated");
        assert_eq!(output, refused);
    }
}
