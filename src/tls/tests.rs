//! The server's TLS against the client of rustls, in memory.

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use rustls::client::{ClientConnection, Resumption};
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::PrivateKeyDer;
use rustls::{
    AlertDescription, ClientConfig, HandshakeKind, RootCertStore, SignatureScheme,
    SupportedCipherSuite, SupportedProtocolVersion, Tls12CipherSuite,
};
use testkit::certificate::{Kind, pem};
use testkit::{Authority, Issued, cases};

use super::*;
use crate::protocol::Progress;

const VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS12, &TLS13];

/// An authority, a directory, and what a server reads there.
struct Place {
    authority: Authority,
    directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let directory = tempfile::tempdir().expect("a directory");
        Place { authority: Authority::new("an authority of the tests"), directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, issued: &Issued) -> Files {
        let [certificate, key] = issued.write(self.directory.path(), name);
        Files { certificate, key }
    }

    fn files(&self, name: &str, names: &[&str]) -> Files {
        self.write(name, &self.authority.issue(names))
    }

    /// A server with one certificate, for `localhost`.
    fn server(&self) -> Tls {
        server(vec![self.files("own", &["localhost"])])
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_slice(self.authority.certificate())).expect("a root");
        roots
    }

    /// A client of this version that trusts the authority.
    fn client_config(&self, version: &'static SupportedProtocolVersion) -> ClientConfig {
        client_config(Arc::new(provider::default_provider()), version, self.roots())
    }
}

fn client_config(
    provider: Arc<CryptoProvider>,
    version: &'static SupportedProtocolVersion,
    roots: RootCertStore,
) -> ClientConfig {
    ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .expect("a version")
        .with_root_certificates(roots)
        .with_no_client_auth()
}

fn source(pairs: Vec<Files>) -> Source {
    Source { certificates: Certificates::Files(pairs), client_ca: None }
}

fn server(pairs: Vec<Files>) -> Tls {
    let (tls, doubts) = Tls::load(&source(pairs), &[]).expect("files");
    assert_eq!(doubts, Doubts::new());
    tls
}

fn error(pairs: Vec<Files>) -> String {
    Tls::load(&source(pairs), &[]).expect_err("a flaw").to_string()
}

/// Both sides of a connection, and what the server's has opened.
struct Pair {
    client: ClientConnection,
    layer: Box<dyn Layer>,
    plain: Vec<u8>,
}

impl Pair {
    fn new(config: ClientConfig, tls: &Tls) -> Pair {
        Pair::to("localhost", config, tls)
    }

    fn to(name: &str, config: ClientConfig, tls: &Tls) -> Pair {
        let name = ServerName::try_from(name.to_owned()).expect("a name");
        let client = ClientConnection::new(Arc::new(config), name).expect("a client");
        Pair { client, layer: tls.accept(), plain: Vec::new() }
    }

    /// After the handshake.
    fn open(config: ClientConfig, tls: &Tls) -> Pair {
        let mut pair = Pair::new(config, tls);
        pair.handshake().expect("they agree");
        pair
    }

    /// What the client has to send.
    fn written(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        while self.client.wants_write() {
            self.client.write_tls(&mut bytes).expect("memory");
        }
        bytes
    }

    /// Gives the server bytes, and the client what it answers.
    fn give(&mut self, bytes: &mut [u8]) -> Result<Progress, Error> {
        let mut sealed = Vec::new();
        let progress = self.layer.open(bytes, &mut self.plain, &mut sealed);
        self.take(&sealed).map(|()| progress)
    }

    /// Gives the client what the server has sealed.
    fn take(&mut self, mut sealed: &[u8]) -> Result<(), Error> {
        while !sealed.is_empty() {
            self.client.read_tls(&mut sealed).expect("memory");
            self.client.process_new_packets()?;
        }
        Ok(())
    }

