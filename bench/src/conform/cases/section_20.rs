//! Section 20: the opening handshake as a server reads it. Groups 1 and 2 have to be accepted, the others
//! refused unless the RFC leaves a choice.
//!
//! A refusal is a response with status 400 or higher. A server that also serves pages may answer what
//! asks for no WebSocket connection in another way, which is INFORMATIONAL. To hang up is NON-STRICT: the
//! RFC wants "an HTTP response with an appropriate error code" (RFC 6455 section 4.2.1).
//!
//! What must be refused is what misses an item of RFC 6455 section 4.2.1, and what RFC 9112 says a server
//! must refuse. Of the rest of HTTP, RFC 9112 only recommends that it is refused (section 3); a server
//! that accepts it, or waits for more of it, is NON-STRICT.

use super::super::case::{CONTINUATION, NORMAL, PING, PROTOCOL_ERROR, TEXT, Weight};
use super::*;

const HELLO: &str = "Hello, opening";
const FORM: &str = "RFC 6455 4.2.1";
const SYNTAX: &str = "RFC 9112 2.2";
const LINE: &str = "RFC 9112 3";
const FIELDS: &str = "RFC 9112 5";
const KEY: &str = "Sec-WebSocket-Key: {key}";
const VERSION: &str = "Sec-WebSocket-Version: 13";
const ACCEPTED: &str = "The connection is opened, and a message comes back on it.";
const REFUSED: &str = "The server answers with an error and opens no connection.";
const EITHER: &str = "The RFC leaves a choice: the server opens the connection or refuses it.";

/// What a server may do.
#[derive(Clone, Copy)]
enum May {
    /// Only accept.
    Accept,
    /// It should accept.
    RatherAccept,
    /// Whatever it likes.
    Choose,
    /// It should refuse.
    RatherRefuse,
    /// Only refuse.
    Refuse,
}

/// A request that opens a connection. Each line ends by CRLF.
struct Request {
    line: String,
    fields: Vec<String>,
}

impl Request {
    fn plain() -> Request {
        let fields = ["Host: {host}", "Upgrade: websocket", "Connection: Upgrade", KEY, VERSION];
        Request {
            line: "GET {target} HTTP/1.1".to_owned(),
            fields: fields.map(str::to_owned).into(),
        }
    }

    /// The plain one with another request line.
    fn line(line: &str) -> Request {
        Request { line: line.to_owned(), ..Request::plain() }
    }

    /// The plain one in which these lines, none or several, stand for the field.
    fn with(name: &str, lines: &[&str]) -> Request {
        let mut request = Request::plain();
        let is_it = |field: &String| field.starts_with(name);
        let at = request.fields.iter().position(is_it).expect("a field of the plain request");
        request.fields.splice(at..=at, lines.iter().map(|line| (*line).to_owned()));
        request
    }

    /// The plain one with these lines before the end.
    fn and(lines: &[&str]) -> Request {
        let mut request = Request::plain();
        request.fields.extend(lines.iter().map(|line| (*line).to_owned()));
        request
    }

    /// The plain one with this line before all fields.
    fn first(line: &str) -> Request {
        let mut request = Request::plain();
        request.fields.insert(0, line.to_owned());
        request
    }

    fn bytes(&self) -> Vec<u8> {
        let lines = [&self.line].into_iter().chain(&self.fields);
        let lines: Vec<String> = lines.map(|line| format!("{line}\r\n")).collect();
        format!("{}\r\n", lines.concat()).into_bytes()
    }
}

fn refusals() -> [(Behavior, Vec<Expected>); 3] {
    [
        (Behavior::Ok, vec![Expected::Refused(400, 599, None)]),
        (Behavior::Informational, vec![Expected::Refused(200, 399, None)]),
        (Behavior::NonStrict, vec![Expected::HungUp]),
    ]
}

