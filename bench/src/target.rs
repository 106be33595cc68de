//! What is measured: the address of a server, and what it speaks.
//!
//! A WebSocket URL is parsed strictly by RFC 3986, with the rules of RFC 6455 section 3. Whatever is
//! sent of it was checked here. This file opens no socket.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use fluent_uri::UriRef;
use fluent_uri::component::{Authority, Host};

use crate::tls::{Tls, Trust};

/// The longest path that connect(2) takes for a Unix socket, in bytes.
const UNIX_PATH_BYTES_MAX: usize = 107;
/// The forms of a target, for error messages.
const FORMS: &str = "write ws://127.0.0.1:9001/, wss://HOST:PORT/ for TLS, unix:/run/echo.sock, or \
                     tcp://127.0.0.1:9001 for plain bytes";

/// The ports of the schemes (RFC 6455 section 3).
const PORT: u16 = 80;
const PORT_TLS: u16 = 443;

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// A name or an address, and a port.
    Tcp(String),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

/// A server to measure, in the forms `ws://HOST[:PORT][/PATH][?QUERY]`, the same with `wss:` (over TLS),
/// `unix:/PATH` (WebSocket) and `tcp://HOST:PORT` (plain bytes).
#[derive(Debug, Clone)]
pub struct Target {
    /// As it was given.
    pub text: String,
    /// Where it listens.
    pub endpoint: Endpoint,
    /// The value of Host and the request target, if it speaks WebSocket; else it echoes bytes.
    pub websocket: Option<(String, String)>,
    /// TLS, if the connection is encrypted.
    pub tls: Option<Box<Tls>>,
}