    /// Lets both talk until neither has more to say.
    fn handshake(&mut self) -> Result<(), Error> {
        loop {
            let mut bytes = self.written();
            if bytes.is_empty() {
                assert!(self.layer.is_open());
                return Ok(());
            }
            assert_eq!(self.give(&mut bytes)?, Progress::Continue);
        }
    }

    /// What the client sends as `plain`, sealed.
    fn sent(&mut self, plain: &[u8]) -> Vec<u8> {
        let mut sealed = Vec::new();
        for piece in plain.chunks(8 << 10) {
            self.client.writer().write_all(piece).expect("memory");
            sealed.extend(self.written());
        }
        sealed
    }

    /// Seals what the server says, and has the client read it.
    fn reply(&mut self, plain: &[u8]) -> Vec<u8> {
        let mut sealed = Vec::new();
        self.layer.seal(plain, &mut sealed);
        let mut heard = Vec::new();
        for piece in sealed.chunks(4096) {
            self.take(piece).expect("the client opens it");
            let available = self.client.process_new_packets().expect("no error");
            let end = heard.len() + available.plaintext_bytes_to_read();
            let begin = heard.len();
            heard.resize(end, 0);
            self.client.reader().read_exact(&mut heard[begin..]).expect("it is there");
        }
        heard
    }
}

#[test]
fn whatever_is_said_arrives_however_it_is_cut() {
    let place = Place::new();
    let tls = place.server();
    for (mut case, version) in
        cases("whatever_is_said_arrives_however_it_is_cut", 40).zip(VERSIONS.into_iter().cycle())
    {
        let mut pair = Pair::new(place.client_config(version), &tls);
        let most = 1 << case.random.below(17);
        let feed = |pair: &mut Pair, mut bytes: &mut [u8], case: &mut testkit::Case| {
            while !bytes.is_empty() {
                let (first, rest) =
                    bytes.split_at_mut(1 + case.random.below(bytes.len().min(most)));
                assert_eq!(pair.give(first), Ok(Progress::Continue));
                bytes = rest;
            }
        };
        loop {
            let mut bytes = pair.written();
            if bytes.is_empty() {
                break;
            }
            feed(&mut pair, &mut bytes, &mut case);
        }
        assert!(pair.layer.is_open());
        for _ in 0..10 {
            let most = 1 << case.random.below(18);
            let length = case.random.below(most);
            let said = case.random.bytes(length);
            let mut sealed = pair.sent(&said);
            feed(&mut pair, &mut sealed, &mut case);
            assert!(std::mem::take(&mut pair.plain) == said, "{length} bytes");
            assert_eq!(pair.layer.held_bytes(), 0, "nothing is held between two messages");
            assert!(pair.reply(&said) == said, "{length} bytes");
        }
    }
}

#[test]
fn a_handshake_may_come_byte_by_byte() {
    let place = Place::new();
    let tls = place.server();
    for version in VERSIONS {
        let mut pair = Pair::new(place.client_config(version), &tls);
        loop {
            let mut bytes = pair.written();
            if bytes.is_empty() {
                break;
            }
            for byte in &mut bytes {
                assert!(pair.layer.held_bytes() <= 4096);
                assert_eq!(pair.give(std::slice::from_mut(byte)), Ok(Progress::Continue));
            }
        }
        assert!(pair.layer.is_open() && !pair.client.is_handshaking());
        assert_eq!(pair.client.protocol_version(), Some(version.version));
        assert_eq!(pair.layer.held_bytes(), 0);
    }
}

#[test]
fn what_was_changed_on_its_way_ends_the_connection_and_the_peer_is_told() {
    let place = Place::new();
    let tls = place.server();
    for version in VERSIONS {
        for broken in [5, 6, 20] {
            let mut pair = Pair::open(place.client_config(version), &tls);
            let mut sealed = pair.sent(b"hello, hello, hello");
            sealed[broken] ^= 1;
            let told = pair.give(&mut sealed).expect_err("an alert");
            assert_eq!(told, Error::AlertReceived(AlertDescription::BadRecordMac));
            assert!(pair.plain.is_empty());
            // What follows is not even looked at.
            let mut nothing = Vec::new();
            let mut later = pair.written();
            later.push(0);
            assert_eq!(pair.layer.open(&mut later, &mut pair.plain, &mut nothing), Progress::Ended);
            assert!(nothing.is_empty() && pair.plain.is_empty());
        }
    }
}

