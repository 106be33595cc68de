//! The parts of a URI that a handshake holds (RFC 3986), for either role.

use fluent_uri::pct_enc::EStr;
use fluent_uri::pct_enc::encoder::{Path, Query};
use fluent_uri::{Uri, UriRef};

/// What browsers write unencoded in a path, although RFC 3986 wants it encoded: the printable characters
/// that the URL Standard leaves out of its path percent-encode set (section 1.3), and `^`, which was added
/// to the set only later.
const BROWSERS_PATH: [char; 4] = ['[', ']', '|', '^'];
/// The same in a query.
const BROWSERS_QUERY: [char; 8] = ['[', ']', '|', '^', '\\', '`', '{', '}'];

/// Whether `byte` may occur in a request target: a reserved or an unreserved character of
/// RFC 3986 (sections 2.1 to 2.3) except `#`, the percent sign of an encoded one, or what browsers write.
pub(super) fn is_of_target(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || b"-._~:/?@!$&'()*+,;=%".contains(&byte)
        || BROWSERS_QUERY.contains(&char::from(byte))
}

/// Whether `text` is a path that begins with a slash, and maybe a query: the origin form of RFC 9112
/// section 3.2.1.
pub fn is_path_and_query(text: &str) -> bool {
    let (path, query) = match text.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (text, None),
    };
    path.starts_with('/')
        && EStr::<Path>::new(path).is_some()
        && query.is_none_or(|query| EStr::<Query>::new(query).is_some())
}

/// Whether `text` is the origin form of a request target, or would be if the characters that browsers
/// leave as they are were encoded. The server does not use the target, so accepting these is harmless.
pub(super) fn is_origin_form(text: &str) -> bool {
    let as_encoded = || {
        let (path, query) = text.split_once('?').unwrap_or((text, ""));
        let query = query.replace(BROWSERS_QUERY, "-");
        format!("{}?{query}", path.replace(BROWSERS_PATH, "-"))
    };
    is_path_and_query(text) || is_path_and_query(&as_encoded())
}

/// Whether `text` is a host that is not empty, and maybe a port: a value of Host (RFC 9110 section 7.2).
pub fn is_host_and_port(text: &str) -> bool {
    // A reference without a scheme, so that only the authority is parsed.
    let reference = format!("//{text}");
    UriRef::parse(reference.as_str()).is_ok_and(|reference| {
        let authority = reference.authority();
        authority.is_some_and(|authority| {
            authority.as_str() == text
                && !authority.has_userinfo()
                && !authority.host().is_empty()
                && authority.port_to_u16().is_ok()
        })
    })
}

/// Whether `text` is the URI of a WebSocket or of a page, with a host and without user information, as
/// the absolute form of a request target may be (RFC 9112 section 3.2.2, RFC 9110 sections 4.2.1 and
/// 4.2.4, RFC 6455 section 3).
pub(super) fn is_absolute(text: &str) -> bool {
    Uri::parse(text).is_ok_and(|uri| {
        let scheme = uri.scheme().as_str();
        ["http", "https", "ws", "wss"].iter().any(|known| scheme.eq_ignore_ascii_case(known))
            && !uri.has_fragment()
            && uri.authority().is_some_and(|authority| is_host_and_port(authority.as_str()))
    })
}

/// The path of a request target in origin form or in absolute form, in which an empty one stands for `/`
/// (RFC 9112 section 3.2.1).
pub(super) fn path_of(target: &[u8]) -> &[u8] {
    let path = match target.windows(3).position(|window| window == b"://") {
        Some(at) if !target.starts_with(b"/") => {
            let rest = &target[at + 3..];
            let end = rest.iter().position(|byte| b"/?".contains(byte)).unwrap_or(rest.len());
            &rest[end..]
        }
        Some(_) | None => target,
    };
    let end = path.iter().position(|&byte| byte == b'?').unwrap_or(path.len());
    if end == 0 { b"/" } else { &path[..end] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_a_path_and_a_query() {
        for right in
            ["/", "/echo", "//", "/a//b", "/?", "/a?b=c&d=/?", "/%20%7f", "/~!$&'()*+,;=:@-._"]
        {
            assert!(is_path_and_query(right), "{right}");
        }
        for wrong in [
            "", "*", "a", "?a", "host:80", "/%", "/%2", "/%zz", "/?%", "/a b", "/a#b", "/é",
            "/a\\b", "/[", "/|",
        ] {
            assert!(!is_path_and_query(wrong), "{wrong}");
        }
    }

    #[test]
    fn what_browsers_leave_as_it_is_may_stand_in_a_target() {
        for right in
            ["/", "/?a[]=1", "/a|b^[c]?d", "/?{\"a\":1}".replace('"', "%22").as_str(), "/?\\`|^"]
        {
            assert!(is_origin_form(right), "{right}");
            assert!(right.bytes().all(is_of_target), "{right}");
        }
        for wrong in [
            "", "*", "[", "/{a}", "/a\\b", "/`", "/?a b", "/?\"", "/?<", "/?>", "/?[%", "/#", "/?#",
        ] {
            assert!(!is_origin_form(wrong), "{wrong}");
        }
        for wrong in b"\" #<>\x00\x1f\x7f\x80\xff" {
            assert!(!is_of_target(*wrong), "{wrong}");
        }
    }

    #[test]
    fn what_is_a_host_and_a_port() {
        for right in [
            "a",
            "a:",
            "a:1",
            "example.com:65535",
            "127.0.0.1:9001",
            "[::1]",
            "[::1]:80",
            "[v1.x]",
            "a%20",
        ] {
            assert!(is_host_and_port(right), "{right}");
        }
        for wrong in [
            "",
            ":",
            ":80",
            "a:b",
            "a:65536",
            "a:-1",
            "u@a",
            "@a",
            "a/",
            "a?b",
            "a#b",
            "a b",
            "é",
            "[",
            "[::1",
            "::1",
            "[::1]a",
            "[1]",
            "[fe80::1%25eth0]",
            "a%",
            "a,b:c",
            "a\\b",
            "<a>",
        ] {
            assert!(!is_host_and_port(wrong), "{wrong}");
        }
    }

    #[test]
    fn what_is_an_absolute_target() {
        for right in ["http://a/", "HTTP://a", "https://a:1?b", "ws://[::1]:9001/a?b", "WSS://a"] {
            assert!(is_absolute(right), "{right}");
        }
        for wrong in [
            "/",
            "a:80",
            "http:",
            "http:/",
            "http:///",
            "http://",
            "http://:80/",
            "http://u@a/",
            "http://a:b/",
            "http://a/#b",
            "ftp://a/",
            "ws:a",
            "http://a/%",
        ] {
            assert!(!is_absolute(wrong), "{wrong}");
        }
    }
}
