//! Which requests a server accepts: by their path, and by the origin of the page that makes them.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use httparse::Header;

use super::page::Page;
use super::rejection::Rejection;
use crate::protocol::fields::values;
use crate::protocol::uri;

/// The longest origin, in bytes.
const ORIGIN_BYTES_MAX: usize = 512;

/// Which requests are accepted. By default, all are, and there is no page.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Access {
    /// The origins of pages that may connect; any, if this is empty. All browsers send an Origin field, and
    /// hardly anybody else does, so a request without one is accepted (RFC 6455 sections 4.2.1 and 10.2).
    pub origins: Vec<Origin>,
    /// The only path that is served, if there is one.
    pub path: Option<RequestPath>,
    /// What browsers get that open no WebSocket.
    pub page: Option<Arc<Page>>,
}

impl Access {
    /// Checks the path of a request, whatever else is wrong with it.
    pub(super) fn check_path(&self, target: &[u8]) -> Result<(), Rejection> {
        match &self.path {
            Some(RequestPath(path)) if uri::path_of(target) != path.as_bytes() => {
                Err(Rejection::PathUnknown)
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Checks the origin of a request.
    pub(super) fn check_origin(&self, fields: &[Header<'_>]) -> Result<(), Rejection> {
        let is_allowed = |value: &[u8]| {
            self.origins.iter().any(|Origin(origin)| value.eq_ignore_ascii_case(origin.as_bytes()))
        };
        if !self.origins.is_empty() && !values(fields, "Origin").all(is_allowed) {
            return Err(Rejection::OriginForbidden);
        }
        Ok(())
    }
}

/// The origin of a page, as browsers write it: `scheme://host` in lower case, with a port unless it is the
/// default of the scheme; or `null`, where the browser does not tell it (RFC 6454 sections 6 and 7).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin(String);

/// Text that is not an origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OriginInvalid;

impl fmt::Display for OriginInvalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("write a scheme and a host, such as https://example.com, with a port if it has one, or null")
    }
}

impl std::error::Error for OriginInvalid {}

impl FromStr for Origin {
    type Err = OriginInvalid;

    fn from_str(text: &str) -> Result<Origin, OriginInvalid> {
        if text == "null" {
            return Ok(Origin(text.into()));
        }
        let text = text.strip_suffix('/').unwrap_or(text).to_ascii_lowercase();
        let (scheme, authority) = text.split_once("://").ok_or(OriginInvalid)?;
        let is_scheme = scheme.starts_with(|first: char| first.is_ascii_lowercase())
            && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
        if !is_scheme || !uri::is_host_and_port(authority) || text.len() > ORIGIN_BYTES_MAX {
            return Err(OriginInvalid);
        }
        let own_port = match scheme {
            "http" => ":80",
            "https" => ":443",
            _ => "",
        };
        let authority = authority.strip_suffix(own_port).unwrap_or(authority);
        Ok(Origin(format!("{scheme}://{}", authority.strip_suffix(':').unwrap_or(authority))))
    }
}

/// The path of a request target, without a query. It is compared byte by byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestPath(String);

impl RequestPath {
    /// The path as it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Text that is not a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathInvalid;

impl fmt::Display for PathInvalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("write a path that begins with a slash, without a query, such as /echo")
    }
}

impl std::error::Error for PathInvalid {}

impl FromStr for RequestPath {
    type Err = PathInvalid;

    fn from_str(text: &str) -> Result<RequestPath, PathInvalid> {
        let is_path = uri::is_path_and_query(text) && !text.contains('?');
        if is_path { Ok(RequestPath(text.into())) } else { Err(PathInvalid) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_origins(access: &Access, origins: &[&str]) -> Result<(), Rejection> {
        let field = |value| Header { name: "origin", value };
        let fields: Vec<Header<'_>> = origins.iter().map(|it| field(it.as_bytes())).collect();
        access.check_origin(&fields)
    }

    #[test]
    fn origins_are_written_as_browsers_write_them() {
        for (text, origin) in [
            ("null", "null"),
            ("https://example.com", "https://example.com"),
            ("https://Example.com/", "https://example.com"),
            ("https://example.com:443", "https://example.com"),
            ("http://example.com:80", "http://example.com"),
            ("http://example.com:443", "http://example.com:443"),
            ("http://[::1]:9001", "http://[::1]:9001"),
            ("http://example.com:", "http://example.com"),
            ("chrome-extension://abcdef", "chrome-extension://abcdef"),
        ] {
            assert_eq!(text.parse(), Ok(Origin(origin.into())), "{text}");
        }
        for text in [
            "",
            "*",
            "example.com",
            "NULL",
            "://a",
            "1http://a",
            "http://",
            "http://a/b",
            "http://a?b",
            "http://u@a",
            "http://a b",
            "https://a, https://b",
            "http://é",
        ] {
            assert_eq!(text.parse::<Origin>(), Err(OriginInvalid), "{text}");
        }
    }

    #[test]
    fn paths_begin_with_a_slash_and_have_no_query() {
        for text in ["/", "/echo", "/a/b%20c"] {
            assert_eq!(text.parse(), Ok(RequestPath(text.into())));
        }
        for text in ["", "echo", "/a?", "/a?b", "/a#b", "/a b", "/%"] {
            assert_eq!(text.parse::<RequestPath>(), Err(PathInvalid), "{text}");
        }
    }

    #[test]
    fn by_default_every_request_is_accepted() {
        let access = Access::default();
        assert_eq!(access.check_path(b"/any?thing"), Ok(()));
        assert_eq!(check_origins(&access, &["https://a", "nonsense"]), Ok(()));
    }

    #[test]
    fn only_the_path_is_compared() {
        let access = Access { path: Some("/echo".parse().expect("a path")), ..Access::default() };
        for target in ["/echo", "/echo?", "/echo?a=/b", "ws://host/echo", "HTTP://host:1/echo?a"] {
            assert_eq!(access.check_path(target.as_bytes()), Ok(()), "{target}");
        }
        for target in ["/", "/echo/", "/Echo", "/ech", "/a?/echo", "ws://host", "ws://host?/echo"] {
            let checked = access.check_path(target.as_bytes());
            assert_eq!(checked, Err(Rejection::PathUnknown), "{target}");
        }
        let root = Access { path: Some("/".parse().expect("a path")), ..Access::default() };
        for target in ["/", "/?a", "ws://host", "ws://host?a=/b/"] {
            assert_eq!(root.check_path(target.as_bytes()), Ok(()), "{target}");
        }
    }

    #[test]
    fn pages_of_other_origins_are_refused() {
        let origin = |text: &str| text.parse::<Origin>().expect("an origin");
        let origins = vec![origin("https://example.com"), origin("null")];
        let access = Access { origins, ..Access::default() };
        let none: &[&str] = &[];
        for sent in [none, &["https://example.com"], &["HTTPS://EXAMPLE.COM"], &["null"]] {
            assert_eq!(check_origins(&access, sent), Ok(()), "{sent:?}");
        }
        for sent in [
            &["https://example.com:444"][..],
            &["http://example.com"],
            &["https://example.com.evil.org"],
            &["https://example.com", "https://evil.org"],
            &["https://example.com https://evil.org"],
            &[""],
        ] {
            assert_eq!(check_origins(&access, sent), Err(Rejection::OriginForbidden), "{sent:?}");
        }
    }
}
