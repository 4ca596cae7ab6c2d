//! Stores a batch of messages in one transaction (IO).
//!
//! Everything that the batch changes is committed together, so that what is acknowledged afterwards is durable. Rows of
//! devices are locked while they are folded: any number of servers may store messages of one device.

use super::entity::{device_event, device_metric, device_status, device_stream};
use super::figures::{self, Gathered};
use super::fold::{self, Device, Reaction, Stream};
use super::message::{Body, Message};
use super::rows;
use crate::activation::revocation;
use crate::db::entity::device;
use crate::db::{Database, DatabaseError, Write};
use samovar_wire::mqtt::{Event, EventBatch};
use samovar_wire::{DeviceId, Timestamp};
use sea_orm::sea_query::OnConflict;
use sea_orm::{
    ColumnTrait as _, EntityTrait as _, IntoActiveModel as _, Iterable as _, QueryFilter as _,
    QueryOrder as _, QuerySelect as _,
};
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// Rows of one insert; SQLite takes 32,766 values in one statement.
const ROWS: usize = 500;

/// What is to be done now that a batch is durable.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Outcome {
    /// How far each stream is durable.
    pub acks: BTreeMap<(DeviceId, String), i64>,
    /// What devices are to be told.
    pub reactions: BTreeMap<DeviceId, BTreeSet<Todo>>,
    /// Devices that people now see differently, with their stores.
    pub changed: BTreeMap<DeviceId, String>,
    /// Devices with new events, with their stores.
    pub events: BTreeMap<DeviceId, String>,
    /// Messages of devices that nobody has registered.
    pub strangers: usize,
    /// Messages of devices whose certificates are all revoked.
    pub revoked: usize,
}

/// [`Reaction`], in an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Todo {
    /// Ask for the whole state.
    Resync,
    /// Compare with what it should be.
    CheckDesired,
}

impl From<Reaction> for Todo {
    fn from(reaction: Reaction) -> Self {
        match reaction {
            Reaction::Resync => Self::Resync,
            Reaction::CheckDesired => Self::CheckDesired,
        }
    }
}

/// A device as this batch knows it.
struct Known {
    store: String,
    activation: i64,
    device: Device,
    streams: BTreeMap<String, Stream>,
    changed_streams: BTreeSet<String>,
}

/// Stores a batch.
///
/// # Errors
/// When the database does not take it; nothing of the batch is kept then.
pub(super) async fn keep(
    database: &Database,
    batch: &[Message],
    now: Timestamp,
) -> Result<Outcome, DatabaseError> {
    let names: BTreeSet<&str> = batch.iter().map(|message| message.device.as_str()).collect();
    let write = database.write().await?;
    let (mut known, revoked) = load(&write, &names).await?;
    let mut outcome = Outcome::default();
    let (mut events, mut metrics) = (Vec::new(), BTreeMap::new());
    let mut gathered = Gathered::default();
    for message in batch {
        let Some(entry) = known.get_mut(message.device.as_str()) else {
            if revoked.contains(message.device.as_str()) {
                outcome.revoked += 1;
            } else {
                outcome.strangers += 1;
            }
            continue;
        };
        let newer = figures::is_new(message, (entry.device.epoch, entry.device.seq));
        let (reaction, changed) = fold::apply(&mut entry.device, message, now);
        if let Some(reaction) = reaction {
            outcome.reactions.entry(message.device.clone()).or_default().insert(reaction.into());
        }
        if changed {
            outcome.changed.insert(message.device.clone(), entry.store.clone());
        }
        match &message.body {
            Body::Events(batch) => {
                let up_to = take_events(entry, message, batch, &mut events, now);
                outcome.acks.insert((message.device.clone(), batch.stream.clone()), up_to);
                outcome.events.insert(message.device.clone(), entry.store.clone());
            }
            Body::Metrics(numbers, endpoints) => {
                if newer {
                    gathered.add(&entry.store, endpoints);
                }
                metrics.insert(message.device.clone(), rows::metric_row(message, numbers, now));
            }
            _ => {}
        }
    }
    store(&write, known, events, metrics.into_values().collect()).await?;
    gathered.store(&write, now).await?;
    write.commit().await?;
    Ok(outcome)
}

