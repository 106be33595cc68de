//! The opening handshake (RFC 6455 section 4), of a server and of a client.

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::extension::{self, Codec};
use super::{Behavior, Fault, Role};
use crate::oracle::accept_of;

/// The longest head of a request or a response, in bytes.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// The key of the client; that it is always the same matters to nobody here.
const KEY: &[u8; 16] = b"not random at al";

/// A connection after the opening handshake.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) stream: TcpStream,
    /// What came behind the handshake.
    pub(super) received: Vec<u8>,
    /// permessage-deflate, if both agreed to it.
    pub(super) codec: Option<Codec>,
}

/// The head of a request or a response: its first line and its fields.
#[derive(Debug)]
struct Head {
    line: String,
    fields: Vec<(String, String)>,
}

impl Head {
    /// Receives it, after `received` has come; also what came behind it.
    fn receive(stream: &mut TcpStream, mut received: Vec<u8>) -> io::Result<(Head, Vec<u8>)> {
        let mut room = [0; 4096];
        let end = loop {
            if let Some(at) = received.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                break at + 4;
            }
            let count = stream.read(&mut room)?;
            if count == 0 || received.len() > HEAD_BYTES_MAX {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            received.extend_from_slice(&room[..count]);
        };
        let behind = received.split_off(end);
        let text = String::from_utf8_lossy(&received);
        let mut lines = text.split("\r\n");
        let line = lines.next().unwrap_or_default().to_owned();
        let fields = lines.filter_map(|line| line.split_once(':'));
        let fields = fields.map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()));
        Ok((Head { line, fields: fields.collect() }, behind))
    }

    /// The values of a field, joined as a list; nothing if there is none.
    fn field(&self, name: &str) -> Option<String> {
        let values = self.fields.iter().filter(|(other, _)| other == name);
        let values: Vec<&str> = values.map(|(_, value)| value.as_str()).collect();
        (!values.is_empty()).then(|| values.join(", "))
    }

    /// Whether a field is a list with this token.
    fn has_token(&self, name: &str, token: &str) -> bool {
        let list = self.field(name).unwrap_or_default();
        list.split(',').any(|element| element.trim().eq_ignore_ascii_case(token))
    }

    /// The status that a request deserves (section 4.2.1).
    fn status(&self, behavior: &Behavior) -> u16 {
        let key = self.field("sec-websocket-key").and_then(|key| BASE64.decode(key).ok());
        let is_version = self.field("sec-websocket-version").is_some_and(|it| it == "13");
        if !self.line.starts_with("GET ") {
            405
        } else if !self.line.ends_with(" HTTP/1.1")
            || self.field("host").is_none()
            || !self.has_token("upgrade", "websocket")
            || !self.has_token("connection", "upgrade")
            || key.is_none_or(|key| key.len() != 16 && !behavior.has(Fault::AnyKey))
        {
            400
        } else if !is_version && !behavior.has(Fault::AnyVersion) {
            426
        } else {
            101
        }
    }
}

/// The server's side. Returns nothing if it has refused the request.
pub(super) fn accept(mut stream: TcpStream, behavior: &Behavior) -> io::Result<Option<Opened>> {
    let (request, received) = Head::receive(&mut stream, Vec::new())?;
    let status = request.status(behavior);
    if status != 101 {
        let response = format!(
            "HTTP/1.1 {status} No\r\nConnection: close\r\nContent-Length: 0\r\nAllow: GET\r\n\
             Sec-WebSocket-Version: 13\r\n\r\n"
        );
        stream.write_all(response.as_bytes())?;
        return Ok(None);
    }
    let offers = request.field("sec-websocket-extensions");
    let agreed = offers.and_then(|offers| extension::accept(&offers, behavior));
    let key = request.field("sec-websocket-key").unwrap_or_default();
    let response = response(&key, agreed.as_ref().map(|(answer, _)| answer.as_str()), behavior);
    stream.write_all(response.as_bytes())?;
    let codec = agreed.map(|(_, parameters)| Codec::new(&parameters, Role::Server, behavior));
    Ok(Some(Opened { stream, received, codec }))
}

