//! Judges each message of the server: the right echo of a message, a wrong echo, or no echo.
//!
//! The stamp of an echo says which message it belongs to. An echo that does not come is therefore one
//! lost message, and does not make all later echoes wrong. Form, length and stamp of every echo are
//! checked; [`Plan::verify_every`] says how many are compared byte by byte.

use super::Plan;
use super::ledger::{Answered, Ledger, Message};
use super::payloads::{Awaited, Payloads};
use crate::problem::Problem;
use crate::session::{Form, Session};
use crate::verdict::Sent;

/// What a message of the server is.
#[derive(Debug)]
pub(super) enum Verdict {
    /// The right echo of this message, with its size in bytes.
    Right(Message, usize),
    /// A wrong echo of this message, and why it is wrong.
    Wrong(Message, Complaint),
    /// The echo of a message that was answered before.
    Repeated(u64),
    /// No echo of any message, while no echo is awaited.
    Foreign,
}

/// Why an echo is wrong.
#[derive(Debug)]
pub(super) enum Complaint {
    Differs(Problem),
    OutOfOrder(u64),
}

impl std::fmt::Display for Complaint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Complaint::Differs(problem) => problem.fmt(f),
            Complaint::OutOfOrder(number) => {
                write!(f, "message {number}: its echo came after that of a later message")
            }
        }
    }
}

/// Judges the last message of `session`, which came as `form`, and notes it in the connection's
/// ledger.
#[inline]
pub(super) fn judge(
    plan: &Plan,
    payloads: &mut Payloads,
    (connection, ledger): (usize, &mut Ledger),
    (session, form): (&Session, Form),
) -> Verdict {
    let echo = session.echo();
    let (next, is_awaited) = (ledger.next(), ledger.in_flight() > 0);
    let kind = payloads.kind(connection, next);
    // Plain bytes have no form.
    let form = if plan.is_plain() { kind.form } else { form };
    let is_next = is_awaited && Payloads::is_stamped(&kind, connection, next, echo);
    let number = if is_next {
        next
    } else {
        let awaited = Awaited { connection, next, end: ledger.sent() };
        match payloads.number_in(&awaited, form, echo) {
            Some(number) => number,
            None if is_awaited => next,
            None => return Verdict::Foreign,
        }
    };
    match ledger.answer(number) {
        Answered::Nothing => Verdict::Repeated(number),
        Answered::OutOfOrder(message) => Verdict::Wrong(message, Complaint::OutOfOrder(number)),
        Answered::InOrder(message) => {
            let kind = payloads.kind(connection, number);
            if is_next && form == kind.form && !number.is_multiple_of(plan.verify_every) {
                return Verdict::Right(message, kind.size);
            }
            let payload = payloads.payload(&kind, connection, number);
            match session.judge(&Sent { number, form: kind.form, payload }, form) {
                Ok(()) => Verdict::Right(message, kind.size),
                Err(problem) => Verdict::Wrong(message, Complaint::Differs(problem)),
            }
        }
    }
}
