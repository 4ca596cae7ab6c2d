//! Who is at the other end of a mutual TLS connection, read from the verified certificate.

use rustls_pki_types::CertificateDer;
use samovar_wire::DeviceId;
use samovar_wire::encoding::hex;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// The device that a verified client certificate names. A request extension on HTTPS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerCertificate {
    /// Common name.
    pub device: DeviceId,
    /// Organisational unit.
    pub store: Option<String>,
    /// Lower-case hex.
    pub serial: String,
}

impl PeerCertificate {
    /// Reads a certificate that TLS has verified. `None` when its name is not a device's.
    #[must_use]
    pub fn read(der: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let subject = certificate.subject();
        let device = subject.iter_common_name().next()?.as_str().ok()?.parse().ok()?;
        let store =
            subject.iter_organizational_unit().next().and_then(|unit| unit.as_str().ok()).map(str::to_owned);
        Some(Self { device, store, serial: hex(certificate.raw_serial()) })
    }
}
