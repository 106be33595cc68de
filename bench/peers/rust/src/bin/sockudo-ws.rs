//! Echoes messages with sockudo-ws: replies are fed, and the library flushes them before it waits for more, as its
//! documentation advises for echoes.
//!
//! Only its integration with axum negotiates permessage-deflate, so nothing is compressed here.
//!
//! `sockudo-ws [PORT]`

use futures_util::{SinkExt as _, StreamExt as _};
use sockudo_ws::{Config, Error, Message, Role, WebSocketStream, handshake};
use tokio::net::TcpStream;

const MESSAGE_BYTES_MAX: usize = 64 << 20;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    ringecho_peers::serve("sockudo-ws", answer)
}

async fn answer(mut stream: TcpStream) -> Result<(), Error> {
    let config = Config::builder()
        .max_message_size(MESSAGE_BYTES_MAX)
        .max_frame_size(MESSAGE_BYTES_MAX)
        .build();
    let agreed = handshake::server_handshake(&mut stream).await?;
    let mut socket =
        WebSocketStream::from_raw_with_leftover(stream, Role::Server, config, agreed.leftover);
    while let Some(message) = socket.next().await {
        match message? {
            message @ (Message::Text(_) | Message::Binary(_)) => socket.feed(message).await?,
            Message::Ping(_) | Message::Pong(_) | Message::Close(_) => {}
        }
    }
    Ok(())
}
