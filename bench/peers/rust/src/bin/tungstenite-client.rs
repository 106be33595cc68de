//! The client of tungstenite in a conformance suite, for `scripts/conform-clients`: asks for its cases,
//! echoes in each of them, and asks for the report. It cannot compress.
//!
//! `tungstenite-client URL AGENT`

use tungstenite::{Error, Message, protocol::WebSocketConfig};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [url, agent] = &arguments[..] else { return Err("write URL and AGENT".into()) };
    let count: u32 = connected(&format!("{url}/getCaseCount"), false)?.unwrap_or_default().parse()?;
    for number in 1..=count {
        // The suite knows how the case ended.
        let _ = connected(&format!("{url}/runCase?case={number}&agent={agent}"), true);
    }
    // Not every suite ends this connection with a close frame.
    let _ = connected(&format!("{url}/updateReports?agent={agent}"), false);
    Ok(())
}

/// Connects, echoes messages until the connection ends if that is asked for, and returns the first one.
fn connected(url: &str, echoes: bool) -> tungstenite::Result<Option<String>> {
    // The default is less than the longest frame of the cases. Without a limit, the library reserves what a
    // header announces, and panics at 2^62 bytes.
    let config = WebSocketConfig::default().max_frame_size(Some(64 << 20));
    let (mut socket, _) = tungstenite::client::connect_with_config(url, Some(config), 0)?;
    let mut first = None;
    loop {
        match socket.read() {
            Ok(message @ (Message::Text(_) | Message::Binary(_))) => {
                if echoes {
                    socket.send(message)?;
                } else if let Message::Text(text) = message {
                    first.get_or_insert(text.to_string());
                }
            }
            // The library answers pings and close frames itself, with the next read.
            Ok(Message::Ping(_) | Message::Pong(_) | Message::Close(_) | Message::Frame(_)) => {}
            Err(Error::ConnectionClosed) => return Ok(first),
            Err(error) => {
                // Sends the close frame that the error causes.
                let _ = socket.close(None);
                let _ = socket.flush();
                return Err(error);
            }
        }
    }
}