/// A case of a request; and of a message, if the server opens the connection.
fn opening(number: Number, clause: &'static str, may: May, request: Vec<u8>) -> Case {
    let hello = vec![text(HELLO)];
    let outcomes = match may {
        May::Accept => vec![(Behavior::Ok, hello)],
        May::RatherAccept => vec![
            (Behavior::Ok, hello),
            (Behavior::NonStrict, vec![Expected::Refused(400, 599, None)]),
            (Behavior::NonStrict, vec![Expected::HungUp]),
        ],
        May::Choose => {
            let waits = (Behavior::NonStrict, Vec::new());
            [(Behavior::Ok, hello)].into_iter().chain(refusals()).chain([waits]).collect()
        }
        May::RatherRefuse => {
            let others = [(Behavior::NonStrict, hello), (Behavior::NonStrict, Vec::new())];
            refusals().into_iter().chain(others).collect()
        }
        May::Refuse => refusals().into(),
    };
    let script = vec![at_once([Frame::new(TEXT, HELLO)])];
    let case = Case { outcomes, ..answered(number, clause, script, Vec::new()) };
    case.opened(Opening::Request(request, Chop::Whole))
}

/// What a server has to do with a request, and a sentence about that.
type Row = (&'static str, &'static str, May, Vec<u8>);

fn group(group: u16, rows: Vec<Row>) -> Vec<Case> {
    let case = |(case, (clause, description, may, request)): (u16, Row)| {
        let expectation = match may {
            May::Accept | May::RatherAccept => ACCEPTED,
            May::Choose => EITHER,
            May::RatherRefuse | May::Refuse => REFUSED,
        };
        opening(Number::triple(20, group, case), clause, may, request)
            .says(description, expectation)
    };
    (1..).zip(rows).map(case).collect()
}

/// What has to be accepted.
fn forms() -> Vec<Row> {
    let row =
        |clause, description, request: Request| (clause, description, May::Accept, request.bytes());
    let changed = |change: fn(&str) -> String| {
        let mut request = Request::plain();
        for field in &mut request.fields {
            let (name, value) = field.split_once(':').expect("a field");
            *field = format!("{}:{value}", change(name));
        }
        request
    };
    let mut reversed = Request::plain();
    reversed.fields.reverse();
    let long = format!("X-Long: {}", "a".repeat(3000));
    let rather = |clause, description, request: Request| {
        (clause, description, May::RatherAccept, request.bytes())
    };
    vec![
        row(FORM, "Sends the request in its plain form.", Request::plain()),
        row(FIELDS, "Sends names of fields in lower case.", changed(str::to_lowercase)),
        row(FIELDS, "Sends names of fields in upper case.", changed(str::to_uppercase)),
        row("RFC 9110 5.3", "Sends the fields in reverse order.", reversed),
        row(FORM, "Sends `Upgrade: WebSocket`.", Request::with("Upgrade", &["Upgrade: WebSocket"])),
        row(FORM, "Sends `Upgrade: WEBSOCKET`.", Request::with("Upgrade", &["Upgrade: WEBSOCKET"])),
        row(
            FORM,
            "Sends `Connection: upgrade` in lower case.",
            Request::with("Connection", &["Connection: upgrade"]),
        ),
        row(
            FORM,
            "Sends `Connection: keep-alive, Upgrade`.",
            Request::with("Connection", &["Connection: keep-alive, Upgrade"]),
        ),
        rather(
            "RFC 9110 5.3",
            "Sends two fields Connection, the second with Upgrade.",
            Request::with("Connection", &["Connection: keep-alive", "Connection: Upgrade"]),
        ),
        row(
            "RFC 9110 5.6.1.2",
            "Sends a Connection with empty elements.",
            Request::with("Connection", &["Connection: ,keep-alive,, Upgrade ,"]),
        ),
        row(
            FIELDS,
            "Sends no space after the colons.",
            Request {
                fields: Request::plain().fields.iter().map(|it| it.replace(": ", ":")).collect(),
                ..Request::plain()
            },
        ),
        row(
            "RFC 9110 5.5",
            "Sends spaces and tabs around each value.",
            Request {
                fields: Request::plain()
                    .fields
                    .iter()
                    .map(|it| it.replace(": ", ": \t ") + " \t")
                    .collect(),
                ..Request::plain()
            },
        ),
        row(
            FORM,
            "Sends fields that nobody knows.",
            Request::and(&["X-Unknown: a", "Y_z!#$: \"b\""]),
        ),
        row(FORM, "Sends an Origin.", Request::and(&["Origin: http://{host}"])),
        row(
            FORM,
            "Sends a cookie, a User-Agent and an Accept-Language.",
            Request::and(&[
                "Cookie: a=b; c=d",
                "User-Agent: test/1.0 (a; b)",
                "Accept-Language: *",
            ]),
        ),
        row("RFC 9110 8.6", "Sends `Content-Length: 0`.", Request::and(&["Content-Length: 0"])),
        row(
            "RFC 6455 9.1",
            "Offers an extension that nobody knows.",
            Request::and(&["Sec-WebSocket-Extensions: x-unknown; a; b=1; c=\"d\""]),
        ),
        // A server may insist on a subprotocol.
        rather(
            "RFC 6455 4.2.2",
            "Offers two subprotocols. The server may choose one or none.",
            Request::and(&["Sec-WebSocket-Protocol: chat, superchat"]),
        ),
        rather(
            "RFC 6455 11.3.4",
            "Offers two subprotocols in two fields.",
            Request::and(&["Sec-WebSocket-Protocol: chat", "Sec-WebSocket-Protocol: superchat"]),
        ),
        (
            "RFC 9110 5.4",
            "Sends a field of 3,000 bytes.",
            May::Choose,
            Request::and(&[&long]).bytes(),
        ),
        row(
            "RFC 9112 3.2.2",
            "Sends the target in absolute form.",
            Request::line("GET http://{host}{target} HTTP/1.1"),
        ),
    ]
}

