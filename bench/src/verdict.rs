//! Judges echoes and how a server closes connections, the same for every measurement.
//!
//! A wrong echo does not count as a message and has no latency, and the command fails. A connection
//! that is closed improperly after right echoes only costs a warning.

use std::fmt;
use std::time::Duration;

use ringecho::protocol::violation::Violation;

use crate::problem::Problem;
use crate::session::{Event, Form};

/// A message as it was sent, against which its echo is judged.
#[derive(Debug, Clone, Copy)]
pub struct Sent<'a> {
    /// Which message it is, counted from 0.
    pub number: u64,
    /// Text or binary.
    pub form: Form,
    /// What was sent.
    pub payload: &'a [u8],
}

/// Judges an echo.
///
/// # Errors
///
/// [`Problem::WrongEcho`] and [`Problem::WrongForm`].
#[inline]
pub fn judge_echo(sent: &Sent<'_>, form: Form, echo: &[u8]) -> Result<(), Problem> {
    if echo == sent.payload {
        return if form == sent.form { Ok(()) } else { Err(Problem::WrongForm(sent.number)) };
    }
    let same = echo.iter().zip(sent.payload).take_while(|(echoed, sent)| echoed == sent).count();
    Err(Problem::WrongEcho(sent.number, same))
}

/// How a TCP connection came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The server closed it.
    Closed,
    /// It was reset, or lost otherwise.
    Reset,
    /// It did not end in its time, and the client closed it.
    TimedOut,
    /// The server broke the protocol in what it sent last.
    Broken(Violation),
}

/// The server's answer to the client's close frame.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Answer {
    /// It has not come.
    #[default]
    Awaited,
    /// It has come.
    Received,
    /// There is none: the connection carries plain bytes, and no frames.
    NotExpected,
}

/// What the server did after the client began to close the connection, all echoes having come
/// before.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Closing {
    /// The server's close frame.
    pub answer: Answer,
    /// Messages that came after the client began to close.
    pub late_messages: u64,
}

impl Closing {
    /// Notes what the server sent.
    pub fn note(&mut self, event: &Event) {
        match event {
            Event::Echo(_) => self.late_messages += 1,
            Event::Close(..) => self.answer = Answer::Received,
            Event::Ping(_) => {}
        }
    }

    /// Judges how the server closed the connection, once that has come to its `end`.
    pub fn judge(self, end: End) -> Farewell {
        match (end, self.answer) {
            (End::Broken(violation), _) => Farewell::Broken(violation),
            (End::Closed | End::Reset | End::TimedOut, _) if self.late_messages > 0 => {
                Farewell::LateMessages
            }
            (End::Closed, Answer::Received | Answer::NotExpected) => Farewell::Clean,
            (End::Closed, Answer::Awaited) => Farewell::ClosedUnanswered,
            (End::Reset, Answer::Received) => Farewell::ResetAfterAnswer,
            (End::Reset, Answer::Awaited) => Farewell::ResetUnanswered,
            (End::Reset, Answer::NotExpected) => Farewell::Reset,
            (End::TimedOut, Answer::Received) => Farewell::LeftOpen,
            (End::TimedOut, Answer::Awaited) => Farewell::Silent,
            (End::TimedOut, Answer::NotExpected) => Farewell::StillOpen,
        }
    }
}

/// How a server closed a connection on which all echoes were right. [`fmt::Display`] says it as the
/// end of a sentence that begins with the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Farewell {
    /// As it should: with a close frame, where there are frames, and the end of the connection
    /// (RFC 6455 section 7.1.1).
    Clean,
    /// It closed the connection before the client did.
    Early,
    /// It answered, and left the connection open for the client to end.
    LeftOpen,
    /// It ended the connection without a close frame.
    ClosedUnanswered,
    /// It reset the connection after its close frame.
    ResetAfterAnswer,
    /// It reset the connection without a close frame.
    ResetUnanswered,
    /// It did nothing.
    Silent,
    /// It reset a connection of plain bytes.
    Reset,
    /// It left a connection of plain bytes open.
    StillOpen,
    /// It sent messages after the client began to close.
    LateMessages,
    /// It broke the protocol.
    Broken(Violation),
}

impl Farewell {
    /// Whether there is nothing to warn of.
    pub fn is_clean(self) -> bool {
        self == Farewell::Clean
    }
}

impl fmt::Display for Farewell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Farewell::Clean => f.write_str("closed the connection"),
            Farewell::Early => f.write_str("closed the connection before the client did"),
            Farewell::LeftOpen => {
                f.write_str("answered the close frame and left the connection open")
            }
            Farewell::ClosedUnanswered => f.write_str("closed TCP without a close frame"),
            Farewell::ResetAfterAnswer => f.write_str("reset the connection after its close frame"),
            Farewell::ResetUnanswered => {
                f.write_str("reset the connection instead of answering the close frame")
            }
            Farewell::Silent => f.write_str("did not answer the close frame"),
            Farewell::Reset => f.write_str("reset the connection"),
            Farewell::StillOpen => f.write_str("did not close the connection"),
            Farewell::LateMessages => f.write_str("sent a message after the client began to close"),
            Farewell::Broken(violation) => {
                write!(f, "broke the protocol while closing: {}", violation.reason())
            }
        }
    }
}

