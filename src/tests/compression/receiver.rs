//! The client's inflaters.

use flate2::{Decompress, FlushDecompress, Status};

use crate::agreement::Agreed;
use testkit::inflate::Inflater;
use testkit::inflate::TAIL;

/// The client's inflater: two that have to agree, and keep to the window.
pub(crate) struct Receiver {
    pub(crate) agreed: Agreed,
    pub(crate) zlib: Decompress,
    pub(crate) plain: Inflater,
}

impl Receiver {
    pub(crate) fn new(agreed: Agreed) -> Receiver {
        // zlib's least window is wider than the least there is. The other one knows.
        let zlib = Decompress::new_with_window_bits(false, agreed.server_bits.max(9) as u8);
        Receiver { agreed, zlib, plain: Inflater::default() }
    }

    pub(crate) fn inflate(&mut self, payload: &[u8]) -> Result<Vec<u8>, String> {
        if self.agreed.server_no_context_takeover {
            self.zlib.reset(false);
            self.plain = Inflater::default();
        }
        let message = self.plain.message(payload).map_err(|end| format!("{end:?}"))?;
        let (greatest, bits) = (self.plain.greatest_distance(), self.agreed.server_bits);
        if greatest > 1 << bits {
            return Err(format!("a distance of {greatest} in a window of {bits} bits"));
        }
        let input = [payload, &TAIL].concat();
        let (mut rest, mut output) = (&input[..], Vec::with_capacity(message.len() + 1));
        while !rest.is_empty() {
            let before = self.zlib.total_in();
            let status = self.zlib.decompress_vec(rest, &mut output, FlushDecompress::Sync);
            let status = status.map_err(|error| error.to_string())?;
            let read = (self.zlib.total_in() - before) as usize;
            rest = &rest[read..];
            if status == Status::StreamEnd {
                self.zlib.reset(false);
            } else if read == 0 {
                return Err("zlib inflates to more".to_owned());
            }
        }
        if output != message {
            return Err("zlib inflates to something else".to_owned());
        }
        Ok(message)
    }
}