#[test]
fn what_is_no_tls_ends_the_connection() {
    let place = Place::new();
    let tls = place.server();
    for bytes in [
        &b"\x00\x00\x00\x00\x00\x00"[..],
        // A record that is longer than any may be.
        b"\x16\x03\x01\xff\xff\x01",
        // Application data first.
        b"\x17\x03\x03\x00\x01a",
        // A ServerHello.
        b"\x16\x03\x03\x00\x04\x02\x00\x00\x00",
        // The version of SSL 2.
        b"\x80\x2e\x01\x00\x02\x00",
    ] {
        for cut in 1..bytes.len() {
            let mut layer = tls.accept();
            let (mut plain, mut sealed) = (Vec::new(), Vec::new());
            let (first, second) = bytes.split_at(cut);
            let mut progress = layer.open(&mut first.to_vec(), &mut plain, &mut sealed);
            if progress == Progress::Continue {
                progress = layer.open(&mut second.to_vec(), &mut plain, &mut sealed);
            }
            assert_eq!(progress, Progress::Failed, "{bytes:x?} cut at {cut}");
            assert_eq!(sealed.first(), Some(&21), "{bytes:x?}: an alert");
            assert!(plain.is_empty() && !layer.is_open());
        }
    }
}

#[test]
fn plain_http_is_told_to_speak_tls() {
    let tls = Place::new().server();
    let mut layer = tls.accept();
    let mut sealed = Vec::new();
    let progress = layer.open(&mut b"GET / HTTP/1.1\r\n".to_vec(), &mut Vec::new(), &mut sealed);
    assert_eq!(progress, Progress::Failed);
    let response = String::from_utf8(sealed).expect("ASCII");
    let (head, content) = response.split_once("\r\n\r\n").expect("a head");
    assert!(head.starts_with("HTTP/1.1 400 "), "{head}");
    assert!(head.contains(&format!("\r\nContent-Length: {}\r\n", content.len())), "{head}");
    assert!(content.contains("wss://"), "{content}");
}

#[test]
fn either_side_may_say_first_that_nothing_more_follows() {
    let place = Place::new();
    let tls = place.server();
    for version in VERSIONS {
        let mut pair = Pair::open(place.client_config(version), &tls);
        pair.client.send_close_notify();
        let mut sealed = pair.written();
        sealed.extend(b"never looked at");
        assert_eq!(pair.give(&mut sealed), Ok(Progress::Ended));
        // The other direction is still open.
        assert_eq!(pair.reply(b"the rest"), b"the rest");
        let mut farewell = Vec::new();
        pair.layer.close(&mut farewell);
        pair.take(&farewell).expect("it is an end");
        assert!(pair.client.process_new_packets().expect("no error").peer_has_closed());

        let mut pair = Pair::open(place.client_config(version), &tls);
        let mut farewell = Vec::new();
        pair.layer.close(&mut farewell);
        pair.take(&farewell).expect("it is an end");
        assert!(pair.client.process_new_packets().expect("no error").peer_has_closed());
        let mut sealed = pair.sent(b"late");
        assert_eq!(pair.give(&mut sealed), Ok(Progress::Continue));
        assert_eq!(pair.plain, b"late");
    }
}

