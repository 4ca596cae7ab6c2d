//! Certificate signing requests: read, their signature checked, and only the key taken from them.

use rcgen::{CertificateParams, CertificateSigningRequestParams, Issuer, KeyPair, PublicKeyData as _};
use samovar_wire::encoding::{hex, sha256};

/// Requests are small; a large one is an attack on the parser.
const LARGEST: usize = 16 * 1024;

/// A request that cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// Too large.
    #[error("the certificate signing request is larger than {LARGEST} bytes")]
    TooLarge,
    /// Not PEM, not a request, an unknown kind of key, or not signed by its own key.
    #[error("the certificate signing request cannot be used: {0}")]
    Unusable(rcgen::Error),
}

/// A request whose sender has the key it names.
pub struct Request {
    inner: CertificateSigningRequestParams,
}

impl Request {
    /// Reads a request (PEM) and checks its signature.
    ///
    /// # Errors
    /// [`RequestError`].
    pub fn parse(pem: &str) -> Result<Self, RequestError> {
        if pem.len() > LARGEST {
            return Err(RequestError::TooLarge);
        }
        CertificateSigningRequestParams::from_pem(pem)
            .map(|inner| Self { inner })
            .map_err(RequestError::Unusable)
    }

    /// Digest of the public key: tells "the same device again" from "somebody else with the same code".
    #[must_use]
    pub fn key_digest(&self) -> String {
        hex(&sha256(self.inner.public_key.der_bytes()))
    }

    pub(super) fn sign(
        &self,
        params: &CertificateParams,
        issuer: &Issuer<'_, KeyPair>,
    ) -> Result<String, rcgen::Error> {
        params.signed_by(&self.inner.public_key, issuer).map(|certificate| certificate.pem())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(key: &KeyPair) -> String {
        CertificateParams::default().serialize_request(key).unwrap().pem().unwrap()
    }

    #[test]
    fn the_same_key_has_the_same_digest_in_every_request() {
        let (one, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let digest = |key| Request::parse(&request(key)).unwrap().key_digest();
        assert_eq!(digest(&one), digest(&one));
        assert_ne!(digest(&one), digest(&other));
    }

    #[test]
    fn a_request_that_was_changed_after_signing_is_refused() {
        use base64::Engine as _;
        let pem = request(&KeyPair::generate().unwrap());
        let body: String = pem.lines().filter(|line| !line.starts_with("---")).collect();
        let mut der = base64::engine::general_purpose::STANDARD.decode(body).unwrap();
        let last = der.len() - 1;
        der[last] ^= 1;
        let broken = base64::engine::general_purpose::STANDARD.encode(der);
        let pem =
            format!("-----BEGIN CERTIFICATE REQUEST-----\n{broken}\n-----END CERTIFICATE REQUEST-----\n");
        assert!(matches!(Request::parse(&pem), Err(RequestError::Unusable(_))));
    }

    #[test]
    fn rubbish_is_refused() {
        for bad in ["", "x", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"]
        {
            assert!(matches!(Request::parse(bad), Err(RequestError::Unusable(_))), "{bad}");
        }
        assert!(matches!(Request::parse(&"x".repeat(LARGEST + 1)), Err(RequestError::TooLarge)));
    }
}
