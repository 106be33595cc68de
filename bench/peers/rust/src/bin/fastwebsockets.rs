//! Echoes messages with fastwebsockets, which takes connections over from hyper as in its own example. It cannot
//! compress.
//!
//! `fastwebsockets [PORT]`

use fastwebsockets::{FragmentCollector, OpCode, WebSocketError, upgrade};
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, task};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    ringecho_peers::serve("fastwebsockets", answer)
}

/// Answers the opening handshake, and hands the connection to a task that echoes.
async fn answer(stream: TcpStream) -> hyper::Result<()> {
    let service = service_fn(|mut request| async move {
        let (response, upgraded) = upgrade::upgrade(&mut request)?;
        tokio::spawn(task::unconstrained(async { drop(echo(upgraded).await) }));
        Ok::<_, WebSocketError>(response)
    });
    http1::Builder::new().serve_connection(TokioIo::new(stream), service).with_upgrades().await
}

/// Returns when the closing handshake is done.
async fn echo(upgraded: upgrade::UpgradeFut) -> Result<(), WebSocketError> {
    let mut socket = upgraded.await?;
    socket.set_writev(true);
    socket.set_auto_close(true);
    socket.set_auto_pong(true);
    let mut socket = FragmentCollector::new(socket);
    loop {
        let frame = socket.read_frame().await?;
        match frame.opcode {
            OpCode::Text | OpCode::Binary => socket.write_frame(frame).await?,
            OpCode::Close => return Ok(()),
            OpCode::Continuation | OpCode::Ping | OpCode::Pong => {}
        }
    }
}
