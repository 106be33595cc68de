//! `/debug/connections`: what each worker says is open.

use serde_json::Value;
use testkit::{BINARY, Client, REQUEST, Server, TEXT, frame, pattern, wait_until};

use crate::{ask, engines, get, start};

/// What is open, by worker: how many connections, and the rows.
fn shown(server: &Server) -> Vec<(u64, Vec<Value>)> {
    let answer = ask(
        server,
        b"GET /debug/connections HTTP/1.1\r\nHost: test\r\nAccept: application/json\r\n\r\n",
    );
    assert_eq!(answer.field("Content-Type"), Some("application/json"), "{answer:?}");
    let value: Value = serde_json::from_str(&answer.content).expect("JSON");
    let workers = value["workers"].as_array().expect("an array").iter().enumerate();
    let workers = workers.map(|(number, worker)| {
        assert_eq!(worker["worker"], number);
        let connections = worker["connections"].as_array().expect("an answer").clone();
        (worker["open"].as_u64().expect("a number"), connections)
    });
    workers.collect()
}

#[test]
fn what_is_open_is_shown_and_idle_workers_answer_too() {
    for engine in engines("what_is_open_is_shown_and_idle_workers_answer_too") {
        let server = start(&[engine, &["--workers", "2", "--wait", "block"]].concat());
        // Again and again: the question is asked anew each time.
        for _ in 0..3 {
            assert_eq!(shown(&server), [(0, vec![]), (0, vec![])], "{engine:?}");
        }
        let mut open = Client::connect(server.address());
        open.echo(BINARY, &pattern(300));
        let mut silent = Client::open(server.address());
        silent.write(&REQUEST.as_bytes()[..10]);
        let mut rows = Vec::new();
        wait_until("both are there", || {
            let workers = shown(&server);
            let count: u64 = workers.iter().map(|(open, _)| open).sum();
            rows = workers.into_iter().flat_map(|(_, rows)| rows).collect();
            count == 2 && rows.iter().any(|row| row["bytes_in"] == 10)
        });
        assert_eq!(rows.len(), 2);
        rows.sort_by_key(|row| row["bytes_in"].as_u64());
        assert_eq!((&rows[0]["state"], &rows[0]["bytes_out"]), (&"handshake".into(), &0.into()));
        let serving = &rows[1];
        assert_eq!(serving["extension"], "");
        assert_eq!(serving["transport"], "plain");
        let sent = (REQUEST.len() + frame(BINARY, &pattern(300)).len()) as u64;
        // What the kernel echoes by itself is not counted here.
        if !engine.contains(&"--offload") {
            assert_eq!(serving["state"], "serving", "{engine:?}");
            assert_eq!(serving["bytes_in"].as_u64(), Some(sent), "{engine:?}");
        }
        assert!(serving["age_seconds"].as_f64().is_some_and(|age| (0.0..600.0).contains(&age)));
        let table = get(&server, "/debug/connections");
        assert_eq!(table.field("Content-Type"), Some("text/plain; charset=utf-8"));
        assert!(table.content.contains(" handshake\n") && table.content.contains("\nworker 0: "));
        open.close();
        drop(silent);
        wait_until("both are gone", || shown(&server).iter().all(|(open, _)| *open == 0));
        // A slot that was used before begins anew.
        let mut next = Client::connect(server.address());
        next.echo(TEXT, b"next");
        let rows = shown(&server).into_iter().flat_map(|(_, rows)| rows);
        let bytes: Vec<Option<u64>> = rows.map(|row| row["bytes_in"].as_u64()).collect();
        assert!(bytes.iter().all(|bytes| bytes.is_some_and(|bytes| bytes < sent)), "{bytes:?}");
        next.close();
        assert_eq!(server.terminate().status.code(), Some(0), "{engine:?}");
    }
}

#[test]
fn a_worker_shows_no_more_than_256_connections_and_says_how_many_there_are() {
    let server = start(&["--workers", "1"]);
    let clients: Vec<Client> = (0..300).map(|_| Client::connect(server.address())).collect();
    let workers = shown(&server);
    assert_eq!((workers[0].0, workers[0].1.len()), (300, 256));
    let table = get(&server, "/debug/connections").content;
    assert!(table.ends_with("worker 0: 256 of 300 connections\n"), "{table}");
    drop(clients);
    assert_eq!(server.terminate().status.code(), Some(0));
}

/// Compression and TLS are shown, and a worker with no time for anything else answers in its turn.
#[test]
fn extension_and_transport_are_shown_under_load() {
    let server = start(&["--workers", "1"]);
    let mut client = Client::open(server.address());
    let offer = "Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n";
    let request = REQUEST.strip_suffix("\r\n").expect("a head").to_owned() + offer;
    let response = client.handshake_by(&request);
    assert!(response.contains("permessage-deflate"), "{response}");
    let mut busy = Client::connect(server.address());
    for _ in 0..50 {
        busy.write(&frame(TEXT, b"busy").repeat(100));
        let rows = shown(&server).remove(0).1;
        assert_eq!(rows.len(), 2);
        assert_eq!(rows[0]["extension"], "permessage-deflate");
        for _ in 0..100 {
            busy.expect(TEXT, b"busy");
        }
    }
    assert_eq!(server.terminate().status.code(), Some(0));
}