fn take_events(
    entry: &mut Known,
    message: &Message,
    batch: &EventBatch,
    rows: &mut Vec<device_event::ActiveModel>,
    now: Timestamp,
) -> i64 {
    let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    let place = |event: Option<&Event>| event.map_or(0, |event| number(event.seq));
    let span = fold::Span {
        first: place(batch.events.first()),
        last: place(batch.events.last()),
        kept_from: batch.kept_from.map(number),
        place: (message.epoch, message.seq),
    };
    // Repeats too: whether an event is stored is known to the index of the table alone.
    let all = batch.events.iter();
    rows.extend(all.map(|event| rows::event_row(message, entry.activation, &batch.stream, event, now)));
    entry.changed_streams.insert(batch.stream.clone());
    fold::batch(entry.streams.entry(batch.stream.clone()).or_default(), span, now)
}

async fn load<'a>(
    write: &Write,
    names: &BTreeSet<&'a str>,
) -> Result<(BTreeMap<String, Known>, HashSet<String>), DatabaseError> {
    let list: Vec<&'a str> = names.iter().copied().collect();
    let registered = device::Entity::find()
        .filter(device::Column::Id.is_in(list.iter().copied()))
        .order_by_asc(device::Column::Id)
        .all(&**write)
        .await?;
    let missing: Vec<_> =
        registered.iter().map(|row| rows::status_row(&row.id, row.activated_at, Device::default())).collect();
    if missing.is_empty() {
        return Ok((BTreeMap::new(), HashSet::new()));
    }
    // Two servers may meet a new device at once: the row is made first and then locked.
    device_status::Entity::insert_many(missing)
        .on_conflict(OnConflict::column(device_status::Column::Device).do_nothing().to_owned())
        .exec_without_returning(&**write)
        .await?;
    let mut statuses: BTreeMap<String, device_status::Model> = device_status::Entity::find()
        .filter(device_status::Column::Device.is_in(list.iter().copied()))
        .order_by_asc(device_status::Column::Device)
        .lock_exclusive()
        .all(&**write)
        .await?
        .into_iter()
        .map(|row| (row.device.clone(), row))
        .collect();
    // After the rows are locked: a revocation either is seen here or waits and ends the presence afterwards.
    let revoked = revocation::among(&**write, &list).await?;
    let streams =
        device_stream::Entity::find().filter(device_stream::Column::Device.is_in(list)).all(&**write).await?;
    let mut known: BTreeMap<String, Known> = registered
        .into_iter()
        .filter(|row| !revoked.contains(&row.id))
        .map(|row| {
            let device = statuses
                .remove(&row.id)
                .map(|status| rows::device(status, row.activated_at))
                .unwrap_or_default();
            let entry = Known {
                store: row.store,
                activation: row.activated_at,
                device,
                streams: BTreeMap::new(),
                changed_streams: BTreeSet::new(),
            };
            (row.id, entry)
        })
        .collect();
    for row in streams {
        if let Some(entry) = known.get_mut(&row.device).filter(|entry| entry.activation == row.activation) {
            entry.streams.insert(row.stream.clone(), rows::stream(&row));
        }
    }
    Ok((known, revoked))
}

