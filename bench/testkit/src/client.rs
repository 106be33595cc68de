//! A scripted client over a real socket, which sends exactly the bytes that a test gives it. It may also speak over
//! another stream, such as TLS on a socket.
//!
//! Reads and writes block, every wait is bounded, and failures are panics.

use std::io::{self, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};

use rustix::net::sockopt;

use crate::frame::{CLOSE, Frame, frame};
use crate::process::TIMEOUT;
use crate::repair::rewind;

/// The example of a key in RFC 6455 section 1.3, used in [`REQUEST`].
pub const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
/// The server's answer to [`KEY`], used in [`RESPONSE`].
pub const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
/// The request of [`Client::handshake`].
pub const REQUEST: &str = "GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n\
    Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
/// The response to [`REQUEST`].
pub const RESPONSE: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\
    Connection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// A connection to the server.
#[derive(Debug)]
pub struct Client<S = TcpStream> {
    stream: BufReader<S>,
}

impl Client<TcpStream> {
    /// A connection after its opening handshake.
    pub fn connect(address: SocketAddr) -> Client {
        let mut client = Client::open(address);
        client.handshake();
        client
    }

    /// A connection on which nothing is sent yet.
    pub fn open(address: SocketAddr) -> Client {
        Client::on(TcpStream::connect_timeout(&address, TIMEOUT).expect("a connection"))
    }

    /// A client that continues on this connection.
    pub fn on(stream: TcpStream) -> Client {
        prepare(&stream);
        Client::over(stream)
    }

    /// The same connection, on which what is written next takes the place of the last `repeated` bytes: see
    /// [`rewind`].
    #[must_use]
    pub fn rewound(self, repeated: u32) -> Client {
        assert!(self.stream.buffer().is_empty(), "everything received is read");
        Client::on(rewind(self.stream.into_inner(), repeated))
    }

    /// Limits the receive buffer, which otherwise keeps growing for a client that does not read. With less
    /// than a few segments of the loopback device, the server's kernel would wait for timers.
    pub fn limit_receiving(&self) {
        sockopt::set_socket_recv_buffer_size(self.stream(), 256 << 10).expect("an option");
    }
}

/// Sets the options of the socket of a [`Client`].
pub fn prepare(stream: &TcpStream) {
    stream.set_nodelay(true).expect("an option");
    stream.set_read_timeout(Some(TIMEOUT)).expect("an option");
    stream.set_write_timeout(Some(TIMEOUT)).expect("an option");
}

impl<S: Read + Write> Client<S> {
    /// A client that speaks over this stream, whose socket has been prepared ([`prepare`]).
    pub fn over(stream: S) -> Client<S> {
        Client { stream: BufReader::new(stream) }
    }

    /// The opening handshake.
    pub fn handshake(&mut self) {
        self.write(REQUEST.as_bytes());
        let response = self.read(RESPONSE.len());
        assert_eq!(String::from_utf8_lossy(&response), RESPONSE);
    }

    /// The opening handshake with `request`; returns the head of the response.
    pub fn handshake_by(&mut self, request: &str) -> String {
        self.write(request.as_bytes());
        let mut response = Vec::new();
        while !response.ends_with(b"\r\n\r\n") {
            response.extend(self.read(1));
        }
        String::from_utf8(response).expect("the server writes ASCII")
    }

    /// The stream, for the options of its socket and for shutting it down.
    pub fn stream(&self) -> &S {
        self.stream.get_ref()
    }

    /// The stream, to speak on it otherwise.
    pub fn stream_mut(&mut self) -> &mut S {
        self.stream.get_mut()
    }

    /// Sends bytes as they are.
    pub fn write(&mut self, bytes: &[u8]) {
        let stream = self.stream.get_mut();
        stream.write_all(bytes).and_then(|()| stream.flush()).expect("the server reads");
    }

    /// Reads exactly `count` bytes.
    pub fn read(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.stream.read_exact(&mut bytes).expect("the server sends");
        bytes
    }

    /// Reads everything up to the end of the stream; an error if that is a reset.
    pub fn read_to_end(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.stream.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Sends a frame in one write.
    pub fn send_frame(&mut self, first: u8, payload: &[u8]) {
        self.write(&frame(first, payload));
    }

    /// Reads a frame, and checks that it is unmasked and has its length in the shortest form.
    pub fn read_frame(&mut self) -> Frame {
        let header = self.read(2);
        let length = match header[1] {
            short @ 0..126 => u64::from(short),
            126 => {
                let length = self.read(2).try_into().map(u16::from_be_bytes).expect("two");
                assert!(length >= 126, "the length {length} has a shorter form");
                u64::from(length)
            }
            127 => {
                let length = self.read(8).try_into().map(u64::from_be_bytes).expect("eight");
                assert!(length > 0xFFFF, "the length {length} has a shorter form");
                length
            }
            masked => panic!("a server does not mask: {masked:#x}"),
        };
        Frame { first: header[0], payload: self.read(length as usize) }
    }

    /// Sends a frame and reads its echo.
    pub fn echo(&mut self, first: u8, payload: &[u8]) {
        self.send_frame(first, payload);
        self.expect(first, payload);
    }

    /// Reads a frame that must be this one.
    pub fn expect(&mut self, first: u8, payload: &[u8]) {
        let frame = self.read_frame();
        let shown = &frame.payload[..frame.payload.len().min(64)];
        assert_eq!(frame.first, first, "a frame with {shown:x?}");
        assert_eq!(frame.payload.len(), payload.len(), "a frame with {shown:x?}");
        let different = frame.payload.iter().zip(payload).position(|(left, right)| left != right);
        assert_eq!(different, None, "the first byte that differs");
    }

    /// Reads a close frame with this code and no reason, and the end of the stream after it.
    pub fn expect_close(&mut self, code: u16) {
        self.expect(CLOSE, &code.to_be_bytes());
        self.expect_end();
    }

    /// Reads the end of the stream: FIN, and nothing before it.
    pub fn expect_end(&mut self) {
        let rest = self.read_to_end().expect("FIN and not RST");
        assert_eq!(rest, b"", "bytes before the end of the stream");
    }

    /// The closing handshake from this side, with code 1000.
    pub fn close(mut self) {
        self.send_frame(CLOSE, &1000u16.to_be_bytes());
        self.expect_close(1000);
    }
}
