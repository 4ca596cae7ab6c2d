//! Signed documents: DSSE envelopes (payload type, base64 payload, Ed25519 signatures by key id).
//!
//! The bytes signed are the bytes sent, so no canonical form of JSON is needed. A reader names the payload type it
//! expects and the keys it trusts; what comes out of [`Envelope::open`] has been proven, what is inside an
//! [`Envelope`] has not.

use crate::encoding::{base64, from_base64, sha256};
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Payload type of a route table.
pub const ROUTE_TABLE: &str = "application/vnd.samovar.route-table.v1+json";
/// Payload type of a remote command.
pub const COMMAND: &str = "application/vnd.samovar.command.v1+json";
/// Payload type of a device's desired state.
pub const DESIRED: &str = "application/vnd.samovar.desired.v1+json";

/// A signed document as it travels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Envelope {
    /// What the payload is.
    pub payload_type: String,
    /// The payload, base64.
    pub payload: String,
    /// One signature for each signing key.
    pub signatures: Vec<Signature>,
}

/// One signature of an envelope.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Signature {
    /// Which key made it; the empty text lets the reader try all it trusts.
    #[serde(default)]
    pub keyid: String,
    /// The signature, base64.
    pub sig: String,
}

/// A payload whose signature was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// The bytes that were signed.
    pub payload: Vec<u8>,
    /// The trusted key that signed them.
    pub key_id: String,
}

/// Why an envelope was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The payload type is another one.
    #[error("the document is a `{found}`, expected `{expected}`")]
    WrongType {
        /// What the envelope says.
        found: String,
        /// What the reader wanted.
        expected: &'static str,
    },
    /// The payload is not base64.
    #[error("the payload is not base64")]
    PayloadEncoding,
    /// No signature names a trusted key.
    #[error("no trusted key signed it (signed by: {signed_by}; trusted: {trusted})")]
    UnknownKey {
        /// Key ids in the envelope.
        signed_by: String,
        /// Key ids the reader trusts.
        trusted: String,
    },
    /// A trusted key is named, but the signature does not match the payload.
    #[error(
        "the signature of key `{key_id}` does not match: the document was altered or signed by another key of that name"
    )]
    BadSignature {
        /// The key that was named.
        key_id: String,
    },
}

/// A text that is not a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an Ed25519 key: expected the base64 of 32 bytes")]
pub struct InvalidKey;

/// An Ed25519 public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublicKey([u8; 32]);

impl TryFrom<String> for PublicKey {
    type Error = InvalidKey;
    fn try_from(text: String) -> Result<Self, InvalidKey> {
        let bytes = from_base64(text.trim()).ok_or(InvalidKey)?;
        bytes.try_into().map(Self).map_err(|_| InvalidKey)
    }
}

impl From<PublicKey> for String {
    fn from(key: PublicKey) -> Self {
        base64(&key.0)
    }
}

/// Public keys by key id.
pub type TrustedKeys = BTreeMap<String, PublicKey>;

/// An Ed25519 private key with its name.
pub struct SigningKey {
    /// The name that signatures carry.
    pub key_id: String,
    pair: Ed25519KeyPair,
}

impl SigningKey {
    /// Makes a key from its 32-byte seed in base64.
    ///
    /// # Errors
    /// When the text is not the base64 of 32 bytes.
    pub fn from_seed(key_id: impl Into<String>, seed: &str) -> Result<Self, InvalidKey> {
        let seed = from_base64(seed.trim()).ok_or(InvalidKey)?;
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).map_err(|_| InvalidKey)?;
        Ok(Self { key_id: key_id.into(), pair })
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(self.pair.public_key().as_ref());
        PublicKey(bytes)
    }
}

/// A fresh random seed for a signing key, base64. `None` when the system has no randomness to give.
#[must_use]
pub fn new_seed() -> Option<String> {
    let mut seed = [0; 32];
    SystemRandom::new().fill(&mut seed).ok()?;
    Some(base64(&seed))
}

/// The bytes that are signed: DSSE's pre-authentication encoding.
fn pre_authentication(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let head = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len());
    [head.as_bytes(), payload].concat()
}

impl Envelope {
    /// Signs a payload.
    #[must_use]
    pub fn sign(payload_type: &str, payload: &[u8], keys: &[&SigningKey]) -> Self {
        let message = pre_authentication(payload_type, payload);
        let signatures = keys
            .iter()
            .map(|key| Signature { keyid: key.key_id.clone(), sig: base64(key.pair.sign(&message).as_ref()) })
            .collect();
        Self { payload_type: payload_type.to_owned(), payload: base64(payload), signatures }
    }