impl Target {
    /// The same, with this trust in the server if the connection is encrypted.
    pub fn trusting(mut self, trust: &Trust) -> Target {
        if let Some(tls) = &mut self.tls {
            tls.trust(trust);
        }
        self
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Target {
    type Err = String;

    /// # Errors
    ///
    /// One line that says what is wrong with the text, and what to write.
    fn from_str(text: &str) -> Result<Target, String> {
        let of = |endpoint, websocket| {
            Ok(Target { text: text.to_owned(), endpoint, websocket, tls: None })
        };
        let wrong = |what: &str| Err(format!("{text:?}: {what}"));
        let Some((scheme, rest)) = text.split_once(':') else {
            return wrong(&format!("there is no scheme; {FORMS}"));
        };
        // RFC 3986 section 3.1: schemes are case-insensitive.
        match scheme.to_ascii_lowercase().as_str() {
            "ws" => match websocket(rest, PORT) {
                Ok(Url { address, host, path, .. }) => {
                    of(Endpoint::Tcp(address), Some((host, path)))
                }
                Err(what) => wrong(&what),
            },
            "wss" => {
                match websocket(rest, PORT_TLS).and_then(|url| Ok((Tls::with(&url.name)?, url))) {
                    Ok((tls, Url { address, host, path, .. })) => {
                        let target = of(Endpoint::Tcp(address), Some((host, path)));
                        target.map(|target| Target { tls: Some(Box::new(tls)), ..target })
                    }
                    Err(what) => wrong(&what),
                }
            }
            "unix" => match unix_path(rest) {
                Ok(path) => {
                    of(Endpoint::Unix(path), Some(("localhost".to_owned(), "/".to_owned())))
                }
                Err(what) => wrong(&what),
            },
            "tcp" => match plain(rest) {
                Ok(address) => of(Endpoint::Tcp(address), None),
                Err(what) => wrong(&what),
            },
            "http" => wrong("write ws:// instead of http://, such as ws://127.0.0.1:9001/"),
            "https" => wrong("write wss:// instead of https://, such as wss://localhost:9001/"),
            _ => wrong(FORMS),
        }
    }
}

/// The parts of a WebSocket's URL.
struct Url {
    /// What to connect to.
    address: String,
    /// The value of Host.
    host: String,
    /// The same without a port.
    name: String,
    /// The request target.
    path: String,
}

/// The parts of a URL of which `rest` follows `ws:` or `wss:`.
fn websocket(rest: &str, default_port: u16) -> Result<Url, String> {
    let reference = parse(rest)?;
    // RFC 6455 section 3: "Fragment identifiers are meaningless in the context of WebSocket URIs and
    // MUST NOT be used on these URIs."
    if reference.has_fragment() {
        return Err(
            "a WebSocket's URL has no fragment; write %23 for a # in path or query".to_owned()
        );
    }
    let Address { address, host, name } = address(&reference, Some(default_port))?;
    // RFC 6455 section 3: the resource name is the path, or a slash, and the query.
    let mut path = reference.path().as_str().to_owned();
    if path.is_empty() {
        path.push('/');
    }
    if let Some(query) = reference.query() {
        path.push('?');
        path.push_str(query.as_str());
    }
    Ok(Url { address, host, name, path })
}

/// The address of which `rest` follows `tcp:`.
fn plain(rest: &str) -> Result<String, String> {
    let reference = parse(rest)?;
    if !reference.path().is_empty() || reference.has_query() || reference.has_fragment() {
        return Err(
            "plain bytes have no path; write tcp://HOST:PORT and nothing after it".to_owned()
        );
    }
    Ok(address(&reference, None)?.address)
}

fn unix_path(path: &str) -> Result<PathBuf, String> {
    match path.len() {
        0 => {
            Err("write the path of the socket after unix:, such as unix:/run/echo.sock".to_owned())
        }
        1..=UNIX_PATH_BYTES_MAX if !path.contains('\0') => Ok(path.into()),
        1..=UNIX_PATH_BYTES_MAX => Err("the path of a socket has no NUL".to_owned()),
        _ => Err(format!("the path of a Unix socket has at most {UNIX_PATH_BYTES_MAX} bytes")),
    }
}

/// Parses what follows the scheme, as a reference with an authority.
fn parse(rest: &str) -> Result<UriRef<&str>, String> {
    if !rest.starts_with("//") {
        return Err(format!("two slashes follow the scheme; {FORMS}"));
    }
    let reference = UriRef::parse(rest).map_err(|_| unparsable(rest))?;
    if reference.authority().is_some_and(|authority| authority.has_userinfo()) {
        // RFC 6455 section 3 has no user information.
        return Err(
            "a WebSocket's URL has no user or password; leave out all up to the @".to_owned()
        );
    }
    Ok(reference)
}

/// What is wrong with a reference that RFC 3986 does not allow.
fn unparsable(rest: &str) -> String {
    let end = rest[2..].find(['/', '?', '#']).map_or(rest.len(), |end| end + 2);
    let (authority, path) = rest.split_at(end);
    if authority.contains('%') && authority.contains('[') {
        return "zones of IPv6 addresses are not supported; use an address without one".to_owned();
    }
    let is_allowed =
        |character: char| character.is_ascii_graphic() && !"\"<>\\^`{|}".contains(character);
    if let Some(character) = authority.chars().find(|&character| !is_allowed(character)) {
        let what = format!("a host cannot hold {character:?}");
        return if character.is_ascii() {
            what
        } else {
            format!("{what}; write the name in its ASCII form, which begins with xn--")
        };
    }
    let is_in_path = |character: char| is_allowed(character) && !"[]".contains(character);
    if let Some(character) = path.chars().find(|&character| !is_in_path(character)) {
        let mut bytes = [0; 4];
        let encoded: String =
            character.encode_utf8(&mut bytes).bytes().map(|byte| format!("%{byte:02X}")).collect();
        return format!("a URL cannot hold {character:?}; write {encoded}");
    }
    if authority.contains('%') {
        return "the name of a host is not percent-encoded; write it in its ASCII form".to_owned();
    }
    if path.contains('%') {
        return "two hexadecimal digits follow each %; write %25 for a % itself".to_owned();
    }
    format!("this is no URL by RFC 3986; {FORMS}")
}

/// An authority of a URL.
struct Address {
    /// What to connect to.
    address: String,
    /// The value of Host: without the port, if that is the default (RFC 6455 section 4.1, item 4 of the
    /// request).
    host: String,
    /// The host alone.
    name: String,
}

fn address(reference: &UriRef<&str>, default_port: Option<u16>) -> Result<Address, String> {
    let Some(authority) = reference.authority() else {
        return Err(format!("a host follows the slashes; {FORMS}"));
    };
    let name = host(&authority)?.to_owned();
    let port = match (authority.port_to_u16(), default_port) {
        (Ok(Some(port)), _) if port > 0 => port,
        (Ok(None), Some(port)) => port,
        (Ok(None), None) => return Err("a port follows the host, such as :9001".to_owned()),
        (Ok(Some(_)) | Err(_), _) => return Err("a port is a number from 1 to 65535".to_owned()),
    };
    let address = format!("{name}:{port}");
    let is_default = Some(port) == default_port;
    let host = if is_default { name.clone() } else { address.clone() };
    Ok(Address { address, host, name })
}

fn host<'a>(authority: &Authority<'a>) -> Result<&'a str, String> {
    match authority.host_parsed() {
        Host::RegName(name) if name.is_empty() => {
            Err(format!("a host follows the slashes; {FORMS}"))
        }
        // The grammar allows it, but no resolver decodes it.
        Host::RegName(name) if name.as_str().contains('%') => {
            Err("the name of a host is not percent-encoded; write it in its ASCII form".to_owned())
        }
        Host::IpvFuture { .. } => {
            Err("the host is an address of no known version of IP".to_owned())
        }
        _ => Ok(authority.host()),
    }
}

