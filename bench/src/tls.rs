//! TLS in the client's role: what is trusted, and what its problems mean.
//!
//! The layer itself is that of `ringecho` ([`ringecho::tls::connecting`]); [`crate::secured`] moves its
//! bytes. This file opens no socket.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use ringecho::protocol::Layer;
use ringecho::tls::{ALPN, add_authorities, connecting};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, ring as provider};
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::version::{TLS12, TLS13};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, Error, InvalidMessage,
    OtherError, RootCertStore, SignatureScheme,
};

/// The option that names a file of authorities.
const CA: &str = "--ca";
/// What to do about a certificate that is not trusted.
const REMEDY: &str = "or skip the check with --insecure";

/// Which certificates of servers are accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Accepted {
    /// Those that the authorities of this system have signed.
    System,
    /// Those that are in these files in PEM, and those that they have signed.
    Files(Vec<PathBuf>),
    /// All: nothing is known about who the server is.
    Any,
}

/// Whether a connection may go on with what an earlier one to the same server has agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sessions {
    /// It may not: each has a full handshake.
    New,
    /// It may, where the server offers it.
    Resumed,
}

/// How to speak TLS with servers.
#[derive(Debug, Clone)]
pub struct Trust(Arc<ClientConfig>);

impl Trust {
    /// # Errors
    ///
    /// When a file cannot be used, or this system has no authorities.
    pub fn new(accepted: &Accepted, sessions: Sessions) -> Result<Trust, String> {
        let provider = Arc::new(provider::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13, &TLS12])
            .map_err(|error| error.to_string())?;
        let mut roots = RootCertStore::empty();
        let mut given = Vec::new();
        match accepted {
            Accepted::System => {
                let found = rustls_native_certs::load_native_certs();
                if found.certs.is_empty() {
                    let why = found.errors.first().map(|error| format!(": {error}"));
                    return Err(format!(
                        "this system has no certificates of authorities{}; install them (on Debian \
                         the package ca-certificates), give a file as {CA}, {REMEDY}",
                        why.unwrap_or_default()
                    ));
                }
                // Some systems have authorities of forms that are no longer accepted.
                let _ = roots.add_parsable_certificates(found.certs);
            }
            Accepted::Files(paths) => {
                for path in paths {
                    let added = add_authorities(&mut roots, CA, path);
                    given.extend(added.map_err(|error| error.to_string())?);
                }
            }
            Accepted::Any => {}
        }
        let verifier: Arc<dyn ServerCertVerifier> = match accepted {
            Accepted::Any => Arc::new(Anybody(provider)),
            Accepted::System | Accepted::Files(_) => {
                let built = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider);
                let authorities = built.build().map_err(|error| error.to_string())?;
                Arc::new(Known { authorities, given })
            }
        };
        let mut config =
            builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
        config.alpn_protocols = vec![ALPN.to_vec()];
        if sessions == Sessions::New {
            config.resumption = Resumption::disabled();
        }
        Ok(Trust(Arc::new(config)))
    }

    /// The authorities of this system, and a full handshake each time.
    fn of_system() -> Result<Trust, String> {
        static TRUST: OnceLock<Result<Trust, String>> = OnceLock::new();
        TRUST.get_or_init(|| Trust::new(&Accepted::System, Sessions::New)).clone()
    }
}

/// TLS with one server.
#[derive(Debug, Clone)]
pub struct Tls {
    /// The name that its certificate must have. The server is told it, unless it is an address
    /// (RFC 6066 section 3).
    name: ServerName<'static>,
    /// If it is not said, that of the system.
    trust: Option<Trust>,
}

impl Tls {
    /// TLS with the server of this host, as it stands in a URL.
    ///
    /// # Errors
    ///
    /// When that can be nobody's name.
    pub fn with(host: &str) -> Result<Tls, String> {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        match ServerName::try_from(host.to_owned()) {
            Ok(name) => Ok(Tls { name, trust: None }),
            Err(_) => Err(format!("no certificate can be for {host}; write a name of the DNS")),
        }
    }

    /// Says what is trusted.
    pub fn trust(&mut self, trust: &Trust) {
        self.trust = Some(trust.clone());
    }

    /// The layer of a new connection. Appends to `sealed` what opens it.
    ///
    /// # Errors
    ///
    /// When there are no authorities to trust.
    pub(crate) fn layer(&self, sealed: &mut Vec<u8>) -> Result<Box<dyn Layer>, Failure> {
        let trust = match &self.trust {
            Some(trust) => trust.clone(),
            None => Trust::of_system().map_err(Failure::NoAuthorities)?,
        };
        connecting(trust.0, self.name.clone(), sealed).map_err(Failure::from)
    }
}