/// The same in other segments, and what a server should accept.
fn pieces() -> Vec<Case> {
    let plain = || Request::plain().bytes();
    let number = |case| Number::triple(20, 2, case);
    let chopped = |case, chop| {
        let accepted = opening(number(case), FORM, May::Accept, plain());
        accepted
            .opened(Opening::Request(plain(), chop))
            .says(format!("Sends the request{}.", cut(chop)), ACCEPTED)
    };
    let behind = |case, script: Vec<Step>, answers: Vec<Expected>| {
        let mut outcomes = vec![(Behavior::Ok, answers), (Behavior::Informational, Vec::new())];
        outcomes.extend(refusals().map(|(_, events)| (Behavior::Informational, events)));
        let accepted = opening(number(case), "RFC 6455 4.2.2", May::Accept, plain());
        let close = Ending::either([NORMAL, PROTOCOL_ERROR]).weighing(Weight::Apart);
        Case { outcomes, script, close, ..accepted }.sent(Sends::Joined)
    };
    let hello = || Frame::new(TEXT, HELLO);
    let early = "The server processes the frames after it has opened the connection. It may refuse \
                 them, because a client has to wait for the response.";
    let fragments = [
        Frame::new(TEXT, "Hello, ").unfinished(),
        Frame::new(PING, "between"),
        Frame::new(CONTINUATION, "opening"),
    ];
    vec![
        chopped(1, Chop::Bytes(1)),
        chopped(2, Chop::Bytes(7)),
        behind(3, vec![at_once([hello()])], vec![text(HELLO)])
            .says("Sends a text message in one segment with the request.", early),
        behind(4, vec![at_once([hello(), hello(), hello()])], vec![text(HELLO); 3])
            .says("Sends three text messages in one segment with the request.", early),
        behind(5, vec![at_once(fragments)], vec![Expected::Pong(b"between".to_vec()), text(HELLO)])
            .says(
                "Sends a fragmented message with a ping in it in one segment with the request.",
                early,
            ),
        behind(6, vec![at_once([Frame::new(3, "")])], Vec::new()).says(
            "Sends a frame with a reserved opcode in one segment with the request.",
            "The server opens the connection and fails it, or refuses the request.",
        ),
    ]
}

