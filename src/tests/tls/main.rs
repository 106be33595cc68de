//! TLS with the real program over real sockets, on every engine, against the client of rustls.

mod echoes;
mod ends;
mod files;
mod listeners;
mod openings;
mod tools;

use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use rustls::crypto::ring::default_provider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion,
};
use testkit::certificate::pem;
use testkit::client::prepare;
use testkit::{Authority, Client, Ended, Issued, Server, TIMEOUT};

const ENGINES: &[&[&str]] = &[
    &["--engine", "uring"],
    &["--engine", "epoll"],
    #[cfg(feature = "tokio-uring")]
    &["--engine", "tokio-uring"],
];
const VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS12, &TLS13];

type TlsStream = StreamOwned<ClientConnection, TcpStream>;
type TlsClient = Client<TlsStream>;

/// An authority, and a directory with what it has signed.
struct Place {
    authority: Authority,
    directory: tempfile::TempDir,
    /// The options for a certificate for `localhost`.
    own: Vec<String>,
}

impl Place {
    fn new() -> Place {
        let directory = tempfile::tempdir().expect("a directory");
        let authority = Authority::new("an authority of the tests");
        let own = options(&authority.issue(&["localhost"]).write(directory.path(), "own"));
        Place { authority, directory, own }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes a certificate for these names, and its key. Returns the options that name them.
    fn certificate(&self, name: &str, names: &[&str]) -> Vec<String> {
        options(&self.authority.issue(names).write(self.directory.path(), name))
    }

    /// Writes the authority's own certificate.
    fn authority_file(&self) -> String {
        let path = self.path("authority.pem");
        std::fs::write(&path, pem("CERTIFICATE", self.authority.certificate())).expect("a file");
        text(&path)
    }

    /// A server of one worker on TLS alone, with a certificate for `localhost`.
    fn start(&self, arguments: &[&str]) -> Server {
        let workers: &[&str] =
            if arguments.contains(&"--workers") { &[] } else { &["--workers", "1"] };
        let listen = ["--listen", "wss://127.0.0.1:0"];
        let own: Vec<&str> = self.own.iter().map(String::as_str).collect();
        Server::start(&[arguments, workers, &listen, &own].concat())
    }

    fn config(&self, version: &'static SupportedProtocolVersion) -> ClientConfig {
        self.config_as(version, None)
    }

    /// The configuration of a client that trusts the authority, and shows this certificate if it is asked.
    fn config_as(
        &self,
        version: &'static SupportedProtocolVersion,
        shown: Option<Issued>,
    ) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_slice(self.authority.certificate())).expect("a root");
        let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(&[version])
            .expect("a version")
            .with_root_certificates(roots);
        match shown {
            None => builder.with_no_client_auth(),
            Some(Issued { certificate, key }) => builder
                .with_client_auth_cert(vec![certificate.into()], PrivateKeyDer::Pkcs8(key.into()))
                .expect("a key"),
        }
    }

    /// A client after both handshakes.
    fn connect(
        &self,
        address: SocketAddr,
        version: &'static SupportedProtocolVersion,
    ) -> TlsClient {
        let mut client = Client::over(stream(address, self.config(version)));
        client.handshake();
        client
    }
}

fn text(path: &Path) -> String {
    path.to_str().expect("a path in UTF-8").to_owned()
}

/// The options that name a certificate and its key.
fn options(paths: &[PathBuf; 2]) -> Vec<String> {
    vec!["--tls-cert".into(), text(&paths[0]), "--tls-key".into(), text(&paths[1])]
}

/// A connection on which the client has said nothing yet.
fn stream(address: SocketAddr, config: ClientConfig) -> TlsStream {
    stream_for("localhost", address, config)
}

fn stream_for(name: &str, address: SocketAddr, config: ClientConfig) -> TlsStream {
    let socket = TcpStream::connect_timeout(&address, TIMEOUT).expect("a connection");
    prepare(&socket);
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    StreamOwned::new(ClientConnection::new(Arc::new(config), name).expect("a client"), socket)
}

/// Runs `test` on every engine at the same time.
fn on_every_engine(test: impl Fn(&'static [&'static str]) + Sync) {
    thread::scope(|scope| {
        for &engine in ENGINES {
            let test = &test;
            scope.spawn(move || test(engine));
        }
    });
}

/// Ends the server, which must have had no reason to complain.
#[track_caller]
fn end(server: Server) -> Ended {
    let ended = server.terminate();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert_eq!(ended.count("connections_open"), 0, "{ended:?}");
    ended
}