#[cfg(test)]
mod tests {
    use ringecho::protocol::uri;

    use super::*;

    #[test]
    fn the_forms_of_a_target() {
        for (text, address, host, path) in [
            ("ws://127.0.0.1:9001", "127.0.0.1:9001", "127.0.0.1:9001", "/"),
            ("WS://localhost/echo?a=b", "localhost:80", "localhost", "/echo?a=b"),
            ("ws://localhost:80/", "localhost:80", "localhost", "/"),
            ("ws://localhost:/", "localhost:80", "localhost", "/"),
            ("ws://[::1]:9001/", "[::1]:9001", "[::1]:9001", "/"),
            ("ws://[::1]", "[::1]:80", "[::1]", "/"),
            ("ws://host?query", "host:80", "host", "/?query"),
            ("ws://host//a/../%20?/?:@", "host:80", "host", "//a/../%20?/?:@"),
            (
                "ws://xn--mnchen-3ya.example:65535/",
                "xn--mnchen-3ya.example:65535",
                "xn--mnchen-3ya.example:65535",
                "/",
            ),
        ] {
            let target: Target = text.parse().expect(text);
            assert_eq!(target.endpoint, Endpoint::Tcp(address.into()), "{text}");
            assert_eq!(target.websocket, Some((host.into(), path.into())), "{text}");
            assert_eq!(target.to_string(), text);
            // What the handshake demands of both.
            assert!(uri::is_host_and_port(host) && uri::is_path_and_query(path), "{text}");
        }
        for (text, address, host) in [
            ("wss://localhost/", "localhost:443", "localhost"),
            ("WSS://localhost:443/", "localhost:443", "localhost"),
            ("wss://localhost:80/", "localhost:80", "localhost:80"),
            ("wss://[::1]:9001/", "[::1]:9001", "[::1]:9001"),
            ("wss://127.0.0.1", "127.0.0.1:443", "127.0.0.1"),
        ] {
            let target: Target = text.parse().expect(text);
            assert_eq!(target.endpoint, Endpoint::Tcp(address.into()), "{text}");
            assert_eq!(target.websocket, Some((host.into(), "/".into())), "{text}");
            assert!(target.tls.is_some(), "{text}");
        }
        let unix: Target = "unix:/a/b".parse().expect("a path");
        assert_eq!(unix.endpoint, Endpoint::Unix("/a/b".into()));
        assert_eq!(unix.websocket, Some(("localhost".into(), "/".into())));
        for (text, address) in
            [("tcp://127.0.0.1:9001", "127.0.0.1:9001"), ("TCP://[::1]:80", "[::1]:80")]
        {
            let plain: Target = text.parse().expect(text);
            assert_eq!((plain.endpoint, plain.websocket), (Endpoint::Tcp(address.into()), None));
        }
    }

