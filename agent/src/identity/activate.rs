//! Turns a claim code into an activation.
//!
//! The key is made here and never leaves; what is sent is a signing request. It is kept, with the claim it was sent
//! for, before it is first sent: when the answer is lost on the way, the same claim sends the same key again and the
//! fleet can repeat its answer. A refusal forgets it. Nothing else is written before the answer has been checked whole.

use super::answer::{self, Granted};
use super::certificate;
use super::files::{self, Activation, OnDisk, Replaces, Texts};
use super::http::{self, Answer};
use super::tls::{self, Roots};
use crate::clock;
use crate::store::{self, StoreError};
use reqwest::Url;
use samovar_wire::activation::ClaimRequest;
use samovar_wire::ids::DeviceClass;
use samovar_wire::problem::Problem;
use samovar_wire::{Country, DeviceId, StoreId, Timestamp};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;

mod error;
mod words;

pub use error::ActivateError;

const CLAIMS: &str = "/activate/v1/claims";
/// Fleets that may pass a claim on to the one that made it.
const MAX_HOPS: usize = 3;

/// What an operator asks for.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// Base URL of a fleet, or of the activation domain common to all.
    pub server: &'a str,
    /// The code.
    pub claim: &'a str,
    /// Authorities to believe; the system's when absent.
    pub ca: Option<&'a Path>,
    /// The data directory.
    pub data: &'a Path,
    /// Whether an identity that is there may be replaced.
    pub replace: bool,
    /// Orders that have not reached their origin under the present identity.
    pub pending: u64,
}

/// A device that is active now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Activated {
    /// Who it is.
    pub device: DeviceId,
    /// Its store.
    pub store: StoreId,
    /// The store's country.
    pub country: Country,
    /// Its class.
    pub class: DeviceClass,
    /// Environment of route tables and topics.
    pub environment: String,
    /// Base URL of the fleet's device API.
    pub fleet_url: String,
    /// Where MQTT is; empty when the fleet has none.
    pub mqtt_url: String,
    /// Until when the certificate holds, unless renewed.
    pub valid_until: Timestamp,
}

/// Activates a device.
///
/// # Errors
/// See [`ActivateError`]; each says what to do with [`ActivateError::advice`].
pub async fn activate(request: &Request<'_>) -> Result<Activated, ActivateError> {
    let server = http::server_url(request.server)?;
    let code = claim_code(request.claim)?;
    let permit = may_activate(request)?;
    let roots = request.ca.map(Roots::read).transpose().map_err(ActivateError::Roots)?;
    let existed = request.data.exists();
    let (key, new) = files::key_for_claim(request.data, code, certificate::new_key)?;
    let outcome = exchange(&server, code, &key, roots.as_ref()).await;
    let (granted, from) = match outcome {
        Ok(granted) => granted,
        Err(error) => {
            if error.is_refusal() || (new && !error.may_have_arrived()) {
                forget(request.data, code, existed)?;
            }
            return Err(error);
        }
    };
    let fleet_url = match granted.answer.fleet_url.as_str() {
        "" => base_of(&from),
        url => url.to_owned(),
    };
    if let Some(present) =
        permit.only.filter(|only| (&only.0, &only.1) != (&granted.answer.device, &granted.answer.store))
    {
        return Err(ActivateError::OtherDevice { granted: granted.answer.device, present: present.0 });
    }
    keep(request.data, &key, &granted, fleet_url, permit.replaces)
}

fn claim_code(text: &str) -> Result<&str, ActivateError> {
    let code = text.trim();
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    if (1..=64).contains(&code.len()) && code.bytes().all(allowed) {
        Ok(code)
    } else {
        Err(ActivateError::Claim(text.chars().take(64).collect()))
    }
}

/// What an activation may do.
struct Permit {
    replaces: Replaces,
    /// The only device and store that the claim may be for.
    only: Option<(DeviceId, StoreId)>,
}

/// While orders wait, an identity that works is not replaced. One whose certificate is damaged or has ended could
/// never deliver them, so that the same device may be activated again; no other one may take its orders over.
fn may_activate(request: &Request<'_>) -> Result<Permit, ActivateError> {
    let OnDisk { activation, credential, .. } = files::read(request.data)?;
    let Some(present) = activation else { return Ok(Permit { replaces: Replaces::Nothing, only: None }) };
    if !request.replace {
        return Err(ActivateError::AlreadyActive(present.device));
    }
    let ended = |end| clock::trusted_wall().is_some_and(|now| now >= end);
    let works = credential.is_some_and(|own| !ended(own.validity().not_after));
    if request.pending > 0 && works {
        return Err(ActivateError::OrdersPending(request.pending));
    }
    let only = (request.pending > 0).then_some((present.device, present.store));
    Ok(Permit { replaces: Replaces::Anything, only })
}

