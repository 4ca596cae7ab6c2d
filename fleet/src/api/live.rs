//! What happens: events of devices, and the stream of changes that the console lives on.
#![expect(unused_qualifications, reason = "written by the macro that describes the query parameters")]

use std::convert::Infallible;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::Stream;
use http::{HeaderMap, StatusCode};
use samovar_wire::Timestamp;
use sea_orm::{ColumnTrait as _, EntityTrait as _, QueryFilter as _, QueryOrder as _, QuerySelect as _};
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast::error::RecvError;
use tokio::time::MissedTickBehavior;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::App;
use crate::auth::Operator;
use crate::db::entity::device;
use crate::ingest::Change;
use crate::ingest::entity::device_event;
use crate::problem::Failure;

/// How often a stream asks whether its reader is still signed in.
const CHECK: Duration = Duration::from_secs(3);

pub(super) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(events)).routes(routes!(changes))
}

/// Which events.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default)]
struct Which {
    /// Only those before this position; without it the newest.
    before: Option<i64>,
    /// How many at most, up to 500.
    limit: Option<u64>,
    /// Of this kind only.
    kind: Option<String>,
}

/// One event.
#[derive(Debug, Serialize, ToSchema)]
struct EventView {
    /// Place here; grows.
    position: i64,
    /// The stream it came in.
    stream: String,
    /// Its place in that stream.
    seq: i64,
    /// When it happened, by the device's clock.
    at: String,
    /// When it came.
    received_at: String,
    /// What happened.
    kind: String,
    /// The facts.
    #[schema(value_type = Object)]
    data: serde_json::Value,
}

/// Events, the newest first.
#[derive(Debug, Serialize, ToSchema)]
struct EventList {
    events: Vec<EventView>,
    /// What to give as `before` for older ones; null at the end.
    next: Option<i64>,
}

/// Events of a device, the newest first.
#[utoipa::path(get, path = "/api/v1/devices/{id}/events", tag = "devices", params(("id" = String, Path), Which),
    responses((status = 200, body = EventList), (status = 401), (status = 404)))]
async fn events(
    State(app): State<App>,
    _operator: Operator,
    Path(id): Path<String>,
    Query(which): Query<Which>,
) -> Result<Json<EventList>, Failure> {
    use device_event::Column as E;
    if device::Entity::find_by_id(&id).one(app.database.read()).await?.is_none() {
        return Err(Failure::not_found(format!("there is no device {id}")));
    }
    let limit = which.limit.unwrap_or(100).clamp(1, 500);
    let mut query =
        device_event::Entity::find().filter(E::Device.eq(&id)).order_by_desc(E::Position).limit(limit);
    if let Some(before) = which.before {
        query = query.filter(E::Position.lt(before));
    }
    if let Some(kind) = &which.kind {
        query = query.filter(E::Kind.eq(kind));
    }
    let rows = query.all(app.database.read()).await?;
    let full = u64::try_from(rows.len()).is_ok_and(|found| found == limit);
    let next = rows.last().filter(|_| full).map(|row| row.position);
    Ok(Json(EventList { events: rows.into_iter().map(view).collect(), next }))
}

fn view(row: device_event::Model) -> EventView {
    EventView {
        position: row.position,
        stream: row.stream,
        seq: row.seq,
        at: Timestamp::from_millis(row.at).to_string(),
        received_at: Timestamp::from_millis(row.received_at).to_string(),
        kind: row.kind,
        data: serde_json::from_str(&row.data).unwrap_or_default(),
    }
}

/// Which changes.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default)]
struct Watched {
    /// Of this device only.
    device: Option<String>,
    /// Of this store only.
    store: Option<String>,
}

impl Watched {
    fn wants(&self, change: &Change) -> bool {
        self.device.as_deref().is_none_or(|device| device == change.device.as_str())
            && self.store.as_deref().is_none_or(|store| store == change.store)
    }
}

/// What changes, as it changes: `device` (its live state), `events` (new ones of a device) and `resync` (some changes
/// were missed: read everything again). Data of the first two: `{device, store}`.
#[utoipa::path(get, path = "/api/v1/events", tag = "devices", params(Watched),
    responses((status = 200, description = "text/event-stream"), (status = 401)))]
async fn changes(
    State(app): State<App>,
    _operator: Operator,
    headers: HeaderMap,
    Query(watched): Query<Watched>,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    // The first word lets a reader know that from here on nothing is missed.
    let first =
        futures_util::stream::once(std::future::ready(Ok(Event::default().event("resync").data("{}"))));
    let mut check = tokio::time::interval(CHECK);
    check.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let state = (app.ingest.changes(), check, watched, app, headers);
    let rest = futures_util::stream::unfold(state, async |mut state| {
        let (changes, check, watched, app, headers) = &mut state;
        loop {
            let change = tokio::select! {
                change = changes.recv() => change,
                _ = check.tick() => match Operator::of(headers, app).await {
                    Err(failure) if failure.problem().status == StatusCode::UNAUTHORIZED.as_u16() => return None,
                    // A database that is away says nothing about the session.
                    _ => continue,
                },
            };
            let event = match change {
                Ok(change) if watched.wants(&change) => told(&change),
                Ok(_) => continue,
                Err(RecvError::Lagged(_)) => Event::default().event("resync").data("{}"),
                Err(RecvError::Closed) => return None,
            };
            return Some((Ok(event), state));
        }
    });
    let stream = futures_util::StreamExt::chain(first, rest);
    Sse::new(stream).keep_alive(KeepAlive::new().interval(Duration::from_secs(20)))
}

fn told(change: &Change) -> Event {
    let data = serde_json::json!({ "device": change.device, "store": change.store });
    Event::default().event(if change.events { "events" } else { "device" }).data(data.to_string())
}
