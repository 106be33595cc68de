//! The limit on connections from one address.

use testkit::{Client, REQUEST, Server, TEXT};

use crate::on_every_engine;

fn answer(server: &Server) -> String {
    let mut client = Client::open(server.address());
    client.write(REQUEST.as_bytes());
    String::from_utf8(client.read_to_end().expect("an answer and the end")).expect("text")
}

#[test]
fn an_address_may_have_the_most_connections_and_not_one_more() {
    on_every_engine(&["--connections-per-address", "2"], |server| {
        let mut first = Client::connect(server.address());
        let mut second = Client::connect(server.address());
        let refused = answer(&server);
        assert!(refused.starts_with("HTTP/1.1 429 Too Many Requests\r\n"), "{refused}");
        assert!(refused.contains("\r\nRetry-After: 10\r\n"), "{refused}");
        assert!(refused.contains("from your address"), "{refused}");
        first.echo(TEXT, b"hello");
        first.close();
        server.wait_for_count("connections_open", 1);
        let mut third = Client::connect(server.address());
        third.echo(TEXT, b"hello");
        second.echo(TEXT, b"hello");
        assert_eq!(server.count("addresses_refused"), 1);
        assert_eq!(server.count("connections_rejected"), 1);
    });
}

#[test]
fn addresses_of_both_kinds_are_counted_apart() {
    let listen = ["--listen", "127.0.0.1:0", "--listen", "[::1]:0"];
    let options = [&listen[..], &["--connections-per-address", "1"]].concat();
    on_every_engine(&options, |server| {
        let addresses = server.addresses();
        let mut clients: Vec<Client> =
            addresses.iter().map(|&address| Client::connect(address)).collect();
        for client in &mut clients {
            client.echo(TEXT, b"hello");
        }
        for address in addresses {
            let mut client = Client::open(address);
            client.write(REQUEST.as_bytes());
            let refused = client.read_to_end().expect("an answer and the end");
            assert!(refused.starts_with(b"HTTP/1.1 429 "));
        }
    });
}

#[test]
fn a_full_server_says_when_to_try_again() {
    on_every_engine(&["--connections-max", "1"], |server| {
        let _first = Client::connect(server.address());
        let refused = answer(&server);
        assert!(refused.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{refused}");
        assert!(refused.contains("\r\nRetry-After: 10\r\n"), "{refused}");
    });
}
