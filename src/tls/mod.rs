//! TLS 1.2 and 1.3 for the listeners that want it: certificates, and the layer of each connection.
//!
//! A [`Tls`] has the configuration that new connections get. It can be read again while the server runs; connections
//! that are open keep the one that they began with. [`connecting`] is the client's side, for `ringbench`. This module
//! opens no socket, and does not know what is said within a connection.

mod files;
mod layer;

#[cfg(test)]
mod tests;

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use ring::digest::{SHA256, digest};
use rustls::client::verify_server_name;
use rustls::crypto::{CryptoProvider, ring as provider};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::{
    ClientHello, ParsedCertificate, ResolvesServerCert, ServerSessionMemoryCache,
    WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::{Error, RootCertStore, ServerConfig};

use crate::protocol::{Acceptor, Layer};
use crate::sandbox::{Call, Needs};

pub use self::files::{Files, TlsError, add_authorities};
pub use self::layer::connecting;

/// The protocol within TLS, and the only one (RFC 7301): a WebSocket is opened by HTTP/1.1.
pub const ALPN: &[u8] = b"http/1.1";
/// Sessions of TLS 1.2 that are kept for clients that take no tickets. One takes less than 1 KiB.
const SESSIONS_MAX: usize = 4096;

/// The system calls with which files are read, by the standard library or by C libraries in its stead.
const CALLS: &[Call] = &[
    Call::Any(libc::SYS_openat),
    Call::Any(libc::SYS_statx),
    Call::Any(libc::SYS_fstat),
    Call::Any(libc::SYS_newfstatat),
    Call::Any(libc::SYS_lseek),
    #[cfg(target_arch = "x86_64")]
    Call::Any(libc::SYS_open),
];

/// Where the certificates of a server come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Certificates {
    /// From these files. A client gets the first that is valid for the name it asks for, or else the first.
    Files(Vec<Files>),
    /// It makes one of its own at each start.
    SelfSigned,
}

/// What TLS is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// What the server shows.
    pub certificates: Certificates,
    /// PEM: the authorities one of which must have signed what a client shows; if there is none, clients show
    /// nothing.
    pub client_ca: Option<PathBuf>,
}

impl Source {
    /// What a thread needs that calls [`Tls::reload`]. What takes the place of a file later is found if it is below the
    /// same directory, and a link is followed if it leads to a directory that one leads to now.
    pub fn needs(&self) -> Needs {
        let pairs = match &self.certificates {
            Certificates::Files(pairs) => &pairs[..],
            Certificates::SelfSigned => &[],
        };
        let paths = pairs.iter().flat_map(|Files { certificate, key }| [certificate, key]);
        let mut needs = Needs::default();
        for path in paths.chain(&self.client_ca) {
            needs = needs.calling(CALLS).reading_in(directory_of(path));
            if let Ok(target) = path.canonicalize() {
                needs = needs.reading_in(directory_of(&target));
            }
        }
        needs
    }
}

fn directory_of(path: &Path) -> &Path {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    parent.unwrap_or(Path::new("."))
}

/// Why there can be no TLS.
#[derive(Debug)]
pub enum StartError {
    /// A file cannot be used.
    File(TlsError),
    /// No certificate can be made, or the library refuses.
    Other(String),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartError::File(error) => error.fmt(f),
            StartError::Other(reason) => write!(f, "cannot set up TLS: {reason}"),
        }
    }
}

impl std::error::Error for StartError {}

impl From<TlsError> for StartError {
    fn from(error: TlsError) -> StartError {
        StartError::File(error)
    }
}

impl From<Error> for StartError {
    fn from(error: Error) -> StartError {
        StartError::Other(error.to_string())
    }
}

/// TLS for all connections of a server.
#[derive(Debug)]
pub struct Tls {
    source: Source,
    /// What the server has made itself.
    self_signed: Option<Arc<CertifiedKey>>,
    /// For new connections.
    config: RwLock<Arc<ServerConfig>>,
}

/// What was read, and what clients will not like about it: a sentence for each certificate with a flaw.
type Doubts = Vec<String>;