/// Sends the claim to the server and to wherever it is passed on; gives the answer and whose it is.
async fn exchange(
    server: &Url,
    claim: &str,
    key: &rcgen::KeyPair,
    roots: Option<&Roots>,
) -> Result<(Granted, Url), ActivateError> {
    let csr = certificate::signing_request(key, "unclaimed").map_err(ActivateError::SigningRequest)?;
    let claim = ClaimRequest { claim: claim.to_owned(), csr, hardware: hardware() };
    let mut url = http::below(server, CLAIMS);
    for _ in 0..=MAX_HOPS {
        let client = client_for(&url, roots)?;
        let answer = http::post(&client, url.clone(), &claim).await?;
        match judge(answer, &url, key)? {
            Verdict::Granted(granted) => return Ok((*granted, url)),
            Verdict::Elsewhere(next) => url = next,
        }
    }
    Err(ActivateError::TooManyHops)
}

fn client_for(url: &Url, roots: Option<&Roots>) -> Result<reqwest::Client, ActivateError> {
    if url.scheme() == "http" {
        return Ok(http::plain_client()?);
    }
    let roots = roots.cloned().map_or_else(Roots::system, Ok).map_err(ActivateError::Roots)?;
    Ok(http::client(tls::client_config(&roots, None).map_err(ActivateError::Roots)?)?)
}

enum Verdict {
    Granted(Box<Granted>),
    Elsewhere(Url),
}

fn judge(answer: Answer, url: &Url, key: &rcgen::KeyPair) -> Result<Verdict, ActivateError> {
    let (host, status) = (url.authority().to_owned(), answer.status);
    let problem = || serde_json::from_slice::<Problem>(&answer.body).ok();
    match status {
        200 | 201 => answer::claim(&answer.body, key, clock::trusted_wall())
            .map(|granted| Verdict::Granted(Box::new(granted)))
            .map_err(|problem| ActivateError::Answer { host, problem }),
        307 | 308 => {
            let location = answer.location.unwrap_or_default();
            let next = url.join(&location).ok().filter(|_| !location.is_empty());
            // A claim that began over TLS stays there, even when the next hop is this machine.
            let next = next.and_then(|next| http::allowed(next).ok());
            let next = next.filter(|next| next.scheme() == "https" || url.scheme() == "http");
            next.map(Verdict::Elsewhere).ok_or(ActivateError::Redirect { host, location })
        }
        408 | 425 | 429 | 500..=599 => {
            Err(ActivateError::Busy { host, status, problem: problem().unwrap_or_else(no_words) })
        }
        409 | 410 => {
            Err(ActivateError::Refused { host, status, problem: problem().unwrap_or_else(no_words) })
        }
        // A 404 without a problem document is any web server's; it says nothing of the claim.
        400..=499 => Err(match problem() {
            Some(problem) => ActivateError::Refused { host, status, problem },
            None => ActivateError::NotAFleet { host, status },
        }),
        _ => Err(ActivateError::NotAFleet { host, status }),
    }
}

fn no_words() -> Problem {
    Problem { kind: String::new(), title: String::new(), status: 0, detail: String::new() }
}

fn keep(
    data: &Path,
    key: &rcgen::KeyPair,
    granted: &Granted,
    fleet_url: String,
    replaces: Replaces,
) -> Result<Activated, ActivateError> {
    let answer = &granted.answer;
    let activation = Activation::new(answer, fleet_url, clock::wall());
    let texts = Texts {
        key: &key.serialize_pem(),
        certificate: &answer.certificate,
        ca: &answer.ca,
        route_table: Some(&granted.route_table),
    };
    let kept = files::commit(data, &activation, &texts, replaces)?;
    Ok(Activated {
        device: kept.device,
        store: kept.store,
        country: kept.country,
        class: kept.class,
        environment: kept.environment,
        fleet_url: kept.fleet_url,
        mqtt_url: kept.mqtt_url,
        valid_until: granted.validity.not_after,
    })
}

fn forget(data: &Path, claim: &str, existed: bool) -> Result<(), StoreError> {
    files::forget_claim(data, claim)?;
    if !existed {
        // Made by this attempt, and removed only if nobody has put anything into it since.
        store::remove_empty_dir(data);
    }
    Ok(())
}

/// The server's base URL, from the address of its claims.
fn base_of(url: &Url) -> String {
    let path = url.path().strip_suffix(CLAIMS).unwrap_or("").to_owned();
    let mut base = url.clone();
    base.set_path(&path);
    base.set_query(None);
    base.as_str().trim_end_matches('/').to_owned()
}

/// What the device says of itself; shown to operators, trusted for nothing.
fn hardware() -> BTreeMap<String, String> {
    let file = |path: &str| std::fs::read_to_string(path).ok();
    let model = ["/sys/class/dmi/id/product_name", "/proc/device-tree/model"];
    let facts = [
        ("hostname", file("/proc/sys/kernel/hostname")),
        ("model", model.iter().find_map(|path| file(path))),
        ("os", Some(std::env::consts::OS.to_owned())),
        ("arch", Some(std::env::consts::ARCH.to_owned())),
        ("agent", Some(env!("CARGO_PKG_VERSION").to_owned())),
    ];
    let clean = |text: String| text.chars().filter(|c| !c.is_control()).take(128).collect::<String>();
    let known = facts.into_iter().filter_map(|(name, text)| Some((name.to_owned(), clean(text?))));
    known.filter(|(_, text)| !text.is_empty()).collect()
}

#[cfg(test)]
mod tests;
