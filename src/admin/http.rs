//! HTTP as the admin listener speaks it: a request head in, a response out.
//!
//! Every answer ends its connection, so there is one request on each, and it has no content. This file has no
//! socket and no clock, so answers have no `Date` (RFC 9110 section 6.6.1), and does not know what can be asked for.

use httparse::{EMPTY_HEADER, Status};

/// The most bytes of a request's head.
pub const HEAD_BYTES_MAX: usize = 8 << 10;
/// The most header fields of a request.
pub const FIELDS_MAX: usize = 64;

/// What a request wants to have done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
    /// The content is sent.
    Get,
    /// Everything but the content is sent.
    Head,
}

/// A request that can be answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Request {
    /// What is wanted.
    pub(super) method: Method,
    /// The path of the target, without its query.
    pub(super) path: String,
    /// The values of all `Accept` fields, joined with commas; empty if there are none.
    pub(super) accept: String,
}

/// What became of a request's head.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// More bytes are needed.
    Partial,
    /// It is complete.
    Whole(Request),
    /// It is refused.
    Refused(Response),
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Response {
    status: u16,
    content_type: &'static str,
    /// A field of its own, as a line.
    field: &'static str,
    content: String,
}

/// The type of what is written for people.
pub(super) const PLAIN: &str = "text/plain; charset=utf-8";

impl Response {
    /// Content with status 200.
    pub(super) fn content(content_type: &'static str, content: String) -> Response {
        Response { status: 200, content_type, field: "", content }
    }

    /// A sentence with this status.
    pub(super) fn told(status: u16, sentence: &str) -> Response {
        let content = format!("{sentence}\n");
        Response { status, content_type: PLAIN, field: "", content }
    }

    /// The bytes of the answer to a request with this method, if it could be read.
    pub(super) fn encode(&self, method: Method) -> Vec<u8> {
        let Response { status, content_type, field, content } = self;
        let reason = match status {
            200 => "OK",
            400 => "Bad Request",
            404 => "Not Found",
            405 => "Method Not Allowed",
            408 => "Request Timeout",
            431 => "Request Header Fields Too Large",
            503 => "Service Unavailable",
            _ => "",
        };
        let length = content.len();
        let mut bytes = format!(
            "HTTP/1.1 {status} {reason}\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\n\
             {field}Cache-Control: no-store\r\n\
             X-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n"
        )
        .into_bytes();
        if method == Method::Get {
            bytes.extend_from_slice(content.as_bytes());
        }
        bytes
    }
}

fn refused(status: u16, sentence: &str) -> Progress {
    Progress::Refused(Response::told(status, sentence))
}

/// Reads the head of a request from what was received so far.
pub(super) fn parse(received: &[u8]) -> Progress {
    let mut fields = [EMPTY_HEADER; FIELDS_MAX];
    let mut head = httparse::Request::new(&mut fields);
    match head.parse(received) {
        Ok(Status::Complete(bytes)) if bytes <= HEAD_BYTES_MAX => {}
        Ok(Status::Partial) if received.len() < HEAD_BYTES_MAX => return Progress::Partial,
        Ok(Status::Complete(_) | Status::Partial) => {
            return refused(431, "The head of the request is too long.");
        }
        Err(httparse::Error::TooManyHeaders) => {
            return refused(431, "The request has too many header fields.");
        }
        Err(error) => return refused(400, &format!("The request is malformed: {error}.")),
    }
    let is = |name: &str, field: &httparse::Header<'_>| field.name.eq_ignore_ascii_case(name);
    let named = |name: &'static str| head.headers.iter().filter(move |field| is(name, field));
    // RFC 9112 section 3.2.
    let hosts = named("host").count();
    if hosts > 1 || (head.version == Some(1) && hosts == 0) {
        return refused(400, "The request needs one Host field.");
    }
    let has_content = named("content-length").any(|field| field.value.trim_ascii() != b"0")
        || named("transfer-encoding").next().is_some();
    let method = match head.method {
        Some("GET") => Method::Get,
        Some("HEAD") => Method::Head,
        _ => {
            let told = Response::told(405, "Only GET and HEAD are answered.");
            return Progress::Refused(Response { field: "Allow: GET, HEAD\r\n", ..told });
        }
    };
    if has_content {
        return refused(400, "The request must have no content.");
    }
    let Some(path) = head.path.and_then(path_of) else {
        return refused(400, "The target of the request must be a path.");
    };
    let accept = named("accept").map(|field| String::from_utf8_lossy(field.value));
    let accept = accept.collect::<Vec<_>>().join(",");
    Progress::Whole(Request { method, path: path.to_owned(), accept })
}

/// The path of a target in origin form or in absolute form (RFC 9112 section 3.2), without its query.
fn path_of(target: &str) -> Option<&str> {
    let target = match target.split_once("://") {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => {
            &rest[rest.find(['/', '?']).unwrap_or(rest.len())..]
        }
        _ => target,
    };
    let path = target.split(['?', '#']).next().unwrap_or_default();
    match path {
        "" => Some("/").filter(|_| !target.starts_with('#')),
        path => Some(path).filter(|path| path.starts_with('/')),
    }
}