    #[test]
    fn what_is_no_target_is_said_with_what_to_write() {
        let long = format!("unix:/{}", "a".repeat(107));
        for (text, hint) in [
            ("", "ws://127.0.0.1:9001/"),
            ("9001", "ws://127.0.0.1:9001/"),
            ("localhost:9001", "ws://127.0.0.1:9001/"),
            ("ftp://a", "ws://127.0.0.1:9001/"),
            ("ws:", "ws://127.0.0.1:9001/"),
            ("ws:/a", "ws://127.0.0.1:9001/"),
            ("ws:a", "ws://127.0.0.1:9001/"),
            ("ws://", "ws://127.0.0.1:9001/"),
            ("ws:///path", "ws://127.0.0.1:9001/"),
            ("ws://:9001/", "ws://127.0.0.1:9001/"),
            ("ws://[::1/", "ws://127.0.0.1:9001/"),
            ("ws://::1/", "ws://127.0.0.1:9001/"),
            ("ws://a:0", "1 to 65535"),
            ("ws://a:65536", "1 to 65535"),
            ("ws://a:b", "ws://127.0.0.1:9001/"),
            ("ws://a:-1", "ws://127.0.0.1:9001/"),
            ("ws://a/#b", "fragment"),
            ("ws://a#", "fragment"),
            ("ws://user@a/", "user"),
            ("ws://user:password@a/", "user"),
            ("ws://[fe80::1%25lo]:9001/", "zone"),
            ("ws://[fe80::1%lo]:9001/", "zone"),
            ("ws://[v7.a]/", "IP"),
            ("ws://a%20b/", "ASCII form"),
            ("ws://a%/", "ASCII form"),
            ("ws://m\u{fc}nchen.example/", "xn--"),
            ("ws://a b/", "' '"),
            ("ws://a/b c", "%20"),
            ("ws://a/\u{fc}", "%C3%BC"),
            ("ws://a/b\r\nX: y", "%0D"),
            ("ws://a/?\n", "%0A"),
            ("ws://a\r\nX: y/", "'\\r'"),
            ("ws://a/\0", "%00"),
            ("ws://a/\u{7f}", "%7F"),
            ("ws://a/\t", "%09"),
            ("ws://a/<b>", "%3C"),
            ("ws://a/[b]", "%5B"),
            ("ws://a/b|c", "%7C"),
            ("ws://a\\b", "'\\\\'"),
            ("ws://a/%zz", "%25"),
            ("ws://a/%", "%25"),
            ("wss:a", "ws://127.0.0.1:9001/"),
            ("wss://a_b-/", "name of the DNS"),
            ("wss://a/#b", "fragment"),
            ("https://a", "wss://"),
            ("http://a/", "ws://"),
            ("unix:", "unix:/run"),
            ("unix:/a\0b", "NUL"),
            (&long, "107"),
            ("tcp://a", ":9001"),
            ("tcp://a:0", "1 to 65535"),
            ("tcp://a:1/", "tcp://HOST:PORT"),
            ("tcp://a:1?b", "tcp://HOST:PORT"),
            ("tcp://:1", "host"),
            ("tcp:a:1", "two slashes"),
            (" ws://a", "ws://127.0.0.1:9001/"),
        ] {
            let error = text.parse::<Target>().expect_err(text);
            assert!(error.contains(hint), "{error}");
            assert!(!error.contains(char::is_control), "{error:?}");
        }
    }
}
