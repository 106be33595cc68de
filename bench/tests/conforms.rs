//! What a test of a WebSocket library can look like that uses the conformance suite: a server and a client
//! of the crate `tungstenite`.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread;

use ringbench::conform::Suite;
use tungstenite::{Message, WebSocket};

/// The short sections, with what needs no extension.
const CASES: &str = "1.*,2.*,3.*,4.*,5.*,7.*";

/// Echoes messages until the connection ends.
fn echo(mut socket: WebSocket<TcpStream>) -> tungstenite::Result<()> {
    loop {
        match socket.read() {
            Ok(message @ (Message::Text(_) | Message::Binary(_))) => socket.send(message)?,
            Ok(_) => {}
            Err(error) => {
                // A close frame that the error causes is sent with the next call.
                let _ = socket.flush();
                return Err(error);
            }
        }
    }
}

#[test]
fn the_server_conforms() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let url = format!("ws://{}/", listener.local_addr().expect("an address"));
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || tungstenite::accept(stream).ok().map(echo));
        }
    });
    let report = Suite::servers().cases(CASES).expect("cases").run(&url).expect("a server");
    report.assert_as_expected();
    assert_eq!(report.judged.len(), 101);
}

#[test]
fn the_client_conforms() {
    let serving =
        Suite::clients().cases(CASES).expect("cases").serve("127.0.0.1:0").expect("a port");
    let address = serving.url().strip_prefix("ws://").expect("TCP");
    for case in 1..=serving.cases() {
        let stream = TcpStream::connect(address).expect("a connection");
        let url = format!("{}/runCase?case={case}&agent=tungstenite", serving.url());
        let (socket, _) = tungstenite::client(url, stream).expect("it is opened");
        // Why it ended is for the suite to judge.
        echo(socket).expect_err("every connection ends");
    }
    for report in serving.finish() {
        report.assert_as_expected();
        assert_eq!(report.results.agent, "tungstenite");
    }
}
