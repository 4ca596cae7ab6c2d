//! Per-endpoint figures of all devices: added up by day, country, endpoint and table, and read as percentiles (IO).
//!
//! Devices send counts in fixed buckets, so those of a country are a sum. A report counts once: what the device's place
//! shows to be a repeat is left out. Reports may be lost on their way; then there are fewer counts, not wrong ones.

use super::entity::endpoint_figure::{self, Column};
use super::message::Message;
use crate::db::entity::store;
use crate::db::{Database, DatabaseError, Write};
use samovar_wire::Timestamp;
use samovar_wire::figures::{EDGES_MS, EndpointFigures, Timing};
use sea_orm::sea_query::{Expr, ExprTrait as _, OnConflict};
use sea_orm::{ActiveValue::Set, ColumnTrait as _, EntityTrait as _, QueryFilter as _, QuerySelect as _};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Milliseconds of a day.
const DAY: i64 = 86_400_000;
/// Days that are kept.
const KEPT_DAYS: i64 = 90;
/// Rows of one insert; SQLite takes 32,766 values in one statement.
const ROWS: usize = 500;
/// Rows that one question may read.
const READ_MAX: u64 = 200_000;
/// Kinds of durations.
const DNS: &str = "dns";
const REQUEST: &str = "request";

/// One row's name: day, country, origin, host, table, kind, bucket.
type Place = (i64, String, String, String, i64, &'static str, i64);

/// Counts of a batch of messages.
#[derive(Debug, Default)]
pub(super) struct Gathered(Vec<(String, EndpointFigures)>);

impl Gathered {
    /// Takes the figures of one device of a store.
    pub(super) fn add(&mut self, store: &str, endpoints: &[EndpointFigures]) {
        self.0.extend(endpoints.iter().map(|figures| (store.to_owned(), figures.clone())));
    }

    /// Adds them to what is stored.
    ///
    /// # Errors
    /// When the database does not take it.
    pub(super) async fn store(self, write: &Write, now: Timestamp) -> Result<(), DatabaseError> {
        if self.0.is_empty() {
            return Ok(());
        }
        let stores: BTreeSet<&str> = self.0.iter().map(|(store, _)| store.as_str()).collect();
        let rows = store::Entity::find().filter(store::Column::Id.is_in(stores)).all(&**write).await?;
        let countries: HashMap<String, String> = rows.into_iter().map(|row| (row.id, row.country)).collect();
        // In the order of their names, so that two servers never wait for each other.
        let rows: Vec<_> = sums(&self.0, &countries, now).into_iter().map(row).collect();
        let add = OnConflict::columns([
            Column::Day,
            Column::Country,
            Column::Origin,
            Column::Host,
            Column::TableVersion,
            Column::Kind,
            Column::Bucket,
        ])
        .value(
            Column::N,
            Expr::col((endpoint_figure::Entity, Column::N)).add(Expr::col(("excluded", Column::N))),
        )
        .to_owned();
        for chunk in rows.chunks(ROWS) {
            endpoint_figure::Entity::insert_many(chunk.to_vec())
                .on_conflict(add.clone())
                .exec_without_returning(&**write)
                .await?;
        }
        Ok(())
    }
}

/// Whether a message is newer than everything heard of its device so far.
pub(super) fn is_new(message: &Message, (epoch, seq): (i64, i64)) -> bool {
    (message.epoch, message.seq) > (epoch, seq)
}

fn sums(
    gathered: &[(String, EndpointFigures)],
    countries: &HashMap<String, String>,
    now: Timestamp,
) -> BTreeMap<Place, i64> {
    let mut sums = BTreeMap::new();
    for (store, figures) in gathered {
        let Some(country) = countries.get(store) else { continue };
        for (kind, timing) in [(DNS, &figures.dns), (REQUEST, &figures.request)] {
            for (bucket, n) in timing.buckets.iter().enumerate().filter(|(_, n)| **n > 0) {
                let place = (
                    now.millis() / DAY,
                    country.clone(),
                    figures.origin.as_str().to_owned(),
                    figures.host.clone(),
                    i64::try_from(figures.table_version).unwrap_or(i64::MAX),
                    kind,
                    i64::try_from(bucket).unwrap_or(0),
                );
                let sum: &mut i64 = sums.entry(place).or_default();
                *sum = sum.saturating_add(i64::try_from(*n).unwrap_or(i64::MAX));
            }
        }
    }
    sums
}

fn row((place, n): (Place, i64)) -> endpoint_figure::ActiveModel {
    let (day, country, origin, host, table_version, kind, bucket) = place;
    endpoint_figure::ActiveModel {
        day: Set(day),
        country: Set(country),
        origin: Set(origin),
        host: Set(host),
        table_version: Set(table_version),
        kind: Set(kind.to_owned()),
        bucket: Set(bucket),
        n: Set(n),
    }
}

/// Which figures are asked for.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// Of this country only.
    pub country: Option<String>,
    /// Not before the day of this moment.
    pub from: Option<Timestamp>,
    /// Not after the day of this moment.
    pub to: Option<Timestamp>,
}

