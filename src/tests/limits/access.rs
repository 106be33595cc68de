//! Which requests are taken: `--path` and `--origin`.

use testkit::{Client, REQUEST, Server};

use crate::on_every_engine;

/// The status of the answer to the usual request with this target and field.
fn status(server: &Server, target: &str, field: &str) -> u16 {
    let request = REQUEST.replacen("GET / ", &format!("GET {target} "), 1);
    let request = request.replacen("Host:", &format!("{field}Host:"), 1);
    let head = Client::open(server.address()).handshake_by(&request);
    head.split(' ').nth(1).expect("a status").parse().expect("a number")
}

#[test]
fn only_the_path_that_is_named_is_served() {
    on_every_engine(&["--path", "/echo"], |server| {
        assert_eq!(status(&server, "/echo", ""), 101);
        assert_eq!(status(&server, "/echo?a=b", ""), 101);
        assert_eq!(status(&server, "ws://localhost/echo", ""), 101);
        assert_eq!(status(&server, "/", ""), 404);
        assert_eq!(status(&server, "/echo/", ""), 404);
        assert_eq!(server.count("paths_refused"), 2);
        assert_eq!(server.count("connections_rejected"), 2);
    });
}

#[test]
fn only_pages_of_the_origins_that_are_named_may_connect() {
    let origins = ["--origin", "https://example.com:443/", "--origin", "http://localhost:8080"];
    on_every_engine(&origins, |server| {
        for (field, expected) in [
            ("Origin: https://example.com\r\n", 101),
            ("Origin: http://localhost:8080\r\n", 101),
            // Not a browser.
            ("", 101),
            ("Origin: http://example.com\r\n", 403),
            ("Origin: null\r\n", 403),
            ("Origin: https://example.com.evil.org\r\n", 403),
        ] {
            assert_eq!(status(&server, "/", field), expected, "{field}");
        }
        assert_eq!(server.count("origins_refused"), 3);
    });
}

#[test]
fn by_default_every_path_and_origin_is_served() {
    on_every_engine(&[], |server| {
        assert_eq!(status(&server, "/any/thing?at=all", "Origin: https://evil.org\r\n"), 101);
    });
}
