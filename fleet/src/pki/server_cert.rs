//! The server's own certificate: issued at start, re-issued in time, and taken up without a restart.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustls::crypto::ring;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use samovar_wire::Timestamp;

use super::authority::{Authority, AuthorityPem, PkiError};
use crate::config;
use crate::store::{ReplaceError, replace, replace_secret};

/// How long a server certificate lives.
const DAYS: u16 = 90;

/// How often a running server makes itself a new one: well before the end, so that a failure has weeks to be seen.
pub const RENEW_EVERY: Duration = Duration::from_hours(24 * 30);

/// The server's certificate cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ServerCertError {
    /// Not issued.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// A file cannot be read.
    #[error("{path} cannot be read", path = path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A copy cannot be written.
    #[error(transparent)]
    Write(#[from] ReplaceError),
    /// Not PEM of a certificate chain.
    #[error("the server's certificate is not PEM")]
    Certificate(#[source] rustls_pki_types::pem::Error),
    /// Not PEM of a key.
    #[error("the server's key is not PEM")]
    Key(#[source] rustls_pki_types::pem::Error),
    /// Not a pair, or a kind of key that TLS does not take.
    #[error("the server's certificate and key cannot be used")]
    Unusable(#[source] rustls::Error),
}

/// The certificate shown to clients, replaceable while serving.
#[derive(Debug)]
pub struct ServerCertificate {
    current: RwLock<Arc<CertifiedKey>>,
    cert_path: PathBuf,
    key_path: PathBuf,
}

impl ServerCertificate {
    /// Takes the configured files, or has the authority issue one and keeps it in `DIR/tls` (where the embedded
    /// broker reads it).
    ///
    /// # Errors
    /// [`ServerCertError`].
    pub fn at_start(
        authority: &Authority,
        (tls, server): (&config::Tls, &config::Server),
        dir: &Path,
        now: Timestamp,
    ) -> Result<Self, ServerCertError> {
        if !tls.cert.as_os_str().is_empty() {
            let pem = AuthorityPem { certificate: read(&tls.cert)?, key: read(&tls.key)? };
            return Ok(Self {
                current: RwLock::new(certified(&pem)?),
                cert_path: tls.cert.clone(),
                key_path: tls.key.clone(),
            });
        }
        let folder = dir.join("tls");
        std::fs::create_dir_all(&folder)
            .map_err(|source| ServerCertError::Read { path: folder.clone(), source })?;
        let (cert_path, key_path) = (folder.join("server.pem"), folder.join("server.key"));
        let current = issue(authority, server, (&cert_path, &key_path), now)?;
        Ok(Self { current: RwLock::new(current), cert_path, key_path })
    }

    /// Has the authority issue a new one, or reads the configured files again.
    ///
    /// # Errors
    /// [`ServerCertError`]; the old one stays.
    pub fn renew(
        &self,
        authority: &Authority,
        (tls, server): (&config::Tls, &config::Server),
        now: Timestamp,
    ) -> Result<(), ServerCertError> {
        let fresh = if tls.cert.as_os_str().is_empty() {
            issue(authority, server, (&self.cert_path, &self.key_path), now)?
        } else {
            certified(&AuthorityPem { certificate: read(&tls.cert)?, key: read(&tls.key)? })?
        };
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        Ok(())
    }

    /// The certificate chain as a file (PEM).
    #[must_use]
    pub fn cert_path(&self) -> &Path {
        &self.cert_path
    }

    /// The key as a file (PEM).
    #[must_use]
    pub fn key_path(&self) -> &Path {
        &self.key_path
    }
}

impl ResolvesServerCert for ServerCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

/// The names a server certificate of this server is for.
#[must_use]
pub fn names(server: &config::Server) -> Vec<String> {
    let mut names = vec![server.public_host.clone()];
    let more = server.hosts.iter().map(String::as_str).chain(["localhost", "127.0.0.1", "::1"]);
    for name in more {
        if !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
    }
    names
}

fn issue(
    authority: &Authority,
    server: &config::Server,
    (cert_path, key_path): (&Path, &Path),
    now: Timestamp,
) -> Result<Arc<CertifiedKey>, ServerCertError> {
    let pem = authority.issue_server(&names(server), now, DAYS)?;
    replace_secret(key_path, pem.key.as_bytes())?;
    replace(cert_path, format!("{}{}", pem.certificate, authority.pem()).as_bytes())?;
    certified(&pem)
}

fn certified(pem: &AuthorityPem) -> Result<Arc<CertifiedKey>, ServerCertError> {
    let chain = CertificateDer::pem_slice_iter(pem.certificate.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(ServerCertError::Certificate)?;
    let key = PrivateKeyDer::from_pem_slice(pem.key.as_bytes()).map_err(ServerCertError::Key)?;
    let certified =
        CertifiedKey::from_der(chain, key, &ring::default_provider()).map_err(ServerCertError::Unusable)?;
    Ok(Arc::new(certified))
}

fn read(path: &Path) -> Result<String, ServerCertError> {
    std::fs::read_to_string(path).map_err(|source| ServerCertError::Read { path: path.to_owned(), source })
}
