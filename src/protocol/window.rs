//! The last bytes of a connection's messages, to which the next one may refer.
//!
//! Invariant: until `bytes` has the size of the window, the oldest byte comes first and `next` is 0. After
//! that, the oldest byte is at `next`.
//!
//! This file does not know who refers to the bytes, nor how far back.

/// The end of what was inflated so far. It takes memory as it fills, and no more than its size.
#[derive(Debug, Default)]
pub(super) struct Window {
    bytes: Vec<u8>,
    /// Where the next byte goes once the window is full.
    next: usize,
}

impl Window {
    /// Whether there is nothing to refer to.
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The bytes that it takes on the heap.
    pub(super) fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    /// Forgets all of it.
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.next = 0;
    }

    /// Appends `piece`. The window has `size` bytes, the same in each call.
    pub(super) fn push(&mut self, piece: &[u8], size: usize) {
        let piece = &piece[piece.len().saturating_sub(size)..];
        let (added, rest) = piece.split_at(piece.len().min(size - self.bytes.len()));
        self.grow(added, size);
        let (end, begin) = rest.split_at(rest.len().min(size - self.next));
        self.bytes[self.next..][..end.len()].copy_from_slice(end);
        self.bytes[..begin.len()].copy_from_slice(begin);
        self.next = (self.next + rest.len()) % size;
    }

    fn grow(&mut self, added: &[u8], size: usize) {
        let length = self.bytes.len() + added.len();
        if length > self.bytes.capacity() {
            let capacity = (2 * self.bytes.capacity()).clamp(length, size);
            self.bytes.reserve_exact(capacity - self.bytes.len());
        }
        self.bytes.extend_from_slice(added);
    }

    /// What is in it, in two pieces, the older one first.
    pub(super) fn pieces(&self) -> [&[u8]; 2] {
        let (newer, older) = self.bytes.split_at(self.next);
        [older, newer]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_holds_the_last_bytes_and_grows_no_larger_than_its_size() {
        for mut case in testkit::cases("it_holds_the_last_bytes", 300) {
            let random = &mut case.random;
            let size = random.pick(&[256, 512, 32768]);
            let (mut window, mut all) = (Window::default(), Vec::<u8>::new());
            for _ in 0..40 {
                let length = random.pick(&[0, 1, 100, size - 1, size, size + 1, 3 * size]);
                let piece = random.bytes(length);
                window.push(&piece, size);
                all.extend(&piece);
                all.drain(..all.len().saturating_sub(size));
                assert_eq!(window.pieces().concat(), all);
                assert!(window.bytes.capacity() <= size);
                if random.one_in(10) {
                    window.clear();
                    all.clear();
                }
            }
        }
    }

    #[test]
    fn a_short_message_takes_little_memory() {
        let mut window = Window::default();
        assert!(window.is_empty());
        window.push(b"Hello", 32768);
        assert!(!window.is_empty());
        assert_eq!(window.bytes.capacity(), 5);
    }
}