#[test]
fn nothing_is_sealed_before_the_handshake_is_done() {
    let place = Place::new();
    let tls = place.server();
    for version in VERSIONS {
        let mut pair = Pair::new(place.client_config(version), &tls);
        let mut hello = pair.written();
        assert_eq!(pair.give(&mut hello), Ok(Progress::Continue));
        assert!(!pair.layer.is_open());
        let mut sealed = Vec::new();
        pair.layer.close(&mut sealed);
        assert!(sealed.is_empty());
    }
}

#[test]
fn new_keys_are_taken_whenever_the_peer_wants_them() {
    let place = Place::new();
    let mut pair = Pair::open(place.client_config(&TLS13), &place.server());
    for number in 0..20_u8 {
        pair.client.refresh_traffic_keys().expect("TLS 1.3");
        let mut sealed = pair.sent(&[number]);
        assert_eq!(pair.give(&mut sealed), Ok(Progress::Continue));
        assert_eq!(std::mem::take(&mut pair.plain), [number]);
        assert_eq!(pair.reply(&[number]), [number]);
    }
}

#[test]
fn used_up_keys_end_a_connection_that_cannot_have_new_ones() {
    const LIMIT: u64 = 100;
    let place = Place::new();
    let SupportedCipherSuite::Tls12(suite) =
        provider::cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
    else {
        panic!("a suite of TLS 1.2")
    };
    let common = rustls::CipherSuiteCommon {
        confidentiality_limit: LIMIT,
        ..rustls::CipherSuiteCommon {
            suite: suite.common.suite,
            hash_provider: suite.common.hash_provider,
            confidentiality_limit: 0,
        }
    };
    let suite: &'static Tls12CipherSuite = Box::leak(Box::new(Tls12CipherSuite {
        common,
        prf_provider: suite.prf_provider,
        kx: suite.kx,
        sign: suite.sign,
        aead_alg: suite.aead_alg,
    }));
    let provider = CryptoProvider {
        cipher_suites: vec![SupportedCipherSuite::Tls12(suite)],
        ..provider::default_provider()
    };
    let (key, _) = place.files("own", &["localhost"]).read(&provider).expect("files");
    let config = ServerConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&TLS12])
        .expect("a version")
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(ByName(vec![Arc::new(key)])));
    let mut pair = Pair::new(place.client_config(&TLS12), &place.server());
    pair.layer = layer::accepting(Arc::new(config)).expect("a layer");
    pair.handshake().expect("they agree");
    let mut echoed = 0;
    while pair.layer.is_open() {
        let heard = pair.reply(b"again");
        assert!(heard.is_empty() != pair.layer.is_open());
        echoed += heard.len() / 5;
    }
    assert!((10..LIMIT as usize).contains(&echoed), "{echoed}");
    assert!(pair.client.process_new_packets().expect("no error").peer_has_closed());
    assert_eq!(pair.layer.open(&mut [0], &mut Vec::new(), &mut Vec::new()), Progress::Ended);
}

/// The certificate that a client of this version gets who asks for `name`.
fn shown(place: &Place, tls: &Tls, name: &str) -> Result<Vec<u8>, Error> {
    let mut pair = Pair::to(name, place.client_config(&TLS13), tls);
    pair.handshake()?;
    Ok(pair.client.peer_certificates().expect("a certificate")[0].to_vec())
}

#[test]
fn a_client_gets_the_certificate_for_its_name() {
    let place = Place::new();
    let issued = [&["one.example"][..], &["*.two.example", "127.0.0.1"], &["one.example"]]
        .map(|names| place.authority.issue(names));
    let tls = server(
        issued
            .iter()
            .zip(["a", "b", "c"])
            .map(|(issued, name)| place.write(name, issued))
            .collect(),
    );
    assert_eq!(shown(&place, &tls, "one.example"), Ok(issued[0].certificate.clone()));
    assert_eq!(shown(&place, &tls, "ONE.example"), Ok(issued[0].certificate.clone()));
    assert_eq!(shown(&place, &tls, "www.two.example"), Ok(issued[1].certificate.clone()));
    // No name comes for an address, nor is there a certificate for any other name: the first, which does not suit.
    for name in ["127.0.0.1", "three.example"] {
        let error = shown(&place, &tls, name).expect_err("another certificate");
        assert!(matches!(error, Error::InvalidCertificate(_)), "{error}");
    }
}

