//! `ringbench floor`, and `--calibrate`, which measures the floor of this machine with it.

use std::io::{self, Read as _, Write};
use std::net::{Ipv4Addr, TcpListener};

use super::{ENDED_BY_SIGNAL, Outcome};
use crate::cli::{Floor, WaitChoice};
use crate::results;
use crate::rtt::{self, Case, Wait};
use crate::server::{Launch, Ready, Server, program};
use crate::stop::Stop;
use crate::target::Target;

/// Messages of each kind of floor.
const FLOOR_MESSAGES: u64 = 5000;

/// Measures a plain TCP echo between two processes: once with both ends sleeping while they wait, and
/// once with both polling without pause.
pub(super) fn calibrate(cpus: &[usize], seed: u64, stop: &Stop) -> Result<results::Floor, String> {
    let measure = |choice: WaitChoice| -> Result<u64, String> {
        let failed = |problem: &dyn std::fmt::Display| format!("--calibrate: {problem}");
        let name = match choice {
            WaitChoice::Block => "block",
            WaitChoice::Spin => "spin",
        };
        let program = program("ringbench").display().to_string();
        let words = [&program, "floor", "--wait", name].map(ToOwned::to_owned);
        let server = Server::start(Launch { words: &words, cpus, stop }, Ready::Prints)
            .map_err(|error| failed(&error))?;
        let target: Target = format!("tcp://{}", server.address()).parse()?;
        let case = Case {
            name: "floor".to_owned(),
            payload_bytes: 16,
            form: crate::session::Form::Binary,
            messages: FLOOR_MESSAGES,
        };
        let outcome = rtt::run(
            &rtt::Plan { wait: choice.wait(), seed, ..rtt::Plan::new(&target, &case) },
            stop,
        )
        .map_err(|problem| failed(&problem))?;
        match outcome.problem {
            Some(problem) => Err(failed(&problem)),
            None if stop.is_requested() => Err(failed(&ENDED_BY_SIGNAL)),
            None => Ok(outcome.latencies.percentile_ns(50.0)),
        }
    };
    Ok(results::Floor {
        block_ns: measure(WaitChoice::Block)?,
        spin_ns: measure(WaitChoice::Spin)?,
    })
}

/// `ringbench floor`: echoes bytes on one connection until it ends.
///
/// # Errors
///
/// When it cannot listen, or the connection breaks.
pub fn floor(options: &Floor, output: &mut impl Write) -> Outcome {
    let mut serve = || -> io::Result<()> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        writeln!(output, "floor listening on tcp://{}", listener.local_addr()?)?;
        output.flush()?;
        let (mut stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(options.wait.wait() == Wait::Spin)?;
        let mut bytes = [0; 4096];
        loop {
            match stream.read(&mut bytes) {
                Ok(0) => return Ok(()),
                Ok(count) => stream.write_all(&bytes[..count])?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::hint::spin_loop(),
                Err(error) => return Err(error),
            }
        }
    };
    serve().map_err(|error| format!("floor: {error}").into())
}
