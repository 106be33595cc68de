//! Section 21: the opening handshake as a client reads it (RFC 6455 section 4.1). Group 1 has to be
//! accepted; in group 2 the client has to fail the connection.
//!
//! Whether a client has accepted a response shows when it answers a message. One that fails the
//! connection sends nothing more, or a close frame.

use super::super::case::{NORMAL, PROTOCOL_ERROR, TEXT, Weight};
use super::*;

const HELLO: &str = "Hello, client";
const ANSWER: &str = "RFC 6455 4.1";
const INTERIM: &str = "RFC 9110 15.2";
const LINE: &str = "HTTP/1.1 101 Switching Protocols";
const UPGRADE: &str = "Upgrade: websocket";
const CONNECTION: &str = "Connection: Upgrade";
const ACCEPT: &str = "Sec-WebSocket-Accept: {accept}";
/// Codes of a client that sends a close frame nevertheless.
const CODES: [u16; 5] = [PROTOCOL_ERROR, NORMAL, 1001, 1003, 1010];

fn head(lines: &[&str]) -> Vec<u8> {
    let lines: Vec<String> = lines.iter().map(|line| format!("{line}\r\n")).collect();
    format!("{}\r\n", lines.concat()).into_bytes()
}

/// The fields of the plain response, and these.
fn and(lines: &[&str]) -> Vec<u8> {
    head(&[&[LINE, UPGRADE, CONNECTION, ACCEPT][..], lines].concat())
}

fn hello() -> Vec<Step> {
    vec![at_once([Frame::new(TEXT, HELLO)])]
}

fn accepted(case: u16, clause: &'static str, response: Vec<u8>, chop: Chop) -> Case {
    let case = answered(Number::triple(21, 1, case), clause, hello(), vec![text(HELLO)]);
    case.opened(Opening::Response(response, chop))
}

fn refused(case: u16, clause: &'static str, response: Vec<u8>) -> Case {
    let close = Ending { codes: CODES.into(), ..Ending::failed_with(PROTOCOL_ERROR) };
    let case = failing(Number::triple(21, 2, case), clause, hello(), PROTOCOL_ERROR);
    Case { close: close.weighing(Weight::EndCounts), ..case }
        .opened(Opening::Response(response, Chop::Whole))
}