fn versions() -> Vec<Row> {
    let line = |may, description, line: &str| (LINE, description, may, Request::line(line).bytes());
    let method =
        |description, line: &str| (FORM, description, May::Refuse, Request::line(line).bytes());
    let old = Request::line("GET {target} HTTP/1.0").bytes();
    let mut rows = vec![
        ("RFC 9110 7.8", "Sends a request of HTTP/1.0.", May::Refuse, old),
        line(May::Choose, "Sends a request of HTTP/1.2.", "GET {target} HTTP/1.2"),
        line(May::RatherRefuse, "Sends a request line with HTTP/2.0.", "GET {target} HTTP/2.0"),
        line(May::RatherRefuse, "Sends `http/1.1` in lower case.", "GET {target} http/1.1"),
        line(May::RatherRefuse, "Sends a request line without a version.", "GET {target}"),
        line(May::RatherRefuse, "Sends `HTTP/1.10`.", "GET {target} HTTP/1.10"),
        method("Sends a POST.", "POST {target} HTTP/1.1"),
        method("Sends a HEAD.", "HEAD {target} HTTP/1.1"),
        method("Sends a PUT.", "PUT {target} HTTP/1.1"),
        method("Sends an OPTIONS.", "OPTIONS {target} HTTP/1.1"),
        method("Sends a method that nobody knows.", "FETCH {target} HTTP/1.1"),
        method("Sends `get` in lower case.", "get {target} HTTP/1.1"),
        line(May::RatherRefuse, "Sends a request line without a target.", "GET HTTP/1.1"),
        line(May::Choose, "Sends two spaces in the request line.", "GET  {target} HTTP/1.1"),
        line(May::Choose, "Sends a tab in the request line.", "GET\t{target} HTTP/1.1"),
        line(May::RatherRefuse, "Sends a target with a space in it.", "GET {target}a b HTTP/1.1"),
        line(May::RatherRefuse, "Sends a target with a fragment.", "GET {target}#a HTTP/1.1"),
        line(May::RatherRefuse, "Sends a relative target.", "GET a HTTP/1.1"),
    ];
    rows.extend([
        (SYNTAX, "Sends an empty line before the request.", May::RatherAccept, {
            [&b"\r\n"[..], &Request::plain().bytes()].concat()
        }),
        (LINE, "Sends a handshake of TLS.", May::Refuse, {
            let hello = b"\x16\x03\x01\x00\x2a\x01\x00\x00\x26\x03\x03";
            [&hello[..], &[7; 32], b"\0\0\r\n\r\n"].concat()
        }),
    ]);
    rows
}

