//! TLS for origins, the fleet and the broker: whom to believe, and what to show.
//!
//! Whom to believe is `[origin] tls.ca`, else the authority of the activation, and then only that; without either, what
//! the system trusts. The certificate shown is `[origin] tls.cert`, else the activation's. The provider is always ring.
//! Deliberately absent: any way to switch verification off.

use super::certificate::{self, CertificateError, Facts, Validity};
use crate::clock;
use crate::store::{self, StoreError};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, RootCertStore};
use samovar_wire::Timestamp;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error(transparent)]
    Read(#[from] StoreError),
    /// A file that is named does not exist.
    #[error("{0} does not exist")]
    Missing(PathBuf),
    /// A file holds something else than it should.
    #[error("{path} {problem}")]
    File {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        problem: CertificateError,
    },
    /// There is nobody to believe.
    #[error(
        "no certificate authority: set origin.tls.ca (this system has no trusted certificates of its own)"
    )]
    NoRoots,
    /// The library refused the result.
    #[error("TLS cannot be configured: {0}")]
    Configure(rustls::Error),
}

/// A certificate chain and its key, which belong together.
#[derive(Debug)]
pub struct Credential {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    facts: Facts,
}

impl Credential {
    /// Reads a pair of PEM files.
    ///
    /// # Errors
    /// Which file is missing, unreadable or not what it should be.
    pub fn read(certificate: &Path, key: &Path) -> Result<Self, TlsError> {
        let (certificate_pem, key_pem) = (required(certificate)?, required(key)?);
        let in_file = |path: &Path| {
            let path = path.to_owned();
            move |problem| TlsError::File { path, problem }
        };
        let chain = certificate::read_chain(&certificate_pem).map_err(in_file(certificate))?;
        let key_der = certificate::read_key(&key_pem).map_err(in_file(key))?;
        Self::new(chain, key_der).map_err(|problem| match problem {
            CertificateError::UnusableKey(_) => in_file(key)(problem),
            _ => in_file(certificate)(problem),
        })
    }

    pub(super) fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Self, CertificateError> {
        let facts = certificate::facts(chain.first().ok_or(CertificateError::NoCertificate)?)?;
        CertifiedKey::from_der(chain.clone(), key.clone_key(), &certificate::provider()).map_err(
            |error| match error {
                rustls::Error::InconsistentKeys(_) => CertificateError::KeyMismatch,
                other => CertificateError::UnusableKey(other.to_string()),
            },
        )?;
        Ok(Self { chain, key, facts })
    }

    /// From when until when it holds.
    #[must_use]
    pub const fn validity(&self) -> Validity {
        self.facts.validity
    }

    /// Whom the certificate names.
    #[must_use]
    pub fn common_name(&self) -> &str {
        &self.facts.common_name
    }

    /// A number of this certificate's own, to spread many devices over time.
    pub(super) fn fingerprint(&self) -> [u8; 32] {
        self.chain.first().map_or([0; 32], |leaf| samovar_wire::encoding::sha256(leaf))
    }
}

/// Whom to believe.
#[derive(Debug, Clone)]
pub struct Roots(Arc<RootCertStore>);

impl Roots {
    /// Reads a PEM file of certificate authorities.
    ///
    /// # Errors
    /// When it is missing, unreadable or holds no certificate.
    pub fn read(path: &Path) -> Result<Self, TlsError> {
        Self::from_pem(&required(path)?).map_err(|problem| TlsError::File { path: path.to_owned(), problem })
    }

    pub(super) fn from_pem(pem: &[u8]) -> Result<Self, CertificateError> {
        certificate::roots_from(pem).map(|roots| Self(Arc::new(roots)))
    }

    /// What the system trusts.
    ///
    /// # Errors
    /// When that is nothing.
    pub fn system() -> Result<Self, TlsError> {
        let mut roots = RootCertStore::empty();
        let (added, _) = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if added == 0 { Err(TlsError::NoRoots) } else { Ok(Self(Arc::new(roots))) }
    }

    /// Nobody: for connections that do without TLS.
    pub(super) fn none() -> Self {
        Self(Arc::new(RootCertStore::empty()))
    }
}

/// The client side of TLS 1.2 and 1.3 with these roots and, if given, this certificate.
///
/// # Errors
/// When the library refuses the combination.
pub fn client_config(roots: &Roots, credential: Option<&Credential>) -> Result<ClientConfig, TlsError> {
    let floor = credential.map_or(Timestamp::from_millis(0), |own| own.validity().not_before);
    let builder = ClientConfig::builder_with_details(certificate::provider(), Arc::new(NotBefore(floor)))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(TlsError::Configure)?
        .with_root_certificates(Arc::clone(&roots.0));
    match credential {
        None => Ok(builder.with_no_client_auth()),
        Some(own) => {
            builder.with_client_auth_cert(own.chain.clone(), own.key.clone_key()).map_err(TlsError::Configure)
        }
    }
}

fn required(path: &Path) -> Result<Vec<u8>, TlsError> {
    store::read(path)?.ok_or_else(|| TlsError::Missing(path.to_owned()))
}

/// The wall clock, but never before a moment that is known to have passed: a board without a battery wakes up in 1970,
/// where no certificate is valid yet, and could not even ask for the time over TLS.
#[derive(Debug)]
struct NotBefore(Timestamp);

impl TimeProvider for NotBefore {
    fn current_time(&self) -> Option<UnixTime> {
        let now = clock::wall().max(self.0);
        u64::try_from(now.millis())
            .ok()
            .map(|millis| UnixTime::since_unix_epoch(Duration::from_millis(millis)))
    }
}
