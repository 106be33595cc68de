//! Echoes messages with the library fastwebsockets, and prints its address: tokio with one thread,
//! connections taken over from hyper as in the library's own example, nothing compressed, for the
//! library cannot. ringecho is measured against it.
//!
//! `fastwebsockets [PORT]`: without a port a free one.

use std::net::Ipv4Addr;

use fastwebsockets::{FragmentCollector, OpCode, WebSocketError, upgrade};
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    runtime, task,
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let port = std::env::args().nth(1).map_or(Ok(0), |port| port.parse())?;
    let runtime = runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
        println!("fastwebsockets listening on ws://{}", listener.local_addr()?);
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            tokio::spawn(async {
                if let Err(error) = answer(stream).await {
                    eprintln!("fastwebsockets: {error}");
                }
            });
        }
    })
}

/// Answers the opening handshake, and hands the connection to a task that echoes.
async fn answer(stream: TcpStream) -> hyper::Result<()> {
    let service = service_fn(|mut request| async move {
        let (response, upgraded) = upgrade::upgrade(&mut request)?;
        // Only this task's own socket wakes it: it need not yield where the socket has more.
        tokio::spawn(task::unconstrained(async {
            if let Err(error) = echo(upgraded).await {
                eprintln!("fastwebsockets: {error}");
            }
        }));
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
