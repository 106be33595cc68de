//! The opening handshake (RFC 6455 section 4), of a server and of a client.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::extension::{self, Codec};
use super::{Behavior, Fault, Role};
use crate::oracle::accept_of;

/// The longest head of a request or a response, in bytes.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// The same with [`Fault::LongHeadRefused`].
const SHORT_HEAD_BYTES_MAX: usize = 2000;
/// The status of what does not end as a head should.
const BAD_REQUEST: u16 = 400;
/// The status of a head that is too long.
const HEAD_TOO_LONG: u16 = 431;
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
    /// Names in lower case, unless [`Fault::NamesByCase`], and values.
    fields: Vec<(String, String)>,
    /// Whether all fields have the form that they should (RFC 9112 section 5).
    is_well_formed: bool,
}

/// What came instead of a head.
enum NoHead {
    /// There is no connection any more.
    Lost(io::Error),
    /// Something that deserves this status.
    Refused(u16),
}

impl From<io::Error> for NoHead {
    fn from(error: io::Error) -> NoHead {
        NoHead::Lost(error)
    }
}

impl Head {
    /// Receives it, after `received` has come; also what came behind it.
    fn receive(
        stream: &mut TcpStream,
        mut received: Vec<u8>,
        (role, behavior): (Role, &Behavior),
    ) -> Result<(Head, Vec<u8>), NoHead> {
        let mut room = [0; 4096];
        let most = match behavior.has(Fault::LongHeadRefused) {
            true => SHORT_HEAD_BYTES_MAX,
            false => HEAD_BYTES_MAX,
        };
        let end = loop {
            // RFC 9112 section 2.2: empty lines before a request are ignored.
            while role == Role::Server && received.starts_with(b"\r\n") {
                received.drain(..2);
            }
            let end = received.windows(4).position(|bytes| bytes == b"\r\n\r\n");
            let head = &received[..end.unwrap_or(received.len())];
            if head.split(|byte| *byte == b'\n').rev().skip(1).any(|line| !line.ends_with(b"\r")) {
                return Err(NoHead::Refused(BAD_REQUEST));
            }
            if let Some(end) = end {
                break end + 4;
            }
            if received.len() > most {
                return Err(NoHead::Refused(HEAD_TOO_LONG));
            }
            let count = stream.read(&mut room)?;
            if count == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            received.extend_from_slice(&room[..count]);
        };
        if end > most {
            return Err(NoHead::Refused(HEAD_TOO_LONG));
        }
        let behind = received.split_off(end);
        Ok((Head::parse(&String::from_utf8_lossy(&received), behavior), behind))
    }

    fn parse(text: &str, behavior: &Behavior) -> Head {
        let mut lines = text.trim_end_matches("\r\n").split("\r\n");
        let line = lines.next().unwrap_or_default().to_owned();
        let (mut fields, mut is_well_formed) = (Vec::new(), true);
        for line in lines {
            let (name, value) = line.split_once(':').unwrap_or((line, ""));
            let is_control = |letter: char| letter.is_ascii_control() && letter != '\t';
            is_well_formed &=
                line.contains(':') && extension::is_token(name) && !value.contains(is_control);
            let trimmed = value.trim_matches([' ', '\t']);
            if behavior.has(Fault::SpacesRefused) && !matches!(value.len() - trimmed.len(), 0 | 1) {
                is_well_formed = false;
            }
            let name = match behavior.has(Fault::NamesByCase) {
                true if KNOWN.contains(&name) => name.to_lowercase(),
                true => format!("unknown {name}"),
                false => name.trim().to_lowercase(),
            };
            fields.push((name, trimmed.to_owned()));
        }
        Head { line, fields, is_well_formed }
    }

    /// The values of a field.
    fn values<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a str> {
        let is_it = move |field: &&(String, String)| field.0 == name;
        self.fields.iter().filter(is_it).map(|(_, value)| value.as_str())
    }

    /// The values of a field, joined as a list; nothing if there is none.
    fn field(&self, name: &str) -> Option<String> {
        let values: Vec<&str> = self.values(name).collect();
        (!values.is_empty()).then(|| values.join(", "))
    }

