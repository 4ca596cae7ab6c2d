//! What is shown of the overrides: on the local API, in the status, in the conditions.

use super::overrides::{Now, Override};
use super::wish::Source;
use crate::clock::{Mono, mono};
use samovar_wire::Timestamp;
use serde::Serialize;
use std::net::IpAddr;
use std::path::PathBuf;

/// For whom an override holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// For every program of the device.
    Device,
    /// For the agent's own requests and for those who ask it.
    Agent,
}

/// How the hosts file is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileState {
    /// Which file.
    pub path: PathBuf,
    /// `applied`, `off`, `unsupported`, `conflict`, `trampled` or `failing`.
    pub state: &'static str,
    /// Who wrote it last: `agent` or `helper`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<&'static str>,
    /// Why it is not as it should be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// Whether an override takes effect, as found by trying.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Proof {
    pub(super) effective: bool,
    pub(super) why: String,
}

/// One override, as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Shown {
    /// The name.
    pub name: String,
    /// Where it points.
    pub address: IpAddr,
    /// Who wanted it.
    pub owner: String,
    /// Why.
    pub reason: String,
    /// The ticket.
    pub ticket: Option<String>,
    /// Tells it from the next override of the same name.
    pub id: String,
    /// `local` or `fleet`.
    pub source: &'static str,
    /// The fleet's own id of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fleet_id: Option<String>,
    /// Whether it was forced.
    pub forced: bool,
    /// Since when.
    pub set_at: Timestamp,
    /// When it ends by the wall clock; it may end earlier.
    pub until: Timestamp,
    /// Seconds that are left.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remaining_s: Option<u64>,
    /// For whom it holds.
    pub scope: Scope,
    /// Why not for every program.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope_why: Option<String>,
    /// Whether it takes effect; absent until it was tried.
    pub effective: Option<bool>,
    /// How that was found.
    pub why: String,
    #[serde(skip)]
    ends: Mono,
}

impl Shown {
    pub(super) fn new(
        known: &Override,
        now: &Now,
        scope: (Scope, Option<String>),
        proof: Option<&Proof>,
    ) -> Self {
        Self {
            name: known.name.clone(),
            address: known.address,
            owner: known.owner.clone(),
            reason: known.reason.clone(),
            ticket: known.ticket.clone(),
            id: known.id.clone(),
            source: match known.source {
                Source::Local => "local",
                Source::Fleet(_) => "fleet",
            },
            fleet_id: match &known.source {
                Source::Local => None,
                Source::Fleet(id) => Some(id.clone()),
            },
            forced: known.forced,
            set_at: known.set_at,
            until: known.until,
            remaining_s: None,
            scope: scope.0,
            scope_why: scope.1,
            effective: proof.map(|proof| proof.effective),
            why: proof.map_or_else(|| "not tried yet".to_owned(), |proof| proof.why.clone()),
            ends: mono().plus(known.remaining(now)),
        }
    }

    /// The same with the seconds that are left now.
    #[must_use]
    pub fn counted(mut self) -> Self {
        let left = self.ends.after(mono());
        self.remaining_s = Some(left.as_secs() + u64::from(left.subsec_nanos() > 0));
        self
    }
}

impl Published {
    /// Whether something is told that was not told before. When an override ends is reckoned anew each time.
    pub(super) fn differs(&self, other: &Self) -> bool {
        let facts = |shown: &Shown| Shown { ends: Mono::default(), ..shown.clone() };
        self.file != other.file
            || self.overrides.len() != other.overrides.len()
            || self.overrides.iter().zip(&other.overrides).any(|(a, b)| facts(a) != facts(b))
    }
}

/// Everything that is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// The overrides in force, by name.
    pub overrides: Vec<Shown>,
    /// The hosts file.
    pub file: FileState,
}