#[test]
fn a_client_gets_a_certificate_whose_kind_it_knows() {
    let place = Place::new();
    let new = place.authority.issue_as(Kind::ServerEd25519, &["localhost"]);
    let old = place.authority.issue(&["localhost"]);
    let tls = server(vec![place.write("new", &new), place.write("old", &old)]);
    assert_eq!(shown(&place, &tls, "localhost"), Ok(new.certificate));
    let mut provider = provider::default_provider();
    let known = provider.signature_verification_algorithms;
    let mapping: Vec<_> =
        known.mapping.iter().copied().filter(|(it, _)| *it != SignatureScheme::ED25519).collect();
    provider.signature_verification_algorithms =
        WebPkiSupportedAlgorithms { all: known.all, mapping: mapping.leak() };
    for version in VERSIONS {
        let config = client_config(Arc::new(provider.clone()), version, place.roots());
        let pair = Pair::open(config, &tls);
        assert_eq!(*pair.client.peer_certificates().expect("one")[0], *old.certificate);
    }
}

#[test]
fn sessions_are_resumed_until_the_files_are_read_again() {
    let place = Place::new();
    let tls = place.server();
    for version in VERSIONS {
        let mut config = place.client_config(version);
        config.resumption = Resumption::in_memory_sessions(8);
        let kind = || {
            // A client learns of a ticket after the handshake.
            let mut pair = Pair::open(config.clone(), &tls);
            let mut sealed = pair.sent(b"x");
            assert_eq!(pair.give(&mut sealed), Ok(Progress::Continue));
            pair.client.handshake_kind()
        };
        assert_eq!(kind(), Some(HandshakeKind::Full));
        assert_eq!(kind(), Some(HandshakeKind::Resumed));
        tls.reload().expect("the files");
        assert_eq!(kind(), Some(HandshakeKind::Full));
        assert_eq!(kind(), Some(HandshakeKind::Resumed));
    }
}

#[test]
fn what_is_read_again_is_for_new_connections() {
    let place = Place::new();
    let tls = place.server();
    let mut older = Pair::open(place.client_config(&TLS13), &tls);
    let before = shown(&place, &tls, "localhost").expect("the first");
    let renewed = place.authority.issue(&["localhost"]);
    let files = place.write("own", &renewed);
    tls.reload().expect("a good file");
    assert_ne!(before, renewed.certificate);
    assert_eq!(shown(&place, &tls, "localhost"), Ok(renewed.certificate.clone()));
    // The certificate is new and its key is not yet.
    fs::write(&files.certificate, pem("CERTIFICATE", &before)).expect("a file");
    let error = tls.reload().expect_err("they do not match").to_string();
    assert!(error.contains("does not belong"), "{error}");
    assert_eq!(shown(&place, &tls, "localhost"), Ok(renewed.certificate));
    assert_eq!(older.reply(b"still here"), b"still here");
}

#[test]
fn only_http_1_1_is_spoken() {
    let place = Place::new();
    let tls = place.server();
    for version in VERSIONS {
        let mut config = place.client_config(version);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let pair = Pair::open(config.clone(), &tls);
        assert_eq!(pair.client.alpn_protocol(), Some(&b"http/1.1"[..]));
        config.alpn_protocols.pop();
        let told = Pair::new(config, &tls).handshake().expect_err("there is no HTTP/2");
        assert_eq!(told, Error::AlertReceived(AlertDescription::NoApplicationProtocol));
    }
}

