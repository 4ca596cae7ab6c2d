//! Host overrides on the API.
#![expect(unused_qualifications, reason = "written by the macro that describes the query parameters")]

use axum::Json;
use axum::extract::{Path, Query, State};
use http::StatusCode;
use samovar_wire::hosts::Refused;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::listing::{self, Which};
use super::merge::Entry;
use super::wanted::{self, WantError, Wish};
use crate::app::App;
use crate::auth::Operator;
use crate::problem::Failure;

pub(crate) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(set, clear))
}

/// Overrides by device and name.
#[derive(Debug, Serialize, ToSchema)]
struct HostList {
    hosts: Vec<Entry>,
    /// What to give as `after` for the next page; null at the end.
    next: Option<String>,
}

/// Which overrides.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default)]
struct Filter {
    /// Of this country only.
    country: Option<String>,
    /// Of this store only.
    store: Option<String>,
    /// Of this device only.
    device: Option<String>,
    /// The device that the page begins after.
    after: Option<String>,
    /// Devices with overrides at most, up to 1000.
    limit: Option<u64>,
}

/// An override that somebody wants.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(default)]
struct SetRequest {
    /// IPv4 or IPv6, of one machine.
    address: String,
    /// Why.
    reason: String,
    /// The ticket.
    ticket: Option<String>,
    /// For how long: 14400 unless told, 259200 at most, for the role `field` 14400 at most.
    ttl_s: Option<u64>,
    /// Also when the address does not prove that it is the name.
    force: bool,
}

/// An override that was ended.
#[derive(Debug, Serialize, ToSchema)]
struct Cleared {
    /// As it was.
    cleared: Entry,
}

/// Host overrides that the fleet wants and that devices report, by device and name.
#[utoipa::path(get, path = "/api/v1/hosts", tag = "hosts", params(Filter),
    responses((status = 200, body = HostList), (status = 401)))]
async fn list(
    State(app): State<App>,
    _operator: Operator,
    Query(filter): Query<Filter>,
) -> Result<Json<HostList>, Failure> {
    let given = |text: Option<String>| text.filter(|text| !text.is_empty());
    let which = Which {
        country: given(filter.country),
        store: given(filter.store),
        device: given(filter.device),
        after: given(filter.after),
        limit: filter.limit.unwrap_or(100),
    };
    let (hosts, next) = listing::page(&app.database, &which).await?;
    Ok(Json(HostList { hosts, next }))
}

/// Points a name of a device elsewhere for a while. It holds when the device reports it (`in_force`).
#[utoipa::path(put, path = "/api/v1/devices/{id}/hosts/{name}", tag = "hosts", request_body = SetRequest,
    params(("id" = String, Path), ("name" = String, Path)),
    responses((status = 202, body = Entry), (status = 401), (status = 403), (status = 404), (status = 409),
              (status = 422), (status = 503)))]
async fn set(
    State(app): State<App>,
    operator: Operator,
    Path((id, name)): Path<(String, String)>,
    Json(given): Json<SetRequest>,
) -> Result<(StatusCode, Json<Entry>), Failure> {
    let SetRequest { address, reason, ticket, ttl_s, force } = given;
    let wish = Wish { name, address, reason, ticket, ttl_s, force };
    let row = wanted::set(&app, &operator, &id, wish).await.map_err(|error| failure(&error))?;
    let place = wanted::place(&app.database, &id).await.map_err(|error| failure(&error))?;
    let entries = listing::of_device(&app.database, &place).await?;
    let entry = entries.into_iter().find(|entry| entry.id.as_deref() == Some(row.id.as_str()));
    // One of a second may be over by now.
    let gone = || Failure::conflict("it is over already, or somebody else has replaced or cleared it");
    entry.map(|entry| (StatusCode::ACCEPTED, Json(entry))).ok_or_else(gone)
}

/// Ends an override: 200 when the device did not have it, 202 when the device is being told.
#[utoipa::path(delete, path = "/api/v1/devices/{id}/hosts/{name}", tag = "hosts",
    params(("id" = String, Path), ("name" = String, Path)),
    responses((status = 200, body = Cleared), (status = 202, body = Cleared), (status = 401), (status = 403),
              (status = 404)))]
async fn clear(
    State(app): State<App>,
    operator: Operator,
    Path((id, name)): Path<(String, String)>,
) -> Result<(StatusCode, Json<Cleared>), Failure> {
    let place = wanted::place(&app.database, &id).await.map_err(|error| failure(&error))?;
    let before = listing::of_device(&app.database, &place).await?;
    let row = wanted::clear(&app, &operator, &id, &name).await.map_err(|error| failure(&error))?;
    let entry = before.into_iter().find(|entry| entry.id.as_deref() == Some(row.id.as_str()));
    let cleared = entry.ok_or_else(|| Failure::conflict("somebody else changed it just now; look again"))?;
    let status = if cleared.in_force { StatusCode::ACCEPTED } else { StatusCode::OK };
    Ok((status, Json(Cleared { cleared })))
}

/// In the words of the device's own API.
pub(crate) fn failure(error: &WantError) -> Failure {
    let (status, slug) = match error {
        WantError::Database(error) => return Failure::unavailable(error),
        WantError::Refused(Refused::Invalid { .. }) => (StatusCode::UNPROCESSABLE_ENTITY, "invalid-override"),
        WantError::Refused(Refused::NoTable) => (StatusCode::SERVICE_UNAVAILABLE, "no-route-table"),
        WantError::Refused(Refused::Unknown(_)) => (StatusCode::NOT_FOUND, "unknown-name"),
        WantError::Refused(Refused::Protected(_)) => (StatusCode::FORBIDDEN, "protected-name"),
        WantError::Refused(Refused::NotOverridable { .. }) => (StatusCode::FORBIDDEN, "not-overridable"),
        WantError::Refused(Refused::Disabled) => (StatusCode::FORBIDDEN, "overrides-disabled"),
        WantError::Refused(Refused::TooMany) => (StatusCode::CONFLICT, "too-many-overrides"),
        WantError::NoDevice(_) => (StatusCode::NOT_FOUND, "not-found"),
        WantError::Revoked(_) => (StatusCode::CONFLICT, "device-revoked"),
        WantError::Forbidden(_) => (StatusCode::FORBIDDEN, "forbidden"),
        WantError::Absent { .. } => (StatusCode::NOT_FOUND, "no-override"),
    };
    Failure::new(status, slug, error.to_string())
}
