//! What the protocol answers, whatever engine carries it: a [`Dialogue`](ringecho::protocol::Dialogue) in this
//! process.

mod echoes;
mod frames;
mod limits;
mod memory;
mod streams;
mod takeover;
