//! Certificates and keys: from files in PEM, or made for one start.
//!
//! What is wrong with a file is said so that its owner can mend it. A certificate that has expired is no error: some
//! clients do not look, and a server that does not start helps nobody.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, Error, RootCertStore};

/// A certificate in a file, and its key in another one or in the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// PEM: the server's certificate, then those that lead from it to one that clients have.
    pub certificate: PathBuf,
    /// PEM: the key of that certificate, not encrypted.
    pub key: PathBuf,
}

/// Why a file cannot be used.
#[derive(Debug)]
pub struct TlsError {
    /// The option that names it.
    option: &'static str,
    path: PathBuf,
    problem: Problem,
}

#[derive(Debug)]
enum Problem {
    Unreadable(io::Error),
    /// It is not PEM, and this is what PEM it should be.
    Empty(&'static str),
    /// Nothing of what it should have, but a key.
    IsKey,
    /// Nothing of what it should have, but a certificate.
    IsCertificate,
    Binary,
    Encrypted,
    Malformed(String),
    /// The key is not that of the certificate in this file.
    Foreign(PathBuf),
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let TlsError { option, path, problem } = self;
        let path = path.display();
        match problem {
            Problem::Unreadable(error) => {
                write!(f, "cannot read {option} {path}: {error}")?;
                match error.kind() {
                    io::ErrorKind::PermissionDenied => f.write_str(
                        "; allow the server's user to read it and to enter its directory",
                    ),
                    io::ErrorKind::NotFound => f.write_str("; check the path"),
                    _ => Ok(()),
                }
            }
            Problem::Empty(wanted) => {
                write!(
                    f,
                    "{option} {path} has no {wanted} in PEM, between lines that begin with -----"
                )
            }
            Problem::IsKey => {
                write!(f, "{option} {path} has a private key and no certificate")?;
                if *option == CERTIFICATE { f.write_str("; give it as --tls-key") } else { Ok(()) }
            }
            Problem::IsCertificate => {
                write!(
                    f,
                    "{option} {path} has a certificate and no private key; give it as --tls-cert"
                )
            }
            Problem::Binary => write!(
                f,
                "{option} {path} is not PEM; if it is DER, convert it with openssl x509 -inform DER or \
                 openssl pkey -inform DER"
            ),
            Problem::Encrypted => write!(
                f,
                "the key in {option} {path} is encrypted; write it without a passphrase, with openssl \
                 pkey -in {path} -out NEW, into a file that only the server's user can read"
            ),
            Problem::Malformed(error) => write!(f, "cannot use {option} {path}: {error}"),
            Problem::Foreign(certificate) => write!(
                f,
                "the key in {option} {path} does not belong to the first certificate in --tls-cert {}; \
                 give both options in the same order, and put the server's own certificate first in \
                 its file",
                certificate.display()
            ),
        }
    }
}

impl std::error::Error for TlsError {}

const CERTIFICATE: &str = "--tls-cert";
const KEY: &str = "--tls-key";
pub(super) const CLIENT_CA: &str = "--tls-client-ca";

/// A file's text.
struct Text<'a> {
    option: &'static str,
    path: &'a Path,
    bytes: Vec<u8>,
}

impl<'a> Text<'a> {
    fn read(option: &'static str, path: &'a Path) -> Result<Text<'a>, TlsError> {
        match fs::read(path) {
            Ok(bytes) => Ok(Text { option, path, bytes }),
            Err(error) => {
                Err(TlsError { option, path: path.to_owned(), problem: Problem::Unreadable(error) })
            }
        }
    }

    fn error(&self, problem: Problem) -> TlsError {
        TlsError { option: self.option, path: self.path.to_owned(), problem }
    }

    fn malformed(&self, error: impl fmt::Display) -> TlsError {
        self.error(Problem::Malformed(error.to_string()))
    }

    fn has(&self, words: &str) -> bool {
        self.bytes.windows(words.len()).any(|window| window == words.as_bytes())
    }

    /// What it has instead of what it should have.
    fn missing(&self, wanted: &'static str) -> TlsError {
        self.error(match wanted {
            _ if !self.has("-----BEGIN ") && !self.bytes.is_ascii() => Problem::Binary,
            "certificate" if self.has("PRIVATE KEY-----") => Problem::IsKey,
            "private key" if self.has("BEGIN ENCRYPTED PRIVATE KEY-----") => Problem::Encrypted,
            "private key" if self.has("BEGIN CERTIFICATE-----") => Problem::IsCertificate,
            wanted => Problem::Empty(wanted),
        })
    }

    /// The certificates in it, at least one.
    fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let certificates = CertificateDer::pem_slice_iter(&self.bytes);
        let certificates: Result<Vec<_>, pem::Error> = certificates.collect();
        let certificates = certificates.map_err(|error| self.malformed(error))?;
        if certificates.is_empty() { Err(self.missing("certificate")) } else { Ok(certificates) }
    }

    /// The first key in it.
    fn key(&self) -> Result<PrivateKeyDer<'static>, TlsError> {
        // The older form of an encrypted key has the name of one that is not (RFC 1421 section 4.6.1.1).
        if self.has("Proc-Type: 4,ENCRYPTED") {
            return Err(self.error(Problem::Encrypted));
        }
        PrivateKeyDer::from_pem_slice(&self.bytes).map_err(|error| match error {
            pem::Error::NoItemsFound => self.missing("private key"),
            error => self.malformed(error),
        })
    }
}