#[test]
fn client_certificates_are_demanded() {
    let place = Place::new();
    let others = Authority::new("another authority");
    fs::write(place.path("ca.pem"), pem("CERTIFICATE", place.authority.certificate()))
        .expect("a file");
    let source = Source {
        client_ca: Some(place.path("ca.pem")),
        ..source(vec![place.files("own", &["localhost"])])
    };
    let (tls, _) = Tls::load(&source, &[]).expect("files");
    let attempt = |version, shown: Option<Issued>| {
        let builder = ClientConfig::builder_with_provider(provider::default_provider().into())
            .with_protocol_versions(&[version])
            .expect("a version")
            .with_root_certificates(place.roots());
        let config = match shown {
            None => builder.with_no_client_auth(),
            Some(Issued { certificate, key }) => builder
                .with_client_auth_cert(vec![certificate.into()], PrivateKeyDer::Pkcs8(key.into()))
                .expect("a key"),
        };
        Pair::new(config, &tls).handshake()
    };
    for version in VERSIONS {
        let own = place.authority.issue_as(Kind::Client, &["somebody"]);
        assert_eq!(attempt(version, Some(own)), Ok(()));
        let missing = Error::AlertReceived(AlertDescription::CertificateRequired);
        assert_eq!(attempt(version, None), Err(missing));
        for foreign in [
            others.issue_as(Kind::Client, &["somebody"]),
            // It is for servers.
            place.authority.issue(&["somebody"]),
        ] {
            let told = attempt(version, Some(foreign)).expect_err("it is not trusted");
            assert!(matches!(told, Error::AlertReceived(_)), "{told}");
        }
    }
}

#[test]
fn its_own_certificate_has_the_names_of_this_machine_and_a_fingerprint() {
    let source = Source { certificates: Certificates::SelfSigned, client_ca: None };
    let addresses = ["192.0.2.7", "0.0.0.0", "127.0.0.1"];
    let addresses = addresses.map(|address| address.parse().expect("an address"));
    let (tls, doubts) = Tls::load(&source, &addresses).expect("randomness");
    assert_eq!(doubts, Doubts::new());
    let own = tls.self_signed.as_ref().expect("its own").cert[0].clone();
    let text = tls.own_fingerprint().expect("its own");
    assert_eq!(text.len(), 32 * 3 - 1);
    assert!(text.starts_with(&format!("{:02X}:", digest(&SHA256, &own).as_ref()[0])));
    let mut roots = RootCertStore::empty();
    roots.add(own.clone()).expect("a root");
    for name in ["localhost", "127.0.0.1", "::1", "192.0.2.7"] {
        for version in VERSIONS {
            let config = client_config(provider::default_provider().into(), version, roots.clone());
            let mut pair = Pair::to(name, config, &tls);
            pair.handshake().unwrap_or_else(|error| panic!("{name}: {error}"));
        }
    }
    tls.reload().expect("there is nothing to read");
    assert_eq!(tls.own_fingerprint(), Some(text), "it stays the same");
}