/// How a server closed many connections.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Farewells {
    connections: u64,
    /// The farewells that are not clean, each with its number of connections.
    odd: Vec<(Farewell, u64)>,
}

impl Farewells {
    /// The farewells that are not clean, each with its number of connections.
    pub fn odd(&self) -> &[(Farewell, u64)] {
        &self.odd
    }

    /// Adds the farewell of one connection.
    pub fn note(&mut self, farewell: Farewell) {
        self.connections += 1;
        if !farewell.is_clean() {
            self.add_odd(farewell, 1);
        }
    }

    /// Adds all farewells of `others`.
    pub fn add(&mut self, others: &Farewells) {
        self.connections += others.connections;
        for &(farewell, count) in &others.odd {
            self.add_odd(farewell, count);
        }
    }

    fn add_odd(&mut self, farewell: Farewell, count: u64) {
        match self.odd.iter_mut().find(|(known, _)| *known == farewell) {
            Some((_, known)) => *known += count,
            None => self.odd.push((farewell, count)),
        }
    }

    /// A warning, if any farewell is not clean. The server had `timeout` to close each connection.
    pub fn warning(&self, timeout: Duration) -> Option<String> {
        if self.odd.is_empty() {
            return None;
        }
        let connections = match self.connections {
            1 => "1 connection".to_owned(),
            connections => format!("{connections} connections"),
        };
        let kinds = self.odd.iter().map(|(farewell, count)| {
            let within = match farewell {
                Farewell::LeftOpen | Farewell::Silent | Farewell::StillOpen => {
                    format!(" within {} s", timeout.as_secs_f64())
                }
                Farewell::Clean
                | Farewell::Early
                | Farewell::ClosedUnanswered
                | Farewell::ResetAfterAnswer
                | Farewell::ResetUnanswered
                | Farewell::Reset
                | Farewell::LateMessages
                | Farewell::Broken(_) => String::new(),
            };
            format!("on {count} of {connections}, the server {farewell}{within}")
        });
        let kinds: Vec<String> = kinds.collect();
        Some(format!(
            "Connections were not closed properly: {}. All echoes had come before, and count.",
            kinds.join("; ")
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_echo_is_right_in_every_byte_and_in_its_form() {
        let sent = Sent { number: 3, form: Form::Text, payload: b"one two" };
        judge_echo(&sent, Form::Text, b"one two").expect("the same");
        for (echo, byte) in [(&b"one too"[..], 5), (b"one", 3), (b"one two!", 7), (b"", 0)] {
            let wrong = judge_echo(&sent, Form::Text, echo).expect_err("it differs");
            assert!(matches!(wrong, Problem::WrongEcho(3, at) if at == byte), "{wrong:?}");
        }
        let wrong = judge_echo(&sent, Form::Binary, b"one two").expect_err("another form");
        assert!(matches!(wrong, Problem::WrongForm(3)), "{wrong:?}");
    }

    #[test]
    fn only_a_close_frame_and_the_end_after_it_are_clean() {
        let mut closing = Closing::default();
        assert_eq!(closing.judge(End::Closed), Farewell::ClosedUnanswered);
        assert_eq!(closing.judge(End::Reset), Farewell::ResetUnanswered);
        assert_eq!(closing.judge(End::TimedOut), Farewell::Silent);
        closing.note(&Event::Close(Some(1000), Vec::new()));
        assert_eq!(closing.judge(End::Closed), Farewell::Clean);
        assert_eq!(closing.judge(End::Reset), Farewell::ResetAfterAnswer);
        assert_eq!(closing.judge(End::TimedOut), Farewell::LeftOpen);
        closing.note(&Event::Echo(Form::Text));
        assert_eq!(closing.judge(End::Closed), Farewell::LateMessages);
    }

    #[test]
    fn plain_bytes_end_without_a_close_frame() {
        let closing = Closing { answer: Answer::NotExpected, ..Closing::default() };
        assert_eq!(closing.judge(End::Closed), Farewell::Clean);
        assert_eq!(closing.judge(End::Reset), Farewell::Reset);
        assert_eq!(closing.judge(End::TimedOut), Farewell::StillOpen);
    }

    #[test]
    fn odd_farewells_are_counted_together_and_clean_ones_say_nothing() {
        let mut farewells = Farewells::default();
        farewells.note(Farewell::Clean);
        farewells.note(Farewell::Silent);
        let mut others = farewells.clone();
        others.note(Farewell::ResetUnanswered);
        farewells.add(&others);
        let warning = farewells.warning(Duration::from_secs(2)).expect("a warning");
        let silent =
            "on 2 of 5 connections, the server did not answer the close frame within 2 s; ";
        assert!(warning.contains(silent) && warning.contains("on 1 of 5"), "{warning}");
        let mut clean = Farewells::default();
        clean.note(Farewell::Clean);
        assert_eq!(clean.warning(Duration::from_secs(2)), None);
    }
}
