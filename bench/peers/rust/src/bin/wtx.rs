//! Echoes messages with wtx, as its own benchmark does. Nothing is compressed.
//!
//! `wtx [PORT]`

use tokio::net::TcpStream;
use wtx::{
    Error,
    collection::Vector,
    web_socket::{OpCode, WebSocketAcceptor, WebSocketPayloadOrigin},
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    ringecho_peers::serve("wtx", answer)
}

async fn answer(stream: TcpStream) -> Result<(), Error> {
    let mut socket = WebSocketAcceptor::default().accept(stream).await?;
    let mut buffer = Vector::new();
    let (mut common, mut reader, mut writer) = socket.split_mut();
    loop {
        let mut frame =
            reader.read_frame(&mut buffer, &mut common, WebSocketPayloadOrigin::Adaptive).await?;
        match frame.op_code() {
            OpCode::Binary | OpCode::Text => writer.write_frame(&mut common, &mut frame).await?,
            OpCode::Close => return Ok(()),
            OpCode::Continuation | OpCode::Ping | OpCode::Pong => {}
        }
    }
}
