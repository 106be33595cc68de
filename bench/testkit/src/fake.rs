//! A scripted server: for each connection it runs a function that says, step by step, what the server
//! reads and answers. With it a test plays servers that misbehave in ways that ringecho does not.
//!
//! A script that fails, because the client is gone, ends only its own connection.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use rustix::net::sockopt;

use crate::frame::{CLOSE, Frame, reply};
use crate::oracle::accept_of;

/// A server on a free port of 127.0.0.1. It listens until the test process ends.
#[derive(Debug)]
pub struct Fake {
    address: SocketAddr,
    accepted: Arc<AtomicUsize>,
}

impl Fake {
    /// Runs `script` on a new thread for each connection, with the connection's number, counted from 0.
    pub fn start(
        script: impl Fn(&mut Peer, usize) -> io::Result<()> + Send + Sync + 'static,
    ) -> Fake {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = listener.local_addr().expect("an address");
        let accepted = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&accepted);
        let script = Arc::new(script);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let number = counted.fetch_add(1, Ordering::Relaxed);
                let script = Arc::clone(&script);
                thread::spawn(move || {
                    // The client may end a connection at any time.
                    let _ = Peer::new(stream).and_then(|mut peer| script(&mut peer, number));
                });
            }
        });
        Fake { address, accepted }
    }

    /// A WebSocket server that accepts every handshake and calls `answer` for each frame. It answers
    /// close frames itself, and then ends the connection.
    pub fn echo(
        answer: impl Fn(&mut Peer, &Frame) -> io::Result<()> + Send + Sync + 'static,
    ) -> Fake {
        Fake::start(move |peer, _| {
            peer.accept("")?;
            peer.echo_until_close(&answer)?;
            peer.send(&reply(CLOSE, &1000u16.to_be_bytes()))
        })
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("ws://{}/", self.address)
    }

    /// Its address as a target of plain bytes.
    pub fn plain(&self) -> String {
        format!("tcp://{}", self.address)
    }

    /// How many connections it has accepted.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }
}

/// One accepted connection.
#[derive(Debug)]
pub struct Peer {
    /// Its socket.
    pub stream: TcpStream,
    received: Vec<u8>,
}

impl Peer {
    fn new(stream: TcpStream) -> io::Result<Peer> {
        stream.set_nodelay(true)?;
        Ok(Peer { stream, received: Vec::new() })
    }

    /// Receives until there are `count` bytes, and takes them.
    pub fn take(&mut self, count: usize) -> io::Result<Vec<u8>> {
        let mut room = vec![0; 64 << 10];
        while self.received.len() < count {
            match self.stream.read(&mut room)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => self.received.extend_from_slice(&room[..read]),
            }
        }
        Ok(self.received.drain(..count).collect())
    }

    /// The head of the client's request, with the empty line.
    pub fn request(&mut self) -> io::Result<String> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.extend(self.take(1)?);
        }
        Ok(String::from_utf8_lossy(&head).into_owned())
    }

    /// Reads the request and accepts it, with more header fields, each ended by `\r\n`.
    pub fn accept(&mut self, fields: &str) -> io::Result<()> {
        let request = self.request()?;
        self.send(response_to(&request, fields).as_bytes())
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// The client's next frame, whole and unmasked.
    pub fn frame(&mut self) -> io::Result<Frame> {
        let head = self.take(2)?;
        let length = match head[1] & 0x7f {
            126 => u64::from(u16::from_be_bytes(self.array()?)),
            127 => u64::from_be_bytes(self.array()?),
            short => u64::from(short),
        };
        assert_ne!(head[1] & 0x80, 0, "a client masks its frames");
        let key: [u8; 4] = self.array()?;
        let mut payload = self.take(length as usize)?;
        payload.iter_mut().zip(key.iter().cycle()).for_each(|(byte, key)| *byte ^= key);
        Ok(Frame { first: head[0], payload })
    }

    fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        Ok(self.take(N)?.try_into().expect("as many as were taken"))
    }

    /// Sends back what it reads, after `change` has seen it with its place in the stream, until that
    /// returns false or the client ends the connection.
    pub fn echo_bytes(
        &mut self,
        mut change: impl FnMut(usize, &mut [u8]) -> bool,
    ) -> io::Result<()> {
        let mut room = vec![0; 64 << 10];
        let mut at = 0;
        loop {
            let count = self.stream.read(&mut room)?;
            if count == 0 || !change(at, &mut room[..count]) {
                return Ok(());
            }
            self.send(&room[..count])?;
            at += count;
        }
    }

    /// Calls `answer` for each frame until a close frame comes, and returns that.
    pub fn echo_until_close(
        &mut self,
        answer: &impl Fn(&mut Peer, &Frame) -> io::Result<()>,
    ) -> io::Result<Frame> {
        self.echo_until(CLOSE, answer)
    }

    /// Calls `answer` for each frame until one comes whose first byte is `first`, and returns that.
    pub fn echo_until(
        &mut self,
        first: u8,
        answer: &impl Fn(&mut Peer, &Frame) -> io::Result<()>,
    ) -> io::Result<Frame> {
        loop {
            let frame = self.frame()?;
            if frame.first == first {
                return Ok(frame);
            }
            answer(self, &frame)?;
        }
    }

    /// Makes the end of this connection, which comes with the end of the script, a reset.
    pub fn reset_at_end(&self) -> io::Result<()> {
        let linger = Some(Duration::ZERO);
        Ok(sockopt::set_socket_linger(&self.stream, linger)?)
    }

    /// Sends nothing more and waits until the client has ended the connection.
    pub fn wait_for_end(&mut self) -> io::Result<()> {
        while self.stream.read(&mut [0; 4096])? > 0 {}
        Ok(())
    }

    /// Ends the sending direction.
    pub fn finish(&self) -> io::Result<()> {
        self.stream.shutdown(Shutdown::Write)
    }
}

/// A response that accepts `request`, with more header fields, each ended by `\r\n`.
pub fn response_to(request: &str, fields: &str) -> String {
    let key = request
        .lines()
        .find_map(|line| line.strip_prefix("Sec-WebSocket-Key: "))
        .expect("a request with a key");
    let accept = accept_of(key);
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\n{fields}\r\n"
    )
}

/// Sends a frame back as it came, unmasked: what a correct server does.
pub fn send_back(peer: &mut Peer, echo: &Frame) -> io::Result<()> {
    peer.send(&reply(echo.first, &echo.payload))
}