pub(super) fn cases() -> Vec<Case> {
    let accept: [(&'static str, &str, Vec<u8>, Chop); 9] = [
        (ANSWER, "Answers in the plain form.", and(&[]), Chop::Whole),
        (ANSWER, "Answers byte by byte.", and(&[]), Chop::Bytes(1)),
        (
            "RFC 9112 5",
            "Answers with names of fields in lower case, without spaces.",
            head(&[
                LINE,
                "upgrade:websocket",
                "connection:upgrade",
                "sec-websocket-accept:{accept}",
            ]),
            Chop::Whole,
        ),
        (
            ANSWER,
            "Answers with the fields in another order, and `Upgrade: WebSocket`.",
            head(&[LINE, ACCEPT, CONNECTION, "Upgrade: WebSocket"]),
            Chop::Whole,
        ),
        (
            ANSWER,
            "Answers with `Connection: keep-alive, Upgrade`.",
            head(&[LINE, UPGRADE, "Connection: keep-alive, Upgrade", ACCEPT]),
            Chop::Whole,
        ),
        (
            ANSWER,
            "Answers with fields that nobody knows.",
            and(&["Server: test/1.0", "X-Unknown: a", "Date: Thu, 01 Jan 1970 00:00:00 GMT"]),
            Chop::Whole,
        ),
        (
            "RFC 9112 4",
            "Answers without a reason phrase.",
            head(&["HTTP/1.1 101 ", UPGRADE, CONNECTION, ACCEPT]),
            Chop::Whole,
        ),
        (
            "RFC 9112 5",
            "Answers with spaces and tabs around each value.",
            head(&[
                LINE,
                "Upgrade: \t websocket \t",
                "Connection: \t Upgrade \t",
                "Sec-WebSocket-Accept: \t {accept} \t",
            ]),
            Chop::Whole,
        ),
        (
            INTERIM,
            "Answers with an interim response of status 103 before the final one.",
            [&b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"[..], &and(&[])].concat(),
            Chop::Whole,
        ),
    ];
    let mut cases: Vec<Case> = (1..)
        .zip(accept)
        .map(|(case, (clause, description, response, chop))| {
            accepted(case, clause, response, chop)
                .says(description, "The client opens the connection, and a message comes back.")
        })
        .collect();
    let joined = accepted(cases.len() as u16 + 1, ANSWER, and(&[]), Chop::Whole);
    cases.push(joined.sent(Sends::Joined).says(
        "Sends a message in one segment with the response.",
        "The client opens the connection, and the message comes back.",
    ));
    let line = |line: &str| head(&[line, UPGRADE, CONNECTION, ACCEPT]);
    // Without content, for whose end a client may wait (RFC 9112 section 6.3).
    let empty = |line: &str| head(&[line, UPGRADE, CONNECTION, ACCEPT, "Content-Length: 0"]);
    let without = |name: &str| {
        let lines = [LINE, UPGRADE, CONNECTION, ACCEPT];
        head(&lines.into_iter().filter(|line| !line.starts_with(name)).collect::<Vec<_>>())
    };
    let extension = |value: &str| and(&[&format!("Sec-WebSocket-Extensions: {value}")]);
    let refuse: [(&'static str, &str, Vec<u8>); 26] = [
        (ANSWER, "Answers with status 200 instead of 101.", empty("HTTP/1.1 200 OK")),
        (ANSWER, "Answers with status 400 instead of 101.", empty("HTTP/1.1 400 Bad Request")),
        (ANSWER, "Answers with status 1010.", line("HTTP/1.1 1010 Switching Protocols")),
        ("RFC 9110 7.8", "Answers in HTTP/1.0.", line("HTTP/1.0 101 Switching Protocols")),
        ("RFC 9112 4", "Answers in HTTP/2.0.", line("HTTP/2.0 101 Switching Protocols")),
        ("RFC 9112 4", "Answers with no HTTP.", b"Hello, there is no HTTP here\r\n\r\n".to_vec()),
        (ANSWER, "Answers without Upgrade.", without("Upgrade")),
        (ANSWER, "Answers without Connection.", without("Connection")),
        (ANSWER, "Answers without Sec-WebSocket-Accept.", without("Sec-WebSocket-Accept")),
        (ANSWER, "Answers with `Upgrade: h2c`.", head(&[LINE, "Upgrade: h2c", CONNECTION, ACCEPT])),
        (
            ANSWER,
            "Answers with `Connection: keep-alive`.",
            head(&[LINE, UPGRADE, "Connection: keep-alive", ACCEPT]),
        ),
        (
            ANSWER,
            "Answers the key of another request.",
            head(&[
                LINE,
                UPGRADE,
                CONNECTION,
                "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=",
            ]),
        ),
        (
            ANSWER,
            "Answers with an empty Sec-WebSocket-Accept.",
            head(&[LINE, UPGRADE, CONNECTION, "Sec-WebSocket-Accept:"]),
        ),
        (
            ANSWER,
            "Answers with the right Sec-WebSocket-Accept and more behind it.",
            head(&[LINE, UPGRADE, CONNECTION, "Sec-WebSocket-Accept: {accept}a"]),
        ),
        (
            "RFC 6455 11.3.3",
            "Answers with two different Sec-WebSocket-Accept.",
            and(&["Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo="]),
        ),
        (
            ANSWER,
            "Chooses a subprotocol that was not offered.",
            and(&["Sec-WebSocket-Protocol: x-not-offered"]),
        ),
        (ANSWER, "Agrees to an extension that was not offered.", extension("x-not-offered")),
        ("RFC 6455 9.1", "Agrees to an extension that breaks the grammar.", extension("a; =b")),
        (
            "RFC 7692 7.1",
            "Agrees to permessage-deflate with a parameter that does not exist.",
            extension("permessage-deflate; x-unknown"),
        ),
        (
            "RFC 7692 7.1",
            "Agrees to permessage-deflate with a parameter twice.",
            extension("permessage-deflate; server_no_context_takeover; server_no_context_takeover"),
        ),
        (
            "RFC 7692 7.1.1.1",
            "Agrees to permessage-deflate with a value where there is none.",
            extension("permessage-deflate; server_no_context_takeover=1"),
        ),
        (
            "RFC 7692 7.1.2.1",
            "Agrees to permessage-deflate with a window of 7 bits.",
            extension("permessage-deflate; server_max_window_bits=7"),
        ),
        (
            "RFC 7692 7.1.2.1",
            "Agrees to permessage-deflate with a window of 16 bits.",
            extension("permessage-deflate; server_max_window_bits=16"),
        ),
        (
            "RFC 7692 7.1.2.1",
            "Agrees to permessage-deflate with a window of 010 bits.",
            extension("permessage-deflate; server_max_window_bits=010"),
        ),
        (
            "RFC 7692 7.1.2.2",
            "Agrees to permessage-deflate with a client's window without a value.",
            extension("permessage-deflate; client_max_window_bits"),
        ),
        (
            "RFC 7692 5.1",
            "Agrees to permessage-deflate twice.",
            extension("permessage-deflate, permessage-deflate"),
        ),
    ];
    // RFC 6455 section 4.1 looks only at the status in the first line.
    let is_version = |description: &str| description.starts_with("Answers in HTTP/");
    cases.extend((1..).zip(refuse).map(|(case, (clause, description, response))| {
        let case = refused(case, clause, response);
        match is_version(description) {
            false => {
                case.says(description, "The client fails the connection and answers no message.")
            }
            true => {
                let codes: Vec<u16> = [NORMAL].into_iter().chain(CODES).collect();
                let case = Case { close: Ending::either(codes), ..case };
                case.or(Behavior::NonStrict, vec![text(HELLO)])
                    .says(description, "The client fails the connection. To open it is not strict.")
            }
        }
    }));
    cases
}
