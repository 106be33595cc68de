//! Requests that are accepted and refused, rule by rule.

use super::*;
use crate::buffer::HEADROOM;

const REQUEST: &str = "GET /echo?a=b HTTP/1.1\r\nHost: example.com:9001\r\n\
    Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
const RESPONSE: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\
    Connection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
const SHORTEST: &str = "GET / HTTP/1.1\r\nHost:a\r\nUpgrade:websocket\r\n\
    Connection:Upgrade\r\nSec-WebSocket-Version:13\r\n\
    Sec-WebSocket-Key:dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

fn open(received: impl AsRef<[u8]>) -> Result<Option<Accepted>, Rejection> {
    open_with(received, Policy::Mirror, &Subprotocol::Any)
}

fn open_with(
    received: impl AsRef<[u8]>,
    policy: Policy,
    subprotocol: &Subprotocol,
) -> Result<Option<Accepted>, Rejection> {
    let (access, recompression) = (&Access::default(), &Budget::new(1 << 20));
    let terms = Terms { policy, subprotocol, access, recompression };
    answer(received.as_ref(), Admission::Open, &terms)
}

/// The answer to [`REQUEST`] with a part of it replaced.
fn changed(from: &str, to: &str) -> Result<Option<Accepted>, Rejection> {
    assert!(REQUEST.contains(from), "{from}");
    open(REQUEST.replacen(from, to, 1))
}

#[test]
fn any_split_gives_the_same_answer() {
    let accepted = Accepted {
        head_bytes: REQUEST.len(),
        response: RESPONSE.into(),
        agreement: None,
        compression_declined: false,
    };
    let received = [REQUEST.as_bytes(), b"\x81\x85\n\n\r\n\0\0\0\0\0"].concat();
    for length in 0..=received.len() {
        let expected = (length >= REQUEST.len()).then(|| accepted.clone());
        assert_eq!(open(&received[..length]), Ok(expected), "{length} bytes");
    }
}

#[test]
fn no_acceptable_request_is_shorter_than_its_response() {
    let accepted = open(SHORTEST).unwrap().unwrap();
    assert_eq!((accepted.head_bytes, accepted.response.len()), (135, 129));
    // Nothing is left to take away, and each part is the shortest of its kind.
    for removed in 0..SHORTEST.len() {
        let mut shorter = SHORTEST.to_owned();
        shorter.remove(removed);
        assert!(!matches!(open(&shorter), Ok(Some(_))), "{shorter:?}");
    }
    for (long, short) in [("\r\n", "\n"), ("==", ""), (":13", ":"), ("Host:a\r\n", "")] {
        assert!(!matches!(open(SHORTEST.replace(long, short)), Ok(Some(_))), "{long:?}");
    }
}

#[test]
fn an_offer_is_answered_and_its_answer_not_much_longer() {
    let offered = |offers: &str, policy| {
        let request = SHORTEST.replacen("Host", &format!("{offers}Host"), 1);
        open_with(request, policy, &Subprotocol::Any).unwrap().unwrap()
    };
    let offers = "sec-websocket-extensions: foo\r\nSEC-WebSocket-Extensions: \
        permessage-deflate; unknown, permessage-deflate; client_max_window_bits\r\n";
    let accepted = offered(offers, Policy::Mirror);
    let response = String::from_utf8(accepted.response).unwrap();
    assert!(response.ends_with("=\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n"));
    assert_eq!(accepted.agreement, extension::agree(&Default::default(), Policy::Mirror));
    let declined = offered(offers, Policy::Off);
    assert_eq!((declined.response.len(), declined.agreement), (129, None));
    // The offer whose answer says most beyond it.
    let accepted = offered(
        "Sec-WebSocket-Extensions:permessage-deflate;server_no_context_takeover;\
         server_max_window_bits=10;client_max_window_bits\r\n",
        Policy::Mirror,
    );
    let growth = accepted.response.len() - accepted.head_bytes;
    assert!(growth <= RESPONSE_GROWTH_MAX, "{growth} bytes");
    // With a subprotocol as well, which the request holds already.
    let accepted = offered(
        "Sec-WebSocket-Protocol:a\r\nSec-WebSocket-Extensions:permessage-deflate;\
         server_no_context_takeover;server_max_window_bits=10;client_max_window_bits\r\n",
        Policy::Mirror,
    );
    assert!(accepted.response.len() - accepted.head_bytes <= growth + 1);
    assert!(growth < RESPONSE_GROWTH_MAX && RESPONSE_GROWTH_MAX <= HEADROOM);
}

