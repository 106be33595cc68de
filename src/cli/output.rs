//! What the server prints: the first line, and the summary at the end.

use std::fmt::Write as _;

use serde_json::Value;

use super::Cli;
use super::choices::{self, COMPRESSIONS, OFFLOADS, WAITS};
use crate::cpus;
use crate::listen::{Address, Endpoint, Transport};
use crate::offload;
use crate::protocol::Protocol;
use crate::server::{Server, Statistics};

impl Cli {
    /// The line that says that the server accepts connections, where, and with which options. `admin` is where the
    /// admin listener is, if there is one.
    pub fn greeting(&self, server: &Server, admin: Option<&Address>) -> String {
        let scheme = |transport| match (self.protocol, transport) {
            (Protocol::WebSocket, Transport::Plain) => "ws",
            (Protocol::WebSocket, Transport::Tls) => "wss",
            (Protocol::Tcp, Transport::Plain | Transport::Tls) => "tcp",
        };
        let addresses =
            server.endpoints().iter().map(|Endpoint { address, transport }| match address {
                Address::Tcp(address) => format!("{}://{address}", scheme(*transport)),
                Address::Unix(_) => address.to_string(),
            });
        let workers = server.cpus().len();
        // Several workers may share a CPU.
        let mut used = server.cpus().to_vec();
        used.sort_unstable();
        used.dedup();
        let plural = |count: usize| if count == 1 { "" } else { "s" };
        let mut text = format!(
            "ringecho listening on {} (engine {}, {workers} worker{} on CPU{} {}, wait {}",
            addresses.collect::<Vec<String>>().join(" "),
            server.engine().name(),
            plural(workers),
            plural(used.len()),
            cpus::list(&used),
            choices::name(WAITS, self.named_wait()),
        );
        if self.protocol == Protocol::WebSocket {
            let _ = write!(text, ", compression {}", choices::name(COMPRESSIONS, self.compression));
        }
        match server.offload() {
            offload::Policy::Off => {}
            policy @ (offload::Policy::On | offload::Policy::Auto) => {
                let _ = write!(text, ", offload {}", choices::name(OFFLOADS, policy));
            }
        }
        if let Some(address) = admin {
            let _ = write!(text, ", admin {address}");
        }
        text + ")"
    }
}

/// The counters at the end: one per line, the total first, then each worker if there are several.
pub fn summary(statistics: &Statistics) -> String {
    let mut text = String::new();
    let columns: Vec<Value> = std::iter::once(&statistics.total)
        .chain(statistics.workers.iter().filter(|_| statistics.workers.len() > 1))
        .map(|snapshot| serde_json::to_value(snapshot).expect("numbers"))
        .collect();
    let mut line = |name: &str, cells: Vec<String>| {
        let _ = write!(text, "{name:<23}");
        for cell in cells {
            let _ = write!(text, " {cell:>14}");
        }
        text.push('\n');
    };
    if columns.len() > 1 {
        let workers = (0..statistics.workers.len()).map(|number| format!("worker-{number}"));
        line("", std::iter::once("total".into()).chain(workers).collect());
    }
    for name in columns[0].as_object().expect("a struct").keys() {
        let cells = columns.iter().map(|column| match &column[name] {
            Value::Number(number) if number.is_f64() => {
                format!("{:.3}", number.as_f64().expect("a float"))
            }
            number => number.to_string(),
        });
        line(name, cells.collect());
    }
    text
}
