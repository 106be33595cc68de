//! What is measured: a server's address, and what it speaks.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// A name or an address, and a port.
    Tcp(String),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

/// A server to measure, in the forms `ws://HOST[:PORT][/PATH]`, `unix:/PATH` (WebSocket) and
/// `tcp://HOST:PORT` (plain octets).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// As it was given.
    pub text: String,
    /// Where it listens.
    pub endpoint: Endpoint,
    /// The value of Host and the path asked for, where it speaks WebSocket; else it echoes octets.
    pub websocket: Option<(String, String)>,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Target, String> {
        let wrong = || {
            format!(
                "{text:?} is no target; write ws://127.0.0.1:9001/, unix:/run/echo.sock, or \
                 tcp://127.0.0.1:9001 for plain octets"
            )
        };
        let of = |endpoint, websocket| Ok(Target { text: text.to_owned(), endpoint, websocket });
        if let Some(rest) = text.strip_prefix("ws://") {
            let (authority, path) = match rest.find(['/', '?']) {
                Some(at) => rest.split_at(at),
                None => (rest, "/"),
            };
            // RFC 6455 section 3: the fragment is no part of it, and the path begins with a slash.
            if authority.is_empty() || rest.contains(['#', ' ']) {
                return Err(wrong());
            }
            let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| !port.ends_with(']'));
            let address = if has_port { authority.to_owned() } else { format!("{authority}:80") };
            check_port(&address).ok_or_else(wrong)?;
            let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
            return of(Endpoint::Tcp(address), Some((authority.to_owned(), path)));
        }
        if text.starts_with("wss://") {
            return Err(format!("{text:?}: TLS is not supported; measure ws:// behind it"));
        }
        if let Some(path) = text.strip_prefix("unix:").filter(|path| !path.is_empty()) {
            let websocket = Some(("localhost".to_owned(), "/".to_owned()));
            return of(Endpoint::Unix(path.into()), websocket);
        }
        if let Some(address) = text.strip_prefix("tcp://") {
            check_port(address).ok_or_else(wrong)?;
            return of(Endpoint::Tcp(address.to_owned()), None);
        }
        Err(wrong())
    }
}

fn check_port(address: &str) -> Option<u16> {
    let (host, port) = address.rsplit_once(':')?;
    port.parse().ok().filter(|&port| port > 0 && !host.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_forms_of_a_target() {
        for (text, address, host, path) in [
            ("ws://127.0.0.1:9001", "127.0.0.1:9001", "127.0.0.1:9001", "/"),
            ("ws://localhost/echo?a=b", "localhost:80", "localhost", "/echo?a=b"),
            ("ws://[::1]:9001/", "[::1]:9001", "[::1]:9001", "/"),
            ("ws://[::1]", "[::1]:80", "[::1]", "/"),
            ("ws://host?query", "host:80", "host", "/?query"),
        ] {
            let target: Target = text.parse().expect(text);
            assert_eq!(target.endpoint, Endpoint::Tcp(address.into()), "{text}");
            assert_eq!(target.websocket, Some((host.into(), path.into())), "{text}");
            assert_eq!(target.to_string(), text);
        }
        let unix: Target = "unix:/a/b".parse().expect("a path");
        assert_eq!(unix.endpoint, Endpoint::Unix("/a/b".into()));
        let plain: Target = "tcp://127.0.0.1:9001".parse().expect("an address");
        assert_eq!(
            (plain.endpoint, plain.websocket),
            (Endpoint::Tcp("127.0.0.1:9001".into()), None)
        );
    }

    #[test]
    fn what_is_no_target_is_told() {
        for text in [
            "",
            "9001",
            "ws://",
            "ws://a:0",
            "ws://a:b",
            "ws://a/#b",
            "unix:",
            "tcp://a",
            "http://a",
        ] {
            let error = text.parse::<Target>().expect_err(text);
            assert!(error.contains("ws://127.0.0.1:9001/"), "{error}");
        }
        assert!("wss://a".parse::<Target>().expect_err("TLS").contains("TLS"));
    }
}