    /// Verifies the envelope and gives its payload.
    ///
    /// # Errors
    /// When the type is another one, nothing trusted signed it, or the signature does not match.
    pub fn open(&self, expected: &'static str, keys: &TrustedKeys) -> Result<Verified, OpenError> {
        if self.payload_type != expected {
            return Err(OpenError::WrongType { found: self.payload_type.clone(), expected });
        }
        let payload = from_base64(&self.payload).ok_or(OpenError::PayloadEncoding)?;
        let message = pre_authentication(&self.payload_type, &payload);
        let mut named = None;
        for signature in &self.signatures {
            for (key_id, key) in candidates(keys, &signature.keyid) {
                named = Some(key_id.clone());
                let sig = from_base64(&signature.sig).unwrap_or_default();
                if UnparsedPublicKey::new(&ED25519, key.0).verify(&message, &sig).is_ok() {
                    return Ok(Verified { payload, key_id: key_id.clone() });
                }
            }
        }
        Err(named.map_or_else(|| self.unknown_key(keys), |key_id| OpenError::BadSignature { key_id }))
    }

    fn unknown_key(&self, keys: &TrustedKeys) -> OpenError {
        let signed_by: Vec<_> = self.signatures.iter().map(|s| s.keyid.as_str()).collect();
        let trusted: Vec<_> = keys.keys().map(String::as_str).collect();
        let list = |ids: Vec<&str>| if ids.is_empty() { "none".to_owned() } else { ids.join(", ") };
        OpenError::UnknownKey { signed_by: list(signed_by), trusted: list(trusted) }
    }

    /// SHA-256 of the payload bytes; tells "the same document" from "another one".
    #[must_use]
    pub fn payload_sha256(&self) -> Option<[u8; 32]> {
        from_base64(&self.payload).map(|payload| sha256(&payload))
    }
}

fn candidates<'a>(
    keys: &'a TrustedKeys,
    key_id: &'a str,
) -> impl Iterator<Item = (&'a String, &'a PublicKey)> {
    keys.iter().filter(move |(name, _)| key_id.is_empty() || *name == key_id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> SigningKey {
        SigningKey::from_seed(name, &new_seed().unwrap()).unwrap()
    }

    fn trust(keys: &[&SigningKey]) -> TrustedKeys {
        keys.iter().map(|key| (key.key_id.clone(), key.public())).collect()
    }

    #[test]
    fn what_was_signed_comes_out_unchanged() {
        let key = key("k1");
        let envelope = Envelope::sign(ROUTE_TABLE, b"{\"schema\":1}", &[&key]);
        let text = serde_json::to_string(&envelope).unwrap();
        assert!(text.contains("\"payloadType\""));
        let read: Envelope = serde_json::from_str(&text).unwrap();
        let verified = read.open(ROUTE_TABLE, &trust(&[&key])).unwrap();
        assert_eq!(verified.payload, b"{\"schema\":1}");
        assert_eq!(verified.key_id, "k1");
    }

    #[test]
    fn an_altered_payload_type_key_or_signature_is_refused() {
        let (key_1, key_2) = (key("k1"), key("k2"));
        let good = Envelope::sign(ROUTE_TABLE, b"payload", &[&key_1]);
        assert!(matches!(good.open(COMMAND, &trust(&[&key_1])), Err(OpenError::WrongType { .. })));
        assert!(matches!(good.open(ROUTE_TABLE, &trust(&[&key_2])), Err(OpenError::UnknownKey { .. })));
        let altered = Envelope { payload: base64(b"payloae"), ..good.clone() };
        assert!(matches!(altered.open(ROUTE_TABLE, &trust(&[&key_1])), Err(OpenError::BadSignature { .. })));
        let mut forged = good;
        forged.signatures[0].sig = "AAAA".into();
        assert!(matches!(forged.open(ROUTE_TABLE, &trust(&[&key_1])), Err(OpenError::BadSignature { .. })));
    }

    #[test]
    fn one_trusted_signature_among_several_is_enough() {
        let (old, new) = (key("old"), key("new"));
        let envelope = Envelope::sign(DESIRED, b"x", &[&old, &new]);
        assert_eq!(envelope.open(DESIRED, &trust(&[&new])).unwrap().key_id, "new");
    }

    #[test]
    fn the_signed_bytes_are_those_of_the_published_example() {
        // From the DSSE protocol document.
        let bytes = pre_authentication("http://example.com/HelloWorld", b"hello world");
        assert_eq!(bytes, b"DSSEv1 29 http://example.com/HelloWorld 11 hello world");
    }
}