#[test]
fn errors_name_the_file_and_say_what_to_do() {
    let place = Place::new();
    let Files { certificate, key } = place.files("own", &["localhost"]);
    let foreign = place.files("foreign", &["localhost"]);
    let write = |name: &str, bytes: &[u8]| {
        fs::write(place.path(name), bytes).expect("a file");
        place.path(name)
    };
    let empty = write("empty", b"");
    let binary = write("binary", &place.authority.issue(&["x"]).certificate);
    let garbled =
        write("garbled", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    let cut = write("cut", &fs::read(&certificate).expect("a file")[..200]);
    let encrypted = write("encrypted", pem("ENCRYPTED PRIVATE KEY", b"secret").as_bytes());
    let old = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\n\
               AAAA\n-----END RSA PRIVATE KEY-----\n";
    let encrypted_before = write("encrypted-before", old.as_bytes());
    let no_key = write("no-key", pem("PRIVATE KEY", b"no key").as_bytes());
    let missing = place.path("missing");
    for (certificate_path, key_path, named, told) in [
        (&missing, &key, &missing, "cannot read --tls-cert"),
        (&certificate, &missing, &missing, "cannot read --tls-key"),
        (&empty, &key, &empty, "no certificate in PEM"),
        (&key, &certificate, &key, "give it as --tls-key"),
        (&binary, &key, &binary, "openssl x509 -inform DER"),
        (&garbled, &key, &garbled, "cannot use --tls-cert"),
        (&cut, &key, &cut, "cannot use --tls-cert"),
        (&certificate, &empty, &empty, "no private key in PEM"),
        (&certificate, &certificate, &certificate, "give it as --tls-cert"),
        (&certificate, &encrypted, &encrypted, "openssl pkey -in"),
        (&certificate, &encrypted_before, &encrypted_before, "openssl pkey -in"),
        (&certificate, &no_key, &no_key, "cannot use --tls-key"),
        (&certificate, &foreign.key, &foreign.key, "does not belong"),
    ] {
        let files = Files { certificate: certificate_path.clone(), key: key_path.clone() };
        let error = error(vec![files]);
        let named = named.display().to_string();
        assert!(error.contains(told) && error.contains(&named), "{told}: {error}");
        assert!(!error.contains('\n'), "{error}");
    }
    let source = Source { client_ca: Some(key), ..source(vec![foreign]) };
    let error = Tls::load(&source, &[]).expect_err("no certificate").to_string();
    assert!(error.contains("--tls-client-ca") && error.contains("private key"), "{error}");
}

#[test]
fn a_certificate_out_of_its_time_is_used_and_complained_about() {
    let place = Place::new();
    for (kind, told) in
        [(Kind::ServerExpired, "expired "), (Kind::ServerTooEarly, "is valid only in ")]
    {
        let files = place.write("timely", &place.authority.issue_as(kind, &["localhost"]));
        let (tls, doubts) = Tls::load(&source(vec![files.clone()]), &[]).expect("files");
        assert!(doubts.len() == 1 && doubts[0].contains(told), "{doubts:?}");
        assert!(doubts[0].contains(&files.certificate.display().to_string()), "{doubts:?}");
        let error = shown(&place, &tls, "localhost").expect_err("it is not its time");
        assert!(matches!(error, Error::InvalidCertificate(_)), "{error}");
        assert_eq!(tls.reload().expect("files").len(), 1);
    }
}

#[test]
fn what_takes_the_place_of_a_file_can_be_reached() {
    let place = Place::new();
    let own = place.path("live");
    let other = place.path("archive");
    for directory in [&own, &other] {
        fs::create_dir(directory).expect("a directory");
    }
    let [certificate, key] = place.authority.issue(&["localhost"]).write(&other, "first");
    let link = |target: &Path, name: &str| {
        std::os::unix::fs::symlink(target, own.join(name)).expect("a link");
        own.join(name)
    };
    let files = Files { certificate: link(&certificate, "cert"), key: link(&key, "key") };
    let wanted = Needs::default()
        .calling(CALLS)
        .reading_in(&own)
        .reading_in(&other.canonicalize().expect("a directory"));
    let needs = source(vec![files]).needs();
    for part in format!("{wanted:?}").split("(\"").skip(1) {
        let path = part.split('"').next().expect("a path");
        assert!(format!("{needs:?}").contains(path), "{path}: {needs:?}");
    }
    assert_eq!(directory_of(Path::new("file")), Path::new("."));
    let made = Source { certificates: Certificates::SelfSigned, client_ca: None };
    assert_eq!(made.needs(), Needs::default());
}

#[test]
fn a_ticket_of_another_server_is_no_use() {
    let place = Place::new();
    let (first, second) = (place.server(), place.server());
    let mut config = place.client_config(&TLS13);
    config.resumption = Resumption::in_memory_sessions(8);
    for tls in [&first, &second] {
        let pair = Pair::open(config.clone(), tls);
        assert_eq!(pair.client.handshake_kind(), Some(HandshakeKind::Full));
    }
}
