//! Certificates for the tests, signed by an authority of their own, in memory or as files in PEM.

use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    PKCS_ECDSA_P256_SHA256, PKCS_ED25519, SignatureAlgorithm, date_time_ymd,
};

/// An authority that signs certificates.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: Vec<u8>,
}

/// A certificate and its key.
#[derive(Debug, Clone)]
pub struct Issued {
    /// The certificate, as DER.
    pub certificate: Vec<u8>,
    /// Its key, as PKCS #8 in DER.
    pub key: Vec<u8>,
}

/// What a certificate is for, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A server, with a key on the curve P-256.
    Server,
    /// A server, with a key on the curve of Ed25519.
    ServerEd25519,
    /// A server, until the year 2000.
    ServerExpired,
    /// A server, from the year 2200 on.
    ServerTooEarly,
    /// A client.
    Client,
}

impl Authority {
    /// A new one, which nobody else knows.
    pub fn new(name: &str) -> Authority {
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name.push(DnType::CommonName, name);
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let certificate = parameters.self_signed(&key).expect("a certificate").der().to_vec();
        Authority { issuer: Issuer::new(parameters, key), certificate }
    }

    /// Its own certificate, as DER.
    pub fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    /// A certificate for a server of these names, which may be IP addresses.
    pub fn issue(&self, names: &[&str]) -> Issued {
        self.issue_as(Kind::Server, names)
    }

    /// A certificate of this kind.
    pub fn issue_as(&self, kind: Kind, names: &[&str]) -> Issued {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut parameters = CertificateParams::new(names).expect("names");
        let mut algorithm: &SignatureAlgorithm = &PKCS_ECDSA_P256_SHA256;
        let mut usage = ExtendedKeyUsagePurpose::ServerAuth;
        match kind {
            Kind::Server => {}
            Kind::ServerEd25519 => algorithm = &PKCS_ED25519,
            Kind::ServerExpired => parameters.not_after = date_time_ymd(2000, 1, 1),
            Kind::ServerTooEarly => parameters.not_before = date_time_ymd(2200, 1, 1),
            Kind::Client => usage = ExtendedKeyUsagePurpose::ClientAuth,
        }
        parameters.extended_key_usages.push(usage);
        let key = KeyPair::generate_for(algorithm).expect("a key");
        let certificate = parameters.signed_by(&key, &self.issuer).expect("a certificate");
        Issued { certificate: certificate.der().to_vec(), key: key.serialize_der() }
    }
}

impl Issued {
    /// Writes the certificate and the key into this directory, and returns the paths of both.
    pub fn write(&self, directory: &Path, name: &str) -> [PathBuf; 2] {
        let paths = ["crt", "key"].map(|ending| directory.join(name).with_extension(ending));
        fs::write(&paths[0], pem("CERTIFICATE", &self.certificate)).expect("a file");
        fs::write(&paths[1], pem("PRIVATE KEY", &self.key)).expect("a file");
        paths
    }
}

/// `der` as PEM (RFC 7468).
pub fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<&str> =
        text.as_bytes().chunks(64).map(|line| str::from_utf8(line).expect("ASCII")).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}