    /// The value of a field that there is once.
    fn only(&self, name: &str) -> Option<&str> {
        let mut values: Vec<&str> = self.values(name).collect();
        values.pop().filter(|_| values.is_empty())
    }

    /// Whether a field is a list with this token, in any case.
    fn has_token(&self, name: &str, token: &str) -> bool {
        let list = self.field(name).unwrap_or_default();
        list.split(',').any(|element| element.trim().eq_ignore_ascii_case(token))
    }

    /// The status that a request deserves (section 4.2.1).
    fn status(&self, behavior: &Behavior) -> u16 {
        let has = |fault| behavior.has(fault);
        let [method, target, version] = self.line.split(' ').collect::<Vec<_>>()[..] else {
            return BAD_REQUEST;
        };
        let lists = |name: &str, token: &str| match self.field(name) {
            Some(list) if has(Fault::ConnectionNoList) => list.eq_ignore_ascii_case(token),
            Some(list) if has(Fault::TokensByCase) => {
                list.split(',').any(|element| element.trim() == token)
            }
            _ => self.has_token(name, token),
        };
        let is_key = |key: &str| BASE64.decode(key).is_ok_and(|key| key.len() == 16);
        let checks = [
            (method != "GET" && !has(Fault::AnyMethod), 405),
            (version != "HTTP/1.1" && !has(Fault::AnyHttpVersion), 505),
            (!is_target(target, behavior), BAD_REQUEST),
            (!self.is_well_formed && !has(Fault::AnySyntax), BAD_REQUEST),
            (!self.only("host").is_some_and(is_host) && !has(Fault::AnyHost), BAD_REQUEST),
            (!lists("upgrade", "websocket") && !has(Fault::AnyUpgrade), BAD_REQUEST),
            (!lists("connection", "Upgrade") && !has(Fault::AnyConnection), BAD_REQUEST),
            (!self.only("sec-websocket-key").is_some_and(is_key) && !has(Fault::AnyKey), 400),
            (self.only("sec-websocket-version") != Some("13") && !has(Fault::AnyVersion), 426),
            (self.has_content() || !self.is_list_of_tokens("sec-websocket-protocol"), 400),
            (!self.offers(behavior), BAD_REQUEST),
        ];
        checks.iter().find(|(is_wrong, _)| *is_wrong).map_or(101, |(_, status)| *status)
    }

    /// Whether a request has content, or may have.
    fn has_content(&self) -> bool {
        self.values("transfer-encoding").next().is_some()
            || self.values("content-length").any(|length| length != "0")
    }

    fn is_list_of_tokens(&self, name: &str) -> bool {
        let list = self.field(name).unwrap_or_default();
        let mut elements = list.split(',').map(str::trim).filter(|element| !element.is_empty());
        elements.all(extension::is_token)
    }

    /// Whether the offers of extensions have the form that they should (section 9.1).
    fn offers(&self, behavior: &Behavior) -> bool {
        let offers = self.field("sec-websocket-extensions").unwrap_or_default();
        let is_unknown = !offers.split(',').all(|it| it.trim().starts_with("permessage-deflate"));
        let is_refused = is_unknown && behavior.has(Fault::UnknownExtensionRefused);
        let is_lenient = behavior.has(Fault::DeflateAnyOffer);
        offers.is_empty() || (extension::is_list(&offers) || is_lenient) && !is_refused
    }
}

/// The fields that [`Fault::NamesByCase`] knows.
const KNOWN: [&str; 6] = [
    "Host",
    "Upgrade",
    "Connection",
    "Sec-WebSocket-Key",
    "Sec-WebSocket-Version",
    "Sec-WebSocket-Extensions",
];

/// Whether this is a path with a query, or the absolute form (RFC 9112 section 3.2).
fn is_target(target: &str, behavior: &Behavior) -> bool {
    let is_absolute = target.starts_with("http://") && !behavior.has(Fault::AbsoluteTargetRefused);
    let is_visible = target.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
    is_visible && (target.starts_with('/') || is_absolute)
}

