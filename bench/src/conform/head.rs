//! Heads of HTTP messages, for cases that test the opening handshake: fills in what a case sends, and
//! reads strictly what a server answers (RFC 6455 section 4.2.2, RFC 9112).
//!
//! This is written apart from the server's own code and from the client's of the other commands, as the
//! frames are.

use ringecho::protocol::extension;
use ringecho::protocol::handshake::accept_of;

/// The longest response that is read, in bytes.
const RESPONSE_BYTES_MAX: usize = 64 << 10;

/// What the placeholders of a request stand for.
#[derive(Debug, Clone, Copy)]
pub struct Connection<'a> {
    /// The value of Host.
    pub host: &'a str,
    /// Path and query.
    pub target: &'a str,
    /// The value of Sec-WebSocket-Key.
    pub key: &'a str,
}

impl Connection<'_> {
    /// The request of a case, filled in.
    pub fn request(&self, template: &[u8]) -> Vec<u8> {
        let values = [("{host}", self.host), ("{target}", self.target), ("{key}", self.key)];
        values.iter().fold(template.to_vec(), |head, (name, value)| filled(&head, name, value))
    }
}

/// The response of a case to a request with this key, filled in.
pub fn response(template: &[u8], key: &str) -> Vec<u8> {
    filled(template, "{accept}", &accept_of(key.trim().as_bytes()))
}

/// The response that accepts a request with this key, and agrees to these extensions (RFC 6455 section
/// 4.2.2).
pub fn accepting(key: &str, extensions: Option<&str>) -> Vec<u8> {
    let extensions = extensions.map(|value| format!("Sec-WebSocket-Extensions: {value}\r\n"));
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {}\r\n{}\r\n",
        accept_of(key.as_bytes()),
        extensions.unwrap_or_default()
    )
    .into_bytes()
}

/// `head` with `value` in each place of `name`.
fn filled(head: &[u8], name: &str, value: &str) -> Vec<u8> {
    let mut output = Vec::with_capacity(head.len() + value.len());
    let mut left = head;
    while let Some((first, rest)) = left.split_first() {
        match left.strip_prefix(name.as_bytes()) {
            Some(rest) => {
                output.extend(value.bytes());
                left = rest;
            }
            None => {
                output.push(*first);
                left = rest;
            }
        }
    }
    output
}

/// A final response, or one that switches protocols.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// Its status.
    pub status: u16,
    /// Its fields by name and value, in their order.
    pub fields: Vec<(String, String)>,
    /// Its length in bytes, with interim responses before it and without content.
    pub bytes: usize,
}

impl Response {
    /// The response at the beginning of `received`; nothing while its end is missing.
    ///
    /// # Errors
    ///
    /// What is wrong with it, as a sentence.
    pub fn parse(received: &[u8]) -> Result<Option<Response>, String> {
        let mut start = 0;
        loop {
            let rest = &received[start..];
            let Some(end) = rest.windows(4).position(|bytes| bytes == b"\r\n\r\n") else {
                let is_http = rest.iter().zip(b"HTTP/1.").all(|(came, wanted)| came == wanted);
                return match is_http && received.len() < RESPONSE_BYTES_MAX {
                    true => Ok(None),
                    false => Err("What came is no response of HTTP/1.1.".to_owned()),
                };
            };
            let text = String::from_utf8_lossy(&rest[..end]);
            let mut lines = text.split("\r\n");
            let status = lines.next().and_then(status).ok_or("The status line is wrong.")?;
            start += end + 4;
            // RFC 9110 section 15.2: any number of interim responses may come first.
            if (100..200).contains(&status) && status != 101 {
                continue;
            }
            let fields = lines
                .map(|line| field(line).ok_or_else(|| format!("The field {line:?} is wrong.")))
                .collect::<Result<Vec<_>, _>>()?;
            return Ok(Some(Response { status, fields, bytes: start }));
        }
    }

    /// The values of a field.
    fn values<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a str> {
        let is_it = move |field: &&(String, String)| field.0.eq_ignore_ascii_case(name);
        self.fields.iter().filter(is_it).map(|field| &field.1[..])
    }

