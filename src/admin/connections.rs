//! `/debug/connections`: what is open, as a table or as JSON.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use super::http::{PLAIN, Response, preferred};
use crate::engine::pump::{Row, Shown};
use crate::server::Control;

/// How long to wait for all workers. One that ends, or that the kernel keeps off its CPU, does not answer.
pub const WORKERS_TIME_MAX: Duration = Duration::from_secs(1);

const JSON: &str = "application/json";

pub(super) fn answer(control: &Control, accept: &str) -> Response {
    let workers = control.connections(WORKERS_TIME_MAX);
    match preferred(accept, &[("text/plain", ""), (JSON, "")]) {
        JSON => Response::content(JSON, as_json(&workers)),
        _ => Response::content(PLAIN, as_text(&workers)),
    }
}

/// An object for each worker; without an answer `open` and `connections` are null.
fn as_json(workers: &[Option<Shown>]) -> String {
    let workers = workers.iter().enumerate().map(|(number, shown)| {
        let (open, connections) = match shown {
            Some(Shown { open, connections }) => (json!(open), json!(connections)),
            None => (Value::Null, Value::Null),
        };
        json!({ "worker": number, "open": open, "connections": connections })
    });
    json!({ "workers": workers.collect::<Vec<Value>>() }).to_string() + "\n"
}

fn as_text(workers: &[Option<Shown>]) -> String {
    let mut text = String::new();
    let _ = writeln!(
        text,
        "{:>6} {:>6} {:>12} {:>16} {:>16} {:<9} {:<18} state",
        "worker", "slot", "age s", "bytes in", "bytes out", "transport", "extension"
    );
    for (number, shown) in workers.iter().enumerate() {
        let Some(Shown { connections, .. }) = shown else { continue };
        for Row { slot, age_seconds, bytes_in, bytes_out, transport, extension, state } in
            connections
        {
            let extension = if extension.is_empty() { "-" } else { extension };
            let _ = writeln!(
                text,
                "{number:>6} {slot:>6} {age_seconds:>12.3} {bytes_in:>16} {bytes_out:>16} \
                 {transport:<9} {extension:<18} {state}"
            );
        }
    }
    for (number, shown) in workers.iter().enumerate() {
        let _ = match shown {
            Some(Shown { open, connections }) => {
                writeln!(text, "worker {number}: {} of {open} connections", connections.len())
            }
            None => writeln!(text, "worker {number}: no answer within {WORKERS_TIME_MAX:?}"),
        };
    }
    text
}
