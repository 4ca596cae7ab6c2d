//! The overrides of some devices: what is wanted, what is reported, what was refused (IO around [`super::merge`]).

use samovar_wire::Timestamp;
use sea_orm::{
    ColumnTrait as _, Condition, EntityTrait as _, QueryFilter as _, QueryOrder as _, QuerySelect as _,
    QueryTrait as _,
};
use serde_json::Value;
use std::collections::HashMap;

use super::merge::{Entry, Of, Refusal, merge};
use super::wanted::{self, Place};
use crate::clock;
use crate::db::entity::{device, host_override, store};
use crate::db::{Database, DatabaseError};
use crate::ingest::entity::{device_event, device_status};
use crate::ingest::live;

/// Devices of one page at most.
pub const DEVICES: u64 = 1000;
/// Refusals looked at for one page.
const REFUSALS: u64 = 1000;
/// How a report looks that has an override: devices send it without spaces.
const HAS_ONE: &str = "\"overrides\":[{";

/// Which overrides.
#[derive(Debug, Default)]
pub struct Which {
    /// Of this country only.
    pub country: Option<String>,
    /// Of this store only.
    pub store: Option<String>,
    /// Of this device only.
    pub device: Option<String>,
    /// After this device.
    pub after: Option<String>,
    /// Devices at most.
    pub limit: u64,
}

/// A page of overrides, by device and name, and the device to go on after.
///
/// # Errors
/// When the database does not answer.
pub async fn page(database: &Database, which: &Which) -> Result<(Vec<Entry>, Option<String>), DatabaseError> {
    let now = clock::now();
    let limit = which.limit.clamp(1, DEVICES);
    let places = places(database, which, limit, now).await?;
    let full = u64::try_from(places.len()).is_ok_and(|found| found == limit);
    let next = places.last().filter(|_| full).map(|place| place.device.id.clone());
    Ok((entries(database, &places, now).await?, next))
}

/// The overrides of one device, by name.
///
/// # Errors
/// When the database does not answer.
pub async fn of_device(database: &Database, place: &Place) -> Result<Vec<Entry>, DatabaseError> {
    entries(database, std::slice::from_ref(place), clock::now()).await
}

/// Devices of which something is wanted, or that report something.
async fn places(
    database: &Database,
    which: &Which,
    limit: u64,
    now: Timestamp,
) -> Result<Vec<Place>, DatabaseError> {
    let wanted = host_override::Entity::find()
        .select_only()
        .column(host_override::Column::Device)
        .filter(wanted::is_active(now));
    let reporting = device_status::Entity::find()
        .select_only()
        .column(device_status::Column::Device)
        .filter(device_status::Column::State.contains(HAS_ONE));
    let either = Condition::any()
        .add(device::Column::Id.in_subquery(wanted.into_query()))
        .add(device::Column::Id.in_subquery(reporting.into_query()));
    let mut query = device::Entity::find().filter(either).order_by_asc(device::Column::Id).limit(limit);
    if let Some(after) = &which.after {
        query = query.filter(device::Column::Id.gt(after));
    }
    if let Some(device) = &which.device {
        query = query.filter(device::Column::Id.eq(device));
    }
    if let Some(store) = &which.store {
        query = query.filter(device::Column::Store.eq(store));
    }
    if let Some(country) = &which.country {
        let stores = store::Entity::find()
            .select_only()
            .column(store::Column::Id)
            .filter(store::Column::Country.eq(country));
        query = query.filter(device::Column::Store.in_subquery(stores.into_query()));
    }
    let rows = query.all(database.read()).await?;
    let stores = store::Entity::find()
        .filter(store::Column::Id.is_in(rows.iter().map(|row| row.store.as_str())))
        .all(database.read())
        .await?;
    let countries: HashMap<String, String> = stores.into_iter().map(|row| (row.id, row.country)).collect();
    let place = |device: device::Model| Place {
        country: countries.get(&device.store).cloned().unwrap_or_default(),
        device,
    };
    Ok(rows.into_iter().map(place).collect())
}

async fn entries(database: &Database, places: &[Place], now: Timestamp) -> Result<Vec<Entry>, DatabaseError> {
    let names: Vec<&str> = places.iter().map(|place| place.device.id.as_str()).collect();
    let wanted = wanted::active(database.read(), &names, now).await?;
    let activations = places.iter().map(|place| (place.device.id.as_str(), place.device.activated_at));
    let live = live::of(database, activations).await?;
    let refusals = refusals(database, &wanted).await?;
    let mut entries = Vec::new();
    for place in places {
        let device = &place.device;
        let seen = live.get(&device.id);
        let of = Of {
            device: &device.id,
            store: &device.store,
            country: &place.country,
            online: seen.is_some_and(|seen| seen.live.online),
        };
        let wanted = wanted.get(&device.id).map(Vec::as_slice).unwrap_or_default();
        let state = seen.map_or(&Value::Null, |seen| &seen.state);
        entries.extend(merge(of, wanted, state, &refusals, now));
    }
    Ok(entries)
}

/// What devices refused since the oldest of these was set.
async fn refusals(
    database: &Database,
    wanted: &HashMap<String, Vec<host_override::Model>>,
) -> Result<Vec<Refusal>, DatabaseError> {
    let Some(since) = wanted.values().flatten().map(|row| row.set_at).min() else { return Ok(Vec::new()) };
    let rows = device_event::Entity::find()
        .filter(device_event::Column::Device.is_in(wanted.keys().map(String::as_str)))
        .filter(device_event::Column::Kind.eq("hosts.refused"))
        .filter(device_event::Column::ReceivedAt.gte(since))
        .order_by_desc(device_event::Column::Position)
        .limit(REFUSALS)
        .all(database.read())
        .await?;
    let read = |row: device_event::Model| {
        let data: Value = serde_json::from_str(&row.data).ok()?;
        let text = |field: &str| data[field].as_str().map(str::to_owned);
        Some(Refusal {
            device: row.device,
            name: text("name")?,
            why: text("why").unwrap_or_default(),
            heard_at: row.received_at,
        })
    };
    Ok(rows.into_iter().filter_map(read).collect())
}
