//! Measurements over TLS: against the real server, and against TLS as rustls itself speaks it with sockets,
//! in front of a scripted server.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use ringbench::conform::serving::Until;
use ringbench::conform::verdict::{Behavior, BehaviorClose};
use ringbench::conform::{Report, Suite};
use ringbench::load::{self, Counts, Outcome as Load, Rate};
use ringbench::problem::{Problem, Step};
use ringbench::results::Results;
use ringbench::rtt::{self, Case, Outcome, Plan, Timeouts, Wait};
use ringbench::session::Form;
use ringbench::stop::Stop;
use ringbench::target::Target;
use ringbench::tls::{Accepted, Failure, Sessions, Trust};
use ringbench::verdict::Farewell;
use ringecho::cli;
use ringecho::engine::Engine;
use ringecho::listen::{Address, Endpoint, Transport};
use ringecho::protocol::Acceptor;
use ringecho::server::{self, Config};
use ringecho::tls::{Certificates, Files, Source, Tls};
use rustix::event::{PollFd, PollFlags, poll};
use rustls::crypto::ring::default_provider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::version::{TLS12, TLS13};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, ClientConnection, HandshakeKind,
    RootCertStore, ServerConfig, ServerConnection, StreamOwned, SupportedProtocolVersion,
};
use testkit::certificate::{Kind, pem};
use testkit::fake::{Fake, Peer};
use testkit::{Authority, Ended, Issued, reply, run_by, wait_until};

const GENEROUS: Duration = Duration::from_secs(60);
const PATIENT: Timeouts =
    Timeouts { connect: GENEROUS, handshake: GENEROUS, echo: GENEROUS, close: GENEROUS };

/// A test's own directory, and an authority whose certificate is in it.
struct Place {
    authority: Authority,
    directory: PathBuf,
}

impl Place {
    fn new(test: &str) -> Place {
        let name = format!("wss-{test}-{}", std::process::id());
        let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir_all(&directory).expect("a directory");
        let authority = Authority::new(test);
        let text = pem("CERTIFICATE", authority.certificate());
        fs::write(directory.join("ca.pem"), text).expect("a file");
        Place { authority, directory }
    }

    fn ca(&self) -> PathBuf {
        self.directory.join("ca.pem")
    }

    fn trust(&self) -> Trust {
        trust(&Accepted::Files(vec![self.ca()]))
    }

    fn issued(&self) -> Issued {
        self.authority.issue(&["localhost", "127.0.0.1"])
    }

    /// A server with a certificate for `localhost` and `127.0.0.1`.
    fn config(&self) -> ServerConfig {
        config(&[&TLS13, &TLS12], &self.issued())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn trust(accepted: &Accepted) -> Trust {
    Trust::new(accepted, Sessions::New).expect("files")
}

fn config(versions: &[&'static SupportedProtocolVersion], issued: &Issued) -> ServerConfig {
    let (chain, key) = chain(issued);
    let builder = ServerConfig::builder_with_provider(Arc::new(default_provider()));
    let builder = builder.with_protocol_versions(versions).expect("versions");
    builder.with_no_client_auth().with_single_cert(chain, key).expect("a certificate")
}

fn chain(issued: &Issued) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let key = PrivateKeyDer::try_from(issued.key.clone()).expect("a key");
    (vec![CertificateDer::from(issued.certificate.clone())], key)
}

/// How the side of TLS ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// It says so, and ends its direction.
    Said,
    /// It only ends its direction.
    Unsaid,
    /// The first record after the handshake is changed on its way.
    Broken,
    /// It does not end, not even when it no longer understands the client.
    Stubborn,
}

/// TLS in front of a scripted server.
struct Front {
    address: SocketAddr,
    /// What is known of each connection that is over.
    seen: Arc<Mutex<Vec<Seen>>>,
}

#[derive(Debug, Clone, PartialEq)]
struct Seen {
    name: Option<String>,
    kind: Option<HandshakeKind>,
    /// Whether the client has said that nothing more follows.
    has_farewell: bool,
}

impl Front {
    fn start(config: ServerConfig, behind: Fake, ending: Ending) -> Front {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = listener.local_addr().expect("an address");
        let (seen, config) = (Arc::<Mutex<Vec<Seen>>>::default(), Arc::new(config));
        let noted = Arc::clone(&seen);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (config, noted) = (Arc::clone(&config), Arc::clone(&noted));
                let url = behind.url();
                thread::spawn(move || {
                    let server = TcpStream::connect(url[5..].trim_end_matches('/'));
                    let mut tls = ServerConnection::new(config).expect("a configuration");
                    // Either side may go at any time.
                    let _ = relay(&client, &server.expect("a listener"), &mut tls, ending);
                    let has_farewell =
                        tls.process_new_packets().is_ok_and(|state| state.peer_has_closed());
                    noted.lock().expect("no panic").push(Seen {
                        name: tls.server_name().map(ToOwned::to_owned),
                        kind: tls.handshake_kind(),
                        has_farewell,
                    });
                });
            }
        });
        Front { address, seen }
    }

    /// A server that echoes, behind TLS.
    fn echo(config: ServerConfig) -> Front {
        Front::start(config, Fake::echo(send_back), Ending::Said)
    }

    fn url(&self) -> String {
        format!("wss://localhost:{}/", self.address.port())
    }

    /// What is known of the first connections, of which there are at least `count`.
    fn seen(&self, count: usize) -> Vec<Seen> {
        wait_until("connections are over", || self.seen.lock().expect("no panic").len() >= count);
        self.seen.lock().expect("no panic").clone()
    }
}