    /// The elements of a field that is a list (RFC 9110 section 5.6.1).
    fn elements<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a str> {
        let elements = self.values(name).flat_map(|value| value.split(','));
        elements.map(str::trim).filter(|element| !element.is_empty())
    }

    /// What a response that switches protocols agrees on, by the rules of RFC 6455 section 4.2.2: the
    /// extensions, if there are some.
    ///
    /// # Errors
    ///
    /// The first rule that it breaks, as a sentence.
    pub fn check(&self, request: &[u8]) -> Result<Option<String>, String> {
        let request = String::from_utf8_lossy(request);
        let asked = |name: &str| -> Vec<String> {
            let of_it = |line: &str| {
                let (field, value) = line.split_once(':')?;
                field.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
            };
            request.lines().filter_map(of_it).collect()
        };
        let upgrades: Vec<&str> = self.elements("Upgrade").collect();
        if !matches!(upgrades[..], [upgrade] if upgrade.eq_ignore_ascii_case("websocket")) {
            return Err(format!("Upgrade should be websocket, but is {upgrades:?}."));
        }
        if !self.elements("Connection").any(|option| option.eq_ignore_ascii_case("upgrade")) {
            return Err("Connection does not name Upgrade.".to_owned());
        }
        let accepts: Vec<&str> = self.values("Sec-WebSocket-Accept").collect();
        // Without exactly one key there is nothing to compare with.
        if let [key] = &asked("Sec-WebSocket-Key")[..]
            && accepts[..] != [&accept_of(key.as_bytes())[..]]
        {
            return Err(format!("Sec-WebSocket-Accept is {accepts:?}, which is wrong."));
        }
        let protocols: Vec<&str> = self.values("Sec-WebSocket-Protocol").collect();
        let offered = asked("Sec-WebSocket-Protocol").join(",");
        let is_offered = |protocol: &str| offered.split(',').any(|offer| offer.trim() == protocol);
        match protocols[..] {
            [] => {}
            [protocol] if is_offered(protocol) => {}
            _ => return Err(format!("The subprotocol {protocols:?} was not offered.")),
        }
        // RFC 9110 section 8.6, RFC 9112 section 6.1.
        for name in ["Content-Length", "Transfer-Encoding"] {
            if self.values(name).next().is_some() {
                return Err(format!("A response of status 101 must not have {name}."));
            }
        }
        let agreed = self.elements("Sec-WebSocket-Extensions").collect::<Vec<_>>().join(", ");
        if agreed.is_empty() {
            return Ok(None);
        }
        let offered = asked("Sec-WebSocket-Extensions").join(",");
        let answer = extension::answered(agreed.as_bytes());
        // RFC 7692 section 7.1.2.2.
        let limits_client = answer.is_some_and(|answer| answer.client_max_window_bits.is_some());
        if limits_client && !offered.contains("client_max_window_bits") {
            return Err(format!("{agreed:?} limits the client's window, which was not offered."));
        }
        Ok(Some(agreed))
    }
}

/// The status in a status line (RFC 9112 section 4).
fn status(line: &str) -> Option<u16> {
    let rest = line.strip_prefix("HTTP/1.")?;
    let (minor, rest) = rest.split_at_checked(1)?;
    let status = rest.strip_prefix(' ')?.get(..3)?;
    let is_ended = matches!(rest.as_bytes().get(4), None | Some(b' '));
    let digits = [minor, status].iter().all(|it| it.bytes().all(|byte| byte.is_ascii_digit()));
    let status: u16 = status.parse().ok().filter(|_| digits && is_ended)?;
    // RFC 9110 section 7.8: Upgrade is of HTTP/1.1.
    ((100..600).contains(&status) && (status != 101 || minor != "0")).then_some(status)
}

