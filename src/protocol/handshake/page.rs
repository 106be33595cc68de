//! The page that a browser gets which opens no WebSocket: the request for it, and the response (RFC 9110).

use std::fmt;

use super::request::Head;
use super::{HEADERS_MAX, Rejection};
use crate::protocol::fields;

/// A page at `/`, with the responses that serve it. [`crate::page::page`] makes it.
#[derive(Clone, PartialEq, Eq)]
pub struct Page {
    /// An opaque name of the content, quoted (RFC 9110 section 8.8.3).
    etag: String,
    /// The head of the response with the content.
    head: Vec<u8>,
    content: String,
    /// The response to a client that has the content already (section 15.4.5).
    unchanged: Vec<u8>,
}

impl Page {
    /// A page of HTML in UTF-8. `digest` names the content: letters and digits that change with it. `policy` is the
    /// value of Content-Security-Policy.
    pub fn new(content: String, digest: &str, policy: &str) -> Page {
        let etag = format!("\"{digest}\"");
        // Isolated from pages of other origins, a browser lets a page have its finest clock.
        let common = format!(
            "ETag: {etag}\r\nCache-Control: no-cache\r\nContent-Security-Policy: {policy}\r\n\
             Cross-Origin-Opener-Policy: same-origin\r\nCross-Origin-Embedder-Policy: require-corp\r\n\
             Cross-Origin-Resource-Policy: same-origin\r\nReferrer-Policy: no-referrer\r\n\
             X-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n"
        );
        let length = content.len();
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: {length}\r\n{common}"
        );
        let unchanged = format!("HTTP/1.1 304 Not Modified\r\n{common}");
        Page { etag, head: head.into(), content, unchanged: unchanged.into() }
    }

    /// The response to a request that was refused, in two parts, if what it asked for was this page.
    pub(in crate::protocol) fn response_to(
        &self,
        request: &[u8],
        rejection: Rejection,
    ) -> Option<[&[u8]; 2]> {
        // What a whole request for a page is refused for.
        match rejection {
            Rejection::UpgradeMissing | Rejection::MethodHead | Rejection::PathUnknown => {}
            _ => return None,
        }
        let mut fields = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let head = Head::read(request, &mut fields).ok()??;
        if !head.is_for_page() {
            return None;
        }
        let has_it = |tag: &[u8]| {
            tag == b"*" || tag.strip_prefix(b"W/").unwrap_or(tag) == self.etag.as_bytes()
        };
        let is_known = fields::elements(head.fields, "If-None-Match").any(has_it);
        Some(match (is_known, head.is_get()) {
            (true, _) => [&self.unchanged, b""],
            (false, true) => [&self.head, self.content.as_bytes()],
            // Section 9.3.2: the response to HEAD has the fields, but no content.
            (false, false) => [&self.head, b""],
        })
    }
}

impl fmt::Debug for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Page").field("etag", &self.etag).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::handshake::{Access, Admission, Subprotocol, Terms, answer};
    use crate::protocol::pool::Budget;
    use crate::protocol::{Policy, RequestPath};

    const CONTENT: &str = "<!doctype html><title>é</title>";

    /// What a server with this access answers, as text; empty if it opens a WebSocket.
    fn answered(request: &str, access: &Access) -> String {
        let terms = Terms {
            policy: Policy::Off,
            subprotocol: &Subprotocol::Any,
            access,
            recompression: &Budget::new(0),
        };
        let rejection = match answer(request.as_bytes(), Admission::Open, &terms) {
            Ok(accepted) => return accepted.map_or("more".into(), |_| String::new()),
            Err(rejection) => rejection,
        };
        let page = Page::new(CONTENT.into(), "abc", "default-src 'none'");
        let response = page.response_to(request.as_bytes(), rejection);
        String::from_utf8(response.map_or(rejection.response(), |parts| parts.concat()))
            .expect("text")
    }

    fn get(fields: &str) -> String {
        format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n")
    }

    #[test]
    fn a_browser_gets_the_page_and_not_again_what_it_has() {
        let access = Access::default();
        let page = answered(&get(""), &access);
        let (head, content) = page.split_once("\r\n\r\n").expect("a head");
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(head.contains(&format!("\r\nContent-Length: {}\r\n", CONTENT.len())), "{head}");
        assert!(
            head.contains("\r\nETag: \"abc\"\r\n") && head.contains("default-src 'none'"),
            "{head}"
        );
        assert_eq!(content, CONTENT);
        for tags in ["\"abc\"", "W/\"abc\"", "\"x\", \"abc\"", "*"] {
            let unchanged = answered(&get(&format!("If-None-Match: {tags}\r\n")), &access);
            let end = unchanged.strip_prefix("HTTP/1.1 304 Not Modified\r\n").expect("its status");
            assert!(end.contains("ETag: \"abc\"") && end.ends_with("close\r\n\r\n"), "{end}");
        }
        assert_eq!(answered(&get("If-None-Match: \"abcd\"\r\n"), &access), page);
        let only_head = answered(&get("").replace("GET", "HEAD"), &access);
        assert_eq!(only_head, format!("{head}\r\n\r\n"));
    }

    #[test]
    fn the_page_stands_at_the_root_whatever_path_is_served() {
        let access = Access {
            path: Some("/echo".parse::<RequestPath>().expect("a path")),
            ..Access::default()
        };
        assert!(answered(&get(""), &access).contains(CONTENT));
        assert!(answered(&get("").replace("/ ", "/?a=b "), &access).contains(CONTENT));
        assert!(answered(&get("").replace("/ ", "http://a/ "), &access).contains(CONTENT));
        assert!(answered(&get("").replace("/ ", "/page "), &access).contains("404"));
        assert!(answered(&get("").replace("/ ", "/page "), &Access::default()).contains("426"));
    }

    #[test]
    fn a_handshake_that_is_wrong_gets_no_page() {
        let handshake = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                         Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n";
        let access = Access::default();
        assert_eq!(answered(&get(handshake), &access), "");
        for line in handshake.split_inclusive("\r\n") {
            let rest = handshake.replace(line, "");
            assert!(answered(&get(&rest), &access).contains("HTTP/1.1 4"), "{rest}");
        }
        for (wrong, status) in [
            (get("Content-Length: 3\r\n"), 400),
            (get("").replace("Host: a", "X: y"), 400),
            (get("").replace("1.1", "1.0"), 505),
            (get("").replace("GET", "POST"), 405),
            (get("").replace("GET", "HEAD").replace("Host: a", "X: y"), 405),
            (get("").replace("GET", "HEAD").replace("1.1", "1.0"), 405),
        ] {
            let answer = answered(&wrong, &access);
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{wrong}{answer}");
        }
    }
}
