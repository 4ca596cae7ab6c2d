//! How devices are doing, for the API and the console: one view of the stored row and the reported document.
//!
//! The document is read field by field, never as a whole type: a device may be newer or older than this server, and what
//! it says in words that are unknown here is still shown.

use super::entity::{device_desired, device_status};
use crate::activation::revocation;
use crate::db::{Database, DatabaseError};
use samovar_wire::Timestamp;
use sea_orm::{ColumnTrait as _, EntityTrait as _, QueryFilter as _, QuerySelect as _};
use serde::Serialize;
use serde_json::Value;
use std::collections::HashMap;
use utoipa::ToSchema;

/// Identifiers in one question to the database.
const ASK: usize = 1000;

/// How a device is doing, as far as it has said.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub struct Live {
    /// Every certificate that it ever had here is revoked: it is let in no more.
    pub revoked: bool,
    /// Whether it is there; false when it has never been heard of.
    pub online: bool,
    /// Since when `online` has been what it is.
    pub since: Option<String>,
    /// When it was last heard of.
    pub last_seen: Option<String>,
    /// When, by its own clock, it last confirmed its state.
    pub reported_at: Option<String>,
    /// Version of its agent.
    pub version: Option<String>,
    /// The agent's run.
    pub epoch: Option<i64>,
    /// What a command must carry to prove that it is fresh.
    pub nonce: Option<String>,
    /// What its agent can do.
    #[schema(value_type = Vec<String>)]
    pub capabilities: Value,
    /// Version of the route table in force there.
    pub route_table: Option<i64>,
    /// Revision of the desired state applied there.
    pub config_revision: Option<i64>,
    /// Revision of the desired state it should have.
    pub desired_revision: Option<i64>,
    /// Where its orders go: `{service, domain, base_url, origin, rule}`.
    #[schema(value_type = Object)]
    pub origin: Value,
    /// The store's own line: `up`, `down` or `unknown`.
    pub line: String,
    /// Its ledger: counts by state, ages, size.
    #[schema(value_type = Object)]
    pub orders: Value,
    /// What is wrong, worst first: `[{name, severity, since, detail}]`.
    #[schema(value_type = Vec<Object>)]
    pub conditions: Value,
}

/// A device's live side with the document that it reported.
#[derive(Debug, Clone, Default)]
pub struct Detailed {
    /// What everybody asks for.
    pub live: Live,
    /// All of it, as reported; null before the first report.
    pub state: Value,
}

/// The live side of some devices, by identifier. Devices that were never heard of are absent, unless they are revoked.
///
/// # Errors
/// When the database does not answer.
pub async fn of(
    database: &Database,
    devices: impl IntoIterator<Item = (&str, i64)>,
) -> Result<HashMap<String, Detailed>, DatabaseError> {
    let activations: HashMap<&str, i64> = devices.into_iter().collect();
    let names: Vec<&str> = activations.keys().copied().collect();
    let mut found = HashMap::with_capacity(names.len());
    for some in names.chunks(ASK) {
        let rows = device_status::Entity::find()
            .filter(device_status::Column::Device.is_in(some.iter().copied()))
            .all(database.read())
            .await?;
        let revisions: Vec<(String, i64)> = device_desired::Entity::find()
            .select_only()
            .columns([device_desired::Column::Device, device_desired::Column::Revision])
            .filter(device_desired::Column::Device.is_in(some.iter().copied()))
            .into_tuple()
            .all(database.read())
            .await?;
        let revisions: HashMap<String, i64> = revisions.into_iter().collect();
        for row in
            rows.into_iter().filter(|row| activations.get(row.device.as_str()) == Some(&row.activation))
        {
            let revision = revisions.get(&row.device).copied();
            found.insert(row.device.clone(), read(row, revision));
        }
        for name in revocation::among(database.read(), some).await? {
            let live = &mut found.entry(name).or_default().live;
            (live.revoked, live.online) = (true, false);
        }
    }
    Ok(found)
}

fn read(row: device_status::Model, desired_revision: Option<i64>) -> Detailed {
    let state: Value = row.state.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
    let time = |millis: i64| (millis > 0).then(|| Timestamp::from_millis(millis).to_string());
    let live = Live {
        revoked: false,
        online: row.online,
        since: time(row.since),
        last_seen: time(row.last_seen),
        reported_at: time(row.reported_at),
        version: row.version,
        epoch: (row.epoch > 0).then_some(row.epoch),
        nonce: row.nonce,
        capabilities: row
            .capabilities
            .and_then(|text| serde_json::from_str(&text).ok())
            .unwrap_or_else(empty_list),
        route_table: row.route_table,
        config_revision: (row.epoch > 0).then_some(row.config_revision),
        desired_revision,
        origin: object(&state, "origin"),
        line: state["line"].as_str().unwrap_or("unknown").to_owned(),
        orders: object(&state, "orders"),
        conditions: if state["conditions"].is_array() { state["conditions"].clone() } else { empty_list() },
    };
    Detailed { live, state }
}

fn object(state: &Value, name: &str) -> Value {
    state.get(name).filter(|value| value.is_object()).cloned().unwrap_or_default()
}

fn empty_list() -> Value {
    Value::Array(Vec::new())
}

impl Live {
    /// Orders in one state; nothing when the device has not said.
    #[must_use]
    pub fn orders_in(&self, state: &str) -> Option<u64> {
        self.orders.get(state)?.as_u64()
    }

    /// The name of the origin that its orders go to.
    #[must_use]
    pub fn origin_name(&self) -> Option<&str> {
        self.origin.get("origin")?.as_str()
    }

    /// The names of conditions with their severities.
    pub fn condition_names(&self) -> impl Iterator<Item = (&str, &str)> {
        self.conditions.as_array().into_iter().flatten().filter_map(|condition| {
            Some((
                condition.get("name")?.as_str()?,
                condition.get("severity").and_then(Value::as_str).unwrap_or("warning"),
            ))
        })
    }
}
