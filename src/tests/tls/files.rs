//! Certificates and keys in files, at the start and when they are read again.

use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;

use rustix::process::Signal;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring::default_provider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::version::TLS13;
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use testkit::certificate::{Kind, pem};
use testkit::{BINARY, Client, Issued, Server, TEXT, pattern, run, wait_until};

use crate::{Place, end, on_every_engine, options, stream, text};

/// The certificate that a new connection gets.
fn shown(place: &Place, address: SocketAddr) -> Vec<u8> {
    let mut client = place.connect(address, &TLS13);
    client.echo(TEXT, b"new");
    let shown = client.stream().conn.peer_certificates().expect("one")[0].to_vec();
    client.close();
    shown
}

/// Replaces a file in one step.
fn replace(path: &Path, content: &str) {
    let new = path.with_extension("new");
    fs::write(&new, content).expect("a file");
    fs::rename(&new, path).expect("a file");
}

fn renew(paths: &[std::path::PathBuf; 2], issued: &Issued) {
    replace(&paths[1], &pem("PRIVATE KEY", &issued.key));
    replace(&paths[0], &pem("CERTIFICATE", &issued.certificate));
}

#[test]
fn what_is_wrong_with_a_file_is_said_in_one_line() {
    let place = Place::new();
    let own = place.authority.issue(&["localhost"]).write(place.directory.path(), "own");
    let other = place.authority.issue(&["localhost"]).write(place.directory.path(), "other");
    let [certificate, key] = own.map(|path| text(&path));
    let missing = text(&place.path("missing"));
    for (certificate, key, told) in [
        (&missing, &key, format!("cannot read --tls-cert {missing}")),
        (&certificate, &missing, format!("cannot read --tls-key {missing}")),
        (&key, &key, format!("--tls-cert {key} has a private key")),
        (&certificate, &text(&other[1]), "does not belong to the first certificate".into()),
    ] {
        let ended =
            run(&["--listen", "wss://127.0.0.1:0", "--tls-cert", certificate, "--tls-key", key]);
        assert_eq!((ended.status.code(), &*ended.stdout), (Some(1), ""), "{ended:?}");
        let line = ended.stderr.strip_suffix('\n').expect("a line");
        assert!(line.starts_with("ringecho: ") && line.contains(&told), "{line}");
        assert!(!line.contains('\n'), "{line}");
    }
}

#[test]
fn an_expired_certificate_is_served_and_complained_about() {
    let place = Place::new();
    let expired = place.authority.issue_as(Kind::ServerExpired, &["localhost"]);
    let paths = expired.write(place.directory.path(), "expired");
    let files = options(&paths);
    let files: Vec<&str> = files.iter().map(String::as_str).collect();
    let server = Server::start(&[&["--listen", "wss://127.0.0.1:0"], &files[..]].concat());
    let error = { stream(server.address(), place.config(&TLS13)) }.flush();
    assert!(error.expect_err("it has expired").to_string().contains("expired"));
    let ended = end(server);
    let told = format!("the certificate in --tls-cert {} expired", paths[0].display());
    assert!(ended.stderr.contains(&told), "{ended:?}");
}

/// Takes any certificate.
#[derive(Debug)]
struct Anything;

impl ServerCertVerifier for Anything {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        default_provider().signature_verification_algorithms.supported_schemes()
    }
}

#[test]
fn a_certificate_for_trying_out_has_the_fingerprint_that_is_shown() {
    on_every_engine(|engine| {
        let arguments = ["--listen", "wss://127.0.0.1:0", "--tls-self-signed", "--workers", "1"];
        let server = Server::start(&[engine, &arguments].concat());
        let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(&[&TLS13])
            .expect("a version")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anything))
            .with_no_client_auth();
        let connect = || {
            let mut client = Client::over(stream(server.address(), config.clone()));
            client.handshake();
            client.echo(TEXT, b"hello");
            let shown = client.stream().conn.peer_certificates().expect("one")[0].clone();
            client.close();
            shown
        };
        let shown = connect();
        // There is nothing to read again.
        server.signal(Signal::HUP);
        assert_eq!(connect(), shown);
        let digest = ring::digest::digest(&ring::digest::SHA256, &shown);
        let bytes: Vec<String> = digest.as_ref().iter().map(|it| format!("{it:02X}")).collect();
        let ended = end(server);
        assert!(ended.stderr.contains(&bytes.join(":")), "{ended:?}");
    });
}