#[test]
fn a_subprotocol_is_chosen_of_those_that_are_offered() {
    let request = REQUEST.replacen("Host", "Sec-WebSocket-Protocol: soap, chat\r\nHost", 1);
    for (subprotocol, chosen) in
        [("any", Some("soap")), ("chat", Some("chat")), ("other", None), ("Chat", None)]
    {
        let subprotocol = subprotocol.parse().expect("a token");
        let accepted = open_with(&request, Policy::Mirror, &subprotocol).unwrap().unwrap();
        let field = chosen.map(|name| format!("Sec-WebSocket-Protocol: {name}\r\n\r\n"));
        let field = field.unwrap_or("\r\n".to_owned());
        assert_eq!(
            accepted.response,
            [&RESPONSE[..RESPONSE.len() - 2], &field].concat().as_bytes()
        );
    }
}

#[test]
fn what_is_accepted_beyond_the_plain_form() {
    for (from, to) in [
        ("GET", "\r\nGET"),
        ("/echo?a=b", "http://example.com/"),
        ("Host: ", "hOST:\t "),
        ("Host: example.com:9001", "Host: [::1]:9001 \t"),
        ("Upgrade: websocket", "upgrade: h2c,WebSocket"),
        ("Upgrade: websocket", "Upgrade: h2c\r\nUpgrade: , websocket ,"),
        ("Connection: Upgrade", "CONNECTION: keep-alive,\tuPGRADE\t, x"),
        ("Connection: Upgrade", "Connection: close\r\nConnection:upgrade"),
        ("Version: 13", "Version:\t 13 \t"),
        ("ZQ==", "ZR=="),
        ("\r\n\r\n", "\r\nContent-Length: 0\r\nContent-Length: 00\r\n\r\n"),
        ("\r\n\r\n", "\r\nSec-WebSocket-Extensions: permessage-inflate\r\n\r\n"),
        ("\r\n\r\n", "\r\nSec-WebSocket-Protocol: ,\r\nOrigin: null\r\n\r\n"),
        ("\r\n\r\n", "\r\nSec-WebSocket-Extensions:\r\nSec-WebSocket-Protocol:\r\n\r\n"),
        ("\r\n\r\n", "\r\nExpect: 100-continue\r\nTE: trailers\r\nX: \t\u{e9}\r\n\r\n"),
        ("GET", "\r\n\r\n\r\nGET"),
        ("HTTP/1.1", "HTTP/1.2"),
        ("HTTP/1.1", "HTTP/1.9"),
        ("/echo?a=b", "http://example.com"),
        ("/echo?a=b", "HTTPS://other.example:1?a"),
        ("/echo?a=b", "ws://[::1]:9001/a"),
        ("/echo?a=b", "//a/../%20%00?b=/?"),
        ("Host: example.com:9001", "Host: other"),
        ("Host: example.com:9001", "Host: a%20b:"),
    ] {
        let accepted = changed(from, to).unwrap().unwrap();
        assert_eq!(accepted.head_bytes, REQUEST.len() - from.len() + to.len(), "{to:?}");
        assert_eq!(accepted.response.len(), 129);
    }
}