fn send_back(peer: &mut Peer, echo: &testkit::Frame) -> io::Result<()> {
    peer.send(&reply(echo.first, &echo.payload))
}

/// Moves bytes between a client that speaks TLS and a server that does not, until both have ended.
fn relay(
    client: &TcpStream,
    server: &TcpStream,
    tls: &mut ServerConnection,
    ending: Ending,
) -> io::Result<()> {
    client.set_nodelay(true)?;
    let (mut from_client, mut from_server) = (true, true);
    let mut bytes = [0; 32 << 10];
    while from_client || from_server {
        while tls.wants_write() {
            match ending {
                Ending::Broken if !tls.is_handshaking() => {
                    let mut records = Vec::new();
                    tls.write_tls(&mut records)?;
                    *records.last_mut().expect("a record") ^= 1;
                    (&*client).write_all(&records)?;
                }
                Ending::Broken | Ending::Said | Ending::Unsaid | Ending::Stubborn => {
                    tls.write_tls(&mut &*client)?;
                }
            }
        }
        let watched = |socket, is_open| {
            PollFd::new(socket, if is_open { PollFlags::IN } else { PollFlags::empty() })
        };
        let mut both = [watched(client, from_client), watched(server, from_server)];
        poll(&mut both, None)?;
        let [client_came, server_came] = both.map(|it| it.revents().contains(PollFlags::IN));
        if client_came && from_client {
            from_client = tls.read_tls(&mut &*client)? > 0;
            let outcome = tls.process_new_packets();
            if outcome.is_err() && ending == Ending::Stubborn {
                return (&*client).read_to_end(&mut Vec::new()).map(drop);
            }
            while tls.wants_write() {
                tls.write_tls(&mut &*client)?;
            }
            outcome.map_err(io::Error::other)?;
            while let Ok(count @ 1..) = tls.reader().read(&mut bytes) {
                (&*server).write_all(&bytes[..count])?;
            }
            if !from_client {
                server.shutdown(Shutdown::Write)?;
            }
        }
        if server_came && from_server {
            let count = (&*server).read(&mut bytes)?;
            tls.writer().write_all(&bytes[..count])?;
            from_server = count > 0;
            if !from_server {
                if ending == Ending::Said {
                    tls.send_close_notify();
                }
                while tls.wants_write() {
                    tls.write_tls(&mut &*client)?;
                }
                client.shutdown(Shutdown::Write)?;
            }
        }
    }
    Ok(())
}

fn case(payload_bytes: usize, messages: u64) -> Case {
    Case { name: "test".to_owned(), payload_bytes, form: Form::Text, messages }
}

fn try_run(url: &str, trust: &Trust, case: &Case) -> Result<Outcome, Problem> {
    let target: Target = url.parse().expect("a target");
    let target = target.trusting(trust);
    let plan = Plan { timeouts: PATIENT, ..Plan::new(&target, case) };
    rtt::run(&plan, &Stop::new().expect("a pipe"))
}

