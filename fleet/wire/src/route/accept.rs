//! Whether a route table that was offered may come into force.
//!
//! The order of the checks is the order of the contract: who signed it, what it is for, whether it is newer, whether
//! its time has come, whether it makes sense. A refusal says which of these failed and leaves the old table in force.

use super::consistent::flaws;
use super::table::Table;
use crate::Timestamp;
use crate::dsse::{self, Envelope, OpenError, TrustedKeys};
use crate::encoding::sha256;

/// Largest table, in bytes of the signed payload.
pub const MAX_TABLE_BYTES: usize = 1024 * 1024;

/// What is known of the table in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// Its version.
    pub version: u64,
    /// SHA-256 of its signed bytes.
    pub sha256: [u8; 32],
}

/// A table that may come into force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// The table.
    pub table: Table,
    /// SHA-256 of its signed bytes.
    pub sha256: [u8; 32],
    /// The key that signed it.
    pub key_id: String,
    /// It is the table in force already: same version, same bytes.
    pub unchanged: bool,
}

/// Why a table was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not proven to come from a trusted key.
    #[error("not trusted: {0}")]
    Untrusted(OpenError),
    /// More than 1 MiB.
    #[error("too large: {bytes} bytes, the limit is {MAX_TABLE_BYTES}")]
    TooLarge {
        /// Size of the payload.
        bytes: usize,
    },
    /// Not a route table.
    #[error("cannot be read: {0}")]
    Unreadable(String),
    /// A form this version does not know.
    #[error("has schema {0}, this version reads schema 1")]
    Schema(u64),
    /// Meant for another environment.
    #[error("is for environment `{found}`, this device is in `{expected}`")]
    Environment {
        /// What the table says.
        found: String,
        /// Where the device is.
        expected: String,
    },
    /// Older than the table in force.
    #[error(
        "has version {offered}, version {in_force} is in force (a rollback is re-issued under a higher version)"
    )]
    OlderVersion {
        /// The version offered.
        offered: u64,
        /// The version in force.
        in_force: u64,
    },
    /// The same version as the table in force, but other bytes.
    #[error("has version {0} like the table in force, but other content")]
    SameVersionOtherContent(u64),
    /// Its time has not come.
    #[error("is not valid before {0}")]
    NotYet(Timestamp),
    /// It contradicts itself.
    #[error("contradicts itself: {0}")]
    Inconsistent(String),
}

/// Decides whether an offered table may come into force. `now` is `None` while the clock is untrusted.
///
/// # Errors
/// The first rule of the contract that the table breaks.
pub fn accept(
    envelope: &Envelope,
    trusted: &TrustedKeys,
    environment: &str,
    in_force: Option<Stored>,
    now: Option<Timestamp>,
) -> Result<Accepted, Refusal> {
    let verified = envelope.open(dsse::ROUTE_TABLE, trusted).map_err(Refusal::Untrusted)?;
    let table = check(&verified.payload, environment)?;
    let digest = sha256(&verified.payload);
    let unchanged = newer(table.version, digest, in_force)?;
    if !unchanged {
        in_time(&table, now)?;
    }
    Ok(Accepted { table, sha256: digest, key_id: verified.key_id, unchanged })
}

/// `Ok(true)` when the offered table is the one in force.
fn newer(offered: u64, digest: [u8; 32], in_force: Option<Stored>) -> Result<bool, Refusal> {
    match in_force {
        Some(stored) if offered < stored.version => {
            Err(Refusal::OlderVersion { offered, in_force: stored.version })
        }
        Some(stored) if offered == stored.version && digest != stored.sha256 => {
            Err(Refusal::SameVersionOtherContent(offered))
        }
        Some(stored) => Ok(offered == stored.version),
        None => Ok(false),
    }
}

fn in_time(table: &Table, now: Option<Timestamp>) -> Result<(), Refusal> {
    match now {
        Some(now) if now < table.not_before => Err(Refusal::NotYet(table.not_before)),
        _ => Ok(()),
    }
}

/// Reads a table's bytes and checks everything that needs neither key nor clock.
///
/// # Errors
/// The first rule of the contract that the table breaks.
pub fn check(payload: &[u8], environment: &str) -> Result<Table, Refusal> {
    if payload.len() > MAX_TABLE_BYTES {
        return Err(Refusal::TooLarge { bytes: payload.len() });
    }
    // The schema comes first: a later form need not be readable as this one.
    let schema = serde_json::from_slice::<SchemaOnly>(payload)
        .map_err(|error| Refusal::Unreadable(error.to_string()))?
        .schema;
    if schema != 1 {
        return Err(Refusal::Schema(schema));
    }
    let table: Table =
        serde_json::from_slice(payload).map_err(|error| Refusal::Unreadable(error.to_string()))?;
    if table.environment != environment {
        return Err(Refusal::Environment { found: table.environment, expected: environment.to_owned() });
    }
    match flaws(&table).first() {
        Some(flaw) => Err(Refusal::Inconsistent(flaw.to_string())),
        None => Ok(table),
    }
}

#[derive(serde::Deserialize)]
struct SchemaOnly {
    schema: u64,
}

#[cfg(test)]
mod tests;
