//! What a server keeps for the one that takes over from it, and what goes with it when nobody does: a share of
//! each listening socket, the files of Unix sockets, and the door at which the newer server knocks.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tracing::{info, warn};

use super::Control;
use crate::listen::takeover::{self, Door, Inheritance};
use crate::listen::{self, Address, ListenError, Listening, SocketFile, Transport};
use crate::protocol::Acceptor;
use crate::sandbox::{self, Needs};
use crate::tls::Tls;
use crate::workers::Listener;

/// The pause after something at the door that was no server.
const PAUSE: Duration = Duration::from_millis(100);

/// What a server leaves behind. What is still in it at its end goes with it.
#[derive(Debug, Default)]
pub(super) struct Estate {
    listening: Vec<Listening>,
    door: Option<SocketFile>,
}

impl Estate {
    /// Closes the sockets, as the workers do with their shares. The files remain until the end.
    pub(super) fn close(&mut self) {
        for listening in &mut self.listening {
            listening.sockets.clear();
        }
    }

    /// What a thread needs that drops it.
    pub(super) fn needs(&self) -> Needs {
        let files = self.listening.iter().filter_map(|listening| listening.file.as_ref());
        files.chain(&self.door).map(SocketFile::needs).fold(Needs::default(), Needs::and)
    }

    /// Leaves what goes with another server now: the door, and the files of these addresses.
    fn leave(&mut self, addresses: &[String]) {
        for Listening { address, file, .. } in &mut self.listening {
            if addresses.contains(&takeover::name(address))
                && let Some(file) = file.take()
            {
                file.leave();
            }
        }
        if let Some(file) = self.door.take() {
            file.leave();
        }
    }
}

/// How a server comes to its door.
#[derive(Debug)]
pub(super) enum Entrance {
    /// It has opened it.
    Opened(Door, SocketFile),
    /// An older server has handed it over, with its sockets.
    Inherited(Inheritance),
}

impl Entrance {
    pub(super) fn open(path: &Path) -> Result<Entrance, ListenError> {
        let (door, file) = Door::open(path)?;
        Ok(Entrance::Opened(door, file))
    }

    /// The sockets on this address, if an older server has handed them over.
    pub(super) fn claim(&mut self, address: &Address) -> Option<Listening> {
        match self {
            Entrance::Opened(..) => None,
            Entrance::Inherited(inheritance) => inheritance.claim(address),
        }
    }
}

/// Distributes all sockets over the workers. A copy of each remains if there is an entrance through which they
/// can be handed over. Connections to those that are not plain get their layers from `tls`.
pub(super) fn distribute(
    listening: &mut [Listening],
    workers: usize,
    entrance: Option<&Entrance>,
    tls: Option<&Arc<Tls>>,
) -> Result<Vec<Vec<Listener>>, ListenError> {
    let mut shares: Vec<Vec<Listener>> = (0..workers).map(|_| Vec::new()).collect();
    for Listening { address, transport, sockets, .. } in listening {
        let acceptor = match transport {
            Transport::Plain => None,
            Transport::Tls => tls.map(|tls| tls.clone() as Arc<dyn Acceptor>),
        };
        let mut share = || {
            let kept = sockets.iter().filter(|_| entrance.is_some()).map(OwnedFd::try_clone);
            let kept = kept.collect::<io::Result<Vec<OwnedFd>>>()?;
            listen::share(std::mem::replace(sockets, kept), workers)
        };
        let shared = share().map_err(|error| ListenError::new(address, error))?;
        for (share, sockets) in shares.iter_mut().zip(shared) {
            let acceptor = acceptor.clone();
            share.extend(
                sockets.into_iter().map(|socket| Listener { socket, acceptor: acceptor.clone() }),
            );
        }
    }
    Ok(shares)
}

/// Keeps what the server listens on until it ends or another one takes over, now that connections are accepted.
/// An older server stops.
pub(super) fn keep(
    control: &Control,
    mut listening: Vec<Listening>,
    entrance: Option<Entrance>,
    sandbox: sandbox::Policy,
) {
    let (door, file) = match entrance {
        Some(Entrance::Opened(door, file)) => (Some(door), Some(file)),
        Some(Entrance::Inherited(inheritance)) => {
            let (door, file) = inheritance.begin(&mut listening);
            (Some(door), file)
        }
        None => (None, None),
    };
    *control.estate() = Estate { listening, door: file };
    let Some(door) = door else { return };
    let control = control.clone();
    // It ends with the process.
    let waiting = thread::Builder::new().name("takeover".into());
    if let Err(error) = waiting.spawn(move || {
        if sandbox == sandbox::Policy::On {
            // What this kernel cannot enforce, the main thread says.
            sandbox::enter(&Needs::default().calling(takeover::CALLS));
        }
        wait_for_successor(&door, &control);
    }) {
        warn!("no other server can take over from this one: cannot start a thread: {error}");
    }
}

/// Waits at the door until another server has taken over, then lets this one stop.
fn wait_for_successor(door: &Door, control: &Control) {
    loop {
        let outcome = door.successor().and_then(|successor| {
            successor.give(&control.estate().listening, door)?;
            successor.ready()
        });
        match outcome {
            Ok(addresses) => {
                control.estate().leave(&addresses);
                info!("another server has taken over; this one stops");
                return control.make_way();
            }
            Err(error) => {
                warn!("no other server has taken over: {error}");
                thread::sleep(PAUSE);
            }
        }
    }
}
