//! Echoes messages with tokio-websockets, set as in its own example `echo_server`. It cannot compress.
//!
//! `tokio-websockets [PORT]`

use futures_util::{SinkExt as _, StreamExt as _};
use tokio::net::TcpStream;
use tokio_websockets::{Config, Error, Limits, ServerBuilder};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    ringecho_peers::serve("tokio-websockets", answer)
}

async fn answer(stream: TcpStream) -> Result<(), Error> {
    let builder = ServerBuilder::new()
        .config(Config::default().frame_size(usize::MAX))
        .limits(Limits::unlimited());
    let (_, mut socket) = builder.accept(stream).await?;
    while let Some(message) = socket.next().await {
        let message = message?;
        if message.is_text() || message.is_binary() {
            socket.send(message).await?;
        }
    }
    Ok(())
}
