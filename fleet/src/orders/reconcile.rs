//! Reconciliation: device and origin compare what they have of one ledger (IO).
//!
//! ```text
//! request ──► who ──► read ──► check ──► count and digest of each range, row by row ──► verdicts
//!                                          listed keys that are not there ──► looked up by key ──► moved, or missing
//!         one transaction: moved orders get their new places; what it came to is noted for people
//! ```
//!
//! Promises: memory does not grow with the range (only the keys of a leaf are kept); nothing is ever deleted; two turns
//! at a time for all devices, so that orders never wait for it.

use std::collections::{HashMap, HashSet};

use axum::body::Body;
use axum::extract::State;
use axum::{Extension, Json};
use futures_util::TryStreamExt as _;
use http::{HeaderMap, StatusCode};
use samovar_wire::encoding::sha256_from_hex;
use samovar_wire::reconcile::{KeyDigest, RangeDigest, RangeVerdict, ReconcileAnswer, ReconcileRequest};
use samovar_wire::{DeviceId, Timestamp};
use sea_orm::ActiveValue::Set;
use sea_orm::sea_query::OnConflict;
use sea_orm::{ColumnTrait as _, EntityTrait as _, QueryFilter as _, QueryOrder as _, QuerySelect as _};

use super::compare::{self, Found};
use super::differences::Differences;
use super::pace::Work;
use super::{Place, places, receive, who};
use crate::app::App;
use crate::clock;
use crate::db::entity::{order, reconciliation};
use crate::db::{Database, DatabaseError, Write};
use crate::metrics::count;
use crate::pki::PeerCertificate;
use crate::problem::Failure;
use crate::server::body;

/// The largest request: every range, and as many keys as there may be.
pub(super) const MAX_BODY: usize = 4 * 1024 * 1024;
/// Keys of one question to the database.
const ASK: usize = 500;
/// Ledgers of one device that are remembered.
const LEDGERS: usize = 4;

/// Compares what a device has settled here with what this origin has, range by range.
#[utoipa::path(post, path = "/v1/orders:reconcile", tag = "origin",
    request_body(content = serde_json::Value, description = "{device, ledger, ranges: [{from_seq, to_seq, count, digest, keys?: [{seq, key, sha256}]}]}; \
        256 ranges at most, none overlapping another; keys only in ranges of 256 places or fewer, 4096 at most in all"),
    responses(
        (status = 200, description = "{ranges: [{from_seq, to_seq, match, missing?, unknown?}], server_time}; the lists are given where they are exact: \
            with keys, and for a range of 256 places or fewer in which the device has nothing"),
        (status = 400, description = "malformed"), (status = 401, description = "neither certificate nor token"),
        (status = 403, description = "the device is not the certificate's, or the certificate is revoked"),
        (status = 413, description = "too large"), (status = 415, description = "unknown content type or encoding"),
        (status = 422, description = "invalid-ranges: too many, backwards, overlapping, or keys that do not fit; device-mismatch: \
            the header Samovar-Device is another's"),
        (status = 429, description = "too many of this device, with Retry-After"),
        (status = 503, description = "overloaded, with Retry-After")))]
