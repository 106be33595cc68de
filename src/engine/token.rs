//! The `user_data` of an operation: its kind, and the connection that it belongs to.
//!
//! ```text
//! 63      56 55           32 31            0
//! [   op   ] [ generation ] [     slot     ]
//! ```
//!
//! If an operation belongs to no connection, the slot is the number of its listener, or 0.

use crate::slab::{ConnectionId, GENERATION_BITS};

/// The kinds of operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Op {
    /// A multishot accept; the slot is the listener's number.
    Accept = 1,
    /// A multishot receive.
    Receive = 2,
    /// A send.
    Send = 3,
    /// The cancellation of another operation.
    Cancel = 4,
    /// A close.
    Close = 5,
    /// The poll of the eventfd that asks the worker to stop.
    Stop = 6,
    /// The poll for notices about offloaded connections; the slot is 0.
    Notices = 7,
    /// The poll that ends when a peer hangs up.
    HangUp = 8,
    /// A send of 0 bytes, which fails if the connection is broken.
    Verify = 9,
    /// The alarm; the slot is 0.
    Alarm = 10,
    /// The poll of the eventfd through which the worker is asked what is open; the slot is 0.
    Question = 11,
}

/// A `user_data` value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token(pub u64);

impl Token {
    /// The token of an operation of a connection.
    #[inline]
    pub fn new(op: Op, id: ConnectionId) -> Token {
        Token((op as u64) << 56 | u64::from(id.generation) << 32 | u64::from(id.slot))
    }

    /// The kind of operation.
    ///
    /// # Panics
    ///
    /// When [`Token::new`] did not make the value.
    #[inline]
    pub fn op(self) -> Op {
        match self.0 >> 56 {
            1 => Op::Accept,
            2 => Op::Receive,
            3 => Op::Send,
            4 => Op::Cancel,
            5 => Op::Close,
            6 => Op::Stop,
            7 => Op::Notices,
            8 => Op::HangUp,
            9 => Op::Verify,
            10 => Op::Alarm,
            11 => Op::Question,
            other => unreachable!("no operation has the number {other}"),
        }
    }

    /// The connection.
    #[inline]
    pub fn id(self) -> ConnectionId {
        let generation = (self.0 >> 32) as u32 & ((1 << GENERATION_BITS) - 1);
        ConnectionId { slot: self.0 as u32, generation }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_gives_back_what_it_was_made_of() {
        for number in 1..=11 {
            let op = Token(number << 56).op();
            for slot in [0, 1, u32::MAX] {
                for generation in [0, 1, (1 << GENERATION_BITS) - 1] {
                    let id = ConnectionId { slot, generation };
                    let token = Token::new(op, id);
                    assert_eq!((token.op(), token.id()), (op, id));
                }
            }
        }
    }
}