/// Accepts what authorities have signed, and certificates that were given themselves, whatever they are for:
/// what `openssl req -x509` makes is an authority's, which webpki accepts as no server's.
#[derive(Debug)]
struct Known {
    authorities: Arc<WebPkiServerVerifier>,
    given: Vec<CertificateDer<'static>>,
}

impl ServerCertVerifier for Known {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if self.given.contains(end_entity) {
            verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
            return Ok(ServerCertVerified::assertion());
        }
        let Known { authorities, .. } = self;
        authorities.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.authorities.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.authorities.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.authorities.supported_verify_schemes()
    }
}

/// Accepts every certificate, but not a server that lacks the key of its own.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Why there is no TLS with a server. [`fmt::Display`] says what to do about it.
#[derive(Debug, Clone, PartialEq)]
pub enum Failure {
    /// Its certificate is not accepted.
    Untrusted(CertificateError),
    /// What it sent is no record of TLS.
    NotTls,
    /// It ended the connection before the handshake was done.
    Ended,
    /// It refuses, with this alert (RFC 8446 section 6).
    Alert(AlertDescription),
    /// There is nobody to trust on this system.
    NoAuthorities(String),
    /// Something else.
    Other(Error),
}

impl Failure {
    /// The failure of TLS in an error of a stream, if that is what it is.
    pub(crate) fn of(error: &io::Error) -> Option<Failure> {
        let error = error.get_ref()?.downcast_ref::<Error>()?;
        Some(Failure::from(error.clone()))
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        match error {
            Error::InvalidCertificate(error) => Failure::Untrusted(error),
            Error::InvalidMessage(InvalidMessage::InvalidContentType) => Failure::NotTls,
            Error::AlertReceived(alert) => Failure::Alert(alert),
            error => Failure::Other(error),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Untrusted(error) => untrusted(error, f),
            Failure::NotTls => f.write_str("the server does not speak TLS; write ws://"),
            Failure::Ended => f.write_str(
                "the server closed the connection during the TLS handshake; it may not speak TLS, or \
                 see its log",
            ),
            Failure::Alert(alert) => {
                write!(f, "the server refuses TLS with the alert {alert:?}")?;
                match alert {
                    AlertDescription::CertificateRequired
                    | AlertDescription::BadCertificate
                    | AlertDescription::AccessDenied => {
                        f.write_str("; it wants a certificate of the client, and ringbench shows none")
                    }
                    AlertDescription::UnrecognisedName => {
                        f.write_str("; write a name that it has a certificate for")
                    }
                    AlertDescription::ProtocolVersion | AlertDescription::HandshakeFailure => {
                        f.write_str("; ringbench speaks TLS 1.2 and 1.3")
                    }
                    _ => Ok(()),
                }
            }
            Failure::NoAuthorities(why) => f.write_str(why),
            Failure::Other(error) => write!(f, "TLS failed: {error}"),
        }
    }
}

fn untrusted(error: &CertificateError, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    f.write_str("the server's certificate is not accepted: ")?;
    match error {
        // The second if an authority of the same name is trusted.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => write!(
            f,
            "no trusted authority has signed it; give that authority's certificate as {CA} FILE, or \
             the server's own if it is self-signed, {REMEDY}"
        ),
        CertificateError::NotValidForName => {
            write!(f, "it is for other names; connect by one of those, {REMEDY}")
        }
        CertificateError::NotValidForNameContext { expected, presented } => {
            // They are told as DnsName("NAME").
            let names = presented.iter().map(|name| name.split('"').nth(1).unwrap_or(name));
            let names: Vec<&str> = names.collect();
            let names = if names.is_empty() { "no name" } else { &names.join(", ") };
            write!(
                f,
                "it is not for {}, but for {names}; connect by a name that it is for, {REMEDY}",
                expected.to_str()
            )
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            write!(f, "it has expired; renew it, {REMEDY}")
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            write!(f, "it is not valid yet; check the clock, {REMEDY}")
        }
        CertificateError::Other(OtherError(other)) => {
            write!(f, "{other}; have the server use another one, {REMEDY}")
        }
        error => write!(f, "{error}; have the server use another one, {REMEDY}"),
    }
}

/// Why a layer cannot go on.
pub(crate) fn failure(layer: &dyn Layer) -> Error {
    let known = layer.failure().and_then(|error| error.downcast_ref::<Error>());
    known.cloned().unwrap_or_else(|| Error::General("the connection cannot go on".to_owned()))
}
