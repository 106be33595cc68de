//! Echoes messages with the library tungstenite, and prints its address: blocking sockets, a thread
//! for each connection, nothing compressed, for the library cannot. ringecho is measured against it.
//!
//! Each thread ends with its connection, and the kernel's account of it too: what `ringbench compare`
//! gives as this server's CPU time and context switches is therefore far too little.
//!
//! `tungstenite [PORT]`: without a port a free one.

use std::{
    net::{Ipv4Addr, TcpListener, TcpStream},
    thread,
};

use tungstenite::{Error, HandshakeError, Message};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let port = std::env::args().nth(1).map_or(Ok(0), |port| port.parse())?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
    println!("tungstenite listening on ws://{}", listener.local_addr()?);
    for stream in listener.incoming() {
        let stream = stream?;
        thread::spawn(move || match echo(stream) {
            Ok(()) | Err(Error::ConnectionClosed) => {}
            Err(error) => eprintln!("tungstenite: {error}"),
        });
    }
    Ok(())
}

/// Ends with [`Error::ConnectionClosed`] when the closing handshake is done.
fn echo(stream: TcpStream) -> tungstenite::Result<()> {
    stream.set_nodelay(true)?;
    let mut socket = tungstenite::accept(stream).map_err(|error| match error {
        HandshakeError::Failure(error) => error,
        HandshakeError::Interrupted(_) => unreachable!("the socket blocks"),
    })?;
    loop {
        match socket.read()? {
            message @ (Message::Text(_) | Message::Binary(_)) => socket.send(message)?,
            // The library answers pings and close frames itself, with the next read.
            Message::Ping(_) | Message::Pong(_) | Message::Close(_) | Message::Frame(_) => {}
        }
    }
}