/// Durations of an endpoint in a country.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Measured {
    /// Looking its name up.
    pub dns: Timing,
    /// Until the head of an answer.
    pub request: Timing,
}

/// Country, origin, host, and the table that was in force on the devices.
pub type Endpoint = (String, String, String, i64);

/// What was measured, by endpoint.
///
/// # Errors
/// When the database does not answer.
pub async fn measured(
    database: &Database,
    wanted: &Wanted,
) -> Result<BTreeMap<Endpoint, Measured>, DatabaseError> {
    let mut query = endpoint_figure::Entity::find().limit(READ_MAX);
    if let Some(country) = &wanted.country {
        query = query.filter(Column::Country.eq(country));
    }
    if let Some(from) = wanted.from {
        query = query.filter(Column::Day.gte(from.millis().div_euclid(DAY)));
    }
    if let Some(to) = wanted.to {
        query = query.filter(Column::Day.lte(to.millis().div_euclid(DAY)));
    }
    let mut counts: BTreeMap<Endpoint, [Vec<u64>; 2]> = BTreeMap::new();
    for row in query.all(database.read()).await? {
        let place = (row.country, row.origin, row.host, row.table_version);
        let both = counts.entry(place).or_insert_with(|| [(); 2].map(|()| vec![0; EDGES_MS.len()]));
        let counted = &mut both[usize::from(row.kind == REQUEST)];
        if let Some(n) = usize::try_from(row.bucket).ok().and_then(|bucket| counted.get_mut(bucket)) {
            *n = n.saturating_add(row.n.unsigned_abs());
        }
    }
    let read =
        |(place, [dns, request])| (place, Measured { dns: Timing::of(dns), request: Timing::of(request) });
    Ok(counts.into_iter().map(read).collect())
}

/// Several measurements of one endpoint as one.
#[must_use]
pub fn together<'a>(all: impl IntoIterator<Item = &'a Measured>) -> Measured {
    let mut sums = [(); 2].map(|()| vec![0_u64; EDGES_MS.len()]);
    for measured in all {
        for (sum, timing) in sums.iter_mut().zip([&measured.dns, &measured.request]) {
            for (n, more) in sum.iter_mut().zip(&timing.buckets) {
                *n = n.saturating_add(*more);
            }
        }
    }
    let [dns, request] = sums;
    Measured { dns: Timing::of(dns), request: Timing::of(request) }
}

/// Forgets days that are long past.
///
/// # Errors
/// When the database does not take it.
pub(super) async fn forget(database: &Database, now: Timestamp) -> Result<(), DatabaseError> {
    let oldest = now.millis() / DAY - KEPT_DAYS;
    let write = database.write().await?;
    endpoint_figure::Entity::delete_many().filter(Column::Day.lt(oldest)).exec(&*write).await?;
    write.commit().await?;
    Ok(())
}