fn run(url: &str, trust: &Trust, case: &Case) -> Outcome {
    let outcome = try_run(url, trust, case).expect("a connection");
    assert!(outcome.problem.is_none(), "{:?}", outcome.problem);
    assert_eq!(outcome.latencies.count(), case.messages);
    outcome
}

/// Why there is no TLS with this server.
fn failure(url: &str, trust: &Trust) -> Failure {
    match try_run(url, trust, &case(16, 1)) {
        Err(Problem::NoTls(failure)) => failure,
        other => panic!("{url}: {other:?}"),
    }
}

#[test]
fn round_trips_are_those_of_both_versions_however_records_are_cut() {
    let place = Place::new("versions");
    for (version, name) in [(&TLS12, "TLS 1.2 with TLS_ECDHE_"), (&TLS13, "TLS 1.3 with TLS_AES_")]
    {
        for record_bytes in [None, Some(64)] {
            let mut config = config(&[version], &place.issued());
            config.max_fragment_size = record_bytes;
            let front = Front::echo(config);
            for (bytes, messages) in [(0, 3), (16, 20), (70_000, 5), (3 << 20, 2)] {
                let outcome = run(&front.url(), &place.trust(), &case(bytes, messages));
                assert_eq!(outcome.farewell, Some(Farewell::Clean), "{bytes}");
                let agreed = outcome.tls.expect("TLS");
                assert!(agreed.starts_with(name), "{agreed}");
            }
        }
    }
}

#[test]
fn a_client_that_spins_gets_the_same_echoes() {
    let place = Place::new("spins");
    let front = Front::echo(place.config());
    let target: Target = front.url().parse().expect("a target");
    let target = target.trusting(&place.trust());
    let case = case(2000, 20);
    let plan = Plan { wait: Wait::Spin, timeouts: PATIENT, ..Plan::new(&target, &case) };
    let outcome = rtt::run(&plan, &Stop::new().expect("a pipe")).expect("a connection");
    assert!(outcome.problem.is_none(), "{:?}", outcome.problem);
    assert_eq!((outcome.latencies.count(), outcome.farewell), (20, Some(Farewell::Clean)));
}

#[test]
fn name_is_told_and_farewell_is_said() {
    let place = Place::new("name");
    let front = Front::echo(place.config());
    run(&front.url(), &place.trust(), &case(16, 1));
    let by_address = format!("wss://127.0.0.1:{}/", front.address.port());
    front.seen(1);
    run(&by_address, &place.trust(), &case(16, 1));
    let seen = front.seen(2);
    let kind = Some(HandshakeKind::Full);
    let seen_of =
        |name: Option<&str>| Seen { name: name.map(ToOwned::to_owned), kind, has_farewell: true };
    assert_eq!(seen, [seen_of(Some("localhost")), seen_of(None)]);
}

#[test]
fn sessions_are_resumed_only_if_that_is_asked_for() {
    let place = Place::new("resumed");
    for version in [&TLS12, &TLS13] {
        for sessions in [Sessions::New, Sessions::Resumed] {
            let mut config = config(&[version], &place.issued());
            config.ticketer = rustls::crypto::ring::Ticketer::new().expect("randomness");
            let front = Front::echo(config);
            let trust = Trust::new(&Accepted::Files(vec![place.ca()]), sessions).expect("files");
            for connection in 1..=2 {
                run(&front.url(), &trust, &case(16, 3));
                front.seen(connection);
            }
            let kinds = [
                HandshakeKind::Full,
                match sessions {
                    Sessions::New => HandshakeKind::Full,
                    Sessions::Resumed => HandshakeKind::Resumed,
                },
            ];
            let seen: Vec<_> = front.seen(2).into_iter().filter_map(|seen| seen.kind).collect();
            assert_eq!(seen, kinds, "{version:?} {sessions:?}");
        }
    }
}

