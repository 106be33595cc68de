//! Echoes messages with tokio-tungstenite: the replies to messages that are there together are flushed together.
//! It cannot compress.
//!
//! `tokio-tungstenite [PORT]`

use futures_util::{FutureExt as _, SinkExt as _, StreamExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::{Error, protocol::WebSocketConfig};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    ringecho_peers::serve("tokio-tungstenite", answer)
}

async fn answer(stream: TcpStream) -> Result<(), Error> {
    // Without a limit, the library reserves what a header announces, and the process ends at 2^62 bytes.
    let config = WebSocketConfig::default().max_frame_size(Some(64 << 20));
    let mut socket = tokio_tungstenite::accept_async_with_config(stream, Some(config)).await?;
    let mut ready = None;
    loop {
        let message = match ready.take() {
            Some(message) => message,
            None => socket.next().await,
        };
        let Some(message) = message.transpose()? else { return Ok(()) };
        if message.is_text() || message.is_binary() {
            socket.feed(message).await?;
        }
        ready = socket.next().now_or_never();
        if ready.is_none() {
            socket.flush().await?;
        }
    }
}