/// The response that accepts a request (section 4.2.2).
fn response(key: &str, extension: Option<&str>, behavior: &Behavior) -> String {
    let has = |fault| behavior.has(fault);
    let status = match () {
        () if has(Fault::Status200) => "HTTP/1.1 200 OK",
        () if has(Fault::Http10) => "HTTP/1.0 101 Switching Protocols",
        () => "HTTP/1.1 101 Switching Protocols",
    };
    let key = if has(Fault::WrongAccept) { "another" } else { key };
    let unasked = has(Fault::UnaskedExtension).then_some("permessage-deflate");
    let fields = [
        ("Upgrade", Some("websocket".to_owned()).filter(|_| !has(Fault::UpgradeMissing))),
        ("Connection", Some("Upgrade".to_owned()).filter(|_| !has(Fault::ConnectionMissing))),
        ("Sec-WebSocket-Accept", Some(accept_of(key)).filter(|_| !has(Fault::AcceptMissing))),
        ("Sec-WebSocket-Protocol", has(Fault::UnaskedSubprotocol).then(|| "unasked".to_owned())),
        ("Sec-WebSocket-Extensions", extension.or(unasked).map(str::to_owned)),
    ];
    let mut response = format!("{status}\r\n");
    for (name, value) in fields {
        let Some(mut value) = value else { continue };
        let mut name = name.to_owned();
        if has(Fault::LowerCaseFields) {
            name.make_ascii_lowercase();
            if name == "upgrade" || name == "connection" {
                value.make_ascii_uppercase();
            }
        }
        response += &format!("{name}: {value}\r\n");
    }
    response += "\r\n";
    if has(Fault::BareLf) { response.replace("\r\n", "\n") } else { response }
}

/// The client's side, for the path and query `target`.
pub(super) fn connect(
    mut stream: TcpStream,
    target: &str,
    behavior: &Behavior,
) -> io::Result<Opened> {
    let has = |fault| behavior.has(fault);
    let key = BASE64.encode(if has(Fault::RequestShortKey) { &KEY[..15] } else { KEY });
    let method = if has(Fault::RequestByPost) { "POST" } else { "GET" };
    let version = if has(Fault::RequestVersion12) { 12 } else { 13 };
    let host = stream.peer_addr()?;
    let mut request =
        format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\n");
    if !has(Fault::RequestWithoutConnection) {
        request += "Connection: Upgrade\r\n";
    }
    if !has(Fault::NoDeflate) {
        request += &format!("Sec-WebSocket-Extensions: {}\r\n", extension::OFFER);
    }
    request += &format!("Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: {version}\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let (mut response, mut received) = Head::receive(&mut stream, Vec::new())?;
    let is_interim =
        |line: &str| line.starts_with("HTTP/1.1 1") && !line.starts_with("HTTP/1.1 101");
    // RFC 9110 section 15.2. A status has three digits.
    while is_interim(&response.line) && response.line.as_bytes().get(12) == Some(&b' ') {
        (response, received) = Head::receive(&mut stream, received)?;
    }
    let status = if has(Fault::StatusUnchecked) { "HTTP/1.1 " } else { "HTTP/1.1 101 " };
    let is_accepted = response.line.starts_with(status)
        && (response.has_token("upgrade", "websocket") || has(Fault::UpgradeUnchecked))
        && (response.has_token("connection", "upgrade") || has(Fault::ConnectionUnchecked))
        && (response.field("sec-websocket-accept") == Some(accept_of(&key))
            || has(Fault::AcceptUnchecked))
        && (response.field("sec-websocket-protocol").is_none() || has(Fault::SubprotocolUnchecked));
    let refused = || io::Error::other(format!("the server answered {:?}", response.line));
    let answer = response.field("sec-websocket-extensions");
    let codec = match answer.map(|answer| extension::accepted(&answer)) {
        _ if !is_accepted => return Err(refused()),
        Some(None) if has(Fault::ExtensionsUnchecked) => None,
        Some(None) => return Err(refused()),
        Some(Some(_)) if has(Fault::NoDeflate) => return Err(refused()),
        Some(Some(parameters)) => Some(Codec::new(&parameters, Role::Client, behavior)),
        None => None,
    };
    Ok(Opened { stream, received, codec })
}
