//! How a table comes into force: verified and validated by the devices' own rules, whoever brings it.

use std::time::Duration;

use samovar_wire::Timestamp;
use samovar_wire::dsse::{self, Envelope};
use samovar_wire::encoding::{from_base64, hex};
use samovar_wire::route;
use sea_orm::EntityTrait as _;

use super::document::{self, Stamp};
use super::published::{self, BY_OPERATOR, Publication, PublishError};
use super::{difference, sensible, trusted_keys};
use crate::app::App;
use crate::db::DatabaseError;
use crate::db::entity::route_table;

/// How long a table lives that is brought back without a life of its own.
const LIFE: Duration = Duration::from_hours(24 * 30);

/// Who is behind a publication.
#[derive(Clone, Copy, Debug)]
pub struct Behind<'a> {
    /// Who publishes.
    pub by: &'a str,
    /// Who put it forward, if that was somebody else.
    pub proposed_by: Option<&'a str>,
    /// The version that it brings back.
    pub reissue_of: Option<i64>,
    /// Why, in the words of whoever does it; may be empty.
    pub reason: &'a str,
    /// Somebody else has seen it: an approver, or whoever published it before.
    pub seen: bool,
}

impl<'a> Behind<'a> {
    /// One person alone.
    #[must_use]
    pub const fn alone(by: &'a str) -> Self {
        Self { by, proposed_by: None, reissue_of: None, reason: "", seen: false }
    }
}

/// What became of a table that was offered.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// It is in force now.
    Published(route_table::Model),
    /// It was in force already: the same version and the same bytes.
    Unchanged(route_table::Model),
}

/// Signs the bytes of a table with this server's key.
///
/// # Errors
/// [`PublishError::NoKey`] on a server that signs none.
pub fn sign(app: &App, payload: &[u8]) -> Result<Envelope, PublishError> {
    let key = app.keys.routes.as_ref().ok_or(PublishError::NoKey)?;
    Ok(Envelope::sign(dsse::ROUTE_TABLE, payload, &[key]))
}

/// Brings a signed table into force.
///
/// # Errors
/// [`PublishError`] says which rule it breaks.
pub async fn publish(
    app: &App,
    envelope: Envelope,
    behind: Behind<'_>,
    now: Timestamp,
) -> Result<Outcome, PublishError> {
    let in_force = published::in_force(&app.database).await?;
    let stored = in_force.as_ref().and_then(published::stored);
    let environment = &app.config.server.environment;
    let accepted = route::accept(&envelope, &trusted_keys(app), environment, stored, Some(now))?;
    if let Some(in_force) = in_force.clone().filter(|_| accepted.unchanged) {
        return Ok(Outcome::Unchanged(in_force));
    }
    let signed_elsewhere = app.config.routes.trusted_keys.contains_key(&accepted.key_id);
    if app.config.routes.four_eyes && !behind.seen && !signed_elsewhere {
        return Err(PublishError::FourEyes);
    }
    let highest = in_force.as_ref().map_or(0, |row| row.version.unsigned_abs());
    let flaws = sensible::flaws(&accepted.table, highest, now);
    if !flaws.is_empty() {
        return Err(PublishError::Flawed(flaws));
    }
    let before = in_force.as_ref().and_then(published::table);
    let publication = Publication {
        version: accepted.table.version,
        sha256: hex(&accepted.sha256),
        envelope,
        origin: BY_OPERATOR,
        by: behind.by,
        proposed_by: behind.proposed_by,
        reissue_of: behind.reissue_of,
        reason: behind.reason,
        summary: difference::summary(before.as_ref(), &accepted.table),
    };
    published::store(&app.database, &publication, now).await?;
    app.ingest.route_table_published();
    tracing::info!(version = publication.version, by = behind.by, "route table published");
    let version = i64::try_from(publication.version).unwrap_or(i64::MAX);
    let made = route_table::Entity::find_by_id(version).one(app.database.read()).await;
    let made = made.map_err(DatabaseError::Statement)?;
    made.map(Outcome::Published).ok_or(PublishError::Gone(version))
}

/// The words of an older version under the next version, with new dates; for a rollback.
///
/// # Errors
/// [`PublishError::Gone`] when there is no such version.
pub async fn reissue(app: &App, version: i64, now: Timestamp) -> Result<String, PublishError> {
    let found = route_table::Entity::find_by_id(version).one(app.database.read()).await;
    let row = found.map_err(DatabaseError::Statement)?.ok_or(PublishError::Gone(version))?;
    let table = published::table(&row).ok_or(PublishError::Gone(version))?;
    let text = payload(&row).ok_or(PublishError::Gone(version))?;
    let highest = published::in_force(&app.database).await?.map_or(0, |row| row.version.unsigned_abs());
    let life = match table.expires_at.since(table.issued_at) {
        Duration::ZERO => LIFE,
        life => life,
    };
    let stamp = Stamp { version: highest + 1, now, expires_at: Some(now.plus(life)) };
    document::stamped(&text, stamp).ok_or(PublishError::Gone(version))
}

/// The bytes of a published table, as text.
#[must_use]
pub fn payload(row: &route_table::Model) -> Option<String> {
    let envelope: Envelope = serde_json::from_str(&row.envelope).ok()?;
    String::from_utf8(from_base64(&envelope.payload)?).ok()
}