#[test]
fn a_certificate_that_is_not_trusted_says_what_to_do() {
    let place = Place::new("untrusted");
    let front = Front::echo(place.config());
    let other = Place::new("other");
    let untrusted = failure(&front.url(), &other.trust());
    assert_eq!(untrusted, Failure::Untrusted(CertificateError::UnknownIssuer));
    let said = Problem::NoTls(untrusted).to_string();
    assert!(said.contains("--ca FILE") && said.contains("--insecure"), "{said}");
    let kinds = [
        (
            place.authority.issue(&["elsewhere.example"]),
            "not for localhost, but for elsewhere.example;",
        ),
        (place.authority.issue_as(Kind::ServerExpired, &["localhost"]), "has expired"),
        (place.authority.issue_as(Kind::ServerTooEarly, &["localhost"]), "not valid yet"),
        (place.authority.issue_as(Kind::Client, &["localhost"]), "--insecure"),
    ];
    for (issued, words) in kinds {
        let front = Front::echo(config(&[&TLS13, &TLS12], &issued));
        let said = failure(&front.url(), &place.trust()).to_string();
        assert!(said.contains(words) && said.contains("--insecure"), "{said}");
        // What is not checked is not refused.
        run(&front.url(), &trust(&Accepted::Any), &case(16, 3));
    }
}

#[test]
fn a_certificate_that_is_given_itself_is_accepted_for_its_names() {
    let place = Place::new("itself");
    let issued = place.issued();
    // Without the authority that has signed it.
    let [certificate, _] = issued.write(&place.directory, "own");
    let trust = trust(&Accepted::Files(vec![certificate]));
    let front = Front::echo(config(&[&TLS13, &TLS12], &issued));
    run(&front.url(), &trust, &case(16, 3));
    let elsewhere = place.authority.issue(&["elsewhere.example"]);
    let [certificate, _] = elsewhere.write(&place.directory, "elsewhere");
    let trust = self::trust(&Accepted::Files(vec![certificate]));
    let front = Front::echo(config(&[&TLS13, &TLS12], &elsewhere));
    let said = failure(&front.url(), &trust).to_string();
    assert!(said.contains("not for localhost"), "{said}");
}