#[test]
fn what_is_refused() {
    use Rejection::*;
    for (from, to, rejection, status) in [
        ("GET", "POST", Method, 405),
        ("GET", "get", Method, 405),
        ("GET", "HEAD", MethodHead, 405),
        ("HTTP/1.1", "HTTP/1.0", HttpVersion, 505),
        ("HTTP/1.1", "HTTP/2.0", HttpVersion, 505),
        ("GET /echo?a=b HTTP/1.1", "PRI * HTTP/2.0", HttpVersion, 505),
        ("GET /echo?a=b", "CONNECT example.com:80", Method, 405),
        ("GET /echo?a=b", "OPTIONS *", Method, 405),
        ("HTTP/1.1", "HTTP/3.0", HttpVersion, 505),
        ("HTTP/1.1", "HTTP/0.9", HttpVersion, 505),
        ("HTTP/1.1", "http/1.1", Malformed, 400),
        ("HTTP/1.1", "HTTP/1.10", Malformed, 400),
        ("HTTP/1.1", "HTTP/1", Malformed, 400),
        ("GET ", "GET  ", Malformed, 400),
        ("GET ", "GET\t", Malformed, 400),
        ("GET ", " GET ", Malformed, 400),
        ("b HTTP", "b  HTTP", Malformed, 400),
        ("/echo?a=b", "/a b", Malformed, 400),
        ("/echo?a=b", "*", TargetInvalid, 400),
        ("/echo?a=b", "echo", TargetInvalid, 400),
        ("/echo?a=b", "?a", TargetInvalid, 400),
        ("/echo?a=b", "example.com:80", TargetInvalid, 400),
        ("/echo?a=b", "http:///echo", TargetInvalid, 400),
        ("/echo?a=b", "http://:80/", TargetInvalid, 400),
        ("/echo?a=b", "http://user@example.com/", TargetInvalid, 400),
        ("/echo?a=b", "http://example.com:65536/", TargetInvalid, 400),
        ("/echo?a=b", "ftp://example.com/", TargetInvalid, 400),
        ("/echo?a=b", "/echo#a", TargetInvalid, 400),
        ("/echo?a=b", "/echo?%", TargetInvalid, 400),
        ("/echo?a=b", "/echo%0", TargetInvalid, 400),
        ("/echo?a=b", "/echo%0g", TargetInvalid, 400),
        ("/echo?a=b", "/\u{e9}", TargetInvalid, 400),
        ("/echo?a=b", "/\t", TargetInvalid, 400),
        ("/echo?a=b", "/\0", TargetInvalid, 400),
        ("/echo?a=b", "/\u{7f}", TargetInvalid, 400),
        ("/echo?a=b", "/a\\b", TargetInvalid, 400),
        ("/echo?a=b", "/<b>", TargetInvalid, 400),
        ("/echo?a=b", "/{b}", TargetInvalid, 400),
        (" HTTP/1.1", "", Malformed, 400),
        ("HTTP/1.1", "HTTP/1.1 ", Malformed, 400),
        ("Host: example.com:9001\r\n", "", HostMissing, 400),
        ("Host: e", "Host: e\r\nHost: e", HostRepeated, 400),
        ("Host: e", "Host: e e", HostInvalid, 400),
        ("Host: e", "Host: user@e", HostInvalid, 400),
        ("Host: example.com:9001", "Host:", HostInvalid, 400),
        ("Host: example.com:9001", "Host: :9001", HostInvalid, 400),
        ("Host: example.com:9001", "Host: a:b", HostInvalid, 400),
        ("Host: example.com:9001", "Host: a:65536", HostInvalid, 400),
        ("Host: example.com:9001", "Host: a, b", HostInvalid, 400),
        ("Host: example.com:9001", "Host: a/", HostInvalid, 400),
        ("Host: example.com:9001", "Host: ::1", HostInvalid, 400),
        ("Host: example.com:9001", "Host: [fe80::1%25lo]", HostInvalid, 400),
        ("Host: example.com:9001", "Host: \u{e9}", HostInvalid, 400),
        ("Host: example.com:9001", "Host: http://a", HostInvalid, 400),
        ("Host: e", " Host: e", Malformed, 400),
        ("Host: e", ": e\r\nHost: e", Malformed, 400),
        ("Host: e", "X Y: e\r\nHost: e", Malformed, 400),
        ("Host: e", "X: a\rb\r\nHost: e", Malformed, 400),
        ("Host:", "Host :", Malformed, 400),
        ("Host: e", "Host: e\r\n folded", Malformed, 400),
        ("Host: e", "Host: e\r\n\tfolded", Malformed, 400),
        ("Host: e", "Host: e\0", Malformed, 400),
        ("Host: e", "Host: e\r", Malformed, 400),
        ("9001\r\n", "9001\n", Malformed, 400),
        ("Host", "Transfer-Encoding: chunked\r\nHost", Content, 400),
        ("Host", "Content-Length: 1\r\nHost", Content, 400),
        ("Host", "Content-Length: 0\r\nContent-Length: 10\r\nHost", Content, 400),
        ("Host", "Content-Length:\r\nHost", Content, 400),
        ("Upgrade: websocket\r\n", "", UpgradeMissing, 426),
        ("Upgrade: websocket", "Upgrade: websocket/13", UpgradeMissing, 426),
        ("Upgrade: websocket", "Upgrade: web socket, websockets", UpgradeMissing, 426),
        ("Connection: Upgrade\r\n", "", ConnectionMissing, 400),
        ("Connection: Upgrade", "Connection: keep-alive, upgraded", ConnectionMissing, 400),
        ("Sec-WebSocket-Version: 13\r\n", "", VersionMissing, 426),
        ("Host", "Sec-WebSocket-Version: 13\r\nHost", VersionRepeated, 426),
        ("13", "8", VersionUnsupported, 426),
        ("13", "13, 8", VersionUnsupported, 426),
        ("13", "013", VersionUnsupported, 426),
        ("13", "", VersionUnsupported, 426),
        ("Host", "Sec-WebSocket-Protocol: a b\r\nHost", SubprotocolInvalid, 400),
        ("Host", "Sec-WebSocket-Protocol: a, b/c\r\nHost", SubprotocolInvalid, 400),
        ("Host", "Sec-WebSocket-Extensions: a;\r\nHost", ExtensionsInvalid, 400),
        ("Host", "Sec-WebSocket-Extensions: a; b=\"\r\nHost", ExtensionsInvalid, 400),
        ("13\r\nSec-WebSocket-Key:", "25\r\nX:", VersionUnsupported, 426),
        ("Sec-WebSocket-Key: ", "X: ", KeyMissing, 400),
        ("Host", "Sec-WebSocket-Key: x\r\nHost", KeyRepeated, 400),
        ("dGhlIHNhbXBsZSBub25jZQ==", "", KeyInvalid, 400),
        ("ZQ==", "ZQ", KeyInvalid, 400),
        ("ZQ==", "ZWU=", KeyInvalid, 400),
        ("ZQ==", "ZQ==ZQ==", KeyInvalid, 400),
        ("ZQ==", "ZWVlZWVl", KeyInvalid, 400),
        ("dGhl", "", KeyInvalid, 400),
        ("dGhl", "dG-l", KeyInvalid, 400),
    ] {
        assert_eq!(changed(from, to), Err(rejection), "{to:?} for {from:?}");
        assert_eq!(rejection.status(), status, "{rejection:?}");
    }
    let terms = Terms {
        policy: Policy::Mirror,
        subprotocol: &Subprotocol::Any,
        access: &Access::default(),
        recompression: &Budget::new(0),
    };
    assert_eq!(answer(REQUEST.as_bytes(), Admission::Full, &terms), Err(Full));
    assert_eq!(Full.status(), 503);
    assert_eq!(answer(REQUEST.as_bytes(), Admission::TooMany, &terms), Err(TooMany));
    assert_eq!(TooMany.status(), 429);
    let page = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    assert_eq!(answer(page, Admission::Full, &terms), Err(UpgradeMissing));
}