async fn store(
    write: &Write,
    known: BTreeMap<String, Known>,
    events: Vec<device_event::ActiveModel>,
    metrics: Vec<device_metric::ActiveModel>,
) -> Result<(), DatabaseError> {
    let (mut statuses, mut streams) = (Vec::new(), Vec::new());
    for (name, entry) in known {
        for key in &entry.changed_streams {
            if let Some(stream) = entry.streams.get(key) {
                streams.push(rows::stream_row(&name, entry.activation, key, stream));
            }
        }
        statuses.push(rows::status_row(&name, entry.activation, entry.device));
    }
    let on_status = OnConflict::column(device_status::Column::Device)
        .update_columns(
            device_status::Column::iter().filter(|column| !matches!(column, device_status::Column::Device)),
        )
        .to_owned();
    for chunk in chunks(statuses) {
        device_status::Entity::insert_many(chunk)
            .on_conflict(on_status.clone())
            .exec_without_returning(&**write)
            .await?;
    }
    use device_stream::Column as S;
    let on_stream = OnConflict::columns([S::Device, S::Activation, S::Stream])
        .update_columns([S::UpTo, S::GapStart, S::GapSeen, S::GapLast, S::GapEpoch, S::GapSeq])
        .to_owned();
    for chunk in chunks(streams) {
        device_stream::Entity::insert_many(chunk)
            .on_conflict(on_stream.clone())
            .exec_without_returning(&**write)
            .await?;
    }
    use device_event::Column as E;
    let once = OnConflict::columns([E::Device, E::Activation, E::Stream, E::Seq]).do_nothing().to_owned();
    for chunk in chunks(events) {
        device_event::Entity::insert_many(chunk)
            .on_conflict(once.clone())
            .exec_without_returning(&**write)
            .await?;
    }
    use device_metric::Column as M;
    let on_metric = OnConflict::columns([M::Device, M::Slot])
        .update_columns([M::At, M::ReceivedAt, M::Numbers])
        .to_owned();
    for chunk in chunks(metrics) {
        device_metric::Entity::insert_many(chunk)
            .on_conflict(on_metric.clone())
            .exec_without_returning(&**write)
            .await?;
    }
    Ok(())
}

fn chunks<T>(mut rows: Vec<T>) -> impl Iterator<Item = Vec<T>> {
    std::iter::from_fn(move || {
        if rows.is_empty() {
            return None;
        }
        let rest = rows.split_off(rows.len().min(ROWS));
        Some(std::mem::replace(&mut rows, rest))
    })
}

/// Ends the presence of devices that have fallen silent. Gives them with their stores.
///
/// # Errors
/// When the database does not take it.
pub(super) async fn expire(
    database: &Database,
    listening_since: Timestamp,
    now: Timestamp,
) -> Result<Vec<(DeviceId, String)>, DatabaseError> {
    use device_status::Column as D;
    let oldest = crate::clock::earlier(now, fold::LEASE);
    let silent = |query: sea_orm::Select<device_status::Entity>| {
        query.filter(D::Online.eq(true)).filter(D::LastSeen.lt(oldest.millis()))
    };
    if silent(device_status::Entity::find()).one(database.read()).await?.is_none() {
        return Ok(Vec::new());
    }
    let write = database.write().await?;
    let rows = silent(device_status::Entity::find())
        .order_by_asc(D::Device)
        .limit(500)
        .lock_exclusive()
        .all(&*write)
        .await?;
    let mut ended = Vec::new();
    for row in rows {
        let (name, activation) = (row.device.clone(), row.activation);
        let mut device = rows::device(row.clone(), activation);
        if fold::expire(&mut device, listening_since, now) {
            let mut changed = row.into_active_model();
            changed.online = sea_orm::ActiveValue::Set(false);
            changed.since = sea_orm::ActiveValue::Set(device.since);
            device_status::Entity::update(changed).exec(&*write).await?;
            ended.push(name);
        }
    }
    let stores = device::Entity::find().filter(device::Column::Id.is_in(ended)).all(&*write).await?;
    write.commit().await?;
    Ok(stores.into_iter().filter_map(|row| Some((row.id.parse().ok()?, row.store))).collect())
}

/// Forgets events older than `before`, some at a time. Gives how many.
///
/// # Errors
/// When the database does not take it.
pub(super) async fn forget(database: &Database, before: Timestamp) -> Result<u64, DatabaseError> {
    let old: Vec<i64> = device_event::Entity::find()
        .select_only()
        .column(device_event::Column::Position)
        .filter(device_event::Column::ReceivedAt.lt(before.millis()))
        .limit(5000)
        .into_tuple()
        .all(database.read())
        .await?;
    if old.is_empty() {
        return Ok(0);
    }
    let write = database.write().await?;
    let done = device_event::Entity::delete_many()
        .filter(device_event::Column::Position.is_in(old))
        .exec(&*write)
        .await?;
    write.commit().await?;
    Ok(done.rows_affected)
}