/// Whether this may be a name or an address with a port (RFC 9110 section 7.2).
fn is_host(host: &str) -> bool {
    let is_known = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:[]".contains(&byte);
    !host.is_empty() && host.bytes().all(is_known)
}

/// The server's side. Returns nothing if it has refused the request.
pub(super) fn accept(mut stream: TcpStream, behavior: &Behavior) -> io::Result<Option<Opened>> {
    let (request, mut received) =
        match Head::receive(&mut stream, Vec::new(), (Role::Server, behavior)) {
            Ok(received) => received,
            Err(NoHead::Lost(error)) => return Err(error),
            Err(NoHead::Refused(status)) => return refuse(stream, status, behavior),
        };
    let status = request.status(behavior);
    if status != 101 {
        return refuse(stream, status, behavior);
    }
    if behavior.has(Fault::EarlyFramesLost) {
        received.clear();
    }
    let offers = request.field("sec-websocket-extensions");
    let agreed = offers.and_then(|offers| extension::accept(&offers, behavior));
    let key = request.field("sec-websocket-key").unwrap_or_default();
    let response = response(&key, agreed.as_ref().map(|(answer, _)| answer.as_str()), behavior);
    stream.write_all(response.as_bytes())?;
    let codec = agreed.map(|(_, parameters)| Codec::new(&parameters, Role::Server, behavior));
    Ok(Some(Opened { stream, received, codec }))
}

/// Refuses a request, and reads what is left of it, because the kernel would reset the connection
/// otherwise.
fn refuse(mut stream: TcpStream, status: u16, behavior: &Behavior) -> io::Result<Option<Opened>> {
    if behavior.has(Fault::RefusesSilently) {
        return Ok(None);
    }
    let version = match behavior.has(Fault::VersionUnnamed) {
        true => "",
        false => "Sec-WebSocket-Version: 13\r\n",
    };
    let response = format!(
        "HTTP/1.1 {status} No\r\nConnection: close\r\nContent-Length: 0\r\nAllow: GET\r\n{version}\r\n"
    );
    stream.write_all(response.as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    while stream.read(&mut [0; 4096])? > 0 {}
    Ok(None)
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
    let refused = |line: &str| io::Error::other(format!("the server answered {line:?}"));
    let mut receive = |received| {
        Head::receive(&mut stream, received, (Role::Client, behavior)).map_err(|none| match none {
            NoHead::Lost(error) => error,
            NoHead::Refused(_) => refused("something else"),
        })
    };
    let (mut response, mut received) = receive(Vec::new())?;
    let is_interim =
        |line: &str| line.starts_with("HTTP/1.1 1") && !line.starts_with("HTTP/1.1 101");
    // RFC 9110 section 15.2. A status has three digits.
    while is_interim(&response.line) && response.line.as_bytes().get(12) == Some(&b' ') {
        (response, received) = receive(received)?;
    }
    let status = if has(Fault::StatusUnchecked) { "HTTP/1.1 " } else { "HTTP/1.1 101 " };
    let is_accepted = response.line.starts_with(status)
        && (response.has_token("upgrade", "websocket") || has(Fault::UpgradeUnchecked))
        && (response.has_token("connection", "upgrade") || has(Fault::ConnectionUnchecked))
        && (response.field("sec-websocket-accept") == Some(accept_of(&key))
            || has(Fault::AcceptUnchecked))
        && (response.field("sec-websocket-protocol").is_none() || has(Fault::SubprotocolUnchecked));
    let answer = response.field("sec-websocket-extensions");
    let codec = match answer.map(|answer| extension::accepted(&answer)) {
        _ if !is_accepted => return Err(refused(&response.line)),
        Some(None) if has(Fault::ExtensionsUnchecked) => None,
        Some(None) => return Err(refused(&response.line)),
        Some(Some(_)) if has(Fault::NoDeflate) => return Err(refused(&response.line)),
        Some(Some(parameters)) => Some(Codec::new(&parameters, Role::Client, behavior)),
        None => None,
    };
    Ok(Opened { stream, received, codec })
}