#[test]
fn nonsense_is_refused_at_the_byte_that_makes_it_certain() {
    use Rejection::{HttpVersion, Malformed, TargetInvalid};
    for (nonsense, sound, rejection) in [
        (&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..], 0, Malformed), // TLS
        (b"\0\0\0\0", 0, Malformed),
        (b"\xff\xfe", 0, Malformed),
        (b" GET / HTTP/1.1\r\n", 0, Malformed),
        (b"\nGET / HTTP/1.1\r\n", 0, Malformed),
        (b"\r\n\r\n\r\r", 5, Malformed),
        (b"SSH-2.0-OpenSSH_9.9\r\n", 19, Malformed),
        (b"GET / XTTP/1.1\r\n", 6, Malformed),
        (b"GET / HTTP/1.1\nHost: a\n", 14, Malformed),
        (b"GET / HTTP/1.1\r\nHost\r\n", 20, Malformed),
        (b"GET / HTTP/1.1\r\nHost: a\r\n b\r\n", 25, Malformed),
        (b"GET / HTTP/1.1\r\nHost: a\0", 23, Malformed),
        (b"GET /a#b HTTP/1.1\r\n", 6, TargetInvalid),
        (b"GET /\xc3\xa9 HTTP/1.1\r\n", 5, TargetInvalid),
        (b"GET /\r\n", 5, Malformed),
        (b"GET\r\n", 3, Malformed),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 11, HttpVersion),
    ] {
        for length in 0..=nonsense.len() {
            let expected = if length <= sound { Ok(None) } else { Err(rejection) };
            assert_eq!(open(&nonsense[..length]), expected, "{length} of {nonsense:?}");
        }
    }
}

