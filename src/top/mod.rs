//! `ringecho top`: what a running server does, as a live view in a terminal.
//!
//! [`fetch`] asks the admin listener again and again on a thread of its own, so that a server which does not answer
//! never keeps a key from being obeyed; [`mod@sample`] makes figures of the answers, and [`view`] draws them. The
//! terminal belongs to the caller. Nothing here knows the server's own modules but the names of its counters.

mod fetch;
mod sample;
mod view;

use std::io;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use ratatui::Terminal;
use ratatui::backend::Backend;

pub use self::fetch::{ANSWER_BYTES_MAX, ANSWER_TIME_MAX, Target, TargetError};
use self::sample::Sample;
pub use self::view::View;

/// How long a key may wait.
const KEY_WAIT: Duration = Duration::from_millis(50);

/// Asks the server at `target` once.
///
/// # Errors
///
/// When nothing answers there, or something else than a server's admin listener.
pub fn first(target: &Target) -> io::Result<View> {
    let mut view = View::new(target);
    view.add(sample(target)?);
    Ok(view)
}

fn sample(target: &Target) -> io::Result<Sample> {
    let no_server = || io::Error::other("it is not the admin listener of a ringecho server");
    Sample::parse(&fetch::fetch(target)?).ok_or_else(no_server)
}

/// Shows `view` and asks again at each `interval`, until `is_over` says so, which waits for a key for at most so long.
///
/// # Errors
///
/// When the terminal cannot be written to, or no key can be read.
pub fn show<B: Backend<Error = io::Error>>(
    terminal: &mut Terminal<B>,
    mut view: View,
    interval: Duration,
    mut is_over: impl FnMut(Duration) -> io::Result<bool>,
) -> io::Result<()> {
    let (sender, samples) = mpsc::sync_channel(1);
    let target = view.target().clone();
    // It ends when the receiver is dropped, at the latest with the process.
    thread::Builder::new().name("fetch".into()).spawn(move || {
        loop {
            thread::sleep(interval);
            if sender.send(sample(&target)).is_err() {
                return;
            }
        }
    })?;
    loop {
        terminal.draw(|frame| view.draw(frame))?;
        // A change of the terminal's size is an event too, after which it is drawn again.
        if is_over(KEY_WAIT)? {
            return Ok(());
        }
        match samples.recv_timeout(Duration::ZERO) {
            Ok(Ok(sample)) => view.add(sample),
            Ok(Err(error)) => view.miss(&error),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                return Err(io::Error::other("the thread that asks the server has ended"));
            }
        }
    }
}
