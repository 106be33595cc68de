//! Echoes messages with yawc, with the buffers and the batches of up to 32 ready messages of its own benchmark.
//! With permessage-deflate where the client offers it.
//!
//! `yawc [PORT]`

use futures_util::{FutureExt as _, SinkExt as _};
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, task};
use yawc::{OpCode, Options, UpgradeFut, WebSocket, WebSocketError};

const READ_BUFFER_BYTES: usize = 128 << 10;
const BACKPRESSURE_BYTES: usize = 64 << 10;
const MESSAGE_BYTES_MAX: usize = 64 << 20;
const BATCH: usize = 32;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    ringecho_peers::serve("yawc", answer)
}

/// Answers the opening handshake, and hands the connection to a task that echoes.
async fn answer(stream: TcpStream) -> hyper::Result<()> {
    let service = service_fn(|mut request| async move {
        let options = Options::default()
            .with_utf8()
            .with_balanced_compression()
            .with_limits(MESSAGE_BYTES_MAX, 2 * MESSAGE_BYTES_MAX)
            .with_read_buffer_capacity(READ_BUFFER_BYTES)
            .with_backpressure_boundary(BACKPRESSURE_BYTES);
        let (response, upgraded) = WebSocket::upgrade_with_options(&mut request, options)?;
        tokio::spawn(task::unconstrained(async { drop(echo(upgraded).await) }));
        Ok::<_, WebSocketError>(response)
    });
    http1::Builder::new().serve_connection(TokioIo::new(stream), service).with_upgrades().await
}

async fn echo(upgraded: UpgradeFut) -> Result<(), WebSocketError> {
    let mut socket = upgraded.await?;
    loop {
        let mut frame = socket.next_frame().await?;
        for index in 1..=BATCH {
            match frame.opcode() {
                OpCode::Text | OpCode::Binary => socket.feed(frame).await?,
                OpCode::Close => return socket.close().await,
                _ => {}
            }
            if index == BATCH {
                break;
            }
            match socket.next_frame().now_or_never() {
                Some(next) => frame = next?,
                None => break,
            }
        }
        socket.flush().await?;
    }
}
