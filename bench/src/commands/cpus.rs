//! Which CPUs client and server run on.

use ringecho::cpus::{self, CpuList};

use super::Failure;
use crate::cli::Common;

/// The CPUs of client and server.
pub(super) struct Cpus {
    /// The client's first CPU, then the other allowed CPUs in the order in which threads take them,
    /// without those of `--server-cpus`.
    pub(super) clients: Vec<usize>,
    /// The CPUs of servers that are started here, at least one.
    pub(super) servers: Vec<usize>,
}

/// Finds CPUs for client and server, before anything is pinned.
pub(super) fn cpus(common: &Common) -> Result<Cpus, Failure> {
    let unknown = |reason: &dyn std::fmt::Display| {
        Failure::from(format!("cannot list the CPUs that this process may use: {reason}"))
    };
    let allowed = cpus::allowed().map_err(|error| unknown(&error))?;
    let (Some(&first), Some(&last)) = (allowed.first(), allowed.last()) else {
        return Err(unknown(&"there is none"));
    };
    let client = common.client_cpu.unwrap_or(last);
    let named_servers =
        common.server_cpus.as_ref().map(|CpuList(cpus)| cpus.as_slice()).unwrap_or_default();
    let named =
        named_servers.iter().map(|&cpu| ("--server-cpus", cpu)).chain([("--client-cpu", client)]);
    for (option, cpu) in named {
        if !allowed.contains(&cpu) {
            return Err(Failure::Usage(format!(
                "{option}: this process may not use CPU {cpu}; it may use {}",
                cpus::list(&allowed)
            )));
        }
    }
    let at = allowed.iter().position(|&cpu| cpu == client).unwrap_or_default();
    let mut clients: Vec<usize> = allowed[at..].iter().chain(&allowed[..at]).copied().collect();
    clients.retain(|&cpu| cpu == client || !named_servers.contains(&cpu));
    let servers = if named_servers.is_empty() { vec![first] } else { named_servers.to_vec() };
    Ok(Cpus { clients, servers })
}

impl Cpus {
    /// Pins this thread, which is the client.
    pub(super) fn pin(&self) {
        // It was found to be allowed; should that have changed, the figures show it.
        let _ = cpus::pin(self.clients[0]);
    }

    /// Warns where a server that is started here shares the client's CPU.
    pub(super) fn warn(&self, warnings: &mut Vec<String>) {
        let client = self.clients[0];
        if self.servers.contains(&client) {
            warnings.push(format!(
                "Client and server share CPU {client}: each waits until the other sleeps."
            ));
        }
    }
}
