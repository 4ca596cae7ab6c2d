//! Renews the certificate: a new key, a new certificate, and proof that it works before the old one is given up.
//!
//! The candidate lives in memory alone until a server has accepted it; then one commit brings it into force. Whatever
//! goes wrong before that drops the candidate, and the old certificate stays as if nothing had been tried.

use super::answer::{self, AnswerError};
use super::certificate::{self, CertificateError};
use super::files::{self, Activation, FilesError, Replaces, Texts};
use super::http::{self, HttpError, UrlError};
use super::tls::{self, Credential, Roots, TlsError};
use crate::clock;
use reqwest::Url;
use samovar_wire::activation::{RenewalAnswer, RenewalRequest};
use samovar_wire::problem::Problem;
use std::path::{Path, PathBuf};

const RENEWALS: &str = "/activate/v1/renewals";
const HEALTH: &str = "/.samovar/health";

/// Why the old certificate stays.
#[derive(Debug, thiserror::Error)]
pub enum RenewError {
    /// The fleet's address is not one.
    #[error(transparent)]
    Url(#[from] UrlError),
    /// Key or signing request cannot be made.
    #[error("cannot make a key and a signing request")]
    Key(#[source] rcgen::Error),
    /// TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The fleet gave no answer.
    #[error(transparent)]
    Http(HttpError),
    /// The fleet says no.
    #[error("the fleet refused the renewal ({status}): {words}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// Its words.
        words: String,
    },
    /// The answer cannot be believed.
    #[error(transparent)]
    Answer(AnswerError),
    /// The certificate cannot be used.
    #[error("the new certificate {0}")]
    Candidate(CertificateError),
    /// The fleet could not be reached with the new certificate.
    #[error("the new certificate does not connect")]
    DoesNotConnect(#[source] HttpError),
    /// The fleet was reached with the new certificate, and does not want it.
    #[error("the new certificate is not accepted: the fleet answered {0}")]
    NotAccepted(u16),
    /// The data directory.
    #[error(transparent)]
    Files(FilesError),
    /// The process is ending.
    #[error("the commit was cut short")]
    CutShort,
}

/// What a renewal starts from.
#[derive(Debug, Clone)]
pub(super) struct Present {
    pub dir: PathBuf,
    pub activation: Activation,
    /// TLS with the certificate that is to be replaced.
    pub tls: rustls::ClientConfig,
}

/// Renews the certificate of an activation and brings the new one into force.
pub(super) async fn renew(present: Present) -> Result<Activation, RenewError> {
    let fleet = http::server_url(&present.activation.fleet_url)?;
    let key = certificate::new_key().map_err(RenewError::Key)?;
    let answer = ask(&fleet, &present, &key).await?;
    probe(&fleet, &answer, &key).await?;
    // The commit waits for the disk, and must not stop half way when this task is dropped.
    tokio::task::spawn_blocking(move || promote(&present.dir, &present.activation, &answer, &key))
        .await
        .map_err(|_| RenewError::CutShort)?
}

async fn ask(fleet: &Url, present: &Present, key: &rcgen::KeyPair) -> Result<RenewalAnswer, RenewError> {
    let device = &present.activation.device;
    let csr = certificate::signing_request(key, device.as_str()).map_err(RenewError::Key)?;
    let client = http::client(present.tls.clone()).map_err(RenewError::Http)?;
    let request = RenewalRequest { csr };
    let answer =
        http::post(&client, http::below(fleet, RENEWALS), &request).await.map_err(RenewError::Http)?;
    if !matches!(answer.status, 200 | 201) {
        let problem = serde_json::from_slice::<Problem>(&answer.body).map(|problem| problem.detail);
        let words = problem.unwrap_or_else(|_| "it gave no reason".to_owned());
        return Err(RenewError::Refused { status: answer.status, words });
    }
    answer::renewal(&answer.body, device, key, clock::trusted_wall()).map_err(RenewError::Answer)
}

/// A certificate is worth what a server makes of it: one that is not accepted would cut the device off.
async fn probe(fleet: &Url, answer: &RenewalAnswer, key: &rcgen::KeyPair) -> Result<(), RenewError> {
    let chain = certificate::read_chain(answer.certificate.as_bytes()).map_err(RenewError::Candidate)?;
    let key = certificate::read_key(key.serialize_pem().as_bytes()).map_err(RenewError::Candidate)?;
    let candidate = Credential::new(chain, key).map_err(RenewError::Candidate)?;
    let roots = Roots::from_pem(answer.ca.as_bytes()).map_err(RenewError::Candidate)?;
    let client = http::client(tls::client_config(&roots, Some(&candidate))?).map_err(RenewError::Http)?;
    let seen = http::get(&client, http::below(fleet, HEALTH)).await.map_err(RenewError::DoesNotConnect)?;
    match seen.status {
        // A fleet without that page has accepted the certificate all the same.
        200..=299 | 404 => Ok(()),
        status => Err(RenewError::NotAccepted(status)),
    }
}

fn promote(
    dir: &Path,
    activation: &Activation,
    answer: &RenewalAnswer,
    key: &rcgen::KeyPair,
) -> Result<Activation, RenewError> {
    let key = key.serialize_pem();
    let texts = Texts { key: &key, certificate: &answer.certificate, ca: &answer.ca, route_table: None };
    files::commit(dir, activation, &texts, Replaces::Credential(activation.credential))
        .map_err(RenewError::Files)
}

#[cfg(test)]
mod tests;
