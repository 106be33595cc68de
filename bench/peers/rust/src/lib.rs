//! What the servers on tokio share: one thread, one task for each connection, and the line that says where they
//! listen. Knows nothing of WebSocket.

use std::{error::Error, net::Ipv4Addr};

use tokio::{
    net::{TcpListener, TcpStream},
    runtime, task,
};

/// The port that is the program's last argument; without one, a free port.
///
/// # Errors
///
/// The argument is not a port.
pub fn port() -> Result<u16, Box<dyn Error>> {
    Ok(std::env::args().skip(1).last().map_or(Ok(0), |port| port.parse())?)
}

/// Serves 127.0.0.1 until the process is ended: `answer` is called for each connection, and its errors end only
/// that connection.
///
/// # Errors
///
/// The port is not one, or is taken.
pub fn serve<E: 'static, F: Future<Output = Result<(), E>> + Send + 'static>(
    name: &str,
    answer: fn(TcpStream) -> F,
) -> Result<(), Box<dyn Error>> {
    let port = port()?;
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
        println!("{name} listening on ws://{}", listener.local_addr()?);
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            // Only this task's own socket wakes it, so it need not yield while the socket has more.
            tokio::spawn(task::unconstrained(async move { drop(answer(stream).await) }));
        }
    })
}
