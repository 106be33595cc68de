//! The command line.

mod support;

use support::*;

#[test]
fn lockstep() {
    for stop in [false, true] {
    for (clients_on_other, _) in [(true, 0), (false, 0)] {
    let server = Server::start(&["--wait", "block", "--workers", "1", "--cpus", "1"]);
    std::thread::spawn(move || {
    core_affinity::set_for_current(core_affinity::CoreId { id: if clients_on_other {0} else {1} });
    let mut clients: Vec<Client> = (0..64).map(|_| Client::connect(server.address())).collect();
    let f = frame(TEXT, b"0123456789abcdef");
    let t = std::time::Instant::now();
    for _ in 0..500 {
        if stop { server.signal(rustix::process::Signal::STOP); 
            let stat = format!("/proc/{}/stat", server.pid());
            while !std::fs::read_to_string(&stat).unwrap().contains(") T ") {std::thread::yield_now();}
        }
        for c in &mut clients { c.write(&f); }
        if stop { server.signal(rustix::process::Signal::CONT); }
        for c in &mut clients { c.expect(TEXT, b"0123456789abcdef"); }
    }
    println!("{:?}", t.elapsed());
    let ended = server.terminate();
    println!("{stop} {clients_on_other} {:?}", ended.statistics["total"]);
    }).join().unwrap();
    }}
}
#[test]
fn pingpong() {
    let server = Server::start(&["--wait", "block", "--workers", "1", "--cpus", "1"]);
    let mut c = Client::connect(server.address());
    for _ in 0..10000 { c.echo(TEXT, b"0123456789abcdef"); }
    let ended = server.terminate();
    println!("pp {:?}", ended.statistics["total"]);
}
