//! What a certificate and its key say: reading PEM, the facts inside, whether a chain holds.
//!
//! Pure: bytes and the time come in. Revocation is deliberately absent.

use rcgen::PublicKeyData;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{CertificateError as Tls, RootCertStore};
use samovar_wire::Timestamp;
use std::sync::Arc;
use std::time::Duration;

/// Certificate or key that cannot be used. The texts complete a sentence that begins with the file or document.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// No certificate in PEM form.
    #[error("holds no PEM certificate (expected -----BEGIN CERTIFICATE-----)")]
    NoCertificate,
    /// No private key in PEM form.
    #[error("holds no PEM private key (expected -----BEGIN PRIVATE KEY-----)")]
    NoKey,
    /// PEM, but its content is no certificate.
    #[error("holds a certificate that cannot be read: {0}")]
    Unreadable(String),
    /// The key is of a kind that is not supported, or damaged.
    #[error("holds a private key that cannot be used: {0}")]
    UnusableKey(String),
    /// Key and certificate are not a pair.
    #[error("does not belong to the private key")]
    KeyMismatch,
    /// No subject to recognise the device by.
    #[error("has no common name")]
    NoCommonName,
    /// The chain does not lead to the authority.
    #[error("was not issued by the certificate authority that came with it: {0}")]
    Untrusted(String),
    /// Past its end.
    #[error("expired at {0}")]
    Expired(Timestamp),
}

/// From when until when a certificate holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// Not valid before.
    pub not_before: Timestamp,
    /// Not valid after.
    pub not_after: Timestamp,
}

/// The facts of one certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Facts {
    pub common_name: String,
    pub validity: Validity,
    /// Subject public key info, DER.
    pub public_key: Vec<u8>,
}

/// The one crypto provider, named wherever TLS is configured.
pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

pub(super) fn read_chain(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    let chain = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| CertificateError::Unreadable(error.to_string()))?;
    if chain.is_empty() { Err(CertificateError::NoCertificate) } else { Ok(chain) }
}

pub(super) fn read_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, CertificateError> {
    use rustls::pki_types::pem::Error;
    PrivateKeyDer::from_pem_slice(pem).map_err(|error| match error {
        Error::NoItemsFound => CertificateError::NoKey,
        other => CertificateError::UnusableKey(other.to_string()),
    })
}

pub(super) fn facts(leaf: &CertificateDer<'_>) -> Result<Facts, CertificateError> {
    let (_, parsed) = x509_parser::parse_x509_certificate(leaf)
        .map_err(|error| CertificateError::Unreadable(error.to_string()))?;
    let common_name = parsed.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
    let seconds =
        |time: x509_parser::time::ASN1Time| Timestamp::from_millis(time.timestamp().saturating_mul(1000));
    Ok(Facts {
        common_name: common_name.ok_or(CertificateError::NoCommonName)?.to_owned(),
        validity: Validity {
            not_before: seconds(parsed.validity().not_before),
            not_after: seconds(parsed.validity().not_after),
        },
        public_key: parsed.public_key().raw.to_vec(),
    })
}

pub(super) fn roots_from(pem: &[u8]) -> Result<RootCertStore, CertificateError> {
    let mut roots = RootCertStore::empty();
    for certificate in read_chain(pem)? {
        roots.add(certificate).map_err(|error| CertificateError::Unreadable(error.to_string()))?;
    }
    Ok(roots)
}

/// Whether a chain (leaf first) leads to the roots, as a server that asks for client certificates would see it.
/// `now` is `None` while the clock is untrusted. A clock that is behind the issuer's is forgiven, one that is ahead is
/// not: the certificate's beginning proves that at least that time has come.
pub(super) fn verify(
    chain: &[CertificateDer<'_>],
    roots: RootCertStore,
    now: Option<Timestamp>,
) -> Result<(), CertificateError> {
    let (leaf, intermediates) = chain.split_first().ok_or(CertificateError::NoCertificate)?;
    let validity = facts(leaf)?.validity;
    let at = now.map_or(validity.not_before, |now| now.max(validity.not_before));
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
        .build()
        .map_err(|error| CertificateError::Untrusted(error.to_string()))?;
    let seconds = u64::try_from(at.millis()).unwrap_or(0).div_ceil(1000);
    let at = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
    verifier.verify_client_cert(leaf, intermediates, at).map(|_| ()).map_err(|error| match error {
        rustls::Error::InvalidCertificate(Tls::Expired | Tls::ExpiredContext { .. }) => {
            CertificateError::Expired(validity.not_after)
        }
        other => CertificateError::Untrusted(other.to_string()),
    })
}

/// Subject public key info of a key made here, DER.
pub(super) fn public_key_of(key: &rcgen::KeyPair) -> Vec<u8> {
    key.subject_public_key_info()
}

/// A new key: ECDSA P-256, which every TLS library of a store's age can use.
pub(super) fn new_key() -> Result<rcgen::KeyPair, rcgen::Error> {
    rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)
}

/// A signing request, PEM. The name is a placeholder before activation: the fleet decides who the device is.
pub(super) fn signing_request(key: &rcgen::KeyPair, common_name: &str) -> Result<String, rcgen::Error> {
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, common_name);
    params.serialize_request(key)?.pem()
}