pub(super) async fn reconcile(
    State(app): State<App>,
    peer: Option<Extension<PeerCertificate>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<ReconcileAnswer>, Failure> {
    let peer = peer.map(|Extension(peer)| peer);
    let early = match admit(&app, peer.as_ref(), &headers) {
        Ok(early) => early,
        Err(refused) => {
            body::throw_away(body).await;
            return Err(refused);
        }
    };
    let _room = app.intake.room(Work::Reconcile, body::expected(&headers, MAX_BODY)).await?;
    let body = receive::read(&headers, body, MAX_BODY).await?;
    let _turn = app.intake.turn(Work::Reconcile).await?;
    let request: ReconcileRequest = receive::parse(&headers, body, MAX_BODY).await?;
    compare::check(&request).map_err(|unfit| {
        Failure::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid-ranges", unfit.to_string())
    })?;
    who::is_named(&app, peer.as_ref(), &request.device).await?;
    who::agrees(&headers, &request.device)?;
    let _place = match early {
        Some(place) => place,
        None => app.intake.enter(&app.metrics, &request.device, Work::Reconcile, 0)?,
    };
    let now = clock::now();
    let verdicts = compare(&app.database, &app.config.intake.origin, &request, now).await?;
    let all = verdicts.iter().all(|verdict| verdict.matches);
    count(if all { &app.metrics.reconciles_matched } else { &app.metrics.reconciles_differed });
    Ok(Json(ReconcileAnswer { ranges: verdicts, server_time: Some(now) }))
}

/// Everything that can be said before the body is read; with a certificate, which names the device, that is also
/// whether it may ask again so soon.
fn admit(app: &App, peer: Option<&PeerCertificate>, headers: &HeaderMap) -> Result<Option<Place>, Failure> {
    who::vouched(app, peer, headers)?;
    receive::json_only(headers)?;
    peer.map(|peer| app.intake.enter(&app.metrics, &peer.device, Work::Reconcile, 0)).transpose()
}

/// Compares, moves what has moved, and notes what it came to.
async fn compare(
    database: &Database,
    origin: &str,
    request: &ReconcileRequest,
    now: Timestamp,
) -> Result<Vec<RangeVerdict>, DatabaseError> {
    let mut found = Vec::with_capacity(request.ranges.len());
    for range in &request.ranges {
        found.push(scan(database, (&request.device, &request.ledger, origin), range).await?);
    }
    let pairs = || request.ranges.iter().zip(&found);
    let astray = pairs().flat_map(|(range, found)| compare::astray(range, found)).collect();
    let known = known(database, &request.device, astray).await?;
    let listed: HashSet<&str> =
        request.ranges.iter().flat_map(|range| &range.keys).flatten().map(|key| key.key.as_str()).collect();
    let verdicts: Vec<_> =
        pairs().map(|(range, found)| compare::verdict(range, found, &known, &listed)).collect();
    let write = database.write().await?;
    let moved = compare::moved(&request.ranges, &known);
    places::move_to(&write, &request.device, (&request.ledger, origin), moved).await?;
    note(&write, (&request.device, &request.ledger), &verdicts, now).await?;
    write.commit().await?;
    Ok(verdicts)
}

/// What this origin has in one range, read row by row.
async fn scan(
    database: &Database,
    (device, ledger, origin): (&DeviceId, &str, &str),
    range: &RangeDigest,
) -> Result<Found, DatabaseError> {
    // Checked: places are at most 2^53.
    let place = |seq: u64| i64::try_from(seq).unwrap_or(i64::MAX);
    let mut rows = order::Entity::find()
        .select_only()
        .columns([order::Column::Seq, order::Column::Key, order::Column::Sha256])
        .filter(order::Column::Device.eq(device.as_str()))
        .filter(order::Column::Ledger.eq(ledger))
        .filter(order::Column::Seq.between(place(range.from_seq), place(range.to_seq)))
        .filter(order::Column::Origin.eq(origin))
        .into_tuple::<(i64, String, String)>()
        .stream(database.read())
        .await?;
    let mut found = Found::of(range);
    while let Some((seq, key, sha256)) = rows.try_next().await? {
        // Only hex was ever recorded.
        let Some(body) = sha256_from_hex(&sha256) else { continue };
        found.add(KeyDigest { seq: u64::try_from(seq).unwrap_or_default(), key, sha256 }, &body);
    }
    Ok(found)
}

/// Those of some keys that the device has sent with the same content, whatever their place.
async fn known<'a>(
    database: &Database,
    device: &DeviceId,
    astray: Vec<&'a KeyDigest>,
) -> Result<HashSet<&'a str>, DatabaseError> {
    let mut known = HashSet::new();
    for some in astray.chunks(ASK) {
        let rows: Vec<(String, String)> = order::Entity::find()
            .select_only()
            .columns([order::Column::Key, order::Column::Sha256])
            .filter(order::Column::Device.eq(device.as_str()))
            .filter(order::Column::Key.is_in(some.iter().map(|key| key.key.as_str())))
            .into_tuple()
            .all(database.read())
            .await?;
        let rows: HashMap<String, String> = rows.into_iter().collect();
        let same = |key: &&&KeyDigest| rows.get(&key.key) == Some(&key.sha256);
        known.extend(some.iter().filter(same).map(|key| key.key.as_str()));
    }
    Ok(known)
}

/// Remembers when a ledger was compared last and what is known to differ: a pass is several requests, and only when
/// nothing is left of what any of them found do both sides have the same.
async fn note(
    write: &Write,
    (device, ledger): (&DeviceId, &str),
    verdicts: &[RangeVerdict],
    now: Timestamp,
) -> Result<(), DatabaseError> {
    use reconciliation::Column as C;
    let number = |value: usize| Set(i64::try_from(value).unwrap_or(i64::MAX));
    let mut known = differences(write, device, ledger).await?;
    known.take_in(verdicts, now);
    let matched = known.count() == 0 && !verdicts.is_empty();
    let text = (known.count() > 0).then(|| serde_json::to_string(&known).unwrap_or_default());
    let row = reconciliation::ActiveModel {
        device: Set(device.to_string()),
        ledger: Set(ledger.to_owned()),
        last_at: Set(now.millis()),
        last_match_at: Set(matched.then(|| now.millis())),
        ranges: number(verdicts.len()),
        differing: number(known.count()),
        missing: number(known.missing()),
        unknown: number(known.unknown()),
        differences: Set(text),
    };
    let mut changed = vec![C::LastAt, C::Ranges, C::Differing, C::Missing, C::Unknown, C::Differences];
    changed.extend(matched.then_some(C::LastMatchAt));
    reconciliation::Entity::insert(row)
        .on_conflict(OnConflict::columns([C::Device, C::Ledger]).update_columns(changed).to_owned())
        .exec_without_returning(&**write)
        .await?;
    forget_old_ledgers(write, device).await
}

/// What is known to differ in a ledger. The row is locked where the database has other writers.
async fn differences(write: &Write, device: &DeviceId, ledger: &str) -> Result<Differences, DatabaseError> {
    let row = reconciliation::Entity::find_by_id((device.to_string(), ledger.to_owned()))
        .lock_exclusive()
        .one(&**write)
        .await?;
    let text = row.and_then(|row| row.differences);
    // Only this program writes it; what cannot be read is found anew by the next pass.
    Ok(text.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default())
}

/// A device has one ledger at a time; what it says of many is not remembered for ever.
async fn forget_old_ledgers(write: &Write, device: &DeviceId) -> Result<(), DatabaseError> {
    use reconciliation::Column as C;
    let newest: Vec<String> = reconciliation::Entity::find()
        .select_only()
        .column(C::Ledger)
        .filter(C::Device.eq(device.as_str()))
        .order_by_desc(C::LastAt)
        .into_tuple()
        .all(&**write)
        .await?;
    let Some(old) = newest.get(LEDGERS..).filter(|old| !old.is_empty()) else { return Ok(()) };
    reconciliation::Entity::delete_many()
        .filter(C::Device.eq(device.as_str()))
        .filter(C::Ledger.is_in(old))
        .exec(&**write)
        .await?;
    Ok(())
}