#[test]
fn limits_are_exact() {
    let padded = |target: usize, field: usize| {
        let (target, field) = ("a".repeat(target), "b".repeat(field));
        REQUEST.replacen("/echo", &format!("/{target}"), 1).replacen(
            "Host",
            &format!("X:{field}\r\nHost"),
            1,
        )
    };
    let room = REQUEST_BYTES_MAX - padded(0, 0).len();
    for (target, field) in [(0, room), (room, 0)] {
        let whole = padded(target, field);
        assert_eq!(open(&whole).unwrap().unwrap().head_bytes, REQUEST_BYTES_MAX);
        assert_eq!(open(&whole[..REQUEST_BYTES_MAX - 1]), Ok(None));
    }
    for (target, field) in [(0, room + 1), (room + 1, 0), (0, 3 * room)] {
        let long = padded(target, field);
        assert_eq!(open(&long[..REQUEST_BYTES_MAX - 1]), Ok(None));
        assert_eq!(open(&long[..REQUEST_BYTES_MAX]), Err(Rejection::HeadTooLong));
        assert_eq!(open(&long), Err(Rejection::HeadTooLong));
    }
    assert_eq!(open(padded(REQUEST_BYTES_MAX, 0)), Err(Rejection::TargetTooLong));
    assert_eq!(open("G".repeat(REQUEST_BYTES_MAX - 1)), Ok(None));
    assert_eq!(open("G".repeat(REQUEST_BYTES_MAX)), Err(Rejection::MethodTooLong));
    assert_eq!(open("\r\n".repeat(REQUEST_BYTES_MAX)), Err(Rejection::HeadTooLong));

    let fields = |more: usize| changed("Host", &format!("{}Host", "X: y\r\n".repeat(more)));
    assert!(matches!(fields(HEADERS_MAX - 5), Ok(Some(_))));
    assert_eq!(fields(HEADERS_MAX - 4), Err(Rejection::FieldsTooMany));
}

/// A line that ends wrongly is refused at that byte, so no later fault may change what is said about it.
#[test]
fn what_follows_a_lone_line_feed_changes_nothing() {
    let wrong = "GET / HTTP/1.1\r\nA: b\n";
    let many = "X: y\r\n".repeat(HEADERS_MAX + 1);
    for rest in ["", "\r\n", " b\r\n", &many, &REQUEST[16..]] {
        assert_eq!(open(format!("{wrong}{rest}")), Err(Rejection::Malformed), "{rest:?}");
    }
    // One that comes after the last field that may be there is too late.
    let late = format!("GET / HTTP/1.1\r\n{many}A: b\n");
    assert_eq!(open(late), Err(Rejection::FieldsTooMany));
}