impl Tls {
    /// Reads the files, or makes a certificate for this machine by its local names and `addresses`. Also returns what
    /// clients will not like about the certificates, a sentence for each that has a flaw.
    ///
    /// # Errors
    ///
    /// When a file cannot be used.
    pub fn load(source: &Source, addresses: &[IpAddr]) -> Result<(Tls, Doubts), StartError> {
        let self_signed = match &source.certificates {
            Certificates::Files(_) => None,
            Certificates::SelfSigned => {
                let mut names = vec!["localhost".into(), "127.0.0.1".into(), "::1".into()];
                let own = addresses.iter().filter(|address| !address.is_unspecified());
                for name in own.map(IpAddr::to_string) {
                    if !names.contains(&name) {
                        names.push(name);
                    }
                }
                let made = files::self_signed(names, &provider::default_provider());
                Some(made.map_err(StartError::Other)?)
            }
        };
        let (config, doubts) = configure(source, self_signed.as_ref())?;
        let config = RwLock::new(Arc::new(config));
        Ok((Tls { source: source.clone(), self_signed, config }, doubts))
    }

    /// Reads the files again, for connections that come from now on. Sessions cannot be resumed across it, so that what
    /// was trusted before is checked again. Returns what [`Tls::load`] does.
    ///
    /// # Errors
    ///
    /// When a file cannot be used. Then nothing changes.
    pub fn reload(&self) -> Result<Doubts, StartError> {
        let (config, doubts) = configure(&self.source, self.self_signed.as_ref())?;
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
        Ok(doubts)
    }

    /// The SHA-256 fingerprint of the certificate that the server has made itself, as browsers and openssl(1) write
    /// it.
    pub fn own_fingerprint(&self) -> Option<String> {
        self.self_signed.as_ref().map(|own| fingerprint(&own.cert[0]))
    }
}

fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    let bytes = digest(&SHA256, certificate);
    let bytes: Vec<String> = bytes.as_ref().iter().map(|byte| format!("{byte:02X}")).collect();
    bytes.join(":")
}

fn configure(
    source: &Source,
    self_signed: Option<&Arc<CertifiedKey>>,
) -> Result<(ServerConfig, Doubts), StartError> {
    let provider = Arc::new(provider::default_provider());
    let mut doubts = Doubts::new();
    let mut keys: Vec<Arc<CertifiedKey>> = self_signed.into_iter().cloned().collect();
    if let Certificates::Files(pairs) = &source.certificates {
        for pair in pairs {
            let (key, doubt) = pair.read(&provider)?;
            keys.push(Arc::new(key));
            doubts.extend(doubt);
        }
    }
    Ok((server_config(provider, keys, source.client_ca.as_deref())?, doubts))
}

fn server_config(
    provider: Arc<CryptoProvider>,
    keys: Vec<Arc<CertifiedKey>>,
    client_ca: Option<&Path>,
) -> Result<ServerConfig, StartError> {
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&TLS13, &TLS12])?;
    let builder = match client_ca {
        Some(path) => {
            let mut roots = RootCertStore::empty();
            add_authorities(&mut roots, files::CLIENT_CA, path)?;
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            let verifier = verifier.map_err(|error| StartError::Other(error.to_string()))?;
            builder.with_client_cert_verifier(verifier)
        }
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(Arc::new(ByName(keys)));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = ServerSessionMemoryCache::new(SESSIONS_MAX);
    config.ticketer = provider::Ticketer::new()?;
    Ok(config)
}

/// Certificates, from which each client gets one by the name that it asks for (RFC 6066 section 3).
#[derive(Debug)]
struct ByName(Vec<Arc<CertifiedKey>>);

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let ByName(keys) = self;
        let name = hello.server_name().and_then(|name| ServerName::try_from(name).ok());
        let is_for_name = |key: &&Arc<CertifiedKey>| {
            name.as_ref().is_some_and(|name| {
                let parsed = ParsedCertificate::try_from(&key.cert[0]);
                parsed.is_ok_and(|parsed| verify_server_name(&parsed, name).is_ok())
            })
        };
        // There may be one for each kind of signature.
        let can_sign =
            |key: &&Arc<CertifiedKey>| key.key.choose_scheme(hello.signature_schemes()).is_some();
        keys.iter()
            .find(|key| is_for_name(key) && can_sign(key))
            .or_else(|| keys.iter().find(can_sign))
            .or(keys.first())
            .cloned()
    }
}

impl Acceptor for Tls {
    fn accept(&self) -> Box<dyn Layer> {
        let config = self.config.read().unwrap_or_else(PoisonError::into_inner).clone();
        layer::accepting(config)
            .expect("the configuration does not limit fragments, so nothing can be wrong")
    }
}
