//! The client: it runs the cases of a server by the protocol of the Autobahn suite for clients.
//!
//! `/getCaseCount` answers a message with the number of cases. Each case is a connection of its own to
//! `/runCase?case=N&agent=A`, on which the client echoes. `/getCaseStatus?case=N&agent=A` answers a
//! message with the verdict, and `/updateReports?agent=A` has the server write its report.

use std::io;
use std::net::{TcpStream, ToSocketAddrs as _};
use std::sync::Arc;

use super::connection::Connection;
use super::{Behavior, Role, handshake, prepare};
use crate::process::TIMEOUT;

/// What a server says of a case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// The number of the case, counted from 1.
    pub case: u32,
    /// The server's message: a JSON object with the verdict as `behavior`.
    pub message: String,
}

/// Runs all cases of the server at `url` as `agent`, and returns what it says of each. A case may fail the
/// connection; what asks for numbers and verdicts has no faults.
///
/// # Errors
///
/// When the server cannot be reached, or does not answer these requests.
pub fn run_cases(url: &str, agent: &str, behavior: &Behavior) -> io::Result<Vec<Status>> {
    let authority = url.strip_prefix("ws://").unwrap_or(url).trim_end_matches('/');
    let behavior = Arc::new(behavior.clone());
    let count = ask(authority, "/getCaseCount")?;
    let count: u32 = count.parse().map_err(|_| io::Error::other(format!("{count:?} cases")))?;
    let mut statuses = Vec::new();
    for case in 1..=count {
        // The server knows how the case ended, whether with an error for this side or not.
        let _ = open(authority, &format!("/runCase?case={case}&agent={agent}"), &behavior)
            .and_then(Connection::echo);
        let message = ask(authority, &format!("/getCaseStatus?case={case}&agent={agent}"))?;
        statuses.push(Status { case, message });
    }
    let right = Arc::new(Behavior::with(&[]));
    open(authority, &format!("/updateReports?agent={agent}"), &right)?.keep()?;
    Ok(statuses)
}

/// The only message that the server sends.
fn ask(authority: &str, target: &str) -> io::Result<String> {
    let right = Arc::new(Behavior::with(&[]));
    let messages = open(authority, target, &right)?.keep()?;
    let message = messages.into_iter().next();
    let message = message.ok_or_else(|| io::Error::other(format!("no answer to {target}")))?;
    String::from_utf8(message).map_err(io::Error::other)
}

fn open(authority: &str, target: &str, behavior: &Arc<Behavior>) -> io::Result<Connection> {
    let address = authority.to_socket_addrs()?.next();
    let address = address.ok_or_else(|| io::Error::other(format!("no address of {authority}")))?;
    let stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    prepare(&stream)?;
    let opened = handshake::connect(stream, target, behavior)?;
    Ok(Connection::new(opened, Role::Client, Arc::clone(behavior)))
}
