//! Published tables in the database.

use samovar_wire::dsse::Envelope;
use samovar_wire::encoding::{from_base64, sha256_from_hex};
use samovar_wire::route::{Both, Flaw, Refusal, Stored, Table};
use samovar_wire::{Country, Timestamp};
use sea_orm::ActiveValue::Set;
use sea_orm::sea_query::OnConflict;
use sea_orm::{EntityTrait as _, QueryOrder as _, QuerySelect as _};

use super::drafts;
use crate::audit;
use crate::db::entity::{route_table, store};
use crate::db::{Database, DatabaseError};

/// Marks tables that this server made itself.
pub const BY_STARTER: &str = "starter";

/// Marks tables that an operator published.
pub const BY_OPERATOR: &str = "operator";

/// A table cannot come into force.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The devices' own rules refuse it.
    #[error("the table {0}")]
    Refused(#[from] Refusal),
    /// Another table has taken this version, or a higher one.
    #[error("version {offered} is taken; publish under a higher version than {highest}")]
    Version {
        /// The version offered.
        offered: u64,
        /// The version in force.
        highest: i64,
    },
    /// It makes no sense, or cannot be taken back.
    #[error("the table is not published: {}", told(.0))]
    Flawed(Vec<Flaw>),
    /// One person alone may not publish.
    #[error(
        "a second operator must approve it: propose it as a draft, or sign it with a key of routes.trusted_keys"
    )]
    FourEyes,
    /// This server has no key.
    #[error(
        "this server signs no route tables (routes.sign): export it, sign it with `samovar-fleet route sign`, publish the envelope"
    )]
    NoKey,
    /// There is no such version, or it cannot be read.
    #[error("there is no route table {0}")]
    Gone(i64),
    /// The starter table cannot be made from this configuration.
    #[error("the starter route table cannot be made: {0}")]
    Starter(String),
    /// Not stored.
    #[error(transparent)]
    Database(#[from] DatabaseError),
}

/// A table about to be published.
pub struct Publication<'a> {
    /// Its version.
    pub version: u64,
    /// Lower-case hex digest of the signed bytes.
    pub sha256: String,
    /// As signed.
    pub envelope: Envelope,
    /// [`BY_STARTER`] or [`BY_OPERATOR`].
    pub origin: &'a str,
    /// Who publishes.
    pub by: &'a str,
    /// Who put it forward, if that was somebody else.
    pub proposed_by: Option<&'a str>,
    /// The version that it brings back.
    pub reissue_of: Option<i64>,
    /// Why, in the words of whoever publishes; may be empty.
    pub reason: &'a str,
    /// What it says otherwise than the one before.
    pub summary: Both,
}

/// The table in force; `None` before the first.
///
/// # Errors
/// When the database does not answer.
pub async fn in_force(database: &Database) -> Result<Option<route_table::Model>, DatabaseError> {
    Ok(route_table::Entity::find().order_by_desc(route_table::Column::Version).one(database.read()).await?)
}

/// The table inside a row. `None` when the row was written by something else.
#[must_use]
pub fn table(row: &route_table::Model) -> Option<Table> {
    let envelope: Envelope = serde_json::from_str(&row.envelope).ok()?;
    serde_json::from_slice(&from_base64(&envelope.payload)?).ok()
}

/// Whether the table in force has a country.
///
/// # Errors
/// When the database does not answer.
pub async fn serves(database: &Database, country: &Country) -> Result<bool, DatabaseError> {
    let table = in_force(database).await?.as_ref().and_then(table);
    Ok(table.is_some_and(|table| table.countries.contains_key(country)))
}

/// Countries of stores that the table in force does not have.
///
/// # Errors
/// When the database does not answer.
pub async fn unserved(database: &Database) -> Result<Vec<String>, DatabaseError> {
    let countries: Vec<String> = store::Entity::find()
        .select_only()
        .column(store::Column::Country)
        .distinct()
        .order_by_asc(store::Column::Country)
        .into_tuple()
        .all(database.read())
        .await?;
    let table = in_force(database).await?.as_ref().and_then(table);
    let served = |country: &String| {
        let country = country.parse::<Country>().ok();
        country.zip(table.as_ref()).is_some_and(|(country, table)| table.countries.contains_key(&country))
    };
    Ok(countries.into_iter().filter(|country| !served(country)).collect())
}

/// What the acceptance rules compare with.
#[must_use]
pub fn stored(row: &route_table::Model) -> Option<Stored> {
    Some(Stored { version: row.version.unsigned_abs(), sha256: sha256_from_hex(&row.sha256)? })
}

/// Stores a table that is newer than the one in force.
///
/// # Errors
/// [`PublishError::Version`] when it is not, or not any more.
pub async fn store(
    database: &Database,
    publication: &Publication<'_>,
    now: Timestamp,
) -> Result<(), PublishError> {
    let write = database.write().await?;
    let latest = route_table::Entity::find()
        .order_by_desc(route_table::Column::Version)
        .one(&*write)
        .await
        .map_err(DatabaseError::Statement)?;
    let highest = latest.map_or(0, |row| row.version);
    let taken = || PublishError::Version { offered: publication.version, highest };
    let version = i64::try_from(publication.version).map_err(|_| taken())?;
    if version <= highest {
        return Err(taken());
    }
    let row = route_table::ActiveModel {
        version: Set(version),
        sha256: Set(publication.sha256.clone()),
        envelope: Set(serde_json::to_string(&publication.envelope).unwrap_or_default()),
        origin: Set(publication.origin.to_owned()),
        published_at: Set(now.millis()),
        published_by: Set(publication.by.to_owned()),
        proposed_by: Set(publication.proposed_by.map(str::to_owned)),
        summary: Set(Some(publication.summary.en.clone())),
        summary_zh: Set(Some(publication.summary.zh.clone())),
        reissue_of: Set(publication.reissue_of),
    };
    let inserted = route_table::Entity::insert(row)
        .on_conflict(OnConflict::column(route_table::Column::Version).do_nothing().to_owned())
        .exec_without_returning(&*write)
        .await
        .map_err(DatabaseError::Statement)?;
    if inserted == 0 {
        return Err(taken());
    }
    let subject = format!("route table {version}");
    drafts::published(&write, publication, version, now).await?;
    let deed = if publication.reissue_of.is_some() { "routes.rollback" } else { "routes.publish" };
    audit::record(&write, now, publication.by, (deed, &subject), deed_detail(publication)).await?;
    write.commit().await?;
    Ok(())
}

fn told(flaws: &[Flaw]) -> String {
    flaws.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// For the audit log: what changed, who put it forward, what it brings back, and the digest of the signed bytes.
fn deed_detail(publication: &Publication<'_>) -> String {
    let mut parts = vec![publication.summary.en.clone()];
    parts.extend(publication.proposed_by.map(|name| format!("proposed by {name}")));
    parts.extend(publication.reissue_of.map(|version| format!("brings back version {version}")));
    parts.extend((!publication.reason.is_empty()).then(|| format!("reason: {}", publication.reason)));
    parts.push(format!("sha256 {}", publication.sha256));
    parts.join("; ")
}
