//! The certificate authority: makes itself once, then issues.

use std::net::IpAddr;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, SerialNumber,
};
use samovar_wire::encoding::hex;
use samovar_wire::{DeviceId, StoreId, Timestamp};

use super::csr::Request;
use crate::clock::{earlier, to_offset};

const DAY: Duration = Duration::from_hours(24);

/// Tills have wrong clocks: a certificate is valid from a day before it was made.
const BACKDATED: Duration = DAY;

/// A certificate could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// The authority's certificate or key is not usable.
    #[error("the certificate authority's {what} is not usable")]
    Authority {
        /// `certificate` or `key`.
        what: &'static str,
        /// Why.
        source: rcgen::Error,
    },
    /// A key could not be made.
    #[error("a key cannot be made")]
    Key(#[source] rcgen::Error),
    /// A certificate could not be signed.
    #[error("a certificate cannot be issued")]
    Issue(#[source] rcgen::Error),
    /// A name cannot stand in a certificate.
    #[error("`{name}` cannot stand in a certificate")]
    Name {
        /// The name.
        name: String,
        /// Why.
        source: rcgen::Error,
    },
    /// No serial number.
    #[error(transparent)]
    Random(#[from] crate::random::NoRandomness),
}

/// An authority's certificate and key as PEM, for storing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorityPem {
    /// The certificate.
    pub certificate: String,
    /// The key; secret.
    pub key: String,
}

/// A device certificate just issued.
#[derive(Clone, Debug)]
pub struct Issued {
    /// Lower-case hex.
    pub serial: String,
    /// The certificate.
    pub pem: String,
    /// Its end.
    pub not_after: Timestamp,
}

/// The certificate authority.
pub struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Authority").finish_non_exhaustive()
    }
}

impl Authority {
    /// Makes a new authority, named after the fleet, for ten years.
    ///
    /// # Errors
    /// [`PkiError`].
    pub fn generate(fleet: &str, now: Timestamp) -> Result<AuthorityPem, PkiError> {
        let key = new_key()?;
        let mut params = CertificateParams::default();
        let (number, serial) = serial()?;
        // No two authorities have one name: a verifier that looks issuers up by name would take the wrong one.
        params.distinguished_name = name(&format!("Samovar {fleet} CA {}", &serial[..8]), None);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.serial_number = Some(number);
        params.not_before = to_offset(earlier(now, BACKDATED));
        params.not_after = to_offset(now.plus(DAY * 3650));
        let certificate = params.self_signed(&key).map_err(PkiError::Issue)?;
        Ok(AuthorityPem { certificate: certificate.pem(), key: key.serialize_pem() })
    }

    /// Takes up an authority made before.
    ///
    /// # Errors
    /// [`PkiError::Authority`] when certificate or key is not usable.
    pub fn from_pem(stored: &AuthorityPem) -> Result<Self, PkiError> {
        let key =
            KeyPair::from_pem(&stored.key).map_err(|source| PkiError::Authority { what: "key", source })?;
        let issuer = Issuer::from_ca_cert_pem(&stored.certificate, key)
            .map_err(|source| PkiError::Authority { what: "certificate", source })?;
        Ok(Self { pem: stored.certificate.clone(), issuer })
    }

    /// The authority's certificate (PEM), which everyone may have.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Issues a device's certificate for the key of its request. Everything else in the request is ignored: the
    /// fleet says who a device is.
    ///
    /// # Errors
    /// [`PkiError`].
    pub fn issue_device(
        &self,
        request: &Request,
        (device, store): (&DeviceId, &StoreId),
        now: Timestamp,
        days: u16,
    ) -> Result<Issued, PkiError> {
        let (number, serial) = serial()?;
        let not_after = now.plus(DAY * u32::from(days));
        let mut params = CertificateParams::default();
        params.distinguished_name = name(device.as_str(), Some(store.as_str()));
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(number);
        params.not_before = to_offset(earlier(now, BACKDATED));
        params.not_after = to_offset(not_after);
        let pem = request.sign(&params, &self.issuer).map_err(PkiError::Issue)?;
        Ok(Issued { serial, pem, not_after })
    }

    /// Issues a server's certificate and key for some names and addresses.
    ///
    /// # Errors
    /// [`PkiError`].
    pub fn issue_server(
        &self,
        names: &[String],
        now: Timestamp,
        days: u16,
    ) -> Result<AuthorityPem, PkiError> {
        let key = new_key()?;
        let mut params = CertificateParams::default();
        let first = names.first().map_or("samovar-fleet", String::as_str);
        params.distinguished_name = name(first, None);
        for name in names {
            params.subject_alt_names.push(alternative(name)?);
        }
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(serial()?.0);
        params.not_before = to_offset(earlier(now, BACKDATED));
        params.not_after = to_offset(now.plus(DAY * u32::from(days)));
        let certificate = params.signed_by(&key, &self.issuer).map_err(PkiError::Issue)?;
        Ok(AuthorityPem { certificate: certificate.pem(), key: key.serialize_pem() })
    }
}

fn new_key() -> Result<KeyPair, PkiError> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(PkiError::Key)
}

fn name(common: &str, unit: Option<&str>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    if let Some(unit) = unit {
        name.push(DnType::OrganizationalUnitName, unit);
    }
    name
}

fn alternative(name: &str) -> Result<SanType, PkiError> {
    if let Ok(address) = name.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(address));
    }
    let text = name.try_into().map_err(|source| PkiError::Name { name: name.to_owned(), source })?;
    Ok(SanType::DnsName(text))
}

/// A random serial number whose first byte is neither 0 nor negative, so that its hex has one form everywhere.
fn serial() -> Result<(SerialNumber, String), PkiError> {
    let mut bytes = crate::random::bytes::<16>()?;
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    Ok((SerialNumber::from_slice(&bytes), hex(&bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::PeerCertificate;
    use rustls_pki_types::CertificateDer;
    use rustls_pki_types::pem::PemObject as _;

    fn authority() -> Authority {
        Authority::from_pem(&Authority::generate("HQ", crate::clock::now()).unwrap()).unwrap()
    }

    #[test]
    fn a_device_certificate_says_what_the_fleet_says_and_not_what_the_request_says() {
        let key = KeyPair::generate().unwrap();
        let mut wish = CertificateParams::new(vec!["bank.example".to_owned()]).unwrap();
        wish.distinguished_name = name("somebody-else", None);
        wish.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let request = Request::parse(&wish.serialize_request(&key).unwrap().pem().unwrap()).unwrap();
        let (device, store) = ("POS-US-0001".parse().unwrap(), "US-0001".parse().unwrap());
        let issued = authority().issue_device(&request, (&device, &store), crate::clock::now(), 90).unwrap();
        let der = CertificateDer::from_pem_slice(issued.pem.as_bytes()).unwrap();
        let peer = PeerCertificate::read(&der).unwrap();
        assert_eq!((peer.device.as_str(), peer.store.as_deref()), ("POS-US-0001", Some("US-0001")));
        assert_eq!(peer.serial, issued.serial);
        let text = format!("{:?}", x509_parser::parse_x509_certificate(&der).unwrap().1);
        assert!(!text.contains("bank.example") && !text.contains("ca: true"));
    }

    #[test]
    fn an_authority_is_the_same_after_being_stored() {
        let stored = Authority::generate("HQ", crate::clock::now()).unwrap();
        let again = Authority::from_pem(&stored).unwrap();
        assert_eq!(again.pem(), stored.certificate);
        assert!(
            again.issue_server(&["localhost".into(), "127.0.0.1".into()], crate::clock::now(), 90).is_ok()
        );
    }
}