impl Files {
    /// Reads both files, and says what clients will not like about the certificate.
    ///
    /// # Errors
    ///
    /// When a file cannot be read or used.
    pub(super) fn read(
        &self,
        provider: &CryptoProvider,
    ) -> Result<(CertifiedKey, Option<String>), TlsError> {
        let text = Text::read(CERTIFICATE, &self.certificate)?;
        let chain = text.certificates()?;
        let parsed =
            ParsedCertificate::try_from(&chain[0]).map_err(|error| text.malformed(error))?;
        let doubt = doubt(&parsed, provider).map(|doubt| {
            format!("the certificate in {CERTIFICATE} {} {doubt}", self.certificate.display())
        });
        let key_text = Text::read(KEY, &self.key)?;
        let key = key_text.key()?;
        let certified =
            CertifiedKey::from_der(chain, key, provider).map_err(|error| match error {
                Error::InconsistentKeys(_) => {
                    key_text.error(Problem::Foreign(self.certificate.clone()))
                }
                error => key_text.malformed(error),
            })?;
        Ok((certified, doubt))
    }
}

/// What clients will not like about a certificate, whoever has signed it: that this is not its time.
fn doubt(certificate: &ParsedCertificate<'_>, provider: &CryptoProvider) -> Option<String> {
    // The dates in a certificate are those of the calendar, and nothing else is decided by them.
    let now = UnixTime::now();
    let algorithms = provider.signature_verification_algorithms.all;
    // Nobody is trusted, so it fails. If its time is over, it fails for that first.
    let nobody = RootCertStore::empty();
    let outcome =
        verify_server_cert_signed_by_trust_anchor(certificate, &nobody, &[], now, algorithms);
    let days = |from: UnixTime, to: UnixTime| {
        let seconds = to.as_secs().saturating_sub(from.as_secs());
        // Minutes say enough.
        humantime::format_duration(Duration::from_secs(seconds - seconds % 60)).to_string()
    };
    match outcome {
        Err(Error::InvalidCertificate(CertificateError::ExpiredContext { time, not_after })) => {
            Some(format!("expired {} ago; renew it, and send SIGHUP", days(not_after, time)))
        }
        Err(Error::InvalidCertificate(CertificateError::NotValidYetContext {
            time,
            not_before,
        })) => Some(format!("is valid only in {}; check the clock", days(time, not_before))),
        Ok(()) | Err(_) => None,
    }
}

/// Adds the authorities in a file in PEM to those that are trusted, and returns their certificates. `option` names the
/// file on the command line, for the text of errors.
///
/// # Errors
///
/// When the file cannot be read, or has no certificate that can be used.
pub fn add_authorities(
    roots: &mut RootCertStore,
    option: &'static str,
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let text = Text::read(option, path)?;
    let certificates = text.certificates()?;
    for certificate in &certificates {
        roots.add(certificate.clone()).map_err(|error| text.malformed(error))?;
    }
    Ok(certificates)
}

/// A certificate that no authority has signed, for `names`, which may be IP addresses. Its key exists in memory only.
///
/// # Errors
///
/// When a name is none, or there is no randomness.
pub(super) fn self_signed(
    names: Vec<String>,
    provider: &CryptoProvider,
) -> Result<Arc<CertifiedKey>, String> {
    let make = || -> Result<_, rcgen::Error> {
        let mut parameters = CertificateParams::new(names)?;
        parameters.distinguished_name.push(DnType::CommonName, "ringecho, self-signed");
        parameters.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        let key = KeyPair::generate()?;
        Ok((parameters.self_signed(&key)?, key.serialize_der()))
    };
    let (certificate, key) = make().map_err(|error| error.to_string())?;
    let key = PrivateKeyDer::Pkcs8(key.into());
    let certified = CertifiedKey::from_der(vec![certificate.der().clone()], key, provider);
    Ok(Arc::new(certified.map_err(|error| error.to_string())?))
}
