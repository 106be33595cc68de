//! Output in several blocks, one behind the other.
//!
//! A part that was pushed is never moved or copied. Its block goes back to its pool when all of it has been taken
//! and sent.
//!
//! Invariant: no part is empty; together they have `bytes` bytes, of which the first `ready` may be sent.

use std::collections::VecDeque;
use std::mem;

use bytes::Bytes;

/// Blocks of output, in the order in which they are sent.
#[derive(Debug, Default)]
pub struct Chain {
    parts: VecDeque<Bytes>,
    bytes: usize,
    ready: usize,
}

impl Chain {
    /// Appends a part, of which the first `ready` bytes may be sent.
    pub(super) fn push(&mut self, part: Bytes, ready: usize) {
        debug_assert!(ready <= part.len() && (ready == 0 || !self.has_held()), "output overtaken");
        if part.is_empty() {
            return;
        }
        self.bytes += part.len();
        self.ready += ready;
        self.parts.push_back(part);
    }

    /// Lets all of it be sent.
    #[inline]
    pub(super) fn release(&mut self) {
        self.ready = self.bytes;
    }

    /// Drops what may not be sent.
    pub(super) fn retract(&mut self) {
        while self.has_held() {
            let Some(mut last) = self.parts.pop_back() else { break };
            self.bytes -= last.len();
            if self.bytes < self.ready {
                last.truncate(self.ready - self.bytes);
                self.bytes = self.ready;
                self.parts.push_back(last);
            }
        }
    }

    /// Takes all that may be sent.
    pub(super) fn take_ready(&mut self) -> Chain {
        if !self.has_held() {
            return mem::take(self);
        }
        let mut taken = Chain::default();
        while self.ready > 0 {
            let part = self.take_part(self.ready);
            let bytes = part.len();
            taken.push(part, bytes);
        }
        taken
    }

    /// Takes the first bytes, at most `most` and no more than lie in one block.
    pub fn take_part(&mut self, most: usize) -> Bytes {
        let Some(mut first) = self.parts.pop_front() else { return Bytes::new() };
        if first.len() > most {
            let rest = first.split_off(most);
            self.parts.push_front(rest);
        }
        self.bytes -= first.len();
        self.ready = self.ready.saturating_sub(first.len());
        first
    }

    /// How many bytes it has.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many of them may be sent.
    pub(super) fn ready(&self) -> usize {
        self.ready
    }

    /// Whether some of it may not be sent yet.
    #[inline]
    pub(super) fn has_held(&self) -> bool {
        self.ready < self.bytes
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use testkit::Random;

    use super::*;

    /// The same as a chain, of one piece.
    #[derive(Default)]
    struct Model {
        bytes: Vec<u8>,
        ready: usize,
    }

    pub(crate) fn all_of(mut chain: Chain) -> Vec<u8> {
        let mut all = Vec::new();
        while !chain.is_empty() {
            all.extend(chain.take_part(usize::MAX));
        }
        all
    }

    fn step(chain: &mut Chain, model: &mut Model, random: &mut Random) {
        match random.below(8) {
            0..4 => {
                let length = random.below(20);
                let part = random.bytes(length);
                let is_behind_held = model.ready < model.bytes.len();
                let ready = if is_behind_held { 0 } else { random.below(length + 1) };
                model.bytes.extend(&part);
                model.ready += ready;
                chain.push(part.into(), ready);
            }
            4 => {
                model.ready = model.bytes.len();
                chain.release();
            }
            5 => {
                model.bytes.truncate(model.ready);
                chain.retract();
            }
            6 => {
                let ready: Vec<u8> = model.bytes.drain(..model.ready).collect();
                model.ready = 0;
                assert_eq!(all_of(chain.take_ready()), ready);
            }
            _ => {
                let first = chain.take_part(1 + random.below(model.ready + 1));
                let taken: Vec<u8> = model.bytes.drain(..first.len()).collect();
                model.ready = model.ready.saturating_sub(first.len());
                assert_eq!(first, taken);
            }
        }
    }

    #[test]
    fn a_chain_does_what_one_piece_of_memory_does() {
        for seed in 0..2000 {
            let mut random = Random::new(seed);
            let (mut chain, mut model) = (Chain::default(), Model::default());
            for _ in 0..random.below(30) {
                step(&mut chain, &mut model, &mut random);
                let state = (chain.bytes(), chain.ready());
                assert_eq!(state, (model.bytes.len(), model.ready), "seed {seed}");
                assert_eq!(chain.is_empty(), model.bytes.is_empty(), "seed {seed}");
            }
            assert_eq!(all_of(chain), model.bytes, "seed {seed}");
        }
    }

    #[test]
    fn nothing_is_copied() {
        let part = Bytes::from(vec![7; 100]);
        let at = part.as_ptr();
        let mut chain = Chain::default();
        chain.push(part, 60);
        let mut ready = chain.take_ready();
        assert_eq!((ready.take_part(50).as_ptr(), ready.take_part(50).len()), (at, 10));
        assert_eq!(chain.take_part(40).as_ptr(), at.wrapping_add(60));
    }
}
