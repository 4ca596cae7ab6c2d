//! Where one request would go, with everything that was looked at: the answer to "where would store X go?".

use super::choose::{Facts, Query, Reason, Rule, choose};
use super::table::{Endpoint, Table};
use crate::OriginId;
use crate::status::Health;
use serde::Serialize;

/// A decision, or why there is none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Explained {
    /// Version of the table that was asked.
    pub table_version: u64,
    /// The origin; nothing when it is held.
    pub origin: Option<OriginId>,
    /// `residency` when no origin may serve it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held: Option<&'static str>,
    /// Why it is held.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Name for TLS and `Host`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// `scheme://domain[:port]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_url: Option<String>,
    /// What is dialled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<Endpoint>,
    /// The rule that chose.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<Rule>,
    /// Every origin that could serve it, best first.
    pub candidates: Vec<(OriginId, Health)>,
    /// One entry per rule looked at.
    pub reason: Vec<Reason>,
}

/// Asks the chooser, and tells what it looked at whatever it found.
#[must_use]
pub fn explain(table: &Table, query: &Query<'_>, facts: &Facts<'_>) -> Explained {
    match choose(table, query, facts) {
        Ok(decision) => Explained {
            table_version: table.version,
            origin: Some(decision.origin),
            held: None,
            detail: None,
            domain: Some(decision.domain),
            base_url: Some(decision.base_url),
            endpoint: Some(decision.endpoint),
            rule: Some(decision.rule),
            candidates: decision.candidates.into_iter().map(|one| (one.origin, one.health)).collect(),
            reason: decision.reason,
        },
        Err(none) => Explained {
            table_version: table.version,
            origin: None,
            held: Some("residency"),
            detail: Some(none.to_string()),
            domain: None,
            base_url: None,
            endpoint: None,
            rule: None,
            candidates: Vec::new(),
            reason: none.reason(),
        },
    }
}