fn websocket_fields() -> Vec<Row> {
    let row = |may, description, name, lines: &[&str]| {
        (FORM, description, may, Request::with(name, lines).bytes())
    };
    let (refuse, rather) = (May::Refuse, May::RatherRefuse);
    let keys: [(&'static str, &str); 6] = [
        ("Sends an empty key.", "Sec-WebSocket-Key:"),
        ("Sends a key of 15 bytes.", "Sec-WebSocket-Key: AAECAwQFBgcICQoLDA0O"),
        ("Sends a key of 17 bytes.", "Sec-WebSocket-Key: AAECAwQFBgcICQoLDA0ODxA="),
        ("Sends a key without padding.", "Sec-WebSocket-Key: AAECAwQFBgcICQoLDA0ODw"),
        ("Sends a key that is not base64.", "Sec-WebSocket-Key: AAECAwQFBgcICQo*DA0ODw=="),
        ("Sends a key with more behind it.", "Sec-WebSocket-Key: AAECAwQFBgcICQoLDA0ODw==, a"),
    ];
    let mut rows = vec![
        row(refuse, "Sends no Upgrade.", "Upgrade", &[]),
        row(refuse, "Sends `Upgrade: h2c`.", "Upgrade", &["Upgrade: h2c"]),
        row(refuse, "Sends `Upgrade: websockets`.", "Upgrade", &["Upgrade: websockets"]),
        row(
            May::Choose,
            "Sends `Upgrade: h2c, websocket`.",
            "Upgrade",
            &["Upgrade: h2c, websocket"],
        ),
        row(refuse, "Sends no Connection.", "Connection", &[]),
        row(refuse, "Sends `Connection: keep-alive`.", "Connection", &["Connection: keep-alive"]),
        row(refuse, "Sends `Connection: Upgrades`.", "Connection", &["Connection: Upgrades"]),
        row(refuse, "Sends no key.", "Sec-WebSocket-Key", &[]),
        row(rather, "Sends the key twice.", "Sec-WebSocket-Key", &[KEY, KEY]),
        row(
            rather,
            "Sends two keys.",
            "Sec-WebSocket-Key",
            &[KEY, "Sec-WebSocket-Key: AAECAwQFBgcICQoLDA0ODw=="],
        ),
    ];
    // RFC 6455 section 4.2.2: a server need not decode the key.
    rows.extend(
        keys.map(|(description, line)| row(rather, description, "Sec-WebSocket-Key", &[line])),
    );
    rows
}

/// A version that the server does not speak. It has to say which ones it speaks (RFC 6455 section 4.4).
fn websocket_versions() -> Vec<Case> {
    let rows: [(&str, May, &[&str]); 9] = [
        ("Sends no version.", May::Refuse, &[]),
        // Some servers speak the drafts, too (RFC 6455 section 4.4).
        ("Sends version 8.", May::Choose, &["Sec-WebSocket-Version: 8"]),
        ("Sends version 12.", May::RatherRefuse, &["Sec-WebSocket-Version: 12"]),
        ("Sends version 14.", May::Refuse, &["Sec-WebSocket-Version: 14"]),
        ("Sends version 255.", May::Refuse, &["Sec-WebSocket-Version: 255"]),
        ("Sends version 013.", May::RatherRefuse, &["Sec-WebSocket-Version: 013"]),
        ("Sends an empty version.", May::Refuse, &["Sec-WebSocket-Version:"]),
        ("Sends version `13, 8`.", May::RatherRefuse, &["Sec-WebSocket-Version: 13, 8"]),
        ("Sends version 13 twice.", May::RatherRefuse, &[VERSION, VERSION]),
    ];
    let case = |(case, (description, may, lines)): (u16, (&str, May, &[&str]))| {
        let request = Request::with("Sec-WebSocket-Version", lines).bytes();
        let mut case = opening(Number::triple(20, 5, case), "RFC 6455 4.4", may, request);
        if let May::Refuse | May::RatherRefuse = may {
            let named = Expected::Refused(400, 599, Some("Sec-WebSocket-Version"));
            case.outcomes[0].0 = Behavior::NonStrict;
            case.outcomes.insert(0, (Behavior::Ok, vec![named]));
        }
        case.says(
            description,
            "The server answers with an error that names the version it speaks in \
             Sec-WebSocket-Version, and opens no connection.",
        )
    };
    (1..).zip(rows).map(case).collect()
}

fn syntax() -> Vec<Row> {
    let row =
        |may, clause, description, request: Request| (clause, description, may, request.bytes());
    let bare = |from: &str, to: &str| {
        let text = String::from_utf8(Request::plain().bytes()).expect("text");
        text.replace(from, to).into_bytes()
    };
    let host = |lines: &[&str]| Request::with("Host", lines);
    let (refuse, rather, choose) = (May::Refuse, May::RatherRefuse, May::Choose);
    let smuggled = Request::and(&["Content-Length: 5", "Transfer-Encoding: chunked"]);
    vec![
        row(refuse, "RFC 9112 3.2", "Sends no Host.", host(&[])),
        row(refuse, "RFC 9112 3.2", "Sends Host twice.", host(&["Host: {host}", "Host: {host}"])),
        row(refuse, "RFC 9112 3.2", "Sends an invalid Host.", host(&["Host: a b/c"])),
        row(rather, "RFC 6455 4.2.1", "Sends an empty Host.", host(&["Host:"])),
        row(refuse, "RFC 9112 5.1", "Sends a space before a colon.", Request::and(&["X-A : b"])),
        row(
            refuse,
            "RFC 9112 5.1",
            "Sends a space before the colon of Upgrade.",
            Request::with("Upgrade", &["Upgrade : websocket"]),
        ),
        row(choose, "RFC 9112 5.2", "Sends a folded field.", Request::and(&["X-A: b,\r\n c"])),
        row(
            choose,
            "RFC 9112 5.2",
            "Sends a Connection folded before Upgrade.",
            Request::with("Connection", &["Connection: keep-alive,\r\n Upgrade"]),
        ),
        row(choose, SYNTAX, "Sends a space before the first field.", Request::first(" X-A: b")),
        row(rather, FIELDS, "Sends a line without a colon.", Request::and(&["X-A"])),
        row(rather, FIELDS, "Sends a field without a name.", Request::and(&[": a"])),
        row(rather, FIELDS, "Sends a name with an @ in it.", Request::and(&["X@A: b"])),
        row(rather, FIELDS, "Sends a name with a space in it.", Request::and(&["X A: b"])),
        row(choose, "RFC 9110 5.5", "Sends NUL in a value.", Request::and(&["X-A: b\0c"])),
        row(choose, SYNTAX, "Sends a lone CR in a value.", Request::and(&["X-A: b\rc"])),
        row(
            choose,
            "RFC 9110 5.5",
            "Sends a control character in a value.",
            Request::and(&["X-A: \x07"]),
        ),
        (SYNTAX, "Ends each line with a lone LF.", choose, bare("\r\n", "\n")),
        (
            SYNTAX,
            "Ends the request line with a lone LF.",
            choose,
            bare("HTTP/1.1\r\n", "HTTP/1.1\n"),
        ),
        (SYNTAX, "Ends the last field with a lone LF.", choose, bare("13\r\n", "13\n")),
        row(rather, "RFC 9112 6.1", "Sends both a length and an encoding of content.", smuggled),
        row(
            rather,
            "RFC 9112 6.3",
            "Sends two lengths that differ.",
            Request::and(&["Content-Length: 0", "Content-Length: 5"]),
        ),
        row(
            rather,
            "RFC 9112 6.3",
            "Sends a length that is none.",
            Request::and(&["Content-Length: a"]),
        ),
        row(
            rather,
            "RFC 6455 4.1",
            "Offers a subprotocol that is no token.",
            Request::and(&["Sec-WebSocket-Protocol: a b"]),
        ),
        row(
            rather,
            "RFC 6455 9.1",
            "Offers an extension that breaks the grammar.",
            Request::and(&["Sec-WebSocket-Extensions: a; =b"]),
        ),
        row(
            rather,
            "RFC 6455 9.1",
            "Offers an extension with a quoted value that is no token.",
            Request::and(&["Sec-WebSocket-Extensions: a; b=\"c d\""]),
        ),
    ]
}

fn sizes() -> Vec<Row> {
    let line = |may, description, target: &str| {
        let line = format!("GET {{target}}{target} HTTP/1.1");
        (LINE, description, may, Request::line(&line).bytes())
    };
    let field = |may, description, bytes: usize| {
        let line = format!("X-Long: {}", "a".repeat(bytes));
        ("RFC 9110 5.4", description, may, Request::and(&[&line]).bytes())
    };
    let many = |may, description, count: usize| {
        let lines: Vec<String> = (0..count).map(|at| format!("X-{at}: a")).collect();
        let lines: Vec<&str> = lines.iter().map(|line| &line[..]).collect();
        ("RFC 9110 5.4", description, may, Request::and(&lines).bytes())
    };
    let method = format!("{} {{target}} HTTP/1.1", "A".repeat(65536));
    let (rather, choose) = (May::RatherAccept, May::Choose);
    vec![
        // "It is RECOMMENDED that all HTTP senders and recipients support, at a minimum, request-line
        // lengths of 8000 octets."
        line(rather, "Sends a target of 4 KiB.", &format!("?{}", "a".repeat(4096))),
        line(choose, "Sends a target of 64 KiB.", &format!("?{}", "a".repeat(65536))),
        field(choose, "Sends a field of 8 KiB.", 8192),
        field(choose, "Sends a field of 64 KiB.", 65536),
        field(choose, "Sends a field of 1 MiB.", 1 << 20),
        many(choose, "Sends 50 fields that nobody knows.", 50),
        many(choose, "Sends 2,000 fields that nobody knows.", 2000),
        (FORM, "Sends a method of 64 KiB.", May::Refuse, Request::line(&method).bytes()),
    ]
}

pub(super) fn cases() -> Vec<Case> {
    let mut cases = group(1, forms());
    cases.extend(pieces());
    cases.extend(group(3, versions()));
    cases.extend(group(4, websocket_fields()));
    cases.extend(websocket_versions());
    cases.extend(group(6, syntax()));
    cases.extend(group(7, sizes()));
    cases
}
