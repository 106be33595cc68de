//! The page for browsers, over real sockets. `scripts/browser-page` opens it in browsers.

use std::io::Read as _;

use testkit::{Client, Server, wait_until};

const GET: &str = "GET / HTTP/1.1\r\nHost: localhost:9001\r\n\r\n";

/// The whole response to a request that is written in pieces of so many bytes.
fn answer(server: &Server, request: &str, piece: usize) -> String {
    let mut client = Client::open(server.address());
    for part in request.as_bytes().chunks(piece) {
        client.write(part);
    }
    let mut response = Vec::new();
    client.stream().read_to_end(&mut response).expect("the server ends the connection");
    String::from_utf8(response).expect("text")
}

fn head_and_content(response: &str) -> (&str, &str) {
    response.split_once("\r\n\r\n").expect("a head")
}

fn field<'a>(head: &'a str, name: &str) -> &'a str {
    let line = head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    line.unwrap_or_else(|| panic!("no {name} in {head}"))
}

#[test]
fn the_page_arrives_whole_however_the_request_does() {
    // Of the smallest buffer, it takes many.
    for options in [&[][..], &["--buffer-size", "1KiB"], &["--connections-max", "1"]] {
        let server = Server::start(options);
        let page = answer(&server, GET, usize::MAX);
        let (head, content) = head_and_content(&page);
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert_eq!(field(head, "Content-Length"), content.len().to_string());
        assert!(content.starts_with("<!doctype html>") && content.ends_with("</html>\n"));
        wait_until("the connection is gone", || server.count("connections_open") == 0);
        assert_eq!(answer(&server, GET, 1), page);
        wait_until("the connection is gone", || server.count("connections_open") == 0);
        let only_head = answer(&server, &GET.replace("GET", "HEAD"), usize::MAX);
        assert_eq!(only_head, format!("{head}\r\n\r\n"));
        wait_until("the connection is gone", || server.count("connections_open") == 0);
        let tag = field(head, "ETag");
        let asks = GET.replace("\r\n\r\n", &format!("\r\nIf-None-Match: {tag}\r\n\r\n"));
        assert!(answer(&server, &asks, usize::MAX).starts_with("HTTP/1.1 304 Not Modified\r\n"));
        let ended = server.terminate();
        assert_eq!(ended.count("pages_served"), 4);
        assert_eq!(ended.count("connections_rejected"), 0);
        assert_eq!(ended.count("memory_bytes"), 0);
    }
}

#[test]
fn a_thousand_readers_that_take_their_time_all_get_it() {
    let server = Server::start(&[]);
    let mut clients: Vec<Client> = (0..1000).map(|_| Client::open(server.address())).collect();
    clients.iter_mut().for_each(|client| client.write(GET.as_bytes()));
    wait_until("every page is sent", || server.count("pages_served") == 1000);
    let mut pages = clients.iter_mut().map(|client| {
        let mut page = Vec::new();
        client.stream().read_to_end(&mut page).expect("the page");
        page
    });
    let first = pages.next().expect("a page");
    assert!(first.ends_with(b"</html>\n") && pages.all(|page| page == first));
    drop(clients);
    server.terminate();
}

#[test]
fn the_page_knows_the_path_that_is_served_and_can_be_left_out() {
    let server = Server::start(&["--path", "/echo"]);
    assert!(answer(&server, GET, usize::MAX).contains("data-path=\"/echo\""));
    assert!(answer(&server, &GET.replace("/ ", "/other "), usize::MAX).contains(" 404 "));
    server.terminate();
    let server = Server::start(&["--no-page"]);
    assert!(answer(&server, GET, usize::MAX).starts_with("HTTP/1.1 426 "));
    let head = answer(&server, &GET.replace("GET", "HEAD"), usize::MAX);
    assert!(head.starts_with("HTTP/1.1 405 "), "{head}");
    let ended = server.terminate();
    assert_eq!((ended.count("pages_served"), ended.count("connections_rejected")), (0, 2));
}
