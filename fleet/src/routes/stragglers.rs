//! Which devices do not have the table in force yet, and why, as far as they have said.
//!
//! What a device has is what it reports. A table needs its time: until `minutes` after the publication nobody is behind.

use std::time::Duration;

use samovar_wire::Timestamp;
use sea_orm::{
    ColumnTrait as _, EntityTrait as _, PaginatorTrait as _, QueryFilter as _, QueryOrder as _,
    QuerySelect as _, QueryTrait as _,
};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::published;
use crate::app::App;
use crate::clock;
use crate::db::DatabaseError;
use crate::db::entity::{device, store};
use crate::ingest::entity::device_status;
use crate::ingest::live::{self, Live};

/// When nobody says otherwise: as long as devices take to ask by themselves.
pub const MINUTES: u64 = 15;

/// Devices of one page at most.
pub const PAGE: u64 = 1000;

/// Why a device is behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Why {
    /// It has refused the table; `detail` has its words.
    Refused,
    /// It is not there.
    Offline,
    /// It was never heard of.
    NeverSeen,
    /// It is shut out.
    Revoked,
    /// It is there, has been told, and has not applied it.
    NotApplied,
    /// It is there and has not said why.
    Unknown,
}

/// A device that is behind.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Straggler {
    /// The device.
    pub device: String,
    /// Its store.
    pub store: String,
    /// The store's country.
    pub country: Option<String>,
    /// The version in force there; null when it has not said.
    pub route_table: Option<i64>,
    /// Whether it is there.
    pub online: bool,
    /// Since when it is there, or not.
    pub since: Option<String>,
    /// Why it is behind.
    pub why: Why,
    /// Its own words, when it refused.
    pub detail: String,
}

/// Devices by the version in force there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Having {
    /// The version; null for those that have not said.
    pub version: Option<i64>,
    /// How many devices.
    pub devices: u64,
}

/// How far a table has come.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub struct Spread {
    /// The version in force; null before the first.
    pub version: Option<i64>,
    /// When it was published.
    pub published_at: Option<String>,
    /// Whether it had its time; before that nobody is behind.
    pub due: bool,
    /// All devices.
    pub devices: u64,
    /// Those that have it.
    pub have_it: u64,
    /// Devices by the version they have, the newest first.
    pub versions: Vec<Having>,
    /// Those that are behind, by identifier.
    pub stragglers: Vec<Straggler>,
    /// What to give as `after` for the next page; null at the end.
    pub next: Option<String>,
}

/// How far the table in force has come, and a page of those that are behind.
///
/// # Errors
/// When the database does not answer.
pub async fn spread(
    app: &App,
    minutes: u64,
    after: Option<&str>,
    limit: u64,
) -> Result<Spread, DatabaseError> {
    let devices = device::Entity::find().count(app.database.read()).await?;
    let Some(in_force) = published::in_force(&app.database).await? else {
        return Ok(Spread { devices, ..Spread::default() });
    };
    let published_at = Timestamp::from_millis(in_force.published_at);
    let due = clock::now().since(published_at) >= Duration::from_secs(minutes.saturating_mul(60));
    let (versions, have_it) = versions(app, devices, in_force.version).await?;
    let (stragglers, next) =
        if due { behind(app, in_force.version, after, limit).await? } else { (Vec::new(), None) };
    Ok(Spread {
        version: Some(in_force.version),
        published_at: Some(published_at.to_string()),
        due,
        devices,
        have_it,
        versions,
        stragglers,
        next,
    })
}

async fn versions(app: &App, devices: u64, in_force: i64) -> Result<(Vec<Having>, u64), DatabaseError> {
    let known = device::Entity::find().select_only().column(device::Column::Id).into_query();
    let counted: Vec<(Option<i64>, i64)> = device_status::Entity::find()
        .select_only()
        .column(device_status::Column::RouteTable)
        .column_as(device_status::Column::Device.count(), "devices")
        .filter(device_status::Column::Device.in_subquery(known))
        .filter(device_status::Column::RouteTable.is_not_null())
        .group_by(device_status::Column::RouteTable)
        .into_tuple()
        .all(app.database.read())
        .await?;
    let mut versions: Vec<Having> = counted
        .into_iter()
        .map(|(version, devices)| Having { version, devices: devices.unsigned_abs() })
        .collect();
    versions.sort_by_key(|one| std::cmp::Reverse(one.version));
    let silent = devices.saturating_sub(versions.iter().map(|one| one.devices).sum());
    if silent > 0 {
        versions.push(Having { version: None, devices: silent });
    }
    let have_it = versions.iter().filter(|one| one.version == Some(in_force)).map(|one| one.devices).sum();
    Ok((versions, have_it))
}

