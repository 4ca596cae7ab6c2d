//! Whether what the fleet granted may be believed and kept. Pure: the answer, the key and the time come in.
//!
//! Everything is checked before anything is written: a device that keeps a wrong answer can neither work nor be
//! activated again without a visit.

use super::certificate::{self, CertificateError, Validity};
use rustls::pki_types::CertificateDer;
use samovar_wire::activation::{ClaimAnswer, RenewalAnswer};
use samovar_wire::route::{self, Refusal};
use samovar_wire::{DeviceId, Timestamp};
use serde::Deserialize;
use serde_json::value::RawValue;

/// An answer that is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    /// Not an answer of this kind at all.
    #[error("the answer is not a grant: {0}")]
    NotAGrant(String),
    /// The certificate cannot be used.
    #[error("the certificate in the answer {0}")]
    Certificate(CertificateError),
    /// The authority cannot be used.
    #[error("the certificate authority in the answer {0}")]
    Authority(CertificateError),
    /// The certificate is for somebody else's key.
    #[error("the certificate in the answer is not for this device's key")]
    OtherKey,
    /// The certificate names somebody else.
    #[error("the certificate in the answer is for `{certificate}`, the answer is for `{device}`")]
    OtherName {
        /// Whom the certificate names.
        certificate: String,
        /// Who the device is.
        device: DeviceId,
    },
    /// The environment cannot be part of a topic.
    #[error(
        "the environment `{0}` in the answer is not valid: use 1 to 64 of the characters A-Z a-z 0-9 _ -"
    )]
    Environment(String),
    /// The route table may not come into force.
    #[error("the route table in the answer {0}")]
    RouteTable(Refusal),
    /// A URL that cannot be used.
    #[error("the {what} `{url}` in the answer cannot be used")]
    Url {
        /// Which.
        what: &'static str,
        /// What it says.
        url: String,
    },
}

/// A claim's answer that was checked.
#[derive(Debug)]
pub(super) struct Granted {
    pub answer: ClaimAnswer,
    /// The route table as it was sent.
    pub route_table: String,
    pub validity: Validity,
}

#[derive(Deserialize)]
struct RawTable<'a> {
    #[serde(borrow)]
    route_table: &'a RawValue,
}

/// Checks the answer to a claim. `now` is `None` while the clock is untrusted.
pub(super) fn claim(
    body: &[u8],
    key: &rcgen::KeyPair,
    now: Option<Timestamp>,
) -> Result<Granted, AnswerError> {
    let not_a_grant = |error: serde_json::Error| AnswerError::NotAGrant(error.to_string());
    let answer: ClaimAnswer = serde_json::from_slice(body).map_err(not_a_grant)?;
    let raw: RawTable<'_> = serde_json::from_slice(body).map_err(not_a_grant)?;
    let validity = certificate(&answer.certificate, &answer.ca, &answer.device, key, now)?;
    let is_level = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    if !(1..=64).contains(&answer.environment.len()) || !answer.environment.bytes().all(is_level) {
        return Err(AnswerError::Environment(answer.environment));
    }
    // The certificate was made just now, so that its beginning is a clock of its own.
    let at = now.map(|now| now.max(validity.not_before));
    route::accept(&answer.route_table, &answer.trusted_keys, &answer.environment, None, at)
        .map_err(AnswerError::RouteTable)?;
    urls(&answer)?;
    let route_table = raw.route_table.get().to_owned();
    Ok(Granted { answer, route_table, validity })
}

/// Checks the answer to a renewal.
pub(super) fn renewal(
    body: &[u8],
    device: &DeviceId,
    key: &rcgen::KeyPair,
    now: Option<Timestamp>,
) -> Result<RenewalAnswer, AnswerError> {
    let answer: RenewalAnswer =
        serde_json::from_slice(body).map_err(|error| AnswerError::NotAGrant(error.to_string()))?;
    certificate(&answer.certificate, &answer.ca, device, key, now)?;
    Ok(answer)
}

fn certificate(
    pem: &str,
    ca: &str,
    device: &DeviceId,
    key: &rcgen::KeyPair,
    now: Option<Timestamp>,
) -> Result<Validity, AnswerError> {
    let chain: Vec<CertificateDer<'_>> =
        certificate::read_chain(pem.as_bytes()).map_err(AnswerError::Certificate)?;
    let roots = certificate::roots_from(ca.as_bytes()).map_err(AnswerError::Authority)?;
    let leaf = chain.first().ok_or(AnswerError::Certificate(CertificateError::NoCertificate))?;
    let facts = certificate::facts(leaf).map_err(AnswerError::Certificate)?;
    if facts.public_key != certificate::public_key_of(key) {
        return Err(AnswerError::OtherKey);
    }
    if facts.common_name != device.as_str() {
        return Err(AnswerError::OtherName { certificate: facts.common_name, device: device.clone() });
    }
    certificate::verify(&chain, roots, now).map_err(AnswerError::Certificate)?;
    Ok(facts.validity)
}

fn urls(answer: &ClaimAnswer) -> Result<(), AnswerError> {
    let fleet = &answer.fleet_url;
    if !fleet.is_empty() && super::http::server_url(fleet).is_err() {
        return Err(AnswerError::Url { what: "fleet_url", url: fleet.clone() });
    }
    let mqtt = &answer.mqtt_url;
    let schemes = ["mqtts://", "wss://", "mqtt://", "ws://"];
    if !mqtt.is_empty() && !schemes.iter().any(|scheme| mqtt.starts_with(scheme)) {
        return Err(AnswerError::Url { what: "mqtt_url", url: mqtt.clone() });
    }
    Ok(())
}
