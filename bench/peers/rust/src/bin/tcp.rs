//! Echoes plain bytes over TCP, to show what is left when nothing is done with them: the floor of any echo server.
//!
//! `tcp block PORT` has blocking sockets and a thread for each connection. `tcp spin PORT` has one thread that asks
//! each socket in turn and never sleeps. `tcp epoll PORT` has one thread that sleeps in `epoll_wait`.

use std::{
    collections::HashMap,
    error::Error,
    io::{ErrorKind, Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    thread,
};

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};

const BUFFER_BYTES: usize = 256 << 10;
const EVENTS: usize = 1024;
/// The descriptor of no connection.
const LISTENER: u64 = u64::MAX;

fn main() -> Result<(), Box<dyn Error>> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, ringecho_peers::port()?))?;
    println!("tcp listening on tcp://{}", listener.local_addr()?);
    match std::env::args().nth(1).as_deref() {
        Some("block") => block(&listener),
        Some("spin") => spin(&listener),
        Some("epoll") => epoll(&listener),
        _ => Err("usage: tcp block|spin|epoll PORT".into()),
    }
}

fn block(listener: &TcpListener) -> Result<(), Box<dyn Error>> {
    loop {
        let mut stream = listener.accept()?.0;
        stream.set_nodelay(true)?;
        thread::spawn(move || -> std::io::Result<()> {
            let mut buffer = vec![0; BUFFER_BYTES];
            loop {
                match stream.read(&mut buffer)? {
                    0 => return Ok(()),
                    bytes => stream.write_all(&buffer[..bytes])?,
                }
            }
        });
    }
}

fn spin(listener: &TcpListener) -> Result<(), Box<dyn Error>> {
    listener.set_nonblocking(true)?;
    let mut connections: Vec<Connection> = Vec::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        if let Ok((stream, _)) = listener.accept() {
            connections.push(Connection::new(stream)?);
        }
        connections.retain_mut(|connection| connection.turn(&mut buffer).is_ok());
    }
}

fn epoll(listener: &TcpListener) -> Result<(), Box<dyn Error>> {
    listener.set_nonblocking(true)?;
    let set = epoll::create(CreateFlags::CLOEXEC)?;
    epoll::add(&set, listener, EventData::new_u64(LISTENER), EventFlags::IN)?;
    let mut connections: HashMap<u64, Connection> = HashMap::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut events = Vec::with_capacity(EVENTS);
    loop {
        events.clear();
        // Being stopped and continued, as between the rounds of a comparison, interrupts it.
        rustix::io::retry_on_intr(|| {
            epoll::wait(&set, rustix::buffer::spare_capacity(&mut events), None)
        })?;
        for event in &events {
            let key = event.data.u64();
            if key == LISTENER {
                while let Ok((stream, _)) = listener.accept() {
                    let key = u64::try_from(stream.as_raw_fd())?;
                    let flags = EventFlags::IN | EventFlags::OUT | EventFlags::ET;
                    epoll::add(&set, &stream, EventData::new_u64(key), flags)?;
                    connections.insert(key, Connection::new(stream)?);
                }
            } else if let Some(connection) = connections.get_mut(&key)
                && connection.turn(&mut buffer).is_err()
            {
                connections.remove(&key);
            }
        }
    }
}

/// A socket that does not block, and what it had no room for.
struct Connection {
    stream: TcpStream,
    unsent: Vec<u8>,
}

impl Connection {
    fn new(stream: TcpStream) -> std::io::Result<Connection> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        Ok(Connection { stream, unsent: Vec::new() })
    }

    /// Sends back all that is there, until there is no more or no room for it. An error ends the connection.
    fn turn(&mut self, buffer: &mut [u8]) -> std::io::Result<()> {
        loop {
            let sent = send(&mut self.stream, &self.unsent)?;
            self.unsent.drain(..sent);
            if !self.unsent.is_empty() {
                return Ok(());
            }
            match self.stream.read(buffer) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(bytes) => {
                    let sent = send(&mut self.stream, &buffer[..bytes])?;
                    self.unsent.extend_from_slice(&buffer[sent..bytes]);
                    // What was cut short empties the socket: only a full read may have left more.
                    if bytes < buffer.len() && self.unsent.is_empty() {
                        return Ok(());
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }
}

/// Sends as much as there is room for.
fn send(stream: &mut TcpStream, bytes: &[u8]) -> std::io::Result<usize> {
    let mut sent = 0;
    while sent < bytes.len() {
        match stream.write(&bytes[sent..]) {
            Ok(count) => sent += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    Ok(sent)
}
