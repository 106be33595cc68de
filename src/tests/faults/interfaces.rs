//! Interfaces beside the loopback device's IPv4: its IPv6, a link between two network name spaces, and a path between
//! them that loses, repeats, delays and reorders what it carries.

use std::fs::File;
use std::io::{self, Read as _};
use std::net::{Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::AsFd as _;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use testkit::{BINARY, Client, Random, Server, TEXT, can_offload, pattern, program, say};

use crate::{converse, engines};

#[test]
fn every_engine_serves_ipv6() {
    if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_err() {
        return say("SKIPPED: every_engine_serves_ipv6: there is no IPv6 here");
    }
    for engine in engines() {
        let server = Server::start(&["--engine", engine, "--listen", "[::1]:0"]);
        assert!(server.address().is_ipv6(), "{}", server.greeting());
        converse(server.address());
        server.wait_for_count("connections_open", 0);
        assert_eq!(server.terminate().count("messages"), 14, "{engine}");
    }
}

/// A process that says a line when it is ready. It is killed when dropped.
struct Helper(Child);

impl Helper {
    fn start(command: &mut Command) -> io::Result<Helper> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut helper = Helper(command.spawn()?);
        let mut byte = [0];
        helper.0.stdout.as_mut().expect("a pipe").read_exact(&mut byte)?;
        Ok(helper)
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A network name space.
struct Network {
    holder: Helper,
    file: File,
}

impl Network {
    fn new() -> io::Result<Network> {
        let mut command = Command::new("unshare");
        command.args(["--net", "sh", "-c", "echo && exec cat"]).stderr(Stdio::null());
        let holder = Helper::start(&mut command)?;
        let file = File::open(format!("/proc/{}/ns/net", holder.0.id()))?;
        Ok(Network { holder, file })
    }

    /// Runs `call` on a thread in the name space, in which its children are too.
    fn within<T: Send>(&self, call: impl FnOnce() -> T + Send) -> io::Result<T> {
        thread::scope(|scope| {
            let called = scope.spawn(|| {
                let network = Some(LinkNameSpaceType::Network);
                move_into_link_name_space(self.file.as_fd(), network)?;
                Ok(call())
            });
            called.join().expect("a thread")
        })
    }

    /// Runs `ip` in the name space with each of these lines.
    fn ip(&self, lines: &[&str]) -> io::Result<()> {
        self.within(|| {
            lines.iter().try_for_each(|line| {
                let done = Command::new("ip").args(line.split(' ')).output()?;
                let told = || io::Error::other(String::from_utf8_lossy(&done.stderr).into_owned());
                done.status.success().then_some(()).ok_or_else(told)
            })
        })?
    }

    /// A link between the interface `name` here and `far_name` in another name space.
    fn link(&self, name: &str, far_name: &str, far: &Network) -> io::Result<()> {
        let place = far.holder.0.id();
        self.ip(&[&format!("link add {name} type veth peer name {far_name} netns {place}")])
    }

    /// Gives an interface addresses that end in `number`, of those for documentation (RFC 5737 and RFC 3849).
    fn address(&self, name: &str, number: u32) -> io::Result<()> {
        self.ip(&[
            &format!("address add 192.0.2.{number}/24 dev {name}"),
            &format!("address add 2001:db8::{number}/64 dev {name} nodad"),
            &format!("link set {name} mtu 1300 up"),
        ])
    }

    /// Starts the server here, on the addresses that end in 2.
    fn serve(&self, arguments: &[&str]) -> Server {
        let started = self.within(|| {
            let mut command = Command::new(program());
            command.args(["--listen", "192.0.2.2:0", "--listen", "[2001:db8::2]:0"]);
            Server::start_by({
                command.args(arguments);
                command
            })
        });
        started.expect("a name space")
    }
}

/// Two networks with a link between them.
fn linked() -> io::Result<[Network; 2]> {
    let [near, far] = [Network::new()?, Network::new()?];
    near.link("near", "far", &far)?;
    near.address("near", 1)?;
    far.address("far", 2)?;
    Ok([near, far])
}

#[test]
fn over_a_link_between_two_networks_every_engine_echoes() {
    const TEST: &str = "over_a_link_between_two_networks_every_engine_echoes";
    let [near, far] = match linked() {
        Ok(networks) => networks,
        Err(error) => return say(&format!("SKIPPED: {TEST}: no link of two networks: {error}")),
    };
    for engine in engines() {
        let server = far.serve(&["--engine", engine, "--workers", "2"]);
        let addresses = server.addresses();
        assert_eq!(addresses.len(), 2, "{}", server.greeting());
        for address in addresses {
            near.within(|| converse(address)).expect("a name space");
        }
        near.within(|| a_broken_link_delays_and_loses_nothing(&near, server.address()))
            .expect("a name space");
        server.wait_for_count("connections_open", 0);
        let ended = server.terminate();
        assert_eq!(ended.status.code(), Some(0), "{engine} {ended:?}");
        assert_eq!(ended.count("messages"), 2 * 14 + 2, "{engine}");
    }
}

/// The kernels send again what the link did not carry.
fn a_broken_link_delays_and_loses_nothing(near: &Network, address: SocketAddr) {
    let mut client = Client::connect(address);
    client.echo(BINARY, b"before");
    near.ip(&["link set near down"]).expect("a link");
    // No more than the socket takes while nothing leaves.
    let payload = pattern(10_000);
    client.send_frame(BINARY, &payload);
    let again = "address replace 2001:db8::1/64 dev near nodad";
    near.ip(&["link set near up", again]).expect("a link");
    client.expect(BINARY, &payload);
    client.close();
}

/// Two networks, and between them a path that [`PATH`] carries.
fn badly_linked(seed: u64) -> io::Result<([Network; 3], Helper)> {
    let [near, middle, far] = [Network::new()?, Network::new()?, Network::new()?];
    near.link("near", "left", &middle)?;
    far.link("far", "right", &middle)?;
    near.address("near", 1)?;
    far.address("far", 2)?;
    middle.ip(&["link set left mtu 1300 up", "link set right mtu 1300 up"])?;
    let path = middle.within(|| {
        let mut command = Command::new("python3");
        Helper::start(command.args(["-c", PATH, "left", "right"]).arg(seed.to_string()))
    })??;
    Ok(([near, middle, far], path))
}

const PATH: &str = include_str!("path.py");

#[test]
fn over_a_bad_path_every_echo_arrives_once_and_in_order() {
    const TEST: &str = "over_a_bad_path_every_echo_arrives_once_and_in_order";
    const CLIENTS: u64 = 6;
    const ROUNDS: u64 = 15;
    // The path and the messages follow from it, but not the moments.
    let given = std::env::var("RINGECHO_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u64 = given.unwrap_or_else(|| std::process::id().into());
    say(&format!("{TEST}: RINGECHO_SEED={seed}"));
    let ([near, _middle, far], _path) = match badly_linked(seed) {
        Ok(made) => made,
        Err(error) => return say(&format!("SKIPPED: {TEST}: no path of its own: {error}")),
    };
    let offload = can_offload(TEST).then_some(["--offload", "on"]);
    for option in engines().map(|engine| ["--engine", engine]).chain(offload) {
        let server = far.serve(&[&option[..], &["--workers", "1"]].concat());
        let addresses = server.addresses();
        let sent = AtomicU64::new(0);
        let visit = &|number: u64| {
            let mut random = Random::new(seed.wrapping_add(number));
            let mut client = Client::connect(addresses[number as usize % addresses.len()]);
            for _ in 0..ROUNDS {
                // Some at a time, of which each is less than, about or more than a packet.
                let messages: Vec<Vec<u8>> = (0..1 + random.below(4))
                    .map(|_| {
                        let most = random.pick(&[20, 1_300, 20_000]);
                        pattern(random.below(most))
                    })
                    .collect();
                let kind = random.pick(&[TEXT, BINARY]);
                messages.iter().for_each(|message| client.send_frame(kind, message));
                messages.iter().for_each(|message| client.expect(kind, message));
                sent.fetch_add(messages.len() as u64, Relaxed);
            }
            client.close();
        };
        near.within(|| {
            thread::scope(|scope| {
                for number in 0..CLIENTS {
                    scope.spawn(move || visit(number));
                }
            });
        })
        .expect("a name space");
        server.wait_for_count("connections_open", 0);
        let ended = server.terminate();
        let sent = sent.load(Relaxed);
        assert_eq!(ended.status.code(), Some(0), "{option:?} {ended:?}");
        assert_eq!(ended.count("messages"), sent, "{option:?}");
        for counter in ["frames_in", "frames_out"] {
            assert_eq!(ended.count(counter), sent + CLIENTS, "{option:?} {counter}");
        }
        assert_eq!(ended.count("protocol_violations"), 0, "{option:?}");
    }
}