#[test]
fn certificates_are_renewed_under_load_and_connections_are_kept() {
    let place = Place::new();
    on_every_engine(|engine| {
        let name = engine[1];
        let paths = place.authority.issue(&["localhost"]).write(place.directory.path(), name);
        let files = options(&paths);
        let files: Vec<&str> = files.iter().map(String::as_str).collect();
        let listen = ["--listen", "wss://127.0.0.1:0", "--workers", "2"];
        let server = Server::start(&[engine, &listen, &files[..]].concat());
        let address = server.address();
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    // One that stays, and ones that come and go.
                    let mut kept = place.connect(address, &TLS13);
                    while !is_over.load(Relaxed) {
                        kept.echo(BINARY, &pattern(20_000));
                        let mut new = place.connect(address, &TLS13);
                        new.echo(TEXT, b"new");
                        new.close();
                    }
                    kept.close();
                });
            }
            for _ in 0..3 {
                let renewed = place.authority.issue(&["localhost"]);
                renew(&paths, &renewed);
                server.signal(Signal::HUP);
                wait_until("the renewed certificate is shown", || {
                    shown(&place, address) == renewed.certificate
                });
                // A file that is no good changes nothing.
                replace(&paths[0], "no certificate");
                server.signal(Signal::HUP);
                // The signal has been obeyed when a later one has.
                server.count("messages");
                assert!(shown(&place, address) == renewed.certificate);
            }
            is_over.store(true, Relaxed);
        });
        server.wait_for_count("connections_open", 0);
        let ended = end(server);
        let told = |text: &str| ended.stderr.matches(text).count();
        assert_eq!(told("new connections get the certificates that the files have now"), 3);
        assert_eq!(told("has no certificate in PEM"), 3, "{ended:?}");
        assert_eq!(ended.count("tls_failures"), 0, "{ended:?}");
    });
}

#[test]
fn a_link_may_lead_to_another_file_of_the_same_directory_and_not_elsewhere() {
    let place = Place::new();
    // As certbot keeps them.
    let [live, archive, elsewhere] = ["live", "archive", "elsewhere"].map(|name| place.path(name));
    for directory in [&live, &archive, &elsewhere] {
        fs::create_dir(directory).expect("a directory");
    }
    let link = |target: &[std::path::PathBuf; 2]| {
        for (name, target) in ["cert", "key"].iter().zip(target) {
            let new = live.join("new");
            std::os::unix::fs::symlink(target, &new).expect("a link");
            fs::rename(&new, live.join(name)).expect("a link");
        }
    };
    let issued = || place.authority.issue(&["localhost"]);
    link(&issued().write(&archive, "1"));
    let files = options(&[live.join("cert"), live.join("key")]);
    let files: Vec<&str> = files.iter().map(String::as_str).collect();
    let server = Server::start(&[&["--listen", "wss://127.0.0.1:0"], &files[..]].concat());
    let second = issued();
    link(&second.write(&archive, "2"));
    server.signal(Signal::HUP);
    wait_until("the second is shown", || shown(&place, server.address()) == second.certificate);
    link(&issued().write(&elsewhere, "3"));
    server.signal(Signal::HUP);
    server.count("messages");
    let is_enforced = shown(&place, server.address()) == second.certificate;
    let ended = end(server);
    assert!(is_enforced || ended.stderr.contains("the sandbox is incomplete"), "{ended:?}");
    assert_eq!(is_enforced, ended.stderr.contains("cannot read --tls-cert"), "{ended:?}");
}

#[test]
fn without_tls_a_hangup_changes_nothing() {
    let server = Server::start(&["--workers", "1"]);
    let mut client = Client::connect(server.address());
    server.signal(Signal::HUP);
    client.echo(TEXT, b"still here");
    client.close();
    assert!(!end(server).stderr.contains("certificate"));
}
