//! Echoes messages with tungstenite on blocking sockets, a thread for each connection. It cannot compress.
//!
//! `tungstenite [PORT]`

use std::{
    net::{Ipv4Addr, TcpListener, TcpStream},
    thread,
};

use tungstenite::{HandshakeError, Message, protocol::WebSocketConfig};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, ringecho_peers::port()?))?;
    println!("tungstenite listening on ws://{}", listener.local_addr()?);
    for stream in listener.incoming() {
        let stream = stream?;
        thread::spawn(move || echo(stream));
    }
    Ok(())
}

/// Ends with [`tungstenite::Error::ConnectionClosed`] when the closing handshake is done.
fn echo(stream: TcpStream) -> tungstenite::Result<()> {
    stream.set_nodelay(true)?;
    // Without a limit, the library reserves what a header announces, and the process ends at 2^62 bytes.
    let config = WebSocketConfig::default().max_frame_size(Some(64 << 20));
    let mut socket =
        tungstenite::accept_with_config(stream, Some(config)).map_err(|error| match error {
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