/// Name and value in a field line (RFC 9112 section 5).
fn field(line: &str) -> Option<(String, String)> {
    let (name, value) = line.split_once(':')?;
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    let is_valid =
        !name.is_empty() && name.bytes().all(is_token) && !value.contains(['\r', '\n', '\0']);
    is_valid.then(|| (name.to_owned(), value.trim_matches([' ', '\t']).to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
        sec-websocket-protocol: chat, superchat\r\n\
        Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n";
    const FIELDS: &str = "Upgrade: WebSocket\r\nconnection: keep-alive, upgrade\r\n\
        Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n";

    fn checked(fields: &str) -> Result<Option<String>, String> {
        let head = format!("HTTP/1.1 101 Switching Protocols\r\n{fields}\r\n");
        let response = Response::parse(head.as_bytes()).expect("a response").expect("whole");
        assert_eq!((response.status, response.bytes), (101, head.len()));
        response.check(REQUEST)
    }

    #[test]
    fn placeholders_are_filled_in_wherever_they_stand() {
        let connection = Connection { host: "h", target: "/t", key: "k" };
        let request = connection.request(b"GET {target} {host}{host}\xff{key}{");
        assert_eq!(request, b"GET /t hh\xffk{");
        // RFC 6455 section 1.3.
        let response = response(b"<{accept}>", " dGhlIHNhbXBsZSBub25jZQ==");
        assert_eq!(response, b"<s3pPLMBiTxaQ9kYGzzhZRbK+xOo=>");
    }

    #[test]
    fn a_response_is_read_when_it_is_whole_and_interim_ones_are_skipped() {
        let head =
            b"HTTP/1.1 100 \r\na: b\r\n\r\nHTTP/1.0 404 Not Found\r\nServer:  a \r\n\r\ncontent";
        let whole = head.len() - b"content".len();
        for end in 0..whole {
            assert_eq!(Response::parse(&head[..end]), Ok(None), "{end}");
        }
        let response = Response::parse(head).expect("a response").expect("whole");
        assert_eq!((response.status, response.bytes), (404, whole));
        assert_eq!(response.fields, [("Server".to_owned(), "a".to_owned())]);
    }

    #[test]
    fn what_is_no_response_is_noticed_at_once() {
        for wrong in [
            "HTTP/2",
            "\x15\x03\x01",
            "HTTP/1.1 200OK\r\n\r\n",
            "HTTP/1.1 20 OK\r\n\r\n",
            "HTTP/1.1  200 OK\r\n\r\n",
            "HTTP/1.1 600 OK\r\n\r\n",
            "HTTP/1.0 101 Switching Protocols\r\n\r\n",
            "HTTP/1.1 400 Bad\r\nname : value\r\n\r\n",
            "HTTP/1.1 400 Bad\r\nname\r\n\r\n",
            "HTTP/1.1 400 Bad\r\na: b\nc: d\r\n\r\n",
        ] {
            Response::parse(wrong.as_bytes()).expect_err(wrong);
        }
    }

    #[test]
    fn a_response_that_opens_a_connection_keeps_every_rule() {
        assert_eq!(checked(FIELDS), Ok(None));
        checked(&format!("{FIELDS}Sec-WebSocket-Protocol: superchat\r\n")).expect("offered");
        let agreed = checked(&format!("{FIELDS}Sec-WebSocket-Extensions: permessage-deflate\r\n"));
        assert_eq!(agreed, Ok(Some("permessage-deflate".to_owned())));
        for wrong in [
            "Sec-WebSocket-Protocol: super\r\n",
            "Sec-WebSocket-Protocol: chat\r\nSec-WebSocket-Protocol: chat\r\n",
            "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n",
            "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits=9\r\n",
            "Upgrade: h2c\r\n",
            "Content-Length: 0\r\n",
            "Transfer-Encoding: chunked\r\n",
        ] {
            checked(&format!("{FIELDS}{wrong}")).expect_err(wrong);
        }
        for missing in FIELDS.split_inclusive("\r\n") {
            checked(&FIELDS.replace(missing, "")).expect_err(missing);
        }
        checked(&FIELDS.replace("s3pP", "S3pP")).expect_err("another accept");
    }
}
