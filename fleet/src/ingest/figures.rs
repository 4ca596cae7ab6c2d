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
    let read = |(place, [dns, request]): (Endpoint, [Vec<u64>; 2])| {
        (place, Measured { dns: Timing::of(dns), request: Timing::of(request) })
    };
    Ok(counts.into_iter().map(read).collect())
}

/// Each endpoint of a country before a table and from it on.
#[must_use]
pub fn before_and_after(
    measured: &BTreeMap<Endpoint, Measured>,
    version: i64,
) -> BTreeMap<(String, String, String), [Measured; 2]> {
    let mut split: BTreeMap<_, [Vec<&Measured>; 2]> = BTreeMap::new();
    for ((country, origin, host, table), measured) in measured {
        let both = split.entry((country.clone(), origin.clone(), host.clone())).or_default();
        both[usize::from(*table >= version)].push(measured);
    }
    split.into_iter().map(|(endpoint, both)| (endpoint, both.map(together))).collect()
}

/// Several measurements of one endpoint as one.
fn together<'a>(all: impl IntoIterator<Item = &'a Measured>) -> Measured {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::entity::device;
    use crate::ingest::keep::keep;
    use crate::ingest::message::{self, tests::envelope};
    use serde_json::{Value, json};

    async fn database(dir: &tempfile::TempDir) -> Database {
        let database = Database::open(&format!("sqlite://{}/fleet.db", dir.path().display())).await.unwrap();
        let write = database.write().await.unwrap();
        for (store, country, name) in
            [("US-1", "US", "POS-1"), ("US-2", "US", "POS-2"), ("JP-1", "JP", "POS-3")]
        {
            let row = store::ActiveModel {
                id: Set(store.to_owned()),
                country: Set(country.to_owned()),
                name: Set(String::new()),
                created_at: Set(1),
            };
            store::Entity::insert(row).exec_without_returning(&*write).await.unwrap();
            let row = device::ActiveModel {
                id: Set(name.to_owned()),
                store: Set(store.to_owned()),
                class: Set("pos".to_owned()),
                hardware: Set(None),
                activated_at: Set(1),
                created_at: Set(1),
            };
            device::Entity::insert(row).exec_without_returning(&*write).await.unwrap();
        }
        write.commit().await.unwrap();
        database
    }

    /// A report of requests to one endpoint, as a device sends it.
    fn report(device: &str, seq: u64, table: u64, millis: &[u64]) -> Message {
        let mut buckets = vec![0_u64; EDGES_MS.len()];
        millis.iter().for_each(|millis| buckets[samovar_wire::figures::bucket_of(*millis)] += 1);
        let endpoint = json!({ "origin": "apac", "host": "apac.store.example", "table_version": table,
            "request": { "count": millis.len(), "buckets": buckets } });
        read(device, seq, &json!([endpoint])).unwrap()
    }

    fn read(device: &str, seq: u64, endpoints: &Value) -> Result<Message, message::Refused> {
        let data = json!({ "metrics": { "samovar_uptime_seconds": 1.0 }, "endpoints": endpoints });
        let payload = envelope("samovar.metrics.v1", 1, seq, &data);
        message::read("prod", &format!("samovar/v1/prod/{device}/up/metrics"), &payload)
    }

    #[tokio::test]
    async fn counts_of_a_countrys_devices_are_one_sum_and_a_repeat_counts_once() {
        let dir = tempfile::tempdir().unwrap();
        let database = database(&dir).await;
        let now = Timestamp::from_millis(20_000 * DAY + 5);
        let (first, second) = (report("POS-1", 1, 7, &[10; 90]), report("POS-2", 1, 7, &[300; 10]));
        keep(&database, &[first.clone(), second], now).await.unwrap();
        keep(&database, &[first, report("POS-1", 2, 8, &[10]), report("POS-3", 1, 7, &[50])], now)
            .await
            .unwrap();
        let all = measured(&database, &Wanted::default()).await.unwrap();
        let of = |country: &str, table| {
            let place = (country.to_owned(), "apac".to_owned(), "apac.store.example".to_owned(), table);
            all.get(&place).map(|measured| measured.request.clone()).unwrap_or_default()
        };
        let sum = of("US", 7);
        assert_eq!((sum.count, sum.p50_ms, sum.p95_ms), (100, Some(12), Some(375)));
        assert_eq!((of("US", 8).count, of("JP", 7).count, of("JP", 8).count), (1, 1, 0));
        let split = before_and_after(&all, 8);
        let [before, after] = &split[&("US".to_owned(), "apac".to_owned(), "apac.store.example".to_owned())];
        assert_eq!((before.request.count, after.request.count, split.len()), (100, 1, 2));

        let japan = Wanted { country: Some("JP".into()), from: Some(now), to: Some(now) };
        assert_eq!(measured(&database, &japan).await.unwrap().len(), 1);
        let tomorrow = Timestamp::from_millis(now.millis() + DAY);
        let none = Wanted { from: Some(tomorrow), ..Wanted::default() };
        assert!(measured(&database, &none).await.unwrap().is_empty());
        forget(&database, Timestamp::from_millis(now.millis() + 91 * DAY)).await.unwrap();
        assert!(measured(&database, &Wanted::default()).await.unwrap().is_empty());
    }

    #[test]
    fn figures_that_no_device_can_have_measured_are_refused() {
        let good = json!({ "origin": "apac", "host": "h", "table_version": 1, "dns": { "count": 1, "buckets": [1] } });
        assert!(read("POS-1", 1, &json!([good])).is_ok());
        assert!(read("POS-1", 1, &json!(vec![good.clone(); 33])).is_err());
        for (field, value) in [
            ("host", json!("a\u{0}b")),
            ("host", json!("")),
            ("table_version", json!(u64::MAX)),
            ("dns", json!({ "count": 1, "buckets": vec![0; 29] })),
            ("dns", json!({ "count": 1, "buckets": [u64::MAX] })),
        ] {
            let mut bad = good.clone();
            bad[field] = value;
            assert!(read("POS-1", 1, &json!([bad])).is_err(), "{field}");
        }
    }
}