/// The one of the offered media types that `accept` prefers (RFC 9110 section 12.5.1), each offered with a version
/// that it may be asked for in. The first is the default, also if nothing offered is accepted.
pub(super) fn preferred<'a>(accept: &str, offered: &[(&'a str, &'a str)]) -> &'a str {
    let mut best = (0, offered[0].0);
    for (name, version) in offered {
        let weight = accept.split(',').filter_map(|range| weight(range, name, version)).max();
        // The more exact of two ranges decides, and among equals the one that was offered first.
        if let Some((_, weight)) = weight
            && weight > best.0
        {
            best = (weight, name);
        }
    }
    best.1
}

/// How exactly a range of media types names this one, and its weight in thousandths.
fn weight(range: &str, name: &str, version: &str) -> Option<(u8, u32)> {
    let mut parts = range.split(';').map(str::trim);
    let media = parts.next()?.to_ascii_lowercase();
    let (kind, _) = name.split_once('/')?;
    let mut exactness = match media.as_str() {
        "*/*" => 0,
        media if media == name => 2,
        media if media.strip_suffix("/*") == Some(kind) => 1,
        _ => return None,
    };
    let mut weight = 1000;
    for part in parts {
        let (key, value) = part.split_once('=')?;
        match key.trim().to_ascii_lowercase().as_str() {
            "q" => {
                let value: f64 = value.trim().parse().ok()?;
                weight = (0.0..=1.0).contains(&value).then_some((value * 1000.0) as u32)?;
            }
            "version" if value.trim().trim_matches('"') != version => return None,
            "version" => exactness = 3,
            // Such as charset and escaping, which every answer satisfies.
            _ => {}
        }
    }
    Some((exactness, weight))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(request: &str) -> u16 {
        match parse(request.as_bytes()) {
            Progress::Refused(response) => response.status,
            other => panic!("{request:?}: {other:?}"),
        }
    }

    fn request(request: &str) -> Request {
        match parse(request.as_bytes()) {
            Progress::Whole(request) => request,
            other => panic!("{request:?}: {other:?}"),
        }
    }

    #[test]
    fn a_request_is_read_once_it_is_whole() {
        let text = "HEAD /metrics?x=/y HTTP/1.1\r\nhost: a\r\nAccept: b\r\naccept: c\r\n\r\n";
        for end in 0..text.len() {
            assert_eq!(parse(&text.as_bytes()[..end]), Progress::Partial, "{end}");
        }
        let read = request(text);
        assert_eq!((read.method, read.path.as_str()), (Method::Head, "/metrics"));
        assert_eq!(read.accept, "b,c");
        let path = |target: &str| request(&format!("GET {target} HTTP/1.0\r\n\r\n")).path;
        assert_eq!(path("http://a:1/b?c"), "/b");
        assert_eq!(path("HTTP://a"), "/");
        assert_eq!(path("http://a?b"), "/");
    }

    #[test]
    fn what_cannot_be_answered_is_refused_by_its_status() {
        for (text, expected) in [
            ("GET / HTTP/1.1\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
            ("GET metrics HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            ("GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            ("GET /\r\n\r\n", 400),
            ("\x16\x03\x01", 400),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n", 405),
            ("get / HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        ] {
            assert_eq!(status(text), expected, "{text:?}");
        }
        let fields = "a: b\r\n".repeat(FIELDS_MAX + 1);
        assert_eq!(status(&format!("GET / HTTP/1.1\r\n{fields}\r\n")), 431);
        let long = "a".repeat(HEAD_BYTES_MAX);
        assert_eq!(status(&format!("GET /{long}")), 431);
        assert_eq!(status(&format!("GET /{long} HTTP/1.1\r\nHost: a\r\n\r\n")), 431);
    }

    #[test]
    fn an_answer_to_head_is_that_to_get_without_its_content() {
        let response = Response::content(PLAIN, "ok\n".into());
        let [get, head] = [Method::Get, Method::Head].map(|method| response.encode(method));
        assert_eq!(get, [&head[..], b"ok\n"].concat());
        let head = String::from_utf8(head).expect("text");
        assert!(head.starts_with("HTTP/1.1 200 OK\r\nContent-Type: "));
        assert!(head.contains("\r\nContent-Length: 3\r\n") && head.ends_with("\r\n\r\n"), "{head}");
    }

    #[test]
    fn the_type_with_the_highest_weight_is_chosen() {
        let offered = [("text/plain", "0.0.4"), ("application/openmetrics-text", "1.0.0")];
        for (accept, expected) in [
            ("", 0),
            ("*/*", 0),
            ("text/*", 0),
            ("image/png", 0),
            ("application/*", 1),
            ("application/openmetrics-text", 1),
            ("Application/OpenMetrics-Text; version=1.0.0; charset=utf-8", 1),
            ("application/openmetrics-text;version=2.0.0", 0),
            ("application/openmetrics-text;q=0", 0),
            ("application/openmetrics-text;q=0.4,text/plain;version=0.0.4;q=0.5", 0),
            ("application/openmetrics-text;q=0.4,*/*;q=0.2", 1),
            // As Prometheus 3 asks.
            (
                "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,\
                 application/openmetrics-text;version=0.0.1;q=0.4,\
                 text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,\
                 text/plain;version=0.0.4;q=0.2,*/*;q=0.1",
                1,
            ),
        ] {
            assert_eq!(preferred(accept, &offered), offered[expected].0, "{accept}");
        }
    }
}