async fn behind(
    app: &App,
    in_force: i64,
    after: Option<&str>,
    limit: u64,
) -> Result<(Vec<Straggler>, Option<String>), DatabaseError> {
    let limit = limit.clamp(1, PAGE);
    let current = device_status::Entity::find()
        .select_only()
        .column(device_status::Column::Device)
        .filter(device_status::Column::RouteTable.eq(in_force))
        .into_query();
    let mut query = device::Entity::find()
        .filter(device::Column::Id.not_in_subquery(current))
        .order_by_asc(device::Column::Id)
        .limit(limit);
    if let Some(after) = after {
        query = query.filter(device::Column::Id.gt(after));
    }
    let rows = query.all(app.database.read()).await?;
    let full = u64::try_from(rows.len()).is_ok_and(|found| found == limit);
    let next = rows.last().filter(|_| full).map(|row| row.id.clone());
    let countries: std::collections::HashMap<String, String> = store::Entity::find()
        .select_only()
        .columns([store::Column::Id, store::Column::Country])
        .filter(store::Column::Id.is_in(rows.iter().map(|row| row.store.as_str())))
        .into_tuple::<(String, String)>()
        .all(app.database.read())
        .await?
        .into_iter()
        .collect();
    let mut live =
        live::of(&app.database, rows.iter().map(|row| (row.id.as_str(), row.activated_at))).await?;
    let told = rows.into_iter().map(|row| {
        let live = live.remove(&row.id).unwrap_or_default().live;
        let (why, detail) = why(&live, in_force);
        Straggler {
            country: countries.get(&row.store).cloned(),
            device: row.id,
            store: row.store,
            route_table: live.route_table,
            online: live.online,
            since: live.since,
            why,
            detail,
        }
    });
    Ok((told.collect(), next))
}

/// The first reason that explains it. A refusal is told even of a device that has gone since: it will refuse again.
fn why(live: &Live, in_force: i64) -> (Why, String) {
    if live.revoked {
        return (Why::Revoked, String::new());
    }
    if live.last_seen.is_none() {
        return (Why::NeverSeen, String::new());
    }
    let refused = live
        .conditions
        .as_array()
        .into_iter()
        .flatten()
        .find(|condition| condition.get("name").and_then(Value::as_str) == Some("route-table-refused"));
    if let Some(refused) = refused.filter(|_| live.route_table != Some(in_force)) {
        let detail = refused.get("detail").and_then(Value::as_str).unwrap_or_default();
        return (Why::Refused, detail.to_owned());
    }
    if !live.online {
        return (Why::Offline, String::new());
    }
    let told = live.desired_revision.is_some() && live.config_revision < live.desired_revision;
    (if told { Why::NotApplied } else { Why::Unknown }, String::new())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_device_is_behind_for_the_first_reason_that_explains_it() {
        let seen = Live { last_seen: Some("x".into()), route_table: Some(3), ..Live::default() };
        let refusal = json!([{ "name": "route-table-refused", "detail": "has version 4" }]);
        let refused = Live { conditions: refusal, online: true, ..seen.clone() };
        assert_eq!(why(&Live::default(), 4).0, Why::NeverSeen);
        assert_eq!(why(&seen, 4).0, Why::Offline);
        assert_eq!(why(&refused, 4), (Why::Refused, "has version 4".to_owned()));
        assert_eq!(why(&Live { revoked: true, ..refused }, 4).0, Why::Revoked);
        let told = Live { online: true, desired_revision: Some(2), config_revision: Some(1), ..seen.clone() };
        assert_eq!(why(&told, 4).0, Why::NotApplied);
        assert_eq!(why(&Live { online: true, ..seen }, 4).0, Why::Unknown);
    }
}
