//! One CPU for everybody, and less than one.

use std::process::Command;
use std::thread;

use testkit::{Client, Server, TEXT, program};

use crate::{converse, engines};

/// Runs `call` on a thread that, with all its children, may use one CPU alone.
fn on_one_cpu<T: Send>(call: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let called = scope.spawn(|| {
            let cpu = core_affinity::get_core_ids().expect("a list")[0];
            assert!(core_affinity::set_for_current(cpu), "it is among those allowed");
            call()
        });
        called.join().expect("a thread")
    })
}

#[test]
fn on_one_cpu_shared_with_its_clients_every_engine_echoes() {
    let waits = ["block", "spin", "adaptive", "sqpoll"];
    let all = engines().flat_map(|engine| waits.map(|wait| (engine, wait)));
    for (engine, wait) in all {
        // What these cannot do is a usage error.
        let is_possible = match engine {
            "uring" => true,
            "epoll" => wait != "sqpoll",
            _ => wait == "block",
        };
        if !is_possible {
            continue;
        }
        on_one_cpu(|| {
            let mut command = Command::new(program());
            command.args(["--listen", "127.0.0.1:0", "--engine", engine, "--wait", wait]);
            let server = Server::start_by(command);
            assert!(server.greeting().contains(", 1 worker on CPU "), "{}", server.greeting());
            converse(server.address());
            let mut clients: Vec<Client> =
                (0..20).map(|_| Client::connect(server.address())).collect();
            for _ in 0..10 {
                clients.iter_mut().for_each(|client| client.echo(TEXT, b"one CPU"));
            }
            clients.into_iter().for_each(Client::close);
            server.wait_for_count("connections_open", 0);
            let ended = server.terminate();
            assert_eq!(ended.status.code(), Some(0), "{engine} {wait} {ended:?}");
            assert_eq!(ended.count("messages"), 14 + 200, "{engine} {wait}");
        });
    }
}

#[test]
fn more_workers_than_cpus_share_them() {
    for engine in engines() {
        on_one_cpu(|| {
            let mut command = Command::new(program());
            command.args(["--listen", "127.0.0.1:0", "--engine", engine, "--workers", "4"]);
            command.args(["--buffers", "16", "--buffer-size", "16KiB"]);
            let server = Server::start_by(command);
            let clients: Vec<Client> = (0..40)
                .map(|_| {
                    let mut client = Client::connect(server.address());
                    client.echo(TEXT, b"one of four");
                    client
                })
                .collect();
            clients.into_iter().for_each(Client::close);
            server.wait_for_count("connections_open", 0);
            assert_eq!(server.terminate().count("messages"), 40, "{engine}");
        });
    }
}