#[test]
fn who_speaks_something_else_is_told_apart() {
    let place = Place::new("else");
    let trust = place.trust();
    let secure = |fake: &Fake| fake.url().replace("ws:", "wss:");
    // A plain server finds no request, and says so in plain HTTP.
    let plain = Fake::start(|peer, _| {
        peer.stream.read_exact(&mut [0; 5])?;
        peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    });
    let failed = failure(&secure(&plain), &trust);
    assert_eq!(failed, Failure::NotTls);
    assert!(failed.to_string().contains("ws://"), "{failed}");
    let hung_up = Fake::start(|peer, _| {
        peer.stream.read_exact(&mut [0; 5])?;
        peer.stream.read_exact(&mut [0; 100])
    });
    match try_run(&secure(&hung_up), &trust, &case(16, 1)) {
        Err(Problem::NoTls(Failure::Ended) | Problem::Lost(_)) => {}
        other => panic!("{other:?}"),
    }
    let silent = Fake::start(|peer, _| peer.stream.read_to_end(&mut Vec::new()).map(drop));
    let target: Target = secure(&silent).parse().expect("a target");
    let timeouts = Timeouts { handshake: Duration::from_millis(200), ..PATIENT };
    let (case, target) = (case(16, 1), target.trusting(&trust));
    let plan = Plan { timeouts, ..Plan::new(&target, &case) };
    match rtt::run(&plan, &Stop::new().expect("a pipe")) {
        Err(problem @ Problem::TimedOut(Step::Tls, _)) => {
            assert!(problem.to_string().contains("TLS"), "{problem}");
        }
        other => panic!("{other:?}"),
    }
    let front = Front::echo(place.config());
    match try_run(&front.url().replace("wss:", "ws:"), &trust, &case) {
        Err(problem @ Problem::Refused(_)) => {
            assert!(problem.to_string().contains("wss://"), "{problem}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_server_that_wants_a_certificate_of_the_client_says_so() {
    let place = Place::new("client");
    for (version, alert) in [
        (&TLS12, AlertDescription::CertificateRequired),
        (&TLS13, AlertDescription::CertificateRequired),
    ] {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_slice(place.authority.certificate())).expect("a root");
        let provider = Arc::new(default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
        let (chain, key) = chain(&place.issued());
        let config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .expect("a version")
            .with_client_cert_verifier(verifier.build().expect("authorities"))
            .with_single_cert(chain, key)
            .expect("a certificate");
        let failed = failure(&Front::echo(config).url(), &place.trust());
        assert_eq!(failed, Failure::Alert(alert));
        assert!(failed.to_string().contains("certificate of the client"), "{failed}");
    }
}

#[test]
fn a_record_that_was_changed_is_a_lost_connection_that_says_why() {
    let place = Place::new("changed");
    // The request arrives, and the first answer is changed.
    let front = Front::start(place.config(), Fake::echo(send_back), Ending::Broken);
    match try_run(&front.url(), &place.trust(), &case(16, 1)) {
        Err(problem @ Problem::NoTls(Failure::Other(_))) => {
            assert!(problem.to_string().contains("decrypt"), "{problem}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_end_that_tls_does_not_announce_is_an_end_after_a_close_frame() {
    let place = Place::new("unsaid");
    let front = Front::start(place.config(), Fake::echo(send_back), Ending::Unsaid);
    let outcome = run(&front.url(), &place.trust(), &case(16, 3));
    assert_eq!(outcome.farewell, Some(Farewell::Clean));
}

/// The real server over TLS, on threads of this process.
struct Echo {
    server: Option<server::Server>,
    url: String,
}

impl Echo {
    fn start(place: &Place) -> Echo {
        let mut config: Config = cli::defaults();
        let address = Address::Tcp("127.0.0.1:0".parse().expect("an address"));
        config.listen = vec![Endpoint { address, transport: Transport::Tls }];
        config.workers = Some(1);
        config.engine = Some(Engine::Epoll);
        let [certificate, key] = place.issued().write(&place.directory, "server");
        let pairs = vec![Files { certificate, key }];
        let certificates = Certificates::Files(pairs);
        config.tls = Some(Source { certificates, client_ca: None });
        let server = server::Server::start(&config, Vec::new()).expect("a server");
        let url = match &server.endpoints()[0].address {
            Address::Tcp(address) => format!("wss://{address}/"),
            Address::Unix(path) => panic!("{}", path.display()),
        };
        Echo { server: Some(server), url }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            server.control().stop();
            let _ = server.join();
        }
    }
}

/// A short load on the real server.
fn load(echo: &Echo, trust: &Trust, change: impl Fn(&mut load::Plan)) -> Load {
    let target: Target = echo.url.parse().expect("a target");
    let mut plan = load::Plan {
        warm_up: Duration::from_millis(50),
        duration: Duration::from_millis(500),
        drain: GENEROUS,
        close: GENEROUS,
        ..load::Plan::new(target.trusting(trust))
    };
    change(&mut plan);
    let outcome = load::run(&plan, &Stop::new().expect("a pipe"), &mut |_| {}).expect("a load");
    assert_eq!(outcome.problems, Vec::<String>::new());
    let Counts { echoed, wrong, lost, unasked, .. } = outcome.counts();
    assert!(echoed > 0 && (wrong, lost, unasked) == (0, 0, 0), "{:?}", outcome.counts());
    outcome
}

#[test]
fn every_echo_of_a_load_is_right() {
    let place = Place::new("load");
    let (echo, trust) = (Echo::start(&place), place.trust());
    let open = load(&echo, &trust, |plan| plan.connections = 20);
    assert!(open.measurement.description.contains("over TLS 1.3"), "{:?}", open.measurement);
    assert!(open.farewells.warning(GENEROUS).is_none());
    load(&echo, &trust, |plan| {
        (plan.rate, plan.pipeline, plan.connections) = (Rate::Max, 500, 3);
        plan.mix = "16,4096:binary*2,300".parse().expect("a mix");
    });
    // More than the socket has room for, so that bytes wait for it.
    load(&echo, &trust, |plan| {
        (plan.rate, plan.pipeline, plan.connections) = (Rate::Max, 40, 2);
        plan.mix = "1000000:binary".parse().expect("a mix");
    });
    let often = load(&echo, &trust, |plan| {
        (plan.connections, plan.reconnect_every) = (4, Some(20));
    });
    assert!(often.figures().reconnects > 0);
}

/// The verdict on a case, which is told by its number.
fn verdict(url: &str, trust: &Trust, number: &str) -> (Behavior, BehaviorClose) {
    let suite = Suite::servers().cases(number).expect("a case").over_tls(true);
    let target: Target = url.parse().expect("a target");
    let stop = Stop::new().expect("a pipe");
    let report = suite.run_until(&target.trusting(trust), &stop, &mut |_| {}).expect("a server");
    let [case] = &report.results.cases[..] else { panic!("{number}") };
    (case.behavior, case.behavior_close)
}

#[test]
fn the_server_passes_every_case_over_tls() {
    let place = Place::new("conform");
    let echo = Echo::start(&place);
    let target: Target = echo.url.parse().expect("a target");
    let target = target.trusting(&place.trust());
    let suite = Suite::servers().quick().over_tls(true).jobs(16);
    let stop = Stop::new().expect("a pipe");
    let report = suite.run_until(&target, &stop, &mut |_| {}).expect("a server");
    report.assert_as_expected();
    assert_eq!(report.results.suite.cases, 517);
    // The RFC leaves nothing open here.
    let about_tls = report.results.cases.iter().filter(|case| case.case.section() == 26);
    let verdicts: Vec<_> = about_tls.map(|case| (case.case, case.behavior)).collect();
    assert!(verdicts.len() > 10, "{verdicts:?}");
    assert!(verdicts.iter().all(|(_, behavior)| *behavior == Behavior::Ok), "{verdicts:?}");
}

#[test]
fn how_a_server_ends_tls_is_seen() {
    let place = Place::new("ends");
    let verdict_of = |ending, number| {
        let front = Front::start(place.config(), Fake::echo(send_back), ending);
        verdict(&front.url(), &place.trust(), number)
    };
    let (ok, close_ok) = (Behavior::Ok, BehaviorClose::Ok);
    assert_eq!(verdict_of(Ending::Said, "26.2.1"), (ok, close_ok));
    assert_eq!(verdict_of(Ending::Unsaid, "26.2.1"), (Behavior::NonStrict, close_ok));
    assert_eq!(verdict_of(Ending::Said, "26.3.1"), (ok, close_ok));
    assert_eq!(verdict_of(Ending::Stubborn, "26.3.1").0, Behavior::Failed);
    assert_eq!(verdict_of(Ending::Stubborn, "26.3.4").0, Behavior::Failed);
}

/// A client over TLS that echoes, of the crate `tungstenite`, runs all cases.
fn run_cases(url: &str, cases: usize, trust: &RootCertStore) {
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()));
    let config = builder.with_safe_default_protocol_versions().expect("versions");
    let config = config.with_root_certificates(trust.clone()).with_no_client_auth();
    let config = Arc::new(config);
    for case in 1..=cases {
        let stream = TcpStream::connect(&url["wss://".len()..]).expect("a listener");
        stream.set_nodelay(true).expect("a socket");
        let name = ServerName::try_from("127.0.0.1").expect("an address");
        let tls = ClientConnection::new(Arc::clone(&config), name).expect("a client");
        let stream = StreamOwned::new(tls, stream);
        let url = format!("{url}/runCase?case={case}&agent=tungstenite").replace("wss:", "ws:");
        let Ok((mut socket, _)) = tungstenite::client(url, stream) else { continue };
        while let Ok(message) = socket.read() {
            if (message.is_text() || message.is_binary()) && socket.send(message).is_err() {
                break;
            }
        }
        let _ = socket.flush();
        let tls = socket.get_mut();
        tls.conn.send_close_notify();
        let _ = tls.conn.complete_io(&mut tls.sock);
    }
}

#[test]
fn a_client_runs_cases_over_tls() {
    let place = Place::new("client-cases");
    let [certificate, key] = place.issued().write(&place.directory, "server");
    let certificates = Certificates::Files(vec![Files { certificate, key }]);
    let source = Source { certificates, client_ca: None };
    let (tls, _) = Tls::load(&source, &[]).expect("files");
    let address: Address = "127.0.0.1:0".parse().expect("an address");
    let suite = Suite::clients().cases("1.*,5.*,7.1.*,26.*").expect("cases");
    let stop = Stop::new().expect("a pipe");
    let acceptor: Arc<dyn Acceptor> = Arc::new(tls);
    let serving = suite
        .serve_through(&address, Some(acceptor), Until::Stopped, &stop, Box::new(|_| {}))
        .expect("a listener");
    assert!(serving.url().starts_with("wss://"), "{}", serving.url());
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_slice(place.authority.certificate())).expect("a root");
    run_cases(serving.url(), serving.cases(), &roots);
    // The client may be done before the last verdict is.
    let is_done = |report: &Report| report.judged.len() == serving.cases();
    wait_until("every case is judged", || serving.reports().iter().any(is_done));
    let reports = serving.finish();
    let [report] = &reports[..] else { panic!("one client") };
    report.assert_as_expected();
    assert!(report.results.cases.iter().any(|case| case.case.section() == 26));
}

fn ringbench(arguments: &[&str]) -> Ended {
    run_by(Command::new(env!("CARGO_BIN_EXE_ringbench")).args(arguments))
}

fn assert_contains(text: &str, words: &str) {
    assert!(text.contains(words), "{words:?} in {text}");
}

#[test]
fn commands_say_what_was_agreed_and_what_was_not_checked() {
    let place = Place::new("commands");
    let echo = Echo::start(&place);
    let (prefix, ca) = (place.directory.join("result"), place.ca());
    let text = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    let (output, ca) = (text(&prefix), text(&ca));
    let rtt = ["rtt", &echo.url, "--size", "16", "--messages", "20", "--rounds", "2"];
    let refused = ringbench(&[&rtt[..], &["--ca", "/dev/null"]].concat());
    assert_contains(&refused.stderr, "--ca /dev/null has no certificate in PEM");
    let checked = ringbench(&[&rtt[..], &["--ca", &ca, "--output", &output]].concat());
    assert!(checked.status.success(), "{checked:?}");
    assert!(!checked.stdout.contains("--insecure"), "{}", checked.stdout);
    let result = Results::read(&prefix.with_extension("json")).expect("a result");
    assert_contains(&result.measurements[0].description, "Over TLS 1.3 with TLS_");
    let unchecked = ringbench(&[&rtt[..], &["--insecure", "--output", &output]].concat());
    assert!(unchecked.status.success(), "{unchecked:?}");
    assert_contains(&unchecked.stdout, "warning: Nobody checked whose certificate");
    let result = Results::read(&prefix.with_extension("json")).expect("a result");
    assert!(result.warnings.iter().any(|warning| warning.contains("--insecure")));
    let common = ["--ca", ca.as_str(), "--duration", "200ms", "--warm-up", "50ms"];
    let load = ringbench(&[&["load", &echo.url], &common[..]].concat());
    assert!(load.status.success(), "{load:?}");
    let named = [format!("a={}", echo.url), format!("b={}", echo.url)];
    let compare = ["compare", &named[0], &named[1], "--rounds", "2", "--messages", "20"];
    let compare = ringbench(&[&compare[..], &["--ca", &ca, "--tls-resume"]].concat());
    assert!(compare.status.success(), "{compare:?}");
    let conform = ["conform", "--case", "1.1.*,26.1.*", &echo.url];
    let conform = |options: &[&str]| ringbench(&[&conform[..], options].concat());
    let json = place.directory.join("conform.json");
    let unchecked = conform(&["--insecure", "--json", &text(&json)]);
    assert!(unchecked.status.success(), "{unchecked:?}");
    assert_contains(&unchecked.stdout, "note: Nobody checked whose certificate");
    let written = fs::read_to_string(&json).expect("a file");
    assert_contains(&written, "Nobody checked whose certificate");
    assert_contains(&written, "\"26.1.7\"");
    let untrusted = conform(&[]);
    assert_contains(&untrusted.stderr, "--ca FILE");
    for (options, complaint) in [
        ("--serve 127.0.0.1:0 --tls-self-signed", "need --serve wss://"),
        ("--serve wss://127.0.0.1:0", "--tls-self-signed"),
        ("--serve wss://127.0.0.1:0 --tls-self-signed --insecure", "--serve tests clients"),
        ("ws://127.0.0.1:1/ --case 26", "need wss://"),
    ] {
        let words: Vec<&str> = options.split(' ').collect();
        let ended = ringbench(&[&["conform"], &words[..]].concat());
        assert_eq!(ended.status.code(), Some(2), "{ended:?}");
        assert_contains(&ended.stderr.split_whitespace().collect::<Vec<_>>().join(" "), complaint);
    }
    for useless in ["--insecure", "--tls-resume"] {
        let ended = ringbench(&["load", "ws://127.0.0.1:1/", useless]);
        assert_eq!(ended.status.code(), Some(2), "{ended:?}");
        assert_contains(&ended.stderr, "no effect without a target that begins with wss://");
    }
    let both = ringbench(&["load", &echo.url, "--insecure", "--ca", &ca]);
    assert_eq!(both.status.code(), Some(2), "{both:?}");
}
