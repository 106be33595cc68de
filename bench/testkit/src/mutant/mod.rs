//! A WebSocket echo server, and a client, that can be made wrong on purpose: to try whether a conformance
//! suite notices it.
//!
//! Without a [`Fault`] both do what RFC 6455 and RFC 7692 ask, in the plainest way: a thread for each
//! connection, blocking calls, one frame after the other. They answer whole messages, check text as its
//! bytes arrive, and fail a connection at the first byte that is wrong. Compressed text is checked when it
//! is whole. They share no code with `ringecho`.
//!
//! - [`fault`]: the table of all faults, with the rule that each breaks and the cases that must notice it
//! - `handshake`: the opening handshake from both sides
//! - `extension`: permessage-deflate, what is agreed and how messages are compressed
//! - `connection`: frames and messages, the same for both sides
//! - `utf8`: what is valid text
//! - `client`: the client, which runs the cases of a server by the protocol of the Autobahn suite

mod client;
mod connection;
mod extension;
pub mod fault;
mod handshake;
mod utf8;

#[cfg(test)]
mod tests;

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use self::connection::Connection;
use crate::process::TIMEOUT;

pub use self::client::{Status, run_cases};
pub use self::fault::{Fault, Role};

/// The longest message that is accepted, in bytes, unless another limit is given: that of the longest case
/// of the Autobahn suite.
pub const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// How a server or a client behaves.
#[derive(Debug, Clone)]
pub struct Behavior {
    /// What it does wrong.
    pub faults: Vec<Fault>,
    /// The longest message that it accepts, in bytes, before and after it is inflated.
    pub message_bytes_max: usize,
}

impl Behavior {
    /// With these faults.
    pub fn with(faults: &[Fault]) -> Behavior {
        Behavior { faults: faults.to_vec(), message_bytes_max: MESSAGE_BYTES_MAX }
    }

    fn has(&self, fault: Fault) -> bool {
        self.faults.contains(&fault)
    }
}

/// The server, on a free port of 127.0.0.1. It listens until the process ends.
#[derive(Debug)]
pub struct Mutant {
    address: SocketAddr,
}

impl Mutant {
    /// Starts a server that behaves so.
    pub fn start(behavior: Behavior) -> Mutant {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = listener.local_addr().expect("an address");
        thread::spawn(move || serve(&listener, behavior));
        Mutant { address }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("ws://{}/", self.address)
    }
}

/// Serves every connection of a listener, each on a thread of its own. Does not return.
pub fn serve(listener: &TcpListener, behavior: Behavior) {
    let behavior = Arc::new(behavior);
    let mut was_reset = false;
    for stream in listener.incoming().flatten() {
        let behavior = Arc::clone(&behavior);
        if behavior.has(Fault::ResetSpoilsNext) {
            // Without being served, a connection ends here.
            was_reset = !was_reset && serve_one(stream, behavior).is_err();
            continue;
        }
        thread::spawn(move || {
            // The client may end a connection at any time.
            let _ = serve_one(stream, behavior);
        });
    }
}

fn serve_one(stream: TcpStream, behavior: Arc<Behavior>) -> io::Result<()> {
    prepare(&stream)?;
    match handshake::accept(stream, &behavior)? {
        Some(opened) => Connection::new(opened, Role::Server, behavior).echo(),
        None => Ok(()),
    }
}

/// Nothing waits longer than [`TIMEOUT`].
fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))
}
