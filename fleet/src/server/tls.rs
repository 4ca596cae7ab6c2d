//! TLS for devices: our certificate, and theirs if they show one.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::server::{ResolvesServerCert, VerifierBuilderError, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

/// TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The file of the authority cannot be read.
    #[error("{path} cannot be read", path = path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Not PEM of certificates.
    #[error("the client authority is not PEM")]
    Pem(#[source] rustls_pki_types::pem::Error),
    /// Not a certificate that can be a root.
    #[error("the client authority cannot be used")]
    Root(#[source] rustls::Error),
    /// No usable root.
    #[error("client certificates cannot be checked")]
    Verifier(#[source] VerifierBuilderError),
    /// The provider lacks a protocol version.
    #[error("TLS cannot be set up")]
    Versions(#[source] rustls::Error),
}

/// TLS with optional client certificates: activation has none yet, everything else asks for one in its handler. A
/// certificate that is shown and is not of the authority, or has ended, fails the handshake.
///
/// # Errors
/// [`TlsError`].
pub fn config(
    client_ca_pem: &str,
    certificate: Arc<dyn ResolvesServerCert>,
) -> Result<ServerConfig, TlsError> {
    let provider = Arc::new(ring::default_provider());
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(client_ca_pem.as_bytes()) {
        roots.add(root.map_err(TlsError::Pem)?).map_err(TlsError::Root)?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .allow_unauthenticated()
        .build()
        .map_err(TlsError::Verifier)?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Versions)?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// The authority that client certificates are checked against: the configured file, else our own.
///
/// # Errors
/// [`TlsError::Read`].
pub fn client_ca(file: &Path, own: &str) -> Result<String, TlsError> {
    if file.as_os_str().is_empty() {
        return Ok(own.to_owned());
    }
    std::fs::read_to_string(file).map_err(|source| TlsError::Read { path: file.to_owned(), source })
}
